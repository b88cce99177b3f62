"""``z1 suite``: run a suite, report on one, list those that z1 knows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.table import Table

from z1.ablate.command import (
    FAILED,
    check_folder,
    locked,
    publish,
    run_all,
    show_failures,
    show_plan,
    show_written,
)
from z1.ablate.explain import keys_help
from z1.ablate.jobs import StudyFolder, check
from z1.ablate.schedule import Work
from z1.ablate.study import study_to_dict
from z1.commands import console
from z1.config import require
from z1.errors import ConfigError, RunFolderError
from z1.eval.format import plural
from z1.files import read_json, write_json
from z1.machine import cores
from z1.suite.builtin import SUITES
from z1.suite.figure import write_figure
from z1.suite.results import gather_suite
from z1.suite.suite import Suite, SuiteTask, read_suite, suite_from_dict, suite_to_dict, with_datasets, with_tasks
from z1.suite.table import headline, markdown, terminal_table

EXAMPLE = """{
  "name": "two-doors",
  "tasks": [{"task": "metaworld/door-open", "category": "doors", "horizon": 150, "demonstrations": 12,
             "sft_steps": 250},
            {"task": "metaworld/door-close", "category": "doors", "horizon": 150, "dataset": "data/door-close",
             "sft_steps": 250}],
  "sft": "category",
  "set": {"rollout.groups": 6},
  "env_step_budget": 60000
}"""
"""A suite file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteRunConfig:
    """``z1 suite run SUITE``: demonstrations, SFT, RL and evaluation of every task of a suite, and one table."""

    suite: Annotated[str, tyro.conf.Positional]
    """Name of a suite (``z1 suite list``), or a suite file."""
    out: str
    """Folder of the suite: demonstrations, runs, results.json, table.md and figure.png."""
    data: str = ""
    """Folder with a dataset per task, named like the task, to train SFT on instead of recorded demonstrations."""
    tasks: tuple[str, ...] = ()
    """Only these tasks of the suite. Empty: all."""
    env_step_budget: int = 0
    """Env steps of RL per task, in place of the suite's. 0: the suite's. Raised with ``resume``, runs go on."""
    probe_env_steps: int | None = None
    """Env steps of a probe of selective joint training, in place of the suite's; 0: no probes, only the expert trains.
    """
    jobs: int = 0
    """Jobs at a time, each on one core; with GPUs they take turns. 0: as many as there are cores."""
    resume: bool = False
    """Continue the suite in ``out``: finished tasks are kept, half ones go on, failed ones are tried again."""
    plan: bool = False
    """Print the jobs, their env steps and the estimated time, and run nothing."""
    rate: float = 0.0
    """Env steps per second and core, for estimates of time before jobs have finished. 0: what the tiny policy was
    measured to do in each simulator, updates and scene builds included.
    """

    def __post_init__(self) -> None:
        require(self.env_step_budget >= 0, "env_step_budget", self.env_step_budget, "at least 0")
        require(self.jobs >= 0, "jobs", self.jobs, "at least 0")
        require(self.rate >= 0, "rate", self.rate, "at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteReportConfig:
    """``z1 suite report FOLDER``: table and figure of what is finished; jobs may be running meanwhile."""

    folder: Annotated[str, tyro.conf.Positional]
    """Folder of a suite."""


def suite_help() -> str:
    """What a suite file is, for the command's help."""
    return keys_help("The suite file, for example:", EXAMPLE, ((Suite, "Its keys"), (SuiteTask, "Keys of a task")))


def chosen_suite(config: SuiteRunConfig) -> Suite:
    """The suite with what the command line adds.

    Raises:
        ConfigError: Settings are not allowed.
        UnknownNameError: A suite or task is not known.
    """
    suite = read_suite(config.suite)
    if config.tasks:
        suite = with_tasks(suite, config.tasks)
    if config.data:
        suite = with_datasets(suite, Path(config.data))
    asked = {"env_step_budget": config.env_step_budget or None, "probe_env_steps": config.probe_env_steps}
    given = {name: value for name, value in asked.items() if value is not None}
    return suite_from_dict({**suite_to_dict(suite), **given}) if given else suite


def run_suite(config: SuiteRunConfig) -> int:
    """``z1 suite run``.

    Returns:
        0, or 1 if a job failed.

    Raises:
        ConfigError: The suite is not allowed, or differs from the one to continue.
        RunFolderError: The folder exists and ``resume`` is not set, or jobs are running in it.
    """
    suite, folder = chosen_suite(config), StudyFolder(Path(config.out))
    study = suite.study()
    check_folder(study, folder, must_be_new=not (config.resume or config.plan))
    check(study, folder)
    workers = config.jobs or cores()
    if config.plan:
        show_plan(study, folder, workers, config.rate)
        show_without(suite)
        return 0
    with locked(folder) as lock:
        write_json(folder.study_path, study_to_dict(study))
        write_json(suite_path(folder), suite_to_dict(suite))
        show_without(suite)
        try:
            work = run_all(study, folder, workers, config.rate, lock)
        except KeyboardInterrupt:
            write_results(suite, folder)
            raise
        show_results(suite, folder)
    show_failures(work)
    show_next(folder, work)
    return FAILED if work.failures else 0


def run_report(config: SuiteReportConfig) -> None:
    """``z1 suite report``.

    Raises:
        RunFolderError: The folder is no suite's.
    """
    folder = StudyFolder(Path(config.folder))
    if not suite_path(folder).exists():
        raise RunFolderError(f"{folder.path} is not the folder of a suite: it has no suite.json")
    show_results(suite_from_dict(read_json(suite_path(folder), ConfigError)), folder)


def suite_path(folder: StudyFolder) -> Path:
    """suite.json."""
    return folder.path / "suite.json"


def write_results(suite: Suite, folder: StudyFolder) -> dict[str, Any]:
    """Writes results.json, table.md and figure.png of what is finished, schema ``z1.suite/1``."""
    results = gather_suite(suite, folder)
    publish(folder, results, markdown(results))
    write_figure(results, folder.figure_path)
    return results


def show_results(suite: Suite, folder: StudyFolder) -> None:
    """Writes the results and prints table, headline and where the files are."""
    results = write_results(suite, folder)
    console.print(terminal_table(results))
    console.print(headline(results), highlight=False, soft_wrap=True)
    show_written(folder)


def show_without(suite: Suite) -> None:
    """Names the tasks that cannot be trained."""
    without = suite.without_demonstrations
    if without:
        console.print(
            f"{plural(len(without), 'task')} without demonstrations will be listed, not trained (give a dataset by "
            f"--data): {', '.join(without)}",
            highlight=False,
            soft_wrap=True,
            style="yellow",
        )


def show_next(folder: StudyFolder, work: Work) -> None:
    """Prints what to do next."""
    if work.failures:
        text = f"Next: mend what the logs say, then z1 suite run {suite_path(folder)} --out {folder.path} --resume"
    else:
        text = f"Next: one run in detail: z1 report {folder.path}/runs/TASK/rl/seed-N"
    console.print(text, highlight=False, soft_wrap=True)


def list_suites() -> None:
    """``z1 suite list``."""
    table = Table("suite", "tasks", "with scripted demonstrations", "categories")
    for name in SUITES:
        suite = read_suite(name)
        kinds = dict.fromkeys(suite.categories.values())
        table.add_row(name, str(len(suite.tasks)), str(len(suite.trainable)), ", ".join(kinds))
    console.print(table)
