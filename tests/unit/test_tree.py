"""Branch plans: where members part, who owns which chunk, and what a segment counts."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from z1.rollout.tree import BranchPlan, Segment, Split, membership, parents, segment_weights

POINTS = {
    2: [[p] for p in range(17)],
    4: [
        [0, 0],
        [0, 1],
        [1, 2],
        [1, 3],
        [2, 4],
        [2, 5],
        [3, 6],
        [3, 7],
        [4, 8],
        [4, 9],
        [5, 10],
        [5, 11],
        [6, 12],
        [6, 13],
        [7, 14],
        [7, 15],
        [8, 16],
    ],
    8: [
        [0, 0, 0],
        [0, 0, 1],
        [0, 1, 2],
        [0, 1, 3],
        [1, 2, 4],
        [1, 2, 5],
        [1, 3, 6],
        [1, 3, 7],
        [2, 4, 8],
        [2, 4, 9],
        [2, 5, 10],
        [2, 5, 11],
        [3, 6, 12],
        [3, 6, 13],
        [3, 7, 14],
        [3, 7, 15],
        [4, 8, 16],
    ],
}
"""Branch points of a tree of 2, 4 and 8 members for P = 0..16: P / 4, P / 2 and P, rounded down."""

TREE = BranchPlan.tree(4, 4)
"""All together in chunks 0 and 1, in twos in chunks 2 and 3, alone from chunk 4 on."""


def shape(segments: list[Segment]) -> list[tuple[tuple[int, ...], int, int]]:
    return [(s.members, s.start, s.length) for s in segments]


def segments_of(plan: BranchPlan, *chunk_counts: int) -> list[tuple[tuple[int, ...], int, int]]:
    return shape(plan.segments(chunk_counts))


def splits_of(plan: BranchPlan) -> list[tuple[int, int]]:
    return [(split.chunk, split.fan_out) for split in plan.splits]


@pytest.mark.parametrize("group_size", [2, 4, 8])
@pytest.mark.parametrize("prefix", range(17))
def test_branch_points_of_a_tree(group_size: int, prefix: int) -> None:
    plan = BranchPlan.tree(group_size, prefix)
    assert splits_of(plan) == [(point, 2) for point in POINTS[group_size][prefix]]


@pytest.mark.parametrize(("group_size", "prefix"), [(2, 0), (8, 0), (8, 3), (5, 15)])
def test_a_shared_prefix_has_one_branch_point(group_size: int, prefix: int) -> None:
    assert splits_of(BranchPlan.shared_prefix(group_size, prefix)) == [(prefix, group_size)]


def test_a_flat_plan_is_a_shared_prefix_of_no_chunk() -> None:
    assert BranchPlan.flat(4) == BranchPlan.shared_prefix(4, 0)
    assert BranchPlan.flat(4) != BranchPlan.shared_prefix(4, 1)


@pytest.mark.parametrize("plan", [BranchPlan.flat(1), BranchPlan.shared_prefix(1, 5), BranchPlan.tree(1, 5)])
def test_a_single_member_never_parts(plan: BranchPlan) -> None:
    assert plan.splits == ()
    assert plan.parts((0,), 0) == plan.parts((0,), 9) == [(0,)]
    assert segments_of(plan, 7) == [((0,), 0, 7)]


def test_parts_by_hand() -> None:
    plan = BranchPlan.tree(8, 4)  # branch points 1, 2, 4
    everyone = tuple(range(8))
    assert plan.parts(everyone, 0) == [everyone]
    assert plan.parts(everyone, 1) == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert plan.parts((4, 5, 6, 7), 1) == [(4, 5, 6, 7)]
    assert plan.parts((4, 5, 6, 7), 2) == [(4, 5), (6, 7)]
    assert plan.parts((4, 5), 3) == [(4, 5)]
    assert plan.parts((4, 5), 4) == [(4,), (5,)]
    assert plan.parts((4,), 99) == [(4,)]


def test_branch_points_that_coincide_split_at_once() -> None:
    """P = 1 of 8 members: two branch points before the first chunk, one after it."""
    plan = BranchPlan.tree(8, 1)
    assert plan.parts(tuple(range(8)), 0) == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert plan.parts((2, 3), 1) == [(2,), (3,)]
    pairs = [((0, 1), 0, 1), ((0,), 1, 2), ((1,), 1, 2)]
    shifted = [(tuple(m + 2 * n for m in members), start, length) for n in range(4) for members, start, length in pairs]
    assert segments_of(plan, *[3] * 8) == shifted


def test_coinciding_branch_points_equal_one_of_a_larger_fan_out() -> None:
    twice = BranchPlan(group_size=4, splits=(Split(chunk=2, fan_out=2), Split(chunk=2, fan_out=2)))
    once = BranchPlan.shared_prefix(4, 2)
    for chunk in range(4):
        assert twice.parts((0, 1, 2, 3), chunk) == once.parts((0, 1, 2, 3), chunk)
    assert segments_of(twice, 3, 4, 5, 6) == segments_of(once, 3, 4, 5, 6)


@pytest.mark.parametrize("group_size", [2, 4, 8])
def test_no_shared_chunk_is_flat(group_size: int) -> None:
    counts = [3 + member for member in range(group_size)]
    alone = [((member,), 0, 3 + member) for member in range(group_size)]
    for plan in (
        BranchPlan.flat(group_size),
        BranchPlan.shared_prefix(group_size, 0),
        BranchPlan.tree(group_size, 0),
    ):
        assert segments_of(plan, *counts) == alone


def test_segments_of_a_tree_whose_members_all_run_long() -> None:
    assert segments_of(TREE, 6, 6, 6, 6) == [
        ((0, 1, 2, 3), 0, 2),
        ((0, 1), 2, 2),
        ((0,), 4, 2),
        ((1,), 4, 2),
        ((2, 3), 2, 2),
        ((2,), 4, 2),
        ((3,), 4, 2),
    ]


def test_segments_of_suffixes_of_uneven_length() -> None:
    assert segments_of(TREE, 9, 5, 6, 7)[1:] == [
        ((0, 1), 2, 2),
        ((0,), 4, 5),
        ((1,), 4, 1),
        ((2, 3), 2, 2),
        ((2,), 4, 2),
        ((3,), 4, 3),
    ]
    assert segments_of(BranchPlan.shared_prefix(3, 2), 3, 7, 4) == [
        ((0, 1, 2), 0, 2),
        ((0,), 2, 1),
        ((1,), 2, 5),
        ((2,), 2, 2),
    ]


def test_an_episode_that_ends_inside_a_shared_segment_is_shared_to_its_end() -> None:
    assert segments_of(TREE, 1, 1, 1, 1) == [((0, 1, 2, 3), 0, 1)]
    # The first two end in chunk 2, inside the segment that they share; the others go on and part at chunk 4.
    assert segments_of(TREE, 3, 3, 5, 6) == [
        ((0, 1, 2, 3), 0, 2),
        ((0, 1), 2, 1),
        ((2, 3), 2, 2),
        ((2,), 4, 1),
        ((3,), 4, 2),
    ]


def test_an_episode_that_ends_exactly_at_a_branch_point_does_not_split() -> None:
    assert segments_of(TREE, 2, 2, 2, 2) == [((0, 1, 2, 3), 0, 2)]
    assert segments_of(TREE, 4, 4, 5, 5) == [
        ((0, 1, 2, 3), 0, 2),
        ((0, 1), 2, 2),
        ((2, 3), 2, 2),
        ((2,), 4, 1),
        ((3,), 4, 1),
    ]


@pytest.mark.parametrize("plan", [BranchPlan.shared_prefix(4, 9), BranchPlan.tree(4, 18)])
def test_a_prefix_that_outlasts_the_episode_shares_all_of_it(plan: BranchPlan) -> None:
    """The first branch point is chunk 9 in both; episodes of 10 chunks do part."""
    assert segments_of(plan, 7, 7, 7, 7) == [((0, 1, 2, 3), 0, 7)]
    assert segments_of(plan, 9, 9, 9, 9) == [((0, 1, 2, 3), 0, 9)]
    assert len(segments_of(plan, 10, 10, 10, 10)) > 1


def test_no_chunk_no_segment() -> None:
    assert segments_of(TREE, 0, 0, 0, 0) == []


def random_plan(rng: np.random.Generator) -> BranchPlan:
    """Of any kind; fan-outs other than two included."""
    prefix = int(rng.integers(0, 13))
    kind = rng.integers(4)
    if kind == 0:
        return BranchPlan.flat(int(rng.integers(1, 7)))
    if kind == 1:
        return BranchPlan.shared_prefix(int(rng.integers(1, 7)), prefix)
    if kind == 2:
        return BranchPlan.tree(int(2 ** rng.integers(0, 4)), prefix)
    fan_outs = rng.integers(2, 4, size=int(rng.integers(1, 4)))
    chunks = np.sort(rng.integers(0, 10, size=len(fan_outs)))
    splits = tuple(Split(chunk=int(c), fan_out=int(f)) for c, f in zip(chunks, fan_outs, strict=True))
    return BranchPlan(group_size=int(np.prod(fan_outs)), splits=splits)


def cluster(plan: BranchPlan, member: int, chunk: int) -> tuple[int, ...]:
    """Who shares a chunk with a member, by counting down the fan-outs: independent of ``BranchPlan``'s own methods."""
    first, size = 0, plan.group_size
    for split in plan.splits:
        if split.chunk <= chunk:
            size //= split.fan_out
            first += (member - first) // size * size
    return tuple(range(first, first + size))


