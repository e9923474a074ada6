"""What the user points nlzoo at, a folder or a list, as labelled videos. Only names are read here; no video is opened.

Every video below a folder and every row of a list ends as exactly one item or one skipped entry with its reason. What
cannot be used as a whole (no classes, a broken row, a label that contradicts another) is a `VideoError` with the line.
`folders` and `lists` read, `list_writer` writes what can be read again.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from ..core.errors import UsageError, VideoError
from ..core.text import as_text, printable, quoted
from . import folders, lists
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
    if not os.path.exists(source):
        raise _missing(source)


def read(source: Path, classes: Sequence[str] = ()) -> Listing:
    """The videos of `source`, a folder or a list (docs/videos.md has the forms), with labels, splits and parts.

    `classes`: only these labels; videos of others are left out, or keep their other labels where there are several.
    A text that is no class is read as a row of CSV: `walk,"turn, left"`. Files of lists are looked up by name.
    Raises `VideoError` for what is no folder or list of labelled videos, `UsageError` for a class that is not there.
    """
    source = Path(source)
    refuse_missing(source)
    if os.path.isdir(source):
        listing = folders.read(source, classes)
    else:
        listing = lists.read(source.parent, [(source, "")], classes)
    if all(as_text(label) == label for item in listing.items for label in item.labels):
        return listing
    used = (replace(item, labels=tuple(map(as_text, item.labels))) for item in listing.items)
    return replace(listing, items=tuple(used))  # labels travel in JSON


def _missing(source: Path) -> VideoError:
    """The error for a path that is not there, with what was probably meant."""
    part, parent = source, source.parent
    while not parent.is_dir() and parent != parent.parent:
        part, parent = parent, parent.parent
    names = {name.casefold(): name for name in (os.listdir(parent) if os.access(parent, os.R_OK) else ())}
    near = [printable(parent / names[name]) for name in get_close_matches(part.name.casefold(), names, 3, 0.6)]
    hint = f"did you mean {' or '.join(near)}?" if near else EXPECTED
    return VideoError(f"{printable(source)} does not exist", hint)
