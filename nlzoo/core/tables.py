"""Rows for other programs: CSV, JSON lines or Parquet, by the file's ending. The one door to pyarrow, which is an extra.

A file is there whole or not at all. Names go in as they are: it is whoever shows them that escapes them.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from . import files
from .errors import UsageError
from .text import as_json, as_text, printable

ENDINGS = (".csv", ".jsonl", ".parquet")


def check(file: Path, endings: Sequence[str] = ENDINGS) -> None:
    """Raises `UsageError` for an ending that is none of ours, or one that needs a package that is not here: before the work, not after it."""
    if file.suffix.lower() not in endings:
        raise UsageError(
            f"{printable(file)} ends in none of {', '.join(endings)}",
            f"for example {file.stem or 'answers'}{endings[0]}",
        )
    if file.suffix.lower() == ".parquet":
        _pyarrow()


def write(file: Path, rows: Sequence[dict], columns: Sequence[str] = ()) -> None:
    """Writes `rows`, whose keys may differ: numbers, text, None; `columns` come first. Raises `UsageError` (`check`), `DiskError`."""
    check(file)
    if file.suffix.lower() == ".jsonl":
        return files.write_text(file, "".join(as_json(row) + "\n" for row in rows))
    rows = [{_text(k): _text(v) for k, v in row.items()} for row in rows]
    columns = list(dict.fromkeys([*columns, *(key for row in rows for key in row)]))
    if file.suffix.lower() == ".parquet":
        return write_parquet(file, {name: [row.get(name) for row in rows] for name in columns})
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    files.write_text(file, text.getvalue())


def write_parquet(file: Path, columns: dict[str, list | np.ndarray]) -> None:
    """Writes columns of equal length; a `(N, C)` array becomes lists. Raises `UsageError`, `DiskError`."""
    arrow, parquet = _pyarrow()
    part = io.BytesIO()
    parquet.write_table(
        arrow.table({name: list(v) if isinstance(v, np.ndarray) else v for name, v in columns.items()}), part
    )
    files.write_bytes(file, part.getvalue())


def _text(value):
    return as_text(value) if isinstance(value, str) else value


def _pyarrow():
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UsageError(
            ".parquet needs pyarrow, which is not installed", "pip install 'nlzoo[parquet]', or take .csv"
        ) from None
    return pyarrow, pyarrow.parquet
