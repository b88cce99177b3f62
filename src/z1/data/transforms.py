"""Normalisation of state and action vectors, and padding to the model's width.

Which normalisation a policy uses belongs to its checkpoint: the mode and the numbers are stored with it and are never
guessed. Numpy arrays and torch tensors are both accepted; torch is imported only when a tensor comes in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import numpy as np

from z1.data.stats import FeatureStats
from z1.errors import CheckpointError, ConfigError, UnknownNameError, Z1Error

if TYPE_CHECKING:
    import torch

Vectors = TypeVar("Vectors", np.ndarray, "torch.Tensor")

NormalizerMode = Literal["quantile_openpi", "quantile_lerobot", "mean_std", "mean_std_openpi"]
NORMALIZER_MODES: tuple[str, ...] = get_args(NormalizerMode)

LARGEST_NORMALISED = 1e3
"""No value of the data, and none that lies 0.001 beside it, may be normalised to a larger magnitude."""

_NEEDED = {
    "quantile_openpi": ("q01", "q99"),
    "quantile_lerobot": ("q01", "q99"),
    "mean_std": ("mean", "std"),
    "mean_std_openpi": ("mean", "std"),
}
_EPSILON = {"quantile_openpi": 1e-6, "quantile_lerobot": 1e-8, "mean_std": 1e-8, "mean_std_openpi": 1e-6}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Affine:
    """``y = (x - offset) / divisor * gain + shift`` and ``x = (y - shift) / gain * factor + offset``, in ``dtype``."""

    dtype: type[np.floating[Any]]
    offset: np.ndarray
    divisor: np.ndarray
    factor: np.ndarray
    gain: float
    shift: float


class Normalizer:
    """Maps a vector feature to about [-1, 1] (or unit variance) and back; values outside are not clipped.

    Modes, with x a raw value and y a normalised one:

    * ``quantile_openpi``: ``y = (x - q01) / (q99 - q01 + 1e-6) * 2 - 1``,
      ``x = (y + 1) / 2 * (q99 - q01 + 1e-6) + q01``, in float64, as openpi computes it. A numpy result stays float64,
      so that a later binning of the state sees the same numbers.
    * ``quantile_lerobot``: ``y = 2 * (x - q01) / (q99 - q01) - 1`` in float32, the divisor replaced by 1e-8 only where
      it is exactly 0; ``x = (y + 1) / 2 * (q99 - q01) + q01``.
    * ``mean_std``: ``y = (x - mean) / (std + 1e-8)``, ``x = y * std + mean`` in float32, as LeRobot does.
    * ``mean_std_openpi``: ``y = (x - mean) / (std + 1e-6)``, ``x = y * (std + 1e-6) + mean`` in float64.

    A torch tensor keeps its dtype and device.

    Dims without variation are dangerous in all modes: a state that leaves its constant by 0.001 becomes huge. All modes
    but ``quantile_openpi`` refuse them at construction. That one accepts an exactly constant dim, because the 1e-6
    makes it a well defined constant -1 (the usual case: an action dim that a task's demonstrations never change). A dim
    whose rare outliers would be normalised beyond 1000 is refused as well; only the state in ``quantile_openpi`` is
    exempt, because it reaches the model in bins that end at -1 and 255, where such values do no harm.

    Source: openpi ``transforms.py`` (Normalize, Unnormalize); LeRobot ``processor/normalize_processor.py``.

    Attributes:
        mode: One of ``NORMALIZER_MODES``.
        stats: The statistics.
        name: What is normalised: ``state`` or ``action``.
    """

    def __init__(
        self, mode: str, stats: FeatureStats | None, *, name: str = "feature", allow_constant_dims: bool = False
    ) -> None:
        """Checks the statistics.

        Args:
            mode: One of ``NORMALIZER_MODES``.
            stats: Statistics that hold what the mode needs.
            name: What is normalised, ``state`` or ``action``, for messages and for the exemption above.
            allow_constant_dims: Follow the formulas even where they explode; for checkpoints that were trained so.

        Raises:
            UnknownNameError: The mode is not known.
            ConfigError: Statistics are missing, or a dim hardly varies.
        """
        if mode not in NORMALIZER_MODES:
            raise UnknownNameError("normalisation mode", mode, NORMALIZER_MODES)
        missing = [field for field in _NEEDED[mode] if stats is None or stats.vector(field) is None]
        if missing or stats is None:
            raise ConfigError(
                f"normalisation of {name}: mode {mode!r} needs {' and '.join(_NEEDED[mode])}, but the statistics lack "
                f"{' and '.join(missing)}; compute them from the dataset or choose another mode"
            )
        self.mode = mode
        self.stats = stats
        self.name = name
        self._map = _affine(mode, stats)
        if not allow_constant_dims:
            self._refuse_explosions()

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self.stats.dim

    def moving_dims(self) -> tuple[int, ...]:
        """Dims whose raw value depends on the normalised one; the others are constants of the statistics."""
        slope = np.abs(self._map.factor / self._map.gain)
        return tuple(np.flatnonzero(slope > _EPSILON[self.mode]).tolist())

    def normalize(self, values: Vectors) -> Vectors:
        """Raw to normalised.

        Args:
            values: Float ``[..., dim]``.

        Returns:
            Float ``[..., dim]``; see the class for the dtype.

        Raises:
            CheckpointError: The last axis does not have the statistics' width.
        """
        self._check_width(values.shape)
        m = self._map
        if isinstance(values, np.ndarray):
            return (values.astype(m.dtype, copy=False) - m.offset) / m.divisor * m.gain + m.shift
        offset, divisor = self._tensors(values, m.offset, m.divisor)
        return ((values.to(offset.dtype) - offset) / divisor * m.gain + m.shift).to(values.dtype)

    def unnormalize(self, values: Vectors) -> Vectors:
        """Normalised to raw, the inverse of ``normalize``.

        Args:
            values: Float ``[..., dim]``, without the model's padding dims.

        Returns:
            Float ``[..., dim]``; see the class for the dtype.

        Raises:
            CheckpointError: The last axis does not have the statistics' width.
        """
        self._check_width(values.shape)
        m = self._map
        if isinstance(values, np.ndarray):
            return ((values - m.shift) / m.gain).astype(m.dtype, copy=False) * m.factor + m.offset
        offset, factor = self._tensors(values, m.offset, m.factor)
        return (((values - m.shift) / m.gain).to(offset.dtype) * factor + offset).to(values.dtype)

    def to_json(self) -> dict[str, Any]:
        """A JSON value, read back by ``from_json``."""
        return {"mode": self.mode, "stats": self.stats.to_json()}

    @classmethod
    def from_json(
        cls,
        value: Any,
        *,
        name: str = "feature",
        error: type[Z1Error] = CheckpointError,
        allow_constant_dims: bool = False,
    ) -> Normalizer:
        """Reads ``to_json``'s value.

        Raises:
            Z1Error: Of the given class, when the value has no mode or no statistics.
        """
        if not isinstance(value, dict) or not isinstance(value.get("mode"), str) or "stats" not in value:
            raise error(f"normalisation of {name}: expected an object with mode and stats, got {value!r}")
        stats = FeatureStats.from_json(value["stats"], f"normalisation of {name}", error)
        return cls(value["mode"], stats, name=name, allow_constant_dims=allow_constant_dims)

    def _check_width(self, shape: tuple[int, ...]) -> None:
        if len(shape) == 0 or shape[-1] != self.dim:
            raise CheckpointError(
                f"normalisation of {self.name}: the statistics have {self.dim} dims, got an array of shape "
                f"{tuple(shape)}; use the {self.name} layout the policy was trained with"
            )

    def _refuse_explosions(self) -> None:
        m = self._map
        wide = m.offset.astype(np.float64)
        divisor = m.divisor.astype(np.float64)
        low, high = self.stats.vector("min"), self.stats.vector("max")
        largest = np.zeros(self.dim)
        binned = self.mode == "quantile_openpi" and self.name == "state"
        if low is not None and high is not None and not binned:
            reach = np.maximum(np.abs(np.asarray(low) - wide), np.abs(np.asarray(high) - wide))
            largest = m.gain * reach / divisor
        if self.mode != "quantile_openpi":
            scale = np.maximum(1.0, np.abs(wide))
            largest = np.maximum(largest, m.gain * 1e-3 * scale / divisor)
        bad = np.flatnonzero(largest > LARGEST_NORMALISED)
        if len(bad):
            dim = int(bad[0])
            spread = "std" if self.mode.startswith("mean_std") else "q99 - q01"
            other = "'mean_std'" if self.mode == "quantile_openpi" else "'quantile_openpi' (constant dims stay at -1)"
            raise ConfigError(
                f"normalisation of {self.name}: dim {dim} hardly varies ({spread} = "
                f"{float(m.factor[dim]):.3g}), mode {self.mode!r} would turn its values into numbers up to "
                f"{float(largest[dim]):.3g} (allowed: {LARGEST_NORMALISED:g}); choose mode {other}, "
                "or leave that dim out"
            )

    @staticmethod
    def _tensors(like: torch.Tensor, *arrays: np.ndarray) -> tuple[torch.Tensor, ...]:
        import torch

        return tuple(torch.from_numpy(array).to(like.device) for array in arrays)


def _affine(mode: str, stats: FeatureStats) -> _Affine:
    dtype: type[np.floating[Any]] = np.float64 if mode.endswith("_openpi") else np.float32
    first, second = (np.asarray(stats.vector(field), dtype=dtype) for field in _NEEDED[mode])
    epsilon = dtype(_EPSILON[mode])
    if mode == "mean_std":
        return _Affine(dtype=dtype, offset=first, divisor=second + epsilon, factor=second, gain=1.0, shift=0.0)
    if mode == "mean_std_openpi":
        spread = second + epsilon
        return _Affine(dtype=dtype, offset=first, divisor=spread, factor=spread, gain=1.0, shift=0.0)
    if mode == "quantile_openpi":
        spread = second - first + epsilon
    else:
        spread = np.where(second == first, epsilon, second - first)
    return _Affine(dtype=dtype, offset=first, divisor=spread, factor=spread, gain=2.0, shift=-1.0)


def pad_dims(values: Vectors, width: int, what: str = "action") -> Vectors:
    """Pads the last axis with zeros, after normalisation, to the model's width.

    Args:
        values: Float ``[..., dim]``, ``dim <= width``.
        width: Model dims D.
        what: Name for the message.

    Returns:
        Float ``[..., width]``, same dtype.

    Raises:
        ConfigError: ``dim > width``.
    """
    dim = values.shape[-1]
    if dim > width:
        raise ConfigError(
            f"{what} has {dim} dims, the model takes at most {width}; use a model with a larger model_action_dim"
        )
    if isinstance(values, np.ndarray):
        return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, width - dim)])
    import torch

    return torch.nn.functional.pad(values, (0, width - dim))


def unpad_dims(values: Vectors, dim: int, what: str = "action") -> Vectors:
    """The first ``dim`` dims of the last axis: what the model predicts without its padding dims.

    Raises:
        ConfigError: There are fewer.
    """
    if values.shape[-1] < dim:
        raise ConfigError(
            f"{what} needs {dim} dims, the model gives {values.shape[-1]}; use a model with a larger model_action_dim"
        )
    return values[..., :dim]
