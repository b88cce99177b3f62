"""``z1 import``: what comes out of files in the published layouts; subsets, sizes, orders, resuming."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from command_line import z1
from demonstration_files import (
    CAMERAS,
    GROOT_MODALITY,
    V1_MODALITY,
    Episode,
    write_plain_v2,
    write_robocasa_v2,
    write_robomimic,
)
from z1.data import importing
from z1.data.importing import ImportConfig, import_dataset, resized
from z1.data.lerobot import LeRobotDataset
from z1.data.lerobot_writer import LeRobotWriter
from z1.data.sources.orders import Vectors, choose_order
from z1.data.stats import compute_stats
from z1.errors import DatasetError
from z1.policy.images import letterbox
from z1.policy.policy import Policy
from z1.sims import robocasa_layout
from z1.sims.robocasa_layout import ACTION_NAMES, STATE_NAMES

SAMPLE = Path(__file__).parent / "fixtures/lerobot_v3_sample/dataset"
Refused = Callable[..., str]


@pytest.fixture(scope="module")
def hdf5(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Episode]]:
    """A file of three demonstrations. Not to be changed."""
    path = tmp_path_factory.mktemp("robomimic") / "demo_gentex_im128_randcams.hdf5"
    return path, write_robomimic(path)


def check(path: Path, episodes: list[Episode], cameras: tuple[str, ...] = CAMERAS) -> LeRobotDataset:
    """The dataset holds exactly these episodes."""
    dataset = LeRobotDataset.open(path)
    np.testing.assert_array_equal(dataset.state, np.concatenate([episode.state for episode in episodes]))
    np.testing.assert_array_equal(dataset.action, np.concatenate([episode.action for episode in episodes]))
    assert dataset.cameras == cameras
    for camera in cameras:
        expected = np.concatenate([episode.images[camera] for episode in episodes])
        np.testing.assert_array_equal(dataset.images(camera), expected)
    assert [record.instruction for record in dataset.episodes] == [episode.instruction for episode in episodes]
    assert [record.length for record in dataset.episodes] == [len(episode.action) for episode in episodes]
    assert dataset.stats["action"] == compute_stats(dataset.action)
    assert dataset.fps == 20
    return dataset


def test_robomimic_files_keep_every_number(hdf5: tuple[Path, list[Episode]], tmp_path: Path) -> None:
    path, episodes = hdf5
    assert z1("import", path, "--out", tmp_path / "data") == 0
    dataset = check(tmp_path / "data", episodes)
    assert (dataset.state_names, dataset.action_names) == (STATE_NAMES, ACTION_NAMES)
    top, bottom = dataset.frame(CAMERAS[0], 3)[:8], dataset.frame(CAMERAS[0], 3)[8:]
    assert top.mean() > bottom.mean() + 50
    manifest = json.loads((tmp_path / "data/meta/z1_manifest.json").read_text())
    assert manifest["sources"] == [
        {"kind": "robomimic_hdf5", "file": path.name, "env": "OpenDrawer", "filter": "", "episodes": 3, "of": 3}
    ]


def test_state_is_in_the_order_of_the_simulators_adapter(hdf5: tuple[Path, list[Episode]], tmp_path: Path) -> None:
    path, _ = hdf5
    assert z1("import", path, "--out", tmp_path / "data") == 0
    state = LeRobotDataset.open(tmp_path / "data").state[:5]
    with h5py.File(path) as file:
        observations = file["data/demo_0/obs"]
        for key, columns in {
            "robot0_base_pos": slice(0, 3),
            "robot0_base_quat": slice(3, 7),
            "robot0_base_to_eef_pos": slice(7, 10),
            "robot0_base_to_eef_quat": slice(10, 14),
            "robot0_gripper_qpos": slice(14, 16),
        }.items():
            np.testing.assert_array_equal(state[:, columns], observations[key][()].astype(np.float32))


def test_demonstrations_are_in_order_of_their_numbers(tmp_path: Path) -> None:
    episodes = write_robomimic(tmp_path / "many.hdf5", demos=12, size=8)
    import_dataset(ImportConfig(source=(str(tmp_path / "many.hdf5"),), out=str(tmp_path / "data")))
    check(tmp_path / "data", episodes)


def test_known_orders_are_those_of_the_adapter() -> None:
    rng = np.random.default_rng(0)
    action = rng.choice([0.0, 1.0], size=(6, 12)).astype(np.float32)
    for width, expected in ((53, robocasa_layout.state_from_groot), (16, np.asarray)):
        state = rng.normal(size=(6, width)).astype(np.float32)
        file = Vectors(
            state_names=tuple(map(str, range(width))),
            action_names=tuple(map(str, range(12))),
            cameras=("left_view", "right_view", "wrist_view"),
            modality=None,
        )
        order = replace(choose_order(file, "auto", "known", Path("set")), quaternions=())
        np.testing.assert_array_equal(order.state(state, "set"), expected(state))
        np.testing.assert_array_equal(order.action(action, "set"), robocasa_layout.action_from_lerobot(action))
        assert tuple(order.cameras.values()) == robocasa_layout.CAMERAS


def test_filters_and_the_first_episodes(hdf5: tuple[Path, list[Episode]], tmp_path: Path) -> None:
    path, episodes = hdf5
    assert z1("import", path, "--out", tmp_path / "a", "--filter", "last") == 0
    check(tmp_path / "a", episodes[2:])
    assert z1("import", path, "--out", tmp_path / "b", "--filter", "2_demos", "--episodes", "1") == 0
    check(tmp_path / "b", episodes[:1])


def test_several_files_and_formats_become_one_dataset(hdf5: tuple[Path, list[Episode]], tmp_path: Path) -> None:
    path, episodes = hdf5
    groot = write_robocasa_v2(tmp_path / "groot", groot=True)
    one = write_robocasa_v2(tmp_path / "one", groot=False)
    sources = [path, tmp_path / "groot", tmp_path / "one"]
    assert z1("import", *sources, "--out", tmp_path / "data", "--episodes", "1") == 0
    check(tmp_path / "data", [episodes[0], groot[0], one[0]])


@pytest.mark.parametrize("groot", [True, False])
def test_conversions_of_robocasa_are_put_in_order(groot: bool, tmp_path: Path) -> None:
    episodes = write_robocasa_v2(tmp_path / "set", groot=groot)
    assert z1("import", tmp_path / "set", "--out", tmp_path / "data") == 0
    dataset = check(tmp_path / "data", episodes)
    assert (dataset.state_names, dataset.action_names) == (STATE_NAMES, ACTION_NAMES)
    assert set(np.unique(dataset.action[:, [6, 11]])) == {-1.0, 1.0}


def test_a_set_without_modality_is_taken_in_the_published_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    episodes = write_robocasa_v2(tmp_path / "set", groot=True)
    (tmp_path / "set/meta/modality.json").unlink()
    assert z1("import", tmp_path / "set", "--out", tmp_path / "data") == 0
    assert "has no meta/modality.json; its numbers were taken in the order" in capsys.readouterr().out
    check(tmp_path / "data", episodes)


def swapped(modality: dict[str, Any], kind: str, first: str, second: str) -> dict[str, Any]:
    """A modality with two neighbouring parts in the other order."""
    new = copy.deepcopy(modality)
    one, two = new[kind][first], new[kind][second]
    start, end, width = one["start"], two["end"], two["end"] - two["start"]
    one.update(start=start + width, end=end)
    two.update(start=start, end=start + width)
    return new


SWAPPED = {
    "state": swapped(V1_MODALITY, "state", "base_rotation", "end_effector_position_relative"),
    "action": swapped(V1_MODALITY, "action", "end_effector_rotation", "gripper_close"),
}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "state",
            "has state base_rotation in columns 6 to 10, the published sets have it in 3 to 7; "
            "choose --order modality to follow the file",
        ),
        (
            "action",
            "has action end_effector_rotation in columns 9 to 12, the published sets have it in 8 to 11; "
            "choose --order modality to follow the file",
        ),
    ],
)
def test_a_set_in_another_order_is_refused_or_followed(
    kind: str, message: str, tmp_path: Path, refused: Refused
) -> None:
    episodes = write_robocasa_v2(tmp_path / "set", groot=False, modality=SWAPPED[kind])
    arguments = ("import", tmp_path / "set", "--out", tmp_path / "data")
    assert refused(*arguments).endswith(message)
    assert not (tmp_path / "data").exists()
    assert z1(*arguments, "--order", "modality") == 0
    check(tmp_path / "data", episodes)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("state", "expected a quaternion of length 1 in "),
        ("action", r"expected -1, 0 or 1 in column 11 of action \("),
    ],
)
def test_another_order_shows_without_modality_too(kind: str, message: str, tmp_path: Path) -> None:
    write_robocasa_v2(tmp_path / "set", groot=False, modality=SWAPPED[kind])
    (tmp_path / "set/meta/modality.json").unlink()
    with pytest.raises(DatasetError, match=message):
        import_dataset(ImportConfig(source=(str(tmp_path / "set"),), out=str(tmp_path / "data")))


def test_an_order_by_modality_is_that_of_its_parts(tmp_path: Path) -> None:
    """53 numbers in an order of their own, as a set made elsewhere has them."""
    widths = {part: span["end"] - span["start"] for part, span in GROOT_MODALITY["state"].items()}
    state: dict[str, Any] = {}
    first = 0
    for part in sorted(widths, reverse=True):
        state[part] = {"start": first, "end": first + widths[part]}
        first += widths[part]
    episodes = write_robocasa_v2(tmp_path / "set", groot=True, modality={**GROOT_MODALITY, "state": state})
    assert z1("import", tmp_path / "set", "--out", tmp_path / "data", "--order", "modality") == 0
    check(tmp_path / "data", episodes)


def test_a_dataset_of_z1_is_not_put_in_order_twice(hdf5: tuple[Path, list[Episode]], tmp_path: Path) -> None:
    path, episodes = hdf5
    assert z1("import", path, "--out", tmp_path / "once") == 0
    assert z1("import", tmp_path / "once", "--out", tmp_path / "twice") == 0
    check(tmp_path / "twice", episodes)


@pytest.mark.parametrize("channels_first", [False, True])
def test_other_lerobot_datasets_are_taken_as_they_are(channels_first: bool, tmp_path: Path) -> None:
    episodes = write_plain_v2(tmp_path / "set", channels_first=channels_first)
    assert z1("import", tmp_path / "set", "--out", tmp_path / "data") == 0
    dataset = LeRobotDataset.open(tmp_path / "data")
    np.testing.assert_array_equal(dataset.state, np.concatenate([episode.state[:, :4] for episode in episodes]))
    np.testing.assert_array_equal(dataset.action, np.concatenate([episode.action[:, :2] for episode in episodes]))
    assert dataset.cameras == ("top",)
    images = np.concatenate([episode.images[CAMERAS[0]] for episode in episodes])
    np.testing.assert_array_equal(dataset.images("top"), images)
    assert [record.instruction for record in dataset.episodes] == [episode.instruction for episode in episodes]


def test_version_3_is_read_episode_by_episode(tmp_path: Path) -> None:
    """A dataset that LeRobot wrote: several episodes in one file of lossy AV1 video."""
    assert z1("import", SAMPLE, "--out", tmp_path / "data", "--cameras", "gripperPOV", "--episodes", "4") == 0
    old, new = LeRobotDataset.open(SAMPLE), LeRobotDataset.open(tmp_path / "data")
    frames = new.num_frames
    assert len(new.episodes) == 4
    np.testing.assert_array_equal(new.state, old.state[:frames])
    np.testing.assert_array_equal(new.action, old.action[:frames])
    np.testing.assert_array_equal(new.images("gripperPOV"), old.images("gripperPOV")[:frames])
    assert [record.instruction for record in new.episodes] == [record.instruction for record in old.episodes[:4]]


def test_images_are_resized_as_a_policy_does(hdf5: tuple[Path, list[Episode]], tmp_path: Path) -> None:
    path, episodes = hdf5
    out = tmp_path / "data"
    assert z1("import", path, "--out", out, "--image-size", "8", "--episodes", "1", "--cameras", CAMERAS[2]) == 0
    seen = LeRobotDataset.open(out).images(CAMERAS[2])
    given = torch.from_numpy(episodes[0].images[CAMERAS[2]]).permute(0, 3, 1, 2)
    np.testing.assert_array_equal(seen, letterbox(given, 8, "pil_antialias").permute(0, 2, 3, 1).numpy())
    wide = resized(np.full((1, 4, 8, 3), 200, dtype=np.uint8), 8)
    assert (wide[0, :2].max(), wide[0, 2:6].min(), wide[0, 6:].max()) == (0, 200, 0)


def test_lossy_videos(hdf5: tuple[Path, list[Episode]], tmp_path: Path) -> None:
    path, episodes = hdf5
    assert z1("import", path, "--out", tmp_path / "data", "--no-lossless", "--episodes", "1") == 0
    dataset = LeRobotDataset.open(tmp_path / "data")
    np.testing.assert_array_equal(dataset.action, episodes[0].action)
    assert dataset.info["features"]["observation.images." + CAMERAS[0]]["info"]["video.pix_fmt"] == "yuv420p"


def test_an_interrupted_import_is_continued(
    hdf5: tuple[Path, list[Episode]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, episodes = hdf5
    config = ImportConfig(source=(str(path),), out=str(tmp_path / "data"))
    add, stored = LeRobotWriter.add_episode, []

    def stop_at_the_third(self: LeRobotWriter, *arguments: Any, key: str = "") -> None:
        if len(stored) == 2:
            raise KeyboardInterrupt
        add(self, *arguments, key=key)
        stored.append(key)

    monkeypatch.setattr(LeRobotWriter, "add_episode", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        import_dataset(config)
    assert not (tmp_path / "data").exists()
    monkeypatch.setattr(LeRobotWriter, "add_episode", add)
    with pytest.raises(DatasetError, match=r"holds an unfinished recording with other settings .*chosen was"):
        import_dataset(ImportConfig(source=(str(path),), out=str(tmp_path / "data"), episodes=1))
    summary = import_dataset(config)
    assert (summary.resumed, summary.episodes, summary.frames) == (2, 3, len(episodes[2].action))
    check(tmp_path / "data", episodes)


def test_images_of_one_episode_at_a_time_are_in_memory(
    hdf5: tuple[Path, list[Episode]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = hdf5
    events: list[str] = []
    store = importing._store

    def watched(writer: LeRobotWriter, source: Any, episode: str, key: str, size: int) -> int:
        events.append(f"read {episode}")
        frames = store(writer, source, episode, key, size)
        events.append(f"stored {len(writer.keys())}")
        return frames

    monkeypatch.setattr(importing, "_store", watched)
    import_dataset(ImportConfig(source=(str(path),), out=str(tmp_path / "data")))
    assert events == ["read demo_0", "stored 1", "read demo_1", "stored 2", "read demo_2", "stored 3"]


def test_what_comes_next_is_said(
    hdf5: tuple[Path, list[Episode]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert z1("import", hdf5[0], "--out", tmp_path / "data") == 0
    shown = capsys.readouterr().out
    assert f"Dataset: {tmp_path / 'data'}: 3 episodes (0 of them from an interrupted import), 18 frames" in shown
    assert f"Next: z1 sft --dataset {tmp_path / 'data'} --recipe pi05 --policy POLICY" in shown


def test_a_new_policy_can_be_trained_on_robocasa(hdf5: tuple[Path, list[Episode]], tmp_path: Path) -> None:
    assert z1("import", hdf5[0], "--out", tmp_path / "data") == 0
    arguments = ["--recipe", "tiny", "--steps", "1", "--batch-size", "2", "--warmup-steps", "0"]
    assert z1("sft", "--dataset", tmp_path / "data", "--out", tmp_path / "run", *arguments) == 0
    policy = Policy.load(tmp_path / "run/policy")
    assert (policy.processor.state_dim, policy.processor.action_dim, policy.config.action_dim) == (16, 12, 12)
    assert policy.processor.cameras == CAMERAS
