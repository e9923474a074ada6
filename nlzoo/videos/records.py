"""What is in each video, found out once and remembered on disk, so that a second look at 100,000 files takes seconds.

"File" is a folder of frames, too, with the sizes and times of all its pictures (`frame_folder.state`). A file is known
by its absolute path, size and time of change, and by what read it, as another version may read it differently. Files
are looked at in worker processes: one that crashes, hangs or eats the memory of its worker is a record with that
problem. All is kept in one SQLite file, with a rollback journal and not WAL, which network disks do not support.
Nothing depends on it: a damaged file is made anew, and where it cannot be used the work continues without it.
"""

import contextlib
import json
import os
import sqlite3
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import numpy as np

from .. import __version__
from ..core import files
from ..core.errors import VideoError
from ..core.progress import Log, Progress, no_log, no_progress
from ..core.text import printable
from . import manifest, pool, video
from .frame_folder import State

HEADER, THREE, ALL = 0, 1, 2  # levels: packets walked; first, middle and last frame decoded; every frame decoded
PROBE_FORMAT = 4  # raised when `video.Probe` changes
SIDE = 64  # shorter side, pixels, that frames are compared at
SLOWEST = 2**21  # bytes a second that a file must be read at, above the first minute, before its worker is stopped
_STORE_AFTER = 2.0  # seconds of work that a kill may cost
_WAIT = 5.0  # seconds for another process to finish writing
_BROKEN = (sqlite3.DatabaseError, UnicodeDecodeError)  # the second from SQLite's own messages about damage
_NOT_DAMAGE = {
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
}
_TABLES = """
    CREATE TABLE IF NOT EXISTS videos
        (path BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, reader BLOB, record BLOB, probe BLOB);
    CREATE TABLE IF NOT EXISTS digests (path BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, digest BLOB);
"""


@dataclass(frozen=True, slots=True)
class Record:
    """What is in a file, or why it cannot be used."""

    path: str  # absolute
    size: int  # bytes, those of a folder's pictures together; 0 where there is no such file
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
    missing: int = 0  # numbers that the pictures of a folder leave out
    sound: bool = False  # whether there is a track of it
    level: int = HEADER  # how closely it was looked at
    still: bool = False  # first, middle and last frame are the same; from level 1
    repeated: float | None = None  # share of frames equal to the one before; from level 2


_Task = tuple[str, State | None, int]  # absolute path, state, level
_Result = TypeVar("_Result")
# Of this process: failures, which may be of the moment, and what could not be written.
_kept: dict[str, tuple[State | None, Record]] = {}
_logged: set[str] = set()
_connections: dict[tuple[int, str], sqlite3.Connection] = {}  # of `probe`; by process, as none may cross a fork


def cache_file() -> Path:
    """The SQLite file."""
    return files.cache_folder() / "videos-1.sqlite"  # the number is the format's


def examine(
    paths: Iterable[str | os.PathLike],
    level: int = HEADER,
    workers: int | None = None,
    progress: Progress = no_progress,
    log: Log = no_log,
) -> list[Record]:
    """A record for each of `paths`, in their order, looked at as closely as `level` says or closer.

    What cannot be used is a record with a `problem`: nothing is raised for it. `progress(done, total)` counts files;
    `log` gets one sentence, once in a process, where the cache on disk cannot be used. `workers`: processes, one per
    core by default; 0 does the work here, unprotected from crashes.
    """
    names = [_absolute(path) for path in paths]
    states = {name: video.state(name) for name in names}
    known = _remembered(states, level, log)
    tasks = [(name, state, level) for name, state in states.items() if name not in known]
    workers = pool.cores() if workers is None else workers
    progress(len(known), len(states))
    new: list[tuple[Record, bytes]] = []  # and its probe, packed
    stored = time.monotonic()
    try:
        for (name, state, _), result in pool.run(_look, tasks, workers if tasks else 0, _deadline):
            if isinstance(result, pool.Failure):  # of the moment, perhaps: the next process tries again
                known[name] = _record(name, state, problem=result.reason, level=ALL)
                _kept[name] = state, known[name]
            else:
                known[name] = result[0]
                if state:
                    new.append(result)
            progress(len(known), len(states))
            if time.monotonic() > stored + _STORE_AFTER:
                _store(new, log)
                new, stored = [], time.monotonic()
    finally:
        _store(new, log)
    return [known[name] for name in names]


def probe(path: str | os.PathLike) -> video.Probe:
    """As `video.probe`, without walking through the file again where it was examined before and has not changed."""
    name = _absolute(path)
    state = video.state(name, trust=True)
    if state is None or state[0] == 0:
        return video.probe(name)  # which refuses it, with the reason
    return video.PROBES.get(name, *state, _probe)


