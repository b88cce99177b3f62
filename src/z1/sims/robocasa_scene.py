"""One kitchen of RoboCasa: building it from a seed, stepping, reading and rendering it.

A scene depends on its task and seed alone. Two generators decide it: the environment's own, and numpy's global one,
from which robosuite draws the noise of the robot's first pose; both are seeded before the build. The kitchens and
objects to draw from follow from the split of the seed.

Level 1: standard library, numpy and RoboCasa only, Python 3.10 syntax.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from typing import Any

import numpy as np

from z1.errors import SimulatorError
from z1.sims.adapter import AdapterSettings, Diverged
from z1.sims.rendering import ModelRenderer
from z1.sims.robocasa_experts.registry import EXPERTS
from z1.sims.robocasa_layout import CAMERAS, ROBOT, STATE_PARTS, state_of
from z1.sims.robocasa_parts import TaskPart
from z1.sims.robocasa_repeats import leave_out_repeats
from z1.sims.robocasa_state import SceneState
from z1.sims.robocasa_tasks import kitchens_of
from z1.sims.snapshot import SimState
from z1.sims.still_bodies import StillBodies

BUILD_ATTEMPTS = 5
"""Builds from derived seeds before a scene counts as impossible: some kitchens leave no place for the robot."""

_COLLISION_GROUP = 0
_MODEL_FINGERPRINT = (
    *("body_mass", "body_inertia", "body_parentid", "geom_type", "geom_size", "geom_dataid", "jnt_type", "jnt_range"),
    *("dof_damping", "dof_frictionloss", "actuator_gainprm", "mesh_vert", "qpos0"),
)
"""Fields of a compiled model that must agree before a snapshot may be put into it."""


def make_env(modules: Any, task: str) -> Any:
    """An environment of a task; ``build`` makes a scene in it."""
    from robosuite.controllers import load_composite_controller_config

    kitchens = kitchens_of(0)
    return modules.robosuite.make(
        env_name=task,
        robots=ROBOT,
        controller_configs=load_composite_controller_config(controller=None, robot=ROBOT),
        camera_names=list(CAMERAS),
        has_renderer=False,
        has_offscreen_renderer=False,
        use_camera_obs=False,
        use_object_obs=True,
        ignore_done=True,
        renderer="mujoco",  # robosuite's other one opens windows
        seed=0,
        obj_instance_split=kitchens.objects,
        layout_and_style_ids=kitchens.pairs,
        generative_textures=None,
        randomize_cameras=False,
        translucent_robot=False,
    )


def build(env: Any, seed: int) -> None:
    """Makes the scene of a seed in an environment, whatever was there before.

    Raises:
        SimulatorError: No attempt succeeded.
    """
    kitchens = kitchens_of(seed)
    env.layout_and_style_ids = [pair for pair in kitchens.pairs if pair[0] not in env.EXCLUDE_LAYOUTS]
    env.obj_instance_split = kitchens.objects
    problems = []
    for attempt in range(BUILD_ATTEMPTS):
        env.rng = np.random.default_rng(seed if attempt == 0 else [seed, attempt])
        np.random.seed(seed if attempt == 0 else [seed, attempt])  # noqa: NPY002 (robosuite draws from it)
        env.unset_ep_meta()
        try:
            env.reset()
            return
        except (AssertionError, ValueError, RecursionError) as problem:  # how RoboCasa says that something has no place
            problems.append(f"{type(problem).__name__}: {problem}")
    raise SimulatorError(f"no scene of {type(env).__name__} can be built from seed {seed}: {problems[-1]}")


class RoboCasaScene:
    """One compiled kitchen; the members of its group are put into it by state.

    Attributes:
        task: Name of the task.
        seed: Scene seed.
        instruction: What the policy is told in this scene.
        solved_at_start: Whether the task counts as solved before anything was done.
        observation: float64 ``[0]``: nothing reads one.
    """

    def __init__(self, modules: Any, task: str, seed: int, env: Any, settings: AdapterSettings) -> None:
        """Builds the scene.

        Args:
            modules: The simulator.
            task: Name of the task.
            seed: Scene seed.
            env: An environment of this task to build in; None: a new one.
            settings: What images look like.
        """
        self.task, self.seed = task, seed
        self.observation = np.zeros(0)
        self._mujoco = modules.mujoco
        self._env = make_env(modules, task) if env is None else env
        build(self._env, seed)
        self._sensors = OrderedDict(self._env._observables)
        self._env._observables = OrderedDict()  # sampled 25 times per env step otherwise, and nobody reads them
        self._env._obs_cache = {}
        self._model, self._data = self._env.sim.model._model, self._env.sim.data._data
        self._xml_fingerprint = self._fingerprint()
        self._part = TaskPart(self._env, task)
        self._still = StillBodies(self._mujoco, self._model, self._data)
        self._still.watch(self._env.sim)
        leave_out_repeats(self._env, self._mujoco)
        self._state = SceneState(self._mujoco, self._env, task, self._xml_fingerprint)
        self._renderer = ModelRenderer(self._model, settings, (_COLLISION_GROUP,))
        warning = self._mujoco.mjtWarning
        self._fatal_warnings = [
            kind.value for kind in (warning.mjWARN_BADQPOS, warning.mjWARN_BADQVEL, warning.mjWARN_BADQACC)
        ]
        self._meta = json.loads(json.dumps(self._env.get_ep_meta(), default=_plain))
        self.instruction = str(self._meta["lang"])
        self._forwarded = False
        self.solved_at_start = bool(self._env._check_success())
        self._initial = self.capture()

    def _fingerprint(self) -> str:
        """Hash of the compiled model: equal in every process and place where the same scene was built."""
        digest = hashlib.blake2b(digest_size=16)
        model = self._model
        for name in _MODEL_FINGERPRINT:
            digest.update(name.encode() + np.ascontiguousarray(getattr(model, name)).tobytes())
        return digest.hexdigest()

    def manifest(self) -> dict[str, Any]:
        """What the scene is made of, as JSON: RoboCasa's ``ep_meta`` and whether it is solved from the start."""
        return {"ep_meta": self._meta, "solved_at_start": self.solved_at_start}

    def reset(self, seed: int) -> None:
        """Puts back the initial state of the scene."""
        assert seed == self.seed, (seed, self.seed)
        self.load(self._initial)

    def capture(self) -> SimState:
        """The present state."""
        return self._state.capture()

    def load(self, state: SimState) -> None:
        """Puts back a state, bit-exactly."""
        self._still.look_again()
        self._state.load(state)
        self._forwarded = True

    def step(self, action: np.ndarray) -> bool:
        """Executes one env step and tells whether the task is solved now."""
        self._forwarded = False
        self._still.look_again()
        try:
            self._env.step(np.asarray(action, np.float64))
            solved = bool(self._env._check_success())
        except Exception as problem:  # broken physics surfaces as any error of MuJoCo, numpy or the controllers
            raise Diverged(f"{type(problem).__name__}: {problem}") from problem
        if self._data.warning.number[self._fatal_warnings].any():
            raise Diverged("MuJoCo met NaN, infinite or huge values")
        if not (np.isfinite(self._data.qpos).all() and np.isfinite(self._data.qvel).all()):
            raise Diverged("qpos or qvel is not finite")
        return solved

    def _bring_up_to_date(self) -> None:
        """Computes what follows from the present positions; after an env step these quantities are 2 ms old.

        The computation overwrites the solver's warm start, which is put back.
        """
        if not self._forwarded:
            self._state.forward()
            self._forwarded = True

    def proprioception(self) -> np.ndarray:
        """float32 ``[16]``, in the order of ``STATE_NAMES``, as robosuite's own sensors read it."""
        self._bring_up_to_date()
        return state_of({key: np.asarray(self._sensors[key]._sensor({})) for key, _ in STATE_PARTS})

    def object_distance(self) -> float:
        """Metres between the gripper and what the task is about."""
        return self._part.distance()

    def expert_action(self) -> np.ndarray:
        """float32 ``[12]``: the scripted expert's action.

        Raises:
            SimulatorError: The task has none.
        """
        if self.task not in EXPERTS:
            raise SimulatorError(f"RoboCasa has no scripted expert for {self.task}; there are for {sorted(EXPERTS)}")
        self._bring_up_to_date()
        return EXPERTS[self.task](self._env)

    def render(self, camera: str, image: np.ndarray) -> None:
        """Renders a camera, the right way up, into uint8 ``[height, width, 3]``."""
        self._bring_up_to_date()
        self._renderer.render(self._data, camera, image)

    def release(self) -> Any:
        """Frees the renderer; returns the environment, in which another scene may be built."""
        self._renderer.close()
        return self._env


def _plain(value: Any) -> Any:
    """JSON for numpy's numbers, arrays and texts."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} in a scene's description")
