"""How long a server is waited for: so many bytes within so many seconds, not only some byte within them.

A timeout of a socket begins again with every byte, so that a server which sends one now and then is waited for for
ever. Only the time spent in waiting counts, not what is done with the bytes in between.
"""

import time
from collections.abc import Callable
from typing import TypeVar

LEAST = 10 << 10  # bytes, of which an answer has fewer or which come within the patience
T = TypeVar("T", int, bytes)


class Patience:
    """What is left of `seconds` to wait for `LEAST` bytes of one answer."""

    def __init__(self) -> None:
        self._waited, self._count = 0.0, 0

    def renew(self) -> None:
        """Another answer is waited for."""
        self._waited, self._count = 0.0, 0

    def read(self, seconds: float, read: Callable[[float], T]) -> T:
        """What `read(timeout)` gets: bytes, or their number."""
        began = time.monotonic()
        got = read(max(seconds - self._waited, 1e-3))
        self._waited += time.monotonic() - began
        self._count += got if isinstance(got, int) else len(got)
        if self._count >= LEAST:
            self.renew()
        return got
