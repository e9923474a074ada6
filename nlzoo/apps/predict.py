"""`nlzoo.predict`: classes and probabilities of videos, of whole ones and of windows that slide over long ones.

Unusual: a window is a part of a video like those of a list, so that it is read, and may fail, like any other.
"""

import os
import re
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from ..core import archives, feature_files, shard as shards, tables
from ..core.errors import UsageError, VideoError
from ..core.model_spec import CHOSEN
from ..core.progress import Progress, Stages, no_progress, no_stages
from ..core.shard import Shard
from ..core.text import printable
from ..core.view_spec import ClipSpec, ViewSpec, parse_views
from ..networks.network import Network
from ..training import devices, evaluate, outputs
from ..training.engine import Engine
from ..videos import frame_folder, listing, loader, pool, records, tree, video
from ..videos.sweep import Sweep
from . import journal

MOST_WINDOWS = 100_000  # of one video
BLOCK = 4096  # videos that are in memory as objects
LONG = 8  # groups of windows that a process reads at least, since it begins at a key frame before them
_Open = TypeVar("_Open", loader.Loader, "_Long")


@dataclass(frozen=True)
class Windows:
    """How windows lie over a video."""

    every: float  # seconds from the start of one to the next
    length: float | None = None  # seconds; None: those of the network's clip, or 2 * `every` where frames are spread

    def __post_init__(self) -> None:
        for name, value in (("--every", self.every), ("--window", self.length)):
            if value is not None and not 0.01 <= value <= 86400:
                raise UsageError(f"{name} is {value:g} s; it must be from 0.01 s to a day", f"for example {name} 1s")

    def spans(self, seconds: float, clip: ClipSpec, fps: float) -> list[tuple[float, float]]:
        """`(start, end)` in seconds of each window of a video; the last ends where the video does.

        Raises `UsageError` for more than `MOST_WINDOWS`.
        """
        length = self.length or (clip.frames * clip.stride / (clip.fps or fps) if clip.stride else 2 * self.every)
        if length >= seconds:
            return [(0.0, seconds)]
        if seconds / self.every > MOST_WINDOWS:
            raise UsageError(
                f"a video of {seconds:.0f} s has more than {MOST_WINDOWS:,} windows, one every {self.every:g} s",
                "raise --every",
            )
        starts = np.arange(0, seconds - length + 1e-6, self.every).tolist()
        if seconds - length - starts[-1] > 0.01:
            starts.append(seconds - length)
        return [(round(start, 6), round(start + length, 6)) for start in starts]


def predict(
    model: str | Path | Network,
    videos: str | Path | Sequence[str | Path],
    views: str | ViewSpec | None = None,
    every: str | float | None = None,
    window: str | float | None = None,
    out: str | Path | None = None,
    features: str | Path | None = None,
    decoder: str = "auto",
    device: str | torch.device | None = None,
    stages: Stages = no_stages,
    on_row: Callable[[dict], object] = lambda row: None,
    on_note: Callable[[str], object] = lambda note: None,
    shard: str | Shard = "1/1",
    threshold: float | None = None,
) -> list[dict]:
    """For each video `{"path", "scores": {class: probability}}`, best first, or `{"path", "error"}`.

    Where a video may have several classes, also `labels`: those from `threshold` on, by default the model's own.

    `model`: a network, or what `download.locate` finds. `videos`: files, folders of them, `-` for names on standard
    input. `every`, `window`: windows over long videos, in seconds (`1.5`, `"2s"`); the rows are those of `windows`.
    `features`: a file for the inputs of the last layer; the rows have `features`, float32 (C,), for `scores`. `out`: a
    file for `as_rows`. Rows for a file are kept beside it as they are made (`journal`), and the same call goes on
    behind them. `shard`: `3/16` for the third of sixteen parts of the videos, and of the file (`Shard.file`). `on_row`
    gets each row as it is done, `on_note` what a reader should know first. Raises `UsageError` and `DiskError` for what
    cannot be, before a video is opened.
    """
    options = Options(views, every, window, out, features, decoder, shard, threshold)
    with answered(model, videos, options, device, stages, on_row, on_note) as rows:
        return list(rows)


