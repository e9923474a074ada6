"""What the user points nlzoo at, a folder or a list, as labelled videos. Only names are looked at: no video is opened here.

Every video below a folder and every row of a list ends as exactly one item or one skipped entry with its reason. What
cannot be used as a whole (no classes, a broken row, a label that contradicts another) is a `VideoError` with the line.
"""

import csv
import io
import math
import os
import re
import stat
import unicodedata
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from ..core.errors import DiskError, UsageError, VideoError
from ..core.skipped import Skipped
from ..core.text import as_text, printable
from . import video

TRAIN, VAL, TEST = "train", "val", "test"
SPLITS = {
    "train": TRAIN,
    "training": TRAIN,
    "val": VAL,
    "valid": VAL,
    "validation": VAL,
    "validate": VAL,
    "test": TEST,
    "testing": TEST,
}
COLUMNS = ("path", "label", "group", "split", "start", "end", "frames", "seconds")  # of the lists that `write` makes
# codes of what is skipped
NOT_FOUND, LISTED_TWICE, FOLDER, CLOSED, OUTSIDE = "not_found", "listed_twice", "is_folder", "closed", "outside_class"
MOST_BYTES = 512 * 2**20  # of a list
MOST_LABEL = 1000  # characters, as in spec.ModelSpec

_IGNORED_FOLDERS = {"__MACOSX", ".ipynb_checkpoints"}
_PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
_LISTS = {".csv", ".tsv", ".txt"}
_ARCHIVES = {  # first bytes: where they stand
    b"PK\3\4": 0,
    b"\x1f\x8b": 0,
    b"1AY&SY": 4,
    b"\xfd7zXZ\0": 0,
    b"\x28\xb5\x2f\xfd": 0,
    b"7z\xbc\xaf": 0,
    b"Rar!\x1a\x07": 0,
    b"ustar": 257,
}
_SHEETS = {".xlsx", ".xlsm", ".ods", ".numbers"}  # zip files by their bytes
_ALIASES = {  # column: what people call it; the first that is there counts
    "path": (
        "path",
        "video_path",
        "file_path",
        "filepath",
        "clip_path",
        "video",
        "file",
        "filename",
        "file_name",
        "video_name",
    ),
    "label": ("label", "labels", "class", "class_name", "label_name", "target", "targets", "tag"),
    "group": ("group",),
    "split": ("split",),
    "start": ("start", "start_time", "time_start"),
    "end": ("end", "end_time", "time_end"),
    "frames": ("frames",),
    "seconds": ("seconds",),
    "youtube": ("youtube_id", "video_id"),
    "id": ("id",),
    "actions": ("actions",),
    "subject": ("subject",),
}
_EXPECTED = "give a folder with one sub-folder of videos per class, or a list of path,label"
_FRAMES = "videos are expected, not folders of pictures: ffmpeg -framerate 25 -i FRAMES/%05d.jpg -pix_fmt yuv420p CLASS/NAME.mp4"


@dataclass(frozen=True)
class Item:
    """One video that is used, or a part of one."""

    path: str  # relative to the listing's root, "/" between parts; or absolute
    labels: tuple[str, ...]  # one; for multi-label tasks any number, also none
    group: str = ""  # clips that must stay on one side of the split
    split: str = ""  # train, val, test, or "" where it is not said
    start: float | None = None  # seconds, of the part that is used
    end: float | None = None
    frames: int = 0  # of the part that is used; filled in by the scan
    seconds: float = 0.0


@dataclass(frozen=True)
class Listing:
    """The videos of a folder or a list."""

    root: Path  # the folder, or the list's: paths of items are relative to it
    items: tuple[Item, ...]  # sorted by (path, start)
    skipped: tuple[Skipped, ...]  # sorted by path
    ignored: int  # files that are no videos
    multi_label: bool
    kind: str  # what was recognised, in words
    levels: int = 0  # folders of each path that are the layout's: the class, train/ and the class


