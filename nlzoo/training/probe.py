"""`nlzoo.probe`, the fast baseline: a linear classifier on the features of a network that is left as it is.

It becomes the network's head (`linear`), and the run folder is that of `finetune`, after one epoch.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..core import feature_files, files, lock, tables
from ..core.bounds import one_of
from ..core.errors import UsageError
from ..core.model_spec import HEADS, SEQUENCE, SequenceHead
from ..core.progress import Stages, no_stages
from ..core.recipe_spec import Decision, Recipe, TrainConfig, default_size
from ..core.skipped import Skipped
from ..core.text import counted, printable
from ..networks import download, hub_dataset, model as models, zoo
from ..networks.network import Network
from ..videos import pool, scanning, video
from . import devices, evaluate, finished, known_features, learning_curve, linear, sequence


@dataclass(frozen=True)
class Probe:
    """What `probe` made and measured."""

    figures: dict  # ready for JSON (docs/answers.md)
    skipped: tuple[Skipped, ...]  # videos that could not be read
    curve: learning_curve.Curve | None = None  # top-1 against videos a class; None where there is none


Model = str | Path | Network
UNITS = {"linear": 0, "lstm": 128, "attention": 8}  # of a head over time
REASONS = {
    "linear": "C of a logistic regression on the features, by cross-validation over the training groups",
    "lstm": "epochs with the least log loss over folds of the training groups",
    "attention": "epochs with the least log loss over folds of the training groups",
}
STRENGTHS = {"linear": "C", "lstm": "head_epochs", "attention": "head_epochs"}  # what was chosen of a head
WINDOWS = 8  # of a video, where an LSTM or attention looks over them


def probe(
    model: Model | Sequence[Model],
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
    runs: Path = zoo.RUNS,
    head: str = "linear",
    windows: int | None = None,
    features: str | Path | Sequence[str | Path] | None = None,
) -> Probe:
    """Fits a classifier to the features of a model, or of several, and keeps it as the run `runs/NAME`.

    `model`: a network, what `download.locate` finds, or the name of any 2-D network of timm, which sees each frame
    alone; the features of several stand side by side. `size`: of the clip, pixels; the model's where it was trained on
    videos, otherwise 224, on a CPU 112, or what the network can take. `on_scan` gets the videos and their split before
    the work. `weights`: a file with the weights of that 2-D network. `runs`: the folder of the run's. `head`: linear,
    lstm or attention, over `windows` of a video (1 for a linear head, 8 for others). `features`: a
    .safetensors file as `predict` writes it, of each model in their order; what is there is not computed again, and
    where there is none it is written, of several windows with features (N, W, C). Raises `VideoError` where too few
    videos could be read, `WeightsError` for weights that cannot be had, and `UsageError` and `DiskError` for what
    cannot be.
    """
    began = time.monotonic()
    videos = Path(videos)
    video.check_decoder(decoder)
    device = devices.resolve(device)
    run = zoo.new_run(zoo.folder_name(name or f"{hub_dataset.base_name(videos)}-probe"), name is not None, runs)
    files.check_folder(run)
    one_of(head, HEADS, "--head")
    given = [model] if isinstance(model, str | Path | torch.nn.Module) else list(model)
    windows = windows or (1 if head == "linear" else WINDOWS)
    over_time = len(given) > 1 or windows > 1 or head != "linear"
    kept = _feature_files(features, len(given))
    opened = _open_all(given, weights, size, device, videos)
    net, folder = opened[0]
    workers = pool.default_workers(str(device))
    config = TrainConfig(
        str(videos), str(folder or ""), val, seed, str(device), workers, Recipe(epochs=1), decoder=decoder
    )
    with stages("scanning") as progress:
        dataset = scanning.split(scanning.scan(videos, (), progress, val=val), val, seed)
    on_scan(dataset)
    if kept:
        known_features.refuse_parts(dataset.items)
    if over_time:
        net = _sequence([one for one, _ in opened], dataset, SequenceHead(head, windows, UNITS[head])).to(device)
    with lock.hold(run):
        with stages("computing features") as progress:
            if over_time:
                fitted = sequence.fit_head(net, dataset, device, seed, workers, decoder, progress, kept)
            else:
                fitted = linear.fit_head(net, dataset, device, workers, decoder, progress, file=next(iter(kept), None))
        decision = Decision("probe", fitted.strength, REASONS[head])
        facts: dict[str, Any] = {STRENGTHS[head]: fitted.strength}
        if over_time:
            facts |= {"head": head, "windows": windows, "feature_seconds": round(fitted.feature_seconds, 1)}
        figures = finished.write(run, net, dataset, config, decision, fitted, began, facts)
    figures |= {"learning_curve": asdict(fitted.curve) if fitted.curve else None}
    return Probe(figures, (*fitted.bad, *fitted.predictions.bad), fitted.curve)


def _open_all(
    given: Sequence[Model], weights: str | Path | None, size: int | None, device: torch.device, videos: Path
) -> list[tuple[Network, Path | None]]:
    """The networks with their folders, each for frames of the size. Raises `UsageError`."""
    if weights and len(given) > 1:
        raise UsageError("--weights is the file of one network, and there are several", "probe them one by one")
    opened = [_open(one, weights, device, videos) for one in given]
    for net, _ in opened:
        fitting = models.fitting_size(net, size, default_size(device.type))
        net.spec = replace(net.spec, clip=replace(net.spec.clip, size=fitting))
    return opened


def _feature_files(features: str | Path | Sequence[str | Path] | None, models: int) -> list[Path]:
    """The file of each model, or none. Raises `UsageError` for what cannot be read or written."""
    files = [Path(features)] if isinstance(features, str | Path) else [Path(one) for one in features or ()]
    if files and len(files) != models:
        raise UsageError(
            f"there are {counted(models, 'model')} and {counted(len(files), 'file')} of features",
            "--features FILE for each model, in their order",
        )
    if len({file.resolve() for file in files}) < len(files):
        raise UsageError(f"{printable(files[0])} is the file of two models", "--features with a FILE for each")
    for file in files:
        if not file.exists():
            tables.check(file, feature_files.ENDINGS[:1])
    return files


def _sequence(nets: Sequence[Network], dataset: scanning.Dataset, head: SequenceHead) -> Network:
    """The networks under one head, for the classes of `dataset`; their own heads, which are not used, are zeros.

    A fresh network on single frames sees one frame of each window.
    """
    for net in nets:
        if not net.spec.is_inflated and not net.spec.classes and head.windows > 1:
            net.spec = replace(net.spec, clip=replace(net.spec.clip, frames=1))
        models.set_head(net, dataset.classes, dataset.multi_label)
    return models.join(SEQUENCE, [(net, 1.0) for net in nets], head)


def _open(model: Model, weights: str | Path | None, device: torch.device, videos: Path) -> tuple[Network, Path | None]:
    """As `evaluate.open_network`, and 2-D networks by timm's names."""
    if isinstance(model, torch.nn.Module) or not (weights or zoo.is_image_network(str(model))):
        net, folder = evaluate.open_network(model, device, videos, "probe")
        if net.spec.members:
            kind = "a head over windows" if net.spec.head else "a fused model"
            raise UsageError(f"{kind} has no last layer of its own to fit", "probe its members, one or all at once")
        return net, folder
    command, file = f"nlzoo probe {model} {videos}", Path(weights) if weights else None
    return models.load_on_frames(str(model), file, download.backbone_weights, command).to(device), None
