"""Does a policy of several tasks listen? The same scenes with the right instruction and with that of the opposite task.

    z1 demos --task metaworld/faucet-open --episodes 50 --out data/faucet-open      # and so for the other tasks
    z1 sft --dataset data/faucet-open data/faucet-close --out runs/faucets
    python benchmarks/language.py --policy runs/faucets --pairs faucet-open:faucet-close --out language.json

Two numbers per task: success on the test scenes with either instruction, paired by scene, and how far apart the first
chunk's actions are, from the same observation and the same noise. A MetaWorld scene says nothing by itself: the
instruction comes from the task id, and both tasks of a pair show the same objects. Only in the faucet pair both tasks
also start from the same state; elsewhere the picture alone can tell (a drawer that is shut wants opening), so that a
policy which never listens still succeeds, with either instruction alike.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from z1.commands import open_pool, policy_place, simulator_record
from z1.config import ActingConfig, SimConfig
from z1.convert import open_policy
from z1.errors import RunFolderError
from z1.eval.evaluate import evaluate_policy
from z1.eval.stats import paired_difference, wilson
from z1.files import write_json
from z1.policy.policy import Policy
from z1.policy.sampler import sample_chunk
from z1.seeding import Seeds
from z1.sims.pool import SimPool
from z1.sims.suites import instruction
from z1.types import Observations, Scene

PAIRS = ("drawer-open:drawer-close", "faucet-open:faucet-close", "door-lock:door-unlock")


@torch.no_grad()
def first_actions(policy: Policy, observations: Observations, acting: ActingConfig, seed: int) -> np.ndarray:
    """float32 ``[B, C, A]``, env actions of the first chunk from noise that depends on the seed and the row alone."""
    shape = (len(observations), policy.config.horizon, policy.config.action_dim)
    noise = Seeds(seed).rng("language").standard_normal(shape, dtype=np.float32)
    sample = sample_chunk(
        policy.model,
        policy.model.encode_prefix(policy.prepare(observations)),
        initial_noise=torch.from_numpy(noise).to(policy.device),
        denoise_steps=acting.denoise_steps,
        noise_level=0.0,
        sde_index=None,
        sde_noise=None,
        executed_steps=acting.chunk_length,
        counted_dims=policy.counted_dims,
    )
    return policy.env_actions(sample.actions)[:, : acting.chunk_length]


def action_gap(
    pool: SimPool, policy: Policy, acting: ActingConfig, scenes: list[Scene], wrong: str, seed: int
) -> float:
    """Mean absolute difference of the first chunk's actions between the two instructions, in env units."""
    members = [group[0] for group in pool.start(scenes, 1)]
    observations = pool.observe(members)
    pool.release(members)
    told, mistold = (first_actions(policy, o, acting, seed) for o in (observations, observations.told(wrong)))
    return float(np.abs(told - mistold).mean())


def measure(policy: Policy, task: str, other: str, options: argparse.Namespace) -> dict[str, Any]:
    """One task, with its own instruction and with that of the other task."""
    acting = ActingConfig(denoise_steps=options.denoise_steps, chunk_length=options.chunk_length)
    scenes = [Scene.of_split(task, "test", index) for index in range(options.episodes)]
    with open_pool(policy, task, SimConfig(hosts=options.hosts, horizon=options.horizon)) as pool:
        right, wrong = (
            evaluate_policy(pool, policy, acting, scenes, seed=options.seed, live_members=100, instruction=text)
            for text in ("", instruction(other))
        )
        gap = action_gap(pool, policy, acting, scenes[:20], instruction(other), options.seed)
        simulator = simulator_record(pool.info)
    valid = [(a.success, b.success) for a, b in zip(right, wrong, strict=True) if not (a.invalid or b.invalid)]
    told, mistold = (np.array(column, np.bool_) for column in zip(*valid, strict=True))
    pair = paired_difference(mistold, told)
    return {
        "task": task,
        "instruction": instruction(task),
        "wrong_instruction": instruction(other),
        "episodes": len(valid),
        "right": [float(told.mean()), *wilson(int(told.sum()), len(valid))],
        "wrong": [float(mistold.mean()), *wilson(int(mistold.sum()), len(valid))],
        "difference": [pair.difference, pair.low, pair.high],
        "p_value": pair.p_value,
        "action_gap": gap,
        **simulator,
    }


def table_of(rows: list[dict[str, Any]]) -> Table:
    """The rows for a terminal."""
    table = Table("task", "right, % (95 %)", "wrong, % (95 %)", "difference, points (95 %)", "action gap")
    for row in rows:
        rates = [
            f"{100 * v:.1f} ({100 * low:.0f} to {100 * high:.0f})" for v, low, high in (row["right"], row["wrong"])
        ]
        value, low, high = (100 * x for x in row["difference"])
        table.add_row(row["task"], *rates, f"{value:+.1f} ({low:+.1f} to {high:+.1f})", f"{row['action_gap']:.3f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", required=True, help="run folder of z1 sft or z1 rl, or a policy folder")
    parser.add_argument("--pairs", nargs="+", default=PAIRS, help="MetaWorld tasks that share a scene, ONE:OTHER")
    parser.add_argument("--episodes", type=int, default=100, help="test scenes per task")
    parser.add_argument("--horizon", type=int, default=200, help="env steps per episode")
    parser.add_argument("--denoise-steps", type=int, default=4)
    parser.add_argument("--chunk-length", type=int, default=8)
    parser.add_argument("--hosts", type=int, default=2, help="simulator processes")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise")
    parser.add_argument("--out", required=True, type=Path, help="JSON file to write")
    options = parser.parse_args()
    if options.out.exists():
        raise RunFolderError(f"{options.out} exists already; choose another --out")
    policy = open_policy(policy_place(options.policy))
    rows = []
    for pair in options.pairs:
        one, other = (f"metaworld/{name}" for name in pair.split(":"))
        rows += [measure(policy, one, other, options), measure(policy, other, one, options)]
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    write_json(options.out, {"schema": "z1.language/1", "settings": settings, "rows": rows})
    Console().print(table_of(rows))


if __name__ == "__main__":
    main()
