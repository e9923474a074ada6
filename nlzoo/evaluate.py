"""Numbers and answers from a network and videos: one path for validation, `eval` and `predict`.

Every view gets its own softmax (or sigmoids, where a video may have several labels); a video's probabilities are their
mean (paper, section 5).
"""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from . import clips, data
from .engine import Engine
from .errors import MemoryError_, UsageError, VideoError
from .recipe import autocast
from .spec import Recipe

EVAL_BATCH = 8  # videos
AUTO = Recipe()  # bf16 on a GPU that has it, float32 elsewhere


def device(name: str | None) -> torch.device:
    """The device asked for, or the GPU when there is one. Raises `UsageError` for one that is not here."""
    name = name or ("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    try:
        torch.empty(1, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}",
                         "leave --device out to take what there is; nlzoo doctor shows it") from None


@contextmanager
def memory_errors(what: str):
    """CUDA out of memory as `MemoryError_`."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise MemoryError_(f"the GPU ran out of memory with {what}",
                           "lower --batch, --frames or --size") from error


@torch.inference_mode()
def probabilities(net: nn.Module, source: data.Clips, where: torch.device, workers: int = 0,
                  batch: int = EVAL_BATCH, rules: Recipe = AUTO) -> Iterator[tuple[int, np.ndarray | None, str]]:
    """`(index, float64 (K,) probabilities, "")` for each video in order of its batch, or `(index, None, reason)`.

    `net` is in eval mode on `where`; its `spec` says which clips it wants, `rules` the precision.
    """
    keys = [[(-1, i) for i in range(start, min(start + batch, len(source)))] for start in range(0, len(source), batch)]
    for indices, pixels, bad in data.load(source, keys, workers):
        if pixels is not None:
            videos, looks = pixels.shape[:2]
            with autocast(rules, where), memory_errors(f"{videos} videos"):
                logits = net(clips.to_input(pixels.flatten(0, 1).to(where), net.spec.clip)).double()
            scores = logits.sigmoid() if net.spec.multi_label else logits.softmax(-1)
            yield from ((i, s, "") for i, s in zip(indices, scores.view(videos, looks, -1).mean(1).cpu().numpy()))
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


def multi_label_metrics(scores: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Of float `(N, K)` probabilities and `(N, K)` targets of 0 and 1: mean average precision over the classes that occur, log loss."""
    from sklearn.metrics import average_precision_score

    occurs = targets.any(0)
    likely = np.clip(np.where(targets > 0, scores, 1 - scores), 1e-12, 1)
    return {"map": float(average_precision_score(targets[:, occurs], scores[:, occurs], average="macro")), "loss": float(-np.log(likely).mean())}


def targets(items: Sequence[data.Item], classes: Sequence[str]) -> np.ndarray:
    """float32 `(N, K)` of 0 and 1: which of `classes` each item has."""
    position = {c: k for k, c in enumerate(classes)}
    out = np.zeros((len(items), len(classes)), np.float32)
    for row, item in zip(out, items):
        row[[position[label] for label in item.labels]] = 1
    return out


def chance(net_classes: Sequence[str], train: Sequence[data.Item], val: Sequence[data.Item], multi_label: bool) -> float:
    """What an answer that never looks gets on `val`: accuracy of the most frequent class of `train` (the first of equals);
    mean average precision of equal scores, which is the mean share of a class."""
    if multi_label:
        shares = targets(val, net_classes).mean(0)
        return float(shares[shares > 0].mean()) if shares.any() else 0.0
    labels = [i.labels[0] for i in train]
    most = max(sorted(set(labels)), key=labels.count)
    return sum(i.labels[0] == most for i in val) / len(val)


def evaluate(net: nn.Module, source: data.Clips, where: torch.device, workers: int = 0,
             progress=lambda done, total: None, engine: Engine | None = None, rules: Recipe = AUTO) -> tuple[dict, list[tuple[str, str]]]:
    """`(metrics, [(path, reason) of videos that could not be read])` over the items of `source`, on every rank of `engine`.

    Each rank looks at every so-manieth video, so that each is counted once.
    """
    net.eval()
    engine = engine or Engine(where)
    mine = range(engine.rank, len(source), engine.world)
    own, answers = dataclasses.replace(source, items=tuple(source.items[i] for i in mine)), []
    for index, probs, reason in probabilities(net, own, where, workers, rules=rules) if own.items else ():
        answers.append((mine[index], probs, reason))
        progress(len(answers), len(own))
    answers = sorted(engine.gathered(answers), key=lambda answer: answer[0])
    rows = {index: probs for index, probs, _ in answers if probs is not None}
    bad = [(source.items[index].path, reason) for index, probs, reason in answers if probs is None]
    if not rows:
        raise VideoError(f"none of the {len(source)} videos to evaluate on could be read",
                         f"the first: {data.shown(bad[0][0])}: {data.shown(bad[0][1])}")
    wanted, scores = targets([source.items[i] for i in rows], net.spec.classes), np.stack(list(rows.values()))
    told = multi_label_metrics(scores, wanted) if net.spec.multi_label else metrics(scores, wanted.argmax(1))
    return {"videos": len(rows), "views": source.looks.clips * source.looks.crops, **told}, bad
