"""Windows over long videos, segments, names on standard input, features: each against a hand-written loop."""

import copy
import dataclasses
import io
import json
import os
import sys
from pathlib import Path

import drawn
import numpy as np
import pytest
import torch
from safetensors import safe_open

import nlzoo
from nlzoo.apps import draw, predict
from nlzoo.core import feature_files, model_spec, view_spec
from nlzoo.core.errors import DiskError, UsageError, VideoError
from nlzoo.networks import checkpoint, model
from nlzoo.videos import clips, encode, listing, loader, sweep, video

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(1)
    net = model.build(model_spec.ModelSpec("tiny", clip=view_spec.ClipSpec(4, None, 32)))
    model.set_head(net, ("rise", "fall"))
    torch.nn.init.normal_(net.fc.weight, std=0.3)
    return net


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """Forty frames at 10 a second: 4 s."""
    file = tmp_path_factory.mktemp("long") / "long.mp4"
    encode.write_video(file, np.concatenate([draw.motion_clip(c, 3, 20, (32, 48)) for c in ("rise", "fall")]), 10)
    return file


@pytest.mark.parametrize("workers", [0, 2])
def test_a_window_is_answered_as_a_cut_video_would_be(net, long, workers):
    summary = predict.windows(net, long, CPU, predict.Windows(1.0, 1.5), workers)
    assert [(w["start"], w["end"]) for w in summary["windows"]] == [(0, 1.5), (1, 2.5), (2, 3.5), (2.5, 4)]
    for row in summary["windows"]:
        first, count = round(row["start"] * 10), 15
        frames = video.read_frames(
            long, [first + i for i in clips.frame_indices(count, net.spec.clip)], clips.decode_side(net.spec.clip)
        )
        view = clips.cut(frames, clips.View((0, 1, 2, 3)), 32)
        expected = net(clips.to_input(view[None], net.spec.clip)).softmax(-1)[0].tolist()
        assert row["scores"] == pytest.approx(dict(zip(("rise", "fall"), expected)), abs=1e-5)
        assert list(row["scores"].values()) == sorted(row["scores"].values(), reverse=True)


def decoded(monkeypatch):
    """Counts the frames that come out of decoders in this process from now on."""
    frames, real = [], video._decoded

    def counting(*given):
        for frame in real(*given):
            frames.append(frame.pts)
            yield frame

    monkeypatch.setattr(video, "_decoded", counting)
    return frames


def test_each_frame_of_a_long_video_is_decoded_once(net, long, monkeypatch):
    spacing = predict.Windows(0.2, 1.6)  # 16 frames, of which each is in up to eight windows
    frames = decoded(monkeypatch)
    row = predict.windows(net, long, CPU, spacing)
    assert len(row["windows"]) == 13 and 30 < len(frames) == len(set(frames)) <= 40
    frames.clear()
    items = tuple(listing.Item(str(long), (), start=w["start"], end=w["end"]) for w in row["windows"])
    source = loader.Clips(Path(), items, net.spec.clip)
    alone = [source.read(-1, index) for index in range(len(items))]
    assert len(frames) > 100  # the negative control
    swept = dataclasses.replace(source, sweep=sweep.Sweep(len(items)))
    for index in (0, 1, 2, 3, 8, 9, 3, 4, 12):  # out of turn, too
        assert torch.equal(swept.read(-1, index), alone[index])


def test_in_several_processes_windows_are_the_same(net, long, monkeypatch):
    monkeypatch.setattr(predict, "LONG", 1)
    spacing = predict.Windows(0.1, 0.5)
    assert [len(part) for part in predict._pieces(36, 3)] == [8, 16, 12]
    assert predict.windows(net, long, CPU, spacing, 3) == predict.windows(net, long, CPU, spacing)


