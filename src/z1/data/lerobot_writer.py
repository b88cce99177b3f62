"""Writer of LeRobotDataset v3.0 folders.

Episodes are stored one by one in a hidden work folder beside the dataset (``.NAME.recording``), each of them whole or
not at all; ``finish`` builds the dataset from them and moves it into place. So an interrupted recording goes on where
it stopped, and a dataset is never seen half written. Episodes are ordered by their keys, not by their arrival.
"""

from __future__ import annotations

import dataclasses
import fcntl
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from z1.data import lerobot_format as layout
from z1.data import video
from z1.errors import DatasetError
from z1.files import atomic_folder, read_json, write_json

DATA_FILE_BYTES = layout.DATA_FILE_MB * 2**20
VIDEO_FILE_BYTES = layout.VIDEO_FILE_MB * 2**20
LOCK_NAME = "lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class _StoredEpisode:
    """An episode in the work folder."""

    folder: Path
    key: str
    instruction: str
    length: int

    def array(self, name: str) -> np.ndarray:
        return np.load(self.folder / f"{name}.npy", allow_pickle=False)

    def video(self, camera: str) -> Path:
        return self.folder / f"{camera}.mp4"


def refuse_existing(path: Path, replace: bool) -> None:
    """Raises DatasetError when a dataset would be overwritten without being asked for."""
    if path.exists() and not replace:
        raise DatasetError(f"{path} exists already; choose another path, or overwrite it explicitly (overwrite)")