def digests(paths: Iterable[str | os.PathLike], workers: int | None = None, log: Log = no_log) -> dict[str, str]:
    """Absolute path → sha256 of the file in hex; files that cannot be read are left out. Remembered like records."""
    # of those that are regular files or folders of frames
    states = {name: state for name in map(_absolute, paths) if (state := video.state(name))}
    known = {}
    for name, row in _query("SELECT size, mtime_ns, digest FROM digests WHERE path = ?", states, log).items():
        if row[:2] == states[name] and (digest := _loaded(row[2])):
            known[name] = digest
    missing = [name for name in states if name not in known]
    with ThreadPoolExecutor(workers or pool.cores()) as threads:  # hashing releases the interpreter
        new = {name: digest for name, digest in zip(missing, threads.map(_digest, missing)) if digest}
    rows = [(os.fsencode(name), *states[name], _dumped(digest)) for name, digest in new.items()]
    _write("INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?)", rows, log)
    known |= new
    return {name: known[name] for name in states if name in known}


def contents(sizes: Mapping[str, int], workers: int | None = None, log: Log = no_log) -> dict[str, str]:
    """Absolute path → what the file holds, for those of which another may hold the same; `sizes` are the bytes of all.

    It is the sha256 of the file in hex, or of the file that it was made of by `nlzoo prepare`.
    """
    made = manifest.lines_of(sizes)
    same = Counter([*sizes.values(), *(line.size for line in made.values())])
    alike = [path for path, size in sizes.items() if same[size] > 1 or (path in made and same[made[path].size] > 1)]
    sums = digests(alike, workers, log=log)
    sources = {line.output_sha256: line.sha256 for line in made.values()}

    def origin(path: str, digest: str) -> str:
        line, seen = made.get(path), {digest}
        digest = line.sha256 if line and line.output_sha256 == digest else digest  # else another took its place
        while (source := sources.get(digest)) and source not in seen:  # of a copy of a copy
            seen.add(source)
            digest = source
        return digest

    return {path: origin(path, digest) for path, digest in sums.items()}


# --- looking


def _record(name: str, state: State | None, problem: str = "", level: int = HEADER) -> Record:
    size, mtime_ns = state or (0, 0)
    return Record(name, size, mtime_ns, problem, level=level)


