"""Which simulators are installed in environments of their own: one small JSON file in the user's data folder."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from z1.errors import SimulatorError
from z1.files import read_json, write_json
from z1.sims.catalogue import INSTALLATIONS

_SCHEMA = "z1.simulators/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """An installed simulator.

    Attributes:
        simulator: Short name.
        python: Interpreter of its environment.
        folder: The environment.
        source: Checkout of the simulator's source; empty: it came from packages.
        versions: Versions that the last check found, by package.
    """

    simulator: str
    python: str
    folder: str
    source: str
    versions: dict[str, str]


def home() -> Path:
    """z1's data folder: ``Z1_HOME``, or ``z1`` in the user's data folder."""
    chosen = os.environ.get("Z1_HOME")
    if chosen:
        return Path(chosen).expanduser().absolute()
    data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(data).expanduser().absolute() / "z1"


def default_folder(simulator: str) -> Path:
    """Where a simulator's environment is made unless another place is asked for."""
    return home() / "sims" / simulator


def _registry_file() -> Path:
    return home() / "simulators.json"


def registered() -> dict[str, Registered]:
    """The installed simulators, by name.

    Raises:
        SimulatorError: The registry is damaged.
    """
    path = _registry_file()
    if not path.exists():
        return {}
    content = read_json(path, SimulatorError)
    try:
        if content["schema"] != _SCHEMA:
            raise ValueError(f"its schema is {content['schema']!r}, expected {_SCHEMA!r}")
        return {row["simulator"]: Registered(**row) for row in content["simulators"]}
    except (KeyError, TypeError, ValueError) as problem:
        raise SimulatorError(
            f"the list of installed simulators, {path}, is damaged ({problem}); remove it and install again"
        ) from problem


def register(entry: Registered) -> None:
    """Adds or replaces an entry."""
    _write({**registered(), entry.simulator: entry})


def unregister(simulator: str) -> None:
    """Removes an entry."""
    _write({name: entry for name, entry in registered().items() if name != simulator})


def _write(entries: dict[str, Registered]) -> None:
    rows: list[dict[str, Any]] = [asdict(entries[name]) for name in sorted(entries)]
    write_json(_registry_file(), {"schema": _SCHEMA, "simulators": rows})


def install_command(simulator: str) -> str:
    """What a user types to install a simulator."""
    source = " --source CHECKOUT" if INSTALLATIONS[simulator].source else ""
    return f"z1 sims install {simulator}{source}"


def interpreter_of(simulator: str, python: str) -> str:
    """The interpreter that a simulator's hosts run under.

    Args:
        simulator: Short name.
        python: What the user chose; empty: the registered environment, or this interpreter for simulators that share
            it (then empty is returned).

    Raises:
        SimulatorError: The simulator needs an environment of its own and has none, or it has gone.
    """
    if python or simulator not in INSTALLATIONS:
        return python
    entry = registered().get(simulator)
    if entry is None:
        source = f", where CHECKOUT is {advice}" if (advice := INSTALLATIONS[simulator].source_advice) else ""
        raise SimulatorError(f"{simulator} is not installed; install it with: {install_command(simulator)}{source}")
    if not Path(entry.python).exists():
        raise SimulatorError(
            f"{simulator} was installed in {entry.folder}, but {entry.python} has gone; install it again with: "
            f"{install_command(simulator)}"
        )
    return entry.python
