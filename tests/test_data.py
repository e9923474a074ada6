"""Folders: every file accounted for, groups never on both sides, and what is said of folders that cannot be used."""

import os
import shutil

import numpy as np
import pytest
import torch

from nlzoo import data, video
from nlzoo.errors import UsageError, VideoError
from nlzoo.spec import ClipSpec


@pytest.fixture(scope="session")
def clip_file(tmp_path_factory):
    """One real mp4 of 12 frames, 32 x 48."""
    file = tmp_path_factory.mktemp("clip") / "clip.mp4"
    video.write_video(file, np.random.default_rng(0).integers(0, 256, (12, 32, 48, 3), np.uint8))
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
    root = tree(*(f"dog/{i}.mp4" for i in range(6)), *(f"cat/deep/er/{i}.MP4" for i in range(4)), "stray.mp4", "cat/.hidden.mp4",
                "cat/__MACOSX/x.mp4", ".ipynb_checkpoints/y.mp4")
    (root / "notes.txt").write_text("x")
    (root / "dog" / "broken.mp4").write_bytes(b"not a video")
    found = data.scan(root)
    assert found.classes == ("cat", "dog") and len(found.items) == 10
    assert [p for p, _ in found.skipped] == ["dog/broken.mp4", "stray.mp4"] and all(reason for _, reason in found.skipped)
    assert all(i.frames == 12 for i in found.items)
    assert found.ignored >= 2


def test_symlinks_are_followed_once_and_loops_never(tree):
    root = tree("dog/1.mp4", "dog/2.mp4", "cat/1.mp4", "cat/2.mp4")
    (root / "dog" / "loop").symlink_to(root)
    (root / "dog" / "again.mp4").symlink_to(root / "dog" / "1.mp4")
    found = data.scan(root)
    assert len(found.items) == 4 and {i.path.split("/")[0] for i in found.items} == {"cat", "dog"}


@pytest.mark.parametrize("names, words", [
    ((), "no videos"), (("dog/1.mp4",), "one class"), (("Dog/1.mp4", "dog/1.mp4"), "differ in spelling"), (("1.mp4", "2.mp4"), "cannot be used"),
])
def test_folders_that_cannot_be_used(tree, names, words):
    root = tree(*names)
    root.mkdir(exist_ok=True)
    with pytest.raises(VideoError, match=words):
        data.scan(root)


def test_too_many_bad_files_stop_with_the_table(tree):
    root = tree("a/1.mp4", "a/2.mp4", "b/1.mp4")
    (root / "b" / "x.mp4").write_bytes(b"")
    os.mkfifo(root / "b" / "pipe.mp4")
    with pytest.raises(VideoError, match="2 of 5 .*\n.*pipe.mp4"):
        data.scan(root)


def test_missing_folder_and_file_instead(tmp_path):
    with pytest.raises(VideoError, match="does not exist"):
        data.scan(tmp_path / "nowhere")
    (tmp_path / "f").write_text("")
    with pytest.raises(VideoError, match="is a file"):
        data.scan(tmp_path / "f")


def test_train_and_val_folders_are_honoured(tree):
    root = tree("train/a/1.mp4", "train/b/1.mp4", "val/a/2.mp4", "val/b/2.mp4", "val/b/3.mp4")
    found = data.split(data.scan(root), "0.25", 0)
    assert found.classes == ("a", "b")
    assert [len(data.items_in(found, part)) for part in (data.TRAIN, data.VAL)] == [2, 3]


def test_a_class_called_train_stays_a_class(tree):
    assert data.scan(tree("train/1.mp4", "bus/1.mp4")).classes == ("bus", "train")


@pytest.mark.parametrize("stems, labels, groups", [
    (["v_Dive_g01_c01", "v_Dive_g01_c02", "v_Row_g02_c01"], "ddr", ["g01", "g01", "g02"]),
    (["abc_-1_000010_000020", "abc_-1_000030_000040"], "xy", ["abc_-1", "abc_-1"]),
    (["0_1_4", "43_8_4", "44_8_4", "4_1_0", "41_8_0"], "44400"[:5], ["1", "8", "8", "1", "8"]),
    (["film a_wave_0", "film a_wave_1", "film b_wave_0", "film b_wave_1", "film c_run_0", "film d_run_2"], "wwwwrr", None),
    (["x1", "y7", "z3"], "aab", ["x1", "y7", "z3"]),
])
def test_groups_are_read_off_the_names(stems, labels, groups):
    keys, rule = data.group_keys(stems, list(labels))
    if groups is None:
        assert keys[0] == keys[1] != keys[2] == keys[3]
    else:
        assert keys == groups
    assert rule


