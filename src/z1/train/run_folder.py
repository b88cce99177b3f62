"""The folder of one run: its settings, its surroundings, and where every file of it lies."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import z1
from z1 import machine
from z1.errors import RunFolderError
from z1.files import read_json, write_json

SCHEMA = "z1.run/1"
SELECTION_SCHEMA = "z1.selection/1"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A run folder on disk.

    Attributes:
        path: The folder. It holds config.json, environment.json, metrics.jsonl, checkpoints/last and checkpoints/best,
            policy/ (the result), selection.json, probes/, evaluation.json, videos/, tensorboard/ and report.html, each
            once it exists.
    """

    path: Path

    @classmethod
    def create(
        cls, path: Path, config: Mapping[str, Any], kind: str, *, environment: Mapping[str, Any] | None = None
    ) -> RunFolder:
        """Makes a new run folder with config.json and environment.json.

        Args:
            path: The folder; it may exist if it is empty.
            config: Settings of the run, as plain JSON values.
            kind: The command that runs, for example ``rl`` or ``sft``.
            environment: Further entries of environment.json, for example about the simulator.

        Raises:
            RunFolderError: The folder holds something already, or cannot be written.
        """
        _require_free(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(f"cannot create {path}: {error.strerror}; choose another --out") from error
        run = cls(path)
        write_json(run.environment_path, {**describe_environment(), **(environment or {}), "created": _now()})
        run._write_settings(kind, config)
        return run

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run folder, to resume it or to report on it.

        Raises:
            RunFolderError: There is no such folder, or it is not a run folder.
        """
        if not path.is_dir():
            raise RunFolderError(f"run folder {path} does not exist; check the path")
        run = cls(path)
        if not run.config_path.is_file():
            raise RunFolderError(f"{path} is not a run folder: it has no config.json; give the folder of --out")
        schema = run._settings().get("schema")
        if schema != SCHEMA:
            raise RunFolderError(
                f"{run.config_path} has schema {schema!r}, expected {SCHEMA!r}; use the z1 version that wrote it"
            )
        return run

    @property
    def config(self) -> dict[str, Any]:
        """The settings the run was started with."""
        return dict(self._settings()["config"])

    @property
    def kind(self) -> str:
        """The command that ran."""
        return str(self._settings()["kind"])

    @property
    def environment(self) -> dict[str, Any]:
        """Versions and hardware of the run."""
        return dict(read_json(self.environment_path, RunFolderError))

    @property
    def config_path(self) -> Path:
        """config.json."""
        return self.path / "config.json"

    @property
    def environment_path(self) -> Path:
        """environment.json."""
        return self.path / "environment.json"

    @property
    def metrics_path(self) -> Path:
        """metrics.jsonl."""
        return self.path / "metrics.jsonl"

    @property
    def last_checkpoint(self) -> Path:
        """The newest full training state."""
        return self.path / "checkpoints" / "last"

    @property
    def best_checkpoint(self) -> Path:
        """The full training state with the best validation so far."""
        return self.path / "checkpoints" / "best"

    @property
    def policy_path(self) -> Path:
        """The run's result, a policy in z1 format."""
        return self.path / "policy"

    @property
    def evaluation_path(self) -> Path:
        """evaluation.json."""
        return self.path / "evaluation.json"

    @property
    def selection_path(self) -> Path:
        """selection.json, of a run with ``selection: auto``."""
        return self.path / "selection.json"

    @property
    def selection(self) -> dict[str, Any] | None:
        """The decision of selective joint training; None before it, and in other runs.

        Raises:
            RunFolderError: selection.json is damaged or of another version.
        """
        path = self.selection_path
        if not path.exists():
            return None
        value = read_json(path, RunFolderError)
        schema = value.get("schema") if isinstance(value, dict) else None
        if schema != SELECTION_SCHEMA:
            raise RunFolderError(
                f"{path} has schema {schema!r}, expected {SELECTION_SCHEMA!r}; use the z1 version that wrote it"
            )
        return dict(value)

    @property
    def videos_path(self) -> Path:
        """Folder of the rollout videos and of videos.json."""
        return self.path / "videos"

    @property
    def tensorboard_path(self) -> Path:
        """Folder of the TensorBoard events."""
        return self.path / "tensorboard"

    @property
    def report_path(self) -> Path:
        """report.html."""
        return self.path / "report.html"

    def update_config(self, config: Mapping[str, Any]) -> None:
        """Replaces the settings, when a resumed run may change some of them.

        Raises:
            RunFolderError: config.json is missing, damaged or cannot be written.
        """
        self._write_settings(self.kind, config)

    def _write_settings(self, kind: str, config: Mapping[str, Any]) -> None:
        write_json(self.config_path, {"schema": SCHEMA, "kind": kind, "config": dict(config)})

    def _settings(self) -> dict[str, Any]:
        settings = read_json(self.config_path, RunFolderError)
        if not isinstance(settings, dict):
            raise RunFolderError(f"{self.config_path} holds no settings; restore it from a copy")
        return settings


def _require_free(path: Path) -> None:
    try:
        taken = path.exists() and (not path.is_dir() or any(path.iterdir()))
    except OSError as error:
        raise RunFolderError(f"cannot read {path}: {error.strerror}; choose another --out") from error
    if taken:
        kind = "run folder" if (path / "config.json").exists() else "path"
        raise RunFolderError(
            f"{kind} {path} exists already and is not empty; choose another --out, or continue a run with --resume"
        )


def describe_environment() -> dict[str, Any]:
    """Versions and hardware, without names of the machine or its user."""
    return {
        "z1": {"version": z1.__version__, **git_state(Path(z1.__file__).parent)},
        "python": platform.python_version(),
        "torch": _version("torch"),
        "numpy": _version("numpy"),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": machine.cpu_model(),
        "cores": machine.cores(),
        "memory_gib": round(machine.memory_gib(), 1),
        "gpus": [asdict(gpu) for gpu in machine.gpus()],
    }


def git_state(folder: Path) -> dict[str, Any]:
    """Commit of a package's source, and whether tracked files of the package differ from it.

    Args:
        folder: Folder of the package.

    Returns:
        ``commit`` and ``modified``, both None where the package is not tracked by git: a package that is installed
        in some other project's checkout must not report that project's commit.
    """
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return {"commit": None, "modified": None}
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ".")
    return {"commit": _git(folder, "rev-parse", "HEAD"), "modified": None if changes is None else bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
