"""A run of another stream: what it was trained on is in its config.json, and every command reads the right thing."""

import json
import os

import numpy as np
import pytest
import torch
from drawn import drawing, encode
from sounds import tone, with_sound

from nlzoo.apps import check, draw, explain, predict, report, serve
from nlzoo.core.errors import UsageError, VideoError
from nlzoo.core.model_spec import Inflation
from nlzoo.networks import checkpoint, model
from nlzoo.training import evaluate, finetune, fuse, outputs, probe
from nlzoo.training.callbacks import Callbacks
from nlzoo.videos import flow, listing, loader, records, scanning, video

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Drawn videos, a network that was only inflated, and a run of flow on them."""
    folder = tmp_path_factory.mktemp("streams")
    draw.write_videos(folder / "v", draw.CLASSES[:2], 3, seed=3, frames=12, size=(32, 48))
    net, _ = model.inflate("tiny", None, Inflation(), "res4:1", lambda repo: None, frames=4)
    checkpoint.save_model(folder / "net", net)
    result = finetune.finetune(
        folder / "v",
        folder / "net",
        stream="flow",
        size=32,
        epochs=1,
        cache=folder / "cache",
        workers=0,
        device="cpu",
        runs=folder / "runs",
    )
    return folder, result


def test_the_stream_is_recorded_and_the_split_is_that_of_rgb(work):
    folder, result = work
    spec = json.loads((folder / "runs/v-1/best/config.json").read_text())
    assert spec["clip"]["stream"] == "flow" and len(spec["clip"]["mean"]) == 2 and spec["clip"]["size"] == 32
    settings = json.loads((folder / "runs/v-1/config.json").read_text())
    (augment,) = (d for d in settings["decisions"] if d["code"] == "augment")
    assert "only what means something for flow" in augment["reason"] and settings["train"]["augment"]["colour"] == 0
    assert len(list((folder / "cache").iterdir())) == 6
    split = scanning.split(scanning.scan(folder / "v"), "0.25", 0)  # as every run's, whatever its stream
    sides = {os.path.basename(item.path): item.split for item in scanning.scan(folder / "runs/v-1/videos.csv").items}
    assert sides == {os.path.basename(item.path): item.split for item in split.items} and len(sides) == 6
    assert (result.train, result.val) == tuple(list(sides.values()).count(part) for part in ("train", "val"))


def test_every_command_reads_flow_without_being_told(work):
    folder, _ = work
    best = folder / "runs/v-1/best"
    done = evaluate.evaluate(best, folder / "v", device="cpu")
    assert len(done.predictions.items) == 6
    net = checkpoint.load_model(best)
    path = folder / "v" / done.predictions.items[0].path
    info = video.probe(path)
    source = loader.Clips(path.parent, (loader.Item(path.name, ()),), net.spec.clip)
    seen = source.read(-1, 0)
    assert seen.shape == (1, 4, 32, 32, 2) and not (seen == flow.STILL).all()
    with torch.inference_mode():
        clip = (seen[0].double() / 255 - 128 / 255) / 0.226
        expected = net(clip.permute(3, 0, 1, 2)[None].float()).softmax(-1)[0]
    assert np.allclose(done.predictions.scores[0], expected.numpy(), atol=1e-4) and info.frames == 12
    (row,) = predict.predict(best, path, device="cpu")
    assert np.allclose([row["scores"][name] for name in net.spec.classes], expected.numpy(), atol=1e-4)
    shown = explain.explain(net, path, CPU)
    assert shown.frames.shape == (4, 32, 32, 3) and np.array_equal(shown.frames[..., :2], seen[0].numpy())


def test_windows_are_read_by_a_sweep_to_the_same_bits(work):
    folder, _ = work
    best = folder / "runs/v-1/best"
    path = next((folder / "v").rglob("*.mp4"))
    rows = predict.predict(best, path, every="0.1s", window="0.3s", device="cpu")[0]["windows"]
    net = checkpoint.load_model(best)
    items = tuple(loader.Item(path.name, (), start=row["start"], end=row["end"]) for row in rows)
    scores = evaluate.predictions(net, loader.Clips(path.parent, items, net.spec.clip), CPU).scores
    assert len(rows) > 3
    got = [[row["scores"][name] for name in net.spec.classes] for row in rows]
    assert np.allclose(got, scores, atol=1e-6)


def test_a_network_of_flow_starts_another_of_flow_only(work):
    folder, _ = work
    with pytest.raises(UsageError, match="is of flow"):
        finetune.finetune(folder / "v", folder / "runs/v-1/best", stream="rgb", runs=folder / "other", device="cpu")


def test_it_is_not_exported_to_programs_that_read_rgb(work):
    from nlzoo.apps import export

    with pytest.raises(UsageError, match="the model is of flow; .* read frames of RGB alone"):
        export.export(work[0] / "runs/v-1/best", "onnx", work[0] / "e")


# --- sound


@pytest.fixture(scope="module")
def heard(tmp_path_factory):
    """Low and high tones, one video of each kind without sound in training and one in validation, and a run on them."""
    folder = tmp_path_factory.mktemp("sound")
    for name, hertz in (("low", 300), ("high", 4000)):
        (folder / "v" / name).mkdir(parents=True)
        for n in range(4):
            path = folder / "v" / name / f"{name}_g{n:02}_c01.mkv"
            if (name, n) in {("low", 0), ("low", 1)}:
                encode(path, drawing(12, 32, 48))
            else:
                with_sound(path, tone(0.5, hertz * (1 + n / 20)), frames=12)
    net, _ = model.inflate("tiny", None, Inflation("c2d"), "none", lambda repo: None, frames=2)
    checkpoint.save_model(folder / "net", net)
    events = []
    options = {"size": 32, "epochs": 1, "workers": 0, "device": "cpu", "val": "g01,g03"}
    said = Callbacks(warn=events.append)
    result = finetune.finetune(
        folder / "v", folder / "net", said, stream="audio", runs=folder / "runs", cache=folder / "cache", **options
    )
    return folder, result, events


def test_videos_without_sound_are_said_left_out_of_training_and_given_the_prior(heard):
    folder, result, events = heard
    (event,) = (event for event in events if event.code == "no_sound")
    assert event.values == {"videos": 2, "total": 8, "train": 1}
    assert (result.train, result.val) == (3, 4) and not (folder / "cache").exists()
    best = folder / "runs/v-1/best"
    spec = json.loads((best / "config.json").read_text())
    assert spec["clip"]["stream"] == "audio" and spec["prior"] == [0.5, 0.5]
    assert all(path in (folder / "runs/v-1/videos.csv").read_text() for path in SILENT)  # the split is that of RGB
    done = evaluate.evaluate(best, folder / "v", device="cpu")
    silent = [n for n, item in enumerate(done.predictions.items) if item.path in SILENT]
    assert len(done.predictions.items) == 8 and done.predictions.silent == len(silent) == 2 and not done.skipped
    assert (done.predictions.scores[silent] == 0.5).all()
    assert any("2 videos without sound: the network of sound gives the shares" in note for note in done.notes)
    rows = predict.predict(best, [folder / "v" / path for path in (SILENT[0], "high/high_g02_c01.mkv")], device="cpu")
    assert rows[0]["scores"] == {"high": 0.5, "low": 0.5} and "has no sound" in rows[0]["note"]
    assert "note" not in rows[1] and sum(rows[1]["scores"].values()) == pytest.approx(1)
    net, path = checkpoint.load_model(best), folder / "v" / SILENT[0]
    with pytest.raises(VideoError, match="has no sound"):
        explain.explain(net, path, CPU)
    with pytest.raises(VideoError, match="has no sound: the network of sound gives the shares of the classes"):
        next(serve.answers(net, path, CPU))
    assert next(serve.answers(net, folder / "v/high/high_g02_c01.mkv", CPU))[0] == rows[1]["scores"]
    text = report.write(folder / "runs/v-1", CPU).read_text()
    assert "normalised patches of sound" in text


SILENT = ("low/low_g00_c01.mkv", "low/low_g01_c01.mkv")


def test_the_network_is_imagenets_on_each_patch(heard):
    folder, *_ = heard
    net = checkpoint.load_model(folder / "net")
    path = folder / "v/high/high_g02_c01.mkv"
    source = loader.Clips(path.parent, (loader.Item(path.name, ()),), model.set_stream(net, "audio").spec.clip)
    patches = source.read(-1, 0)[0]
    with torch.inference_mode():
        got = net(((patches.float() / 255 - 0.35) / 0.2).permute(3, 0, 1, 2)[None])
        flat = model.load_backbone("tiny", None, lambda repo: None).net
        grey = ((patches.float() / 255 - 0.35) / 0.2).permute(0, 3, 1, 2).expand(-1, 3, -1, -1)
        expected = flat(grey).mean(0, keepdim=True)
    assert model.relative_error(got, expected) < 1e-5


def test_a_probe_of_sound_gives_silent_videos_the_prior_too(heard, monkeypatch):
    folder, *_ = heard
    monkeypatch.chdir(folder)
    done = probe.probe(folder / "runs/v-1/best", folder / "v", "g01,g03", device="cpu")
    assert done.figures["val"] == 4 and [one.reason for one in done.skipped] == ["has no sound"]


def test_sound_is_fused_with_frames_and_without_sound_its_share_is_the_prior(heard, monkeypatch):
    folder, *_ = heard
    monkeypatch.chdir(folder)
    options = {"size": 32, "device": "cpu"}
    frames = probe.probe(folder / "net", folder / "v", "g01,g03", name="frames", **options).figures["run"]
    fused = fuse.fuse([frames, folder / "runs/v-1"], device="cpu", name="both").figures["model"]
    silent, other = (folder / "v" / path for path in (SILENT[0], "high/high_g03_c01.mkv"))
    rows = {
        run: predict.predict(run, [silent, other], device="cpu") for run in (fused, f"{frames}/best", "runs/v-1/best")
    }
    of_both, of_frames, of_sound = ([row["scores"] for row in some] for some in rows.values())
    for both, one, two in zip(of_both, of_frames, of_sound, strict=True):
        assert both == pytest.approx({name: (one[name] + two[name]) / 2 for name in one}, abs=1e-4)
    assert of_sound[0] == {"high": 0.5, "low": 0.5} and "note" in rows[fused][0] and "note" not in rows[fused][1]


def test_a_head_over_frames_and_sound_takes_the_average_for_silent_videos(heard, monkeypatch):
    folder, *_ = heard
    monkeypatch.chdir(folder)
    models = [folder / "net", folder / "runs/v-1/best"]
    options = {"size": 32, "name": "head", "head": "attention", "windows": 2, "device": "cpu"}
    made = probe.probe(models, folder / "v", "g01,g03", **options)
    assert (made.figures["train"], made.figures["val"]) == (4, 4) and not made.skipped
    done = evaluate.evaluate("head", "runs/head/videos.csv", device="cpu")
    assert abs(done.figures["loss"] - made.figures["loss"]) < 1e-6 and done.predictions.silent == 1
    assert any("1 video without sound: features of sound are taken as the average ones" in one for one in done.notes)
    net = checkpoint.load_model(folder / "runs/head/best")
    (_, frames), (clip, sound) = net.columns()
    items = tuple(loader.Item(path, ()) for path in (*SILENT, "high/high_g02_c01.mkv"))
    rows = {n: row for n, row, _ in outputs.window_features(net, loader.Clips(folder / "v", items, net.spec.clip), CPU)}
    (scores, windows, mp4) = list(serve.answers(net, folder / "v" / SILENT[0], CPU))[-1]
    assert set(scores) == {"high", "low"} and windows and not mp4  # an answer without evidence
    assert clip.stream == "audio" and all((rows[n][:, sound] == net.mean[sound].double().numpy()).all() for n in (0, 1))
    assert (rows[2][:, sound] != net.mean[sound].double().numpy()).any() and (rows[0][:, frames] != 0).any()


def test_no_sound_in_any_is_refused(heard, work):
    folder, *_ = heard
    with pytest.raises(UsageError, match="none of the videos to train on has sound"):
        finetune.finetune(work[0] / "v", folder / "net", stream="audio", runs=folder / "other", device="cpu")
    with pytest.raises(UsageError, match="none of the videos to train on has sound"):  # and nothing is fetched for them
        finetune.finetune(work[0] / "v", stream="audio", runs=folder / "other", device="cpu")
    report = check.look(listing.read(folder / "v"), records.HEADER, workers=0)
    assert [row["path"] for row in report.videos if not row["sound"]] == list(SILENT)
    assert "6 of 8 files with sound" in check.in_words(report)
