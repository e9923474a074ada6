"""What the user points nlzoo at, a folder or a list, as labelled videos. Only names are read here; no video is opened.

Every video below a folder and every row of a list ends as exactly one item or one skipped entry with its reason. What
cannot be used as a whole (no classes, a broken row, a label that contradicts another) is a `VideoError` with the line.
`folders` and `lists` read, `list_writer` writes what can be read again.
"""

import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..core import archives
from ..core.errors import UsageError, VideoError
from ..core.text import as_text, nearest, printable, quoted
from . import folders, list_rows, lists
from .items import EXPECTED, TEST, TRAIN, VAL, Item, Kind, Listing
from .list_writer import write

__all__ = ["TEST", "TRAIN", "VAL", "Item", "Kind", "Listing", "read", "write"]


def refuse_address(path: Path) -> None:
    """Raises `UsageError` for a web address, which a `Path` has made `https:/…`."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)) and not path.exists():
        raise UsageError(f"{quoted([str(path)])} is an address; nlzoo reads files", "download the videos first")


def refuse_missing(source: Path) -> None:
    """Raises `UsageError` for a web address, `VideoError` for a path that is not there."""
    refuse_address(source)
    if archives.exists(source):
        return
    part, parent = source, source.parent
    while not parent.is_dir() and parent != parent.parent:
        part, parent = parent, parent.parent
    names = sorted(os.listdir(parent)) if os.access(parent, os.R_OK) else []
    near = [printable(parent / name) for name in nearest(part.name, names)]  # what was probably meant
    hint = f"did you mean {' or '.join(near)}?" if near else EXPECTED
    raise VideoError(f"{printable(source)} does not exist", hint)


FEW = 2000  # files, or rows of a list, whose names are read twice in no time


def refuse_unlabelled(source: Path) -> None:
    """Raises what `read` does for a folder or list of few videos; a large one, or an archive, is let pass."""
    if source.is_dir():
        files = (file for _, _, files in os.walk(source) for file in files)
        few = sum(1 for _ in itertools.islice(files, FEW)) < FEW
    else:
        few = not archives.is_archive(source) and source.stat().st_size < FEW * 100
    if few:
        read(source)


def opened(source: Path) -> Path:
    """The folder that a zip or tar is read as, in place (`archives.top`); anything else is itself.

    Raises `VideoError` for an archive that cannot be read so.
    """
    if not archives.is_archive(source):
        return source
    try:
        return Path(archives.top(source))
    except OSError as error:
        reason = f"{printable(source)} cannot be read in place: {error.strerror}"
        again = "fetch or pack it again; or " if "cut off" in str(error.strerror) else ""
        raise VideoError(reason, f"{again}unpack it, and give the folder: {list_rows.unpacking(source)}") from None


def read(source: Path, classes: Sequence[str] = (), val: str = "") -> Listing:
    """The videos of `source` with labels, splits and parts: a folder, a zip or tar of one, a list (docs/videos.md).

    Where `val` is a folder or a list (`val_source`), the videos in there are for validation, all others to train on.

    `classes`: only these labels; videos of others are left out, or keep their other labels where there are several.
    A text that is no class is read as a row of CSV: `walk,"turn, left"`. Files of lists are looked up by name.
    Raises `VideoError` for what is no folder or list of labelled videos, `UsageError` for a class that is not there.
    """
    source = Path(source)
    refuse_missing(source)
    if held := val_source(val):
        return _with_validation(_read(source, classes), held, classes)
    return _read(source, classes)


def val_source(val: str) -> Path | None:
    """The folder or list that `--val` names; None for shares, folds, and groups (`./8` is a folder, `8` a group)."""
    number = re.fullmatch(r"[\s\d./]*", val) and not val.lstrip().startswith(("./", "../", "/"))
    return None if number or not archives.exists(val) else Path(val)


def _with_validation(listing: Listing, source: Path, classes: Sequence[str]) -> Listing:
    """The listing with the videos of `source` to validate on. Raises `VideoError` where either has a split already."""
    held = _read(source, ())
    root, option = os.path.abspath(held.root), f"--val {printable(source)}"
    _refuse_together(listing, held, option)
    known = {label for item in listing.items for label in item.labels}
    mine = _of_labels(held.items, known) if classes else held.items
    if not mine:
        raise VideoError(f"{option} has no video of the classes to train on", f"they are {quoted(sorted(known))}")
    outside = [replace(entry, path=os.path.join(root, entry.path)) for entry in held.skipped]
    items = [replace(item, split=TRAIN) for item in listing.items]
    items += [replace(item, path=os.path.join(root, item.path), split=VAL) for item in mine]
    return replace(
        listing,
        items=tuple(sorted(items, key=lambda item: (item.path, item.start or 0.0))),
        skipped=tuple(sorted((*listing.skipped, *outside))),
        ignored=listing.ignored + held.ignored,
        val_root=root,
        val_levels=held.levels,
    )


def _refuse_together(listing: Listing, held: Listing, option: str) -> None:
    """Raises `VideoError` where the videos of `held`, which come from `option`, cannot validate those of `listing`."""
    if os.path.realpath(held.root) == os.path.realpath(listing.root) and held.items == listing.items:
        raise VideoError(f"{option} holds the videos that are trained on", "give other videos to validate on")
    for whose, one in ((printable(listing.root), listing), (option, held)):
        if any(item.split in (VAL, TEST) for item in one.items):
            raise VideoError(
                f"{whose} says itself which of its videos are for validation", "omit --val, or give one of its parts"
            )
    if held.multi_label and not listing.multi_label:
        raise VideoError(
            f"{option} has videos of several labels, or none, and those to train on have one", "label both in one way"
        )


def _of_labels(items: Sequence[Item], known: set[str]) -> Sequence[Item]:
    """The items with one of these labels, and with no others; those without any label stay."""
    mine = [item for item in items if known & {*item.labels} or not item.labels]
    return [replace(item, labels=tuple(label for label in item.labels if label in known)) for item in mine]


def _read(source: Path, classes: Sequence[str]) -> Listing:
    source = opened(source)
    if archives.is_folder(source):
        listing = folders.read(source, classes)
    else:
        listing = lists.read(source.parent, [(source, "")], classes)
    if all(as_text(label) == label for item in listing.items for label in item.labels):
        return listing
    used = (replace(item, labels=tuple(map(as_text, item.labels))) for item in listing.items)
    return replace(listing, items=tuple(used))  # labels travel in JSON
