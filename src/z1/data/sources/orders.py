"""Where the numbers of a LeRobot dataset belong. Pure: no files.

LeRobot conversions of RoboCasa hold state and action in other orders than the simulator. An ``Order`` says which column
of the file each number comes from; ``choose_order`` finds it from the widths, the names and ``meta/modality.json``.

Source: RoboCasa v1.0 ``PandaOmron_modality.json`` and ``lerobot_utils.py`` (16 numbers of state, 12 of action); a
public HDF5 to GR00T converter for the 53 numbers, whose parts are in alphabetical order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from z1.data.lerobot_format import IMAGE_PREFIX
from z1.errors import DatasetError
from z1.sims import robocasa_layout
from z1.sims.robocasa_layout import ACTION_NAMES, STATE_NAMES

Span = tuple[int, int]
"""First column and the one after the last."""


def _spans(*parts: tuple[str, int]) -> dict[str, Span]:
    """Parts of the given widths, one behind the other."""
    found: dict[str, Span] = {}
    first = 0
    for name, width in parts:
        found[name] = (first, first + width)
        first += width
    return found


PART_OF_KEY = {
    "robot0_base_pos": "base_position",
    "robot0_base_quat": "base_rotation",
    "robot0_base_to_eef_pos": "end_effector_position_relative",
    "robot0_base_to_eef_quat": "end_effector_rotation_relative",
    "robot0_gripper_qpos": "gripper_qpos",
}
"""What ``meta/modality.json`` calls the observations that the state is made of."""

STATE_SPANS = _spans(*((PART_OF_KEY[key], width) for key, width in robocasa_layout.STATE_PARTS))
"""The parts of the state in z1's order, and where they are in it."""

ACTION_PARTS = ("end_effector_position", "end_effector_rotation", "gripper_close", "base_motion", "control_mode")
"""The parts of an action in the simulator's order, which is z1's."""

QUATERNIONS = tuple(tuple(range(*STATE_SPANS[part])) for part in ("base_rotation", "end_effector_rotation_relative"))
"""Dims of z1's state that are quaternions."""

FILE_STATES = {
    53: _spans(
        ("base_position", 3),
        ("base_rotation", 4),
        ("end_effector_position_absolute", 3),
        ("end_effector_position_relative", 3),
        ("end_effector_rotation_absolute", 4),
        ("end_effector_rotation_relative", 4),
        ("gripper_qpos", 2),
        ("gripper_qvel", 2),
        ("joint_position", 7),
        ("joint_position_cos", 7),
        ("joint_position_sin", 7),
        ("joint_velocity", 7),
    ),
    16: _spans(
        ("base_position", 3),
        ("base_rotation", 4),
        ("end_effector_position_relative", 3),
        ("end_effector_rotation_relative", 4),
        ("gripper_qpos", 2),
    ),
}
"""The known orders of ``observation.state``, by width: 53 of NVIDIA's GR00T sets, 16 of RoboCasa v1.0."""

FILE_ACTION = _spans(
    ("base_motion", 4),
    ("control_mode", 1),
    ("end_effector_position", 3),
    ("end_effector_rotation", 3),
    ("gripper_close", 1),
)
"""The known order of ``action`` in both."""

SWITCH_VALUES = (-1.0, 0.0, 1.0)
"""What files write in a dim with two meanings: -1 or 1, or 0 or 1."""

