"""LeRobot datasets of version 2: a parquet file and a video per camera for each episode.

```
meta/info.json       codebase_version v2.0 or v2.1, fps, features, data_path, video_path, chunks_size
meta/episodes.jsonl  episode_index, tasks, length           meta/tasks.jsonl    task_index, task
meta/modality.json   where the parts of state and action are; only in sets made for GR00T
data/chunk-000/episode_000000.parquet                       videos/chunk-000/<feature key>/episode_000000.mp4
```
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from z1.data import lerobot_files, video
from z1.data import lerobot_format as layout
from z1.data.sources.orders import Order, Vectors, choose_order
from z1.data.sources.source import EpisodeVectors, in_parts, whole_fps
from z1.errors import DatasetError
from z1.files import read_json

DATA_PATH = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO_PATH = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
MODALITY_PATH = "meta/modality.json"
TASK_COLUMNS = ("annotation.human.action.task_description", "annotation.human.task_description")
"""Columns that hold the index of the instruction in the GR00T sets and those of RoboCasa v1.0; else ``task_index``."""


class LeRobotV2Source:
    """One dataset folder. See ``Source``."""

    def __init__(self, path: Path, robot_layout: str, order: str) -> None:
        """Reads the meta data.

        Args:
            path: The folder.
            robot_layout: See ``choose_order``.
            order: See ``choose_order``.

        Raises:
            DatasetError: Something is missing or damaged, or the numbers are in an unknown order.
        """
        self.path = path
        self._info = _read_info(path)
        self.fps = whole_fps(self._info["fps"], path / layout.INFO_PATH)
        self.robot = str(self._info.get("robot_type") or "unknown")
        self._order = choose_order(file_vectors(path, self._info), robot_layout, order, path)
        self.state_names, self.action_names = self._order.state_names, self._order.action_names
        keys = lerobot_files.camera_keys(self._info)
        self._keys = {self._order.cameras[camera]: key for camera, key in keys.items()}
        self.cameras = self.default_cameras = tuple(self._keys)
        self._tasks = self._read_tasks()
        self._lengths = self._read_episodes()
        self.episodes = tuple(f"episode {index}" for index in self._lengths)

    def image_size(self, camera: str) -> tuple[int, int]:
        """Height and width of a camera's images in pixels."""
        feature = self._info["features"][self._keys[camera]]
        shape = [int(number) for number in feature["shape"]]
        height, width = shape[1:] if shape[0] == 3 and shape[2] != 3 else shape[:2]
        return height, width

    def vectors(self, episode: str) -> EpisodeVectors:
        """State, action and instruction of an episode."""
        index = _index(episode)
        file = self._file("data_path", DATA_PATH, index)
        table = lerobot_files.read_tables(self.path, [file], str(file))
        length = self._lengths[index]
        if table.num_rows != length:
            raise DatasetError(
                f"{file}: expected {length} rows as meta/episodes.jsonl says, got {table.num_rows}; copy it again"
            )
        values = {}
        for key in (layout.STATE_KEY, layout.ACTION_KEY):
            if key not in table.column_names:
                raise DatasetError(f"{file}: column {key} is missing; copy the file again")
            width = int(self._info["features"][key]["shape"][0])
            values[key] = lerobot_files.vector_column(table, key, width, file)
        where = str(file)
        return EpisodeVectors(
            states=self._order.state(values[layout.STATE_KEY], where),
            actions=self._order.action(values[layout.ACTION_KEY], where),
            instruction=self._instruction(table, file),
            odd_switches=self._order.odd_switches(values[layout.ACTION_KEY]),
        )

    def frames(self, episode: str, camera: str) -> Iterator[np.ndarray]:
        """The images of an episode, a part at a time."""
        index = _index(episode)
        file = self._file("video_path", VIDEO_PATH, index, self._keys[camera])
        images = (image for _, image in video.decode_video(file, self.fps))
        yield from in_parts(images, self._lengths[index], self.image_size(camera), file)

    def recording(self, episode: str, vectors: EpisodeVectors) -> None:
        """None: these datasets hold no simulator states."""

    def facts(self) -> dict[str, Any]:
        """JSON about the dataset."""
        return {
            "kind": f"lerobot {self._info['codebase_version']}",
            "folder": self.path.name,
            "robot_type": self.robot,
            **order_facts(self._order),
        }

    def close(self) -> None:
        """Nothing is open between calls."""

    def _file(self, name: str, usual: str, index: int, key: str = "") -> Path:
        """A file of an episode."""
        template = str(self._info.get(name) or usual)
        chunk = index // self._info["chunks_size"]
        try:
            return self.path / template.format(episode_chunk=chunk, episode_index=index, video_key=key)
        except (LookupError, ValueError, AttributeError):
            raise DatasetError(
                f"{self.path / layout.INFO_PATH}: expected {name} like {usual}, got {template}; copy the file again"
            ) from None

    def _read_tasks(self) -> dict[int, str]:
        rows = _read_lines(self.path / "meta/tasks.jsonl", {"task_index": int, "task": str})
        return {row["task_index"]: row["task"] for row in rows}

    def _read_episodes(self) -> dict[int, int]:
        """Length by episode index."""
        file = self.path / "meta/episodes.jsonl"
        rows = _read_lines(file, {"episode_index": int, "length": int})
        lengths = {row["episode_index"]: row["length"] for row in rows}
        expected = self._info.get("total_episodes")
        if len(lengths) != len(rows) or len(rows) != expected or min(lengths.values(), default=0) <= 0:
            raise DatasetError(
                f"{file}: expected {expected} different episodes with frames as {layout.INFO_PATH} says, got "
                f"{len(lengths)}; copy the whole meta folder"
            )
        return dict(sorted(lengths.items()))

    def _instruction(self, table: Any, file: Path) -> str:
        column = next((name for name in TASK_COLUMNS if name in table.column_names), "task_index")
        if column not in table.column_names:
            raise DatasetError(f"{file}: column {column} is missing; copy the file again")
        numbers = set(table.column(column).to_pylist())
        if len(numbers) != 1:
            raise DatasetError(
                f"{file}: expected one instruction in the episode, got {len(numbers)} in column {column}; "
                "split the episode where the instruction changes"
            )
        (number,) = numbers
        if number not in self._tasks:
            raise DatasetError(f"{file}: column {column} holds {number}, which meta/tasks.jsonl does not explain")
        return self._tasks[number]


