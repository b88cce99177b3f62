"""Collecting shared prefixes and trees: what is executed once, what is counted, and what ends where.

Chunks are one env step long here, so that an episode of the toy has eight of them, and the only stochastic denoise step
is the first of two, so that the recorded state before it is the chunk's initial noise.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from toy import TASK, ToyPool, spread, toy_policy
from z1.config import ActingConfig
from z1.policy.policy import Policy
from z1.policy.prefix_cache import PrefixStore
from z1.rollout.collector import Collector, Exploration
from z1.rollout.groups import RolloutCost, RolloutGroup, Rollouts, build_training_batch
from z1.rollout.tree import BranchPlan, Segment, segment_weights
from z1.seeding import Seeds
from z1.types import Scene

ACTING = ActingConfig(denoise_steps=2, chunk_length=1)
EXPLORE = Exploration(noise_level=0.5, exclude_last_step=True)
ADDRESS = ("iteration", 3)
SEEDS = Seeds(1)

TREE = BranchPlan.tree(4, 4)
"""Together in chunks 0 and 1, in twos in 2 and 3, alone from 4 on. Handles: 0 leads, 1 is members 2 and 3, then 2 is
member 1 and 3 is member 3."""

PLANS = {
    "flat": BranchPlan.flat(4),
    "shared_prefix": BranchPlan.shared_prefix(4, 3),
    "tree": TREE,
    "tree of 8": BranchPlan.tree(8, 4),
    "coinciding points": BranchPlan.tree(8, 1),
}


@pytest.fixture(scope="module")
def policy() -> Policy:
    return toy_policy()


def scenes() -> Iterator[Scene]:
    return (Scene.of_split(TASK, "train", index) for index in itertools.count())


def never(scene: Scene, number: int) -> bool:
    """Every episode runs to the horizon."""
    return False


def odd_ends(scene: Scene, number: int) -> int:
    """Successes at steps 1 to 9 (which is never), by scene and handle."""
    return 1 + (3 * scene.seed + 5 * number + scene.seed * number) % 9


def collect(
    policy: Policy,
    pool: ToyPool,
    plan: BranchPlan | Callable[[int], BranchPlan],
    *,
    live_members: int = 96,
    keeps: str = "prefix",
    **changes: Any,
) -> Rollouts:
    of = (lambda number: plan) if isinstance(plan, BranchPlan) else plan
    settings: dict[str, Any] = {"plan": of, "groups": 1, "explore": EXPLORE, **changes}
    store = PrefixStore(policy.model) if keeps == "prefix" else None
    collector = Collector(pool, policy, ACTING, live_members=live_members, store=store)
    return collector.collect(scenes(), SEEDS, ADDRESS, **settings)


def shape(segments: Any) -> list[tuple[tuple[int, ...], int, int]]:
    return [(s.members, s.start, s.length) for s in segments]


def counts(cost: RolloutCost) -> dict[str, int]:
    names = ("env_steps", "env_steps_flat", "policy_calls", "chunks", "vlm_prefixes", "denoise_steps", "forks")
    return {name: getattr(cost, name) for name in names}


def segment_of(group: RolloutGroup, *members: int) -> Segment:
    (found,) = [segment for segment in group.segments if segment.members == members]
    return found


def actions_of(rollouts: Rollouts, segment: Segment) -> torch.Tensor:
    """[chunks, H, D]"""
    return torch.stack([rollouts.ticks[tick].sample.actions[row] for tick, row in segment.places])


@pytest.mark.parametrize(
    ("plan", "forks", "expected"),
    [
        # Chunks 0..2 once, 3..7 four times: 3 + 20. Observations: three shared ones, the one at the branch point for
        # all four, then four times four: 3 + 1 + 16.
        (PLANS["shared_prefix"], [[3]], (23, 32, 8, 23, 20, 46, 3)),
        # Twice alone, twice in twos, four times by four: 2 + 4 + 16. Observations: 2; then 1 at the branch point and 2;
        # then 2 at the branch points and 3 times 4.
        (PLANS["tree"], [[1], [1, 1]], (22, 32, 8, 22, 2 + 1 + 2 + 2 + 12, 44, 3)),
        # Branch points 1, 2, 4: 1 + 2 + 4 + 4 + 4 * 8 = 43. Observations: 1, 1, 2, 4, 4, then 3 * 8.
        (PLANS["tree of 8"], [[1], [1, 1], [1, 1, 1, 1]], (43, 64, 8, 43, 36, 86, 7)),
        # Four clusters from the start, which see the same; after chunk 0 each of them parts: 4 + 7 * 8 = 60.
        # Observations: 1, then 4 for 8 members, then 6 * 8.
        (PLANS["coinciding points"], [[1, 1, 1, 1]], (60, 64, 8, 60, 53, 120, 4)),
        # All parts at once: 8 * 4; the first observation is encoded once.
        (PLANS["flat"], [], (32, 32, 8, 32, 1 + 28, 64, 0)),
    ],
    ids=["shared_prefix", "tree", "tree of 8", "coinciding points", "flat"],
)
def test_what_is_executed_and_encoded_by_hand(
    policy: Policy, plan: BranchPlan, forks: list[list[int]], expected: tuple[int, ...]
) -> None:
    pool = ToyPool(outcome=never)
    rollouts = collect(policy, pool, plan)
    assert tuple(counts(rollouts.cost).values()) == expected
    assert pool.forked == forks, "one call for all branch points of a tick"
    assert pool.counters.env_steps == rollouts.cost.env_steps
    assert all((e.env_steps, e.chunk_count) == (8, 8) for e in rollouts.kept[0].episodes)
    assert (pool.alive, pool.released) == (0, plan.group_size)


def test_groups_side_by_side_cost_as_much_as_one_by_one(policy: Policy) -> None:
    pool = ToyPool(outcome=never)
    rollouts = collect(policy, pool, TREE, groups=3)
    assert counts(rollouts.cost) == {
        "env_steps": 66,
        "env_steps_flat": 96,
        "policy_calls": 8,
        "chunks": 66,
        "vlm_prefixes": 57,
        "denoise_steps": 132,
        "forks": 9,
    }
    assert pool.batches == [3, 3, 6, 6, 12, 12, 12, 12]
    assert pool.forked == [[1] * 3, [1] * 6]


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_executed_segments_are_those_of_the_plan(policy: Policy, plan: BranchPlan) -> None:
    """With episodes that end all over the place, also inside what is shared."""
    rollouts = collect(policy, ToyPool(success_at=odd_ends), plan, groups=12)
    ends = set()
    for group in rollouts.kept:
        assert shape(group.segments) == shape(plan.segments(group.chunk_counts.tolist()))
        for segment in group.segments:
            assert len(segment.places) == len(segment.states) == segment.length
        assert all(e.env_steps == e.chunk_count for e in group.episodes)
        assert group.success.tolist() == [e.chunk_count < 8 or e.success for e in group.episodes]
        ends |= set(group.chunk_counts.tolist())
    assert len(ends) >= 5
    assert rollouts.cost.env_steps_flat == sum(int(group.chunk_counts.sum()) for group in rollouts.kept)
    assert rollouts.cost.env_steps == sum(s.length for group in rollouts.kept for s in group.segments)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_every_executed_chunk_is_kept_once(policy: Policy, plan: BranchPlan) -> None:
    rollouts = collect(policy, ToyPool(success_at=odd_ends), plan, groups=6)
    places = [place for group in rollouts.kept for segment in group.segments for place in segment.places]
    rows = [(tick, row) for tick, kept in enumerate(rollouts.ticks) for row in range(len(kept.executed))]
    assert sorted(places) == rows
    assert len(rows) == rollouts.cost.chunks
    for kept in rollouts.ticks:
        assert kept.prefix is not None
        assert len(kept.prefix) == len(kept.sample.x_t) == len(kept.executed_actions) == len(kept.executed)
    members = sum(int(group.chunk_counts.sum()) for group in rollouts.kept)
    assert (len(rows) < members) == (plan != PLANS["flat"])


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_rows_stand_in_the_order_of_groups_and_members(policy: Policy, plan: BranchPlan) -> None:
    rollouts = collect(policy, ToyPool(success_at=odd_ends), plan, groups=6)
    rows: dict[tuple[int, int], tuple[int, int]] = {}
    for number, group in enumerate(rollouts.kept):
        for segment in group.segments:
            rows |= dict.fromkeys(segment.places, (number, segment.members[0]))
    for tick, kept in enumerate(rollouts.ticks):
        owners = [rows[tick, row] for row in range(len(kept.executed))]
        assert owners == sorted(owners)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_cluster_has_the_noise_of_its_first_member(policy: Policy, plan: BranchPlan) -> None:
    """From the stream of the chunk's own address; no two chunks of a scene have the same."""
    rollouts = collect(policy, ToyPool(outcome=never), plan, groups=2)
    config = policy.config
    seen = set()
    for group in rollouts.kept:
        for segment in group.segments:
            for chunk, (tick, row) in enumerate(segment.places, start=segment.start):
                path = ("member", segment.members[0], "chunk", chunk)
                rng = SEEDS.rng(*ADDRESS, TASK, group.scene.seed, *path)
                expected = rng.standard_normal((config.horizon, config.action_dim), dtype=np.float32)
                found = rollouts.ticks[tick].sample.x_t[row, 0].numpy()
                np.testing.assert_array_equal(found, expected)
                seen.add(found.tobytes())
    assert len(seen) == rollouts.cost.chunks


