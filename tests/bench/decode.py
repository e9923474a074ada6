"""Wrong frames and CPU time per clip: nlzoo's door, decord through it, and decord alone.

    python tests/bench/bench_decode.py [--clips 20] [--seed 0]
    python tests/bench/bench_decode.py --mutants 2000

Wrong frames: random frames of every video that tests/test_video.py makes and of the odd and real ones in ../shared,
against a decode of the whole file. CPU time: the same random clips by each reader in turn, one thread, fresh readers.
Mutants: files with flipped, zeroed, cut, doubled or random bytes, each read as three clips.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median

import numpy as np

REPO = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPO), str(REPO / "tests")]

from test_video import MADE, REFUSED, decode_all, drawing, encode, mutant, mutant_outcomes  # noqa: E402

from nlzoo import video  # noqa: E402


def door(decoder):
    return lambda path, indices, side: video.read_frames(path, indices, side, decoder)


def decord_alone(path, indices, short_side):
    info = video.probe(path)
    size = {}
    if short_side:
        size["height"], size["width"] = video.scaled_size(info.height, info.width, short_side)
    return video.decord.VideoReader(str(path), num_threads=1, **size).get_batch(indices).asnumpy()


def wrong_frames(path, read, seed) -> tuple[int, int, int]:
    """Of 40 random frames: (asked for, given but not that frame, refused)."""
    info, rng = video.probe(path), random.Random(seed)
    truth = [image for _, image in decode_all(path, (info.height, info.width))]
    wrong = refused = 0
    for _ in range(5):
        indices = [rng.randrange(len(truth)) for _ in range(8)]
        try:
            images = read(path, indices, None)
        except Exception:
            refused += 8
            continue
        wrong += sum(image.shape != truth[i].shape or np.abs(image - truth[i].astype(int)).mean() > 4
                     for i, image in zip(indices, images, strict=True))  # fmt: skip
    return 40, wrong, refused


def exactness(shared, folder, seed):
    groups = {f"made: {kind}": [make(fresh(folder))] for kind, make in MADE.items()}
    if shared.is_dir():
        odd = [p for p in sorted((shared / "odd").iterdir()) if p.name not in REFUSED]
        groups["odd files"] = [p for p in odd if p.stat().st_size < 600_000]
        groups["real clips (mpeg4 avi)"] = sorted((shared / "videos").rglob("*.avi"))[::6]
    print("| video | frames asked for | nlzoo: wrong | refused | decord alone: wrong | refused |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, files in groups.items():
        ours = np.sum([wrong_frames(p, door("auto"), seed) for p in files], axis=0)
        theirs = np.sum([wrong_frames(p, decord_alone, seed) for p in files], axis=0)
        print(f"| {name} | {' | '.join(map(str, [*ours, *theirs[1:]]))} |", flush=True)


def fresh(folder) -> Path:
    return Path(tempfile.mkdtemp(dir=folder))


def sources(shared, folder) -> dict[str, Path]:
    b = {"bf": "3", "crf": "23"}
    calm = [drawing(300, h, w) // 4 + 96 for h, w in ((256, 340),)] + [drawing(120, 1080, 1920) // 4 + 96]
    found = {
        "made 340x256, 300 frames, GOP 250": encode(folder / "a.mp4", calm[0], options=b, gop=250),
        "made 340x256, 300 frames, GOP 12": encode(folder / "b.mp4", calm[0], options=b, gop=12),
        "made 1920x1080, 120 frames, GOP 60": encode(folder / "c.mp4", calm[1], options=b, gop=60),
    }
    real = shared / "odd" / "vision__SOX5yA1l24A.mp4"
    return found | ({"real 340x256, 332 frames": real} if real.exists() else {})


def speed(shared, folder, clips, seed):
    readers = {"nlzoo (PyAV)": door("pyav"), "nlzoo (decord)": door("decord"), "decord alone": decord_alone}
    print(f"\nCPU ms per clip, short side 224, median of {clips}:\n")
    print(f"| video | clip | {' | '.join(readers)} |\n|---|---|{'---:|' * len(readers)}")
    for name, path in sources(shared, folder).items():
        frames = video.probe(path).frames
        for length, stride in ((8, 8), (32, 2), (8, 1)):
            rng, spent = random.Random(seed), {reader: [] for reader in readers}
            for _ in range(clips):
                start = rng.randrange(frames - (length - 1) * stride)
                indices = [start + i * stride for i in range(length)]
                for reader in rng.sample(list(readers), len(readers)):
                    begin = time.process_time()
                    readers[reader](path, indices, 224)
                    spent[reader].append(time.process_time() - begin)
            cells = " | ".join(f"{median(times) * 1000:.1f}" for times in spent.values())
            print(f"| {name} | {length} x {stride} | {cells} |", flush=True)


MUTATED = ("h264 mp4 B-frames", "h264 mkv B-frames", "h264 mp4 open GOP", "h264 ts", "hevc mp4 open GOP",
           "mpeg4 avi B-frames", "mpeg4 mp4 B-frames", "wmv2", "vp8 webm", "vp9 webm")  # fmt: skip


def damage(folder, count, seed):
    print("| made from | mutants | file refused | clips exact | frame refused | different | slowest |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for kind in MUTATED:
        data, slowest, outcomes = MADE[kind](fresh(folder)).read_bytes(), 0.0, Counter()
        for number in range(count // len(MUTATED)):
            rng, path = random.Random(f"{seed} {kind} {number}"), Path(folder) / f"{kind} {number}"
            path.write_bytes(mutant(rng, data))
            begin = time.monotonic()
            outcomes += mutant_outcomes(path, rng)
            slowest = max(slowest, time.monotonic() - begin)
            path.unlink()
        cells = [number + 1, outcomes["file refused"], outcomes["exact"], outcomes["frame refused"]]
        cells += [outcomes["different"] + outcomes["wrongly refused"], f"{slowest:.1f} s"]
        print(f"| {kind} | {' | '.join(map(str, cells))} |", flush=True)


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--clips", type=int, default=20)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--mutants", type=int, default=0, help="this many damaged files instead of the rest")
    chosen = options.parse_args()
    shared = REPO.parent / "shared" / "data"
    print(f"seed {chosen.seed}; " + "; ".join(f"{name} {text}" for name, text in video.backends().items()) + "\n")
    with tempfile.TemporaryDirectory() as folder:
        if chosen.mutants:
            return damage(Path(folder), chosen.mutants, chosen.seed)
        exactness(shared, Path(folder), chosen.seed)
        speed(shared, Path(folder), chosen.clips, chosen.seed)


if __name__ == "__main__":
    main()
