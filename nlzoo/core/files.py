"""Files and folders that are there whole or not at all, sha256, the cache, small JSON files that may come from anybody.

Everything is written beside its place under a hidden name, flushed to disk and renamed. One error says what could not
be written (`not_written`), and one function removes what killed writers left (`remove_leftovers`).
"""

import contextlib
import ctypes
import errno
import glob
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from . import archives
from .errors import DiskError, WeightsError
from .text import as_json, printable

MAX_CONFIG = 16 * 2**20  # bytes; 100,000 class names fit
MAX_VALUES = 400_000  # in a JSON file, and so memory: 16 MiB of `[],` would become 350
VIDEO_EXTENSIONS = frozenset(  # by which a file is a video
    ".264 .3g2 .3gp .asf .avi .flv .gif .h264 .h265 .hevc .m2ts .m2v .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .vob "
    ".webm .wmv".split()
)
PICTURE_EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})  # of the frames of a folder
_LEFTOVER = re.compile(r"\.(.+)\.[0-9a-f]{8}\.(part|old)", re.DOTALL)  # as `_hidden` names it
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def not_written(path: str | os.PathLike, error: BaseException, hint: str = "") -> DiskError:
    """The error for a file or folder that cannot be written; the hint depends on the reason where none is given."""
    reason = getattr(error, "strerror", None) or str(error)
    if not hint and getattr(error, "errno", None) == errno.ENOENT:
        hint = "make its folder first, or choose another one"
    elif not hint and isinstance(error, OSError) and error.errno not in _FULL:
        hint = "check the folder's permissions, or choose another one"
    return DiskError(
        f"{printable(path)} could not be written ({reason})", hint or "free some room, or choose another folder"
    )


def check_writable(file: Path) -> None:
    """Raises `DiskError` where `file` could not be written, before the work whose result it is for."""
    try:
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with tempfile.TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise not_written(file, error) from error


