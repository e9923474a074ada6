"""What is wrong with a folder of videos, before hours of training find it out.

Unusual here: beside broken files, it looks for what makes a good score worthless. The same content under two labels
cannot be learnt. Where the shape of the frames or the length of the videos alone predicts a class, a network will learn
that shortcut; whether it does is found by cross-validation of a small tree on that one number, against the same with
shuffled labels. Whether they are ready to train on is asked of what `finetune` itself asks: `scanning` and its split.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np

from ..core.errors import VideoError
from ..core.progress import Log, Progress, no_log, no_progress
from ..core.skipped import Skipped
from ..core.text import counted, printable, quoted
from ..videos import records, scanning, splits, video
from ..videos.items import Item, Listing
from ..videos.records import Record

MOST_REPEATED = 0.1  # share of frames equal to the one before, above which a file is named
MOST_UNEVEN = 5  # times the clips of the smallest class
FEWEST = 3  # clips of a class, below which nothing is left to validate on
# Of the shortcut test; docs/check.md has its false alarms and what it finds
SURE = 0.005  # share of shuffles, the labels themselves included, at most, that may do as well as the labels do
SHUFFLES = 199
GAIN = 0.1  # of balanced accuracy over guessing, at least; or
GIVEN_AWAY = 0.5  # of one class: share of its clips found, less the share of other clips taken for it
MOST_ROWS = 2000  # clips that are enough to see it
_SHOWN = 20  # rows of a list in words
_FACTS = (
    "container",
    "codec",
    "width",
    "height",
    "frames",
    "fps",
    "seconds",
    "rotation",
    "variable",
    "still",
    "repeated",
    "sound",
)
Pair = tuple[Item, Record]


@dataclass(frozen=True)
class Finding:
    """Something that training can live with, and the user should know."""

    code: str
    message: str  # one sentence
    hint: str  # what to do

    @property
    def kind(self) -> str:
        """The code in words."""
        return self.code.replace("_", " ")


@dataclass(frozen=True)
class Report:
    """What is in a folder or list, and what is wrong with it."""

    source: str  # in words
    files: int  # used, skipped and ignored
    used: int  # files
    clips: int  # that is, videos or parts of them
    skipped: tuple[Skipped, ...]
    ignored: int  # files that are no videos
    classes: dict[str, dict]  # clips; seconds of a clip: min, median, max; sizes: {"320x240": clips}, commonest first
    videos: tuple[dict, ...]  # a row for each clip
    warnings: tuple[Finding, ...]
    reason: str  # why training could not start; empty when it could

    @property
    def could_train(self) -> bool:
        """Whether the videos are ready to train on."""
        return not self.reason


def look(
    listing: Listing,
    level: int = records.THREE,
    workers: int | None = None,
    progress: Progress = no_progress,
    log: Log = no_log,
    val: str = "0.25",
    seed: int = 0,
) -> Report:
    """Examines every file of `listing` as closely as `level` says (`records.THREE`, or `ALL`), and reports."""
    paths = [os.path.join(listing.root, item.path) for item in listing.items]
    probed = records.examine(paths, level, workers, progress, log)
    sizes = {record.path: record.size for record in probed if not record.problem}
    return check(listing, probed, records.contents(sizes, workers, log), val, seed)


def check(
    listing: Listing, probed: Sequence[Record], digests: Mapping[str, str], val: str = "0.25", seed: int = 0
) -> Report:
    """The report on a listing; `probed` has the record of each item's file, `digests` what files hold of which others
    may be copies (`records.contents`), by `Record.path`. `val` and `seed` are those of the split that training would
    make. Raises `UsageError` for a `val` that cannot be.
    """
    known = {item.path: record for item, record in zip(listing.items, probed, strict=True)}

    def copies(paths: list[str]) -> dict[str, str]:
        return {path: digests[known[path].path] for path in paths if known[path].path in digests}

    dataset = scanning.collect(listing, known, copies)
    pairs = [(item, known[item.path]) for item in dataset.items]
    reason, doubts = _readiness(dataset, val, seed)
    used = {item.path for item in dataset.items}
    return Report(
        source=f"{printable(dataset.root)}: {dataset.kind}",
        files=len(used | {entry.path for entry in dataset.skipped}) + dataset.ignored,
        used=len(used),
        clips=len(pairs),
        skipped=dataset.skipped,
        ignored=dataset.ignored,
        classes=_classes(pairs),
        videos=tuple(map(_row, pairs)),
        warnings=(*doubts, *_findings(pairs, digests, dataset.multi_label)),
        reason=reason,
    )


def _readiness(dataset: scanning.Dataset, val: str, seed: int) -> tuple[str, list[Finding]]:
    """`(why finetune would refuse, in one sentence, or "", what it would warn of in the split and in the folders)`."""
    no_class = "nothing to do where it is meant to be no class; otherwise add its videos"
    left_out = [Finding("left_out", sentence, no_class) for sentence in scanning.left_out(dataset)]
    try:
        scanning.refuse_unusable(dataset)
        dataset = scanning.split(dataset, val, seed)
    except VideoError as error:
        return error.message.partition(":\n")[0], left_out
    sentences = splits.doubts(dataset.items, val, dataset.grouped_by)
    doubts = [Finding("split", sentence, "choose another --val, or add recordings") for sentence in sentences]
    return "", [*doubts, *left_out]


def to_json(report: Report) -> dict:
    """The report as plain values: what `nlzoo check --json` prints."""
    return vars(report) | {
        "skipped": [asdict(entry) for entry in report.skipped],
        "warnings": [{"kind": finding.kind, **asdict(finding)} for finding in report.warnings],
        "could_train": report.could_train,
    }


def in_words(report: Report) -> str:
    """The report for a person: classes, kinds of files, problems, warnings, and whether they are ready to train on."""
    skipped = report.files - report.used - report.ignored
    lines = [
        report.source,
        f"{counted(report.files, 'file')}: {report.used} used, {skipped} skipped, {report.ignored} ignored; "
        f"{counted(report.clips, 'clip')}",
        "",
        *_table(_by_class(report)),
        "",
        *_kinds(list({v["path"]: v for v in report.videos}.values())),
        *_skipped(report),
    ]
    for finding in report.warnings:
        lines += [f"{finding.kind}: {finding.message}", f"  {finding.hint}"]
    if report.warnings:
        lines.append("")
    lines.append(f"not ready: {report.reason}" if report.reason else "ready to train")
    return "\n".join(lines)


def _by_class(report: Report) -> list[tuple[str, ...]]:
    """The rows of the table of classes, its head first."""
    rows: list[tuple[str, ...]] = [("class", "clips", "seconds: min", "median", "max", "sizes")]
    for label, c in report.classes.items():
        sizes = _few([f"{size} ({number})" for size, number in c["sizes"].items()], 3)
        seconds = (f"{value:.1f}" for value in c["seconds"].values())
        rows.append((printable(label), str(c["clips"]), *seconds, sizes))
    return rows


def _skipped(report: Report) -> list[str]:
    """The first files that were skipped, each with its reason."""
    if not report.skipped:
        return []
    more = len(report.skipped) - _SHOWN
    rest = [f"  … and {more} more"] if more > 0 else []
    return ["skipped:", *(f"  {entry}" for entry in report.skipped[:_SHOWN]), *rest, ""]


def _kinds(videos: Sequence[dict]) -> list[str]:
    """Codecs and containers, and how many files have sound; nothing of no videos."""
    if not videos:
        return []
    kinds = Counter(f"{v['codec']} in {v['container']}" for v in videos)
    heard = sum(v["sound"] for v in videos)
    sound = f"{heard} of {counted(len(videos), 'file')} with sound" if heard else "no sound"
    return [_few([f"{kind} ({number})" for kind, number in kinds.most_common()], 6), sound, ""]


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows in columns; all but the first and the last are numbers, to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for first, *numbers, last in rows:
        middle = [cell.rjust(width) for cell, width in zip(numbers, widths[1:])]
        lines.append("  ".join([first.ljust(widths[0]), *middle, last]).rstrip())
    return lines


def _few(texts: list[str], most: int) -> str:
    more = f", {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


# --- counting


def _row(pair: Pair) -> dict:
    item, record = pair
    part = {"start": item.start, "end": item.end} if item.start is not None or item.end is not None else {}
    return {"path": item.path, "labels": list(item.labels), **part, **{name: getattr(record, name) for name in _FACTS}}


def _classes(pairs: list[Pair]) -> dict[str, dict]:
    members: dict[str, list[Pair]] = defaultdict(list)
    for item, record in pairs:
        for label in item.labels:
            members[label].append((item, record))
    result = {}
    for label in sorted(members):
        lengths = [item.seconds for item, _ in members[label]]
        sizes = Counter(f"{record.width}x{record.height}" for _, record in members[label]).most_common()
        seconds = {"min": min(lengths), "median": median(lengths), "max": max(lengths)}
        result[label] = {"clips": len(lengths), "seconds": seconds, "sizes": dict(sizes)}
    return result


# --- findings


def _findings(pairs: list[Pair], digests: Mapping[str, str], multi_label: bool) -> Iterator[Finding]:
    files = list({record.path: (item.path, record) for item, record in pairs}.values())
    contents = [(digests[record.path], item) for item, record in pairs if record.path in digests]
    yield from _copies(contents)
    yield from _leaks(contents)
    if not multi_label:
        yield from _conflicts(contents)
    yield from _repeats(files)
    yield from _variable(files)
    yield from _gaps(files)
    if not multi_label:
        yield from _shortcuts(pairs)
    yield from _sizes(Counter(label for item, _ in pairs for label in item.labels))


def _copies(contents: list[tuple[str, Item]]) -> Iterator[Finding]:
    copies = _differing((content, item.path, item.path) for content, item in contents)
    if copies:
        extra = sum(map(len, copies)) - len(copies)
        yield Finding(
            "duplicates",
            f"{counted(extra, 'file has', 'files have')} the same content as another, for example {_both(copies[0])}",
            "they will stay on one side of a split that nlzoo makes; remove them, or those clips count double",
        )


def _leaks(contents: list[tuple[str, Item]]) -> Iterator[Finding]:
    both = _differing((content, item.split, item.path) for content, item in contents if item.split)
    if both:
        yield Finding(
            "leak",
            f"{counted(len(both), 'file is', 'files are')} in more than one of train, val and test: {_both(both[0])} "
            "have the same content",
            "remove one of each: figures on what was trained on mean nothing",
        )


def _conflicts(contents: list[tuple[str, Item]]) -> Iterator[Finding]:
    clashes = _differing(((content, item.start, item.end), item.labels, item.path) for content, item in contents)
    if clashes:
        (one, first), (other, second) = clashes[0][:2]
        yield Finding(
            "conflict",
            f"{counted(len(clashes), 'file has', 'files have')} two labels: {printable(first)} is {quoted(one)} and "
            f"{printable(second)}, the same content, {quoted(other)}",
            "remove the wrong one; a video with both labels needs a list with 'a;b'",
        )


def _differing(entries: Iterable[tuple[Hashable, Any, str]]) -> list[list[tuple[Any, str]]]:
    """Of each content (and part) that comes with several values: these, and a path for each, by path."""
    paths: dict[Hashable, dict[Any, str]] = defaultdict(dict)
    for content, value, path in entries:
        paths[content].setdefault(value, path)
    return [sorted(path.items(), key=lambda entry: entry[1]) for path in paths.values() if len(path) > 1]


def _both(differing: list[tuple[Any, str]]) -> str:
    return " and ".join(printable(path) for _, path in differing[:2])


def _repeats(files: Iterable[tuple[str, Record]]) -> Iterator[Finding]:
    still = [path for path, record in files if record.still]
    if still:
        yield Finding(
            "still",
            f"{counted(len(still), 'file seems', 'files seem')} to show one still picture, "
            f"for example {printable(still[0])}",
            "no action can be seen there; leave them out unless it is meant so",
        )
    repeated = [(record.repeated or 0.0, path) for path, record in files if not record.still]
    repeated = sorted((entry for entry in repeated if entry[0] > MOST_REPEATED), reverse=True)
    if repeated:
        share, path = repeated[0]
        yield Finding(
            "repeats",
            f"{counted(len(repeated), 'file repeats', 'files repeat')} over {MOST_REPEATED:.0%} of the frames: in "
            f"{printable(path)}, {share:.0%} equal the one before",
            "damage and a frame rate that was raised look so: get the original; "
            "a screen or a slide that stands still for a while looks so too, and is fine",
        )


def _variable(files: Iterable[tuple[str, Record]]) -> Iterator[Finding]:
    varying = [path for path, record in files if record.variable]
    if varying:
        yield Finding(
            "variable_rate",
            f"{counted(len(varying), 'file has', 'files have')} a variable frame rate, "
            f"for example {printable(varying[0])}",
            "nothing to do: frames are counted, and read right",
        )


def _gaps(files: Iterable[tuple[str, Record]]) -> Iterator[Finding]:
    gaps = [(record.missing, path) for path, record in files if record.missing]
    if gaps:
        most, path = max(gaps)
        yield Finding(
            "gaps",
            f"{counted(len(gaps), 'folder leaves', 'folders leave')} out numbers of frames, for example "
            f"{printable(path)} {most:,} of them",
            "nothing to do where it is meant so: the frames that are there are used; otherwise extract them again",
        )


def _sizes(clips: Counter[str]) -> Iterator[Finding]:
    ranked = sorted(clips.items(), key=lambda entry: (entry[1], entry[0]))
    few = [label for label, number in ranked if number < FEWEST]
    if few:
        yield Finding(
            "few",
            f"{counted(len(few), 'class has', 'classes have')} fewer than {FEWEST} clips and cannot be validated: "
            f"{quoted(few, 3)}",
            "add clips of them, or leave them out",
        )
    if ranked and ranked[-1][1] > MOST_UNEVEN * ranked[0][1]:
        (small, fewest), (large, most) = ranked[0], ranked[-1]
        yield Finding(
            "imbalance",
            f"class {quoted([large])} has {counted(most, 'clip')} and {quoted([small])} {fewest}",
            "look at the mean over classes and not at top-1 alone; add clips of the small ones",
        )


def _shortcuts(pairs: list[Pair]) -> Iterator[Finding]:
    labels = [item.labels[0] for item, _ in pairs]
    groups = [item.group for item, _ in pairs]
    # seconds; frames where folders of frames are among the videos, whose rate nobody knows
    known = all(record.container != video.FOLDER or item.fps for item, record in pairs)
    numbers = {
        "shape": ("the shape of the frames", [record.width / record.height for _, record in pairs]),
        "duration": ("duration", [item.seconds if known else item.frames for item, _ in pairs]),
    }
    for name, (words, values) in numbers.items():
        shortcut = find_shortcut(values, labels, groups)
        if shortcut:
            yield Finding(
                f"{name}_shortcut",
                f"class {quoted([shortcut.label])} can be predicted from {words} alone: "
                f"{shortcut.recall:.0%} of its clips are found; the mean over classes is {shortcut.score:.0%} "
                f"(chance: {shortcut.chance:.0%})",
                "a network may learn this shortcut and not the action: give all classes videos of one kind, "
                "or leave the class out",
            )


# --- shortcuts


@dataclass(frozen=True)
class Shortcut:
    """How well one number predicts the classes."""

    label: str  # the class that it predicts best
    recall: float  # share of its clips that are found
    score: float  # mean recall over the classes
    chance: float  # the score of guessing
    p: float  # share of shuffles that do as well


def find_shortcut(
    values: Sequence[float], labels: Sequence[str], groups: Sequence[str], seed: int = 0
) -> Shortcut | None:
    """Whether `values` predict `labels` clearly better than guessing: None when not.

    Clips of one group (and label) are like one another for reasons of their own, and count as one; "" is no group.
    Classes with fewer than `FEWEST` such are left out.
    """
    rng = np.random.default_rng(seed)
    x, y, names, blocks = _independent(values, labels, groups, rng)
    if len(names) < 2 or len(np.unique(x)) < 2:
        return None
    folds, chance, grouped = _folds(y, blocks), 1 / len(names), (blocks >= 0).any()
    recall, margin = _margins(y, _predicted(x, y, folds))
    if recall.mean() - chance < GAIN and margin.max() < GIVEN_AWAY:
        return None
    as_good = 1  # the labels themselves
    for _ in range(SHUFFLES):
        shuffled = _shuffled(y, blocks, rng)
        folds = folds if grouped else _folds(shuffled, blocks)  # stratified like the labels' own; slow for many groups
        as_good += _strength(_margins(shuffled, _predicted(x, shuffled, folds))[1]) >= _strength(margin)
        if as_good > SURE * (SHUFFLES + 1):
            return None
    best = int(np.argmax(margin))
    return Shortcut(names[best], float(recall[best]), float(recall.mean()), chance, as_good / (SHUFFLES + 1))


Folds = list[tuple[np.ndarray, np.ndarray]]


def _independent(
    values: Sequence[float], labels: Sequence[str], groups: Sequence[str], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, list[str], np.ndarray]:
    """Values float32 (N, 1), class numbers (N,), class names, and the group of each row (N,), -1 where it is alone."""
    medians = _medians(values, labels, groups, rng)
    names = sorted({label for _, label in medians})
    members = Counter(group for group, _ in medians)
    shared = [group for group, number in members.items() if number > 1]
    numbers = {group: number for number, group in enumerate(shared)}
    x = np.array(list(medians.values()), np.float32).reshape(-1, 1)
    y = np.array([names.index(label) for _, label in medians], int)
    return x, y, names, np.array([numbers.get(group, -1) for group, _ in medians], int)


def _medians(
    values: Sequence[float], labels: Sequence[str], groups: Sequence[str], rng: np.random.Generator
) -> dict[tuple[str | int, str], float]:
    """(group, class) → the median of its clips: of classes that have enough such rows, and of `MOST_ROWS` at most."""
    rows: dict[tuple[str | int, str], list[float]] = defaultdict(list)
    for index, (value, label, group) in enumerate(zip(values, labels, groups)):
        rows[group or index, label].append(value)
    keys = list(rows)
    if len(keys) > MOST_ROWS:
        keys = [keys[index] for index in np.sort(rng.choice(len(keys), MOST_ROWS, replace=False))]
    clips = Counter(label for _, label in keys)
    return {key: median(rows[key]) for key in keys if clips[key[1]] >= FEWEST}


def _folds(y: np.ndarray, blocks: np.ndarray) -> Folds:
    """(train, test) row numbers, stratified; groups are not cut through."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    count = min(5, int(np.bincount(y).min()))
    alone = blocks < 0
    if alone.all():
        return list(StratifiedKFold(count, shuffle=True, random_state=0).split(y, y))
    group = np.where(alone, blocks.max() + 1 + np.arange(len(y)), blocks)
    folder = StratifiedGroupKFold(min(count, len(np.unique(group))), shuffle=True, random_state=0)
    return list(folder.split(y, y, group))


