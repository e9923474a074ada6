"""What is wrong with a folder of videos, before hours of training find it out.

Unusual here: beside broken files, it looks for what makes a good score worthless. The same content under two labels cannot
be learnt; and where the shape of the frames or the length of the videos alone tells a class, the network will learn that.
Whether it does is found by cross-validation of a small tree on that one number, against the same with shuffled labels.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median

import numpy as np

from ..core.skipped import Skipped
from ..core.text import printable
from ..videos import records, scanning, splits
from ..videos.listing import Listing
from ..videos.records import Record

MOST_REPEATED = 0.1  # share of frames equal to the one before, above which a file is named
MOST_UNEVEN = 5  # times the clips of the smallest class
FEWEST = 3  # clips of a class, below which nothing is left to validate on
# Of the leak test; docs/check.md has its false alarms and what it finds
SURE = 0.005  # share of shuffles, the labels themselves included, at most, that may do as well as the labels do
SHUFFLES = 199
GAIN = 0.1  # of balanced accuracy over guessing, at least; or
GIVEN_AWAY = 0.5  # of one class: share of its clips found, less the share of other clips taken for it
MOST_ROWS = 2000  # clips that are enough to see it
_SHOWN = 20  # rows of a list in words


@dataclass(frozen=True)
class Finding:
    """Something that training can live with, and the user should know."""

    kind: str  # "duplicates", "leak", "conflict", "still", "repeats", "variable rate", "shape gives the class away", "duration …", "few", "imbalance"
    message: str  # one sentence
    hint: str  # what to do


@dataclass(frozen=True)
class Class:
    """What there is of a class."""

    clips: int
    seconds: tuple[float, float, float]  # of a clip: least, median, most
    sizes: tuple[tuple[str, int], ...]  # ("320x240", clips), commonest first


@dataclass(frozen=True)
class Report:
    """What is in a folder or list, and what is wrong with it."""

    source: str  # in words
    files: int  # used, skipped and ignored
    used: int  # files
    clips: int  # that is, videos or parts of them
    skipped: tuple[Skipped, ...]
    ignored: int  # files that are no videos
    classes: dict[str, Class]
    videos: tuple[dict, ...]  # a row for each clip
    warnings: tuple[Finding, ...]
    reason: str  # why training could not start; empty when it could

    @property
    def could_train(self) -> bool:
        """Whether training could start."""
        return not self.reason


def look(
    listing: Listing,
    level: int = records.THREE,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    tell: Callable[[str], None] = lambda text: None,
) -> Report:
    """Examines every file of `listing` as closely as `level` says (`records.THREE`, or `ALL`), and reports."""
    paths = [os.path.join(listing.root, item.path) for item in listing.items]
    found = records.examine(paths, level, workers, progress, tell)
    sizes = Counter(r.size for r in {r.path: r for r in found if not r.problem}.values())
    digests = records.digests([r.path for r in found if not r.problem and sizes[r.size] > 1], workers, tell=tell)
    return check(listing, found, digests)


def check(listing: Listing, found: Sequence[Record], digests: Mapping[str, str]) -> Report:
    """The report on a listing; `found` has the record of each item's file, `digests` the sha256 of files of equal size by
    `Record.path`."""
    known = {item.path: record for item, record in zip(listing.items, found, strict=True)}
    items, skipped = scanning.usable(listing, known)
    items, _ = splits.grouped(
        items, listing.levels, lambda paths: {p: digests[known[p].path] for p in paths if known[p].path in digests}
    )
    pairs = [(item, known[item.path]) for item in items]
    used = {item.path for item in items}
    paths = used | {s.path for s in skipped}
    bad = {s.path for s in scanning.bad(skipped, listing.kind)} - used
    return Report(
        source=f"{printable(str(listing.root))}: {listing.kind}", files=len(paths) + listing.ignored, used=len(used), clips=len(pairs),
        skipped=skipped, ignored=listing.ignored, classes=_classes(pairs), videos=tuple(map(_row, pairs)),
        warnings=tuple(_findings(pairs, digests, listing.multi_label)), reason=_obstacle(listing, pairs, len(used), len(bad)))  # fmt: skip


def to_json(report: Report) -> dict:
    """The report as plain values: what `nlzoo check --json` prints."""
    classes = {
        label: {"clips": c.clips, "seconds": dict(zip(("min", "median", "max"), c.seconds)), "sizes": dict(c.sizes)}
        for label, c in report.classes.items()
    }
    return {
        "source": report.source,
        "files": report.files,
        "used": report.used,
        "clips": report.clips,
        "skipped": [asdict(s) for s in report.skipped],
        "ignored": report.ignored,
        "classes": classes,
        "warnings": [asdict(w) for w in report.warnings],
        "videos": list(report.videos),
        "could_train": report.could_train,
        "reason": report.reason,
    }


def in_words(report: Report) -> str:
    """The report for a person: classes, kinds of files, problems, warnings, and whether training could start."""
    rows = [("class", "clips", "seconds: min", "median", "max", "sizes")]
    rows += [
        (
            printable(label),
            str(c.clips),
            *(f"{s:.1f}" for s in c.seconds),
            _few([f"{size} ({n})" for size, n in c.sizes], 3),
        )
        for label, c in report.classes.items()
    ]
    kinds = Counter(f"{v['codec']} in {v['container']}" for v in {v["path"]: v for v in report.videos}.values())
    lines = [
        report.source,
        f"{report.files} files: {report.used} used, {report.files - report.used - report.ignored} skipped, "
        f"{report.ignored} ignored; {report.clips} clips",
        "",
        *_table(rows),
        "",
    ]
    if kinds:
        lines += [_few([f"{kind} ({n})" for kind, n in kinds.most_common()], 6), ""]
    if report.skipped:
        lines += ["skipped:", *(f"  {s}" for s in report.skipped[:_SHOWN])]
        lines += [f"  … and {len(report.skipped) - _SHOWN} more"] * (len(report.skipped) > _SHOWN) + [""]
    for w in report.warnings:
        lines += [f"{w.kind}: {w.message}", f"  {w.hint}"]
    return "\n".join(
        [
            *lines,
            *([""] if report.warnings else []),
            f"training could not start: {report.reason}" if report.reason else "training could start",
        ]
    )


def _table(rows):
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    right = range(1, len(widths) - 1)
    return [
        "  ".join(
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]


def _few(texts, most):
    return ", ".join(texts[:most]) + (f", {len(texts) - most} more" if len(texts) > most else "")


# --- counting


def _row(pair):
    item, record = pair
    values = asdict(record)
    part = {"start": item.start, "end": item.end} if item.start is not None or item.end is not None else {}
    names = (
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
    )
    return {"path": item.path, "labels": list(item.labels), **part, **{name: values[name] for name in names}}


def _classes(pairs):
    members = defaultdict(list)
    for item, record in pairs:
        for label in item.labels:
            members[label].append((item.seconds, f"{record.width}x{record.height}"))
    result = {}
    for label in sorted(members):
        lengths = [seconds for seconds, _ in members[label]]
        sizes = Counter(size for _, size in members[label]).most_common()
        result[label] = Class(len(lengths), (min(lengths), median(lengths), max(lengths)), tuple(sizes))
    return result


def _obstacle(listing, pairs, used, bad):
    """Why training could not start, in one sentence; empty when it could."""
    wanted, have = (
        {label for item in items for label in item.labels} for items in (listing.items, [i for i, _ in pairs])
    )
    if not pairs:
        return "there is no video that can be used"
    if bad > scanning.MOST_BAD * (used + bad):
        return f"{bad} of {used + bad} videos cannot be used; mend or remove them"
    if lost := sorted(wanted - have):
        return f"no clip that can be used is left of class {_names(lost)}"
    if not have:
        return "no video has a label"
    if len(have) < 2 and not listing.multi_label:
        return f"there is one class, {_names(have)}; a classifier needs two"
    return ""


def _names(labels):
    return _few([f"'{printable(label)}'" for label in labels], 3)


# --- findings


def _findings(pairs, digests, multi_label):
    files = {record.path: (item.path, record) for item, record in pairs}.values()
    yield from _copies(pairs, digests, multi_label)
    yield from _repeats(files)
    yield from _variable(files)
    if not multi_label:
        yield from _leaks(pairs)
    yield from _sizes(Counter(label for item, _ in pairs for label in item.labels))


def _copies(pairs, digests, multi_label):
    copies, contents = defaultdict(set), defaultdict(dict)
    for item, record in pairs:
        if content := digests.get(record.path):
            copies[content].add(item.path)
            contents[content, item.start, item.end].setdefault(item.labels, item.path)
    if copies := [sorted(paths) for paths in copies.values() if len(paths) > 1]:
        extra = sum(map(len, copies)) - len(copies)
        yield Finding(
            "duplicates",
            f"{_count(extra, 'file has', 'files have')} the same bytes as another, as {_both(copies[0])}",
            "they will stay on one side of a split that nlzoo makes; remove them, or those clips count double",
        )
    sides = defaultdict(dict)
    for item, record in pairs:
        if item.split and (content := digests.get(record.path)):
            sides[content].setdefault(item.split, item.path)
    if both := [sorted(s.values()) for s in sides.values() if len(s) > 1]:
        yield Finding(
            "leak",
            f"{_count(len(both), 'content lies', 'contents lie')} in more than one of train, val and test: {_both(both[0])}, "
            "with the same bytes",
            "remove one of each: figures on what was trained on mean nothing",
        )
    if not multi_label and (
        clashes := [sorted(c.items(), key=lambda entry: entry[1]) for c in contents.values() if len(c) > 1]
    ):
        (one, first), (other, second) = clashes[0][:2]
        yield Finding(
            "conflict",
            f"{_count(len(clashes), 'content lies', 'contents lie')} under two labels: {printable(first)} is {_names(one)} and "
            f"{printable(second)}, the same bytes, {_names(other)}",
            "remove the wrong one; a video with both labels needs a list with 'a;b'",
        )


def _both(paths):
    return f"{printable(paths[0])} and {printable(paths[1])}"


def _count(number, one, more):
    return f"{number} {one if number == 1 else more}"


def _repeats(files):
    if still := [path for path, r in files if r.still]:
        yield Finding(
            "still",
            f"{_count(len(still), 'file seems', 'files seem')} to show one still picture, as {printable(still[0])}",
            "no action can be seen there; leave them out unless it is meant so",
        )
    worst = sorted(
        ((r.repeated, path) for path, r in files if not r.still and (r.repeated or 0) > MOST_REPEATED), reverse=True
    )
    if worst:
        share, path = worst[0]
        yield Finding(
            "repeats",
            f"{_count(len(worst), 'file repeats', 'files repeat')} over {MOST_REPEATED:.0%} of the frames: in {printable(path)}, "
            f"{share:.0%} equal the one before",
            "damage and a frame rate that was raised look so: get the original; "
            "a screen or a slide that stands still for a while looks so too, and is fine",
        )


def _variable(files):
    if varying := [path for path, r in files if r.variable]:
        yield Finding(
            "variable rate",
            f"{_count(len(varying), 'file has', 'files have')} a variable frame rate, as {printable(varying[0])}",
            "nothing to do: frames are counted, and read right",
        )


def _sizes(clips):
    ranked = sorted(clips.items(), key=lambda entry: (entry[1], entry[0]))
    if few := [label for label, n in ranked if n < FEWEST]:
        yield Finding(
            "few",
            f"{_count(len(few), 'class has', 'classes have')} fewer than {FEWEST} clips and cannot be validated: {_names(few)}",
            "add clips of them, or leave them out",
        )
    if ranked and ranked[-1][1] > MOST_UNEVEN * ranked[0][1]:
        (small, fewest), (large, most) = ranked[0], ranked[-1]
        yield Finding(
            "imbalance",
            f"class {_names([large])} has {most} clips and {_names([small])} {fewest}",
            "look at the mean over classes and not at top-1 alone; add clips of the small ones",
        )


def _leaks(pairs):
    labels = [item.labels[0] for item, _ in pairs]
    groups = [item.group for item, _ in pairs]
    for kind, what, values in (
        ("shape", "the shape of the frames", [record.width / record.height for _, record in pairs]),
        ("duration", "the length of the clips", [item.seconds for item, record in pairs]),
    ):
        if found := leak(values, labels, groups):
            yield Finding(
                f"{kind} gives the class away",
                f"{what} alone tells {_names([found.label])} from the others: {found.found:.0%} of its clips are found; the mean "
                f"over classes is {found.score:.0%} (guessing: {found.chance:.0%})",
                "a network may learn that and not the action: give all classes videos of one kind, or leave that class out",
            )


# --- what gives a class away


@dataclass(frozen=True)
class Leak:
    """How well one number tells the classes."""

    label: str  # told best
    found: float  # share of its clips that are told right
    score: float  # mean of that share over the classes
    chance: float  # the score of guessing
    p: float  # share of shuffles that do as well


def leak(values: Sequence[float], labels: Sequence[str], groups: Sequence[str], seed: int = 0) -> Leak | None:
    """Whether `values` tell `labels` clearly better than guessing: None when not.

    Clips of one group (and label) are like one another for reasons of their own, and count as one; "" is no group.
    Classes with fewer than `FEWEST` such are left out.
    """
    rng = np.random.default_rng(seed)
    x, y, names, blocks = _independent(values, labels, groups, rng)
    if len(names) < 2 or len(np.unique(x)) < 2:
        return None
    folds, chance, grouped = _folds(y, blocks), 1 / len(names), (blocks >= 0).any()
    found, summary = _told(y, _predicted(x, y, folds))
    if found.mean() - chance < GAIN and summary.max() < GIVEN_AWAY:
        return None
    as_good = 1  # the labels themselves
    for _ in range(SHUFFLES):
        shuffled = _shuffled(y, blocks, rng)
        folds = folds if grouped else _folds(shuffled, blocks)  # stratified like the labels' own; slow for many groups
        as_good += _strength(_told(shuffled, _predicted(x, shuffled, folds))[1]) >= _strength(summary)
        if as_good > SURE * (SHUFFLES + 1):
            return None
    best = int(np.argmax(summary))
    return Leak(names[best], float(found[best]), float(found.mean()), chance, as_good / (SHUFFLES + 1))


def _independent(values, labels, groups, rng):
    """Values float32 (N, 1), class numbers (N,), class names, and the group of each row (N,), -1 where no other row shares it."""
    rows = defaultdict(list)
    for i, (value, label, group) in enumerate(zip(values, labels, groups)):
        rows[group or i, label].append(value)
    keys = list(rows)
    if len(keys) > MOST_ROWS:
        keys = [keys[i] for i in np.sort(rng.choice(len(keys), MOST_ROWS, replace=False))]
    enough = {label for label, n in Counter(label for _, label in keys).items() if n >= FEWEST}
    keys = [key for key in keys if key[1] in enough]
    names, shared = sorted(enough), Counter(group for group, _ in keys)
    numbers = {group: n for n, group in enumerate(g for g, count in shared.items() if count > 1)}
    x = np.array([median(rows[key]) for key in keys], np.float32).reshape(-1, 1)
    return (
        x,
        np.array([names.index(label) for _, label in keys], int),
        names,
        np.array([numbers.get(g, -1) for g, _ in keys], int),
    )


def _folds(y, blocks):
    """(train, test) row numbers, stratified; groups are not cut through."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    count = min(5, int(np.bincount(y).min()))
    if (blocks < 0).all():
        return list(StratifiedKFold(count, shuffle=True, random_state=0).split(y, y))
    alone = blocks < 0
    group = np.where(alone, blocks.max() + 1 + np.arange(len(y)), blocks)
    return list(
        StratifiedGroupKFold(min(count, len(np.unique(group))), shuffle=True, random_state=0).split(y, y, group)
    )


