"""Success of policies on fixed scenes: deterministic denoising, the same noise for every policy, the same scenes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from z1.config import ActingConfig
from z1.policy.policy import Policy
from z1.rollout.collector import Collector
from z1.rollout.tree import BranchPlan
from z1.seeding import Seeds
from z1.sims.pool import SimPool
from z1.types import Scene, SimInfo

LIVE_EPISODES = 100
"""Episodes that run at the same time where a task's scenes share one model."""

LIVE_MODELS = 16
"""Episodes that run at the same time where every scene is a compiled model of its own, 150 MB each in RoboCasa."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeResult:
    """One evaluation episode.

    Attributes:
        scene: Where it ran.
        success: Whether the task's success was reached before the horizon (the first success counts).
        steps: Env steps to the success, or executed in all.
        invalid: Whether the simulator lost it, so that it counts for nothing.
    """

    scene: Scene
    success: bool
    steps: int
    invalid: bool


def episodes_at_once(info: SimInfo) -> int:
    """How many episodes an evaluation runs at the same time unless it is told: as many as any machine has memory for.

    It does not depend on the number of hosts, so that the policy's batches do not either.
    """
    return LIVE_MODELS if info.model_per_scene else LIVE_EPISODES


def evaluate_policy(
    pool: SimPool,
    policy: Policy,
    acting: ActingConfig,
    scenes: Sequence[Scene],
    *,
    seed: int,
    live_members: int,
    on_tick: Callable[[int, int], None] | None = None,
    instruction: str = "",
) -> list[EpisodeResult]:
    """Runs one episode per scene with ODE denoising.

    Args:
        pool: The simulators.
        policy: The policy.
        acting: Denoise steps and chunk length.
        scenes: Scenes, all different.
        seed: Seed of the initial noise of each chunk; the noise depends on it, the scene and the chunk only.
        live_members: Most episodes that run at the same time.
        on_tick: Called with (env steps so far, episodes finished so far).
        instruction: What the policy is told instead of the task's own instruction; empty: the task's own.

    Returns:
        One result per scene, in the order given.

    Raises:
        SimulatorError: More than half of the episodes were lost.
    """
    collector = Collector(pool, policy, acting, live_members=live_members, on_tick=on_tick, instruction=instruction)
    rollouts = collector.collect(
        iter(scenes),
        Seeds(seed),
        ("evaluation",),
        plan=lambda number: BranchPlan.flat(1),
        groups=len(scenes),
        explore=None,
    )
    return [
        EpisodeResult(scene=e.scene, success=e.success, steps=e.env_steps, invalid=e.invalid)
        for group in rollouts.kept
        for e in group.episodes
    ]
