"""`nlzoo report RUN`: all of a run on one HTML page that needs nothing else: no network, no script, no other file.

`gather` looks at the run and asks its best model about the validation videos once more; `page` makes the text of what was gathered, the same
each time; the words are in report.html.j2. Unusual: whatever the template prints goes through `text.printable` and then through jinja's
autoescape, so nothing has to be remembered where a name is shown, and what is markup already says so by its type.
"""

import base64
import csv
import os
import re
import shlex
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from markupsafe import Markup

from ..core import files, model_spec, recipe_spec
from ..core.errors import UsageError, WeightsError
from ..core.skipped import Skipped
from ..core.text import printable
from ..networks import card, checkpoint, describe, zoo
from ..training import evaluate, metrics, run_folder
from ..videos import clips, listing, loader, scanning, splits
from . import charts, explain, pictures

SHOWN = 3  # clips that went best, and as many that went worst
FRAMES, SIDE = 8, 144  # of such a clip, at most, and pixels of each
TOP = 3  # answers to a clip
ARROWS = 2  # non-local blocks that are explained, those that change the clip most
MANY = 40  # rows of a table from which on it is folded
NAMED = 20  # classes of a confusion matrix that is a table; more make a picture
LISTED = 20  # confusions beside such a picture, and classes above a folded table
LOST = 200  # videos that are listed as skipped


@dataclass(frozen=True)
class Clip:
    """One validation video and what was said of it."""

    path: str
    truth: tuple[str, ...]
    answers: tuple[tuple[str, float], ...]  # the likeliest classes, best first, and the true ones after them
    right: bool
    frames: np.ndarray  # uint8 (T, S, S, 3), as the network saw them


@dataclass(frozen=True)
class Facts:
    """All that the page says."""

    run: str  # the folder
    date: str  # of the last line of its log; "" without one
    finished: bool
    spec: model_spec.ModelSpec
    config: recipe_spec.TrainConfig
    epochs: tuple[run_folder.Epoch, ...]  # at least one
    chosen: run_folder.Epoch  # the best of them, whose network is kept
    figures: dict  # `metrics.full` of that network, computed anew
    chance: float  # what an answer that never looks gets
    items: tuple[listing.Item, ...]  # of the run, those that are still there
    rule: str  # how the split was made, in words
    skipped: tuple[Skipped, ...]  # from before the run
    gone: tuple[Skipped, ...]  # what cannot be read any more
    best: tuple[Clip, ...]
    worst: tuple[Clip, ...]
    why: tuple[tuple[Clip, explain.Explanation], ...]
    reasons: tuple[tuple[str, str], ...]  # (field, value and reason) of the recipe, where the run has a log
    environment: dict
    network: dict  # `describe.describe`
    size: int  # bytes of the weights
    device: str  # the device that was asked anew


# --- what there is


def find(run: str | None) -> Path:
    """The run's folder that a user's word means: a path, a name in runs/, or the newest finished run. Raises `UsageError`."""
    places = [zoo.newest_run().parent] if run is None else [Path(run), zoo.RUNS / run]
    return next((place for place in places if (place / "config.json").is_file()), places[0])


def gather(run: Path, device: torch.device, workers: int = 0, progress=lambda done, total: None) -> Facts:
    """Everything that the page of `run` says; its best model answers the validation videos once more, on `where`.

    Raises `UsageError` for a folder that is no run or has no epoch behind it, `VideoError` where its videos are gone, `WeightsError` where
    its model or records are missing or damaged.
    """
    run = Path(run)
    config, epochs = _config(run), _epochs(run)
    net = checkpoint.load_model(run / "best").to(device)
    found, known = scanning.scan(run / "videos.csv"), net.spec
    _refuse_others(run, found, known)
    held = loader.Clips(found.root, tuple(scanning.items_in(found, listing.VAL)), known.clip, decoder=config.decoder)
    said = evaluate.predictions(net, held, device, workers, progress)
    best, worst = _looked_at(said, replace(held, items=said.items), known, workers)
    return Facts(
        str(run),
        _date(run),
        (run / "result.json").is_file(),
        known,
        config,
        epochs,
        run_folder.best_epoch(epochs),
        metrics.full(said.scores, said.items, known.classes, known.multi_label),
        metrics.chance(known.classes, scanning.items_in(found, listing.TRAIN), said.items, known.multi_label),
        found.items,
        _rule(run, found),
        _skipped(run),
        (*found.skipped, *said.bad),
        best,
        worst,
        tuple(
            (c, explain.explain_clip(net, torch.from_numpy(c.frames), device, c.path)) for c in (*best[:1], *worst[:1])
        ),
        _reasons(run),
        _environment(run),
        describe.describe(net),
        (run / "best" / "model.safetensors").stat().st_size,
        torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    )


