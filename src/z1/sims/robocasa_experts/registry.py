"""Which RoboCasa tasks have a scripted demonstrator.

Level 1: standard library and numpy only, Python 3.10 syntax.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from z1.sims.robocasa_experts import buttons, doors, drawers, sink, stove

EXPERTS: dict[str, Callable[[Any], np.ndarray]] = {
    **buttons.EXPERTS,
    **doors.EXPERTS,
    **drawers.EXPERTS,
    **sink.EXPERTS,
    **stove.EXPERTS,
}
"""Functions of the environment, whose derived quantities must be up to date, to the action: float32 ``[12]``."""
