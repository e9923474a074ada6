"""Training and validation without leaks: clips of one recording form a group, and whole groups go to one side."""

import os
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from ..core.errors import UsageError, VideoError
from ..core.text import counted, printable, quoted
from .items import TEST, TRAIN, VAL, Item, names_in

DRAWS, MANY = 20, 1000  # draws that are tried where the share is missed; groups from which on one is as good as many
_RULES = {
    "column": "grouped by the column group",
    "ucf": "grouped by gNN in the file name",
    "times": "grouped by the file name before the times",
    "folder": "grouped by sub-folder",
    "stem": "grouped by the file name without its last number",
    "video": "each video a group of its own",
    "given": "split as given",
}
_ORDINALS = {1: "1st", 2: "2nd", 3: "3rd"}


@dataclass(frozen=True)
class Rule:
    """What made the groups of a split, or that the split was given."""

    code: str
    field: int = 0  # of the file name, from 1, where the code is "field"

    def __str__(self) -> str:
        if self.code == "field":
            return f"grouped by the {_ORDINALS.get(self.field, f'{self.field}th')} field of the file name"
        return _RULES.get(self.code, "grouped by a rule that this version does not know")


# --- groups


def grouped(
    items: Sequence[Item],
    levels: int,
    copies: Callable[[list[str]], dict[str, str]],
    val_root: str = "",
    val_levels: int = 0,
) -> tuple[tuple[Item, ...], Rule]:
    """The items with their groups, and the rule that made them.

    `levels`: folders of a path that belong to the layout (class, `train/`) and say nothing of recordings; `val_levels`:
    those of paths below `val_root`.
    `copies(paths)` gives a digest for each path of a file whose bytes another file may have too. Parts of one file, and
    files with the same bytes, always share a group. A group named in a list counts; rows without one are groups of
    their own.
    """
    if any(item.group for item in items):
        keys, rule = [item.group or item.path for item in items], Rule("column")
    else:
        inside = f"{val_root}/" if val_root else "\0"
        below = [
            item.path[len(inside) :].split("/", val_levels)[-1]
            if item.path.startswith(inside)
            else item.path.split("/", levels)[-1]
            for item in items
        ]
        keys, rule = group_keys(below, [";".join(item.labels) for item in items])
    return _joined(items, keys, copies([item.path for item in items])), rule


def group_keys(paths: list[str], labels: list[str]) -> tuple[list[str], Rule]:
    """What paths below the class folders say of clips cut from one recording: a group for each, and the rule.

    Known patterns first (`v_x_g01_c02`: UCF101; `id_000010_000020`: Kinetics). Then sub-folders, where every class
    has several and they hold several videos. Otherwise names are read as fields between `_`, `-` and spaces: the
    first field that neither numbers the files nor follows from the class is the recording (`4_1_0`: sequence 1).
    Otherwise a number at the end counts clips of one recording (`tape_3` with `tape_4`), as long as that leaves each
    class several groups.
    """
    stems = [os.path.splitext(os.path.basename(path))[0] for path in paths]
    for pattern, code in ((r".*_(g\d+)_c\d+$", "ucf"), (r"(.+)_\d{6}_\d{6}$", "times")):
        matches = [match for match in (re.match(pattern, stem) for stem in stems) if match]
        if len(matches) == len(stems):
            return [match[1] for match in matches], Rule(code)
    for keys, rule in _candidates(paths, stems):
        if _names_recordings(keys, labels):
            return keys, rule
    return stems, Rule("video")


def _candidates(paths: list[str], stems: list[str]) -> Iterable[tuple[list[str], Rule]]:
    """What might name recordings, the likeliest first."""
    folders = [os.path.dirname(path) for path in paths]
    if all(folders):
        yield folders, Rule("folder")
    rows = [re.split(r"[_\- ]+", stem) for stem in stems]
    if len({len(row) for row in rows}) == 1:
        for number, column in enumerate(zip(*rows), 1):
            yield list(column), Rule("field", number)
    yield [re.sub(r"[_\- ]*\d+$", "", stem) or stem for stem in stems], Rule("stem")


def _names_recordings(keys: list[str], labels: list[str]) -> bool:
    """Neither one value per file nor one per class, and several values in every class."""
    per_class = defaultdict(set)
    for label, key in zip(labels, keys):
        per_class[label].add(key)
    return len(set(keys)) < len(keys) and all(len(values) > 1 for values in per_class.values())


def _joined(items: Sequence[Item], keys: list[str], digests: dict[str, str]) -> tuple[Item, ...]:
    """Groups that share a file, or a file's bytes, become one."""
    leader = {key: key for key in keys}  # a forest; what belongs together ends under one root

    def top(group: str) -> str:
        while leader[group] != group:
            leader[group] = leader[leader[group]]
            group = leader[group]
        return group

    first: dict[str, str] = {}
    for item, key in zip(items, keys):
        leader[top(key)] = top(first.setdefault(digests.get(item.path, item.path), key))
    return tuple(replace(item, group=top(key)) for item, key in zip(items, keys))


