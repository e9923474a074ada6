"""The only printer: data on stdout, talk on stderr, `--json` as one object.

Nothing that comes from outside (file and class names) is read as markup or as a terminal's escape code.
"""

import sys
import time
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ..core.errors import DiskError, NlzooError
from ..core.text import as_json, printable

_out = Console(markup=False, highlight=False, emoji=False, soft_wrap=True)
_err = Console(stderr=True, markup=False, highlight=False, emoji=False, soft_wrap=True)
_state = {"json": False, "mute": False, "log": None, "before": [], "bar": False}


def use_json(on: bool) -> None:
    """From now on data is one JSON object; talk stays on stderr."""
    _state["json"] = on


def wants_json() -> bool:
    """Whether the user asked for `--json`."""
    return _state["json"]


def only_errors() -> None:
    """From now on nothing but errors: this process is not the one that talks."""
    _state["mute"] = True


def log_to(file: Path | None) -> None:
    """From now on talk goes to this file too, with the time, after what was said before. Raises `DiskError`."""
    _state["log"] = file
    if file:
        _log(f"--- nlzoo {' '.join(map(printable, sys.argv[1:]))}", *_state["before"])
    _state["before"] = []


def _log(*texts):
    if not (file := _state["log"]):
        _state["before"] = [*_state["before"], *texts][-100:]
    else:
        try:
            with open(file, "a", encoding="utf-8") as opened:
                opened.writelines(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n" for text in texts)
        except OSError as error:
            _state["log"] = None
            raise DiskError(
                f"{printable(file)} could not be written ({error.strerror})",
                "free some room, or check the folder's permissions",
            ) from error


def log(text: str = "", style: str = "") -> None:
    """Talk, on stderr."""
    _log(text)
    if not _state["mute"]:
        _err.print(Text(text, style=style))


def warn(text: str) -> None:
    """Something that the user should know, on stderr."""
    _log(f"warning: {text}")
    if not _state["mute"]:
        _err.print(Text.assemble(("warning: ", "yellow"), text))


def result(value: object, text: str = "") -> None:
    """The answer of the command, on stdout: `value` as JSON with `--json`, `text` for a person otherwise."""
    if _state["mute"]:
        return
    if _state["json"]:
        sys.stdout.write(as_json(value) + "\n")
        sys.stdout.flush()
    elif text:
        (_err if _state["bar"] and _out.is_terminal else _out).print(
            Text(text)
        )  # the bar's own console, or they would write over one another


def table(columns: list[str], rows: list[list[str]]) -> None:
    """Rows for a person, on stdout; nothing with `--json`."""
    if _state["json"] or _state["mute"]:
        return
    view = Table(box=None, header_style="bold", pad_edge=False)
    for name in columns:
        view.add_column(Text(name), overflow="fold")
    for row in rows:
        view.add_row(*(Text(str(cell)) for cell in row))
    _out.print(view)


def error(problem: NlzooError) -> None:
    """`error:` and `hint:` on stderr, or the object on stdout with `--json`."""
    if _state["json"] and not _state["mute"]:
        result({"error": problem.message, "hint": problem.hint, "exit_code": problem.exit_code})
        return
    _err.print(Text.assemble(("error: ", "bold red"), problem.message))
    if problem.hint:
        _err.print(Text.assemble(("hint: ", "bold"), problem.hint))


@contextmanager
def progress(what: str):
    """A bar on stderr; gives `update(done, total, note="")`. On a terminal only."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    shows = _err.is_terminal and not _state["mute"]
    with Progress(*columns, console=_err, transient=True, disable=not shows) as bar:
        task = bar.add_task(what, total=None, note="")
        _state["bar"] = shows
        try:
            yield lambda done, total, note="": bar.update(task, completed=done, total=total, note=note)
        finally:
            _state["bar"] = False
