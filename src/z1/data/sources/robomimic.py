"""RoboCasa v0.2 demonstrations in robomimic's HDF5 layout.

```
data                attribute env_args: JSON with env_name and env_kwargs
data/demo_N         attributes ep_meta (JSON with lang), model_file, num_samples
data/demo_N/actions [T, 12]      data/demo_N/states [T, 1 + nq + nv]
data/demo_N/obs/<key>            proprioception; <camera>_image uint8 [T, H, W, 3], the right way up
mask/<filter>       names of the demonstrations of a subset
```

An observation belongs to the state before the action of the same row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from z1.data.sources.orders import QUATERNIONS, check_quaternions
from z1.data.sources.source import EpisodeVectors, whole_fps
from z1.errors import DatasetError, UnknownNameError
from z1.sims.recording import Recording
from z1.sims.robocasa_layout import ACTION_NAMES, CAMERAS, CONTROL_HZ, STATE_NAMES, STATE_PARTS, state_of

IMAGE_SUFFIX = "_image"


class RobomimicSource:
    """One HDF5 file. See ``Source``."""

    def __init__(self, path: Path, demo_filter: str = "") -> None:
        """Opens the file.

        Args:
            path: The file.
            demo_filter: Name of one of its filters (``mask/<name>``); empty: all demonstrations.

        Raises:
            DatasetError: It is no such file, or it is damaged.
            UnknownNameError: It has no such filter.
        """
        import h5py

        self.path = path
        self._filter = demo_filter
        if not path.is_file():
            raise DatasetError(f"{path} does not exist; give an HDF5 file")
        with self._readable():
            self._file = h5py.File(path, "r", locking="best-effort")
        try:
            with self._readable():
                self._open()
        except BaseException:
            self._file.close()
            raise

    def _open(self) -> None:
        if not _is_group(self._file.get("data")):
            raise DatasetError(f"{self.path}: expected a group data with demonstrations, got {_listed(self._file)}")
        env_args = self._json(self._file["data"], "env_args")
        self.robot = "robocasa"
        self._env = str(env_args.get("env_name", ""))
        kwargs = env_args.get("env_kwargs")
        control_hz = kwargs.get("control_freq", CONTROL_HZ) if isinstance(kwargs, dict) else CONTROL_HZ
        self.fps = whole_fps(float(control_hz), self.path)
        self.state_names: tuple[str, ...] = STATE_NAMES
        self.action_names: tuple[str, ...] = ACTION_NAMES
        self.episodes = self._names()
        keys = [str(key) for key in self._observations(self.episodes[0])]
        self.cameras = tuple(sorted(key.removesuffix(IMAGE_SUFFIX) for key in keys if key.endswith(IMAGE_SUFFIX)))
        if not self.cameras:
            raise DatasetError(
                f"{self.path}: {self.episodes[0]} has no images (obs/<camera>_image); make them from the stored states "
                "with RoboCasa's dataset_states_to_obs.py"
            )
        self.default_cameras: tuple[str, ...] = CAMERAS

    def image_size(self, camera: str) -> tuple[int, int]:
        """Height and width of a camera's images in pixels."""
        with self._readable():
            height, width = self._images(self.episodes[0], camera).shape[1:3]
        return int(height), int(width)

    def vectors(self, episode: str) -> EpisodeVectors:
        """State, action and instruction of a demonstration."""
        where = f"{self.path}: {episode}"
        with self._readable():
            demo = self._demo(episode)
            if "actions" not in demo:
                raise DatasetError(f"{where} has no actions; copy the file again")
            actions = self._numbers(demo["actions"])
            if actions.ndim != 2 or actions.shape[1] != len(ACTION_NAMES):
                got = actions.shape[1] if actions.ndim == 2 else actions.shape
                raise DatasetError(
                    f"{where}: expected {len(ACTION_NAMES)} numbers per action as RoboCasa's PandaOmron has them, got "
                    f"{got}; only demonstrations of RoboCasa v0.2 can be imported from HDF5"
                )
            parts = {key: self._observation(episode, key, width) for key, width in STATE_PARTS}
            instruction = self._instruction(episode)
        for key, values in parts.items():
            if len(values) != len(actions):
                raise DatasetError(
                    f"{where}: expected {len(actions)} rows of obs/{key}, one for each action, got "
                    f"{len(values)}; make the observations again"
                )
        states = state_of(parts)
        check_quaternions(states, QUATERNIONS, STATE_NAMES, where)
        return EpisodeVectors(states=states, actions=actions, instruction=instruction)

    def frames(self, episode: str, camera: str) -> Iterator[np.ndarray]:
        """The images of a demonstration, all at once: uint8 ``[T, H, W, 3]``."""
        with self._readable():
            images = self._images(episode, camera)[()]
        yield images

    def recording(self, episode: str, vectors: EpisodeVectors) -> Recording | None:
        """A demonstration with its simulator states; None when it has no states or no MJCF."""
        with self._readable():
            demo = self._demo(episode)
            if "states" not in demo or "model_file" not in demo.attrs:
                return None
            states = demo["states"][()]
            model_xml = demo.attrs["model_file"]
        if not isinstance(states, np.ndarray) or states.dtype.kind != "f" or states.ndim != 2:
            raise DatasetError(
                f"{self.path}: {episode}: expected states to be numbers of shape (T, 1 + nq + nv), got "
                f"{getattr(states, 'dtype', type(states).__name__)} {getattr(states, 'shape', '')}; copy the file again"
            )
        return Recording(
            task=self._env,
            scene=self._json(demo, "ep_meta"),
            model_xml=model_xml.decode() if isinstance(model_xml, bytes) else str(model_xml),
            states=states.astype(np.float64),
            actions=vectors.actions,
        )

    def facts(self) -> dict[str, Any]:
        """JSON about the file."""
        return {"kind": "robomimic_hdf5", "file": self.path.name, "env": self._env, "filter": self._filter}

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """Turns what h5py says of a damaged file into one message."""
        try:
            yield
        except (OSError, KeyError, RuntimeError) as problem:
            reason = str(problem).strip("'\"").splitlines()[0] if str(problem) else type(problem).__name__
            raise DatasetError(
                f"{self.path}: expected a robomimic HDF5 file, it cannot be read ({reason}); copy it again, it may be "
                "cut off"
            ) from problem

    def _names(self) -> tuple[str, ...]:
        """The demonstrations of the filter, by number."""
        stored = {str(name) for name in self._file["data"]}
        chosen = stored
        if self._filter:
            masks = self._file.get("mask")
            names = [str(name) for name in masks] if _is_group(masks) else []
            if self._filter not in names:
                raise UnknownNameError("filter", self._filter, names, f"(file {self.path})")
            values = masks[self._filter][()]
            chosen = {value.decode() if isinstance(value, bytes) else str(value) for value in values}
        missing = sorted(chosen - stored)
        if missing:
            raise DatasetError(f"{self.path}: filter {self._filter} names {missing[0]}, which is not in the file")
        numbered = {name: name.removeprefix("demo_") for name in chosen}
        odd = sorted(name for name, number in numbered.items() if not number.isdecimal() or number == name)
        if odd:
            raise DatasetError(f"{self.path}: expected demonstrations demo_0, demo_1, ..., got {odd[0]}")
        if not chosen:
            raise DatasetError(
                f"{self.path} holds no demonstration" + (f" of filter {self._filter}" * bool(self._filter))
            )
        return tuple(sorted(chosen, key=lambda name: int(numbered[name])))

    def _demo(self, episode: str) -> Any:
        demo = self._file["data"][episode]
        if not _is_group(demo):
            raise DatasetError(
                f"{self.path}: expected {episode} to be a group with actions and obs; copy the file again"
            )
        return demo

    def _observations(self, episode: str) -> Any:
        observations = self._demo(episode).get("obs")
        if not _is_group(observations):
            raise DatasetError(
                f"{self.path}: {episode} has no observations; make them from the stored states with RoboCasa's "
                "dataset_states_to_obs.py"
            )
        return observations

    def _numbers(self, stored: Any) -> np.ndarray:
        """A dataset as float32."""
        values = stored[()]
        if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu":
            raise DatasetError(
                f"{self.path}: expected numbers in {stored.name}, got {type(values).__name__}; copy it again"
            )
        return values.astype(np.float32)

    def _observation(self, episode: str, key: str, width: int) -> np.ndarray:
        observations = self._observations(episode)
        if key not in observations:
            raise DatasetError(
                f"{self.path}: {episode} has no obs/{key}, which the state is made of; make the observations again "
                "with RoboCasa's dataset_states_to_obs.py"
            )
        values = self._numbers(observations[key])
        if values.ndim != 2 or values.shape[1] != width:
            raise DatasetError(
                f"{self.path}: {episode}: expected obs/{key} of shape (T, {width}), got {values.shape}; it is of "
                "another robot"
            )
        return values

    def _images(self, episode: str, camera: str) -> Any:
        observations = self._observations(episode)
        key = camera + IMAGE_SUFFIX
        if key not in observations:
            raise DatasetError(f"{self.path}: {episode} has no obs/{key}, other demonstrations have; remove it")
        images = observations[key]
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise DatasetError(
                f"{self.path}: {episode}: expected obs/{key} to be uint8 (T, height, width, 3), got {images.dtype} "
                f"{images.shape}"
            )
        return images

    def _instruction(self, episode: str) -> str:
        demo = self._demo(episode)
        if "ep_meta" not in demo.attrs:
            raise DatasetError(
                f"{self.path}: {episode} has no attribute ep_meta, which holds the instruction; make the file again "
                "with RoboCasa's dataset_states_to_obs.py"
            )
        lang = self._json(demo, "ep_meta").get("lang")
        if not isinstance(lang, str) or not lang.strip():
            raise DatasetError(f"{self.path}: expected a text lang in the ep_meta of {episode}, got {lang!r}")
        return lang.strip()

    def _json(self, group: Any, name: str) -> dict[str, Any]:
        """A JSON object in an attribute; an empty one when there is none."""
        text = group.attrs.get(name, "{}")
        try:
            value = json.loads(text)
        except (TypeError, ValueError):
            value = None
        if not isinstance(value, dict):
            raise DatasetError(
                f"{self.path}: expected a JSON object in attribute {name} of {group.name}, got {text!r:.60}"
            )
        return value


def _is_group(value: Any) -> bool:
    import h5py

    return isinstance(value, h5py.Group)


def _listed(group: Any) -> str:
    return ", ".join(sorted(str(name) for name in group)) or "an empty file"
