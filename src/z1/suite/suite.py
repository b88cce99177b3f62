"""What a suite is: tasks with categories, and how they are trained; read strictly from a small JSON file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from z1.ablate.study import Study, StudyTask, Variant, record_from_dict
from z1.config import config_to_dict, require
from z1.errors import ConfigError, UnknownNameError
from z1.files import read_json
from z1.sims.suites import simulator_of
from z1.suite.builtin import DEMO_SETS, DEMONSTRATED, SUITES, TaskPlan

VARIANT = "rl"
"""Name of a suite's only variant in the study that runs it."""

ONE_POLICY = "all"
"""SFT group of a suite with one multi-task policy."""

PROBE_ENV_STEPS = 20_000
"""Env steps of a probe in the suites that z1 knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteTask:
    """A task of a suite, and where its demonstrations come from."""

    task: str
    """Task id, for example ``metaworld/door-open``."""
    category: str
    """Kind of task, for averages."""
    horizon: int
    """Env steps after which an episode without success counts as failed, in training and in evaluation."""
    sft_steps: int
    """Optimizer steps of SFT; a policy of several tasks trains for the sum of theirs."""
    demonstrations: int = 0
    """Demonstrations to record with the simulator's scripted expert. 0: none, give ``dataset``."""
    dataset: str = ""
    """Folder of demonstrations, in place of recorded ones."""

    def __post_init__(self) -> None:
        simulator_of(self.task)

    @property
    def has_demonstrations(self) -> bool:
        """Whether there is something to train SFT on."""
        return bool(self.demonstrations or self.dataset)


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """Tasks that are trained and evaluated one by one, each from an SFT policy of its own or a shared one."""

    name: str
    """Name of the suite."""
    tasks: tuple[SuiteTask, ...]
    """Tasks. Averages weigh each the same."""
    sft: Literal["task", "category", "suite"] = "task"
    """One SFT policy per task, per category, or one for all tasks."""
    sft_recipe: str = "tiny"
    """SFT recipe."""
    sft_policy: str = ""
    """Folder of the policy that SFT starts from. Empty: a new one of the recipe's size."""
    recipe: str = "tiny"
    """RL recipe."""
    set: Mapping[str, Any] = field(default_factory=dict)
    """Overrides of the RL recipe by dotted name, for example ``rollout.groups``."""
    demo_set: Mapping[str, Any] = field(default_factory=dict)
    """Overrides of the settings of z1 demos for demonstrations that are recorded, for example ``noise_std``."""
    sft_set: Mapping[str, Any] = field(default_factory=dict)
    """Overrides of the SFT recipe, for example ``learning_rate``."""
    env_step_budget: int = 100_000
    """Env steps of RL per task, evaluations not counted."""
    validate_every: int = 20_000
    """Env steps of RL from one validation to the next; there is one before RL too."""
    validation_episodes: int = 48
    """Validation scenes; a run's best policy is chosen by them."""
    probe_env_steps: int = 0
    """Env steps of a probe of selective joint training, which decides for each task whether the VLM trains. 0: no
    probes, ``update.mode`` decides.
    """
    test_episodes: int = 100
    """Test scenes on which the SFT policy and the RL policy of each task are compared."""
    seed: int = 0
    """Run seed of demonstrations, SFT and RL."""

    def __post_init__(self) -> None:
        require(bool(self.tasks), "tasks", self.tasks, "at least one")
        names = [task.task for task in self.tasks]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ConfigError(f"tasks names {twice[0]!r} {names.count(twice[0])} times; name each once")
        require(self.validate_every >= 1, "validate_every", self.validate_every, "at least 1")
        if self.env_step_budget > self.validate_every and self.env_step_budget % self.validate_every:
            raise ConfigError(
                f"env_step_budget is {self.env_step_budget}; it must be a multiple of validate_every "
                f"({self.validate_every}), or less"
            )
        require(self.probe_env_steps >= 0, "probe_env_steps", self.probe_env_steps, "at least 0")
        if self.env_step_budget < 2 * self.probe_env_steps:
            raise ConfigError(
                f"env_step_budget is {self.env_step_budget}; it must hold two probes of probe_env_steps "
                f"({self.probe_env_steps}). Lower probe_env_steps, or set it to 0 to train without probes"
            )

    @property
    def trainable(self) -> tuple[SuiteTask, ...]:
        """Tasks with demonstrations."""
        return tuple(task for task in self.tasks if task.has_demonstrations)

    @property
    def without_demonstrations(self) -> tuple[str, ...]:
        """Ids of the others."""
        return tuple(task.task for task in self.tasks if not task.has_demonstrations)

    @property
    def categories(self) -> dict[str, str]:
        """Category of each task."""
        return {task.task: task.category for task in self.tasks}

    def study(self) -> Study:
        """The study that runs the tasks with demonstrations.

        Raises:
            ConfigError: There is none, or settings are not allowed.
        """
        if not self.trainable:
            raise ConfigError(
                f"no task of suite {self.name} has demonstrations; give a folder with a dataset per task by --data, or "
                "'dataset' in a suite file"
            )
        return Study(
            name=self.name,
            tasks=tuple(self._study_task(task) for task in self.trainable),
            variants=(Variant(name=VARIANT),),
            recipe=self.recipe,
            set={**self._selection, **self.set},
            sft_recipe=self.sft_recipe,
            sft_policy=self.sft_policy,
            demo_set=self.demo_set,
            sft_set=self.sft_set,
            seeds=(self.seed,),
            sft_per_seed=True,
            env_step_budget=self.env_step_budget,
            marks=max(1, self.env_step_budget // self.validate_every),
            validation_episodes=self.validation_episodes,
            test_episodes=self.test_episodes,
        )

    @property
    def _selection(self) -> dict[str, Any]:
        return {"selection": "auto", "probe_env_steps": self.probe_env_steps} if self.probe_env_steps else {}

    def _study_task(self, task: SuiteTask) -> StudyTask:
        group = {"task": "", "category": task.category, "suite": ONE_POLICY}[self.sft]
        return StudyTask(
            task=task.task,
            horizon=task.horizon,
            demonstrations=0 if task.dataset else task.demonstrations,
            dataset=task.dataset,
            sft_steps=task.sft_steps,
            sft_group=group,
        )


def read_suite(name_or_file: str) -> Suite:
    """A suite by name, or from a JSON file.

    Raises:
        UnknownNameError: There is no such suite, and no such file; or a key or task of the file is not known.
        ConfigError: The file is not JSON, or a key is missing or has a value that is not allowed.
    """
    if name_or_file in SUITES:
        return builtin_suite(name_or_file)
    if name_or_file.endswith(".json") or Path(name_or_file).exists():
        return suite_from_dict(read_json(Path(name_or_file), ConfigError))
    raise UnknownNameError("suite", name_or_file, SUITES, "(or give a JSON file)")


def builtin_suite(name: str) -> Suite:
    """A suite that z1 knows."""
    tasks = tuple(_builtin_task(task, category) for task, category in SUITES[name].items())
    return Suite(name=name, tasks=tasks, probe_env_steps=PROBE_ENV_STEPS, demo_set=DEMO_SETS.get(name, {}))


def _builtin_task(task: str, category: str) -> SuiteTask:
    plan = DEMONSTRATED.get(task, TaskPlan())
    return SuiteTask(
        task=task,
        category=category,
        horizon=plan.horizon,
        sft_steps=plan.sft_steps,
        demonstrations=plan.demonstrations,
    )


def suite_from_dict(data: Any) -> Suite:
    """A suite from plain JSON values.

    Raises:
        ConfigError: A key is missing or has a value that is not allowed.
        UnknownNameError: A key or task is not known.
    """
    return record_from_dict(Suite, data, what="the suite")


def suite_to_dict(suite: Suite) -> dict[str, Any]:
    """A suite as plain JSON values, defaults included."""
    return config_to_dict(suite)


def with_datasets(suite: Suite, folder: Path) -> Suite:
    """The suite with datasets from a folder that holds one per task, named like the task: ``CloseDrawer`` or
    ``robocasa-CloseDrawer``.

    Raises:
        ConfigError: It holds none for any task.
    """
    tasks = []
    for task in suite.tasks:
        names = (task.task.split("/", 1)[1], task.task.replace("/", "-"))
        found = [folder / name for name in names if (folder / name / "meta" / "info.json").exists()]
        tasks.append(replace(task, dataset=str(found[0]), demonstrations=0) if found else task)
    if tasks == list(suite.tasks):
        raise ConfigError(
            f"{folder} holds a dataset of no task of {suite.name}; expected folders like "
            f"{folder / suite.tasks[0].task.split('/', 1)[1]}"
        )
    return _with(suite, tuple(tasks))


def with_tasks(suite: Suite, chosen: tuple[str, ...]) -> Suite:
    """The suite with some of its tasks only, in its own order.

    Raises:
        UnknownNameError: A task is not in it.
    """
    known = {task.task for task in suite.tasks}
    for name in chosen:
        if name not in known:
            raise UnknownNameError(f"task of {suite.name}", name, known)
    return _with(suite, tuple(task for task in suite.tasks if task.task in chosen))


def _with(suite: Suite, tasks: tuple[SuiteTask, ...]) -> Suite:
    """The suite with other tasks, and without settings of recordings where none is made any more."""
    records = any(task.demonstrations for task in tasks)
    return replace(suite, tasks=tasks, demo_set=suite.demo_set if records else {})
