"""Demonstrations from a simulator's scripted experts, recorded as a LeRobotDataset.

The expert's action is recorded; what is executed is that action plus noise. So the robot leaves the expert's path and
the dataset shows how to come back, while the labels stay noise-free. An episode ends at its first success; scenes that
the expert does not solve are skipped and counted.

For each task the scenes 0, 1, 2, ... of the train split are tried until enough have succeeded. What is recorded depends
on the configuration alone: not on the number of hosts, on how many episodes run at a time, or on interruptions.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import z1
from z1.config import require
from z1.data.lerobot_format import DatasetLayout
from z1.data.lerobot_writer import LeRobotWriter, refuse_existing
from z1.data.record_plan import TaskPlan
from z1.errors import ConfigError, DatasetError
from z1.files import read_json, write_json
from z1.seeding import Seeds
from z1.sims import suites
from z1.sims.pool import Member, SimPool, SimSpec
from z1.types import Scene, SimInfo

logger = logging.getLogger(__name__)

MANIFEST_SCHEMA = "z1.demonstrations/1"
LOST_MEMBER_RETRIES = 2
"""How often a scene is tried again after its host was lost; then it counts as a failure."""
BACKLOG = 4
"""Finished episodes that may wait for the encoder before the simulation waits for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoConfig:
    """``z1 demos``: record demonstrations of scripted experts."""

    task: tuple[str, ...]
    """Task ids, all of the same simulator, for example ``metaworld/window-open``."""
    out: str
    """The dataset folder to create."""
    episodes: int = 50
    """Successful episodes per task."""
    noise_std: float = 0.3
    """Standard deviation of the Gaussian noise on executed actions, in env units (actions in [-1, 1]; RoboCasa: the
    arm's six numbers)."""
    hosts: int = 2
    """Simulator processes. They share the work; the recording does not depend on their number."""
    in_flight: int = 0
    """Episodes in progress per host; the recording does not depend on it. 0: 8, or 2 where every scene is a compiled
    model of its own (RoboCasa), which takes memory."""
    cameras: tuple[str, ...] = ()
    """Cameras to record. Empty: the simulator's default pair, which policies use by default."""
    image_size: int = 64
    """Height and width of the images in pixels."""
    quality: str = ""
    """Rendering, ``fast`` or ``default``; use what the policy will see. Empty: the simulator's usual one."""
    horizon: int = 0
    """Env steps after which an episode without success has failed. 0: the simulator's own (MetaWorld 500)."""
    seed: int = 0
    """Seed of the action noise. Scenes do not depend on it."""
    lossless: bool = True
    """Whether the videos hold exactly what was rendered. Lossy ones are about a fifth of the size."""
    resume: bool = True
    """Whether an interrupted recording to the same folder is finished; otherwise it starts again."""
    overwrite: bool = False
    """Whether an existing dataset is replaced, once the new one is complete."""
    python: str = ""
    """Interpreter of the simulator processes. Empty: the simulator's installed one, or the one that runs this."""
    timeout_s: float = 120.0
    """Seconds without a sign of life after which a simulator process is restarted."""

    def __post_init__(self) -> None:
        require(len(self.task) > 0, "task", self.task, "at least one task id, for example metaworld/window-open")
        require(len(set(self.task)) == len(self.task), "task", self.task, "different task ids")
        simulators = {suites.simulator_of(task) for task in self.task}
        if len(simulators) > 1:
            raise ConfigError(
                f"tasks are of {sorted(simulators)}; they must be of one simulator, record each to its own folder"
            )
        require(bool(self.out), "out", self.out, "a folder to create")
        require(self.episodes >= 1, "episodes", self.episodes, "at least 1")
        require(0 <= self.noise_std < 10, "noise_std", self.noise_std, "from 0 up to 10 (0.3 is usual)")
        require(self.hosts >= 1, "hosts", self.hosts, "at least 1")
        require(self.in_flight >= 0, "in_flight", self.in_flight, "0 or a number of episodes")
        require(len(set(self.cameras)) == len(self.cameras), "cameras", self.cameras, "different cameras")
        require(8 <= self.image_size <= 1024, "image_size", self.image_size, "from 8 to 1024 pixels")
        require(self.quality in ("", "fast", "default"), "quality", self.quality, "'fast', 'default' or empty")
        require(self.horizon >= 0, "horizon", self.horizon, "0 or a number of env steps")
        require(self.timeout_s > 0, "timeout_s", self.timeout_s, "a positive number of seconds")

    @property
    def simulator(self) -> str:
        """Short name of the simulator."""
        return suites.simulator_of(self.task[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoProgress:
    """How far a recording is.

    Attributes:
        task: Task of the episode that ended last.
        episodes: Episodes recorded, those of an interrupted recording included.
        total: Episodes to record.
        failures: Scenes the expert did not solve.
        frames: Frames recorded since the start of this call.
    """

    task: str
    episodes: int
    total: int
    failures: int
    frames: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSummary:
    """A finished recording.

    Attributes:
        path: The dataset folder.
        episodes: Episodes in it.
        frames: Frames recorded by this call.
        resumed: Episodes taken from an interrupted recording.
        failures: Scenes the expert did not solve, by task.
        seconds: Duration of this call.
    """

    path: Path
    episodes: int
    frames: int
    resumed: int
    failures: dict[str, int]
    seconds: float


@dataclass(slots=True, kw_only=True)
class _Attempt:
    """An episode in progress."""

    plan: TaskPlan
    index: int
    member: Member
    noise: np.random.Generator
    image: np.ndarray
    state: np.ndarray
    instruction: str
    states: list[np.ndarray] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)
    images: list[np.ndarray] = field(default_factory=list)


def record_demonstrations(config: DemoConfig, on_progress: Callable[[DemoProgress], None] | None = None) -> DemoSummary:
    """Records a dataset.

    Args:
        config: What to record.
        on_progress: Called whenever an episode has ended.

    Returns:
        What was recorded.

    Raises:
        DatasetError: The dataset exists already, or an expert solves too few scenes.
        SimulatorError: The simulator cannot be started.
    """
    started = time.perf_counter()
    refuse_existing(Path(config.out), config.overwrite)
    spec = SimSpec(
        simulator=config.simulator,
        cameras=config.cameras,
        image_size=config.image_size,
        horizon=config.horizon,
        python=config.python,
        quality=config.quality,
    )
    with (
        SimPool(spec, config.hosts, timeout_s=config.timeout_s) as pool,
        open_writer(config, _with_experts(config, pool.info)) as writer,
    ):
        recorder = Recorder(config, pool, writer, on_progress)
        recorder.run()
        path = writer.finish(recorder.manifest())
    plans = recorder.plans
    return DemoSummary(
        path=path,
        episodes=sum(len(plan.solved) for plan in plans),
        frames=recorder.frames,
        resumed=recorder.resumed,
        failures={plan.task: len(plan.failed) for plan in plans},
        seconds=time.perf_counter() - started,
    )


def _with_experts(config: DemoConfig, info: SimInfo) -> SimInfo:
    """What the simulator says about itself, if it has experts for all tasks.

    Raises:
        DatasetError: A task has none.
    """
    for task in config.task:
        if suites.name_of(task) not in info.experts:
            known = ", ".join(f"{info.simulator}/{name}" for name in info.experts) or "none"
            raise DatasetError(
                f"{task} has no scripted expert, so there is nobody to record; convert a public data set, or choose a "
                f"task that has one: {known}"
            )
    return info


def open_writer(config: DemoConfig, info: SimInfo) -> LeRobotWriter:
    """The writer of a recording; unfinished work is used only if it was recorded with the same settings."""
    if info.control_hz != round(info.control_hz):
        raise DatasetError(
            f"{info.simulator} runs at {info.control_hz} Hz, a LeRobotDataset needs a whole number of frames per second"
        )
    layout = DatasetLayout(
        fps=round(info.control_hz),
        state_names=info.state_names,
        action_names=info.action_names,
        cameras=info.cameras,
        height=info.image_size,
        width=info.image_size,
        robot_type=info.simulator,
    )
    identity = {
        "tasks": list(config.task),
        "episodes": config.episodes,
        "noise_std": config.noise_std,
        "horizon": config.horizon,
        "quality": info.quality,
        "stand_ins": info.stand_ins,
        "seed": config.seed,
        "simulator": f"{info.simulator} {info.version}",
        "renderer": info.renderer,
    }
    return LeRobotWriter(
        config.out,
        layout,
        lossless=config.lossless,
        identity=identity,
        resume=config.resume,
        replace=config.overwrite,
    )


class Recorder:
    """Runs the episodes of a recording, many at a time, one env step per round.

    Attributes:
        plans: One plan per task.
        frames: Frames recorded so far by this object.
        resumed: Episodes that were there before.
    """

    def __init__(
        self,
        config: DemoConfig,
        pool: SimPool,
        writer: LeRobotWriter,
        on_progress: Callable[[DemoProgress], None] | None = None,
    ) -> None:
        self._config = config
        self._pool = pool
        self._writer = writer
        self._on_progress = on_progress
        self._seeds = Seeds(config.seed)
        self._low = np.asarray(pool.info.action_low, dtype=np.float32)
        self._high = np.asarray(pool.info.action_high, dtype=np.float32)
        share = np.asarray(pool.info.expert_noise or (1.0,) * pool.info.action_dim, dtype=np.float32)
        self._noise_std = np.float32(config.noise_std) * share
        self._stored: list[Future[None]] = []
        self.frames = 0
        self.plans = [
            TaskPlan(number=number, task=task, episodes=config.episodes) for number, task in enumerate(config.task)
        ]
        self._read_work()
        self.resumed = sum(len(plan.solved) for plan in self.plans)

    def run(self) -> None:
        """Records until every task has its episodes.

        Raises:
            DatasetError: An expert solves too few scenes.
        """
        active: list[_Attempt] = []
        in_flight = self._config.in_flight or (2 if self._pool.info.model_per_scene else 8)
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="encoder") as encoder:
            while True:
                active += self._start(in_flight * self._config.hosts - len(active))
                if not active:
                    break
                active = self._step(active, encoder)
            for future in self._stored:
                future.result()

    def manifest(self) -> dict[str, Any]:
        """What was recorded and how, for ``meta/z1_manifest.json``. Two equal recordings have equal manifests."""
        config, info = self._config, self._pool.info
        tasks = []
        for plan in self.plans:
            scenes = {
                index: Scene.of_split(plan.task, "train", index).seed
                for index in sorted(plan.solved | set(plan.failed))
            }
            tasks.append(
                {
                    "task": plan.task,
                    "instruction": suites.instruction(plan.task),
                    "attempts": len(scenes),
                    "episode_seeds": [seed for index, seed in scenes.items() if index in plan.solved],
                    "failures": [
                        {"seed": seed, "reason": plan.failed[index]}
                        for index, seed in scenes.items()
                        if index in plan.failed
                    ],
                }
            )
        return {
            "schema": MANIFEST_SCHEMA,
            "z1": z1.__version__,
            "simulator": info.simulator,
            "version": info.version,
            "renderer": info.renderer,
            "quality": info.quality,
            "stand_ins": info.stand_ins,
            "cameras": list(info.cameras),
            "image_size": info.image_size,
            "control_hz": info.control_hz,
            "horizon": config.horizon,
            "split": "train",
            "seed": config.seed,
            "noise_std": config.noise_std,
            "noise_share": list(info.expert_noise),
            "executed_action": "clip(clip(expert) + noise)",
            "recorded_action": "clip(expert)",
            "success": "first success ends the episode",
            "tasks": tasks,
        }

    def _read_work(self) -> None:
        """Takes over what an interrupted recording has done."""
        done = self._writer.keys()
        notes = {note.stem: note for note in (self._writer.work / "notes").glob("[!.]*.json")}
        for plan in self.plans:
            plan.solved |= {index for key in done if (index := plan.index_of(key)) is not None}
            for key, note in notes.items():
                if (index := plan.index_of(key)) is not None:
                    plan.failed[index] = str(read_json(note, DatasetError)["reason"])

    def _start(self, places: int) -> list[_Attempt]:
        """Starts the next scenes, tasks in order."""
        chosen: list[tuple[TaskPlan, int]] = []
        for plan in self.plans:
            while len(chosen) < places and (index := plan.next_scene()) is not None:
                chosen.append((plan, index))
        if not chosen:
            return []
        scenes = [Scene.of_split(plan.task, "train", index) for plan, index in chosen]
        members = [members[0] for members in self._pool.start(scenes, 1)]
        seen = self._pool.observe(members)
        return [
            _Attempt(
                plan=plan,
                index=index,
                member=member,
                noise=self._seeds.rng("demos", plan.task, scene.seed),
                image=seen.images[row].copy(),
                state=seen.state[row].copy(),
                instruction=seen.instructions[row],
            )
            for row, ((plan, index), scene, member) in enumerate(zip(chosen, scenes, members, strict=True))
        ]

    def _step(self, active: Sequence[_Attempt], encoder: ThreadPoolExecutor) -> list[_Attempt]:
        """One env step of all episodes; returns those that go on."""
        members = [attempt.member for attempt in active]
        expert = self._pool.expert_actions(members)
        noise = np.stack([attempt.noise.standard_normal(expert.shape[1], dtype=np.float32) for attempt in active])
        labels = np.clip(expert, self._low, self._high)
        executed = np.clip(labels + self._noise_std * noise, self._low, self._high)
        outcome = self._pool.step_chunk(members, executed[:, None])
        left = []
        for row, attempt in enumerate(active):
            attempt.states.append(attempt.state)
            attempt.actions.append(labels[row])
            attempt.images.append(attempt.image)
            attempt.state = outcome.observations.state[row].copy()
            attempt.image = outcome.observations.images[row].copy()
            if outcome.done[row]:
                self._end(attempt, bool(outcome.invalid[row]), bool(outcome.success[row]), encoder)
            else:
                left.append(attempt)
        self._pool.release([attempt.member for row, attempt in enumerate(active) if outcome.done[row]])
        return left

    def _end(self, attempt: _Attempt, invalid: bool, success: bool, encoder: ThreadPoolExecutor) -> None:
        """Books the end of an episode; a success goes to the encoder."""
        plan, index = attempt.plan, attempt.index
        plan.running.discard(index)
        key = plan.key(index)
        if invalid and plan.lost.get(index, 0) < LOST_MEMBER_RETRIES:
            plan.lost[index] = plan.lost.get(index, 0) + 1
            logger.warning("%s, scene %d: the simulator lost the episode, it is tried again", plan.task, index)
            return
        if success and not invalid:
            plan.solved.add(index)
            self.frames += len(attempt.states)
            self._stored.append(encoder.submit(self._store, attempt, key))
            self._wait_for_encoder()
        else:
            plan.failed[index] = "lost" if invalid else "horizon"
            write_json(self._writer.work / "notes" / f"{key}.json", {"reason": plan.failed[index]})
            plan.check(self._config.noise_std, self._config.horizon)
        if self._on_progress is not None:
            self._on_progress(
                DemoProgress(
                    task=plan.task,
                    episodes=sum(len(each.solved) for each in self.plans),
                    total=self._config.episodes * len(self.plans),
                    failures=sum(len(each.failed) for each in self.plans),
                    frames=self.frames,
                )
            )

    def _store(self, attempt: _Attempt, key: str) -> None:
        frames = np.stack(attempt.images)
        images = {camera: frames[:, view] for view, camera in enumerate(self._pool.info.cameras)}
        self._writer.add_episode(
            np.stack(attempt.states), np.stack(attempt.actions), images, attempt.instruction, key=key
        )

    def _wait_for_encoder(self) -> None:
        while len(self._stored) > BACKLOG:
            self._stored.pop(0).result()
