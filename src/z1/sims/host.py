"""The process that runs a simulator under its own interpreter and answers the main process.

It reads requests from its standard input and writes replies to what was its standard output; anything that libraries
print goes to standard error, a log file. While a request is computed, a thread sends signs of life, so that a slow host
is told from a hung one. A host whose parent died ends itself.

Level 1: standard library, numpy and a simulator only, Python 3.10 syntax.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from z1.errors import SimulatorError
from z1.sims.adapter import Adapter, AdapterSettings, Diverged, TaskSim, make_adapter, model_key
from z1.sims.protocol import (
    ERROR,
    HEARTBEAT,
    HELLO,
    PROTOCOL_VERSION,
    REPLY,
    Message,
    MessageReader,
    encode_message,
    error_body,
)
from z1.sims.recording import Recording, Replay
from z1.sims.snapshot import SimState, Snapshot, decode_snapshot, encode_snapshot

_READ_BYTES = 1 << 16


@dataclass(slots=True)
class _Member:
    """An episode on this host.

    Attributes:
        key: Names the compiled model it runs in.
        task: Task name without prefix.
        seed: Scene seed.
        state: Its state, outdated while ``dirty``.
        steps: Env steps executed.
        ended: No further env steps.
        dirty: Its newest state is the one loaded in its model's simulation.
    """

    key: str
    task: str
    seed: int
    state: SimState
    steps: int = 0
    ended: bool = False
    dirty: bool = False


class Counters:
    """What a host did since it was last asked, for the main process to add up."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def add(self, name: str, amount: float = 1) -> None:
        """Adds to a counter."""
        self.values[name] = self.values.get(name, 0) + amount

    def timed(self, name: str, began: float) -> None:
        """Adds the seconds since ``began`` to a counter."""
        self.add(name, time.perf_counter() - began)

    def take(self) -> dict[str, float]:
        """The counts; starts again from zero."""
        values, self.values = self.values, {}
        return values


