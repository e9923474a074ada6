"""Features that a file of `predict --features` has, or is given, of the videos that a head is fitted to.

A file holds whole videos, by their paths. It does not say which network it is of, so one video is computed again.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..core import feature_files
from ..core.errors import UsageError
from ..core.text import printable
from ..videos import loader
from ..videos.items import Item

SAME = 1e-2  # relative difference of features that are the same but for another machine, or half precision


def read(
    file: Path, source: loader.Clips, shape: Sequence[int], compute: Callable[[int], np.ndarray | None]
) -> dict[int, np.ndarray]:
    """The features of the file, float32 of `shape`, by index of the video in `source`; none where there is no file.

    `compute` gives those of one video, by its index, or None where it cannot be read. Raises `UsageError` where the
    file has others.
    """
    if not file.exists():
        return {}
    paths = {index: os.path.abspath(path) for index, path in _whole(source).items()}
    stored = feature_files.read(file, set(paths.values()), shape)
    known = {index: stored[path] for index, path in paths.items() if path in stored}
    for index, row in known.items():
        computed = compute(index)
        if computed is None:
            continue
        if np.abs(computed - row).max() > SAME * np.abs(computed).max():
            raise UsageError(
                f"{printable(file)} has features of another network, size or views than asked for here",
                "give the same MODEL and --size, or another FILE",
            )
        break
    return known


def write(file: Path, source: loader.Clips, rows: Mapping[int, np.ndarray]) -> None:
    """Writes the `rows`, by index of the video in `source`, where there is no file yet; those of whole videos."""
    good = {index: row for index, row in rows.items() if np.isfinite(row).all()}
    named = [{"path": path, "features": good[index]} for index, path in _whole(source).items() if index in good]
    if named and not file.exists():
        feature_files.write(file, named)


def refuse_parts(items: Sequence[Item]) -> None:
    """Raises `UsageError` where a file could have none of them."""
    if not any(is_whole(item) for item in items):
        raise UsageError("--features is of whole videos, and this list is of parts of some", "omit --features")


def is_whole(item: Item) -> bool:
    """Whether it is a video and no part of one: a file holds no other."""
    return item.start is None and item.end is None


def _whole(source: loader.Clips) -> dict[int, str]:
    """The paths of the videos of which no part alone is meant, by index."""
    return {index: str(source.root / item.path) for index, item in enumerate(source.items) if is_whole(item)}
