"""Leaves out collision checks whose result is known: between bodies that stand still where they touched nothing.

A kitchen has hundreds of geoms that MuJoCo checks against each other 500 times per simulated second, most of them
parts of closed drawers and doors in their cabinets. Whether two bodies touch depends on their poses alone. If neither
pose has changed by a bit since a check found no contact, another check would find none either, and leaving it out
changes nothing but time: contacts, their order and every number after them stay the same.

A tree of bodies is *asleep* while its poses are those at which a full check found nothing in contact with it. Asleep
and fixed bodies do not collide with each other, but with everything that is awake.

Level 1: standard library and numpy only, Python 3.10 syntax.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

_AWAKE, _ASLEEP = 1, 2
"""Bits of contype; awake bodies answer to the first bit alone, all bodies' conaffinity accepts it."""

_FIXED, _PLACED = -1, -2
"""In place of the number of a tree: bodies that never move, and those whose pose is written from outside."""

_COORDINATES = (7, 4, 1, 1)
"""Joint coordinates by MuJoCo's type of joint: free, ball, slide, hinge."""


class StillBodies:
    """Decides before every computation of contacts which bodies are asleep, and tells MuJoCo by collision bits.

    Attributes:
        asleep: Numbers of the trees that are asleep.
    """

    def __init__(self, mujoco: Any, model: Any, data: Any) -> None:
        """Notes what moves together; everything that can move begins awake.

        Args:
            mujoco: The module.
            model: The compiled model, whose collision bits change.
            data: Its data.
        """
        self.asleep: list[int] = []
        self._mujoco, self._model, self._data = mujoco, model, data
        self._seen: dict[int, bytes] = {}  # poses at which a tree touched nothing
        self._candidates: dict[int, bytes] = {}  # the same of trees that are not asleep yet
        self._due = True
        placed = model.body_mocapid[model.body_rootid] >= 0  # where somebody writes, not where joints say
        fixed = (model.body_weldid == 0) & ~placed
        tree = np.where(fixed, _FIXED, np.where(placed, _PLACED, model.body_treeid))
        self._tree_of_geom = tree[model.geom_bodyid]
        numbers = range(model.ntree)
        self._geoms = [np.flatnonzero(self._tree_of_geom == number) for number in numbers]
        self._bodies = [np.flatnonzero(tree == number) for number in numbers]
        self._coordinates = [_coordinates(model, number) for number in numbers]
        self._watched = self._watched_bodies = np.zeros(0, np.int64)
        self._expected_coordinates = self._expected_poses = b""
        self._places_in_model = self._read_places_in_model()
        self._geom_bits, self._body_bits = model.geom_contype.copy(), model.body_contype.copy()
        bits = np.concatenate([model.geom_contype, model.geom_conaffinity])
        self._usable = bool(np.isin(bits, (0, 1)).all())
        if self._usable:
            self._mark(np.flatnonzero(self._tree_of_geom == _FIXED), np.flatnonzero(fixed), _ASLEEP)
            silent = (model.geom_contype == 0) & (model.geom_conaffinity != 0)  # they rely on the other's contype alone
            model.geom_conaffinity[silent] = _AWAKE | _ASLEEP
            model.body_conaffinity[model.geom_bodyid[silent]] = _AWAKE | _ASLEEP

    def watch(self, sim: Any) -> None:
        """Has a robosuite simulation ask before every computation of contacts."""
        if self._usable:
            sim.step1, sim.forward = self._asking(sim.step1), self._asking(sim.forward)

    def look_again(self) -> None:
        """With the next computation of contacts, looks which further trees touch nothing; for once per env step."""
        self._due = True

    def _asking(self, compute: Callable[[], None]) -> Callable[[], None]:
        """A function of the simulation that computes contacts, after deciding which bodies are asleep."""

        def asking() -> None:
            self.decide()
            compute()
            if self._due:
                self._note_free()
                self._due = False

        return asking

    def decide(self) -> None:
        """Wakes what has moved, and puts to sleep what has not since it was seen to touch nothing."""
        if self._due and (places := self._read_places_in_model()) != self._places_in_model:
            self._places_in_model, self._candidates = places, {}
            self._change(asleep=[])
        coordinates = self._data.qpos[self._watched].tobytes()
        moved = coordinates != self._expected_coordinates
        if not moved and not self._candidates:
            return
        self._mujoco.mj_kinematics(self._model, self._data)  # coordinates may change by less than poses can tell
        if moved and self._poses(self._watched_bodies) != self._expected_poses:
            still = [n for n in self.asleep if self._poses(self._bodies[n]) == self._seen[n]]
            self._change(asleep=still)
        elif moved:
            self._expected_coordinates = coordinates
        if self._candidates:
            still = [n for n, seen in self._candidates.items() if self._poses(self._bodies[n]) == seen]
            self._seen |= {n: self._candidates[n] for n in still}
            self._candidates = {}
            if still:
                self._change(asleep=self.asleep + still)

    def _note_free(self) -> None:
        """Notes the trees that are awake and in no contact, right after contacts were computed."""
        geoms = self._data.contact.geom if self._data.ncon else np.zeros(0, np.int64)
        known = set(self.asleep) | set(self._tree_of_geom[geoms].ravel().tolist())
        self._candidates = {n: self._poses(bodies) for n, bodies in enumerate(self._bodies) if n not in known}

    def _change(self, asleep: list[int]) -> None:
        """Makes these trees the ones asleep."""
        for number in set(asleep) ^ set(self.asleep):
            self._mark(self._geoms[number], self._bodies[number], _ASLEEP if number in asleep else _AWAKE)
        self.asleep = asleep
        self._watch_asleep()

    def _watch_asleep(self) -> None:
        """Notes what must stay as it is now: coordinates, which are quick to compare, and poses, which decide."""
        self._watched = _joined([self._coordinates[number] for number in self.asleep])
        self._watched_bodies = _joined([self._bodies[number] for number in self.asleep])
        self._expected_coordinates = self._data.qpos[self._watched].tobytes()
        self._expected_poses = self._poses(self._watched_bodies)

    def _mark(self, geoms: np.ndarray, bodies: np.ndarray, bit: int) -> None:
        """Gives geoms and bodies that take part in collisions a bit of contype."""
        self._model.geom_contype[geoms] = bit * self._geom_bits[geoms]
        self._model.body_contype[bodies] = bit * self._body_bits[bodies]

    def _poses(self, bodies: np.ndarray) -> bytes:
        """Positions and orientations of bodies in the world."""
        return bytes(self._data.xpos[bodies].tobytes() + self._data.xquat[bodies].tobytes())

    def _read_places_in_model(self) -> bytes:
        """Where bodies are in their parents; RoboCasa may write there."""
        return bytes(self._model.body_pos.tobytes() + self._model.body_quat.tobytes())


def _coordinates(model: Any, tree: int) -> np.ndarray:
    """int64: places in qpos of the joints of a tree."""
    joints = np.flatnonzero(model.body_treeid[model.jnt_bodyid] == tree)
    pairs = zip(model.jnt_qposadr[joints], model.jnt_type[joints], strict=True)
    return _joined([np.arange(start, start + _COORDINATES[kind]) for start, kind in pairs])


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """int64: numbers one after the other."""
    return np.concatenate([np.zeros(0, np.int64), *parts])
