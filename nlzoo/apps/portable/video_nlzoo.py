"""A clip of a video as nlzoo cuts it, with av: the frames of the middle or spread; with torch, squeezed to a square.

    clips = read_clip("video.mp4", about)        # (1, 3, T, S, S), normalised; with torch
    frames = read_frames("video.mp4", about)     # uint8 (T, H, W, 3); without

Frames are counted by decoding, so it holds for every file that decodes from start to end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import av
import numpy as np
from av.container import InputContainer
from av.filter import Graph
from av.video.stream import VideoStream

if TYPE_CHECKING:
    import torch


def read_clip(video: str, about: Mapping[str, Any]) -> torch.Tensor:
    """The clip that a network with `about` (frames, stride, fps, size, mean, std) is shown: float32 (1, 3, T, S, S)."""
    import torch

    return squeeze(torch.from_numpy(read_frames(video, about)), about)


def read_frames(video: str, about: Mapping[str, Any]) -> np.ndarray:
    """The frames of that clip before they are squeezed: uint8 (T, H, W, 3), the shorter side 8/7 of the square's."""
    times: list[float | None] = [frame.time for frame in decoded(video)]
    if not times:
        raise ValueError(f"{video} has no frames that can be decoded")
    numbers = clip_numbers(len(times), about["frames"], about["stride"], about["fps"], rate_of(video, times))
    images = read_images(video, set(numbers), round(about["size"] * 8 / 7))
    return np.stack([images[number] for number in numbers])


def squeeze(frames: torch.Tensor, about: Mapping[str, Any]) -> torch.Tensor:
    """uint8 frames (T, H, W, 3) as a normalised clip (1, 3, T, S, S)."""
    import torch

    size = about["size"], about["size"]
    pixels = torch.nn.functional.interpolate(frames.permute(0, 3, 1, 2), size, mode="bilinear", antialias=True)
    mean, std = (torch.tensor(about[key]).view(3, 1, 1, 1) * 255 for key in ("mean", "std"))
    return ((pixels.permute(1, 0, 2, 3).float() - mean) / std).unsqueeze(0)


def clip_numbers(total: int, frames: int, stride: int | None, fps: float | None, rate: float) -> list[int]:
    """Numbers of `frames` of `total`: `stride` apart (at `fps`) in the middle; else the middles of equal parts."""
    step = float(stride or 1) * (rate / fps if fps and rate else 1.0)
    length = round((frames - 1) * step) + 1
    if stride and length <= total:
        return [(total - length) // 2 + round(n * step) for n in range(frames)]
    edges = [n * total // frames for n in range(frames + 1)]
    return [(low + max(low + 1, high) - 1) // 2 for low, high in zip(edges, edges[1:])]


def rate_of(video: str, times: list[float | None]) -> float:
    """Mean frames a second: the header's, unless the times of the frames say something else."""
    with av.open(video) as container:
        stream = video_stream(container)
        rate = float(stream.average_rate or stream.guessed_rate or 25)
    known = [time for time in times if time is not None]
    if len(known) < len(times) or len(times) < 2 or known[-1] <= known[0]:
        return rate
    step = (known[-1] - known[0]) / (len(known) - 1)
    return rate if abs(step * rate - 1) <= 0.01 else 1 / step


def read_images(video: str, numbers: set[int], short_side: int) -> dict[int, np.ndarray]:
    """Frames as RGB (H, W, 3), upright, with `short_side` pixels on the shorter side; bicubic, by FFmpeg's filter."""
    images: dict[int, np.ndarray] = {}
    graph, kind = Graph(), None
    for number, frame in enumerate(decoded(video)):
        if number not in numbers:
            continue
        if kind != (frame.width, frame.height, frame.format.name):
            kind, graph = (frame.width, frame.height, frame.format.name), scaler(frame, short_side)
        graph.push(frame)
        turns = round(frame.rotation / 90)  # counter-clockwise
        images[number] = np.rot90(graph.vpull().to_ndarray(), turns) if turns else graph.vpull().to_ndarray()
    return images


def decoded(video: str) -> Iterator[av.VideoFrame]:
    """All frames, in the order in which they are shown."""
    with av.open(video) as container:
        yield from container.decode(video_stream(container))


def video_stream(container: InputContainer) -> VideoStream:
    """The stream that FFmpeg would play."""
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream):
        raise ValueError(f"{container.name} has no video track")
    return stream


def scaler(frame: av.VideoFrame, short_side: int) -> Graph:
    """FFmpeg's filters that scale such frames to RGB."""
    low, high = min(frame.width, frame.height), max(frame.width, frame.height)
    long_side = max(short_side, round(high * short_side / low))
    width, height = (long_side, short_side) if frame.width > frame.height else (short_side, long_side)
    graph = Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1, 1000)
    )
    scale = graph.add("scale", f"{width}:{height}:flags=bicubic")
    graph.link_nodes(source, scale, graph.add("format", "rgb24"), graph.add("buffersink")).configure()
    return graph
