"""Aggregation of a study's runs: pure functions of outcomes per scene and of validation curves.

Each run is compared with its SFT policy, and with the reference variant's run of the same task and seed, scene by
scene. Averages weigh every task the same, and within a task every seed. Intervals are 95 %.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from z1.ablate.estimates import Values, first_reached, outcomes, paired, stratified
from z1.seeding import Seeds

TARGET_GAIN = 0.132
"""The gain over SFT whose cost in env steps is told, as a share of episodes (13.2 points)."""

COSTS = ("cost/env_steps", "cost/env_steps_flat", "cost/renders", "cost/vlm_prefixes", "cost/gradient_chunks")
"""Totals of a run that are averaged, keys of metrics.jsonl."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A validation during a run.

    Attributes:
        env_steps: Env steps of training before it.
        seconds: Seconds of training before it (rollouts and updates; validation left out).
        success: Success rate on the validation scenes.
        episodes: Valid validation episodes.
    """

    env_steps: float
    seconds: float
    success: float
    episodes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """A finished run.

    Attributes:
        task: Task id.
        variant: Name of the variant.
        seed: Run seed.
        sft: Success of the SFT policy by test scene seed, lost episodes left out.
        rl: Success of the run's policy by test scene seed, lost episodes left out.
        points: Its validations in order, the first before training.
        totals: Totals of the last record of metrics.jsonl, by key.
        stand_ins: What the simulator says about stand-ins for its assets; empty: it has the real ones.
    """

    task: str
    variant: str
    seed: int
    sft: Mapping[int, bool]
    rl: Mapping[int, bool]
    points: tuple[Point, ...]
    totals: Mapping[str, float]
    stand_ins: str = ""


ByTask = Mapping[str, Sequence[RunResult]]
"""Runs of one variant by task."""


def at_marks(points: Sequence[Point], marks: Sequence[float]) -> list[Point]:
    """The validation that belongs to each mark: the first one made at or after it, or else the last one.

    Args:
        points: Validations of a run in order.
        marks: Env steps.
    """
    return [next((p for p in points if p.env_steps >= mark), points[-1]) for mark in marks]


def mean_curve(runs: ByTask, marks: Sequence[float], seeds: Seeds | None = None) -> list[dict[str, float]]:
    """The mean validation curve: mean over tasks of the mean over runs, at each mark.

    Args:
        runs: Runs of one variant by task.
        marks: Env steps.
        seeds: Random streams of the band; None: no band.

    Returns:
        Per mark ``env_steps`` and ``seconds`` (means of where the runs validated), ``success``, and with ``seeds``
        ``low`` and ``high``, from the same bootstrap as the table's intervals.
    """
    chosen = {task: [at_marks(run.points, marks) for run in some] for task, some in runs.items() if some}
    curve = []
    for k in range(len(marks) if chosen else 0):
        here = {task: [points[k] for points in some] for task, some in chosen.items()}
        row = {
            name: float(np.mean([np.mean([getattr(p, name) for p in points]) for points in here.values()]))
            for name in ("env_steps", "seconds", "success")
        }
        if seeds is not None:
            values = {task: [_of_rate(p) for p in points] for task, points in here.items()}
            band = stratified(values, seeds.rng("mark", k), lowest=0.0)
            assert band is not None
            row |= {"low": band.low, "high": band.high}
        curve.append(row)
    return curve


def _of_rate(point: Point) -> np.ndarray:
    """Outcomes that have a validation's rate."""
    successes = round(point.success * point.episodes)
    return np.repeat(np.array([1, 0], dtype=np.int64), [successes, point.episodes - successes])


def mean_costs(runs: ByTask) -> dict[str, float]:
    """Means over tasks of means over runs: the ``COSTS``, training seconds and the share that sharing spared."""

    def mean(of: str) -> float:
        return float(np.mean([np.mean([run.totals.get(of, 0.0) for run in some]) for some in runs.values() if some]))

    costs = {name.removeprefix("cost/"): mean(name) for name in COSTS}
    return costs | {
        "training_s": mean("time/rollout_s") + mean("time/update_s"),
        "shared_share": 1.0 - costs["env_steps"] / max(costs["env_steps_flat"], 1.0),
    }


