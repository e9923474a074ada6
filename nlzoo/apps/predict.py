"""`nlzoo.predict`: classes and probabilities of videos, of whole ones and of windows that slide over long ones.

Unusual: a window is a part of a video like those of a list, so that it is read, and may fail, like any other.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from ..core import files, tables
from ..core.errors import UsageError, VideoError
from ..core.progress import Progress, Stages, no_progress, no_stages
from ..core.text import as_text, printable
from ..core.view_spec import ClipSpec, ViewSpec, parse_views
from ..networks.network import Network
from ..training import devices, evaluate, metrics
from ..videos import listing, loader, pool, records, tree, video
from . import journal

FEATURES = (".safetensors", ".parquet")
MOST_WINDOWS = 100_000  # of one video


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
    views: str | ViewSpec = "1x1",
    every: str | float | None = None,
    window: str | float | None = None,
    out: str | Path | None = None,
    features: str | Path | None = None,
    decoder: str = "auto",
    device: str | torch.device | None = None,
    stages: Stages = no_stages,
    on_row: Callable[[dict], object] = lambda row: None,
    on_note: Callable[[str], object] = lambda note: None,
) -> list[dict]:
    """For each video `{"path", "scores": {class: probability}}`, best first, or `{"path", "error"}`.

    `model`: a network, or what `download.locate` finds. `videos`: files, folders of them, `-` for names on standard
    input. `every`, `window`: windows over long videos, in seconds (`1.5`, `"2s"`); the rows are those of `windows`.
    `features`: a file for the inputs of the last layer; the rows have `features`, float32 (C,), for `scores`. `out`: a
    file for `as_rows`. Rows for a file are kept beside it as they are made (`journal`), and the same call goes on
    behind them. `on_row` gets each row as it is done, `on_note` what a reader should know first. Raises `UsageError`
    and `DiskError` for what cannot be, before a video is opened.
    """
    views = parse_views(views) if isinstance(views, str) else views
    spacing = _windows(every, window, features, views)
    video.check_decoder(decoder)
    given = [Path(path) for path in ([videos] if isinstance(videos, str | Path) else videos)]
    _check_files(out, features, given)
    device = devices.resolve(device)
    net, folder = evaluate.open_network(model, device, given[0] if given else "VIDEO", "predict")
    for note in evaluate.model_notes(net, folder):
        on_note(note)
    paths = find(given)
    kept = None
    missing = paths
    if out or features:
        asked = {"views": repr(views), "windows": repr(spacing), "decoder": decoder, "features": bool(features)}
        kept = journal.Journal(Path(out or features or ""), journal.identity(net, **asked))
        missing = kept.missing(list(dict.fromkeys(paths)), 1 if spacing else evaluate.videos_at_a_time(views))
        if kept.rows:
            on_note(f"{len(kept.rows)} of these videos have been answered before")
    workers = pool.default_workers(str(device))
    rows = []
    with stages("predicting") as progress:
        if spacing:
            made: Iterable[dict] = (windows(net, path, device, spacing, workers, decoder, progress) for path in missing)
        else:
            items = tuple(listing.Item(str(path), ()) for path in missing)
            source = loader.Clips(Path(), items, net.spec.clip, views=views, decoder=decoder)
            made = _whole(net, source, device, min(len(missing), workers), features is not None, progress)
        for row in made:
            if kept:
                kept.add(row)
            rows.append(row)
            on_row(row)
    if kept:
        rows = kept.in_order(map(str, paths), rows)
        if out:
            tables.write(Path(out), as_rows(rows), ("path",))
        elif features and any("features" in row for row in rows):
            write_features(Path(features), rows)
        kept.remove()
    return rows


def find(paths: Sequence[Path]) -> list[Path]:
    """Video files: files as they are given, the videos in folders, and for `-` the names on standard input.

    Names on standard input stand one on a line, or between NUL bytes (`find … -print0`). Raises `VideoError`.
    """
    found: list[Path] = []
    for path in paths:
        if str(path) == "-":
            found += _names_on_stdin()
        elif path.is_dir():
            inside = tree.walk(path).videos
            if not inside:
                raise VideoError(f"{printable(path)} has no videos", "give video files, or a folder of them")
            found += [path / name for name in inside]
        else:
            listing.refuse_address(path)
            found.append(path)
    if not found:
        raise VideoError("there are no videos to predict", "give video files, or folders of them")
    return found


def _names_on_stdin() -> list[Path]:
    text = sys.stdin.buffer.read()
    lines = text.split(b"\0") if b"\0" in text else text.splitlines()
    names = [Path(os.fsdecode(line)) for line in lines if line]
    if not names:
        raise VideoError(
            "standard input named no videos", "for example: find clips -name '*.mp4' | nlzoo predict MODEL -"
        )
    return names


def failures(rows: Sequence[dict]) -> list[str]:
    """A line for each video, or window of one, that has no prediction: its path and why."""
    lines = []
    for row in rows:
        for part in (row, *row.get("windows", ())):
            if "error" in part:
                span = f" ({part['start']:g} to {part['end']:g} s)" if "start" in part else ""
                lines.append(f"{printable(row['path'])}{span} {part['error']}")
    return lines


def summary(rows: Sequence[dict], features: str | Path | None) -> list[dict] | dict:
    """The JSON of the command: the rows, or with `features` its file, how many videos it holds, and the others."""
    if not features:
        return list(rows)
    failed = [row for row in rows if "error" in row]
    return {"features": str(features), "videos": len(rows) - len(failed), "failed": failed}


def _windows(
    every: str | float | None, window: str | float | None, features: str | Path | None, views: ViewSpec
) -> Windows | None:
    """How windows lie, where they are asked for; None for whole videos."""
    if every is None and window is None:
        return None
    if every is None or features or views != ViewSpec():
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


def _check_files(out: str | Path | None, features: str | Path | None, paths: Sequence[Path]) -> None:
    if out and features:
        raise UsageError("--features goes without --out: its videos have no predictions", "leave one of them out")
    if out:
        tables.check(Path(out), inputs=paths)
    if features:
        tables.check(Path(features), FEATURES, paths)


def _whole(
    net: Network, source: loader.Clips, device: torch.device, workers: int, as_features: bool, progress: Progress
) -> Iterator[dict]:
    """A row for each video of `source`, as it is done."""
    make = evaluate.features if as_features else evaluate.probabilities
    for done, (index, numbers, reason) in enumerate(make(net, source, device, workers), 1):
        progress(done, len(source))
        yield {"path": source.items[index].path} | _row(net, numbers, reason, as_features)


def _row(net: Network, numbers: np.ndarray | None, reason: str, as_features: bool = False) -> dict:
    """`{"scores": {class: probability}}`, best first, or `{"features": float32 (C,)}`, or `{"error"}`."""
    if numbers is None:
        return {"error": printable(reason)}
    if not np.isfinite(numbers).all():
        return {"error": "the network's output for this video is not finite (NaN or infinity)"}
    if as_features:
        return {"features": numbers.astype(np.float32)}
    names = evaluate.class_names(net)
    return {"scores": {names[k]: float(numbers[k]) for k in np.argsort(-numbers, kind="stable")}}


def write_features(file: Path, rows: Sequence[dict]) -> None:
    """The features of those `rows` that have some, as `.safetensors` or `.parquet`. Raises as `tables.check`.

    `.safetensors`: `features`, (N, C) float32, and `paths`, JSON, in the metadata.
    """
    tables.check(file, FEATURES)
    paths = [as_text(row["path"]) for row in rows if "features" in row]
    values = np.stack([row["features"] for row in rows if "features" in row])
    if file.suffix.lower() == ".parquet":
        return tables.write_parquet(file, {"path": paths, "features": values})
    from safetensors.numpy import save

    files.write_bytes(file, save({"features": values}, {"paths": json.dumps(paths)}))


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
    (record,) = records.examine([path], workers=1)
    if record.problem:
        return {"path": str(path), "error": printable(record.problem)}
    spans = spacing.spans(record.seconds, net.spec.clip, record.fps)
    items = tuple(listing.Item(str(path), (), start=start, end=end) for start, end in spans)
    source = loader.Clips(Path(), items, net.spec.clip, decoder=decoder)
    made = {}
    for index, scores, reason in evaluate.probabilities(net.eval(), source, device, workers):
        made[index] = _row(net, scores, reason)
        progress(len(made), len(spans))
    rows = [{"start": start, "end": end} | made[index] for index, (start, end) in enumerate(spans)]
    return {"path": str(path), "windows": rows, "segments": segments(rows, record.seconds, net.spec.multi_label)}


def segments(rows: list[dict], seconds: float, multi_label: bool) -> list[dict]:
    """`{"start", "end", "class", "score"}` for each run of windows with the same predicted class.

    A window counts for what lies nearer to its middle than to another's. `score` is the mean over the run. Where a
    video may have several classes, each has its own segments: the runs of windows that give it at least `CHOSEN`.
    """
    middles = [(row["start"] + row["end"]) / 2 for row in rows]
    edges = [0.0, *((a + b) / 2 for a, b in pairwise(middles)), seconds]
    runs: list[tuple[str, list[int]]] = []
    current: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        scores = row.get("scores", {})
        predicted = [name for name, p in scores.items() if p >= metrics.CHOSEN] if multi_label else list(scores)[:1]
        current = {name: current.get(name, []) for name in predicted}
        for name, run in current.items():
            if not run:
                runs.append((name, run))
            run.append(number)
    found = []
    for name, run in runs:
        score = float(np.mean([rows[number]["scores"][name] for number in run]))
        found.append({"start": edges[run[0]], "end": edges[run[-1] + 1], "class": name, "score": score})
    return sorted(found, key=lambda segment: (segment["start"], -segment["score"]))


def as_rows(predictions: Sequence[dict]) -> list[dict]:
    """Rows of a table: path, start and end of a window, answer, score, error, and `p:CLASS` for each class."""
    rows = []
    for prediction in predictions:
        whole = {key: value for key, value in prediction.items() if key != "path"}
        for part in prediction.get("windows", [whole]):
            row = {"path": prediction["path"], **part}
            scores = row.pop("scores", None)
            if scores:
                best, score = next(iter(scores.items()))
                row |= {"answer": best, "score": score} | {f"p:{name}": p for name, p in sorted(scores.items())}
            rows.append(row)
    return rows
