"""The rule of selective joint training: whether the VLM trains, from what training and validation have shown.

Pure: numbers in, decision out. The test scenes are never looked at. What the rule reads, what it decides and what it
would otherwise have done is kept in ``selection.json``; ``z1.train.selective`` runs the probes. See docs/selection.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from z1.eval.stats import PairedDifference, paired_difference, t_value, wilson
from z1.train.run_folder import SELECTION_SCHEMA

CONFIDENCE = 0.8
"""Of all two-sided intervals here; a gain is clear when its lower limit is above 0, at 90 % one-sided."""

HIGH_SUCCESS = 0.9
"""Validation success before RL from which on the VLM stays frozen whatever happens: there is more to lose than gain."""

GROUNDING_SHARE = 0.5
"""Share of the scenes with failures in which most of them must be grounding failures, by the lower limit of its
interval, for a joint probe. Scenes are counted, since the members of a group fail alike.
"""

MIN_SCENES = 10
"""Scenes with diagnosed failures below which their modes are not trusted."""

NEAR_M = 0.1
"""Metres between gripper and object within which the gripper has reached it in any task. Scripted experts come as near
(lever-pull in one scene to 0.1001) in 47 of MetaWorld's 50 tasks.
"""

NEAR_MARGIN_M = 0.02
"""Where successes typically stay further away (closing a door with the arm), as near as they, and so much more."""

VLM_RATE = 0.1
"""Learning rate of the VLM in joint training, as a share of the action expert's."""

ROUNDING = 1e-9
"""Gains up to here are 0 but for rounding."""

NAMES = {"expert": "expert-only", "joint": "joint"}
"""What the modes are called."""

RULE: dict[str, float] = {
    "confidence": CONFIDENCE,
    "high_success": HIGH_SUCCESS,
    "grounding_share": GROUNDING_SHARE,
    "min_scenes": MIN_SCENES,
    "near_m": NEAR_M,
    "near_margin_m": NEAR_MARGIN_M,
    "vlm_rate": VLM_RATE,
}
"""Every threshold, for the record."""


