"""Figures against scikit-learn's and hand-written loops, on random answers."""

import json
import math

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    f1_score,
    log_loss,
    precision_score,
    recall_score,
    top_k_accuracy_score,
)

from nlzoo.core.errors import DivergedError, VideoError
from nlzoo.training import metrics
from nlzoo.videos.listing import Item


def test_metrics_are_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    scores = rng.dirichlet(np.ones(9), 200)
    labels = rng.integers(0, 9, 200)
    got = metrics.of_one_label(scores, labels)
    assert got["top1"] == pytest.approx(accuracy_score(labels, scores.argmax(1)))
    assert got["top5"] == pytest.approx(top_k_accuracy_score(labels, scores, k=5, labels=range(9)))
    assert got["mean_class"] == pytest.approx(balanced_accuracy_score(labels, scores.argmax(1)))
    assert got["loss"] == pytest.approx(log_loss(labels, scores, labels=range(9)))


def test_an_undecided_network_gets_nothing_for_free():
    assert metrics.of_one_label(np.full((6, 2), 0.5), np.array([0, 0, 0, 1, 1, 1]))["top1"] == 0


def test_intervals_and_gains_treat_ties_as_the_figures_do(seed):
    """Equal answers for all videos had a top-1 of 0 between 0.25 and 0.25."""
    rng = np.random.default_rng(seed)
    labels, one, other = rng.integers(0, 3, 60), *(rng.integers(1, 4, (2, 60, 3)) / 3)
    found = items(*("abc"[label] for label in labels))

    def told_apart(scores):
        """With ties broken, and the true class behind."""
        return scores - 1e-3 * (np.arange(3) == labels[:, None])

    for scores in (one, np.full((60, 3), 1 / 3)):
        apart = told_apart(scores)
        assert metrics.of_one_label(scores, labels)["top1"] == (apart.argmax(1) == labels).mean()
        assert metrics.interval(scores, found, "abc", False) == metrics.interval(apart, found, "abc", False)
        for name in ("top1", "mean_class"):
            tied, free = (metrics.full(each, found, "abc", False)["intervals"][name] for each in (scores, apart))
            assert tied == free and tied[0] <= metrics.full(scores, found, "abc", False)[name] <= tied[1]
    assert metrics.difference(one, other, found, "abc", False) == metrics.difference(
        told_apart(one), told_apart(other), found, "abc", False
    )


def items(*labels):
    return [Item(f"{n}.mp4", tuple(x)) for n, x in enumerate(labels)]


def test_an_answer_that_never_looks():
    assert metrics.chance("abc", items("a", "b", "b"), items("a", "a", "b", "c"), False) == 0.25
    assert metrics.chance("abc", (), items("ab", "a", "", "a"), True) == pytest.approx((3 / 4 + 1 / 4) / 2)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("multi_label", [False, True])
def test_scores_that_are_not_finite_have_no_figure(value, multi_label):
    scores, found = np.full((4, 2), 0.5), items("a", "b", "a", "b")
    scores[2, 1] = value
    for figure in (metrics.brief, metrics.full, metrics.interval):
        with pytest.raises(DivergedError, match=r"for 2\.mp4 is not finite"):
            figure(scores, found, "ab", multi_label)
    for one, other in ((scores, np.full((4, 2), 0.5)), (np.full((4, 2), 0.5), scores)):
        with pytest.raises(DivergedError, match=r"for 2\.mp4 is not finite"):
            metrics.difference(one, other, found, "ab", multi_label)
    with pytest.raises(DivergedError, match="for video 2 is not finite"):
        metrics.of_one_label(scores, np.array([0, 1, 0, 1]))
    with pytest.raises(DivergedError, match="for video 2 is not finite"):
        metrics.of_several_labels(scores, np.eye(2)[[0, 1, 0, 1]])


@pytest.mark.parametrize("multi_label", [False, True])
def test_no_videos_have_no_figure(multi_label):
    for figure in (metrics.brief, metrics.full, metrics.interval):
        with pytest.raises(VideoError, match="no predictions to measure"):
            figure(np.empty((0, 2)), [], "ab", multi_label)
    with pytest.raises(VideoError, match="no videos to compute the baseline on"):
        metrics.chance("ab", items("a"), [], multi_label)


