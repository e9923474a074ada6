"""Figures of probabilities and labels: what a run is judged by, and all that `eval` and the report say of a model.

The formulas are scikit-learn's and scipy's. Unusual: intervals are drawn over *groups*, since clips of one recording fail together, and what is not
defined (precision of a class that was never answered) is None and no number.
"""

import warnings
from collections import Counter
from collections.abc import Sequence

import numpy as np

from ..core.text import printable
from ..videos.listing import Item

BINS = 15  # of confidence, for the calibration
DRAWS, MAP_DRAWS = 1000, 200  # of the bootstrap; of mean average precision, each of which ranks every class anew
FEW_GROUPS = (
    10  # from here on intervals are drawn: over fewer, draws of groups are too much alike, and an interval too narrow
)
CONTROLS = {"shuffled": "frames shuffled", "one": "one frame alone"}  # values of `ViewSpec.order`
CHOSEN = 0.5  # probability from which on a label counts as given, where a video may have several


def of_one_label(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Of float `(N, K)` probabilities and int `(N,)` labels, as fractions: top-1, top-5, mean class accuracy, log loss.

    A class that ties with others counts as ranked behind them, so that an undecided network gets nothing for free.
    """
    own = scores[np.arange(len(labels)), labels]
    ahead = (scores >= own[:, None]).sum(1) - 1
    right = ahead < 1
    per_class = [right[labels == k].mean() for k in np.unique(labels)]
    return {
        "top1": float(right.mean()),
        "top5": float((ahead < 5).mean()),
        "mean_class": float(np.mean(per_class)),
        "loss": float(-np.log(np.maximum(own, 1e-12)).mean()),
    }


def of_several_labels(scores: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    """Of float `(N, K)` probabilities and `(N, K)` targets of 0 and 1: mean average precision over the classes that occur, log loss."""
    likely = np.clip(np.where(wanted > 0, scores, 1 - scores), 1e-12, 1)
    return {"map": float(_mean_average_precision(scores, wanted)), "loss": float(-np.log(likely).mean())}


def _mean_average_precision(scores, wanted, weights=None):
    from sklearn.metrics import average_precision_score

    occurs = wanted.any(0) if weights is None else wanted[weights > 0].any(0)
    return average_precision_score(wanted[:, occurs], scores[:, occurs], average="macro", sample_weight=weights)


def targets(items: Sequence[Item], classes: Sequence[str]) -> np.ndarray:
    """float32 `(N, K)` of 0 and 1: which of `classes` each item has."""
    position = {c: k for k, c in enumerate(classes)}
    out = np.zeros((len(items), len(classes)), np.float32)
    for row, item in zip(out, items):
        row[[position[label] for label in item.labels]] = 1
    return out


def chance(classes: Sequence[str], train: Sequence[Item], val: Sequence[Item], multi_label: bool) -> float:
    """What an answer that never looks gets on `val`: accuracy of the most frequent class of `train` (the first of equals);
    mean average precision of equal scores, which is the mean share of a class."""
    if multi_label:
        shares = targets(val, classes).mean(0)
        return float(shares[shares > 0].mean()) if shares.any() else 0.0
    most = commonest(train)
    return sum(i.labels[0] == most for i in val) / len(val)


def commonest(items: Sequence[Item]) -> str:
    """The most frequent label, the first of equals."""
    counts = Counter(label for i in items for label in i.labels)
    return min(counts, key=lambda label: (-counts[label], label))


def brief(scores: np.ndarray, items: Sequence[Item], classes: Sequence[str], multi_label: bool) -> dict[str, float]:
    """What each validation of a run computes: `of_one_label`, or `of_several_labels`."""
    wanted = targets(items, classes)
    return of_several_labels(scores, wanted) if multi_label else of_one_label(scores, wanted.argmax(1))


def full(scores: np.ndarray, items: Sequence[Item], classes: Sequence[str], multi_label: bool) -> dict:
    """`brief` and all else that can be said of float64 `(N, K)` probabilities for N labelled videos, ready for JSON.

    `videos`, `groups`, `macro_f1`; `intervals`: 95 % of the main figures, by bootstrap over groups; `per_class`: rows of
    `class`, `videos`, `precision`, `recall`, `f1`. One label a video: `confusion` (rows truth, columns answers), `ece`,
    `calibration` (rows of `confidence`, `accuracy`, `videos`). Several: `average_precision` in each row. The class answered is the
    first of equals here.
    """
    wanted = targets(items, classes)
    given = scores >= CHOSEN if multi_label else np.eye(len(classes))[scores.argmax(1)] > 0
    groups = np.unique([i.group or i.path for i in items], return_inverse=True)[1]
    summary = {"videos": len(items), "groups": int(groups.max()) + 1, **brief(scores, items, classes, multi_label)}
    rows = _per_class(wanted, given, classes)
    summary["macro_f1"] = float(np.mean([row["f1"] or 0.0 for row in rows if row["videos"]]))
    summary["per_class"] = rows
    if multi_label:
        for k, row in enumerate(rows):
            row["average_precision"] = (
                float(_mean_average_precision(scores[:, [k]], wanted[:, [k]])) if row["videos"] else None
            )
        summary["intervals"] = {
            "map": _interval(groups, lambda weights: _mean_average_precision(scores, wanted, weights), MAP_DRAWS)
        }
        return summary
    from sklearn.metrics import confusion_matrix

    truth, answer = wanted.argmax(1), scores.argmax(1)
    summary["confusion"] = confusion_matrix(truth, answer, labels=range(len(classes))).tolist()
    summary["ece"], summary["calibration"] = _calibration(scores.max(1), truth == answer)
    summary["intervals"] = {
        name: _interval(groups, lambda weights, of=of: of(truth, answer, weights)) for name, of in _FIGURES.items()
    }
    return summary


def too_few(videos: int, groups: int) -> str:
    """A warning where so few groups of validation videos tell little about a model; "" where they are enough."""
    if groups >= FEW_GROUPS:
        return ""
    noun, source = ("video" if videos == 1 else "videos"), ("group" if groups == 1 else "groups")
    return (
        f"validated on {videos:,} {noun} of {groups} {source}: too few for a 95 % interval, which takes {FEW_GROUPS} groups; "
        "the figure is a rough guide only"
    )


def in_words(summary: dict) -> str:
    """The main figures of `full`, with those of `evaluate.compare_to_control` under `control` where they are there, as lines for a person."""
    names = (
        {"map": "mAP"}
        if "map" in summary
        else {"top1": "top-1", "mean_class": "mean class accuracy", "macro_f1": "macro-F1"}
    )
    between = {name: f" ({ends[0]:.3f} to {ends[1]:.3f})" for name, ends in summary["intervals"].items() if ends}
    figures = [f"{words} {summary[name]:.3f}{between.get(name, '')}" for name, words in names.items()]
    figures += [
        f"{words} {summary[name]:.3f}"
        for name, words in (("top5", "top-5"), ("ece", "calibration error"), ("loss", "log loss"))
        if name in summary
    ]
    look = (
        f", {summary['look']}: {summary['views']} view{'s' if summary['views'] > 1 else ''} of each"
        if "look" in summary
        else ""
    )
    lines = [
        ", ".join(figures),
        f"  on {summary['videos']} videos of {summary['groups']} group{'s' if summary['groups'] > 1 else ''}{look}"
        + (
            "; in brackets 95 %, over the groups" if between else f", too few groups (under {FEW_GROUPS}) for intervals"
        ),
    ]
    key = next(iter(names))
    for order, words in CONTROLS.items() if "control" in summary else ():
        gain = summary["control"][order]["gain"]
        verdict = (
            f"the true order is better by {gain[0]:.3f} to {gain[1]:.3f}{'' if gain[0] > 0 else ', which may be nothing'}"
            if gain
            else f"too few groups (under {FEW_GROUPS}) to tell whether that is more than chance"
        )
        lines.append(f"  {words}: {names[key]} {summary['control'][order][key]:.3f}; {verdict}")
    return "\n".join(lines)


def class_table(summary: dict, most: int = 40) -> tuple[list[str], list[list[str]]]:
    """Column names, and a row for each class that occurs, the worst first: its figures, and what it is taken for most often."""
    names = [row["class"] for row in summary["per_class"]]
    value = "average_precision" if "map" in summary else "f1"
    rows = sorted((row for row in summary["per_class"] if row["videos"]), key=lambda row: row[value])
    cells = []
    for row in rows[:most]:
        counts = summary["confusion"][names.index(row["class"])] if "confusion" in summary else []
        count, other = max(
            ((n, name) for n, name in zip(counts, names) if name != row["class"]),
            key=lambda pair: pair[0],
            default=(0, ""),
        )
        figures = ["-" if row[k] is None else f"{row[k]:.3f}" for k in ("precision", "recall", value)]
        cells.append(
            [printable(row["class"]), str(row["videos"]), *figures, f"{printable(other)} ({count})" if count else ""]
        )
    more = [[f"and {len(rows) - most} more (--json)", *[""] * 5]] if len(rows) > most else []
    return ["class", "videos", "precision", "recall", value.replace("_", " "), "taken for"], cells + more


def difference(
    one: np.ndarray, other: np.ndarray, items: Sequence[Item], classes: Sequence[str], multi_label: bool
) -> list[float]:
    """95 % interval of how much better `one`'s `(N, K)` probabilities are than `other`'s of the same videos: by top-1 or mean average precision."""
    wanted = targets(items, classes)
    groups = np.unique([i.group or i.path for i in items], return_inverse=True)[1]
    if multi_label:
        return _interval(
            groups,
            lambda w: _mean_average_precision(one, wanted, w) - _mean_average_precision(other, wanted, w),
            MAP_DRAWS,
        )
    truth = wanted.argmax(1)
    gain = (one.argmax(1) == truth).astype(float) - (other.argmax(1) == truth)
    return _interval(groups, lambda w: np.average(gain, weights=w))


def _per_class(wanted, given, classes):
    from sklearn.metrics import precision_recall_fscore_support

    values = precision_recall_fscore_support(wanted, given, average=None, zero_division=np.nan)
    rows = zip(classes, *(v.tolist() for v in values))
    return [
        {
            "class": name,
            "videos": int(videos),
            "precision": _known(p),
            "recall": _known(r),
            "f1": _known(f) if videos else None,
        }
        for name, p, r, f, videos in rows
    ]


def _known(value):
    return None if np.isnan(value) else value


def _calibration(confidence, right):
    """Expected calibration error over `BINS` bins of equal width, and the bins that hold any."""
    from sklearn.calibration import calibration_curve

    accuracy, mean = calibration_curve(right, confidence, n_bins=BINS)
    counts = np.bincount(
        np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], confidence)
    )  # an edge belongs to the bin below it, as there
    counts = counts[counts > 0]
    error = float(np.average(np.abs(accuracy - mean), weights=counts))
    return error, [
        {"confidence": c, "accuracy": a, "videos": n}
        for c, a, n in zip(mean.tolist(), accuracy.tolist(), counts.tolist())
    ]


def _interval(groups: np.ndarray, of, draws: int = DRAWS) -> list[float] | None:
    """95 % of `of(weights)` over draws of whole groups with replacement; None where there are fewer than `FEW_GROUPS`."""
    from scipy.stats import bootstrap

    count = int(groups.max()) + 1
    if count < FEW_GROUPS:
        return None

    def drawn(chosen):
        return of(np.bincount(chosen, minlength=count)[groups].astype(float))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a perfect score has an interval of no width, and scipy says so
        found = bootstrap(
            (np.arange(count),),
            drawn,
            n_resamples=draws,
            vectorized=False,
            method="percentile",
            rng=np.random.default_rng(0),
        )
    return [float(found.confidence_interval.low), float(found.confidence_interval.high)]


def _recall_and_f1(truth, answer, weights):
    """Means over the classes that were drawn."""
    drawn = np.bincount(truth, weights)
    right = np.bincount(truth, weights * (truth == answer))
    answered = np.bincount(answer, weights, minlength=len(drawn))[: len(drawn)]
    there = drawn > 0
    return (right[there] / drawn[there]).mean(), (2 * right / np.maximum(drawn + answered, 1e-12))[there].mean()


_FIGURES = {
    "top1": lambda truth, answer, weights: np.average(truth == answer, weights=weights),
    "mean_class": lambda *counted: _recall_and_f1(*counted)[0],
    "macro_f1": lambda *counted: _recall_and_f1(*counted)[1],
}
