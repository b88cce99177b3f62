"""Runs under RoboCasa's interpreter: z1's adapter against the simulator used directly."""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))

from z1.sims.adapter import AdapterSettings, make_adapter
from z1.sims.robocasa_layout import CAMERAS, STATE_PARTS, state_of
from z1.sims.robocasa_tasks import TEST_KITCHENS

TASK, SEED, SIZE, STEPS = "CloseDrawer", 2_000_000_001, 128, 12


def direct_env() -> Any:
    """The scene built as published evaluations build it, with robosuite's own renderer and observations."""
    import robosuite
    from robosuite.controllers import load_composite_controller_config

    import robocasa  # noqa: F401 (registers the tasks)

    env = robosuite.make(
        env_name=TASK,
        robots="PandaOmron",
        controller_configs=load_composite_controller_config(controller=None, robot="PandaOmron"),
        camera_names=list(CAMERAS),
        camera_widths=SIZE,
        camera_heights=SIZE,
        has_renderer=False,
        has_offscreen_renderer=True,
        use_camera_obs=False,
        use_object_obs=True,
        ignore_done=True,
        seed=5,
        obj_instance_split="B",
        layout_and_style_ids=TEST_KITCHENS,
        generative_textures=None,
        randomize_cameras=False,
        translucent_robot=False,
    )
    env.rng = np.random.default_rng(SEED)
    np.random.seed(SEED)  # noqa: NPY002 (robosuite draws from it)
    env.unset_ep_meta()
    env.reset()
    return env


def actions() -> np.ndarray:
    """float32 ``[steps, 12]``."""
    return np.random.default_rng(0).uniform(-1, 1, (STEPS, 12)).astype(np.float32)


def render_directly(env: Any) -> list[np.ndarray]:
    """robosuite's images, in a fresh context of its own.

    The one that the environment made has lost its GL objects: those of the environment's first build, freed later, took
    them along.
    """
    from robosuite.utils.binding_utils import MjRenderContextOffscreen

    gc.collect()
    spoilt = env.sim._render_context_offscreen
    env.sim._render_context_offscreen = None
    context = MjRenderContextOffscreen(env.sim, device_id=-1)
    context.vopt.geomgroup[0], context.vopt.geomgroup[1] = 0, 1
    images = [env.sim.render(camera_name=name, width=SIZE, height=SIZE)[::-1] for name in CAMERAS]
    assert spoilt is not context
    return images


def play_directly(path: Path) -> None:
    """Plays the actions in the simulator itself and stores what is seen."""
    env = direct_env()
    qpos, qvel, success = [], [], []
    for action in actions():
        env.step(np.asarray(action, np.float64))
        qpos.append(env.sim.data.qpos.copy())
        qvel.append(env.sim.data.qvel.copy())
        success.append(bool(env._check_success()))
    env.sim.forward()
    observation = env._get_observations(force_update=True)
    images = render_directly(env)
    np.savez(
        path,
        qpos=qpos,
        qvel=qvel,
        success=success,
        state=state_of({key: observation[key] for key, _ in STATE_PARTS}),
        images=images,
        lang=np.frombuffer(env.get_ep_meta()["lang"].encode(), np.uint8),
        kitchen=[env.layout_id, env.style_id],
    )


def play_in_adapter(path: Path) -> dict[str, Any]:
    """Plays the same actions through z1's adapter and compares."""
    seen = np.load(path)
    settings = AdapterSettings(simulator="robocasa", cameras=(), image_size=SIZE, horizon=0, quality="")
    adapter = make_adapter(settings)  # to be kept: its end is the GL context's end
    scene = adapter.task_sim(f"{TASK}:{SEED}")
    scene.reset(SEED)
    same_physics, success = True, []
    for number, action in enumerate(actions()):
        success.append(scene.step(action))
        same_physics &= bool(np.array_equal(scene._data.qpos, seen["qpos"][number]))
        same_physics &= bool(np.array_equal(scene._data.qvel, seen["qvel"][number]))
    state = scene.proprioception()
    different_pixels = []
    for camera, reference in zip(CAMERAS, seen["images"], strict=True):
        image = np.zeros((SIZE, SIZE, 3), np.uint8)
        scene.render(camera, image)
        different_pixels.append(int((image != reference).any(-1).sum()))
    return {
        "same_physics": same_physics,
        "same_success": success == seen["success"].tolist(),
        "same_state": bool(np.array_equal(state, seen["state"])),
        "different_pixels": different_pixels,
        "same_instruction": scene.instruction == seen["lang"].tobytes().decode(),
        "kitchen": seen["kitchen"].tolist(),
    }


def main() -> None:
    """``directly FILE`` stores what the simulator shows, ``adapter FILE`` compares and prints.

    Two processes, since robosuite's GL context and z1's disturb each other.
    """
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    what, path = sys.argv[1], Path(sys.argv[2])
    if what == "directly":
        play_directly(path)
    else:
        print(json.dumps(play_in_adapter(path)), file=out, flush=True)
    os._exit(0)  # GL contexts complain when the interpreter ends


if __name__ == "__main__":
    main()
