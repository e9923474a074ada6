"""Figures of predictions: what a run is judged by, and all that `eval`, the card and the report say of a model.

The formulas are scikit-learn's and scipy's. Unusual: every interval is a bootstrap over *groups*, since the clips of
one recording fail together. What is not defined (the precision of a class that was never predicted) is None. Scores
that are not finite have no figure: they raise `DivergedError`, which names the video.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..core.errors import DivergedError, VideoError
from ..core.model_spec import CHOSEN
from ..core.text import counted, printable
from ..videos.listing import Item

BINS = 15  # of confidence, for the calibration
DRAWS, MAP_DRAWS = 1000, 200  # of a bootstrap; of mean average precision, whose every draw ranks each class anew
FEW_GROUPS = 10  # below it no interval is drawn: draws of so few groups are too much alike, and it would be too narrow
THRESHOLDS = np.arange(1, 100) / 100  # that are tried for several labels
CONTROLS = {"shuffled": "frames shuffled", "one": "one frame alone"}  # values of `ViewSpec.order`
NAMES = {
    "top1": "top-1",
    "map": "mAP",
    "mean_class": "mean class accuracy",
    "macro_f1": "macro-F1",
    "top5": "top-5",
    "ece": "calibration error",
    "loss": "log loss",
}

_TOO_FEW = f"too few groups (under {FEW_GROUPS})"

Interval = list[float] | None  # [low, high], 95 %


def check_finite(scores: np.ndarray, names: Sequence[str]) -> None:
    """Raises `DivergedError` for the first row with NaN or infinity, by its name, and `VideoError` for no rows."""
    if not len(scores):
        raise VideoError("there are no predictions to measure", "give videos with labels that the model knows")
    finite = np.isfinite(scores).reshape(len(scores), -1).all(1)
    if not finite.all():
        raise DivergedError(
            f"the network's output for {printable(names[int(finite.argmin())])} is not finite (NaN or infinity)",
            "the network overflows or its weights are broken; in training, try a lower --lr",
        )


def decided(scores: np.ndarray) -> np.ndarray:
    """int `(N,)`: the most probable class in each row of `(N, K)`; K, which is no class, where several are equally so.

    So an undecided network gets nothing for free, in a figure and in its interval alike.
    """
    equals = (scores == scores.max(1, keepdims=True)).sum(1)
    return np.where(equals > 1, scores.shape[1], scores.argmax(1))


def of_one_label(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Top-1, top-5, mean class accuracy (shares) and log loss of float `(N, K)` probabilities and int `(N,)` labels.

    A class that ties with others ranks behind them (`decided`).
    """
    check_finite(scores, [f"video {n}" for n in range(len(scores))])
    own = scores[np.arange(len(labels)), labels]
    ahead = (scores >= own[:, None]).sum(1) - 1
    right = decided(scores) == labels
    return {
        "top1": float(right.mean()),
        "top5": float((ahead < 5).mean()),
        "mean_class": float(np.mean([right[labels == k].mean() for k in np.unique(labels)])),
        "loss": float(-np.log(np.maximum(own, 1e-12)).mean()),
    }