@dataclass(frozen=True)
class _Row:
    """One row of a list; its item's path is as it is written there."""

    item: Item
    file: Path
    line: int
    several: bool = False  # its labels are for a multi-label task
    stems: tuple[str, ...] = ()  # file names without ending to look for, the best first, where no path is written


def refuse_address(path: Path) -> None:
    """Raises `UsageError` for a web address, which a `Path` has made `https:/…`."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)) and not path.exists():
        raise UsageError(f"{printable(path)!r} is an address; nlzoo reads files", "download the videos first")


def read(source: Path, classes: tuple[str, ...] = ()) -> Listing:
    """The videos of `source`, a folder or a list (docs/videos.md has the forms), with labels, splits and parts.

    `classes`: only these labels; videos of others are left out, or keep their other labels where there are several.
    No video is opened; files of lists are looked up by name. Raises `VideoError` for what is no folder or list of
    labelled videos, `UsageError` for a class that is not there.
    """
    source = Path(source)
    refuse_address(source)
    found = (
        _folder(source, tuple(classes))
        if os.path.isdir(source)
        else _from_lists(source.parent, [(source, "")], tuple(classes))
    )
    if all(as_text(label) == label for i in found.items for label in i.labels):
        return found
    return replace(
        found, items=tuple(replace(i, labels=tuple(map(as_text, i.labels))) for i in found.items)
    )  # labels travel in JSON


def _listed(names):
    """Some of many names for a message."""
    names = [printable(n)[:60] for n in names]
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


# --- folders


@dataclass(frozen=True)
class _Tree:
    """What is below a folder; paths relative to it."""

    videos: list[str]  # sorted
    others: Counter  # ending → number of files that are no videos
    closed: list[Skipped]  # folders that could not be read


def walk(root: Path) -> tuple[list[str], int]:
    """`(videos, ignored)`: what ends like a video, relative to `root` with "/" and sorted, and how many other files there are.

    Each real file once; links are followed, loops never, and a real place goes before a link to it. Hidden files are
    ignored; hidden folders are not entered.
    """
    tree = _walk(root)
    return tree.videos, tree.others.total()


def _walk(root):
    tree = _Tree([], Counter(), [])
    entered, files = set(), set()  # real paths
    folders, links = [("", os.path.realpath(root))], []

    def file(path, real):
        ending = os.path.splitext(path)[1].lower()
        if ending not in video.EXTENSIONS or _hidden(path) or real in files:
            tree.others[ending] += 1
        else:
            files.add(real)
            tree.videos.append(path)

    while folders:
        while folders:
            path, real = folders.pop()
            if real not in entered:
                entered.add(real)
                for name, kind in _entries(path, real, tree.closed):
                    inside, really = f"{path}/{name}" if path else name, os.path.join(real, name)
                    if kind == "link":
                        links.append((inside, really))
                    elif kind == "file":
                        file(inside, really)
                    elif not _hidden(name):
                        folders.append((inside, really))
        for inside, link in sorted(links, reverse=True):  # the last that is put on the pile is taken first
            real = os.path.realpath(link)
            if not os.path.isdir(real):
                file(inside, real)
            elif not _hidden(inside):
                folders.append((inside, real))
        links.clear()
    tree.videos.sort()
    return tree


def _entries(path, real, closed):
    try:
        with os.scandir(real) as entries:
            return [
                (e.name, "link" if e.is_symlink() else "folder" if e.is_dir(follow_symlinks=False) else "file")
                for e in entries
            ]
    except OSError as error:
        closed.append(Skipped(path, CLOSED, f"is a folder that cannot be read: {error.strerror}"))
        return []


def _hidden(path):
    name = path.rpartition("/")[2]
    return name.startswith(".") or name in _IGNORED_FOLDERS


def _folder(root, classes):
    tree = _walk(root)
    for folder in tree.closed:
        if not folder.path:
            raise VideoError(f"{printable(root)} {folder.reason}", "check its permissions")
    layout = _layout(root, tree.videos)
    labelled = [
        Item(path, (label,), split=split) for path in tree.videos for label, split in [_label(path, layout)] if label
    ]
    labels = {i.labels[0] for i in labelled}
    lists = _lists_in(root)
    if lists and len(labels) < 2:
        return _from_lists(root, lists, classes)
    if lists and not layout:
        names = " and ".join(printable(f.name) for f, _ in lists)
        raise VideoError(
            f"{printable(root)} has both class folders ({_listed(sorted(labels))}) and lists ({names})",
            "move the lists away to use the folders, or join the lists into one with a split column and give that",
        )
    if not labelled:
        raise _nothing_in(root, tree)
    _refuse_clashes(root, labels)
    _refuse_unknown(root, classes, labels)
    used = {i.path for i in labelled}
    skipped = tree.closed + [
        Skipped(path, OUTSIDE, "lies outside any class folder") for path in tree.videos if path not in used
    ]
    kind = (
        f"{', '.join(f'{n}/' for n in sorted(layout, key=lambda n: list(SPLITS).index(n.lower())))} folders"
        if layout
        else "one folder per class"
    )
    items = tuple(i for i in labelled if not classes or i.labels[0] in classes)
    return Listing(root, items, tuple(sorted(skipped)), tree.others.total(), False, kind, 2 if layout else 1)


def _layout(root, videos):
    """Whether the top level is `train/` with `val/` or `test/`: folder name → split; empty when it is the classes themselves."""
    with os.scandir(root) as entries:
        known = {e.name: SPLITS[e.name.lower()] for e in entries if e.name.lower() in SPLITS and e.is_dir()}
    others = {path.partition("/")[0] for path in videos if "/" in path} - known.keys()
    parts = set(known.values())
    return known if TRAIN in parts and len(parts) > 1 and not others else {}


def _label(path, layout):
    parts = path.split("/")
    split = ""
    if layout and parts[0] in layout:
        split, parts = layout[parts[0]], parts[1:]
    return (parts[0], split) if len(parts) > 1 else (None, split)


def _lists_in(root):
    """`[(file, split)]` when the folder holds `train.csv` and `val.csv` (.tsv, .txt), with `test.*` where it is there."""
    found = {}
    with os.scandir(root) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            stem, ending = os.path.splitext(entry.name.lower())
            if ending in _LISTS and stem in SPLITS and entry.is_file():
                found.setdefault(SPLITS[stem], []).append(root / entry.name)
    if TRAIN not in found or VAL not in found:
        return []
    for split, files in found.items():
        if len(files) > 1:
            raise VideoError(
                f"{printable(root)} has {len(files)} lists for {split}: {_listed([f.name for f in files])}",
                "keep one of them",
            )
    return [(found[split][0], split) for split in (TRAIN, VAL, TEST) if split in found]


def _nothing_in(root, tree):
    where, total = printable(root), tree.others.total()
    if tree.videos:
        first = printable(tree.videos[0])
        return VideoError(
            f"the videos in {where} cannot be used: no class folder is there, and they lie directly in it ({first})",
            "move each into the sub-folder of its class, or give a list of path,label",
        )
    if not total:
        return VideoError(f"{where} is empty: it has no videos", _EXPECTED)
    pictures = sum(tree.others[e] for e in _PICTURES)
    if 2 * pictures > total:
        return VideoError(f"{where} has no videos, but {pictures} pictures", _FRAMES)
    hint = f"videos end in {' '.join(sorted(video.EXTENSIONS)[:6])} …, in one sub-folder per class"
    if tree.others[".csv"] + tree.others[".tsv"]:
        hint = "to use a list, give its file"
    elif any(tree.others[e] for e in (".zip", ".tar", ".rar", ".7z", ".gz", ".tgz")):
        hint = "unpack the archives in it first"
    return VideoError(f"{where} has no videos; {total} other files were ignored", hint)


def _refuse_clashes(where, labels):
    seen = {}
    for label in sorted(labels):
        composed = unicodedata.normalize("NFC", label)
        other = seen.setdefault(composed.casefold(), label)
        if other != label:
            alike = unicodedata.normalize("NFC", other) == composed  # on a screen: only codes tell one from the other
            names = " and ".join(ascii(name) if alike else f"'{printable(name)}'" for name in (other, label))
            raise VideoError(
                f"{printable(where)} has two classes {names} that differ in spelling alone", "rename or merge them"
            )


def _refuse_unknown(where, classes, there):
    if unknown := [c for c in classes if c not in there]:
        raise UsageError(
            f"{printable(where)} has no class '{printable(unknown[0])}'; it has {_listed(sorted(there))}",
            "choose among these",
        )


# --- lists


def _from_lists(root, files, classes):
    """The rows of one list, or of one for each split, as a listing."""
    kinds, rows = [], []
    for file, split in files:
        kind, parsed = _parsed(file)
        kinds.append(kind)
        rows += [replace(r, item=replace(r.item, split=split)) for r in parsed] if split else parsed
    for row in rows:
        if any(len(label) > MOST_LABEL for label in row.item.labels):
            raise _bad(row.file, row.line, f"a label of over {MOST_LABEL} characters")
    where = files[0][0] if len(files) == 1 else root
    kind = kinds[0] if len(files) == 1 else f"{', '.join(printable(f.name) for f, _ in files)}: {kinds[0]}"
    labels = {label for r in rows for label in r.item.labels}
    if not labels:
        raise _no_labels(where)
    _refuse_clashes(where, labels)
    _refuse_unknown(where, classes, labels)
    multi_label = any(r.several for r in rows)
    if classes:
        rows = _narrowed(rows, classes, multi_label)
    items, skipped = _located(rows, root)
    if not items:
        raise _none_left(where, rows, skipped)
    if not any(i.labels for i in items):
        raise _no_labels(where)
    items.sort(key=lambda i: (i.path, i.start or 0.0, math.inf if i.end is None else i.end))
    return Listing(root, tuple(items), tuple(sorted(skipped)), 0, multi_label, kind)


def _no_labels(where):
    return VideoError(
        f"no video that is there in {printable(where)} has a label",
        "the label column names the class; several are joined as a;b",
    )


def _narrowed(rows, classes, multi_label):
    """The rows with labels of `classes` alone; with several labels to a video it stays without any too."""
    rows = [
        replace(r, item=replace(r.item, labels=tuple(label for label in r.item.labels if label in classes)))
        for r in rows
    ]
    return [r for r in rows if multi_label or r.item.labels]


def _bad(file, line, what, hint="mend that line"):
    return VideoError(f"{printable(file)} line {line}: {what}", hint)


def _text_of(file):
    """The text of a list, bytes that are no UTF-8 kept as surrogates; refused when it is none."""
    where = printable(file)
    try:
        info = os.stat(file)
        if not stat.S_ISREG(info.st_mode):  # opening a pipe could wait for ever
            raise VideoError(f"{where} is not a regular file", _EXPECTED)
        if file.suffix.lower() in video.EXTENSIONS:
            raise VideoError(f"{where} is a video, not a folder or a list of videos", _EXPECTED)
        with open(file, "rb") as opened:
            _refuse_others(file, opened.read(300))
            if info.st_size > MOST_BYTES:
                raise VideoError(
                    f"{where} has {info.st_size / 2**20:.0f} MB; a list has at most {MOST_BYTES >> 20}",
                    "split it into several lists",
                )
            opened.seek(0)
            data = opened.read()
    except FileNotFoundError:
        raise VideoError(f"{where} does not exist", _EXPECTED) from None
    except OSError as error:
        raise VideoError(f"{where} cannot be read: {error.strerror}", "check the path and its permissions") from None
    if b"\0" in data:
        raise VideoError(f"{where} is a file, but no list: it holds bytes that are no text", _EXPECTED)
    text = data.decode("utf-8-sig", "surrogateescape")
    if not text.strip():
        raise VideoError(f"{where} is a file with nothing in it", _EXPECTED)
    return text


def _refuse_others(file, head):
    """Files that are known by their first bytes and are no lists."""
    where = printable(file)
    if any(head[at : at + len(magic)] == magic for magic, at in _ARCHIVES.items()):
        if file.suffix.lower() in _SHEETS:
            raise VideoError(f"{where} is a spreadsheet", "save it as CSV (UTF-8), and give that")
        raise VideoError(f"{where} is an archive", "unpack it first, and give the folder")
    if (head[:1] == b"\0" and head[4:8] == b"ftyp") or head[:4] == b"\x1a\x45\xdf\xa3":
        raise VideoError(f"{where} is a video, not a folder or a list of videos", _EXPECTED)
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise VideoError(f"{where} is UTF-16 text", "save it as UTF-8")


def _parsed(file):
    """`(kind in words, rows)` of one list."""
    text = _text_of(file)
    head = text[: 2**20]
    if re.match(r"\s*original_vide?o_id\s", head):
        raise VideoError(f"{printable(file)} is SlowFast's list of pictures", _FRAMES)
    delimiter, columns = _header(file, head)
    if columns:
        return _with_header(file, text, delimiter, columns)
    fits = {d: _fits(head, d) for d in ",\t "}
    delimiter = max(fits, key=fits.get)
    if fits[delimiter] and delimiter == " ":
        return "a space-separated list", list(_spaced_rows(file, text))
    if fits[delimiter]:
        return "a list without a header", _plain_rows(file, text, delimiter)
    line, first = next(_lines(text))
    raise _bad(
        file,
        line,
        f"'{printable(first)[:100]}' is neither a header nor path,label",
        "the first line names the columns, path,label[,group,split,start,end]; commas or tabs between them (a;b are two labels)",
    )


def _header(file, head):
    """`(delimiter, column → index)` when the first line names columns."""
    best = ("", {})
    for delimiter in ",\t":
        cells = _first(head, delimiter)
        columns = _columns(file, cells)
        if (
            columns.keys() & {"path", "label", "youtube", "actions"}
            and not any(map(_ends_like_video, cells))
            and len(columns) > len(best[1])
        ):
            best = (delimiter, columns)
    return best


def _columns(file, cells):
    names = [re.sub(r"[\s\-]+", "_", c.strip().lower()) for c in cells]
    columns = {}
    for column, aliases in _ALIASES.items():
        for alias in aliases:
            if alias in names and column not in columns:
                columns[column] = names.index(alias)
                if names.count(alias) > 1:
                    raise _bad(file, 1, f"two columns are called {alias}", "keep one of them")
    return columns


def _first(head, delimiter):
    try:
        return next(
            row
            for row in csv.reader(io.StringIO(head, newline=""), delimiter=delimiter, skipinitialspace=True)
            if "".join(row).strip()
        )
    except (StopIteration, csv.Error):
        return []


def _fits(head, delimiter):
    """How well the first rows are path and label under `delimiter`: a path that ends like a video counts most."""
    rows = (_spaced(line) for _, line in _lines(head)) if delimiter == " " else _loose(head, delimiter)
    return sum(
        3 if _ends_like_video(cells[0]) else 1
        for cells in islice(rows, 200)
        if len(cells) == 2 and "".join(cells).strip()
    )


def _spaced(line):
    """`(path, numbers)` of a path that may hold spaces and whole numbers after it; or nothing. By hand, as a pattern takes
    time that grows with the square of a line."""
    line = line.rstrip()
    rest = line.rstrip("0123456789 \t")
    ending, _, numbers = line[len(rest) :].replace("\t", " ").partition(" ")  # of a path such as x.mp4, the 4
    return (rest + ending, numbers) if numbers and rest + ending else ()


def _loose(head, delimiter):
    try:
        yield from csv.reader(io.StringIO(head, newline=""), delimiter=delimiter, skipinitialspace=True)
    except csv.Error:
        return


def _lines(text):
    """`(number, line)` of every line that is not blank."""
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        if line.strip():
            yield number, line


def _ends_like_video(name):
    return os.path.splitext(name.strip())[1].lower() in video.EXTENSIONS


def _records(file, text, delimiter, width, exact=False):
    """`(line number, cells)` of every row that is not blank, each with `width` cells; a header is a row like others."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=not exact)
    line = 1
    try:
        for cells in reader:
            if any(c.strip() for c in cells):
                if len(cells) != width:
                    raise _bad(
                        file,
                        line,
                        f"{_count(len(cells), 'column')} instead of {width}",
                        "put names that hold commas between quotes",
                    )
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        what = f"quotes that do not fit or a cell without end ({printable(str(error))})"
        raise _bad(file, line, what, 'a quote inside quotes is written twice: ""') from None


