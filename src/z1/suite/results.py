"""From the files of a suite to its results: each task, category and the average, SFT against RL on the same scenes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

from z1.ablate.jobs import Run, StudyFolder, actings, jobs_of
from z1.ablate.study import Study
from z1.errors import RunFolderError
from z1.eval.stats import summarise
from z1.files import read_json
from z1.suite.published import PUBLISHED
from z1.suite.suite import Suite, suite_to_dict
from z1.train.metrics import read_metrics
from z1.train.run_folder import RunFolder, describe_environment

SCHEMA = "z1.suite/1"

ALL = "all"
"""Row of the average over tasks."""

SFT, RL = 0, 1
"""Numbers of the two policies in a task's evaluation."""

Row = dict[str, Any]
Evaluation = Mapping[str, Any]


def gather_suite(suite: Suite, folder: StudyFolder) -> dict[str, Any]:
    """Results of everything that is finished, schema ``z1.suite/1``.

    Raises:
        RunFolderError: A file of a finished run is missing or damaged.
    """
    study = suite.study()
    runs = {job.task.task: job for job in jobs_of(study) if isinstance(job, Run)}
    done = {
        task: read_json(folder.evaluation(job), RunFolderError)
        for task, job in runs.items()
        if folder.is_finished(study, job)
    }
    rows = []
    for task in suite.tasks:
        row: Row = {"task": task.task, "category": task.category}
        job = runs.get(task.task)
        if job is None:
            row["state"] = "no demonstrations"
        elif task.task in done:
            row |= {"state": "finished", **compare([done[task.task]]), **_run_facts(folder, job)}
        else:
            row |= {"state": "not finished", **_sft_only(study, folder, job)}
        rows.append(row)
    categories = []
    for category in dict.fromkeys(task.category for task in suite.tasks):
        members = [task.task for task in suite.tasks if task.category == category]
        finished = [done[task] for task in members if task in done]
        categories.append({"category": category, "planned": len(members), "tasks": len(finished), **compare(finished)})
    average: Row = {"planned": len(suite.tasks), "tasks": len(done), **compare(list(done.values()))}
    return {
        "schema": SCHEMA,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "environment": describe_environment(),
        "suite": suite_to_dict(suite),
        "protocols": _distinct(evaluation["protocol"] for evaluation in done.values()),
        "tasks": rows,
        "categories": categories,
        "average": average,
        "improved": [row["task"] for row in rows if row.get("difference") and row["difference"]["low"] > 0],
        "harmed": [row["task"] for row in rows if row.get("difference") and row["difference"]["high"] < 0],
        "env_steps": sum(row.get("env_steps", 0) for row in rows),
        "seconds": sum(row.get("seconds", 0.0) for row in rows),
        "published": [asdict(entry) for entry in PUBLISHED.get(suite.name, ())],
    }


def compare(evaluations: Sequence[Evaluation]) -> Row:
    """Success of SFT and RL and their paired difference, averaged over the evaluations' tasks; empty for none.

    Args:
        evaluations: One per task, each with the SFT policy first and the RL policy second.
    """
    if not evaluations:
        return {}
    episodes = [episode for evaluation in evaluations for episode in evaluation["episodes"]]
    summary = summarise(episodes, evaluations[0]["policies"])
    rates = {row["policy"]: row for row in summary["average"]}
    (paired,) = [row for row in summary["paired"] if (row["a"], row["b"], row["task"]) == (SFT, RL, ALL)]
    return {
        "sft": _limits(rates[SFT], "rate"),
        "rl": _limits(rates[RL], "rate"),
        "difference": {**_limits(paired, "difference"), "gained": paired["gained"], "lost": paired["lost"]},
        "episodes": paired["n"],
        "invalid": sum(row["invalid"] for row in summary["per_task"]),
    }


def _limits(row: Mapping[str, Any], name: str) -> dict[str, float]:
    return {"value": row[name], "low": row["low"], "high": row["high"]}


def _run_facts(folder: StudyFolder, job: Run) -> Row:
    """What a finished RL run trained and cost."""
    run = RunFolder(folder.run(job.task, job.variant, job.seed))
    records = read_metrics(run.metrics_path)
    if not records:
        raise RunFolderError(f"{run.metrics_path} has no records; remove {run.path} and continue with --resume")
    chosen = run.selection
    return {
        "mode": chosen["decision"] if chosen else run.config["update"]["mode"],
        "selection": chosen,
        "env_steps": int(records[-1]["cost/env_steps"]),
        "seconds": float(records[-1]["time/total_s"]),
        "run": str(run.path),
    }


def _sft_only(study: Study, folder: StudyFolder, job: Run) -> Row:
    """Success of the SFT policy of a task whose RL is not finished, where it is known."""
    path = folder.sft_evaluation(job.task, job.seed, actings(folder, study, job.task)[0])
    if not path.exists():
        return {}
    (row,) = read_json(path, RunFolderError)["summary"]["per_task"]
    return {"sft": _limits(row, "rate")}


def _distinct(values: Any) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found
