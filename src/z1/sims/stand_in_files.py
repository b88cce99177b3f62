"""The list of generated stand-ins that lies in an asset folder, so that they can be told from real files and removed.

Level 1: standard library only, Python 3.10 syntax: hosts read it as well.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from z1.errors import SimulatorError

MANIFEST = "z1-stand-ins.json"
_SCHEMA = "z1.stand-ins/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class StandIns:
    """What of an asset folder is generated.

    Attributes:
        generator: Version of the generator.
        files: Their paths below the folder, sorted.
    """

    generator: int
    files: tuple[str, ...]


def read_manifest(folder: Path) -> StandIns | None:
    """The stand-ins in an asset folder; None: there are none.

    Raises:
        SimulatorError: The list is damaged.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] != _SCHEMA:
            raise ValueError(f"its schema is {content['schema']!r}, expected {_SCHEMA!r}")
        files = tuple(str(name) for name in content["files"])
        for name in files:
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise ValueError(f"{name} lies outside the folder")
        return StandIns(generator=int(content["generator"]), files=files)
    except (OSError, KeyError, TypeError, ValueError) as problem:
        raise SimulatorError(f"the list of stand-ins {path} is damaged: {problem}") from problem


def manifest_content(stand_ins: StandIns) -> dict[str, object]:
    """The list as JSON."""
    return {
        "schema": _SCHEMA,
        "note": "These files are generated stand-ins, not the simulator's assets. Remove them with z1 sims stand-ins.",
        "generator": stand_ins.generator,
        "files": sorted(stand_ins.files),
    }


def remove_stand_ins(folder: Path) -> int:
    """Removes the files that the list names, and folders that become empty.

    Returns:
        How many files were removed.

    Raises:
        SimulatorError: There is no list, or it is damaged.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise SimulatorError(f"{folder} holds no list of stand-ins; nothing was removed")
    count = 0
    for name in manifest.files:
        path = folder / name
        if path.is_file():
            path.unlink()
            count += 1
        for parent in path.parents:
            if parent == folder:
                break
            with suppress(OSError):  # not empty
                parent.rmdir()
    (folder / MANIFEST).unlink()
    return count
