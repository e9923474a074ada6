"""The default recipe beside its alternatives, on sets that nobody tuned it on alone: the tables of docs/training.md.

    python tests/bench/bench_recipe.py real   SCRATCH       # real clips of five interactions
    python tests/bench/bench_recipe.py fights SCRATCH       # fights and none, groups cut from one source video
    python tests/bench/bench_recipe.py motion SCRATCH       # drawn clips whose order in time is the label
    python tests/bench/bench_recipe.py arrow  SCRATCH       # the real clips forwards against backwards
    python tests/bench/bench_recipe.py arrow-fights SCRATCH # the same of the fights
    python tests/bench/bench_recipe.py long   SCRATCH       # drawn videos of 12 s: which hand circles, which way
    python tests/bench/bench_recipe.py table  SCRATCH       # what has been measured in SCRATCH so far

SCRATCH is a folder outside the project. A run that finished there before is not run again, so that a measurement can be
cut short. `--starts default,c2d` and `--seeds 0,1` choose some; other words go to every `nlzoo finetune`. Needs
../shared/data. Every run is also asked about its validation videos in another place (`shifts`).
"""

import csv
import json
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import shifts
import torch

from nlzoo.apps import draw
from nlzoo.networks import checkpoint, download, model, zoo
from nlzoo.videos import encode, video

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
VIDEOS = SHARED / "videos"
NL = "res3:1,res4:1"
# name: what `nlzoo inflate resnet18` gets beside the weights; None is the default's spec with fresh weights
STARTS = {
    "default": ["--nl", NL],
    "i3d": ["--nl", "none"],
    "c2d": ["--nl", "none", "--arch", "c2d"],
    "mean": ["--nl", NL, "--init", "mean"],
    "random": None,
    "probe": ["--nl", NL],  # the default's start, whose head alone is fitted
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


# --- the sets


def interactions(scratch):
    """Five classes of real clips, as links."""
    folder = scratch / "interactions"
    folder.mkdir(exist_ok=True)
    for path in sorted((VIDEOS / "interactions").iterdir()):
        if path.name != LEAVE_OUT and not (folder / path.name).exists():
            (folder / path.name).symlink_to(path)
    return folder


def fights(scratch):
    return VIDEOS / "fights" / "videos.csv"


def read(path, short_side=144):
    frames = video.read_frames(path, range(video.probe(path).frames), short_side=short_side)
    return frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]


def both_ways(folder, sources):
    """A list of every `(name, file, group)` twice, forwards and backwards, encoded alike, in one group."""
    if not (folder / "videos.csv").exists():
        rows = []
        for name, file, group in sources:
            frames = read(file)
            for label, shown in (("forwards", frames), ("backwards", frames[::-1])):
                path = folder / label / f"{name}.mp4"
                path.parent.mkdir(parents=True, exist_ok=True)
                encode.write_video(path, shown, 30)
                rows.append((path.relative_to(folder), label, group))
        write_list(folder / "videos.csv", rows)
    return folder / "videos.csv"


def write_list(file, rows):
    with open(file, "w", newline="") as opened:
        csv.writer(opened).writerows([("path", "label", "group"), *rows])


def arrow(scratch):
    files = [f for f in sorted((VIDEOS / "interactions").rglob("*.avi")) if f.parent.name != LEAVE_OUT]
    # names are N_M_L: M is the sequence, the same two people
    return both_ways(scratch / "arrow", [(f.stem, f, f.stem.split("_")[1]) for f in files])


def arrow_fights(scratch):
    with open(fights(scratch), newline="") as opened:
        rows = list(csv.DictReader(opened))
    sources = [(Path(row["path"]).stem, VIDEOS / "fights" / row["path"], row["group"]) for row in rows]
    return both_ways(scratch / "arrow-fights", sources)


def motion(scratch):
    """Drawn clips: the classes hold the same frames in different orders."""
    folder = scratch / "motion"
    if not folder.exists():
        draw.write_videos(folder, draw.DEMO, 24, seed=0, frames=24, size=(112, 144))
    return folder


