"""A critic on what the VLM already computed: the expected return at the start of every chunk.

GRPO compares whole rollouts: a chunk is credited with all that its member did before and after it. A critic tells how
much each chunk itself changed the chance of success. It costs next to nothing, because it reads a summary of the VLM
prefix that acting computes anyway, and it needs no simulation of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from z1.rollout.groups import RolloutGroup, Tick
from z1.seeding import Seeds

FOLDS = 2
"""Networks. A scene belongs to one fold; its values come from the network that was never trained on its episodes."""

KEPT_ITERATIONS = 5
"""Recent iterations whose episodes the critic is trained on."""

WIDTH, STEPS, BATCH, LEARNING_RATE, WEIGHT_DECAY = 64, 300, 512, 3e-3, 1e-2

INPUT_NOISE = 0.1
"""Standard deviation of what is added to the standardised inputs while training, against overfitting."""

SMALLEST_SPREAD = 1e-3
"""Inputs that vary less are not blown up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticData:
    """Chunks with what became of them.

    Attributes:
        inputs: float32 ``[N, F]``.
        returns: float32 ``[N]``, in [0, 1]; a chunk that several members share stands there once for each of them.
        folds: int64 ``[N]``.
    """

    inputs: Tensor
    returns: Tensor
    folds: Tensor

    @staticmethod
    def concat(parts: Sequence[CriticData]) -> CriticData:
        """The chunks of several, in order."""
        return CriticData(
            inputs=torch.cat([part.inputs for part in parts]),
            returns=torch.cat([part.returns for part in parts]),
            folds=torch.cat([part.folds for part in parts]),
        )


class Critic:
    """Learns from each iteration's groups, kept or dropped, and values their chunks.

    Source: piRL (arXiv 2510.25889) for a critic on the VLM of a flow policy; the two folds are cross-fitting as in
    Chernozhukov et al. 2018 (arXiv 1608.00060), so that a network cannot remember the outcome that it is asked for.

    Args:
        inputs: F, summary of the VLM prefix, proprioceptive state and one number for the time.
        chunks: Chunks of a full episode.
        seeds: The run's random streams.
    """

    def __init__(self, inputs: int, *, chunks: int, seeds: Seeds) -> None:
        self._chunks = chunks
        self._seeds = seeds
        self._networks = [_network(inputs, seeds.rng("critic", "fold", fold, "weights")) for fold in range(FOLDS)]
        self._mean, self._spread = torch.zeros(inputs), torch.ones(inputs)
        self._recent: list[CriticData] = []

    def inputs(self, group: RolloutGroup, ticks: Sequence[Tick]) -> list[Tensor]:
        """float32 ``[length, F]`` for each segment of a group."""
        return [
            torch.stack(
                [
                    torch.cat((_summary(ticks, place), torch.from_numpy(state), torch.tensor([chunk / self._chunks])))
                    for chunk, place, state in zip(
                        range(segment.start, segment.start + segment.length),
                        segment.places,
                        segment.states,
                        strict=True,
                    )
                ]
            )
            for segment in group.segments
        ]

    def fit(
        self, groups: Sequence[RolloutGroup], returns: Sequence[np.ndarray], ticks: Sequence[Tick], iteration: int
    ) -> None:
        """Trains on the groups of an iteration and of the recent ones.

        Args:
            groups: All groups of the iteration.
            returns: float ``[G]`` each, in [0, 1].
            ticks: The policy calls that their chunks refer to.
            iteration: Its number, for random draws.
        """
        parts = [self._data(group, own, ticks) for group, own in zip(groups, returns, strict=True)]
        self._recent = [*self._recent, CriticData.concat(parts)][-KEPT_ITERATIONS:]
        data = CriticData.concat(self._recent)
        self._mean, self._spread = data.inputs.mean(0), data.inputs.std(0).clamp(min=SMALLEST_SPREAD)
        for fold, network in enumerate(self._networks):
            rows = torch.nonzero(data.folds != fold).flatten()
            if len(rows):
                rng = self._seeds.rng("iteration", iteration, "critic", "fold", fold)
                _train(network, self._standardised(data.inputs[rows]), data.returns[rows], rng)

    def _data(self, group: RolloutGroup, returns: np.ndarray, ticks: Sequence[Tick]) -> CriticData:
        inputs, outcomes = [], []
        for segment, rows in zip(group.segments, self.inputs(group, ticks), strict=True):
            for member in segment.members:
                if group.valid[member]:
                    inputs.append(rows)
                    outcomes.append(torch.full((len(rows),), float(returns[member])))
        if not inputs:
            inputs, outcomes = [torch.zeros(0, len(self._mean))], [torch.zeros(0)]
        stacked = torch.cat(inputs)
        return CriticData(
            inputs=stacked,
            returns=torch.cat(outcomes),
            folds=torch.full((len(stacked),), fold_of(group), dtype=torch.int64),
        )

    def _standardised(self, inputs: Tensor) -> Tensor:
        return (inputs - self._mean) / self._spread

    @torch.no_grad()
    def values(self, group: RolloutGroup, ticks: Sequence[Tick]) -> list[np.ndarray]:
        """float64 ``[length]`` for each segment of a group: the expected return at the start of each chunk."""
        network = self._networks[fold_of(group)]
        return [
            torch.sigmoid(network(self._standardised(rows))[:, 0]).double().numpy()
            for rows in self.inputs(group, ticks)
        ]

    def state(self) -> dict[str, np.ndarray]:
        """What an exact resume needs."""
        arrays = {"mean": self._mean.numpy(), "spread": self._spread.numpy()}
        for fold, network in enumerate(self._networks):
            arrays |= {f"network.{fold}.{name}": t.numpy() for name, t in network.state_dict().items()}
        for number, data in enumerate(self._recent):
            arrays[f"recent.{number}.inputs"] = data.inputs.numpy()
            arrays[f"recent.{number}.returns"] = data.returns.numpy()
            arrays[f"recent.{number}.folds"] = data.folds.numpy()
        return arrays

    def load_state(self, arrays: dict[str, np.ndarray]) -> None:
        """Puts back what ``state`` gave."""
        tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
        self._mean, self._spread = tensors["mean"], tensors["spread"]
        for fold, network in enumerate(self._networks):
            start = f"network.{fold}."
            network.load_state_dict({k.removeprefix(start): t for k, t in tensors.items() if k.startswith(start)})
        count = sum(name.endswith(".returns") for name in tensors)
        self._recent = [
            CriticData(**{part: tensors[f"recent.{number}.{part}"] for part in ("inputs", "returns", "folds")})
            for number in range(count)
        ]


