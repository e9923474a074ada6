"""A linear classifier on the features of a network that is left as it is, which becomes the network's head.

Unusual: standardising and a linear map are one linear map, so what is measured is what the model folder predicts.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
import torch.nn.functional as F

from ..core.errors import UsageError, VideoError
from ..core.progress import Progress, no_progress
from ..core.skipped import Skipped
from ..networks.model import set_head
from ..networks.network import Network
from ..videos import listing, loader, scanning, sound
from ..videos.listing import Item
from . import evaluate, known_features, learning_curve, metrics, outputs

STRENGTHS = tuple(10.0**k for k in range(-5, 3))  # C of scikit-learn: the smaller, the stronger the regularisation
FOLDS = 5  # of the training groups, to choose C by
NEVER = -10.0  # bias of a class without training videos

Head = tuple[np.ndarray, np.ndarray]  # weights (K, D), biases (K,)
Fold = tuple[np.ndarray, np.ndarray]  # rows to fit to, and rows to test on
Scores = Callable[[np.ndarray], np.ndarray]  # from features to probabilities (N, K)


@dataclass(frozen=True)
class Fitted:
    """A model that no epoch trained, its head fitted or its members chosen, and what it is worth."""

    predictions: evaluate.Predictions  # for the validation videos
    train: tuple[Item, ...]  # videos that it was made with
    train_loss: float  # mean log loss on them
    bad: tuple[Skipped, ...] = ()  # training videos that could not be read
    curve: learning_curve.Curve | None = None  # top-1 against videos a class; None where there is none
    strength: float = 0.0  # C that was chosen; of a head over time the epochs
    feature_seconds: float = 0.0  # that the features of a head over windows took


def fit_head(
    net: Network,
    dataset: scanning.Dataset,
    device: torch.device,
    workers: int = 0,
    decoder: str = "auto",
    progress: Progress = no_progress,
    cache: Path | None = None,
    file: Path | None = None,
) -> Fitted:
    """Fits a new head for the classes of `dataset` (split) to the features of its training videos, in place.

    C is chosen by cross-validation over the training groups. `file`: of features, which are taken from there, or
    written where it is not there. Raises `VideoError` where too few videos could be read, and `UsageError` for a file
    with features of another model.
    """
    source = labelled_clips(net, dataset, decoder, cache)
    rows, bad = _kept_features(net, source, device, workers, progress, file)
    fit = partial(_set_fitted_head, net, dataset)
    done = fitted(dataset, source.items, rows, bad, fit, partial(_head_scores, net), "for a linear probe")
    done = _with_silent(net, done, source.items)
    if dataset.multi_label:
        return done
    items = [source.items[index] for index in rows]
    labels = metrics.targets(items, dataset.classes).argmax(1)
    curve = learning_curve.measure(np.stack(list(rows.values())), labels, items, partial(classify, done.strength))
    return replace(done, curve=curve)


def labelled_clips(net: Network, dataset: scanning.Dataset, decoder: str, cache: Path | None = None) -> loader.Clips:
    """The videos of training, and behind them those of validation."""
    items = [item for part in (listing.TRAIN, listing.VAL) for item in scanning.items_in(dataset, part)]
    return loader.Clips(dataset.root, tuple(items), net.spec.clip, decoder=decoder, cache=cache)


def fitted(
    dataset: scanning.Dataset,
    items: Sequence[Item],
    rows: Mapping[int, np.ndarray],
    bad: Sequence[Skipped],
    fit: Callable[[np.ndarray, np.ndarray, Sequence[str]], float],
    scores_of: Scores,
    purpose: str,
) -> Fitted:
    """What `fit` makes of the features (`rows`) of the training `items`, what is true of them (N, K), and their groups.

    `scores_of`: the probabilities that the head then gives to features. Raises `VideoError` where too few could be read
    for the `purpose`, and `DivergedError` for features that are not finite.
    """
    read = [items[index] for index in rows]
    split = np.array([item.split for item in read])
    train, val = np.flatnonzero(split == listing.TRAIN), np.flatnonzero(split == listing.VAL)
    truth = metrics.targets(read, dataset.classes)
    if not len(val) or len(np.unique(truth[train], axis=0)) < 2:
        raise VideoError(
            f"{len(train)} training and {len(val)} validation videos could be read: too few {purpose}",
            "nlzoo check shows what is wrong",
        )
    features = np.stack(list(rows.values()))
    metrics.check_finite(features, [item.path for item in read])
    measured = tuple(read[n] for n in train)
    strength = fit(features[train], truth[train], [item.group for item in measured])
    scores = scores_of(features)
    train_loss = metrics.brief(scores[train], measured, dataset.classes, dataset.multi_label)["loss"]
    held = {item.path for item in items if item.split == listing.VAL}
    bad_val = [one for one in bad if one.path in held]
    bad_train = tuple(one for one in bad if one.path not in held)
    predictions = evaluate.Predictions(tuple(read[n] for n in val), scores[val], bad_val)
    return Fitted(predictions, measured, train_loss, bad_train, strength=strength)


def _with_silent(net: Network, done: Fitted, items: Sequence[Item]) -> Fitted:
    """With the prior, where `net` hears, for those of the `items` of validation that have no sound."""
    if net.spec.clip.stream != "audio":
        return done
    prior = net.spec.prior or tuple(metrics.targets(done.train, net.spec.classes).mean(0).tolist())
    net.spec = replace(net.spec, prior=prior)
    made = done.predictions
    silent = {one.path for one in made.bad if one.reason == sound.NONE}
    more = tuple(item for item in items if item.split == listing.VAL and item.path in silent)
    scores = np.concatenate([made.scores, np.tile(prior, (len(more), 1))])
    bad = [one for one in made.bad if one.path not in silent]
    return replace(done, predictions=evaluate.Predictions((*made.items, *more), scores, bad, len(more)))


def fit_classes(net: Network, dataset: scanning.Dataset) -> bool:
    """Gives `net` a fresh head where its own is for other classes, in place; whether it did.

    A head for these classes keeps its parameters, which an optimiser may know.
    """
    if (net.spec.classes, net.spec.multi_label) == (dataset.classes, dataset.multi_label):
        return False
    set_head(net, dataset.classes, dataset.multi_label)
    return True


def classify(strength: float, features: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """int answers for `test` (M, D) of a head that is fitted to features (N, D) and their labels."""
    mean, scale = _scale(features)
    truth = np.eye(int(labels.max()) + 1)[labels]
    weights, biases = _head((features - mean) / scale, truth, strength, False)
    return ((test - mean) / scale @ weights.T + biases).argmax(1)


def _scale(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation (D,) that features (N, D) are standardised by; none is divided by 0."""
    return features.mean(0), features.std(0) + 1e-6


