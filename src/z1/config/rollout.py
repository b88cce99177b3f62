"""Settings of collecting an iteration's groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from z1.config.base import (
    require,
)
from z1.errors import ConfigError


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
    noise_correlation: float = 0.0
    """rho, correlation of that noise between an env step of a chunk and the next. 0, as in the paper: independent. The
    closer to 1, the less the noise of neighbouring steps cancels out in what the robot does.
    """
    likelihood_modes: int = 0
    """n, how many of a chunk's slowest movements (cosines over its executed env steps) count in the likelihood; what
    the robot averages away would only be noise in the gradient. 0, as in the paper: every env step counts.
    """
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
    """``group``: a member's return against its group's. ``tree``: a segment's mean return against its siblings'; the
    same as ``group`` where all members part at once. ``critic``: what each chunk changed in the return that a critic
    expects, learned from the same rollouts.
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
        require(0 <= self.noise_correlation < 1, "rollout.noise_correlation", self.noise_correlation, "in [0, 1)")
        require(self.likelihood_modes >= 0, "rollout.likelihood_modes", self.likelihood_modes, "at least 0")
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
            for name, value in (("prefix", 0), ("prefix_schedule", "fixed")):
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
