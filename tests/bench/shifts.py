"""Another place, as far as it can be made from the same clips: one change of each kind at a fixed strength.

What a network of few clips has learnt in one place is asked in the next. These are not the next place, but they move
what does not matter there: light, colour, distance, position, sharpness, rate, compression. Each is alone, and alike
for all frames of a clip; nothing is drawn, so a number can be made again.
"""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F

Frames = np.ndarray  # uint8 (T, H, W, 3)


def _light(factor: float, offset: float = 0.0) -> Callable[[Frames], Frames]:
    return lambda frames: (frames * factor + offset).clip(0, 255).astype(np.uint8)


def _contrast(frames: Frames) -> Frames:
    return ((frames - 110.0) * 0.5 + 110).clip(0, 255).astype(np.uint8)


def _warm(frames: Frames) -> Frames:
    return (frames * np.array([1.25, 1.0, 0.7])).clip(0, 255).astype(np.uint8)


def _grey(frames: Frames) -> Frames:
    grey = frames @ np.array([0.299, 0.587, 0.114])
    return np.repeat(grey[..., None], 3, -1).astype(np.uint8)


def _closer(frames: Frames) -> Frames:
    """The middle 75 % of height and width."""
    _, height, width, _ = frames.shape
    top, left = height // 8, width // 8
    return frames[:, top : height - top, left : width - left]


def _farther(frames: Frames) -> Frames:
    """A third more on all sides, the edges repeated."""
    _, height, width, _ = frames.shape
    return np.pad(frames, ((0, 0), (height // 6,) * 2, (width // 6,) * 2, (0, 0)), mode="edge")


def _aside(frames: Frames) -> Frames:
    """Moved by an eighth of the width and a tenth of the height, the edges repeated."""
    _, height, width, _ = frames.shape
    down, right = height // 10, width // 8
    moved = np.pad(frames, ((0, 0), (down, 0), (right, 0), (0, 0)), mode="edge")
    return moved[:, :height, :width]


def _blurred(frames: Frames) -> Frames:
    """As from an eighth of 112 x 112 pixels more: sampled down to a side of 56 and up again."""
    height, width = frames.shape[1:3]
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
    small = F.interpolate(pixels, (56, round(56 * width / height)), mode="bilinear", antialias=True)
    return F.interpolate(small, (height, width), mode="bilinear").permute(0, 2, 3, 1).numpy()


def _slower_camera(frames: Frames) -> Frames:
    """Every third frame alone."""
    return frames[::3]


SHIFTS: dict[str, Callable[[Frames], Frames]] = {
    "darker": _light(0.5),
    "brighter": _light(1.3, 40),
    "flat": _contrast,
    "warm": _warm,
    "grey": _grey,
    "closer": _closer,
    "farther": _farther,
    "aside": _aside,
    "blurred": _blurred,
    "a third of the frames": _slower_camera,
    "compressed": lambda frames: frames,  # by `write` alone
}
_QUALITY = {"compressed": "42"}  # crf of H.264; 18 is nearly lossless


def write(path: Path, frames: Frames, kind: str, rate: int = 30) -> None:
    """Writes `frames` changed as `kind` says, as H.264 in mp4, both sides even."""
    changed = SHIFTS[kind](frames)
    changed = changed[:, : changed.shape[1] // 2 * 2, : changed.shape[2] // 2 * 2]
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(rate))
        stream.height, stream.width, stream.pix_fmt = changed.shape[1], changed.shape[2], "yuv420p"
        stream.options = {"crf": _QUALITY.get(kind, "18")}
        for frame in changed:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
