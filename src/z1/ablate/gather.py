"""From the files of a study to its results: reading what is finished, and saying what is missing."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from z1.ablate.jobs import Run, StudyFolder, jobs_of
from z1.ablate.results import Point, RunResult, summarise_study
from z1.ablate.study import Study, study_to_dict
from z1.errors import RunFolderError
from z1.files import read_json
from z1.train.metrics import read_metrics
from z1.train.run_folder import RunFolder, describe_environment

SCHEMA = "z1.ablation/1"


def read_run(folder: StudyFolder, job: Run) -> RunResult:
    """A finished run.

    Raises:
        RunFolderError: A file is missing or damaged.
    """
    run = RunFolder(folder.run(job.task, job.variant, job.seed))
    records = read_metrics(run.metrics_path)
    if not records:
        raise RunFolderError(f"{run.metrics_path} has no records; remove {run.path} and continue with --resume")
    evaluation = read_json(folder.evaluation(job), RunFolderError)
    episodes = evaluation["episodes"]
    success: list[dict[int, bool]] = [{}, {}]
    for episode in episodes:
        if not episode["invalid"]:
            success[episode["policy"]][episode["seed"]] = bool(episode["success"])
    last = records[-1]
    return RunResult(
        task=job.task.task,
        variant=job.variant.name,
        seed=job.seed,
        sft=success[0],
        rl=success[1],
        points=tuple(_point(record) for record in records if "eval/success" in record),
        stand_ins=str(evaluation["protocol"].get("stand_ins", "")),
        totals={key: float(value) for key, value in last.items() if key.startswith(("cost/", "time/"))},
    )


def gather(study: Study, folder: StudyFolder) -> dict[str, Any]:
    """Results of everything that is finished, schema ``z1.ablation/1``.

    Raises:
        RunFolderError: A file of a finished run is missing or damaged.
    """
    jobs = [job for job in jobs_of(study) if isinstance(job, Run)]
    done = [job for job in jobs if folder.is_finished(study, job)]
    runs = [read_run(folder, job) for job in done]
    return {
        "schema": SCHEMA,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "environment": describe_environment(),
        "study": study_to_dict(study),
        "reference": study.reference_name,
        "marks": list(study.mark_positions),
        "runs_planned": len(jobs),
        "stand_ins": sorted({run.stand_ins for run in runs if run.stand_ins}),
        "missing": [job.name for job in jobs if job not in done],
        **summarise_study(
            runs,
            tasks=[task.task for task in study.tasks],
            variants=[variant.name for variant in study.variants],
            reference=study.reference_name,
            marks=study.mark_positions,
        ),
    }


def _point(record: dict[str, Any]) -> Point:
    return Point(
        env_steps=record.get("cost/env_steps", 0),
        seconds=record.get("time/rollout_s", 0.0) + record.get("time/update_s", 0.0),
        success=record["eval/success"],
        episodes=record["eval/episodes"],
    )
