"""How long a large folder takes to be scanned, at first and again, and in how much memory.

    python -m tests.bench scan SCRATCH [--files 100000] [--workers 2]
    python -m tests.bench scan --leaks 400

Makes that many tiny videos in SCRATCH/videos (ten classes; the same mp4 with another `free` box at its end, so that
no two files have the same bytes), then runs `listing.read`, `records.examine` and `check.check` in a process of its
own: cold (nothing is remembered) and warm, each with its peak memory, workers included. SCRATCH is for you to delete.
`--leaks`: how often `check.find_shortcut` warns of that many random folders, and finds what a tenth as many give
away; no files.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from nlzoo.apps import check
from nlzoo.videos import encode, listing, records


def make(folder, count):
    """`count` videos of 3 frames, 32 x 48, in ten classes; those that are there stay."""
    folder.mkdir(parents=True, exist_ok=True)
    encode.write_video(folder / "one.mp4", np.random.default_rng(0).integers(0, 256, (3, 32, 48, 3), np.uint8))
    content = (folder / "one.mp4").read_bytes()
    for label in range(10):
        (folder / "videos" / f"class {label}").mkdir(parents=True, exist_ok=True)
    for n in range(count):
        path = folder / "videos" / f"class {n % 10}" / f"{n:06d}.mp4"
        if not path.exists():
            path.write_bytes(content + b"\0\0\0\x0cfree" + n.to_bytes(4, "big"))


def scan(folder, workers) -> dict:
    """Seconds of each part; peak memory in MB is what `wait4` says of this process and its largest child."""
    seconds, start = {}, time.perf_counter()

    def lap(name):
        nonlocal start
        seconds[name], start = time.perf_counter() - start, time.perf_counter()

    given = listing.read(folder)
    lap("listing")
    found = records.examine([os.path.join(given.root, item.path) for item in given.items], workers=workers, log=print)
    lap("records")
    digests = records.digests([r.path for r in found], workers, log=print)  # all of one size, the worst case
    lap("digests")
    report = check.check(given, found, digests)
    lap("check")
    assert report.used == len(given.items) == len(digests) and report.could_train, report.reason
    return {"files": report.files, **seconds, "peak": peak()}


def peak() -> tuple[float, float]:
    """Largest memory in MB of this process and of any child that has ended."""
    import resource

    return tuple(resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def random_folder(rng, classes, each):
    """Labels, aspects and seconds that have nothing to do with one another."""
    shapes = rng.choice([4 / 3, 16 / 9, 1.0, 9 / 16, 1.25], rng.integers(2, 6), replace=False)
    aspects = rng.choice(shapes, classes * each, p=rng.dirichlet(np.ones(len(shapes))))
    return (
        np.repeat(np.arange(classes), each).astype(str),
        aspects,
        rng.lognormal(1.5, rng.uniform(0.1, 1), classes * each),
    )


def alarms(count, classes, each, recordings="none"):
    """Random folders that a warning comes for. Recordings: three clips of one class each, or a clip of each class."""
    warned = 0
    for seed in range(count):
        rng = np.random.default_rng([1, seed])
        labels, aspects, seconds = random_folder(rng, classes, each)
        group = {
            "none": None,
            "of one class": np.arange(classes * each) // 3,
            "of all classes": np.tile(np.arange(each), classes),
        }[recordings]
        if group is not None:  # clips of a recording have one shape and much the same length
            aspects, seconds = aspects[group], seconds[group] * rng.lognormal(0, 0.1, len(group))
        groups = [""] * len(labels) if group is None else [f"g{g}" for g in group]
        warned += any(check.find_shortcut(values, labels, groups, seed) for values in (aspects, seconds))
    return warned


def findings(count, classes, each, kind):
    """Of folders where a number gives something away, those that a warning with the right class comes for."""
    right = 0
    for seed in range(count):
        rng = np.random.default_rng([2, seed])
        labels, aspects, seconds = random_folder(rng, classes, each)
        own = np.arange(len(labels)) < each
        values = {
            "one class has a shape of its own": np.where(own, 1.19, aspects),
            "so have 9 in 10 of its clips": np.where(own & (rng.random(len(labels)) < 0.9), 1.19, aspects),
            "one class is three times as long": rng.lognormal(1.5, 0.4, len(labels)) * np.where(own, 3, 1),
        }[kind]
        found = check.find_shortcut(values, labels, [""] * len(labels), seed)
        right += found is not None and found.label == "0"
    return right


def leaks(count):
    print("| random folders: classes x clips | recordings | warned of |\n|---|---|---:|")
    for classes, each, recordings in (
        (5, 12, "none"),
        (5, 12, "of one class"),
        (5, 12, "of all classes"),
        (2, 20, "none"),
        (20, 6, "none"),
    ):
        print(
            f"| {classes} x {each} | {recordings} | {alarms(count, classes, each, recordings)} of {count} |", flush=True
        )
    print("\n| given away | classes x clips | found and named |\n|---|---|---:|")
    for kind in (
        "one class has a shape of its own",
        "so have 9 in 10 of its clips",
        "one class is three times as long",
    ):
        for classes, each in ((2, 12), (5, 12), (20, 12)):
            print(
                f"| {kind} | {classes} x {each} | {findings(count // 10, classes, each, kind)} of {count // 10} |",
                flush=True,
            )


def main(arguments):
    parser = argparse.ArgumentParser(
        prog="scan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scratch", type=Path, nargs="?")
    parser.add_argument("--leaks", type=int, metavar="N")
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.leaks or not asked.scratch:
        return leaks(asked.leaks) if asked.leaks else parser.print_help()
    os.environ["NLZOO_CACHE"] = str(asked.scratch / "cache")
    if asked.one:
        print(json.dumps(scan(asked.scratch / "videos", asked.workers)))
        return
    make(asked.scratch, asked.files)
    records.cache_file().unlink(missing_ok=True)
    print("| scan | files | listing | records | digests | check | in all | files/s | peak MB | of a worker |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for name in ("cold", "warm"):
        words = [
            sys.executable,
            "-m",
            "tests.bench",
            "scan",
            str(asked.scratch),
            "--one",
            "--workers",
            str(asked.workers),
        ]
        row = json.loads(subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])
        parts = [row[part] for part in ("listing", "records", "digests", "check")]
        seconds = " | ".join(f"{p:.2f} s" for p in (*parts, sum(parts)))
        print(
            f"| {name} | {row['files']} | {seconds} | {row['files'] / sum(parts):.0f} | "
            f"{row['peak'][0]:.0f} | {row['peak'][1]:.0f} |",
            flush=True,
        )
    print(f"the memory on disk: {records.cache_file().stat().st_size / 1e6:.1f} MB")
