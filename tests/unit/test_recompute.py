"""Activation checkpointing: the same gradients from fewer kept bytes, in each of the three networks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from toy import toy_policy
from z1.policy.config import PolicyConfig
from z1.policy.pi05 import ModelInput, Pi05

CONFIG = PolicyConfig.tiny(
    image_size=32,
    patch=8,
    width=32,
    depth=5,
    vision_width=32,
    vision_depth=4,
    expert_width=32,
    horizon=8,
    action_dim=4,
    max_tokens=16,
)
PARTS = ("vision", "vlm", "expert")


@pytest.fixture
def model() -> Pi05:
    return toy_policy(config=CONFIG).model


def inputs() -> ModelInput:
    rng = np.random.Generator(np.random.Philox(key=5))
    return ModelInput(
        images=torch.from_numpy(rng.integers(0, 256, (3, 1, 3, 32, 32), dtype=np.uint8)),
        image_mask=torch.ones(3, 1, dtype=torch.bool),
        tokens=torch.from_numpy(rng.integers(3, 200, (3, 16))),
        token_mask=torch.arange(16) < torch.tensor([16, 9, 12])[:, None],
    )


def loss_of(model: Pi05) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(3, 8, 4, generator=generator)
    velocity = model.velocity(model.encode_prefix(inputs()), x, torch.tensor([0.9, 0.4, 0.7]))
    return (velocity * torch.randn(3, 8, 4, generator=generator)).sum()


def kept_bytes(model: Pi05, compute: Callable[[Pi05], Tensor]) -> int:
    """Bytes that autograd keeps for the backward pass, each storage once, parameters not counted."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = compute(model)
        total = sum(kept.values())
    del result
    return total


def gradients(model: Pi05) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    loss_of(model).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_gradients_do_not_depend_on_it(model: Pi05) -> None:
    plain = gradients(model)
    model.recompute_activations(True)
    ours = gradients(model)
    assert ours.keys() == plain.keys()
    assert {part for part in PARTS if any(name.startswith(part) for name in plain)} == set(PARTS)
    for name, gradient in plain.items():
        assert torch.equal(ours[name], gradient), name
    model.recompute_activations(False)
    assert not any(getattr(model, part).recompute for part in PARTS)


@pytest.mark.parametrize("part", PARTS)
def test_each_network_keeps_less(part: str, model: Pi05) -> None:
    before = kept_bytes(model, loss_of)
    getattr(model, part).recompute = True
    after = kept_bytes(model, loss_of)
    assert after < before
    model.recompute_activations(True)
    assert kept_bytes(model, loss_of) < 0.25 * before


def test_gradients_reach_a_prefix_that_is_not_an_argument(model: Pi05) -> None:
    """The expert's layers read the VLM's keys and values from outside of what is passed to them."""
    model.expert.recompute = True
    ours = gradients(model)
    model.recompute_activations(False)
    assert torch.equal(ours["vlm.layers.0.attention.qkv.weight"], gradients(model)["vlm.layers.0.attention.qkv.weight"])


def test_nothing_is_wrapped_without_gradient(model: Pi05, monkeypatch: pytest.MonkeyPatch) -> None:
    from z1.policy import recompute

    monkeypatch.setattr(recompute, "checkpoint", lambda *arguments, **settings: pytest.fail("wrapped"))
    model.recompute_activations(True)
    with torch.no_grad():
        loss_of(model)
    with pytest.raises(pytest.fail.Exception, match="wrapped"):
        loss_of(model)
