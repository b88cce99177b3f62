"""What RoboCasa costs by phase: building a scene, stepping, rendering once per chunk, swapping members.

    python benchmarks/robocasa_speed.py --task CloseDrawer --out benchmarks/results/robocasa_speed.json

One host, one group in one scene, random actions in chunks; three images per member and chunk. Rates are per second of
the host's own CPU time, so that other work on the machine matters little; wall-clock times stand beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from z1 import machine
from z1.files import write_json
from z1.sims.pool import SimPool, SimSpec
from z1.types import Scene


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_mib(pid: int) -> float:
    """Largest resident memory of a process so far."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return 0.0


def measure(task: str, quality: str, size: int, members: int, length: int, chunks: int) -> dict[str, Any]:
    """Plays chunks in one scene and takes the time."""
    rng = np.random.default_rng(0)
    with SimPool(SimSpec(simulator="robocasa", image_size=size, quality=quality), 1, timeout_s=300) as pool:
        (pid,) = pool.host_pids
        began, cpu = time.perf_counter(), cpu_s(pid)
        (group,) = pool.start([Scene.of_split(f"robocasa/{task}", "test", 0)], members)
        first = {"wall_s": time.perf_counter() - began, "cpu_s": cpu_s(pid) - cpu}
        before = pool.counters.copy()
        began, cpu = time.perf_counter(), cpu_s(pid)
        for _ in range(chunks):
            actions = rng.uniform(-1, 1, (len(group), length, 12)).astype(np.float32)
            outcome = pool.step_chunk(group, actions)
            group = [member for member, done in zip(group, outcome.done, strict=True) if not done]
        after, wall, cpu = pool.counters.copy(), time.perf_counter() - began, cpu_s(pid) - cpu
        pool.release(group)
        began = time.perf_counter()
        build_cpu = cpu_s(pid)
        pool.release(pool.start([Scene.of_split(f"robocasa/{task}", "test", 1)])[0])
        second = {"wall_s": time.perf_counter() - began, "cpu_s": cpu_s(pid) - build_cpu}
        peak = peak_mib(pid)
    steps, images = after.env_steps - before.env_steps, after.renders - before.renders
    swaps = after.snapshots + after.restores - before.snapshots - before.restores
    return {
        "quality": quality,
        "image_size": size,
        "members": members,
        "chunk_length": length,
        "env_steps": steps,
        "env_steps_per_cpu_s": steps / cpu,
        "env_steps_per_s": steps / wall,
        "env_step_ms": (after.sim_s - before.sim_s) / steps * 1e3,
        "image_ms": (after.render_s - before.render_s) / max(1, images) * 1e3,
        "swap_ms": (after.snapshot_s - before.snapshot_s) / max(1, swaps) * 1e3,
        "scene_builds": after.scene_builds,
        "first_scene": first,
        "next_scene": second,
        "peak_memory_mib": peak,
        "stand_ins": pool.info.stand_ins,
        "version": pool.info.version,
        "renderer": pool.info.renderer,
    }


def main() -> None:
    """Measures and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="CloseDrawer")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--chunk-length", type=int, default=8)
    parser.add_argument("--chunks", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("robocasa_speed.json"))
    options = parser.parse_args()
    result = {
        "command": "python benchmarks/robocasa_speed.py",
        "hardware": f"{machine.cpu_model()}, {machine.cores()} cores, {machine.memory_gib():.0f} GiB",
        "load": list(os.getloadavg()),
        "task": options.task,
        "runs": [
            measure(options.task, quality, options.image_size, options.members, options.chunk_length, options.chunks)
            for quality in ("default", "fast")
        ],
    }
    write_json(options.out, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