class Options:
    """What `predict` is asked, checked."""

    def __init__(
        self,
        views: str | ViewSpec | None = None,
        every: str | float | None = None,
        window: str | float | None = None,
        out: str | Path | None = None,
        features: str | Path | None = None,
        decoder: str = "auto",
        shard: str | Shard = "1/1",
        threshold: float | None = None,
    ) -> None:
        """Raises `UsageError` for what cannot be."""
        self.views = parse_views(views) if isinstance(views, str) else views
        self.windows = _windows(every, window, features, self.views)
        video.check_decoder(decoder)
        self.decoder, self.shard, self.threshold = decoder, shards.parse(shard), threshold
        if out and features:
            raise UsageError("--features goes without --out: its videos have no predictions", "leave one of them out")
        self.as_features = features is not None
        self.file = self.shard.file(Path(out or features or "")) if out or features else None  # where the rows go

    def fill_in(self, net: Network) -> None:
        """The views are the network's own where none were asked for."""
        self.views = self.views or net.spec.clip.views

    @property
    def together(self) -> int:
        """How many videos go through the network together."""
        return 1 if self.windows or not self.views else outputs.videos_at_a_time(self.views)

    def check_file(self, inputs: Sequence[Path]) -> None:
        """Raises what else would be found after the work."""
        if self.file:
            tables.check(self.file, feature_files.ENDINGS if self.as_features else tables.ENDINGS, inputs)

    def identity(self, net: Network) -> str:
        """What must be the same for rows of one file."""
        settings = {"views": repr(self.views), "windows": repr(self.windows), "decoder": self.decoder}
        return journal.identity(net, **settings, features=self.as_features)


@contextmanager
def answered(
    model: str | Path | Network,
    videos: str | Path | Sequence[str | Path],
    options: Options,
    device: str | torch.device | None = None,
    stages: Stages = no_stages,
    on_row: Callable[[dict], object] = lambda row: None,
    on_note: Callable[[str], object] = lambda note: None,
    engine: Engine | None = None,
) -> Iterator[journal.Journal]:
    """`predict`, whose rows lie on disk inside of this context; they are read as they are asked for.

    The file is there, whole. Of several ranks (`engine`) each answers a part; rank 0 has all rows, the others none.
    """
    given = [Path(path) for path in ([videos] if isinstance(videos, str | Path) else videos)]
    options.check_file(given)
    engine = engine or Engine(devices.resolve(device))
    if engine.world > 1 and not options.file:
        raise UsageError("several processes need a file for their answers", "for example --out answers.jsonl")
    net, folder = evaluate.open_network(model, engine.device, given[0] if given else "VIDEO", "predict")
    net = evaluate.with_threshold(net, options.threshold)
    for note in evaluate.model_notes(net, folder):
        on_note(note)
    options.fill_in(net)
    with closing(_asked(given, options, engine)) as rows:
        before = rows.open(options.file, options.identity(net) if options.file else "", engine.rank)
        if before:
            on_note(f"{before} of these videos have been answered before")
        launch = engine.broadcast(uuid.uuid4().hex)  # every rank has its file now
        if engine.main and engine.world > 1:
            rows.see(engine.world)
        with stages("predicting") as progress:
            for row in _made(net, rows, options, engine, progress):
                rows.add(row)
                on_row(row)
        if engine.main:
            if engine.world > 1:
                rows.join(launch, engine.world)
            _write(net, rows, options)
            rows.remove()
        else:
            rows.end(launch)
        yield rows


