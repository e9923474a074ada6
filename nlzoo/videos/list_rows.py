"""The rows of a list, whatever of the field's formats it is in. Files that it names are not looked at here."""

import csv
import io
import json
import math
import re
import shlex
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from ..core import archives, tables
from ..core.errors import VideoError
from ..core.files import VIDEO_EXTENSIONS
from ..core.text import counted, printable, quoted
from .frame_folder import RATE
from .items import CHARADES, EPIC, EXPECTED, FRAMES, HEADER, KINETICS, OWN, PLAIN, SPACED, SPLITS, Item, ends_like_video

COLUMNS = ("path", "label", "group", "split", "start", "end", "frames", "seconds")  # of the lists that nlzoo writes
RATED = (*COLUMNS, "fps")  # the same, where the rate of a folder of frames was given
MAX_FPS = 1000
MAX_BYTES = 512 * 2**20  # of a list
MAX_LABEL = 1000  # characters, as in spec.ModelSpec
JSON_LINES, PARQUET = ".jsonl", ".parquet"  # lists whose rows name their cells
_HEAD = 2**20  # characters by which a format is recognised

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
_PATHS = "path video_path file_path filepath clip_path video file filename file_name video_file_name video_name"
_ALIASES = {  # column: what people call it; the first that is there counts
    "path": _PATHS.split(),
    "label": "label labels class class_name label_name target targets tag".split(),
    "group": ["group"],
    "split": ["split"],
    "start": ["start", "start_time", "time_start"],
    "end": ["end", "end_time", "time_end"],
    "frames": ["frames"],
    "seconds": ["seconds"],
    "fps": ["fps", "frame_rate", "framerate"],
    "youtube": ["youtube_id", "video_id"],
    "id": ["id"],
    "actions": ["actions"],
    "subject": ["subject"],
    "verb": ["verb"],
    "start_clock": ["start_timestamp"],
    "stop_clock": ["stop_timestamp"],
    "stop_frame": ["stop_frame"],
}


@dataclass(frozen=True)
class Row:
    """One row of a list; its item's path is as it is written there."""

    item: Item
    file: Path
    line: int
    several: bool = False  # its labels are for a multi-label task
    stems: tuple[str, ...] = ()  # file names without ending to look for, the best first, where no path is written


def bad_row(file: Path, line: int, what: str, hint: str = "fix that line") -> VideoError:
    """The error for one line of a list."""
    return VideoError(f"{printable(file)} line {line}: {what}", hint)


def parse(file: Path) -> tuple[str, list[Row]]:
    """`(code of its kind, rows)` of one list. Raises `VideoError`."""
    if file.suffix.lower() in (JSON_LINES, PARQUET):
        kind, rows = _with_names(file, _objects(file))
    else:
        kind, rows = _of_text(file, _text_of(file))
    for row in rows:
        if any(len(label) > MAX_LABEL for label in row.item.labels):
            raise bad_row(file, row.line, f"a label of over {MAX_LABEL} characters")
    return kind, rows


def has_labels(file: Path) -> bool:
    """Whether a list, of which only the beginning is read, has columns of paths and of labels."""
    try:
        if file.suffix.lower() in (JSON_LINES, PARQUET):
            cells = list(next(_objects(file))[1])
        else:
            with io.TextIOWrapper(archives.open_file(file), "utf-8-sig", "surrogateescape", newline="") as text:
                cells = next(_cells_of(text.read(_HEAD), ","), [])
        return {"path", "label"} <= _columns(file, cells).keys()
    except (OSError, StopIteration):
        return False


def _of_text(file: Path, text: str) -> tuple[str, list[Row]]:
    head = text[:_HEAD]
    if re.match(r"\s*original_vide?o_id\s", head):
        raise VideoError(f"{printable(file)} is SlowFast's list of pictures", FRAMES)
    delimiter, columns = _header(file, head)
    return _with_header(file, text, delimiter, columns) if columns else _without_header(file, text, head)


# --- the text


