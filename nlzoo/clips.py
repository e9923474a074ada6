"""Which frames of a video, and which part of them, the network is shown.

One function, `views`, says it for validation, `eval` and `predict`; `training_view` draws it anew for each epoch.
A clip stays uint8 `(T, H, W, 3)` until it is on the device, where `to_input` normalises it.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from .spec import ClipSpec

# Frames are decoded with this shorter side, per pixel of the crop: paper, 256 for 224.
DECODE_RATIO = 8 / 7
MIN_WINDOW = 0.8  # of the video, that the spread frames of a training clip lie in
MIN_AREA = 0.5  # of the frame, that a training crop keeps at least
FLIP = 0.5


@dataclass(frozen=True)
class View:
    """One look at a video: which frames, and which rectangle of each, in fractions of height and width."""

    indices: tuple[int, ...]  # T frame numbers
    top: float = 0.0
    left: float = 0.0
    height: float = 1.0
    width: float = 1.0
    flip: bool = False


def frame_indices(total: int, clip: ClipSpec, rng: np.random.Generator | None = None) -> tuple[int, ...]:
    """T frame numbers of a video of `total` frames; the same each time, or drawn by `rng`.

    Spread (`stride` None): the middles of T equal parts (but for rounding) of the video, or of a random window of at
    least `MIN_WINDOW` of it. Drawn one by one, frames would lie at another distance in every pair, and what moves at one
    speed would move at all: no temporal kernel learns from that. Dense: T frames `stride` apart. A video too short for
    that is spread; one of fewer than T frames repeats some.
    """
    span = (clip.frames - 1) * (clip.stride or 0) + 1
    spread = clip.stride is None or span > total
    if spread:
        least = max(min(clip.frames, total), math.ceil(MIN_WINDOW * total))
        span = int(rng.integers(least, total + 1)) if rng is not None else total
    room = total - span
    start = int(rng.integers(room + 1)) if rng is not None else room // 2
    if not spread:
        return tuple(range(start, start + span, clip.stride))
    edges = [start + i * span // clip.frames for i in range(clip.frames + 1)]
    return tuple((low + max(low + 1, high) - 1) // 2 for low, high in zip(edges, edges[1:]))


def views(total: int, clip: ClipSpec) -> list[View]:
    """What validation, `eval` and `predict` look at: the whole of each frame, once."""
    return [View(frame_indices(total, clip))]


def training_view(total: int, clip: ClipSpec, flip: bool, rng: np.random.Generator) -> View:
    """Random frames, a random rectangle of at least `MIN_AREA` of the frame (Inception style), and a flip half the time."""
    indices = frame_indices(total, clip, rng)
    side = math.sqrt(rng.uniform(MIN_AREA, 1))
    stretch = math.exp(rng.uniform(-1, 1) * math.log(4 / 3) / 2)
    height, width = min(side * stretch, 1.0), min(side / stretch, 1.0)
    return View(indices, rng.uniform(0, 1 - height), rng.uniform(0, 1 - width), height, width,
                flip and rng.random() < FLIP)


def decode_side(clip: ClipSpec) -> int:
    """Shorter side, pixels, that frames are decoded at."""
    return round(clip.size * DECODE_RATIO)


def cut(frames: np.ndarray, view: View, size: int) -> torch.Tensor:
    """The view's rectangle of uint8 `(T, H, W, 3)` frames as uint8 `(T, size, size, 3)`, antialiased."""
    total, height, width, _ = frames.shape
    top, left = round(view.top * height), round(view.left * width)
    bottom = min(height, top + max(1, round(view.height * height)))
    right = min(width, left + max(1, round(view.width * width)))
    part = torch.from_numpy(frames[:, top:bottom, left:right]).permute(0, 3, 1, 2)
    part = F.interpolate(part, (size, size), mode="bilinear", antialias=True)
    part = part.permute(0, 2, 3, 1)
    return part.flip(2).contiguous() if view.flip else part.contiguous()


def to_input(clips: torch.Tensor, clip: ClipSpec) -> torch.Tensor:
    """uint8 `(B, T, H, W, 3)` as normalised float32 `(B, 3, T, H, W)`, on the device where it lies."""
    mean = torch.tensor(clip.mean, device=clips.device) * 255
    std = torch.tensor(clip.std, device=clips.device) * 255
    return ((clips.float() - mean) / std).permute(0, 4, 1, 2, 3)
