"""What ``z1 sims`` does: simulators in environments of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from z1.errors import SimulatorError
from z1.sims.catalogue import INSTALLATIONS, installation_of
from z1.sims.environments import InstallRequest, SimRow, examine, install, remove
from z1.sims.registry import registered
from z1.sims.robocasa_stand_ins import write_robocasa_stand_ins
from z1.sims.stand_in_files import StandIns, remove_stand_ins

console = Console(soft_wrap=True)

STAND_INS: dict[str, Callable[[Path], StandIns]] = {"robocasa": write_robocasa_stand_ins}
"""Generators of stand-ins by simulator; each gets the checkout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimsInstallConfig:
    """``z1 sims install NAME``: an environment of its own for a simulator; run it again to go on after a failure."""

    simulator: Annotated[str, tyro.conf.Positional]
    """Short name, for example robocasa."""
    source: str = ""
    """Checkout of the simulator's source."""
    python: str = ""
    """Interpreter to make the environment with. Empty: one of the right version is looked for."""
    folder: str = ""
    """The environment. Empty: sims/NAME in z1's data folder (Z1_HOME, else ~/.local/share/z1)."""
    assets: str = ""
    """Folder with the real assets, laid out like the checkout's; its files are linked where none are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimsNameConfig:
    """``z1 sims remove NAME``: removes the environment; source and assets stay."""

    simulator: Annotated[str, tyro.conf.Positional]
    """Short name, for example robocasa."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimsListConfig:
    """``z1 sims list``, ``z1 sims doctor``: no settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimsStandInsConfig:
    """``z1 sims stand-ins NAME``: plain generated files in place of assets that are missing. Not for results."""

    simulator: Annotated[str, tyro.conf.Positional]
    """Short name, for example robocasa."""
    source: str = ""
    """Checkout of the simulator's source. Empty: the installed one."""
    remove: bool = False
    """Remove the stand-ins instead."""


def run_install(config: SimsInstallConfig) -> None:
    """Installs and registers a simulator."""
    request = InstallRequest(
        simulator=config.simulator,
        source=Path(config.source) if config.source else None,
        python=config.python,
        folder=Path(config.folder) if config.folder else None,
        assets=Path(config.assets) if config.assets else None,
    )
    entry = install(request, lambda line: console.print(line, highlight=False, markup=False))
    versions = ", ".join(f"{name} {version}" for name, version in entry.versions.items())
    console.print(f"Installed: {entry.simulator} in {entry.folder} ({versions})", highlight=False, markup=False)
    console.print(_table(entry.simulator, examine(entry.simulator)))
    console.print(f"Next: z1 tasks; z1 check-sim {entry.simulator}/TASK", highlight=False)


def run_list() -> None:
    """Prints the simulators that can have an environment of their own, and where they are."""
    entries = registered()
    for name in sorted(INSTALLATIONS):
        place = f"{entries[name].folder} ({entries[name].python})" if name in entries else "not installed"
        console.print(f"{name:12}{place}", highlight=False, markup=False)


def run_doctor() -> int:
    """Examines the installed simulators; returns the exit code."""
    names = [name for name in sorted(INSTALLATIONS) if name in registered()]
    if not names:
        console.print("No simulator is installed in an environment of its own.", highlight=False)
    healthy = True
    for name in names:
        rows = examine(name)
        healthy &= all(row.status != "missing" for row in rows)
        console.print(_table(name, rows))
    return 0 if healthy else 1


def run_remove(config: SimsNameConfig) -> None:
    """Removes an environment."""
    console.print(f"Removed: {remove(config.simulator)}", highlight=False, markup=False)


def run_stand_ins(config: SimsStandInsConfig) -> None:
    """Writes or removes stand-ins.

    Raises:
        UnknownNameError: No such simulator.
        SimulatorError: It needs none, or there is no checkout.
    """
    recipe = installation_of(config.simulator)
    if recipe.assets is None or config.simulator not in STAND_INS:
        raise SimulatorError(f"{config.simulator} brings its assets; it needs no stand-ins")
    entry = registered().get(config.simulator)
    if not config.source and entry is None:
        raise SimulatorError(
            f"{config.simulator} is not installed; name its checkout with --source, {recipe.source_advice}"
        )
    source = Path(config.source).expanduser().absolute() if config.source else Path(entry.source if entry else "")
    folder = source / recipe.assets.folder
    if config.remove:
        console.print(f"Removed: {remove_stand_ins(folder)} stand-ins from {folder}", highlight=False, markup=False)
        return
    stand_ins = STAND_INS[config.simulator](source)
    console.print(f"Stand-ins: {len(stand_ins.files)} files in {folder}", highlight=False, markup=False)
    if stand_ins.files:
        console.print("Every result made with them says so. Never compare such scores with published ones.")


def _table(simulator: str, rows: Sequence[SimRow]) -> Table:
    table = Table(title=simulator, title_justify="left", box=None, pad_edge=False, show_header=False)
    styles = {"ok": "green", "warning": "yellow", "missing": "bold red"}
    for row in rows:
        detail = escape(row.detail) + (f"\n[cyan]→ {escape(row.fix)}[/cyan]" if row.fix else "")
        table.add_row(f"[{styles[row.status]}]{row.status}[/]", row.name, detail)
    return table
