"""Runs under RoboCasa's interpreter: records demonstrations in robomimic's HDF5 layout with robosuite itself."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))

from z1.sims.robocasa import _import_simulator
from z1.sims.robocasa_experts.registry import EXPERTS
from z1.sims.robocasa_layout import ARM_POSITION, ARM_ROTATION, BASE, BASE_MODE, CAMERAS, GRIPPER, STATE_PARTS
from z1.sims.robocasa_scene import build, make_env

ELSEWHERE = "/home/recorder/work"
"""Where the files that a scene is made of were on the machine that recorded, as the file says."""

IMAGE_SIZE = 16


def wandering(steps: int, rng: np.random.Generator) -> np.ndarray:
    """float64 ``[steps, 12]``: smooth random arm motion, fingers that close and open, a base that drives a while."""
    actions = np.zeros((steps, 12))
    arm = np.zeros(6)
    for action in actions:
        arm = 0.8 * arm + 0.6 * rng.uniform(-1, 1, 6)
        action[: ARM_ROTATION.stop] = np.clip(arm, -1, 1)
    actions[:, ARM_ROTATION] *= 0.4
    third = steps // 3
    actions[:, GRIPPER], actions[third : 2 * third, GRIPPER] = -1.0, 1.0
    actions[:, BASE_MODE] = -1.0
    driving = slice(2 * third, 2 * third + third // 2)
    actions[driving, ARM_POSITION], actions[driving, ARM_ROTATION] = 0.0, 0.0
    actions[driving, BASE], actions[driving, BASE_MODE] = rng.uniform(-1, 1, 3), 1.0
    return actions


def flat_state(env: Any) -> np.ndarray:
    """float64 ``[1 + nq + nv]``, as robosuite flattens it."""
    return np.asarray(env.sim.get_state().flatten())


def observations(env: Any, states: np.ndarray) -> dict[str, np.ndarray]:
    """What RoboCasa's ``dataset_states_to_obs`` makes of states, in the environment that recorded them."""
    rows = []
    for state in states:
        env.sim.set_state_from_flattened(state)
        env.sim.forward()
        seen = env._get_observations(force_update=True)
        rows.append({key: np.array(seen[key]) for key, _ in STATE_PARTS})
    return {key: np.stack([row[key] for row in rows]) for key, _ in STATE_PARTS}


def record(env: Any, actions: np.ndarray, *, solved: bool) -> dict[str, Any]:
    """Plays actions from the present state.

    Args:
        env: A ``CloseDrawer`` environment just reset.
        actions: float64 ``[T, 12]``.
        solved: Whether the drawer is shut by hand before the last state.
    """
    meta, xml, states = env.get_ep_meta(), env.sim.model.get_xml(), []
    for number, action in enumerate(actions):
        if solved and number == len(actions) - 1:
            env.drawer.set_door_state(min=0.0, max=0.0, env=env, rng=env.rng)
            env.sim.forward()
        states.append(flat_state(env))
        env.step(action)
    return {"meta": meta, "xml": xml, "states": np.stack(states), "actions": actions}


def record_expert(env: Any, task: str, steps: int, noise: float, rng: np.random.Generator) -> dict[str, Any]:
    """Lets the scripted expert play, with Gaussian noise on the arm, until the task is solved."""
    meta, xml, states, actions = env.get_ep_meta(), env.sim.model.get_xml(), [], []
    while len(states) < steps and not env._check_success():
        env.sim.forward()
        action = np.array(EXPERTS[task](env), np.float64)
        arm = slice(0, ARM_ROTATION.stop)
        action[arm] = np.clip(action[arm] + rng.normal(0, noise, ARM_ROTATION.stop), -1, 1)
        states.append(flat_state(env))
        actions.append(action)
        env.step(action)
    return {"meta": meta, "xml": xml, "states": np.stack(states), "actions": np.stack(actions)}


def write(path: Path, demos: list[dict[str, Any]], task: str) -> None:
    """The file."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = sum(len(demo["actions"]) for demo in demos)
        arguments = {"env_name": task, "env_version": "1.5.1", "type": 1, "env_kwargs": {"control_freq": 20}}
        data.attrs["env_args"] = json.dumps(arguments, indent=4)
        for number, demo in enumerate(demos):
            group = data.create_group(f"demo_{number}")
            group.attrs["model_file"] = elsewhere(demo["xml"])
            group.attrs["ep_meta"] = elsewhere(json.dumps(demo["meta"], indent=4, default=plain))
            group.attrs["num_samples"] = len(demo["actions"])
            group.create_dataset("actions", data=demo["actions"])
            group.create_dataset("states", data=demo["states"])
            for key, values in demo["observations"].items():
                group.create_dataset(f"obs/{key}", data=values)
            shape = (len(demo["actions"]), IMAGE_SIZE, IMAGE_SIZE, 3)
            for camera in CAMERAS:
                group.create_dataset(f"obs/{camera}_image", data=rng.integers(0, 255, shape).astype(np.uint8))


def elsewhere(text: str) -> str:
    """Text in which the assets' paths are those of another machine."""
    import robosuite

    import robocasa

    for module in (robocasa, robosuite):
        package = Path(module.__file__).parent
        text = text.replace(f"{package}/", f"{ELSEWHERE}/{package.name}/{package.name}/")
    return text


def plain(value: Any) -> Any:
    """JSON for numpy's numbers and arrays."""
    return value.tolist() if isinstance(value, np.ndarray) else value.item()


def main() -> None:
    """``FILE TASK SEED STEPS [NOISE]``: two demonstrations of a scene.

    Without ``NOISE`` the arm wanders, and the first one ends solved (``CloseDrawer`` only); with it the scripted expert
    plays.
    """
    os.dup2(2, 1)
    path, task, seed, steps = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    env = make_env(_import_simulator(), task)
    demos = []
    for number in range(2):
        build(env, seed)
        rng = np.random.default_rng(number)
        if len(sys.argv) > 5:
            demo = record_expert(env, task, steps, float(sys.argv[5]), rng)
        else:
            demo = record(env, wandering(steps, rng), solved=number == 0)
        demos.append({**demo, "observations": observations(env, demo["states"])})
    write(path, demos, task)
    os._exit(0)  # GL contexts complain when the interpreter ends


if __name__ == "__main__":
    main()
