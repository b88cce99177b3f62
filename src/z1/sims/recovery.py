"""Puts the members of lost hosts back where they were, so that a crash costs time and nothing else.

Simulation is deterministic: a member is where it is because of its scene, or the snapshot that it began from, and the
chunks that were executed since. On the host that replaces a lost one scenes are built again and the chunks executed
again. What is then seen must be what was seen before, to the bit; a member for which it is not is lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from z1.sims import requests
from z1.sims.hosts import Answer, HostGroup, Request
from z1.sims.members import MemberTable, Record
from z1.types import Scene, SimInfo

_COUNTS = ("env_steps", "renders", "snapshots", "restores", "scene_builds")
"""Counts that leave out what is done again; its seconds count."""


class Recovery:
    """The recovery of one pool's members.

    Args:
        hosts: The pool's hosts.
        members: Its members.
        info: What the simulator says about itself.
    """

    def __init__(self, hosts: HostGroup, members: MemberTable, info: SimInfo) -> None:
        self._hosts, self._members, self._info = hosts, members, info
        self._again: dict[int, str] = {}
        self._seen: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def put_back(self, lost: Iterable[int]) -> dict[int, str]:
        """Brings the members of hosts that were lost, and have been replaced, to where they were.

        Members that are not the same afterwards are marked as lost.

        Returns:
            The hosts that were lost again meanwhile, and have been replaced again, with the reason.
        """
        self._again, self._seen = {}, {}
        before = self._hosts.counters.copy()
        records = [record for host in lost for record in self._members.on_host(host)]
        self._start([record for record in records if record.origin is None])
        for record in records:
            if record.origin is not None:
                self._restore(record)
        for number in range(max((len(record.history) for record in records), default=0)):
            self._repeat(number, [record for record in records if len(record.history) > number])
        for record in records:
            if record.host not in self._again:
                self._check(record)
        for name in _COUNTS:
            setattr(self._hosts.counters, name, getattr(before, name))
        return self._again

    def _ask(self, wanted: Mapping[int, Request]) -> dict[int, Answer]:
        """Answers of the hosts that are still there."""
        answers, lost = self._hosts.ask({host: r for host, r in wanted.items() if host not in self._again})
        self._again |= lost
        return answers

    def _start(self, records: list[Record]) -> None:
        """Members that began at their scene's initial state."""
        groups: dict[int, dict[Scene, list[int]]] = {}
        for record in records:
            groups.setdefault(record.host, {}).setdefault(record.member.scene, []).append(record.member.id)
        wanted = {
            host: requests.start(self._info, list(scenes), list(scenes.values())) for host, scenes in groups.items()
        }
        for host, answer in self._ask(wanted).items():
            for row, ids in enumerate(groups[host].values()):
                self._seen |= dict.fromkeys(ids, (answer.images[row], answer.arrays["state"][row]))

    def _restore(self, record: Record) -> None:
        """A member that began from a snapshot."""
        member = record.member
        assert record.origin is not None
        wanted = requests.restore(self._info, member.scene, member.id, record.origin)
        for answer in self._ask({record.host: wanted}).values():
            self._seen[member.id] = (answer.images[0], answer.arrays["state"][0])

    def _repeat(self, number: int, records: list[Record]) -> None:
        """One chunk of each member's history, in one request per host and chunk length."""
        shares: dict[tuple[int, ...], list[Record]] = {}
        for record in records:
            shares.setdefault(record.history[number].shape, []).append(record)
        for share in shares.values():
            rows: dict[int, list[Record]] = {}
            for record in share:
                rows.setdefault(record.host, []).append(record)
            wanted = {
                host: requests.step(
                    self._info, [r.member.id for r in some], np.stack([r.history[number] for r in some])
                )
                for host, some in rows.items()
            }
            for host, answer in self._ask(wanted).items():
                for i, record in enumerate(rows[host]):
                    self._seen[record.member.id] = (answer.images[i], answer.arrays["state"][i])

    def _check(self, record: Record) -> None:
        """Counts a member that is seen as it was before as recovered, and gives up any other."""
        seen = self._seen[record.member.id]
        before = (record.images, record.state)
        same = all(old is None or np.array_equal(old, new) for old, new in zip(before, seen, strict=True))
        if same:
            self._members.recovered(record)
        else:
            self._members.lose(record, "its host was lost, and after the same actions on another it looks different")
