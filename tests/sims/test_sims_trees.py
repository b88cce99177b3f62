"""Trees on real simulation: sharing changes no bit of what any member sees, nor does the number of hosts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
import torch
from sims_helpers import SPEC

from z1.config import ActingConfig
from z1.data.stats import compute_stats
from z1.errors import SimulatorError
from z1.policy.config import PolicyConfig, ProcessorConfig
from z1.policy.policy import Policy
from z1.rollout.collector import Collector, Exploration
from z1.rollout.groups import RolloutGroup, Rollouts
from z1.rollout.tree import BranchPlan
from z1.seeding import Seeds
from z1.sims.pool import Member, SimPool
from z1.types import Observations, Scene

LENGTH, CHUNKS, PREFIX = 5, 5, 3
"""Five chunks of five env steps; branch points 1 and 3."""

TREE_SPEC = replace(SPEC, cameras=("corner2",), image_size=32, horizon=LENGTH * CHUNKS)
SCENES = [Scene.of_split("metaworld/push", "train", index) for index in range(2)]


@pytest.fixture(scope="module")
def policy() -> Policy:
    """Random weights; its exploration moves the arm about."""
    rng = np.random.Generator(np.random.Philox(key=3))
    sizes = PolicyConfig.tiny(
        image_size=32, patch=16, width=32, depth=2, vision_width=32, vision_depth=1, expert_width=32, action_dim=4
    )
    processor = ProcessorConfig.of_dataset(
        cameras=("corner2",),
        state_stats=compute_stats(rng.uniform(-1, 1, (200, 4))),
        action_stats=compute_stats(rng.uniform(-1, 1, (200, 4))),
    )
    return Policy.create(sizes, processor, seed=5)


@pytest.fixture(scope="module")
def pools() -> Iterator[dict[int, SimPool]]:
    """One host and two hosts."""
    with ExitStack() as stack:
        yield {hosts: stack.enter_context(SimPool(TREE_SPEC, hosts)) for hosts in (1, 2)}


@pytest.fixture(scope="module")
def collected(policy: Policy, pools: dict[int, SimPool]) -> dict[int, Rollouts]:
    """Two trees of four members on either pool."""
    return {hosts: collect(policy, pool) for hosts, pool in pools.items()}


def collect(policy: Policy, pool: SimPool) -> Rollouts:
    acting = ActingConfig(denoise_steps=2, chunk_length=LENGTH)
    return Collector(pool, policy, acting, live_members=8).collect(
        iter(SCENES),
        Seeds(1),
        ("iteration", 0),
        plan=lambda number: BranchPlan.tree(4, PREFIX),
        groups=2,
        explore=Exploration(noise_level=0.5, exclude_last_step=True),
    )


def recorded(policy: Policy, rollouts: Rollouts, group: RolloutGroup, member: int) -> list[tuple[np.ndarray, ...]]:
    """(actions, images, state) of each chunk on a member's path."""
    path = []
    for segment in group.segments:
        if member in segment.members:
            for (number, row), state in zip(segment.places, segment.states, strict=True):
                tick = rollouts.ticks[number]
                assert tick.inputs is not None
                actions = policy.env_actions(tick.sample.actions)[row, :LENGTH]
                path.append((actions, tick.inputs.images[row].permute(0, 2, 3, 1).numpy(), state))
    return path


def same(seen: Observations, images: np.ndarray, state: np.ndarray) -> bool:
    return bool(np.array_equal(seen.images[0], images) and np.array_equal(seen.state[0], state))


def replay(pool: SimPool, member: Member, path: list[tuple[np.ndarray, ...]]) -> list[bool]:
    """For each chunk, whether the member sees what was recorded before it executes it."""
    found = []
    for actions, images, state in path:
        found.append(same(pool.observe([member]), images, state))
        pool.step_chunk([member], actions[None])
    return found


def test_a_tree_is_executed_as_planned(collected: dict[int, Rollouts], pools: dict[int, SimPool]) -> None:
    """One chunk for all, two in twos, two alone: 1 + 2 * 2 + 2 * 4 chunks a group."""
    for hosts, rollouts in collected.items():
        cost = rollouts.cost
        assert (cost.env_steps, cost.env_steps_flat) == (2 * 13 * LENGTH, 2 * 4 * CHUNKS * LENGTH)
        assert (cost.forks, cost.chunks, cost.vlm_prefixes) == (6, 26, 2 * (1 + 1 + 2 + 2 + 4))
        assert cost.renders == 2 + 2 * (1 + 2 + 2 + 4), "what nobody sees is not rendered"
        assert all(group.valid.all() and len(group.segments) == 7 for group in rollouts.kept)
        assert pools[hosts].counters.host_restarts == 0


