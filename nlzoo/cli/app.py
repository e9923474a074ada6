"""The command line: one short function per command. Everything heavy is imported inside the command that needs it."""

import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from .. import __version__
from ..core.errors import NlzooError, UsageError
from ..core.text import shown
from . import console

app = typer.Typer(
    name="nlzoo",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Non-local I3D networks from ImageNet ResNets, fine-tuned on your own videos.",
)

Json = Annotated[
    bool,
    typer.Option(
        "--json", help="One JSON object on stdout instead of text.", callback=lambda v: console.use_json(v) or v
    ),
]
Device = Annotated[str | None, typer.Option(help="cuda, cuda:1, mps or cpu; the GPU when there is one.")]
Videos = Annotated[
    Path,
    typer.Argument(
        help="A folder with one sub-folder of videos per class, or train/ and val/ with such, or a list (CSV, TSV)."
    ),
]
Decoder = Annotated[str, typer.Option(help="auto, pyav or decord; auto reads every file exactly.")]
Views = Annotated[
    str,
    typer.Option(help="Clips x crops of each video, averaged: 1x1 (the whole frame), 10x3 and 10xfull (the paper's)."),
]
Val = Annotated[
    str, typer.Option(help="Share of the groups to validate on, a fold (2/5), or names of groups (8,9,10).")
]
Model = Annotated[
    str, typer.Argument(help="A model folder, a run, a name in weights/ or runs/, or user/name on the Hub.")
]


@app.command()
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
    from ..apps import hub
    from ..core.model_spec import Inflation, Named, parse_name
    from ..core.view_spec import ClipSpec
    from ..networks import checkpoint, model, zoo

    named = parse_name(backbone)
    if named and (nl or arch or pools):
        raise UsageError(
            f"{backbone} says itself what --nl, --arch and --pools would",
            f"leave them out, or inflate {named.backbone}",
        )
    asked = named or Named(backbone, arch or "i3d", pools or "none", nl or "5", ClipSpec())
    how = Inflation(asked.arch, init, temporal_padding, asked.pools)
    net, checks = model.inflate(
        asked.backbone,
        weights,
        how,
        asked.nl,
        hub.backbone_weights,
        asked.clip.frames,
        asked.clip.stride,
        form=form,
        span=span,
        subsample=subsample,
    )
    folder = zoo.WEIGHTS / zoo.folder_name(name or (backbone if named else zoo.default_name(net.spec)))
    zoo.refuse_other(folder, net.spec)
    summary = model.describe(net)
    if any(n.stage == "res2" for n in net.spec.non_local):
        console.warn(
            "blocks in res2 see four times as many positions as in res3: see their cost below before you train"
        )
    checkpoint.save_model(folder, net, checks=checks.summary())
    data = {"model": str(folder), **summary, **checks.summary()}
    console.data(data, model.in_words(net, checks) + f"\nwrote {folder}")


@app.command("import")
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
    from ..networks import checkpoint, convert, model, zoo
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
    checkpoint.save_model(folder, found.net)
    console.data(
        {
            "model": str(folder),
            **model.describe(found.net),
            "zoo": found.zoo,
            "notes": list(found.notes),
            "dropped": found.dropped,
            "filled": found.filled,
        },
        f"{convert.in_words(found)}\n{model.in_words(found.net, None)}\nwrote {folder}",
    )


@app.command()
def check(
    videos: Videos,
    deep: Annotated[bool, typer.Option("--deep", help="Decode every frame of every file instead of three.")] = False,
    classes: Annotated[str | None, typer.Option(help="Only these, comma-separated.")] = None,
    json: Json = False,
) -> None:
    """Find what is wrong with videos before training does: broken files, copies, leaks. Exit code 3 when training could not start."""
    from ..apps import check as examiner
    from ..videos import listing, records

    found = listing.read(videos, _names(classes))
    with console.progress("looking through every frame" if deep else "looking at each file") as bar:
        report = examiner.look(found, records.ALL if deep else records.THREE, progress=bar, tell=console.warn)
    console.data(examiner.to_json(report), examiner.in_words(report))
    if not report.could_train:
        raise typer.Exit(3)


@app.command()
def prepare(
    videos: Videos,
    out: Annotated[Path, typer.Argument(help="A new folder, or one that this command has begun.")],
    size: Annotated[int, typer.Option(help="Shorter side, pixels; smaller videos keep theirs.")] = 256,
    json: Json = False,
) -> None:
    """Copy videos into small ones that clips are cheap to read from: then train on OUT. Stopped, it goes on where it was."""
    from ..apps import prepare as making
    from ..core.text import shown

    with console.progress("preparing") as bar:
        done, target = making.prepare_source(videos, out, size, bar)
    for path, reason in done.skipped[:20]:
        console.warn(f"skipped {shown(path)}: {shown(reason)}")
    console.data(
        {
            "videos": str(target),
            "done": done.done,
            "reused": done.reused,
            "bytes_before": done.bytes_before,
            "bytes_after": done.bytes_after,
            "skipped": [{"path": path, "reason": reason} for path, reason in done.skipped],
        },
        f"{done.done} videos prepared, {done.reused} were there, {len(done.skipped)} skipped; {done.bytes_before / 1e6:,.0f} MB became "
        f"{done.bytes_after / 1e6:,.0f} MB\nnext: nlzoo finetune {target}",
    )


