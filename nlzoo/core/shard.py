"""Parts of a work that is too large for one job: `3/16` is the third of sixteen, which know nothing of one another."""

import re
from dataclasses import dataclass
from pathlib import Path

from .errors import UsageError
from .text import printable

MOST = 99_999  # parts


@dataclass(frozen=True)
class Shard:
    """One part of `count`; the whole where that is 1."""

    number: int = 1  # from 1
    count: int = 1

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def part(self, total: int) -> range:
        """Which of so many things belong to it: neighbours, so that the parts one after another are the whole."""
        return range((self.number - 1) * total // self.count, self.number * total // self.count)

    def file(self, file: Path) -> Path:
        """Where a part of `file` goes: `answers.csv` becomes `answers-00003-of-00016.csv`; the whole is `file`."""
        if self.count == 1:
            return file
        return file.with_name(f"{file.stem}-{self.number:05}-of-{self.count:05}{file.suffix}")


WHOLE = Shard()


def parse(text: str | Shard) -> Shard:
    """`3/16`. Raises `UsageError`."""
    if isinstance(text, Shard):
        return text
    match = re.fullmatch(r"(\d{1,5})/(\d{1,5})", text.strip(), re.ASCII)
    if match and 1 <= int(match[1]) <= int(match[2]) <= MOST:
        return Shard(int(match[1]), int(match[2]))
    raise UsageError(
        f"--shard {printable(text)!r} is no part of a whole", "K/N with K from 1 to N, for example --shard 3/16"
    )