def _text_of(file: Path) -> str:
    """The text of a list, bytes that are no UTF-8 kept as surrogates. Raises `VideoError` where it is none."""
    source = printable(file)
    try:
        info = archives.stat(file)
        if not stat.S_ISREG(info.st_mode):  # opening a pipe could wait for ever
            raise VideoError(f"{source} is not a regular file", EXPECTED)
        if file.suffix.lower() in VIDEO_EXTENSIONS:
            raise VideoError(f"{source} is a video, not a folder or a list of videos", EXPECTED)
        with archives.open_file(file) as opened:
            _refuse_others(file, opened.read(300))
            if info.st_size > MAX_BYTES:
                raise VideoError(
                    f"{source} has {info.st_size / 2**20:.0f} MB; a list has at most {MAX_BYTES >> 20}",
                    "split it into several lists",
                )
            opened.seek(0)
            data = opened.read()
    except OSError as error:
        raise VideoError(f"{source} cannot be read: {error.strerror}", "check the path and its permissions") from None
    if b"\0" in data:
        raise VideoError(f"{source} is a file, but no list: it holds bytes that are no text", EXPECTED)
    text = data.decode("utf-8-sig", "surrogateescape")
    if not text.strip():
        raise VideoError(f"{source} is a file with nothing in it", EXPECTED)
    return text


def _refuse_others(file: Path, head: bytes) -> None:
    """Raises `VideoError` for a file that is known by its first bytes and is no list."""
    packed = any(head[at : at + len(magic)] == magic for magic, at in _ARCHIVES.items())
    is_sheet = packed and file.suffix.lower() in _SHEETS
    is_video = (head[:1] == b"\0" and head[4:8] == b"ftyp") or head[:4] == b"\x1a\x45\xdf\xa3"
    for holds, what, hint in (
        (is_sheet, "a spreadsheet", "save it as CSV (UTF-8), and give that"),
        (packed, "an archive", f"unpack it, and give the folder: {unpacking(file)}"),
        (is_video, "a video, not a folder or a list of videos", EXPECTED),
        (head[:2] in (b"\xff\xfe", b"\xfe\xff"), "UTF-16 text", "save it as UTF-8"),
    ):
        if holds:
            raise VideoError(f"{printable(file)} is {what}", hint)


def unpacking(file: Path) -> str:
    """The command that unpacks an archive into a folder beside it; both programs keep its members inside."""
    name = file.name.partition(".")[0] or "videos"
    source, folder = (shlex.quote(printable(path)) for path in (file, file.with_name(f"{name}-unpacked")))
    if file.suffix.lower() == ".zip":
        return f"unzip -q {source} -d {folder}"
    return f"mkdir {folder} && tar -xf {source} -C {folder}"


def _cells_of(text: str, delimiter: str) -> Iterator[list[str]]:
    """Rows of CSV as far as they can be read."""
    with suppress(csv.Error):
        yield from csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)


