"""What `check` says of folders: a finding where there is cause, none where there is none; every file counted."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from drawn import drawing, encode, vfr_times

from nlzoo.apps import check, prepare
from nlzoo.core.errors import VideoError
from nlzoo.core.model_spec import ModelSpec
from nlzoo.core.skipped import Skipped
from nlzoo.networks import checkpoint, model
from nlzoo.videos import listing, records, scanning
from nlzoo.videos.items import CLASS_FOLDERS, KINETICS, NOT_FOUND, OUTSIDE, Item, Kind, Listing
from nlzoo.videos.records import Record


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NLZOO_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path, seed):
    """Makes `count` videos a class, no two of the same bytes; lengths and shapes are those of every other class.

    Drawn for each class anew, they gave a class away by chance in one run of many, which `check` rightly said.
    """
    rng = random.Random(seed)

    def make(count=4, classes="abc"):
        shapes = [(rng.randint(4, 9), *rng.choice([(32, 48), (48, 32), (32, 32)])) for _ in range(count)]
        for label in classes:
            (tmp_path / "videos" / label).mkdir(parents=True, exist_ok=True)
            for n, shape in enumerate(shapes):
                encode(tmp_path / "videos" / label / f"{n}.mp4", drawing(*shape, seed=rng.randrange(10**6)))
        return tmp_path / "videos"

    return make


def report(root, level=records.THREE) -> check.Report:
    return check.look(listing.read(root), level, 0)


def kinds(result) -> set[str]:
    return {w.code for w in result.warnings}


def finding(result, kind) -> check.Finding:
    (found,) = (w for w in result.warnings if w.code == kind)
    assert found.message and found.hint and "\n" not in found.message
    return found


# From real files


def test_a_good_folder_has_no_findings_and_every_file_is_counted(folder):
    root = folder()
    (root / "notes.txt").write_text("x")
    (root / "stray.mp4").write_bytes((root / "a" / "0.mp4").read_bytes() + b"\0\0\0\x08free")
    (root / "a" / "broken.mp4").write_text("no video")
    result = report(root)
    assert not kinds(result) and result.could_train
    assert (result.files, result.used, result.clips, result.ignored) == (15, 12, 12, 1)
    assert [s.path for s in result.skipped] == ["a/broken.mp4", "stray.mp4"]
    assert result.skipped[0].reason == "is not a video, or is cut off"
    assert {label: c["clips"] for label, c in result.classes.items()} == {"a": 4, "b": 4, "c": 4}
    for label, row in result.classes.items():
        lengths = [v["seconds"] for v in result.videos if v["labels"] == [label]]
        assert row["seconds"] == {"min": min(lengths), "median": np.median(lengths), "max": max(lengths)}
        assert sum(row["sizes"].values()) == 4
    words = check.in_words(result)
    assert (
        words.endswith("\nready to train") and "a/broken.mp4: is not a video" in words and "h264 in mp4 (12)" in words
    )
    values = json.loads(json.dumps(check.to_json(result), allow_nan=False))
    assert values["skipped"][0] == {
        "path": "a/broken.mp4",
        "code": "unreadable",
        "reason": "is not a video, or is cut off",
    }
    assert {"files", "used", "skipped", "ignored", "classes", "warnings", "videos", "could_train"} <= set(values)
    assert values["videos"][0]["frames"] == result.videos[0]["frames"] and set(values["classes"]) == set("abc")


def test_copies_and_contents_under_two_labels_are_named(folder):
    root = folder()
    shutil.copy(root / "a" / "1.mp4", root / "a" / "z.mp4")
    result = report(root)
    assert kinds(result) == {"duplicates"}
    assert "a/1.mp4 and a/z.mp4" in finding(result, "duplicates").message
    shutil.copy(root / "a" / "2.mp4", root / "b" / "y.mp4")
    conflict = finding(report(root), "conflict").message
    assert "a/2.mp4 is 'a'" in conflict and "b/y.mp4, the same content, 'b'" in conflict
    with open(root / "b" / "y.mp4", "ab") as file:  # as long as another, and not the same
        file.write(b"\0\0\0\x08free")
    with open(root / "a" / "2.mp4", "ab") as file:
        file.write(b"\0\0\0\x08skip")
    assert kinds(report(root)) == {"duplicates"}


def test_the_same_bytes_on_both_sides_of_a_given_split_are_a_leak(folder):
    root = folder()
    (root / "train").mkdir()
    for label in "abc":
        (root / label).rename(root / "train" / label)
    shutil.copytree(root / "train" / "a", root / "val" / "a")
    assert "train/a/0.mp4 and val/a/0.mp4" in finding(report(root), "leak").message
    for file in (root / "val" / "a").iterdir():
        file.write_bytes(file.read_bytes() + b"\0\0\0\x08free")
    assert "leak" not in kinds(report(root))


def test_what_prepare_made_of_a_file_is_a_copy_of_it(folder, tmp_path):
    """In a folder to validate on it is a leak; also a copy of the copy, but not what has taken its place since."""
    root, out, again = folder(3, "ab"), tmp_path / "out", tmp_path / "again"
    prepare.prepare_source(root, out, 16)
    prepare.prepare_source(out, again, 16)
    for train, val in ((root, out), (out, root), (out, again)):
        result = check.look(listing.read(train, (), str(val)), workers=0, val=str(val))
        leak = finding(result, "leak").message
        assert leak.startswith("6 files are in more than one of train, val and test: ") and "a/0.mp4" in leak
        sizes = {str(path): path.stat().st_size for path in (train / "a" / "0.mp4", val / "a" / "0.mp4")}
        assert len(set(records.contents(sizes).values())) == 1
    for number, copy in enumerate(sorted(out.rglob("*.mp4"))):  # another video, of its own bytes
        copy.write_bytes((root / "a" / "0.mp4").read_bytes() + b"\0\0\0\x0cfree" + number.to_bytes(4, "big"))
    result = check.look(listing.read(root, (), str(out)), workers=0, val=str(out))
    assert "leak" not in kinds(result)


def test_parts_of_one_file_are_no_copies_and_several_labels_no_conflict(folder):
    root = folder(3, "ab")
    rows = [
        ("a/0.mp4", "a", "0", "0.08"),
        ("a/0.mp4", "b", "0.08", ""),
        ("b/0.mp4", "b", "", ""),
        ("a/1.mp4", "a", "", ""),
    ]
    (root / "list.csv").write_text("path,label,start,end\n" + "".join(",".join(row) + "\n" for row in rows))
    result = report(root / "list.csv")
    assert not kinds(result) & {"duplicates", "conflict"} and (result.used, result.clips) == (3, 4)
    assert result.classes["a"]["seconds"]["min"] == pytest.approx(0.08)
    shutil.copy(root / "b" / "0.mp4", root / "b" / "copy.mp4")
    (root / "list.csv").write_text("path,label\nb/0.mp4,a;b\nb/copy.mp4,b\na/1.mp4,a\n")
    assert kinds(report(root / "list.csv")) == {"duplicates", "few", "split"}


def test_a_part_outside_its_video_is_skipped(folder):
    root = folder(3, "ab")
    (root / "list.csv").write_text(
        "path,label,start,end\na/0.mp4,a,99,100\na/1.mp4,a,,\nb/0.mp4,b,0,99\nb/1.mp4,b,,\nb/2.mp4,b,,\n"
    )
    result = report(root / "list.csv")
    (left,) = result.skipped
    assert left.path == "a/0.mp4" and left.code == "part_outside"
    assert "starts at 99 s, but the video ends at 0." in left.reason and result.could_train
    assert result.classes["b"]["seconds"]["max"] < 1


def test_stills_repeats_and_variable_rates_are_findings(folder):
    root = folder(12, "ab")
    images = drawing(20, 32, 48)
    assert kinds(report(root, records.ALL)) == set()
    encode(root / "a" / "still.mp4", images[:1].repeat(9, 0), "libx264rgb", "rgb24", {"crf": "0"})
    encode(root / "a" / "slow.mp4", images[:10].repeat(2, 0), "libx264rgb", "rgb24", {"crf": "0"})
    encode(root / "b" / "vfr.mp4", images[:8], times=vfr_times(8))
    assert kinds(report(root)) - {"duration_shortcut"} == {"still", "variable_rate"}
    deep = report(root, records.ALL)
    assert "a/still.mp4" in finding(deep, "still").message and "b/vfr.mp4" in finding(deep, "variable_rate").message
    assert "in a/slow.mp4, 53% equal the one before" in finding(deep, "repeats").message


def test_the_shape_of_real_clips_gives_one_class_away(shared):
    result = report(shared / "videos" / "interactions", records.HEADER)
    assert "'pointing'" in finding(result, "shape_shortcut").message and "100% of its clips" in check.in_words(result)
    assert result.could_train and result.used == 60 and kinds(result) <= {"shape_shortcut", "duration_shortcut"}


# From records


def made(labels, width=lambda n: 64, seconds=lambda n: 4.0, problem=lambda n: "", group=lambda n: ""):
    """A listing and its records; functions of the number of the item."""
    items = tuple(Item(f"{label}/{n}.mp4", (label,), group(n)) for n, label in enumerate(labels))
    found = [
        Record(f"/x/{item.path}", 1000 + n, 1, problem(n), "mp4", "h264", width(n), 48, 100, 25.0, seconds(n))
        for n, item in enumerate(items)
    ]
    return Listing(Path("/x"), items, (), 0, False, Kind(CLASS_FOLDERS)), found


def judged(labels, skipped=(), kind=CLASS_FOLDERS, **how):
    given, found = made(labels, **how)
    return check.check(replace(given, skipped=tuple(skipped), kind=Kind(kind)), found, {})


def test_sizes_of_classes():
    assert kinds(judged("a" * 6 + "b" * 30)) == set()
    assert "'b' has 31 clips and 'a' 6" in finding(judged("a" * 6 + "b" * 31), "imbalance").message
    assert kinds(judged("a" * 3 + "b" * 3)) == set()
    assert "1 class has fewer than 3 clips" in finding(judged("a" * 2 + "b" * 3), "few").message


@pytest.mark.parametrize(
    "labels, how, words",
    [
        ("aaabbb", {}, ""),
        ("", {}, "no video that can be used"),
        ("aaabbb", {"problem": lambda n: "is empty"}, "no video that can be used"),
        ("aaaa", {}, "has one class, 'a'"),
        ("aaaaabbbbb", {"problem": lambda n: "is empty" if n in (0, 5) else ""}, ""),  # 20 % is not over it
        (
            "aaaaabbbbb",
            {"problem": lambda n: "is empty" if n in (0, 1, 5) else ""},
            "3 of 10 videos in /x cannot be used",
        ),
        (
            "aaaaaaaab",
            {"problem": lambda n: "is empty" if n == 8 else ""},
            "class 'b' of /x has 1 video, and none can be used (b/8.mp4: is empty)",
        ),
        (
            "aaabbb",
            {"skipped": [Skipped(f"{n}.mp4", NOT_FOUND, "is not there") for n in range(99)], "kind": KINETICS},
            "",
        ),
        ("aaabbb", {"skipped": [Skipped(f"{n}.mp4", OUTSIDE, "lies outside") for n in range(2)]}, "2 of 8 videos"),
    ],
)
def test_whether_training_could_start(labels, how, words):
    result = judged(labels, **how)
    assert words in result.reason and result.could_train == (not words)
    last = check.in_words(result).splitlines()[-1]
    assert last == (f"not ready: {result.reason}" if words else "ready to train")
    assert result.files == result.used + len(result.skipped)


def test_long_lists_of_problems_are_cut_and_names_escaped():
    result = judged(["a\x1b[31m"] * 30 + ["b"] * 30, problem=lambda n: "is empty" if n < 25 else "")
    words = check.in_words(result)
    assert "… and 5 more" in words and words.count("is empty") == 20 and "\x1b" not in words
    assert all(line.isprintable() for line in words.splitlines())
    assert len(check.to_json(result)["skipped"]) == 25


LABELS = [c for c in "abcde" for _ in range(12)]


@pytest.mark.parametrize("kind", ["shape", "duration"])
def test_one_number_that_tells_one_class_is_found(kind, seed):
    rng = np.random.default_rng(seed)
    widths, lengths = rng.choice([64, 80, 48], 60), np.exp(rng.normal(1.5, 0.3, 60))
    summary = "abcde"[rng.integers(5)]
    mine = np.array(LABELS) == summary
    if kind == "shape":
        widths[mine] = 72
    else:
        lengths[mine] *= 6
    result = judged(LABELS, width=lambda n: int(widths[n]), seconds=lambda n: float(lengths[n]))
    message = finding(result, f"{kind}_shortcut").message
    assert f"class '{summary}' can be predicted from " in message and "(chance: 20%)" in message


def test_numbers_that_tell_nothing_give_few_alarms(seed):
    """docs/check.md has the rate over many more; 6 of 30 would be chance in far less than one of a million runs."""
    rng, alarms = np.random.default_rng(seed), 0
    for _ in range(15):
        shapes = rng.choice([1.0, 4 / 3, 16 / 9], 60, p=rng.dirichlet(np.ones(3)))
        alarms += check.find_shortcut(shapes, LABELS, [""] * 60) is not None
        alarms += check.find_shortcut(rng.lognormal(1.5, 0.4, 60), LABELS, [""] * 60) is not None
    assert alarms < 6
    assert check.find_shortcut([1.5] * 60, LABELS, [""] * 60) is None
    assert check.find_shortcut([1.5, 2.5] * 2, list("aabb"), [""] * 4) is None  # too few to tell


def test_recordings_count_as_one_and_not_as_many(seed):
    """Two recordings of each class, thirty clips of one shape each: that shapes differ between classes is chance."""
    labels = [c for c in "ab" for _ in range(60)]
    groups = [f"{c}{n // 30}" for c in "ab" for n in range(60)]
    shapes = {"a0": 1.0, "a1": 1.3, "b0": 1.6, "b1": 1.9}
    values = [shapes[g] for g in groups]
    assert check.find_shortcut(values, labels, groups) is None
    assert check.find_shortcut(values, labels, [""] * 120).recall == 1.0  # the negative control


def test_a_leak_within_each_recording_is_found_with_groups_too(seed):
    rng = np.random.default_rng(seed)
    groups = [f"g{n}" for _ in "abcde" for n in range(12)]
    values = np.where(np.array(LABELS) == "c", 0.7, 1.4) + rng.uniform(0, 0.3, 60)
    found = check.find_shortcut(values, LABELS, groups)
    assert found.label == "c" and found.recall > 0.9 and found.p <= check.SURE


def test_many_clips_are_sampled(seed):
    rng = np.random.default_rng(seed)
    labels = [f"class {n % 40}" for n in range(8000)]
    x, y, names, _ = check._independent(rng.random(8000), labels, [""] * 8000, rng)
    assert len(x) == len(y) == check.MOST_ROWS and len(names) == 40
    assert kinds(judged(["a"] * 4000 + ["b"] * 4000, width=lambda n: 64 + 16 * (n >= 4000))) == {"shape_shortcut"}


# What check and finetune must agree on


def some(*folders, count=4):
    """`count` videos in each of the folders."""
    return [f"{folder}/{n}.mp4" for folder in folders for n in range(count)]


def listed(root, header, *rows):
    (root / "list.csv").write_text("\n".join([header, *rows]) + "\n")
    return root / "list.csv"


def rows(text, count=4):
    """A row for each of the videos of `some("a", "b")`, `text` with its class, number and side."""
    return [f"{c}/{n}.mp4," + text.format(c=c, n=n) for c in "ab" for n in range(count)]


def beside(*others, content=b"x"):
    """Four videos in each of a and b, and other files."""

    def make(tree):
        root = tree(*some("a", "b"))
        for name in others:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            if not name.endswith("/"):
                (root / name).write_bytes(content)
            else:
                (root / name).mkdir(parents=True, exist_ok=True)
        return root

    return make


def linked(target):
    def make(tree):
        root = tree(*some("a", "b"))
        (root / "c").symlink_to(target)
        return root

    return make


# name: (how the folder is made, words of why finetune refuses it; "" where it does not)
AGREED = {
    "good": (lambda t: t(*some("a", "b")), ""),
    "a class in val alone": (
        lambda t: t(*some("train/a", "train/b", "val/a", "val/b", "val/c")),
        "class 'c' has no training clip left after the split (split as given): it is only in val",
    ),
    "a class in test alone": (
        lambda t: t(*some("train/a", "train/b", "val/a", "val/b", "test/c", "test/a")),
        "class 'c' has no training clip left after the split (split as given): it is only in test",
    ),
    "a class in val and test": (
        lambda t: t(*some("train/a", "train/b", "val/c", "val/b", "test/c", "test/a")),
        "class 'c' has no training clip left after the split (split as given): it is only in test and val",
    ),
    "a class in test alone, val drawn": (
        lambda t: t(*some("train/a", "train/b", "test/a", "test/b", "test/c")),
        "class 'c' has no training clip left after the split (grouped by the 1st field of the file name): "
        "it is only in test",
    ),
    "all rows of one group": (
        lambda t: listed(t(*some("a", "b")), "path,label,group", *rows("{c},g")),
        "all videos seem to come from one recording, 'g' (grouped by the column group)",
    ),
    "all files the same": (lambda t: t(*some("a", "b"), same=True), "all videos seem to come from one recording"),
    "the group is the class": (
        lambda t: listed(t(*some("a", "b")), "path,label,group", *rows("{c},{c}")),
        "no clip is left to validate on: each class lies in one group (grouped by the column group)",
    ),
    "all rows for validation": (
        lambda t: listed(t(*some("a", "b")), "path,label,split", *rows("{c},val")),
        "no clip is left to train on: all are for validation (split as given)",
    ),
    "all rows for testing": (
        lambda t: listed(t(*some("a", "b")), "path,label,split", *rows("{c},test")),
        "all 8 videos are marked test: none is left to train on",
    ),
    "validation and test, no training": (
        lambda t: listed(
            t(*some("a", "b")), "path,label,split", *rows("{c},val", 2), "a/2.mp4,a,test", "b/2.mp4,b,test"
        ),
        "no clip is left to train on: all are for validation or test (split as given)",
    ),
    "a class of pictures": (beside("c/1.jpg", "c/2.PNG"), "class 'c' of {} has no videos, but 2 pictures"),
    "a class of frame folders": (
        beside(*(f"c/clip{k}/{n:05}.jpg" for k in range(2) for n in range(3))),
        "class 'c' of {} has 2 videos, and none can be used (c/clip0: is damaged: frame 0 of 3 (00000.jpg)",
    ),
    "a class without files": (beside("c/"), "class 'c' of {} is an empty folder"),
    "a class of empty folders": (beside("c/clip1/", "c/clip2/"), "class 'c' of {} is an empty folder"),
    "a class of archives": (beside("c/all.zip"), "class 'c' of {} has no videos, but other files (1 .zip)"),
    "a class of hidden files": (
        beside("c/._1.mp4"),
        "class 'c' of {} has only hidden files, or links to videos of other folders",
    ),
    "a class of broken videos": (
        beside("c/1.mp4"),
        "class 'c' of {} has 1 video, and none can be used (c/1.mp4: is not a video, or is cut off)",
    ),
    "a class of files without ending": (
        beside("c/1", "c/2"),
        "class 'c' of {} has no videos, but other files (2 without ending)",
    ),
    "a class that is a link to nothing": (linked("/no/where"), "class 'c' of {} is a link to nothing"),
    "a class that is a link to another": (linked("a"), "class 'c' of {} is a link to a folder that is read elsewhere"),
    "two such classes": (beside("c/", "d/1.jpg"), "class 'c' of {} is an empty folder; so does 'd'"),
    "a class of pictures in train": (
        lambda t: beside("train/c/1.jpg")(lambda *_: t(*some("train/a", "train/b", "val/a", "val/b"))),
        "class 'c' of {} has no videos, but 1 picture",
    ),
    "a folder of notes": (beside("docs/a.txt", "docs/b.json"), ""),
    "a class whose files are not there": (
        lambda t: listed(t(*some("a", "b")), "path,label", *rows("{c}"), "no.mp4,c"),
        "class 'c' of {} has 1 row, and no video of them is there",
    ),
    "a class outside its video": (
        lambda t: listed(t(*some("a", "b")), "path,label,start", *rows("{c},"), "a/0.mp4,c,9"),
        "class 'c' of {} has 1 video, and none can be used "
        "(a/0.mp4: its part starts at 9 s, but the video ends at 0.5 s)",
    ),
    "no video can be read": (
        lambda t: beside(*some("a", "b"))(lambda *_: t("a/0.mp4")),
        "{} has no video that can be used",
    ),
    "many cannot be read": (beside("a/x.mp4", "a/y.mp4", "b/x.mp4"), "3 of 11 videos in {} cannot be used"),
    "one class": (lambda t: t(*some("a")), "{} has one class, 'a'; a classifier needs two"),
    "another name for validation": (
        lambda t: t(*some("train/a", "train/b", "dev/a", "dev/b")),
        "{} has folders that are named like splits, not classes: 'dev', 'train'",
    ),
    "splits called sets": (
        lambda t: t(*some("train_set/a", "train_set/b", "Valid-set/a", "Valid-set/b")),
        "{} has folders that are named like splits, not classes: 'Valid-set', 'train_set'",
    ),
    "an extra folder beside train and val": (
        lambda t: t(*some("train/a", "train/b", "val/a", "val/b", "extra")),
        "{} has folders that are named like splits, not classes: 'train', 'val', beside 'extra'",
    ),
    "an extra folder beside train": (
        lambda t: t(*some("train/a", "train/b", "more")),
        "{} has folders that are named like splits, not classes: 'train', beside 'more'",
    ),
    "an extra folder of parts beside train": (
        lambda t: t(*some("train/a", "train/b", "more/part1", "more/part2")),
        "{} has folders that are named like splits, not classes: 'train', beside 'more'",
    ),
    "a class called train, in recordings": (lambda t: t(*some("train/s1", "train/s2", "bus/s3")), ""),
    "folds": (lambda t: t(*some("fold1", "fold2")), "{} has folders that are named like splits, not classes"),
    "train alone": (lambda t: t(*some("train/a", "train/b")), "{} has one folder, 'train', which holds 'a', 'b'"),
    "classes below places": (
        lambda t: t(*some("park/run", "park/walk", "street/run", "street/walk")),
        "all folders of {}, 'park', 'street', hold the same sub-folders, 'run', 'walk', which look like the classes",
    ),
    "recordings below classes": (lambda t: t(*some("run/s1", "run/s2", "walk/s1", "walk/s2")), ""),
    "some of the same sub-folders": (lambda t: t(*some("run/anna", "run/ben", "walk/anna")), ""),
    "a class called train": (lambda t: t(*some("train", "bus")), ""),
    "classes of words like those of splits": (lambda t: t(*some("test drive", "train ride", "fold")), ""),
    "train and test": (lambda t: t(*some("train/a", "train/b", "test/a", "test/b")), ""),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A model folder to start from."""
    return checkpoint.save_model(tmp_path_factory.mktemp("weights") / "images", model.build(ModelSpec("tiny")))


