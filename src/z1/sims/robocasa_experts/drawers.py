"""Scripted demonstrators that close and open a drawer beside the robot.

Closing: with the fingers down, the gripper goes over the open drawer to a place before its handle, down, and forward
until the drawer is shut. Opening: the open fingers come down astride the handle, close, and draw it towards the robot.

Places are given as seen from the handle, in the frame of the robot's base: along the drawer's way (positive: into the
cabinet), aside, and up.

Level 1: standard library and numpy only, Python 3.10 syntax.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from z1.sims.robocasa_experts.motion import CLOSE, Gripper, pointing

ABOVE = 0.22
"""Metres over the handle at which the gripper travels."""
BEFORE = 0.09
"""Metres before the handle at which it comes down to push."""
ALIGNED = 0.05
"""Metres aside, or up, within which it may push."""
LEAN = 0.6
"""Radians by which the fingers point forward, so that the wrist stays clear of the counter over the drawer."""
PUSH = 0.10
"""Metres behind the handle at which it aims when it pushes."""


def close_drawer(env: Any) -> np.ndarray:
    """Pushes the drawer shut."""
    gripper, drawer = Gripper(env), env.drawer
    rotation = pointing(math.sin(LEAN) * gripper.forward - math.cos(LEAN) * gripper.up, gripper.forward)
    handle = np.array(env.sim.data.geom_xpos[env.sim.model.geom_name2id(drawer.handle_name)])
    along, aside, height = gripper.base_rotation.T @ (gripper.position - handle)
    low = abs(height) < ALIGNED
    if abs(aside) > ALIGNED or along > (0.0 if low else -BEFORE / 3):
        goal = np.array([-BEFORE, 0.0, ABOVE])
    else:
        goal = np.array([PUSH if low else -BEFORE, 0.0, 0.0])
    return gripper.towards(handle + gripper.base_rotation @ goal, rotation, grip=CLOSE)


EXPERTS: dict[str, Callable[[Any], np.ndarray]] = {"CloseDrawer": close_drawer}
