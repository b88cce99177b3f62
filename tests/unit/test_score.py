"""From outcomes to what segments count: group and tree advantages, all-success groups, and which groups are kept."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toy import TASK, ToyPool, toy_policy
from z1.algo.advantage import group_advantages, tree_advantages
from z1.config import ActingConfig, RlConfig, RolloutConfig, UpdateConfig
from z1.rollout.groups import Episode, RolloutGroup
from z1.rollout.tree import BranchPlan, SegmentWeights, membership, parents
from z1.train.metrics import MetricsWriter
from z1.train.score import advantage_weights_of, group_returns, success_weights_of
from z1.train.trainer import Trainer
from z1.types import Scene

TREE = BranchPlan.tree(4, 4)
LONG = [6, 6, 6, 6]
"""Chunk counts with which a tree has all its segments: root, {0, 1}, 0, 1, {2, 3}, 2, 3."""

EVERYONE = np.ones(4, dtype=bool)
SETTINGS = RolloutConfig(group_size=4, plan="tree", prefix=4)
BY_TREE = replace(SETTINGS, advantage="tree")


def group_of(
    success: str, counts: list[int] | None = None, *, lost: tuple[int, ...] = (), plan: BranchPlan | None = None
) -> RolloutGroup:
    """A group by its outcomes, ``+`` and ``-``, that executed a plan."""
    counts = counts or [6] * len(success)
    scene = Scene.of_split(TASK, "train", 0)
    episodes = [
        Episode(scene=scene, member=m, success=sign == "+", invalid=m in lost, env_steps=count, chunk_count=count)
        for m, (sign, count) in enumerate(zip(success, counts, strict=True))
    ]
    plan = plan or BranchPlan.tree(len(success), 4)
    return RolloutGroup(scene=scene, episodes=tuple(episodes), segments=tuple(plan.segments(counts)))


def triples(weights: SegmentWeights) -> list[tuple[float, float, float]]:
    return list(zip(weights.positive.tolist(), weights.negative.tolist(), weights.members.tolist(), strict=True))


def tree_of(
    returns: list[float], discount: float, *, valid: np.ndarray = EVERYONE, plan: BranchPlan = TREE
) -> np.ndarray:
    segments = plan.segments([6] * len(returns))
    owns = membership(segments, len(returns))
    return tree_advantages(np.array(returns, dtype=float), valid, owns, parents(segments), discount=discount)


# Returns 1, 0, 0, 0 on the tree root, {0, 1}, 0, 1, {2, 3}, 2, 3. Mean returns V: 1/4, 1/2, 1, 0, 0, 0, 0. Each against
# its parent (delta): 0, +1/4, +1/2, -1/2, -1/4, 0, 0. Population std: sqrt(3/16) = sqrt(3)/4.
#   discount 0:    delta itself
#   discount 1/2:  0: 1/2 + 1/8 = 5/8, 1: -1/2 + 1/8 = -3/8, 2 and 3: 0 - 1/8
#   discount 1:    0: 1/2 + 1/4 = 3/4, 1: -1/2 + 1/4 = -1/4, 2 and 3: 0 - 1/4, which is R - 1/4
BY_HAND = {
    0.0: [0, 1 / 4, 1 / 2, -1 / 2, -1 / 4, 0, 0],
    0.5: [0, 1 / 4, 5 / 8, -3 / 8, -1 / 4, -1 / 8, -1 / 8],
    1.0: [0, 1 / 4, 3 / 4, -1 / 4, -1 / 4, -1 / 4, -1 / 4],
}


@pytest.mark.parametrize("discount", BY_HAND)
def test_tree_advantages_by_hand(discount: float) -> None:
    expected = np.array(BY_HAND[discount]) / (math.sqrt(3) / 4 + 1e-6)
    np.testing.assert_allclose(tree_of([1, 0, 0, 0], discount), expected, atol=1e-12)


def test_tree_advantages_of_eight_by_hand() -> None:
    """Only member 0 succeeds. Along its path V is 1/8, 1/4, 1/2, 1, so that deltas are 1/8, 1/4 and 1/2.

    With discount 1/2: 1/8, 1/4 + 1/16 = 5/16, 1/2 + 5/32 = 21/32. Its siblings: 1: -1/2 + 5/32; {2, 3}: -1/4 + 1/16 and
    half of that for 2 and 3; {4..7}: -1/8 and half of it for each generation below. Std: sqrt(1/8 * 7/8) = sqrt(7) / 8.
    """
    path = [0, 1 / 8, 5 / 16, 21 / 32]  # the segments root, 0123, 01, 0
    siblings = [-11 / 32, -3 / 16, -3 / 32, -3 / 32]  # 1, 23, 2, 3
    others = [-1 / 8, -1 / 16, -1 / 32, -1 / 32, -1 / 16, -1 / 32, -1 / 32]  # 4567, 45, 4, 5, 67, 6, 7
    found = tree_of([1, 0, 0, 0, 0, 0, 0, 0], 0.5, valid=np.ones(8, dtype=bool), plan=BranchPlan.tree(8, 4))
    np.testing.assert_allclose(found, np.array(path + siblings + others) / (math.sqrt(7) / 8 + 1e-6), atol=1e-12)


def random_returns(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    success = rng.random(size) < 0.5
    return np.where(success, rng.uniform(0.2, 1.0, size), 0.0), success


@pytest.mark.parametrize("group_size", [2, 4, 8])
def test_discount_one_gives_single_members_their_group_advantage(group_size: int) -> None:
    """The sum along the path telescopes to R - mean R; clusters get the mean of their members."""
    rng = np.random.default_rng(group_size)
    plan = BranchPlan.tree(group_size, 4)
    segments = plan.segments([6] * group_size)
    differs = 0
    for _ in range(50):
        returns, success = random_returns(rng, group_size)
        valid = rng.random(group_size) < 0.8
        own = group_advantages(returns, success, valid)
        if not success[valid].any() or success[valid].all():
            continue
        found = tree_of(returns.tolist(), 1.0, valid=valid, plan=plan)
        half = tree_of(returns.tolist(), 0.5, valid=valid, plan=plan)
        for segment, advantage in zip(segments, found, strict=True):
            members = [m for m in segment.members if valid[m]]
            expected = own[members].mean() if members else 0.0
            assert advantage == pytest.approx(expected, abs=1e-9)
        differs += not np.allclose(found, half)
    assert differs > 10 or group_size == 2, "one branch point: nothing to inherit but the root's zero"


@pytest.mark.parametrize("discount", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("plan", [BranchPlan.flat(4), BranchPlan.shared_prefix(4, 3)], ids=["flat", "shared_prefix"])
def test_without_a_branch_point_between_there_is_nothing_to_discount(plan: BranchPlan, discount: float) -> None:
    returns = [0.9, 0.0, 0.4, 0.0]
    own = group_advantages(np.array(returns), np.array(returns) > 0, EVERYONE)
    np.testing.assert_allclose(tree_of(returns, discount, plan=plan)[-4:], own, atol=1e-9)


@pytest.mark.parametrize("discount", [0.0, 0.3, 1.0])
def test_swapping_siblings_swaps_their_advantages(discount: float) -> None:
    found = tree_of([1.0, 0.0, 0.6, 0.3], discount)
    leaves = tree_of([0.0, 1.0, 0.6, 0.3], discount)
    np.testing.assert_allclose(leaves, found[[0, 1, 3, 2, 4, 5, 6]], atol=1e-12)
    clusters = tree_of([0.6, 0.3, 1.0, 0.0], discount)
    np.testing.assert_allclose(clusters, found[[0, 4, 5, 6, 1, 2, 3]], atol=1e-12)


@pytest.mark.parametrize("discount", [0.3, 1.0])
def test_swapping_cousins_is_another_tree(discount: float) -> None:
    """Members 1 and 2 change places: their clusters' means change, and with them what discount 1 leaves to clusters."""
    found, other = tree_of([1.0, 0.0, 0.6, 0.3], discount), tree_of([1.0, 0.6, 0.0, 0.3], discount)
    assert abs(found[1] - other[1]) > 0.1


