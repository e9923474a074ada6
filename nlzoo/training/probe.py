"""`nlzoo.probe`, the fast baseline: a linear classifier on the features of a network that is left as it is.

It becomes the network's head (`linear`), and the run folder is that of `finetune`, after one epoch.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from ..core import files, lock
from ..core.errors import UsageError
from ..core.progress import Stages, no_stages
from ..core.recipe_spec import Decision, Recipe, TrainConfig, default_size
from ..core.skipped import Skipped
from ..core.text import as_json
from ..networks import card, checkpoint, download, hub_dataset, zoo
from ..networks import model as models
from ..networks.network import Network
from ..videos import pool, scanning, video
from . import devices, evaluate, learning_curve, linear, metrics, run_folder


@dataclass(frozen=True)
class Probe:
    """What `probe` made and measured."""

    figures: dict  # ready for JSON (docs/answers.md)
    skipped: tuple[Skipped, ...]  # videos that could not be read
    curve: learning_curve.Curve | None = None  # top-1 against videos a class; None where there is none


def probe(
    model: str | Path | Network,
    videos: str | Path,
    val: str = "0.25",
    seed: int = 0,
    size: int | None = None,
    name: str | None = None,
    decoder: str = "auto",
    device: str | torch.device | None = None,
    stages: Stages = no_stages,
    on_scan: Callable[[scanning.Dataset], object] = lambda dataset: None,
    weights: str | Path | None = None,
) -> Probe:
    """Fits a linear classifier to the features of a model, and keeps it as the run `runs/NAME`.

    `model`: a network, what `download.locate` finds, or the name of any 2-D network of timm, which sees each frame
    alone. `size`: of the clip, pixels; the model's where it was trained on videos, otherwise 224, on a CPU 112, or
    what the network can take. `on_scan` gets the videos and their split before the work. `weights`: a file with the
    weights of that 2-D network. Raises `VideoError` where too few videos could be read, `WeightsError` for weights that
    cannot be had, and `UsageError` and `DiskError` for what cannot be.
    """
    began = time.monotonic()
    videos = Path(videos)
    video.check_decoder(decoder)
    device = devices.resolve(device)
    stem = hub_dataset.base_name(videos)
    run = zoo.new_run(zoo.folder_name(name or f"{stem}-probe"), name is not None)
    files.check_folder(run)
    net, folder = _open(model, weights, device, videos)
    size = _fitting_size(net, size, device)
    net.spec = replace(net.spec, clip=replace(net.spec.clip, size=size))
    workers = pool.default_workers(str(device))
    config = TrainConfig(
        str(videos), str(folder or ""), val, seed, str(device), workers, Recipe(epochs=1), decoder=decoder
    )
    with stages("scanning") as progress:
        dataset = scanning.split(scanning.scan(videos, (), progress, val=val), val, seed)
    on_scan(dataset)
    with lock.hold(run):
        with stages("computing features") as progress:
            fitted = linear.fit_head(net, dataset, device, workers, decoder, progress)
        return _keep(run, net, dataset, config, fitted, time.monotonic() - began)


def _open(
    model: str | Path | Network, weights: str | Path | None, device: torch.device, videos: Path
) -> tuple[Network, Path | None]:
    """As `evaluate.open_network`, and 2-D networks by timm's names."""
    if isinstance(model, torch.nn.Module) or not (weights or zoo.is_image_network(str(model))):
        return evaluate.open_network(model, device, videos, "probe")
    command, file = f"nlzoo probe {model} {videos}", Path(weights) if weights else None
    return models.load_on_frames(str(model), file, download.backbone_weights, command).to(device), None


def _fitting_size(net: Network, size: int | None, device: torch.device) -> int:
    """The size that was asked for, or the usual one as far as the network can take it. Raises `UsageError`."""
    own = net.spec.clip.size
    chosen = size or (own if net.spec.classes else default_size(device.type))
    if net.spec.is_inflated or models.takes_size(net, chosen):
        return chosen
    if size:
        raise UsageError(f"{net.spec.backbone} cannot compute frames of {size} pixels", f"its own size: --size {own}")
    return own


def _keep(
    run: Path, net: Network, dataset: scanning.Dataset, config: TrainConfig, fitted: linear.Fitted, seconds: float
) -> Probe:
    """Writes the files of a finished run."""
    made, classes, multi_label = fitted.predictions, net.spec.classes, net.spec.multi_label
    if multi_label:
        threshold = metrics.best_threshold(made.scores, made.items, classes)
        net.spec = replace(net.spec, threshold=threshold)
    figures = metrics.full(made.scores, made.items, classes, multi_label, net.spec.label_threshold)
    chance = metrics.chance(classes, fitted.train, made.items, multi_label)
    main: dict[str, float | None] = {key: figures.get(key) for key in ("top1", "top5", "mean_class", "map")}
    counts = {"train": len(fitted.train), "val": len(made.items)}
    reason = "C of a logistic regression on the features, by cross-validation over the training groups"
    run_folder.start(run, net, dataset, config, [Decision("probe", fitted.strength, reason)])
    skipped = (*fitted.bad, *made.bad)
    epoch = {"epoch": 1, "train_loss": fitted.train_loss, **main, "loss": figures["loss"]}
    epoch |= {"seconds": round(seconds, 2), "data_seconds": 0.0, "clips": len(fitted.train), "failed": len(skipped)}
    files.append_text(run / "metrics.jsonl", as_json(epoch) + "\n")
    summary = {key: value for key, value in main.items() if value is not None and key != "mean_class"}
    interval = figures["intervals"]["map" if multi_label else "top1"]
    summary |= {"majority": chance, **counts, "groups": figures["groups"], "interval": interval}
    for part in ("last", "best"):
        checkpoint.save_model(run / part, net, summary, card.body(net.spec, summary))
    shared = {"run": str(run), "model": str(run / "best"), "classes": list(classes), **counts}
    last = {"best_epoch": 1, "last_top1": main["top1"], "last_map": main["map"], "seconds": round(seconds, 1)}
    result = {**shared, "epochs": 1, **main, "majority": chance, **last, "resumed_from": None, "C": fitted.strength}
    curve = asdict(fitted.curve) if fitted.curve else None
    if curve:
        files.write_json(run / run_folder.CURVE, curve)
    files.write_json(run / run_folder.RESULT, result)
    figures |= {"learning_curve": curve}
    return Probe({**shared, "majority": chance, "C": fitted.strength, **figures}, skipped, fitted.curve)
