"""Leaves out work that robosuite and RoboCasa repeat in every env step although its result is known.

- A drawer works out where its inside is, for tasks that put something into it. It follows from where four sites of the
  model are; while they stay where they are to the bit, so does the inside.
- A robot counts its action dims three times per simulated 2 ms by putting together the limits of all its controllers.
- It looks up, per simulated 2 ms, which actuators a controller drives and what they can do, and works out each Jacobian
  of its hand twice.
- Machines with buttons look through all contacts by the names of their geoms.

Level 1: standard library and numpy only, Python 3.10 syntax.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

_INSIDE = ("int_p0", "int_px", "int_py", "int_pz")
"""Sites of a drawer that bound its inside."""

_CLIP = np.core.umath.clip  # type: ignore[attr-defined]
"""What ``np.clip`` calls after checks that cost more than the work; the same to the sign of a zero."""


def leave_out_repeats(env: Any, mujoco: Any) -> None:
    """Changes a built environment so that its fixtures and robots do no work twice; nothing else changes.

    What is changed knows the compiled model that it was made for, and does as before in any other.

    Args:
        env: The environment.
        mujoco: The module.
    """
    for fixture in env.fixtures.values():
        if type(fixture).__name__ == "Drawer":
            fixture.update_state = _once_per_place(fixture, env)
    for robot in env.robots:
        robot.__class__ = type(type(robot).__name__, (type(robot),), {"action_dim": robot.action_dim})
        controllers = robot.composite_controller
        controllers.run_controller = _driving_at_once(robot, controllers.run_controller)
        for arm in robot.arms:
            controller = controllers.part_controllers[arm]
            controller._update_single_reference = _each_jacobian_once(controller, mujoco)
    env.check_contact = _by_number(env)


def _driving_at_once(robot: Any, run: Callable[[Any], dict[str, np.ndarray]]) -> Callable[[Any], dict[str, np.ndarray]]:
    """A robot's ``run_controller`` that also sets the actuators, and leaves none to set."""
    model, data = robot.sim.model._model, robot.sim.data._data
    driven = {
        part: (numbers, model.actuator_ctrlrange[numbers, 0], model.actuator_ctrlrange[numbers, 1])
        for part, numbers in robot._ref_actuators_indexes_dict.items()
    }

    def run_controller(enabled_parts: Any) -> dict[str, np.ndarray]:
        applied = run(enabled_parts)
        if robot.sim.data._data is not data:
            return applied
        for part, action in applied.items():
            numbers, low, high = driven[part]
            data.ctrl[numbers] = _CLIP(action, low, high)
        return {}

    return run_controller


def _each_jacobian_once(controller: Any, mujoco: Any) -> Callable[[str, int], None]:
    """An arm controller's ``_update_single_reference``: the hand's velocities follow from the Jacobians."""
    update, sim = controller._update_single_reference, controller.sim
    model, data = sim.model._model, sim.data._data
    site, dofs = sim.model.site_name2id(controller.ref_name), controller.qvel_index

    def update_single_reference(name: str, index: int) -> None:
        if controller.sim.data._data is not data:
            update(name, index)
            return
        positional, rotational = np.zeros((3, model.nv)), np.zeros((3, model.nv))
        mujoco.mj_jacSite(model, data, positional, rotational, site)
        controller.ref_pos[:] = data.site_xpos[site]
        controller.ref_ori_mat[:, :] = data.site_xmat[site].reshape(3, 3)
        controller.ref_pos_vel[:] = np.dot(positional, data.qvel)
        controller.ref_ori_vel[:] = np.dot(rotational, data.qvel)
        controller.J_pos[:, :] = controller.J_full[:3] = positional[:, dofs]
        controller.J_ori[:, :] = controller.J_full[3:] = rotational[:, dofs]

    return update_single_reference


def _by_number(env: Any) -> Callable[..., bool]:
    """An environment's ``check_contact`` that compares numbers of geoms, not names."""
    check, names = type(env).check_contact, env.sim.model
    model, data = names._model, env.sim.data._data
    known: dict[Any, np.ndarray] = {}

    def among(geoms: Any) -> np.ndarray:
        """bool ``[ngeom]``: whether a geom is one of those: a name, a list of names, or a part of the scene."""
        key = geoms if isinstance(geoms, str) else tuple(geoms) if isinstance(geoms, list) else geoms
        if key not in known:
            chosen = [geoms] if isinstance(geoms, str) else geoms if isinstance(geoms, list) else geoms.contact_geoms
            chosen = set(chosen)
            known[key] = np.array([names.geom_id2name(number) in chosen for number in range(model.ngeom)])
        return known[key]

    def check_contact(geoms_1: Any, geoms_2: Any = None) -> bool:
        if env.sim.data._data is not data:
            return bool(check(env, geoms_1, geoms_2))
        touching = data.contact.geom
        first = among(geoms_1)[touching]
        if geoms_2 is None:
            return bool(first.any())
        return bool((first & among(geoms_2)[touching][:, ::-1]).any())

    return check_contact


def _once_per_place(drawer: Any, env: Any) -> Callable[[Any], None]:
    """A drawer's ``update_state`` that works only when something has changed since it last did."""
    compute, data = drawer.update_state, env.sim.data._data
    sites = [env.sim.model.site_name2id(drawer.naming_prefix + name) for name in _INSIDE]
    seen: tuple[object, ...] = ()

    def places() -> tuple[object, ...]:
        element, bounds = drawer._obj, drawer._bounds_sites
        own = (element.get("pos"), element.get("euler"))
        return (data.site_xpos[sites].tobytes(), *own, *(bounds[name].get("pos") for name in _INSIDE))

    def update_state(env: Any) -> None:
        nonlocal seen
        if places() != seen:
            compute(env)
            seen = places()

    return update_state
