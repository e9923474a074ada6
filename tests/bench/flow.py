"""Frames of flow a second, beside OpenCV alone: the same video decoded, scaled, made grey and handed to DIS.

    python -m tests.bench flow [VIDEO…] [--side 256] [--frames 200] [--rounds 5]

Without videos one is drawn, of 320x240 pixels. `OpenCV` is its own `VideoCapture`, `resize`, `cvtColor` and DIS in a
loop; `DIS alone` only the last of these, on frames in memory. `nlzoo` is `streams.read_frames`, decoded by PyAV and
scaled by FFmpeg's filter, rounded to bytes; `first` fills a cache (`--cache`), `again` reads from it. One thread,
CPU time; the readers take turns, and the fastest round counts.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from nlzoo.videos import encode, flow, frame_cache, streams, video


def drawn(folder: Path, frames: int) -> Path:
    """A soft texture that moves by (3, -2) pixels a frame, 320x240."""
    rng = np.random.default_rng(0)
    texture = cv2.GaussianBlur(rng.random((240 + 2 * frames, 320 + 3 * frames, 3)).astype(np.float32), (0, 0), 2)
    texture = (255 * (texture - texture.min()) / np.ptp(texture)).astype(np.uint8)
    places = [(2 * t, 3 * (frames - t)) for t in range(frames)]
    path = folder / "drawn.mp4"
    encode.write_video(path, np.stack([texture[y : y + 240, x : x + 320] for y, x in places]), 25)
    return path


def by_opencv(path: Path, size: tuple[int, int], frames: int) -> None:
    reader, dis, before = (
        cv2.VideoCapture(str(path)),
        cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM),
        None,
    )
    for _ in range(frames):
        read, image = reader.read()
        if not read:
            return
        grey = cv2.cvtColor(cv2.resize(image, size[::-1], interpolation=cv2.INTER_CUBIC), cv2.COLOR_BGR2GRAY)
        if before is not None:
            dis.calc(before, grey, None)
        before = grey


def dis_alone(greys: list[np.ndarray]) -> None:
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    for first, second in zip(greys, greys[1:]):
        dis.calc(first, second, None)


def measure(path: Path, side: int, frames: int, rounds: int) -> dict[str, float]:
    """Frames a second of CPU time by each way."""
    info = video.probe(path)
    count = min(frames, info.frames)
    numbers = range(count - 1)
    size = video.scaled_size(info.height, info.width, side)
    greys = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in video.read_frames(path, range(count), side)]
    with tempfile.TemporaryDirectory() as folder:
        caches = iter(Path(folder) / str(n) for n in range(rounds))
        ways: dict[str, Callable[[], object]] = {
            "DIS alone": lambda: dis_alone(greys),
            "OpenCV": lambda: by_opencv(path, size, count),
            "nlzoo": lambda: streams.read_frames(info, numbers, side, "flow"),
            "first": lambda: frame_cache.read_frames(path, numbers, side, next(caches), "flow"),
            "again": lambda: frame_cache.read_frames(path, numbers, side, Path(folder) / "0", "flow"),
        }
        best = dict.fromkeys(ways, float("inf"))
        for _ in range(rounds):
            for name, way in ways.items():
                began = time.process_time()
                way()
                best[name] = min(best[name], time.process_time() - began)
    return {name: (info.frames if name == "first" else count - 1) / seconds for name, seconds in best.items()}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="*", type=Path)
    parser.add_argument("--side", type=int, default=256, help="shorter side, pixels")
    parser.add_argument("--frames", type=int, default=200, help="of each video, at most")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    flow.estimator("flow")
    print(f"OpenCV {cv2.__version__}, shorter side {options.side}, one thread, frames of flow a second of CPU time")
    with tempfile.TemporaryDirectory() as folder:
        for path in options.videos or [drawn(Path(folder), options.frames)]:
            rates = measure(path, options.side, options.frames, options.rounds)
            words = "  ".join(f"{name} {rate:6.1f}" for name, rate in rates.items())
            print(f"{path.name}: {words}  nlzoo / OpenCV {rates['nlzoo'] / rates['OpenCV']:.2f}")
