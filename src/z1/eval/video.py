"""Rollout videos that every browser plays."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Final

import av
import numpy as np

from z1.errors import MissingExtraError
from z1.files import atomic_file

ENCODER: Final = "libx264"


def write_mp4(path: Path, frames: np.ndarray, fps: float, *, crf: int = 23) -> None:
    """Writes an H.264 mp4 (yuv420p, index at the front), replacing an older file in one move.

    An odd height or width is made even by repeating the last row or column, which 4:2:0 colour needs.

    Args:
        path: The file.
        frames: uint8 ``[T, H, W, 3]``, RGB, T at least 1.
        fps: Frames per second of the playback.
        crf: Quality; lower is better and larger.

    Raises:
        ValueError: ``frames`` has another shape or dtype, or ``fps`` is not positive.
        MissingExtraError: This PyAV was built without an H.264 encoder.
        RunFolderError: The file cannot be written.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or frames.shape[0] == 0:
        raise ValueError(f"frames must be uint8 [T, H, W, 3] with T >= 1, got {frames.dtype} {list(frames.shape)}")
    if fps <= 0:
        raise ValueError(f"fps must be positive, got {fps}")
    if ENCODER not in av.codecs_available:
        raise MissingExtraError(
            f"PyAV {av.__version__} has no H.264 encoder; install the PyPI wheel: pip install --force-reinstall av"
        )
    height, width = frames.shape[1:3]
    even = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    with atomic_file(path) as temporary:
        _encode(temporary, even, Fraction(fps).limit_denominator(1000), crf)


def _encode(path: Path, frames: np.ndarray, fps: Fraction, crf: int) -> None:
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream(
            ENCODER, rate=fps, options={"crf": str(crf), "preset": "veryfast", "threads": "1"}
        )
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for number, pixels in enumerate(np.ascontiguousarray(frames)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number, 1 / fps
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
