"""The first sentence of a report: what changed, by how much, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from z1.eval import format as text
from z1.eval.advice import Records, values_of
from z1.train.metrics import completed

SPLIT_SCENES = {"test": "held-out test scene", "validation": "validation scene", "train": "training scene"}


def headline(records: Records, evaluation: Mapping[str, Any] | None) -> dict[str, Any]:
    """The first thing to read: held-out success, or else validation success, or else the loss.

    Args:
        records: Records of metrics.jsonl.
        evaluation: The evaluation.json, or None.

    Returns:
        ``title``, ``text`` and ``tiles``, each tile with ``label``, ``value``, ``note`` and ``tone``.
    """
    if evaluation and evaluation["summary"]["average"]:
        return _evaluation_headline(evaluation)
    rates = values_of(records, "eval/success")
    if rates:
        return _validation_headline(records, rates)
    losses = values_of(records, "sft/loss")
    if losses:
        return _loss_headline(records, losses)
    return {"title": "No results yet", "text": "This run has logged no success rate and no loss so far.", "tiles": []}


def _evaluation_headline(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    summary, policies = evaluation["summary"], evaluation["policies"]
    rows = {row["policy"]: row for row in summary["average"]}
    tasks = list(dict.fromkeys(row["task"] for row in summary["per_task"]))
    last = len(policies) - 1
    scene = SPLIT_SCENES.get(str(evaluation["protocol"].get("split")), "scene")
    subject = "Success" if len(tasks) == 1 else f"Average success over {len(tasks)} tasks"
    tiles = [_rate_tile(policies[i]["name"], rows[i], "main" if i == last else "") for i in sorted({0, last})]
    pair = [r for r in summary["paired"] if (r["a"], r["b"], r["task"]) == (0, last, "all")]
    if not pair:
        scenes = sum(row["episodes"] for row in summary["per_task"] if row["policy"] == last)
        title = f"{subject} is {text.percent(rows[last]['rate'])} on {text.plural(scenes, scene)}"
        return {"title": title, "text": "One policy was evaluated; nothing to compare it with.", "tiles": tiles[-1:]}
    return _compared(subject, scene, rows[0]["rate"], rows[last]["rate"], pair[0], tiles)


def _compared(
    subject: str,
    scene: str,
    before: float | None,
    after: float | None,
    pair: Mapping[str, Any],
    tiles: list[dict[str, Any]],
) -> dict[str, Any]:
    """Headline of two policies on the same scenes; says "rose" or "fell" only if the interval excludes zero."""
    clear = not pair["low"] <= 0.0 <= pair["high"]
    verb = ("rose" if pair["difference"] > 0 else "fell") if clear else "did not change clearly:"
    scenes = text.plural(pair["n"], scene)
    difference = text.percent(pair["difference"], sign=True, unit="points")
    limits = text.interval(pair["low"], pair["high"], sign=True)
    left_out = (
        f" {text.plural(pair['excluded'], 'scene')} left out after a simulator failure." if pair.get("excluded") else ""
    )
    tone = ("good" if pair["difference"] > 0 else "bad") if clear else ""
    tile = {"label": "paired difference", "value": difference, "note": f"95 % interval {limits}", "tone": tone}
    rates = f"{'from ' if clear else ''}{text.percent(before)} to {text.percent(after)}"
    flips = f"{text.plural(pair['gained'], 'scene')} gained, {pair['lost']} lost, {text.p_value(pair['p_value'])}"
    return {
        "title": f"{subject} {verb} {rates} on {scenes}",
        "text": f"Paired difference {difference}, 95 % interval {limits}. {flips} (exact McNemar test).{left_out}",
        "tiles": [*tiles, tile],
    }


def _rate_tile(label: str, row: Mapping[str, Any], tone: str) -> dict[str, Any]:
    note = f"95 % interval {text.interval(row['low'], row['high'])}{text.NARROW}%"
    return {"label": label, "value": text.percent(row["rate"]), "note": note, "tone": tone}


def _validation_headline(records: Records, rates: list[float]) -> dict[str, Any]:
    rows = [r for r in records if "eval/success" in r]
    tiles = [
        {
            "label": label,
            "value": text.percent(row["eval/success"]),
            "note": f"95 % interval {text.interval(row.get('eval/low'), row.get('eval/high'))}{text.NARROW}%",
            "tone": tone,
        }
        for label, row, tone in (("first validation", rows[0], ""), ("last validation", rows[-1], "main"))
    ]
    return {
        "title": f"Validation success went from {text.percent(rates[0])} to {text.percent(rates[-1])}, "
        f"at best {text.percent(max(rates))}",
        "text": "These scenes also chose the best checkpoint; held-out scenes give the honest number.",
        "tiles": tiles[-1:] if len(rates) == 1 else tiles,
    }


def _loss_headline(records: Records, losses: list[float]) -> dict[str, Any]:
    held_out = values_of(records, "sft/validation_loss")
    tiles = [{"label": "training loss", "value": text.number(losses[-1]), "note": "last logged step", "tone": ""}]
    if held_out:
        note = f"best {text.number(min(held_out))}"
        tiles.append({"label": "validation loss", "value": text.number(held_out[-1]), "note": note, "tone": "main"})
    verb = "fell from" if losses[-1] < losses[0] else "did not fall:"
    steps = text.plural(completed(records[-1]), "optimizer step")
    return {
        "title": f"Training loss {verb} {text.number(losses[0])} to {text.number(losses[-1])}",
        "text": f"{steps} on demonstrations. Success in the simulator is not known from a loss.",
        "tiles": tiles,
    }
