"""What an update optimises. An objective gets chunks with their advantages and gives a loss and diagnostics.

``grpo`` is the paper's clipped policy gradient on the likelihood of the stochastic denoise step. ``awfm`` regresses the
flow on
the executed chunks, weighted by their positive advantages: no likelihood, all denoise levels, far less variance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from z1.algo.loss import approx_kl, clipped_fraction, clipped_surrogate, flow_matching_error, positive_weights
from z1.config import ActingConfig, RolloutConfig, UpdateConfig
from z1.policy import flow
from z1.policy.pi05 import Pi05, PrefixCache
from z1.policy.sampler import chunk_log_prob
from z1.rollout.groups import TrainingBatch
from z1.seeding import Seeds

PrefixOf = Callable[[TrainingBatch], PrefixCache]
"""From a batch of rows to their VLM prefix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What an objective makes of some chunks.

    Attributes:
        loss: Scalar, summed over the chunks; the learner divides it by the minibatch's ``denominator``.
        approx_kl_sum: Sum of the chunks' approx_kl, nats.
        clipped: Chunks whose gradient clipping removed.
        ratio_max: Largest deviation of a ratio from 1.
    """

    loss: Tensor
    approx_kl_sum: float = 0.0
    clipped: int = 0
    ratio_max: float = 0.0


class Objective(Protocol):
    """The interface between the learner's loop and what it optimises."""

    def select(self, batch: TrainingBatch) -> TrainingBatch:
        """The rows that an update computes, fixed for all its epochs."""

    def begin(self, model: Pi05, batch: TrainingBatch, microbatches: list[Tensor], prefix_of: PrefixOf) -> float:
        """Called before the first optimizer step of an update.

        Args:
            model: The network with the weights that acted.
            batch: All chunks of the iteration.
            microbatches: Row indices of the microbatches of the first pass; later passes use the same rows together.
            prefix_of: Function from a batch of rows to its VLM prefix.

        Returns:
            Largest difference between a log-prob on the training path and the one recorded while acting, nats; 0
            without likelihood.
        """

    def terms(
        self, model: Pi05, rows: TrainingBatch, index: Tensor, prefix: PrefixCache, address: tuple[str | int, ...]
    ) -> Terms:
        """Loss and diagnostics of some rows.

        Args:
            model: The network.
            rows: B chunks.
            index: int64 ``[B]``, their numbers in the iteration's batch.
            prefix: Their VLM prefix.
            address: Path of this pass, for random draws.
        """

    def denominator(self, batch: TrainingBatch, index: Tensor) -> float:
        """What a minibatch's summed loss is divided by. Arguments as ``terms``, over the minibatch."""

    def state(self) -> dict[str, Tensor]:
        """What an exact resume needs besides weights and optimizer."""

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Puts back what ``state`` gave."""


class Grpo:
    """The paper's objective: clipped policy gradient, one ratio per chunk.

    Source: Z-1 (arXiv 2606.31846); GRPO (arXiv 2402.03300); Flow-SDE likelihood of piRL (arXiv 2510.25889).
    """

    def __init__(self, update: UpdateConfig, acting: ActingConfig, rollout: RolloutConfig, action_dim: int) -> None:
        self._clip = {"clip_range_low": update.clip_range_low, "clip_range_high": update.clip_range_high}
        self._denoise_steps = acting.denoise_steps
        self._noise_level = rollout.noise_level
        self._action_dim = action_dim
        self._behaviour = torch.empty(0)

    def _log_prob(self, model: Pi05, rows: TrainingBatch, prefix: PrefixCache) -> Tensor:
        return chunk_log_prob(
            model,
            prefix,
            x_t=rows.x_t,
            x_next=rows.x_next,
            sde_index=rows.sde_index,
            denoise_steps=self._denoise_steps,
            noise_level=self._noise_level,
            executed_mask=rows.executed_mask,
            action_dim=self._action_dim,
        )

    def select(self, batch: TrainingBatch) -> TrainingBatch:
        """All rows: each counts in the denominator."""
        return batch

    @torch.no_grad()
    def begin(self, model: Pi05, batch: TrainingBatch, microbatches: list[Tensor], prefix_of: PrefixOf) -> float:
        """Computes the behaviour log-probs on the training path, so that the first ratio is exactly 1."""
        behaviour = torch.empty_like(batch.recorded_log_prob)
        for index in microbatches:
            rows = batch.rows(index)
            behaviour[index] = self._log_prob(model, rows, prefix_of(rows))
        self._behaviour = behaviour
        whole = batch.executed_mask.all(dim=1)  # what was recorded while acting counts every step of the chunk
        gap = (behaviour - batch.recorded_log_prob)[whole].abs()
        return float(gap.max()) if len(gap) else 0.0

    def terms(
        self, model: Pi05, rows: TrainingBatch, index: Tensor, prefix: PrefixCache, address: tuple[str | int, ...]
    ) -> Terms:
        """See ``Objective.terms``."""
        log_ratio = self._log_prob(model, rows, prefix) - self._behaviour[index]
        ratio = log_ratio.exp()
        loss = -clipped_surrogate(ratio, rows.positive, rows.negative, **self._clip).sum()
        with torch.no_grad():
            return Terms(
                loss=loss,
                approx_kl_sum=float(approx_kl(log_ratio).sum()),
                clipped=int(clipped_fraction(ratio, rows.positive, rows.negative, **self._clip).sum()),
                ratio_max=float((ratio - 1.0).abs().max()),
            )

    def denominator(self, batch: TrainingBatch, index: Tensor) -> float:
        """Trainable chunks, counted per member."""
        return float(batch.members[index].sum())

    def state(self) -> dict[str, Tensor]:
        """Nothing: an update depends on its own iteration only."""
        return {}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Nothing to put back."""


