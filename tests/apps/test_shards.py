"""Parts of a work: shards, which know nothing of one another, and ranks. Together they give what one process gives."""

import copy
import csv
import dataclasses
import io
import json
import os
import sys
import tracemalloc
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import command
from forked import ranks
from safetensors.numpy import load_file

import nlzoo
from nlzoo.apps import draw, journal, prepare
from nlzoo.core import feature_files, lock, model_spec, shard, tables, view_spec
from nlzoo.core.errors import UsageError
from nlzoo.networks import checkpoint, model
from nlzoo.videos import manifest, video

BAD = "b/broken.mp4"


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    made = model.build(model_spec.ModelSpec("tiny", clip=view_spec.ClipSpec(2, None, 16)))
    model.set_head(made, ("a", "b"))
    torch.nn.init.normal_(made.fc.weight)
    return made


@pytest.fixture(scope="module")
def here(tmp_path_factory, net):
    """A folder with a network and 27 videos of two classes, one of them no video: four groups, the last short."""
    folder = tmp_path_factory.mktemp("shards")
    draw.write_videos(folder / "drawn", draw.DEMO[:2], 13, 0, 4, (32, 40))
    for name, drawn in zip("ab", sorted((folder / "drawn").iterdir())):
        drawn.rename(folder / name)
        (folder / "videos").mkdir(exist_ok=True)
        (folder / name).rename(folder / "videos" / name)
    (folder / "videos" / BAD).write_bytes(b"no video")
    checkpoint.save_model(folder / "net", net)
    return folder


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_shards_one_after_another_are_the_file_of_one_process(net, here, tmp_path, monkeypatch, count):
    monkeypatch.chdir(here)
    whole = nlzoo.predict(net, "videos", out=tmp_path / "whole.jsonl", device="cpu")
    parts, rows = [], []
    for number in range(1, count + 1):
        one = f"{number}/{count}"
        rows += nlzoo.predict(net, "videos", out=tmp_path / "out.jsonl", device="cpu", shard=one)
        parts.append(shard.parse(one).file(tmp_path / "out.jsonl").read_bytes())
    assert rows == whole and len(rows) == 27 and b"".join(parts) == (tmp_path / "whole.jsonl").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir())[:-1] == (
        ["out.jsonl"] if count == 1 else [f"out-{n:05}-of-{count:05}.jsonl" for n in range(1, count + 1)]
    )


def test_shards_have_the_same_columns_and_features_too(net, here, tmp_path, monkeypatch):
    monkeypatch.chdir(here)
    whole = nlzoo.predict(net, "videos", features=tmp_path / "whole.safetensors", device="cpu")
    for number in (1, 2):
        more = {"device": "cpu", "shard": f"{number}/2"}
        for ending in (".csv", ".parquet"):
            nlzoo.predict(net, "videos", out=tmp_path / f"out{ending}", **more)
        nlzoo.predict(net, "videos", features=tmp_path / "out.safetensors", **more)
    heads = [(tmp_path / f"out-0000{n}-of-00002.csv").read_text().splitlines()[0] for n in (1, 2)]
    assert heads == ["path,answer,score,error,p:a,p:b"] * 2  # one has a video that could not be read, the other none
    import pyarrow.parquet

    read = [pyarrow.parquet.read_table(tmp_path / f"out-0000{n}-of-00002.parquet") for n in (1, 2)]
    assert read[0].schema == read[1].schema and sum(map(len, read)) == 27
    parts = [load_file(tmp_path / f"out-0000{n}-of-00002.safetensors")["features"] for n in (1, 2)]
    assert np.array_equal(np.concatenate(parts), np.stack([row["features"] for row in whole if "features" in row]))


def test_a_video_that_is_named_twice_is_in_one_shard(net, here, tmp_path, monkeypatch):
    names = [str(p) for p in sorted((here / "videos" / "a").iterdir())]
    names += names[:3] + [str(here / "videos" / BAD)] * 2
    rows = [row for n in (1, 2) for row in nlzoo.predict(net, names, device="cpu", shard=f"{n}/2")]
    assert sorted(row["path"] for row in rows) == sorted(names)


