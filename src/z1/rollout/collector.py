"""Runs groups of episodes on a SimPool, all live branches of all scenes and hosts in one policy batch.

    scenes ─► start ─► branch ─► observe ─► encode each distinct observation once ─► sample chunks ─► step_chunk ─┐
                 ▲        ▲                                                                                      │
                 │        └────────────────────────── live branches ◄────────────────────────────────────────────┤
                 └── replace groups that the filter drops ◄── finished groups ◄──────────────────────────────────┘

A branch is a cluster of members that still share their chunks: it is simulated, rendered and inferred once. The order
of the rows follows from the scenes and plans alone, so the numbers do not depend on how many hosts share the work.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import torch

from z1.config import ActingConfig
from z1.errors import ConfigError, SimulatorError
from z1.policy.policy import Policy
from z1.policy.prefix_cache import PrefixStore
from z1.policy.sampler import sample_chunk
from z1.rollout.groups import Episode, RolloutCost, RolloutGroup, Rollouts, Tick
from z1.rollout.tree import BranchPlan, Segment
from z1.seeding import Seeds
from z1.sims.pool import Member, SimPool
from z1.types import Observations, Scene

MAX_INVALID_SHARE = 0.5
"""Share of a finished collection's members that may be lost to simulator failures before it is an error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exploration:
    """How chunks are sampled when the policy is to learn from them.

    Attributes:
        noise_level: a, scale of the stochastic denoise steps.
        correlation: rho, of their noise between an env step of the chunk and the next.
        modes: n, how many of a chunk's slowest movements count in the likelihood; 0: every env step.
        stochastic_steps: M, how many of a chunk's denoise steps are stochastic.
        exclude_last_step: Whether the last denoise step is never stochastic.
        group_noise: Whether all members of a group start a chunk from the same initial noise.
        summarise: Whether to note what a critic sees of each observation.
    """

    noise_level: float
    exclude_last_step: bool
    correlation: float = 0.0
    modes: int = 0
    stochastic_steps: int = 1
    group_noise: bool = False
    summarise: bool = False


@dataclass(slots=True)
class _Branch:
    """Members of a group that still share their chunks.

    Attributes:
        scene: Their scene.
        handle: Where they live.
        segment: The stretch that they are on.
        origin: Equal for branches that see the same observation.
        chunk: Number of the next chunk.
        env_steps: Env steps since the start of the episode.
        nearest: Smallest distance between gripper and the task's object so far, in metres.
    """

    scene: Scene
    handle: Member
    segment: Segment
    origin: int
    chunk: int = 0
    env_steps: int = 0
    nearest: float = math.inf


@dataclass(slots=True)
class _LiveGroup:
    """A group under way.

    Attributes:
        order: Number of its scene, from 0.
        scene: The scene.
        plan: Where its members part.
        episodes: One per member.
        branches: The live ones, in order of their members.
        segments: Those begun so far.
    """

    order: int
    scene: Scene
    plan: BranchPlan
    episodes: list[Episode]
    branches: list[_Branch]
    segments: list[Segment] = field(default_factory=list)


def check_chunk_length(policy: Policy, acting: ActingConfig) -> None:
    """Refuses chunks that are longer than what the policy predicts.

    Raises:
        ConfigError: C is larger than H.
    """
    horizon = policy.config.horizon
    if acting.chunk_length > horizon:
        raise ConfigError(
            f"acting.chunk_length is {acting.chunk_length}, but the policy predicts {horizon} env steps; "
            f"choose at most {horizon}"
        )


