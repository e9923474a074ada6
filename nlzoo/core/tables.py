"""Rows for other programs: CSV, JSON lines or Parquet, by the file's ending. Only here is pyarrow imported, an extra.

A file is there whole or not at all. Names are written as they are; whoever shows them has to escape them.
"""

import csv
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

from . import archives, files
from .errors import UsageError
from .text import as_json, as_text, printable

ENDINGS = (".csv", ".jsonl", ".parquet")
GROUP = 2**20  # cells of a row group of Parquet, which is in memory while it is written
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


def write(file: Path, rows: Iterable[dict], columns: Sequence[str] = ()) -> None:
    """Writes `rows`, whose keys may differ: numbers, text, None; `columns` come first. Raises as `check`.

    `rows` are gone through twice, and never in memory together: first for their columns.
    """
    ending = file.suffix.lower()
    if ending == ".parquet":
        _pyarrow()
    if ending == ".jsonl":
        with files.replacing(file) as part, open(part, "wb") as opened:
            opened.writelines(as_json(row).encode() + b"\n" for row in rows)
        return
    kinds: dict[str, set[type]] = {_plain(name): set() for name in columns}
    for row in rows:
        for key, value in row.items():
            kinds.setdefault(_plain(key), set()).add(type(value))
    plain = ({_plain(key): _plain(value) for key, value in row.items()} for row in rows)
    if ending == ".parquet":
        types = {name: _type_name(seen - {type(None)}) for name, seen in kinds.items()}
        return write_parquet(file, types, plain)
    with files.replacing(file) as part, open(part, "w", encoding="utf-8", newline="") as text:
        writer = csv.DictWriter(text, list(kinds))
        writer.writeheader()
        writer.writerows(plain)


def read_lines(file: Path) -> Iterator[dict]:
    """The rows of a .jsonl file with a `path` each, one at a time in memory. Raises `UsageError` for anything else."""
    with open(file, "rb") as opened:
        for number, line in enumerate(opened, 1):
            try:
                row = json.loads(line)
                os.fspath(row["path"])
            except (ValueError, TypeError, KeyError, RecursionError):
                raise UsageError(
                    f"line {number} of {printable(file)} is no row of answers",
                    "nlzoo predict --out FILE.jsonl writes them",
                ) from None
            yield row


def write_parquet(file: Path, types: dict[str, str], rows: Iterable[dict], cells: int = 0) -> None:
    """Writes rows whose columns have these `types`: Arrow's names, or `floats` for float32 `(C,)`.

    A row group at a time, so that `GROUP` numbers are in memory; `cells`: of a row, where not one a column. Raises
    `UsageError`, `DiskError`.
    """
    arrow, parquet = _pyarrow()
    kinds = {name: arrow.list_(arrow.float32()) if kind == "floats" else kind for name, kind in types.items()}
    schema = arrow.schema([(name, arrow.type_for_alias(k) if isinstance(k, str) else k) for name, k in kinds.items()])
    count = max(1, GROUP // max(1, cells or len(types)))
    coming = iter(rows)
    with files.replacing(file) as part, parquet.ParquetWriter(part, schema) as writer:
        while group := list(islice(coming, count)):
            columns = {name: [row.get(name) for row in group] for name in types}
            writer.write_table(arrow.table(columns, schema))


def read_parquet(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file, some thousands in memory at a time. Raises `UsageError` without pyarrow, `ValueError`
    for a file that is none."""
    arrow, parquet = _pyarrow()
    try:
        with archives.open_file(file) as content, parquet.ParquetFile(content) as opened:
            for batch in opened.iter_batches(4096):
                yield from batch.to_pylist()
    except (arrow.ArrowException, OSError) as error:
        raise ValueError(next(iter(str(error).splitlines()), "no reason given")) from None


def _type_name(kinds: set[type]) -> str:
    """Arrow's name for the type of a column; text for one without values, so that parts of a whole fit together."""
    if kinds <= {int, float} and kinds:
        return "double" if float in kinds else "int64"
    return "bool" if kinds == {bool} else "string"


def _plain(value: Any) -> Any:
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
