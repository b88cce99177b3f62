"""The noise within a chunk: its correlation, the movements that count, their exact density, the flow's marginals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from z1.policy import flow
from z1.policy.chunk_noise import correlated, cosines, movement_log_prob, step_correlation, whitening

C, D, RHO = 6, 3, 0.8


def moments(executed: int, correlation: float, modes: int) -> tuple[Tensor, Tensor]:
    """Which movements count, float64 ``[executed, n]``, and the covariance of their amplitudes at std 1."""
    steps = torch.arange(executed, dtype=torch.float64)
    process = correlation ** (steps[:, None] - steps).abs()
    movements = cosines(executed, modes) if modes else torch.eye(executed, dtype=torch.float64)
    return movements, movements.T @ process @ movements


def test_correlated_noise_is_the_process_it_is_said_to_be() -> None:
    matrix, root = step_correlation(C, RHO)
    assert matrix[2, 2] == 1
    assert float(matrix[1, 4]) == pytest.approx(RHO**3)
    torch.testing.assert_close(root @ root.T, matrix)
    white = torch.from_numpy(np.random.default_rng(0).standard_normal((40_000, C, 1), dtype=np.float32))
    noise = correlated(white, RHO)[..., 0]
    torch.testing.assert_close(noise.T @ noise / len(noise), matrix, atol=0.02, rtol=0)
    assert correlated(white, 0.0) is white


def test_cosines_are_orthonormal_and_begin_with_a_constant() -> None:
    waves = cosines(5, 3)
    torch.testing.assert_close(waves.T @ waves, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(waves[:, 0], torch.full((5,), 5**-0.5, dtype=torch.float64))
    assert (waves[:-1, 1] > waves[1:, 1]).all()  # half a wave, falling
    assert cosines(2, 8).shape == (2, 2)


@pytest.mark.parametrize("modes", [0, 1, 3, C])
@pytest.mark.parametrize("correlation", [0.0, RHO])
def test_the_density_is_that_of_the_movements_that_count(correlation: float, modes: int) -> None:
    rng = np.random.default_rng(1)
    value, mean = (torch.from_numpy(rng.standard_normal((C + 1, C, D))) for _ in range(2))
    std = torch.from_numpy(rng.uniform(0.5, 2, (C + 1, 1, 1)))
    executed = torch.arange(C + 1)
    ours = movement_log_prob(
        value.float(), mean.float(), std.float(), std.log().float(), executed, correlation=correlation, modes=modes
    )
    assert ours[0] == 0  # nothing was executed
    for steps in range(1, C + 1):
        movements, covariance = moments(steps, correlation, modes)
        theirs = torch.distributions.MultivariateNormal(
            torch.zeros(len(covariance), dtype=torch.float64), covariance * std[steps, 0, 0] ** 2
        )
        expected = sum(
            theirs.log_prob(movements.T @ (value[steps, :steps, dim] - mean[steps, :steps, dim])) for dim in range(D)
        )
        assert float(ours[steps]) == pytest.approx(float(expected), abs=1e-4)


def test_all_cosines_are_all_env_steps_and_no_correlation_is_independence() -> None:
    rng = np.random.default_rng(2)
    value, mean = (torch.from_numpy(rng.standard_normal((4, C, D), dtype=np.float32)) for _ in range(2))
    std = torch.full((4, 1, 1), 0.7)
    executed = torch.tensor([C, 3, 1, C])
    steps = flow.gaussian_log_prob(value, mean, std, std.log()).sum(2)
    independent = (steps * (torch.arange(C) < executed[:, None])).sum(1)
    for modes in (0, C):
        ours = movement_log_prob(value, mean, std, std.log(), executed, correlation=0.0, modes=modes)
        torch.testing.assert_close(ours, independent)


def test_fast_movements_do_not_count_and_slow_ones_do() -> None:
    waves = cosines(C, C).float()
    value, std, executed = torch.zeros(1, C, 1), torch.ones(1, 1, 1), torch.tensor([C])

    def density(value: Tensor) -> float:
        return float(movement_log_prob(value, 0 * value, std, 0 * std, executed, correlation=0.0, modes=2))

    fast = density(value + 3 * waves[None, :, 3:4])
    slow = density(value + 3 * waves[None, :, 1:2])
    assert fast == pytest.approx(density(value), abs=1e-5)
    assert slow == pytest.approx(density(value) - 4.5, abs=1e-4)
    assert density(value) == pytest.approx(-math.log(2 * math.pi))


def test_without_noise_there_is_no_density() -> None:
    zero = torch.zeros(2, C, D)
    ours = movement_log_prob(
        zero + 1, zero, zero[:, :1, :1], zero[:, :1, :1], torch.tensor([C, 2]), correlation=RHO, modes=1
    )
    assert not ours.any()


def covariance_at_the_end(*, noise: float, correction: float, steps: int = 400, spread: float = 0.4) -> Tensor:
    """Covariance over the env steps at t = 0 of the stochastic sampler with the exact velocity of independent actions
    of standard deviation ``spread``, when noise and correction have these correlations. Everything is linear.
    """
    covariance, points = torch.eye(C, dtype=torch.float64), torch.eye(C, dtype=torch.float64)[:, :, None]
    for k in range(steps):
        t = 1.0 - k / steps
        slope = (t - (1 - t) * spread**2) / (t**2 + (1 - t) ** 2 * spread**2)
        result, std, _ = flow.sde_moments(points, slope * points, torch.full((C,), k), steps, 0.5, correction)
        gain = result[:, :, 0].T  # column j: where the unit point j goes
        covariance = gain @ covariance @ gain.T + std[0].item() ** 2 * step_correlation(C, noise)[0].double()
    return covariance


def test_the_correction_keeps_the_marginals_and_the_wrong_one_does_not() -> None:
    wanted = 0.16 * torch.eye(C, dtype=torch.float64)
    torch.testing.assert_close(covariance_at_the_end(noise=RHO, correction=RHO), wanted, atol=0.01, rtol=0)
    assert float((covariance_at_the_end(noise=RHO, correction=0.0) - wanted).abs().max()) > 0.02
    assert float((covariance_at_the_end(noise=0.0, correction=RHO) - wanted).abs().max()) > 0.02


def test_constants_first_needed_under_inference_mode_serve_gradients_later() -> None:
    whitening.cache_clear()
    value = torch.zeros(1, C, D)
    rest = {"std": torch.ones(1, 1, 1), "log_std": torch.zeros(1, 1, 1), "executed": torch.tensor([C])}
    with torch.inference_mode():
        first = movement_log_prob(value, torch.zeros_like(value), **rest, correlation=RHO, modes=2)
    mean = torch.zeros(1, C, D, requires_grad=True)
    again = movement_log_prob(value, mean, **rest, correlation=RHO, modes=2)
    again.sum().backward()
    assert torch.equal(first, again)
