"""The only door to the video encoders: frames into a file, and a video into one that is cheap to read clips from.

A file is written under a hidden name beside its place, flushed and renamed: a killed run leaves no half file under a real name.
"""

import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from ..core.errors import DiskError, VideoError
from ..core.text import printable
from . import video

GOP = 12  # frames from one key frame to the next: a clip's frame costs the decoding of at most these
PART = ".part"  # ending of files that are being written
# Prepared videos: cheap entropy coding, no loop filter, and B-frames that no frame needs, which a reader skips; 2.5 times as
# fast to read as veryfast alone (docs/prepare.md). With mbtree and B-frames libx264 gives other bytes each time.
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
    with _written(Path(path)) as part:
        _encode(part, frames, frames.shape[1:3], Fraction(fps), {"crf": "18", "x264-params": "open-gop=0"})


def transcode(source: str | os.PathLike, target: str | os.PathLike, size: int = 256) -> dict:
    """Write `source` as an mp4 that clips are cheap to read from: `{frames, fps, width, height}` of it.

    H.264 4:2:0, short side `size` pixels (never enlarged; sides rounded down to even ones), upright, closed GOPs of at most
    12 frames, no sound, no metadata. The rate is constant, the source's mean one, so there are as many frames as before;
    those of a variable rate are repeated or left out, and at any second stands what stood there, half a frame sooner or
    later at most. One frame at a time is in memory. Raises `VideoError` where a frame cannot be read (nothing is written
    then), `DiskError` where the file cannot be written.
    """
    info = video.probe(source)
    height, width = _even_size(info.height, info.width, size)
    rate = _rate(info)
    with _written(Path(target)) as part:
        count = _encode(part, _at_constant_rate(info, rate, (height, width)), (height, width), rate, _CHEAP)
    return {"frames": count, "fps": float(rate), "width": width, "height": height}


def _even_size(height: int, width: int, size: int) -> tuple[int, int]:
    if size < min(height, width):
        height, width = video.scaled_size(height, width, size)
    return max(2, height // 2 * 2), max(2, width // 2 * 2)


def _rate(info: video.Probe) -> Fraction:
    """Frames a second: the header's where the frames agree with it to their end (1/1001 s and the like), else the mean one."""
    rate = (
        info.fps
        if abs(info.frames / info.fps - info.duration) < info.duration / info.frames / 2
        else info.frames / info.duration
    )
    return Fraction(rate).limit_denominator(1001) if rate > 1 else 1 / Fraction(1 / rate).limit_denominator(1001)


def _at_constant_rate(info: video.Probe, rate: Fraction, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """As many frames as the video has; each is the one that the video shows at the middle of its own time."""
    numbers = np.arange(info.frames)
    if info.pts is not None:
        times = (info.pts - info.pts[0]) * info.base
        numbers = np.searchsorted(times, (numbers + 0.5) / float(rate), "right") - 1
    for image, repeats in zip(video.frames(info.path, size), np.bincount(numbers, minlength=info.frames), strict=True):
        for _ in range(repeats):
            yield image


@contextmanager
def _written(path: Path):
    """A hidden file beside `path` to write to, which is flushed and takes its place; gone when that fails.

    An `OSError` meanwhile is a `DiskError`.
    """
    part = path.with_name(f".{uuid.uuid4().hex}{PART}")
    try:
        yield part
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise DiskError(
            f"{printable(path)} could not be written ({error.strerror or error})",
            "free some room, or choose another folder",
        ) from error
    finally:
        with suppress(OSError):
            part.unlink()


def _encode(path: Path, frames: Iterable[np.ndarray], size: tuple[int, int], rate: Fraction, options: dict) -> int:
    """Encodes uint8 RGB `frames` of `size` (height, width); how many there were."""
    encoder, options = _encoder(options)
    count = 0
    with av.open(os.path.abspath(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream(encoder, rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.thread_count = GOP, 1
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
        try:
            av.codec.Codec(name, "w")
        except (av.error.FFmpegError, ValueError):
            continue
        return name, chosen
    raise VideoError("this FFmpeg cannot encode video", "pip install --force-reinstall av")
