"""Chunks and their log-probs: recomputed equals recorded, whatever the batch or the cache; wrong settings differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from z1.policy import flow
from z1.policy.chunk_noise import correlated, movement_log_prob
from z1.policy.config import PolicyConfig
from z1.policy.denoise import Velocity
from z1.policy.pi05 import ModelInput, Pi05, PrefixCache
from z1.policy.sampler import SampledChunk, chunk_log_prob, sample_chunk

K, C, A, LEVEL, B = 4, 5, 3, 0.5, 8


@dataclass(frozen=True)
class Case:
    model: Pi05
    inputs: ModelInput
    prefix: PrefixCache
    noise: Tensor
    index: Tensor
    sde_noise: Tensor
    sample: SampledChunk


def draw(
    model: Pi05,
    prefix: PrefixCache,
    noise: Tensor,
    index: Tensor | None,
    sde_noise: Tensor | None,
    level: float = LEVEL,
    **settings: Any,
) -> SampledChunk:
    return sample_chunk(
        model,
        prefix,
        initial_noise=noise,
        denoise_steps=K,
        noise_level=level,
        sde_index=index,
        sde_noise=sde_noise,
        executed_steps=C,
        counted_dims=range(A),
        **settings,
    )


@pytest.fixture(scope="module")
def case() -> Case:
    rng = np.random.Generator(np.random.Philox(key=3))
    model = Pi05.initialised(
        PolicyConfig.tiny(image_size=32, patch=16, width=64, vision_width=32, expert_width=64), rng
    )
    with torch.no_grad():
        model.action_out.weight.mul_(10.0)
        model.expert.modulation.weight.copy_(
            0.1 * torch.from_numpy(rng.standard_normal(tuple(model.expert.modulation.weight.shape), dtype=np.float32))
        )
    lengths = torch.tensor([7, 5, 9, 9, 6, 7, 8, 9])
    inputs = ModelInput(
        images=torch.from_numpy(rng.integers(0, 256, (B, 2, 3, 32, 32), dtype=np.uint8)),
        image_mask=torch.tensor([[True, True]] * 6 + [[True, False]] * 2),
        tokens=torch.from_numpy(rng.integers(4, 500, (B, 9))),
        token_mask=torch.arange(9)[None] < lengths[:, None],
    )
    with torch.no_grad():
        prefix = model.encode_prefix(inputs)
    shape = (B, model.config.horizon, model.config.action_dim)
    noise = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
    sde_noise = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))[:, None]
    index = torch.tensor([0, 1, 2, 3, 0, 1, 2, 0])[:, None]
    sample = draw(model, prefix, noise, index, sde_noise)
    return Case(model, inputs, prefix, noise, index, sde_noise, sample)


def recompute(
    case: Case,
    prefix: PrefixCache | None = None,
    rows: Tensor | None = None,
    *,
    index: Tensor | None = None,
    level: float = LEVEL,
    executed: Tensor | None = None,
    counted_dims: Sequence[int] = range(A),
    **noise: Any,
) -> Tensor:
    rows = torch.arange(B) if rows is None else rows
    return chunk_log_prob(
        case.model,
        case.prefix.rows(rows) if prefix is None else prefix,
        x_t=case.sample.x_t[rows],
        x_next=case.sample.x_next[rows],
        sde_index=case.index[rows] if index is None else index,
        denoise_steps=K,
        noise_level=level,
        executed_mask=torch.ones(len(rows), C, dtype=torch.bool) if executed is None else executed,
        counted_dims=counted_dims,
        **noise,
    )


def test_same_batch_is_bit_equal(case: Case) -> None:
    with torch.no_grad():
        assert torch.equal(recompute(case), case.sample.log_prob)
    with_gradient = recompute(case)
    assert with_gradient.requires_grad
    assert torch.equal(with_gradient.detach(), case.sample.log_prob)


def test_one_by_one(case: Case) -> None:
    with torch.no_grad():
        alone = torch.cat([recompute(case, rows=torch.tensor([row])) for row in range(B)])
    torch.testing.assert_close(alone, case.sample.log_prob, rtol=0, atol=1e-5)


def test_in_another_order(case: Case) -> None:
    order = torch.tensor([5, 2, 7, 0, 1, 6, 3, 4])
    with torch.no_grad():
        torch.testing.assert_close(recompute(case, rows=order), case.sample.log_prob[order], rtol=0, atol=1e-5)


def test_with_a_fresh_prefix(case: Case) -> None:
    fresh = case.model.encode_prefix(case.inputs)
    assert fresh.keys.requires_grad
    torch.testing.assert_close(recompute(case, fresh).detach(), case.sample.log_prob, rtol=0, atol=1e-5)


def test_with_prefixes_encoded_one_by_one_and_padded(case: Case) -> None:
    with torch.no_grad():
        parts = [case.model.encode_prefix(case.inputs.rows(torch.tensor([row]))) for row in range(B)]
        joined = PrefixCache.concat(parts)
        torch.testing.assert_close(recompute(case, joined), case.sample.log_prob, rtol=0, atol=1e-5)


def test_batch_of_one_samples_the_same(case: Case) -> None:
    for row in range(B):
        one = torch.tensor([row])
        alone = draw(case.model, case.prefix.rows(one), case.noise[one], case.index[one], case.sde_noise[one])
        torch.testing.assert_close(alone.actions, case.sample.actions[one], rtol=0, atol=1e-5)
        torch.testing.assert_close(alone.log_prob, case.sample.log_prob[one], rtol=0, atol=1e-4)


def test_negative_twins(case: Case) -> None:
    """Another noise level, another index, another prefix or other weights give another log-prob."""
    with torch.no_grad():
        recorded = case.sample.log_prob
        assert float((recompute(case, level=0.4) - recorded).abs().min()) > 0.01
        assert float((recompute(case, index=(case.index + 1) % K) - recorded).abs().min()) > 0.01
        swapped = case.prefix.rows(torch.arange(B).roll(1))
        assert float((recompute(case, swapped) - recorded).abs().max()) > 0.01
        case.model.action_out.bias += 0.05
        try:
            assert float((recompute(case) - recorded).abs().max()) > 0.01
        finally:
            case.model.action_out.bias -= 0.05


def test_only_executed_steps_and_real_dims_count(case: Case) -> None:
    executed = torch.arange(C)[None] < torch.tensor([5, 1, 2, 3, 4, 5, 0, 1])[:, None]
    with torch.no_grad():
        ours = recompute(case, executed=executed)
        std = flow.sde_coefficients(K, LEVEL)[case.index[:, 0], 2][:, None, None]
        terms = torch.distributions.Normal(0.0, std).log_prob(case.sde_noise[:, 0, :C, :A] * std).sum(2)
        torch.testing.assert_close(ours, (terms * executed).sum(1, keepdim=True), rtol=0, atol=1e-3)
        assert ours[6] == 0.0
        assert float((ours - case.sample.log_prob).abs()[1:5].min()) > 0.01
        wider = recompute(case, counted_dims=range(A + 1))
        assert float((wider - case.sample.log_prob).abs().min()) > 1e-3


def test_dims_that_do_not_count_leave_the_density_of_the_others(case: Case) -> None:
    with torch.no_grad():
        each = [recompute(case, counted_dims=(dim,)) for dim in range(A)]
        torch.testing.assert_close(sum(each), case.sample.log_prob, rtol=0, atol=1e-4)
        torch.testing.assert_close(recompute(case, counted_dims=(0, A - 1)), each[0] + each[-1], rtol=0, atol=1e-5)


def test_log_prob_by_hand(case: Case) -> None:
    """The recorded density is that of a normal distribution at the noise that was drawn."""
    for row in range(B):
        k = int(case.index[row])
        std = float(flow.sde_coefficients(K, LEVEL)[k, 2])
        z = case.sde_noise[row, 0, :C, :A]
        expected = torch.distributions.Normal(0.0, std).log_prob(z * std).sum()
        assert float(case.sample.log_prob[row]) == pytest.approx(float(expected), abs=1e-3)


def test_transition_is_where_it_is_said_to_be(case: Case) -> None:
    """Continuing from ``x_next`` with Euler steps gives the actions; a first step starts at the noise."""
    first = case.index[:, 0] == 0
    assert torch.equal(case.sample.x_t[first, 0], case.noise[first])
    last = case.index[:, 0] == K - 1
    assert torch.equal(case.sample.x_next[last, 0], case.sample.actions[last])
    row = torch.tensor([2])
    x = case.sample.x_next[row, 0]
    with torch.no_grad():
        for k in range(int(case.index[row]) + 1, K):
            x = flow.ode_step(x, case.model.velocity(case.prefix.rows(row), x, flow.time_grid(K)[k : k + 1]), K)
    torch.testing.assert_close(x, case.sample.actions[row], rtol=0, atol=1e-5)


def test_evaluation_has_no_noise(case: Case) -> None:
    evaluation = draw(case.model, case.prefix, case.noise, None, None)
    again = draw(case.model, case.prefix, case.noise, None, None, level=0.0)
    assert torch.equal(evaluation.actions, again.actions)
    assert evaluation.sde_index.shape == evaluation.log_prob.shape == (B, 0)
    assert evaluation.x_t.shape == (B, 0, *case.noise.shape[1:])
    assert float((evaluation.actions - case.sample.actions).abs().max()) > 0.1


def test_noise_level_zero_is_evaluation(case: Case) -> None:
    quiet = draw(case.model, case.prefix, case.noise, case.index, case.sde_noise, level=0.0)
    evaluation = draw(case.model, case.prefix, case.noise, None, None)
    assert torch.equal(quiet.actions, evaluation.actions)
    assert not quiet.log_prob.any()


def test_gradient_reaches_expert_and_prefix(case: Case) -> None:
    case.model.zero_grad()
    recompute(case, case.model.encode_prefix(case.inputs)).sum().backward()
    missing = [name for name, p in case.model.named_parameters() if p.grad is None or not p.grad.any()]
    case.model.zero_grad()
    assert missing == []


def test_gradient_is_bit_equal_whatever_the_threads_do(case: Case) -> None:
    """Many rows have a time in common, so the gradient of its modulation is a sum over rows."""
    rows, threads = torch.arange(B).repeat(32), torch.get_num_threads()
    weights = list(case.model.expert.parameters())
    torch.set_num_threads(4)
    try:
        gradients = [torch.autograd.grad(recompute(case, rows=rows).sum(), weights) for _ in range(20)]
    finally:
        torch.set_num_threads(threads)
    for others in gradients[1:]:
        assert all(torch.equal(*pair) for pair in zip(gradients[0], others, strict=True))


@pytest.mark.parametrize("noise", [{"correlation": 0.8}, {"modes": 2}, {"correlation": 0.8, "modes": 1}])
def test_slow_movements(case: Case, noise: dict[str, Any]) -> None:
    """Correlated noise is what is added; log-probs recomputed are those recorded: of the noise's movements."""
    ours = replace(case, sample=draw(case.model, case.prefix, case.noise, case.index, case.sde_noise, **noise))
    with torch.no_grad():
        assert torch.equal(recompute(ours, **noise), ours.sample.log_prob)
        assert float((recompute(ours) - ours.sample.log_prob).abs().min()) > 0.01
        executed = torch.arange(C)[None] < torch.tensor([5, 1, 2, 3, 4, 5, 0, 1])[:, None]
        fewer = recompute(ours, executed=executed, **noise)
    assert fewer[6] == 0
    assert torch.equal(fewer[[0, 5]], ours.sample.log_prob[[0, 5]])
    std = flow.sde_coefficients(K, LEVEL)[case.index[:, 0], 2][:, None, None]
    added = std * correlated(case.sde_noise[:, 0], noise.get("correlation", 0.0))
    settings = {"correlation": 0.0, "modes": 0} | noise
    expected = movement_log_prob(
        added[:, :C, :A], 0 * added[:, :C, :A], std, std.log(), torch.full((B,), C), **settings
    )
    torch.testing.assert_close(ours.sample.log_prob[:, 0], expected, rtol=0, atol=2e-3)
    same = torch.equal(ours.sample.actions, case.sample.actions)
    assert same == ("correlation" not in noise)


