"""What a simulator must offer to a host, and the one place that knows which adapters exist.

Level 1: standard library and numpy only, Python 3.10 syntax.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from z1.errors import UnknownNameError
from z1.sims.recording import Recording, Replay
from z1.sims.snapshot import SimState
from z1.types import SimInfo

SIMULATORS = ("metaworld", "robocasa")
"""Short names of the simulators that have an adapter."""

QUALITIES = ("fast", "default")
"""Rendering: without shadows, reflections and multisampling, or as the simulator's authors set it."""

PERTURBATIONS = ("camera", "colours")
"""What images can differ in from the simulator's own: cameras turned, or red, green and blue exchanged."""

MIN_IMAGE_SIZE, MAX_IMAGE_SIZE = 8, 2048
"""Range of the height and width of an image, in pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSettings:
    """What the main process asks of an adapter.

    Attributes:
        simulator: Short name.
        cameras: Cameras of the policy's images, in order; empty: the adapter's default pair.
        image_size: Height and width of these images in pixels.
        horizon: Env steps of an episode; 0: the simulator's own.
        quality: Of ``QUALITIES``; empty: the simulator's own choice.
        perturbation: Of ``PERTURBATIONS``; empty: none.
        perturbation_strength: How much of it.
    """

    simulator: str
    cameras: tuple[str, ...]
    image_size: int
    horizon: int
    quality: str
    perturbation: str = ""
    perturbation_strength: float = 1.0

    @property
    def perturbation_text(self) -> str:
        """What results say about the perturbation; empty: none."""
        return f"{self.perturbation}, strength {self.perturbation_strength:g}" if self.perturbation else ""


class Diverged(Exception):
    """The physics of an episode broke down; the message says how."""


class TaskSim(Protocol):
    """One compiled task, in which any scene and any member of it can be put.

    Attributes:
        observation: float64, the simulator's own full observation of the present state; never given to a policy.
        instruction: What the policy is told in the present scene; empty: the task's sentence in ``suites``.
    """

    observation: np.ndarray
    instruction: str

    def manifest(self) -> dict[str, Any]:
        """What the present scene is made of, as JSON; empty where the seed says all."""

    def reset(self, seed: int) -> None:
        """Builds the scene of a seed. The result depends on the seed alone, not on what ran here before."""

    def capture(self) -> SimState:
        """The present state."""

    def load(self, state: SimState) -> None:
        """Puts back a state, bit-exactly.

        Raises:
            SimulatorError: The state does not fit this task or version.
        """

    def step(self, action: np.ndarray) -> bool:
        """Executes one env step.

        Args:
            action: float32 ``[A]``, in env units.

        Returns:
            Whether the task is solved now.

        Raises:
            Diverged: The physics broke down; the state is useless until the next ``load`` or ``reset``.
        """

    def object_distance(self) -> float:
        """Metres between gripper and the task's object now, for diagnosis alone; infinite where that is not known."""

    def proprioception(self) -> np.ndarray:
        """float32 ``[S]``: what the policy may know besides images."""

    def expert_action(self) -> np.ndarray:
        """float32 ``[A]``: what the scripted expert does in the present state, which it leaves unchanged."""

    def render(self, camera: str, image: np.ndarray) -> None:
        """Renders a camera, the right way up, into uint8 ``[height, width, 3]``."""


class Adapter(Protocol):
    """A simulator.

    Attributes:
        info: What the simulator says about itself.
        max_models: Compiled models that a host keeps; more only while each has living members.
    """

    info: SimInfo
    max_models: int

    def horizon(self, task: str) -> int:
        """Env steps of an episode of a task (without prefix)."""

    def task_sim(self, key: str) -> TaskSim:
        """The compiled model of a key of ``model_key``; the same object until ``drop``."""

    def drop(self, key: str) -> None:
        """Frees a compiled model."""

    def replay(self, recording: Recording, frames: Sequence[int]) -> Replay:
        """Opens a recorded demonstration and tells what happens at some of its frames.

        Raises:
            SimulatorError: It cannot be opened here, or this simulator has no recordings.
        """

    def close(self) -> None:
        """Frees rendering contexts."""


def model_key(info: SimInfo, task: str, seed: int) -> str:
    """Names the compiled model that a scene runs in; scenes of one name share it.

    Args:
        info: What the simulator says about itself.
        task: Task name without prefix.
        seed: Scene seed.
    """
    return f"{task}:{seed}" if info.model_per_scene else task


def scene_of_key(key: str) -> tuple[str, int]:
    """Task and seed of a key, for simulators with a model per scene."""
    task, seed = key.rsplit(":", 1)
    return task, int(seed)


def make_adapter(settings: AdapterSettings) -> Adapter:
    """The adapter of a simulator.

    Raises:
        UnknownNameError: No such simulator or camera.
        SimulatorError: The simulator is not installed under this interpreter.
        RenderError: The chosen GL back end cannot render.
    """
    if settings.simulator == "metaworld":
        from z1.sims.metaworld import MetaWorld

        return MetaWorld(settings)
    if settings.simulator == "robocasa":
        from z1.sims.robocasa import RoboCasa

        return RoboCasa(settings)
    raise UnknownNameError("simulator", settings.simulator, SIMULATORS)