def _count(number, what):
    return f"{number} {what}{'' if number == 1 else 's'}"


def _with_header(file, text, delimiter, columns):
    header = _first(text[: 2**20], delimiter)
    own = tuple(header) == COLUMNS
    records = islice(_records(file, text, delimiter, len(header), own), 1, None)
    has = columns.keys()
    if {"id", "actions"} <= has:
        kind, make = "a Charades list", _charades_row
    elif "path" not in has and {"youtube", "start", "end"} <= has:
        kind, make = "a Kinetics list", _kinetics_row
    elif own:
        kind, make = "nlzoo's list", _own_row
    else:
        kind, make = "a list with a header", _general_row
    needed = {"a Charades list": (), "a Kinetics list": ("label",)}.get(kind, ("path", "label"))
    if missing := [name for name in needed if name not in has]:
        raise _bad(
            file, 1, f"no column is called {missing[0]}; there are {_listed(header)}", "name the columns path and label"
        )
    rows = [make(file, line, {name: cells[index] for name, index in columns.items()}) for line, cells in records]
    if not rows:
        raise VideoError(f"{printable(file)} has a header and no rows", "add a row for each video")
    return kind, rows


def _plain_rows(file, text, delimiter):
    """Rows of a list without a header: path and label."""
    rows = [
        _general_row(file, line, {"path": path, "label": label})
        for line, (path, label) in _records(file, text, delimiter, 2)
    ]
    if not _ends_like_video(rows[0].item.path) and any(_ends_like_video(r.item.path) for r in rows):
        raise _bad(
            file,
            rows[0].line,
            f"'{printable(rows[0].item.path)[:60]}' is neither a video nor a header that is known",
            "call the columns path and label",
        )
    return rows