# --- the split


def split(items: Sequence[Item], val: str, seed: int, rule: Rule) -> tuple[tuple[Item, ...], Rule]:
    """Every item that is not for testing in `train` or `val`, whole groups at a time; and the rule of the split.

    `val`: a share of the videos such as `0.25`, drawn by `seed` so that every class is on both sides where that can be;
    a fold such as `2/5`, the second of five that the seed makes; or names of groups, as a row of CSV (`8,9,10`). What
    folders, a list or `--val DIR` (`listing.read`) say of the split is kept as it is. `rule` is how the groups were
    made. Raises `UsageError`, and `VideoError` when a class would have no training clip or nothing is left to validate
    on.
    """
    open_ = [item for item in items if item.split != TEST]
    if not open_:
        raise VideoError(
            f"all {counted(len(items), 'video')} are marked test: none is left to train on", "mark videos train and val"
        )
    if any(item.split == VAL for item in open_):
        rule = Rule("given")
        result = tuple(item if item.split else replace(item, split=TRAIN) for item in items)
    else:
        held = _held_out(open_, val, seed, rule)
        result = tuple(
            item if item.split == TEST else replace(item, split=VAL if item.group in held else TRAIN) for item in items
        )
    _refuse_untrained(result, rule)
    return result, rule


def _refuse_untrained(items: Sequence[Item], rule: Rule) -> None:
    """Raises `VideoError` where a side of the split is empty, or a class has no training clip."""
    sides: dict[str, set[str]] = defaultdict(set)  # class → the parts that it is in
    for item in items:
        for label in item.labels:
            sides[label].add(item.split)
    used = {item.split for item in items}
    if TRAIN not in used:
        raise VideoError(
            f"no clip is left to train on: all are for validation{' or test' if TEST in used else ''} ({rule})",
            "mark videos train, or choose another --val",
        )
    missing = [label for label in sorted(sides) if TRAIN not in sides[label]]
    if missing:
        others = " and ".join(sorted(sides[missing[0]]))
        raise VideoError(
            f"class {quoted(missing[:1])} has no training clip left after the split ({rule}): it is only in {others}",
            "add clips of it, choose another --val, or leave it out with --classes",
        )
    if VAL not in used:
        raise VideoError(
            f"no clip is left to validate on: each class lies in one group ({rule})",
            "add recordings, or give train/ and val/ folders",
        )


def straddling(items: Sequence[Item]) -> int:
    """How many groups lie on both sides."""
    sides = {part: {item.group for item in items if item.split == part} for part in (TRAIN, VAL)}
    return len(sides[TRAIN] & sides[VAL])


def doubts(items: Sequence[Item], val: str, rule: Rule) -> list[str]:
    """What a user should know of a split before its figures are believed: a sentence each."""
    held = [item for item in items if item.split == VAL]
    sentences = []
    if both := straddling(items):
        sentences.append(
            f"{both} groups of clips are on both sides of the split that was given: its figures will flatter"
        )
    trained = {label for item in items if item.split == TRAIN for label in item.labels}
    if unseen := sorted(trained - {label for item in held for label in item.labels}):
        sentences.append(
            f"{counted(len(unseen), 'class has', 'classes have')} no video to validate on: {quoted(unseen, 3)}; "
            "the figures leave that out"
        )
    share = None if rule.code == "given" else _share(val)
    total = sum(item.split != TEST for item in items)
    if share and abs(len(held) - share * total) > _tolerance(share * total):
        sentences.append(
            f"{len(held)} of {total} videos are for validation ({len(held) / total:.0%}), not the {share:.0%} that "
            f"--val asks for: whole groups ({rule}) go to one side, and every class keeps some to train on"
        )
    return sentences


def _held_out(items: list[Item], val: str, seed: int, rule: Rule) -> set[str]:
    """The groups to validate on."""
    groups = sorted({item.group for item in items})
    fold, share = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", val), _share(val)
    if not fold and share is None:
        named = set(names_in(val, groups))
        unknown = sorted(named - set(groups))
        if unknown:
            raise UsageError(
                f"--val {printable(val)}: no group {quoted(unknown[:1])}; there are {len(groups)}: {quoted(groups)}",
                "give a share such as 0.2, a fold such as 1/5, names of groups, or a folder or list that is there",
            )
        return named
    if len(groups) < 2:
        raise VideoError(
            f"all videos seem to come from one recording, {quoted(groups)} ({rule})",
            "give train/ and val/ folders, to say that it is meant so",
        )
    if fold:
        return _fold(items, groups, int(fold[1]), int(fold[2]), seed)
    return _draw(items, groups, share or 0.0, seed)


