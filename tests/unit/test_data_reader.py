"""The LeRobotDataset reader against what LeRobot's own reader returns, and every kind of damage."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from z1.data.lerobot import LeRobotDataset
from z1.data.stats import compute_stats
from z1.errors import DatasetError, UnknownNameError

SAMPLE = Path(__file__).parent / "fixtures/lerobot_v3_sample/dataset"
CAMERAS = ("corner2", "gripperPOV")
VIDEO = "videos/observation.images.corner2/chunk-000/file-000.mp4"
DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"


@pytest.fixture(scope="module")
def dataset() -> LeRobotDataset:
    return LeRobotDataset.open(SAMPLE)


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    with np.load(SAMPLE.parent / "expected.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(SAMPLE, tmp_path / "dataset")
    return tmp_path / "dataset"


def edit_json(file: Path, change: Callable[[Any], None]) -> None:
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def edit_table(file: Path, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
    table = pq.read_table(file, partitioning=None)
    pq.write_table(pa.Table.from_pylist(change(table.to_pylist()), schema=table.schema), file)


def test_meta_data(dataset: LeRobotDataset) -> None:
    assert dataset.fps == 20
    assert dataset.cameras == CAMERAS
    assert dataset.tasks == ["open the window", "close the drawer", "press the button"]
    assert dataset.num_frames == len(dataset) == 109
    assert sum(episode.length for episode in dataset.episodes) == 109
    assert [episode.from_index for episode in dataset.episodes][:2] == [0, 20]
    assert dataset.episodes[1].instruction == "close the drawer"
    assert dataset.state.shape == dataset.action.shape == (109, 4)
    assert dataset.state.dtype == dataset.action.dtype == np.float32
    assert dataset.state_names == ("s0", "s1", "s2", "s3")
    assert dataset.action_names == ("a0", "a1", "a2", "a3")
    assert dataset.image_size("corner2") == (64, 64)


def test_frames_equal_lerobots(dataset: LeRobotDataset, expected: dict[str, np.ndarray]) -> None:
    for index in expected["indices"].tolist():
        np.testing.assert_array_equal(dataset.state[index], expected[f"{index}/observation.state"])
        np.testing.assert_array_equal(dataset.action[index], expected[f"{index}/action"])
        assert dataset.episode_index[index] == expected[f"{index}/episode_index"]
        assert dataset.task_index[index] == expected[f"{index}/task_index"]
        assert dataset.instructions(np.array([index])) == (str(expected[f"{index}/task"]),)


def test_images_equal_lerobots(expected: dict[str, np.ndarray]) -> None:
    for camera in CAMERAS:
        fresh = LeRobotDataset.open(SAMPLE)
        single = {index: fresh.frame(camera, index) for index in expected["indices"].tolist()}
        everything = fresh.images(camera)
        assert everything.shape == (109, 64, 64, 3)
        assert everything.dtype == np.uint8
        for index, image in single.items():
            theirs = expected[f"{index}/observation.images.{camera}"].transpose(1, 2, 0)
            np.testing.assert_allclose(everything[index] / 255.0, theirs, atol=1.01 / 255)
            np.testing.assert_array_equal(image, everything[index])
            np.testing.assert_array_equal(fresh.frame(camera, index), image)


def test_neighbouring_frames_differ(dataset: LeRobotDataset) -> None:
    # Guards the image test: a reader that is off by one frame must be visible.
    images = dataset.images("corner2").astype(int)
    assert np.abs(np.diff(images, axis=0)).max(axis=(1, 2, 3)).min() > 3


def test_action_chunks_equal_lerobots(dataset: LeRobotDataset, expected: dict[str, np.ndarray]) -> None:
    actions, is_pad = dataset.action_chunks(expected["indices"], 8)
    assert actions.dtype == np.float32
    for row, index in enumerate(expected["indices"].tolist()):
        np.testing.assert_array_equal(actions[row], expected[f"chunk/{index}/action"])
        np.testing.assert_array_equal(is_pad[row], expected[f"chunk/{index}/action_is_pad"])


def test_action_chunks_never_cross_an_episode(dataset: LeRobotDataset) -> None:
    # Frame 18 of the first episode (20 frames): two real actions, then the last one again.
    actions, is_pad = dataset.action_chunks(np.array([18]), 5)
    np.testing.assert_array_equal(is_pad[0], [False, False, True, True, True])
    np.testing.assert_array_equal(actions[0], dataset.action[[18, 19, 19, 19, 19]])


def test_progress_is_reported() -> None:
    calls: list[tuple[int, int]] = []
    LeRobotDataset.open(SAMPLE).images("corner2", lambda done, total: calls.append((done, total)))
    assert calls == [(100, 109), (109, 109)]


def test_stats_come_from_the_file(dataset: LeRobotDataset) -> None:
    exact = compute_stats(dataset.action)
    np.testing.assert_allclose(dataset.stats["action"].mean, exact.mean, atol=1e-6)
    np.testing.assert_allclose(dataset.stats["action"].max, exact.max)
    # LeRobot's quantiles are an envelope over episodes: wider than the exact ones.
    assert dataset.stats["action"].q01 < exact.q01
    assert dataset.stats["observation.state"].count == 109


def test_missing_quantiles_are_computed_with_a_warning(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit_json(copy / "meta/stats.json", lambda stats: stats["action"].pop("q99"))
    with caplog.at_level(logging.WARNING, logger="z1"):
        dataset = LeRobotDataset.open(copy)
    assert dataset.stats["action"] == compute_stats(dataset.action)
    assert caplog.messages == [f"{copy}/meta/stats.json has no full statistics of action; computed from all 109 frames"]
    (copy / "meta/stats.json").unlink()
    assert LeRobotDataset.open(copy).stats["observation.state"] == compute_stats(dataset.state)


def test_several_data_and_video_files(copy: Path) -> None:
    # Split off episodes 2.. into a second data file of another chunk; the reader follows the episode table.
    whole = LeRobotDataset.open(SAMPLE)
    table = pq.read_table(copy / DATA, partitioning=None)
    second = "data/chunk-001/file-004.parquet"
    (copy / second).parent.mkdir()
    cut = whole.episodes[2].from_index
    pq.write_table(table.slice(cut), copy / second)
    pq.write_table(table.slice(0, cut), copy / DATA)
    other = "videos/observation.images.corner2/chunk-000/file-001.mp4"
    shutil.copy(copy / VIDEO, copy / other)

    def move(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for row in rows[2:]:
            row["data/chunk_index"], row["data/file_index"] = 1, 4
            row["videos/observation.images.corner2/file_index"] = 1
        return rows[::-1]

    edit_table(copy / EPISODES, move)
    dataset = LeRobotDataset.open(copy)
    np.testing.assert_array_equal(dataset.action, whole.action)
    np.testing.assert_array_equal(dataset.images("corner2"), whole.images("corner2"))
    assert [episode.index for episode in dataset.episodes] == [0, 1, 2, 3, 4]


def test_missing_pieces_are_named(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        LeRobotDataset.open(tmp_path / "nothing")
    assert str(caught.value) == (
        f"dataset folder {tmp_path}/nothing does not exist; give the folder that holds meta, data and videos"
    )
    messages = {
        VIDEO: f"{copy}/{VIDEO} is missing (episode 0 is in it); copy the whole videos folder",
        DATA: f"{copy}/{DATA} is missing; copy the whole dataset folder",
        EPISODES: f"{copy}/meta/episodes/*/*.parquet: no such file; copy the whole dataset folder",
        "meta/tasks.parquet": f"{copy}/meta/tasks.parquet is missing; copy the whole dataset folder",
        "meta/info.json": f"{copy}/meta/info.json is missing, so {copy} is not a LeRobotDataset; give the folder that "
        "holds meta, data and videos",
    }
    for file, message in messages.items():
        (copy / file).rename(copy / "aside")
        with pytest.raises(DatasetError) as caught:
            LeRobotDataset.open(copy)
        assert str(caught.value) == message
        (copy / "aside").rename(copy / file)
    LeRobotDataset.open(copy)


@pytest.mark.parametrize(
    ("version", "fix"),
    [
        ("v2.1", "got v2.1; bring it in with z1 import "),
        ("v1.6", "got v1.6; write it again with LeRobot 0.4 or later"),
        (None, "got None; write it again with LeRobot 0.4 or later"),
    ],
)
def test_other_versions_are_refused(copy: Path, version: str | None, fix: str) -> None:
    edit_json(copy / "meta/info.json", lambda info: info.update(codebase_version=version))
    with pytest.raises(DatasetError) as caught:
        LeRobotDataset.open(copy)
    assert str(caught.value).startswith(f"{copy}/meta/info.json: expected codebase_version v3.0, {fix}")


def test_bad_info_is_named(copy: Path) -> None:
    def attempt(change: Callable[[Any], None]) -> str:
        shutil.copy(SAMPLE / "meta/info.json", copy / "meta/info.json")
        edit_json(copy / "meta/info.json", change)
        with pytest.raises(DatasetError) as caught:
            LeRobotDataset.open(copy)
        return str(caught.value)

    assert "expected a positive number fps, got None" in attempt(lambda info: info.pop("fps") and None)
    assert "feature action is missing, got " in attempt(lambda info: info["features"].pop("action") and None)
    assert "expected observation.state to be a float vector" in attempt(
        lambda info: info["features"]["observation.state"].update(shape=[2, 2])
    )
    assert "feature observation.images.corner2 holds single images, expected dtype video" in attempt(
        lambda info: info["features"]["observation.images.corner2"].update(dtype="image")
    )
    assert "expected 6 episodes as meta/info.json says, got 5; copy the whole meta folder" in attempt(
        lambda info: info.update(total_episodes=6)
    )
    assert "expected 110 frames as meta/info.json says, the episodes have 109" in attempt(
        lambda info: info.update(total_frames=110)
    )
    assert "expected action of width 5 in 109 rows as meta/info.json says, got 436 numbers" in attempt(
        lambda info: info["features"]["action"].update(shape=[5])
    )
    (copy / "meta/info.json").write_text("{")
    with pytest.raises(DatasetError, match=r"info\.json cannot be read as JSON"):
        LeRobotDataset.open(copy)


def test_damaged_tables_are_named(copy: Path) -> None:
    table = pq.read_table(copy / DATA, partitioning=None)

    def attempt() -> str:
        with pytest.raises(DatasetError) as caught:
            LeRobotDataset.open(copy)
        return str(caught.value)

    pq.write_table(table.slice(0, 100), copy / DATA)
    assert attempt() == (
        f"{copy}: expected 109 rows in data/chunk-000/file-000.parquet as meta/info.json says, got 100; copy the whole "
        "data folder"
    )
    pq.write_table(table.take(list(range(20, 41)) + list(range(20)) + list(range(41, 109))), copy / DATA)
    assert "expected episode_index 0 in row 0 as meta/episodes says, got 1; copy the whole dataset folder" in attempt()

    def spoil(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        rows[30]["action"][2] = float("nan")
        return rows

    pq.write_table(table, copy / DATA)
    edit_table(copy / DATA, spoil)
    assert "expected finite numbers in action, got nan in row 30, dim 2; remove episode 1" in attempt()
    (copy / DATA).write_bytes((SAMPLE / DATA).read_bytes()[:5000])
    assert f"{copy}/{DATA}: expected a parquet file, it cannot be read" in attempt()


def test_gap_in_the_episode_table_is_named(copy: Path) -> None:
    def shift(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        rows[1]["dataset_from_index"] += 1
        return rows

    edit_table(copy / EPISODES, shift)
    with pytest.raises(
        DatasetError, match="expected episode 1 to be frames 20 to 41 of the dataset, got episode 1 with"
    ):
        LeRobotDataset.open(copy)


def test_truncated_video_is_named(copy: Path) -> None:
    whole = (SAMPLE / VIDEO).read_bytes()
    cut_off = "; copy the file again, it may be cut off"
    for length in (0, 30, 200, len(whole) // 2, len(whole) - 3):
        (copy / VIDEO).write_bytes(whole[:length])
        dataset = LeRobotDataset.open(copy)
        with pytest.raises(DatasetError) as caught:
            dataset.images("corner2")
        reason = "it has no video stream" if length == 200 else "Invalid data found when processing input"
        assert str(caught.value) == f"{copy}/{VIDEO}: expected an mp4 video, it cannot be decoded ({reason}){cut_off}"
        with pytest.raises(DatasetError, match=f"{VIDEO}: expected .*{cut_off}"):
            dataset.frame("corner2", 108)
    assert dataset.images("gripperPOV").shape == (109, 64, 64, 3)


def test_video_with_too_few_frames_is_named(copy: Path) -> None:
    edit_table(
        copy / EPISODES,
        lambda rows: [
            {**row, "videos/observation.images.corner2/from_timestamp": row["dataset_from_index"] / 20 + 1.0}
            for row in rows
        ],
    )
    dataset = LeRobotDataset.open(copy)
    with pytest.raises(DatasetError, match="expected 109 frames for episodes 0 to 4, got 89; copy the file again"):
        dataset.images("corner2")
    with pytest.raises(DatasetError, match=r"expected a frame at 6\.400 s, the video has none"):
        dataset.frame("corner2", 108)


def test_video_of_another_rate_or_size_is_named(copy: Path) -> None:
    edit_json(copy / "meta/info.json", lambda info: info.update(fps=30))
    with pytest.raises(
        DatasetError, match=r"expected a frame every 0\.0333 s \(fps 30 in meta/info\.json\), got one at"
    ):
        LeRobotDataset.open(copy).images("corner2")
    edit_json(copy / "meta/info.json", lambda info: info.update(fps=20))
    edit_json(
        copy / "meta/info.json",
        lambda info: info["features"]["observation.images.corner2"].update(shape=[32, 32, 3]),
    )
    with pytest.raises(
        DatasetError, match=r"expected images of \(32, 32\) pixels as meta/info\.json says, got \(64, 64\)"
    ):
        LeRobotDataset.open(copy).images("corner2")


def test_unknown_camera(dataset: LeRobotDataset) -> None:
    with pytest.raises(UnknownNameError, match="unknown camera 'corner'; did you mean 'corner2'"):
        dataset.images("corner")


def test_how_the_images_were_rendered(copy: Path) -> None:
    manifest = copy / "meta/z1_manifest.json"
    assert not manifest.exists()
    assert LeRobotDataset.open(copy).quality == ""
    manifest.write_text('{"quality": "fast"}')
    assert LeRobotDataset.open(copy).quality == "fast"
    manifest.write_text("{")
    with pytest.raises(DatasetError, match=r"z1_manifest.json cannot be read as JSON"):
        _ = LeRobotDataset.open(copy).quality
