"""The only door to the video encoders: frames into a file, and a video into one that is cheap to read clips from.

A killed run leaves no half file under a real name (`files.replacing`).
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.video.stream import VideoStream

from ..core import files
from ..core.errors import VideoError
from . import video

GOP = 12  # frames from one key frame to the next: a clip's frame costs the decoding of at most these
# Prepared videos: cheap entropy coding, no loop filter, and B-frames that no frame needs, which a reader skips.
# 2.5 times as fast to read as veryfast alone (docs/prepare.md). With mbtree and B-frames libx264 gives other bytes each
# time.
_CHEAP = {
    "crf": "20",
    "tune": "fastdecode",
    "bf": "3",
    "b_strategy": "0",
    "x264-params": "open-gop=0:b-pyramid=none:mbtree=0",
}


def write_video(path: str | os.PathLike, frames: np.ndarray, fps: int = 24) -> None:
    """Write uint8 RGB `frames` (T, H, W, 3), H and W even, as H.264 4:2:0 in mp4: near lossless, closed GOPs of 12.

    Raises `DiskError` where the file cannot be written.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not len(frames):
        raise ValueError(f"frames must be uint8 (T, H, W, 3) with T > 0, not {frames.dtype} {frames.shape}")
    if frames.shape[1] % 2 or frames.shape[2] % 2:
        raise ValueError(f"H.264 4:2:0 needs an even height and width, not {frames.shape[1]}x{frames.shape[2]}")
    size = frames.shape[1], frames.shape[2]
    with files.replacing(Path(path)) as part:
        _encode(part, frames, size, Fraction(fps), {"crf": "18", "x264-params": "open-gop=0"})


def transcode(
    source: str | os.PathLike, target: str | os.PathLike, size: int = 256, fps: float = 0.0
) -> dict[str, float]:
    """Write `source` as an mp4 that clips are cheap to read from: `{frames, fps, width, height}` of it.

    H.264 4:2:0, short side `size` pixels (never enlarged; sides rounded down to even ones), upright, closed GOPs of at
    most 12 frames, no sound, no metadata. The rate is constant, the source's mean one, so there are as many frames as
    before; those of a variable rate are repeated or left out, and each second shows what it showed before, at most half
    a frame sooner or later. One frame at a time is in memory. `fps`: of a folder of frames, where it is known. Raises
    `VideoError` where a frame cannot be read (nothing is written then), `DiskError` where the file cannot be written.
    """
    info = video.at_rate(video.probe(source), fps)
    height, width = even = _even_size(info.height, info.width, size)
    rate = _rate(info)
    with files.replacing(Path(target)) as part:
        try:
            count = _encode(part, _at_constant_rate(info, rate, even), even, rate, _CHEAP)
        except av.error.FFmpegError as error:
            if isinstance(error, OSError):  # of the disk
                raise
            reason = f"cannot be encoded at {float(rate):g} frames a second: {error.strerror}"
            raise VideoError(reason, "leave it out, or encode it again", source) from None
    return {"frames": count, "fps": float(rate), "width": width, "height": height}


def _even_size(height: int, width: int, size: int) -> tuple[int, int]:
    if size < min(height, width):
        height, width = video.scaled_size(height, width, size)
    return max(2, height // 2 * 2), max(2, width // 2 * 2)


def _rate(info: video.Probe) -> Fraction:
    """Frames a second: the header's (with a denominator of 1001, say) where the frames keep to it, else their mean."""
    rate = info.frames / info.duration
    if abs(info.frames / info.fps - info.duration) < info.duration / info.frames / 2:
        rate = info.fps
    if rate > 1:
        return Fraction(rate).limit_denominator(1001)
    return 1 / Fraction(1 / rate).limit_denominator(1001)


def _at_constant_rate(info: video.Probe, rate: Fraction, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """As many frames as the video has; each is the one that the video shows at the middle of its own time."""
    numbers = np.arange(info.frames)
    if info.pts is not None:
        times = (info.pts - info.pts[0]) * info.base
        numbers = np.searchsorted(times, (numbers + 0.5) / float(rate), "right") - 1
    repeats = np.bincount(numbers, minlength=info.frames)
    for number, image in video.images(info, range(info.frames), size):
        for _ in range(repeats[number]):
            yield image


def _encode(
    path: Path, frames: Iterable[np.ndarray], size: tuple[int, int], rate: Fraction, options: dict[str, str]
) -> int:
    """Encodes uint8 RGB `frames` of `size` (height, width); how many there were."""
    encoder, options = _encoder(options)
    height, width = size
    count = 0
    with av.open(os.path.abspath(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = cast(VideoStream, container.add_stream(encoder, rate=rate, options=options))
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.gop_size = GOP
        stream.codec_context.thread_count = 1
        for array in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")
            frame.pts, frame.time_base = count, 1 / rate
            container.mux(stream.encode(frame))
            count += 1
        container.mux(stream.encode())
    return count


def _encoder(options: dict[str, str]) -> tuple[str, dict[str, str]]:
    """An H.264 (or, failing that, MPEG-4) encoder of this FFmpeg, with its options; `options` are libx264's."""
    for name, chosen in (
        ("libx264", {"preset": "veryfast"} | options),
        ("libopenh264", {"b": "8M"}),
        ("mpeg4", {"b": "8M"}),
    ):
        with suppress(av.error.FFmpegError, ValueError):
            av.codec.Codec(name, "w")
            return name, chosen
    raise VideoError("this FFmpeg cannot encode video", "pip install --force-reinstall av")
