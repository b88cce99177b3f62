"""``z1 suite run`` on RoboCasa: recorded and given demonstrations, SFT, RL and tests, and a row for every task."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from command_line import z1
from z1.files import write_json
from z1.suite.suite import builtin_suite, suite_to_dict

pytestmark = [pytest.mark.robocasa, pytest.mark.timeout(1200)]

RECORDED, GIVEN = "robocasa/TurnOffMicrowave", "robocasa/TurnOnMicrowave"


def test_two_tasks_of_the_24_are_trained_and_the_others_are_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tasks in tiny numbers, one with recorded demonstrations, one with given ones."""
    assert (
        z1("demos", "--task", GIVEN, "--episodes", "2", "--hosts", "1", "--out", tmp_path / "data/TurnOnMicrowave") == 0
    )
    suite = builtin_suite("robocasa24")
    tasks = tuple(
        replace(task, demonstrations=2 * (task.task == RECORDED), sft_steps=3, horizon=60) for task in suite.tasks
    )
    small = replace(
        suite,
        tasks=tasks,
        recipe="debug",
        env_step_budget=100,
        validate_every=100,
        validation_episodes=1,
        probe_env_steps=0,
        test_episodes=1,
        set={"rollout.groups": 1},
    )
    path, out = tmp_path / "suite.json", tmp_path / "out"
    write_json(path, suite_to_dict(small))
    assert z1("suite", "run", path, "--out", out, "--data", tmp_path / "data") == 0
    shown = capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    states = {row["task"]: row["state"] for row in results["tasks"]}
    assert len(states) == 24
    assert {task for task, state in states.items() if state == "finished"} == {RECORDED, GIVEN}
    assert {state for task, state in states.items() if task not in (RECORDED, GIVEN)} == {"no demonstrations"}
    assert "22 tasks without demonstrations will be listed, not trained" in shown
    assert "Without demonstrations, so neither trained nor evaluated (22): robocasa/PnPCounterToCab" in shown
    page = (out / "table.md").read_text()
    assert "| robocasa/OpenDoubleDoor |  |  |  |  | no demonstrations |  |" in page
    assert "## What others report" in page
    stand_ins = {protocol.get("stand_ins", "") for protocol in results["protocols"]}
    assert all((f"Made with stand-ins: {text}." in page) == bool(text) for text in stand_ins)
    qualities = {row["quality"] for row in results["protocols"]}
    assert qualities == {"fast", "default"}  # recorded by the suite, and as they were given