def test_one_host_and_two_hosts_collect_the_same_tree(collected: dict[int, Rollouts]) -> None:
    one, two = collected[1], collected[2]
    assert len(one.ticks) == len(two.ticks) == CHUNKS
    for ours, theirs in zip(one.ticks, two.ticks, strict=True):
        assert ours.inputs is not None
        assert theirs.inputs is not None
        assert torch.equal(ours.inputs.images, theirs.inputs.images)
        assert torch.equal(ours.executed, theirs.executed)
        for name in ("actions", "sde_index", "x_t", "x_next", "log_prob"):
            assert torch.equal(getattr(ours.sample, name), getattr(theirs.sample, name)), name
    for mine, other in zip(one.kept, two.kept, strict=True):
        assert mine.episodes == other.episodes
        for segment, twin in zip(mine.segments, other.segments, strict=True):
            assert (segment.members, segment.start, segment.places) == (twin.members, twin.start, twin.places)
            np.testing.assert_array_equal(segment.states, twin.states)


@pytest.mark.parametrize("member", range(4))
def test_a_member_sees_what_it_would_see_on_its_own(
    member: int, policy: Policy, collected: dict[int, Rollouts], pools: dict[int, SimPool]
) -> None:
    """Its recorded actions, executed from the start by a member that shares nothing, lead through the same states."""
    group = collected[2].kept[1]
    path = recorded(policy, collected[2], group, member)
    assert len(path) == CHUNKS
    ((alone,),) = pools[1].start([SCENES[1]])
    assert replay(pools[1], alone, path) == [True] * CHUNKS
    pools[1].release([alone])
    sibling = recorded(policy, collected[2], group, member ^ 1)
    differs = [not np.array_equal(a[0], b[0]) for a, b in zip(path, sibling, strict=True)]
    assert differs == [False] * PREFIX + [True] * (CHUNKS - PREFIX)


def test_a_fork_from_the_wrong_chunk_is_noticed(
    policy: Policy, collected: dict[int, Rollouts], pools: dict[int, SimPool]
) -> None:
    """The twin: forked one chunk too early, too late, or from a cousin, the suffix begins somewhere else."""
    pool, group = pools[1], collected[1].kept[0]
    path, cousin = (recorded(policy, collected[1], group, member) for member in (1, 2))
    suffix = path[PREFIX:]
    ((leader, other),) = pool.start([SCENES[0]], 2)
    taken: list[Member] = [leader, other]

    def fork(origin: Member) -> Member:
        ((copy,),) = pool.fork([origin], [1])
        taken.append(copy)
        return copy

    assert replay(pool, leader, path[: PREFIX - 1]) == [True] * (PREFIX - 1)
    early = fork(leader)
    assert replay(pool, leader, path[PREFIX - 1 : PREFIX]) == [True]
    right = fork(leader)
    replay(pool, leader, path[PREFIX : PREFIX + 1])
    late = fork(leader)
    assert replay(pool, other, cousin[:PREFIX]) == [True] * PREFIX
    assert replay(pool, right, suffix) == [True] * len(suffix)
    for wrong in (early, other):
        assert replay(pool, wrong, suffix) == [False] * len(suffix)
    assert replay(pool, late, suffix[:1]) == [False]
    pool.release(taken)


def test_members_of_several_hosts_are_forked_in_one_call(pools: dict[int, SimPool]) -> None:
    """Each copy is in the state of its own origin, and on its host."""
    pool = pools[2]
    (first,), (second,) = pool.start(SCENES)
    actions = np.random.default_rng(2).uniform(-1, 1, (2, LENGTH, 4)).astype(np.float32)
    pool.step_chunk([first, second], actions)
    assert {pool.host_of(first), pool.host_of(second)} == {0, 1}
    before = pool.counters.copy()
    ours, theirs, none = pool.fork([first, second, second], [2, 1, 0])
    assert (len(ours), len(theirs), len(none)) == (2, 1, 0)
    snapshots = [pool.snapshot(member) for member in (first, second)]
    assert snapshots[0] != snapshots[1]
    assert [pool.snapshot(copy) for copy in (*ours, *theirs)] == [snapshots[0], snapshots[0], snapshots[1]]
    assert [pool.host_of(copy) for copy in (*ours, *theirs)] == [pool.host_of(m) for m in (first, first, second)]
    assert (pool.counters.env_steps, pool.counters.renders) == (before.env_steps, before.renders)
    pool.release([first, second, *ours, *theirs])
    with pytest.raises(SimulatorError) as caught:
        pool.fork([first], [1])
    assert str(caught.value) == (
        f"member {first.id} of metaworld/push is not known to this SimPool; it was released or belongs to another pool"
    )