def failure_modes(nearest: Sequence[float], success: Sequence[bool], scene: Sequence[int]) -> dict[str, float]:
    """How the failures among an iteration's valid rollouts failed.

    Args:
        nearest: Smallest distance of each rollout between gripper and object, in metres; those whose distance the
            simulator did not tell (infinite) are left out.
        success: Whether each succeeded.
        scene: Number of the scene that each was in.

    Returns:
        Metrics: failures that had reached the object, and those that had not; scenes with failures, and those in which
        most had not. Empty where no distance is known.
    """
    known = [(d, good, s) for d, good, s in zip(nearest, success, scene, strict=True) if math.isfinite(d)]
    if not known:
        return {}
    successes = [distance for distance, good, _ in known if good]
    near = max(NEAR_M, float(np.median(successes)) + NEAR_MARGIN_M) if successes else NEAR_M
    far: dict[int, list[bool]] = {}
    for distance, good, number in known:
        if not good:
            far.setdefault(number, []).append(distance > near)
    failures, grounding = sum(map(len, far.values())), sum(map(sum, far.values()))
    return {
        "rollout/motion_failures": failures - grounding,
        "rollout/grounding_failures": grounding,
        "rollout/failed_scenes": len(far),
        "rollout/grounding_scenes": sum(2 * sum(own) > len(own) for own in far.values()),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """A change of success with its interval of ``CONFIDENCE``.

    Attributes:
        value: Difference of success rates, -1..1, or what a fitted line says of it.
        low: Lower limit.
        high: Upper limit.
    """

    value: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether it is above 0 beyond its uncertainty."""
        return self.low > ROUNDING


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What the rule reads of the expert-only probe.

    Attributes:
        start_success: Validation success before RL, 0..1.
        validation_gain: From before RL to the end of the probe, on the same validation scenes; None when no scene
            is valid in both.
        curve_gain: What the line through the success of the training rollouts rises over the probe; None when fewer
            than three iterations leave its error unknown.
        failed_scenes: Training scenes with failed rollouts.
        grounding_scenes: Those in which most of the failed rollouts had not reached the object.
    """

    start_success: float
    validation_gain: Gain | None
    curve_gain: Gain | None
    failed_scenes: int
    grounding_scenes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What follows from a part of the rule.

    Attributes:
        joint: Whether joint training is tried (after the first probe) or chosen (after the second).
        reason: One sentence with the numbers that decided.
    """

    joint: bool
    reason: str


def after_expert_probe(inputs: Inputs) -> Verdict:
    """Whether a probe of joint training is worth its env steps; in doubt it is not.

    The first line that applies decides: nothing to gain, a clear gain, failures unknown, failures of motion.
    """
    start, scenes, grounding = inputs.start_success, inputs.failed_scenes, inputs.grounding_scenes
    if start >= HIGH_SUCCESS:
        return Verdict(joint=False, reason=f"success before RL is {start:.1%}, at least {HIGH_SUCCESS:.0%}")
    for name, gain in (("validation success", inputs.validation_gain), ("training success", inputs.curve_gain)):
        if gain is not None and gain.clear:
            return Verdict(
                joint=False,
                reason=f"a clear gain: {name} rose by {_points(gain)} over the probe",
            )
    if scenes < MIN_SCENES:
        return Verdict(
            joint=False,
            reason=f"no clear gain, but only {scenes} scenes had diagnosed failures, fewer than {MIN_SCENES}",
        )
    low, _ = wilson(grounding, scenes, CONFIDENCE)
    text = (
        f"no clear gain; in {grounding} of {scenes} scenes with failures ({grounding / scenes:.0%}) most of them did "
        "not reach the object"
    )
    if low > GROUNDING_SHARE:
        return Verdict(joint=True, reason=f"{text}, clearly more than {GROUNDING_SHARE:.0%}: a failure to see")
    return Verdict(joint=False, reason=f"{text}, not clearly more than {GROUNDING_SHARE:.0%}: a failure to move")


def after_joint_probe(difference: Gain | None) -> Verdict:
    """Whether joint training goes on; a tie is for expert-only training.

    Args:
        difference: Validation success at the end of the joint probe minus that of the expert-only probe, on the same
            scenes; None without common ones.
    """
    if difference is None:
        return Verdict(joint=False, reason="the two probes have no valid validation scene in common")
    text = f"joint minus expert-only validation success after equal probes is {_points(difference)}"
    if difference.clear:
        return Verdict(joint=True, reason=f"{text}, clearly above 0")
    return Verdict(joint=False, reason=f"{text}, not clearly above 0")


def _points(gain: Gain) -> str:
    return f"{100 * gain.value:+.1f} points ({CONFIDENCE:.0%} interval {100 * gain.low:+.1f} to {100 * gain.high:+.1f})"


def paired_gain(before: str, after: str) -> Gain | None:
    """Difference of two validations on the same scenes.

    Args:
        before: ``eval/outcomes`` of the first one.
        after: Of the second one.

    Returns:
        The difference over the scenes that are valid in both; None when there are none.
    """
    assert len(before) == len(after), (before, after)
    common = [(a == "1", b == "1") for a, b in zip(before, after, strict=True) if "-" not in (a, b)]
    if not common:
        return None
    first, second = (np.array(column, np.bool_) for column in zip(*common, strict=True))
    pair: PairedDifference = paired_difference(first, second, CONFIDENCE)
    return Gain(value=pair.difference, low=pair.low, high=pair.high)


def line_gain(env_steps: Sequence[float], success: Sequence[float]) -> Gain | None:
    """What a line through a learning curve rises from 0 env steps to the last point.

    Ordinary least squares; the error comes from the points' distances to the line, so that scenes which make a whole
    iteration easy or hard are in it, and the few points widen the interval (Student's t).

    Args:
        env_steps: Env steps after each iteration.
        success: Success rate of its training rollouts.

    Returns:
        The rise; None with fewer than three points.
    """
    x, y = np.asarray(env_steps, np.float64), np.asarray(success, np.float64)
    if len(x) < 3:
        return None
    centred = x - x.mean()
    spread = float(centred @ centred)
    slope = float(centred @ y) / spread
    rest = y - y.mean() - slope * centred
    error = math.sqrt(float(rest @ rest) / (len(x) - 2) / spread)
    span, margin = float(x[-1]), t_value(CONFIDENCE, len(x) - 2) * error
    return Gain(value=slope * span, low=(slope - margin) * span, high=(slope + margin) * span)


def read_inputs(records: Sequence[Mapping[str, Any]]) -> Inputs:
    """The rule's inputs from the records of the expert-only probe.

    Args:
        records: Of its metrics.jsonl, the validation before RL first.
    """
    validations = [record for record in records if "eval/outcomes" in record]
    iterations = [record for record in records if record["iteration"] >= 0]
    return Inputs(
        start_success=float(validations[0]["eval/success"]),
        validation_gain=paired_gain(validations[0]["eval/outcomes"], validations[-1]["eval/outcomes"]),
        curve_gain=line_gain(
            [record["cost/env_steps"] for record in iterations], [record["rollout/success"] for record in iterations]
        ),
        failed_scenes=sum(int(record.get("rollout/failed_scenes", 0)) for record in iterations),
        grounding_scenes=sum(int(record.get("rollout/grounding_scenes", 0)) for record in iterations),
    )


def decide(expert: Sequence[Mapping[str, Any]], joint: Sequence[Mapping[str, Any]] | None) -> dict[str, Any]:
    """The content of ``selection.json``.

    Args:
        expert: Records of the expert-only probe.
        joint: Records of the joint probe, where the rule called for one.
    """
    inputs = read_inputs(expert)
    first = after_expert_probe(inputs)
    assert first.joint == (joint is not None)
    probes = {"expert": _probe_summary(expert)}
    difference, verdict = None, first
    if joint is not None:
        probes["joint"] = _probe_summary(joint)
        difference = paired_gain(_last_validation(expert)["eval/outcomes"], _last_validation(joint)["eval/outcomes"])
        verdict = after_joint_probe(difference)
    decision = "joint" if verdict.joint else "expert"
    other = "expert" if verdict.joint else "joint"
    return {
        "schema": SELECTION_SCHEMA,
        "decision": decision,
        "reason": verdict.reason if joint is None else f"{first.reason}. Then: {verdict.reason}",
        "rule": RULE,
        "inputs": asdict(inputs),
        "probes": probes,
        "joint_minus_expert": None if difference is None else asdict(difference),
        "counterfactual": {"mode": other, "probe": probes.get(other)},
        "lost_env_steps": probes[other]["env_steps"] if other in probes else 0,
    }


def _last_validation(records: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    return [record for record in records if "eval/outcomes" in record][-1]


def _probe_summary(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    validation = _last_validation(records)
    return {
        "iterations": int(records[-1]["iteration"]) + 1,
        "env_steps": int(records[-1]["cost/env_steps"]),
        "validation_success": float(validation["eval/success"]),
        "validation_outcomes": str(validation["eval/outcomes"]),
    }


def describe(selection: dict[str, Any]) -> str:
    """One line about a decision: the mode, why, and what the other one would have given."""
    other = selection["counterfactual"]
    text = f"{NAMES[selection['decision']]} training: {selection['reason']}."
    if other["probe"] is None:
        return f"{text} {NAMES[other['mode']].capitalize()} training was not tried."
    return (
        f"{text} The probe of {NAMES[other['mode']]} training ended at {other['probe']['validation_success']:.1%} "
        f"validation success; its {selection['lost_env_steps']:,} env steps are counted."
    )
