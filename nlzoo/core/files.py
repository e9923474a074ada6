"""Files and folders that are there whole or not at all, and small JSON files that may come from anybody.

What is written is made beside its place, flushed to disk and renamed.
"""

import contextlib
import ctypes
import glob
import json
import os
import re
import shutil
import sys
import uuid
from pathlib import Path

from safetensors import SafetensorError

from .errors import DiskError, WeightsError
from .text import as_json

MAX_CONFIG = 16 * 2**20  # bytes; 100,000 class names fit
_LEFT = re.compile(r"\.(.+)\.[0-9a-f]{8}\.(part|old)", re.DOTALL)  # as `_beside` names it


def dump(data: object) -> str:
    """Readable JSON, a line's end included; NaN is refused, since it is no JSON."""
    return as_json(data, indent=2) + "\n"


def write_folder(folder: Path, fill) -> Path:
    """Calls `fill(part)` on a new folder beside `folder`, flushes it and puts it in `folder`'s place; returns `folder`.

    `folder` has the old content or the new at any instant on Linux, where the file system can exchange two names. Elsewhere
    there is a moment without it, which `standing` reads over. Raises `DiskError`; what was there is kept then.
    """
    part = _beside(folder, "part")
    try:
        part.mkdir(parents=True)
        fill(part)
        for file in part.iterdir():
            sync(file)
        sync(part)
        aside = _swap(part, folder)
        sync(folder.parent)
    except OSError as error:
        raise DiskError(
            f"{folder} could not be written ({error.strerror or error})",
            "free some room, or work in a folder of your own",
        ) from error
    except SafetensorError as error:  # its way to say disk full
        raise DiskError(f"{folder} could not be written ({error})", "free some room") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    if aside:
        discard(aside)  # only now is the new one sure to outlive a power cut
    return folder


def discard(folder: Path) -> None:
    """Removes a folder, as far as that can be done. It takes another name first: what has its own is whole."""
    part = _beside(folder, "part")
    with contextlib.suppress(OSError):
        os.rename(folder, part)
    shutil.rmtree(part, ignore_errors=True)


def mend(folder: Path) -> None:
    """Removes what killed writers left in `folder`, and gives what stepped aside for nothing its name again.

    Nobody else may be writing there. Raises `DiskError`.
    """
    try:
        for left in list(folder.iterdir()):
            match = _LEFT.fullmatch(left.name)
            if match and match[2] == "old" and not folder.joinpath(match[1]).exists():
                os.rename(left, folder / match[1])
            elif match and left.is_dir():
                discard(left)
            elif match:
                left.unlink()
    except OSError as error:
        raise DiskError(
            f"{folder} could not be tidied ({error.strerror or error})", "work in a folder of your own"
        ) from error


def write_text(file: Path, text: str) -> None:
    """A small file that is there whole or not at all. Raises `DiskError`."""
    write_bytes(file, text.encode("utf-8"))


def write_bytes(file: Path, content: bytes) -> None:
    """The same of bytes."""
    part = _beside(file, "part")
    try:
        part.write_bytes(content)
        sync(part)
        os.replace(part, file)
        sync(file.parent)
    except OSError as error:
        raise DiskError(f"{file} could not be written ({error.strerror or error})", "free some room") from error
    finally:
        part.unlink(missing_ok=True)


def standing(folder: Path) -> Path:
    """`folder`, or the one that stepped aside for it where a replacement was killed between its two renames."""
    if folder.exists():
        return folder
    return max(folder.parent.glob(f".{glob.escape(folder.name)}.*.old"), key=os.path.getmtime, default=folder)


def _beside(folder, ending):
    """A hidden name for what is being made or removed (part), or has stepped aside and is whole (old)."""
    return folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.{ending}")


def _swap(part, folder):
    """Puts `part` in `folder`'s place; gives the place of what was there, or None."""
    if not folder.exists():
        return os.rename(part, folder)
    old = _beside(folder, "old")
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


def _exchange(one, other):
    """Two names change places in one step; False where system or file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)  # not in every libc
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def sync(path: Path) -> None:
    """Returns when a file, or the names in a folder, would outlive a power cut. Raises `OSError`."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_json(file: Path) -> object:
    """A JSON file that may come from anybody. Raises `WeightsError`."""
    try:
        if file.stat().st_size > MAX_CONFIG:
            raise WeightsError(f"{file} is larger than {MAX_CONFIG} bytes")
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(
            f"there is no {file.name} in {file.parent}", "nlzoo list shows the models that are here"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{file} could not be read ({error})", "make or fetch the model again") from None
