"""Decoded frames kept on disk, for a small dataset: the first clip of a video decodes all of it, later ones copy rows.

One file for each video, size, short side and stream: the frames as a `.npy` array (N, H, W, C), and after it, as
another, a CRC-32 for each frame. Reading checks the sums: a file that is short or changed is made again. Frames are
written and read as plain file contents and not through a memory map: on a full disk a map ends the process (SIGBUS)
where a write raises. Uncompressed video is large: `check_room` says so before a run starts.
"""

import contextlib
import hashlib
import os
import shutil
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy

from ..core import files
from ..core.errors import DiskError, UsageError, VideoError
from ..core.text import printable
from ..core.view_spec import STREAMS
from . import streams, video

FORMAT = 1  # of the files; raised when they, or the pixels that `video` gives, change
_HINT = "choose another folder, free some room, or omit --cache"
STALE = 3600  # seconds after which a half-written file belongs to nobody


class _Damaged(Exception):
    """A file of the cache is not as it was written."""


def read_frames(
    path: str | os.PathLike, indices: Sequence[int], short_side: int | None, cache: Path, stream: str = "rgb"
) -> np.ndarray:
    """`streams.read_frames` of these frames, the same bits, kept in the folder `cache`.

    Raises what that does, too. Of a video with a frame that cannot be decoded nothing is kept, and its other frames are
    decoded each time. `DiskError` where `cache` cannot be read or written: never a slow run instead. Any number of
    processes may share `cache`.
    """
    kept = _cached_file(path, short_side, Path(cache), stream)
    try:
        with contextlib.suppress(FileNotFoundError, _Damaged):
            return _rows(kept, indices)
        try:
            _fill(path, short_side, kept, stream)
        except VideoError:
            return streams.read_frames(video.probe(path), indices, short_side, stream)
        return _rows(kept, indices)
    except (OSError, DiskError, _Damaged) as error:
        raise _not_written(cache, error) from error


def check_options(cache: Path, decoder: str) -> None:
    """Raises `UsageError` where `decoder` does not go with a cache, `DiskError` where `cache` cannot be written."""
    if decoder == "decord":
        raise UsageError(
            "--cache keeps frames that PyAV decoded, so --decoder decord cannot be used with it", "omit one of the two"
        )
    files.check_folder(cache, _HINT)


def check_room(
    videos: Iterable[tuple[str | os.PathLike, int, int, int]],
    short_side: int | None,
    cache: Path,
    stream: str = "rgb",
) -> int:
    """Bytes that caching `videos`, as (path, frames, height, width), will still take; makes the folder.

    To be called once before training. Raises `DiskError` where there is less room than that, or no right to write.
    """
    cache = Path(cache)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        files.remove_leftovers(cache, older_than=STALE)
        files.check_writable(cache / "file")
        missing: dict[Path, int] = {}  # bytes by file: a video that is used in parts has one
        for path, frames, height, width in videos:
            file = _cached_file(path, short_side, cache, stream)
            if not file.exists():
                height, width = video.scaled_size(height, width, short_side)
                missing[file] = frames * (height * width * _channels(stream) + 4)
        needed = sum(missing.values())
        free = shutil.disk_usage(cache).free
    except (OSError, DiskError) as error:
        raise _not_written(cache, error) from error
    if needed > free:
        raise DiskError(
            f"the decoded frames take {needed / 1e9:.1f} GB, and {printable(cache)} has room for {free / 1e9:.1f} GB",
            "name a folder on a larger disk, omit --cache, or read prepared videos (nlzoo prepare)",
        )
    return needed


def _channels(stream: str) -> int:
    return len(STREAMS[stream].mean)


def _cached_file(path: str | os.PathLike, short_side: int | None, cache: Path, stream: str) -> Path:
    path = os.path.abspath(os.fspath(path))
    state = video.state(path, trust=True)
    if state is None:
        video.probe(path)  # says what is wrong
        raise VideoError("changed while it was read", "run it again", path)  # it is there again
    kind = [] if stream == "rgb" else [stream]
    key = "\0".join([path, *map(str, state), str(short_side), str(FORMAT), *kind])
    return cache / f"{hashlib.sha256(os.fsencode(key)).hexdigest()}.npy"


def _rows(kept: Path, indices: Sequence[int]) -> np.ndarray:
    """The frames `indices` of a cached file, which their sums prove. Raises `_Damaged`, `IndexError`."""
    with open(kept, "rb") as file:
        shape, start = _header(file, 4)
        frames = shape[0]
        row = int(np.prod(shape[1:]))
        file.seek(start + frames * row)
        sums_shape, sums_start = _header(file, 1)
        if sums_shape != (frames,):
            raise _Damaged("as many sums as frames")
        out = np.empty((len(indices), *shape[1:]), np.uint8)
        for image, index in zip(out, indices, strict=True):
            if not 0 <= index < frames:
                raise IndexError(f"frame {index} of {frames}")
            file.seek(sums_start + 4 * int(index))
            expected = file.read(4)
            file.seek(start + row * int(index))
            if file.readinto(image.data) != row or zlib.crc32(image.data).to_bytes(4, "little") != expected:
                raise _Damaged(f"frame {index}")
    return out


def _header(file: BinaryIO, dimensions: int) -> tuple[tuple[int, ...], int]:
    """`(shape, where its data begins)` of the array whose `.npy` header comes next."""
    try:
        npy.read_magic(file)
        shape, fortran, kind = npy.read_array_header_1_0(file)
    except Exception as error:  # numpy reads it as Python text, and fails in as many ways; all mean that it is none
        raise _Damaged(str(error)) from None
    expected = np.uint8 if dimensions == 4 else np.dtype("<u4")
    if fortran or len(shape) != dimensions or min(shape) < 0 or kind != expected:
        raise _Damaged(f"{kind} {shape}")
    return shape, file.tell()


def _fill(path: str | os.PathLike, short_side: int | None, kept: Path, stream: str) -> None:
    """Decodes the whole video into `kept`, one frame or two at a time in memory."""
    info = video.probe(path)
    height, width = video.scaled_size(info.height, info.width, short_side)
    kept.parent.mkdir(parents=True, exist_ok=True)
    sums = np.zeros(info.frames, "<u4")
    with files.replacing(kept, flush=False) as part, open(part, "wb") as file:
        _write_header(file, "|u1", (info.frames, height, width, _channels(stream)))
        for number, image in streams.images(info, range(info.frames), short_side, stream):
            content = np.ascontiguousarray(image).data
            file.write(content)
            sums[number] = zlib.crc32(content)
        _write_header(file, "<u4", sums.shape)
        file.write(sums.data)  # not numpy's own way to write, which does not notice a disk that is full by then


def _write_header(file: BinaryIO, kind: str, shape: tuple[int, ...]) -> None:
    npy.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})


def _not_written(cache: Path, error: Exception) -> DiskError:
    cause = error.__context__ if isinstance(error, DiskError) else error  # the `OSError` that `files` tells of
    return files.not_written(cache, cause or error, _HINT)