def _config(run):
    summary = files.read_json(run / "config.json") if (run / "config.json").is_file() else None
    if not isinstance(summary, dict) or "train" not in summary:
        raise UsageError(
            f"{printable(run)} is no run: it has no config.json of one",
            "give a run's folder, such as runs/videos-1; nlzoo list shows all",
        )
    return recipe_spec.train_config(summary["train"])


def _epochs(run):
    """The lines of metrics.jsonl."""
    epochs = tuple(run_folder.read_epochs(run))
    if not epochs:
        raise UsageError(
            f"{printable(run)} has no epoch behind it, so there is nothing to report yet",
            "the command that began it goes on with it",
        )
    return epochs


def _refuse_others(run, found, known):
    if not scanning.items_in(found, listing.VAL):
        raise UsageError(
            f"none of the validation videos of {printable(run)} is there any more",
            "put the videos back where they were",
        )
    if found.multi_label and not known.multi_label or not set(found.classes) <= set(known.classes):
        raise WeightsError(
            f"the labels in {printable(run / 'videos.csv')} are not those of its model",
            "one of the two was changed after the run",
        )


def _looked_at(said, source, known, workers):
    """The clips with the lowest loss, of different classes as far as that goes, and those with the highest."""
    wanted = metrics.targets(said.items, known.classes)
    likely = np.log(np.clip(np.where(wanted > 0, said.scores, 1 - said.scores), 1e-12, 1))
    order = (-likely.mean(1) if known.multi_label else -(likely * wanted).sum(1)).argsort(kind="stable").tolist()
    nth, rank = Counter(), {}
    for row in order:
        rank[row] = nth[said.items[row].labels]
        nth[said.items[row].labels] += 1
    most = max(1, min(SHOWN, len(order) // 2))
    best = sorted(order, key=rank.get)[:most]
    worst = [row for row in reversed(order) if row not in best][:most]
    read = {}
    for rows, pixels, _ in loader.load(source, [[(-1, row)] for row in (*best, *worst)], workers):
        read |= {row: _clip(said, row, known, pixels[0, 0].numpy().copy()) for row in rows}
    return (tuple(read[row] for row in rows if row in read) for rows in (best, worst))


def _clip(said, row, known, frames):
    scores, item = said.scores[row], said.items[row]
    names = [known.classes[k] for k in scores.argsort(kind="stable")[::-1]]
    given = (
        {known.classes[k] for k in np.flatnonzero(scores >= metrics.CHOSEN)}
        if known.multi_label
        else {known.classes[scores.argmax()]}
    )
    part = (
        ""
        if item.start is item.end is None
        else f", {item.start or 0:g} s to {'its end' if item.end is None else f'{item.end:g} s'}"
    )
    return Clip(
        item.path + part,
        item.labels,
        tuple((n, float(scores[known.classes.index(n)])) for n in [*names[:TOP], *_true(names, item)]),
        given == set(item.labels),
        frames,
    )


def _true(names, item):
    return [n for n in names[TOP:] if n in item.labels][:TOP]


def _date(run: Path) -> str:
    """The day of the last event; "" where the run is of before there were events."""
    events = run_folder.read_events(run)
    return events[-1]["time"][:10] if events else ""


def _rule(run: Path, dataset: scanning.Dataset) -> str:
    """As the run was started: the groups in its list do not tell what made them."""
    rules = [event["grouped_by"] for event in run_folder.read_events(run) if event["code"] == "started"]
    return str(splits.Rule(**rules[-1]) if rules else dataset.grouped_by)


def _reasons(run: Path) -> tuple[tuple[str, str], ...]:
    """What was filled in and why."""
    return tuple((decision.label, decision.text) for decision in run_folder.read_decisions(run))


def _skipped(run):
    if not (run / "skipped.csv").is_file():
        return ()
    with open(run / "skipped.csv", encoding="utf-8", errors="surrogateescape", newline="") as opened:
        return tuple(
            Skipped(row[0], row[2] if len(row) > 2 else "", row[1]) for row in csv.reader(opened) if len(row) in (2, 3)
        )[1:]


def _environment(run):
    file = run / "environment.json"
    summary = files.read_json(file) if file.is_file() else {}
    return summary if isinstance(summary, dict) else {}


# --- the page


def write(run: Path, device: torch.device, workers: int = 0, progress=lambda done, total: None) -> Path:
    """Writes `run`/report.html, whole or not at all, and returns it. Raises what `gather` does, and `DiskError`."""
    file = Path(run) / "report.html"
    files.write_text(file, page(gather(run, device, workers, progress)))
    return file


def page(facts: Facts) -> str:
    """The HTML of a report: no script and no address outside itself, every name in it escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    paper = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    paper.filters |= {"percent": _percent, "count": _count, "plain": _plain}
    several = facts.spec.multi_label
    return (
        paper.get_template("report.html.j2").render(
            facts=facts,
            summary=facts.figures,
            name=Path(facts.run).resolve().name,
            several=several,
            key="map" if several else "top1",
            figure="mAP" if several else "top-1",
            intervals=_intervals(facts),
            few=metrics.too_few(facts.figures["videos"], facts.figures["groups"]),
            light=charts.LIGHT,
            dark=charts.DARK,
            many=MANY,
            limit=LOST,
            newline=Markup("\n"),
            common=None if several else metrics.majority_class([i for i in facts.items if i.split == listing.TRAIN]),
            drawn=_drawn(facts),
            best=_cards(facts, facts.best),
            worst=_cards(facts, facts.worst),
            why=[_reasoned(*pair) for pair in facts.why],
            confusion=None if several else _confusion(facts),
            hardest=_hardest(facts),
            split=_split(facts),
            settings=_settings(facts),
            use=_use(facts),
        )
        + "\n"
    )


def _percent(share):
    return "–" if share is None else f"{100 * share:.1f}\u00a0%"


def _count(number, what, more=""):
    """`1 group`, `2 groups`; `more`: the word for several, where it takes more than an s."""
    return f"{number:,} {what if number == 1 else more or what + 's'}"


def _plain(value):
    """A value of a JSON file as text."""
    if isinstance(value, dict):
        return "; ".join(f"{k} {v}" for k, v in value.items())
    return (
        (", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value))
        if value not in (None, [], ())
        else "none"
    )


def _picture(content, kind):
    return Markup(f"data:image/{kind};base64,{base64.b64encode(content).decode()}")


def _both(light, dark=None):
    """A chart for a light page and for a dark one: an SVG, or two PNGs."""
    kind = "png" if dark else "svg+xml"
    return {"light": _picture(light, kind), "dark": _picture(dark or charts.in_dark(light), kind)}


def _intervals(facts):
    """None for one without width: too few groups, or all alike, say nothing of how far a figure may be off."""
    return {
        key: bounds if bounds and bounds[0] < bounds[1] else None for key, bounds in facts.figures["intervals"].items()
    }


def _drawn(facts):
    """The charts."""
    summary, epochs, best, several = facts.figures, facts.epochs, facts.chosen.epoch, facts.spec.multi_label
    key = "map" if several else "top1"
    losses = {"training": [e.train_loss for e in epochs], "validation": [e.loss for e in epochs]}
    score = {"mAP" if several else "top-1": [e.score for e in epochs]}
    return {
        "headline": _both(charts.interval(summary[key], _intervals(facts)[key], facts.chance, "without looking")),
        "loss": _both(charts.curves(losses, best)),
        "score": _both(charts.curves(score, best, share=True, level=("without looking", facts.chance))),
        "calibration": None if several else _both(charts.calibration(summary["calibration"])),
    }


def _cards(facts, some):
    """Clips with their frames, and their names without what all of them share."""
    common = os.path.dirname(os.path.commonprefix([c.path for c in (*facts.best, *facts.worst)]))
    return [
        {
            "name": c.path.removeprefix(common).lstrip("/"),
            "clip": c,
            "sheets": [_picture(s, "webp") for s in charts.sheets(_few(c.frames))],
        }
        for c in some
    ]


def _few(frames):
    """At most `FRAMES` of them, evenly, at most `SIDE` pixels wide."""
    some = frames[np.linspace(0, len(frames) - 1, min(FRAMES, len(frames))).round().astype(int)]
    return clips.cut(some, clips.View(()), min(SIDE, some.shape[1])).numpy()


def _reasoned(clip, summary):
    """The pictures of an explanation: evidence, and the strongest point of the blocks that change most."""
    rows = sorted({row.block.name: row for row in reversed(summary.rows)}.values(), key=lambda row: -row.block.change)[
        :ARROWS
    ]
    return {
        "clip": clip,
        "told": summary,
        "name": os.path.basename(clip.path),
        "evidence": _picture(charts.smaller(pictures.panel(pictures.evidence(summary))), "webp"),
        "frame": int(summary.evidence.sum((1, 2)).argmax()),
        "rows": [
            (row, _picture(charts.smaller(pictures.panel(pictures.arrows(summary, row))), "webp")) for row in rows
        ],
    }


def _confusion(facts):
    """`rows` of (count, share of the row) where the classes are few; otherwise a `chart`. `pairs`: (shown, answered, count, share), most first."""
    counts, classes = np.array(facts.figures["confusion"]), facts.spec.classes
    shares = counts / np.maximum(counts.sum(1), 1)[:, None]
    wrong = counts * (1 - np.eye(len(classes), dtype=int))
    order = zip(*np.unravel_index(np.argsort(-wrong, axis=None, kind="stable")[:LISTED], wrong.shape))
    few = len(classes) <= NAMED
    sure = sum(b["confidence"] * b["videos"] for b in facts.figures["calibration"]) / facts.figures["videos"]
    return {
        "wrong": int(wrong.sum()),
        "sure": sure,
        "pairs": [(classes[t], classes[a], int(wrong[t, a]), float(shares[t, a])) for t, a in order if wrong[t, a]],
        "rows": [list(zip(*row)) for row in zip(counts.tolist(), shares.round(4).tolist())] if few else [],
        "chart": None if few else _both(*(charts.matrix(shares, theme) for theme in (charts.LIGHT, charts.DARK))),
    }


def _hardest(facts):
    """The classes with the lowest figure, where there are too many to look through."""
    rows, key = facts.figures["per_class"], "average_precision" if facts.spec.multi_label else "f1"
    return sorted((r for r in rows if r["videos"]), key=lambda r: r[key])[:LISTED] if len(rows) > MANY else []


def _split(facts):
    """What lies on which side."""
    sides = {p: [i for i in facts.items if i.split == p] for p in (listing.TRAIN, listing.VAL, listing.TEST)}
    sides = {p: items for p, items in sides.items() if items}
    videos = {p: Counter(label for i in items for label in i.labels) for p, items in sides.items()}
    groups = {
        p: Counter(label for label, _ in {(label, i.group) for i in items for label in i.labels})
        for p, items in sides.items()
    }
    return {
        "sides": [(p, len(items), len({i.group for i in items})) for p, items in sides.items()],
        "both": splits.straddling(facts.items),
        "classes": [(c, [n for p in sides for n in (videos[p][c], groups[p][c])]) for c in facts.spec.classes],
    }


def _settings(facts):
    summary = asdict(facts.config)
    augment, recipe = summary.pop("augment"), summary.pop("recipe")
    return [*summary.items(), *recipe.items(), *((f"augment {key}", value) for key, value in augment.items())]


def _use(facts):
    """`(words, lines)` of what loads the model, and of what made it."""
    python, shell = re.findall(r"```\w+\n(.*?)\n```", card.usage(f"{facts.run}/best"), re.S)
    made = ["nlzoo " + shlex.join(map(str, words))] if (words := facts.environment.get("command")) else []
    summary = {"In Python:": python.split("\n"), "In a shell:": shell.split("\n"), "The run was made with:": made}
    return [(title, lines) for title, lines in summary.items() if lines]
