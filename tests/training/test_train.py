"""A run from its first file to its last, repeatable, and stopped in time when it goes wrong."""

import dataclasses
import json
import shutil
import signal
from pathlib import Path

import pytest
import torch

import nlzoo
from nlzoo.apps import draw
from nlzoo.core import model_spec, recipe_spec, view_spec
from nlzoo.core.errors import DiskError, DivergedError, Stopped, UsageError, VideoError
from nlzoo.networks import checkpoint, download, model, zoo
from nlzoo.training import devices, dry_run, evaluate, linear, metrics, plan, recipe, run_folder, state, step, train
from nlzoo.training.callbacks import Callbacks
from nlzoo.training.engine import Engine
from nlzoo.training.options import FinetuneOptions
from nlzoo.videos import listing, loader, scanning

CPU = Engine(torch.device("cpu"))


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    draw.write_videos(folder, draw.CLASSES[:2], 4, seed=1, frames=8, size=(32, 48))
    return folder


def network(classes=("x", "y")):
    how = {"res2": 2, "res3": 2, "res4": 2, "res5": 2}
    torch.manual_seed(0)
    net = model.build(
        model_spec.ModelSpec("tiny", non_local=model_spec.parse_nl("res4:1", how), clip=view_spec.ClipSpec(4, None, 32))
    )
    return model.set_head(net, tuple(classes))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A model folder to start from."""
    return checkpoint.save_model(tmp_path_factory.mktemp("weights") / "images", network())


def prepared(videos, probe="none", **changes):
    """`(network, dataset, config, decisions)`; the linear probe takes half of the time of so short a run."""
    dataset = scanning.split(scanning.scan(videos), "0.25", 0)
    options = {"epochs": 2, "batch": 3, "lr": 1e-3, "val": "0.25", "seed": 0, **changes}
    net = network(dataset.classes)
    config, decisions = planned(dataset, **options)
    recipe = dataclasses.replace(config.recipe, probe=probe)
    return net, dataset, dataclasses.replace(config, recipe=recipe, workers=0), decisions


def planned(dataset, fresh=True, frames=8, **options):
    """`(config, decisions)`"""
    return plan.plan(dataset, "videos", "weights/x", FinetuneOptions(**options), CPU, fresh, frames)


def test_a_run_writes_exactly_its_files_and_reloads_to_the_same_numbers(videos, tmp_path):
    net, found, config, _ = prepared(videos, "baseline")
    lines = []
    result = train.train(net, found, config, tmp_path / "run", Callbacks(lines.append))
    model_files = {"model.safetensors", "config.json", "README.md", "metrics.json"}
    names = {
        p.relative_to(tmp_path / "run").as_posix()
        for p in (tmp_path / "run").rglob("*")
        if p.is_file() and "checkpoints" not in p.parts
    }
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 2
    assert names == {
        ".lock",
        "config.json",
        "environment.json",
        "videos.csv",
        "skipped.csv",
        "metrics.jsonl",
        "events.jsonl",
        "result.json",
        "learning_curve.json",
        *(f"{kind}/{n}" for kind in ("last", "best") for n in model_files),
    }
    assert [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()] == [
        dataclasses.asdict(line) for line in lines
    ]
    again = checkpoint.load_model(tmp_path / "run" / "best")
    scores, bad = evaluate.validate(
        again,
        loader.Clips(found.root, tuple(scanning.items_in(found, listing.VAL)), again.spec.clip),
        torch.device("cpu"),
    )
    (best,) = (line for line in lines if line.epoch == result.best_epoch)
    assert not bad and (scores["top1"], scores["loss"]) == (best.top1, pytest.approx(best.loss))
    assert result.top1 == max(line.top1 for line in lines) and result.majority == 0.5
    listed = scanning.split(
        scanning.scan(tmp_path / "run" / "videos.csv"), "0.5", 99
    )  # what was used is a list that can be used again
    sides = [
        {(i.path.rpartition("/")[2], i.labels, i.split, i.group, i.frames) for i in f.items} for f in (listed, found)
    ]
    assert sides[0] == sides[1] and len(sides[0]) == 8


@pytest.mark.parametrize(
    ("has", "recipe", "passes"),
    [(True, None, 6), (True, "label_smoothing=0", 6), (True, "precision=bf16", 6), (True, "precision=fp32", 3)]
    + [(False, None, 3), (False, "precision=bf16", 3), (True, "paper", 1), (True, "epochs=20", 1)],
)
def test_bf16_of_its_own_gives_a_processor_time_for_twice_the_steps(videos, monkeypatch, has, recipe, passes):
    monkeypatch.setattr(devices, "cpu_has_bf16", lambda: has)
    found = scanning.split(scanning.scan(videos), "0.25", 0)
    train, val = (scanning.items_in(found, part) for part in (listing.TRAIN, listing.VAL))
    config, _ = planned(dataclasses.replace(found, items=(*train[:1] * 35, *val)), recipe=recipe)
    assert config.recipe.passes == passes
    assert config.recipe.epochs == (109 if recipe == "paper" else 20)


def test_a_run_in_bf16_is_near_the_one_in_float32_and_answers_in_float32(videos, tmp_path, monkeypatch):
    """What the run says of its validation is what `eval` says of its model later, to the last digit."""
    lines = {}
    for has in (True, False):
        monkeypatch.setattr(devices, "cpu_has_bf16", lambda has=has: has)
        net, found, config, decisions = prepared(videos)
        assert next(d for d in decisions if d.code == "precision").value == ("bf16" if has else "fp32")
        train.train(net, found, config, tmp_path / str(has))
        lines[has] = (tmp_path / str(has) / "metrics.jsonl").read_text()
    bf16, fp32 = (json.loads(lines[has].splitlines()[-1]) for has in (True, False))
    assert bf16["train_loss"] != fp32["train_loss"]
    assert bf16["train_loss"] == pytest.approx(fp32["train_loss"], rel=2e-2)
    rows = tmp_path / "True" / "videos.csv"
    for has in (True, False):  # whatever the processor that evaluates
        monkeypatch.setattr(devices, "cpu_has_bf16", lambda has=has: has)
        figures = nlzoo.evaluate(tmp_path / "True" / "last", rows, device="cpu").figures
        assert figures["loss"] == pytest.approx(bf16["loss"], rel=1e-12)


def test_what_is_restored_lies_in_memory_as_it_did(videos, tmp_path):
    """Kernels and their moments have channels last, as clips do; a file has no such order."""
    net, found, config, _ = prepared(videos)
    train.train(net, found, config, tmp_path / "run")
    loaded = state.load(tmp_path / "run")
    job = step.prepare(network(found.classes), found, config, CPU)
    job.learner.restore(loaded)
    moments = [(p, value) for p, kept in job.learner.optimizer.state.items() for value in kept.values() if value.ndim]
    assert any(p.ndim == 5 and not p.is_contiguous() for p, _ in moments)
    for p, value in moments:
        assert value.stride() == p.stride()
    job.close()


def test_the_same_run_twice_gives_the_same_bits(videos, tmp_path):
    """Whoever decodes, and whether a probe, which is not trained from, was measured before."""
    files = []
    for name, workers, probe in (("a", 0, "none"), ("b", 1, "baseline")):
        net, found, config, _ = prepared(videos, probe)
        train.train(net, found, dataclasses.replace(config, workers=workers), tmp_path / name)
        files.append((tmp_path / name / "last" / "model.safetensors").read_bytes())
    assert files[0] == files[1]
    net, found, config, _ = prepared(videos, seed=1)
    train.train(net, found, config, tmp_path / "c")
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
    found = scanning.split(scanning.scan(several), "0.4", 0)
    assert found.multi_label and "even" in found.classes and any(not i.labels for i in found.items)
    net = model.set_head(network(), found.classes, True)
    config, _ = planned(found, epochs=2, batch=4, lr=1e-3, val="0.4", augment=augment)
    result = train.train(net, found, dataclasses.replace(config, workers=1), tmp_path / "run")
    assert result.top1 is None and 0 < result.map <= 1 and 0 < result.majority < 1
    best = checkpoint.load_model(tmp_path / "run" / "best")
    assert best.spec.multi_label
    figures = nlzoo.evaluate(best, tmp_path / "run" / "videos.csv", device="cpu").figures
    assert figures["threshold"] == best.spec.threshold and 0 < best.spec.threshold < 1
    again = scanning.scan(tmp_path / "run" / "videos.csv")
    assert again.multi_label and sorted(i.labels for i in again.items) == sorted(i.labels for i in found.items)


def test_mixed_and_repeated_views_train_and_repeat(videos, tmp_path):
    files = []
    for name in ("a", "b"):
        net, found, config, notes = prepared(videos, augment="strong")
        assert config.augment.repeats == 2 and "mixup=0.8" in next(d for d in notes if d.code == "augment").value
        lines = []
        train.train(net, found, config, tmp_path / name, Callbacks(lines.append))
        files.append((tmp_path / name / "last" / "model.safetensors").read_bytes())
        assert [line.clips for line in lines] == [12, 12]  # two views of each of six videos
    assert files[0] == files[1]


@pytest.mark.parametrize(
    "classes, asked, flip, words",
    [
        (("turn left", "turn right"), None, False, "names a side"),
        (("turn left", "x"), "flip=yes", True, "augment: light,colour=0.4,zoom_out=0.5 (given)"),
        (("open", "close"), None, True, "has a direction"),
        (("run", "sit"), None, True, "under 5,000"),
        (("run", "sit"), "strong,flip=no", False, "flip=no"),
    ],
)
def test_mirroring_follows_the_class_names(classes, asked, flip, words):
    changes, decision = plan.augmentation(asked, 100, classes)
    assert changes.flip is flip and words in str(decision)


def test_nan_stops_before_the_step_and_names_step_and_files(videos, tmp_path):
    net, found, config, _ = prepared(videos)
    net.layer4[1].conv2.weight.data[0, 0] = float("inf")
    before = {k: v.clone() for k, v in net.named_parameters()}
    with pytest.raises(DivergedError, match=r"at step 1, on .*\.mp4") as caught:
        train.train(net, found, config, tmp_path / "run")
    assert caught.value.exit_code == 7 and "--lr" in caught.value.hint
    assert all(torch.equal(before[k], v) for k, v in net.named_parameters())
    assert not (tmp_path / "run" / "best").exists()


def test_videos_that_vanish_during_the_run_stop_it(videos, tmp_path):
    net, found, config, _ = prepared(videos)
    gone = [dataclasses.replace(i, path=f"gone/{i.path}") if i.split == listing.TRAIN else i for i in found.items]
    with pytest.raises(VideoError, match="could not be read in epoch 1"):
        train.train(net, dataclasses.replace(found, items=tuple(gone)), config, tmp_path / "run")


def test_what_cannot_be_validated_stops_before_the_first_epoch(videos, tmp_path):
    net, found, config, _ = prepared(videos)
    with pytest.raises(VideoError, match="none of the 2 videos to evaluate on"):
        train.train(net, dataclasses.replace(found, root=tmp_path / "gone"), config, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


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
        optimizer = torch.optim.AdamW(
            recipe.parameter_groups(net, recipe_spec.Recipe(lr=0.01)), eps=1e-20, weight_decay=0
        )
        torch.manual_seed(seed)
        clip = torch.randn(2, 3, 4, 32, 32)
        torch.nn.functional.cross_entropy(net.train()(clip), torch.tensor([0, 1])).backward()
        before = net.layer1[0].conv2.weight.detach().clone()
        optimizer.step()
        moved.append((net.layer1[0].conv2.weight.detach() - before).abs().mean() / before.abs().mean())
    assert moved[0] > 0 and moved[1] == pytest.approx(moved[0].item(), rel=0.05)


def test_what_was_asked_is_kept_and_what_was_filled_in_is_said(videos):
    def decided(**options):
        dataset = scanning.split(scanning.scan(videos), "0.25", 0)
        config, decisions = planned(dataset, val="0.25", seed=0, **options)
        return config.recipe, {d.code: (d.value, d.reason) for d in decisions}

    recipe, decisions = decided(epochs=None, batch=None, lr=None)
    small = recipe_spec.Recipe(probe="baseline", ema=0.98)
    assert recipe == dataclasses.replace(small, epochs=19, passes=14)
    assert decisions["recipe"] == ("small", "6 training clips of 2 classes, under 50,000")
    assert decisions["lr"] == (5e-4, "0.0005 for 4 clips a step, by the square root of the batch")
    recipe, decisions = decided(epochs=7, batch=16, lr=None)
    assert recipe == dataclasses.replace(small, epochs=7, batch=16, lr=1e-3)  # the rate by the root of the batch
    assert decisions["epochs"] == (7, "given") and decisions["batch"] == (16, "given") and "passes" not in decisions
    recipe, decisions = decided(epochs=7, batch=16, lr="0.5")
    assert recipe == dataclasses.replace(small, epochs=7, batch=16, lr=0.5) and decisions["lr"] == (0.5, "given")
    recipe, decisions = decided(recipe="paper", epochs=7, batch=16, lr=None)
    assert recipe == recipe_spec.change_recipe(recipe_spec.RECIPES["paper"], epochs=7, batch=16)
    assert recipe.lr == pytest.approx(0.0025)
    assert list(decisions) == ["recipe", "augment"] and decisions["recipe"] == (str(recipe), "given")


# --- what the keys of a recipe do in a run


def trained(videos, folder, recipe, **asked):
    """`(network, lines)` of a run of that recipe."""
    net, found, config, _ = prepared(videos, recipe=recipe, batch=None, lr=None, **asked)
    lines = []
    train.train(net, found, config, folder, Callbacks(lines.append))
    return net, lines


def weights(folder, name="last"):
    return checkpoint.load_model(folder / name).state_dict()


def test_a_batch_in_parts_is_the_batch(videos, tmp_path):
    """With BN frozen and no dropout, since both depend on the batch; a block's own BN learns, so there is no block."""
    nets = []
    for parts in (1, 3):
        net, found, config, _ = prepared(
            videos, recipe=f"small,bn=frozen,dropout=0,batch=6,accumulate={parts}", batch=None, lr=None
        )
        plain = model.set_head(model.build(model_spec.ModelSpec("tiny", clip=net.spec.clip)), found.classes)
        plain.load_state_dict({k: v for k, v in net.state_dict().items() if ".nl" not in k})
        train.train(plain, found, config, tmp_path / str(parts))
        nets.append(weights(tmp_path / str(parts)))
    assert all(torch.allclose(nets[0][k], nets[1][k], atol=1e-5) for k in nets[0]) and nets[0]["fc.weight"].any()


