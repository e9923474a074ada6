"""Which frames of a video, and which part of them, the network is shown.

One function, `views`, says it for validation, `eval` and `predict`; `training_view` draws it anew for each epoch.
docs/augmentation.md has the rules in words. A clip stays uint8 `(T, H, W, C)` until it is on the device, where
`to_input` normalises it.
"""

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F

from ..core.view_spec import Augment, ClipSpec, ViewSpec

# Frames are decoded with this shorter side, per pixel of the crop: paper, 256 for 224.
DECODE_RATIO = 8 / 7
MIN_WINDOW = 0.8  # of the video, that the spread frames of a training clip lie in
JITTER = (256 / 224, 320 / 224)  # shorter side of the frame, per pixel of the crop (paper)
FLIP = ZOOM_OUT = 0.5
ONE_VIEW = ViewSpec()


@dataclass(frozen=True)
class View:
    """What is shown of a video at once: which frames, and which rectangle of each, in fractions of height and width.

    A rectangle that reaches beyond the frame shows its edges repeated there.
    """

    indices: tuple[int, ...]  # T frame numbers
    top: float = 0.0
    left: float = 0.0
    height: float = 1.0
    width: float = 1.0
    flip: bool = False


def frame_indices(
    total: int, clip: ClipSpec, rng: np.random.Generator | None = None, fps: float | None = None
) -> tuple[int, ...]:
    """T frame numbers of a video of `total` frames at `fps`; the same each time, or drawn by `rng`.

    Spread (`stride` None): the middles of T equal parts (but for rounding) of the video, or of a random window of at
    least `MIN_WINDOW` of it. Drawn one by one, frames would lie at another distance in every pair, and everything would
    seem to change its speed: no temporal kernel learns from that. Dense: T frames `stride` apart, or as far apart as
    they would be at `clip.fps`, where both rates are given. A video too short for that is spread; one of fewer than T
    frames repeats some.
    """
    length = _length(total, clip, fps)
    if length is not None:
        return _apart(_start(total - length, rng), clip, fps)
    length = total
    if rng is not None:
        least = max(min(clip.frames, total), math.ceil(MIN_WINDOW * total))
        length = int(rng.integers(least, total + 1))
    return _middles(_start(total - length, rng), length, clip.frames)


def _start(room: int, rng: np.random.Generator | None) -> int:
    """Where a clip begins that leaves `room` frames: in the middle, or drawn."""
    return room // 2 if rng is None else int(rng.integers(room + 1))


def _step(clip: ClipSpec, stride: int, fps: float | None) -> float:
    """Source frames from one frame of a dense clip to the next, not rounded."""
    return stride * fps / clip.fps if clip.fps and fps else stride


def _length(total: int, clip: ClipSpec, fps: float | None) -> int | None:
    """Source frames from the first to the last of a dense clip, both included; None where frames are spread."""
    if clip.stride is None:
        return None
    length = round((clip.frames - 1) * _step(clip, clip.stride, fps)) + 1
    return length if length <= total else None


def _apart(start: int, clip: ClipSpec, fps: float | None) -> tuple[int, ...]:
    step = _step(clip, clip.stride or 1, fps)
    return tuple(start + round(i * step) for i in range(clip.frames))


