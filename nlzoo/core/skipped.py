"""What is left out of the work, and why: a code for programs, words for people."""

from dataclasses import dataclass

from .text import printable


@dataclass(frozen=True, order=True)
class Skipped:
    """A video, or a folder of them, that is not used."""

    path: str  # as its listing names it
    code: str  # such as "not_found": what programs branch on
    reason: str  # said of the path: "is empty"

    def __str__(self) -> str:
        return f"{printable(self.path)}: {printable(self.reason)}"