class LeRobotWriter:
    """Collects episodes and writes them as a LeRobotDataset v3.0. A context manager; leaving it keeps unfinished work.

    Attributes:
        path: Where the dataset appears when it is finished.
        work: The hidden work folder; callers may keep small files of their own in ``work / "notes"``.
        layout: What all episodes have in common.
        codec: How images are encoded.
    """

    def __init__(
        self,
        path: str | Path,
        dataset_layout: layout.DatasetLayout,
        *,
        lossless: bool = True,
        identity: Mapping[str, Any] | None = None,
        resume: bool = True,
        replace: bool = False,
    ) -> None:
        """Opens or resumes the work folder.

        Args:
            path: The dataset folder to create.
            dataset_layout: What all episodes have in common.
            lossless: Whether decoded images equal the recorded ones (about 2 kB per 64 x 64 image) or lose a little
                (about 0.5 kB).
            identity: JSON settings of the recording; unfinished work is resumed only if they are the same.
            resume: Whether unfinished work is used; otherwise it is thrown away.
            replace: Whether an existing dataset is replaced by ``finish``.

        Raises:
            DatasetError: The dataset exists already, unfinished work has other settings, or another process writes it.
        """
        self.path = Path(path)
        self.layout = dataset_layout
        self.codec = video.choose_codec(lossless)
        self._replace = replace
        refuse_existing(self.path, replace)
        self.work = self.path.with_name(f".{self.path.name}.recording")
        try:
            self.work.mkdir(parents=True, exist_ok=True)
            self._lock = (self.work / LOCK_NAME).open("w")
        except OSError as error:
            raise DatasetError(f"cannot write {self.path}: {error.strerror}; choose another folder") from error
        try:
            self._take_lock()
            self._open_work(dict(identity or {}), resume)
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> LeRobotWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def keys(self) -> set[str]:
        """Keys of the episodes stored so far, those of an interrupted recording included."""
        return {folder.name for folder in (self.work / "episodes").iterdir() if not folder.name.startswith(".")}

    def add_episode(
        self,
        states: np.ndarray,
        actions: np.ndarray,
        images: Mapping[str, np.ndarray],
        instruction: str,
        *,
        key: str = "",
    ) -> None:
        """Stores an episode of T frames.

        Args:
            states: float ``[T, S]``, before each action.
            actions: float ``[T, A]``.
            images: Camera to uint8 ``[T, H, W, 3]``, RGB, before each action.
            instruction: Language instruction.
            key: Determines the place in the dataset, unique; letters, digits, ``-`` and ``_``. Default: a running
                number.

        Raises:
            DatasetError: The arrays do not fit the layout, or the key is taken.
        """
        self._check_episode(states, actions, images, instruction)
        taken = self.keys()
        key = key or f"{len(taken):06d}"
        if key in taken or not key.replace("-", "").replace("_", "").isalnum():
            raise DatasetError(f"{self.path}: expected a new episode key of letters, digits, - and _, got {key!r}")
        with atomic_folder(self.work / "episodes" / key) as folder:
            np.save(folder / "state.npy", states.astype(np.float32), allow_pickle=False)
            np.save(folder / "action.npy", actions.astype(np.float32), allow_pickle=False)
            for camera in self.layout.cameras:
                frames = images[camera]
                np.save(folder / f"{camera}.npy", layout.image_histogram(frames), allow_pickle=False)
                video.encode_video(folder / f"{camera}.mp4", frames, self.layout.fps, self.codec)
            write_json(folder / "episode.json", {"instruction": instruction, "length": len(states)})

    def finish(self, manifest: Mapping[str, Any] | None = None) -> Path:
        """Writes the dataset and removes the work folder.

        Args:
            manifest: JSON to store as ``meta/z1_manifest.json``.

        Returns:
            The dataset folder.

        Raises:
            DatasetError: No episode has been added.
            RunFolderError: The disk is full or the folder cannot be written.
        """
        episodes = [self._stored(key) for key in sorted(self.keys())]
        if not episodes:
            raise DatasetError(f"{self.path}: no episode has been recorded; add at least one before finishing")
        tasks = list(dict.fromkeys(episode.instruction for episode in episodes))
        with atomic_folder(self.path, replace=self._replace) as folder:
            columns = _all_columns(self.layout, episodes, tasks)
            rows = _episode_rows(self.layout, episodes, columns)
            _write_data(folder, self.layout, columns, rows)
            for camera in self.layout.cameras:
                _write_videos(folder, camera, self.layout.fps, episodes, rows)
            pq_path = folder / layout.EPISODES_PATH.format(**layout.file_position(0))
            pq_path.parent.mkdir(parents=True)
            pq.write_table(pa.Table.from_pylist(rows, schema=layout.episode_schema(self.layout)), pq_path)
            pq.write_table(layout.tasks_table(tasks), folder / layout.TASKS_PATH)
            write_json(folder / layout.STATS_PATH, _dataset_stats(self.layout, episodes, columns))
            frames = sum(episode.length for episode in episodes)
            info = self.layout.info(self.codec, episodes=len(episodes), frames=frames, tasks=len(tasks))
            write_json(folder / layout.INFO_PATH, info)
            if manifest is not None:
                write_json(folder / layout.MANIFEST_PATH, manifest)
        shutil.rmtree(self.work, ignore_errors=True)
        self.close()
        return self.path

    def close(self) -> None:
        """Lets go of the lock; unfinished work stays for the next time."""
        if self._lock.closed:
            return
        if self.work.is_dir() and not self.keys() and not any((self.work / "notes").iterdir()):
            shutil.rmtree(self.work, ignore_errors=True)
        self._lock.close()

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DatasetError(
                f"{self.path} is being recorded by another process; wait for it or choose another path"
            ) from None

    def _open_work(self, identity: Mapping[str, Any], resume: bool) -> None:
        header = {
            "layout": {
                name: list(value) if isinstance(value, tuple) else value
                for name, value in dataclasses.asdict(self.layout).items()
            },
            "codec": dataclasses.asdict(self.codec),
            "identity": identity,
        }
        file = self.work / "header.json"
        if file.is_file() and resume:
            old = read_json(file, DatasetError)
            different = _differences(old, header)
            if different:
                raise DatasetError(
                    f"{self.work} holds an unfinished recording with other settings ({'; '.join(different)}); repeat "
                    "the old settings to finish it, or remove that folder to start again"
                )
        else:
            for entry in self.work.iterdir():
                if entry.is_dir():
                    shutil.rmtree(entry, ignore_errors=True)
                elif entry.name != LOCK_NAME:
                    entry.unlink()
            write_json(file, header)
        (self.work / "episodes").mkdir(exist_ok=True)
        (self.work / "notes").mkdir(exist_ok=True)
        for left_over in (self.work / "episodes").glob(".*"):
            shutil.rmtree(left_over, ignore_errors=True)

    def _check_episode(
        self, states: np.ndarray, actions: np.ndarray, images: Mapping[str, np.ndarray], instruction: str
    ) -> None:
        length = len(states)
        for name, array, names in (
            ("states", states, self.layout.state_names),
            ("actions", actions, self.layout.action_names),
        ):
            if length == 0 or array.shape != (length, len(names)) or not np.isfinite(array).all():
                raise DatasetError(
                    f"{self.path}: expected finite {name} of shape ({max(length, 1)}, {len(names)}), got {array.shape}"
                )
        if set(images) != set(self.layout.cameras):
            raise DatasetError(f"{self.path}: expected images of {self.layout.cameras}, got {tuple(images)}")
        for camera, frames in images.items():
            expected = (length, self.layout.height, self.layout.width, 3)
            if frames.shape != expected or frames.dtype != np.uint8:
                raise DatasetError(
                    f"{self.path}: expected uint8 images of shape {expected} of camera {camera}, got {frames.dtype} "
                    f"{frames.shape}"
                )
        if not instruction.strip():
            raise DatasetError(f"{self.path}: expected an instruction, got an empty text")

    def _stored(self, key: str) -> _StoredEpisode:
        folder = self.work / "episodes" / key
        value = read_json(folder / "episode.json", DatasetError)
        return _StoredEpisode(folder=folder, key=key, instruction=value["instruction"], length=value["length"])


