"""Commands on networks: inflate, import, list, info, export."""

import dataclasses
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import UsageError, WeightsError
from ..core.model_spec import Inflation, ModelSpec, Named, parse_name
from ..core.view_spec import ClipSpec
from . import console
from .options import BLOCKS, INFLATION, UNSAID, Json, Model, refuse_early, warn_of_unfinished

if TYPE_CHECKING:
    from ..networks.facts import Counts


def inflate(
    backbone: Annotated[
        str, typer.Argument(help="A timm ResNet (resnet50, resnet50.tv_in1k), tiny, or a named net (nl5-i3d-r50-8x8).")
    ],
    nl: Annotated[
        str | None,
        typer.Option(
            help="Blocks: res4:5, res3:2,res4:3, res4@1,3,5; 5 (the default), 1, 10: the paper's; none.",
            rich_help_panel=BLOCKS,
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(help="2-D weights, .safetensors or .pth, in timm's or torchvision's keys, instead of the Hub's."),
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option(
            help="c2d (no temporal kernels), i3d (3x1x1, the default) or i3d-333 (3x3x3).", rich_help_panel=INFLATION
        ),
    ] = None,
    init: Annotated[
        str,
        typer.Option(
            help="centre (starts as the 2-D network on every frame) or mean (the paper's).", rich_help_panel=INFLATION
        ),
    ] = "centre",
    temporal_padding: Annotated[str, typer.Option(help="replicate or zeros.", rich_help_panel=INFLATION)] = "replicate",
    pools: Annotated[
        str | None,
        typer.Option(
            help="Temporal strides: none (the default), 8x8 (T/2 after res2) or paper (T/8).", rich_help_panel=INFLATION
        ),
    ] = None,
    form: Annotated[
        str, typer.Option(help="Pairwise function: embedded, gaussian, dot or concat.", rich_help_panel=BLOCKS)
    ] = "embedded",
    span: Annotated[
        str, typer.Option(help="Which positions a position sees: spacetime, space or time.", rich_help_panel=BLOCKS)
    ] = "spacetime",
    subsample: Annotated[
        str, typer.Option(help="Keys pooled 1x2x2: before or after phi and g, or none.", rich_help_panel=BLOCKS)
    ] = "before",
    name: Annotated[str | None, typer.Option(help="Folder in weights/.")] = None,
    json: Json = False,
) -> None:
    """Make a 3-D network with non-local blocks from a 2-D one, prove that nothing was lost, and write weights/NAME."""
    named = parse_name(backbone)
    if named and (nl or arch or pools):
        raise UsageError(
            f"{backbone} says itself what --nl, --arch and --pools would",
            f"omit them, or inflate {named.backbone}",
        )
    net_spec = named or Named(backbone, arch or "i3d", pools or "none", nl or "5", ClipSpec())
    inflation = Inflation(net_spec.arch, init, temporal_padding, net_spec.pools)

    from ..networks import card, checkpoint, describe, download, facts, model, zoo

    zoo.check_place(name)
    console.status(f"inflating {net_spec.backbone} and checking the result …")
    net, checks = model.inflate(
        net_spec.backbone,
        weights,
        inflation,
        net_spec.nl,
        download.backbone_weights,
        net_spec.clip.frames,
        net_spec.clip.stride,
        command=shlex.join(["nlzoo", *sys.argv[1:]]),
        form=form,
        span=span,
        subsample=subsample,
    )
    folder = zoo.WEIGHTS / zoo.folder_name(name or (backbone if named else zoo.default_name(net.spec)))
    zoo.refuse_other(folder, net.spec)
    if any(places.stage == "res2" for places in net.spec.non_local):
        console.warn(
            "blocks in res2 see four times as many positions as in res3: see their cost below before you train"
        )
    checkpoint.save_model(folder, net, readme=card.body(net.spec, None, checks.summary()))
    counts = describe.count_folder(folder, net)
    in_words = [facts.in_words(net.spec, counts, checks.notes), describe.checks_in_words(checks), f"wrote {folder}"]
    console.result({"model": str(folder), **facts.summary(net.spec, counts), **checks.summary()}, "\n".join(in_words))


def import_(
    file: Annotated[
        str, typer.Argument(help="A checkpoint (.pth, .pyth, .pkl, .safetensors), or a start that nlzoo list shows.")
    ],
    name: Annotated[str | None, typer.Option(help="Folder in weights/; the file's name.")] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--zoo", help="Where two have the same tensors: authors or slowfast-caffe2.", rich_help_panel=UNSAID
        ),
    ] = None,
    frames: Annotated[
        int | None,
        typer.Option(
            min=1, max=1024, help="Frames a clip; by the file's name, or as published.", rich_help_panel=UNSAID
        ),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(min=1, max=1024, help="Video frames from one to the next; likewise.", rich_help_panel=UNSAID),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(help="Pairwise function, where its tensors fit two: embedded or dot.", rich_help_panel=UNSAID),
    ] = None,
    pools: Annotated[
        str | None,
        typer.Option(
            help="Temporal strides: none, 8x8, authors, mmaction2; as its zoo trains.", rich_help_panel=UNSAID
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="Names for its outputs: kinetics400, or a file (a name on each line, or JSON).", rich_help_panel=UNSAID
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Make a Kinetics network of another zoo (C2D, I3D, non-local) one of ours, strictly, and write weights/NAME."""
    from ..networks import labels as naming, pretrained, zoo

    zoo.check_place(name)
    names = naming.read(labels) if labels else ()
    path = Path(file)
    if not path.exists():
        listed = pretrained.find(file)  # before torch is imported
        with console.progress(f"fetching {file}") as bar:
            path, _ = pretrained.fetch(listed, bar)

    from ..networks import card, checkpoint, convert, describe, facts

    imported = convert.read(path, convert.ImportOptions(source, frames, stride, form, pools))
    net = imported.net
    if names:
        net.spec = naming.name_outputs(net.spec, names)
    folder = zoo.WEIGHTS / zoo.folder_name(name or (path.stem if path == Path(file) else file))
    zoo.refuse_other(folder, net.spec)
    if "-nc" in net.spec.licence:
        console.warn(f"these weights are {net.spec.licence}: no commercial use, of what you train from them either")
    checkpoint.save_model(folder, net, readme=card.body(net.spec, None))
    counts = describe.count_folder(folder, net)
    if not names:
        hint = " (kinetics400 for those of Kinetics-400)" if net.spec.num_outputs == 400 else ""
        console.log(f"its {net.spec.num_outputs} outputs have no names: --labels gives them some{hint}")
    decided = {"notes": list(imported.notes), "dropped": imported.dropped, "filled": imported.filled}
    console.result(
        {"model": str(folder), **facts.summary(net.spec, counts), "zoo": imported.zoo, **decided},
        f"{convert.in_words(imported)}\n{facts.in_words(net.spec, counts)}\nwrote {folder}",
    )


def list_(json: Json = False) -> None:
    """The models in weights/ and the runs in runs/, newest first, and the pretrained models that can be fetched."""
    from ..networks import pretrained, zoo

    models = _readable(zoo.models(), lambda folder: {"model": str(folder), **zoo.model_row(zoo.read_spec(folder))})
    runs = _readable([*zoo.unfinished_runs(), *zoo.runs()], zoo.run_row)
    starts, backbones = pretrained.known(), pretrained.backbones()
    known = {"starts": list(map(dataclasses.asdict, starts)), "backbones": list(map(dataclasses.asdict, backbones))}
    console.result({"models": models, "runs": runs, **known})
    if models:
        columns = ["model", "backbone", "arch", "nonlocal"]
        rows = [[*(m[c] for c in columns), m["classes"] or f"{m['outputs']} without names"] for m in models]
        console.table(["model", "backbone", "arch", "non-local", "classes"], rows)
    if runs:
        console.table(["run", "top-1", "majority", "validated on"], [_run_cells(run) for run in runs])
    if not models and not runs:
        console.log("nothing in weights/ or runs/ yet; nlzoo inflate resnet50 --nl 5 makes a first model")
    for title, dataset, entries in (
        ("nlzoo import", "Kinetics-400", starts),
        ("nlzoo inflate", "ImageNet", backbones),
    ):
        rows = [[e.name, f"{e.top1} / {e.top5 or '-'}" if e.top1 else "", e.by, e.licence] for e in entries]
        console.table([title, f"{dataset} top-1 / 5", "published by", "licence"], rows)


def _readable(folders: Sequence[Path], read: Callable[[Path], dict[str, Any]]) -> list[dict[str, Any]]:
    """A row of each; one that is damaged, or is removed just now, is told and does not hide the others."""
    rows = []
    for folder in folders:
        try:
            rows.append(read(folder))
        except WeightsError as error:
            console.warn(f"{error.message}; {error.hint}" if error.hint else error.message)
    return rows


def _run_cells(run: dict) -> list[str]:
    """A run's row: an unfinished one has no figures yet, one of several labels a video has a mean average precision."""
    if run["status"] == "unfinished":
        return [run["run"], "unfinished", "", ""]
    score = _figure(run["top1"]) or f"mAP {_figure(run['map'])}"
    return [run["run"], score, _figure(run["majority"]), str(run["val"])]


def _figure(value: object) -> str:
    """With three digits; "" for what is no number: a result may have been edited."""
    return f"{value:.3f}" if isinstance(value, int | float) else ""


def info(
    model: Annotated[
        str,
        typer.Argument(
            help="A model folder, a run, a name in weights/ or runs/, user/name, or a named net (nl5-i3d-r50-8x8)."
        ),
    ],
    classes: Annotated[
        int, typer.Option(min=1, max=100_000, help="Outputs of a named net that is described without weights.")
    ] = 400,
    json: Json = False,
) -> None:
    """What a model is: stages, placement of blocks, size, cost, clip, classes, accuracy, source. Reads no weights."""
    from ..networks import download, facts, zoo

    console.status(f"reading {model} …")
    named = None if zoo.find(model) else parse_name(model)
    if named:
        spec, counts = _named_net(model, named, classes)
        console.result(facts.summary(spec, counts), facts.in_words(spec, counts))
        return
    folder = download.locate(model)
    known = facts.recall(facts.key_of_folder(folder))
    if known is None:
        from ..networks import describe  # torch

    counts = known or describe.count_folder(folder)
    warn_of_unfinished(model)
    spec, metrics = zoo.read_spec(folder), zoo.read_metrics(folder)
    lines = [str(folder), facts.in_words(spec, counts), *facts.trained_lines(spec, metrics)]
    console.result({"model": str(folder), **facts.summary(spec, counts), "metrics": metrics}, "\n".join(lines))


def _named_net(name: str, named: Named, classes: int) -> tuple[ModelSpec, "Counts"]:
    from ..networks import facts

    counts = facts.recall(facts.key_of_name(name, classes))
    if counts is None:
        from ..networks import describe  # torch

        counts = describe.count_named(name, named, classes)
    return named.spec(counts.depths, classes), counts


def export(
    model: Model,
    to: Annotated[str, typer.Option(help="onnx, torch (torch.export, .pt2), transformers or timm (2-D).")],
    out: Annotated[Path | None, typer.Option(help="A new folder; exports/NAME-FORMAT.")] = None,
    half: Annotated[bool, typer.Option("--half", help="ONNX in half precision, its error measured.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="ONNX in 8 bits (dynamic), its error measured.")] = False,
    json: Json = False,
) -> None:
    """Write a model for other programs, for clips of every shape, once it gives the same logits there."""
    refuse_early(model)

    from ..apps import export as exports

    done = exports.export(model, to, out, half, int8, console.progress)
    for note in done.notes:
        console.warn(note)
    console.result(dataclasses.asdict(done), exports.in_words(done))
