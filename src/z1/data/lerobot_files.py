"""Checked reading of the parts of a LeRobotDataset v3.0: every way a copy can be damaged has its message.

The functions are the steps of ``z1.data.lerobot.LeRobotDataset.open``, in its order.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from z1.data import lerobot_format as layout
from z1.data.stats import FeatureStats, compute_stats
from z1.errors import DatasetError
from z1.files import read_json

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoSpan:
    """Where an episode lies in a camera's video file.

    Attributes:
        path: The file.
        first: Number of the episode's first frame in the file.
    """

    path: Path
    first: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeRecord:
    """One episode of a dataset.

    Attributes:
        index: Episode number, from 0.
        length: Frames.
        instruction: Language instruction; of the first frame, if it changes within the episode.
        from_index: Number of its first frame in the dataset; its frames are ``from_index .. from_index + length - 1``.
        videos: Where its images are, by camera.
    """

    index: int
    length: int
    instruction: str
    from_index: int
    videos: Mapping[str, VideoSpan]


def camera_keys(info: Mapping[str, Any]) -> dict[str, str]:
    """Feature key by camera name, in the order of ``info.json``. The usual prefix is not part of the name."""
    keys = [key for key, feature in info["features"].items() if feature["dtype"] == "video"]
    return {key.removeprefix(layout.IMAGE_PREFIX): key for key in keys}


def dim_names(info: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """One name per dim of a vector feature; numbers where the file has no names."""
    feature = info["features"][key]
    names = feature.get("names")
    if isinstance(names, dict):
        names = next(iter(names.values()), None)
    width = feature["shape"][0]
    if not isinstance(names, list) or len(names) != width:
        return tuple(str(dim) for dim in range(width))
    return tuple(str(name) for name in names)


def read_info(path: Path) -> dict[str, Any]:
    """``meta/info.json``, checked."""
    if not path.is_dir():
        raise DatasetError(f"dataset folder {path} does not exist; give the folder that holds meta, data and videos")
    file = path / layout.INFO_PATH
    if not file.is_file():
        raise DatasetError(
            f"{file} is missing, so {path} is not a LeRobotDataset; give the folder that holds meta, data and videos"
        )
    info = read_json(file, DatasetError)
    version = info.get("codebase_version") if isinstance(info, dict) else None
    if not isinstance(version, str) or not version.startswith("v3."):
        fix = "write it again with LeRobot 0.4 or later"
        if isinstance(version, str) and version.startswith("v2."):
            fix = f"bring it in with z1 import {path} --out NEW"
        raise DatasetError(f"{file}: expected codebase_version {layout.CODEBASE_VERSION}, got {version}; {fix}")
    for name in ("fps", "total_frames", "total_episodes"):
        value = info.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            raise DatasetError(f"{file}: expected a positive number {name}, got {value!r}; record at least one episode")
    features = info.get("features")
    if not isinstance(features, dict):
        raise DatasetError(f"{file}: expected an object features, got {features!r}; copy the file again")
    check_features(file, features)
    return info


def check_features(file: Path, features: Mapping[str, Any]) -> None:
    """Refuses features that z1 cannot read: single images, depth maps, vectors of other kinds, no state or action."""
    for key, feature in features.items():
        if not isinstance(feature, dict) or "dtype" not in feature or not isinstance(feature.get("shape"), list):
            raise DatasetError(f"{file}: expected feature {key} to have dtype and shape, got {feature!r}")
        if feature["dtype"] == "image":
            raise DatasetError(
                f"{file}: feature {key} holds single images, expected dtype video; convert it with LeRobot's "
                "lerobot-edit-dataset (convert_image_to_video)"
            )
        if feature["dtype"] == "video":
            depth = {**feature, **(feature.get("info") or {})}.get("is_depth_map", False)
            if len(feature["shape"]) != 3 or feature["shape"][2] != 3 or depth:
                raise DatasetError(
                    f"{file}: expected video {key} to have shape [height, width, 3], got {feature['shape']}"
                    f"{' (a depth map)' if depth else ''}; remove that feature with LeRobot's lerobot-edit-dataset"
                )
    for key in (layout.STATE_KEY, layout.ACTION_KEY):
        if key not in features:
            raise DatasetError(
                f"{file}: feature {key} is missing, got {', '.join(sorted(features))}; rename the feature"
            )
        if len(features[key]["shape"]) != 1 or not str(features[key]["dtype"]).startswith("float"):
            raise DatasetError(f"{file}: expected {key} to be a float vector, got {features[key]}; convert the feature")


def read_tables(path: Path, files: Sequence[Path], what: str) -> pa.Table:
    """Parquet files as one table; ``what`` names them in error messages, relative to ``path``."""
    if not files:
        raise DatasetError(f"{path / what}: no such file; copy the whole dataset folder")
    tables = []
    for file in files:
        try:
            tables.append(pq.read_table(file, partitioning=None))
        except FileNotFoundError:
            raise DatasetError(f"{file} is missing; copy the whole dataset folder") from None
        except (pa.ArrowException, OSError) as problem:
            raise DatasetError(
                f"{file}: expected a parquet file, it cannot be read ({problem}); copy it again"
            ) from None
    try:
        return pa.concat_tables(tables, promote_options="default")
    except pa.ArrowException as problem:
        raise DatasetError(f"{path / what}: the files have different columns ({problem}); copy them again") from None


def _column(table: pa.Table, name: str, where: str) -> list[Any]:
    if name not in table.column_names:
        raise DatasetError(f"{where}: column {name} is missing; write the dataset again with LeRobot 0.4 or later")
    return table.column(name).to_pylist()


def read_tasks(path: Path) -> list[str]:
    """The instructions, in the order of their task index."""
    table = read_tables(path, [path / layout.TASKS_PATH], layout.TASKS_PATH)
    where = str(path / layout.TASKS_PATH)
    name = "task" if "task" in table.column_names else "__index_level_0__"
    numbered = dict(zip(_column(table, "task_index", where), _column(table, name, where), strict=True))
    if sorted(numbered) != list(range(len(numbered))) or not all(isinstance(task, str) for task in numbered.values()):
        raise DatasetError(
            f"{where}: expected task_index 0, 1, 2, ... with one text each, got {numbered}; repair the table"
        )
    return [numbered[index] for index in range(len(numbered))]


def read_episodes(path: Path, info: Mapping[str, Any]) -> tuple[list[EpisodeRecord], list[Path]]:
    """The episodes of ``meta/episodes`` in order, and the data files in order."""
    table = read_tables(path, sorted((path / "meta/episodes").glob("*/*.parquet")), "meta/episodes/*/*.parquet")
    where = str(path / "meta/episodes")
    names = ["episode_index", "tasks", "length", "dataset_from_index", "dataset_to_index"]
    names += ["data/chunk_index", "data/file_index"]
    cameras = camera_keys(info)
    for key in cameras.values():
        names += [f"videos/{key}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
    columns = {name: _column(table, name, where) for name in names}
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    rows.sort(key=lambda row: row["episode_index"])
    if len(rows) != info["total_episodes"]:
        raise DatasetError(
            f"{where}: expected {info['total_episodes']} episodes as {layout.INFO_PATH} says, got {len(rows)}; copy "
            "the whole meta folder"
        )
    episodes: list[EpisodeRecord] = []
    files: dict[Path, None] = {}
    frames = 0
    for number, row in enumerate(rows):
        bounds = (row["dataset_from_index"], row["dataset_to_index"], row["episode_index"])
        if bounds != (frames, frames + row["length"], number) or row["length"] <= 0 or not row["tasks"]:
            raise DatasetError(
                f"{where}: expected episode {number} to be frames {frames} to {frames + row['length']} of the dataset, "
                f"got episode {bounds[2]} with frames {bounds[0]} to {bounds[1]}; repair the dataset with LeRobot"
            )
        data = {name: row[f"data/{name}"] for name in ("chunk_index", "file_index")}
        files[path / str(info.get("data_path") or layout.DATA_PATH).format(**data)] = None
        videos = {}
        for camera, key in cameras.items():
            position = {name: row[f"videos/{key}/{name}"] for name in ("chunk_index", "file_index")}
            file = str(info.get("video_path") or layout.VIDEO_PATH).format(video_key=key, **position)
            first = round(row[f"videos/{key}/from_timestamp"] * info["fps"])
            videos[camera] = VideoSpan(path=path / file, first=first)
        episodes.append(
            EpisodeRecord(
                index=number, length=row["length"], instruction=row["tasks"][0], from_index=frames, videos=videos
            )
        )
        frames += row["length"]
    if frames != info["total_frames"]:
        raise DatasetError(
            f"{where}: expected {info['total_frames']} frames as {layout.INFO_PATH} says, the episodes have {frames}; "
            "copy the whole meta folder"
        )
    return episodes, list(files)


def read_columns(path: Path, info: Mapping[str, Any], files: Sequence[Path]) -> dict[str, np.ndarray]:
    """The vector and index columns of the data files: float32 ``[N, dim]`` and int64 ``[N]``."""
    table = read_tables(path, files, "data/*/*.parquet")
    expected = int(info["total_frames"])
    if table.num_rows != expected:
        listed = ", ".join(str(file.relative_to(path)) for file in files[:3]) + (", ..." if len(files) > 3 else "")
        raise DatasetError(
            f"{path}: expected {expected} rows in {listed} as {layout.INFO_PATH} says, got {table.num_rows}; copy the "
            "whole data folder"
        )
    columns: dict[str, np.ndarray] = {}
    for name in ("episode_index", "task_index", "frame_index"):
        if name not in table.column_names or table.column(name).null_count:
            raise DatasetError(f"{path / 'data'}: column {name} is missing or has gaps; copy the whole data folder")
        columns[name] = table.column(name).to_numpy().astype(np.int64)
    for key in (layout.STATE_KEY, layout.ACTION_KEY):
        if key not in table.column_names:
            raise DatasetError(f"{path / 'data'}: column {key} is missing; copy the whole data folder")
        width = int(info["features"][key]["shape"][0])
        columns[key] = vector_column(table, key, width, path / "data")
    return columns


def vector_column(table: pa.Table, key: str, width: int, where: Path) -> np.ndarray:
    """A vector column of a data file.

    Args:
        table: N rows.
        key: The column.
        width: Numbers per row.
        where: What the table was read from, for the error message.

    Returns:
        float32 ``[N, width]``.

    Raises:
        DatasetError: It holds another number of numbers.
    """
    flat = table.column(key).combine_chunks()
    values = flat.flatten().to_numpy(zero_copy_only=False) if pa.types.is_nested(flat.type) else flat.to_numpy()
    if values.size != table.num_rows * width:
        raise DatasetError(
            f"{where}: expected {key} of width {width} in {table.num_rows} rows as {layout.INFO_PATH} says, got "
            f"{values.size} numbers; the files belong to another dataset"
        )
    return np.ascontiguousarray(values.reshape(table.num_rows, width), dtype=np.float32)


def check_columns(path: Path, episodes: Sequence[EpisodeRecord], columns: Mapping[str, np.ndarray], tasks: int) -> None:
    """Checks that the rows are those of the episodes, in order, and finite."""
    lengths = [record.length for record in episodes]
    expected = {
        "episode_index": np.repeat(np.arange(len(episodes)), lengths),
        "frame_index": np.concatenate([np.arange(length) for length in lengths]),
    }
    for name, wanted in expected.items():
        wrong = np.flatnonzero(columns[name] != wanted)
        if len(wrong):
            row = wrong[0]
            raise DatasetError(
                f"{path / 'data'}: expected {name} {wanted[row]} in row {row} as meta/episodes says, got "
                f"{columns[name][row]}; copy the whole dataset folder"
            )
    if columns["task_index"].min() < 0 or columns["task_index"].max() >= tasks:
        raise DatasetError(
            f"{path / 'data'}: expected task_index 0 to {tasks - 1} as {layout.TASKS_PATH} says, got "
            f"{columns['task_index'].min()} to {columns['task_index'].max()}; copy the whole dataset folder"
        )
    for key in (layout.STATE_KEY, layout.ACTION_KEY):
        bad = np.argwhere(~np.isfinite(columns[key]))
        if len(bad):
            raise DatasetError(
                f"{path / 'data'}: expected finite numbers in {key}, got {columns[key][tuple(bad[0])]} in row "
                f"{bad[0][0]}, dim {bad[0][1]}; remove episode {columns['episode_index'][bad[0][0]]}"
            )


def read_stats(path: Path, columns: Mapping[str, np.ndarray]) -> dict[str, FeatureStats]:
    """Statistics of state and action; what ``meta/stats.json`` lacks is computed, with a warning."""
    file = path / layout.STATS_PATH
    value = read_json(file, DatasetError) if file.is_file() else {}
    stats = {}
    for key in (layout.STATE_KEY, layout.ACTION_KEY):
        read = (
            FeatureStats.from_json(value.get(key, {}), f"{file}: {key}") if isinstance(value, dict) else FeatureStats()
        )
        width = columns[key].shape[1]
        if read.dim not in (0, width):
            raise DatasetError(
                f"{file}: expected {width} numbers for {key}, got {read.dim}; remove the file to compute it"
            )
        if read.q01 is None or read.q99 is None or read.mean is None or read.std is None:
            logger.warning("%s has no full statistics of %s; computed from all %d frames", file, key, len(columns[key]))
            read = compute_stats(columns[key])
        stats[key] = read
    return stats


def recorded_quality(path: Path) -> str:
    """How the simulator rendered a dataset's images, as ``meta/z1_manifest.json`` says; empty: not known.

    Raises:
        DatasetError: That file is not JSON.
    """
    file = path / layout.MANIFEST_PATH
    manifest = read_json(file, DatasetError) if file.is_file() else None
    return str(manifest.get("quality", "")) if isinstance(manifest, dict) else ""
