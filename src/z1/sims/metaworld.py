"""MetaWorld (Sawyer, 50 tasks): the adapter that runs inside a host.

Facts it relies on: ``env.reset(seed=...)`` is ignored and only ``env.seed`` counts; corner cameras are upside down;
scripted experts write into the observation they are given; success is transient; ``mj_forward`` overwrites the solver's
warm start; some attributes of an environment are live views of ``mjData``.

Source: MetaWorld 3.1.1 (Farama Foundation), MuJoCo 3.3.0.
Level 1: standard library, numpy and metaworld only, Python 3.10 syntax.
"""

from __future__ import annotations

import contextlib
import platform
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np

from z1.errors import RenderError, SimulatorError, UnknownNameError
from z1.sims.adapter import AdapterSettings, Diverged
from z1.sims.metaworld_detours import without_detours
from z1.sims.recording import Recording, Replay
from z1.sims.snapshot import GeneratorState, SimState, copy_value, is_live_view
from z1.types import SimInfo

HORIZON = 500
CONTROL_HZ = 80.0
DEFAULT_CAMERAS = ("corner2", "gripperPOV")
CAMERAS = ("behindGripper", "corner", "corner2", "corner3", "corner4", "gripperPOV", "topview")
ACTION_NAMES = ("hand_dx", "hand_dy", "hand_dz", "gripper_effort")
STATE_NAMES = ("hand_x", "hand_y", "hand_z", "gripper_opening")

_UPSIDE_DOWN = frozenset({"corner", "corner2", "corner3", "corner4"})
_MODEL_FIELDS = ("body_pos", "body_quat", "site_pos", "site_quat")
_PRISTINE_SEED = 0
_CONSTANT_ATTRIBUTES = frozenset(
    {"model", "data", "mujoco_renderer", "fullpath", "max_path_length", "_ezpickle_args", "_ezpickle_kwargs"}
)


def _import_simulator() -> tuple[Any, Any, Any]:
    """The modules mujoco, metaworld.env_dict and metaworld.policies.

    Raises:
        SimulatorError: One of them is not installed under this interpreter.
        RenderError: MuJoCo cannot load its GL back end.
    """
    advice = f"install it there: {sys.executable} -m pip install metaworld==3.1.1 packaging"
    try:
        import mujoco
    except ModuleNotFoundError as problem:
        raise SimulatorError(
            f"the interpreter {sys.executable} cannot import MetaWorld: {problem}; {advice}"
        ) from problem
    except Exception as problem:  # importing mujoco loads the GL libraries, whose wrappers raise whatever they like
        raise RenderError(f"MuJoCo cannot load its GL back end: {type(problem).__name__}: {problem}") from problem
    try:
        from metaworld import env_dict, policies
    except ImportError as problem:
        raise SimulatorError(
            f"the interpreter {sys.executable} cannot import MetaWorld: {problem}; {advice}"
        ) from problem
    return mujoco, env_dict, policies


