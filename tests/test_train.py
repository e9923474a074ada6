"""A run from its first file to its last, repeatable, and stopped in time when it goes wrong."""

import dataclasses
import json

import pytest
import torch

from nlzoo import checkpoint, data, draw, evaluate, model, spec, train
from nlzoo.errors import DivergedError, VideoError


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    draw.write_videos(folder, draw.CLASSES[:2], 4, seed=1, frames=8, size=(32, 48))
    return folder


def network(classes=("x", "y")):
    how = {"res2": 2, "res3": 2, "res4": 2, "res5": 2}
    torch.manual_seed(0)
    net = model.build(spec.ModelSpec("tiny", non_local=spec.parse_nl("res4:1", how), clip=spec.ClipSpec(4, None, 32)))
    return model.set_head(net, tuple(classes))


def prepared(videos, **changes):
    found = data.split(data.scan(videos), "0.25", 0)
    asked = {"epochs": 2, "batch": 3, "lr": 1e-3, "val": "0.25", "seed": 0, **changes}
    net = network(found.classes)
    config, notes = train.plan(found, "videos", "weights/x", "cpu", **asked)
    return net, found, dataclasses.replace(config, workers=0), notes


def test_a_run_writes_exactly_its_files_and_reloads_to_the_same_numbers(videos, tmp_path):
    net, found, config, _ = prepared(videos)
    lines = []
    result = train.finetune(net, found, config, tmp_path / "run", lines.append)
    model_files = {"model.safetensors", "config.json", "README.md", "metrics.json"}
    names = {p.relative_to(tmp_path / "run").as_posix() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert names == {"config.json", "videos.csv", "skipped.csv", "metrics.jsonl", "result.json",
                     *(f"{kind}/{n}" for kind in ("last", "best") for n in model_files)}
    assert [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()] == \
        [dataclasses.asdict(line) for line in lines]
    again = checkpoint.load_model(tmp_path / "run" / "best")
    scores, bad = evaluate.evaluate(again, data.Clips(found.root, tuple(data.items_in(found, data.VAL)), again.spec.clip), torch.device("cpu"))
    best = lines[result.best_epoch - 1]
    assert not bad and (scores["top1"], scores["loss"]) == (best.top1, pytest.approx(best.loss))
    assert result.top1 == max(line.top1 for line in lines) and result.majority == 0.5
    listed = data.split(data.scan(tmp_path / "run" / "videos.csv"), "0.5", 99)  # what was used is a list that can be used again
    sides = [{(i.path.rpartition("/")[2], i.labels, i.split, i.group, i.frames) for i in f.items} for f in (listed, found)]
    assert sides[0] == sides[1] and len(sides[0]) == 8


def test_the_same_run_twice_gives_the_same_bits(videos, tmp_path):
    files = []
    for name, workers in (("a", 0), ("b", 1)):
        net, found, config, _ = prepared(videos)
        train.finetune(net, found, dataclasses.replace(config, workers=workers), tmp_path / name)
        files.append((tmp_path / name / "last" / "model.safetensors").read_bytes())
    assert files[0] == files[1]
    net, found, config, _ = prepared(videos, seed=1)
    train.finetune(net, found, config, tmp_path / "c")
    assert (tmp_path / "c" / "last" / "model.safetensors").read_bytes() != files[0]  # the negative control


@pytest.fixture
def several(videos, tmp_path):
    """A list of videos with no, one or two labels."""
    files = sorted(videos.glob("*/*.mp4"))
    rows = [f"{f},{f.parent.name[0]}{';even' if n % 2 else ''}" for n, f in enumerate(files)]
    rows[0] = f"{files[0]},"
    (tmp_path / "list.csv").write_text("path,label\n" + "\n".join(rows) + "\n")
    return tmp_path / "list.csv"


@pytest.mark.parametrize("augment", ["light", "strong"])
def test_videos_with_several_labels(several, tmp_path, augment):
    found = data.split(data.scan(several), "0.4", 0)
    assert found.multi_label and "even" in found.classes and any(not i.labels for i in found.items)
    net = model.set_head(network(), found.classes, True)
    config, _ = train.plan(found, "videos", "weights/x", "cpu", epochs=2, batch=4, lr=1e-3, val="0.4", seed=0, augment=augment)
    result = train.finetune(net, found, dataclasses.replace(config, workers=1), tmp_path / "run")
    assert result.top1 is None and 0 < result.map <= 1 and 0 < result.majority < 1
    assert checkpoint.load_model(tmp_path / "run" / "best").spec.multi_label
    again = data.scan(tmp_path / "run" / "videos.csv")
    assert again.multi_label and sorted(i.labels for i in again.items) == sorted(i.labels for i in found.items)


def test_mixed_and_repeated_views_train_and_repeat(videos, tmp_path):
    files = []
    for name in ("a", "b"):
        net, found, config, notes = prepared(videos, augment="strong")
        assert config.augment.repeats == 2 and any("strong" not in n and "mixup=0.8" in n for n in notes)
        lines = []
        train.finetune(net, found, config, tmp_path / name, lines.append)
        files.append((tmp_path / name / "last" / "model.safetensors").read_bytes())
        assert lines[0].clips == 12  # two views of each of six videos
    assert files[0] == files[1]


@pytest.mark.parametrize("classes, asked, flip, words", [
    (("turn left", "turn right"), None, False, "names a side"), (("turn left", "x"), "flip=yes", True, "flip" and "light"),
    (("open", "close"), None, True, "has a direction"), (("run", "sit"), None, True, "under 5,000"), (("run", "sit"), "strong,flip=no", False, "flip=no")])
def test_mirroring_follows_the_class_names(classes, asked, flip, words):
    changes, note = train._augmentation(asked, 100, classes)
    assert changes.flip is flip and words in note


def test_nan_stops_before_the_step_and_names_step_and_files(videos, tmp_path):
    net, found, config, _ = prepared(videos)
    net.layer4[1].conv2.weight.data[0, 0] = float("inf")
    before = {k: v.clone() for k, v in net.named_parameters()}
    with pytest.raises(DivergedError, match=r"at step 1, on .*\.mp4") as caught:
        train.finetune(net, found, config, tmp_path / "run")
    assert caught.value.exit_code == 7 and "--lr" in caught.value.hint
    assert all(torch.equal(before[k], v) for k, v in net.named_parameters())
    assert not (tmp_path / "run" / "best").exists()


def test_videos_that_vanish_during_the_run_stop_it(videos, tmp_path):
    net, found, config, _ = prepared(videos)
    with pytest.raises(VideoError, match="could not be read in epoch 1"):
        train.finetune(net, dataclasses.replace(found, root=tmp_path / "gone"), config, tmp_path / "run")


def test_every_parameter_is_in_one_group_and_norms_do_not_decay():
    net = network()
    groups = train.parameter_groups(net, 0.1)
    ids = [id(p) for g in groups for p in g["params"]]
    trained = [p for p in net.parameters() if p.requires_grad]
    assert sorted(ids) == sorted(map(id, trained))
    rate = {id(p): g["lr"] for g in groups for p in g["params"]}
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    assert rate[id(net.fc.weight)] == pytest.approx(0.1 * train.HEAD_RATE)
    assert rate[id(net.layer3.nl1.g.weight)] == pytest.approx(0.1)
    own = net.conv1.weight[:, :, 2].square().mean().sqrt().item()
    assert rate[id(net.conv1.weight)] == pytest.approx(0.1 * own / train.KERNEL_SIZE) and decay[id(net.conv1.weight)] > 0
    assert all(decay[id(m.weight)] == 0 for m in net.modules() if isinstance(m, torch.nn.BatchNorm3d))


def test_a_network_with_smaller_kernels_and_the_same_outputs_moves_alike(seed):
    """BN hides a kernel's size from the outputs; the steps must keep their proportion to it."""
    big, small = network(), network()
    with torch.no_grad():
        for net, size in ((big, 1.0), (small, 0.1)):
            for m in net.modules():
                if isinstance(m, torch.nn.Conv3d) and m.bias is None:
                    m.weight.mul_(size)
                elif isinstance(m, torch.nn.BatchNorm3d):
                    m.weight.fill_(1.0)  # timm starts a block's last one at 0, which would stop the gradient
            net.fc.weight.fill_(0.01)
            net.fc.weight[1] *= -1
    moved = []
    for net in (big, small):
        optimizer = torch.optim.AdamW(train.parameter_groups(net, 0.01), eps=1e-20, weight_decay=0)
        torch.manual_seed(seed)
        clip = torch.randn(2, 3, 4, 32, 32)
        torch.nn.functional.cross_entropy(net.train()(clip), torch.tensor([0, 1])).backward()
        before = net.layer1[0].conv2.weight.detach().clone()
        optimizer.step()
        moved.append((net.layer1[0].conv2.weight.detach() - before).abs().mean() / before.abs().mean())
    assert moved[0] > 0 and moved[1] == pytest.approx(moved[0].item(), rel=0.05)


def test_the_rate_warms_up_and_ends_at_nothing():
    factors = [train.rate_factor(s, 100) for s in range(100)]
    peak = factors.index(max(factors))
    assert factors[peak] == 1 and factors[:peak + 1] == sorted(factors[:peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True) and 0 <= factors[-1] < 0.01


def test_what_was_asked_is_kept_and_what_was_filled_in_is_said(videos):
    _, _, config, notes = prepared(videos, epochs=None, batch=None, lr=None)
    assert config.epochs == train.EPOCHS and config.batch == train.BATCH and config.lr == pytest.approx(train.LR)
    assert any("6 training clips" in n for n in notes)
    assert prepared(videos, epochs=7, batch=5, lr=0.5)[2].epochs == 7
