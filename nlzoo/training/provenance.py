"""Which videos a model was trained on, by the list of its run and of the runs that it started from."""

from collections.abc import Sequence
from pathlib import Path

from ..core import archives, files
from ..core.errors import NlzooError
from ..networks import zoo
from ..videos import listing, records, video
from ..videos.listing import Item


def run_of(folder: Path) -> Path | None:
    """The run that made the model `folder`, or None where it is no part of one."""
    run = Path(folder).resolve().parent
    return run if zoo.is_run(run) else None


def training_lists(folder: Path) -> list[listing.Listing]:
    """The lists of the run that made the model `folder`, of the run it started from, and so on; those still here."""
    lists: list[listing.Listing] = []
    seen: set[Path] = set()
    run = run_of(folder)
    while run is not None and run not in seen:
        seen.add(run)
        try:
            lists.append(listing.read(run / "videos.csv"))
            start = files.read_json(run / "config.json")["train"]["start"]
            run = run_of(Path(start)) if start else None
        except (NlzooError, KeyError, TypeError):  # its videos or its settings are gone, or are another program's
            break
    return lists


def trained_on(lists: Sequence[listing.Listing], root: Path, items: Sequence[Item]) -> list[bool]:
    """For each of `items`, whether a training item of `lists` overlaps it, in the same file or a copy of it.

    What `nlzoo prepare` made of a file is a copy of it, in one direction and the other.
    """
    train = [(one.root, item) for one in lists for item in one.items if item.split == listing.TRAIN]
    paths = {archives.realpath(folder / item.path) for folder, item in [*train, *((root, item) for item in items)]}
    contents = records.contents({path: state[0] for path in paths if (state := video.state(path))})

    def content(folder: Path, item: Item) -> str:
        path = archives.realpath(folder / item.path)
        return contents.get(path, path)

    parts: dict[str, list[Item]] = {}
    for folder, item in train:
        parts.setdefault(content(folder, item), []).append(item)
    return [any(_overlap(item, part) for part in parts.get(content(root, item), ())) for item in items]


def _overlap(one: Item, other: Item) -> bool:
    """Whether two parts of a video have more than an instant in common; None is its start, or its end."""
    start = max(one.start or 0.0, other.start or 0.0)
    return start < min(one.end or float("inf"), other.end or float("inf"))