STEPS = {
    1: [[0], [1], [2], [3], [0], [1], [2], [0]],
    2: [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3], [0, 1], [1, 3]],
    3: [[0, 1, 2], [0, 1, 3], [0, 2, 3], [1, 2, 3], [0, 1, 2], [0, 2, 3], [1, 2, 3], [0, 1, 3]],
    4: [[0, 1, 2, 3]] * B,
}
"""Stochastic denoise steps of B samples for M = 1 to K = 4."""


def several(case: Case, count: int, level: float = LEVEL) -> Case:
    """The case with M stochastic steps per sample."""
    rng = np.random.Generator(np.random.Philox(key=11))
    shape = (B, count, *case.noise.shape[1:])
    sde_noise = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
    index = torch.tensor(STEPS[count])
    sample = draw(case.model, case.prefix, case.noise, index, sde_noise, level)
    return replace(case, index=index, sde_noise=sde_noise, sample=sample)


@pytest.mark.parametrize("count", STEPS)
def test_several_steps_are_bit_equal_when_recomputed(case: Case, count: int) -> None:
    ours = several(case, count)
    assert ours.sample.log_prob.shape == (B, count)
    with torch.no_grad():
        assert torch.equal(recompute(ours), ours.sample.log_prob)
        alone = torch.cat([recompute(ours, rows=torch.tensor([row])) for row in range(B)])
        torch.testing.assert_close(alone, ours.sample.log_prob, rtol=0, atol=1e-5)
        swapped = recompute(ours, index=(ours.index + 1) % K)
    assert float((swapped - ours.sample.log_prob).abs().min()) > 0.01


