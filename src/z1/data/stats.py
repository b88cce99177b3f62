"""Statistics of one vector feature (proprioceptive state or action), per dim.

Pure: numpy only, no files. Quantiles are exact and are taken over all rows. LeRobot's own ``stats.json`` instead holds
an envelope (the lowest of the episodes' low quantiles, the highest of their high ones), and openpi estimates quantiles
from histograms; numbers of the three therefore differ a little, and a policy keeps the ones it was trained with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from z1.errors import DatasetError, Z1Error

VECTOR_FIELDS = ("mean", "std", "min", "max", "q01", "q99")
"""The per-dim quantities of a ``FeatureStats``, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureStats:
    """Statistics of one feature, one number per dim.

    A quantity that its source did not hold (openpi files have no minimum, old LeRobot files no quantiles) is None;
    whoever needs it says so, see ``z1.data.transforms.Normalizer``.

    Attributes:
        mean: Mean of each dim.
        std: Standard deviation of each dim (population, divided by the count).
        min: Smallest value of each dim.
        max: Largest value of each dim.
        q01: 1 % quantile of each dim.
        q99: 99 % quantile of each dim.
        count: Rows the numbers were computed from; 0 when unknown.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    min: tuple[float, ...] | None = None
    max: tuple[float, ...] | None = None
    q01: tuple[float, ...] | None = None
    q99: tuple[float, ...] | None = None
    count: int = 0

    def __post_init__(self) -> None:
        vectors = {name: vector for name in VECTOR_FIELDS if (vector := self.vector(name)) is not None}
        widths = {name: len(vector) for name, vector in vectors.items()}
        if len(set(widths.values())) > 1:
            raise ValueError(f"statistics of one feature differ in width: {widths}")
        for name, vector in vectors.items():
            if not all(math.isfinite(number) for number in vector):
                raise ValueError(f"statistics hold a {name} that is not finite: {vector}")
        for low, high in (("min", "max"), ("q01", "q99")):
            if low in vectors and high in vectors:
                swapped = [i for i, (a, b) in enumerate(zip(vectors[low], vectors[high], strict=True)) if a > b]
                if swapped:
                    raise ValueError(f"statistics have {low} > {high} in dims {swapped}")
        if any(number < 0 for number in vectors.get("std", ())):
            raise ValueError(f"statistics hold a negative std: {vectors['std']}")

    @property
    def dim(self) -> int:
        """Number of dims; 0 when nothing is known."""
        return next((len(vector) for name in VECTOR_FIELDS if (vector := self.vector(name)) is not None), 0)

    def vector(self, name: str) -> tuple[float, ...] | None:
        """One quantity of ``VECTOR_FIELDS`` by name."""
        assert name in VECTOR_FIELDS, name
        return {"mean": self.mean, "std": self.std, "min": self.min, "max": self.max, "q01": self.q01, "q99": self.q99}[
            name
        ]

    def to_json(self) -> dict[str, Any]:
        """A JSON value; unknown quantities are left out."""
        value: dict[str, Any] = {
            name: list(vector) for name in VECTOR_FIELDS if (vector := self.vector(name)) is not None
        }
        return {**value, "count": self.count}

    @classmethod
    def from_json(cls, value: Any, where: str, error: type[Z1Error] = DatasetError) -> FeatureStats:
        """Reads ``to_json``'s value; LeRobot's ``count: [n]`` and openpi's ``q01: null`` are understood.

        Other keys are ignored.

        Args:
            value: The JSON value, an object of lists of numbers.
            where: What it is, for the error message, for example ``meta/stats.json: action``.
            error: Class of the error to raise.

        Raises:
            Z1Error: Of the given class, when the value is not a set of statistics.
        """
        if not isinstance(value, Mapping):
            raise error(f"{where}: expected an object with {', '.join(VECTOR_FIELDS)}, got {type(value).__name__}")
        vectors: dict[str, tuple[float, ...] | None] = dict.fromkeys(VECTOR_FIELDS)
        try:
            for name in VECTOR_FIELDS:
                if value.get(name) is not None:
                    vectors[name] = tuple(float(number) for number in value[name])
            count = value.get("count", 0)
            return cls(**vectors, count=int(count[0] if isinstance(count, list) else count))
        except (TypeError, ValueError, IndexError) as problem:
            raise error(f"{where}: expected lists of finite numbers, one per dim: {problem}") from None


def compute_stats(values: np.ndarray) -> FeatureStats:
    """Exact statistics of a feature.

    Args:
        values: Float ``[N, dim]``, N >= 1 rows.

    Returns:
        Statistics in float64; quantiles by linear interpolation between order statistics.

    Raises:
        DatasetError: No rows, or values that are not finite.
    """
    assert values.ndim == 2, values.shape
    if len(values) == 0:
        raise DatasetError("statistics need at least one frame, got none; record or add episodes first")
    wide = values.astype(np.float64)
    if not np.isfinite(wide).all():
        row, dim = np.argwhere(~np.isfinite(wide))[0]
        raise DatasetError(f"expected finite values, got {wide[row, dim]} in frame {row}, dim {dim}; drop that episode")
    q01, q99 = np.quantile(wide, (0.01, 0.99), axis=0)
    return FeatureStats(
        mean=_floats(wide.mean(axis=0)),
        std=_floats(wide.std(axis=0)),
        min=_floats(wide.min(axis=0)),
        max=_floats(wide.max(axis=0)),
        q01=_floats(q01),
        q99=_floats(q99),
        count=len(values),
    )


def _floats(vector: np.ndarray) -> tuple[float, ...]:
    return tuple(float(number) for number in vector)
