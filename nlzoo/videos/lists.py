"""Lists as listings: rows joined with the files that they name. Files are looked up by name, never opened."""

import math
import os
import stat
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from ..core import archives
from ..core.errors import VideoError
from ..core.skipped import Skipped
from ..core.text import counted, printable, quoted
from . import frame_folder, items, list_rows, tree
from .items import Item, Kind, Listing
from .list_rows import Row

METADATA = "metadata"  # name, without ending, of the lists of the Hub's layout `videofolder`


def read(root: Path, files: Sequence[tuple[Path, str]], classes: Sequence[str]) -> Listing:
    """The videos of `files`, each `(list, split)`: one list, or one for each split; paths relative to `root`.

    Raises `VideoError`, and `UsageError` for one of `classes` that is not there.
    """
    kind, rows = _parsed(root, files)
    source = files[0][0] if len(files) == 1 else root
    labels = {label for row in rows for label in row.item.labels}
    if not labels:
        raise _no_labels(source)
    items.refuse_clashes(source, labels)
    chosen = items.choose(source, classes, labels)
    multi_label = any(row.several for row in rows)
    if chosen:
        rows = _narrowed(rows, chosen, multi_label)
    used, skipped = _located(rows, root)
    if not used:
        raise _none_left(source, rows, skipped)
    if not any(item.labels for item in used):
        raise _no_labels(source)
    used.sort(key=lambda item: (item.path, item.start or 0.0, math.inf if item.end is None else item.end))
    return Listing(root, tuple(used), tuple(sorted(skipped)), 0, multi_label, kind, lost=_lost(rows, used))


def _parsed(root: Path, files: Sequence[tuple[Path, str]]) -> tuple[Kind, list[Row]]:
    """How the lists are written, and their rows; those of a list for a split have that split."""
    codes, rows = [], []
    for file, split in files:
        code, own = list_rows.parse(file)
        codes.append(code)
        if file.stem == METADATA:  # it names files from its own folder
            paths = [(file.parent.relative_to(root) / row.item.path).as_posix() for row in own]
            own = _in_splits([replace(row, item=replace(row.item, path=path)) for row, path in zip(own, paths)])
        rows += [replace(row, item=replace(row.item, split=split)) for row in own] if split else own
    several = len(files) > 1 or files[0][0].stem == METADATA
    names = tuple(file.relative_to(root).as_posix() for file, _ in files) if several else ()
    return Kind(codes[0], names), rows


def _in_splits(rows: list[Row]) -> list[Row]:
    """The rows in the splits that their first folders name, as the Hub does, where these are train and another one."""
    splits = [items.SPLITS.get(row.item.path.partition("/")[0].lower(), "") for row in rows]
    if items.TRAIN not in splits or len({*splits} - {""}) < 2:
        return rows
    return [replace(row, item=replace(row.item, split=row.item.split or split)) for row, split in zip(rows, splits)]


def _no_labels(source: Path) -> VideoError:
    return VideoError(
        f"no video that is there in {printable(source)} has a label",
        "the label column names the class; several are joined as a;b",
    )


def _lost(rows: list[Row], used: list[Item]) -> tuple[Skipped, ...]:
    """The classes of which no row's file is there."""
    rows_of = Counter(label for row in rows for label in row.item.labels)
    for item in used:
        for label in item.labels:
            rows_of.pop(label, None)
    return tuple(
        Skipped(label, items.NOT_FOUND, f"has {counted(number, 'row')}, and no video of them is there")
        for label, number in sorted(rows_of.items())
    )


def _narrowed(rows: list[Row], chosen: set[str], multi_label: bool) -> list[Row]:
    """The rows with labels of `chosen` alone; of several labels a video may keep none."""
    labels = [tuple(label for label in row.item.labels if label in chosen) for row in rows]
    narrowed = [replace(row, item=replace(row.item, labels=kept)) for row, kept in zip(rows, labels)]
    return [row for row in narrowed if row.item.labels or multi_label]


# --- the files of rows


def _located(rows: list[Row], root: Path) -> tuple[list[Item], list[Skipped]]:
    """`(used, skipped)`: each row's file looked for, paths made relative to `root`, each part of a file once."""
    base, here = os.path.abspath(root), os.getcwd()
    by_stem = _paths_by_stem(rows, base, here)
    outcomes: list[Item | Skipped] = []
    seen: dict[tuple, tuple[Row, Item]] = {}
    is_frames = lru_cache(maxsize=None)(frame_folder.is_frame_folder)  # one folder may have thousands of rows
    for row in rows:
        located = _find_stem(row, by_stem) if row.stems else _find_path(row.item, base, here, is_frames)
        if isinstance(located, Item):
            located = _repeated(row, located, seen) or located
        outcomes.append(located)
    used = [outcome for outcome in outcomes if isinstance(outcome, Item)]
    return used, [outcome for outcome in outcomes if isinstance(outcome, Skipped)]


