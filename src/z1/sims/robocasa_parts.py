"""How far the gripper is from what a RoboCasa task is about: a door, a drawer, a lever, a knob, a button or an object.

For the diagnosis of failed rollouts alone; no policy and no reward sees it.

Level 1: standard library and numpy only, Python 3.10 syntax.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from z1.sims.robocasa_tasks import TASKS

MOVED_OBJECT = "obj"
"""Name of the object that a task moves, where it moves one."""

_DOORS = ("doorhinge", "leftdoorhinge", "rightdoorhinge", "microjoint")
"""Joints of a door, of which a fixture has one or two."""


class TaskPart:
    """The part of a scene that its task is about.

    Args:
        env: A built environment.
        task: Its task.
    """

    def __init__(self, env: Any, task: str) -> None:
        model = env.sim.model._model
        self._data = env.sim.data._data
        self._geoms = _geoms_of(env, task)
        self._middle, self._half = model.geom_aabb[self._geoms, :3].copy(), model.geom_aabb[self._geoms, 3:].copy()
        self._gripper = env.robots[0].eef_site_id["right"]

    def distance(self) -> float:
        """Metres from between the fingertips to the nearest of the part's geoms: to the box round each along its own
        axes; 0 within one.
        """
        data = self._data
        offset = data.site_xpos[self._gripper] - data.geom_xpos[self._geoms]
        rotation = data.geom_xmat[self._geoms].reshape(-1, 3, 3)
        inside = np.einsum("gij,gi->gj", rotation, offset) - self._middle
        return float(np.linalg.norm(np.maximum(np.abs(inside) - self._half, 0.0), axis=1).min())


def _geoms_of(env: Any, task: str) -> np.ndarray:
    """int64 ``[n]``: numbers of the part's geoms."""
    names = env.sim.model
    kind = TASKS[task].category
    if kind == "button":
        button = "start_button" if task == "TurnOnMicrowave" else "stop_button"
        return np.array([names.geom_name2id(env.microwave.naming_prefix + button)])
    if task == "CoffeePressButton":
        return np.array([names.geom_name2id(env.coffee_machine.naming_prefix + "start_button")])
    if kind in ("pick-and-place", "coffee"):
        return _moving_with(env, {env.obj_body_id[MOVED_OBJECT]})
    joints = {
        "door": lambda: [f"{env.door_fxtr.name}_{name}" for name in _DOORS],
        "drawer": lambda: [f"{env.drawer.name}_slidejoint"],
        "faucet": lambda: [f"{env.sink.naming_prefix}{'spout' if task == 'TurnSinkSpout' else 'handle'}_joint"],
        "knob": lambda: [f"{env.stove.naming_prefix}knob_{env.knob}_joint"],
    }[kind]()
    known = set(names.joint_names)
    return _moving_with(env, {names._model.jnt_bodyid[names.joint_name2id(name)] for name in joints if name in known})


def _moving_with(env: Any, bodies: set[int]) -> np.ndarray:
    """int64 ``[n]``: the colliding geoms of bodies and of what is fixed to them; all their geoms if none collides."""
    model = env.sim.model._model
    moving = set(bodies)
    for body in range(model.nbody):  # parents come first
        if model.body_parentid[body] in moving:
            moving.add(body)
    geoms = np.flatnonzero(np.isin(model.geom_bodyid, sorted(moving)))
    colliding = geoms[model.geom_contype[geoms] != 0]
    return colliding if len(colliding) else geoms
