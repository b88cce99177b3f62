"""What to try next: rules that read a run's numbers and name the evidence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from z1.eval.format import NARROW, number, percent
from z1.eval.stats import z_value

Records = Sequence[Mapping[str, Any]]

HIGH_CLIP_FRACTION = 0.3
HIGH_GAP = 1e-3
"""Nats; float32 acting and float32 updates agree far better."""

TARGET_HALF_WIDTH = 0.05
RECENT = 10
"""Records that count as "lately"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """One suggestion.

    Attributes:
        title: What to do.
        text: The evidence, and how.
    """

    title: str
    text: str


def advise(records: Records, evaluation: Mapping[str, Any] | None) -> list[Advice]:
    """Suggestions for a run, the most pressing first; never empty.

    Args:
        records: Records of metrics.jsonl.
        evaluation: The evaluation.json, or None.
    """
    rules: list[Callable[[], Advice | None]] = [
        lambda: _first_ratio(records),
        lambda: _acting_gap(records),
        lambda: _invalid(records),
        lambda: _early_stop(records),
        lambda: _clipping(records),
        lambda: _dropped_groups(records),
        lambda: _still_rising(records),
        lambda: _past_the_best(records),
        lambda: _sft_overfit(records),
        lambda: _more_scenes(evaluation),
        lambda: _failing_tasks(evaluation),
        lambda: _simulator_bound(records),
        lambda: _next_stage(records, evaluation),
    ]
    found = [advice for rule in rules if (advice := rule()) is not None]
    return found or [
        Advice(
            title="Repeat with other seeds",
            text="Nothing in the logged numbers asks for a change. Two more run seeds show how much of the gain is "
            "luck.",
        )
    ]


def values_of(records: Records, key: str) -> list[float]:
    """The numbers of a key, in order."""
    return [float(r[key]) for r in records if key in r]


def _recent_mean(records: Records, key: str) -> float | None:
    values = values_of(records, key)[-RECENT:]
    return sum(values) / len(values) if values else None


def _first_ratio(records: Records) -> Advice | None:
    worst = max(values_of(records, "update/first_ratio_max"), default=0.0)
    if worst == 0.0:
        return None
    return Advice(
        title="Report a likelihood mismatch",
        text=f"Before the first optimizer step every ratio must be exactly 1, but one was off by {number(worst)}. "
        "The gradient is wrong by about as much; please file a bug with environment.json and config.json.",
    )


def _acting_gap(records: Records) -> Advice | None:
    gap = max(values_of(records, "update/acting_log_prob_gap"), default=0.0)
    if gap <= HIGH_GAP:
        return None
    return Advice(
        title="Look at the numeric precision",
        text=f"Log-probabilities while acting and in the update differ by up to {number(gap)} nats. "
        "Use the same precision and device for both.",
    )


def _invalid(records: Records) -> Advice | None:
    lost = sum(values_of(records, "rollout/invalid_members"))
    episodes = sum(values_of(records, "rollout/episodes"))
    if not lost or lost < 0.01 * (lost + episodes):
        return None
    return Advice(
        title="Find out why rollouts were lost",
        text=f"{round(lost)} of {round(lost + episodes)} training rollouts ended with a simulator failure. "
        "Run z1 doctor, and lower the number of hosts if memory is short.",
    )


def _early_stop(records: Records) -> Advice | None:
    epochs = values_of(records, "update/epochs_run")
    recent = epochs[-RECENT:]
    if not recent or sum(recent) / len(recent) > 0.5 * max(epochs):
        return None
    return Advice(
        title="Lower the learning rate",
        text=f"Updates stop early on the KL limit: lately {number(sum(recent) / len(recent))} of {round(max(epochs))} "
        "update epochs run. Half the learning rate, or fewer epochs, uses the rollouts better.",
    )


def _clipping(records: Records) -> Advice | None:
    fraction = _recent_mean(records, "update/clip_fraction")
    if fraction is None or fraction <= HIGH_CLIP_FRACTION:
        return None
    return Advice(
        title="Take smaller updates",
        text=f"Lately {percent(fraction)} of the chunks were clipped. Lower the learning rate or run fewer update "
        "epochs.",
    )


def _dropped_groups(records: Records) -> Advice | None:
    kept, dropped = sum(values_of(records, "rollout/groups_kept")), sum(values_of(records, "rollout/groups_dropped"))
    if not dropped or dropped <= kept:
        return None
    share = f"{percent(dropped / (kept + dropped))} of the groups were outside the filter"
    if (_recent_mean(records, "rollout/success") or 0.0) >= 0.5:
        return Advice(
            title="Give the policy something harder",
            text=f"{share}, most of them because nearly every member succeeded. Add harder tasks, or shape the "
            "reward by the time to success (rollout.reward_decay below 1).",
        )
    return Advice(
        title="Start from a better policy",
        text=f"{share}, most of them because nearly no member succeeded. More demonstrations before RL, larger groups "
        "or more exploration noise give the update something to compare.",
    )


