"""Late fusion: the mean of what its members say, whatever their clips; weights that validation does not decide."""

import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import nlzoo as zoo
from nlzoo.apps import draw
from nlzoo.core import model_spec, view_spec
from nlzoo.core.errors import UsageError
from nlzoo.networks import checkpoint, model
from nlzoo.training import fuse, linear, metrics
from nlzoo.videos import listing, loader, scanning

CPU = torch.device("cpu")


def random_net(seed, size=32, frames=4):
    torch.manual_seed(seed)
    net = model.build(model_spec.ModelSpec("tiny", clip=view_spec.ClipSpec(frames, None, size)))
    for parameter in net.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return net


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with drawn videos, and probes of networks with the same clip, another clip, and another split."""
    folder = tmp_path_factory.mktemp("fuse")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        draw.write_videos(folder / "videos", draw.CLASSES[:3], 3, seed=2, frames=8, size=(32, 48))
        for name, net, split in (
            ("a", random_net(1), "g01"),
            ("b", random_net(2), "g01"),
            ("other", random_net(3, 48, 2), "g01"),
            ("split", random_net(1), "g02"),
        ):
            zoo.probe(net, "videos", val=split, size=net.spec.clip.size, name=name, device="cpu")
    return folder


@cache
def scores(run):
    done = zoo.evaluate(run, f"runs/{run}/videos.csv", device="cpu")
    return [item.path for item in done.predictions.items], done.predictions.scores


@pytest.mark.parametrize("by", fuse.BY)
def test_the_model_predicts_the_mean_of_its_members_and_says_what_it_is_worth(runs, monkeypatch, by):
    monkeypatch.chdir(runs)
    made = zoo.fuse(["a", "other", "runs/b"], by, f"fused-{by}", "cpu")
    weights = [member["weight"] for member in made.figures["members"]]
    assert [member["run"] for member in made.figures["members"]] == ["a", "other", "b"] and not made.skipped
    assert np.isclose(sum(weights), 1) and (len(set(weights)) == 1) == (by == "mean")
    paths, found = scores(f"fused-{by}")
    expected = sum(w * scores(run)[1] for w, run in zip(weights, ("a", "other", "b")))
    assert paths == scores("a")[0] and np.allclose(found, expected, atol=1e-6)
    assert made.figures["gain"] is None  # too few groups


def test_a_fused_run_is_fused_with_others_and_predicts_long_videos(runs, monkeypatch):
    monkeypatch.chdir(runs)
    zoo.fuse(["a", "other"], name="two", device="cpu")
    made = zoo.fuse(["two", "b"], name="three", device="cpu").figures["members"]
    assert [(member["run"], member["weight"]) for member in made] == [("two", 0.25), ("two", 0.25), ("b", 0.5)]
    video, parts = sorted(runs.glob("videos/*/*.mp4"))[0], []
    for name in ("a", "other", "two"):
        (row,) = zoo.predict(name, video, every=0.2, window=0.2, device="cpu")
        parts.append([[window["scores"][c] for c in draw.CLASSES[:3]] for window in row["windows"]])
    assert np.allclose(np.mean(parts[:2], 0), parts[2], atol=1e-6) and len(parts[2]) > 1


def test_a_fused_folder_is_one_file_of_weights_and_takes_a_clip_for_each(runs, monkeypatch, seed):
    monkeypatch.chdir(runs)
    zoo.fuse(["a", "other"], name="pair", device="cpu")
    assert {f.name for f in (runs / "runs/pair/best").iterdir()} == {
        "model.safetensors", "config.json", "README.md", "metrics.json"
    }  # fmt: skip
    net = zoo.load("pair")
    one, other = torch.randn(2, 3, 4, 32, 32), torch.randn(2, 3, 2, 48, 48)
    with torch.no_grad():
        expected = (zoo.load("a")(one).softmax(-1) + zoo.load("other")(other).softmax(-1)) / 2
        assert torch.allclose(net(one, other).softmax(-1), expected, atol=1e-6)
    assert torch.equal(checkpoint.load_model(runs / "runs/a/best").fc.weight, net.members[0].fc.weight)
    for command in (zoo.finetune, zoo.probe):
        with pytest.raises(UsageError, match="fused model"):
            command(*(("videos", "pair") if command is zoo.finetune else ("pair", "videos")), device="cpu")


def test_the_weights_have_the_least_log_loss(seed):
    likely = np.random.default_rng(seed).uniform(0.01, 1, (50, 2)) * [1, 0.7]
    grid = np.linspace(0, 1, 2001)
    losses = [-np.log(likely @ [w, 1 - w]).mean() for w in grid]
    weights = fuse.best_weights(likely)
    assert -np.log(likely @ weights).mean() < min(losses) + 1e-6 and np.isclose(weights.sum(), 1)
    assert fuse.best_weights(np.stack([likely[:, 0], likely[:, 0] / 2], 1))[1] < 1e-6  # what is worse everywhere


@pytest.mark.parametrize("multi_label", [False, True])
def test_folds_are_scikit_learns_heads_that_never_saw_the_group(monkeypatch, seed, multi_label):
    rng = np.random.default_rng(seed)
    groups, labels = [f"g{n // 3}" for n in range(30)], np.arange(30) % 3
    features = rng.normal(0, 1, (30, 5)) + 2 * np.eye(3, 5)[labels]
    items = tuple(
        listing.Item(f"{n}", (f"c{c}",), split="train", group=g) for n, (c, g) in enumerate(zip(labels, groups))
    )
    dataset = scanning.Dataset(Path(), items, (), 0, multi_label)
    monkeypatch.setattr(linear, "_features", lambda *_: (dict(enumerate(features)), []))
    source = loader.Clips(Path(), items, view_spec.ClipSpec())
    found = np.stack(list(linear.fold_likelihoods(None, source, dataset, CPU).values()))
    truth = metrics.targets(items, dataset.classes)
    scaled = StandardScaler().fit_transform(features)
    strength, *_ = linear.fit(scaled, truth, groups, multi_label)
    for train, test in GroupKFold(5).split(features, groups=groups):
        for k in range(3) if multi_label else (0,):
            target = truth[:, k] if multi_label else labels
            pipe = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
            given = pipe.fit(features[train], target[train]).predict_proba(features[test])
            expected = given[np.arange(len(test)), target[test].astype(int)]
            assert np.allclose(found[test, k], expected, atol=1e-3)


def test_runs_of_another_split_are_refused_by_their_first_difference(runs, monkeypatch):
    monkeypatch.chdir(runs)
    with pytest.raises(UsageError, match=r"not of the same split: .*\.mp4 is \w+ in (train|val) in runs/a, \w+ in"):
        zoo.fuse(["a", "b", "split"], device="cpu")
    shutil.copytree("runs/a", "runs/begun")
    (runs / "runs/begun/result.json").unlink()
    with pytest.raises(UsageError, match="runs/begun is unfinished"):
        zoo.fuse(["a", "begun"], device="cpu")
    shutil.rmtree("runs/begun")
    with pytest.raises(UsageError, match="one run is nothing to fuse"):
        zoo.fuse(["a"], device="cpu")
    with pytest.raises(UsageError, match="runs/a is named twice"):
        zoo.fuse(["a", "b", runs / "runs" / "a"], device="cpu")
    config = runs / "runs/split/best/config.json"
    config.write_text(config.read_text().replace('"fall"', '"drop"'))
    with pytest.raises(UsageError, match=r"only runs/split has the class 'drop'"):
        zoo.fuse(["a", "split"], device="cpu")
