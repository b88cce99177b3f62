"""From a group's outcomes to what each of its chunks counts in the loss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from z1.algo.advantage import generalised_advantages, group_advantages, tree_advantages
from z1.algo.reward import completion_returns
from z1.config import RolloutConfig
from z1.rollout.groups import RolloutGroup
from z1.rollout.tree import ChunkWeights, SegmentWeights, chunk_weights, segment_weights

SMALLEST_SCALE = 1e-6
"""Critic advantages that are smaller than this on average are not blown up."""


def group_returns(group: RolloutGroup, settings: RolloutConfig) -> np.ndarray:
    """float64 ``[G]``: success, worth less the later it comes."""
    return completion_returns(group.success, group.chunk_counts, settings.reward_decay)


def advantage_weights_of(group: RolloutGroup, settings: RolloutConfig) -> SegmentWeights:
    """What the segments count for objectives that compare members.

    Groups in which all succeeded have each member's own advantage, whatever ``rollout.advantage`` says: there nothing
    is to be told apart but speed.
    """
    returns, success, valid = group_returns(group, settings), group.success, group.valid
    owns = group.owns
    alike = valid.any() and bool(success[valid].all())
    if settings.advantage == "tree" and not (alike and settings.all_success_rule):
        by_segment = tree_advantages(returns, valid, owns, group.parents, discount=settings.tree_discount)
        advantages = np.repeat(by_segment[:, None], len(returns), axis=1)
    else:
        own = group_advantages(
            returns,
            success,
            valid,
            all_success=settings.all_success_advantage,
            all_success_rule=settings.all_success_rule,
        )
        advantages = np.repeat(own[None, :], len(owns), axis=0)
    return segment_weights(advantages, owns, valid)


def success_weights_of(group: RolloutGroup) -> SegmentWeights:
    """What the segments count for plain imitation of successes: 1 per successful member, shared chunks included."""
    owns = group.owns
    advantages = np.repeat(group.success[None, :].astype(np.float64), len(owns), axis=0)
    return segment_weights(advantages, owns, group.valid & group.success, train_shared_by_all=True)


def critic_weights_of(
    groups: Sequence[RolloutGroup], values: Sequence[list[np.ndarray]], settings: RolloutConfig
) -> list[ChunkWeights]:
    """What the chunks of an iteration's groups count with a critic's values.

    Each member's advantages run along its own path through the tree; a chunk that all members share is trained on too,
    since the critic tells what it changed. All advantages are divided by their root mean square over the iteration.

    Args:
        groups: N groups.
        values: Per group, float ``[length]`` for each segment: the expected return at the start of each chunk.
        settings: Decays.
    """
    advantages = [member_advantages(group, own, settings) for group, own in zip(groups, values, strict=True)]
    masks = [np.repeat(group.owns, group.segment_lengths, axis=0) for group in groups]
    counted = [own[mask & group.valid[None, :]] for own, mask, group in zip(advantages, masks, groups, strict=True)]
    squares = np.square(np.concatenate(counted)) if counted else np.zeros(0)
    scale = max(float(np.sqrt(squares.mean())) if len(squares) else 0.0, SMALLEST_SCALE)
    return [
        chunk_weights(own / scale, mask, group.valid)
        for own, mask, group in zip(advantages, masks, groups, strict=True)
    ]


def member_advantages(group: RolloutGroup, values: list[np.ndarray], settings: RolloutConfig) -> np.ndarray:
    """float64 ``[N, G]``: each member's advantage in each of the group's N chunks; 0 where it has no part.

    Args:
        group: The group.
        values: float ``[length]`` for each of its segments.
        settings: Decays.
    """
    owns, lengths, returns = group.owns, group.segment_lengths, group_returns(group, settings)
    rows = np.split(np.arange(lengths.sum()), np.cumsum(lengths)[:-1])
    advantages = np.zeros((int(lengths.sum()), len(returns)))
    for member in range(len(returns)):
        path = sorted(np.flatnonzero(owns[:, member]), key=lambda s: group.segments[s].start)
        along = np.concatenate([values[s] for s in path])
        advantages[np.concatenate([rows[s] for s in path]), member] = generalised_advantages(
            along, float(returns[member]), decay=settings.critic_decay
        )
    return advantages
