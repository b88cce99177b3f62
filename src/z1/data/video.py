"""Videos in and out with PyAV: encode an episode, join episodes without re-encoding, decode frames.

Every video file of a dataset has a constant frame rate; frame number i of a file is shown at i / fps seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import av.container
import numpy as np
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from z1.errors import DatasetError

TICKS_PER_FRAME = 512
"""Resolution of the time stamps in the files written here; whole numbers per frame keep them exact."""

KEYFRAME_INTERVAL = 10
"""Frames between two key frames: what a random access has to decode at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoCodec:
    """How frames are encoded.

    Attributes:
        encoder: FFmpeg's name of the encoder.
        name: Name of the format that LeRobot's ``info.json`` records.
        pix_fmt: Pixel format handed to the encoder.
        crf: Constant rate factor; 0 is lossless with ``libx264rgb``.
        preset: Speed preset.
        lossless: Whether decoded frames equal the originals.
    """

    encoder: str
    name: str
    pix_fmt: str
    crf: int
    preset: str
    lossless: bool

    @property
    def stored_pix_fmt(self) -> str:
        """Pixel format that a reader of the file sees."""
        return "gbrp" if self.encoder == "libx264rgb" else self.pix_fmt

    def options(self) -> dict[str, str]:
        """Encoder options. One thread and no B-frames: streams of equal settings can be joined packet by packet."""
        common = {"g": str(KEYFRAME_INTERVAL), "crf": str(self.crf), "preset": self.preset}
        if self.encoder == "libsvtav1":
            return {**common, "svtav1-params": "lp=1:pred-struct=1"}
        return {**common, "bf": "0", "threads": "1"}


LOSSLESS_CODECS = (
    VideoCodec(encoder="libx264rgb", name="h264", pix_fmt="rgb24", crf=0, preset="veryfast", lossless=True),
)
LOSSY_CODECS = (
    VideoCodec(encoder="libx264", name="h264", pix_fmt="yuv420p", crf=12, preset="veryfast", lossless=False),
    VideoCodec(encoder="libsvtav1", name="av1", pix_fmt="yuv420p", crf=18, preset="12", lossless=False),
)


def choose_codec(lossless: bool) -> VideoCodec:
    """The first codec of the wanted kind that this PyAV was built with.

    Raises:
        DatasetError: There is none.
    """
    wanted = LOSSLESS_CODECS if lossless else LOSSY_CODECS
    for codec in wanted:
        if codec.encoder in av.codecs_available:
            return codec
    names = " or ".join(codec.encoder for codec in wanted)
    advice = (
        "record with lossless=False, or install a PyAV wheel from PyPI"
        if lossless
        else "install a PyAV wheel from PyPI"
    )
    raise DatasetError(f"PyAV {av.__version__} has no encoder {names}; {advice}")


