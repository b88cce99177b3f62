"""What a checkpoint says about itself, what the user adds, and what nobody has said.

Nothing is guessed: every setting has an origin, and those that remain unknown are one error that names all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from z1.data.stats import VECTOR_FIELDS, FeatureStats
from z1.data.transforms import NORMALIZER_MODES, NormalizerMode
from z1.errors import CheckpointError, ConfigError, UnknownNameError
from z1.policy.checkpoints.sizes import Sizes
from z1.policy.config import PROMPT_MODES, RESIZE_MODES, PolicyConfig, ProcessorConfig, PromptMode, ResizeMode

GIVEN = "given"
"""Origin of what the user said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointOverrides:
    """Settings of a checkpoint that it does not hold, or that shall be others."""

    prompt: PromptMode | None = None
    """What the prompt holds: ``state``, ``state_padded`` (LeRobot up to 0.4.4) or ``no_state`` (pi05_libero)."""
    normalization: NormalizerMode | None = None
    """How state and actions are normalised."""
    resize: ResizeMode | None = None
    """How images of another size are letterboxed."""
    cameras: tuple[str, ...] = ()
    """The simulator's or dataset's cameras in the order in which the network sees them; may be fewer than the
    checkpoint's, the last ones then count as missing."""
    horizon: int | None = None
    """H, env steps that a chunk predicts."""
    action_dim: int | None = None
    """A, env action dims; further dims of the statistics are left out."""
    state_dim: int | None = None
    """S, proprioceptive state dims; further dims of the statistics are left out."""
    max_tokens: int | None = None
    """Most text tokens of a prompt."""
    tokenizer: str = ""
    """A tokenizer.model or tokenizer.json file, a folder with one, or hf:owner/name."""
    stats: str = ""
    """Statistics of state and action: a norm_stats.json of openpi, or the meta/stats.json of a LeRobotDataset."""
    asset: str = ""
    """Which folder below openpi's assets/ holds the statistics, where there are several."""
    vision_heads: int | None = None
    """Attention heads of the image encoder, where it is not pi0.5's."""
    allow_constant_dims: bool = False
    """Normalise dims that hardly vary all the same, as the checkpoint's own code does."""

    def __post_init__(self) -> None:
        for name, allowed in (("prompt", PROMPT_MODES), ("normalization", NORMALIZER_MODES), ("resize", RESIZE_MODES)):
            value = getattr(self, name)
            if value is not None and value not in allowed:
                raise ConfigError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
        for name in ("horizon", "action_dim", "state_dim", "max_tokens", "vision_heads"):
            value, least = getattr(self, name), 0 if name == "state_dim" else 1
            if value is not None and value < least:
                raise ConfigError(f"{name} is {value}; it must be at least {least}")

    def given(self) -> dict[str, Any]:
        """What differs from saying nothing."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value not in (None, (), "", False)}


NOTHING = 1e-6
"""Statistics below this are those of a dim that is always 0; openpi's histograms give 1e-10 for it."""

WANTED = {
    "vision_heads": ("attention heads of the image encoder", "--vision-heads N"),
    "horizon": ("action horizon", "--horizon H"),
    "max_tokens": ("most prompt tokens", "--max-tokens N"),
    "cameras": ("cameras and their order", "--cameras NAME, once for each"),
    "state_dim": ("state dims", "--state-dim S"),
    "action_dim": ("real action dims", "--action-dim A"),
    "state_stats": ("statistics of the state", "--stats FILE"),
    "action_stats": ("statistics of the action", "--stats FILE"),
    "normalization": ("normalisation", f"--normalization {' | '.join(NORMALIZER_MODES)}"),
    "prompt": ("prompt format", f"--prompt {' | '.join(PROMPT_MODES)}"),
    "resize": ("resize mode", f"--resize {' | '.join(RESIZE_MODES)}"),
    "tokenizer": ("tokenizer", "--tokenizer FILE"),
}
"""What a policy needs besides weights: in words, and the flag that gives it."""

ALSO_SHOWN = ("allow_constant_dims", "action_low", "action_high", "initial_gate")