def fold_of(group: RolloutGroup) -> int:
    """The fold of a group's scene: all groups of a scene share it."""
    return group.scene.seed % FOLDS


def explained_variance(
    groups: Sequence[RolloutGroup], returns: Sequence[np.ndarray], values: Sequence[list[np.ndarray]]
) -> float:
    """Share of the variance of the returns that values explain, over all chunks of all members; 0 when all are equal.

    Args:
        groups: N groups.
        returns: float ``[G]`` each.
        values: Per group, float ``[length]`` for each segment.
    """
    predicted, observed = [], []
    for group, own, by_segment in zip(groups, returns, values, strict=True):
        for segment, chunk_values in zip(group.segments, by_segment, strict=True):
            for member in segment.members:
                if group.valid[member]:
                    predicted.append(chunk_values)
                    observed.append(np.full(len(chunk_values), own[member]))
    if not observed:
        return 0.0
    target = np.concatenate(observed)
    variance = float(target.var())
    return 1.0 - float(np.square(target - np.concatenate(predicted)).mean()) / variance if variance else 0.0


def _summary(ticks: Sequence[Tick], place: tuple[int, int]) -> Tensor:
    tick, row = place
    summary = ticks[tick].summary
    assert summary is not None, "collected without Exploration.summarise"
    return summary[row]


def _network(inputs: int, rng: np.random.Generator) -> nn.Sequential:
    """A network of one hidden layer; its output starts at 0."""
    hidden, output = nn.Linear(inputs, WIDTH), nn.Linear(WIDTH, 1)
    with torch.no_grad():
        hidden.weight.copy_(torch.from_numpy(rng.standard_normal((WIDTH, inputs), dtype=np.float32)) / inputs**0.5)
        for parameter in (hidden.bias, output.weight, output.bias):
            parameter.zero_()
    return nn.Sequential(hidden, nn.GELU(), output)


def _train(network: nn.Sequential, inputs: Tensor, returns: Tensor, rng: np.random.Generator) -> None:
    """Cross-entropy with the returns as soft targets: a return in [0, 1] is a chance of success, discounted."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    for _ in range(STEPS):
        rows = torch.from_numpy(rng.integers(len(inputs), size=BATCH))
        noise = torch.from_numpy(rng.standard_normal((BATCH, inputs.shape[1]), dtype=np.float32))
        logits = network(inputs[rows] + INPUT_NOISE * noise)[:, 0]
        loss = functional.binary_cross_entropy_with_logits(logits, returns[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
