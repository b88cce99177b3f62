"""Checks of RoboCasa's demonstrations before they are stored: by their own numbers, and by replaying them.

Every source is checked by its numbers: plausible states, actions in range, and whether the arm moves as its action dims
say. A source that holds the simulator's states is replayed too: each of some frames is put into the simulator, the env
state read there is compared with the imported one, the imported action is executed for one env step, and the motion is
compared with the recorded one. Not a whole episode: files hold neither the solver's warm start nor the controllers'
goals, so that replays drift from the recording.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from z1.data.motion import (
    LEAST_SHARE,
    USUAL_SHARE,
    ArmOrder,
    MotionShare,
    base_at_rest,
    find_order,
    motion,
    shares_of_motion,
)
from z1.data.sources.orders import QUATERNIONS, SWITCH_VALUES
from z1.data.sources.source import EpisodeVectors, Source
from z1.errors import ConfigError, DatasetError, SimulatorError, UnknownNameError
from z1.sims.recording import Recording, Replay
from z1.sims.replay import Replayer
from z1.sims.robocasa_layout import ACTION_NAMES, BASE_MODE, CONTROL_HZ, GRIPPER, STATE_NAMES
from z1.sims.robocasa_tasks import LATCHED, TASKS
from z1.sims.spec import SimSpec

STATE_TOLERANCE = 1e-3
"""Largest difference between imported and simulated env state, in m or parts of a unit quaternion. Measured within one
version of the simulator: 2e-7."""

SPREAD_FRAMES, EVENT_FRAMES = 20, 6
"""Frames of an episode that are replayed: so many evenly spread, and with the most motion of fingers and of base."""

_REACH_M = 1.5
_FINGER_M = (-0.005, 0.045)
_UPRIGHT = 0.05
_ARM_RANGE = 1.001


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayReport:
    """What replaying a source showed.

    Attributes:
        episodes: Episodes replayed.
        frames: Frames put into the simulator.
        state_difference: Largest difference between imported and simulated env state.
        shares: How much of the motion the actions explain.
        solved: Episodes that end solved; None where a physical state does not tell.
    """

    episodes: int
    frames: int
    state_difference: float
    shares: tuple[MotionShare, ...]
    solved: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What is known of one source.

    Attributes:
        path: The source.
        episodes: Episodes looked at.
        order: Whether the arm moves as its action dims say.
        replay: What the simulator says; None when the source holds no simulator states.
        notes: What deserves a look and is no reason to refuse.
    """

    path: Path
    episodes: int
    order: ArmOrder
    replay: ReplayReport | None
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """The findings as text, one line each."""
        lines = [f"Verified: {self.path}, episodes: {self.episodes}", f"  {_order_text(self.order)}"]
        replay = self.replay
        if replay is None:
            lines.append(
                "  not verified, since the source holds no simulator states: that state and image belong to the same "
                "moment, what the actions do in the simulator, success"
            )
        else:
            lines.append(
                f"  simulator: {replay.frames} states of {replay.episodes} episodes read as imported (largest "
                f"difference {replay.state_difference:.1g})"
            )
            lines += [f"  simulator: {_share_text(share)}" for share in replay.shares]
            if replay.solved is None:
                lines.append("  simulator: whether episodes end solved cannot be told from states in this task")
            else:
                lines.append(f"  simulator: {replay.solved} of {replay.episodes} episodes end solved")
        return lines + [f"  note: {note}" for note in self.notes]

    def facts(self) -> dict[str, Any]:
        """JSON for the manifest."""
        replay = self.replay
        return {
            "source": self.path.name,
            "episodes": self.episodes,
            "arm_order": self.order.verdict,
            "simulator": None
            if replay is None
            else {
                "episodes": replay.episodes,
                "frames": replay.frames,
                "state_difference": replay.state_difference,
                "share_of_motion": {share.part.name: round(share.share, 4) for share in replay.shares},
                "solved": replay.solved,
            },
            "notes": list(self.notes),
        }


