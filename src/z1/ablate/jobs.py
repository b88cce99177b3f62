"""The jobs of a study: what they are, their order, where their files lie, and which of them are finished."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from z1.ablate.overrides import demo_config, run_config, sft_config
from z1.ablate.study import Study, StudyTask, Variant
from z1.commands import policy_folder
from z1.config import ActingConfig, RlConfig
from z1.errors import ConfigError
from z1.policy.config import PolicyConfig
from z1.policy.policy import read_config
from z1.sims.suites import simulator_of
from z1.train.run_folder import RunFolder

SFT_STEPS_PER_S = 3.0
"""Optimizer steps per second of the tiny policy's SFT on one core (benchmarks/README.md), for estimates."""

USUAL_RATES = {"metaworld": 600.0, "robocasa": 40.0}
"""Env steps per second of the tiny policy's RL on one core, by simulator (benchmarks/README.md), for estimates."""

STANDS = "model.safetensors"
"""File of a policy folder that is there once the policy is complete."""

DEMO_ENV_STEPS = 200
"""Env steps of a demonstration, failed scenes included, for estimates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedSft:
    """Makes the demonstrations of several tasks and one SFT policy of all of them.

    Attributes:
        group: Name that the tasks have in common.
        tasks: The tasks.
        seed: As in ``Preparation``.
    """

    group: str
    tasks: tuple[StudyTask, ...]
    seed: int | None

    @property
    def name(self) -> str:
        """Name of the job."""
        return f"sft {self.group}" + ("" if self.seed is None else f" seed {self.seed}")

    @property
    def after(self) -> str:
        """Name of the job that must be finished first: none."""
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """Makes the SFT policy of a task, if it has one of its own, and evaluates it on the test scenes.

    Attributes:
        task: The task.
        seed: Seed of demonstrations and SFT; None: one policy for all seeds, made with seed 0.
    """

    task: StudyTask
    seed: int | None

    @property
    def name(self) -> str:
        """Name of the job."""
        return f"prepare {self.task.task}" + ("" if self.seed is None else f" seed {self.seed}")

    @property
    def after(self) -> str:
        """Name of the job that must be finished first: the one that makes a shared policy, or none."""
        group = self.task.sft_group
        return SharedSft(group=group, tasks=(), seed=self.seed).name if group else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Trains a variant on a task with a seed and evaluates the result on the test scenes.

    Attributes:
        task: The task.
        variant: The variant.
        seed: Run seed.
        after: Name of the preparation that must be finished first.
    """

    task: StudyTask
    variant: Variant
    seed: int
    after: str

    @property
    def name(self) -> str:
        """Name of the job."""
        return f"{self.task.task} {self.variant.name} seed {self.seed}"


Job = SharedSft | Preparation | Run


def jobs_of(study: Study) -> list[Job]:
    """Every job of a study in the order in which they are begun.

    Seeds come one after the other, so that every variant soon has a first result on every task; within a seed the
    variants of a task stand together.
    """
    return list(_in_order(study))


def _in_order(study: Study) -> Iterator[Job]:
    for number, seed in enumerate(study.seeds):
        own = seed if study.sft_per_seed else None
        if number == 0 or study.sft_per_seed:
            for group in dict.fromkeys(task.sft_group for task in study.tasks if task.sft_group):
                yield SharedSft(group=group, tasks=tuple(t for t in study.tasks if t.sft_group == group), seed=own)
            for task in study.tasks:
                yield Preparation(task=task, seed=own)
        for task in study.tasks:
            for variant in study.variants:
                yield Run(task=task, variant=variant, seed=seed, after=Preparation(task=task, seed=own).name)


