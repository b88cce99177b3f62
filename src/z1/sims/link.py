"""The main process's end of the conversation with hosts: starting one, asking many at once, noticing a lost one."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import z1
from z1.errors import ProtocolError, SimulatorError, Z1Error
from z1.sims import protocol
from z1.sims.protocol import ERROR, HEARTBEAT, HELLO, Message, MessageReader, encode_message, error_of

_SILENCES_PER_REQUEST = 20
"""A request may take so many times the longest silence, if the host keeps sending signs of life."""

_HEARTBEAT_S = 0.25
"""Seconds between a busy host's signs of life."""

_NOT_INHERITED = frozenset({"PYTHONHOME", "PYOPENGL_PLATFORM"})
"""Settings of this interpreter, or of a GL back end loaded in this process, that must not reach another one."""

_READ_BYTES = 1 << 18
_LOG_LINES = 15
_STACK_LINES = 6
_CLOSE_S = 5.0

_BOOTSTRAP = """
import sys
if sys.version_info < (3, 10):
    sys.exit("simulator hosts need Python 3.10 or newer, %s is %s" % (sys.executable, sys.version.split()[0]))
sys.path[:] = [entry for entry in sys.path if entry]
try:
    import numpy
except ImportError as problem:
    sys.exit("the interpreter %s cannot import numpy (%s); install it there: %s -m pip install numpy"
             % (sys.executable, problem, sys.executable))
import importlib.util
folder = sys.argv[1]
spec = importlib.util.spec_from_file_location("z1", folder + "/__init__.py", submodule_search_locations=[folder])
module = importlib.util.module_from_spec(spec)
sys.modules["z1"] = module
spec.loader.exec_module(module)
from z1.sims.host import main
main(sys.argv[2])
"""
"""Makes the package z1, and nothing beside it, importable under another interpreter."""


@dataclass(frozen=True, slots=True)
class HostLost:
    """A host that does not answer any more.

    Attributes:
        reason: What happened, with the end of the host's log.
    """

    reason: str


class SharedImages:
    """A block of memory that a host and the main process share for images; it grows when needed."""

    def __init__(self) -> None:
        self._bytes = np.zeros(0, np.uint8)
        self.path = ""

    @property
    def size(self) -> int:
        """Bytes."""
        return self._bytes.size

    def grow(self, size: int) -> None:
        """Makes a new block; its file exists until ``unlink``."""
        size = max(size, 2 * self.size, mmap.PAGESIZE)
        problem: OSError | None = None
        for folder in ("/dev/shm", tempfile.gettempdir()):
            if not os.path.isdir(folder):
                continue
            try:
                handle, self.path = tempfile.mkstemp(prefix="z1-images-", dir=folder)
            except OSError as error:
                problem = error
                continue
            try:
                os.posix_fallocate(handle, 0, size)  # a full disk shows here, not as a fatal signal at the first write
                self._bytes = np.frombuffer(mmap.mmap(handle, size), np.uint8)
                return
            except OSError as error:
                problem = error
                self.unlink()
            finally:
                os.close(handle)
        raise SimulatorError(
            f"cannot reserve {size} bytes for images in /dev/shm or {tempfile.gettempdir()}: {problem}"
        )

    def unlink(self) -> None:
        """Removes the file; the memory stays until both sides drop it."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)

    def rows(self, shape: tuple[int, ...]) -> np.ndarray:
        """uint8 of a shape, from the start of the block."""
        return self._bytes[: int(np.prod(shape))].reshape(shape)


def find_interpreter(python: str) -> str:
    """The path of the interpreter that hosts run under.

    Raises:
        SimulatorError: There is no such program.
    """
    if not python:
        return sys.executable
    found = shutil.which(os.path.expanduser(python))
    if found is None:
        raise SimulatorError(f"the interpreter of the simulator hosts, {python!r}, does not exist or cannot be run")
    return os.path.abspath(found)


def end_of_log(text: str) -> str:
    """The last lines of what a host printed; of a crash, what was printed before it and where it happened.

    Python's fault handler writes the stack of every thread, so that the last lines would not hold the reason.
    """
    lines = [line for line in text.strip().splitlines() if not line.startswith("Extension modules:")]
    fatal = next((n for n, line in enumerate(lines) if line.startswith("Fatal Python error:")), None)
    if fatal is None:
        return "\n".join(lines[-_LOG_LINES:])
    current = next((n for n, line in enumerate(lines) if line.startswith("Current thread")), fatal + 1)
    stack = lines[current : current + _STACK_LINES]
    return "\n".join([*lines[max(0, fatal + 1 - _LOG_LINES + _STACK_LINES) : fatal + 1], *stack])


class HostLink:
    """One host process.

    Attributes:
        images: Memory shared with it.
        pid: Process id.
        timeout_s: Longest silence of the host while it has something to do.
    """

    def __init__(self, python: str, gl: str, timeout_s: float) -> None:
        """Starts the process; the first message to expect from it is its hello.

        Args:
            python: Path of the interpreter.
            gl: Value of ``MUJOCO_GL``.
            timeout_s: Longest silence of the host while it has something to do.
        """
        self.images = SharedImages()
        self.timeout_s = timeout_s
        self._reader = MessageReader()
        self._inbox: deque[Message] = deque()
        self._outgoing = memoryview(b"")
        self._number = 0
        self._log = tempfile.NamedTemporaryFile(prefix="z1-host-", suffix=".log")  # noqa: SIM115 (lives as long as the host)
        environment = {key: value for key, value in os.environ.items() if key not in _NOT_INHERITED}
        environment |= {"MUJOCO_GL": gl, "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1", "LP_NUM_THREADS": "1"}
        environment["PYTHONHASHSEED"] = "0"  # a simulator that goes through a set does so in the same order everywhere
        environment |= {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR")}
        options = json.dumps({"heartbeat_s": _HEARTBEAT_S})
        folder = str(Path(z1.__file__).parent)
        try:
            self._process = subprocess.Popen(
                [python, "-c", _BOOTSTRAP, folder, options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=environment,
                bufsize=0,
            )
        except OSError as problem:
            self._log.close()
            raise SimulatorError(f"cannot start a simulator host with {python}: {problem}") from problem
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        os.set_blocking(self._stdin.fileno(), False)
        os.set_blocking(self._stdout.fileno(), False)
        self.pid = self._process.pid

    def post(self, name: str, body: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Queues a request; ``exchange`` sends it."""
        self._number += 1
        self._outgoing = memoryview(encode_message(Message(name=name, number=self._number, body=body, arrays=arrays)))

    def _write(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._outgoing = self._outgoing[os.write(self._stdin.fileno(), self._outgoing) :]

    def _read(self) -> bool:
        """Takes what has arrived; returns whether the host is still there."""
        try:
            data = os.read(self._stdout.fileno(), _READ_BYTES)
        except BlockingIOError:
            return True
        if not data:
            return False
        self._inbox.extend(self._reader.feed(data))
        return True

    def _reply(self) -> Message | None:
        while self._inbox:
            message = self._inbox.popleft()
            if message.name == HEARTBEAT:
                continue
            if message.name != HELLO and message.number != self._number:
                raise ProtocolError(f"the answer to request {message.number} came, {self._number} was expected")
            return message
        return None

    def log_tail(self) -> str:
        """The last lines of what the host printed."""
        self._log.flush()
        return end_of_log(Path(self._log.name).read_text(encoding="utf-8", errors="replace"))

    def lost(self, what: str) -> HostLost:
        """Kills the process and tells why."""
        self.kill()
        tail = self.log_tail()
        return HostLost(f"simulator host {self.pid} {what}" + (f"; the end of its log:\n{tail}" if tail else ""))

    def kill(self) -> None:
        """Ends the process at once."""
        self._process.kill()
        self._process.wait()
        self._stdin.close()
        self._stdout.close()

    def ask_to_end(self) -> None:
        """Lets the process end by itself."""
        if self._process.poll() is None and not self._stdin.closed:
            self.post("close", {}, {})
            with contextlib.suppress(OSError):
                self._write()
            self._stdin.close()

    def close(self) -> None:
        """Ends the process, gently at first, and removes its log."""
        self.ask_to_end()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_CLOSE_S)
        self.kill()
        self._log.close()

    def _ended(self) -> str:
        try:
            code = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return "closed its pipe"
        return f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"


