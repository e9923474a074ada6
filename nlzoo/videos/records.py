"""What is in each video, found out once and remembered on disk, so that a second look at 100,000 files takes seconds.

A file is known by its absolute path, size and time of change; by what read it too, as another version may read it
otherwise. Files are looked at in worker processes: one that crashes, hangs or eats the memory of its worker is a record
with that problem. The memory is one SQLite file with a rollback journal and not WAL, which network disks do not hold, and
is nothing to depend on: damaged, it is made anew; where it cannot be read or written, the work goes on without it.
"""

import contextlib
import hashlib
import json
import os
import sqlite3
import stat
import time
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

import numpy as np

from .. import __version__
from ..core.errors import VideoError
from . import pool, video

HEADER, THREE, ALL = 0, 1, 2  # levels: packets walked; first, middle and last frame decoded; every frame decoded
SIDE = 64  # shorter side, pixels, that frames are compared at
SLOWEST = 2**21  # bytes a second that a file must be read at, above the first minute, before its worker is stopped
_STORE_AFTER = 2.0  # seconds of work that a kill may cost
_WAIT = 5.0  # seconds for another process to finish writing
_BROKEN = (sqlite3.DatabaseError, UnicodeDecodeError)  # the second from SQLite's own messages about damage
_OUTSIDE = {
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_AUTH,
}  # not damage
_TABLES = """
    CREATE TABLE IF NOT EXISTS videos (path BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, reader BLOB, record BLOB, probe BLOB);
    CREATE TABLE IF NOT EXISTS digests (path BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, digest BLOB);
"""


@dataclass(frozen=True, slots=True)
class Record:
    """What is in a file, or why it cannot be used."""

    path: str  # absolute
    size: int  # bytes; 0 where there is no such file
    mtime_ns: int
    problem: str = ""  # why it cannot be used, said of the file ("is empty"); empty when it can
    container: str = ""
    codec: str = ""
    width: int = 0  # pixels as displayed
    height: int = 0
    frames: int = 0
    fps: float = 0.0  # mean
    seconds: float = 0.0
    rotation: int = 0  # degrees clockwise
    variable: bool = False  # frame rate
    level: int = HEADER  # how closely it was looked at
    still: bool = False  # first, middle and last frame are the same; from level 1
    repeated: float | None = None  # share of frames equal to the one before; from level 2
    sha256: str = ""  # where it was asked for


State = tuple[int, int]  # size and mtime_ns of a regular file
_kept: dict[str, tuple[State, Record]] = {}  # of this process: what may be of the moment, and what could not be written
_told: set[str] = set()
_connections: dict[tuple[int, str], sqlite3.Connection] = {}  # of `probe`; by process, as none may cross a fork


def place() -> Path:
    """The file that remembers: in `$NLZOO_CACHE`, else `nlzoo` in `$XDG_CACHE_HOME`, else `~/.cache/nlzoo`."""
    folder = os.environ.get("NLZOO_CACHE")
    if not folder:
        folder = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "nlzoo")
    return Path(os.path.abspath(folder), "videos-1.sqlite")  # the number is the format's


def examine(
    paths: Iterable[str | os.PathLike],
    level: int = HEADER,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    tell: Callable[[str], None] = lambda text: None,
    digest: bool = False,
) -> list[Record]:
    """A record for each of `paths`, in their order, looked at as closely as `level` says or closer.

    What cannot be used is a record with a `problem`: nothing is raised for it. `progress(done, total)` counts files;
    `tell` gets one sentence, once in a process, where the memory on disk cannot be used. `workers`: processes, one per
    core by default; 0 does the work here, unprotected from crashes. `digest`: with the sha256 too.
    """
    names = [_absolute(path) for path in paths]
    states = {name: _state(name) for name in names}
    found = {name: record for name, record in _remembered(states, tell).items() if record.level >= level}
    tasks = [(name, state, level) for name, state in states.items() if name not in found]
    progress(len(found), len(states))
    workers = pool.cores() if workers is None else workers
    rows, stored = [], time.monotonic()
    try:
        for (name, state, _), result in pool.run(_look, tasks, workers if tasks else 0, _deadline):
            if isinstance(result, pool.Failure):  # of the moment, perhaps: asked again by the next process
                found[name] = Record(name, *(state or (0, 0)), result.reason, level=ALL)
                _kept[name] = state, found[name]
            else:
                found[name] = result[0]
                if state:
                    rows.append(result)
            progress(len(found), len(states))
            if time.monotonic() > stored + _STORE_AFTER:
                _store(rows, tell)
                rows, stored = [], time.monotonic()
    finally:
        _store(rows, tell)
    if digest:
        sums = digests(states, workers, tell=tell)
        found = {name: replace(record, sha256=sums.get(name, "")) for name, record in found.items()}
    return [found[name] for name in names]


