"""Snapshots of all 50 tasks are exact on the same host and on another; every fifth is tried under another pool as well.

Each host is a process of its own; the second one never built the scene, it only sees the snapshot.

Compared bit by bit: images and state at the restore point and after every chunk, success, executed env steps, and the
bytes
of a last snapshot, which hold the full physics state, every Python attribute and the simulator's own observation.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from sims_helpers import SPEC

from z1.sims.check import compare_trajectories, play
from z1.sims.pool import SimPool
from z1.sims.suites import all_tasks
from z1.types import Scene

WARM_UP_CHUNKS, CHUNKS, LENGTH = 4, 2, 5


@pytest.fixture(scope="module")
def other_pool() -> Iterator[SimPool]:
    """A pool that never built any of the scenes."""
    with SimPool(SPEC, 1) as pool:
        yield pool


def noisy_expert(pool: SimPool, members: list, rng: np.random.Generator) -> np.ndarray:
    """float32 ``[1, LENGTH, 4]``: the expert's present action, with noise on every env step."""
    actions = pool.expert_actions(members)[:, None] + rng.normal(0, 0.3, (1, LENGTH, 4))
    return np.clip(actions, -1, 1).astype(np.float32)


@pytest.mark.parametrize("task", all_tasks("metaworld"))
def test_snapshots_are_exact_everywhere(task: str, two_hosts: SimPool, other_pool: SimPool) -> None:
    rng = np.random.default_rng(len(task))
    scene = Scene.of_split(task, "test", 4)
    (member,) = two_hosts.start([scene])[0]
    for _ in range(WARM_UP_CHUNKS):
        outcome = two_hosts.step_chunk([member], noisy_expert(two_hosts, [member], rng))
        assert not outcome.done[0]
    view, snapshot = two_hosts.observe([member]), two_hosts.snapshot(member)
    actions = np.concatenate([noisy_expert(two_hosts, [member], rng) for _ in range(CHUNKS)])
    expected = play(two_hosts, member, actions)
    here = two_hosts.host_of(member)
    two_hosts.release([member])
    places = [(two_hosts, here), (two_hosts, 1 - here)]
    if all_tasks().index(task) % 5 == 0:
        places.append((other_pool, 0))
    for pool, host in places:
        restored = pool.restore(scene, snapshot, host=host)
        assert pool.snapshot(restored) == snapshot
        found = pool.observe([restored])
        np.testing.assert_array_equal(found.images, view.images)
        np.testing.assert_array_equal(found.state, view.state)
        assert compare_trajectories(play(pool, restored, actions), expected) == ""
        pool.release([restored])
    assert compare_trajectories(expected, expected) == ""


def test_the_comparison_notices_other_actions(two_hosts: SimPool) -> None:
    scene = Scene.of_split("metaworld/push", "test", 0)
    first, second = two_hosts.start([scene], 2)[0]
    actions = np.zeros((2, LENGTH, 4), np.float32)
    others = actions.copy()
    others[1, -1, 3] = 1e-3
    difference = compare_trajectories(play(two_hosts, first, actions), play(two_hosts, second, others))
    assert difference
    two_hosts.release([first, second])
