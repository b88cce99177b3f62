"""From the returns of a group to advantages, and which groups carry a learning signal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

STD_EPSILON = 1e-6


def group_advantages(
    returns: np.ndarray, success: np.ndarray, valid: np.ndarray, *, all_success: float = 0.0
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

    Returns:
        float64 ``[G]``. A group with fewer than two valid members gets zeros: there is nothing to compare.

    Source: GRPO (arXiv 2402.03300) eq. 4 for the z-score; Z-1 (arXiv 2606.31846) for the all-success rule.
    """
    advantages = np.zeros(returns.shape, dtype=np.float64)
    if valid.sum() < 2 or not success[valid].any():
        return advantages
    values = returns[valid].astype(np.float64)
    if success[valid].all():
        advantages[valid] = values - values.min() + all_success
    else:
        advantages[valid] = (values - values.mean()) / (values.std() + STD_EPSILON)
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
