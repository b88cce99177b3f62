"""Flow matching's maths: identities, hand-worked numbers, RLinf's values, and what the sampler must preserve."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from z1.policy import flow

FIXTURE = Path(__file__).parents[1] / "parity" / "fixtures" / "flow_sde_rlinf.safetensors"


@pytest.fixture(scope="module")
def rlinf() -> dict[str, Tensor]:
    return load_file(FIXTURE)


def ramp(*shape: int, low: float = -2.0, high: float = 2.0) -> Tensor:
    return torch.linspace(low, high, math.prod(shape)).view(shape)


@pytest.mark.parametrize("steps", [4, 10])
@pytest.mark.parametrize("level", [0.3, 0.5])
def test_stochastic_step_against_rlinf(rlinf: dict[str, Tensor], steps: int, level: float) -> None:
    name = f"sde_{steps}_{level}"
    mean, std, log_std = flow.sde_moments(rlinf["x_t"], rlinf["v_t"], rlinf[f"idx_{steps}"], steps, level)
    torch.testing.assert_close(mean, rlinf[f"{name}_mean"], rtol=0, atol=2e-6)
    torch.testing.assert_close(std.expand_as(mean), rlinf[f"{name}_std"], rtol=1e-6, atol=0)
    following = mean + std * rlinf["eps"]
    torch.testing.assert_close(following, rlinf[f"{name}_next"], rtol=0, atol=2e-6)
    log_prob = flow.gaussian_log_prob(following, mean, std, log_std)
    torch.testing.assert_close(log_prob, rlinf[f"{name}_logprob"], rtol=0, atol=1e-5)
    other = flow.sde_moments(rlinf["x_t"], rlinf["v_t"], rlinf[f"idx_{steps}"], steps, level + 0.1)
    assert float((other[0] - mean).abs().max()) > 1e-3


@pytest.mark.parametrize("steps", [4, 10])
def test_euler_step_against_rlinf(rlinf: dict[str, Tensor], steps: int) -> None:
    ours = flow.ode_step(rlinf["x_t"], rlinf["v_t"], steps)
    torch.testing.assert_close(ours, rlinf[f"ode_{steps}_mean"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 4, 10])
def test_noise_level_zero_is_the_euler_step_bit_for_bit(steps: int) -> None:
    x, v = ramp(steps, 3, 2), ramp(steps, 3, 2, high=5.0)
    mean, std, log_std = flow.sde_moments(x, v, torch.arange(steps), steps, 0.0)
    assert torch.equal(mean, flow.ode_step(x, v, steps))
    assert not std.any()
    assert not flow.gaussian_log_prob(mean, mean, std, log_std).any()
    assert not torch.equal(flow.sde_moments(x, v, torch.arange(steps), steps, 0.1)[0], mean)


def test_moments_by_hand() -> None:
    """K = 4, k = 1, a = 0.5: t = 3/4, d = 1/4, sigma^2 = 0.25 * (3/4) / (1/4) = 3/4, std = sqrt(3/4 * 1/4).

    With x = 1, v = 2: action_hat = 1 - 3/4 * 2 = -1/2, noise_hat = 1 + 1/4 * 2 = 3/2,
    mean = -1/2 * (1 - 1/2) + 3/2 * (1/2 - 3/4 * 1/4 / (2 * 3/4)) = -1/4 + 3/2 * 3/8 = 5/16.
    """
    one = torch.ones(1, 1, 1)
    mean, std, log_std = flow.sde_moments(one, 2 * one, torch.tensor([1]), 4, 0.5)
    assert mean.item() == pytest.approx(5 / 16)
    assert std.item() == pytest.approx(math.sqrt(3) / 4)
    assert log_std.item() == pytest.approx(math.log(math.sqrt(3) / 4))


def test_first_step_takes_the_denominator_of_the_second() -> None:
    """K = 4, k = 0: t = 1, sigma^2 = a^2 * 1 / (1/4) = 4 a^2, std = 2 a * 1/2 = a."""
    _, std, _ = flow.sde_moments(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), torch.tensor([0]), 4, 0.3)
    assert std.item() == pytest.approx(0.3)


def test_moments_are_per_sample() -> None:
    x, v = ramp(4, 3, 2), ramp(4, 3, 2, high=1.0)
    index = torch.tensor([2, 0, 3, 1])
    mean, std, _ = flow.sde_moments(x, v, index, 4, 0.5)
    for row, k in enumerate(index):
        one = flow.sde_moments(x[row : row + 1], v[row : row + 1], k[None], 4, 0.5)
        assert torch.equal(one[0][0], mean[row])
        assert torch.equal(one[1][0], std[row])


def test_time_grid() -> None:
    assert flow.time_grid(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert flow.time_grid(10).dtype == torch.float32
    assert flow.time_grid(10)[3].item() == torch.tensor(0.7).item()


def test_interpolation_ends_and_target() -> None:
    actions, noise = ramp(2, 3, 2), ramp(2, 3, 2, low=5.0, high=9.0)
    assert torch.equal(flow.interpolate(actions, noise, torch.ones(2)), noise)
    assert torch.equal(flow.interpolate(actions, noise, torch.zeros(2)), actions)
    middle = flow.interpolate(actions, noise, torch.tensor([0.25, 0.5]))
    torch.testing.assert_close(middle[0], 0.25 * noise[0] + 0.75 * actions[0])
    t = torch.tensor([0.25, 0.5])[:, None, None]
    action_hat, noise_hat = flow.estimates(middle, flow.target(actions, noise), t)
    torch.testing.assert_close(action_hat, actions)
    torch.testing.assert_close(noise_hat, noise)


def test_exact_velocity_of_one_action_leads_to_it() -> None:
    action, x = ramp(1, 3, 2), ramp(1, 3, 2, low=-1.0, high=3.0)
    for t in flow.time_grid(5)[:-1]:
        x = flow.ode_step(x, (x - action) / t, 5)
    torch.testing.assert_close(x, action)


def test_sample_time() -> None:
    u = torch.tensor([0.0, 0.125, 1.0])
    torch.testing.assert_close(flow.sample_time(u), torch.tensor([0.001, 0.999 * 0.25 + 0.001, 1.0]))


def test_gaussian_log_prob() -> None:
    value, mean, std = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0]), torch.tensor([2.0, 0.5])
    ours = flow.gaussian_log_prob(value, mean, std, std.log())
    torch.testing.assert_close(ours, torch.distributions.Normal(mean, std).log_prob(value))


def test_gradient_is_finite_without_noise() -> None:
    mean = torch.zeros(2, requires_grad=True)
    flow.gaussian_log_prob(torch.ones(2), mean, torch.zeros(2), torch.zeros(2)).sum().backward()
    assert mean.grad is not None
    assert mean.grad.tolist() == [0.0, 0.0]


def propagate(
    level: float, *, steps: int, std_factor: float = 1.0, spread: float = 0.4, centre: float = 1.5
) -> tuple[float, float]:
    """Mean and variance at t = 0 of the stochastic sampler with the exact velocity of actions N(centre, spread^2).

    Everything is linear: v = -centre + (t - (1 - t) spread^2) / var_t * (x - (1 - t) centre), with
    var_t = t^2 + (1 - t)^2 spread^2. A step maps x to gain * x + offset, read off at two points, and adds std^2.
    """
    mean, variance = 0.0, 1.0
    points = torch.tensor([0.0, 1.0], dtype=torch.float64).view(2, 1, 1)
    for k in range(steps):
        t = 1.0 - k / steps
        slope = (t - (1 - t) * spread**2) / (t**2 + (1 - t) ** 2 * spread**2)
        velocity = -centre + slope * (points - (1 - t) * centre)
        result, std, _ = flow.sde_moments(points, velocity, torch.full((2,), k), steps, level)
        offset, gain = result[0].item(), (result[1] - result[0]).item()
        mean, variance = gain * mean + offset, gain**2 * variance + (std_factor * std[0].item()) ** 2
    return mean, variance


@pytest.mark.parametrize("level", [0.0, 0.3, 0.5])
def test_stochastic_sampler_preserves_a_gaussian(level: float) -> None:
    mean, variance = propagate(level, steps=1000)
    assert mean == pytest.approx(1.5, abs=0.01)
    assert variance == pytest.approx(0.16, abs=0.005)


@pytest.mark.parametrize("factor", [0.7, 1.3])
def test_wrong_noise_does_not_preserve_it(factor: float) -> None:
    _, variance = propagate(0.5, steps=1000, std_factor=factor)
    assert abs(variance - 0.16) > 0.01
