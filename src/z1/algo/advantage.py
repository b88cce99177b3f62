"""From the returns of a group to advantages, and which groups carry a learning signal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

STD_EPSILON = 1e-6


def group_advantages(
    returns: np.ndarray,
    success: np.ndarray,
    valid: np.ndarray,
    *,
    all_success: float = 0.0,
    all_success_rule: bool = True,
) -> np.ndarray:
    """Advantage of each member against its group.

    Mixed groups: ``A_i = (R_i - mean R) / (std R + 1e-6)`` with the population std. Groups in which every valid member
    succeeded: ``A_i = R_i - min_j R_j + all_success``, which never punishes a slower success. Groups without a success
    get zeros.

    Args:
        returns: float ``[G]``, return of each member.
        success: bool ``[G]``.
        valid: bool ``[G]``; members that were lost take no part and get 0.
        all_success: Advantage of every member of a group in which all succeeded. 0 in the paper; a positive value
            keeps a policy that learns from positive advantages only from forgetting what it can do already.
        all_success_rule: Whether groups in which all succeeded have the rule of their own; otherwise the z-score.

    Returns:
        float64 ``[G]``. A group with fewer than two valid members gets zeros: there is nothing to compare.

    Source: GRPO (arXiv 2402.03300) eq. 4 for the z-score; Z-1 (arXiv 2606.31846) for the all-success rule.
    """
    advantages = np.zeros(returns.shape, dtype=np.float64)
    if valid.sum() < 2 or not success[valid].any():
        return advantages
    values = returns[valid].astype(np.float64)
    if all_success_rule and success[valid].all():
        advantages[valid] = values - values.min() + all_success
    else:
        advantages[valid] = (values - values.mean()) / (values.std() + STD_EPSILON)
    return advantages


def tree_advantages(
    returns: np.ndarray, valid: np.ndarray, owns: np.ndarray, parents: np.ndarray, *, discount: float
) -> np.ndarray:
    """Advantage of each segment of a mixed group: its subtree's mean return against its siblings', along the path.

    With V(s) the mean return of the valid members of segment s, p(s) its parent and V(root) the group's mean:

        A(s) = (delta(s) + discount * delta(p(s)) + discount^2 * delta(p(p(s))) + ...) / (std R + 1e-6)
        delta(s) = V(s) - V(p(s))

    V(p(s)) is the mean of s and its siblings, so delta credits what happened in s alone. With discount 1 the sum
    telescopes to V(s) - V(root): then a segment of one member has exactly its group advantage.

    Args:
        returns: float ``[G]``.
        valid: bool ``[G]``.
        owns: bool ``[S, G]``, members of each segment; a parent stands before its children.
        parents: int ``[S]``, number of each segment's parent, -1 for none.
        discount: Weight of what an ancestor's advantage adds, per generation, in [0, 1].

    Returns:
        float64 ``[S]``; 0 for a segment without a valid member.

    Source: docs/maths.md, "Tree advantages".
    """
    values = returns[valid].astype(np.float64)
    advantages = np.zeros(len(owns), dtype=np.float64)
    if len(values) < 2:
        return advantages
    counts = owns & valid[None, :]
    size = counts.sum(axis=1)
    value = np.where(size > 0, (counts * returns[None, :]).sum(axis=1) / np.maximum(size, 1), 0.0)
    for s, parent in enumerate(parents):
        if size[s] == 0:
            continue
        before, inherited = (values.mean(), 0.0) if parent < 0 else (value[parent], advantages[parent])
        advantages[s] = value[s] - before + discount * inherited
    return advantages / (values.std() + STD_EPSILON)


def generalised_advantages(values: np.ndarray, outcome: float, *, decay: float) -> np.ndarray:
    """Advantage of each chunk of an episode whose reward comes at its end, with a critic's values.

        A(t) = delta(t) + decay * A(t + 1),    delta(t) = V(t + 1) - V(t),    V(T) = outcome

    With decay 1 the sum telescopes to ``outcome - V(t)``; with 0 a chunk is credited with what the critic thinks of
    the observation after it alone.

    Args:
        values: float ``[T]``, the expected return at the start of each chunk.
        outcome: The episode's return.
        decay: How little of what comes later counts, in [0, 1].

    Returns:
        float64 ``[T]``.

    Source: Schulman et al. 2016 (arXiv 1506.02438) eq. 16, with a discount of 1.
    """
    ahead = np.append(values[1:], outcome).astype(np.float64)
    advantages = ahead - values
    for t in range(len(values) - 2, -1, -1):
        advantages[t] += decay * advantages[t + 1]
    return advantages


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupFilter:
    """Which groups are trained on.

    Attributes:
        low: Smallest mean return of a kept group.
        high: Largest mean return of a kept group.
    """

    low: float
    high: float

    def keeps(self, returns: np.ndarray, valid: np.ndarray) -> bool:
        """Whether a group's mean return over its valid members lies within the bounds (inclusive).

        Args:
            returns: float ``[G]``.
            valid: bool ``[G]``.
        """
        if valid.sum() < 2:
            return False
        return bool(self.low <= returns[valid].mean() <= self.high)
