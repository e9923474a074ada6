"""What `nlzoo prepare` says of its copies: a line for each, in a file of their folder; they are known by it later."""

import json
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..core import archives

NAME = "prepared.jsonl"  # and one of each shard, until all are brought together
OF_SHARD = re.compile(r"prepared-\d{5}-of-\d{5}\.jsonl")
FORMAT = 1  # of prepared videos; raised when they would come out otherwise


@dataclass(frozen=True)
class Line:
    """What the manifest says of one prepared video."""

    source: str  # relative to the folder of sources, "/" between parts; absolute where it lies outside
    size: int  # bytes of the source
    mtime_ns: int
    sha256: str
    output: str  # relative to the manifest's folder
    output_sha256: str
    frames: int
    short_side: int  # `--size`
    format: int = FORMAT
    fps: float = 0.0  # that a folder of frames was said to have


def of_shards(folder: Path) -> list[Path]:
    """The manifests of shards in a folder. Raises `OSError`."""
    with archives.scandir(folder) as entries:
        return sorted(folder / entry.name for entry in entries if OF_SHARD.fullmatch(entry.name))


def parsed(text: bytes) -> Line | None:
    """The line; None for one that is torn, or not ours."""
    try:
        line = Line(**json.loads(text))
    except (ValueError, TypeError, RecursionError):
        return None
    typed = all(isinstance(getattr(line, name), kind) for name, kind in Line.__annotations__.items())
    return line if typed else None


def lines_of(paths: Iterable[str]) -> dict[str, Line]:
    """Path → the line of those, absolute, that the manifest of a folder above them says to be copies.

    Whether a copy still is what was written, `output_sha256` tells.
    """
    known: dict[Path, dict[str, Line]] = {}
    lines = {}
    for path in paths:
        for folder in Path(path).parents:
            if folder not in known:
                known[folder] = _outputs(folder)
            if line := known[folder].get(os.path.relpath(path, folder)) if known[folder] else None:
                lines[path] = line
                break
    return lines


def _outputs(folder: Path) -> dict[str, Line]:
    """The lines of a folder, by output; none where it has no manifest that can be read."""
    outputs: dict[str, Line] = {}
    with suppress(OSError):  # perhaps it is being brought together just now
        for file in (folder / NAME, *of_shards(folder)) if archives.is_file(folder / NAME) else ():
            with archives.open_file(file) as opened:
                lines = [parsed(text) for text in opened]
            outputs |= {os.path.normpath(line.output): line for line in lines if line}
    return outputs
