"""Wrong frames and CPU time per clip: nlzoo's door, decord through it, and decord alone.

    python tests/bench/decode.py [--clips 20] [--seed 0]
    python tests/bench/decode.py --mutants 2000
    python tests/bench/decode.py --loader
    python tests/bench/decode.py --opens 20000

Wrong frames: random frames of every video that tests/drawn.py makes and of the odd and real ones in ../shared,
against a decode of the whole file. CPU time: the same random clips by each reader in turn, one thread, fresh readers.
Mutants: files with flipped, zeroed, cut, doubled or random bytes, each read as three clips. Loader: training clips of
8 spread frames, 224 pixels, through `data.load` with 1 and 2 workers, against as many processes that only decode the
same frames: PyAV (seek, walk, scale), decord, torchcodec where it imports; and prepared files. Opens: resident memory
of one process that reads a clip of a new file so many times.
"""

import argparse
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median

import av
import numpy as np

REPO = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPO), str(REPO / "tests")]

from decoded import MUTATED, REFUSED, decode_all, mutant, mutant_outcomes
from drawn import MADE, drawing, encode

from nlzoo.apps import prepare
from nlzoo.core.view_spec import ClipSpec
from nlzoo.videos import clips, loader, records, scanning, video

try:
    from torchcodec.decoders import VideoDecoder
except (ImportError, RuntimeError):  # its FFmpeg is missing
    VideoDecoder = None


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


def raw_pyav(task):
    """What most loaders do: seek before the frame, walk to it, scale it."""
    path, indices, side = task
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        step = 1 / (stream.average_rate * stream.time_base)
        size = dict(zip(("height", "width"), video.scaled_size(stream.height, stream.width, side)))
        out, at, walk = [], None, None
        for index in indices:
            if at is None or index - at > 12:
                container.seek(round(index * step), stream=stream)
                walk = container.decode(stream)
            for frame in walk:
                at = round(frame.pts / step)
                if at >= index:
                    break
            out.append(frame.to_ndarray(format="rgb24", **size))
    return len(np.stack(out))


def raw_decord(task):
    path, indices, side = task
    reader = video.decord.VideoReader(str(path), num_threads=1)
    height, width = video.scaled_size(*reader[0].shape[:2], side)
    return len(
        video.decord.VideoReader(str(path), num_threads=1, width=width, height=height)
        .get_batch(list(indices))
        .asnumpy()
    )


def raw_torchcodec(task):
    path, indices, side = task
    return len(VideoDecoder(str(path), num_ffmpeg_threads=1).get_frames_at(list(indices)).data)  # unscaled