def _spaced_rows(file, text):
    """Rows of SlowFast's and mmaction2's lists: path and whole numbers, several for several labels."""
    for line, row in _lines(text):
        cells = _spaced(row)
        if not cells:
            raise _bad(
                file,
                line,
                f"'{printable(row)[:100]}' does not end in the number of a class",
                "each line is a path, a space and a number",
            )
        labels = cells[1].split()
        yield _Row(Item(cells[0], tuple(sorted(set(labels)))), file, line, len(labels) > 1)


def _general_row(file, line, cells):
    labels = tuple(sorted({part.strip() for part in cells["label"].split(";")} - {""}))
    start, end = _part(file, line, cells.get("start", ""), cells.get("end", ""))
    item = Item(_path(file, line, cells), labels, cells.get("group", "").strip(), _split(file, line, cells), start, end)
    return _Row(item, file, line, ";" in cells["label"] or not labels)


def _own_row(file, line, cells):
    """A row that `write` made: nothing is stripped, and `\\;` is a semicolon inside a label."""
    parts = re.findall(r"(?:\\.|[^\\;])+", cells["label"], re.S)
    labels = tuple(re.sub(r"\\(.)", r"\1", p, flags=re.S) for p in parts)
    start, end = _part(file, line, cells["start"], cells["end"])
    frames, seconds = (
        _number(file, line, "frames", cells["frames"] or "0"),
        _number(file, line, "seconds", cells["seconds"] or "0"),
    )
    item = Item(
        _path(file, line, cells), labels, cells["group"], _split(file, line, cells), start, end, int(frames), seconds
    )
    return _Row(item, file, line, [cells["label"]] != parts)


