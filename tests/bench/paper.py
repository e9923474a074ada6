"""The paper's tables on any videos: every row trained under one recipe, the published figure beside ours.

    python tests/bench/paper.py spans SCRATCH VIDEOS --backbone resnet18 --weights W.safetensors --seeds 0,1,2
    python tests/bench/paper.py all   SCRATCH VIDEOS # every table; a network that stands in several is trained once
    python tests/bench/paper.py table SCRATCH        # what has been measured in SCRATCH so far

Tables of "Non-local Neural Networks" (CVPR 2018), Kinetics-400 validation, top-1, ResNet-50 but for 2e (ResNet-101):
forms (2a), stages (2b), blocks (2c), spans (2d), kernels (2e), i3d (2f). SCRATCH is a folder outside the project; what
finished there is not run again. Other words go to every `nlzoo finetune`. On GPUs leave --backbone and --weights out.
"""

import json
import sys
from pathlib import Path

from bench_recipe import nlzoo, option, spread

C2D = ("--arch", "c2d")
PLAIN = (*C2D, "--nl", "none")
# table: {row: (words of `nlzoo inflate`, the paper's top-1)}; the first row is what ratios refer to
TABLES = {
    "forms": {
        "C2D": (PLAIN, 71.8),
        "gaussian": ((*C2D, "--nl", "1", "--form", "gaussian"), 72.5),
        "embedded": ((*C2D, "--nl", "1"), 72.7),
        "dot": ((*C2D, "--nl", "1", "--form", "dot"), 72.9),
        "concat": ((*C2D, "--nl", "1", "--form", "concat"), 72.8),
    },
    "stages": {
        "C2D": (PLAIN, 71.8),
        "res2": ((*C2D, "--nl", "res2:1"), 72.7),
        "res3": ((*C2D, "--nl", "res3:1"), 72.9),
        "res4": ((*C2D, "--nl", "res4:1"), 72.7),
        "res5": ((*C2D, "--nl", "res5:1"), 72.3),
    },
    "blocks": {
        "C2D": (PLAIN, 71.8),
        "1 block": ((*C2D, "--nl", "1"), 72.7),
        "5 blocks": ((*C2D, "--nl", "5"), 73.8),
        "10 blocks": ((*C2D, "--nl", "10"), 74.3),
    },
    "spans": {
        "C2D": (PLAIN, 71.8),
        "space": ((*C2D, "--nl", "5", "--span", "space"), 72.9),
        "time": ((*C2D, "--nl", "5", "--span", "time"), 73.1),
        "spacetime": ((*C2D, "--nl", "5"), 73.8),
    },
    "kernels": {
        "C2D": (PLAIN, 73.1),
        "I3D 3x3x3": (("--arch", "i3d-333", "--nl", "none"), 74.1),
        "I3D 3x1x1": (("--nl", "none"), 74.4),
        "NL C2D, 5 blocks": ((*C2D, "--nl", "5"), 75.1),
    },
    "i3d": {
        "C2D": (PLAIN, 71.8),
        "I3D": (("--nl", "none"), 73.3),
        "NL I3D": (("--nl", "5"), 74.9),
    },
}
BASIC = {"5": "res3:1,res4:1", "10": "res3:2,res4:2", "1": "res4:1"}  # ResNet-18 has two residual blocks a stage


def name_of(words):
    """A network's name, by which it is the same in every table."""
    return "-".join(words).replace("--", "").replace(":", "")


def start(scratch, name, words, backbone, weights):
    """The network of a row, inflated once."""
    if (scratch / "weights" / name / "config.json").is_file():
        return
    if backbone in ("resnet18", "tiny"):
        words = [BASIC.get(word, word) for word in words]
    given = ["--weights", weights] if weights else []
    nlzoo(scratch, "inflate", backbone, "--name", name, *words, *given)


def measure(scratch, rows, videos, backbone, weights, seeds, extra):
    """`rows`: `{name: words of nlzoo inflate}`."""
    for seed in seeds:
        for name, words in rows.items():
            start(scratch, name, words, backbone, weights)
            if not (scratch / "runs" / f"{name}-{seed}" / "result.json").is_file():
                run = ["--from", f"weights/{name}", "--name", f"{name}-{seed}", "--seed", seed]
                nlzoo(scratch, "finetune", videos, *run, *extra)


def size(scratch, name):
    """`(parameters, multiply-adds)` of a row's network."""
    info = nlzoo(scratch, "info", f"weights/{name}")
    return info["params"], info["macs"]


def show(scratch):
    print("| table | row | paper | here: top-1, last epoch | log loss | seeds | parameters | multiply-adds |")
    print("|---|---|---|---|---|---|---|---|")
    for table, rows in TABLES.items():
        first = None
        for row, (words, published) in rows.items():
            name = name_of(words)
            files = sorted(scratch.glob(f"runs/{name}-[0-9]*/result.json"))
            if not files:
                continue
            last = [json.loads(f.read_text())["last_top1"] for f in files]
            loss = [json.loads((f.parent / "metrics.jsonl").read_text().splitlines()[-1])["loss"] for f in files]
            now = size(scratch, name)
            first = first or now
            figures = f"{spread(last)} | {spread(loss)} | {len(last)}"
            ratios = " | ".join(f"{mine / base:.2f}" for mine, base in zip(now, first))
            print(f"| {table} | {row} | {published} | {figures} | {ratios} |")


if __name__ == "__main__":
    table, scratch, *extra = sys.argv[1:]
    scratch = Path(scratch).resolve()
    scratch.mkdir(parents=True, exist_ok=True)
    if table != "table":
        backbone, weights = option(extra, "--backbone", ["resnet50"])[0], option(extra, "--weights", [None])[0]
        seeds = option(extra, "--seeds", ["0"])
        videos = Path(extra.pop(0)).resolve()
        tables = TABLES.values() if table == "all" else [TABLES[table]]
        rows = {name_of(words): words for rows in tables for words, _ in rows.values()}
        measure(scratch, rows, videos, backbone, weights and Path(weights).resolve(), seeds, extra)
    show(scratch)
