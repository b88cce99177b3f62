"""The hosts of a pool as one: starting them together, asking all of them at once, replacing those that are lost."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from z1.errors import RenderError, SimulatorError, Z1Error
from z1.sims.link import HostLink, HostLost, check_hello, exchange, find_interpreter
from z1.sims.protocol import Message
from z1.sims.registry import interpreter_of
from z1.sims.spec import SimCounters, SimSpec
from z1.types import SimInfo

logger = logging.getLogger(__name__)

ATTEMPTS = 3
"""How often something is tried that fails because a host is lost."""

_START_TIMEOUT_S = 120.0
"""Longest silence of a host that starts: importing a simulator can keep its signs of life from being sent."""

_NO_RENDERER = (
    "no way to render works on this machine. {reasons}. Install one of them: EGL with `apt-get install "
    "--no-install-recommends libegl1 libgl1`, or OSMesa with `apt-get install --no-install-recommends libosmesa6`. "
    "Without root: fetch the packages of libosmesa6 with `apt-get download`, unpack each with `dpkg -x PACKAGE DIR`, "
    "and set LD_LIBRARY_PATH=DIR/usr/lib/x86_64-linux-gnu and MUJOCO_GL=osmesa"
)
_GL_GIVEN = "MUJOCO_GL={gl} is set in the environment and does not work; unset it to let z1 choose. "


@dataclass(frozen=True, slots=True)
class Request:
    """A request to one host.

    Attributes:
        name: What is asked.
        body: JSON values.
        arrays: Arrays.
        image_shape: Shape of the images that the host will write into shared memory.
    """

    name: str
    body: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    image_shape: tuple[int, ...] = (0,)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a host answered.

    Attributes:
        body: JSON values.
        arrays: Arrays.
        images: uint8 of the request's ``image_shape``.
    """

    body: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]
    images: np.ndarray


class HostGroup:
    """All hosts of a pool, numbered from 0.

    Attributes:
        counters: What the hosts did so far.
        info: What the simulator says about itself.
        horizons: Env steps of an episode, by task name without prefix.
    """

    def __init__(self, spec: SimSpec, hosts: int, timeout_s: float) -> None:
        """Starts the hosts; see ``SimPool``."""
        self.counters = SimCounters()
        self._spec = spec
        self._python = find_interpreter(interpreter_of(spec.simulator, spec.python))
        self._timeout_s = timeout_s
        self._gl = ""
        self._links: list[HostLink] = []
        self.info, self.horizons = self._launch(range(hosts))

    def __len__(self) -> int:
        return len(self._links)

    @property
    def pids(self) -> tuple[int, ...]:
        """Process id of each host."""
        return tuple(link.pid for link in self._links)

    def close(self) -> None:
        """Stops the hosts."""
        for link in self._links:
            link.ask_to_end()
        for link in self._links:
            link.close()
        self._links.clear()

    def ask(self, requests: Mapping[int, Request]) -> tuple[dict[int, Answer], dict[int, str]]:
        """Sends each host its request and waits for all of them.

        Returns:
            The answers, and the hosts that were lost and have been replaced, with the reason.

        Raises:
            Z1Error: A host reported an error, or cannot be replaced.
        """
        grown = [host for host, request in requests.items() if self._grow(host, request)]
        errors, lost = self._exchange(grown)
        for host in grown:
            self._links[host].images.unlink()
        asked = [host for host in requests if host not in lost and not isinstance(errors.get(host), Z1Error)]
        for host in asked:
            self._links[host].post(requests[host].name, requests[host].body, requests[host].arrays)
        replies, lost_now = self._exchange(asked)
        lost |= lost_now
        answers = {}
        for host, reply in replies.items():
            if isinstance(reply, Z1Error):
                continue
            images = self._links[host].images.rows(requests[host].image_shape).copy()
            answers[host] = Answer(reply.body, reply.arrays, images)
            for name, amount in reply.body["counters"].items():
                setattr(self.counters, name, getattr(self.counters, name) + amount)
        for host, reason in lost.items():
            self._replace(host, reason)
        for reply in (*errors.values(), *replies.values()):
            if isinstance(reply, Z1Error):
                raise reply
        return answers, lost

    def _grow(self, host: int, request: Request) -> bool:
        """Makes room for a request's images; returns whether the host must be told."""
        images, wanted = self._links[host].images, int(np.prod(request.image_shape))
        if wanted <= images.size:
            return False
        images.grow(wanted)
        self._links[host].post("map", {"path": images.path, "size": images.size}, {})
        return True

    def _exchange(self, hosts: Sequence[int]) -> tuple[dict[int, Message | Z1Error], dict[int, str]]:
        if not hosts:
            return {}, {}
        began = time.perf_counter()
        answers = dict(zip(hosts, exchange([self._links[host] for host in hosts]), strict=True))
        self.counters.wait_s += time.perf_counter() - began
        replies = {host: answer for host, answer in answers.items() if not isinstance(answer, HostLost)}
        return replies, {host: answer.reason for host, answer in answers.items() if isinstance(answer, HostLost)}

    def _replace(self, host: int, reason: str) -> None:
        logger.warning("%s; it is replaced", reason)
        self.counters.host_restarts += 1
        self._links[host].close()
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._launch([host])
                return
            except RenderError:
                self.close()
                raise
            except SimulatorError as problem:
                if attempt == ATTEMPTS:
                    self.close()
                    raise SimulatorError(f"a simulator host was lost and cannot be replaced: {problem}") from problem

    def _launch(self, hosts: Sequence[int]) -> tuple[SimInfo, dict[str, int]]:
        """Starts hosts, choosing the GL back end if none is chosen yet."""
        given = os.environ.get("MUJOCO_GL", "")
        choices = [self._gl] if self._gl else [given] if given else ["egl", "osmesa"]
        reasons = []
        for gl in choices:
            try:
                opened = self._launch_with(hosts, gl)
            except RenderError as problem:
                reasons.append(f"{gl}: {problem}")
            else:
                self._gl = gl
                return opened
        advice = _NO_RENDERER.format(reasons="; ".join(reasons))
        raise RenderError((_GL_GIVEN.format(gl=given) if given else "") + advice)

    def _launch_with(self, hosts: Sequence[int], gl: str) -> tuple[SimInfo, dict[str, int]]:
        links = [HostLink(self._python, gl, max(self._timeout_s, _START_TIMEOUT_S)) for _ in hosts]
        settings = {
            "simulator": self._spec.simulator,
            "cameras": self._spec.cameras,
            "image_size": self._spec.image_size,
            "horizon": self._spec.horizon,
            "quality": self._spec.quality,
            "perturbation": self._spec.perturbation,
            "perturbation_strength": self._spec.perturbation_strength,
        }
        try:
            for hello in exchange(links):
                check_hello(_started(hello))
            for link in links:
                link.post("open", settings, {})
            replies = [_started(reply) for reply in exchange(links)]
        except BaseException:
            for link in links:
                link.close()
            raise
        for host, link in zip(hosts, links, strict=True):
            link.timeout_s = self._timeout_s
            if host < len(self._links):
                self._links[host] = link
            else:
                self._links.append(link)
        opened = replies[0].body
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in opened["info"].items()
        }
        return SimInfo(**fields), dict(opened["horizons"])


def _started(answer: Message | Z1Error | HostLost) -> Message:
    """The reply of a host that starts.

    Raises:
        Z1Error: The host reported an error or is lost.
    """
    if isinstance(answer, HostLost):
        raise SimulatorError(answer.reason)
    if isinstance(answer, Z1Error):
        raise answer
    return answer
