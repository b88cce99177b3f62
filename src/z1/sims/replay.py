"""The main process's way to replay recorded demonstrations: one host, one recording at a time."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

import numpy as np

from z1.errors import SimulatorError
from z1.sims.hosts import HostGroup, Request
from z1.sims.recording import Recording, Replay
from z1.sims.spec import SimSpec

_TIMEOUT_S = 120.0
"""Longest silence of the host while it works."""

_HOST = 0


class Replayer:
    """One host that replays recordings. A context manager."""

    def __init__(self, spec: SimSpec) -> None:
        """Starts the host.

        Raises:
            SimulatorError: The simulator is not installed.
            RenderError: No GL back end works.
        """
        self._hosts = HostGroup(spec, 1, _TIMEOUT_S)

    def __enter__(self) -> Replayer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hosts.close()

    def replay(self, recording: Recording, frames: Sequence[int]) -> Replay:
        """What the simulator makes of some frames of a recording.

        Raises:
            SimulatorError: The recording cannot be opened here, or the host was lost.
        """
        assert all(0 <= frame < len(recording.states) for frame in frames), frames
        body = {"task": recording.task, "scene": recording.scene, "model_xml": recording.model_xml}
        arrays: dict[str, np.ndarray] = {
            "states": np.asarray(recording.states, np.float64),
            "actions": np.asarray(recording.actions, np.float32),
            "frames": np.asarray(frames, np.int64),
        }
        answers, lost = self._hosts.ask({_HOST: Request("replay", body, arrays)})
        if lost:
            raise SimulatorError(f"the recording ended the simulator: {lost[_HOST]}")
        answer = answers[_HOST]
        return Replay(
            state=answer.arrays["state"],
            after_action=answer.arrays["action"],
            after_nothing=answer.arrays["nothing"],
            solved=bool(answer.body["solved"]),
        )
