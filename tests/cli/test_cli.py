"""The whole job through the command line, to the last file, and what a wrong input gets."""

import contextlib
import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import command
from hub_server import HubServer

from nlzoo.apps import draw
from nlzoo.networks import model
from nlzoo.networks.download import load
from nlzoo.training import run_folder
from nlzoo.videos import video


def shell(words, folder, env=None):
    """The same in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "nlzoo", *map(str, words)],
        cwd=folder,
        env=env,
        text=True,
        capture_output=True,
        timeout=300,
    )
    return done.returncode, done.stdout, done.stderr


def test_the_whole_job(nlzoo, tmp_path):
    draw.write_videos(tmp_path / "my videos", draw.CLASSES[:2], 4, seed=3, frames=8, size=(32, 48))
    code, out, _ = nlzoo("inflate", "tiny", "--nl", "res3:1,res4:1", "--name", "start", "--json")
    made = json.loads(out)
    assert code == 0 and made["nonlocal"] == {"res3": [1], "res4": [1]} and made["nonlocal_identical"] is True
    assert (
        made["still_clip_error"] < 1e-5 and made["moving_clip_error"] < 1e-5 and made["params"] > 0 and made["macs"] > 0
    )
    assert sorted(p.name for p in (tmp_path / "weights/start").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]

    code, out, err = nlzoo(
        "finetune",
        "my videos",
        "--epochs",
        "1",
        "--batch",
        "2",
        "--frames",
        "4",
        "--size",
        "32",
        "--json",
        "--device",
        "cpu",
        "--name",
        "first",
    )
    done = json.loads(out)
    assert code == 0, err
    assert {"run", "model", "classes", "train", "val", "epochs", "top1", "top5", "majority", "resumed_from"} <= set(
        done
    )
    assert done["classes"] == sorted(draw.CLASSES[:2]) and done["majority"] == 0.5 and "0 in both" in err
    assert "weights/start" in err and "nlzoo list" in err and (tmp_path / "runs/first/result.json").is_file()
    assert (
        "report runs/first/report.html" in err and "<h1>first</h1>" in (tmp_path / "runs/first/report.html").read_text()
    )
    words = (
        "--from first --epochs 1 --batch 2 --size 32 --name again --out mine --workers 1 --freeze backbone --val held "
        "--recipe probe=none"
    )
    draw.write_videos(tmp_path / "held", draw.CLASSES[:2], 1, seed=4, frames=8, size=(32, 48))
    code, out, err = nlzoo("finetune", "my videos", *words.split())
    assert (
        code == 0 and load("mine/again").spec.clip.frames == 4 and "images only" not in err
    )  # the model's clip, unless told otherwise
    settings = json.loads((tmp_path / "mine/again/config.json").read_text())["train"]
    assert settings["workers"] == 1 and settings["recipe"]["freeze"] == "backbone" and "2 val" not in err
    assert load("mine/again").conv1.weight.equal(load("first").conv1.weight)

    files = sorted((tmp_path / "my videos").rglob("*.mp4"))
    code, out, _ = nlzoo("predict", "first", *files[:2], "my videos", "--json")
    answers = json.loads(out)
    assert code == 0 and len(answers) == 10 and all(abs(sum(a["scores"].values()) - 1) < 1e-6 for a in answers)

    code, out, _ = nlzoo("eval", "runs/first", "my videos", "--json")
    scores = json.loads(out)
    right = sum(max(a["scores"], key=a["scores"].get) == a["path"].split("/")[-2] for a in answers[2:])
    assert code == 0 and scores["videos"] == 8 and scores["top1"] == pytest.approx(right / 8)

    code, out, _ = nlzoo("list", "--json")
    assert [m["model"] for m in json.loads(out)["models"]] == ["weights/start"] and json.loads(out)["runs"][0][
        "run"
    ] == "runs/first"
    code, out, _ = nlzoo("info", "first", "--json")
    summary = json.loads(out)
    assert (
        summary["classes"] == done["classes"]
        and summary["clip"]["frames"] == 4
        and summary["nonlocal"] == {"res3": [1], "res4": [1]}
    )

    with HubServer() as hub:
        env = {**hub.env(tmp_path / "home"), "PYTHONPATH": os.pathsep.join(sys.path)}
        code, out, err = shell(["push", "--dry-run", "--json"], tmp_path, env)
        assert code == 0 and hub.repos == {} and sum(f["bytes"] for f in json.loads(out)["files"]) > 1_000_000, err
        code, out, err = shell(["push", "--json"], tmp_path, env)
        assert code == 2 and "--yes" in json.loads(out)["hint"] and hub.repos == {}
        code, out, err = shell(["push", "--yes", "--space", "--json"], tmp_path, env)
        assert code == 0, out + err
        assert json.loads(out)["repo"] == json.loads(out)["space"]["repo"] == "alice/first"
        assert hub.repos["alice/first"].private and hub.repos["spaces/alice/first"].private
        code, out, err = shell(["pull", "alice/first", "--name", "back", "--json"], tmp_path, env)
        assert code == 0, out + err
    with torch.inference_mode():
        clip = torch.randn(1, 3, 4, 32, 32)
        assert torch.equal(load("weights/back")(clip), load("runs/first")(clip))
    assert load("back").spec == load("first").spec


def test_text_for_people(nlzoo, tmp_path):
    code, out, err = nlzoo("inflate", "tiny", "--nl", "none")
    assert code == 0 and "relative error" in out and "wrote weights/i3d-tiny" in out
    code, out, err = nlzoo("list")
    assert code == 0 and "weights/i3d-tiny" in out
    summary = nlzoo("info", "i3d-tiny")[1]
    assert "multiply-adds" in summary and "  stem   " in summary
    assert "3x3x3 in 0 1" in summary  # tiny is of basic blocks


def test_a_named_net_is_described_without_weights_and_made_with_them(nlzoo, tmp_path):
    code, out, _ = nlzoo("info", "nl5-i3d-r50-8x8", "--json")
    summary = json.loads(out)
    assert code == 0 and (round(summary["params"] / 1e6, 2), round(summary["macs"] / 1e9, 2)) == (35.40, 36.54)
    assert summary["clip"]["frames"] == summary["clip"]["stride"] == 8 and not list(tmp_path.iterdir())
    assert [s["output"][:2] for s in summary["stages"]] == [[64, 8], [64, 8], [256, 4], [512, 4], [1024, 4], [2048, 4]]
    assert "; non-local after 1, 3, 5" in nlzoo("info", "nl5-i3d-r50-8x8")[1]
    torch.save(model.plain_resnet("resnet18").state_dict(), "r18.pth")
    code, out, err = nlzoo("inflate", "nl1-c2d-r18-16x4", "--weights", "r18.pth", "--json")
    made = json.loads(out)
    assert code == 0 and made["model"] == "weights/nl1-c2d-r18-16x4" and made["clip"]["frames"] == 16, err
    assert load("nl1-c2d-r18-16x4").spec.inflation.pools == "8x8"


@pytest.mark.parametrize(
    "words, code, said",
    [
        (["inflate", "tiny", "--nl", "res4:9"], 2, "res4 has 2 residual blocks"),
        (["inflate", "nonsense"], 2, "not a ResNet"),
        (["inflate", "nl5-i3d-r50-8x8", "--nl", "none"], 2, "says itself"),
        (["info", "nl2-i3d-r50-8x8"], 2, "1, 5, 10 non-local blocks"),
        (["inflate", "tiny", "--arch", "c4d"], 2, "c2d, i3d, i3d-333"),
        (["inflate", "tiny", "--weights", "nowhere.pth"], 4, "there is no weights file nowhere.pth"),
        (["inflate", "tiny", "--name", "../up"], 2, "cannot name a folder"),
        (["finetune", "nowhere"], 3, "does not exist"),
        (["finetune", ".", "--val", "7.5"], 2, "is no share of the videos"),
        (["finetune", "."], 3, "no videos"),
        (["predict", "nothing", "x.mp4"], 2, "no model 'nothing'"),
        (["eval", "nothing", "."], 2, "no model"),
        (["push"], 2, "no finished run"),
        (["pull", "justaname"], 2, "not user/name"),
    ],
)
def test_wrong_input_gets_a_sentence_a_hint_and_its_code(nlzoo, words, code, said):
    got, out, err = nlzoo(*words)
    assert (got, out) == (code, "") and err.startswith("error: ") and said in err and "Traceback" not in err
    got, out, _ = nlzoo(*words, "--json")
    assert (
        got == code
        and json.loads(out)["exit_code"] == code
        and said in json.loads(out)["error"] + json.loads(out)["hint"]
    )


def test_a_device_that_is_not_here(nlzoo, tmp_path):
    """Known once torch is imported, so that what videos lack, which needs no torch, is said before."""
    draw.write_videos(tmp_path / "videos", draw.CLASSES[:2], 1, frames=8, size=(32, 48))
    code, out, err = nlzoo("finetune", "videos", "--device", "cuda:77")
    assert (code, out) == (2, "") and "device 'cuda:77' cannot be used here" in err and "Traceback" not in err


def test_one_bad_file_costs_itself_and_names_are_shown_safely(nlzoo, tmp_path):
    nlzoo("inflate", "tiny", "--nl", "none", "--name", "m")
    good = draw.write_videos(tmp_path, draw.CLASSES[:1], 1, frames=8, size=(32, 48))[0]
    nasty = tmp_path / "[red]\x1b[31m\n.mp4"
    nasty.write_bytes(b"no video")
    code, out, err = nlzoo("predict", "m", good, nasty, tmp_path / "missing.mp4")
    assert code == 1 and "2 of 3" in err and "\x1b[31m" not in out + err and "[red]" in err and good.name in out


def test_none_that_can_be_read_is_code_3(nlzoo, tmp_path):
    nlzoo("inflate", "tiny", "--nl", "none", "--name", "m")
    code, _, err = nlzoo("predict", "m", "missing.mp4")
    assert code == 3 and "missing.mp4 does not exist" in err


def test_a_bug_keeps_its_traceback(nlzoo, monkeypatch):
    monkeypatch.setattr("nlzoo.networks.zoo.models", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        nlzoo("list")


def test_inflate_never_writes_over_something_else(nlzoo, tmp_path):
    assert nlzoo("inflate", "tiny", "--nl", "none", "--name", "m")[0] == 0
    assert nlzoo("inflate", "tiny", "--nl", "none", "--name", "m")[0] == 0  # the same again is no harm
    code, _, err = nlzoo("inflate", "tiny", "--nl", "res4:1", "--name", "m")
    assert code == 5 and "something else" in err and "--name" in err


def test_video_is_the_only_door(tmp_path):
    assert video.backends()


@pytest.fixture
def drawn(tmp_path):
    draw.write_videos(tmp_path / "videos", draw.CLASSES[:2], 4, seed=5, frames=8, size=(32, 48))
    return tmp_path / "videos"


def test_check_says_what_is_wrong_and_whether_training_could_start(nlzoo, drawn):
    (drawn / "stray.mp4").write_bytes(next(drawn.glob("*/*.mp4")).read_bytes())
    code, out, _ = nlzoo("check", "videos", "--json")
    summary = json.loads(out)
    assert (
        code == 0
        and summary["could_train"]
        and (summary["used"], summary["ignored"]) == (8, 0)
        and summary["files"] == 9
    )
    assert summary["skipped"] == [
        {"path": "stray.mp4", "code": "outside_class", "reason": "lies outside any class folder"}
    ] and set(summary["classes"]) == set(draw.CLASSES[:2])
    code, out, _ = nlzoo("check", "videos", "--deep")
    assert code == 0 and out.rstrip().endswith("ready to train")
    code, out, _ = nlzoo("check", "videos", "--classes", draw.CLASSES[0])
    assert code == 3 and "not ready: videos has one class, 'rise'; a classifier needs two" in out
    code, _, err = nlzoo("check", "videos", "--classes", "nobody")
    assert code == 2 and "has no class 'nobody'" in err


def test_prepared_videos_train_as_the_folder_or_the_list_that_they_came_from(nlzoo, drawn):
    code, out, _ = nlzoo("prepare", "videos", "small", "--size", 24, "--json")
    summary = json.loads(out)
    assert code == 0 and (summary["done"], summary["reused"], summary["skipped"], summary["videos"]) == (
        8,
        0,
        [],
        "small",
    )
    assert nlzoo("check", "small")[0] == 0
    assert json.loads(nlzoo("prepare", "videos", "small", "--size", 24, "--json")[1])["reused"] == 8
    rows = [f"{f},{f.parent.name};x,{f.stem}" for f in sorted(drawn.glob("*/*.mp4"))]
    (drawn.parent / "list.csv").write_text("path,label,group\n" + "\n".join(rows) + "\n")
    code, out, _ = nlzoo("prepare", "list.csv", "listed", "--size", 24, "--json")
    summary = json.loads(out)
    assert code == 0 and summary["videos"] == "listed/videos.csv" and summary["done"] == 8
    nlzoo("inflate", "tiny", "--nl", "none")
    code, out, err = nlzoo(
        *("finetune", "listed/videos.csv", "--size", 24, "--frames", 4, "--epochs", 1, "--recipe", "probe=none"),
        *("--cache", "kept", "--json"),
    )
    summary = json.loads(out)
    assert (
        code == 0
        and summary["top1"] is None
        and 0 < summary["map"] <= 1
        and "mAP" in err
        and any(Path("kept").iterdir())
    )
    code, out, _ = nlzoo("eval", "videos-1", "listed/videos.csv", "--views", "2x3", "--json")
    summary = json.loads(out)
    assert code == 0 and summary["views"] == 6 and 0 < summary["map"] <= 1
    assert nlzoo("eval", "videos-1", "listed/videos.csv", "--views", "0x3")[0] == 2
    assert nlzoo("prepare", "videos", "videos/inside")[0] == 2


def test_a_dry_run_and_several_seeds(nlzoo, drawn):
    nlzoo("inflate", "tiny", "--nl", "none")
    short = ("--size", 32, "--frames", 4, "--epochs", 1, "--batch", 2, "--recipe", "probe=none")
    recipe = ("finetune", "videos", *short, "--json")
    code, out, _ = nlzoo(*recipe, "--dry-run")
    assert code == 0 and json.loads(out)["steps"] > 0 and not Path("runs").exists()
    code, out, _ = nlzoo(*recipe, "--seeds", 2)
    summary = json.loads(out)
    values = [r["last_top1"] for r in summary["runs"]]
    assert code == 0 and summary["last_top1_mean"] == pytest.approx(sum(values) / 2)
    assert summary["last_top1_std"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    before = Path("runs/videos-s0/result.json").stat().st_mtime_ns
    assert (
        json.loads(nlzoo(*recipe, "--seeds", 2)[1]) == summary
        and Path("runs/videos-s0/result.json").stat().st_mtime_ns == before
    )


HOSTILE = '<b>&amp;$x$ [red]\x1b[31m "q" 👩‍👩‍👧'  # a folder's name


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    """A small model of two classes, one with a nasty name, and its videos; one is broken, and its name is no text."""
    folder = tmp_path_factory.mktemp("trained")
    draw.write_videos(folder / "videos", draw.DEMO[:2], 4, seed=7, frames=8, size=(32, 48))
    (folder / "videos" / draw.DEMO[0]).rename(folder / "videos" / HOSTILE)
    (folder / "videos" / HOSTILE / os.fsdecode(b"bad\xff.mp4")).write_bytes(b"no video")
    with contextlib.chdir(folder):
        assert command("inflate", "tiny", "--nl", "res3:1", "--name", "m") == 0
        assert (
            command("finetune", "videos", "--epochs", 1, "--frames", 4, "--size", 32, "--device", "cpu", "--name", "r")
            == 0
        )
    assert load(folder / "runs" / "r").spec.classes == tuple(sorted([HOSTILE, draw.DEMO[1]]))
    return folder


@pytest.fixture
def trained(trained_once, nlzoo, tmp_path):
    """A copy of it, in the working folder."""
    shutil.copytree(trained_once, tmp_path, dirs_exist_ok=True)
    return "r"


def read_rows(file):
    with open(file, encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


def test_eval_says_all_that_can_be_said(nlzoo, trained, tmp_path):
    code, out, err = nlzoo("eval", trained, "videos", "--views", "2xfull", "--control", "--out", "rows.csv", "--json")
    summary = json.loads(out)
    assert code == 0 and (summary["videos"], summary["views"], summary["look"], summary["skipped"]) == (
        8,
        2,
        "2xfull",
        1,
    ), err
    assert {
        "top1",
        "top5",
        "mean_class",
        "macro_f1",
        "ece",
        "intervals",
        "per_class",
        "confusion",
        "calibration",
    } <= set(summary)
    assert (
        set(summary["control"]) == {"shuffled", "one"} and summary["control"]["one"]["gain"] is None
    )  # of four groups
    rows = read_rows(tmp_path / "rows.csv")
    good = [r for r in rows if not r["error"]]
    assert len(rows) == 9 and rows[-1]["path"].endswith("bad\\xff.mp4") and "is not a video" in rows[-1]["error"]
    assert (
        summary["top1"]
        == sum(r["answer"] == r["labels"] for r in good) / 8
        == sum(r["right"] == "True" for r in good) / 8
    )
    assert all(abs(float(r[f"p:{HOSTILE}"]) + float(r[f"p:{draw.DEMO[1]}"]) - 1) < 1e-6 for r in good)
    code, out, err = nlzoo("eval", trained, "videos", "--control")
    assert (
        code == 0
        and "frames shuffled: top-1" in out
        and "taken for" in out
        and "\x1b[31m" not in out + err
        and "\\x1b[31m" in out
    )
    code, out, err = nlzoo("eval", trained, "videos", "--out", "rows.xlsx")
    assert code == 2 and ".parquet" in err and nlzoo("eval", trained, "videos", "--views", "2x2")[0] == 2


def test_predict_windows_tables_and_features(nlzoo, trained, tmp_path, monkeypatch):
    code, out, err = nlzoo(
        "predict", trained, "videos", "--every", "0.25s", "--window", "0.3", "--out", "w.jsonl", "--json"
    )
    summary = {Path(row["path"]).name: row for row in json.loads(out)}
    assert code == 1 and "error" in summary[os.fsdecode(b"bad\xff.mp4")] and len(summary) == 9, (
        err
    )  # JSON gives the bytes back
    good = [row for row in summary.values() if "error" not in row]
    assert all(
        row["segments"][0]["start"] == 0
        and row["segments"][-1]["end"] == pytest.approx(8 / 12)
        and len(row["windows"]) == 3
        for row in good
    )
    assert len((tmp_path / "w.jsonl").read_text().splitlines()) == 8 * 3 + 1
    code, out, err = nlzoo("predict", trained, "videos", "--every", "0.25s")
    assert code == 1 and out.count(" s  ") >= 8 and "\x1b[31m" not in out + err
    code, out, err = nlzoo("predict", trained, "videos", "--features", "f.safetensors", "--json")
    assert (
        code == 1
        and json.loads(out)["videos"] == 8
        and len(json.loads(out)["failed"]) == 1
        and (tmp_path / "f.safetensors").is_file()
    )
    whole = json.loads(nlzoo("predict", trained, "videos", "--json")[1])
    code, out, _ = nlzoo("eval", trained, "videos", "--json", "--out", "e.csv")
    same = {r["path"]: float(r["score"]) for r in read_rows(tmp_path / "e.csv") if not r["error"]}
    for row in whole:  # predict equals eval on the same video
        if "scores" in row:
            assert max(row["scores"].values()) == pytest.approx(same[row["path"].removeprefix("videos/")], abs=1e-6)
    for words in (
        "--every soon",
        "--window 1s",
        "--every 0",
        "--every 1s --views 2x1",
        "--every 1s --views 1xfull",
        "--features f.csv",
        "--features f.parquet --every 1s",
        "--features f.parquet --out a.csv",
        "--out a.xlsx",
    ):
        code, _, err = nlzoo("predict", trained, "videos", *words.split())
        assert code == 2 and err.startswith("error: "), words


def test_explain_by_the_command(nlzoo, trained, tmp_path):
    video_ = sorted((tmp_path / "videos" / HOSTILE).glob("*.mp4"))[1]
    code, out, err = nlzoo("explain", trained, video_, "--of", HOSTILE, "--at", "1,0.5,0.25", "--at", "3,0,1", "--json")
    summary = json.loads(out)
    assert code == 0 and summary["of"] == HOSTILE and [len(b["queries"]) for b in summary["blocks"]] == [2], err
    assert summary["blocks"][0]["queries"][0]["frame"] == 1 and all((tmp_path / f).is_file() for f in summary["files"])
    assert {Path(f).name for f in summary["files"]} == {
        "evidence.png",
        "evidence.mp4",
        "explain.json",
        "res3-1-1.png",
        "res3-1-2.png",
    }
    code, out, err = nlzoo("explain", trained, video_, "--points", 1, "--out", "pictures")
    assert code == 0 and "res3 after 1: embedded, spacetime" in out and "\x1b[31m" not in out + err
    assert [line.strip() for line in out.splitlines()[-4:]] == [
        f"pictures/{name}" for name in ("evidence.png", "res3-1-1.png", "evidence.mp4", "explain.json")
    ]
    for words, said in (
        (["--class", "nobody"], "does not know class"),
        (["--at", "here"], "not a point"),
        (["--at", "9,0,0"], "outside the clip"),
    ):
        code, _, err = nlzoo("explain", trained, video_, *words)
        assert code == 2 and said in err, err
    code, _, err = nlzoo("explain", trained, "missing.mp4")
    assert code == 3 and "does not exist" in err


def test_report_by_the_command(nlzoo, trained, trained_once, tmp_path):
    page = tmp_path / "runs" / trained / "report.html"
    first = page.read_text()
    page.unlink()
    code, out, err = nlzoo("report", trained, "--json")
    assert code == 0 and json.loads(out) == {"report": f"runs/{trained}/report.html"} and page.read_text() == first, err
    assert nlzoo("report")[0] == 0  # the newest
    assert "&lt;b&gt;" in first and "<b>&amp;" not in first.replace("&amp;amp;", "")
    code, _, err = nlzoo("report", "m")
    assert code == 2 and "is not a run" in err
    listed = tmp_path / "runs" / trained / "videos.csv"
    listed.write_text(listed.read_text().replace(str(trained_once), str(tmp_path / "gone")))
    code, _, err = nlzoo("report", trained)
    assert code == 3 and "Traceback" not in err and page.read_text() == first


def test_a_folder_whose_name_is_no_text(nlzoo, drawn):
    raw = drawn.rename(drawn.with_name(os.fsdecode(b"caf\xe9")))
    (raw / os.fsdecode(b"x\xff.mp4")).write_bytes(b"")
    nlzoo("inflate", "tiny", "--nl", "none")
    code, out, err = nlzoo(
        "finetune", raw.name, "--epochs", 1, "--frames", 4, "--size", 32, "--device", "cpu", "--json"
    )
    assert code == 0 and "x\\xff.mp4" in err, err
    run = Path(json.loads(out)["run"])
    assert (
        json.loads((run / "config.json").read_text())["train"]["videos"] == raw.name
        and "x\\xff.mp4" in (run / "skipped.csv").read_text()
    )
    assert nlzoo("eval", run, run / "videos.csv")[0] == 0


def test_a_probe_is_a_model(nlzoo, trained):
    code, out, err = nlzoo("probe", "m", "videos", "--size", 32, "--json")
    summary = json.loads(out)
    assert (
        code == 0
        and (summary["run"], summary["train"], summary["val"]) == ("runs/videos-probe-1", 6, 2)
        and 0 <= summary["top1"] <= 1
    ), err
    answers = json.loads(nlzoo("predict", summary["run"], "videos", "--json")[1])
    read = [answer for answer in answers if "scores" in answer]  # in the order of the names, where one is unreadable
    assert len(read) == 8 and set(read[0]["scores"]) == set(summary["classes"])
    assert {p.name for p in Path(summary["run"]).iterdir()} - {".lock"} == {
        "best",
        "last",
        "config.json",
        "videos.csv",
        "skipped.csv",
        "environment.json",
        "metrics.jsonl",
        "result.json",
        "learning_curve.json",
    }
    result = json.loads((Path(summary["run"]) / "result.json").read_text())
    assert result.pop("C") == summary["C"] and run_folder.Result(**result).top1 == summary["top1"]
    (epoch,) = run_folder.read_epochs(Path(summary["run"]))
    assert (epoch.score, epoch.clips, epoch.loss) == (summary["top1"], 6, summary["loss"])
    (row,) = [r for r in json.loads(nlzoo("list", "--json")[1])["runs"] if r["run"] == summary["run"]]
    assert (row["top1"], row["val"]) == (summary["top1"], 2)
    code, _, err = nlzoo("report", summary["run"])
    page = (Path(summary["run"]) / "report.html").read_text()
    assert (
        code == 0
        and "<h1>videos-probe-1</h1>" in page
        and "a linear classifier was fitted to the features of the starting model" in page
    ), err
    assert "is optimistic" not in page and "--recipe" not in page  # no epoch was chosen, no recipe was used
    assert nlzoo("eval", summary["run"], Path(summary["run"]) / "videos.csv")[0] == 0
    code, _, err = nlzoo("probe", "m", "videos", "--name", "r")
    assert (code, "r already exists" in err) == (2, True)  # before the work


def test_a_2d_network_of_timm_is_probed_by_its_name(nlzoo, trained):
    code, out, err = nlzoo("probe", "tiny", "videos", "--size", 32, "--name", "images", "--json")
    summary = json.loads(out)
    assert code == 0 and (summary["train"], summary["val"]) == (6, 2), err
    measured = json.loads(nlzoo("eval", "images", "runs/images/videos.csv", "--json")[1])
    assert abs(measured["loss"] - summary["loss"]) < 1e-5
    code, _, err = nlzoo("report", "images")
    page = Path("runs/images/report.html").read_text()
    assert code == 0 and "tiny, on each frame" in page and "Evidence for the prediction" not in page, err
    code, _, err = nlzoo("export", "images", "--to", "onnx")
    assert (code, "this model cannot be exported" in err) == (2, True), err
    code, out, err = nlzoo("finetune", "videos", "--from", "images", "--frames", 2, "--epochs", 1, "--json")
    assert code == 0 and json.loads(out)["train"] == 6, err
    code, _, err = nlzoo("finetune", "videos", "--from", "test_vit", "--freeze", "res9")
    assert (code, "freeze" in err) == (2, True), err
    code, _, err = nlzoo("probe", "vit_tiny_patch16_24", "videos")
    assert (code, "nlzoo probe vit_tiny_patch16_224 VIDEOS" in err) == (2, True), err
