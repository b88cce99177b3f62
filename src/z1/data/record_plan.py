"""Which scenes of a task a recording tries. Pure: no simulator, no files."""

from __future__ import annotations

from dataclasses import dataclass, field

from z1.errors import DatasetError

PATIENCE = 10
"""Failures that are always accepted; beyond them at least one scene in three has to succeed."""


@dataclass(slots=True, kw_only=True)
class TaskPlan:
    """Which scenes of a task to try next.

    Scenes are started in order, and never more than still needed if all in progress succeed. So the scenes tried in the
    end are the shortest range 0..n that holds enough successes, whatever the order in which they end.

    Attributes:
        number: Place of the task in the configuration.
        task: Task id.
        episodes: Successes wanted.
        solved: Scene indices that succeeded.
        failed: Reason by scene index.
        running: Scene indices in progress.
        lost: How often a scene was lost with its host.
    """

    number: int
    task: str
    episodes: int
    solved: set[int] = field(default_factory=set)
    failed: dict[int, str] = field(default_factory=dict)
    running: set[int] = field(default_factory=set)
    lost: dict[int, int] = field(default_factory=dict)

    def next_scene(self) -> int | None:
        """The scene index to start now, or None while enough are solved or in progress."""
        if len(self.solved) + len(self.running) >= self.episodes:
            return None
        index = 0
        while index in self.solved or index in self.failed or index in self.running:
            index += 1
        self.running.add(index)
        return index

    def key(self, index: int) -> str:
        """Name of a scene's episode; sorted names give tasks in order, scenes in order."""
        return f"{self.number:03d}-{index:06d}"

    def index_of(self, key: str) -> int | None:
        """The scene index of a name, or None when it belongs to another task."""
        prefix = self.key(0)[:4]
        return int(key.removeprefix(prefix)) if key.startswith(prefix) else None

    def check(self, noise_std: float, horizon: int) -> None:
        """Gives up on a task whose recording would hardly end.

        Raises:
            DatasetError: The expert fails too often.
        """
        if len(self.failed) > PATIENCE + 2 * len(self.solved) and len(self.solved) < self.episodes:
            raise DatasetError(
                f"{self.task}: the scripted expert solved {len(self.solved)} of "
                f"{len(self.solved) + len(self.failed)} scenes with noise_std {noise_std:g} and horizon {horizon}; "
                "choose less noise or a longer horizon (0: the simulator's own)"
            )
