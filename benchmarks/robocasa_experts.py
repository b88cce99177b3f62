"""How often the scripted demonstrators of RoboCasa solve training scenes, and how long they take.

    python benchmarks/robocasa_experts.py --out benchmarks/results/robocasa_experts.json

Scenes 0, 1, 2, ... of the train split, the same as ``z1 demos`` records, once for every noise level. Tasks and scenes
that the result file holds already are not run again.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from z1 import machine
from z1.errors import Z1Error
from z1.eval.stats import wilson
from z1.files import read_json, write_json
from z1.seeding import Seeds
from z1.sims.pool import SimPool, SimSpec
from z1.types import Scene

SCHEMA = "z1.robocasa_experts/1"


def episode(pool: SimPool, scene: Scene, noise_std: float) -> int:
    """Env steps until the expert has solved the scene; 0: it did not."""
    noise = Seeds(0).rng("demos", scene.task, scene.seed)
    share = np.asarray(pool.info.expert_noise, np.float32)
    (member,) = pool.start([scene])[0]
    steps = 0
    while True:
        action = pool.expert_actions([member])
        executed = np.clip(action + noise_std * share * noise.standard_normal(len(share), dtype=np.float32), -1, 1)
        outcome = pool.step_chunk([member], executed[:, None])
        steps += 1
        if outcome.done[0]:
            pool.release([member])
            return steps if outcome.success[0] else 0


def summary(steps: list[int]) -> dict[str, Any]:
    """Rate and length of the episodes of a task at one noise level."""
    solved = [count for count in steps if count]
    low, high = wilson(len(solved), len(steps))
    return {
        "scenes": len(steps),
        "solved": len(solved),
        "low": low,
        "high": high,
        "median_env_steps": statistics.median(solved) if solved else 0,
        "max_env_steps": max(solved, default=0),
        "failed_scenes": [index for index, count in enumerate(steps) if not count],
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", nargs="*", default=[], help="default: all that have an expert")
    parser.add_argument("--scenes", type=int, default=20)
    parser.add_argument("--noise", type=float, nargs="*", default=[0.0, 0.1])
    arguments = parser.parse_args()
    spec = SimSpec(simulator="robocasa", cameras=("robot0_eye_in_hand",), image_size=8, quality="fast")
    with SimPool(spec, 1, timeout_s=600) as pool:
        info = pool.info
        result: dict[str, Any] = {
            "schema": SCHEMA,
            "version": info.version,
            "stand_ins": info.stand_ins,
            "hardware": f"{machine.cpu_model()}, {machine.cores()} cores",
            "steps": {},
        }
        if arguments.out.exists():
            result["steps"] = read_json(arguments.out, Z1Error)["steps"]
        for task in arguments.tasks or info.experts:
            rows = result["steps"].setdefault(task, {f"{noise:g}": [] for noise in arguments.noise})
            while any(len(rows.setdefault(f"{noise:g}", [])) < arguments.scenes for noise in arguments.noise):
                index = min(len(rows[f"{noise:g}"]) for noise in arguments.noise)
                for noise in arguments.noise:
                    if len(rows[f"{noise:g}"]) == index:
                        rows[f"{noise:g}"].append(
                            episode(pool, Scene.of_split(f"robocasa/{task}", "train", index), noise)
                        )
                write_json(arguments.out, result)
            result["summary"] = {
                name: {noise: summary(steps) for noise, steps in by_noise.items()}
                for name, by_noise in sorted(result["steps"].items())
            }
            write_json(arguments.out, result)
            for noise, row in result["summary"][task].items():
                solved = f"{row['solved']} of {row['scenes']}"
                print(f"{task:24s} noise {noise:4s} {solved}, median {row['median_env_steps']} env steps", flush=True)


if __name__ == "__main__":
    main()
