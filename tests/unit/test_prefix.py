"""The length of the shared prefix: fixed, falling, or where successes and failures part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from toy import TASK
from z1.config import RolloutConfig
from z1.rollout.groups import Episode, RolloutGroup
from z1.rollout.prefix import (
    MARGIN,
    MIN_PAIRS,
    WINDOW,
    Distances,
    PrefixSchedule,
    group_distances,
    parting_chunk,
)
from z1.rollout.tree import BranchPlan
from z1.types import Scene

CHUNKS = 12
Where = Callable[[int, int], list[float]]
"""From member and chunk to a state."""


def group_of(success: str, where: Where, *, plan: BranchPlan | None = None, lost: tuple[int, ...] = ()) -> RolloutGroup:
    """A group of outcomes ``+`` and ``-`` whose members were at given places at the start of their CHUNKS chunks."""
    scene = Scene.of_split(TASK, "train", 0)
    episodes = [
        Episode(scene=scene, member=m, success=sign == "+", invalid=m in lost, env_steps=CHUNKS, chunk_count=CHUNKS)
        for m, sign in enumerate(success)
    ]
    segments = (plan or BranchPlan.flat(len(success))).segments([CHUNKS] * len(success))
    for segment in segments:
        chunks = range(segment.start, segment.start + segment.length)
        segment.states = [np.array(where(segment.members[0], chunk), dtype=np.float32) for chunk in chunks]
    return RolloutGroup(scene=scene, episodes=tuple(episodes), segments=tuple(segments))


def parting_at(chunk: int, success: str = "++++----") -> Where:
    """Successes and failures are spread by 0.1 each; from a chunk on they are 10 apart. The clock runs for all."""

    def where(member: int, at: int) -> list[float]:
        rank = success[:member].count(success[member])
        return [0.1 * rank + 10.0 * (success[member] == "-" and at >= chunk), float(at)]

    return where


def schedule_of(**settings: Any) -> PrefixSchedule:
    defaults: dict[str, Any] = {
        "group_size": 8,
        "plan": "shared_prefix",
        "prefix": 15,
        "prefix_schedule": "adaptive",
        "live_members": 96,
    }
    return PrefixSchedule(RolloutConfig(**{**defaults, **settings}), CHUNKS)


def learn(schedule: PrefixSchedule, chunk: int, *, groups: int = 2, plan: BranchPlan | None = None) -> int:
    """Shows an iteration of groups that part at a chunk; the next P."""
    schedule.observe([group_of("++++----", parting_at(chunk), plan=plan) for _ in range(groups)])
    return schedule.prefix(0.5)


def test_fixed() -> None:
    schedule = schedule_of(prefix_schedule="fixed", prefix=6)
    assert [schedule.prefix(progress) for progress in (0.0, 0.5, 1.0)] == [6, 6, 6]
    assert learn(schedule, 3) == 6
    assert schedule.parting is None


def test_linear_falls_from_the_largest_to_none() -> None:
    """P = 15 (1 - progress), to the nearest: 13.8 is 14, 7.5 is 8, 1.2 is 1, 0.3 is 0."""
    schedule = schedule_of(prefix_schedule="linear", prefix=15)
    table = {0.0: 15, 0.08: 14, 0.2: 12, 0.5: 8, 0.68: 5, 0.92: 1, 0.98: 0, 1.0: 0}
    assert {progress: schedule.prefix(progress) for progress in table} == table
    everywhere = [schedule.prefix(number / 40) for number in range(41)]
    assert everywhere == sorted(everywhere, reverse=True)
    assert set(everywhere) == set(range(16))


@pytest.mark.parametrize("kind", ["fixed", "linear", "adaptive"])
@pytest.mark.parametrize("prefix", [1, 3, 7])
def test_the_prefix_is_never_longer_than_the_setting(kind: str, prefix: int) -> None:
    schedule = schedule_of(prefix_schedule=kind, prefix=prefix)
    for chunk in (9, 2, 10, 5):
        assert 0 <= learn(schedule, chunk) <= prefix
        for progress in np.linspace(0, 1, 21):
            assert 0 <= schedule.prefix(float(progress)) <= prefix


def test_distances_by_hand() -> None:
    """Three members on a line, at 0, 3 and 7 in chunk 0: 0 and 1 succeed. Scaled by the std of all states seen.

    States over the group: 0, 3, 7 in each of the 12 chunks: mean 10/3, variance (100 + 1 + 121) / 27, std 2.8674.
    """
    group = group_of("++-", lambda member, chunk: [(0.0, 3.0, 7.0)[member]])
    found = group_distances(group, 1)
    std = np.sqrt(222 / 27)
    np.testing.assert_allclose(found.alike, [[3 / std, 1]], rtol=1e-5)
    np.testing.assert_allclose(found.opposite, [[(7 + 4) / std, 2]], rtol=1e-5)


def test_failures_are_not_compared_with_each_other() -> None:
    found = group_distances(group_of("+---", lambda member, chunk: [float(member)]), CHUNKS)
    assert found.opposite[:, 1].tolist() == [3] * CHUNKS
    assert found.alike[:, 1].tolist() == [0] * CHUNKS
    nothing = group_distances(group_of("----", lambda member, chunk: [float(member)]), CHUNKS)
    assert not nothing.opposite.any()
    assert not nothing.alike.any()


def test_pairs_that_still_share_their_chunks_are_left_out() -> None:
    """A tree of 4 with branch points 2 and 4; 0 and 2 succeed.

    Chunks 0 and 1: nothing to compare. Chunks 2 and 3: cluster {0, 1} against {2, 3}, four pairs, of which the one of
    two failures is left out. From 4 on all six pairs but that one.
    """
    group = group_of("+-+-", lambda member, chunk: [float(member), float(chunk)], plan=BranchPlan.tree(4, 4))
    found = group_distances(group, 6)
    assert found.alike[:, 1].tolist() == [0, 0, 1, 1, 1, 1]
    assert found.opposite[:, 1].tolist() == [0, 0, 2, 2, 4, 4]


def test_lost_members_are_left_out() -> None:
    """Of three successes and a failure, one success is lost."""
    found = group_distances(group_of("+++-", lambda member, chunk: [float(member)], lost=(1,)), 1)
    assert (found.alike[0, 1], found.opposite[0, 1]) == (1, 2)
    assert not group_distances(group_of("+---", lambda member, chunk: [1.0], lost=(0,)), 1).opposite.any()


def test_a_state_that_never_changes_does_not_matter() -> None:
    """Its scale is zero: it must neither divide by zero nor blow up rounding."""
    group = group_of("++-", lambda member, chunk: [float(member), 4.0])
    with np.errstate(all="raise"):
        found = group_distances(group, CHUNKS)
    plain = group_distances(group_of("++-", lambda member, chunk: [float(member)]), CHUNKS)
    np.testing.assert_allclose(found.opposite, plain.opposite)


def test_evaluation_groups_without_states_say_nothing() -> None:
    group = group_of("+-", lambda member, chunk: [0.0])
    for segment in group.segments:
        segment.states.clear()
    assert not group_distances(group, CHUNKS).opposite.any()


def test_episodes_that_ended_are_not_compared_any_more() -> None:
    group = group_of("++-", lambda member, chunk: [float(member)])
    del group.segments[1].states[3:]
    found = group_distances(group, 5)
    assert found.alike[:, 1].tolist() == [1, 1, 1, 0, 0]
    assert found.opposite[:, 1].tolist() == [2, 2, 2, 1, 1]


def columns(distances: list[float], pairs: int = MIN_PAIRS) -> np.ndarray:
    return np.array([[distance * pairs, pairs] for distance in distances])


@pytest.mark.parametrize(
    ("opposite", "found"),
    [
        ([1, 1, 2, 2, 2], 2),
        ([2, 2, 2, 2, 2], 0),
        ([1, 2, 1, 2, 2], 3),  # a single chunk is not enough
        ([1, 1, 1, 1, 2], None),
        ([1, 1.2, 1.24, 1.2, 1.2], None),  # not beyond 1.25
        ([1, 1.2, 1.26, 1.3, 1.2], 2),
        ([1, 1, 1, 1, 1], None),
    ],
)
def test_the_parting_is_the_first_of_two_chunks_beyond_the_threshold(opposite: list[float], found: int | None) -> None:
    assert parting_chunk(columns(opposite), columns([1] * 5)) == found


def test_too_few_pairs_say_nothing() -> None:
    apart, together = columns([1, 5, 5, 5, 5]), columns([1] * 5)
    assert parting_chunk(apart, together) == 1
    few = columns([1, 5, 5, 5, 5], MIN_PAIRS - 1)
    assert parting_chunk(few, together) is None
    assert parting_chunk(apart, columns([1] * 5, MIN_PAIRS - 1)) is None
    late = apart.copy()
    late[:3] = few[:3]
    assert parting_chunk(late, together) == 3
    assert parting_chunk(np.zeros((5, 2)), np.zeros((5, 2))) is None
    assert parting_chunk(apart[:1], together[:1]) is None


@pytest.mark.parametrize("chunk", [3, 5, 9])
def test_adaptive_finds_where_outcomes_part(chunk: int) -> None:
    schedule = schedule_of()
    assert schedule.prefix(0.0) == 0, "nothing is known yet"
    assert schedule.parting is None
    assert learn(schedule, chunk) == chunk - MARGIN
    assert schedule.parting == chunk


def test_adaptive_without_a_parting_stays_as_it_was() -> None:
    schedule = schedule_of()
    same = [group_of("++++----", parting_at(CHUNKS)) for _ in range(2)]
    schedule.observe(same)
    assert (schedule.prefix(0.5), schedule.parting) == (0, None)
    assert learn(schedule, 4) == 3
    schedule = schedule_of()
    assert learn(schedule, 4) == 3
    for _ in range(WINDOW):
        schedule.observe(same)
    assert schedule.parting is None
    assert schedule.prefix(0.5) == 3


def test_adaptive_needs_enough_pairs() -> None:
    """Of 2 successes and 2 failures there are 4 opposite pairs and one pair of successes: 8 groups make 8 of them."""
    for groups, expected in ((7, 0), (8, 4)):
        schedule = schedule_of(group_size=4)
        schedule.observe([group_of("++--", parting_at(5, "++--")) for _ in range(groups)])
        assert schedule.prefix(0.5) == expected
    schedule = schedule_of(group_size=4)
    for iteration in range(WINDOW):  # two groups in each of the window's iterations
        assert schedule.prefix(0.5) == 0, iteration
        schedule.observe([group_of("++--", parting_at(5, "++--")) for _ in range(2)])
    assert schedule.prefix(0.5) == 4


def test_adaptive_forgets_what_lies_before_the_window() -> None:
    """It follows a parting that comes later once the earlier one has left the window, and one that comes sooner."""
    schedule = schedule_of()
    assert learn(schedule, 3) == 2
    seen = [learn(schedule, 8) for _ in range(WINDOW)]
    assert seen == [2, 2, 2, 7]
    assert [learn(schedule, 2) for _ in range(WINDOW)][-1] == 1


def test_adaptive_never_leaves_its_bounds() -> None:
    assert learn(schedule_of(prefix=4), 9) == 4
    assert learn(schedule_of(), 0) == 0
    assert learn(schedule_of(), MARGIN) == 0
    assert learn(schedule_of(), MARGIN + 1) == 1


def test_adaptive_cannot_see_a_parting_among_chunks_that_are_shared() -> None:
    """They part in chunk 3, but branch in chunk 6: what is found is 6, and only a flat group shows it."""
    schedule = schedule_of()
    assert learn(schedule, 3, plan=BranchPlan.shared_prefix(8, 6)) == 5
    assert schedule.parting == 6
    schedule = schedule_of()
    groups = [group_of("++++----", parting_at(3), plan=plan) for plan in (BranchPlan.shared_prefix(8, 6),) * 3]
    flat = [group_of("++++----", parting_at(3)) for _ in range(2)]
    schedule.observe([*groups, *flat])
    assert schedule.prefix(0.5) == 2


@pytest.mark.parametrize(("plan", "make"), [("tree", BranchPlan.tree), ("shared_prefix", BranchPlan.shared_prefix)])
def test_one_group_of_an_adaptive_iteration_is_flat(plan: Any, make: Any) -> None:
    schedule = schedule_of(plan=plan)
    assert [schedule.plan(5, number) for number in range(3)] == [BranchPlan.flat(8), make(8, 5), make(8, 5)]
    assert schedule.plan(0, 1) == make(8, 0)


@pytest.mark.parametrize("kind", ["fixed", "linear"])
@pytest.mark.parametrize(("plan", "make"), [("tree", BranchPlan.tree), ("shared_prefix", BranchPlan.shared_prefix)])
def test_all_groups_of_other_schedules_are_alike(kind: str, plan: Any, make: Any) -> None:
    schedule = schedule_of(plan=plan, prefix_schedule=kind)
    assert {schedule.plan(5, number) for number in range(3)} == {make(8, 5)}


def test_flat_plans_have_no_prefix() -> None:
    schedule = schedule_of(plan="flat", prefix=0, prefix_schedule="fixed")
    assert schedule.prefix(0.3) == 0
    assert {schedule.plan(0, number) for number in range(3)} == {BranchPlan.flat(8)}


def test_state_round_trip() -> None:
    """What was learned and what is in the window come back: both schedules go on alike."""
    schedule, other = schedule_of(), schedule_of()
    for chunk in (7, 4, 4, 9, 9, 3):
        learn(schedule, chunk)
    other.load_state({name: array.copy() for name, array in schedule.state().items()})
    fresh = schedule_of()
    assert other.prefix(0.5) == schedule.prefix(0.5) > fresh.prefix(0.5) == 0
    assert other.state().keys() == schedule.state().keys()
    for name, array in schedule.state().items():
        np.testing.assert_array_equal(other.state()[name], array)
    for chunk in (6, 6, 2, 2, 2):
        assert learn(other, chunk) == learn(schedule, chunk)
        assert other.parting == schedule.parting
        learn(fresh, chunk)
    assert [len(s.state()) for s in (schedule, other)] == [2 * WINDOW + 1] * 2


@pytest.mark.parametrize("kind", ["fixed", "linear", "adaptive"])
def test_state_round_trip_before_anything_was_seen(kind: str) -> None:
    schedule, other = schedule_of(prefix_schedule=kind), schedule_of(prefix_schedule=kind)
    other.load_state(schedule.state())
    assert other.prefix(0.0) == schedule.prefix(0.0)


def test_distances_add_up() -> None:
    """Two groups seen at once or in two iterations give the same parting."""
    groups = [group_of("++++----", parting_at(5)), group_of("+++-----", parting_at(5, "+++-----"))]
    at_once, in_turn = schedule_of(), schedule_of()
    at_once.observe(groups)
    for group in groups:
        in_turn.observe([group])
    assert at_once.parting == in_turn.parting == 5
    total = Distances(
        opposite=sum(group_distances(g, CHUNKS).opposite for g in groups),  # type: ignore[arg-type]
        alike=sum(group_distances(g, CHUNKS).alike for g in groups),  # type: ignore[arg-type]
    )
    np.testing.assert_array_equal(at_once.state()["0.opposite"], total.opposite)
    np.testing.assert_array_equal(at_once.state()["0.alike"], total.alike)
