"""RoboCasa v0.2 (PandaOmron, 24 single-stage tasks): the adapter that runs inside a host.

Every scene is a model of its own: a whole kitchen, compiled in seconds. A group's members share it. Rendering goes
through z1's own GL context, never through robosuite's: that one is not made current before it draws, so that two
kitchens in one process would show each other's pictures. At quality ``default`` the images are robosuite's, bit by bit.

Source: RoboCasa v0.2, robosuite 1.5.1, MuJoCo 3.2.6.
Level 1: standard library, numpy and RoboCasa only, Python 3.10 syntax.
"""

from __future__ import annotations

import gc
import logging
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from z1.errors import RenderError, SimulatorError, UnknownNameError
from z1.sims.adapter import AdapterSettings, scene_of_key
from z1.sims.recording import Recording, Replay
from z1.sims.robocasa_experts.registry import EXPERTS
from z1.sims.robocasa_layout import (
    ACTION_DIM,
    ACTION_NAMES,
    ALL_CAMERAS,
    CAMERAS,
    CONTROL_HZ,
    EXPERT_NOISE,
    STATE_NAMES,
)
from z1.sims.robocasa_tasks import PROTOCOL, TASKS
from z1.sims.stand_in_files import read_manifest
from z1.types import SimInfo

SPARE_ENVS = 1
"""Environments kept for the next scene of their task when a scene is dropped; building into one saves seconds."""


@dataclass(frozen=True, slots=True)
class Modules:
    """The modules of the simulator."""

    mujoco: Any
    robosuite: Any
    robocasa: Any


def _import_simulator() -> Modules:
    """Imports RoboCasa, quietly.

    Raises:
        SimulatorError: It is not installed under this interpreter.
        RenderError: MuJoCo cannot load its GL back end.
    """
    advice = "install it with: z1 sims install robocasa --source CHECKOUT"
    try:
        import mujoco
    except ModuleNotFoundError as problem:
        raise SimulatorError(
            f"the interpreter {sys.executable} cannot import RoboCasa: {problem}; {advice}"
        ) from problem
    except Exception as problem:  # importing mujoco loads the GL libraries, whose wrappers raise whatever they like
        raise RenderError(f"MuJoCo cannot load its GL back end: {type(problem).__name__}: {problem}") from problem
    try:
        import robosuite
        from robosuite.utils.log_utils import ROBOSUITE_DEFAULT_LOGGER

        ROBOSUITE_DEFAULT_LOGGER.setLevel(logging.ERROR)
        import robocasa
    except (ImportError, AssertionError) as problem:  # RoboCasa asserts the versions of what it imports
        raise SimulatorError(
            f"the interpreter {sys.executable} cannot import RoboCasa: {problem}; {advice}"
        ) from problem
    return Modules(mujoco, robosuite, robocasa)


