"""The objectives' loss terms per chunk. Reductions are left to the caller: these return one value per chunk.

A chunk may belong to several members of a group (a shared segment). What enters is then the sum of its members'
positive
advantages and the sum of their negative ones, which makes one forward pass exact:

    sum_i min(r A_i, clip(r) A_i) = min(r, 1 + c_high) * sum_i max(A_i, 0) + max(r, 1 - c_low) * sum_i min(A_i, 0)

because ``min(r A, clip(r) A)`` is ``A min(r, 1 + c_high)`` for A >= 0 and ``A max(r, 1 - c_low)`` for A < 0.
"""

from __future__ import annotations

import torch
from torch import Tensor


def clipped_surrogate(
    ratio: Tensor, positive: Tensor, negative: Tensor, *, clip_range_low: float, clip_range_high: float
) -> Tensor:
    """The clipped policy-gradient objective of each chunk, summed over its members (to be maximised).

    Args:
        ratio: float ``[B]``, new over behaviour likelihood of the chunk.
        positive: float ``[B]``, sum over members of ``max(A_i, 0)``.
        negative: float ``[B]``, sum over members of ``min(A_i, 0)``.
        clip_range_low: How far below 1 the ratio may fall before the gradient of a negative advantage vanishes.
        clip_range_high: How far above 1 the ratio may rise before the gradient of a positive advantage vanishes.

    Returns:
        float ``[B]``.

    Source: PPO (arXiv 1707.06347) eq. 7; Z-1 (arXiv 2606.31846) for the sum over the members of a segment.
    """
    return ratio.clamp(max=1.0 + clip_range_high) * positive + ratio.clamp(min=1.0 - clip_range_low) * negative


def clipped_fraction(
    ratio: Tensor, positive: Tensor, negative: Tensor, *, clip_range_low: float, clip_range_high: float
) -> Tensor:
    """bool ``[B]``: whether clipping removes some of the chunk's gradient. Arguments as ``clipped_surrogate``."""
    return ((ratio > 1.0 + clip_range_high) & (positive > 0)) | ((ratio < 1.0 - clip_range_low) & (negative < 0))


def approx_kl(log_ratio: Tensor) -> Tensor:
    """A non-negative, low-variance estimate of KL(behaviour, new) per chunk: ``exp(l) - 1 - l`` with ``l`` = log ratio.

    Args:
        log_ratio: float ``[B]``, nats.

    Source: J. Schulman, "Approximating KL divergence", estimator k3.
    """
    return log_ratio.exp() - 1.0 - log_ratio


def advantage_weights(advantage: Tensor, members: Tensor, *, maximum: float) -> Tensor:
    """Regression weights of advantage-weighted flow matching: advantages, scaled so that the positive ones average 1
    per member, then clipped to ``maximum`` per member on both sides.

    Args:
        advantage: float ``[B]``, sum of each chunk's members' advantages.
        members: float ``[B]``, number of members of each chunk.
        maximum: Largest weight per member.

    Returns:
        float ``[B]``, with the signs of the advantages.
    """
    positive = advantage > 0
    scale = advantage[positive].sum() / members[positive].sum().clamp(min=1.0)
    limit = maximum * members
    return torch.minimum(torch.maximum(advantage / scale.clamp(min=1e-12), -limit), limit)


def flow_matching_error(velocity: Tensor, target: Tensor, step_mask: Tensor) -> Tensor:
    """Squared error of a predicted flow velocity, averaged over the steps that count and all model dims.

    Args:
        velocity: float ``[B, H, D]``, the network's prediction.
        target: float ``[B, H, D]``, noise minus action.
        step_mask: bool ``[B, H]``, steps that count.

    Returns:
        float ``[B]``; 0 for a row without a counted step.
    """
    error = (velocity - target).square().mean(dim=-1) * step_mask
    return error.sum(dim=1) / step_mask.sum(dim=1).clamp(min=1)
