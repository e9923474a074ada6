"""Enough videos? Top-1 of the linear probe against training videos a class, and whether more of them would help.

Every video is tested once, by heads that were fitted without its group (cross-validation), so a small set tells as much
as it can. What a probe gains from more videos is a guide to what fine-tuning gains, at a thousandth of its cost.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..core.text import counted
from ..videos.items import Item
from . import metrics

SHARES = (0.25, 0.5, 0.75, 1.0)  # of the training groups
DRAWS = 3  # of the groups for each share below 1
FOLDS = 5
MOST_VIDEOS = 1000  # above that the fits take minutes, and the answer is mostly known
WORTH = 0.02  # top-1 that the last half of the videos must have gained for more of them to be worth the work

# `(features, labels) of training, features of the test` to int answers of the test
Classify = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Point:
    """Top-1 with a share of the training videos."""

    share: float  # of the training groups
    clips_per_class: float  # in the mean over folds, draws and classes
    top1: float
    interval: list[float] | None  # 95 %, over the groups


@dataclass(frozen=True)
class Curve:
    """Top-1 against training videos a class; `code`: more_help, more_may_help, enough, too_few_groups."""

    points: tuple[Point, ...]
    gain: float  # of top-1, from half of the videos to all
    interval: list[float] | None  # of the gain: 95 %, over the groups
    code: str

    @property
    def text(self) -> str:
        """What the curve says, as a sentence."""
        ends = f" (95 %: {self.interval[0]:+.2f} to {self.interval[1]:+.2f})" if self.interval else ""
        last = self.points[-1]
        measured = f"from half of the training videos to all of them the linear probe gained {self.gain:+.2f}{ends}"
        verdict = {
            "more_help": "more videos would help",
            "more_may_help": "whether more videos would help cannot be told",
            "enough": "more videos of this kind would hardly help",
            "too_few_groups": f"too few groups (under {metrics.FEW_GROUPS}) to tell whether more videos would help",
        }[self.code]
        each = counted(round(last.clips_per_class), "video")
        return f"{verdict}: {measured}, at {each} a class (top-1 {last.top1:.2f})"


def from_json(values: dict) -> Curve | None:
    """The curve that a run kept; None for anything else."""
    try:
        points = tuple(Point(**point) for point in values["points"])
        return Curve(**{**values, "points": points}) if points else None
    except (KeyError, TypeError):
        return None


def measure(
    features: np.ndarray, labels: np.ndarray, items: Sequence[Item], classify: Classify, seed: int = 0
) -> Curve | None:
    """The curve of float features `(N, D)` of videos `items` with int `labels` `(N,)`.

    None where it cannot be drawn: fewer than four groups, a fold without a second class, or more
    than `MOST_VIDEOS` videos.
    """
    from sklearn.model_selection import GroupKFold

    groups, count = metrics.group_numbers(items), metrics.num_groups(items)
    if count < 4 or len(items) > MOST_VIDEOS:
        return None
    right = {share: np.zeros(len(items)) for share in SHARES}  # of each video, the share of the draws
    sizes: dict[float, list[float]] = {share: [] for share in SHARES}
    classes = len(np.unique(labels))
    for fold, (train, test) in enumerate(GroupKFold(min(FOLDS, count)).split(features, groups=groups)):
        known: dict[bytes, np.ndarray] = {}  # of few groups, several shares and draws are the same
        for share in SHARES:
            draws = 1 if share == 1 else DRAWS
            for draw in range(draws):
                rows = _part(train, groups, share, np.random.default_rng([seed, fold, draw]))
                if len(np.unique(labels[rows])) < 2:
                    return None
                key = rows.tobytes()
                if key not in known:
                    known[key] = classify(features[rows], labels[rows], features[test])
                right[share][test] += (known[key] == labels[test]) / draws
                sizes[share].append(len(rows) / classes)
    points = []
    for share, own in right.items():
        interval = metrics.mean_interval(own, items)
        points.append(Point(share, float(np.mean(sizes[share])), float(own.mean()), interval))
    gains = right[1.0] - right[0.5]
    interval = metrics.mean_interval(gains, items)
    return Curve(tuple(points), float(gains.mean()), interval, _code(float(gains.mean()), interval))


def _part(train: np.ndarray, groups: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Rows of a share of the training groups; of one draw the smaller shares lie within the larger."""
    order = rng.permutation(np.unique(groups[train]))
    kept = order[: max(2, round(share * len(order)))]
    return train[np.isin(groups[train], kept)]


def _code(gain: float, interval: list[float] | None) -> str:
    if interval is None:
        return "too_few_groups"
    if interval[0] > 1e-9 and gain >= WORTH:
        return "more_help"
    return "enough" if interval[1] < 2 * WORTH else "more_may_help"