def _set_fitted_head(
    net: Network, dataset: scanning.Dataset, features: np.ndarray, truth: np.ndarray, groups: Sequence[str]
) -> float:
    """Gives `net` the head that fits training features (N, D) best, in place; its C."""
    mean, scale = _scale(features)
    strength, weights, biases = fit((features - mean) / scale, truth, groups, dataset.multi_label)
    fit_classes(net, dataset)
    with torch.no_grad():
        net.fc.weight.copy_(torch.from_numpy(weights / scale))
        net.fc.bias.copy_(torch.from_numpy(biases - (weights / scale) @ mean))
    return strength


@torch.no_grad()
def _head_scores(net: Network, features: np.ndarray) -> np.ndarray:
    """float64 (N, K) probabilities that the head of `net` gives to features (N, D)."""
    logits = net.fc(torch.from_numpy(features).to(net.fc.weight)).double().cpu()
    return (logits.sigmoid() if net.spec.multi_label else logits.softmax(-1)).numpy()


def _features(
    net: Network,
    source: loader.Clips,
    device: torch.device,
    workers: int,
    progress: Progress,
    known: Mapping[int, np.ndarray] = MappingProxyType({}),
) -> tuple[dict[int, np.ndarray], list[Skipped]]:
    """float64 (D,) features by index, in order (`known` ones are not computed), and the videos that were unreadable."""
    left = [index for index in range(len(source)) if index not in known]
    some = replace(source, items=tuple(source.items[index] for index in left))
    made = outputs.features(net.eval().to(device), some, device, workers) if left else ()
    new, bad = outputs.gathered(made, some.items, progress)
    rows = {index: row.astype(float) for index, row in known.items()} | {left[n]: row for n, row in new.items()}
    return dict(sorted(rows.items())), bad


def _kept_features(
    net: Network, source: loader.Clips, device: torch.device, workers: int, progress: Progress, file: Path | None
) -> tuple[dict[int, np.ndarray], list[Skipped]]:
    """As `_features`: those of the file, where it is there, and computed ones, which are written where it is not."""

    def compute(index: int) -> np.ndarray | None:
        one = replace(source, items=(source.items[index],))
        return _features(net, one, device, 0, no_progress)[0].get(0)

    known = known_features.read(file, source, (net.fc.in_features,), compute) if file else {}
    rows, bad = _features(net, source, device, workers, progress, known)
    if file:
        known_features.write(file, source, rows)
    return rows, bad


def fold_likelihoods(
    net: Network,
    source: loader.Clips,
    dataset: scanning.Dataset,
    device: torch.device,
    workers: int = 0,
    progress: Progress = no_progress,
) -> dict[int, np.ndarray]:
    """How likely heads that were fitted without a video's group hold what is true of it, by the index of the video.

    One label a video: float64 (1,), the probability of its class. Several: (K,), of each class that it is there, or
    not. The heads have one C, chosen over the same folds. Raises `UsageError` for fewer than two groups.
    """
    rows, _ = _features(net, source, device, workers, progress)
    return held_out(dataset, source.items, rows, partial(_scaled_head, dataset.multi_label))