def test_shifting_returns_changes_nothing() -> None:
    returns = np.array([0.9, 0.0, 0.5, 0.2])
    for discount in (0.0, 0.5, 1.0):
        shifted = tree_of((returns + 7).tolist(), discount)
        np.testing.assert_allclose(shifted, tree_of(returns.tolist(), discount), atol=1e-9)


@pytest.mark.parametrize("value", [0.0, 0.7, 1.0])
def test_equal_returns_carry_no_signal(value: float) -> None:
    assert not tree_of([value] * 4, 0.5).any()


def test_the_return_of_a_lost_member_is_not_looked_at() -> None:
    # Valid returns 1, 0, 0: mean 1/3, std sqrt(2)/3. V: root 1/3, {0, 1} 1/2, 0 1, 1 0, {2, 3} 0, 2 0.
    # Deltas: +1/6, +1/2, -1/2, -1/3, 0, and half the parent's: 0 1/2 + 1/12, 1 -1/2 + 1/12, 2 0 - 1/6.
    valid = np.array([True, True, True, False])
    expected = np.array([0, 1 / 6, 7 / 12, -5 / 12, -1 / 3, -1 / 6, 0]) / (math.sqrt(2) / 3 + 1e-6)
    for lost in (0.0, 1.0, 123.0):
        np.testing.assert_allclose(tree_of([1, 0, 0, lost], 0.5, valid=valid), expected, atol=1e-12)