def _kinetics_row(file, line, cells):
    name, label = cells["youtube"].strip(), cells["label"].strip()
    start, end = _part(file, line, cells["start"], cells["end"])
    if not name or not label:
        raise _bad(file, line, f"no {'label' if name else 'video'} is named")
    stems = (name,)
    if start is not None and end is not None and start == int(start) and end == int(end):
        stems = (f"{name}_{int(start):06d}_{int(end):06d}", name)
    item = Item(f"{stems[0]}.mp4", (label,), name, _split(file, line, cells), start, end)
    return _Row(item, file, line, False, stems)


def _charades_row(file, line, cells):
    name = cells["id"].strip()
    if not name:
        raise _bad(file, line, "no id")
    labels = set()
    for action in filter(None, map(str.strip, cells["actions"].split(";"))):
        fields = action.split()
        if len(fields) != 3:
            raise _bad(
                file,
                line,
                f"action '{printable(action)[:60]}' is not a class, a start and an end",
                "for example c092 11.90 21.20",
            )
        for what, cell in zip(("start", "end"), fields[1:]):
            _number(file, line, what, cell)
        labels.add(fields[0])
    item = Item(f"{name}.mp4", tuple(sorted(labels)), cells.get("subject", "").strip(), _split(file, line, cells))
    return _Row(item, file, line, True, (name,))


