"""Scripted demonstrators at the stove: turn a burner on or off.

The closed fingers push the knob's bar at one end until it has turned far enough. Knobs on top of a stove are within
the arm's reach; for knobs at its front the robot first draws back.

Level 1: standard library and numpy only, Python 3.10 syntax.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from z1.sims.robocasa_experts.motion import Gripper, limited, pointing, unit
from z1.sims.robocasa_experts.sink import Push, push_part
from z1.sims.robocasa_layout import BASE, BASE_MODE


@dataclass(frozen=True, slots=True, kw_only=True)
class Approach:
    """How the fingers come to a knob.

    Attributes:
        slant: Radians by which the fingers lean over from the joint's axis: forward, or down.
        depth: Metres that they reach beyond the bar's middle.
        behind: Metres beside the bar from where they push.
        stand: Metres from the robot to the knob, forward and to the left.
    """

    slant: float
    depth: float
    behind: float
    stand: tuple[float, float]


TOP = Approach(slant=0.3, depth=0.0, behind=0.035, stand=(0.5, 0.0))
"""The knob lies on top of the stove: the fingers point down at it."""
FRONT = Approach(slant=0.5, depth=0.005, behind=0.035, stand=(0.84, 0.0))
"""It is at the stove's front: closer to the robot, joints of the arm would be at their limits."""
OUTER, BROAD = 0.8, 0.3
"""Where the bar is pushed, as a share of the way from its middle to its end; further out where the fingers push forward
or up, for they are broad that way and would touch it near its middle."""
ROOM, FAR = 0.10, 0.02
"""Metres outside of the place beside the bar at which the fingers line up; metres outside of that at which they still
go there."""
TOLERANCE = 0.012
"""Metres off the line into that place that do not matter: the next knob is close."""
STANDING = 0.06
"""Metres off the place where the robot should stand that do not matter."""
WHILE_DRIVING = 0.2
"""Largest length of the arm's part of the action meanwhile: then its goal runs on, instead of staying near the arm."""
BRAKING = 0.08
"""Metres from that place at which the robot slows down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob:
    """A knob that turns.

    Attributes:
        middle: float64 ``[3]``: of its bar.
        bar: float64 ``[3]``: from there to one end of it.
        axis: float64 ``[3]``: unit vector of the joint.
        angle: The joint's coordinate between -pi and pi, radians; 0 is off.
    """

    middle: np.ndarray
    bar: np.ndarray
    axis: np.ndarray
    angle: float


def turn_on(env: Any) -> np.ndarray:
    """Turns the burner on: pushes the near end, or the lower one."""
    gripper, knob = Gripper(env), knob_of(env)
    onwards = _onwards(gripper, knob)
    end = -knob.bar * (np.sign(knob.bar @ onwards) or 1.0)
    return _turn(gripper, knob, end, 1.0)


def turn_off(env: Any) -> np.ndarray:
    """Turns the burner off: pushes the end that goes forward, or up."""
    gripper, knob = Gripper(env), knob_of(env)
    onwards, sign = _onwards(gripper, knob), -1.0 if knob.angle > 0 else 1.0
    end = knob.bar * (np.sign(sign * np.cross(knob.axis, knob.bar) @ onwards) or 1.0)
    return _turn(gripper, knob, end, sign)


EXPERTS: dict[str, Callable[[Any], np.ndarray]] = {"TurnOffStove": turn_off, "TurnOnStove": turn_on}


def knob_of(env: Any) -> Knob:
    """The knob that the instruction names."""
    model, data = env.sim.model._model, env.sim.data._data
    name = f"{env.stove.naming_prefix}knob_{env.knob}"
    geom, joint = env.sim.model.geom_name2id(f"{name}_main"), env.sim.model.joint_name2id(f"{name}_joint")
    axis = np.array(data.xaxis[joint])
    edges = data.geom_xmat[geom].reshape(3, 3) * model.geom_size[geom]
    across = edges - np.outer(axis, axis @ edges)
    angle = float(data.qpos[model.jnt_qposadr[joint]])
    return Knob(
        middle=np.array(data.geom_xpos[geom]),
        bar=across[:, int(np.argmax(np.linalg.norm(across, axis=0)))],
        axis=axis,
        angle=math.remainder(angle, 2 * math.pi),
    )


def _onwards(gripper: Gripper, knob: Knob) -> np.ndarray:
    """In the plane in which a knob turns: forward, or up."""
    diagonal = gripper.forward + gripper.up
    return unit(diagonal - knob.axis * (diagonal @ knob.axis))


def _turn(gripper: Gripper, knob: Knob, end: np.ndarray, sign: float) -> np.ndarray:
    """One env step of pushing an end of a knob's bar."""
    upright = abs(float(knob.axis @ gripper.up)) > math.sqrt(0.5)
    approach = TOP if upright else FRONT
    inwards = -gripper.up if upright else gripper.forward
    tilt = gripper.forward if upright else -gripper.up
    fingers = math.cos(approach.slant) * inwards + math.sin(approach.slant) * tilt
    way = unit(sign * np.cross(knob.axis, end))
    outer = OUTER + BROAD * abs(float(way @ _onwards(gripper, knob)))
    push = Push(
        point=knob.middle + outer * end + approach.depth * fingers,
        way=way,
        rotation=pointing(fingers, gripper.forward if upright else gripper.up),
        inwards=fingers,
        behind=approach.behind,
        room=ROOM,
        tolerance=TOLERANCE,
    )
    ready = push.point - push.behind * push.way - ROOM * fingers
    place = gripper.base_rotation.T @ (knob.middle - gripper.base_position)
    off = place[:2] - approach.stand
    if np.linalg.norm(off) > STANDING:
        action = gripper.towards(ready - gripper.base_rotation[:, :2] @ off, push.rotation, speed=WHILE_DRIVING)
        action[BASE][:2] = limited(off / BRAKING, 1.0)
        action[BASE_MODE] = 1.0
        return action
    if (ready - gripper.position) @ fingers > FAR:
        return gripper.towards(ready, push.rotation)
    return push_part(gripper, push)
