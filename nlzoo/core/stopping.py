"""Signals that ask long work to stop: they are noted, and the work ends where nothing is lost."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM))


@dataclass
class Stop:
    """The signal that asked the work to stop; 0: none did."""

    signal: int = 0


@contextlib.contextmanager
def stopping() -> Iterator[Stop]:
    """SIGTERM, SIGHUP and the first Ctrl-C are noted, for the work to save and end; a second Ctrl-C ends it at once."""
    stop = Stop()

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and stop.signal:
            raise KeyboardInterrupt
        stop.signal = stop.signal or number

    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread alone
        yield stop
        return
    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