def test_mean_average_precision_by_its_definition(seed):
    """The mean, over the true videos of a class, of the precision of the ranking down to each."""
    rng = np.random.default_rng(seed)
    scores, wanted = rng.random((40, 6)), (rng.random((40, 6)) < 0.3).astype(np.float32)
    wanted[:, 2] = 0  # a class that does not occur
    wanted[0, [0, 1, 3, 4, 5]] = 1
    each = []
    for k in (0, 1, 3, 4, 5):
        ranked = wanted[np.argsort(-scores[:, k]), k]
        each.append(np.mean([ranked[: n + 1].mean() for n in np.flatnonzero(ranked)]))
    summary = metrics.of_several_labels(scores, wanted)
    assert summary["map"] == pytest.approx(np.mean(each))
    assert summary["loss"] == pytest.approx(
        -np.mean([math.log(s if w else 1 - s) for s, w in zip(scores.flat, wanted.flat)])
    )
    same = metrics.of_several_labels(np.full_like(scores, 0.5), wanted)
    named = items(*("".join(c for c, w in zip("abcdef", row) if w) for row in wanted))
    assert same["map"] == pytest.approx(metrics.chance("abcdef", (), named, True))


CLASSES = tuple("abcdefghi")


def one_label(seed, count=120, groups=30):
    """`(scores, items)` of a guesser that is often right; `i` never occurs and `h` is never answered."""
    rng = np.random.default_rng(seed)
    labels = np.append(rng.integers(0, 8, count - 8), range(8))
    scores = rng.dirichlet(np.ones(9), count) + 0.5 * np.eye(9)[np.where(rng.random(count) < 0.6, labels, 0)]
    scores[:, 7] = 0
    return scores / scores.sum(1, keepdims=True), [
        Item(f"{n}.mp4", (CLASSES[k],), group=f"g{n % groups}") for n, k in enumerate(labels)
    ]


@pytest.mark.filterwarnings("ignore:y_pred contains")
def test_all_figures_of_one_label_are_scikit_learns(seed):
    scores, found = one_label(seed)
    summary = metrics.full(scores, found, CLASSES, False)
    truth, answer = np.array([CLASSES.index(i.labels[0]) for i in found]), scores.argmax(1)
    assert (
        summary["videos"] == 120
        and summary["groups"] == 30
        and summary["top1"] == pytest.approx(accuracy_score(truth, answer))
    )
    assert summary["macro_f1"] == pytest.approx(
        f1_score(truth, answer, labels=range(8), average="macro", zero_division=0)
    )
    assert summary["mean_class"] == pytest.approx(balanced_accuracy_score(truth, answer))
    confusion = np.zeros((9, 9), int)
    for t, a in zip(truth, answer):
        confusion[t, a] += 1
    assert summary["confusion"] == confusion.tolist()
    for k, row in enumerate(summary["per_class"]):
        assert row["class"] == CLASSES[k] and row["videos"] == (truth == k).sum()
        assert row["precision"] == (pytest.approx(precision_score(truth == k, answer == k)) if k in answer else None)
        assert row["recall"] == (pytest.approx(recall_score(truth == k, answer == k)) if k in truth else None)
    assert summary["per_class"][7]["precision"] is None and summary["per_class"][8]["recall"] is None
    assert summary["per_class"][7]["f1"] == 0 and summary["per_class"][8]["f1"] is None
    json.dumps(summary, allow_nan=False)


def test_calibration_by_its_definition(seed):
    scores, found = one_label(seed)
    summary = metrics.full(scores, found, CLASSES, False)
    truth = np.array([CLASSES.index(i.labels[0]) for i in found])
    error, rows = 0.0, []
    for low in range(metrics.BINS):
        inside = [n for n in range(120) if low / metrics.BINS < scores[n].max() <= (low + 1) / metrics.BINS]
        if inside:
            sure, right = (
                np.mean([scores[n].max() for n in inside]),
                np.mean([scores[n].argmax() == truth[n] for n in inside]),
            )
            error += len(inside) / 120 * abs(sure - right)
            rows.append({"confidence": pytest.approx(sure), "accuracy": pytest.approx(right), "videos": len(inside)})
    assert summary["calibration"] == rows and summary["ece"] == pytest.approx(error)


def test_confidence_on_the_edge_of_a_bin():
    """A network that knows nothing gives each of five classes 0.2, which is 3/15."""
    sure = np.linspace(0, 1, metrics.BINS + 1)[[3, 3, 6, 9]].tolist() + [0.21, 0.15]
    scores = np.array([[s, 0.1] for s in sure])
    summary = metrics.full(scores, [Item(f"{n}.mp4", ("a",)) for n in range(6)], "ab", False)
    assert [row["videos"] for row in summary["calibration"]] == [3, 1, 1, 1] and sum(
        row["videos"] for row in summary["calibration"]
    ) == 6


