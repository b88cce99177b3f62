"""From a group's outcomes to what each of its segments counts in the loss."""

from __future__ import annotations

import numpy as np

from z1.algo.advantage import group_advantages, tree_advantages
from z1.algo.reward import completion_returns
from z1.config import RolloutConfig
from z1.rollout.groups import RolloutGroup
from z1.rollout.tree import SegmentWeights, segment_weights


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
