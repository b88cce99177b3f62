"""Statistics of success rates, against published numbers and by simulation."""

from __future__ import annotations

import json

import numpy as np
import pytest

from z1.eval.stats import (
    average_over_tasks,
    average_paired_difference,
    mcnemar_exact,
    paired_difference,
    summarise,
    t_value,
    wilson,
    z_value,
)
from z1.eval.tables import evaluation_table
from z1.seeding import Seeds


def outcomes(both: int, only_b: int, only_a: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes (a, b) with the given counts."""
    a = np.array([1] * both + [0] * only_b + [1] * only_a + [0] * neither, dtype=bool)
    b = np.array([1] * both + [1] * only_b + [0] * only_a + [0] * neither, dtype=bool)
    return a, b


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_limits(successes, n, low, high):
    # Newcombe 1998, Statistics in Medicine 17, 857, table I, method 3.
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(
    ("confidence", "freedom", "value"),
    [
        (0.8, 1, 3.078),
        (0.8, 2, 1.886),
        (0.8, 3, 1.638),
        (0.8, 10, 1.372),
        (0.95, 1, 12.706),
        (0.95, 2, 4.303),
        (0.95, 4, 2.776),
        (0.95, 10, 2.228),
        (0.95, 10**6, 1.960),
    ],
)
def test_quantiles_of_student_t_as_tabulated(confidence: float, freedom: int, value: float) -> None:
    assert t_value(confidence, freedom) == pytest.approx(value, rel=0.003)


def test_wilson_of_all_and_of_no_successes_touches_the_end_and_keeps_a_width():
    # Closed form at n of n: low = n / (n + z^2) = 50 / (50 + 3.8415) = 0.92865.
    assert wilson(50, 50) == (pytest.approx(0.92865, abs=1e-5), 1.0)
    low, high = wilson(0, 50)
    assert low == 0.0
    assert high == pytest.approx(1 - 0.92865, abs=1e-5)


def test_wilson_mirrors_successes_and_failures():
    for successes in range(24):
        low, high = wilson(successes, 23) if successes <= 23 else (0, 0)
        mirror_low, mirror_high = wilson(23 - successes, 23)
        assert (low, high) == pytest.approx((1 - mirror_high, 1 - mirror_low))


def test_wilson_narrows_with_more_episodes_and_widens_with_confidence():
    def width(interval):
        return interval[1] - interval[0]

    assert width(wilson(500, 1000)) < width(wilson(50, 100)) < width(wilson(50, 100, confidence=0.99))
    assert z_value(0.95) == pytest.approx(1.959964, abs=1e-6)


@pytest.mark.parametrize(
    ("successes", "n", "message"),
    [(0, 0, "at least one episode, got n=0"), (-1, 5, "0..5, got -1"), (6, 5, "0..5, got 6")],
)
def test_wilson_refuses_impossible_counts(successes, n, message):
    with pytest.raises(ValueError, match=message):
        wilson(successes, n)


def test_confidence_outside_0_to_1_is_refused():
    with pytest.raises(ValueError, match="confidence must be between 0 and 1, got 95"):
        wilson(1, 2, confidence=95)


@pytest.mark.parametrize(
    ("table", "difference", "low", "high"),
    [
        # (both, only b, only a, neither). Newcombe 1998, Statistics in Medicine 17, 2635, method 10.
        ((36, 12, 2, 0), 0.2, 0.0569, 0.3404),
        # Altman et al. 2000, Statistics with Confidence, p. 52: 0.011 to 0.226.
        ((14, 5, 0, 22), 0.1220, 0.0115, 0.2265),
        # Fagerland, Lydersen and Laake, Statistical Analysis of Contingency Tables, chapter 8: complete response.
        ((59, 6, 16, 80), -0.0621, -0.1186, -0.0046),
        # The same: airway hyper-responsiveness, -0.507 to -0.026.
        ((1, 1, 7, 12), -0.2857, -0.5069, -0.0256),
    ],
)
def test_paired_difference_gives_the_published_limits(table, difference, low, high):
    result = paired_difference(*outcomes(*table))
    assert (result.difference, result.low, result.high) == pytest.approx((difference, low, high), abs=5e-5)
    assert (result.n, result.gained, result.lost) == (sum(table), table[1], table[2])


def test_paired_difference_changes_sign_when_the_policies_are_swapped():
    a, b = outcomes(20, 9, 3, 8)
    forward, backward = paired_difference(a, b), paired_difference(b, a)
    assert (forward.low, forward.high) == pytest.approx((-backward.high, -backward.low))
    assert (forward.difference, forward.p_value) == (-backward.difference, backward.p_value)
    assert (forward.gained, forward.lost) == (backward.lost, backward.gained) == (9, 3)


def test_pairing_narrows_the_interval_of_correlated_outcomes():
    a, b = outcomes(40, 10, 0, 50)
    shuffled = np.random.default_rng(0).permutation(b)
    paired, unpaired = paired_difference(a, b), paired_difference(a, shuffled)
    assert paired.difference == unpaired.difference
    assert paired.high - paired.low < unpaired.high - unpaired.low


def test_paired_difference_without_changes_is_not_certain():
    everything = np.ones(50, dtype=bool)
    result = paired_difference(everything, everything)
    assert (result.difference, result.p_value) == (0.0, 1.0)
    assert result.low == -result.high == pytest.approx(wilson(50, 50)[0] - 1)


def test_paired_difference_of_opposites_stays_inside_the_unit_interval():
    result = paired_difference(np.zeros(30, dtype=bool), np.ones(30, dtype=bool))
    assert result.difference == result.high == 1.0
    assert 0.8 < result.low < 1.0


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [
        (5, 0, 2 / 2**5),  # 2 * C(5, 0) / 32
        (1, 7, 2 * (1 + 8) / 2**8),  # Fagerland et al.: 0.0703
        (6, 16, 0.052479),  # Fagerland et al.: 0.0525
        (3, 3, 1.0),
        (0, 0, 1.0),
    ],
)
def test_mcnemar_exact(gained, lost, p):
    assert mcnemar_exact(gained, lost) == mcnemar_exact(lost, gained) == pytest.approx(p, abs=1e-6)


def test_mcnemar_exact_of_thousands_of_scenes_is_a_number():
    assert 0.0 < mcnemar_exact(3000, 2000) < 1e-40


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.ones(3, dtype=bool), np.ones(4, dtype=bool), "need the same scenes: a has 3, b has 4"),
        (np.ones(0, dtype=bool), np.ones(0, dtype=bool), "a is empty"),
        (np.ones(3), np.ones(3, dtype=bool), r"a must be a bool array of shape \[n\], got float64 \[3\]"),
    ],
)
def test_paired_difference_refuses_what_cannot_be_paired(a, b, message):
    with pytest.raises(ValueError, match=message):
        paired_difference(a, b)


def test_intervals_cover_the_truth():
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(1000):
        low, high = wilson(int(rng.binomial(40, 0.9)), 40)
        covered += low <= 0.9 <= high
    assert 930 <= covered <= 980
    covered = 0
    for _ in range(1000):
        skill = rng.random(40)
        a, b = skill < 0.5, (skill + rng.normal(0, 0.1, 40)) < 0.8
        low, high = (result := paired_difference(a, b)).low, result.high
        covered += low <= 0.3 <= high
    assert covered >= 920


def test_average_weighs_tasks_equally():
    successes = {"a": np.ones(10, dtype=bool), "b": np.zeros(90, dtype=bool)}
    assert average_over_tasks(successes, np.random.default_rng(0)).value == 0.5


def test_average_of_one_task_has_its_wilson_interval():
    result = average_over_tasks({"a": np.array([1] * 30 + [0] * 10, dtype=bool)}, np.random.default_rng(0))
    assert (result.low, result.high) == wilson(30, 40)


def test_average_matches_the_normal_approximation_when_there_are_many_scenes():
    # Two tasks, 1000 scenes each, rates 0.5 and 0.8: sd of the mean = sqrt(0.25/1000 + 0.16/1000) / 2 = 0.010124.
    tasks = {"a": np.arange(1000) < 500, "b": np.arange(1000) < 800}
    result = average_over_tasks(tasks, np.random.default_rng(1))
    assert (result.low, result.high) == pytest.approx((0.65 - 1.96 * 0.010124, 0.65 + 1.96 * 0.010124), abs=1e-3)


def test_average_of_tasks_that_always_succeed_is_not_certain():
    result = average_over_tasks(dict.fromkeys("abcd", np.ones(25, dtype=bool)), np.random.default_rng(0))
    # Four equal margins of 1 - 0.8668 each weigh a quarter: sqrt(4 * (0.1332 / 4)^2) = 0.0666.
    assert result.value == result.high == 1.0
    assert result.low == pytest.approx(1 - (1 - wilson(25, 25)[0]) / 2, abs=1e-9)


def test_average_interval_covers_the_truth_when_some_tasks_are_solved():
    rng = np.random.default_rng(3)
    rates = (0.97, 0.9, 0.6, 0.99, 0.3)
    covered = 0
    for _ in range(200):
        tasks = {str(i): rng.random(25) < rate for i, rate in enumerate(rates)}
        result = average_over_tasks(tasks, rng)
        covered += result.low <= np.mean(rates) <= result.high
    assert covered >= 182


def test_average_is_reproducible_and_depends_on_the_generator_only_a_little():
    tasks = {"a": np.arange(50) < 20, "b": np.arange(50) < 35}
    first, again = (average_over_tasks(tasks, np.random.default_rng(4)) for _ in range(2))
    other = average_over_tasks(tasks, np.random.default_rng(5))
    assert first == again
    assert (first.low, first.high) == pytest.approx((other.low, other.high), abs=0.01)


def test_average_paired_difference_pools_flips_and_averages_tasks():
    pairs = {"a": outcomes(10, 10, 0, 0), "b": outcomes(40, 0, 20, 20)}  # differences +0.5 and -0.25
    result = average_paired_difference(pairs, np.random.default_rng(0))
    assert result.difference == pytest.approx(0.125)
    assert (result.n, result.gained, result.lost) == (100, 10, 20)
    assert result.p_value == mcnemar_exact(10, 20)
    assert result.low < 0.125 < result.high


def test_average_paired_difference_of_one_task_is_the_paired_difference():
    a, b = outcomes(20, 9, 3, 8)
    assert average_paired_difference({"a": (a, b)}, np.random.default_rng(0)) == paired_difference(a, b)


def test_average_paired_difference_does_not_mistake_no_change_for_certainty():
    same = np.arange(30) < 15
    result = average_paired_difference({"a": (same, same), "b": (same, same)}, np.random.default_rng(0))
    assert result.difference == 0.0
    assert result.low < -0.02 < 0.02 < result.high


def test_averages_need_a_task():
    for function in (average_over_tasks, average_paired_difference):
        with pytest.raises(ValueError, match="at least one task"):
            function({}, np.random.default_rng(0))


def episode(policy: int, seed: int, success: bool, *, task: str = "metaworld/reach", steps: int = 50, invalid=False):
    return {"policy": policy, "task": task, "seed": seed, "success": success, "steps": steps, "invalid": invalid}


POLICIES = [{"name": "sft", "path": "a"}, {"name": "rl", "path": "b"}]


def test_summarise_counts_rates_steps_and_pairs():
    episodes = [episode(0, seed, seed < 4, steps=30) for seed in range(10)]
    episodes += [episode(1, seed, seed < 8, steps=10 * (seed + 1)) for seed in range(10)]
    summary = summarise(episodes, POLICIES)
    first, second = summary["per_task"]
    assert (first["episodes"], first["successes"], first["rate"], first["mean_steps_to_success"]) == (10, 4, 0.4, 30.0)
    assert second["mean_steps_to_success"] == 45.0  # mean of 10, 20, ..., 80
    assert (second["low"], second["high"]) == wilson(8, 10)
    assert [row["rate"] for row in summary["average"]] == [0.4, 0.8]
    task, whole = summary["paired"]
    assert (task["task"], whole["task"]) == ("metaworld/reach", "all")
    assert {**task, "task": "all"} == whole
    assert (whole["a"], whole["b"], whole["difference"], whole["gained"], whole["lost"]) == (0, 1, 0.4, 4, 0)
    assert whole["p_value"] == 2 / 2**4


def test_summarise_leaves_invalid_episodes_out_of_both_sides():
    episodes = [episode(0, seed, True, invalid=seed == 0) for seed in range(5)]
    episodes += [episode(1, seed, seed != 1, invalid=seed == 4) for seed in range(5)]
    summary = summarise(episodes, POLICIES)
    assert [(row["episodes"], row["invalid"]) for row in summary["per_task"]] == [(4, 1), (4, 1)]
    pair = summary["paired"][0]
    assert (pair["n"], pair["excluded"], pair["gained"], pair["lost"]) == (3, 2, 0, 1)


def test_summarise_pairs_by_scene_and_not_by_order():
    episodes = [episode(0, seed, seed < 5) for seed in range(10)]
    episodes += [episode(1, seed, seed < 5) for seed in reversed(range(10))]
    pair = summarise(episodes, POLICIES)["paired"][0]
    assert (pair["gained"], pair["lost"]) == (0, 0)


def test_summarise_averages_tasks_and_compares_every_two_policies():
    rng = Seeds(0).rng("test")
    episodes = [
        episode(policy, seed, bool(rng.random() < 0.5), task=task)
        for policy in range(3)
        for task in ("metaworld/a", "metaworld/b")
        for seed in range(8)
    ]
    summary = summarise(episodes, [*POLICIES, {"name": "third", "path": "c"}])
    assert [(r["a"], r["b"], r["task"]) for r in summary["paired"] if r["task"] == "all"] == [
        (0, 1, "all"),
        (0, 2, "all"),
        (1, 2, "all"),
    ]
    rates = [r["rate"] for r in summary["per_task"] if r["policy"] == 2]
    assert summary["average"][2]["rate"] == pytest.approx(sum(rates) / 2)
    assert summary == summarise(episodes, [*POLICIES, {"name": "third", "path": "c"}])
    json.dumps(summary, allow_nan=False)


def test_summarise_of_nothing_but_invalid_episodes_has_no_rate():
    summary = summarise([episode(0, 0, False, invalid=True)], POLICIES[:1])
    assert summary["per_task"][0]["rate"] is None
    assert summary["average"][0]["rate"] is None
    assert summary["paired"] == []


def test_summarise_refuses_unknown_policies_and_double_scenes():
    with pytest.raises(ValueError, match="seed 3 names policy 1, but there are 1 policies"):
        summarise([episode(1, 3, True)], POLICIES[:1])
    with pytest.raises(ValueError, match="policy 0 has two episodes of metaworld/reach seed 3"):
        summarise([episode(0, 3, True), episode(0, 3, False)], POLICIES)


def test_evaluation_table_shows_rates_differences_and_plain_names(capsys):
    from rich.console import Console

    episodes = [episode(0, seed, seed < 4, task=task) for task in ("x/[red]a", "x/b") for seed in range(10)]
    episodes += [episode(1, seed, seed < 8, task=task) for task in ("x/[red]a", "x/b") for seed in range(10)]
    episodes += [episode(1, 99, True, task="x/b", invalid=True)]
    evaluation = {"policies": POLICIES, "summary": summarise(episodes, POLICIES)}
    Console(width=140).print(evaluation_table(evaluation))
    shown = capsys.readouterr().out
    assert "x/[red]a" in shown
    assert "40 (17–69) 4/10" in shown
    assert "+40" in shown
    assert "4/0" in shown
    assert "average" in shown
    assert "1 invalid episodes left out" in shown
    assert "p = 0.0078" in shown  # 8 gained, 0 lost: 2 / 2^8


def test_evaluation_table_says_what_is_not_the_real_thing(capsys):
    from rich.console import Console

    episodes = [episode(0, seed, seed < 4) for seed in range(10)]
    protocol = {"stand_ins": "with stand-ins", "perturbation": "camera"}
    evaluation = {"policies": POLICIES[:1], "summary": summarise(episodes, POLICIES[:1]), "protocol": protocol}
    Console(width=140).print(evaluation_table(evaluation))
    assert "with stand-ins; images perturbed: camera" in " ".join(capsys.readouterr().out.split())