@pytest.mark.parametrize("count", STEPS)
def test_log_probs_of_several_steps_by_hand(case: Case, count: int) -> None:
    """Each is the density of the noise that was drawn for it, with the standard deviation of its own step."""
    ours = several(case, count)
    for row in range(B):
        for m, k in enumerate(STEPS[count][row]):
            std = float(flow.sde_coefficients(K, LEVEL)[k, 2])
            z = ours.sde_noise[row, m, :C, :A]
            terms = torch.distributions.Normal(0.0, std).log_prob(z * std).sum(1)
            assert float(ours.sample.log_prob[row, m]) == pytest.approx(float(terms.sum()), abs=1e-3)


@pytest.mark.parametrize("count", STEPS)
def test_several_steps_by_hand(case: Case, count: int) -> None:
    """A plain loop over the grid: a stochastic step adds its own noise, the others are Euler steps."""
    ours = several(case, count)
    for row in range(B):
        one, steps = torch.tensor([row]), STEPS[count][row]
        x = case.noise[one]
        for k in range(K):
            with torch.no_grad():
                v = case.model.velocity(case.prefix.rows(one), x, flow.time_grid(K)[k : k + 1])
            if k in steps:
                m = steps.index(k)
                torch.testing.assert_close(ours.sample.x_t[one, m], x, rtol=0, atol=1e-5)
                mean, std, _ = flow.sde_moments(x, v, torch.tensor([k]), K, LEVEL)
                x = mean + std * ours.sde_noise[one, m]
                torch.testing.assert_close(ours.sample.x_next[one, m], x, rtol=0, atol=1e-5)
            else:
                x = flow.ode_step(x, v, K)
        torch.testing.assert_close(ours.sample.actions[one], x, rtol=0, atol=1e-5)


