"""`nlzoo report RUN`: a run on one HTML page that needs nothing else: no network, no script, no other file.

`gather` reads the run and lets its best model predict the validation videos once more. `page` makes the text of what
was gathered, the same each time. The words are in report.html.j2, the look in report.css. Unusual: whatever the
template prints goes through `text.printable` and then through jinja's autoescape, so nothing has to be remembered where
a name is shown, and what is markup already says so by its type.
"""

import base64
import csv
import os
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from markupsafe import Markup

from ..core import files, recipe_spec
from ..core.errors import UsageError, WeightsError
from ..core.model_spec import ModelSpec
from ..core.progress import Progress, no_progress
from ..core.skipped import Skipped
from ..core.text import counted, printable
from ..networks import card, checkpoint, describe, zoo
from ..training import evaluate, learning_curve, metrics, run_folder
from ..videos import clips, loader, scanning, splits
from ..videos.items import TEST, TRAIN, VAL, Item
from . import charts, explain, pictures

SHOWN = 3  # best clips, and as many worst ones
FRAMES, SIDE = 8, 144  # of such a clip, at most, and pixels of each
TOP = 3  # classes of a clip
BLOCKS = 2  # non-local blocks with arrows: those that change the clip most
MANY = 40  # rows of a table from which on it is folded
TABLE_CLASSES = 20  # of a confusion matrix that is a table; more make a picture
LISTED = 20  # confusions beside such a picture, and classes above a folded table
MAX_SKIPPED = 200  # videos that are listed as skipped
SPLITS = {TRAIN: "train", VAL: "validation", TEST: "test"}


@dataclass(frozen=True)
class Clip:
    """One validation video and its prediction."""

    path: str
    labels: tuple[str, ...]
    scores: tuple[tuple[str, float], ...]  # of the likeliest classes, best first, and of the true ones after them
    correct: bool
    frames: np.ndarray  # uint8 (T, S, S, C), as the network saw them


@dataclass(frozen=True)
class Facts:
    """All that the page shows."""

    run: str  # the folder
    date: str  # of the last event of the run; "" where it kept none
    finished: bool
    probe_c: float | None  # strength of the regularisation, where the run is a linear probe
    spec: ModelSpec
    config: recipe_spec.TrainConfig
    epochs: tuple[run_folder.Epoch, ...]  # at least one
    start: run_folder.Epoch | None  # epoch 0: the linear probe that the head started from
    best_epoch: run_folder.Epoch  # whose network is kept
    figures: dict[str, Any]  # `metrics.full` of that network, computed anew
    chance: float  # the majority-class baseline
    items: tuple[Item, ...]  # of the run, those that are still there
    rule: splits.Rule  # of the split
    skipped: tuple[Skipped, ...]  # from before the run
    gone: tuple[Skipped, ...]  # what cannot be read any more
    curve: learning_curve.Curve | None  # top-1 of the linear probe against videos a class
    best: tuple[Clip, ...]
    worst: tuple[Clip, ...]
    explanations: tuple[tuple[Clip, explain.Explanation], ...]
    decisions: tuple[recipe_spec.Decision, ...]  # why the run has its settings; none where it did not keep them
    environment: dict[str, Any]
    network: dict[str, Any]  # `describe.describe`
    weights_bytes: int
    device: str  # of the predictions on the page


# --- gathering


def gather(run: Path, device: torch.device, workers: int = 0, progress: Progress = no_progress) -> Facts:
    """Everything that the page of `run` shows; its best model predicts the validation videos once more, on `device`.

    Raises `UsageError` for a folder that is no run or has finished no epoch, `VideoError` where its videos are gone,
    `WeightsError` where its model or records are missing or damaged.
    """
    run = Path(run)
    config, lines = _config(run), _epochs(run)
    epochs = tuple(line for line in lines if line.epoch)
    net = checkpoint.load_model(run / "best").to(device)
    spec, dataset = net.spec, scanning.scan(run / "videos.csv")
    val = tuple(scanning.items_in(dataset, VAL))
    _check_dataset(run, dataset, val, spec)
    source = loader.Clips(dataset.root, val, spec.clip, decoder=config.decoder)
    predictions = evaluate.predictions(net, source, device, workers, progress)
    read = replace(source, items=predictions.items)
    best, worst = (_clips(rows, predictions, read, spec, workers) for rows in _best_and_worst(predictions, spec))
    events = run_folder.read_events(run)
    return Facts(
        run=str(run),
        date=str(events[-1].get("time", ""))[:10] if events else "",
        finished=(run / run_folder.RESULT).is_file(),
        probe_c=_object(run / run_folder.RESULT).get("C"),
        spec=spec,
        config=config,
        epochs=epochs,
        start=next((line for line in lines if line.epoch == 0), None),
        best_epoch=run_folder.best_epoch(lines),
        figures=metrics.full(
            predictions.scores, predictions.items, spec.classes, spec.multi_label, spec.label_threshold
        ),
        chance=metrics.chance(spec.classes, scanning.items_in(dataset, TRAIN), predictions.items, spec.multi_label),
        items=dataset.items,
        rule=_rule(events, dataset),
        skipped=_skipped(run / "skipped.csv"),
        gone=(*dataset.skipped, *predictions.bad),
        curve=learning_curve.from_json(_object(run / run_folder.CURVE)),
        best=best,
        worst=worst,
        explanations=tuple(
            (clip, explain.explain_clip(net, torch.from_numpy(clip.frames), device, clip.path))
            for clip in (*best[:1], *worst[:1])
            if spec.is_inflated
        ),
        decisions=tuple(run_folder.read_decisions(run)),
        environment=_object(run / "environment.json"),
        network=describe.describe(net, run / "best"),
        weights_bytes=(run / "best" / "model.safetensors").stat().st_size,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    )


