"""How far the gripper is from what a RoboCasa task is about, on made-up states; no simulator is needed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from made_up_kitchen import Geom, Hinge, kitchen
from z1.sims.robocasa_parts import TaskPart

TURNED = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
"""A quarter turn about z."""


def scene(position: tuple[float, float, float], **extra: Any) -> Any:
    """A world body, a panel of 40 x 2 x 60 cm that turns, a knob that is fixed to it, and something else."""
    return kitchen(
        np.array(position),
        np.eye(3),
        geoms={
            "wall": Geom(position=(0, 0, 0), size=(0.01, 0.01, 0.01)),
            "panel": Geom(position=(1, 0, 0), rotation=TURNED, size=(0.2, 0.01, 0.3), body=1),
            "picture": Geom(position=(0.5, 0, 0), body=1, collides=False),
            "knob": Geom(position=(0.9, 0.15, 0), size=(0.02, 0.02, 0.02), body=2),
            "start_button": Geom(position=(0, 2, 0), size=(0.01, 0.01, 0.01), body=3),
            "stop_button": Geom(position=(0, 2, 1), size=(0.01, 0.01, 0.01), body=3),
            "cup": Geom(position=(0, 3, 0), size=(0.05, 0.05, 0.05), body=4, collides=False),
        },
        hinges={"cab_doorhinge": Hinge(body=1), "sink_handle_joint": Hinge(body=2), "sink_spout_joint": Hinge(body=3)},
        parents={2: 1},
        **extra,
    )


DOOR = {"door_fxtr": SimpleNamespace(name="cab")}


@pytest.mark.parametrize(
    ("position", "metres"),
    [
        ((1.0, 0.0, 0.0), 0.0),  # within the panel
        ((1.05, 0.1, 0.1), 0.04),  # beside its face, 1 cm from its middle: it is turned, so its length is along y
        ((1.0, 0.5, 0.7), 0.5),  # 30 cm beyond its end, 40 above it
        ((0.9, 0.15, 0.05), 0.03),  # above the knob, which moves along
        ((0.5, 0.0, 0.0), 0.401621),  # at the picture, which collides with nothing: the knob, 38 cm ahead and 13 aside
    ],
)
def test_a_door_is_its_panel_and_what_is_fixed_to_it(position: tuple[float, float, float], metres: float) -> None:
    assert TaskPart(scene(position, **DOOR), "CloseSingleDoor").distance() == pytest.approx(metres, abs=1e-6)


@pytest.mark.parametrize(
    ("task", "position", "extra"),
    [
        ("TurnOnMicrowave", (0, 2, 0.11), {"microwave": SimpleNamespace(naming_prefix="")}),
        ("TurnOffMicrowave", (0, 2, 0.89), {"microwave": SimpleNamespace(naming_prefix="")}),
        ("CoffeePressButton", (0, 2, 0.11), {"coffee_machine": SimpleNamespace(naming_prefix="")}),
        ("CoffeeSetupMug", (0, 3, 0.15), {"obj_body_id": {"obj": 4}}),
        ("PnPCounterToSink", (0, 3, 0.15), {"obj_body_id": {"obj": 4, "container": 1}}),
        ("TurnOnSinkFaucet", (0.9, 0.15, 0.12), {"sink": SimpleNamespace(naming_prefix="sink_")}),
        ("TurnSinkSpout", (0, 2, 0.11), {"sink": SimpleNamespace(naming_prefix="sink_")}),
    ],
)
def test_other_tasks_are_about_their_button_object_lever_or_spout(
    task: str, position: tuple[float, float, float], extra: dict[str, Any]
) -> None:
    assert TaskPart(scene(position, **extra), task).distance() == pytest.approx(0.1)


def test_the_distance_follows_what_moves() -> None:
    env = scene((0.0, 0.0, 0.0), **DOOR)
    part = TaskPart(env, "CloseSingleDoor")
    before = part.distance()
    env.sim.data._data.geom_xpos[[1, 3]] += [1.0, 0.0, 0.0]
    assert part.distance() == pytest.approx(np.hypot(1.88, 0.13))
    assert part.distance() > before
