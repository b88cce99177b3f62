"""Which training scenes are drawn: addresses, replay of scenes with both outcomes, and an exact resume."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from z1.rollout.groups import Episode, RolloutGroup
from z1.rollout.scenes import KEPT_SCENES, SceneSource
from z1.seeding import Seeds
from z1.types import SCENES_PER_SPLIT, Scene

TASK = "toy/side"


def group_of(index: int, outcomes: str) -> RolloutGroup:
    """A group whose members succeeded (+), failed (-) or were lost (x)."""
    scene = Scene.of_split(TASK, "train", index)
    episodes = tuple(
        Episode(scene=scene, member=m, success=outcome == "+", invalid=outcome == "x")
        for m, outcome in enumerate(outcomes)
    )
    return RolloutGroup(scene=scene, episodes=episodes, segments=())


def drawn(source: SceneSource, iteration: int, count: int) -> list[int]:
    return [scene.seed for scene in itertools.islice(source.draw(iteration), count)]


def test_without_replay_scenes_are_new_and_have_an_address() -> None:
    source, twin = SceneSource(TASK, Seeds(3), 0.0), SceneSource(TASK, Seeds(3), 0.0)
    source.observe([group_of(7, "+-")])
    first = drawn(source, 0, 50)
    assert len(set(first)) == 50
    assert drawn(twin, 0, 50) == first
    assert drawn(twin, 1, 50) != first
    assert all(0 <= seed < SCENES_PER_SPLIT for seed in first)


def test_replay_draws_mixed_scenes_and_no_others() -> None:
    source = SceneSource(TASK, Seeds(3), 0.9)
    source.observe(
        [group_of(1, "++++"), group_of(2, "----"), group_of(3, "+---"), group_of(4, "+-xx"), group_of(5, "xx")]
    )
    seeds = drawn(source, 0, 200)
    assert {3, 4} <= set(seeds)
    assert not {1, 2, 5} & set(seeds)
    assert Counter(seeds).most_common(1)[0][1] == 1, "no scene twice in an iteration"
    assert drawn(SceneSource(TASK, Seeds(3), 0.9), 0, 200) != seeds, "nothing is replayed before anything is known"


def test_uncertain_scenes_are_drawn_more_often() -> None:
    """Weights p (1 - p): 0.25 at one half, 7/64 at one eighth; the former comes first in 0.7 of the cases."""
    first: Counter[int] = Counter()
    for seed in range(400):
        source = SceneSource(TASK, Seeds(seed), 0.999)
        source.observe([group_of(1, "++++----"), group_of(2, "+-------")])
        first[drawn(source, 0, 1)[0]] += 1
    expected = 0.25 / (0.25 + 7 / 64)
    assert first[1] / 400 == pytest.approx(expected, abs=0.07)
    assert first[1] + first[2] >= 395


def test_a_scene_that_has_become_decided_is_forgotten() -> None:
    source = SceneSource(TASK, Seeds(3), 0.9)
    source.observe([group_of(3, "+-"), group_of(4, "+-")])
    source.observe([group_of(3, "++")])
    assert 4 in drawn(source, 1, 50)
    assert 3 not in drawn(source, 1, 50)


def test_the_oldest_scenes_make_room() -> None:
    source = SceneSource(TASK, Seeds(3), 0.5)
    source.observe([group_of(index, "+-") for index in range(KEPT_SCENES + 3)])
    source.observe([group_of(3, "+-")])
    assert source.state()["seed"].tolist() == [*range(4, KEPT_SCENES + 3), 3]


def test_the_state_comes_back_exactly() -> None:
    source, other = SceneSource(TASK, Seeds(3), 0.5), SceneSource(TASK, Seeds(3), 0.5)
    source.observe([group_of(index, "+--") for index in range(5)])
    assert drawn(other, 2, 30) != drawn(source, 2, 30)
    other.load_state(source.state())
    assert drawn(other, 2, 30) == drawn(source, 2, 30)
