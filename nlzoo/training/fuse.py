"""`nlzoo.fuse`: late fusion. Finished runs on the same split become one model, whose probabilities are their mean.

The weights of the mean are equal, or those with the least log loss on the training side: each member's head is fitted
anew without a fold of the training groups, and its predictions for that fold count. Validation decides nothing.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ..core import files, lock
from ..core.bounds import one_of
from ..core.errors import UsageError
from ..core.model_spec import FUSED
from ..core.progress import Stages, no_stages
from ..core.recipe_spec import Decision, Recipe, TrainConfig, train_config
from ..core.skipped import Skipped
from ..core.text import counted, printable
from ..networks import checkpoint, hub_dataset, model as models, zoo
from ..networks.network import Network
from ..videos import listing, loader, pool, scanning
from ..videos.items import Key
from . import devices, evaluate, finished, linear, metrics, outputs, run_folder, sequence

BY = ("mean", "weights")
STEPS = 1000  # of the search for the weights, which has long converged then
REASONS = {
    "mean": "equal weights",
    "weights": "the least log loss of heads that were fitted without a fold of the training groups each",
}


@dataclass(frozen=True)
class Fused:
    """What `fuse` made and measured."""

    figures: dict  # ready for JSON (docs/fusion.md)
    skipped: tuple[Skipped, ...]  # videos that could not be read


def fuse(
    runs: Sequence[str | Path],
    by: str = "mean",
    name: str | None = None,
    device: str | torch.device | None = None,
    stages: Stages = no_stages,
) -> Fused:
    """Makes one model of the best models of finished `runs`, and keeps it as the run `runs/NAME`.

    `by`: `mean`, or `weights`, of the members. A run that is itself fused gives its members. Raises `UsageError` for
    fewer than two runs, for one that is named twice, for runs with other classes or another split, naming the first
    difference, and where the weights cannot be found.
    """
    began = time.monotonic()
    one_of(by, BY, "--by")
    folders = _fusible(runs)
    device = devices.resolve(device)
    config = _config(folders)
    run = zoo.new_run(zoo.folder_name(name or f"{hub_dataset.base_name(Path(config.videos))}-fused"), name is not None)
    files.check_folder(run)
    shares = [(folder, member) for folder in folders for member in _members(folder)]
    names = [printable(folder.name) for folder, _ in shares]
    net = models.join(FUSED, [member for _, member in shares]).to(device)
    workers = pool.default_workers(str(device))
    with stages("scanning") as progress:
        dataset = scanning.scan(folders[0] / "videos.csv", (), progress)
    config = replace(config, device=str(device), workers=workers)
    with lock.hold(run):
        if by == "weights":
            weights = best_weights(_fold_likelihoods(net, names, dataset, device, workers, stages)).tolist()
            members = tuple(replace(member, weight=weight) for member, weight in zip(net.spec.members, weights))
            net.spec = replace(net.spec, members=members)
        made, parts = _validated(net, dataset, device, workers, stages)
        train = tuple(scanning.items_in(dataset, listing.TRAIN))
        kept = [run_folder.best_epoch(run_folder.read_epochs(folder)) for folder, _ in shares]
        loss = float(np.average([epoch.train_loss for epoch in kept], weights=_weights(net)))
        epochs = max(run_folder.read_result(folder).epochs for folder in folders)
        fitted = linear.Fitted(made, train, loss)
        worth, gain = _worth(net, names, made, parts)
        facts = {"by": by, "members": worth}
        decision = Decision("fused", by, REASONS[by])
        figures = finished.write(run, net, dataset, config, decision, fitted, began, facts, epochs)
    return Fused(figures | {"gain": gain}, tuple(made.bad))


# --- what is fused


def _fusible(runs: Sequence[str | Path]) -> list[Path]:
    """The folders of several finished runs of one split. Raises `UsageError`."""
    folders = [_finished(str(run)) for run in runs]
    if len(folders) < 2:
        raise UsageError("one run is nothing to fuse", "nlzoo fuse RUN RUN…, of the same split")
    places = [folder.resolve() for folder in folders]
    if twice := [folder for folder, place in zip(folders, places) if places.count(place) > 1]:
        raise UsageError(f"{printable(twice[0])} is named twice", "name each run once; --by weights finds their shares")
    for other in folders[1:]:
        if difference := next(_differences(folders[0], other), None):
            raise UsageError(
                f"{printable(folders[0])} and {printable(other)} are not of the same split: {difference}",
                "fuse runs of the same videos, with the same --val and --seed",
            )
    return folders


def _finished(name: str) -> Path:
    """The folder of a finished run. Raises `UsageError`."""
    folder = zoo.find_run(name)
    if not (folder / run_folder.RESULT).is_file():
        raise UsageError(
            f"{printable(folder)} is {'unfinished' if zoo.is_run(folder) else 'no run'}, and finished runs are fused",
            "the command that started it resumes it" if zoo.is_run(folder) else "nlzoo list shows the runs",
        )
    return folder


def _differences(one: Path, other: Path) -> Iterator[str]:
    """Of the classes and videos of two runs."""
    spec, other_spec = (zoo.read_spec(run / "best") for run in (one, other))
    for name in sorted({*spec.classes} ^ {*other_spec.classes}):
        yield f"only {printable(one if name in spec.classes else other)} has the class {printable(name)!r}"
    if (spec.classes, spec.multi_label) != (other_spec.classes, other_spec.multi_label):
        yield "their classes are in another order, or a video may have several in one of them"
    lists = [_listed(run) for run in (one, other)]
    for key in sorted(lists[0].keys() | lists[1].keys(), key=str):
        mine, theirs = (listed.get(key) for listed in lists)
        if mine is None or theirs is None:
            yield f"only {printable(other if mine is None else one)} has {printable(key[0])}"
        elif mine != theirs:
            yield f"{printable(key[0])} is {_side(mine)} in {printable(one)}, {_side(theirs)} in {printable(other)}"


def _listed(run: Path) -> dict[Key, tuple[str, tuple[str, ...]]]:
    """The side and the labels of each video of a run."""
    items = listing.read(run / "videos.csv").items
    return {item.key(run): (item.split, tuple(sorted(item.labels))) for item in items}


def _side(entry: tuple[str, tuple[str, ...]]) -> str:
    side, labels = entry
    return f"{', '.join(map(printable, labels)) or 'without a label'} in {side}"


def _config(folders: Sequence[Path]) -> TrainConfig:
    first = train_config(files.read_json(folders[0] / run_folder.CONFIG).get("train"))
    return TrainConfig(
        first.videos, str(folders[0] / "best"), first.val, first.seed, "cpu", 0, Recipe(epochs=1), decoder=first.decoder
    )


def _members(folder: Path) -> list[tuple[Network, float]]:
    """The networks of a run with their shares of it."""
    net = checkpoint.load_model(folder / "best")
    if net.spec.head or not net.spec.members:
        return [(net, 1.0)]
    return [(one, member.weight) for one, member in zip(net.members, net.spec.members)]


def _weights(net: Network) -> list[float]:
    return [member.weight for member in net.spec.members]


# --- weights


def _fold_likelihoods(
    net: Network, names: Sequence[str], dataset: scanning.Dataset, device: torch.device, workers: int, stages: Stages
) -> np.ndarray:
    """float64 (N, M): how likely each member holds what is true of the training videos, told by heads without them."""
    items = tuple(scanning.items_in(dataset, listing.TRAIN))
    columns = []
    for name, member in zip(names, net.members):
        source = loader.Clips(dataset.root, items, member.spec.clip)
        with stages(f"computing features of {name}") as progress:
            kind = sequence if member.spec.head else linear
            columns.append(kind.fold_likelihoods(member, source, dataset, device, workers, progress))
    read = set.intersection(*(set(column) for column in columns))
    if not read:
        raise UsageError("no training video could be read by all members", "nlzoo check shows what is wrong")
    return np.concatenate([np.stack([column[index] for column in columns], -1) for index in sorted(read)])


def best_weights(likelihoods: np.ndarray) -> np.ndarray:
    """float64 (M,), adding up to 1: the weights of the mean of members with the least log loss.

    `likelihoods`: (N, M), of what is true. Expectation maximisation of a mixture, which is convex in its weights.
    """
    weights = np.full(likelihoods.shape[1], 1 / likelihoods.shape[1])
    for _ in range(STEPS):
        parts = np.clip(likelihoods, 1e-12, None) * weights
        weights = (parts / parts.sum(1, keepdims=True)).mean(0)
    return weights


# --- what it is worth


def _validated(
    net: Network, dataset: scanning.Dataset, device: torch.device, workers: int, stages: Stages
) -> tuple[evaluate.Predictions, np.ndarray]:
    """The predictions for the validation videos, and float64 (N, M, K), those of each member."""
    items = tuple(scanning.items_in(dataset, listing.VAL))
    source = loader.Clips(dataset.root, items, net.spec.clip)
    with stages("predicting") as progress:
        rows, bad = outputs.gathered(outputs.by_member(net, source, device, workers), items, progress)
    if not rows:
        raise UsageError("no validation video could be read by all members", "nlzoo check shows what is wrong")
    parts = np.stack(list(rows.values()))
    scores = np.average(parts, axis=1, weights=_weights(net))
    return evaluate.Predictions(tuple(items[index] for index in rows), scores, bad), parts


def _worth(
    net: Network, names: Sequence[str], made: evaluate.Predictions, parts: np.ndarray
) -> tuple[list[dict], metrics.Interval]:
    """`run`, `weight` and `metrics.brief` of each member; the 95 % interval of how much better all are than the best.

    The best is chosen on the same videos.
    """
    spec, key = net.spec, "map" if net.spec.multi_label else "top1"
    figures = [metrics.brief(parts[:, n], made.items, spec.classes, spec.multi_label) for n in range(parts.shape[1])]
    best = parts[:, int(np.argmax([one[key] for one in figures]))]
    gain = metrics.difference(made.scores, best, made.items, spec.classes, spec.multi_label)
    rows = zip(names, _weights(net), figures)
    return [{"run": name, "weight": weight, **one} for name, weight, one in rows], gain


def in_words(figures: dict) -> str:
    """The members, the figures, and what was gained, as lines of text."""
    key = "map" if "map" in figures else "top1"
    rows = [
        f"  {one['weight']:.3f} of {one['run']}: {metrics.NAMES[key]} {one[key]:.3f}, log loss {one['loss']:.3f}"
        for one in figures["members"]
    ]
    verdict = metrics.gain_in_words(figures["gain"], "better than the best of them", "what fusing is worth")
    words = f"{counted(len(rows), 'model')}, {REASONS[figures['by']]}:"
    return "\n".join([words, *rows, metrics.in_words(figures), verdict, f"model {figures['model']}"])
