"""Videos made over into ones that clips are cheap to read from, once, in a folder of their own.

Originals are only read. A killed run loses the files that were in work and nothing else: outputs take their names
when they are whole (`encode`), and the worker that made one at once appends a line to the folder's manifest. The same
command again does what is missing or no longer fits.
"""

import contextlib
import json
import os
import shlex
import shutil
import time
import unicodedata
import uuid
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from ..core import archives, files, lock, shard as shards
from ..core.errors import DiskError, UsageError, VideoError
from ..core.progress import Progress, no_progress
from ..core.shard import WHOLE, Shard
from ..core.skipped import Skipped
from ..core.text import counted, printable
from ..videos import encode, listing, manifest, pool, scanning, tree, video
from ..videos.manifest import Line

if TYPE_CHECKING:
    from ..training.engine import Engine

LOCKS = ".locks"  # of shards
_POLL = 0.2  # seconds from one look for the end of another rank to the next
LIST = "videos.csv"  # of the prepared videos, where a list named the sources
SIZES = 16, 4096  # of the short side, pixels
_NEW = "choose a new folder"
SLOWEST = 20_000  # bytes of a source in a second, after the first ten minutes; slower than that it hangs


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
    fps: float = 0.0  # of a folder of frames, where it is known


class _Made(NamedTuple):
    reused: bool
    bytes_before: int
    bytes_after: int


def prepare(
    paths: Iterable[str],
    root: Path,
    out: Path,
    size: int = 256,
    workers: int = 1,
    scanned: bool = True,
    progress: Progress = no_progress,
    fps: Mapping[str, float] = MappingProxyType({}),
    shard: Shard = WHOLE,
) -> Prepared:
    """Writes each file of `paths` (relative to `root`, or absolute) to `out`, as `encode.transcode` does with `size`.

    `outputs` says under which name. A file that cannot be read to its end is skipped with the reason. `scanned`:
    whether `root` is itself the folder of videos, and not one in which a list names some; then `out` may not lie in
    it. `progress(done, total)` is called for each file. `fps`: of folders of frames, by path, where it is known.
    `shard`: only this part of the files, beside others of the same folder; the call without one brings all together,
    and makes what is missing.

    Raises `UsageError` for a `size` that is odd, out of bounds or not that of an earlier run, and for an `out` inside
    `root`, with sources in it, with files that are not ours or in use by another run; `DiskError` when `out` cannot be
    written or is full: what is done stays.
    """
    root, out = Path(os.path.abspath(root)), Path(os.path.abspath(out))
    paths = list(dict.fromkeys(paths))
    _check_size(size)
    _check_folders(paths, root, out, scanned)
    with _hold(out, shard):
        return _prepare(outputs(paths, root), root, out, size, workers, progress, fps, shard)


@contextlib.contextmanager
def _hold(out: Path, shard: Shard) -> Iterator[None]:
    """Nobody else works at this shard, or for the whole at any; no shard begins beside the whole."""
    with contextlib.ExitStack() as held:
        held.enter_context(lock.hold(out, shared=shard.count > 1))
        if shard.count > 1:
            held.enter_context(lock.hold(shard.file(out / LOCKS / "shard")))
        else:
            for folder in (out / LOCKS).glob("*"):  # where the file system has no locks, this tells of other hosts
                held.enter_context(lock.hold(folder))
        yield
        if shard.count == 1:
            shutil.rmtree(out / LOCKS, ignore_errors=True)


def _prepare(
    names: dict[str, str],
    root: Path,
    out: Path,
    size: int,
    workers: int,
    progress: Progress,
    fps: Mapping[str, float],
    shard: Shard,
) -> Prepared:
    try:
        lines = _open_folder(out, shard)
        _make_folders(out, names.values())
    except OSError as error:
        raise _not_written(out, error) from error
    tasks = {}
    everything = list(names.items())
    names = dict(everything[number] for number in shard.part(len(everything)))
    for path, output in names.items():
        name = _name(path, root)
        line = lines.get(name)
        tasks[output] = _Task(_absolute(path, root), name, output, line, fps.get(path, 0.0))
    _check_earlier_size(tasks.values(), out, size)
    whole = shard.count == 1  # else others are at work
    if whole:
        _remove_renamed(out, tasks)
    results: dict[str, _Made | pool.Failure] = {}
    work = partial(_work, out=out, size=size, record=shard.file(out / manifest.NAME))
    try:
        with contextlib.closing(pool.run(work, tasks.values(), workers, _deadline)) as made:
            for task, result in made:
                results[task.output] = result
                progress(len(results), len(tasks))
                if isinstance(result, pool.Failure):
                    (out / task.output).unlink(missing_ok=True)  # of an earlier state of the source
    finally:
        if whole:
            _remove_leftovers(out)  # of workers that were stopped
    return _summary(names, results)