def verify(
    chosen: Sequence[tuple[Source, Sequence[str]]], count: int, on_episode: Callable[[int], None] | None = None
) -> tuple[Verification, ...]:
    """Checks some episodes of each source, evenly spread.

    Args:
        chosen: Sources and the episodes that are to be imported.
        count: How many episodes of each are checked; all if there are fewer.
        on_episode: Called with the number of episodes checked so far.

    Raises:
        ConfigError: The numbers of a source are not RoboCasa's.
        DatasetError: A source contradicts itself or the simulator.
        SimulatorError: A source is to be replayed and RoboCasa is not installed or cannot run.
        UnknownNameError: A source is to be replayed and is of a task that z1 does not know.
    """
    for source, _ in chosen:
        if (source.state_names, source.action_names) != (STATE_NAMES, ACTION_NAMES):
            raise ConfigError(
                f"verify is {count}; {source.path} holds numbers of which nothing is known (taken as they are), only "
                "RoboCasa's can be verified; leave --verify out"
            )
    found, done = [], 0
    with ExitStack() as stack:
        simulator = _Simulator(stack)
        for source, episodes in chosen:
            names = [episodes[i] for i in _spread(len(episodes), count)]
            found.append(_verify_source(source, names, simulator, on_episode, done))
            done += len(names)
    return tuple(found)


