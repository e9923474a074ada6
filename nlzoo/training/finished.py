"""The run folder of a model that no epoch trained, a probe's or that of fused runs; it is as `finetune` leaves one."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..core import files
from ..core.recipe_spec import Decision, TrainConfig
from ..core.skipped import Skipped
from ..networks import card, checkpoint
from ..networks.network import Network
from ..videos import scanning
from ..videos.listing import Item
from . import evaluate, learning_curve, metrics, run_folder


@dataclass(frozen=True)
class Outcome:
    """What a model was made from, and what it is worth."""

    predictions: evaluate.Predictions  # for the validation videos
    train: Sequence[Item]  # videos that it was made with
    bad: Sequence[Skipped]  # training videos that could not be read
    train_loss: float
    seconds: float
    curve: learning_curve.Curve | None = None
    epochs: int | None = None  # of its members, the best of which was chosen on the validation videos


def write(
    run: Path,
    net: Network,
    dataset: scanning.Dataset,
    config: TrainConfig,
    decision: Decision,
    outcome: Outcome,
    facts: dict,
) -> dict:
    """Writes the files of a finished run; its figures, ready for JSON. `facts` go into them and into result.json.

    Where a video may have several labels, `net` gets the threshold that is best on the validation videos, in place.
    """
    made, classes, multi_label = outcome.predictions, net.spec.classes, net.spec.multi_label
    if multi_label:
        threshold = metrics.best_threshold(made.scores, made.items, classes)
        net.spec = replace(net.spec, threshold=threshold)
    figures = metrics.full(made.scores, made.items, classes, multi_label, net.spec.label_threshold)
    chance = metrics.chance(classes, outcome.train, made.items, multi_label)
    main: dict[str, float | None] = {key: figures.get(key) for key in ("top1", "top5", "mean_class", "map")}
    counts = {"train": len(outcome.train), "val": len(made.items)}
    run_folder.start(run, net, dataset, config, [decision])
    failed = len(outcome.bad) + len(made.bad)
    line = run_folder.epoch_line(1, outcome.train_loss, figures, outcome.seconds, 0.0, len(outcome.train), failed)
    run_folder.append(run / run_folder.METRICS, asdict(line))
    summary = {key: value for key, value in main.items() if value is not None and key != "mean_class"}
    interval = figures["intervals"]["map" if multi_label else "top1"]
    summary |= {"majority": chance, **counts, "groups": figures["groups"], "interval": interval}
    summary |= {"epochs": outcome.epochs} if outcome.epochs else {}
    for part in ("last", "best"):
        checkpoint.save_model(run / part, net, summary, card.body(net.spec, summary))
    shared = {"run": str(run), "model": str(run / "best"), "classes": list(classes), **counts}
    last = {"best_epoch": 1, "last_top1": main["top1"], "last_map": main["map"], "seconds": round(outcome.seconds, 1)}
    result = {**shared, "epochs": 1, **main, "majority": chance, **last, "resumed_from": None, **facts}
    curve = asdict(outcome.curve) if outcome.curve else None
    if curve:
        files.write_json(run / run_folder.CURVE, curve)
    files.write_json(run / run_folder.RESULT, result)
    return {**shared, "majority": chance, **facts, **figures}