def _path(file, line, cells):
    if not cells["path"].strip():
        raise _bad(file, line, "no path is given")
    return cells["path"]


def _split(file, line, cells):
    word = cells.get("split", "").strip().lower()
    if word and word not in SPLITS:
        raise _bad(file, line, f"split '{printable(word)[:60]}' is none of train, val, test")
    return SPLITS[word] if word else ""


def _part(file, line, start, end):
    """`(start, end)` in seconds, None where a cell is empty."""
    first = _number(file, line, "start", start) if start.strip() else None
    last = _number(file, line, "end", end) if end.strip() else None
    if last is not None and last <= (first or 0.0):
        raise _bad(file, line, f"end {last} is not after start {first or 0.0}")
    return first, last


def _number(file, line, what, cell):
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise _bad(
            file,
            line,
            f"{what} '{printable(cell)[:60]}' is not a number from 0 up",
            "seconds, with a point: 65.5" if what in ("start", "end") else "",
        )
    return value


# --- the files of lists


def _located(rows, root):
    """`(items, skipped)`: each row's file looked for, paths made relative to `root`, each part of a file once."""
    base, here = os.path.abspath(root), os.getcwd()
    by_stem = _stems(rows, base, here)
    items, skipped, seen = [], [], {}
    for row in rows:
        item, problem = _by_stem(row, by_stem) if row.stems else _by_path(row.item, base, here)
        problem = problem or _repeats(row, item, seen)
        if problem:
            skipped.append(problem)
        else:
            items.append(item)
    return items, skipped


