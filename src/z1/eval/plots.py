"""Line plots of the report, as inline SVG whose colours follow the page's light or dark theme."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

MUTED, LINE = "#66717f", "#dfe4ea"
MAIN, SECOND = "#0f7b6c", "#c2700a"
THEME = {MUTED: "var(--muted)", LINE: "var(--line)", MAIN: "var(--main)", SECOND: "var(--second)"}
"""Colours of the light theme, and the CSS variables that take their place in the SVG."""

FONT_SIZE = 9.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One line of a plot.

    Attributes:
        label: Name, for the legend that the page shows beside the plot.
        x: Positions.
        y: Values.
        low: Lower edge of a band around the line, or empty.
        high: Upper edge of the band, or empty.
        second: Whether it takes the second colour.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    second: bool = False


def short_number(value: float, _position: int = 0) -> str:
    """A number for an axis: 1500 as 1.5k, 2000000 as 2M, tiny ones in powers of ten."""
    size = abs(value)
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= limit:
            return f"{value / limit:.3g}{suffix}"
    return f"{value:.3g}".replace("e-0", "e-")


def time_scale(seconds: float) -> tuple[float, str]:
    """Divisor and unit that suit a duration."""
    if seconds >= 2 * 3600:
        return 3600.0, "hours"
    return (60.0, "minutes") if seconds >= 120 else (1.0, "seconds")


def success_plot(curves: Sequence[Curve], x_label: str) -> Figure:
    """Success rates in 0..1 over x, shown in percent from 0 to 100."""
    figure, axes = _axes(4.6, 2.7)
    _draw(axes, [_in_percent(curve) for curve in curves])
    axes.set_ylim(0, 103)
    axes.set_yticks([0, 25, 50, 75, 100])
    axes.set_xlabel(x_label)
    axes.set_ylabel("success, %")
    return figure


def line_plot(curves: Sequence[Curve], x_label: str, y_label: str = "", *, log: bool = False) -> Figure:
    """Values over x, full size.

    Args:
        curves: The lines.
        x_label: Text under the axis.
        y_label: Text beside the axis.
        log: Whether the y axis is logarithmic; ignored unless all values are positive.
    """
    figure, axes = _axes(4.6, 2.7)
    _draw(axes, curves)
    if log and all(y > 0 for curve in curves for y in curve.y):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_minor_locator(NullLocator())
    _plain_y(axes)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    return figure


def small_plot(curve: Curve, x_label: str) -> Figure:
    """One diagnostic, for a grid of small plots; the y axis begins at 0 unless a value is negative."""
    figure, axes = _axes(3.1, 1.7)
    _draw(axes, [curve])
    if min(curve.y) >= 0:
        axes.set_ylim(0, 1.08 * max(curve.y) or 1.0)
    _plain_y(axes)
    axes.yaxis.set_major_locator(MaxNLocator(3))
    axes.set_xlabel(x_label)
    return figure


def to_svg(figure: Figure, title: str) -> str:
    """The figure as an SVG element for an HTML page: theme colours, the page's font, no links.

    Args:
        figure: The figure.
        title: Text for readers who cannot see it; must be free of markup characters.
    """
    assert not set(title) & set("<>&\"'"), title
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(
            buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for colour, variable in THEME.items():
        text = text.replace(colour, variable)
    text = re.sub(r"font(-family)?: [^;\"]*;?", _font, text)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text).replace("xlink:href", "href")
    return re.sub(
        r"<svg[^>]*?viewBox=\"([^\"]*)\"[^>]*>", rf'<svg viewBox="\1" role="img" aria-label="{title}">', text, count=1
    )


def _font(match: re.Match[str]) -> str:
    """Keeps the size of a CSS font declaration and drops the family."""
    size = re.search(r"([\d.]+)px", match.group(0))
    return f"font-size: {size.group(1)}px;" if size else ""


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=FONT_SIZE, length=0)
    axes.xaxis.label.set(color=MUTED, fontsize=FONT_SIZE)
    axes.yaxis.label.set(color=MUTED, fontsize=FONT_SIZE)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(short_number))
    return figure, axes


def _plain_y(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(FuncFormatter(short_number))


def _in_percent(curve: Curve) -> Curve:
    def scaled(values: Sequence[float]) -> list[float]:
        return [100 * v for v in values]

    return Curve(
        label=curve.label,
        x=curve.x,
        y=scaled(curve.y),
        low=scaled(curve.low),
        high=scaled(curve.high),
        second=curve.second,
    )


def _draw(axes: Axes, curves: Sequence[Curve]) -> None:
    for curve in curves:
        colour = SECOND if curve.second else MAIN
        if len(curve.low):
            axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.16, linewidth=0)
        marker = "o" if len(curve.x) <= 30 else ""
        axes.plot(curve.x, curve.y, color=colour, linewidth=1.7, marker=marker, markersize=3.2)
