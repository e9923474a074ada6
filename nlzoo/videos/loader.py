"""Labelled videos as clips for the network: a loader that bad files cannot stop.

Randomness is keyed by (seed, epoch, index), so decoding workers hold no state and their number changes nothing.
"""

import math
import mmap
import os
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ..core.view_spec import Augment, ClipSpec, ViewSpec
from . import augment, clips, frame_cache, pool, records, video
from .listing import Item

AHEAD = 4  # clips that each worker may be in advance
DEADLINE = 60.0  # seconds for a clip, and more for a large file, which may have to be decoded from its start


# --- clips for the network


@dataclass(frozen=True)
class Clips:
    """Decoded clips of `items` below `root`; a clip is asked for by (epoch, index), epoch -1 for the views of validation."""

    root: Path
    items: tuple[Item, ...]
    clip: ClipSpec
    augment: Augment = Augment()  # of training epochs
    views: ViewSpec = ViewSpec()  # of validation
    seed: int = 0
    decoder: str = "auto"
    cache: Path | None = None  # folder of decoded frames

    def __len__(self) -> int:
        return len(self.items)

    def shape(self, epoch: int) -> tuple[int, ...]:
        """Of what `read` gives: (V, T, S, S, 3); not for whole frames, which are of many shapes."""
        side = self.clip.size if epoch >= 0 else clips.view_side(self.clip, self.views)
        return self.views.num_views if epoch < 0 else self.augment.repeats, self.clip.frames, side, side, 3

    def read(self, epoch: int, index: int) -> torch.Tensor:
        """uint8 (V, T, H, W, 3). Raises `VideoError`."""
        item = self.items[index]
        info = records.probe(self.root / item.path)
        first, total = video.span(info, item.start, item.end)
        aspect, rng = info.width / info.height, np.random.default_rng([self.seed, max(epoch, 0), index])
        if epoch < 0:
            views = [
                clips.in_order(v, self.views.order, rng)
                for v in clips.views(total, self.clip, self.views, aspect, info.fps)
            ]
        else:
            views = [
                clips.training_view(total, self.clip, self.augment, rng, aspect, info.fps)
                for _ in range(self.augment.repeats)
            ]
        frames = self._frames(info, [first + i for v in views for i in v.indices])
        per_view = frames.reshape(len(views), self.clip.frames, *frames.shape[1:])
        size = frames.shape[1:3] if epoch < 0 and self.views.crops == "full" else self.shape(epoch)[3]
        cuts = [clips.cut(f, v, size) for f, v in zip(per_view, views)]
        return torch.stack(cuts if epoch < 0 else [augment.apply(c, self.augment, rng) for c in cuts])

    def _frames(self, info, indices):
        side = clips.decode_side(self.clip)
        if self.cache:
            return frame_cache.read_frames(info.path, indices, side, self.cache)
        return video.read_frames(info.path, indices, side, self.decoder, info)


def load(
    source: Clips, batches: Iterable[list[tuple[int, int]]], workers: int
) -> Iterator[tuple[list[int], torch.Tensor | None, list[tuple[int, str]]]]:
    """Batches for lists of keys, in order: `(indices, uint8 (B, V, T, H, W, 3) or None, [(index, reason), …])`.

    Workers write into memory that is shared with this process: a tensor holds until the next one is asked for. A file
    that crashes, hangs or eats the memory of its worker is a reason like any other. Whole frames (`ViewSpec.crops` full) come
    one video at a time, since each may be of another shape.
    """
    batches = [b for b in batches if b]
    if not batches:
        return
    if source.views.crops == "full" and batches[0][0][0] < 0:
        yield from _one_by_one(source, batches, workers)
        return
    shape, most = source.shape(batches[0][0][0]), max(map(len, batches))
    depth = -(-workers * AHEAD // min(map(len, batches))) + 2  # batches that are being filled, read, and in between
    buffers = _shared((depth, most, *shape))
    tasks = ((key, n % depth, row) for n, batch in enumerate(batches) for row, key in enumerate(batch))
    with closing(
        pool.run(partial(_fill, source, buffers), tasks, workers, partial(_deadline, source), AHEAD)
    ) as answers:
        for n, batch in enumerate(batches):
            failures = [next(answers)[1] for _ in batch]
            good = [row for row, failure in enumerate(failures) if not failure]
            bad = [(batch[row][1], failure.reason) for row, failure in enumerate(failures) if failure]
            pixels = buffers[n % depth, good] if bad else buffers[n % depth, : len(batch)]
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
