"""Which settings a resumed run may change, and run folders whose run could not begin."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from z1.config import RlConfig, SftConfig, config_from_dict, config_to_dict
from z1.errors import ConfigError, RunFolderError, Z1Error
from z1.files import read_json
from z1.train.run_folder import RunFolder

RL_MAY_CHANGE = (
    "iterations",
    "env_step_budget",
    "time_budget_s",
    "device",
    "sim.hosts",
    "sim.timeout_s",
    "update.prefix_device_gb",
    "update.prefix_host_gb",
)
"""Settings that a resumed RL run may change: they say how far and where it runs. Of what it computes from there on they
change only P with ``rollout.prefix_schedule: linear``, which falls along the new length.
"""


def stored_config(path: Path, cls: type, kind: str) -> Any:
    """The config of a run folder, for ``--resume``.

    Raises:
        RunFolderError: The folder is no run of this kind.
    """
    run = RunFolder.open(path)
    data = read_json(run.config_path, RunFolderError)
    if data.get("kind") != kind:
        raise RunFolderError(f"{path} is a run of z1 {data.get('kind')}; expected one of z1 {kind}")
    if not isinstance(data.get("config"), dict):
        raise RunFolderError(f"{run.config_path} holds no settings; restore it from a copy")
    return config_from_dict(cls, data["config"], source=run.config_path)


def check_resume(
    stored: dict[str, Any], config: RlConfig | SftConfig, folder: Path, *, may_change: tuple[str, ...]
) -> None:
    """Refuses to resume a run under other settings than it was started with.

    Raises:
        ConfigError: Names the settings that differ.
    """
    known = config_from_dict(type(config), stored, source=folder)  # as older versions wrote them
    before, now = _by_path(config_to_dict(known)), _by_path(config_to_dict(config))
    ignored = {"out", "wandb", *may_change}
    differing = [
        f"{name} was {before.get(name)!r}, is {now[name]!r}"
        for name in now
        if name not in ignored and before.get(name) != now[name]
    ]
    if differing:
        raise ConfigError(
            f"cannot resume {folder} with other settings: {'; '.join(differing)}. "
            "Leave them out to resume with the stored ones, or start a new run with another --out."
        )


def _by_path(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their name on the command line, for example ``sim.horizon``."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _by_path(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


@contextmanager
def undone_on_error(run: RunFolder, *, resume: bool) -> Iterator[None]:
    """Removes a run folder that was just made when the run cannot begin, so that the mended command finds it free."""
    try:
        yield
    except Z1Error:
        if not resume:
            run.config_path.unlink(missing_ok=True)
            run.environment_path.unlink(missing_ok=True)
            with suppress(OSError):  # what else lies there stays
                run.path.rmdir()
        raise
