"""Rollout videos of policies on the same scenes, side by side in the report."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from z1.config import ActingConfig
from z1.policy.policy import Policy
from z1.policy.sampler import sample_chunk
from z1.seeding import Seeds
from z1.sims.pool import SimPool
from z1.types import Observations, Scene

FRAME_SIZE = 224
"""Height and width of a video frame in pixels."""


def film_episode(
    pool: SimPool,
    policy: Policy,
    acting: ActingConfig,
    scene: Scene,
    *,
    seed: int,
    camera: str,
    every: int,
    instruction: str = "",
) -> tuple[np.ndarray, bool]:
    """Runs an evaluation episode again and films it.

    The episode is the one that ``evaluate_policy`` runs with the same seed, up to the rounding that another batch size
    brings.

    Args:
        pool: The simulators.
        policy: The policy.
        acting: Denoise steps and chunk length.
        scene: The scene.
        seed: Seed of the noise.
        camera: Camera to film with.
        every: Env steps between two frames.
        instruction: What the policy is told instead of the task's own instruction; empty: the task's own.

    Returns:
        uint8 ``[T, FRAME_SIZE, FRAME_SIZE, 3]`` and whether the episode succeeded.
    """
    member = pool.start([scene], 1)[0][0]
    frames = [pool.frames([member], camera, FRAME_SIZE)[0]]
    seeds, chunk, success, ended = Seeds(seed), 0, False, False
    while not ended:
        actions = _chunk(pool.observe([member]).told(instruction), policy, acting, seeds, scene, chunk)
        for first in range(0, acting.chunk_length, every):
            outcome = pool.step_chunk([member], actions[:, first : min(first + every, acting.chunk_length)])
            success, ended = bool(outcome.success[0]), bool(outcome.done[0])
            if not outcome.invalid[0]:
                frames.append(pool.frames([member], camera, FRAME_SIZE)[0])
            if ended:
                break
        chunk += 1
    pool.release([member])
    return np.stack(frames), success


@torch.no_grad()
def _chunk(
    observations: Observations, policy: Policy, acting: ActingConfig, seeds: Seeds, scene: Scene, chunk: int
) -> np.ndarray:
    shape = (1, policy.config.horizon, policy.config.action_dim)
    rng = seeds.rng("evaluation", scene.task, scene.seed, "member", 0, "chunk", chunk)
    sample = sample_chunk(
        policy.model,
        policy.model.encode_prefix(policy.prepare(observations)),
        initial_noise=torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)).to(policy.device),
        denoise_steps=acting.denoise_steps,
        noise_level=0.0,
        sde_index=None,
        sde_noise=None,
        executed_steps=acting.chunk_length,
        counted_dims=policy.counted_dims,
    )
    return policy.env_actions(sample.actions)


def choose_scenes(evaluation: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Scenes worth a look: first those that the second policy gained, then lost ones, then scenes both solve.

    Args:
        evaluation: Schema ``z1.evaluation/1`` with two policies.
        count: How many scenes.

    Returns:
        Records with ``task``, ``seed``, ``before`` and ``after`` (success of the two policies).
    """
    outcome: dict[tuple[str, int], dict[int, bool]] = {}
    for episode in evaluation["episodes"]:
        if not episode["invalid"]:
            outcome.setdefault((episode["task"], episode["seed"]), {})[episode["policy"]] = episode["success"]
    pairs = [
        {"task": task, "seed": seed, "before": o[0], "after": o[1]}
        for (task, seed), o in outcome.items()
        if len(o) == 2
    ]
    gained = [p for p in pairs if p["after"] and not p["before"]]
    lost = [p for p in pairs if p["before"] and not p["after"]]
    same = [p for p in pairs if p["before"] == p["after"]]
    return (gained[: max(count - 1, 1)] + lost[:1] + same + gained[max(count - 1, 1) :])[:count]
