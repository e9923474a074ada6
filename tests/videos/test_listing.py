"""Folders and lists as people have them: each is used as it was meant, or refused with what to do instead.

Nothing is opened by `listing`, so a video here is any file with a video's ending.
"""

import os
import random
import shutil
import tempfile
import zipfile
from pathlib import Path

import pytest

from nlzoo.core import archives, tables
from nlzoo.core.errors import DiskError, UsageError, VideoError
from nlzoo.core.skipped import Skipped
from nlzoo.core.text import as_text, printable
from nlzoo.videos import list_rows, listing
from nlzoo.videos.items import Item, Kind, Listing
from nlzoo.videos.tree import walk

RAW = os.fsdecode(b"caf\xe9 \xff.mp4")  # no UTF-8
NASTY = [
    "with space.mp4",
    "two\nlines.mp4",
    "car\rriage.mp4",
    "qu\"ote's.mp4",
    "comma, semi;colon.mp4",
    "emoji 🕺.mp4",
    "[bold red]markup.mp4",
    "\x1b[31mred.mp4",
    " outer .mp4",
    "back\\slash.mp4",
    "tab\there.mp4",
    "line\u2028sep\x85.mp4",
    RAW,
]


def put(root, *names):
    """Files of these names, each with bytes of its own."""
    for name in names:
        place = root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(os.fsencode(name))
    return root


def text(root, name, content, *videos):
    """A list `name` that says `content`, with `videos` in the same folder."""
    put(root, *videos)
    (root / name).write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape"))
    return root / name


def of(content, *videos):
    """Makes the list l.csv."""
    return lambda root: text(root, "l.csv", content, *videos)


def with_loops(root):
    """11 files in three classes, with links to the root, to siblings, to files, to itself and to nothing."""
    put(root, *(f"{c}/{i}.mp4" for c in ("bird", "cat") for i in range(4)), "dog/a/1.mp4", "dog/a/2.mp4", "dog/b/1.mp4")
    (root / "dog/a/up").symlink_to(root)
    (root / "dog/a/same").symlink_to(".")
    (root / "bird/dogs").symlink_to("../dog")
    (root / "bird/a").symlink_to("../dog/a")
    (root / "cat/again.mp4").symlink_to("0.mp4")
    (root / "cat/other.mp4").symlink_to("../bird/0.mp4")
    (root / "cat/round").symlink_to("round")
    (root / "alias").symlink_to(root / "cat")
    return root


