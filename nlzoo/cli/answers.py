"""Commands that ask a model: eval, predict, probe, explain, report, serve."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.text import counted, printable
from . import console, processes
from .options import (
    ANSWERS,
    CLIPS,
    TRAINING,
    Decoder,
    Device,
    Json,
    Model,
    Threshold,
    Val,
    Videos,
    Views,
    fetched,
    refuse_early,
    refuse_models,
    warn_of_unfinished,
)
from .processes import Gpus, Part
from .videos import tell_scan

if TYPE_CHECKING:
    from ..apps.journal import Journal
    from ..apps.predict import Options


_REASONS = 100  # that are told of a table's, which has all


def eval_(
    model: Model,
    videos: Videos,
    views: Views = None,
    control: Annotated[
        bool,
        typer.Option(
            "--control",
            help="Also with frames shuffled, and with one frame alone: does the model use motion?",
            rich_help_panel=ANSWERS,
        ),
    ] = False,
    classes: Annotated[
        str,
        typer.Option(
            help="shared: leave out videos of classes that the model does not know. Otherwise all.",
            rich_help_panel=CLIPS,
        ),
    ] = "all",
    threshold: Threshold = None,
    out: Annotated[
        Path | None,
        typer.Option(help="A row for each video: FILE.csv, .jsonl or .parquet.", rich_help_panel=ANSWERS),
    ] = None,
    predicted: Annotated[
        str | None,
        typer.Option(
            help="Open no video: FILE.jsonl of nlzoo predict, or 'PATTERN' of its shards.", rich_help_panel=CLIPS
        ),
    ] = None,
    gpus: Gpus = 1,
    decoder: Decoder = "auto",
    device: Device = None,
    json: Json = False,
) -> None:
    """Measure a model on labelled videos (test/, else val/, else all): top-1 or mAP, each class, calibration."""
    refuse_early(model, videos, views, decoder=decoder, labelled=True)
    videos = fetched(videos)

    from ..training import devices, engine, evaluate, metrics

    processes.begin(gpus, device, "measures again")
    with engine.distributed_errors():
        engine.set_current_gpu()
        here = engine.begin(devices.resolve(device))
        done = evaluate.evaluate(
            model,
            videos,
            views,
            control,
            classes,
            out,
            decoder,
            here.device,
            console.progress,
            here,
            threshold,
            predicted,
        )
    for note in done.notes:
        console.warn(note)
    for skipped in done.skipped:
        console.warn(f"skipped {skipped}")
    if out:
        console.log(f"wrote {printable(out)}")
    console.result(done.figures, metrics.in_words(done.figures))
    console.table(*metrics.class_table(done.figures))


def predict(
    model: Model,
    videos: Annotated[
        list[Path],
        typer.Argument(help="Video files or folders of frames, folders of them, or - for names on standard input."),
    ],
    top: Annotated[
        int, typer.Option(min=1, help="Classes to show; --json and --out have all.", rich_help_panel=ANSWERS)
    ] = 5,
    threshold: Threshold = None,
    views: Views = None,
    every: Annotated[
        str | None,
        typer.Option(
            help="Windows over long videos: one every so many seconds (1s), joined into segments.",
            rich_help_panel=CLIPS,
        ),
    ] = None,
    window: Annotated[
        str | None,
        typer.Option(
            help="Seconds of a window. By default those of the network's clip, or twice --every.",
            rich_help_panel=CLIPS,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="A row for each video or window: FILE.csv, .jsonl or .parquet; FILE-00003-of-00016 of a shard.",
            rich_help_panel=ANSWERS,
        ),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(
            help="The inputs of the last layer instead of classes: FILE.safetensors or .parquet.",
            rich_help_panel=ANSWERS,
        ),
    ] = None,
    shard: Part = "1/1",
    gpus: Gpus = 1,
    decoder: Decoder = "auto",
    device: Device = None,
    json: Json = False,
) -> None:
    """Classify videos, with probabilities. Exit code 1 when some could not be read, 3 when none could."""
    refuse_early(model, None, views, decoder=decoder)
    refuse_models(model, videos)

    from ..apps import predict as app
    from ..training import devices, engine

    options = app.Options(views, every, window, out, features, decoder, shard, threshold)
    options.check_file(videos)
    processes.begin(gpus, device, "resumes behind the answers that are there")
    with engine.distributed_errors():
        engine.set_current_gpu()
        here = engine.begin(devices.resolve(device))
        show = partial(_print_prediction, top if here.world == 1 else 0)
        with app.answered(model, videos, options, here.device, console.progress, show, console.warn, here) as rows:
            _tell_predictions(rows, options)


def _tell_predictions(rows: "Journal", options: "Options") -> None:
    """What was written, the rows as JSON, and what could not be read. Raises `typer.Exit` where there is such."""
    failed = sum("error" in row for row in rows)
    good = len(rows) - failed
    if options.file and (good or not options.as_features):
        console.log(f"wrote {printable(options.file)}")
    if options.as_features and console.state.json:
        errors = [row for row in rows if "error" in row]
        console.result({"features": str(options.file), "videos": good, "failed": errors})
    else:
        console.results(rows)
    reasons = _tell_reasons(rows, options.file if not options.as_features else None)  # a table has them too
    if reasons:
        parts = "windows" if options.windows else f"of {counted(len(rows), 'video')}"
        console.warn(f"{reasons} {parts} could not be read")
        raise typer.Exit(1 if good else 3)


def _tell_reasons(rows: "Journal", out: Path | None) -> int:
    """Why videos or windows could not be read; the first of them where the table `out` has all. Returns how many."""
    from ..apps import predict as app

    reasons = 0
    for reasons, reason in enumerate(app.failures(rows), 1):
        if reasons <= _REASONS or not out:
            console.warn(reason)
    if out and reasons > _REASONS:
        console.warn(f"and {reasons - _REASONS:,} more: the column error of {printable(out)} has all")
    return reasons


def _print_prediction(top: int, row: dict) -> None:
    """The classes of a video, or its segments, as soon as they are there; nothing with `--json`, or a `top` of 0."""
    if console.state.json or not top or not {"scores", "segments"} & row.keys():
        return
    lines = [printable(row["path"])]
    lines += [
        f"  {part['start']:8.2f} to {part['end']:8.2f} s  {part['score']:6.3f}  {printable(part['class'])}"
        for part in row.get("segments", ())
    ]
    lines += [f"  {score:6.3f}  {printable(name)}" for name, score in list(row.get("scores", {}).items())[:top]]
    if "note" in row:
        lines.append(f"  {printable(row['note'])}")
    if "labels" in row:
        lines.append(f"  labels: {', '.join(map(printable, row['labels'])) or 'none'}")
    console.result(None, "\n".join(lines))


def probe_(
    models: Annotated[
        list[str],
        typer.Argument(
            help="A model as for eval, or any 2-D network of timm, which sees frame by frame: "
            "vit_small_patch14_dinov2. Features of several stand side by side.",
        ),
    ],
    videos: Videos,
    head: Annotated[
        str, typer.Option(help="linear, or over windows of a video lstm or attention.", rich_help_panel=TRAINING)
    ] = "linear",
    windows: Annotated[
        int | None,
        typer.Option(min=1, max=256, help="Of a video, for lstm and attention. Default: 8.", rich_help_panel=TRAINING),
    ] = None,
    features: Annotated[
        list[Path] | None,
        typer.Option(
            help="FILE.safetensors of predict --features, one for each MODEL: read where it is there, else written.",
            rich_help_panel=CLIPS,
        ),
    ] = None,
    val: Val = "0.25",
    seed: Annotated[int, typer.Option(min=0, help="Of the split.")] = 0,
    size: Annotated[
        int | None,
        typer.Option(
            min=16,
            max=2048,
            help="Side of the clip, pixels; of a model trained on videos its own, else 224, on a CPU 112.",
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(help="Weights of the 2-D network, .safetensors or .pth, in timm's keys, instead of the Hub's."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Folder in runs/.")] = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """The fast baseline: a linear classifier on a model's features. It makes a run, in minutes instead of hours."""
    for model in models:
        refuse_early(model, videos, val=val, images=True, labelled=model == models[-1])  # the videos once, after all
    videos = fetched(videos)

    from ..training import metrics, probe

    for model in models:
        warn_of_unfinished(model)
    made = probe.probe(
        models,
        videos,
        val,
        seed,
        size,
        name,
        "auto",
        device,
        console.progress,
        tell_scan,
        weights,
        head=head,
        windows=windows,
        features=features,
    )
    for skipped in made.skipped:
        console.warn(f"skipped {skipped}")
    baseline = f"majority-class baseline: {made.figures['majority']:.3f}"
    lines = [metrics.in_words(made.figures), baseline, f"model {made.figures['model']}"]
    if made.curve:
        lines.append(made.curve.text)
    console.result(made.figures, "\n".join(lines))


