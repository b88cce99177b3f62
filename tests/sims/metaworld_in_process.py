"""Looks into the MetaWorld adapter from within one process and prints what it finds as JSON.

Run by ``test_sims_metaworld.py`` with a GL back end in ``MUJOCO_GL``; the process that runs pytest never loads MuJoCo.
"""

from __future__ import annotations

import functools
import json
import types
from collections.abc import Callable
from typing import Any

import mujoco
import numpy as np
from metaworld import env_dict

from z1.sims.adapter import AdapterSettings, Diverged
from z1.sims.metaworld import CAMERAS, MetaWorld, MetaWorldTask
from z1.sims.snapshot import SimState

NEGATIVE_TASKS = ("assembly", "door-lock", "pick-place", "hammer")
STEPS = 12


def same(a: Any, b: Any) -> bool:
    """Bit-equal arrays."""
    return a.tobytes() == b.tobytes()


def actions(seed: int, steps: int = STEPS) -> np.ndarray:
    """float32 ``[steps, 4]``."""
    return np.random.default_rng(seed).uniform(-1, 1, (steps, 4)).astype(np.float32)


def play(sim: MetaWorldTask, seed: int) -> np.ndarray:
    """The full observation after each of ``STEPS`` random env steps."""
    observations = []
    for action in actions(seed):
        sim.step(action)
        observations.append(sim.observation)
    return np.stack(observations)


def image(sim: MetaWorldTask, camera: str = "gripperPOV") -> np.ndarray:
    """uint8 ``[64, 64, 3]``."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    sim.render(camera, pixels)
    return pixels


def altered(**functions: Callable[..., Any]) -> Any:
    """The module mujoco with some functions replaced."""
    names = {name: getattr(mujoco, name) for name in dir(mujoco)}
    return types.SimpleNamespace(**{**names, **functions})


def load_with(sim: MetaWorldTask, state: SimState, module: Any) -> None:
    """Restores with an altered mujoco."""
    sim._mujoco = module
    sim.load(state)
    sim._mujoco = mujoco


def without_second_set_state() -> Any:
    """A mujoco whose ``mj_setState`` does nothing after ``mj_forward`` was called."""
    done = []

    def forward(*arguments: Any) -> None:
        done.append(True)
        mujoco.mj_forward(*arguments)

    def set_state(*arguments: Any) -> None:
        if not done:
            mujoco.mj_setState(*arguments)

    return altered(mj_forward=forward, mj_setState=set_state)


def use(sim: MetaWorldTask, specification: mujoco.mjtState) -> None:
    """Lets the task capture and load another part of the physics state."""
    sim._specification = specification
    sim._physics_size = mujoco.mj_stateSize(sim._model, specification)


def restore_variants(sim: MetaWorldTask) -> dict[str, dict[str, bool]]:
    """Whether each way of restoring gives the same observations, and the same pixels at the restore point."""
    sim.reset(5)
    for _ in range(45):
        sim.step(sim.expert_action())
    state, view = sim.capture(), image(sim)
    use(sim, mujoco.mjtState.mjSTATE_FULLPHYSICS)
    poor = sim.capture()
    use(sim, mujoco.mjtState.mjSTATE_INTEGRATION)
    expected = play(sim, 1)

    def load_poor() -> None:
        use(sim, mujoco.mjtState.mjSTATE_FULLPHYSICS)
        sim.load(poor)
        use(sim, mujoco.mjtState.mjSTATE_INTEGRATION)

    variants = {
        "exact": lambda: sim.load(state),
        "no second mj_setState": lambda: load_with(sim, state, without_second_set_state()),
        "no mj_forward": lambda: load_with(sim, state, altered(mj_forward=lambda *_: None)),
        "mjSTATE_FULLPHYSICS": load_poor,
    }
    found = {}
    for name, load in variants.items():
        play(sim, 2)  # something else happens in between
        load()
        found[name] = {"pixels": same(image(sim), view), "observations": same(play(sim, 1), expected)}
    return found


def plain_env(adapter: MetaWorld) -> dict[str, bool]:
    """Whether the adapter's episodes are those of MetaWorld by itself, without any snapshot, step by step."""
    results = {}
    for task in ("bin-picking", "door-lock", "reach-wall", "stick-pull"):
        env = env_dict.ALL_V3_ENVIRONMENTS[f"{task}-v3"]()
        env._partially_observable = False
        env.__dict__.pop("sawyer_observation_space", None)
        env._freeze_rand_vec = False
        env.seeded_rand_vec = True
        env._set_task_called = True
        env.seed(11)
        first = env.reset(seed=999)[0]  # the argument is ignored
        expected = [env.step(action)[0] for action in actions(3)]
        sim = adapter.task_sim(task)
        sim.reset(11)
        start, state = sim.observation, sim.capture()
        sim.load(state)
        results[task] = same(start, first) and same(play(sim, 3), np.stack(expected))
    return results