def _differences(old: Any, new: Mapping[str, Any]) -> list[str]:
    """Settings that differ between two headers, as text."""
    if not isinstance(old, dict):
        return ["header.json is damaged"]
    found = []
    for section in new:
        before = old.get(section) or {}
        names = sorted({*before, *new[section]})
        found += [
            f"{name} was {before.get(name)!r}, is {new[section].get(name)!r}"
            for name in names
            if before.get(name) != new[section].get(name)
        ]
    return found


def _all_columns(
    dataset_layout: layout.DatasetLayout, episodes: Sequence[_StoredEpisode], tasks: Sequence[str]
) -> list[dict[str, np.ndarray]]:
    """Per episode, the columns of the data files: vectors ``[T, dim]``, scalars ``[T, 1]``."""
    found = []
    first = 0
    for number, episode in enumerate(episodes):
        steps = np.arange(episode.length)
        scalars: dict[str, np.ndarray] = {
            "timestamp": (steps / dataset_layout.fps).astype(np.float32),
            "frame_index": steps,
            "episode_index": np.full(episode.length, number),
            "index": first + steps,
            "task_index": np.full(episode.length, tasks.index(episode.instruction)),
        }
        vectors: dict[str, np.ndarray] = {
            layout.STATE_KEY: episode.array("state"),
            layout.ACTION_KEY: episode.array("action"),
        }
        found.append({**vectors, **{name: values[:, None] for name, values in scalars.items()}})
        first += episode.length
    return found


def _episode_rows(
    dataset_layout: layout.DatasetLayout,
    episodes: Sequence[_StoredEpisode],
    columns: Sequence[Mapping[str, np.ndarray]],
) -> list[dict[str, Any]]:
    """The rows of the episode table; where data and videos lie is filled in when they are written."""
    rows = []
    first = 0
    for number, episode in enumerate(episodes):
        row: dict[str, Any] = {
            "episode_index": number,
            "tasks": [episode.instruction],
            "length": episode.length,
            "dataset_from_index": first,
            "dataset_to_index": first + episode.length,
            **{f"meta/episodes/{name}": index for name, index in layout.file_position(0).items()},
        }
        for name, values in columns[number].items():
            row |= layout.flat_summary(name, layout.vector_summary(values))
        for camera in dataset_layout.cameras:
            summary = layout.histogram_summary(episode.array(camera), episode.length)
            row |= layout.flat_summary(layout.IMAGE_PREFIX + camera, summary)
        rows.append(row)
        first += episode.length
    return rows


