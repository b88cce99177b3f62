"""Which training scenes an iteration runs in: new ones, and ones that have told something before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from z1.rollout.groups import RolloutGroup
from z1.seeding import Seeds
from z1.types import SCENES_PER_SPLIT, Scene

KEPT_SCENES = 64
"""Scenes that are remembered; the one seen longest ago makes room."""


class SceneSource:
    """Draws training scenes without end.

    With ``replay`` above 0, a scene is drawn again with that probability, from those whose last group had both
    outcomes; a scene with success rate p has weight ``p (1 - p)``, the variance of its outcome. Groups in which all
    succeed or all fail teach nothing, and for a policy that is decided in most scenes nearly all groups are such.

    Source: prioritised level replay (arXiv 2010.03934), here with the outcome's variance as its score.

    Args:
        task: Task id.
        seeds: The run's random streams.
        replay: Probability of drawing a known scene, 0..1.
    """

    def __init__(self, task: str, seeds: Seeds, replay: float) -> None:
        self._task = task
        self._seeds = seeds
        self._replay = replay
        self._known: dict[int, float] = {}

    def draw(self, iteration: int) -> Iterator[Scene]:
        """Scenes of an iteration, none of the remembered ones twice."""
        left = dict(self._known)
        number = 0
        while True:
            address = ("iteration", iteration, "scene", number)
            if self._replay and left and self._seeds.rng(*address, "replay").random() < self._replay:
                index = self._choose(left, address)
                del left[index]
            else:
                index = self._seeds.integer(SCENES_PER_SPLIT, *address)
            yield Scene.of_split(self._task, "train", index)
            number += 1

    def _choose(self, known: dict[int, float], address: tuple[str | int, ...]) -> int:
        rates = np.array(list(known.values()))
        weights = rates * (1.0 - rates)
        chosen = self._seeds.rng(*address, "choice").choice(len(rates), p=weights / weights.sum())
        return list(known)[int(chosen)]

    def observe(self, groups: Sequence[RolloutGroup]) -> None:
        """Remembers the scenes of mixed groups and forgets those that have become decided."""
        if not self._replay:
            return
        for group in groups:
            index = group.scene.seed
            self._known.pop(index, None)
            rate = float(group.success[group.valid].mean()) if group.valid.any() else 0.0
            if 0.0 < rate < 1.0:
                self._known[index] = rate
        for index in list(self._known)[:-KEPT_SCENES]:
            del self._known[index]

    def state(self) -> dict[str, np.ndarray]:
        """What an exact resume needs."""
        return {
            "seed": np.array(list(self._known), dtype=np.int64),
            "rate": np.array(list(self._known.values()), dtype=np.float64),
        }

    def load_state(self, arrays: dict[str, np.ndarray]) -> None:
        """Puts back what ``state`` gave."""
        self._known = dict(zip(arrays["seed"].tolist(), arrays["rate"].tolist(), strict=True))
