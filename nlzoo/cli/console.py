"""The only printer: results on stdout, everything else on stderr, one JSON object on stdout with `--json`.

Whatever is printed goes through `_print`: names of files and classes, tensor names, texts of a config from anybody and
messages of other libraries are neither markup nor terminal codes. In a pipe no line is broken; on a terminal lines are
broken between words only.
"""

import logging
import sys
import textwrap
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from ..core import files
from ..core.errors import NlzooError
from ..core.text import as_json, printable, printable_text

GAP = "  "  # between the columns of a table
EARLY_LINES = 100  # kept for a log file that is opened later

_out = Console(markup=False, highlight=False, emoji=False)
_err = Console(stderr=True, markup=False, highlight=False, emoji=False)


@dataclass
class State:
    """What this process prints, and where."""

    json: bool = False  # results are one JSON object; everything else stays on stderr
    muted: bool = False  # nothing but errors: another process prints for this one
    log_file: Path | None = None
    early: list[str] = field(default_factory=list)  # logged before there was a file
    bar: bool = False  # a progress bar is on the terminal
    status: bool = False  # a status line is on the terminal
    library_messages: set[str] = field(default_factory=set)  # already shown


state = State()


class Bar(Protocol):
    """Updates a progress bar."""

    def __call__(self, done: int, total: int, note: str = "") -> None: ...


def log_to(file: Path | None) -> None:
    """From now on messages go to this file too, with the time, after the earlier ones. Raises `DiskError`."""
    state.log_file = file
    if file:
        _write_log(f"--- nlzoo {' '.join(map(printable, sys.argv[1:]))}", *state.early)
    state.early = []


def log(text: str = "") -> None:
    """A message on stderr."""
    _write_log(text)
    if not state.muted:
        _print(_err, text)


def warn(text: str) -> None:
    """Something that the user should know, on stderr."""
    _write_log(f"warning: {text}")
    if not state.muted:
        _print(_err, text, "warning: ", "yellow")


def result(value: object, text: str = "") -> None:
    """The command's result on stdout: `value` as JSON with `--json`, else `text`."""
    if state.muted:
        return
    if state.json:
        sys.stdout.write(as_json(value) + "\n")
        sys.stdout.flush()
    elif text:
        # on one terminal the bar's own console prints, or they would write over one another
        _print(_err if state.bar and _out.is_terminal else _out, text)


def results(values: Iterable[object]) -> None:
    """A list of results with `--json`, of which one at a time is in memory; nothing otherwise."""
    if state.muted or not state.json:
        return
    sys.stdout.write("[")
    for number, value in enumerate(values):
        sys.stdout.write((", " if number else "") + as_json(value))
    sys.stdout.write("]\n")
    sys.stdout.flush()


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Rows for a person, on stdout; nothing with `--json`."""
    if state.json or state.muted or not rows:
        return
    cells = [[printable(str(cell)) for cell in row] for row in (columns, *rows)]
    head, *body = _table_lines(cells, _out.width if _out.is_terminal else None)
    _print(_out, "", head, "bold")
    for line in body:
        _print(_out, line)


def error(problem: NlzooError) -> None:
    """`error:` and `hint:` on stderr, or the object on stdout with `--json`."""
    if state.json and not state.muted:
        result({"error": problem.message, "hint": problem.hint, "exit_code": problem.exit_code})
        return
    _print(_err, problem.message, "error: ", "bold red")
    if problem.hint:
        _print(_err, problem.hint, "hint: ", "bold")


def status(text: str) -> None:
    """A line that says what is being done, until the next output; on a terminal only, and not with `--json`."""
    if _err.is_terminal and not state.muted and not state.json and not state.bar:
        end_status()
        _err.file.write(printable(text)[: _err.width - 1])
        _err.file.flush()
        state.status = True


def end_status() -> None:
    """Removes the status line, if there is one."""
    if state.status:
        state.status = False
        _err.file.write("\r\x1b[2K")
        _err.file.flush()


@contextmanager
def progress(description: str) -> Iterator[Bar]:
    """A bar on stderr; gives `update(done, total, note="")`. On a terminal only."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    shows = _err.is_terminal and not state.muted
    end_status()
    with Progress(*columns, console=_err, transient=True, disable=not shows) as bar:
        task = bar.add_task(printable(description), total=None, note="")

        def update(done: int, total: int, note: str = "") -> None:
            bar.update(task, completed=done, total=total, note=printable(note))

        state.bar = shows
        try:
            yield update
        finally:
            state.bar = False


def tame_libraries() -> None:
    """Warnings and log records of other libraries become one line each, once, that says whose it is."""
    warnings.showwarning = _show_warning
    handler = _LibraryHandler()
    handler.setLevel(logging.WARNING)
    logging.lastResort = handler  # for records that have no handler
    logging.setLoggerClass(_LibraryLogger)


class _LibraryLogger(logging.Logger):
    """A logger that does not write to the terminal on its own."""

    def addHandler(self, handler: logging.Handler) -> None:
        if type(handler) is not logging.StreamHandler:
            super().addHandler(handler)


class _LibraryHandler(logging.StreamHandler):
    def emit(self, record: logging.LogRecord) -> None:
        library = record.name.partition(".")[0]
        if library == "nlzoo":
            warn(record.getMessage())
        else:
            _library_message(library, record.getMessage())


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """In the place of `warnings.showwarning`."""
    packages = Path(filename).parts
    after = packages.index("site-packages") + 1 if "site-packages" in packages else -1
    _library_message(packages[after].removesuffix(".py"), str(message))


def _library_message(library: str, text: str) -> None:
    line = f"{library} says: {' '.join(text.split())}"
    if line not in state.library_messages:
        state.library_messages.add(line)
        warn(line)


def _write_log(*texts: str) -> None:
    if not state.log_file:
        state.early = [*state.early, *texts][-EARLY_LINES:]
        return
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    file, state.log_file = state.log_file, None  # an error must not be logged there again
    files.append_text(file, "".join(f"{now}  {printable_text(text)}\n" for text in texts))
    state.log_file = file


def _print(console: Console, text: str, head: str = "", style: str = "") -> None:
    """Prints `head`, which has the style, and `text`: the only way out for what is not JSON."""
    end_status()
    whole = printable_text(head + text)
    if console.is_terminal:
        whole = "\n".join(_wrapped(line, console.width) for line in whole.split("\n"))
    styled = Text(whole)
    styled.stylize(style, 0, len(head))
    console.print(styled, soft_wrap=True)  # as it is


def _wrapped(line: str, width: int) -> str:
    """A line broken between words, its indentation kept; a word that is longer than `width` stays whole."""
    indent = line[: len(line) - len(line.lstrip())]
    wrapper = textwrap.TextWrapper(
        width, subsequent_indent=indent + "  ", break_long_words=False, break_on_hyphens=False, replace_whitespace=False
    )
    return wrapper.fill(line)


def _table_lines(rows: list[list[str]], width: int | None) -> list[str]:
    """Aligned columns; where they are wider than a terminal's `width`, the cells of a row one after another."""
    widths = [max(map(cell_len, column)) for column in zip(*rows)]
    if width is None or sum(widths) + len(GAP) * (len(widths) - 1) <= width:
        padded = [[cell + " " * (w - cell_len(cell)) for cell, w in zip(row, widths)] for row in rows]
        return [GAP.join(row).rstrip() for row in padded]
    return [GAP.join(filter(None, row)) for row in rows]
