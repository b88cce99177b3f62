"""The full state of a RoboCasa episode: physics, model arrays, controllers, gripper, robot, fixtures, generators.

What must be there was found by leaving it out. robosuite's own state (time, qpos, qvel) is not enough: the solver's
warm start, the arm controller's origin and the gripper's current action decide the very next env step, and buttons
latch in Python attributes of fixtures. A state holds numbers and texts only and is put into the same scene, built from
the same seed in any process; the fingerprint of the compiled model tells whether it is the same.

Level 1: standard library, numpy and RoboCasa only, Python 3.10 syntax.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from z1.errors import SimulatorError
from z1.sims.snapshot import GeneratorState, SimState, copy_value, is_live_view

MODEL_FIELDS = ("body_pos", "body_quat", "cam_pos", "cam_quat", "geom_rgba", "site_pos", "site_quat", "site_rgba")
"""Arrays of the model that RoboCasa's code writes, or could."""

_SCALARS = (bool, int, float, str, type(None))
_ARM_BUFFERS = ("recent_ee_forcetorques", "recent_ee_pose", "recent_ee_vel", "recent_ee_acc")
_CHANGING_CONTAINERS = frozenset({"_enabled_parts"})
"""Other lists and dictionaries of robots and controllers are constants of a scene."""

_SAME = "same as"
"""Marks an attribute that is the very same array as another: robosuite writes into some of them in place."""


class SceneState:
    """Takes the state out of one environment and puts it back.

    Restoring goes in this order: model arrays, physics, derived data, physics once more (computing derived data
    overwrites the solver's warm start), then Python attributes.
    """

    def __init__(self, mujoco: Any, env: Any, task: str, fingerprint: str) -> None:
        """Notes what can change.

        Args:
            mujoco: The module.
            env: A built environment.
            task: Name of the task.
            fingerprint: Of the compiled model.
        """
        self._mujoco = mujoco
        self._env = env
        self._task = task
        self._fingerprint = fingerprint
        self._model, self._data = env.sim.model._model, env.sim.data._data
        self._specification = mujoco.mjtState.mjSTATE_INTEGRATION
        self._physics_size = mujoco.mj_stateSize(self._model, self._specification)
        self._initial_model = {name: getattr(self._model, name).copy() for name in MODEL_FIELDS}
        self._fixtures = list(env.fixtures.items())
        self._initial_fixtures = dict(self._fixture_values())

    def _physics(self) -> np.ndarray:
        physics = np.empty(self._physics_size)
        self._mujoco.mj_getState(self._model, self._data, physics, self._specification)
        return physics

    def forward(self) -> None:
        """Computes derived data; the state stays as it is."""
        physics = self._physics()
        self._env.sim.forward()
        self._mujoco.mj_setState(self._model, self._data, physics, self._specification)

    def capture(self) -> SimState:
        """The present state; model arrays that have not changed are shared between the states of a scene."""
        model = {}
        for name, initial in self._initial_model.items():
            array = getattr(self._model, name)
            model[name] = initial if np.array_equal(array, initial) else array.copy()
        attributes: dict[str, Any] = {
            "fingerprint": self._fingerprint,
            "rng": GeneratorState(self._env.rng.bit_generator.state),
            "global_rng": _copied_global_rng(),
            "env": self._env_scalars(),
            "fixtures": {key: value for key, value in self._fixture_values() if value != self._initial_fixtures[key]},
        }
        first: dict[int, str] = {}
        for label, thing in parts_of(self._env):
            attributes[label] = _captured(label, thing, first)
        for label, gripper in grippers_of(self._env):
            attributes[label] = gripper.current_action.copy()
        return SimState(
            task=self._task,
            physics=self._physics(),
            model=model,
            attributes=attributes,
            views=(),
            observation=np.zeros(0),
        )

    def load(self, state: SimState) -> None:
        """Puts back a state, bit-exactly.

        Raises:
            SimulatorError: It belongs to another task or scene.
        """
        self._check(state)
        mujoco, model, data = self._mujoco, self._model, self._data
        for name, array in state.model.items():
            getattr(model, name)[:] = array
        mujoco.mj_setState(model, data, state.physics, self._specification)
        self._env.sim.forward()
        mujoco.mj_setState(model, data, state.physics, self._specification)
        data.warning.number[:] = 0
        self._load_attributes(state.attributes)

    def _load_attributes(self, attributes: Mapping[str, Any]) -> None:
        env = self._env
        env.rng.bit_generator.state = attributes["rng"].state
        np.random.set_state(attributes["global_rng"])  # noqa: NPY002 (robosuite draws from it)
        for name, value in attributes["env"].items():
            setattr(env, name, value)
        changed = attributes["fixtures"]
        for key, present in list(self._fixture_values()):
            value = changed.get(key, self._initial_fixtures[key])
            if value != present:
                self._set_fixture_value(key, value)
        arrays: dict[str, np.ndarray] = {}
        for label, thing in parts_of(env):
            _put_back(label, thing, attributes[label], arrays)
        for label, gripper in grippers_of(env):
            gripper.current_action = attributes[label].copy()

    def _check(self, state: SimState) -> None:
        if state.task != self._task:
            raise SimulatorError(f"a snapshot of task {state.task!r} cannot be restored into task {self._task!r}")
        found = state.attributes["fingerprint"]
        if found != self._fingerprint or state.physics.shape != (self._physics_size,):
            raise SimulatorError(
                f"the snapshot of {self._task!r} was taken in another kitchen (fingerprint {found}, here "
                f"{self._fingerprint}): the assets or the versions differ from those it was taken with"
            )

    def _env_scalars(self) -> dict[str, Any]:
        """The environment's own numbers and texts: clock, flags, what the task chose."""
        return {
            name: str(value) if isinstance(value, str) else value
            for name, value in vars(self._env).items()
            if type(value) in _SCALARS or isinstance(value, np.generic)
        }

    def _fixture_values(self) -> Iterator[tuple[tuple[str, str, str], Any]]:
        """What could change in fixtures: numbers and texts, and the places of the sites that bound them."""
        for fixture_name, fixture in self._fixtures:
            for name, value in vars(fixture).items():
                if type(value) in _SCALARS:
                    yield (fixture_name, "attribute", name), value
            for site, element in vars(fixture).get("_bounds_sites", {}).items():  # walls and floors have none
                yield (fixture_name, "site", site), element.get("pos")

    def _set_fixture_value(self, key: tuple[str, str, str], value: Any) -> None:
        fixture_name, kind, name = key
        fixture = self._env.fixtures[fixture_name]
        if kind == "site":
            fixture._bounds_sites[name].set("pos", value)
        else:
            setattr(fixture, name, value)


