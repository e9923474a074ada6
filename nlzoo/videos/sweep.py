"""Frames of parts of one video that are asked for one after another: windows overlap, and no frame is decoded twice.

Unusual: what reads a window leaves the decoder where it is, for the next. Nothing depends on it: a window that is asked
for out of turn, or cannot be read this way, is read as any other part of a video is, to the same bits.
"""

from collections.abc import Callable, Iterator

import numpy as np

from ..core.errors import VideoError
from . import streams, video


class Sweep:
    """The decoder of one video, and frames that a later part needs again."""

    def __init__(self, parts: int) -> None:
        self.parts = parts
        self._next = -1
        self._wanted: list[list[int]] = []  # of the parts that follow, the next one last
        self._held: dict[int, np.ndarray] = {}
        self._coming: Iterator[tuple[int, np.ndarray]] = iter(())

    def frames(
        self,
        part: int,
        numbers_of: Callable[[int], list[int]],
        short_side: int,
        stream: str,
        decoder: str,
        info: video.Probe,
    ) -> np.ndarray:
        """What `streams.read_frames` gives for the frames `numbers_of(part)`. Raises `VideoError`."""
        numbers = numbers_of(part)
        if decoder == "decord":  # which reads all that it is asked for at once
            return streams.read_frames(info, numbers, short_side, stream, decoder)
        if part != self._next:
            self._forget()
            self._wanted = [numbers_of(later) for later in range(part, self.parts)]
            every = sorted({number for part_numbers in self._wanted for number in part_numbers})
            self._coming = streams.images(info, every, short_side, stream)
            self._wanted.reverse()
        try:
            self._read(numbers)
            made = np.stack([self._held[number] for number in numbers])
        except (VideoError, KeyError):  # damage: the error, if there is one, is that of the part alone
            self._forget()
            return streams.read_frames(info, numbers, short_side, stream, decoder)
        self._next = part + 1
        self._wanted.pop()
        first = min(self._wanted[-1], default=0) if self._wanted else info.frames
        self._held = {number: image for number, image in self._held.items() if number >= first}
        return made

    def _read(self, numbers: list[int]) -> None:
        last = max(numbers)
        if last in self._held:
            return
        for number, image in self._coming:
            self._held[number] = image
            if number >= last:
                return

    def _forget(self) -> None:
        self._next, self._wanted, self._held, self._coming = -1, [], {}, iter(())
