"""What an update optimises. An objective gets chunks with their advantages and gives a loss and diagnostics.

``grpo`` is the paper's clipped policy gradient on the likelihood of the stochastic denoise steps. ``awfm`` regresses
the flow on the executed chunks, weighted by their advantages: no likelihood, all denoise levels, far less variance.
``filtered_bc`` is the baseline that every other objective has to beat: the same regression on all successes alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from z1.algo.loss import advantage_weights, approx_kl, clipped_fraction, clipped_surrogate, flow_matching_error
from z1.config import ActingConfig, RolloutConfig, UpdateConfig
from z1.policy import flow
from z1.policy.pi05 import Pi05, PrefixCache
from z1.policy.prefix_cache import PrefixStore
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

    def begin(
        self,
        model: Pi05,
        batch: TrainingBatch,
        microbatches: list[Tensor],
        prefix_of: PrefixOf,
        address: tuple[str | int, ...],
    ) -> float:
        """Called before the first optimizer step of an update.

        Args:
            model: The network with the weights that acted.
            batch: All chunks of the iteration.
            microbatches: Row indices of the microbatches of the first pass; later passes use the same rows together.
            prefix_of: Function from a batch of rows to its VLM prefix.
            address: Path of this update, for random draws.

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

    def load_state(self, tensors: dict[str, Tensor], store: PrefixStore | None) -> None:
        """Puts back what ``state`` gave; stored prefixes are in ``store``."""

    def remembered(self) -> list[TrainingBatch]:
        """Chunks that later updates will train on again."""


class Grpo:
    """The paper's objective: clipped policy gradient, one ratio per chunk and stochastic denoise step.

    Every stochastic denoise step is an action of its own with the chunk's advantage; a chunk's loss is their mean.

    Source: Z-1 (arXiv 2606.31846); GRPO (arXiv 2402.03300); Flow-SDE likelihood of piRL (arXiv 2510.25889).
    """

    def __init__(
        self, update: UpdateConfig, acting: ActingConfig, rollout: RolloutConfig, counted_dims: Sequence[int]
    ) -> None:
        self._clip = {"clip_range_low": update.clip_range_low, "clip_range_high": update.clip_range_high}
        self._denoise_steps = acting.denoise_steps
        self._noise_level, self._correlation = rollout.noise_level, rollout.noise_correlation
        self._modes = rollout.likelihood_modes
        self._counted_dims = counted_dims
        self._count = update.count
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
            counted_dims=self._counted_dims,
            correlation=self._correlation,
            modes=self._modes,
        )

    def select(self, batch: TrainingBatch) -> TrainingBatch:
        """All rows: each counts in the denominator."""
        return batch

    def begin(
        self,
        model: Pi05,
        batch: TrainingBatch,
        microbatches: list[Tensor],
        prefix_of: PrefixOf,
        address: tuple[str | int, ...],
    ) -> float:
        """Computes the behaviour log-probs on the training path, so that the first ratio is exactly 1.

        Gradients are enabled though none is taken: without them a GPU may choose other kernels.
        """
        behaviour = torch.empty_like(batch.recorded_log_prob)
        for index in microbatches:
            rows = batch.rows(index)
            behaviour[index] = self._log_prob(model, rows, prefix_of(rows)).detach()
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
        positive, negative = rows.positive[:, None], rows.negative[:, None]
        loss = -clipped_surrogate(ratio, positive, negative, **self._clip).mean(1).sum()
        with torch.no_grad():
            clipped = clipped_fraction(ratio, positive, negative, **self._clip)
            return Terms(
                loss=loss,
                approx_kl_sum=float(approx_kl(log_ratio).sum()),
                clipped=int(clipped.any(dim=1).sum()),
                ratio_max=float((ratio - 1.0).abs().max()),
            )

    def denominator(self, batch: TrainingBatch, index: Tensor) -> float:
        """Trainable chunks, counted per member or once."""
        return _chunks(batch, index, self._count)

    def state(self) -> dict[str, Tensor]:
        """Nothing: an update depends on its own iteration only."""
        return {}

    def load_state(self, tensors: dict[str, Tensor], store: PrefixStore | None) -> None:
        """Nothing to put back."""

    def remembered(self) -> list[TrainingBatch]:
        """Nothing."""
        return []


