"""A folder of videos as labelled, split and decoded clips.

Every file ends as exactly one of used, skipped with a reason, or ignored, and is counted so. Clips that show the same
scene form a group, and no group has clips on both sides of the split. Randomness is keyed by (seed, epoch, index), so
decoding workers hold no state and their number changes nothing.
"""

import hashlib
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from . import clips, video
from .errors import UsageError, VideoError
from .spec import ClipSpec

TRAIN, VAL = "train", "val"
SPLIT_FOLDERS = {"train": TRAIN, "training": TRAIN, "val": VAL, "valid": VAL, "validation": VAL}
MOST_BAD = 0.2  # of the files, above which training does not start
_IGNORED_FOLDERS = {"__MACOSX", ".ipynb_checkpoints"}


@dataclass(frozen=True)
class Item:
    """One video that is used."""

    path: str  # relative to the folder, "/" between parts
    label: str
    frames: int
    seconds: float
    group: str = ""  # clips that must stay on one side of the split
    split: str = ""  # train or val


@dataclass(frozen=True)
class Scan:
    """What is in a folder."""

    root: Path
    items: tuple[Item, ...]  # sorted by path
    skipped: tuple[tuple[str, str], ...]  # (path, reason): videos that cannot be used
    ignored: int  # files that are no videos
    grouped_by: str = ""  # the rule that made the groups, in words

    @property
    def classes(self) -> tuple[str, ...]:
        """Labels in the order of the outputs."""
        return tuple(sorted({i.label for i in self.items}))


def scan(root: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> Scan:
    """Finds and probes the videos of `root`: one folder a class (anything nested inside it belongs to it), or
    `train/` and `val/` with such folders in each. `progress(done, total)` is called for each file.

    Raises `VideoError` for a folder that is missing, has no videos, fewer than two classes, class names that differ in
    case alone, or more than `MOST_BAD` of its files unusable.
    """
    root = Path(root)
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise VideoError(f"{root} {what}", "give a folder with one sub-folder of videos per class")
    found, ignored = walk(root)
    layout = _layout(root)
    labelled, skipped = [], []
    for path in found:
        label, split = _label(path, layout)
        if label is None:
            skipped.append((path, "lies outside any class folder"))
        else:
            labelled.append(Item(path, label, 0, 0.0, split=split))
    _refuse_clashes(root, {i.label for i in labelled})
    items = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for done, (item, reason) in enumerate(pool.map(lambda i: _probed(root, i), labelled), 1):
            progress(done, len(labelled))
            if reason:
                skipped.append((item.path, reason))
            else:
                items.append(item)
    result = Scan(root, tuple(items), tuple(sorted(skipped)), ignored)
    _refuse_unusable(result)
    return _grouped(result)


def walk(root: Path) -> tuple[list[str], int]:
    """`(videos, ignored)`: what ends like a video, relative to `root` and sorted, and how many other files there are.

    Each real file once; links are followed, loops never; hidden files and folders are ignored.
    """
    found, ignored, folders, files = [], 0, set(), set()
    for folder, names, leaves in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in folders:
            names.clear()
            continue
        folders.add(real)
        names[:] = sorted(n for n in names if not n.startswith(".") and n not in _IGNORED_FOLDERS)
        for leaf in sorted(leaves):
            path = os.path.join(folder, leaf)
            is_video = not leaf.startswith(".") and Path(leaf).suffix.lower() in video.EXTENSIONS
            if is_video and os.path.realpath(path) not in files:
                files.add(os.path.realpath(path))
                found.append(Path(path).relative_to(root).as_posix())
            else:
                ignored += 1
    return sorted(found), ignored


def _layout(root):
    """Whether the top level is `train/` and `val/`: folder name → split; empty when it is the classes themselves."""
    names = [p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".") and p.name not in _IGNORED_FOLDERS]
    known = {n: SPLIT_FOLDERS[n.lower()] for n in names if n.lower() in SPLIT_FOLDERS}
    both = {TRAIN, VAL} <= set(known.values())
    others = [n for n in names if n not in known and n.lower() != "test"]
    return known if both and not others else {}


def _label(path, layout):
    parts = path.split("/")
    split = ""
    if layout:
        if parts[0] not in layout:  # test/ beside train/ and val/ is kept for `eval`
            return None, ""
        split, parts = layout[parts[0]], parts[1:]
    return (parts[0], split) if len(parts) > 1 else (None, split)


def _refuse_clashes(root, labels):
    seen = {}
    for label in sorted(labels):
        key = unicodedata.normalize("NFC", label).casefold()
        if key in seen:
            raise VideoError(f"{root} has two class folders {seen[key]!r} and {label!r} that differ in spelling alone",
                             "rename or merge them")
        seen[key] = label