def test_recomputed_activations_change_no_bit(videos, tmp_path):
    for name, more in (("a", ""), ("b", ",checkpointing=yes")):
        trained(videos, tmp_path / name, f"small,batch=3{more}")
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


def test_the_backbone_waits_until_it_is_unfrozen(videos, tmp_path):
    net, *_ = prepared(videos)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    after, _ = trained(videos, tmp_path / "all", "small,batch=3,unfreeze=0.99,epochs=1", epochs=None)
    moved = {k for k, v in after.named_parameters() if not torch.equal(v, before[k])}
    assert moved and all(k.startswith("fc.") or ".nl" in k for k in moved)
    after, _ = trained(videos, tmp_path / "late", "small,batch=3,unfreeze=0.4,epochs=2", epochs=None)
    assert not torch.equal(after.conv1.weight, before["conv1.weight"])


def test_a_run_that_gets_no_better_stops_early(videos, tmp_path):
    _, lines = trained(videos, tmp_path / "run", "small,batch=6,lr=1e-8,early_stop=2,epochs=9", epochs=None)
    best = max(lines, key=lambda line: (line.score, -line.loss)).epoch
    assert len(lines) == best + 2 < 9
    assert json.loads((tmp_path / "run" / "result.json").read_text())["epochs"] == len(lines)


