"""Scripted demonstrators that close doors: of cabinets with one door, and of microwaves.

An open door stands beside the robot, and the gripper is on its inner side. The robot drives back until the gripper is
clear of the free edge, swings the arm round it, drives up again, and pushes the outer face along its arc.

Level 1: standard library and numpy only, Python 3.10 syntax.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from z1.sims.robocasa_experts.motion import CLOSE, Gripper, pointing, unit

CLEAR = 0.06
"""Metres beyond the free edge at which the gripper may swing round it."""
BACK, EDGEWAYS = 0.02, 0.03
"""Metres further at which the robot stops driving back; nearer at which the gripper still swings on."""
INSIDE = -0.02
"""Metres outside the door, here within it, below which the gripper is on its inner side."""
SWING, SWUNG = 0.20, 0.12
"""Metres outside the door at which the gripper aims when it swings, and at which it is round the edge."""
SWING_LEAN = math.atan(0.5)
"""Radians by which the fingers, which point down, lean forward meanwhile."""
REACH, ARRIVED = 0.72, 0.01
"""Metres from the robot forward to the hinge from which it can push the door shut; metres more that do not matter."""
POINT = 0.70
"""Where the door is pushed, as a share of the way from its hinge to its free edge."""
HEIGHT = 0.10
"""Metres over the lower edge at which it is pushed."""
STANDOFF = 0.10
"""Metres outside the door at which the gripper lines up."""
LINED_UP = 0.06
"""Metres off the point, along the door and up, within which it may push."""
PUSH = 0.08
"""Metres behind the outer face at which it aims when it pushes."""
YAW = 0.6
"""Radians by which the fingers then point from straight ahead to the robot's middle."""

_BOX = 6
"""MuJoCo's type of geoms that are boxes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """A door about an upright hinge.

    Attributes:
        hinge: float64 ``[3]``: the hinge's lower end, in the world.
        along: float64 ``[3]``: unit vector from the hinge to the free edge.
        outwards: float64 ``[3]``: unit vector out of the outer face, the one that is seen when the door is shut.
        width: Metres from the hinge to the free edge.
    """

    hinge: np.ndarray
    along: np.ndarray
    outwards: np.ndarray
    width: float

    def point(self, along: float, outside: float, height: float) -> np.ndarray:
        """float64 ``[3]``: the point so many metres from the hinge, outside of the door, and over its lower edge."""
        return self.hinge + along * self.along + outside * self.outwards + np.array([0.0, 0.0, height])


def door_of(env: Any, joint: str) -> Door:
    """The door that turns about a joint: the box with the largest face among the parts that turn."""
    model, data = env.sim.model._model, env.sim.data._data
    number = env.sim.model.joint_name2id(joint)
    body = model.jnt_bodyid[number]
    moving = (model.geom_bodyid == body) | (model.body_parentid[model.geom_bodyid] == body)
    boxes = np.flatnonzero(moving & (model.geom_contype != 0) & (model.geom_type == _BOX))
    panel = max(boxes, key=lambda box: float(np.prod(np.sort(model.geom_size[box])[1:])))
    size, rotation = model.geom_size[panel], data.geom_xmat[panel].reshape(3, 3)
    middle, hinge, axis = np.array(data.geom_xpos[panel]), np.array(data.xanchor[number]), np.array(data.xaxis[number])
    along = np.cross(rotation[:, int(np.argmin(size))], [0.0, 0.0, 1.0])
    along *= np.sign(along @ (middle - hinge))
    opening = axis if model.jnt_range[number].sum() > 0 else -axis
    hinge[2] = middle[2] - np.abs(rotation[2]) @ size
    width = 2 * float(unit(along) @ (middle - hinge))
    return Door(hinge=hinge, along=unit(along), outwards=unit(np.cross(opening, along)), width=width)


def push_door(gripper: Gripper, door: Door) -> np.ndarray:
    """One env step of closing a door.

    Args:
        gripper: The gripper.
        door: The door, open or partly open.

    Returns:
        float32 ``[12]``.
    """
    offset = gripper.position - door.hinge
    along, outside, height = float(offset @ door.along), float(offset @ door.outwards), float(offset[2])
    clear = door.width + CLEAR
    if outside < INSIDE and along < clear:
        return gripper.drive(forward=along - clear - BACK, grip=CLOSE)
    if outside < SWUNG and along > clear - EDGEWAYS:
        fingers = math.sin(SWING_LEAN) * gripper.forward - math.cos(SWING_LEAN) * gripper.up
        goal = door.point(max(clear, along), SWING, min(height, HEIGHT))
        return gripper.towards(goal, pointing(fingers, gripper.forward))
    ahead = door.hinge - gripper.base_position
    if ahead @ gripper.forward > REACH + ARRIVED:
        return gripper.drive(forward=float(ahead @ gripper.forward) - REACH, grip=CLOSE)
    middle = -gripper.left * np.sign(ahead @ gripper.left)
    rotation = pointing(math.cos(YAW) * gripper.forward + math.sin(YAW) * middle, gripper.left)
    where = POINT * door.width
    lined_up = abs(along - where) < LINED_UP and abs(height - HEIGHT) < LINED_UP
    return gripper.towards(door.point(where, -PUSH if lined_up else STANDOFF, HEIGHT), rotation)


def close_single_door(env: Any) -> np.ndarray:
    """Closes the one door of the task's cabinet or microwave."""
    hinges = (f"{env.door_fxtr.name}_doorhinge", f"{env.door_fxtr.name}_microjoint")
    return push_door(Gripper(env), door_of(env, next(joint for joint in hinges if joint in env.sim.model.joint_names)))


EXPERTS: dict[str, Callable[[Any], np.ndarray]] = {"CloseSingleDoor": close_single_door}