class _Simulator:
    """A host that is started by the first recording."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._replayer: Replayer | None = None

    def replay(self, recording: Recording, frames: Sequence[int], where: str) -> Replay:
        if self._replayer is None:
            try:
                self._replayer = self._stack.enter_context(Replayer(SimSpec(simulator="robocasa")))
            except SimulatorError as problem:
                raise type(problem)(
                    f"--verify replays recordings in the simulator, which does not start: {problem}; or leave --verify "
                    "out"
                ) from problem
        try:
            return self._replayer.replay(recording, frames)
        except SimulatorError as problem:
            raise DatasetError(f"{where} cannot be replayed: {problem}; or leave --verify out") from problem


def _verify_source(
    source: Source,
    names: Sequence[str],
    simulator: _Simulator,
    on_episode: Callable[[int], None] | None,
    done: int,
) -> Verification:
    vectors = {name: source.vectors(name) for name in names}
    for name, episode in vectors.items():
        check_states(episode.states, f"{source.path}: {name}")
    order = find_order([(episode.states, episode.actions) for episode in vectors.values()])
    if order.verdict == "contradicted":
        fits = ", ".join(
            f"{action} acts like {'' if value > 0 else 'the opposite of '}{moved}"
            for action, moved, value in order.fits
            if action != moved or value < 0
        )
        raise DatasetError(
            f"{source.path}: the arm does not move as its action dims say ({fits}; by {order.frames} frames); state or "
            "action are in another order than the source's layout says"
        )
    replays = []
    for number, (name, episode) in enumerate(vectors.items()):
        recording = source.recording(name, episode)
        if recording is not None:
            replays.append(_replay_episode(source, name, recording, episode, simulator))
        if on_episode is not None:
            on_episode(done + number + 1)
    report = _report(source.path, replays) if replays else None
    notes = number_notes(list(vectors.values()))
    if replays and len(replays) < len(names):
        notes.append(f"{len(names) - len(replays)} of the episodes hold no simulator states and were not replayed")
    if report is not None:
        notes += [_share_note(share) for share in report.shares if share.worst_share < USUAL_SHARE]
    return Verification(path=source.path, episodes=len(names), order=order, replay=report, notes=tuple(notes))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Replayed:
    """One episode in the simulator: motions float64 ``[F, 11]``."""

    recorded: np.ndarray
    executed: np.ndarray
    idle: np.ndarray
    difference: float
    solved: bool | None


def _replay_episode(
    source: Source, name: str, recording: Recording, episode: EpisodeVectors, simulator: _Simulator
) -> _Replayed:
    """Puts frames of an episode into the simulator and compares what is read there.

    Raises:
        DatasetError: The scene cannot be opened, or its states are not the imported ones.
        UnknownNameError: The scene is of a task that z1 does not know.
    """
    where = f"{source.path}: {name}"
    if recording.task not in TASKS:
        raise UnknownNameError("RoboCasa task", recording.task, TASKS, f"({source.path}; leave --verify out)")
    if source.fps != CONTROL_HZ:
        raise DatasetError(
            f"{where}: expected {CONTROL_HZ:g} frames per second, one per env step, to replay it, got {source.fps}; "
            "leave --verify out"
        )
    if len(recording.states) != len(episode.actions) or not np.isfinite(recording.states).all():
        raise DatasetError(
            f"{where}: expected {len(episode.actions)} finite simulator states, one for each action, got "
            f"{len(recording.states)}; copy the file again, or leave --verify out"
        )
    if len(episode.actions) < 2:
        raise DatasetError(f"{where}: expected at least 2 frames to compare, got {len(episode.actions)}")
    frames = frames_to_replay(episode.states)
    replay = simulator.replay(recording, frames.tolist(), where)
    before, after = episode.states[frames], episode.states[frames + 1]
    difference = check_same_states(before, replay.state, frames, where)
    if not (np.isfinite(replay.after_action).all() and np.isfinite(replay.after_nothing).all()):
        raise DatasetError(f"{where}: the physics breaks down where recorded states are put in; leave the episode out")
    return _Replayed(
        recorded=motion(before, after),
        executed=motion(before, replay.after_action),
        idle=motion(before, replay.after_nothing),
        difference=difference,
        solved=None if recording.task in LATCHED else replay.solved,
    )


def _report(path: Path, replays: Sequence[_Replayed]) -> ReplayReport:
    """The findings of a source's episodes together.

    Raises:
        DatasetError: The actions do not move the robot as it was recorded.
    """
    shares = shares_of_motion(
        np.concatenate([replay.recorded for replay in replays]),
        np.concatenate([replay.executed for replay in replays]),
        np.concatenate([replay.idle for replay in replays]),
    )
    for share in shares:
        if share.worst_share < LEAST_SHARE:
            raise DatasetError(
                f"{path}: executed in the simulator, the actions do not move the robot as it was recorded: of what "
                f"they change in {share.worst} they explain {share.worst_share:.2f} (1: all, 0: no more than no action "
                f"does; expected at least {LEAST_SHARE:g}); the actions are in another order, of another scale, a "
                "frame late or for another controller"
            )
    judged = [replay.solved for replay in replays if replay.solved is not None]
    return ReplayReport(
        episodes=len(replays),
        frames=sum(len(replay.recorded) for replay in replays),
        state_difference=max(replay.difference for replay in replays),
        shares=tuple(shares),
        solved=sum(judged) if judged else None,
    )


def frames_to_replay(states: np.ndarray) -> np.ndarray:
    """Frames of an episode that have a next one: some evenly spread, those with the most motion of fingers and of base.

    Args:
        states: float32 ``[T, 16]``, T at least 2.

    Returns:
        int64, increasing.
    """
    moved = np.abs(motion(states[:-1], states[1:]))
    spread = _spread(len(moved), SPREAD_FRAMES)
    fingers = np.argsort(-moved[:, 6:8].sum(1), kind="stable")[:EVENT_FRAMES]
    driving = np.flatnonzero(~base_at_rest(moved))
    driving = driving[np.argsort(-moved[driving, 8:].sum(1), kind="stable")[:EVENT_FRAMES]]
    return np.unique(np.concatenate([spread, fingers, driving])).astype(np.int64)


def check_states(states: np.ndarray, where: str) -> None:
    """Refuses states that PandaOmron cannot be in: leaning base, fingers beyond their ends, a hand out of reach.

    Raises:
        DatasetError: Names the numbers.
    """
    leaning = np.abs(states[:, 3:5]).max(1) > _UPRIGHT
    fingers = np.column_stack([states[:, 14], -states[:, 15]])
    beyond = ((fingers < _FINGER_M[0]) | (fingers > _FINGER_M[1])).any(1)
    away = np.linalg.norm(states[:, 7:10], axis=1) > _REACH_M
    for wrong, dims, expected in (
        (leaning, (3, 4), "an upright base, both near 0"),
        (beyond, (14, 15), "fingers of 0 to 0.04 m and -0.04 to 0 m"),
        (away, (7, 8, 9), f"the hand within {_REACH_M:g} m of the base"),
    ):
        frames = np.flatnonzero(wrong)
        if len(frames):
            names = ", ".join(STATE_NAMES[dim] for dim in dims)
            values = ", ".join(f"{states[frames[0], dim]:.3g}" for dim in dims)
            raise DatasetError(
                f"{where}: expected in {names} {expected}, got {values} in frame {frames[0]}; the numbers of the state "
                "are in another order"
            )


def check_same_states(imported: np.ndarray, simulated: np.ndarray, frames: np.ndarray, where: str) -> float:
    """Compares env states; quaternions up to their sign, which stands for the same rotation.

    Args:
        imported: float32 ``[F, 16]``.
        simulated: float32 ``[F, 16]``.
        frames: int64 ``[F]``, for the message.
        where: For the message.

    Returns:
        The largest difference.

    Raises:
        DatasetError: It is larger than ``STATE_TOLERANCE``.
    """
    simulated = simulated.astype(np.float64)
    for dims in QUATERNIONS:
        columns = list(dims)
        agree = (imported[:, columns] * simulated[:, columns]).sum(1, keepdims=True)
        simulated[:, columns] *= np.where(agree < 0, -1.0, 1.0)
    differences = np.abs(imported - simulated)
    row, dim = np.unravel_index(np.argmax(differences), differences.shape)
    if not differences[row, dim] <= STATE_TOLERANCE:
        raise DatasetError(
            f"{where}: frame {frames[row]}: the simulator reads {STATE_NAMES[dim]} {simulated[row, dim]:.4g} where the "
            f"recorded state is put in, imported is {imported[row, dim]:.4g} (they may differ by {STATE_TOLERANCE:g}); "
            "the observations belong to other states, or are in another order"
        )
    return float(differences[row, dim])


def number_notes(episodes: Sequence[EpisodeVectors]) -> list[str]:
    """What is odd about actions and no reason to refuse them."""
    actions = np.concatenate([episode.actions for episode in episodes])
    notes = []
    outside = int((np.abs(actions) > _ARM_RANGE).any(1).sum())
    if outside:
        notes.append(f"{outside} of {len(actions)} actions have numbers outside [-1, 1], which the simulator clips")
    odd = int((~np.isin(actions[:, [GRIPPER, BASE_MODE]], SWITCH_VALUES)).any(1).sum())
    odd += sum(episode.odd_switches for episode in episodes)
    if odd:
        notes.append(
            f"{odd} of {len(actions)} actions have other numbers than -1, 0 and 1 in {ACTION_NAMES[GRIPPER]} or "
            f"{ACTION_NAMES[BASE_MODE]}"
        )
    return notes


def _spread(length: int, count: int) -> np.ndarray:
    """Indices, evenly spread from first to last; all if there are no more."""
    return np.unique(np.linspace(0, length - 1, min(length, count)).round().astype(np.int64))


def _order_text(order: ArmOrder) -> str:
    if order.verdict == "confirmed":
        return (
            f"numbers: the arm moves as its action dims say ({order.frames} frames, ahead of any other order by "
            f"{order.margin:.2f} in the sum of correlations)"
        )
    return f"numbers: {order.frames} frames do not tell the order of the arm's action dims; verify more episodes"


def _share_text(share: MotionShare) -> str:
    return (
        f"{share.part.name}: {share.share:.3f} of what the actions change is explained, correlation "
        f"{share.correlation:.3f} ({share.frames} frames; least {share.worst}: {share.worst_share:.3f})"
    )


def _share_note(share: MotionShare) -> str:
    return (
        f"the actions explain {share.worst_share:.2f} of what they change in {share.worst}, usual is {USUAL_SHARE:g} "
        "and more: another version of the simulator, or another controller?"
    )
