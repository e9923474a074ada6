"""What a non-local block joins: drawn clips whose label is whether two squares are of one colour, near or far apart.

    python tests/bench/far.py SCRATCH                 # all rows, seeds 0, 1, 2: resumable, some 20 s of one core a run
    python tests/bench/far.py SCRATCH --seeds 0 --tasks far,near

No sum over positions knows whether two colours are the same, so a network must bring both squares to one position. The
network is so small that its layers' reach is known: a stem over patches of 4 x 4, two convolutions, the block, one more
convolution, the mean over all positions. Convolutions reach 3 patches to each side; I3D's reach 2 frames. What lies 7
patches or 7 frames apart is joined by a block or by nothing; what lies side by side in one frame (`near`, the control)
by every network. All have the same steps, rate and clips; clips are drawn anew for each step and never repeat.
"""

import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from bench_recipe import option
from torch import nn

from nlzoo import NonLocalBlock

FRAMES, ROWS, COLUMNS, PATCH = 8, 4, 8, 4  # the clip is 8 x 16 x 32, of patches of 4 x 4
COLOURS = np.array([(230, 40, 40), (40, 200, 60), (60, 80, 235), (230, 210, 40)])
STEPS, BATCH, RATE = 300, 32, 4e-3
TASKS = ("near", "space", "time", "far")
NETWORKS = {  # temporal kernel, span of the block
    "C2D": (1, None),
    "I3D": (3, None),
    "C2D, space": (1, "space"),
    "C2D, time": (1, "time"),
    "C2D, spacetime": (1, "spacetime"),
    "I3D, spacetime": (3, "spacetime"),
}


def places(task, rng):
    """Frame, row and column of the two squares."""
    rows, column, frame = rng.integers(ROWS, size=2), rng.integers(COLUMNS - 1), rng.integers(FRAMES)
    if task == "near":
        return (frame, rows[0], column), (frame, rows[0], column + 1)
    columns = (column, column) if task == "time" else rng.permutation([0, COLUMNS - 1])
    frames = (frame, frame) if task == "space" else rng.permutation([0, FRAMES - 1])
    if task == "time":
        rows[1] = rows[0]
    return tuple(zip(frames, rows, columns))


def draw(task, count, rng):
    """`(clips, labels)`: float32 `(count, 3, 8, 16, 32)`, normalised; 1 where both squares have one colour."""
    cells = rng.integers(106, 115, (count, FRAMES, ROWS, COLUMNS, 3))
    labels = rng.integers(2, size=count)
    for clip, same in zip(cells, labels):
        first = rng.integers(len(COLOURS))
        second = first if same else (first + rng.integers(1, len(COLOURS))) % len(COLOURS)
        for place, colour in zip(places(task, rng), (first, second)):
            clip[place] = COLOURS[colour]
    pixels = cells.repeat(PATCH, 2).repeat(PATCH, 3)
    pixels = pixels + rng.integers(-10, 11, (*pixels.shape[:-1], 1))
    clips = ((pixels / 255 - 0.45) / 0.22).astype(np.float32)
    return torch.from_numpy(clips).permute(0, 4, 1, 2, 3), torch.from_numpy(labels)


def convolution(inputs, outputs, kernel, stride=1):
    padding = [size // 2 if stride == 1 else 0 for size in kernel]
    layer = nn.Conv3d(inputs, outputs, kernel, (1, stride, stride), padding, bias=False)
    return nn.Sequential(layer, nn.BatchNorm3d(outputs), nn.ReLU())


def network(temporal, span):
    return nn.Sequential(
        convolution(3, 32, (1, PATCH, PATCH), PATCH),
        convolution(32, 32, (temporal, 3, 3)),
        convolution(32, 32, (1, 3, 3)),
        NonLocalBlock(32, span=span, subsample="none") if span else nn.Identity(),
        convolution(32, 64, (temporal, 3, 3)),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(64, 2),
    )


def train(task, name, seed):
    """Top-1 on 1,000 clips that were not trained on."""
    torch.manual_seed(seed)
    rng, net = np.random.default_rng(seed), network(*NETWORKS[name])
    optimizer = torch.optim.AdamW(net.parameters(), RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, STEPS, pct_start=0.1)
    for _ in range(STEPS):
        clips, labels = draw(task, BATCH, rng)
        nn.functional.cross_entropy(net(clips), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    net.eval()
    right = []
    with torch.inference_mode():
        for _ in range(10):
            clips, labels = draw(task, 100, rng)
            right.append((net(clips).argmax(1) == labels).float().mean().item())
    return statistics.mean(right)


def read(scratch):
    """What finished before: `{(task, name, seed): top-1}`."""
    file = scratch / "far.jsonl"
    lines = map(json.loads, file.read_text().splitlines() if file.is_file() else [])
    return {(line["task"], line["network"], line["seed"]): line["top1"] for line in lines}


def show(scratch):
    """The table: mean over the seeds, lowest and highest where they differ."""
    known = read(scratch)
    print("| network | " + " | ".join(TASKS) + " |")
    print("|---" * (len(TASKS) + 1) + "|")
    for name in NETWORKS:
        cells = []
        for task in TASKS:
            top1 = [value for key, value in known.items() if key[:2] == (task, name)]
            spread = f" ({min(top1):.2f}-{max(top1):.2f})" if len(top1) > 1 else ""
            cells.append(f"{statistics.mean(top1):.2f}{spread}" if top1 else "")
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    scratch, *extra = sys.argv[1:]
    scratch = Path(scratch).resolve()
    scratch.mkdir(parents=True, exist_ok=True)
    tasks = option(extra, "--tasks", list(TASKS))
    for seed in map(int, option(extra, "--seeds", ["0", "1", "2"])):
        for task in tasks:
            for name in NETWORKS:
                if (task, name, seed) in read(scratch):
                    continue
                began = time.process_time()
                done = {"task": task, "network": name, "seed": seed, "top1": train(task, name, seed)}
                with open(scratch / "far.jsonl", "a") as opened:
                    print(json.dumps(done | {"cpu_seconds": round(time.process_time() - began, 1)}), file=opened)
    show(scratch)
