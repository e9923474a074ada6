"""Features of videos in a file: what `predict --features` writes, and a probe reads and writes."""

import json
import math
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from . import files, tables
from .errors import UsageError
from .text import as_text, printable

ENDINGS = (".safetensors", ".parquet")
NUMBERS = ("F32", "F16", "F64")  # what is read
MOST_HEADER = 100_000_000  # bytes that readers of .safetensors take


def read(file: Path, paths: Collection[str] | None = None, shape: Sequence[int] | None = None) -> dict[str, np.ndarray]:
    """Absolute path of a video to its float32 features, of a .safetensors file that may come from anybody.

    Features are (C,), or (W, C) of W windows of each video. `paths`: the absolute ones to read, None for all. `shape`:
    of the features that are needed; nothing is read of a file with others. Raises `UsageError` for what cannot be used.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np") as opened:
            rows = opened.get_slice("features")
            rows_of, kind = _rows_of(json.loads(opened.metadata()["paths"]), rows.get_shape()), rows.get_dtype()
            if kind not in NUMBERS:
                raise ValueError(f"its numbers are {kind}, none of {', '.join(NUMBERS)}")
            if shape:
                _refuse_other_shape(file, rows.get_shape()[1:], list(shape))
            needed = rows_of if paths is None else rows_of.keys() & paths
            features = {path: rows[rows_of[path]].astype(np.float32) for path in needed}
        for path, row in features.items():
            if not np.isfinite(row).all():
                raise ValueError(f"those of {path} are not finite")
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(
            f"{printable(file)} has no features of videos ({printable(str(error))})",
            "nlzoo predict MODEL VIDEOS --features FILE.safetensors writes such a file",
        ) from None
    return features


def _rows_of(names: Any, shape: Sequence[int]) -> dict[str, int]:
    """The row of each absolute path. Raises `ValueError` for what are not the names of rows."""
    listed = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if len(shape) not in (2, 3) or not listed or len(names) != shape[0]:
        raise ValueError("it has not one row for each path")
    return {os.path.abspath(name): number for number, name in enumerate(names)}


def _refuse_other_shape(file: Path, there: Sequence[int], needed: Sequence[int]) -> None:
    """Raises `UsageError` where a file has features of other windows, or more or fewer numbers than needed."""
    if there[:-1] != needed[:-1]:
        has, needs = (
            f"{shape[0]} windows of each video" if shape[:-1] else "whole videos" for shape in (there, needed)
        )
        hint = f"--windows {there[0]}, or another FILE" if there[:-1] else "another FILE"
        raise UsageError(f"{printable(file)} has features of {has}, and those of {needs} are needed here", hint)
    if there[-1] != needed[-1]:
        raise UsageError(
            f"{printable(file)} has {there[-1]:,} features where this network has {needed[-1]:,}",
            "give the files in the order of their models, or another FILE",
        )


def write(file: Path, rows: Iterable[dict]) -> None:
    """The features of those `rows` that have some, as `.safetensors` or `.parquet`. Raises as `tables.check`.

    `.safetensors`: `features`, float32 (N, C), of windows (N, W, C), and `paths`, JSON, in the metadata. `rows` are
    gone through twice, and never in memory together. `.parquet` is of (N, C) alone.
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
    count, shape = 0, (0,)
    for row in _good(rows):
        name = json.dumps(json.dumps(as_text(row["path"])))[1:-1]  # a text in a text
        opened.write((", " if count else "").encode() + name.encode())
        count, shape = count + 1, row["features"].shape
    tensor = {"dtype": "F32", "shape": [count, *shape], "data_offsets": [0, 4 * count * math.prod(shape)]}
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
