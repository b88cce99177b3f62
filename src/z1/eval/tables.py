"""Evaluations as terminal tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from z1.eval.format import interval, p_value, percent

ALL = "all"


def evaluation_table(evaluation: Mapping[str, Any]) -> Table:
    """Success per task and policy with 95 % intervals, and the paired difference from the first policy.

    Args:
        evaluation: An evaluation.json, schema ``z1.evaluation/1``.

    Returns:
        One row per task, and a row for the average when there are several tasks.
    """
    policies, summary = evaluation["policies"], evaluation["summary"]
    table = Table(title="success, % (95 % interval)", title_justify="left", caption_justify="left", pad_edge=False)
    table.add_column("task", overflow="fold")
    for index, policy in enumerate(policies):
        table.add_column(Text(str(policy["name"])), justify="right")
        if index:
            table.add_column("difference", justify="right")
            table.add_column("gained/lost", justify="right")
    tasks = list(dict.fromkeys(row["task"] for row in summary["per_task"]))
    rates = {(row["task"], row["policy"]): row for row in summary["per_task"]}
    for task in tasks:
        table.add_row(Text(task), *_cells(summary, task, [rates.get((task, p)) for p in range(len(policies))]))
    if len(tasks) > 1:
        averages = {row["policy"]: row for row in summary["average"]}
        table.add_section()
        table.add_row("average", *_cells(summary, ALL, [averages.get(p) for p in range(len(policies))]))
    protocol = evaluation.get("protocol", {})
    perturbed = f"images perturbed: {protocol['perturbation']}" if protocol.get("perturbation") else ""
    table.caption = "; ".join(filter(None, (protocol.get("stand_ins", ""), perturbed, _caption(summary))))
    return table


def _cells(summary: Mapping[str, Any], task: str, rates: list[Mapping[str, Any] | None]) -> list[str]:
    cells = []
    for policy, rate in enumerate(rates):
        cells.append(_rate(rate))
        if policy:
            cells += _difference(summary, task, policy)
    return cells


def _rate(row: Mapping[str, Any] | None) -> str:
    if row is None or row["rate"] is None:
        return "–"
    counts = f" {row['successes']}/{row['episodes']}" if "successes" in row else ""
    return f"{percent(row['rate'], unit='')} ({interval(row['low'], row['high'])}){counts}"


def _difference(summary: Mapping[str, Any], task: str, policy: int) -> list[str]:
    for row in summary["paired"]:
        if (row["a"], row["b"], row["task"]) == (0, policy, task):
            limits = interval(row["low"], row["high"], sign=True)
            return [f"{percent(row['difference'], sign=True, unit='')} ({limits})", f"{row['gained']}/{row['lost']}"]
    return ["–", "–"]


def _caption(summary: Mapping[str, Any]) -> str:
    """The tests of the rows above, and what was left out."""
    whole = [row for row in summary["paired"] if row["a"] == 0 and row["task"] == ALL]
    parts = [f"exact McNemar test: {p_value(row['p_value'])}" for row in whole]
    invalid = sum(row.get("invalid", 0) for row in summary["per_task"])
    if invalid:
        parts.append(f"{invalid} invalid episodes left out")
    return "; ".join(parts)
