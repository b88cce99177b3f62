"""What commands share: the console, progress bars, opening policies and simulators."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from z1.config import SimConfig
from z1.errors import CheckpointError, ConfigError
from z1.policy.checkpoints.load import open_checkpoint
from z1.policy.checkpoints.locate import HUB, has_weights
from z1.policy.policy import Policy
from z1.sims.pool import SimPool, SimSpec
from z1.sims.suites import simulator_of
from z1.types import SimInfo

console = Console()

SMALL_WIDTH = 512
"""VLM width below which a policy counts as small."""

LINE_EVERY_S = 30.0
"""Seconds between two lines of progress where there is no terminal."""


class ProgressLines(Progress):
    """A progress display that writes a line now and then where it can draw no bar, so that a log says how far it is.

    Args:
        columns: As for ``Progress``.
        line_every_s: Seconds between two lines.
        settings: As for ``Progress``.
    """

    def __init__(self, *columns: ProgressColumn, line_every_s: float, **settings: Any) -> None:
        super().__init__(*columns, **settings)
        self._line_every_s = line_every_s
        self._told_s = 0.0

    def update(self, task_id: TaskID, **fields: Any) -> None:
        """See ``Progress.update``."""
        super().update(task_id, **fields)
        task = self._tasks[task_id]
        elapsed = task.elapsed or 0.0
        if self.console.is_terminal or elapsed - self._told_s < self._line_every_s:
            return
        self._told_s = elapsed
        total = "" if task.total is None else f"/{task.total:.0f}"
        line = f"{task.description} {task.completed:.0f}{total} after {elapsed:.0f} s"
        self.console.print(Text(f"{line}: {note}" if (note := task.fields["note"]) else line), soft_wrap=True)


@contextmanager
def progress_bar(description: str, total: int | None) -> Iterator[tuple[Progress, TaskID]]:
    """A progress bar with counts, elapsed and remaining time; lines where there is no terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}"),
    )
    with ProgressLines(*columns, console=console, line_every_s=LINE_EVERY_S) as progress:
        yield progress, progress.add_task(description, total=total, note="")


def pick_device(name: str) -> torch.device:
    """The device that a setting names; ``auto`` is the first GPU, or the CPU.

    Raises:
        ConfigError: The device is unknown or not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise ConfigError(f"device is {name!r}; it must be 'cpu', 'cuda' or 'auto'")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is 'cuda', but torch finds no GPU; choose --device cpu, or run z1 doctor")
    return torch.device(name)


def policy_folder(path: str) -> Path:
    """The policy folder that a path means: itself, or ``policy/`` inside a run folder.

    Raises:
        CheckpointError: There is none.
    """
    folder = Path(path)
    for candidate in (folder / "policy", folder):
        if has_weights(candidate):
            return candidate
    if not folder.exists():
        raise CheckpointError(f"policy {path} does not exist; give a run folder of z1 sft or z1 rl, or a policy folder")
    if (folder / "metrics.jsonl").exists():
        raise CheckpointError(
            f"run {path} has not finished and holds no policy yet; resume it with --resume, "
            f"or use {path}/checkpoints/last/policy"
        )
    raise CheckpointError(
        f"{path} holds no policy: model.safetensors is missing; give a run folder of z1 sft or z1 rl, "
        "or a policy folder"
    )


def policy_place(path: str) -> str | Path:
    """What ``--policy`` means: a name on the Hugging Face hub (``hf:owner/name``), or ``policy_folder``.

    Raises:
        CheckpointError: There is no such folder.
    """
    return path if path.startswith(HUB) else policy_folder(path)


def recipe_for_policy(path: str) -> str:
    """The name of the RL recipe made for a policy's size: ``tiny`` for a narrow VLM, else ``paper``.

    Args:
        path: What ``--policy`` says.

    Raises:
        CheckpointError: There is no policy, or it is damaged.
    """
    return "tiny" if open_checkpoint(policy_place(path)).sizes.vlm_width < SMALL_WIDTH else "paper"


def open_pool(policy: Policy, task: str, sim: SimConfig) -> SimPool:
    """Simulators that render what a policy sees.

    Raises:
        Z1Error: Unknown task or camera, missing simulator, or a task whose layout does not fit the policy.
    """
    spec = SimSpec(
        simulator=simulator_of(task),
        cameras=policy.processor.cameras,
        image_size=policy.config.image_size,
        horizon=sim.horizon,
        python=sim.python,
        quality=sim.quality or policy.processor.quality,
        perturbation=sim.perturbation,
        perturbation_strength=sim.perturbation_strength,
    )
    pool = SimPool(spec, sim.hosts, timeout_s=sim.timeout_s)
    try:
        check_fit(policy, pool.info)
    except ConfigError:
        pool.close()
        raise
    return pool


def check_fit(policy: Policy, info: SimInfo) -> None:
    """Refuses a policy whose state or action width is not the simulator's.

    Raises:
        ConfigError: They differ.
    """
    for what, have, want in (
        ("state dims", policy.processor.state_dim, info.state_dim),
        ("action dims", policy.processor.action_dim, info.action_dim),
    ):
        if have != want:
            raise ConfigError(
                f"the policy has {have} {what}, but {info.simulator} has {want}; "
                f"choose a policy that was trained on {info.simulator}"
            )


def simulator_record(info: SimInfo) -> dict[str, Any]:
    """What a result file says about the simulator."""
    return {
        "simulator": info.simulator,
        "simulator_version": info.version,
        "renderer": info.renderer,
        "cameras": list(info.cameras),
        "image_size": info.image_size,
        "quality": info.quality,
        **({"perturbation": info.perturbation} if info.perturbation else {}),
        **({"scenes": info.protocol} if info.protocol else {}),
        **({"stand_ins": info.stand_ins} if info.stand_ins else {}),
    }
