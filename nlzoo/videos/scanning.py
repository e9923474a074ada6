"""What of a listing can be used: every file ends as exactly one of used, skipped with a reason, or ignored."""

import math
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ..core.errors import VideoError
from ..core.progress import Progress, no_progress
from ..core.skipped import Skipped
from ..core.text import counted, printable, quoted
from . import frame_folder, items as codes, listing, pool, records, splits, video
from .items import Item, Kind, Listing

UNREADABLE, PART_OUTSIDE = "unreadable", "part_outside"  # codes of what is skipped, beside those of `items`
MOST_BAD = 0.2  # of the files, above which training does not start
_SHOWN = 10  # rows of a table in a message


@dataclass(frozen=True)
class Dataset(Listing):
    """What is in a folder or a list, and can be used: the skipped are all videos that cannot."""

    grouped_by: splits.Rule = splits.Rule("video")  # what made the groups, or that the split was given
    val: str = ""  # what the split was asked to hold out, as `splits.split` reads it

    @property
    def classes(self) -> tuple[str, ...]:
        """Labels in the order of the outputs."""
        return tuple(sorted({label for item in self.items for label in item.labels}))


def scan(
    source: Path,
    classes: Sequence[str] = (),
    progress: Progress = no_progress,
    workers: int | None = None,
    val: str = "",
) -> Dataset:
    """Finds and probes the videos of a folder or list (`listing.read` says which kinds and what `classes` leaves out).

    `val`: as for `split`; where it is a folder or a list, the videos in there are for validation.

    `progress(done, total)` is called for each file. Raises what `listing.read` and `refuse_unusable` raise.
    """
    listed = listing.read(Path(source), classes, val)
    paths = sorted({item.path for item in listed.items})
    files = [listed.root / path for path in paths]
    probed = records.examine(files, workers=workers or pool.default_workers("cuda"), progress=progress)
    known = dict(zip(paths, probed))
    dataset = collect(listed, known, partial(_copies, listed.root, known))
    refuse_unusable(dataset)
    return dataset


def collect(
    listed: Listing, known: Mapping[str, records.Record], copies: Callable[[list[str]], dict[str, str]]
) -> Dataset:
    """The dataset of a listing whose files have the records `known`; nothing is refused yet.

    `copies`: as for `splits.grouped`.
    """
    parts = [_usable(item, known[item.path]) for item in listed.items]
    used = [part for part in parts if isinstance(part, Item)]
    unusable = (part for part in parts if isinstance(part, Skipped))
    skipped = {entry.path: entry for entry in (*listed.skipped, *unusable)}
    items, rule = splits.grouped(used, listed.levels, copies, listed.val_root, listed.val_levels)
    lost = (*listed.lost, *_lost(listed.items, items, skipped))
    usable = replace(listed, items=items, skipped=tuple(sorted(skipped.values())), lost=lost)
    return Dataset(**vars(usable), grouped_by=rule)


def _usable(item: Item, record: records.Record) -> Item | Skipped:
    """The item with its frames and seconds, or why it cannot be used."""
    item, record = _at_rate(item, record)
    start, end = item.start or 0.0, min(item.end or math.inf, record.seconds)
    if record.problem:
        return Skipped(item.path, UNREADABLE, record.problem)
    if start >= record.seconds:
        reason = f"its part starts at {start:g} s, but the video ends at {record.seconds:.1f} s"
        return Skipped(item.path, PART_OUTSIDE, reason)
    frames = max(1, round((end - start) * record.fps)) if start or item.end else record.frames
    return replace(item, seconds=end - start, frames=frames)


def _at_rate(item: Item, record: records.Record) -> tuple[Item, records.Record]:
    """Item and record of a folder of frames at the item's rate, where it has one; files know theirs."""
    if record.container != video.FOLDER:
        return replace(item, fps=0.0), record
    faster = (item.fps or frame_folder.RATE) / frame_folder.RATE
    record = replace(record, fps=record.fps * faster, seconds=record.seconds / faster)
    if not item.start and item.end and item.end > record.seconds * (1 - 1e-6):
        item = replace(item, start=None, end=None)  # mmaction2's lists count the frames of whole folders
    return item, record


