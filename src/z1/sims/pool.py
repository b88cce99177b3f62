"""SimPool: many episodes on many simulator hosts, seen as one batch.

The pool places scenes on hosts, sends each host its share of a call, lets all of them work at once and puts the rows
back into the caller's order. Results do not depend on the number of hosts or on which members share a call.

A host that dies, hangs or sends what cannot be read is replaced, and the members it held are put back to where they
were (``z1.sims.recovery``). Where that fails again and again they are lost: the next ``step_chunk`` reports them as
invalid, everything else goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

import numpy as np

from z1.errors import ConfigError, SimulatorError, UnknownNameError
from z1.sims import requests
from z1.sims.adapter import MAX_IMAGE_SIZE, model_key
from z1.sims.hosts import ATTEMPTS, Answer, HostGroup, Request
from z1.sims.members import Member, MemberTable, Record, by_host, checked_actions, new_member
from z1.sims.recovery import Recovery
from z1.sims.requests import image_shape
from z1.sims.spec import SimCounters, SimSpec
from z1.sims.suites import instruction, name_of, simulator_of
from z1.types import ChunkOutcome, Observations, Scene, SimInfo

__all__ = ["Member", "SimCounters", "SimPool", "SimSpec"]

MIN_TIMEOUT_S = 1.0
"""Shortest ``timeout_s``: hosts give several signs of life in that time, even on a machine that is busy."""


class SimPool:
    """Episodes on simulator hosts. A context manager; one thread at a time may use it.

    Attributes:
        info: What the simulator says about itself.
        counters: What happened so far.
    """

    def __init__(self, spec: SimSpec, hosts: int = 1, *, timeout_s: float = 120.0) -> None:
        """Starts the hosts.

        Args:
            spec: Which simulator, and what is seen of it.
            hosts: How many processes.
            timeout_s: A host without any sign of life for so long, while it has something to do, is replaced.

        Raises:
            RenderError: No GL back end works.
            ProtocolError: The hosts run another version of z1.
            SimulatorError: The hosts cannot be started.
        """
        if hosts < 1:
            raise ConfigError(f"hosts is {hosts}; at least one simulator host is needed")
        if timeout_s < MIN_TIMEOUT_S:
            raise ConfigError(f"timeout_s is {timeout_s:g}; it must be at least {MIN_TIMEOUT_S:g} seconds")
        self.spec = spec
        self._hosts = HostGroup(spec, hosts, timeout_s)
        self.info: SimInfo = self._hosts.info
        self.counters: SimCounters = self._hosts.counters
        self._members = MemberTable(self.counters)
        self._recovery = Recovery(self._hosts, self._members, self.info)
        self._models: list[set[str]] = [set() for _ in range(hosts)]

    def __enter__(self) -> SimPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stops the hosts."""
        self._hosts.close()
        self._members.clear()

    def host_of(self, member: Member) -> int:
        """Index of the host that a member lives on."""
        return self._members.look_up([member])[0].host

    def horizon_of(self, task: str) -> int:
        """Env steps of an episode of a task.

        Raises:
            UnknownNameError: No such task.
        """
        self._check_task(task)
        return self._hosts.horizons[name_of(task)]

    def _key(self, scene: Scene) -> str:
        return model_key(self.info, name_of(scene.task), scene.seed)

    @property
    def host_pids(self) -> tuple[int, ...]:
        """Process id of each host."""
        return self._hosts.pids

    def _ask(self, wanted: Mapping[int, Request], *, again: bool = True) -> dict[int, Answer]:
        """Sends each host its request.

        Hosts that are lost meanwhile are replaced, their members are put back, and they are asked again.

        Args:
            wanted: Requests by host.
            again: Whether to ask again; otherwise hosts that were lost have no entry in the result.

        Returns:
            The answers. A host that was lost ``ATTEMPTS`` times has none, and its members are lost.
        """
        self._refuse_closed()
        answers, lost = self._hosts.ask(wanted)
        for _ in range(ATTEMPTS - 1):
            if not lost:
                break
            replaced = list(lost)
            for host in replaced:
                self._models[host] = {self._key(r.member.scene) for r in self._members.on_host(host)}
            lost = self._recovery.put_back(replaced)
            if again:
                back = {host: wanted[host] for host in replaced if host not in lost}
                more, lost_now = self._hosts.ask(back)
                answers |= more
                lost |= lost_now
        for host, reason in lost.items():
            self._models[host] = set()
            self._members.lose_host(host, reason)
        return answers

    def _refuse_closed(self) -> None:
        if not len(self._hosts):
            raise SimulatorError("this SimPool is closed")

    def _place(self, scenes: Sequence[Scene], members: int) -> list[int]:
        """A host for each scene: the one with the fewest living members, rather one that has its model compiled."""
        self._refuse_closed()
        load = self._members.load(len(self._hosts))
        hosts = []
        for scene in scenes:
            host = min(range(len(load)), key=lambda h: (load[h], self._key(scene) not in self._models[h], h))
            load[host] += members
            self._models[host].add(self._key(scene))
            hosts.append(host)
        return hosts

    def start(self, scenes: Sequence[Scene], members: int = 1) -> list[list[Member]]:
        """Builds scenes and puts members at their initial state.

        A scene is built and rendered once; all its members live on one host.

        Args:
            scenes: N scenes.
            members: G, members per scene.

        Returns:
            N lists of G members.

        Raises:
            UnknownNameError: No such task.
            SimulatorError: A scene cannot be built, or its host is lost again and again.
        """
        if members < 1:
            raise SimulatorError(f"start was asked for {members} members per scene; at least one is needed")
        for scene in scenes:
            self._check_task(scene.task)
        groups = [[new_member(scene) for _ in range(members)] for scene in scenes]
        waiting = list(range(len(scenes)))
        for _ in range(ATTEMPTS):
            hosts = dict(zip(waiting, self._place([scenes[i] for i in waiting], members), strict=True))
            shares = {host: [i for i in waiting if hosts[i] == host] for host in sorted(set(hosts.values()))}
            wanted = {
                host: requests.start(self.info, [scenes[i] for i in share], [[m.id for m in groups[i]] for i in share])
                for host, share in shares.items()
            }
            replies = self._ask(wanted, again=False)
            for host, reply in replies.items():
                self._models[host] = set(reply.body["compiled"])
                images, state = reply.images, reply.arrays["state"]
                for row, i in enumerate(shares[host]):
                    told = reply.body["instructions"][row] or instruction(scenes[i].task)
                    for member in groups[i]:
                        self._members.add(
                            Record(member=member, host=host, instruction=told, images=images[row], state=state[row])
                        )
            waiting = [i for i in waiting if hosts[i] not in replies]
            if not waiting:
                return groups
        scene = scenes[waiting[0]]
        raise SimulatorError(
            f"scene {scene.seed} of {scene.task} cannot be built: {ATTEMPTS} hosts were lost in a row meanwhile"
        )

    def _check_task(self, task: str) -> None:
        if simulator_of(task) != self.spec.simulator:
            raise SimulatorError(
                f"task {task!r} belongs to {simulator_of(task)}, this SimPool runs {self.spec.simulator}"
            )
        if name_of(task) not in self.info.tasks:
            raise UnknownNameError(f"{self.spec.simulator} {self.info.version} task", name_of(task), self.info.tasks)

    def observe(self, members: Sequence[Member]) -> Observations:
        """The last observation of each member; rendered now only where none is held.

        A lost member's row holds what was seen last, or zeros.
        """
        records = self._members.look_up(members)
        missing = [record for record in records if record.images is None and not record.lost]
        rows = by_host(missing)
        wanted = {
            host: Request(
                "look",
                {
                    "members": [missing[row].member.id for row in share],
                    "cameras": self.info.cameras,
                    "size": self.info.image_size,
                },
                image_shape=image_shape(self.info, len(share)),
            )
            for host, share in rows.items()
        }
        for host, reply in self._ask(wanted).items():
            images, state = reply.images, reply.arrays["state"]
            for i, row in enumerate(rows[host]):
                missing[row].images, missing[row].state = images[i], state[i]
        images = np.zeros(image_shape(self.info, len(records)), np.uint8)
        state = np.zeros((len(records), self.info.state_dim), np.float32)
        for row, record in enumerate(records):
            if record.images is not None and record.state is not None:
                images[row], state[row] = record.images, record.state
        return self._observations(records, images, state)

    def _observations(self, records: Sequence[Record], images: np.ndarray, state: np.ndarray) -> Observations:
        instructions = tuple(record.instruction for record in records)
        return Observations(images=images, state=state, instructions=instructions)

    def step_chunk(self, members: Sequence[Member], actions: np.ndarray) -> ChunkOutcome:
        """Executes a chunk of actions on each member, all hosts at once.

        A member stops at its first success or at the horizon; members that go on are rendered once, at the end.

        Args:
            members: B members, none of them ended.
            actions: ``[B, C, A]`` in env units.

        Raises:
            SimulatorError: A member is unknown, has ended or appears twice, or the actions have a wrong shape or are
                not finite.
        """
        records = self._members.look_up(members)
        actions = checked_actions(records, actions, self.info.action_dim)
        self._balance(records)
        rows = by_host(records)
        wanted = {
            host: requests.step(self.info, [records[row].member.id for row in share], actions[share])
            for host, share in rows.items()
        }
        count = len(records)
        executed = np.zeros(count, np.int64)
        success, truncated = np.zeros(count, np.bool_), np.zeros(count, np.bool_)
        nearest = np.full(count, np.inf)
        images = np.zeros(image_shape(self.info, count), np.uint8)
        state = np.zeros((count, self.info.state_dim), np.float32)
        for host, reply in self._ask(wanted).items():
            rendered = reply.images
            for i, row in enumerate(rows[host]):
                record, reason = records[row], reply.body["lost"][i]
                if reason:
                    self._members.lose(record, reason)
                    continue
                executed[row], success[row] = reply.arrays["executed"][i], reply.arrays["success"][i]
                truncated[row], nearest[row] = reply.arrays["truncated"][i], reply.arrays["nearest"][i]
                record.history = (*record.history, actions[row])
                record.ended = bool(success[row] or truncated[row])
                record.images = record.state = None
                if not record.ended:
                    images[row], state[row] = rendered[i], reply.arrays["state"][i]
                    record.images, record.state = rendered[i], reply.arrays["state"][i]
        for record in records:
            record.ended |= bool(record.lost)
        return ChunkOutcome(
            executed=executed,
            success=success,
            truncated=truncated,
            invalid=np.array([bool(record.lost) for record in records], np.bool_),
            observations=self._observations(records, images, state),
            nearest=nearest,
        )

    def _balance(self, records: Sequence[Record]) -> None:
        """Moves members from the host with the most to do to the one with the least, while they differ by two or more.

        A member moves only to a host that has its model compiled. Snapshots are exact, so moving changes time alone.
        """
        shares: list[list[Record]] = [[] for _ in range(len(self._hosts))]
        for record in records:
            if not record.lost:
                shares[record.host].append(record)
        while True:
            busy = max(range(len(shares)), key=lambda h: len(shares[h]))
            idle = min(range(len(shares)), key=lambda h: len(shares[h]))
            if len(shares[busy]) - len(shares[idle]) < 2:
                return
            record = shares[busy].pop()
            if self._key(record.member.scene) not in self._models[idle] or not self._move(record, idle):
                return
            shares[idle].append(record)

    def _move(self, record: Record, host: int) -> bool:
        """Moves a member to another host; False when a host was lost meanwhile."""
        member, source = record.member, record.host
        taken = self._ask({source: Request("snapshot", {"member": member.id})})
        if not taken:
            return False
        snapshot = taken[source].arrays["snapshot"]
        if not self._ask({host: requests.restore(self.info, member.scene, member.id, snapshot, look=False)}):
            return False
        record.host = host
        return bool(self._ask({source: Request("release", {"members": [member.id]})}, again=False))

    def fork(self, members: Sequence[Member], copies: Sequence[int]) -> list[list[Member]]:
        """New members in the state of existing ones, each on its origin's host; nothing is simulated.

        Copies of a member that is lost, or is lost meanwhile, are lost as well: their first ``step_chunk`` reports them
        as invalid.

        Args:
            members: B members.
            copies: How many copies of each.

        Returns:
            B lists of new members.

        Raises:
            SimulatorError: A member is unknown.
        """
        records = self._members.look_up(members)
        new = [[new_member(member.scene) for _ in range(count)] for member, count in zip(members, copies, strict=True)]
        wanted = {
            host: Request("fork", {"forks": [[members[row].id, [copy.id for copy in new[row]]] for row in share]})
            for host, share in by_host(records).items()
        }
        self._ask(wanted)
        for record, group in zip(records, new, strict=True):
            for copy in group:
                self._members.add(replace(record, member=copy))
            self.counters.invalid_members += len(group) * bool(record.lost)
        return new

    def _refuse_lost(self, record: Record) -> None:
        if record.lost:
            raise SimulatorError(f"member {record.member.id} of {record.member.scene.task} is lost: {record.lost}")

    def snapshot(self, member: Member) -> bytes:
        """A member's full state, for any host and any process of the same simulator version.

        Raises:
            SimulatorError: The member is unknown or lost.
        """
        (record,) = self._members.look_up([member])
        self._refuse_lost(record)
        replies = self._ask({record.host: Request("snapshot", {"member": member.id})})
        self._refuse_lost(record)
        return replies[record.host].arrays["snapshot"].tobytes()

    def restore(self, scene: Scene, snapshot: bytes, *, host: int | None = None) -> Member:
        """A new member in the state of a snapshot of the same scene.

        Args:
            scene: The scene that the snapshot was taken in.
            snapshot: From ``snapshot``, of this or another pool.
            host: Index of the host to live on; None: the one with the least to do.

        Raises:
            SimulatorError: The snapshot is damaged or belongs to another scene or simulator version.
        """
        self._check_task(scene.task)
        member = new_member(scene)
        origin = np.frombuffer(snapshot, np.uint8)
        request = requests.restore(self.info, scene, member.id, origin)
        for _ in range(ATTEMPTS):
            place = self._place([scene], 1)[0] if host is None else host
            replies = self._ask({place: request}, again=False)
            if replies:
                reply = replies[place]
                self._models[place] = set(reply.body["compiled"])
                self._members.add(
                    Record(
                        member=member,
                        host=place,
                        instruction=reply.body["instruction"] or instruction(scene.task),
                        images=reply.images[0],
                        state=reply.arrays["state"][0],
                        origin=origin,
                        ended=reply.body["ended"],
                    )
                )
                return member
        raise SimulatorError(
            f"a snapshot of {scene.task} cannot be restored: {ATTEMPTS} simulator hosts were lost in a row"
        )

    def frames(self, members: Sequence[Member], camera: str, size: int) -> np.ndarray:
        """Renders one camera of each member as it is now, ended ones as well. Rows of lost members hold zeros.

        Returns:
            uint8 ``[B, size, size, 3]``.

        Raises:
            UnknownNameError: No such camera.
            SimulatorError: A member is unknown or the size is out of range.
        """
        if camera not in self.info.all_cameras:
            raise UnknownNameError(f"{self.spec.simulator} camera", camera, self.info.all_cameras)
        if not 8 <= size <= MAX_IMAGE_SIZE:
            raise SimulatorError(
                f"frames were asked for with {size} pixels; the size must be between 8 and {MAX_IMAGE_SIZE}"
            )
        records = self._members.look_up(members)
        rows = by_host(records)
        wanted = {
            host: Request(
                "look",
                {"members": [records[row].member.id for row in share], "cameras": [camera], "size": size},
                image_shape=(len(share), 1, size, size, 3),
            )
            for host, share in rows.items()
        }
        frames = np.zeros((len(records), size, size, 3), np.uint8)
        for host, reply in self._ask(wanted).items():
            frames[rows[host]] = reply.images[:, 0]
        return frames

    def expert_actions(self, members: Sequence[Member]) -> np.ndarray:
        """The scripted expert's next action at each member's present state. Rows of lost members hold zeros.

        Returns:
            float32 ``[B, A]``, within the action bounds.
        """
        records = self._members.look_up(members)
        rows = by_host(records)
        wanted = {
            host: Request("expert", {"members": [records[row].member.id for row in share]})
            for host, share in rows.items()
        }
        actions = np.zeros((len(records), self.info.action_dim), np.float32)
        for host, reply in self._ask(wanted).items():
            actions[rows[host]] = reply.arrays["actions"]
        return actions

    def describe(self, members: Sequence[Member]) -> list[dict[str, Any]]:
        """What the scenes of members are made of, as JSON; empty for a lost member and where the seed says all.

        Raises:
            SimulatorError: A member is unknown.
        """
        records = self._members.look_up(members)
        rows = by_host(records)
        wanted = {
            host: Request("describe", {"members": [records[row].member.id for row in share]})
            for host, share in rows.items()
        }
        manifests: list[dict[str, Any]] = [{} for _ in records]
        for host, reply in self._ask(wanted).items():
            for row, manifest in zip(rows[host], reply.body["manifests"], strict=True):
                manifests[row] = manifest
        return manifests

    def release(self, members: Sequence[Member]) -> None:
        """Forgets members; those already forgotten are passed over."""
        records = self._members.pop(members)
        shares = by_host(records).items()
        wanted = {host: Request("release", {"members": [records[r].member.id for r in rows]}) for host, rows in shares}
        self._ask(wanted, again=False)
