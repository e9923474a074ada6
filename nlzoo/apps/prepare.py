"""Videos made over into ones that clips are cheap to read from, once, in a folder of their own.

Originals are only read. A killed run loses the files that were in work and nothing else: outputs take their names when they
are whole (`encode`), and each is told of at once by one line in the folder's manifest, which the worker that made it appends.
The same command again does what is missing or no longer fits.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath

from ..core.errors import DiskError, UsageError, VideoError
from ..core.skipped import Skipped
from ..core.text import printable
from ..videos import encode, listing, pool, tree, video

MANIFEST = "prepared.jsonl"
LIST = "videos.csv"  # of the prepared videos, where a list named the sources
FORMAT = 1  # of prepared videos; raised when they would come out otherwise
SIZES = 16, 4096  # of the short side, pixels
SLOWEST = 20_000  # bytes of a source in a second, after the first ten minutes; slower than that it hangs


@dataclass(frozen=True)
class Line:
    """What the manifest says of one prepared video."""

    source: str  # relative to the folder of sources, "/" between parts; absolute where it lies outside
    size: int  # bytes of the source
    mtime_ns: int
    sha256: str
    output: str  # relative to the manifest's folder
    output_sha256: str
    frames: int
    short_side: int  # as asked for
    format: int = FORMAT


@dataclass(frozen=True)
class Prepared:
    """What a run came to."""

    done: int  # files
    reused: int  # that an earlier run had done
    skipped: tuple[Skipped, ...]
    bytes_before: int  # of the done and the reused, once each
    bytes_after: int
    mapping: dict[str, str]  # path as it was given → that of its output, relative to OUT; without the skipped


@dataclass(frozen=True)
class _Task:
    source: str  # absolute
    name: str  # as in the manifest
    output: str
    line: Line | None  # of an earlier run


def prepare(
    paths: Iterable[str],
    root: Path,
    out: Path,
    size: int = 256,
    workers: int = 1,
    scanned: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Prepared:
    """Writes each file of `paths` (relative to `root`, or absolute) to `out`, as `encode.transcode` does with `size`.

    `outputs` says under which name. A file that cannot be read to its end is skipped with the reason. `scanned`: whether
    `root` is itself the set of videos, and not a folder in which a list names some; then `out` may not lie in it.
    `progress(done, total)` is called for each file. One run at a time in `out`: a second would remove what the first is
    writing.

    Raises `UsageError` for a `size` that is odd or out of bounds, and for an `out` inside `root`, with sources in it or
    with files that are not ours; `DiskError` when `out` cannot be written or is full: what is done stays.
    """
    root, out = Path(os.path.abspath(root)), Path(os.path.abspath(out))
    paths = list(dict.fromkeys(paths))
    _refuse(paths, root, out, size, scanned)
    names = outputs(paths, root)
    try:
        lines = _opened(out)
        _make_folders(out, names.values())
    except OSError as error:
        raise _cannot(out, error) from error
    tasks = {names[p]: _Task(_absolute(p, root), _name(p, root), names[p], lines.get(_name(p, root))) for p in paths}
    _remove_renamed(out, tasks)
    counts, skipped, before, after = Counter(), {}, 0, 0
    work = partial(_work, out=out, size=size)
    try:
        with contextlib.closing(pool.run(work, tasks.values(), workers, _deadline)) as results:
            for done, (task, result) in enumerate(results, 1):
                progress(done, len(tasks))
                if isinstance(result, DiskError):
                    raise result
                if isinstance(result, pool.Failure):
                    skipped[task.output] = result.reason
                    (out / task.output).unlink(missing_ok=True)  # of an earlier state of the source
                else:
                    kind, read, written = result
                    counts[kind] += 1
                    before, after = before + read, after + written
    finally:
        _sweep(out)  # after workers that were stopped
    bad = tuple(Skipped(p, "unreadable", skipped[names[p]]) for p in paths if names[p] in skipped)
    return Prepared(
        counts["done"], counts["reused"], bad, before, after, {p: n for p, n in names.items() if n not in skipped}
    )


def prepare_source(
    videos: Path, out: Path, size: int = 256, progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[Prepared, Path]:
    """All videos below a folder, or those of a list (`listing.read`), as `prepare` does; and what to train on: OUT, or a list in it."""
    videos, out = Path(videos), Path(out)
    inside = tree.walk(videos).videos if videos.is_dir() else []
    try:
        found = listing.read(videos)
    except VideoError:
        if not inside:
            raise
        found = None  # videos without classes
    if found is None or found.levels:
        return prepare(inside, videos, out, size, pool.cores(), progress=progress), out
    done = prepare([i.path for i in found.items], found.root, out, size, pool.cores(), scanned=False, progress=progress)
    items = tuple(
        replace(i, path=done.mapping[i.path], frames=0, seconds=0.0) for i in found.items if i.path in done.mapping
    )
    listing.write(replace(found, root=out, items=items), out / LIST)
    return done, out / LIST


def outputs(paths: Iterable[str], root: Path) -> dict[str, str]:
    """Path as given → where its output goes, relative to OUT, "/" between parts.

    The path relative to `root`, ending in .mp4; what lies outside `root` goes to `_outside/` and its absolute path. Where
    two would meet (`a.avi`, `a.mp4`), also on a disk that does not tell `A` from `a`, they keep their old ending:
    `a.avi.mp4`, `a.mp4.mp4`.
    """
    root = Path(os.path.abspath(root))
    inside = {p: _name(p, root) for p in paths}
    outside = "_outside"
    while any(n.split("/")[0] == outside for n in inside.values()):
        outside += "_"
    plain = {
        p: f"{outside}/{Path(n).relative_to(Path(n).anchor).as_posix()}" if os.path.isabs(n) else n
        for p, n in inside.items()
    }
    keep = set()  # names that keep their ending
    while True:
        found = {n: f"{n}.mp4" if n in keep else _as_mp4(n) for n in set(plain.values())}
        often = Counter(map(_folded, found.values()))
        clash = {n for n, output in found.items() if often[_folded(output)] > 1} - keep
        if not clash:
            return {p: found[n] for p, n in plain.items()}
        keep |= clash


def _as_mp4(name):
    path = PurePosixPath(name)
    return str(path.with_suffix(".mp4")) if path.suffix.lower() in video.EXTENSIONS else f"{name}.mp4"


def _folded(name):
    return unicodedata.normalize("NFC", name).casefold()


def _absolute(path, root):
    return os.path.abspath(os.path.join(root, path))


def _name(path, root):
    whole = Path(_absolute(path, root))
    return whole.relative_to(root).as_posix() if whole.is_relative_to(root) else str(whole)


def _refuse(paths, root, out, size, scanned):
    if not SIZES[0] <= size <= SIZES[1] or size % 2:
        raise UsageError(
            f"--size {size} is no short side of a video", f"an even number of pixels from {SIZES[0]} to {SIZES[1]}"
        )
    real = Path(os.path.realpath(out))
    if scanned and real.is_relative_to(os.path.realpath(root)):
        raise UsageError(
            f"{printable(out)} lies in {printable(root)}, the folder of videos",
            f"choose one beside it, such as {printable(root.parent / (root.name + '-prepared'))}",
        )
    if any(Path(os.path.realpath(_absolute(p, root))).is_relative_to(real) for p in paths):
        raise UsageError(f"{printable(out)} holds some of the videos that are to be prepared", "choose a new folder")
    if out.exists() and not out.is_dir():
        raise UsageError(f"{printable(out)} is a file, not a folder", "choose a new folder")
    if out.is_dir() and not (out / MANIFEST).exists() and any(out.iterdir()):
        raise UsageError(
            f"{printable(out)} is not empty, and its files are not of nlzoo prepare", "choose a new folder"
        )


# --- the folder and its manifest


def _opened(out):
    """The lines of an earlier run by source; afterwards the folder is there, clean, and its manifest can be appended to."""
    out.mkdir(parents=True, exist_ok=True)
    with open(out / MANIFEST, "a+b") as file:
        file.seek(0)
        text = file.read()
        if text and not text.endswith(b"\n"):  # the last line is torn
            file.write(b"\n")
    _sweep(out)
    lines = (_read(line) for line in text.splitlines())
    return {line.source: line for line in lines if line}


def _read(text):
    try:
        line = Line(**json.loads(text))
    except (ValueError, TypeError, RecursionError):
        return None
    return line if all(isinstance(getattr(line, name), kind) for name, kind in Line.__annotations__.items()) else None


def _append(out, line):
    """One write of one line, so that workers may do it at the same time."""
    text = json.dumps(asdict(line)).encode("ascii") + b"\n"
    handle = os.open(out / MANIFEST, os.O_WRONLY | os.O_APPEND)
    try:
        if os.write(handle, text) < len(text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(handle)


def _sweep(out):
    """Removes files that were half written."""
    for folder, _, names in os.walk(out):
        for name in names:
            if re.fullmatch(rf"\.[0-9a-f]{{32}}{re.escape(encode.PART)}", name):
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(folder, name))


def _make_folders(out, names):
    """The folders of the outputs; a link that leads out of `out`, perhaps to the originals, is refused."""
    real = os.path.realpath(out)
    for folder in sorted({os.path.dirname(out / name) for name in names}):
        os.makedirs(folder, exist_ok=True)
        if not Path(os.path.realpath(folder)).is_relative_to(real):
            raise UsageError(f"{printable(folder)} is a link that leads out of {printable(out)}", "choose a new folder")


def _remove_renamed(out, tasks):
    """What a run wrote under another name, before a second source came that would meet it: left there, it would be a copy."""
    for task in tasks.values():
        if (
            task.line
            and task.line.output != task.output
            and task.line.output not in tasks
            and _within(out, task.line.output)
        ):
            (out / task.line.output).unlink(missing_ok=True)


def _within(out, name):
    return Path(os.path.realpath(out / name)).is_relative_to(os.path.realpath(out))


# --- in the workers


def _work(task, out, size):
    """`(done or reused, bytes before, bytes after)`; a `DiskError` is given back, as it is the end of the whole run."""
    try:
        return _made(task, out, size)
    except DiskError as error:
        return DiskError(error.message, "free some room; the same command again goes on from here")
    except OSError as error:
        return _cannot(out, error)


def _made(task, out, size):
    target, state = out / task.output, _state(task.source)
    same = task.line and _output_fits(task.line, task.output, target, size)
    if same and (task.line.size, task.line.mtime_ns) == state:
        return "reused", state[0], target.stat().st_size
    video.probe(task.source)  # refuses what is no file, such as a pipe, before anybody opens it
    digest = _source_sha256(task.source)
    if same and task.line.sha256 == digest:  # copied, or touched
        kind, written, frames = "reused", task.line.output_sha256, task.line.frames
    else:
        kind, frames = "done", encode.transcode(task.source, target, size)["frames"]
        written = _sha256(target)
    if _state(task.source) != state:
        target.unlink()
        raise VideoError("changed while it was read", "run it again", task.source)
    _append(out, Line(task.name, *state, digest, task.output, written, frames, size))
    return kind, state[0], target.stat().st_size


def _output_fits(line, output, target, size):
    if (line.output, line.short_side, line.format) != (output, size, FORMAT):
        return False
    try:
        return _sha256(target) == line.output_sha256
    except FileNotFoundError:
        return False


def _state(source):
    try:
        info = os.stat(source)
    except (OSError, ValueError):
        video.probe(source)  # says what is wrong
        raise
    return info.st_size, info.st_mtime_ns


def _source_sha256(source):
    try:
        return _sha256(source)
    except OSError as error:
        raise VideoError(f"cannot be read: {error.strerror}", "check the file and its permissions", source) from None


def _sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _deadline(task):
    try:
        return 600 + os.path.getsize(task.source) / SLOWEST
    except (OSError, ValueError):
        return 600.0


def _cannot(out, error):
    return DiskError(
        f"{printable(out)} could not be written ({error.strerror or error})",
        "free some room, or choose another folder; what is done stays",
    )
