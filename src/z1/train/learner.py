"""The update: chunks with advantages in, new weights and diagnostics out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from z1.config import Precision, UpdateConfig
from z1.errors import ConfigError
from z1.policy.pi05 import PrefixCache
from z1.policy.policy import Policy
from z1.rollout.groups import TrainingBatch
from z1.seeding import Seeds
from z1.train.objectives import Objective
from z1.train.trained import TrainedWeights, adapters_of

SIGNAL = 1e-6
"""Smallest summed advantage of a chunk that counts as a signal; z-scores add up to zero only up to rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateStats:
    """What an update did.

    Attributes:
        loss: Mean loss of the first minibatch's pass over all its chunks, before its step.
        approx_kl: Mean approx_kl of the last minibatch, nats.
        clip_fraction: Share of chunks whose gradient was clipped, last minibatch.
        ratio_max: Largest deviation of a ratio from 1 over the update.
        first_ratio_max: Largest deviation of a ratio from 1 before the first optimizer step; exactly 0.
        grad_norm: Mean gradient norm before clipping.
        learning_rate: Of the action expert.
        epochs_run: Update epochs begun.
        optimizer_steps: Optimizer steps taken; a minibatch without any gradient takes none.
        last_step_scale: What is left of the last one after ``update.shorten_last_step``; 1 when nothing was taken off.
        chunks: Chunks in the batch.
        signal_chunks: Those of them whose members' advantages do not add up to zero.
        gradient_chunks: Chunks that went through a backward pass, every pass counted.
        acting_log_prob_gap: See ``Objective.begin``.
        seconds: Wall-clock seconds.
    """

    loss: float
    approx_kl: float
    clip_fraction: float
    ratio_max: float
    first_ratio_max: float
    grad_norm: float
    learning_rate: float
    epochs_run: int
    optimizer_steps: int
    last_step_scale: float
    chunks: int
    signal_chunks: int
    gradient_chunks: int
    acting_log_prob_gap: float
    seconds: float


@dataclass(slots=True, kw_only=True)
class _Pass:
    """Sums over one minibatch."""

    loss: float = 0.0
    kl: float = 0.0
    clipped: int = 0
    ratio_max: float = 0.0
    grad_norm: float = 0.0


