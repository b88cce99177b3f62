"""Which kind of source a path is."""

from __future__ import annotations

from pathlib import Path

from z1.data import lerobot_format as layout
from z1.data.sources.lerobot_v2 import LeRobotV2Source
from z1.data.sources.lerobot_v3 import LeRobotV3Source
from z1.data.sources.robomimic import RobomimicSource
from z1.data.sources.source import Source
from z1.errors import ConfigError, DatasetError
from z1.files import read_json

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def open_source(path: Path, *, demo_filter: str, robot_layout: str, order: str) -> Source:
    """Opens demonstrations; what they are is read from the file or folder itself.

    Args:
        path: A robomimic HDF5 file or a LeRobot dataset folder.
        demo_filter: A filter of the HDF5 file; empty: all demonstrations.
        robot_layout: ``auto``, ``robocasa`` or ``as_is``; of LeRobot datasets, see ``choose_order``.
        order: ``known`` or ``modality``; of LeRobot datasets, see ``choose_order``.

    Raises:
        DatasetError: It is neither, or it is damaged.
        ConfigError: A setting has no effect on this kind.
        UnknownNameError: The file has no such filter.
    """
    if not path.exists():
        raise DatasetError(f"{path} does not exist; give a robomimic HDF5 file or a LeRobot dataset folder")
    if path.is_file():
        _refuse(robot_layout != "auto", "layout", path, "an HDF5 file, whose numbers have names")
        _refuse(order != "known", "order", path, "an HDF5 file, whose numbers have names")
        with path.open("rb") as file:
            if file.read(len(HDF5_SIGNATURE)) != HDF5_SIGNATURE:
                raise DatasetError(
                    f"{path}: expected an HDF5 file, it does not begin like one; copy it again, or give the folder of "
                    "a LeRobot dataset"
                )
        return RobomimicSource(path, demo_filter)
    info_file = path / layout.INFO_PATH
    if not info_file.is_file():
        raise DatasetError(
            f"{path} is no LeRobot dataset: {layout.INFO_PATH} is missing; give the folder that holds meta, data and "
            "videos, or the HDF5 files themselves"
        )
    _refuse(bool(demo_filter), "filter", path, "a LeRobot dataset; choose episodes with --episodes")
    info = read_json(info_file, DatasetError)
    version = info.get("codebase_version") if isinstance(info, dict) else None
    if isinstance(version, str) and version.startswith("v2."):
        return LeRobotV2Source(path, robot_layout, order)
    return LeRobotV3Source(path, robot_layout, order)


def _refuse(given: bool, setting: str, path: Path, reason: str) -> None:
    if given:
        raise ConfigError(f"{setting} has no effect on {path}, {reason}; leave it out")
