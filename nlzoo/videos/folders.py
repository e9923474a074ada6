"""Folders as listings: class folders, `train/` beside `val/`, or lists in a folder."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from ..core import archives
from ..core.errors import VideoError
from ..core.files import VIDEO_EXTENSIONS
from ..core.skipped import Skipped
from ..core.text import counted, printable, quoted
from . import items, list_rows, lists
from .items import SPLITS, TEST, TRAIN, VAL, Item, Kind, Listing
from .tree import Tree, walk

_PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
_LISTS = {".csv", ".tsv", ".txt"}
_ARCHIVES = (".zip", ".tar", ".rar", ".7z", ".gz", ".tgz")
_NOTES = _LISTS | set(".md .json .jsonl .xml .yaml .yml .toml .html .pdf .py .log .db".split())
_NAME_THEM = "if they are the classes, name them with --classes"
_SPLIT_WORDS = {*SPLITS, "dev", "development", "eval", "evaluation", "holdout", "heldout", "unlabeled", "unlabelled"}
_FILLERS = {"set", "data", "dataset", "video", "videos", "clip", "clips", "split", "fold", "part", "hold", "out", "new"}


def read(root: Path, classes: Sequence[str]) -> Listing:
    """The videos below `root`. Raises `VideoError`, and `UsageError` for one of `classes` that is not there."""
    tree = _tree(root)
    layout = _layout(root, tree.videos)
    labelled, outside = _labelled(tree, layout)
    labels = {item.labels[0] for item in labelled}
    if list_files := _lists_instead(root, layout, labels):
        return lists.read(root, list_files, classes)
    if not labelled:
        raise _nothing_in(root, tree)
    if not layout and not classes:
        _refuse_splits_as_classes(root, labelled)
    items.refuse_clashes(root, labels)
    lost = _lost(tree, layout, labels, outside)
    names_lost = {entry.path for entry in lost}
    there = labels | names_lost
    chosen = items.choose(root, classes, there) or there
    kind, levels = _kind(layout)
    return Listing(
        root,
        tuple(item for item in labelled if item.labels[0] in chosen),
        tuple(sorted(tree.closed + [entry for entry in outside if Path(entry.path).name not in names_lost])),
        tree.others.total(),
        kind=kind,
        levels=levels,
        lost=tuple(entry for entry in lost if entry.path in chosen),
    )


def _lists_instead(root: Path, layout: dict[str, str], labels: set[str]) -> list[tuple[Path, str]]:
    """`[(file, split)]` of the lists that say what the folders do not. Raises `VideoError` where both say it."""
    list_files = _lists_in(root)
    if not list_files:
        return _metadata_in(root)
    if len(labels) < 2:
        return list_files
    if layout:
        return []
    names = " and ".join(printable(file.name) for file, _ in list_files)
    raise VideoError(
        f"{printable(root)} has both class folders ({quoted(sorted(labels))}) and lists ({names})",
        "move the lists away to use the folders, or join the lists into one with a split column and give that",
    )


def _tree(root: Path) -> Tree:
    """What is below `root`. Raises `VideoError` where that cannot be read."""
    tree = walk(root)
    for folder in tree.closed:
        if not folder.path:
            raise VideoError(f"{printable(root)} {folder.reason}", "check its permissions")
    return tree


def _kind(layout: dict[str, str]) -> tuple[Kind, int]:
    """How the folder is laid out, and how many folders of a path that takes."""
    if not layout:
        return Kind(items.CLASS_FOLDERS), 1
    return Kind(items.SPLIT_FOLDERS, tuple(sorted(layout, key=lambda name: list(SPLITS).index(name.lower())))), 2


def _layout(root: Path, videos: list[str]) -> dict[str, str]:
    """Folder name → split, where the top level is `train/` with `val/` or `test/` and no other folder of videos."""
    with archives.scandir(root) as entries:
        known = {e.name: SPLITS[e.name.lower()] for e in entries if e.name.lower() in SPLITS and e.is_dir()}
    others = {path.partition("/")[0] for path in videos if "/" in path} - known.keys()
    splits = set(known.values())
    return known if TRAIN in splits and len(splits) > 1 and not others else {}


def _labelled(tree: Tree, layout: dict[str, str]) -> tuple[list[Item], list[Skipped]]:
    """`(items, videos outside of class folders)`; of pictures directly in a class folder the code is `PICTURES`."""
    labelled, outside = [], []
    for path in tree.videos:
        first, _, rest = path.partition("/")
        split = layout.get(first, "")
        label, inside, _ = (rest if split else path).partition("/")
        if inside:
            labelled.append(Item(path, (label,), split=split))
        elif path in tree.frames:
            pictures = counted(tree.frames[path], "picture")
            reason = f"has no videos, but {pictures} directly in it: each clip needs a folder of its own"
            outside.append(Skipped(path, items.PICTURES, reason))
        else:
            outside.append(Skipped(path, items.OUTSIDE, "lies outside any class folder"))
    return labelled, outside


def _lists_in(root: Path) -> list[tuple[Path, str]]:
    """`[(file, split)]` when the folder holds `train.csv` and `val.csv` (.tsv, .txt), and perhaps `test.*`."""
    by_split: dict[str, list[Path]] = {}
    with archives.scandir(root) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            stem, ending = os.path.splitext(entry.name.lower())
            if ending in _LISTS and stem in SPLITS and entry.is_file():
                by_split.setdefault(SPLITS[stem], []).append(root / entry.name)
    if TRAIN not in by_split or VAL not in by_split:
        return []
    for split, files in by_split.items():
        if len(files) > 1:
            names = quoted(file.name for file in files)
            raise VideoError(f"{printable(root)} has {len(files)} lists for {split}: {names}", "keep one of them")
    return [(by_split[split][0], split) for split in (TRAIN, VAL, TEST) if split in by_split]


def _metadata_in(root: Path) -> list[tuple[Path, str]]:
    """`[(file, split)]` of a dataset in the Hub's layout `videofolder`: `metadata.csv` in it, or in its splits.

    One without labels says nothing of classes, and folders do.
    """
    with archives.scandir(root) as entries:
        names = sorted(entry.name for entry in entries)
    places = {root: ""} | {root / name: SPLITS[name.lower()] for name in names if name.lower() in SPLITS}
    files = [
        (place / f"metadata{ending}", split)
        for place, split in places.items()
        for ending in (".csv", list_rows.JSON_LINES, list_rows.PARQUET)
    ]
    list_files = [(file, split) for file, split in files if archives.is_file(file) and list_rows.has_labels(file)]
    if len({file.parent for file, _ in list_files}) < len(list_files) or (
        len(list_files) > 1 and list_files[0][0].parent == root
    ):
        lists_there = quoted(file.relative_to(root).as_posix() for file, _ in list_files)
        raise VideoError(f"{printable(root)} has several lists for the same videos: {lists_there}", "keep one of them")
    return list_files


# --- what contributes nothing


def _lost(tree: Tree, layout: dict[str, str], labels: set[str], outside: list[Skipped]) -> list[Skipped]:
    """Class folders without a video of their own, also those with pictures directly in them, which are `outside`."""
    levels = 2 if layout else 1
    endings = tree.endings(levels)
    folders: dict[str, list[str]] = defaultdict(list)  # label → its folders
    bare = [entry for entry in outside if entry.code == items.PICTURES]
    unreadable = {entry.path: entry for entry in (*bare, *tree.links, *tree.closed)}
    for path in {*tree.folders, *unreadable}:
        parts = path.split("/")
        if path and len(parts) == levels and (not layout or parts[0] in layout):
            folders[parts[-1]].append(path)
    lost = []
    for label in sorted(folders.keys() - labels):
        problems = [(unreadable[path].code, unreadable[path].reason) for path in folders[label] if path in unreadable]
        others = sum((endings[path] for path in folders[label]), Counter())
        lost.append(Skipped(label, *(problems[0] if problems else _no_videos(others))))
    return lost


def _no_videos(endings: Counter[str]) -> tuple[str, str]:
    """`(code, reason)` for a folder that has files of these endings, and no videos."""
    pictures = sum(endings[ending] for ending in _PICTURES)
    if not endings:
        return items.EMPTY, "is an empty folder"
    if pictures:
        return items.PICTURES, f"has no videos and no numbered frames, but {counted(pictures, 'other picture')}"
    if VIDEO_EXTENSIONS & endings.keys():
        return items.NO_VIDEOS, "has only hidden files, or links to videos of other folders"
    names = ", ".join(
        f"{number} {printable(ending) or 'without ending'}" for ending, number in sorted(endings.items())[:3]
    )
    return items.NOTES if endings.keys() <= _NOTES else items.NO_VIDEOS, f"has no videos, but other files ({names})"


def _nothing_in(root: Path, tree: Tree) -> VideoError:
    name, endings = printable(root), tree.endings()[""]
    if tree.frames and len(tree.frames) == len(tree.videos):
        first = printable(tree.videos[0])
        return VideoError(
            f"the folders of frames in {name} have no class: they lie directly in it ({first})",
            f"move each into the folder of its class (CLASS/{first}), or give a list of path,label",
        )
    if tree.videos:
        first = printable(tree.videos[0])
        return VideoError(
            f"the videos in {name} cannot be used: no class folder is there, and they lie directly in it ({first})",
            "move each into the sub-folder of its class, or give a list of path,label",
        )
    if not endings:
        return VideoError(f"{name} is empty: it has no videos", items.EXPECTED)
    pictures = sum(endings[ending] for ending in _PICTURES)
    if 2 * pictures > endings.total():
        return VideoError(f"{name} has no videos, but {counted(pictures, 'picture')}", items.FRAMES)
    hint = f"videos end in {' '.join(sorted(VIDEO_EXTENSIONS)[:6])} …, in one sub-folder per class"
    if endings[".csv"] + endings[".tsv"]:
        hint = "to use a list, give its file"
    elif any(endings[ending] for ending in _ARCHIVES):
        hint = "give a zip or tar in it by its own name, or unpack the archives first"
    return VideoError(
        f"{name} has no videos; {counted(endings.total(), 'other file was', 'other files were')} ignored", hint
    )


# --- splits that would become classes


def _refuse_splits_as_classes(root: Path, labelled: list[Item]) -> None:
    """Raises `VideoError` where the folders look like splits, or like anything else that the classes lie in."""
    inside: dict[str, set[str]] = defaultdict(set)  # folder → its sub-folders with videos; "": videos directly in it
    for item in labelled:
        folder, *below = item.path.split("/")[:-1]
        inside[folder].add(below[0] if below else "")
    nested = {folder for folder, below in inside.items() if len(below) > 1 and "" not in below}
    splits = sorted(filter(_named_like_split, inside))
    name, first = printable(root), min(inside)
    if len(inside) == 1 and nested:
        raise VideoError(
            f"{name} has one folder, {quoted([first])}, which holds {quoted(sorted(inside[first]))}: no two classes",
            f"if these are the classes, give {printable(root / first)}",
        )
    if len(splits) > 1 or _holds_classes(splits, inside, nested):
        raise _named_error(name, splits, sorted(inside.keys() - splits))
    same = nested == inside.keys() and all(below == inside[first] for below in inside.values())
    if same and not _numbered(inside[first]):
        raise VideoError(
            f"all folders of {name}, {quoted(sorted(inside))}, hold the same sub-folders, "
            f"{quoted(sorted(inside[first]))}, which look like the classes",
            f"name the folders train, val and test, or put the classes first; {_NAME_THEM}",
        )


def _named_error(folder: str, splits: list[str], others: list[str]) -> VideoError:
    """The error for folders that are named like splits, with what was probably meant."""
    unknown = [name for name in splits if name.lower() not in SPLITS]
    advice = [f"rename {quoted(unknown)} to train, val or test, or move it away"] if unknown else []
    if others:
        advice.append(f"move {quoted(others)} away, or name it train, val or test")
    if not advice:
        advice.append("put train/ beside val/ or test/, each with a folder per class")
    others_named = f", beside {quoted(others)}" if others else ""
    return VideoError(
        f"{folder} has folders that are named like splits, not classes: {quoted(splits)}{others_named}",
        "; ".join([*advice, _NAME_THEM]),
    )


def _holds_classes(splits: list[str], inside: dict[str, set[str]], nested: set[str]) -> bool:
    """Whether the only folder that is named like a split holds what look like classes, and not recordings."""
    if len(splits) != 1 or splits[0] not in nested:
        return False
    below = inside[splits[0]]
    others = [inside[folder] for folder in inside if folder != splits[0]]
    return not _numbered(below) or any(other == {""} or other & below for other in others)


def _numbered(names: set[str]) -> bool:
    """Recordings and people are numbered; classes seldom are."""
    return any(re.search(r"\d", name) for name in names)


def _named_like_split(name: str) -> bool:
    """Such as dev, train_set, Validation2, fold1; not test drive."""
    if re.fullmatch(r"(fold|split|part|set|subset)[\W_]*\d+", name.lower()):
        return True
    words = [word.removesuffix("set") for word in re.findall(r"[^\W\d_]+", name.lower())]
    words = [word for word in words if word and word not in _FILLERS]
    return bool(words) and all(word in _SPLIT_WORDS for word in words)
