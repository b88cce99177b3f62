"""Adapters of the VLM: the identity at first, of their rank per projection, merged wherever they are saved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from toy import toy_policy
from z1.errors import CheckpointError
from z1.policy.checkpoints.load import load_policy
from z1.policy.checkpoints.save import save_policy
from z1.policy.lora import AdaptedLinear, adapted, add_adapters, is_adapter, merged
from z1.policy.pi05 import ModelInput
from z1.policy.policy import Policy
from z1.policy.trainable import is_expert, parameter_groups
from z1.seeding import Seeds
from z1.train.checkpoint import ADAPTERS_FILE, TrainingState, load_checkpoint, save_checkpoint
from z1.train.trained import TrainedWeights, adapters_of

RANK, ALPHA = 4, 8.0
STATE = TrainingState(step=1, best=None, best_step=-1, totals={})


def adapted_policy(seed: int = 0) -> Policy:
    policy = toy_policy(seed)
    add_adapters(policy.model.vlm, rank=RANK, alpha=ALPHA, seeds=Seeds(3))
    return policy


def stir(policy: Policy) -> None:
    """Values for every B."""
    generator = torch.Generator().manual_seed(4)
    for part in adapted(policy.model).values():
        part.lora_b.data.copy_(0.1 * torch.randn(part.lora_b.shape, generator=generator))


def velocity(policy: Policy) -> Tensor:
    rng = np.random.Generator(np.random.Philox(key=5))
    size = policy.config.image_size
    inputs = ModelInput(
        images=torch.from_numpy(rng.integers(0, 256, (3, 1, 3, size, size), dtype=np.uint8)),
        image_mask=torch.ones(3, 1, dtype=torch.bool),
        tokens=torch.from_numpy(rng.integers(3, 200, (3, 12))),
        token_mask=torch.arange(12) < torch.tensor([12, 7, 9])[:, None],
    )
    x = torch.from_numpy(rng.standard_normal((3, policy.config.horizon, policy.config.action_dim), dtype=np.float32))
    with torch.no_grad():
        return policy.model.velocity(policy.model.encode_prefix(inputs), x, torch.tensor([0.9, 0.2, 0.5]))


def test_at_first_they_are_the_identity() -> None:
    plain, ours = toy_policy(), adapted_policy()
    assert torch.equal(velocity(ours), velocity(plain))
    stir(ours)
    assert not torch.equal(velocity(ours), velocity(plain))


def test_every_projection_of_every_language_layer_has_one() -> None:
    policy = adapted_policy()
    assert sorted(adapted(policy.model)) == [
        "vlm.last.kv",
        "vlm.layers.0.attention.out",
        "vlm.layers.0.attention.qkv",
        "vlm.layers.0.mlp.down",
        "vlm.layers.0.mlp.gate_up",
    ]
    names = {name for name, _ in policy.model.named_parameters() if not is_adapter(name)}
    assert names == {name for name, _ in toy_policy().model.named_parameters()}, "names of the others stay"


def test_stacked_projections_have_updates_of_their_own() -> None:
    """Two parts of 2 and 1 outputs, rank 1, scale 3: W = 0, A = [1, 0] and [0, 1], B = [2, 5] and [7]."""
    base = nn.Linear(2, 3, bias=False)
    base.weight.data.zero_()
    part = AdaptedLinear(base, (2, 1), rank=1, alpha=3.0, rng=Seeds(0).rng("x"))
    part.lora_a.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    part.lora_b.data = torch.tensor([[2.0], [5.0], [7.0]])
    assert part(torch.tensor([10.0, 100.0])).tolist() == [60.0, 150.0, 2100.0]
    assert part.merged(part.lora_a, part.lora_b).tolist() == [[6.0, 0.0], [15.0, 0.0], [0.0, 21.0]]


def test_the_update_has_its_rank() -> None:
    policy = adapted_policy()
    stir(policy)
    plain = dict(toy_policy().model.named_parameters())
    weights = merged(policy.model, policy.model.state_dict())
    change = weights["vlm.layers.0.attention.out.weight"] - plain["vlm.layers.0.attention.out.weight"]
    assert int(torch.linalg.matrix_rank(change, atol=1e-5)) == RANK
    both = weights["vlm.layers.0.mlp.gate_up.weight"] - plain["vlm.layers.0.mlp.gate_up.weight"]
    assert [int(torch.linalg.matrix_rank(half, atol=1e-5)) for half in both.chunk(2)] == [RANK, RANK]


def test_merged_weights_do_the_same() -> None:
    ours, plain = adapted_policy(), toy_policy()
    stir(ours)
    before = velocity(plain)
    plain.model.load_state_dict(merged(ours.model, ours.model.state_dict()))
    torch.testing.assert_close(velocity(plain), velocity(ours), rtol=1e-5, atol=1e-6)
    assert float((velocity(plain) - before).abs().max()) > 1e-3


def test_the_mode_trains_adapters_and_expert_only() -> None:
    policy = adapted_policy()
    expert, vlm = parameter_groups(policy.model, "lora", learning_rate=1e-3, vlm_learning_rate=1e-4)
    trained = {id(p): group["lr"] for group in (expert, vlm) for p in group["params"]}
    for name, parameter in policy.model.named_parameters():
        expected = 1e-3 if is_expert(name) else 1e-4 if is_adapter(name) else None
        assert trained.get(id(parameter)) == expected, name
        assert parameter.requires_grad == (expected is not None), name


def test_their_gradient_is_that_of_the_merged_matrix() -> None:
    """dL/dB = scale dL/dW A^T and dL/dA = scale B^T dL/dW, with dL/dW from a plain layer."""
    base = nn.Linear(6, 4, bias=False)
    plain = nn.Linear(6, 4, bias=False)
    part = AdaptedLinear(base, (4,), rank=2, alpha=6.0, rng=Seeds(0).rng("x"))
    part.lora_b.data = torch.randn(4, 2, generator=torch.Generator().manual_seed(1))
    plain.weight.data = part.merged(part.lora_a, part.lora_b)
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(2))
    for layer in (part, plain):
        layer(x).square().sum().backward()
    assert plain.weight.grad is not None
    torch.testing.assert_close(part.lora_b.grad, 3.0 * plain.weight.grad @ part.lora_a.detach().T)
    torch.testing.assert_close(part.lora_a.grad, 3.0 * part.lora_b.detach().T @ plain.weight.grad)


@pytest.mark.parametrize("layout", ["z1", "lerobot", "openpi"])
def test_every_saved_policy_is_merged(layout: str, tmp_path: Path) -> None:
    policy = adapted_policy()
    stir(policy)
    save_policy(policy, tmp_path / "saved", layout)  # type: ignore[arg-type]
    loaded = load_policy(tmp_path / "saved")
    assert not adapted(loaded.model)
    torch.testing.assert_close(velocity(loaded), velocity(policy), rtol=1e-5, atol=1e-6)


def training(policy: Policy, precision: str) -> tuple[TrainedWeights, torch.optim.AdamW]:
    trained = TrainedWeights(
        policy.model,
        "lora",
        precision=precision,  # type: ignore[arg-type]
        learning_rate=3e-2,
        vlm_learning_rate=3e-2,
        adapters=adapters_of("lora", RANK, ALPHA, Seeds(3)),
    )
    return trained, torch.optim.AdamW(trained.groups)


def train(policy: Policy, trained: TrainedWeights, optimizer: torch.optim.AdamW, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for tensor in trained.by_name.values():
        tensor.grad = torch.randn(tensor.shape, generator=generator)
    optimizer.step()
    trained.publish()
    optimizer.zero_grad(set_to_none=True)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_checkpoint_resumes_exactly_and_its_policy_is_merged(precision: str, tmp_path: Path) -> None:
    policy = toy_policy()
    frozen = {n: t.clone() for n, t in policy.model.state_dict().items() if not is_expert(n)}
    trained, optimizer = training(policy, precision)
    train(policy, trained, optimizer, 1)
    save_checkpoint(tmp_path / "last", policy, trained, optimizer, STATE)
    saved = Policy.load(tmp_path / "last" / "policy")
    moved = {name for name, tensor in saved.model.state_dict().items() if name in frozen}
    moved = {name for name in moved if float((saved.model.state_dict()[name] - frozen[name]).abs().max()) > 1e-2}
    assert moved == {f"{name}.weight" for name in adapted(policy.model)}
    if precision == "float32":
        torch.testing.assert_close(velocity(saved), velocity(policy), rtol=1e-5, atol=1e-6)

    others, again = training(saved, precision)  # as a resumed run does, from the merged weights
    load_checkpoint(tmp_path / "last", saved, others, again)
    for _ in range(2):
        ours, theirs = policy.model.state_dict(), saved.model.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(theirs[name], tensor) for name, tensor in ours.items())
        assert all(torch.equal(others.by_name[name], tensor) for name, tensor in trained.by_name.items())
        train(policy, trained, optimizer, 2)
        train(saved, others, again, 2)


def test_a_checkpoint_without_its_adapters_is_refused(tmp_path: Path) -> None:
    policy = toy_policy()
    trained, optimizer = training(policy, "float32")
    save_checkpoint(tmp_path / "last", policy, trained, optimizer, STATE)
    adapters = tmp_path / "last" / ADAPTERS_FILE
    content = adapters.read_bytes()
    adapters.unlink()
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path / "last", policy, trained, optimizer)
    folder = tmp_path / "last" / "policy"
    assert str(caught.value) == f"the adapters beside {folder} are not those of this run; use an older checkpoint"
    adapters.write_bytes(content[:100])
    with pytest.raises(CheckpointError, match=r"adapters tensors in .* cannot be read: .*; use an older checkpoint"):
        load_checkpoint(tmp_path / "last", policy, trained, optimizer)
