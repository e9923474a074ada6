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
from nlzoo.core import feature_files, model_spec, view_spec
from nlzoo.core.errors import UsageError
from nlzoo.core.progress import no_progress
from nlzoo.networks import card, model
from nlzoo.networks.sequence import MultiGroupAttention, ShiftingAttention
from nlzoo.training import linear, outputs, sequence
from nlzoo.videos import listing, loader, scanning, sound
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


def test_features_of_several_models_are_read_from_a_file_each_and_written_where_there_is_none(probed, monkeypatch):
    folder, figures = probed
    monkeypatch.chdir(folder)
    net, dataset = zoo.load("lstm"), scanning.scan(folder / "runs/lstm/videos.csv")
    real, asked = outputs.window_features, []

    def noted(part, source, *rest):
        asked.append((len(part.members), len(source)))
        return real(part, source, *rest)

    def features(*names, windows=3, order=(0, 1)):
        asked.clear()
        members = [(net.members[number], 1.0) for number in order]
        joined = model.join("sequence", members, model_spec.SequenceHead("linear", windows))
        source = linear.labelled_clips(joined, dataset, "auto")
        rows, bad, _ = sequence._features(joined, source, CPU, 0, no_progress, [folder / name for name in names])
        assert not bad and list(rows) == list(range(6))
        return np.stack(list(rows.values()))

    monkeypatch.setattr(outputs, "window_features", noted)
    a, b = "a.safetensors", "b.safetensors"
    expected = features()
    assert np.array_equal(features(a, b), expected) and asked == [(2, 6)]
    assert np.array_equal(features(a, b), expected) and asked == [(1, 1), (1, 1)]  # one, to see whose they are
    stored = [feature_files.read(folder / name) for name in (a, b)]
    assert all(len(rows) == 6 and {row.shape for row in rows.values()} == {(3, 160)} for rows in stored)
    (folder / b).unlink()
    rows = [{"path": path, "features": row} for path, row in stored[0].items()]
    feature_files.write(folder / a, rows[1:])  # lacks a video, which both compute; the other five one alone
    assert np.allclose(features(a, b), expected, atol=1e-4) and sorted(asked) == [(1, 1), (1, 5), (2, 1)]
    assert len(feature_files.read(folder / a)) == 5  # a file that was there stays as it was
    turned = np.roll(expected, 160, 2)
    assert np.allclose(features(b, a, order=(1, 0)), turned, atol=1e-4) and sorted(asked) == [(1, 1)] * 3
    for names, windows, sentence in (
        ((b, a), 3, "b.safetensors has features of another network, size or views than asked for here"),
        ((a, b), 4, "a.safetensors has features of 3 windows of each video, and those of 4 windows"),
        ((a, b), 1, "a.safetensors has features of 3 windows of each video, and those of whole videos are needed"),
    ):
        with pytest.raises(UsageError, match=sentence):
            features(*names, windows=windows)
    zoo.predict(net.members[1], "videos", features="p.safetensors", device="cpu")
    features("p.safetensors", windows=1, order=(1,))
    assert asked == [(1, 1)]
    for names, sentence in ((a, "there are 2 models and 1 file of features"), ([a, a], "is the file of two models")):
        with pytest.raises(UsageError, match=sentence):
            zoo.probe(list(net.members), "videos", windows=3, features=names, device="cpu")
    monkeypatch.setattr(sequence, "EPOCHS", 8)
    made = zoo.probe(list(net.members), "videos", "g02", size=32, head="lstm", windows=3, features=[a, b], device="cpu")
    assert abs(made.figures["loss"] - figures["loss"]) < 1e-4


def test_a_file_of_sound_has_no_silent_video(tmp_path, monkeypatch):
    clips = (view_spec.ClipSpec(4, None, 32), view_spec.ClipSpec(4, None, 32, mean=(0.5,), std=(0.2,), stream="audio"))
    nets = [model.build(model_spec.ModelSpec("tiny", clip=clip)) for clip in clips]
    net = model.join("sequence", [(one, 1.0) for one in nets], model_spec.SequenceHead("linear", 2))
    items = tuple(listing.Item(f"{n}", ("a",), split="train", group=f"{n}") for n in range(3))
    made = np.random.default_rng(0).normal(0, 1, (3, 2, 320))
    reasons = ("", sound.NONE, "")
    monkeypatch.setattr(outputs, "window_features", lambda *_: zip(range(3), made.copy(), reasons))
    files = [tmp_path / "rgb.safetensors", tmp_path / "audio.safetensors"]
    rows, _, silent = sequence._features(net, loader.Clips(tmp_path, items, net.spec.clip), CPU, 0, no_progress, files)
    heard = made[[0, 2], :, 160:].mean((0, 1))
    assert silent == {1} and np.allclose(rows[1][:, 160:], heard) and np.array_equal(rows[1][:, :160], made[1, :, :160])
    kept = [feature_files.read(file) for file in files]
    assert [sorted(Path(path).name for path in rows) for rows in kept] == [["0", "1", "2"], ["0", "2"]]
    assert np.allclose(kept[1][str(tmp_path / "2")], made[2, :, 160:])


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
