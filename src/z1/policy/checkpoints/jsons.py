"""Reading values of other programs' JSON files with a clear message about each that is not what it should be."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from z1.errors import CheckpointError
from z1.files import read_json

Value = TypeVar("Value")

_WORDS: dict[type, str] = {int: "an integer", str: "a string", bool: "true or false", dict: "an object", list: "a list"}


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        CheckpointError: It is missing, cannot be read, or holds something else.
    """
    value = read_json(path, CheckpointError)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected an object, got {type(value).__name__}")
    return value


def typed(value: dict[str, Any], key: str, kind: type[Value], source: str) -> Value | None:
    """A value of an object; None when it is absent or null.

    Args:
        value: The object.
        key: Its key.
        kind: What it must be.
        source: Where the object is from, for the message.

    Raises:
        CheckpointError: It is of another type.
    """
    found = value.get(key)
    if found is None:
        return None
    if not isinstance(found, kind) or (kind is int and isinstance(found, bool)):
        raise CheckpointError(f"{source}: {key} is {found!r}; expected {_WORDS[kind]}")
    return found


def objects(value: dict[str, Any], key: str, source: str) -> list[dict[str, Any]]:
    """A list of objects; empty when it is absent.

    Raises:
        CheckpointError: It is something else.
    """
    found = typed(value, key, list, source) or []
    if not all(isinstance(item, dict) for item in found):
        raise CheckpointError(f"{source}: {key} must be a list of objects")
    return found


def inner_file(folder: Path, name: str, source: str) -> Path:
    """A file or folder that a JSON file names, which must lie within the checkpoint.

    Raises:
        CheckpointError: It lies elsewhere.
    """
    path = folder / name
    if not name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise CheckpointError(f"{source} names {name!r}; expected a path within the checkpoint")
    return path