@pytest.mark.parametrize("text", ["0/4", "5/4", "1/0", "3", "a/b", "-1/4", "1/100000", "1/4/2", "", "١/٤"])
def test_what_is_no_shard_is_refused(net, text):
    with pytest.raises(UsageError, match="is no part of a whole"):
        nlzoo.predict(net, "a.mp4", shard=text, device="cpu")


def memory(count, folder):
    """Bytes of python's objects while so many names are read, answered, kept and written: the peak, and all rows'."""
    tracemalloc.start()
    try:
        with closing(journal.Journal(f"/videos/of/a/folder/{number:09}.mp4" for number in range(count))) as rows:
            rows.keep(shard.WHOLE, 8)
            rows.open(folder / f"{count}.csv", "")
            numbers = np.zeros(16, np.float32)
            for names in rows.missing(most=64):
                for name in names:
                    rows.add({"path": name, "features": numbers, "answer": "a", "score": 0.5})
            feature_files.write(folder / "f.safetensors", rows)
            feature_files.write(folder / "f.parquet", rows)
            plain = Plain(rows)
            for ending in (".csv", ".jsonl", ".parquet"):
                tables.write(folder / f"t{ending}", plain)
            before, peak = tracemalloc.get_traced_memory()
            held = list(rows)
            assert len(rows) == len(held) == count
            return peak, tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


class Plain:
    """`rows` without their features, any number of times."""

    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return ({key: value for key, value in row.items() if key != "features"} for row in self.rows)


def test_memory_does_not_grow_with_the_number_of_videos(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "GROUP", 1000)
    tables.check(tmp_path / "a.parquet")  # imports pyarrow, before objects are counted
    (few, _), (many, held) = memory(250, tmp_path), memory(1500, tmp_path)
    assert many < few + 300_000 and held > 1_000_000, (few, many, held)
    assert len(load_file(tmp_path / "f.safetensors")["features"]) == 1500
    assert len((tmp_path / "t.csv").read_text().splitlines()) == 1501


def test_predictions_of_shards_are_measured_as_if_the_videos_were(net, here, tmp_path, monkeypatch):
    monkeypatch.chdir(here)
    alone = nlzoo.evaluate(net, "videos", device="cpu")
    for number in (1, 2):
        nlzoo.predict(net, "videos", out=tmp_path / "out.jsonl", device="cpu", shard=f"{number}/2")
    monkeypatch.setattr(video, "read_frames", None)
    pattern = tmp_path / "out-*-of-00002.jsonl"
    done = nlzoo.evaluate(net, "videos", device="cpu", predicted=pattern)
    assert done.figures == alone.figures and done.skipped == alone.skipped
    other = copy.deepcopy(net)
    other.spec = dataclasses.replace(net.spec, classes=("b", "c"))
    (tmp_path / "null.jsonl").write_text(
        "".join(file.read_text() for file in tmp_path.glob("out-*")).replace('"p:a": ', '"p:a": NaN, "was": ', 1)
    )
    refused = [
        ({"predicted": tmp_path / "null.jsonl"}, "1 video of .* have no prediction"),
        ({"model": other, "classes": "shared"}, "has answers of another model"),
        ({"predicted": tmp_path / "out-00001-of-00002.jsonl"}, "have no prediction, the first b/"),
        ({"predicted": "none-*.jsonl"}, "there is no file none"),
        ({"control": True}, "without --control"),
    ]
    for changed, words in refused:
        asked = {"model": net, "videos": "videos", "device": "cpu", "predicted": pattern} | changed
        with pytest.raises(UsageError, match=words):
            nlzoo.evaluate(**asked)


# --- ranks


@pytest.fixture
def two(here, tmp_path, warm):
    """`nlzoo WORDS` by two ranks in the folder `here`: exit codes."""
    return ranks(command, 2, here, tmp_path / "err")