def _look(task: _Task) -> tuple[Record, bytes]:
    """The record of one file and, where it can be used, its packed probe. Runs in a worker."""
    name, state, level = task
    try:
        info = video.probe(name)
    except VideoError as error:
        return _record(name, state, error.reason, ALL), b""  # refused, it needs no closer look
    record = replace(
        _record(name, state, level=level),
        container=info.container,
        codec=info.codec,
        width=info.width,
        height=info.height,
        frames=info.frames,
        fps=info.fps,
        seconds=info.duration,
        rotation=info.rotation,
        variable=info.variable,
        missing=info.missing,
        sound=info.sound,
    )
    try:
        if level == THREE:
            three = video.read_frames(name, [0, info.frames // 2, info.frames - 1], SIDE, info=info)
            record = replace(record, still=bool((three == three[0]).all()))
        elif level == ALL:
            record = _looked_through(record, info)
    except VideoError as error:
        record = replace(record, problem=error.reason, level=ALL)
    return record, _packed(info)


def _looked_through(record: Record, info: video.Probe) -> Record:
    """The record with what decoding every frame shows."""
    images = video.images(info, range(info.frames), SIDE)
    _, first = next(images)
    before, repeats, still = first, 0, True
    for _, image in images:
        repeats += np.array_equal(image, before)
        still = still and np.array_equal(image, first)
        before = image
    return replace(record, still=still, repeated=repeats / max(1, record.frames - 1))


def _deadline(task: _Task) -> float:
    _, state, _ = task
    return 60 + (state[0] if state else 0) / SLOWEST


def _digest(name: str) -> str | None:
    try:
        return video.sha256(name)
    except (OSError, VideoError):
        return None


def _absolute(path: str | os.PathLike) -> str:
    return os.path.abspath(os.fspath(path))


# --- remembering


def _reader() -> bytes:
    """What reads the files: another version reads them again."""
    limits = f"at most {video.MAX_SIDE} and {video.MAX_PIXELS} pixels"
    return f"nlzoo {__version__}, probe {PROBE_FORMAT}, {video.backends()}, {limits}".encode()


def _remembered(states: dict[str, State | None], level: int, log: Log) -> dict[str, Record]:
    """The records of files that have not changed since, looked at as closely as `level` says."""
    reader, known = _reader(), {}
    query = "SELECT size, mtime_ns, reader, record FROM videos WHERE path = ?"
    for name, row in _query(query, states, log).items():
        size, mtime_ns, read_by, blob = row
        if (size, mtime_ns) == states[name] and read_by == reader and (values := _loaded(blob)):
            known[name] = Record(name, size, mtime_ns, **values)
    kept = {name: record for name, (state, record) in _kept.items() if name in states and states[name] == state}
    return {name: record for name, record in (known | kept).items() if record.level >= level}


def _store(results: list[tuple[Record, bytes]], log: Log) -> None:
    """Writes `(record, packed probe)`; what cannot be written is kept in this process."""
    reader, rows = _reader(), []
    for record, packed in results:
        values = {k: v for k, v in asdict(record).items() if k not in ("path", "size", "mtime_ns")}
        rows.append((os.fsencode(record.path), record.size, record.mtime_ns, reader, _dumped(values), packed))
    if not _write("INSERT OR REPLACE INTO videos VALUES (?, ?, ?, ?, ?, ?)", rows, log):
        _kept.update((record.path, ((record.size, record.mtime_ns), record)) for record, _ in results)


def _dumped(values: object) -> bytes:
    return zlib.compress(json.dumps(values).encode(), 1)  # with a checksum


def _loaded(blob: bytes) -> Any:
    """What was dumped; None for damage."""
    try:
        return json.loads(zlib.decompress(blob))
    except (zlib.error, ValueError, TypeError):
        return None


_PLAIN = tuple(f.name for f in fields(video.Probe) if f.name not in ("path", "pts", "keys"))


def _packed(info: video.Probe) -> bytes:
    """A probe as bytes: its plain values, then times and key frames as differences, which are much alike."""
    head = {name: getattr(info, name) for name in _PLAIN} | {"timed": info.pts is not None}
    arrays = [a for a in (info.pts, info.keys) if a is not None]
    body = b"".join(np.diff(a, prepend=0).astype("<i8").tobytes() for a in arrays)
    return zlib.compress(json.dumps(head).encode() + b"\n" + body)


def _unpacked(name: str, blob: bytes) -> video.Probe | None:
    """The probe; None for damage."""
    try:
        text, _, body = zlib.decompress(blob).partition(b"\n")
        head, numbers = json.loads(text), np.frombuffer(body, "<i8")
    except (zlib.error, ValueError, TypeError):
        return None
    if not head.pop("timed"):
        return video.Probe(name, **head, pts=None, keys=None)
    pts, keys = np.split(numbers, [head["frames"]])
    return video.Probe(name, **head, pts=pts.cumsum(), keys=keys.cumsum())


def _probe(name: str, size: int, mtime_ns: int) -> video.Probe:
    query = "SELECT size, mtime_ns, reader, probe FROM videos WHERE path = ?"
    try:
        row = _connection().execute(query, (os.fsencode(name),)).fetchone()
    except _BROKEN:
        row = None
    if row and row[:3] == (size, mtime_ns, _reader()) and row[3] and (info := _unpacked(name, row[3])):
        return info
    return video.probe_uncached(name, size, mtime_ns)


def _connection() -> sqlite3.Connection:
    """This process's own, read only."""
    file = cache_file()
    key = os.getpid(), str(file)
    if key not in _connections:
        address = f"file:{quote(os.fsencode(file))}?mode=ro"
        _connections[key] = sqlite3.connect(address, timeout=_WAIT, uri=True, check_same_thread=False)
        _connections[key].text_factory = bytes
    return _connections[key]


# --- the file


def _query(query: str, names: Iterable[str], log: Log) -> dict[str, tuple]:
    """Name → its row, for the names that have one."""
    if not cache_file().exists():
        return {}

    def ask(connection: sqlite3.Connection) -> dict[str, tuple]:
        rows = ((name, connection.execute(query, (os.fsencode(name),)).fetchone()) for name in names)
        return {name: row for name, row in rows if row}

    return _with_file(ask, log) or {}


def _write(statement: str, rows: list[tuple], log: Log) -> bool:
    """One transaction; False where the file cannot be written."""
    return not rows or _with_file(lambda connection: connection.executemany(statement, rows), log) is not None


def _with_file(act: Callable[[sqlite3.Connection], _Result], log: Log) -> _Result | None:
    """What `act(connection)` returns, in one transaction; None where the file cannot be used. Damaged, it is made anew.

    Opened and closed each time: workers are forked in between, and an open connection must not cross that.
    """
    file = cache_file()
    try:
        try:
            return _in_transaction(file, act)
        except _BROKEN as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in _NOT_DAMAGE:
                raise
            _log_once(log, f"{printable(file)} was damaged and is made anew")
            Path(f"{file}-journal").unlink(missing_ok=True)
            file.unlink(missing_ok=True)
            return _in_transaction(file, act)
    except (*_BROKEN, OSError) as error:
        _log_once(log, f"what is known of the videos cannot be kept in {printable(file)}: {error}")
        return None


def _in_transaction(file: Path, act: Callable[[sqlite3.Connection], _Result]) -> _Result:
    file.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(file, timeout=_WAIT)) as connection, connection:
        connection.text_factory = bytes  # damage may turn anything into text that is no UTF-8
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.executescript(_TABLES)
        return act(connection)


def _log_once(log: Log, text: str) -> None:
    if text not in _logged:
        _logged.add(text)
        log(text)
