"""The loop learns: on a toy task, in seconds, from weak demonstrations to success, with both objectives."""

from __future__ import annotations

from pathlib import Path

import pytest

from toy import TASK, ToyDemonstrations, ToyPool, toy_policy
from z1.config import ActingConfig, RlConfig, RolloutConfig, SftConfig, UpdateConfig, ValidationConfig
from z1.eval.evaluate import evaluate_policy
from z1.policy.policy import Policy
from z1.train.metrics import MetricsWriter, read_metrics
from z1.train.sft import SftTrainer
from z1.train.trainer import Trainer
from z1.types import Scene

ACTING = ActingConfig(denoise_steps=4, chunk_length=4)


@pytest.fixture(scope="module")
def weak(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that was trained on demonstrations too hesitant to succeed often."""
    folder = tmp_path_factory.mktemp("sft")
    config = SftConfig(
        dataset=("toy",),
        out=str(folder),
        steps=150,
        learning_rate=2e-3,
        warmup_steps=10,
        validate_every=50,
    )
    with MetricsWriter(folder, tensorboard=False) as metrics:
        trainer = SftTrainer(config, toy_policy(), [ToyDemonstrations()], folder, metrics)  # type: ignore[arg-type]
        trainer.run()
        path = trainer.finish()
    losses = [r["sft/validation_loss"] for r in read_metrics(folder / "metrics.jsonl") if "sft/validation_loss" in r]
    assert len(losses) == 3
    assert losses[-1] < 0.6 * losses[0] or losses[-1] < 0.35
    return path


def test_demonstrations_alone_do_not_do(weak: Path) -> None:
    assert success_of(weak) < 0.4


def success_of(policy: Path) -> float:
    """On 200 scenes that no training saw."""
    scenes = [Scene.of_split(TASK, "test", index) for index in range(200)]
    results = evaluate_policy(ToyPool(), Policy.load(policy), ACTING, scenes, seed=0, live_members=200)  # type: ignore[arg-type]
    return sum(result.success for result in results) / len(results)


@pytest.mark.parametrize(
    "update",
    [
        UpdateConfig(objective="grpo", learning_rate=3e-4, epochs=4),
        UpdateConfig(objective="awfm", learning_rate=3e-4, epochs=6),
    ],
    ids=["grpo", "awfm"],
)
def test_success_rises_from_under_40_to_over_80_percent(weak: Path, tmp_path: Path, update: UpdateConfig) -> None:
    config = RlConfig(
        policy=str(weak),
        task=TASK,
        out=str(tmp_path),
        iterations=15,
        acting=ACTING,
        rollout=RolloutConfig(groups=12, group_size=8, filter_low=0.05, filter_high=0.95, max_env_steps=4000),
        update=update,
        validation=ValidationConfig(every=3, episodes=100),
    )
    with MetricsWriter(tmp_path, tensorboard=False) as metrics:
        trainer = Trainer(config, Policy.load(weak), ToyPool(), tmp_path, metrics)  # type: ignore[arg-type]
        state = trainer.run()
        result = trainer.finish()
    records = read_metrics(tmp_path / "metrics.jsonl")
    successes = [record["eval/success"] for record in records if "eval/success" in record]
    assert len(successes) == 6
    assert successes[0] < 0.4
    assert state.best == max(successes)
    assert success_of(result) > 0.8
    assert all(record.get("update/first_ratio_max", 0.0) == 0.0 for record in records)
    assert all(record.get("update/acting_log_prob_gap", 0.0) < 1e-3 for record in records)
