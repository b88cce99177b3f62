"""RoboCasa's numbers, pure: action and state layouts, cameras, and how public data sets order the same numbers.

The env action is the simulator's own: 12 numbers in the order in which PandaOmron's controllers take them, as HDF5
files of robomimic store it. The env state has the order of the public LeRobot files (16 numbers, base first), also the
order in which these numbers stand in GR00T's longer state. LeRobot files order the action differently and write the two
switches as 0 and 1; the functions here translate.

Source: RoboCasa v0.2 (``environments/kitchen/kitchen.py``), RoboCasa v1.0 (``PandaOmron_modality.json``), GR00T's
RoboCasa sets.
Level 1: standard library and numpy only, Python 3.10 syntax.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

ROBOT = "PandaOmron"
CONTROL_HZ = 20.0

CAMERAS = ("robot0_agentview_left", "robot0_agentview_right", "robot0_eye_in_hand")
"""The three cameras of the benchmark, in the order in which policies see them."""

ALL_CAMERAS = (*CAMERAS, "robot0_agentview_center", "robot0_frontview", "robot0_robotview")

GROOT_VIDEOS = {
    "robot0_agentview_left": "observation.images.left_view",
    "robot0_agentview_right": "observation.images.right_view",
    "robot0_eye_in_hand": "observation.images.wrist_view",
}
"""What GR00T's sets call the cameras; RoboCasa v1.0's own files use ``observation.images.CAMERA``."""

ACTION_NAMES = (
    "arm_dx",
    "arm_dy",
    "arm_dz",
    "arm_rx",
    "arm_ry",
    "arm_rz",
    "gripper",
    "base_forward",
    "base_side",
    "base_yaw",
    "torso",
    "base_mode",
)
"""Each in [-1, 1]. ``arm_d*``: 5 cm at 1, ``arm_r*``: 0.5 rad at 1, both in the robot base's frame. ``gripper``: its
sign counts, negative opens, positive closes, 0 holds. ``base_mode``: positive moves the base, else the arm."""

ACTION_DIM = len(ACTION_NAMES)
ARM_POSITION, ARM_ROTATION, GRIPPER = slice(0, 3), slice(3, 6), 6
BASE, TORSO, BASE_MODE = slice(7, 10), 10, 11

EXPERT_NOISE = (1.0,) * ARM_ROTATION.stop + (0.0,) * (ACTION_DIM - ARM_ROTATION.stop)
"""Demonstrations disturb the arm alone: noise on the switches would open the gripper or drive the robot off."""

STATE_PARTS: tuple[tuple[str, int], ...] = (
    ("robot0_base_pos", 3),
    ("robot0_base_quat", 4),
    ("robot0_base_to_eef_pos", 3),
    ("robot0_base_to_eef_quat", 4),
    ("robot0_gripper_qpos", 2),
)
"""The observation keys of the state and how many numbers each has, in order; quaternions are x, y, z, w."""

STATE_NAMES = (
    *("base_x", "base_y", "base_z"),
    *("base_qx", "base_qy", "base_qz", "base_qw"),
    *("eef_x", "eef_y", "eef_z"),
    *("eef_qx", "eef_qy", "eef_qz", "eef_qw"),
    *("gripper_left", "gripper_right"),
)
"""Base pose in the world, end effector's pose in the base's frame, finger joints; metres."""

STATE_DIM = len(STATE_NAMES)

LEROBOT_ACTION = (7, 8, 9, 10, 11, 0, 1, 2, 3, 4, 5, 6)
"""Env action dim of each number of an action in public LeRobot files: base, torso, mode, arm, gripper."""

ROBOMIMIC_STATE = (*range(7, 14), *range(0, 7), 14, 15)
"""Env state dim of each number in robomimic's order: end effector first, then base, gripper."""

GROOT_STATE = (*range(0, 7), *range(10, 13), *range(17, 21), 21, 22)
"""Which of the 53 numbers of a GR00T state are the env state, in order."""

GROOT_STATE_DIM = 53
_SWITCHES = [LEROBOT_ACTION.index(dim) for dim in (BASE_MODE, GRIPPER)]


def no_op() -> np.ndarray:
    """float32 ``[12]``: nothing moves, and the gripper goes on holding what it holds."""
    action = np.zeros(ACTION_DIM, np.float32)
    action[BASE_MODE] = -1.0
    return action


def state_of(observation: Mapping[str, np.ndarray]) -> np.ndarray:
    """The env state of RoboCasa's observation keys.

    Args:
        observation: Arrays ``[..., n]`` of the keys in ``STATE_PARTS``, as the simulator and HDF5 files name them.

    Returns:
        float32 ``[..., 16]``.
    """
    parts = [np.asarray(observation[key]) for key, _ in STATE_PARTS]
    assert [part.shape[-1] for part in parts] == [size for _, size in STATE_PARTS]
    return np.concatenate(parts, axis=-1).astype(np.float32)


def state_to_robomimic(state: np.ndarray) -> np.ndarray:
    """Env states ``[..., 16]`` in robomimic's order."""
    return _checked(state, STATE_DIM, "state")[..., list(ROBOMIMIC_STATE)]


def state_from_robomimic(state: np.ndarray) -> np.ndarray:
    """States ``[..., 16]`` in robomimic's order as env states."""
    return _checked(state, STATE_DIM, "state")[..., np.argsort(ROBOMIMIC_STATE)]


def state_from_groot(state: np.ndarray) -> np.ndarray:
    """The env states ``[..., 16]`` inside GR00T's states ``[..., 53]``."""
    return _checked(state, GROOT_STATE_DIM, "GR00T state")[..., list(GROOT_STATE)]


def action_to_lerobot(action: np.ndarray) -> np.ndarray:
    """Env actions ``[..., 12]`` as public LeRobot files store them; the switches become 0 or 1."""
    stored = _checked(action, ACTION_DIM, "action")[..., list(LEROBOT_ACTION)].copy()
    stored[..., _SWITCHES] = stored[..., _SWITCHES] > 0
    return stored


def action_from_lerobot(stored: np.ndarray) -> np.ndarray:
    """Actions ``[..., 12]`` of public LeRobot files as env actions; a switch below 0.5 becomes -1, else 1."""
    stored = _checked(stored, ACTION_DIM, "action").copy()
    stored[..., _SWITCHES] = np.where(stored[..., _SWITCHES] < 0.5, -1.0, 1.0)
    return stored[..., np.argsort(LEROBOT_ACTION)]


def _checked(array: np.ndarray, width: int, what: str) -> np.ndarray:
    array = np.asarray(array)
    if array.shape[-1:] != (width,):
        raise ValueError(f"a RoboCasa {what} has {width} numbers in its last dimension, got shape {array.shape}")
    return array
