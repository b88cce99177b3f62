"""The noise of a stochastic denoise step within a chunk: how its env steps hang together, and which of its movements
count in the likelihood. Pure functions.

Letters: B batch, H horizon, C executed env steps, D action dims, rho the correlation between an env step and the next,
n modes. A chunk's noise may be a first-order autoregressive process along the env steps, of variance 1 everywhere; then
what neighbouring steps do does not cancel out, and less noise moves the robot as far.

A robot follows slow movements and averages fast ones away. Yet in the likelihood of all env steps each counts alike,
and those without consequence are noise in the gradient. With n modes, the likelihood is that of the n slowest movements
of the executed env steps alone, the first n cosines: the exact density of their amplitudes, whatever the others are.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

LOG_2PI = math.log(2.0 * math.pi)


@lru_cache(maxsize=64)
def step_correlation(horizon: int, correlation: float) -> tuple[Tensor, Tensor]:
    """How the noise of a chunk's env steps hangs together.

    Args:
        horizon: H.
        correlation: rho, in [0, 1).

    Returns:
        ``C_ij = rho^|i - j|`` and the lower triangular ``L`` with ``L L^T = C``, float32 ``[H, H]`` on the CPU,
        computed in double precision. Do not write to them.

    Source: temporally correlated exploration, "Pink Noise Is All You Need" (ICLR 2023).
    """
    assert 0 <= correlation < 1, correlation
    with torch.inference_mode(False):
        matrix = _correlation(horizon, correlation)
        return matrix.float(), torch.linalg.cholesky(matrix).float()


def correlated(noise: Tensor, correlation: float) -> Tensor:
    """Independent standard normal noise made the process: ``L noise``.

    Args:
        noise: float ``[..., H, D]``.
        correlation: rho; 0 leaves the noise as it is.

    Returns:
        float ``[..., H, D]``.
    """
    if not correlation:
        return noise
    return step_correlation(noise.shape[-2], correlation)[1].to(noise) @ noise


def cosines(steps: int, modes: int) -> Tensor:
    """The slowest movements of some env steps: orthonormal cosines (DCT-II), the first of them constant.

    Args:
        steps: Env steps.
        modes: n; more than ``steps`` there are none.

    Returns:
        float64 ``[steps, min(n, steps)]``.
    """
    time = torch.arange(steps, dtype=torch.float64) + 0.5
    waves = torch.cos(math.pi / max(steps, 1) * time[:, None] * torch.arange(min(modes, steps)))
    return waves / waves.norm(dim=0)


@lru_cache(maxsize=64)
def whitening(chunk_length: int, correlation: float, modes: int) -> tuple[Tensor, Tensor]:
    """What makes independent standard normal numbers of the noise that counts, for every number of executed env steps.

    With the movements that count as the columns of B and ``S = B^T C B = M M^T``, these are ``M^-1 B^T noise``.

    Args:
        chunk_length: C.
        correlation: rho.
        modes: n; 0: every env step counts.

    Returns:
        Matrices float32 ``[C + 1, n or C, C]``, rows beyond the executed env steps' own zero; and what remains of the
        log-density at 0 for one action dim, less ``log std`` per movement: float32 ``[C + 1, 2]``, the number of
        movements and ``-log det M - number log(2 pi) / 2``. On the CPU, do not write to them.
    """
    width = modes or chunk_length
    with torch.inference_mode(False):
        matrices = torch.zeros(chunk_length + 1, width, chunk_length, dtype=torch.float64)
        constants = torch.zeros(chunk_length + 1, 2, dtype=torch.float64)
        for steps in range(1, chunk_length + 1):
            movements = cosines(steps, modes) if modes else torch.eye(steps, dtype=torch.float64)
            root = torch.linalg.cholesky(movements.T @ _correlation(steps, correlation) @ movements)
            number = movements.shape[1]
            matrices[steps, :number, :steps] = torch.linalg.solve_triangular(root, movements.T, upper=False)
            log_determinant = float(root.diagonal().log().sum())
            constants[steps] = torch.tensor([number, -log_determinant - 0.5 * number * LOG_2PI])
        return matrices.float(), constants.float()


def movement_log_prob(
    value: Tensor, mean: Tensor, std: Tensor, log_std: Tensor, executed: Tensor, *, correlation: float, modes: int
) -> Tensor:
    """Log-density of the movements that count.

    Args:
        value: float ``[B, C, D]``.
        mean: float ``[B, C, D]``.
        std: float ``[B, 1, 1]``.
        log_std: float ``[B, 1, 1]``, its logarithm, where it is positive.
        executed: int64 ``[B]``, env steps that were executed, the first ones of the chunk; the others do not count.
        correlation: rho.
        modes: n; 0: every env step counts.

    Returns:
        float ``[B]``, nats; 0 where the standard deviation is 0.
    """
    matrices, constants = (table.to(value.device)[executed] for table in whitening(value.shape[1], correlation, modes))
    random = std > 0
    white = matrices @ ((value - mean) / torch.where(random, std, 1.0))
    number, constant = constants.unbind(1)
    log_prob = -0.5 * white.square().sum((1, 2)) + value.shape[2] * (constant - number * log_std[:, 0, 0])
    return torch.where(random[:, 0, 0], log_prob, 0.0)


def _correlation(horizon: int, correlation: float) -> Tensor:
    """C, float64 ``[H, H]``."""
    steps = torch.arange(horizon, dtype=torch.float64)
    return correlation ** (steps[:, None] - steps).abs()
