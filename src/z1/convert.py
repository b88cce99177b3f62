"""Checkpoints on the command line: ``z1 convert``, ``z1 inspect``, and the policies that other commands start from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from z1.errors import RunFolderError
from z1.policy.checkpoints.inspect import Report, inspect_checkpoint
from z1.policy.checkpoints.load import load_policy
from z1.policy.checkpoints.save import differences, save_policy
from z1.policy.checkpoints.settings import CheckpointOverrides
from z1.policy.policy import Policy
from z1.policy.tensor_files import OnBytes

console = Console()


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertConfig:
    """``z1 convert SRC DST``: a policy of z1, LeRobot or openpi in another layout, with what it does not say added."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]
    """Policy or run folder of z1, LeRobot policy directory, openpi PyTorch directory, or hf:owner/name[@revision]."""
    target: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """Folder to create."""
    format: Literal["z1", "lerobot", "openpi"] = "z1"
    """Layout to write."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the matrices; float32 keeps every weight exactly."""
    overwrite: bool = False
    """Replace DST if it exists."""
    settings: Annotated[CheckpointOverrides, tyro.conf.arg(name="")] = field(default_factory=CheckpointOverrides)
    """What SRC does not say, or what shall be otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectConfig:
    """``z1 inspect CKPT``: what a checkpoint of z1, LeRobot or openpi holds, what it says and what is unknown."""

    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CKPT")]
    """Policy or run folder of z1, LeRobot policy directory, openpi PyTorch directory, or hf:owner/name[@revision]."""
    settings: Annotated[CheckpointOverrides, tyro.conf.arg(name="")] = field(default_factory=CheckpointOverrides)
    """What it does not say, or what shall be otherwise."""


@contextmanager
def bytes_bar(description: str) -> Iterator[OnBytes]:
    """A progress bar in bytes, which disappears when it is done."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def open_policy(
    path: str | Path, *, device: torch.device | str = "cpu", dtype: Literal["float32", "bfloat16"] = "float32"
) -> Policy:
    """A policy that a command starts from, with a progress bar.

    Raises:
        Z1Error: See ``load_policy``; what the checkpoint does not say has to be added by ``z1 convert`` before.
    """
    with bytes_bar(f"reading {path}") as on_bytes:
        return load_policy(path, device=device, dtype=dtype, on_bytes=on_bytes)


def run_convert(config: ConvertConfig) -> Path:
    """``z1 convert``: reads a checkpoint and writes it in another layout.

    Returns:
        The new folder.

    Raises:
        RunFolderError: It exists already.
    """
    target = Path(config.target)
    if target.exists() and not config.overwrite:
        raise RunFolderError(f"{target} exists already; choose another folder, or pass --overwrite")
    with bytes_bar("reading") as on_bytes:
        policy = load_policy(config.source, overrides=config.settings, dtype=config.dtype, on_bytes=on_bytes)
    with bytes_bar("writing") as on_bytes:
        save_policy(policy, target, config.format, replace=config.overwrite, on_bytes=on_bytes)
    size = f"{policy.parameter_count / 1e6:,.2f} M parameters"
    console.print(f"Policy: {target} ({config.format}, {size})", soft_wrap=True, markup=False)
    for note in differences(policy, config.format):
        console.print(f"Note: {note}", soft_wrap=True, markup=False)
    return target


def run_inspect(config: InspectConfig) -> bool:
    """``z1 inspect``: two tables about a checkpoint.

    Returns:
        Whether its tensors are those of a pi0.5.
    """
    report = inspect_checkpoint(config.checkpoint, config.settings)
    console.print(f"{report.folder}: {report.format} format", soft_wrap=True, markup=False)
    console.print(parts_table(report))
    console.print(settings_table(report))
    if report.misfit:
        console.print(report.misfit, style="red", soft_wrap=True, markup=False)
    if report.unknown:
        console.print(f"{report.unknown} settings are unknown; z1 convert takes the flags above and writes them down.")
    return not report.misfit


def parts_table(report: Report) -> Table:
    """The network's parts with their sizes."""
    table = Table("part", "tensors", "parameters", "MB", "dtypes", title="Weights", title_justify="left")
    for column in table.columns[1:4]:
        column.justify = "right"
    for part in report.parts:
        table.add_row(
            part.name, str(part.tensors), f"{part.parameters:,}", f"{part.nbytes / 1e6:,.1f}", ", ".join(part.dtypes)
        )
    table.add_section()
    table.add_row(
        "all",
        str(sum(part.tensors for part in report.parts)),
        f"{sum(part.parameters for part in report.parts):,}",
        f"{sum(part.nbytes for part in report.parts) / 1e6:,.1f}",
    )
    return table


def settings_table(report: Report) -> Table:
    """The settings with their origins."""
    table = Table(title="Settings", title_justify="left")
    for name in ("setting", "value", "from"):
        table.add_column(name, overflow="fold")
    for words, value, origin in report.settings:
        table.add_row(words, value, origin or "nowhere", style="" if origin else "yellow")
    return table
