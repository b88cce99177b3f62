"""Settings of ``z1 eval``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from z1.config.base import (
    ActingConfig,
    Precision,
    SimConfig,
    require,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalConfig:
    """``z1 eval``: success of one or several policies on the same scenes."""

    policy: tuple[str, ...]
    """Folders of the policies; the first one is what the others are compared with."""
    task: tuple[str, ...]
    """Task ids."""
    out: str
    """JSON file to write."""
    episodes: int = 100
    """Scenes per task."""
    split: Literal["train", "validation", "test"] = "test"
    """Which scenes; training never sees ``test``."""
    instruction: str = ""
    """What the policies are told, instead of the instruction of each task; empty: the task's own. With another one than
    the task's, success tells how much a policy listens.
    """
    seed: int = 0
    """Seed of the initial noise of each chunk; all policies get the same noise."""
    live_members: int = 0
    """Most episodes that run at the same time; 0: 100, or 16 where every scene is a compiled model of its own
    (RoboCasa, 150 MB each).
    """
    overwrite: bool = False
    """Whether an existing output file is replaced."""
    device: str = "auto"
    """``cpu``, ``cuda`` or ``auto``."""
    precision: Precision = "float32"
    """What the networks compute in; a policy that was trained in bfloat16 acts a little differently in float32.
    ``auto``: bfloat16 on a GPU, float32 on a CPU.
    """
    sim: SimConfig = field(default_factory=SimConfig)
    acting: ActingConfig = field(default_factory=ActingConfig)

    def __post_init__(self) -> None:
        require(len(self.policy) >= 1, "policy", self.policy, "one or more folders")
        require(len(self.task) >= 1, "task", self.task, "one or more task ids")
        require(self.episodes >= 1, "episodes", self.episodes, "at least 1")
        require(self.live_members >= 0, "live_members", self.live_members, "at least 0")
