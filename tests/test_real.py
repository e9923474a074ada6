"""The job on real weights and real videos, by the commands; the figures of a full run are in docs/training.md."""

import json

import pytest

CLASSES = ("handshaking", "hugging", "kicking", "punching", "pushing")  # pointing is given away by its frame shape


@pytest.fixture
def run(nlzoo):
    """Runs one command in an empty folder: `(its JSON, stderr)`; it has to end with `code`."""

    def run(*words, code=0):
        ended, out, err = nlzoo(*words, "--json")
        assert ended == code, out + err
        return json.loads(out), err

    return run


@pytest.fixture
def videos(shared, tmp_path):
    (tmp_path / "videos").mkdir()
    for name in CLASSES:
        (tmp_path / "videos" / name).symlink_to(shared / "videos" / "interactions" / name)
    return tmp_path / "videos"


def test_inflate_finetune_predict(run, videos, shared):
    weights = shared / "weights" / "resnet18_imagenet.safetensors"
    made, _ = run("inflate", "resnet18", "--weights", weights, "--nl", "res3:1,res4:1")
    assert made["nonlocal_identical"] is True
    assert made["still_clip_error"] < 1e-5 and made["moving_clip_error"] < 1e-5
    small = ("--epochs", 1, "--frames", 4, "--size", 64, "--device", "cpu")
    done, log = run("finetune", "videos", "--val", "8,9,10", *small)
    assert tuple(done["classes"]) == CLASSES and done["majority"] == 3 / 16
    assert done["train"] == 34 and done["val"] == 16
    assert "grouped by the 2nd field of the file name: 7 groups to train, 3 to validate, 0 in both" in log
    assert "50 videos used, 0 skipped" in log and (videos.parent / done["run"] / "report.html").is_file()
    held = [file for file in sorted(videos.glob("*/*.avi")) if file.stem.split("_")[1] in ("8", "9", "10")]
    rows, _ = run("predict", done["run"], *held)
    right = sum(max(row["scores"], key=row["scores"].get) == row["path"].split("/")[-2] for row in rows)
    assert len(rows) == 16 and right / 16 == pytest.approx(done["top1"])  # predict sees what validation saw


def test_resnet50_inflates(run, shared):
    weights = shared / "weights" / "resnet50_imagenet.safetensors"
    made, _ = run("inflate", "resnet50", "--weights", weights, "--nl", "res4:5")
    assert made["nonlocal"] == {"res4": [0, 1, 2, 3, 4]} and made["nonlocal_identical"] is True
    assert made["still_clip_error"] < 1e-5 and made["moving_clip_error"] < 1e-5
    wrong, _ = run("inflate", "resnet18", "--weights", weights, code=4)
    assert "resnet50_imagenet.safetensors does not fit resnet18: 165 unknown (layer1.0.bn3.bias, …)" in wrong["error"]
    assert wrong["hint"].startswith("name the backbone that the file was made for")
