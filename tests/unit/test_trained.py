"""What trains: float32 masters under bfloat16 compute, what is frozen and what is never rounded."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from toy import TASK, ToyPool, toy_policy
from z1.config import ActingConfig, Precision, RolloutConfig, UpdateConfig
from z1.policy.policy import Policy
from z1.policy.prefix_cache import PrefixStore
from z1.policy.weights import parameter_dtype
from z1.rollout.collector import Collector, Exploration
from z1.rollout.groups import TrainingBatch, build_training_batch
from z1.rollout.tree import BranchPlan
from z1.seeding import Seeds
from z1.train.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from z1.train.learner import Learner
from z1.train.objectives import make_objective
from z1.train.score import advantage_weights_of
from z1.train.trained import TrainedWeights, settled_precision
from z1.types import Scene

ACTING = ActingConfig(denoise_steps=4, chunk_length=4)
ROLLOUT = RolloutConfig(groups=5, group_size=4)


def trained_of(policy: Policy, mode: str = "expert", precision: Precision = "bfloat16") -> TrainedWeights:
    return TrainedWeights(policy.model, mode, precision=precision, learning_rate=5e-6, vlm_learning_rate=5e-6)


def optimizer_of(trained: TrainedWeights) -> torch.optim.AdamW:
    return torch.optim.AdamW(trained.groups, betas=(0.9, 0.95), weight_decay=0.0)


def learner_of(precision: Precision = "bfloat16", **settings: Any) -> Learner:
    update = UpdateConfig(**{"learning_rate": 1e-3, "epochs": 2, "target_kl": 1e9, **settings})
    objective = make_objective(update, ACTING, ROLLOUT, counted_dims=range(2), seeds=Seeds(1))
    return Learner(toy_policy(), objective, update, Seeds(1), precision=precision)


def batch_of(learner: Learner) -> TrainingBatch:
    """40 chunks that the learner's network has acted."""
    pool = ToyPool(outcome=lambda scene, member: (scene.seed + member) % 3 == 0)
    trains_vlm = any(group["name"] == "vlm" for group in learner.optimizer.param_groups)
    store = None if trains_vlm else PrefixStore(learner.policy.model)
    rollouts = Collector(pool, learner.policy, ACTING, live_members=12, store=store).collect(
        (Scene.of_split(TASK, "train", index) for index in itertools.count()),
        Seeds(1),
        ("iteration", 0),
        plan=lambda number: BranchPlan.flat(4),
        groups=5,
        explore=Exploration(noise_level=0.5, exclude_last_step=True),
    )
    weights = [advantage_weights_of(group, ROLLOUT).spread(group.segment_lengths) for group in rollouts.kept]
    batch = build_training_batch(rollouts.kept, weights, rollouts.ticks, ACTING.chunk_length)
    assert batch is not None
    return batch


def push(trained: TrainedWeights, policy: Policy, optimizer: torch.optim.AdamW, steps: int) -> None:
    """Optimizer steps on a gradient of 1 for every weight that trains: AdamW moves each by its learning rate."""
    for _ in range(steps):
        sum(p.sum() for p in policy.model.parameters() if p.requires_grad).backward()  # type: ignore[union-attr]
        optimizer.step()
        trained.publish()
        optimizer.zero_grad(set_to_none=True)


@pytest.mark.parametrize("mode", ["expert", "joint", "joint_frozen_vision"])
def test_what_trains_is_float32_and_what_computes_is_not(mode: str) -> None:
    policy = toy_policy()
    before = {name: tensor.clone() for name, tensor in policy.model.state_dict().items()}
    trained = trained_of(policy, mode)
    for name, parameter in policy.model.named_parameters():
        assert parameter.dtype == parameter_dtype(name, torch.bfloat16), name
        assert (name in trained.by_name) == parameter.requires_grad, name
    assert all(tensor.dtype == torch.float32 for tensor in trained.by_name.values())
    for name, tensor in trained.tensors().items():
        if name in trained.by_name or tensor.dtype == torch.float32:
            assert torch.equal(tensor, before[name]), name
        else:
            assert torch.equal(tensor, before[name].bfloat16()), name
    held = {id(p) for group in trained.groups for p in group["params"]}
    assert held == {id(tensor) for tensor in trained.by_name.values()}