FILE_CAMERAS = {key.removeprefix(IMAGE_PREFIX): camera for camera, key in robocasa_layout.GROOT_VIDEOS.items()}
"""The simulator's cameras by their names in the GR00T sets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vectors:
    """What a file says about its numbers.

    Attributes:
        state_names: One name per column of ``observation.state``.
        action_names: One name per column of ``action``.
        cameras: Its camera names.
        modality: Content of ``meta/modality.json``; None when there is none.
    """

    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    cameras: tuple[str, ...]
    modality: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """How a file's numbers become z1's.

    Attributes:
        name: For the manifest: ``as_is``, ``robocasa`` or ``robocasa by modality.json``.
        state_columns: Column of the file for each state dim.
        action_columns: Column of the file for each action dim.
        state_names: One name per state dim.
        action_names: One name per action dim.
        cameras: z1's camera name by the file's.
        switches: Action dims that become -1 below 0.5 and 1 from there on.
        quaternions: State dims that are quaternions, four each.
        confirmed: Whether the file's own ``meta/modality.json`` says the same, or nothing needs it.
    """

    name: str
    state_columns: tuple[int, ...]
    action_columns: tuple[int, ...]
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    cameras: Mapping[str, str]
    switches: tuple[int, ...] = ()
    quaternions: tuple[tuple[int, ...], ...] = ()
    confirmed: bool = True

    def state(self, values: np.ndarray, where: str) -> np.ndarray:
        """State in z1's order.

        Args:
            values: ``[T, columns]``, as the file has it.
            where: For the error message.

        Returns:
            float32 ``[T, S]``.

        Raises:
            DatasetError: Where a quaternion should be, there is none.
        """
        found = np.ascontiguousarray(values[:, self.state_columns], dtype=np.float32)
        check_quaternions(found, self.quaternions, self.state_names, where)
        return found

    def action(self, values: np.ndarray, where: str) -> np.ndarray:
        """Action in z1's order, -1 or 1 in the dims with two meanings.

        Args:
            values: ``[T, columns]``, as the file has it.
            where: For the error message.

        Returns:
            float32 ``[T, A]``.

        Raises:
            DatasetError: A dim with two meanings holds other numbers than -1, 0 and 1, and nothing confirms the order.
        """
        found = np.ascontiguousarray(values[:, self.action_columns], dtype=np.float32)
        for dim in self.switches:
            odd = found[~np.isin(found[:, dim], SWITCH_VALUES), dim]
            if len(odd) and not self.confirmed:
                raise DatasetError(
                    f"{where}: expected -1, 0 or 1 in column {self.action_columns[dim]} of action "
                    f"({self.action_names[dim]}), got {odd[0]:g}; the columns are in another order: add the set's "
                    "meta/modality.json and choose --order modality"
                )
            found[:, dim] = np.where(found[:, dim] < 0.5, -1.0, 1.0)
        return found

    def odd_switches(self, values: np.ndarray) -> int:
        """Frames of the file's ``[T, columns]`` with other numbers than -1, 0 and 1 in the dims with two meanings."""
        columns = [self.action_columns[dim] for dim in self.switches]
        return int((~np.isin(values[:, columns], SWITCH_VALUES)).any(1).sum())


def check_quaternions(
    state: np.ndarray, quaternions: Sequence[Sequence[int]], names: Sequence[str], where: str
) -> None:
    """Refuses a state in another order, which shows in quaternions that are not of length 1.

    Raises:
        DatasetError: Names the dims.
    """
    for dims in quaternions:
        lengths = np.linalg.norm(state[:, list(dims)], axis=1)
        wrong = np.flatnonzero(~(np.abs(lengths - 1.0) < 0.01))
        if len(wrong):
            raise DatasetError(
                f"{where}: expected a quaternion of length 1 in {names[dims[0]]} to {names[dims[-1]]}, got "
                f"length {lengths[wrong[0]]:.3g} in frame {wrong[0]}; the numbers of the state are in another order"
            )


def choose_order(file: Vectors, layout: str, order: str, where: Path) -> Order:
    """The order of a LeRobot dataset.

    Args:
        file: What it says about itself.
        layout: ``robocasa``, ``as_is``, or ``auto``: RoboCasa if it has an action of 12 numbers and one of the cameras
            of RoboCasa's conversions. A set with the names that z1 gives is in z1's order already.
        order: ``known``: the published orders, which ``meta/modality.json`` must confirm when it is there;
            ``modality``: what ``meta/modality.json`` says.
        where: The dataset, for error messages.

    Raises:
        DatasetError: Unknown widths, or ``meta/modality.json`` contradicts.
    """
    own = (file.state_names, file.action_names) == (STATE_NAMES, ACTION_NAMES)
    known = {*FILE_CAMERAS, *FILE_CAMERAS.values()}
    looks_like = len(file.action_names) == len(ACTION_NAMES) and bool(known & set(file.cameras))
    if own or layout == "as_is" or (layout == "auto" and not looks_like):
        if order == "modality":
            raise DatasetError(
                f"{where}: its numbers are taken as they are, so that --order modality has no effect; leave it out"
                + ("" if own else ", or choose --layout robocasa")
            )
        return _as_is(file)
    return _robocasa(file, order, where)


