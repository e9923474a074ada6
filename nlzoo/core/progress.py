"""How long work says how far it is."""

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[int, int], None]  # (done, total)


def no_progress(done: int, total: int) -> None:
    """For callers that show none."""
