"""Clips whose numbers depend on nothing but (seed, epoch, index)."""

import ctypes
import os
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nlzoo.core.view_spec import Augment, ClipSpec, ViewSpec, parse_augment
from nlzoo.videos import clips, loader, pool, scanning, video
from nlzoo.videos.items import Item


def clips_of(root, **options):
    return loader.Clips(root, scanning.scan(root).items, ClipSpec(4, None, 16), **options)


def read_all(source, keys, workers):
    """What `load` gives, copied, since its memory is used again."""
    return [(i, p.clone() if p is not None else None, bad) for i, p, bad in loader.load(source, keys, workers)]


@pytest.mark.parametrize("augment", ["light", "strong,mixup=0,cutmix=0"])
def test_clips_depend_on_seed_epoch_and_index_alone(tree, augment):
    root = tree("a/1.mp4", "a/2.mp4", "b/1.mp4")
    options = {"augment": parse_augment(augment)}
    source = clips_of(root, seed=5, **options)
    keys = [[(3, 0), (3, 2)], [(3, 1)]]
    runs = [[p for _, p, _ in read_all(source, keys, workers)] for workers in (0, 2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs)) and runs[0][0].shape == (
        2,
        options["augment"].repeats,
        4,
        16,
        16,
        3,
    )
    other = clips_of(root, seed=6, **options)
    assert not torch.equal(other.read(3, 0), source.read(3, 0)) and not torch.equal(
        source.read(4, 0), source.read(3, 0)
    )
    assert torch.equal(other.read(-1, 0), source.read(-1, 0))


def test_many_batches_through_little_memory_stay_apart(tree, seed):
    root = tree(*(f"{c}/{n}.mp4" for c in "ab" for n in range(3)))
    source = clips_of(root, seed=seed, views=ViewSpec(2, 3))
    for epochs in (range(40), [-1]):
        keys = [[(e, i) for _, i in batch] for e in epochs for batch in loader.epoch_batches(6, 4, seed, abs(e))]
        for (indices, pixels, bad), batch in zip(loader.load(source, keys, 2), keys):
            assert not bad and indices == [i for _, i in batch]
            assert all(torch.equal(p, source.read(*key)) for p, key in zip(pixels, batch))


@pytest.mark.parametrize("views, ahead, buffers", [(ViewSpec(10, 3), 1, 19), (ViewSpec(), 4, 67)])
def test_large_views_are_not_decoded_far_in_advance(views, ahead, buffers, monkeypatch):
    """10 x 3 views of 32 frames of 256 pixels are 189 MB a video: 67 of them would be 12.6 GB."""
    source = loader.Clips(Path(), tuple(Item(f"{n}.mp4", ()) for n in range(100)), ClipSpec(32), views=views)
    asked = []

    def run(self, tasks, deadline, ahead):
        asked.append(ahead)
        return ((task, pool.Failure("not read")) for task in tasks)

    monkeypatch.setattr(pool.Workers, "run", run)
    monkeypatch.setattr(loader, "_shared", lambda shape: asked.append(shape) or torch.empty(shape[0], 0))
    batches = list(loader.load(source, [[(-1, n)] for n in range(100)], 16))
    assert asked == [(buffers, 1, *source.shape(-1)), ahead]
    assert [batch.failures for batch in batches] == [[(n, "not read")] for n in range(100)]


class Bad(loader.Clips):
    """Some files crash their process, hang it or eat its memory."""

    def read(self, epoch, index):
        name = Path(self.items[index].path).name
        if name.startswith("crash"):
            ctypes.string_at(0)
        if name.startswith("hang"):
            time.sleep(1000)
        if name.startswith("eat"):
            return np.ones(2**33, np.uint8)
        return super().read(epoch, index)


@pytest.mark.skipif(not pool.FORKS, reason="needs a fork")
def test_a_file_that_crashes_hangs_or_eats_memory_costs_itself(tree, monkeypatch):
    monkeypatch.setattr(loader, "DEADLINE", 3.0)
    monkeypatch.setattr(pool, "MEMORY", 2**27)
    found = scanning.scan(
        tree(*(f"a/{kind}{n}.mp4" for kind in ("crash", "hang", "eat", "fine") for n in range(3)), "b/fine3.mp4")
    )
    source = Bad(found.root, found.items, ClipSpec(2, None, 16))
    summary, seen = {}, []
    for indices, _, bad in loader.load(source, loader.epoch_batches(len(found.items), 4, 0, 0), 2):
        seen += indices
        summary |= {Path(found.items[i].path).stem: reason for i, reason in bad}
    assert (
        sorted(Path(found.items[i].path).stem for i in seen) == ["fine0", "fine1", "fine2", "fine3"]
        and len(summary) == 9
    )
    assert all(
        {"crash": "SIGSEGV", "hang": "took longer", "eat": "memory"}[k[:-1]] in reason for k, reason in summary.items()
    )


def test_a_video_that_breaks_later_costs_itself(tree):
    source = clips_of(tree("a/1.mp4", "a/2.mp4", "b/1.mp4"))
    (source.root / source.items[1].path).write_bytes(b"gone bad")
    for workers in (0, 1):
        ((indices, pixels, bad),) = loader.load(source, [[(0, 0), (0, 1), (0, 2)]], workers)
        assert indices == [0, 2] and torch.equal(pixels[1], source.read(0, 2))
        assert bad == [(1, "is not a video, or is cut off")]


