"""What an iteration's simulation leaves behind: ticks (one policy call for many branches), episodes and groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from z1.policy.pi05 import ModelInput
from z1.policy.prefix_cache import PrefixStore, StoredPrefixes
from z1.policy.sampler import SampledChunk
from z1.rollout.tree import ChunkWeights, Segment, membership, parents
from z1.types import Scene


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """One policy call for B branches and what the simulator did with their chunks.

    Attributes:
        prefix: VLM prefix of each row, in a store, or None when prefixes are not kept.
        inputs: Model input of each row, or None when inputs are not kept.
        sample: The sampled chunks, B rows.
        executed_actions: float32 ``[B, H, D]``, the env actions after clipping, normalised and padded again.
        executed: int64 ``[B]``, env steps executed of each chunk.
        summary: float32 ``[B, F]`` on the CPU, what a critic sees of each row's observation, or None without one.
    """

    prefix: StoredPrefixes | None
    inputs: ModelInput | None
    sample: SampledChunk
    summary: Tensor | None
    executed_actions: Tensor
    executed: Tensor


@dataclass(slots=True, kw_only=True)
class Episode:
    """One member's rollout.

    Attributes:
        scene: Where it ran.
        member: Its number in the group, 0-based.
        success: Whether it reached the task's success.
        invalid: Whether the simulator lost it.
        env_steps: Length in env steps, stretches that it shares with other members included.
        chunk_count: Length in chunks, likewise.
        nearest: Smallest distance between gripper and the task's object, in metres; infinite where it is not known.
    """

    scene: Scene
    member: int
    success: bool = False
    invalid: bool = False
    env_steps: int = 0
    chunk_count: int = 0
    nearest: float = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutGroup:
    """G episodes of the same scene.

    Attributes:
        scene: The scene.
        episodes: G episodes.
        segments: S stretches of chunks, each executed once for the members that share it; in the order of
            ``Segment.sort_key``, so that a parent stands before its children.
    """

    scene: Scene
    episodes: tuple[Episode, ...]
    segments: tuple[Segment, ...]

    @property
    def success(self) -> np.ndarray:
        """bool ``[G]``."""
        return np.array([e.success for e in self.episodes])

    @property
    def valid(self) -> np.ndarray:
        """bool ``[G]``."""
        return np.array([not e.invalid for e in self.episodes])

    @property
    def chunk_counts(self) -> np.ndarray:
        """int64 ``[G]``, length of each member's episode in chunks."""
        return np.array([e.chunk_count for e in self.episodes])

    @property
    def segment_lengths(self) -> np.ndarray:
        """int64 ``[S]``, chunks of each segment."""
        return np.array([segment.length for segment in self.segments], dtype=np.int64)

    @property
    def owns(self) -> np.ndarray:
        """bool ``[S, G]``, members of each segment."""
        return membership(self.segments, len(self.episodes))

    @property
    def parents(self) -> np.ndarray:
        """int64 ``[S]``, number of the segment that each one grew out of, -1 for none."""
        return parents(self.segments)