def _asked(given: Sequence[Path], options: Options, engine: Engine) -> journal.Journal:
    """The videos of this shard. Rank 0 finds them for all, in a file beside the output."""
    if engine.world == 1:
        rows = journal.Journal(map(str, find(given)))
    else:
        assert options.file
        shared = options.file.with_name(f"{options.file.name}{journal.SUFFIX}-names")
        if engine.main:
            rows = journal.Journal(map(str, find(given)))
            rows.write_names(shared)
        engine.wait()
        if not engine.main:
            rows = journal.Journal(journal.read_names(shared))
        engine.wait()
        if engine.main:
            shared.unlink()
    rows.keep(options.shard, options.together)
    return rows


def _made(net: Network, rows: journal.Journal, options: Options, engine: Engine, progress: Progress) -> Iterator[dict]:
    """A row for each video of this rank that is missing, as it is done."""
    workers = pool.default_workers(str(engine.device))
    if options.windows:
        spacing, names = options.windows, chain.from_iterable(rows.missing(engine.rank, engine.world))
        videos = (_Long(net, Path(name), engine.device, spacing, workers, options.decoder) for name in names)
        for long in _one_ahead(videos):
            yield long.row(progress)
        return
    done, total = 0, rows.left(engine.rank, engine.world)
    make = outputs.features if options.as_features else outputs.probabilities
    for feed in _one_ahead(
        _feed(names, net, options, workers) for names in rows.missing(engine.rank, engine.world, BLOCK)
    ):
        for index, numbers, reason in make(net, feed, engine.device):
            done += 1
            progress(done, total)
            yield {"path": feed.source.items[index].path} | _row(net, numbers, reason, options.as_features)


def _one_ahead(begun: Iterator[_Open]) -> Iterator[_Open]:
    """Each of what is to be closed, after the next has begun to decode: nobody waits for a first clip in between."""
    current, following = next(begun, None), None
    try:
        while current:
            following = next(begun, None)
            yield current
            current.close()
            current, following = following, None
    finally:
        for one in filter(None, (current, following)):
            one.close()


def _feed(names: Sequence[str], net: Network, options: Options, workers: int) -> loader.Loader:
    """A loader of these videos, which begins at once."""
    items = tuple(listing.Item(name, ()) for name in names)
    source = loader.Clips(Path(), items, net.spec.clip, views=options.views, decoder=options.decoder)
    feed = loader.Loader(source, min(len(items), workers))
    if net.spec.sees_its_clip:
        feed.prime(outputs.batches(source))
    return feed


def _write(net: Network, rows: journal.Journal, options: Options) -> None:
    """The file of the answers."""
    file = options.file
    if file and options.as_features:
        if any("features" in row for row in rows):
            feature_files.write(file, rows)
    elif file:
        spans = ("start", "end") if options.windows else ()
        classes = (f"p:{name}" for name in sorted(evaluate.class_names(net)))
        labels = ("labels",) if net.spec.multi_label else ()
        tables.write(file, _Table(rows), ("path", *spans, "answer", "score", *labels, "error", *classes))


def find(paths: Sequence[Path]) -> Iterator[Path]:
    """Videos: files and folders of frames as they are given, those below other folders, and for `-` the names on
    standard input.

    Names on standard input stand one on a line, or between NUL bytes (`find … -print0`). Raises `VideoError`.
    """
    if not paths:
        raise VideoError("there are no videos to predict", "give video files, or folders of them")
    for path in paths:
        if str(path) == "-":
            yield from _names_on_stdin()
        elif archives.is_folder(folder := listing.opened(path)) and not frame_folder.is_frame_folder(folder):
            inside = tree.walk(folder).videos
            if not inside:
                raise VideoError(f"{printable(path)} has no videos", "give video files, or a folder of them")
            yield from (folder / name for name in inside)
        else:
            listing.refuse_address(path)
            yield path


