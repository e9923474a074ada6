"""The run folder of a model that no epoch trained, a probe's or that of fused runs; it is as `finetune` leaves one."""

import time
from dataclasses import asdict, replace
from pathlib import Path

from ..core import files
from ..core.recipe_spec import Decision, TrainConfig
from ..networks import card, checkpoint
from ..networks.network import Network
from ..videos import scanning
from . import metrics, run_folder
from .linear import Fitted


def write(
    run: Path,
    net: Network,
    dataset: scanning.Dataset,
    config: TrainConfig,
    decision: Decision,
    fitted: Fitted,
    began: float,
    facts: dict,
    epochs: int = 1,
) -> dict:
    """Writes the files of a finished run; its figures, ready for JSON. `facts` go into them and into result.json.

    `began`: on the monotonic clock. `epochs`: of its members, the best of which were chosen on the validation videos.
    Where a video may have several labels, `net` gets the threshold that is best on the validation videos, in place.
    """
    made, classes, multi_label = fitted.predictions, net.spec.classes, net.spec.multi_label
    if multi_label:
        net.spec = replace(net.spec, threshold=metrics.best_threshold(made.scores, made.items, classes))
    figures = metrics.full(made.scores, made.items, classes, multi_label, net.spec.label_threshold)
    chance = metrics.chance(classes, fitted.train, made.items, multi_label)
    main: dict[str, float | None] = {key: figures.get(key) for key in ("top1", "top5", "mean_class", "map")}
    counts = {"train": len(fitted.train), "val": len(made.items)}
    run_folder.start(run, net, dataset, config, [decision])
    seconds, failed = time.monotonic() - began, len(fitted.bad) + len(made.bad)
    line = run_folder.epoch_line(1, fitted.train_loss, figures, seconds, 0.0, len(fitted.train), failed)
    run_folder.append(run / run_folder.METRICS, asdict(line))
    summary = {key: value for key, value in main.items() if value is not None and key != "mean_class"}
    interval = figures["intervals"]["map" if multi_label else "top1"]
    summary |= {"majority": chance, **counts, "groups": figures["groups"], "interval": interval}
    summary |= {"epochs": epochs} if epochs > 1 else {}
    for part in ("last", "best"):
        checkpoint.save_model(run / part, net, summary, card.body(net.spec, summary))
    shared = {"run": str(run), "model": str(run / "best"), "classes": list(classes), **counts}
    last = {"best_epoch": 1, "last_top1": main["top1"], "last_map": main["map"], "seconds": round(seconds, 1)}
    result = {**shared, "epochs": 1, **main, "majority": chance, **last, "resumed_from": None, **facts}
    if fitted.curve:
        files.write_json(run / run_folder.CURVE, asdict(fitted.curve))
    files.write_json(run / run_folder.RESULT, result)
    return {**shared, "majority": chance, **facts, **figures}
