"""Labelled videos as clips for the network: a loader that bad files cannot stop.

Randomness is keyed by (seed, epoch, index), so decoding workers hold no state and their number changes nothing.
"""

import math
import mmap
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..core import archives
from ..core.view_spec import Augment, ClipSpec, ViewSpec
from . import augment, clips, flow, frame_cache, pool, records, streams, video
from .listing import Item
from .sweep import Sweep

AHEAD = 4  # keys that each worker may be in advance, or as many as make a batch
ADVANCE = 2**30  # bytes of pixels in advance, from which on it is fewer: 30 views of 32 frames take 200 MB
DEADLINE = 60.0  # seconds for a clip, and more for a large file, which may have to be decoded from its start

Key = tuple[int, int]  # epoch, or -1 for the views of validation; index of the video


class Batch(NamedTuple):
    """What became of a list of keys."""

    indices: list[int]  # of the videos that could be read
    pixels: torch.Tensor | None  # of these: uint8 (B, V, T, H, W, C); None where there is none
    failures: list[tuple[int, str]]  # (index, reason) of the others


# What a worker is given: the key of a clip, and the buffer and row that it goes to.
_Task = tuple[Key, int, int]


@dataclass(frozen=True)
class Clips:
    """Decoded clips of `items` below `root`, by key."""

    root: Path
    items: tuple[Item, ...]
    clip: ClipSpec
    augment: Augment = Augment()  # of training epochs
    views: ViewSpec | None = None  # of a test; None: the network's own (`ClipSpec.clips`)
    seed: int = 0
    decoder: str = "auto"
    cache: Path | None = None  # folder of decoded frames
    sweep: Sweep | None = None  # where the items are parts of one video that are read in order

    def __post_init__(self) -> None:
        streams.check(self.clip.stream, self.decoder)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def test_views(self) -> ViewSpec:
        """What a test shows of each video."""
        return self.views or self.clip.views

    def shape(self, epoch: int) -> tuple[int, ...]:
        """Of what `read` gives: (V, T, S, S, C); not for whole frames, which are of many shapes."""
        side, count = self.clip.size, self.augment.repeats
        if epoch < 0:
            side, count = clips.view_side(self.clip, self.test_views), self.test_views.num_views
        return count, self.clip.frames, side, side, self.clip.channels

    def read(self, epoch: int, index: int) -> torch.Tensor:
        """uint8 (V, T, H, W, C). Raises `VideoError`."""
        item = self.items[index]
        info = video.at_rate(records.probe(self.root / item.path), item.fps)
        rng = np.random.default_rng([self.seed, max(epoch, 0), index])
        first, views = self._views(info, index, rng if epoch >= 0 else None)
        if epoch < 0:
            views = [clips.in_order(view, self.test_views.order, rng) for view in views]
        if self.sweep and epoch < 0:
            numbers_of = partial(self._test_numbers, info)
            side = clips.decode_side(self.clip)
            frames = self.sweep.frames(index, numbers_of, side, self.clip.stream, self.decoder, info)
        else:
            frames = self._frames(info, [first + number for view in views for number in view.indices])
        per_view = frames.reshape(len(views), self.clip.frames, *frames.shape[1:])
        height, width = self.shape(epoch)[2:4]
        if epoch < 0 and self.test_views.crops == "full":
            height, width = frames.shape[1:3]
        cuts = [self._cut(f, view, (height, width)) for f, view in zip(per_view, views)]
        if epoch >= 0:
            cuts = [augment.apply(c, self.augment, rng) for c in cuts]
        return torch.stack(cuts)

    def _views(self, info: video.Probe, index: int, rng: np.random.Generator | None) -> tuple[int, list[clips.View]]:
        """The first frame of an item, and its views, which count from there: drawn by `rng`, or those of a test."""
        item = self.items[index]
        first, total = video.span(info, item.start, item.end)
        # None for a folder of frames whose rate nobody knows: they are stepped as they are
        fps = info.fps if item.fps or info.series is None else None
        # patches of sound are always shown whole in a test
        aspect = 1.0 if self.clip.stream == "audio" else info.width / info.height
        if rng is None:
            return first, clips.views(total, self.clip, self.test_views, aspect, fps)
        drawn = partial(clips.training_view, total, self.clip, self.augment, rng, aspect, fps)
        return first, [drawn() for _ in range(self.augment.repeats)]

    def _cut(self, frames: np.ndarray, view: clips.View, size: tuple[int, int]) -> torch.Tensor:
        """The view's rectangle; of mirrored flow what moved to the right moves to the left."""
        part = clips.cut(frames, view, size)
        return flow.mirrored(part) if view.flip and self.clip.stream in flow.METHODS else part

    def _test_numbers(self, info: video.Probe, index: int) -> list[int]:
        """Of the frames that the views of an item show, in their true order."""
        first, views = self._views(info, index, None)
        return [first + number for view in views for number in view.indices]

    def _frames(self, info: video.Probe, numbers: list[int]) -> np.ndarray:
        side = clips.decode_side(self.clip)
        if self.cache and streams.is_kept(self.clip.stream):
            return frame_cache.read_frames(info.path, numbers, side, self.cache, self.clip.stream)
        return streams.read_frames(info, numbers, side, self.clip.stream, self.decoder)


