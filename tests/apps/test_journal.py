"""Answers that a kill does not lose: the same command goes on behind those that are there, to the same file."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import command
from forked import Forked
from safetensors.numpy import load_file

import nlzoo
from nlzoo.apps import draw
from nlzoo.core import view_spec
from nlzoo.core.errors import DiskError, UsageError
from nlzoo.networks import checkpoint, model
from nlzoo.videos import video

COUNT = 24


@pytest.fixture(scope="module")
def net():
    made, _ = model.inflate("tiny", None, model.Inflation(), "res3:1", lambda repo: pytest.fail("no network"), 2)
    made.spec = model.dataclasses.replace(made.spec, clip=view_spec.ClipSpec(2, None, 16))
    model.set_head(made, ("a", "b", "c"))
    torch.nn.init.normal_(made.fc.weight)
    return made


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("journal")
    draw.write_videos(folder, draw.DEMO[:2], COUNT // 2, 0, 8, (32, 40))
    return folder


@pytest.fixture
def videos(drawn, tmp_path):
    for path in sorted(drawn.rglob("*.mp4")):
        copy = tmp_path / "videos" / path.relative_to(drawn)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    return tmp_path / "videos"


def stopping_after(count):
    """Stands in for a kill: nothing after it runs, and what is on disk stays."""
    seen = []

    def on_row(row):
        seen.append(row)
        if len(seen) == count:
            raise KeyboardInterrupt

    return on_row


def opened(monkeypatch):
    """The files whose frames are read from now on, in this process."""
    files, read = set(), video.read_frames

    def reading(path, *rest, **more):
        files.add(str(path))
        return read(path, *rest, **more)

    monkeypatch.setattr(video, "read_frames", reading)
    monkeypatch.setattr("nlzoo.videos.pool.default_workers", lambda device: 0)
    return files


@pytest.mark.parametrize("ending, done", [(".csv", 1), (".jsonl", COUNT // 2), (".parquet", COUNT - 1)])
def test_the_same_call_goes_on_and_ends_with_the_same_file(net, videos, tmp_path, monkeypatch, ending, done):
    whole, out = tmp_path / f"whole{ending}", tmp_path / f"out{ending}"
    rows = nlzoo.predict(net, videos, out=whole, device="cpu")
    with pytest.raises(KeyboardInterrupt):
        nlzoo.predict(net, videos, out=out, device="cpu", on_row=stopping_after(done))
    assert not out.exists()
    files, notes = opened(monkeypatch), []
    again = nlzoo.predict(net, videos, out=out, device="cpu", on_note=notes.append)
    assert again == rows and out.read_bytes() == whole.read_bytes()
    assert len(files) == COUNT - done // 8 * 8  # those that went through the network together do so again
    assert any(note.startswith(f"{done} of these videos have been answered before") for note in notes)
    assert [p.name for p in tmp_path.glob("*.partial")] == []


@pytest.mark.parametrize("ending", [".safetensors", ".parquet"])
def test_features_too(net, videos, tmp_path, monkeypatch, ending):
    whole, out = tmp_path / f"whole{ending}", tmp_path / f"out{ending}"
    nlzoo.predict(net, videos, features=whole, device="cpu")
    with pytest.raises(KeyboardInterrupt):
        nlzoo.predict(net, videos, features=out, device="cpu", on_row=stopping_after(9))
    files = opened(monkeypatch)
    nlzoo.predict(net, videos, features=out, device="cpu")
    assert len(files) == COUNT - 8 and out.read_bytes() == whole.read_bytes()
    if ending == ".safetensors":
        assert np.isfinite(load_file(out)["features"]).all()


def test_windows_too(net, videos, tmp_path):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    some = sorted(videos.rglob("*.mp4"))[:5]
    rows = nlzoo.predict(net, some, every=0.2, out=whole, device="cpu")
    with pytest.raises(KeyboardInterrupt):
        nlzoo.predict(net, some, every=0.2, out=out, device="cpu", on_row=stopping_after(3))
    assert nlzoo.predict(net, some, every=0.2, out=out, device="cpu") == rows
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("cut", [1, 100])
def test_a_line_that_a_kill_has_torn_is_made_again(net, videos, tmp_path, cut):
    whole, out = tmp_path / "whole.csv", tmp_path / "out.csv"
    nlzoo.predict(net, videos, out=whole, device="cpu")
    for _ in range(2):  # and torn a second time
        with pytest.raises(KeyboardInterrupt):
            nlzoo.predict(net, videos, out=out, device="cpu", on_row=stopping_after(4))
        partial = tmp_path / "out.csv.partial"
        partial.write_bytes(partial.read_bytes()[:-cut])
    nlzoo.predict(net, videos, out=out, device="cpu")
    assert out.read_bytes() == whole.read_bytes()


def test_answers_of_another_command_are_not_mixed_in(net, videos, tmp_path):
    out = tmp_path / "out.csv"
    with pytest.raises(KeyboardInterrupt):
        nlzoo.predict(net, videos, out=out, device="cpu", on_row=stopping_after(2))
    before = (tmp_path / "out.csv.partial").read_bytes()
    other = model.copy.deepcopy(net)
    torch.nn.init.normal_(other.fc.bias)
    for changed in ({"model": other}, {"views": "2x1"}, {"every": 0.2}, {"decoder": "pyav"}):
        asked = {"model": net, "videos": videos, "out": out, "device": "cpu"} | changed
        with pytest.raises(UsageError, match="out.csv.partial holds the answers of another command"):
            nlzoo.predict(**asked)
    assert (tmp_path / "out.csv.partial").read_bytes() == before


def test_a_video_that_has_changed_or_failed_is_opened_again(net, videos, tmp_path, monkeypatch):
    paths = sorted(videos.rglob("*.mp4"))
    first, second = paths[:2]
    good = second.read_bytes()
    second.write_bytes(b"no video")
    out = tmp_path / "out.csv"
    with pytest.raises(KeyboardInterrupt):
        nlzoo.predict(net, paths, out=out, device="cpu", on_row=stopping_after(12))
    second.write_bytes(good)
    os.utime(first, (1, 1))
    files = opened(monkeypatch)
    rows = nlzoo.predict(net, paths, out=out, device="cpu")
    assert {str(first), str(second)} <= files
    assert not any("error" in row for row in rows)


def test_a_damaged_file_is_begun_anew(net, videos, tmp_path):
    out = tmp_path / "out.jsonl"
    for damage in (b"", b"\n", b"{", b"[]\n3\n", b"\xff\xfe\n", b'{"row": 3}\n'):
        (tmp_path / "out.jsonl.partial").write_bytes(damage)
        assert len(nlzoo.predict(net, sorted(videos.rglob("*.mp4"))[:2], out=out, device="cpu")) == 2
        assert not (tmp_path / "out.jsonl.partial").exists()


def test_where_it_cannot_be_written_is_told_before_the_work(net, videos, tmp_path):
    (tmp_path / "out.csv.partial").mkdir()
    with pytest.raises(DiskError):
        nlzoo.predict(net, videos, out=tmp_path / "out.csv", device="cpu", on_row=lambda row: pytest.fail("too late"))


def test_a_killed_command_loses_nothing(net, videos, tmp_path):
    """The real thing: SIGKILL at some row."""
    checkpoint.save_model(tmp_path / "net", net)
    words = ["predict", "net", "videos", "--device", "cpu", "--out", "out.jsonl"]
    partial = tmp_path / "out.jsonl.partial"

    def started():
        return Forked(lambda: sys.exit(command(*words)), tmp_path, tmp_path / "said", tmp_path / "said")

    process = started()
    while process.poll() is None and not (partial.exists() and partial.read_bytes().count(b"\n") > 3):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert partial.exists() and not (tmp_path / "out.jsonl").exists()
    kept = partial.read_bytes().count(b"\n") - 1
    assert 3 <= kept <= COUNT
    assert started().wait() == 0, (tmp_path / "said").read_text()
    rows = nlzoo.predict(tmp_path / "net", tmp_path / "videos", device="cpu")
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [tmp_path / answer["path"] for answer in answers] == [Path(row["path"]) for row in rows]
    assert [answer["answer"] for answer in answers] == [next(iter(row["scores"])) for row in rows]