@pytest.mark.parametrize("name", AGREED)
def test_check_and_finetune_say_the_same(name, tree, images, nlzoo):
    make, words = AGREED[name]
    source = make(tree)
    words = words.replace("{}", str(source if source.is_dir() else source.parent))
    code, out, _ = nlzoo("check", source, "--json")
    answer = json.loads(out)
    if not words:
        scanning.split(scanning.scan(source), "0.25", 0)  # what finetune asks first
        assert code == 0 and answer["could_train"] and not answer["reason"]
        return
    assert code == 3
    reason = answer["reason"] if "reason" in answer else answer["error"]
    assert reason.startswith(words)
    code, out, _ = nlzoo("finetune", source, "--from", images, "--json", "--device", "cpu")
    assert code == 3 and json.loads(out)["error"].partition(":\n")[0] == reason


def test_a_folder_of_notes_and_what_kinetics_lost_are_named(tree):
    result = report(beside("docs/a.txt", "docs/b.json")(tree))
    assert (
        "'docs' is not among the classes: has no videos, but other files (1 .json, 1 .txt)"
        in finding(result, "left_out").message
    )


def test_classes_that_are_named_are_no_splits(tree):
    root = tree(*some("park/run", "park/walk", "street/run", "street/walk"))
    with pytest.raises(VideoError) as caught:
        listing.read(root)
    assert caught.value.hint.endswith("if they are the classes, name them with --classes")
    assert {i.labels for i in listing.read(root, ("park,street",)).items} == {("park",), ("street",)}


def test_lost_classes_count_only_where_they_are_chosen(tree):
    root = beside("c/1.jpg")(tree)
    assert check.look(listing.read(root, ("a", "b")), workers=0).could_train
    assert "class 'c'" in check.look(listing.read(root, ("a", "c")), workers=0).reason


def test_a_share_that_whole_groups_cannot_give_is_said(tree):
    groups = [f"{c}/{n}.mp4,{c},g{min(n, 1)}" for c in "ab" for n in range(4)]  # two videos in g0, six in g1
    assert not kinds(report(listed(tree(*some("a", "b")), "path,label,group", *groups)))
    groups = [f"{c}/{n}.mp4,{c},g{n % 2}" for c in "ab" for n in range(4)]  # four in each
    message = finding(report(listed(tree(*some("a", "b")), "path,label,group", *groups)), "split").message
    assert message.startswith("4 of 8 videos are for validation (50%), not the 25% that --val asks for: whole groups")