@pytest.mark.parametrize("damage", [drawn.break_frame, drawn.damaged])
def test_a_damaged_frame_costs_the_windows_that_show_it(net, tmp_path, damage):
    """All others have the pixels that they have when they are read alone, and those that fail the same reason."""
    file = damage(drawn.encode(tmp_path / "a.mp4", drawn.drawing(60), bf=0), 30)
    spans = predict.Windows(0.1, 0.3).spans(video.probe(file).duration, net.spec.clip, 25)
    items = tuple(listing.Item(str(file), (), start=start, end=end) for start, end in spans)
    alone = loader.Clips(Path(), items, net.spec.clip)
    swept = dataclasses.replace(alone, sweep=sweep.Sweep(len(items)))

    def read(source, index):
        try:
            return source.read(-1, index).numpy().tobytes()
        except VideoError as error:
            return error.reason

    found = [(read(swept, index), read(alone, index)) for index in range(len(items))]
    assert len(found) > 15 and all(one == other for one, other in found)
    windows = predict.windows(net, file, CPU, predict.Windows(0.1, 0.3))["windows"]
    assert [window.get("error", "") for window in windows] == [one if isinstance(one, str) else "" for one, _ in found]
    if damage is drawn.break_frame:
        assert {"scores" in window for window in windows} == {True, False}


def test_how_long_a_window_is_and_that_the_last_reaches_the_end():
    spread, dense = view_spec.ClipSpec(8), view_spec.ClipSpec(8, 4)
    assert predict.Windows(0.5).spans(2.2, spread, 25) == [(0, 1), (0.5, 1.5), (1, 2), (1.2, 2.2)]
    assert predict.Windows(1).spans(3, dense, 16)[0] == (0, 2) and predict.Windows(1).spans(
        3, view_spec.ClipSpec(8, 4, fps=32), 16
    ) == [(0, 1), (1, 2), (2, 3)]
    assert predict.Windows(1, 5).spans(3, spread, 25) == [(0, 3)]  # one window is all of a shorter video
    with pytest.raises(UsageError, match="more than 100,000 windows"):
        predict.Windows(0.01).spans(10_000, spread, 25)
    for wrong in (0, -1, float("nan"), 1e9):
        with pytest.raises(UsageError, match="--every"):
            predict.Windows(wrong)


def window(n, **scores):
    return {"start": float(n), "end": float(n) + 2, "scores": dict(sorted(scores.items(), key=lambda kv: -kv[1]))}


def test_windows_of_one_answer_are_joined_and_speak_for_what_is_nearest_to_their_middle():
    damaged = {"start": 2.0, "end": 4.0, "error": "damaged"}
    rows = [window(0, a=0.9, b=0.1), window(1, a=0.7, b=0.3), damaged, window(3, a=0.6, b=0.4), window(4, b=0.8, a=0.2)]
    summary = predict.segments(rows, 6.0, False)
    assert summary == [
        {"start": 0, "end": 2.5, "class": "a", "score": pytest.approx(0.8)},
        {"start": 3.5, "end": 4.5, "class": "a", "score": 0.6},
        {"start": 4.5, "end": 6, "class": "b", "score": 0.8},
    ]


def test_of_several_labels_each_has_its_own_segments():
    rows = [window(0, a=0.9, b=0.6), window(1, a=0.8, b=0.1), window(2, a=0.2, b=0.3), window(3, a=0.2, b=0.9)]
    assert predict.segments(rows, 5.0, True) == [
        {"start": 0, "end": 2.5, "class": "a", "score": pytest.approx(0.85)},
        {"start": 0, "end": 1.5, "class": "b", "score": 0.6},
        {"start": 3.5, "end": 5, "class": "b", "score": 0.9},
    ]


