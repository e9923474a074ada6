"""Features of videos in a file: what `predict --features` writes, and a probe reads and writes."""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from . import files, tables
from .errors import UsageError
from .text import as_text, printable

ENDINGS = (".safetensors", ".parquet")
MOST_HEADER = 100_000_000  # bytes that readers of .safetensors take


def read(file: Path) -> dict[str, np.ndarray]:
    """Absolute path of a video to its float32 (C,) features, of a .safetensors file that may come from anybody.

    Raises `UsageError` for any other file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np") as opened:
            paths, rows = json.loads(opened.metadata()["paths"]), opened.get_tensor("features")
        if rows.ndim != 2 or len(paths) != len(rows) or not all(isinstance(path, str) for path in paths):
            raise ValueError("it has not one row for each path")
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{printable(file)} has no features of videos ({printable(str(error))})",
            "nlzoo predict MODEL VIDEOS --features FILE.safetensors writes such a file",
        ) from None
    return {os.path.abspath(path): row for path, row in zip(paths, rows)}


def write(file: Path, rows: Iterable[dict]) -> None:
    """The features of those `rows` that have some, as `.safetensors` or `.parquet`. Raises as `tables.check`.

    `.safetensors`: `features`, (N, C) float32, and `paths`, JSON, in the metadata. `rows` are gone through twice, and
    never in memory together.
    """
    tables.check(file, ENDINGS)
    if file.suffix.lower() == ".parquet":
        width = next((len(row["features"]) for row in _good(rows)), 0)
        named = ({**row, "path": as_text(row["path"])} for row in _good(rows))
        return tables.write_parquet(file, {"path": "string", "features": "floats"}, named, cells=width)
    with files.replacing(file) as part, open(part, "wb") as opened:
        _write_safetensors(opened, rows)


def _write_safetensors(opened: BinaryIO, rows: Iterable[dict]) -> None:
    """What `safetensors` would write of all of them: length of the header, header, rows."""
    opened.write(bytes(8) + b'{"__metadata__":{"paths":"[')
    count = width = 0
    for row in _good(rows):
        name = json.dumps(json.dumps(as_text(row["path"])))[1:-1]  # a text in a text
        opened.write((", " if count else "").encode() + name.encode())
        count, width = count + 1, len(row["features"])
    tensor = {"dtype": "F32", "shape": [count, width], "data_offsets": [0, 4 * count * width]}
    opened.write(b']"},"features":' + json.dumps(tensor, separators=(",", ":")).encode() + b"}")
    opened.write(b" " * (-opened.tell() % 8))
    length = opened.tell() - 8
    if length > MOST_HEADER:
        raise UsageError(
            f"a .safetensors file cannot hold the names of {count:,} videos", "choose .parquet, or --shard 1/2 and 2/2"
        )
    opened.seek(0)
    opened.write(length.to_bytes(8, "little"))
    opened.seek(0, os.SEEK_END)
    for row in _good(rows):
        opened.write(row["features"].astype("<f4").tobytes())


def _good(rows: Iterable[dict]) -> Iterator[dict]:
    """Those that have features."""
    return (row for row in rows if "features" in row)