def spent():
    """CPU seconds of this process and of those that it has waited for."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def copies(file, folder, count):
    """Files with the same video and other bytes behind it, in two classes."""
    for n in range(count):
        place = folder / "ab"[n % 2] / f"{n}{file.suffix}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(file.read_bytes() + b"\0\0\0\x0cfree" + n.to_bytes(4, "big"))
    return folder


def loading(shared, folder, seed, rounds=3, count=24):
    clip = ClipSpec(8, None, 224)
    b = {"bf": "3", "crf": "23"}
    calm = {256: drawing(300, 256, 340) // 4 + 96, 1080: drawing(120, 1080, 1920) // 4 + 96}
    sets = {
        "340x256, 300 frames, GOP 250": copies(
            encode(folder / "a.mp4", calm[256], options=b, gop=250), folder / "1", count
        ),
        "340x256, 300 frames, GOP 12": copies(
            encode(folder / "b.mp4", calm[256], options=b, gop=12), folder / "2", count
        ),
        "1920x1080, 120 frames, GOP 60": copies(
            encode(folder / "c.mp4", calm[1080], options=b, gop=60), folder / "3", 8
        ),
    }
    if shared.is_dir():
        sets["60 real mpeg4 avi, 720x480"] = shared / "videos" / "interactions"
    raw = {"PyAV alone": raw_pyav, "decord alone": raw_decord} | (
        {"torchcodec alone": raw_torchcodec} if VideoDecoder else {}
    )
    print(f"clips a second of wall time, and CPU ms a clip, medians of {rounds} rounds\n")
    print(
        f"| videos | workers | nlzoo | prepared | {' | '.join(raw)} | nlzoo / PyAV alone, by CPU |\n"
        f"|---|---:|{'---:|' * (len(raw) + 3)}",
        flush=True,
    )
    for name, root in sets.items():
        found = scanning.scan(root)
        source = loader.Clips(root, found.items, clip, seed=seed)
        small = folder / f"{name} prepared"
        prepare.prepare([i.path for i in found.items], root, small, workers=2)
        fast = loader.Clips(small, scanning.scan(small).items, clip, seed=seed)
        for workers in (1, 2):
            jobs = {"nlzoo": source, "prepared": fast} | raw
            figures = {job: [] for job in jobs}
            for n in range(rounds):
                batches = loader.epoch_batches(len(found.items), 8, seed, n)
                tasks = [raw_task(source, *key) for batch in batches for key in batch]
                for job, how in random.Random(n).sample(list(jobs.items()), len(jobs)):
                    begin, cpu = time.monotonic(), spent()
                    if job in raw:
                        with multiprocessing.Pool(workers) as processes:
                            done = len(list(processes.imap(how, tasks)))
                            processes.close()
                            processes.join()
                    else:
                        done = sum(len(indices) for indices, _, _ in loader.load(how, batches, workers))
                    figures[job].append((done / (time.monotonic() - begin), 1000 * (spent() - cpu) / done))
            summary = {job: np.median(rows, 0) for job, rows in figures.items()}
            cells = " | ".join(f"{rate:.1f}, {cpu:.1f} ms" for rate, cpu in summary.values())
            print(
                f"| {name} | {workers} | {cells} | {summary['PyAV alone'][1] / summary['nlzoo'][1]:.2f} |", flush=True
            )


def raw_task(source, epoch, index):
    """(path, indices, short side) of a training clip."""
    path = source.root / source.items[index].path
    rng = np.random.default_rng([source.seed, epoch, index])
    return path, clips.frame_indices(records.probe(path).frames, source.clip, rng), clips.decode_side(source.clip)


def opens(folder, count, seed):
    """Resident memory while one process reads clip after clip, each of a file with a name of its own."""
    file = encode(folder / "a.mp4", drawing(40, 64, 96), gop=12)
    rng, link = random.Random(seed), folder / "link.mp4"
    for n in range(count + 1):
        if n % (count // 10) == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            print(f"{n:7,} clips: {pages * resource.getpagesize() / 2**20:7.1f} MiB", flush=True)
        link.unlink(missing_ok=True)
        link.symlink_to(file)
        os.utime(file, ns=(n, n))  # so that what was known of the file counts no more
        video.read_frames(link, sorted(rng.sample(range(40), 8)), 64)


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
    options.add_argument("--loader", action="store_true", help="the loader instead of the rest")
    options.add_argument("--opens", type=int, default=0, help="memory over so many clips instead of the rest")
    chosen = options.parse_args()
    shared = REPO.parent / "shared" / "data"
    print(f"seed {chosen.seed}; " + "; ".join(f"{name} {text}" for name, text in video.backends().items()) + "\n")
    with tempfile.TemporaryDirectory() as folder:
        if chosen.mutants:
            return damage(Path(folder), chosen.mutants, chosen.seed)
        if chosen.opens:
            return opens(Path(folder), chosen.opens, chosen.seed)
        if chosen.loader:
            os.environ["NLZOO_CACHE"] = folder
            return loading(shared, Path(folder), chosen.seed)
        exactness(shared, Path(folder), chosen.seed)
        speed(shared, Path(folder), chosen.clips, chosen.seed)


if __name__ == "__main__":
    main()
