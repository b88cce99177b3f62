"""How RoboCasa's scripted demonstrators push the parts of a sink, on made-up states; no simulator is needed."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from made_up_kitchen import CYLINDER, FORWARD, LEFT, RIGHT, UP, Geom, Hinge, kitchen
from z1.sims.robocasa_experts.motion import pointing, unit
from z1.sims.robocasa_experts.registry import EXPERTS
from z1.sims.robocasa_experts.sink import part_of


def sink(position: np.ndarray, rotation: np.ndarray, *, lever_axis: np.ndarray, behavior: str = "left") -> Any:
    """The robot looks along x. The lever stands upright, 6 cm long, above its joint; the spout points at the robot,
    20 cm long, from its joint.
    """
    lever = Geom(position=(0.7, 0.0, 0.35), size=(0.01, 0.005, 0.03))
    spout = Geom(position=(0.6, 0.1, 0.5), rotation=pointing(-FORWARD, UP), size=(0.015, 0.1, 0.0), type=CYLINDER)
    return kitchen(
        position,
        rotation,
        geoms={"sink_handle_main": lever, "sink_spout_top": spout},
        hinges={
            "sink_handle_joint": Hinge(anchor=(0.7, 0.0, 0.3), axis=lever_axis),
            "sink_spout_joint": Hinge(anchor=(0.7, 0.1, 0.4), axis=UP),
        },
        sink=SimpleNamespace(naming_prefix="sink_"),
        behavior=behavior,
    )


def slanting(dip: float, yaw: float = 0.0) -> np.ndarray:
    return np.array([math.cos(dip) * math.cos(yaw), math.cos(dip) * math.sin(yaw), -math.sin(dip)])


def test_a_part_is_taken_towards_its_free_end_and_goes_around_its_joint() -> None:
    env = sink(np.zeros(3), np.eye(3), lever_axis=FORWARD)
    lever = part_of(env, "sink_handle_main", "sink_handle_joint", 0.5)
    np.testing.assert_allclose(lever.point, [0.7, 0.0, 0.365])
    np.testing.assert_allclose(lever.way, RIGHT, atol=1e-12)
    spout = part_of(env, "sink_spout_top", "sink_spout_joint", 1.0)
    np.testing.assert_allclose(spout.point, [0.5, 0.1, 0.5], atol=1e-12)
    np.testing.assert_allclose(spout.way, RIGHT, atol=1e-12)


@pytest.mark.parametrize(("task", "way"), [("TurnOnSinkFaucet", RIGHT), ("TurnOffSinkFaucet", LEFT)])
def test_a_lever_to_the_side_is_pushed_from_its_other_side(task: str, way: np.ndarray) -> None:
    fingers = slanting(0.5, 0.5)
    hand = pointing(fingers, LEFT)
    contact = np.array([0.7, 0.0, 0.368]) + 0.022 * fingers
    beside = contact - 0.03 * way
    pushing = EXPERTS[task](sink(beside, hand, lever_axis=FORWARD))
    np.testing.assert_allclose(pushing[:6], [*way, 0, 0, 0], atol=1e-6)
    across = EXPERTS[task](sink(contact + 0.03 * way, hand, lever_axis=FORWARD))
    assert across[:3] @ fingers < -0.5  # on the wrong side: out first
    outside = EXPERTS[task](sink(beside - 0.12 * fingers, hand, lever_axis=FORWARD))
    assert outside[:3] @ fingers > 0.4  # lined up: in
    bent = EXPERTS[task](sink(beside - 0.12 * fingers, pointing(-UP, LEFT), lever_axis=FORWARD))
    assert bent[:3] @ fingers < 0  # not yet pointing there: it keeps out and turns
    assert np.linalg.norm(bent[3:6]) > 0.9


def test_a_lever_that_goes_up_and_down_is_pushed_up_or_pulled_down() -> None:
    up = LEFT  # about the left, the upright lever's end goes forward
    point = np.array([0.7, 0.0, 0.368])
    fingers = slanting(math.pi / 4)
    on = EXPERTS["TurnOnSinkFaucet"](sink(point - 0.03 * FORWARD, pointing(fingers, UP), lever_axis=up))
    np.testing.assert_allclose(on[:6], [1, 0, 0, 0, 0, 0], atol=1e-6)
    fingers = slanting(0.5)
    hand = pointing(fingers, UP)
    over = point + 0.03 * fingers + 0.03 * hand[:, 1]
    off = EXPERTS["TurnOffSinkFaucet"](sink(over, hand, lever_axis=up))
    np.testing.assert_allclose(off[:3], -hand[:, 1], atol=1e-6)
    assert off[0] < 0  # back
    assert off[2] < 0  # and down


@pytest.mark.parametrize(("behavior", "way"), [("left", LEFT), ("right", RIGHT)])
def test_the_spout_is_pushed_to_the_side_that_the_instruction_names(behavior: str, way: np.ndarray) -> None:
    end = np.array([0.51, 0.1, 0.5])
    fingers = slanting(0.5)
    hand = pointing(fingers, LEFT)
    pushing = EXPERTS["TurnSinkSpout"](sink(end - 0.03 * way, hand, lever_axis=FORWARD, behavior=behavior))
    np.testing.assert_allclose(pushing[:6], [*way, 0, 0, 0], atol=1e-6)
    inwards = unit(fingers + 0.7 * way)
    coming = EXPERTS["TurnSinkSpout"](
        sink(end - 0.06 * way - 0.1 * inwards, hand, lever_axis=FORWARD, behavior=behavior)
    )
    np.testing.assert_allclose(unit(coming[:3]), inwards, atol=1e-6)
