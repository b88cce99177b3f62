"""Training against LeRobot and openpi: the unreduced loss, every gradient, and LeRobot's own policy class."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from z1.policy import flow
from z1.policy.config import PolicyConfig
from z1.policy.pi05 import ModelInput, Pi05
from z1.policy.trainable import parameter_groups
from z1.policy.weights import to_foreign, unused_foreign_names

REAL_DIMS = 5
RIGHT_WRIST = 2


def unreduced_loss(model: Pi05, inputs: ModelInput, raw: dict[str, Tensor]) -> Tensor:
    """Squared error ``[B, H, D]`` at the references' noise and times."""
    x_t = flow.interpolate(raw["actions"], raw["noise"], raw["time"])
    velocity = model.velocity(model.encode_prefix(inputs), x_t, raw["time"])
    return (velocity - flow.target(raw["actions"], raw["noise"])).square()


def gradients(model: Pi05, config: PolicyConfig) -> dict[str, Tensor]:
    own = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return to_foreign(config, own)


def test_loss(
    model: Pi05, inputs: ModelInput, raw: dict[str, Tensor], lerobot: dict[str, Tensor], fixtures: Path
) -> None:
    loss = unreduced_loss(model, inputs, raw).detach()
    torch.testing.assert_close(loss, lerobot["train.loss"], rtol=2e-5, atol=2e-5)
    jax = load_file(fixtures / "outputs_jax_fp32.safetensors")["train.loss"]
    torch.testing.assert_close(loss, jax, rtol=5e-4, atol=5e-4)


def test_every_gradient(
    model: Pi05, config: PolicyConfig, inputs: ModelInput, raw: dict[str, Tensor], fixtures: Path
) -> None:
    unreduced_loss(model, inputs, raw).mean().backward()
    ours = gradients(model, config)
    theirs = {
        name.removeprefix("grad."): tensor for name, tensor in load_file(fixtures / "grads_fp32.safetensors").items()
    }
    unused = unused_foreign_names(config)
    for name in theirs.keys() & unused:
        assert float(theirs[name].abs().max()) == 0.0, name
    assert ours.keys() == theirs.keys() - unused
    for name, tensor in ours.items():
        largest = float(theirs[name].abs().max())
        assert float((tensor - theirs[name]).abs().max()) < 2e-5 * max(largest, 0.1), name


def test_expert_gradient_with_a_cached_prefix_is_that_of_the_joint_graph(
    model: Pi05, inputs: ModelInput, raw: dict[str, Tensor]
) -> None:
    unreduced_loss(model, inputs, raw).mean().backward()
    joint = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    parameter_groups(model, "expert", learning_rate=1e-3, vlm_learning_rate=1e-3)
    with torch.no_grad():
        cached = model.encode_prefix(inputs)
    x_t = flow.interpolate(raw["actions"], raw["noise"], raw["time"])
    error = model.velocity(cached, x_t, raw["time"]) - flow.target(raw["actions"], raw["noise"])
    error.square().mean().backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {name for name, p in model.named_parameters() if p.requires_grad}
    assert 0 < len(trained) < len(joint)
    for name, parameter in model.named_parameters():
        if name in trained:
            torch.testing.assert_close(parameter.grad, joint[name], rtol=1e-5, atol=1e-6)


def with_all_cameras(inputs: ModelInput, missing: Tensor | None = None) -> ModelInput:
    mask = torch.ones_like(inputs.image_mask)
    images = inputs.images.clone()
    if missing is not None:
        mask[:, RIGHT_WRIST] = False
        images[:, RIGHT_WRIST] = missing
    return ModelInput(images=images, image_mask=mask, tokens=inputs.tokens, token_mask=inputs.token_mask)


def test_lerobots_policy_class(
    model: Pi05, inputs: ModelInput, raw: dict[str, Tensor], lerobot: dict[str, Tensor], fixtures: Path
) -> None:
    policy = load_file(fixtures / "policy_level_lerobot.safetensors")
    loss = unreduced_loss(model, with_all_cameras(inputs), raw).detach()[..., :REAL_DIMS]
    torch.testing.assert_close(loss.mean()[None], policy["policy.loss_mean"], rtol=2e-5, atol=0)
    torch.testing.assert_close(loss.mean((1, 2)), policy["policy.loss_per_sample"], rtol=2e-5, atol=0)
    torch.testing.assert_close(loss.mean((0, 1)), policy["policy.loss_per_dim"], rtol=2e-5, atol=0)


@pytest.mark.parametrize("missing", [False, True])
def test_lerobots_action_chunk(
    model: Pi05, inputs: ModelInput, raw: dict[str, Tensor], lerobot: dict[str, Tensor], fixtures: Path, missing: bool
) -> None:
    policy = load_file(fixtures / "policy_level_lerobot.safetensors")
    with torch.no_grad():
        prefix = model.encode_prefix(with_all_cameras(inputs, policy["policy.missing.image2"] if missing else None))
        x = raw["noise"]
        for t in lerobot["sample.10.t"]:
            x = x - model.velocity(prefix, x, t) / 10
    name = "policy.action_chunk_missing_right_wrist" if missing else "policy.action_chunk"
    torch.testing.assert_close(x[..., :REAL_DIMS], policy[name], rtol=0, atol=2e-5)