def _records(file: Path, text: str, delimiter: str, width: int, exact: bool = False) -> Iterator[tuple[int, list[str]]]:
    """`(line number, cells)` of every row that is not blank, `width` cells each; a header is a row like others."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=not exact)
    line = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                if len(cells) != width:
                    what = f"{counted(len(cells), 'column')} instead of {width}"
                    raise bad_row(file, line, what, f"put names that hold {delimiter!r} between quotes")
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        what = f"quotes that do not fit or a cell without end ({printable(str(error))})"
        raise bad_row(file, line, what, 'a quote inside quotes is written twice: ""') from None


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """`(number, line)` of every line that is not blank."""
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        if line.strip():
            yield number, line


# --- lists without a header


def _without_header(file: Path, text: str, head: str) -> tuple[str, list[Row]]:
    fits = {delimiter: _fits(head, delimiter) for delimiter in ",\t ;"}
    delimiter = max(fits, key=lambda d: fits[d])
    if not fits[delimiter]:
        line, first = next(_lines(text))
        raise bad_row(
            file,
            line,
            f"{quoted([first])} is neither a header nor path,label",
            "the first line names the columns: path,label[,group,split,start,end], with commas, tabs or semicolons",
        )
    if delimiter == " ":
        return SPACED, list(_spaced_rows(file, text))
    return PLAIN, _plain_rows(file, text, delimiter)


def _fits(head: str, delimiter: str) -> int:
    """How well the first rows are path and label; a path that ends like a video counts most."""
    rows = (_spaced(line) for _, line in _lines(head)) if delimiter == " " else _cells_of(head, delimiter)
    pairs = [cells for cells in islice(rows, 200) if len(cells) == 2 and "".join(cells).strip()]
    return sum(3 if ends_like_video(cells[0]) else 1 for cells in pairs)


def _plain_rows(file: Path, text: str, delimiter: str) -> list[Row]:
    """Rows of path and label."""
    records = _records(file, text, delimiter, 2)
    rows = [_general_row(file, line, {"path": path, "label": label}) for line, (path, label) in records]
    if delimiter == ";":  # as of Something-Something and Jester, whose ids name files or folders somewhere below
        rows = [replace(row, stems=() if _is_path(row.item.path) else (row.item.path.strip(),)) for row in rows]
    first = rows[0]
    if not ends_like_video(first.item.path) and any(ends_like_video(row.item.path) for row in rows):
        raise bad_row(
            file,
            first.line,
            f"{quoted([first.item.path])} is neither a video nor a header that is known",
            "call the columns path and label",
        )
    return rows


def _is_path(text: str) -> bool:
    return ends_like_video(text) or "/" in text


def _spaced(line: str) -> list[str]:
    """`[path, numbers]` of a path that may hold spaces and whole numbers after it; or nothing.

    By hand, as a pattern takes time that grows with the square of a line.
    """
    line = line.rstrip()
    rest = line.rstrip("0123456789 \t")
    ending, _, numbers = line[len(rest) :].replace("\t", " ").partition(" ")  # of a path such as x.mp4, the 4
    return [rest + ending, numbers] if numbers and rest + ending else []


def _spaced_rows(file: Path, text: str) -> Iterator[Row]:
    """Rows of SlowFast's and mmaction2's lists: path and whole numbers, several for several labels.

    Of folders of frames mmaction2 has their number before the label, or from where on and how many.
    """
    rows = []
    for line, row in _lines(text):
        cells = _spaced(row)
        if not cells:
            what = f"{quoted([row])} does not end in the number of a class"
            raise bad_row(file, line, what, "each line is a path, a space and a number")
        rows.append((line, cells[0], cells[1].split()))
    widths = {len(numbers) for _, path, numbers in rows if not ends_like_video(path)}
    before = 0 if 1 in widths else 2 if widths == {3} else 1  # numbers that are no labels
    for line, path, numbers in rows:
        start, end, labels = None, None, numbers
        if before and not ends_like_video(path):
            start, end = _frames(file, line, numbers[:before])
            labels = numbers[before:]
        yield Row(Item(path, tuple(sorted(set(labels))), start=start, end=end), file, line, len(labels) > 1)


def _frames(file: Path, line: int, numbers: list[str]) -> tuple[float | None, float]:
    """`[start,] total` of a folder of frames in seconds, at the rate that folders without one have."""
    start, total = (0, *map(int, numbers))[-2:]
    if not total:
        raise bad_row(file, line, "a folder of 0 frames", "the numbers are: frames, class; or: start, frames, class")
    return start / RATE if start else None, (start + total) / RATE


# --- lists with a header


def _header(file: Path, head: str) -> tuple[str, dict[str, int]]:
    """`(delimiter, column → index)`; no columns when the first line names none."""
    best: tuple[str, dict[str, int]] = ("", {})
    for delimiter in ",\t;":
        cells = next((cells for cells in _cells_of(head, delimiter) if "".join(cells).strip()), [])
        columns = _columns(file, cells)
        known = columns.keys() & {"path", "label", "youtube", "actions"}
        if known and len(columns) > len(best[1]) and not any(map(ends_like_video, cells)):
            best = (delimiter, columns)
    return best


def _columns(file: Path, cells: list[str]) -> dict[str, int]:
    """Column → index."""
    names = [re.sub(r"[\s\-]+", "_", cell.strip().lower()) for cell in cells]
    there = {column: [alias for alias in aliases if alias in names] for column, aliases in _ALIASES.items()}
    columns = {column: aliases[0] for column, aliases in there.items() if aliases}
    twice = [alias for alias in columns.values() if names.count(alias) > 1]
    if twice:
        raise bad_row(file, 1, f"two columns are called {twice[0]}", "keep one of them")
    return {column: names.index(alias) for column, alias in columns.items()}


def _with_header(file: Path, text: str, delimiter: str, columns: dict[str, int]) -> tuple[str, list[Row]]:
    header = next(cells for cells in _cells_of(text[:_HEAD], delimiter) if "".join(cells).strip())
    kind = _kind_of(header, columns)
    make = _maker(file, kind, header, columns)
    records = islice(_records(file, text, delimiter, len(header), kind == OWN), 1, None)
    rows = [make(file, line, {name: cells[at] for name, at in columns.items()}) for line, cells in records]
    if not rows:
        raise VideoError(f"{printable(file)} has a header and no rows", "add a row for each video")
    return kind, rows


def _maker(file: Path, kind: str, header: list[str], columns: dict[str, int]) -> "Maker":
    make, needed = _FORMATS[kind]
    missing = [name for name in needed if name not in columns]
    if missing:
        what = f"no column is called {missing[0]}; there are {quoted(header)}"
        raise bad_row(file, 1, what, "name the columns path and label")
    return make


def _with_names(file: Path, objects: Iterator[tuple[int, dict]]) -> tuple[str, list[Row]]:
    """Rows whose cells have names, as in JSON lines and Parquet. The first one says which there are."""
    rows: list[Row] = []
    for line, values in objects:
        if not rows:
            header = list(values)
            columns = _columns(file, header)
            make = _maker(file, HEADER, header, columns)
        rows.append(make(file, line, {name: _cell(values.get(header[at])) for name, at in columns.items()}))
    if not rows:
        raise VideoError(f"{printable(file)} has no rows", "add a row for each video")
    return HEADER, rows


def _cell(value: object) -> str:
    """A value as a row of text would have it; several labels are a list."""
    if isinstance(value, list):
        return ";".join(map(_cell, value)) + ";"
    return "" if value is None else str(value)


def _objects(file: Path) -> Iterator[tuple[int, dict]]:
    """`(line, values by name)` of JSON lines or Parquet. Raises `VideoError`."""
    if file.suffix.lower() == PARQUET:
        try:
            yield from enumerate(tables.read_parquet(file), 1)
        except ValueError as error:
            raise VideoError(
                f"{printable(file)} cannot be read as Parquet: {printable(str(error))}", EXPECTED
            ) from None
        return
    for line, text in _lines(_text_of(file)):
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise bad_row(file, line, f"no JSON: {printable(str(error))}") from None
        if not isinstance(values, dict):
            raise bad_row(file, line, "not an object with names", 'for example {"file_name": "1.mp4", "label": "wave"}')
        yield line, values


def _kind_of(header: list[str], columns: dict[str, int]) -> str:
    if {"id", "actions"} <= columns.keys():
        return CHARADES
    if "path" not in columns and {"youtube", "start", "end"} <= columns.keys():
        return KINETICS
    if "path" not in columns and {"youtube", "start_clock", "stop_clock", "stop_frame"} <= columns.keys():
        return EPIC
    return OWN if tuple(header) in (COLUMNS, RATED) else HEADER


def _general_row(file: Path, line: int, cells: dict[str, str]) -> Row:
    labels = tuple(sorted({part.strip() for part in cells["label"].split(";")} - {""}))
    start, end = _part(file, line, cells.get("start", ""), cells.get("end", ""))
    path, group, split = _path(file, line, cells), cells.get("group", "").strip(), _split(file, line, cells)
    item = Item(path, labels, group, split, start, end, fps=_rate(file, line, cells))
    return Row(item, file, line, ";" in cells["label"] or not labels)


def _own_row(file: Path, line: int, cells: dict[str, str]) -> Row:
    """A row that nlzoo wrote: nothing is stripped, and `\\;` is a semicolon inside a label."""
    parts = re.findall(r"(?:\\.|[^\\;])+", cells["label"], re.S)
    labels = tuple(re.sub(r"\\(.)", r"\1", part, flags=re.S) for part in parts)
    item = Item(
        _path(file, line, cells),
        labels,
        cells["group"],
        _split(file, line, cells),
        *_part(file, line, cells["start"], cells["end"]),
        frames=int(_number(file, line, "frames", cells["frames"] or "0")),
        seconds=_number(file, line, "seconds", cells["seconds"] or "0"),
        fps=_rate(file, line, cells),
    )
    return Row(item, file, line, [cells["label"]] != parts)


def _kinetics_row(file: Path, line: int, cells: dict[str, str]) -> Row:
    name, label = cells["youtube"].strip(), cells["label"].strip()
    start, end = _part(file, line, cells["start"], cells["end"])
    if not name or not label:
        raise bad_row(file, line, f"no {'label' if name else 'video'} is named")
    stems: tuple[str, ...] = (name,)
    if start is not None and end is not None and start == int(start) and end == int(end):
        stems = (f"{name}_{int(start):06d}_{int(end):06d}", name)
    item = Item(f"{stems[0]}.mp4", (label,), name, _split(file, line, cells), start, end)
    return Row(item, file, line, False, stems)


def _epic_row(file: Path, line: int, cells: dict[str, str]) -> Row:
    """The rate of the frames follows from the end, which is written as a time and as the number of a frame."""
    name, label = cells["youtube"].strip(), cells.get("label", cells.get("verb", "")).strip()
    if not name or not label:
        raise bad_row(file, line, f"no {'verb' if name else 'video'} is named")
    clocks = [_clock(file, line, cells[column]) for column in ("start_clock", "stop_clock")]
    start, end = _part(file, line, *map(str, clocks))
    fps = _number(file, line, "stop_frame", cells["stop_frame"]) / clocks[1]
    item = Item(f"{name}.mp4", (label,), name, _split(file, line, cells), start, end, fps=min(fps, MAX_FPS))
    return Row(item, file, line, False, (name,))


def _clock(file: Path, line: int, cell: str) -> float:
    """`00:01:05.5` in seconds."""
    match = re.fullmatch(r"\s*(\d{1,3}):(\d\d):(\d\d(?:\.\d{1,9})?)\s*", cell)
    if not match:
        raise bad_row(file, line, f"{quoted([cell])} is not a time", "hours, minutes and seconds: 00:01:05.5")
    return 3600 * int(match[1]) + 60 * int(match[2]) + float(match[3])


def _charades_row(file: Path, line: int, cells: dict[str, str]) -> Row:
    name = cells["id"].strip()
    if not name:
        raise bad_row(file, line, "no id")
    labels = set()
    for action in filter(None, map(str.strip, cells["actions"].split(";"))):
        fields = action.split()
        if len(fields) != 3:
            what = f"action {quoted([action])} is not a class, a start and an end"
            raise bad_row(file, line, what, "for example c092 11.90 21.20")
        _number(file, line, "start", fields[1])
        _number(file, line, "end", fields[2])
        labels.add(fields[0])
    item = Item(f"{name}.mp4", tuple(sorted(labels)), cells.get("subject", "").strip(), _split(file, line, cells))
    return Row(item, file, line, True, (name,))


Maker = Callable[[Path, int, dict[str, str]], Row]
_FORMATS: dict[str, tuple[Maker, tuple[str, ...]]] = {  # maker, needed columns
    CHARADES: (_charades_row, ()),
    KINETICS: (_kinetics_row, ("label",)),
    EPIC: (_epic_row, ()),
    OWN: (_own_row, ("path", "label")),
    HEADER: (_general_row, ("path", "label")),
}


# --- cells


def _path(file: Path, line: int, cells: dict[str, str]) -> str:
    if not cells["path"].strip():
        raise bad_row(file, line, "no path is given")
    return cells["path"]


def _split(file: Path, line: int, cells: dict[str, str]) -> str:
    word = cells.get("split", "").strip().lower()
    if word and word not in SPLITS:
        raise bad_row(file, line, f"split {quoted([word])} is none of train, val, test")
    return SPLITS[word] if word else ""


def _part(file: Path, line: int, start: str, end: str) -> tuple[float | None, float | None]:
    """`(start, end)` in seconds, None where a cell is empty."""
    first = _number(file, line, "start", start) if start.strip() else None
    last = _number(file, line, "end", end) if end.strip() else None
    if last is not None and last <= (first or 0.0):
        raise bad_row(file, line, f"end {last} is not after start {first or 0.0}")
    return first, last


def _rate(file: Path, line: int, cells: dict[str, str]) -> float:
    """Of a folder of frames; a file knows its own. 0 where the cell is empty."""
    fps = _number(file, line, "fps", cells.get("fps", "").strip() or "0")
    if fps > MAX_FPS:
        raise bad_row(file, line, f"fps {fps:g} is over {MAX_FPS}")
    return fps


def _number(file: Path, line: int, what: str, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        hint = "seconds, with a point: 65.5" if what in ("start", "end") else ""
        raise bad_row(file, line, f"{what} {quoted([cell])} is not a number from 0 up", hint)
    return value
