"""Answers that do not depend on the batch they came in, and are the mean over hand-written loops of views."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import nlzoo
from nlzoo.apps import draw, prepare
from nlzoo.core import model_spec, view_spec
from nlzoo.core.errors import DiskError, DivergedError, UsageError, VideoError
from nlzoo.networks import checkpoint, model
from nlzoo.training import evaluate, metrics, outputs, provenance
from nlzoo.videos import clips, listing, loader, records, video


def test_answers_do_not_depend_on_batch_or_workers_and_average_softmax(tmp_path, seed, monkeypatch):
    net = model.build(model_spec.ModelSpec("tiny", num_outputs=3, clip=view_spec.ClipSpec(4, None, 32)))
    files = draw.write_videos(tmp_path, draw.CLASSES[:2], 2, seed=seed % 1000, frames=8, size=(48, 64))
    files.insert(1, tmp_path / "missing.mp4")
    source = loader.Clips(
        tmp_path, tuple(listing.Item(str(f), ()) for f in files), net.spec.clip, views=view_spec.ViewSpec(2, 3)
    )
    many = {i: s for i, s, reason in evaluate.probabilities(net, source, torch.device("cpu"), 2)}
    monkeypatch.setattr(outputs, "CLIPS", 1)
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
    """Ten clips of the paper's whole frames: shorter side 8/7 of the clip's, no crop or squeeze, one softmax a clip."""
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
    rows = np.stack([row for _, row, _ in outputs.features(net, source, torch.device("cpu"))])
    seen = []
    handle = net.fc.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    list(evaluate.probabilities(net, source, torch.device("cpu")))
    handle.remove()
    seen = seen[1:]  # the first is the clip that `fold_bn` looks at
    assert rows.shape == (4, net.num_features) and np.allclose(rows, torch.cat(seen).view(4, 2, -1).mean(1), atol=1e-5)


def test_a_control_is_compared_on_the_videos_that_both_could_read():
    found = tuple(listing.Item(f"{n}.mp4", ("ab"[n % 2],), group=f"g{n // 2}") for n in range(20))
    right = np.eye(2)[[n % 2 for n in range(20)]]
    true = evaluate.Predictions(found, right, [])
    other = evaluate.Predictions(found[:0:-1], np.full((19, 2), [0.9, 0.1]), [("0.mp4", "gone")])
    summary = evaluate.compare_to_control(true, other, "ab", False)
    assert summary["top1"] == pytest.approx(9 / 19) and 0 < summary["gain"][0] < 10 / 19 < summary["gain"][1]


# --- nlzoo.evaluate


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Three classes of four videos."""
    folder = tmp_path_factory.mktemp("labelled") / "videos"
    draw.write_videos(folder, draw.CLASSES[:3], 4, seed=3, frames=8, size=(32, 48))
    return folder


NAMES = tuple(sorted(draw.CLASSES[:3]))


def classifier(classes=NAMES, **changes):
    torch.manual_seed(5)
    net = model.build(model_spec.ModelSpec("tiny", clip=view_spec.ClipSpec(4, None, 32)))
    model.set_head(net, classes, **changes)
    torch.nn.init.normal_(net.fc.weight, std=0.3)
    return net


def run_with(folder, net, rows, start=""):
    """A finished run of `net`, by hand: its model folder."""
    lists = "\n".join(["path,label,split,start,end", *(",".join(map(str, row)) for row in rows)])
    checkpoint.save_model(folder / "best", net)
    (folder / "videos.csv").write_text(lists + "\n")
    (folder / "config.json").write_text(json.dumps({"train": {"start": str(start)}}))
    (folder / "result.json").write_text("{}")
    return folder / "best"


def test_evaluate_is_the_figures_of_the_predictions(labelled, tmp_path):
    net = classifier()
    done = nlzoo.evaluate(net, labelled, views="2x1", control=True, out=tmp_path / "rows.csv", device="cpu")
    expected = metrics.full(done.predictions.scores, done.predictions.items, net.spec.classes, False)
    assert {key: done.figures[key] for key in expected} == expected and done.figures["videos"] == 12
    assert (done.figures["views"], done.figures["look"], done.figures["skipped"]) == (2, "2x1", 0)
    assert set(done.figures["control"]) == {"shuffled", "one"} and done.figures["trained_on"] is None
    assert (tmp_path / "rows.csv").read_text().count("\n") == 13 and done.notes == done.skipped == ()
    checkpoint.save_model(tmp_path / "model", net)
    again = nlzoo.evaluate(tmp_path / "model", labelled, view_spec.ViewSpec(2), device=torch.device("cpu"))
    assert np.array_equal(again.predictions.scores, done.predictions.scores)


