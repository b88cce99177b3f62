"""Atomic writes: a reader sees the old file or folder, or the new one, never half of it.

Level 0: standard library only.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from z1.errors import RunFolderError, Z1Error


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path`` and moves it into place when the block ends without an exception.

    Raises:
        RunFolderError: The folder cannot be written or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise RunFolderError(
            f"cannot write {path}: {_reason(error)}; free some space or choose another folder"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def atomic_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yields a temporary folder beside ``path`` and moves it into place when the block ends without an exception.

    Args:
        path: The folder to create.
        replace: Whether an existing folder is replaced; otherwise it is an error.

    Raises:
        RunFolderError: ``path`` exists and ``replace`` is false, or it cannot be written.
    """
    if path.exists() and not replace:
        raise RunFolderError(f"{path} exists already; choose another path or remove it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        temporary.chmod(0o755)
    except OSError as error:
        raise RunFolderError(
            f"cannot write {path}: {_reason(error)}; free some space or choose another folder"
        ) from error
    try:
        yield temporary
        _open_up(temporary)
        if path.exists():
            retired = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
            os.replace(path, retired / path.name)
            try:
                os.replace(temporary, path)
            except BaseException:
                os.replace(retired / path.name, path)
                raise
            finally:
                shutil.rmtree(retired, ignore_errors=True)
        else:
            os.replace(temporary, path)
    except OSError as error:
        raise RunFolderError(
            f"cannot write {path}: {_reason(error)}; free some space or choose another folder"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _open_up(folder: Path) -> None:
    """Lets others read what a library wrote for its owner alone, as safetensors does."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.stat().st_mode & 0o077:
            path.chmod(0o644)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically, indented, with a final newline. NaN and infinity are refused (ValueError)."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path, error: Callable[[str], Z1Error]) -> Any:
    """Reads JSON.

    Args:
        path: The file.
        error: Class of the error to raise, for example ``DatasetError``.

    Raises:
        Z1Error: Of the given class, when the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise error(f"{path} is missing") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as problem:
        raise error(f"{path} cannot be read as JSON: {problem}") from problem
