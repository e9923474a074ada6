"""One table of all systems on one split: what is there is not made again, and figures are those of the runs."""

import json
import os
import signal
import sys

import numpy as np
import pytest
from safetensors.torch import save_file

import nlzoo as zoo
from nlzoo.apps import compare, draw
from nlzoo.core.errors import Stopped, UsageError
from nlzoo.networks import model as models
from nlzoo.training import metrics, outputs, sequence
from nlzoo.training.callbacks import Callbacks
from nlzoo.videos import flow, listing, scanning

ASKED = {"backbone": "tiny", "frames": 4, "size": 32, "epochs": 1, "device": "cpu"}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A comparison of the cheap systems, and its folder's parent."""
    folder = tmp_path_factory.mktemp("compare")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        draw.write_videos(folder / "v", draw.CLASSES[:2], 3, seed=4, frames=8, size=(32, 48))
        log = []
        made = zoo.compare("v", systems=("majority", "size-and-length", "probe", "c2d"), log=log.append, **ASKED)
    return folder, made.figures, log


def test_the_figures_are_those_of_the_runs_on_one_split(done, monkeypatch):
    folder, figures, log = done
    monkeypatch.chdir(folder)
    rows = {row["system"]: row for row in figures["rows"]}
    assert list(rows) == ["majority", "size-and-length", "probe", "c2d"] and not figures["left_out"]
    dataset = scanning.split(scanning.scan(folder / "v"), "0.25", 0)
    train, val = (scanning.items_in(dataset, part) for part in (listing.TRAIN, listing.VAL))
    assert rows["majority"]["top1"] == metrics.chance(dataset.classes, train, val, False)
    for system, kept in (("probe", "best"), ("c2d", "last")):
        run = f"comparisons/v/runs/{system}-s0"
        again = zoo.evaluate(f"{run}/{kept}", f"{run}/videos.csv", device="cpu").figures
        assert abs(again["loss"] - rows[system]["loss"]) < 1e-6 and again["top1"] == rows[system]["top1"]
        assert rows[system]["params"] > 1e6 and rows[system]["macs"] > 1e6 and rows[system]["seconds"] > 0
    assert json.loads((folder / "comparisons/v/table.json").read_text()) == figures
    table = (folder / "comparisons/v/table.md").read_text()
    assert all(f"| {system} |" in table for system in rows) and "too few groups" in table


def test_what_was_measured_is_not_measured_again_and_the_table_grows(done, monkeypatch):
    folder, figures, _ = done
    monkeypatch.chdir(folder)
    log = []
    monkeypatch.setattr(compare, "finetune", None)  # nothing is trained
    again = zoo.compare("v", systems=("c2d", "size-and-length"), log=log.append, **ASKED).figures
    assert again["rows"] == figures["rows"] and log == []
    more = zoo.compare("v", ["tiny"], ("majority",), log=log.append, **ASKED).figures
    assert log == ["probe tiny, seed 0"] and [row["system"] for row in more["rows"]][2:] == [
        "probe",
        "probe tiny",
        "c2d",
    ]
    with pytest.raises(UsageError, match="started with different settings: size 32 then, 48 now"):
        zoo.compare("v", **ASKED | {"size": 48})
    with pytest.raises(UsageError, match="there is no system 'i4d'"):
        zoo.compare("v", systems=["i4d"], **ASKED)


def test_2d_networks_are_fine_tuned_where_that_is_asked_for(done, monkeypatch, tmp_path):
    folder, _, _ = done
    monkeypatch.chdir(folder)
    assert not any("tsn" in system for system in compare._wanted((), ["test_vit"], "resnet18"))
    assert compare._wanted(("tsn",), ["test_vit", "tiny"], "resnet18") == [
        "probe test_vit",
        "probe tiny",
        "tsn test_vit",
    ]
    assert compare._wanted(("tsn",), [], "test_vit.r160_in1k") == ["tsn test_vit.r160_in1k"]
    with pytest.raises(UsageError, match="tsn trains 2-D networks of timm that are not inflated, and there is none"):
        zoo.compare("v", systems=("tsn",), **ASKED)
    save_file(models.import_timm().create_model("test_vit").state_dict(), tmp_path / "w.safetensors")
    asked = ASKED | {"backbone": "test_vit", "weights": tmp_path / "w.safetensors", "frames": 2}
    made = zoo.compare("v", systems=("tsn", "c2d"), name="vit", **asked).figures
    assert [row["system"] for row in made["rows"]] == ["tsn test_vit"] and "c2d" in made["left_out"]
    spec = zoo.load("comparisons/vit/runs/tsn-test_vit-s0/last").spec
    assert (spec.inflation.arch, spec.clip.frames, spec.clip.size) == ("frames", 2, 32)


def test_what_there_is_no_time_to_train_is_left_out_and_all_else_is_there(done, monkeypatch):
    folder, figures, _ = done
    monkeypatch.chdir(folder)
    short = zoo.compare("v", systems=("c2d", "i3d", "rgb+flow"), minutes=0, **ASKED).figures
    assert {row["system"] for row in figures["rows"]} <= {row["system"] for row in short["rows"]}
    assert not {"i3d", "flow", "rgb+flow"} & {row["system"] for row in short["rows"]}
    assert "minutes, and 0.0 are left" in short["left_out"]["i3d"] and "--minutes" in short["left_out"]["flow"]
    assert short["left_out"]["rgb+flow"] == "there is no i3d to fuse"
    assert not (folder / "comparisons/v/runs/i3d-s0").exists()