def test_ranks_write_the_file_of_one_process(two, net, here, tmp_path, monkeypatch):
    monkeypatch.chdir(here)
    whole = nlzoo.predict(net, "videos", out=tmp_path / "whole.jsonl", device="cpu")
    words = ["predict", "net", "videos", "--device", "cpu", "--out", tmp_path / "out.jsonl"]
    assert two(*words, "--json") == [1, 0]  # rank 0 tells that one could not be read
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert json.loads((tmp_path / "err.0").read_text()) == whole and (tmp_path / "err.1").read_text() == ""
    assert not list(tmp_path.glob("*.partial*"))
    assert two("predict", "net", "videos", "--device", "cpu") == [2, 2]
    assert "several processes need a file" in (tmp_path / "err").read_text()


def test_another_number_of_ranks_goes_on_behind_those_that_were_stopped(net, here, tmp_path, monkeypatch):
    """Rank 1 was killed after a group; its rows are used by one process, and the rest is made."""
    monkeypatch.chdir(here)
    whole = nlzoo.predict(net, "videos", out=tmp_path / "whole.jsonl", device="cpu")
    partial, out = tmp_path / "out.jsonl.partial-1", tmp_path / "out.jsonl"
    kept = journal.Journal(row["path"] for row in whole)
    kept.keep(shard.Shard(), 8)
    settings = {"views": repr(view_spec.ViewSpec()), "windows": "None", "decoder": "auto", "features": False}
    kept.open(out, journal.identity(net, **settings), rank=1)
    for row in whole[16:23]:
        kept.add(row)
    kept.close()
    with open(partial, "ab") as torn:
        torn.write(b'{"row": {"path": "vid')
    notes = []
    assert nlzoo.predict(net, "videos", out=out, device="cpu", on_note=notes.append) == whole
    assert notes == ["7 of these videos have been answered before"]
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes() and not partial.exists()


def test_names_on_standard_input_are_read_by_one_rank(two, net, here, tmp_path, monkeypatch):
    names = [str(p) for p in sorted((here / "videos" / "a").iterdir())]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(names).encode())))
    words = ["predict", "net", "-", "--device", "cpu", "--features", tmp_path / "f.parquet"]
    assert two(*words) == [0, 0], (tmp_path / "err").read_text()
    import pyarrow.parquet

    assert pyarrow.parquet.read_table(tmp_path / "f.parquet")["path"].to_pylist() == names


def test_ranks_measure_what_one_process_measures(two, net, here, tmp_path, monkeypatch):
    monkeypatch.chdir(here)
    alone = nlzoo.evaluate(net, "videos", device="cpu", out=tmp_path / "whole.csv", control=True)
    words = ["eval", "net", "videos", "--device", "cpu", "--out", tmp_path / "out.csv", "--control", "--json"]
    assert two(*words) == [0, 0], (tmp_path / "err").read_text()
    figures = json.loads((tmp_path / "err.0").read_text())
    assert figures == json.loads(json.dumps(alone.figures)) and figures["videos"] == 26 and figures["skipped"] == 1
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert len(list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))) == 27
    assert (tmp_path / "err").read_text().count("skipped") == 1


# --- prepare


