"""Every random stream of a run, addressed by the run seed and a readable path.

``Seeds(7).rng("iteration", 3, "scene", 12, "member", 2, "noise")`` is the same stream in any process, in any order of
asking. Nothing in z1 draws from a global generator.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Seeds:
    """The root of a run's random streams.

    Attributes:
        seed: The run seed.
    """

    seed: int

    def key(self, *path: str | int) -> int:
        """A 128-bit key for a path; equal paths give equal keys, different paths different ones."""
        text = json.dumps([int(self.seed), *path], separators=(",", ":"))
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")

    def rng(self, *path: str | int) -> np.random.Generator:
        """A fresh generator for a path."""
        return np.random.Generator(np.random.Philox(key=self.key(*path)))

    def normal(self, shape: tuple[int, ...], *path: str | int) -> np.ndarray:
        """Standard normal float32 numbers of a shape, from the stream of a path."""
        return self.rng(*path).standard_normal(shape, dtype=np.float32)

    def integer(self, high: int, *path: str | int) -> int:
        """A uniform integer in ``[0, high)``, from the stream of a path."""
        return int(self.rng(*path).integers(high))
