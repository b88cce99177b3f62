"""Plain shapes and textures for generated stand-ins: boxes as OBJ files, vessels as boxes, flat PNG files.

Level 1: standard library and numpy only.
"""

from __future__ import annotations

import hashlib
import itertools
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_TEXTURE_SIZE = 64
_TEXTURE_LINES = 16
_CORNERS = np.array(list(itertools.product((-1.0, 1.0), repeat=3)))
_FACES = (
    *((0, 1, 3), (0, 3, 2), (4, 6, 7), (4, 7, 5)),
    *((0, 4, 5), (0, 5, 1), (2, 3, 7), (2, 7, 6)),
    *((0, 2, 6), (0, 6, 4), (1, 5, 7), (1, 7, 3)),
)
"""Triangles of a box whose corners are numbered as in ``_CORNERS``; seen from outside they run counterclockwise."""

_VESSEL_WALLS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A box.

    Attributes:
        centre: float ``[3]``, metres.
        half: float ``[3]``, half its size.
        rotation: float ``[3, 3]``, its axes in columns.
    """

    centre: np.ndarray
    half: np.ndarray
    rotation: np.ndarray

    def corners(self) -> np.ndarray:
        """float ``[8, 3]``."""
        return self.centre + (_CORNERS * self.half) @ self.rotation.T


def axis_box(centre: Sequence[float], half: Sequence[float]) -> Box:
    """A box along the axes."""
    return Box(centre=np.array(centre, float), half=np.array(half, float), rotation=np.eye(3))


def obj_text(boxes: Sequence[Box]) -> str:
    """Boxes as one closed Wavefront OBJ mesh."""
    lines = []
    for box in boxes:
        lines += [f"v {x:.6g} {y:.6g} {z:.6g}" for x, y, z in box.corners()]
    for number in range(len(boxes)):
        lines += [f"f {a} {b} {c}" for a, b, c in np.array(_FACES) + 1 + 8 * number]
    return "\n".join(lines) + "\n"


def colour_of(name: str) -> tuple[float, float, float]:
    """A colour between 0.25 and 0.9 that belongs to a name."""
    digest = hashlib.blake2b(name.encode(), digest_size=3).digest()
    red, green, blue = (0.25 + 0.65 * byte / 255 for byte in digest)
    return red, green, blue


def texture_png(name: str) -> bytes:
    """A square PNG in the colour of a name, with faint lines that make motion visible."""
    image = np.empty((_TEXTURE_SIZE, _TEXTURE_SIZE, 3), np.uint8)
    image[:] = np.round(255 * np.array(colour_of(name)))
    image[::_TEXTURE_LINES] = image[::_TEXTURE_LINES] * 0.8
    image[:, ::_TEXTURE_LINES] = image[:, ::_TEXTURE_LINES] * 0.8
    rows = b"".join(b"\0" + row.tobytes() for row in image)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", _TEXTURE_SIZE, _TEXTURE_SIZE, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def vessel(half: Sequence[float]) -> list[Box]:
    """A floor and eight walls: things can lie inside.

    Args:
        half: Half its size; the first number is the radius.
    """
    radius, height = half[0], half[2]
    wall = min(0.006, height / 2, radius / 6)
    boxes = [axis_box((0, 0, wall - height), (radius - wall, radius - wall, wall))]
    for number in range(_VESSEL_WALLS):
        angle = 2 * np.pi * number / _VESSEL_WALLS
        cosine, sine = np.cos(angle), np.sin(angle)
        rotation = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
        centre = rotation @ np.array([radius - wall, 0, 0])
        width = radius * np.tan(np.pi / _VESSEL_WALLS)
        boxes.append(Box(centre=centre, half=np.array([wall, width, height]), rotation=rotation))
    return boxes


def quaternion_of(rotation: np.ndarray) -> tuple[float, float, float, float]:
    """w, x, y, z of a turn about the vertical axis."""
    angle = float(np.arctan2(rotation[1, 0], rotation[0, 0]))
    return float(np.cos(angle / 2)), 0.0, 0.0, float(np.sin(angle / 2))