def test_a_signal_ends_it_with_the_table_so_far_and_the_same_command_goes_on(done, monkeypatch):
    folder, figures, _ = done
    monkeypatch.chdir(folder)
    (folder / "comparisons/v/table.md").unlink()
    said, systems = [], ("i3d", "flow")
    interrupt = Callbacks(step=lambda step: step.phase == "train" and os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Stopped) as stopped:
        zoo.compare("v", systems=systems, callbacks=interrupt, log=said.append, **ASKED)
    assert stopped.value.exit_code == 130 and not any("flow" in line or "left out" in line for line in said)
    table = (folder / "comparisons/v/table.md").read_text()
    assert "| c2d |" in table and "| i3d |" not in table
    made = zoo.compare("v", systems=("i3d",), **ASKED).figures
    assert "i3d" in [row["system"] for row in made["rows"]] and not made["left_out"]


def test_a_system_that_cannot_be_had_is_left_out_and_said(done, monkeypatch):
    folder, figures, _ = done
    monkeypatch.chdir(folder)
    monkeypatch.setitem(sys.modules, "cv2", None)  # it cannot be imported
    flow._opencv.cache_clear()
    flow.estimator.cache_clear()
    left = zoo.compare("v", systems=("lstm-streams",), **ASKED).figures
    assert list(left["left_out"]) == ["flow", "audio", "lstm-streams rgb"] and "nlzoo[flow]" in left["left_out"]["flow"]
    assert "only the stream rgb is there" in left["left_out"]["lstm-streams rgb"]
    assert [row["system"] for row in left["rows"]][:3] == ["majority", "size-and-length", "probe"]


def test_heads_look_over_the_streams_that_are_there(done, monkeypatch):
    folder, _, _ = done
    monkeypatch.chdir(folder)
    made = zoo.compare("v", systems=("attention-streams",), minutes=60, **ASKED).figures
    assert list(made["left_out"]) == ["audio"] and "sound" in made["left_out"]["audio"]
    (row,) = (row for row in made["rows"] if row["system"].startswith("attention"))
    below = [each["training"] for each in made["rows"] if each["system"] in ("i3d", "flow")]
    assert row["training"] > sum(below) > 0  # those of its networks too
    assert row["system"] == "attention-streams rgb+flow"
    assert [row["system"] for row in made["rows"]][-3:] == ["i3d", "flow", "attention-streams rgb+flow"]
    run = "comparisons/v/runs/attention-streams-rgb-flow-s0"
    again = zoo.evaluate(f"{run}/last", f"{run}/videos.csv", device="cpu").figures
    assert abs(again["loss"] - row["loss"]) < 1e-6
    members = [member.model.clip.stream for member in zoo.load(f"{run}/last").spec.members]
    assert members == ["rgb", "flow"]


def test_both_heads_over_the_same_windows_have_features_that_were_computed_once(done, monkeypatch):
    folder, _, _ = done
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sequence, "EPOCHS", 5)
    real, asked = outputs.window_features, []
    monkeypatch.setattr(
        outputs, "window_features", lambda net, source, *rest: asked.append(len(source)) or real(net, source, *rest)
    )
    made = zoo.compare("v", systems=("lstm", "attention"), **ASKED).figures
    assert asked == [6, 2, 1, 2]  # all; those to predict; one, to see whose the file is; those to predict
    first, other = (
        json.loads((folder / f"comparisons/v/runs/{s}-s0/result.json").read_text()) for s in compare.SEQUENCES
    )
    row = next(row for row in made["rows"] if row["system"] == "attention")
    expected = other["seconds"] - other["feature_seconds"] + max(first["feature_seconds"], other["feature_seconds"])
    assert abs(row["training"] - expected) < 1e-6


def measured(rng, keys, right, classes=2):
    scores = rng.uniform(0.1, 0.4, (len(keys), classes))
    scores[np.arange(len(keys)), right] += 0.5
    return compare.Measured(keys, scores / scores.sum(1, keepdims=True))


def test_systems_are_told_apart_by_pairs_over_groups(tmp_path, seed):
    rng = np.random.default_rng(seed)
    items = tuple(
        listing.Item(f"{n}.mp4", (f"c{n % 2}",), split="val" if n < 60 else "train", group=f"g{n // 2}")
        for n in range(64)
    )
    dataset = scanning.Dataset(tmp_path, items, (), 0)
    val = scanning.items_in(dataset, listing.VAL)
    keys, truth = compare._keys(tmp_path, val), np.array([int(item.labels[0][1]) for item in val])
    good, same = measured(rng, keys, truth), measured(rng, keys, truth)
    bad = measured(rng, keys, np.where(np.arange(60) < 40, 1 - truth, truth))
    figures = compare._figures([dataset], {"i3d": [good], "c2d": [bad], "flow": [same]})
    rows = {row["system"]: row for row in figures["rows"]}
    assert rows["i3d"]["better_than"] == ["c2d"] and rows["i3d"]["not_separable_from"] == ["flow"]
    assert rows["c2d"]["better_than"] == [] and rows["c2d"]["not_separable_from"] == [] and figures["groups"] == 30
    gain = next(pair["gain"] for pair in figures["pairs"] if pair["one"] == "i3d" and pair["other"] == "c2d")
    assert gain == metrics.difference(good.scores, bad.scores, val, dataset.classes, False)
    fused = compare._fused([good, bad])
    assert np.allclose(fused.scores, (good.scores + bad.scores) / 2) and fused.keys == keys
    words = compare.sentences(figures | {"left_out": {}})
    assert "i3d: better than c2d; not separable from flow" in words