def of_several_labels(scores: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Mean average precision, over the classes that occur, and log loss of float `(N, K)` probabilities.

    `truth`: `(N, K)` of 0 and 1.
    """
    check_finite(scores, [f"video {n}" for n in range(len(scores))])
    likely = np.clip(np.where(truth > 0, scores, 1 - scores), 1e-12, 1)
    return {"map": _mean_average_precision(scores, truth), "loss": float(-np.log(likely).mean())}


def _mean_average_precision(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> float:
    from sklearn.metrics import average_precision_score

    occurs = truth.any(0) if weights is None else truth[weights > 0].any(0)
    return float(average_precision_score(truth[:, occurs], scores[:, occurs], average="macro", sample_weight=weights))


def targets(items: Sequence[Item], classes: Sequence[str]) -> np.ndarray:
    """float32 `(N, K)` of 0 and 1: which of `classes` each item has."""
    position = {name: k for k, name in enumerate(classes)}
    out = np.zeros((len(items), len(classes)), np.float32)
    for row, item in zip(out, items):
        row[[position[label] for label in item.labels]] = 1
    return out


def chance(classes: Sequence[str], train: Sequence[Item], val: Sequence[Item], multi_label: bool) -> float:
    """The majority-class baseline on `val`: accuracy of always predicting the most frequent class of `train`.

    Several labels: mean average precision of equal scores, which is the mean share of a class.
    """
    if not val or not (train or multi_label):
        raise VideoError("there are no videos to compute the baseline on", "nlzoo check shows what is there")
    if multi_label:
        shares = targets(val, classes).mean(0)
        return float(shares[shares > 0].mean()) if shares.any() else 0.0
    majority = majority_class(train)
    return sum(item.labels[0] == majority for item in val) / len(val)


def majority_class(items: Sequence[Item]) -> str:
    """The most frequent label, the first of equals."""
    counts = Counter(label for item in items for label in item.labels)
    return min(counts, key=lambda label: (-counts[label], label))


def brief(scores: np.ndarray, items: Sequence[Item], classes: Sequence[str], multi_label: bool) -> dict[str, float]:
    """The figures of each validation of a run: `of_one_label`, or `of_several_labels`."""
    check_finite(scores, [item.path for item in items])
    truth = targets(items, classes)
    return of_several_labels(scores, truth) if multi_label else of_one_label(scores, truth.argmax(1))


def best_threshold(scores: np.ndarray, items: Sequence[Item], classes: Sequence[str]) -> float:
    """The threshold of `THRESHOLDS` with the best macro-F1 where a video may have several labels.

    Of equals the one nearest to the middle of their range; `CHOSEN` where no class occurs.
    """
    truth = targets(items, classes) > 0
    occurs = truth.any(0)
    if not occurs.any():
        return CHOSEN
    truth, scores = truth[:, occurs], scores[:, occurs]
    f1 = np.empty(len(THRESHOLDS))
    for n, threshold in enumerate(THRESHOLDS):
        predicted = scores >= threshold
        f1[n] = (2 * (predicted & truth).sum(0) / np.maximum(predicted.sum(0) + truth.sum(0), 1)).mean()
    best = THRESHOLDS[f1 >= f1.max() - 1e-12]
    return float(best[np.abs(best - (best[0] + best[-1]) / 2).argmin()])


def of_validation(
    scores: np.ndarray, items: Sequence[Item], classes: Sequence[str], multi_label: bool
) -> dict[str, Any]:
    """`brief`, and `videos`, `groups` and `interval`; of several labels also `threshold`, the best."""
    measured = scores, items, classes, multi_label
    counts = {"videos": len(items), "groups": num_groups(items)}
    figures = {**counts, **brief(*measured), "interval": interval(*measured)}
    return figures | {"threshold": best_threshold(*measured[:3])} if multi_label else figures


def full(
    scores: np.ndarray,
    items: Sequence[Item],
    classes: Sequence[str],
    multi_label: bool,
    threshold: float = CHOSEN,
) -> dict:
    """`brief` and all else that can be said of float64 `(N, K)` probabilities for N labelled videos, ready for JSON.

    `videos`, `groups`, `macro_f1`; `intervals`: of the main figures; `per_class`: rows of `class`, `videos`,
    `precision`, `recall`, `f1`. One label a video: `confusion` (rows truth, columns predictions), `ece`, `calibration`
    (rows of `confidence`, `accuracy`, `videos`). Several: `average_precision` in each row,
    and the `threshold` from which on a label was counted as predicted. The class predicted is the first of equals
    here.
    """
    figures: dict = {"videos": len(items), "groups": num_groups(items), **brief(scores, items, classes, multi_label)}
    truth = targets(items, classes)
    predicted = scores >= threshold if multi_label else np.eye(len(classes))[scores.argmax(1)] > 0
    rows = _per_class(truth, predicted, classes)
    figures |= {"macro_f1": float(np.mean([row["f1"] for row in rows if row["videos"]])), "per_class": rows}
    if multi_label:
        for k, row in enumerate(rows):
            row["average_precision"] = _mean_average_precision(scores[:, [k]], truth[:, [k]]) if row["videos"] else None
        return figures | {"threshold": threshold, "intervals": {"map": interval(scores, items, classes, True)}}
    from sklearn.metrics import confusion_matrix

    labels, answers, sure = truth.argmax(1), scores.argmax(1), decided(scores)
    ece, calibration = _calibration(scores.max(1), labels == answers)
    intervals = {
        name: _bootstrap(items, partial(figure, labels, answers if name == "macro_f1" else sure))
        for name, figure in WEIGHTED.items()
    }
    confusion = confusion_matrix(labels, answers, labels=range(len(classes))).tolist()
    return figures | {"confusion": confusion, "ece": ece, "calibration": calibration, "intervals": intervals}


def interval(scores: np.ndarray, items: Sequence[Item], classes: Sequence[str], multi_label: bool) -> Interval:
    """The 95 % interval of top-1, or of mean average precision: the only kind that is printable of them anywhere.

    None for fewer than `FEW_GROUPS` groups.
    """
    check_finite(scores, [item.path for item in items])
    truth = targets(items, classes)
    if multi_label:
        return _bootstrap(items, lambda weights: _mean_average_precision(scores, truth, weights), MAP_DRAWS)
    return mean_interval(truth.argmax(1) == decided(scores), items)


def difference(
    one: np.ndarray, other: np.ndarray, items: Sequence[Item], classes: Sequence[str], multi_label: bool
) -> Interval:
    """The 95 % interval of how much better `one` is than `other`, by top-1 or by mean average precision.

    Both are `(N, K)` probabilities for the same videos.
    """
    for scores in (one, other):
        check_finite(scores, [item.path for item in items])
    truth = targets(items, classes)
    if multi_label:

        def gain(weights: np.ndarray) -> float:
            return _mean_average_precision(one, truth, weights) - _mean_average_precision(other, truth, weights)

        return _bootstrap(items, gain, MAP_DRAWS)
    labels = truth.argmax(1)
    gains = (decided(one) == labels).astype(float) - (decided(other) == labels)
    return mean_interval(gains, items)


def mean_interval(values: np.ndarray, items: Sequence[Item]) -> Interval:
    """The 95 % interval of the mean of float `values` `(N,)`, one of each video; None below `FEW_GROUPS` groups."""
    return _bootstrap(items, lambda weights: np.average(values, weights=weights))


def too_few(videos: int, groups: int) -> str:
    """A warning where so few groups of validation videos tell little about a model; "" where they are enough."""
    if groups >= FEW_GROUPS:
        return ""
    counts = f"{counted(videos, 'video')} of {counted(groups, 'group')}"
    return (
        f"validated on {counts}: too few for a 95 % interval, which takes {FEW_GROUPS} groups; "
        "the figure is a rough guide only"
    )


def in_words(figures: dict) -> str:
    """The main figures of `full`, and those of `evaluate.compare_to_control` under `control`, as lines of text."""
    intervals = {name: ends for name, ends in figures["intervals"].items() if ends}
    values = []
    for name, words in NAMES.items():
        if name in figures:
            ends = intervals.get(name)
            between = f" ({ends[0]:.3f} to {ends[1]:.3f})" if ends else ""
            values.append(f"{words} {figures[name]:.3f}{between}")
    if "threshold" in figures:
        values.append(f"labels counted from a probability of {figures['threshold']:g}")
    scope = f"  on {counted(figures['videos'], 'video')} of {counted(figures['groups'], 'group')}"
    if "look" in figures:
        scope += f", {figures['look']}: {counted(figures['views'], 'view')} of each"
    scope += "; in brackets 95 %, over the groups" if intervals else f"; {_TOO_FEW} for intervals"
    trained = _trained_on_in_words(figures)
    controls = [_control_in_words(order, control) for order, control in figures.get("control", {}).items()]
    return "\n".join([*trained, ", ".join(values), scope, *controls])


def _trained_on_in_words(figures: dict) -> list[str]:
    """What stands before the figures where some of the videos trained the model."""
    if not figures.get("trained_on"):
        return []
    count, videos, others = figures["trained_on"], figures["videos"], figures["others"]
    if not others:
        return [f"all {videos:,} videos trained this model: these figures say nothing about new videos"]
    values = [f"{NAMES[name]} {others[name]:.3f}" for name in ("top1", "map", "mean_class") if name in others]
    rest = f"on the {counted(others['videos'], 'other', 'others')}: {', '.join(values)}"
    return [f"{count:,} of the {videos:,} videos trained this model; {rest}", f"on all {videos:,}, which flatters it:"]


def _control_in_words(order: str, control: dict) -> str:
    name = "map" if "map" in control else "top1"
    verdict = gain_in_words(control["gain"], "the true order is better", "whether the true order is better")
    return f"  {CONTROLS[order]}: {NAMES[name]} {control[name]:.3f}; {verdict}"


def gain_in_words(gain: Interval, better: str, unknown: str) -> str:
    """What an interval of `difference` says; `unknown`: what too few groups cannot tell."""
    if not gain:
        return f"{_TOO_FEW} to tell {unknown}"
    return f"{better} by {gain[0]:.3f} to {gain[1]:.3f}" + ("" if gain[0] > 0 else ", which may be nothing")


def class_table(figures: dict, most: int = 40) -> tuple[list[str], list[list[str]]]:
    """Column names, and a row for each class that occurs, the worst first: its figures and its commonest confusion."""
    value = "average_precision" if "map" in figures else "f1"
    confusions = _confusions(figures)
    rows = sorted((row for row in figures["per_class"] if row["videos"]), key=lambda row: row[value])
    cells = []
    for row in rows[:most]:
        numbers = ["-" if row[key] is None else f"{row[key]:.3f}" for key in ("precision", "recall", value)]
        confused = [f"{printable(other)} ({count})" for other, count in confusions[row["class"]].most_common(1)]
        cells.append([printable(row["class"]), str(row["videos"]), *numbers, *(confused or [""])])
    if len(rows) > most:
        cells.append([f"and {len(rows) - most} more (--json)", "", "", "", "", ""])
    return ["class", "videos", "precision", "recall", value.replace("_", " "), "taken for"], cells


def _confusions(figures: dict) -> dict[str, Counter[str]]:
    """For each class the others that its videos were taken for, and how many."""
    names = [row["class"] for row in figures["per_class"]]
    confusions: dict[str, Counter[str]] = {name: Counter() for name in names}
    for name, counts in zip(names, figures.get("confusion", ())):
        confusions[name].update({other: n for other, n in zip(names, counts) if n and other != name})
    return confusions


def _per_class(truth: np.ndarray, predicted: np.ndarray, classes: Sequence[str]) -> list[dict]:
    from sklearn.metrics import precision_recall_fscore_support

    values = precision_recall_fscore_support(truth, predicted, average=None, zero_division=np.nan)
    rows = []
    for name, precision, recall, f1, videos in zip(classes, *(column.tolist() for column in values)):
        known = {"precision": precision, "recall": recall, "f1": f1 if videos else np.nan}
        rows.append({"class": name, "videos": int(videos)} | {k: None if np.isnan(v) else v for k, v in known.items()})
    return rows


def _calibration(confidence: np.ndarray, right: np.ndarray) -> tuple[float, list[dict]]:
    """Expected calibration error over `BINS` bins of equal width, and the bins that hold any video."""
    from sklearn.calibration import calibration_curve

    accuracy, mean = calibration_curve(right, confidence, n_bins=BINS)
    inner_edges = np.linspace(0, 1, BINS + 1)[1:-1]
    counts = np.bincount(np.searchsorted(inner_edges, confidence))  # an edge belongs to the bin below it, as there
    counts = counts[counts > 0]
    rows = zip(mean.tolist(), accuracy.tolist(), counts.tolist())
    error = float(np.average(np.abs(accuracy - mean), weights=counts))
    return error, [{"confidence": c, "accuracy": a, "videos": n} for c, a, n in rows]


def group_numbers(items: Sequence[Item]) -> np.ndarray:
    """int `(N,)`: the number of each item's group."""
    return np.unique([item.group or item.path for item in items], return_inverse=True)[1]


def num_groups(items: Sequence[Item]) -> int:
    """In how many groups the items lie; one without a group is its own."""
    return len({item.group or item.path for item in items})


def _bootstrap(items: Sequence[Item], figure: Callable[[np.ndarray], float], draws: int = DRAWS) -> Interval:
    """95 % of `figure(weights (N,))` over draws of whole groups with replacement; None below `FEW_GROUPS`."""
    from scipy.stats import bootstrap

    groups, count = group_numbers(items), num_groups(items)
    if count < FEW_GROUPS:
        return None

    def drawn(chosen: np.ndarray) -> float:
        return figure(np.bincount(chosen, minlength=count)[groups].astype(float))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a perfect score has an interval of no width, and scipy says so
        result = bootstrap(
            (np.arange(count),),
            drawn,
            n_resamples=draws,
            vectorized=False,
            method="percentile",
            rng=np.random.default_rng(0),
        )
    return [float(result.confidence_interval.low), float(result.confidence_interval.high)]


def _recall_and_f1(labels: np.ndarray, answers: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Means over the classes that were drawn."""
    drawn = np.bincount(labels, weights)
    right = np.bincount(labels, weights * (labels == answers))
    predicted = np.bincount(answers, weights, minlength=len(drawn))[: len(drawn)]
    there = drawn > 0
    f1 = 2 * right / np.maximum(drawn + predicted, 1e-12)
    return (right[there] / drawn[there]).mean(), f1[there].mean()


# Figures of int (N,) labels and answers with float (N,) weights, for the bootstrap.
WEIGHTED: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], float]] = {
    "top1": lambda labels, answers, weights: np.average(labels == answers, weights=weights),
    "mean_class": lambda *counts: _recall_and_f1(*counts)[0],
    "macro_f1": lambda *counts: _recall_and_f1(*counts)[1],
}
