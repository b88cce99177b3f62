"""Tests here need RoboCasa; without it they are skipped, and say why."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from z1.errors import SimulatorError
from z1.sims.registry import interpreter_of


@pytest.fixture(scope="session", autouse=True)
def interpreter() -> str:
    """The interpreter that RoboCasa is installed for."""
    try:
        return interpreter_of("robocasa", "")
    except SimulatorError as problem:
        pytest.skip(str(problem))


@pytest.fixture(scope="session")
def run_program(interpreter: str) -> Callable[..., str]:
    """Runs a program of this folder under that interpreter; returns what it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "LP_NUM_THREADS": "1"}
    environment.setdefault("MUJOCO_GL", "egl")

    def run(name: str, *arguments: object) -> str:
        command = [interpreter, str(Path(__file__).with_name(name)), *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    return run
