"""Whether RoboCasa's actions explain the motion between states. Pure: arrays in, findings out.

Two questions. ``shares_of_motion``: of what an action changes within one env step by the recording, how much does it
change in the simulator? ``find_order``: without a simulator, does the arm move in each direction as the action dim says
that is meant for it?

In both, what the arm would do anyway counts for nothing: within one env step momentum carries the arm further than the
new action does, so that even wrong actions seem to explain most of the motion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from z1.sims.robocasa_layout import ACTION_NAMES, ARM_ROTATION, BASE, STATE_NAMES

ARM = ARM_ROTATION.stop
"""Motions and action dims of the arm come first."""

MOTION_NAMES = (*ACTION_NAMES[:ARM], *STATE_NAMES[14:16], *ACTION_NAMES[BASE])
"""What moves between two states: the end effector in the base's frame (m, rad), the fingers (m), the base in its own
frame (m, m, rad)."""

LEAST_SHARE = 0.8
"""The actions must explain so much of each motion that can be judged. Measured, in the worst motion: at least 0.99 with
right actions, at most 0.76 with two arm dims exchanged or one turned round."""

USUAL_SHARE = 0.95
"""Less than this deserves a note."""

MIN_FRAMES = 100
"""Fewer do not tell the order of action dims."""

MARGIN = 0.35
"""The sum of the arm's correlations must be higher by so much in another order to contradict z1's, or lower by so much
in every other order to confirm it."""

_BASE_AT_REST = (1e-3, 2e-3)
"""Metres and radians per frame below which the base stands still; while it drives, not all of the arm's motion is its
own."""

_COMMANDED = 0.01
"""An action dim whose standard deviation is smaller commands nothing."""

_STILL = 1e-5
"""Metres or radians per frame: a motion whose standard deviation is smaller is none."""

_BASE, _BASE_TURN = slice(0, 3), slice(3, 7)
_EEF, _EEF_TURN, _FINGERS = slice(7, 10), slice(10, 14), slice(14, 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Motions that are reported together.

    Attributes:
        name: For messages.
        motions: Which of ``MOTION_NAMES``.
        floor: Effect of the actions, root mean square per env step in m or rad, below which nothing can be said.
        at_rest: Whether only frames count in which the base stands still.
    """

    name: str
    motions: tuple[int, ...]
    floor: float
    at_rest: bool


