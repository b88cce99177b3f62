"""``z1 import --verify`` without a simulator: what numbers alone refuse, and what is made of a simulator's answer."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest

from command_line import z1
from demonstration_files import V1_MODALITY, Episode, moving_episode, write_plain_v2, write_robocasa_v2, write_robomimic
from z1.data import verify as module
from z1.data.motion import motion
from z1.data.sources.source import EpisodeVectors
from z1.data.verify import check_same_states, check_states, frames_to_replay, number_notes
from z1.errors import DatasetError, SimulatorError
from z1.sims.recording import Recording, Replay
from z1.sims.robocasa_files import localised, missing_objects
from z1.sims.spec import SimSpec

Refused = Callable[..., str]


class FakeReplayer:
    """Answers with what is recorded, or with what a test puts in its place.

    Attributes:
        seen: Recordings and frames that were asked for.
        change: Makes the answer to a recording wrong.
    """

    seen: list[tuple[Recording, list[int]]]
    change: Callable[[Replay], Replay]
    episodes: list[Episode]

    def __init__(self, spec: SimSpec) -> None:
        assert spec.simulator == "robocasa"

    def __enter__(self) -> FakeReplayer:
        return self

    def __exit__(self, *arguments: object) -> None:
        pass

    def replay(self, recording: Recording, frames: Sequence[int]) -> Replay:
        """The recorded next states with the action; without it, the arm's motion is half of that."""
        type(self).seen.append((recording, list(frames)))
        (episode,) = [episode for episode in self.episodes if len(episode.action) == len(recording.actions)]
        now, then = episode.state[list(frames)], episode.state[np.array(frames) + 1]
        replay = Replay(state=now, after_action=then, after_nothing=halfway(now, then), solved=len(episode.action) > 60)
        return type(self).change(replay)


