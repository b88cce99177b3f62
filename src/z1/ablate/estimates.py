"""Estimates over tasks, seeds and scenes: pure functions of outcomes. Intervals are 95 %."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from z1.eval.stats import RESAMPLES, Estimate, z_value

Values = Mapping[str, Sequence[np.ndarray]]
"""Per task, one array per run with a number in {-1, 0, 1} per scene."""


def paired(before: Mapping[int, bool], after: Mapping[int, bool]) -> np.ndarray:
    """``after`` minus ``before`` on the scenes that both have: int64 ``[n]`` in {-1, 0, 1}, by scene seed."""
    scenes = sorted(before.keys() & after.keys())
    return np.array([int(after[scene]) - int(before[scene]) for scene in scenes], dtype=np.int64)


def outcomes(success: Mapping[int, bool]) -> np.ndarray:
    """Successes as int64 ``[n]`` in {0, 1}, by scene seed."""
    return np.array([int(success[scene]) for scene in sorted(success)], dtype=np.int64)


def stratified(values: Values, rng: np.random.Generator, *, lowest: float = -1.0) -> Estimate | None:
    """Mean over tasks of the mean over runs of the mean over scenes, with an interval from a stratified bootstrap.

    Each resample draws, with replacement, as many runs of each task as there are, and as many scenes of each drawn run
    as it has. Tasks are not resampled: the interval is about new seeds and scenes of these tasks. With one run per task
    it covers the scenes only, and with few it is somewhat narrow. A task all of whose episodes came out the same would
    resample to itself and claim certainty: instead, Wilson's limit on the chance of the outcome that was never seen is
    squared and added.

    Args:
        values: Per task, one array per run. Runs without scenes and tasks without runs are left out.
        rng: Generator of the resamples.
        lowest: Smallest possible mean; the largest is 1.

    Returns:
        The estimate; None if nothing is left.

    Source: Efron and Tibshirani 1993, chapters 8 and 13; Agarwal et al. 2021 (arXiv 2108.13264), section 4.1.
    """
    tasks = [[run for run in runs if run.size] for runs in values.values()]
    tasks = [runs for runs in tasks if runs]
    if not tasks:
        return None
    value = float(np.mean([np.mean([run.mean() for run in runs]) for runs in tasks]))
    total, margin = np.zeros(RESAMPLES), 0.0
    for runs in tasks:
        pooled = np.concatenate(runs)
        if np.all(pooled == pooled[0]):
            total += pooled[0]
            margin += (_unseen(pooled.size) / len(tasks)) ** 2
        else:
            total += _resampled_means(runs, rng)
    low, high = (float(q) for q in np.quantile(total / len(tasks), [0.025, 0.975]))
    return Estimate(
        value=value,
        low=max(lowest, value - math.hypot(max(0.0, value - low), math.sqrt(margin))),
        high=min(1.0, value + math.hypot(max(0.0, high - value), math.sqrt(margin))),
    )


def _unseen(n: int) -> float:
    """Wilson's upper limit of the chance of what did not happen in n episodes."""
    z = z_value(0.95)
    return z * z / (n + z * z)


def _resampled_means(runs: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Means of a task in resamples of its runs and of their scenes: float64 ``[RESAMPLES]``.

    Resampling n scenes of three kinds is a multinomial draw of the counts of the kinds.
    """
    sizes = np.array([run.size for run in runs])
    shares = np.array([[np.mean(run == kind) for kind in (1, 0, -1)] for run in runs])
    drawn = rng.integers(len(runs), size=(RESAMPLES, len(runs)))
    counts = rng.multinomial(sizes[drawn], shares[drawn])
    return ((counts[..., 0] - counts[..., 2]) / sizes[drawn]).mean(axis=1)


def first_reached(x: Sequence[float], y: Sequence[float], level: float) -> float | None:
    """Where a curve of straight lines first reaches a level; None if it never does.

    Args:
        x: Positions, not falling.
        y: Values.
        level: The level.
    """
    if y and y[0] >= level:
        return float(x[0])
    for i in range(1, len(y)):
        if y[i] >= level:
            return float(x[i - 1] + (x[i] - x[i - 1]) * (level - y[i - 1]) / (y[i] - y[i - 1]))
    return None
