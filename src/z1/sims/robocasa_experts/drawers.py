"""Scripted demonstrators that close and open a drawer beside the robot.

Closing: with the fingers down, the gripper goes over the open drawer to a place before its handle, down, and forward
until the drawer is shut. Opening: the open fingers come to the handle from the front, close on it, and draw it out.

Places are given as seen from the handle, in the frame of the robot's base: along the drawer's way (positive: into the
cabinet), aside, and up.

Level 1: standard library and numpy only, Python 3.10 syntax.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from z1.sims.robocasa_experts.motion import CLOSE, OPEN, Gripper, pointing

ABOVE = 0.22
"""Metres over the handle at which the gripper travels to close."""
BEFORE = 0.09
"""Metres before the handle at which the fingers come down, or line up."""
ALIGNED = 0.05
"""Metres aside, or up, within which the gripper may push."""
LEAN = 0.6
"""Radians by which the fingers point forward, so that the wrist stays clear of the counter over the drawer."""
PUSH = 0.10
"""Metres behind the handle at which the gripper aims when it pushes."""

FARTHEST, NEAREST = 0.65, 0.55
"""Metres aside of the robot at which a handle is out of reach, and to which it then drives."""
REACH_LEAN = 1.25
"""Radians by which the fingers point forward to grasp: nearly level, so that the hand stays clear of the counter."""
LINED_UP = (0.03, 0.02, 0.2)
"""Metres aside, metres up, radians within which the fingers may advance to the handle."""
DEPTH = 0.018
"""Metres by which the fingertips reach past the handle."""
ASTRIDE = (0.03, 0.06, 0.03)
"""Metres along, aside and up within which the handle is between the fingers."""
HELD = (0.004, 0.034)
"""Opening between which the fingers, once at rest, hold the handle; less: they closed on nothing."""
AT_REST = 0.01
"""Metres per second below which the fingers are at rest."""
PULL = 0.12
"""Metres before the handle at which the gripper aims when it pulls."""


def close_drawer(env: Any) -> np.ndarray:
    """Pushes the drawer shut."""
    gripper = Gripper(env)
    handle, (along, aside, height) = _from_handle(env, gripper)
    low = abs(height) < ALIGNED
    if abs(aside) > ALIGNED or along > (0.0 if low else -BEFORE / 3):
        goal = (-BEFORE, 0.0, ABOVE)
    else:
        goal = (PUSH if low else -BEFORE, 0.0, 0.0)
    rotation = pointing(_leaning(gripper, LEAN), gripper.forward)
    return gripper.towards(handle + gripper.base_rotation @ goal, rotation, grip=CLOSE)


def open_drawer(env: Any) -> np.ndarray:
    """Grasps the handle and pulls."""
    gripper = Gripper(env)
    handle, offset = _from_handle(env, gripper)
    along, aside, height = offset
    side = float((handle - gripper.base_position) @ gripper.left)
    if abs(side) > FARTHEST:
        return gripper.drive(left=float(np.sign(side)) * (abs(side) - NEAREST), grip=OPEN)
    outwards = gripper.left * np.sign(side)
    rotation = pointing(_leaning(gripper, REACH_LEAN), outwards)
    deviation = np.array([abs(aside), abs(height), gripper.angle(rotation)])
    astride = bool((np.abs(offset) < ASTRIDE).all())
    if astride and HELD[0] < gripper.opening < HELD[1] and gripper.finger_speed < AT_REST:
        goal, grip = np.array([-PULL, 0.0, 0.0]), CLOSE
    elif astride and (along > 0 or HELD[0] < gripper.opening < HELD[1]):
        goal, grip = offset, CLOSE
    else:
        goal, grip = np.array([DEPTH if (deviation < LINED_UP).all() else -BEFORE, 0.0, 0.0]), OPEN
    return gripper.towards(handle + gripper.base_rotation @ goal, rotation, grip=grip)


EXPERTS: dict[str, Callable[[Any], np.ndarray]] = {"CloseDrawer": close_drawer, "OpenDrawer": open_drawer}


def _from_handle(env: Any, gripper: Gripper) -> tuple[np.ndarray, np.ndarray]:
    """Where the handle is in the world, and where the gripper is as seen from it, in the base's frame."""
    handle = np.array(env.sim.data.geom_xpos[env.sim.model.geom_name2id(env.drawer.handle_name)])
    return handle, gripper.base_rotation.T @ (gripper.position - handle)


def _leaning(gripper: Gripper, angle: float) -> np.ndarray:
    """Down, turned forward by an angle in radians."""
    return math.sin(angle) * gripper.forward - math.cos(angle) * gripper.up