def listed(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.mp4")}


@pytest.fixture(scope="module")
def few(here):
    """Five of the videos, and a list of them."""
    folder = here / "few"
    for path in [*sorted((here / "videos").rglob("a/*.mp4"))[:2], *sorted((here / "videos").rglob("b/*.mp4"))[:3]]:
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        (folder / path.parent.name / path.name).write_bytes(path.read_bytes())
    lines = [f"few/{p.relative_to(folder)},{p.parent.name}" for p in sorted(folder.rglob("*.mp4"))]
    (here / "few.csv").write_text("\n".join(["path,label", *lines]))
    return folder


def test_shards_prepare_beside_one_another_and_are_brought_together(few, tmp_path, nlzoo, monkeypatch):
    monkeypatch.chdir(few.parent)
    out, alone = tmp_path / "out", tmp_path / "alone"
    assert nlzoo("prepare", "few.csv", alone, "--size", 16)[0] == 0
    for number in (2, 3, 1):
        with lock.hold(out / prepare.LOCKS / "shard-00009-of-00010"):  # of another that is at work
            assert nlzoo("prepare", "few.csv", out, "--size", 16, "--shard", f"{number}/3")[0] == 0
            assert nlzoo("prepare", "few.csv", out, "--size", 16)[0] == 2
    assert listed(out) == listed(alone) and len(listed(out)) == 4 and not (out / "videos.csv").exists()
    code, said, _ = nlzoo("prepare", "few.csv", out, "--size", 16, "--json")
    assert code == 0 and json.loads(said)["done"] == 0 and json.loads(said)["reused"] == 4
    names = {p.name for p in alone.iterdir()}
    assert {p.name for p in out.iterdir()} == names and {"videos.csv", "prepared.jsonl"} < names
    assert (out / "videos.csv").read_bytes() == (alone / "videos.csv").read_bytes()


def test_a_shard_that_begins_while_another_opens_the_folder_is_not_refused(few, tmp_path, monkeypatch):
    """The manifest of the other appears between two looks at the folder."""
    out, listed = tmp_path / "out", Path.iterdir
    out.mkdir()

    def iterdir(folder):
        if folder == out:
            (out / manifest.NAME).touch()
            (out / "prepared-00002-of-00002.jsonl").touch()
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    prepared, _ = prepare.prepare_source(few, out, 16, shard="1/2")
    assert prepared.done + len(prepared.skipped) == 2


def test_a_shard_and_the_whole_never_work_at_one_time(few, tmp_path, nlzoo, monkeypatch):
    """Whichever comes first; shards do, each in one process."""
    monkeypatch.chdir(few.parent)
    out = tmp_path / "out"
    words = "prepare", "few", out, "--size", 16
    with lock.hold(out):
        for command in (words, [*words, "--shard", "1/2"]):
            code, _, err = nlzoo(*command)
            assert code == 2 and f"{out} is in use by process {os.getpid()}" in err
    with lock.hold(out, shared=True):
        assert nlzoo(*words)[0] == 2
        assert nlzoo(*words, "--shard", "1/2")[0] == 0
        with lock.hold(out / prepare.LOCKS / "shard-00001-of-00002"):
            assert nlzoo(*words, "--shard", "1/2")[0] == 2
    assert nlzoo(*words)[0] == 0 and not (out / prepare.LOCKS).exists()


def test_a_file_that_appears_at_the_last_moment_is_named_like_one_that_does_not(tmp_path, monkeypatch):
    rows = journal.Journal(["a.mp4"])
    rows.open(tmp_path / "rows.csv")
    other, moments = tmp_path / "rows.csv.partial-1", iter((0.0, 1e9))

    def monotonic():
        moment = next(moments)
        if moment:
            other.touch()
        return moment

    monkeypatch.setattr(journal.time, "monotonic", monotonic)
    with pytest.raises(UsageError, match="rows.csv.partial-1, which another process has made, is not there"):
        rows.see(2)
    monkeypatch.undo()
    rows.see(2)
    names, waits = tmp_path / "names", []
    monkeypatch.setattr(journal.time, "sleep", lambda seconds: waits.append(seconds) or rows.write_names(names))
    assert list(journal.read_names(names)) == ["a.mp4"] and len(waits) == 1
    rows.close()


def test_the_end_of_another_rank_is_waited_for(tmp_path, monkeypatch):
    """Its record is not there, then empty, then torn, then of an earlier launch."""
    record, end = tmp_path / "prepared.jsonl", {"end": "now", "done": 1, "reused": 0}
    states = iter([b"", b'{"end": "no', b'{"end": "before"}\n', json.dumps(end).encode() + b"\n"])
    monkeypatch.setattr(prepare.time, "sleep", lambda seconds: record.write_bytes(next(states)))
    assert prepare._last_line(record, "now") == end and next(states, None) is None


def test_ranks_prepare_what_one_process_prepares(two, few, tmp_path, nlzoo, monkeypatch):
    monkeypatch.chdir(few.parent)
    assert nlzoo("prepare", "few", tmp_path / "alone", "--size", 16)[0] == 0
    assert two("prepare", "few", tmp_path / "out", "--size", 16, "--json") == [0, 0], (tmp_path / "err").read_text()
    told = json.loads((tmp_path / "err.0").read_text())
    assert (told["done"], told["reused"], len(told["skipped"])) == (4, 0, 1)
    assert listed(tmp_path / "out") == listed(tmp_path / "alone")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {p.name for p in (tmp_path / "alone").iterdir()}