def _by_path(item, base, here):
    names = dict.fromkeys(
        (item.path, item.path.strip(), item.path.replace("\\", "/"), item.path.strip().replace("\\", "/"))
    )
    for name in names:
        for folder in (base, here):
            full = os.path.join(folder, name)
            try:
                mode = os.stat(full).st_mode
            except OSError:
                continue
            found = replace(item, path=_relative(full, base))
            return found, Skipped(found.path, FOLDER, "is a folder, not a video") if stat.S_ISDIR(mode) else None
    return item, _not_found(item)


def _not_found(item):
    return Skipped(item.path, NOT_FOUND, "is listed, but there is no such file")


def _relative(full, base):
    full, base = Path(full).as_posix(), Path(base).as_posix()
    return full.removeprefix(base.rstrip("/") + "/")


def _stems(rows, base, here):
    """File name without ending → path, for the names that rows ask for: below the list's folder, else the working folder."""
    wanted = {stem for r in rows for stem in r.stems}
    if not wanted:
        return {}
    found = _wanted_below(base, base, wanted)
    inside = os.path.realpath(here).startswith(os.path.join(os.path.realpath(base), ""))
    if (
        os.path.realpath(here) != os.path.realpath(base)
        and not inside
        and any(not found.keys() & set(r.stems) for r in rows)
    ):
        found = _wanted_below(here, base, wanted) | found
    return found