def test_videos_that_trained_the_model_are_counted_by_path_part_and_content(labelled, tmp_path):
    """Of the run's own list, and of the run that it started from; what only lies in `val` or `test` trained nothing."""
    net, videos = classifier(), sorted(labelled.rglob("*.mp4"))
    copies = tmp_path / "copies"
    shutil.copytree(labelled, copies)
    renamed = sorted(copies.rglob("*.mp4"))[1]
    renamed.rename(renamed.with_name("another.mp4"))
    label = [video.parent.name for video in videos]
    first = run_with(
        tmp_path / "first", net, [(videos[5], label[5], "train", "", ""), (videos[4], label[4], "val", "", "")]
    )
    rows = [
        (videos[0], label[0], "train", "", ""),
        (videos[1], label[1], "train", "", ""),
        (videos[2], label[2], "val", "", ""),
        (videos[8], label[8], "test", "", ""),
    ]
    folder = run_with(tmp_path / "second", net, rows, start=first)
    for place in (labelled, copies):
        done = nlzoo.evaluate(folder, place, device="cpu")
        trained = {"another.mp4", *(videos[n].name for n in (0, 1, 5))}
        kept = [n for n, item in enumerate(done.predictions.items) if Path(item.path).name not in trained]
        assert done.figures["trained_on"] == 3 and len(kept) == 9
        others = [done.predictions.items[n] for n in kept]
        assert done.figures["others"] == metrics.full(done.predictions.scores[kept], others, net.spec.classes, False)
        text = metrics.in_words(done.figures)
        assert text.startswith("3 of the 12 videos trained this model; on the 9 others: top-1 ")
    own = nlzoo.evaluate(folder, folder.parent / "videos.csv", device="cpu")  # its test video
    assert (own.figures["videos"], own.figures["trained_on"]) == (1, 0) and "others" not in own.figures
    only = tmp_path / "only.csv"
    only.write_text(f"path,label\n{videos[0]},{label[0]}\n{videos[5]},{label[5]}\n")
    done = nlzoo.evaluate(folder, only, device="cpu")
    assert done.figures["trained_on"] == 2 and done.figures["others"] is None
    assert metrics.in_words(done.figures).startswith("all 2 videos trained this model")


def test_what_prepare_made_of_training_videos_trained_the_model_too(labelled, tmp_path):
    """Both ways, from another copy, from a list's folder and before shards are joined; not what replaced it."""
    originals = sorted(labelled.rglob("*.mp4"))[::3]
    label = [path.parent.name for path in originals]
    source = tmp_path / "some"
    for path in originals:
        (source / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, source / path.parent.name)
    rows = ["path,label", *(f"{path},{name}" for path, name in zip(originals, label))]
    (tmp_path / "list.csv").write_text("\n".join(rows))
    small, shard, listed = tmp_path / "small", tmp_path / "shard", tmp_path / "listed"
    prepare.prepare_source(source, small, 32)
    prepare.prepare_source(source, shard, 16)
    (shard / "prepared.jsonl").rename(shard / "prepared-00001-of-00001.jsonl")
    (shard / "prepared.jsonl").touch()
    prepare.prepare_source(tmp_path / "list.csv", listed, 16)
    packed = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", small))
    copies = [small / path.relative_to(labelled) for path in originals]
    net = classifier()
    runs = [
        run_with(tmp_path / name, net, [(paths[0], label[0], "train", "", ""), (paths[2], label[2], "val", "", "")])
        for name, paths in (("by original", originals), ("by copy", copies))
    ]

    def trained_on(run, place):
        found = listing.read(place)
        known = provenance.trained_on(provenance.training_lists(run), found.root, found.items)
        return [Path(item.path).stem for item, yes in zip(found.items, known) if yes]

    for run in runs:
        assert nlzoo.evaluate(run, small, device="cpu").figures["trained_on"] == 1
        for place in (labelled, source, small, shard, listed / "videos.csv", packed):
            assert trained_on(run, place) == [originals[0].stem], place
    (small / "prepared.jsonl").rename(tmp_path / "kept.jsonl")
    for text in (b"", b"\xff{}\n[1]\n" + b'{"source": 1}\n'):
        (small / "prepared.jsonl").write_bytes(text)
        assert trained_on(runs[0], small) == []
    (tmp_path / "kept.jsonl").rename(small / "prepared.jsonl")
    shutil.copy(copies[3], copies[0])  # another video has the name now
    assert trained_on(runs[0], small) == []


def test_training_videos_that_are_gone_are_said_to_be(labelled, tmp_path):
    videos = sorted(labelled.rglob("*.mp4"))
    rows = [(videos[0], "x", "train", "", ""), (tmp_path / "gone.mp4", "x", "train", "", "")]
    done = nlzoo.evaluate(run_with(tmp_path / "some", classifier(), rows), labelled, device="cpu")
    assert done.figures["trained_on"] == 1
    assert done.notes == ("1 video of the model's run cannot be found: copies of them are not recognised here",)
    done = nlzoo.evaluate(run_with(tmp_path / "none", classifier(), rows[1:]), labelled, device="cpu")
    assert done.figures["trained_on"] is None
    assert done.notes == ("the videos of the model's run cannot be found: copies of them are not recognised here",)


