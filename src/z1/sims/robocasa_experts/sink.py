"""Scripted demonstrators at the sink: turn the faucet on or off, turn the spout to a side.

All push a part that turns about a joint with the closed fingers: they line up in front of the place beside the part
from which it must be pushed, go straight into that place, and push.

Level 1: standard library and numpy only, Python 3.10 syntax.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from z1.sims.robocasa_experts.motion import Gripper, pointing, unit

LINED_UP = 0.03
"""Metres off the line of the push that do not matter."""
WIDENING = 0.25
"""Metres off the line into the place beside the part that do not matter, per metre outside of it."""
AHEAD = 0.025
"""Metres ahead on that line at which the gripper aims."""
PAST = 0.015
"""Metres beyond the point at which the fingers no longer push, but have slipped over the part."""
REACH = 0.06
"""Metres beyond the part at which the gripper aims when it pushes: hard, for the joints are heavily damped."""
ROOM, SIDE_ROOM = 0.12, 0.20
"""Metres outside of the place beside a part where the fingers line up; further away for a lever under the spout."""
TOLERANCE, SIDE_TOLERANCE = 0.03, 0.02
"""Metres off the line into that place that do not matter; fewer between a lever and the spout."""
TOP_DIP, TOP_BEHIND = math.pi / 4, 0.045
"""Radians below level at which the fingers push up a lever that turns up and down; metres below it."""
OVER_DIP, OVER, OVER_BEHIND = 0.5, 0.03, 0.05
"""The same for pulling it down, with the fingers across its end; metres that they reach beyond it; metres above it."""
SIDE_DIP, SIDE_YAW = 0.5, 0.5
"""Radians below level, and to the left, at which they point at a lever that turns to the sides: the hand comes from the
right, where the spout and its column are not, and stays below the spout."""
DEEPER = 0.022
"""Metres that they reach beyond such a lever, so that their pads touch it and not their tips."""
GAP, SIDE_BEHIND = 0.032, 0.05
"""Metres from such a lever at which they push it: in the gap to the spout's column, and from the other side."""
SPOUT_DIP, SPOUT_INWARDS, SPOUT_BEHIND = 0.5, 0.7, 0.06
"""Radians below level at which they point beside the spout; how far they come in from the side, per metre in their
direction; metres beside it."""
LEVER_POINT, SPOUT_POINT = 0.6, 0.9
"""Where a part is pushed, as a share of the way from its middle to its free end."""
MISPOINTED = 0.35
"""Radians between the fingers and the wanted direction within which they may go in."""

_CYLINDER, _CAPSULE = 5, 3
"""MuJoCo's types of geoms whose length is along their own z axis, in the second number of their size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part that turns.

    Attributes:
        point: float64 ``[3]``: a point of it, in the world.
        way: float64 ``[3]``: unit vector: where that point goes as the joint's coordinate grows.
        axis: float64 ``[3]``: unit vector of the joint.
    """

    point: np.ndarray
    way: np.ndarray
    axis: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Push:
    """How to push a part.

    Attributes:
        point: float64 ``[3]``: where the fingertips are when they touch the part, but for the thickness of both.
        way: float64 ``[3]``: unit vector: where to push.
        rotation: float64 ``[3, 3]``: the hand's, as ``Gripper.rotation``.
        inwards: float64 ``[3]``: unit vector: how the fingertips come to the place from which they push.
        behind: Metres from that place to the point.
        room: Metres outside of that place where the fingers line up.
        tolerance: Metres off the line into that place that do not matter.
    """

    point: np.ndarray
    way: np.ndarray
    rotation: np.ndarray
    inwards: np.ndarray
    behind: float
    room: float
    tolerance: float


def part_of(env: Any, geom: str, joint: str, outer: float) -> Part:
    """A long geom that turns about a hinge.

    Args:
        env: The environment.
        geom: Its name.
        joint: The hinge's name.
        outer: Which point, as a share of the way from the geom's middle to its free end.

    Returns:
        The part.
    """
    model, data = env.sim.model._model, env.sim.data._data
    number, hinge = env.sim.model.geom_name2id(geom), env.sim.model.joint_name2id(joint)
    size, rotation = model.geom_size[number], data.geom_xmat[number].reshape(3, 3)
    round_ = model.geom_type[number] in (_CYLINDER, _CAPSULE)
    longest = 2 if round_ else int(np.argmax(size))
    along, half = rotation[:, longest], size[1 if round_ else longest]
    anchor, axis = np.array(data.xanchor[hinge]), np.array(data.xaxis[hinge])
    middle = np.array(data.geom_xpos[number])
    point = middle + outer * half * along * (np.sign(along @ (middle - anchor)) or 1.0)
    return Part(point=point, way=unit(np.cross(axis, point - anchor)), axis=axis)


