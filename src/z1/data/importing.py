"""Demonstrations of others as a LeRobotDataset v3.0 that ``z1 sft`` reads.

Episode by episode: numbers are put into z1's order, images are resized, and both go to ``LeRobotWriter``, which
continues an interrupted import and computes exact statistics. In memory are the images of one episode; its numbers and
those of all episodes before the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

import z1
from z1.config import require
from z1.data.lerobot_files import recorded_quality
from z1.data.lerobot_format import DatasetLayout
from z1.data.lerobot_writer import LeRobotWriter, refuse_existing
from z1.data.sources.open import open_source
from z1.data.sources.source import Source
from z1.data.verify import Verification, verify
from z1.errors import DatasetError, UnknownNameError
from z1.policy.config import ResizeMode

MANIFEST_SCHEMA = "z1.import/1"
RESIZE_MODE: ResizeMode = "pil_antialias"
"""As openpi's policies resize what they see."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportConfig:
    """``z1 import SRC [SRC ...]``: RoboCasa's HDF5 files or LeRobot datasets (version 2 or 3) as one new dataset."""

    source: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SRC [SRC ...]")]
    """HDF5 files and LeRobot dataset folders; what each is, is read from itself. They have to fit together."""
    out: str
    """The dataset folder to create."""
    filter: str = ""
    """Filter of the HDF5 files (mask/NAME), for example 50_demos. Empty: all demonstrations."""
    episodes: int = 0
    """Take only the first episodes of each source. 0: all."""
    cameras: tuple[str, ...] = ()
    """Cameras to take, in order. Empty: RoboCasa's three, or all of a LeRobot dataset."""
    image_size: int = 0
    """Height and width of the images in pixels; others are resized as a policy does it. 0: as they are."""
    layout: Literal["auto", "robocasa", "as_is"] = "auto"
    """Whether a LeRobot dataset is one of RoboCasa, whose numbers are put into the simulator's order, or taken as it
    is. auto: RoboCasa if it has 12 numbers per action and cameras of RoboCasa."""
    order: Literal["known", "modality"] = "known"
    """Where the numbers of a LeRobot dataset of RoboCasa are: as in the published ones, which meta/modality.json has to
    confirm if it is there, or wherever meta/modality.json says."""
    lossless: bool = True
    """Whether the videos hold exactly the (resized) images. Lossy ones are about a fifth of the size."""
    verify: int = 0
    """Episodes of each source, of RoboCasa, that are checked before anything is stored: by their own numbers, and in
    the simulator where the source holds its states (HDF5). What contradicts itself is refused. 0: none."""
    resume: bool = True
    """Whether an interrupted import to the same folder is finished; otherwise it starts again."""
    overwrite: bool = False
    """Whether an existing dataset is replaced, once the new one is complete."""

    def __post_init__(self) -> None:
        require(len(self.source) > 0, "source", self.source, "at least one HDF5 file or dataset folder")
        require(
            len({Path(path).resolve() for path in self.source}) == len(self.source), "source", self.source, "different"
        )
        require(bool(self.out), "out", self.out, "a folder to create")
        require(self.episodes >= 0, "episodes", self.episodes, "0 (all) or a number of episodes")
        require(self.verify >= 0, "verify", self.verify, "0 (none) or a number of episodes of each source")
        require(len(set(self.cameras)) == len(self.cameras), "cameras", self.cameras, "different cameras")
        require(
            self.image_size == 0 or 8 <= self.image_size <= 1024, "image_size", self.image_size, "0 or 8 to 1024 pixels"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportProgress:
    """How far an import is.

    Attributes:
        episodes: Episodes stored, those of an interrupted import included.
        total: Episodes to store.
        frames: Frames stored since the start of this call.
        verified: Episodes checked so far.
    """

    episodes: int
    total: int
    frames: int
    verified: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportSummary:
    """A finished import.

    Attributes:
        path: The dataset folder.
        episodes: Episodes in it.
        frames: Frames stored by this call.
        resumed: Episodes taken from an interrupted import.
        layout: What all episodes have in common.
        assumed: Sources whose order of numbers nothing confirms: RoboCasa sets without ``meta/modality.json``.
        verified: What ``verify`` found, one entry per source; empty when it was not asked for.
        seconds: Duration of this call.
    """

    path: Path
    episodes: int
    frames: int
    resumed: int
    layout: DatasetLayout
    assumed: tuple[Path, ...]
    verified: tuple[Verification, ...]
    seconds: float


def import_dataset(config: ImportConfig, on_progress: Callable[[ImportProgress], None] | None = None) -> ImportSummary:
    """Makes a dataset.

    Args:
        config: From what, and how.
        on_progress: Called before the first episode and whenever one is stored.

    Returns:
        What was made.

    Raises:
        DatasetError: A source is damaged, has an unknown layout or does not fit the others, or the dataset exists.
        ConfigError: A setting has no effect on a source.
        SimulatorError: A source is to be verified in a simulator that does not start.
        UnknownNameError: A source has no such camera or filter.
    """
    started = time.perf_counter()
    refuse_existing(Path(config.out), config.overwrite)
    with ExitStack() as stack:
        sources = [stack.enter_context(closing(source)) for source in _open_all(config)]
        layout = _common_layout(config, sources)
        plan = [
            (f"{number:03d}-{index:06d}", source, episode)
            for number, source in enumerate(sources)
            for index, episode in enumerate(_chosen(source, config.episodes))
        ]
        verified = _verified(config, sources, len(plan), on_progress)
        writer = stack.enter_context(
            LeRobotWriter(
                config.out,
                layout,
                lossless=config.lossless,
                identity=_identity(config, sources),
                resume=config.resume,
                replace=config.overwrite,
            )
        )
        done = writer.keys()
        resumed, frames = len(done), 0
        for count, (key, source, episode) in enumerate(plan):
            if on_progress is not None:
                on_progress(ImportProgress(episodes=count, total=len(plan), frames=frames))
            if key not in done:
                frames += _store(writer, source, episode, key, config.image_size)
        if on_progress is not None:
            on_progress(ImportProgress(episodes=len(plan), total=len(plan), frames=frames))
        path = writer.finish(_manifest(config, sources, layout, verified))
        assumed = tuple(s.path for s in sources if s.facts().get("order_assumed"))
    return ImportSummary(
        path=path,
        episodes=len(plan),
        frames=frames,
        resumed=resumed,
        layout=layout,
        assumed=assumed,
        verified=verified,
        seconds=time.perf_counter() - started,
    )


def resized(images: np.ndarray, size: int) -> np.ndarray:
    """Images in a square of another size, as a policy resizes what it sees.

    Args:
        images: uint8 ``[B, H, W, 3]``.
        size: Height and width of the result; 0 or the present ones: nothing changes.

    Returns:
        uint8 ``[B, size, size, 3]``; images that are not square have black borders.
    """
    if size == 0 or images.shape[1:3] == (size, size):
        return images
    import torch

    from z1.policy.images import letterbox

    channels_first = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return np.ascontiguousarray(letterbox(channels_first, size, RESIZE_MODE).permute(0, 2, 3, 1).numpy())


def _open_all(config: ImportConfig) -> Iterator[Source]:
    """The sources, one by one, so that those opened before are closed if one cannot be."""
    for path in config.source:
        yield open_source(Path(path), demo_filter=config.filter, robot_layout=config.layout, order=config.order)


def _chosen(source: Source, count: int) -> tuple[str, ...]:
    if count > len(source.episodes):
        raise DatasetError(f"{source.path} has {len(source.episodes)} episodes, {count} were asked for")
    return source.episodes[: count or None]


def _common_layout(config: ImportConfig, sources: Sequence[Source]) -> DatasetLayout:
    """What the sources have in common.

    Raises:
        DatasetError: They do not fit together.
        UnknownNameError: A camera is missing.
    """
    first = sources[0]
    cameras = config.cameras or first.default_cameras
    sizes: dict[tuple[int, int], str] = {}
    for source in sources:
        for what, have, want in (
            ("frames per second", source.fps, first.fps),
            ("state", source.state_names, first.state_names),
            ("action", source.action_names, first.action_names),
        ):
            if have != want:
                raise DatasetError(
                    f"{source.path} has {what} {have}, {first.path} has {want}; import them into different datasets"
                )
        for camera in cameras:
            if camera not in source.cameras:
                raise UnknownNameError("camera", camera, source.cameras, f"(choose --cameras; {source.path})")
            sizes.setdefault(source.image_size(camera), f"{camera} of {source.path}")
    if len(sizes) > 1 and not config.image_size:
        listed = "; ".join(f"{height} x {width}: {what}" for (height, width), what in sizes.items())
        raise DatasetError(f"the images have different sizes ({listed}); choose one with --image-size")
    height, width = (config.image_size, config.image_size) if config.image_size else next(iter(sizes), (0, 0))
    return DatasetLayout(
        fps=first.fps,
        state_names=first.state_names,
        action_names=first.action_names,
        cameras=cameras,
        height=height,
        width=width,
        robot_type=first.robot,
    )


def _store(writer: LeRobotWriter, source: Source, episode: str, key: str, size: int) -> int:
    """Stores one episode; returns its number of frames."""
    vectors = source.vectors(episode)
    images = {}
    for camera in writer.layout.cameras:
        parts = [resized(part, size) for part in source.frames(episode, camera)]
        images[camera] = parts[0] if len(parts) == 1 else np.concatenate(parts)
        expected = (len(vectors.actions), writer.layout.height, writer.layout.width, 3)
        if images[camera].shape != expected:
            raise DatasetError(
                f"{source.path}: {episode}: expected {expected[0]} images of {expected[1]} x {expected[2]} pixels of "
                f"camera {camera}, got {len(images[camera])} of {images[camera].shape[1]} x {images[camera].shape[2]}; "
                "copy the file again, or choose one size with --image-size"
            )
    if not (np.isfinite(vectors.states).all() and np.isfinite(vectors.actions).all()):
        raise DatasetError(f"{source.path}: {episode}: expected finite numbers in state and action; leave it out")
    writer.add_episode(vectors.states, vectors.actions, images, vectors.instruction, key=key)
    return len(vectors.actions)


def _identity(config: ImportConfig, sources: Sequence[Source]) -> dict[str, Any]:
    """What must not have changed for unfinished work to be used."""
    return {
        "sources": [str(source.path.resolve()) for source in sources],
        "chosen": [len(_chosen(source, config.episodes)) for source in sources],
        "facts": [source.facts() for source in sources],
    }


def _verified(
    config: ImportConfig,
    sources: Sequence[Source],
    total: int,
    on_progress: Callable[[ImportProgress], None] | None,
) -> tuple[Verification, ...]:
    """Checks the sources, if that is wanted."""
    if not config.verify:
        return ()

    def tell(episodes: int) -> None:
        if on_progress is not None:
            on_progress(ImportProgress(episodes=0, total=total, frames=0, verified=episodes))

    return verify([(source, _chosen(source, config.episodes)) for source in sources], config.verify, tell)


def _manifest(
    config: ImportConfig, sources: Sequence[Source], layout: DatasetLayout, verified: Sequence[Verification]
) -> dict[str, Any]:
    """Where the dataset comes from, for ``meta/z1_manifest.json``."""
    qualities = {recorded_quality(source.path) for source in sources}
    return {
        "schema": MANIFEST_SCHEMA,
        "z1": z1.__version__,
        "sources": [
            {**source.facts(), "episodes": len(_chosen(source, config.episodes)), "of": len(source.episodes)}
            for source in sources
        ],
        "verified": [found.facts() for found in verified],
        "cameras": list(layout.cameras),
        "quality": qualities.pop() if len(qualities) == 1 else "",
        "image_size": [layout.height, layout.width],
        "resize": RESIZE_MODE if config.image_size else None,
        "state_names": list(layout.state_names),
        "action_names": list(layout.action_names),
    }
