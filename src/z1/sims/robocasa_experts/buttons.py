"""Scripted demonstrators that press a button with the fingertips: coffee machine and microwave.

The closed fingers line up in front of the button, go straight at it until the machine has noticed, and draw back: a
task counts as solved once the gripper is 15 cm away.

Level 1: standard library and numpy only, Python 3.10 syntax.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from z1.sims.robocasa_experts.motion import Gripper, pointing

ALIGNED = 0.012
"""Metres off the line to the button within which they may go at it."""
MISPOINTED = 0.35
"""Radians between the fingers and the wanted direction within which they may go at it."""
DEPTH = 0.05
"""Metres behind the button's middle at which they aim."""
RETREAT = 0.25
"""Metres in front of the button to which they draw back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Approach:
    """How the fingers come to a button.

    Attributes:
        standoff: Metres in front of the button where the fingertips line up.
        dip: Radians by which the fingers point below the horizontal.
        upright: Whether the hand's long side is upright, else level.
    """

    standoff: float
    dip: float
    upright: bool


COFFEE_MACHINE = Approach(standoff=0.08, dip=0.6, upright=False)
"""It stands low and close: with level fingers the arm would have to fold further than it can."""
MICROWAVE = Approach(standoff=0.13, dip=0.0, upright=True)
"""The handle of the door stands upright beside the buttons, 9 cm before them."""
HANDLE_CLEARANCE = 0.012
"""Metres that the fingers keep from the middle of a microwave's button, away from the handle."""


def press_coffee_machine(env: Any) -> np.ndarray:
    """Presses the start button of the coffee machine."""
    machine, gripper = env.coffee_machine, Gripper(env)
    button = _place_of(env, f"{machine.naming_prefix}start_button")
    return _press(gripper, button, COFFEE_MACHINE, machine.get_state()["turned_on"])


def start_microwave(env: Any) -> np.ndarray:
    """Presses the start button of the microwave."""
    return _press_microwave(env, "start_button", env.microwave.get_state()["turned_on"])


def stop_microwave(env: Any) -> np.ndarray:
    """Presses the stop button of the microwave."""
    return _press_microwave(env, "stop_button", not env.microwave.get_state()["turned_on"])


EXPERTS: dict[str, Callable[[Any], np.ndarray]] = {
    "CoffeePressButton": press_coffee_machine,
    "TurnOffMicrowave": stop_microwave,
    "TurnOnMicrowave": start_microwave,
}


def _press_microwave(env: Any, button: str, done: bool) -> np.ndarray:
    gripper = Gripper(env)
    place = _place_of(env, env.microwave.naming_prefix + button)
    handle = _place_of(env, env.microwave.handle_name)
    aside = HANDLE_CLEARANCE * np.sign((place - handle) @ gripper.left)
    return _press(gripper, place + aside * gripper.left, MICROWAVE, done)


def _press(gripper: Gripper, button: np.ndarray, approach: Approach, done: bool) -> np.ndarray:
    """One env step of pressing a button in front of the robot.

    Args:
        gripper: The gripper.
        button: float ``[3]``: the point to press.
        approach: How to come to it.
        done: Whether the machine has noticed.

    Returns:
        float32 ``[12]``.
    """
    forward, up = gripper.forward, gripper.up
    rotation = pointing(
        math.cos(approach.dip) * forward - math.sin(approach.dip) * up, gripper.left if approach.upright else up
    )
    if done:
        return gripper.towards(button - RETREAT * forward, rotation)
    offset = button - gripper.position
    depth = float(offset @ forward)
    aside = float(np.linalg.norm(offset - depth * forward))
    if aside > ALIGNED * max(1.0, depth / approach.standoff) or gripper.angle(rotation) > MISPOINTED:
        return gripper.towards(button - approach.standoff * forward, rotation)
    return gripper.towards(button + DEPTH * forward, rotation)


def _place_of(env: Any, geom: str) -> np.ndarray:
    return np.array(env.sim.data.geom_xpos[env.sim.model.geom_name2id(geom)])
