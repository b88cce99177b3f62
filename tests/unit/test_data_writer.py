"""The LeRobotDataset writer: LeRobot's layout column by column, exact round trips, resuming, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from z1.data import lerobot_format, lerobot_writer, video
from z1.data.lerobot import LeRobotDataset
from z1.data.lerobot_format import DatasetLayout, histogram_summary, image_histogram, vector_summary
from z1.data.lerobot_writer import LeRobotWriter
from z1.data.stats import compute_stats
from z1.errors import DatasetError

SAMPLE = Path(__file__).parent / "fixtures/lerobot_v3_sample/dataset"
CAMERAS = ("corner2", "gripperPOV")
LAYOUT = DatasetLayout(
    fps=20,
    state_names=("s0", "s1", "s2", "s3"),
    action_names=("a0", "a1", "a2", "a3"),
    cameras=CAMERAS,
    height=64,
    width=64,
    robot_type="sawyer",
)

Episode = tuple[np.ndarray, np.ndarray, dict[str, np.ndarray], str]


def episode(seed: int, length: int, instruction: str, size: int = 64) -> Episode:
    """Vectors of noise; images with a bright square that moves a pixel per frame over a noisy background."""
    rng = np.random.default_rng(seed)
    images = {}
    for camera in CAMERAS:
        grey = rng.integers(0, 90, (size, size, 1), dtype=np.uint8)
        frames = np.tile(grey, (length, 1, 1, 3))
        for step in range(length):
            frames[step, 4:12, (step + seed) % (size - 8) : (step + seed) % (size - 8) + 8] = (250, 30, 30 + step)
        images[camera] = frames
    vectors = rng.normal(size=(2, length, 4)).astype(np.float32)
    return vectors[0], vectors[1], images, instruction


EPISODES = [
    episode(0, 20, "open the window"),
    episode(1, 21, "close the drawer"),
    episode(2, 13, "open the window"),
]


def write(path: Path, episodes: list[Episode] = EPISODES, **settings: Any) -> LeRobotDataset:
    with LeRobotWriter(path, LAYOUT, **settings) as writer:
        for states, actions, images, instruction in episodes:
            writer.add_episode(states, actions, images, instruction)
        assert not path.exists() or settings.get("replace")
        writer.finish({"written": "by a test"})
    assert sorted(entry.name for entry in path.parent.iterdir()) == [path.name]
    return LeRobotDataset.open(path)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> LeRobotDataset:
    return write(tmp_path_factory.mktemp("writer") / "dataset")


def test_round_trip_is_exact(written: LeRobotDataset) -> None:
    assert written.tasks == ["open the window", "close the drawer"]
    assert [(e.length, e.instruction, e.from_index) for e in written.episodes] == [
        (20, "open the window", 0),
        (21, "close the drawer", 20),
        (13, "open the window", 41),
    ]
    np.testing.assert_array_equal(written.state, np.concatenate([e[0] for e in EPISODES]))
    np.testing.assert_array_equal(written.action, np.concatenate([e[1] for e in EPISODES]))
    np.testing.assert_array_equal(written.task_index, [0] * 20 + [1] * 21 + [0] * 13)
    for camera in CAMERAS:
        originals = np.concatenate([e[2][camera] for e in EPISODES])
        for index in (0, 19, 20, 33, 40, 41, 53):
            np.testing.assert_array_equal(written.frame(camera, index), originals[index])
        np.testing.assert_array_equal(written.images(camera), originals)
    assert json.loads((written.path / "meta/z1_manifest.json").read_text()) == {"written": "by a test"}


def test_files_have_lerobots_names(written: LeRobotDataset) -> None:
    def files(path: Path) -> set[str]:
        return {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}

    assert files(written.path) == files(SAMPLE) | {"meta/z1_manifest.json"}


@pytest.mark.parametrize("file", ["data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"])
def test_schemas_equal_lerobots(written: LeRobotDataset, file: str) -> None:
    ours, theirs = (pq.read_schema(path / file) for path in (written.path, SAMPLE))
    assert ours.names == theirs.names
    for name in theirs.names:
        assert ours.field(name).equals(theirs.field(name)), name


def test_data_file_has_a_row_group_per_episode_and_feature_types(written: LeRobotDataset) -> None:
    file = "data/chunk-000/file-000.parquet"
    meta = pq.ParquetFile(written.path / file).metadata
    assert [meta.row_group(i).num_rows for i in range(meta.num_row_groups)] == [20, 21, 13]
    ours, theirs = (
        json.loads(pq.read_schema(path / file).metadata[b"huggingface"])["info"] for path in (written.path, SAMPLE)
    )
    assert ours == theirs
    table = pq.read_table(written.path / file, partitioning=None)
    assert table["index"].to_pylist() == list(range(54))
    assert table["timestamp"].to_numpy()[21] == np.float32(1 / 20)


def test_task_table_equals_lerobots(written: LeRobotDataset) -> None:
    ours, theirs = (pq.read_table(path / "meta/tasks.parquet") for path in (written.path, SAMPLE))
    assert ours.schema.equals(theirs.schema, check_metadata=False)
    assert ours.to_pydict() == {"task_index": [0, 1], "task": ["open the window", "close the drawer"]}
    ours_pandas, theirs_pandas = (json.loads(table.schema.metadata[b"pandas"]) for table in (ours, theirs))
    assert ours_pandas["index_columns"] == theirs_pandas["index_columns"] == ["task"]
    names = [[column["name"] for column in value["columns"]] for value in (ours_pandas, theirs_pandas)]
    assert names[0] == names[1]


def test_info_equals_lerobots(written: LeRobotDataset) -> None:
    theirs = json.loads((SAMPLE / "meta/info.json").read_text())
    ours = json.loads((written.path / "meta/info.json").read_text())
    assert list(ours) == list(theirs)
    assert list(ours["features"]) == list(theirs["features"])
    for key, feature in theirs["features"].items():
        if feature["dtype"] != "video":
            assert ours["features"][key] == feature
            continue
        info = ours["features"][key].pop("info")
        assert {**ours["features"][key], "info": feature["info"]} == feature
        assert list(info) == list(feature["info"])
        assert (info["video.codec"], info["video.pix_fmt"], info["video.fps"]) == ("h264", "gbrp", 20)
    for key in ("codebase_version", "fps", "chunks_size", "data_path", "video_path", "robot_type"):
        assert ours[key] == theirs[key]
    assert (ours["total_episodes"], ours["total_frames"], ours["total_tasks"]) == (3, 54, 2)
    assert ours["splits"] == {"train": "0:3"}


def test_stats_have_lerobots_keys_and_shapes(written: LeRobotDataset) -> None:
    ours, theirs = (json.loads((path / "meta/stats.json").read_text()) for path in (written.path, SAMPLE))
    assert set(ours) == set(theirs)
    for key, summary in theirs.items():
        assert set(ours[key]) == set(summary)
        for name in summary:
            assert np.shape(ours[key][name]) == np.shape(summary[name]), (key, name)
    assert written.stats["action"] == compute_stats(written.action)


def test_summaries_agree_with_lerobots_numbers() -> None:
    # Min, max, mean and std of LeRobot's own file from the same data; its quantiles are approximations.
    theirs = json.loads((SAMPLE / "meta/stats.json").read_text())
    dataset = LeRobotDataset.open(SAMPLE)
    for key, values in (("observation.state", dataset.state), ("action", dataset.action)):
        ours = vector_summary(values)
        for name in ("min", "max", "mean", "std"):
            np.testing.assert_allclose(ours[name], theirs[key][name], atol=2e-6)
        assert ours["count"] == theirs[key]["count"]
    # The images were encoded with loss, LeRobot counted the originals: only nearly equal.
    images = histogram_summary(image_histogram(dataset.images("corner2")), 109)
    for name in ("mean", "std"):
        np.testing.assert_allclose(images[name], theirs["observation.images.corner2"][name], atol=0.02)


def test_histogram_summary_is_exact() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 5, 7, 3), dtype=np.uint8)
    summary = histogram_summary(image_histogram(frames), 3)
    pixels = frames.reshape(-1, 3) / 255.0
    for name, q in lerobot_format.QUANTILES.items():
        np.testing.assert_allclose(np.ravel(summary[name]), np.quantile(pixels, q, axis=0))
    for name, expected in (
        ("mean", pixels.mean(0)),
        ("std", pixels.std(0)),
        ("min", pixels.min(0)),
        ("max", pixels.max(0)),
    ):
        np.testing.assert_allclose(np.ravel(summary[name]), expected)
    assert summary["count"] == [3]


def test_files_roll_over(tmp_path: Path, written: LeRobotDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lerobot_writer, "DATA_FILE_BYTES", 3000)
    monkeypatch.setattr(lerobot_writer, "VIDEO_FILE_BYTES", 1)
    rolled = write(tmp_path / "dataset")
    assert len(list((rolled.path / "data").rglob("*.parquet"))) == 2
    assert len(list((rolled.path / "videos").rglob("*.mp4"))) == 6
    np.testing.assert_array_equal(rolled.state, written.state)
    np.testing.assert_array_equal(rolled.images("corner2"), written.images("corner2"))
    assert rolled.episodes[2].videos["corner2"].first == 0


def test_file_position() -> None:
    assert lerobot_format.file_position(999) == {"chunk_index": 0, "file_index": 999}
    assert lerobot_format.file_position(1000) == {"chunk_index": 1, "file_index": 0}


def test_lossy_is_close_and_smaller(tmp_path: Path, written: LeRobotDataset) -> None:
    dataset = write(tmp_path / "dataset", lossless=False)
    difference = np.abs(dataset.images("corner2").astype(int) - written.images("corner2"))
    assert 0 < difference.mean() < 5
    file = "videos/observation.images.corner2/chunk-000/file-000.mp4"
    assert (dataset.path / file).stat().st_size < (written.path / file).stat().st_size
    assert dataset.info["features"]["observation.images.corner2"]["info"]["video.pix_fmt"] == "yuv420p"


def test_order_is_that_of_the_keys(tmp_path: Path) -> None:
    with LeRobotWriter(tmp_path / "dataset", LAYOUT) as writer:
        for key, (states, actions, images, instruction) in zip("cab", EPISODES, strict=True):
            writer.add_episode(states, actions, images, instruction, key=key)
        writer.finish()
    dataset = LeRobotDataset.open(tmp_path / "dataset")
    assert [e.length for e in dataset.episodes] == [21, 13, 20]
    assert dataset.tasks == ["close the drawer", "open the window"]


def test_interrupted_recording_is_resumed(tmp_path: Path, written: LeRobotDataset) -> None:
    path = tmp_path / "dataset"
    with LeRobotWriter(path, LAYOUT, identity={"seed": 1}) as writer:
        writer.add_episode(*EPISODES[0])
        writer.add_episode(*EPISODES[1])
    assert not path.exists()
    (tmp_path / ".dataset.recording/episodes/.000002.half.tmp").mkdir()
    with pytest.raises(DatasetError) as caught:
        LeRobotWriter(path, LAYOUT, identity={"seed": 2})
    assert str(caught.value) == (
        f"{tmp_path}/.dataset.recording holds an unfinished recording with other settings (seed was 1, is 2); repeat "
        "the old settings to finish it, or remove that folder to start again"
    )
    with LeRobotWriter(path, LAYOUT, identity={"seed": 1}) as writer:
        assert writer.keys() == {"000000", "000001"}
        writer.add_episode(*EPISODES[2])
        writer.finish()
    dataset = LeRobotDataset.open(path)
    np.testing.assert_array_equal(dataset.action, written.action)
    np.testing.assert_array_equal(dataset.images("gripperPOV"), written.images("gripperPOV"))


def test_unfinished_work_can_be_thrown_away(tmp_path: Path) -> None:
    with LeRobotWriter(tmp_path / "dataset", LAYOUT) as writer:
        writer.add_episode(*EPISODES[0])
    with LeRobotWriter(tmp_path / "dataset", LAYOUT, identity={"seed": 2}, resume=False) as writer:
        assert writer.keys() == set()
    assert list(tmp_path.iterdir()) == []


def test_finished_datasets_are_not_overwritten(tmp_path: Path) -> None:
    write(tmp_path / "dataset", EPISODES[:1])
    with pytest.raises(DatasetError) as caught:
        LeRobotWriter(tmp_path / "dataset", LAYOUT)
    assert str(caught.value) == (
        f"{tmp_path}/dataset exists already; choose another path, or overwrite it explicitly (overwrite)"
    )
    assert LeRobotDataset.open(tmp_path / "dataset").num_frames == 20
    assert write(tmp_path / "dataset", EPISODES[1:2], replace=True).num_frames == 21


def test_two_writers_at_once_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "dataset"
    with (
        LeRobotWriter(path, LAYOUT),
        pytest.raises(DatasetError, match="is being recorded by another process; wait for it"),
    ):
        LeRobotWriter(path, LAYOUT)
    LeRobotWriter(path, LAYOUT).close()


def test_episodes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    states, actions, images, instruction = EPISODES[0]
    with LeRobotWriter(tmp_path / "dataset", LAYOUT) as writer:
        with pytest.raises(DatasetError, match=r"no episode has been recorded; add at least one before finishing"):
            writer.finish()
        with pytest.raises(DatasetError, match=r"expected finite states of shape \(20, 4\), got \(20, 3\)"):
            writer.add_episode(states[:, :3], actions, images, instruction)
        with pytest.raises(DatasetError, match=r"expected finite actions of shape \(20, 4\), got \(19, 4\)"):
            writer.add_episode(states, actions[:19], images, instruction)
        with pytest.raises(DatasetError, match="expected finite actions"):
            writer.add_episode(states, np.where(actions > 0, np.nan, actions), images, instruction)
        with pytest.raises(DatasetError, match=r"expected images of \('corner2', 'gripperPOV'\), got \('corner2',\)"):
            writer.add_episode(states, actions, {"corner2": images["corner2"]}, instruction)
        with pytest.raises(DatasetError, match=r"expected uint8 images of shape \(20, 64, 64, 3\) .* got float64"):
            writer.add_episode(states, actions, {name: frames / 255.0 for name, frames in images.items()}, instruction)
        with pytest.raises(DatasetError, match="expected an instruction, got an empty text"):
            writer.add_episode(states, actions, images, " ")
        with pytest.raises(DatasetError, match=r"expected a new episode key of .* got '\.\./x'"):
            writer.add_episode(states, actions, images, instruction, key="../x")
        writer.add_episode(states, actions, images, instruction, key="a")
        with pytest.raises(DatasetError, match=r"expected a new episode key of .* got 'a'"):
            writer.add_episode(states, actions, images, instruction, key="a")


def test_odd_sizes_need_lossless(tmp_path: Path) -> None:
    frames = EPISODES[0][2]["corner2"][:, :63, :61]
    video.encode_video(tmp_path / "odd.mp4", frames, 20, video.choose_codec(lossless=True))
    decoded = np.stack([image for _, image in video.decode_video(tmp_path / "odd.mp4", 20)])
    np.testing.assert_array_equal(decoded, frames)
    with pytest.raises(DatasetError, match="needs an even image size, got 63 x 61"):
        video.encode_video(tmp_path / "lossy.mp4", frames, 20, video.choose_codec(lossless=False))


def test_missing_encoder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video.av, "codecs_available", {"libsvtav1"})
    with pytest.raises(DatasetError, match="has no encoder libx264rgb; record with lossless=False"):
        video.choose_codec(lossless=True)
    assert video.choose_codec(lossless=False).encoder == "libsvtav1"


def test_the_av1_fallback_can_be_joined(tmp_path: Path) -> None:
    codec = video.LOSSY_CODECS[1]
    frames = EPISODES[0][2]["corner2"]
    for part in range(2):
        video.encode_video(tmp_path / f"{part}.mp4", frames[part * 9 : part * 9 + 9], 20, codec)
    video.join_videos([tmp_path / "0.mp4", tmp_path / "1.mp4"], tmp_path / "joined.mp4", 20)
    numbers, decoded = zip(*video.decode_video(tmp_path / "joined.mp4", 20), strict=True)
    assert numbers == tuple(range(18))
    assert np.abs(np.stack(decoded).astype(int) - frames[:18]).mean() < 8


def test_schema_comparison_can_fail() -> None:
    # Guards test_schemas_equal_lerobots: fields of another type are different.
    assert not pa.field("x", pa.list_(pa.float32(), 4)).equals(pa.field("x", pa.list_(pa.float32())))
