"""Metrics against scikit-learn's, and answers that do not depend on the batch they came in."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss, top_k_accuracy_score

from nlzoo import draw, evaluate, model, spec
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


def test_majority_is_that_of_the_training_clips():
    assert evaluate.majority(["a", "b", "b"], ["a", "a", "b", "c"]) == 0.25


def test_answers_do_not_depend_on_batch_or_workers_and_average_softmax(tmp_path, seed):
    net = model.build(spec.ModelSpec("tiny", num_outputs=3, clip=spec.ClipSpec(4, None, 32)))
    files = draw.write_videos(tmp_path, draw.CLASSES[:2], 2, seed=seed % 1000, frames=8, size=(48, 64))
    files.insert(1, tmp_path / "missing.mp4")
    one = {i: s for i, s, reason in evaluate.probabilities(net, files, torch.device("cpu"), 0, 1)}
    many = {i: s for i, s, reason in evaluate.probabilities(net, files, torch.device("cpu"), 2, 4)}
    assert one[1] is None and many[1] is None and set(one) == set(many) == set(range(5))
    for i in (0, 2, 3, 4):
        assert np.allclose(one[i], many[i], atol=1e-6) and one[i].sum() == pytest.approx(1)


def test_a_device_that_is_not_here():
    with pytest.raises(UsageError, match="cuda:99"):
        evaluate.device("cuda:99")
