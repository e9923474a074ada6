"""Small results in the cache folder, kept by what they follow from: whatever is missing or damaged is computed anew."""

import contextlib
import hashlib
import json
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import __version__
from . import files
from .errors import DiskError, WeightsError

_FORMAT = 1  # raised when what is computed changes
_LIBRARIES = ("timm", "torch", "torchvision")


def key(*parts: bytes) -> str:
    """What is kept by `parts`, and by the versions of nlzoo and of the libraries that networks are of."""
    versions = json.dumps([_FORMAT, __version__, *map(metadata.version, _LIBRARIES)]).encode()
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in (versions, *parts))).hexdigest()


def recall(name: str) -> dict[str, Any] | None:
    """The value that is kept by a `key`; None where there is none."""
    try:
        return files.read_json(_file(name))
    except WeightsError:
        return None


def keep(name: str, value: dict[str, Any]) -> None:
    """Keeps an object of JSON by a `key`; where that is not possible it will be computed again."""
    with contextlib.suppress(DiskError, OSError):
        _file(name).parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(_file(name), flush=False) as part:
            part.write_text(files.to_json_text(value), encoding="utf-8")


def _file(name: str) -> Path:
    return files.cache_folder() / "networks" / f"{name}.json"
