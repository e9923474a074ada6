"""Folders of frames: numbered pictures that are one video. The only door to the decoder of pictures.

That is Pillow and not PyAV. It says the size of a picture before it decodes it, turns phones' pictures upright, knows
CMYK, palettes and 16 bits, and raises at a picture that is cut off, which FFmpeg's JPEG decoder paints over by
default; it is what torchvision and the field's loaders read pictures with, so that frames have the same bits as there.
It comes with torchvision, which requires it.
"""

import hashlib
import os
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..core import archives, files
from ..core.errors import VideoError
from ..core.text import printable, quoted

ANIMATED = ".webp"  # pictures that may be videos; FFmpeg reads their first picture alone
RATE = 25.0  # frames a second where nobody says: FFmpeg's for numbered pictures
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
_NUMBERED = re.compile(r"(.*?)([0-9]{1,18})([^0-9]*)", re.DOTALL)  # prefix, number, suffix
_FLOW = re.compile(r"(optical[_-]?)?flow([_-]?[xyuv])?|[xyuv]", re.IGNORECASE)  # beside the frames, as TSN writes it
_TURNS = {  # EXIF orientation: what shows it upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = {_TURNS[5], _TURNS[6], _TURNS[7], _TURNS[8]}
_ORIENTATION = 0x0112
_ALL = 2**62  # times of change are added up below this, which SQLite can hold

State = tuple[int, int]  # bytes of the pictures, and their times of change added up with the folder's own


class Series(NamedTuple):
    """The numbered pictures of a folder; plain values, from which every name follows."""

    prefix: str
    width: int  # digits that a number has at least
    suffix: str
    first: int  # number of the first picture
    step: int  # between numbers, at least

    def name(self, place: int) -> str:
        """The file that is `place` steps after the first."""
        return f"{self.prefix}{self.first + place * self.step:0{self.width}d}{self.suffix}"

    @property
    def kind(self) -> str:
        """Of the pictures: jpeg, png, webp, bmp."""
        ending = os.path.splitext(self.name(0))[1].lower()[1:]
        return "jpeg" if ending == "jpg" else ending


def is_picture(name: str) -> bool:
    """Whether a file of this name is a picture of a kind that is read here."""
    return os.path.splitext(name)[1].lower() in files.PICTURE_EXTENSIONS and not name.startswith(".")


def is_flow(folder: str) -> bool:
    """Whether a folder of this name holds optical flow, and no frames."""
    return len(folder) > 1 and _FLOW.fullmatch(folder) is not None


def holds_frames(folder: str, names: Iterable[str]) -> bool:
    """Whether `folder`, with files of these names, is a video: it has numbered pictures, and no video files."""
    shown = [name for name in names if not name.startswith(".")]
    numbered = next((name for name in shown if is_picture(name) and _NUMBERED.fullmatch(name)), "")
    if not numbered or any(os.path.splitext(name)[1].lower() in files.VIDEO_EXTENSIONS for name in shown):
        return False
    return not is_animation(os.path.join(folder, numbered))


def is_animation(file: str) -> bool:
    """Whether a file is a WebP with several pictures, which is a video: by its first bytes."""
    if not file.lower().endswith(ANIMATED) or not archives.is_file(file):  # opening a pipe could wait for ever
        return False
    try:
        with archives.open_file(file) as opened:
            head = opened.read(21)
    except OSError:
        return False
    return head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and len(head) == 21 and bool(head[20] & 2)


def is_frame_folder(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a folder that is a video."""
    folder = os.fspath(path)
    try:
        with archives.scandir(folder) as entries:
            return holds_frames(folder, (entry.name for entry in entries if not entry.is_dir(follow_symlinks=False)))
    except (OSError, ValueError):
        return False


_states: dict[str, tuple[int, State | None]] = {}  # of this process, by path: with the folder's own time of change


def state(path: str, trust: bool = False) -> State | None:
    """What tells two states of a folder of frames apart; None for another folder. Raises `OSError`.

    `trust`: in a folder to which nothing was added since it was last asked for, no picture was changed either; a clip
    of a folder of 100,000 pictures would otherwise cost as many questions to the disk.
    """
    own = archives.stat(path).st_mtime_ns
    known = _states.get(path)
    if trust and known and known[0] == own:
        return known[1]
    size, changed = 0, own
    with archives.scandir(path) as entries:
        inside = [entry for entry in entries if not entry.is_dir(follow_symlinks=False)]
    for entry in inside:
        if is_picture(entry.name):
            with suppress(OSError):  # a link to nothing
                info = entry.stat()
                size, changed = size + info.st_size, changed + info.st_mtime_ns
    state = (size, changed % _ALL) if holds_frames(path, (entry.name for entry in inside)) else None
    _states[path] = own, state
    return state


def series(path: str) -> tuple[Series, np.ndarray]:
    """The pictures of a folder, and the places (N,) of those that are there, int64, from 0 up; `VideoError`.

    Optical flow beside the frames is left out (`flow_x_00001.jpg`).
    """
    prefix, suffix, texts = _alone(path)
    there = np.array(sorted(_numbers(path, prefix, suffix, texts)), np.int64)
    places = there - there[0]
    step = int(np.gcd.reduce(places)) or 1
    return Series(prefix, min(map(len, texts)), suffix, int(there[0]), step), places // step


def _alone(path: str) -> tuple[str, str, list[str]]:
    """Prefix, suffix and numbers, as they are written, of the one series of a folder. Raises `VideoError`."""
    by_name = _by_name(path)
    frames = {key: numbers for key, numbers in by_name.items() if not _FLOW.fullmatch(key[0].strip("_-. "))} or by_name
    if not frames:
        raise VideoError(
            "is a folder without numbered pictures, not a video", "frames are named img_00001.jpg, …", path
        )
    if len(frames) > 1:
        names = [f"{prefix}*{suffix}" for prefix, suffix in sorted(frames)]
        raise VideoError(f"holds {len(names)} series of pictures: {quoted(names, 3)}", "keep one in the folder", path)
    ((prefix, suffix), texts) = frames.popitem()
    return prefix, suffix, texts


def _numbers(path: str, prefix: str, suffix: str, texts: list[str]) -> list[int]:
    """The numbers. Raises `VideoError` where one is there twice, or where they are written in several ways."""
    numbers = {int(text): text for text in texts}
    if len(numbers) < len(texts):
        twice = next(text for text in texts if numbers[int(text)] != text)
        both = quoted([f"{prefix}{twice}{suffix}", f"{prefix}{numbers[int(twice)]}{suffix}"])
        raise VideoError(f"has frame {int(twice)} twice: {both}", "keep one of them", path)
    width = min(map(len, texts))
    odd = min((text for text in texts if len(text) > width and text[0] == "0"), default="")
    if odd:
        both = quoted([f"{prefix}{min(texts, key=len)}{suffix}", f"{prefix}{odd}{suffix}"])
        raise VideoError(f"numbers its pictures in several ways: {both}", "rename them alike", path)
    return list(numbers)


def _by_name(path: str) -> dict[tuple[str, str], list[str]]:
    """(prefix, suffix) → the numbers between them, as they are written, in order: a disk may list them in any."""
    numbers: dict[tuple[str, str], list[str]] = defaultdict(list)
    try:
        with archives.scandir(path) as entries:
            for entry in entries:
                match = _NUMBERED.fullmatch(entry.name)
                if match and is_picture(entry.name) and not entry.is_dir(follow_symlinks=False):
                    numbers[match[1], match[3]].append(match[2])
    except OSError as error:
        raise VideoError(f"cannot be read: {error.strerror}", "check the path and its permissions", path) from None
    return {key: sorted(texts) for key, texts in numbers.items()}


def sha256(path: str) -> str:
    """Of the pictures of a folder, in order, whatever their names. Raises `OSError`, `VideoError`."""
    named, places = series(path)
    digest = hashlib.sha256(f"{len(places)} frames".encode())
    for place in places.tolist():
        digest.update(bytes.fromhex(files.sha256(os.path.join(path, named.name(place)))))
    return digest.hexdigest()


class Damaged(Exception):
    """A picture that cannot be used, and why."""


def size(file: str, check: Callable[[int, int], None]) -> tuple[int, int]:
    """(height, width) of a picture as it is displayed, by its header alone; `Damaged`. `check` as for `read`."""
    with _opened(file, check) as (image, turn):
        width, height = image.size
        return (width, height) if turn in _SIDEWAYS else (height, width)


def read(file: str, check: Callable[[int, int], None]) -> np.ndarray:
    """A picture as RGB uint8 (H, W, 3), upright; `Damaged`. `check(width, height)` is called before it is decoded."""
    with _opened(file, check) as (image, turn):
        return _rgb(image, turn)


def frames(file: str, check: Callable[[int, int], None]) -> Iterator[tuple[float, float, np.ndarray]]:
    """(start, duration, picture as `read` gives it) of each picture of an animation, in milliseconds; `Damaged`."""
    with _opened(file, check) as (image, turn):
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            picture = _rgb(image, turn)
            yield image.info.get("timestamp", 0), image.info.get("duration", 0), picture


def _rgb(image: Image.Image, turn: Image.Transpose | None) -> np.ndarray:
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would cut off and not scale
        eight = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    elif image.mode == "P":  # whatever is transparent in it has a colour, too
        eight = image.convert("RGBA")
    else:
        eight = image
    rgb = eight.convert("RGB")
    return np.asarray(rgb if turn is None else rgb.transpose(turn))


@contextmanager
def _opened(file: str, check: Callable[[int, int], None]) -> Iterator[tuple[Image.Image, Image.Transpose | None]]:
    """A picture that is not decoded yet, and how it is turned to be upright; `Damaged` for all that goes wrong."""
    try:
        if archives.stat(file).st_size == 0:
            raise Damaged("it is empty")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of bombs, which `check` refuses, and of damage beside the pixels
            with archives.open_file(file) as content, Image.open(content, formats=_FORMATS) as image:
                check(*image.size)
                yield image, _turn(image)
    except (Damaged, VideoError, MemoryError):
        raise
    except Image.UnidentifiedImageError:
        raise Damaged("it is no picture of the kinds that are read here") from None
    except Image.DecompressionBombError:  # before `check` can say it
        raise Damaged("it is far too large") from None
    except Exception as error:  # of several unrelated classes; all mean that it cannot be decoded
        reason = getattr(error, "strerror", None) or next(iter(str(error).splitlines()), type(error).__name__)
        raise Damaged(printable(reason)) from None


def _turn(image: Image.Image) -> Image.Transpose | None:
    """By the EXIF data before the pixels: what comes after them is not known before they are decoded."""
    content = image.info.get("exif")
    if not content:
        return None
    exif = Image.Exif()
    try:
        exif.load(content)
        return _TURNS.get(exif.get(_ORIENTATION, 1))
    except Exception:  # damaged, in as many ways as there are; the pixels need not be
        return None