def test_a_lost_cluster_leaves_the_other_one_to_itself() -> None:
    # Valid returns 1, 0: mean 1/2, std 1/2. {0, 1} is all there is: 0. Then 0: +1/2, 1: -1/2.
    valid = np.array([True, True, False, False])
    found = tree_of([1, 0, 1, 1], 0.5, valid=valid)
    np.testing.assert_allclose(found, [0, 0, 1, -1, 0, 0, 0], atol=1e-5)


def test_a_single_survivor_has_nothing_to_be_compared_with() -> None:
    assert not tree_of([1, 0, 0, 0], 0.5, valid=np.array([True, False, False, False])).any()


def test_returns_fall_with_the_chunks_of_an_episode() -> None:
    settings = replace(SETTINGS, reward_decay=0.5)
    np.testing.assert_array_equal(group_returns(group_of("++--", [1, 3, 6, 6]), settings), [0.5, 0.125, 0, 0])


def test_group_advantages_on_a_tree() -> None:
    # Returns 1, 0, 0, 0: sqrt(3) and three times -1/sqrt(3). {0, 1} has both, {2, 3} two negative ones; no root.
    a, b = math.sqrt(3), 1 / math.sqrt(3)
    expected = [(0, 0, 0), (a, -b, 2), (a, 0, 1), (0, -b, 1), (0, -2 * b, 2), (0, -b, 1), (0, -b, 1)]
    found = advantage_weights_of(group_of("+---"), SETTINGS)
    np.testing.assert_allclose(triples(found), expected, atol=1e-5)


def test_tree_advantages_on_a_tree() -> None:
    """A segment's advantage counts once for each of its members; the root for none."""
    a = np.array(BY_HAND[0.5]) / (math.sqrt(3) / 4)
    expected = [(0, 0, 0), (2 * a[1], 0, 2), (a[2], 0, 1), (0, a[3], 1), (0, 2 * a[4], 2), (0, a[5], 1), (0, a[6], 1)]
    found = advantage_weights_of(group_of("+---"), BY_TREE)
    np.testing.assert_allclose(triples(found), expected, atol=1e-5)
    by_group = advantage_weights_of(group_of("+---"), SETTINGS)
    assert not np.allclose(found.positive, by_group.positive)
    single = found.members == 1
    telescoped = advantage_weights_of(group_of("+---"), replace(BY_TREE, tree_discount=1.0))
    for name in ("positive", "negative"):
        ours, theirs = getattr(telescoped, name), getattr(by_group, name)
        np.testing.assert_allclose(ours[single], theirs[single], atol=1e-9)
    cluster = (telescoped.positive + telescoped.negative)[1]
    assert cluster == pytest.approx((by_group.positive + by_group.negative)[1])


