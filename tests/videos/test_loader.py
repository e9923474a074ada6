"""Scans that account for every file, and clips whose numbers depend on nothing but (seed, epoch, index)."""

import ctypes
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nlzoo.core.errors import VideoError
from nlzoo.core.view_spec import Augment, ClipSpec, ViewSpec, parse_augment
from nlzoo.videos import clips, encode, listing, loader, pool, scanning, splits, video


@pytest.fixture(scope="session")
def clip_file(tmp_path_factory):
    """One real mp4 of 12 frames, 32 x 48."""
    file = tmp_path_factory.mktemp("clip") / "clip.mp4"
    encode.write_video(file, np.random.default_rng(0).integers(0, 256, (12, 32, 48, 3), np.uint8))
    return file


@pytest.fixture
def tree(tmp_path, clip_file):
    """Writes the named videos; each with its own bytes unless told, as copies would be joined into one group."""

    def write(*names, same=False):
        for n, name in enumerate(names):
            place = tmp_path / "videos" / name
            place.parent.mkdir(parents=True, exist_ok=True)
            tail = b"" if same else b"\0\0\0\x0cfree" + n.to_bytes(4, "big")  # an empty box at the end of an mp4
            place.write_bytes(clip_file.read_bytes() + tail)
        return tmp_path / "videos"

    return write


def test_each_file_is_used_skipped_or_ignored(tree):
    root = tree(
        *(f"dog/{i}.mp4" for i in range(6)),
        *(f"cat/deep/er/{i}.MP4" for i in range(4)),
        "stray.mp4",
        "cat/.hidden.mp4",
        "cat/__MACOSX/x.mp4",
        ".ipynb_checkpoints/y.mp4",
    )
    (root / "notes.txt").write_text("x")
    (root / "dog" / "broken.mp4").write_bytes(b"not a video")
    found = scanning.scan(root)
    assert found.classes == ("cat", "dog") and len(found.items) == 10
    assert [(s.path, s.code) for s in found.skipped] == [
        ("dog/broken.mp4", "unreadable"),
        ("stray.mp4", "outside_class"),
    ]
    assert all(i.frames == 12 and i.seconds == pytest.approx(0.5) for i in found.items)
    assert found.ignored >= 2


def test_too_many_bad_files_stop_with_the_table(tree):
    root = tree("a/1.mp4", "a/2.mp4", "b/1.mp4")
    (root / "b" / "x.mp4").write_bytes(b"")
    os.mkfifo(root / "b" / "pipe.mp4")
    with pytest.raises(VideoError, match="2 of 5 .*\n.*pipe.mp4"):
        scanning.scan(root)


@pytest.mark.parametrize(
    "names, words", [((), "no videos"), (("dog/1.mp4",), "one class"), (("1.mp4", "2.mp4"), "cannot be used")]
)
def test_folders_that_cannot_be_used(tree, names, words):
    root = tree(*names)
    root.mkdir(exist_ok=True)
    with pytest.raises(VideoError, match=words):
        scanning.scan(root)


def test_train_and_val_folders_are_honoured_and_test_is_kept_apart(tree):
    root = tree("train/a/1.mp4", "train/b/1.mp4", "val/a/2.mp4", "val/b/2.mp4", "val/b/3.mp4", "test/a/9.mp4")
    found = scanning.split(scanning.scan(root), "0.25", 0)
    assert found.classes == ("a", "b")
    assert [len(scanning.items_in(found, part)) for part in (listing.TRAIN, listing.VAL, listing.TEST)] == [2, 3, 1]


def test_equal_bytes_share_a_group(tree, seed):
    rng = np.random.default_rng(seed)
    root = tree(*sorted({f"{c}/s{rng.integers(9)}_take_{rng.integers(1000)}.mp4" for c in "abc" for _ in range(12)}))
    copies = [i.path for i in scanning.scan(root).items][::5]
    for n, path in enumerate(copies):
        shutil.copy(root / path, root / "abc"[n % 3] / f"other{n}_take_{n}.mp4")
    found = scanning.scan(root)
    groups = {i.path: i.group for i in found.items}
    assert all(groups[path] == groups[f"{'abc'[n % 3]}/other{n}_take_{n}.mp4"] for n, path in enumerate(copies))
    assert not splits.straddling(scanning.split(found, "0.3", seed % 100).items)


def test_parts_of_a_video_are_videos_of_their_own(tree, tmp_path):
    tree("x.mp4", "y.mp4")
    table = tmp_path / "videos" / "list.csv"
    table.write_text(
        "path,label,start,end\nx.mp4,a,0,0.25\nx.mp4,b,0.25,\ny.mp4,a,,\ny.mp4,b,7,8\nnone.mp4,a,,\nx.mp4,c,0.1,0.2\n"
    )
    with pytest.raises(VideoError, match="2 of 5|1 of 3|y.mp4: its part"):
        scanning.scan(table)
    table.write_text(table.read_text().replace("y.mp4,b,7,8\n", ""))
    with pytest.raises(VideoError, match="1 of 3.*\n.*none.mp4"):
        scanning.scan(table)
    table.write_text(table.read_text().replace("none.mp4,a,,\n", ""))
    found = scanning.scan(table)
    assert [(i.path, i.labels[0], i.frames) for i in found.items] == [
        ("x.mp4", "a", 6),
        ("x.mp4", "c", 2),
        ("x.mp4", "b", 6),
        ("y.mp4", "a", 12),
    ]
    assert not found.skipped
    assert len({i.group for i in found.items}) == 2
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


def test_what_is_gone_from_a_kinetics_list_stops_nothing(tree):
    root = tree("x/abc_000010_000020.mp4", "y/def_000001_000011.mp4")
    rows = "\n".join(f"y,gone{n},1,11,train" for n in range(30))
    (root / "list.csv").write_text(
        f"label,youtube_id,time_start,time_end,split\nx,abc,10,20,train\ny,def,1,11,train\n{rows}\n"
    )
    found = scanning.scan(root / "list.csv")
    assert [i.path for i in found.items] == ["x/abc_000010_000020.mp4", "y/def_000001_000011.mp4"]
    assert len(found.skipped) == 30 and all(s.code == "not_found" for s in found.skipped)


def test_labels_that_are_left_out(tree):
    root = tree("a/1.mp4", "b/1.mp4", "c/1.mp4")
    assert scanning.scan(root, ("a", "c")).classes == ("a", "c")


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
        assert (
            indices == [0, 2]
            and torch.equal(pixels[1], source.read(0, 2))
            and bad[0][0] == 1
            and "a/2.mp4" in bad[0][1]
        )


def test_frames_kept_on_disk_are_the_same(tree, tmp_path):
    root = tree("a/1.mp4", "b/1.mp4")
    plain = clips_of(root, augment=Augment(flip=False))
    kept = replace(plain, cache=tmp_path / "cache")
    for _ in range(2):
        assert all(torch.equal(plain.read(e, i), kept.read(e, i)) for e in (-1, 0, 1) for i in (0, 1))
    assert any((tmp_path / "cache").iterdir())


@pytest.mark.parametrize("total, batch", [(1, 4), (5, 2), (34, 4), (33, 32), (8, 8)])
def test_an_epoch_has_every_clip_once_in_even_batches(total, batch):
    batches = loader.epoch_batches(total, batch, 1, 2)
    assert sorted(i for b in batches for _, i in b) == list(range(total))
    assert max(map(len, batches)) <= batch and max(map(len, batches)) - min(map(len, batches)) <= 1
    assert batches != loader.epoch_batches(total, batch, 1, 3) or total == 1
