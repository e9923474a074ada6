"""Metrics against scikit-learn's, and answers that do not depend on the batch they came in."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss, top_k_accuracy_score

from nlzoo import clips, data, draw, evaluate, model, spec
from nlzoo.errors import UsageError


def test_metrics_are_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    scores = rng.dirichlet(np.ones(9), 200)
    labels = rng.integers(0, 9, 200)
    got = evaluate.metrics(scores, labels)
    assert got["top1"] == pytest.approx(accuracy_score(labels, scores.argmax(1)))
    assert got["top5"] == pytest.approx(top_k_accuracy_score(labels, scores, k=5, labels=range(9)))
    assert got["mean_class"] == pytest.approx(balanced_accuracy_score(labels, scores.argmax(1)))
    assert got["loss"] == pytest.approx(log_loss(labels, scores, labels=range(9)))


def test_an_undecided_network_gets_nothing_for_free():
    assert evaluate.metrics(np.full((6, 2), 0.5), np.array([0, 0, 0, 1, 1, 1]))["top1"] == 0


def items(*labels):
    return [data.Item(f"{n}.mp4", tuple(x)) for n, x in enumerate(labels)]


def test_an_answer_that_never_looks():
    assert evaluate.chance("abc", items("a", "b", "b"), items("a", "a", "b", "c"), False) == 0.25
    assert evaluate.chance("abc", (), items("ab", "a", "", "a"), True) == pytest.approx((3 / 4 + 1 / 4) / 2)


def test_mean_average_precision_by_its_definition(seed):
    """The mean, over the true videos of a class, of the precision of the ranking down to each."""
    rng = np.random.default_rng(seed)
    scores, wanted = rng.random((40, 6)), (rng.random((40, 6)) < 0.3).astype(np.float32)
    wanted[:, 2] = 0  # a class that does not occur
    wanted[0, [0, 1, 3, 4, 5]] = 1
    each = []
    for k in (0, 1, 3, 4, 5):
        ranked = wanted[np.argsort(-scores[:, k]), k]
        each.append(np.mean([ranked[:n + 1].mean() for n in np.flatnonzero(ranked)]))
    told = evaluate.multi_label_metrics(scores, wanted)
    assert told["map"] == pytest.approx(np.mean(each))
    assert told["loss"] == pytest.approx(-np.mean([math.log(s if w else 1 - s) for s, w in zip(scores.flat, wanted.flat)]))
    same = evaluate.multi_label_metrics(np.full_like(scores, 0.5), wanted)
    named = items(*("".join(c for c, w in zip("abcdef", row) if w) for row in wanted))
    assert same["map"] == pytest.approx(evaluate.chance("abcdef", (), named, True))


def test_answers_do_not_depend_on_batch_or_workers_and_average_softmax(tmp_path, seed):
    net = model.build(spec.ModelSpec("tiny", num_outputs=3, clip=spec.ClipSpec(4, None, 32)))
    files = draw.write_videos(tmp_path, draw.CLASSES[:2], 2, seed=seed % 1000, frames=8, size=(48, 64))
    files.insert(1, tmp_path / "missing.mp4")
    source = data.Clips(tmp_path, tuple(data.Item(str(f), ()) for f in files), net.spec.clip, looks=spec.Looks(2, 3))
    one = {i: s for i, s, reason in evaluate.probabilities(net, source, torch.device("cpu"), 0, 1)}
    many = {i: s for i, s, reason in evaluate.probabilities(net, source, torch.device("cpu"), 2, 4)}
    assert one[1] is None and many[1] is None and set(one) == set(many) == set(range(5))
    for i in (0, 2, 3, 4):
        assert np.allclose(one[i], many[i], atol=1e-6) and one[i].sum() == pytest.approx(1)
    each = [net(clips.to_input(view[None], net.spec.clip)).softmax(-1)[0].detach().double().numpy() for view in source.read(-1, 3)]
    assert len(each) == 6 and np.allclose(np.mean(each, 0), one[3], atol=1e-6)
    net.spec = dataclasses.replace(net.spec, multi_label=True)
    several = {i: s for i, s, reason in evaluate.probabilities(net, source, torch.device("cpu"), 0, 4)}
    each = [net(clips.to_input(view[None], net.spec.clip)).sigmoid()[0].detach().double().numpy() for view in source.read(-1, 3)]
    assert np.allclose(np.mean(each, 0), several[3], atol=1e-6)


def test_a_device_that_is_not_here():
    with pytest.raises(UsageError, match="cuda:99"):
        evaluate.device("cuda:99")
