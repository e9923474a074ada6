"""Videos that are asked for and their rows, on disk: memory does not grow with their number, and none is lost.

`FILE.partial` beside an output: one line of JSON for what is asked, then one for each video, as it is done. After a
kill the same command goes on behind them. It is removed when the output is there, whole. Each rank of several writes a
file of its own (`FILE.partial-3`), and reads all.

Unusual: which videos there are, and where the row of each stands, is in a temporary database of SQLite, which keeps
most of it on disk and ends with its process.
"""

import base64
import hashlib
import json
import os
import re
import sqlite3
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..core import files, model_spec
from ..core.errors import UsageError
from ..core.shard import Shard
from ..core.text import as_json, printable
from ..networks.network import Network
from ..videos import video

SUFFIX = ".partial"
IN_MEMORY = 2**24  # bytes of rows that go to no file; more of them go to a temporary one
_POLL = 0.2  # seconds from one look for what other ranks have done to the next
_APPEARS = 90.0  # seconds that a file of another machine may take to appear; a network file system remembers for 60
_PART = 2**16  # bytes of names that are read at once
_TABLES = """
    PRAGMA journal_mode = OFF;
    CREATE TABLE videos (number INTEGER PRIMARY KEY, path BLOB UNIQUE, file INTEGER, place INTEGER);
    CREATE TABLE given (number INTEGER PRIMARY KEY, video INTEGER);
"""