@pytest.mark.parametrize("plan", [PLANS["flat"], TREE], ids=["flat", "tree"])
def test_members_may_start_from_the_same_noise(policy: Policy, plan: BranchPlan) -> None:
    """One draw per scene and chunk. What the stochastic step draws stays each cluster's own, and what it was before."""
    explore = replace(EXPLORE, group_noise=True)
    ours, own = (collect(policy, ToyPool(outcome=never), plan, groups=2, explore=e) for e in (explore, EXPLORE))
    seen = set()
    for group, twin in zip(ours.kept, own.kept, strict=True):
        for segment, other in zip(group.segments, twin.segments, strict=True):
            for chunk, (tick, row) in enumerate(segment.places, start=segment.start):
                start = ours.ticks[tick].sample.x_t[row, 0].numpy()
                expected = SEEDS.normal(start.shape, *ADDRESS, TASK, group.scene.seed, "group", "chunk", chunk)
                np.testing.assert_array_equal(start, expected)
                seen.add(start.tobytes())
            (tick, row), (tock, column) = segment.places[0], other.places[0]
            log_probs = ours.ticks[tick].sample.log_prob[row], own.ticks[tock].sample.log_prob[column]
            torch.testing.assert_close(*log_probs, rtol=0, atol=1e-4)  # the density of the same draw
    assert len(seen) == 2 * 8
    after = ours.ticks[-1].sample.x_next[:, 0]
    assert float((after[0] - after[1]).abs().max()) > 0.1