def test_the_moving_average_is_what_is_kept(videos, tmp_path):
    net, _ = trained(videos, tmp_path / "run", "small,batch=3,ema=0.9")
    kept = weights(tmp_path / "run")
    assert not torch.equal(kept["fc.weight"], net.fc.weight) and not torch.equal(
        kept["bn1.running_mean"], net.bn1.running_mean
    )


@pytest.mark.parametrize("balance", ["sampler", "loss"])
def test_balanced_classes_are_trained_on_equally(videos, tmp_path, balance):
    net, found, config, _ = prepared(
        videos, recipe=f"small,batch=2,balance={balance},epochs=1", epochs=None, batch=None, lr=None
    )
    rare = [i for i in found.items if i.split == "train" and i.labels[0] == found.classes[0]][1:]
    found = dataclasses.replace(found, items=tuple(i for i in found.items if i not in rare))
    seen, real = [], step.train_step

    def watched(job, indices, *rest):
        seen.extend(job.train_clips.items[i].labels[0] for i in indices)
        return real(job, indices, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "train_step", watched)
        train.train(net, found, config, tmp_path / "run")
    assert seen.count(found.classes[0]) == (2 if balance == "sampler" else 1)


def test_precise_statistics_are_those_of_the_training_clips(videos, tmp_path):
    plain, precise = (
        trained(videos, tmp_path / name, f"paper,batch=3,epochs=1,precise_bn={n}", epochs=None)[0]
        for name, n in (("a", 0), ("b", 2))
    )
    assert torch.equal(plain.conv1.weight, precise.conv1.weight)
    assert not torch.equal(plain.bn1.running_var, precise.bn1.running_var) and precise.bn1.running_var.min() >= 0


