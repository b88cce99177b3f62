"""The critic: its advantages by hand, along trees, and what it may and may not know."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from toy import TASK, ToyPool, toy_policy
from z1.algo.advantage import generalised_advantages
from z1.config import ActingConfig, RolloutConfig
from z1.errors import ConfigError
from z1.policy.pi05 import PrefixCache
from z1.rollout.collector import Collector, Exploration
from z1.rollout.groups import Episode, RolloutGroup, Rollouts
from z1.rollout.tree import BranchPlan
from z1.seeding import Seeds
from z1.train.critic import FOLDS, Critic, explained_variance, fold_of
from z1.train.score import critic_weights_of, group_returns, member_advantages
from z1.types import Scene

SETTINGS = RolloutConfig(group_size=4, plan="tree", prefix=4, advantage="critic", critic_decay=0.5)
FLAT = replace(SETTINGS, plan="flat", prefix=0)
EXPLORE = Exploration(noise_level=0.5, exclude_last_step=True, summarise=True)


def test_generalised_advantages_by_hand() -> None:
    """Values 0.2, 0.5, 0.4 and a success: deltas 0.3, -0.1, 0.6. With 1/2: 0.6; -0.1 + 0.3 = 0.2; 0.3 + 0.1 = 0.4."""
    found = generalised_advantages(np.array([0.2, 0.5, 0.4]), 1.0, decay=0.5)
    np.testing.assert_allclose(found, [0.4, 0.2, 0.6], atol=1e-12)


def test_decay_one_compares_the_outcome_with_the_value_and_zero_two_values() -> None:
    values = np.random.default_rng(0).random(7)
    np.testing.assert_allclose(generalised_advantages(values, 0.3, decay=1.0), 0.3 - values, atol=1e-12)
    np.testing.assert_allclose(
        generalised_advantages(values, 0.3, decay=0.0), np.append(values[1:], 0.3) - values, atol=1e-12
    )


def group_of(success: str, counts: list[int], plan: BranchPlan, *, lost: tuple[int, ...] = ()) -> RolloutGroup:
    scene = Scene.of_split(TASK, "train", 0)
    episodes = [
        Episode(scene=scene, member=m, success=sign == "+", invalid=m in lost, env_steps=count, chunk_count=count)
        for m, (sign, count) in enumerate(zip(success, counts, strict=True))
    ]
    return RolloutGroup(scene=scene, episodes=tuple(episodes), segments=tuple(plan.segments(counts)))


def values_of(group: RolloutGroup, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.random(segment.length) for segment in group.segments]


@pytest.mark.parametrize("plan", [BranchPlan.flat(4), BranchPlan.tree(4, 4)], ids=["flat", "tree"])
def test_each_members_advantages_run_along_its_own_path(plan: BranchPlan) -> None:
    group = group_of("+--+", [6, 7, 6, 5], plan)
    values = values_of(group)
    found = member_advantages(group, values, SETTINGS)
    for member, episode in enumerate(group.episodes):
        path = [s for s, segment in enumerate(group.segments) if member in segment.members]
        along = np.concatenate([values[s] for s in path])
        expected = generalised_advantages(along, float(episode.success), decay=0.5)
        own = np.repeat(group.owns[:, member], group.segment_lengths)
        np.testing.assert_allclose(found[own, member], expected, atol=1e-12)
        assert not found[~own, member].any()
        assert len(expected) == episode.chunk_count


def test_a_shared_chunk_sums_its_members_by_sign_and_counts_each() -> None:
    """Two chunks, all shared by a success and a failure; the values are 1/2, the decay 0: deltas 0, then +1/2 and -1/2.

    Root mean square over both members' two chunks: sqrt((0 + 1/4 + 0 + 1/4) / 4) = sqrt(1/8).
    """
    group = group_of("+-", [2, 2], BranchPlan.shared_prefix(2, 2))
    assert [segment.members for segment in group.segments] == [(0, 1)]
    (found,) = critic_weights_of([group], [[np.array([0.5, 0.5])]], replace(SETTINGS, critic_decay=0.0))
    scale = np.sqrt(1 / 8)
    np.testing.assert_allclose(found.positive, [0, 0.5 / scale], atol=1e-12)
    np.testing.assert_allclose(found.negative, [0, -0.5 / scale], atol=1e-12)
    assert found.members.tolist() == [2, 2]


def test_lost_members_count_nowhere_and_do_not_change_the_others_proportions() -> None:
    plan = BranchPlan.tree(4, 4)
    whole, lost = group_of("+--+", [6] * 4, plan), group_of("+--+", [6] * 4, plan, lost=(3,))
    values = values_of(whole)
    own = np.repeat(whole.owns, whole.segment_lengths, axis=0)
    only_lost = own[:, 3] & (own.sum(axis=1) == 1)
    (first,), (second,) = critic_weights_of([whole], [values], SETTINGS), critic_weights_of([lost], [values], SETTINGS)
    assert first.members[only_lost].tolist() == [1] * int(only_lost.sum())
    assert not second.members[only_lost].any()
    assert not second.positive[only_lost].any()
    untouched = ~own[:, 3]
    ratio = second.positive[untouched & (first.positive > 0)] / first.positive[untouched & (first.positive > 0)]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-9)


def test_advantages_have_unit_scale_over_the_iteration() -> None:
    groups = [group_of("+--+", [6, 7, 6, 5], BranchPlan.flat(4)), group_of("----", [7] * 4, BranchPlan.flat(4))]
    weights = critic_weights_of(groups, [values_of(g, i) for i, g in enumerate(groups)], FLAT)
    all_of = np.concatenate([w.positive + w.negative for w in weights])
    np.testing.assert_allclose(np.square(all_of).mean(), 1.0, rtol=1e-9)
    assert critic_weights_of([], [], FLAT) == []


def test_values_that_know_everything_leave_no_advantage_to_blow_up() -> None:
    group = group_of("++", [3, 3], BranchPlan.flat(2))
    (found,) = critic_weights_of([group], [[np.ones(3), np.ones(3)]], FLAT)
    assert not found.positive.any()
    assert np.isfinite(found.positive).all()


def scenes() -> Iterator[Scene]:
    return (Scene.of_split(TASK, "train", i) for i in itertools.count())


def rollouts_of(plan: BranchPlan, groups: int = 8) -> Rollouts:
    """Members of even number succeed in the first half of the scenes, odd ones in the other."""
    pool = ToyPool(outcome=lambda scene, member: (scene.seed + member) % 2 == 0)
    return Collector(pool, toy_policy(), ActingConfig(denoise_steps=4, chunk_length=2), live_members=96).collect(
        scenes(), Seeds(1), ("x",), plan=lambda number: plan, groups=groups, explore=EXPLORE
    )


def critic_of(rollouts: Rollouts) -> Critic:
    (tick, *_), group = rollouts.ticks, rollouts.kept[0]
    assert tick.summary is not None
    return Critic(tick.summary.shape[1] + len(group.segments[0].states[0]) + 1, chunks=4, seeds=Seeds(0))


def returns_of(groups: tuple[RolloutGroup, ...]) -> list[np.ndarray]:
    return [group_returns(group, FLAT) for group in groups]


@pytest.mark.parametrize("plan", [BranchPlan.flat(4), BranchPlan.tree(4, 2)], ids=["flat", "tree"])
def test_one_value_per_chunk(plan: BranchPlan) -> None:
    rollouts = rollouts_of(plan)
    critic = critic_of(rollouts)
    critic.fit(rollouts.kept, returns_of(rollouts.kept), rollouts.ticks, 0)
    for group in rollouts.kept:
        values = critic.values(group, rollouts.ticks)
        assert [len(v) for v in values] == group.segment_lengths.tolist()
        assert all(((v >= 0) & (v <= 1)).all() for v in values)


def test_a_scenes_values_come_from_a_network_that_never_saw_its_outcomes() -> None:
    rollouts = rollouts_of(BranchPlan.flat(4))
    returns = returns_of(rollouts.kept)
    assert {fold_of(group) for group in rollouts.kept} == set(range(FOLDS))

    def values(returns: list[np.ndarray]) -> list[np.ndarray]:
        critic = critic_of(rollouts)
        critic.fit(rollouts.kept, returns, rollouts.ticks, 0)
        return [np.concatenate(critic.values(group, rollouts.ticks)) for group in rollouts.kept]

    changed = [1.0 - own if fold_of(group) == 0 else own for group, own in zip(rollouts.kept, returns, strict=True)]
    for group, before, after in zip(rollouts.kept, values(returns), values(changed), strict=True):
        assert np.array_equal(before, after) == (fold_of(group) == 0)


def test_it_learns_what_the_state_tells_and_not_more() -> None:
    """At the last chunk, outcomes that the point's place decides are known on unseen scenes; drawn ones are not."""
    rollouts = rollouts_of(BranchPlan.flat(4), groups=48)
    groups = rollouts.kept
    ends = [np.array([s.states[-1][0] > 0 for s in group.segments], dtype=float) for group in groups]
    rng = np.random.default_rng(0)
    luck = [rng.permutation(own) for own in ends]
    known = {}
    for name, returns in (("state", ends), ("luck", luck)):
        critic = critic_of(rollouts)
        critic.fit(groups, returns, rollouts.ticks, 0)
        values = [[own[-1] for own in critic.values(group, rollouts.ticks)] for group in groups]
        known[name] = np.corrcoef(np.concatenate(values), np.concatenate(returns))[0, 1]
    assert known["state"] > 0.6
    assert abs(known["luck"]) < 0.3