def test_siblings_share_the_vlm_prefix_but_not_the_noise(policy: Policy) -> None:
    rollouts = collect(policy, ToyPool(outcome=never), TREE)
    (group,) = rollouts.kept

    def first(*members: int) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
        segment = segment_of(group, *members)
        tick, row = segment.places[0]
        kept = rollouts.ticks[tick]
        assert kept.prefix is not None
        cache = kept.prefix.rows(torch.tensor([row])).fetch()
        return torch.stack([cache.keys[0], cache.values[0]]), kept.sample.x_t[row], segment.states[0]

    for one, other in [((0, 1), (2, 3)), ((0,), (1,)), ((2,), (3,))]:
        ours, theirs = first(*one), first(*other)
        assert torch.equal(ours[0], theirs[0])
        assert np.array_equal(ours[2], theirs[2])
        assert not torch.equal(ours[1], theirs[1])
    cousins = first(0), first(2)
    assert not torch.equal(cousins[0][0], cousins[1][0]), "they have been elsewhere meanwhile"
    assert not np.array_equal(cousins[0][2], cousins[1][2])


def test_forks_go_on_from_where_they_part(policy: Policy) -> None:
    """The state at a segment's start is what its parent's last chunk led to."""
    rollouts = collect(policy, ToyPool(outcome=never), TREE)
    (group,) = rollouts.kept
    for segment, parent in zip(group.segments, group.parents, strict=True):
        if parent < 0:
            assert not segment.states[0].any()
            continue
        before = group.segments[parent]
        tick, row = before.places[-1]
        moved = 0.25 * np.clip(policy.env_actions(rollouts.ticks[tick].sample.actions)[row, 0], -1, 1)
        np.testing.assert_allclose(segment.states[0], before.states[-1] + moved, atol=1e-6)


