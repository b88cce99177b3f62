"""Selective joint training on the toy simulator: both outcomes, exact returns, costs, and resuming at every point."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from test_trainer import CONFIG, interrupt_after, records_of, state_of

from toy import ToyPool, toy_policy
from z1.config import RlConfig
from z1.eval.report import write_report
from z1.files import write_json
from z1.policy.policy import Policy
from z1.train import selection, selective
from z1.train.learner import Learner
from z1.train.metrics import MetricsWriter
from z1.train.run_folder import RunFolder
from z1.train.selection import Verdict
from z1.train.selective import SelectiveRun, mode_config
from z1.train.trainer import Trainer
from z1.types import Scene

AUTO = replace(
    CONFIG,
    iterations=5,
    rollout=replace(CONFIG.rollout, filter_low=0.0, filter_high=1.0),
    validation=replace(CONFIG.validation, every=1),
    selection="auto",
    probe_env_steps=300,
)
"""Groups are never replaced: an iteration takes 128 env steps, a probe three iterations."""

Mixed = Callable[[Scene, int], bool]


def luck(scene: Scene, member: int) -> bool:
    """Outcomes that the policy has no part in."""
    return (scene.seed // 3 + member) % 2 == 0


def pool_of(distance: float) -> ToyPool:
    return ToyPool(outcome=luck, nearest=lambda scene, member: 0.01 if luck(scene, member) else distance)


def load(place: Any) -> Policy:
    return toy_policy() if place == "start" else Policy.load(place)


def auto(folder: Path, config: RlConfig = AUTO, *, distance: float = 0.5, resume: bool = False) -> list[dict[str, Any]]:
    """Runs, or continues."""
    folder.mkdir(exist_ok=True)
    with MetricsWriter(folder, tensorboard=False, resume=resume) as metrics:
        pool: Any = pool_of(distance)
        SelectiveRun(config=config, load=load, start="start", pool=pool, folder=folder).run(metrics)
    return records_of(folder)


def plain(folder: Path, config: RlConfig, *, distance: float = 0.5) -> list[dict[str, Any]]:
    """An ordinary run."""
    with MetricsWriter(folder, tensorboard=False) as metrics:
        trainer = Trainer(config, toy_policy(), pool_of(distance), folder, metrics)  # type: ignore[arg-type]
        trainer.run()
        trainer.finish()
    return records_of(folder)


def weights(folder: Path) -> bytes:
    return (folder / "checkpoints/last/policy/model.safetensors").read_bytes()


def choose(monkeypatch: pytest.MonkeyPatch, *, joint: bool) -> None:
    """Decides the comparison of the probes, which luck alone leaves open."""
    monkeypatch.setattr(selection, "after_joint_probe", lambda difference: Verdict(joint=joint, reason="so it was"))


def decided(folder: Path) -> dict[str, Any]:
    found = RunFolder(folder).selection
    assert found is not None
    return found


def test_without_grounding_failures_the_run_is_an_expert_only_run(tmp_path: Path) -> None:
    """The same weights, records and cost as without selection."""
    records = auto(tmp_path / "auto", distance=0.01)
    assert records == plain(tmp_path / "plain", mode_config(AUTO, "expert"), distance=0.01)
    assert weights(tmp_path / "auto") == weights(tmp_path / "plain")
    found = decided(tmp_path / "auto")
    assert found["decision"] == "expert"
    assert found["reason"].endswith("a failure to move")
    assert not (tmp_path / "auto/probes/joint").exists()


def seldom_mixed(scene: Scene, member: int) -> bool:
    """All members succeed in most scenes, which the group filter replaces by the next."""
    return luck(scene, member) if scene.seed % 4 == 0 else True


def test_the_end_of_a_probe_cuts_no_iteration_short(tmp_path: Path) -> None:
    """Also where groups are replaced and the probe ends inside an iteration."""
    config = replace(AUTO, rollout=replace(AUTO.rollout, filter_low=0.1, filter_high=0.9), probe_env_steps=700)
    straight, selective_run = tmp_path / "plain", tmp_path / "auto"
    for folder, settings in ((straight, mode_config(config, "expert")), (selective_run, config)):
        folder.mkdir()
        with MetricsWriter(folder, tensorboard=False) as metrics:
            pool: Any = ToyPool(outcome=seldom_mixed, nearest=lambda scene, member: 0.01)
            if settings.selection == "auto":
                SelectiveRun(config=settings, load=load, start="start", pool=pool, folder=folder).run(metrics)
            else:
                Trainer(settings, toy_policy(), pool, folder, metrics).run()
    records = records_of(selective_run)
    assert records == records_of(straight)
    assert weights(selective_run) == weights(straight)
    steps = [record.get("cost/env_steps", 0) for record in records]
    assert any(before < 700 < after and after - before > 128 for before, after in pairwise(steps)), "it was tried"


def test_a_lost_joint_probe_returns_exactly_and_its_cost_is_counted(tmp_path: Path) -> None:
    """A tie on the validation scenes, whose outcomes are luck: the weights are those of a plain expert-only run."""
    records = auto(tmp_path / "auto")
    straight = plain(tmp_path / "plain", mode_config(AUTO, "expert"))
    found = decided(tmp_path / "auto")
    assert found["decision"] == "expert"
    assert found["joint_minus_expert"]["value"] == 0.0
    assert found["lost_env_steps"] == found["probes"]["joint"]["env_steps"] == 384
    assert weights(tmp_path / "auto") == weights(tmp_path / "plain")
    assert weights(tmp_path / "auto/probes/joint") != weights(tmp_path / "auto/probes/expert")
    steps = [record.get("cost/env_steps", 0) for record in straight]
    assert [record.get("cost/env_steps", 0) for record in records] == [*steps[:3], *(s + 384 for s in steps[3:])]
    assert records[-1]["cost/lost_probe_env_steps"] == 384
    assert records[-1]["cost/env_steps"] == 128 * 5 + 384


def test_a_joint_probe_that_wins_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the weights of a plain joint run at a tenth of the expert's rate."""
    choose(monkeypatch, joint=True)
    records = auto(tmp_path / "auto")
    config = mode_config(AUTO, "joint")
    assert config.update.vlm_learning_rate == pytest.approx(0.1 * AUTO.update.learning_rate)
    plain(tmp_path / "plain", config)
    assert decided(tmp_path / "auto")["decision"] == "joint"
    assert decided(tmp_path / "auto")["counterfactual"]["mode"] == "expert"
    assert weights(tmp_path / "auto") == weights(tmp_path / "plain")
    plain(tmp_path / "frozen", mode_config(AUTO, "expert"))
    assert weights(tmp_path / "auto") != weights(tmp_path / "frozen")
    assert records[-1]["cost/env_steps"] == 128 * 5 + 384
    assert [record["iteration"] for record in records] == [-1, 0, 1, 2, 3, 4]