def halfway(now: np.ndarray, then: np.ndarray) -> np.ndarray:
    """Env states between two others; quaternions are brought to length 1."""
    between = (now + then) / 2
    between[:, 10:14] /= np.linalg.norm(between[:, 10:14], axis=1, keepdims=True)
    return between


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An HDF5 file of 2 demonstrations of 60 and 61 frames, and a simulator that agrees with it."""
    path = tmp_path / "OpenDrawer.hdf5"
    FakeReplayer.episodes = write_robomimic(path, demos=2, length=60, make=moving_episode)
    FakeReplayer.seen, FakeReplayer.change = [], staticmethod(lambda replay: replay)
    monkeypatch.setattr(module, "Replayer", FakeReplayer)
    return path


def test_a_recording_that_the_simulator_confirms(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert z1("import", recorded, "--out", tmp_path / "data", "--verify", "5") == 0
    said = capsys.readouterr().out
    assert f"Verified: {recorded}, episodes: 2" in said
    assert "numbers: the arm moves as its action dims say (117 frames, ahead of any other order by" in said
    assert "states of 2 episodes read as imported (largest difference 0)" in said
    assert "arm position: 1.000 of what the actions change is explained, correlation 1.000" in said
    assert "simulator: 1 of 2 episodes end solved" in said
    (recording, frames), _ = FakeReplayer.seen
    assert (recording.task, recording.model_xml, recording.scene["layout_id"]) == ("OpenDrawer", "<mujoco/>", 3)
    assert recording.states.shape == (60, 31)
    np.testing.assert_array_equal(recording.actions, FakeReplayer.episodes[0].action)
    assert frames == frames_to_replay(FakeReplayer.episodes[0].state).tolist()
    manifest = json.loads((tmp_path / "data/meta/z1_manifest.json").read_text())
    (found,) = manifest["verified"]
    assert (found["source"], found["episodes"], found["arm_order"]) == ("OpenDrawer.hdf5", 2, "confirmed")
    assert found["simulator"]["solved"] == 1
    assert found["simulator"]["share_of_motion"]["arm rotation"] == 1


def test_nothing_is_verified_unless_asked_for(recorded: Path, tmp_path: Path) -> None:
    assert z1("import", recorded, "--out", tmp_path / "data") == 0
    assert FakeReplayer.seen == []
    assert json.loads((tmp_path / "data/meta/z1_manifest.json").read_text())["verified"] == []


def test_episodes_are_spread(recorded: Path, tmp_path: Path) -> None:
    assert z1("import", recorded, "--out", tmp_path / "data", "--verify", "1", "--episodes", "2") == 0
    assert [len(recording.actions) for recording, _ in FakeReplayer.seen] == [60]


def _moved_state(replay: Replay) -> Replay:
    state = replay.state.copy()
    state[1, 7] += 0.01
    return Replay(**{**_fields(replay), "state": state})


def _turned_action(replay: Replay) -> Replay:
    """The action does the opposite of what is recorded."""
    turned = 2 * replay.after_nothing - replay.after_action
    turned[:, 10:14] /= np.linalg.norm(turned[:, 10:14], axis=1, keepdims=True)
    return Replay(**{**_fields(replay), "after_action": turned})


def _halved(replay: Replay) -> Replay:
    return Replay(**{**_fields(replay), "after_action": halfway(replay.after_nothing, replay.after_action)})


def _broken(replay: Replay) -> Replay:
    return Replay(**{**_fields(replay), "after_action": np.full_like(replay.state, np.nan)})


def _lost(replay: Replay) -> Replay:
    raise SimulatorError("3 of the files that the scene was recorded with are missing here, first /x/mug.xml")


def _fields(replay: Replay) -> dict[str, object]:
    return {name: getattr(replay, name) for name in Replay.__dataclass_fields__}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_moved_state, "demo_0: frame 2: the simulator reads eef_x "),
        (
            _turned_action,
            "executed in the simulator, the actions do not move the robot as it was recorded: of what they change in ",
        ),
        (
            _halved,
            " they explain 0.75 (1: all, 0: no more than no action does; expected at least 0.8); the actions are ",
        ),
        (_broken, "demo_0: the physics breaks down where recorded states are put in; leave the episode out"),
        (
            _lost,
            "demo_0 cannot be replayed: 3 of the files that the scene was recorded with are missing here, first "
            "/x/mug.xml; or leave --verify out",
        ),
    ],
)
def test_a_recording_that_the_simulator_contradicts(
    change: Callable[[Replay], Replay], message: str, recorded: Path, tmp_path: Path, refused: Refused
) -> None:
    FakeReplayer.change = staticmethod(change)
    error = refused("import", recorded, "--out", tmp_path / "data", "--verify", "2")
    assert message in error
    assert str(recorded) in error
    assert not (tmp_path / "data").exists()


def test_weak_agreement_is_a_note(recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Actions that do 3/4 of what is recorded explain 15/16 of it; those that do half, 3/4."""

    def weaker(replay: Replay) -> Replay:
        half = halfway(replay.after_nothing, replay.after_action)
        return Replay(**{**_fields(replay), "after_action": halfway(half, replay.after_action)})

    FakeReplayer.change = staticmethod(weaker)
    assert z1("import", recorded, "--out", tmp_path / "data", "--verify", "2") == 0
    assert "note: the actions explain 0.94 of what they change in arm_d" in capsys.readouterr().out


