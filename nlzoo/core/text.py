"""Names and values as text that is safe to print and to store."""

import difflib
import json
import os
import re
import unicodedata
from collections.abc import Iterable

_UNUSUAL = re.compile(r"[^ -~]")  # may be invisible, or do something to a terminal


def as_text(name: str | os.PathLike) -> str:
    """A file or class name as text that every format can hold: bytes that are not UTF-8 become escapes (`\\xff`)."""
    text = os.fspath(name)
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON may hold
        return text.encode("utf-8", "backslashreplace").decode()


def printable(name: str | os.PathLike) -> str:
    """A name on one line, safe for a terminal: characters that do not show and broken bytes become escapes."""
    return _UNUSUAL.sub(lambda match: _escape(match[0], "unicode_escape"), as_text(name))


def printable_text(text: str) -> str:
    """The same for a text of several lines: it keeps its newlines."""
    return "\n".join(map(printable, text.split("\n")))


def as_json(value: object, indent: int | None = None) -> str:
    """Readable JSON, safe for a terminal: what does not show becomes JSON's escapes. Raises `ValueError` for NaN."""
    lines = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False).split("\n")  # none inside of a text
    return "\n".join(_UNUSUAL.sub(lambda match: _escape(match[0], "json"), line) for line in lines)


def counted(number: int, noun: str, plural: str = "") -> str:
    """`1 group`, `1,200 groups`. `plural`: where it takes more than an s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def quoted(names: Iterable[str], most: int = 12) -> str:
    """`'left', 'right' and 3 more`: names in quotes, so that a comma in one of them cannot mislead."""
    texts = [f"'{printable(name)[:100]}'" for name in names]
    more = f" and {len(texts) - most:,} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def nearest(word: str, known: Iterable[str], most: int = 3, cutoff: float = 0.6) -> list[str]:
    """Those of `known` that `word` may have meant, the nearest first; case does not matter.

    `cutoff`: how alike, from 0 to 1; any word is somewhat like one of a thousand.
    """
    names: dict[str, str] = {}
    for name in known:
        names.setdefault(name.casefold(), name)
    word = word.casefold()
    begun = [n for n in names if min(len(n), len(word)) > 2 and (n.startswith(word) or word.startswith(n))]
    matches = difflib.get_close_matches(word, names, most, cutoff) or begun[:most]
    return [names[match] for match in matches]


def did_you_mean(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """A hint that names what `word` may have meant; `otherwise` where nothing comes near."""
    near = list(map(printable, nearest(word, known)))
    return f"did you mean {' or '.join(near)}?" if near else otherwise


def _escape(character: str, notation: str) -> str:
    """`character`, or its escape where it is a control, format, surrogate, private or line-ending one."""
    if unicodedata.category(character)[0] != "C" and character not in "\u2028\u2029":
        return character
    return json.dumps(character)[1:-1] if notation == "json" else character.encode("unicode_escape").decode()
