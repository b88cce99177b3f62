"""``z1 ablate`` on real simulation with small numbers: a failing job, growth, and a half run that goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from command_line import TASK, z1
from z1.ablate.jobs import Run, StudyFolder, jobs_of
from z1.ablate.study import read_study
from z1.commands import run_rl
from z1.files import write_json
from z1.train.learner import Learner


def write_study(path: Path, policy: Path, *more: dict[str, Any], budget: int = 400, marks: int = 2) -> Path:
    """A study of the variant ``flat``, one that cannot run, and others."""
    variants = [{"name": "flat"}, {"name": "broken", "set": {"sim.python": "/nowhere/python"}}, *more]
    study = {
        "name": "small",
        "tasks": [{"task": TASK, "horizon": 60, "policy": str(policy)}],
        "recipe": "debug",
        "set": {"rollout.max_env_steps": 150},
        "variants": variants,
        "seeds": [3],
        "env_step_budget": budget,
        "marks": marks,
        "validation_episodes": 3,
        "test_episodes": 6,
    }
    write_json(path, study)
    return path


def finished(out: Path, variant: str) -> dict[str, Any]:
    """What results.json says of a run, without what takes its time."""
    rows = json.loads((out / "results.json").read_text())["runs"]
    (row,) = [row for row in rows if row["variant"] == variant]
    for point in row["points"]:
        del point["seconds"]
    del row["costs"]["training_s"]
    return row


def test_a_study_grows_and_goes_on(
    tmp_path: Path, sft_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, first, second = tmp_path / "study.json", tmp_path / "first", tmp_path / "second"
    write_study(path, sft_run)
    assert z1("ablate", path, "--out", first, "--jobs", "1") == 1
    shown = capsys.readouterr().out
    log = first / "logs" / f"{TASK.replace('/', '-')}-broken-seed-3.log"
    assert f"Failed: {TASK} broken seed 3 (exit code 2); log: {log}" in shown
    assert "the interpreter of the simulator hosts, '/nowhere/python', does not exist or cannot be run" in shown
    assert f"Missing: 1 of 2 runs: {TASK} broken seed 3" in shown
    flat = finished(first, "flat")
    assert flat["episodes"] == 6
    assert flat["points"][0]["env_steps"] == 0
    assert flat["points"][-1]["env_steps"] >= 400
    assert "| flat | " in (first / "table.md").read_text()
    assert (first / "figure.png").stat().st_size > 10_000
    run = first / "runs" / TASK.replace("/", "-") / "flat" / "seed-3"
    assert z1("report", run) == 0

    # a copy whose run was interrupted, and a study that has grown
    shutil.copytree(first, second)
    shutil.rmtree(second / "runs")
    study, folder = read_study(path), StudyFolder(second)
    (job,) = [job for job in jobs_of(study) if isinstance(job, Run) and job.variant.name == "flat"]
    updates = []

    def update(learner: Learner, *arguments: Any) -> Any:
        updates.append(arguments)
        if len(updates) == 2:
            raise KeyboardInterrupt
        return whole(learner, *arguments)

    whole = Learner.update
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "update", update)
        with pytest.raises(KeyboardInterrupt):
            run_rl(folder.config(study, job))
    half = len((folder.run(job.task, job.variant, 3) / "metrics.jsonl").read_text().splitlines())
    write_study(path, sft_run, {"name": "tree", "set": {"rollout.plan": "tree", "rollout.prefix": 3}})
    prepared = (second / "logs" / f"prepare-{TASK.replace('/', '-')}.log").read_bytes()
    capsys.readouterr()
    assert z1("ablate", path, "--out", second, "--jobs", "2", "--resume") == 1
    assert f"finished  prepare {TASK}" not in capsys.readouterr().out
    assert (second / "logs" / f"prepare-{TASK.replace('/', '-')}.log").read_bytes() == prepared
    records = (folder.run(job.task, job.variant, 3) / "metrics.jsonl").read_text().splitlines()
    assert half < len(records)
    assert finished(second, "flat") == flat
    tree = finished(second, "tree")
    assert tree["costs"]["env_steps"] < tree["costs"]["env_steps_flat"]
    assert tree["sft"] == flat["sft"]

    # nothing is done twice
    untouched = {file: file.stat().st_mtime_ns for file in (second / "runs").rglob("*") if file.is_file()}
    assert z1("ablate", path, "--out", second, "--resume") == 1
    assert untouched == {file: file.stat().st_mtime_ns for file in (second / "runs").rglob("*") if file.is_file()}
    assert finished(second, "flat") == flat

    # a larger budget: what was trained stays, and goes on
    write_study(
        path, sft_run, {"name": "tree", "set": {"rollout.plan": "tree", "rollout.prefix": 3}}, budget=800, marks=4
    )
    assert z1("ablate", path, "--out", second, "--resume") == 1
    longer = finished(second, "flat")
    assert longer["points"][: len(flat["points"])] == flat["points"]
    assert longer["points"][-1]["env_steps"] >= 800
    assert json.loads((second / "results.json").read_text())["marks"] == [0, 200, 400, 600, 800]
