"""Decoded frames kept on disk, for a set that is small: the first clip of a video decodes all of it, later ones copy rows.

One file for each video, size and short side: the frames as a `.npy` array (N, H, W, 3), and after it, as another, a
CRC-32 for each frame, so that a file that is short or changed is found out by reading what is asked for, and made again.
Frames are written and read as plain file contents and not through a memory map: on a full disk a map ends the process
(SIGBUS) where a write raises. Uncompressed video is large: `check_room` says so before a run starts.
"""

import contextlib
import hashlib
import os
import shutil
import time
import uuid
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from ..core.errors import DiskError, VideoError
from ..core.text import printable
from . import video

FORMAT = 1  # of the files; raised when they, or the pixels that `video` gives, change
STALE = 3600  # seconds after which a half-written file belongs to nobody
_PART = ".part"


class _Damaged(Exception):
    """A file of the cache is not as it was written."""


def read_frames(path: str | os.PathLike, indices: Sequence[int], short_side: int | None, cache: Path) -> np.ndarray:
    """`video.read_frames(path, indices, short_side)`, the same bits, kept in the folder `cache`.

    Raises what that does, too. Of a video with a frame that cannot be decoded nothing is kept, and its other frames are
    decoded each time. `DiskError` where `cache` cannot be read or written: never a slow run instead. Any number of
    processes may share `cache`.
    """
    kept = _place(path, short_side, Path(cache))
    try:
        with contextlib.suppress(FileNotFoundError, _Damaged):
            return _rows(kept, indices)
        try:
            _fill(path, short_side, kept)
        except VideoError:
            return video.read_frames(path, indices, short_side)
        return _rows(kept, indices)
    except (OSError, _Damaged) as error:
        raise _cannot(cache, error) from error


def check_room(videos: Iterable[tuple[str | os.PathLike, int, int, int]], short_side: int | None, cache: Path) -> int:
    """Bytes that caching `videos`, as (path, frames, height, width), will still take; makes the folder.

    To be called once before training. Raises `DiskError` where there is less room than that, or no right to write.
    """
    cache = Path(cache)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _sweep(cache)
        probe = cache / f".{uuid.uuid4().hex}{_PART}"
        probe.touch()
        probe.unlink()
        missing = {}  # by place: of a video that is used in parts there is one file
        for path, frames, height, width in videos:
            if not (kept := _place(path, short_side, cache)).exists():
                height, width = video.scaled_size(height, width, short_side)
                missing[kept] = frames * (height * width * 3 + 4)
        needed = sum(missing.values())
        free = shutil.disk_usage(cache).free
    except OSError as error:
        raise _cannot(cache, error) from error
    if needed > free:
        raise DiskError(
            f"the decoded frames take {needed / 1e9:.1f} GB, and {printable(cache)} has room for {free / 1e9:.1f} GB",
            "name a folder on a larger disk, leave --cache out, or read prepared videos (nlzoo prepare)",
        )
    return needed


def _place(path, short_side, cache):
    path = os.path.abspath(os.fspath(path))
    try:
        info = os.stat(path)
    except (OSError, ValueError):
        video.probe(path)  # says what is wrong
        raise
    key = "\0".join([path, str(info.st_size), str(info.st_mtime_ns), str(short_side), str(FORMAT)])
    return cache / f"{hashlib.sha256(os.fsencode(key)).hexdigest()}.npy"


def _rows(kept, indices):
    """The frames `indices` of a file of the cache, as far as their sums prove them. Raises `_Damaged`, `IndexError`."""
    with open(kept, "rb") as file:
        shape, start = _header(file, 4)
        row = int(np.prod(shape[1:]))
        file.seek(start + shape[0] * row)
        sums_shape, sums_start = _header(file, 1)
        if sums_shape != shape[:1]:
            raise _Damaged("as many sums as frames")
        out = np.empty((len(indices), *shape[1:]), np.uint8)
        for image, index in zip(out, indices, strict=True):
            if not 0 <= index < shape[0]:
                raise IndexError(f"frame {index} of {shape[0]}")
            file.seek(sums_start + 4 * int(index))
            wanted = file.read(4)
            file.seek(start + row * int(index))
            if file.readinto(image.data) != row or zlib.crc32(image).to_bytes(4, "little") != wanted:
                raise _Damaged(f"frame {index}")
    return out


def _header(file, dimensions):
    """`(shape, where its data begins)` of the array whose `.npy` header comes next."""
    try:
        npy.read_magic(file)
        shape, fortran, kind = npy.read_array_header_1_0(file)
    except Exception as error:  # numpy reads it as Python text, and fails in as many ways; all mean that it is none
        raise _Damaged(str(error)) from None
    if (
        fortran
        or len(shape) != dimensions
        or min(shape) < 0
        or kind != (np.uint8 if dimensions == 4 else np.dtype("<u4"))
    ):
        raise _Damaged(f"{kind} {shape}")
    return shape, file.tell()


def _fill(path, short_side, kept):
    """Decodes the whole video into `kept`, one frame at a time in memory."""
    info = video.probe(path)
    height, width = video.scaled_size(info.height, info.width, short_side)
    kept.parent.mkdir(parents=True, exist_ok=True)
    part = kept.with_name(f".{uuid.uuid4().hex}{_PART}")
    sums = np.zeros(info.frames, "<u4")
    try:
        with open(part, "wb") as file:
            _write_header(file, "|u1", (info.frames, height, width, 3))
            for number, image in enumerate(video.frames(path, (height, width))):
                image = np.ascontiguousarray(image)
                file.write(image)
                sums[number] = zlib.crc32(image)
            _write_header(file, "<u4", sums.shape)
            file.write(sums)  # not numpy's own way to write, which says nothing of a disk that is full by then
        os.replace(part, kept)
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def _write_header(file, kind, shape):
    npy.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})


def _sweep(cache):
    """Removes what runs that were killed have left half written."""
    for part in cache.glob(f".*{_PART}"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - part.stat().st_mtime > STALE:
                part.unlink()


def _cannot(cache, error):
    reason = getattr(error, "strerror", None) or str(error)
    return DiskError(
        f"{printable(cache)} cannot keep decoded frames ({reason})",
        "name another folder, free some room, or leave --cache out",
    )
