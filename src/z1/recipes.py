"""Named recipes: complete settings that are known to work together, as functions that a command line can override.

A recipe takes the paths that only the user knows and returns a config.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from z1.config import (
    ActingConfig,
    EvalConfig,
    RlConfig,
    RolloutConfig,
    SftConfig,
    SimConfig,
    UpdateConfig,
    ValidationConfig,
)
from z1.data.record import DemoConfig


def sft_tiny(dataset: tuple[str, ...], out: str) -> SftConfig:
    """A new tiny policy, on a laptop's CPU, in minutes."""
    return SftConfig(dataset=dataset, out=out)


def sft_pi05(dataset: tuple[str, ...], out: str) -> SftConfig:
    """Fine-tuning of a full-size pi0.5 (give --policy), with openpi's optimizer settings."""
    return SftConfig(
        dataset=dataset,
        out=out,
        model="pi05",
        steps=30_000,
        batch_size=32,
        microbatch=8,
        learning_rate=2.5e-5,
        warmup_steps=1_000,
        ema_decay=0.99,
        precision="auto",
        validate_every=1_000,
    )


def rl_tiny(policy: str, task: str, out: str) -> RlConfig:
    """The tiny policy on a CPU with GRPO on trees: three stochastic denoise steps per chunk, of which the likelihood
    sees everything that tells members apart, and full-batch steps that end at the KL limit. What won over six tasks and
    three seeds (benchmarks/).
    """
    return RlConfig(
        policy=policy,
        task=task,
        out=out,
        iterations=20,
        rollout=RolloutConfig(
            groups=4,
            plan="tree",
            prefix=4,
            stochastic_steps=3,
            initial_noise="group",
            max_env_steps=6_000,
        ),
        update=UpdateConfig(objective="grpo", learning_rate=1e-4, epochs=8, target_kl=0.03, shorten_last_step=True),
    )


def rl_tiny_awfm(policy: str, task: str, out: str) -> RlConfig:
    """As ``tiny``, with advantage-weighted flow matching instead of GRPO.

    Groups in which all succeeded are kept, with a small advantage: an objective that never sees what the policy can do
    already forgets it.
    """
    base = rl_tiny(policy, task, out)
    return replace(
        base,
        rollout=RolloutConfig(groups=8, filter_high=1.0, all_success_advantage=0.5),
        update=UpdateConfig(objective="awfm", learning_rate=3e-4, epochs=10),
    )


def rl_paper(policy: str, task: str, out: str) -> RlConfig:
    """The numbers of Z-1 (arXiv 2606.31846), with its tree, P falling from 15 to 0; for a full-size pi0.5 on a GPU."""
    return RlConfig(
        policy=policy,
        task=task,
        out=out,
        iterations=100,
        precision="auto",
        sim=SimConfig(hosts=64),
        acting=ActingConfig(denoise_steps=4, chunk_length=10),
        rollout=RolloutConfig(
            groups=64,
            group_size=8,
            plan="tree",
            prefix=15,
            prefix_schedule="linear",
            reward_decay=0.998,
            live_members=512,
            max_env_steps=500_000,
        ),
        update=UpdateConfig(objective="grpo", learning_rate=5e-6, epochs=4, minibatch=1024, microbatch=16),
        validation=ValidationConfig(every=10, episodes=100),
    )


def rl_debug(policy: str, task: str, out: str) -> RlConfig:
    """The whole loop in seconds: nothing is learned."""
    return RlConfig(
        policy=policy,
        task=task,
        out=out,
        iterations=2,
        sim=SimConfig(hosts=1, horizon=24),
        rollout=RolloutConfig(groups=2, group_size=2, filter_low=0.0, filter_high=1.0, max_env_steps=200),
        update=UpdateConfig(objective="grpo", learning_rate=1e-4, epochs=1),
        validation=ValidationConfig(every=1, episodes=2),
    )


DEMO_TASK = "metaworld/door-open"
"""Task of ``z1 demo``: one of the study of rollouts (benchmarks/)."""


DEMO_HORIZON = 150
"""Env steps of a demo episode."""


def demo_demonstrations(task: str, out: str, *, seed: int, hosts: int) -> DemoConfig:
    """Few demonstrations, so that there is something left to learn."""
    return DemoConfig(task=(task,), episodes=12, out=out, seed=seed, hosts=hosts)


def demo_sft(dataset: str, out: str, *, seed: int) -> SftConfig:
    """A new tiny policy, trained so shortly that its success depends little on the seed (benchmarks/)."""
    return replace(sft_tiny((dataset,), out), steps=125, seed=seed, validate_every=125)


def demo_rl(policy: str, task: str, out: str, *, seed: int, hosts: int, horizon: int) -> RlConfig:
    """What won the study of rollouts (benchmarks/), in a fixed number of env steps."""
    return replace(
        rl_tiny(policy, task, out),
        seed=seed,
        iterations=100,
        env_step_budget=100_000,
        sim=SimConfig(hosts=hosts, horizon=horizon),
        validation=ValidationConfig(every=0, every_env_steps=25_000, episodes=50),
    )


def demo_evaluation(
    policies: tuple[str, ...], task: str, out: str, *, episodes: int, hosts: int, horizon: int
) -> EvalConfig:
    """Both policies on the same test scenes."""
    return EvalConfig(
        policy=policies,
        task=(task,),
        out=out,
        episodes=episodes,
        overwrite=True,
        sim=SimConfig(hosts=hosts, horizon=horizon),
    )


SFT_RECIPES: dict[str, Callable[[tuple[str, ...], str], SftConfig]] = {"tiny": sft_tiny, "pi05": sft_pi05}
RL_RECIPES: dict[str, Callable[[str, str, str], RlConfig]] = {
    "tiny": rl_tiny,
    "tiny-awfm": rl_tiny_awfm,
    "paper": rl_paper,
    "debug": rl_debug,
}
