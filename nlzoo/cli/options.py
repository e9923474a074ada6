"""Options and arguments that several commands share."""

import dataclasses
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.errors import UsageError
from ..core.files import VIDEO_EXTENSIONS
from ..core.text import quoted
from ..core.view_spec import parse_views
from . import console

# panels of the options in help
NETWORK, CLIPS, TRAINING, RUN = "The network", "Videos and clips", "How it trains", "The run"
TARGET, MACHINE, ANSWERS = "On the Hub", "The machine", "The answers"
BLOCKS, INFLATION, UNSAID = "Non-local blocks", "Inflation", "What the file does not say"

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout instead of text.")]  # `app.main` reads it
Device = Annotated[
    str | None,
    typer.Option(help="cuda, cuda:1, mps or cpu; CUDA's GPU when there is one.", rich_help_panel=MACHINE),
]
Videos = Annotated[
    Path,
    typer.Argument(
        help="A folder with one sub-folder of videos per class, or train/ and val/ with such, a zip or tar of one, "
        "or a list (CSV, TSV); hf://datasets/user/name on the Hub."
    ),
]
Classes = Annotated[
    list[str] | None,
    typer.Option(help='Only these classes: a,b or "a, with comma",b; may be repeated.', rich_help_panel=CLIPS),
]
Decoder = Annotated[
    str, typer.Option(help="auto, pyav or decord; auto reads every file exactly.", rich_help_panel=CLIPS)
]
Views = Annotated[
    str | None,
    typer.Option(
        help="Clips x crops of each video, averaged: 1x1 (the whole frame), 10x3 and 10xfull (the paper's); "
        "the model's own where left out.",
        rich_help_panel=CLIPS,
    ),
]
Val = Annotated[
    str,
    typer.Option(
        help="What to validate on: a share of the videos, whole groups at a time, a fold (2/5), names of groups "
        "(8,9,10), or another folder or list.",
        rich_help_panel=CLIPS,
    ),
]
Model = Annotated[
    str, typer.Argument(help="A model folder, a run, a name in weights/ or runs/, or user/name on the Hub.")
]
Threshold = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="Of a model of several labels: probability from which on a label counts. Default: the model's own.",
        rich_help_panel=ANSWERS,
    ),
]


def picked(options: type, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a command that are fields of the dataclass `options`."""
    return {field.name: parameters[field.name] for field in dataclasses.fields(options) if field.name in parameters}


def refuse_early(
    model: str | None = None,
    videos: Path | None = None,
    views: str | None = None,
    val: str = "0.25",
    decoder: str = "auto",
    images: bool = False,
    labelled: bool = False,
) -> None:
    """Raises what can be told from arguments alone, before torch is imported for the work, which takes seconds.

    A model that may be videos is let pass: what opens it says that the two were swapped. `images`: it may also be a 2-D
    network of timm. `labelled`: the videos must have labels, which names alone show.
    """
    from ..networks import hub_dataset, zoo
    from ..videos import listing, splits

    swapped = (model and not zoo.find(model)) and (
        Path(model).exists() or Path(model).suffix.lower() in {*VIDEO_EXTENSIONS, ".csv", ".tsv", ".txt"}
    )
    if model and not swapped:
        _refuse_unknown(model, images)
    if videos and hub_dataset.is_address(videos):
        hub_dataset.parse(videos)
    elif videos and not (swapped and zoo.find(str(videos))):
        refuse_model(videos, f"the model comes first: {shlex.join([str(videos), str(model)])}" if swapped else "")
        listing.refuse_missing(videos)
    if views:
        parse_views(views)
    splits.check_val(val)
    if decoder != "auto":
        from ..videos import video

        video.check_decoder(decoder)
    if labelled and videos and not swapped and not hub_dataset.is_address(videos):
        listing.refuse_unlabelled(videos)


def refuse_model(videos: Path, command: str = "") -> None:
    """Raises `UsageError` where a model stands in the place of videos; `command` takes both."""
    from ..networks import download
    from ..videos import tree

    if download.names_model(str(videos)) and not (videos.is_dir() and tree.walk(videos).videos):
        shown = f"give a folder or a list of videos; nlzoo info {shlex.quote(str(videos))} shows the model"
        raise UsageError(f"{quoted([str(videos)])} is a model, not videos", command or shown)


def refuse_models(model: str, videos: Iterable[Path]) -> None:
    """`refuse_model` for several, unless `model` is none: then what opens it says that they were swapped."""
    from ..networks import zoo

    for path in videos if zoo.find(model) else ():
        refuse_model(path)


def warn_of_unfinished(model: str) -> None:
    """Says so where the model is that of a run which has not finished."""
    from ..networks import zoo

    if note := zoo.unfinished_note(zoo.find(model)):
        console.warn(note)


def _refuse_unknown(model: str, images: bool) -> None:
    from ..networks import download, zoo

    if not (images and zoo.is_image_network(model)):
        download.refuse_unknown(model)


def fetched(videos: Path) -> Path:
    """The videos on this machine: a dataset of the Hub is fetched, and its size said before."""
    from ..networks import hub_dataset

    return hub_dataset.fetch(videos, console.log) if hub_dataset.is_address(videos) else videos
