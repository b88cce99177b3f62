"""Statistics of success rates: pure functions of counts and boolean arrays.

Success is a Bernoulli outcome per scene, two policies are compared on the same scenes, and an average over tasks weighs
every task equally. Each number that z1 prints with an interval gets it from here. Intervals are 95 % unless asked
otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from z1.seeding import Seeds

Interval = tuple[float, float]

Episode = Mapping[str, Any]
Outcomes = dict[tuple[int, str], dict[int, Episode]]
"""Episode records by (policy, task), then by scene seed."""

RESAMPLES = 10_000
"""Bootstrap resamples: the 2.5 % tail holds 250 of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A number and its confidence interval.

    Attributes:
        value: The point estimate.
        low: Lower limit.
        high: Upper limit.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedDifference:
    """Two policies, a and b, on the same scenes.

    Attributes:
        n: Number of scenes.
        difference: Success rate of b minus success rate of a.
        low: Lower limit of the difference.
        high: Upper limit of the difference.
        gained: Scenes where a failed and b succeeded.
        lost: Scenes where a succeeded and b failed.
        p_value: Two-sided exact McNemar test of "no difference".
    """

    n: int
    difference: float
    low: float
    high: float
    gained: int
    lost: int
    p_value: float


def z_value(confidence: float) -> float:
    """Two-sided standard normal quantile, 1.96 for 0.95.

    Raises:
        ValueError: ``confidence`` is not strictly between 0 and 1.
    """
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    return NormalDist().inv_cdf(0.5 + confidence / 2.0)


