"""How RoboCasa's scripted demonstrators turn knobs, on made-up states; no simulator is needed."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from made_up_kitchen import FORWARD, LEFT, RIGHT, UP, Geom, Hinge, kitchen
from z1.sims.robocasa_experts.motion import pointing
from z1.sims.robocasa_experts.registry import EXPERTS
from z1.sims.robocasa_experts.stove import knob_of
from z1.sims.robocasa_layout import BASE, BASE_MODE

HALF = 0.02


def stove(position: Any, rotation: np.ndarray, *, knob: Any, axis: np.ndarray, bar: np.ndarray, angle: float) -> Any:
    """A knob whose bar is 4 cm long, 1 cm wide, and 2 cm high along the axis."""
    frame = np.stack([bar, np.cross(axis, bar), axis], axis=1)
    return kitchen(
        np.array(position),
        rotation,
        geoms={"stove_knob_rear_main": Geom(position=knob, rotation=frame, size=(HALF, 0.005, 0.03))},
        hinges={"stove_knob_rear_joint": Hinge(anchor=knob, axis=axis, angle=angle)},
        stove=SimpleNamespace(naming_prefix="stove_"),
        knob="rear",
    )


@pytest.mark.parametrize(("angle", "within"), [(0.4, 0.4), (2 * math.pi - 0.4, -0.4)])
def test_a_knob_is_read_across_its_axis(angle: float, within: float) -> None:
    env = stove((0.3, 0, 1), np.eye(3), knob=(0.5, 0, 0.9), axis=UP, bar=LEFT, angle=angle)
    knob = knob_of(env)
    np.testing.assert_allclose(knob.bar, HALF * LEFT)  # not the height, which is longer
    np.testing.assert_allclose(knob.middle, [0.5, 0, 0.9])
    np.testing.assert_allclose(knob.axis, UP)
    assert knob.angle == pytest.approx(within)


def test_the_robot_drives_to_where_its_arm_can_work() -> None:
    hand = pointing(-UP, FORWARD)
    near = EXPERTS["TurnOnStove"](stove((0.3, 0, 1), hand, knob=(0.4, 0.3, 0.9), axis=UP, bar=FORWARD, angle=0.0))
    assert near[BASE_MODE] == 1
    np.testing.assert_allclose(near[BASE], [-0.1 / math.hypot(0.1, 0.3), 0.3 / math.hypot(0.1, 0.3), 0], atol=1e-6)
    assert np.linalg.norm(near[:3]) <= 0.2 + 1e-6  # the arm goes on gently meanwhile
    there = EXPERTS["TurnOnStove"](stove((0.3, 0, 1), hand, knob=(0.5, 0, 0.9), axis=UP, bar=FORWARD, angle=0.0))
    assert there[BASE_MODE] == -1


@pytest.mark.parametrize(
    ("task", "angle", "end", "way"),
    [
        ("TurnOnStove", 0.0, -FORWARD, RIGHT),  # the near end, which goes right as the coordinate grows
        ("TurnOffStove", 1.0, LEFT, FORWARD),  # back to 0: the end that goes forward
        ("TurnOffStove", -1.0, RIGHT, FORWARD),
    ],
)
def test_a_knob_on_top_is_pushed_at_the_end_that_can_be_reached(
    task: str, angle: float, end: np.ndarray, way: np.ndarray
) -> None:
    knob = np.array([0.5, 0.0, 0.9])
    fingers = -math.cos(0.3) * UP + math.sin(0.3) * FORWARD
    hand = pointing(fingers, FORWARD)
    outer = 0.8 + 0.3 * abs(float(way @ FORWARD))
    point = knob + outer * HALF * end
    axis = UP
    assert np.allclose(np.cross(axis, end) * (1 if task == "TurnOnStove" else -np.sign(angle)), way)
    state = {"knob": knob, "axis": axis, "bar": np.abs(end), "angle": angle}
    pushing = EXPERTS[task](stove(point - 0.02 * way, hand, **state))
    np.testing.assert_allclose(pushing[:6], [*way, 0, 0, 0], atol=1e-6)
    going_in = EXPERTS[task](stove(point - 0.035 * way - 0.09 * fingers, hand, **state))
    assert going_in[:3] @ fingers > 0.45
    wrong_side = EXPERTS[task](stove(point + 0.035 * way, hand, **state))
    assert wrong_side[:3] @ fingers < -0.5  # out again first


def test_at_the_front_the_lower_end_is_pushed_aside() -> None:
    knob, axis = np.array([0.84, 0.0, 0.8]), -FORWARD
    fingers = math.cos(0.5) * FORWARD - math.sin(0.5) * UP
    hand = pointing(fingers, UP)
    end = -UP
    way = np.cross(axis, end)
    point = knob + 0.8 * HALF * end + 0.005 * fingers
    pushing = EXPERTS["TurnOnStove"](stove(point - 0.02 * way, hand, knob=knob, axis=axis, bar=UP, angle=0.0))
    np.testing.assert_allclose(pushing[:6], [*way, 0, 0, 0], atol=1e-6)
