"""The list that nlzoo writes and reads back: the same items, whatever is in their names."""

import csv
import os
import re
from collections.abc import Iterable
from pathlib import Path

from ..core import files
from .items import Item, Listing
from .list_rows import COLUMNS, RATED


def write(used: Listing | Iterable[Item], file: Path) -> None:
    """Writes a list that `listing.read` gives back as the same items; UTF-8, raw bytes where names are none.

    Items are written as they are; those of a `Listing` whose root is not the file's folder with absolute paths, so that
    the list can be read from where it is. Replaces `file` in one step. Raises `DiskError`.
    """
    file = Path(file)
    base, several = "", False
    if isinstance(used, Listing):
        base = "" if os.path.realpath(used.root) == os.path.realpath(file.parent) else os.path.abspath(used.root)
        several, used = used.multi_label, used.items
    with files.replacing(file) as part, open(part, "w", encoding="utf-8", errors="surrogateescape", newline="") as out:
        writer = csv.writer(out)
        used = list(used)
        rated = any(item.fps for item in used)
        writer.writerow(RATED if rated else COLUMNS)
        writer.writerows(_cells(item, base, several) + ([item.fps or ""] if rated else []) for item in used)


def _cells(item: Item, base: str, several: bool) -> list[object]:
    labels = ";".join(re.sub(r"([\\;])", r"\\\1", label) for label in item.labels)
    if several and len(item.labels) == 1:
        labels += ";"  # one label of a task with several
    path = os.path.join(base, item.path)
    return [path, labels, item.group, item.split, item.start, item.end, item.frames, item.seconds]
