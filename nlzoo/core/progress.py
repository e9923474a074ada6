"""How long work tells how far it is, and what there is to know meanwhile."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeAlias

Progress: TypeAlias = Callable[[int, int], None]  # (done, total)
Stages: TypeAlias = Callable[[str], AbstractContextManager[Progress]]  # names the work that begins, gives its progress
Log: TypeAlias = Callable[[str], object]  # one sentence


def no_progress(done: int, total: int) -> None:
    """For callers that show none."""


@contextmanager
def no_stages(name: str) -> Iterator[Progress]:
    """For callers that show none."""
    yield no_progress


def no_log(text: str) -> None:
    """For callers that show nothing."""