def random_counts(plan: BranchPlan, rng: np.random.Generator) -> list[int]:
    """Lengths of episodes that may end in any chunk, shared ones together."""
    counts = [0] * plan.group_size
    live = set(range(plan.group_size))
    for chunk in range(16):
        for members in {cluster(plan, member, chunk) for member in sorted(live)}:
            for member in members:
                counts[member] = chunk + 1
            if rng.random() < 0.15:
                live -= set(members)
    return counts


def test_every_chunk_of_every_member_has_exactly_one_owner() -> None:
    """On 400 random plans: owned once, by those who share it, and segments begin at the start or at a branch point."""
    rng = np.random.default_rng(5)
    shared = early = 0
    for _ in range(400):
        plan = random_plan(rng)
        counts = random_counts(plan, rng)
        segments = plan.segments(counts)
        owners: Counter[tuple[int, int]] = Counter()
        for segment in segments:
            assert segment.length >= 1
            assert segment.places == segment.states == []
            assert segment.start in {0, *(split.chunk for split in plan.splits)}
            for chunk in range(segment.start, segment.start + segment.length):
                assert cluster(plan, segment.members[0], chunk) == segment.members
                owners.update((member, chunk) for member in segment.members)
        assert owners == Counter((member, chunk) for member, count in enumerate(counts) for chunk in range(count))
        assert segments == sorted(segments, key=Segment.sort_key)
        shared += any(len(segment.members) > 1 for segment in segments)
        early += len({segment.start for segment in segments}) < len({split.chunk for split in plan.splits})
    assert shared > 100
    assert early > 20


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: BranchPlan.tree(6, 4), "a tree needs a power of two as its group size, got 6"),
        (lambda: BranchPlan.tree(0, 4), "a tree needs a power of two as its group size, got 0"),
        (lambda: BranchPlan.tree(4, -1), "branch points [-1, -1] are not in order"),
        (lambda: BranchPlan.shared_prefix(4, -2), "branch points [-2] are not in order"),
        (lambda: BranchPlan.flat(0), "splits () do not make 0 members"),
        (
            lambda: BranchPlan(group_size=4, splits=(Split(chunk=3, fan_out=2), Split(chunk=1, fan_out=2))),
            "branch points [3, 1] are not in order",
        ),
        (
            lambda: BranchPlan(group_size=3, splits=(Split(chunk=1, fan_out=2),)),
            "splits (Split(chunk=1, fan_out=2),) do not make 3 members",
        ),
        (
            lambda: BranchPlan(group_size=2, splits=(Split(chunk=0, fan_out=1), Split(chunk=1, fan_out=2))),
            "splits (Split(chunk=0, fan_out=1), Split(chunk=1, fan_out=2)) do not make 2 members",
        ),
    ],
)
def test_plans_that_cannot_be_are_refused(make, text: str) -> None:
    with pytest.raises(ValueError) as caught:
        make()
    assert str(caught.value) == text