@pytest.mark.parametrize("make", [BranchPlan.shared_prefix, BranchPlan.tree])
def test_without_a_shared_chunk_rollouts_are_those_of_flat_groups(policy: Policy, make: Any) -> None:
    flat, ours = (
        collect(policy, ToyPool(success_at=odd_ends), plan, groups=5) for plan in (BranchPlan.flat(4), make(4, 0))
    )
    assert counts(ours.cost) == counts(flat.cost)
    assert len(ours.ticks) == len(flat.ticks)
    for mine, theirs in zip(ours.ticks, flat.ticks, strict=True):
        assert mine.prefix is not None
        assert theirs.prefix is not None
        for name in ("actions", "sde_index", "x_t", "x_next", "log_prob"):
            assert torch.equal(getattr(mine.sample, name), getattr(theirs.sample, name)), name
        assert torch.equal(mine.prefix.fetch().keys, theirs.prefix.fetch().keys)
        assert torch.equal(mine.executed_actions, theirs.executed_actions)
        assert torch.equal(mine.executed, theirs.executed)
    for mine, theirs in zip(ours.kept, flat.kept, strict=True):
        assert shape(mine.segments) == shape(theirs.segments)
        assert [s.places for s in mine.segments] == [s.places for s in theirs.segments]
        assert mine.episodes == theirs.episodes
    different = collect(policy, ToyPool(success_at=odd_ends), make(4, 2), groups=5)
    assert counts(different.cost) != counts(flat.cost)


@pytest.mark.parametrize("name", ["shared_prefix", "tree"])
def test_the_leader_executes_what_the_first_member_of_a_flat_group_does(policy: Policy, name: str) -> None:
    """The same noise bit for bit; the network's last bits depend on how many rows are computed together."""
    flat, shared = (collect(policy, ToyPool(outcome=never), PLANS[plan]) for plan in ("flat", name))
    path = [segment for segment in shared.kept[0].segments if 0 in segment.members]
    alone, other = (segment_of(flat.kept[0], member) for member in (0, 1))

    def noise(rollouts: Rollouts, segments: list[Segment]) -> torch.Tensor:
        return torch.stack([rollouts.ticks[t].sample.x_t[r, 0] for s in segments for t, r in s.places])

    assert torch.equal(noise(shared, path), noise(flat, [alone]))
    leader = torch.cat([actions_of(shared, segment) for segment in path])
    torch.testing.assert_close(leader, actions_of(flat, alone), rtol=0, atol=1e-5)
    states = np.stack([state for segment in path for state in segment.states])
    np.testing.assert_allclose(states, alone.states, atol=1e-5)
    assert float((leader - actions_of(flat, other)).abs().max()) > 0.1


@pytest.mark.parametrize("name", ["shared_prefix", "tree"])
def test_a_success_that_all_share_counts_for_all_and_ends_the_group(policy: Policy, name: str) -> None:
    pool = ToyPool(success_at=lambda scene, number: 2)
    rollouts = collect(policy, pool, PLANS[name])
    (group,) = rollouts.kept
    assert group.success.all()
    assert group.chunk_counts.tolist() == [2, 2, 2, 2]
    assert [e.env_steps for e in group.episodes] == [2, 2, 2, 2]
    assert shape(group.segments) == [((0, 1, 2, 3), 0, 2)]
    assert pool.forked == []
    assert counts(rollouts.cost) == {
        "env_steps": 2,
        "env_steps_flat": 8,
        "policy_calls": 2,
        "chunks": 2,
        "vlm_prefixes": 2,
        "denoise_steps": 4,
        "forks": 0,
    }
    assert (pool.alive, pool.released) == (0, 1)


def test_a_success_inside_a_cluster_counts_for_its_members_only(policy: Policy) -> None:
    """Members 2 and 3 succeed in their third chunk together, the others part and fail."""
    pool = ToyPool(success_at=lambda scene, number: 3 if number == 1 else 0)
    rollouts = collect(policy, pool, TREE)
    (group,) = rollouts.kept
    assert group.success.tolist() == [False, False, True, True]
    assert group.chunk_counts.tolist() == [8, 8, 3, 3]
    assert shape(group.segments) == [
        ((0, 1, 2, 3), 0, 2),
        ((0, 1), 2, 2),
        ((0,), 4, 4),
        ((1,), 4, 4),
        ((2, 3), 2, 1),
    ]
    assert pool.forked == [[1], [1]]
    assert rollouts.cost.env_steps == 2 + (2 + 4 + 4) + 1
    assert rollouts.cost.env_steps_flat == 8 + 8 + 3 + 3


