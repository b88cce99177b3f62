"""Moving PandaOmron's gripper to a pose, the vocabulary of the scripted demonstrators.

Everything is in the world's frame and in metres; ``Gripper.towards`` translates into the env action, which is in the
frame of the robot's base.

Level 1: standard library and numpy only, Python 3.10 syntax.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from z1.sims.robocasa_layout import ARM_POSITION, ARM_ROTATION, BASE, BASE_MODE, GRIPPER, no_op

POSITION_SCALE = 0.05
"""Metres that the arm's goal moves by at 1 in the action."""
ROTATION_SCALE = 0.5
"""Radians that the arm's goal turns by at 1 in the action."""
DRIVE_SCALE = 0.037
"""Metres that the robot drives in an env step at 1 in the action, once it is under way."""
OPEN, CLOSE, HOLD = -1.0, 1.0, 0.0
"""The gripper's number in the action."""
CLOSED_BELOW, OPEN_ABOVE = 0.004, 0.036
"""Metres of a finger's way at which the gripper counts as closed on nothing, and as open."""


class Gripper:
    """The gripper in the present state of a scene.

    Attributes:
        position: float64 ``[3]``: the point between the fingertips.
        rotation: float64 ``[3, 3]``: its columns are the hand's axes: the direction in which the fingers open, along
            which the hand is 20 cm wide; the one across, along which it is 6 cm thick; and the one in which they point.
        base_position: float64 ``[3]``: where the robot stands.
        base_rotation: float64 ``[3, 3]``: its columns are forward, left and up as the robot sees them.
        opening: How far a finger is from the middle.
        finger_speed: How fast it moves, either way; metres per second.
    """

    def __init__(self, env: Any) -> None:
        """Reads the state; derived quantities must be up to date."""
        robot = env.robots[0]
        data = env.sim.data
        site = robot.eef_site_id["right"]
        self.position = np.array(data.site_xpos[site])
        self.rotation = np.array(data.site_xmat[site]).reshape(3, 3)
        base = env.sim.model.site_name2id("mobilebase0_center")
        self.base_position = np.array(data.site_xpos[base])
        self.base_rotation = np.array(data.site_xmat[base]).reshape(3, 3)
        fingers = robot._ref_gripper_joint_pos_indexes["right"]
        self.opening = float(np.abs(data.qpos[fingers]).mean())
        self.finger_speed = float(np.abs(data.qvel[robot._ref_gripper_joint_vel_indexes["right"]]).mean())

    @property
    def forward(self) -> np.ndarray:
        """float64 ``[3]``: the robot's forward."""
        return self.base_rotation[:, 0]

    @property
    def left(self) -> np.ndarray:
        """float64 ``[3]``: the robot's left."""
        return self.base_rotation[:, 1]

    @property
    def up(self) -> np.ndarray:
        """float64 ``[3]``: up."""
        return self.base_rotation[:, 2]

    def towards(
        self,
        position: np.ndarray,
        rotation: np.ndarray | None = None,
        *,
        grip: float = CLOSE,
        speed: float = 1.0,
    ) -> np.ndarray:
        """The action that moves the gripper in a straight line.

        Args:
            position: float ``[3]``.
            rotation: float ``[3, 3]``, as ``Gripper.rotation``; None: as it is.
            grip: ``OPEN``, ``CLOSE`` or ``HOLD``.
            speed: Largest length of the arm's part of the action.

        Returns:
            float32 ``[12]``.
        """
        action = no_op()
        to_base = self.base_rotation.T
        action[ARM_POSITION] = limited(to_base @ (np.asarray(position) - self.position) / POSITION_SCALE, speed)
        if rotation is not None:
            turn = rotation_vector(rotation @ self.rotation.T)
            action[ARM_ROTATION] = limited(to_base @ turn / ROTATION_SCALE, speed)
        action[GRIPPER] = grip
        return action

    def drive(self, *, forward: float = 0.0, left: float = 0.0, grip: float = HOLD) -> np.ndarray:
        """The action that drives the robot; the arm goes along.

        Args:
            forward: Metres to go, negative backwards; at most ``DRIVE_SCALE`` in an env step.
            left: Metres to go, negative to the right; likewise.
            grip: ``OPEN``, ``CLOSE`` or ``HOLD``.

        Returns:
            float32 ``[12]``.
        """
        action = no_op()
        action[BASE][:2] = np.clip([forward / DRIVE_SCALE, left / DRIVE_SCALE], -1.0, 1.0)
        action[BASE_MODE] = 1.0
        action[GRIPPER] = grip
        return action

    def distance(self, position: np.ndarray) -> float:
        """Metres to a point."""
        return float(np.linalg.norm(np.asarray(position) - self.position))

    def angle(self, rotation: np.ndarray) -> float:
        """Radians to a rotation."""
        return float(np.linalg.norm(rotation_vector(rotation @ self.rotation.T)))


def limited(vector: np.ndarray, length: float) -> np.ndarray:
    """The vector, shortened to a length if it is longer."""
    norm = float(np.linalg.norm(vector))
    return vector if norm <= length else vector * (length / norm)


def unit(vector: np.ndarray) -> np.ndarray:
    """The vector at length 1."""
    return np.asarray(vector) / np.linalg.norm(vector)


def rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """Axis times angle, float64 ``[3]``, of a rotation matrix ``[3, 3]``; the angle is at most pi."""
    cosine = min(1.0, max(-1.0, (float(np.trace(rotation)) - 1) / 2))
    angle = math.acos(cosine)
    axis = np.array([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]])
    sine = math.sin(angle)
    if sine > 1e-6:
        return axis * (angle / (2 * sine))
    if cosine > 0:
        return axis / 2
    column = int(np.argmax(np.diag(rotation)))  # half a turn: the axis is where 1 + R keeps most
    half = rotation[:, column] + np.eye(3)[column]
    return unit(half) * math.pi


def pointing(direction: np.ndarray, thin: np.ndarray) -> np.ndarray:
    """The rotation in which the fingers point in a direction.

    Args:
        direction: float ``[3]``.
        thin: float ``[3]``: the direction along which the hand should be thin, as far as it is across ``direction``;
            the fingers open across both.

    Returns:
        float64 ``[3, 3]``, as ``Gripper.rotation``.
    """
    z = unit(direction)
    y = unit(np.asarray(thin) - z * float(np.dot(thin, z)))
    return np.stack([np.cross(y, z), y, z], axis=1)