def test_membership_and_parents_by_hand() -> None:
    segments = TREE.segments([3, 3, 5, 6])  # root, {0, 1} to its end, {2, 3}, 2, 3
    assert membership(segments, 4).tolist() == [
        [True, True, True, True],
        [True, True, False, False],
        [False, False, True, True],
        [False, False, True, False],
        [False, False, False, True],
    ]
    assert parents(segments).tolist() == [-1, 0, 0, 2, 2]


def test_parents_of_flat_groups_and_shared_prefixes() -> None:
    assert parents(BranchPlan.flat(3).segments([2, 2, 2])).tolist() == [-1, -1, -1]
    assert parents(BranchPlan.shared_prefix(3, 1).segments([2, 2, 2])).tolist() == [-1, 0, 0, 0]
    assert parents([]).tolist() == []


def test_a_parent_stands_before_its_children_and_ends_where_they_begin() -> None:
    rng = np.random.default_rng(6)
    grown = 0
    for _ in range(200):
        plan = random_plan(rng)
        segments = plan.segments(random_counts(plan, rng))
        for row, parent in enumerate(parents(segments)):
            if parent < 0:
                assert segments[row].start == 0
                continue
            before = segments[parent]
            assert parent < row
            assert before.start + before.length == segments[row].start
            assert set(segments[row].members) < set(before.members)
            grown += 1
    assert grown > 100