def _summary(names: dict[str, str], results: dict[str, _Made | pool.Failure]) -> Prepared:
    made = [result for result in results.values() if isinstance(result, _Made)]
    reused = sum(result.reused for result in made)
    skipped, mapping = [], {}
    for path, output in names.items():
        result = results[output]
        if isinstance(result, pool.Failure):
            skipped.append(Skipped(path, scanning.UNREADABLE, result.reason))
        else:
            mapping[path] = output
    return Prepared(
        done=len(made) - reused,
        reused=reused,
        skipped=tuple(skipped),
        bytes_before=sum(result.bytes_before for result in made),
        bytes_after=sum(result.bytes_after for result in made),
        mapping=mapping,
    )


def in_words(prepared: Prepared, target: Path, shard: str | Shard = WHOLE) -> str:
    """What was done, and the command that comes next."""
    before, after = prepared.bytes_before / 1e6, prepared.bytes_after / 1e6
    following = f"nlzoo finetune {shlex.quote(printable(target))}"
    if shards.parse(shard).count > 1:
        following = "once every part is done, the same command without --shard brings them together"
    return (
        f"{counted(prepared.done, 'video')} prepared, {prepared.reused} were there, {len(prepared.skipped)} skipped; "
        f"{before:,.1f} MB became {after:,.1f} MB\nnext: {following}"
    )


def prepare_source(
    videos: Path, out: Path, size: int = 256, progress: Progress = no_progress, shard: str | Shard = WHOLE
) -> tuple[Prepared, Path]:
    """Prepares all videos below a folder, or those of a list (`listing.read`); also returns what to train on.

    That is `out`, or for a list one in it, which a `shard` does not write.
    """
    videos, out, shard = listing.opened(Path(videos)), Path(out), shards.parse(shard)
    workers = pool.own_cores()
    below = tree.walk(videos).videos if archives.is_folder(videos) else []
    try:
        source = listing.read(videos)
    except VideoError:
        if not below:
            raise
        source = None  # videos without classes
    if source is None or source.levels:
        return prepare(below, videos, out, size, workers, progress=progress, shard=shard), out
    paths = [item.path for item in source.items]
    fps = {item.path: item.fps for item in source.items if item.fps}
    prepared = prepare(paths, source.root, out, size, workers, scanned=False, progress=progress, fps=fps, shard=shard)
    if shard.count > 1:
        return prepared, out / LIST
    items = [item for item in source.items if item.path in prepared.mapping]
    items = [replace(item, path=prepared.mapping[item.path], frames=0, seconds=0.0, fps=0.0) for item in items]
    listing.write(replace(source, root=out, items=tuple(items)), out / LIST)
    return prepared, out / LIST


def prepare_by_ranks(videos: Path, out: Path, size: int, progress: Progress, engine: "Engine") -> tuple[Prepared, Path]:
    """`prepare_source` by all ranks of `engine`, each a part; rank 0 waits for the others and returns the whole."""
    shard = Shard(engine.rank + 1, engine.world)
    launch = engine.broadcast(uuid.uuid4().hex)
    mine, target = prepare_source(videos, out, size, progress, shard)
    last = {"end": launch, "done": mine.done, "reused": mine.reused}
    files.append_text(shard.file(Path(out) / manifest.NAME), json.dumps(last) + "\n")
    if not engine.main:
        return mine, target
    parts = [Shard(number, engine.world) for number in range(1, engine.world + 1)]
    ends = [_last_line(part.file(Path(out) / manifest.NAME), launch) for part in parts]
    whole, target = prepare_source(videos, out, size)
    done = sum(end["done"] for end in ends)
    return replace(whole, done=whole.done + done, reused=whole.reused - done), target


