"""Labelled videos as clips for the network: what of a listing can be used, and a loader that bad files cannot stop.

Every file ends as exactly one of used, skipped with a reason, or ignored, and is counted so. Randomness is keyed by
(seed, epoch, index), so decoding workers hold no state and their number changes nothing.
"""

import math
import mmap
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from . import augment, clips, frames_cache, listing, pool, records, splits, video
from .errors import VideoError
from .listing import Item, shown
from .spec import Augment, ClipSpec, Looks

TRAIN, VAL, TEST = listing.TRAIN, listing.VAL, listing.TEST
MOST_BAD = 0.2  # of the files, above which training does not start
AHEAD = 4  # clips that each worker may be in advance
DEADLINE = 60.0  # seconds for a clip, and more for a large file, which may have to be decoded from its start


@dataclass(frozen=True)
class Scan:
    """What is in a folder or a list, and can be used."""

    root: Path
    items: tuple[Item, ...]  # sorted by path
    skipped: tuple[tuple[str, str], ...]  # (path, reason): videos that cannot be used
    ignored: int  # files that are no videos
    multi_label: bool = False
    kind: str = ""  # of folder or list, in words
    grouped_by: str = ""  # the rule that made the groups, in words

    @property
    def classes(self) -> tuple[str, ...]:
        """Labels in the order of the outputs."""
        return tuple(sorted({label for i in self.items for label in i.labels}))


def scan(source: Path, classes: tuple[str, ...] = (), progress: Callable[[int, int], None] = lambda done, total: None,
         workers: int | None = None) -> Scan:
    """Finds and probes the videos of a folder or list (`listing.read` says which kinds; `classes` leaves out all others).

    `progress(done, total)` is called for each file. Raises `VideoError` for what has no videos, fewer than two classes, or
    more than `MOST_BAD` of its files unusable; and what `listing.read` raises.
    """
    found = listing.read(Path(source), classes)
    paths = sorted({i.path for i in found.items})
    known = dict(zip(paths, records.examine([found.root / p for p in paths], workers=workers or default_workers("cuda"), progress=progress)))
    items, skipped = usable(found, known)
    result = Scan(found.root, items, skipped, found.ignored, found.multi_label, found.kind)
    _refuse_unusable(result)
    items, rule = splits.grouped(items, found.levels, partial(_copies, found.root, known))
    return replace(result, items=items, grouped_by=rule)


def usable(found: listing.Listing, known: dict[str, records.Record]) -> tuple[tuple[Item, ...], tuple[tuple[str, str], ...]]:
    """`(items, skipped)` of a listing: frames and seconds of each item filled in, and the reasons of the others added."""
    items, skipped = [], dict(found.skipped)
    for item in found.items:
        record = known[item.path]
        start, end = item.start or 0.0, min(item.end or math.inf, record.seconds)
        if record.problem:
            skipped[item.path] = record.problem
        elif start >= record.seconds:
            skipped[item.path] = f"its part starts at {start:g} s, but the video ends at {record.seconds:.1f} s"
        else:
            items.append(replace(item, seconds=end - start, frames=max(1, round((end - start) * record.fps)) if start or item.end else record.frames))
    return tuple(items), tuple(sorted(skipped.items()))


def _copies(root, known, paths):
    """Digests of the files that may be copies of one another: those that share their size with another."""
    sizes = {}
    for path in set(paths):
        sizes.setdefault(known[path].size, []).append(path)
    alike = [p for same in sizes.values() if len(same) > 1 for p in same]
    digests = records.digests([root / p for p in alike])
    return {p: digests[name] for p in alike if (name := os.path.abspath(root / p)) in digests}


def _refuse_unusable(result):
    where, total = shown(str(result.root)), len({i.path for i in result.items}) + len(counted := bad(result.skipped, result.kind))
    if len(counted) > MOST_BAD * total:
        raise VideoError(f"{len(counted)} of {total} videos in {where} cannot be used:\n{_table(counted)}", "mend or remove them; nlzoo check shows all")
    if not result.items:
        raise VideoError(f"{where} has no video that can be used:\n{_table(result.skipped)}", "nlzoo check shows what is there")
    if len(result.classes) < (1 if result.multi_label else 2):
        raise VideoError(f"{where} has one class, {shown(result.classes[0])!r}; a classifier needs two",
                         "give a folder with one sub-folder of videos per class")


def bad(skipped: tuple[tuple[str, str], ...], kind: str) -> list[tuple[str, str]]:
    """What counts as unusable: of Kinetics' lists not the videos that are gone, as many are from everybody's copy."""
    return [(p, reason) for p, reason in skipped if not ("Kinetics" in kind and reason.startswith(listing.NOT_FOUND))]


def _table(rows):
    more = f"\n  … and {len(rows) - 10} more" if len(rows) > 10 else ""
    return "\n".join(f"  {shown(path)}: {shown(reason)}" for path, reason in rows[:10]) + more


def split(found: Scan, val: str, seed: int) -> Scan:
    """The same scan with every item in `train` or `val` (`splits.split`)."""
    items, by = splits.split(found.items, val, seed, found.grouped_by)
    return replace(found, items=items, grouped_by=by)


def items_in(found: Scan, part: str) -> list[Item]:
    """The items of `train`, `val` or `test`."""
    return [i for i in found.items if i.split == part]


# --- clips for the network