class FlowRegression:
    """Flow matching on executed chunks, weighted: ``awfm`` and ``filtered_bc``.

    The weighted chunks of a few recent iterations are trained on together: what succeeded once is worth imitating.

    Rows of negative weight, of the present iteration only, push away: with the behaviour policy's velocity v_old and
    the chunk's own target u, the reflection ``2 v_old - v`` is regressed on u, so that v goes to the other side of
    v_old by as much as u lies on this one. A regression with a minimum, not an unbounded ascent.

    Source: advantage-weighted regression (arXiv 1910.00177) on the flow-matching loss of pi0 (arXiv 2410.24164);
    DiffusionNFT (arXiv 2509.16117) for the reflection.
    """

    def __init__(self, update: UpdateConfig, seeds: Seeds) -> None:
        self._draws = update.awfm_draws
        self._maximum = update.awfm_max_weight
        self._by_advantage = update.objective == "awfm"
        self._negative = update.awfm_negative
        self._kept_iterations = update.awfm_iterations
        self._count = update.count
        self._seeds = seeds
        self._recent: list[TrainingBatch] = []
        self._reflections: list[_Reflection] = []

    def select(self, batch: TrainingBatch) -> TrainingBatch:
        """The rows with a weight; ``positive`` and ``negative`` become the weights.

        Those of recent iterations come first, then those that attract, then those that repel.
        """
        weights = batch.positive + batch.negative
        if self._by_advantage:
            weights = advantage_weights(weights, batch.members, maximum=self._maximum)
        weighted = replace(batch, positive=weights.clamp(min=0.0), negative=self._negative * weights.clamp(max=0.0))
        attracting = weighted.rows(torch.nonzero(weighted.positive > 0).flatten())
        repelling = weighted.rows(torch.nonzero(weighted.negative < 0).flatten())
        self._recent = [*self._recent, attracting][-self._kept_iterations :]
        return TrainingBatch.concat([*self._recent, *([repelling] if len(repelling) else [])])

    @torch.no_grad()
    def begin(
        self,
        model: Pi05,
        batch: TrainingBatch,
        microbatches: list[Tensor],
        prefix_of: PrefixOf,
        address: tuple[str | int, ...],
    ) -> float:
        """Where rows repel: their noise and times for the whole update, and the behaviour policy's velocity there."""
        self._reflections = []
        if not (batch.negative < 0).any():
            return 0.0
        for draw in range(self._draws):
            noise, time = self._noise_and_time(batch, (*address, "repel", draw))
            velocity = torch.zeros_like(noise)
            for micro in microbatches:
                index = micro[(batch.negative[micro] < 0).cpu()]
                if not len(index):
                    continue
                rows = batch.rows(index)
                x = flow.interpolate(rows.actions, noise[index], time[index])
                velocity[index] = model.velocity(prefix_of(rows), x, time[index])
            self._reflections.append(_Reflection(noise=noise, time=time, velocity=velocity))
        return 0.0

    def _noise_and_time(self, rows: TrainingBatch, address: tuple[str | int, ...]) -> tuple[Tensor, Tensor]:
        rng = self._seeds.rng(*address)
        time = flow.sample_time(torch.from_numpy(rng.random(len(rows), dtype="float32"))).to(rows.actions)
        noise = torch.from_numpy(rng.standard_normal(tuple(rows.actions.shape), dtype="float32")).to(rows.actions)
        return noise, time

    def terms(
        self, model: Pi05, rows: TrainingBatch, index: Tensor, prefix: PrefixCache, address: tuple[str | int, ...]
    ) -> Terms:
        """See ``Objective.terms``."""
        mask = _pad_mask(rows.executed_mask, rows.actions.shape[1])
        repels = rows.negative < 0
        loss = rows.actions.new_zeros(())
        for draw in range(self._draws):
            noise, time = self._noise_and_time(rows, (*address, "draw", draw))
            if self._reflections:
                fixed = self._reflections[draw]
                noise = torch.where(repels[:, None, None], fixed.noise[index], noise)
                time = torch.where(repels, fixed.time[index], time)
            velocity = model.velocity(prefix, flow.interpolate(rows.actions, noise, time), time)
            if self._reflections:
                velocity = torch.where(repels[:, None, None], 2 * fixed.velocity[index] - velocity, velocity)
            error = flow_matching_error(velocity, flow.target(rows.actions, noise), mask)
            loss = loss + ((rows.positive - rows.negative) * error).sum() / self._draws
        return Terms(loss=loss)

    def denominator(self, batch: TrainingBatch, index: Tensor) -> float:
        """Weighted chunks, counted per member or once."""
        return _chunks(batch, index, self._count)

    def state(self) -> dict[str, Tensor]:
        """The recent iterations' chunks, for a checkpoint."""
        return {f"{n}.{name}": t for n, batch in enumerate(self._recent) for name, t in batch.tensors().items()}

    def remembered(self) -> list[TrainingBatch]:
        """The recent iterations' chunks."""
        return self._recent

    def load_state(self, tensors: dict[str, Tensor], store: PrefixStore | None) -> None:
        """Puts back what ``state`` gave; stored prefixes are in ``store``."""
        numbers = sorted({int(name.split(".", 1)[0]) for name in tensors})
        self._recent = [
            TrainingBatch.of_tensors(
                {k.split(".", 1)[1]: t for k, t in tensors.items() if k.startswith(f"{n}.")}, store
            )
            for n in numbers
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reflection:
    """One draw for all rows of an update.

    Attributes:
        noise: float32 ``[N, H, D]``.
        time: float32 ``[N]``.
        velocity: float32 ``[N, H, D]``, of the policy before the update, at that noise and time.
    """

    noise: Tensor
    time: Tensor
    velocity: Tensor


def _chunks(batch: TrainingBatch, index: Tensor, count: str) -> float:
    return float(batch.members[index].sum()) if count == "members" else float(len(index))


def _pad_mask(executed_mask: Tensor, horizon: int) -> Tensor:
    """bool ``[B, C]`` to ``[B, H]``: steps that were not executed do not count."""
    return torch.nn.functional.pad(executed_mask, (0, horizon - executed_mask.shape[1]))


def make_objective(
    update: UpdateConfig, acting: ActingConfig, rollout: RolloutConfig, *, counted_dims: Sequence[int], seeds: Seeds
) -> Objective:
    """The objective that a config names."""
    if update.objective == "grpo":
        return Grpo(update, acting, rollout, counted_dims)
    return FlowRegression(update, seeds)