def check_val(val: str) -> None:
    """Raises `UsageError` for a share or a fold that no videos can have."""
    fold = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", val)
    if not val.strip() or fold and not 1 <= int(fold[1]) <= int(fold[2]) or fold and int(fold[2]) < 2:
        raise UsageError(f"--val {val!r} is no share, fold, group or folder", "for example --val 0.2, or --val 1/5")
    _share(val)


def _share(val: str) -> float | None:
    """The share of the videos that `val` names; None for folds and names of groups."""
    try:
        share = float(val)
    except ValueError:
        return None
    if share >= 1 and share < float("inf") and share == int(share):  # the name of a group
        return None
    if not 0 < share < 1:
        raise UsageError(f"--val {val} is no share of the videos; it must lie between 0 and 1", "for example --val 0.2")
    return share


def _draw(items: list[Item], groups: list[str], share: float, seed: int) -> set[str]:
    """The groups that are held out: the first draw with about `share` of the videos, or the nearest of `DRAWS`."""
    import numpy as np

    sizes: dict[str, Counter[str]] = defaultdict(Counter)
    for item in items:
        sizes[item.group].update(item.labels)
    videos = Counter(item.group for item in items)
    target = share * len(items)
    # whole groups come no nearer than half a group; so a video more or less does not exchange the others' sides
    accepted = max(_tolerance(target), median(videos.values()) / 2)
    draws: list[tuple[bool, float, int, set[str]]] = []  # nothing held, by how much the share is missed, number, held
    for key in ([seed, 0x5EED], *([seed, 0x5EED, n] for n in range(1, DRAWS if len(groups) < MANY else 1))):
        order = [str(group) for group in np.random.default_rng(key).permutation(groups)]
        held = _drawn(order, sizes, videos, share, accepted)
        off = abs(target - sum(videos[group] for group in held))
        if held and off <= accepted:
            return held
        draws.append((not held, off, len(draws), held))
    return min(draws)[-1]


def _tolerance(target: float) -> float:
    """Videos by which the number held out may miss `target`."""
    return max(1.0, target / 5)


def _drawn(
    order: list[str], sizes: dict[str, Counter[str]], videos: Counter[str], share: float, accepted: float
) -> set[str]:
    """Groups in `order`, each held out while it takes a class nearer to its share and leaves it trainable.

    Then, where too few videos are held out, groups that bring their number nearer to the share. `sizes`: clips of each
    class in a group; `videos`: videos in a group; `accepted`: videos by which the share may be missed.
    """
    totals: Counter[str] = Counter()
    for clips in sizes.values():
        totals.update(clips)
    targets = {label: max(1.0, share * total) for label, total in totals.items()}
    held: set[str] = set()
    counts: Counter[str] = Counter()

    def hold_if_trainable(group: str) -> None:
        if all(counts[label] + number < totals[label] for label, number in sizes[group].items()):
            held.add(group)
            counts.update(sizes[group])

    for group in order:
        if _gain(sizes[group], counts, targets) > 0:
            hold_if_trainable(group)
    missing = share * videos.total() - sum(videos[group] for group in held)
    free = [group for group in order if group not in held]
    for group in sorted(free, key=lambda group: abs(missing - videos[group])):
        if not held or (missing > accepted and abs(missing - videos[group]) < missing):
            hold_if_trainable(group)
            missing -= videos[group] if group in held else 0
    return held


def _gain(clips: Counter[str], counts: Counter[str], targets: dict[str, float]) -> float:
    """By how many clips the classes come nearer to their targets with these `clips` beside the `counts` held out."""
    return sum(
        abs(counts[label] - targets[label]) - abs(counts[label] + number - targets[label])
        for label, number in clips.items()
    )


def _fold(items: list[Item], groups: list[str], number: int, folds: int, seed: int) -> set[str]:
    """Groups of one fold; the folds share the groups out, each class over as many folds as it can be."""
    if not 2 <= folds <= len(groups) or not 1 <= number <= folds:
        most = min(5, len(groups))
        raise UsageError(
            f"--val {number}/{folds}: there are {len(groups)} groups", f"1/{most} is the first of {most} folds"
        )
    from sklearn.model_selection import StratifiedGroupKFold

    labels = [";".join(item.labels) for item in items]
    with warnings.catch_warnings():  # of classes with fewer clips than folds: `split` says what matters of that
        warnings.simplefilter("ignore", UserWarning)
        folder = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        _, held = list(folder.split(labels, labels, [item.group for item in items]))[number - 1]
    return {items[index].group for index in held}
