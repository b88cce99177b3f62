"""Runs under RoboCasa's interpreter: env steps with and without the work that z1 leaves out.

    PYTHON tests/robocasa/repeats_program.py SEED TASK [TASK ...]

One JSON line per task: whether all numbers are the same, and CPU milliseconds per env step.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))

from z1.sims import robocasa_scene
from z1.sims.adapter import AdapterSettings, make_adapter
from z1.sims.robocasa_repeats import leave_out_repeats
from z1.sims.still_bodies import StillBodies

STEPS = 40
"""Env steps of an episode."""


class Everything:
    """In place of ``StillBodies``: every collision is checked."""

    asleep = ()

    def __init__(self, *arguments: object) -> None:
        pass

    def watch(self, sim: object) -> None:
        """Leaves the simulation as it is."""

    def look_again(self) -> None:
        """Nothing to look for."""


def play(task: str, seed: int, still: type, leave_out: Callable[[Any, Any], None]) -> tuple[str, float, int]:
    """An episode, another one from its middle, and the first again.

    Args:
        task: Name of the task.
        seed: Scene seed.
        still: What decides on collision checks.
        leave_out: What is done to the environment.

    Returns:
        Digest of every env step's physics, contacts, forces and fixtures; CPU milliseconds per env step; how many
        trees are asleep at the end.
    """
    robocasa_scene.StillBodies, robocasa_scene.leave_out_repeats = still, leave_out
    adapter = make_adapter(AdapterSettings(simulator="robocasa", cameras=(), image_size=64, horizon=0, quality="fast"))
    scene = adapter.task_sim(f"{task}:{seed}")
    digest, seconds, rng = hashlib.blake2b(), 0.0, np.random.default_rng(0)
    states = [scene.capture()]
    for start in (0, 1, 0):
        scene.load(states[start])
        for number in range(STEPS):
            action = rng.uniform(-1, 1, 12).astype(np.float32)
            began = time.process_time()
            scene.step(action)
            seconds += time.process_time() - began
            data = scene._data
            for array in (scene._state._physics(), data.qacc, data.contact.geom, data.contact.dist, data.efc_force):
                digest.update(np.ascontiguousarray(array).tobytes())
            digest.update(repr(list(scene._state._fixture_values())).encode())
            if number == STEPS // 2:
                states.append(scene.capture())
    return digest.hexdigest(), 1e3 * seconds / (3 * STEPS), len(scene._still.asleep)


def compare(task: str, seed: int) -> dict[str, Any]:
    """The same episodes both ways."""
    whole, whole_ms, _ = play(task, seed, Everything, lambda env, mujoco: None)
    checks, checks_ms, asleep = play(task, seed, StillBodies, lambda env, mujoco: None)
    less, less_ms, _ = play(task, seed, StillBodies, leave_out_repeats)
    return {
        "task": task,
        "seed": seed,
        "same": whole == checks == less,
        "asleep": asleep,
        "everything_ms": round(whole_ms, 2),
        "without_known_checks_ms": round(checks_ms, 2),
        "without_repeats_ms": round(less_ms, 2),
    }


def main() -> None:
    """Compares, a line per task."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for task in sys.argv[2:]:
        print(json.dumps(compare(task, int(sys.argv[1]))), file=out, flush=True)
    os._exit(0)  # GL contexts complain when the interpreter ends


if __name__ == "__main__":
    main()
