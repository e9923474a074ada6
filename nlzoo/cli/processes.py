"""Commands that several processes share: `--gpus`, `accelerate launch`, `torchrun`."""

import os
import sys
from typing import Annotated

import typer

from . import console
from .options import MACHINE

Part = Annotated[
    str,
    typer.Option("--shard", help="Only a part, for job arrays: 3/16, the third of sixteen.", rich_help_panel=MACHINE),
]
Gpus = Annotated[
    int,
    typer.Option(
        min=1,
        max=64,
        help="Processes on this machine, each with a GPU and a part of the work.",
        rich_help_panel=MACHINE,
    ),
]


def begin(gpus: int, device: str | None, again: str) -> None:
    """In the parent of `--gpus N`: runs the ranks, by the same words, and exits as they do.

    In one of them: rank 0 alone is to print.

    `again`: what the same command does where a rank was killed.
    """
    from ..training import engine

    if gpus > 1 and engine.ranks()[1] == 1:
        raise typer.Exit(engine.launch(sys.argv[1:], gpus, device, console.warn, again))
    if engine.ranks()[0]:
        console.state.muted = True


def world() -> int:
    """How many processes a launcher has started for this work."""
    return int(os.environ.get("WORLD_SIZE", 1))