def test_labels_are_those_from_the_threshold_on(net, long, tmp_path):
    several = copy.deepcopy(net)
    several.spec = dataclasses.replace(net.spec, multi_label=True, classes=("a;b", "c"))
    (row,) = nlzoo.predict(several, long, device="cpu", threshold=0.0)
    assert row["labels"] == list(row["scores"])
    (low, high) = sorted(row["scores"].values())
    several.spec = dataclasses.replace(several.spec, threshold=(low + high) / 2)
    (own,) = nlzoo.predict(several, long, device="cpu", out=tmp_path / "out.csv")
    assert own["labels"] == list(row["scores"])[:1]
    assert (tmp_path / "out.csv").read_text().startswith("path,answer,score,labels,error,")
    assert next(predict.as_rows([row]))["labels"].replace("\\;", "") in ("ab;c", "c;ab")
    (windowed,) = nlzoo.predict(several, long, every=1, device="cpu", threshold=1.0)
    assert windowed["segments"] == [] and windowed["windows"][0]["labels"] == []
    with pytest.raises(UsageError, match="--threshold is for a model of videos with several labels"):
        nlzoo.predict(net, long, device="cpu", threshold=0.3)


def test_a_video_that_cannot_be_read_is_an_answer_too(net, tmp_path):
    (tmp_path / "no.mp4").write_bytes(b"no video")
    summary = predict.windows(net, tmp_path / "no.mp4", CPU, predict.Windows(1))
    assert set(summary) == {"path", "error"} and "is not a video" in summary["error"]
    assert list(predict.as_rows([summary])) == [{"path": str(tmp_path / "no.mp4"), "error": summary["error"]}]


@pytest.mark.parametrize("joint", [b"\n", b"\0"])
def test_names_on_standard_input(joint, tmp_path, monkeypatch):
    names = [b"a b.mp4", b"[red].mp4", b"bytes\xff.mp4"] + [b"line\nend.mp4"] * (joint == b"\0")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(joint.join(names) + joint)))
    assert list(predict.find([Path("x.mp4"), Path("-")])) == [Path("x.mp4"), *(Path(os.fsdecode(n)) for n in names)]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    with pytest.raises(VideoError, match="named no videos"):
        list(predict.find([Path("-")]))


def test_features_by_the_command_are_what_the_network_gives(net, long, tmp_path):
    bad = tmp_path / os.fsdecode(b"bad\xff.mp4")
    bad.write_bytes(b"")
    rows = predict.predict(net, [long, bad], features=tmp_path / "f.safetensors", device=CPU)
    view = loader.Clips(Path(), (listing.Item(str(long), ()),), net.spec.clip).read(-1, 0)
    with torch.no_grad():
        expected = net.forward_features(clips.to_input(view, net.spec.clip)).mean((2, 3, 4))[0].numpy()
    assert np.allclose(rows[0]["features"], expected, atol=1e-5) and "is empty" in rows[1]["error"]
    with safe_open(tmp_path / "f.safetensors", "np") as file:
        assert json.loads(file.metadata()["paths"]) == [str(long)] and np.array_equal(
            file.get_tensor("features"), rows[0]["features"][None]
        )
    feature_files.write(tmp_path / "f.parquet", rows)
    import pyarrow.parquet

    read = pyarrow.parquet.read_table(tmp_path / "f.parquet").to_pylist()
    assert read[0]["path"] == str(long) and np.array_equal(np.float32(read[0]["features"]), rows[0]["features"])
    with pytest.raises(UsageError, match=".safetensors, .parquet"):
        feature_files.write(tmp_path / "f.csv", rows)


# --- nlzoo.predict


def test_predict_takes_a_network_or_a_folder_and_one_video_or_many(net, long, tmp_path):
    checkpoint.save_model(tmp_path / "model", net)
    done = []
    (row,) = nlzoo.predict(net, long, device="cpu", on_row=done.append)
    assert set(row["scores"]) == {"rise", "fall"} and sum(row["scores"].values()) == pytest.approx(1) and done == [row]
    again = nlzoo.predict(tmp_path / "model", [str(long), tmp_path / "no.mp4"], out=tmp_path / "p.jsonl", device=CPU)
    assert again[0]["scores"] == pytest.approx(row["scores"]) and again[1]["error"] == "does not exist"
    assert list(predict.failures(again)) == [f"{tmp_path / 'no.mp4'} does not exist"]
    assert [json.loads(line)["path"] for line in (tmp_path / "p.jsonl").read_text().splitlines()] == [
        str(long),
        str(tmp_path / "no.mp4"),
    ]
    (row,) = nlzoo.predict(net, long, every="1s", window=1.5, device="cpu")
    assert row == predict.windows(net, long, CPU, predict.Windows(1.0, 1.5))


