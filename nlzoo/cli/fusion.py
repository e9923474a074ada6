"""Commands on several runs: fuse."""

from typing import Annotated

import typer

from . import console
from .options import Device, Json


def fuse(
    runs: Annotated[list[str], typer.Argument(help="Finished runs of one split: folders, or names in runs/.")],
    by: Annotated[
        str, typer.Option(help="mean, or weights: with the least log loss over folds of the training videos.")
    ] = "mean",
    name: Annotated[str | None, typer.Option(help="Folder in runs/.")] = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Late fusion: one model of several runs (streams, seeds, sizes), whose probabilities are averaged."""
    from ..networks import zoo

    for run in runs:
        zoo.find_run(run)  # before torch is imported

    from ..training import fuse as fusion

    made = fusion.fuse(runs, by, name, device, console.progress)
    for skipped in made.skipped:
        console.warn(f"skipped {skipped}")
    console.result(made.figures, fusion.in_words(made.figures))
