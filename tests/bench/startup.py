"""CPU seconds of commands that do little, from process start to end.

    python -m tests.bench startup [--rounds 3]

Each command runs in a process of its own, in turns; the figure is user and system time of the process and its children,
which other work on the machine moves less than the clock. `info` twice: before and after something was kept. Then how
far `finetune` of the demo's network has come after so much CPU time of its own process, up to its first step: with the
linear probe that is the baseline to beat, and without.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from nlzoo.apps import demo, draw

from . import timing

NAMED = "nl5-i3d-r50-8x8"
MODEL = "weights/tiny-nl5"
COMMANDS = {
    "python alone": ["-c", "pass"],
    "import torch": ["-c", "import torch"],
    "nlzoo --help": ["-m", "nlzoo", "--help"],
    "nlzoo list": ["-m", "nlzoo", "list"],
    "an error (finetune nowhere)": ["-m", "nlzoo", "finetune", "nowhere"],
    "nlzoo info MODEL, again": ["-m", "nlzoo", "info", MODEL],
    "nlzoo info NAME, again": ["-m", "nlzoo", "info", NAMED],
    "nlzoo info NAME, nothing kept": ["-m", "nlzoo", "info", NAMED],
}


def cpu_seconds(words: list[str], folder: Path, cache: Path) -> float:
    """Of one process and its children, user and system."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "NLZOO_CACHE": str(cache), "PYTHONPATH": str(timing.ROOT)}
    subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


PROBES = ("baseline", "none")  # the default, and the step alone
FIRST_STEP = """
import resource, sys
from nlzoo import finetune
from nlzoo.training.callbacks import Callbacks
class Enough(BaseException): pass
seen = set()
def mark(name):
    used = resource.getrusage(resource.RUSAGE_SELF)
    name in seen or print(f"  {used.ru_utime + used.ru_stime:6.2f} s: {name}", flush=True)
    seen.add(name)
def step(done):
    mark(done.phase)
    if done.phase == "train": raise Enough
mark("imported nothing heavy yet")
try:
    finetune("videos", "weights/tiny-nl5", Callbacks(log=lambda event: mark(event.code), step=step),
             epochs=6, lr=3e-3, device="cpu", frames=8, size=48, name=sys.argv[1], recipe=sys.argv[2])
except Enough: pass
"""


def first_step(folder: Path, cache: Path, name: str, probe: str) -> str:
    """The phases of a run up to its first step, with the CPU time of its process at each."""
    environment = {**os.environ, "NLZOO_CACHE": str(cache), "PYTHONPATH": str(timing.ROOT)}
    words = [sys.executable, "-c", FIRST_STEP, name, f"probe={probe}"]
    return subprocess.run(words, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE).stdout.rstrip()


def main(arguments: list[str]) -> None:
    """Prints median and spread of each command."""
    parser = argparse.ArgumentParser(prog="startup", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        folder, cache = Path(scratch), Path(scratch, "cache")
        words = ["-m", "nlzoo", "inflate", "tiny", "--nl", "res4:1", "--name", Path(MODEL).name]
        cpu_seconds(words, folder, cache)
        cpu_seconds(COMMANDS["nlzoo info NAME, again"], folder, cache)
        times: dict[str, list[float]] = {name: [] for name in COMMANDS}
        draw.write_videos(folder / "videos", demo.CLASSES, demo.PER_CLASS, 0, demo.FRAMES, demo.SIZE)
        steps = {probe: [first_step(folder, cache, f"{probe}{n}", probe) for n in range(2)][-1] for probe in PROBES}
        for turn in range(options.rounds):
            for name, words in COMMANDS.items():
                kept = Path(scratch, f"new{turn}") if "nothing kept" in name else cache
                times[name].append(cpu_seconds(words, folder, kept))
    print(timing.machine(torch.device("cpu")))
    for name, values in times.items():
        print(f"  {name:32} {statistics.median(values):5.2f} s of CPU, {min(values):.2f} to {max(values):.2f}")
    for probe, phases in steps.items():
        print(f"finetune of tiny with a non-local block on the demo's videos, second run, probe={probe}:\n{phases}")