def load(source: Clips, batches: Iterable[list[Key]], workers: int) -> Generator[Batch, None, None]:
    """What `Loader.load` gives, with workers of its own."""
    with closing(Loader(source, workers)) as own:
        yield from own.load(batches)


class Loader:
    """Decodes clips of `source` in `workers` processes, which stay for the next epoch until `close`.

    `pin`: into page-locked memory, from which CUDA copies without waiting.
    """

    def __init__(self, source: Clips, workers: int, pin: bool = False):
        self.source, self.workers, self.pin = source, workers, pin
        self._pinned = False
        self._pool: pool.Workers[_Task, None] | None = None
        self._buffers = torch.empty(0, dtype=torch.uint8)  # (depth, batch, V, T, S, S, C)
        self._primed: tuple[list[list[Key]], Generator[Batch, None, None]] | None = None

    def prime(self, batches: Iterable[list[Key]]) -> None:
        """Begins to decode what will be asked for next."""
        if self._primed:
            self.close()  # what was begun for nobody
        nonempty = [batch for batch in batches if batch]
        self._primed = (nonempty, self._begin(nonempty)) if nonempty and self.workers else None

    def load(self, batches: Iterable[list[Key]]) -> Generator[Batch, None, None]:
        """A `Batch` for each list of keys, in order; one such list of batches at a time.

        Workers write into memory that is shared with this process: a tensor holds until the next one is asked for. A
        file that crashes, hangs or eats the memory of its worker is a failure like any other. Whole frames
        (`ViewSpec.crops` full) come one video at a time, since each may be of another shape.
        """
        nonempty = [batch for batch in batches if batch]
        primed, self._primed = self._primed, None
        if primed and primed[0] == nonempty:
            yield from primed[1]
        elif nonempty:
            if primed:
                self.close()
            yield from self._begin(nonempty)

    def close(self) -> None:
        """Ends the processes; another load starts new ones."""
        if self._pool:
            self._pool.close()
        if self._pinned:
            torch.cuda.cudart().cudaHostUnregister(self._buffers.data_ptr())
        self._pinned = False
        self._pool = self._primed = None

    def _begin(self, batches: list[list[Key]]) -> Generator[Batch, None, None]:
        epoch, _ = batches[0][0]
        if self.source.test_views.crops == "full" and epoch < 0:
            return _one_by_one(self.source, batches, self.workers)
        shape = self.source.shape(epoch)
        workers = max(1, self.workers)
        batch = -(-max(map(len, batches)) // workers)  # while the network is at one, the next is decoded
        ahead = max(1, min(max(AHEAD, batch), ADVANCE // (workers * math.prod(shape))))
        depth = self._reserve(batches, shape, ahead)
        tasks = ((key, n % depth, row) for n, batch in enumerate(batches) for row, key in enumerate(batch))
        assert self._pool
        return self._filled(batches, depth, self._pool.run(tasks, partial(_deadline, self.source), ahead))

    def _reserve(self, batches: list[list[Key]], shape: tuple[int, ...], ahead: int) -> int:
        """Sees to buffers for the batches, and to workers that write into them; how many of the buffers to use."""
        sizes = [len(batch) for batch in batches]
        # Batches that are being filled, one that is read, one in between, and the last, which may be short.
        depth = min(-(-self.workers * ahead // min(sizes[:-1] or sizes)) + 3, len(batches))
        need, have = (depth, max(sizes), *shape), tuple(self._buffers.shape)
        if self._pool is None or have[2:] != shape or have[0] < need[0] or have[1] < need[1]:
            self.close()
            self._buffers = _shared(need)
            if self.pin:  # where it cannot be, copies wait, and nothing else changes
                cuda = torch.cuda.cudart()
                code = cuda.cudaHostRegister(self._buffers.data_ptr(), self._buffers.nbytes, 0)
                self._pinned = code == cuda.cudaError.success
            self._pool = pool.Workers(partial(_fill, self.source, self._buffers), self.workers)
        return depth

    def _filled(
        self, batches: list[list[Key]], depth: int, results: Generator[tuple[_Task, Any], None, None]
    ) -> Generator[Batch, None, None]:
        with closing(results):
            for n, batch in enumerate(batches):
                outcomes = [failure for _, failure in islice(results, len(batch))]
                rows = [row for row, failure in enumerate(outcomes) if not failure]
                failures = [(index, failure.reason) for (_, index), failure in zip(batch, outcomes) if failure]
                buffer = self._buffers[n % depth]
                pixels = buffer[rows] if failures else buffer[: len(batch)]
                yield Batch([batch[row][1] for row in rows], pixels if rows else None, failures)


def _fill(source: Clips, buffers: torch.Tensor, task: _Task) -> None:
    (epoch, index), buffer, row = task
    buffers[buffer, row] = source.read(epoch, index)


def _one_by_one(source: Clips, batches: list[list[Key]], workers: int) -> Generator[Batch, None, None]:
    tasks = ((key, 0, 0) for batch in batches for key in batch)
    with closing(pool.run(partial(_pixels, source), tasks, workers, partial(_deadline, source), ahead=2)) as results:
        for ((_, index), _, _), result in results:
            if isinstance(result, pool.Failure):
                yield Batch([], None, [(index, result.reason)])
            else:
                yield Batch([index], torch.from_numpy(result)[None], [])


def _pixels(source: Clips, task: _Task) -> np.ndarray:
    (epoch, index), _, _ = task
    return source.read(epoch, index).numpy()


def _deadline(source: Clips, task: _Task) -> float:
    (_, index), _, _ = task
    try:
        size = archives.stat(source.root / source.items[index].path).st_size
    except OSError:
        size = 0
    return DEADLINE + size / records.SLOWEST


def _shared(shape: tuple[int, ...]) -> torch.Tensor:
    """A uint8 tensor that workers write into."""
    if pool.FORKS:  # not in /dev/shm, which containers keep to 64 MiB
        return torch.frombuffer(mmap.mmap(-1, math.prod(shape)), dtype=torch.uint8).view(shape)
    return torch.empty(shape, dtype=torch.uint8).share_memory_()


def epoch_batches(total: int, batch: int, seed: int, epoch: int) -> list[list[Key]]:
    """Keys of one epoch: every index once, shuffled by (seed, epoch), in lists as `even_batches` makes them."""
    return even_batches(np.random.default_rng([seed, epoch]).permutation(total).tolist(), batch, epoch)


def even_batches(order: Sequence[int], batch: int, epoch: int) -> list[list[Key]]:
    """Keys for the indices in `order`, in as few lists of up to `batch` as possible, whose sizes differ by one at most.

    So no last batch is too small for BN's statistics. Where one would still have a single clip, as of an odd number of
    clips by two, the first of the epoch joins it once more.
    """
    lists = np.array_split(order, max(1, -(-len(order) // batch)))
    batches = [[(epoch, int(index)) for index in part] for part in lists]
    if batch > 1 and len(batches) > 1 and len(batches[-1]) == 1:
        batches[-1].append(batches[0][0])
    return batches