def test_intervals_are_drawn_over_groups(seed):
    """Clips of one recording fail together: ten recordings of twelve clips say less than 120 of one."""
    rng = np.random.default_rng(seed)
    right = np.repeat(rng.permutation([True] * 7 + [False] * 3), 12)
    scores = np.where(right[:, None], [0.9, 0.1], [0.1, 0.9])
    grouped = [Item(f"{n}.mp4", ("a",), group=f"g{n // 12}") for n in range(120)]
    alone = [Item(f"{n}.mp4", ("a",)) for n in range(120)]
    wide, narrow = (metrics.full(scores, i, "ab", False)["intervals"]["top1"] for i in (grouped, alone))
    draws = np.sort([np.mean(rng.choice(right[::12], 10)) for _ in range(20_000)])
    assert wide == pytest.approx([draws[500], draws[-500]], abs=0.11)  # a group is 0.1
    assert wide[1] - wide[0] > 2 * (narrow[1] - narrow[0]) and narrow[0] < 0.7 < narrow[1]
    few = [Item(f"{n}.mp4", ("a",), group=f"g{n % 9}") for n in range(120)]
    assert metrics.full(scores, few, "ab", False)["intervals"]["top1"] is None  # draws of so few are too much alike
    assert "too few groups (under 10) for intervals" in metrics.in_words(metrics.full(scores, few, "ab", False))


def test_every_figure_lies_in_its_interval_and_what_is_drawn_is_what_is_told(seed):
    scores, found = one_label(seed)
    summary = metrics.full(scores, found, CLASSES, False)
    assert (
        all(low <= summary[name] <= high for name, (low, high) in summary["intervals"].items())
        and len(summary["intervals"]) == 3
    )
    truth, ones = np.array([CLASSES.index(i.labels[0]) for i in found]), np.ones(120)
    for name, of in metrics.WEIGHTED.items():
        assert of(truth, scores.argmax(1), ones) == pytest.approx(summary[name])
    weights = np.random.default_rng(seed).integers(0, 3, 120).astype(float)
    again = np.repeat(range(120), weights.astype(int))
    drawn = metrics.full(scores[again], [found[n] for n in again], CLASSES, False)
    for name, of in metrics.WEIGHTED.items():
        assert of(truth, scores.argmax(1), weights) == pytest.approx(drawn[name])


def test_all_figures_of_several_labels(seed):
    rng = np.random.default_rng(seed)
    scores, wanted = rng.random((60, 5)), rng.random((60, 5)) < 0.4
    wanted[:, 3], scores[:, 4] = False, 0.2  # one that does not occur, one that is never given
    wanted[0, [0, 1, 2, 4]] = True
    found = [
        Item(f"{n}.mp4", tuple(c for c, w in zip("abcde", row) if w), group=f"g{n % 20}")
        for n, row in enumerate(wanted)
    ]
    summary = metrics.full(scores, found, "abcde", True)
    assert summary["macro_f1"] == pytest.approx(
        f1_score(wanted[:, [0, 1, 2, 4]], scores[:, [0, 1, 2, 4]] >= 0.5, average="macro", zero_division=0)
    )
    assert summary["map"] == pytest.approx(
        np.mean([r["average_precision"] for r in summary["per_class"] if r["videos"]])
    )
    low, high = summary["intervals"]["map"]
    assert low <= summary["map"] <= high and "top1" not in summary and "confusion" not in summary
    assert summary["per_class"][3]["average_precision"] is None and summary["per_class"][4]["precision"] is None
    json.dumps(summary, allow_nan=False)


def test_the_threshold_of_several_labels_is_the_best_of_a_hundred(seed):
    rng = np.random.default_rng(seed)
    wanted = rng.random((40, 4)) < 0.3
    wanted[:, 3], wanted[0, :3] = False, True
    scores = np.clip(0.15 + 0.1 * wanted + rng.normal(0, 0.04, wanted.shape), 0, 1)  # an unsure network
    found = [Item(f"{n}.mp4", tuple(c for c, w in zip("abcd", row) if w)) for n, row in enumerate(wanted)]
    best = metrics.best_threshold(scores, found, "abcd")
    values = {
        t: f1_score(wanted[:, :3], scores[:, :3] >= t, average="macro", zero_division=0)
        for t in metrics.THRESHOLDS.tolist()
    }
    assert values[best] == pytest.approx(max(values.values())) and values[best] > values[0.5] + 0.3
    summary = metrics.full(scores, found, "abcd", True, best)
    assert summary["threshold"] == best and summary["macro_f1"] == pytest.approx(values[best])
    wide = np.where(wanted, 0.9, 0.1)
    assert metrics.best_threshold(wide, found, "abcd") == 0.5  # the middle of all that are right
    nothing = [Item(item.path, ()) for item in found]
    assert metrics.best_threshold(scores, nothing, "abcd") == 0.5


def test_the_difference_of_two_networks_on_the_same_videos(seed):
    scores, found = one_label(seed)
    assert metrics.difference(scores, scores, found, CLASSES, False) == [0, 0]
    chance = np.random.default_rng(seed).permuted(scores, axis=0)
    low, high = metrics.difference(scores, chance, found, CLASSES, False)
    summary = [
        metrics.of_one_label(s, np.array([CLASSES.index(i.labels[0]) for i in found]))["top1"] for s in (scores, chance)
    ]
    assert 0 < low < summary[0] - summary[1] < high