class Learner:
    """Owns the optimizer of a policy.

    Args:
        policy: The policy whose weights change.
        objective: What is optimised.
        update: Settings.
        seeds: The run's random streams.
        precision: What the network computes in; see ``TrainedWeights``.
    """

    def __init__(
        self,
        policy: Policy,
        objective: Objective,
        update: UpdateConfig,
        seeds: Seeds,
        *,
        precision: Precision = "float32",
    ) -> None:
        self.policy = policy
        self.objective = objective
        self._update = update
        self._seeds = seeds
        self.trained = TrainedWeights(
            policy.model,
            update.mode,
            precision=precision,
            learning_rate=update.learning_rate,
            vlm_learning_rate=update.vlm_learning_rate or update.learning_rate,
            adapters=adapters_of(update.mode, update.lora_rank, update.lora_alpha, seeds),
        )
        policy.model.recompute_activations(update.recompute_activations)
        groups = self.trained.groups
        self._base_rates = [group["lr"] for group in groups]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8, weight_decay=update.weight_decay)

    def update(self, batch: TrainingBatch, iteration: int) -> UpdateStats | None:
        """Runs the update epochs on one iteration's chunks.

        Args:
            batch: The chunks.
            iteration: Number of the iteration, the address of the random draws.

        Returns:
            What it did; None when the objective finds nothing to learn from.
        """
        began = time.perf_counter()
        settings = self._update
        warmup = min(1.0, (iteration + 1) / max(settings.warmup_iterations, 1))
        for group, rate in zip(self.optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = rate * warmup
        batch = self.objective.select(batch)
        if not len(batch):
            return None
        first = self._minibatches(len(batch), iteration, epoch=0)
        micro = [index for minibatch in first for index in minibatch.split(settings.microbatch)]
        gap = self.objective.begin(self.policy.model, batch, micro, self.prefix, ("iteration", iteration))
        passes: list[_Pass] = []
        steps = gradient_chunks = epochs = 0
        last_step: _Step | None = None
        scale = 1.0
        for epoch in range(settings.epochs):
            epochs = epoch + 1
            stop = False
            for number, index in enumerate(first if epoch == 0 else self._minibatches(len(batch), iteration, epoch)):
                result = self._backward(batch, index, ("iteration", iteration, "epoch", epoch, "minibatch", number))
                passes.append(result)
                gradient_chunks += len(index)
                self._refuse_divergence(result, iteration)
                stop = result.kl / len(index) > settings.target_kl
                if stop:
                    self.optimizer.zero_grad(set_to_none=True)
                    break
                if result.grad_norm > 0:  # otherwise momentum and weight decay alone would move the weights
                    if settings.shorten_last_step:
                        last_step = _Step(self._trained(), kl=result.kl / len(index))
                    self.optimizer.step()
                    self.trained.publish()
                    steps += 1
                self.optimizer.zero_grad(set_to_none=True)
            if stop:
                break
        if stop and last_step is not None:
            scale = last_step.shorten(passes[-1].kl / len(index), settings.target_kl)
            self.trained.publish()
            passes[-1] = self._measure(batch, index, passes[-1].grad_norm)
        last_count = len(index)
        return UpdateStats(
            loss=passes[0].loss,
            approx_kl=passes[-1].kl / last_count,
            clip_fraction=passes[-1].clipped / last_count,
            ratio_max=max(p.ratio_max for p in passes),
            first_ratio_max=passes[0].ratio_max,
            grad_norm=sum(p.grad_norm for p in passes) / len(passes),
            learning_rate=self._base_rates[0] * warmup,
            epochs_run=epochs,
            optimizer_steps=steps,
            last_step_scale=scale,
            chunks=len(batch),
            signal_chunks=int(((batch.positive + batch.negative).abs() > SIGNAL).sum()),
            gradient_chunks=gradient_chunks,
            acting_log_prob_gap=gap,
            seconds=time.perf_counter() - began,
        )

    def _trained(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @torch.no_grad()
    def _measure(self, batch: TrainingBatch, index: Tensor, grad_norm: float) -> _Pass:
        """Loss and KL of a minibatch at the present weights; the gradient norm is that of its last pass."""
        result = self._evaluate(batch, index, ("measure",))
        result.grad_norm = grad_norm
        return result

    def _minibatches(self, count: int, iteration: int, epoch: int) -> list[Tensor]:
        """Row indices of an epoch's minibatches, with a single one in order; of about equal size, since each makes a
        step of its own and may end the update: a rest of a few chunks would do both by chance.
        """
        size = self._update.minibatch or count
        if size >= count:
            return [torch.arange(count)]
        order = self._seeds.rng("iteration", iteration, "epoch", epoch, "order").permutation(count)
        return list(torch.from_numpy(order).tensor_split(math.ceil(count / size)))

    def _refuse_divergence(self, result: _Pass, iteration: int) -> None:
        """Raises ``ConfigError`` before a step on numbers that are not finite."""
        if not all(map(math.isfinite, (result.loss, result.kl, result.grad_norm))):
            self.optimizer.zero_grad(set_to_none=True)
            raise ConfigError(
                f"the update of iteration {iteration} diverged: loss {result.loss:g}, approx_kl {result.kl:g}, "
                f"gradient norm {result.grad_norm:g}; start a new run with a lower update.learning_rate "
                f"(it is {self._update.learning_rate:g}). The last checkpoint is sound."
            )

    def prefix(self, rows: TrainingBatch) -> PrefixCache:
        """The rows' VLM prefix: the stored one of a frozen VLM, or computed with gradient."""
        return self._request(rows)()

    def _request(self, rows: TrainingBatch) -> Callable[[], PrefixCache]:
        """``prefix`` in two steps: copies from host memory begin at once, what is to be computed waits for the call."""
        if rows.prefix is not None:
            return rows.prefix.begin().result
        assert rows.inputs is not None
        return partial(self.policy.model.encode_prefix, rows.inputs)

    def _parts(self, batch: TrainingBatch, index: Tensor) -> Iterator[tuple[Tensor, TrainingBatch, PrefixCache]]:
        """A minibatch's microbatches, with the prefixes of the next one on their way while one computes."""
        parts = index.split(self._update.microbatch)
        rows = batch.rows(parts[0])
        request = self._request(rows)
        for part, following in zip(parts, [*parts[1:], None], strict=True):
            current, prefix = rows, request()
            if following is not None:
                rows = batch.rows(following)
                request = self._request(rows)
            yield part, current, prefix

    def _backward(self, batch: TrainingBatch, index: Tensor, address: tuple[str | int, ...]) -> _Pass:
        """Accumulates the gradient of a minibatch and clips it."""
        result = self._evaluate(batch, index, address)
        parameters = [p for p in self._trained() if p.grad is not None]
        if parameters:
            result.grad_norm = float(torch.nn.utils.clip_grad_norm_(parameters, self._update.grad_clip))
        return result

    def _evaluate(self, batch: TrainingBatch, index: Tensor, address: tuple[str | int, ...]) -> _Pass:
        """Sums over a minibatch; accumulates its gradient where gradients are on."""
        result = _Pass()
        denominator = self.objective.denominator(batch, index)
        for number, (part, rows, prefix) in enumerate(self._parts(batch, index)):
            terms = self.objective.terms(self.policy.model, rows, part, prefix, (*address, "microbatch", number))
            loss = terms.loss / denominator
            if loss.requires_grad:
                loss.backward()
            result.loss += float(loss.detach())
            result.kl += terms.approx_kl_sum
            result.clipped += terms.clipped
            result.ratio_max = max(result.ratio_max, terms.ratio_max)
        return result


class _Step:
    """An optimizer step that may be taken back in part.

    Args:
        parameters: What the step will change.
        kl: approx_kl before it.
    """

    def __init__(self, parameters: list[Tensor], *, kl: float) -> None:
        self._parameters = parameters
        self._before = [p.detach().clone() for p in parameters]
        self._kl = kl

    @torch.no_grad()
    def shorten(self, kl: float, target: float) -> float:
        """Moves the parameters back along the step until approx_kl is about the target.

        The square root of a KL grows about linearly along a line.

        Args:
            kl: approx_kl after the step, above the target.
            target: Where to end, at least the KL before the step.

        Returns:
            Share of the step that is left.
        """
        before = math.sqrt(max(self._kl, 0.0))
        share = (math.sqrt(target) - before) / (math.sqrt(kl) - before)
        for parameter, old in zip(self._parameters, self._before, strict=True):
            parameter.copy_(torch.lerp(old, parameter, share))
        return share