class Runner:
    """Members of many scenes in one simulation per compiled model, swapped in and out by state."""

    def __init__(self, adapter: Adapter) -> None:
        self.counters = Counters()
        self._adapter = adapter
        self._members: dict[int, _Member] = {}
        self._loaded: dict[str, _Member] = {}
        self._compiled: list[str] = []
        self._images = np.zeros(0, np.uint8)

    def map_images(self, path: str, size: int) -> None:
        """Maps the shared memory into which images are written."""
        with open(path, "r+b") as file:
            self._images = np.frombuffer(mmap.mmap(file.fileno(), size), np.uint8)

    def _image_rows(self, rows: int, cameras: int, size: int) -> np.ndarray:
        shape = (rows, cameras, size, size, 3)
        count = int(np.prod(shape))
        if count > self._images.size:
            raise SimulatorError(f"{count} bytes of images, but {self._images.size} bytes of shared memory")
        return self._images[:count].reshape(shape)

    def _member(self, number: int) -> _Member:
        member = self._members.get(number)
        if member is None:
            raise SimulatorError(f"this host has no member {number}")
        return member

    def _store(self, member: _Member) -> None:
        """Brings a member's kept state up to date."""
        if member.dirty:
            began = time.perf_counter()
            member.state = self._adapter.task_sim(member.key).capture()
            member.dirty = False
            self.counters.timed("snapshot_s", began)
            self.counters.add("snapshots")

    def _vacate(self, key: str) -> TaskSim:
        """The simulation of a model, whose present member, if any, is safe elsewhere."""
        present = self._loaded.pop(key, None)
        if present is not None:
            self._store(present)
        return self._adapter.task_sim(key)

    def _compile(self, task: str, seed: int) -> TaskSim:
        """The vacant simulation that new members will live in; models used long ago make room for it."""
        key = model_key(self._adapter.info, task, seed)
        if key in self._compiled:
            self._compiled.remove(key)
        self._compiled.append(key)
        surplus = max(0, len(self._compiled) - self._adapter.max_models)
        living = {member.key for member in self._members.values()} | {key}
        for idle in [old for old in self._compiled if old not in living][:surplus]:
            self._compiled.remove(idle)
            self._adapter.drop(idle)
        try:
            return self._vacate(key)
        except SimulatorError:
            self._compiled.remove(key)
            raise

    def _load(self, member: _Member) -> TaskSim:
        """The simulation of the member's model with the member in it."""
        if self._loaded.get(member.key) is member:
            return self._adapter.task_sim(member.key)
        task_sim = self._vacate(member.key)
        began = time.perf_counter()
        task_sim.load(member.state)
        self.counters.timed("snapshot_s", began)
        self.counters.add("restores")
        self._loaded[member.key] = member
        return task_sim

    def _render(self, task_sim: TaskSim, cameras: Sequence[str], images: np.ndarray) -> None:
        began = time.perf_counter()
        for camera, image in zip(cameras, images, strict=True):
            task_sim.render(camera, image)
        self.counters.timed("render_s", began)
        self.counters.add("renders", len(cameras))

    @property
    def compiled(self) -> tuple[str, ...]:
        """Keys of the compiled models."""
        return tuple(self._compiled)

    def start(self, scenes: Sequence[tuple[str, int, Sequence[int]]]) -> tuple[dict[str, np.ndarray], list[str]]:
        """Builds scenes and renders each once.

        Args:
            scenes: Task, seed and the numbers of the new members of each.

        Returns:
            Array ``state``; the instruction of each scene.
        """
        info = self._adapter.info
        images = self._image_rows(len(scenes), len(info.cameras), info.image_size)
        state = np.zeros((len(scenes), info.state_dim), np.float32)
        instructions = []
        for row, (task, seed, numbers) in enumerate(scenes):
            began = time.perf_counter()
            task_sim = self._compile(task, seed)
            task_sim.reset(seed)
            initial = task_sim.capture()
            self.counters.timed("build_s", began)
            self.counters.add("scene_builds")
            key = model_key(info, task, seed)
            for number in numbers:
                self._members[number] = _Member(key=key, task=task, seed=seed, state=initial)
            # Put back like every later member, so that derived data and pixels are the same as theirs.
            self._load(self._members[numbers[0]])
            state[row] = task_sim.proprioception()
            self._render(task_sim, info.cameras, images[row])
            instructions.append(task_sim.instruction)
        return {"state": state}, instructions

    def step(self, numbers: Sequence[int], actions: np.ndarray) -> tuple[dict[str, np.ndarray], list[str]]:
        """Executes a chunk on members, stopping each at its first success or at the horizon.

        Args:
            numbers: B members.
            actions: float32 ``[B, C, A]``.

        Returns:
            Arrays ``executed``, ``success``, ``truncated``, ``nearest``, ``state``; per member why it was
            lost, or an empty text.
        """
        info, count = self._adapter.info, len(numbers)
        images = self._image_rows(count, len(info.cameras), info.image_size)
        state = np.zeros((count, info.state_dim), np.float32)
        executed = np.zeros(count, np.int64)
        success, truncated = np.zeros(count, np.bool_), np.zeros(count, np.bool_)
        nearest = np.full(count, np.inf)
        lost = [""] * count
        for row, number in enumerate(numbers):
            member = self._member(number)
            try:
                executed[row], success[row], nearest[row] = self._step_member(member, actions[row])
            except Diverged as problem:
                lost[row] = f"the physics diverged: {problem}"
                self._forget(number)
                continue
            truncated[row] = not success[row] and member.steps >= self._adapter.horizon(member.task)
            member.ended = bool(success[row] or truncated[row])
            if not member.ended:
                task_sim = self._adapter.task_sim(member.key)
                state[row] = task_sim.proprioception()
                self._render(task_sim, info.cameras, images[row])
        arrays = {"executed": executed, "success": success, "truncated": truncated, "nearest": nearest, "state": state}
        return arrays, lost

    def _step_member(self, member: _Member, actions: np.ndarray) -> tuple[int, bool, float]:
        task_sim = self._load(member)
        member.dirty = True
        executed, success, nearest, began = 0, False, np.inf, time.perf_counter()
        try:
            for action in actions[: max(0, self._adapter.horizon(member.task) - member.steps)]:
                executed += 1
                success = task_sim.step(action)
                nearest = min(nearest, task_sim.object_distance())
                if success:
                    break
        finally:
            member.steps += executed
            self.counters.timed("sim_s", began)
            self.counters.add("env_steps", executed)
        return executed, success, nearest

    def _forget(self, number: int) -> None:
        member = self._members.pop(number, None)
        if member is not None and self._loaded.get(member.key) is member:
            del self._loaded[member.key]

    def look(self, numbers: Sequence[int], cameras: Sequence[str], size: int) -> dict[str, np.ndarray]:
        """Renders cameras of members as they are now."""
        images = self._image_rows(len(numbers), len(cameras), size)
        state = np.zeros((len(numbers), self._adapter.info.state_dim), np.float32)
        for row, number in enumerate(numbers):
            task_sim = self._load(self._member(number))
            state[row] = task_sim.proprioception()
            self._render(task_sim, cameras, images[row])
        return {"state": state}

    def fork(self, number: int, copies: Sequence[int]) -> None:
        """Gives new members the state of an existing one."""
        member = self._member(number)
        self._store(member)
        for copy in copies:
            self._members[copy] = _Member(
                key=member.key,
                task=member.task,
                seed=member.seed,
                state=member.state,
                steps=member.steps,
                ended=member.ended,
            )

    def snapshot(self, number: int) -> bytes:
        """A member as bytes."""
        member, info = self._member(number), self._adapter.info
        self._store(member)
        return encode_snapshot(
            Snapshot(
                simulator=info.simulator,
                version=info.version,
                seed=member.seed,
                steps=member.steps,
                ended=member.ended,
                state=member.state,
            )
        )

    def restore(self, number: int, task: str, seed: int, data: bytes) -> None:
        """Makes a member from bytes.

        Raises:
            SimulatorError: The bytes are damaged or belong to another scene or version.
        """
        snapshot, info = decode_snapshot(data), self._adapter.info
        if (snapshot.simulator, snapshot.version) != (info.simulator, info.version):
            raise SimulatorError(
                f"the snapshot was taken with {snapshot.simulator} {snapshot.version}, this host runs {info.simulator} "
                f"{info.version}; snapshots are exact only within one version"
            )
        if (snapshot.state.task, snapshot.seed) != (task, seed):
            raise SimulatorError(
                f"the snapshot is of task {snapshot.state.task!r}, seed {snapshot.seed}; "
                f"the scene is task {task!r}, seed {seed}"
            )
        member = _Member(
            key=model_key(info, task, seed),
            task=task,
            seed=seed,
            state=snapshot.state,
            steps=snapshot.steps,
            ended=snapshot.ended,
        )
        self._compile(task, seed)
        self._load(member)
        self._members[number] = member

    def ended(self, number: int) -> bool:
        """Whether a member's episode has ended."""
        return self._member(number).ended

    def instruction(self, number: int) -> str:
        """What the policy is told in a member's scene."""
        return self._adapter.task_sim(self._member(number).key).instruction

    def manifests(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """What the scenes of members are made of."""
        return [self._adapter.task_sim(self._member(number).key).manifest() for number in numbers]

    def expert(self, numbers: Sequence[int]) -> dict[str, np.ndarray]:
        """The scripted experts' next actions."""
        actions = np.zeros((len(numbers), self._adapter.info.action_dim), np.float32)
        for row, number in enumerate(numbers):
            actions[row] = self._load(self._member(number)).expert_action()
        return {"actions": actions}

    def replay(self, recording: Recording, frames: Sequence[int]) -> Replay:
        """What happens at some frames of a recorded demonstration."""
        return self._adapter.replay(recording, frames)

    def release(self, numbers: Sequence[int]) -> None:
        """Forgets members."""
        for number in numbers:
            self._forget(number)


class Host:
    """The conversation with the main process."""

    def __init__(self, requests: int, replies: int, heartbeat_s: float) -> None:
        """Takes the conversation's file descriptors and the seconds between signs of life."""
        self._requests = requests
        self._replies = replies
        self._heartbeat_s = heartbeat_s
        self._write_lock = threading.Lock()
        self._busy_with = 0
        self._parent = os.getppid()
        self._adapter: Adapter | None = None
        self._runner: Runner | None = None

    def _send(self, message: Message) -> None:
        data = memoryview(encode_message(message))
        with self._write_lock:
            while data:
                data = data[os.write(self._replies, data) :]

    def _beat(self) -> None:
        """Sends a sign of life while a request is computed; ends the process when its parent is gone."""
        while True:
            time.sleep(self._heartbeat_s)
            if os.getppid() != self._parent:
                os._exit(1)
            if self._busy_with:
                try:
                    self._send(Message(name=HEARTBEAT, number=self._busy_with))
                except OSError:
                    os._exit(1)

    def serve(self) -> None:
        """Answers requests until the main process closes the pipe or says so."""
        threading.Thread(target=self._beat, daemon=True).start()
        version = ".".join(str(part) for part in sys.version_info[:3])
        self._send(Message(name=HELLO, body={"protocol": PROTOCOL_VERSION, "python": version, "pid": os.getpid()}))
        reader = MessageReader()
        while True:
            data = os.read(self._requests, _READ_BYTES)
            if not data:
                break
            for message in reader.feed(data):
                if message.name == "close":
                    self.close()
                    return
                self._busy_with = message.number
                reply = self._answer(message)
                self._busy_with = 0
                self._send(reply)

    def close(self) -> None:
        """Frees the simulator's contexts."""
        if self._adapter is not None:
            self._adapter.close()

    def _answer(self, message: Message) -> Message:
        began = time.perf_counter()
        try:
            body, arrays = self._perform(message)
        except Exception as problem:
            traceback.print_exc(file=sys.stderr)
            return Message(name=ERROR, number=message.number, body=error_body(problem, traceback.format_exc()))
        if self._runner is not None:
            self._runner.counters.timed("host_busy_s", began)
            body["counters"] = self._runner.counters.take()
        return Message(name=REPLY, number=message.number, body=body, arrays=arrays)

    def _perform(self, message: Message) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        body, arrays = message.body, message.arrays
        if message.name == "open":
            self._adapter = make_adapter(AdapterSettings(**{**body, "cameras": tuple(body["cameras"])}))
            self._runner = Runner(self._adapter)
            info = self._adapter.info
            return {"info": asdict(info), "horizons": {task: self._adapter.horizon(task) for task in info.tasks}}, {}
        runner = self._runner
        assert runner is not None, "the first request is 'open'"
        if message.name == "map":
            runner.map_images(body["path"], body["size"])
            return {}, {}
        if message.name == "start":
            state, instructions = runner.start(body["scenes"])
            return {"compiled": runner.compiled, "instructions": instructions}, state
        if message.name == "step":
            outcome, lost = runner.step(body["members"], arrays["actions"])
            return {"lost": lost}, outcome
        if message.name == "look":
            return {}, runner.look(body["members"], body["cameras"], body["size"])
        if message.name == "fork":
            for number, copies in body["forks"]:
                runner.fork(number, copies)
            return {}, {}
        if message.name == "snapshot":
            return {}, {"snapshot": np.frombuffer(runner.snapshot(body["member"]), np.uint8)}
        if message.name == "restore":
            runner.restore(body["member"], body["task"], body["seed"], arrays["snapshot"].tobytes())
            facts = {"ended": runner.ended(body["member"]), "instruction": runner.instruction(body["member"])}
            facts["compiled"] = runner.compiled
            return facts, runner.look([body["member"]], body["cameras"], body["size"])
        if message.name == "describe":
            return {"manifests": runner.manifests(body["members"])}, {}
        if message.name == "expert":
            return {}, runner.expert(body["members"])
        if message.name == "replay":
            recording = Recording(**body, states=arrays["states"], actions=arrays["actions"])
            replay = runner.replay(recording, arrays["frames"].tolist())
            found = {"state": replay.state, "action": replay.after_action, "nothing": replay.after_nothing}
            return {"solved": replay.solved}, found
        if message.name == "release":
            runner.release(body["members"])
            return {}, {}
        raise SimulatorError(f"unknown request {message.name!r}")


def main(options: str) -> None:
    """Runs a host.

    Args:
        options: JSON: ``heartbeat_s``.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle
    requests, replies = os.dup(0), os.dup(1)
    os.dup2(2, 1)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    Host(requests, replies, json.loads(options)["heartbeat_s"]).serve()
