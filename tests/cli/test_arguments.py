"""Words in the wrong place of a command line, and empty ones: each is told before anything is opened or made."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from nlzoo.cli import arguments
from nlzoo.core.errors import UsageError
from nlzoo.training.options import FinetuneOptions
from nlzoo.videos import scanning


@pytest.fixture
def folder(tree, tmp_path):
    """`start` in weights/ and the run `first` in runs/, as far as names go; two folders of videos."""
    tree("walk/a.mp4", "run/b.mp4")
    run = tmp_path / "runs" / "first"
    for model in (tmp_path / "weights" / "start", run / "best"):
        model.mkdir(parents=True)
        for name in ("config.json", "model.safetensors"):
            (model / name).write_text("{}")
    for name in ("config.json", "videos.csv"):
        (run / name).write_text("{}")
    (tmp_path / "more" / "walk").mkdir(parents=True)
    (tmp_path / "more" / "walk" / "c.mp4").write_bytes((tmp_path / "videos" / "walk" / "a.mp4").read_bytes())
    return tmp_path


FILES = ["weights/start/model.safetensors", "weights/start/config.json"]
MODELS = [*FILES, "weights/start", "start", "runs/first", "first", "runs/first/best", "resnet50", "nl5-i3d-r50-8x8"]


@pytest.mark.parametrize("command", ["finetune", "check", "prepare", "eval", "probe", "predict", "explain", "bench"])
def test_a_model_in_the_place_of_videos_is_named(folder, nlzoo, command):
    first = [] if command in ("finetune", "check", "prepare") else ["start"]
    last = ["small"] if command == "prepare" else []
    for model in MODELS:
        code, out, err = nlzoo(command, *first, model, *last)
        assert (code, out) == (2, ""), err
        meant = f"nlzoo finetune VIDEOS --from {model}" if command == "finetune" else f"nlzoo info {model} shows"
        assert f"error: '{model}' is a model, not videos\nhint: " in err and meant in err
    assert not (folder / "small").exists()


def test_a_folder_of_videos_is_one_whatever_else_lies_in_it_or_has_its_name(folder, nlzoo):
    os.rename("runs/first", "runs/videos")
    assert "is a model" not in nlzoo("check", "videos")[2]
    for name in ("config.json", "model.safetensors"):
        (folder / "videos" / name).write_bytes((folder / "weights" / "start" / name).read_bytes())
    assert nlzoo("check", "videos", "--json")[0] in (0, 3)


@pytest.mark.parametrize(
    "words, hint",
    [
        ("finetune start videos", "nlzoo finetune videos --from start"),
        ("finetune videos weights/start", "nlzoo finetune videos --from weights/start"),
        ("finetune videos alice/gestures", "nlzoo finetune videos --from alice/gestures"),
        ("finetune runs/first videos --epochs 2", "nlzoo finetune videos --from runs/first"),
        ("finetune videos more", "nlzoo finetune videos --val more validates on the second"),
        ("finetune videos nowhere", "nlzoo finetune --help"),
        ("finetune runs/first --from videos", "nlzoo finetune videos --from runs/first"),
        ("check start videos", "check takes no model: nlzoo check videos"),
        ("check videos first --deep", "check takes no model: nlzoo check videos"),
        ("prepare first videos small", "prepare takes no model: nlzoo prepare videos small"),
        ("eval start videos more", "nlzoo eval --help"),
        ("probe videos resnet18", "the model comes first: resnet18 videos"),
        ("info weights/start/config.json", "give its folder: weights/start"),
        ("predict runs/first/best/model.safetensors videos", "give its folder: runs/first/best"),
        ("finetune videos --from weights/start/model.safetensors", "give its folder: weights/start"),
        ("eval videos start", "the model comes first: nlzoo eval start videos"),
    ],
)
def test_words_too_many_and_swapped_have_a_hint_that_can_be_typed(folder, nlzoo, words, hint):
    code, out, err = nlzoo(*words.split())
    assert (code, out) == (2, "") and f"hint: {hint}" in err, err
    assert not list(Path("runs").glob("videos*"))


@pytest.mark.parametrize(
    "words, what",
    [
        (["finetune", "videos", "--name", ""], "--name"),
        (["finetune", "videos", "--name="], "--name"),
        (["finetune", "videos", "--from", " "], "--from"),
        (["finetune", "videos", "--out", ""], "--out"),
        (["finetune", "videos", "--classes", "walk", "--classes", ""], "--classes"),
        (["finetune", "videos", "--cache=", "--epochs", "1"], "--cache"),
        (["finetune", ""], "an argument"),
        (["prepare", "videos", ""], "an argument"),
        (["predict", "start", "videos", ""], "an argument"),
        (["predict", "start", "videos", "--out", "\t"], "--out"),
        (["eval", "start", "videos", "--views", ""], "--views"),
        (["inflate", "tiny", "--weights", ""], "--weights"),
        (["push", "start", "--tag="], "--tag"),
        (["info", ""], "an argument"),
    ],
)
def test_an_empty_value_is_no_default(folder, nlzoo, words, what):
    before = sorted(folder.rglob("*"))
    code, out, err = nlzoo(*words)
    assert (code, out) == (2, "") and err.startswith(f"error: {what} is empty\nhint: "), err
    code, out, err = nlzoo(*words, "--json")
    assert json.loads(out)["error"] == f"{what} is empty"
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("option", ["name", "recipe", "augment", "val", "classes", "device", "track", "nl", "freeze"])
def test_an_empty_option_is_refused_from_python_too(option):
    with pytest.raises(UsageError, match=f"{option} is empty"):
        FinetuneOptions(**{option: ""})


def test_every_command_is_such_a_command():
    from test_app import COMMANDS

    assert all(isinstance(command, arguments.Command) for command in COMMANDS.values())


@pytest.mark.parametrize(
    "words, code, error",
    [
        ("inflate tiny --name a/b", 2, "'a/b' cannot name a folder"),
        ("import nl5-i3d-r50-8x8.authors --name ..", 2, "'..' cannot name a folder"),
        ("import nl5-i3d-r50-8x8.authors --name taken", 5, "weights/taken already exists and holds something else"),
        ("inflate resnet50 --name taken", 5, "weights/taken already exists and holds something else"),
        ("pull alice/gestures --name taken/x", 2, "'taken/x' cannot name a folder"),
        ("finetune videos --out a.txt", 5, "a.txt/videos could not be written (Not a directory)"),
        ("finetune videos --out a.txt/deep --name x", 5, "a.txt/deep/x could not be written (Not a directory)"),
    ],
)
def test_where_it_goes_is_checked_before_the_work(folder, nlzoo, monkeypatch, words, code, error):
    """Nothing is fetched, no network is made and no video is opened for a place that cannot be."""
    (folder / "weights" / "taken").mkdir()
    (folder / "a.txt").write_text("")
    monkeypatch.setattr(scanning, "scan", None)
    before = sorted(folder.rglob("*"))
    found = nlzoo(*words.split())
    assert found[:2] == (code, "") and f"error: {error}\nhint: " in found[2], found[2]
    assert sorted(folder.rglob("*")) == before


def test_weights_that_cannot_be_written_are_told_before_a_transfer(folder, nlzoo):
    shutil.rmtree("weights")
    Path("weights").write_text("")
    for words in ("inflate resnet50", "import nl5-i3d-r50-8x8.authors", "pull alice/gestures"):
        code, _, err = nlzoo(*words.split())
        assert code == 5 and re.search(r"error: weights(/gestures)? could not be written \(Not a directory\)", err), err
