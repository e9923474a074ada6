"""Rows of an output file, kept on disk as they are made: after a kill the same command goes on behind them.

`FILE.partial` beside the output: one line of JSON for what is asked, then one for each video. It is removed when the
output is there, whole.
"""

import base64
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..core import files, model_spec
from ..core.errors import UsageError
from ..core.text import as_json, printable
from ..networks.network import Network

SUFFIX = ".partial"


def identity(net: Network, **options: object) -> str:
    """A digest of a network's weights and of what it is asked: rows of another do not belong into the same file."""
    digest = hashlib.sha256(as_json([model_spec.to_json(net.spec), options]).encode())
    for name, tensor in sorted(net.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class Journal:
    """The rows of an output `file` that are made already.

    Raises `UsageError` where there are those of another command, and `DiskError` where it cannot be written.
    """

    def __init__(self, file: Path, asked: str) -> None:
        self.file = file.with_name(file.name + SUFFIX)
        self.rows: dict[str, dict] = {}  # by path, of videos that have not changed since
        if not self._read(asked):
            files.write_text(self.file, as_json({"asked": asked}) + "\n")

    def _read(self, asked: str) -> bool:
        """Takes in what is there; False where there is nothing to go on from."""
        try:
            lines = self.file.read_bytes().decode("utf-8", "replace").split("\n")
        except FileNotFoundError:
            return False
        except OSError as error:
            raise files.not_written(self.file, error) from None
        whole = [entry for entry in map(_parsed, lines[:-1]) if entry]  # the last line may be torn by a kill
        if not whole:
            return False
        if whole[0].get("asked") != asked:
            raise UsageError(
                f"{printable(self.file)} holds the answers of another command, which did not end",
                "give that command again, delete the file, or choose another name for the output",
            )
        for entry in whole[1:]:
            if entry.get("state") == _state(entry["row"]["path"]):
                self.rows[entry["row"]["path"]] = _unpacked(entry["row"])
        if lines[-1]:  # what was torn is made again; the next line must not join it
            files.append_text(self.file, "\n")
        return True

    def missing(self, paths: Sequence[Path], together: int) -> list[Path]:
        """Those to be opened, where so many at a time go through the network.

        What went with a missing one goes with it again: the last digit of a prediction depends on how many do.
        """
        groups = [paths[first : first + together] for first in range(0, len(paths), together)]
        return [path for group in groups if any(str(p) not in self.rows for p in group) for path in group]

    def add(self, row: dict) -> None:
        """Keeps a row; not one with an error, which the same command tries again."""
        if "error" not in row:
            entry = {"row": _packed(row), "state": _state(row["path"])}
            files.append_text(self.file, as_json(entry) + "\n")

    def in_order(self, paths: Iterable[str], made: Iterable[dict]) -> list[dict]:
        """The rows of `paths`, those of now and those of before."""
        known = {**self.rows, **{row["path"]: row for row in made}}
        return [known[path] for path in paths]

    def remove(self) -> None:
        """The output is there."""
        self.file.unlink(missing_ok=True)


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    if not isinstance(entry, dict):
        return None
    row = entry.get("row")
    return entry if "asked" in entry or isinstance(row, dict) and isinstance(row.get("path"), str) else None


def _state(path: str) -> list[int] | None:
    try:
        info = os.stat(path)
    except OSError:
        return None
    return [info.st_size, info.st_mtime_ns]


def _packed(row: dict) -> dict:
    if "features" not in row:
        return row
    return row | {"features": base64.b64encode(row["features"].tobytes()).decode()}


def _unpacked(row: dict) -> dict:
    if "features" not in row:
        return row
    return row | {"features": np.frombuffer(base64.b64decode(row["features"]), np.float32)}
