"""What a text gives away of the machine it was written on: secrets, paths, names of people and of videos."""

import contextlib
import getpass
import html
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import huggingface_hub

from ..core.files import VIDEO_EXTENSIONS
from ..core.text import printable

_TOKEN = re.compile(
    r"\b(?:hf|gh[pousr]|github_pat|glpat|sk|pypi)[_\-][A-Za-z0-9_\-]{20,}|\bxox[abeoprs]-[A-Za-z0-9\-]{10,}"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bAIza[\w\-]{35}|-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|\b[a-z][a-z0-9+.\-]*://[^\s/@:]*:[^\s/@]+@"  # an address with a password
)
_HOME = re.compile(r"(?:/home/|/Users/|[A-Za-z]:[\\/]+Users[\\/]+)[^\s\"'<>|]+|(?<![\w.\-/])/root(?![\w\-])")
_ENDINGS = "|".join(sorted(ending[1:] for ending in VIDEO_EXTENSIONS - {".264"}))
_VIDEO = re.compile(rf"[^\s\"'/\\]+\.(?:{_ENDINGS})\b|\b\w*[a-z]\w*\.264\b", re.IGNORECASE)  # 0.264 is a number


_DEPTH = 3  # an address in HTML in JSON


def find_leak(text: str, folder: Path) -> str:
    """What in `text`, of the model in `folder`, gives away a secret, this machine, its user or a video; "" for nothing.

    The text is read as JSON, HTML, Markdown and addresses may spell it, too.
    """
    forms, new = {text}, {text}
    for _ in range(_DEPTH):
        new = {form for known in new for form in _decoded(known)} - forms
        forms |= new
    return next(filter(None, (_find_in_plain(form, folder) for form in forms)), "")


def _decoded(text: str) -> Iterator[str]:
    with contextlib.suppress(ValueError, RecursionError):  # no JSON
        text = "\n".join(_strings(json.loads(text)))
        yield text
    yield re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", html.unescape(text))
    yield unquote(text)


def _strings(data: object) -> Iterator[str]:
    """Every text in parsed JSON, keys too."""
    if isinstance(data, str):
        yield data
    elif isinstance(data, (dict, list)):
        for value in [*data, *data.values()] if isinstance(data, dict) else data:
            yield from _strings(value)


def _find_in_plain(text: str, folder: Path) -> str:
    token = huggingface_hub.get_token()
    if _TOKEN.search(text) or (token and token in text):
        return "what looks like an access token"
    local = re.sub(r"https?\\?://\S+", "", text)  # an address such as huggingface.co/user/name is meant to be read
    for place in (Path.home(), Path.cwd(), folder.resolve()):
        for form in {str(place), place.as_posix()}:
            if place != Path(place.anchor) and re.search(rf"(?<![\w.]){re.escape(form)}(?![\w\-])", local):
                return f"a path of this machine ({printable(form)})"
    if home := _HOME.search(local):
        return f"a path in somebody's home folder ({printable(home[0][:60])})"
    user = _user()
    if user and re.search(rf"[/\\]{re.escape(user)}(?![\w\-])|\b{re.escape(user)}@", local):
        return f"this machine's user name as a path or address ({user})"
    if video := _VIDEO.search(local):
        return f"the name of a video file ({printable(video[0][:60])})"
    return ""


def find_host(text: str, expected: str) -> str:
    """This machine's name in `text`, in words; "" where it is not there, or is in `expected` too.

    A computer may well be called `video`.
    """
    host = socket.gethostname()
    for name in (host, host.partition(".")[0]):
        if name and _has_word(text, name) and not _has_word(expected, name):
            return f"this machine's name ({name})"
    return ""


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a passwd entry
        return ""


def _has_word(text: str, word: str) -> bool:
    return re.search(rf"(?<![\w\-]){re.escape(word)}(?![\w\-])", text) is not None
