"""Objectives: a shared chunk in one pass, several stochastic steps, and regressions that attract and repel."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from toy import TASK, ToyPool, spread, toy_policy
from z1.config import ActingConfig, RolloutConfig, UpdateConfig
from z1.policy.prefix_cache import PrefixStore
from z1.rollout.collector import Collector, Exploration
from z1.rollout.groups import RolloutGroup, Rollouts, TrainingBatch, build_training_batch
from z1.rollout.tree import BranchPlan, Segment, SegmentWeights
from z1.seeding import Seeds
from z1.train.learner import Learner
from z1.train.objectives import FlowRegression, Grpo, make_objective
from z1.train.score import advantage_weights_of, success_weights_of
from z1.types import Scene

ACTING = ActingConfig(denoise_steps=4, chunk_length=1)
ROLLOUT = RolloutConfig(groups=5, group_size=4, plan="tree", prefix=4)
ADDRESS = ("test",)


def collect(keep: str = "prefix", stochastic_steps: int = 1) -> Rollouts:
    """5 trees of 4 members with uneven ends and both outcomes."""
    pool = ToyPool(success_at=lambda scene, number: 2 + (5 * scene.seed + 3 * number) % 9)
    policy = toy_policy()
    store = PrefixStore(policy.model) if keep == "prefix" else None
    return Collector(pool, policy, ACTING, live_members=96, store=store).collect(
        (Scene.of_split(TASK, "train", index) for index in itertools.count()),
        Seeds(1),
        ("iteration", 0),
        plan=lambda number: BranchPlan.tree(4, 4),
        groups=5,
        explore=Exploration(noise_level=0.5, exclude_last_step=True, stochastic_steps=stochastic_steps),
        keep=lambda group: 0 < group.success.sum() < 4,
    )


@pytest.fixture(scope="module")
def rollouts() -> Rollouts:
    return collect()


def batch_of(rollouts: Rollouts) -> TrainingBatch:
    """One row per chunk."""
    weights = [advantage_weights_of(group, ROLLOUT) for group in rollouts.kept]
    batch = build_training_batch(rollouts.kept, spread(rollouts.kept, weights), rollouts.ticks, ACTING.chunk_length)
    assert batch is not None
    assert {1.0, 2.0} <= set(batch.members.tolist())
    both = (batch.positive > 0) & (batch.negative < 0)
    assert both.any(), "some chunks are shared by a success and a failure"
    return batch


def written_out(rollouts: Rollouts) -> TrainingBatch:
    """One row per chunk and member, with the member's own advantage: the definition."""
    groups, weights = [], []
    for group in rollouts.kept:
        returns = group.success.astype(float)
        advantages = (returns - returns.mean()) / (returns.std() + 1e-6)
        segments, own = [], []
        for segment in group.segments:
            for member in segment.members if len(segment.members) < 4 else ():
                copy = Segment(members=(member,), start=segment.start, length=segment.length, places=segment.places)
                segments.append(copy)
                own.append(advantages[member])
        groups.append(RolloutGroup(scene=group.scene, episodes=group.episodes, segments=tuple(segments)))
        values = np.array(own)
        weights.append(
            SegmentWeights(positive=values.clip(min=0), negative=values.clip(max=0), members=np.ones(len(own)))
        )
    batch = build_training_batch(tuple(groups), spread(tuple(groups), weights), rollouts.ticks, ACTING.chunk_length)
    assert batch is not None
    return batch


def learner_of(**settings: Any) -> Learner:
    """A learner on the policy that acted."""
    update = UpdateConfig(**{"learning_rate": 1e-3, "epochs": 1, "target_kl": 1e9, "grad_clip": 1e9, **settings})
    objective = make_objective(update, ACTING, ROLLOUT, counted_dims=range(2), seeds=Seeds(1))
    return Learner(toy_policy(), objective, update, Seeds(1))


