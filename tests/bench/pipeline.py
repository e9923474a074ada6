"""CPU time per clip: a 1080p video, the same prepared (`nlzoo prepare`), and its frames from the cache (`--cache`).

    python -m tests.bench pipeline [--clips 20] [--seed 0]

Clips of 8 frames, spread over the video and dense, at short sides 256 and 128, by each way in turn; the packets of a
file are walked (`probe`) before, once, as a run does. The source is generated: 10 s at 30 frames a second, panned,
with something that moves in front and the noise of a camera.
"""

import argparse
import os
import random
import tempfile
import time
from pathlib import Path
from statistics import median

import av
import numpy as np
import torch

from nlzoo.core.view_spec import ClipSpec
from nlzoo.videos import clips, frame_cache, video
from nlzoo.videos.encode import transcode

CLIPS = {"8 spread": ClipSpec(8), "8 x 8": ClipSpec(8, 8)}


def texture(rng, height, width, cell):
    """Smooth blobs of `cell` pixels, uint8 (height, width, 3)."""
    small = torch.from_numpy(rng.integers(0, 256, (1, 3, height // cell + 2, width // cell + 2)).astype(np.float32))
    return (
        torch.nn.functional.interpolate(small, (height, width), mode="bicubic")
        .clamp(0, 255)[0]
        .permute(1, 2, 0)
        .numpy()
        .astype(np.uint8)
    )


def scene(frames, rng, height=1080, width=1920):
    back = texture(rng, height + 400, width + 400, 30) // 3 + texture(rng, height + 400, width + 400, 150) // 2
    front, noise = (
        texture(rng, height // 2, width // 6, 40),
        rng.integers(-3, 4, (height + 64, width + 64, 1), np.int16),
    )
    for i in range(frames):
        y, x = int(200 + 150 * np.sin(i / 40)), int(200 + 150 * np.cos(i / 55))
        image = back[y : y + height, x : x + width].copy()
        at = int((width - width // 6) * (0.5 + 0.45 * np.sin(i / 20)))
        image[height // 4 : height // 4 + height // 2, at : at + width // 6] = front
        a, b = rng.integers(0, 64, 2)
        yield np.clip(image + noise[a : a + height, b : b + width], 0, 255).astype(np.uint8)


def write(path, images, gop):
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=30, options={"crf": "23", "preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = 1080, 1920, "yuv420p"
        stream.codec_context.gop_size = gop
        for image in images:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode())
    return path


def spent(call, *words) -> float:
    """CPU milliseconds."""
    begin = time.process_time()
    call(*words)
    return (time.process_time() - begin) * 1000


def compare(source, prepared, cache, side, clip, count, seed) -> list[float]:
    """CPU ms per clip from source, prepared, cached: medians of `count` clips, read by the three in random order."""
    ways = {
        "source": lambda indices: video.read_frames(source, indices, side),
        "prepared": lambda indices: video.read_frames(prepared, indices, side),
        "cached": lambda indices: frame_cache.read_frames(source, indices, side, cache),
    }
    rng, times = random.Random(seed), {way: [] for way in ways}
    for number in range(count):
        indices = clips.frame_indices(300, clip, np.random.default_rng(number))
        for way in rng.sample(list(ways), len(ways)):
            times[way].append(spent(ways[way], indices))
    return [median(found) for found in times.values()]


def size(path) -> str:
    return f"{os.path.getsize(path) / 1e6:.1f}"


def measure(folder, gop, count, seed) -> list[str]:
    """Rows of the second table; prints those of the first."""
    source = write(folder / f"{gop}.mp4", scene(300, np.random.default_rng(seed)), gop)
    prepared, cache, rows = folder / f"{gop}-256.mp4", folder / f"cache {gop}", []
    print(f"| {gop} | source | {size(source)} | | {spent(video.probe, source):.0f} |")
    seconds = spent(transcode, source, prepared) / 1000
    print(f"| {gop} | prepared | {size(prepared)} | {seconds:.1f} | {spent(video.probe, prepared):.0f} |", flush=True)
    for side in (256, 128):
        before = set(cache.glob("*"))
        seconds = spent(frame_cache.read_frames, source, [0], side, cache) / 1000
        print(
            f"| {gop} | cached, {side} | {size((set(cache.glob('*')) - before).pop())} | {seconds:.1f} | |", flush=True
        )
        for what, clip in CLIPS.items():
            slow, quick, kept = compare(source, prepared, cache, side, clip, count, seed)
            rows.append(
                f"| {gop} | {side} | {what} | {slow:.0f} | {quick:.1f} | {slow / quick:.0f}x "
                f"| {kept:.2f} | {slow / kept:.0f}x |"
            )
    return rows


def main(arguments):
    options = argparse.ArgumentParser(prog="pipeline", description=__doc__.splitlines()[0])
    options.add_argument("--clips", type=int, default=20)
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args(arguments)
    torch.set_num_threads(1)
    print("| GOP | file | MB | CPU s to make | CPU ms to probe |\n|---|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for gop in (250, 60) for row in measure(Path(folder), gop, chosen.clips, chosen.seed)]
    print(
        "\nCPU ms per clip:\n\n| GOP | short side | clip | source | prepared | ratio | cached | ratio |\n"
        "|---|---:|---|---:|---:|---:|---:|---:|"
    )
    print("\n".join(rows))
