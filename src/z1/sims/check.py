"""The contract that every simulator adapter keeps, as a function that anyone can run.

``check_sim`` starts hosts, plays a few chunks of random actions in one task and compares. Training relies on what it
promises: same seed, same scene; snapshots are exact everywhere; results do not depend on the number of hosts.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from rich.markup import escape
from rich.table import Table

from z1.errors import SimulatorError
from z1.seeding import Seeds
from z1.sims.pool import Member, SimPool, SimSpec
from z1.sims.snapshot import decode_snapshot, encode_snapshot
from z1.sims.suites import name_of
from z1.types import ChunkOutcome, Scene

_NUDGE_M = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRow:
    """One finding.

    Attributes:
        name: What was checked.
        passed: Whether it holds.
        detail: What was measured, or how it failed.
        seconds: How long the check took.
    """

    name: str
    passed: bool
    detail: str
    seconds: float


class CheckFailed(Exception):
    """A promise does not hold; the message says how."""


@dataclass(frozen=True, slots=True)
class Trajectory:
    """What a member showed while it executed chunks, and its snapshot at the end."""

    outcomes: tuple[ChunkOutcome, ...]
    last: bytes


def check_sim(
    spec: SimSpec,
    task: str,
    *,
    seed: int = 0,
    chunks: int = 3,
    chunk_length: int = 5,
    max_swap_ms: float = 50.0,
    timeout_s: float = 120.0,
) -> list[CheckRow]:
    """Checks an adapter on one task.

    Args:
        spec: The simulator.
        task: Task id.
        seed: Of the scenes and the random actions.
        chunks: Chunks compared after each restore.
        chunk_length: C.
        max_swap_ms: The longest that taking or putting a state may take on average.
        timeout_s: Longest silence of a host.

    Returns:
        A row per check.

    Raises:
        SimulatorError: The hosts cannot be started.
    """
    with SimPool(spec, 2, timeout_s=timeout_s) as pool, SimPool(spec, 1, timeout_s=timeout_s) as other:
        checker = _Checker(pool, other, task, seed, chunks, chunk_length, max_swap_ms)
        checks: list[tuple[str, Callable[[], str]]] = [
            ("handshake is complete", checker.handshake),
            ("same seed, same scene, on every host", checker.same_seed),
            ("other seed, other scene", checker.other_seed),
            ("images have shape, type and content", checker.images),
            ("snapshot is exact on the same host", lambda: checker.exact("same host")),
            ("snapshot is exact on another host", lambda: checker.exact("another host")),
            ("snapshot is exact in a new process", lambda: checker.exact("new process")),
            ("another state gives another trajectory", checker.nudged),
            ("damaged and foreign snapshots are refused", checker.refusals),
            ("one host and two hosts agree", checker.host_counts),
            ("forks share a past, not a future", checker.forks),
            ("the horizon ends the episode", checker.horizon),
            ("a scripted expert acts within bounds", checker.expert),
            ("a member without images can be looked at", checker.frames),
            ("states are taken and put fast enough", checker.cost),
        ]
        return [_run(name, check) for name, check in checks]


def check_table(rows: Sequence[CheckRow], task: str) -> Table:
    """The findings as a table for the terminal."""
    table = Table(title=f"Contract of the simulator, on {task}", title_justify="left")
    for column in ("", "check", "finding", "seconds"):
        table.add_column(column, justify="right" if column == "seconds" else "left", overflow="fold")
    for row in rows:
        mark = "[green]ok[/green]" if row.passed else "[red]FAIL[/red]"
        table.add_row(mark, escape(row.name), escape(row.detail), f"{row.seconds:.2f}")
    return table


def _run(name: str, check: Callable[[], str]) -> CheckRow:
    began = time.perf_counter()
    try:
        detail, passed = check(), True
    except (CheckFailed, SimulatorError) as problem:
        detail, passed = str(problem), False
    return CheckRow(name=name, passed=passed, detail=detail, seconds=time.perf_counter() - began)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise CheckFailed(message)


def compare_outcomes(first: ChunkOutcome, second: ChunkOutcome) -> str:
    """The first field in which two outcomes differ, or an empty text; bit-exact."""
    for name in ("executed", "success", "truncated", "invalid"):
        if not np.array_equal(getattr(first, name), getattr(second, name)):
            return name
    for name in ("state", "images"):
        if not np.array_equal(getattr(first.observations, name), getattr(second.observations, name)):
            return name
    return ""


def compare_trajectories(first: Trajectory, second: Trajectory) -> str:
    """Where two trajectories part, or an empty text; bit-exact."""
    for i, (a, b) in enumerate(zip(first.outcomes, second.outcomes, strict=False)):
        field = compare_outcomes(a, b)
        if field:
            return f"{field} differs in chunk {i}"
    if len(first.outcomes) != len(second.outcomes):
        return f"{len(first.outcomes)} chunks against {len(second.outcomes)}"
    return "" if first.last == second.last else "the simulator's state differs at the end"


def play(pool: SimPool, member: Member, actions: np.ndarray) -> Trajectory:
    """Executes chunks on one member until its episode ends.

    Args:
        pool: Where it lives.
        member: The member.
        actions: ``[T, C, A]``.
    """
    outcomes: list[ChunkOutcome] = []
    for chunk in actions:
        outcomes.append(pool.step_chunk([member], chunk[None]))
        if outcomes[-1].done[0]:
            break
    return Trajectory(tuple(outcomes), pool.snapshot(member))


class _Checker:
    """Two pools, a task and the checks; each returns what it measured or raises ``CheckFailed``."""

    def __init__(
        self, pool: SimPool, other: SimPool, task: str, seed: int, chunks: int, chunk_length: int, max_swap_ms: float
    ) -> None:
        self._pool, self._other = pool, other
        self._task, self._seed = task, seed
        self._chunks, self._chunk_length = chunks, chunk_length
        self._max_swap_ms = max_swap_ms
        self._scene = Scene.of_split(task, "validation", seed)

    def _actions(self, *path: str | int) -> np.ndarray:
        """float32 ``[T, C, A]``, uniform within the action bounds."""
        info = self._pool.info
        shape = (self._chunks, self._chunk_length, info.action_dim)
        rng = Seeds(self._seed).rng("check_sim", *path)
        return rng.uniform(info.action_low, info.action_high, shape).astype(np.float32)

    def _started(self, pool: SimPool) -> Member:
        return pool.start([self._scene])[0][0]

    def _under_way(self) -> tuple[Member, bytes]:
        """A member that has executed a chunk and was never restored, and its snapshot."""
        member = self._started(self._pool)
        return member, play(self._pool, member, self._actions("warm-up")[:1]).last

    def handshake(self) -> str:
        """Every field of ``SimInfo`` says something."""
        info = self._pool.info
        for field in dataclasses.fields(info):
            if field.default is dataclasses.MISSING:
                _require(bool(getattr(info, field.name)), f"{field.name} is empty")
        widths = {len(info.action_names), len(info.action_low), len(info.action_high)}
        _require(len(widths) == 1, f"action names and bounds have different lengths: {sorted(widths)}")
        _require(set(info.cameras) <= set(info.all_cameras), "a camera is not among all cameras")
        _require(info == self._other.info, "two processes describe the simulator differently")
        return f"{info.simulator} {info.version}, {info.renderer}, {len(info.tasks)} tasks"

    def same_seed(self) -> str:
        """Two hosts of one pool and a host of another build the same scene."""
        members = [group[0] for group in self._pool.start([self._scene, self._scene])]
        hosts = {self._pool.host_of(member) for member in members}
        _require(len(hosts) == 2, "two scenes were placed on one of two idle hosts")
        far = self._started(self._other)
        views = [*(self._pool.observe([m]) for m in members), self._other.observe([far])]
        snapshots = {*(self._pool.snapshot(m) for m in members), self._other.snapshot(far)}
        for view in views[1:]:
            _require(np.array_equal(view.images, views[0].images), "the images differ")
            _require(np.array_equal(view.state, views[0].state), "the state differs")
        _require(len(snapshots) == 1, "the simulator's state differs")
        self._pool.release(members)
        self._other.release([far])
        return "3 hosts agree on images, state and snapshot"

    def other_seed(self) -> str:
        """Scenes of different seeds can be told apart."""
        scenes = [Scene.of_split(self._task, "validation", self._seed + i) for i in range(4)]
        members = [group[0] for group in self._pool.start(scenes)]
        distinct = len({self._pool.observe([member]).images.tobytes() for member in members})
        self._pool.release(members)
        _require(distinct > 1, f"{len(scenes)} seeds give the same images")
        return f"{distinct} different images of {len(scenes)} seeds"

    def images(self) -> str:
        """uint8 ``[1, V, size, size, 3]`` with something in it."""
        info = self._pool.info
        member = self._started(self._pool)
        view = self._pool.observe([member])
        self._pool.release([member])
        wanted = (1, len(info.cameras), info.image_size, info.image_size, 3)
        _require(view.images.shape == wanted, f"images have shape {view.images.shape}, expected {wanted}")
        _require(view.images.dtype == np.uint8, f"images have dtype {view.images.dtype}, expected uint8")
        _require(view.state.shape == (1, info.state_dim), f"state has shape {view.state.shape}")
        _require(bool(np.isfinite(view.state).all()), "the state is not finite")
        spreads = view.images[0].reshape(len(info.cameras), -1).std(axis=1)
        for camera, spread in zip(info.cameras, spreads, strict=True):
            _require(spread > 2, f"the image of camera {camera} has a single colour")
        return f"{list(wanted)}, spread {spreads.min():.0f} to {spreads.max():.0f}"

    def exact(self, where: str) -> str:
        """Snapshot, k chunks, restore, the same k chunks: bit-equal."""
        member, snapshot = self._under_way()
        here = self._pool.host_of(member)
        pool, host = {
            "same host": (self._pool, here),
            "another host": (self._pool, 1 - here),
            "new process": (self._other, 0),
        }[where]
        restored = pool.restore(self._scene, snapshot, host=host)
        first, second = self._pool.observe([member]), pool.observe([restored])
        _require(np.array_equal(first.images, second.images), "the images differ right after the restore")
        _require(np.array_equal(first.state, second.state), "the state differs right after the restore")
        actions = self._actions("exact")
        difference = compare_trajectories(play(self._pool, member, actions), play(pool, restored, actions))
        self._pool.release([member])
        pool.release([restored])
        _require(not difference, difference)
        return f"{self._chunks} chunks of {self._chunk_length} env steps are bit-equal"

    def nudged(self) -> str:
        """The comparison can fail: the same snapshot with the physics moved a little gives another trajectory."""
        member, snapshot = self._under_way()
        content = decode_snapshot(snapshot)
        physics = content.state.physics.copy()
        physics[1] += _NUDGE_M  # the first joint position; element 0 is the time
        moved = dataclasses.replace(content, state=dataclasses.replace(content.state, physics=physics))
        restored = self._pool.restore(self._scene, encode_snapshot(moved))
        actions = self._actions("nudged")
        difference = compare_trajectories(play(self._pool, member, actions), play(self._pool, restored, actions))
        self._pool.release([member, restored])
        _require(bool(difference), "a joint moved by a thousandth changes nothing: the comparison sees nothing")
        return difference

    def refusals(self) -> str:
        """A snapshot with one bit changed, and one of another scene, are refused."""
        member, snapshot = self._under_way()
        self._pool.release([member])
        damaged = bytearray(snapshot)
        damaged[len(damaged) // 2] ^= 1
        foreign = Scene.of_split(self._task, "validation", self._seed + 1)
        for name, scene, data in (("damaged", self._scene, bytes(damaged)), ("foreign", foreign, snapshot)):
            try:
                self._pool.restore(scene, data)
            except SimulatorError:
                continue
            raise CheckFailed(f"a {name} snapshot was restored")
        return "both refused"

    def host_counts(self) -> str:
        """The same members and actions on one host and on two give the same outcomes, in the caller's order."""
        scenes = [Scene.of_split(self._task, "validation", self._seed + i) for i in range(3)]
        results = []
        for pool in (self._pool, self._other):
            members = [member for group in pool.start(scenes, 2) for member in group]
            actions = np.stack([self._actions("host_counts", row) for row in range(len(members))])
            results.append(pool.step_chunk(members, actions[:, 0]))
            pool.release(members)
        difference = compare_outcomes(*results)
        _require(not difference, f"{difference} differs")
        return f"{len(scenes)} scenes with 2 members each"

    def forks(self) -> str:
        """Forks given the same actions agree; given others they part, and the origin stays where it was."""
        member, snapshot = self._under_way()
        (twins,) = self._pool.fork([member], [3])
        same, different = self._actions("forks", "same"), self._actions("forks", "different")
        runs = [play(self._pool, twin, actions) for twin, actions in zip(twins, (same, same, different), strict=True)]
        origin = self._pool.snapshot(member)
        self._pool.release([member, *twins])
        difference = compare_trajectories(runs[0], runs[1])
        _require(not difference, f"twins with the same actions part: {difference}")
        _require(bool(compare_trajectories(runs[0], runs[2])), "twins with different actions stay the same")
        _require(origin == snapshot, "the origin moved with its forks")
        return "3 forks"

    def horizon(self) -> str:
        """An episode without success ends at the horizon, inside a chunk if need be."""
        horizon = self._chunk_length + 2
        with SimPool(dataclasses.replace(self._pool.spec, horizon=horizon), 1) as pool:
            member = self._started(pool)
            trajectory = play(pool, member, self._actions("horizon"))
        executed = [int(outcome.executed[0]) for outcome in trajectory.outcomes]
        last = trajectory.outcomes[-1]
        if last.success[0]:
            return f"random actions solved the task after {sum(executed)} env steps"
        _require(executed == [self._chunk_length, 2], f"executed {executed} env steps of a horizon of {horizon}")
        _require(bool(last.truncated[0]), "the episode was not truncated")
        return f"truncated after {sum(executed)} env steps"

    def expert(self) -> str:
        """The expert's action is finite, within bounds, always the same, and moves nothing."""
        info = self._pool.info
        if name_of(self._task) not in info.experts:
            return "no expert for this task"
        member, snapshot = self._under_way()
        actions = [self._pool.expert_actions([member]) for _ in range(2)]
        after = self._pool.snapshot(member)
        self._pool.release([member])
        _require(bool(np.isfinite(actions[0]).all()), "the action is not finite")
        inside = (actions[0] >= np.array(info.action_low)) & (actions[0] <= np.array(info.action_high))
        _require(bool(inside.all()), f"the action {actions[0][0].tolist()} is out of bounds")
        _require(np.array_equal(actions[0], actions[1]), "asked twice, it answers differently")
        _require(after == snapshot, "asking it changed the simulator's state")
        return f"action {np.round(actions[0][0], 2).tolist()}"

    def frames(self) -> str:
        """Frames of the policy's size are the policy's images; other sizes and cameras work as well."""
        info = self._pool.info
        member, _ = self._under_way()
        view = self._pool.observe([member])
        for i, camera in enumerate(info.cameras):
            same = np.array_equal(self._pool.frames([member], camera, info.image_size), view.images[:, i])
            _require(same, f"camera {camera} rendered twice gives different images")
        for camera in info.all_cameras:
            frame = self._pool.frames([member], camera, 2 * info.image_size)[0]
            _require(frame.std() > 2, f"the image of camera {camera} has a single colour")
        self._pool.release([member])
        return f"{len(info.all_cameras)} cameras"

    def cost(self) -> str:
        """Mean time of taking a state out of the simulation or putting one in."""
        members = self._pool.start([self._scene], 4)[0]
        actions = np.stack([self._actions("cost", row) for row in range(len(members))])
        before = self._pool.counters.copy()
        for i in range(self._chunks):
            outcome = self._pool.step_chunk(members, actions[: len(members), i])
            members = [member for member, done in zip(members, outcome.done, strict=True) if not done]
            if not members:
                break
        after = self._pool.counters
        self._pool.release(members)
        swaps = after.snapshots + after.restores - before.snapshots - before.restores
        mean_ms = (after.snapshot_s - before.snapshot_s) / max(1, swaps) * 1e3
        renders = max(1, after.renders - before.renders)
        render_ms = (after.render_s - before.render_s) / renders * 1e3
        rate = (after.env_steps - before.env_steps) / max(1e-9, after.sim_s - before.sim_s)
        _require(mean_ms <= self._max_swap_ms, f"{mean_ms:.3f} ms each, allowed are {self._max_swap_ms:g} ms")
        return f"{mean_ms * 1e3:.0f} us each; {rate:.0f} env steps/s, {render_ms:.1f} ms per image"