@dataclass(frozen=True)
class Clips:
    """Decoded clips of `items` below `root`; a clip is asked for by (epoch, index), epoch -1 for the views of validation."""

    root: Path
    items: tuple[Item, ...]
    clip: ClipSpec
    augment: Augment = Augment()  # of training epochs
    looks: Looks = Looks()  # of validation
    seed: int = 0
    decoder: str = "auto"
    cache: Path | None = None  # folder of decoded frames

    def __len__(self) -> int:
        return len(self.items)

    def shape(self, epoch: int) -> tuple[int, ...]:
        """Of what `read` gives: (V, T, S, S, 3); not for looks at whole frames as they are, which are of many shapes."""
        side = self.clip.size if epoch >= 0 else clips.view_side(self.clip, self.looks)
        return self.looks.views if epoch < 0 else self.augment.repeats, self.clip.frames, side, side, 3

    def read(self, epoch: int, index: int) -> torch.Tensor:
        """uint8 (V, T, H, W, 3). Raises `VideoError`."""
        item = self.items[index]
        info = records.probe(self.root / item.path)
        first, total = video.span(info, item.start, item.end)
        aspect, rng = info.width / info.height, np.random.default_rng([self.seed, max(epoch, 0), index])
        if epoch < 0:
            looks = [clips.in_order(v, self.looks.order, rng) for v in clips.views(total, self.clip, self.looks, aspect, info.fps)]
        else:
            looks = [clips.training_view(total, self.clip, self.augment, rng, aspect, info.fps) for _ in range(self.augment.repeats)]
        frames = self._frames(info, [first + i for v in looks for i in v.indices])
        per_view = frames.reshape(len(looks), self.clip.frames, *frames.shape[1:])
        size = frames.shape[1:3] if epoch < 0 and self.looks.crops == "full" else self.shape(epoch)[3]
        views = [clips.cut(f, v, size) for f, v in zip(per_view, looks)]
        return torch.stack(views if epoch < 0 else [augment.apply(v, self.augment, rng) for v in views])

    def _frames(self, info, indices):
        side = clips.decode_side(self.clip)
        if self.cache:
            return frames_cache.read_frames(info.path, indices, side, self.cache)
        return video.read_frames(info.path, indices, side, self.decoder, info)


def load(source: Clips, batches: Iterable[list[tuple[int, int]]], workers: int) -> Iterator[tuple[list[int], torch.Tensor | None, list[tuple[int, str]]]]:
    """Batches for lists of keys, in order: `(indices, uint8 (B, V, T, H, W, 3) or None, [(index, reason), …])`.

    Workers write into memory that is shared with this process: a tensor holds until the next one is asked for. A file
    that crashes, hangs or eats the memory of its worker is a reason like any other. Whole frames as they are (`spec.Looks`) come
    one video at a time, since each may be of another shape.
    """
    batches = [b for b in batches if b]
    if not batches:
        return
    if source.looks.crops == "full" and batches[0][0][0] < 0:
        yield from _one_by_one(source, batches, workers)
        return
    shape, most = source.shape(batches[0][0][0]), max(map(len, batches))
    depth = -(-workers * AHEAD // min(map(len, batches))) + 2  # batches that are being filled, read, and in between
    buffers = _shared((depth, most, *shape))
    tasks = ((key, n % depth, row) for n, batch in enumerate(batches) for row, key in enumerate(batch))
    with closing(pool.run(partial(_fill, source, buffers), tasks, workers, partial(_deadline, source), AHEAD)) as answers:
        for n, batch in enumerate(batches):
            failures = [next(answers)[1] for _ in batch]
            good = [row for row, failure in enumerate(failures) if not failure]
            bad = [(batch[row][1], failure.reason) for row, failure in enumerate(failures) if failure]
            pixels = buffers[n % depth, good] if bad else buffers[n % depth, :len(batch)]
            yield [batch[row][1] for row in good], pixels if good else None, bad


def _fill(source, buffers, task):
    (epoch, index), buffer, row = task
    buffers[buffer, row] = source.read(epoch, index)


def _one_by_one(source, batches, workers):
    tasks = ((key,) for batch in batches for key in batch)
    with closing(pool.run(partial(_pixels, source), tasks, workers, partial(_deadline, source), ahead=2)) as answers:
        for ((_, index),), result in answers:
            if isinstance(result, pool.Failure):
                yield [], None, [(index, result.reason)]
            else:
                yield [index], torch.from_numpy(result)[None], []


def _pixels(source, task):
    return source.read(*task[0]).numpy()


def _deadline(source, task):
    try:
        size = os.path.getsize(source.root / source.items[task[0][1]].path)
    except OSError:
        size = 0
    return DEADLINE + size / records.SLOWEST


def _shared(shape):
    """A uint8 tensor that workers write into."""
    if pool.FORKS:  # not in /dev/shm, which containers keep to 64 MiB
        return torch.frombuffer(mmap.mmap(-1, math.prod(shape)), dtype=torch.uint8).view(shape)
    return torch.empty(shape, dtype=torch.uint8).share_memory_()


def epoch_batches(total: int, batch: int, seed: int, epoch: int) -> list[list[tuple[int, int]]]:
    """Keys of one epoch: every index once, shuffled by (seed, epoch), in lists of `batch`.

    The sizes of the lists differ by one at most, so that no last batch is too small for BN's statistics.
    """
    order = np.random.default_rng([seed, epoch]).permutation(total).tolist()
    parts = np.array_split(order, max(1, -(-total // batch)))
    return [[(epoch, int(i)) for i in part] for part in parts]


def default_workers(device: str) -> int:
    """Decoding processes: on a GPU one per core up to 16; on a CPU, which trains on all cores, one for every two. Ranks share the cores."""
    cores = max(1, records.cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    return max(1, min(16, cores) if device != "cpu" else cores // 2)