PARTS = (
    Part(name="arm position", motions=(0, 1, 2), floor=3e-4, at_rest=True),
    Part(name="arm rotation", motions=(3, 4, 5), floor=1e-3, at_rest=True),
    Part(name="gripper", motions=(6, 7), floor=1e-4, at_rest=False),
    Part(name="base", motions=(8, 9, 10), floor=1e-3, at_rest=False),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MotionShare:
    """How much of a part's motion the actions explain in the simulator.

    Attributes:
        part: Which part.
        frames: Frames that count.
        effect: Root mean square of what the actions change per env step by the recording, in m or rad.
        share: 1 - squared error / squared effect; 1: all of it, 0: no more than no action does.
        correlation: Of the recorded and the executed effect.
        worst: The motion that is explained least, of those above the floor.
        worst_share: Its share.
    """

    part: Part
    frames: int
    effect: float
    share: float
    correlation: float
    worst: str
    worst_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmOrder:
    """Whether the arm moves as the action dims say that are meant for it.

    Attributes:
        frames: Frames that were used: those in which the base stands still.
        verdict: ``confirmed``, ``contradicted`` or ``undecided`` (few frames, or dims that act too much alike).
        margin: By how much the sum of correlations is higher in z1's order than in the best other one.
        fits: For each action dim that commands something its name, the motion that fits it best in the best order,
            with its sign, and their correlation.
    """

    frames: int
    verdict: str
    margin: float
    fits: tuple[tuple[str, str, float], ...]


def motion(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """What moved.

    Args:
        before: ``[T, 16]``, env states.
        after: ``[T, 16]``, env states a frame later.

    Returns:
        float64 ``[T, 11]``, in the order of ``MOTION_NAMES``.
    """
    before, after = before.astype(np.float64), after.astype(np.float64)
    moved = after - before
    return np.column_stack(
        [
            moved[:, _EEF],
            _rotation(before[:, _EEF_TURN], after[:, _EEF_TURN]),
            moved[:, _FINGERS],
            _seen_from(before[:, _BASE_TURN], moved[:, _BASE])[:, :2],
            _rotation(before[:, _BASE_TURN], after[:, _BASE_TURN])[:, 2],
        ]
    )


def base_at_rest(moved: np.ndarray) -> np.ndarray:
    """bool ``[T]``: frames of ``motion`` in which the base stands still."""
    length, angle = _BASE_AT_REST
    driven, turned = np.linalg.norm(moved[:, 8:10], axis=1), np.abs(moved[:, 10])
    still: np.ndarray = (driven < length) & (turned < angle)
    return still


def shares_of_motion(recorded: np.ndarray, executed: np.ndarray, idle: np.ndarray) -> list[MotionShare]:
    """How much of what the actions change they change in the simulator too.

    Args:
        recorded: float64 ``[F, 11]``, motion by the recording.
        executed: float64 ``[F, 11]``, motion in the simulator with the action, from the same states.
        idle: float64 ``[F, 11]``, motion in the simulator with no action.

    Returns:
        One per part whose actions have an effect above its floor.
    """
    shares = []
    for part in PARTS:
        rows = base_at_rest(recorded) if part.at_rest else np.ones(len(recorded), np.bool_)
        dims = list(part.motions)
        wanted = (recorded - idle)[rows][:, dims]
        found = (executed - idle)[rows][:, dims]
        effects = np.sqrt((wanted**2).mean(0)) if len(wanted) else np.zeros(len(dims))
        if effects.max() < part.floor:
            continue
        squares, errors = (wanted**2).sum(0), ((found - wanted) ** 2).sum(0)
        by_motion = {dims[i]: 1 - errors[i] / squares[i] for i in range(len(dims)) if effects[i] >= part.floor}
        worst = min(by_motion, key=lambda dim: by_motion[dim])
        lengths = np.sqrt(squares.sum() * (found**2).sum())
        shares.append(
            MotionShare(
                part=part,
                frames=len(wanted),
                effect=float(np.sqrt((effects**2).sum())),
                share=float(1 - errors.sum() / squares.sum()),
                correlation=float((wanted * found).sum() / lengths) if lengths else 0.0,
                worst=MOTION_NAMES[worst],
                worst_share=float(by_motion[worst]),
            )
        )
    return shares


def find_order(episodes: Sequence[tuple[np.ndarray, np.ndarray]]) -> ArmOrder:
    """Which action dims the arm's motions follow.

    Each motion is correlated with each action dim after the part that the motion one frame before explains has been
    taken out of both. The order is the assignment of motions to action dims with the largest sum of correlations,
    without regard to signs.

    Args:
        episodes: States ``[T, 16]`` and actions ``[T, 12]`` of each.
    """
    now, before, action = _regression_rows(episodes)
    frames = len(now)
    undecided = ArmOrder(frames=frames, verdict="undecided", margin=0.0, fits=())
    if frames < MIN_FRAMES:
        return undecided
    commanded = [dim for dim in range(ARM) if action[:, dim].std() >= _COMMANDED]
    if not commanded:
        return undecided
    constant = np.column_stack([np.ones(frames), before])
    correlations = _correlations(_residuals(constant, now), _residuals(constant, action[:, commanded]))
    correlations[now.std(0) < _STILL] = 0.0
    own = float(sum(correlations[dim, column] for column, dim in enumerate(commanded)))
    orders = np.array(list(permutations(range(ARM), len(commanded))))
    sums = np.abs(correlations)[orders, np.arange(len(commanded))].sum(1)
    others = (orders != commanded).any(1)
    turned = own - 2 * min(float(correlations[dim, column]) for column, dim in enumerate(commanded))
    margin = own - max(float(sums[others].max()), turned)
    best = orders[sums.argmax()]
    if sums.max() - own > MARGIN:
        verdict = "contradicted"
    else:
        verdict = "confirmed" if margin > MARGIN else "undecided"
    fits = [
        (ACTION_NAMES[dim], MOTION_NAMES[best[column]], float(correlations[best[column], column]))
        for column, dim in enumerate(commanded)
    ]
    return ArmOrder(frames=frames, verdict=verdict, margin=margin, fits=tuple(fits))


def _regression_rows(episodes: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The arm's motion in a frame and in the one before, and the action; of frames in which the base stands still."""
    now, before, actions = [np.zeros((0, ARM))], [np.zeros((0, ARM))], [np.zeros((0, ARM))]
    for states, action in episodes:
        moved = motion(states[:-1], states[1:])
        rest = base_at_rest(moved)
        both = rest[1:] & rest[:-1]
        now.append(moved[1:, :ARM][both])
        before.append(moved[:-1, :ARM][both])
        actions.append(action[1:-1, :ARM][both])
    return np.concatenate(now), np.concatenate(before), np.concatenate(actions).astype(np.float64)


def _residuals(explaining: np.ndarray, values: np.ndarray) -> np.ndarray:
    """What a linear function of other values does not explain."""
    return np.asarray(values - explaining @ np.linalg.lstsq(explaining, values, rcond=None)[0])


def _correlations(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Correlation of each column of the first with each of the second; 0 where there is nothing to correlate."""
    lengths = np.sqrt(np.outer((rows**2).sum(0), (columns**2).sum(0)))
    return np.divide(rows.T @ columns, lengths, out=np.zeros_like(lengths), where=lengths > 0)


def _rotation(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Rotation vectors ``[T, 3]`` from one unit quaternion (x, y, z, w) to another, in the common frame."""
    turn = _product(after, before * np.array([-1.0, -1.0, -1.0, 1.0]))
    turn = turn * np.where(turn[:, 3:] < 0, -1.0, 1.0)  # q and -q are the same rotation
    sine = np.linalg.norm(turn[:, :3], axis=1, keepdims=True)
    angle = 2 * np.arctan2(sine, turn[:, 3:])
    return turn[:, :3] * np.divide(angle, sine, out=np.full_like(sine, 2.0), where=sine > 1e-9)


def _seen_from(frame: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Vectors ``[T, 3]`` of the world in frames of the given orientation."""
    conjugate = frame * np.array([-1.0, -1.0, -1.0, 1.0])
    pure = np.column_stack([vectors, np.zeros(len(vectors))])
    return _product(_product(conjugate, pure), frame)[:, :3]


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Products ``[T, 4]`` of quaternions (x, y, z, w)."""
    (ax, ay, az, aw), (bx, by, bz, bw) = a.T, b.T
    return np.column_stack(
        [
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
            aw * bw - ax * bx - ay * by - az * bz,
        ]
    )