def grpo_pass(batch: TrainingBatch, scale: float = 0.12, **settings: Any) -> tuple[float, dict[str, Tensor], int]:
    """Loss, gradients and number of clipped chunks under weights that have moved away from those that acted."""
    learner = learner_of(**settings)
    model, index = learner.policy.model, torch.arange(len(batch))
    learner.objective.begin(model, batch, [index], learner.prefix, ADDRESS)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in (model.action_out.weight, model.action_out.bias):
            weight += scale * torch.randn(weight.shape, generator=generator)
    result = learner._backward(batch, index, ADDRESS)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return result.loss, gradients, result.clipped


def assert_same_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    """Relative to the length of each parameter's gradient."""
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert float((ours[name] - value).norm()) <= tolerance * float(value.norm()), name


@pytest.mark.parametrize("mode", ["expert", "joint"])
def test_a_tree_in_one_pass_equals_its_members_written_out(mode: str, rollouts: Rollouts) -> None:
    source = rollouts if mode == "expert" else collect("inputs")
    tree, members = batch_of(source), written_out(source)
    assert len(members) > len(tree)
    assert float(tree.members.sum()) == len(members)
    loss, gradients, clipped = grpo_pass(tree, mode=mode)
    reference, expected, _ = grpo_pass(members, mode=mode)
    assert 0.1 * len(tree) < clipped < 0.9 * len(tree), "ratios lie within and beyond the clip range"
    assert loss == pytest.approx(reference, rel=1e-5)
    assert_same_gradients(gradients, expected)


def test_counting_a_shared_chunk_once_is_another_loss(rollouts: Rollouts) -> None:
    """The sum is the same, the denominator smaller: chunks instead of members times chunks."""
    tree, members = batch_of(rollouts), written_out(rollouts)
    loss, gradients, _ = grpo_pass(tree, count="segments")
    reference, expected, _ = grpo_pass(members, count="segments")
    factor = len(members) / len(tree)
    assert factor > 1.1
    assert loss == pytest.approx(factor * reference, rel=1e-5)
    assert_same_gradients(gradients, {name: factor * value for name, value in expected.items()})


def test_what_a_chunk_counts_in_the_denominator(rollouts: Rollouts) -> None:
    batch = batch_of(rollouts)
    index = torch.nonzero(batch.members == 2).flatten()[:3]
    index = torch.cat([index, torch.nonzero(batch.members == 1).flatten()[:2]])
    for objective in ("grpo", "awfm", "filtered_bc"):
        by_member, by_segment = (
            learner_of(objective=objective, count=count).objective for count in ("members", "segments")
        )
        assert by_member.denominator(batch, index) == 8.0
        assert by_segment.denominator(batch, index) == 5.0


def test_shared_chunks_without_their_negative_half_differ(rollouts: Rollouts) -> None:
    """The twin of the identity: dropping one of the two sums is noticed."""
    tree = batch_of(rollouts)
    shared = tree.members > 1
    half = replace(tree, negative=torch.where(shared, 0.0, tree.negative))
    assert abs(grpo_pass(half)[0] - grpo_pass(tree)[0]) > 1e-3


@pytest.mark.parametrize("microbatch", [5, 256])
def test_several_stochastic_steps_start_at_a_ratio_of_one(microbatch: int) -> None:
    batch = batch_of(collect(stochastic_steps=3))
    assert batch.recorded_log_prob.shape == (len(batch), 3)
    stats = learner_of(microbatch=microbatch, epochs=2).update(batch, 0)
    assert stats is not None
    assert stats.first_ratio_max == 0.0
    assert stats.ratio_max > 0.0
    assert stats.acting_log_prob_gap < 1e-4