def test_explained_variance() -> None:
    group = group_of("+-", [2, 2], BranchPlan.flat(2))
    returns = [np.array([1.0, 0.0])]
    assert explained_variance([group], returns, [[np.ones(2), np.zeros(2)]]) == 1.0
    assert explained_variance([group], returns, [[np.full(2, 0.5), np.full(2, 0.5)]]) == 0.0
    assert explained_variance([group], returns, [[np.zeros(2), np.ones(2)]]) == -3.0
    assert explained_variance([group], [np.ones(2)], [[np.ones(2), np.ones(2)]]) == 0.0
    assert explained_variance([], [], []) == 0.0


def test_its_state_comes_back_exactly() -> None:
    rollouts = rollouts_of(BranchPlan.flat(4))
    returns = returns_of(rollouts.kept)
    first, second = critic_of(rollouts), critic_of(rollouts)
    first.fit(rollouts.kept, returns, rollouts.ticks, 0)
    second.load_state(first.state())
    for critic in (first, second):
        critic.fit(rollouts.kept, returns, rollouts.ticks, 1)
    ours, theirs = first.state(), second.state()
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_the_summary_ignores_what_does_not_count() -> None:
    """Two layers of one dim: of 1, 3 and a padded 100, mean 2 and last 3; of 5, 7 and 100, mean 6 and last 7."""
    values = torch.tensor([[[[1.0], [3.0], [100.0]], [[5.0], [7.0], [100.0]]]])
    mask = torch.tensor([[True, True, False]])
    prefix = PrefixCache(keys=values, values=values, mask=mask, full=False)
    assert prefix.summary().tolist() == [[2.0, 6.0, 3.0, 7.0]]
    assert prefix.summary(layers=1).tolist() == [[6.0, 7.0]]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"critic_decay": 1.5}, "rollout.critic_decay is 1.5; it must be in [0, 1]"),
        (
            {"advantage": "group"},
            "rollout.critic_decay has no effect with rollout.advantage 'group'; leave it at 0.8, or choose 'critic'",
        ),
        (
            {"all_success_rule": False},
            "rollout.all_success_rule and all_success_advantage have no effect with rollout.advantage 'critic', which "
            "treats all groups alike; leave them at true and 0",
        ),
    ],
)
def test_settings_without_effect_are_refused(change: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        replace(SETTINGS, **change)  # type: ignore[arg-type]
    assert str(caught.value) == text