@pytest.mark.parametrize("options", [{}, {"every": 1}, {"features": "f.safetensors"}])
def test_a_network_that_overflows_predicts_nothing(net, long, tmp_path, options, monkeypatch):
    monkeypatch.chdir(tmp_path)
    broken = copy.deepcopy(net)
    (broken.layer4[1].bn2 if "features" in options else broken.fc).bias.data[1] = float("nan")
    (row,) = nlzoo.predict(broken, long, device="cpu", **options)
    failures = list(predict.failures([row]))
    assert len(failures) == len(row.get("windows", [row])) and not list(tmp_path.iterdir())
    for line in failures:
        assert line.startswith(str(long)) and line.endswith(
            "the network's output for this video is not finite (NaN or infinity)"
        )


def test_outputs_without_names_are_numbers_and_are_said_to_be(net, long):
    nameless, notes = copy.deepcopy(net), []
    nameless.spec = dataclasses.replace(net.spec, classes=())
    (row,) = nlzoo.predict(nameless, long, device="cpu", on_note=notes.append)
    assert set(row["scores"]) == {"0", "1"}
    assert notes == [
        "the model was never trained on classes of yours: numbers stand for the outputs of its image network; "
        "nlzoo finetune trains it"
    ]


@pytest.mark.parametrize(
    "changes, error, words",
    [
        ({"views": "3x2"}, UsageError, "crops per clip"),
        ({"every": "soon"}, UsageError, "--every 'soon' is no number of seconds"),
        ({"every": 0}, UsageError, "--every is 0 s"),
        ({"window": 2}, UsageError, "do not go together"),
        ({"every": 1, "views": "2x1"}, UsageError, "do not go together"),
        ({"every": 1, "features": "f.safetensors"}, UsageError, "do not go together"),
        ({"out": "a.csv", "features": "f.safetensors"}, UsageError, "--features goes without --out"),
        ({"decoder": "vlc"}, UsageError, "no decoder 'vlc'"),
        ({"device": "meta"}, UsageError, "device 'meta' cannot be used"),
        ({"out": "a.txt"}, UsageError, "ends in none of"),
        ({"features": "a.csv"}, UsageError, "ends in none of"),
        ({"out": "nowhere/a.csv"}, DiskError, "could not be written"),
        ({"features": "nowhere/a.parquet"}, DiskError, "could not be written"),
        ({"out": "folder.csv"}, DiskError, "Is a directory"),
        ({"out": "a.csv", "videos": ["x.mp4", "a.csv"]}, UsageError, "would overwrite what is read"),
        ({"features": "model/model.safetensors"}, UsageError, "a part of the model"),
        ({"videos": []}, VideoError, "no videos to predict"),
        ({"videos": "https://example.com/a.mp4"}, UsageError, "is an address"),
        ({"model": "a.mp4", "videos": "model"}, UsageError, "a.mp4 is not a model"),
        ({"model": "clips", "videos": "model"}, UsageError, "clips is not a model: it is a folder of videos"),
    ],
)
def test_what_cannot_be_is_said_before_a_video_is_opened(net, tmp_path, monkeypatch, changes, error, words):
    monkeypatch.chdir(tmp_path)
    for folder in ("folder.csv", "model", "clips"):
        (tmp_path / folder).mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "model.safetensors").touch()
    (tmp_path / "clips" / "a.mp4").touch()
    monkeypatch.setattr(video, "probe", None)
    with pytest.raises(error, match=words) as caught:
        nlzoo.predict(**{"model": net, "videos": "a.mp4", "device": "cpu"} | changes)
    if "model" in changes:
        assert caught.value.hint == f"the model comes first: nlzoo predict model {changes['model']}"
