"""Settings of ``z1 rl``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from z1.config.base import (
    ActingConfig,
    Precision,
    SimConfig,
    require,
)
from z1.config.rollout import RolloutConfig
from z1.config.update import UpdateConfig
from z1.errors import ConfigError


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
