"""Settings of ``z1 sft``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from z1.config.base import (
    LORA_ALPHA,
    LORA_RANK,
    Precision,
    TrainingMode,
    check_lora,
    require,
)
from z1.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class SftConfig:
    """``z1 sft``: train a policy on demonstrations."""

    dataset: tuple[str, ...]
    """Folders of one or more LeRobotDatasets v3.0 with the same cameras, state and action. Each gives the same number
    of samples, whatever its size; the policy learns the instructions of all.
    """
    out: str
    """Run folder to create."""
    policy: str = ""
    """Folder of a policy to start from. Empty: a new one of the size ``model``, with random weights."""
    model: Literal["tiny", "pi05"] = "tiny"
    """Size of a new policy."""
    steps: int = 700
    """Optimizer steps."""
    batch_size: int = 64
    """Samples per optimizer step."""
    microbatch: int = 0
    """Samples per forward and backward pass, whose gradients are summed; limits memory. 0: the whole batch."""
    learning_rate: float = 1e-3
    """Peak AdamW learning rate, of the action expert and of what has no other."""
    vlm_learning_rate: float = 0.0
    """Peak AdamW learning rate of the VLM, or of its adapters, where they train; 0: the expert's."""
    warmup_steps: int = 50
    """Steps over which the learning rate rises linearly; after them it falls as a cosine to a hundredth of its peak."""
    weight_decay: float = 0.01
    """AdamW weight decay."""
    grad_clip: float = 1.0
    """Largest global gradient norm."""
    ema_decay: float = 0.0
    """Decay of an exponential moving average of the weights, which is then what is validated and saved; 0: none."""
    mode: TrainingMode = "joint"
    """What trains: ``joint`` (all), ``expert`` (VLM frozen), ``joint_frozen_vision`` (all but the image encoder),
    ``lora`` (the expert, and low-rank adapters on the projections of the VLM's language layers).
    """
    lora_rank: int = LORA_RANK
    """``lora``: rank of each projection's update."""
    lora_alpha: float = LORA_ALPHA
    """``lora``: the updates are multiplied by alpha / rank."""
    recompute_activations: bool = False
    """Activation checkpointing: whether a pass keeps only what goes into each layer and computes the rest again for the
    gradient. Same numbers, up to a third more computing, a fraction of the memory.
    """
    normalization: Literal["quantile_openpi", "quantile_lerobot", "mean_std"] = "quantile_openpi"
    """How state and actions of a new policy are normalised."""
    image_shift: int = 0
    """Random shift of the training images by up to so many pixels, the same for all cameras of a sample."""
    validation_fraction: float = 0.1
    """Part of the episodes that is held out for the validation loss."""
    validate_every: int = 100
    """Steps between two validations; ``checkpoints/best`` is chosen by them, ``policy`` holds the last weights."""
    seed: int = 0
    """Run seed."""
    device: str = "auto"
    """``cpu``, ``cuda`` or ``auto``."""
    precision: Precision = "float32"
    """What the network computes in. With ``bfloat16`` the weights that train, their gradients and the optimizer's state
    stay in float32. ``auto``: bfloat16 on a GPU, float32 on a CPU, settled when the run begins.
    """
    wandb: bool = False
    """Also log to Weights & Biases."""

    def __post_init__(self) -> None:
        require(self.dataset != (), "dataset", self.dataset, "one or more folders")
        require(self.steps >= 1, "steps", self.steps, "at least 1")
        require(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")
        require(self.microbatch >= 0, "microbatch", self.microbatch, "at least 0")
        require(self.vlm_learning_rate >= 0, "vlm_learning_rate", self.vlm_learning_rate, "at least 0")
        if self.mode == "expert" and self.vlm_learning_rate:
            raise ConfigError(
                "vlm_learning_rate has no effect with mode 'expert'; choose another mode or leave it at 0"
            )
        require(self.learning_rate > 0, "learning_rate", self.learning_rate, "positive")
        check_lora("", self.mode, self.lora_rank, self.lora_alpha)
        require(self.warmup_steps >= 0, "warmup_steps", self.warmup_steps, "at least 0")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "at least 0")
        require(self.grad_clip > 0, "grad_clip", self.grad_clip, "positive")
        require(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "in [0, 1)")
        require(self.image_shift >= 0, "image_shift", self.image_shift, "at least 0")
        require(0 <= self.validation_fraction < 1, "validation_fraction", self.validation_fraction, "in [0, 1)")
        require(self.validate_every >= 1, "validate_every", self.validate_every, "at least 1")
