"""What several commands' settings share: where episodes run, how a policy acts, and the checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from z1.errors import ConfigError

TrainingMode = Literal["expert", "joint", "joint_frozen_vision", "lora"]
Precision = Literal["auto", "float32", "bfloat16"]
LORA_RANK, LORA_ALPHA = 16, 16.0
PREFIX_DEVICE_GB, PREFIX_HOST_GB = 24.0, 64.0
ObjectiveName = Literal["grpo", "awfm", "filtered_bc"]


def require(condition: bool, setting: str, value: object, allowed: str) -> None:
    """Raises ``ConfigError`` naming the setting, what it was and what is allowed, unless the condition holds."""
    if not condition:
        raise ConfigError(f"{setting} is {value!r}; it must be {allowed}")


def check_lora(prefix: str, mode: TrainingMode, rank: int, alpha: float) -> None:
    """Refuses impossible adapters, and settings of adapters that are not there.

    Args:
        prefix: Of the settings' names.
        mode: Training mode.
        rank: ``lora_rank``.
        alpha: ``lora_alpha``.

    Raises:
        ConfigError: Names the setting.
    """
    require(rank >= 1, f"{prefix}lora_rank", rank, "at least 1")
    require(alpha > 0, f"{prefix}lora_alpha", alpha, "positive")
    for name, value, usual in (("lora_rank", rank, LORA_RANK), ("lora_alpha", alpha, LORA_ALPHA)):
        if mode != "lora" and value != usual:
            raise ConfigError(
                f"{prefix}{name} has no effect with {prefix}mode {mode!r}; choose the mode 'lora' or leave it at "
                f"{usual:g}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class SimConfig:
    """Where episodes run."""

    hosts: int = 2
    """Simulator processes. They share the work; the results do not depend on their number."""
    horizon: int = 200
    """Env steps after which an episode without success counts as failed. 0: the simulator's own (MetaWorld 500)."""
    python: str = ""
    """Interpreter of the simulator processes. Empty: the one that runs this command."""
    quality: Literal["", "fast", "default"] = ""
    """Rendering. Empty: as the policy's demonstrations were rendered, if it was trained on recorded ones, else the
    simulator's usual one."""
    perturbation: Literal["", "camera", "colours"] = ""
    """What the policy sees differently from its demonstrations: 'camera' turns every camera, 'colours' exchanges red,
    green and blue. Empty: nothing."""
    perturbation_strength: float = 1.0
    """How much of it: cameras are turned by 10 degrees times this; this share of the exchanged colours is mixed in."""
    timeout_s: float = 120.0
    """Seconds without a sign of life after which a simulator process is restarted."""

    def __post_init__(self) -> None:
        require(self.quality in ("", "fast", "default"), "sim.quality", self.quality, "'fast', 'default' or empty")
        require(
            self.perturbation in ("", "camera", "colours"),
            "sim.perturbation",
            self.perturbation,
            "'camera', 'colours' or empty",
        )
        if not self.perturbation and self.perturbation_strength != 1.0:
            raise ConfigError(
                f"sim.perturbation_strength is {self.perturbation_strength:g}, but there is no perturbation; "
                "choose one with sim.perturbation or leave it out"
            )
        require(self.hosts >= 1, "sim.hosts", self.hosts, "at least 1")
        require(self.horizon >= 0, "sim.horizon", self.horizon, "0 or a number of env steps")
        require(self.timeout_s > 0, "sim.timeout_s", self.timeout_s, "a positive number of seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class ActingConfig:
    """How the policy turns observations into chunks of actions."""

    denoise_steps: int = 4
    """K, denoise steps per chunk."""
    chunk_length: int = 8
    """C, env steps executed between two policy calls; at most the policy's action horizon H."""

    def __post_init__(self) -> None:
        require(self.denoise_steps >= 1, "acting.denoise_steps", self.denoise_steps, "at least 1")
        require(self.chunk_length >= 1, "acting.chunk_length", self.chunk_length, "at least 1")
