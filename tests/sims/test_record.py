"""Recording demonstrations on MetaWorld itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from z1.data import record
from z1.data.lerobot import LeRobotDataset
from z1.data.record import DemoConfig, DemoSummary, record_demonstrations
from z1.errors import DatasetError, UnknownNameError
from z1.seeding import Seeds
from z1.sims.pool import SimPool, SimSpec
from z1.sims.suites import instruction
from z1.types import Scene

TASK = "metaworld/handle-press"
IMAGE_SIZE = 32


def config(path: Path, **settings: Any) -> DemoConfig:
    return DemoConfig(
        **{
            "task": (TASK,),
            "out": str(path / "demos"),
            "episodes": 2,
            "hosts": 1,
            "image_size": IMAGE_SIZE,
            **settings,
        }
    )


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> DemoSummary:
    return record_demonstrations(config(tmp_path_factory.mktemp("record")))


@pytest.fixture(scope="module")
def dataset(summary: DemoSummary) -> LeRobotDataset:
    return LeRobotDataset.open(summary.path)


def test_recording_is_a_dataset(summary: DemoSummary, dataset: LeRobotDataset) -> None:
    assert summary.episodes == len(dataset.episodes) == 2
    assert summary.frames == dataset.num_frames
    assert all(20 < episode.length < 100 for episode in dataset.episodes)
    assert dataset.tasks == [instruction(TASK)]
    assert dataset.fps == 80
    assert dataset.cameras == ("corner2", "gripperPOV")
    assert dataset.action_names == ("hand_dx", "hand_dy", "hand_dz", "gripper_effort")
    assert np.abs(dataset.action).max() <= 1
    images = dataset.images("corner2")
    assert images.shape == (dataset.num_frames, IMAGE_SIZE, IMAGE_SIZE, 3)
    assert images.std() > 10
    first, last = dataset.episodes[0].from_index, dataset.episodes[1].from_index - 1
    assert np.abs(images[first].astype(int) - images[last]).mean() > 1
    manifest = json.loads((summary.path / "meta/z1_manifest.json").read_text())
    assert manifest["simulator"] == "metaworld"
    assert manifest["tasks"][0]["episode_seeds"][0] == Scene.of_split(TASK, "train", 0).seed


def test_recording_replays(dataset: LeRobotDataset) -> None:
    # The same scene, expert and noise, executed by hand, give the recorded rows and the success at the last of them.
    scene = Scene.of_split(TASK, "train", 0)
    episode = dataset.episodes[0]
    noise = Seeds(0).rng("demos", TASK, scene.seed)
    with SimPool(SimSpec(simulator="metaworld", image_size=IMAGE_SIZE)) as pool:
        ((member,),) = pool.start([scene])
        seen = pool.observe([member])
        for row in range(episode.from_index, episode.from_index + episode.length):
            np.testing.assert_array_equal(dataset.state[row], seen.state[0])
            np.testing.assert_array_equal(dataset.images("corner2")[row], seen.images[0, 0])
            np.testing.assert_array_equal(dataset.images("gripperPOV")[row], seen.images[0, 1])
            expert = pool.expert_actions([member])[0]
            np.testing.assert_array_equal(dataset.action[row], expert)
            executed = np.clip(expert + np.float32(0.3) * noise.standard_normal(4, dtype=np.float32), -1, 1)
            outcome = pool.step_chunk([member], executed[None, None])
            seen = outcome.observations
    assert outcome.success[0]


def test_two_hosts_record_the_same(tmp_path: Path, dataset: LeRobotDataset) -> None:
    other = LeRobotDataset.open(record_demonstrations(config(tmp_path, hosts=2, in_flight=1)).path)
    np.testing.assert_array_equal(other.state, dataset.state)
    np.testing.assert_array_equal(other.action, dataset.action)
    np.testing.assert_array_equal(other.images("gripperPOV"), dataset.images("gripperPOV"))
    manifests = [(each.path / "meta/z1_manifest.json").read_text() for each in (other, dataset)]
    assert manifests[0] == manifests[1]


def test_interrupted_recording_is_finished_without_simulating_again(
    tmp_path: Path, dataset: LeRobotDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(progress: record.DemoProgress) -> None:
        if progress.episodes == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record_demonstrations(config(tmp_path, in_flight=1), interrupt)
    assert not (tmp_path / "demos").exists()
    started: list[Scene] = []
    start = SimPool.start

    def watched(self: SimPool, scenes: list[Scene], members: int = 1) -> Any:
        started.extend(scenes)
        return start(self, scenes, members)

    monkeypatch.setattr(SimPool, "start", watched)
    summary = record_demonstrations(config(tmp_path, in_flight=1))
    assert summary.resumed == 1
    assert started == [Scene.of_split(TASK, "train", 1)]
    other = LeRobotDataset.open(summary.path)
    np.testing.assert_array_equal(other.state, dataset.state)
    np.testing.assert_array_equal(other.images("corner2"), dataset.images("corner2"))


def test_existing_output_is_refused(tmp_path: Path, summary: DemoSummary) -> None:
    shutil.copytree(summary.path, tmp_path / "demos")
    with pytest.raises(DatasetError) as caught:
        record_demonstrations(config(tmp_path))
    assert str(caught.value) == (
        f"{tmp_path}/demos exists already; choose another path, or overwrite it explicitly (overwrite)"
    )


def test_unsolved_scenes_are_given_up_and_leave_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"solved 0 of 11 scenes with noise_std 0\.3 and horizon 2; choose less noise"
    ):
        record_demonstrations(config(tmp_path, horizon=2, in_flight=1))
    assert not (tmp_path / "demos").exists()


def test_unknown_camera_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="corner5"):
        record_demonstrations(config(tmp_path, cameras=("corner5",)))
