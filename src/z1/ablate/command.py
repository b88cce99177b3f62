"""``z1 ablate``: from a study file to finished jobs, one table and one figure."""

from __future__ import annotations

import fcntl
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any

import tyro
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from z1.ablate.figure import write_figure
from z1.ablate.gather import gather
from z1.ablate.jobs import Job, Run, StudyFolder, check, env_steps, estimated_seconds, jobs_of, usual_rate
from z1.ablate.schedule import Work, remaining_seconds, run_jobs
from z1.ablate.study import Study, differences, read_study, study_to_dict
from z1.ablate.table import markdown, missing_text, terminal_table
from z1.commands import ProgressLines, console
from z1.config import require
from z1.errors import ConfigError, RunFolderError
from z1.eval.format import duration, plural
from z1.files import atomic_file, read_json, write_json
from z1.machine import cores, visible_gpus

FAILED = 1
"""Exit code when a job failed."""

LINE_EVERY_S = 120.0
"""Seconds between two lines about the running jobs where there is no terminal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AblateConfig:
    """``z1 ablate STUDY.json``: compare named variants on the same tasks, seeds and budgets of env steps."""

    study: Annotated[str, tyro.conf.Positional]
    """The study file."""
    out: str
    """Folder of the study: its runs, results.json, table.md and figure.png."""
    jobs: int = 0
    """Jobs at a time, each on one core. 0: as many as there are cores."""
    resume: bool = False
    """Continue the study in ``out``: finished jobs are kept, half ones go on. Tasks, variants and seeds may have been
    added to the study file, and ``env_step_budget`` and ``marks`` raised in proportion, with which finished runs go on
    from where they ended; nothing else may have changed.
    """
    plan: bool = False
    """Print the jobs, their env steps and the estimated time, and run nothing."""
    report: bool = False
    """Write table and figure of what is finished, and run nothing; jobs may be running meanwhile."""
    rate: float = 0.0
    """Env steps per second and core, for estimates of time before jobs have finished. 0: what the tiny policy was
    measured to do in each simulator, updates and scene builds included.
    """

    def __post_init__(self) -> None:
        require(self.jobs >= 0, "jobs", self.jobs, "at least 0")
        require(self.rate >= 0, "rate", self.rate, "at least 0")
        if self.plan and self.report:
            raise ConfigError("plan and report exclude each other; choose one")


def run_ablate(config: AblateConfig) -> int:
    """``z1 ablate``.

    Returns:
        0, or 1 if a job failed.

    Raises:
        ConfigError: The study is not allowed, or differs from the one to continue.
        RunFolderError: The folder exists and ``resume`` is not set, or jobs are running in it.
    """
    study, folder = read_study(Path(config.study)), StudyFolder(Path(config.out))
    check_folder(study, folder, must_be_new=not (config.resume or config.plan or config.report))
    check(study, folder)
    workers = config.jobs or cores()
    if config.plan:
        show_plan(study, folder, workers, config.rate)
        return 0
    if config.report:
        require(folder.study_path.exists(), "out", config.out, "the folder of a study that has begun")
        show_results(study, folder)
        return 0
    with locked(folder) as lock:
        write_json(folder.study_path, study_to_dict(study))
        try:
            work = run_all(study, folder, workers, config.rate, lock)
        except KeyboardInterrupt:
            write_results(study, folder)
            raise
        show_results(study, folder)
    show_failures(work)
    show_next(study, folder, work, config)
    return FAILED if work.failures else 0


def check_folder(study: Study, folder: StudyFolder, *, must_be_new: bool) -> None:
    """Refuses a folder that is taken, or that holds another study.

    Args:
        study: The study.
        folder: Its folder.
        must_be_new: Whether the folder may not exist yet.

    Raises:
        RunFolderError: The folder exists although it must be new, or is no study's.
        ConfigError: It holds a study that this one does not continue; names the differing keys.
    """
    taken = folder.path.exists() and (not folder.path.is_dir() or any(folder.path.iterdir()))
    if not taken:
        return
    if must_be_new:
        raise RunFolderError(f"{folder.path} exists already; choose another --out, or pass --resume to continue it")
    if not folder.study_path.exists():
        raise RunFolderError(f"{folder.path} is not the folder of a study: it has no study.json; choose another --out")
    found = differences(read_study(folder.study_path), study)
    if found:
        raise ConfigError(
            f"cannot continue {folder.path} with another study: {'; '.join(found)}. Only tasks, variants, seeds "
            "and marks at the same distance may be added; put the rest back, or choose another --out."
        )


@contextmanager
def locked(folder: StudyFolder) -> Iterator[IO[str]]:
    """Holds the folder's lock; jobs inherit it, so that it also stands for those that outlive this process.

    Raises:
        RunFolderError: Jobs are running in the folder, or it cannot be made.
    """
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        file = folder.lock_path.open("w", encoding="utf-8")
    except OSError as error:
        raise RunFolderError(f"cannot write {folder.path}: {error.strerror}; choose another --out") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunFolderError(
                f"jobs are running in {folder.path}; wait for them, or see the results so far with --report"
            ) from None
        yield file


def run_all(study: Study, folder: StudyFolder, workers: int, rate: float, lock: IO[str]) -> Work:
    """Runs what is not finished, with a progress display.

    Raises:
        KeyboardInterrupt: Ctrl-C, or the process was asked to end; the jobs have ended.
    """
    jobs = jobs_of(study)
    left = [job for job in jobs if not folder.is_finished(study, job)]
    by_name = {job.name: job for job in left}
    estimates = {job.name: estimated_seconds(study, folder, job, rate) for job in left}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    shown: set[str] = set()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with ProgressLines(
            *columns, console=console, transient=not console.is_terminal, line_every_s=LINE_EVERY_S
        ) as progress:
            bar = progress.add_task("jobs", total=len(jobs), completed=len(jobs) - len(left), note="")

            def show(work: Work) -> None:
                for name in work.seconds.keys() - shown:
                    line = _finished_line(folder, by_name[name], work.seconds[name])
                    progress.console.print(line, highlight=False, soft_wrap=True)
                    shown.add(name)
                for failure in work.failures:
                    if failure.name not in shown:
                        progress.console.print(
                            Text(f"failed    {failure.name}: {failure.log}", style="red"), soft_wrap=True
                        )
                        shown.add(failure.name)
                seconds = remaining_seconds(work, estimates, workers=workers, now=time.monotonic())
                note = f"about {duration(seconds)} left; {', '.join(work.running)}" if work.running else ""
                progress.update(bar, completed=len(jobs) - len(left) + len(work.seconds), note=note)

            return run_jobs(
                left,
                workers=workers,
                command=lambda name: [sys.executable, "-m", "z1.ablate.job", str(folder.path), name],
                log=lambda name: folder.log(by_name[name]),
                pass_fds=(lock.fileno(),),
                devices=visible_gpus(),
                on_change=show,
            )
    finally:
        signal.signal(signal.SIGTERM, before)


def _finished_line(folder: StudyFolder, job: Job, seconds: float) -> str:
    """A line that stays on the screen."""
    line = f"finished  {job.name} in {duration(seconds)}"
    if isinstance(job, Run):
        row = _rates(folder, job)
        line += f": success {row[0]:.1%} after SFT, {row[1]:.1%} after RL" if row else ""
    return line


def _rates(folder: StudyFolder, job: Run) -> tuple[float, float] | None:
    """Test success before and after a finished run; None where no episode was valid."""
    rates = [row["rate"] for row in read_json(folder.evaluation(job), RunFolderError)["summary"]["per_task"]]
    return None if None in rates else (rates[0], rates[1])


def write_results(study: Study, folder: StudyFolder) -> dict[str, Any]:
    """Writes results.json, table.md and figure.png of what is finished.

    Returns:
        The results, schema ``z1.ablation/1``.
    """
    results = gather(study, folder)
    publish(folder, results, markdown(results))
    write_figure(results, folder.figure_path)
    return results


def publish(folder: StudyFolder, results: dict[str, Any], page: str) -> None:
    """Writes results.json and table.md."""
    write_json(folder.results_path, results)
    with atomic_file(folder.table_path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def show_written(folder: StudyFolder) -> None:
    """Prints where the results are."""
    console.print(
        f"Written: {folder.table_path}, {folder.figure_path}, {folder.results_path}", highlight=False, soft_wrap=True
    )


def show_results(study: Study, folder: StudyFolder) -> None:
    """Writes the results and prints the table, what is missing and where the files are."""
    results = write_results(study, folder)
    console.print(terminal_table(results))
    missing = missing_text(results)
    if missing:
        console.print(missing, highlight=False, soft_wrap=True)
    show_written(folder)


def show_failures(work: Work) -> None:
    """Prints each failed job with the last lines of its log."""
    for failure in work.failures:
        if failure.code is None:
            console.print(Text(f"Not begun: {failure.name}, since it {failure.reason}", style="red"), soft_wrap=True)
        else:
            console.print(
                Text(f"Failed: {failure.name} (exit code {failure.code}); log: {failure.log}", style="red"),
                soft_wrap=True,
            )
            console.print(Text("  " + failure.reason.replace("\n", "\n  ")), soft_wrap=True)


def show_next(study: Study, folder: StudyFolder, work: Work, config: AblateConfig) -> None:
    """Prints what to do next."""
    again = f"z1 ablate {config.study} --out {folder.path} --resume"
    if work.failures:
        console.print(f"Next: mend what the logs say, then {again}", highlight=False, soft_wrap=True)
        return
    first = folder.run(study.tasks[0], study.variants[0], study.seeds[0])
    console.print(
        f"Next: add seeds, tasks or variants to {config.study}, then {again}; one run in detail: z1 report {first}",
        highlight=False,
        soft_wrap=True,
    )


def show_plan(study: Study, folder: StudyFolder, workers: int, rate: float) -> None:
    """Prints the jobs, their env steps and how long they take, and what of them is finished."""
    jobs = jobs_of(study)
    left = [job for job in jobs if not folder.is_finished(study, job)]
    for number, job in enumerate(jobs, start=1):
        state = f"{env_steps(study, folder, job):>12,} env steps" if job in left else f"{'finished':>22}"
        console.print(f"{number:4d}  {state}  {job.name}", highlight=False, soft_wrap=True)
    training = study.env_step_budget * sum(isinstance(job, Run) for job in left)
    total = sum(env_steps(study, folder, job) for job in left)
    seconds = sum(estimated_seconds(study, folder, job, rate) for job in left) / workers
    at = " and ".join(f"{r:.0f}" for r in sorted({rate or usual_rate(job) for job in left or jobs}))
    console.print(
        f"{plural(len(left), 'job')} to run: {total:,} env steps at most, {training:,} of them training. About "
        f"{duration(seconds)} on {plural(workers, 'core')} at {at} env steps/s each.",
        highlight=False,
        soft_wrap=True,
    )
