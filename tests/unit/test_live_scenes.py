"""How many scenes are in memory at a time: few where each is a compiled model of its own."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from toy import TASK, ToyPool, toy_policy
from z1.commands import evaluation
from z1.config import ActingConfig, EvalConfig, RlConfig, RolloutConfig, ValidationConfig
from z1.train.metrics import MetricsWriter
from z1.train.trainer import Trainer

ACTING = ActingConfig(denoise_steps=2, chunk_length=2)


@pytest.mark.parametrize(
    ("model_per_scene", "asked", "most"), [(False, 0, 100), (True, 0, 16), (True, 30, 30), (False, 30, 30)]
)
def test_evaluation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model_per_scene: bool, asked: int, most: int
) -> None:
    pool = ToyPool(model_per_scene=model_per_scene)
    monkeypatch.setattr(evaluation, "open_pool", lambda *arguments: nullcontext(pool))
    monkeypatch.setattr(evaluation, "simulator_of", lambda task: "toy")
    toy_policy().save(tmp_path / "policy")
    out = tmp_path / "evaluation.json"
    config = EvalConfig(
        policy=(str(tmp_path / "policy"),), task=(TASK,), out=str(out), episodes=120, live_members=asked, acting=ACTING
    )
    assert len(evaluation.run_eval(config)["episodes"]) == 120
    assert max(pool.batches) == most


@pytest.mark.parametrize(("model_per_scene", "most"), [(False, 8), (True, 2)])
def test_validation_holds_as_many_scenes_as_rollouts_do(tmp_path: Path, model_per_scene: bool, most: int) -> None:
    config = RlConfig(
        policy="start",
        task=TASK,
        out="run",
        acting=ACTING,
        rollout=RolloutConfig(group_size=4, live_members=8),
        validation=ValidationConfig(episodes=10),
    )
    pool = ToyPool(model_per_scene=model_per_scene)
    Trainer(config, toy_policy(), pool, tmp_path, MetricsWriter(tmp_path, tensorboard=False)).validate(0)  # type: ignore[arg-type]
    assert max(pool.batches) == most