def test_each_stochastic_step_has_noise_of_its_own(case: Case) -> None:
    """Other noise for the second of three steps: what comes before it stays bit for bit, what follows moves."""
    ours = several(case, 3)
    noise = ours.sde_noise.clone()
    noise[:, 1] += 0.5
    other = draw(case.model, case.prefix, case.noise, ours.index, noise)
    for name in ("x_t", "x_next", "log_prob"):
        assert torch.equal(getattr(other, name)[:, 0], getattr(ours.sample, name)[:, 0])
    assert torch.equal(other.x_t[:, 1], ours.sample.x_t[:, 1])
    assert float((other.x_next[:, 1] - ours.sample.x_next[:, 1]).abs().amin()) > 0.01
    assert float((other.x_t[:, 2] - ours.sample.x_t[:, 2]).abs().amax((1, 2)).min()) > 0.01
    swapped = draw(case.model, case.prefix, case.noise, ours.index, ours.sde_noise.flip(1))
    assert float((swapped.x_next[:, 0] - ours.sample.x_next[:, 0]).abs().amax((1, 2)).min()) > 0.1


def test_one_of_several_steps_equals_that_step_alone(case: Case) -> None:
    """Up to the first stochastic step of two, nothing differs from a single one at the same place."""
    ours = several(case, 2)
    single = draw(case.model, case.prefix, case.noise, ours.index[:, :1], ours.sde_noise[:, :1])
    for name in ("x_t", "x_next", "log_prob"):
        assert torch.equal(getattr(single, name)[:, 0], getattr(ours.sample, name)[:, 0])
    assert not torch.equal(single.actions, ours.sample.actions)