def test_the_loss_of_several_stochastic_steps_is_their_mean() -> None:
    """Each step as a batch of its own, with its own ratio, clip and gradient."""
    batch = batch_of(collect(stochastic_steps=3))

    def step(number: int) -> TrainingBatch:
        one = slice(number, number + 1)
        return replace(
            batch,
            x_t=batch.x_t[:, one],
            x_next=batch.x_next[:, one],
            sde_index=batch.sde_index[:, one],
            recorded_log_prob=batch.recorded_log_prob[:, one],
        )

    loss, gradients, clipped = grpo_pass(batch)
    parts = [grpo_pass(step(number)) for number in range(3)]
    assert clipped > 0
    assert len({round(part[0], 5) for part in parts}) == 3
    assert loss == pytest.approx(sum(part[0] for part in parts) / 3, rel=1e-5)
    mean = {name: sum(part[1][name] for part in parts) / 3 for name in gradients}
    assert_same_gradients(gradients, mean)


class ConstantFlow(torch.nn.Module):
    """A velocity that depends on nothing, float ``[H, D]``, and remembers where it was asked."""

    def __init__(self, horizon: int = 3, action_dim: int = 2) -> None:
        super().__init__()
        self.value = torch.nn.Parameter(torch.linspace(-0.5, 0.5, horizon * action_dim).view(horizon, action_dim))
        self.asked: list[tuple[Tensor, Tensor]] = []

    def velocity(self, prefix: None, x_t: Tensor, t: Tensor) -> Tensor:
        self.asked.append((x_t, t))
        return self.value.expand(len(x_t), -1, -1)


def rows(advantages: list[float], executed: int = 3) -> TrainingBatch:
    """Chunks of three env steps with actions of their own, one member each."""
    count = len(advantages)
    values = torch.tensor(advantages)
    actions = torch.linspace(-1.0, 1.0, count * 6).view(count, 3, 2)
    nothing = torch.zeros(count, 1, 3, 2)
    return TrainingBatch(
        prefix=None,
        inputs=None,
        x_t=nothing,
        x_next=nothing,
        sde_index=torch.zeros(count, 1, dtype=torch.int64),
        recorded_log_prob=torch.zeros(count, 1),
        actions=actions,
        executed_mask=(torch.arange(3) < executed).expand(count, 3),
        positive=values.clamp(min=0),
        negative=values.clamp(max=0),
        members=torch.ones(count),
    )


def regression(**settings: Any) -> FlowRegression:
    return FlowRegression(UpdateConfig(**{"objective": "awfm", "awfm_draws": 1, **settings}), Seeds(1))


def no_prefix(batch: TrainingBatch) -> Any:
    return None


def begin(objective: FlowRegression, model: ConstantFlow, batch: TrainingBatch) -> Tensor:
    """Starts an update; gives the rows' indices."""
    index = torch.arange(len(batch))
    objective.begin(model, batch, [index], no_prefix, ADDRESS)  # type: ignore[arg-type]
    return index


def descend(
    objective: FlowRegression, model: ConstantFlow, batch: TrainingBatch, index: Tensor, passes: int, rate: float
) -> list[float]:
    """Plain gradient descent; the losses before each step."""
    losses = []
    for number in range(passes):
        terms = objective.terms(model, batch, index, None, (*ADDRESS, number))  # type: ignore[arg-type]
        (gradient,) = torch.autograd.grad(terms.loss / objective.denominator(batch, index), model.value)
        with torch.no_grad():
            model.value -= rate * gradient
        losses.append(terms.loss.item())
    return losses


def target_of(model: ConstantFlow, batch: TrainingBatch, call: int) -> Tensor:
    """The flow's target u = noise - action at a place where the model was asked, from x = t noise + (1 - t) action."""
    x, t = model.asked[call]
    t = t[:, None, None]
    return (x - (1 - t) * batch.actions) / t - batch.actions


