"""A recorded demonstration with the simulator's states, and what the simulator makes of it.

Level 1: standard library and numpy only, Python 3.10 syntax.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """A demonstration of T env steps as its file holds it. All of it is data; nothing in it is executed.

    Attributes:
        task: Task name without prefix.
        scene: The simulator's own description of the scene, JSON (RoboCasa's ``ep_meta``).
        model_xml: The scene's MJCF; files lie where they lay on the machine that recorded it.
        states: float64 ``[T, 1 + nq + nv]``: time, positions and velocities before each action.
        actions: float32 ``[T, A]``, in env units.
    """

    task: str
    scene: Mapping[str, Any]
    model_xml: str
    states: np.ndarray
    actions: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What the simulator makes of F frames of a recording.

    Attributes:
        state: float32 ``[F, S]``: env state that is read where the recorded state was put in.
        after_action: float32 ``[F, S]``: env state one env step later, after the recorded action; NaN where the
            physics broke down.
        after_nothing: float32 ``[F, S]``: likewise after an action that commands no motion.
        solved: Whether the task is solved in the last recorded state or after its action.
    """

    state: np.ndarray
    after_action: np.ndarray
    after_nothing: np.ndarray
    solved: bool
