"""What RoboCasa's scripted demonstrators read of an environment, made up: the robot and a few moving parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

LEFT, RIGHT = np.array([0.0, 1.0, 0.0]), np.array([0.0, -1.0, 0.0])
FORWARD, UP = np.array([1.0, 0.0, 0.0]), np.array([0.0, 0.0, 1.0])
BOX, CYLINDER = 6, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Geom:
    """A geom in the world, in a body; parents are told to ``kitchen``."""

    position: Any
    rotation: Any = field(default_factory=lambda: np.eye(3))
    size: Any = (0.01, 0.01, 0.01)
    type: int = BOX
    body: int = 0
    collides: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Hinge:
    """A hinge in the world."""

    anchor: Any = (0.0, 0.0, 0.0)
    axis: Any = (0.0, 0.0, 1.0)
    angle: float = 0.0
    range: Any = (0.0, 1.0)
    body: int = 0


def kitchen(
    position: np.ndarray,
    rotation: np.ndarray,
    *,
    geoms: Mapping[str, Geom],
    hinges: Mapping[str, Hinge] | None = None,
    base: np.ndarray | None = None,
    fingers: tuple[float, float] = (0.0, 0.0),
    finger_speeds: tuple[float, float] = (0.0, 0.0),
    parents: Mapping[int, int] | None = None,
    **extra: Any,
) -> Any:
    """An environment in which the robot stands at the origin.

    Args:
        position: float ``[3]``: the gripper's.
        rotation: float ``[3, 3]``: the gripper's.
        geoms: By name.
        hinges: By name.
        base: float ``[3, 3]``: how the robot is turned; None: it looks along x.
        fingers: Their coordinates, metres.
        finger_speeds: Metres per second.
        parents: Parents of bodies, where they are not the world, body 0.
        extra: Further attributes, such as the task's fixture.
    """
    hinges = hinges or {}
    parts, joints = list(geoms.values()), list(hinges.values())
    base = np.eye(3) if base is None else base
    bodies = 1 + max([part.body for part in parts] + [joint.body for joint in joints])
    inner_model = SimpleNamespace(
        geom_type=np.array([part.type for part in parts]),
        geom_size=np.array([part.size for part in parts], float),
        geom_bodyid=np.array([part.body for part in parts]),
        geom_contype=np.array([part.collides for part in parts], int),
        geom_aabb=np.array([[0.0, 0.0, 0.0, *part.size] for part in parts]),
        nbody=bodies,
        body_parentid=np.array([(parents or {}).get(body, 0) for body in range(bodies)]),
        jnt_qposadr=np.arange(2, 2 + len(joints)),
        jnt_bodyid=np.array([joint.body for joint in joints], int),
        jnt_range=np.array([joint.range for joint in joints], float),
    )
    inner_data = SimpleNamespace(
        site_xpos=np.stack([position, np.zeros(3)]),
        geom_xpos=np.array([part.position for part in parts], float),
        geom_xmat=np.array([np.ravel(part.rotation) for part in parts], float),
        xanchor=np.array([joint.anchor for joint in joints], float),
        xaxis=np.array([joint.axis for joint in joints], float),
        qpos=np.array([*fingers, *(joint.angle for joint in joints)]),
    )
    data = SimpleNamespace(
        site_xpos=inner_data.site_xpos,
        site_xmat=np.stack([rotation.ravel(), base.ravel()]),
        geom_xpos=inner_data.geom_xpos,
        qpos=inner_data.qpos,
        qvel=np.array(finger_speeds),
        _data=inner_data,
    )
    model = SimpleNamespace(
        site_name2id={"grip": 0, "mobilebase0_center": 1}.__getitem__,
        geom_name2id=list(geoms).index,
        joint_name2id=list(hinges).index,
        joint_names=tuple(hinges),
        _model=inner_model,
    )
    robot = SimpleNamespace(
        eef_site_id={"right": 0},
        _ref_gripper_joint_pos_indexes={"right": [0, 1]},
        _ref_gripper_joint_vel_indexes={"right": [0, 1]},
    )
    return SimpleNamespace(robots=[robot], sim=SimpleNamespace(data=data, model=model), **extra)
