"""Optical flow between neighbouring frames of a video, as bytes: what the motion network of two-stream I3D sees.

By OpenCV, which is imported here alone: DIS (Kroeger et al., 2016), or TV-L1 where OpenCV was built with it. Flow is a
picture of two channels, how many pixels everything moves to the right and down until the next frame of the source, cut
at `LIMIT` and rounded to 256 steps (Simonyan & Zisserman, 2014; Carreira & Zisserman, 2017). From there on it is read,
cut and kept as frames are.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch

from ..core.errors import UsageError, VideoError
from . import video

LIMIT = 20.0  # pixels from a frame to the next
STILL = 128  # the byte of no movement; one step is LIMIT / 127.5 pixels
CHANNELS = 2
METHODS = ("flow", "flow-tvl1")  # streams that are read here


@functools.cache
def _opencv() -> ModuleType:
    try:
        import cv2
    except ImportError:
        raise UsageError("flow is computed by OpenCV, which is not installed", "pip install 'nlzoo[flow]'") from None
    # The decoding workers share the cores already, and a pool of threads does not survive a fork.
    cv2.setNumThreads(1)
    return cv2


@functools.cache
def estimator(method: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """`(grey uint8 (H, W), the next) -> float32 (H, W, 2)`, pixels to the right and down.

    Raises `UsageError` where OpenCV is missing, or what `method` needs of it.
    """
    cv2: Any = _opencv()
    if method == "flow":
        made = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    else:
        create = getattr(getattr(cv2, "optflow", None), "DualTVL1OpticalFlow_create", None)
        if create is None:
            raise UsageError(
                f"this OpenCV {cv2.__version__} was built without TV-L1",
                "--stream flow, by DIS, needs nothing more; TV-L1 is in opencv-contrib-python-headless",
            )
        made = create()
    return lambda first, second: made.calc(first, second, None)


def quantise(flow: np.ndarray) -> np.ndarray:
    """Pixels, float (…), as bytes: -`LIMIT` is 0, `LIMIT` 255, no movement 128."""
    return np.rint((np.clip(flow, -LIMIT, LIMIT) + LIMIT) * (255 / (2 * LIMIT))).astype(np.uint8)


def images(
    info: video.Probe, numbers: Sequence[int], short_side: int | None, method: str = "flow"
) -> Iterator[tuple[int, np.ndarray]]:
    """(number, uint8 (H, W, 2)) of frames, ascending and each once: the flow from each to the next of the source.

    The last frame, which has none after it, shows the flow that led to it; a video of one frame shows none. The size
    is that of `video.images`. Raises `VideoError`, at once or after those that could be read.
    """
    if info.frames == 1:
        height, width = video.scaled_size(info.height, info.width, short_side)
        yield from ((number, np.full((height, width, CHANNELS), STILL, np.uint8)) for number in numbers)
        return
    last = info.frames - 2
    starts = {min(number, last) for number in numbers}
    needed = sorted(starts | {start + 1 for start in starts})
    requested = set(numbers)
    before = np.empty(0)
    for number, grey in video.images(info, needed, short_side, "gray"):
        grey = np.ascontiguousarray(grey)  # rows of libav's pictures may lie apart
        start = number - 1
        if start in starts:
            flow = quantise(_compute(info, method, before, grey))
            if start in requested:
                yield start, flow
            if start == last and last + 1 in requested:
                yield last + 1, flow
        before = grey


def _compute(info: video.Probe, method: str, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    try:
        return estimator(method)(first, second)
    except _opencv().error as error:
        height, width = first.shape
        reason = f"has frames of which OpenCV computes no flow, at {width}x{height} pixels"
        raise VideoError(reason, "leave it out, or raise --size", info.path) from error


def mirrored(clip: torch.Tensor) -> torch.Tensor:
    """Flow (…, W, 2) whose picture is mirrored already: what moved to the right moves to the left."""
    return torch.stack([255 - clip[..., 0], clip[..., 1]], -1)
