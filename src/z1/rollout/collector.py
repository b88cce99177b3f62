"""Runs groups of episodes on a SimPool, all live members of all scenes and hosts in one policy batch.

    scenes ─► start ─► observe ─► encode each distinct observation once ─► sample chunks ─► step_chunk ─┐
                 ▲                                                                                       │
                 └── replace groups that the filter drops ◄── finished groups ◄── live members ◄─────────┘

The order of the rows follows from the scenes alone, so the numbers do not depend on how many hosts share the work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch

from z1.config import ActingConfig
from z1.errors import ConfigError, SimulatorError
from z1.policy.policy import Policy
from z1.policy.sampler import sample_chunk
from z1.rollout.groups import Episode, RolloutCost, RolloutGroup, Rollouts, Tick
from z1.seeding import Seeds
from z1.sims.pool import Member, SimPool
from z1.types import Observations, Scene

MAX_INVALID_SHARE = 0.5
"""Share of a finished collection's members that may be lost to simulator failures before it is an error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exploration:
    """How chunks are sampled when the policy is to learn from them.

    Attributes:
        noise_level: a, scale of the stochastic denoise step.
        exclude_last_step: Whether the last denoise step is never the stochastic one.
        keep: What later training needs: the VLM ``prefix`` (VLM frozen) or the model ``inputs`` (VLM trains).
    """

    noise_level: float
    exclude_last_step: bool
    keep: str


@dataclass(slots=True)
class _LiveGroup:
    order: int
    scene: Scene
    members: list[Member]
    episodes: list[Episode]
    live: list[int] = field(default_factory=list)


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
        on_tick: Called after each tick with (env steps so far, groups finished so far).
    """

    def __init__(
        self,
        pool: SimPool,
        policy: Policy,
        acting: ActingConfig,
        *,
        live_members: int,
        on_tick: Callable[[int, int], None] | None = None,
    ) -> None:
        check_chunk_length(policy, acting)
        self._pool = pool
        self._policy = policy
        self._acting = acting
        self._live_members = live_members
        self._on_tick = on_tick

    def collect(
        self,
        scenes: Iterator[Scene],
        seeds: Seeds,
        address: Sequence[str | int],
        *,
        group_size: int,
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
            group_size: G.
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
        capacity = max(1, self._live_members // group_size)
        started = 0
        while True:
            wanted = groups - len(live) - sum(kept for _, kept, _ in finished)
            room = min(wanted, capacity - len(live))
            if max_env_steps is not None and cost.env_steps >= max_env_steps:
                room = 0
            fresh = list(islice(scenes, max(room, 0)))
            live += self._start(fresh, group_size, started)
            started += len(fresh)
            if not live:
                break
            self._tick(live, seeds, address, explore, ticks, cost)
            for group in [g for g in live if not g.live]:
                live.remove(group)
                done = RolloutGroup(scene=group.scene, episodes=tuple(group.episodes))
                finished.append((group.order, keep(done), done))
            if self._on_tick is not None:
                self._on_tick(cost.env_steps, len(finished))
        finished.sort(key=lambda entry: entry[0])
        _refuse_lost([group for _, _, group in finished])
        after = self._pool.counters
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

    def _start(self, scenes: list[Scene], group_size: int, order: int) -> list[_LiveGroup]:
        if not scenes:
            return []
        members = self._pool.start(scenes, group_size)
        return [
            _LiveGroup(
                order=order + i,
                scene=scene,
                members=group,
                episodes=[Episode(scene=scene, member=m) for m in range(group_size)],
                live=list(range(group_size)),
            )
            for i, (scene, group) in enumerate(zip(scenes, members, strict=True))
        ]

    def _tick(
        self,
        live: list[_LiveGroup],
        seeds: Seeds,
        address: Sequence[str | int],
        explore: Exploration | None,
        ticks: list[Tick],
        cost: RolloutCost,
    ) -> None:
        rows = [(group, m) for group in live for m in group.live]
        members = [group.members[m] for group, m in rows]
        episodes = [group.episodes[m] for group, m in rows]
        observations = self._pool.observe(members)
        began = time.perf_counter()
        tick, actions = self._act(observations, episodes, seeds, address, explore, cost)
        cost.policy_s += time.perf_counter() - began
        outcome = self._pool.step_chunk(members, actions[:, : self._acting.chunk_length])
        cost.env_steps += int(outcome.executed.sum())
        if explore is not None:
            tick.executed.copy_(torch.from_numpy(outcome.executed))
        done = outcome.done
        for row, ((group, m), episode) in enumerate(zip(rows, episodes, strict=True)):
            episode.env_steps += int(outcome.executed[row])
            episode.chunk_count += 1
            episode.success = bool(outcome.success[row]) and not outcome.invalid[row]
            episode.invalid = bool(outcome.invalid[row])
            if explore is not None:
                episode.chunks.append((len(ticks), row))
            if done[row]:
                group.live.remove(m)
        self._pool.release([member for member, ended in zip(members, done, strict=True) if ended])
        if explore is not None:
            ticks.append(tick)

    @torch.no_grad()
    def _act(
        self,
        observations: Observations,
        episodes: list[Episode],
        seeds: Seeds,
        address: Sequence[str | int],
        explore: Exploration | None,
        cost: RolloutCost,
    ) -> tuple[Tick, np.ndarray]:
        policy, steps = self._policy, self._acting.denoise_steps
        distinct, inverse = _distinct_observations(episodes)
        inputs = policy.prepare(observations.rows(distinct))
        prefix = policy.model.encode_prefix(inputs)
        if len(distinct) < len(episodes):
            prefix = prefix.rows(torch.from_numpy(inverse))
        noise, sde_index, sde_noise = _draw(episodes, seeds, address, policy, steps, explore)
        sample = sample_chunk(
            policy.model,
            prefix,
            initial_noise=noise,
            denoise_steps=steps,
            noise_level=explore.noise_level if explore else 0.0,
            sde_index=sde_index,
            sde_noise=sde_noise,
            executed_steps=self._acting.chunk_length,
            action_dim=policy.processor.action_dim,
        )
        actions = policy.env_actions(sample.actions)
        cost.policy_calls += 1
        cost.vlm_prefixes += len(distinct)
        cost.denoise_steps += steps * len(episodes)
        keeps_inputs = explore is not None and explore.keep == "inputs"
        tick = Tick(
            prefix=prefix if explore is not None and not keeps_inputs else None,
            inputs=inputs.rows(torch.from_numpy(inverse)) if keeps_inputs else None,
            sample=sample,
            executed_actions=policy.normalize_actions(actions),
            executed=torch.zeros(len(episodes), dtype=torch.int64),
        )
        return tick, actions


def _distinct_observations(episodes: list[Episode]) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose observation must be encoded, and for each row which of them is its own.

    Members of a group share their first observation: it is encoded once.
    """
    first: dict[object, int] = {}
    distinct: list[int] = []
    inverse = np.empty(len(episodes), dtype=np.int64)
    for row, episode in enumerate(episodes):
        key = episode.scene if episode.chunk_count == 0 else (episode.scene, episode.member)
        if key not in first:
            first[key] = len(distinct)
            distinct.append(row)
        inverse[row] = first[key]
    return np.array(distinct), inverse


