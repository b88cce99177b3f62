"""Hosts that die, hang, answer nonsense or cannot be started; physics that breaks down."""

from __future__ import annotations

import ast
import dataclasses
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from sims_helpers import SPEC, random_chunks, scene

import z1
from z1.errors import ProtocolError, RenderError, SimulatorError
from z1.sims import protocol
from z1.sims.link import end_of_log
from z1.sims.pool import Member, SimPool
from z1.sims.recording import Recording
from z1.sims.replay import Replayer
from z1.sims.snapshot import decode_snapshot, encode_snapshot

EXPERTS = "sims/robocasa_experts"
HOST_MODULES = (
    "types",
    "errors",
    *(
        f"sims/{name}"
        for name in (
            *("protocol", "snapshot", "adapter", "rendering", "meshes", "still_bodies"),
            *("stand_in_files", "recording", "metaworld_detours"),
        )
    ),
    *(
        f"sims/robocasa_{name}"
        for name in ("layout", "tasks", "scene", "parts", "repeats", "state", "files", "recorded")
    ),
    *sorted(f"{EXPERTS}/{path.stem}" for path in (Path(z1.__file__).parent / EXPERTS).glob("*.py")),
)
ADAPTERS = ("sims/metaworld", "sims/robocasa")


@pytest.fixture
def fragile() -> Iterator[SimPool]:
    """Two hosts of which one is going to be lost; silence is noticed soon."""
    with SimPool(SPEC, 2, timeout_s=3.0) as pool:
        yield pool


def kill(pool: SimPool, host: int) -> None:
    os.kill(pool.host_pids[host], signal.SIGKILL)


def hang(pool: SimPool, host: int) -> None:
    os.kill(pool.host_pids[host], signal.SIGSTOP)


def garble(pool: SimPool, host: int) -> None:
    pool._hosts._links[host]._reader.feed(b"noise")


def started(pool: SimPool) -> tuple[list[Member], list[Member]]:
    """Two members on host 0, two on host 1, and each side's twin in order."""
    groups = pool.start([scene("push"), scene("reach")], 2)
    assert [pool.host_of(group[0]) for group in groups] == [0, 1]
    return groups[0], groups[1]


DAMAGES = [
    (kill, "was killed by signal 9"),
    (hang, "gave no sign of life for 3 s"),
    (garble, "sent what cannot be read (damaged message: expected a z1 frame, got b'noise"),
]


@pytest.mark.parametrize(("damage", "reason"), DAMAGES, ids=["killed", "hung", "garbled"])
def test_a_lost_host_is_replaced_and_its_members_are_put_back(
    fragile: SimPool, caplog: pytest.LogCaptureFixture, damage: Callable[[SimPool, int], None], reason: str
) -> None:
    """After two chunks, a fork, and a member that began from a snapshot: all that follows is as without the loss."""

    def beginning(pool: SimPool) -> list[Member]:
        one, other = started(pool) if pool is fragile else pool.start([scene("push"), scene("reach")], 2)
        members = [*one, *other]
        for chunk in chunks[:2]:
            pool.step_chunk(members, chunk[:4])
        (copies,) = pool.fork(members[:1], [1])
        restored = pool.restore(members[0].scene, pool.snapshot(members[1]), host=0)
        pool.step_chunk([*copies, restored], chunks[2][4:])
        return [*members, *copies, restored]

    chunks = random_chunks(5, 6, 5)
    with SimPool(SPEC) as calm:
        twins = beginning(calm)
        expected = [calm.step_chunk(twins, chunk) for chunk in chunks[3:]]
    members, pids = beginning(fragile), fragile.host_pids
    damage(fragile, 0)
    with caplog.at_level(logging.WARNING):
        for chunk, usual in zip(chunks[3:], expected, strict=True):
            outcome = fragile.step_chunk(members, chunk)
            assert not outcome.invalid.any()
            np.testing.assert_array_equal(outcome.observations.images, usual.observations.images)
            np.testing.assert_array_equal(outcome.observations.state, usual.observations.state)
            np.testing.assert_array_equal(outcome.nearest, usual.nearest)
    counters = fragile.counters
    assert (counters.host_restarts, counters.recovered_members, counters.invalid_members) == (1, 4, 0)
    assert fragile.host_pids[0] != pids[0]
    assert fragile.host_pids[1] == pids[1]
    assert f"simulator host {pids[0]} {reason}" in caplog.text