def test_a_chunk_that_repels_sends_the_velocity_to_its_mirror_image() -> None:
    """One chunk, one draw: (2 v_old - v - u)^2 is smallest at v = 2 v_old - u, as far from u as twice v_old is."""
    model, objective = ConstantFlow(), regression(awfm_negative=1.0)
    old = model.value.detach().clone()
    batch = objective.select(rows([-1.0]))
    index = begin(objective, model, batch)
    u = target_of(model, batch, 0)[0]
    descend(objective, model, batch, index, passes=1, rate=0.1)
    first = model.value.detach().clone()
    assert float(((first - old) * (u - old)).sum()) < 0, "away from the target"
    losses = descend(objective, model, batch, index, passes=400, rate=0.1)
    torch.testing.assert_close(model.value.detach(), 2 * old - u, rtol=0, atol=1e-4)
    torch.testing.assert_close((model.value.detach() - u).norm(), 2 * (old - u).norm())
    assert losses[-1] < 1e-6 < losses[0]
    assert losses == sorted(losses, reverse=True)
    descend(objective, model, batch, index, passes=400, rate=0.1)
    torch.testing.assert_close(model.value.detach(), 2 * old - u, rtol=0, atol=1e-4)


def test_a_chunk_that_attracts_draws_the_velocity_to_its_target() -> None:
    """The twin: the mean over 6 numbers of (v - u)^2 has the gradient (v - u) / 3, and u is drawn anew in each pass."""
    model, objective = ConstantFlow(), regression(awfm_negative=1.0)
    expected = model.value.detach().clone()
    batch = objective.select(rows([1.0]))
    index = begin(objective, model, batch)
    assert model.asked == []
    descend(objective, model, batch, index, passes=20, rate=0.3)
    for call in range(20):
        expected += 0.1 * (target_of(model, batch, call)[0] - expected)
    torch.testing.assert_close(model.value.detach(), expected, rtol=0, atol=1e-4)


def test_several_draws_mirror_their_mean() -> None:
    """The mean of (2 v_old - v - u_j)^2 over draws j is smallest at v = 2 v_old - mean u."""
    model, objective = ConstantFlow(), regression(awfm_negative=1.0, awfm_draws=5)
    old = model.value.detach().clone()
    batch = objective.select(rows([-1.0]))
    index = begin(objective, model, batch)
    mean = torch.stack([target_of(model, batch, call)[0] for call in range(5)]).mean(0)
    descend(objective, model, batch, index, passes=400, rate=0.1)
    torch.testing.assert_close(model.value.detach(), 2 * old - mean, rtol=0, atol=1e-4)


def test_only_executed_steps_repel() -> None:
    model, objective = ConstantFlow(), regression(awfm_negative=1.0)
    old = model.value.detach().clone()
    batch = objective.select(rows([-1.0], executed=2))
    index = begin(objective, model, batch)
    u = target_of(model, batch, 0)[0]
    descend(objective, model, batch, index, passes=400, rate=0.1)
    torch.testing.assert_close(model.value.detach()[:2], (2 * old - u)[:2], rtol=0, atol=1e-4)
    assert torch.equal(model.value.detach()[2], old[2])


def test_chunks_that_repel_keep_their_noise_and_the_others_do_not() -> None:
    """For the whole update; the next one, at another address, draws anew."""
    model, objective = ConstantFlow(), regression(awfm_negative=1.0)
    batch = objective.select(rows([1.0, -1.0, 2.0, -0.5]))
    assert (batch.negative < 0).tolist() == [False, False, True, True], "those that attract come first"
    index = begin(objective, model, batch)
    descend(objective, model, batch, index, passes=2, rate=0.0)
    (fixed, _), (first, first_time), (second, second_time) = model.asked
    assert len(fixed) == 2
    assert torch.equal(first[2:], fixed)
    assert torch.equal(second[2:], fixed)
    assert torch.equal(first_time[2:], second_time[2:])
    assert not torch.isclose(first[:2], second[:2]).any()
    assert not torch.isclose(first_time[:2], second_time[:2]).any()
    objective.begin(model, batch, [index], no_prefix, ("next",))  # type: ignore[arg-type]
    assert not torch.isclose(model.asked[3][0], fixed).any()


