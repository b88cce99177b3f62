"""How long the shared prefix of the next iteration is: fixed, falling, or following where rollouts part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from z1.config import RolloutConfig
from z1.rollout.groups import RolloutGroup
from z1.rollout.tree import BranchPlan

THRESHOLD = 1.25
"""Distance between a success and a failure, over the distance between two successes, at which they have parted."""

MARGIN = 1
"""Chunks before the parting at which members branch: what decides the outcome comes a little earlier."""

MIN_PAIRS = 8
"""Pairs of either kind at a chunk, over the window, below which it says nothing."""

WINDOW = 4
"""Iterations that are looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Distances:
    """Distances between members of the same group at the start of each chunk, for the pairs that have branched.

    Attributes:
        opposite: float64 ``[T, 2]``, sum and number over pairs of a success and a failure.
        alike: float64 ``[T, 2]``, the same over pairs of successes.
    """

    opposite: np.ndarray
    alike: np.ndarray


def group_distances(group: RolloutGroup, length: int) -> Distances:
    """Distances within a group, in proprioceptive states scaled to unit variance over the group.

    Pairs that still share their chunks are left out: they cannot have parted. So are members that were lost.

    Args:
        group: The group, with states.
        length: T, chunks to look at.
    """
    result = Distances(opposite=np.zeros((length, 2)), alike=np.zeros((length, 2)))
    valid = group.valid
    states = [state for segment in group.segments for state in segment.states]
    if not states or not group.success[valid].any():
        return result
    scale = np.std(states, axis=0) + 1e-6
    for chunk in range(length):
        here = [
            (segment.members, segment.states[chunk - segment.start] / scale)
            for segment in group.segments
            if segment.start <= chunk < segment.start + len(segment.states)
        ]
        for i, (members, state) in enumerate(here):
            for others, other in here[:i]:
                distance = float(np.linalg.norm(state - other))
                for a in members:
                    for b in others:
                        if not (valid[a] and valid[b] and (group.success[a] or group.success[b])):
                            continue
                        kind = result.alike if group.success[a] and group.success[b] else result.opposite
                        kind[chunk] += (distance, 1.0)
    return result


def parting_chunk(opposite: np.ndarray, alike: np.ndarray) -> int | None:
    """The first of two chunks in a row at which successes and failures have parted.

    Args:
        opposite: float64 ``[T, 2]``, see ``Distances``, summed over groups.
        alike: float64 ``[T, 2]``, likewise.

    Returns:
        Number of the chunk, or None when they part nowhere, or too few pairs were seen.
    """
    enough = (opposite[:, 1] >= MIN_PAIRS) & (alike[:, 1] >= MIN_PAIRS)
    apart = opposite[:, 0] / np.maximum(opposite[:, 1], 1.0)
    together = alike[:, 0] / np.maximum(alike[:, 1], 1.0)
    parted = enough & (apart > THRESHOLD * together)
    both = np.flatnonzero(parted[:-1] & parted[1:])
    return int(both[0]) if len(both) else None


class PrefixSchedule:
    """Chooses P for each iteration, and the plan of each of its groups.

    ``adaptive``: the first iteration is flat; from then on one group of each iteration is, so that chunks before P are
    seen as well. P is ``MARGIN`` chunks before the parting of the last ``WINDOW`` iterations' successes and failures,
    at most ``rollout.prefix``; without a parting it stays as it was.

    Args:
        rollout: Settings.
        chunks: T, chunks of an episode.
    """

    def __init__(self, rollout: RolloutConfig, chunks: int) -> None:
        self._settings = rollout
        self._chunks = chunks
        self._window: list[Distances] = []
        self._adapted = 0
        self.parting: int | None = None

    def prefix(self, progress: float) -> int:
        """P of the next iteration.

        Args:
            progress: Share of the training that is done, 0..1.
        """
        if self._settings.prefix_schedule == "adaptive":
            return self._adapted
        if self._settings.prefix_schedule == "linear":
            return int(self._settings.prefix * (1.0 - progress) + 0.5)
        return self._settings.prefix

    def plan(self, prefix: int, number: int) -> BranchPlan:
        """The plan of an iteration's group.

        Args:
            prefix: P of the iteration.
            number: Number of the group's scene in the iteration, from 0.
        """
        size = self._settings.group_size
        probe = self._settings.prefix_schedule == "adaptive" and number == 0
        if self._settings.plan == "flat" or probe:
            return BranchPlan.flat(size)
        make = BranchPlan.tree if self._settings.plan == "tree" else BranchPlan.shared_prefix
        return make(size, prefix)

    def observe(self, groups: Sequence[RolloutGroup]) -> None:
        """Learns from an iteration's groups, dropped ones included."""
        if self._settings.prefix_schedule != "adaptive":
            return
        self._window.append(_total([group_distances(group, self._chunks) for group in groups]))
        del self._window[:-WINDOW]
        pooled = _total(self._window)
        self.parting = parting_chunk(pooled.opposite, pooled.alike)
        if self.parting is not None:
            self._adapted = min(max(self.parting - MARGIN, 0), self._settings.prefix)

    def state(self) -> dict[str, np.ndarray]:
        """What an exact resume needs."""
        kept = {f"{n}.{name}": getattr(d, name) for n, d in enumerate(self._window) for name in ("opposite", "alike")}
        return {**kept, "adapted": np.array(self._adapted)}

    def load_state(self, arrays: dict[str, np.ndarray]) -> None:
        """Puts back what ``state`` gave."""
        self._adapted = int(arrays["adapted"])
        self._window = [
            Distances(opposite=arrays[f"{n}.opposite"], alike=arrays[f"{n}.alike"]) for n in range(len(arrays) // 2)
        ]


def _total(parts: Sequence[Distances]) -> Distances:
    return Distances(
        opposite=np.sum([part.opposite for part in parts], axis=0), alike=np.sum([part.alike for part in parts], axis=0)
    )
