"""Running jobs as processes, as many at a time as there are workers, in order, each after what it needs."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

POLL_S = 0.1
"""Seconds between two looks at the running processes."""

STOP_S = 20.0
"""Seconds that an interrupted process has to close its files, before it is killed."""

TAIL_LINES = 5
"""Lines of a failed job's log that are shown."""


class Named(Protocol):
    """What the schedule knows of a job."""

    @property
    def name(self) -> str:
        """Name, different for every job."""

    @property
    def after(self) -> str:
        """Name of the job that must be finished first, or empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A job that did not finish.

    Attributes:
        name: The job.
        code: Exit code of its process, negative for a signal; None: not begun, since what it needs failed.
        reason: The last lines of its log, or the job that it waited for.
        log: Its log.
    """

    name: str
    code: int | None
    reason: str
    log: Path


@dataclass(slots=True, kw_only=True)
class Work:
    """How far the jobs are; ``run_jobs`` keeps it up to date for a display.

    Attributes:
        total: Number of jobs.
        running: When each running job began, by name, in seconds of ``time.monotonic``.
        seconds: How long each job that finished here took, by name.
        failures: Jobs that failed.
    """

    total: int
    running: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)


def next_job(waiting: Sequence[Named], unfinished: Collection[str]) -> Named | None:
    """The first waiting job that waits for nothing.

    Args:
        waiting: Jobs that have not begun, in order.
        unfinished: Names of all jobs that are waiting or running.
    """
    return next((job for job in waiting if job.after not in unfinished), None)


def run_jobs(
    jobs: Iterable[Named],
    *,
    workers: int,
    command: Callable[[str], Sequence[str]],
    log: Callable[[str], Path],
    pass_fds: Sequence[int] = (),
    devices: Sequence[str] = (),
    on_change: Callable[[Work], None] = lambda work: None,
) -> Work:
    """Runs every job. One that fails takes with it those that need it; the rest goes on.

    Args:
        jobs: What is left to do, in order.
        workers: Most processes at a time.
        command: Command line of a job, by name.
        log: File to which its output is added, by name.
        pass_fds: Open files that the processes keep open.
        devices: GPUs, as CUDA_VISIBLE_DEVICES names them. Each process sees one, that with the fewest others on it.
        on_change: Called often, with the same record each time.

    Returns:
        What was done.

    Raises:
        KeyboardInterrupt: After the running processes have ended.
    """
    waiting = list(jobs)
    work = Work(total=len(waiting))
    processes: dict[str, subprocess.Popen[bytes]] = {}
    places: dict[str, str] = {}
    try:
        while waiting or processes:
            while len(processes) < workers and (job := next_job(waiting, _names(waiting) | processes.keys())):
                waiting.remove(job)
                if devices:
                    places[job.name] = least_used(devices, [places[name] for name in processes])
                processes[job.name] = _start(
                    command(job.name), log(job.name), pass_fds, device=places.get(job.name, "")
                )
                work.running[job.name] = time.monotonic()
            on_change(work)
            time.sleep(POLL_S)
            for name in [name for name, process in processes.items() if process.poll() is not None]:
                _end(name, processes.pop(name), work, waiting, log)
    finally:
        _stop(list(processes.values()))
    on_change(work)
    return work


def remaining_seconds(work: Work, estimates: Mapping[str, float], *, workers: int, now: float) -> float:
    """Time until all jobs are done, from estimates that are scaled by how long the finished jobs took.

    Args:
        work: How far the jobs are.
        estimates: Seconds of each of the jobs, by name, roughly in proportion.
        workers: Processes at a time.
        now: ``time.monotonic()``.
    """
    expected = sum(estimates[name] for name in work.seconds)
    scale = sum(work.seconds.values()) / expected if expected else 1.0
    ended = work.seconds.keys() | {failure.name for failure in work.failures}
    left = {name: scale * seconds for name, seconds in estimates.items() if name not in ended}
    for name, began in work.running.items():
        left[name] = max(0.0, left[name] - (now - began))
    return max(sum(left.values()) / max(1, min(workers, len(left))), max(left.values(), default=0.0))


def _names(jobs: Iterable[Named]) -> set[str]:
    return {job.name for job in jobs}


def least_used(devices: Sequence[str], taken: Sequence[str]) -> str:
    """The device that is taken least often, the first of those."""
    return min(devices, key=lambda device: taken.count(device))


def _start(command: Sequence[str], log: Path, pass_fds: Sequence[int], *, device: str) -> subprocess.Popen[bytes]:
    """A process with one thread whose input stays open as long as this process lives, in a process group of its own."""
    threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR")}
    visible = {"CUDA_VISIBLE_DEVICES": device} if device else {}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **threads, **visible, "COLUMNS": "120", "PYTHONUNBUFFERED": "1"},
            pass_fds=tuple(pass_fds),
            start_new_session=True,
        )


def _end(
    name: str,
    process: subprocess.Popen[bytes],
    work: Work,
    waiting: list[Named],
    log: Callable[[str], Path],
) -> None:
    """Writes down how a process ended; jobs that need a failed one leave the queue."""
    assert process.stdin is not None
    process.stdin.close()
    seconds = time.monotonic() - work.running.pop(name)
    if process.returncode == 0:
        work.seconds[name] = seconds
        return
    work.failures.append(Failure(name=name, code=process.returncode, reason=tail(log(name)), log=log(name)))
    for job in [job for job in waiting if job.after == name]:
        waiting.remove(job)
        work.failures.append(Failure(name=job.name, code=None, reason=f"needs {name!r}", log=log(name)))


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Interrupts processes, and kills those that do not end, with their children."""
    for process in processes:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
    try:
        deadline = time.monotonic() + STOP_S
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(0.0, deadline - time.monotonic()))
    finally:  # also on a second Ctrl-C
        for process in processes:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            assert process.stdin is not None
            process.stdin.close()


def tail(log: Path, lines: int = TAIL_LINES) -> str:
    """The last lines of a log that are not empty."""
    try:
        with log.open(encoding="utf-8", errors="replace") as file:
            return "\n".join(deque((line.rstrip() for line in file if line.strip()), maxlen=lines))
    except OSError:
        return ""
