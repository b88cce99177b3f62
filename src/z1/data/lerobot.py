"""Reader of LeRobotDataset v3.0 folders.

``LeRobotDataset.open`` reads all meta data and the vector columns and checks them against each other, so that a damaged
copy is found at once; videos are decoded when asked for. Layout: ``z1.data.lerobot_format``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from z1.data import lerobot_files, video
from z1.data import lerobot_format as layout
from z1.data.lerobot_files import EpisodeRecord
from z1.data.stats import FeatureStats
from z1.errors import DatasetError, UnknownNameError

__all__ = ["EpisodeRecord", "LeRobotDataset", "Progress"]

Progress = Callable[[int, int], None]
"""Called with frames done and frames in all."""


class LeRobotDataset:
    """A LeRobotDataset v3.0: N frames in E episodes. Build it with ``open``.

    Attributes:
        path: The folder.
        info: Content of ``meta/info.json``.
        fps: Frames per second.
        cameras: Camera names: feature keys with ``observation.images.`` taken off.
        tasks: Instructions, in the order of their task index.
        episodes: The episodes.
        state: float32 ``[N, S]``.
        action: float32 ``[N, A]``.
        episode_index: int64 ``[N]``, which episode a frame belongs to.
        task_index: int64 ``[N]``, which of ``tasks`` a frame belongs to.
        stats: Statistics of ``observation.state`` and ``action``, as ``meta/stats.json`` has them. What it lacks is
            computed from all frames. Files written by LeRobot hold an envelope of the episodes' quantiles;
            ``compute_stats(dataset.action)`` gives the exact ones.
    """

    def __init__(
        self,
        *,
        path: Path,
        info: dict[str, Any],
        tasks: list[str],
        episodes: list[EpisodeRecord],
        columns: dict[str, np.ndarray],
        stats: dict[str, FeatureStats],
    ) -> None:
        self.path = path
        self.info = info
        self.fps: float = info["fps"]
        self._keys = lerobot_files.camera_keys(info)
        self.cameras = tuple(self._keys)
        self.tasks = tasks
        self.episodes = episodes
        self.state = columns[layout.STATE_KEY]
        self.action = columns[layout.ACTION_KEY]
        self.episode_index = columns["episode_index"]
        self.task_index = columns["task_index"]
        self.stats = stats
        self._images: dict[str, np.ndarray] = {}
        self._last_frame = np.array([record.from_index + record.length - 1 for record in episodes], dtype=np.int64)

    @classmethod
    def open(cls, path: str | Path) -> LeRobotDataset:
        """Reads and checks a dataset.

        Args:
            path: The folder that holds ``meta``, ``data`` and ``videos``.

        Raises:
            DatasetError: Something is missing, damaged, of another version, or does not fit together.
        """
        path = Path(path)
        info = lerobot_files.read_info(path)
        tasks = lerobot_files.read_tasks(path)
        episodes, data_files = lerobot_files.read_episodes(path, info)
        columns = lerobot_files.read_columns(path, info, data_files)
        lerobot_files.check_columns(path, episodes, columns, len(tasks))
        stats = lerobot_files.read_stats(path, columns)
        for record in episodes:
            for span in record.videos.values():
                if not span.path.is_file():
                    raise DatasetError(
                        f"{span.path} is missing (episode {record.index} is in it); copy the whole videos folder"
                    )
        return cls(path=path, info=info, tasks=tasks, episodes=episodes, columns=columns, stats=stats)

    @property
    def quality(self) -> str:
        """How the simulator rendered the images, as ``meta/z1_manifest.json`` says; empty: not known.

        Raises:
            DatasetError: That file is not JSON.
        """
        return lerobot_files.recorded_quality(self.path)

    @property
    def num_frames(self) -> int:
        """N, frames in all episodes."""
        return len(self.state)

    def __len__(self) -> int:
        return self.num_frames

    @property
    def state_names(self) -> tuple[str, ...]:
        """One name per state dim."""
        return lerobot_files.dim_names(self.info, layout.STATE_KEY)

    @property
    def action_names(self) -> tuple[str, ...]:
        """One name per action dim."""
        return lerobot_files.dim_names(self.info, layout.ACTION_KEY)

    def image_size(self, camera: str) -> tuple[int, int]:
        """Height and width of a camera's images in pixels."""
        height, width = self.info["features"][self._image_key(camera)]["shape"][:2]
        return int(height), int(width)

    def instructions(self, indices: np.ndarray) -> tuple[str, ...]:
        """The language instructions of some frames."""
        return tuple(self.tasks[task] for task in self.task_index[indices])

    def images(self, camera: str, on_progress: Progress | None = None) -> np.ndarray:
        """All images of a camera. Decodes every video once and keeps the result.

        Args:
            camera: One of ``cameras``.
            on_progress: Called now and then while decoding.

        Returns:
            uint8 ``[N, H, W, 3]``, RGB.

        Raises:
            UnknownNameError: No such camera.
            DatasetError: A video is damaged, or holds fewer frames than its episodes need.
        """
        if camera not in self._images:
            self._images[camera] = self._decode_all(camera, on_progress)
        return self._images[camera]

    def frame(self, camera: str, index: int) -> np.ndarray:
        """One image, decoded on its own unless ``images`` has been called.

        Args:
            camera: One of ``cameras``.
            index: Frame number in the dataset.

        Returns:
            uint8 ``[H, W, 3]``, RGB.

        Raises:
            UnknownNameError: No such camera.
            DatasetError: The video is damaged.
        """
        self._image_key(camera)
        if camera in self._images:
            return self._images[camera][index]
        record = self.episodes[self.episode_index[index]]
        span = record.videos[camera]
        image = video.decode_frame(span.path, span.first + index - record.from_index, self.fps)
        self._check_size(span.path, camera, image)
        return image

    def action_chunks(self, indices: np.ndarray, horizon: int) -> tuple[np.ndarray, np.ndarray]:
        """The actions from some frames on. Beyond the end of the episode its last action is repeated and marked.

        Args:
            indices: int ``[B]``, frame numbers.
            horizon: H, actions per chunk.

        Returns:
            Actions float32 ``[B, H, A]`` and is_pad bool ``[B, H]``, true where the action is a repetition.
        """
        last = self._last_frame[self.episode_index[indices]][:, None]
        wanted = np.asarray(indices)[:, None] + np.arange(horizon)
        return self.action[np.minimum(wanted, last)], wanted > last

    def _image_key(self, camera: str) -> str:
        if camera not in self.cameras:
            raise UnknownNameError("camera", camera, self.cameras, f"(dataset {self.path})")
        return self._keys[camera]

    def _check_size(self, path: Path, camera: str, image: np.ndarray) -> None:
        if image.shape[:2] != self.image_size(camera):
            raise DatasetError(
                f"{path}: expected images of {self.image_size(camera)} pixels as meta/info.json says, got "
                f"{image.shape[:2]}; the video belongs to another dataset"
            )

    def _decode_all(self, camera: str, on_progress: Progress | None) -> np.ndarray:
        height, width = self.image_size(camera)
        frames = np.zeros((self.num_frames, height, width, 3), dtype=np.uint8)
        files: dict[Path, list[EpisodeRecord]] = {}
        for record in self.episodes:
            files.setdefault(record.videos[camera].path, []).append(record)
        done = 0
        for path, records in files.items():
            row_of = {
                record.videos[camera].first + offset: record.from_index + offset
                for record in records
                for offset in range(record.length)
            }
            needed = len(row_of)
            for number, image in video.decode_video(path, self.fps):
                row = row_of.pop(number, None)
                if row is None:
                    continue
                self._check_size(path, camera, image)
                frames[row] = image
                done += 1
                if on_progress is not None and done % 100 == 0:
                    on_progress(done, self.num_frames)
            if row_of:
                raise DatasetError(
                    f"{path}: expected {needed} frames for episodes {records[0].index} to {records[-1].index}, got "
                    f"{needed - len(row_of)}; copy the file again, it may be cut off"
                )
        if on_progress is not None:
            on_progress(done, self.num_frames)
        return frames