def held_out(
    dataset: scanning.Dataset,
    items: Sequence[Item],
    rows: Mapping[int, np.ndarray],
    fit: Callable[[np.ndarray, np.ndarray, Sequence[str], float | None], tuple[float, Scores]],
) -> dict[int, np.ndarray]:
    """`fold_likelihoods` of any head, from the features (`rows`) of training `items`.

    `fit`: from features, what is true of them and their groups to the strength, which is chosen where it is None, and
    to what gives the fitted head's probabilities. Raises `UsageError` for fewer than two groups.
    """
    read = [items[index] for index in rows]
    groups = [item.group for item in read]
    if len(set(groups)) < 2:
        raise UsageError("the training videos that could be read are of one group: there are no folds", "use --by mean")
    features, truth = np.stack(list(rows.values())), metrics.targets(read, dataset.classes)
    strength, _ = fit(features, truth, groups, None)
    likely = np.zeros((len(read), truth.shape[1] if dataset.multi_label else 1))
    for train, test in folds(features, groups):
        _, scores_of = fit(features[train], truth[train], (), strength)
        likely[test] = _likelihoods(scores_of(features[test]), truth[test], dataset.multi_label)
    return dict(zip(rows, likely))


def _scaled_head(
    multi_label: bool, features: np.ndarray, truth: np.ndarray, groups: Sequence[str], strength: float | None
) -> tuple[float, Scores]:
    mean, scale = _scale(features)
    strength, weights, biases = fit((features - mean) / scale, truth, groups, multi_label, strength)

    def scores_of(x: np.ndarray) -> np.ndarray:
        logits = torch.from_numpy((x - mean) / scale @ weights.T + biases)
        return (logits.sigmoid() if multi_label else logits.softmax(-1)).numpy()

    return strength, scores_of


def _likelihoods(scores: np.ndarray, truth: np.ndarray, multi_label: bool) -> np.ndarray:
    """(N, 1), the probability of each video's class; several labels: (N, K), of each that it is there, or not."""
    if multi_label:
        return np.where(truth > 0, scores, 1 - scores)
    return (scores * truth).sum(1, keepdims=True)


def folds(x: np.ndarray, groups: Sequence[str]) -> list[Fold]:
    """Rows to fit to and rows to test on, whole groups each; none of a single group."""
    from sklearn.model_selection import GroupKFold

    count = len(set(groups))
    return list(GroupKFold(min(FOLDS, count)).split(x, groups=groups)) if count > 1 else []


def fit(
    x: np.ndarray, truth: np.ndarray, groups: Sequence[str], multi_label: bool, strength: float | None = None
) -> tuple[float, np.ndarray, np.ndarray]:
    """`(C, weights (K, D), biases (K,))` of scikit-learn's logistic regression.

    `x`: float (N, D). `truth`: (N, K) of 0 and 1. C is `strength`, or has the least log loss over folds of the groups.
    Several labels: one regression for each class, all with one C.
    """
    parts = folds(x, groups) if strength is None else []

    def loss(strength: float) -> float:
        total = 0.0
        for train, val in parts:
            weights, biases = _head(x[train], truth[train], strength, multi_label)
            logits = torch.from_numpy(x[val] @ weights.T + biases)
            total += log_loss(logits, torch.from_numpy(truth[val]).double(), multi_label).item()
        return total

    strength = strength or (min(STRENGTHS, key=loss) if parts else 1e-2)
    return strength, *_head(x, truth, strength, multi_label)


def _head(x: np.ndarray, truth: np.ndarray, strength: float, multi_label: bool) -> Head:
    if multi_label:
        weights, biases = zip(*(_regression(x, column, strength) for column in truth.T))
        return np.concatenate(weights), np.concatenate(biases)
    labels = truth.argmax(1)
    present = np.unique(labels)
    weight, bias = _regression(x, labels, strength)
    if len(present) < 3:  # one row: how much likelier the second class is than the first
        weight = np.concatenate([-weight, weight])[-len(present) :] / 2
        bias = np.concatenate([-bias, bias])[-len(present) :] / 2
    all_weights, all_biases = np.zeros((truth.shape[1], x.shape[1])), np.full(truth.shape[1], NEVER)
    all_weights[present], all_biases[present] = weight, bias
    return all_weights, all_biases


def _regression(x: np.ndarray, y: np.ndarray, strength: float) -> Head:
    """Rows of weights and biases; where all of `y` are equal, a bias alone."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if len(set(y)) < 2:
        return np.zeros((1, x.shape[1])), np.array([-NEVER if y[0] else NEVER])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of weights that are hardly regularised
        fitted = LogisticRegression(C=strength, max_iter=1000).fit(x, y)
    return fitted.coef_, fitted.intercept_


def log_loss(logits: torch.Tensor, truth: torch.Tensor, multi_label: bool) -> torch.Tensor:
    """The sum over the videos of logits `(N, K)`; `truth`: `(N, K)` of 0 and 1."""
    loss = F.binary_cross_entropy_with_logits if multi_label else F.cross_entropy
    return loss(logits, truth, reduction="sum")
