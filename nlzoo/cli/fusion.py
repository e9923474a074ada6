"""Commands on several runs: fuse, compare."""

from pathlib import Path
from typing import Annotated

import typer

from . import console
from .options import CLIPS, NETWORK, RUN, TRAINING, Device, Json, Val, Videos, fetched, refuse_early
from .training import run_callbacks


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


def compare(
    videos: Videos,
    probes: Annotated[
        list[str] | None,
        typer.Option(
            "--probe", help="Also a probe of this model or 2-D network; may be repeated.", rich_help_panel=NETWORK
        ),
    ] = None,
    systems: Annotated[
        list[str] | None,
        typer.Option(
            "--system",
            help="Only this one; may be repeated. Default: all that can be had. tsn: the 2-D networks of --probe too, "
            "fine-tuned.",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(help="Image network that all start from: resnet50, on a CPU resnet18.", rich_help_panel=NETWORK),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Its weights, instead of the Hub's.", rich_help_panel=NETWORK)
    ] = None,
    val: Val = "0.25",
    seed: Annotated[int, typer.Option(min=0, help="Of the split and all that is drawn.", rich_help_panel=RUN)] = 0,
    seeds: Annotated[
        int, typer.Option(min=1, max=100, help="Each with a split of its own, for all systems.", rich_help_panel=RUN)
    ] = 1,
    frames: Annotated[int | None, typer.Option(min=1, max=1024, help="Frames a clip.", rich_help_panel=CLIPS)] = None,
    size: Annotated[
        int | None, typer.Option(min=16, max=2048, help="Side of the clip, pixels.", rich_help_panel=CLIPS)
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Of fine-tuning. Default: as for finetune.", rich_help_panel=TRAINING)
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0, help="Leave out networks that would be trained for longer than is left.", rich_help_panel=RUN
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Folder in comparisons/.", rich_help_panel=RUN)] = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """The paper's table on your videos: baselines, C2D, I3D, NL I3D, streams, fusion. The same command resumes."""
    refuse_early(None, videos, val=val, labelled=True)
    videos = fetched(videos)

    from ..apps import compare as comparing

    with run_callbacks("compare") as callbacks:
        done = comparing.compare(
            videos,
            probes or (),
            systems or (),
            backbone,
            weights,
            val,
            seed,
            seeds,
            frames,
            size,
            epochs,
            minutes,
            name,
            device,
            callbacks,
            console.progress,
            console.log,
        )
    lines = comparing.sentences(done.figures)
    console.table(*comparing.cells(done.figures))
    console.result(done.figures, "\n".join([*lines, f"wrote {done.figures['folder']}/table.md"]))