def _wanted_below(folder, base, wanted):
    """The nearest to `folder` where there are several of one name."""
    found = {}
    for path in sorted(walk(folder)[0], key=lambda p: (p.count("/"), p)):
        stem = os.path.splitext(path.rpartition("/")[2])[0]
        if stem in wanted and stem not in found:
            found[stem] = _relative(os.path.join(folder, path), base)
    return found


def _by_stem(row, by_stem):
    for stem in row.stems:
        if stem in by_stem:
            trimmed = stem != row.stems[-1]
            start, end = (None, None) if trimmed else (row.item.start, row.item.end)
            return replace(row.item, path=by_stem[stem], start=start, end=end), None
    return row.item, _not_found(row.item)


def _repeats(row, item, seen):
    """The entry when the same part of the same file was there before; refused when its labels were others."""
    key = (item.path, item.start or 0.0, item.end)
    if key not in seen:
        seen[key] = (row, item)
        return None
    first, before = seen[key]
    if set(before.labels) != set(item.labels):
        was, now = (printable(";".join(i.labels)) or "no label" for i in (before, item))
        raise _bad(
            row.file,
            row.line,
            f"{printable(item.path)} is '{now}' here and '{was}' in {printable(first.file.name)} line {first.line}",
            "keep one of them; a video of several classes is one row with a;b for its label",
        )
    other = f" ({before.split} and {item.split})" if before.split != item.split else ""
    return Skipped(item.path, LISTED_TWICE, "is listed twice" + other)


def _none_left(where, rows, skipped):
    first = skipped[0]
    if any(s.code == FOLDER for s in skipped) or not any(_ends_like_video(r.item.path) for r in rows):
        return VideoError(f"{printable(where)} lists no videos: {printable(first.path)} {first.reason}", _FRAMES)
    hint = "paths are relative to the list's folder, or to the folder that nlzoo is started in"
    if rows[0].stems:
        hint = f"the videos are looked for below the list's folder and the working folder, as {' or '.join(rows[0].stems)} with a video's ending"
    return VideoError(
        f"{printable(where)} lists {_count(len(rows), 'video')}, and none is there; the first: {printable(first.path)}",
        printable(hint),
    )


# --- writing


def write(used: Listing | Iterable[Item], file: Path) -> None:
    """Writes a list that `read` gives back as the same items, whatever is in the names; UTF-8, raw bytes where names are none.

    Items are written as they are; those of a `Listing` whose root is not the file's folder with absolute paths, so that
    the list can be read from where it is. Replaces `file` in one step. Raises `DiskError`.
    """
    file = Path(file)
    base, several = "", False
    if isinstance(used, Listing):
        base = "" if os.path.realpath(used.root) == os.path.realpath(file.parent) else os.path.abspath(used.root)
        several, used = used.multi_label, used.items
    part = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with open(part, "w", encoding="utf-8", errors="surrogateescape", newline="") as opened:
            out = csv.writer(opened)
            out.writerow(COLUMNS)
            out.writerows(_cells(i, base, several) for i in used)
            opened.flush()
            os.fsync(opened.fileno())
        os.replace(part, file)
    except OSError as error:
        raise DiskError(
            f"{printable(file)} could not be written ({error.strerror})", "free some room, or check its folder"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def _cells(item, base, several) -> Iterator[object]:
    labels = ";".join(re.sub(r"([\\;])", r"\\\1", label) for label in item.labels)
    if several and len(item.labels) == 1:
        labels += ";"  # one label of a task with several
    return (
        os.path.join(base, item.path),
        labels,
        item.group,
        item.split,
        item.start,
        item.end,
        item.frames,
        item.seconds,
    )
