"""The requests that a pool makes in more than one place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from z1.sims.hosts import Request
from z1.sims.suites import name_of
from z1.types import Scene, SimInfo


def image_shape(info: SimInfo, count: int) -> tuple[int, ...]:
    """Shape of the images of so many members, one of each of the pool's cameras."""
    return (count, len(info.cameras), info.image_size, info.image_size, 3)


def start(info: SimInfo, scenes: Sequence[Scene], members: Sequence[Sequence[int]]) -> Request:
    """Builds scenes and puts members at their initial state.

    Args:
        info: What the simulator says about itself.
        scenes: N scenes.
        members: The ids of each one's members.
    """
    wanted = [[name_of(scene.task), scene.seed, list(ids)] for scene, ids in zip(scenes, members, strict=True)]
    return Request("start", {"scenes": wanted}, image_shape=image_shape(info, len(scenes)))


def restore(info: SimInfo, scene: Scene, member: int, snapshot: np.ndarray, *, look: bool = True) -> Request:
    """Makes a member in the state of a snapshot.

    Args:
        info: What the simulator says about itself.
        scene: The scene that the snapshot was taken in.
        member: Its id.
        snapshot: uint8 ``[bytes]``.
        look: Whether to render it.
    """
    cameras, size = info.cameras if look else (), info.image_size
    body = {"member": member, "task": name_of(scene.task), "seed": scene.seed, "cameras": cameras, "size": size}
    return Request("restore", body, {"snapshot": snapshot}, (1, len(cameras), size, size, 3))


def step(info: SimInfo, members: Sequence[int], actions: np.ndarray) -> Request:
    """Executes a chunk of actions ``[B, C, A]`` on members and renders those that go on."""
    return Request("step", {"members": list(members)}, {"actions": actions}, image_shape(info, len(members)))