def probe(path: str | os.PathLike) -> video.Probe:
    """As `video.probe`, without walking through the file again where it was examined before and has not changed."""
    name = _absolute(path)
    state = _state(name)
    return _probe(name, *state) if state else video.probe(name)


def digests(
    paths: Iterable[str | os.PathLike],
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, str]:
    """Absolute path → sha256 of the file in hex; files that cannot be read are left out. Remembered like records."""
    states = {name: state for name in map(_absolute, paths) if (state := _state(name))}
    rows = _ask("SELECT size, mtime_ns, digest FROM digests WHERE path = ?", states, tell)
    found = {name: known for name, row in rows.items() if row[:2] == states[name] and (known := _loaded(row[2]))}
    new, left = [], [name for name in states if name not in found]
    with ThreadPoolExecutor(workers or pool.cores()) as threads:  # hashing lets go of the interpreter
        for done, (name, content) in enumerate(zip(left, threads.map(_digest, left)), len(found) + 1):
            if content:
                found[name] = content
                new.append((os.fsencode(name), *states[name], _dumped(content)))
            progress(done, len(states))
    _write("INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?)", new, tell)
    return {name: found[name] for name in states if name in found}


# --- looking


def _look(task) -> tuple[Record, bytes]:
    """The record of one file and, where it can be used, its packed probe. Runs in a worker."""
    name, state, level = task
    record = Record(name, *(state or (0, 0)), level=ALL)  # refused, it needs no closer look
    try:
        info = video.probe(name)
    except VideoError as error:
        return replace(record, problem=error.reason), b""
    record = replace(
        record,
        container=info.container,
        codec=info.codec,
        width=info.width,
        height=info.height,
        frames=info.frames,
        fps=info.fps,
        seconds=info.duration,
        rotation=info.rotation,
        variable=info.variable,
        level=level,
    )
    try:
        if level == THREE:
            three = video.read_frames(name, [0, info.frames // 2, info.frames - 1], SIDE)
            record = replace(record, still=bool((three == three[0]).all()))
        elif level == ALL:
            record = _looked_through(record)
    except VideoError as error:
        record = replace(record, problem=error.reason, level=ALL)
    return record, _packed(info)


def _looked_through(record):
    """The record with what decoding every frame shows."""
    first = before = None
    count = repeats = others = 0
    for image in video.frames(record.path, video.scaled_size(record.height, record.width, SIDE)):
        if count:
            repeats += np.array_equal(image, before)
            others += not np.array_equal(image, first)
        else:
            first = image
        before, count = image, count + 1
    record = replace(record, still=not others, repeated=repeats / max(1, count - 1))
    return (
        record
        if count == record.frames
        else replace(record, problem=f"{count} frames come out of it, not {record.frames}")
    )


def _deadline(task):
    _, state, _ = task
    return 60 + (state[0] if state else 0) / SLOWEST


def _digest(name):
    try:
        with open(name, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _absolute(path):
    return os.path.abspath(os.fspath(path))


def _state(name) -> State | None:
    try:
        info = os.stat(name)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return None
    return (info.st_size, info.st_mtime_ns) if stat.S_ISREG(info.st_mode) else None


# --- remembering


def _reader() -> bytes:
    """What reads the files: another version is asked again."""
    return f"nlzoo {__version__}, {video.backends()}, at most {video.MAX_SIDE} and {video.MAX_PIXELS} pixels".encode()


def _remembered(states, tell):
    """The records of files that have not changed since."""
    reader, found = _reader(), {}
    query = "SELECT size, mtime_ns, reader, record FROM videos WHERE path = ?"
    for name, row in _ask(query, states, tell).items():
        if row[:2] == states[name] and row[2] == reader and (values := _loaded(row[3])):
            found[name] = Record(name, *states[name], **values)
    for name, state in states.items():
        if name in _kept and _kept[name][0] == state:
            found[name] = _kept[name][1]
    return found


def _store(rows, tell):
    """Writes `(record, packed probe)`; what cannot be written is kept in this process."""
    reader, keys = _reader(), ("path", "size", "mtime_ns", "sha256")
    values = [
        (
            os.fsencode(r.path),
            r.size,
            r.mtime_ns,
            reader,
            _dumped({k: v for k, v in asdict(r).items() if k not in keys}),
            index,
        )
        for r, index in rows
    ]
    if not _write("INSERT OR REPLACE INTO videos VALUES (?, ?, ?, ?, ?, ?)", values, tell):
        _kept.update((r.path, ((r.size, r.mtime_ns), r)) for r, _ in rows)


def _dumped(values) -> bytes:
    return zlib.compress(json.dumps(values).encode(), 1)  # with a checksum


def _loaded(blob):
    """What was dumped; None for damage."""
    try:
        return json.loads(zlib.decompress(blob))
    except (zlib.error, ValueError, TypeError):
        return None


_PLAIN = tuple(f.name for f in fields(video.Probe) if f.name not in ("path", "pts", "keys"))


def _packed(info: video.Probe) -> bytes:
    """A probe as bytes: its plain values, then times and key frames as differences, which are much alike."""
    head = {name: getattr(info, name) for name in _PLAIN} | {"timed": info.pts is not None}
    numbers = [] if info.pts is None else [np.diff(a, prepend=0).astype("<i8").tobytes() for a in (info.pts, info.keys)]
    return zlib.compress(json.dumps(head).encode() + b"\n" + b"".join(numbers))


def _unpacked(name, blob) -> video.Probe | None:
    """The probe; None for damage."""
    try:
        head, _, body = zlib.decompress(blob).partition(b"\n")
        head, numbers = json.loads(head), np.frombuffer(body, "<i8")
    except (zlib.error, ValueError, TypeError):
        return None
    pts, keys = (
        (numbers[: head["frames"]].cumsum(), numbers[head["frames"] :].cumsum()) if head.pop("timed") else (None, None)
    )
    return video.Probe(name, **head, pts=pts, keys=keys)


@lru_cache(maxsize=16384)
def _probe(name, size, mtime_ns):
    query = "SELECT size, mtime_ns, reader, probe FROM videos WHERE path = ?"
    try:
        row = _connection().execute(query, (os.fsencode(name),)).fetchone()
    except _BROKEN:
        row = None
    if row and row[:3] == (size, mtime_ns, _reader()) and row[3] and (info := _unpacked(name, row[3])):
        return info
    return video.probe(name)


def _connection():
    """This process's own, read only."""
    key = os.getpid(), str(place())
    if key not in _connections:
        address = f"file:{quote(os.fsencode(place()))}?mode=ro"
        _connections[key] = sqlite3.connect(address, timeout=_WAIT, uri=True, check_same_thread=False)
        _connections[key].text_factory = bytes
    return _connections[key]


# --- the file


def _ask(query, names, tell) -> dict[str, tuple]:
    """Name → its row, for the names that have one."""
    if not place().exists():
        return {}

    def ask(connection):
        return {name: row for name in names if (row := connection.execute(query, (os.fsencode(name),)).fetchone())}

    return _with_file(ask, tell) or {}


def _write(statement, rows, tell) -> bool:
    """One transaction; False where the file cannot be written."""
    return not rows or _with_file(lambda connection: connection.executemany(statement, rows), tell) is not None


def _with_file(act, tell):
    """What `act(connection)` returns, in one transaction; None where the file cannot be used. Damaged, it is made anew.

    Opened and closed each time: workers are forked in between, and an open connection must not cross that.
    """
    file = place()
    try:
        try:
            return _in_transaction(file, act)
        except _BROKEN as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in _OUTSIDE:
                raise
            _say_once(tell, f"{str(file)!r} was damaged and is made anew")
            Path(f"{file}-journal").unlink(missing_ok=True)
            file.unlink(missing_ok=True)
            return _in_transaction(file, act)
    except (*_BROKEN, OSError) as error:
        _say_once(tell, f"what is known of the videos cannot be kept in {str(file)!r}: {error}")
        return None


def _in_transaction(file, act):
    file.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(file, timeout=_WAIT)) as connection, connection:
        connection.text_factory = bytes  # damage may turn anything into text that is no UTF-8
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.executescript(_TABLES)
        return act(connection)


def _say_once(tell, text):
    if text not in _told:
        _told.add(text)
        tell(text)