def _write_data(
    folder: Path,
    dataset_layout: layout.DatasetLayout,
    columns: Sequence[Mapping[str, np.ndarray]],
    rows: Sequence[dict[str, Any]],
) -> None:
    """Writes the data files, one row group per episode, and fills in where each episode is."""
    schema = layout.data_schema(dataset_layout)
    sizes = [sum(values.nbytes for values in episode.values()) for episode in columns]
    file_of = _into_files(sizes, DATA_FILE_BYTES)
    for number in sorted(set(file_of)):
        position = layout.file_position(number)
        file = folder / layout.DATA_PATH.format(**position)
        file.parent.mkdir(parents=True, exist_ok=True)
        with pq.ParquetWriter(file, schema, compression="snappy", use_dictionary=True) as writer:
            for index in range(len(rows)):
                if file_of[index] == number:
                    writer.write_table(_data_table(schema, columns[index]))
                    rows[index].update({f"data/{name}": value for name, value in position.items()})


def _data_table(schema: pa.Schema, columns: Mapping[str, np.ndarray]) -> pa.Table:
    arrays = []
    for field in schema:
        flat = pa.array(columns[field.name].ravel())
        if pa.types.is_fixed_size_list(field.type):
            flat = pa.FixedSizeListArray.from_arrays(flat, type=field.type)
        arrays.append(flat)
    return pa.Table.from_arrays(arrays, schema=schema)


def _write_videos(
    folder: Path, camera: str, fps: int, episodes: Sequence[_StoredEpisode], rows: Sequence[dict[str, Any]]
) -> None:
    """Joins the episodes' videos of one camera into files, and fills in where each episode is."""
    key = layout.IMAGE_PREFIX + camera
    parts = [episode.video(camera) for episode in episodes]
    kinds = [video.stream_parameters(part) for part in parts]
    file_of = _into_files([part.stat().st_size for part in parts], VIDEO_FILE_BYTES, kinds)
    for number in sorted(set(file_of)):
        position = layout.file_position(number)
        file = folder / layout.VIDEO_PATH.format(video_key=key, **position)
        file.parent.mkdir(parents=True, exist_ok=True)
        members = [index for index in range(len(episodes)) if file_of[index] == number]
        video.join_videos([parts[index] for index in members], file, fps)
        frames = 0
        for index in members:
            rows[index].update({f"videos/{key}/{name}": value for name, value in position.items()})
            rows[index][f"videos/{key}/from_timestamp"] = frames / fps
            frames += episodes[index].length
            rows[index][f"videos/{key}/to_timestamp"] = frames / fps


def _into_files(sizes: Sequence[int], limit: int, kinds: Sequence[bytes] | None = None) -> list[int]:
    """Which file each episode goes to: in order, a new file at the size limit or when the kind changes."""
    found: list[int] = []
    used = 0
    for index, size in enumerate(sizes):
        file = found[-1] if found else 0
        changed = kinds is not None and index > 0 and kinds[index] != kinds[index - 1]
        if found and (used + size > limit or changed):
            file, used = file + 1, 0
        found.append(file)
        used += size
    return found


def _dataset_stats(
    dataset_layout: layout.DatasetLayout,
    episodes: Sequence[_StoredEpisode],
    columns: Sequence[Mapping[str, np.ndarray]],
) -> dict[str, layout.Summary]:
    """``stats.json``: exact over all frames, where LeRobot writes an envelope of the episodes' quantiles."""
    stats = {name: layout.vector_summary(np.concatenate([episode[name] for episode in columns])) for name in columns[0]}
    frames = sum(episode.length for episode in episodes)
    for camera in dataset_layout.cameras:
        histogram = np.sum([episode.array(camera) for episode in episodes], axis=0)
        stats[layout.IMAGE_PREFIX + camera] = layout.histogram_summary(histogram, frames)
    return stats