class MetaWorld:
    """All tasks of MetaWorld, compiled when first asked for.

    Attributes:
        info: What MetaWorld says about itself.
        max_models: Compiled tasks that a host keeps, at about 70 MB each.
    """

    max_models = 12

    def __init__(self, settings: AdapterSettings) -> None:
        """Loads the simulator and its GL context.

        Raises:
            SimulatorError: MetaWorld is not installed here.
            RenderError: The GL back end does not work.
            UnknownNameError: No such camera.
        """
        for camera in settings.cameras:
            if camera not in CAMERAS:
                raise UnknownNameError("MetaWorld camera", camera, CAMERAS)
        mujoco, env_dict, policies = _import_simulator()
        from z1.sims.rendering import GlContext

        mujoco.set_mju_user_warning(_print_warning)
        self._mujoco = mujoco
        self._envs = {name.removesuffix("-v3"): cls for name, cls in env_dict.ALL_V3_ENVIRONMENTS.items()}
        self._experts = {name.removesuffix("-v3"): cls for name, cls in policies.ENV_POLICY_MAP.items()}
        self._context = GlContext()
        self._settings = settings = replace(settings, quality=settings.quality or "fast")
        self._task_sims: dict[str, MetaWorldTask] = {}
        self.info = SimInfo(
            simulator="metaworld",
            version=f"{version('metaworld')} (mujoco {mujoco.__version__})",
            renderer=self._context.description,
            python=platform.python_version(),
            tasks=tuple(sorted(self._envs)),
            cameras=settings.cameras or DEFAULT_CAMERAS,
            all_cameras=CAMERAS,
            image_size=settings.image_size,
            action_names=ACTION_NAMES,
            action_low=(-1.0,) * len(ACTION_NAMES),
            action_high=(1.0,) * len(ACTION_NAMES),
            state_names=STATE_NAMES,
            control_hz=CONTROL_HZ,
            quality=settings.quality,
            perturbation=settings.perturbation_text,
            experts=tuple(sorted(self._experts)),
        )

    def horizon(self, task: str) -> int:
        """Env steps of an episode, the same for all tasks."""
        return self._settings.horizon or HORIZON

    def task_sim(self, task: str) -> MetaWorldTask:
        """The compiled task of a name; the same object until ``drop``."""
        if task not in self._task_sims:
            if task not in self._envs:
                raise UnknownNameError("MetaWorld task", task, self._envs)
            self._task_sims[task] = MetaWorldTask(
                self._mujoco, task, without_detours(self._envs[task])(), self._experts[task](), self._settings
            )
        return self._task_sims[task]

    def drop(self, task: str) -> None:
        """Frees a compiled task."""
        self._task_sims.pop(task).close()

    def replay(self, recording: Recording, frames: Sequence[int]) -> Replay:
        """Refuses: there are no files with recorded states of MetaWorld.

        Raises:
            SimulatorError: Always.
        """
        raise SimulatorError("MetaWorld replays no recordings; only those of RoboCasa can be replayed")

    def close(self) -> None:
        """Frees the rendering contexts."""
        for task in list(self._task_sims):
            self.drop(task)
        self._context.close()


def _print_warning(text: str) -> None:
    """Takes MuJoCo's warnings to the host's log; by itself MuJoCo appends them to a file in the working folder."""
    print(f"MuJoCo: {text}", file=sys.stderr)


