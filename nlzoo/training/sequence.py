"""Fits a head over windows of a video to the features of networks that are left as they are.

How long an LSTM or attention is trained is chosen over folds of the training groups: validation decides nothing.
"""

import copy
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.progress import Progress, no_progress
from ..networks.network import Network
from ..networks.sequence import ShiftingAttention
from ..videos import scanning
from . import linear, outputs

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
    made = outputs.window_features(net.eval().to(device), source, device, workers)
    rows, bad = outputs.gathered(made, source.items, progress)

    def fit(features: np.ndarray, truth: np.ndarray, groups: Sequence[str]) -> float:
        net.mean.copy_(torch.from_numpy(features.mean((0, 1))))
        net.scale.copy_(torch.from_numpy(features.std((0, 1)) + 1e-6))
        return _fit(net, features, truth, groups, seed)

    return linear.fitted(dataset, source.items, rows, bad, fit, partial(_scores, net), "to fit a head")


def _fit(net: Network, features: np.ndarray, truth: np.ndarray, groups: Sequence[str], seed: int) -> float:
    """C, or the epochs that were chosen."""
    spec = net.spec
    assert spec.head
    if spec.head.kind == "linear":
        means = ((features - net.mean.cpu().numpy()) / net.scale.cpu().numpy()).mean(1)
        strength, weights, biases = linear.fit(means, truth, groups, spec.multi_label)
        with torch.no_grad():
            net.fc.weight.copy_(torch.from_numpy(weights))
            net.fc.bias.copy_(torch.from_numpy(biases))
        return strength
    x, y = (torch.from_numpy(each).to(net.fc.weight) for each in (features, truth))
    epochs = max(5, min(EPOCHS, STEPS * BATCH // len(x)))
    folds = linear.folds(features, groups)
    losses = [_train(copy.deepcopy(net), x[a], y[a], epochs, seed, (x[b], y[b])) for a, b in folds]
    best = int(np.sum(losses, 0).argmin()) + 1 if losses else epochs // 2
    _train(net, x, y, best, seed)
    return float(best)


def _train(
    net: Network, x: Tensor, y: Tensor, epochs: int, seed: int, held: tuple[Tensor, Tensor] | None = None
) -> list[float]:
    """Trains the head of `net` from its beginning, in place; the log loss of `held`, summed, after each epoch."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        _reset(net)
        parameters = [*net.head.parameters(), *net.fc.parameters()]
        assert net.spec.head
        optimizer = torch.optim.AdamW(parameters, RATES[net.spec.head.kind], weight_decay=DECAY)
        losses = []
        for _ in range(epochs):
            net.dropout.train()
            for rows in torch.randperm(len(x)).split(BATCH):
                optimizer.zero_grad()
                (_loss(net, x[rows], y[rows]) / len(rows)).backward()
                optimizer.step()
            net.eval()
            if held:
                with torch.no_grad():
                    losses.append(float(_loss(net, *held)))
    return losses


def _reset(net: Network) -> None:
    """Fresh random numbers; every class starts equally likely."""
    for module in net.head.modules():
        if isinstance(module, nn.LSTM | nn.Linear | ShiftingAttention):
            module.reset_parameters()
    nn.init.zeros_(net.fc.weight)
    nn.init.zeros_(net.fc.bias)


def _loss(net: Network, x: Tensor, y: Tensor) -> Tensor:
    """The sum over the videos."""
    loss = F.binary_cross_entropy_with_logits if net.spec.multi_label else F.cross_entropy
    return loss(net.classify(x), y, reduction="sum")


@torch.no_grad()
def _scores(net: Network, features: np.ndarray) -> np.ndarray:
    logits = net.eval().classify(torch.from_numpy(features).to(net.fc.weight)).double().cpu()
    return (logits.sigmoid() if net.spec.multi_label else logits.softmax(-1)).numpy()
