"""The figure of a suite: success after SFT and after RL of every task, with intervals, by category."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from z1.ablate.figure import COLOURS, FONT_SIZE
from z1.files import atomic_file
from z1.suite.table import stand_ins

ROW_INCHES, WIDTH_INCHES = 0.32, 8.0
BAR = 0.38


def write_figure(results: Mapping[str, Any], path: Path) -> None:
    """Draws the tasks with any result; nothing is written when there is none."""
    rows = [row for row in results["tasks"] if row.get("sft")]
    if not rows:
        return
    with matplotlib.rc_context({"font.size": FONT_SIZE}), atomic_file(path) as temporary:
        make_figure(results, rows).savefig(temporary, format="png", dpi=150)


def make_figure(results: Mapping[str, Any], rows: list[Mapping[str, Any]]) -> Figure:
    """Two bars per task, and two for the average."""
    average = results["average"]
    entries: list[tuple[str, Mapping[str, Any]]] = [(row["task"].split("/", 1)[1], row) for row in rows]
    if average["tasks"]:
        entries.append(("average", average))
    figure = Figure(figsize=(WIDTH_INCHES, 1.0 + ROW_INCHES * len(entries)), layout="constrained")
    axes = figure.add_subplot()
    for offset, key, label, colour in ((-BAR / 2, "sft", "SFT", "#999999"), (BAR / 2, "rl", "RL", COLOURS[0])):
        for position, (_, row) in enumerate(entries):
            estimate = row.get(key)
            if not estimate or estimate["value"] is None:
                continue
            value, low, high = (100.0 * estimate[name] for name in ("value", "low", "high"))
            axes.barh(position + offset, value, BAR, color=colour, label=label)
            axes.plot((low, high), (position + offset,) * 2, color="#222222", linewidth=1.0)
    axes.set_yticks(range(len(entries)), [name for name, _ in entries])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("success on test scenes, % (95 % interval)")
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    axes.legend(list(unique.values()), list(unique), loc="lower right", frameon=True)
    made = "\nwith stand-ins for assets, not comparable" if stand_ins(results) else ""
    axes.set_title(results["suite"]["name"] + made, loc="left")
    return figure
