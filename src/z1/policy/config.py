"""Sizes of the network and how observations and actions are processed: both belong to a checkpoint.

Level 1 without torch, so that a checkpoint's settings can be read quickly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from z1.config import config_from_dict, config_to_dict
from z1.data.stats import FeatureStats
from z1.data.transforms import NORMALIZER_MODES, Normalizer
from z1.errors import CheckpointError, ConfigError, UnknownNameError
from z1.sims.adapter import QUALITIES

PromptMode = Literal["state", "state_padded", "no_state"]
ResizeMode = Literal["pil_antialias", "torch_bilinear"]
PROMPT_MODES: tuple[str, ...] = get_args(PromptMode)
RESIZE_MODES: tuple[str, ...] = get_args(ResizeMode)

PADDED_STATE_DIM = 32
"""Width to which prompt mode ``state_padded`` pads the state before it is written into the prompt."""

TINY_VOCAB = 512
"""Pieces of the tokenizer that is shipped with z1."""


def _require(condition: bool, setting: str, value: object, allowed: str) -> None:
    if not condition:
        raise ConfigError(f"{setting} is {value!r}; it must be {allowed}")


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionConfig:
    """The image encoder (SigLIP)."""

    width: int
    """Features of an image token."""
    depth: int
    """Layers."""
    heads: int
    """Attention heads; each has ``width / heads`` dims."""
    mlp: int
    """Hidden features of a layer's MLP."""
    patch: int
    """Height and width of an image patch in pixels; a patch is a token."""
    image_size: int
    """Height and width of an image in pixels."""

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads", "mlp", "patch", "image_size"):
            _require(getattr(self, name) >= 1, f"vision.{name}", getattr(self, name), "at least 1")
        _require(self.width % self.heads == 0, "vision.width", self.width, f"a multiple of vision.heads ({self.heads})")
        _require(
            self.image_size % self.patch == 0,
            "vision.image_size",
            self.image_size,
            f"a multiple of vision.patch ({self.patch})",
        )

    @property
    def tokens(self) -> int:
        """Tokens per image."""
        return (self.image_size // self.patch) ** 2


@dataclass(frozen=True, slots=True, kw_only=True)
class VlmConfig:
    """The language model (Gemma) that reads image and text tokens. Its attention layout is also the expert's."""

    width: int
    """Features of a token."""
    depth: int
    """Layers, of the VLM and of the action expert."""
    mlp: int
    """Hidden features of a layer's MLP."""
    heads: int
    """Query heads."""
    kv_heads: int
    """Key and value heads."""
    head_dim: int
    """Dims of a head; ``heads * head_dim`` need not be ``width``."""
    vocab: int
    """Rows of the token embedding."""

    def __post_init__(self) -> None:
        for name in ("width", "depth", "mlp", "heads", "kv_heads", "head_dim", "vocab"):
            _require(getattr(self, name) >= 1, f"vlm.{name}", getattr(self, name), "at least 1")
        _require(self.head_dim % 2 == 0, "vlm.head_dim", self.head_dim, "even, for the rotary embedding")
        _require(
            self.heads % self.kv_heads == 0, "vlm.heads", self.heads, f"a multiple of vlm.kv_heads ({self.kv_heads})"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertConfig:
    """The action expert. Depth and attention layout are the VLM's, since it attends to the VLM's keys and values."""

    width: int
    """Features of an action token."""
    mlp: int
    """Hidden features of a layer's MLP."""

    def __post_init__(self) -> None:
        _require(self.width >= 2 and self.width % 2 == 0, "expert.width", self.width, "even and at least 2")
        _require(self.mlp >= 1, "expert.mlp", self.mlp, "at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyConfig:
    """Every size of a pi0.5 network."""

    vision: VisionConfig
    vlm: VlmConfig
    expert: ExpertConfig
    horizon: int
    """H, env steps that a chunk predicts."""
    action_dim: int
    """D, model action dims; real action dims are padded with zeros."""
    max_tokens: int
    """Most text tokens of a prompt; longer ones are cut."""
    initial_gate: float = 0.0
    """Residual gates of the action expert right after random initialisation.

    0 is pi0.5's own choice (every layer starts as the identity), right for a pretrained expert. A network that is
    trained from scratch on few steps starts with open gates, 1. Without effect once weights are loaded.
    """

    def __post_init__(self) -> None:
        _require(self.horizon >= 1, "horizon", self.horizon, "at least 1")
        _require(self.action_dim >= 1, "action_dim", self.action_dim, "at least 1")
        _require(self.max_tokens >= 1, "max_tokens", self.max_tokens, "at least 1")

    @property
    def image_size(self) -> int:
        """Height and width of an image in pixels."""
        return self.vision.image_size

    @classmethod
    def pi05(cls, *, horizon: int = 50, action_dim: int = 32, max_tokens: int = 200) -> PolicyConfig:
        """pi0.5 as published: SigLIP So400m/14, Gemma 2B, 300 M action expert; 3.35 B parameters.

        Args:
            horizon: H; 50 for the base checkpoint, 10 for LIBERO.
            action_dim: D.
            max_tokens: Most text tokens.
        """
        return cls(
            vision=VisionConfig(width=1152, depth=27, heads=16, mlp=4304, patch=14, image_size=224),
            vlm=VlmConfig(width=2048, depth=18, mlp=16384, heads=8, kv_heads=1, head_dim=256, vocab=257152),
            expert=ExpertConfig(width=1024, mlp=4096),
            horizon=horizon,
            action_dim=action_dim,
            max_tokens=max_tokens,
        )

    @classmethod
    def tiny(
        cls,
        *,
        image_size: int = 64,
        patch: int = 16,
        width: int = 128,
        depth: int = 3,
        vision_width: int = 128,
        vision_depth: int = 3,
        expert_width: int = 128,
        horizon: int = 8,
        action_dim: int = 8,
        max_tokens: int = 96,
        vocab: int = TINY_VOCAB,
    ) -> PolicyConfig:
        """The same network with about 1.5 M parameters, for CPUs.

        Args:
            image_size: Pixels.
            patch: Pixels; 16 is faster, 8 sees more.
            width: Of the VLM, a multiple of 32.
            depth: Layers of the VLM and the expert.
            vision_width: Of the image encoder, a multiple of 32.
            vision_depth: Layers of the image encoder.
            expert_width: Of the action expert.
            horizon: H.
            action_dim: D.
            max_tokens: Most text tokens.
            vocab: Rows of the token embedding; the shipped tokenizer needs ``TINY_VOCAB``.
        """
        return cls(
            vision=VisionConfig(
                width=vision_width,
                depth=vision_depth,
                heads=vision_width // 32,
                mlp=2 * vision_width,
                patch=patch,
                image_size=image_size,
            ),
            vlm=VlmConfig(
                width=width, depth=depth, mlp=2 * width, heads=width // 32, kv_heads=1, head_dim=32, vocab=vocab
            ),
            expert=ExpertConfig(width=expert_width, mlp=2 * expert_width),
            horizon=horizon,
            action_dim=action_dim,
            max_tokens=max_tokens,
            initial_gate=1.0,
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON value, read back by ``from_json``."""
        return config_to_dict(self)

    @classmethod
    def from_json(cls, value: Any, *, source: str) -> PolicyConfig:
        """Reads ``to_json``'s value.

        Args:
            value: The JSON value.
            source: Where it came from, for messages.

        Raises:
            CheckpointError: It does not describe a network.
        """
        _expect_object(value, "policy", source)
        for name in ("vision", "vlm", "expert"):
            _expect_object(value.get(name), f"policy.{name}", source)
        try:
            return config_from_dict(cls, value, source=source)
        except (ConfigError, UnknownNameError) as error:
            raise CheckpointError(str(error)) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessorConfig:
    """How observations become model input and model output becomes env actions."""

    cameras: tuple[str, ...]
    """Cameras, in the order in which the network sees them."""
    state_dim: int
    """S, proprioceptive state dims."""
    action_dim: int
    """A, env action dims."""
    state_stats: FeatureStats | None = None
    """Statistics of the state; None only when the prompt holds no state."""
    action_stats: FeatureStats
    """Statistics of the action."""
    normalization: str = "quantile_openpi"
    """How state and action are normalised, one of ``z1.data.transforms.NORMALIZER_MODES``."""
    allow_constant_dims: bool = False
    """Whether dims that hardly vary are normalised all the same; for checkpoints that were trained so."""
    prompt: PromptMode = "state"
    """``state``: the prompt holds the normalised state in 256 bins. ``state_padded``: the state is first padded with
    zeros to 32 dims. ``no_state``: the instruction alone."""
    resize: ResizeMode = "pil_antialias"
    """How images of another size are letterboxed to the network's: with antialiasing on 8-bit values (openpi's
    checkpoints), or without on floats (LeRobot's)."""
    action_low: tuple[float, ...] | None = None
    """Lower bound of each env action dim; None: not clipped."""
    action_high: tuple[float, ...] | None = None
    """Upper bound of each env action dim; None: not clipped."""
    quality: str = ""
    """How the simulator rendered the demonstrations, ``fast`` or ``default``; empty: not known."""

    def __post_init__(self) -> None:
        _require(self.quality in ("", *QUALITIES), "processor.quality", self.quality, "'fast', 'default' or empty")
        _require(len(self.cameras) >= 1, "processor.cameras", self.cameras, "one or more camera names")
        _require(len(set(self.cameras)) == len(self.cameras), "processor.cameras", self.cameras, "all different")
        _require(self.state_dim >= 0, "processor.state_dim", self.state_dim, "at least 0")
        _require(self.action_dim >= 1, "processor.action_dim", self.action_dim, "at least 1")
        _require(self.prompt in PROMPT_MODES, "processor.prompt", self.prompt, f"one of {', '.join(PROMPT_MODES)}")
        _require(self.resize in RESIZE_MODES, "processor.resize", self.resize, f"one of {', '.join(RESIZE_MODES)}")
        _require(
            self.normalization in NORMALIZER_MODES,
            "processor.normalization",
            self.normalization,
            f"one of {', '.join(NORMALIZER_MODES)}",
        )
        if (self.action_low is None) != (self.action_high is None):
            raise ConfigError("processor.action_low and action_high must be given together, or neither")
        for name, vector in (("action_low", self.action_low), ("action_high", self.action_high)):
            if vector is not None:
                _require(len(vector) == self.action_dim, f"processor.{name}", vector, f"{self.action_dim} numbers")
        self.normalizers()

    def normalizers(self) -> tuple[Normalizer | None, Normalizer]:
        """State and action normaliser; the state's is None when the prompt holds no state.

        Raises:
            ConfigError: Statistics are missing, have another width, or would explode.
        """
        state = None
        if self.prompt != "no_state":
            state = self._normalizer("state", self.state_stats, self.state_dim)
        return state, self._normalizer("action", self.action_stats, self.action_dim)

    def _normalizer(self, name: str, stats: FeatureStats | None, dim: int) -> Normalizer:
        made = Normalizer(self.normalization, stats, name=name, allow_constant_dims=self.allow_constant_dims)
        if made.dim != dim:
            raise ConfigError(
                f"processor.{name}_dim is {dim}, but the statistics have {made.dim} dims; they must agree"
            )
        return made

    @classmethod
    def of_dataset(
        cls,
        *,
        cameras: Sequence[str],
        state_stats: FeatureStats,
        action_stats: FeatureStats,
        normalization: str = "quantile_openpi",
        prompt: PromptMode = "state",
        action_low: Sequence[float] | None = None,
        action_high: Sequence[float] | None = None,
        quality: str = "",
    ) -> ProcessorConfig:
        """Processing for a new policy that will be trained on a dataset.

        Args:
            cameras: The dataset's cameras that the policy sees.
            state_stats: Statistics of ``observation.state``.
            action_stats: Statistics of ``action``.
            normalization: Normalisation mode.
            prompt: What the prompt holds.
            action_low: Lower bound of each env action dim. Default: -1, or the smallest demonstrated action if lower.
            action_high: Upper bound of each env action dim. Default: 1, or the largest demonstrated action if higher.
            quality: How the simulator rendered the dataset; empty: not known.

        Raises:
            ConfigError: The statistics do not serve.
        """
        low, high = action_stats.min, action_stats.max
        if action_low is None and low is not None:
            action_low = [min(-1.0, value) for value in low]
        if action_high is None and high is not None:
            action_high = [max(1.0, value) for value in high]
        return cls(
            cameras=tuple(cameras),
            state_dim=state_stats.dim,
            action_dim=action_stats.dim,
            state_stats=state_stats,
            action_stats=action_stats,
            normalization=normalization,
            prompt=prompt,
            action_low=None if action_low is None else tuple(float(value) for value in action_low),
            action_high=None if action_high is None else tuple(float(value) for value in action_high),
            quality=quality,
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON value, read back by ``from_json``."""
        return {
            "cameras": list(self.cameras),
            "state_dim": self.state_dim,
            "action_dim": self.action_dim,
            "state_stats": None if self.state_stats is None else self.state_stats.to_json(),
            "action_stats": self.action_stats.to_json(),
            "normalization": self.normalization,
            "allow_constant_dims": self.allow_constant_dims,
            "prompt": self.prompt,
            "resize": self.resize,
            "action_low": None if self.action_low is None else list(self.action_low),
            "action_high": None if self.action_high is None else list(self.action_high),
            "quality": self.quality,
        }

    @classmethod
    def from_json(cls, value: Any, *, source: str) -> ProcessorConfig:
        """Reads ``to_json``'s value.

        Args:
            value: The JSON value.
            source: Where it came from, for messages.

        Raises:
            CheckpointError: It does not describe a processor.
        """
        _expect_object(value, "processor", source)
        names = {field.name for field in fields(cls)}
        missing, unknown = sorted(names - set(value) - {"quality"}), sorted(set(value) - names)  # older files lack it
        if missing or unknown:
            raise CheckpointError(
                f"{source}: processor lacks {', '.join(missing) or 'nothing'} and has unknown "
                f"{', '.join(unknown) or 'nothing'}; it was written by another version of z1"
            )
        stats = {
            name: None
            if value[name] is None
            else FeatureStats.from_json(value[name], f"{source}: processor.{name}", CheckpointError)
            for name in ("state_stats", "action_stats")
        }
        if stats["action_stats"] is None:
            raise CheckpointError(f"{source}: processor.action_stats is null; a policy needs statistics of the action")
        try:
            return cls(
                cameras=tuple(str(name) for name in value["cameras"]),
                state_dim=int(value["state_dim"]),
                action_dim=int(value["action_dim"]),
                state_stats=stats["state_stats"],
                action_stats=stats["action_stats"],
                normalization=value["normalization"],
                allow_constant_dims=bool(value["allow_constant_dims"]),
                prompt=value["prompt"],
                resize=value["resize"],
                action_low=_floats(value["action_low"]),
                action_high=_floats(value["action_high"]),
                quality=value.get("quality", ""),
            )
        except (ConfigError, UnknownNameError, TypeError, ValueError) as error:
            raise CheckpointError(f"{source}: {error}") from None


def _floats(value: Any) -> tuple[float, ...] | None:
    return None if value is None else tuple(float(number) for number in value)


def _expect_object(value: Any, name: str, source: str) -> None:
    if not isinstance(value, dict):
        raise CheckpointError(f"{source}: expected {name} to be an object, got {type(value).__name__}")
