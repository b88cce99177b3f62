"""Files that a recorded scene names, found on this machine. Pure but for looking whether a file is there.

A recorded scene names its meshes, textures and objects by their paths on the machine that recorded it. Only files below
the asset folders of robosuite and RoboCasa are ever used for them.

Level 1: standard library only, Python 3.10 syntax.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from z1.errors import SimulatorError

ASSET_PACKAGES = ("robosuite", "robocasa")
"""Packages in whose folder ``models/assets`` the files of a scene lie."""

INERTIA = ("inertiagrouprange", "0 0")
"""The compiler's setting with which kitchens are built: masses come from collision geoms alone. MuJoCo leaves it out
when it saves a scene; without it visual geoms count too, and the robot's base gets 152 kg heavier."""

_OBJECTS = "/objects/"
"""RoboCasa looks for an object behind the last of these, in its own folder of objects."""


def localised(model_xml: str, roots: Mapping[str, Path]) -> tuple[str, list[str]]:
    """A recorded scene's MJCF with the files of this machine, and with the masses that it was recorded with.

    Args:
        model_xml: MJCF with paths of another machine.
        roots: The folder ``models/assets`` of each of ``ASSET_PACKAGES``.

    Returns:
        MJCF in which every file lies below ``roots`` and ``INERTIA`` is set; the paths for which there is no file.

    Raises:
        SimulatorError: It is no MJCF.
    """
    try:
        tree = ET.fromstring(model_xml)
    except ET.ParseError as problem:
        raise SimulatorError(f"expected MJCF as the recorded scene, it cannot be read ({problem})") from problem
    if tree.tag != "mujoco" or tree.find("asset") is None or tree.find("worldbody") is None:
        raise SimulatorError(
            f"expected MJCF with asset and worldbody as the recorded scene, got an element {tree.tag} without them"
        )
    compiler = tree.find("compiler")
    if compiler is None:
        compiler = ET.SubElement(tree, "compiler")
    if INERTIA[0] not in compiler.attrib:
        compiler.set(*INERTIA)
    missing = []
    for element in tree.iter():
        for name in [name for name in element.attrib if name.startswith("file")]:
            path = element.attrib[name]
            here = _asset(path, roots)
            if here is None:
                missing.append(path)
            else:
                element.set(name, str(here))
    return ET.tostring(tree, encoding="unicode"), missing


def _asset(path: str, roots: Mapping[str, Path]) -> Path | None:
    """The file here; RoboCasa's once lay among robosuite's, and old recordings say so."""
    for package in ASSET_PACKAGES:
        _, found, tail = path.rpartition(f"/{package}/models/assets/")
        if found:
            places = (_below(roots[name], tail) for name in (package, *ASSET_PACKAGES))
            return next((place for place in places if place is not None), None)
    return None


def missing_objects(scene: Mapping[str, Any], objects: Path) -> list[str]:
    """The objects of an ``ep_meta`` whose files are not in RoboCasa's folder of objects."""
    return [path for path in _object_paths(scene) if _below(objects, path.split(_OBJECTS)[-1]) is None]


def _object_paths(scene: Mapping[str, Any]) -> Iterator[str]:
    configurations = scene.get("object_cfgs")
    for configuration in configurations if isinstance(configurations, list) else ():
        info = configuration.get("info") if isinstance(configuration, dict) else None
        if isinstance(info, dict):
            yield str(info.get("mjcf_path", ""))


def _below(root: Path, tail: str) -> Path | None:
    """A file of a folder, if it is there; what leads out of the folder is not."""
    relative = PurePosixPath(tail)
    if relative.is_absolute() or ".." in relative.parts:
        return None
    return root / relative if (root / relative).is_file() else None