def _middles(start: int, length: int, parts: int) -> tuple[int, ...]:
    """The middles of `parts` equal parts of `length` frames from `start`; with fewer frames than parts some repeat."""
    edges = [start + i * length // parts for i in range(parts + 1)]
    return tuple((low + max(low + 1, high) - 1) // 2 for low, high in pairwise(edges))


def views(
    total: int, clip: ClipSpec, spec: ViewSpec = ONE_VIEW, aspect: float = 1.0, fps: float | None = None
) -> list[View]:
    """The views of validation, `eval` and `predict`: `spec.num_clips` x `spec.crops`, those of one clip together.

    By default the whole of each frame, once. `aspect`: width / height of the frames. All videos get the same number of
    views; the three crops of a square frame are the same.
    """
    return [
        View(indices, *crop)
        for indices in _clips(total, clip, spec.num_clips, fps)
        for crop in _crops(spec.crops, aspect)
    ]


def in_order(view: View, order: str, rng: np.random.Generator) -> View:
    """The view, its frames in `ViewSpec.order`: true; shuffled by `rng`, never to true; or the middle one T times."""
    count = len(view.indices)
    if order == "true" or count == 1:
        return view
    if order == "one":
        return replace(view, indices=(view.indices[count // 2],) * count)
    places = np.arange(count)
    while np.array_equal(places, np.arange(count)):
        rng.shuffle(places)
    return replace(view, indices=tuple(view.indices[p] for p in places))


def view_side(clip: ClipSpec, spec: ViewSpec) -> int:
    """Side, pixels, of the squares of a test: the clip's, or for three crops the frames' shorter side (paper: 256)."""
    return decode_side(clip) if spec.crops == 3 else clip.size


def _clips(total: int, clip: ClipSpec, count: int, fps: float | None) -> list[tuple[int, ...]]:
    """Dense clips from the first possible start to the last, or spread clips that share one fine spread's frames."""
    if count == 1:
        return [frame_indices(total, clip, fps=fps)]
    length = _length(total, clip, fps)
    if length is None:
        fine = _middles(0, total, clip.frames * count)
        return [fine[k::count] for k in range(count)]
    return [_apart(round(k * (total - length) / (count - 1)), clip, fps) for k in range(count)]


def _crops(count: int | str, aspect: float) -> list[tuple[float, float, float, float]]:
    """`(top, left, height, width)` in fractions: the whole frame, or three squares of the shorter side."""
    if count != 3:
        return [(0.0, 0.0, 1.0, 1.0)]
    height, width = _square(1.0, aspect)
    return [(place * (1 - height), place * (1 - width), height, width) for place in (0, 0.5, 1)]


def _square(side: float, aspect: float) -> tuple[float, float]:
    """(height, width), in fractions of the frame's, of a square whose side is that fraction of the shorter side."""
    return (side, side / aspect) if aspect >= 1 else (side * aspect, side)


def training_view(
    total: int,
    clip: ClipSpec,
    augment: Augment,
    rng: np.random.Generator,
    aspect: float = 1.0,
    fps: float | None = None,
) -> View:
    """Random frames, a random rectangle (`augment.crop` says which) and, with `augment.flip`, a flip half the time.

    With `augment.zoom_out` the rectangle may reach beyond the frame.

    `aspect`: width / height of the frames; `fps`: their mean rate.
    """
    indices = frame_indices(total, clip, rng, fps)
    if augment.crop == "jitter":
        height, width = _square(1 / rng.uniform(*JITTER), aspect)
    else:
        height, width = _area(augment.min_area, rng)
    top, left = rng.uniform(0, 1 - height), rng.uniform(0, 1 - width)
    view = View(indices, top, left, height, width, flip=augment.flip and rng.random() < FLIP)
    if not augment.zoom_out or rng.random() < ZOOM_OUT:
        return view
    return _zoomed_out(view, rng.uniform(0, augment.zoom_out), rng)


def _zoomed_out(view: View, share: float, rng: np.random.Generator) -> View:
    """The view of a frame whose sides are longer by `share`, somewhere in which the video's own lies."""
    above, before = share * rng.random(2)
    side = 1 + share
    return replace(
        view,
        top=view.top * side - above,
        left=view.left * side - before,
        height=view.height * side,
        width=view.width * side,
    )


def _area(least: float, rng: np.random.Generator) -> tuple[float, float]:
    """(height, width) of a rectangle of about `least` of the frame or more (Inception style), of any aspect."""
    side = math.sqrt(rng.uniform(least, 1))
    stretch = math.exp(rng.uniform(-1, 1) * math.log(4 / 3) / 2)
    return min(side * stretch, 1.0), min(side / stretch, 1.0)


def decode_side(clip: ClipSpec) -> int:
    """Shorter side, pixels, that frames are decoded at."""
    return round(clip.size * DECODE_RATIO)


def cut(frames: np.ndarray, view: View, size: int | tuple[int, int]) -> torch.Tensor:
    """The view's rectangle of uint8 `(T, H, W, C)` frames as uint8 `(T, size, size, C)`, antialiased.

    `size`: a side or (height, width), in pixels.
    """
    _, height, width, _ = frames.shape
    rows, columns = _pixels(view.top, view.height, height), _pixels(view.left, view.width, width)
    part = torch.from_numpy(frames[:, rows][:, :, columns]).permute(0, 3, 1, 2)
    part = F.interpolate(part, size, mode="bilinear", antialias=True)
    part = part.permute(0, 2, 3, 1)
    return part.flip(2).contiguous() if view.flip else part.contiguous()


def _pixels(first: float, share: float, length: int) -> np.ndarray:
    """The pixels of `length` that lie in a part, given in fractions; those beyond the ends are the ends again."""
    start = round(first * length)
    end = start + max(1, round(share * length))
    if first >= -1e-9 and first + share <= 1 + 1e-9:  # rounding adds no pixel
        end = min(length, end)
    return np.arange(start, end).clip(0, length - 1)


def to_input(clips: torch.Tensor, clip: ClipSpec) -> torch.Tensor:
    """uint8 `(B, T, H, W, C)` as normalised float32 `(B, C, T, H, W)`, on the device where it lies."""
    mean = torch.tensor(clip.mean, device=clips.device) * 255
    std = torch.tensor(clip.std, device=clips.device) * 255
    return ((clips.float() - mean) / std).permute(0, 4, 1, 2, 3)


def as_pictures(frames: np.ndarray) -> np.ndarray:
    """uint8 `(T, H, W, C)` frames of any stream as pictures `(T, H, W, 3)`: flow as red (x) and green (y)."""
    channels = frames.shape[-1]
    if channels == 3:
        return frames
    if channels == 1:
        return np.repeat(frames, 3, -1)
    return np.concatenate([frames, np.full_like(frames[..., :1], 128)], -1)