@app.command()
def finetune(
    videos: Videos,
    start: Annotated[
        str | None,
        typer.Option("--from", help="The model or run to start from; the newest in weights/, or resnet50 with --nl 5."),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="auto, small, paper, paper-long or charades, and changes: paper,epochs=20; auto.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the training clips; by their number.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Clips a step; 4 on a CPU, 16 on a GPU.")] = None,
    lr: Annotated[
        str | None, typer.Option(help="Learning rate of the backbone, or auto: by a short range test; by the batch.")
    ] = None,
    frames: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Frames a clip; the model's, 8 for one of inflate.")
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(min=1, max=1024, help="Video frames from one to the next; the model's, or spread over the video."),
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option(help="Count the stride in frames of a video played so fast; each video's own frames."),
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=16, max=2048, help="Side of the clip, pixels; 224 on a GPU, 112 on a CPU.")
    ] = None,
    nl: Annotated[
        str | None, typer.Option(help="Add fresh non-local blocks to a model without any: 5, res4:5, as in inflate.")
    ] = None,
    classes: Annotated[str | None, typer.Option(help="Only these, comma-separated.")] = None,
    augment: Annotated[
        str | None,
        typer.Option(help="light, medium, strong or paper, and changes: strong,flip=no; by the number of clips."),
    ] = None,
    val: Val = "0.25",
    seed: Annotated[int, typer.Option(min=0, help="Of the split, the order, the crops, dropout.")] = 0,
    seeds: Annotated[
        int, typer.Option(min=1, max=100, help="Runs with this many seeds, for a mean and its deviation.")
    ] = 1,
    cache: Annotated[
        Path | None, typer.Option(help="Keep decoded frames in this folder; for sets that fit there.")
    ] = None,
    decoder: Decoder = "auto",
    gpus: Annotated[
        int, typer.Option(min=1, max=64, help="Processes on this machine, each with a GPU and a part of every batch.")
    ] = 1,
    track: Annotated[str | None, typer.Option(help="Also log to tensorboard, wandb or trackio.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the unfinished run as it was begun, whatever else is asked.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Memory, time, and whether one batch can be learnt by heart; no run.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="Folder in runs/.")] = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Train a classifier on your videos, keep best and last. The same command goes on with a run that was stopped."""
    from types import SimpleNamespace

    asked = SimpleNamespace(**locals())
    from ..networks import zoo
    from ..training import engine, evaluate

    if gpus > 1 and engine.ranks()[1] == 1:
        raise typer.Exit(engine.launch(_without(sys.argv[1:], "--gpus"), gpus, device, console.warn))
    if engine.ranks()[0]:
        console.only_errors()
    base = zoo.folder_name(name or (videos.stem if videos.is_file() else videos.resolve().name))
    with engine.distributed_errors():
        engine.set_current_gpu()
        here = engine.begin(evaluate.resolve_device(device), track)
        results = [
            _run(asked, here, seed + n, base if seeds == 1 else f"{base}-s{seed + n}", name is not None or seeds > 1)
            for n in range(seeds)
        ]
    for result in results if here.main and not dry_run else ():  # here, where no rank waits for another
        _report(Path(result["run"]), here.device)
    if seeds > 1:
        console.data(
            _over_seeds(results), "\n".join(map(_in_words, results)) + "\n" + _seeds_in_words(_over_seeds(results))
        )
    elif results[0] is not None:
        console.data(results[0], _in_words(results[0]))


def _report(run, device):
    """The run's page; the run has finished, whatever becomes of that."""
    from ..apps import report
    from ..core.text import shown
    from ..videos import pool

    if (run / "report.html").exists():
        return
    try:
        with console.progress("writing the report") as bar:
            console.say(f"report {report.write(run, device, pool.default_workers(str(device)), bar)}")
    except NlzooError as problem:
        console.warn(f"there is no report: {problem.message}; nlzoo report {shown(run)} tries again")


def _without(words, option):
    """The command line without an option and its value."""
    out, skip = [], False
    for word in words:
        if not skip and word != option and not word.startswith(option + "="):
            out.append(word)
        skip = word == option and not skip
    return out


def _run(asked, here, seed, base, named):
    """One run, begun or gone on with: its result as a dict; None after `--dry-run`."""
    import dataclasses

    from ..core.text import shown
    from ..networks import zoo
    from ..training import train
    from ..videos import scanning

    run = zoo.unfinished_run(base, named)
    if asked.seeds > 1 and (zoo.RUNS / base / "result.json").is_file():
        return zoo.result(zoo.RUNS / base)
    if asked.resume:
        if not run:
            raise UsageError(
                f"there is no unfinished run {zoo.RUNS / base}{'' if named else '-N'} to go on with",
                "leave --resume out to begin one",
            )
        net, found, config = _recorded(run, here)
    else:
        with console.progress(f"scanning {shown(str(asked.videos))}") as bar:
            found = scanning.split(scanning.scan(asked.videos, _names(asked.classes), bar), asked.val, seed)
        _tell_scan(found)
        net, config = _planned(asked, found, here, seed)
        if asked.dry_run:
            return _rehearse(net, found, config)
        if not run:
            run = zoo.new_run(base, named)
        elif here.main:  # the GPU of another rank has another name
            _refuse_other(run, config, net, found)
    run = Path(here.broadcast(str(run)))
    here.agree("the videos or the recipe", (found.items, config.recipe))

    def ready():  # the folder is ours; while videos were scanned another process may have worked there
        if (run / "result.json").exists():
            raise UsageError(f"{run} has finished meanwhile", "nlzoo list shows its result; --name NEW begins another")
        if not asked.resume and (run / "config.json").exists():
            _refuse_other(run, config, net, found)
        console.log_to(run / "log.txt")

    talk = train.Callbacks(_tell_epoch, say=console.say)
    with console.progress("training") as bar:
        talk = dataclasses.replace(talk, step=bar)
        try:
            result = train.finetune(net, found, config, run, talk, here, ready)
        finally:
            console.log_to(None)
    return dataclasses.asdict(result)


def _planned(asked, found, here, seed):
    """`(net, config)` of what is asked, with what is filled in told."""
    import dataclasses

    from ..networks import model
    from ..training import recipe, train

    source, net = _starting_model(asked.start)
    fresh = net.spec.inflation.init != "imported" and not net.spec.classes
    if fresh:
        console.say(
            "it has seen images only; on a small set a network trained on Kinetics is often 10 to 20 points better: nlzoo list"
        )
    clip = net.spec.clip
    if asked.frames or asked.stride:
        clip = recipe.lengthen(net, asked.frames or clip.frames, asked.stride or clip.stride).spec.clip
    clip = dataclasses.replace(
        clip, size=asked.size or (112 if here.device.type == "cpu" else 224), fps=asked.fps or clip.fps
    )
    net.spec = dataclasses.replace(net.spec, clip=clip)
    if asked.nl:
        model.add_blocks(net, asked.nl)
    if (net.spec.classes, net.spec.multi_label) != (found.classes, found.multi_label):
        model.set_head(net, found.classes, found.multi_label)
    lr = None if asked.lr in (None, "auto") else _number(asked.lr)
    config, notes = train.plan(
        found,
        str(asked.videos),
        str(source),
        str(here.device),
        here.world,
        fresh,
        net.spec.clip.frames,
        recipe=asked.recipe,
        epochs=asked.epochs,
        batch=asked.batch,
        lr=lr,
        val=asked.val,
        seed=seed,
        augment=asked.augment,
        decoder=asked.decoder,
        cache=str(asked.cache) if asked.cache else None,
    )
    if asked.lr == "auto":
        with console.progress("range test") as bar:
            rate = here.broadcast(float(f"{train.find_rate(net, found, config, train.Callbacks(step=bar)):.1g}"))
        config = dataclasses.replace(config, recipe=dataclasses.replace(config.recipe, lr=rate))
        notes.append(f"lr {rate:g} (by a range test)")
    part = -(-config.recipe.batch // (config.recipe.accumulate * here.world))
    need = recipe.memory_estimate(net, net.spec.clip, part, config.recipe)
    console.say(
        "\n".join(
            [
                f"on {here.device}{f', {here.world} processes' if here.world > 1 else ''}: {net.spec.clip}",
                *notes,
                f"memory: about {1.2 * need / 2**30:.1f} GiB for a step of {part} clips in float32",
            ]
        )
    )
    return net, config


def _number(text):
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"--lr {text!r} is no number", "for example --lr 3e-4, or --lr auto") from None


def _recorded(run, here):
    """`(net, found, config)` of a run as it was begun."""
    import dataclasses

    from ..core import files, model_spec, recipe_spec
    from ..networks import model
    from ..videos import scanning

    summary = files.read_json(run / "config.json")
    net = model.build(model_spec.from_json(summary.get("model"), str(run / "config.json")))
    config = dataclasses.replace(recipe_spec.train_config(summary.get("train")), device=str(here.device))
    found = scanning.scan(run / "videos.csv")
    if found.classes != net.spec.classes:
        raise UsageError(
            f"{run} was begun with videos of {len(net.spec.classes)} classes, and those of {len(found.classes)} are still there",
            "put the videos back, or begin a new run with another --name",
        )
    console.say(f"going on with {run} as it was begun")
    if found.skipped:
        console.warn(f"{len(found.skipped)} of its videos cannot be used any more: it will not end as it would have")
    return net, scanning.split(found, config.val, config.seed), config


def _refuse_other(run, config, net, found):
    """An unfinished run is gone on with only where the same is asked."""
    from ..core.model_spec import to_json
    from ..training import train

    if changes := train.difference(run, config, to_json(net.spec), found):
        rows = "\n".join(f"  {line}" for line in changes[:20])
        raise UsageError(
            f"{run} is unfinished, and was begun otherwise:\n{rows}",
            "--resume goes on with it as it was begun; --name NEW begins another",
        )


def _rehearse(net, found, config):
    """Says what a run would take, and begins none."""
    from ..training import train

    with console.progress("dry run") as bar:
        summary = train.rehearse(net, found, config, train.Callbacks(step=bar, say=console.say))
    verdict = (
        "learnt by heart"
        if summary["learns"]
        else "NOT learnt by heart: look at the videos (nlzoo check), or try another --lr"
    )
    console.data(
        summary,
        f"one batch, {train.REHEARSAL} steps: loss {summary['first_loss']:.3f} to {summary['last_loss']:.3f}: {verdict}\n"
        f"about {summary['bytes'] / 2**30:.1f} GiB, {summary['seconds_a_step']} s a step, {summary['steps']} steps: {summary['minutes']} minutes, "
        "and the validations; nothing was written",
    )


def _starting_model(start):
    """`(folder, net)`: the one asked for, the newest in weights/, or the default, made now."""
    from ..apps import hub
    from ..core.model_spec import Inflation
    from ..networks import checkpoint, model, zoo

    if start:
        folder = hub.locate(start)
    elif newest := zoo.models():
        folder = newest[0]
    else:
        console.say("no model in weights/: inflating resnet50 --nl 5")
        net, checks = model.inflate("resnet50", None, Inflation(), "5", hub.backbone_weights)
        folder = checkpoint.save_model(zoo.WEIGHTS / zoo.default_name(net.spec), net, checks=checks.summary())
    console.say(f"starting from {folder}")
    return folder, checkpoint.load_model(folder)


def _names(text):
    """The names in a comma-separated option."""
    return tuple(n.strip() for n in (text or "").split(",") if n.strip())


def _tell_scan(found):
    from ..core.text import shown
    from ..videos import listing, splits

    parts = [listing.TRAIN, listing.VAL] + [listing.TEST] * any(i.split == listing.TEST for i in found.items)
    counts = {c: [sum(c in i.labels and i.split == part for i in found.items) for part in parts] for c in found.classes}
    rows = "\n".join(
        f"  {shown(c)[:40]:40} " + " ".join(f"{n:6} {part}" for n, part in zip(row, parts))
        for c, row in list(counts.items())[:40]
    )
    more = f"\n  … and {len(counts) - 40} more classes" if len(counts) > 40 else ""
    console.say(
        f"{found.kind}: {len(found.items)} videos used, {len(found.skipped)} skipped, {found.ignored} other files ignored\n{rows}{more}"
    )
    groups = [len({i.group for i in found.items if i.split == part}) for part in (listing.TRAIN, listing.VAL)]
    both = splits.straddling(found.items)
    console.say(f"split by {found.grouped_by}: {groups[0]} groups to train, {groups[1]} to validate, {both} in both")
    if both:
        console.warn(f"{both} groups of clips are on both sides of the split that was given: its figures will flatter")
    for path, reason in found.skipped[:20]:
        console.warn(f"skipped {shown(path)}: {shown(reason)}")
    if len(found.skipped) > 20:
        console.warn(f"and {len(found.skipped) - 20} more; nlzoo check shows all")


def _tell_epoch(line):
    note = f", {line.failed} videos unreadable" if line.failed else ""
    console.say(
        f"epoch {line.epoch}: train loss {line.train_loss:.3f}, {_figure(line)} {line.score:.3f}, loss {line.loss:.3f}, "
        f"{line.seconds:.0f} s of which {line.data_seconds:.0f} s waiting for videos{note}"
    )


def _figure(summary):
    return "mAP" if summary.top1 is None else "top-1"


def _in_words(result):
    key, figure, chance = (
        ("map", "mAP", "equal scores for all")
        if result["top1"] is None
        else ("top1", "top-1", "always the most frequent class")
    )
    return (
        f"{figure} {result[key]:.3f} on {result['val']} videos ({chance}: {result['majority']:.3f}); epoch {result['best_epoch']} of "
        f"{result['epochs']}, the best on these videos; the last had {result['last_' + key]:.3f}\n"
        f"model {result['model']}\nnext: nlzoo predict {result['run']} VIDEO    nlzoo push {result['run']}"
    )


def _over_seeds(results):
    """The results, and mean and standard deviation (of a sample) of the last and the best epochs' figures."""
    from statistics import mean, stdev

    key = "map" if results[0]["top1"] is None else "top1"
    summary = {}
    for name in (key, f"last_{key}"):
        values = [r[name] for r in results]
        summary |= {f"{name}_mean": mean(values), f"{name}_std": stdev(values)}
    return {"runs": results, **summary}


def _seeds_in_words(summary):
    key = "map" if "map_mean" in summary else "top1"
    return (
        f"over {len(summary['runs'])} seeds: last epoch {summary[f'last_{key}_mean']:.3f} ± {summary[f'last_{key}_std']:.3f}, "
        f"best epoch {summary[f'{key}_mean']:.3f} ± {summary[f'{key}_std']:.3f}"
    )


@app.command("eval")
def eval_(
    model: Model,
    videos: Videos,
    views: Views = "1x1",
    control: Annotated[
        bool,
        typer.Option(
            "--control", help="Also with frames shuffled, and with one frame alone: does it see motion at all?"
        ),
    ] = False,
    out: Annotated[Path | None, typer.Option(help="A row for each video: FILE.csv, .jsonl or .parquet.")] = None,
    decoder: Decoder = "auto",
    device: Device = None,
    json: Json = False,
) -> None:
    """Measure a model on labelled videos (test/ where there is one, else val/): top-1, classes, confusions, calibration, intervals; mAP."""
    import dataclasses

    from ..apps import hub
    from ..core import tables
    from ..core.text import shown
    from ..core.view_spec import parse_views
    from ..networks import checkpoint
    from ..training import evaluate, metrics
    from ..videos import listing, loader, pool, scanning

    looks = parse_views(views)
    if out:
        tables.check(out)
    net = checkpoint.load_model(hub.locate(model))
    device = evaluate.resolve_device(device)
    with console.progress("scanning") as bar:
        found = scanning.scan(videos, (), bar)
    items = scanning.items_in(found, listing.TEST) or scanning.items_in(found, listing.VAL) or list(found.items)
    classes, several = net.spec.classes, net.spec.multi_label
    if unknown := {label for i in items for label in i.labels} - set(classes):
        raise UsageError(
            f"{model} does not know class {shown(min(unknown))!r}",
            f"its classes: {', '.join(map(shown, classes[:12]))}",
        )
    if found.multi_label and not several:
        raise UsageError(
            f"{model} gives each video one class, and these have several, or none", "measure it on videos of one label"
        )
    source = loader.Clips(found.root, tuple(items), net.spec.clip, looks=looks, decoder=decoder)

    def said(order):
        with console.progress("evaluating" if order == "true" else f"evaluating, frames {order}") as bar:
            return evaluate.answers(
                net.to(device),
                dataclasses.replace(source, looks=dataclasses.replace(looks, order=order)),
                device,
                pool.default_workers(str(device)),
                bar,
            )

    true = said("true")
    summary = {
        **metrics.full(true.scores, true.items, classes, several),
        "views": looks.views,
        "look": str(looks),
        "skipped": len(found.skipped) + len(true.bad),
    }
    for path, reason in [*found.skipped, *true.bad]:
        console.warn(f"skipped {shown(path)}: {shown(reason)}")
    if control:
        summary["control"] = {order: evaluate.beside(true, said(order), classes, several) for order in metrics.CONTROLS}
    if out:
        tables.write(out, evaluate.as_rows(true, classes, found.skipped))
        console.say(f"wrote {shown(out)}")
    console.data(summary, metrics.in_words(summary))
    console.table(*metrics.class_table(summary))


@app.command()
def predict(
    model: Model,
    videos: Annotated[
        list[Path], typer.Argument(help="Video files, folders of them, or - for names on standard input.")
    ],
    top: Annotated[int, typer.Option(min=1, help="Classes to show; --json and --out have all.")] = 5,
    views: Views = "1x1",
    every: Annotated[
        str | None, typer.Option(help="Windows over long videos: one every so many seconds (1s), joined to segments.")
    ] = None,
    window: Annotated[
        str | None, typer.Option(help="Seconds of a window; as the network's clips, or twice --every.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="A row for each video or window: FILE.csv, .jsonl or .parquet.")
    ] = None,
    features: Annotated[
        Path | None, typer.Option(help="What the last layer sees of each video instead: FILE.safetensors or .parquet.")
    ] = None,
    decoder: Decoder = "auto",
    device: Device = None,
    json: Json = False,
) -> None:
    """Name what is in videos, with probabilities. Exit code 1 when some could not be read, 3 when none could; the others are answered."""
    from ..apps import hub
    from ..apps import predict as answers
    from ..core.text import shown
    from ..core.view_spec import parse_views
    from ..networks import checkpoint
    from ..training import evaluate
    from ..videos import pool

    looks = parse_views(views)
    how = _windows(every, window, features, looks)
    _refuse_files(out, features)
    net = checkpoint.load_model(hub.locate(model))
    device = evaluate.resolve_device(device)
    paths = answers.find(videos)
    workers = pool.default_workers(str(device))
    net.to(device)
    rows, bad = [], []
    with console.progress("looking at windows" if how else "looking at videos") as bar:
        if how:
            found = (answers.windows(net, path, device, how, workers, decoder, bar) for path in paths)
        else:
            found = (answers.features if features else answers.predict)(
                net, paths, device, min(len(paths), workers), looks, decoder
            )
        for row in found:
            rows.append(row)
            bad += (
                [row["error"]]
                if "error" in row
                else [part["error"] for part in row.get("windows", ()) if "error" in part]
            )
            if not how:
                bar(len(rows), len(paths))
            if not console.wants_json() and not features and "error" not in row:
                _tell_answer(row, top, shown)
    good = sum("error" not in row for row in rows)
    _keep(rows, out, features if good else None)
    summary = [{k: v for k, v in row.items() if k != "features"} for row in rows]
    console.data(
        {"features": str(features), "videos": good, "failed": [row for row in summary if "error" in row]}
        if features
        else summary
    )
    for reason in bad:
        console.warn(reason)
    if bad:
        console.warn(f"{len(bad)} {'parts of videos' if how else f'of {len(paths)} videos'} could not be read")
        raise typer.Exit(1 if good else 3)


def _keep(rows, out, features):
    """The files that were asked for."""
    from ..apps import predict
    from ..core import tables

    if out:
        tables.write(out, predict.as_rows(rows), ("path",))
    if features:
        predict.write_features(features, rows)
    for file in filter(None, (out, features)):
        console.say(f"wrote {shown(file)}")


def _windows(every, window, features, looks):
    """How windows lie, where they are asked for; None for whole videos."""
    from ..apps.predict import Windows
    from ..core.view_spec import ViewSpec

    if every and (features or looks != ViewSpec()) or window and not every:
        raise UsageError(
            "these do not go together: --every with --views or --features, --window without --every",
            "leave one of them out",
        )
    return Windows(_seconds("--every", every), _seconds("--window", window)) if every else None


def _refuse_files(out, features):
    """Before the work, not after it."""
    from ..apps.predict import FEATURES
    from ..core import tables

    if out and features:
        raise UsageError("--features goes without --out: its videos have no answers", "leave one of them out")
    for file, endings in ((out, tables.ENDINGS), (features, FEATURES)):
        if file:
            tables.check(file, endings)


def _seconds(option, text):
    """`1s`, `0.5`, `2 s` as a number."""
    if text is None:
        return None
    try:
        return float(text.strip().lower().removesuffix("s"))
    except ValueError:
        raise UsageError(f"{option} {text!r} is no number of seconds", f"for example {option} 1s") from None


def _tell_answer(row, top, shown):
    console.data(None, shown(row["path"]))
    for part in row.get("segments", ()):
        console.data(
            None, f"  {part['start']:8.2f} to {part['end']:8.2f} s  {part['score']:6.3f}  {shown(part['class'])}"
        )
    for name, score in list(row.get("scores", {}).items())[:top]:
        console.data(None, f"  {score:6.3f}  {shown(name)}")


@app.command()
def probe(
    model: Model,
    videos: Videos,
    val: Val = "0.25",
    seed: Annotated[int, typer.Option(min=0, help="Of the split.")] = 0,
    size: Annotated[
        int | None, typer.Option(min=16, max=2048, help="Side of the clip, pixels; 224 on a GPU, 112 on a CPU.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Folder in runs/.")] = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """The fast baseline: a linear classifier on a model's features, nothing else trained. It becomes a model too: minutes instead of hours."""
    import dataclasses

    from ..apps import hub
    from ..core.text import shown
    from ..networks import checkpoint, zoo
    from ..training import evaluate, metrics
    from ..training import probe as linear
    from ..videos import pool, scanning

    net = checkpoint.load_model(hub.locate(model))
    device = evaluate.resolve_device(device)
    net.spec = dataclasses.replace(
        net.spec, clip=dataclasses.replace(net.spec.clip, size=size or (112 if device.type == "cpu" else 224))
    )
    with console.progress("scanning") as bar:
        found = scanning.split(scanning.scan(videos, (), bar), val, seed)
    _tell_scan(found)
    with console.progress("looking at videos") as bar:
        done = linear.probe(net, found, device, pool.default_workers(str(device)), progress=bar)
    for path, reason in [*done.bad, *done.said.bad]:
        console.warn(f"skipped {shown(path)}: {shown(reason)}")
    figures = metrics.full(done.said.scores, done.said.items, found.classes, found.multi_label)
    chance = metrics.chance(found.classes, done.train, done.said.items, found.multi_label)
    summary = {k: figures[k] for k in ("top1", "top5", "map") if k in figures}
    base = zoo.folder_name(name or f"{videos.stem if videos.is_file() else videos.resolve().name}-probe")
    run = zoo.new_run(base, name is not None)
    folder = checkpoint.save_model(
        run / "best", net, {**summary, "majority": chance, "train": len(done.train), "val": figures["videos"]}
    )
    console.data(
        {
            "run": str(run),
            "model": str(folder),
            "classes": list(found.classes),
            "train": len(done.train),
            "val": figures["videos"],
            "majority": chance,
            "C": done.strength,
            **figures,
        },
        f"{metrics.in_words(figures)}\nan answer that never looks: {chance:.3f}\nmodel {folder}",
    )


@app.command("explain")
def explain_(
    model: Model,
    video: Annotated[Path, typer.Argument(help="A video file.")],
    of: Annotated[str | None, typer.Option(help="The class that evidence is wanted for; the answered one.")] = None,
    at: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FRAME,Y,X",
            help="A point that arrows start from: frame of the clip, from 0; y and x, 0 to 1. May be repeated.",
        ),
    ] = None,
    points: Annotated[
        int, typer.Option(min=1, help="Without --at: points of each block, where it changes its input most.")
    ] = 3,
    out: Annotated[Path | None, typer.Option(help="Folder for the pictures; explain-NAME of the video.")] = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Show where an answer comes from: what the non-local blocks look at, and which parts of the video speak for the class; PNG and mp4."""
    from ..apps import explain, hub, pictures
    from ..networks import checkpoint
    from ..training import evaluate

    asked = [explain.point(text) for text in at or ()]
    device = evaluate.resolve_device(device)
    net = checkpoint.load_model(hub.locate(model)).to(device)
    summary = explain.explain(net, video, device, of, asked, points)
    files = pictures.write(summary, folder := out or Path(f"explain-{video.stem}"))
    console.data(
        {**summary.summary(), "files": [str(f) for f in files]},
        f"{explain.in_words(summary)}\nwrote {len(files)} files into {shown(folder)}",
    )


@app.command()
def report(
    run: Annotated[
        str | None, typer.Argument(help="A run's folder, or its name in runs/; the newest finished run.")
    ] = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Write RUN/report.html: curves, classes, confusions, calibration, best and worst clips, on one page that needs nothing else."""
    from ..apps import report as pages
    from ..core.text import shown
    from ..networks import zoo
    from ..training import evaluate
    from ..videos import pool

    device = evaluate.resolve_device(device)
    places = [zoo.newest_run().parent] if run is None else [Path(run), zoo.RUNS / run]
    folder = next((p for p in places if (p / "config.json").is_file()), places[0])
    with console.progress("looking at the run's videos") as bar:
        file = pages.write(folder, device, pool.default_workers(str(device)), bar)
    console.data({"report": str(file)}, f"wrote {shown(file)}")


@app.command()
def serve(
    model: Model,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 0,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets everybody in your network in.")
    ] = "127.0.0.1",
    device: Device = None,
    json: Json = False,
) -> None:
    """A page of this machine where one drops a video: its classes, over time too, and what spoke for the answer. Ctrl-C ends it."""
    from ..apps import hub
    from ..apps import serve as page
    from ..networks import checkpoint
    from ..training import evaluate

    net, device = checkpoint.load_model(hub.locate(model)), evaluate.resolve_device(device)
    page.serve(
        net.to(device), device, host, port, model, lambda url: console.data({"url": url}, f"{url}\nCtrl-C ends it")
    )


@app.command("list")
def list_(json: Json = False) -> None:
    """The models in weights/ and the finished runs in runs/, newest first, and the starts that can be fetched."""
    import dataclasses

    from ..networks import checkpoint, zoo
    from ..networks import pretrained as starts

    models = [{"model": str(p), **zoo.summary(checkpoint.read_spec(p))} for p in zoo.models()]
    runs = [{k: zoo.result(p)[k] for k in ("run", "model", "top1", "majority", "val")} for p in zoo.runs()]
    known = {"starts": starts.known(), "backbones": starts.backbones()}
    console.data({"models": models, "runs": runs, **{k: [dataclasses.asdict(s) for s in v] for k, v in known.items()}})
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
        console.say("nothing in weights/ or runs/ yet; nlzoo inflate resnet50 --nl 5 makes a first model")
    for title, of, listed in (
        ("nlzoo import", "Kinetics-400", known["starts"]),
        ("nlzoo inflate", "ImageNet", known["backbones"]),
    ):
        console.table(
            [title, f"{of} top-1 / 5", "published by", "licence"],
            [[s.name, f"{s.top1} / {s.top5 or '-'}" if s.top1 else "", s.by, s.licence] for s in listed],
        )


@app.command()
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
    from ..apps import hub
    from ..core.model_spec import parse_name
    from ..networks import checkpoint, zoo
    from ..networks import model as models

    named = None if zoo.find(model) else parse_name(model)
    net = models.blueprint(named, classes) if named else checkpoint.read_blueprint(hub.locate(model))
    console.data(models.describe(net), models.in_words(net, None))


@app.command()
def push(
    model: Annotated[str | None, typer.Argument(help="A run or model folder; the newest finished run.")] = None,
    repo: Annotated[str | None, typer.Option(help="user/name or name on the Hub; the run's name.")] = None,
    private: Annotated[bool, typer.Option("--private/--public", help="Who may see it.")] = True,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    space: Annotated[
        bool, typer.Option("--space", help="Also a Space: a page of that name where one drops a video.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show files and bytes, send nothing.")] = False,
    json: Json = False,
) -> None:
    """Publish a model to the Hugging Face Hub, private unless you say otherwise."""
    from ..apps import hub
    from ..networks import zoo

    folder = hub.locate(model) if model else zoo.newest_run()
    repo = repo or (folder.parent.name if folder.name in ("best", "last") else folder.name)
    plans = {"model": hub.push(folder, repo, private, dry_run=True)} | (
        {"space": hub.push_space(folder, repo, private, dry_run=True)} if space else {}
    )
    who = "only you can see" if private else "everybody can see"
    for kind, plan in plans.items():
        listing = "\n".join(f"  {f['path']:20} {f['bytes']:>12,} bytes" for f in plan.files)
        console.say(f"{folder} to the {kind} {plan.repo}, which {who}:\n{listing}")
    if dry_run:
        return console.data(_pushed(plans), "nothing was sent (--dry-run)")
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("push asks before it sends, and there is nobody to ask", "add --yes")
        if not typer.confirm("send it?", err=True):
            raise typer.Exit(0)
    done = {"model": hub.push(folder, repo, private)}
    if space:
        done["space"] = hub.push_space(folder, done["model"].repo, private)
    console.data(
        _pushed(done),
        "\n".join(f"{d.url}\n{d.uploaded_bytes:,} bytes sent" for d in done.values())
        + f"\nload it with: nlzoo.load({done['model'].repo!r})",
    )


def _pushed(done):
    import dataclasses

    return dataclasses.asdict(done["model"]) | {
        kind: dataclasses.asdict(what) for kind, what in done.items() if kind != "model"
    }


@app.command()
def pull(
    repo: Annotated[str, typer.Argument(help="user/name on the Hub.")],
    name: Annotated[str | None, typer.Option(help="Folder in weights/; the repository's name.")] = None,
    json: Json = False,
) -> None:
    """Fetch a model from the Hugging Face Hub into weights/NAME."""
    from ..apps import hub
    from ..networks import zoo

    if not hub.looks_like_repo(repo):
        raise UsageError(f"{repo!r} is not user/name", "for example: nlzoo pull alice/gestures")
    folder = hub.pull_to(repo, zoo.WEIGHTS / zoo.folder_name(name or repo.split("/")[1]))
    console.data({"repo": repo, "model": str(folder)}, f"wrote {folder}")


@app.command()
def demo(json: Json = False) -> None:
    """The whole job on drawn videos and an embedded backbone: offline, without a GPU, in under three minutes."""
    from ..apps import demo as job

    console.data(job.run(console.say), "")


@app.command()
def doctor(json: Json = False) -> None:
    """What this machine can do, and how to mend what it cannot."""
    import dataclasses

    from ..apps import doctor as examiner

    findings = examiner.examine()
    console.data([dataclasses.asdict(f) for f in findings])
    marks = {True: "ok", False: "problem", None: "note"}
    console.table(["", "what", "here", "fix"], [[marks[f.ok], f.name, f.value, f.fix] for f in findings])
    if any(f.ok is False for f in findings):
        raise typer.Exit(1)


def _version(value: bool) -> None:
    if value:
        typer.echo(__version__)
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
):
    pass


def main() -> None:
    """Runs the command line and exits: 0, or the code of the `NlzooError`, or 130 when interrupted."""
    try:
        app()
    except NlzooError as problem:
        console.error(problem)
        sys.exit(problem.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of a pipe has gone: `nlzoo list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