def encode_video(path: Path, frames: np.ndarray, fps: int, codec: VideoCodec) -> None:
    """Writes an mp4 file.

    Args:
        path: The file to write.
        frames: uint8 ``[T, H, W, 3]``, RGB; H and W even unless the codec is lossless.
        fps: Frames per second.
        codec: From ``choose_codec``.

    Raises:
        DatasetError: The encoder refuses the frames (odd size).
    """
    assert frames.dtype == np.uint8, frames.dtype
    assert frames.ndim == 4, frames.shape
    height, width = frames.shape[1:3]
    if not codec.lossless and (height % 2 or width % 2):
        raise DatasetError(
            f"{codec.encoder} needs an even image size, got {height} x {width}; choose an even size or record lossless"
        )
    with _open_output(path, fps) as container:
        stream = cast(VideoStream, container.add_stream(codec.encoder, rate=fps, options=codec.options()))
        stream.height, stream.width, stream.pix_fmt = height, width, codec.pix_fmt
        for number, pixels in enumerate(np.ascontiguousarray(frames)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def join_videos(parts: Sequence[Path], path: Path, fps: int) -> None:
    """Puts videos of the same codec settings one behind the other, without re-encoding.

    Args:
        parts: Files that ``encode_video`` wrote with the same codec, size and fps.
        path: The file to write.
        fps: Frames per second.
    """
    assert parts
    with _open_output(path, fps) as output:
        stream = None
        frames = 0
        for part in parts:
            with av.open(str(part)) as source:
                template = source.streams.video[0]
                if stream is None:
                    stream = output.add_stream_from_template(template, opaque=True)
                for packet in source.demux(template):
                    if packet.pts is None or packet.dts is None:
                        continue
                    shift = round(Fraction(frames, fps) / packet.time_base)
                    packet.pts += shift
                    packet.dts += shift
                    packet.stream = stream
                    output.mux(packet)
                frames += template.frames


def stream_parameters(path: Path) -> bytes:
    """The stream's codec parameters; only files with equal ones can be joined."""
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        return f"{context.name} {context.width}x{context.height} ".encode() + bytes(context.extradata or b"")


def decode_video(path: Path, fps: float, first: int = 0) -> Iterator[tuple[int, np.ndarray]]:
    """Decodes a file from its beginning, or from a frame in it.

    Args:
        path: The file.
        fps: The dataset's frames per second.
        first: Number of the first frame wanted; those before it are skipped from key frame to key frame.

    Yields:
        Frame number (time stamp times fps, rounded) and uint8 ``[H, W, 3]``.

    Raises:
        DatasetError: The file is missing, damaged, or has another frame rate.
    """
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            if first > 0:
                assert stream.time_base is not None
                container.seek(round(first / fps / stream.time_base), stream=stream, backward=True)
            reformatter = VideoReformatter()
            for frame in container.decode(stream):
                if (number := _number(path, frame, fps)) >= first:
                    yield number, _pixels(frame, reformatter)
    except (av.FFmpegError, IndexError) as problem:
        raise _damaged(path, problem) from problem


def decode_frame(path: Path, number: int, fps: float) -> np.ndarray:
    """Decodes one frame of a file, from the key frame before it.

    Returns:
        uint8 ``[H, W, 3]``.

    Raises:
        DatasetError: The file is missing or damaged or has no such frame.
    """
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert stream.time_base is not None
            container.seek(round(number / fps / stream.time_base), stream=stream, backward=True)
            for frame in container.decode(stream):
                found = _number(path, frame, fps)
                if found == number:
                    return _pixels(frame, VideoReformatter())
                if found > number:
                    break
    except (av.FFmpegError, IndexError) as problem:
        raise _damaged(path, problem) from problem
    raise DatasetError(
        f"{path}: expected a frame at {number / fps:.3f} s, the video has none; copy the file again, it may be cut off"
    )


def video_info(codec: VideoCodec, height: int, width: int, fps: int) -> dict[str, Any]:
    """The ``info`` block of a video feature in ``meta/info.json``."""
    return {
        "video.height": height,
        "video.width": width,
        "video.codec": codec.name,
        "video.pix_fmt": codec.stored_pix_fmt,
        "video.fps": fps,
        "video.channels": 3,
        "has_audio": False,
        "video.g": KEYFRAME_INTERVAL,
        "video.crf": codec.crf,
        "video.preset": codec.preset,
        "video.fast_decode": 0,
        "video.video_backend": "pyav",
        "video.extra_options": {},
        "is_depth_map": False,
    }


def _open_output(path: Path, fps: int) -> av.container.OutputContainer:
    return av.open(str(path), "w", format="mp4", options={"video_track_timescale": str(fps * TICKS_PER_FRAME)})


def _pixels(frame: av.VideoFrame, reformatter: VideoReformatter) -> np.ndarray:
    """uint8 ``[H, W, 3]``, RGB. One reformatter for a file makes the conversion several times faster."""
    return reformatter.reformat(frame, format="rgb24").to_ndarray()


def _number(path: Path, frame: av.VideoFrame, fps: float) -> int:
    if frame.time is None:
        raise DatasetError(f"{path}: a frame has no time stamp; encode the video again")
    number = round(frame.time * fps)
    if abs(frame.time * fps - number) > 0.2:
        raise DatasetError(
            f"{path}: expected a frame every {1 / fps:.4f} s (fps {fps:g} in meta/info.json), got one at "
            f"{frame.time:.4f} s; encode the video at the dataset's fps"
        )
    return number


def _damaged(path: Path, problem: Exception) -> DatasetError:
    if not path.is_file():
        return DatasetError(f"{path} is missing; copy the dataset's whole videos folder")
    reason = problem.strerror if isinstance(problem, av.FFmpegError) else "it has no video stream"
    return DatasetError(
        f"{path}: expected an mp4 video, it cannot be decoded ({reason}); copy the file again, it may be cut off"
    )
