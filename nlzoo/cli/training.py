"""The command that trains: finetune."""

import dataclasses
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import NlzooError
from ..core.recipe_spec import IMAGENET
from ..core.text import printable
from . import console, processes
from .options import (
    CLIPS,
    MACHINE,
    NETWORK,
    RUN,
    TRAINING,
    Classes,
    Decoder,
    Device,
    Json,
    Val,
    Videos,
    fetched,
    picked,
    refuse_early,
    refuse_model,
)
from .processes import Gpus
from .videos import tell_scan

if TYPE_CHECKING:  # torch is imported when a command runs
    from ..training.callbacks import Callbacks, Event, Step
    from ..training.dry_run import Rehearsal
    from ..training.run_folder import Epoch, Result, SeedResults


def finetune(
    videos: Videos,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="The model or run to start from. Default: the newest in weights/, else imagenet (resnet50, --nl 5). "
            "A 2-D network of timm that is not inflated (inception_resnet_v2) is trained frame by frame.",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="auto (default), small, paper, paper-long or charades, with changes: paper,epochs=20.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Passes over the training clips. Default: by their number.", rich_help_panel=TRAINING),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(min=1, help="Clips a step. Default: 4 on a CPU, 16 on a GPU.", rich_help_panel=TRAINING),
    ] = None,
    lr: Annotated[
        str | None,
        typer.Option(
            help="Learning rate of the backbone; auto: by a short range test. Default: by the batch.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    freeze: Annotated[
        str | None,
        typer.Option(
            help="Do not train the backbone: all of it (backbone), or up to a stage (res4). Head and blocks train.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    frames: Annotated[
        int | None,
        typer.Option(
            min=1, max=1024, help="Frames a clip. Default: the model's; 8 after inflate.", rich_help_panel=CLIPS
        ),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1024,
            help="Video frames from one to the next. Default: the model's, or spread over the video.",
            rich_help_panel=CLIPS,
        ),
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option(help="Frame rate that the stride counts in. Default: each video's own.", rich_help_panel=CLIPS),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            min=16,
            max=2048,
            help="Side of the clip in pixels. Default: the trained model's, else 224 on a GPU, 112 on a CPU.",
            rich_help_panel=CLIPS,
        ),
    ] = None,
    stream: Annotated[
        str | None,
        typer.Option(
            help="rgb, flow (by OpenCV; flow-tvl1: by TV-L1) or audio. Default: the model's, which is rgb at first.",
            rich_help_panel=CLIPS,
        ),
    ] = None,
    nl: Annotated[
        str | None,
        typer.Option(
            help="Add randomly initialised non-local blocks to a model without any: 5, res4:5, as in inflate.",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    classes: Classes = None,
    augment: Annotated[
        str | None,
        typer.Option(
            help="light, few, medium, strong or paper, with changes: strong,flip=no. Default: by the number of clips.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    val: Val = "0.25",
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the split, the order, the crops and dropout.", rich_help_panel=RUN)
    ] = 0,
    seeds: Annotated[
        int,
        typer.Option(
            min=1, max=100, help="Runs with this many seeds, for mean and standard deviation.", rich_help_panel=RUN
        ),
    ] = 1,
    cache: Annotated[
        Path | None,
        typer.Option(help="Keep decoded frames or flow in this folder; for sets that fit.", rich_help_panel=CLIPS),
    ] = None,
    decoder: Decoder = "auto",
    workers: Annotated[
        int | None,
        typer.Option(
            min=0, max=1024, help="Processes that decode videos. Default: by the CPUs.", rich_help_panel=MACHINE
        ),
    ] = None,
    gpus: Gpus = 1,
    track: Annotated[
        str | None, typer.Option(help="Also log to tensorboard, wandb or trackio.", rich_help_panel=RUN)
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Resume the unfinished run with its own settings, whatever else is given.",
            rich_help_panel=RUN,
        ),
    ] = False,
    tuned: Annotated[
        bool,
        typer.Option(
            help="Precision, compile and workers as nlzoo bench found them fastest.", rich_help_panel=TRAINING
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Memory, time, and whether the network overfits one batch; no run.", rich_help_panel=RUN
        ),
    ] = False,
    name: Annotated[str | None, typer.Option(help="The run's folder in --out.", rich_help_panel=RUN)] = None,
    out: Annotated[Path, typer.Option(help="Folder that runs go into.", rich_help_panel=RUN)] = Path("runs"),
    device: Device = None,
    json: Json = False,
) -> None:
    """Train a classifier on your videos, keep best and last. The same command resumes a run that was stopped."""
    from ..networks import zoo
    from ..training.options import FinetuneOptions

    options = picked(FinetuneOptions, locals()) | {"runs": out}
    FinetuneOptions(**options)  # refuses what cannot be
    if not resume:
        both = [str(Path(start)) if start and Path(start).exists() else "VIDEOS", "--from", str(videos)]
        refuse_model(videos, shlex.join(["nlzoo", "finetune", *both]))
        known = start == IMAGENET or (start and zoo.is_frame_network(start))
        refuse_early(None if known else start, videos, labelled=True)
    if not resume:
        videos = fetched(videos)

    from ..training import finetune as training

    processes.begin(gpus, device, "resumes from the last checkpoint")
    with run_callbacks("finetune") as callbacks:
        outcome = training.finetune(videos, start, callbacks, **options)
    _show(outcome, device)


# --- what is said on the way

_EVENTS = {  # by the code of an event; the values are its own
    "note": "{text}",
    "starting_from": "starting from {folder}",
    "on_frames": "starting from {backbone}, frame by frame",
    "inflating": "no model in weights/: inflating {backbone} --nl {nl}",
    "inflating_2d": "sound is seen by a 2-D network on each patch: inflating {backbone} --arch c2d --nl {nl}",
    "kinetics_first": "a better start is a network trained on Kinetics-400: nlzoo import {name} (top-1 {top1} there, "
    "licence {licence}), then this command again; --from imagenet says no",
    "images_only": "it has seen images only; on a small set a network trained on Kinetics is often 10 to 20 points "
    "better: nlzoo list",
    "no_probe": "no linear probe to compare with: {reason}",
    "resuming": "resuming {run} with the settings that it was started with",
    "videos_gone": "{videos} of its videos cannot be used any more: it will not end as it would have",
    "no_sound": "{videos} of {total} videos have no sound: {train} of them are left out of training, "
    "the others are given the shares of the classes in it",
    "passed_over": "passed over {name}: {reason}",
    "resumed": "resumed from step {step} of {steps}, in epoch {epoch}",
    "stopped_early": "stopped early: no better epoch in the last {epochs}",
    "out_of_memory": "out of memory: each batch is now taken in {parts} parts; batch and rate stay as they are",
}
_PHASES = {
    "scan": "scanning",
    "rehearse": "overfitting one batch",
    "range_test": "range test of the learning rate",
    "validate": "validation",
    "features": "fitting a linear head",
}


@contextmanager
def run_callbacks(name: str) -> Iterator["Callbacks"]:
    """What a run says, in words: on the terminal, and in log.txt once there is a folder for it."""
    from ..training.callbacks import Callbacks

    with console.progress(name) as bar:
        try:
            yield Callbacks(
                epoch=_tell_epoch,
                step=lambda step: bar(step.done, step.total, _step_in_words(step)),
                log=lambda event: console.log(event_in_words(event)) if event_in_words(event) else None,
                warn=lambda event: console.warn(event_in_words(event)),
                dataset=tell_scan,
                folder=lambda run: console.log_to(run / "log.txt" if run else None),
            )
        finally:
            console.log_to(None)


def event_in_words(event: "Event") -> str:
    """A sentence or several lines; "" for what need not be said."""
    from ..training import learning_curve, metrics

    values = event.values
    if event.code == "planned":
        processes = f", {values['world']} processes" if values["world"] > 1 else ""
        return "\n".join([f"on {values['device']}{processes}: {values['clip']}", *map(str, values["decisions"])])
    if event.code == "other_versions":
        changes = "; ".join(f"{key} {then} then, {now} now" for key, (then, now) in values["changed"].items())
        return f"the checkpoint was written by other versions ({changes}): the last bits may differ"
    if event.code == "learning_curve":
        curve = learning_curve.from_json(values)
        return curve.text if curve else ""
    if event.code == "too_few":
        return metrics.too_few(**values)
    if event.code == "time_left":
        return f"about {values['minutes']} minutes to go" if values["minutes"] > 2 else ""
    safe = {name: printable(value) if isinstance(value, str) else value for name, value in values.items()}
    return _EVENTS.get(event.code, "").format(**safe)


def _step_in_words(step: "Step") -> str:
    if step.phase != "train":
        return _PHASES[step.phase]
    left = f", {step.seconds_left / 60:.0f} min left" if step.seconds_left > 90 else ""
    return f"epoch {step.epoch}/{step.epochs}, {step.waiting:.0%} of the time waiting for videos{left}"


def _tell_epoch(epoch: "Epoch") -> None:
    figure = "mAP" if epoch.top1 is None else "top-1"
    if not epoch.epoch:
        console.log(f"linear head on the start's features: val {figure} {epoch.score:.3f}, val loss {epoch.loss:.3f}")
        return
    note = f", {epoch.failed} videos unreadable" if epoch.failed else ""
    console.log(
        f"epoch {epoch.epoch}: train loss {epoch.train_loss:.3f}, val {figure} {epoch.score:.3f}, "
        f"val loss {epoch.loss:.3f}, {epoch.seconds:.0f} s of which {epoch.data_seconds:.0f} s waiting for videos{note}"
    )


# --- what came out


def _show(outcome: "Result | SeedResults | Rehearsal", device: str | None) -> None:
    """The outcome as JSON or in words, after the reports of the runs."""
    from ..training.dry_run import Rehearsal
    from ..training.run_folder import SeedResults

    if isinstance(outcome, Rehearsal):
        console.result(dataclasses.asdict(outcome), _rehearsal_in_words(outcome))
        return
    several = isinstance(outcome, SeedResults)
    results = outcome.runs if isinstance(outcome, SeedResults) else [outcome]
    for result in results if not console.state.muted else ():
        _report(Path(result.run), device)
    value = outcome.as_json() if isinstance(outcome, SeedResults) else dataclasses.asdict(outcome)
    text = "\n".join(map(_result_in_words, results))
    console.result(value, f"{text}\n{_seeds_in_words(value)}" if several else text)


def _report(run: Path, device: str | None) -> None:
    """The run's page; the run has finished, whatever becomes of that."""
    from ..apps import report
    from ..training import devices
    from ..videos import pool

    if (run / "report.html").exists():
        return
    try:
        with console.progress("writing the report") as bar:
            on = devices.resolve(device)
            console.log(f"report {report.write(run, on, pool.default_workers(on.type), bar)}")
    except NlzooError as problem:
        console.warn(f"there is no report: {problem.message}; nlzoo report {printable(run)} tries again")


def _rehearsal_in_words(rehearsal: "Rehearsal") -> str:
    verdict = "it does NOT overfit: look at the videos (nlzoo check), or try another --lr"
    if rehearsal.learns:
        verdict = "it overfits, as it should"
    return (
        f"one batch again and again: loss {rehearsal.first_loss:.3f} to {rehearsal.last_loss:.3f}: {verdict}\n"
        f"about {rehearsal.bytes / 2**30:.1f} GiB, {rehearsal.seconds_a_step} s a step, {rehearsal.steps} steps: "
        f"{rehearsal.minutes} minutes, and the validations; nothing was written"
    )


def _result_in_words(result: "Result") -> str:
    figure, value, last = "top-1", result.top1, result.last_top1
    if value is None:
        figure, value, last = "mAP", result.map, result.last_map
    which = f"epoch {result.best_epoch} of {result.epochs}, the best on these videos; the last had {last:.3f}"
    if result.best_epoch == 0:
        which = f"the linear probe that training started from, which no epoch beat; the last had {last:.3f}"
    elif result.probe is not None:
        which += f", the linear probe before training {result.probe:.3f}"
    return (
        f"{figure} {value:.3f} on {result.val} videos (majority-class baseline: {result.majority:.3f}); {which}\n"
        f"model {result.model}\nnext: nlzoo predict {result.run} VIDEO    nlzoo push {result.run}"
    )


def _seeds_in_words(summary: dict[str, Any]) -> str:
    key = "map" if "map_mean" in summary else "top1"
    last, best = (f"{summary[f'{n}_mean']:.3f} ± {summary[f'{n}_std']:.3f}" for n in (f"last_{key}", key))
    return f"over {len(summary['runs'])} seeds: last epoch {last}, best epoch {best}"