def _probed(root, item):
    try:
        info = video.probe(root / item.path)
    except VideoError as error:
        return item, error.message
    return replace(item, frames=info.frames, seconds=info.duration), ""


def _refuse_unusable(result):
    root, total = result.root, len(result.items) + len(result.skipped)
    if not total:
        known = " ".join(sorted(video.EXTENSIONS)[:6])
        raise VideoError(f"{root} has no videos; {result.ignored} other files were ignored",
                         f"videos end in {known} …, in one sub-folder per class")
    if len(result.skipped) > MOST_BAD * total:
        rows = "\n".join(f"  {shown(path)}: {reason}" for path, reason in result.skipped[:10])
        more = f"\n  … and {len(result.skipped) - 10} more" if len(result.skipped) > 10 else ""
        raise VideoError(f"{len(result.skipped)} of {total} videos in {root} cannot be used:\n{rows}{more}",
                         "mend or remove them; one sub-folder of videos per class is expected")
    if len(result.classes) < 2:
        raise VideoError(f"{root} has one class, {result.classes[0]!r}; a classifier needs two",
                         "give a folder with one sub-folder of videos per class")


def shown(text: str) -> str:
    """A file or class name safe to print: control characters, also those of terminals, and broken bytes as codes."""
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if unicodedata.category(c)[0] != "C" else c.encode("unicode_escape").decode() for c in text)


# --- groups and split


def _grouped(result):
    stems = {i.path: Path(i.path).stem for i in result.items}
    keys, rule = group_keys([stems[i.path] for i in result.items], [i.label for i in result.items])
    items = tuple(replace(i, group=k) for i, k in zip(result.items, keys))
    return replace(result, items=_joined_copies(result.root, items), grouped_by=rule)


def group_keys(stems: list[str], labels: list[str]) -> tuple[list[str], str]:
    """What file names say of clips cut from one recording: a group for each name, and the rule in words.

    Known patterns first (`v_x_g01_c02`: UCF101; `id_000010_000020`: Kinetics). Otherwise names are read as fields between
    `_`, `-` and spaces: the first field that neither numbers the files nor follows from the class is the recording
    (`4_1_0`: sequence 1). Otherwise a number at the end counts clips of one recording (`tape_3` with `tape_4`),
    as long as that leaves each class several groups.
    """
    for pattern, rule in ((r".*_(g\d+)_c\d+$", "gNN in the name"), (r"(.+)_\d{6}_\d{6}$", "the name before the times")):
        if all(matches := [re.match(pattern, s) for s in stems]):
            return [m[1] for m in matches], rule
    rows = [re.split(r"[_\- ]+", s) for s in stems]
    if len({len(r) for r in rows}) == 1:
        for position, column in enumerate(zip(*rows)):
            if _names_recordings(column, labels):
                return list(column), f"part {position + 1} of the name"
    parents = [re.sub(r"[_\- ]*\d+$", "", s) or s for s in stems]
    per_class = defaultdict(set)
    for label, parent in zip(labels, parents):
        per_class[label].add(parent)
    if len(set(parents)) < len(parents) and all(len(g) > 1 for g in per_class.values()):
        return parents, "the name without its last number"
    return list(stems), "one video each"


def _names_recordings(column, labels):
    """Neither one value per file nor one per class, and several values in every class."""
    per_class = defaultdict(set)
    for label, value in zip(labels, column):
        per_class[label].add(value)
    return len(set(column)) < len(column) and all(len(values) > 1 for values in per_class.values())


def _joined_copies(root, items):
    """Files with the same bytes share a group, whatever their names; sizes first, so that few files are read."""
    sizes = Counter((root / i.path).stat().st_size for i in items)
    leader = {i.group: i.group for i in items}  # a forest; groups that share a file end under one root

    def top(group):
        while leader[group] != group:
            group = leader[group]
        return group

    first = {}
    for item in items:
        if sizes[(root / item.path).stat().st_size] > 1:
            with open(root / item.path, "rb") as f:
                content = hashlib.file_digest(f, "sha256").digest()
            leader[top(item.group)] = top(first.setdefault(content, item.group))
    return tuple(replace(i, group=top(i.group)) for i in items)


def split(found: Scan, val: str, seed: int) -> Scan:
    """The same scan with every item in `train` or `val`, whole groups at a time.

    `val`: a share such as `0.25` of the groups, drawn by `seed` so that every class is on both sides where that can be;
    or names of groups, comma-separated (`8,9,10`). A `train/` + `val/` layout is kept as it is.
    Raises `UsageError`, `VideoError` when a class would have no training clip or nothing is left to validate on.
    """
    if found.items and all(i.split for i in found.items):
        result = replace(found, grouped_by="the folders train/ and val/")
    else:
        held = _held_out(found, val, seed)
        result = replace(found, items=tuple(replace(i, split=VAL if i.group in held else TRAIN) for i in found.items))
    trained = {i.label for i in result.items if i.split == TRAIN}
    if missing := set(found.classes) - trained:
        raise VideoError(f"class {shown(min(missing))!r} has no training clip left after the split by group",
                         "add clips of it, or choose another --val")
    if not any(i.split == VAL for i in result.items):
        raise VideoError("no clip is left to validate on", "add clips, or choose another --val")
    return result


