"""The learning curve: every video is tested once, without its group, and what it says is what was drawn."""

from functools import partial

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from nlzoo.training import learning_curve, linear
from nlzoo.videos.items import Item


def drawn(seed, groups, spread, dims=30):
    """Features of three classes in that many groups of three; `spread` of the noise."""
    rng = np.random.default_rng(seed)
    labels = np.tile(np.arange(3), groups)
    features = 1.5 * np.eye(3, dims)[labels] + spread * rng.standard_normal((len(labels), dims))
    items = [Item(f"{n}.mp4", (str(k),), group=f"g{n // 3}") for n, k in enumerate(labels)]
    return features, labels, items


def test_no_video_is_tested_by_a_head_that_saw_its_group(seed):
    features, labels, items = drawn(seed, 12, 1.0)
    row = {tuple(values): n for n, values in enumerate(features)}
    tested = []

    def classify(train, known, test):
        assert np.array_equal(known, [labels[row[tuple(values)]] for values in train])
        seen = {items[row[tuple(values)]].group for values in train}
        own = [row[tuple(values)] for values in test]
        assert not seen & {items[n].group for n in own}
        tested.append((len(train), own))
        return labels[own]

    curve = learning_curve.measure(features, labels, items, classify, seed=seed % 1000)
    assert [point.top1 for point in curve.points] == [1.0] * 4 and curve.gain == 0
    assert [point.share for point in curve.points] == [0.25, 0.5, 0.75, 1.0]
    sizes = [point.clips_per_class for point in curve.points]
    assert sizes == sorted(sizes) and sizes[-1] == pytest.approx(12 * 4 / 5, rel=0.05)
    whole = [own for size, own in tested if size > 26]  # all but a fold of two or three groups
    assert sorted(sum(whole, [])) == list(range(36))


def test_its_last_point_is_the_cross_validated_top_1_of_scikit_learn(seed):
    from sklearn.model_selection import GroupKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features, labels, items = drawn(seed, 20, 1.5)
    curve = learning_curve.measure(features, labels, items, partial(linear.classify, 0.1))
    head = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    groups = [item.group for item in items]
    scores = cross_val_score(head, features, labels, groups=groups, cv=GroupKFold(5))
    assert curve.points[-1].top1 == pytest.approx(scores.mean(), abs=1e-9)


def test_what_it_says():
    """Noise in many dimensions is averaged out by more videos; without noise there is nothing to gain."""
    classify = partial(linear.classify, 0.1)
    steep = learning_curve.measure(*drawn(3, 40, 0.6, dims=800), classify)
    assert steep.code == "more_help" and steep.interval[0] > 0 and steep.text.startswith("more videos would help: ")
    flat = learning_curve.measure(*drawn(1, 24, 0.01), classify)
    assert flat.code == "enough" and flat.gain < 0.02 and "hardly help" in flat.text
    few = learning_curve.measure(*drawn(1, 6, 1.0), classify)
    assert few.code == "too_few_groups" and few.interval is None and "too few groups (under 10)" in few.text
    assert learning_curve.measure(*drawn(1, 3, 1.0), classify) is None


def test_it_is_read_as_it_was_kept_and_nothing_else():
    import dataclasses
    import json

    curve = learning_curve.measure(*drawn(2, 12, 1.0), partial(linear.classify, 0.1))
    assert learning_curve.from_json(json.loads(json.dumps(dataclasses.asdict(curve)))) == curve
    for broken in ({}, {"points": []}, {"points": [{"share": 1}]}, {"points": 3}):
        assert learning_curve.from_json(broken) is None