def test_buttons_are_not_judged(recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with h5py.File(recorded, "r+") as file:
        file["data"].attrs["env_args"] = json.dumps({"env_name": "TurnOnMicrowave", "env_kwargs": {}})
    assert z1("import", recorded, "--out", tmp_path / "data", "--verify", "2") == 0
    assert "whether episodes end solved cannot be told from states in this task" in capsys.readouterr().out


def test_states_that_do_not_fit_the_actions(recorded: Path, tmp_path: Path, refused: Refused) -> None:
    with h5py.File(recorded, "r+") as file:
        del file["data/demo_0/states"]
        file["data/demo_0/states"] = np.zeros((59, 31))
    error = refused("import", recorded, "--out", tmp_path / "data", "--verify", "2")
    assert "demo_0: expected 60 finite simulator states, one for each action, got 59; copy the file again" in error


def test_a_file_at_another_pace(recorded: Path, tmp_path: Path, refused: Refused) -> None:
    with h5py.File(recorded, "r+") as file:
        file["data"].attrs["env_args"] = json.dumps({"env_name": "OpenDrawer", "env_kwargs": {"control_freq": 10}})
    error = refused("import", recorded, "--out", tmp_path / "data", "--verify", "2")
    assert "demo_0: expected 20 frames per second, one per env step, to replay it, got 10; leave --verify out" in error


def test_a_task_that_is_not_known(recorded: Path, tmp_path: Path, refused: Refused) -> None:
    with h5py.File(recorded, "r+") as file:
        file["data"].attrs["env_args"] = json.dumps({"env_name": "OpenDrawers", "env_kwargs": {}})
    error = refused("import", recorded, "--out", tmp_path / "data", "--verify", "2")
    assert error.startswith("unknown RoboCasa task 'OpenDrawers'; did you mean 'OpenDrawer'")
    assert error.endswith(f"({recorded}; leave --verify out)")


def test_without_the_simulator_recordings_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    monkeypatch.setenv("Z1_HOME", str(tmp_path / "nothing_installed"))
    write_robomimic(tmp_path / "OpenDrawer.hdf5", demos=2, length=60, make=moving_episode)
    error = refused("import", tmp_path / "OpenDrawer.hdf5", "--out", tmp_path / "data", "--verify", "2")
    assert error.startswith(
        "--verify replays recordings in the simulator, which does not start: robocasa is not installed; install it with"
    )
    assert error.endswith("; or leave --verify out")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("missing", ["states", "model_file"])
def test_files_without_states_are_checked_by_their_numbers(
    missing: str, recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with h5py.File(recorded, "r+") as file:
        for demo in file["data"].values():
            if missing == "states":
                del demo["states"]
            else:
                del demo.attrs["model_file"]
    assert z1("import", recorded, "--out", tmp_path / "data", "--verify", "2") == 0
    said = capsys.readouterr().out
    assert "numbers: the arm moves as its action dims say" in said
    assert "not verified, since the source holds no simulator states: that state and image belong to the same" in said
    assert FakeReplayer.seen == []


@pytest.mark.parametrize("groot", [True, False])
def test_lerobot_sets_are_checked_by_their_numbers(
    groot: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_robocasa_v2(tmp_path / "set", groot=groot, length=60, make=moving_episode)
    assert z1("import", tmp_path / "set", "--out", tmp_path / "data", "--verify", "9") == 0
    said = capsys.readouterr().out
    assert f"Verified: {tmp_path / 'set'}, episodes: 2" in said
    assert "numbers: the arm moves as its action dims say (117 frames" in said
    assert "what the actions do in the simulator, success" in said
    assert "note:" not in said
    (found,) = json.loads((tmp_path / "data/meta/z1_manifest.json").read_text())["verified"]
    assert found["simulator"] is None


def exchanged(kind: str, one: str, other: str) -> dict[str, object]:
    """RoboCasa v1.0's layout with two parts of the same width exchanged."""
    modality = copy.deepcopy(V1_MODALITY)
    modality[kind][one], modality[kind][other] = modality[kind][other], modality[kind][one]
    return modality


WRONG_ORDERS = {
    "position and rotation of the action": (
        exchanged("action", "end_effector_position", "end_effector_rotation"),
        "the arm does not move as its action dims say (arm_dx acts like arm_rx, arm_dy acts like arm_ry, arm_dz acts "
        "like arm_rz, arm_rx acts like arm_dx, arm_ry acts like arm_dy, arm_rz acts like arm_dz; by 117 frames); state "
        "or action are in another order than the source's layout says",
    ),
    "base and hand": (
        exchanged("state", "base_position", "end_effector_position_relative"),
        "expected in eef_x, eef_y, eef_z the hand within 1.5 m of the base, got 1, -2, 0.7 in frame 0; the numbers of "
        "the state are in another order",
    ),
    "orientations": (
        exchanged("state", "base_rotation", "end_effector_rotation_relative"),
        "expected in base_qx, base_qy an upright base, both near 0, got 0.8, 0.6 in frame 0; the numbers of the state "
        "are in another order",
    ),
}


@pytest.mark.parametrize("name", WRONG_ORDERS)
def test_lerobot_sets_in_another_order_are_refused(name: str, tmp_path: Path, refused: Refused) -> None:
    modality, message = WRONG_ORDERS[name]
    write_robocasa_v2(tmp_path / "set", groot=False, modality=modality, length=60, make=moving_episode)
    (tmp_path / "set/meta/modality.json").unlink()
    error = refused("import", tmp_path / "set", "--out", tmp_path / "data", "--verify", "2")
    assert str(tmp_path / "set") in error
    assert message in error
    assert not (tmp_path / "data").exists()


def test_only_robocasa_can_be_verified(tmp_path: Path, refused: Refused) -> None:
    write_plain_v2(tmp_path / "set")
    error = refused("import", tmp_path / "set", "--out", tmp_path / "data", "--verify", "3")
    assert error == (
        f"verify is 3; {tmp_path / 'set'} holds numbers of which nothing is known (taken as they are), only RoboCasa's "
        "can be verified; leave --verify out"
    )
    error = refused("import", tmp_path / "set", "--out", tmp_path / "data", "--verify", "-1")
    assert error == "verify is -1; it must be 0 (none) or a number of episodes of each source"


def test_states_that_the_robot_cannot_be_in() -> None:
    good = moving_episode(0).state
    check_states(good, "x")
    for dim, value, message in (
        (4, 0.3, "x: expected in base_qx, base_qy an upright base, both near 0, got 0, 0.3 in frame 2; "),
        (14, 0.08, "x: expected in gripper_left, gripper_right fingers of 0 to 0.04 m and -0.04 to 0 m, got 0.08, "),
        (15, 0.02, "x: expected in gripper_left, gripper_right fingers of 0 to 0.04 m and -0.04 to 0 m, got "),
        (9, -1.6, "x: expected in eef_x, eef_y, eef_z the hand within 1.5 m of the base, got "),
    ):
        wrong = good.copy()
        wrong[2, dim] = value
        with pytest.raises(DatasetError) as caught:
            check_states(wrong, "x")
        assert str(caught.value).startswith(message)
        assert str(caught.value).endswith("in frame 2; the numbers of the state are in another order")


def test_states_are_compared_up_to_the_sign_of_quaternions() -> None:
    imported = moving_episode(0).state
    simulated, frames = imported.copy(), np.arange(len(imported)) * 10
    simulated[2, 10:14] *= -1
    simulated[3, 0] += 2e-4
    assert check_same_states(imported, simulated, frames, "x") == pytest.approx(2e-4, rel=1e-3)
    simulated[3, 15] = 0.5
    with pytest.raises(DatasetError) as caught:
        check_same_states(imported, simulated, frames, "x")
    assert str(caught.value) == (
        f"x: frame 30: the simulator reads gripper_right 0.5 where the recorded state is put in, imported is "
        f"{imported[3, 15]:.4g} (they may differ by 0.001); the observations belong to other states, or are in another "
        "order"
    )
    simulated[3] = np.nan
    with pytest.raises(DatasetError, match="frame 30: the simulator reads"):
        check_same_states(imported, simulated, frames, "x")


def test_frames_with_motion_of_fingers_and_base_are_replayed() -> None:
    states = np.tile(moving_episode(0).state[:1], (200, 1))
    states[101:, 14] -= 0.01
    states[55:, 0] += 0.02
    frames = frames_to_replay(states).tolist()
    assert {0, 54, 100, 198} <= set(frames)
    assert 20 <= len(frames) <= 27
    assert frames == sorted(set(frames))
    assert frames_to_replay(states[:2]).tolist() == [0]
    assert motion(states[100:101], states[101:102])[0, 6] == pytest.approx(-0.01, abs=1e-6)


def test_odd_actions_are_noted() -> None:
    actions = moving_episode(0).action
    actions[0, 2], actions[:3, 6] = 1.2, 0.5
    episode = EpisodeVectors(states=moving_episode(0).state, actions=actions, instruction="x", odd_switches=1)
    assert number_notes([episode]) == [
        "1 of 7 actions have numbers outside [-1, 1], which the simulator clips",
        "4 of 7 actions have other numbers than -1, 0 and 1 in gripper or base_mode",
    ]
    good = EpisodeVectors(states=moving_episode(0).state, actions=moving_episode(0).action, instruction="x")
    assert number_notes([good]) == []


SCENE = """<mujoco model="base"><compiler angle="radian"/><asset>
<mesh name="a" file="/home/x/robocasa/robocasa/models/assets/fixtures/sink/a.obj"/>
<texture name="b" file="/y/robosuite/robosuite/models/assets/textures/b.png" builtin="none"/>
<texture name="c" fileright="{other}"/></asset><worldbody/></mujoco>"""


@pytest.fixture
def roots(tmp_path: Path) -> dict[str, Path]:
    """Asset folders that hold what ``SCENE`` needs."""
    for name in ("robocasa/fixtures/sink/a.obj", "robosuite/textures/b.png", "robocasa/objects/objaverse/mug/m.xml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "secret").touch()
    return {"robocasa": tmp_path / "robocasa", "robosuite": tmp_path / "robosuite"}


def test_paths_of_a_recording_become_this_machines(roots: dict[str, Path]) -> None:
    path = "/z/robosuite/models/assets/fixtures/sink/a.obj"  # as before RoboCasa was a package of its own
    xml, missing = localised(SCENE.format(other=path), roots)
    assert missing == []
    assert f'file="{roots["robocasa"]}/fixtures/sink/a.obj"' in xml
    assert f'file="{roots["robosuite"]}/textures/b.png"' in xml
    assert f'fileright="{roots["robocasa"]}/fixtures/sink/a.obj"' in xml
    assert 'inertiagrouprange="0 0"' in xml
    assert 'inertiagrouprange="0 5"' in localised(xml.replace('"0 0"', '"0 5"'), roots)[0]


@pytest.mark.parametrize(
    "path",
    [
        "/z/robocasa/models/assets/fixtures/sink/other.obj",
        "/z/robocasa/models/assets/../secret",
        "/z/robocasa/models/assets//etc/hostname",
        "/etc/hostname",
    ],
)
def test_nothing_but_assets_is_opened(path: str, roots: dict[str, Path]) -> None:
    assert localised(SCENE.format(other=path), roots)[1] == [path]


@pytest.mark.parametrize("text", ["<mujoco", "<robot/>", "<mujoco/>", ""])
def test_what_is_no_scene_is_refused(text: str, roots: dict[str, Path]) -> None:
    with pytest.raises(SimulatorError, match=r"^expected MJCF "):
        localised(text, roots)


def test_objects_of_a_description_must_be_here(roots: dict[str, Path]) -> None:
    objects = roots["robocasa"] / "objects"
    here = "/z/robocasa/models/assets/objects/objaverse/mug/m.xml"
    strange = ["/z/objects/objaverse/cup/c.xml", "/etc/hostname", "/z/objects/../../secret", ""]
    scene = {"object_cfgs": [{"name": "obj", "info": {"mjcf_path": path}} for path in (here, *strange)]}
    assert missing_objects(scene, objects) == strange
    for odd in ({}, {"object_cfgs": 3}, {"object_cfgs": [None, {"info": "x"}, {}]}):
        assert missing_objects(odd, objects) == []