def _held_out(found, val, seed):
    groups = sorted({i.group for i in found.items})
    share = _share(val)
    if share is None:
        named = {g.strip() for g in val.split(",")}
        if unknown := named - set(groups):
            raise UsageError(f"--val {val}: no group {min(unknown)!r}; there are {len(groups)}: {', '.join(groups[:12])}",
                             "give a share such as 0.2, or names of groups")
        return named
    if len(groups) < 2:
        raise VideoError(f"all videos seem to come from one recording ({found.grouped_by}: {groups[0]!r})",
                         "give train/ and val/ folders, to say that it is meant so")
    return _draw(found, groups, share, seed)


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


def _draw(found, groups, share, seed):
    """Groups in random order; each is held out while it takes a class nearer to its share and leaves it trainable."""
    totals = Counter(i.label for i in found.items)
    sizes = defaultdict(Counter)
    for item in found.items:
        sizes[item.group][item.label] += 1
    wanted = {label: max(1.0, share * n) for label, n in totals.items()}
    held, have = set(), Counter()
    for group in np.random.default_rng([seed, 0x5EED]).permutation(groups):
        new = sizes[group]
        gain = sum(abs(have[c] - wanted[c]) - abs(have[c] + n - wanted[c]) for c, n in new.items())
        if gain > 0 and all(have[c] + n < totals[c] for c, n in new.items()):
            held.add(str(group))
            have.update(new)
    return held


# --- clips for the network


def items_in(found: Scan, part: str) -> list[Item]:
    """The items of `train` or `val`."""
    return [i for i in found.items if i.split == part]


class Clips(Dataset):
    """Decoded clips of `paths`; an entry is asked for as `(epoch, index)`, epoch -1 for the view of validation.

    Gives `(index, uint8 (V, T, size, size, 3), "")`, or `(index, None, reason)` for a video that cannot be read.
    """

    def __init__(self, paths: list[Path], clip: ClipSpec, seed: int = 0, flip: bool = True):
        self.paths, self.clip, self.seed, self.flip = paths, clip, seed, flip

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, key):
        epoch, index = key
        try:
            return index, self._views(epoch, index), ""
        except VideoError as error:
            return index, None, error.message

    def _views(self, epoch, index):
        path = self.paths[index]
        total = video.probe(path).frames
        if epoch < 0:
            looks = clips.views(total, self.clip)
        else:
            rng = np.random.default_rng([self.seed, epoch, index])
            looks = [clips.training_view(total, self.clip, self.flip, rng)]
        frames = video.read_frames(path, [i for v in looks for i in v.indices], short_side=clips.decode_side(self.clip))
        per_view = frames.reshape(len(looks), self.clip.frames, *frames.shape[1:])
        return torch.stack([clips.cut(f, v, self.clip.size) for f, v in zip(per_view, looks)])


def load(dataset: Clips, keys: Iterable[list[tuple[int, int]]], workers: int) -> Iterator[tuple]:
    """Batches for lists of keys, in order: `(indices, uint8 (B, V, T, H, W, 3) or None, [(index, reason), …])`."""
    keys = list(keys)
    yield from DataLoader(dataset, batch_sampler=keys, collate_fn=_collate, num_workers=workers,
                          pin_memory=torch.cuda.is_available(), prefetch_factor=4 if workers else None)


def _collate(entries):
    good = [(i, c) for i, c, reason in entries if c is not None]
    bad = [(i, reason) for i, c, reason in entries if c is None]
    return [i for i, _ in good], torch.stack([c for _, c in good]) if good else None, bad


def epoch_batches(total: int, batch: int, seed: int, epoch: int) -> list[list[tuple[int, int]]]:
    """Keys of one epoch: every index once, shuffled by (seed, epoch), in lists of `batch`.

    The sizes of the lists differ by one at most, so that no last batch is too small for BN's statistics.
    """
    order = np.random.default_rng([seed, epoch]).permutation(total).tolist()
    parts = np.array_split(order, max(1, -(-total // batch)))
    return [[(epoch, int(i)) for i in part] for part in parts]


def default_workers(device: str) -> int:
    """Decoding processes: on a GPU one per core up to 16; on a CPU, which trains on all cores, one for every two."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, cores) if device != "cpu" else max(1, cores // 2)
