"""The maths of flow matching and of its stochastic sampler. Pure functions; no network, no random numbers.

Convention (openpi): ``t = 1`` is noise, ``t = 0`` is the action. Letters: B batch, H horizon, D model action dims,
K denoise steps. ``d = 1 / K``.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from z1.policy.chunk_noise import LOG_2PI, step_correlation

TIME_SCALE, TIME_OFFSET = 0.999, 0.001


def interpolate(actions: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """The point of the flow at time t: ``x_t = t * noise + (1 - t) * action``.

    Args:
        actions: float ``[B, H, D]``.
        noise: float ``[B, H, D]``, standard normal.
        t: float ``[B]``.

    Returns:
        float ``[B, H, D]``.

    Source: pi0 (arXiv 2410.24164), with openpi's direction of time.
    """
    t = t[:, None, None]
    return t * noise + (1.0 - t) * actions


def target(actions: Tensor, noise: Tensor) -> Tensor:
    """The velocity to predict: ``v = noise - action``. Arguments and result ``[B, H, D]``."""
    return noise - actions


def sample_time(uniform: Tensor) -> Tensor:
    """Training times from uniform numbers: ``t = 0.999 * u^(2/3) + 0.001``, that is ``0.999 * Beta(1.5, 1) + 0.001``.

    Args:
        uniform: float ``[B]`` in [0, 1).

    Returns:
        float ``[B]`` in [0.001, 1].

    Source: openpi ``models/pi0.py``; the power is the inverse distribution function of Beta(1.5, 1).
    """
    return TIME_SCALE * uniform.pow(2.0 / 3.0) + TIME_OFFSET


@lru_cache(maxsize=64)
def time_grid(denoise_steps: int) -> Tensor:
    """The one table of times: ``t_k = 1 - k / K`` for k = 0..K, computed in double precision and rounded once.

    Sampling, log-probs and evaluation read the same float32 values: the network's time embedding turns a difference in
    the last bit into a visible one.

    Returns:
        float32 ``[K + 1]`` on the CPU. Do not write to it.
    """
    assert denoise_steps >= 1, denoise_steps
    with torch.inference_mode(False):
        return torch.tensor([1.0 - k / denoise_steps for k in range(denoise_steps + 1)], dtype=torch.float32)


def estimates(x: Tensor, v: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Both ends of the flow as seen from x_t: ``action_hat = x - t v`` and ``noise_hat = x + (1 - t) v``.

    Args:
        x: float ``[B, H, D]``.
        v: float ``[B, H, D]``, velocity at x.
        t: float, broadcast to x.

    Returns:
        action_hat and noise_hat, ``[B, H, D]``.
    """
    return x - t * v, x + (1.0 - t) * v


def ode_step(x: Tensor, v: Tensor, denoise_steps: int) -> Tensor:
    """One Euler step towards the action: ``x' = x - d v``. Arguments and result ``[B, H, D]``."""
    return x - v * (1.0 / denoise_steps)


@lru_cache(maxsize=64)
def sde_coefficients(denoise_steps: int, noise_level: float) -> Tensor:
    """Per denoise step: 1 - t, the weight of the correction, the standard deviation and its logarithm.

        sigma_k = a * sqrt(t_k / (1 - t_k))       at t = 1 the denominator is taken as 1 - t_1 = d
        correction_k = sigma_k^2 d / (2 t_k)
        std_k = sigma_k * sqrt(d)

    Returns:
        float32 ``[K, 4]`` on the CPU, computed in double precision; with ``noise_level`` 0 the logarithm is 0.
        Do not write to it.
    """
    assert denoise_steps >= 1, denoise_steps
    assert noise_level >= 0, noise_level
    d = 1.0 / denoise_steps
    rows = []
    for k in range(denoise_steps):
        t = 1.0 - k / denoise_steps
        sigma = noise_level * math.sqrt(t / (1.0 - t if k else d))
        std = sigma * math.sqrt(d)
        rows.append([1.0 - t, sigma * sigma * d / (2.0 * t), std, math.log(std) if std else 0.0])
    with torch.inference_mode(False):
        return torch.tensor(rows, dtype=torch.float32)


def sde_moments(
    x: Tensor, v: Tensor, index: Tensor, denoise_steps: int, noise_level: float, correlation: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and standard deviation of the stochastic denoise step.

        mean = action_hat * (1 - (t - d)) + noise_hat * ((t - d) - sigma^2 d / (2 t))
             = (x - d v) - sigma^2 d / (2 t) * C noise_hat
        std  = sigma * sqrt(d)

    The second line is how it is computed: the Euler step and a correction that makes up for the noise which is added,
    so that the flow's marginals stay what they are. Noise level 0 is the Euler step, bit for bit. C is the correlation
    of the noise along the env steps: one matrix on both noise and correction keeps the marginals, whatever it is. The
    first line is for independent noise, C = 1.

    Args:
        x: float ``[B, H, D]``, state before the step.
        v: float ``[B, H, D]``, velocity there.
        index: int64 ``[B]``, number k of each sample's denoise step, 0..K-1.
        denoise_steps: K.
        noise_level: a.
        correlation: rho of the noise, see ``step_correlation``.

    Returns:
        mean float ``[B, H, D]``; std float ``[B, 1, 1]``; log_std float ``[B, 1, 1]`` (0 where std is 0).

    Source: Flow-GRPO (arXiv 2505.05470) eq. 9; piRL (arXiv 2510.25889) for the value at t = 1.
    """
    rows = sde_coefficients(denoise_steps, noise_level).to(x.device)[index]
    one_minus_t, correction, std, log_std = rows[:, None, None, :].unbind(-1)
    noise_hat = x + one_minus_t * v
    if correlation:
        noise_hat = step_correlation(x.shape[1], correlation)[0].to(x) @ noise_hat
    return ode_step(x, v, denoise_steps) - correction * noise_hat, std, log_std


def gaussian_log_prob(value: Tensor, mean: Tensor, std: Tensor, log_std: Tensor) -> Tensor:
    """Elementwise log-density of a normal distribution, nats; 0 where the standard deviation is 0.

    Args:
        value: float ``[B, H, D]``.
        mean: float ``[B, H, D]``.
        std: float, broadcast to ``value``.
        log_std: its logarithm, where it is positive.

    Returns:
        float ``[B, H, D]``.
    """
    random = std > 0
    z = (value - mean) / torch.where(random, std, 1.0)
    return torch.where(random, -0.5 * z.square() - log_std - 0.5 * LOG_2PI, 0.0)
