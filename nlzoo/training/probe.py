"""The fast baseline: a linear classifier on the features of a network that is left as it is.

Unusual: it becomes the network's head. Standardising and a linear map are one linear map, so what is measured here is what the model folder answers.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..core.errors import VideoError
from ..core.skipped import Skipped
from ..networks import model
from ..videos import listing, loader, scanning
from . import evaluate, metrics

STRENGTHS = tuple(10.0**k for k in range(-5, 3))  # C of scikit-learn: how little the head's weights are held down
FOLDS = 5  # of the training groups, that C is chosen by
NEVER = -10.0  # the bias of a class that no training video has


@dataclass(frozen=True)
class Probed:
    """A head that was fitted, and what it is worth."""

    strength: float  # C that was chosen
    said: evaluate.Predictions  # on the validation videos
    train: tuple[listing.Item, ...]  # videos that it was fitted to
    bad: list[Skipped]  # training videos that could not be read


def probe(
    net: nn.Module,
    found: scanning.Dataset,
    device: torch.device,
    workers: int = 0,
    decoder: str = "auto",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Probed:
    """Fits a new head for the classes of `found` (split) to the features of its training videos, in place, and answers for the others.

    C is chosen by cross-validation over the training groups. Raises `VideoError` where too few videos could be read.
    """
    parts = {part: scanning.items_in(found, part) for part in (listing.TRAIN, listing.VAL)}
    items, rows, bad = _features(
        net, found.root, parts[listing.TRAIN] + parts[listing.VAL], device, workers, decoder, progress
    )
    train, val = ([n for n, i in enumerate(items) if i.split == part] for part in (listing.TRAIN, listing.VAL))
    wanted = metrics.targets(items, found.classes)
    if not val or len(np.unique(wanted[train], axis=0)) < 2:
        raise VideoError(
            f"{len(train)} training and {len(val)} validation videos could be read: too few for a linear probe",
            "nlzoo check shows what is wrong",
        )
    scale = rows[train].std(0) + 1e-6
    strength, weight, bias = fit(
        (rows[train] - rows[train].mean(0)) / scale, wanted[train], [items[n].group for n in train], found.multi_label
    )
    model.set_head(net, found.classes, found.multi_label)
    with torch.no_grad():
        net.fc.weight.copy_(torch.from_numpy(weight / scale))
        net.fc.bias.copy_(torch.from_numpy(bias - (weight / scale) @ rows[train].mean(0)))
    logits = torch.from_numpy(rows[val]).to(net.fc.weight) @ net.fc.weight.detach().T + net.fc.bias.detach()
    scores = (logits.sigmoid() if found.multi_label else logits.double().softmax(-1)).double().cpu().numpy()
    held = {i.path for i in parts[listing.VAL]}
    said = evaluate.Predictions(tuple(items[n] for n in val), scores, [s for s in bad if s.path in held])
    return Probed(strength, said, tuple(items[n] for n in train), [s for s in bad if s.path not in held])


def _features(net, root, items, device, workers, decoder, progress):
    source, rows, bad = loader.Clips(root, tuple(items), net.spec.clip, decoder=decoder), {}, []
    net.eval().to(device)
    for done, (index, row, reason) in enumerate(evaluate.features(net, source, device, workers), 1):
        progress(done, len(items))
        if row is None:
            bad.append(Skipped(items[index].path, scanning.UNREADABLE, reason))
        else:
            rows[index] = row
    return (
        [items[n] for n in sorted(rows)],
        np.stack([rows[n] for n in sorted(rows)]) if rows else np.empty((0, 1)),
        bad,
    )


def fit(
    x: np.ndarray, wanted: np.ndarray, groups: Sequence[str], multi_label: bool
) -> tuple[float, np.ndarray, np.ndarray]:
    """`(C, weights (K, D), biases (K,))` of scikit-learn's logistic regression on float `(N, D)` features and `(N, K)` targets of 0 and 1.

    C has the least log loss over folds of the groups. Several labels: one regression for each class, all with one C.
    """
    from sklearn.model_selection import GroupKFold

    count = len(set(groups))
    folds = list(GroupKFold(min(FOLDS, count)).split(x, groups=groups)) if count > 1 else []

    def loss(strength):
        return sum(
            _loss(_head(x[train], wanted[train], strength, multi_label), x[val], wanted[val], multi_label)
            for train, val in folds
        )

    strength = min(STRENGTHS, key=loss) if folds else 1e-2
    return strength, *_head(x, wanted, strength, multi_label)


def _head(x, wanted, strength, multi_label):
    """Weights (K, D) and biases (K,)."""
    if multi_label:
        weights, biases = zip(*(_regression(x, y, strength) for y in wanted.T))
        return np.concatenate(weights), np.concatenate(biases)
    labels = wanted.argmax(1)
    there = np.unique(labels)
    weight, bias = _regression(x, labels, strength)
    if len(there) < 3:  # one row: how much likelier the second is than the first
        weight, bias = (
            np.concatenate([-weight, weight])[-len(there) :] / 2,
            np.concatenate([-bias, bias])[-len(there) :] / 2,
        )
    weights, biases = np.zeros((wanted.shape[1], x.shape[1])), np.full(wanted.shape[1], NEVER)
    weights[there], biases[there] = weight, bias
    return weights, biases


def _regression(x, y, strength):
    """Rows of weights and biases; where all have one value, a bias alone, which says so."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if len(set(y)) < 2:
        return np.zeros((1, x.shape[1])), np.array([-NEVER if y[0] else NEVER])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of weights that are hardly held down
        found = LogisticRegression(C=strength, max_iter=1000).fit(x, y)
    return found.coef_, found.intercept_


def _loss(head, x, wanted, multi_label):
    weights, biases = head
    of = F.binary_cross_entropy_with_logits if multi_label else F.cross_entropy
    return of(torch.from_numpy(x @ weights.T + biases), torch.from_numpy(wanted).double(), reduction="sum").item()
