"""Numbers and answers from a network and videos: one path for validation, `eval` and `predict`.

Every view gets its own softmax; a video's probabilities are their mean (paper, section 5).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from . import clips, data
from .errors import MemoryError_, UsageError, VideoError

EVAL_BATCH = 8  # videos


def device(name: str | None) -> torch.device:
    """The device asked for, or the GPU when there is one. Raises `UsageError` for one that is not here."""
    name = name or ("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    try:
        torch.empty(1, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}",
                         "leave --device out to take what there is; nlzoo doctor shows it") from None


def precision(where: torch.device):
    """Autocast to bf16 on a GPU that has it; float32 elsewhere."""
    usable = where.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.autocast(where.type, torch.bfloat16, enabled=usable)


@contextmanager
def memory_errors(what: str):
    """CUDA out of memory as `MemoryError_`."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise MemoryError_(f"the GPU ran out of memory with {what}",
                           "lower --batch, --frames or --size") from error


@torch.inference_mode()
def probabilities(net: nn.Module, paths: list[Path], where: torch.device, workers: int = 0,
                  batch: int = EVAL_BATCH) -> Iterator[tuple[int, np.ndarray | None, str]]:
    """`(index, float64 (K,) probabilities, "")` for each video in order of its batch, or `(index, None, reason)`.

    `net` is in eval mode on `where`; its `spec` says which clips it wants.
    """
    dataset = data.Clips(paths, net.spec.clip)
    keys = [[(-1, i) for i in range(start, min(start + batch, len(paths)))] for start in range(0, len(paths), batch)]
    for indices, pixels, bad in data.load(dataset, keys, min(workers, len(keys))):
        if pixels is not None:
            videos, looks = pixels.shape[:2]
            pixels = pixels.flatten(0, 1).to(where, non_blocking=True)
            with precision(where), memory_errors(f"{videos} videos"):
                logits = net(clips.to_input(pixels, net.spec.clip))
            scores = logits.double().softmax(-1).view(videos, looks, -1).mean(1).cpu().numpy()
            yield from ((i, s, "") for i, s in zip(indices, scores))
        yield from ((i, None, reason) for i, reason in bad)


def metrics(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Of float `(N, K)` probabilities and int `(N,)` labels, as fractions: top-1, top-5, mean class accuracy, log loss.

    A class that ties with others counts as ranked behind them, so that an undecided network gets nothing for free.
    """
    own = scores[np.arange(len(labels)), labels]
    ahead = (scores >= own[:, None]).sum(1) - 1
    right = ahead < 1
    per_class = [right[labels == k].mean() for k in np.unique(labels)]
    return {"top1": float(right.mean()), "top5": float((ahead < 5).mean()), "mean_class": float(np.mean(per_class)),
            "loss": float(-np.log(np.maximum(own, 1e-12)).mean())}


def majority(train_labels: list[str], val_labels: list[str]) -> float:
    """Accuracy on `val_labels` of always saying the most frequent of `train_labels` (the first of equals)."""
    most = max(sorted(set(train_labels)), key=train_labels.count)
    return val_labels.count(most) / len(val_labels)


def evaluate(net: nn.Module, root: Path, items: list[data.Item], where: torch.device, workers: int = 0,
             progress=lambda done, total: None) -> tuple[dict, list[tuple[str, str]]]:
    """`(metrics, [(path, reason) of videos that could not be read])` over `items` of the folder `root`."""
    net.eval()
    position = {c: k for k, c in enumerate(net.spec.classes)}
    scores, labels, bad = [], [], []
    for index, probs, reason in probabilities(net, [root / i.path for i in items], where, workers):
        if probs is None:
            bad.append((items[index].path, reason))
        else:
            scores.append(probs)
            labels.append(position[items[index].label])
        progress(len(scores) + len(bad), len(items))
    if not scores:
        raise VideoError(f"none of the {len(items)} videos to evaluate on could be read",
                              f"the first: {data.shown(bad[0][0])}: {bad[0][1]}")
    return {"videos": len(scores), "views": 1, **metrics(np.stack(scores), np.array(labels))}, bad
