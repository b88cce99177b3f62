"""Statistics of vector features: exact numbers, JSON, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from z1.data.stats import FeatureStats, compute_stats
from z1.errors import CheckpointError, DatasetError

FIXTURES = Path(__file__).parent / "fixtures"


def test_compute_stats_hand_worked() -> None:
    # Column 0 is 0, 1, ..., 100: mean 50, 1 % quantile 1, 99 % quantile 99, population variance (101^2 - 1) / 12 = 850.
    # Column 1 is constant.
    values = np.stack([np.arange(101.0), np.full(101, 3.0)], axis=1).astype(np.float32)
    stats = compute_stats(values)
    assert stats.mean == (50.0, 3.0)
    assert stats.min == (0.0, 3.0)
    assert stats.max == (100.0, 3.0)
    assert stats.q01 == pytest.approx((1.0, 3.0))
    assert stats.q99 == pytest.approx((99.0, 3.0))
    assert stats.std == pytest.approx((850.0**0.5, 0.0))
    assert stats.count == 101
    assert stats.dim == 2


def test_rows_in_another_order_give_the_same_quantiles() -> None:
    values = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    assert compute_stats(values).q99 == compute_stats(values[::-1]).q99


def test_json_round_trip_is_exact() -> None:
    stats = compute_stats(np.random.default_rng(1).normal(size=(50, 4)).astype(np.float32))
    assert FeatureStats.from_json(json.loads(json.dumps(stats.to_json())), "here") == stats
    partial = FeatureStats(q01=(0.0,), q99=(1.0,))
    assert partial.to_json() == {"q01": [0.0], "q99": [1.0], "count": 0}
    assert FeatureStats.from_json(partial.to_json(), "here") == partial


def test_reads_openpi_and_lerobot_files() -> None:
    openpi = json.loads((FIXTURES / "openpi_norm_stats.json").read_text())["norm_stats"]["actions"]
    stats = FeatureStats.from_json(openpi, "norm_stats.json: actions", CheckpointError)
    assert stats.dim == 5
    assert stats.min is None
    assert FeatureStats.from_json({**openpi, "q01": None}, "x").q01 is None
    lerobot = json.loads((FIXTURES / "lerobot_v3_sample/dataset/meta/stats.json").read_text())["action"]
    assert FeatureStats.from_json(lerobot, "stats.json: action").count == 109


def test_refuses_what_is_not_statistics() -> None:
    with pytest.raises(DatasetError, match=r"^stats.json: action: expected an object with mean, std, .* got list$"):
        FeatureStats.from_json([1.0], "stats.json: action")
    with pytest.raises(
        CheckpointError, match=r"here: expected lists of finite numbers, one per dim: .*differ in width"
    ):
        FeatureStats.from_json({"mean": [1.0], "std": [1.0, 2.0]}, "here", CheckpointError)
    with pytest.raises(DatasetError, match="q99 that is not finite"):
        FeatureStats.from_json({"q99": [float("nan")]}, "here")
    with pytest.raises(DatasetError, match=r"q01 > q99 in dims \[1\]"):
        FeatureStats.from_json({"q01": [0.0, 2.0], "q99": [1.0, 1.0]}, "here")
    with pytest.raises(DatasetError, match="negative std"):
        FeatureStats.from_json({"std": [-1.0]}, "here")


def test_compute_stats_refuses_nothing_and_nan() -> None:
    with pytest.raises(DatasetError, match="statistics need at least one frame, got none"):
        compute_stats(np.zeros((0, 3), dtype=np.float32))
    values = np.zeros((4, 3), dtype=np.float32)
    values[2, 1] = np.nan
    with pytest.raises(DatasetError, match="expected finite values, got nan in frame 2, dim 1; drop that episode"):
        compute_stats(values)