def test_only_parts_that_overlap_trained_the_model():
    item = listing.Item("a.mp4", ("x",), split="train", start=1.0, end=2.0)
    trained = listing.Listing(Path("/v"), (item,), (), 0, False, "")
    parts = [(None, None), (0.0, 1.0), (0.0, 1.5), (1.2, 1.3), (1.9, None), (2.0, 3.0)]
    asked = [listing.Item("a.mp4", ("x",), start=start, end=end) for start, end in parts]
    assert provenance.trained_on([trained], Path("/v"), asked) == [True, False, True, True, True, False]
    assert provenance.trained_on([trained], Path("/w"), asked) == [False] * 6


def test_an_unfinished_run_says_so(labelled, tmp_path):
    folder = run_with(tmp_path / "half", classifier(), [(next(labelled.rglob("*.mp4")), "x", "val", "", "")])
    (tmp_path / "half" / "result.json").unlink()
    assert nlzoo.evaluate(folder, labelled, device="cpu").notes == (
        f"the run {tmp_path / 'half'} is unfinished: this is its best model so far",
    )


@pytest.mark.parametrize("multi_label", [False, True])
def test_shared_classes_of_videos_that_have_others(labelled, tmp_path, multi_label):
    names = NAMES
    net = classifier((names[0], names[2], "elsewhere"), multi_label=multi_label)
    with pytest.raises(UsageError, match=f"does not know 1 class of these videos: '{names[1]}'") as error:
        nlzoo.evaluate(net, labelled, device="cpu")
    assert error.value.hint == f"--classes shared measures on the 2 classes that both have: '{names[0]}', '{names[2]}'"
    done = nlzoo.evaluate(net, labelled, classes="shared", device="cpu")
    assert done.figures["videos"] == 8 and {i.labels[0] for i in done.predictions.items} == {names[0], names[2]}
    assert done.notes == ("left out 4 videos of classes that the model does not know",)
    with pytest.raises(UsageError, match="does not know 3 classes") as error:
        nlzoo.evaluate(classifier(("p", "q")), labelled, classes="shared", device="cpu")
    assert error.value.hint == "its classes: 'p', 'q'"


def test_a_network_without_class_names_is_measured_by_numbers(labelled, tmp_path):
    net = classifier()
    net.spec = dataclasses.replace(net.spec, classes=())
    with pytest.raises(UsageError, match="has no class names, only 3 outputs; these videos have ") as error:
        nlzoo.evaluate(net, labelled, device="cpu")
    assert "finetune" in error.value.hint
    for number, folder in enumerate(NAMES):
        shutil.copytree(labelled / folder, tmp_path / "numbers" / str(number))
    done = nlzoo.evaluate(net, tmp_path / "numbers", device="cpu")
    assert done.figures["top1"] == nlzoo.evaluate(classifier(), labelled, device="cpu").figures["top1"]
    assert done.notes == (
        "the model was never trained on classes of yours: numbers stand for the outputs of its image network; "
        "nlzoo finetune trains it",
    )


def test_a_network_that_overflows_is_an_error_that_names_the_video(labelled):
    net = classifier()
    net.fc.bias.data[1] = float("nan")
    with pytest.raises(DivergedError, match=r"_c0\d\.mp4 is not finite"):
        nlzoo.evaluate(net, labelled, device="cpu")


def test_nothing_to_predict_is_a_sentence():
    net = classifier()
    source = loader.Clips(Path(), (), net.spec.clip)
    assert list(evaluate.probabilities(net, source, torch.device("cpu"))) == []
    with pytest.raises(VideoError, match="none of the 0 videos"):
        evaluate.predictions(net, source, torch.device("cpu"))


@pytest.mark.parametrize(
    "changes, error, words",
    [
        ({"views": "2x2"}, UsageError, "crops per clip"),
        ({"classes": "some"}, UsageError, "--classes"),
        ({"decoder": "vlc"}, UsageError, "no decoder 'vlc'"),
        ({"device": "meta"}, UsageError, "device 'meta' cannot be used"),
        ({"device": "gpu"}, UsageError, "device 'gpu' cannot be used"),
        ({"out": "rows.txt"}, UsageError, "ends in none of"),
        ({"out": "nowhere/rows.csv"}, DiskError, "could not be written"),
        ({"out": "folder.csv"}, DiskError, "Is a directory"),
        ({"out": "videos.csv", "videos": "videos.csv"}, UsageError, "would overwrite what is read"),
        ({"model": "videos.csv", "videos": "net"}, UsageError, "videos.csv is not a model"),
        ({"videos": "https://example.com/videos.zip"}, UsageError, "is an address"),
    ],
)
def test_what_cannot_be_is_said_before_a_video_is_opened(tmp_path, monkeypatch, changes, error, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.csv").mkdir()
    monkeypatch.setattr(records, "examine", None)
    with pytest.raises(error, match=words):
        nlzoo.evaluate(**{"model": classifier(), "videos": "videos", "device": "cpu"} | changes)
