"""Records that cross a boundary between parts of z1.

Level 0: standard library and numpy only, Python 3.10 syntax, because simulator hosts import it under their own
interpreter. Array letters: B batch, G members, T chunks, C executed env steps, H horizon, A env dims, D model dims,
K denoise steps, L VLM prefix tokens, V cameras.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Split = Literal["train", "validation", "test"]

SPLIT_SEED_BASE: dict[str, int] = {"train": 0, "validation": 1_000_000_000, "test": 2_000_000_000}
"""First scene seed of each split. A split owns the 10^9 seeds from its base on, so that splits are disjoint."""

SCENES_PER_SPLIT = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Task, layout, objects and initial state, named by a seed.

    Attributes:
        task: Task id, ``simulator/name``, for example ``metaworld/window-open``.
        seed: Scene seed. The same task and seed give the same scene in every process.
        split: Which split the seed belongs to.
    """

    task: str
    seed: int
    split: Split

    @classmethod
    def of_split(cls, task: str, split: Split, index: int) -> Scene:
        """Scene number ``index`` (0-based) of a split."""
        if not 0 <= index < SCENES_PER_SPLIT:
            raise ValueError(f"scene index {index} is outside 0..{SCENES_PER_SPLIT - 1}")
        return cls(task=task, seed=SPLIT_SEED_BASE[split] + index, split=split)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimInfo:
    """What a simulator host says about itself in the handshake.

    Attributes:
        simulator: Short name, ``metaworld``.
        version: Version of the simulator package.
        renderer: GL back end in use, ``egl`` or ``osmesa``, and its renderer string.
        python: Version of the host's interpreter.
        tasks: Task names without the simulator prefix, sorted.
        cameras: Cameras that are rendered, in order (V of them).
        all_cameras: Every camera that could be asked for.
        image_size: Height and width of an image in pixels.
        action_names: One name per env action dim (A of them).
        action_low: Lower bound of each env action dim.
        action_high: Upper bound of each env action dim.
        state_names: One name per proprioceptive state dim (S of them).
        control_hz: Env steps per simulated second.
        quality: How images are rendered, ``fast`` or ``default``.
        perturbation: How they differ from the simulator's own on purpose; empty: they do not.
        model_per_scene: Whether every scene is a compiled model of its own; else a task's scenes share one.
        experts: Tasks that have a scripted expert, sorted.
        expert_noise: How much of a recording's noise each env action dim takes; empty: all of it in every one.
        stand_ins: Which of the simulator's assets are generated stand-ins; empty: none. Every result must say it.
        protocol: Which scenes make up the splits, where a benchmark's protocol decides it; else empty.
    """

    simulator: str
    version: str
    renderer: str
    python: str
    tasks: tuple[str, ...]
    cameras: tuple[str, ...]
    all_cameras: tuple[str, ...]
    image_size: int
    action_names: tuple[str, ...]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    state_names: tuple[str, ...]
    control_hz: float
    quality: str = "fast"
    perturbation: str = ""
    model_per_scene: bool = False
    experts: tuple[str, ...] = ()
    expert_noise: tuple[float, ...] = ()
    stand_ins: str = ""
    protocol: str = ""

    @property
    def action_dim(self) -> int:
        """A, the number of env action dims."""
        return len(self.action_names)

    @property
    def state_dim(self) -> int:
        """S, the number of proprioceptive state dims."""
        return len(self.state_names)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observations:
    """What the policy sees of B members at one moment.

    Attributes:
        images: uint8 ``[B, V, height, width, 3]``, RGB, the right way up, cameras in the order of ``SimInfo.cameras``.
        state: float32 ``[B, S]``, proprioception only.
        instructions: B language instructions.
    """

    images: np.ndarray
    state: np.ndarray
    instructions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.instructions)

    def told(self, instruction: str) -> Observations:
        """The same with another instruction for all; with an empty text unchanged."""
        if not instruction:
            return self
        return Observations(images=self.images, state=self.state, instructions=(instruction,) * len(self))

    def rows(self, index: np.ndarray) -> Observations:
        """The observations of some members, by integer index."""
        return Observations(
            images=self.images[index],
            state=self.state[index],
            instructions=tuple(self.instructions[int(i)] for i in index),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkOutcome:
    """What happened to B members while they executed one chunk of actions.

    Attributes:
        executed: int64 ``[B]``, env steps executed in this chunk; fewer than C when the episode ended inside it.
        success: bool ``[B]``, whether the task's success was reached at the last executed env step (the first success
            ends the episode).
        truncated: bool ``[B]``, whether the episode ended at its horizon without success.
        invalid: bool ``[B]``, whether the member was lost (host failure, diverged physics). Its other fields mean
            nothing.
        observations: Observations after the chunk, B rows. Rows of members that ended hold zeros: nothing is rendered
            for them.
        nearest: float64 ``[B]``, smallest distance in metres between gripper and the task's object after an env step of
            this chunk, infinite where the simulator does not tell; None when nothing is told. From the simulator's
            state, for diagnosis alone: no policy and no reward sees it.
    """

    executed: np.ndarray
    success: np.ndarray
    truncated: np.ndarray
    invalid: np.ndarray
    observations: Observations
    nearest: np.ndarray | None = None

    @property
    def done(self) -> np.ndarray:
        """bool ``[B]``: the member takes no further chunk."""
        return self.success | self.truncated | self.invalid