class MetaWorldTask:
    """One compiled MetaWorld task; scenes and members are put into it by state.

    Attributes:
        task: Its name.
        observation: float64 ``[39]``, MetaWorld's full observation: hand, objects, the same one env step ago, goal.
        instruction: Empty: all scenes of a task share its sentence.
    """

    instruction = ""

    def __init__(self, mujoco: Any, task: str, env: Any, expert: Any, settings: AdapterSettings) -> None:
        from gymnasium.spaces import Space

        from z1.sims.rendering import ModelRenderer

        self.task = task
        self._mujoco = mujoco
        self._expert = expert
        self._env = env
        env._partially_observable = False
        env.__dict__.pop("sawyer_observation_space", None)  # computed for the other setting
        env._freeze_rand_vec = False
        env.seeded_rand_vec = True
        env._set_task_called = True
        env.max_path_length = sys.maxsize  # the host counts env steps
        self._model, self._data = env.model, env.data
        self._specification = mujoco.mjtState.mjSTATE_INTEGRATION
        self._physics_size = mujoco.mj_stateSize(self._model, self._specification)
        warning = mujoco.mjtWarning
        self._fatal_warnings = [
            kind.value for kind in (warning.mjWARN_BADQPOS, warning.mjWARN_BADQVEL, warning.mjWARN_BADQACC)
        ]
        self._space_type = Space
        self._constants = set(_CONSTANT_ATTRIBUTES)
        self._renderer = ModelRenderer(self._model, settings)
        env.seed(_PRISTINE_SEED)
        self.observation = env.reset()[0]  # the first reset creates the live views of mjData
        self._pristine = self.capture()

    def manifest(self) -> dict[str, Any]:
        """Nothing: the seed says all."""
        return {}

    def reset(self, seed: int) -> None:
        """Builds the scene of a seed."""
        self.load(self._pristine)
        self._env.seed(seed)
        self.observation = self._env.reset()[0]

    def capture(self) -> SimState:
        """The present state: physics, model fields, Python attributes."""
        model, constants = self._model, self._constants
        physics = np.empty(self._physics_size)
        self._mujoco.mj_getState(model, self._data, physics, self._specification)
        attributes, views = {}, []
        for name, value in self._env.__dict__.items():
            if name in constants:
                continue
            if type(value) is np.ndarray:
                if is_live_view(value):
                    views.append(name)
                else:
                    attributes[name] = value.copy()
            elif isinstance(value, self._space_type):
                constants.add(name)
            else:
                attributes[name] = copy_value(value, name)
        return SimState(
            task=self.task,
            physics=physics,
            model={name: getattr(model, name).copy() for name in _MODEL_FIELDS},
            attributes=attributes,
            views=tuple(sorted(views)),
            observation=self.observation,
        )

    def load(self, state: SimState) -> None:
        """Puts back a state.

        The order matters: model fields, physics, attributes, derived data, physics once more. ``mj_forward`` overwrites
        the solver's warm start, which is part of the physics state, and without it the next env steps differ.
        """
        self._check(state)
        mujoco, model, data, attributes = self._mujoco, self._model, self._data, self._env.__dict__
        for name, array in state.model.items():
            getattr(model, name)[:] = array
        mujoco.mj_setState(model, data, state.physics, self._specification)
        kept = state.attributes
        for name in [name for name in attributes if name not in kept and name not in self._constants]:
            if name not in state.views:
                if isinstance(attributes[name], self._space_type):
                    self._constants.add(name)
                else:
                    del attributes[name]
        for name, value in kept.items():
            if type(value) is GeneratorState:
                attributes[name].bit_generator.state = value.state
            elif type(value) is np.ndarray:
                attributes[name] = value.copy()
            else:
                attributes[name] = copy_value(value, name)
        mujoco.mj_forward(model, data)
        mujoco.mj_setState(model, data, state.physics, self._specification)
        data.warning.number[:] = 0
        self.observation = state.observation

    def _check(self, state: SimState) -> None:
        if state.task != self.task:
            raise SimulatorError(f"a snapshot of task {state.task!r} cannot be restored into task {self.task!r}")
        if state.physics.shape != (self._physics_size,):
            raise SimulatorError(
                f"the snapshot of {self.task!r} has {state.physics.size} physics numbers, the model here "
                f"{self._physics_size}; it was taken with another version"
            )
        for name in state.views:
            if not is_live_view(self._env.__dict__[name]):
                raise SimulatorError(f"the snapshot of {self.task!r} expects attribute {name!r} to be a view of mjData")

    def step(self, action: np.ndarray) -> bool:
        """Executes one env step and tells whether the task is solved now."""
        try:
            observation, _, _, _, info = self._env.step(action)
        except Exception as problem:  # broken physics surfaces as any error of MuJoCo, numpy or the reward code
            raise Diverged(f"{type(problem).__name__}: {problem}") from problem
        if self._data.warning.number[self._fatal_warnings].any():
            raise Diverged("MuJoCo met NaN, infinite or huge values")
        if not (np.isfinite(self._data.qpos).all() and np.isfinite(self._data.qvel).all()):
            raise Diverged("qpos or qvel is not finite")
        self.observation = observation
        return bool(info["success"])

    def object_distance(self) -> float:
        """Metres between the hand and the first object of the observation: what the hand has to go to first.

        MetaWorld's own ``near_object`` does not serve: in eleven tasks it stays 0 through the scripted experts'
        successes, in four it is close to 1 from the start.
        """
        return float(np.linalg.norm(self.observation[:3] - self.observation[4:7]))

    def proprioception(self) -> np.ndarray:
        """float32 ``[4]``: hand position in metres, gripper opening between 0 and 1; nothing about objects or goal."""
        return self.observation[:4].astype(np.float32)

    def expert_action(self) -> np.ndarray:
        """float32 ``[4]``: the scripted expert's action, clipped to the bounds."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # experts announce that their actions will be clipped
            action = self._expert.get_action(self.observation.copy())  # experts write into what they get
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    def render(self, camera: str, image: np.ndarray) -> None:
        """Renders a camera, the right way up, into uint8 ``[height, width, 3]``."""
        self._renderer.render(self._data, camera, image)
        if camera in _UPSIDE_DOWN:
            image[:] = image[::-1, ::-1].copy()

    def close(self) -> None:
        """Frees the renderer."""
        self._renderer.close()
        with contextlib.suppress(Exception):
            self._env.close()
