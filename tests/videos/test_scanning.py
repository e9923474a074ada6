"""Scans that account for every file and every class: used, skipped with a reason, ignored, or refused by name."""

import os
import shutil

import numpy as np
import pytest

from nlzoo.core.errors import UsageError, VideoError
from nlzoo.videos import listing, scanning, splits


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


def test_videos_to_validate_on_may_be_in_a_folder_of_their_own(tree, tmp_path, monkeypatch):
    root = tree("mine/walk/1.mp4", "mine/walk/2.mp4", "mine/run/3.mp4", "other/deep/walk/a.mp4", "other/deep/run/b.mp4")
    monkeypatch.chdir(root)
    (root / "other/deep/run/broken.mp4").write_bytes(b"")
    with open("mine/walk/1.mp4", "ab") as file:  # the same bytes twice, unlike those of all others
        file.write(b"free")
    shutil.copy("mine/walk/1.mp4", "other/deep/walk/copy.mp4")
    found = scanning.split(scanning.scan(root / "mine", val="other/deep"), "other/deep", 0)
    deep = str(root / "other/deep")
    assert {i.path for i in scanning.items_in(found, listing.TRAIN)} == {"walk/1.mp4", "walk/2.mp4", "run/3.mp4"}
    held = {f"{deep}/walk/a.mp4", f"{deep}/run/b.mp4", f"{deep}/walk/copy.mp4"}
    assert {i.path for i in scanning.items_in(found, listing.VAL)} == held
    assert found.grouped_by == splits.Rule("given") and [s.path for s in found.skipped] == [f"{deep}/run/broken.mp4"]
    assert splits.straddling(found.items) == 1  # the copy
    listing.write(found, tmp_path / "list.csv")
    again = listing.read(tmp_path / "list.csv")
    assert {os.path.basename(i.path): i.split for i in again.items} == {
        os.path.basename(i.path): i.split for i in found.items
    }
    both = listing.read(root / "mine", ("walk",), "other/deep")
    assert {label for item in both.items for label in item.labels} == {"walk"} and len(both.items) == 4


@pytest.mark.parametrize(
    "val, words",
    [
        ("mine", "holds the videos that are trained on"),
        ("split", "says itself which of its videos"),
        ("strange", "class 'jump' has no training clip left"),
        ("nothing", "no group 'nothing'"),
        ("several.csv", "several labels"),
    ],
)
def test_videos_that_cannot_be_validated_on_are_refused(tree, monkeypatch, val, words):
    root = tree(
        *(f"mine/{name}.mp4" for name in ("walk/1", "walk/2", "run/3", "run/4")),
        *(f"split/{part}/{name}/1.mp4" for part in ("train", "val") for name in ("walk", "run")),
        "strange/jump/1.mp4",
        "strange/run/1.mp4",
    )
    monkeypatch.chdir(root)
    (root / "several.csv").write_text("path,label\nmine/walk/1.mp4,walk;run\nmine/run/3.mp4,run;\n")
    with pytest.raises((VideoError, UsageError), match=words):
        scanning.split(scanning.scan(root / "mine", val=val), val, 0)


def test_a_number_is_a_group_and_a_path_a_folder(tree, monkeypatch):
    monkeypatch.chdir(tree("8/walk/1.mp4", "alice/walk/1.mp4"))
    named = {"8": None, "./8": "8", "1/5": None, "0.2": None, "alice": "alice", "alice,": None, "bob": None}
    assert {val: listing.val_source(val) and str(listing.val_source(val)) for val in named} == named


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


def test_a_class_that_kinetics_lost_is_told_and_one_of_another_list_refused(tree):
    root = tree(
        "x/abc_000010_000020.mp4", "x/abc2_000010_000020.mp4", "y/def_000001_000011.mp4", "y/ghi_000001_000011.mp4"
    )
    names = ["x,abc,10,20", "x,abc2,10,20", "y,def,1,11", "y,ghi,1,11", "z,gone,1,11"]
    (root / "list.csv").write_text("\n".join(["label,youtube_id,time_start,time_end", *names]) + "\n")
    dataset = scanning.split(scanning.scan(root / "list.csv"), "0.5", 0)
    assert dataset.classes == ("x", "y") and [(entry.path, entry.code) for entry in dataset.lost] == [
        ("z", "not_found")
    ]
    assert scanning.left_out(dataset) == ["'z' is not among the classes: has 1 row, and no video of them is there"]
    rows = [f"{path},{path[0]}" for path in ("x/abc_000010_000020.mp4", "y/def_000001_000011.mp4", "z/gone.mp4")]
    rows += ["x/abc2_000010_000020.mp4,x", "y/ghi_000001_000011.mp4,y"]
    (root / "plain.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    with pytest.raises(VideoError, match="class 'z' of .* has 1 row, and no video of them is there"):
        scanning.split(scanning.scan(root / "plain.csv"), "0.5", 0)
    assert scanning.scan(root / "plain.csv").classes == ("x", "y")  # enough to evaluate on
    assert scanning.split(scanning.scan(root / "plain.csv", ("x,y",)), "0.5", 0).classes == ("x", "y")
