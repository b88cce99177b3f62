"""``z1 import`` of files that are wrong, and settings that do not fit: one line that names the thing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from command_line import z1
from demonstration_files import (
    CAMERAS,
    make_episode,
    write_lerobot_v2,
    write_plain_v2,
    write_robocasa_v2,
    write_robomimic,
)
from z1.data.importing import ImportConfig, import_dataset
from z1.data.lerobot import LeRobotDataset
from z1.data.video import choose_codec, encode_video
from z1.errors import DatasetError, Z1Error

Refused = Callable[..., str]


@pytest.fixture(scope="module")
def hdf5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of three demonstrations. Not to be changed."""
    path = tmp_path_factory.mktemp("robomimic") / "demo_gentex_im128_randcams.hdf5"
    write_robomimic(path)
    return path


@pytest.fixture
def changed(hdf5: Path, tmp_path: Path) -> Callable[[Callable[[h5py.File], Any]], Path]:
    """Makes a changed copy of the file."""

    def make(change: Callable[[h5py.File], Any]) -> Path:
        path = tmp_path / "changed.hdf5"
        shutil.copy(hdf5, path)
        with h5py.File(path, "r+") as file:
            change(file)
        return path

    return make


def _without(name: str) -> Callable[[h5py.File], Any]:
    return lambda file: file.__delitem__(name)


def _with(name: str, values: np.ndarray) -> Callable[[h5py.File], Any]:
    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = values

    return change