@dataclass(slots=True, kw_only=True)
class RolloutCost:
    """What a collection cost.

    Attributes:
        env_steps: Env steps executed.
        env_steps_flat: Env steps that the same episodes would have needed without shared segments.
        renders: Images rendered.
        policy_calls: Batched calls of the policy.
        chunks: Chunks sampled.
        vlm_prefixes: Observations encoded by the VLM.
        denoise_steps: Denoise steps, counted per chunk.
        forks: Members made at branch points.
        policy_s: Seconds in the policy.
        sim_s: Seconds of physics, summed over the hosts.
        render_s: Seconds of rendering, summed over the hosts.
        fork_s: Wall-clock seconds of making members at branch points.
        pool_s: Wall-clock seconds in the simulators' other calls.
        total_s: Wall-clock seconds.
    """

    env_steps: int = 0
    env_steps_flat: int = 0
    renders: int = 0
    policy_calls: int = 0
    chunks: int = 0
    vlm_prefixes: int = 0
    denoise_steps: int = 0
    forks: int = 0
    policy_s: float = 0.0
    sim_s: float = 0.0
    render_s: float = 0.0
    fork_s: float = 0.0
    pool_s: float = 0.0
    total_s: float = 0.0

    @property
    def overhead_s(self) -> float:
        """Seconds of planning, branching and bookkeeping: neither policy nor simulation."""
        return self.total_s - self.policy_s - self.pool_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollouts:
    """The result of a collection.

    Attributes:
        kept: Groups to train on, in the order in which their scenes were started.
        dropped: Groups outside the filter.
        ticks: Policy calls that the kept episodes' chunks refer to.
        cost: What it cost.
    """

    kept: tuple[RolloutGroup, ...]
    dropped: tuple[RolloutGroup, ...]
    ticks: tuple[Tick, ...]
    cost: RolloutCost

    @property
    def groups(self) -> tuple[RolloutGroup, ...]:
        """Kept and dropped groups."""
        return self.kept + self.dropped


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingBatch:
    """Chunks to train on. N rows, each with M stochastic denoise steps.

    Attributes:
        prefix: VLM prefix of each row, in a store; None when the VLM trains.
        inputs: Model input of each row; None when the VLM is frozen.
        x_t: float32 ``[N, M, H, D]``, state before each stochastic denoise step.
        x_next: float32 ``[N, M, H, D]``, state after it.
        sde_index: int64 ``[N, M]``, numbers of the stochastic denoise steps.
        recorded_log_prob: float32 ``[N, M]``, log-probs of the steps as computed while acting, nats.
        actions: float32 ``[N, H, D]``, executed actions in model units, padded dims 0.
        executed_mask: bool ``[N, C]``, env steps of the chunk that were executed.
        positive: float32 ``[N]``, sum of its members' positive advantages.
        negative: float32 ``[N]``, sum of its members' negative advantages.
        members: float32 ``[N]``, number of members that the chunk counts for; the denominator of a loss is their sum.
    """

    prefix: StoredPrefixes | None
    inputs: ModelInput | None
    x_t: Tensor
    x_next: Tensor
    sde_index: Tensor
    recorded_log_prob: Tensor
    actions: Tensor
    executed_mask: Tensor
    positive: Tensor
    negative: Tensor
    members: Tensor

    def __len__(self) -> int:
        return len(self.members)

    def rows(self, index: Tensor) -> TrainingBatch:
        """Some rows, by integer index."""
        return TrainingBatch(
            prefix=None if self.prefix is None else self.prefix.rows(index),
            inputs=None if self.inputs is None else self.inputs.rows(index),
            x_t=self.x_t[index],
            x_next=self.x_next[index],
            sde_index=self.sde_index[index],
            recorded_log_prob=self.recorded_log_prob[index],
            actions=self.actions[index],
            executed_mask=self.executed_mask[index],
            positive=self.positive[index],
            negative=self.negative[index],
            members=self.members[index],
        )

    @staticmethod
    def concat(parts: Sequence[TrainingBatch]) -> TrainingBatch:
        """The rows of several batches of the same kind, in order."""
        prefixes = [part.prefix for part in parts if part.prefix is not None]
        inputs = [part.inputs for part in parts if part.inputs is not None]
        return TrainingBatch(
            prefix=StoredPrefixes.concat(prefixes) if prefixes else None,
            inputs=ModelInput.concat(inputs) if inputs else None,
            **{name: torch.cat([getattr(part, name) for part in parts]) for name in _ROW_TENSORS},
        )

    def tensors(self) -> dict[str, Tensor]:
        """All there is as tensors by name, read back by ``of_tensors``; of stored prefixes only their numbers."""
        tensors = {name: getattr(self, name) for name in _ROW_TENSORS}
        if self.prefix is not None:
            tensors |= {f"prefix.{name}": torch.as_tensor(getattr(self.prefix, name)) for name in _STORED}
        if self.inputs is not None:
            tensors |= {f"inputs.{f.name}": getattr(self.inputs, f.name) for f in fields(ModelInput)}
        return tensors

    @classmethod
    def of_tensors(cls, tensors: dict[str, Tensor], store: PrefixStore | None) -> TrainingBatch:
        """The batch that ``tensors`` describes, with its prefixes in a store."""
        prefix = None
        if "prefix.ids" in tensors:
            assert store is not None
            prefix = StoredPrefixes(
                store=store,
                ids=tensors["prefix.ids"].cpu(),
                length=int(tensors["prefix.length"]),
                full=bool(tensors["prefix.full"]),
            )
        inputs = {k.removeprefix("inputs."): t for k, t in tensors.items() if k.startswith("inputs.")}
        return cls(
            prefix=prefix,
            inputs=ModelInput(**inputs) if inputs else None,
            **{name: tensors[name] for name in _ROW_TENSORS},
        )


_ROW_TENSORS = tuple(f.name for f in fields(TrainingBatch) if f.name not in ("prefix", "inputs"))
_STORED = ("ids", "length", "full")


def build_training_batch(
    groups: tuple[RolloutGroup, ...], weights: list[ChunkWeights], ticks: tuple[Tick, ...], chunk_length: int
) -> TrainingBatch | None:
    """Gathers the chunks of some groups in the order group, segment, chunk; each is one row, however many share it.

    Args:
        groups: N groups.
        weights: What the chunks of each group count; those that count for no member are left out.
        ticks: The policy calls that the groups' chunks refer to.
        chunk_length: C.

    Returns:
        The batch, or None when there is no chunk.
    """
    where: list[tuple[int, int]] = []
    counts: list[tuple[float, float, float]] = []
    for group, weight in zip(groups, weights, strict=True):
        rows = np.stack([weight.positive, weight.negative, weight.members], axis=1)
        places = [place for segment in group.segments for place in segment.places]
        for place, row in zip(places, rows, strict=True):
            if row[2] > 0:
                where.append(place)
                counts.append(tuple(row))
    if not where:
        return None
    tick_of = np.array([tick for tick, _ in where])
    row_of = np.array([row for _, row in where])
    by_tick = np.argsort(tick_of, kind="stable")
    inverse = torch.from_numpy(np.argsort(by_tick, kind="stable"))
    used = [(t, torch.from_numpy(row_of[tick_of == t])) for t in np.unique(tick_of)]

    def gather(take) -> Tensor:
        return torch.cat([take(ticks[t])[rows] for t, rows in used])[inverse]

    device = ticks[0].sample.x_t.device
    executed = gather(lambda tick: tick.executed).to(device)
    positive, negative, members = torch.tensor(counts, dtype=torch.float32, device=device).unbind(1)
    keeps_prefix = ticks[used[0][0]].prefix is not None
    return TrainingBatch(
        prefix=StoredPrefixes.concat([ticks[t].prefix.rows(rows) for t, rows in used]).rows(inverse)
        if keeps_prefix
        else None,
        inputs=None
        if keeps_prefix
        else ModelInput.concat([ticks[t].inputs.rows(rows) for t, rows in used]).rows(inverse),
        x_t=gather(lambda tick: tick.sample.x_t),
        x_next=gather(lambda tick: tick.sample.x_next),
        sde_index=gather(lambda tick: tick.sample.sde_index),
        recorded_log_prob=gather(lambda tick: tick.sample.log_prob),
        actions=gather(lambda tick: tick.executed_actions),
        executed_mask=torch.arange(chunk_length, device=device)[None, :] < executed[:, None],
        positive=positive,
        negative=negative,
        members=members,
    )
