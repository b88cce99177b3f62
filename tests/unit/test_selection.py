"""The rule of selective joint training on synthetic curves, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from z1.config import RlConfig, UpdateConfig, ValidationConfig
from z1.errors import ConfigError, RunFolderError
from z1.train.run_folder import RunFolder
from z1.train.selection import (
    Gain,
    Inputs,
    after_expert_probe,
    after_joint_probe,
    decide,
    describe,
    failure_modes,
    line_gain,
    paired_gain,
    read_inputs,
)

FLAT = Gain(value=0.02, low=-0.03, high=0.07)
RISING = Gain(value=0.2, low=0.1, high=0.3)
BLIND = Inputs(start_success=0.2, validation_gain=FLAT, curve_gain=FLAT, failed_scenes=40, grounding_scenes=32)
"""What calls for a joint probe."""


def test_no_gain_and_objects_never_reached_call_for_a_joint_probe() -> None:
    verdict = after_expert_probe(BLIND)
    assert verdict.joint
    assert verdict.reason == (
        "no clear gain; in 32 of 40 scenes with failures (80%) most of them did not reach the object, clearly more "
        "than 50%: a failure to see"
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"start_success": 0.9}, "success before RL is 90.0%, at least 90%"),
        (
            {"validation_gain": RISING},
            "a clear gain: validation success rose by +20.0 points (80% interval +10.0 to +30.0) over the probe",
        ),
        (
            {"curve_gain": RISING},
            "a clear gain: training success rose by +20.0 points (80% interval +10.0 to +30.0) over the probe",
        ),
        (
            {"failed_scenes": 9, "grounding_scenes": 9},
            "no clear gain, but only 9 scenes had diagnosed failures, fewer than 10",
        ),
        (
            {"failed_scenes": 40, "grounding_scenes": 8},
            "no clear gain; in 8 of 40 scenes with failures (20%) most of them did not reach the object, not clearly "
            "more than 50%: a failure to move",
        ),
        (
            {"failed_scenes": 40, "grounding_scenes": 21},
            "no clear gain; in 21 of 40 scenes with failures (52%) most of them did not reach the object, not clearly "
            "more than 50%: a failure to move",
        ),
    ],
)
def test_each_of_the_other_findings_leaves_the_vlm_frozen(change: dict[str, Any], reason: str) -> None:
    verdict = after_expert_probe(replace(BLIND, **change))
    assert not verdict.joint
    assert verdict.reason == reason


def test_a_gain_that_is_not_clear_does_not_stop_the_question() -> None:
    uncertain = Gain(value=0.3, low=0.0, high=0.6)
    assert after_expert_probe(replace(BLIND, validation_gain=uncertain, curve_gain=None)).joint
    assert after_expert_probe(replace(BLIND, start_success=0.89, validation_gain=None)).joint


@pytest.mark.parametrize(
    ("gain", "joint"),
    [
        (RISING, True),
        (FLAT, False),
        (Gain(value=0.0, low=0.0, high=0.0), False),
        (Gain(value=0.1, low=0.0, high=0.2), False),
        (Gain(value=-0.2, low=-0.3, high=-0.1), False),
        (None, False),
    ],
)
def test_joint_training_must_win_clearly(gain: Gain | None, joint: bool) -> None:
    assert after_joint_probe(gain).joint is joint


def test_paired_outcomes() -> None:
    """Four gained of twenty common scenes, none lost; a scene that was lost on either side counts on neither."""
    before, after = "1111100000" * 2 + "-1", "1111111000" * 2 + "1-"
    gain = paired_gain(before, after)
    assert gain is not None
    assert gain.value == pytest.approx(0.2)
    assert gain.clear
    tie = paired_gain("1100", "1010")
    assert tie is not None
    assert tie.value == 0.0
    assert not tie.clear
    assert paired_gain("-1", "0-") is None


def test_a_line_and_its_error_by_hand() -> None:
    """Points (1, 0.1), (2, 0.3), (3, 0.2): slope 0.05, residuals -0.05, 0.1, -0.05, error sqrt(0.015 / 1 / 2);
    Student's t at 80 % with 1 degree of freedom is 3.078.
    """
    gain = line_gain([1, 2, 3], [0.1, 0.3, 0.2])
    assert gain is not None
    assert gain.value == pytest.approx(0.15)
    assert (gain.high - gain.value) / 3 == pytest.approx(3.0776835 * math.sqrt(0.0075))
    assert gain.value - gain.low == pytest.approx(gain.high - gain.value)
    assert line_gain([1, 2], [0.1, 0.3]) is None


def test_a_steady_curve_is_clear_and_a_noisy_one_is_not() -> None:
    """The same rise of 20 points, with points 1 or 15 points off the line."""
    steps, rng = 1000.0 * np.arange(1, 9), np.random.Generator(np.random.Philox(key=1))
    line, noise = 0.3 + 0.2 * steps / 8000, rng.standard_normal(8)
    steady, noisy = (line_gain(steps, line + size * noise) for size in (0.01, 0.15))  # type: ignore[arg-type]
    assert steady is not None
    assert noisy is not None
    assert steady.clear
    assert not noisy.clear


def test_a_flat_curve_is_no_gain_however_it_is_rounded() -> None:
    for count in range(3, 8):
        for rate in (0.1, 0.3, 0.4, 0.7):
            gain = line_gain([6000.0 * n for n in range(1, count + 1)], [rate] * count)
            assert gain is not None
            assert not gain.clear


def test_failures_are_told_apart_by_how_near_successes_come() -> None:
    """Within 0.1 m; where successes stay at 0.2 m (they push with the arm), within 0.22 m."""
    nearest, success = [0.03, 0.05, 0.09, 0.11, 0.3, math.inf], [True, True, False, False, False, False]
    assert counts(nearest, success, [0] * 6) == (1, 2, 1, 1)
    assert counts([0.2, 0.21, 0.23], [True, False, False], [0] * 3) == (1, 1, 1, 0), "half is not most"
    assert counts([0.09, 0.2], [False, False], [4, 7]) == (1, 1, 2, 1)
    assert counts([0.2] * 7 + [0.01] * 3, [False] * 10, [0] * 7 + [1, 2, 3]) == (3, 7, 4, 1), "a scene counts once"
    assert failure_modes([math.inf] * 3, [True, False, False], [0] * 3) == {}


def counts(nearest: list[float], success: list[bool], scene: list[int]) -> tuple[float, ...]:
    modes = failure_modes(nearest, success, scene)
    names = ("motion_failures", "grounding_failures", "failed_scenes", "grounding_scenes")
    assert len(modes) == len(names)
    return tuple(modes[f"rollout/{name}"] for name in names)


def records(outcomes: tuple[str, str], success: list[float], *, grounding: int = 4) -> list[dict[str, Any]]:
    """A probe: a validation at either end, an iteration of 1000 env steps for each rate."""
    rows: list[dict[str, Any]] = [{"iteration": -1, "eval/success": outcomes[0].count("1") / len(outcomes[0])}]
    rows[0]["eval/outcomes"] = outcomes[0]
    for number, rate in enumerate(success):
        rows.append({"iteration": number, "cost/env_steps": 1000 * (number + 1), "rollout/success": rate})
        rows[-1] |= {"rollout/failed_scenes": 5, "rollout/grounding_scenes": grounding}
    rows[-1] |= {"eval/success": outcomes[1].count("1") / len(outcomes[1]), "eval/outcomes": outcomes[1]}
    return rows


START, SAME, BETTER = "1100000000" * 4, "1010000000" * 4, "1111110000" * 4
STAGNANT = records((START, SAME), [0.2, 0.25, 0.2, 0.22])


def test_inputs_come_from_the_records() -> None:
    inputs = read_inputs(STAGNANT)
    assert inputs.start_success == pytest.approx(0.2)
    assert inputs.validation_gain is not None
    assert inputs.validation_gain.value == 0.0
    assert (inputs.failed_scenes, inputs.grounding_scenes) == (20, 16)
    assert after_expert_probe(inputs).joint


def test_a_decision_for_expert_only_training_without_a_second_probe() -> None:
    selection = decide(records((START, BETTER), [0.2, 0.3, 0.5, 0.6]), None)
    assert (selection["schema"], selection["decision"]) == ("z1.selection/1", "expert")
    assert selection["counterfactual"] == {"mode": "joint", "probe": None}
    assert selection["joint_minus_expert"] is None
    assert selection["lost_env_steps"] == 0
    assert describe(selection).startswith("expert-only training: a clear gain: validation success rose")
    assert describe(selection).endswith("Joint training was not tried.")


@pytest.mark.parametrize(("end", "decision"), [(BETTER, "joint"), (SAME, "expert"), (START, "expert")])
def test_a_decision_between_two_probes(end: str, decision: str) -> None:
    selection = decide(STAGNANT, records((START, end), [0.2, 0.4, 0.5]))
    other = {"joint": "expert", "expert": "joint"}[decision]
    assert selection["decision"] == decision
    assert selection["counterfactual"]["mode"] == other
    assert selection["counterfactual"]["probe"] == selection["probes"][other]
    assert selection["lost_env_steps"] == {"joint": 4000, "expert": 3000}[decision]
    assert "its " in describe(selection)


def test_a_damaged_decision_is_refused(tmp_path: Path) -> None:
    assert RunFolder(tmp_path).selection is None
    (tmp_path / "selection.json").write_text('{"schema": "z1.selection/9"}')
    with pytest.raises(RunFolderError, match=r"has schema 'z1.selection/9', expected 'z1.selection/1'; use the z1"):
        _ = RunFolder(tmp_path).selection


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"probe_env_steps": 100},
            "probe_env_steps has no effect with selection 'off'; choose selection 'auto' or leave it at 0",
        ),
        ({"selection": "auto"}, "probe_env_steps is 0; it must be at least 1 with selection 'auto'"),
        (
            {"selection": "auto", "probe_env_steps": 9, "update": UpdateConfig(mode="joint")},
            "update.mode is 'joint'; it must be 'expert' with selection 'auto'",
        ),
        (
            {"selection": "auto", "probe_env_steps": 9, "time_budget_s": 5.0},
            "time_budget_s is 5.0; it must be 0 with selection 'auto', whose probes are compared at equal env steps",
        ),
        (
            {"selection": "auto", "probe_env_steps": 600, "env_step_budget": 1000},
            "env_step_budget is 1000; with selection 'auto' it must be 0 or at least two probes of probe_env_steps 600",
        ),
        (
            {"selection": "auto", "probe_env_steps": 9, "validation": ValidationConfig(every=0)},
            "validation.every is 0 and so is validation.every_env_steps; selection 'auto' compares probes by "
            "validation and with the start, so set one of them",
        ),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RlConfig(policy="p", task="t", out="o", **settings)
    assert str(caught.value) == text
