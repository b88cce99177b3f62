"""Advantages, returns and losses against hand-worked numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from z1.algo.advantage import GroupFilter, group_advantages
from z1.algo.loss import (
    approx_kl,
    clipped_fraction,
    clipped_surrogate,
    flow_matching_error,
    positive_weights,
)
from z1.algo.reward import completion_returns

CLIP = {"clip_range_low": 0.2, "clip_range_high": 0.2}


def test_returns_decay_with_the_chunk_of_success() -> None:
    returns = completion_returns(np.array([True, True, False]), np.array([1, 3, 2]), 0.5)
    np.testing.assert_array_equal(returns, [0.5, 0.125, 0.0])


def test_returns_without_decay_are_the_success() -> None:
    np.testing.assert_array_equal(completion_returns(np.array([True, False]), np.array([9, 9]), 1.0), [1.0, 0.0])


@pytest.mark.parametrize("decay", [0.0, 1.1])
def test_decay_outside_its_range_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="decay must lie in"):
        completion_returns(np.array([True]), np.array([1]), decay)


def test_hand_worked_two_by_four_table() -> None:
    # Group 1, returns 1 0 0 0: mean 1/4, population std sqrt(3)/4, so (3/4)/(sqrt(3)/4) = sqrt(3) and -1/sqrt(3).
    # Group 2, returns 1 1 0 0: mean 1/2, std 1/2, so +1 +1 -1 -1.
    everyone = np.ones(4, dtype=bool)
    first = group_advantages(np.array([1.0, 0, 0, 0]), np.array([1, 0, 0, 0], dtype=bool), everyone)
    second = group_advantages(np.array([1.0, 1, 0, 0]), np.array([1, 1, 0, 0], dtype=bool), everyone)
    np.testing.assert_allclose(first, [math.sqrt(3)] + [-1 / math.sqrt(3)] * 3, atol=1e-5)
    np.testing.assert_allclose(second, [1, 1, -1, -1], atol=1e-5)


def test_permuting_members_permutes_advantages() -> None:
    returns, success = np.array([0.9, 0, 0.5, 0, 0.7]), np.array([1, 0, 1, 0, 1], dtype=bool)
    order = np.array([3, 0, 4, 1, 2])
    valid = np.ones(5, dtype=bool)
    np.testing.assert_allclose(
        group_advantages(returns[order], success[order], valid), group_advantages(returns, success, valid)[order]
    )


def test_shifting_returns_changes_nothing_in_a_mixed_group() -> None:
    returns, success, valid = np.array([0.9, 0, 0.5]), np.array([1, 0, 1], dtype=bool), np.ones(3, dtype=bool)
    np.testing.assert_allclose(
        group_advantages(returns + 7, success, valid), group_advantages(returns, success, valid), atol=1e-9
    )


def test_all_success_group_never_punishes_and_the_slowest_gets_zero() -> None:
    advantages = group_advantages(np.array([0.9, 0.5, 0.7]), np.ones(3, dtype=bool), np.ones(3, dtype=bool))
    np.testing.assert_allclose(advantages, [0.4, 0.0, 0.2])


@pytest.mark.parametrize("success", [True, False])
def test_equal_returns_carry_no_signal(success: bool) -> None:
    returns = np.full(4, float(success))
    assert not group_advantages(returns, np.full(4, success), np.ones(4, dtype=bool)).any()


def test_lost_members_take_no_part() -> None:
    valid = np.array([True, True, False])
    advantages = group_advantages(np.array([1.0, 0.0, 1.0]), np.array([True, False, True]), valid)
    np.testing.assert_allclose(advantages, [1, -1, 0], atol=1e-5)
    assert not group_advantages(np.array([1.0, 0.0]), np.array([True, False]), np.array([True, False])).any()


def test_filter_keeps_by_the_mean_over_valid_members() -> None:
    bounds = GroupFilter(low=0.1, high=0.9)
    valid = np.array([True, True, False])
    assert bounds.keeps(np.array([1.0, 0.0, 0.0]), valid)
    assert not bounds.keeps(np.array([1.0, 1.0, 0.0]), valid)
    assert not bounds.keeps(np.array([0.0, 0.0, 1.0]), valid)
    assert not bounds.keeps(np.array([1.0, 0.0, 0.0]), np.array([True, False, False]))


@pytest.mark.parametrize("ratio", [0.5, 0.8, 0.9, 1.0, 1.1, 1.2, 1.5])
def test_one_pass_equals_the_sum_over_members_in_value_and_gradient(ratio: float) -> None:
    members = torch.tensor([1.7, -0.4, 0.3, -2.0])
    one = torch.tensor([ratio], requires_grad=True)
    many = torch.tensor([ratio], requires_grad=True)
    shared = clipped_surrogate(one, members.clamp(min=0).sum()[None], members.clamp(max=0).sum()[None], **CLIP).sum()
    reference = torch.minimum(many * members, many.clamp(0.8, 1.2) * members).sum()
    torch.testing.assert_close(shared, reference)
    if ratio not in (0.8, 1.2):  # at the kink the two graphs may choose different subgradients
        torch.testing.assert_close(torch.autograd.grad(shared, one)[0], torch.autograd.grad(reference, many)[0])


def test_clipped_fraction_needs_the_sign_that_clipping_stops() -> None:
    ratio = torch.tensor([1.3, 1.3, 0.7, 0.7, 1.0])
    positive, negative = torch.tensor([1.0, 0, 1, 0, 1]), torch.tensor([0.0, -1, 0, -1, -1])
    assert clipped_fraction(ratio, positive, negative, **CLIP).tolist() == [True, False, False, True, False]


def test_approx_kl_is_zero_only_at_equality() -> None:
    value = approx_kl(torch.tensor([0.0, 0.1, -0.1]))
    assert value[0] == 0
    assert (value[1:] > 0).all()


def test_positive_weights_have_mean_one_and_are_clipped() -> None:
    weights = positive_weights(torch.tensor([1.0, 3.0, -5.0, 0.0]), maximum=3.0)
    torch.testing.assert_close(weights, torch.tensor([0.5, 1.5, 0.0, 0.0]))
    assert positive_weights(torch.tensor([0.1] * 9 + [10.0]), maximum=3.0).max() == 3.0
    assert not positive_weights(torch.tensor([-1.0, 0.0]), maximum=3.0).any()


def test_flow_matching_error_counts_only_masked_steps() -> None:
    velocity, target = torch.zeros(2, 3, 2), torch.ones(2, 3, 2)
    target[0, 2] = 100.0
    mask = torch.tensor([[True, True, False], [False, False, False]])
    torch.testing.assert_close(flow_matching_error(velocity, target, mask), torch.tensor([1.0, 0.0]))