def t_value(confidence: float, freedom: int) -> float:
    """Two-sided quantile of Student's t, 2.776 for 0.95 and 4 degrees of freedom.

    Args:
        confidence: Strictly between 0 and 1.
        freedom: Degrees of freedom, at least 1. From 3 on an expansion, to 0.1 % at 80 % and 1 % at 95 %.

    Source: Abramowitz & Stegun 1964, 26.7.5; closed forms for 1 and 2.
    """
    z = z_value(confidence)
    if freedom == 1:
        return math.tan(math.pi * confidence / 2.0)
    if freedom == 2:
        return confidence * math.sqrt(2.0 / (1.0 - confidence**2))
    terms = (
        (z**3 + z) / 4.0,
        (5.0 * z**5 + 16.0 * z**3 + 3.0 * z) / 96.0,
        (3.0 * z**7 + 19.0 * z**5 + 17.0 * z**3 - 15.0 * z) / 384.0,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a success rate; never empty, also at 0 and at n successes.

    Args:
        successes: Number of successes.
        n: Number of episodes.
        confidence: Coverage of the interval.

    Returns:
        Lower and upper limit of the rate, in 0..1.

    Raises:
        ValueError: ``n`` is 0, or ``successes`` is outside 0..n.

    Source: Wilson 1927, JASA 22, 209; method 3 of Newcombe 1998, Statistics in Medicine 17, 857.
    """
    if n < 1:
        raise ValueError(f"a success rate needs at least one episode, got n={n}")
    if not 0 <= successes <= n:
        raise ValueError(f"successes must be in 0..{n}, got {successes}")
    z = z_value(confidence)
    centre = (successes + z * z / 2.0) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(successes * (n - successes) / n + z * z / 4.0)
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high


def mcnemar_exact(gained: int, lost: int) -> float:
    """Two-sided exact McNemar p-value: the sign test on the discordant scenes, 1 when there are none.

    Args:
        gained: Scenes where only the second policy succeeded.
        lost: Scenes where only the first policy succeeded.

    Source: McNemar 1947, Psychometrika 12, 153; exact binomial form, Fagerland, Lydersen and Laake 2013, BMC Medical
    Research Methodology 13, 91.
    """
    discordant = gained + lost
    tail = sum(math.comb(discordant, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**discordant)


def _outcomes(name: str, values: np.ndarray) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype != np.bool_ or array.ndim != 1:
        raise ValueError(f"{name} must be a bool array of shape [n], got {array.dtype} {list(array.shape)}")
    if array.size == 0:
        raise ValueError(f"{name} is empty: a success rate needs at least one episode")
    return array


def _pair(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, second = _outcomes("a", a), _outcomes("b", b)
    if first.size != second.size:
        raise ValueError(f"paired outcomes need the same scenes: a has {first.size}, b has {second.size}")
    return first, second


def _corrected_phi(both: int, only_b: int, only_a: int, neither: int) -> float:
    """Correlation of the two outcomes, pulled towards 0 by n/2 when positive (Newcombe's method 10)."""
    n = both + only_b + only_a + neither
    margins = (both + only_b) * (only_a + neither) * (both + only_a) * (only_b + neither)
    if margins == 0:
        return 0.0
    cross = both * neither - only_b * only_a
    corrected = max(cross - n / 2.0, 0.0) if cross > 0 else float(cross)
    return corrected / math.sqrt(margins)


def _square_and_add(first: float, second: float, phi: float) -> float:
    return math.sqrt(max(0.0, first * first - 2.0 * phi * first * second + second * second))


def paired_difference(a: np.ndarray, b: np.ndarray, confidence: float = 0.95) -> PairedDifference:
    """Difference of two success rates on the same scenes.

    The interval squares and adds the distances from each rate to its Wilson limits, with the correlation of the two
    outcomes. It stays inside -1..1 and is not empty when no scene changed.

    Args:
        a: bool ``[n]``, success of the first policy per scene.
        b: bool ``[n]``, success of the second policy on the same scenes in the same order.
        confidence: Coverage of the interval.

    Raises:
        ValueError: No scenes, arrays that are not bool ``[n]``, or different lengths.

    Source: Newcombe 1998, Statistics in Medicine 17, 2635, method 10.
    """
    first, second = _pair(a, b)
    n = first.size
    both, neither = int(np.sum(first & second)), int(np.sum(~first & ~second))
    gained, lost = int(np.sum(~first & second)), int(np.sum(first & ~second))
    rate_a, rate_b = (both + lost) / n, (both + gained) / n
    low_a, high_a = wilson(both + lost, n, confidence)
    low_b, high_b = wilson(both + gained, n, confidence)
    phi = _corrected_phi(both, gained, lost, neither)
    difference = (gained - lost) / n
    return PairedDifference(
        n=n,
        difference=difference,
        low=max(-1.0, difference - _square_and_add(rate_b - low_b, high_a - rate_a, phi)),
        high=min(1.0, difference + _square_and_add(high_b - rate_b, rate_a - low_a, phi)),
        gained=gained,
        lost=lost,
        p_value=mcnemar_exact(gained, lost),
    )


def _bootstrap_means(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Means of ``RESAMPLES`` resamples with replacement of values in {-1, 0, 1}: float64 ``[RESAMPLES]``.

    Resampling n scenes of three kinds is a multinomial draw of the counts of the kinds.
    """
    n = values.size
    counts = rng.multinomial(n, [np.mean(values == 1), np.mean(values == 0), np.mean(values == -1)], size=RESAMPLES)
    return (counts[:, 0] - counts[:, 2]) / n


def _stratified_interval(
    values: Sequence[np.ndarray], limits: Sequence[Interval], rng: np.random.Generator, confidence: float
) -> Estimate:
    """Mean over tasks of the per-task means, with its interval.

    Scenes are resampled within tasks. A task whose scenes all gave the same outcome would resample to itself and claim
    certainty, so its distance to its own limits is squared and added to the bootstrap's margin instead.

    Args:
        values: Per task, int ``[n_task]`` in {-1, 0, 1}.
        limits: Per task, the interval of its own mean.
        rng: Generator of the resamples.
        confidence: Coverage of the interval.
    """
    means = np.array([float(np.mean(v)) for v in values])
    value = float(np.mean(means))
    if len(values) == 1:
        return Estimate(value=value, low=limits[0][0], high=limits[0][1])
    total = np.zeros(RESAMPLES)
    below = above = 0.0
    for outcome, mean, (low, high) in zip(values, means, limits, strict=True):
        if np.all(outcome == outcome[0]):
            total += mean
            below += ((mean - low) / len(values)) ** 2
            above += ((high - mean) / len(values)) ** 2
        else:
            total += _bootstrap_means(outcome, rng)
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(total / len(values), [tail, 1.0 - tail])
    return Estimate(
        value=value,
        low=value - math.sqrt(max(0.0, value - low) ** 2 + below),
        high=value + math.sqrt(max(0.0, high - value) ** 2 + above),
    )


def average_over_tasks(
    successes: Mapping[str, np.ndarray], rng: np.random.Generator, confidence: float = 0.95
) -> Estimate:
    """Average success rate over tasks, every task weighing the same, with its interval.

    The interval is about new scenes of these tasks, not about new tasks. With a single task it is Wilson's.

    Args:
        successes: Per task, bool ``[n_task]``.
        rng: Generator of the bootstrap.
        confidence: Coverage of the interval.

    Raises:
        ValueError: No task, or a task without episodes.

    Source: stratified percentile bootstrap, Efron and Tibshirani 1993, chapters 8 and 13; Agarwal et al. 2021
    (arXiv 2108.13264), section 4.1; square-and-add for constant tasks, Zou and Donner 2008, Statistics in Medicine
    27, 1693.
    """
    if not successes:
        raise ValueError("an average over tasks needs at least one task")
    outcomes = [_outcomes(f"success of {task}", values) for task, values in successes.items()]
    limits = [wilson(int(np.sum(v)), v.size, confidence) for v in outcomes]
    return _stratified_interval([v.astype(np.int64) for v in outcomes], limits, rng, confidence)


def average_paired_difference(
    pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], rng: np.random.Generator, confidence: float = 0.95
) -> PairedDifference:
    """Difference of two averages over tasks on the same scenes (b minus a), every task weighing the same.

    ``gained``, ``lost`` and the McNemar test pool the scenes of all tasks. With a single task this is
    ``paired_difference``.

    Args:
        pairs: Per task, ``(a, b)``, each bool ``[n_task]``, same scenes in the same order.
        rng: Generator of the bootstrap, which resamples scenes, keeping a and b of a scene together.
        confidence: Coverage of the interval.

    Raises:
        ValueError: No task, a task without scenes, or different lengths.

    Source: as ``average_over_tasks``; per-task intervals from ``paired_difference``.
    """
    if not pairs:
        raise ValueError("an average over tasks needs at least one task")
    per_task = [paired_difference(a, b, confidence) for a, b in pairs.values()]
    changes = [np.asarray(b).astype(np.int64) - np.asarray(a).astype(np.int64) for a, b in pairs.values()]
    estimate = _stratified_interval(changes, [(p.low, p.high) for p in per_task], rng, confidence)
    gained, lost = sum(p.gained for p in per_task), sum(p.lost for p in per_task)
    return PairedDifference(
        n=sum(p.n for p in per_task),
        difference=estimate.value,
        low=estimate.low,
        high=estimate.high,
        gained=gained,
        lost=lost,
        p_value=mcnemar_exact(gained, lost),
    )


def _by_policy_and_task(episodes: Sequence[Episode], policies: int) -> Outcomes:
    """Episodes by (policy, task), then by scene seed."""
    table: Outcomes = {}
    for episode in episodes:
        policy, task, seed = episode["policy"], episode["task"], episode["seed"]
        if not 0 <= policy < policies:
            raise ValueError(f"episode of {task} seed {seed} names policy {policy}, but there are {policies} policies")
        scenes = table.setdefault((policy, task), {})
        if seed in scenes:
            raise ValueError(f"policy {policy} has two episodes of {task} seed {seed}")
        scenes[seed] = episode
    return table


def _valid(scenes: Mapping[int, Episode]) -> dict[int, bool]:
    return {seed: bool(episode["success"]) for seed, episode in scenes.items() if not episode["invalid"]}


def _rate_row(policy: int, task: str, scenes: Mapping[int, Episode]) -> dict[str, Any]:
    valid = _valid(scenes)
    successes = sum(valid.values())
    low, high = wilson(successes, len(valid)) if valid else (None, None)
    steps = [int(scenes[seed]["steps"]) for seed, success in valid.items() if success]
    return {
        "task": task,
        "policy": policy,
        "episodes": len(valid),
        "invalid": len(scenes) - len(valid),
        "successes": successes,
        "rate": successes / len(valid) if valid else None,
        "low": low,
        "high": high,
        "mean_steps_to_success": sum(steps) / len(steps) if steps else None,
    }


def _average_row(policy: int, tasks: Sequence[str], table: Outcomes, seeds: Seeds) -> dict[str, Any]:
    valid = {task: _valid(table.get((policy, task), {})) for task in tasks}
    outcomes = {task: np.array(list(v.values()), dtype=bool) for task, v in valid.items() if v}
    row: dict[str, Any] = {"policy": policy, "tasks": len(outcomes), "rate": None, "low": None, "high": None}
    if outcomes:
        estimate = average_over_tasks(outcomes, seeds.rng("average", policy))
        row.update(rate=estimate.value, low=estimate.low, high=estimate.high)
    return row


def _common_scenes(a: Mapping[int, Episode], b: Mapping[int, Episode]) -> tuple[np.ndarray, np.ndarray, int]:
    """Outcomes of the scenes that are valid on both sides, and how many scenes were left out."""
    valid_a, valid_b = _valid(a), _valid(b)
    common = sorted(valid_a.keys() & valid_b.keys())
    first = np.array([valid_a[seed] for seed in common], dtype=bool)
    second = np.array([valid_b[seed] for seed in common], dtype=bool)
    return first, second, len(a.keys() | b.keys()) - len(common)


def _paired_row(a: int, b: int, task: str, result: PairedDifference, excluded: int) -> dict[str, Any]:
    return {
        "a": a,
        "b": b,
        "task": task,
        "n": result.n,
        "excluded": excluded,
        "difference": result.difference,
        "low": result.low,
        "high": result.high,
        "gained": result.gained,
        "lost": result.lost,
        "p_value": result.p_value,
    }


def _paired_rows(a: int, b: int, tasks: Sequence[str], table: Outcomes, seeds: Seeds) -> list[dict[str, Any]]:
    """One row per task with common scenes, and the row "all"."""
    rows, pairs, excluded_in_all = [], {}, 0
    for task in tasks:
        first, second, excluded = _common_scenes(table.get((a, task), {}), table.get((b, task), {}))
        excluded_in_all += excluded
        if first.size:
            pairs[task] = (first, second)
            rows.append(_paired_row(a, b, task, paired_difference(first, second), excluded))
    if pairs:
        result = average_paired_difference(pairs, seeds.rng("paired", a, b))
        rows.append(_paired_row(a, b, "all", result, excluded_in_all))
    return rows


def summarise(episodes: Sequence[Episode], policies: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The ``summary`` of an evaluation.json: rates per task, averages over tasks, paired differences.

    An invalid episode (a lost host, diverged physics) counts neither as success nor as failure. Its scene is left out
    of both sides of a pair; ``invalid`` and ``excluded`` say how many were. Tasks keep the order of their first
    episode. A rate without any valid episode is null.

    Args:
        episodes: Records with ``policy`` (index), ``task``, ``seed``, ``success``, ``steps`` and ``invalid``.
        policies: Records with ``name``; every two of them, in order, make a pair.

    Returns:
        A dict that JSON can hold, equal for equal episodes: the bootstrap has a fixed seed.

    Raises:
        ValueError: An episode names a policy that does not exist, or a policy has two episodes of one scene.
    """
    table = _by_policy_and_task(episodes, len(policies))
    tasks = list(dict.fromkeys(episode["task"] for episode in episodes))
    seeds = Seeds(0)
    count = len(policies)
    return {
        "per_task": [
            _rate_row(policy, task, table[policy, task])
            for task in tasks
            for policy in range(count)
            if (policy, task) in table
        ],
        "average": [_average_row(policy, tasks, table, seeds) for policy in range(count)],
        "paired": [
            row for a in range(count) for b in range(a + 1, count) for row in _paired_rows(a, b, tasks, table, seeds)
        ],
    }