class Collector:
    """Collects groups with one policy on one pool.

    Args:
        pool: The simulators.
        policy: The policy; its processor must name the pool's cameras.
        acting: Denoise steps and chunk length.
        live_members: Most members that run at the same time.
        store: Where the VLM prefixes go that training needs; None: the model inputs are kept (the VLM trains).
        on_tick: Called after each tick with (env steps so far, groups finished so far).
        instruction: What the policy is told instead of the task's own instruction; empty: the task's own.
    """

    def __init__(
        self,
        pool: SimPool,
        policy: Policy,
        acting: ActingConfig,
        *,
        live_members: int,
        store: PrefixStore | None = None,
        on_tick: Callable[[int, int], None] | None = None,
        instruction: str = "",
    ) -> None:
        check_chunk_length(policy, acting)
        self._pool = pool
        self._policy = policy
        self._acting = acting
        self._live_members = live_members
        self._store = store
        self._on_tick = on_tick
        self._instruction = instruction
        self._origins = 0

    def collect(
        self,
        scenes: Iterator[Scene],
        seeds: Seeds,
        address: Sequence[str | int],
        *,
        plan: Callable[[int], BranchPlan],
        groups: int,
        explore: Exploration | None,
        keep: Callable[[RolloutGroup], bool] = lambda group: True,
        max_env_steps: int | None = None,
    ) -> Rollouts:
        """Runs groups until enough are kept, the scenes end, or the budget is spent.

        Args:
            scenes: Where the next group's scene comes from.
            seeds: The run's random streams.
            address: Start of the path of every stream drawn here.
            plan: Where the members of a group part, by the number of its scene, from 0; all plans have the same G.
            groups: How many groups to keep; a group for which ``keep`` is false is replaced by the next scene.
            explore: How to sample for learning; None: ODE steps only, nothing is kept for training.
            keep: The group filter.
            max_env_steps: No further group is started once so many env steps were executed.

        Returns:
            The groups and, with ``explore``, the ticks that their chunks refer to.

        Raises:
            SimulatorError: More than half of the members were lost.
        """
        began = time.perf_counter()
        before = self._pool.counters.copy()
        cost = RolloutCost()
        ticks: list[Tick] = []
        live: list[_LiveGroup] = []
        finished: list[tuple[int, bool, RolloutGroup]] = []
        capacity = max(1, self._live_members // plan(0).group_size)
        started = 0
        with self._policy.model.constant_weights():
            while True:
                wanted = groups - len(live) - sum(kept for _, kept, _ in finished)
                room = min(wanted, capacity - len(live))
                if max_env_steps is not None and cost.env_steps >= max_env_steps:
                    room = 0
                fresh = list(islice(scenes, max(room, 0)))
                live += self._start(fresh, [plan(started + i) for i in range(len(fresh))], started, cost)
                started += len(fresh)
                if not live:
                    break
                self._tick(live, seeds, address, explore, ticks, cost)
                for group in [g for g in live if not g.branches]:
                    live.remove(group)
                    segments = tuple(sorted(group.segments, key=Segment.sort_key))
                    done = RolloutGroup(scene=group.scene, episodes=tuple(group.episodes), segments=segments)
                    finished.append((group.order, kept := keep(done), done))
                    if not kept:
                        _give_up(done, ticks)
                if self._on_tick is not None:
                    self._on_tick(cost.env_steps, len(finished))
        finished.sort(key=lambda entry: entry[0])
        _refuse_lost([group for _, _, group in finished])
        after = self._pool.counters
        cost.env_steps_flat = sum(e.env_steps for _, _, group in finished for e in group.episodes)
        cost.renders = after.renders - before.renders
        cost.sim_s = after.sim_s - before.sim_s
        cost.render_s = after.render_s - before.render_s
        cost.total_s = time.perf_counter() - began
        return Rollouts(
            kept=tuple(group for _, kept, group in finished if kept),
            dropped=tuple(group for _, kept, group in finished if not kept),
            ticks=tuple(ticks),
            cost=cost,
        )

    def _start(self, scenes: list[Scene], plans: list[BranchPlan], order: int, cost: RolloutCost) -> list[_LiveGroup]:
        if not scenes:
            return []
        began = time.perf_counter()
        clusters = [plan.parts(tuple(range(plan.group_size)), 0) for plan in plans]
        handles: list[list[Member]] = [[] for _ in scenes]
        for count in sorted({len(parts) for parts in clusters}):
            chosen = [i for i, parts in enumerate(clusters) if len(parts) == count]
            for i, members in zip(chosen, self._pool.start([scenes[i] for i in chosen], count), strict=True):
                handles[i] = members
        cost.pool_s += time.perf_counter() - began
        groups = []
        for i, (scene, plan) in enumerate(zip(scenes, plans, strict=True)):
            origin = self._new_origin()
            branches = [
                _Branch(scene=scene, handle=handle, segment=Segment(members=part, start=0), origin=origin)
                for part, handle in zip(clusters[i], handles[i], strict=True)
            ]
            groups.append(
                _LiveGroup(
                    order=order + i,
                    scene=scene,
                    plan=plan,
                    episodes=[Episode(scene=scene, member=m) for m in range(plan.group_size)],
                    branches=branches,
                    segments=[branch.segment for branch in branches],
                )
            )
        return groups

    def _new_origin(self) -> int:
        self._origins += 1
        return self._origins

    def _split(self, live: list[_LiveGroup], cost: RolloutCost) -> None:
        """Makes the branches of the plans' branch points: forks share observation and past, and cost no env step."""
        splitting = [
            (group, branch, parts)
            for group in live
            for branch in group.branches
            if len(parts := group.plan.parts(branch.segment.members, branch.chunk)) > 1
        ]
        if not splitting:
            return
        began = time.perf_counter()
        forks = self._pool.fork([b.handle for _, b, _ in splitting], [len(parts) - 1 for _, _, parts in splitting])
        for (group, branch, parts), handles in zip(splitting, forks, strict=True):
            children = [
                replace(branch, handle=handle, segment=Segment(members=part, start=branch.chunk))
                for part, handle in zip(parts, (branch.handle, *handles), strict=True)
            ]
            at = group.branches.index(branch)
            group.branches[at : at + 1] = children
            group.segments += [child.segment for child in children]
            cost.forks += len(handles)
        cost.fork_s += time.perf_counter() - began

    def _tick(
        self,
        live: list[_LiveGroup],
        seeds: Seeds,
        address: Sequence[str | int],
        explore: Exploration | None,
        ticks: list[Tick],
        cost: RolloutCost,
    ) -> None:
        self._split(live, cost)
        rows = [(group, branch) for group in live for branch in group.branches]
        branches = [branch for _, branch in rows]
        handles = [branch.handle for branch in branches]
        observed = time.perf_counter()
        observations = self._pool.observe(handles).told(self._instruction)
        began = time.perf_counter()
        tick, actions = self._act(observations, branches, seeds, address, explore, cost)
        acted = time.perf_counter()
        outcome = self._pool.step_chunk(handles, actions[:, : self._acting.chunk_length])
        done = outcome.done
        self._pool.release([handle for handle, ended in zip(handles, done, strict=True) if ended])
        cost.policy_s += acted - began
        cost.pool_s += time.perf_counter() - acted + began - observed
        cost.env_steps += int(outcome.executed.sum())
        for row, (group, branch) in enumerate(rows):
            branch.env_steps += int(outcome.executed[row])
            if outcome.nearest is not None:
                branch.nearest = min(branch.nearest, float(outcome.nearest[row]))
            branch.chunk += 1
            branch.origin = self._new_origin()
            branch.segment.length += 1
            if explore is not None:
                branch.segment.places.append((len(ticks), row))
                branch.segment.states.append(observations.state[row])
            if done[row]:
                group.branches.remove(branch)
                invalid = bool(outcome.invalid[row])
                for member in branch.segment.members:
                    episode = group.episodes[member]
                    episode.success = bool(outcome.success[row]) and not invalid
                    episode.invalid = invalid
                    episode.env_steps, episode.chunk_count = branch.env_steps, branch.chunk
                    episode.nearest = branch.nearest
        if explore is not None:
            tick.executed.copy_(torch.from_numpy(outcome.executed))
            ticks.append(tick)

    @torch.no_grad()
    def _act(
        self,
        observations: Observations,
        branches: list[_Branch],
        seeds: Seeds,
        address: Sequence[str | int],
        explore: Exploration | None,
        cost: RolloutCost,
    ) -> tuple[Tick, np.ndarray]:
        policy, steps = self._policy, self._acting.denoise_steps
        distinct, inverse = _distinct_observations(branches)
        inputs = policy.prepare(observations.rows(distinct))
        prefix = policy.model.encode_prefix(inputs)
        stored = self._store.add(prefix, inputs) if self._store is not None and explore is not None else None
        if len(distinct) < len(branches):
            prefix = prefix.rows(torch.from_numpy(inverse))
        noise, sde_index, sde_noise = _draw(branches, seeds, address, policy, steps, explore)
        sample = sample_chunk(
            policy.model,
            prefix,
            initial_noise=noise,
            denoise_steps=steps,
            noise_level=explore.noise_level if explore else 0.0,
            sde_index=sde_index,
            sde_noise=sde_noise,
            executed_steps=self._acting.chunk_length,
            counted_dims=policy.counted_dims,
            correlation=explore.correlation if explore else 0.0,
            modes=explore.modes if explore else 0,
        )
        actions = policy.env_actions(sample.actions)
        cost.policy_calls += 1
        cost.vlm_prefixes += len(distinct)
        cost.chunks += len(branches)
        cost.denoise_steps += steps * len(branches)
        keeps_inputs = explore is not None and self._store is None
        tick = Tick(
            prefix=None if stored is None else stored.rows(torch.from_numpy(inverse)),
            inputs=inputs.rows(torch.from_numpy(inverse)) if keeps_inputs else None,
            sample=sample,
            executed_actions=policy.normalize_actions(actions),
            executed=torch.zeros(len(branches), dtype=torch.int64),
            summary=prefix.summary().cpu() if explore is not None and explore.summarise else None,
        )
        return tick, actions


def _give_up(group: RolloutGroup, ticks: list[Tick]) -> None:
    """Frees the stored VLM prefixes of a group that is not trained on."""
    for segment in group.segments:
        for number, row in segment.places:
            prefix = ticks[number].prefix
            if prefix is not None:
                prefix.store.release([int(prefix.ids[row])])


def _distinct_observations(branches: list[_Branch]) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose observation must be encoded, and for each row which of them is its own.

    Branches that have just parted, at the start or at a branch point, still see the same: it is encoded once.
    """
    origins = np.array([branch.origin for branch in branches])
    _, first, inverse = np.unique(origins, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))
    return np.sort(first), rank[inverse]


def _draw(
    branches: list[_Branch],
    seeds: Seeds,
    address: Sequence[str | int],
    policy: Policy,
    denoise_steps: int,
    explore: Exploration | None,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Initial noise, stochastic steps and their noise of each chunk, from the chunk's own addressed stream."""
    shape = (policy.config.horizon, policy.config.action_dim)
    count = explore.stochastic_steps if explore is not None else 0
    noise = np.empty((len(branches), *shape), dtype=np.float32)
    sde_noise = np.empty((len(branches), count, *shape), dtype=np.float32)
    sde_index = np.empty((len(branches), count), dtype=np.int64)
    for row, branch in enumerate(branches):
        scene, member = branch.scene, branch.segment.members[0]
        rng = seeds.rng(*address, scene.task, scene.seed, "member", member, "chunk", branch.chunk)
        noise[row] = rng.standard_normal(shape, dtype=np.float32)
        if explore is not None and explore.group_noise:
            noise[row] = seeds.normal(shape, *address, scene.task, scene.seed, "group", "chunk", branch.chunk)
        if explore is not None:
            choices = denoise_steps - int(explore.exclude_last_step)
            sde_index[row] = np.sort(rng.choice(choices, size=count, replace=False))
            sde_noise[row] = rng.standard_normal((count, *shape), dtype=np.float32)
    device = policy.device
    initial = torch.from_numpy(noise).to(device)
    if explore is None:
        return initial, None, None
    return initial, torch.from_numpy(sde_index).to(device), torch.from_numpy(sde_noise).to(device)


def _refuse_lost(groups: list[RolloutGroup]) -> None:
    lost = sum(int((~group.valid).sum()) for group in groups)
    total = sum(len(group.episodes) for group in groups)
    if total and lost > MAX_INVALID_SHARE * total:
        raise SimulatorError(
            f"{lost} of {total} episodes were lost to simulator failures; expected at most {MAX_INVALID_SHARE:.0%}. "
            "Run z1 check-sim TASK to see what fails."
        )