def test_a_rehearsal_and_a_range_test_leave_the_network_alone(videos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net, found, config, _ = prepared(videos)
    net.spec = dataclasses.replace(net.spec, clip=view_spec.ClipSpec(2, None, 32))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    summary = dry_run.rehearse(net, found, config)
    assert summary.learns and summary.last_loss < 0.8 * summary.first_loss
    assert summary.bytes > 1e6 and summary.steps == 4
    rate = dry_run.find_rate(net, found, config)
    assert config.recipe.lr / 100 <= rate <= config.recipe.lr * 100
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items()) and not list(tmp_path.iterdir())


def test_a_long_clip_run_starts_from_a_short_one_with_fresh_blocks(videos, tmp_path):
    net, found, config, _ = prepared(videos)
    plain = model.set_head(model.build(model_spec.ModelSpec("tiny", clip=net.spec.clip)), found.classes)
    clip = torch.randn(1, 3, 12, 32, 32)
    expected = plain.eval()(clip)
    model.add_blocks(plain, "res4:1")
    assert torch.equal(plain.eval()(clip), expected)
    recipe.lengthen(plain, 12, 1)
    config, decisions = planned(found, fresh=False, frames=64, epochs=1)
    (bn,) = (d for d in decisions if d.code == "bn")
    assert config.recipe.bn == bn.value == "frozen" and bn.reason.startswith("long clips")
    train.train(plain, found, dataclasses.replace(config, workers=0), tmp_path / "run")
    assert zoo.read_spec(tmp_path / "run" / "last").clip.frames == 12
    with pytest.raises(UsageError, match="this one has some"):
        model.add_blocks(plain, "5")