def identity(net: Network, **options: object) -> str:
    """A digest of a network's weights and of what it is asked: rows of another do not belong into the same file."""
    digest = hashlib.sha256(as_json([model_spec.to_json(net.spec), options]).encode())
    for name, tensor in sorted(net.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class Journal:
    """The videos in the order in which they were asked for; as an iterable, their rows, any number of times.

    A video that is named twice has two rows, and is opened once.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        """Reads the names. Raises what `paths` do, and `DiskError`."""
        self.file: Path | None = None  # of the output
        self._own: IO[bytes] | None = None  # rows of this process
        self._files: list[IO[bytes]] = []  # rows of all
        self._index = sqlite3.connect("", isolation_level=None)
        self._index.executescript(_TABLES)
        for path in paths:
            key = os.fsencode(path)
            self._ask("INSERT OR IGNORE INTO videos (path) VALUES (?)", key)
            self._ask("INSERT INTO given (video) SELECT number FROM videos WHERE path = ?", key)
        self.videos: int = self._count("SELECT count(*) FROM videos")  # each once

    def open(self, file: Path | None, digest: str = "", rank: int = 0) -> int:
        """Rows are kept beside the output `file` from now on; how many are there. None: nothing outlives this process.

        Raises `UsageError` where there are those of another command, and `DiskError` where it cannot be written.
        """
        self.file = file
        if file is None:
            self._own = tempfile.SpooledTemporaryFile(IN_MEMORY)
            self._files = [self._own]
            return 0
        own = _of_rank(file, rank)
        heads = {path: _head(path) for path in (own, *_all_files(file))}
        if any(head not in (None, digest) for head in heads.values()):
            other = next(path for path, head in heads.items() if head not in (None, digest))
            raise UsageError(
                f"{printable(other)} holds the answers of another command, which did not end",
                "give that command again, delete the file, or choose another name for the output",
            )
        if heads[own] is None:
            files.write_text(own, as_json({"asked": digest}) + "\n")
        elif not _ends_with(own, b"\n"):  # what a kill has torn is made again; the next line must not join it
            files.append_text(own, "\n")
        self._own = open(own, "ab", buffering=0)
        self._read([own, *sorted(path for path in heads if path != own and heads[path])], errors=False)
        return self._count("SELECT count(*) FROM videos WHERE place IS NOT NULL")

    def keep(self, shard: Shard, together: int) -> None:
        """Only the videos of this part are asked for, where so many go through the network `together`.

        A part has whole groups, those of the whole: the last digit of a prediction depends on how many go together.
        """
        self._together = together
        self._groups = shard.part(-(-self.videos // together))
        bounds = self._groups.start * together, self._groups.stop * together
        self._ask("DELETE FROM given WHERE video <= ? OR video > ?", *bounds)
        self._ask("DELETE FROM videos WHERE number <= ? OR number > ?", *bounds)

    def missing(self, rank: int = 0, world: int = 1, most: int = 1) -> Iterator[list[str]]:
        """Paths that this rank is to open, about `most` at a time.

        Rank r takes every world-th group. What goes through the network with a missing one goes with it again.
        """
        paths: list[str] = []
        query = "SELECT path, place FROM videos WHERE number > ? AND number <= ? ORDER BY number"
        for group in self._groups[rank::world]:
            first = group * self._together
            rows = self._ask(query, first, first + self._together).fetchall()
            if any(place is None for _, place in rows):
                paths += [os.fsdecode(path) for path, _ in rows]
            if len(paths) >= most:
                yield paths
                paths = []
        if paths:
            yield paths

    def left(self, rank: int = 0, world: int = 1) -> int:
        """How many that will be."""
        group = f"(number - 1) / {self._together}"
        mine = f"({group} - {self._groups.start}) % {world} = {rank}"
        missing = f"SELECT DISTINCT {group} FROM videos WHERE place IS NULL"
        return self._count(f"SELECT count(*) FROM videos WHERE {mine} AND {group} IN ({missing})")

    def add(self, row: dict) -> None:
        """Keeps a row. One with an error is kept too, but the same command tries it again."""
        assert self._own
        features = {"features": base64.b64encode(row["features"].tobytes()).decode()} if "features" in row else {}
        line = as_json({"row": row | features, "state": _state(row["path"])}).encode() + b"\n"
        try:
            self._own.seek(0, os.SEEK_END)  # a temporary file is read between two rows
            if self._own.write(line) < len(line):
                raise OSError("the disk is full")
            place = self._own.tell() - len(line)
        except OSError as error:
            raise files.not_written(_of_rank(self.file, 0) if self.file else tempfile.gettempdir(), error) from error
        self._place(os.fsencode(row["path"]), 0, place)

    def __len__(self) -> int:
        return self._count("SELECT count(*) FROM given")

    def __iter__(self) -> Iterator[dict]:
        """The rows, in the order of the names."""
        query = "SELECT path, file, place FROM given JOIN videos ON video = videos.number ORDER BY given.number"
        for path, file, place in self._index.cursor().execute(query):
            if place is None:
                yield {"path": os.fsdecode(path), "error": "changed while others were read"}
                continue
            self._files[file].seek(place)
            row = json.loads(self._files[file].readline())["row"]
            if "features" in row:
                row["features"] = np.frombuffer(base64.b64decode(row["features"]), np.float32).copy()
            yield row

    # --- several ranks

    def write_names(self, file: Path) -> None:
        """The names as they were given, for other ranks."""
        query = "SELECT path FROM given JOIN videos ON video = videos.number ORDER BY given.number"
        with files.replacing(file) as part, open(part, "wb") as opened:
            opened.writelines(path + b"\0" for (path,) in self._index.cursor().execute(query))

    def see(self, world: int) -> None:
        """Raises `UsageError` where other ranks' files do not appear: they write into another machine's folder."""
        assert self.file
        wait_for([_of_rank(self.file, rank) for rank in range(1, world)])

    def end(self, launch: str) -> None:
        """This rank has done its part of the `launch`, and leaves the rows to rank 0."""
        assert self._own
        self._own.write(as_json({"end": launch}).encode() + b"\n")
        self._ask("DELETE FROM given")

    def join(self, launch: str, world: int) -> None:
        """Waits for the other ranks, however long they take, and takes in their rows.

        One that dies is for the launcher to notice.
        """
        assert self.file
        own, others = _of_rank(self.file, 0), [_of_rank(self.file, rank) for rank in range(1, world)]
        mark = as_json({"end": launch}).encode() + b"\n"
        while not all(_ends_with(path, mark) for path in others):
            time.sleep(_POLL)
        self._read([own, *(path for path in _all_files(self.file) if path != own)])

    # --- its end

    def remove(self) -> None:
        """The output is there."""
        for path in _all_files(self.file) if self.file else ():
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Gives back what is open; the rows stay where they are."""
        for opened in {id(file): file for file in (self._own, *self._files) if file}.values():
            opened.close()
        self._index.close()

    # --- within

    def _ask(self, query: str, *values: object) -> sqlite3.Cursor:
        try:
            return self._index.execute(query, values)
        except sqlite3.OperationalError as error:  # no room for it
            raise files.not_written(tempfile.gettempdir(), error) from error

    def _count(self, query: str) -> int:
        return self._ask(query).fetchone()[0]

    def _place(self, path: bytes, file: int, place: int, instead: bool = True) -> None:
        """Where the row of a video stands; not `instead` of one that is there."""
        only = "" if instead else " AND place IS NULL"
        self._ask(f"UPDATE videos SET file = ?, place = ? WHERE path = ?{only}", file, place, path)

    def _read(self, paths: Sequence[Path], errors: bool = True) -> None:
        """Takes in the rows of these files, of videos that have not changed since; `errors`: those that failed too."""
        for opened in self._files:
            opened.close()
        self._files = [open(path, "rb") for path in paths]
        for number, opened in enumerate(self._files):
            place = 0
            for line in opened:
                entry = _parsed(line) if line.endswith(b"\n") else None
                if entry and "row" in entry and entry.get("state") == _state(entry["row"]["path"]):
                    good = "error" not in entry["row"]
                    if good or errors:
                        self._place(os.fsencode(entry["row"]["path"]), number, place, good)
                place += len(line)


def wait_for(made: Sequence[Path]) -> None:
    """Waits until files that other processes have made are seen here. Raises `UsageError` where they do not appear."""
    until = time.monotonic() + _APPEARS
    while gone := [path for path in made if not path.exists()]:
        if time.monotonic() > until:
            raise UsageError(
                f"{printable(gone[0])}, which another process has made, is not there",
                "several machines need one folder in common for the output, or --shard K/N on each",
            )
        time.sleep(_POLL)


def read_names(file: Path) -> Iterator[str]:
    """What `write_names` wrote; waits for it. Raises `UsageError` where it does not appear."""
    wait_for([file])
    with open(file, "rb") as opened:
        yield from map(os.fsdecode, names_in(opened))


def names_in(text: IO[bytes]) -> Iterator[bytes]:
    """The names in a file, without the empty ones: between NUL bytes where there is one, otherwise on lines."""
    text.seek(0)
    if not any(b"\0" in part for part in iter(partial(text.read, _PART), b"")):
        text.seek(0)
        yield from (name for line in text for name in line.splitlines() if name)
        return
    text.seek(0)
    rest = b""
    while part := text.read(_PART):
        *names, rest = (rest + part).split(b"\0")
        yield from filter(None, names)
    if rest:
        yield rest


def _of_rank(file: Path, rank: int) -> Path:
    return file.with_name(f"{file.name}{SUFFIX}{f'-{rank}' if rank else ''}")


def _all_files(file: Path) -> list[Path]:
    """The journals of the ranks, now and before."""
    name = re.compile(re.escape(file.name + SUFFIX) + r"(-\d+)?")
    return sorted(path for path in file.parent.iterdir() if name.fullmatch(path.name))


def _head(file: Path) -> str | None:
    """What was asked, by the first line that can be read; None where there is nothing to go on from."""
    try:
        with open(file, "rb") as opened:
            for line in opened:
                entry = _parsed(line) if line.endswith(b"\n") else None
                if entry:
                    return entry.get("asked", "")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise files.not_written(file, error) from None
    return None


def _ends_with(file: Path, text: bytes) -> bool:
    with suppress(OSError), open(file, "rb") as opened:
        opened.seek(-len(text), os.SEEK_END)
        return opened.read() == text
    return False


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    if not isinstance(entry, dict):
        return None
    row = entry.get("row")
    return entry if "asked" in entry or isinstance(row, dict) and isinstance(row.get("path"), str) else None


def _state(path: str) -> list[int] | None:
    state = video.state(path)
    return list(state) if state else None
