"""Normalisation against openpi's and LeRobot's own numbers, and the refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from z1.data.stats import FeatureStats, compute_stats
from z1.data.transforms import NORMALIZER_MODES, Normalizer, pad_dims, unpad_dims
from z1.errors import CheckpointError, ConfigError, UnknownNameError

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return load_file(FIXTURES / "quantile_norm.safetensors")


def quantiles(golden: dict[str, np.ndarray], dims: slice = slice(None)) -> FeatureStats:
    return FeatureStats(q01=tuple(golden["q01"][dims].tolist()), q99=tuple(golden["q99"][dims].tolist()))


def test_openpi_parity(golden: dict[str, np.ndarray]) -> None:
    normalizer = Normalizer("quantile_openpi", quantiles(golden))
    for key in ("state", "action"):
        got = normalizer.normalize(golden[key])
        assert got.dtype == np.float64
        np.testing.assert_allclose(got, golden[f"openpi.{key}_norm"], rtol=1e-12)
    np.testing.assert_allclose(normalizer.unnormalize(golden["action"]), golden["openpi.action_unnorm"], rtol=1e-12)
    unpadded = unpad_dims(golden["action_padded_to_8"], 5)
    np.testing.assert_allclose(
        normalizer.unnormalize(unpadded), golden["openpi.action_unnorm_padded_to_8"][..., :5], rtol=1e-12
    )


def test_openpi_stats_file_gives_the_same_numbers(golden: dict[str, np.ndarray]) -> None:
    value = json.loads((FIXTURES / "openpi_norm_stats.json").read_text())["norm_stats"]["actions"]
    normalizer = Normalizer("quantile_openpi", FeatureStats.from_json(value, "norm_stats.json"))
    np.testing.assert_allclose(normalizer.normalize(golden["action"]), golden["openpi.action_norm"], rtol=1e-12)


def test_lerobot_parity(golden: dict[str, np.ndarray]) -> None:
    # All five dims by the reference's formulas, also the two that explode.
    normalizer = Normalizer("quantile_lerobot", quantiles(golden), allow_constant_dims=True)
    for key in ("state", "action"):
        got = normalizer.normalize(golden[key])
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, golden[f"lerobot.{key}_norm"], rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(normalizer.unnormalize(golden["action"]), golden["lerobot.action_unnorm"], atol=1e-6)
    back = normalizer.unnormalize(normalizer.normalize(golden["action"]))
    np.testing.assert_allclose(back, golden["lerobot.action_unnorm_of_norm"], atol=1e-6)


def test_the_two_quantile_modes_differ(golden: dict[str, np.ndarray]) -> None:
    # Guards the parity tests above: exchanging the modes must be visible in them.
    dims = slice(0, 3)
    openpi = Normalizer("quantile_openpi", quantiles(golden, dims)).normalize(golden["state"][:, dims])
    assert np.abs(openpi - golden["lerobot.state_norm"][:, dims]).max() > 5e-7


def test_mean_std_hand_worked() -> None:
    normalizer = Normalizer("mean_std", FeatureStats(mean=(1.0, -2.0), std=(2.0, 0.5)))
    values = np.array([[5.0, -2.5], [1.0, -2.0]], dtype=np.float32)
    np.testing.assert_allclose(normalizer.normalize(values), [[2.0, -1.0], [0.0, 0.0]], atol=1e-6)
    np.testing.assert_allclose(normalizer.unnormalize(np.array([[2.0, -1.0]], dtype=np.float32)), [[5.0, -2.5]])


@pytest.mark.parametrize("mode", NORMALIZER_MODES)
def test_torch_equals_numpy_and_round_trips(mode: str) -> None:
    values = np.random.default_rng(0).normal(size=(6, 7, 4)).astype(np.float32)
    normalizer = Normalizer(mode, compute_stats(values.reshape(-1, 4)))
    tensor = torch.from_numpy(values)
    got = normalizer.normalize(tensor)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), normalizer.normalize(values).astype(np.float32), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(normalizer.unnormalize(got).numpy(), values, atol=1e-5)
    np.testing.assert_allclose(
        normalizer.unnormalize(got).numpy(),
        normalizer.unnormalize(got.numpy()).astype(np.float32),
        rtol=1e-6,
        atol=1e-6,
    )


def test_values_outside_the_quantiles_are_not_clipped() -> None:
    normalizer = Normalizer("quantile_openpi", FeatureStats(q01=(0.0,), q99=(1.0,)))
    assert normalizer.normalize(np.array([3.0]))[0] == pytest.approx(5.0, abs=1e-4)
    assert normalizer.unnormalize(np.array([3.0]))[0] == pytest.approx(2.0, abs=1e-4)


def test_missing_statistics_are_never_identity() -> None:
    with pytest.raises(ConfigError) as caught:
        Normalizer("quantile_openpi", FeatureStats(mean=(0.0,), std=(1.0,)), name="action")
    assert str(caught.value) == (
        "normalisation of action: mode 'quantile_openpi' needs q01 and q99, but the statistics lack q01 and q99; "
        "compute them from the dataset or choose another mode"
    )
    with pytest.raises(ConfigError, match="the statistics lack std"):
        Normalizer("mean_std", FeatureStats(mean=(0.0,)))
    with pytest.raises(ConfigError, match="the statistics lack mean and std"):
        Normalizer("mean_std", None, name="state")
    with pytest.raises(UnknownNameError, match="unknown normalisation mode 'quantile'; did you mean"):
        Normalizer("quantile", FeatureStats())


def test_wrong_width_is_refused() -> None:
    normalizer = Normalizer("quantile_openpi", FeatureStats(q01=(0.0, 0.0), q99=(1.0, 1.0)), name="state")
    for call in (normalizer.normalize, normalizer.unnormalize):
        with pytest.raises(CheckpointError) as caught:
            call(np.zeros((3, 4), dtype=np.float32))
        assert str(caught.value) == (
            "normalisation of state: the statistics have 2 dims, got an array of shape (3, 4); "
            "use the state layout the policy was trained with"
        )
    with pytest.raises(CheckpointError, match="got an array of shape"):
        normalizer.normalize(torch.zeros(1))


def test_constant_dims() -> None:
    constant = compute_stats(np.tile(np.array([[0.3]]), (10, 1)) * np.array([[1.0, 1.0]]) + np.array([[0.0, 1.0]]))
    varied = FeatureStats(
        q01=(0.0, 0.3), q99=(1.0, 0.3), mean=(0.5, 0.3), std=(0.2, 0.0), min=(0.0, 0.3), max=(1.0, 0.3)
    )
    with pytest.raises(
        ConfigError, match=r"action: dim 1 hardly varies \(q99 - q01 = 1e-08\), mode 'quantile_lerobot' would"
    ):
        Normalizer("quantile_lerobot", varied, name="action")
    with pytest.raises(
        ConfigError, match=r"dim 1 hardly varies \(std = 0\), mode 'mean_std' .*choose mode 'quantile_openpi'"
    ):
        Normalizer("mean_std", varied)
    # openpi's 1e-6 makes a constant dim a constant -1, and any predicted value near it the constant again.
    normalizer = Normalizer("quantile_openpi", constant)
    np.testing.assert_allclose(normalizer.normalize(np.array([[0.3, 1.3]])), -1.0)
    np.testing.assert_allclose(normalizer.unnormalize(np.array([[-0.7, 4.0]])), [[0.3, 1.3]], atol=1e-5)


def test_rare_outliers_beside_a_constant_are_refused() -> None:
    # One frame of a thousand differs: both quantiles are 0, the outlier would become 2e6.
    values = np.zeros((1000, 1), dtype=np.float32)
    values[3] = 1.0
    stats = compute_stats(values)
    with pytest.raises(ConfigError, match=r"numbers up to 2e\+06 \(allowed: 1000\); choose mode 'mean_std'"):
        Normalizer("quantile_openpi", stats)
    assert Normalizer("mean_std", stats).normalize(values).max() == pytest.approx(1000**0.5, rel=0.01)
    assert Normalizer("quantile_openpi", stats, allow_constant_dims=True).normalize(values).max() > 1e6


def test_state_that_rarely_leaves_a_constant_is_accepted() -> None:
    # A gripper that stays open at 1.0 but for two frames of the demonstrations; its bins end at -1 and 255.
    values = np.ones((243, 1), dtype=np.float32)
    values[5:7] = 0.997
    normal = Normalizer("quantile_openpi", compute_stats(values), name="state").normalize(values)
    assert normal.max() == pytest.approx(-1.0)
    assert normal.min() < -1000
    with pytest.raises(ConfigError, match="normalisation of action: dim 0 hardly varies"):
        Normalizer("quantile_openpi", compute_stats(values), name="action")


def test_json_round_trip(golden: dict[str, np.ndarray]) -> None:
    normalizer = Normalizer("quantile_openpi", quantiles(golden), name="action")
    again = Normalizer.from_json(json.loads(json.dumps(normalizer.to_json())), name="action")
    np.testing.assert_array_equal(again.normalize(golden["action"]), normalizer.normalize(golden["action"]))
    with pytest.raises(CheckpointError, match="normalisation of action: expected an object with mode and stats"):
        Normalizer.from_json({"stats": {}}, name="action")


def test_padding() -> None:
    values = np.ones((2, 3, 4), dtype=np.float32)
    padded = pad_dims(values, 32)
    assert padded.shape == (2, 3, 32)
    assert padded.dtype == np.float32
    assert padded[..., 4:].max() == 0
    np.testing.assert_array_equal(unpad_dims(padded, 4), values)
    tensor = pad_dims(torch.ones(2, 4), 6)
    assert tensor.tolist() == [[1, 1, 1, 1, 0, 0]] * 2
    with pytest.raises(ConfigError, match="action has 4 dims, the model takes at most 3"):
        pad_dims(values, 3)
    with pytest.raises(ConfigError, match="action needs 5 dims, the model gives 4"):
        unpad_dims(values, 5)


def test_torch_is_not_imported_by_the_module() -> None:
    code = "import sys, z1.data.transforms; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("mode", NORMALIZER_MODES)
def test_dims_that_a_normalised_value_can_move(mode: str) -> None:
    stats = compute_stats(np.array([[0.0, -1.0, 3.0], [1e-3, -1.0, 3.0], [2e-3, -1.0, 3.0]]))
    normalizer = Normalizer(mode, stats, name="action", allow_constant_dims=True)
    assert normalizer.moving_dims() == (0,)
    low, high = (normalizer.unnormalize(np.full(3, value)) for value in (-1.0, 1.0))
    assert np.abs(high - low)[1:].max() < 1e-5 < np.abs(high - low)[0]
