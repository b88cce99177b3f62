"""The update: exact first ratios, denominators, early stop, what trains, and what an objective keeps."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from toy import TASK, ToyPool, spread, toy_policy
from z1.config import ActingConfig, RolloutConfig, UpdateConfig
from z1.errors import ConfigError
from z1.policy.policy import Policy
from z1.policy.prefix_cache import PrefixStore
from z1.policy.trainable import is_expert
from z1.rollout.collector import Collector, Exploration
from z1.rollout.groups import TrainingBatch, build_training_batch
from z1.rollout.tree import BranchPlan
from z1.seeding import Seeds
from z1.train.learner import Learner
from z1.train.objectives import FlowRegression, make_objective
from z1.train.score import advantage_weights_of
from z1.types import Scene

ACTING = ActingConfig(denoise_steps=4, chunk_length=4)
ROLLOUT = RolloutConfig(groups=5, group_size=4)


def batch_of(policy: Policy, keep: str) -> TrainingBatch:
    """5 groups of 4 members with both outcomes: 40 chunks."""
    pool = ToyPool(outcome=lambda scene, member: (scene.seed + member) % 3 == 0)
    store = PrefixStore(policy.model) if keep == "prefix" else None
    rollouts = Collector(pool, policy, ACTING, live_members=12, store=store).collect(
        (Scene.of_split(TASK, "train", index) for index in itertools.count()),
        Seeds(1),
        ("iteration", 0),
        plan=lambda number: BranchPlan.flat(4),
        groups=5,
        explore=Exploration(noise_level=0.5, exclude_last_step=True),
    )
    weights = [advantage_weights_of(group, ROLLOUT) for group in rollouts.kept]
    batch = build_training_batch(rollouts.kept, spread(rollouts.kept, weights), rollouts.ticks, ACTING.chunk_length)
    assert batch is not None
    assert len(batch) == 40
    assert (batch.positive > 0).any()
    assert (batch.negative < 0).any()
    return batch


@pytest.fixture(scope="module")
def prefixes() -> TrainingBatch:
    return batch_of(toy_policy(), "prefix")


@pytest.fixture(scope="module")
def inputs() -> TrainingBatch:
    return batch_of(toy_policy(), "inputs")


def learner_of(**settings: Any) -> Learner:
    """A learner on the policy that acted."""
    policy = toy_policy()
    update = UpdateConfig(**{"learning_rate": 1e-3, "epochs": 1, "target_kl": 1e9, **settings})
    objective = make_objective(update, ACTING, ROLLOUT, counted_dims=range(2), seeds=Seeds(1))
    return Learner(policy, objective, update, Seeds(1))


def weights(learner: Learner) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in learner.policy.model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def gradient(learner: Learner, batch: TrainingBatch, index: Tensor) -> dict[str, Tensor]:
    """The gradient of one minibatch, not clipped."""
    micro = list(index.split(learner._update.microbatch))
    learner.objective.begin(learner.policy.model, batch, micro, learner.prefix, ("test",))
    learner._backward(batch, index, ("test",))
    found = {n: p.grad.clone() for n, p in learner.policy.model.named_parameters() if p.grad is not None}
    assert any(float(g.abs().max()) > 0 for g in found.values())
    return found


@pytest.mark.parametrize("minibatch", [0, 16])
@pytest.mark.parametrize("microbatch", [1, 7, 256])
@pytest.mark.parametrize("mode", ["expert", "joint", "joint_frozen_vision", "lora"])
def test_the_first_ratio_is_exactly_one(
    mode: str, microbatch: int, minibatch: int, prefixes: TrainingBatch, inputs: TrainingBatch
) -> None:
    learner = learner_of(mode=mode, microbatch=microbatch, minibatch=minibatch, epochs=2)
    stats = learner.update(prefixes if mode == "expert" else inputs, 0)
    assert stats is not None
    assert stats.first_ratio_max == 0.0
    assert stats.ratio_max > 0.0, "later ratios move"
    assert stats.acting_log_prob_gap < 1e-3
    assert (stats.optimizer_steps, stats.gradient_chunks) == ((6 if minibatch else 2), 80)


def test_the_gap_shows_weights_that_did_not_act(prefixes: TrainingBatch) -> None:
    learner = learner_of()
    with torch.no_grad():
        learner.policy.model.action_out.bias += 0.1
    stats = learner.update(prefixes, 0)
    assert stats is not None
    assert stats.acting_log_prob_gap > 1e-2
    assert stats.first_ratio_max == 0.0, "ratios start at 1 all the same"


@pytest.mark.parametrize("objective", ["grpo", "awfm"])
@pytest.mark.parametrize("mode", ["expert", "joint"])
def test_the_update_reaches_what_the_mode_trains(
    objective: str, mode: str, prefixes: TrainingBatch, inputs: TrainingBatch
) -> None:
    learner = learner_of(objective=objective, mode=mode)
    before = weights(learner)
    learner.update(prefixes if mode == "expert" else inputs, 0)
    moved = {name for name, tensor in weights(learner).items() if not torch.equal(tensor, before[name])}
    assert {is_expert(name) for name in moved} == ({True} if mode == "expert" else {True, False})
    if mode == "joint":
        assert any(name.startswith("vision.") for name in moved)


@pytest.mark.parametrize("mode", ["expert", "joint"])
def test_recomputed_activations_change_nothing(mode: str, prefixes: TrainingBatch, inputs: TrainingBatch) -> None:
    updated = []
    for recompute in (False, True):
        learner = learner_of(mode=mode, epochs=2, microbatch=13, recompute_activations=recompute)
        stats = learner.update(prefixes if mode == "expert" else inputs, 0)
        assert stats is not None
        assert stats.first_ratio_max == 0.0
        assert learner.policy.model.expert.recompute == recompute
        updated.append(weights(learner))
    assert same(*updated)


@pytest.mark.parametrize("mode", ["expert", "joint"])
def test_the_gradient_does_not_depend_on_the_microbatch(
    mode: str, prefixes: TrainingBatch, inputs: TrainingBatch
) -> None:
    batch = prefixes if mode == "expert" else inputs
    index = torch.arange(len(batch))
    whole = gradient(learner_of(mode=mode, grad_clip=1e9), batch, index)
    for microbatch in (1, 7, 39):
        parts = gradient(learner_of(mode=mode, grad_clip=1e9, microbatch=microbatch), batch, index)
        for name, value in whole.items():
            torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-6, msg=f"{name}, {microbatch}")


def test_the_gradient_of_the_batch_is_the_mean_of_its_minibatches(prefixes: TrainingBatch) -> None:
    """Every chunk weighs the same: 40 chunks in minibatches of 10, all denominators 10."""
    whole = gradient(learner_of(grad_clip=1e9), prefixes, torch.arange(40))
    parts = [gradient(learner_of(grad_clip=1e9), prefixes, index) for index in torch.arange(40).split(10)]
    for name, value in whole.items():
        mean = torch.stack([part[name] for part in parts]).mean(0)
        torch.testing.assert_close(mean, value, rtol=1e-4, atol=1e-6, msg=name)


def test_a_shared_chunk_counts_for_each_member(prefixes: TrainingBatch) -> None:
    """A row that stands for two members equals the row twice."""
    index = torch.arange(40)
    doubled = replace(
        prefixes, positive=2 * prefixes.positive, negative=2 * prefixes.negative, members=2 * prefixes.members
    )
    once = gradient(learner_of(grad_clip=1e9), doubled, index)
    twice = TrainingBatch.concat([prefixes, prefixes])
    twice_gradient = gradient(learner_of(grad_clip=1e9), twice, torch.arange(80))
    for name, value in once.items():
        torch.testing.assert_close(twice_gradient[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_a_large_gradient_is_clipped(prefixes: TrainingBatch) -> None:
    learner = learner_of(grad_clip=1e-3)
    found = gradient(learner, prefixes, torch.arange(40))
    norm = math.sqrt(sum(float(g.square().sum()) for g in found.values()))
    assert norm == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("objective", ["grpo", "awfm"])
def test_advantages_of_zero_move_nothing(objective: str, prefixes: TrainingBatch) -> None:
    """Not even by momentum or weight decay."""
    learner = learner_of(objective=objective, epochs=2, weight_decay=0.1, awfm_iterations=1)
    learner.update(prefixes, 0)
    before = weights(learner)
    zero = torch.zeros_like(prefixes.positive)
    stats = learner.update(replace(prefixes, positive=zero, negative=zero), 1)
    if objective == "awfm":
        assert stats is None
    else:
        assert stats is not None
        assert (stats.loss, stats.grad_norm, stats.optimizer_steps, stats.epochs_run) == (0.0, 0.0, 0, 2)
    assert same(weights(learner), before)


def test_the_early_stop_takes_no_further_step(prefixes: TrainingBatch) -> None:
    """The second pass sees a KL above the target: the weights are those after one step."""
    stopped = learner_of(epochs=4, target_kl=1e-9)
    stats = stopped.update(prefixes, 0)
    assert stats is not None
    assert (stats.epochs_run, stats.optimizer_steps, stats.gradient_chunks) == (2, 1, 80)
    assert stats.approx_kl > 1e-9
    once = learner_of(epochs=1)
    once.update(prefixes, 0)
    assert same(weights(stopped), weights(once))
    assert all(p.grad is None for p in stopped.policy.model.parameters())
    unlimited = learner_of(epochs=4)
    assert unlimited.update(prefixes, 0).optimizer_steps == 4  # type: ignore[union-attr]
    assert not same(weights(unlimited), weights(once))


def test_the_last_step_is_shortened_to_the_limit(prefixes: TrainingBatch) -> None:
    """Whatever the learning rate: the weights lie on the line of the last step, where the KL is about the target."""
    for learning_rate in (3e-3, 1e-2):
        whole = learner_of(epochs=2, target_kl=1e-3, learning_rate=learning_rate)
        start = weights(whole)
        far = whole.update(prefixes, 0)
        short = learner_of(epochs=2, target_kl=1e-3, learning_rate=learning_rate, shorten_last_step=True)
        near = short.update(prefixes, 0)
        assert far is not None
        assert near is not None
        assert far.approx_kl > 3e-3, "without it the step goes far beyond"
        assert 0.3e-3 < near.approx_kl < 3e-3
        assert (far.last_step_scale, near.optimizer_steps) == (1.0, 1)
        assert 0.0 < near.last_step_scale < 0.7
        ends = weights(whole)
        for name, tensor in weights(short).items():
            expected = torch.lerp(start[name].double(), ends[name].double(), near.last_step_scale)
            torch.testing.assert_close(tensor.double(), expected, rtol=1e-4, atol=1e-6)


def test_a_step_within_the_limit_is_left_whole(prefixes: TrainingBatch) -> None:
    plain, limited = learner_of(epochs=3), learner_of(epochs=3, shorten_last_step=True)
    plain.update(prefixes, 0)
    stats = limited.update(prefixes, 0)
    assert stats is not None
    assert stats.last_step_scale == 1.0
    assert same(weights(plain), weights(limited))


def test_the_early_stop_ends_all_minibatches(prefixes: TrainingBatch) -> None:
    stats = learner_of(epochs=4, minibatch=10, target_kl=1e-9).update(prefixes, 0)
    assert stats is not None
    assert (stats.epochs_run, stats.optimizer_steps, stats.gradient_chunks) == (1, 1, 20)


def test_minibatches_cover_every_chunk_once_in_a_new_order_each_epoch() -> None:
    learner = learner_of(minibatch=16)
    epochs = [learner._minibatches(40, 3, epoch) for epoch in range(2)]
    for parts in epochs:
        assert [len(part) for part in parts] == [14, 13, 13]
        assert sorted(torch.cat(parts).tolist()) == list(range(40))
    assert torch.cat(epochs[0]).tolist() != torch.cat(epochs[1]).tolist()
    again = learner_of(minibatch=16)._minibatches(40, 3, 0)
    assert torch.cat(again).tolist() == torch.cat(epochs[0]).tolist()


def test_the_learning_rate_warms_up(prefixes: TrainingBatch, inputs: TrainingBatch) -> None:
    learner = learner_of(mode="joint", learning_rate=1e-4, vlm_learning_rate=1e-5, warmup_iterations=4)
    rates = []
    for iteration in (0, 1, 3, 9):
        stats = learner.update(inputs, iteration)
        assert stats is not None
        rates.append((stats.learning_rate, learner.optimizer.param_groups[1]["lr"]))
    assert rates == [pytest.approx((f * 1e-4, f * 1e-5)) for f in (0.25, 0.5, 1.0, 1.0)]


@pytest.mark.parametrize("objective", ["grpo", "awfm"])
def test_an_update_that_diverges_is_refused_before_its_step(objective: str, prefixes: TrainingBatch) -> None:
    learner = learner_of(objective=objective)
    before = weights(learner)
    poisoned = replace(prefixes, positive=prefixes.positive * math.inf, negative=torch.zeros_like(prefixes.negative))
    if objective == "awfm":
        poisoned = replace(prefixes, actions=prefixes.actions * math.nan)
    with pytest.raises(ConfigError, match=r"^the update of iteration 5 diverged: loss .*nan, .*") as caught:
        learner.update(poisoned, 5)
    assert str(caught.value).endswith(
        "start a new run with a lower update.learning_rate (it is 0.001). The last checkpoint is sound."
    )
    assert same(weights(learner), before)


def awfm_of(learner: Learner) -> FlowRegression:
    assert isinstance(learner.objective, FlowRegression)
    return learner.objective


def test_awfm_trains_on_what_did_better_than_its_group(prefixes: TrainingBatch) -> None:
    learner = learner_of(objective="awfm")
    stats = learner.update(prefixes, 0)
    assert stats is not None
    assert stats.chunks == int((prefixes.positive > 0).sum()) < len(prefixes)
    assert (stats.first_ratio_max, stats.acting_log_prob_gap, stats.approx_kl) == (0.0, 0.0, 0.0)
    assert stats.loss > 0


def test_awfm_keeps_recent_iterations(prefixes: TrainingBatch) -> None:
    learner = learner_of(objective="awfm", awfm_iterations=2)
    count = int((prefixes.positive > 0).sum())
    chunks = [learner.update(prefixes, iteration).chunks for iteration in range(3)]  # type: ignore[union-attr]
    assert chunks == [count, 2 * count, 2 * count]
    state = {name: tensor.clone() for name, tensor in learner.objective.state().items()}
    other = learner_of(objective="awfm", awfm_iterations=2)
    assert prefixes.prefix is not None
    other.objective.load_state(state, prefixes.prefix.store)
    ours, theirs = awfm_of(learner)._recent, awfm_of(other)._recent
    assert len(ours) == len(theirs) == 2
    for mine, copy in zip(ours, theirs, strict=True):
        assert mine.tensors().keys() == copy.tensors().keys()
        assert all(torch.equal(tensor, copy.tensors()[name]) for name, tensor in mine.tensors().items())


def test_awfm_keeps_the_order_of_many_iterations(prefixes: TrainingBatch) -> None:
    """Names are numbers: the tenth stands behind the second."""
    learner = learner_of(objective="awfm", awfm_iterations=12)
    sizes = list(range(1, 13))
    for size in sizes:
        rows = prefixes.rows(torch.nonzero(prefixes.positive > 0).flatten()[:size])
        learner.objective.select(rows)
    other = learner_of(objective="awfm", awfm_iterations=12)
    assert prefixes.prefix is not None
    other.objective.load_state(learner.objective.state(), prefixes.prefix.store)
    assert [len(batch) for batch in awfm_of(other)._recent] == sizes


def test_awfm_draws_its_noise_per_microbatch(prefixes: TrainingBatch) -> None:
    """So the microbatch changes the draws, and with them the loss, by little."""
    losses = [learner_of(objective="awfm", microbatch=size).update(prefixes, 0).loss for size in (4, 256)]  # type: ignore[union-attr]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.5)
