"""``z1 suite run`` on real simulation with small numbers: one task fails, the rest goes on, and it comes back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from command_line import z1
from z1.files import write_json

CLOSE, OPEN = "metaworld/drawer-close", "metaworld/drawer-open"


def test_a_failed_task_is_reported_the_rest_goes_on_and_the_suite_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = {"category": "drawers", "horizon": 40, "sft_steps": 3}
    suite = {
        "name": "drawers",
        "tasks": [
            {"task": CLOSE, **task, "demonstrations": 2},
            {"task": OPEN, **task, "dataset": str(tmp_path / "mine")},
            {"task": "metaworld/door-open", **task},
        ],
        "recipe": "debug",
        "env_step_budget": 100,
        "validate_every": 100,
        "validation_episodes": 2,
        "test_episodes": 4,
    }
    path, out = tmp_path / "suite.json", tmp_path / "out"
    write_json(path, suite)
    assert z1("suite", "run", path, "--out", out, "--plan") == 0
    assert not out.exists()
    assert z1("suite", "run", path, "--out", out) == 1
    shown = capsys.readouterr().out
    assert f"Failed: prepare {OPEN} seed 0 (exit code 2)" in shown
    assert "mine does not exist" in shown
    assert f"Not begun: {OPEN} rl seed 0" in shown
    states = {row["task"]: row["state"] for row in json.loads((out / "results.json").read_text())["tasks"]}
    assert states == {CLOSE: "finished", OPEN: "not finished", "metaworld/door-open": "no demonstrations"}

    assert z1("demos", "--task", OPEN, "--episodes", "2", "--out", tmp_path / "mine", "--hosts", "1") == 0
    before = (out / "runs" / "metaworld-drawer-close" / "rl" / "seed-0" / "evaluation.json").read_bytes()
    assert z1("suite", "run", path, "--out", out, "--resume") == 0
    results = json.loads((out / "results.json").read_text())
    assert [row["state"] for row in results["tasks"]] == ["finished", "finished", "no demonstrations"]
    assert results["average"]["tasks"] == 2
    assert (out / "runs" / "metaworld-drawer-close" / "rl" / "seed-0" / "evaluation.json").read_bytes() == before
    assert (out / "figure.png").stat().st_size > 10_000
    shutil.rmtree(out / "runs")
    assert z1("suite", "report", out) == 0
    assert "not finished" in (out / "table.md").read_text()
