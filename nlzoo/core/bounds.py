"""Checks of single values in a spec: each raises `UsageError` that names the field, its value and what is allowed."""

from collections.abc import Collection

from .errors import UsageError
from .text import did_you_mean


def one_of(value: object, allowed: Collection[object], what: str) -> None:
    if value not in allowed:
        raise UsageError(
            f"{what} is {value!r}; it must be one of {', '.join(map(str, allowed))}",
            did_you_mean(str(value)[:60], map(str, allowed)),
        )


def choices(spec: object, **allowed: Collection[object]) -> None:
    """Each of these fields of `spec` is one of those allowed."""
    for name, values in allowed.items():
        one_of(getattr(spec, name), values, name.replace("_", " "))


def boolean(value: object, what: str) -> None:
    if not isinstance(value, bool):
        raise UsageError(f"{what} must be true or false; it is {value!r}")


def between(value: object, low: int, high: int, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise UsageError(f"{what} is {value!r}; it must be a whole number from {low} to {high}")


def number(value: object, low: float, high: float, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:  # NaN lies nowhere
        raise UsageError(f"{what} is {value!r}; it must be a number from {low} to {high}")


def text(value: object, what: str, most: int = 200) -> None:
    if not isinstance(value, str) or not 0 < len(value) <= most:
        raise UsageError(f"{what} must be text of 1 to {most} characters; it is {str(value)[:60]!r}")