def test_a_run_goes_on_after_its_probes_were_removed(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    auto(whole)
    auto(parts, replace(AUTO, iterations=4))
    shutil.rmtree(parts / "probes")
    auto(parts, resume=True)
    assert weights(parts) == weights(whole)


def test_a_budget_holds_over_all_probes(tmp_path: Path) -> None:
    records = auto(tmp_path, replace(AUTO, iterations=100, env_step_budget=800))
    assert 800 <= records[-1]["cost/env_steps"] < 800 + 128
    assert records[-1]["iteration"] == 3, "three iterations of each probe, and one more"


def test_a_budget_that_the_probes_spend_leaves_the_winner(tmp_path: Path) -> None:
    records = auto(tmp_path, replace(AUTO, iterations=100, env_step_budget=700))
    assert records[-1]["cost/env_steps"] == 768
    assert weights(tmp_path) == weights(tmp_path / "probes/expert")
    assert (tmp_path / "policy/model.safetensors").exists()


def assert_equal_runs(first: Path, second: Path) -> None:
    assert records_of(first) == records_of(second)
    ours, theirs = state_of(first), state_of(second)
    assert ours == theirs
    assert (first / "selection.json").read_text() == (second / "selection.json").read_text()
    finished = "policy/model.safetensors"
    assert (first / finished).read_bytes() == (second / finished).read_bytes()


@pytest.fixture(scope="module", params=[False, True], ids=["expert", "joint"])
def straight(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bool]:
    folder = tmp_path_factory.mktemp("straight")
    with pytest.MonkeyPatch.context() as patch:
        choose(patch, joint=request.param)
        auto(folder)
    return folder, request.param


STOPS: dict[str, tuple[Any, str, int]] = {f"update {n}": (Learner, "update", n) for n in (1, 3, 4, 7)}
STOPS |= {f"save {n}": (Trainer, "save", n) for n in (0, 3, 4, 7, 8, 9)}
STOPS |= {f"record {n}": (MetricsWriter, "write", n) for n in (8, 9, 12)}
STOPS |= {"validation": (Trainer, "validate", 0), "finish": (Trainer, "finish", 0), "start": (Policy, "save", 0)}


@pytest.mark.parametrize("stop", STOPS)
def test_a_run_stopped_anywhere_continues_to_the_same_numbers(
    stop: str, straight: tuple[Path, bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In either probe, between them, while the winner's records are copied, and after it."""
    whole, joint = straight
    choose(monkeypatch, joint=joint)
    with monkeypatch.context() as patch:
        interrupt_after(patch, *STOPS[stop])
        with pytest.raises(KeyboardInterrupt):
            auto(tmp_path)
    auto(tmp_path, resume=True)
    assert_equal_runs(whole, tmp_path)


def test_a_run_stopped_before_its_decision_is_written_decides_the_same(
    straight: tuple[Path, bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, joint = straight
    choose(monkeypatch, joint=joint)

    def stop(path: Path, content: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(selective, "write_json", stop)
        with pytest.raises(KeyboardInterrupt):
            auto(tmp_path)
    assert not (tmp_path / "selection.json").exists()
    auto(tmp_path, resume=True)
    assert_equal_runs(whole, tmp_path)


def test_a_decision_stands(straight: tuple[Path, bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run does not decide again."""
    whole, joint = straight
    choose(monkeypatch, joint=joint)
    with monkeypatch.context() as patch:
        interrupt_after(patch, Learner, "update", 7)
        with pytest.raises(KeyboardInterrupt):
            auto(tmp_path)
    choose(monkeypatch, joint=not joint)
    auto(tmp_path, resume=True)
    assert_equal_runs(whole, tmp_path)


def test_the_report_shows_the_decision(straight: tuple[Path, bool]) -> None:
    folder, joint = straight
    write_json(folder / "config.json", {"schema": "z1.run/1", "kind": "rl", "config": {}})
    page = write_report(folder).read_text()
    assert "Expert-only or joint training" in page
    assert ("joint training</td>" if joint else "expert-only training</td>") in page
    assert json.loads((folder / "selection.json").read_text())["reason"].split(";")[0] in page
