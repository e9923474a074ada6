"""Commands on videos: check, prepare."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.errors import UsageError
from ..core.text import counted, printable
from . import console, processes
from .options import Classes, Json, Val, Videos, fetched, refuse_early
from .processes import Part

if TYPE_CHECKING:
    from ..apps.prepare import Prepared
    from ..core.skipped import Skipped
    from ..videos import scanning

_CLASSES, _SKIPPED = 40, 20  # rows that are shown


def check(
    videos: Videos,
    deep: Annotated[bool, typer.Option("--deep", help="Decode every frame of every file instead of three.")] = False,
    classes: Classes = None,
    val: Val = "0.25",
    seed: Annotated[int, typer.Option(min=0, help="Of the split.")] = 0,
    json: Json = False,
) -> None:
    """Find what is wrong with videos before training: broken files, copies, leaks, splits. Exit code 3: not ready."""
    refuse_early(None, videos, val=val)
    videos = fetched(videos)

    from ..apps import check as examiner
    from ..videos import listing, records

    level = records.ALL if deep else records.THREE
    with console.progress("decoding every frame" if deep else "reading each file") as bar:
        report = examiner.look(
            listing.read(videos, classes or (), val), level, progress=bar, log=console.warn, val=val, seed=seed
        )
    console.result(examiner.to_json(report), examiner.in_words(report))
    if not report.could_train:
        raise typer.Exit(3)


def prepare(
    videos: Videos,
    out: Annotated[Path, typer.Argument(help="A new folder, or one that this command has begun.")],
    size: Annotated[int, typer.Option(help="Shorter side, pixels; smaller videos keep theirs.")] = 256,
    shard: Part = "1/1",
    json: Json = False,
) -> None:
    """Copy videos into small ones that are fast to read clips from; train on OUT. Run it again to resume."""
    refuse_early(None, videos)
    videos = fetched(videos)

    from ..apps import prepare as preparing

    if processes.world() > 1:
        prepared, target = _prepare_by_ranks(videos, out, size, shard)
    else:
        with console.progress("preparing") as bar:
            prepared, target = preparing.prepare_source(videos, out, size, bar, shard)
    warn_of_skipped(prepared.skipped)
    values = dataclasses.asdict(prepared)
    del values["mapping"]
    console.result({"videos": str(target), **values}, preparing.in_words(prepared, target, shard))


def _prepare_by_ranks(videos: Path, out: Path, size: int, shard: str) -> "tuple[Prepared, Path]":
    import torch

    from ..apps import prepare as preparing
    from ..training import engine

    if shard != "1/1":
        raise UsageError("--shard goes without a launcher: each of its processes has a part already", "leave it out")
    processes.begin(1, "cpu", "")
    with engine.distributed_errors(), console.progress("preparing") as bar:
        return preparing.prepare_by_ranks(videos, out, size, bar, engine.begin(torch.device("cpu")))


def warn_of_skipped(skipped: Sequence["Skipped"]) -> None:
    """The first of the videos that were left out, and how many more."""
    for one in skipped[:_SKIPPED]:
        console.warn(f"skipped {one}")
    if len(skipped) > _SKIPPED:
        console.warn(f"and {len(skipped) - _SKIPPED} more; nlzoo check shows all")


def tell_scan(dataset: "scanning.Dataset") -> None:
    """Logs what a split dataset has, and warns of what makes its figures worth less."""
    from ..videos import listing, scanning, splits

    parts = [part for part in (listing.TRAIN, listing.VAL, listing.TEST) if scanning.items_in(dataset, part)]
    clips = Counter((label, item.split) for item in dataset.items for label in item.labels)
    console.log(
        f"{dataset.kind}: {counted(len(dataset.items), 'video')} used, {len(dataset.skipped)} skipped, "
        f"{counted(dataset.ignored, 'other file')} ignored"
    )
    for label in dataset.classes[:_CLASSES]:
        counts = " ".join(f"{clips[label, part]:6} {part}" for part in parts)
        console.log(f"  {printable(label):40} {counts}")
    if len(dataset.classes) > _CLASSES:
        console.log(f"  … and {len(dataset.classes) - _CLASSES} more classes")
    train, held = (
        len({item.group for item in scanning.items_in(dataset, part)}) for part in (listing.TRAIN, listing.VAL)
    )
    both = splits.straddling(dataset.items)
    console.log(f"{dataset.grouped_by}: {train} groups to train, {held} to validate, {both} in both")
    for sentence in [*splits.doubts(dataset.items, dataset.val, dataset.grouped_by), *scanning.left_out(dataset)]:
        console.warn(sentence)
    warn_of_skipped(dataset.skipped)
