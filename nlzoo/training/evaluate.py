"""Predictions of a network for labelled videos: the one path of validation, `eval` and `predict`.

Each view gets its own softmax (or sigmoids, where a video may have several labels). The prediction for a video is the
mean over its views (paper, section 5).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import repeat

import numpy as np
import torch

from ..core.errors import OutOfMemory, UsageError, VideoError
from ..core.progress import Progress, no_progress
from ..core.recipe_spec import Recipe
from ..core.skipped import Skipped
from ..networks.network import Network
from ..videos import clips, loader, scanning
from ..videos.listing import Item
from . import metrics
from .engine import Engine
from .recipe import autocast

CLIPS = 8  # in a forward pass
AUTO = Recipe()  # bf16 on a GPU that has it, otherwise float32

Row = tuple[int, np.ndarray | None, str]  # index of a video, its numbers, or else the reason why there are none


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The given device, or else the GPU where there is one. Raises `UsageError` for one that cannot compute here."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=device).item()  # a meta tensor has no value
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"device {str(device)!r} cannot be used here: {str(error).splitlines()[0]}",
            "omit --device to take the GPU, or else the CPU; nlzoo doctor shows what is here",
        ) from None
    return torch.device(device)


@contextmanager
def memory_errors(what: str) -> Iterator[None]:
    """CUDA out of memory as `OutOfMemory`."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise OutOfMemory(f"the GPU ran out of memory with {what}", "lower --batch, --frames or --size") from error


def probabilities(
    net: Network, source: loader.Clips, device: torch.device, workers: int = 0, recipe: Recipe = AUTO
) -> Iterator[Row]:
    """For each video, as it is done, `(index, float64 (K,) probabilities, "")`, or `(index, None, reason)`.

    `net` is in eval mode on `device`; `recipe` says the precision.
    """

    def forward(inputs: torch.Tensor) -> torch.Tensor:
        logits = net(inputs).cpu().double()  # on the CPU: Metal has no float64
        return logits.sigmoid() if net.spec.multi_label else logits.softmax(-1)

    return _mean_over_views(forward, source, device, workers, recipe)


def features(
    net: Network, source: loader.Clips, device: torch.device, workers: int = 0, recipe: Recipe = AUTO
) -> Iterator[Row]:
    """The same with float64 `(C,)` inputs of the last layer: means over the views, frames and positions of a video."""

    def forward(inputs: torch.Tensor) -> torch.Tensor:
        return net.forward_head(net.forward_features(inputs), pre_logits=True).cpu().double()

    return _mean_over_views(forward, source, device, workers, recipe)


@torch.inference_mode()
def _mean_over_views(
    forward: Callable[[torch.Tensor], torch.Tensor],
    source: loader.Clips,
    device: torch.device,
    workers: int,
    recipe: Recipe,
) -> Iterator[Row]:
    """The mean of `forward`'s rows over the views of each video; `CLIPS` views in a pass."""
    keys = [(-1, index) for index in range(len(source))]
    videos_per_pass = max(1, CLIPS // source.views.num_views)
    batches = [keys[start : start + videos_per_pass] for start in range(0, len(keys), videos_per_pass)]
    for indices, pixels, bad in loader.load(source, batches, workers):
        if pixels is not None:
            parts = pixels.flatten(0, 1).split(CLIPS)
            with autocast(recipe, device), memory_errors(f"{len(parts[0])} clips"):
                rows = torch.cat([forward(clips.to_input(part.to(device), source.clip)) for part in parts])
            yield from zip(indices, rows.view(*pixels.shape[:2], -1).mean(1).numpy(), repeat(""))
        yield from ((index, None, reason) for index, reason in bad)


@dataclass(frozen=True)
class Predictions:
    """Probabilities that a network gives to labelled videos."""

    items: tuple[Item, ...]  # those that could be read
    scores: np.ndarray  # float64 (N, K) probabilities
    bad: list[Skipped]  # the others


def predictions(
    net: Network,
    source: loader.Clips,
    device: torch.device,
    workers: int = 0,
    progress: Progress = no_progress,
    engine: Engine | None = None,
    recipe: Recipe = AUTO,
) -> Predictions:
    """The predictions for the items of `source`, the same on every rank of `engine`.

    Rank r takes every world-th video from the r-th on, so that each is counted once. Raises `VideoError` where no video
    could be read.
    """
    net.eval()
    engine = engine or Engine(device)
    mine = range(engine.rank, len(source), engine.world)
    own = replace(source, items=tuple(source.items[index] for index in mine))
    rows: list[Row] = []
    for index, scores, reason in probabilities(net, own, device, workers, recipe):
        rows.append((mine[index], scores, reason))
        progress(len(rows), len(own))
    rows = sorted(engine.all_gather(rows), key=lambda row: row[0])
    bad = [
        Skipped(source.items[index].path, scanning.UNREADABLE, reason)
        for index, scores, reason in rows
        if scores is None
    ]
    good = {index: scores for index, scores, _ in rows if scores is not None}
    if not good:
        first = f"the first: {bad[0]}" if bad else "nlzoo check shows what is there"
        raise VideoError(f"none of the {len(source)} videos to evaluate on could be read", first)
    return Predictions(tuple(source.items[index] for index in good), np.stack(list(good.values())), bad)


def validate(
    net: Network,
    source: loader.Clips,
    device: torch.device,
    workers: int = 0,
    progress: Progress = no_progress,
    engine: Engine | None = None,
    recipe: Recipe = AUTO,
) -> tuple[dict, list[Skipped]]:
    """`(figures, the videos that could not be read)`; see `predictions`.

    The figures: `metrics.brief`, and `videos`, `groups` and `interval` (`metrics.interval`).
    """
    made = predictions(net, source, device, workers, progress, engine, recipe)
    measured = made.scores, made.items, net.spec.classes, net.spec.multi_label
    counts = {"videos": len(made.items), "groups": metrics.num_groups(made.items)}
    return {**counts, **metrics.brief(*measured), "interval": metrics.interval(*measured)}, made.bad


def compare_to_control(
    true: Predictions, control: Predictions, classes: Sequence[str], multi_label: bool
) -> dict[str, object]:
    """`metrics.brief` of the control, and `gain`: the 95 % interval of how much better `true` is.

    Both on the videos that both could read.
    """
    position = {item: row for row, item in enumerate(control.items)}
    both = [row for row, item in enumerate(true.items) if item in position]
    items = [true.items[row] for row in both]
    scores = control.scores[[position[item] for item in items]]
    gain = metrics.difference(true.scores[both], scores, items, classes, multi_label)
    return {**metrics.brief(scores, items, classes, multi_label), "gain": gain}


def as_rows(
    predictions: Predictions, classes: Sequence[str], skipped: Sequence[Skipped] = ()
) -> list[dict[str, object]]:
    """A row for each video, for `tables.write`: path, start, end, group, labels, answer, score, right, `p:CLASS`.

    `skipped`: videos that were not evaluated. `error` says why a video has no prediction.
    """
    rows: list[dict[str, object]] = []
    for item, scores in zip(predictions.items, predictions.scores):
        best = int(scores.argmax())
        row: dict[str, object] = {
            "path": item.path,
            "start": item.start,
            "end": item.end,
            "group": item.group,
            "labels": ";".join(item.labels),
            "answer": classes[best],
            "score": float(scores[best]),
            "right": classes[best] in item.labels,
            "error": "",
        }
        rows.append(row | {f"p:{name}": float(p) for name, p in zip(classes, scores)})
    return rows + [{"path": s.path, "error": s.reason} for s in [*skipped, *predictions.bad]]