def exchange(links: Sequence[HostLink]) -> list[Message | Z1Error | HostLost]:
    """Sends what each host's ``post`` queued and waits until every one of them has answered or is lost.

    Returns:
        Per host its reply, the error that it reported, or why it is lost (it has been killed then).
    """
    answers: dict[int, Message | Z1Error | HostLost] = {}
    began = time.monotonic()
    heard = [began] * len(links)
    with selectors.DefaultSelector() as selector:
        for i, link in enumerate(links):
            selector.register(link._stdout, selectors.EVENT_READ, i)
            if link._outgoing:
                selector.register(link._stdin, selectors.EVENT_WRITE, i)

        def settle(i: int, answer: Message | Z1Error | HostLost) -> None:
            answers[i] = answer
            for stream in (links[i]._stdin, links[i]._stdout):
                with contextlib.suppress(KeyError, ValueError):
                    selector.unregister(stream)

        while len(answers) < len(links):
            wait_s = min(
                links[i].timeout_s - (time.monotonic() - heard[i]) for i in range(len(links)) if i not in answers
            )
            ready = selector.select(max(0.01, min(wait_s, 1.0)))
            for key, _ in ready:
                i = key.data
                link = links[i]
                if i in answers:
                    continue
                heard[i] = time.monotonic()
                answer = _progress(link, writing=key.fileobj is link._stdin)
                if answer is not None:
                    settle(i, answer)
                elif key.fileobj is link._stdin and not link._outgoing:
                    selector.unregister(link._stdin)
            now = time.monotonic()
            for i, link in enumerate(links):
                if i in answers:
                    continue
                if now - heard[i] > link.timeout_s:
                    settle(i, link.lost(f"gave no sign of life for {link.timeout_s:g} s"))
                elif now - began > link.timeout_s * _SILENCES_PER_REQUEST:
                    settle(i, link.lost(f"has not answered for {now - began:.0f} s"))
    return [answers[i] for i in range(len(links))]


def _progress(link: HostLink, *, writing: bool) -> Message | Z1Error | HostLost | None:
    """Moves one host's conversation on; returns its answer if that is complete."""
    try:
        if writing:
            link._write()
            return None
        alive = link._read()
        message = link._reply()
    except ProtocolError as problem:
        return link.lost(f"sent what cannot be read ({problem})")
    except OSError:
        return link.lost(link._ended())
    if message is not None:
        return error_of(message.body) if message.name == ERROR else message
    return None if alive else link.lost(link._ended())


def check_hello(hello: Message) -> None:
    """Refuses a host that speaks another version of the protocol.

    Raises:
        ProtocolError: The versions differ.
    """
    found = hello.body.get("protocol")
    if hello.name != HELLO or found != protocol.PROTOCOL_VERSION:
        raise ProtocolError(
            f"the simulator host speaks protocol version {found}, this process version {protocol.PROTOCOL_VERSION}; "
            "both must run the same z1"
        )
