"""The command that trains: finetune."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import NlzooError, UsageError
from ..core.text import printable
from . import console
from .options import Classes, Decoder, Device, Json, Val, Videos
from .videos import tell_scan


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
    classes: Classes = None,
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
        console.result(
            _over_seeds(results), "\n".join(map(_in_words, results)) + "\n" + _seeds_in_words(_over_seeds(results))
        )
    elif results[0] is not None:
        console.result(results[0], _in_words(results[0]))


def _report(run, device):
    """The run's page; the run has finished, whatever becomes of that."""
    from ..apps import report
    from ..videos import pool

    if (run / "report.html").exists():
        return
    try:
        with console.progress("writing the report") as bar:
            console.log(f"report {report.write(run, device, pool.default_workers(str(device)), bar)}")
    except NlzooError as problem:
        console.warn(f"there is no report: {problem.message}; nlzoo report {printable(run)} tries again")


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
        with console.progress(f"scanning {printable(str(asked.videos))}") as bar:
            found = scanning.split(scanning.scan(asked.videos, asked.classes or (), bar), asked.val, seed)
        tell_scan(found)
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

    talk = train.Callbacks(_tell_epoch, say=console.log)
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
        console.log(
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
    console.log(
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
    console.log(f"going on with {run} as it was begun")
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
        summary = train.rehearse(net, found, config, train.Callbacks(step=bar, say=console.log))
    verdict = (
        "learnt by heart"
        if summary["learns"]
        else "NOT learnt by heart: look at the videos (nlzoo check), or try another --lr"
    )
    console.result(
        summary,
        f"one batch, {train.REHEARSAL} steps: loss {summary['first_loss']:.3f} to {summary['last_loss']:.3f}: {verdict}\n"
        f"about {summary['bytes'] / 2**30:.1f} GiB, {summary['seconds_a_step']} s a step, {summary['steps']} steps: {summary['minutes']} minutes, "
        "and the validations; nothing was written",
    )


def _starting_model(start):
    """`(folder, net)`: the one asked for, the newest in weights/, or the default, made now."""
    from ..core.model_spec import Inflation
    from ..networks import card, checkpoint, download, model, zoo

    if start:
        folder = download.locate(start)
    elif newest := zoo.models():
        folder = newest[0]
    else:
        console.log("no model in weights/: inflating resnet50 --nl 5")
        net, checks = model.inflate("resnet50", None, Inflation(), "5", download.backbone_weights)
        readme = card.body(net.spec, None, checks.summary())
        folder = checkpoint.save_model(zoo.WEIGHTS / zoo.default_name(net.spec), net, readme=readme)
    console.log(f"starting from {folder}")
    return folder, checkpoint.load_model(folder)


def _tell_epoch(line):
    note = f", {line.failed} videos unreadable" if line.failed else ""
    console.log(
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