def _as_is(file: Vectors) -> Order:
    return Order(
        name="as_is",
        state_columns=tuple(range(len(file.state_names))),
        action_columns=tuple(range(len(file.action_names))),
        state_names=file.state_names,
        action_names=file.action_names,
        cameras={camera: camera for camera in file.cameras},
    )


def _robocasa(file: Vectors, order: str, where: Path) -> Order:
    if len(file.action_names) != len(ACTION_NAMES):
        raise DatasetError(
            f"{where}: expected {len(ACTION_NAMES)} numbers per action as RoboCasa's PandaOmron has them, got "
            f"{len(file.action_names)}; choose --layout as_is for another robot"
        )
    width = len(file.state_names)
    if order == "modality":
        if file.modality is None:
            raise DatasetError(f"{where}: --order modality needs meta/modality.json, which is missing")
        state = _named_spans(file.modality, "state", tuple(STATE_SPANS), width, where)
        action = _named_spans(file.modality, "action", ACTION_PARTS, len(ACTION_NAMES), where)
    else:
        if width not in FILE_STATES:
            known = " or ".join(str(number) for number in FILE_STATES)
            raise DatasetError(
                f"{where}: expected {known} numbers per state as the published RoboCasa sets have them, got {width}; "
                "choose --order modality if the set has a meta/modality.json, or --layout as_is for another robot"
            )
        state, action = FILE_STATES[width], FILE_ACTION
        if file.modality is not None:
            _confirm(_named_spans(file.modality, "state", tuple(STATE_SPANS), width, where), state, "state", where)
            _confirm(
                _named_spans(file.modality, "action", ACTION_PARTS, len(ACTION_NAMES), where), action, "action", where
            )
    return Order(
        name="robocasa" if order == "known" else "robocasa by modality.json",
        state_columns=_columns(tuple(STATE_SPANS), state),
        action_columns=_columns(ACTION_PARTS, action),
        state_names=STATE_NAMES,
        action_names=ACTION_NAMES,
        cameras={camera: FILE_CAMERAS.get(camera, camera) for camera in file.cameras},
        switches=(robocasa_layout.GRIPPER, robocasa_layout.BASE_MODE),
        quaternions=QUATERNIONS,
        confirmed=file.modality is not None,
    )


def _columns(parts: Sequence[str], spans: Mapping[str, Span]) -> tuple[int, ...]:
    """The file's columns of some parts, in their order."""
    return tuple(column for part in parts for column in range(*spans[part]))


def _widths(name: str) -> dict[str, int]:
    spans = STATE_SPANS if name == "state" else FILE_ACTION
    return {part: last - first for part, (first, last) in spans.items()}


def _named_spans(
    modality: Mapping[str, Any], name: str, parts: Sequence[str], width: int, where: Path
) -> dict[str, Span]:
    """Where ``meta/modality.json`` says that the parts are."""
    file = where / "meta/modality.json"
    entries = modality.get(name)
    found: dict[str, Span] = {}
    column = "observation.state" if name == "state" else "action"
    for part in parts:
        entry = entries.get(part) if isinstance(entries, Mapping) else None
        if not isinstance(entry, Mapping):
            listed = ", ".join(sorted(entries)) if isinstance(entries, Mapping) else "nothing"
            raise DatasetError(f"{file}: expected {name} to name {part}, it names {listed}; it is of another robot")
        if entry.get("original_key", column) != column:
            raise DatasetError(
                f"{file}: expected {name} {part} to be in column {column}, got {entry['original_key']!r}; this layout "
                "is not supported"
            )
        first, last = entry.get("start"), entry.get("end")
        needed = _widths(name)[part]
        if (
            not (isinstance(first, int) and isinstance(last, int))
            or first < 0
            or last > width
            or last - first != needed
        ):
            raise DatasetError(
                f"{file}: expected {name} {part} to be {needed} of the {width} columns, got {first} to {last}; copy "
                "the file again"
            )
        found[part] = (first, last)
    return found


def _confirm(said: Mapping[str, Span], known: Mapping[str, Span], name: str, where: Path) -> None:
    for part, (first, last) in said.items():
        if (first, last) != known[part]:
            raise DatasetError(
                f"{where / 'meta/modality.json'} has {name} {part} in columns {first} to {last}, the published sets "
                f"have it in {known[part][0]} to {known[part][1]}; choose --order modality to follow the file"
            )
