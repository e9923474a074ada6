"""The job on real weights and videos, through the command line; a full run's figures are in docs/training.md."""

import json
import os
import subprocess
import sys

import pytest

CLASSES = ("handshaking", "hugging", "kicking", "punching", "pushing")  # pointing is given away by its frame shape


def nlzoo(folder, *words, code=0):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}  # threads wait for the tests beside it
    done = subprocess.run(
        [sys.executable, "-m", "nlzoo", *map(str, words), "--json"],
        cwd=folder,
        env=env,
        text=True,
        capture_output=True,
        timeout=500,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout), done.stderr


@pytest.fixture(scope="module")
def videos(shared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("real") / "videos"
    folder.mkdir()
    for name in CLASSES:
        (folder / name).symlink_to(shared / "videos" / "interactions" / name)
    return folder


def test_inflate_finetune_predict(videos, shared):
    work = videos.parent
    made, _ = nlzoo(
        work,
        "inflate",
        "resnet18",
        "--weights",
        shared / "weights" / "resnet18_imagenet.safetensors",
        "--nl",
        "res3:1,res4:1",
    )
    assert made["nonlocal_identical"] is True and made["still_clip_error"] < 1e-5 and made["moving_clip_error"] < 1e-5
    done, summary = nlzoo(
        work, "finetune", "videos", "--epochs", 1, "--frames", 4, "--size", 64, "--val", "8,9,10", "--device", "cpu"
    )
    assert (
        tuple(done["classes"]) == CLASSES and done["train"] == 34 and done["val"] == 16 and done["majority"] == 3 / 16
    )
    assert (
        "grouped by the 2nd field of the file name: 7 groups to train, 3 to validate, 0 in both" in summary
        and "0 skipped" in summary
    )
    held = [f for f in sorted(videos.glob("*/*.avi")) if f.stem.split("_")[1] in ("8", "9", "10")]
    answers, _ = nlzoo(work, "predict", done["run"], *held)
    right = sum(max(a["scores"], key=a["scores"].get) == a["path"].split("/")[-2] for a in answers)
    assert len(answers) == 16 and right / 16 == pytest.approx(done["top1"])  # predict sees what validation saw


def test_resnet50_inflates(shared, tmp_path):
    made, _ = nlzoo(
        tmp_path,
        "inflate",
        "resnet50",
        "--weights",
        shared / "weights" / "resnet50_imagenet.safetensors",
        "--nl",
        "res4:5",
    )
    assert made["nonlocal"] == {"res4": [0, 1, 2, 3, 4]} and made["nonlocal_identical"] is True
    assert made["still_clip_error"] < 1e-5 and made["moving_clip_error"] < 1e-5
    wrong, _ = nlzoo(
        tmp_path, "inflate", "resnet18", "--weights", shared / "weights" / "resnet50_imagenet.safetensors", code=4
    )
    assert "does not fit this backbone" in wrong["error"]