def _lost(listed: Sequence[Item], used: Sequence[Item], skipped: Mapping[str, Skipped]) -> list[Skipped]:
    """The classes that were listed, and have no video that can be used."""
    left = {label for item in used for label in item.labels}
    paths = defaultdict(list)
    for item in listed:
        for label in set(item.labels) - left:
            paths[label].append(item.path)
    return [
        Skipped(label, UNREADABLE, f"has {counted(len(lost), 'video')}, and none can be used ({skipped[lost[0]]})")
        for label, lost in sorted(paths.items())
    ]


def _copies(root: Path, known: Mapping[str, records.Record], paths: list[str]) -> dict[str, str]:
    """What files hold that may be copies of one another (`records.contents`)."""
    absolute = {path: os.path.abspath(root / path) for path in paths}
    contents = records.contents({name: known[path].size for path, name in absolute.items()})
    return {path: contents[name] for path, name in absolute.items() if name in contents}


def refuse_unusable(dataset: Dataset) -> None:
    """Raises `VideoError` for a dataset that is no good for anything.

    That is: more than `MOST_BAD` of the files unusable, no video, fewer than two classes.
    """
    name, unusable = printable(dataset.root), bad(dataset.skipped, dataset.kind)
    total = len({item.path for item in dataset.items}) + len(unusable)
    if not dataset.items:
        raise VideoError(
            f"{name} has no video that can be used:\n{_table(dataset.skipped)}", "nlzoo check shows what is there"
        )
    if len(unusable) > MOST_BAD * total:
        raise VideoError(
            f"{len(unusable)} of {counted(total, 'video')} in {name} cannot be used:\n{_table(unusable)}",
            "fix or remove them; nlzoo check shows all",
        )
    if len(dataset.classes) < (1 if dataset.multi_label else 2):
        _refuse_lost(dataset)
        raise VideoError(
            f"{name} has one class, {quoted(dataset.classes)}; a classifier needs two",
            "give a folder with one sub-folder of videos per class",
        )


def _refuse_lost(dataset: Dataset) -> None:
    """Raises `VideoError` for a class of which no video can be used: it would vanish. Folders of notes are none."""
    lost = [entry for entry in bad(dataset.lost, dataset.kind) if entry.code != codes.NOTES]
    if lost:
        first, *others = lost
        more = f"; so does {quoted(entry.path for entry in others)}" if others else ""
        raise VideoError(
            f"class {quoted([first.path])} of {printable(dataset.root)} {printable(first.reason)}{more}",
            "add videos, remove the folder or rows, or name the other classes with --classes",
        )


def left_out(dataset: Dataset) -> list[str]:
    """A sentence on each folder or class that is accepted though it contributes nothing."""
    return [f"{quoted([entry.path])} is not among the classes: {printable(entry.reason)}" for entry in dataset.lost]


def bad(skipped: Sequence[Skipped], kind: Kind) -> list[Skipped]:
    """What counts as unusable: of Kinetics' lists not the videos that are gone, as many are from everybody's copy."""
    return [entry for entry in skipped if kind.code != codes.KINETICS or entry.code != codes.NOT_FOUND]


def _table(rows: Sequence[Skipped]) -> str:
    more = [f"  … and {len(rows) - _SHOWN} more"] if len(rows) > _SHOWN else []
    return "\n".join([*(f"  {row}" for row in rows[:_SHOWN]), *more])


def split(dataset: Dataset, val: str, seed: int) -> Dataset:
    """The same dataset with every item in `train`, `val` or `test` (`splits.split`), for training.

    Raises `VideoError` where a class would vanish: in the split, or because none of its videos can be used.
    """
    _refuse_lost(dataset)
    items, rule = splits.split(dataset.items, val, seed, dataset.grouped_by)
    return replace(dataset, items=items, grouped_by=rule, val=val)


def with_sound(dataset: Dataset, items: Sequence[Item]) -> tuple[Item, ...]:
    """Those of the `items` of a dataset whose videos have a track of sound."""
    examined = records.examine([dataset.root / item.path for item in items])
    return tuple(item for item, record in zip(items, examined) if record.sound)


def items_in(dataset: Dataset, part: str) -> list[Item]:
    """The items of `train`, `val` or `test`."""
    return [item for item in dataset.items if item.split == part]
