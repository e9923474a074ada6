"""Rows for other programs: CSV, JSON lines or Parquet, by the file's ending. Only here is pyarrow imported, an extra.

A file is there whole or not at all. Names are written as they are; whoever shows them has to escape them.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

from . import files
from .errors import UsageError
from .text import as_json, as_text, printable

ENDINGS = (".csv", ".jsonl", ".parquet")
_OURS = {"model.safetensors", "videos.csv", "skipped.csv", "metrics.jsonl"}  # in folders of models and runs


def check(file: Path, endings: Sequence[str] = ENDINGS, inputs: Sequence[Path] = ()) -> None:
    """Raises before the work what would else be found after it.

    `UsageError` for an ending that is not one of `endings`, for what would overwrite one of `inputs` or a part of a
    model or run, and for `.parquet` without pyarrow; `DiskError` where `file` cannot be written.
    """
    if file.suffix.lower() not in endings:
        known = ", ".join(endings)
        raise UsageError(
            f"{printable(file)} ends in none of {known}", f"for example {file.stem or 'predictions'}{endings[0]}"
        )
    if any(file.resolve() == source.resolve() for source in inputs):
        raise UsageError(f"{printable(file)} would overwrite what is read", "choose another name for the output")
    if file.name in _OURS and (file.parent / "config.json").is_file():
        raise UsageError(
            f"{printable(file)} would overwrite a part of the model or run in {printable(file.parent)}",
            "choose another name for the output",
        )
    if file.suffix.lower() == ".parquet":
        _pyarrow()
    files.check_writable(file)


def write(file: Path, rows: Sequence[dict], columns: Sequence[str] = ()) -> None:
    """Writes `rows`, whose keys may differ: numbers, text, None; `columns` come first. Raises as `check`."""
    if file.suffix.lower() == ".parquet":
        _pyarrow()
    if file.suffix.lower() == ".jsonl":
        return files.write_text(file, "".join(as_json(row) + "\n" for row in rows))
    rows = [{_plain(key): _plain(value) for key, value in row.items()} for row in rows]
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
    content = io.BytesIO()
    parquet.write_table(arrow.table({name: list(column) for name, column in columns.items()}), content)
    files.write_bytes(file, content.getvalue())


def _plain(value: object) -> object:
    return as_text(value) if isinstance(value, str) else value


def _pyarrow() -> tuple[ModuleType, ModuleType]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UsageError(
            ".parquet needs pyarrow, which is not installed", "pip install 'nlzoo[parquet]', or choose .csv"
        ) from None
    return pyarrow, pyarrow.parquet
