"""The results of a study as Markdown and as a terminal table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from z1.ablate.results import TARGET_GAIN
from z1.eval.format import plural, stand_ins_text

Results = Mapping[str, Any]

NEVER = "-"
"""Shown where a curve never reaches a level."""

MISSING_SHOWN = 12
"""Missing runs that are named."""


def overall_table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the main table: a row per variant, averages over tasks and seeds."""
    reference = results["reference"]
    header = [
        "variant",
        "success, %",
        "gain over SFT, points (95 %)",
        f"difference to {reference}, points (95 %)",
        f"env steps to {reference}'s final",
        f"env steps to SFT + {100 * TARGET_GAIN:.1f}",
        "training, s",
        "shared",
        "runs",
    ]
    rows = []
    for row in results["overall"]:
        rows.append([row["variant"], *_cells(row, results), f"{row['runs']} of {_planned(results)}"])
    return header, rows


def task_table(results: Results, task: str) -> tuple[list[str], list[list[str]]]:
    """Header and cells of a task's table: a row per variant, averages over seeds."""
    header, _ = overall_table(results)
    header = [header[0], "SFT, %", *header[1:]]
    rows = []
    for row in results["per_task"]:
        if row["task"] == task:
            sft = _rate(row["sft"])
            rows.append([row["variant"], sft, *_cells(row, results), f"{row['runs']} of {_seeds(results)}"])
    return header, rows


def cost_table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the costs of a run: a row per variant, averages over tasks and seeds."""
    names = {
        "env_steps": "env steps",
        "env_steps_flat": "flat groups would have needed",
        "renders": "images",
        "vlm_prefixes": "VLM prefixes",
        "gradient_chunks": "chunks with gradient",
        "training_s": "training, s",
    }
    rows = []
    for row in results["overall"]:
        costs = row["costs"]
        rows.append([row["variant"], *(_count(costs[name]) if costs else "" for name in names)])
    return ["variant", *names.values()], rows


def markdown(results: Results) -> str:
    """The page table.md."""
    study = results["study"]
    tasks = [task["task"] for task in study["tasks"]]
    lines = [
        f"# {study['name']}",
        "",
        f"{plural(len(study['variants']), 'variant')} × {plural(len(tasks), 'task')} × "
        f"{plural(len(study['seeds']), 'seed')}, {_count(study['env_step_budget'])} env steps of training each, "
        f"{plural(study['test_episodes'], 'test scene')} per run, the same for all. {_sft_sentence(results)}",
        *(["", made] if (made := stand_ins_text(results["stand_ins"])) else []),
        "",
        *_markdown_table(*overall_table(results)),
        "",
        "## Costs of a run",
        "",
        *_markdown_table(*cost_table(results)),
    ]
    for task in tasks:
        lines += ["", f"## {task}", "", *_markdown_table(*task_table(results, task))]
    return "\n".join([*lines, "", "## How to read this", "", *_notes(results)]) + "\n"


def terminal_table(results: Results) -> Table:
    """The first columns of the main table, for a terminal."""
    _, rows = overall_table(results)
    title = f"{results['study']['name']}: test success, averages over tasks and seeds"
    table = Table(title=title, title_justify="left", pad_edge=False)
    table.add_column("variant", overflow="fold")
    for name in ("success, %", "gain over SFT (95 %)", f"difference to {results['reference']} (95 %)", "runs"):
        table.add_column(Text(name), justify="right")
    for row in rows:
        table.add_row(*(Text(cell) for cell in (*row[:4], row[-1])))
    table.caption = stand_ins_text(results["stand_ins"])
    return table


def missing_text(results: Results) -> str:
    """What is not finished yet, in a sentence; empty when nothing is missing."""
    missing: Sequence[str] = results["missing"]
    if not missing:
        return ""
    shown = ", ".join(missing[:MISSING_SHOWN]) + (", ..." if len(missing) > MISSING_SHOWN else "")
    return f"Missing: {len(missing)} of {plural(results['runs_planned'], 'run')}: {shown}"


def _cells(row: Mapping[str, Any], results: Results) -> list[str]:
    """The cells that overall and task tables have in common."""
    if not row["runs"]:
        return [""] * 7
    reference = row["variant"] == results["reference"]
    compared = reference or row["difference"] is not None
    costs = row["costs"]
    return [
        _rate(row["success"]),
        _change(row["gain"]),
        "reference" if reference else _change(row["difference"]),
        _env_steps(row["env_steps_to_reference"], results) if compared else "",
        _env_steps(row["env_steps_to_target"], results) if compared else "",
        _count(costs["training_s"]),
        f"{100 * costs['shared_share']:.0f} %",
    ]


def _rate(estimate: Mapping[str, float] | None) -> str:
    return "" if estimate is None else f"{100 * estimate['value']:.1f}"


def _change(estimate: Mapping[str, float] | None) -> str:
    if estimate is None:
        return ""
    value, low, high = (f"{100 * estimate[name]:+.1f}" for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def _env_steps(value: float | None, results: Results) -> str:
    if value is None:
        return NEVER
    return f"{_count(value)} ({100 * value / results['study']['env_step_budget']:.0f} %)"


def _count(value: float) -> str:
    return f"{round(value):,}"


def _planned(results: Results) -> int:
    return len(results["study"]["tasks"]) * _seeds(results)


def _seeds(results: Results) -> int:
    return len(results["study"]["seeds"])


def _sft_sentence(results: Results) -> str:
    sft = next(row["sft"] for row in results["overall"] if row["variant"] == results["reference"])
    if sft is None:
        return ""
    low, high = (f"{100 * sft[name]:.0f}" for name in ("low", "high"))
    return f"Success after SFT: {_rate(sft)} % ({low} to {high})."


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(header) + " |",
        "|---" + "|---:" * (len(header) - 1) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


def _notes(results: Results) -> list[str]:
    seeds = _seeds(results)
    some = "With one seed they cover the scenes only." if seeds == 1 else ""
    notes = [
        "- Success is the first success within the horizon, on test scenes, of the policy that was best on the "
        "validation scenes. Averages weigh every task the same.",
        "- Gain and difference are paired: scene by scene, and the difference also seed by seed. Intervals come from a "
        "stratified bootstrap that resamples the seeds within each task and the test scenes within each run. " + some,
        f"- Env steps to a level: where the mean validation curve first reaches it, between two marks on a straight "
        f'line, with the share of the budget; "{NEVER}": never. The levels are the mean validation success of '
        f"{results['reference']} at the end, and the one before training plus {100 * TARGET_GAIN:.1f} points.",
        "- Training seconds are rollouts and updates, without validation, on one core of a machine that ran other jobs "
        "at the same time. Shared: the part of the episodes' env steps that was executed for several members at once.",
    ]
    environment = results["environment"]
    z1, commit = environment["z1"]["version"], environment["z1"]["commit"]
    notes.append(
        f"- z1 {z1}"
        + (f" ({commit[:10]}{', modified' if environment['z1']['modified'] else ''})" if commit else "")
        + f", torch {environment['torch']}, {environment['cpu']}, {environment['cores']} cores."
    )
    missing = missing_text(results)
    return notes + ([f"- {missing}"] if missing else [])