def test_float32_changes_nothing() -> None:
    policy = toy_policy()
    trained = trained_of(policy, "joint", "float32")
    for name, parameter in policy.model.named_parameters():
        assert trained.by_name[name] is parameter


def test_a_small_learning_rate_changes_the_masters_and_would_vanish_in_bfloat16() -> None:
    policy = toy_policy()
    trained = trained_of(policy)
    name = "expert.layers.0.mlp.down.weight"
    master, computes = trained.by_name[name], policy.model.get_parameter(name)
    first, rounded = master.clone(), computes.detach().clone()
    push(trained, policy, optimizer_of(trained), 1)
    torch.testing.assert_close(master, first - 5e-6, rtol=0, atol=1e-7)
    assert (master != first).all()
    assert float((computes != rounded).float().mean()) < 0.1, "most are nearer to their old neighbour still"
    push(trained, policy, optimizer_of(trained), 400)
    torch.testing.assert_close(computes.float(), first - 401 * 5e-6, rtol=2**-8, atol=1e-6)

    pure = torch.nn.Parameter(rounded.clone())
    optimizer = torch.optim.AdamW([pure], lr=5e-6, betas=(0.9, 0.95), weight_decay=0.0)
    for _ in range(401):
        pure.grad = torch.ones_like(pure)
        optimizer.step()
    assert float((pure != rounded).float().mean()) < 0.2, "the same steps in bfloat16 weights do nothing"
    assert float((computes != rounded).float().mean()) > 0.8


def test_gradients_of_microbatches_are_summed_in_float32() -> None:
    """1 + 256 times 2^-9: a sum in bfloat16 stays at 1."""
    policy = toy_policy()
    trained = trained_of(policy)
    name = "expert.layers.0.mlp.down.weight"
    computes, master = policy.model.get_parameter(name), trained.by_name[name]
    for scale in [1.0] + [2.0**-9] * 256:
        (computes.sum() * scale).backward()
        assert computes.grad is None, "it has gone to the master"
    assert master.grad is not None
    assert master.grad.dtype == torch.float32
    assert (master.grad == 1.5).all()
    naive = torch.ones((), dtype=torch.bfloat16)
    for _ in range(256):
        naive += torch.tensor(2.0**-9, dtype=torch.bfloat16)
    assert float(naive) == 1.0


def test_times_and_modulation_are_never_rounded() -> None:
    """What depends on t alone equals the float32 network's to the last bit, at times that bfloat16 does not have."""
    exact, rounded = toy_policy().model, toy_policy()
    weight = torch.randn(exact.expert.modulation.weight.shape, generator=torch.Generator().manual_seed(1))
    for model in (exact, rounded.model):
        model.expert.modulation.weight.data.copy_(weight)
    trained_of(rounded)
    t = torch.tensor([1.0, 0.9, 0.123456, 0.3])
    assert torch.equal(rounded.model.modulation(t), exact.modulation(t))
    assert not torch.equal(exact.modulation(t.bfloat16().float())[1:], exact.modulation(t)[1:])
    with pytest.raises(AssertionError, match="bfloat16"):
        rounded.model.modulation(t.bfloat16())


