"""Heads over windows: the formulas, what each can learn, and that what was measured is what the folder answers."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

import nlzoo as zoo
from nlzoo.apps import draw, explain, export, report
from nlzoo.core import model_spec, view_spec
from nlzoo.core.errors import UsageError
from nlzoo.networks import card, model
from nlzoo.networks.sequence import MultiGroupAttention, ShiftingAttention
from nlzoo.training import linear, outputs, sequence
from nlzoo.videos import listing, loader, scanning
from nlzoo.videos.clips import to_input

CPU = torch.device("cpu")


def test_shifting_attention_is_its_formula_for_each_group(seed):
    head = MultiGroupAttention([3, 5], 4).double()
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    for group in head.groups:
        torch.nn.init.normal_(group.alpha)
        torch.nn.init.normal_(group.beta)
    expected = []
    for b in range(2):
        for group, part in zip(head.groups, (x[b, :, :3], x[b, :, 3:])):
            for n in range(4):
                scores = np.array([part[w].tolist() for w in range(6)]) @ group.score.weight[n].tolist()
                weights = np.exp(scores + group.score.bias[n].item())
                mean = (weights / weights.sum()) @ part.numpy()
                shifted = group.alpha[n].item() * mean + group.beta[n].item()
                expected.append(shifted / (2 * np.linalg.norm(shifted)))  # sqrt(4)
    assert np.allclose(head(x).detach().numpy().ravel(), np.concatenate(expected), atol=1e-9)
    many = ShiftingAttention(1, 4096)  # the scalars start from a deviation of 4096^(-1/4)
    assert all(
        abs(each.std().item() - 0.125) < 0.01 and abs(each.mean().item()) < 0.01 for each in (many.alpha, many.beta)
    )


def head_of(kind, units=16, windows=4):
    member = model.build(model_spec.ModelSpec("tiny", clip=view_spec.ClipSpec(4, None, 32)))
    model.set_head(member, ("a", "b"))
    return model.join("sequence", [(member, 1.0)], model_spec.SequenceHead(kind, windows, units))


def windows_with(rng, count, by_order):
    """Features (N, 4, 160) in which two things happen in one order or the other, or one of two things in one window."""
    x, labels = rng.normal(0, 0.5, (count, 4, 160)), np.arange(count) % 2
    one, other = 6 * np.eye(160)[:2]
    for row, label in zip(x, labels):
        first, second = np.sort(rng.choice(4, 2, replace=False))
        row[first] += one if label else other
        if by_order:
            row[second] += other if label else one
    return x, np.eye(2, dtype=np.float32)[labels], [f"g{n // 4}" for n in range(count)]


@pytest.mark.parametrize(("kind", "by_order"), [("lstm", True), ("attention", False)])
def test_each_learns_what_it_is_for_and_the_mean_over_windows_does_not_know_their_order(monkeypatch, kind, by_order):
    monkeypatch.setattr(sequence, "EPOCHS", 12)
    rng = np.random.default_rng(3)
    train, test = windows_with(rng, 48, by_order), windows_with(rng, 60, by_order)
    net = head_of(kind)
    epochs = sequence._fit(net, *train, seed=0)
    right = (sequence._scores(net, test[0]).argmax(1) == test[1].argmax(1)).mean()
    assert right > 0.85 and 1 <= epochs <= sequence.EPOCHS
    x, y = torch.from_numpy(train[0]).float(), torch.from_numpy(train[1])
    nets = [head_of(kind), head_of(kind)]
    assert sequence._train(nets[0], x, y, 1, 5, (x, y)) == sequence._train(nets[1], x, y, 1, 5, (x, y))  # by the seed
    if by_order:
        mean = head_of("linear", 0)
        sequence._fit(mean, *train, seed=0)
        assert (sequence._scores(mean, test[0]).argmax(1) == test[1].argmax(1)).mean() < 0.7


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    """A folder with drawn videos and a run of two networks, of a spread and of a dense clip, under one LSTM."""
    folder = tmp_path_factory.mktemp("sequence")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        draw.write_videos(folder / "videos", draw.CLASSES[:2], 3, seed=6, frames=12, size=(32, 48))
        patch.setattr(sequence, "EPOCHS", 8)
        nets = [
            model.build(model_spec.ModelSpec("tiny", clip=view_spec.ClipSpec(2, None, 32))),
            model.build(model_spec.ModelSpec("tiny", clip=view_spec.ClipSpec(2, 2, 32))),
        ]
        for parameter in (p for net in nets for p in net.parameters()):  # or timm's zeros would keep the blocks silent
            parameter.data += 0.05 * torch.randn_like(parameter)
        zoo.probe(nets[0], "videos", "g02", size=32, name="plain", device="cpu")
        made = zoo.probe(nets, "videos", "g02", size=32, name="lstm", head="lstm", windows=3, device="cpu")
    return folder, made.figures


def test_what_was_measured_is_what_the_folder_answers(probed, monkeypatch):
    folder, figures = probed
    monkeypatch.chdir(folder)
    assert (figures["head"], figures["windows"], figures["val"]) == ("lstm", 3, 2) and 1 <= figures["head_epochs"] <= 8
    again = zoo.evaluate("lstm", "runs/lstm/videos.csv", device="cpu")
    assert abs(again.figures["loss"] - figures["loss"]) < 1e-6
    with pytest.raises(UsageError, match="sees 3 windows of each video, and no other views"):
        zoo.evaluate("lstm", "runs/lstm/videos.csv", views="10x1", device="cpu")
    (row,) = zoo.predict("lstm", next(folder.rglob("*.mp4")), features="f.safetensors", device="cpu")
    assert row["features"].shape == (2 * 160,)


def test_a_sequence_is_fused_like_any_run(probed, monkeypatch):
    folder, _ = probed
    monkeypatch.chdir(folder)
    zoo.fuse(["lstm", "plain"], name="both", device="cpu")
    parts = [zoo.evaluate(run, "runs/plain/videos.csv", device="cpu").predictions for run in ("lstm", "plain", "both")]
    assert [part.items for part in parts] == [parts[0].items] * 3
    assert np.allclose(parts[2].scores, (parts[0].scores + parts[1].scores) / 2, atol=1e-6)
    video, rows = next(folder.rglob("*.mp4")), []
    for run in ("lstm", "plain", "both"):
        (row,) = zoo.predict(run, video, every=0.2, window=0.2, device="cpu")
        rows.append([list(dict(sorted(window["scores"].items())).values()) for window in row["windows"]])
    assert np.allclose(np.mean(rows[:2], 0), rows[2], atol=1e-6) and len(rows[2]) > 1
    (row,) = zoo.predict("both", video, features="g.safetensors", device="cpu")
    assert row["features"].shape == (3 * 160,)
    net, clip = zoo.load("both"), torch.randn(1, 3, 6, 32, 32)
    with torch.no_grad():
        both = zoo.load("lstm")(clip, clip).softmax(-1) + zoo.load("plain")(clip).softmax(-1)
        assert torch.allclose(net((clip, clip), clip).softmax(-1), both / 2, atol=1e-6)
    assert "bidirectional LSTM over 3 windows" in str(net.spec.members[0])
    text = (folder / "runs/both/best/README.md").read_text()
    use = "a clip for each of net.members, in its order, to"
    assert f'nlzoo.load("PATH")  # {use}' in text and f'nlzoo.load("me/one")  # {use}' in card.addressed(text, "me/one")
    page = report.write(folder / "runs/both", CPU).read_text()
    assert all(word in page for word in ("bidirectional LSTM over 3 windows", "Late fusion", use))
    for command in (export.export, explain.explain):
        with pytest.raises(UsageError, match="it is 2 fused models, and no 3-D ResNet"):
            command(*((net, "onnx", folder / "x") if command is export.export else (net, video, CPU)))
    with pytest.raises(UsageError, match="sees 3 windows of each video, and no other views"):
        zoo.evaluate("both", "runs/plain/videos.csv", views="10x1", device="cpu")


def test_the_heads_of_folds_never_saw_the_group(monkeypatch, seed):
    rng = np.random.default_rng(seed)
    labels, groups = np.arange(24) % 2, np.arange(24) // 3
    features = rng.normal(0, 1, (24, 4, 160)) + 0.1 * labels[:, None, None]
    items = tuple(
        listing.Item(f"{n}", ("ab"[k],), split="train", group=f"{g}") for n, (k, g) in enumerate(zip(labels, groups))
    )
    dataset, net = scanning.Dataset(Path(), items, (), 0), head_of("linear", 0)
    monkeypatch.setattr(outputs, "window_features", lambda *_: ((n, row, "") for n, row in enumerate(features)))
    before = copy.deepcopy(net.state_dict())
    source = loader.Clips(Path(), items, net.spec.clip)
    found = np.stack(list(sequence.fold_likelihoods(net, source, dataset, CPU).values()))[:, 0]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    scaled = ((features - features.mean((0, 1))) / features.std((0, 1))).mean(1)
    strength, *_ = linear.fit(scaled, np.eye(2)[labels], [item.group for item in items], False)
    for train, test in GroupKFold(5).split(features, groups=[item.group for item in items]):
        mean, scale = features[train].mean((0, 1)), features[train].std((0, 1))
        rows = ((features - mean) / scale).mean(1)
        fitted = LogisticRegression(C=strength, max_iter=1000).fit(rows[train], labels[train])
        expected = fitted.predict_proba(rows[test])[np.arange(len(test)), labels[test]]
        assert np.allclose(found[test], expected, atol=1e-3)


def test_windows_lie_evenly_over_the_video_in_their_order(probed, monkeypatch):
    folder, _ = probed
    monkeypatch.chdir(folder)
    net, dataset = zoo.load("lstm"), scanning.scan(folder / "videos")
    items = tuple(dataset.items[:2])
    source = loader.Clips(dataset.root, items, net.spec.clip)
    rows = {index: row for index, row, _ in outputs.window_features(net, source, CPU)}
    spread = [member.spec.clip for member in net.members][0]
    for n, item in enumerate(items):
        expected = []
        third = item.seconds / 3
        for k in range(3):  # each window is the network's clip of a third of the video
            part = listing.Item(item.path, item.labels, start=k * third, end=(k + 1) * third)
            pixels = loader.Clips(dataset.root, (part,), spread).read(-1, 0)
            with torch.no_grad():
                inputs = to_input(pixels, spread)
                expected.append(
                    net.members[0].forward_head(net.members[0].forward_features(inputs), pre_logits=True)[0]
                )
        assert rows[n].shape == (3, 320) and np.allclose(rows[n][:, :160], torch.stack(expected), atol=1e-4)
    assert all(len(np.unique(part, axis=0)) == 3 for part in np.split(rows[0], 2, 1))  # of the dense clip too
    clip = torch.randn(2, 3, 6, 32, 32)
    with torch.no_grad():
        windows = torch.stack([net._windows(net.members[0], clip)[:, k] for k in range(3)], 1)
        alone = net.members[0].forward_features(clip[:, :, 2:4])
        assert torch.allclose(windows[:, 1], net.members[0].forward_head(alone, pre_logits=True), atol=1e-5)
        assert net(clip).shape == (2, 2)
