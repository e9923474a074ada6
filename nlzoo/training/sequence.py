"""Fits a head over windows of a video to the features of networks that are left as they are.

How long an LSTM or attention is trained is chosen over folds of the training groups: validation decides nothing.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from ..core.errors import VideoError
from ..core.progress import Progress, no_progress
from ..core.skipped import Skipped
from ..networks.network import Network
from ..networks.sequence import ShiftingAttention
from ..videos import listing, loader, scanning, sound
from . import linear, outputs, recipe

BATCH, DECAY = 32, 0.05  # AdamW
RATES = {"lstm": 1e-3, "attention": 1e-2}  # attention puts out vectors of length 1 (docs/fusion.md)
EPOCHS, STEPS = 60, 3000  # at most


def fit_head(
    net: Network,
    dataset: scanning.Dataset,
    device: torch.device,
    seed: int = 0,
    workers: int = 0,
    decoder: str = "auto",
    progress: Progress = no_progress,
) -> linear.Fitted:
    """Fits the head of a sequence for the classes of `dataset` (split) to its training videos, in place.

    `Fitted.strength` is C of a linear head, epochs of another. Raises `VideoError` where too few videos could be read.
    """
    source = linear.labelled_clips(net, dataset, decoder)
    rows, bad, silent = _features(net.eval().to(device), source, device, workers, progress)

    def fit(features: np.ndarray, truth: np.ndarray, groups: Sequence[str]) -> float:
        _standardise(net, features)
        return _fit(net, features, truth, groups, seed)

    done = linear.fitted(dataset, source.items, rows, bad, fit, partial(_scores, net), "to fit a head")
    unheard = sum(source.items[index].split == listing.VAL for index in silent)
    return replace(done, predictions=replace(done.predictions, silent=unheard))


def fold_likelihoods(
    net: Network,
    source: loader.Clips,
    dataset: scanning.Dataset,
    device: torch.device,
    workers: int = 0,
    progress: Progress = no_progress,
) -> dict[int, np.ndarray]:
    """As `linear.fold_likelihoods`, of heads as that of the sequence `net`, which stays as it is.

    All have the C, or are trained for so many epochs, as has the least log loss over the same folds.
    """
    rows, _, _ = _features(net.eval().to(device), source, device, workers, progress)
    fitted = copy.deepcopy(net)

    def fit(
        features: np.ndarray, truth: np.ndarray, groups: Sequence[str], strength: float | None
    ) -> tuple[float, linear.Scores]:
        _standardise(fitted, features)
        return _fit(fitted, features, truth, groups, 0, strength), partial(_scores, fitted)

    return linear.held_out(dataset, source.items, rows, fit)


def _features(
    net: Network, source: loader.Clips, device: torch.device, workers: int, progress: Progress
) -> tuple[dict[int, np.ndarray], list[Skipped], set[int]]:
    """float64 (W, D) features by index, those that could not be read, and which of the features are of silent videos.

    Their numbers of sound are the mean of the training videos. Raises `VideoError` where none of those has sound.
    """
    silent: set[int] = set()

    def noted() -> Iterator[outputs.Row]:
        for index, row, reason in outputs.window_features(net, source, device, workers):
            if row is not None and reason == sound.NONE:
                silent.add(index)
            yield index, row, reason

    rows, bad = outputs.gathered(noted(), source.items, progress)
    heard = [row for index, row in rows.items() if index not in silent and source.items[index].split == listing.TRAIN]
    if silent and not heard:
        raise VideoError("no training video has sound", "leave the network of sound out")
    for part in (part for clip, part in net.columns() if clip.stream == "audio"):
        for index in silent:
            rows[index][:, part] = np.mean([row[:, part] for row in heard], (0, 1))
    return rows, bad, silent


def _standardise(net: Network, features: np.ndarray) -> None:
    """Sets mean and deviation of `net` to those of features (N, W, D)."""
    net.mean.copy_(torch.from_numpy(features.mean((0, 1))))
    net.scale.copy_(torch.from_numpy(features.std((0, 1)) + 1e-6))


def _fit(
    net: Network,
    features: np.ndarray,
    truth: np.ndarray,
    groups: Sequence[str],
    seed: int,
    strength: float | None = None,
) -> float:
    """C, or the epochs: `strength`, or what has the least log loss over folds of the groups."""
    spec = net.spec
    assert spec.head
    if spec.head.kind == "linear":
        means = ((features - net.mean.cpu().numpy()) / net.scale.cpu().numpy()).mean(1)
        strength, weights, biases = linear.fit(means, truth, groups, spec.multi_label, strength)
        with torch.no_grad():
            net.fc.weight.copy_(torch.from_numpy(weights))
            net.fc.bias.copy_(torch.from_numpy(biases))
        return strength
    x, y = (torch.from_numpy(each).to(net.fc.weight) for each in (features, truth))
    best = int(strength or _best_epochs(net, x, y, linear.folds(features, groups), seed))
    _train(net, x, y, best, seed)
    return float(best)


def _best_epochs(net: Network, x: Tensor, y: Tensor, folds: Sequence[linear.Fold], seed: int) -> int:
    epochs = max(5, min(EPOCHS, STEPS * BATCH // len(x)))
    losses = [_train(copy.deepcopy(net), x[a], y[a], epochs, seed, (x[b], y[b])) for a, b in folds]
    return int(np.sum(losses, 0).argmin()) + 1 if losses else epochs // 2


def _train(
    net: Network, x: Tensor, y: Tensor, epochs: int, seed: int, held: tuple[Tensor, Tensor] | None = None
) -> list[float]:
    """Trains the head of `net` from its beginning, in place; the log loss of `held`, summed, after each epoch."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        _reset(net)
        parameters = [*net.head.parameters(), *net.fc.parameters()]
        assert net.spec.head
        optimizer = recipe.uncompiled(torch.optim.AdamW)(parameters, RATES[net.spec.head.kind], weight_decay=DECAY)
        losses = []
        for _ in range(epochs):
            net.dropout.train()
            for rows in torch.randperm(len(x)).split(BATCH):
                optimizer.zero_grad()
                (linear.log_loss(net.classify(x[rows]), y[rows], net.spec.multi_label) / len(rows)).backward()
                optimizer.step()
            net.eval()
            if held:
                with torch.no_grad():
                    losses.append(linear.log_loss(net.classify(held[0]), held[1], net.spec.multi_label).item())
    return losses


def _reset(net: Network) -> None:
    """Fresh random numbers; every class starts equally likely."""
    for module in net.head.modules():
        if isinstance(module, nn.LSTM | nn.Linear | ShiftingAttention):
            module.reset_parameters()
    nn.init.zeros_(net.fc.weight)
    nn.init.zeros_(net.fc.bias)


@torch.no_grad()
def _scores(net: Network, features: np.ndarray) -> np.ndarray:
    logits = net.eval().classify(torch.from_numpy(features).to(net.fc.weight)).double().cpu()
    return (logits.sigmoid() if net.spec.multi_label else logits.softmax(-1)).numpy()
