"""Running a command line in this process."""

from __future__ import annotations

from pathlib import Path

from z1.cli import main

TASK = "metaworld/handle-press"
"""A task that experts solve in about 45 env steps, and weak policies now and then."""


def z1(*arguments: str | Path) -> int:
    """Runs a command and returns its exit code; an exception is what a user would see as a traceback."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as ended:
        return int(ended.code or 0)
