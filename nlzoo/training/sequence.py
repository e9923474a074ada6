"""Fits a head over windows of a video to the features of networks that are left as they are.

How long an LSTM or attention is trained is chosen over folds of the training groups: validation decides nothing.
"""

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..core.errors import VideoError
from ..core.model_spec import SEQUENCE, SequenceHead
from ..core.progress import Progress, no_progress
from ..core.skipped import Skipped
from ..networks.model import join
from ..networks.network import Network
from ..networks.sequence import ShiftingAttention
from ..videos import listing, loader, scanning, sound
from . import known_features, linear, outputs, recipe

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
    files: Sequence[Path] = (),
) -> linear.Fitted:
    """Fits the head of a sequence for the classes of `dataset` (split) to its training videos, in place.

    `files`: of features, one for each member or none at all; what is there is taken from them, and those that are not
    there are written. `Fitted.strength` is C of a linear head, epochs of another. Raises `VideoError` where too few
    videos could be read, and `UsageError` for a file with features of another model.
    """
    source, began = linear.labelled_clips(net, dataset, decoder), time.monotonic()
    rows, bad, silent = _features(net.eval().to(device), source, device, workers, progress, files)
    seconds = time.monotonic() - began

    def fit(features: np.ndarray, truth: np.ndarray, groups: Sequence[str]) -> float:
        _standardise(net, features)
        return _fit(net, features, truth, groups, seed)

    done = linear.fitted(dataset, source.items, rows, bad, fit, partial(_scores, net), "to fit a head")
    unheard = sum(source.items[index].split == listing.VAL for index in silent)
    return replace(done, predictions=replace(done.predictions, silent=unheard), feature_seconds=seconds)


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
    net: Network,
    source: loader.Clips,
    device: torch.device,
    workers: int,
    progress: Progress,
    files: Sequence[Path] = (),
) -> tuple[dict[int, np.ndarray], list[Skipped], set[int]]:
    """float64 (W, D) features by index, those that could not be read, and which of the features are of silent videos.

    Their numbers of sound are the mean of the training videos. Raises `VideoError` where none of those has sound.
    """
    known = [_known(net, n, source, device, file) for n, file in enumerate(files)] or [{} for _ in net.members]
    silent: set[int] = set()

    def noted() -> Iterator[outputs.Row]:
        for index, row, reason in _rows(net, source, device, workers, known):
            if row is not None and reason == sound.NONE:
                silent.add(index)
            yield index, row, reason

    rows, bad = outputs.gathered(noted(), source.items, progress)
    heard = _mean_heard(rows, source, silent)
    _write(net, source, rows, silent, files)
    for part in (part for clip, part in net.columns() if clip.stream == "audio"):
        for index in silent:
            rows[index][:, part] = heard[part]
    return rows, bad, silent


def _mean_heard(rows: Mapping[int, np.ndarray], source: loader.Clips, silent: set[int]) -> np.ndarray:
    """Mean (D,) of the features of the training videos that are not silent, where any is. Raises `VideoError`."""
    heard = [row for index, row in rows.items() if index not in silent and source.items[index].split == listing.TRAIN]
    if silent and not heard:
        raise VideoError("no training video has sound", "leave the network of sound out")
    return np.mean(heard, (0, 1)) if silent else np.zeros(0)


def _rows(
    net: Network,
    source: loader.Clips,
    device: torch.device,
    workers: int,
    known: Sequence[Mapping[int, np.ndarray]],
) -> Iterator[outputs.Row]:
    """As `outputs.window_features`; what is `known` of a member, by index of the video, is not computed."""
    left: dict[tuple[int, ...], list[int]] = {}  # videos by the members whose features are missing
    for index in range(len(source)):
        missing = tuple(number for number, rows in enumerate(known) if index not in rows)
        left.setdefault(missing, []).append(index)
    for missing, indices in left.items():
        kept = [number for number in range(len(known)) if number not in missing]
        for index, made, reason in _computed(net, missing, source, indices, device, workers):
            rows = made if made is None else made | {number: known[number][index] for number in kept}
            yield index, None if rows is None else _side_by_side(net, rows), reason


def _computed(
    net: Network,
    numbers: Sequence[int],
    source: loader.Clips,
    indices: Sequence[int],
    device: torch.device,
    workers: int,
) -> Iterator[tuple[int, dict[int, np.ndarray] | None, str]]:
    """As `outputs.window_features` of some videos, float64 (W, C) by the number of some members of `net`."""
    if not numbers:
        yield from ((index, {}, "") for index in indices)
        return
    part, some = _of_members(net, numbers), replace(source, items=tuple(source.items[index] for index in indices))
    columns = dict(zip(numbers, part.columns_of_members()))
    for n, row, reason in outputs.window_features(part, some, device, workers):
        yield indices[n], None if row is None else {k: row[:, own] for k, own in columns.items()}, reason


def _side_by_side(net: Network, rows: Mapping[int, np.ndarray]) -> np.ndarray:
    """float64 (W, D) features of the (W, C) or (C,) of each member, by its number."""
    assert net.spec.head
    order = [number for _, numbers in net.spec.shared_clips() for number in numbers]
    return np.concatenate([rows[number].reshape(net.spec.head.windows, -1) for number in order], 1).astype(float)


def _of_members(net: Network, numbers: Sequence[int]) -> Network:
    """Some members of `net` over the same windows, for their features."""
    assert net.spec.head
    return join(
        SEQUENCE, [(net.members[number], 1.0) for number in numbers], SequenceHead("linear", net.spec.head.windows)
    )


def _shape(net: Network, number: int) -> tuple[int, ...]:
    """Of a member's features of a video in a file: (C,), of several windows (W, C)."""
    assert net.spec.head
    windows, width = net.spec.head.windows, net.members[number].fc.in_features
    return (windows, width) if windows > 1 else (width,)


def _known(net: Network, number: int, source: loader.Clips, device: torch.device, file: Path) -> dict[int, np.ndarray]:
    """The features of a member by index of the video, of its file where there is one. Raises `UsageError`."""
    shape, alone = _shape(net, number), _of_members(net, [number])

    def compute(index: int) -> np.ndarray | None:
        one = replace(source, items=(source.items[index],))
        ((_, row, reason),) = outputs.window_features(alone, one, device)
        return None if row is None or reason == sound.NONE else row.reshape(shape)

    return known_features.read(file, source, shape, compute)


def _write(
    net: Network, source: loader.Clips, rows: Mapping[int, np.ndarray], silent: set[int], files: Sequence[Path]
) -> None:
    """Writes the features of each member where it has no file yet; of a network of sound not those of silent videos."""
    for number, file in enumerate(files):
        own = rows.keys() - (silent if net.members[number].spec.clip.stream == "audio" else set())
        part, shape = net.columns_of_members()[number], _shape(net, number)
        known_features.write(file, source, {index: rows[index][:, part].reshape(shape) for index in own})


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
