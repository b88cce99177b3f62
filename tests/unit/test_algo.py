"""Advantages, returns and losses against hand-worked numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from z1.algo.advantage import GroupFilter, group_advantages
from z1.algo.loss import (
    advantage_weights,
    approx_kl,
    clipped_fraction,
    clipped_surrogate,
    flow_matching_error,
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


RATIOS = (0.5, 0.8, 0.9, 1.0, 1.1, 1.2, 1.5)
"""Both sides of the clip and exactly at it."""


def member_sum(ratio: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    """PPO's objective of each member, added up: the definition."""
    return torch.minimum(ratio * advantages, ratio.clamp(1.0 - 0.2, 1.0 + 0.2) * advantages).sum()


@pytest.mark.parametrize("members", [1, 2, 4, 8])
def test_one_pass_equals_the_sum_over_members_in_value_and_gradient(members: int) -> None:
    """For advantages of both signs, of one sign and of none, at every ratio; at the kinks the same subgradient."""
    rng = np.random.default_rng(members)
    cases = [torch.from_numpy(rng.normal(size=members)) for _ in range(20)]
    cases += [cases[0].abs(), -cases[0].abs(), torch.zeros(members, dtype=torch.float64)]
    ratios = [*RATIOS, *rng.lognormal(0.0, 0.3, size=20)]
    assert min(ratios) < 0.8
    assert max(ratios) > 1.2
    for advantages in cases:
        positive, negative = advantages.clamp(min=0).sum(), advantages.clamp(max=0).sum()
        for value in ratios:
            one, many = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for _ in range(2))
            shared, reference = clipped_surrogate(one, positive, negative, **CLIP), member_sum(many, advantages)
            assert shared.item() == pytest.approx(reference.item(), rel=1e-12, abs=1e-12)
            gradients = [float(torch.autograd.grad(loss, at)[0]) for loss, at in ((shared, one), (reference, many))]
            assert gradients[0] == pytest.approx(gradients[1], rel=1e-12, abs=1e-12), (advantages, value)


def test_one_pass_needs_both_sums() -> None:
    """The sum of the advantages alone, clipped as one, is something else as soon as the signs differ.

    At ratio 1.5 the members' advantages 2 and -1 give min(3, 2.4) + min(-1.5, -1.2) = 0.9; their sum 1 gives 1.2.
    """
    ratio, advantages = torch.tensor(1.5), torch.tensor([2.0, -1.0])
    assert float(member_sum(ratio, advantages)) == pytest.approx(0.9)
    assert float(clipped_surrogate(ratio, torch.tensor(2.0), torch.tensor(-1.0), **CLIP)) == pytest.approx(0.9)
    assert float(clipped_surrogate(ratio, torch.tensor(1.0), torch.tensor(0.0), **CLIP)) == pytest.approx(1.2)


def test_clipped_fraction_needs_the_sign_that_clipping_stops() -> None:
    ratio = torch.tensor([1.3, 1.3, 0.7, 0.7, 1.0])
    positive, negative = torch.tensor([1.0, 0, 1, 0, 1]), torch.tensor([0.0, -1, 0, -1, -1])
    assert clipped_fraction(ratio, positive, negative, **CLIP).tolist() == [True, False, False, True, False]


def test_approx_kl_is_zero_only_at_equality() -> None:
    value = approx_kl(torch.tensor([0.0, 0.1, -0.1]))
    assert value[0] == 0
    assert (value[1:] > 0).all()


def test_regression_weights_keep_their_sign_and_average_one_where_they_are_positive() -> None:
    # Positive advantages 1 and 3 of one member each average 2: 1/2, 3/2. The negative one is -5/2, the others 0.
    ones = torch.ones(4)
    weights = advantage_weights(torch.tensor([1.0, 3.0, -5.0, 0.0]), ones, maximum=3.0)
    torch.testing.assert_close(weights, torch.tensor([0.5, 1.5, -2.5, 0.0]))


def test_regression_weights_average_one_per_member() -> None:
    # 4 members share an advantage of 4 in all, one has 6: (4 + 6) / 5 = 2 per member, so 4/2 = 2 and 6/2 = 3;
    # as rows of one member each, four times 1/2 and once 3, they average 1.
    weights = advantage_weights(torch.tensor([4.0, 6.0]), torch.tensor([4.0, 1.0]), maximum=9.0)
    torch.testing.assert_close(weights, torch.tensor([2.0, 3.0]))
    one_by_one = advantage_weights(torch.tensor([1.0] * 4 + [6.0]), torch.ones(5), maximum=9.0)
    torch.testing.assert_close(one_by_one.sum(), weights.sum())
    assert float(one_by_one.mean()) == pytest.approx(1.0)


def test_regression_weights_are_clipped_per_member_on_both_sides() -> None:
    # Positive: 9 times 0.1 and 10.0, 10.9 over 10 members: scale 1.09, so 10 / 1.09 = 9.2 is clipped to 3.
    weights = advantage_weights(torch.tensor([0.1] * 9 + [10.0, -10.0]), torch.ones(11), maximum=3.0)
    assert weights.max() == 3.0
    assert weights.min() == -3.0
    assert weights[0] == pytest.approx(0.1 / 1.09)
    # Two members: 20.9 over 11 members is 1.9, 20 / 1.9 = 10.5 is clipped to 2 * 3.
    shared = advantage_weights(torch.tensor([0.1] * 9 + [20.0]), torch.tensor([1.0] * 9 + [2.0]), maximum=3.0)
    assert shared[9] == 6.0


def test_regression_weights_without_a_positive_advantage() -> None:
    """Nothing to scale by: what is bad is bad, and zero stays zero."""
    assert not (advantage_weights(torch.tensor([-1.0, 0.0]), torch.ones(2), maximum=3.0) > 0).any()
    assert not advantage_weights(torch.zeros(2), torch.ones(2), maximum=3.0).any()


def test_flow_matching_error_counts_only_masked_steps() -> None:
    velocity, target = torch.zeros(2, 3, 2), torch.ones(2, 3, 2)
    target[0, 2] = 100.0
    mask = torch.tensor([[True, True, False], [False, False, False]])
    torch.testing.assert_close(flow_matching_error(velocity, target, mask), torch.tensor([1.0, 0.0]))
