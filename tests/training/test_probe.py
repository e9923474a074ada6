"""A head fitted by scikit-learn is the network's head: what was measured is what the model folder answers."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import nlzoo
from nlzoo.apps import draw
from nlzoo.core import feature_files, model_spec, view_spec
from nlzoo.core.errors import UsageError, VideoError
from nlzoo.networks import model
from nlzoo.training import evaluate, linear, metrics, outputs
from nlzoo.videos import listing, loader, scanning

CPU = torch.device("cpu")


def blobs(seed, classes, count=90):
    """Features of two kinds of scale in which classes can be told, groups of three."""
    rng = np.random.default_rng(seed)
    y = np.arange(count) % classes
    x = np.concatenate(
        [rng.normal(0, 1, (count, 4)) + 2 * np.eye(classes, 4)[y], 100 * rng.normal(0, 1, (count, 3))], 1
    )
    return StandardScaler().fit_transform(x), y, [f"g{n // 3}" for n in range(count)]


@pytest.mark.parametrize("classes", [2, 4])
def test_the_head_gives_scikit_learns_probabilities(seed, classes):
    x, y, groups = blobs(seed, classes)
    strength, weights, biases = linear.fit(x, np.eye(classes)[y], groups, False)
    expected = LogisticRegression(C=strength, max_iter=1000).fit(x, y).predict_proba(x)
    got = torch.from_numpy(x @ weights.T + biases).softmax(-1).numpy()
    assert np.allclose(got, expected, atol=1e-6) and (got.argmax(1) == y).mean() > 0.6


def test_of_several_labels_each_class_is_a_regression_and_one_that_never_occurs_is_never_given(seed):
    x, y, groups = blobs(seed, 2)
    wanted = np.stack([y, np.random.default_rng(seed).random(90) < 0.5, 0 * y, 0 * y + 1], 1)
    strength, weights, biases = linear.fit(x, wanted, groups, True)
    for c in (0, 1):
        one = LogisticRegression(C=strength, max_iter=1000).fit(x, wanted[:, c])
        assert np.allclose(x @ weights[c] + biases[c], one.decision_function(x), atol=1e-6)
    assert biases[2] < -5 and biases[3] > 5 and not weights[2:].any()


def test_a_class_without_training_videos_is_never_answered(seed):
    x, y, groups = blobs(seed, 2)
    _, weights, biases = linear.fit(x, np.eye(3)[y * 2], groups, False)
    assert set((x @ weights.T + biases).argmax(1)) <= {0, 2}


@pytest.mark.parametrize("multi_label", [False, True])
def test_what_was_measured_is_what_the_network_answers(tmp_path, seed, multi_label):
    draw.write_videos(tmp_path / "v", draw.CLASSES[:3], 4, seed=seed % 1000, frames=8, size=(32, 48))
    found = scanning.split(scanning.scan(tmp_path / "v"), "0.25", 0)
    if multi_label:
        found = dataclasses.replace(found, multi_label=True)
    bad = scanning.items_in(found, listing.TRAIN)[0]
    (found.root / bad.path).write_bytes(b"no longer")
    net = model.build(model_spec.ModelSpec("tiny", clip=view_spec.ClipSpec(4, None, 32)))
    torch.manual_seed(seed)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    done = linear.fit_head(net, found, CPU)
    assert (
        [s.path for s in done.bad] == [bad.path]
        and len(done.train) == 8
        and not done.predictions.bad
        and net.spec.classes == found.classes
    )
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items() if not k.startswith("fc."))
    again = evaluate.predictions(net, loader.Clips(found.root, done.predictions.items, net.spec.clip), CPU)
    assert again.items == done.predictions.items and np.allclose(again.scores, done.predictions.scores, atol=1e-5)
    assert metrics.brief(again.scores, again.items, found.classes, multi_label)["loss"] > 0


def test_too_few_videos_are_a_sentence(tmp_path):
    draw.write_videos(tmp_path / "v", draw.CLASSES[:2], 2, frames=8, size=(32, 48))
    found = scanning.split(scanning.scan(tmp_path / "v"), "0.5", 0)
    for item in scanning.items_in(found, listing.VAL):
        (found.root / item.path).unlink()
    with pytest.raises(VideoError, match="too few for a linear probe"):
        linear.fit_head(model.build(model_spec.ModelSpec("tiny", clip=view_spec.ClipSpec(4, None, 32))), found, CPU)


def test_features_are_read_from_a_file_of_predict_and_written_where_there_is_none(tmp_path, monkeypatch, seed):
    monkeypatch.chdir(tmp_path)
    draw.write_videos(tmp_path / "v", draw.CLASSES[:2], 3, seed=seed % 1000, frames=8, size=(32, 48))
    nets = [model.build(model_spec.ModelSpec("tiny", clip=view_spec.ClipSpec(4, None, 32))) for _ in range(2)]
    for net in nets:
        for parameter in net.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    options = {"val": "g01", "size": 32, "device": "cpu"}
    nlzoo.probe(copy.deepcopy(nets[0]), "v", name="a", features="f.safetensors", **options)
    nlzoo.predict(nets[0], "v", features="p.safetensors", device="cpu")
    written, predicted = (feature_files.read(tmp_path / f"{name}.safetensors") for name in "fp")
    assert written.keys() == predicted.keys() and len(written) == 6
    assert all(np.allclose(written[path], predicted[path], atol=1e-5) for path in written)
    asked = []
    real = outputs.features
    monkeypatch.setattr(
        outputs, "features", lambda net, source, *rest: asked.append(len(source)) or real(net, source, *rest)
    )
    kept = [nlzoo.probe(copy.deepcopy(nets[0]), "v", name=n, features="f.safetensors", **options) for n in "xy"]
    nlzoo.probe(copy.deepcopy(nets[0]), "v", name="b", features="p.safetensors", **options)
    assert asked == [1, 1, 1] and kept[0].figures["loss"] == kept[1].figures["loss"]  # one, to see whose they are
    with pytest.raises(UsageError, match="features of another network, size or views"):
        nlzoo.probe(nets[1], "v", name="c", features="p.safetensors", **options)
    (tmp_path / "x.safetensors").write_bytes(b"no")
    with pytest.raises(UsageError, match="x.safetensors has no features of videos"):
        nlzoo.probe(nets[0], "v", name="d", features="x.safetensors", **options)
    with pytest.raises(UsageError, match="features of whole videos, and those of 8 windows of each video are needed"):
        nlzoo.probe(nets[0], "v", name="e", features="p.safetensors", head="lstm", **options)