@dataclass(frozen=True, slots=True)
class StudyFolder:
    """The folder of a study on disk.

    Attributes:
        path: The folder. It holds study.json, tasks/ (demonstrations, SFT runs and evaluations), runs/ (RL runs), logs/
            and, once something is finished, results.json, table.md and figure.png.
    """

    path: Path

    @property
    def study_path(self) -> Path:
        """study.json."""
        return self.path / "study.json"

    @property
    def results_path(self) -> Path:
        """results.json."""
        return self.path / "results.json"

    @property
    def table_path(self) -> Path:
        """table.md."""
        return self.path / "table.md"

    @property
    def figure_path(self) -> Path:
        """figure.png."""
        return self.path / "figure.png"

    @property
    def lock_path(self) -> Path:
        """File that is locked while jobs run."""
        return self.path / ".lock"

    def preparation(self, task: StudyTask, seed: int | None) -> Path:
        """Folder of a task's demonstrations, SFT run and evaluations."""
        place = self.path / "tasks" / folder_name(task.task)
        return place if seed is None else place / f"seed-{seed}"

    def policy(self, task: StudyTask, seed: int | None) -> str:
        """Folder of the SFT policy: the one that the task names, or the study's own SFT run."""
        if task.sft_group:
            return str(self.shared_sft(task.sft_group, seed))
        return task.policy or str(self.preparation(task, seed) / "sft")

    def shared_sft(self, group: str, seed: int | None) -> Path:
        """Run folder of an SFT policy of several tasks."""
        place = self.path / "shared" / folder_name(group)
        return place if seed is None else place / f"seed-{seed}"

    def dataset(self, task: StudyTask, seed: int | None) -> Path:
        """Demonstrations of a task: the ones that it names, or the study's own."""
        return Path(task.dataset) if task.dataset else self.preparation(task, seed) / "demonstrations"

    def sft_evaluation(self, task: StudyTask, seed: int | None, acting: ActingConfig) -> Path:
        """The SFT policy's evaluation.json under the acting settings of some variants."""
        name = f"evaluation-{acting.denoise_steps}-denoise-steps-chunks-of-{acting.chunk_length}.json"
        return self.preparation(task, seed) / name

    def run(self, task: StudyTask, variant: Variant, seed: int) -> Path:
        """The run folder of an RL run."""
        return self.path / "runs" / folder_name(task.task) / variant.name / f"seed-{seed}"

    def evaluation(self, run: Run) -> Path:
        """The evaluation.json of an RL run, which holds the SFT policy's episodes too."""
        return self.run(run.task, run.variant, run.seed) / "evaluation.json"

    def goes_on(self, study: Study, run: Run) -> bool:
        """Whether an RL run has ended at a smaller budget than the study now has."""
        folder = RunFolder(self.run(run.task, run.variant, run.seed))
        ended = (folder.policy_path / STANDS).exists()
        return ended and folder.config["env_step_budget"] < study.env_step_budget

    def log(self, job: Job) -> Path:
        """What a job prints."""
        return self.path / "logs" / (folder_name(job.name) + ".log")

    def config(self, study: Study, run: Run) -> RlConfig:
        """The config of an RL run."""
        own = run.seed if study.sft_per_seed else None
        return run_config(
            study,
            run.task,
            run.variant,
            run.seed,
            policy=self.policy(run.task, own),
            out=str(self.run(run.task, run.variant, run.seed)),
        )

    def is_finished(self, study: Study, job: Job) -> bool:
        """Whether the job's last file is there, of a run with the study's budget."""
        if isinstance(job, Run):
            return self.evaluation(job).exists() and not self.goes_on(study, job)
        if isinstance(job, SharedSft):
            return (self.shared_sft(job.group, job.seed) / "policy" / STANDS).exists()
        return all(
            self.sft_evaluation(job.task, job.seed, acting).exists() for acting in actings(self, study, job.task)
        )


def folder_name(name: str) -> str:
    """A task id or job name as the name of a file or folder."""
    return name.replace("/", "-").replace(" ", "-")


def actings(folder: StudyFolder, study: Study, task: StudyTask) -> list[ActingConfig]:
    """The different acting settings of a study's variants, under each of which the SFT policy is evaluated."""
    seed = study.seeds[0]
    configs = [
        run_config(study, task, variant, seed, policy="", out=str(folder.run(task, variant, seed)))
        for variant in study.variants
    ]
    return list(dict.fromkeys(config.acting for config in configs))


def check(study: Study, folder: StudyFolder) -> None:
    """Builds the config of every recording, SFT run and RL run, and looks for the policies that tasks name.

    Raises:
        Z1Error: Settings are not allowed, a policy is missing, or predicts fewer env steps than a chunk has.
    """
    for task in study.tasks:
        if task.demonstrations:
            demo_config(study, task, 0, out=str(folder.dataset(task, None)))
        if not task.policy:
            sft_config(study, (task,), 0, datasets=(str(folder.dataset(task, None)),), out=folder.policy(task, None))
        if not task.policy and (study.sft_policy or study.sft_recipe != "tiny"):
            continue  # a policy whose horizon only SFT decides; RL checks it
        sizes = read_config(policy_folder(task.policy)) if task.policy else PolicyConfig.tiny()
        for variant in study.variants:
            run = Run(task=task, variant=variant, seed=study.seeds[0], after="")
            length = folder.config(study, run).acting.chunk_length
            if length > sizes.horizon:
                raise ConfigError(
                    f"variant {variant.name!r} on {task.task}: acting.chunk_length is {length}, "
                    f"but the policy predicts {sizes.horizon} env steps; choose at most {sizes.horizon}"
                )


def env_steps(study: Study, folder: StudyFolder, job: Job) -> int:
    """Env steps of a job at most: training, validations and tests whose every episode runs to the horizon."""
    if isinstance(job, SharedSft):
        return sum(task.demonstrations for task in job.tasks) * DEMO_ENV_STEPS
    test = study.test_episodes * job.task.horizon
    if isinstance(job, Run):
        validations = (study.marks + 1) * study.validation_episodes * job.task.horizon
        return study.env_step_budget + validations + test
    recorded = 0 if job.task.sft_group else job.task.demonstrations
    return recorded * DEMO_ENV_STEPS + test * len(actings(folder, study, job.task))


def estimated_seconds(study: Study, folder: StudyFolder, job: Job, rate: float) -> float:
    """Seconds of a job on one core.

    Args:
        study: The study.
        folder: Its folder.
        job: The job.
        rate: Env steps per second; 0: the simulator's usual rate.
    """
    return env_steps(study, folder, job) / (rate or usual_rate(job)) + sft_steps(job) / SFT_STEPS_PER_S


def usual_rate(job: Job) -> float:
    """Env steps per second and core of a job's simulator: that of the slowest, where there are several."""
    tasks = job.tasks if isinstance(job, SharedSft) else (job.task,)
    return min(USUAL_RATES[simulator_of(task.task)] for task in tasks)


def sft_steps(job: Job) -> int:
    """Optimizer steps of SFT of a job."""
    if isinstance(job, SharedSft):
        return sum(task.sft_steps for task in job.tasks)
    return job.task.sft_steps if isinstance(job, Preparation) and not job.task.sft_group else 0
