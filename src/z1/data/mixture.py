"""Several data sets as one to train on: the same cameras, state, action and pace, each with instructions of its own.

A frame's number in the mixture is its number in its data set plus the frames of the data sets before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from z1.data import lerobot_format as layout
from z1.data.lerobot import LeRobotDataset
from z1.data.stats import FeatureStats, compute_stats
from z1.errors import ConfigError, DatasetError


def open_datasets(paths: Sequence[str]) -> list[LeRobotDataset]:
    """Opens data sets that are to be trained on together.

    Raises:
        ConfigError: One is named twice.
        DatasetError: One is missing or damaged, or two do not fit together.
    """
    resolved = [Path(path).resolve() for path in paths]
    for path, place in zip(paths, resolved, strict=True):
        if resolved.count(place) > 1:
            raise ConfigError(f"dataset names {path} {resolved.count(place)} times; name each data set once")
    datasets = [LeRobotDataset.open(path) for path in paths]
    check_alike(datasets)
    return datasets


def check_alike(datasets: Sequence[LeRobotDataset]) -> None:
    """Refuses data sets that one policy cannot be trained on together.

    Raises:
        DatasetError: Names the first thing in which two differ, and both.
    """
    first = datasets[0]
    for other in datasets[1:]:
        for what, of in _ALIKE:
            if of(first) != of(other):
                raise DatasetError(
                    f"{first.path} has {what} {of(first)}, {other.path} has {of(other)}; data sets that are trained on "
                    "together must agree, so train on them apart or record one of them again"
                )


def _cameras(dataset: LeRobotDataset) -> str:
    return ", ".join(f"{name} of {'x'.join(map(str, dataset.image_size(name)))}" for name in sorted(dataset.cameras))


_ALIKE: tuple[tuple[str, Callable[[LeRobotDataset], Any]], ...] = (
    ("cameras", _cameras),
    ("state dims", lambda dataset: dataset.state.shape[1]),
    ("action dims", lambda dataset: dataset.action.shape[1]),
    ("frames per second", lambda dataset: dataset.fps),
)


def feature_stats(datasets: Sequence[LeRobotDataset], feature: str) -> FeatureStats:
    """Statistics of a feature, with which the policy of these data sets normalises.

    Of a single data set they are what it says of itself. Of several they are exact, quantiles included: computed from
    the frames of all of them, so that a data set weighs as many frames as it has.

    Args:
        datasets: One or more.
        feature: ``observation.state`` or ``action``.
    """
    if len(datasets) == 1:
        return datasets[0].stats[feature]
    values = {layout.STATE_KEY: [d.state for d in datasets], layout.ACTION_KEY: [d.action for d in datasets]}
    return compute_stats(np.concatenate(values[feature]))


class Mixture:
    """The frames of D data sets, N in all.

    Args:
        datasets: D data sets that ``check_alike`` lets pass.

    Attributes:
        datasets: The data sets.
        first_frame: int64 ``[D + 1]``, number of each one's first frame, and N.
    """

    def __init__(self, datasets: Sequence[LeRobotDataset]) -> None:
        self.datasets = tuple(datasets)
        self.first_frame = np.cumsum([0, *(dataset.num_frames for dataset in datasets)])

    @property
    def state(self) -> np.ndarray:
        """float32 ``[N, S]``."""
        return np.concatenate([dataset.state for dataset in self.datasets])

    @property
    def instructions(self) -> tuple[str, ...]:
        """N language instructions."""
        return tuple(text for d in self.datasets for text in d.instructions(np.arange(d.num_frames)))

    def images(self, cameras: Sequence[str]) -> np.ndarray:
        """uint8 ``[N, V, height, width, 3]``, of some cameras.

        Raises:
            DatasetError: A camera or video is missing or damaged.
        """
        shape = self.datasets[0].images(cameras[0]).shape[1:]
        images = np.empty((int(self.first_frame[-1]), len(cameras), *shape), np.uint8)
        for number, dataset in enumerate(self.datasets):
            rows = slice(self.first_frame[number], self.first_frame[number + 1])
            for view, camera in enumerate(cameras):
                images[rows, view] = dataset.images(camera)
        return images

    def action_chunks(self, indices: np.ndarray, horizon: int) -> tuple[np.ndarray, np.ndarray]:
        """As ``LeRobotDataset.action_chunks``, for frames of the mixture."""
        owner = np.searchsorted(self.first_frame, indices, side="right") - 1
        actions = np.empty((len(indices), horizon, self.datasets[0].action.shape[1]), np.float32)
        padded = np.empty((len(indices), horizon), np.bool_)
        for number, dataset in enumerate(self.datasets):
            rows = owner == number
            actions[rows], padded[rows] = dataset.action_chunks(indices[rows] - self.first_frame[number], horizon)
        return actions, padded