class RoboCasa:
    """The 24 tasks; a compiled kitchen for every scene that is asked for.

    Attributes:
        info: What RoboCasa says about itself.
        max_models: Kitchens that are kept without living members.
    """

    max_models = 1

    def __init__(self, settings: AdapterSettings) -> None:
        """Loads the simulator and its GL context.

        Raises:
            SimulatorError: RoboCasa is not installed here, or its assets are missing.
            RenderError: The GL back end does not work.
            UnknownNameError: No such camera.
        """
        for camera in settings.cameras:
            if camera not in ALL_CAMERAS:
                raise UnknownNameError("RoboCasa camera", camera, ALL_CAMERAS)
        self._modules = _import_simulator()
        from z1.sims.rendering import GlContext

        self._modules.mujoco.set_mju_user_warning(_print_warning)
        self._settings = settings = replace(settings, quality=settings.quality or "default")
        assets = Path(self._modules.robocasa.models.assets_root)
        self._context = GlContext()
        self._scenes: dict[str, Any] = {}
        self._spares: list[tuple[str, Any]] = []
        self._for_recordings: tuple[str, Any] | None = None
        self.info = SimInfo(
            simulator="robocasa",
            version=f"{self._modules.robocasa.__version__} (robosuite {self._modules.robosuite.__version__}, "
            f"mujoco {self._modules.mujoco.__version__})",
            renderer=self._context.description,
            python=platform.python_version(),
            tasks=tuple(sorted(TASKS)),
            cameras=settings.cameras or CAMERAS,
            all_cameras=ALL_CAMERAS,
            image_size=settings.image_size,
            action_names=ACTION_NAMES,
            action_low=(-1.0,) * ACTION_DIM,
            action_high=(1.0,) * ACTION_DIM,
            state_names=STATE_NAMES,
            control_hz=CONTROL_HZ,
            quality=settings.quality,
            perturbation=settings.perturbation_text,
            model_per_scene=True,
            experts=tuple(sorted(EXPERTS)),
            expert_noise=EXPERT_NOISE,
            stand_ins=_stand_ins(assets),
            protocol=PROTOCOL,
        )

    def horizon(self, task: str) -> int:
        """Env steps of an episode of a task."""
        if task not in TASKS:
            raise UnknownNameError("RoboCasa task", task, TASKS)
        return self._settings.horizon or TASKS[task].horizon

    def task_sim(self, key: str) -> Any:
        """The kitchen of a scene; the same object until ``drop``."""
        from z1.sims.robocasa_scene import RoboCasaScene

        if key not in self._scenes:
            task, seed = scene_of_key(key)
            if task not in TASKS:
                raise UnknownNameError("RoboCasa task", task, TASKS)
            spare = next((entry for entry in self._spares if entry[0] == task), None)
            if spare is not None:
                self._spares.remove(spare)
            env = spare[1] if spare is not None else None
            self._scenes[key] = RoboCasaScene(self._modules, task, seed, env, self._settings)
        return self._scenes[key]

    def drop(self, key: str) -> None:
        """Frees a scene; its environment may serve the next one."""
        scene = self._scenes.pop(key)
        self._spares.append((scene.task, scene.release()))
        while len(self._spares) > SPARE_ENVS:
            self._spares.pop(0)[1].close()
        gc.collect()  # environments are full of cycles and hold much memory

    def replay(self, recording: Recording, frames: Sequence[int]) -> Replay:
        """Opens a recorded demonstration and tells what happens at some of its frames.

        One environment is kept for the recordings of a task: scenes are not built in it again, since a recording
        leaves it with parts of its own.

        Raises:
            SimulatorError: It cannot be opened here.
            UnknownNameError: No such task.
        """
        from z1.sims.robocasa_recorded import RecordedScene
        from z1.sims.robocasa_scene import make_env

        if recording.task not in TASKS:
            raise UnknownNameError("RoboCasa task", recording.task, TASKS)
        kept, self._for_recordings = self._for_recordings, None
        if kept is not None and kept[0] != recording.task:
            kept[1].close()
            kept = None
            gc.collect()  # see drop
        env = kept[1] if kept is not None else make_env(self._modules, recording.task)
        replay = RecordedScene(self._modules, env, recording).replay(frames)
        self._for_recordings = (recording.task, env)
        return replay

    def close(self) -> None:
        """Frees all scenes and the rendering context."""
        for key in list(self._scenes):
            self.drop(key)
        if self._for_recordings is not None:
            self._for_recordings[1].close()
            self._for_recordings = None
        while self._spares:
            self._spares.pop()[1].close()
        self._context.close()


def _print_warning(text: str) -> None:
    """Takes MuJoCo's warnings to the host's log; by itself MuJoCo appends them to a file in the working folder."""
    print(f"MuJoCo: {text}", file=sys.stderr)


def _stand_ins(assets: Path) -> str:
    """What a result must say about the assets; empty: they are real.

    Raises:
        SimulatorError: There are none.
    """
    if not any((assets / "objects" / "objaverse").glob("*/*/model.xml")):
        raise SimulatorError(
            f"RoboCasa's assets are missing in {assets}; link the real ones with z1 sims install robocasa --source "
            "CHECKOUT --assets FOLDER, or generate stand-ins with z1 sims stand-ins robocasa"
        )
    manifest = read_manifest(assets)
    if manifest is None:
        return ""
    return (
        f"{len(manifest.files)} of RoboCasa's meshes, textures and objects are generated stand-ins "
        f"(version {manifest.generator}): not comparable with any published score"
    )
