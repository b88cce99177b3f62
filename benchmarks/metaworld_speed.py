"""What an env step of each MetaWorld task costs with and without MetaWorld's detours; the numbers are the same.

    MUJOCO_GL=egl OMP_NUM_THREADS=1 python benchmarks/metaworld_speed.py --out FILE

Each task twice from the same scene with the same noisy expert actions: success, observation and physics of every env
step and the environment's own attributes at the end are compared bit by bit. Processor time, without images.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from z1.files import write_json
from z1.machine import cores, cpu_model
from z1.sims import metaworld
from z1.sims.adapter import AdapterSettings, make_adapter
from z1.sims.metaworld_detours import without_detours
from z1.sims.suites import all_tasks
from z1.types import Scene

SETTINGS = AdapterSettings(simulator="metaworld", cameras=("corner2",), image_size=16, horizon=0, quality="")


def run(task: str, env_steps: int, prepare: Callable[[Any], Any]) -> tuple[list[Any], float]:
    """What an episode looks like to the bit, and processor seconds per env step.

    Args:
        task: Name without prefix.
        env_steps: How many.
        prepare: From MetaWorld's environment class to the one to use.
    """
    metaworld.without_detours = prepare  # type: ignore[attr-defined]
    adapter = make_adapter(SETTINGS)
    try:
        sim = adapter.task_sim(task)
        sim.reset(Scene.of_split(f"metaworld/{task}", "train", 0).seed)
        rng = np.random.default_rng(0)
        seen: list[Any] = []
        seconds = 0.0
        for _ in range(env_steps):
            noisy = sim.expert_action() + 0.3 * rng.standard_normal(4)
            action = np.clip(noisy, -1, 1).astype(np.float32)
            began = time.process_time()
            success = sim.step(action)
            seconds += time.process_time() - began
            seen.append((success, sim.observation.tobytes(), sim.capture().physics.tobytes()))
        attributes = sim.capture().attributes
        seen.append({n: v.tobytes() if isinstance(v, np.ndarray) else repr(v) for n, v in attributes.items()})
        return seen, seconds / env_steps
    finally:
        adapter.close()
        metaworld.without_detours = without_detours  # type: ignore[attr-defined]


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="*", default=[t.split("/")[1] for t in all_tasks() if "metaworld/" in t])
    parser.add_argument("--env-steps", type=int, default=100)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    for task in options.tasks:
        (quick, quick_s), (usual, usual_s) = (run(task, options.env_steps, p) for p in (without_detours, lambda c: c))
        row = {"task": task, "equal": quick == usual, "ms": 1e3 * quick_s, "ms_before": 1e3 * usual_s}
        rows.append(row)
        print(f"{task:28s} {row['ms']:.3f} ms, before {row['ms_before']:.3f}, equal: {row['equal']}", flush=True)
    means = {name: statistics.mean(row[name] for row in rows) for name in ("ms", "ms_before")}
    print(f"mean {means['ms']:.3f} ms, before {means['ms_before']:.3f}; equal: {all(row['equal'] for row in rows)}")
    if options.out:
        machine = {"processor": cpu_model(), "cores": cores()}
        write_json(options.out, {"env_steps": options.env_steps, "rows": rows, "means": means, "machine": machine})


if __name__ == "__main__":
    main()
