"""Aggregation of a study: hand-worked numbers, thresholds, the bootstrap, table and figure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from z1.ablate.estimates import first_reached, outcomes, paired, stratified
from z1.ablate.figure import COLOURS, REFERENCE, looks, write_figure
from z1.ablate.results import Point, RunResult, at_marks, mean_costs, mean_curve, summarise_study
from z1.ablate.table import markdown, missing_text, overall_table, task_table, terminal_table
from z1.seeding import Seeds

ONES, ZEROS = np.ones(100, dtype=np.int64), np.zeros(100, dtype=np.int64)


def rng() -> np.random.Generator:
    return Seeds(0).rng("test")


def points(*rows: tuple[float, float, float]) -> tuple[Point, ...]:
    return tuple(Point(env_steps=x, seconds=s, success=y, episodes=50) for x, s, y in rows)


def run(variant: str = "flat", task: str = "t", seed: int = 0, **changes: Any) -> RunResult:
    """A run whose SFT policy solves scene 1 of 1..4 and whose own policy solves 1 and 2."""
    values: dict[str, Any] = {
        "sft": {1: True, 2: False, 3: False, 4: False},
        "rl": {1: True, 2: True, 3: False, 4: False},
        "points": points((0, 0, 0.4), (100, 5, 0.5), (200, 10, 0.6)),
        "totals": {"cost/env_steps": 200, "cost/env_steps_flat": 200, "time/rollout_s": 7.0, "time/update_s": 3.0},
    }
    return RunResult(task=task, variant=variant, seed=seed, **{**values, **changes})


def test_pairs_are_scenes_that_both_have() -> None:
    before, after = {1: True, 2: False, 3: True, 8: True}, {3: True, 2: True, 1: False, 9: True}
    np.testing.assert_array_equal(paired(before, after), [-1, 1, 0])
    np.testing.assert_array_equal(outcomes({7: True, 2: False}), [0, 1])


def test_tasks_and_seeds_weigh_the_same() -> None:
    # task a: runs of mean 1/2 and 1, so 3/4; task b: 1/4; mean 1/2, although 5 of the 8 outcomes are successes
    values = {"a": [np.array([1, 0]), np.array([1, 1])], "b": [np.array([0, 0, 1, 0])]}
    estimate = stratified(values, rng(), lowest=0.0)
    assert estimate is not None
    assert estimate.value == 0.5
    assert 0 < estimate.low < 0.5 < estimate.high < 1


def test_scenes_are_resampled_within_a_run() -> None:
    # 4 scenes, half of them solved: of 16 equally likely resamples one has no success, which is more than 2.5 %
    estimate = stratified({"t": [np.array([1, 1, 0, 0])]}, rng())
    assert estimate is not None
    assert (estimate.low, estimate.value, estimate.high) == (0.0, 0.5, 1.0)
    # 100 scenes: a binomial of standard deviation 0.05
    estimate = stratified({"t": [np.concatenate([ONES[:50], ZEROS[:50]])]}, rng())
    assert estimate is not None
    assert estimate.low == pytest.approx(0.4, abs=0.011)
    assert estimate.high == pytest.approx(0.6, abs=0.011)


def test_seeds_are_resampled_within_a_task() -> None:
    # two runs, one that always succeeds: a quarter of the resamples draws it twice, a quarter never
    estimate = stratified({"t": [ONES, ZEROS]}, rng())
    assert estimate is not None
    assert (estimate.low, estimate.value, estimate.high) == (0.0, 0.5, 1.0)


def test_tasks_are_not_resampled() -> None:
    # the same outcomes as two tasks: only what was never seen is uncertain, for each 3.8415 / (100 + 3.8415) = 0.0370;
    # squared, halved and added: 0.0262
    estimate = stratified({"a": [ONES], "b": [ZEROS]}, rng(), lowest=0.0)
    assert estimate is not None
    assert estimate.value == 0.5
    assert estimate.low == pytest.approx(0.5 - 0.02616, abs=1e-5)
    assert estimate.high == pytest.approx(0.5 + 0.02616, abs=1e-5)


def test_constant_outcomes_claim_no_certainty() -> None:
    # 3.8415 / (5 + 3.8415) = 0.4345
    estimate = stratified({"t": [np.zeros(5, dtype=np.int64)]}, rng())
    assert estimate is not None
    assert (estimate.low, estimate.high) == (pytest.approx(-0.4345, abs=1e-4), pytest.approx(0.4345, abs=1e-4))
    estimate = stratified({"t": [np.ones(5, dtype=np.int64)]}, rng(), lowest=0.0)
    assert estimate is not None
    assert (estimate.value, estimate.high) == (1.0, 1.0)


def test_differences_keep_their_sign() -> None:
    estimate = stratified({"t": [np.array([-1, -1, 0, 1] * 25), np.array([-1, 0, 0, 0] * 25)]}, rng())
    assert estimate is not None
    assert estimate.value == -0.25
    assert -0.5 < estimate.low < -0.25 < estimate.high < 0


def test_the_bootstrap_is_seeded() -> None:
    values = {"t": [np.array([1, 0, 1, 1, 0, 0, 0]), np.array([1, 1, 1, 0, 0])]}
    assert stratified(values, rng()) == stratified(values, rng())


def test_nothing_left_is_none() -> None:
    empty = np.zeros(0, dtype=np.int64)
    assert stratified({}, rng()) is None
    assert stratified({"t": [empty]}, rng()) is None
    kept, alone = stratified({"t": [empty, ONES[:3]], "u": []}, rng()), stratified({"t": [ONES[:3]]}, rng())
    assert kept == alone


def test_a_mark_takes_the_first_validation_at_or_after_it() -> None:
    made = points((0, 0, 0.1), (5200, 1, 0.2), (9800, 2, 0.3), (15100, 3, 0.4))
    assert [p.env_steps for p in at_marks(made, [0, 5000, 10000, 15000])] == [0, 5200, 15100, 15100]
    assert [p.env_steps for p in at_marks(made, [15200])] == [15100]


@pytest.mark.parametrize(("level", "expected"), [(0.1, 0), (0.2, 0), (0.3, 50), (0.4, 100), (0.45, 250), (0.6, None)])
def test_where_a_curve_first_reaches_a_level(level: float, expected: float | None) -> None:
    # 0.45 lies between (200, 0.4) and (300, 0.5), after the curve has fallen to 0.3 and come back
    found = first_reached([0, 100, 150, 200, 300], [0.2, 0.4, 0.3, 0.4, 0.5], level)
    assert found == (None if expected is None else pytest.approx(expected))


def test_the_mean_curve_averages_runs_and_then_tasks() -> None:
    runs = {
        "a": [
            run(points=points((0, 0, 0.2), (100, 4, 0.4))),
            run(points=points((0, 0, 0.2), (120, 8, 0.8))),
        ],
        "b": [run(points=points((0, 0, 0.6), (150, 3, 0.9)))],
        "c": [],
    }
    start, end = mean_curve(runs, [0, 100])
    assert (start["env_steps"], start["seconds"], start["success"]) == (0, 0, pytest.approx(0.4))
    # a: 110 env steps, 6 s, 0.6; b: 150, 3 s, 0.9
    assert (end["env_steps"], end["seconds"], end["success"]) == (130, 4.5, pytest.approx(0.75))
    assert "low" not in end
    banded = mean_curve(runs, [0, 100], Seeds(0))[1]
    assert 0.5 < banded["low"] < 0.75 < banded["high"] < 1
    assert mean_curve({}, [0, 100]) == []


def test_costs_are_means_of_tasks() -> None:
    def with_costs(env_steps: int, flat: int, seconds: float) -> RunResult:
        totals = {
            "cost/env_steps": env_steps,
            "cost/env_steps_flat": flat,
            "cost/renders": 10,
            "time/rollout_s": seconds,
        }
        return run(totals=totals)

    costs = mean_costs({"a": [with_costs(60, 100, 1), with_costs(80, 120, 3)], "b": [with_costs(90, 90, 4)]})
    # a: 70 of 110 env steps, 2 s; b: 90 of 90, 4 s
    assert (costs["env_steps"], costs["env_steps_flat"], costs["training_s"]) == (80, 100, 3)
    assert costs["shared_share"] == pytest.approx(0.2)
    assert (costs["renders"], costs["gradient_chunks"]) == (10, 0)


def summary(*runs: RunResult, tasks: tuple[str, ...] = ("t",)) -> dict[str, Any]:
    variants = ["flat", "tree"]
    return summarise_study(runs, tasks=tasks, variants=variants, reference="flat", marks=(0, 100, 200))


def test_a_study_by_hand() -> None:
    tree = run(
        "tree",
        rl={1: False, 2: True, 3: True, 4: True},
        points=points((0, 0, 0.4), (110, 5, 0.6), (210, 9, 0.7)),
    )
    found = summary(run(), tree)
    flat_row, tree_row = found["overall"]
    assert (flat_row["sft"]["value"], flat_row["success"]["value"], flat_row["gain"]["value"]) == (0.25, 0.5, 0.25)
    assert flat_row["difference"] is None
    # tree gained scenes 2, 3, 4 over SFT and lost scene 1; against flat it gained 3 and 4 and lost 1
    assert (tree_row["success"]["value"], tree_row["gain"]["value"]) == (0.75, 0.5)
    assert tree_row["difference"]["value"] == 0.25
    assert tree_row["difference"]["low"] < 0 < tree_row["difference"]["high"]
    # flat ends at 0.6, which tree has at its first mark; SFT + 13.2 points is 0.532
    assert (flat_row["env_steps_to_reference"], tree_row["env_steps_to_reference"]) == (200, 110)
    assert flat_row["env_steps_to_target"] == pytest.approx(132)
    assert tree_row["env_steps_to_target"] == pytest.approx(110 * 0.132 / 0.2)
    assert [point["env_steps"] for point in found["curves"]["tree"]] == [0, 110, 210]
    assert [row["gain"] for row in found["runs"]] == [0.25, 0.5]
    assert found["per_task"][1] == {"task": "t", **tree_row}
    assert found == summary(run(), tree)
    json.dumps(found, allow_nan=False)


def test_a_half_finished_study() -> None:
    # tree has only task t, seed 0; levels and differences are those of flat's runs there
    runs = [run(), run(seed=1, rl=dict.fromkeys(range(1, 5), True)), run(task="u", points=points((0, 0, 0.9)))]
    found = summary(*runs, run("tree"), tasks=("t", "u"))
    flat_row, tree_row = found["overall"]
    assert (flat_row["runs"], tree_row["runs"]) == (3, 1)
    assert flat_row["success"]["value"] == (0.75 + 0.5) / 2
    assert tree_row["difference"]["value"] == 0
    assert tree_row["env_steps_to_reference"] == 200
    assert [row["runs"] for row in found["per_task"]] == [2, 1, 1, 0]
    assert found["per_task"][3]["success"] is None
    without = summary(run("tree"))
    flat_row, tree_row = without["overall"]
    assert (flat_row["runs"], flat_row["success"], flat_row["costs"]) == (0, None, None)
    assert (tree_row["difference"], tree_row["env_steps_to_reference"]) == (None, None)
    assert without["curves"]["flat"] == []


def test_lost_episodes_are_left_out_of_pairs() -> None:
    (row, _) = summary(run(sft={1: True, 2: False}, rl={2: True, 3: True}))["overall"]
    assert (row["sft"]["value"], row["success"]["value"], row["gain"]["value"]) == (0.5, 1.0, 1.0)
    (row, _) = summary(run(rl={}))["overall"]
    assert (row["success"], row["gain"]) == (None, None)


def results(found: Mapping[str, Any], missing: list[str], tasks: tuple[str, ...] = ("t",)) -> dict[str, Any]:
    """A results.json around a summary."""
    return {
        "study": {
            "name": "s",
            "tasks": [{"task": task} for task in tasks],
            "variants": [{}, {}],
            "seeds": [0],
            "env_step_budget": 200,
            "test_episodes": 4,
        },
        "environment": {
            "z1": {"version": "1", "commit": "0123456789abc", "modified": True},
            "torch": "2",
            "cpu": "C",
            "cores": 2,
        },
        "reference": "flat",
        "runs_planned": 2 * len(tasks),
        "stand_ins": [],
        "missing": missing,
        **found,
    }


def test_the_table() -> None:
    costs = {"cost/env_steps": 160, "cost/env_steps_flat": 200, "time/rollout_s": 1234.4}
    tree = run("tree", points=points((0, 0, 0.4), (100, 5, 0.5), (200, 10, 0.5)), totals=costs)
    data = results(summary(run(), tree), [])
    header, (flat_row, tree_row) = overall_table(data)
    assert header[4:6] == ["env steps to flat's final", "env steps to SFT + 13.2"]
    assert flat_row[0:2] == ["flat", "50.0"]
    assert flat_row[2].startswith("+25.0 (")
    assert flat_row[3:] == ["reference", "200 (100 %)", "132 (66 %)", "10", "0 %", "1 of 1"]
    assert tree_row[4:] == ["-", "-", "1,234", "20 %", "1 of 1"]
    assert task_table(data, "t")[1][1][:3] == ["tree", "25.0", "50.0"]
    page = markdown(data)
    assert "2 variants × 1 task × 1 seed, 200 env steps of training each, 4 test scenes per run" in page
    assert "Success after SFT: 25.0 % (" in page
    assert "z1 1 (0123456789, modified), torch 2, C, 2 cores" in page
    assert "With one seed they cover the scenes only." in page
    assert "Missing" not in page
    assert terminal_table(data).row_count == 2


def test_the_table_says_what_was_made_with_stand_ins() -> None:
    data = results(summary(run()), [])
    assert "stand-ins" not in markdown(data)
    data["stand_ins"] = ["3 meshes are generated"]
    text = "Made with stand-ins: 3 meshes are generated."
    assert f"\n\n{text}\n\n" in markdown(data)
    assert terminal_table(data).caption == text


def test_the_table_says_what_is_missing(tmp_path: Path) -> None:
    data = results(summary(run("tree")), ["t flat seed 0"])
    _, (flat_row, tree_row) = overall_table(data)
    assert flat_row == ["flat", *[""] * 7, "0 of 1"]
    assert tree_row[3:6] == ["", "", ""]
    assert missing_text(data) == "Missing: 1 of 2 runs: t flat seed 0"
    assert "- Missing: 1 of 2 runs: t flat seed 0\n" in markdown(data)
    write_figure(data, tmp_path / "figure.png")
    nothing = results(summary(), ["t flat seed 0", "t tree seed 0"])
    assert "| tree |" in markdown(nothing)
    write_figure(nothing, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_twelve_variants_look_different() -> None:
    names = [f"v{number}" for number in range(12)]
    found = looks(names, "v4")
    assert len({(look.colour, look.marker, look.line) for look in found.values()}) == 12
    assert (found["v4"].colour, found["v4"].line) == (REFERENCE, "--")
    assert found["v0"].colour == COLOURS[0] == found["v9"].colour
    assert found["v0"].hatch != found["v9"].hatch
