"""inflate, import, list and info as a user types them: near misses, no network, foreign text, unfinished runs."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from nlzoo.cli import training
from nlzoo.core import files, model_spec
from nlzoo.core.model_spec import ModelSpec
from nlzoo.core.view_spec import ClipSpec
from nlzoo.networks import checkpoint, model, zoo
from nlzoo.training import plan
from nlzoo.training.callbacks import Callbacks


@pytest.mark.parametrize("word, meant", [("resnett50", "resnet50"), ("ResNet18", "resnet18"), ("tinny", "tiny")])
def test_a_near_miss_is_told_what_was_meant(nlzoo, word, meant):
    code, out, err = nlzoo("inflate", word)
    assert code == 2 and f"{word!r} is not a ResNet" in err and meant in err.partition("did you mean: ")[2] and not out


@pytest.mark.parametrize(
    "words, meant",
    [
        ("r50", "did you mean: resnet50"),
        ("timm/resnet50.a1_in1k", "did you mean: resnet50"),
        ("https://huggingface.co/timm/resnet50.a1_in1k", "did you mean: resnet50"),
        ("nl5-i3d-r50", "nl5-i3d-r50-8x8: blocks, kind, depth"),
        ("i3d-r50-8x8.slowfst", "nlzoo import fetches others"),
        ("tiny --nl rs4:1", "did you mean res4?"),
        ("tiny --nl layer3:1", "did you mean res4?"),
        ("tiny --nl conv4:1", "did you mean res4?"),
        ("tiny --nl res6:1", "the stages are res2, res3, res4, res5"),
        ("tiny --nl layer9:1", "the stages are res2, res3, res4, res5"),
        ("tiny --form dot_product", "did you mean dot?"),
        ("tiny --span spactime", "did you mean spacetime"),
        ("tiny --subsample befor", "did you mean before?"),
    ],
)
def test_other_words_for_what_there_is_are_understood_in_the_hint(nlzoo, words, meant):
    code, out, err = nlzoo("inflate", *words.split())
    assert code == 2 and meant in err.partition("hint: ")[2] and not out


def test_what_cannot_be_is_refused_before_weights_are_fetched(nlzoo, monkeypatch):
    """Offline, a placement that resnet18 has no room for was told only once its weights were there."""
    monkeypatch.setattr("nlzoo.networks.download.backbone_weights", lambda repo: 1 / 0)
    code, _, err = nlzoo("inflate", "resnet18", "--nl", "res4:5")
    assert code == 2 and "res4 has 2 residual blocks, 0 to 1" in err
    code, _, err = nlzoo("inflate", "resnet50d", "--pools", "11x11")
    assert code == 2 and "pools is '11x11'" in err


def test_the_hint_for_a_machine_without_network_keeps_the_flags(nlzoo, monkeypatch):
    from nlzoo.core.errors import HubError

    def offline(repo):
        raise HubError("the Hub could not be reached")

    monkeypatch.setattr("nlzoo.networks.download.backbone_weights", offline)
    flags = ("--nl", "res3:1,res4:1", "--arch", "c2d", "--form", "dot", "--name", "mine")
    code, _, err = nlzoo("inflate", "resnet18", *flags)
    assert code == 4 and f"nlzoo inflate resnet18 {' '.join(flags)} --weights model.safetensors" in " ".join(
        err.split()
    )
    code, _, err = nlzoo("inflate", "nl5-i3d-r50-8x8")
    assert "nlzoo inflate nl5-i3d-r50-8x8 --weights model.safetensors" in " ".join(err.split())


def test_what_was_taken_off_a_weights_file_is_said(nlzoo):
    tensors = {f"module.{key}": value for key, value in model.plain_resnet("resnet18").state_dict().items()}
    torch.save({"state_dict": tensors}, "w.pth")
    code, out, err = nlzoo("inflate", "resnet18", "--weights", "w.pth", "--nl", "none")
    assert code == 0 and "taken from its part 'state_dict'" in out and "prefix 'module.' taken off all names" in out, (
        err
    )


def test_list_and_info_say_what_there_is(nlzoo):
    clip = ClipSpec(4, None, 32)
    plain = ModelSpec("tiny", num_outputs=1000, clip=clip, source="a\x1b[31m\u202eb", licence="x\x9bmit")
    checkpoint.save_model(Path("weights/plain"), model.build(plain))
    named = ModelSpec("tiny", classes=("a, b", "c\x1b"), num_outputs=2, clip=clip)
    figures = {"top1": 0.75, "top5": 1.0, "majority": 0.5, "val": 8}
    checkpoint.save_model(Path("runs/done-1/best"), model.build(named), figures)
    done = {"run": "runs/done-1", "model": "runs/done-1/best", "top1": None, "map": 0.5, "majority": 0.25, "val": 8}
    for run in ("done-1", "killed-1"):
        Path("runs", run).mkdir(exist_ok=True, parents=True)
        Path("runs", run, "config.json").write_text("{}")
        Path("runs", run, "videos.csv").write_text("")
    Path("runs/done-1/result.json").write_text(json.dumps(done))

    listed = json.loads(nlzoo("list", "--json")[1])
    assert [(m["model"], m["classes"], m["outputs"]) for m in listed["models"]] == [("weights/plain", 0, 1000)]
    assert [(r["run"], r["status"], r["map"]) for r in listed["runs"]] == [
        ("runs/killed-1", "unfinished", None),
        ("runs/done-1", "finished", 0.5),
    ]
    out = nlzoo("list")[1]
    rows = {line.split()[0]: " ".join(line.split()) for line in out.splitlines() if line.strip()}
    assert rows["weights/plain"].endswith("1000 without names")
    assert (
        rows["runs/killed-1"] == "runs/killed-1 unfinished" and rows["runs/done-1"] == "runs/done-1 mAP 0.500 0.250 8"
    )

    code, out, err = nlzoo("info", "done-1")
    assert code == 0 and out.startswith("runs/done-1/best\n") and r"classes: 'a, b', 'c\\x1b'" in out, err
    assert "validated on 8 videos: top-1 0.750, top-5 1.000, majority-class baseline 0.500" in out
    facts = json.loads(nlzoo("info", "done-1", "--json")[1])
    assert (facts["model"], facts["metrics"], facts["outputs"]) == ("runs/done-1/best", figures, 2)
    out = nlzoo("info", "plain")[1]
    assert r"weights from a\x1b[31m\u202eb, licence x\x9bmit" in out and "its outputs have no names" in out


def test_what_is_written_or_removed_meanwhile_is_no_model(nlzoo, tmp_path, monkeypatch):
    """Another process has written half of one, and removes one between the listing and its date."""
    for name in ("kept", ".made.0123abcd.part", ".replaced.0123abcd.old", "gone"):
        folder = tmp_path / "weights" / name
        folder.mkdir(parents=True)
        (folder / "model.safetensors").touch()
        files.write_json(folder / "config.json", model_spec.to_json(ModelSpec("tiny", num_outputs=2)))
    real = zoo.is_model

    def is_model(folder):
        answer = real(folder)
        if folder.name == "gone":
            shutil.rmtree(folder)
        return answer

    monkeypatch.setattr(zoo, "is_model", is_model)
    assert [folder.name for folder in zoo.models(tmp_path / "weights")] == ["kept"]
    code, out, err = nlzoo("list", "--json")
    assert code == 0 and [each["model"] for each in json.loads(out)["models"]] == ["weights/kept"]
    assert zoo.runs(tmp_path / "nowhere") == zoo.runs(tmp_path / "weights" / "kept" / "config.json") == []


def test_what_cannot_be_read_does_not_hide_the_others(nlzoo):
    good = model_spec.to_json(ModelSpec("tiny", num_outputs=2))
    for name, text in {"good": json.dumps(good), "odd": "[]", "torn": '{"format', "binary": "\xff\0"}.items():
        folder = Path("weights", name)
        folder.mkdir(parents=True)
        (folder / "model.safetensors").touch()
        (folder / "config.json").write_bytes(text.encode("latin-1"))
    for name, text in {"empty": "{}", "list": "[]", "torn": "{", "words": '{"top1": "high", "run": 3}'}.items():
        folder = Path("runs", name)
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(text)
    code, out, err = nlzoo("list", "--json")
    listed = json.loads(out)
    assert code == 0 and [each["model"] for each in listed["models"]] == ["weights/good"]
    assert {each["run"] for each in listed["runs"]} == {"runs/empty", "runs/words"}
    code, out, err = nlzoo("list")
    rows = [line.split()[0] for line in out.splitlines() if line.startswith(("weights/", "runs/"))]
    assert code == 0 and rows[0] == "weights/good" and sorted(rows[1:]) == ["runs/empty", "runs/words"]
    warned = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert len(warned) == 5 and all(
        any(f"{place}/" in line for line in warned)
        for place in ("weights/odd", "weights/torn", "weights/binary", "runs/list", "runs/torn")
    )


def test_every_command_says_that_a_run_is_unfinished(nlzoo, clip_file, tmp_path):
    """Its best model so far is shown all the same; without one there is nothing to show."""
    torch.manual_seed(0)
    spec = ModelSpec("tiny", classes=("a", "b"), num_outputs=2, clip=ClipSpec(4, None, 32))
    run = Path("runs/half")
    checkpoint.save_model(run / "best", model.build(spec))
    (run / "config.json").write_text("{}")
    (run / "videos.csv").write_text("")
    warning = "warning: the run runs/half is unfinished: this is its best model so far"
    for words in (["info", "half"], ["info", "runs/half/best"], ["explain", "half", clip_file], ["push", "half"]):
        assert warning in nlzoo(*words, *(["--dry-run"] if words[0] == "push" else []))[2], words
    told = []
    plan.starting_model("half", Callbacks(warn=told.append))
    assert [training.event_in_words(event) for event in told] == [warning.removeprefix("warning: ")]
    shutil.rmtree(run / "best")
    assert nlzoo("report", "half")[::2] == (
        2,
        "error: the run runs/half is unfinished and has no model yet\nhint: nlzoo finetune --resume continues it\n",
    )
