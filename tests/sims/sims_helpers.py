"""Small helpers of the simulator tests."""

from __future__ import annotations

import numpy as np

from z1.sims.pool import SimSpec
from z1.types import Scene

SPEC = SimSpec(simulator="metaworld")


def scene(task: str, index: int = 0) -> Scene:
    """A training scene of a MetaWorld task."""
    return Scene.of_split(f"metaworld/{task}", "train", index)


def random_chunks(seed: int, members: int, chunks: int, length: int = 5) -> np.ndarray:
    """float32 ``[chunks, members, length, 4]``, uniform within the action bounds."""
    return np.random.default_rng(seed).uniform(-1, 1, (chunks, members, length, 4)).astype(np.float32)
