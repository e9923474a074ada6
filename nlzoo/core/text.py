"""Names and values as text that is safe to print and to store."""

import json
import os
import unicodedata


def as_text(name: str | os.PathLike) -> str:
    """A file or class name as text that any format holds: bytes that are no UTF-8 as codes."""
    text = os.fspath(name)
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half of a pair, which JSON may hold
        return text.encode("utf-8", "backslashreplace").decode()


def shown(name: str | os.PathLike) -> str:
    """A file or class name safe to print: control characters, also those of terminals, ends of lines and broken bytes as codes."""
    return "".join(
        c if unicodedata.category(c)[0] != "C" and c not in "\u2028\u2029" else c.encode("unicode_escape").decode()
        for c in as_text(name)
    )


def as_json(value: object, indent: int | None = None) -> str:
    """JSON in UTF-8, as people read it; where a name is no UTF-8, with JSON's own codes, which give its bytes back. NaN is refused."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    return text if as_text(text) == text else json.dumps(value, indent=indent, allow_nan=False)