def _still_rising(records: Records) -> Advice | None:
    rates = values_of(records, "eval/success")
    if len(rates) < 4 or rates[-1] < max(rates) or rates[-1] >= 0.99:
        return None
    earlier = rates[-1 - max(1, len(rates) // 3)]
    if rates[-1] - earlier < 0.02:
        return None
    return Advice(
        title="Train longer",
        text=f"Validation success was still rising at the end, from {percent(earlier)} to {percent(rates[-1])} over "
        "the last third. Continue with --resume and more iterations.",
    )


def _past_the_best(records: Records) -> Advice | None:
    rates = values_of(records, "eval/success")
    lows = values_of(records, "eval/low")
    if len(rates) < 3 or len(lows) != len(rates) or rates[-1] >= lows[rates.index(max(rates))]:
        return None
    return Advice(
        title="Stop earlier, or lower the learning rate",
        text=f"Validation success peaked at {percent(max(rates))} and ended at {percent(rates[-1])}, below the "
        "interval of the peak. The best checkpoint is kept as the result.",
    )


def _sft_overfit(records: Records) -> Advice | None:
    losses = values_of(records, "sft/validation_loss")
    if len(losses) < 3 or losses[-1] <= 1.1 * min(losses):
        return None
    return Advice(
        title="Train for fewer steps, or record more demonstrations",
        text=f"The validation loss reached {number(min(losses))} and rose to {number(losses[-1])}: the policy begins "
        "to memorise the demonstrations.",
    )


def _more_scenes(evaluation: Mapping[str, Any] | None) -> Advice | None:
    rows = [r for r in evaluation["summary"]["paired"] if r["a"] == 0 and r["task"] == "all"] if evaluation else []
    if evaluation is None or not rows or not rows[-1]["low"] <= 0.0 <= rows[-1]["high"]:
        return None
    averages = {row["policy"]: row["rate"] for row in evaluation["summary"]["average"]}
    rate = averages.get(rows[-1]["b"])
    spread = 0.25 if rate is None else max(rate * (1 - rate), 0.05)
    scenes = 10 * round(spread * (z_value(0.95) / TARGET_HALF_WIDTH) ** 2 / 10)
    return Advice(
        title="Evaluate on more scenes",
        text="The interval of the difference includes zero, so this evaluation cannot tell the policies apart. About "
        f"{scenes} scenes in all bring a success rate to within 5 points; scenes cost no training.",
    )


def _failing_tasks(evaluation: Mapping[str, Any] | None) -> Advice | None:
    if evaluation is None or not evaluation["policies"]:
        return None
    last = len(evaluation["policies"]) - 1
    rows = [r for r in evaluation["summary"]["per_task"] if r["policy"] == last and r["episodes"]]
    failing = [row["task"] for row in rows if row["successes"] == 0]
    if not failing:
        return None
    shown = ", ".join(failing[:3]) + (f" and {len(failing) - 3} more" if len(failing) > 3 else "")
    return Advice(
        title="Record more demonstrations of the tasks that never succeed",
        text=f"No success on {shown}: RL compares successes with failures and cannot start from none. "
        "Watch the videos, check the cameras and the action scale, and add demonstrations.",
    )


def _simulator_bound(records: Records) -> Advice | None:
    last = dict(records[-1]) if records else {}
    rollout, policy = last.get("time/rollout_s", 0.0), last.get("time/policy_s", 0.0)
    total = last.get("time/total_s", 0.0)
    if not total or rollout < 0.5 * total or policy > 0.4 * rollout:
        return None
    return Advice(
        title="Use more simulator hosts",
        text=f"Rollouts took {percent(rollout / total)} of the time, and the policy only {percent(policy / rollout)} "
        "of that. More hosts (sim.hosts), up to the number of cores, shorten the run; results stay the same.",
    )


def _next_stage(records: Records, evaluation: Mapping[str, Any] | None) -> Advice | None:
    if evaluation is not None:
        return None
    if values_of(records, "sft/loss"):
        return Advice(
            title="Evaluate the policy, then improve it with RL",
            text="A loss does not tell success. Run z1 eval on this policy; once it succeeds sometimes, z1 rl can "
            "improve it.",
        )
    return Advice(
        title="Evaluate on held-out scenes",
        text="Validation scenes chose the best checkpoint, so their success rate flatters it. Compare the start and "
        f"the result with z1 eval on 100{NARROW}test scenes.",
    )