# --- BatchNorm with one value of a channel: of one clip of one frame, 32x32, the last stage leaves one position


def of_one_frame(videos, **options):
    net, dataset, config, _ = prepared(videos, **({"lr": None, "batch": None, "epochs": 1} | options))
    net.spec = dataclasses.replace(net.spec, clip=view_spec.ClipSpec(1, None, 32))
    return net, dataset, config


@pytest.mark.parametrize("text", ["small,batch=1", "paper,batch=1,precise_bn=2"])
def test_a_step_that_batch_norm_cannot_take_is_refused_before_the_run(videos, tmp_path, text):
    net, dataset, config = of_one_frame(videos, recipe=text, epochs=None)
    for begin in (
        lambda: train.train(net, dataset, config, tmp_path / "run"),
        lambda: dry_run.rehearse(net, dataset, config),
        lambda: dry_run.find_rate(net, dataset, config),
        lambda: plan.memory(net, config, torch.device("cpu")),
    ):
        with pytest.raises(UsageError, match="BatchNorm would get one value per channel") as caught:
            begin()
        assert caught.value.hint == "--batch 2 or more, a larger --size or more --frames, or --recipe bn=frozen"
    assert not (tmp_path / "run" / "config.json").exists()


def test_with_batch_norm_frozen_one_clip_at_a_time_trains(videos, tmp_path):
    net, dataset, config = of_one_frame(videos, recipe="small,batch=1,bn=frozen")
    assert train.train(net, dataset, config, tmp_path / "run").epochs == 1