def test_the_loss_of_a_mixed_batch_by_hand() -> None:
    """Before the first step the reflection is v_old itself: every chunk has weight times its regression error."""
    model, objective = ConstantFlow(), regression(awfm_negative=0.5)
    batch = objective.select(rows([1.0, 3.0, -2.0]))
    # Positive ones average 2: weights 0.5, 1.5 and -1, of which awfm_negative leaves -0.5.
    assert batch.positive.tolist() == [0.5, 1.5, 0.0]
    assert batch.negative.tolist() == [0.0, 0.0, -0.5]
    index = begin(objective, model, batch)
    (loss,) = descend(objective, model, batch, index, passes=1, rate=0.0)
    errors = (model.value.detach() - target_of(model, batch, 1)).square().mean((1, 2))
    assert loss == pytest.approx(float(errors @ torch.tensor([0.5, 1.5, 0.5])), rel=1e-5)


def test_negative_weights_are_clipped_as_positive_ones_are() -> None:
    batch = regression(awfm_negative=1.0, awfm_max_weight=2.0).select(rows([0.5, 1.5, 9.0, -9.0]))
    # 11 over three positive rows: 0.5, 1.5 and 9 over 11 / 3, of which the last is clipped, as its opposite is.
    assert batch.positive.tolist() == pytest.approx([1.5 / 11, 4.5 / 11, 2.0, 0.0])
    assert batch.negative.tolist() == pytest.approx([0.0, 0.0, 0.0, -2.0])


def test_chunks_that_repel_do_so_in_their_own_iteration_only() -> None:
    objective = regression(awfm_negative=1.0, awfm_iterations=3)
    sizes = []
    for _ in range(3):
        batch = objective.select(rows([1.0, -1.0, 2.0, -0.5]))
        sizes.append((int((batch.positive > 0).sum()), int((batch.negative < 0).sum())))
    assert sizes == [(2, 2), (4, 2), (6, 2)]
    assert not (torch.cat([t for name, t in objective.state().items() if name.endswith("negative")]) < 0).any()


def weights_of(learner: Learner) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in learner.policy.model.state_dict().items()}


def test_without_the_negative_term_bad_chunks_leave_no_trace(rollouts: Rollouts) -> None:
    """Bit for bit the update without them; and with the term it is another one."""
    batch = batch_of(rollouts)
    good = batch.rows(torch.nonzero(batch.positive + batch.negative > 0).flatten())
    assert len(good) < len(batch)

    def after(chunks: TrainingBatch, negative: float) -> dict[str, Tensor]:
        learner = learner_of(objective="awfm", awfm_negative=negative, epochs=3)
        learner.update(chunks, 0)
        assert isinstance(learner.objective, FlowRegression)
        assert len(learner.objective._reflections) == (2 if negative and chunks is batch else 0)
        return weights_of(learner)

    plain, reference, pushed = after(batch, 0.0), after(good, 0.0), after(batch, 0.5)
    assert all(torch.equal(plain[name], reference[name]) for name in plain)
    assert not all(torch.equal(plain[name], pushed[name]) for name in plain)


def test_reflections_of_an_earlier_update_are_forgotten(rollouts: Rollouts) -> None:
    batch = batch_of(rollouts)
    good = batch.rows(torch.nonzero(batch.positive + batch.negative > 0).flatten())
    learner = learner_of(objective="awfm", awfm_negative=1.0)
    learner.update(batch, 0)
    learner.update(good, 1)
    assert isinstance(learner.objective, FlowRegression)
    assert learner.objective._reflections == []


@pytest.mark.parametrize("mode", ["expert", "joint"])
@pytest.mark.parametrize("microbatch", [1, 7, 256])
def test_microbatches_need_no_row_that_repels(mode: str, microbatch: int, rollouts: Rollouts) -> None:
    """Rows that attract come first, so the first microbatches of a large batch hold no other."""
    batch = batch_of(rollouts if mode == "expert" else collect("inputs"))
    learner = learner_of(objective="awfm", awfm_negative=1.0, mode=mode, microbatch=microbatch)
    stats = learner.update(batch, 0)
    assert stats is not None
    assert stats.optimizer_steps == 1
    signal = (batch.positive + batch.negative).abs() > 0
    assert stats.chunks == stats.gradient_chunks == int(signal.sum())