def _find_path(item: Item, base: str, here: str, is_frames: Callable[[str], bool]) -> Item | Skipped:
    stripped = item.path.strip()
    names = dict.fromkeys([item.path, stripped, item.path.replace("\\", "/"), stripped.replace("\\", "/")])
    for name in names:
        for folder in (base, here):
            full = os.path.join(folder, name)
            try:
                mode = archives.stat(full).st_mode
            except OSError:
                continue
            path = _relative(full, base)
            if stat.S_ISDIR(mode) and not is_frames(full):
                return Skipped(path, items.IS_FOLDER, "is a folder, not a video")
            return replace(item, path=path)
    return _not_found(item)


def _find_stem(row: Row, by_stem: dict[str, str]) -> Item | Skipped:
    for stem in row.stems:
        if stem in by_stem:
            trimmed = stem != row.stems[-1]
            start, end = (None, None) if trimmed else (row.item.start, row.item.end)
            return replace(row.item, path=by_stem[stem], start=start, end=end)
    return _not_found(row.item)


def _not_found(item: Item) -> Skipped:
    return Skipped(item.path, items.NOT_FOUND, "is listed, but there is no such file")


def _relative(full: str, base: str) -> str:
    return Path(full).as_posix().removeprefix(Path(base).as_posix().rstrip("/") + "/")


def _paths_by_stem(rows: list[Row], base: str, here: str) -> dict[str, str]:
    """File name without ending → path, for names that rows ask for.

    Searched is below the list's folder; then, where a row is left, below the working folder.
    """
    stems = {stem for row in rows for stem in row.stems}
    if not stems:
        return {}
    paths = _search(base, base, stems)
    base_real, here_real = os.path.realpath(base), os.path.realpath(here)
    searched = here_real == base_real or here_real.startswith(os.path.join(base_real, ""))
    if not searched and any(paths.keys().isdisjoint(row.stems) for row in rows):
        paths = _search(here, base, stems) | paths
    return paths


def _search(folder: str, base: str, stems: set[str]) -> dict[str, str]:
    """The nearest to `folder` where there are several of one name."""
    paths: dict[str, str] = {}
    below = tree.walk(Path(folder))
    for path in sorted(below.videos, key=lambda path: (path.count("/"), path)):
        name = path.rpartition("/")[2]
        stem = name if path in below.frames else os.path.splitext(name)[0]
        if stem in stems and stem not in paths:
            paths[stem] = _relative(os.path.join(folder, path), base)
    return paths


def _repeated(row: Row, item: Item, seen: dict[tuple, tuple[Row, Item]]) -> Skipped | None:
    """What is skipped because the same part of the same file was listed before. Raises `VideoError` for two labels."""
    first, before = seen.setdefault((item.path, item.start or 0.0, item.end), (row, item))
    if first is row:
        return None
    if set(before.labels) != set(item.labels):
        now, was = (quoted([";".join(i.labels)]) if i.labels else "without a label" for i in (item, before))
        raise list_rows.bad_row(
            row.file,
            row.line,
            f"{printable(item.path)} is {now} here and {was} in {printable(first.file.name)} line {first.line}",
            "keep one of them; a video of several classes is one row with a;b for its label",
        )
    both = f" ({before.split} and {item.split})" if before.split != item.split else ""
    return Skipped(item.path, items.LISTED_TWICE, f"is listed twice{both}")


def _none_left(source: Path, rows: list[Row], skipped: list[Skipped]) -> VideoError:
    first = skipped[0]
    folders = any(entry.code == items.IS_FOLDER for entry in skipped)
    if folders or not any(items.ends_like_video(row.item.path) for row in rows):
        return VideoError(f"{printable(source)} lists no videos: {printable(first.path)} {first.reason}", items.FRAMES)
    hint = "paths are relative to the list's folder, or to the folder that nlzoo is started in"
    if rows[0].stems:
        names = " or ".join(map(printable, rows[0].stems))
        hint = f"searched are the list's folder and the working folder, for {names} with a video's ending"
    first_path = printable(first.path)
    return VideoError(
        f"{printable(source)} lists {counted(len(rows), 'video')}, and none is there; the first: {first_path}", hint
    )
