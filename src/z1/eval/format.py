"""Numbers as text, the same in the report, the tables and the advice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

NARROW = "\u202f"
"""Narrow no-break space between a number and its unit."""


def percent(rate: float | None, *, sign: bool = False, unit: str = "%") -> str:
    """A rate in 0..1 in percent, with one decimal where it is not whole; a dash for None."""
    if rate is None:
        return "–"
    value = round(100 * rate, 1)
    number = f"{value:{'+' if sign else ''}.{0 if value == int(value) else 1}f}".replace("-", "−")
    return f"{number}{NARROW}{unit}" if unit else number


def interval(low: float | None, high: float | None, *, sign: bool = False) -> str:
    """Limits in 0..1 as whole percents without a unit, ``71–88``, or ``+28 to +49`` with signs."""
    if low is None or high is None:
        return "–"
    first, last = (f"{round(100 * v):{'+' if sign else ''}d}".replace("-", "−") for v in (low, high))
    return f"{first} to {last}" if sign else f"{first}–{last}"


def p_value(value: float) -> str:
    """``p = 0.032`` or ``p < 0.0001``."""
    if value < 0.0001:
        return "p < 0.0001"
    return f"p = {value:.2g}"


def count(value: float) -> str:
    """A whole number with thin spaces between thousands."""
    return f"{round(value):,}".replace(",", NARROW)


def plural(number: int, singular: str) -> str:
    """``1 scene``, ``2 scenes``."""
    return f"{count(number)} {singular}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """A duration with the two leading units: ``2 h 05 min``, ``3 min 20 s``, ``12.3 s``."""
    if seconds < 60:
        return f"{seconds:.1f}{NARROW}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{NARROW}min {rest:02d}{NARROW}s"
    return f"{minutes // 60}{NARROW}h {minutes % 60:02d}{NARROW}min"


def number(value: float) -> str:
    """A number with up to four significant digits."""
    return f"{value:.4g}"


def flatten(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted name, text) rows; lists of plain values stay on one line."""
    if isinstance(value, Mapping):
        return [
            row for key, inner in value.items() for row in flatten(inner, f"{prefix}.{key}" if prefix else str(key))
        ]
    if isinstance(value, list) and any(isinstance(item, (Mapping, list)) for item in value):
        return [row for i, inner in enumerate(value) for row in flatten(inner, f"{prefix}[{i}]")]
    if isinstance(value, list):
        return [(prefix, ", ".join(_text(item) for item in value) or "none")]
    return [(prefix, _text(value))]


def _text(value: Any) -> str:
    if value is None:
        return "not known"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) if value != "" else "(empty)"


def stand_ins_text(found: Iterable[str]) -> str:
    """What results must say when the simulator ran on stand-ins for its assets; empty when it did not.

    Args:
        found: What the simulator said in each evaluation; empty where its assets were real.
    """
    return " ".join(f"Made with stand-ins: {text}." for text in dict.fromkeys(found) if text)