def always_killed(pool: SimPool, host: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kills a host before every request from now on."""
    ask = pool._hosts.ask

    def killing(wanted: dict) -> object:
        kill(pool, host)
        return ask(wanted)

    monkeypatch.setattr(pool._hosts, "ask", killing)


def test_members_whose_hosts_die_again_and_again_are_lost(
    fragile: SimPool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = fragile
    lost, kept = started(pool)
    chunks = random_chunks(5, 4, 2)
    with SimPool(SPEC) as calm:
        twins = calm.start([scene("reach")], 2)[0]
        expected = [calm.step_chunk(twins, chunk[2:]).observations.images for chunk in chunks]
    with caplog.at_level(logging.WARNING), monkeypatch.context() as patch:
        always_killed(pool, 0, patch)
        (copies,) = pool.fork([lost[0]], [1])  # copies of what is lost meanwhile are lost as well
    outcome = pool.step_chunk([*lost, *kept, *copies], chunks[0][[0, 1, 2, 3, 0]])
    assert outcome.invalid.tolist() == [True, True, False, False, True]
    assert outcome.done.tolist() == [True, True, False, False, True]
    assert not outcome.observations.images[:2].any()
    np.testing.assert_array_equal(outcome.observations.images[2:4], expected[0])
    np.testing.assert_array_equal(pool.step_chunk(kept, chunks[1][2:]).observations.images, expected[1])
    assert (pool.counters.host_restarts, pool.counters.invalid_members) == (3, 3)
    with pytest.raises(SimulatorError, match="has ended; release it and start another"):
        pool.step_chunk(lost, chunks[1][:2])
    with pytest.raises(SimulatorError, match=f"member {lost[0].id} of metaworld/push is lost: simulator host"):
        pool.snapshot(lost[0])
    pool.release([*lost, *kept, *copies])
    fresh = pool.start([scene("push")])[0][0]
    assert not pool.step_chunk([fresh], chunks[0][:1]).invalid[0]


def test_a_member_that_looks_different_afterwards_is_lost(fragile: SimPool, caplog: pytest.LogCaptureFixture) -> None:
    (one, other), _ = started(fragile)
    chunks = random_chunks(6, 2, 2)
    fragile.step_chunk([one, other], chunks[0])
    record = fragile._members.look_up([one])[0]
    record.history = (-record.history[0],)
    kill(fragile, 0)
    with caplog.at_level(logging.WARNING):
        outcome = fragile.step_chunk([one, other], chunks[1])
    assert outcome.invalid.tolist() == [True, False]
    assert (fragile.counters.recovered_members, fragile.counters.invalid_members) == (1, 1)
    assert "its host was lost, and after the same actions on another it looks different" in caplog.text


def test_losses_between_steps_are_mended_at_once(fragile: SimPool) -> None:
    lost, kept = started(fragile)
    kill(fragile, 0)
    assert fragile.expert_actions([*lost, *kept]).any(axis=1).all()
    kill(fragile, 0)
    assert fragile.frames([*lost, *kept], "corner", 32).any(axis=(1, 2, 3)).all()
    kill(fragile, 0)
    (copies,) = fragile.fork([lost[0]], [2])
    outcome = fragile.step_chunk([*lost, *kept, *copies], random_chunks(6, 6, 1)[0])
    assert not outcome.invalid.any()
    assert fragile.counters.host_restarts == 3


def test_the_end_of_a_crashs_log_has_its_reason_and_its_place() -> None:
    threads = [f"Thread {n} (most recent call first):\n  File x, line {n}" for n in range(20)]
    text = "\n".join(
        ["noise"] * 30
        + ["LLVM ERROR: out of memory", "Fatal Python error: Aborted", "", *threads]
        + ["Current thread 7 (most recent call first):", "  File render.py, line 1", "  File host.py, line 2"]
        + ["Extension modules: a, b"]
    )
    lines = end_of_log(text).splitlines()
    assert lines[-5:] == [
        "LLVM ERROR: out of memory",
        "Fatal Python error: Aborted",
        "Current thread 7 (most recent call first):",
        "  File render.py, line 1",
        "  File host.py, line 2",
    ]
    assert len(lines) <= 15
    assert end_of_log("a\nb\n") == "a\nb"


def test_scenes_are_built_again_when_their_host_dies(fragile: SimPool) -> None:
    kill(fragile, 0)
    hang(fragile, 1)
    members = [group[0] for group in fragile.start([scene("push"), scene("reach"), scene("push", 1)])]
    assert fragile.counters.host_restarts == 2
    assert fragile.counters.invalid_members == 0
    with SimPool(SPEC) as calm:
        twins = [group[0] for group in calm.start([scene("push"), scene("reach"), scene("push", 1)])]
        np.testing.assert_array_equal(fragile.observe(members).images, calm.observe(twins).images)


def test_a_host_that_cannot_be_replaced_ends_the_pool(fragile: SimPool) -> None:
    members, _ = started(fragile)
    fragile._hosts._python = "/bin/false"
    kill(fragile, 0)
    with pytest.raises(SimulatorError, match=r"was lost and cannot be replaced: .* exited with code 1"):
        fragile.step_chunk(members, random_chunks(8, 2, 1)[0])
    with pytest.raises(SimulatorError, match="this SimPool is closed"):
        fragile.observe(members)


def test_a_scene_that_kills_every_host_is_given_up(fragile: SimPool, monkeypatch: pytest.MonkeyPatch) -> None:
    place = fragile._place

    def place_and_kill(scenes: list, members: int) -> list[int]:
        hosts = place(scenes, members)
        kill(fragile, hosts[0])
        return hosts

    monkeypatch.setattr(fragile, "_place", place_and_kill)
    with pytest.raises(SimulatorError) as caught:
        fragile.start([scene("push", 7)])
    text = "scene 7 of metaworld/push cannot be built: 3 hosts were lost in a row meanwhile"
    assert str(caught.value) == text
    assert fragile.counters.host_restarts == 3


@pytest.mark.parametrize("velocity", [np.nan, np.inf, 1e12])
def test_diverged_physics_loses_that_member_alone(
    pool: SimPool, caplog: pytest.LogCaptureFixture, velocity: float
) -> None:
    healthy, poisoned = pool.start([scene("push")], 2)[0]
    snapshot = decode_snapshot(pool.snapshot(poisoned))
    physics = snapshot.state.physics.copy()
    physics[20] = velocity
    poisoned = pool.restore(
        healthy.scene,
        encode_snapshot(dataclasses.replace(snapshot, state=dataclasses.replace(snapshot.state, physics=physics))),
    )
    twin = pool.start([scene("push")])[0][0]
    (chunk,) = random_chunks(9, 3, 1)
    before = pool.counters.copy()
    with caplog.at_level(logging.WARNING):
        outcome = pool.step_chunk([healthy, poisoned, twin], chunk[[0, 1, 0]])
    assert outcome.invalid.tolist() == [False, True, False]
    np.testing.assert_array_equal(outcome.observations.images[0], outcome.observations.images[2])
    assert outcome.observations.images[0].any()
    assert pool.counters.invalid_members - before.invalid_members == 1
    assert pool.counters.host_restarts == before.host_restarts
    assert f"member {poisoned.id} of metaworld/push is lost: the physics diverged" in caplog.text
    assert not Path("MUJOCO_LOG.TXT").exists()
    pool.release([healthy, poisoned, twin])


def test_a_slow_host_that_gives_signs_of_life_is_not_lost() -> None:
    """16000 env steps take longer than the timeout; the host says meanwhile that it works."""
    with SimPool(dataclasses.replace(SPEC, horizon=100_000), timeout_s=2.0) as pool:
        members = pool.start([scene("peg-insert-side")], 4)[0]
        began = time.monotonic()
        outcome = pool.step_chunk(members, np.zeros((4, 4000, 4), np.float32))
        assert time.monotonic() - began > 2.0
        assert outcome.executed.tolist() == [4000] * 4
        assert pool.counters.host_restarts == 0


def test_another_protocol_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "PROTOCOL_VERSION", 99)
    with pytest.raises(ProtocolError) as caught:
        SimPool(SPEC)
    text = "the simulator host speaks protocol version 4, this process version 99; both must run the same z1"
    assert str(caught.value) == text


def test_a_simulator_without_recordings_says_so() -> None:
    nothing = np.zeros((1, 4))
    recording = Recording(task="reach", scene={}, model_xml="<mujoco/>", states=nothing, actions=nothing)
    with (
        Replayer(SPEC) as replayer,
        pytest.raises(
            SimulatorError, match=r"^MetaWorld replays no recordings; only those of RoboCasa can be replayed$"
        ),
    ):
        replayer.replay(recording, [0])


def bare_interpreter(folder: Path, packages: tuple[str, ...]) -> str:
    """A virtual environment that sees only some of this one's packages."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=60)
    (site,) = folder.glob("lib/python*/site-packages")
    here = Path(np.__file__).parents[1]
    for package in packages:
        (site / package).symlink_to(here / package)
    return str(folder / "bin" / "python")


def test_an_interpreter_without_the_simulator_is_refused(tmp_path: Path) -> None:
    """The host starts there with numpy alone: it takes nothing from this environment but the package z1."""
    python = bare_interpreter(tmp_path / "bare", ("numpy", "numpy.libs"))
    with pytest.raises(SimulatorError) as caught:
        SimPool(dataclasses.replace(SPEC, python=python))
    text = str(caught.value)
    assert text.startswith(f"the interpreter {python} cannot import MetaWorld: No module named 'mujoco'; ")
    assert text.endswith(f"install it there: {python} -m pip install metaworld==3.1.1 packaging")


def test_an_interpreter_without_numpy_is_refused(tmp_path: Path) -> None:
    python = bare_interpreter(tmp_path / "bare", ())
    with pytest.raises(SimulatorError) as caught:
        SimPool(dataclasses.replace(SPEC, python=python))
    assert f"the interpreter {python} cannot import numpy (No module named 'numpy')" in str(caught.value)
    assert f"install it there: {python} -m pip install numpy" in str(caught.value)


def test_a_missing_interpreter_is_refused() -> None:
    with pytest.raises(SimulatorError) as caught:
        SimPool(dataclasses.replace(SPEC, python="/nowhere/python"))
    text = "the interpreter of the simulator hosts, '/nowhere/python', does not exist or cannot be run"
    assert str(caught.value) == text


def test_a_program_that_is_no_host_is_refused(tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho 'Welcome to the interpreter of interpreters'\nexec sleep 30\n")
    program.chmod(0o755)
    with pytest.raises(SimulatorError, match=r"sent what cannot be read \(damaged message: expected a z1"):
        SimPool(dataclasses.replace(SPEC, python=str(program)))


@pytest.mark.parametrize("gl", ["off", "nonsense"])
def test_without_a_renderer_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, gl: str) -> None:
    monkeypatch.setenv("MUJOCO_GL", gl)
    with pytest.raises(RenderError) as caught:
        SimPool(SPEC)
    text = str(caught.value)
    assert text.startswith(
        f"MUJOCO_GL={gl} is set in the environment and does not work; unset it to let z1 choose. "
        f"no way to render works on this machine. {gl}: "
    )
    for advice in ("libegl1 libgl1", "--no-install-recommends libosmesa6", "dpkg -x PACKAGE DIR", "MUJOCO_GL=osmesa"):
        assert advice in text


def gone(pid: int) -> bool:
    """Whether a process has ended (one that nobody has waited for yet counts as ended)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_hosts_end_when_their_parent_dies() -> None:
    code = (
        "import os, signal\n"
        "from z1.sims.pool import SimPool, SimSpec\n"
        "pool = SimPool(SimSpec(simulator='metaworld'), 2)\n"
        "print(*pool.host_pids, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(z1.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, timeout=60, check=False
    )
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 10
    while not all(gone(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert all(gone(pid) for pid in pids)


def test_closing_leaves_nothing_behind() -> None:
    before = set(Path("/dev/shm").iterdir())
    with SimPool(SPEC, 2) as pool:
        pids = pool.host_pids
        pool.start([scene("push"), scene("reach")])
        assert {path for path in Path("/dev/shm").iterdir() if "z1-images" in path.name} <= before
    assert all(gone(pid) for pid in pids)


def test_modules_of_hosts_keep_to_python_3_10_and_their_imports() -> None:
    folder = Path(z1.__file__).parent
    simulators = {"mujoco", "metaworld", "gymnasium", "scipy", "OpenGL", "robosuite", "robocasa"}  # and theirs
    allowed = {"numpy", "z1", *simulators, *sys.stdlib_module_names}
    for name in (*HOST_MODULES, *ADAPTERS, "sims/host", "sims/__init__", "__init__"):
        tree = ast.parse((folder / f"{name}.py").read_text(encoding="utf-8"), feature_version=(3, 10))
        for node in ast.walk(tree):
            imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                imported = [node.module or ""]
            for module in imported:
                assert module.split(".")[0] in allowed, f"{name} imports {module}"
                if module.startswith("z1."):
                    assert module.removeprefix("z1.").replace(".", "/") in (*HOST_MODULES, *ADAPTERS, EXPERTS), module
