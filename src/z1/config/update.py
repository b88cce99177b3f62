"""Settings of an iteration's optimizer steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from z1.config.base import (
    LORA_ALPHA,
    LORA_RANK,
    PREFIX_DEVICE_GB,
    PREFIX_HOST_GB,
    ObjectiveName,
    TrainingMode,
    check_lora,
    require,
)
from z1.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateConfig:
    """How an iteration's chunks change the weights."""

    objective: ObjectiveName = "grpo"
    """``grpo``: clipped policy gradient (the paper). ``awfm``: advantage-weighted flow matching. ``filtered_bc``:
    plain flow matching on the policy's own successes, the baseline.
    """
    mode: TrainingMode = "expert"
    """What trains: ``expert`` (VLM frozen), ``joint`` (all), ``joint_frozen_vision`` (all but the image encoder),
    ``lora`` (the expert, and low-rank adapters on the projections of the VLM's language layers).
    """
    lora_rank: int = LORA_RANK
    """``lora``: rank of each projection's update."""
    lora_alpha: float = LORA_ALPHA
    """``lora``: the updates are multiplied by alpha / rank."""
    learning_rate: float = 5e-6
    """AdamW learning rate of the action expert."""
    vlm_learning_rate: float = 0.0
    """AdamW learning rate of the VLM, or of its adapters, where they train; 0: the expert's."""
    weight_decay: float = 0.01
    """AdamW weight decay."""
    warmup_iterations: int = 0
    """Iterations over which the learning rate rises linearly."""
    ema_decay: float = 0.0
    """Decay per iteration of an exponential moving average of the weights that train, which is then what is validated
    and saved; rollouts and updates go on with the weights themselves. 0: none.
    """
    epochs: int = 4
    """Update epochs: passes over an iteration's chunks."""
    minibatch: int = 0
    """Chunks per optimizer step; 0: all chunks of the iteration."""
    microbatch: int = 256
    """Chunks per forward and backward pass; limits memory. AWFM draws noise per microbatch: there numbers change."""
    recompute_activations: bool = False
    """Activation checkpointing: whether a pass keeps only what goes into each layer and computes the rest again for the
    gradient. Same numbers, up to a third more computing, a fraction of the memory.
    """
    prefix_device_gb: float = PREFIX_DEVICE_GB
    """``expert``: device memory, in GB, for the VLM prefixes of an iteration's observations, computed once while acting
    and used in every update epoch. A full-size pi0.5 takes up to 0.018 GB an observation.
    """
    prefix_host_gb: float = PREFIX_HOST_GB
    """``expert``: host memory, in GB, for those that do not fit, at most half of the machine's. The others are computed
    again in every pass; with 0 here and for the device, all of them.
    """
    count: Literal["members", "segments"] = "members"
    """What a chunk that several members share counts in the loss's denominator: each of them (the paper), or once."""
    grad_clip: float = 1.0
    """Largest global gradient norm."""
    clip_range_low: float = 0.2
    """GRPO: how far below 1 a ratio counts."""
    clip_range_high: float = 0.2
    """GRPO: how far above 1 a ratio counts."""
    target_kl: float = 0.03
    """GRPO: the update ends early when the mean approx_kl of a minibatch exceeds this."""
    shorten_last_step: bool = False
    """GRPO: whether the optimizer step that led beyond ``target_kl`` is shortened to it. Then every update goes as far
    as the limit allows, whatever the learning rate.
    """
    awfm_draws: int = 2
    """AWFM, filtered_bc: noise and time draws per chunk and optimizer step."""
    awfm_max_weight: float = 3.0
    """AWFM: largest weight of a chunk; the mean weight of positive chunks is 1."""
    awfm_negative: float = 0.0
    """AWFM: weight of the term that pushes the flow away from chunks of negative advantage; 0: none."""
    awfm_iterations: int = 3
    """AWFM, filtered_bc: recent iterations whose weighted chunks are trained on together, the current one included."""

    def __post_init__(self) -> None:
        require(self.learning_rate > 0, "update.learning_rate", self.learning_rate, "positive")
        require(self.vlm_learning_rate >= 0, "update.vlm_learning_rate", self.vlm_learning_rate, "at least 0")
        if self.mode == "expert" and self.vlm_learning_rate:
            raise ConfigError(
                "update.vlm_learning_rate has no effect with update.mode 'expert'; choose another mode or leave it at 0"
            )
        check_lora("update.", self.mode, self.lora_rank, self.lora_alpha)
        for name, usual in (("prefix_device_gb", PREFIX_DEVICE_GB), ("prefix_host_gb", PREFIX_HOST_GB)):
            value = getattr(self, name)
            require(value >= 0, f"update.{name}", value, "at least 0")
            if self.mode != "expert" and value != usual:
                raise ConfigError(
                    f"update.{name} has no effect with update.mode {self.mode!r}, where the VLM changes; "
                    f"leave it at {usual:g}"
                )
        require(self.weight_decay >= 0, "update.weight_decay", self.weight_decay, "at least 0")
        require(self.warmup_iterations >= 0, "update.warmup_iterations", self.warmup_iterations, "at least 0")
        require(0 <= self.ema_decay < 1, "update.ema_decay", self.ema_decay, "in [0, 1)")
        require(self.epochs >= 1, "update.epochs", self.epochs, "at least 1")
        require(self.minibatch >= 0, "update.minibatch", self.minibatch, "at least 0")
        require(self.microbatch >= 1, "update.microbatch", self.microbatch, "at least 1")
        require(self.grad_clip > 0, "update.grad_clip", self.grad_clip, "positive")
        require(0 < self.clip_range_low < 1, "update.clip_range_low", self.clip_range_low, "in (0, 1)")
        require(self.clip_range_high > 0, "update.clip_range_high", self.clip_range_high, "positive")
        require(self.target_kl > 0, "update.target_kl", self.target_kl, "positive")
        require(self.awfm_draws >= 1, "update.awfm_draws", self.awfm_draws, "at least 1")
        require(self.awfm_negative >= 0, "update.awfm_negative", self.awfm_negative, "at least 0")
        if self.awfm_negative and self.objective != "awfm":
            raise ConfigError(
                f"update.awfm_negative has no effect with update.objective {self.objective!r}; leave it at 0"
            )
        require(self.awfm_iterations >= 1, "update.awfm_iterations", self.awfm_iterations, "at least 1")
        require(self.awfm_max_weight >= 1, "update.awfm_max_weight", self.awfm_max_weight, "at least 1")