def _draw(
    episodes: list[Episode],
    seeds: Seeds,
    address: Sequence[str | int],
    policy: Policy,
    denoise_steps: int,
    explore: Exploration | None,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Initial noise, stochastic step and its noise of each chunk, from the chunk's own addressed stream."""
    shape = (policy.config.horizon, policy.config.action_dim)
    noise = np.empty((len(episodes), *shape), dtype=np.float32)
    sde_noise = np.empty_like(noise)
    sde_index = np.empty(len(episodes), dtype=np.int64)
    for row, episode in enumerate(episodes):
        scene = episode.scene
        rng = seeds.rng(*address, scene.task, scene.seed, "member", episode.member, "chunk", episode.chunk_count)
        noise[row] = rng.standard_normal(shape, dtype=np.float32)
        if explore is not None:
            sde_index[row] = rng.integers(denoise_steps - int(explore.exclude_last_step))
            sde_noise[row] = rng.standard_normal(shape, dtype=np.float32)
    device = policy.device
    if explore is None:
        return torch.from_numpy(noise).to(device), None, None
    return (
        torch.from_numpy(noise).to(device),
        torch.from_numpy(sde_index).to(device),
        torch.from_numpy(sde_noise).to(device),
    )


def _refuse_lost(groups: list[RolloutGroup]) -> None:
    lost = sum(int((~group.valid).sum()) for group in groups)
    total = sum(len(group.episodes) for group in groups)
    if total and lost > MAX_INVALID_SHARE * total:
        raise SimulatorError(
            f"{lost} of {total} episodes were lost to simulator failures; expected at most {MAX_INVALID_SHARE:.0%}. "
            "Run z1 check-sim TASK to see what fails."
        )