def explain_(
    model: Model,
    video: Annotated[Path, typer.Argument(help="A video file, or a folder of frames.")],
    target_class: Annotated[
        str | None, typer.Option("--class", "--of", help="The class to show evidence for; the predicted one.")
    ] = None,
    at: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FRAME,Y,X",
            help="A point to draw arrows from: frame of the clip, from 0; y and x from 0 to 1. May be repeated.",
        ),
    ] = None,
    points: Annotated[
        int, typer.Option(min=1, help="Without --at: points of each block, where it changes its input most.")
    ] = 3,
    out: Annotated[Path | None, typer.Option(help="Folder for the pictures; explain-NAME of the video.")] = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Show the evidence for a prediction: where the non-local blocks attend to, and Grad-CAM, as PNG and mp4."""
    from ..core import files
    from ..videos import listing

    refuse_early(model)
    refuse_models(model, [video])
    listing.refuse_address(video)

    from ..apps import explain, pictures
    from ..training import devices, evaluate

    folder = out or Path(f"explain-{video.stem}")
    at_points = [explain.parse_point(text) for text in at or ()]
    on = devices.resolve(device)
    files.check_folder(folder)
    net, _ = evaluate.open_network(model, on, video, "explain")
    warn_of_unfinished(model)
    explanation = explain.explain(net, video, on, target_class, at_points, points)
    written = [str(file) for file in pictures.write(explanation, folder)]
    lines = [str(explanation), "wrote", *(f"  {printable(file)}" for file in written)]
    console.result(explanation.summary() | {"files": written}, "\n".join(lines))


def report(
    run: Annotated[
        str | None, typer.Argument(help="A run's folder, or its name in runs/; the newest finished run.")
    ] = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Write RUN/report.html: curves, confusion matrix, calibration, best and worst predictions, on one page."""
    from ..networks import zoo

    folder = zoo.find_run(run)  # before torch is imported
    zoo.refuse_without_model(folder)
    warn_of_unfinished(str(folder))

    from ..apps import report as reports
    from ..training import devices
    from ..videos import pool

    on = devices.resolve(device)
    with console.progress("predicting the validation videos") as bar:
        file = reports.write(folder, on, pool.default_workers(str(on)), bar)
    console.result({"report": str(file)}, f"wrote {printable(file)}")


def serve(
    model: Model,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 0,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets everybody in your network in.")
    ] = "127.0.0.1",
    threshold: Threshold = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """A local web demo: drop a video, see its classes, over time too, and the evidence. Ctrl-C ends it."""
    refuse_early(model)

    from ..apps import serve as page
    from ..training import devices, evaluate

    at = devices.resolve(device)
    net, _ = evaluate.open_network(model, at, "VIDEO", "serve")
    warn_of_unfinished(model)
    net = evaluate.with_threshold(net, threshold)
    page.serve(net, at, host, port, model, lambda url: console.result({"url": url}, f"{url}\nCtrl-C ends it"))