def test_groups_and_equal_bytes_never_straddle_the_split(tree, seed):
    rng = np.random.default_rng(seed)
    names = {f"{c}/s{rng.integers(9)}_take_{rng.integers(1000)}.mp4" for c in "abc" for _ in range(12)}
    root = tree(*sorted(names))
    copies = [i.path for i in data.scan(root).items][::5]
    for n, path in enumerate(copies):
        shutil.copy(root / path, root / "abc"[n % 3] / f"other{n}_take_{n}.mp4")
    found = data.scan(root)
    for trial in range(10):
        sides, contents = {}, {}
        for item in data.split(found, "0.3", trial).items:
            sides.setdefault(item.group, set()).add(item.split)
            contents.setdefault((root / item.path).read_bytes(), set()).add(item.split)
        assert all(len(s) == 1 for s in sides.values()) and all(len(s) == 1 for s in contents.values())


def test_every_class_is_on_both_sides_and_seeds_differ(tree):
    found = data.scan(tree(*(f"{c}/rec{g}_{c}.mp4" for c in ("u", "v", "w") for g in range(8))))
    splits = [data.split(found, "0.25", s) for s in range(5)]
    for result in splits:
        for part in (data.TRAIN, data.VAL):
            assert {i.label for i in data.items_in(result, part)} == {"u", "v", "w"}
        assert len(data.items_in(result, data.VAL)) == 6
    assert len({tuple(i.split for i in r.items) for r in splits}) > 1


def test_named_groups_and_bad_val(tree):
    found = data.scan(tree(*(f"{c}/x_{g}_{c}.mp4" for c in "uv" for g in range(4))))
    result = data.split(found, "1,3", 0)
    assert {i.group for i in data.items_in(result, data.VAL)} == {"1", "3"}
    for val, words in (("9,1", "no group '9'"), ("0", "no share"), ("-0.5", "no share")):
        with pytest.raises(UsageError, match=words):
            data.split(found, val, 0)
    with pytest.raises(VideoError, match="no training clip"):
        data.split(found, "0,1,2,3", 0)


def test_clips_depend_on_seed_epoch_and_index_alone(tree):
    root = tree("a/1.mp4", "a/2.mp4", "b/1.mp4")
    paths = [root / i.path for i in data.scan(root).items]
    dataset = data.Clips(paths, ClipSpec(4, None, 16), seed=5)
    keys = [[(3, 0), (3, 2)], [(3, 1)]]
    runs = [[p for _, p, _ in data.load(dataset, keys, workers)] for workers in (0, 2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs)) and runs[0][0].shape == (2, 1, 4, 16, 16, 3)
    other = data.Clips(paths, ClipSpec(4, None, 16), seed=6)
    assert not torch.equal(other[3, 0][1], dataset[3, 0][1]) and not torch.equal(dataset[4, 0][1], dataset[3, 0][1])
    assert torch.equal(other[-1, 0][1], dataset[-1, 0][1])


def test_a_video_that_breaks_later_costs_itself(tree):
    root = tree("a/1.mp4", "a/2.mp4", "b/1.mp4")
    paths = [root / i.path for i in data.scan(root).items]
    paths[1].write_bytes(b"gone bad")
    (indices, pixels, bad), = data.load(data.Clips(paths, ClipSpec(4, None, 16)), [[(0, 0), (0, 1), (0, 2)]], 0)
    assert indices == [0, 2] and len(pixels) == 2 and bad[0][0] == 1 and bad[0][1]


@pytest.mark.parametrize("total, batch", [(1, 4), (5, 2), (34, 4), (33, 32), (8, 8)])
def test_an_epoch_has_every_clip_once_in_even_batches(total, batch):
    batches = data.epoch_batches(total, batch, 1, 2)
    assert sorted(i for b in batches for _, i in b) == list(range(total))
    assert max(map(len, batches)) <= batch and max(map(len, batches)) - min(map(len, batches)) <= 1
    assert batches != data.epoch_batches(total, batch, 1, 3) or total == 1


@pytest.mark.parametrize("text", ["plain", "a\nb", "\x1b[31mred", "ü✓", os.fsdecode(b"bad\xff")])
def test_names_are_shown_without_control_characters(text):
    got = data.shown(text)
    assert got.isprintable() and got.encode("utf-8")