def test_lost_members_on_a_tree() -> None:
    found = triples(advantage_weights_of(group_of("+--+", lost=(3,)), SETTINGS))
    # Valid returns 1, 0, 0: std sqrt(2)/3, so sqrt(2) and -1/sqrt(2) for each of the others.
    a, b = math.sqrt(2), 1 / math.sqrt(2)
    expected = [(0, 0, 0), (a, -b, 2), (a, 0, 1), (0, -b, 1), (0, -b, 1), (0, -b, 1), (0, 0, 0)]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("settings", [SETTINGS, BY_TREE], ids=["group", "tree"])
def test_failures_alone_weigh_nothing_but_are_counted(settings: RolloutConfig) -> None:
    found = advantage_weights_of(group_of("----"), settings)
    assert not found.positive.any()
    assert not found.negative.any()
    assert found.members.tolist() == [0, 2, 1, 1, 2, 1, 1]


FAST = replace(SETTINGS, reward_decay=0.5)


@pytest.mark.parametrize("settings", [FAST, replace(FAST, advantage="tree")], ids=["group", "tree"])
def test_when_all_succeed_the_slowest_gets_nothing_and_nobody_less(settings: RolloutConfig) -> None:
    """Ends after 5, 6, 5 and 7 chunks: R = 1/32, 1/64, 1/32, 1/128, less the smallest 3/128, 1/128, 3/128, 0."""
    found = advantage_weights_of(group_of("++++", [5, 6, 5, 7]), settings)
    a = 1 / 128
    expected = [(0, 0, 0), (4 * a, 0, 2), (3 * a, 0, 1), (a, 0, 1), (3 * a, 0, 2), (3 * a, 0, 1), (0, 0, 1)]
    np.testing.assert_allclose(triples(found), expected, atol=1e-12)


@pytest.mark.parametrize("settings", [FAST, replace(FAST, advantage="tree")], ids=["group", "tree"])
def test_when_all_survivors_succeed_it_is_a_group_of_successes(settings: RolloutConfig) -> None:
    """The lost member would have failed; it would also have been the slowest."""
    found = advantage_weights_of(group_of("+++-", [5, 6, 5, 7], lost=(3,)), settings)
    a = 1 / 64
    expected = [(0, 0, 0), (a, 0, 2), (a, 0, 1), (0, 0, 1), (a, 0, 1), (a, 0, 1), (0, 0, 0)]
    np.testing.assert_allclose(triples(found), expected, atol=1e-12)


def test_the_constant_of_all_success_groups_counts_per_member() -> None:
    settings = replace(SETTINGS, all_success_advantage=0.5)
    found = triples(advantage_weights_of(group_of("++++"), settings))
    assert found == [(0, 0, 0), (1, 0, 2), (0.5, 0, 1), (0.5, 0, 1), (1, 0, 2), (0.5, 0, 1), (0.5, 0, 1)]
    assert triples(advantage_weights_of(group_of("+---"), settings)) == triples(
        advantage_weights_of(group_of("+---"), SETTINGS)
    ), "mixed groups do not know it"


def test_without_their_rule_all_success_groups_have_z_scores() -> None:
    """Ends after 5, 5, 6, 6 chunks: two values, so +1 and -1. In a tree the clusters differ and the leaves do not."""
    slow = group_of("++++", [5, 5, 6, 6])
    by_group = advantage_weights_of(slow, replace(FAST, all_success_rule=False))
    np.testing.assert_allclose(by_group.positive, [0, 2, 1, 1, 0, 0, 0], atol=1e-3)
    np.testing.assert_allclose(by_group.negative, [0, 0, 0, 0, -2, -1, -1], atol=1e-3)
    by_tree = advantage_weights_of(slow, replace(FAST, all_success_rule=False, advantage="tree", tree_discount=0.5))
    np.testing.assert_allclose(by_tree.positive, [0, 2, 0.5, 0.5, 0, 0, 0], atol=1e-3)
    np.testing.assert_allclose(by_tree.negative, [0, 0, 0, 0, -2, -0.5, -0.5], atol=1e-3)
    with_rule = advantage_weights_of(slow, FAST)
    assert not with_rule.negative.any()


