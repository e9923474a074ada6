"""Class names and probabilities for videos, through the view code of validation: of whole videos, and of windows that slide over long ones.

Unusual: a window is a part of a video like those of a list, so that it is read, and may fail, like any other.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..core import files, tables
from ..core.errors import UsageError, VideoError
from ..core.text import as_text, printable
from ..core.view_spec import ClipSpec, ViewSpec
from ..training import evaluate, metrics
from ..videos import listing, loader, records

ONE_VIEW = ViewSpec()
FEATURES = (".safetensors", ".parquet")
MOST_WINDOWS = 100_000  # of one video


def find(paths: Sequence[Path]) -> list[Path]:
    """The files to answer for: files as they are given, folders as the videos inside, `-` as the names on standard input. Raises `VideoError`.

    Names on standard input stand one on a line, or between NUL bytes (`find … -print0`).
    """
    found = []
    for path in paths:
        if str(path) == "-":
            found += _named(sys.stdin.buffer.read())
        elif path.is_dir():
            inside, _ = listing.walk(path)
            if not inside:
                raise VideoError(f"{printable(path)} has no videos", "give video files, or a folder of them")
            found += [path / name for name in inside]
        else:
            found.append(path)
    return found


def _named(text):
    names = [Path(os.fsdecode(name)) for name in (text.split(b"\0") if b"\0" in text else text.splitlines()) if name]
    if not names:
        raise VideoError(
            "standard input named no videos", "for example: find clips -name '*.mp4' | nlzoo predict MODEL -"
        )
    return names


def predict(
    net: nn.Module,
    paths: Sequence[Path],
    device: torch.device,
    workers: int = 0,
    looks: ViewSpec = ONE_VIEW,
    decoder: str = "auto",
) -> Iterator[dict]:
    """For each of `paths`, as it is done: `{"path", "scores": {class: probability}}`, best first, or `{"path", "error"}`."""
    net.eval()
    for index, scores, reason in evaluate.probabilities(net, _whole(net, paths, looks, decoder), device, workers):
        yield {"path": str(paths[index])} | (
            {"error": printable(reason)} if scores is None else {"scores": _ranked(net, scores)}
        )


def features(
    net: nn.Module,
    paths: Sequence[Path],
    device: torch.device,
    workers: int = 0,
    looks: ViewSpec = ONE_VIEW,
    decoder: str = "auto",
) -> Iterator[dict]:
    """For each of `paths`: `{"path", "features": float32 (C,)}`, what the last layer sees (`evaluate.features`), or `{"path", "error"}`."""
    net.eval()
    for index, row, reason in evaluate.features(net, _whole(net, paths, looks, decoder), device, workers):
        yield {"path": str(paths[index])} | (
            {"error": printable(reason)} if row is None else {"features": row.astype(np.float32)}
        )


def _whole(net, paths, looks, decoder):
    return loader.Clips(
        Path(), tuple(listing.Item(str(p), ()) for p in paths), net.spec.clip, views=looks, decoder=decoder
    )


def _ranked(net, scores):
    names = net.spec.classes or tuple(str(k) for k in range(net.spec.num_outputs))
    return {names[k]: float(scores[k]) for k in np.argsort(-scores, kind="stable")}


def write_features(file: Path, rows: Sequence[dict]) -> None:
    """Rows of `features` that hold some: `.safetensors` (`features` (N, C) float32, and `paths`, JSON, in the metadata) or `.parquet`.

    Raises `DiskError`, and what `tables.check` raises.
    """
    tables.check(file, FEATURES)
    paths = [as_text(row["path"]) for row in rows if "features" in row]
    values = np.stack([row["features"] for row in rows if "features" in row])
    if file.suffix.lower() == ".parquet":
        return tables.write_parquet(file, {"path": paths, "features": values})
    from safetensors.numpy import save

    files.write_bytes(file, save({"features": values}, {"paths": json.dumps(paths)}))


# --- long videos


@dataclass(frozen=True)
class Windows:
    """How windows lie over a video."""

    every: float  # seconds from the start of one to the next
    length: float | None = (
        None  # seconds; None: as long as the network's clip, or twice `every` where its frames are spread
    )

    def __post_init__(self):
        for name, value in (("--every", self.every), ("--window", self.length)):
            if value is not None and not 0.01 <= value <= 86400:
                raise UsageError(f"{name} is {value:g} s; it must be from 0.01 s to a day", f"for example {name} 1s")

    def over(self, seconds: float, clip: ClipSpec, fps: float) -> list[tuple[float, float]]:
        """`(start, end)` in seconds of each; the last ends where the video does. Raises `UsageError` for more than `MOST_WINDOWS`."""
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


def windows(
    net: nn.Module,
    path: Path,
    device: torch.device,
    how: Windows,
    workers: int = 0,
    decoder: str = "auto",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict:
    """`{"path", "windows": [{"start", "end", "scores"}], "segments": [{"start", "end", "class", "score"}]}` of one video, times in seconds.

    A window that cannot be read has `error` for `scores`; a video that cannot is `{"path", "error"}`. See `segments`.
    """
    net.eval()
    (record,) = records.examine([path], workers=1)
    if record.problem:
        return {"path": str(path), "error": printable(record.problem)}
    spans = how.over(record.seconds, net.spec.clip, record.fps)
    source = loader.Clips(
        Path(),
        tuple(listing.Item(str(path), (), start=start, end=end) for start, end in spans),
        net.spec.clip,
        decoder=decoder,
    )
    rows = []
    for index, scores, reason in sorted(
        _counted(evaluate.probabilities(net, source, device, workers), len(spans), progress), key=lambda row: row[0]
    ):
        start, end = spans[index]
        rows.append(
            {"start": start, "end": end}
            | ({"error": printable(reason)} if scores is None else {"scores": _ranked(net, scores)})
        )
    return {"path": str(path), "windows": rows, "segments": segments(rows, record.seconds, net.spec.multi_label)}


def _counted(rows, total, progress):
    for done, row in enumerate(rows, 1):
        progress(done, total)
        yield row


def segments(rows: list[dict], seconds: float, multi_label: bool) -> list[dict]:
    """What windows say of the whole video: `{"start", "end", "class", "score"}`, one for each run of windows with the same answer.

    A window speaks for what lies nearer to its middle than to another's. `score` is the mean over the run. Where a video may have
    several classes, each has its own segments: the runs of windows that give it at least `metrics.CHOSEN`.
    """
    middles = [(row["start"] + row["end"]) / 2 for row in rows]
    edges = [0.0, *((a + b) / 2 for a, b in pairwise(middles)), seconds]
    runs, open_ = [], {}
    for n, row in enumerate(rows):
        scores = row.get("scores", {})
        given = [c for c, p in scores.items() if p >= metrics.CHOSEN] if multi_label else list(scores)[:1]
        open_ = {name: open_.get(name, []) for name in given}
        for name, run in open_.items():
            if not run:
                runs.append((name, run))
            run.append(n)
    summary = [
        {
            "start": edges[run[0]],
            "end": edges[run[-1] + 1],
            "class": name,
            "score": float(np.mean([rows[n]["scores"][name] for n in run])),
        }
        for name, run in runs
    ]
    return sorted(summary, key=lambda s: (s["start"], -s["score"]))


def as_rows(answers: Sequence[dict]) -> list[dict]:
    """Answers of `predict` or `windows` as rows of a table: path, start and end of a window, answer, score, error, and `p:CLASS` for each class."""
    flat = [
        {"path": a["path"], **part}
        for a in answers
        for part in a.get("windows", [{k: v for k, v in a.items() if k != "path"}])
    ]
    return [_row(row) for row in flat]


def _row(row):
    scores = row.pop("scores", None)
    if scores:
        row |= {"answer": next(iter(scores)), "score": next(iter(scores.values()))} | {
            f"p:{name}": p for name, p in sorted(scores.items())
        }
    return row
