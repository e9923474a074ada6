"""Numbers and answers from a network and videos: one path for validation, `eval` and `predict`.

Every view gets its own softmax (or sigmoids, where a video may have several labels); a video's probabilities are their
mean (paper, section 5).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from ..core.errors import OutOfMemory, UsageError, VideoError
from ..core.recipe_spec import Recipe
from ..core.text import printable
from ..videos import clips, listing, loader
from . import metrics
from .engine import Engine
from .recipe import autocast

CLIPS = 8  # in a forward pass
AUTO = Recipe()  # bf16 on a GPU that has it, float32 elsewhere


def resolve_device(name: str | None) -> torch.device:
    """The device asked for, or the GPU when there is one. Raises `UsageError` for one that is not here."""
    name = name or ("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    try:
        torch.empty(1, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"device {name!r} cannot be used here: {str(error).splitlines()[0]}",
            "leave --device out to take what there is; nlzoo doctor shows it",
        ) from None


@contextmanager
def memory_errors(what: str):
    """CUDA out of memory as `MemoryError_`."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise OutOfMemory(f"the GPU ran out of memory with {what}", "lower --batch, --frames or --size") from error


@dataclass(frozen=True)
class Predictions:
    """What a network said of labelled videos."""

    items: tuple[listing.Item, ...]  # those that could be read
    scores: np.ndarray  # float64 (N, K) probabilities
    bad: list[tuple[str, str]]  # (path, reason) of the others


def probabilities(
    net: nn.Module, source: loader.Clips, device: torch.device, workers: int = 0, recipe: Recipe = AUTO
) -> Iterator[tuple[int, np.ndarray | None, str]]:
    """`(index, float64 (K,) probabilities, "")` for each video in order of its batch, or `(index, None, reason)`.

    `net` is in eval mode on `where`; its `spec` says which clips it wants, `rules` the precision.
    """

    def forward(clips_):
        logits = net(clips_).cpu().double()  # not on the device: Metal has no float64
        return logits.sigmoid() if net.spec.multi_label else logits.softmax(-1)

    return _looked(forward, net.spec.clip, source, device, workers, recipe)


def features(
    net: nn.Module, source: loader.Clips, device: torch.device, workers: int = 0, recipe: Recipe = AUTO
) -> Iterator[tuple[int, np.ndarray | None, str]]:
    """The same with what the last layer sees, float64 (C,): the mean over a video's views, frames and positions of the last stage."""

    def forward(clips_):
        return net.forward_head(net.forward_features(clips_), pre_logits=True).cpu().double()

    return _looked(forward, net.spec.clip, source, device, workers, recipe)


@torch.inference_mode()
def _looked(forward, clip, source, device, workers, recipe):
    """The mean over a video's views of `forward`'s rows, `CLIPS` views at a time."""
    distributed_errors = max(1, CLIPS // source.looks.views)
    keys = [
        [(-1, i) for i in range(start, min(start + distributed_errors, len(source)))]
        for start in range(0, len(source), distributed_errors)
    ]
    for indices, pixels, bad in loader.load(source, keys, workers):
        if pixels is not None:
            videos, looks = pixels.shape[:2]
            with autocast(recipe, device), memory_errors(f"{min(CLIPS, videos * looks)} clips"):
                rows = torch.cat(
                    [forward(clips.to_input(part.to(device), clip)) for part in pixels.flatten(0, 1).split(CLIPS)]
                )
            yield from ((i, row, "") for i, row in zip(indices, rows.view(videos, looks, -1).mean(1).numpy()))
        yield from ((i, None, reason) for i, reason in bad)


def answers(
    net: nn.Module,
    source: loader.Clips,
    device: torch.device,
    workers: int = 0,
    progress=lambda done, total: None,
    engine: Engine | None = None,
    recipe: Recipe = AUTO,
) -> Predictions:
    """What `net` says of the items of `source`, on every rank of `engine`. Raises `VideoError` where none could be read.

    Each rank looks at every so-manieth video, so that each is counted once.
    """
    net.eval()
    engine = engine or Engine(device)
    mine = range(engine.rank, len(source), engine.world)
    own, found = replace(source, items=tuple(source.items[i] for i in mine)), []
    for index, probs, reason in probabilities(net, own, device, workers, recipe) if own.items else ():
        found.append((mine[index], probs, reason))
        progress(len(found), len(own))
    found = sorted(engine.all_gather(found), key=lambda answer: answer[0])
    rows = {index: probs for index, probs, _ in found if probs is not None}
    bad = [(source.items[index].path, reason) for index, probs, reason in found if probs is None]
    if not rows:
        raise VideoError(
            f"none of the {len(source)} videos to evaluate on could be read",
            f"the first: {printable(bad[0][0])}: {printable(bad[0][1])}",
        )
    return Predictions(tuple(source.items[i] for i in rows), np.stack(list(rows.values())), bad)


def beside(true: Predictions, other: Predictions, classes: Sequence[str], multi_label: bool) -> dict:
    """`metrics.brief` of a control, and `gain`: the 95 % interval of what `true` is better by, on the videos that both could read."""
    place = {item: n for n, item in enumerate(other.items)}
    mine = [n for n, item in enumerate(true.items) if item in place]
    items = [true.items[n] for n in mine]
    scores = other.scores[[place[item] for item in items]]
    return {
        **metrics.brief(scores, items, classes, multi_label),
        "gain": metrics.difference(true.scores[mine], scores, items, classes, multi_label),
    }


def as_rows(said: Predictions, classes: Sequence[str], skipped: Sequence[tuple[str, str]] = ()) -> list[dict]:
    """A row for each video, for `tables.write`: path, part, group, labels, answer, its score, whether it is right, `p:CLASS` for each class.

    `skipped`: `(path, reason)` of those that were not asked about; `error` says why one has no answer.
    """
    names = list(classes)
    rows = []
    for item, scores in zip(said.items, said.scores):
        best = int(scores.argmax())
        rows.append(
            {
                "path": item.path,
                "start": item.start,
                "end": item.end,
                "group": item.group,
                "labels": ";".join(item.labels),
                "answer": names[best],
                "score": float(scores[best]),
                "right": names[best] in item.labels,
                "error": "",
            }
            | {f"p:{c}": float(p) for c, p in zip(names, scores)}
        )
    return rows + [{"path": path, "error": reason} for path, reason in [*skipped, *said.bad]]


def evaluate(
    net: nn.Module,
    source: loader.Clips,
    device: torch.device,
    workers: int = 0,
    progress=lambda done, total: None,
    engine: Engine | None = None,
    recipe: Recipe = AUTO,
) -> tuple[dict, list[tuple[str, str]]]:
    """`(metrics.brief and the number of videos, [(path, reason) of videos that could not be read])`; see `answers`."""
    said = answers(net, source, device, workers, progress, engine, recipe)
    return {
        "videos": len(said.items),
        **metrics.brief(said.scores, said.items, net.spec.classes, net.spec.multi_label),
    }, said.bad
