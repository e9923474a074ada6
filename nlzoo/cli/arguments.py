"""Commands whose errors of arguments say what was probably meant: of words too many, and of empty ones."""

import re
import shlex
from pathlib import Path
from typing import Any

from typer.core import TyperCommand

from ..core.errors import UsageError
from ..core.text import quoted


class Command(TyperCommand):
    """A command of which no value is empty, and which names what is too much."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        _refuse_empty(args)
        ctx.allow_extra_args = True  # so that they are told here
        super().parse_args(ctx, args)
        if ctx.args and not ctx.resilient_parsing:
            raise UsageError(f"got unexpected extra arguments: {quoted(ctx.args)}", _what_was_meant(ctx))
        return ctx.args


def _refuse_empty(args: list[str]) -> None:
    """Raises `UsageError` for an empty value: no option's default, and no folder (`Path("")` is the working one)."""
    for before, word in zip(["", *args], args):
        name, equals, value = word.partition("=")
        if not word.strip():
            what = before if re.match("--?[a-z]", before) and "=" not in before else "an argument"
        elif equals and not value.strip() and name.startswith("--"):
            what = name
        else:
            continue
        raise UsageError(f"{what} is empty", "is a variable of the shell not set? omit what is not wanted")


def _what_was_meant(ctx: Any) -> str:
    """The hint for words that are too many for a command."""
    values = [ctx.params[each.name] for each in ctx.command.params if each.param_type_name == "argument"]
    words = [str(value) for value in values if value is not None] + ctx.args
    models = [word for word in words if _names_model(word)]
    others = [word for word in words if word not in models]
    command = ["nlzoo", ctx.info_name]
    if any("--from" in each.opts for each in ctx.command.params):
        meant = _with_options(command, models, others)
        if meant:
            return meant
    if len(models) == 1 and others and "model" not in ctx.params:
        return f"{ctx.info_name} takes no model: {shlex.join([*command, *others])}"
    return f"{shlex.join(command)} --help lists arguments and options"


def _with_options(command: list[str], models: list[str], others: list[str]) -> str:
    """A model behind `--from`, or the second of two folders of videos behind `--val`; nothing where it is neither."""
    if len(models) == len(others) == 1:
        return shlex.join([*command, *others, "--from", *models])
    if len(others) == 2 and not models and all(Path(word).exists() for word in others):
        return f"{shlex.join([*command, others[0], '--val', others[1]])} validates on the second"
    return ""


def _names_model(word: str) -> bool:
    """Whether it is a model here, or may be one of the Hub."""
    from ..networks import download

    return download.names_model(word) or (not Path(word).exists() and download.looks_like_repo(word))