@pytest.mark.parametrize(
    "text", ["small,batch=4,accumulate=2", "small,batch=2,precise_bn=3", "small,batch=2,accumulate=2"]
)
def test_an_unreadable_clip_leaves_batch_norm_one_value_and_the_run_goes_on(videos, tmp_path, text):
    net, dataset, config = of_one_frame(videos, recipe=text)
    lost = scanning.items_in(dataset, listing.TRAIN)[0]
    items = [dataclasses.replace(i, path=f"gone/{i.path}") if i == lost else i for i in dataset.items]
    lines = []
    train.train(
        net, dataclasses.replace(dataset, items=tuple(items)), config, tmp_path / "run", Callbacks(lines.append)
    )
    assert (lines[0].clips, lines[0].failed) == (5, 1)
    assert all(bool(v.isfinite().all()) for v in weights(tmp_path / "run").values())


@pytest.mark.parametrize("text, clips", [("small,batch=4,accumulate=4", 2), ("small,batch=5,accumulate=5", 3)])
def test_parts_of_a_batch_are_as_large_as_batch_norm_needs_in_every_estimate(videos, text, clips):
    """The estimate of memory and the dry run computed with one clip, and ended in a traceback."""
    net, dataset, config = of_one_frame(videos, recipe=text)
    assert f"a step of {clips} clips" in plan.memory(net, config, torch.device("cpu")).reason
    assert dry_run.rehearse(net, dataset, config).bytes > 0


def test_one_clip_alone_takes_a_step_with_the_statistics_of_before(videos):
    net, dataset, config = of_one_frame(videos, recipe="small,batch=2,dropout=0")
    job = step.prepare(net, dataset, config, CPU)
    statistics = net.bn1.running_mean.clone()
    pixels = torch.zeros(1, 1, 1, 32, 32, 3, dtype=torch.uint8)
    before = net.fc.bias.clone()
    loss, count, failed = step.train_step(job, [0], pixels, [(1, "gone")])
    assert (count, failed) == (1, 1) and loss > 0 and not torch.equal(before, net.fc.bias)
    assert torch.equal(net.bn1.running_mean, statistics) and net.bn1.training


# --- a folder that is deleted meanwhile


@pytest.mark.parametrize("whole", [True, False])
def test_a_run_whose_folder_is_deleted_ends_with_a_sentence_and_writes_no_half_run(videos, tmp_path, whole):
    net, dataset, config, _ = prepared(videos)
    run = tmp_path / "run"

    def delete(epoch):
        shutil.rmtree(run)
        if not whole:
            run.mkdir()

    with pytest.raises(DiskError, match="was deleted or moved while the run worked in it") as caught:
        train.train(net, dataset, config, run, Callbacks(delete))
    assert caught.value.exit_code == 5 and (not run.exists() if whole else not list(run.iterdir()))


# --- what a run inherits, and finds