def _config(run: Path) -> recipe_spec.TrainConfig:
    settings = _object(run / run_folder.CONFIG)
    if "train" not in settings:
        raise zoo.no_run(run)
    return recipe_spec.train_config(settings["train"])


def _epochs(run: Path) -> tuple[run_folder.Epoch, ...]:
    epochs = tuple(run_folder.read_epochs(run))
    if not any(epoch.epoch for epoch in epochs):
        raise UsageError(
            f"{printable(run)} has not finished its first epoch, so there is nothing to report yet",
            "the command that started it resumes it",
        )
    return epochs


def _check_dataset(run: Path, dataset: scanning.Dataset, val: Sequence[Item], spec: ModelSpec) -> None:
    if not val:
        raise UsageError(f"no validation video of {printable(run)} is left", "put the videos back where they were")
    several_unknown = dataset.multi_label and not spec.multi_label
    if several_unknown or not set(dataset.classes) <= set(spec.classes):
        raise WeightsError(
            f"the labels in {printable(run / 'videos.csv')} are not those of its model",
            "one of the two was changed after the run",
        )


def _best_and_worst(predictions: evaluate.Predictions, spec: ModelSpec) -> tuple[list[int], list[int]]:
    """Rows with the lowest loss, of different labels as far as that goes, and rows with the highest."""
    truth = metrics.targets(predictions.items, spec.classes)
    likelihood = np.log(np.clip(np.where(truth > 0, predictions.scores, 1 - predictions.scores), 1e-12, 1))
    losses = -likelihood.mean(1) if spec.multi_label else -(likelihood * truth).sum(1)
    order = losses.argsort(kind="stable").tolist()
    of_labels = defaultdict(list)
    for row in order:
        of_labels[predictions.items[row].labels].append(row)
    in_turn = [row for turn in zip_longest(*of_labels.values()) for row in turn if row is not None]
    most = max(1, min(SHOWN, len(order) // 2))
    best = in_turn[:most]
    return best, [row for row in reversed(order) if row not in best][:most]


def _clips(
    rows: Sequence[int], predictions: evaluate.Predictions, source: loader.Clips, spec: ModelSpec, workers: int
) -> tuple[Clip, ...]:
    """The clips of those rows that can still be read, in their order."""
    by_row = {}
    for indices, pixels, _ in loader.load(source, [[(-1, row)] for row in rows], workers):
        if pixels is not None:
            (row,) = indices
            by_row[row] = _clip(predictions.items[row], predictions.scores[row], spec, pixels[0, 0].numpy().copy())
    return tuple(by_row[row] for row in rows if row in by_row)


def _clip(item: Item, scores: np.ndarray, spec: ModelSpec, frames: np.ndarray) -> Clip:
    ranked = [(spec.classes[k], float(scores[k])) for k in scores.argsort(kind="stable")[::-1]]
    predicted = {name for name, score in ranked if score >= spec.label_threshold}
    if not spec.multi_label:
        predicted = {spec.classes[scores.argmax()]}
    missed = [pair for pair in ranked[TOP:] if pair[0] in item.labels][:TOP]
    path = item.path
    if item.start is not None or item.end is not None:
        end = "its end" if item.end is None else f"{item.end:g} s"
        path = f"{item.path}, {item.start or 0:g} s to {end}"
    return Clip(path, item.labels, (*ranked[:TOP], *missed), predicted == set(item.labels), frames)


def _rule(events: Sequence[dict[str, Any]], dataset: scanning.Dataset) -> splits.Rule:
    """As the run was started: the groups in its list do not tell what made them."""
    rules = [event.get("grouped_by") for event in events if event.get("code") == "started"]
    if rules and isinstance(rules[-1], dict):
        return splits.Rule(str(rules[-1].get("code")), int(rules[-1].get("field") or 0))
    return dataset.grouped_by


def _skipped(file: Path) -> tuple[Skipped, ...]:
    if not file.is_file():
        return ()
    with open(file, encoding="utf-8", errors="surrogateescape", newline="") as opened:
        rows = list(csv.DictReader(opened))
    return tuple(Skipped(row["path"], row.get("code") or "", row["reason"]) for row in rows if row.get("reason"))


def _object(file: Path) -> dict[str, Any]:
    """What a JSON file holds; {} where it is not there."""
    return files.read_json(file) if file.is_file() else {}


# --- the page


def write(run: Path, device: torch.device, workers: int = 0, progress: Progress = no_progress) -> Path:
    """Writes `run`/report.html, whole or not at all, and returns it. Raises what `gather` does, and `DiskError`."""
    file = Path(run) / "report.html"
    if file.parent.is_dir():
        files.check_writable(file)
    files.write_text(file, page(gather(run, device, workers, progress)))
    return file


def page(facts: Facts) -> str:
    """The HTML of a report: no script and no address outside itself, every name in it escaped."""
    result = _result(facts)
    return _template().render(
        facts=facts,
        figures=facts.figures,
        name=Path(facts.run).resolve().name,
        light=charts.LIGHT,
        dark=charts.DARK,
        many=MANY,
        max_skipped=MAX_SKIPPED,
        **result,
        charts=_charts(facts, result),
        best=_cards(facts, facts.best),
        worst=_cards(facts, facts.worst),
        explanations=[_explanation(*pair) for pair in facts.explanations],
        confusion=None if facts.spec.multi_label else _confusion(facts),
        hardest=_hardest(facts),
        split=_split(facts),
        settings=_settings(facts),
        usage=_usage(facts),
    )


@cache
def _template() -> Any:
    """jinja's of the page: of several runs in one process it is compiled once."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    environment.filters |= {"percent": _percent, "count": counted, "plain": _plain}
    return environment.get_template("report.html.j2")


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}\u00a0%"


def _plain(value: object) -> str:
    """A value of a JSON file as text."""
    if isinstance(value, dict):
        return "; ".join(f"{key} {inner}" for key, inner in value.items())
    if value in (None, [], ()):
        return "none"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _image(content: bytes, kind: str) -> Markup:
    """A picture as an address of its own content."""
    return Markup(f"data:image/{kind};base64,{base64.b64encode(content).decode()}")


def _themed(light: bytes, dark: bytes, kind: str) -> dict[str, Markup]:
    """A chart for a light page and for a dark one."""
    return {"light": _image(light, kind), "dark": _image(dark, kind)}


def _svg(light: bytes) -> dict[str, Markup]:
    return _themed(light, charts.in_dark(light), "svg+xml")


def _result(facts: Facts) -> dict[str, Any]:
    """The main figure, its name, the baseline beside it, and what the intervals are or why there are none."""
    several = facts.spec.multi_label
    key = "map" if several else "top1"
    train = [item for item in facts.items if item.split == TRAIN]
    # too few groups, or all alike, do not say how far a figure may be off
    intervals = {name: ends for name, ends in facts.figures["intervals"].items() if ends and ends[0] < ends[1]}
    return {
        "several": several,
        "score": facts.figures[key],
        "score_name": metrics.NAMES[key],
        "baseline_name": "chance level" if several else "majority-class baseline",
        "majority_class": None if several else metrics.majority_class(train),
        "intervals": intervals,
        "interval": intervals.get(key),
        "too_few": metrics.too_few(facts.figures["videos"], facts.figures["groups"]),
    }


def _charts(facts: Facts, result: dict[str, Any]) -> dict[str, dict[str, Markup]]:
    baseline, best, epochs = result["baseline_name"], facts.best_epoch.epoch, facts.epochs
    losses = {"training": [e.train_loss for e in epochs], "validation": [e.loss for e in epochs]}
    scores = {result["score_name"]: [e.score for e in epochs]}
    drawn = {
        "result": _svg(charts.interval(result["score"], result["interval"], facts.chance, baseline)),
        "loss": _svg(charts.curves(losses, best)),
        "score": _svg(charts.curves(scores, best, share=True, level=(baseline, facts.chance))),
    }
    if facts.curve:
        drawn["videos"] = _svg(charts.learning_curve(facts.curve.points))
    if not result["several"]:
        drawn["calibration"] = _svg(charts.calibration(facts.figures["calibration"]))
    return drawn


def _cards(facts: Facts, some: Iterable[Clip]) -> list[dict[str, Any]]:
    """Clips with their frames, and their names without the folders that all of them share."""
    shared = os.path.dirname(os.path.commonprefix([clip.path for clip in (*facts.best, *facts.worst)]))
    return [
        {
            "name": clip.path.removeprefix(shared).lstrip("/"),
            "clip": clip,
            "labels": ", ".join(clip.labels) or "none of the classes",
            "sheets": [_image(sheet, "webp") for sheet in charts.sheets(_few(clip.frames))],
        }
        for clip in some
    ]


def _few(frames: np.ndarray) -> np.ndarray:
    """At most `FRAMES` of them, evenly, at most `SIDE` pixels wide."""
    some = frames[np.linspace(0, len(frames) - 1, min(FRAMES, len(frames))).round().astype(int)]
    return clips.as_pictures(clips.cut(some, clips.View(()), min(SIDE, some.shape[1])).numpy())


def _explanation(clip: Clip, explanation: explain.Explanation) -> dict[str, Any]:
    """The pictures of an explanation: evidence, and the strongest point of the blocks that change most."""
    first = {row.block: row for row in reversed(explanation.rows)}
    rows = sorted(first.values(), key=lambda row: -row.block.change)[:BLOCKS]
    return {
        "explanation": explanation,
        "name": os.path.basename(clip.path),
        "labels": ", ".join(clip.labels) or "none of the classes",
        "frame": int(explanation.evidence.sum((1, 2)).argmax()),
        "evidence": _panel(pictures.evidence(explanation)),
        "rows": [(row, _panel(pictures.arrows(explanation, row))) for row in rows],
    }


def _panel(drawing: pictures.Drawing) -> dict[str, Any]:
    return {
        "drawing": drawing,
        "picture": _image(charts.image(pictures.panel(drawing), "webp"), "webp"),
        "ramp": _image(charts.image(pictures.ramp(drawing), "png"), "png"),
    }


def _confusion(facts: Facts) -> dict[str, Any]:
    """`rows` of (count, share of the row) where the classes are few, otherwise a `chart`.

    `pairs`: (shown, predicted, count, share of those shown), most first. `confidence`: the mean over all videos.
    """
    counts, classes = np.array(facts.figures["confusion"]), facts.spec.classes
    shares = counts / np.maximum(counts.sum(1), 1)[:, None]
    wrong = counts * (1 - np.eye(len(classes), dtype=int))
    order = np.argsort(-wrong, axis=None, kind="stable")[:LISTED].tolist()
    cells = [divmod(index, len(classes)) for index in order if wrong.flat[index]]
    bins = facts.figures["calibration"]
    figures: dict[str, Any] = {
        "wrong": int(wrong.sum()),
        "confidence": sum(b["confidence"] * b["videos"] for b in bins) / facts.figures["videos"],
        "pairs": [(classes[t], classes[p], int(wrong[t, p]), float(shares[t, p])) for t, p in cells],
        "rows": [list(zip(*row)) for row in zip(counts.tolist(), shares.round(4).tolist())],
    }
    if len(classes) > TABLE_CLASSES:
        figures["rows"] = []
        figures["chart"] = _themed(charts.matrix(shares, charts.LIGHT), charts.matrix(shares, charts.DARK), "png")
    return figures


def _hardest(facts: Facts) -> list[dict[str, Any]]:
    """The classes with the lowest figure, where there are too many to look through."""
    rows, key = facts.figures["per_class"], "average_precision" if facts.spec.multi_label else "f1"
    return sorted((row for row in rows if row["videos"]), key=lambda row: row[key])[:LISTED] if len(rows) > MANY else []


def _split(facts: Facts) -> dict[str, Any]:
    """`sides`: (name, videos, groups) of each split; `classes`: (name, [videos, groups of each split]).

    `both`: how many groups are in training and validation.
    """
    sides, numbers = [], []
    for split, name in SPLITS.items():
        items = [item for item in facts.items if item.split == split]
        if items:
            pairs = {(label, item.group) for item in items for label in item.labels}
            sides.append((name, len(items), len({item.group for item in items})))
            numbers.append(Counter(label for item in items for label in item.labels))
            numbers.append(Counter(label for label, _ in pairs))
    return {
        "sides": sides,
        "both": splits.straddling(facts.items),
        "classes": [(name, [counter[name] for counter in numbers]) for name in facts.spec.classes],
    }


def _settings(facts: Facts) -> list[tuple[str, object]]:
    settings = asdict(facts.config)
    augment, recipe = settings.pop("augment"), settings.pop("recipe")
    return [*settings.items(), *recipe.items(), *((f"augment {key}", value) for key, value in augment.items())]


def _usage(facts: Facts) -> list[tuple[str, Markup]]:
    """`(words, lines)` of what loads the model, and of what made it."""
    python, shell = card.usage_lines(f"{facts.run}/best", card.seen(facts.spec))
    texts = {"In Python:": python, "In a shell:": shell}
    if command := facts.environment.get("command"):
        texts["The run was made with:"] = "nlzoo " + shlex.join(map(str, command))
    return [(words, Markup("\n").join(map(printable, text.split("\n")))) for words, text in texts.items()]