def _names_on_stdin() -> Iterator[Path]:
    empty = True
    with tempfile.TemporaryFile() as text:
        shutil.copyfileobj(sys.stdin.buffer, text)
        for name in journal.names_in(text):
            empty = False
            yield Path(os.fsdecode(name))
    if empty:
        raise VideoError(
            "standard input named no videos", "for example: find clips -name '*.mp4' | nlzoo predict MODEL -"
        )


def failures(rows: Iterable[dict]) -> Iterator[str]:
    """A line for each video, or window of one, that has no prediction: its path and why."""
    for row in rows:
        for part in (row, *row.get("windows", ())):
            if "error" in part:
                span = f" ({part['start']:g} to {part['end']:g} s)" if "start" in part else ""
                yield f"{printable(row['path'])}{span} {part['error']}"


def _windows(
    every: str | float | None, window: str | float | None, features: str | Path | None, views: ViewSpec | None
) -> Windows | None:
    """How windows lie, where they are asked for; None for whole videos."""
    if every is None and window is None:
        return None
    if every is None or features or views:
        raise UsageError(
            "these do not go together: --every with --views or --features, --window without --every",
            "leave one of them out",
        )
    return Windows(_seconds("--every", every), None if window is None else _seconds("--window", window))


def _seconds(option: str, value: str | float) -> float:
    """`1s`, `0.5`, `2 s` as a number."""
    try:
        return float(str(value).strip().lower().removesuffix("s"))
    except ValueError:
        raise UsageError(
            f"{option} {printable(str(value))!r} is no number of seconds", f"for example {option} 1s"
        ) from None


def _row(net: Network, numbers: np.ndarray | None, reason: str, as_features: bool = False) -> dict:
    """`{"scores": {class: probability}}`, best first, or `{"features": float32 (C,)}`, or `{"error"}`."""
    if numbers is None:
        return {"error": printable(reason)}
    if not np.isfinite(numbers).all():
        return {"error": "the network's output for this video is not finite (NaN or infinity)"}
    if as_features:
        return {"features": numbers.astype(np.float32)}
    names = evaluate.class_names(net)
    scores = {names[k]: float(numbers[k]) for k in np.argsort(-numbers, kind="stable")}
    note = {"note": f"{reason}: {evaluate.unheard(net.spec)}"} if reason else {}
    if not net.spec.multi_label:
        return {"scores": scores, **note}
    return {"scores": scores, **note, "labels": [name for name, p in scores.items() if p >= net.spec.label_threshold]}


