"""Every setting of the commands, as frozen dataclasses, documented field by field and checked once when built.

Level 0: no torch, no simulator.
"""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from z1.errors import ConfigError, UnknownNameError

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
    """Rendering; use what the demonstrations were recorded with. Empty: the simulator's usual one."""
    timeout_s: float = 120.0
    """Seconds without a sign of life after which a simulator process is restarted."""

    def __post_init__(self) -> None:
        require(self.quality in ("", "fast", "default"), "sim.quality", self.quality, "'fast', 'default' or empty")
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


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutConfig:
    """How an iteration's groups are collected."""

    groups: int = 10
    """N, groups to train on per iteration. Groups outside the filter are replaced by new scenes."""
    group_size: int = 8
    """G, rollouts of the same scene."""
    replay: float = 0.0
    """Probability that a scene is drawn again from those whose last group had both outcomes, instead of a new one."""
    plan: Literal["flat", "shared_prefix", "tree"] = "flat"
    """Where members part: ``flat`` at once, ``shared_prefix`` after P chunks, ``tree`` in twos at
    floor(P / 2^(k - l)) chunks, l = 1..k, for groups of 2^k. What members share is executed once.
    """
    prefix: int = 0
    """P, chunks until the last branch point; the largest one under a schedule."""
    prefix_schedule: Literal["fixed", "linear", "adaptive"] = "fixed"
    """``fixed``; ``linear``: P falls to 0 over the run; ``adaptive``: P follows the chunk at which recent successful
    and failed rollouts part.
    """
    noise_level: float = 0.5
    """a, scale of the stochastic denoise steps. 0 would leave GRPO without a likelihood."""
    initial_noise: Literal["member", "group"] = "member"
    """Who draws the noise that a chunk's denoising starts from: each member its own, or all members of a group the
    same, so that what tells them apart is only what the likelihood sees.
    """
    stochastic_steps: int = 1
    """M, how many denoise steps of a chunk are stochastic. 1 in the paper; each more costs GRPO a pass per update."""
    exclude_last_step: bool = True
    """Whether the last denoise step is never stochastic (its standard deviation is tiny)."""
    filter_low: float = 0.1
    """Smallest mean return of a group that is trained on."""
    filter_high: float = 0.99
    """Largest mean return of a group that is trained on."""
    reward_decay: float = 1.0
    """Factor per chunk on the reward of a success; 1: when the success comes does not matter."""
    advantage: Literal["group", "tree", "critic"] = "group"
    """``group``: a member's return against its group's. ``tree``: a segment's mean return against its siblings'.
    ``critic``: what each chunk changed in the return that a critic expects, learned from the same rollouts.
    """
    tree_discount: float = 0.5
    """Tree advantages: weight of an ancestor's advantage per generation; 1 compares with the whole group, 0 with the
    siblings only.
    """
    critic_decay: float = 0.8
    """Critic advantages: weight per chunk of what comes later (the lambda of generalised advantages); 1 compares the
    outcome with the value before the chunk, 0 the value after it.
    """
    all_success_rule: bool = True
    """Whether groups in which all succeeded get R - min R, which never punishes a success, instead of the z-score."""
    all_success_advantage: float = 0.0
    """Advantage of every member of a group in which all succeeded, if ``filter_high`` keeps it. 0 in the paper."""
    max_env_steps: int = 40_000
    """Env steps of one iteration after which dropped groups are no longer replaced."""
    live_members: int = 96
    """Most members that run at the same time, over all simulator processes."""

    def __post_init__(self) -> None:
        require(self.groups >= 1, "rollout.groups", self.groups, "at least 1")
        require(self.group_size >= 2, "rollout.group_size", self.group_size, "at least 2, since members are compared")
        self._check_branching()
        self._check_advantage()
        require(0 <= self.replay < 1, "rollout.replay", self.replay, "in [0, 1)")
        require(self.noise_level >= 0, "rollout.noise_level", self.noise_level, "at least 0")
        require(self.stochastic_steps >= 1, "rollout.stochastic_steps", self.stochastic_steps, "at least 1")
        require(0 < self.reward_decay <= 1, "rollout.reward_decay", self.reward_decay, "in (0, 1]")
        require(
            0 <= self.filter_low <= self.filter_high <= 1,
            "rollout.filter_low and filter_high",
            (self.filter_low, self.filter_high),
            "ordered and within [0, 1]",
        )
        require(
            self.all_success_advantage >= 0, "rollout.all_success_advantage", self.all_success_advantage, "at least 0"
        )
        require(self.max_env_steps >= 1, "rollout.max_env_steps", self.max_env_steps, "at least 1")
        require(
            self.live_members >= self.group_size,
            "rollout.live_members",
            self.live_members,
            f"at least rollout.group_size ({self.group_size})",
        )

    def _check_branching(self) -> None:
        """Refuses plans that cannot be, and settings that the plan would make idle."""
        require(self.prefix >= 0, "rollout.prefix", self.prefix, "at least 0 chunks")
        if self.plan == "flat":
            idle = {"prefix": 0, "prefix_schedule": "fixed"} | ({"advantage": ""} if self.advantage == "tree" else {})
            for name, value in idle.items():
                if getattr(self, name) != value:
                    raise ConfigError(
                        f"rollout.{name} is {getattr(self, name)!r}, which has no effect with rollout.plan 'flat'; "
                        "choose the plan 'shared_prefix' or 'tree'"
                    )
        elif self.prefix == 0:
            raise ConfigError(
                f"rollout.plan is {self.plan!r} with rollout.prefix 0, which shares nothing; set rollout.prefix to the "
                "chunks until the last branch point, or choose the plan 'flat'"
            )
        if self.plan == "tree":
            require(
                self.group_size & (self.group_size - 1) == 0,
                "rollout.group_size",
                self.group_size,
                "a power of two with rollout.plan 'tree'",
            )

    def _check_advantage(self) -> None:
        """Refuses settings of other kinds of advantages."""
        require(0 <= self.tree_discount <= 1, "rollout.tree_discount", self.tree_discount, "in [0, 1]")
        require(0 <= self.critic_decay <= 1, "rollout.critic_decay", self.critic_decay, "in [0, 1]")
        if self.advantage == "tree" and self.plan == "shared_prefix":
            raise ConfigError(
                "rollout.advantage 'tree' equals 'group' with rollout.plan 'shared_prefix', where all members part at "
                "once; choose the plan 'tree'"
            )
        for name, idle, kind in (("tree_discount", 0.5, "tree"), ("critic_decay", 0.8, "critic")):
            if self.advantage != kind and getattr(self, name) != idle:
                raise ConfigError(
                    f"rollout.{name} has no effect with rollout.advantage {self.advantage!r}; leave it at {idle}, "
                    f"or choose {kind!r}"
                )
        if self.all_success_advantage and not self.all_success_rule:
            raise ConfigError(
                "rollout.all_success_advantage has no effect without rollout.all_success_rule; leave it at 0"
            )
        if self.advantage == "critic" and (self.all_success_advantage or not self.all_success_rule):
            raise ConfigError(
                "rollout.all_success_rule and all_success_advantage have no effect with rollout.advantage 'critic', "
                "which treats all groups alike; leave them at true and 0"
            )


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationConfig:
    """Evaluation during training, on fixed validation scenes."""

    every: int = 5
    """Iterations between two evaluations; 0: by env steps, or only after the last iteration."""
    every_env_steps: int = 0
    """Env steps of training between two evaluations, in place of ``every``, which must then be 0. Runs whose iterations
    differ in size can so be compared at equal cost.
    """
    episodes: int = 40
    """Validation scenes per evaluation. The best policy is chosen by them; the test scenes are never touched."""

    def __post_init__(self) -> None:
        require(self.every >= 0, "validation.every", self.every, "at least 0")
        require(self.every_env_steps >= 0, "validation.every_env_steps", self.every_env_steps, "at least 0")
        if self.every and self.every_env_steps:
            raise ConfigError(
                f"validation.every is {self.every} and validation.every_env_steps {self.every_env_steps}; "
                "set one of them to 0"
            )
        require(self.episodes >= 1, "validation.episodes", self.episodes, "at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class RlConfig:
    """``z1 rl``: improve a policy on one task in the simulator."""

    policy: str
    """Folder of the policy to start from: a run folder of ``z1 sft`` or ``z1 rl``, or a policy folder."""
    task: str
    """Task id, for example ``metaworld/window-open``; ``z1 tasks`` lists them."""
    out: str
    """Run folder to create."""
    iterations: int = 30
    """Iterations: collect groups, update."""
    seed: int = 0
    """Run seed; every random stream of the run follows from it."""
    env_step_budget: int = 0
    """Env steps after which training ends, evaluations not counted; 0: no limit."""
    time_budget_s: float = 0.0
    """Seconds of training after which no further iteration starts; 0: no limit. A run that ends so is not reproducible
    in length.
    """
    device: str = "auto"
    """``cpu``, ``cuda`` or ``auto``."""
    precision: Precision = "float32"
    """What the network computes in. With ``bfloat16`` the weights that train, their gradients and the optimizer's state
    stay in float32. ``auto``: bfloat16 on a GPU, float32 on a CPU, settled when the run begins.
    """
    wandb: bool = False
    """Also log to Weights & Biases."""
    sim: SimConfig = field(default_factory=SimConfig)
    acting: ActingConfig = field(default_factory=ActingConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    update: UpdateConfig = field(default_factory=UpdateConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    selection: Literal["off", "auto"] = "off"
    """Who decides whether the VLM trains: ``off``, ``update.mode``; ``auto``, a rule on the run's own training data
    after a probe of expert-only training, and one of joint training if the first one calls for it (docs/selection.md).
    """
    probe_env_steps: int = 0
    """``auto``: env steps of a probe."""

    def __post_init__(self) -> None:
        self._check_selection()
        require(self.iterations >= 1, "iterations", self.iterations, "at least 1")
        require(self.env_step_budget >= 0, "env_step_budget", self.env_step_budget, "at least 0")
        require(self.time_budget_s >= 0, "time_budget_s", self.time_budget_s, "at least 0")
        excluded = int(self.rollout.exclude_last_step)
        require(
            self.acting.denoise_steps >= self.rollout.stochastic_steps + excluded,
            "acting.denoise_steps",
            self.acting.denoise_steps,
            f"at least {self.rollout.stochastic_steps + excluded} with rollout.stochastic_steps "
            f"{self.rollout.stochastic_steps}" + " and rollout.exclude_last_step" * excluded,
        )
        chunks = -(-self.sim.horizon // self.acting.chunk_length)
        if self.sim.horizon:
            require(
                self.rollout.prefix < chunks,
                "rollout.prefix",
                self.rollout.prefix,
                f"less than the {chunks} chunks of an episode (sim.horizon / acting.chunk_length)",
            )
        if self.rollout.plan == "flat" and self.update.count == "segments":
            raise ConfigError(
                "update.count 'segments' has no effect with rollout.plan 'flat', where nothing is shared; "
                "leave it at 'members'"
            )
        if self.update.objective == "filtered_bc" and self.rollout.advantage != "group":
            raise ConfigError(
                "rollout.advantage has no effect with update.objective 'filtered_bc', which weighs successes alike; "
                "leave it at 'group'"
            )
        if self.update.objective == "grpo":
            require(self.rollout.noise_level > 0, "rollout.noise_level", self.rollout.noise_level, "positive with GRPO")

    def _check_selection(self) -> None:
        """Refuses settings that leave selective joint training nothing to compare, or that it would override."""
        if self.selection == "off":
            if self.probe_env_steps:
                raise ConfigError(
                    "probe_env_steps has no effect with selection 'off'; choose selection 'auto' or leave it at 0"
                )
            return
        require(self.probe_env_steps >= 1, "probe_env_steps", self.probe_env_steps, "at least 1 with selection 'auto'")
        require(self.update.mode == "expert", "update.mode", self.update.mode, "'expert' with selection 'auto'")
        require(
            self.time_budget_s == 0,
            "time_budget_s",
            self.time_budget_s,
            "0 with selection 'auto', whose probes are compared at equal env steps",
        )
        if self.env_step_budget and self.env_step_budget < 2 * self.probe_env_steps:
            raise ConfigError(
                f"env_step_budget is {self.env_step_budget}; with selection 'auto' it must be 0 or at least two probes "
                f"of probe_env_steps {self.probe_env_steps}"
            )
        if not (self.validation.every or self.validation.every_env_steps):
            raise ConfigError(
                "validation.every is 0 and so is validation.every_env_steps; selection 'auto' compares probes by "
                "validation and with the start, so set one of them"
            )


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


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalConfig:
    """``z1 eval``: success of one or several policies on the same scenes."""

    policy: tuple[str, ...]
    """Folders of the policies; the first one is what the others are compared with."""
    task: tuple[str, ...]
    """Task ids."""
    out: str
    """JSON file to write."""
    episodes: int = 100
    """Scenes per task."""
    split: Literal["train", "validation", "test"] = "test"
    """Which scenes; training never sees ``test``."""
    instruction: str = ""
    """What the policies are told, instead of the instruction of each task; empty: the task's own. With another one than
    the task's, success tells how much a policy listens.
    """
    seed: int = 0
    """Seed of the initial noise of each chunk; all policies get the same noise."""
    live_members: int = 100
    """Most episodes that run at the same time."""
    overwrite: bool = False
    """Whether an existing output file is replaced."""
    device: str = "auto"
    """``cpu``, ``cuda`` or ``auto``."""
    sim: SimConfig = field(default_factory=SimConfig)
    acting: ActingConfig = field(default_factory=ActingConfig)

    def __post_init__(self) -> None:
        require(len(self.policy) >= 1, "policy", self.policy, "one or more folders")
        require(len(self.task) >= 1, "task", self.task, "one or more task ids")
        require(self.episodes >= 1, "episodes", self.episodes, "at least 1")
        require(self.live_members >= 1, "live_members", self.live_members, "at least 1")


def config_to_dict(config: Any) -> dict[str, Any]:
    """A config dataclass as plain JSON values (tuples become lists)."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(inner) for name, inner in value.items()}
        return [plain(inner) for inner in value] if isinstance(value, (tuple, list)) else value

    return plain(dataclasses.asdict(config))


def config_from_dict(cls: type, data: dict[str, Any], *, source: str | Path) -> Any:
    """The config dataclass of ``config_to_dict``'s result.

    Args:
        cls: The dataclass.
        data: Plain values.
        source: Where they came from, for messages.

    Raises:
        ConfigError: A value is missing or not allowed.
        UnknownNameError: A setting is not known.
    """
    hints = typing.get_type_hints(cls)
    names = {f.name for f in dataclasses.fields(cls)}
    for name in data:
        if name not in names:
            raise UnknownNameError(f"setting in {source}", name, names)
    values: dict[str, Any] = {}
    for name, value in data.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            values[name] = config_from_dict(hint, value, source=source)
        elif typing.get_origin(hint) is tuple:
            values[name] = (value,) if isinstance(value, str) else tuple(value)
        elif typing.get_origin(hint) is Literal:
            require(value in typing.get_args(hint), f"{name} in {source}", value, f"one of {typing.get_args(hint)}")
            values[name] = value
        else:
            require(
                isinstance(value, (hint, int) if hint is float else hint),
                f"{name} in {source}",
                value,
                f"of type {hint}",
            )
            values[name] = value
    try:
        return cls(**values)
    except TypeError as error:
        raise ConfigError(f"{source} is incomplete: {error}") from None
