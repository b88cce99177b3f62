"""``z1 demo`` with small settings: every stage, and its continuation after interruptions."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from command_line import TASK, z1
from z1 import demo, recipes
from z1.train.learner import Learner
from z1.train.sft import SftTrainer


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipes of the demo, cut down."""

    def demonstrations(*arguments: Any, **named: Any) -> Any:
        return replace(
            recipes.demo_demonstrations(*arguments, **named), episodes=2, image_size=32, cameras=("corner2",)
        )

    def sft(*arguments: Any, **named: Any) -> Any:
        return replace(recipes.demo_sft(*arguments, **named), steps=6, batch_size=4, validate_every=3)

    def rl(*arguments: Any, **named: Any) -> Any:
        config = recipes.demo_rl(*arguments, **named)
        rollout = replace(config.rollout, groups=1, group_size=2, filter_low=0.0, filter_high=1.0)
        return replace(config, iterations=1, rollout=rollout, validation=replace(config.validation, episodes=2))

    for name, function in {"demo_demonstrations": demonstrations, "demo_sft": sft, "demo_rl": rl}.items():
        monkeypatch.setattr(demo, name, function)


ARGUMENTS = ["--task", TASK, "--horizon", "40", "--hosts", "1", "--test-episodes", "3"]


def interrupt(*arguments: Any, **named: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.usefixtures("small")
def test_the_demo_continues_after_every_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    out = tmp_path / "demo"
    command = ["demo", "--out", out, *ARGUMENTS]

    def stopped(owner: object, name: str, *more: str) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, interrupt)
            assert z1(*command, *more) == 130

    text = "horizon is 39; it must be 0, or at least 40"
    assert refused("demo", "--out", out, "--horizon", "39") == text
    stopped(SftTrainer, "_step")
    stopped(Learner, "update", "--resume")
    assert sorted(json.loads((out / "seconds.json").read_text())) == ["demonstrations", "sft"]
    text = (
        f"cannot resume {out} with other settings: seed was 0, is 7; test_episodes was 3, is 4. "
        "Pass the ones it was started with, or choose another --out."
    )
    assert refused(*command, "--resume", "--seed", "7", "--test-episodes", "4") == text
    assert refused(*command) == f"{out} exists already; choose another --out, or pass --resume to continue it"
    stopped(demo, "write_json", "--resume")
    assert (out / "rl" / "policy" / "model.safetensors").exists()
    assert sorted(json.loads((out / "seconds.json").read_text())) == ["demonstrations", "sft"]
    stopped(demo, "record_videos", "--resume")
    capsys.readouterr()
    assert z1(*command, "--resume") == 0
    shown = capsys.readouterr().out
    assert "1/5 demonstrations" not in shown
    assert "5/5 videos" in shown
    assert "after SFT" in shown
    evaluation = json.loads((out / "rl" / "evaluation.json").read_text())
    assert len(evaluation["episodes"]) == 6
    assert [policy["name"] for policy in evaluation["policies"]] == ["sft", "rl"]
    assert (out / "rl" / "report.html").stat().st_size > 10_000
    rows = json.loads((out / "rl" / "videos" / "videos.json").read_text())
    assert len(rows) == 3
    assert z1(*command, "--resume") == 0, "a finished demo shows its result again"
