"""Scenes of RoboCasa from demonstration files: opened, put into recorded states and stepped one action at a time.

A file holds time, positions and velocities, which is less than a snapshot: the solver's warm start and the controllers'
goals are missing. A single env step from a recorded state is hardly touched by that, since the arm's goal starts from
where the arm is; over an episode the differences would add up. The gripper's set point, which decides what the fingers
do, follows from the actions before.

Source: RoboCasa v0.2, ``scripts/playback_dataset.py`` (``reset_to``).
Level 1: standard library, numpy and RoboCasa only, Python 3.10 syntax.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from z1.errors import SimulatorError
from z1.sims.recording import Recording, Replay
from z1.sims.robocasa_files import ASSET_PACKAGES, localised, missing_objects
from z1.sims.robocasa_layout import GRIPPER, STATE_DIM, STATE_PARTS, no_op, state_of
from z1.sims.robocasa_scene import BUILD_ATTEMPTS
from z1.sims.robocasa_state import grippers_of


def asset_roots(modules: Any) -> dict[str, Path]:
    """The asset folder of each package."""
    return {name: Path(getattr(modules, name).models.assets_root) for name in ASSET_PACKAGES}


class RecordedScene:
    """One recording, opened."""

    def __init__(self, modules: Any, env: Any, recording: Recording) -> None:
        """Opens a recording.

        Args:
            modules: The simulator.
            env: An environment of the recording's task; whatever scene it held is gone.
            recording: What to open.

        Raises:
            SimulatorError: Assets are missing, the scene is not one of this version of RoboCasa, or the states are of
                another scene.
        """
        _open(env, recording, asset_roots(modules))
        self._mujoco, self._env, self._recording = modules.mujoco, env, recording
        self._model, self._data = env.sim.model._model, env.sim.data._data
        width = 1 + self._model.nq + self._model.nv
        if recording.states.ndim != 2 or recording.states.shape[1] != width:
            raise SimulatorError(
                f"expected states of {width} numbers (time, {self._model.nq} positions and {self._model.nv} velocities "
                f"of the recorded scene), got shape {recording.states.shape}; states and scene do not belong together"
            )
        self._sensors = env._setup_observables()
        env._observables.clear()  # sampled 25 times per env step otherwise, and nobody reads them
        self._set_points = self._gripper_set_points()

    def _gripper_set_points(self) -> list[dict[str, np.ndarray]]:
        """The grippers' set points before each action."""
        grippers, points = dict(grippers_of(self._env)), []
        for gripper in grippers.values():
            gripper.current_action = np.zeros_like(gripper.current_action)
        for action in self._recording.actions:
            points.append({label: gripper.current_action.copy() for label, gripper in grippers.items()})
            for gripper in grippers.values():
                gripper.format_action(np.asarray(action[GRIPPER : GRIPPER + 1], np.float64))
        return points

    def put_in(self, frame: int) -> None:
        """Puts a recorded state in. What the file does not hold is as after a reset, so that no order matters."""
        env, state, nq = self._env, self._recording.states[frame], self._model.nq
        self._mujoco.mj_resetData(self._model, self._data)
        self._data.time = state[0]
        self._data.qpos[:], self._data.qvel[:] = state[1 : 1 + nq], state[1 + nq :]
        self._mujoco.mj_forward(self._model, self._data)
        env.update_state()
        env.timestep, env.done = 0, False
        for label, gripper in grippers_of(env):
            gripper.current_action = self._set_points[frame][label].copy()
        for robot in env.robots:
            composite = robot.composite_controller
            composite.update_state()
            for controller in composite.part_controllers.values():
                controller.new_update = True
            for arm in robot.arms:  # without a goal the arm takes its present pose as one
                composite.part_controllers[arm].goal_pos = composite.part_controllers[arm].goal_ori = None

    def read(self) -> np.ndarray:
        """float32 ``[16]``: the env state, by the sensors that the adapter reads."""
        self._mujoco.mj_forward(self._model, self._data)
        return state_of({key: np.asarray(self._sensors[key]._sensor({})) for key, _ in STATE_PARTS})

    def after(self, frame: int, action: np.ndarray) -> np.ndarray:
        """float32 ``[16]``: the env state one env step after a recorded state; NaN if the physics broke down."""
        self.put_in(frame)
        try:
            self._env.step(np.asarray(action, np.float64))
            return self.read()
        except Exception:  # a state in a wrong order surfaces as any error of MuJoCo, numpy or the controllers
            return np.full(STATE_DIM, np.nan, np.float32)

    def ends_solved(self) -> bool:
        """Whether the task is solved in the last recorded state or after its action."""
        last = len(self._recording.states) - 1
        self.put_in(last)
        if self._env._check_success():
            return True
        moved = self.after(last, self._recording.actions[last])
        return bool(np.isfinite(moved).all() and self._env._check_success())

    def replay(self, frames: Sequence[int]) -> Replay:
        """What happens at some frames of the recording, and how it ends."""
        states, after_action, after_nothing = [], [], []
        for frame in frames:
            self.put_in(frame)
            states.append(self.read())
            after_action.append(self.after(frame, self._recording.actions[frame]))
            after_nothing.append(self.after(frame, no_op()))
        return Replay(
            state=np.stack(states),
            after_action=np.stack(after_action),
            after_nothing=np.stack(after_nothing),
            solved=self.ends_solved(),
        )


def _open(env: Any, recording: Recording, roots: Mapping[str, Path]) -> None:
    """Opens the scene of a recording, from files of this machine alone.

    Raises:
        SimulatorError: Files are missing, or the scene is not one of this version of RoboCasa.
    """
    xml, missing = localised(recording.model_xml, roots)
    missing += missing_objects(recording.scene, roots["robocasa"] / "objects")
    if missing:
        raise SimulatorError(
            f"{len(missing)} of the files that the scene was recorded with are missing here, first {missing[0]}; "
            f"expected them in {roots['robocasa']}: link the real assets with z1 sims install robocasa --source "
            "CHECKOUT --assets FOLDER (stand-ins do not replace a recording's objects)"
        )
    _build(env, recording.scene)
    try:
        env.reset_from_xml_string(env.edit_model_xml(xml))
    except Exception as problem:  # a scene of another version fails anywhere in MuJoCo, robosuite or RoboCasa
        raise _cannot_open(problem) from problem


def _build(env: Any, scene: Mapping[str, Any]) -> None:
    """Builds the described scene. The MJCF replaces its places afterwards, so that any draw of them will do.

    Raises:
        SimulatorError: No attempt succeeded.
    """
    problem: Exception | None = None
    for attempt in range(BUILD_ATTEMPTS):
        env.rng = np.random.default_rng(attempt)
        np.random.seed(attempt)  # noqa: NPY002 (robosuite draws from it)
        env.set_ep_meta(copy.deepcopy(dict(scene)))
        try:
            env.reset()
        except (
            Exception
        ) as failure:  # what is raised depends on the part of the description that RoboCasa stumbles over
            problem = failure
        else:
            return
        finally:
            env.unset_ep_meta()
    assert problem is not None
    raise _cannot_open(problem) from problem


def _cannot_open(problem: Exception) -> SimulatorError:
    return SimulatorError(
        f"the recorded scene cannot be opened ({type(problem).__name__}: {problem}); expected one of RoboCasa v0.2 "
        "with the robot PandaOmron"
    )
