"""The sections of a report: rates per task, curves, diagnostics and costs, ready for the page's template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from z1.eval import format as text
from z1.eval import plots
from z1.eval.advice import Records, values_of
from z1.train.metrics import METRICS, completed
from z1.train.selection import CONFIDENCE, NAMES

DIAGNOSTICS = {
    "update/loss": "Loss",
    "update/approx_kl": "Approximate KL",
    "update/clip_fraction": "Clip fraction",
    "update/grad_norm": "Gradient norm",
    "update/ratio_max": "Largest ratio deviation",
    "update/signal_chunks": "Chunks with a signal",
    "rollout/groups_dropped": "Groups dropped",
    "rollout/prefix": "Shared prefix",
    "rollout/grounding_failures": "Failures short of the object",
    "sft/grad_norm": "Gradient norm",
    "sft/learning_rate": "Learning rate",
}
PHASES = {"time/rollout_s": "rollouts", "time/update_s": "updates", "time/eval_s": "validation"}


def task_rows(evaluation: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Per task its rows of all policies, and the average when there are several tasks."""
    if evaluation is None:
        return []
    summary = evaluation["summary"]
    tasks = list(dict.fromkeys(row["task"] for row in summary["per_task"]))
    groups = [{"name": task, "rows": [r for r in summary["per_task"] if r["task"] == task]} for task in tasks]
    if len(tasks) > 1:
        groups.insert(0, {"name": f"Average over {len(tasks)} tasks", "rows": list(summary["average"])})
    return groups