@pytest.mark.parametrize(("horizon", "forks"), [(2, []), (3, []), (4, [[3]])])
def test_the_horizon_may_come_before_the_branch_point(policy: Policy, horizon: int, forks: list[list[int]]) -> None:
    """Branch point 3: episodes of three chunks are over when it comes."""
    pool = ToyPool(outcome=never, horizon=horizon)
    rollouts = collect(policy, pool, PLANS["shared_prefix"])
    (group,) = rollouts.kept
    assert group.chunk_counts.tolist() == [horizon] * 4
    assert not group.success.any()
    assert group.valid.all()
    assert pool.forked == forks
    assert rollouts.cost.env_steps == min(horizon, 3) + 4 * max(horizon - 3, 0)


def training_rows(rollouts: Rollouts) -> tuple[list[float], list[tuple[float, float]]]:
    """(members, (positive, negative)) of each row, from an advantage of +1, -2, +3, ... of member 0, 1, 2, ..."""
    weights = []
    for group in rollouts.kept:
        own = np.array([(-1.0) ** m * (m + 1) for m in range(len(group.episodes))])
        weights.append(segment_weights(np.repeat(own[None], len(group.segments), axis=0), group.owns, group.valid))
    batch = build_training_batch(rollouts.kept, spread(rollouts.kept, weights), rollouts.ticks, ACTING.chunk_length)
    assert batch is not None
    assert batch.executed_mask.all()
    return batch.members.tolist(), list(zip(batch.positive.tolist(), batch.negative.tolist(), strict=True))


def test_a_lost_leaf_leaves_the_shared_chunks_to_its_sibling(policy: Policy) -> None:
    """Handle 3 is member 3. Its first own chunk is lost; segment (2, 3) trains for member 2 alone."""
    pool = ToyPool(outcome=never, lost=lambda scene, number: number == 3)
    rollouts = collect(policy, pool, TREE)
    (group,) = rollouts.kept
    assert group.valid.tolist() == [True, True, True, False]
    assert not group.success.any()
    assert group.chunk_counts.tolist() == [8, 8, 8, 5]
    assert shape(group.segments) == shape(TREE.segments([8, 8, 8, 5]))
    assert rollouts.cost.env_steps == 2 + 2 * 2 + 3 * 4
    assert rollouts.cost.env_steps_flat == 3 * 8 + 4
    members, advantages = training_rows(rollouts)
    # Segments (0, 1), 0, 1, (2, 3), 2 of 2, 4, 4, 2, 4 chunks; the root and member 3's lost chunk are left out.
    assert members == [2] * 2 + [1] * 4 + [1] * 4 + [1] * 2 + [1] * 4
    assert advantages == [(1, -2)] * 2 + [(1, 0)] * 4 + [(0, -2)] * 4 + [(3, 0)] * 2 + [(3, 0)] * 4


def test_a_lost_cluster_invalidates_its_members_only(policy: Policy) -> None:
    """Handle 1 is members 4 to 7 of a tree of 8. What 0 to 3 share is then shared by all that is left."""
    pool = ToyPool(outcome=never, lost=lambda scene, number: number == 1)
    rollouts = collect(policy, pool, PLANS["tree of 8"])
    (group,) = rollouts.kept
    assert group.valid.tolist() == [True] * 4 + [False] * 4
    assert shape(group.segments)[:3] == [(tuple(range(8)), 0, 1), ((0, 1, 2, 3), 1, 1), ((0, 1), 2, 2)]
    assert shape(group.segments)[-1] == ((4, 5, 6, 7), 1, 1)
    assert pool.forked == [[1], [1], [1, 1]]
    members, advantages = training_rows(rollouts)
    half = [2] * 2 + [1] * 4 + [1] * 4
    assert members == half * 2
    assert advantages[:2] == [(1, -2)] * 2
    assert advantages[10:12] == [(3, -4)] * 2
    assert pool.alive == 0


def test_a_lost_leader_takes_all_members_with_it(policy: Policy) -> None:
    """Lost in its second chunk, before the first branch point; the other group goes on."""
    pool = ToyPool(outcome=never, lost=lambda scene, number: scene.seed == 1)
    rollouts = collect(policy, pool, TREE, groups=2)
    assert [group.valid.tolist() for group in rollouts.kept] == [[True] * 4, [False] * 4]
    assert shape(rollouts.kept[1].segments) == [((0, 1, 2, 3), 0, 2)]
    assert rollouts.cost.env_steps_flat == 4 * 8 + 4 * 1
    assert len(training_rows(rollouts)[0]) == 20


