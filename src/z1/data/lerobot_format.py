"""The layout of a LeRobotDataset v3.0 on disk: names, schemas and per-feature summaries, shared by reader and writer.

```
meta/info.json      fps, features, totals         meta/tasks.parquet          task_index, task
meta/stats.json     one summary per feature       meta/episodes/chunk-000/file-000.parquet   one row per episode
data/chunk-000/file-000.parquet                   state, action, time stamp and indices, one row per frame
videos/observation.images.<camera>/chunk-000/file-000.mp4   the episodes of a camera, one behind the other
```

Source: files written by LeRobot 0.6.2, see ``tests/unit/fixtures``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from z1.data.video import VideoCodec, video_info

CODEBASE_VERSION = "v3.0"
STATE_KEY = "observation.state"
ACTION_KEY = "action"
IMAGE_PREFIX = "observation.images."

INFO_PATH = "meta/info.json"
STATS_PATH = "meta/stats.json"
TASKS_PATH = "meta/tasks.parquet"
MANIFEST_PATH = "meta/z1_manifest.json"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"

CHUNKS_SIZE = 1000
"""Files of a chunk folder."""
DATA_FILE_MB = 100
VIDEO_FILE_MB = 200

INDEX_FEATURES = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
"""The columns every dataset has besides its own features, in order."""

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
SUMMARY_KEYS = ("min", "max", "mean", "std", "count", *QUANTILES)

Summary = dict[str, Any]
"""One feature's statistics in the nesting LeRobot writes: lists, image statistics as ``[3][1][1]`` in [0, 1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetLayout:
    """What all episodes of a dataset have in common.

    Attributes:
        fps: Frames per second; one frame is one env step.
        state_names: One name per state dim (S of them).
        action_names: One name per env action dim (A of them).
        cameras: Camera names, in order; may be empty.
        height: Image height in pixels.
        width: Image width in pixels.
        robot_type: Free text for ``info.json``.
    """

    fps: int
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    cameras: tuple[str, ...]
    height: int
    width: int
    robot_type: str

    def features(self, codec: VideoCodec) -> dict[str, Any]:
        """The ``features`` block of ``info.json``."""
        found: dict[str, Any] = {
            STATE_KEY: {"dtype": "float32", "shape": [len(self.state_names)], "names": list(self.state_names)},
            ACTION_KEY: {"dtype": "float32", "shape": [len(self.action_names)], "names": list(self.action_names)},
        }
        for camera in self.cameras:
            found[IMAGE_PREFIX + camera] = {
                "dtype": "video",
                "shape": [self.height, self.width, 3],
                "names": ["height", "width", "channels"],
                "info": video_info(codec, self.height, self.width, self.fps),
            }
        for name, dtype in INDEX_FEATURES.items():
            found[name] = {"dtype": dtype, "shape": [1], "names": None}
        return found

    def info(self, codec: VideoCodec, *, episodes: int, frames: int, tasks: int) -> dict[str, Any]:
        """The content of ``info.json``."""
        return {
            "codebase_version": CODEBASE_VERSION,
            "fps": self.fps,
            "features": self.features(codec),
            "total_episodes": episodes,
            "total_frames": frames,
            "total_tasks": tasks,
            "chunks_size": CHUNKS_SIZE,
            "data_files_size_in_mb": DATA_FILE_MB,
            "video_files_size_in_mb": VIDEO_FILE_MB,
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH if self.cameras else None,
            "robot_type": self.robot_type,
            "splits": {"train": f"0:{episodes}"},
        }


def vector_summary(values: np.ndarray) -> Summary:
    """Summary of a vector or scalar feature.

    Args:
        values: ``[N, dim]``.

    Returns:
        Lists of dim numbers; ``count`` is ``[N]``. The standard deviation is the population's, quantiles are exact.
    """
    wide = values.astype(np.float64)
    quantiles = np.quantile(wide, list(QUANTILES.values()), axis=0)
    return {
        "min": wide.min(axis=0).tolist(),
        "max": wide.max(axis=0).tolist(),
        "mean": wide.mean(axis=0).tolist(),
        "std": wide.std(axis=0).tolist(),
        "count": [len(values)],
        **{name: row.tolist() for name, row in zip(QUANTILES, quantiles, strict=True)},
    }


def image_histogram(frames: np.ndarray) -> np.ndarray:
    """How often each value occurs in each channel.

    Args:
        frames: uint8 ``[T, H, W, 3]``.

    Returns:
        int64 ``[3, 256]``; histograms of several episodes add up.
    """
    return np.stack([np.bincount(frames[..., channel].ravel(), minlength=256) for channel in range(3)]).astype(np.int64)