def _last_line(record: Path, launch: str) -> dict:
    """The last line of a shard that has ended; waits for it, however long it takes."""
    while True:
        with contextlib.suppress(OSError, ValueError, IndexError):  # not there yet, torn, empty
            with open(record, "rb") as opened:
                last = json.loads(deque(opened, 1)[0])
            if last.get("end") == launch:
                return last
        time.sleep(_POLL)


def outputs(paths: Iterable[str], root: Path) -> dict[str, str]:
    """Path as given → where its output goes, relative to OUT, "/" between parts.

    The path relative to `root`, ending in .mp4; what lies outside `root` goes to `_outside/` and its absolute path.
    Where two would meet (`a.avi`, `a.mp4`), also on a disk that does not tell `A` from `a`, they keep their old
    ending: `a.avi.mp4`, `a.mp4.mp4`.
    """
    root = Path(os.path.abspath(root))
    inside = {path: _name(path, root) for path in paths}
    outside = "_outside"
    while any(name.split("/")[0] == outside for name in inside.values()):
        outside += "_"
    plain = {}
    for path, name in inside.items():
        anchor = Path(name).anchor  # of what lies outside
        plain[path] = f"{outside}/{Path(name).relative_to(anchor).as_posix()}" if anchor else name
    keep: set[str] = set()  # names that keep their ending
    while True:
        mapped = {name: f"{name}.mp4" if name in keep else _as_mp4(name) for name in set(plain.values())}
        times = Counter(_folded(output) for output in mapped.values())
        clash = {name for name, output in mapped.items() if times[_folded(output)] > 1} - keep
        if not clash:
            return {path: mapped[name] for path, name in plain.items()}
        keep |= clash


def _as_mp4(name: str) -> str:
    path = PurePosixPath(name)
    return str(path.with_suffix(".mp4")) if path.suffix.lower() in video.EXTENSIONS else f"{name}.mp4"


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _absolute(path: str, root: Path) -> str:
    return os.path.abspath(os.path.join(root, path))


def _name(path: str, root: Path) -> str:
    whole = Path(_absolute(path, root))
    return whole.relative_to(root).as_posix() if whole.is_relative_to(root) else str(whole)


def _check_size(size: int) -> None:
    if not SIZES[0] <= size <= SIZES[1] or size % 2:
        hint = f"give an even number of pixels from {SIZES[0]} to {SIZES[1]}"
        raise UsageError(f"--size {size} cannot be the short side of a video", hint)


def _check_folders(paths: list[str], root: Path, out: Path, scanned: bool) -> None:
    """Raises `UsageError` for an `out` in which originals, or files that are not ours, could be touched."""
    if scanned and _is_within(out, root):
        beside = root.parent / f"{root.name}-prepared"
        raise UsageError(
            f"{printable(out)} lies in {printable(root)}, the folder of videos",
            f"choose one beside it, such as {printable(beside)}",
        )
    if any(_is_within(_absolute(path, root), out) for path in paths):
        raise UsageError(f"{printable(out)} holds some of the videos that are to be prepared", _NEW)
    if out.exists() and not out.is_dir():
        raise UsageError(f"{printable(out)} is a file, not a folder", _NEW)
    names = {file.name for file in out.iterdir()} if out.is_dir() else set()
    # looked for after the listing: a shard beside this one makes the manifest before anything else
    if names - {lock.LOCK, LOCKS} and not (out / manifest.NAME).exists():
        raise UsageError(f"{printable(out)} is not empty, and its files are not of nlzoo prepare", _NEW)


def _check_earlier_size(tasks: Iterable[_Task], out: Path, size: int) -> None:
    for task in tasks:
        if task.line and task.line.short_side != size and (out / task.line.output).exists():
            earlier = task.line.short_side
            raise UsageError(
                f"{printable(out)} was prepared with --size {earlier}, not {size}",
                f"give --size {earlier} to continue it, or choose a new folder",
            )