class _Table:
    """The rows of a table for `rows`, as often as one goes through them."""

    def __init__(self, rows: Iterable[dict]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[dict]:
        return as_rows(self.rows)


# --- long videos


def windows(
    net: Network,
    path: Path,
    device: torch.device,
    spacing: Windows,
    workers: int = 0,
    decoder: str = "auto",
    progress: Progress = no_progress,
) -> dict:
    """`{"path", "windows": [{"start", "end", "scores"}], "segments": [{"start", "end", "class", "score"}]}` of a video.

    Times in seconds. A window that cannot be read has `error` for `scores`; a video that cannot is `{"path", "error"}`.
    See `segments`.
    """
    with closing(_Long(net, path, device, spacing, workers, decoder)) as long:
        return long.row(progress)


class _Long:
    """A long video that is being read, from the beginning on or, in several processes, from several places on."""

    def __init__(
        self, net: Network, path: Path, device: torch.device, spacing: Windows, workers: int, decoder: str
    ) -> None:
        self.net, self.path, self.device = net.eval(), path, device
        self.spans: list[tuple[float, float]] = []
        self.feeds: list[loader.Loader] = []
        (self.record,) = records.examine([path], workers=1)
        if self.record.problem:
            return
        clip = net.spec.clip
        if self.record.container == video.FOLDER:  # of no known rate: its frames are stepped as they are
            clip = replace(clip, fps=None)
        self.spans = spacing.spans(self.record.seconds, clip, self.record.fps)
        items = tuple(listing.Item(str(path), (), start=start, end=end) for start, end in self.spans)
        for part in _pieces(len(items), workers):
            own = items[part.start : part.stop]
            source = loader.Clips(Path(), own, net.spec.clip, views=ViewSpec(), decoder=decoder, sweep=Sweep(len(own)))
            self.feeds.append(loader.Loader(source, min(1, workers)))
            if net.spec.sees_its_clip:
                self.feeds[-1].prime(outputs.batches(source))

    def row(self, progress: Progress) -> dict:
        """As `windows`."""
        if self.record.problem:
            return {"path": str(self.path), "error": printable(self.record.problem)}
        made = [outputs.probabilities(self.net, feed, self.device) for feed in self.feeds]
        rows: list[list[dict]] = [[] for _ in made]
        while any(len(own) < len(feed.source) for own, feed in zip(rows, self.feeds)):
            for own, coming in zip(rows, made):  # in turn, so that all of them go on
                some = sorted(islice(coming, outputs.CLIPS), key=lambda one: one[0])
                own += [_row(self.net, scores, reason) for _, scores, reason in some]
                progress(sum(map(len, rows)), len(self.spans))
        spans = ({"start": start, "end": end} for start, end in self.spans)
        predicted = [span | one for span, one in zip(spans, chain.from_iterable(rows))]
        spec = self.net.spec
        parts = segments(predicted, self.record.seconds, spec.multi_label, spec.label_threshold)
        return {"path": str(self.path), "windows": predicted, "segments": parts}

    def close(self) -> None:
        """Ends what still reads."""
        for feed in self.feeds:
            feed.close()


def _pieces(count: int, workers: int) -> list[range]:
    """Parts of so many windows, one for each worker, of whole groups and long enough to begin anew for."""
    groups = -(-count // outputs.CLIPS)
    parts = max(1, min(workers, groups // LONG))
    firsts = [number * groups // parts * outputs.CLIPS for number in range(parts)]
    return [range(first, last) for first, last in pairwise([*firsts, count])]


def segments(rows: list[dict], seconds: float, multi_label: bool, threshold: float = CHOSEN) -> list[dict]:
    """`{"start", "end", "class", "score"}` for each run of windows with the same predicted class.

    A window counts for what lies nearer to its middle than to another's. `score` is the mean over the run. Where a
    video may have several classes, each has its own segments: the runs of windows that give it at least `threshold`.
    """
    middles = [(row["start"] + row["end"]) / 2 for row in rows]
    edges = [0.0, *((a + b) / 2 for a, b in pairwise(middles)), seconds]
    runs: list[tuple[str, list[int]]] = []
    current: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        scores = row.get("scores", {})
        predicted = [name for name, p in scores.items() if p >= threshold] if multi_label else list(scores)[:1]
        current = {name: current.get(name, []) for name in predicted}
        for name, run in current.items():
            if not run:
                runs.append((name, run))
            run.append(number)
    parts = []
    for name, run in runs:
        score = float(np.mean([rows[number]["scores"][name] for number in run]))
        parts.append({"start": edges[run[0]], "end": edges[run[-1] + 1], "class": name, "score": score})
    return sorted(parts, key=lambda segment: (segment["start"], -segment["score"]))


def as_rows(predictions: Iterable[dict]) -> Iterator[dict]:
    """Rows of a table: path, start and end of a window, answer, score, error, and `p:CLASS` for each class.

    `labels` where a video may have several, with `;` between them, as in lists.
    """
    for prediction in predictions:
        whole = {key: value for key, value in prediction.items() if key != "path"}
        for part in prediction.get("windows", [whole]):
            row = {"path": prediction["path"], **part}
            scores = row.pop("scores", None)
            if "labels" in row:
                row["labels"] = ";".join(re.sub(r"([\\;])", r"\\\1", name) for name in row["labels"])
            if scores:
                best, score = next(iter(scores.items()))
                row |= {"answer": best, "score": score} | {f"p:{name}": p for name, p in sorted(scores.items())}
            yield row
