"""Denoise steps recorded as CUDA graphs against eager ones. Needs a CUDA device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from z1.policy.config import PolicyConfig
from z1.policy.pi05 import ModelInput, Pi05, PrefixCache
from z1.policy.sampler import sample_chunk
from z1.policy.speed import SpeedSettings
from z1.policy.weights import parameter_dtype

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

CONFIG = PolicyConfig.tiny(image_size=32, patch=16, width=128, depth=4, expert_width=128, horizon=10)
B, K = 4, 5


def made(dtype: torch.dtype) -> Pi05:
    model = Pi05.initialised(CONFIG, np.random.Generator(np.random.Philox(key=1))).requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to("cuda", parameter_dtype(name, dtype))
    return model


def prefixes(model: Pi05, tokens: int, key: int) -> PrefixCache:
    rng = np.random.Generator(np.random.Philox(key=key))
    lengths = torch.arange(tokens - B + 1, tokens + 1)
    inputs = ModelInput(
        images=torch.from_numpy(rng.integers(0, 256, (B, 2, 3, 32, 32), dtype=np.uint8)),
        image_mask=torch.ones(B, 2, dtype=torch.bool),
        tokens=torch.from_numpy(rng.integers(4, 500, (B, tokens))),
        token_mask=torch.arange(tokens)[None] < lengths[:, None],
    )
    return model.encode_prefix(inputs.to("cuda"))


def actions(model: Pi05, prefix: PrefixCache, rows: int, key: int = 9) -> Tensor:
    rng = np.random.Generator(np.random.Philox(key=key))
    shape = (rows, CONFIG.horizon, CONFIG.action_dim)
    sample = sample_chunk(
        model,
        prefix,
        initial_noise=torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)).cuda(),
        denoise_steps=K,
        noise_level=0.0,
        sde_index=None,
        sde_noise=None,
        executed_steps=CONFIG.horizon,
        counted_dims=range(3),
    )
    return sample.actions


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [B, 4 * B])
def test_a_graph_is_the_eager_step(dtype: torch.dtype, rows: int) -> None:
    """For prefixes of several lengths, out of one recording, in any order; and for other weights in the same place."""
    model, tolerance = made(dtype), 1e-5 if dtype == torch.float32 else 0.05
    cases = [prefixes(model, tokens, key) for tokens, key in ((12, 1), (8, 2), (11, 3))]

    def compare() -> list[Tensor]:
        model.speed = SpeedSettings()
        eager = [actions(model, prefix, rows) for prefix in cases]
        model.speed = SpeedSettings(cuda_graph=True)
        for prefix, expected in [*zip(cases, eager, strict=True), (cases[0], eager[0])]:
            largest = float(expected.abs().max())
            torch.testing.assert_close(actions(model, prefix, rows), expected, rtol=0, atol=tolerance * largest)
        return eager

    first = compare()
    assert len(model._recorded) == 1
    model.expert.layers[0].mlp.down.weight.mul_(1.5)
    second = compare()
    assert len(model._recorded) == 1
    assert float((first[0] - second[0]).abs().max()) > 1e-3


def test_a_shared_prefix_needs_no_copies() -> None:
    """Sixteen members of one observation: peak memory grows by less than the copies of its keys and values."""
    model = made(torch.bfloat16)
    prefix = prefixes(model, 12, 1).rows(torch.tensor([B - 1], device="cuda"))
    long = PrefixCache(
        keys=prefix.keys.repeat(1, 1, 64, 1),
        values=prefix.values.repeat(1, 1, 64, 1),
        mask=prefix.mask.repeat(1, 64),
        full=False,
    )

    def peak(settings: SpeedSettings) -> int:
        model.speed = settings
        actions(model, long, 16)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        actions(model, long, 16)
        return torch.cuda.max_memory_allocated() - before

    assert peak(SpeedSettings(share_prefix=False)) > 15 * long.nbytes
    assert peak(SpeedSettings()) < peak(SpeedSettings(share_prefix=False)) - 10 * long.nbytes