def linked_store(root):
    put(root / "store", "x.mp4", "sub/y.mp4", "z.mp4")
    for name, target in (("in/dog/1.mp4", "store/x.mp4"), ("in/cat", "store/sub")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(root / target)
    return root / "in"


def with_fifo(root):
    put(root, "a/1.mp4", "b/1.mp4")
    os.mkfifo(root / "b/x.mp4")
    return root


def archive(root, name):
    with zipfile.ZipFile(root / name, "w") as opened:
        opened.writestr("dog/1.mp4", b"x")
    return root / name


def tar(root, kind):
    put(root / "in", "dog/1.mp4")
    return Path(shutil.make_archive(str(root / "videos"), kind, root / "in"))


def fifo(root):
    os.mkfifo(root / "videos.csv")
    return root / "videos.csv"


def sparse(root):
    with open(root / "huge.csv", "wb") as opened:
        opened.write(b"path,label\n")
        opened.truncate(600 * 2**20)
    return root / "huge.csv"


def lists(root, contents):
    """A folder of lists."""
    for name, content in contents.items():
        text(root, name, content)
    return root


def in_lists(root, content):
    """A list in a folder of its own beside the videos."""
    put(root, "vids/a.mp4", "vids/b.mp4")
    (root / "lists").mkdir()
    return text(root / "lists", "l.csv", content)


KINETICS = "label,youtube_id,time_start,time_end,split,is_cc\n"
EPIC = """narration_id,participant_id,video_id,start_timestamp,stop_timestamp,start_frame,stop_frame,verb,id,noun,all
P01_01_0,P01,P01_01,00:00:00.50,00:00:02.50,30,150,open,3,door,['door']
P01_01_1,P01,P01_01,00:00:03.000,00:01:03.000,150,3150,turn-on,6,light,"['light', 'lamp']"
P02_1_0,P02,P02_1,00:00:01.00,00:00:02.00,60,120,open,3,door,['door']
P03_1_0,P03,P03_1,00:00:01.00,00:00:02.00,60,120,open,3,door,['door']
"""
CHARADES = """id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length
46GP8,HR43,Kitchen,6,7,Yes,"A person, cooking",food/towel,x,c092 11.90 21.20;c147 0.00 12.60;c092 1 2,24.83
N11GT,0KZ7,Stairs,,,No,,,,,18.17
NOPE1,0KZ7,Stairs,,,No,,,,c001 0 1,18.17
"""

# name: (how it is made: a function of an empty folder that gives what nlzoo is pointed at, what comes of it)
# used: "path=labels @split [start,end]"; "!path" was skipped. Otherwise the error and words of its message (…: more).
SHAPES = {
    "a folder per class": (lambda r: put(r, "dog/1.mp4", "cat/1.AVI"), ["cat/1.AVI=cat", "dog/1.mp4=dog"]),
    "nested folders belong to the class": (
        lambda r: put(r, "dog/x/y/1.mp4", "cat/2.mkv"),
        ["cat/2.mkv=cat", "dog/x/y/1.mp4=dog"],
    ),
    "a stray video": (
        lambda r: put(r, "dog/1.mp4", "cat/1.mp4", "0.mp4"),
        ["cat/1.mp4=cat", "dog/1.mp4=dog", "!0.mp4"],
    ),
    "other files and hidden ones": (
        lambda r: put(
            r,
            "dog/1.mp4",
            "cat/1.mp4",
            "cat/._1.mp4",
            "__MACOSX/dog/1.mp4",
            ".ipynb_checkpoints/1.mp4",
            "dog/.git/1.mp4",
            "dog/Thumbs.db",
        ),
        ["cat/1.mp4=cat", "dog/1.mp4=dog"],
    ),
    "train and val": (
        lambda r: put(r, "train/a/1.mp4", "Validation/a/2.mp4"),
        ["Validation/a/2.mp4=a @val", "train/a/1.mp4=a @train"],
    ),
    "train, val, test": (
        lambda r: put(r, "train/a/1.mp4", "val/a/2.mp4", "test/b/c/3.mp4"),
        ["test/b/c/3.mp4=b @test", "train/a/1.mp4=a @train", "val/a/2.mp4=a @val"],
    ),
    "train and test alone": (
        lambda r: put(r, "train/a/1.mp4", "test/a/2.mp4"),
        ["test/a/2.mp4=a @test", "train/a/1.mp4=a @train"],
    ),
    "train, val and a folder without videos": (
        lambda r: put(r, "train/a/1.mp4", "val/a/2.mp4", "annotations/x.json"),
        ["train/a/1.mp4=a @train", "val/a/2.mp4=a @val"],
    ),
    "a stray video in train": (
        lambda r: put(r, "train/a/1.mp4", "val/a/2.mp4", "train/0.mp4"),
        ["train/a/1.mp4=a @train", "val/a/2.mp4=a @val", "!train/0.mp4"],
    ),
    "a class called train": (lambda r: put(r, "train/1.mp4", "bus/1.mp4"), ["bus/1.mp4=bus", "train/1.mp4=train"]),
    "11 files with links in circles": (
        with_loops,
        sorted(
            [f"{c}/{i}.mp4={c}" for c in ("bird", "cat") for i in range(4)]
            + ["dog/a/1.mp4=dog", "dog/a/2.mp4=dog", "dog/b/1.mp4=dog"]
        ),
    ),
    "links to a store": (linked_store, ["cat/y.mp4=cat", "dog/1.mp4=dog"]),
    "a pipe is left to the scan": (with_fifo, ["a/1.mp4=a", "b/1.mp4=b", "b/x.mp4=b"]),
    "nasty names in a folder": (
        lambda r: put(r, *(f"a/{n}" for n in NASTY), "b/1.mp4"),
        [f"a/{n}=a" for n in sorted(NASTY)] + ["b/1.mp4=b"],
    ),
    "nasty class names": (
        lambda r: put(r, "[b]x[red]/1.mp4", "\x1b[2J/1.mp4", "a;b/1.mp4"),
        ["\x1b[2J/1.mp4=\x1b[2J", "[b]x[red]/1.mp4=[b]x[red]", "a;b/1.mp4=a;b"],
    ),
    "classes that differ in case": (
        lambda r: put(r, "Dog/1.mp4", "dog/1.mp4"),
        (VideoError, "two classes 'Dog' and 'dog' that differ in spelling alone"),
    ),
    "classes that differ in Unicode form": (
        lambda r: put(r, "caf\u00e9/1.mp4", "cafe\u0301/1.mp4"),
        (VideoError, r"'cafe\u0301' and 'caf\xe9' that differ"),
    ),
    "an empty folder": (lambda r: r, (VideoError, "is empty")),
    "a folder of documents": (lambda r: put(r, "a/1.pdf", "b/2.doc"), (VideoError, "has no videos; 2 other files")),
    "a folder of pictures": (
        lambda r: put(r, "a/x.jpg", "a/y.jpg", "b/z.png", "n.txt"),
        (VideoError, "no videos, but 3 pictures"),
    ),
    "numbered pictures in class folders": (
        lambda r: put(r, "a/1.jpg", "a/2.jpg", "b/1.png", "n.txt"),
        (VideoError, "the folders of frames in … have no class: they lie directly in it (a)"),
    ),
    "videos without class folders": (lambda r: put(r, "1.mp4", "2.mp4"), (VideoError, "no class folder is there")),
    "a missing path": (lambda r: r / "nowhere", (VideoError, "does not exist")),
    "a video": (lambda r: put(r, "x.mp4") / "x.mp4", (VideoError, "is a video, not a folder")),
    "a zip by its name alone": (
        lambda r: put(r, "videos.zip") / "videos.zip",
        (VideoError, "cannot be read in place: it is cut off, or is no zip"),
    ),
    "a zip by another name": (lambda r: archive(r, "videos.csv"), (VideoError, "is an archive")),
    "a compressed tar": (lambda r: tar(r, "gztar"), (VideoError, "is an archive")),
    "a tar that is compressed": (
        lambda r: tar(r, "gztar").replace(r / "videos.tar") or r / "videos.tar",
        (VideoError, "cannot be read in place: it is cut off, or is no tar"),
    ),
    "a zip with one folder": (lambda r: archive(r, "videos.zip"), ["dog/1.mp4=dog"]),
    "a tar of one folder": (lambda r: tar(r, "tar"), ["dog/1.mp4=dog"]),
    "a spreadsheet": (lambda r: archive(r, "videos.xlsx"), (VideoError, "is a spreadsheet")),
    "a pipe for a list": (fifo, (VideoError, "is not a regular file")),
    "a huge list": (sparse, (VideoError, "has 600 MB; a list has at most 512")),
    "an empty list": (of("\n \r\n"), (VideoError, "is a file with nothing in it")),
    "a header alone": (of("path,label\n"), (VideoError, "has a header and no rows")),
    "a binary list": (of(b"a.mp4,dog\n\0\1\2"), (VideoError, "no list: it holds bytes")),
    "UTF-16": (of("path,label\n".encode("utf-16")), (VideoError, "is UTF-16")),
    "two columns": (of("a.mp4,dog\nv/b.mp4, cat \n", "a.mp4", "v/b.mp4"), ["a.mp4=dog", "v/b.mp4=cat"]),
    "tabs, whatever the ending": (
        of("a, b.mp4\tdog\nb.mp4\tcat 2\n", "a, b.mp4", "b.mp4"),
        ["a, b.mp4=dog", "b.mp4=cat 2"],
    ),
    "labels that end in numbers": (
        lambda r: text(r, "l.txt", "a.mp4,take 1\nb.mp4,take 2", "a.mp4", "b.mp4"),
        ["a.mp4=take 1", "b.mp4=take 2"],
    ),
    "BOM, CRLF, quotes, blank lines": (
        of(b'\xef\xbb\xbf\r\n"path","label"\r\n"a, ""1"".mp4", "dog"\r\n\r\n,\r\nb.mp4,cat\r\n', 'a, "1".mp4', "b.mp4"),
        ['a, "1".mp4=dog', "b.mp4=cat"],
    ),
    "every column, in any order, and others": (
        of(
            "split,Video Path,extra,end,start,Class,group\nTRAINING,a.mp4,x,9.5,2,dog,g1\nvalid,b.mp4,,,,cat,g2\n",
            "a.mp4",
            "b.mp4",
        ),
        ["a.mp4=dog @train [2.0,9.5]", "b.mp4=cat @val"],
    ),
    "parts of one file": (
        lambda r: text(r, "l.tsv", "file\tlabel\tstart\tend\na.mp4\tx\t5\t\na.mp4\ty\t\t5\na.mp4\tx\t5\t7\n", "a.mp4"),
        ["a.mp4=y [None,5.0]", "a.mp4=x [5.0,7.0]", "a.mp4=x [5.0,None]"],
    ),
    "several labels, and none": (
        of("path,labels\na.mp4,run; jump\nb.mp4,\nc.mp4,run\n", "a.mp4", "b.mp4", "c.mp4"),
        ["a.mp4=jump;run", "b.mp4=", "c.mp4=run"],
    ),
    "no label at all": (
        of("path,labels\na.mp4,\nb.mp4,;\n", "a.mp4", "b.mp4"),
        (VideoError, "no video that is there in … has a label"),
    ),
    "beside the list, else in the working folder": (
        lambda r: in_lists(
            r, f"path,label\n../vids/a.mp4,x\nhere.mp4,y\n{r}/vids/b.mp4,x\n./sub\\w.mp4,y\nnot.mp4,x\n"
        ),
        ["../vids/a.mp4=x", "WORK/here.mp4=y", "WORK/sub/w.mp4=y", "ROOT/vids/b.mp4=x", "!not.mp4"],
    ),
    "no video of a list is there": (
        of("path,label\nno.mp4,x\nnor.mp4,y\n"),
        (VideoError, "l.csv lists 2 videos, and none is there; the first: no.mp4"),
    ),
    "listed twice": (
        of("path,label\na.mp4,x\n./a.mp4,x\nb.mp4,y\n", "a.mp4", "b.mp4"),
        ["a.mp4=x", "b.mp4=y", "!a.mp4"],
    ),
    "two labels for one video": (
        of("path,label\na.mp4,x\nb.mp4,y\na.mp4,y\n", "a.mp4", "b.mp4"),
        (VideoError, "l.csv line 4: a.mp4 is 'y' here and 'x' in l.csv line 2"),
    ),
    "an end before its start": (
        of("path,label,start,end\na.mp4,x,5,3\n", "a.mp4"),
        (VideoError, "l.csv line 2: end 3.0 is not after start 5.0"),
    ),
    "a start that is no number": (
        of('path,label,start\n"a\n.mp4",x,\nb.mp4,x,0:05\n', "a\n.mp4"),
        (VideoError, "line 4: start '0:05' is not a number"),
    ),
    "an endless part": (
        of("path,label,end\na.mp4,x,inf\n", "a.mp4"),
        (VideoError, "line 2: end 'inf' is not a number"),
    ),
    "an unknown split": (
        of("path,label,split\na.mp4,x,train\nb.mp4,x,dev\n", "a.mp4"),
        (VideoError, "line 3: split 'dev' is none of train, val, test"),
    ),
    "a row without a path": (of("path,label\n ,x\n", "a.mp4"), (VideoError, "line 2: no path")),
    "a comma without quotes": (
        of("path,label\na, b.mp4,x\n", "a, b.mp4"),
        (VideoError, "line 2: 3 columns instead of 2"),
    ),
    "a quote that is not closed": (
        of('path,label\na.mp4,x\n"b.mp4,y\nc.mp4,y\n', "a.mp4"),
        (VideoError, "line 3: quotes that do not fit"),
    ),
    "a label without end": (
        of(f"path,label\na.mp4,{'x' * 1001}\n", "a.mp4"),
        (VideoError, "line 2: a label of over 1000"),
    ),
    "semicolons for commas": (of('path;label\na.mp4;x\nb.mp4;"y;z"\n', "a.mp4", "b.mp4"), ["a.mp4=x", "b.mp4=y;z"]),
    "columns of other names": (
        of("clip,activity\na.mp4,x\n", "a.mp4"),
        (VideoError, "line 1: 'clip' is neither a video nor a header"),
    ),
    "no column of labels": (
        of("path,length\na.mp4,3\n", "a.mp4"),
        (VideoError, "no column is called label; there are 'path', 'length'"),
    ),
    "two columns of labels": (
        of("path,label,label\na.mp4,3,4\n", "a.mp4"),
        (VideoError, "line 1: two columns are called label"),
    ),
    "three columns without a header": (
        of("a.mp4,dog,train\n", "a.mp4"),
        (VideoError, "line 1: 'a.mp4,dog,train' is neither"),
    ),
    "SlowFast's list": (
        of("my videos/a 1.mp4 0\nb,c.mp4\t12 \n", "my videos/a 1.mp4", "b,c.mp4"),
        ["b,c.mp4=12", "my videos/a 1.mp4=0"],
    ),
    "mmaction2's list of several classes": (
        lambda r: text(r, "l.txt", "a.mp4 0 5 3\nb.mp4 1\n", "a.mp4", "b.mp4"),
        ["a.mp4=0;3;5", "b.mp4=1"],
    ),
    "a line without a class": (
        lambda r: text(r, "l.txt", "a.mp4 0\nb.mp4\n", "a.mp4", "b.mp4"),
        (VideoError, "l.txt line 2: 'b.mp4' does not end in the number"),
    ),
    "mmaction2's list of frames": (
        lambda r: text(r, "l.txt", "some/dir 163 1\n", "some/dir/1.jpg"),
        ["some/dir=1 [None,6.52]"],
    ),
    "the same, without pictures": (
        lambda r: text(r, "l.txt", "some/dir 163 1\n", "some/dir/1.txt"),
        (VideoError, "lists no videos: some/dir is a folder"),
    ),
    "the same, frames elsewhere": (
        lambda r: text(r, "l.txt", "some/dir 163 1\n"),
        (VideoError, "lists no videos: some/dir is listed, but"),
    ),
    "SlowFast's list of frames": (
        of('original_vido_id video_id frame_id path labels\n46GP8 0 0 46GP8/1.jpg "1,2"\n'),
        (VideoError, "list of pictures"),
    ),
    "the Hub's videofolder": (
        lambda r: (
            put(r, "metadata.csv").joinpath("metadata.csv").write_text("file_name,label\nd/1.mp4,x\nd/2.mp4,y\n")
            and put(r, "d/1.mp4", "d/2.mp4", "d/3.mp4", "README.md")
        ),
        ["d/1.mp4=x", "d/2.mp4=y"],
    ),
    "the same in splits": (
        lambda r: lists(
            put(r, "train/1.mp4", "train/2.mp4", "test/3.mp4"),
            {
                "train/metadata.csv": "file_name,label\n1.mp4,x\n2.mp4,y\n",
                "test/metadata.jsonl": '{"file_name": "3.mp4", "label": "y", "views": 7}\n',
            },
        ),
        ["test/3.mp4=y @test", "train/1.mp4=x @train", "train/2.mp4=y @train"],
    ),
    "the same, splits by their folders": (
        lambda r: lists(
            put(r, "train/1.mp4", "train/2.mp4", "validation/3.mp4"),
            {"metadata.csv": "file_name,label\ntrain/1.mp4,x\ntrain/2.mp4,y\nvalidation/3.mp4,y\n"},
        ),
        ["train/1.mp4=x @train", "train/2.mp4=y @train", "validation/3.mp4=y @val"],
    ),
    "the same, without labels: folders are classes": (
        lambda r: lists(put(r, "a/1.mp4", "b/2.mp4"), {"metadata.csv": "file_name,caption\na/1.mp4,x\nb/2.mp4,y\n"}),
        ["a/1.mp4=a", "b/2.mp4=b"],
    ),
    "two lists of metadata": (
        lambda r: lists(
            put(r, "1.mp4", "2.mp4"),
            {"metadata.csv": "file_name,label\n1.mp4,x\n", "metadata.jsonl": '{"file_name": "1.mp4", "label": "x"}\n'},
        ),
        (VideoError, "several lists for the same videos: 'metadata.csv', 'metadata.jsonl'"),
    ),
    "JSON lines": (
        lambda r: text(
            put(r, "1.mp4", "2.mp4"),
            "l.jsonl",
            '{"video": "1.mp4", "labels": ["x", "y"]}\n\n{"video": "2.mp4", "labels": []}\n',
        ),
        ["1.mp4=x;y", "2.mp4="],
    ),
    "JSON lines without JSON": (
        lambda r: text(r, "l.jsonl", '{"video": "1.mp4", "label": "x"}\n{"video": 2.mp4}\n', "1.mp4"),
        (VideoError, "l.jsonl line 2: no JSON"),
    ),
    "JSON lines of other things": (lambda r: text(r, "l.jsonl", "[1]\n"), (VideoError, "line 1: not an object")),
    "Parquet": (
        lambda r: (
            tables.write_parquet(
                put(r, "1.mp4", "2.mp4") / "l.parquet",
                {"file_name": "string", "label": "int64"},
                [{"file_name": "1.mp4", "label": 0}, {"file_name": "2.mp4", "label": 1}],
            )
            or r / "l.parquet"
        ),
        ["1.mp4=0", "2.mp4=1"],
    ),
    "no Parquet": (lambda r: text(r, "l.parquet", "PAR1"), (VideoError, "cannot be read as Parquet")),
    "ids and labels between semicolons": (
        lambda r: text(r, "l.csv", "34870;Drumming Fingers\n7;Sliding, two\n", "a/34870.webm", "b/7.webm"),
        ["a/34870.webm=Drumming Fingers", "b/7.webm=Sliding, two"],
    ),
    "train.csv and val.csv": (
        lambda r: lists(
            put(r, "v/a.mp4", "v/b.mp4", "v/c.mp4", "v/d.mp4"),
            {"train.csv": "v/a.mp4 0\nv/b.mp4 1\n", "val.csv": "v/c.mp4 0\n", "test.csv": "v/d.mp4 1\n"},
        ),
        ["v/a.mp4=0 @train", "v/b.mp4=1 @train", "v/c.mp4=0 @val", "v/d.mp4=1 @test"],
    ),
    "lists for videos in train/ and val/": (
        lambda r: lists(
            put(r, "train/a.mp4", "val/b.mp4"), {"TRAIN.TXT": "train/a.mp4,x\n", "val.tsv": "val/b.mp4\ty\n"}
        ),
        ["train/a.mp4=x @train", "val/b.mp4=y @val"],
    ),
    "two lists for training": (
        lambda r: lists(r, {"train.csv": "a.mp4,x\n", "train.txt": "a.mp4,x\n", "val.csv": "a.mp4,x\n"}),
        (VideoError, "has 2 lists for train: 'train.csv', 'train.txt'"),
    ),
    "a video for training and validation": (
        lambda r: lists(put(r, "a.mp4", "b.mp4"), {"train.csv": "a.mp4,x\nb.mp4,y\n", "val.csv": "a.mp4,x\n"}),
        ["a.mp4=x @train", "b.mp4=y @train", "!a.mp4"],
    ),
    "lists and class folders": (
        lambda r: lists(put(r, "a/1.mp4", "b/1.mp4"), {"train.csv": "a/1.mp4 0\n", "val.csv": "b/1.mp4 1\n"}),
        (VideoError, "both class folders ('a', 'b') and lists (train.csv and val.csv)"),
    ),
    "a Kinetics list": (
        lambda r: text(
            r,
            "k.csv",
            KINETICS + "hug,-abcdefghij,5,15,train,0\n"
            '"fly, 2",bcdefghij_k,20,30,validate,0\n'
            "hug,ccccccccccc,0,10,test,1\n",
            "train/hug/-abcdefghij_000005_000015.mkv",
            "-abcdefghij.mp4",
            "raw/bcdefghij_k.mp4",
        ),
        [
            "raw/bcdefghij_k.mp4=fly, 2 @val [20.0,30.0]",
            "train/hug/-abcdefghij_000005_000015.mkv=hug @train",
            "!ccccccccccc_000000_000010.mp4",
        ],
    ),
    "a Kinetics list without a video": (
        lambda r: text(r, "k.csv", KINETICS + "hug,abcdefghijk,5,15,train,0\n"),
        (VideoError, "k.csv lists 1 video, and none is there; the first: abcdefghijk_000005_000015.mp4"),
    ),
    "EPIC-Kitchens' list": (
        lambda r: text(r, "EPIC_100_train.csv", EPIC, "P01/rgb/P01_01/frame_0000000001.jpg", "P02/P02_1.MP4"),
        [
            "P01/rgb/P01_01=open [0.5,2.5]",
            "P01/rgb/P01_01=turn-on [3.0,63.0]",
            "P02/P02_1.MP4=open [1.0,2.0]",
            "!P03_1.mp4",
        ],
    ),
    "EPIC-Kitchens' list of nouns": (
        lambda r: text(r, "l.csv", EPIC.replace("noun,", "label,"), "P01_01.mp4", "P02_1.mp4"),
        ["P01_01.mp4=door [0.5,2.5]", "P01_01.mp4=light [3.0,63.0]", "P02_1.mp4=door [1.0,2.0]", "!P03_1.mp4"],
    ),
    "EPIC-Kitchens' list with a broken time": (
        of(EPIC.replace("00:01:03.000", "1:03")),
        (VideoError, "l.csv line 3: '1:03' is not a time"),
    ),
    "EPIC-Kitchens' list without a verb": (of(EPIC.replace(",open,", ",,")), (VideoError, "line 2: no verb is named")),
    "Charades' list": (
        lambda r: text(r, "Charades_v1_train.csv", CHARADES, "Charades_v1/46GP8.mp4", "Charades_v1/N11GT.mp4"),
        ["Charades_v1/46GP8.mp4=c092;c147", "Charades_v1/N11GT.mp4=", "!NOPE1.mp4"],
    ),
    "Charades' list with a broken action": (
        lambda r: text(r, "c.csv", "id,actions\n46GP8,c092 11.90\n", "46GP8.mp4"),
        (VideoError, "line 2: action 'c092 11.90' is not"),
    ),
}


def summary(item):
    """An item as SHAPES writes it."""
    part = f" [{item.start},{item.end}]" if (item.start, item.end) != (None, None) else ""
    return f"{item.path}={';'.join(item.labels)}{f' @{item.split}' if item.split else ''}{part}"


@pytest.fixture
def work(tmp_path, monkeypatch):
    """The working folder, which is not the data's."""
    folder = put(tmp_path / "work", "here.mp4", "sub/w.mp4")
    monkeypatch.chdir(folder)
    return folder


def test_there_are_enough_shapes():
    assert len(SHAPES) >= 50


@pytest.mark.parametrize("name", SHAPES)
def test_each_shape(name, tmp_path, work):
    make, expected = SHAPES[name]
    root = tmp_path / "data"
    root.mkdir()
    source = make(root)
    if isinstance(expected, tuple):
        kind, words = expected
        with pytest.raises(kind) as caught:
            listing.read(source)
        assert all(part in caught.value.message for part in words.split(" … ")), caught.value.message
        assert caught.value.hint and caught.value.exit_code == 3
        assert (
            "\n" not in caught.value.message and caught.value.message.isprintable() and caught.value.hint.isprintable()
        )
        return
    found = listing.read(source)
    expected = [e.replace("WORK", str(work)).replace("ROOT", str(root)) for e in expected]
    assert sorted(map(summary, found.items)) == sorted(e for e in expected if e[0] != "!")
    assert [f"!{s.path}" for s in found.skipped if s.reason] == [e for e in expected if e[0] == "!"]
    assert str(found.kind) and found.items == tuple(
        sorted(found.items, key=lambda i: (i.path, i.start or 0, i.end or 1e9))
    )
    assert all(archives.exists(found.root / i.path) for i in found.items)


def said(source, whole):
    """What `listing` makes of a source; `whole`: what is DATA in messages."""
    try:
        found = listing.read(source)
    except (VideoError, UsageError) as error:
        return type(error), *(text.replace(printable(whole), "DATA") for text in (error.message, error.hint))
    return found.items, found.skipped, found.ignored, str(found.kind), found.levels, found.lost


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_of_a_folder_is_what_the_folder_is(tmp_path, work, kind):
    """As it is, and by the name of its folder, which archivers write before all others."""
    compared = 0
    for number, (make, _) in enumerate(SHAPES.values()):
        root = tmp_path / f"{number}" / "data"
        root.mkdir(parents=True)
        source = make(root)
        below = list(source.rglob("*")) if source.is_dir() else []
        if not below or any(
            p.is_symlink() or p.is_fifo() or p.name == RAW for p in below
        ):  # zipfile writes no such name
            continue
        compared += 1
        expected = said(source, source)
        bare = Path(shutil.make_archive(str(root.parent / "bare"), kind, source))
        assert said(bare, listing.opened(bare)) == expected or listing.opened(bare) != bare
        if any(p.is_dir() or p.suffix in (".csv", ".txt", ".tsv", ".jsonl", ".parquet") for p in source.iterdir()):
            whole = Path(shutil.make_archive(str(root.parent / "whole"), kind, source.parent, source.name))
            assert listing.opened(whole) == whole / source.name
            assert said(whole, whole / source.name) == expected
    assert compared >= 25


def test_what_is_said_of_rows_that_are_left_out(tmp_path, work):
    found = listing.read(text(tmp_path, "l.csv", "path,label\na.mp4,x\na.mp4,x\nno.mp4,x\nsub,x\n", "a.mp4"))
    assert found.skipped == (
        Skipped("a.mp4", "listed_twice", "is listed twice"),
        Skipped("no.mp4", "not_found", "is listed, but there is no such file"),
        Skipped("work/sub", "is_folder", "is a folder, not a video"),
    )


def test_groups_come_from_the_column_the_subject_and_the_youtube_id(tmp_path, work):
    lists_ = {
        "path,label,group\na.mp4,x, g 7 \n": "g 7",
        "id,subject,actions\na,HR43,c001 0 1\n": "HR43",
        KINETICS + "x,a,0,10,train,0\n": "a",
    }
    for content, group in lists_.items():
        assert [i.group for i in listing.read(text(tmp_path, "l.csv", content, "a.mp4")).items] == [group]


def test_frames_have_the_rate_that_the_list_of_epic_kitchens_tells(tmp_path, work):
    """As exact as its last frame."""
    found = listing.read(text(tmp_path, "l.csv", EPIC, "P01_01/frame_0000000001.jpg"))
    assert [(item.fps, item.group) for item in found.items] == [(60.0, "P01_01"), (50.0, "P01_01")]


def test_videos_of_ids_are_found_below_the_working_folder_nearest_first(tmp_path, work):
    put(work, "deep/er/hugs_000005_000015.mp4", "near/hugs_000005_000015.mp4", "near/full.mp4")
    (tmp_path / "lists").mkdir()
    found = listing.read(text(tmp_path / "lists", "k.csv", KINETICS + "a,hugs,5,15,train,0\na,full,0,10,train,0\n"))
    assert [summary(i) for i in found.items] == [
        f"{work}/near/full.mp4=a @train [0.0,10.0]",
        f"{work}/near/hugs_000005_000015.mp4=a @train",
    ]
    put(tmp_path / "lists", "x/y/hugs_000005_000015.mp4")  # below the list's folder goes first
    assert listing.read(tmp_path / "lists/k.csv").items[-1].path == "x/y/hugs_000005_000015.mp4"


def test_a_part_of_the_classes(tmp_path, work):
    folder = put(tmp_path / "videos", "a/1.mp4", "b/1.mp4", "c/1.mp4", "0.mp4")
    assert [i.path for i in listing.read(folder, ("c", "a")).items] == ["a/1.mp4", "c/1.mp4"]
    one = text(tmp_path, "one.csv", "1.mp4,a\n2.mp4,b\nno.mp4,b\n", "1.mp4", "2.mp4")
    found = listing.read(one, ("a",))
    assert [summary(i) for i in found.items] == ["1.mp4=a"] and not found.skipped
    many = text(tmp_path, "many.csv", "path,label\n1.mp4,a;b\n2.mp4,c\n", "1.mp4", "2.mp4")
    assert [summary(i) for i in listing.read(many, ("b",)).items] == ["1.mp4=b", "2.mp4="]
    for source in (folder, one, many):
        with pytest.raises(UsageError, match=r"has no class 'z\\x1b'; it has 'a', 'b'"):
            listing.read(source, ("a", "z\x1b"))


def random_name(rng):
    """Any bytes that a file may be called."""
    few = bytes(rng.choice(b" ,;\"'\\\n\r\t.[\x1b\xff\xc3\xa9a1") for _ in range(rng.randint(1, 12)))
    return os.fsdecode(
        few
        if rng.random() < 0.7
        else bytes(rng.choice([*range(1, 47), *range(48, 256)]) for _ in range(rng.randint(1, 40)))
    )


@pytest.mark.parametrize("multi_label", [False, True])
def test_what_is_written_reads_back_the_same(tmp_path, work, seed, multi_label):
    rng = random.Random(seed)
    labels = [f"{as_text(random_name(rng))}{n}" for n in range(20)] + [
        " x",
        "y ",
        ";",
        "\\",
        "\\;",
        "p\\",
        '"',
        "\n",
        "😀",
    ]
    paths = sorted({f"{random_name(rng)}{n}.mp4" for n in range(100)} | {f"d/{n}" for n in NASTY})
    put(tmp_path, *paths)
    items = []
    for path in paths:
        for start in rng.choice([(None,), (None, 1 / 3, 1e-9), (rng.random(),)]):
            some = tuple(rng.sample(labels, rng.randint(0, 3) if multi_label else 1))
            end = (start or 0) + rng.random() + 1e-6 if rng.random() < 0.5 else None
            items.append(
                Item(
                    path,
                    some,
                    random_name(rng),
                    rng.choice(["train", "val", "test", ""]),
                    start,
                    end,
                    rng.randrange(1000),
                    rng.random() * 100,
                )
            )
    used = Listing(tmp_path, tuple(items), (), 0, multi_label, Kind("own"))
    listing.write(used, tmp_path / "manifest.csv")
    found = listing.read(tmp_path / "manifest.csv")
    assert set(found.items) == set(items) and len(found.items) == len(items)
    assert found.multi_label == multi_label and not found.skipped and found.kind.code == "own"
    listing.write(items, tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "manifest.csv").read_bytes() or multi_label
    assert not list(tmp_path.glob(".*.part"))


def test_a_list_written_elsewhere_names_the_same_files(tmp_path, work):
    folder = put(tmp_path / "videos", *(f"a/{n}" for n in NASTY), "b/1.mp4")
    found = listing.read(folder)
    (tmp_path / "run").mkdir()
    listing.write(found, tmp_path / "run/videos.csv")
    again = listing.read(tmp_path / "run/videos.csv")
    assert [(i.path, i.labels) for i in again.items] == [(str(folder / i.path), i.labels) for i in found.items]


def test_one_label_each_in_a_list_for_several(tmp_path, work):
    found = listing.read(text(tmp_path, "l.csv", "path,label\n1.mp4,a;\n2.mp4,b\n", "1.mp4", "2.mp4"))
    assert found.multi_label
    listing.write(found, tmp_path / "again.csv")
    assert listing.read(tmp_path / "again.csv").multi_label


def test_a_list_that_cannot_be_written(tmp_path):
    with pytest.raises(DiskError, match="could not be written"):
        listing.write([], tmp_path / "no" / "l.csv")


def test_every_file_of_a_random_tree_is_one_of_used_skipped_and_ignored(tmp_path, seed):
    rng = random.Random(seed)
    for trial in range(10):
        root, expected = tmp_path / str(trial), {"used": set(), "skipped": set(), "ignored": 0}
        for n in range(150):
            folders = [rng.choice(["a", "b", "c d", ".git", "__MACOSX", "x.mp4"]) for _ in range(rng.randint(0, 3))]
            name = rng.choice(["", "", "", "."]) + f"{n}" + rng.choice([".mp4", ".MKV", ".txt", "", ".mp4.part"])
            put(root, "/".join([*folders, name]))
            if {".git", "__MACOSX"} & set(folders):  # not entered
                continue
            if name.startswith(".") or not name.lower().endswith((".mp4", ".mkv")):
                expected["ignored"] += 1
            else:
                expected["used" if folders else "skipped"].add("/".join([*folders, name]))
        found = listing.read(root)
        used, skipped = [i.path for i in found.items], [s.path for s in found.skipped]
        assert len(used) == len(set(used)) and len(skipped) == len(set(skipped))
        assert {"used": set(used), "skipped": set(skipped), "ignored": found.ignored} == expected
        tree = walk(root)
        assert (tree.videos, tree.others.total()) == (sorted(used + skipped), found.ignored)


def reachable(root):
    """Real paths of the videos below, by the plainest search there is."""
    todo, seen, found = [os.path.realpath(root)], set(), set()
    while todo:
        real = todo.pop()
        if real not in seen:
            seen.add(real)
            for name in os.listdir(real):
                place = os.path.realpath(os.path.join(real, name))
                if os.path.isdir(place):
                    todo.append(place)
                elif name.endswith(".mp4"):
                    found.add(place)
    return found


def test_random_links_give_each_real_file_once(tmp_path, seed):
    rng = random.Random(seed)
    for trial in range(20):
        base = tmp_path / str(trial)
        folders = ["in", "in/a", "in/b", "in/a/c", "in/a/c/d", "out", "out/e", "out/e/f"]
        for folder in folders:
            put(base, *(f"{folder}/{n}.mp4" for n in range(rng.randint(0, 3))))
            (base / folder).mkdir(parents=True, exist_ok=True)
        for n in range(rng.randint(1, 12)):
            target = base / rng.choice(folders) / rng.choice(["", "", "0.mp4", f"link{rng.randrange(12)}"])
            (base / rng.choice(folders) / f"link{n}{rng.choice(['', '.mp4'])}").symlink_to(target)
        paths = walk(base / "in").videos
        real = [os.path.realpath(base / "in" / p) for p in paths]
        assert len(real) == len(set(real)) and set(real) == reachable(base / "in")
        inside = os.path.realpath(base / "in") + "/"
        assert all(
            r == inside + p for r, p in zip(real, paths) if r.startswith(inside) and os.path.exists(r)
        )  # the real place, not a link to it


def test_a_search_without_our_care_goes_round_in_circles(tmp_path):
    root = put(tmp_path / "videos", *(f"dog/{n}.mp4" for n in range(11)))
    (root / "dog/up").symlink_to(root)
    assert len(walk(root).videos) == 11 < sum(len(files) for _, _, files in os.walk(root, followlinks=True))


def test_hard_links_are_files(tmp_path):
    root = put(tmp_path, "a/1.mp4", "b/2.mp4")
    os.link(root / "a/1.mp4", root / "b/1.mp4")
    assert len(listing.read(root).items) == 3


def test_a_folder_that_may_not_be_read_is_named(work):
    root = Path(tempfile.mkdtemp(dir="/tmp"))  # tmp_path lies in a folder that only we may enter
    try:
        root.chmod(0o755)
        put(root, "a/1.mp4", "b/1.mp4", "b/closed/1.mp4")
        (root / "b/closed").chmod(0)
        rights = os.geteuid()
        try:
            if rights == 0:
                os.seteuid(65534)  # nobody; root may read everything
            found = listing.read(root)
            assert len(found.items) == 2 and found.skipped == (
                Skipped("b/closed", "closed", "is a folder that cannot be read: Permission denied"),
            )
            with pytest.raises(VideoError, match="cannot be read: Permission denied"):
                listing.read(root / "b/closed")
        finally:
            os.seteuid(rights)
    finally:
        (root / "b/closed").chmod(0o755)
        shutil.rmtree(root)


@pytest.mark.parametrize("name", NASTY)
def test_names_are_shown_without_control_characters(name):
    assert printable(name).isprintable() and printable(name).encode("utf-8")


def test_any_bytes_are_a_listing_or_a_sentence(tmp_path, work, seed):
    """Lists of the shapes above with random changes, and rows of odd pieces."""
    rng = random.Random(seed)
    pieces = [
        "path",
        "label",
        "id",
        "actions",
        "youtube_id",
        "time_start",
        "time_end",
        "split",
        "start",
        "end",
        "here.mp4",
        "w.mp4",
        "x",
        "1",
        "-1",
        "nan",
        "c1 0 2",
        ";",
        ",",
        "\t",
        " ",
        "\n",
        "\r",
        '"',
        "\\",
        "\ufeff",
        "\u2028",
        "é",
        "\udcff",
        "\0",
        "train",
        "1e999",
        "_",
    ]
    valid = [
        "path,label,start,end\nhere.mp4,a;b,0,5\nsub/w.mp4,,,\n",
        "here.mp4 1 2\nsub/w.mp4 0\n",
        CHARADES,
        KINETICS + "x,here,0,10,train,0\n",
        ",".join(list_rows.COLUMNS) + "\nhere.mp4,a\\;,g,val,0.5,,10,2.5\n",
    ]
    used = 0
    for _ in range(1000):
        if rng.random() < 0.4:
            content = "".join(rng.choice([*pieces, ",", "\n"]) for _ in range(rng.randint(1, 60)))
        else:
            content = list(rng.choice(valid))
            for _ in range(rng.randint(0, 4)):
                content[rng.randrange(len(content))] = rng.choice([*pieces, ""])
            content = "".join(content)
        try:
            found = listing.read(text(work, "l.csv", content))
        except VideoError as error:
            assert error.message.isprintable() and error.hint.isprintable() and len(error.message) < 1000
        else:
            used += 1
            assert found.items and all((found.root / i.path).is_file() for i in found.items)
            if not used % 10:  # flushed to the disk each time
                listing.write(found, work / "again.csv")
                assert set(listing.read(work / "again.csv").items) == set(found.items)
    assert 50 < used < 950


def test_labels_are_text_whatever_the_bytes_of_their_folders(tmp_path):
    """They travel in JSON to config.json and the Hub; a path stays what it is on the disk."""
    raw = os.fsdecode(b"caf\xe9")
    put(tmp_path, f"{raw}/a.mp4", "tea/b.mp4")
    found = listing.read(tmp_path)
    assert [(i.path, i.labels) for i in found.items] == [(f"{raw}/a.mp4", ("caf\\xe9",)), ("tea/b.mp4", ("tea",))]
    assert [i.path for i in listing.read(tmp_path, (raw,)).items] == [f"{raw}/a.mp4"]  # as a shell passes it
    file = text(tmp_path, "l.csv", f"path,label\n{raw}/a.mp4,{raw}\ntea/b.mp4,tea\n")
    assert [i.labels for i in listing.read(file).items] == [("caf\\xe9",), ("tea",)]
    listing.write(found, tmp_path / "written.csv")
    assert listing.read(tmp_path / "written.csv").items == found.items


@pytest.mark.parametrize(
    "asked, meant",
    [
        ("vidz-1", "videos-1"),
        ("VIDEOS-1", "videos-1"),
        ("videos-1/train/hugs", "videos-1/train/hug"),
        ("lst.csv", "list.csv"),
    ],
)
def test_near_misses_of_names_are_offered(asked, meant, tmp_path, work):
    put(tmp_path, "videos-1/train/hug/1.mp4", "list.csv", "other/1.mp4")
    with pytest.raises(VideoError) as caught:
        listing.read(tmp_path / asked)
    assert caught.value.message == f"{tmp_path / asked} does not exist"
    assert caught.value.hint == f"did you mean {tmp_path / meant}?"


def test_nothing_is_offered_where_nothing_is_near(tmp_path, work):
    with pytest.raises(VideoError) as caught:
        listing.read(tmp_path / "elsewhere" / "videos")
    assert caught.value.hint == "give a folder with one sub-folder of videos per class, or a list of path,label"


@pytest.mark.parametrize("address", ["https://example.org/a.mp4", "s3://bucket/videos", "hf://datasets/user/name"])
def test_addresses_are_no_paths(address, work):
    with pytest.raises(UsageError, match="is an address; nlzoo reads files"):
        listing.read(Path(address))


COMMAS = ("turn, left", 'say "hi"', "a;b", "plain", "two words")


@pytest.mark.parametrize(
    "wanted, chosen",
    [
        (("turn, left",), {"turn, left"}),
        (("turn, left", "plain"), {"turn, left", "plain"}),
        (('"turn, left",plain',), {"turn, left", "plain"}),
        (('plain, "turn, left"', "a;b"), {"turn, left", "plain", "a;b"}),
        (('"say ""hi""", two words',), {'say "hi"', "two words"}),
        (('say "hi"',), {'say "hi"'}),
        (("plain,plain",), {"plain"}),
        ((" , ",), set(COMMAS)),
    ],
)
def test_classes_whose_names_hold_commas_can_be_chosen(wanted, chosen, tmp_path, work):
    folder = put(tmp_path / "videos", *(f"{label}/1.mp4" for label in COMMAS))
    assert {i.labels[0] for i in listing.read(folder, wanted).items} == chosen


def test_an_unknown_class_is_told_with_all_names_in_quotes(tmp_path, work):
    folder = put(tmp_path / "videos", *(f"{label}/1.mp4" for label in ("turn, left", "plain")))
    with pytest.raises(UsageError, match="has no class 'left'; it has 'plain', 'turn, left'"):
        listing.read(folder, ("left,plain",))


def test_few_videos_are_refused_by_their_names_and_many_are_let_pass(tmp_path, monkeypatch):
    """Reading names twice is for folders and lists where it takes no time."""
    flat = put(tmp_path / "flat", "a.mp4", "b.mp4")
    rows = text(tmp_path, "rows.csv", "path,label\nnowhere.mp4,a\n")
    packed = tmp_path / "flat.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.write(flat / "a.mp4", "a.mp4")
    for source in (flat, rows):
        with pytest.raises(VideoError):
            listing.refuse_unlabelled(source)
    listing.refuse_unlabelled(packed)
    listing.refuse_unlabelled(put(tmp_path / "good", "x/a.mp4", "y/b.mp4"))
    monkeypatch.setattr(listing, "FEW", 0)
    for source in (flat, rows):
        listing.refuse_unlabelled(source)
