"""A moving average of the weights that train. It is what is validated and saved; training goes on with its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from z1.errors import CheckpointError
from z1.train.trained import TrainedWeights


class WeightAverage:
    """An exponential moving average, which begins at the present weights.

    Args:
        trained: The weights.
        decay: Share of the average that a call of ``follow`` leaves; 0: there is no average, and nothing here does
            anything.
    """

    def __init__(self, trained: TrainedWeights, decay: float) -> None:
        self._trained, self._decay = trained, decay
        self._tensors = {name: p.detach().clone() for name, p in trained.by_name.items()} if decay else {}

    def follow(self) -> None:
        """Moves the average towards the present weights."""
        for name, average in self._tensors.items():
            average.lerp_(self._trained.by_name[name].detach(), 1.0 - self._decay)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The network holds the average while the block runs."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state(self) -> dict[str, Tensor]:
        """The average by the parameters' names."""
        return self._tensors

    def load_state(self, tensors: Mapping[str, Tensor], path: Path) -> None:
        """Puts back what ``state`` gave.

        Args:
            tensors: The average by the parameters' names; others are left alone.
            path: The checkpoint, for the message.

        Raises:
            CheckpointError: The average of a parameter is missing.
        """
        try:
            self._tensors = {name: tensors[name].to(old.device) for name, old in self._tensors.items()}
        except KeyError as error:
            raise CheckpointError(f"{path} has no averaged weights of {error}; use an older checkpoint") from None

    @torch.no_grad()
    def _swap(self) -> None:
        for name, average in self._tensors.items():
            parameter = self._trained.by_name[name]
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)
        if self._tensors:
            self._trained.publish()
