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
from ..networks import download, hub_dataset, zoo
from ..networks import model as models
from ..networks.network import Network
from ..videos import pool, scanning, video
from . import devices, evaluate, finished, learning_curve, linear
from .finished import Outcome


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
    runs: Path = zoo.RUNS,
) -> Probe:
    """Fits a linear classifier to the features of a model, and keeps it as the run `runs/NAME`.

    `model`: a network, what `download.locate` finds, or the name of any 2-D network of timm, which sees each frame
    alone. `size`: of the clip, pixels; the model's where it was trained on videos, otherwise 224, on a CPU 112, or
    what the network can take. `on_scan` gets the videos and their split before the work. `weights`: a file with the
    weights of that 2-D network. `runs`: the folder of the run's. Raises `VideoError` where too few videos could be
    read, `WeightsError` for weights that cannot be had, and `UsageError` and `DiskError` for what cannot be.
    """
    began = time.monotonic()
    videos = Path(videos)
    video.check_decoder(decoder)
    device = devices.resolve(device)
    stem = hub_dataset.base_name(videos)
    run = zoo.new_run(zoo.folder_name(name or f"{stem}-probe"), name is not None, runs)
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
        reason = "C of a logistic regression on the features, by cross-validation over the training groups"
        decision = Decision("probe", fitted.strength, reason)
        seconds = time.monotonic() - began
        outcome = Outcome(fitted.predictions, fitted.train, fitted.bad, fitted.train_loss, seconds, fitted.curve)
        figures = finished.write(run, net, dataset, config, decision, outcome, {"C": fitted.strength})
    curve = asdict(fitted.curve) if fitted.curve else None
    skipped = (*fitted.bad, *fitted.predictions.bad)
    return Probe(figures | {"learning_curve": curve}, skipped, fitted.curve)


def _open(
    model: str | Path | Network, weights: str | Path | None, device: torch.device, videos: Path
) -> tuple[Network, Path | None]:
    """As `evaluate.open_network`, and 2-D networks by timm's names."""
    if isinstance(model, torch.nn.Module) or not (weights or zoo.is_image_network(str(model))):
        net, folder = evaluate.open_network(model, device, videos, "probe")
        if net.spec.members:
            raise UsageError("a fused model has no last layer of its own to fit", "probe one of its members")
        return net, folder
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
