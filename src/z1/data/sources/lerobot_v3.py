"""LeRobot datasets of version 3 as a source: the reader of ``z1.data.lerobot``, with its numbers put in order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from z1.data import video
from z1.data.lerobot import LeRobotDataset
from z1.data.sources.lerobot_v2 import file_vectors, order_facts
from z1.data.sources.orders import choose_order
from z1.data.sources.source import EpisodeVectors, in_parts, whole_fps
from z1.errors import DatasetError


class LeRobotV3Source:
    """One dataset folder. See ``Source``."""

    def __init__(self, path: Path, robot_layout: str, order: str) -> None:
        """Reads and checks everything but the images.

        Args:
            path: The folder.
            robot_layout: See ``choose_order``.
            order: See ``choose_order``.

        Raises:
            DatasetError: Something is missing or damaged, or the numbers are in an unknown order.
        """
        self.path = path
        self._dataset = LeRobotDataset.open(path)
        self.fps = whole_fps(self._dataset.fps, path)
        self.robot = str(self._dataset.info.get("robot_type") or "unknown")
        self._order = choose_order(file_vectors(path, self._dataset.info), robot_layout, order, path)
        self.state_names, self.action_names = self._order.state_names, self._order.action_names
        self._cameras = {self._order.cameras[camera]: camera for camera in self._dataset.cameras}
        self.cameras = self.default_cameras = tuple(self._cameras)
        self._records = {f"episode {record.index}": record for record in self._dataset.episodes}
        self.episodes = tuple(self._records)

    def image_size(self, camera: str) -> tuple[int, int]:
        """Height and width of a camera's images in pixels."""
        return self._dataset.image_size(self._cameras[camera])

    def vectors(self, episode: str) -> EpisodeVectors:
        """State, action and instruction of an episode."""
        record = self._records[episode]
        rows = slice(record.from_index, record.from_index + record.length)
        where = f"{self.path}: {episode}"
        tasks = set(self._dataset.task_index[rows].tolist())
        if len(tasks) != 1:
            raise DatasetError(
                f"{where}: expected one instruction, got {len(tasks)}; split the episode where the instruction changes"
            )
        return EpisodeVectors(
            states=self._order.state(self._dataset.state[rows], where),
            actions=self._order.action(self._dataset.action[rows], where),
            instruction=self._dataset.tasks[tasks.pop()],
            odd_switches=self._order.odd_switches(self._dataset.action[rows]),
        )

    def frames(self, episode: str, camera: str) -> Iterator[np.ndarray]:
        """The images of an episode, a part at a time."""
        record = self._records[episode]
        span = record.videos[self._cameras[camera]]
        images = (image for _, image in video.decode_video(span.path, self.fps, span.first))
        yield from in_parts(images, record.length, self.image_size(camera), span.path)

    def recording(self, episode: str, vectors: EpisodeVectors) -> None:
        """None: these datasets hold no simulator states."""

    def facts(self) -> dict[str, Any]:
        """JSON about the dataset."""
        return {
            "kind": f"lerobot {self._dataset.info['codebase_version']}",
            "folder": self.path.name,
            "robot_type": self.robot,
            **order_facts(self._order),
        }

    def close(self) -> None:
        """Nothing is open between calls."""