def cameras(adapter: MetaWorld) -> dict[str, Any]:
    """Per camera: whether leaving out geoms changes pixels, the z part of its up direction, whether it is turned."""
    results: dict[str, Any] = {}
    for task in ("hammer", "window-open", "soccer"):
        sim = adapter.task_sim(task)
        sim.reset(2)
        play(sim, 4)
        for camera in CAMERAS:
            raw = np.zeros((64, 64, 3), np.uint8)
            sim._renderer.render(sim._data, camera, raw)
            shown = image(sim, camera)
            nothing = np.zeros(sim._model.ngeom, np.bool_)
            sim._renderer._out_of_view = functools.partial(lambda hidden, *_: hidden, nothing)
            complete = image(sim, camera)
            del sim._renderer._out_of_view
            number = mujoco.mj_name2id(sim._model, mujoco.mjtObj.mjOBJ_CAMERA, camera)
            row = results.setdefault(camera, {"culling is exact": True, "culled": 0})
            row["culling is exact"] &= same(shown, complete)
            row["culled"] += int(sim._renderer._out_of_view(sim._data, number).sum())
            row["up"] = float(sim._data.cam_xmat[number].reshape(3, 3)[2, 1])
            row["turned"] = same(shown, np.ascontiguousarray(raw[::-1, ::-1]))
            row["brightness"] = float(shown.mean())
    return results


def renderer_agrees(adapter: MetaWorld, size: int) -> dict[str, Any]:
    """How far the images are from those of ``mujoco.Renderer`` with the same settings, which leaves out no detail."""
    sim = adapter.task_sim("drawer-open")
    sim.reset(1)
    renderer = mujoco.Renderer(sim._model, size, size)
    renderer.update_scene(sim._data, "gripperPOV")
    renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
    renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
    expected = renderer.render()
    renderer.close()
    adapter._context._context.make_current()
    found = np.zeros((size, size, 3), np.uint8)
    sim._renderer.render(sim._data, "gripperPOV", found)
    return {"same": same(found, expected), "mean": float(np.abs(found.astype(int) - expected).mean())}


def moved_object(adapter: MetaWorld) -> dict[str, bool]:
    """Moves the block of push; what changes then."""
    sim = adapter.task_sim("push")
    sim.reset(1)
    before = (sim.proprioception(), sim.observation, image(sim, "corner2"))
    state = sim.capture()
    sim._data.qpos[9:12] += [0.1, 0.05, 0.1]
    mujoco.mj_forward(sim._model, sim._data)
    sim.observation = sim._env._get_obs()
    after = (sim.proprioception(), sim.observation, image(sim, "corner2"))
    names = ("state", "observation", "image")
    changed = {name: not same(a, b) for name, a, b in zip(names, before, after, strict=True)}
    sim.load(state)
    return changed


def experts(adapter: MetaWorld) -> dict[str, bool]:
    """Whether MetaWorld's expert writes into the observation it gets, and whether the adapter's does."""
    sim = adapter.task_sim("door-open")
    sim.reset(0)
    given = sim.observation.copy()
    sim._expert.get_action(given)
    before = sim.observation.copy()
    sim.expert_action()
    return {"plain": not same(given, before), "adapter": not same(before, sim.observation)}


def recovery(adapter: MetaWorld) -> dict[str, Any]:
    """A diverged simulation says so, and is as good as new after the next restore."""
    sim = adapter.task_sim("push")
    sim.reset(4)
    state = sim.capture()
    sim.load(state)
    expected = play(sim, 6)
    found: dict[str, Any] = {}
    for name, value in (("NaN", np.nan), ("huge", 1e12)):
        sim.load(state)
        sim._data.qvel[3] = value
        try:
            sim.step(np.zeros(4, np.float32))
            found[name] = "not noticed"
        except Diverged as problem:
            found[name] = str(problem)
        sim.load(state)
        found[f"{name}, then restored"] = same(play(sim, 6), expected)
    return found


def main() -> None:
    """Prints all findings."""
    adapter = MetaWorld(AdapterSettings(simulator="metaworld", cameras=(), image_size=64, horizon=0, quality="fast"))
    findings = {
        "restores": {task: restore_variants(adapter.task_sim(task)) for task in NEGATIVE_TASKS},
        "plain env": plain_env(adapter),
        "cameras": cameras(adapter),
        "renderer": {"usual": renderer_agrees(adapter, 64), "large": renderer_agrees(adapter, 96)},
        "moved object": moved_object(adapter),
        "experts": experts(adapter),
        "recovery": recovery(adapter),
    }
    adapter.close()
    print(json.dumps(findings))


if __name__ == "__main__":
    main()
