"""Sampling chunks and recomputing their log-probs, over one code path.

Of a chunk's K denoise steps M are stochastic (one in the paper, none in evaluation); the others are Euler steps. The
likelihood of a stochastic step is a Gaussian density, summed over the env steps that were executed and the real action
dims. Acting and training call the same functions on the same table of times, so a log-prob that is recomputed with
unchanged weights, on the same rows, equals the recorded one bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from z1.policy import flow
from z1.policy.chunk_noise import correlated, movement_log_prob
from z1.policy.pi05 import Pi05, PrefixCache


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledChunk:
    """B chunks and what is needed to recompute their likelihood.

    Attributes:
        actions: float32 ``[B, H, D]``, the flow's state at t = 0, in model units.
        sde_index: int64 ``[B, M]``, numbers of the stochastic denoise steps.
        x_t: float32 ``[B, M, H, D]``, state before each of them.
        x_next: float32 ``[B, M, H, D]``, state after it.
        log_prob: float32 ``[B, M]``, of all ``executed_steps`` env steps, nats.
    """

    actions: Tensor
    sde_index: Tensor
    x_t: Tensor
    x_next: Tensor
    log_prob: Tensor


@torch.no_grad()
def sample_chunk(
    model: Pi05,
    prefix: PrefixCache,
    *,
    initial_noise: Tensor,
    denoise_steps: int,
    noise_level: float,
    sde_index: Tensor | None,
    sde_noise: Tensor | None,
    executed_steps: int,
    counted_dims: Sequence[int],
    correlation: float = 0.0,
    modes: int = 0,
) -> SampledChunk:
    """Denoises B chunks.

    Args:
        model: The network.
        prefix: B prefixes; or fewer, that G rows each have in common: row ``i`` has prefix ``i // G``.
        initial_noise: float32 ``[B, H, D]``, standard normal.
        denoise_steps: K.
        noise_level: a, scale of the stochastic step; 0 makes it an Euler step, with log-prob 0.
        sde_index: int64 ``[B, M]``, the stochastic steps of each sample, 0..K-1, none twice; None: Euler steps only
            (evaluation).
        sde_noise: float32 ``[B, M, H, D]``, standard normal, noise of each of them; goes with ``sde_index``.
        executed_steps: C, env steps of the chunk that will be executed.
        counted_dims: Model action dims that count; the others cannot move the robot (``Policy.counted_dims``).
        correlation: rho, of the stochastic steps' noise between an env step of the chunk and the next.
        modes: n, how many of the chunk's slowest movements count in the likelihood; 0: every env step.

    Returns:
        The chunks.
    """
    assert (sde_index is None) == (sde_noise is None), "sde_index and sde_noise go together"
    assert executed_steps <= initial_noise.shape[1], (executed_steps, initial_noise.shape)
    if sde_index is None or sde_noise is None:
        sde_index = torch.zeros((len(initial_noise), 0), dtype=torch.int64, device=initial_noise.device)
        sde_noise = initial_noise.new_zeros((len(initial_noise), 0, *initial_noise.shape[1:]))
    assert sde_noise.shape == (*sde_index.shape, *initial_noise.shape[1:]), (sde_noise.shape, sde_index.shape)
    table = model.modulation_table(denoise_steps)
    velocity = model.denoiser(prefix, initial_noise, table[:1])
    x = initial_noise
    sde_noise = correlated(sde_noise, correlation)
    x_t, x_next = torch.zeros_like(sde_noise), torch.zeros_like(sde_noise)
    log_prob = x.new_zeros(sde_index.shape)
    executed = x.new_ones((len(x), executed_steps), dtype=torch.bool)
    for k in range(denoise_steps):
        v = velocity(x, table[k : k + 1])
        after = flow.ode_step(x, v, denoise_steps)
        if sde_index.shape[1]:
            here = sde_index == k
            index = torch.full_like(sde_index[:, 0], k)
            mean, std, log_std = flow.sde_moments(x, v, index, denoise_steps, noise_level, correlation)
            noisy = mean + std * (sde_noise * here[:, :, None, None]).sum(1)
            after = torch.where(here.any(1)[:, None, None], noisy, after)
            x_t = torch.where(here[:, :, None, None], x[:, None], x_t)
            x_next = torch.where(here[:, :, None, None], noisy[:, None], x_next)
            density = _log_prob(noisy, mean, std, log_std, executed, counted_dims, correlation, modes)
            log_prob = torch.where(here, density[:, None], log_prob)
        x = after
    return SampledChunk(
        actions=x,
        sde_index=sde_index,
        x_t=x_t,
        x_next=x_next,
        log_prob=log_prob,
    )


def chunk_log_prob(
    model: Pi05,
    prefix: PrefixCache,
    *,
    x_t: Tensor,
    x_next: Tensor,
    sde_index: Tensor,
    denoise_steps: int,
    noise_level: float,
    executed_mask: Tensor,
    counted_dims: Sequence[int],
    correlation: float = 0.0,
    modes: int = 0,
) -> Tensor:
    """Log-probs of recorded stochastic steps under the model's present weights; differentiable.

    Args:
        model: The network.
        prefix: B prefixes; or fewer, as for ``sample_chunk``.
        x_t: float32 ``[B, M, H, D]``, of ``SampledChunk``.
        x_next: float32 ``[B, M, H, D]``, of ``SampledChunk``.
        sde_index: int64 ``[B, M]``, of ``SampledChunk``, 0..K-1.
        denoise_steps: K, as sampled.
        noise_level: a, as sampled.
        executed_mask: bool ``[B, C]``, env steps that were executed, the first ones; the others do not count.
        counted_dims: Model action dims that count; the others cannot move the robot (``Policy.counted_dims``).
        correlation: rho, as sampled.
        modes: n, as sampled.

    Returns:
        float32 ``[B, M]``, nats.
    """
    table = model.modulation_table(denoise_steps)
    log_probs = []
    for before, after, index in zip(x_t.unbind(1), x_next.unbind(1), sde_index.unbind(1), strict=True):
        modulation = functional.embedding(index, table)  # table[index], whose gradient sums in the order of the threads
        v = model.modulated_velocity(prefix, before, modulation)
        mean, std, log_std = flow.sde_moments(before, v, index, denoise_steps, noise_level, correlation)
        log_probs.append(_log_prob(after, mean, std, log_std, executed_mask, counted_dims, correlation, modes))
    return torch.stack(log_probs, dim=1)


def _log_prob(
    value: Tensor,
    mean: Tensor,
    std: Tensor,
    log_std: Tensor,
    executed: Tensor,
    counted_dims: Sequence[int],
    correlation: float,
    modes: int,
) -> Tensor:
    """Log-density ``[B]`` of what counts: executed env steps or their slowest movements, of the action dims that do."""
    first = tuple(counted_dims) == tuple(range(len(counted_dims)))  # a slice is a view, other dims are gathered
    dims = slice(len(counted_dims)) if first else list(counted_dims)
    counted = (slice(None), slice(0, executed.shape[1]), dims)
    value, mean = value[counted], mean[counted]
    if correlation or modes:
        steps = executed.sum(1)
        return movement_log_prob(value, mean, std, log_std, steps, correlation=correlation, modes=modes)
    terms = flow.gaussian_log_prob(value, mean, std, log_std).sum(2)
    return torch.where(executed, terms, 0.0).sum(1)
