"""Training and validation without leaks: clips of one recording form a group, and whole groups go to one side."""

import os
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from ..core.errors import UsageError, VideoError
from ..core.text import printable
from .listing import TEST, TRAIN, VAL, Item

# --- groups


def grouped(
    items: Sequence[Item], levels: int, copies: Callable[[list[str]], dict[str, str]]
) -> tuple[tuple[Item, ...], str]:
    """The items with their groups, and the rule that made them, in words.

    `levels`: folders of a path that belong to the layout (class, `train/`) and say nothing of recordings. `copies(paths)`
    gives a digest for each path of a file whose bytes another file may have too. Parts of one file, and files with the same
    bytes, always share a group. A group named in a list counts; rows without one are groups of their own.
    """
    if any(i.group for i in items):
        keys, rule = [i.group or i.path for i in items], "the column group"
    else:
        keys, rule = group_keys([i.path.split("/", levels)[-1] for i in items], [";".join(i.labels) for i in items])
    return _joined(items, keys, copies([i.path for i in items])), rule


def group_keys(paths: list[str], labels: list[str]) -> tuple[list[str], str]:
    """What paths below the class folders say of clips cut from one recording: a group for each, and the rule in words.

    Known patterns first (`v_x_g01_c02`: UCF101; `id_000010_000020`: Kinetics). Then sub-folders, where every class has
    several and they hold several videos. Otherwise names are read as fields between `_`, `-` and spaces: the first field
    that neither numbers the files nor follows from the class is the recording (`4_1_0`: sequence 1). Otherwise a number at
    the end counts clips of one recording (`tape_3` with `tape_4`), as long as that leaves each class several groups.
    """
    stems = [os.path.splitext(os.path.basename(p))[0] for p in paths]
    for pattern, rule in ((r".*_(g\d+)_c\d+$", "gNN in the name"), (r"(.+)_\d{6}_\d{6}$", "the name before the times")):
        if all(matches := [re.match(pattern, s) for s in stems]):
            return [m[1] for m in matches], rule
    folders = [os.path.dirname(p) for p in paths]
    if all(folders) and _names_recordings(folders, labels):
        return folders, "sub-folder"
    rows = [re.split(r"[_\- ]+", s) for s in stems]
    if len({len(r) for r in rows}) == 1:
        for position, column in enumerate(zip(*rows)):
            if _names_recordings(column, labels):
                return list(column), f"part {position + 1} of the name"
    parents = [re.sub(r"[_\- ]*\d+$", "", s) or s for s in stems]
    if _names_recordings(parents, labels):
        return parents, "the name without its last number"
    return stems, "one video each"


def _names_recordings(column, labels):
    """Neither one value per file nor one per class, and several values in every class."""
    per_class = defaultdict(set)
    for label, value in zip(labels, column):
        per_class[label].add(value)
    return len(set(column)) < len(column) and all(len(values) > 1 for values in per_class.values())


def _joined(items, keys, digests):
    """Groups that share a file, or a file's bytes, become one."""
    leader = {k: k for k in keys}  # a forest; what belongs together ends under one root

    def top(group):
        while leader[group] != group:
            leader[group] = leader[leader[group]]
            group = leader[group]
        return group

    first = {}
    for item, key in zip(items, keys):
        content = digests.get(item.path, item.path)
        leader[top(key)] = top(first.setdefault(content, key))
    return tuple(replace(i, group=top(k)) for i, k in zip(items, keys))


# --- the split


