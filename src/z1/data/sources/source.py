"""What every source of demonstrations offers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from z1.errors import DatasetError
from z1.sims.recording import Recording

FRAMES_AT_ONCE = 64
"""Images in memory while a video is decoded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeVectors:
    """An episode of T frames without its images, in the order in which z1 stores numbers.

    Attributes:
        states: float32 ``[T, S]``.
        actions: float32 ``[T, A]``.
        instruction: Language instruction.
        odd_switches: Frames in which the source had another number than -1, 0 and 1 where an action has two meanings.
    """

    states: np.ndarray
    actions: np.ndarray
    instruction: str
    odd_switches: int = 0


class Source(Protocol):
    """Demonstrations in a file or folder. Names and numbers are given as z1 stores them.

    Attributes:
        path: The file or folder.
        fps: Frames per second.
        robot: Name of the robot or simulator.
        state_names: One name per state dim.
        action_names: One name per action dim.
        cameras: Names of the cameras it has.
        default_cameras: Those to take when none is asked for.
        episodes: Names of the episodes, in order.
    """

    path: Path
    fps: int
    robot: str
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    cameras: tuple[str, ...]
    default_cameras: tuple[str, ...]
    episodes: tuple[str, ...]

    def image_size(self, camera: str) -> tuple[int, int]:
        """Height and width of a camera's images in pixels."""

    def vectors(self, episode: str) -> EpisodeVectors:
        """State, action and instruction of an episode.

        Raises:
            DatasetError: Something is missing or damaged.
        """

    def frames(self, episode: str, camera: str) -> Iterator[np.ndarray]:
        """The images of an episode, a part at a time: uint8 ``[B, H, W, 3]``, RGB, the right way up.

        Raises:
            DatasetError: Something is missing or damaged.
        """

    def recording(self, episode: str, vectors: EpisodeVectors) -> Recording | None:
        """An episode with its simulator states, to be replayed; None when the source holds none.

        Raises:
            DatasetError: Something is damaged.
        """

    def facts(self) -> dict[str, Any]:
        """JSON about the source, for the manifest of the dataset made from it."""

    def close(self) -> None:
        """Closes its files."""


def whole_fps(fps: float, where: Path) -> int:
    """Frames per second as a whole number.

    Raises:
        DatasetError: It is none.
    """
    if fps != round(fps) or fps <= 0:
        raise DatasetError(f"{where}: expected a whole number of frames per second, got {fps:g}; resample the dataset")
    return round(fps)


def in_parts(images: Iterator[np.ndarray], length: int, size: tuple[int, int], where: Path) -> Iterator[np.ndarray]:
    """The first images of a video, some at a time, checked.

    Args:
        images: uint8 ``[H, W, 3]`` each.
        length: How many are wanted.
        size: Height and width that they must have.
        where: For error messages.

    Yields:
        uint8 ``[B, H, W, 3]``.

    Raises:
        DatasetError: There are fewer, or they have another size.
    """
    done = 0
    while done < length:
        part = list(islice(images, min(FRAMES_AT_ONCE, length - done)))
        if not part:
            raise DatasetError(f"{where}: expected {length} frames, got {done}; copy the file again, it may be cut off")
        if part[0].shape[:2] != size:
            raise DatasetError(
                f"{where}: expected images of {size[0]} x {size[1]} pixels as meta/info.json says, got "
                f"{part[0].shape[0]} x {part[0].shape[1]}; the video belongs to another dataset"
            )
        done += len(part)
        yield np.stack(part)