def test_a_run_from_a_trained_network_has_its_size(videos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    checkpoint.save_model("weights/images", model.build(model_spec.ModelSpec("tiny")))
    common = {"epochs": 1, "device": "cpu", "frames": 2, "batch": 8, "recipe": "probe=none"}
    first = nlzoo.finetune(videos, "images", name="first", size=48, **common)
    clip = zoo.read_spec(Path(first.model)).clip
    assert clip.size == 48
    nlzoo.finetune(videos, "first", name="second", **(common | {"frames": None}))
    assert zoo.read_spec(Path("runs/second/last")).clip == clip
    nlzoo.finetune(videos, "first", name="third", size=32, **common)
    assert zoo.read_spec(Path("runs/third/last")).clip.size == 32
    fresh = checkpoint.load_model("weights/images")
    plan.fit_clip(fresh, FinetuneOptions(), torch.device("cpu"))
    assert fresh.spec.clip.size == 112  # of a CPU, for a network that saw no video


def test_resume_without_a_name_finds_the_only_unfinished_run(videos, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def stop(epoch):
        if epoch.epoch:  # 0 is the probe's
            signal.raise_signal(signal.SIGTERM)

    def begun(name):
        common = {"epochs": 2, "device": "cpu", "frames": 2, "size": 32, "batch": 8, "recipe": "probe=none"}
        with pytest.raises(Stopped):
            nlzoo.finetune(videos, images, Callbacks(stop), name=name, **common)

    with pytest.raises(UsageError, match=r"there is no unfinished run runs/\S+-N to resume"):
        nlzoo.finetune(videos, resume=True, device="cpu")
    begun("other")
    assert nlzoo.finetune(videos, resume=True, device="cpu").run == "runs/other"
    begun("one")
    begun("two")
    with pytest.raises(UsageError, match="several runs in runs are unfinished: (one, two|two, one)"):
        nlzoo.finetune(videos, resume=True, device="cpu")
    assert nlzoo.finetune(videos, resume=True, name="two", device="cpu").resumed_from == 1


@pytest.mark.parametrize(
    "options",
    [
        {"recipe": "papr"},
        {"augment": "light,x=1"},
        {"val": "inf"},
        {"val": "nan"},
        {"val": "7/5"},
        {"val": ""},
        {"lr": "fast"},
        {"lr": "nan"},
        {"lr": -1},
        {"epochs": 0},
        {"batch": 0},
        {"frames": 0},
        {"stride": 0},
        {"size": 8},
        {"fps": 0.0},
        {"seed": -1},
        {"seeds": 0},
        {"device": "meta"},
        {"device": "nowhere"},
        {"nl": "res4:1"},
        {"track": "nothing"},
        {"decoder": "nothing"},
        {"name": "../up"},
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_before_any_video_is_looked_for(images, tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError):
        nlzoo.finetune(tmp_path / "nowhere", images, **({"device": "cpu"} | options))
    with pytest.raises(VideoError, match="does not exist"):  # the negative control
        nlzoo.finetune(tmp_path / "nowhere", images, device="cpu")


def test_few_validation_videos_are_warned_of(videos, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = []
    options = {"epochs": 1, "device": "cpu", "frames": 2, "size": 32, "batch": 8, "recipe": "probe=none"}
    nlzoo.finetune(videos, images, Callbacks(warn=said.append), **options)
    (event,) = (event for event in said if event.code == "too_few")
    assert event.values == {"videos": 2, "groups": 1}


@pytest.mark.parametrize("kind", ["baseline", "start"])
def test_a_probe_stands_as_epoch_0_and_is_kept_where_nothing_beats_it(videos, tmp_path, kind):
    """At a rate of almost nothing a head from zero stays there, and one from the probe stays the probe."""
    net, found, config, _ = prepared(videos, kind, lr=1e-8, recipe="small,ema=0.9")
    alone = network(found.classes)
    fitted = linear.fit_head(alone, found, torch.device("cpu"))
    lines = []
    result = train.train(net, found, config, tmp_path / "run", Callbacks(lines.append))
    kept = run_folder.read_epochs(tmp_path / "run")
    assert lines == kept and [line.epoch for line in kept] == [0, 1, 2]
    figures = metrics.brief(fitted.predictions.scores, fitted.predictions.items, found.classes, False)
    assert (kept[0].top1, kept[0].loss) == (figures["top1"], figures["loss"]) and kept[0].clips == 6
    assert result.epochs == 2 and result.probe == kept[0].top1
    best = run_folder.best_epoch(kept)
    assert (result.best_epoch, result.top1) == (best.epoch, best.top1)
    state = checkpoint.load_model(tmp_path / "run" / "best").state_dict()
    equal = all(torch.equal(state[name], value) for name, value in alone.state_dict().items())
    assert equal == (best.epoch == 0)
    weight = checkpoint.load_model(tmp_path / "run" / "last").fc.weight
    assert torch.allclose(weight, alone.fc.weight if kind == "start" else torch.zeros(()), atol=1e-4)


def test_a_start_that_was_killed_before_its_first_checkpoint_starts_again(videos, tmp_path):
    net, found, config, _ = prepared(videos, "baseline", epochs=1, recipe="small")

    def stop(event):
        if event.phase == "features":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train.train(net, found, config, tmp_path / "run", Callbacks(step=stop))
    assert (tmp_path / "run" / "config.json").is_file()
    result = train.train(network(found.classes), found, config, tmp_path / "run")
    assert [line.epoch for line in run_folder.read_epochs(tmp_path / "run")] == [0, 1] and result.resumed_from is None


def test_a_signal_while_the_head_is_fitted_stops_at_once(videos, tmp_path):
    net, found, config, _ = prepared(videos, "baseline", epochs=1, recipe="small")

    def stop(event):
        if event.phase == "features" and event.done == 1:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Stopped, match="stopped by SIGTERM after step 0 of 2; all is saved in") as stopped:
        train.train(net, found, config, tmp_path / "run", Callbacks(step=stop))
    assert stopped.value.exit_code == 143


def test_of_long_videos_a_clip_is_a_window_and_several_are_averaged(tmp_path):
    """Frames spread over ten seconds miss what moves; short videos, a chosen stride and trained networks stay."""
    items = [listing.Item(f"{n}.mp4", (str(n % 2),), seconds=n) for n in (2, 12, 13)]
    found = scanning.Dataset(tmp_path, tuple(items), (), 0)
    short = dataclasses.replace(found, items=(items[0], items[0], items[2]))

    def fitted(dataset=found, trained=False, **options):
        net = network()
        net.spec = dataclasses.replace(net.spec, classes=("x", "y") if trained else (), clip=view_spec.ClipSpec(8))
        return plan.fit_span(net, FinetuneOptions(**options), dataset), net.spec.clip

    decision, clip = fitted()
    assert (clip.stride, clip.fps, clip.clips) == (8, 30, 5) and clip.frames == 8
    assert str(decision).startswith("clip: windows of 2.1 s; 5 of a video, averaged (half of the videos are 12 s")
    for case in (fitted(dataset=short), fitted(stride=4), fitted(trained=True)):
        assert case[0] is None and (case[1].stride, case[1].clips) == (None, 1)


def test_who_names_no_start_is_told_of_kinetics_and_who_says_imagenet_is_not(tmp_path, monkeypatch):
    """The default is inflated once; later it is found by the same word."""
    monkeypatch.chdir(tmp_path)
    made = model.inflate("tiny", None, model_spec.Inflation(), "res4:1", download.backbone_weights)
    monkeypatch.setattr(model, "inflate", lambda *words, **more: made)  # the network that would be fetched
    monkeypatch.setattr(zoo, "default_name", lambda spec: "nl5-i3d-resnet50.tag")
    events = []
    say = Callbacks(log=events.append)
    for start, expected in ((None, ["kinetics_first", "inflating"]), ("imagenet", ["inflating"]), ("imagenet", [])):
        if start is None or expected:
            shutil.rmtree("weights", ignore_errors=True)
        folder, _ = plan.starting_model(start, say)
        assert folder == Path("weights/nl5-i3d-resnet50.tag")
        assert [event.code for event in events] == [*expected, "starting_from"]
        values = events[0].values
        if start is None:
            assert values["name"].startswith("nl5-i3d-r50-8x8.") and "nc" not in values["licence"]
        events.clear()
