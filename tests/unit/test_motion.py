"""What actions explain of the motion between states: hand-worked numbers, and every wrong order of the arm's dims."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from demonstration_files import moving_episode, turned
from z1.data.motion import MOTION_NAMES, base_at_rest, find_order, motion, shares_of_motion
from z1.sims.robocasa_layout import ACTION_NAMES, LEROBOT_ACTION

EPISODES = [(episode.state, episode.action) for episode in (moving_episode(seed, length=60) for seed in range(3))]


def state(**parts: object) -> np.ndarray:
    """An env state; a base that faces the world's y, a hand that points down, open fingers."""
    parts = {
        "base": [1.0, 2.0, 0.7],
        "facing": [0.0, 0.0, np.sqrt(0.5), np.sqrt(0.5)],
        "hand": [0.5, 0.0, 0.4],
        "turn": [1.0, 0.0, 0.0, 0.0],
        "fingers": [0.04, -0.04],
        **parts,
    }
    return np.concatenate([np.asarray(part, np.float64) for part in parts.values()])


def test_motion_is_seen_from_the_base() -> None:
    before, down = state(), np.array([1.0, 0.0, 0.0, 0.0])
    after = np.stack(
        [
            state(hand=[0.51, 0.0, 0.38]),
            state(turn=turned(down, np.array([0.0, 0.2, 0.0]))),
            state(turn=-turned(down, np.array([0.0, 0.2, 0.0]))),  # the same rotation
            state(fingers=[0.03, -0.035]),
            state(base=[1.0, 2.1, 0.7]),  # the base faces y: forward
            state(base=[0.9, 2.0, 0.7]),  # and x is to its right
            state(facing=turned(np.array([0.0, 0.0, np.sqrt(0.5), np.sqrt(0.5)]), np.array([0.0, 0.0, -0.3]))),
        ]
    )
    expected = np.zeros((7, 11))
    expected[0, [0, 2]] = 0.01, -0.02
    expected[1:3, 4] = 0.2
    expected[3, 6:8] = -0.01, 0.005
    expected[4, 8], expected[5, 9], expected[6, 10] = 0.1, 0.1, -0.3
    found = motion(np.tile(before, (7, 1)), after)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert base_at_rest(found).tolist() == [True, True, True, True, False, False, False]
    assert MOTION_NAMES[8:] == ("base_forward", "base_side", "base_yaw")


def test_what_happens_anyway_explains_nothing() -> None:
    """The recording moves x by 3 mm and y by 4, without an action 2 and 4: the action makes 1 mm of x."""
    rows = np.zeros((4, 11))
    recorded, idle = rows.copy(), rows.copy()
    recorded[:, :2], idle[:, :2] = (0.003, 0.004), (0.002, 0.004)
    for executed_x, share, correlation in (
        (0.003, 1.0, 1.0),
        (0.002, 0.0, 0.0),
        (0.001, -3.0, -1.0),
        (0.0025, 0.75, 1),
    ):
        executed = idle.copy()
        executed[:, 0] = executed_x
        (found,) = shares_of_motion(recorded, executed, idle)
        assert (found.part.name, found.frames, found.worst) == ("arm position", 4, "arm_dx")
        np.testing.assert_allclose([found.share, found.worst_share, found.effect], [share, share, 0.001], atol=1e-9)
        np.testing.assert_allclose(found.correlation, correlation, atol=1e-9)


def test_the_worst_motion_is_not_hidden_by_the_others() -> None:
    """x makes 10 mm and is right, y makes 1 mm and is turned round: 1 - 4 / 101 of the part, 1 - 4 / 1 of y."""
    recorded, executed = np.zeros((3, 11)), np.zeros((3, 11))
    recorded[:, :2], executed[:, :2] = (0.01, 0.001), (0.01, -0.001)
    (found,) = shares_of_motion(recorded, executed, np.zeros((3, 11)))
    assert found.share == pytest.approx(1 - 4 / 101)
    assert (found.worst, found.worst_share) == ("arm_dy", pytest.approx(-3.0))


def test_a_driving_base_and_small_effects_are_left_out() -> None:
    recorded = np.zeros((4, 11))
    recorded[:, 0], recorded[:2, 8] = 0.01, 0.02
    names = {share.part.name: share.frames for share in shares_of_motion(recorded, recorded, np.zeros((4, 11)))}
    assert names == {"arm position": 2, "base": 4}
    assert shares_of_motion(recorded * 1e-3, recorded, np.zeros((4, 11))) == []


def test_the_right_order_is_confirmed() -> None:
    found = find_order(EPISODES)
    assert (found.verdict, found.frames) == ("confirmed", 3 * 58)
    assert [(action, moved) for action, moved, _ in found.fits] == [(name, name) for name in ACTION_NAMES[:6]]
    assert all(value > 0.8 for _, _, value in found.fits)


@pytest.mark.parametrize(("one", "other"), combinations(range(6), 2))
def test_two_dims_exchanged_contradict(one: int, other: int) -> None:
    order = list(range(12))
    order[one], order[other] = other, one
    found = find_order([(states, actions[:, order]) for states, actions in EPISODES])
    assert found.verdict == "contradicted"
    assert {(action, moved) for action, moved, _ in found.fits if action != moved} == {
        (ACTION_NAMES[one], ACTION_NAMES[other]),
        (ACTION_NAMES[other], ACTION_NAMES[one]),
    }


@pytest.mark.parametrize("dim", range(6))
def test_a_dim_turned_round_contradicts(dim: int) -> None:
    sign = np.where(np.arange(12) == dim, -1.0, 1.0)
    found = find_order([(states, actions * sign) for states, actions in EPISODES])
    assert found.verdict == "contradicted"
    assert [action for action, _, value in found.fits if value < 0] == [ACTION_NAMES[dim]]


def test_the_order_of_lerobot_files_contradicts() -> None:
    found = find_order([(states, actions[:, list(LEROBOT_ACTION)]) for states, actions in EPISODES])
    assert found.verdict == "contradicted"


def test_what_cannot_be_told_is_undecided() -> None:
    assert find_order(EPISODES[:1]).verdict == "undecided"  # 58 frames
    assert find_order([(states, np.zeros_like(actions)) for states, actions in EPISODES]).verdict == "undecided"
    alike = [(states, np.repeat(actions[:, :1], 12, axis=1)) for states, actions in EPISODES]
    assert find_order(alike).verdict == "undecided"
    assert find_order([]).verdict == "undecided"


def test_frames_in_which_the_base_drives_do_not_count() -> None:
    driving = [(states.copy(), actions) for states, actions in EPISODES]
    for states, _ in driving:
        states[:, 0] += 0.01 * np.arange(len(states), dtype=np.float32)
    assert find_order(driving).frames == 0
