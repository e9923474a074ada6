"""Commands on videos: check, prepare."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from ..core.text import printable
from . import console
from .options import Json, Videos


def check(
    videos: Videos,
    deep: Annotated[bool, typer.Option("--deep", help="Decode every frame of every file instead of three.")] = False,
    classes: Annotated[str | None, typer.Option(help="Only these, comma-separated.")] = None,
    json: Json = False,
) -> None:
    """Find what is wrong with videos before training does: broken files, copies, leaks. Exit code 3 when training could not start."""
    from ..apps import check as examiner
    from ..videos import listing, records

    found = listing.read(videos, names(classes))
    with console.progress("looking through every frame" if deep else "looking at each file") as bar:
        report = examiner.look(found, records.ALL if deep else records.THREE, progress=bar, tell=console.warn)
    console.result(examiner.to_json(report), examiner.in_words(report))
    if not report.could_train:
        raise typer.Exit(3)


def prepare(
    videos: Videos,
    out: Annotated[Path, typer.Argument(help="A new folder, or one that this command has begun.")],
    size: Annotated[int, typer.Option(help="Shorter side, pixels; smaller videos keep theirs.")] = 256,
    json: Json = False,
) -> None:
    """Copy videos into small ones that clips are cheap to read from: then train on OUT. Stopped, it goes on where it was."""
    from ..apps import prepare as making

    with console.progress("preparing") as bar:
        done, target = making.prepare_source(videos, out, size, bar)
    for skipped in done.skipped[:20]:
        console.warn(f"skipped {skipped}")
    console.result(
        {
            "videos": str(target),
            "done": done.done,
            "reused": done.reused,
            "bytes_before": done.bytes_before,
            "bytes_after": done.bytes_after,
            "skipped": [dataclasses.asdict(skipped) for skipped in done.skipped],
        },
        f"{done.done} videos prepared, {done.reused} were there, {len(done.skipped)} skipped; {done.bytes_before / 1e6:,.0f} MB became "
        f"{done.bytes_after / 1e6:,.0f} MB\nnext: nlzoo finetune {target}",
    )


def names(text):
    """The names in a comma-separated option."""
    return tuple(n.strip() for n in (text or "").split(",") if n.strip())


def tell_scan(dataset):
    from ..videos import listing, splits

    parts = [listing.TRAIN, listing.VAL] + [listing.TEST] * any(i.split == listing.TEST for i in dataset.items)
    counts = {
        c: [sum(c in i.labels and i.split == part for i in dataset.items) for part in parts] for c in dataset.classes
    }
    rows = "\n".join(
        f"  {printable(c)[:40]:40} " + " ".join(f"{n:6} {part}" for n, part in zip(row, parts))
        for c, row in list(counts.items())[:40]
    )
    more = f"\n  … and {len(counts) - 40} more classes" if len(counts) > 40 else ""
    console.log(
        f"{dataset.kind}: {len(dataset.items)} videos used, {len(dataset.skipped)} skipped, {dataset.ignored} other files ignored\n{rows}{more}"
    )
    groups = [len({i.group for i in dataset.items if i.split == part}) for part in (listing.TRAIN, listing.VAL)]
    both = splits.straddling(dataset.items)
    console.log(f"split by {dataset.grouped_by}: {groups[0]} groups to train, {groups[1]} to validate, {both} in both")
    if both:
        console.warn(f"{both} groups of clips are on both sides of the split that was given: its figures will flatter")
    for skipped in dataset.skipped[:20]:
        console.warn(f"skipped {skipped}")
    if len(dataset.skipped) > 20:
        console.warn(f"and {len(dataset.skipped) - 20} more; nlzoo check shows all")
