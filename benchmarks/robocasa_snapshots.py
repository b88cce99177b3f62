"""Are RoboCasa's snapshots exact? All 24 tasks, three places, and what must not be left out.

    python benchmarks/robocasa_snapshots.py --out benchmarks/results/robocasa_snapshots.json

For each task, in a process of its own: build a scene, execute random actions (arm, gripper, base), flip every latched
button, take a snapshot, go on for 24 env steps. Then put the snapshot back and execute the same actions: in the same
host; in a host that was busy with another scene before; in a new process. Compared bit by bit: the physics state, the
policy's state and success after every env step, three images every sixth, and the full snapshot at the end. Also: two
members of a group that take turns in one kitchen do what each does alone, and four parts of the state are left out one
at a time. One process runs at a time. Results are written after every task; tasks that are in the file are skipped.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))  # under the simulator's interpreter z1 is not installed

from z1.sims.adapter import AdapterSettings, make_adapter
from z1.sims.robocasa_tasks import TASKS
from z1.sims.snapshot import SimState, Snapshot, decode_snapshot, encode_snapshot

DEFAULT_SEED = 2_000_000_003
WARM_UP, COMPARED, LOOK_EVERY, IMAGE_SIZE = 15, 24, 6, 128
LEFT_OUT = ("solver warm start", "arm controller's origin", "gripper's current action", "fixtures' latched buttons")


def actions_of(task: str, stream: int) -> np.ndarray:
    """float32 ``[steps, 12]``: random; the base moves in every third stretch of five env steps."""
    rng = np.random.default_rng([stream, *task.encode()])
    actions = rng.uniform(-1, 1, (WARM_UP + COMPARED, 12)).astype(np.float32)
    moves_base = np.arange(len(actions)) // 5 % 3 == 2
    actions[:, 11] = np.where(moves_base, 1.0, -1.0)
    return actions


class Scene:
    """A scene under the simulator's interpreter and what it shows."""

    def __init__(self, adapter: Any, task: str, seed: int) -> None:
        began, cpu = time.perf_counter(), time.process_time()
        self.sim = adapter.task_sim(f"{task}:{seed}")
        self.build_wall_s, self.build_cpu_s = time.perf_counter() - began, time.process_time() - cpu
        self._cameras = adapter.info.cameras

    def images(self) -> str:
        """Hash of all images."""
        image = np.zeros((len(self._cameras), IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        for row, camera in enumerate(self._cameras):
            self.sim.render(camera, image[row])
        assert image.std() > 2
        return hashlib.blake2b(image.tobytes(), digest_size=8).hexdigest()

    def play(self, actions: np.ndarray, *, look: bool = True) -> list[str]:
        """Hash of what is seen at the start and after every env step; the last one is that of the whole state."""
        seen = [self.images() if look else ""]
        for number, action in enumerate(actions, 1):
            success = self.sim.step(action)
            picture = self.images() if look and number % LOOK_EVERY == 0 else ""
            content = self.sim.capture().physics.tobytes() + self.sim.proprioception().tobytes() + bytes([success])
            seen.append(hashlib.blake2b(content, digest_size=8).hexdigest() + picture)
        return [*seen, encoded(self.sim.capture()).hex()[-32:]]


def encoded(state: SimState) -> bytes:
    """A state as portable bytes."""
    return encode_snapshot(Snapshot(simulator="robocasa", version="", seed=0, steps=0, ended=False, state=state))


def first_difference(first: list[str], second: list[str]) -> int:
    """Env step at which two runs part, 0 for the moment of the restore; -1: nowhere."""
    pairs = enumerate(zip(first, second, strict=True))
    return next((number for number, (a, b) in pairs if a != b), -1)


def flip_buttons(sim: Any) -> list[str]:
    """Flips what latches; returns where."""
    flipped = [name for name, fixture in sim._env.fixtures.items() if "_turned_on" in vars(fixture)]
    for name in flipped:
        sim._env.fixtures[name]._turned_on = not sim._env.fixtures[name]._turned_on
    return flipped


def without(part: str, state: SimState, fresh: SimState, sim: Any) -> SimState:
    """The state as a forgetful restore into a freshly built scene would leave it: one part keeps its first value."""
    attributes = dict(state.attributes)
    if part == LEFT_OUT[0]:
        kinds, sizes = sim._mujoco.mjtState, sim._mujoco.mj_stateSize
        before = [kinds.mjSTATE_TIME, kinds.mjSTATE_QPOS, kinds.mjSTATE_QVEL, kinds.mjSTATE_ACT]
        begin = sum(sizes(sim._model, kind) for kind in before)
        rows = slice(begin, begin + sizes(sim._model, kinds.mjSTATE_WARMSTART))
        physics = state.physics.copy()
        physics[rows] = fresh.physics[rows]
        return dataclasses.replace(state, physics=physics)
    if part == LEFT_OUT[1]:
        label = "robot0/controller/right"
        old = {name: fresh.attributes[label][name] for name in ("origin_pos", "origin_ori")}
        attributes[label] = {**attributes[label], **old}
    elif part == LEFT_OUT[2]:
        attributes["robot0/gripper/right"] = fresh.attributes["robot0/gripper/right"]
    else:
        kept = {key: value for key, value in attributes["fixtures"].items() if key[2] != "_turned_on"}
        attributes["fixtures"] = kept
    return dataclasses.replace(state, attributes=attributes)


def take_turns(scene: Scene, initial: SimState, task: str) -> bool:
    """Whether two members of a group that take turns in chunks of four do what each does alone."""
    plans = [actions_of(task, stream)[:8] for stream in (1, 2)]
    alone = []
    for plan in plans:
        scene.sim.load(initial)
        scene.play(plan, look=False)
        alone.append(encoded(scene.sim.capture()))
    states = [initial, initial]
    for chunk in (slice(0, 4), slice(4, 8)):
        for member, plan in enumerate(plans):
            scene.sim.load(states[member])
            scene.play(plan[chunk], look=False)
            states[member] = scene.sim.capture()
    return [encoded(state) for state in states] == alone and alone[0] != alone[1]


def milliseconds(action: Callable[[], Any], times: int = 5) -> float:
    """CPU time of one call."""
    began = time.process_time()
    for _ in range(times):
        action()
    return (time.process_time() - began) / times * 1e3


def record(adapter: Any, task: str, seed: int, folder: Path) -> dict[str, Any]:
    """The first process: the snapshot, what follows it, and everything that one host can show."""
    scene = Scene(adapter, task, seed)
    sim, actions = scene.sim, actions_of(task, 0)
    initial = sim.capture()
    sim.load(initial)
    scene.play(actions[:WARM_UP], look=False)
    flipped = flip_buttons(sim)
    state = sim.capture()
    data = encoded(state)
    seen = scene.play(actions[WARM_UP:])
    sim.load(state)
    same = first_difference(seen, scene.play(actions[WARM_UP:]))
    sim.load(decode_snapshot(data).state)
    from_bytes = first_difference(seen, scene.play(actions[WARM_UP:]))
    blind = [hashed[:16] for hashed in seen[1:-1]]
    left_out = {}
    for part in LEFT_OUT if flipped else LEFT_OUT[:-1]:
        sim.load(without(part, state, initial, sim))
        again = scene.play(actions[WARM_UP:], look=False)
        step = first_difference(blind, [hashed[:16] for hashed in again[1:-1]])
        left_out[part] = {
            "first_different_step": step + 1 if step >= 0 else -1,
            "same_at_the_end": again[-1] == seen[-1],
        }
    meta = sim.manifest()
    (folder / "snapshot").write_bytes(data)
    (folder / "seen.json").write_text(json.dumps(seen))
    return {
        "instruction": sim.instruction,
        "layout": meta["ep_meta"]["layout_id"],
        "style": meta["ep_meta"]["style_id"],
        "solved_at_start": meta["solved_at_start"],
        "geoms": int(sim._model.ngeom),
        "qpos": int(sim._model.nq),
        "flipped": flipped,
        "same_host": same,
        "same_host_from_bytes": from_bytes,
        "group_takes_turns": take_turns(scene, initial, task),
        "left_out": left_out,
        "snapshot_bytes": len(data),
        "capture_cpu_ms": milliseconds(sim.capture),
        "load_cpu_ms": milliseconds(lambda: sim.load(state)),
        "build_wall_s": scene.build_wall_s,
        "build_cpu_s": scene.build_cpu_s,
        "stand_ins": adapter.info.stand_ins,
        "version": adapter.info.version,
        "renderer": adapter.info.renderer,
    }


def replay(adapter: Any, task: str, seed: int, folder: Path, *, busy: bool) -> dict[str, Any]:
    """Another process: restores the snapshot; ``busy``: after it was at work in another scene of the task."""
    if busy:
        other = Scene(adapter, task, seed + 1)
        other.play(actions_of(task, 3)[:8], look=False)
        other.images()
    data, seen = (folder / "snapshot").read_bytes(), json.loads((folder / "seen.json").read_text())
    scene = Scene(adapter, task, seed)
    scene.sim.load(decode_snapshot(data).state)
    return {"difference": first_difference(seen, scene.play(actions_of(task, 0)[WARM_UP:]))}


def work(what: str, task: str, seed: int, folder: Path) -> None:
    """A worker under the simulator's interpreter."""
    settings = AdapterSettings(simulator="robocasa", cameras=(), image_size=IMAGE_SIZE, horizon=0, quality="")
    adapter = make_adapter(settings)
    if what == "record":
        result = record(adapter, task, seed, folder)
    else:
        result = replay(adapter, task, seed, folder, busy=what == "busy")
    (folder / f"{what}.json").write_text(json.dumps(result))
    adapter.close()


def check_task(python: str, task: str, seed: int = DEFAULT_SEED) -> dict[str, Any]:
    """The three processes of a task, one after the other."""
    environment = {**os.environ, "PYTHONHASHSEED": "0", "LP_NUM_THREADS": "1"}
    environment.setdefault("MUJOCO_GL", "egl")
    environment |= {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR")}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        results = {}
        for what in ("record", "busy", "new"):
            command = [python, __file__, "--worker", what, "--task", task, "--seed", str(seed), "--folder", name]
            subprocess.run(command, check=True, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            results[what] = json.loads((folder / f"{what}.json").read_text())
    row = results["record"]
    row["other_live_host"], row["new_process"] = results["busy"]["difference"], results["new"]["difference"]
    places = ("same_host", "same_host_from_bytes", "other_live_host", "new_process")
    row["exact"] = all(row[place] == -1 for place in places) and row["group_takes_turns"]
    return row


def main() -> None:
    """Runs all tasks, or is a worker."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("robocasa_snapshots.json"))
    parser.add_argument("--task", action="append", choices=sorted(TASKS), help="default: all 24")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED, help="scene seed; it also chooses the kitchen")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments.task[0], arguments.seed, arguments.folder)
        return
    from z1 import machine
    from z1.files import write_json
    from z1.sims.registry import interpreter_of

    python = interpreter_of("robocasa", "")
    rows = json.loads(arguments.out.read_text())["tasks"] if arguments.out.exists() else {}
    for task in arguments.task or sorted(TASKS):
        if task in rows:
            continue
        rows[task] = check_task(python, task, arguments.seed)
        first = next(iter(rows.values()))
        content = {
            "command": "python benchmarks/robocasa_snapshots.py",
            "hardware": f"{machine.cpu_model()}, {machine.cores()} cores, {machine.memory_gib():.0f} GiB",
            **{name: first[name] for name in ("version", "renderer", "stand_ins")},
            "seed": arguments.seed,
            "env_steps_before": WARM_UP,
            "env_steps_compared": COMPARED,
            "images": f"3 cameras, {IMAGE_SIZE} pixels, every {LOOK_EVERY} env steps",
            "meaning": "difference: first env step at which two runs part, 0 at the restore itself, -1 nowhere",
            "tasks": dict(sorted(rows.items())),
        }
        write_json(arguments.out, content)
        print(f"{task:24} {'exact' if rows[task]['exact'] else 'NOT EXACT'}", flush=True)


if __name__ == "__main__":
    main()
