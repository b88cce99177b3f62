"""Env steps per second of z1's rollouts against gymnasium's AsyncVectorEnv, same task, same policy, in one run.

    python benchmarks/rollout_speed.py --task lever-pull --hosts 2 --out benchmarks/results/rollout_speed.json

The alternative is what a user would otherwise write: one environment per process in an ``AsyncVectorEnv``, both cameras
rendered at every env step, the policy called once per chunk on the batch of all environments. It is measured twice, at
MuJoCo's default quality and with the same fast rendering that z1 uses. The policy is the tiny pi0.5 with random
weights.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np

CAMERAS = ("corner2", "gripperPOV")
UPSIDE_DOWN = ("corner2",)
IMAGE_SIZE = 64
CHUNK_LENGTH = 8


def make_env(task: str, seed: int, fast: bool) -> Any:
    """A gymnasium environment that returns two rendered cameras at every step."""
    os.environ.setdefault("MUJOCO_GL", "egl")
    os.environ["LP_NUM_THREADS"] = "1"
    import gymnasium
    import mujoco
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    class TwoCameras(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(0, 255, (len(CAMERAS), IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        action_space = gymnasium.spaces.Box(-1.0, 1.0, (4,), np.float32)

        def __init__(self) -> None:
            env = ALL_V3_ENVIRONMENTS[f"{task}-v3"]()
            env._partially_observable = False
            env.__dict__.pop("sawyer_observation_space", None)
            env._freeze_rand_vec = False
            env.seeded_rand_vec = True
            env._set_task_called = True
            env.seed(seed)
            env.reset()
            env.max_path_length = 10**9
            if fast:
                env.model.vis.quality.shadowsize = 0
                env.model.vis.quality.offsamples = 0
            self._env = env
            self._renderer = mujoco.Renderer(env.model, IMAGE_SIZE, IMAGE_SIZE)

        def _images(self) -> np.ndarray:
            images = []
            for camera in CAMERAS:
                self._renderer.update_scene(self._env.data, camera)
                if fast:
                    self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
                    self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
                image = self._renderer.render()
                images.append(image[::-1, ::-1] if camera in UPSIDE_DOWN else image)
            return np.stack(images)

        def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
            self._env.reset()
            return self._images(), {}

        def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
            self._env.step(action)
            return self._images(), 0.0, False, False, {}

        def close(self) -> None:
            self._renderer.close()

    return TwoCameras()


def measure_alternative(task: str, envs: int, fast: bool, seconds: float) -> float:
    """Env steps per second of the AsyncVectorEnv loop."""
    from functools import partial

    import gymnasium
    import torch

    policy = make_policy()
    vector = gymnasium.vector.AsyncVectorEnv(
        [partial(make_env, task, seed, fast) for seed in range(envs)], context="spawn"
    )
    images, _ = vector.reset()
    steps, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        actions = act(policy, images, torch)
        for step in range(CHUNK_LENGTH):
            images, *_ = vector.step(actions[:, step])
            steps += envs
    rate = steps / (time.perf_counter() - began)
    vector.close()
    return rate


def make_policy() -> Any:
    """The tiny policy with random weights, for MetaWorld's state and action."""
    from z1.data.stats import compute_stats
    from z1.policy.config import PolicyConfig, ProcessorConfig
    from z1.policy.policy import Policy

    spread = compute_stats(np.linspace(-1, 1, 101)[:, None].repeat(4, axis=1))
    processor = ProcessorConfig.of_dataset(
        cameras=CAMERAS, state_stats=spread, action_stats=spread, normalization="quantile_openpi"
    )
    return Policy.create(PolicyConfig.tiny(image_size=IMAGE_SIZE), processor, seed=0)


def act(policy: Any, images: np.ndarray, torch: Any) -> np.ndarray:
    """A chunk for each environment, denoised with four ODE steps."""
    from z1.policy.sampler import sample_chunk
    from z1.types import Observations

    count = len(images)
    observations = Observations(
        images=images, state=np.zeros((count, 4), np.float32), instructions=("Pull the lever up",) * count
    )
    with torch.no_grad():
        sample = sample_chunk(
            policy.model,
            policy.model.encode_prefix(policy.prepare(observations)),
            initial_noise=torch.randn(count, policy.config.horizon, policy.config.action_dim),
            denoise_steps=4,
            noise_level=0.0,
            sde_index=None,
            sde_noise=None,
            executed_steps=CHUNK_LENGTH,
            counted_dims=range(4),
        )
    return policy.env_actions(sample.actions)


def measure_z1(task: str, hosts: int, groups: int, group_size: int) -> dict[str, float]:
    """Env steps per second of a collection, and which part of the cores' time was useful."""
    from z1.config import ActingConfig
    from z1.policy.prefix_cache import PrefixStore
    from z1.rollout.collector import Collector, Exploration
    from z1.rollout.tree import BranchPlan
    from z1.seeding import Seeds
    from z1.sims.pool import SimPool, SimSpec
    from z1.types import Scene

    spec = SimSpec(simulator="metaworld", cameras=CAMERAS, image_size=IMAGE_SIZE, horizon=200)
    with SimPool(spec, hosts) as pool:
        policy = make_policy()
        collector = Collector(
            pool, policy, ActingConfig(chunk_length=CHUNK_LENGTH), live_members=96, store=PrefixStore(policy.model)
        )

        def collect(first: int, count: int) -> Any:
            return collector.collect(
                (Scene.of_split(f"metaworld/{task}", "train", i) for i in range(first, first + count)),
                Seeds(0),
                ("benchmark",),
                plan=lambda number: BranchPlan.flat(group_size),
                groups=count,
                explore=Exploration(noise_level=0.5, exclude_last_step=True),
            )

        collect(0, hosts)
        before = pool.counters.copy()
        cost = collect(1000, groups).cost
        busy = pool.counters.host_busy_s - before.host_busy_s
        snapshots = pool.counters.snapshot_s - before.snapshot_s
    useful = cost.policy_s + (cost.sim_s + cost.render_s) / hosts
    return {
        "env_steps_per_s": cost.env_steps / cost.total_s,
        "useful_share": useful / cost.total_s,
        "policy_share": cost.policy_s / cost.total_s,
        "simulation_share": cost.sim_s / hosts / cost.total_s,
        "rendering_share": cost.render_s / hosts / cost.total_s,
        "host_busy_share": busy / hosts / cost.total_s,
        "snapshot_share": snapshots / hosts / cost.total_s,
        "env_steps": cost.env_steps,
        "seconds": cost.total_s,
    }


def main() -> None:
    """Measures and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="lever-pull")
    parser.add_argument("--hosts", type=int, default=2)
    parser.add_argument("--envs", type=int, default=16, help="environments of the alternative")
    parser.add_argument("--seconds", type=float, default=40.0, help="length of each measurement of the alternative")
    parser.add_argument("--groups", type=int, default=12)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/rollout_speed.json"))
    options = parser.parse_args()
    result: dict[str, Any] = {
        "task": options.task,
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "z1": measure_z1(options.task, options.hosts, options.groups, options.group_size),
        "alternative_fast_rendering": measure_alternative(options.task, options.envs, True, options.seconds),
        "alternative_default_rendering": measure_alternative(options.task, options.envs, False, options.seconds),
    }
    ours = result["z1"]["env_steps_per_s"]
    result["ratio_to_fast"] = ours / result["alternative_fast_rendering"]
    result["ratio_to_default"] = ours / result["alternative_default_rendering"]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
