"""Commands that answer: eval, predict, explain, report, serve."""

from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import UsageError
from ..core.text import printable
from . import console
from .options import Decoder, Device, Json, Model, Videos, Views


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

    from ..core import tables
    from ..core.text import printable
    from ..core.view_spec import parse_views
    from ..networks import checkpoint, download
    from ..training import evaluate, metrics
    from ..videos import listing, loader, pool, scanning

    looks = parse_views(views)
    if out:
        tables.check(out)
    net = checkpoint.load_model(download.locate(model))
    device = evaluate.resolve_device(device)
    with console.progress("scanning") as bar:
        found = scanning.scan(videos, (), bar)
    items = scanning.items_in(found, listing.TEST) or scanning.items_in(found, listing.VAL) or list(found.items)
    classes, several = net.spec.classes, net.spec.multi_label
    if unknown := {label for i in items for label in i.labels} - set(classes):
        raise UsageError(
            f"{model} does not know class {printable(min(unknown))!r}",
            f"its classes: {', '.join(map(printable, classes[:12]))}",
        )
    if found.multi_label and not several:
        raise UsageError(
            f"{model} gives each video one class, and these have several, or none", "measure it on videos of one label"
        )
    source = loader.Clips(found.root, tuple(items), net.spec.clip, views=looks, decoder=decoder)

    def said(order):
        with console.progress("evaluating" if order == "true" else f"evaluating, frames {order}") as bar:
            return evaluate.predictions(
                net.to(device),
                dataclasses.replace(source, views=dataclasses.replace(looks, order=order)),
                device,
                pool.default_workers(str(device)),
                bar,
            )

    true = said("true")
    summary = {
        **metrics.full(true.scores, true.items, classes, several),
        "views": looks.num_views,
        "look": str(looks),
        "skipped": len(found.skipped) + len(true.bad),
    }
    for skipped in [*found.skipped, *true.bad]:
        console.warn(f"skipped {skipped}")
    if control:
        summary["control"] = {
            order: evaluate.compare_to_control(true, said(order), classes, several) for order in metrics.CONTROLS
        }
    if out:
        tables.write(out, evaluate.as_rows(true, classes, found.skipped))
        console.log(f"wrote {printable(out)}")
    console.result(summary, metrics.in_words(summary))
    console.table(*metrics.class_table(summary))


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
    from ..apps import predict as answers
    from ..core.text import printable
    from ..core.view_spec import parse_views
    from ..networks import checkpoint, download
    from ..training import evaluate
    from ..videos import pool

    looks = parse_views(views)
    how = _windows(every, window, features, looks)
    _refuse_files(out, features)
    net = checkpoint.load_model(download.locate(model))
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
                _tell_answer(row, top, printable)
    good = sum("error" not in row for row in rows)
    _keep(rows, out, features if good else None)
    summary = [{k: v for k, v in row.items() if k != "features"} for row in rows]
    console.result(
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
        console.log(f"wrote {printable(file)}")


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


def _tell_answer(row, top, printable):
    console.result(None, printable(row["path"]))
    for part in row.get("segments", ()):
        console.result(
            None, f"  {part['start']:8.2f} to {part['end']:8.2f} s  {part['score']:6.3f}  {printable(part['class'])}"
        )
    for name, score in list(row.get("scores", {}).items())[:top]:
        console.result(None, f"  {score:6.3f}  {printable(name)}")


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
    from ..apps import explain, pictures
    from ..networks import checkpoint, download
    from ..training import evaluate

    asked = [explain.point(text) for text in at or ()]
    device = evaluate.resolve_device(device)
    net = checkpoint.load_model(download.locate(model)).to(device)
    summary = explain.explain(net, video, device, of, asked, points)
    files = pictures.write(summary, folder := out or Path(f"explain-{video.stem}"))
    console.result(
        {**summary.summary(), "files": [str(f) for f in files]},
        f"{explain.in_words(summary)}\nwrote {len(files)} files into {printable(folder)}",
    )


def report(
    run: Annotated[
        str | None, typer.Argument(help="A run's folder, or its name in runs/; the newest finished run.")
    ] = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Write RUN/report.html: curves, classes, confusions, calibration, best and worst clips, on one page that needs nothing else."""
    from ..apps import report as pages
    from ..core.text import printable
    from ..networks import zoo
    from ..training import evaluate
    from ..videos import pool

    device = evaluate.resolve_device(device)
    places = [zoo.newest_run().parent] if run is None else [Path(run), zoo.RUNS / run]
    folder = next((p for p in places if (p / "config.json").is_file()), places[0])
    with console.progress("looking at the run's videos") as bar:
        file = pages.write(folder, device, pool.default_workers(str(device)), bar)
    console.result({"report": str(file)}, f"wrote {printable(file)}")


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
    from ..apps import serve as page
    from ..networks import checkpoint, download
    from ..training import evaluate

    net, device = checkpoint.load_model(download.locate(model)), evaluate.resolve_device(device)
    page.serve(
        net.to(device), device, host, port, model, lambda url: console.result({"url": url}, f"{url}\nCtrl-C ends it")
    )
