"""What of a listing can be used: every file ends as exactly one of used, skipped with a reason, or ignored, and is counted so."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ..core.errors import VideoError
from ..core.skipped import Skipped
from ..core.text import printable
from . import listing, pool, records, splits
from .listing import Item

TRAIN, VAL, TEST = listing.TRAIN, listing.VAL, listing.TEST
UNREADABLE, PART_OUTSIDE = "unreadable", "part_outside"  # codes of what is skipped, beside those of `listing`
MOST_BAD = 0.2  # of the files, above which training does not start


@dataclass(frozen=True)
class Dataset:
    """What is in a folder or a list, and can be used."""

    root: Path
    items: tuple[Item, ...]  # sorted by path
    skipped: tuple[Skipped, ...]  # videos that cannot be used
    ignored: int  # files that are no videos
    multi_label: bool = False
    kind: str = ""  # of folder or list, in words
    grouped_by: str = ""  # the rule that made the groups, in words

    @property
    def classes(self) -> tuple[str, ...]:
        """Labels in the order of the outputs."""
        return tuple(sorted({label for i in self.items for label in i.labels}))


def scan(
    source: Path,
    classes: tuple[str, ...] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
    workers: int | None = None,
) -> Dataset:
    """Finds and probes the videos of a folder or list (`listing.read` says which kinds; `classes` leaves out all others).

    `progress(done, total)` is called for each file. Raises `VideoError` for what has no videos, fewer than two classes, or
    more than `MOST_BAD` of its files unusable; and what `listing.read` raises.
    """
    found = listing.read(Path(source), classes)
    paths = sorted({i.path for i in found.items})
    known = dict(
        zip(
            paths,
            records.examine(
                [found.root / p for p in paths], workers=workers or pool.default_workers("cuda"), progress=progress
            ),
        )
    )
    items, skipped = usable(found, known)
    result = Dataset(found.root, items, skipped, found.ignored, found.multi_label, found.kind)
    _refuse_unusable(result)
    items, rule = splits.grouped(items, found.levels, partial(_copies, found.root, known))
    return replace(result, items=items, grouped_by=rule)


def usable(found: listing.Listing, known: dict[str, records.Record]) -> tuple[tuple[Item, ...], tuple[Skipped, ...]]:
    """`(items, skipped)` of a listing: frames and seconds of each item filled in, and the reasons of the others added."""
    items, skipped = [], {s.path: s for s in found.skipped}
    for item in found.items:
        record = known[item.path]
        start, end = item.start or 0.0, min(item.end or math.inf, record.seconds)
        if record.problem:
            skipped[item.path] = Skipped(item.path, UNREADABLE, record.problem)
        elif start >= record.seconds:
            reason = f"its part starts at {start:g} s, but the video ends at {record.seconds:.1f} s"
            skipped[item.path] = Skipped(item.path, PART_OUTSIDE, reason)
        else:
            items.append(
                replace(
                    item,
                    seconds=end - start,
                    frames=max(1, round((end - start) * record.fps)) if start or item.end else record.frames,
                )
            )
    return tuple(items), tuple(sorted(skipped.values()))


def _copies(root, known, paths):
    """Digests of the files that may be copies of one another: those that share their size with another."""
    sizes = {}
    for path in set(paths):
        sizes.setdefault(known[path].size, []).append(path)
    alike = [p for same in sizes.values() if len(same) > 1 for p in same]
    digests = records.digests([root / p for p in alike])
    return {p: digests[name] for p in alike if (name := os.path.abspath(root / p)) in digests}


def _refuse_unusable(result):
    where, total = (
        printable(str(result.root)),
        len({i.path for i in result.items}) + len(counted := bad(result.skipped, result.kind)),
    )
    if len(counted) > MOST_BAD * total:
        raise VideoError(
            f"{len(counted)} of {total} videos in {where} cannot be used:\n{_table(counted)}",
            "mend or remove them; nlzoo check shows all",
        )
    if not result.items:
        raise VideoError(
            f"{where} has no video that can be used:\n{_table(result.skipped)}", "nlzoo check shows what is there"
        )
    if len(result.classes) < (1 if result.multi_label else 2):
        raise VideoError(
            f"{where} has one class, {printable(result.classes[0])!r}; a classifier needs two",
            "give a folder with one sub-folder of videos per class",
        )


def bad(skipped: tuple[Skipped, ...], kind: str) -> list[Skipped]:
    """What counts as unusable: of Kinetics' lists not the videos that are gone, as many are from everybody's copy."""
    return [s for s in skipped if not ("Kinetics" in kind and s.code == listing.NOT_FOUND)]


def _table(rows):
    more = f"\n  … and {len(rows) - 10} more" if len(rows) > 10 else ""
    return "\n".join(f"  {row}" for row in rows[:10]) + more


def split(dataset: Dataset, val: str, seed: int) -> Dataset:
    """The same dataset with every item in `train` or `val` (`splits.split`)."""
    items, by = splits.split(dataset.items, val, seed, dataset.grouped_by)
    return replace(dataset, items=items, grouped_by=by)


def items_in(dataset: Dataset, part: str) -> list[Item]:
    """The items of `train`, `val` or `test`."""
    return [i for i in dataset.items if i.split == part]
