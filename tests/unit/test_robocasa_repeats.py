"""Work that is left out: results are the same, and a drawer works out its inside again when something changed."""

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
    sim: Any
    arms: tuple[str, ...]
    composite_controller: Any
    _ref_actuators_indexes_dict: dict[str, np.ndarray]

    @property
    def action_dim(self) -> int:
        type(self).counted += 1
        return 12


class Arm:
    """An arm's controller as robosuite's: two Jacobians for the velocities, and the same two again."""

    ref_name = "grip_site"

    def __init__(self, sim: Any) -> None:
        self.sim, self.qvel_index = sim, np.array([0, 2])
        self.ref_pos, self.ref_ori_mat = np.zeros(3), np.zeros((3, 3))
        self.ref_pos_vel, self.ref_ori_vel = np.zeros(3), np.zeros(3)
        self.J_pos, self.J_ori, self.J_full = np.zeros((3, 2)), np.zeros((3, 2)), np.zeros((6, 2))
        self.updates = 0

    def _update_single_reference(self, name: str, index: int) -> None:
        self.updates += 1


class Gripper:
    """A part of the scene."""

    contact_geoms = ("finger", "thumb")


class Env:
    """A kitchen's environment, whose ``check_contact`` goes by names."""

    def __init__(self, sim: Any, robot: Any) -> None:
        self.sim, self.robots, self.asked = sim, [robot], 0
        self.fixtures = {"drawer": Drawer(), "wall": SimpleNamespace()}

    def check_contact(self, geoms_1: Any, geoms_2: Any = None) -> bool:
        self.asked += 1
        first, second = ([geoms] if isinstance(geoms, str) else geoms for geoms in (geoms_1, geoms_2))
        first = getattr(first, "contact_geoms", first)
        for pair in self.sim.data._data.contact.geom:
            names = [self.sim.model.geom_id2name(number) for number in pair]
            for one, other in (names, names[::-1]):
                if one in first and (second is None or other in second):
                    return True
        return False


def jacobians(model: Any, data: Any, positional: np.ndarray, rotational: np.ndarray, site: int) -> None:
    """MuJoCo's ``mj_jacSite``, made up."""
    positional[:] = np.arange(9.0).reshape(3, 3) + site
    rotational[:] = positional * 10


MUJOCO = SimpleNamespace(mj_jacSite=jacobians)
GEOMS = ("finger", "thumb", "start_button", None)


def simulation() -> Any:
    numbers = {f"top_{name}": 2 * number for number, name in enumerate(SITES)} | {"grip_site": 7}
    data = SimpleNamespace(
        site_xpos=np.arange(24.0).reshape(8, 3),
        site_xmat=np.arange(72.0).reshape(8, 9),
        qvel=np.array([1.0, 2.0, 3.0]),
        ctrl=np.zeros(4),
        contact=SimpleNamespace(geom=np.array([[3, 0], [1, 3]])),
    )
    model = SimpleNamespace(
        nv=3, ngeom=4, actuator_ctrlrange=np.array([[-1.0, 1.0], [-2.0, 2.0], [-0.5, 0.5], [0.0, 1.0]])
    )
    return SimpleNamespace(
        data=SimpleNamespace(_data=data),
        model=SimpleNamespace(_model=model, site_name2id=numbers.__getitem__, geom_id2name=GEOMS.__getitem__),
    )


@pytest.fixture
def env() -> Any:
    """A kitchen with a drawer and a robot."""
    robot = Robot()
    robot.sim, robot.arms = simulation(), ("right",)
    robot._ref_actuators_indexes_dict = {"right": np.array([0, 1]), "base": np.array([3])}
    robot.composite_controller = SimpleNamespace(
        run_controller=lambda enabled: {"right": np.array([3.0, -1.5]), "base": np.array([-0.25])},
        part_controllers={"right": Arm(robot.sim), "base": SimpleNamespace()},
    )
    return Env(robot.sim, robot)


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
    leave_out_repeats(env, MUJOCO)
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
    leave_out_repeats(env, MUJOCO)
    before = Robot.counted
    assert [robot.action_dim for _ in range(3)] == [12, 12, 12]
    assert Robot.counted == before
    assert isinstance(robot, Robot)
    assert Robot().action_dim == 12
    assert Robot.counted == before + 1, "other robots are as they were"


def test_actuators_are_set_within_their_limits_at_once(env: Any) -> None:
    controllers = env.robots[0].composite_controller
    leave_out_repeats(env, MUJOCO)
    assert controllers.run_controller({}) == {}, "none is left to set"
    assert env.sim.data._data.ctrl.tolist() == [1.0, -1.5, 0.0, 0.0]


def test_the_hands_velocities_follow_from_the_jacobians(env: Any) -> None:
    arm = env.robots[0].composite_controller.part_controllers["right"]
    leave_out_repeats(env, MUJOCO)
    arm._update_single_reference("grip_site", 0)
    jacobian = np.arange(9.0).reshape(3, 3) + 7
    np.testing.assert_array_equal(arm.ref_pos_vel, jacobian @ [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(arm.ref_ori_vel, 10 * jacobian @ [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(arm.J_full, np.vstack([jacobian, 10 * jacobian])[:, [0, 2]])
    np.testing.assert_array_equal(np.vstack([arm.J_pos, arm.J_ori]), arm.J_full)
    np.testing.assert_array_equal(arm.ref_pos, [21.0, 22.0, 23.0])
    np.testing.assert_array_equal(arm.ref_ori_mat.ravel(), np.arange(63.0, 72.0))
    assert arm.updates == 0


@pytest.mark.parametrize("contacts", [[[3, 0], [1, 3]], [[2, 0]], [[1, 2], [3, 3]], [[2, 3]], np.zeros((0, 2), int)])
def test_contacts_by_number_are_those_by_name(env: Any, contacts: Any) -> None:
    env.sim.data._data.contact.geom = np.array(contacts)
    questions = [
        (Gripper(), "start_button"),
        ("finger", None),
        (["finger", "unknown"], ["start_button", "thumb"]),
        ("unknown", None),
    ]
    by_name = [env.check_contact(*question) for question in questions]
    leave_out_repeats(env, MUJOCO)
    asked = env.asked
    assert [env.check_contact(*question) for question in questions * 2] == by_name * 2
    assert env.asked == asked


def test_in_another_model_everything_is_as_before(env: Any) -> None:
    """An environment builds its next scene with what was changed for the last one still in it."""
    (robot,) = env.robots
    arm = robot.composite_controller.part_controllers["right"]
    leave_out_repeats(env, MUJOCO)
    env.sim = robot.sim = arm.sim = simulation()
    assert set(robot.composite_controller.run_controller({})) == {"right", "base"}
    assert env.sim.data._data.ctrl.tolist() == [0.0] * 4
    arm._update_single_reference("grip_site", 0)
    assert arm.updates == 1
    asked = env.asked
    assert env.check_contact("finger")
    assert env.asked == asked + 1