def file_vectors(path: Path, info: Mapping[str, Any]) -> Vectors:
    """What a LeRobot dataset says about its numbers.

    Raises:
        DatasetError: ``meta/modality.json`` is damaged.
    """
    file = path / MODALITY_PATH
    modality = read_json(file, DatasetError) if file.is_file() else None
    if modality is not None and not isinstance(modality, dict):
        raise DatasetError(f"{file}: expected an object with state and action, got {type(modality).__name__}")
    return Vectors(
        state_names=lerobot_files.dim_names(info, layout.STATE_KEY),
        action_names=lerobot_files.dim_names(info, layout.ACTION_KEY),
        cameras=tuple(lerobot_files.camera_keys(info)),
        modality=modality,
    )


def order_facts(order: Order) -> dict[str, Any]:
    """JSON about an order, for the manifest."""
    return {
        "order": order.name,
        "order_assumed": not order.confirmed,
        "state_columns": list(order.state_columns),
        "action_columns": list(order.action_columns),
        "cameras": dict(order.cameras),
    }


def _index(episode: str) -> int:
    return int(episode.removeprefix("episode "))


def _read_info(path: Path) -> dict[str, Any]:
    file = path / layout.INFO_PATH
    info = read_json(file, DatasetError)
    for name in ("fps", "chunks_size"):
        value = info.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            raise DatasetError(f"{file}: expected a positive number {name}, got {value!r}; copy the file again")
    features = info.get("features")
    if not isinstance(features, dict):
        raise DatasetError(f"{file}: expected an object features, got {features!r}; copy the file again")
    lerobot_files.check_features(file, {key: _v3_feature(feature) for key, feature in features.items()})
    return dict(info)


def _v3_feature(feature: Any) -> Any:
    """A feature as version 3 describes it: videos with channels last."""
    if isinstance(feature, dict) and feature.get("dtype") == "video":
        shape = feature.get("shape")
        if isinstance(shape, list) and len(shape) == 3 and shape[0] == 3 and shape[2] != 3:
            return {**feature, "shape": [*shape[1:], 3]}
    return feature


def _read_lines(file: Path, fields: Mapping[str, type]) -> list[dict[str, Any]]:
    """A file with one JSON object per line."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise DatasetError(f"{file} is missing; copy the whole meta folder") from None
    except (OSError, UnicodeDecodeError) as problem:
        raise DatasetError(f"{file} cannot be read: {problem}") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not all(type(row.get(name)) is kind for name, kind in fields.items()):
            raise DatasetError(
                f"{file}: expected an object with {' and '.join(fields)} in line {number}, got {line.strip()!r:.60}; "
                "copy the file again"
            )
        rows.append(row)
    return rows
