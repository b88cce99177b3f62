"""Computes what MetaWorld works out after every env step without the detours it takes; the same numbers, to the bit.

Of an env step MuJoCo takes a fifth to a half. Much of the rest is a quaternion by way of scipy's general rotations, a
search through all contacts as Python objects for those of the gripper's pads, and an observation put together by
splitting and stacking small arrays.

Level 1: standard library, numpy and what MetaWorld needs only, Python 3.10 syntax.
"""

from __future__ import annotations

import math
from functools import lru_cache
from types import FunctionType
from typing import Any

import numpy as np

_PADS = ("leftpad_geom", "rightpad_geom")
_CLAWS = ("rightclaw", "leftclaw")

_TRIALS = 256
"""Rotations by which it is checked that a quaternion is scipy's."""


def without_detours(cls: Any) -> Any:
    """A MetaWorld environment class with quicker observations; nothing that it computes changes.

    Args:
        cls: Subclass of MetaWorld's ``SawyerXYZEnv``.
    """
    members: dict[str, Any] = {}
    quaternion = cls._get_quat_objects
    if "Rotation" in quaternion.__globals__ and is_scipys():
        members["_get_quat_objects"] = _with_global(quaternion, "Rotation", _Rotation)
    return type(cls.__name__, (_Quick, cls), members)


class _Quick:
    """Methods of MetaWorld's environments, by numbers instead of names and whole arrays instead of pieces."""

    def touching_object(self: Any, object_geom_id: int) -> Any:
        """Whether both pads of the gripper push on a geom."""
        data = self.data
        if not data.ncon:
            return False
        contact = data.contact
        geoms = contact.geom
        of_object = (geoms == object_geom_id).any(1)
        if not of_object.any():
            return False
        forces = []
        for pad in _PADS:
            rows = np.flatnonzero(of_object & (geoms == data.geom(pad).id).any(1))
            forces.append(sum(data.efc_force[contact.efc_address[rows]]))  # one by one, as MetaWorld adds
        return forces[0] > 0 and forces[1] > 0

    def _get_curr_obs_combined_no_goal(self: Any) -> np.ndarray:
        """Hand, opening of the gripper, and position and quaternion of each object, float64 ``[18]``."""
        right, left = (self.data.body(claw).xpos for claw in _CLAWS)
        places, turns = self._get_pos_objects(), self._get_quat_objects()
        count = len(places) // 3
        assert (len(places), len(turns)) == (3 * count, 4 * count)
        observation = np.zeros(4 + self._obs_obj_max_len)
        observation[:3] = self.get_endeff_pos()
        observation[3] = np.clip(np.linalg.norm(right - left) / 0.1, 0.0, 1.0)
        objects = observation[4 : 4 + 7 * count].reshape(count, 7)
        objects[:, :3] = np.reshape(places, (count, 3))
        objects[:, 3:] = np.reshape(turns, (count, 4))
        return observation


class _Rotation:
    """What MetaWorld uses of scipy's ``Rotation``."""

    def __init__(self, matrix: np.ndarray) -> None:
        self._matrix = matrix

    @classmethod
    def from_matrix(cls, matrix: np.ndarray) -> _Rotation:
        """From a rotation matrix ``[3, 3]``."""
        return cls(matrix)

    def as_quat(self) -> np.ndarray:
        """float64 ``[4]``, the scalar last."""
        return quaternion_of(self._matrix)


def quaternion_of(matrix: np.ndarray) -> np.ndarray:
    """The quaternion of a rotation matrix.

    Args:
        matrix: float64 ``[3, 3]``, orthogonal.

    Returns:
        float64 ``[4]``, x, y, z, w.

    Source: Markley, "Unit quaternion from rotation matrix", Journal of Guidance, Control, and Dynamics 31.2 (2008), in
    the order of operations of scipy.
    """
    m = matrix.tolist()
    trace = m[0][0] + m[1][1] + m[2][2]
    choices = (m[0][0], m[1][1], m[2][2], trace)
    largest = choices.index(max(choices))
    q = [0.0] * 4
    if largest == 3:
        q[0] = m[2][1] - m[1][2]
        q[1] = m[0][2] - m[2][0]
        q[2] = m[1][0] - m[0][1]
        q[3] = 1.0 + trace
    else:
        i, j, k = largest, (largest + 1) % 3, (largest + 2) % 3
        q[i] = 1.0 - trace + 2.0 * m[i][i]
        q[j] = m[j][i] + m[i][j]
        q[k] = m[k][i] + m[i][k]
        q[3] = m[k][j] - m[j][k]
    norm = math.sqrt(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3])
    return np.array([value / norm for value in q])


@lru_cache(maxsize=1)
def is_scipys() -> bool:
    """Whether ``quaternion_of`` gives the same bits as the scipy that is installed."""
    from scipy.spatial.transform import Rotation  # type: ignore[import-untyped]

    rng = np.random.default_rng(0)
    for quaternion in rng.standard_normal((_TRIALS, 4)):
        matrix = Rotation.from_quat(quaternion).as_matrix()
        if quaternion_of(matrix).tobytes() != Rotation.from_matrix(matrix).as_quat().tobytes():
            return False
    return True


def _with_global(function: FunctionType, name: str, value: Any) -> FunctionType:
    """A function that finds something else under a global name."""
    found = {**function.__globals__, name: value}
    changed = FunctionType(function.__code__, found, function.__name__, function.__defaults__, function.__closure__)
    changed.__kwdefaults__ = function.__kwdefaults__
    return changed