def _predicted(x: np.ndarray, y: np.ndarray, folds: Folds) -> np.ndarray:
    """The class of each row, predicted by a tree that has not seen the row."""
    from sklearn.tree import DecisionTreeClassifier

    predicted, weights = np.empty_like(y), (1 / np.bincount(y))[y]  # a class weighs as much as any other
    for train, test in folds:
        tree = DecisionTreeClassifier(max_depth=3, random_state=0)
        tree.fit(x[train], y[train], weights[train], check_input=False)  # a thousand small fits: checking costs a third
        predicted[test] = tree.predict(x[test], check_input=False)
    return predicted


def _margins(y: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each class its recall, and that less the share of other rows taken for it."""
    size, right = np.bincount(y), np.bincount(y, predicted == y)
    recall = right / size
    return recall, recall - (np.bincount(predicted, minlength=len(size)) - right) / (len(y) - size)


def _strength(margin: np.ndarray) -> float:
    """What is compared with shuffles. Not the mean: one class that is found for certain drowns among others."""
    return float(np.linalg.norm(np.maximum(margin, 0)))


def _shuffled(y: np.ndarray, blocks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Labels dealt out anew: within each group, and among the rows that are in none."""
    y = y.copy()
    for block in np.unique(blocks):
        rows = np.flatnonzero(blocks == block)
        y[rows] = y[rng.permutation(rows)]
    return y
