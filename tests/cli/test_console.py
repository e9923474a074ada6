"""The one printer: nothing foreign is a terminal's code, names and words stay whole, JSON holds names of any bytes."""

import contextlib
import fcntl
import json
import logging
import os
import pty
import struct
import subprocess
import sys
import termios
import unicodedata

import pytest

from nlzoo.cli import console
from nlzoo.core.errors import UsageError
from nlzoo.core.text import as_json, printable, printable_text

FOREIGN = {  # what a name or a text of somebody else's may hold, and how it is shown
    "\x1b[31mred\x1b[0m": "\\x1b[31mred\\x1b[0m",
    "\x1b]0;title\x07": "\\x1b]0;title\\x07",
    "\x9b31m": "\\x9b31m",
    "over\rwritten": "over\\rwritten",
    "back\b\x7f": "back\\x08\\x7f",
    "\u202egnp.exe": "\\u202egnp.exe",
    "\u2066hidden\u2069\u200b": "\\u2066hidden\\u2069\\u200b",
    "[bold]markup[/bold] :smile:": "[bold]markup[/bold] :smile:",
    "\ud800 half": "\\ud800 half",
    os.fsdecode(b"caf\xe9"): "caf\\xe9",
    "Grüße 中文 🕺": "Grüße 中文 🕺",
}


def on_terminal(code, columns=80, stdout=True):
    """What a terminal gets of python `code`, as bytes: its stderr, and its stdout unless that is a pipe."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
    with open(os.devnull, "wb") as nowhere:
        done = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            stdout=theirs if stdout else nowhere,
            stderr=theirs,
            env={**environment, "TERM": "xterm"},
        )
    os.close(theirs)
    seen = b""
    with contextlib.suppress(OSError):  # its end
        while part := os.read(ours, 65536):
            seen += part
    os.close(ours)
    assert done.wait() == 0, seen
    return seen.replace(b"\r\n", b"\n")


def piped(code):
    """`(stdout, stderr)` of python `code` in pipes."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    return done.stdout.decode(), done.stderr.decode()


@pytest.mark.parametrize("text", FOREIGN)
def test_foreign_text_is_shown_as_what_it_is(text, capfd):
    assert printable(text) == FOREIGN[text]
    printers = (
        lambda: console.log(text),
        lambda: console.warn(text),
        lambda: console.result(None, text),
        lambda: console.error(UsageError(text, text)),
        lambda: console.table([text, "b"], [["a", text]]),
    )
    for number, show in enumerate(printers):
        show()
        seen = "".join(capfd.readouterr())
        assert seen.count(FOREIGN[text]) == (2 if number > 2 else 1), seen
        assert all(c == "\n" or unicodedata.category(c)[0] != "C" for c in seen)


@pytest.mark.parametrize("text", FOREIGN)
def test_json_is_safe_on_a_terminal_and_gives_the_text_back(text):
    for indent in (None, 2):
        shown = as_json({"name": text, "emoji": "🕺"}, indent)
        assert all(c == "\n" or unicodedata.category(c)[0] != "C" for c in shown) and "🕺" in shown
        assert json.loads(shown) == {"name": text, "emoji": "🕺"}


def test_a_text_keeps_its_lines_and_a_name_does_not():
    assert printable_text("a\tb\nc\x1b") == "a\\tb\nc\\x1b" and printable("a\nb") == "a\\nb"


def test_a_terminal_gets_no_codes_but_ours():
    code = (
        "from nlzoo.cli import console\nfrom nlzoo.core.errors import UsageError\nevil = '\\x1b[2J\\x9bm\\u202e'\n"
        "console.warn(evil); console.error(UsageError(evil, evil)); console.status(evil)\n"
        "console.table([evil], [[evil]])\n"
        "with console.progress(evil) as bar: bar(1, 2, evil)\n"
    )
    seen = on_terminal(code)
    assert seen.count(b"\\x1b[2J\\x9bm\\u202e") >= 6
    assert b"\x1b[2J" not in seen and b"\xc2\x9b" not in seen and "\u202e".encode() not in seen


