"""Top-1 of the default recipe beside its alternatives: the table of docs/training.md, through the command line.

    python tests/bench/bench_recipe.py real   SCRATCH       # real clips of five interactions, four starts
    python tests/bench/bench_recipe.py motion SCRATCH       # drawn clips whose order in time is the label
    python tests/bench/bench_recipe.py arrow  SCRATCH       # the real clips forwards against backwards
    python tests/bench/bench_recipe.py table  SCRATCH       # what has been measured in SCRATCH so far

SCRATCH is a folder outside the project. A run that finished there before is not run again, so that a measurement can be
cut short; `--epochs N` and other words of `nlzoo finetune` at the end go to every run. Needs ../shared/data.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import torch

from nlzoo.apps import draw
from nlzoo.networks import checkpoint, download, model, zoo
from nlzoo.videos import encode, video

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
CLIPS = SHARED / "videos" / "interactions"
NL = "res3:1,res4:1"
# name: what `nlzoo inflate resnet18` gets beside the weights; None is the default's spec with fresh weights
STARTS = {
    "default": ["--nl", NL],
    "mean": ["--nl", NL, "--init", "mean"],
    "random": None,
    "c2d": ["--nl", "none", "--arch", "c2d"],
}
SEEDS = (0, 1, 2, 3, 4)  # docs/training.md says how many of them each row has
LEAVE_OUT = "pointing"  # its frame shape gives it away


def nlzoo(scratch, *words):
    done = subprocess.run(
        [sys.executable, "-m", "nlzoo", *map(str, words), "--json"],
        cwd=scratch,
        text=True,
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(done.stdout)


def start(scratch, name):
    """The model folder to start from, made once."""
    folder = scratch / "weights" / name
    if zoo.is_model(folder):
        return
    if name == "random":
        start(scratch, "default")
        torch.manual_seed(0)
        checkpoint.save_model(folder, model.build(download.load(scratch / "weights" / "default").spec))
    else:
        weights = SHARED / "weights" / "resnet18_imagenet.safetensors"
        nlzoo(scratch, "inflate", "resnet18", "--weights", weights, "--name", name, *STARTS[name])


def interactions(scratch):
    """Five classes of real clips, as links."""
    folder = scratch / "interactions"
    folder.mkdir(exist_ok=True)
    for path in sorted(CLIPS.iterdir()):
        if path.name != LEAVE_OUT and not (folder / path.name).exists():
            (folder / path.name).symlink_to(path)
    return folder


def arrow(scratch):
    """Every real clip twice, forwards and backwards, encoded alike; both keep the name, and so the group."""
    folder = scratch / "arrow"
    if not folder.exists():
        for source in sorted(CLIPS.rglob("*.avi")):
            if source.parent.name == LEAVE_OUT:
                continue
            frames = video.read_frames(source, range(video.probe(source).frames), short_side=144)
            frames = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
            for name, shown in (("forwards", frames), ("backwards", frames[::-1])):
                file = folder / name / f"{source.stem}.mp4"
                file.parent.mkdir(parents=True, exist_ok=True)
                encode.write_video(file, shown, 30)
    return folder


def motion(scratch):
    """Drawn clips: the classes hold the same frames in different orders."""
    folder = scratch / "motion"
    if not folder.exists():
        draw.write_videos(folder, draw.DEMO, 24, seed=0, frames=24, size=(112, 144))
    return folder


JOBS = {  # folder of videos, starts, share of the groups to validate on
    "real": (interactions, tuple(STARTS), "0.3"),
    "motion": (motion, ("default", "c2d"), "0.33"),
    "arrow": (arrow, ("default", "c2d"), "0.3"),
}


def measure(job, scratch, extra):
    make, starts, val = JOBS[job]
    videos = make(scratch)
    for seed in SEEDS:
        for name in starts:
            start(scratch, name)
            run = f"{job}-{name}-{seed}"
            if not (scratch / "runs" / run / "result.json").is_file():
                nlzoo(
                    scratch,
                    "finetune",
                    videos,
                    "--from",
                    f"weights/{name}",
                    "--name",
                    run,
                    "--seed",
                    seed,
                    "--val",
                    val,
                    "--device",
                    "cpu",
                    *extra,
                )


def table(scratch):
    """Mean and range over the seeds; the last epoch's, since the best is chosen on the clips it is measured on."""
    results = [
        json.loads(f.read_text()) | {"key": f.parent.name.rsplit("-", 1)[0]}
        for f in sorted(scratch.glob("runs/*/result.json"))
    ]
    print(
        "| videos | start | seeds | top-1, last epoch | top-1, best epoch | majority "
        "| clips trained / validated | minutes |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for key in sorted({r["key"] for r in results}):
        rows = [r for r in results if r["key"] == key]
        last, best = ([r[k] for r in rows] for k in ("last_top1", "top1"))
        print(
            f"| {key.replace('-', ' | ')} | {len(rows)} "
            f"| {statistics.mean(last):.2f} ({min(last):.2f}-{max(last):.2f}) "
            f"| {statistics.mean(best):.2f} | {statistics.mean(r['majority'] for r in rows):.2f} "
            f"| {rows[0]['train']} / {rows[0]['val']} | {statistics.mean(r['seconds'] for r in rows) / 60:.0f} |"
        )


if __name__ == "__main__":
    job, scratch, *extra = sys.argv[1:]
    scratch = Path(scratch).resolve()
    scratch.mkdir(parents=True, exist_ok=True)
    if job != "table":
        measure(job, scratch, extra)
    table(scratch)
