"""What a SimPool knows of its members: handles, where they live, what was seen last, which are lost."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from z1.errors import SimulatorError
from z1.sims.spec import SimCounters
from z1.types import Scene

logger = logging.getLogger(__name__)

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """An episode in progress, living on one host of one pool.

    Attributes:
        scene: Its scene.
        id: Unique within the process.
    """

    scene: Scene
    id: int


@dataclass(slots=True, kw_only=True)
class Record:
    """What the pool knows of a member.

    Attributes:
        member: Its handle.
        host: Index of its host.
        instruction: What the policy is told.
        images: uint8 ``[V, height, width, 3]``, the last ones rendered; None: to be rendered when asked for.
        state: float32 ``[S]``.
        origin: uint8 ``[bytes]``, the snapshot that it began from; None: its scene's initial state.
        history: Chunks executed since, float32 ``[C, A]`` each.
        ended: No further chunk may be executed.
        lost: Why it is lost; empty while it is not.
    """

    member: Member
    host: int
    instruction: str
    images: np.ndarray | None = None
    state: np.ndarray | None = None
    origin: np.ndarray | None = None
    history: tuple[np.ndarray, ...] = ()
    ended: bool = False
    lost: str = ""


def new_member(scene: Scene) -> Member:
    """A handle with a number of its own."""
    return Member(scene=scene, id=next(_numbers))


def by_host(records: Sequence[Record]) -> dict[int, list[int]]:
    """Row numbers of the members that are not lost, per host; members of a task stand together."""
    rows: dict[int, list[int]] = {}
    for row in sorted(range(len(records)), key=lambda row: (records[row].member.scene.task, row)):
        if not records[row].lost:
            rows.setdefault(records[row].host, []).append(row)
    return rows


def checked_actions(records: Sequence[Record], actions: np.ndarray, action_dim: int) -> np.ndarray:
    """The actions of a chunk, if they can be executed.

    Args:
        records: The members that are to execute them, B.
        actions: ``[B, C, A]``.
        action_dim: A.

    Returns:
        float32 ``[B, C, A]``.

    Raises:
        SimulatorError: A wrong shape or dtype, numbers that are not finite, a member twice or after its end.
    """
    actions = np.asarray(actions)
    wanted = f"[{len(records)}, C, {action_dim}]"
    if actions.ndim != 3 or actions.shape[::2] != (len(records), action_dim) or actions.shape[1] < 1:
        raise SimulatorError(
            f"actions have shape {list(actions.shape)}; expected {wanted}: members, env steps, action dims"
        )
    if actions.dtype.kind not in "fiu":
        raise SimulatorError(f"actions have dtype {actions.dtype}; expected numbers")
    actions = actions.astype(np.float32)
    finite = np.isfinite(actions).all(axis=(1, 2))
    if not finite.all():
        row = int(np.argmin(finite))
        raise SimulatorError(
            f"actions of row {row} ({records[row].member.scene.task}) are NaN or infinite; the policy has diverged"
        )
    if len({record.member.id for record in records}) < len(records):
        raise SimulatorError("a member appears twice in one step_chunk; each may execute one chunk per call")
    for record in records:
        if record.ended:
            raise SimulatorError(
                f"the episode of member {record.member.id} ({record.member.scene.task}) has ended; "
                "release it and start another"
            )
    return actions


class MemberTable:
    """The members of one pool.

    Args:
        counters: Where lost members are counted.
    """

    def __init__(self, counters: SimCounters) -> None:
        self._records: dict[int, Record] = {}
        self._counters = counters

    def add(self, record: Record) -> None:
        """Takes a new member in."""
        self._records[record.member.id] = record

    def look_up(self, members: Iterable[Member]) -> list[Record]:
        """The records of members, in order.

        Raises:
            SimulatorError: One is not known.
        """
        records = []
        for member in members:
            record = self._records.get(member.id)
            if record is None:
                raise SimulatorError(
                    f"member {member.id} of {member.scene.task} is not known to this SimPool; "
                    "it was released or belongs to another pool"
                )
            records.append(record)
        return records

    def pop(self, members: Iterable[Member]) -> list[Record]:
        """Forgets members; the records of those that were known."""
        return [self._records.pop(member.id) for member in members if member.id in self._records]

    def clear(self) -> None:
        """Forgets all."""
        self._records.clear()

    def load(self, hosts: int) -> list[int]:
        """Living members of each host."""
        load = [0] * hosts
        for record in self._records.values():
            load[record.host] += not record.ended and not record.lost
        return load

    def on_host(self, host: int) -> list[Record]:
        """The members of a host that are not lost, ended ones as well."""
        return [record for record in self._records.values() if record.host == host and not record.lost]

    def recovered(self, record: Record) -> None:
        """Counts a member that was put back after its host was lost."""
        logger.info("member %d of %s was put back", record.member.id, record.member.scene.task)
        self._counters.recovered_members += 1

    def lose(self, record: Record, reason: str) -> None:
        """Marks a member as lost."""
        logger.warning("member %d of %s is lost: %s", record.member.id, record.member.scene.task, reason)
        record.lost = reason
        self._counters.invalid_members += 1

    def lose_host(self, host: int, reason: str) -> None:
        """Marks the members of a host as lost."""
        for record in self.on_host(host):
            self.lose(record, reason.splitlines()[0].rstrip(";"))