class Awfm:
    """Advantage-weighted flow matching: SFT's own loss on the executed chunks, weighted by their positive advantages.

    The weighted chunks of a few recent iterations are trained on together: what succeeded once is worth imitating.

    Source: method of advantage-weighted regression (arXiv 1910.00177) on the flow-matching loss of pi0 (arXiv
    2410.24164).
    """

    def __init__(self, update: UpdateConfig, seeds: Seeds) -> None:
        self._draws = update.awfm_draws
        self._maximum = update.awfm_max_weight
        self._kept_iterations = update.awfm_iterations
        self._seeds = seeds
        self._recent: list[TrainingBatch] = []

    def select(self, batch: TrainingBatch) -> TrainingBatch:
        """The rows with a positive advantage, of this and of recent iterations; ``positive`` becomes their weight."""
        advantage = batch.positive + batch.negative
        rows = batch.rows(torch.nonzero(advantage > 0).flatten())
        weights = positive_weights(rows.positive + rows.negative, maximum=self._maximum)
        weighted = replace(rows, positive=weights, negative=torch.zeros_like(weights))
        self._recent = [*self._recent, weighted][-self._kept_iterations :]
        return TrainingBatch.concat(self._recent)

    def begin(self, model: Pi05, batch: TrainingBatch, microbatches: list[Tensor], prefix_of: PrefixOf) -> float:
        """Nothing to prepare: there is no likelihood."""
        return 0.0

    def terms(
        self, model: Pi05, rows: TrainingBatch, index: Tensor, prefix: PrefixCache, address: tuple[str | int, ...]
    ) -> Terms:
        """See ``Objective.terms``."""
        mask = _pad_mask(rows.executed_mask, rows.actions.shape[1])
        loss = rows.actions.new_zeros(())
        for draw in range(self._draws):
            rng = self._seeds.rng(*address, "draw", draw)
            time = flow.sample_time(torch.from_numpy(rng.random(len(rows), dtype="float32"))).to(rows.actions)
            shape = tuple(rows.actions.shape)
            noise = torch.from_numpy(rng.standard_normal(shape, dtype="float32")).to(rows.actions)
            velocity = model.velocity(prefix, flow.interpolate(rows.actions, noise, time), time)
            error = flow_matching_error(velocity, flow.target(rows.actions, noise), mask)
            loss = loss + (rows.positive * error).sum() / self._draws
        return Terms(loss=loss)

    def denominator(self, batch: TrainingBatch, index: Tensor) -> float:
        """Weighted chunks, counted per member."""
        return float(batch.members[index].sum())

    def state(self) -> dict[str, Tensor]:
        """The recent iterations' chunks, for a checkpoint."""
        return {f"{n}.{name}": t for n, batch in enumerate(self._recent) for name, t in batch.tensors().items()}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Puts back what ``state`` gave."""
        numbers = sorted({int(name.split(".", 1)[0]) for name in tensors})
        self._recent = [
            TrainingBatch.of_tensors({k.split(".", 1)[1]: t for k, t in tensors.items() if k.startswith(f"{n}.")})
            for n in numbers
        ]


def _pad_mask(executed_mask: Tensor, horizon: int) -> Tensor:
    """bool ``[B, C]`` to ``[B, H]``: steps that were not executed do not count."""
    return torch.nn.functional.pad(executed_mask, (0, horizon - executed_mask.shape[1]))


def make_objective(
    update: UpdateConfig, acting: ActingConfig, rollout: RolloutConfig, *, action_dim: int, seeds: Seeds
) -> Objective:
    """The objective that a config names."""
    if update.objective == "grpo":
        return Grpo(update, acting, rollout, action_dim)
    return Awfm(update, seeds)