def summarise_study(
    runs: Sequence[RunResult],
    *,
    tasks: Sequence[str],
    variants: Sequence[str],
    reference: str,
    marks: Sequence[float],
) -> dict[str, Any]:
    """Everything that the table and the figure show.

    Args:
        runs: Finished runs; some may be missing.
        tasks: Task ids in order.
        variants: Names in order.
        reference: The variant that the others are compared with, on the tasks and seeds that both have.
        marks: Env steps of the marks, from 0 to the budget.

    Returns:
        Plain JSON values: ``overall``, a row per variant; ``per_task``, a row per task and variant; ``curves``, the
        mean validation curve of each variant; ``runs``, a row per run. What cannot be said yet is None.
    """
    rows = [_row(runs, tasks, variant, reference, marks) for variant in variants]
    per_task = [
        {"task": task, **_row(runs, [task], variant, reference, marks)} for task in tasks for variant in variants
    ]
    curves = {variant: mean_curve(_by_task(runs, tasks, variant), marks, Seeds(0)) for variant in variants}
    return {"overall": rows, "per_task": per_task, "curves": curves, "runs": [_run_row(run) for run in runs]}


def _by_task(runs: Sequence[RunResult], tasks: Sequence[str], variant: str) -> dict[str, list[RunResult]]:
    """A variant's runs by task; tasks without runs are left out."""
    found = {task: [run for run in runs if (run.task, run.variant) == (task, variant)] for task in tasks}
    return {task: some for task, some in found.items() if some}


def _row(
    runs: Sequence[RunResult], tasks: Sequence[str], variant: str, reference: str, marks: Sequence[float]
) -> dict[str, Any]:
    """A variant on some tasks."""
    own, other = _by_task(runs, tasks, variant), _by_task(runs, tasks, reference)
    path = (variant, *tasks)

    def estimate(values: Values, what: str, lowest: float = -1.0) -> dict[str, float] | None:
        found = stratified(values, Seeds(0).rng(what, *path), lowest=lowest)
        return asdict(found) if found else None

    return {
        "variant": variant,
        "runs": sum(len(some) for some in own.values()),
        "sft": estimate({task: [outcomes(run.sft) for run in some] for task, some in own.items()}, "sft", 0.0),
        "success": estimate({task: [outcomes(run.rl) for run in some] for task, some in own.items()}, "success", 0.0),
        "gain": estimate({task: [paired(run.sft, run.rl) for run in some] for task, some in own.items()}, "gain"),
        "difference": estimate(_differences(own, other), "difference") if variant != reference else None,
        **_speed(own, other, marks),
        "costs": mean_costs(own) if own else None,
    }


def _differences(own: ByTask, other: ByTask) -> dict[str, list[np.ndarray]]:
    """Per task, own success minus the other variant's, by scene, for each seed that both have."""
    found: dict[str, list[np.ndarray]] = {}
    for task, some in own.items():
        of_seed = {run.seed: run for run in other.get(task, ())}
        found[task] = [paired(of_seed[run.seed].rl, run.rl) for run in some if run.seed in of_seed]
    return found


def _speed(own: ByTask, other: ByTask, marks: Sequence[float]) -> dict[str, float | None]:
    """Env steps to the reference's final validation success and to SFT's plus the target, on tasks that both have."""
    common = own.keys() & other.keys()
    curve = mean_curve({task: some for task, some in own.items() if task in common}, marks)
    aim = mean_curve({task: some for task, some in other.items() if task in common}, marks)
    if not curve:
        return {"env_steps_to_reference": None, "env_steps_to_target": None}
    x, y = [point["env_steps"] for point in curve], [point["success"] for point in curve]
    return {
        "env_steps_to_reference": first_reached(x, y, aim[-1]["success"]),
        "env_steps_to_target": first_reached(x, y, aim[0]["success"] + TARGET_GAIN),
    }


def _run_row(run: RunResult) -> dict[str, Any]:
    gain = paired(run.sft, run.rl)
    return {
        "task": run.task,
        "variant": run.variant,
        "seed": run.seed,
        "sft": float(outcomes(run.sft).mean()) if run.sft else None,
        "success": float(outcomes(run.rl).mean()) if run.rl else None,
        "gain": float(gain.mean()) if gain.size else None,
        "episodes": len(run.rl),
        "costs": mean_costs({run.task: [run]}),
        "points": [asdict(point) for point in run.points],
    }