def histogram_summary(histogram: np.ndarray, frames: int) -> Summary:
    """Summary of an image feature, exact, from its histogram.

    Args:
        histogram: int64 ``[3, 256]``.
        frames: Number of frames counted; LeRobot's ``count`` of an image feature.

    Returns:
        Numbers in [0, 1], nested ``[3][1][1]``; ``count`` is ``[frames]``.
    """
    levels = np.arange(256) / 255.0
    pixels = histogram.sum(axis=1)
    mean = histogram @ levels / pixels
    std = np.sqrt(np.maximum(histogram @ levels**2 / pixels - mean**2, 0.0))
    cumulative = histogram.cumsum(axis=1)

    def order_statistic(channel: int, rank: float) -> float:
        return float(levels[np.searchsorted(cumulative[channel], rank, side="right")])

    def quantile(channel: int, q: float) -> float:
        rank = q * (pixels[channel] - 1)
        low, high = order_statistic(channel, np.floor(rank)), order_statistic(channel, np.ceil(rank))
        return low + (high - low) * float(rank - np.floor(rank))

    def nested(numbers: Sequence[float]) -> list[list[list[float]]]:
        return [[[float(number)]] for number in numbers]

    return {
        "min": nested([quantile(channel, 0.0) for channel in range(3)]),
        "max": nested([quantile(channel, 1.0) for channel in range(3)]),
        "mean": nested(mean.tolist()),
        "std": nested(std.tolist()),
        "count": [frames],
        **{name: nested([quantile(channel, q) for channel in range(3)]) for name, q in QUANTILES.items()},
    }


def data_schema(layout: DatasetLayout) -> pa.Schema:
    """Schema of the data files, with the feature types that the ``datasets`` library reads from the metadata."""
    widths = {STATE_KEY: len(layout.state_names), ACTION_KEY: len(layout.action_names)}
    vectors = [pa.field(key, pa.list_(pa.field("element", pa.float32()), width)) for key, width in widths.items()]
    scalars = [pa.field(name, pa.from_numpy_dtype(np.dtype(dtype))) for name, dtype in INDEX_FEATURES.items()]
    features: dict[str, Any] = {
        key: {"feature": {"dtype": "float32", "_type": "Value"}, "length": width, "_type": "List"}
        for key, width in widths.items()
    }
    features |= {name: {"dtype": dtype, "_type": "Value"} for name, dtype in INDEX_FEATURES.items()}
    return pa.schema([*vectors, *scalars], metadata={"huggingface": json.dumps({"info": {"features": features}})})


def tasks_table(tasks: Sequence[str]) -> pa.Table:
    """The table of tasks, readable by pandas with the instruction as its index, as LeRobot expects it."""
    column = {"metadata": None, "field_name": "task_index", "name": "task_index"}
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [
            {**column, "pandas_type": "int64", "numpy_type": "int64"},
            {"name": "task", "field_name": "task", "pandas_type": "unicode", "numpy_type": "object", "metadata": None},
        ],
        "creator": {"library": "pyarrow", "version": pa.__version__},
    }
    schema = pa.schema(
        [("task_index", pa.int64()), ("task", pa.large_string())], metadata={"pandas": json.dumps(pandas)}
    )
    return pa.table({"task_index": range(len(tasks)), "task": list(tasks)}, schema=schema)


def episode_schema(layout: DatasetLayout) -> pa.Schema:
    """Schema of the episode table."""
    fields: list[tuple[str, pa.DataType]] = [
        ("episode_index", pa.int64()),
        ("tasks", pa.list_(pa.field("element", pa.string()))),
        ("length", pa.int64()),
        ("data/chunk_index", pa.int64()),
        ("data/file_index", pa.int64()),
        ("dataset_from_index", pa.int64()),
        ("dataset_to_index", pa.int64()),
    ]
    images = [IMAGE_PREFIX + camera for camera in layout.cameras]
    for key in images:
        fields += [(f"videos/{key}/{name}", pa.int64()) for name in ("chunk_index", "file_index")]
        fields += [(f"videos/{key}/{name}", pa.float64()) for name in ("from_timestamp", "to_timestamp")]
    for key in (STATE_KEY, ACTION_KEY, *images, *INDEX_FEATURES):
        numbers: pa.DataType = pa.float64()
        for _ in range(3 if key in images else 1):
            numbers = pa.list_(pa.field("element", numbers))
        counts = pa.list_(pa.field("element", pa.int64()))
        fields += [(f"stats/{key}/{name}", counts if name == "count" else numbers) for name in SUMMARY_KEYS]
    fields += [(f"meta/episodes/{name}", pa.int64()) for name in ("chunk_index", "file_index")]
    return pa.schema(fields)


def file_position(number: int, chunks_size: int = CHUNKS_SIZE) -> dict[str, int]:
    """Chunk and file index of the n-th file of a kind."""
    return {"chunk_index": number // chunks_size, "file_index": number % chunks_size}


def flat_summary(key: str, summary: Mapping[str, Any]) -> dict[str, Any]:
    """A summary as columns of the episode table."""
    return {f"stats/{key}/{name}": summary[name] for name in SUMMARY_KEYS}
