"""Labelled videos as plain data: after `listing.read` nothing knows whether they came from a folder or a list."""

import csv
import os
import unicodedata
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import UsageError, VideoError
from ..core.files import VIDEO_EXTENSIONS
from ..core.skipped import Skipped
from ..core.text import nearest, printable, quoted

TRAIN, VAL, TEST = "train", "val", "test"
SPLITS = {  # as people write it: what it is
    "train": TRAIN,
    "training": TRAIN,
    "val": VAL,
    "valid": VAL,
    "validation": VAL,
    "validate": VAL,
    "test": TEST,
    "testing": TEST,
}
# codes of what is skipped
NOT_FOUND, LISTED_TWICE, IS_FOLDER, CLOSED, OUTSIDE = (
    "not_found",
    "listed_twice",
    "is_folder",
    "closed",
    "outside_class",
)
EMPTY, PICTURES, NO_VIDEOS, NOTES, LINK = (
    "empty_folder",
    "pictures",
    "no_videos",
    "notes",
    "link",
)  # the same of class folders
# codes of `Kind`
CLASS_FOLDERS, SPLIT_FOLDERS, HEADER, PLAIN, SPACED = "class_folders", "split_folders", "header", "plain", "spaced"
KINETICS, CHARADES, EPIC, OWN = "kinetics", "charades", "epic", "own"
EXPECTED = "give a folder with one sub-folder of videos per class, or a list of path,label"
FRAMES = "the frames of a video lie in a folder of their own, numbered: CLASS/NAME/img_00001.jpg (jpg, png, webp, bmp)"
_KINDS = {
    CLASS_FOLDERS: "one folder per class",
    SPLIT_FOLDERS: "folders",
    HEADER: "a list with a header",
    PLAIN: "a list without a header",
    SPACED: "a space-separated list",
    KINETICS: "a Kinetics list",
    CHARADES: "a Charades list",
    EPIC: "an EPIC-Kitchens list",
    OWN: "nlzoo's list",
}


Key = tuple[str, float | None, float | None]  # of an `Item`: absolute path, start, end


@dataclass(frozen=True)
class Item:
    """One video that is used, a file or a folder of frames, or a part of one."""

    path: str  # relative to the listing's root, "/" between parts; or absolute
    labels: tuple[str, ...]  # one; for multi-label tasks any number, also none
    group: str = ""  # clips that must stay on one side of the split
    split: str = ""  # train, val, test, or "" where it is not given
    start: float | None = None  # seconds, of the part that is used
    end: float | None = None
    frames: int = 0  # of the part that is used; filled in by the scan
    seconds: float = 0.0
    fps: float = 0.0  # numbers a second of a folder of frames; 0 where nobody says: frames count as they are then

    def key(self, root: Path) -> Key:
        """What tells it from others, whatever the folder that its path starts from: path, start, end."""
        return os.path.abspath(os.path.join(root, self.path)), self.start, self.end


@dataclass(frozen=True)
class Kind:
    """How a folder or list was read."""

    code: str
    names: tuple[str, ...] = ()  # of the split folders, or of the lists of a folder

    def __str__(self) -> str:
        if self.code == SPLIT_FOLDERS:
            return f"{', '.join(f'{printable(name)}/' for name in self.names)} {_KINDS[self.code]}"
        if self.names:
            return f"{', '.join(map(printable, self.names))}: {_KINDS[self.code]}"
        return _KINDS[self.code]


@dataclass(frozen=True)
class Listing:
    """The videos of a folder or a list."""

    root: Path  # the folder, or the list's: paths of items are relative to it
    items: tuple[Item, ...]  # sorted by (path, start)
    skipped: tuple[Skipped, ...]  # sorted by path
    ignored: int  # files that are no videos
    multi_label: bool = False
    kind: Kind = Kind(OWN)
    levels: int = 0  # folders of each path that are the layout's: the class, train/ and the class
    lost: tuple[Skipped, ...] = ()  # classes that contribute no video; `path` is the class
    val_root: str = ""  # the folder of `--val DIR`, absolute; so are the paths of the items in it
    val_levels: int = 0  # as `levels`, of their paths below that folder


def ends_like_video(name: str) -> bool:
    """Whether a file of this name would be taken for a video."""
    return os.path.splitext(name.strip())[1].lower() in VIDEO_EXTENSIONS


def refuse_clashes(source: Path, labels: set[str]) -> None:
    """Raises `VideoError` for two classes that differ in case or Unicode form alone."""
    seen: dict[str, str] = {}
    for label in sorted(labels):
        composed = unicodedata.normalize("NFC", label)
        other = seen.setdefault(composed.casefold(), label)
        if other == label:
            continue
        alike = unicodedata.normalize("NFC", other) == composed  # on a screen: only codes tell one from the other
        names = f"{other!a} and {label!a}" if alike else f"{quoted([other])} and {quoted([label])}"
        raise VideoError(
            f"{printable(source)} has two classes {names} that differ in spelling alone", "rename or merge them"
        )


def choose(source: Path, classes: Iterable[str], there: set[str]) -> set[str]:
    """The classes that `classes` names, each text one class or several as in a row of CSV. Raises `UsageError`."""
    chosen = [name for text in classes for name in names_in(text, there)]
    unknown = [label for label in chosen if label not in there]
    if unknown:
        near = quoted(nearest(unknown[0], sorted(there)))
        raise UsageError(
            f"{printable(source)} has no class {quoted(unknown[:1])}; it has {quoted(sorted(there))}",
            (f"did you mean {near}? " if near else "choose among these; ")
            + "a name that holds a comma goes between double quotes",
        )
    return set(chosen)


def names_in(text: str, there: Collection[str]) -> list[str]:
    """The names in an option: one that is `there` as it is, otherwise a row of CSV."""
    if text in there:
        return [text]
    try:
        row = next(csv.reader([text], skipinitialspace=True), [])
    except csv.Error:  # an end of line in a name
        return [text]
    return [cell.strip() for cell in row if cell.strip()]
