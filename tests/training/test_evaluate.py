"""Answers that do not depend on the batch they came in, and are the mean over hand-written loops of views."""

import dataclasses

import numpy as np
import pytest
import torch

from nlzoo.apps import draw
from nlzoo.core import model_spec, view_spec
from nlzoo.core.errors import UsageError
from nlzoo.networks import model
from nlzoo.training import evaluate
from nlzoo.videos import clips, listing, loader, video


def test_answers_do_not_depend_on_batch_or_workers_and_average_softmax(tmp_path, seed, monkeypatch):
    net = model.build(model_spec.ModelSpec("tiny", num_outputs=3, clip=view_spec.ClipSpec(4, None, 32)))
    files = draw.write_videos(tmp_path, draw.CLASSES[:2], 2, seed=seed % 1000, frames=8, size=(48, 64))
    files.insert(1, tmp_path / "missing.mp4")
    source = loader.Clips(
        tmp_path, tuple(listing.Item(str(f), ()) for f in files), net.spec.clip, views=view_spec.ViewSpec(2, 3)
    )
    many = {i: s for i, s, reason in evaluate.probabilities(net, source, torch.device("cpu"), 2)}
    monkeypatch.setattr(evaluate, "CLIPS", 1)
    one = {i: s for i, s, reason in evaluate.probabilities(net, source, torch.device("cpu"))}
    assert one[1] is None and many[1] is None and set(one) == set(many) == set(range(5))
    for i in (0, 2, 3, 4):
        assert np.allclose(one[i], many[i], atol=1e-6) and one[i].sum() == pytest.approx(1)
    each = [
        net(clips.to_input(view[None], net.spec.clip)).softmax(-1)[0].detach().double().numpy()
        for view in source.read(-1, 3)
    ]
    assert len(each) == 6 and np.allclose(np.mean(each, 0), one[3], atol=1e-6)
    net.spec = dataclasses.replace(net.spec, multi_label=True)
    several = {i: s for i, s, reason in evaluate.probabilities(net, source, torch.device("cpu"))}
    each = [
        net(clips.to_input(view[None], net.spec.clip)).sigmoid()[0].detach().double().numpy()
        for view in source.read(-1, 3)
    ]
    assert np.allclose(np.mean(each, 0), several[3], atol=1e-6)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Two landscape videos of different shapes, a portrait and a square one."""
    folder = tmp_path_factory.mktemp("wide")
    return [
        draw.write_videos(folder / str(n), draw.CLASSES[:1], 1, seed=n, frames=9, size=size)[0]
        for n, size in enumerate([(32, 48), (32, 64), (56, 40), (40, 40)])
    ]


def network(seed):
    torch.manual_seed(seed)
    net = model.build(
        model_spec.ModelSpec(
            "tiny",
            num_outputs=5,
            non_local=model_spec.parse_nl("res3:1", {f"res{n}": 2 for n in (2, 3, 4, 5)}),
            clip=view_spec.ClipSpec(4, 2, 32),
        )
    )
    torch.nn.init.normal_(net.fc.weight, std=0.3)
    return net


@pytest.mark.parametrize("workers", [0, 2])
def test_whole_frames_as_they_are_by_hand(wide, seed, workers):
    """Ten clips of the paper's whole frames: shorter side 8/7 of the clip's, no crop, no squeeze, one softmax a clip."""
    net = network(seed)
    files = [*wide, wide[0].with_name("missing.mp4")]
    source = loader.Clips(
        wide[0].parent,
        tuple(listing.Item(str(f), ()) for f in files),
        net.spec.clip,
        views=view_spec.parse_views("3xfull"),
    )
    got = {i: s for i, s, _ in evaluate.probabilities(net, source, torch.device("cpu"), workers)}
    assert got.pop(4) is None and set(got) == {0, 1, 2, 3}
    for n, file in enumerate(wide):
        info = video.probe(file)
        each = []
        for start in (0, 1, 2):  # the seven frames of a clip leave two of room
            frames = video.read_frames(file, range(start, start + 7, 2), short_side=37)
            assert (
                min(frames.shape[1:3]) == 37
                and abs(frames.shape[2] / frames.shape[1] - info.width / info.height) < 0.05
            )
            x = (torch.from_numpy(frames).double() / 255 - torch.tensor(net.spec.clip.mean)) / torch.tensor(
                net.spec.clip.std
            )
            each.append(net.double()(x.permute(3, 0, 1, 2)[None]).softmax(-1)[0].detach().numpy())
            net.float()
        assert np.allclose(got[n], np.mean(each, 0), atol=1e-5)


def test_three_crops_of_a_square_are_the_whole_of_it_and_of_a_wide_frame_its_ends_and_middle(wide, seed):
    net = network(seed)

    def looked(looks, file):
        source = loader.Clips(
            file.parent, (listing.Item(file.name, ()),), net.spec.clip, views=view_spec.parse_views(looks)
        )
        ((_, scores, _),) = evaluate.probabilities(net, source, torch.device("cpu"))
        return source.read(-1, 0), scores

    assert np.allclose(
        looked("2x3", wide[3])[1], looked("2xfull", wide[3])[1], atol=1e-6
    )  # fully convolutional equals cropping here
    crops, _ = looked("1x3", wide[1])
    whole = looked("1xfull", wide[1])[0][0]
    height, width = whole.shape[1:3]
    assert crops.shape == (3, 4, 37, 37, 3) and height == 37
    for crop, left in zip(crops, (0, (width - 37) / 2, width - 37)):
        close = min((crop.float() - whole[:, :, x : x + 37].float()).abs().max() for x in {int(left), int(left + 0.5)})
        assert close <= 1
    assert not np.allclose(looked("1x3", wide[1])[1], looked("1xfull", wide[1])[1], atol=1e-4)


def test_controls_see_the_same_frames_in_another_order_or_one_of_them(wide, seed):
    net = network(seed)
    items = (listing.Item(wide[0].name, ()),)
    reads = {
        order: loader.Clips(
            wide[0].parent, items, net.spec.clip, views=view_spec.ViewSpec(order=order), seed=seed % 1000
        ).read(-1, 0)[0]
        for order in ("true", "shuffled", "one")
    }
    assert sorted(f.tobytes() for f in reads["true"].numpy()) == sorted(f.tobytes() for f in reads["shuffled"].numpy())
    assert not torch.equal(reads["true"], reads["shuffled"]) and all(
        torch.equal(f, reads["true"][2]) for f in reads["one"]
    )


def test_features_are_what_the_last_layer_sees(wide, seed):
    net = network(seed)
    source = loader.Clips(
        wide[0].parent, tuple(listing.Item(str(f), ()) for f in wide), net.spec.clip, views=view_spec.ViewSpec(2)
    )
    rows = np.stack([row for _, row, _ in evaluate.features(net, source, torch.device("cpu"))])
    seen = []
    handle = net.fc.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    list(evaluate.probabilities(net, source, torch.device("cpu")))
    handle.remove()
    assert rows.shape == (4, net.num_features) and np.allclose(rows, torch.cat(seen).view(4, 2, -1).mean(1), atol=1e-5)


def test_a_control_is_compared_on_the_videos_that_both_could_read():
    found = tuple(listing.Item(f"{n}.mp4", ("ab"[n % 2],), group=f"g{n // 2}") for n in range(20))
    right = np.eye(2)[[n % 2 for n in range(20)]]
    true = evaluate.Predictions(found, right, [])
    other = evaluate.Predictions(found[:0:-1], np.full((19, 2), [0.9, 0.1]), [("0.mp4", "gone")])
    summary = evaluate.compare_to_control(true, other, "ab", False)
    assert summary["top1"] == pytest.approx(9 / 19) and 0 < summary["gain"][0] < 10 / 19 < summary["gain"][1]


def test_a_device_that_is_not_here():
    with pytest.raises(UsageError, match="cuda:99"):
        evaluate.resolve_device("cuda:99")
