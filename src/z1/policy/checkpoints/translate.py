"""One normalisation in another program's words: the same function, by other statistics where the formulas differ."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from z1.data.stats import VECTOR_FIELDS, FeatureStats
from z1.errors import ConfigError
from z1.policy.config import ProcessorConfig

EPSILON = 1e-6
"""What openpi adds to every divisor; LeRobot adds nothing that counts."""

LEROBOT_MODES = {"QUANTILES": "quantile_lerobot", "MEAN_STD": "mean_std"}
"""LeRobot's normalisations that z1 knows."""

Both = tuple[FeatureStats | None, FeatureStats]


def to_lerobot(processor: ProcessorConfig) -> tuple[str, Both]:
    """LeRobot's name of a normalisation, and statistics with which it computes the same.

    openpi's formulas have divisors that are larger by 1e-6; that much is added to q99 or std. The statistics are
    rounded to float32, in which LeRobot stores them.
    """
    name = "MEAN_STD" if processor.normalization.startswith("mean_std") else "QUANTILES"
    field = "std" if name == "MEAN_STD" else "q99"
    amount = EPSILON if processor.normalization.endswith("_openpi") else 0.0
    state, action = (
        None if stats is None else rounded(_shifted(stats, field, amount))
        for stats in (processor.state_stats, processor.action_stats)
    )
    assert action is not None
    return name, (state, action)


def to_openpi(processor: ProcessorConfig) -> tuple[str, Both]:
    """z1's name of the openpi normalisation that computes the same, and the statistics for it.

    Raises:
        ConfigError: A dim of LeRobot's formulas varies less than openpi's can express, or there are no statistics
            that openpi insists on.
    """
    mode = processor.normalization
    z_score = mode.startswith("mean_std")
    field = "std" if z_score else "q99"
    results: list[FeatureStats | None] = []
    for name, stats in (("state", processor.state_stats), ("action", processor.action_stats)):
        if stats is None:
            results.append(None)
            continue
        if stats.mean is None or stats.std is None:
            raise ConfigError(f"the statistics of the {name} have no mean and std, which openpi's files must have")
        if not mode.endswith("_openpi"):
            spread = np.array(stats.std if z_score else np.subtract(stats.q99 or (), stats.q01 or ()))
            if (spread <= EPSILON).any():
                raise ConfigError(
                    f"{name} dim {int(np.argmin(spread))} hardly varies ({field} spread {float(spread.min()):.3g}); "
                    "openpi's normalisation cannot express that, write another format"
                )
            stats = _shifted(stats, field, -EPSILON)
        results.append(stats)
    state, action = results
    assert action is not None
    return "mean_std_openpi" if z_score else "quantile_openpi", (state, action)


def rounded(stats: FeatureStats) -> FeatureStats:
    """Statistics rounded to float32, without their count."""
    vectors = {
        name: tuple(float(number) for number in np.asarray(vector, np.float32))
        for name in VECTOR_FIELDS
        if (vector := stats.vector(name)) is not None
    }
    return FeatureStats(**vectors)  # type: ignore[arg-type]


def _shifted(stats: FeatureStats, field: str, amount: float) -> FeatureStats:
    vector = stats.vector(field)
    if vector is None or amount == 0.0:
        return stats
    return replace(stats, **{field: tuple(number + amount for number in vector)})  # type: ignore[arg-type]
