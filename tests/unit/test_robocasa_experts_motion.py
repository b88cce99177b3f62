"""How RoboCasa's scripted demonstrators move, and how they press buttons, on made-up states; no simulator is needed."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from made_up_kitchen import Geom, kitchen
from z1.sims.robocasa_experts.buttons import EXPERTS
from z1.sims.robocasa_experts.motion import CLOSE, OPEN, Gripper, limited, pointing, rotation_vector, unit
from z1.sims.robocasa_layout import EXPERT_NOISE

QUARTER_TURN = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
"""The base looks along the world's y."""


def turned(axis: np.ndarray, angle: float) -> np.ndarray:
    """The rotation about an axis (Rodrigues)."""
    x, y, z = unit(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross


def world(position: np.ndarray, rotation: np.ndarray, **extra: Any) -> Any:
    """A machine with a button; the robot looks along y."""
    return kitchen(
        position,
        rotation,
        geoms={"machine_start_button": Geom(position=(0.0, 0.6, 1.2))},
        base=QUARTER_TURN,
        fingers=(0.02, -0.02),
        finger_speeds=(-0.1, 0.3),
        **extra,
    )


@pytest.mark.parametrize("angle", [0.0, 1e-9, 0.3, math.pi / 2, 3.0, math.pi])
def test_rotation_vector_is_axis_times_angle(angle: float) -> None:
    for axis in np.vstack([np.eye(3), [[1, 2, -2]], [[-0.3, 0.1, 0.9]]]):
        found = rotation_vector(turned(axis, angle))
        sign = 1 if angle < 3.1 else np.sign(found @ axis)  # half a turn has two axes
        np.testing.assert_allclose(sign * found, unit(axis) * angle, atol=2e-7)


def test_pointing_is_a_rotation_with_the_hand_across() -> None:
    rotation = pointing(np.array([0.0, 2.0, 0.0]), np.array([0.0, 5.0, 1.0]))
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1)
    np.testing.assert_allclose(rotation[:, 2], [0, 1, 0])
    np.testing.assert_allclose(rotation[:, 1], [0, 0, 1])


def test_the_action_is_in_the_frame_of_the_base() -> None:
    hand = pointing(np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0]))
    gripper = Gripper(world(np.array([0.1, 0.4, 1.0]), hand))
    np.testing.assert_allclose(gripper.forward, [0, 1, 0])
    np.testing.assert_allclose(gripper.left, [-1, 0, 0])
    assert gripper.opening == pytest.approx(0.02)
    assert gripper.finger_speed == pytest.approx(0.2)
    action = gripper.towards(gripper.position + np.array([0.0, 0.01, 0.02]), grip=OPEN)
    np.testing.assert_allclose(action[:6], [0.2, 0, 0.4, 0, 0, 0], atol=1e-6)
    assert action[6] == OPEN
    assert action[11] == -1  # the arm moves, not the base
    turn = gripper.towards(gripper.position, turned(np.array([0.0, 1.0, 0.0]), 0.25) @ hand)
    np.testing.assert_allclose(turn[:6], [0, 0, 0, 0.5, 0, 0], atol=1e-6)  # about the world's y: the base's forward
    assert turn[6] == CLOSE
    far = gripper.towards(gripper.position + np.array([3.0, 0.0, 4.0]), speed=0.5)
    assert np.linalg.norm(far[:3]) == pytest.approx(0.5)
    np.testing.assert_array_equal(limited(np.array([0.3, 0.4]), 1.0), [0.3, 0.4])
    drive = gripper.drive(forward=-0.037 / 2, left=3.0, grip=OPEN)
    np.testing.assert_allclose(drive, [0, 0, 0, 0, 0, 0, OPEN, -0.5, 1, 0, 0, 1], atol=1e-6)  # the base moves


def test_pressing_lines_up_then_advances_then_draws_back() -> None:
    machine = SimpleNamespace(naming_prefix="machine_", get_state=lambda: {"turned_on": False})
    hand = pointing(np.array([0.0, math.cos(0.6), -math.sin(0.6)]), np.array([0.0, 0.0, 1.0]))
    press = EXPERTS["CoffeePressButton"]
    aside = press(world(np.array([0.2, 0.55, 1.2]), hand, coffee_machine=machine))
    assert aside[1] > 0.9  # it is too far right: to the left, and back to where it lines up
    assert aside[0] < 0
    ahead = press(world(np.array([0.0, 0.5, 1.2]), hand, coffee_machine=machine))
    np.testing.assert_allclose(ahead[:6], [1, 0, 0, 0, 0, 0], atol=1e-6)
    bent = pointing(np.array([0.0, 0.0, -1.0]), np.array([0.0, 1.0, 0.0]))
    turning = press(world(np.array([0.0, 0.52, 1.2]), bent, coffee_machine=machine))
    np.testing.assert_allclose(turning[:3], 0, atol=1e-6)  # in place already, but not yet pointing at it
    assert np.abs(turning[3:6]).max() > 0.9
    machine.get_state = lambda: {"turned_on": True}
    back = press(world(np.array([0.0, 0.6, 1.2]), hand, coffee_machine=machine))
    np.testing.assert_allclose(back[:3], [-1, 0, 0], atol=1e-6)


def test_noise_is_for_the_arm_alone() -> None:
    assert EXPERT_NOISE == (1,) * 6 + (0,) * 6
