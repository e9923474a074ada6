"""Predictions of a network for labelled videos, the one path of validation, `eval` and `predict`; and `nlzoo.evaluate`.

`outputs` has the rows that they are made of.
"""

import copy
import glob
import os
import shlex
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch

from ..core import archives, tables
from ..core.bounds import one_of
from ..core.errors import UsageError, VideoError
from ..core.model_spec import ModelSpec
from ..core.progress import Progress, Stages, no_progress, no_stages
from ..core.recipe_spec import Recipe
from ..core.skipped import Skipped
from ..core.text import counted, printable, quoted
from ..core.view_spec import ViewSpec, parse_views
from ..networks import checkpoint, download, zoo
from ..networks.network import Network
from ..videos import listing, loader, pool, scanning, sound, tree, video
from ..videos.listing import Item
from . import devices, metrics, provenance
from .engine import Engine
from .outputs import AUTO, Row, gathered, probabilities, videos_at_a_time

ROUND = 64  # videos after which ranks meet, so that none waits for another as long as for one that hangs
CLASSES = ("all", "shared")  # of the videos that `evaluate` measures on


def unheard(spec: ModelSpec) -> str:
    """What a model makes of a video without sound."""
    models = [member.model for member in spec.members] or [spec]
    if not spec.head and any(one.clip.stream == "audio" and not one.head for one in models):
        return "the network of sound gives the shares of the classes in training"
    return "features of sound are taken as the average ones"


def of_rank(source: loader.Clips, engine: Engine, together: int = 1) -> loader.Clips:
    """This rank's part of the videos; see `_numbers_of_rank`."""
    numbers = _numbers_of_rank(len(source), engine.rank, engine.world, together)
    return replace(source, items=tuple(source.items[number] for number in numbers))


def _numbers_of_rank(total: int, rank: int, world: int, together: int) -> list[int]:
    """Every world-th group of so many videos from the rank's own on."""
    firsts = range(rank * together, total, world * together)
    return [number for first in firsts for number in range(first, min(first + together, total))]


@dataclass(frozen=True)
class Predictions:
    """Probabilities that a network gives to labelled videos."""

    items: tuple[Item, ...]  # those that could be read
    scores: np.ndarray  # float64 (N, K) probabilities
    bad: list[Skipped]  # the others
    silent: int = 0  # of `items`, that have no sound (`unheard`)


def predictions(
    net: Network,
    source: loader.Clips,
    device: torch.device,
    workers: int = 0,
    progress: Progress = no_progress,
    engine: Engine | None = None,
    recipe: Recipe = AUTO,
    feed: loader.Loader | None = None,
    together: int = 1,
) -> Predictions:
    """The predictions for the items of `source`, the same on every rank of `engine`.

    Rank r takes every world-th group of so many `together` from the r-th on, so that each is counted once; `feed` loads
    those, where one stays from epoch to epoch. Raises `VideoError` where no video could be read.
    """
    net.eval()
    engine = engine or Engine(device)
    mine = _numbers_of_rank(len(source), engine.rank, engine.world, together)

    def made() -> Generator[Row, None, None]:
        part = feed or of_rank(source, engine, together)
        for done, (index, scores, reason) in enumerate(probabilities(net, part, device, workers, recipe), 1):
            progress(done, len(mine))
            yield mine[index], scores, reason

    rows: list[Row] = []
    most = len(_numbers_of_rank(len(source), 0, engine.world, together))
    with closing(made()) as coming:
        for _ in range(0, most, ROUND):
            rows += engine.all_gather(list(islice(coming, ROUND)))
    return _of_rows(rows, source.items)


def _of_rows(rows: Iterable[Row], items: Sequence[Item]) -> Predictions:
    """Raises `VideoError` where none of the `items` could be read."""
    rows = sorted(rows, key=lambda row: row[0])
    good, bad = gathered(rows, items)
    if not good:
        first = f"the first: {bad[0]}" if bad else "nlzoo check shows what is there"
        raise VideoError(f"none of the {len(items)} videos to evaluate on could be read", first)
    silent = sum(scores is not None and reason == sound.NONE for _, scores, reason in rows)
    return Predictions(tuple(items[index] for index in good), np.stack(list(good.values())), bad, silent)


