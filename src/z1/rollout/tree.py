"""Branch plans: which members of a group share which chunks. Pure; nothing here knows of simulators or policies.

Members are numbered 0..G-1. Up to the first branch point all of them are one cluster and share every chunk; at a branch
point each cluster splits into equal, contiguous parts. A *segment* is a stretch of chunks between two branch points,
executed once for all members of its cluster:

    flat              shared_prefix(3)        tree(4), G = 4
    0 ─────────           ┌─ 0 ──────             ┌──── 0 ────
    1 ─────────     ──────┼─ 1 ──────         ┌───┴──── 1 ────
    2 ─────────           ├─ 2 ──────     ────┤    ┌─── 2 ────
    3 ─────────           └─ 3 ──────         └────┴─── 3 ────
    chunk 0         0     3               0   2    4

An episode may end before a branch point: then its members share the whole of it, and nothing splits any more.

Source: Z-1 (arXiv 2606.31846), shared-prefix rollouts and tree-structured branching.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A branch point.

    Attributes:
        chunk: Number of the first chunk after it, 0-based; 0 splits before the first chunk.
        fan_out: Into how many parts each cluster splits, at least 2.
    """

    chunk: int
    fan_out: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchPlan:
    """Where the members of a group part.

    Attributes:
        group_size: G.
        splits: Branch points in order of their chunk; the product of their fan-outs is G.
    """

    group_size: int
    splits: tuple[Split, ...]

    def __post_init__(self) -> None:
        chunks = [split.chunk for split in self.splits]
        if chunks != sorted(chunks) or any(chunk < 0 for chunk in chunks):
            raise ValueError(f"branch points {chunks} are not in order")
        leaves = int(np.prod([split.fan_out for split in self.splits], dtype=np.int64))
        if leaves != self.group_size or any(split.fan_out < 2 for split in self.splits):
            raise ValueError(f"splits {self.splits} do not make {self.group_size} members")

    @classmethod
    def flat(cls, group_size: int) -> BranchPlan:
        """Every member on its own from the first chunk on."""
        return cls.shared_prefix(group_size, 0)

    @classmethod
    def shared_prefix(cls, group_size: int, prefix: int) -> BranchPlan:
        """The first P chunks for all members, then every member on its own.

        Args:
            group_size: G, at least 1.
            prefix: P, at least 0; 0 is the flat plan.
        """
        splits = (Split(chunk=prefix, fan_out=group_size),) if group_size > 1 else ()
        return cls(group_size=group_size, splits=splits)

    @classmethod
    def tree(cls, group_size: int, prefix: int) -> BranchPlan:
        """Binary branching at ``b_l = floor(P / 2^(k - l))``, l = 1..k, for G = 2^k members.

        Args:
            group_size: G, a power of two.
            prefix: P, the last branch point; 0 is the flat plan.

        Raises:
            ValueError: G is not a power of two.
        """
        depth = group_size.bit_length() - 1
        if group_size != 2**depth:
            raise ValueError(f"a tree needs a power of two as its group size, got {group_size}")
        points = (prefix // 2 ** (depth - level) for level in range(1, depth + 1))
        return cls(group_size=group_size, splits=tuple(Split(chunk=point, fan_out=2) for point in points))

    def parts(self, members: tuple[int, ...], chunk: int) -> list[tuple[int, ...]]:
        """The clusters into which a cluster has split when a chunk begins; itself alone if it has not.

        Args:
            members: A cluster of this plan, contiguous and in order.
            chunk: Number of the chunk, 0-based.
        """
        clusters = np.prod([split.fan_out for split in self.splits if split.chunk <= chunk], dtype=np.int64)
        size = min(self.group_size // int(clusters), len(members))
        return [members[first : first + size] for first in range(0, len(members), size)]

    def segments(self, chunk_counts: Sequence[int]) -> list[Segment]:
        """The segments of a group whose members executed so many chunks each.

        Members that still share an episode when it ends have equal counts.

        Args:
            chunk_counts: int ``[G]``.

        Returns:
            In the order of ``sort_key``; chunks are counted, not placed.
        """
        segments = []
        clusters = self.parts(tuple(range(self.group_size)), 0)
        start = 0
        while clusters:
            stop = min((split.chunk for split in self.splits if split.chunk > start), default=max(chunk_counts))
            for members in clusters:
                length = min(chunk_counts[members[0]], stop) - start
                segments.append(Segment(members=members, start=start, length=length))
            going = [members for members in clusters if chunk_counts[members[0]] > stop]
            clusters = [part for members in going for part in self.parts(members, stop)]
            start = stop
        return sorted((s for s in segments if s.length), key=Segment.sort_key)


@dataclass(slots=True, kw_only=True)
class Segment:
    """A stretch of chunks that one cluster of members shares.

    Attributes:
        members: Their numbers, in order; the first one gives the chunks their random streams.
        start: Number of its first chunk in the episode.
        length: Chunks executed.
        places: (tick, row) of each chunk, in order; empty when chunks are not kept.
        states: float32 ``[S]`` each, the proprioceptive state at the start of each chunk; empty likewise.
    """

    members: tuple[int, ...]
    start: int
    length: int = 0
    places: list[tuple[int, int]] = field(default_factory=list)
    states: list[np.ndarray] = field(default_factory=list)

    def sort_key(self) -> tuple[int, int]:
        """First member, then start: a shared segment stands before what grows out of it."""
        return self.members[0], self.start


def membership(segments: Sequence[Segment], group_size: int) -> np.ndarray:
    """bool ``[S, G]``: which member owns which segment."""
    owns = np.zeros((len(segments), group_size), dtype=np.bool_)
    for row, segment in enumerate(segments):
        owns[row, list(segment.members)] = True
    return owns


def parents(segments: Sequence[Segment]) -> np.ndarray:
    """int64 ``[S]``: number of the segment that each one grew out of; -1 for those that begin at the first chunk."""
    found = np.full(len(segments), -1, dtype=np.int64)
    for row, segment in enumerate(segments):
        before = [
            (other.start, number)
            for number, other in enumerate(segments)
            if other.start < segment.start and set(segment.members) <= set(other.members)
        ]
        if before:
            found[row] = max(before)[1]
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentWeights:
    """What each of a group's S segments counts in a loss.

    Attributes:
        positive: float64 ``[S]``, sum of the positive advantages of its valid members.
        negative: float64 ``[S]``, sum of the negative ones.
        members: float64 ``[S]``, number of its valid members; 0 for a segment that is not trained on.
    """

    positive: np.ndarray
    negative: np.ndarray
    members: np.ndarray

    def spread(self, lengths: np.ndarray) -> ChunkWeights:
        """The same for each chunk of the segments.

        Args:
            lengths: int64 ``[S]``, chunks of each segment.
        """
        return ChunkWeights(
            positive=np.repeat(self.positive, lengths),
            negative=np.repeat(self.negative, lengths),
            members=np.repeat(self.members, lengths),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkWeights:
    """What each of a group's N executed chunks counts in a loss, in the order segment, chunk.

    Attributes:
        positive: float64 ``[N]``, sum of the positive advantages of its valid members.
        negative: float64 ``[N]``, sum of the negative ones.
        members: float64 ``[N]``, number of its valid members; 0 for a chunk that is not trained on.
    """

    positive: np.ndarray
    negative: np.ndarray
    members: np.ndarray


def segment_weights(
    advantages: np.ndarray, owns: np.ndarray, valid: np.ndarray, *, train_shared_by_all: bool = False
) -> SegmentWeights:
    """From each member's advantage in each segment to what the segment's one forward pass needs.

    A segment that all valid members share is not trained on: their returns say nothing about it. A member that was lost
    counts nowhere.

    Args:
        advantages: float ``[S, G]``.
        owns: bool ``[S, G]``, see ``membership``.
        valid: bool ``[G]``.
        train_shared_by_all: Whether segments that all valid members share are trained on nevertheless.
    """
    counts = owns & valid[None, :]
    if not train_shared_by_all:
        counts &= ~(owns | ~valid[None, :]).all(axis=1, keepdims=True)
    positive, negative, members = _sums(advantages, counts)
    return SegmentWeights(positive=positive, negative=negative, members=members)


def chunk_weights(advantages: np.ndarray, owns: np.ndarray, valid: np.ndarray) -> ChunkWeights:
    """From each member's advantage in each chunk to what the chunk's one forward pass needs.

    Args:
        advantages: float ``[N, G]``.
        owns: bool ``[N, G]``, whether a member executed the chunk.
        valid: bool ``[G]``; a member that was lost counts nowhere.
    """
    positive, negative, members = _sums(advantages, owns & valid[None, :])
    return ChunkWeights(positive=positive, negative=negative, members=members)


def _sums(advantages: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per row, the sums of positive and of negative advantages and the number of members, of those that count."""
    own = np.where(counts, advantages, 0.0)
    return own.clip(min=0.0).sum(axis=1), own.clip(max=0.0).sum(axis=1), counts.sum(axis=1).astype(np.float64)
