"""Collecting groups: sharing, filling up, budgets, losses, and what is kept for training."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from toy import HORIZON, TASK, ToyPool, spread, toy_policy
from z1.config import ActingConfig
from z1.errors import ConfigError, SimulatorError
from z1.eval.evaluate import evaluate_policy
from z1.policy.policy import Policy
from z1.policy.prefix_cache import PrefixStore
from z1.rollout.collector import Collector, Exploration
from z1.rollout.groups import RolloutGroup, Rollouts, build_training_batch
from z1.rollout.tree import BranchPlan, SegmentWeights, segment_weights
from z1.seeding import Seeds
from z1.types import Scene

ACTING = ActingConfig(denoise_steps=4, chunk_length=4)
EXPLORE = Exploration(noise_level=0.5, exclude_last_step=True)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return toy_policy()


def scenes() -> Iterator[Scene]:
    return (Scene.of_split(TASK, "train", index) for index in itertools.count())


def flat(number: int) -> BranchPlan:
    """Three members on their own."""
    return BranchPlan.flat(3)


def collect(
    policy: Policy, pool: ToyPool, *, live_members: int = 96, keeps: str = "prefix", **changes: Any
) -> Rollouts:
    settings: dict[str, Any] = {"plan": flat, "groups": 4, "explore": EXPLORE, **changes}
    address = settings.pop("address", ("iteration", 0))
    source = settings.pop("scenes", scenes())
    store = PrefixStore(policy.model) if keeps == "prefix" else None
    collector = Collector(pool, policy, ACTING, live_members=live_members, store=store)
    return collector.collect(source, Seeds(1), address, **settings)


def seeds_of(groups: tuple[RolloutGroup, ...]) -> list[int]:
    return [group.scene.seed for group in groups]


def weights_of(group: RolloutGroup, *advantages: float) -> SegmentWeights:
    """What the segments count, from an advantage per member."""
    owns = group.owns
    return segment_weights(np.repeat(np.array([advantages]), len(owns), axis=0), owns, group.valid)


def mixed(group: RolloutGroup) -> bool:
    return 0 < group.success.sum() < len(group.success)


def every_third(scene: Scene, member: int) -> bool:
    """Only the groups of scenes 0, 3, 6, ... have both outcomes."""
    return scene.seed % 3 == 0 and member == 1


def test_members_of_a_group_share_their_scene_and_first_observation(policy: Policy) -> None:
    pool = ToyPool(outcome=lambda scene, member: False)
    rollouts = collect(policy, pool, groups=2)
    assert seeds_of(rollouts.kept) == [0, 1]
    for group in rollouts.kept:
        assert [episode.member for episode in group.episodes] == [0, 1, 2]
        assert {episode.scene for episode in group.episodes} == {group.scene}
        assert all(episode.env_steps == HORIZON and episode.chunk_count == 2 for episode in group.episodes)
    assert pool.batches == [6, 6], "all live members take part in one policy call"
    assert rollouts.cost.vlm_prefixes == 2 + 6, "the first observation is encoded once per group"
    assert rollouts.cost.policy_calls == 2
    assert rollouts.cost.denoise_steps == 12 * 4
    assert rollouts.cost.env_steps == pool.counters.env_steps == 6 * HORIZON
    stored = rollouts.ticks[0].prefix
    assert stored is not None
    first = stored.fetch()
    assert torch.equal(first.keys[0], first.keys[1])
    assert not torch.equal(first.keys[0], first.keys[3])
    assert not torch.equal(rollouts.ticks[0].sample.x_t[0], rollouts.ticks[0].sample.x_t[1]), "members have own noise"
    assert (pool.alive, pool.released) == (0, 6)


def test_the_modulation_is_computed_once_per_collection(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    original, times = policy.model.modulation, []
    monkeypatch.setattr(policy.model, "modulation", lambda t: times.append(t) or original(t))
    rollouts = collect(policy, ToyPool(outcome=lambda scene, member: False), live_members=3)
    assert rollouts.cost.policy_calls == 8
    assert len(times) == 2, "once, and once more to see that the weights stayed as they were"
    assert torch.equal(times[0], times[1])


def test_dropped_groups_are_replaced_by_the_next_scenes(policy: Policy) -> None:
    pool = ToyPool(outcome=every_third)
    rollouts = collect(policy, pool, keep=mixed)
    assert seeds_of(rollouts.kept) == [0, 3, 6, 9]
    assert seeds_of(rollouts.dropped) == [1, 2, 4, 5, 7, 8]
    assert [scene.seed for scene in pool.started] == list(range(10)), "no scene is passed over"
    assert pool.alive == 0


def test_the_budget_ends_the_replacing(policy: Policy) -> None:
    pool = ToyPool(outcome=lambda scene, member: False)
    rollouts = collect(policy, pool, keep=mixed, max_env_steps=60)
    assert rollouts.kept == ()
    assert len(rollouts.dropped) == 4, "4 groups of 3 members cost 96 env steps"
    assert rollouts.cost.env_steps == 96
    again = collect(policy, ToyPool(outcome=lambda scene, member: False), keep=mixed, max_env_steps=97)
    assert len(again.dropped) == 8
    assert again.cost.env_steps == 192


def test_nothing_is_passed_over_when_few_members_may_live(policy: Policy) -> None:
    """The same groups come out, however many run at a time."""
    outcomes = []
    for live_members in (96, 6, 4, 1):
        pool = ToyPool()
        rollouts = collect(policy, pool, live_members=live_members)
        assert max(pool.batches) <= max(live_members, 3)
        assert [scene.seed for scene in pool.started] == [0, 1, 2, 3]
        outcomes.append([(e.success, e.env_steps, e.chunk_count) for g in rollouts.kept for e in g.episodes])
    assert outcomes.count(outcomes[0]) == 4


@pytest.mark.parametrize("live_members", [1, 3, 7, 50])
def test_every_evaluation_scene_gives_one_result_in_order(policy: Policy, live_members: int) -> None:
    fixed = [Scene.of_split(TASK, "test", index) for index in range(11)]
    results = evaluate_policy(ToyPool(), policy, ACTING, fixed, seed=0, live_members=live_members)
    assert [result.scene for result in results] == fixed
    assert all(0 < result.steps <= HORIZON for result in results)


def test_fewer_scenes_than_wanted_end_the_collection(policy: Policy) -> None:
    rollouts = collect(policy, ToyPool(), scenes=iter(list(itertools.islice(scenes(), 3))))
    assert seeds_of(rollouts.kept) == [0, 1, 2]


def test_lost_members_are_counted_and_never_trained_on(policy: Policy) -> None:
    pool = ToyPool(outcome=every_third, lost=lambda scene, member: scene.seed == 1 and member == 2)
    rollouts = collect(policy, pool, groups=3)
    lost = [(g.scene.seed, e.member) for g in rollouts.kept for e in g.episodes if e.invalid]
    assert lost == [(1, 2)]
    assert rollouts.kept[1].valid.tolist() == [True, True, False]
    weights = [weights_of(group, 1.0, 1.0, 1.0) for group in rollouts.kept]
    batch = build_training_batch(rollouts.kept, spread(rollouts.kept, weights), rollouts.ticks, 4)
    assert batch is not None
    assert len(batch) == 8 * 2, "the lost member's first chunk does not count either"
    assert pool.alive == 0


def test_too_many_lost_members_are_an_error(policy: Policy) -> None:
    pool = ToyPool(lost=lambda scene, member: member < 2)
    with pytest.raises(SimulatorError) as caught:
        collect(policy, pool)
    assert str(caught.value) == (
        "8 of 12 episodes were lost to simulator failures; expected at most 50%. "
        "Run z1 check-sim TASK to see what fails."
    )


def test_longer_chunks_than_the_policy_predicts_are_refused(policy: Policy) -> None:
    with pytest.raises(ConfigError) as caught:
        Collector(ToyPool(), policy, ActingConfig(chunk_length=5), live_members=1)
    text = "acting.chunk_length is 5, but the policy predicts 4 env steps; choose at most 4"
    assert str(caught.value) == text


def test_noise_has_an_address(policy: Policy) -> None:
    """The same seed, scene and chunk give the same rollouts; another iteration gives others."""
    first, same, other = (
        collect(policy, ToyPool(), address=("iteration", number)).ticks[0].sample for number in (0, 0, 1)
    )
    assert torch.equal(first.x_next, same.x_next)
    assert torch.equal(first.actions, same.actions)
    assert not torch.equal(first.x_next, other.x_next)


@pytest.mark.parametrize(("exclude_last_step", "steps"), [(True, {0, 1, 2}), (False, {0, 1, 2, 3})])
def test_stochastic_steps_are_drawn_per_chunk(policy: Policy, exclude_last_step: bool, steps: set[int]) -> None:
    explore = Exploration(noise_level=0.5, exclude_last_step=exclude_last_step)
    rollouts = collect(policy, ToyPool(), groups=10, explore=explore)
    drawn = torch.cat([tick.sample.sde_index for tick in rollouts.ticks])
    assert set(drawn.flatten().tolist()) == steps


@pytest.mark.parametrize("keep", ["prefix", "inputs"])
def test_what_training_needs_is_kept(policy: Policy, keep: str) -> None:
    rollouts = collect(policy, ToyPool(), keeps=keep)
    for tick in rollouts.ticks:
        assert (tick.prefix is None, tick.inputs is None) == (keep == "inputs", keep == "prefix")
        kept = tick.prefix if keep == "prefix" else tick.inputs
        assert kept is not None
        assert len(kept) == len(tick.executed) == len(tick.sample.x_t)
        assert int(tick.executed.min()) >= 1
        assert int(tick.executed.max()) <= 4
    chunks = [place for group in rollouts.kept for segment in group.segments for place in segment.places]
    assert len(chunks) == len(set(chunks)) == sum(len(tick.executed) for tick in rollouts.ticks)


def test_evaluation_keeps_nothing_and_draws_no_step(policy: Policy) -> None:
    rollouts = collect(policy, ToyPool(), explore=None)
    assert rollouts.ticks == ()
    assert not any(segment.places or segment.states for group in rollouts.kept for segment in group.segments)


def test_progress_is_told_after_each_tick(policy: Policy) -> None:
    told: list[tuple[int, int]] = []
    pool = ToyPool(outcome=lambda scene, member: True)
    collector = Collector(
        pool, policy, ACTING, live_members=4, on_tick=lambda steps, groups: told.append((steps, groups))
    )
    collector.collect(scenes(), Seeds(1), ("x",), plan=lambda number: BranchPlan.flat(2), groups=3, explore=None)
    assert told == [(16, 0), (32, 2), (40, 2), (48, 3)]


def test_the_batch_follows_group_member_and_chunk(policy: Policy) -> None:
    """Rows stand in the order of the segments, whatever tick they come from."""
    rollouts = collect(policy, ToyPool(), live_members=6)
    advantages = [np.array([1.0, -2.0, 0.5]) * (number + 1) for number in range(4)]
    weights = [weights_of(group, *values) for group, values in zip(rollouts.kept, advantages, strict=True)]
    batch = build_training_batch(rollouts.kept, spread(rollouts.kept, weights), rollouts.ticks, 4)
    assert batch is not None
    assert batch.prefix is not None
    keys, row = batch.prefix.fetch().keys, 0
    for group, advantage in zip(rollouts.kept, advantages, strict=True):
        assert [segment.members for segment in group.segments] == [(0,), (1,), (2,)]
        for segment, episode, value in zip(group.segments, group.episodes, advantage, strict=True):
            steps = 0
            for tick, place in segment.places:
                source = rollouts.ticks[tick]
                assert torch.equal(batch.x_t[row], source.sample.x_t[place])
                assert torch.equal(batch.x_next[row], source.sample.x_next[place])
                assert torch.equal(batch.actions[row], source.executed_actions[place])
                assert source.prefix is not None
                length = source.prefix.length
                assert torch.equal(keys[row, :, :length], source.prefix.fetch().keys[place])
                assert float(batch.positive[row] + batch.negative[row]) == value
                steps += int(batch.executed_mask[row].sum())
                row += 1
            assert steps == episode.env_steps
    assert row == len(batch)


def test_another_instruction_reaches_the_policy_and_changes_its_actions() -> None:
    scenes = [Scene.of_split(TASK, "test", index) for index in range(4)]
    policy, prompts, positions = toy_policy(), [], []
    prepare = policy.prepare
    policy.prepare = lambda observations: prompts.append(observations.instructions) or prepare(observations)  # type: ignore
    for instruction in ("", "move", "stay where you are"):
        pool = ToyPool()
        states: list[np.ndarray] = []
        observe = pool.observe
        pool.observe = lambda members, o=observe, s=states: s.append(o(members).state) or o(members)  # type: ignore
        evaluate_policy(pool, policy, ACTING, scenes, seed=0, live_members=4, instruction=instruction)  # type: ignore[arg-type]
        positions.append(np.concatenate(states))
    assert {text for texts in prompts for text in texts} == {"move", "stay where you are"}
    np.testing.assert_array_equal(positions[0], positions[1])
    assert not np.array_equal(positions[0][-4:], positions[2][-4:])


@pytest.mark.parametrize(
    ("plan", "expected"),
    [(BranchPlan.flat(4), [0.1, 1.5, 2.5, 3.5]), (BranchPlan.shared_prefix(4, 1), [0.1] * 4)],
    ids=["flat", "shared"],
)
def test_an_episode_remembers_its_nearest_chunk(policy: Policy, plan: BranchPlan, expected: list[float]) -> None:
    """Also one of a stretch that it shares; without a word from the simulator the distance is infinite."""
    asked: list[int] = []

    def distance(scene: Scene, number: int) -> float:
        asked.append(number)
        return 0.1 if len(asked) == 1 else 0.5 + number

    for nearest, wanted in ((distance, expected), (None, [np.inf] * 4)):
        collector = Collector(ToyPool(nearest=nearest), policy, ACTING, live_members=4)  # type: ignore[arg-type]
        rollouts = collector.collect(scenes(), Seeds(0), ("t",), plan=lambda number: plan, groups=1, explore=None)
        assert [episode.nearest for episode in rollouts.kept[0].episodes] == wanted