def test_successes_are_imitated_by_their_number() -> None:
    """Members 0 and 3 succeed: the root counts for both, their clusters and themselves for one."""
    found = success_weights_of(group_of("+--+"))
    assert triples(found) == [(2, 0, 2), (1, 0, 1), (1, 0, 1), (0, 0, 0), (1, 0, 1), (0, 0, 0), (1, 0, 1)]


def test_lost_successes_are_not_imitated() -> None:
    found = success_weights_of(group_of("+--+", lost=(0,)))
    assert triples(found) == [(1, 0, 1), (0, 0, 0), (0, 0, 0), (0, 0, 0), (1, 0, 1), (0, 0, 0), (1, 0, 1)]
    assert not success_weights_of(group_of("----")).members.any()


def trainer_of(tmp_path: Path, rollout: RolloutConfig, **update: Any) -> Trainer:
    config = RlConfig(
        policy="start",
        task=TASK,
        out="run",
        acting=ActingConfig(denoise_steps=2, chunk_length=1),
        rollout=rollout,
        update=UpdateConfig(**update),
    )
    metrics = MetricsWriter(tmp_path, tensorboard=False)
    return Trainer(config, toy_policy(), ToyPool(), tmp_path, metrics)  # type: ignore[arg-type]


def test_a_group_that_shares_all_its_chunks_is_dropped(tmp_path: Path) -> None:
    """Its mean return is within the bounds, but there is nothing to train on; one chunk more and there is."""
    trainer = trainer_of(tmp_path, replace(SETTINGS, reward_decay=0.9, filter_high=0.99))
    shared = group_of("++++", [2, 2, 2, 2])
    assert group_returns(shared, trainer.config.rollout).tolist() == pytest.approx([0.81] * 4)
    assert not trainer.keeps(shared)
    assert trainer.keeps(group_of("++++", [3, 3, 3, 3]))
    assert not trainer.keeps(group_of("++++", [3, 3, 3, 3], lost=(2, 3))), "what is left shares all"
    assert trainer.keeps(group_of("++++", [3, 3, 3, 3], lost=(1, 3)))


def test_imitation_keeps_what_all_members_share(tmp_path: Path) -> None:
    rollout = replace(SETTINGS, reward_decay=0.9, filter_high=0.99)
    trainer = trainer_of(tmp_path, rollout, objective="filtered_bc")
    assert trainer.keeps(group_of("++++", [2, 2, 2, 2]))
    assert not trainer.keeps(group_of("----", [2, 2, 2, 2]))


def test_the_filter_looks_at_the_mean_return(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, replace(SETTINGS, filter_low=0.3, filter_high=0.7))
    kept = [trainer.keeps(group_of(outcomes)) for outcomes in ("----", "+---", "++--", "+++-", "++++")]
    assert kept == [False, False, True, False, False]
    assert not trainer.keeps(group_of("++--", lost=(1, 2, 3)))


@pytest.mark.parametrize("initial_noise", ["member", "group"])
def test_how_chunks_are_sampled_follows_the_settings(tmp_path: Path, initial_noise: Any) -> None:
    """With two denoise steps the first is the stochastic one, and the state before it the initial noise."""
    rollout = replace(SETTINGS, groups=1, filter_low=0.0, filter_high=1.0, initial_noise=initial_noise)
    rollouts = trainer_of(tmp_path, rollout).collect(0, 1)
    starts = rollouts.ticks[1].sample.x_t[:, 0]
    assert len(starts) == 4, "P = 1"
    assert [bool((starts[0] == start).all()) for start in starts] == [True] + [initial_noise == "group"] * 3
