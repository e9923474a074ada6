"""Terminal codes in whatever comes from somebody else: no command hands them on to a terminal or a log."""

import contextlib
import json
import shutil
import unicodedata
from pathlib import Path

import pytest
import torch
from conftest import command
from safetensors import safe_open
from safetensors.torch import save_file

from nlzoo.apps import draw

EVIL = "\x1b]0;owned\x07\x1b[31m\x9b31m\u202ered\r"


def quiet(*texts):
    """Whether there is nothing in these texts that a terminal would obey."""
    return all(c == "\n" or unicodedata.category(c)[0] != "C" for text in texts for c in text)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    with contextlib.chdir(tmp_path_factory.mktemp("made")):
        assert command("inflate", "tiny", "--nl", "none", "--name", "m") == 0
        return Path("weights/m").resolve()


@pytest.fixture
def model(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "weights" / "m"))


def rewrite(model, **changes):
    file = model / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.fixture
def clips(tmp_path):
    paths = draw.write_videos(tmp_path / "videos", draw.CLASSES[:2], 3, seed=5, frames=8, size=(32, 48))
    for path in paths:
        folder = path.parent.parent / (path.parent.name + EVIL)
        folder.mkdir(exist_ok=True)
        path.rename(folder / (EVIL + path.name))
    for name in draw.CLASSES[:2]:
        (tmp_path / "videos" / name).rmdir()
    return sorted((tmp_path / "videos").glob("*/*"))


@pytest.mark.parametrize("json_flag", [(), ("--json",)])
@pytest.mark.parametrize("field", ["backbone", "source", "licence", "classes", "format", EVIL])
def test_a_foreign_config(nlzoo, model, clips, field, json_flag):
    changes = {"classes": {"classes": [EVIL + str(n) for n in range(40)], "num_outputs": 40}}
    rewrite(model, **changes.get(field, {field: EVIL}))
    for words in (
        ["info", "m"],
        ["list"],
        ["predict", "m", clips[0]],
        ["eval", "m", "videos"],
        ["push", "m", "--dry-run"],
    ):
        _, out, err = nlzoo(*words, *json_flag)
        assert out + err and quiet(out, err), (words, out, err)


@pytest.mark.parametrize("words", [["info", "m"], ["predict", "m", "x.mp4"]])
def test_a_foreign_tensors_name(nlzoo, model, words):
    with safe_open(model / "model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    first = next(iter(tensors))
    save_file({EVIL: tensors.pop(first), **tensors}, model / "model.safetensors", {"format": "pt"})
    code, out, err = nlzoo(*words)
    assert code == 4 and quiet(out, err), (out, err)


def test_a_foreign_checkpoint(nlzoo, tmp_path):
    save_file({EVIL: torch.zeros(3)}, tmp_path / f"{EVIL}.safetensors", {EVIL: EVIL})
    for words in (["import", f"{EVIL}.safetensors"], ["inflate", "tiny", "--weights", f"{EVIL}.safetensors"]):
        code, out, err = nlzoo(*words)
        assert code in (2, 4) and quiet(out, err), (words, out, err)


def test_foreign_videos_and_classes(nlzoo, model, clips, tmp_path):
    clips[0].write_bytes(b"no video")
    (tmp_path / f"{EVIL}.csv").write_text(f"path,label\nvideos/nothing{EVIL.strip()}.mp4,{EVIL.strip()}\n", newline="")
    for words in (
        ["check", "videos"],
        ["check", f"{EVIL}.csv"],
        ["check", "videos", "--json"],
        ["predict", "m", clips[0], clips[1]],
        ["predict", "m", clips[0], "--json"],
        ["prepare", "videos", EVIL],
        ["explain", "m", clips[1]],
        ["explain", "m", clips[1], "--class", EVIL],
        ["probe", "m", "videos", "--size", "32", "--name", EVIL],
        ["probe", "m", "videos", "--size", "32"],
        ["finetune", "videos", "--from", "m", "--epochs", "1", "--frames", "2", "--size", "32", "--val", "0.5"],
        ["finetune", "videos", "--recipe", EVIL],
        ["finetune", "videos", "--augment", EVIL],
        ["finetune", "videos", "--lr", EVIL],
        ["finetune", "videos", "--val", f"nowhere{EVIL}"],
        ["finetune", "videos", "--from", "m", "--epochs", "1", "--frames", "2", "--size", "32", "--val", EVIL],
        ["finetune", "videos", "--from", EVIL],
        ["finetune", "videos", "--classes", EVIL],
        ["list"],
        ["report", EVIL],
        ["pull", EVIL],
        ["eval", "m", "videos", "--views", EVIL],
        ["inflate", EVIL],
        [EVIL],
        ["list", f"--{EVIL}"],
    ):
        _, out, err = nlzoo(*words)
        assert out + err and quiet(out, err), (words, out, err)
    logs = list(tmp_path.glob("runs/*/log.txt"))
    assert logs and all(quiet(log.read_bytes().decode()) for log in logs)
