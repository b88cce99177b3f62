"""How RoboCasa's scripted demonstrator closes a door, on made-up states; no simulator is needed."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from made_up_kitchen import FORWARD, LEFT, RIGHT, UP, Geom, Hinge, kitchen
from z1.sims.robocasa_experts.doors import door_of
from z1.sims.robocasa_experts.motion import CLOSE, Gripper, pointing
from z1.sims.robocasa_experts.registry import EXPERTS
from z1.sims.robocasa_layout import BASE, BASE_MODE

WIDTH, LOWER, HINGE = 0.4, 1.0, np.array([0.6, 0.3, 1.2])
DOWN = pointing(-UP, FORWARD)
expert = EXPERTS["CloseSingleDoor"]


def cabinet(position: Any, rotation: np.ndarray = DOWN, *, side: np.ndarray = LEFT, hinge: Any = HINGE) -> Any:
    """A door, 40 cm wide and high, that stands open at a right angle on a side of the robot; its edge is near."""
    hinge = np.array(hinge) * [1, side @ LEFT, 1]
    leaf = Geom(position=hinge - [WIDTH / 2, 0, 0], size=(WIDTH / 2, 0.01, 0.2), body=1)
    knob = Geom(position=hinge - [WIDTH, 0, 0], size=(0.02, 0.02, 0.02), body=2)
    opens = (-3.0, 0.0) if side is LEFT else (0.0, 3.0)
    return kitchen(
        np.array(position) * [1, side @ LEFT, 1],
        rotation,
        geoms={"cab_door": leaf, "cab_knob": knob},
        hinges={"cab_doorhinge": Hinge(anchor=hinge, range=opens, body=1)},
        door_fxtr=SimpleNamespace(name="cab"),
    )


@pytest.mark.parametrize("side", [LEFT, RIGHT])
def test_a_door_is_read_from_its_largest_panel(side: np.ndarray) -> None:
    door = door_of(cabinet((0.2, 0.0, 1.0), side=side), "cab_doorhinge")
    np.testing.assert_allclose(door.hinge, [0.6, 0.3 * (side @ LEFT), LOWER])
    np.testing.assert_allclose(door.along, -FORWARD, atol=1e-12)
    np.testing.assert_allclose(door.outwards, side, atol=1e-12)  # an open door's outer face is turned away
    assert door.width == pytest.approx(WIDTH)
    np.testing.assert_allclose(door.point(0.1, 0.2, 0.3), door.hinge + np.array([-0.1, 0.2 * (side @ LEFT), 0.3]))


@pytest.mark.parametrize("side", [LEFT, RIGHT])
def test_the_robot_draws_back_swings_round_the_edge_drives_up_and_pushes(side: np.ndarray) -> None:
    inside = expert(cabinet((0.3, 0.1, 1.1), side=side))
    np.testing.assert_allclose(inside[BASE], [-1, 0, 0])
    assert inside[BASE_MODE] == 1
    assert inside[6] == CLOSE
    swinging = expert(cabinet((0.1, 0.2, 1.1), side=side))
    assert swinging[BASE_MODE] == -1
    assert swinging[1] * (side @ LEFT) > 0.9
    far = np.array([0.9, 0.3, 1.2])
    driving = expert(cabinet((0.6, 0.5, 1.1), side=side, hinge=far))
    np.testing.assert_allclose(driving[BASE], [1, 0, 0])
    towards_middle = math.cos(0.6) * FORWARD - math.sin(0.6) * side
    hand = pointing(towards_middle, LEFT)
    off = expert(cabinet((0.5, 0.4, 1.1), hand, side=side))
    np.testing.assert_allclose(off[:6], [-1, 0, 0, 0, 0, 0], atol=1e-6)  # first to the point, 70 % from the hinge
    pushing = expert(cabinet((0.32, 0.4, 1.1), hand, side=side))
    np.testing.assert_allclose(pushing[:6], -np.array([*side, 0, 0, 0]), atol=1e-6)


def test_a_microwave_is_a_door_too() -> None:
    env = cabinet((0.3, 0.1, 1.1))
    env.sim.model.joint_names = ("cab_microjoint",)
    env.sim.model.joint_name2id = ["cab_microjoint"].index
    np.testing.assert_array_equal(expert(env), expert(cabinet((0.3, 0.1, 1.1))))
    assert Gripper(env).base_position.tolist() == [0, 0, 0]