def check_folder(folder: Path, hint: str = "") -> None:
    """Raises `DiskError` where files could not be written into `folder`, which may be made for them later."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    try:
        check_writable(existing / ".nlzoo")
    except DiskError as error:
        raise not_written(folder, error.__cause__ or error, hint) from None


@contextmanager
def replacing(file: Path, flush: bool = True) -> Iterator[Path]:
    """Gives a hidden path beside `file` to write to. At the end it is flushed and takes `file`'s place.

    Without `flush` a power cut may leave a damaged `file`: for what its reader checks and can make again. When the
    block raises, `file` is left as it was and the hidden one is removed. An `OSError` becomes a `DiskError`.
    """
    file = Path(file)
    part = _hidden(file, "part")
    try:
        yield part
        if flush:
            sync(part)
        os.replace(part, file)
        if flush:
            sync(file.parent)
    except OSError as error:
        raise not_written(file, error) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def write_bytes(file: Path, content: bytes) -> None:
    """Writes a small file that is there whole or not at all. Raises `DiskError`."""
    with replacing(file) as part:
        part.write_bytes(content)


def write_text(file: Path, text: str) -> None:
    """Writes text as UTF-8, as `write_bytes` does."""
    write_bytes(file, text.encode("utf-8"))


def write_json(file: Path, data: object) -> None:
    """Writes readable JSON, as `write_bytes` does. Raises `ValueError` for NaN, which is not JSON."""
    write_text(file, to_json_text(data))


def to_json_text(data: object) -> str:
    """Readable JSON with a newline at the end. Raises `ValueError` for NaN, which is not JSON."""
    return as_json(data, indent=2) + "\n"


def append_text(file: Path, text: str) -> None:
    """Adds `text` to the end of `file` in one write, so that several processes may do it. Raises `DiskError`."""
    try:
        with open(file, "ab", buffering=0) as opened:
            content = text.encode("utf-8")
            if opened.write(content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise not_written(file, error) from error


def write_folder(folder: Path, fill: Callable[[Path], object]) -> Path:
    """Calls `fill(part)` on a new folder beside `folder`, flushes it and puts it in `folder`'s place; returns `folder`.

    On Linux `folder` has the old content or the new at any instant, where the file system can exchange two names.
    Elsewhere there is a moment without it, which `current` bridges. Raises `DiskError`; the old content is kept then.
    """
    part = _hidden(folder, "part")
    try:
        part.mkdir(parents=True)
        fill(part)
        for file in part.iterdir():
            sync(file)
        sync(part)
        replaced = _swap(part, folder)
        sync(folder.parent)
    except (OSError, SafetensorError) as error:  # safetensors has its own error for a full disk
        raise not_written(folder, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    if replaced:
        discard(replaced)  # only now is the new one sure to outlive a power cut
    return folder


def discard(folder: Path) -> None:
    """Removes a folder as far as possible. It is renamed first: a folder under its own name is always whole."""
    part = _hidden(folder, "part")
    with contextlib.suppress(OSError):
        os.rename(folder, part)
    shutil.rmtree(part, ignore_errors=True)


def remove_leftovers(folder: Path, older_than: float = 0.0) -> None:
    """Removes what killed writers left in `folder`, and renames a replaced folder back where its successor is missing.

    Nobody else may be writing there, or `older_than` seconds must be longer than anybody writes. Raises `DiskError`.
    """
    try:
        for leftover in list(folder.iterdir()):
            match = _LEFTOVER.fullmatch(leftover.name)
            if match:
                with contextlib.suppress(FileNotFoundError):  # another process was faster
                    _remove_leftover(leftover, match, older_than)
    except OSError as error:
        raise not_written(folder, error, "work in a folder of your own") from error


def _remove_leftover(leftover: Path, match: re.Match[str], older_than: float) -> None:
    successor = leftover.with_name(match[1])
    if older_than and time.time() - leftover.stat().st_mtime <= older_than:
        return
    if match[2] == "old" and not successor.exists():
        os.rename(leftover, successor)
    elif leftover.is_dir():
        discard(leftover)
    else:
        leftover.unlink()


def current(folder: Path) -> Path:
    """`folder`, or its old content where a replacement was killed between its two renames."""
    if folder.exists():
        return folder
    old: dict[Path, float] = {}
    for left in folder.parent.glob(f".{glob.escape(folder.name)}.*.old"):
        with contextlib.suppress(FileNotFoundError):  # the replacement has ended meanwhile
            old[left] = left.stat().st_mtime
    return max(old, key=lambda left: old[left], default=folder)


def sync(path: Path) -> None:
    """Returns when a file, or the names in a folder, would outlive a power cut. Raises `OSError`."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(file: str | os.PathLike) -> str:
    """The sha256 of a file's content, in hex. Raises `OSError`."""
    with archives.open_file(file) as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def cache_folder() -> Path:
    """Where what can be made or fetched again is kept: `$NLZOO_CACHE`, `$XDG_CACHE_HOME/nlzoo` or `~/.cache/nlzoo`."""
    folder = os.environ.get("NLZOO_CACHE")
    if not folder:
        folder = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "nlzoo")
    return Path(os.path.abspath(folder))


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file that may come from anybody: UTF-8, each key once. Raises `WeightsError`."""
    return parse_object(read_text(file), file)


def read_text(file: Path) -> str:
    """A UTF-8 file of at most `MAX_CONFIG` bytes that may come from anybody, line ends kept. Raises `WeightsError`."""
    try:
        if file.stat().st_size > MAX_CONFIG:
            raise WeightsError(f"{printable(file)} is larger than {MAX_CONFIG} bytes")
        return file.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise WeightsError(
            f"there is no {file.name} in {printable(file.parent)}", "nlzoo list shows the models that are here"
        ) from None
    except (OSError, ValueError) as error:
        raise WeightsError(f"{printable(file)} could not be read ({error})", "make or fetch the model again") from None


def parse_object(text: str, file: Path) -> dict[str, Any]:
    """The object that `file`, which holds `text`, is. Raises `WeightsError`."""
    data = parse_json(text, file)
    if not isinstance(data, dict):
        raise WeightsError(f"{printable(file)} is not a JSON object", "make or fetch the model again")
    return data


def parse_json(text: str, file: Path) -> object:
    """What `file`, which holds `text`, says. Raises `WeightsError`."""
    if sum(map(text.count, ",:[{")) > MAX_VALUES:
        raise WeightsError(f"{printable(file)} holds more than {MAX_VALUES:,} values")
    try:
        return json.loads(text, object_pairs_hook=without_repeats)
    except (ValueError, RecursionError) as error:
        raise WeightsError(
            f"{printable(file)} could not be read as JSON ({error})", "make or fetch the model again"
        ) from None


def without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object of JSON; readers differ in which of two equal keys counts. Raises `ValueError` for such."""
    data = dict(pairs)
    if len(data) < len(pairs):
        raise ValueError("an object has the same key twice")
    return data


def _hidden(path: Path, ending: str) -> Path:
    """A hidden name beside `path`: `part` of what is being written or removed, `old` of a folder that was replaced."""
    name = path.name if ending == "old" else path.name[:40]  # or a long name would become too long
    return path.with_name(f".{name}.{uuid.uuid4().hex[:8]}.{ending}")


def _swap(part: Path, folder: Path) -> Path | None:
    """Puts `part` in `folder`'s place; returns where the old content is now, if there was any."""
    if not folder.exists():
        try:
            os.rename(part, folder)
            return None
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another process was faster: its folder is replaced
                raise
    old = _hidden(folder, "old")
    if _exchange(part, folder):
        os.rename(part, old)
        return old
    os.rename(folder, old)
    try:
        os.rename(part, folder)
    except OSError:
        os.rename(old, folder)
        raise
    return old


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two names in one step; False where the system or the file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)  # not in every libc
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0