@pytest.mark.parametrize("encoding", ["utf-8:strict", "utf-8:surrogateescape"])
def test_json_gives_names_of_any_bytes_back(encoding):
    code = (
        "import os, sys; from nlzoo.cli import console; console.state.json = True\n"
        "console.result({'path': os.fsdecode(bytes.fromhex(sys.argv[1])), 'emoji': '🕺'})"
    )
    name = b"caf\xe9 \xff\n<b>.mp4"
    done = subprocess.run(
        [sys.executable, "-c", code, name.hex()],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        check=True,
    )
    assert json.loads(done.stdout.decode("utf-8")) == {"path": os.fsdecode(name), "emoji": "🕺"}


LONG = "weights/" + "a-long-name-of-a-model-" * 5
TABLE = (
    f"from nlzoo.cli import console\nconsole.table(['model', 'licence'], [[{LONG!r}, 'apache 2.0 ' * 4], ['b', 'c']])"
)


def test_a_pipe_gets_a_line_for_each_row_whatever_its_width():
    out, _ = piped(TABLE)
    licence = ("apache 2.0 " * 4).rstrip()
    gap = " " * (len(LONG) - len("model") + 2)
    assert out.splitlines() == [f"model{gap}licence", f"{LONG}  {licence}", f"b{' ' * (len(LONG) + 1)}c"]


def test_a_narrow_terminal_breaks_lines_between_words_only():
    words = " ".join(f"word{n:03}" for n in range(40))
    seen = on_terminal(
        f"{TABLE}\nconsole.log({words!r})\nconsole.warn('see ' + {LONG!r} + ' there')", columns=80
    ).decode()
    assert LONG in seen
    lines = seen.splitlines()
    assert [word for line in lines for word in line.split() if word.startswith("word")] == words.split()
    assert max(len(line) for line in lines if LONG not in line) <= 80


@pytest.mark.parametrize("both", [False, True])
def test_answers_and_a_bar_keep_apart(tmp_path, both):
    """On a terminal an answer clears the bar's line before it is written; in a file there is nothing but answers."""
    code = (
        "from nlzoo.cli import console\nwith console.progress('looking') as bar:\n"
        "    for n in range(3):\n        bar(n, 3)\n"
        "        console.result(None, f'answer {n}')\n"
    )
    seen = on_terminal(code, stdout=both)
    assert b"looking" in seen
    if both:
        assert all(b"\x1b[2Kanswer %d\n" % n in seen for n in range(3))
    else:
        assert b"answer" not in seen and piped(code) == ("answer 0\nanswer 1\nanswer 2\n", "")


def test_the_status_line_makes_way_for_what_comes_next():
    code = "from nlzoo.cli import console\nconsole.status('starting …')\nconsole.log('first')\nconsole.log('second')"
    assert on_terminal(code).decode() == "starting …\r\x1b[2Kfirst\nsecond\n"
    assert piped(code) == ("", "first\nsecond\n")
    with_json = code.replace("console.status", "console.state.json = True; console.status")
    assert on_terminal(with_json) == b"first\nsecond\n"


def test_libraries_speak_in_one_line_each_and_once():
    code = (
        "from nlzoo.cli import console\nconsole.tame_libraries()\nimport logging, warnings\n"
        "theirs = logging.getLogger('theirs.part')\n"
        "theirs.addHandler(logging.StreamHandler())\ntheirs.propagate = False\n"
        "for n in range(2):\n"
        "    theirs.warning('WARNING: \\x1b[31m%s\\n  lines', 'two')\n"
        "    theirs.info('nothing')\n"
        "    warnings.warn_explicit('old call', UserWarning, '/x/site-packages/torch/nn/thing.py', 3)\n"
        "    warnings.resetwarnings()\n"
    )
    assert piped(code) == (
        "",
        "warning: theirs says: WARNING: \\x1b[31mtwo lines\nwarning: torch says: old call\n",
    )


def test_a_log_file_has_what_was_said_before_it_too(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(console, "state", console.State())
    console.log("before")
    console.log_to(tmp_path / "log.txt")
    console.warn("after\x1b[0m")
    console.log_to(None)
    console.log("not there")
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line[21:] for line in lines][1:] == ["before", "warning: after\\x1b[0m"]
    assert lines[0][21:].startswith("--- nlzoo") and not logging.getLogger("nlzoo").handlers