def parts_of(env: Any) -> Iterator[tuple[str, Any]]:
    """The Python objects, besides the environment and its fixtures, on which later env steps depend, with a label."""
    for number, robot in enumerate(env.robots):
        yield f"robot{number}", robot
        for arm in robot.arms:
            for name in (*_ARM_BUFFERS, "recent_ee_vel_buffer"):
                yield f"robot{number}/{name}/{arm}", getattr(robot, name)[arm]
        for name in ("recent_qpos", "recent_actions", "recent_torques"):
            yield f"robot{number}/{name}", getattr(robot, name)
        for part, controller in robot.composite_controller.part_controllers.items():
            yield f"robot{number}/controller/{part}", controller


def grippers_of(env: Any) -> Iterator[tuple[str, Any]]:
    """The grippers, with a label; of each only the current action changes."""
    for number, robot in enumerate(env.robots):
        for arm in robot.arms:
            yield f"robot{number}/gripper/{arm}", robot.gripper[arm]


def _captured(label: str, thing: Any, first: dict[int, str]) -> dict[str, Any]:
    """Numbers, texts and arrays of an object; an array met before is noted by the name under which it was met."""
    content: dict[str, Any] = {}
    for name, value in vars(thing).items():
        if type(value) is np.ndarray:
            if is_live_view(value) or value.dtype == object:  # an array of None stands for no limits
                continue
            path = first.setdefault(id(value), f"{label}/{name}")
            content[name] = value.copy() if path == f"{label}/{name}" else (_SAME, path)
        elif type(value) in _SCALARS or isinstance(value, np.generic) or name in _CHANGING_CONTAINERS:
            content[name] = copy_value(value, f"{label}/{name}")
    return content


def _put_back(label: str, thing: Any, content: Mapping[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """What ``_captured`` took; arrays that were one are one again."""
    for name, value in content.items():
        if type(value) is np.ndarray:
            value = value.copy()
            arrays[f"{label}/{name}"] = value
        elif type(value) is tuple and value[0] == _SAME:
            value = arrays[value[1]]
        else:
            value = copy_value(value, name)
        setattr(thing, name, value)


def _copied_global_rng() -> tuple[Any, ...]:
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 (robosuite draws from it)
    return (str(kind), np.array(keys), *rest)
