"""Commands on networks: inflate, import, list, info."""

from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import UsageError
from . import console
from .options import Json


def inflate(
    backbone: Annotated[
        str, typer.Argument(help="A timm ResNet (resnet50, resnet50.tv_in1k), tiny, or a named net (nl5-i3d-r50-8x8).")
    ],
    nl: Annotated[
        str | None,
        typer.Option(help="Blocks: res4:5, res3:2,res4:3, res4@1,3,5; 5 (the default), 1, 10: the paper's; none."),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(help="2-D weights, .safetensors or .pth, in timm's or torchvision's keys, instead of the Hub's."),
    ] = None,
    arch: Annotated[
        str | None, typer.Option(help="c2d (no temporal kernels), i3d (3x1x1, the default) or i3d-333 (3x3x3).")
    ] = None,
    init: Annotated[
        str, typer.Option(help="centre (starts as the 2-D network on every frame) or mean (the paper's).")
    ] = "centre",
    temporal_padding: Annotated[str, typer.Option(help="replicate or zeros.")] = "replicate",
    pools: Annotated[
        str | None, typer.Option(help="Temporal strides: none (the default), 8x8 (T/2 after res2) or paper (T/8).")
    ] = None,
    form: Annotated[str, typer.Option(help="Pairwise function: embedded, gaussian, dot or concat.")] = "embedded",
    span: Annotated[str, typer.Option(help="Which positions a position sees: spacetime, space or time.")] = "spacetime",
    subsample: Annotated[str, typer.Option(help="Keys pooled 1x2x2: before or after phi and g, or none.")] = "before",
    name: Annotated[str | None, typer.Option(help="Folder in weights/.")] = None,
    json: Json = False,
) -> None:
    """Make a 3-D network with non-local blocks from a 2-D one, prove that nothing was lost, and write weights/NAME."""
    from ..core.model_spec import Inflation, Named, parse_name
    from ..core.view_spec import ClipSpec
    from ..networks import card, checkpoint, describe, download, model, zoo

    named = parse_name(backbone)
    if named and (nl or arch or pools):
        raise UsageError(
            f"{backbone} says itself what --nl, --arch and --pools would",
            f"leave them out, or inflate {named.backbone}",
        )
    asked = named or Named(backbone, arch or "i3d", pools or "none", nl or "5", ClipSpec())
    how = Inflation(asked.arch, init, temporal_padding, asked.pools)
    console.status(f"inflating {asked.backbone} and checking the result …")
    net, checks = model.inflate(
        asked.backbone,
        weights,
        how,
        asked.nl,
        download.backbone_weights,
        asked.clip.frames,
        asked.clip.stride,
        form=form,
        span=span,
        subsample=subsample,
    )
    folder = zoo.WEIGHTS / zoo.folder_name(name or (backbone if named else zoo.default_name(net.spec)))
    zoo.refuse_other(folder, net.spec)
    summary = describe.describe(net)
    if any(n.stage == "res2" for n in net.spec.non_local):
        console.warn(
            "blocks in res2 see four times as many positions as in res3: see their cost below before you train"
        )
    checkpoint.save_model(folder, net, readme=card.body(net.spec, None, checks.summary()))
    data = {"model": str(folder), **summary, **checks.summary()}
    console.result(data, describe.in_words(net, checks) + f"\nwrote {folder}")


def import_(
    file: Annotated[
        str, typer.Argument(help="A checkpoint (.pth, .pyth, .pkl, .safetensors), or a start that nlzoo list shows.")
    ],
    name: Annotated[str | None, typer.Option(help="Folder in weights/; the file's name.")] = None,
    source: Annotated[
        str | None, typer.Option("--zoo", help="Where two have the same tensors: authors or slowfast-caffe2.")
    ] = None,
    frames: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Frames a clip; by the file's name, or as published.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Video frames from one to the next; likewise.")
    ] = None,
    form: Annotated[
        str | None, typer.Option(help="Pairwise function, where its tensors fit two: embedded or dot.")
    ] = None,
    pools: Annotated[
        str | None, typer.Option(help="Temporal strides: none, 8x8, authors, mmaction2; as its zoo trains.")
    ] = None,
    json: Json = False,
) -> None:
    """Make a Kinetics network of another zoo (C2D, I3D, non-local) one of ours, strictly, and write weights/NAME."""
    from ..networks import card, checkpoint, convert, describe, zoo
    from ..networks import pretrained as starts

    path = Path(file)
    if not path.exists():
        with console.progress(f"fetching {file}") as bar:
            path, _ = starts.fetch(starts.find(file), bar)
    found = convert.read(path, convert.ImportOptions(source, frames, stride, form, pools))
    folder = zoo.WEIGHTS / zoo.folder_name(name or (Path(file).stem if path == Path(file) else file))
    zoo.refuse_other(folder, found.net.spec)
    if "-nc" in found.net.spec.licence:
        console.warn(
            f"these weights are {found.net.spec.licence}: no commercial use, of what you train from them either"
        )
    checkpoint.save_model(folder, found.net, readme=card.body(found.net.spec, None))
    console.result(
        {
            "model": str(folder),
            **describe.describe(found.net),
            "zoo": found.zoo,
            "notes": list(found.notes),
            "dropped": found.dropped,
            "filled": found.filled,
        },
        f"{convert.in_words(found)}\n{describe.in_words(found.net)}\nwrote {folder}",
    )


def list_(json: Json = False) -> None:
    """The models in weights/ and the finished runs in runs/, newest first, and the starts that can be fetched."""
    import dataclasses

    from ..networks import pretrained as starts
    from ..networks import zoo

    models = [{"model": str(p), **zoo.summary(zoo.read_spec(p))} for p in zoo.models()]
    runs = [{k: zoo.result(p)[k] for k in ("run", "model", "top1", "majority", "val")} for p in zoo.runs()]
    known = {"starts": starts.known(), "backbones": starts.backbones()}
    console.result(
        {"models": models, "runs": runs, **{k: [dataclasses.asdict(s) for s in v] for k, v in known.items()}}
    )
    if models:
        console.table(
            ["model", "backbone", "arch", "non-local", "classes"],
            [[m["model"], m["backbone"], m["arch"], str(m["nonlocal"]), str(m["classes"])] for m in models],
        )
    if runs:
        console.table(
            ["run", "top-1", "majority", "validated on"],
            [[r["run"], f"{r['top1']:.3f}", f"{r['majority']:.3f}", str(r["val"])] for r in runs],
        )
    if not models and not runs:
        console.log("nothing in weights/ or runs/ yet; nlzoo inflate resnet50 --nl 5 makes a first model")
    for title, of, listed in (
        ("nlzoo import", "Kinetics-400", known["starts"]),
        ("nlzoo inflate", "ImageNet", known["backbones"]),
    ):
        console.table(
            [title, f"{of} top-1 / 5", "published by", "licence"],
            [[s.name, f"{s.top1} / {s.top5 or '-'}" if s.top1 else "", s.by, s.licence] for s in listed],
        )


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
    """What a model is: its stages, placement of its blocks, size, cost, clip, classes, source, licence. Reads no weights."""
    from ..core.model_spec import parse_name
    from ..networks import checkpoint, describe, download, zoo
    from ..networks import model as models

    console.status(f"reading {model} …")
    named = None if zoo.find(model) else parse_name(model)
    net = models.blueprint(named, classes) if named else checkpoint.read_blueprint(download.locate(model))
    console.result(describe.describe(net), describe.in_words(net))
