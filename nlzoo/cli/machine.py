"""Commands on this machine: demo, doctor, bench."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import UsageError
from ..core.model_spec import refuse_several
from . import console
from .options import Device, Json, refuse_early, warn_of_unfinished


def demo(json: Json = False) -> None:
    """The whole job on drawn videos and an embedded backbone: offline, without a GPU, in under three minutes."""
    from ..apps import demo as job

    console.result(job.run(console.log), "")


def bench(
    model: Annotated[
        str | None, typer.Argument(help="A model folder, a run or a name. Default: the newest in weights/.")
    ] = None,
    videos: Annotated[Path | None, typer.Argument(help="Videos to measure decoding on: a folder or a list.")] = None,
    frames: Annotated[int | None, typer.Option(min=1, max=1024, help="Frames a clip. Default: the model's.")] = None,
    size: Annotated[
        int | None, typer.Option(min=16, max=2048, help="Side of the clip in pixels. Default: as finetune has it.")
    ] = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Measure how fast this machine trains, by precision, compiler, clips at a time and workers, in about a minute."""
    from ..networks import zoo

    refuse_early(model, videos, labelled=True)

    from ..networks import checkpoint, download
    from ..training import devices, plan, tuning
    from ..training.options import FinetuneOptions

    on = devices.resolve(device)
    known = zoo.models()
    if not model and not known:
        raise UsageError("there is no model in weights/ to measure", "nlzoo inflate resnet50 --nl 5 makes one")
    net = checkpoint.load_model(download.locate(model) if model else known[0])
    warn_of_unfinished(model or "")
    refuse_several(net.spec, "be measured in training")
    plan.fit_clip(net, FinetuneOptions(frames=frames, size=size), on)
    with console.progress("measuring") as bar:
        done = tuning.bench(net, on, videos, bar)
    console.table(["training step", "clips a second", "peak memory"], [m.cells() for m in done.settings])
    decoded = [[str(count), f"{rate:.1f}"] for count, rate in done.workers.items()]
    console.table(["workers", "clips decoded a second"], decoded)
    console.result(dataclasses.asdict(done) | {"line": done.line}, f"{done.line}\nor: nlzoo finetune VIDEOS --tuned")


def doctor(json: Json = False) -> None:
    """What this machine can do, and how to fix what it cannot."""
    from ..apps import doctor as examiner

    console.status("examining this machine …")
    results = examiner.examine()
    console.result([dataclasses.asdict(result) for result in results])
    marks = {True: "ok", False: "problem", None: "note"}
    console.table(["", "what", "here", "fix"], [[marks[r.ok], r.name, r.value, r.fix] for r in results])
    if any(result.ok is False for result in results):
        raise typer.Exit(1)