def long(scratch):
    """Twelve seconds of one of two hands that circles, on and off, one way or the other; each of eight people does all.

    The frames of a way are those of the other in another order, and which hand moves is seen only over time.
    """
    folder = scratch / "long"
    if not (folder / "videos.csv").exists():
        rows = []
        for person in range(8):
            for label in ("left clockwise", "left anticlockwise", "right clockwise", "right anticlockwise"):
                file = folder / label / f"{person}.mp4"
                file.parent.mkdir(parents=True, exist_ok=True)
                encode.write_video(file, hands(person, label), 30)
                rows.append((file.relative_to(folder), label, f"person {person}"))
        write_list(folder / "videos.csv", rows)
    return folder / "videos.csv"


def hands(person, label, total=360):
    """uint8 (T, 112, 144, 3) of a person, whose background, hands and ways are always the same but for small things."""
    own, rng = np.random.default_rng(person), np.random.default_rng([person, *label.encode()])
    rough = torch.from_numpy(own.uniform(40, 190, (1, 3, 7, 9)))
    ground = torch.nn.functional.interpolate(rough, (112, 144), mode="bilinear")[0].permute(1, 2, 0).numpy()
    colour, homes = own.integers((150, 90, 70), (240, 170, 150)), own.uniform((50, 30), (70, 45), (2, 2))
    homes[1, 1] = 144 - homes[1, 1]
    homes += rng.uniform(-6, 6, (2, 2))
    radius, rate = own.uniform(8, 14), own.uniform(0.6, 1.1) * rng.uniform(0.8, 1.2)
    side, sense = int(label.startswith("right")), -1 if "anti" in label else 1
    moving = np.concatenate([np.arange(75) < rng.integers(45, 75) for _ in range(5)])[:total]
    angle = rng.uniform(0, 2 * np.pi) + sense * 2 * np.pi * rate / 30 * np.cumsum(moving)
    frames = np.repeat(ground[None], total, 0).astype(np.uint8)
    for hand, home in enumerate(homes):
        drift = np.cumsum(rng.normal(0, 0.25, (total, 2)), 0).clip(-5, 5)
        circle = radius * np.stack([np.sin(angle), np.cos(angle)], 1) * (hand == side)
        for t, (y, x) in enumerate((home + drift + circle).round().astype(int)):
            frames[t, max(0, y - 7) : y + 7, max(0, x - 7) : x + 7] = colour
    noise = rng.normal(0, 4, frames.shape[1:])
    return (frames + noise).clip(0, 255).astype(np.uint8)


JOBS = {  # set of videos, share of the groups to validate on
    "real": (interactions, "0.3"),
    "fights": (fights, "0.3"),
    "motion": (motion, "0.33"),
    "arrow": (arrow, "0.3"),
    "arrow-fights": (arrow_fights, "0.3"),
    "long": (long, "0.33"),
}


# --- measuring


def measure(job, scratch, starts, seeds, extra):
    make, val = JOBS[job]
    videos = make(scratch)
    for seed in seeds:
        for name in starts:
            start(scratch, name)
            run = f"{job}-{name}-{seed}"
            command = "probe" if name == "probe" else "finetune"
            words = [videos] if command == "finetune" else [f"weights/{name}", videos]
            words += ["--name", run, "--seed", seed, "--val", val, "--device", "cpu"]
            if command == "finetune":
                words += ["--from", f"weights/{name}", *extra]
            if not (scratch / "runs" / run / "result.json").is_file():
                nlzoo(scratch, command, *words)
            if not (scratch / "runs" / run / "shifts.json").is_file():
                elsewhere(scratch, job, seed, run)