@pytest.mark.parametrize("name", ["shared_prefix", "tree"])
def test_results_do_not_depend_on_how_many_members_live(policy: Policy, name: str) -> None:
    """Nor do the noise and the order of the groups; the network's last bits depend on the rows computed together."""
    runs = [
        collect(policy, ToyPool(success_at=odd_ends), PLANS[name], groups=5, live_members=live)
        for live in (96, 9, 4, 1)
    ]
    for other in runs[1:]:
        assert counts(other.cost) | {"policy_calls": 0} == counts(runs[0].cost) | {"policy_calls": 0}
        for ours, theirs in zip(runs[0].kept, other.kept, strict=True):
            assert ours.episodes == theirs.episodes
            assert shape(ours.segments) == shape(theirs.segments)
            for mine, twin in zip(ours.segments, theirs.segments, strict=True):
                torch.testing.assert_close(actions_of(runs[0], mine), actions_of(other, twin), rtol=0, atol=1e-5)
    assert runs[3].cost.policy_calls > runs[0].cost.policy_calls


def test_groups_of_one_collection_may_have_different_plans(policy: Policy) -> None:
    """The first group is flat, the second a tree, the third has a shared prefix, and so on."""
    plans = [PLANS["flat"], PLANS["tree"], PLANS["shared_prefix"]]
    rollouts = collect(policy, ToyPool(outcome=never), lambda number: plans[number % 3], groups=6)
    for number, group in enumerate(rollouts.kept):
        assert group.scene.seed == number
        assert shape(group.segments) == shape(plans[number % 3].segments([8] * 4))
    assert rollouts.cost.env_steps == 2 * (32 + 22 + 23)


def test_a_plan_is_chosen_by_the_number_of_the_scene_when_groups_are_replaced(policy: Policy) -> None:
    asked: list[int] = []

    def plan(number: int) -> BranchPlan:
        asked.append(number)
        return PLANS["flat"] if number == 0 else TREE

    rollouts = collect(
        policy,
        ToyPool(outcome=never),
        plan,
        groups=2,
        live_members=4,
        keep=lambda group: group.scene.seed % 2 == 1,
    )
    assert [group.scene.seed for group in rollouts.kept] == [1, 3]
    assert [len(group.segments) for group in rollouts.groups] == [7, 7, 4, 7]
    assert asked == [0, 0, 1, 2, 3], "once for the size of the groups, then once for each"


@pytest.mark.parametrize("keep", ["prefix", "inputs"])
def test_shared_observations_reach_every_row(policy: Policy, keep: str) -> None:
    """What is kept of a row is its own observation, though siblings' are computed once."""
    rollouts = collect(policy, ToyPool(outcome=never), TREE, groups=3, keeps=keep)
    for tick in rollouts.ticks:
        kept = tick.prefix if tick.prefix is not None else tick.inputs
        assert kept is not None
        assert len(kept) == len(tick.executed)
    tick, row = segment_of(rollouts.kept[1], 1).places[0]
    other = segment_of(rollouts.kept[2], 1).places[0][1]
    source = rollouts.ticks[tick]
    if keep == "inputs":
        assert source.inputs is not None
        assert torch.equal(source.inputs.images[row], source.inputs.images[row - 1]), "its sibling 0"
        assert not torch.equal(source.inputs.images[row], source.inputs.images[other]), "another scene"
    else:
        assert source.prefix is not None
        keys = source.prefix.fetch().keys
        assert torch.equal(keys[row], keys[row - 1])
        assert not torch.equal(keys[row], keys[other])


def test_stochastic_steps_are_drawn_without_repetition_and_in_order(policy: Policy) -> None:
    explore = Exploration(noise_level=0.5, exclude_last_step=True, stochastic_steps=2)
    acting = ActingConfig(denoise_steps=4, chunk_length=1)
    rollouts = Collector(ToyPool(outcome=never), policy, acting, live_members=96).collect(
        scenes(), SEEDS, ADDRESS, plan=lambda number: TREE, groups=4, explore=explore
    )
    drawn = torch.cat([tick.sample.sde_index for tick in rollouts.ticks])
    assert {tuple(pair) for pair in drawn.tolist()} == {(0, 1), (0, 2), (1, 2)}
    weights = [segment_weights(np.ones((7, 4)), group.owns, group.valid) for group in rollouts.kept]
    batch = build_training_batch(rollouts.kept, spread(rollouts.kept, weights), rollouts.ticks, 1)
    assert batch is not None
    assert batch.x_t.shape == batch.x_next.shape == (4 * 20, 2, policy.config.horizon, policy.config.action_dim)
    assert batch.sde_index.shape == batch.recorded_log_prob.shape == (80, 2)
