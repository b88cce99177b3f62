"""The figure of a study: validation success against env steps and against training time, and final success."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from z1.eval.plots import LINE, MUTED, short_number, time_scale
from z1.files import atomic_file

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#882255", "#999933")
"""Told apart by people with any common colour blindness (Okabe and Ito; the last two by Tol)."""

REFERENCE = "#222222"
"""Colour of the reference variant, whose line is dashed."""

TURNS = (("o", "-", ""), ("s", "-.", "///"), ("^", ":", "..."))
"""Marker, line style and hatching of bars, which change when the colours begin again."""

SLOTS = 6
"""Bars that there is room for at least, so that few do not grow fat."""

FONT_SIZE = 9.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How a variant is drawn.

    Attributes:
        colour: Colour.
        marker: Marker of points.
        line: Line style.
        hatch: Hatching of the bar.
    """

    colour: str
    marker: str
    line: str
    hatch: str


def looks(variants: list[str], reference: str) -> dict[str, Look]:
    """How each variant is drawn: the reference dark and dashed, the others in colours, then with other lines too."""
    found, number = {}, 0
    for variant in variants:
        if variant == reference:
            found[variant] = Look(colour=REFERENCE, marker="o", line="--", hatch="")
            continue
        turn, place = divmod(number, len(COLOURS))
        marker, line, hatch = TURNS[turn % len(TURNS)]
        found[variant] = Look(colour=COLOURS[place], marker=marker, line=line, hatch=hatch)
        number += 1
    return found


def write_figure(results: Mapping[str, Any], path: Path) -> None:
    """Writes figure.png, 150 dots per inch.

    Args:
        results: Schema ``z1.ablation/1``.
        path: The file.

    Raises:
        RunFolderError: It cannot be written.
    """
    with atomic_file(path) as temporary:
        make_figure(results).savefig(temporary, dpi=150, format="png", facecolor="white")


def make_figure(results: Mapping[str, Any]) -> Figure:
    """Three panels with one legend below them."""
    variants = [row["variant"] for row in results["overall"]]
    style = looks(variants, results["reference"])
    columns = min(4, len(variants))
    legend_rows = math.ceil(len(variants) / columns)
    figure = Figure(figsize=(13.0, max(4.2, 1.6 + 0.26 * len(variants)) + 0.26 * legend_rows), layout="constrained")
    by_steps, by_time, bars = figure.subplots(1, 3, width_ratios=[1.15, 1.15, 1.0])
    curves = {variant: curve for variant, curve in results["curves"].items() if curve}
    divisor, unit = time_scale(max((curve[-1]["seconds"] for curve in curves.values()), default=0.0))
    for axes, key, divide, label in (
        (by_steps, "env_steps", 1.0, "env steps of training"),
        (by_time, "seconds", divisor, f"training time, {unit}"),
    ):
        _frame(axes, label, "validation success, %")
        for variant in sorted(curves, key=lambda name: name == results["reference"]):  # the reference on top
            _curve(axes, curves[variant], key, divide, variant, style[variant])
    _bars(bars, results, style)
    handles, labels = by_steps.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: variants.index(labels[i]))
    if labels:
        figure.legend(
            [handles[i] for i in order],
            [labels[i] + (" (reference)" if labels[i] == results["reference"] else "") for i in order],
            loc="outside lower center",
            ncols=columns,
            frameon=False,
            handlelength=3.2,
            fontsize=FONT_SIZE,
        )
    done = results["runs_planned"] - len(results["missing"])
    title = f"{results['study']['name']}: {done} of {results['runs_planned']} runs, bands and bars 95 %"
    figure.suptitle(title, fontsize=FONT_SIZE + 2, x=0.01, ha="left")
    return figure


def _frame(axes: Axes, x_label: str, y_label: str) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=FONT_SIZE, length=0)
    axes.set_xlabel(x_label, color=MUTED, fontsize=FONT_SIZE)
    axes.set_ylabel(y_label, color=MUTED, fontsize=FONT_SIZE)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(short_number))


def _curve(axes: Axes, curve: list[dict[str, float]], key: str, divisor: float, label: str, look: Look) -> None:
    x = [point[key] / divisor for point in curve]
    y, low, high = ([100 * point[name] for point in curve] for name in ("success", "low", "high"))
    axes.fill_between(x, low, high, color=look.colour, alpha=0.07, linewidth=0)
    axes.plot(
        x, y, color=look.colour, linestyle=look.line, marker=look.marker, markersize=4.5, linewidth=1.8, label=label
    )


def _bars(axes: Axes, results: Mapping[str, Any], style: Mapping[str, Look]) -> None:
    """Final test success with its interval, a bar per variant, and the SFT policy's as a line."""
    rows = [row for row in results["overall"] if row["success"] is not None]
    _frame(axes, "test success, %", "")
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x", color=LINE, linewidth=0.8)
    axes.set_xlim(0, 100)
    axes.set_yticks(range(len(rows)), [row["variant"] for row in rows])
    axes.set_ylim(max(len(rows), SLOTS) - 0.5, -0.5)
    for place, row in enumerate(rows):
        value, low, high = (100 * row["success"][name] for name in ("value", "low", "high"))
        look = style[row["variant"]]
        axes.barh(place, value, height=0.66, color=look.colour, hatch=look.hatch, edgecolor="white", linewidth=0)
        axes.errorbar(
            value, place, xerr=[[value - low], [high - value]], color=REFERENCE, alpha=0.55, capsize=2.5, linewidth=1.2
        )
        axes.text(102, place, f"{value:.1f}", va="center", color=MUTED, fontsize=FONT_SIZE)
    sft = [row["sft"]["value"] for row in rows if row["variant"] == results["reference"] and row["sft"]]
    if sft:
        axes.axvline(100 * sft[0], color=MUTED, linestyle=":", linewidth=1.4)
        above = axes.get_xaxis_transform()
        axes.text(100 * sft[0], 1.01, "SFT", color=MUTED, fontsize=FONT_SIZE, ha="center", va="bottom", transform=above)
