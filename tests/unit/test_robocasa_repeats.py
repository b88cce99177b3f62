"""Work that is left out: a drawer's inside is worked out again exactly when something it follows from has changed."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from z1.sims.robocasa_repeats import leave_out_repeats

SITES = ("int_p0", "int_px", "int_py", "int_pz")


class Drawer:
    """As RoboCasa's: its inside follows from its sites and its own place."""

    naming_prefix = "top_"

    def __init__(self) -> None:
        self._obj = ElementTree.Element("body", pos="1 2 3")
        self._bounds_sites = {name: ElementTree.Element("site", pos="0 0 0") for name in SITES}
        self.computed = 0

    def update_state(self, env: Any) -> None:
        self.computed += 1
        own = np.array(self._obj.get("pos").split(), float)
        for number, name in enumerate(SITES):
            place = env.sim.data._data.site_xpos[2 * number] - own
            self._bounds_sites[name].set("pos", " ".join(map(str, place)))


class Robot:
    """As robosuite's: counts its action dims anew each time."""

    counted = 0

    @property
    def action_dim(self) -> int:
        type(self).counted += 1
        return 12


@pytest.fixture
def env() -> Any:
    """A kitchen with a drawer and a robot."""
    numbers = {f"top_{name}": 2 * number for number, name in enumerate(SITES)}
    sim = SimpleNamespace(
        data=SimpleNamespace(_data=SimpleNamespace(site_xpos=np.arange(24.0).reshape(8, 3))),
        model=SimpleNamespace(site_name2id=numbers.__getitem__),
    )
    return SimpleNamespace(sim=sim, fixtures={"drawer": Drawer(), "wall": SimpleNamespace()}, robots=[Robot()])


def move_site(env: Any) -> None:
    env.sim.data._data.site_xpos[2, 0] = np.nextafter(env.sim.data._data.site_xpos[2, 0], 99.0)


def move_drawer(env: Any) -> None:
    env.fixtures["drawer"]._obj.set("pos", "1 2 4")


def turn_drawer(env: Any) -> None:
    env.fixtures["drawer"]._obj.set("euler", "0 0 1")


def put_back_another_state(env: Any) -> None:
    env.fixtures["drawer"]._bounds_sites["int_py"].set("pos", "7 7 7")


def move_another_site(env: Any) -> None:
    env.sim.data._data.site_xpos[1] = 99.0


@pytest.mark.parametrize(
    ("change", "computes"),
    [
        (move_site, True),
        (move_drawer, True),
        (turn_drawer, True),
        (put_back_another_state, True),
        (move_another_site, False),
    ],
)
def test_a_drawer_computes_when_something_changed(env: Any, change: Callable[[Any], None], *, computes: bool) -> None:
    drawer = env.fixtures["drawer"]
    leave_out_repeats(env)
    for _ in range(3):
        drawer.update_state(env)
    assert drawer.computed == 1
    change(env)
    drawer.update_state(env)
    assert drawer.computed == 1 + computes
    seen = {name: site.get("pos") for name, site in drawer._bounds_sites.items()}
    Drawer.update_state(drawer, env)
    assert {name: site.get("pos") for name, site in drawer._bounds_sites.items()} == seen


def test_a_robot_counts_its_action_dims_once(env: Any) -> None:
    (robot,) = env.robots
    leave_out_repeats(env)
    before = Robot.counted
    assert [robot.action_dim for _ in range(3)] == [12, 12, 12]
    assert Robot.counted == before
    assert isinstance(robot, Robot)
    assert Robot().action_dim == 12
    assert Robot.counted == before + 1, "other robots are as they were"