def split(items: Sequence[Item], val: str, seed: int, rule: str) -> tuple[tuple[Item, ...], str]:
    """Every item that is not for testing in `train` or `val`, whole groups at a time; and in words by what.

    `val`: a share such as `0.25`, drawn by `seed` so that every class is on both sides where that can be; a fold such as
    `2/5`, the second of five that the seed makes; or names of groups, comma-separated (`8,9,10`). What folders or a list
    say of the split is kept as it is. `rule` is how the groups were made. Raises `UsageError`, `VideoError` when a class would have no
    training clip or nothing is left to validate on.
    """
    open_ = [i for i in items if i.split != TEST]
    if any(i.split == VAL for i in open_):
        by, held = "as it is given", None
        result = tuple(i if i.split else replace(i, split=TRAIN) for i in items)
    else:
        by, held = rule, _held_out(open_, val, seed, rule)
        result = tuple(i if i.split == TEST else replace(i, split=VAL if i.group in held else TRAIN) for i in items)
    trained = {label for i in result if i.split == TRAIN for label in i.labels}
    if missing := {label for i in open_ for label in i.labels} - trained:
        raise VideoError(
            f"class {printable(min(missing))!r} has no training clip left after the split ({by})",
            "add clips of it, or choose another --val",
        )
    for part in (TRAIN, VAL):
        if not any(i.split == part for i in result):
            raise VideoError(
                f"no clip is left to {'train' if part == TRAIN else 'validate'} on",
                "add clips, or choose another --val",
            )
    return result, by


def straddling(items: Sequence[Item]) -> int:
    """How many groups lie on both sides."""
    sides = {part: {i.group for i in items if i.split == part} for part in (TRAIN, VAL)}
    return len(sides[TRAIN] & sides[VAL])


def _held_out(items, val, seed, rule):
    groups = sorted({i.group for i in items})
    fold, share = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", val), _share(val)
    if not fold and share is None:
        named = {g.strip() for g in val.split(",")}
        if unknown := named - set(groups):
            raise UsageError(
                f"--val {val}: no group {printable(min(unknown))!r}; there are {len(groups)}: {', '.join(map(printable, groups[:12]))}",
                "give a share such as 0.2, a fold such as 1/5, or names of groups",
            )
        return named
    if len(groups) < 2:
        raise VideoError(
            f"all videos seem to come from one recording ({rule}: {printable(groups[0]) if groups else ''!r})",
            "give train/ and val/ folders, to say that it is meant so",
        )
    return _fold(items, groups, int(fold[1]), int(fold[2]), seed) if fold else _draw(items, groups, share, seed)


def _share(val):
    try:
        share = float(val)
    except ValueError:
        return None
    if share >= 1 and share == int(share):  # the name of a group
        return None
    if not 0 < share < 1:
        raise UsageError(f"--val {val} is no share of the videos; it must lie between 0 and 1", "for example --val 0.2")
    return share


def _draw(items, groups, share, seed):
    """Groups in random order; each is held out while it takes a class nearer to its share and leaves it trainable."""
    totals = Counter(label for i in items for label in i.labels)
    sizes = defaultdict(Counter)
    for item in items:
        sizes[item.group].update(item.labels)
    wanted = {label: max(1.0, share * n) for label, n in totals.items()}
    held, have = set(), Counter()
    for group in np.random.default_rng([seed, 0x5EED]).permutation(groups):
        new = sizes[str(group)]
        gain = sum(abs(have[c] - wanted[c]) - abs(have[c] + n - wanted[c]) for c, n in new.items())
        if gain > 0 and all(have[c] + n < totals[c] for c, n in new.items()):
            held.add(str(group))
            have.update(new)
    return held


def _fold(items, groups, number, folds, seed):
    """Groups of one fold; the folds share the groups out, each class over as many folds as it can be."""
    if not 2 <= folds <= len(groups) or not 1 <= number <= folds:
        raise UsageError(
            f"--val {number}/{folds}: there are {len(groups)} groups",
            f"1/{min(5, len(groups))} is the first of {min(5, len(groups))} folds",
        )
    from sklearn.model_selection import StratifiedGroupKFold

    labels = [";".join(i.labels) for i in items]
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # of classes with fewer clips than folds: `split` says what matters of that
        parts = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(
            labels, labels, [i.group for i in items]
        )
        _, held = list(parts)[number - 1]
    return {items[i].group for i in held}