def elsewhere(scratch, job, seed, run):
    """Writes `shifts.json` of the run: top-1 and log loss of its validation videos under every change of `shifts`."""
    with open(scratch / "runs" / run / "videos.csv", newline="") as opened:
        rows = [row for row in csv.DictReader(opened) if row["split"] == "val"]
    folder = scratch / "shifted" / f"{job}-{seed}"
    if not (folder / "videos.csv").is_file():
        listed = []
        for row in rows:
            frames = read(scratch / "runs" / run / row["path"])
            for n, kind in enumerate(shifts.SHIFTS):
                file = Path(str(n), row["label"], f"{Path(row['path']).stem}.mp4")
                shifts.write(folder / file, frames, kind)
                listed.append((file, row["label"], row["group"]))
        write_list(folder / "videos.csv", listed)
    out = scratch / "runs" / run / "shifted.csv"
    nlzoo(scratch, "eval", f"runs/{run}", folder / "videos.csv", "--out", out, "--device", "cpu")
    with open(out, newline="") as opened:
        answers = list(csv.DictReader(opened))
    figures = {}
    for n, kind in enumerate(shifts.SHIFTS):
        own = [row for row in answers if row["path"].split("/")[0] == str(n)]
        right = [row["right"] == "True" for row in own]
        losses = [-np.log(max(float(row[f"p:{row['labels']}"]), 1e-12)) for row in own]
        figures[kind] = {"top1": float(np.mean(right)), "loss": float(np.mean(losses))}
    (scratch / "runs" / run / "shifts.json").write_text(json.dumps(figures, indent=1))


# --- the table


def figures_of(run):
    """What one run is worth: of the network that is kept, on validation as it is and elsewhere."""
    result = json.loads((run / "result.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = next(line for line in lines if line["epoch"] == result["best_epoch"])
    moved = json.loads((run / "shifts.json").read_text()).values()
    return {
        "top1": result["top1"],
        "last": result["last_top1"],
        "loss": kept["loss"],
        "moved": statistics.mean(m["top1"] for m in moved),
        "moved_loss": statistics.mean(m["loss"] for m in moved),
        "minutes": result["seconds"] / 60,
        "majority": result["majority"],
    }


def spread(values):
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}" if len(values) > 1 else f"{values[0]:.2f}"


def table(scratch):
    """Mean ± deviation over the splits, and against the default on the same splits: mean gain ± its standard error."""
    known = {}
    for file in sorted(scratch.glob("runs/*/shifts.json")):
        job, name, seed = file.parent.name.rsplit("-", 2)
        known.setdefault(job, {}).setdefault(name, {})[seed] = figures_of(file.parent)
    print("| videos | start | splits | top-1, kept | last epoch | log loss | elsewhere: top-1 | log loss ", end="")
    print("| default − this, top-1 | wins, losses | elsewhere | minutes |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for job, rows in known.items():
        for name in sorted(rows, key=list(STARTS).index):
            runs = rows[name]
            column = {key: [run[key] for run in runs.values()] for key in next(iter(runs.values()))}
            cells = [spread(column[key]) for key in ("top1", "last", "loss", "moved", "moved_loss")]
            cells += gains(rows.get("default", {}), runs) if name != "default" else ["", "", ""]
            print(f"| {job} | {name} | {len(runs)} | {' | '.join(cells)} | {statistics.mean(column['minutes']):.0f} |")


def gains(default, other):
    """Of the default over another start, split by split."""
    both = sorted(default.keys() & other.keys())
    if not both:
        return ["", "", ""]
    plain, moved = ([default[s][key] - other[s][key] for s in both] for key in ("top1", "moved"))
    count = f"{sum(gain > 0 for gain in plain)}, {sum(gain < 0 for gain in plain)}"
    return [with_error(plain), count, with_error(moved)]


def with_error(values):
    if len(values) < 2:
        return f"{values[0]:+.2f}"
    return f"{statistics.mean(values):+.2f} ± {statistics.stdev(values) / len(values) ** 0.5:.2f}"


def option(words, name, usual):
    """The comma-separated values of an option, which is taken out of `words`."""
    if name not in words:
        return usual
    place = words.index(name)
    _, value = words.pop(place), words.pop(place)
    return value.split(",")


if __name__ == "__main__":
    job, scratch, *extra = sys.argv[1:]
    scratch = Path(scratch).resolve()
    scratch.mkdir(parents=True, exist_ok=True)
    chosen, seeds = option(extra, "--starts", list(STARTS)), option(extra, "--seeds", SEEDS)
    if job != "table":
        measure(job, scratch, chosen, seeds, extra)
    table(scratch)
