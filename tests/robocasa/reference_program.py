"""Runs under RoboCasa's interpreter: z1's adapter against the simulator used directly. Prints one line of JSON."""

from __future__ import annotations

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


def main() -> None:
    """Plays the same actions in both and compares."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    env = direct_env()
    actions = np.random.default_rng(0).uniform(-1, 1, (STEPS, 12)).astype(np.float32)
    physics, reference_success = [], []
    for action in actions:
        env.step(np.asarray(action, np.float64))
        physics.append([env.sim.data.qpos.copy(), env.sim.data.qvel.copy()])
        reference_success.append(bool(env._check_success()))
    env.sim.forward()
    observation = env._get_observations(force_update=True)
    reference_state = state_of({key: observation[key] for key, _ in STATE_PARTS})
    images = [env.sim.render(camera_name=camera, width=SIZE, height=SIZE)[::-1] for camera in CAMERAS]
    lang = env.get_ep_meta()["lang"]
    settings = AdapterSettings(simulator="robocasa", cameras=(), image_size=SIZE, horizon=0, quality="")
    adapter = make_adapter(settings)
    scene = adapter.task_sim(f"{TASK}:{SEED}")
    scene.reset(SEED)
    same_physics, success = True, []
    for action, (qpos, qvel) in zip(actions, physics, strict=True):
        success.append(scene.step(action))
        same_physics &= bool(np.array_equal(scene._data.qpos, qpos) and np.array_equal(scene._data.qvel, qvel))
    state = scene.proprioception()
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    different_pixels = []
    for camera, reference in zip(CAMERAS, images, strict=True):
        scene.render(camera, image)
        different_pixels.append(int((image != reference).any(-1).sum()))
    report = {
        "same_physics": same_physics,
        "same_success": success == reference_success,
        "same_state": bool(np.array_equal(state, reference_state)),
        "different_pixels": different_pixels,
        "same_instruction": scene.instruction == lang,
        "kitchen": [env.layout_id, env.style_id],
    }
    print(json.dumps(report), file=out, flush=True)
    os._exit(0)  # robosuite's GL context and z1's cannot both be freed in peace


if __name__ == "__main__":
    main()
