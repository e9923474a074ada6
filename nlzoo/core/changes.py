"""Presets with changes, as options say them: `strong,flip=no,mixup=0`."""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

from .errors import UsageError
from .text import did_you_mean

WORDS = {"True": "yes", "False": "no"}


def _shares(text: str) -> tuple[float, ...]:
    return () if text == "none" else tuple(map(float, text.split("/")))


_READ: dict[type, tuple[Callable[[str], Any], str]] = {
    bool: ({"yes": True, "no": False}.__getitem__, "yes or no"),
    int: (int, "a whole number"),
    float: (float, "a number"),
    str: (str, "a word"),
    tuple: (_shares, "shares of the run such as 0.375/0.75, or none"),
}


def parse_changes(
    option: str, text: str, usual: str, presets: Collection[str], cls: type, example: str
) -> tuple[str, dict[str, Any]]:
    """`(preset, changes)` that `name,key=value,…` says; without a name the preset is `usual`.

    The keys are fields of the dataclass `cls`. Raises `UsageError`, naming `option` and what there is.
    """
    kinds = {f.name: type(f.default) for f in dataclasses.fields(cls)}
    hint = f"presets: {', '.join(presets)}; keys: {', '.join(kinds)}; for example: {example}"
    first, *parts = [part.strip().lower() for part in text.split(",")]
    if "=" in first:
        first, parts = usual, [first, *parts]
    if first not in presets:
        raise UsageError(f"{option} {text!r}: there is no preset {first!r}", _meant(first, presets, hint))
    values = {}
    for part in parts:
        key, equals, value = (word.strip() for word in part.partition("="))
        if not equals or key not in kinds:
            raise UsageError(f"{option} {text!r}: {part!r} was not understood", _meant(key, kinds, hint))
        if key in values:
            raise UsageError(f"{option} {text!r}: {key} is given twice")
        read, expected = _READ[kinds[key]]
        try:
            values[key] = read(value)
        except (ValueError, KeyError):
            raise UsageError(f"{option} {text!r}: {key} must be {expected}; it is {value!r}", hint) from None
    return first, values


def _meant(word: str, known: Collection[str], hint: str) -> str:
    """The hint, after what `word` may have meant."""
    near = did_you_mean(word, known)
    return f"{near} {hint}" if near else hint