def validate(
    net: Network,
    source: loader.Clips,
    device: torch.device,
    workers: int = 0,
    progress: Progress = no_progress,
    engine: Engine | None = None,
    recipe: Recipe = AUTO,
    feed: loader.Loader | None = None,
) -> tuple[dict, list[Skipped]]:
    """`(figures, the videos that could not be read)`; see `predictions`.

    The figures: `metrics.of_validation`.
    """
    made = predictions(net, source, device, workers, progress, engine, recipe, feed)
    return metrics.of_validation(made.scores, made.items, net.spec.classes, net.spec.multi_label), made.bad


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


# --- nlzoo.evaluate


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured."""

    figures: dict  # ready for JSON (docs/answers.md)
    predictions: Predictions
    skipped: tuple[Skipped, ...]  # videos without a prediction
    notes: tuple[str, ...]  # what a reader of the figures should know first


def evaluate(
    model: str | Path | Network,
    videos: str | Path,
    views: str | ViewSpec | None = None,
    control: bool = False,
    classes: str = "all",
    out: str | Path | None = None,
    decoder: str = "auto",
    device: str | torch.device | None = None,
    stages: Stages = no_stages,
    engine: Engine | None = None,
    threshold: float | None = None,
    predicted: str | Path | None = None,
) -> Evaluation:
    """Measures a model on labelled videos: on `test` where there is such a split, else on `val`, else on all.

    `model`: a network, or what `download.locate` finds. `views`: None for the model's own (`ClipSpec.clips`).
    `control`: also with frames shuffled, and with one frame alone. `classes`: `shared` leaves out videos of classes
    that the model does not know. `out`: a file for `as_rows`. `engine`: of several ranks, each of which takes a part of
    the videos; all return the same. `threshold`: as for `with_threshold`. `predicted`: a .jsonl file of
    `nlzoo.predict`, or a pattern of several, those of shards: no video is opened. Raises `UsageError` for labels that
    the model does not know, and for all that cannot be, before a video is opened.
    """
    views = parse_views(views) if isinstance(views, str) else views
    one_of(classes, CLASSES, "--classes")
    video.check_decoder(decoder)
    files_read = _prediction_files(predicted, control)
    if out:
        tables.check(Path(out), inputs=[Path(videos), *files_read])
    engine = engine or Engine(devices.resolve(device))
    net, folder = open_network(model, engine.device, videos, "eval")
    net = with_threshold(net, threshold)
    names, multi_label = class_names(net), net.spec.multi_label
    with engine.first_rank_first(), stages("scanning") as progress:
        dataset = scanning.scan(Path(videos), (), progress)
    items = _measurable(dataset, net, names, classes)
    engine.agree("the videos", items)
    views = views or net.spec.clip.views
    source = loader.Clips(dataset.root, items, net.spec.clip, views=views, decoder=decoder)
    workers = pool.default_workers(str(engine.device))

    def predict(order: str) -> Predictions:
        shown = replace(source, views=replace(views, order=order))
        with stages("evaluating" if order == "true" else f"evaluating, {metrics.CONTROLS[order]}") as progress:
            return predictions(net, shown, engine.device, workers, progress, engine, together=videos_at_a_time(views))

    made = read_predictions(files_read, dataset.root, items, names) if predicted else predict("true")
    skipped = (*dataset.skipped, *made.bad)
    figures = metrics.full(made.scores, made.items, names, multi_label, net.spec.label_threshold)
    figures |= {"views": views.num_views, "look": str(views), "skipped": len(skipped)}
    lists = provenance.training_lists(folder) if folder else []
    figures |= _without_training_videos(lists, dataset.root, made, names, net.spec)
    if control:
        compared = {order: compare_to_control(made, predict(order), names, multi_label) for order in metrics.CONTROLS}
        figures["control"] = compared
    if out and engine.main:
        tables.write(Path(out), as_rows(made, names, dataset.skipped))
    notes = [*model_notes(net, folder), *scanning.left_out(dataset), *_notes_of_training(folder, lists)]
    if made.silent:
        notes.append(f"{counted(made.silent, 'video')} without sound: {unheard(net.spec)}")
    left_out = len(_items(dataset)) - len(items)
    if left_out:
        notes.append(f"left out {counted(left_out, 'video')} of classes that the model does not know")
    return Evaluation(figures, made, skipped, tuple(notes))


def _prediction_files(pattern: str | Path | None, control: bool) -> list[Path]:
    """The files that a pattern names. Raises `UsageError` where there are none, or one that is no JSON lines."""
    if pattern is None:
        return []
    if control:
        raise UsageError("--predicted goes without --control, which opens the videos", "leave one of them out")
    paths = [Path(pattern)] if Path(pattern).is_file() else [Path(name) for name in sorted(glob.glob(str(pattern)))]
    if not paths:
        raise UsageError(f"there is no file {printable(pattern)}", "for example --predicted 'answers-*-of-00016.jsonl'")
    if wrong := [file for file in paths if file.suffix.lower() != ".jsonl"]:
        raise UsageError(f"{printable(wrong[0])} is no .jsonl", "nlzoo predict --out FILE.jsonl writes one")
    return paths


def read_predictions(paths: Sequence[Path], root: Path, items: Sequence[Item], names: Sequence[str]) -> Predictions:
    """The predictions for `items` from JSON lines of `nlzoo.predict`, whichever shards they are of.

    Raises `UsageError` where a video is missing, another model has answered, or an item is a part of a video.
    """
    if any(item.start is not None or item.end is not None for item in items):
        raise UsageError(
            "the list has parts of videos, and predict answers whole ones", "nlzoo eval without --predicted"
        )
    position = {os.path.abspath(root / item.path): number for number, item in enumerate(items)}
    rows: dict[int, Row] = {}
    for row in _answers(paths, position, names):
        if row[1] is not None or row[0] not in rows:  # one shard that could read it is enough
            rows[row[0]] = row
    missing = [item for number, item in enumerate(items) if number not in rows]
    if missing:
        count = counted(len(missing), "video")
        raise UsageError(
            f"{count} of {len(items):,} have no prediction, the first {printable(missing[0].path)}",
            "is a shard missing? nlzoo predict on the same videos, with --shard K/N for each K",
        )
    return _of_rows(rows.values(), items)


def _answers(paths: Sequence[Path], position: Mapping[str, int], names: Sequence[str]) -> Iterator[Row]:
    """The lines of videos in `position`, which has their indices by path, as rows. Raises `UsageError`."""
    columns = [f"p:{name}" for name in names]
    for file in paths:
        for row in tables.read_lines(file):
            number = position.get(os.path.abspath(row["path"]))
            if number is None:
                continue
            if "error" in row:
                yield number, None, row["error"]
                continue
            if {key for key in row if key.startswith("p:")} != {*columns}:
                raise UsageError(f"{printable(file)} has answers of another model", "name the model that gave them")
            scores = np.array([row[column] for column in columns], float)
            if np.isfinite(scores).all():  # null and NaN are no answer
                yield number, scores, ""


def open_network(
    model: str | Path | Network, device: torch.device, videos: str | Path, command: str
) -> tuple[Network, Path | None]:
    """`(network on device in eval mode, its model folder)`; no folder for a network that is given.

    Raises as `download.locate`; where `model` is a video and `videos` could be the model, the error says so.
    """
    if isinstance(model, torch.nn.Module):
        return model.to(device).eval(), None
    if zoo.find(str(model)) is None and _is_of_videos(Path(model)):
        kind = "a folder of videos" if archives.is_folder(model) else "a video, or a list of them"
        swapped = videos if zoo.find(str(videos)) else "MODEL"
        raise UsageError(
            f"{printable(model)} is not a model: it is {kind}",
            f"the model comes first: {shlex.join(['nlzoo', command, str(swapped), str(model)])}",
        )
    folder = download.locate(str(model))
    return checkpoint.load_model(folder).to(device), folder


def _is_of_videos(path: Path) -> bool:
    """Whether this is a video by its name, a list, or a folder that holds videos."""
    if archives.is_folder(path):
        return bool(tree.walk(path).videos)
    return path.suffix.lower() in {*video.EXTENSIONS, ".csv", ".tsv", ".txt"}


def with_threshold(net: Network, threshold: float | None) -> Network:
    """The network with another threshold for its labels; None: its own. Raises `UsageError` where it has none."""
    if threshold is None:
        return net
    if not net.spec.multi_label:
        raise UsageError(
            "--threshold is for a model of videos with several labels, and this one gives each video one class",
            "omit --threshold",
        )
    changed = copy.copy(net)  # the same weights
    changed.spec = replace(net.spec, threshold=threshold)
    return changed


def class_names(net: Network) -> tuple[str, ...]:
    """The names of the outputs; their numbers where the network has no names."""
    return net.spec.classes or tuple(str(number) for number in range(net.spec.num_outputs))


def _items(dataset: scanning.Dataset) -> list[Item]:
    """The items of `test`, or else of `val`, or else all."""
    parts = (scanning.items_in(dataset, part) for part in (listing.TEST, listing.VAL))
    return next(filter(None, parts), list(dataset.items))


def _measurable(dataset: scanning.Dataset, net: Network, names: Sequence[str], classes: str) -> tuple[Item, ...]:
    """The items to measure on, with only labels that the network knows. Raises `UsageError` where there are others."""
    items = _items(dataset)
    if dataset.multi_label and not net.spec.multi_label:
        raise UsageError(
            "the model gives each video one class, and these videos have several, or none",
            "measure it on videos of one label",
        )
    known, labels = set(names), {label for item in items for label in item.labels}
    shared, unknown = sorted(labels & known), sorted(labels - known)
    if not unknown:
        return tuple(items)
    if classes != "shared" or not shared:
        _refuse_classes(net, names, shared, unknown)
    rows = [replace(item, labels=tuple(label for label in item.labels if label in known)) for item in items]
    return tuple(row for row in rows if row.labels or dataset.multi_label)


def _refuse_classes(net: Network, names: Sequence[str], shared: Sequence[str], unknown: Sequence[str]) -> NoReturn:
    """Raises `UsageError` on labels that the network does not know."""
    if not net.spec.classes:
        raise UsageError(
            f"the model has no class names, only {counted(len(names), 'output')}; these videos have {quoted(unknown)}",
            "fine-tune it on videos first (nlzoo finetune or probe), name its outputs (nlzoo import --labels), or give "
            "a list with numbers of outputs as labels",
        )
    hint = f"its classes: {quoted(names)}"
    if shared:
        both = counted(len(shared), "class", "classes")
        hint = f"--classes shared measures on the {both} that both have: {quoted(shared)}"
    missing = counted(len(unknown), "class", "classes")
    raise UsageError(f"the model does not know {missing} of these videos: {quoted(unknown)}", hint)


def _without_training_videos(
    lists: Sequence[listing.Listing], root: Path, made: Predictions, names: Sequence[str], spec: ModelSpec
) -> dict:
    """`trained_on`: how many of the videos trained the model, None where unknown; `others`: figures of the rest."""
    if not lists:
        return {"trained_on": None}
    seen = np.array(provenance.trained_on(lists, root, made.items))
    if not seen.any():
        return {"trained_on": 0}
    others = [item for item, known in zip(made.items, seen) if not known]
    measured = made.scores[~seen], others, names, spec.multi_label, spec.label_threshold
    return {"trained_on": int(seen.sum()), "others": metrics.full(*measured) if others else None}


def _notes_of_training(folder: Path | None, lists: Sequence[listing.Listing]) -> Iterator[str]:
    """Whether copies of the videos that trained the model may be among those of `_without_training_videos`."""
    gone = sum(len(listed.skipped) for listed in lists)
    if gone or (folder and provenance.run_of(folder) and not lists):
        which = counted(gone, "video") if lists else "the videos"
        yield f"{which} of the model's run cannot be found: copies of them are not recognised here"


def model_notes(net: Network, folder: Path | None) -> Iterator[str]:
    """What a reader of predictions should know of the model."""
    if note := zoo.unfinished_note(folder):
        yield note
    if not net.spec.classes and net.spec.inflation.init == "imported":
        yield (
            "the model has no class names: numbers of its outputs stand for them; nlzoo import --labels names them, "
            "nlzoo finetune gives it classes of yours"
        )
    elif not net.spec.classes:
        yield (
            "the model was never trained on classes of yours: numbers stand for the outputs of its image network; "
            "nlzoo finetune trains it"
        )