def _is_within(path: str | Path, folder: str | Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


# --- the folder and its manifest


def _open_folder(out: Path, shard: Shard) -> dict[str, Line]:
    """Makes the folder, with a manifest to append to; the lines of earlier runs by source.

    Without shards it is made clean, and the manifests of shards are brought together in one.
    """
    out.mkdir(parents=True, exist_ok=True)
    common, own = out / manifest.NAME, shard.file(out / manifest.NAME)
    shards_of = manifest.of_shards(out)
    lines: dict[str, Line] = {}
    for each in dict.fromkeys((common, *shards_of, own)):
        with open(each, "a+b") as file:
            file.seek(0)
            text = file.read()
            if each == own and text and not text.endswith(b"\n"):  # the last line is torn
                file.write(b"\n")
        lines |= {line.source: line for line in map(manifest.parsed, text.splitlines()) if line}
    if shard.count == 1:
        _remove_leftovers(out)
        if shards_of:
            files.write_text(common, "".join(json.dumps(asdict(line)) + "\n" for line in lines.values()))
        for each in shards_of:
            each.unlink()
    return lines


def _remove_leftovers(out: Path) -> None:
    for folder, _, _ in os.walk(out):
        files.remove_leftovers(Path(folder))


def _make_folders(out: Path, names: Iterable[str]) -> None:
    """The folders of the outputs; a link that leads out of `out`, perhaps to the originals, is refused."""
    for folder in sorted({os.path.dirname(out / name) for name in names}):
        os.makedirs(folder, exist_ok=True)
        if not _is_within(folder, out):
            raise UsageError(f"{printable(folder)} is a link that leads out of {printable(out)}", _NEW)


def _remove_renamed(out: Path, tasks: dict[str, _Task]) -> None:
    """Removes what an earlier run wrote under another name, because a new source would meet it: it would be a copy."""
    for task in tasks.values():
        if task.line and task.line.output not in tasks and _is_within(out / task.line.output, out):
            (out / task.line.output).unlink(missing_ok=True)


# --- in the workers


def _work(task: _Task, out: Path, size: int, record: Path) -> _Made:
    """Makes one video, or finds it made. A `DiskError` ends the whole run."""
    try:
        return _make(task, out, size, record)
    except DiskError as error:
        raise DiskError(error.message, "free some room; the same command again continues from here") from error
    except OSError as error:
        raise _not_written(out, error) from error


def _make(task: _Task, out: Path, size: int, record: Path) -> _Made:
    target, state = out / task.output, _state(task.source)
    line = task.line if task.line and _output_fits(task.line, task, target, size) else None
    if line and (line.size, line.mtime_ns) == state:
        return _Made(True, line.size, target.stat().st_size)
    video.probe(task.source)  # refuses what is no file, such as a pipe, before anybody opens it
    digest = _source_sha256(task.source)
    if line and line.sha256 == digest:  # copied, or touched
        written, frames = line.output_sha256, line.frames
    else:
        line = None
        frames = int(encode.transcode(task.source, target, size, task.fps)["frames"])
        written = files.sha256(target)
    if _state(task.source) != state:
        target.unlink()
        raise VideoError("changed while it was read", "run it again", task.source)
    new = Line(task.name, *state, digest, task.output, written, frames, size, fps=task.fps)
    files.append_text(record, json.dumps(asdict(new)) + "\n")
    return _Made(line is not None, state[0], target.stat().st_size)


def _output_fits(line: Line, task: _Task, target: Path, size: int) -> bool:
    if (line.output, line.short_side, line.format, line.fps) != (task.output, size, manifest.FORMAT, task.fps):
        return False
    try:
        return files.sha256(target) == line.output_sha256
    except FileNotFoundError:
        return False


def _state(source: str) -> tuple[int, int]:
    state = video.state(source)
    if state is None:
        video.probe(source)  # says what is wrong
        raise VideoError("changed while it was read", "run it again", source)  # it is there again
    return state


def _source_sha256(source: str) -> str:
    try:
        return video.sha256(source)
    except OSError as error:
        raise VideoError(f"cannot be read: {error.strerror}", "check the file and its permissions", source) from None


def _deadline(task: _Task) -> float:
    state = video.state(task.source)
    return 600 + (state[0] if state else 0) / SLOWEST


def _not_written(out: Path, error: OSError) -> DiskError:
    return files.not_written(out, error, "free some room, or choose another folder; what is done stays")