@pytest.mark.parametrize("mode", ["expert", "joint", "joint_frozen_vision"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_training_holds_counted(mode: str, precision: Precision) -> None:
    """4 bytes for a trained weight, its gradient and each of Adam's moments; what computes in bfloat16 is 2 more."""
    policy = toy_policy()
    trained = trained_of(policy, mode, precision)
    optimizer = optimizer_of(trained)
    sum(p.sum() for p in policy.model.parameters() if p.requires_grad).backward()  # type: ignore[union-attr]
    optimizer.step()
    held: dict[int, int] = {}
    weights = [*policy.model.parameters(), *trained.by_name.values()]
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    moments = [tensor for state in optimizer.state.values() for key, tensor in state.items() if key != "step"]
    for tensor in [*weights, *gradients, *moments]:
        held[tensor.data_ptr()] = tensor.nbytes
    expected = 0
    for name, parameter in policy.model.named_parameters():
        rounded = parameter_dtype(name, torch.bfloat16) == torch.bfloat16 and precision == "bfloat16"
        per_weight = 2 * rounded + (16 if parameter.requires_grad else 4 * (not rounded))
        expected += per_weight * parameter.numel()
    assert sum(held.values()) == expected


@pytest.mark.parametrize("mode", ["expert", "joint"])
@pytest.mark.parametrize("microbatch", [7, 256])
def test_the_first_ratio_is_exactly_one_in_bfloat16(mode: str, microbatch: int) -> None:
    learner = learner_of(mode=mode, microbatch=microbatch)
    batch = batch_of(learner)
    assert (batch.prefix.fetch().keys if batch.prefix else learner.prefix(batch).keys).dtype == torch.bfloat16
    stats = learner.update(batch, 0)
    assert stats is not None
    assert stats.first_ratio_max == 0.0
    assert stats.ratio_max > 0.0
    assert stats.optimizer_steps == 2


def test_without_publishing_the_network_would_stay_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative twin: the weights that compute move only because they get the masters."""
    learner = learner_of(weight_decay=0.0)
    monkeypatch.setattr(learner.trained, "publish", lambda: None)
    layers = {n: p.detach().clone() for n, p in learner.policy.model.named_parameters() if "layers" in n}
    learner.update(batch_of(learner), 0)
    for name, before in layers.items():
        assert torch.equal(learner.policy.model.get_parameter(name), before), name


def test_bfloat16_gradients_are_those_of_float32_up_to_its_noise() -> None:
    gradients = []
    for precision in ("float32", "bfloat16"):
        learner = learner_of(precision, grad_clip=1e9)
        batch = batch_of(learner)
        index = torch.arange(len(batch))
        learner.objective.begin(learner.policy.model, batch, [index], learner.prefix, ("test",))
        learner._backward(batch, index, ("test",))
        gradients.append({n: t.grad for n, t in learner.trained.by_name.items() if t.grad is not None})
    exact, rounded = gradients
    assert exact.keys() == rounded.keys()
    flat = [torch.cat([g[name].flatten() for name in exact]) for g in gradients]
    assert float(torch.nn.functional.cosine_similarity(*flat, dim=0)) > 0.98


def test_shortening_a_step_reaches_the_network() -> None:
    learner = learner_of(learning_rate=3e-2, target_kl=1e-3, shorten_last_step=True, epochs=3)
    stats = learner.update(batch_of(learner), 0)
    assert stats is not None
    assert 0 < stats.last_step_scale < 1
    for name, master in learner.trained.by_name.items():
        parameter = learner.policy.model.get_parameter(name)
        assert torch.equal(parameter, master.to(parameter.dtype)), name


def test_a_checkpoint_holds_the_masters(tmp_path: Path) -> None:
    def step(policy: Policy, trained: TrainedWeights, optimizer: torch.optim.AdamW) -> None:
        push(trained, policy, optimizer, 3)

    policy = toy_policy()
    trained = trained_of(policy)
    optimizer = optimizer_of(trained)
    step(policy, trained, optimizer)
    save_checkpoint(
        tmp_path / "last", policy, trained, optimizer, TrainingState(step=1, best=None, best_step=-1, totals={})
    )
    loaded = Policy.load(tmp_path / "last" / "policy")
    assert_same(dict(loaded.model.state_dict()), {n: t.float() for n, t in trained.tensors().items()})

    other = toy_policy(seed=9)
    others = trained_of(other)
    again = optimizer_of(others)
    load_checkpoint(tmp_path / "last", other, others, again)
    for once_more in (False, True):
        if once_more:
            step(policy, trained, optimizer)
            step(other, others, again)
        assert_same(others.tensors(), trained.tensors())
        assert_same(dict(other.model.state_dict()), dict(policy.model.state_dict()))


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name], tensor), name


def test_auto_is_settled_by_the_device() -> None:
    assert settled_precision("auto", torch.device("cpu")) == "float32"
    assert settled_precision("auto", torch.device("cuda")) == "bfloat16"
    assert settled_precision("bfloat16", torch.device("cpu")) == "bfloat16"
    assert settled_precision("float32", torch.device("cuda")) == "float32"
