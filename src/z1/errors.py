"""Named errors. Each message says what the thing is, what was expected, what was found and what to do.

The command line prints a ``Z1Error`` as one line and exits with code 2; any other exception is a fault of z1 itself.
Level 0: standard library only, Python 3.10 syntax.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class Z1Error(Exception):
    """Base of every error that a user can cause and mend."""


class ConfigError(Z1Error):
    """A setting has a value that is not allowed, or has no effect in the chosen combination."""


class UnknownNameError(Z1Error):
    """A name (task, recipe, camera, setting, ...) is not known; the nearest known names are suggested."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        if near:
            advice = "did you mean " + " or ".join(repr(n) for n in near) + "?"
        else:
            shown = ", ".join(known[:8]) + (f", ... ({len(known)} in all)" if len(known) > 8 else "")
            advice = f"known: {shown}"
        super().__init__(f"unknown {kind} {name!r}; {advice}" + (f" {hint}" if hint else ""))


class DatasetError(Z1Error):
    """A dataset is missing, damaged or does not fit."""


class CheckpointError(Z1Error):
    """A checkpoint is missing, damaged or does not fit."""


class RunFolderError(Z1Error):
    """A run folder exists already, is missing or cannot be written."""


class MissingExtraError(Z1Error):
    """An optional dependency is not installed; the message holds the command that installs it."""


class SimulatorError(Z1Error):
    """A simulator could not be started or answered with an error."""


class RenderError(SimulatorError):
    """No way to render (neither EGL nor OSMesa) works on this machine."""


class ProtocolError(SimulatorError):
    """Host and main process speak different protocol versions, or a message is damaged."""
