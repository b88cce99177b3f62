"""RoboCasa's numbers against the recorded facts of the simulator and of public data sets."""

from __future__ import annotations

import numpy as np
import pytest

from z1.sims import robocasa_layout as layout


def test_the_action_is_the_simulators_own_order() -> None:
    assert (layout.ACTION_DIM, layout.STATE_DIM) == (12, 16)
    assert layout.ACTION_NAMES[layout.ARM_POSITION] == ("arm_dx", "arm_dy", "arm_dz")
    assert layout.ACTION_NAMES[layout.ARM_ROTATION] == ("arm_rx", "arm_ry", "arm_rz")
    assert layout.ACTION_NAMES[layout.BASE] == ("base_forward", "base_side", "base_yaw")
    named = [layout.ACTION_NAMES[dim] for dim in (layout.GRIPPER, layout.TORSO, layout.BASE_MODE)]
    assert named == ["gripper", "torso", "base_mode"]
    assert layout.no_op().tolist() == [0.0] * 11 + [-1.0]


def test_the_state_is_base_first_like_public_lerobot_files() -> None:
    sizes = dict(layout.STATE_PARTS)
    observation = {key: np.arange(size) + 100 * i for i, (key, size) in enumerate(sizes.items())}
    state = layout.state_of(dict(reversed(observation.items())))
    assert state.dtype == np.float32
    expected = [0, 1, 2, 100, 101, 102, 103, 200, 201, 202, 300, 301, 302, 303, 400, 401]
    assert state.tolist() == expected
    assert [name.split("_")[0] for name in layout.STATE_NAMES] == ["base"] * 7 + ["eef"] * 7 + ["gripper"] * 2


def test_robomimic_has_the_end_effector_first() -> None:
    state = np.arange(32).reshape(2, 16)
    robomimic = layout.state_to_robomimic(state)
    assert robomimic[0].tolist() == [7, 8, 9, 10, 11, 12, 13, 0, 1, 2, 3, 4, 5, 6, 14, 15]
    np.testing.assert_array_equal(layout.state_from_robomimic(robomimic), state)


def test_the_state_is_found_inside_the_53_numbers_of_groot() -> None:
    parts = {"base_pos": 3, "base_quat": 4, "eef_pos": 3, "base_to_eef_pos": 3, "eef_quat": 4, "base_to_eef_quat": 4}
    names = [name for name, size in (parts | {"gripper_qpos": 2}).items() for _ in range(size)] + ["other"] * 30
    found = [names[i] for i in layout.GROOT_STATE]
    wanted = [key.removeprefix("robot0_") for key, size in layout.STATE_PARTS for _ in range(size)]
    assert found == wanted
    assert layout.state_from_groot(np.arange(53.0)).tolist() == list(layout.GROOT_STATE)


def test_lerobot_actions_are_reordered_and_their_switches_are_0_and_1() -> None:
    action = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 1.0, 0.7, 0.8, 0.9, -0.1, -1.0])
    stored = layout.action_to_lerobot(action)
    assert stored.tolist() == [0.7, 0.8, 0.9, -0.1, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 1.0]
    np.testing.assert_array_equal(layout.action_from_lerobot(stored), action)
    soft = stored.copy()
    soft[[4, 11]] = 0.49, 0.5
    assert layout.action_from_lerobot(soft)[[layout.BASE_MODE, layout.GRIPPER]].tolist() == [-1.0, 1.0]
    assert action[6] == 1.0  # what was given is left alone
    assert stored[11] == 1.0


@pytest.mark.parametrize("function", [layout.action_to_lerobot, layout.action_from_lerobot, layout.state_from_groot])
def test_other_widths_are_refused(function: object) -> None:
    with pytest.raises(ValueError, match=r"numbers in its last dimension, got shape \(3, 7\)"):
        function(np.zeros((3, 7)))  # type: ignore[operator]
