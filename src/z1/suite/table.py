"""The results of a suite as Markdown and as a terminal table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from z1.eval.format import duration, interval, percent, plural, stand_ins_text
from z1.suite.published import CAVEAT
from z1.train.selection import describe

Results = Mapping[str, Any]

HEADER = ("task", "SFT, % (95 %)", "RL, % (95 %)", "difference, points (95 %)", "gained/lost", "trains", "env steps")


def rows_of(results: Results) -> list[list[str]]:
    """Cells of the tasks, in the suite's order."""
    return [
        [
            row["task"],
            *_cells(row),
            row.get("mode", row["state"]),
            f"{row['env_steps']:,}" if "env_steps" in row else "",
        ]
        for row in results["tasks"]
    ]


def category_rows(results: Results) -> list[list[str]]:
    """Cells of the categories and of the average."""
    rows = [[f"{row['category']} ({row['tasks']} of {row['planned']})", *_cells(row)] for row in results["categories"]]
    average = results["average"]
    return [*rows, [f"average ({average['tasks']} of {average['planned']})", *_cells(average)]]


def terminal_table(results: Results) -> Table:
    """Tasks, categories and average for a terminal."""
    title = f"{results['suite']['name']}: success on test scenes, % (95 % interval)"
    table = Table(title=title, title_justify="left", pad_edge=False)
    table.add_column(HEADER[0], overflow="fold")
    for name in ("SFT", "RL", "difference", "trains"):
        table.add_column(Text(name), justify="right")
    for name, sft, rl, difference, _, trains, _ in rows_of(results):
        table.add_row(*(Text(cell) for cell in (name.split("/", 1)[1], sft, rl, difference, trains)))
    table.add_section()
    for name, sft, rl, difference, _ in category_rows(results):
        table.add_row(*(Text(cell) for cell in (name, sft, rl, difference, "")))
    return table


def headline(results: Results) -> str:
    """The result in a sentence."""
    average = results["average"]
    without = [row["task"] for row in results["tasks"] if row["state"] == "no demonstrations"]
    parts = []
    if average["tasks"]:
        difference = average["difference"]
        limits = interval(difference["low"], difference["high"], sign=True)
        parts.append(
            f"{plural(average['tasks'], 'task')}: {percent(average['sft']['value'])} after SFT, "
            f"{percent(average['rl']['value'])} after RL, {percent(difference['value'], sign=True, unit='points')} "
            f"({limits}); {len(results['improved'])} improved, {len(results['harmed'])} harmed beyond their intervals."
        )
        parts.append(f"{results['env_steps']:,} env steps of RL, {duration(results['seconds'])} of training.")
    missing = [row["task"] for row in results["tasks"] if row["state"] == "not finished"]
    if missing:
        parts.append(f"Not finished: {', '.join(missing)}.")
    if without:
        parts.append(
            f"Without demonstrations, so neither trained nor evaluated ({len(without)}): {', '.join(without)}."
        )
    if made := stand_ins(results):
        parts.append(made)
    return " ".join(parts)


def stand_ins(results: Results) -> str:
    """What the results must say about stand-ins for the simulator's assets; empty where they are real."""
    return stand_ins_text(protocol.get("stand_ins", "") for protocol in results["protocols"])


def markdown(results: Results) -> str:
    """The page table.md."""
    suite = results["suite"]
    lines = [
        f"# {suite['name']}",
        "",
        headline(results),
        "",
        *_markdown_table(HEADER, rows_of(results)),
        "",
        "## Categories",
        "",
        *_markdown_table((("category", *HEADER[1:5])), category_rows(results)),
        "",
        "## How to read this",
        "",
        f"- One SFT policy per {'suite' if suite['sft'] == 'suite' else suite['sft']}; one RL run per task, at most "
        f"{suite['env_step_budget']:,} env steps, recipe `{suite['recipe']}`.",
        f"- Success on {suite['test_episodes']} test scenes per task, the same for SFT and RL, never used in training. "
        "Intervals: Wilson's for a task, a stratified bootstrap for averages, paired ones for differences.",
        "- Averages weigh every finished task the same.",
    ]
    chosen = [row for row in results["tasks"] if row.get("selection")]
    if chosen:
        lines += ["", "## Training modes", ""]
        lines += [f"- {row['task']}: {describe(row['selection'])}" for row in chosen]
    if results["published"]:
        lines += ["", "## What others report", "", CAVEAT, ""]
        lines += _markdown_table(
            ("model", "average, %", "protocol", "source"),
            [[p["name"], f"{p['average']:.1f}", p["protocol"], p["source"]] for p in results["published"]],
        )
    return "\n".join(lines) + "\n"


def _cells(row: Mapping[str, Any]) -> list[str]:
    difference = row.get("difference")
    return [
        _rate(row.get("sft")),
        _rate(row.get("rl")),
        _rate(difference, sign=True),
        f"{difference['gained']}/{difference['lost']}" if difference else "",
    ]


def _rate(estimate: Mapping[str, float] | None, *, sign: bool = False) -> str:
    if estimate is None or estimate["value"] is None:
        return ""
    limits = interval(estimate["low"], estimate["high"], sign=sign)
    return f"{percent(estimate['value'], sign=sign, unit='')} ({limits})"


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(header) + " |",
        "|---" * len(header) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