def push_part(gripper: Gripper, push: Push) -> np.ndarray:
    """One env step of pushing a part.

    Args:
        gripper: The gripper.
        push: How to push it.

    Returns:
        float32 ``[12]``.
    """
    offset = gripper.position - push.point
    along = float(offset @ push.way)
    beside = -push.behind - LINED_UP < along < PAST
    if beside and np.linalg.norm(offset - along * push.way) < LINED_UP:
        return gripper.towards(push.point + REACH * push.way, push.rotation)
    start = push.point - push.behind * push.way
    offset = gripper.position - start
    out = -float(offset @ push.inwards)
    aside = float(np.linalg.norm(offset + out * push.inwards))
    lined_up = aside < max(push.tolerance, WIDENING * out) and gripper.angle(push.rotation) < MISPOINTED
    if out > -LINED_UP and lined_up:
        return gripper.towards(start - max(out - AHEAD, 0.0) * push.inwards, push.rotation)
    return gripper.towards(start - push.room * push.inwards, push.rotation)


def turn_on(env: Any) -> np.ndarray:
    """Turns the water on."""
    gripper, lever = Gripper(env), _lever_of(env)
    if not _upright(gripper, lever):
        return push_part(gripper, _sideways(gripper, lever, -1.0, GAP))
    fingers = _slanting(gripper, TOP_DIP)
    push = Push(
        point=lever.point,
        way=lever.way,
        rotation=pointing(fingers, gripper.up),
        inwards=fingers,
        behind=TOP_BEHIND,
        room=ROOM,
        tolerance=TOLERANCE,
    )
    return push_part(gripper, push)


def turn_off(env: Any) -> np.ndarray:
    """Turns the water off."""
    gripper, lever = Gripper(env), _lever_of(env)
    if not _upright(gripper, lever):
        return push_part(gripper, _sideways(gripper, lever, 1.0, SIDE_BEHIND))
    fingers = _slanting(gripper, OVER_DIP)
    rotation = pointing(fingers, gripper.up)
    push = Push(
        point=lever.point + OVER * fingers,
        way=-rotation[:, 1],
        rotation=rotation,
        inwards=fingers,
        behind=OVER_BEHIND,
        room=ROOM,
        tolerance=TOLERANCE,
    )
    return push_part(gripper, push)


def turn_spout(env: Any) -> np.ndarray:
    """Turns the spout to the side that the instruction names."""
    gripper, prefix = Gripper(env), env.sink.naming_prefix
    spout = part_of(env, f"{prefix}spout_top", f"{prefix}spout_joint", SPOUT_POINT)
    across = gripper.left if env.behavior == "left" else -gripper.left
    fingers = _slanting(gripper, SPOUT_DIP)
    push = Push(
        point=spout.point,
        way=across,
        rotation=pointing(fingers, gripper.left),
        inwards=unit(fingers + SPOUT_INWARDS * across),
        behind=SPOUT_BEHIND,
        room=ROOM,
        tolerance=TOLERANCE,
    )
    return push_part(gripper, push)


EXPERTS: dict[str, Callable[[Any], np.ndarray]] = {
    "TurnOffSinkFaucet": turn_off,
    "TurnOnSinkFaucet": turn_on,
    "TurnSinkSpout": turn_spout,
}


def _lever_of(env: Any) -> Part:
    prefix = env.sink.naming_prefix
    return part_of(env, f"{prefix}handle_main", f"{prefix}handle_joint", LEVER_POINT)


def _upright(gripper: Gripper, lever: Part) -> bool:
    """Whether a lever turns up and down, not to the sides."""
    return bool(abs(lever.axis @ gripper.left) > math.sqrt(0.5))


def _slanting(gripper: Gripper, dip: float, yaw: float = 0.0) -> np.ndarray:
    """The direction forward, some radians below level and to the left."""
    level = math.cos(yaw) * gripper.forward + math.sin(yaw) * gripper.left
    return math.cos(dip) * level - math.sin(dip) * gripper.up


def _sideways(gripper: Gripper, lever: Part, side: float, behind: float) -> Push:
    """The push of a lever to the left (1) or to the right (-1)."""
    fingers = _slanting(gripper, SIDE_DIP, SIDE_YAW)
    return Push(
        point=lever.point + DEEPER * fingers,
        way=side * gripper.left,
        rotation=pointing(fingers, gripper.left),
        inwards=fingers,
        behind=behind,
        room=SIDE_ROOM,
        tolerance=SIDE_TOLERANCE,
    )