def test_the_repelling_gradient_does_not_depend_on_the_microbatch(rollouts: Rollouts) -> None:
    """Its noise is drawn for the whole update, not per microbatch."""
    batch = batch_of(rollouts)
    bad = batch.rows(torch.nonzero(batch.positive + batch.negative < 0).flatten())

    def gradients(microbatch: int) -> dict[str, Tensor]:
        learner = learner_of(objective="awfm", awfm_negative=1.0, microbatch=microbatch)
        chosen = learner.objective.select(bad)
        index = torch.arange(len(chosen))
        learner.objective.begin(learner.policy.model, chosen, list(index.split(microbatch)), learner.prefix, ADDRESS)
        learner._backward(chosen, index, ADDRESS)
        return {n: p.grad for n, p in learner.policy.model.named_parameters() if p.grad is not None}

    whole = gradients(256)
    for microbatch in (1, 7):
        assert_same_gradients(gradients(microbatch), whole)


def test_filtered_bc_weighs_all_successes_alike(rollouts: Rollouts) -> None:
    """Every chunk of a successful member, those that all members share too, once per successful member."""
    weights = [success_weights_of(group) for group in rollouts.kept]
    batch = build_training_batch(rollouts.kept, spread(rollouts.kept, weights), rollouts.ticks, ACTING.chunk_length)
    assert batch is not None
    expected: dict[bytes, int] = {}
    for group in rollouts.kept:
        for segment in group.segments:
            successes = sum(group.episodes[member].success for member in segment.members)
            for tick, row in segment.places if successes else ():
                expected[rollouts.ticks[tick].sample.x_t[row].numpy().tobytes()] = successes
    chosen = regression(objective="filtered_bc", awfm_iterations=1).select(batch)
    found = {
        x.numpy().tobytes(): (float(p), float(n), float(m))
        for x, p, n, m in zip(chosen.x_t, chosen.positive, chosen.negative, chosen.members, strict=True)
    }
    assert found == {key: (count, 0.0, count) for key, count in expected.items()}
    assert len(chosen) == len(expected)
    assert {1, 2} <= set(expected.values())
    roots = sum(group.segments[0].length for group in rollouts.kept)
    assert roots > 0
    by_advantage = [advantage_weights_of(group, ROLLOUT) for group in rollouts.kept]
    compared = build_training_batch(
        rollouts.kept, spread(rollouts.kept, by_advantage), rollouts.ticks, ACTING.chunk_length
    )
    assert compared is not None
    roots_found = {x.numpy().tobytes() for x in compared.x_t} & found.keys()
    assert len(roots_found) == len(found) - roots, "only filtered_bc learns from what all members share"


def test_filtered_bc_equals_its_members_written_out() -> None:
    """A chunk of two successful members and one of a single one: errors weighted 2 and 1, over 3."""
    model, objective = ConstantFlow(), regression(objective="filtered_bc")
    batch = rows([2.0, 1.0])
    batch = objective.select(replace(batch, members=batch.positive))
    index = begin(objective, model, batch)
    terms = objective.terms(model, batch, index, None, ADDRESS)  # type: ignore[arg-type]
    errors = (model.value.detach() - target_of(model, batch, 0)).square().mean((1, 2))
    assert terms.loss.item() == pytest.approx(float(2 * errors[0] + errors[1]), rel=1e-5)
    assert objective.denominator(batch, index) == 3.0


def test_the_objective_is_the_one_that_is_named() -> None:
    assert isinstance(learner_of(objective="grpo").objective, Grpo)
    assert isinstance(learner_of(objective="awfm").objective, FlowRegression)
    assert isinstance(learner_of(objective="filtered_bc").objective, FlowRegression)
