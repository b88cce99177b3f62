"""Small demonstration files in the layouts that ``z1 import`` reads, written with h5py, pyarrow and PyAV.

The numbers of an episode are random but for the quaternions and the dims with two meanings; every writer returns what a
reader has to find, in z1's order.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from z1.data.video import choose_codec, encode_video

CAMERAS = ("robot0_agentview_left", "robot0_agentview_right", "robot0_eye_in_hand")
GROOT_CAMERAS = ("left_view", "right_view", "wrist_view")
FPS = 20

STATE_KEYS = {
    "robot0_base_pos": 3,
    "robot0_base_quat": 4,
    "robot0_base_to_eef_pos": 3,
    "robot0_base_to_eef_quat": 4,
    "robot0_gripper_qpos": 2,
}
"""Observations of the state in z1's order."""

V1_MODALITY: dict[str, Any] = {
    "state": {
        "base_position": {"original_key": "observation.state", "start": 0, "end": 3},
        "base_rotation": {"original_key": "observation.state", "start": 3, "end": 7},
        "end_effector_position_relative": {"original_key": "observation.state", "start": 7, "end": 10},
        "end_effector_rotation_relative": {"original_key": "observation.state", "start": 10, "end": 14},
        "gripper_qpos": {"original_key": "observation.state", "start": 14, "end": 16},
    },
    "action": {
        "base_motion": {"original_key": "action", "start": 0, "end": 4},
        "control_mode": {"original_key": "action", "start": 4, "end": 5},
        "end_effector_position": {"original_key": "action", "start": 5, "end": 8},
        "end_effector_rotation": {"original_key": "action", "start": 8, "end": 11},
        "gripper_close": {"original_key": "action", "start": 11, "end": 12},
    },
}
GROOT_MODALITY: dict[str, Any] = {
    "state": {
        "base_position": {"start": 0, "end": 3},
        "base_rotation": {"start": 3, "end": 7},
        "end_effector_position_absolute": {"start": 7, "end": 10},
        "end_effector_position_relative": {"start": 10, "end": 13},
        "end_effector_rotation_absolute": {"start": 13, "end": 17},
        "end_effector_rotation_relative": {"start": 17, "end": 21},
        "gripper_qpos": {"start": 21, "end": 23},
        "gripper_qvel": {"start": 23, "end": 25},
        "joint_position": {"start": 25, "end": 32},
        "joint_position_cos": {"start": 32, "end": 39},
        "joint_position_sin": {"start": 39, "end": 46},
        "joint_velocity": {"start": 46, "end": 53},
    },
    "action": {part: {"start": span["start"], "end": span["end"]} for part, span in V1_MODALITY["action"].items()},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """What a reader has to find.

    Attributes:
        observations: Every proprioceptive part, by the simulator's name.
        state: float32 ``[T, 16]``.
        action: float32 ``[T, 12]``.
        images: uint8 ``[T, H, W, 3]`` by the simulator's camera name.
        instruction: Language instruction.
    """

    observations: dict[str, np.ndarray]
    state: np.ndarray
    action: np.ndarray
    images: dict[str, np.ndarray]
    instruction: str


def make_episode(seed: int, *, length: int = 7, size: int = 16) -> Episode:
    """An episode of random numbers, images whose upper half is brighter, and one of two instructions."""
    rng = np.random.default_rng(seed)
    widths = {**STATE_KEYS, "robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qvel": 2}
    widths |= {f"robot0_joint_{what}": 7 for what in ("pos", "pos_cos", "pos_sin", "vel")}
    observations = {key: rng.normal(size=(length, width)) for key, width in widths.items()}
    for key in (key for key in widths if key.endswith("_quat")):
        observations[key] /= np.linalg.norm(observations[key], axis=1, keepdims=True)
    action = rng.uniform(-1, 1, size=(length, 12)).astype(np.float32)
    action[:, [6, 11]] = rng.choice([-1.0, 1.0], size=(length, 2))
    images = {camera: rng.integers(0, 100, size=(length, size, size, 3)).astype(np.uint8) for camera in CAMERAS}
    for frames in images.values():
        frames[:, : size // 2] += 100
    state = np.concatenate([observations[key] for key in STATE_KEYS], axis=1).astype(np.float32)
    instruction = ("open the left drawer", "press the start button on the microwave")[seed % 2]
    return Episode(observations=observations, state=state, action=action, images=images, instruction=instruction)


def moving_episode(seed: int, *, length: int = 7, size: int = 16) -> Episode:
    """An episode whose states PandaOmron can be in, and whose arm moves as the action says, with some momentum."""
    episode, rng = make_episode(seed, length=length, size=size), np.random.default_rng([seed, 1])
    action = episode.action
    action[:, 7:11], action[:, 11] = 0.0, -1.0
    seen: dict[str, list[Any]] = {key: [] for key in STATE_KEYS}
    position, turn, fingers = np.array([0.5, 0.1, 0.4]), np.array([0.8, 0.6, 0.0, 0.0]), 0.02
    speed, spin = np.zeros(3), np.zeros(3)
    for command in action:
        seen["robot0_base_pos"].append([1.0, -2.0, 0.7])
        seen["robot0_base_quat"].append([0.0, 0.0, 0.6, 0.8])
        seen["robot0_base_to_eef_pos"].append(position)
        seen["robot0_base_to_eef_quat"].append(turn)
        seen["robot0_gripper_qpos"].append([fingers, -fingers])
        speed = 0.6 * speed + 0.003 * command[:3] + rng.normal(0, 2e-4, 3)
        spin = 0.6 * spin + 0.02 * command[3:6] + rng.normal(0, 2e-3, 3)
        position, turn = position + speed, turned(turn, spin)
        fingers = float(np.clip(fingers - 0.005 * command[6], 0.0, 0.04))
    observations = {**episode.observations, **{key: np.array(values) for key, values in seen.items()}}
    state = np.concatenate([observations[key] for key in STATE_KEYS], axis=1).astype(np.float32)
    return replace(episode, observations=observations, state=state, action=action)


def turned(quaternion: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """A quaternion (x, y, z, w) after a rotation vector of the outer frame."""
    angle = np.linalg.norm(rotation)
    (x, y, z), w = np.sin(angle / 2) * rotation / angle, np.cos(angle / 2)
    matrix = np.array([[w, -z, y, x], [z, w, -x, y], [-y, x, w, z], [-x, -y, -z, w]])
    result: np.ndarray = matrix @ quaternion
    return result / np.linalg.norm(result)


def write_robomimic(
    path: Path,
    *,
    demos: int = 3,
    seed: int = 0,
    size: int = 16,
    length: int = 5,
    make: Callable[..., Episode] = make_episode,
) -> list[Episode]:
    """A RoboCasa v0.2 file: demonstrations of different lengths, filters ``2_demos`` and ``last``."""
    episodes = [make(seed + number, length=length + number, size=size) for number in range(demos)]
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = sum(len(episode.action) for episode in episodes)
        kwargs = {"robots": "PandaOmron", "control_freq": FPS, "camera_heights": size}
        data.attrs["env_args"] = json.dumps(
            {"env_name": "OpenDrawer", "env_version": "1.5.0", "type": 1, "env_kwargs": kwargs}, indent=4
        )
        for number, episode in enumerate(episodes):
            demo = data.create_group(f"demo_{number}")
            length = len(episode.action)
            demo.attrs["model_file"] = "<mujoco/>"
            demo.attrs["ep_meta"] = json.dumps({"layout_id": 3, "lang": episode.instruction}, indent=4)
            demo.attrs["num_samples"] = length
            demo.create_dataset("actions", data=episode.action.astype(np.float64))
            demo.create_dataset("states", data=np.zeros((length, 31)))
            demo.create_dataset("rewards", data=np.zeros(length))
            demo.create_dataset("dones", data=np.zeros(length, dtype=np.int64))
            demo.create_dataset("action_dict/gripper", data=episode.action[:, 6:7])
            for key, values in episode.observations.items():
                demo.create_dataset(f"obs/{key}", data=values, compression="gzip")
            for camera, frames in episode.images.items():
                demo.create_dataset(f"obs/{camera}_image", data=frames, compression="gzip")
        file["mask/2_demos"] = np.array(["demo_0", "demo_1"], dtype="S")
        file["mask/last"] = np.array([f"demo_{demos - 1}"], dtype="S")
    return episodes


PART_KEYS = {
    "base_position": "robot0_base_pos",
    "base_rotation": "robot0_base_quat",
    "end_effector_position_absolute": "robot0_eef_pos",
    "end_effector_position_relative": "robot0_base_to_eef_pos",
    "end_effector_rotation_absolute": "robot0_eef_quat",
    "end_effector_rotation_relative": "robot0_base_to_eef_quat",
    "gripper_qpos": "robot0_gripper_qpos",
    "gripper_qvel": "robot0_gripper_qvel",
    "joint_position": "robot0_joint_pos",
    "joint_position_cos": "robot0_joint_pos_cos",
    "joint_position_sin": "robot0_joint_pos_sin",
    "joint_velocity": "robot0_joint_vel",
}
ACTION_SLICES = {
    "end_effector_position": slice(0, 3),
    "end_effector_rotation": slice(3, 6),
    "gripper_close": slice(6, 7),
    "base_motion": slice(7, 11),
    "control_mode": slice(11, 12),
}


def write_robocasa_v2(
    path: Path,
    *,
    groot: bool,
    modality: dict[str, Any] | None = None,
    episodes: int = 2,
    size: int = 16,
    length: int = 4,
    make: Callable[..., Episode] = make_episode,
) -> list[Episode]:
    """A LeRobot v2.1 conversion of RoboCasa demonstrations.

    Args:
        path: The folder to create.
        groot: NVIDIA's layout (53 numbers of state, gripper and control mode 0 or 1), else that of RoboCasa v1.0 (16
            numbers, -1 or 1).
        modality: Where the parts lie; also written as ``meta/modality.json``.
        episodes: How many.
        size: Height and width of the images.
        length: Frames of the shortest.
        make: What makes an episode.
    """
    modality = modality or (GROOT_MODALITY if groot else V1_MODALITY)
    made = [make(number, length=length + number, size=size) for number in range(episodes)]
    rows = []
    for episode in made:
        state = _placed(modality["state"], {part: episode.observations[key] for part, key in PART_KEYS.items()})
        parts = {part: episode.action[:, columns] for part, columns in ACTION_SLICES.items()}
        if groot:
            parts |= {part: (parts[part] + 1) / 2 for part in ("gripper_close", "control_mode")}
        rows.append((state, _placed(modality["action"], parts)))
    cameras = dict(zip(GROOT_CAMERAS if groot else CAMERAS, CAMERAS, strict=True))
    images = [{name: episode.images[camera] for name, camera in cameras.items()} for episode in made]
    column = "annotation.human.action.task_description" if groot else "annotation.human.task_description"
    write_lerobot_v2(path, rows, images, [episode.instruction for episode in made], task_column=column)
    (path / "meta/modality.json").write_text(json.dumps(modality))
    return made


def _placed(spans: dict[str, Any], parts: dict[str, np.ndarray]) -> np.ndarray:
    """Parts side by side, where a modality says."""
    width = max(span["end"] for span in spans.values())
    found = np.zeros((len(next(iter(parts.values()))), width))
    for part, span in spans.items():
        found[:, span["start"] : span["end"]] = parts[part]
    return found


def write_lerobot_v2(
    path: Path,
    rows: list[tuple[np.ndarray, np.ndarray]],
    images: list[dict[str, np.ndarray]],
    instructions: list[str],
    *,
    task_column: str = "task_index",
    channels_first: bool = False,
) -> None:
    """A LeRobot v2.1 dataset from state and action, images and the instruction of each episode."""
    (path / "meta").mkdir(parents=True)
    tasks = ["valid", *dict.fromkeys(instructions)]
    codec = choose_codec(lossless=True)
    features: dict[str, Any] = {
        "observation.state": {"dtype": "float64", "shape": [rows[0][0].shape[1]]},
        "action": {"dtype": "float64", "shape": [rows[0][1].shape[1]]},
    }
    for camera, frames in images[0].items():
        shape, names = list(frames.shape[1:]), ["height", "width", "channel"]
        if channels_first:
            shape, names = [3, *shape[:2]], ["channel", "height", "width"]
        features[f"observation.images.{camera}"] = {"dtype": "video", "shape": shape, "names": names}
    for number, ((state, action), views, instruction) in enumerate(zip(rows, images, instructions, strict=True)):
        length = len(state)
        columns: dict[str, Any] = {
            "observation.state": pa.array(list(state)),
            "action": pa.array(list(action)),
            "timestamp": np.arange(length) / FPS,
            "frame_index": np.arange(length),
            "episode_index": np.full(length, number),
            "task_index": np.zeros(length, dtype=np.int64),
        }
        columns[task_column] = np.full(length, tasks.index(instruction))
        file = path / f"data/chunk-000/episode_{number:06d}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), file)
        for camera, frames in views.items():
            video = path / f"videos/chunk-000/observation.images.{camera}/episode_{number:06d}.mp4"
            video.parent.mkdir(parents=True, exist_ok=True)
            encode_video(video, frames, FPS, codec)
    info = {
        "codebase_version": "v2.1",
        "robot_type": "PandaOmron",
        "fps": float(FPS),
        "chunks_size": 1000,
        "total_episodes": len(rows),
        "total_frames": sum(len(state) for state, _ in rows),
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": features,
    }
    (path / "meta/info.json").write_text(json.dumps(info))
    lines = [json.dumps({"task_index": number, "task": task}) for number, task in enumerate(tasks)]
    (path / "meta/tasks.jsonl").write_text("\n".join(lines) + "\n")
    lines = [
        json.dumps({"episode_index": number, "tasks": [instruction], "length": len(rows[number][0])})
        for number, instruction in enumerate(instructions)
    ]
    (path / "meta/episodes.jsonl").write_text("\n".join(lines) + "\n")


def write_plain_v2(path: Path, *, channels_first: bool = False) -> list[Episode]:
    """A LeRobot v2.1 dataset of another robot: 4 numbers of state, 2 of action, one camera."""
    episodes = [make_episode(number, length=4 + number) for number in range(2)]
    rows = [(episode.state[:, :4], episode.action[:, :2]) for episode in episodes]
    images = [{"top": episode.images[CAMERAS[0]]} for episode in episodes]
    instructions = [episode.instruction for episode in episodes]
    write_lerobot_v2(path, rows, images, instructions, channels_first=channels_first)
    return episodes
