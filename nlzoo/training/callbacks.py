"""How a run says what it does: as data. Whoever called it makes the words."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..videos.scanning import Dataset
from .run_folder import Epoch


@dataclass(frozen=True)
class Event:
    """Something that happened, once."""

    code: str  # start, resumed, out_of_memory, …
    values: dict[str, Any] = field(default_factory=dict)  # what there is to say about it


@dataclass(frozen=True)
class Step:
    """How far the work is."""

    phase: str  # scan, rehearse, range_test, features, train or validate
    done: int
    total: int
    epoch: int = 0  # of train, from 1
    epochs: int = 0
    waiting: float = 0.0  # share of the epoch's time that was spent waiting for clips
    seconds_left: float = 0.0  # of the run


def ignore(value: object) -> None:
    """A callback for what nobody wants to know."""


@dataclass(frozen=True)
class Callbacks:
    """What is called on the way."""

    epoch: Callable[[Epoch], None] = ignore  # after each
    step: Callable[[Step], None] = ignore
    log: Callable[[Event], None] = ignore
    warn: Callable[[Event], None] = ignore  # what the user should know
    dataset: Callable[[Dataset], None] = ignore  # once it is scanned and split
    folder: Callable[[Path | None], None] = ignore  # from now on the run's folder is ours; None: no longer