def test_frames_kept_on_disk_are_the_same(tree, tmp_path):
    root = tree("a/1.mp4", "b/1.mp4")
    plain = clips_of(root, augment=Augment(flip=False))
    kept = replace(plain, cache=tmp_path / "cache")
    for _ in range(2):
        assert all(torch.equal(plain.read(e, i), kept.read(e, i)) for e in (-1, 0, 1) for i in (0, 1))
    assert any((tmp_path / "cache").iterdir())


@pytest.mark.parametrize("total, batch", [(1, 4), (4, 2), (34, 4), (33, 32), (8, 8), (3, 1)])
def test_an_epoch_has_every_clip_once_in_even_batches(total, batch):
    batches = loader.epoch_batches(total, batch, 1, 2)
    assert sorted(i for b in batches for _, i in b) == list(range(total))
    assert max(map(len, batches)) <= batch and max(map(len, batches)) - min(map(len, batches)) <= 1
    assert batches != loader.epoch_batches(total, batch, 1, 3) or total == 1


def test_parts_of_a_video_are_clips_of_their_own_frames(tree, tmp_path):
    tree("x.mp4", "y.mp4")
    table = tmp_path / "videos" / "list.csv"
    table.write_text("path,label,start,end\nx.mp4,a,0,0.25\nx.mp4,b,0.25,\ny.mp4,a,,\nx.mp4,c,0.1,0.2\n")
    found = scanning.scan(table)
    source = loader.Clips(found.root, found.items, ClipSpec(4, None, 16))
    whole = video.read_frames(found.root / "x.mp4", range(12), clips.decode_side(source.clip))
    expected = [
        clips.cut(whole[first:last], clips.View(tuple(range(last - first))), 16)[
            list(clips.frame_indices(last - first, source.clip))
        ]
        for first, last in ((0, 6), (2, 5), (6, 12))
    ]
    for index, part in zip((0, 2), (expected[0], expected[2])):
        assert torch.equal(source.read(-1, index)[0], part)


def test_no_batch_of_two_or_more_ends_with_a_single_clip(seed):
    """BN has one value a channel there, where the last stage is 1 x 1: any order and size, also with repeats."""
    rng = np.random.default_rng(seed)
    for batch in range(2, 9):
        for total in range(2, 40):
            order = rng.integers(0, total, total).tolist()
            batches = loader.even_batches(order, batch, 3)
            sizes = [len(keys) for keys in batches]
            assert len(batches) == -(-total // batch) and 2 <= min(sizes) and max(sizes) <= min(batch, min(sizes) + 1)
            extra = [(3, order[0])] if batch == 2 and total % 2 else []
            assert [key for keys in batches for key in keys] == [(3, index) for index in order] + extra


# --- one pool for a run


class Who(loader.Clips):
    """Each clip holds the number of the process that read it."""

    def shape(self, epoch):
        return 1, 1, 1, 8, 1

    def read(self, epoch, index):
        if index == 13:
            os._exit(3)
        return torch.tensor([os.getpid()]).view(torch.uint8).view(1, 1, 1, 8, 1)


@pytest.fixture
def feed():
    source = Who(Path(), tuple(Item(f"{n}.mp4", ()) for n in range(40)), ClipSpec())
    with closing(loader.Loader(source, 2)) as own:
        yield own


def seen(feed, batches):
    """The processes that read the clips of `batches`, and what could not be read."""
    processes, failed = set(), []
    for _, pixels, failures in feed.load(batches):
        processes |= set(pixels.flatten().view(torch.int64).tolist())
        failed += failures
    return processes, failed


def test_the_same_processes_serve_all_epochs_and_end_with_it(feed):
    epochs = [loader.epoch_batches(12, 4, 0, epoch) for epoch in range(3)]
    first, _ = seen(feed, epochs[0])
    assert len(first) == 2 and os.getpid() not in first
    assert seen(feed, epochs[1])[0] == first and seen(feed, epochs[2][:1])[0] <= first
    feed.close()
    assert not any(alive(process) for process in first)
    assert not seen(feed, epochs[0])[0] & first  # and starts anew where it is asked again


def test_a_crash_costs_its_clip_in_every_epoch(feed):
    for epoch in range(2):
        _, failed = seen(feed, loader.epoch_batches(20, 4, 0, epoch))
        assert failed == [(13, "the decoder crashed (exit code 3)")]


def test_an_epoch_that_is_left_early_does_not_show_in_the_next(feed):
    batches = loader.epoch_batches(40, 4, 0, 0)
    with closing(feed.load(batches)) as left:
        next(left)
    other = loader.epoch_batches(12, 4, 1, 1)
    got = [indices for indices, _, _ in feed.load(other)]
    assert got == [[index for _, index in batch] for batch in other]


def test_a_primed_load_is_the_one_that_is_asked_for(feed):
    ahead, other = loader.epoch_batches(12, 4, 0, 1), loader.epoch_batches(8, 2, 0, 2)
    feed.prime(ahead)
    first, _ = seen(feed, ahead)
    feed.prime(other)
    got = [indices for indices, _, _ in feed.load(ahead)]  # another than was primed
    assert got == [[index for _, index in batch] for batch in ahead]
    feed.prime(other)
    feed.prime(ahead)  # a second time, for others
    got = [indices for indices, _, _ in feed.load(ahead)]
    assert got == [[index for _, index in batch] for batch in ahead]
    feed.prime(other)
    feed.close()
    assert not any(alive(process) for process in first)


def test_larger_batches_and_views_of_validation_get_larger_buffers(feed):
    for size, epoch in ((2, 0), (6, 1), (3, 2)):
        batches = loader.epoch_batches(12, size, 0, epoch)
        got = [(indices, pixels.shape[0]) for indices, pixels, _ in feed.load(batches)]
        assert got == [([index for _, index in batch], size) for batch in batches]


def alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