def pair_rows(evaluation: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Paired differences with a label that names both policies."""
    if evaluation is None:
        return []
    names = [policy["name"] for policy in evaluation["policies"]]
    rows = evaluation["summary"]["paired"]
    return [{**row, "label": f"{names[row['b']]} − {names[row['a']]}"} for row in rows]


def selection_rows(selection: Mapping[str, Any] | None) -> list[dict[str, str]]:
    """What selective joint training decided, from what, and what the other mode gave; empty for other runs."""
    if selection is None:
        return []
    inputs, other = selection["inputs"], selection["counterfactual"]
    scenes = f"{inputs['grounding_scenes']} of {inputs['failed_scenes']}"
    rows = {
        "decision": NAMES[selection["decision"]] + " training",
        "reason": selection["reason"] + ".",
        "validation success before RL": text.percent(inputs["start_success"]),
        "validation gain of the expert-only probe": _gain(inputs["validation_gain"]),
        "gain of its training rollouts, by a line": _gain(inputs["curve_gain"]),
        "scenes whose failures mostly did not reach the object": scenes,
    }
    for mode, probe in selection["probes"].items():
        rows[f"{NAMES[mode]} probe"] = (
            f"{text.percent(probe['validation_success'])} validation success after {text.count(probe['env_steps'])} "
            "env steps"
        )
    rows["joint minus expert-only"] = _gain(selection["joint_minus_expert"])
    tried = other["probe"] is not None
    rows["not chosen"] = f"{NAMES[other['mode']]} training, {'after its probe' if tried else 'not tried'}"
    rows["env steps of the probe that lost"] = text.count(selection["lost_env_steps"])
    return [{"label": label, "value": value} for label, value in rows.items()]


def _gain(gain: Mapping[str, float] | None) -> str:
    if gain is None:
        return "not known"
    limits = text.interval(gain["low"], gain["high"], sign=True)
    return f"{text.percent(gain['value'], sign=True, unit='points')}, {CONFIDENCE:.0%} interval {limits}"


def _figure(title: str, figure: Any, curves: Sequence[plots.Curve], caption: str = "") -> dict[str, Any]:
    legend = [{"label": c.label, "second": c.second} for c in curves if c.label]
    return {"title": title, "svg": Markup(plots.to_svg(figure, title)), "legend": legend, "caption": caption}


def _series(records: Records, key: str, x_key: str) -> tuple[list[float], list[Mapping[str, Any]]]:
    """Records that have a key, and the x of each: a cumulative cost is carried forward, "completed" is counted."""
    positions, rows, x = [], [], 0.0
    for record in records:
        x = float(completed(record)) if x_key == "completed" else float(record.get(x_key, x))
        if key in record:
            positions.append(x)
            rows.append(record)
    return positions, rows


def _curve(records: Records, key: str, x_key: str, label: str, second: bool = False) -> plots.Curve:
    x, rows = _series(records, key, x_key)
    return plots.Curve(label=label, x=x, y=[float(r[key]) for r in rows], second=second)


def _success_curves(records: Records, x_key: str, scale: float) -> list[plots.Curve]:
    curves = []
    x, rows = _series(records, "rollout/success", x_key)
    if rows:
        y = [float(r["rollout/success"]) for r in rows]
        curves.append(plots.Curve(label="training rollouts", x=[v / scale for v in x], y=y, second=True))
    x, rows = _series(records, "eval/success", x_key)
    if rows:
        y = [float(r["eval/success"]) for r in rows]
        low = [float(r.get("eval/low", r["eval/success"])) for r in rows]
        high = [float(r.get("eval/high", r["eval/success"])) for r in rows]
        curves.append(plots.Curve(label="validation, 95 % interval", x=[v / scale for v in x], y=y, low=low, high=high))
    return curves


def learning_figures(records: Records) -> list[dict[str, Any]]:
    """Success against env steps and wall-clock, or the loss of supervised fine-tuning."""
    figures = []
    if any("rollout/success" in r or "eval/success" in r for r in records):
        seconds = max(values_of(records, "time/total_s"), default=0.0)
        scale, unit = plots.time_scale(seconds)
        axes = (
            [("cost/env_steps", 1.0, "env steps", "Success by experience")] if _any(records, "cost/env_steps") else []
        )
        axes += [("time/total_s", scale, unit, "Success by wall-clock")] if seconds else []
        for x_key, divisor, label, title in axes or [("completed", 1.0, "iterations", "Success by iteration")]:
            curves = _success_curves(records, x_key, divisor)
            figures.append(_figure(title, plots.success_plot(curves, label), curves))
    if _any(records, "sft/loss"):
        curves = [_curve(records, "sft/loss", "completed", "training batch", second=True)]
        if _any(records, "sft/validation_loss"):
            curves.append(_curve(records, "sft/validation_loss", "completed", "held-out episodes"))
        figures.append(_figure("Flow-matching loss", plots.line_plot(curves, "optimizer steps", log=True), curves))
    return figures


def diagnostic_figures(records: Records) -> list[dict[str, Any]]:
    """Small plots of the update, each with the meaning of its metric."""
    figures = []
    for key, title in DIAGNOSTICS.items():
        if not _any(records, key):
            continue
        label = "optimizer steps" if key.startswith("sft/") else "iterations"
        curve = _curve(records, key, "completed", "")
        figures.append(_figure(title, plots.small_plot(curve, label), [curve], f"{METRICS[key].text}."))
    return figures


def _any(records: Records, key: str) -> bool:
    return any(key in record for record in records)


def _last(records: Records, key: str) -> float:
    return max(values_of(records, key), default=0.0)


def cost_rows(records: Records) -> list[dict[str, str]]:
    """Cumulative work, with what each number means."""
    keys = [key for key in METRICS if key.startswith("cost/") and _any(records, key)]
    return [
        {
            "label": key.removeprefix("cost/").replace("_", " ").replace("vlm", "VLM"),
            "value": text.count(_last(records, key)),
            "text": METRICS[key].text,
        }
        for key in keys
    ]


def phases(records: Records) -> list[dict[str, Any]]:
    """Wall-clock by phase; what no phase claims is "other"."""
    total = _last(records, "time/total_s")
    parts = {label: _last(records, key) for key, label in PHASES.items() if _any(records, key)}
    if not total or not parts:
        return []
    parts["other"] = max(0.0, total - sum(parts.values()))
    whole = sum(parts.values())
    return [
        {"label": label, "seconds": text.duration(seconds), "share": seconds / whole}
        for label, seconds in parts.items()
        if seconds >= 0.001 * whole
    ]


def inside_rollouts(records: Records) -> str:
    """One sentence about where rollout time went."""
    if not _any(records, "time/sim_s") or not _any(records, "time/rollout_s"):
        return ""
    policy, sim, drawn = (text.duration(_last(records, f"time/{name}_s")) for name in ("policy", "sim", "render"))
    steps, seconds = _last(records, "cost/env_steps"), _last(records, "time/rollout_s")
    speed = f" {text.number(steps / seconds)} env steps per second of rollout." if steps and seconds else ""
    return (
        f"During rollouts the policy took {policy}; the simulator hosts, working beside each other, spent {sim} "
        f"stepping and {drawn} rendering in all.{speed}{_sharing(records, steps)}"
    )


def _sharing(records: Records, steps: float) -> str:
    """What shared segments spared; nothing with flat groups."""
    flat = _last(records, "cost/env_steps_flat")
    if flat <= steps:
        return ""
    return (
        f" Flat groups would have needed {text.count(flat)} env steps for the same episodes; sharing spared "
        f"{text.percent(1 - steps / flat)} of them."
    )