WRONG: dict[str, tuple[Callable[[h5py.File], Any], str]] = {
    "nothing in it": (_without("data"), "expected a group data with demonstrations, got mask"),
    "no ep_meta": (
        lambda file: file["data/demo_1"].attrs.__delitem__("ep_meta"),
        "demo_1 has no attribute ep_meta, which holds the instruction; make the file again with RoboCasa's "
        "dataset_states_to_obs.py",
    ),
    "no lang": (
        lambda file: file["data/demo_1"].attrs.__setitem__("ep_meta", '{"layout_id": 1}'),
        "expected a text lang in the ep_meta of demo_1, got None",
    ),
    "bad ep_meta": (
        lambda file: file["data/demo_1"].attrs.__setitem__("ep_meta", "{"),
        "expected a JSON object in attribute ep_meta of /data/demo_1, got '{'",
    ),
    "another robot": (
        _with("data/demo_0/actions", np.zeros((5, 7))),
        "demo_0: expected 12 numbers per action as RoboCasa's PandaOmron has them, got 7; only demonstrations of "
        "RoboCasa v0.2 can be imported from HDF5",
    ),
    "no numbers": (
        _with("data/demo_0/actions", np.array([[b"a"] * 12] * 5)),
        "expected numbers in /data/demo_0/actions, got",
    ),
    "no group": (_with("data/demo_0", np.zeros(3)), "expected demo_0 to be a group with actions and obs"),
    "no actions": (_without("data/demo_2/actions"), "demo_2 has no actions; copy the file again"),
    "no observations": (
        _without("data/demo_0/obs"),
        "demo_0 has no observations; make them from the stored states with RoboCasa's dataset_states_to_obs.py",
    ),
    "no base": (
        _without("data/demo_1/obs/robot0_base_pos"),
        "demo_1 has no obs/robot0_base_pos, which the state is made of; make the observations again with RoboCasa's "
        "dataset_states_to_obs.py",
    ),
    "another width": (
        _with("data/demo_0/obs/robot0_gripper_qpos", np.zeros((5, 6))),
        "demo_0: expected obs/robot0_gripper_qpos of shape (T, 2), got (5, 6); it is of another robot",
    ),
    "too short": (
        _with("data/demo_0/obs/robot0_base_pos", np.zeros((4, 3))),
        "demo_0: expected 5 rows of obs/robot0_base_pos, one for each action, got 4; make the observations again",
    ),
    "no quaternion": (
        _with("data/demo_0/obs/robot0_base_quat", np.zeros((5, 4))),
        "got length 0 in frame 0; the numbers of the state are in another order",
    ),
    "no camera": (
        _without("data/demo_0/obs/robot0_eye_in_hand_image"),
        "unknown camera 'robot0_eye_in_hand'; known: robot0_agentview_left, robot0_agentview_right (choose --cameras; ",
    ),
    "camera missing later": (
        _without("data/demo_2/obs/robot0_eye_in_hand_image"),
        "demo_2 has no obs/robot0_eye_in_hand_image, other demonstrations have; remove it",
    ),
    "float images": (
        _with("data/demo_0/obs/robot0_eye_in_hand_image", np.zeros((5, 16, 16, 3))),
        "demo_0: expected obs/robot0_eye_in_hand_image to be uint8 (T, height, width, 3), got float64 (5, 16, 16, 3)",
    ),
    "too few images": (
        _with("data/demo_1/obs/robot0_eye_in_hand_image", np.zeros((5, 16, 16, 3), dtype=np.uint8)),
        "demo_1: expected 6 images of 16 x 16 pixels of camera robot0_eye_in_hand, got 5 of 16 x 16; copy the file "
        "again, or choose one size with --image-size",
    ),
    "odd name": (
        lambda file: file.move("data/demo_1", "data/other"),
        "expected demonstrations demo_0, demo_1, ..., got other",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_hdf5_files(
    name: str, changed: Callable[[Callable[[h5py.File], Any]], Path], tmp_path: Path, refused: Refused
) -> None:
    change, message = WRONG[name]
    path = changed(change)
    error = refused("import", path, "--out", tmp_path / "data")
    assert message in error
    assert str(path) in error
    assert not (tmp_path / "data").exists()


def test_missing_and_damaged_files(hdf5: Path, tmp_path: Path, refused: Refused) -> None:
    path, out = hdf5, tmp_path / "data"
    half = tmp_path / "half.hdf5"
    half.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    error = refused("import", half, "--out", out)
    assert error.startswith(f"{half}: expected a robomimic HDF5 file, it cannot be read (")
    assert error.endswith("copy it again, it may be cut off")
    (tmp_path / "text.hdf5").write_text("no HDF5")
    assert "expected an HDF5 file, it does not begin like one" in refused(
        "import", tmp_path / "text.hdf5", "--out", out
    )
    assert "give a robomimic HDF5 file or a LeRobot" in refused("import", tmp_path / "nowhere", "--out", out)
    assert "is no LeRobot dataset: meta/info.json is missing" in refused("import", tmp_path, "--out", out)


def test_damage_within_a_file_is_named(hdf5: Path, tmp_path: Path, refused: Refused) -> None:
    data = bytearray(hdf5.read_bytes())
    with h5py.File(hdf5) as file:
        chunk = file["data/demo_1/obs/robot0_agentview_left_image"].id.get_chunk_info(0)
    data[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    (tmp_path / "damaged.hdf5").write_bytes(data)
    error = refused("import", tmp_path / "damaged.hdf5", "--out", tmp_path / "data")
    assert "expected a robomimic HDF5 file, it cannot be read (" in error


def test_settings_that_do_not_fit(hdf5: Path, tmp_path: Path, refused: Refused) -> None:
    path, out = hdf5, tmp_path / "data"
    write_plain_v2(tmp_path / "plain")
    assert "unknown filter '3_demos'; did you mean '2_demos'?" in refused(
        "import", path, "--out", out, "--filter", "3_demos"
    )
    assert "has 3 episodes, 4 were asked for" in refused("import", path, "--out", out, "--episodes", "4")
    assert "unknown camera 'top'" in refused("import", path, "--out", out, "--cameras", "top")
    for setting in (["--layout", "robocasa"], ["--order", "modality"]):
        error = refused("import", path, "--out", out, *setting)
        assert f"{setting[0].strip('-')} has no effect on {path}, an HDF5 file, whose numbers have names" in error
    error = refused("import", tmp_path / "plain", "--out", out, "--filter", "x")
    assert "filter has no effect on" in error
    error = refused("import", tmp_path / "plain", "--out", out, "--order", "modality")
    assert "its numbers are taken as they are, so that --order modality has no effect" in error
    error = refused("import", tmp_path / "plain", "--out", out, "--layout", "robocasa")
    assert "expected 12 numbers per action as RoboCasa's PandaOmron has them, got 2" in error
    error = refused("import", path, tmp_path / "plain", "--out", out)
    assert "import them into different datasets" in error
    assert "source is" in refused("import", path, path, "--out", out)
    out.mkdir()
    assert "exists already" in refused("import", path, "--out", out)


def test_images_of_different_sizes_need_one(hdf5: Path, tmp_path: Path, refused: Refused) -> None:
    write_robomimic(tmp_path / "large.hdf5", demos=1, size=32)
    arguments = ("import", hdf5, tmp_path / "large.hdf5", "--out", tmp_path / "data")
    assert "the images have different sizes (16 x 16: robot0_agentview_left of" in refused(*arguments)
    assert z1(*arguments, "--image-size", "16", "--cameras", CAMERAS[0]) == 0
    assert LeRobotDataset.open(tmp_path / "data").image_size(CAMERAS[0]) == (16, 16)


WRONG_V2: dict[str, tuple[Callable[[Path], Any], str]] = {
    "tasks": (lambda path: (path / "meta/tasks.jsonl").unlink(), "tasks.jsonl is missing; copy the whole meta folder"),
    "task": (
        lambda path: (path / "meta/tasks.jsonl").write_text('{"task_index": 0, "task": "valid"}\n'),
        "which meta/tasks.jsonl does not explain",
    ),
    "line": (
        lambda path: (path / "meta/episodes.jsonl").write_text("{\n"),
        "expected an object with episode_index and length in line 1, got '{'",
    ),
    "episodes": (
        lambda path: (path / "meta/episodes.jsonl").write_text('{"episode_index": 0, "length": 4}\n'),
        "expected 2 different episodes with frames as meta/info.json says, got 1",
    ),
    "rows": (
        lambda path: shutil.copy(
            path / "data/chunk-000/episode_000000.parquet", path / "data/chunk-000/episode_000001.parquet"
        ),
        "expected 5 rows as meta/episodes.jsonl says, got 4",
    ),
    "parquet": (
        lambda path: (path / "data/chunk-000/episode_000001.parquet").write_bytes(b"PAR1"),
        "expected a parquet file, it cannot be read",
    ),
    "no parquet": (lambda path: shutil.rmtree(path / "data"), "episode_000000.parquet is missing"),
    "no video": (lambda path: shutil.rmtree(path / "videos"), "episode_000000.mp4 is missing"),
    "short video": (
        lambda path: shutil.copy(
            path / "videos/chunk-000/observation.images.top/episode_000000.mp4",
            path / "videos/chunk-000/observation.images.top/episode_000001.mp4",
        ),
        "expected 5 frames, got 4; copy the file again, it may be cut off",
    ),
}


def _nan(path: Path) -> None:
    file = path / "data/chunk-000/episode_000001.parquet"
    table = pq.read_table(file, partitioning=None)
    action = np.stack(table.column("action").to_pylist())
    action[2, 1] = np.nan
    columns = {name: table.column(name) for name in table.column_names}
    pq.write_table(pa.table({**columns, "action": pa.array(list(action))}), file)


def _smaller(path: Path) -> None:
    file = path / "videos/chunk-000/observation.images.top/episode_000001.mp4"
    encode_video(file, np.zeros((5, 8, 8, 3), dtype=np.uint8), 20, choose_codec(lossless=True))


WRONG_V2 |= {
    "not finite": (_nan, "episode 1: expected finite numbers in state and action; leave it out"),
    "small video": (_smaller, "expected images of 16 x 16 pixels as meta/info.json says, got 8 x 8"),
}


@pytest.mark.parametrize("name", WRONG_V2)
def test_wrong_lerobot_v2_datasets(name: str, tmp_path: Path, refused: Refused) -> None:
    write_plain_v2(tmp_path / "set")
    change, message = WRONG_V2[name]
    change(tmp_path / "set")
    assert message in refused("import", tmp_path / "set", "--out", tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fps": 0}, "expected a positive number fps, got 0"),
        ({"fps": 12.5}, "expected a whole number of frames per second, got 12.5"),
        ({"codebase_version": "v1.6"}, "expected codebase_version v3.0, got v1.6"),
        ({"features": None}, "expected an object features, got None"),
        ({"video_path": "videos/{nothing}"}, "expected video_path like"),
    ],
)
def test_wrong_info(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_plain_v2(tmp_path / "set")
    file = tmp_path / "set/meta/info.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(Z1Error, match=message):
        import_dataset(ImportConfig(source=(str(tmp_path / "set"),), out=str(tmp_path / "data")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: m["state"].pop("base_rotation"),
            "expected state to name base_rotation, it names base_position, end",
        ),
        (lambda m: m.pop("action"), "expected action to name end_effector_position, it names nothing"),
        (
            lambda m: m["state"]["gripper_qpos"].update(end=17),
            "expected state gripper_qpos to be 2 of the 16 columns, got 14 to 17",
        ),
        (
            lambda m: m["action"]["gripper_close"].update(original_key="actions.x"),
            "expected action gripper_close to be in column action, got 'actions.x'",
        ),
    ],
)
def test_wrong_modality(change: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path) -> None:
    write_robocasa_v2(tmp_path / "set", groot=False)
    file = tmp_path / "set/meta/modality.json"
    modality = json.loads(file.read_text())
    change(modality)
    file.write_text(json.dumps(modality))
    for order in ("known", "modality"):
        with pytest.raises(DatasetError, match=message):
            import_dataset(ImportConfig(source=(str(tmp_path / "set"),), out=str(tmp_path / "data"), order=order))  # type: ignore[arg-type]


def test_an_unknown_width_of_the_state_is_refused(tmp_path: Path, refused: Refused) -> None:
    episode = make_episode(0)
    write_lerobot_v2(
        tmp_path / "set", [(episode.state[:, :9], episode.action)], [dict(episode.images)], [episode.instruction]
    )
    error = refused("import", tmp_path / "set", "--out", tmp_path / "data")
    assert "expected 53 or 16 numbers per state as the published RoboCasa sets have them, got 9" in error
    assert z1("import", tmp_path / "set", "--out", tmp_path / "data", "--layout", "as_is") == 0
