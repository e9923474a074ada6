"""Which videos a model was trained on, by the list of its run and of the runs that it started from."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core import archives, files
from ..core.errors import NlzooError
from ..networks import zoo
from ..videos import listing, manifest, records, video
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
            settings: Any = files.read_json(run / "config.json")
            start = settings["train"]["start"]
            run = run_of(Path(start)) if start else None
        except (NlzooError, KeyError, TypeError):  # its videos or its settings are gone, or are another program's
            break
    return lists


def trained_on(lists: Sequence[listing.Listing], root: Path, items: Sequence[Item]) -> list[bool]:
    """For each of `items`, whether a training item of `lists` overlaps it, in the same file or a copy of it.

    What `nlzoo prepare` made of a file is a copy of it, in one direction and the other.
    """
    train = [(found.root, item) for found in lists for item in found.items if item.split == listing.TRAIN]
    contents = _contents({_real(folder, item) for folder, item in [*train, *((root, item) for item in items)]})
    parts: dict[str, list[Item]] = {}
    for folder, item in train:
        for content in contents[_real(folder, item)]:
            parts.setdefault(content, []).append(item)

    def trained(item: Item) -> bool:
        same = (part for content in contents[_real(root, item)] for part in parts.get(content, ()))
        return any(_overlap(item, part) for part in same)

    return list(map(trained, items))


def _real(folder: Path, item: Item) -> str:
    return archives.realpath(folder / item.path)


def _contents(paths: set[str]) -> dict[str, list[str]]:
    """What each file has in common with others that have it: its path; the hash of its bytes; that of its source.

    Hashes are taken of files whose size another has, or a source of another.
    """
    sizes = {path: state[0] for path in paths if (state := video.state(path))}
    made_of = manifest.lines_of(sizes)
    same = Counter([*sizes.values(), *(line.size for line in made_of.values())])
    alike = {path for path, size in sizes.items() if same[size] > 1}
    alike |= {path for path, line in made_of.items() if same[line.size] > 1}
    digests = records.digests(alike)
    contents = {path: [path] for path in paths}
    for path, digest in digests.items():
        contents[path].append(digest)
        if path in made_of and made_of[path].output_sha256 == digest:  # else it was replaced
            contents[path].append(made_of[path].sha256)
    return contents


def _overlap(one: Item, other: Item) -> bool:
    """Whether two parts of a video have more than an instant in common; None is its start, or its end."""
    start = max(one.start or 0.0, other.start or 0.0)
    return start < min(one.end or float("inf"), other.end or float("inf"))