class Settings:
    """Settings with their origins; what is put later wins."""

    def __init__(self, where: str) -> None:
        """Nothing is known yet.

        Args:
            where: The checkpoint, for messages.
        """
        self.where = where
        self._values: dict[str, tuple[Any, str]] = {}

    def put(self, name: str, value: Any, origin: str) -> None:
        """Notes a setting; None is not a value."""
        if value is not None:
            self._values[name] = (value, origin)

    def agree(self, name: str, value: Any, origin: str) -> None:
        """Notes a setting that must be what was noted before.

        Raises:
            CheckpointError: It is not.
        """
        known = self.get(name)
        if value is not None and known is not None and value != known:
            raise CheckpointError(
                f"{self.where}: {name.replace('_', ' ')} is {value} in {origin}, but {known} in {self.origin(name)}"
            )
        self.put(name, value, origin)

    def get(self, name: str) -> Any:
        """A setting, or None."""
        return self._values.get(name, (None, ""))[0]

    def origin(self, name: str) -> str:
        """Where a setting is from; empty when it is not known."""
        return self._values.get(name, (None, ""))[1]

    def put_own(self, config: PolicyConfig, processor: ProcessorConfig, origin: str) -> None:
        """Notes all settings of a policy of z1."""
        self.put("vision_heads", config.vision.heads, origin)
        self.put("layout", (config.vlm.heads, config.vlm.kv_heads, config.vlm.head_dim), origin)
        for name in ("horizon", "max_tokens", "initial_gate"):
            self.put(name, getattr(config, name), origin)
        for field in fields(processor):
            self.put(field.name, getattr(processor, field.name), origin)

    def apply(self, overrides: CheckpointOverrides) -> None:
        """Notes what the user says.

        Raises:
            ConfigError: More cameras than the checkpoint has, or other statistics without what they belong to.
        """
        given = overrides.given()
        known, cameras = self.get("cameras"), given.get("cameras")
        if cameras and known and len(cameras) > len(known):
            raise ConfigError(
                f"cameras names {len(cameras)} cameras, but {self.where} sees {len(known)} ({', '.join(known)}); "
                "leave some out"
            )
        for name, value in given.items():
            if name not in ("stats", "asset"):
                self.put(name, value, GIVEN)
        for what in ("state", "action"):
            stats, dim = self.get(f"{what}_stats"), given.get(f"{what}_dim")
            if stats is not None and dim is not None:
                self.put(f"{what}_stats", first_dims(stats, dim, f"{what}_dim", self.where), f"{what}_dim {GIVEN}")
                for name in ("action_low", "action_high") if what == "action" else ():
                    if self.get(name) is not None:
                        self.put(name, self.get(name)[:dim], f"{what}_dim {GIVEN}")

    def missing(self) -> list[str]:
        """What a policy needs and nobody has said, keys of ``WANTED``."""
        blind = self.get("prompt") == "no_state"
        return [name for name in WANTED if self.get(name) is None and not (name == "state_stats" and blind)]

    def require_all(self) -> None:
        """Refuses to go on without everything.

        Raises:
            CheckpointError: Names all that is missing and what gives it.
        """
        missing = self.missing()
        if missing:
            listed = "; ".join(f"{WANTED[name][0]} ({WANTED[name][1]})" for name in missing)
            raise CheckpointError(
                f"{self.where} does not say: {listed}. "
                "Give them to z1 convert, or as CheckpointOverrides to load_policy"
            )

    def policy_config(self, sizes: Sizes) -> PolicyConfig:
        """The network's sizes.

        Raises:
            CheckpointError: They do not make a network.
        """
        try:
            return sizes.config(
                vision_heads=self.get("vision_heads"),
                layout=self.get("layout"),
                horizon=self.get("horizon"),
                max_tokens=self.get("max_tokens"),
                initial_gate=self.get("initial_gate") or 0.0,
            )
        except ConfigError as error:
            raise CheckpointError(f"{self.where}: {error}") from None

    def processor(self) -> ProcessorConfig:
        """How observations and actions are processed.

        Raises:
            CheckpointError: The settings do not fit each other.
        """
        values = {field.name: self.get(field.name) for field in fields(ProcessorConfig)}
        values["allow_constant_dims"] = bool(values["allow_constant_dims"])
        values["quality"] = values["quality"] or ""
        try:
            return ProcessorConfig(**values)
        except (ConfigError, UnknownNameError) as error:
            hint = "; to follow the checkpoint's own formula all the same, give --allow-constant-dims"
            raise CheckpointError(f"{self.where}: {error}{hint if 'hardly varies' in str(error) else ''}") from None


def first_dims(stats: FeatureStats, dim: int, setting: str, where: str) -> FeatureStats:
    """The statistics of the first dims.

    Raises:
        ConfigError: There are fewer.
    """
    if dim > stats.dim:
        raise ConfigError(f"{setting} is {dim}, but the statistics of {where} have {stats.dim} dims")
    vectors = {name: stats.vector(name) for name in VECTOR_FIELDS}
    return replace(stats, **{name: vector[:dim] for name, vector in vectors.items() if vector is not None})  # type: ignore[arg-type]


def is_padded(stats: FeatureStats, width: int) -> bool:
    """Whether statistics are as wide as the model and end in dims that are always 0: then the real width is unknown."""
    ends = (("q01", "q99"), ("mean", "std"))
    last = [vector[-1] for pair in ends for name in pair if (vector := stats.vector(name))]
    return stats.dim == width and bool(last) and all(abs(number) < NOTHING for number in last)


def read_stats(value: Mapping[str, Any], where: str) -> tuple[FeatureStats | None, FeatureStats | None]:
    """Statistics of state and action in openpi's ``norm_stats.json`` or a LeRobotDataset's ``stats.json``.

    Raises:
        CheckpointError: They cannot be read.
    """
    inner = value.get("norm_stats", value)
    if not isinstance(inner, Mapping):
        raise CheckpointError(f"{where}: expected norm_stats to be an object, got {type(inner).__name__}")
    found = []
    for names in (("state", "observation.state"), ("actions", "action")):
        entry = next((inner[name] for name in names if inner.get(name) is not None), None)
        stats = None if entry is None else FeatureStats.from_json(entry, f"{where}: {names[0]}", CheckpointError)
        found.append(stats if stats is not None and stats.dim else None)
    return found[0], found[1]