@pytest.mark.parametrize("count", STEPS)
def test_without_noise_several_steps_are_evaluation(case: Case, count: int) -> None:
    quiet = several(case, count, level=0.0)
    evaluation = draw(case.model, case.prefix, case.noise, None, None)
    assert torch.equal(quiet.sample.actions, evaluation.actions)
    assert not quiet.sample.log_prob.any()
    assert not torch.equal(several(case, count).sample.actions, evaluation.actions)


class GaussianFlow:
    """The exact velocity of actions N(centre, spread^2), alike in all dims, with what the sampler asks of a model."""

    centre, spread = 1.5, 0.4

    def modulation_table(self, denoise_steps: int) -> Tensor:
        return flow.time_grid(denoise_steps)[:-1, None]

    def denoiser(self, prefix: None, x: Tensor, modulation: Tensor) -> Velocity:
        return self.velocity

    def velocity(self, x: Tensor, modulation: Tensor) -> Tensor:
        t = modulation[:, :, None]
        variance = t**2 + (1 - t) ** 2 * self.spread**2
        slope = (t - (1 - t) * self.spread**2) / variance
        return -self.centre + slope * (x - (1 - t) * self.centre)


def gaussian_samples(steps: int, level: float, noise_factor: float = 1.0) -> Tensor:
    """50,000 actions, every denoise step stochastic; computed in double precision."""
    rng = np.random.Generator(np.random.Philox(key=5))
    rows, shape = 500, (10, 10)
    noise = torch.from_numpy(rng.standard_normal((rows, *shape)))
    sde_noise = noise_factor * torch.from_numpy(rng.standard_normal((rows, steps, *shape)))
    sample = sample_chunk(
        GaussianFlow(),  # type: ignore[arg-type]
        None,  # type: ignore[arg-type]
        initial_noise=noise,
        denoise_steps=steps,
        noise_level=level,
        sde_index=torch.arange(steps).expand(rows, steps),
        sde_noise=sde_noise,
        executed_steps=1,
        counted_dims=range(1),
    )
    return sample.actions


def test_all_steps_stochastic_keep_a_gaussian() -> None:
    """Mean and variance of 50,000 samples: standard errors 0.002 and 0.001, and the error of 60 Euler steps."""
    actions = gaussian_samples(60, 0.5)
    assert float(actions.mean()) == pytest.approx(1.5, abs=0.02)
    assert float(actions.var()) == pytest.approx(0.16, abs=0.01)
    wrong = gaussian_samples(60, 0.5, noise_factor=1.3)
    assert float(wrong.var()) > 0.18