def _predicted(x, y, folds):
    """The class of each row as a tree sees it that has not seen the row."""
    from sklearn.tree import DecisionTreeClassifier

    predicted, weights = np.empty_like(y), (1 / np.bincount(y))[y]  # a class weighs as much as any other
    for train, test in folds:
        tree = DecisionTreeClassifier(max_depth=3, random_state=0)
        tree.fit(x[train], y[train], weights[train], check_input=False)  # a thousand small fits: checking costs a third
        predicted[test] = tree.predict(x[test], check_input=False)
    return predicted


def _told(y, predicted):
    """For each class the share of its rows that are found, and that less the share of other rows taken for it."""
    size, right = np.bincount(y), np.bincount(y, predicted == y)
    found = right / size
    return found, found - (np.bincount(predicted, minlength=len(size)) - right) / (len(y) - size)


def _strength(summary):
    """What is compared with shuffles. Not the mean: one class that is told for certain drowns among others that are not."""
    return float(np.linalg.norm(np.maximum(summary, 0)))


def _shuffled(y, blocks, rng):
    """Labels dealt out anew: within each group, and among the rows that are in none."""
    y = y.copy()
    for block in np.unique(blocks):
        rows = np.flatnonzero(blocks == block)
        y[rows] = y[rng.permutation(rows)]
    return y
