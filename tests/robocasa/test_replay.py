"""``z1 import --verify`` in the real simulator: demonstrations that robosuite itself recorded, right and made wrong."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from z1.data.importing import ImportConfig, import_dataset
from z1.data.lerobot import LeRobotDataset
from z1.data.sources.robomimic import RobomimicSource
from z1.errors import DatasetError, SimulatorError, UnknownNameError
from z1.sims.recording import Recording
from z1.sims.replay import Replayer
from z1.sims.spec import SimSpec

pytestmark = [pytest.mark.robocasa, pytest.mark.timeout(600)]

STEPS = 72


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, run_program: Callable[..., str]) -> Path:
    """Two demonstrations of one kitchen, the first of which ends with the drawer shut. Not to be changed."""
    path = tmp_path_factory.mktemp("recorded") / "CloseDrawer.hdf5"
    run_program("recording_program.py", path, "CloseDrawer", 5, STEPS)
    return path


@pytest.fixture
def changed(file: Path, tmp_path: Path) -> Path:
    """A copy to be made wrong."""
    return Path(shutil.copy(file, tmp_path / "changed.hdf5"))


@pytest.fixture(scope="module")
def recording(file: Path) -> Recording:
    """The first demonstration."""
    source = RobomimicSource(file)
    recording = source.recording("demo_0", source.vectors("demo_0"))
    source.close()
    assert recording is not None
    return recording


@pytest.fixture(scope="module")
def replayer() -> Iterator[Replayer]:
    """One host."""
    with Replayer(SimSpec(simulator="robocasa")) as replayer:
        yield replayer


def test_a_recording_is_confirmed(file: Path, tmp_path: Path) -> None:
    summary = import_dataset(ImportConfig(source=(str(file),), out=str(tmp_path / "data"), verify=2))
    (found,) = summary.verified
    assert found.order.verdict == "confirmed"
    assert found.notes == ()
    assert found.replay is not None
    assert found.replay.state_difference < 1e-5
    assert found.replay.solved == 1
    shares = {share.part.name: share.worst_share for share in found.replay.shares}
    assert set(shares) == {"arm position", "arm rotation", "gripper", "base"}
    assert min(shares.values()) > 0.95, shares
    assert len(LeRobotDataset.open(tmp_path / "data").state) == 2 * STEPS


def test_actions_in_another_order_are_refused(changed: Path, tmp_path: Path) -> None:
    """One demonstration, too short for its numbers to tell the order."""
    with h5py.File(changed, "r+") as file:
        for demo in file["data"].values():
            demo["actions"][:] = demo["actions"][()][:, [1, 0, *range(2, 12)]]
    config = ImportConfig(source=(str(changed),), out=str(tmp_path / "data"), verify=1)
    with pytest.raises(DatasetError, match=r"the actions do not move the robot as it was recorded: .* in arm_d[xy] "):
        import_dataset(config)
    with pytest.raises(DatasetError, match=r"\(arm_dx acts like arm_dy, arm_dy acts like arm_dx; by \d+ frames\)"):
        import_dataset(replace(config, verify=2))
    assert not (tmp_path / "data").exists()


def test_a_state_in_another_order_is_refused(changed: Path, tmp_path: Path) -> None:
    with h5py.File(changed, "r+") as file:
        for demo in file["data"].values():
            position = demo["obs/robot0_base_pos"]
            position[:] = position[()][:, [1, 0, 2]]
    config = ImportConfig(source=(str(changed),), out=str(tmp_path / "data"), verify=1)
    with pytest.raises(DatasetError, match=r"demo_0: frame \d+: the simulator reads base_[xy] .* where the recorded"):
        import_dataset(config)
    assert not (tmp_path / "data").exists()


def test_the_answer_does_not_depend_on_what_ran_before(recording: Recording, replayer: Replayer) -> None:
    first, again = replayer.replay(recording, [3, 30]), replayer.replay(recording, [30])
    np.testing.assert_array_equal(first.state[1:], again.state)
    np.testing.assert_array_equal(first.after_action[1:], again.after_action)
    assert first.solved
    assert again.solved


def test_what_cannot_be_opened_is_one_error(recording: Recording, replayer: Replayer) -> None:
    model = recording.model_xml.replace("/models/assets/fixtures/", "/models/assets/fixtures_of_another_time/")
    with pytest.raises(
        SimulatorError,
        match=r"of the files that the scene was recorded with are missing here, first /home/recorder/work/robocasa/"
        r".*; expected them in .*/robocasa/models/assets: link the real assets",
    ):
        replayer.replay(replace(recording, model_xml=model), [0])
    with pytest.raises(
        SimulatorError, match=r"expected states of \d+ numbers .* got shape \(72, 9\); states and scene"
    ):
        replayer.replay(replace(recording, states=recording.states[:, :9]), [0])
    with pytest.raises(UnknownNameError, match="unknown RoboCasa task 'OpenDoor'"):
        replayer.replay(replace(recording, task="OpenDoor"), [0])
    scene = {**recording.scene, "style_id": 99}
    with pytest.raises(SimulatorError, match="the recorded scene cannot be opened"):
        replayer.replay(replace(recording, scene=scene), [0])
    assert replayer.replay(recording, [0]).state.shape == (1, 16)
