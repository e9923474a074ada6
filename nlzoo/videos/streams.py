"""What is read of a video for each stream of `view_spec.STREAMS`; everything above it knows clips of bytes only."""

from collections.abc import Iterator, Sequence

import numpy as np

from ..core.errors import UsageError
from . import flow, sound, video


def check(stream: str, decoder: str = "auto") -> None:
    """Raises `UsageError` where a stream needs a library that is not here, or does not go with `decoder`."""
    if stream in flow.METHODS:
        flow.estimator(stream)
        if decoder == "decord":
            raise UsageError("flow is computed of frames that PyAV decodes", "omit --decoder")
    if stream == "audio" and decoder == "decord":
        raise UsageError("sound is decoded by PyAV", "omit --decoder")


def is_kept(stream: str) -> bool:
    """Whether a cache keeps it; sound is read again, for little."""
    return stream != "audio"


def read_frames(
    info: video.Probe, indices: Sequence[int], short_side: int | None, stream: str = "rgb", decoder: str = "auto"
) -> np.ndarray:
    """uint8 (len(indices), H, W, C) of any frames, as `video.read_frames`. Raises `VideoError`, `IndexError`."""
    if stream == "rgb":
        return video.read_frames(info.path, indices, short_side, decoder, info)
    video.check_numbers(info, indices)
    frames = dict(images(info, sorted(set(map(int, indices))), short_side, stream))
    return np.stack([frames[int(index)] for index in indices])


def images(
    info: video.Probe, numbers: Sequence[int], short_side: int | None, stream: str = "rgb"
) -> Iterator[tuple[int, np.ndarray]]:
    """(number, uint8 (H, W, C)) of frames, ascending and each once, as `video.images`. Raises `VideoError`."""
    if stream in flow.METHODS:
        return flow.images(info, numbers, short_side, stream)
    if stream == "audio":
        return sound.images(info, numbers)
    return video.images(info, numbers, short_side)