ADVANTAGES = np.array([1.5, -0.5, -0.25, 0.75])
OWNS = membership(TREE.segments([6, 6, 6, 6]), 4)
EVERYONE = np.ones(4, dtype=bool)


def weights(valid: np.ndarray = EVERYONE, **options: bool) -> list[tuple[float, float, float]]:
    """(positive, negative, members) of the segments root, 01, 0, 1, 23, 2, 3."""
    found = segment_weights(np.repeat(ADVANTAGES[None], 7, axis=0), OWNS, valid, **options)
    return list(zip(found.positive.tolist(), found.negative.tolist(), found.members.tolist(), strict=True))


def test_a_segment_counts_for_its_members_and_the_root_for_none() -> None:
    assert weights() == [
        (0, 0, 0),
        (1.5, -0.5, 2),
        (1.5, 0, 1),
        (0, -0.5, 1),
        (0.75, -0.25, 2),
        (0, -0.25, 1),
        (0.75, 0, 1),
    ]


def test_a_lost_member_counts_nowhere() -> None:
    valid = np.array([True, True, True, False])
    assert weights(valid) == [
        (0, 0, 0),
        (1.5, -0.5, 2),
        (1.5, 0, 1),
        (0, -0.5, 1),
        (0, -0.25, 1),
        (0, -0.25, 1),
        (0, 0, 0),
    ]


def test_what_all_survivors_share_is_not_trained_on() -> None:
    """Two and three are lost: segment {0, 1} is common to all that is left, like the root."""
    valid = np.array([True, True, False, False])
    assert weights(valid) == [(0, 0, 0), (0, 0, 0), (1.5, 0, 1), (0, -0.5, 1), (0, 0, 0), (0, 0, 0), (0, 0, 0)]
    one_of_each = np.array([True, False, True, False])
    assert weights(one_of_each)[:5] == [(0, 0, 0), (1.5, 0, 1), (1.5, 0, 1), (0, 0, 0), (0, -0.25, 1)]


def test_a_single_survivor_shares_everything_with_itself() -> None:
    valid = np.array([False, True, False, False])
    assert weights(valid) == [(0, 0, 0)] * 7
    assert weights(valid, train_shared_by_all=True)[:4] == [(0, -0.5, 1), (0, -0.5, 1), (0, 0, 0), (0, -0.5, 1)]


def test_no_survivor_no_weight() -> None:
    nobody = np.zeros(4, dtype=bool)
    assert weights(nobody) == weights(nobody, train_shared_by_all=True) == [(0, 0, 0)] * 7


def test_segments_shared_by_all_are_trained_on_when_asked_for() -> None:
    assert weights(train_shared_by_all=True)[0] == (1.5 + 0.75, -0.5 - 0.25, 4)
    assert weights(train_shared_by_all=True)[1:] == weights()[1:]
    survivors = weights(np.array([True, True, False, False]), train_shared_by_all=True)
    assert survivors[:2] == [(1.5, -0.5, 2), (1.5, -0.5, 2)]


def test_advantages_may_differ_from_segment_to_segment() -> None:
    by_segment = np.arange(7.0) - 3.0  # -3 (root) .. 3, the same for all members of a segment
    found = segment_weights(np.repeat(by_segment[:, None], 4, axis=1), OWNS, EVERYONE)
    assert found.positive.tolist() == [0, 0, 0, 0, 2, 2, 3]
    assert found.negative.tolist() == [0, -4, -1, 0, 0, 0, 0]


@pytest.mark.parametrize("train_shared_by_all", [False, True])
def test_segments_count_as_many_chunks_as_their_members_have(train_shared_by_all: bool) -> None:
    """Members times chunks over segments equals the valid members' chunks, less those that all of them share."""
    rng = np.random.default_rng(7)
    masked = lost = 0
    for _ in range(200):
        plan = random_plan(rng)
        counts = random_counts(plan, rng)
        segments = plan.segments(counts)
        valid = rng.random(plan.group_size) < 0.8
        survivors = set(np.flatnonzero(valid).tolist())
        advantages = rng.normal(size=(len(segments), plan.group_size))
        found = segment_weights(
            advantages,
            membership(segments, plan.group_size),
            valid,
            train_shared_by_all=train_shared_by_all,
        )
        expected = 0
        for member in survivors:
            for chunk in range(counts[member]):
                common = survivors <= set(cluster(plan, member, chunk))
                expected += not common or train_shared_by_all
                masked += common
        assert found.members @ [segment.length for segment in segments] == expected
        lost += len(survivors) < plan.group_size
    assert masked > 100
    assert lost > 50
