"""A 2-D network of timm fine-tuned frame by frame: the steps of a plain loop, C2D where it is a ResNet, and a run."""

import json

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub import constants
from safetensors.torch import save_file
from test_recipe import by_name, step
from torch import nn

from nlzoo.apps import draw
from nlzoo.core import view_spec
from nlzoo.core.errors import UsageError
from nlzoo.core.model_spec import Inflation, ModelSpec
from nlzoo.core.recipe_spec import Recipe, parse_recipe
from nlzoo.networks import checkpoint, model
from nlzoo.training import evaluate, finetune, plan, recipe
from nlzoo.training.callbacks import Callbacks
from nlzoo.training.options import FinetuneOptions

VIT, BN = "test_vit", "test_efficientnet"  # timm's smallest; of a transformer no layer is a BatchNorm
CPU = torch.device("cpu")


def network(name, arch="frames", frames=3, size=32, stream="rgb"):
    clip = view_spec.ClipSpec(frames, None, size).of_stream(stream)
    return model.set_head(model.build(ModelSpec(name, Inflation(arch), clip=clip)), ("a", "b", "c"))


@pytest.mark.parametrize("name", [VIT, BN])
def test_a_step_is_that_of_a_plain_loop_over_timms_own_network(name, seed):
    net = network(name).double()
    theirs = model.import_timm().create_model(name, num_classes=0, **{"dynamic_img_size": True} if name == VIT else {})
    head = nn.Linear(theirs.num_features if name == VIT else theirs.head_hidden_size, 3)
    nn.init.zeros_(head.weight), nn.init.zeros_(head.bias)
    theirs, head = theirs.double().train(), head.double()
    theirs.load_state_dict(net.backbone.state_dict())
    how = Recipe(lr=1e-2)
    groups = [{"params": [head.weight], "lr": 3e-2}, {"params": [head.bias], "lr": 3e-2, "weight_decay": 0.0}]
    for key, p in theirs.named_parameters():
        if p.ndim == 1 or key in ("cls_token", "pos_embed", "reg_token"):
            groups.append({"params": [p], "lr": 1e-2, "weight_decay": 0.0})
        else:
            groups.append({"params": [p], "lr": 1e-2 * p.detach().float().square().mean().sqrt().item() / 0.14})
    reference, ours = torch.optim.AdamW(groups, weight_decay=0.05), recipe.optimizer(net, how)
    for _ in range(3):
        clips, target = torch.randn(4, 3, 3, 32, 32).double(), torch.randint(3, (4,))
        recipe.train_mode_(net, how)
        step(net, how, ours, clips, target)
        frames = torch.stack([clips[n, :, t] for n in range(4) for t in range(3)])
        logits = head(theirs(frames)).view(4, 3, 3).mean(1)  # TSN: the consensus of the segments
        reference.zero_grad()
        F.cross_entropy(logits, target, label_smoothing=0.1).backward()
        reference.step()
    own = net.backbone.state_dict()
    for key, value in theirs.state_dict().items():
        assert torch.allclose(own[key], value, atol=1e-7), key
    assert torch.allclose(net.fc.weight, head.weight, atol=1e-7) and net.fc.weight.abs().max() > 1e-3


@pytest.mark.parametrize("words", ["small,layer_decay=0.5,checkpointing=yes", "paper,lr=0.1,freeze=backbone"])
def test_where_the_network_is_a_resnet_it_is_c2d(words, seed):
    how = parse_recipe(words)
    flat, video = network("tiny").double(), network("tiny", "c2d").double()
    rows = {key: value.unsqueeze(2) if value.ndim == 4 else value for key, value in flat.backbone.state_dict().items()}
    video.load_state_dict(rows | {f"fc.{key}": value for key, value in flat.fc.state_dict().items()})
    groups = [by_name(net, recipe.parameter_groups(net, how)) for net in (flat, video)]
    assert {key.removeprefix("backbone."): value for key, value in groups[0].items()} == groups[1]
    for net in (flat, video):
        recipe.checkpoint_activations_(net, how.checkpointing)
        recipe.train_mode_(net, how)
        recipe.staged(net, how, 0.0)
    ours, theirs = recipe.optimizer(flat, how), recipe.optimizer(video, how)
    for _ in range(3):
        clips, target = torch.randn(4, 3, 3, 32, 32).double(), torch.randint(3, (4,))
        step(flat, how, ours, clips, target)
        step(video, how, theirs, clips, target)
    for key, value in video.state_dict().items():
        own = flat.state_dict()[key if key.startswith("fc.") else f"backbone.{key}"]
        assert torch.allclose(own, value.squeeze(2) if value.ndim == 5 else value, atol=1e-9), key
    if how.optimizer == "adamw":
        estimates = [recipe.memory_estimate(net.float(), flat.spec.clip, 2, how) for net in (flat, video)]
        assert 0.8 < estimates[0] / estimates[1] < 1.2


def test_batch_norm_gets_as_many_values_as_in_c2d_and_without_one_a_clip_alone_will_do():
    for frames, size in ((1, 32), (2, 32), (1, 64)):
        flat, video = (network("tiny", arch, frames, size) for arch in ("frames", "c2d"))
        assert recipe.values_per_channel(flat) == recipe.values_per_channel(video) == (1 if frames * size == 32 else 2)
        assert recipe.min_clips(flat, Recipe()) == recipe.min_clips(video, Recipe())
    assert recipe.values_per_channel(network(VIT, frames=1)) == 2
    with pytest.raises(UsageError, match="BatchNorm would get one value"):
        recipe.check_batch_norm(network("tiny", frames=1), Recipe(batch=1), 1)


def test_what_such_a_network_does_not_have_is_a_sentence():
    net = network(VIT)
    for options, words in (
        ({"freeze": "res4"}, "freeze=res4: test_vit on single frames has no stages res2 to res5"),
        ({"recipe": "small,freeze=res2"}, "freeze=res2: test_vit"),
        ({"nl": "5"}, "cannot have non-local blocks: it is test_vit on single frames"),
        ({"size": 50}, "test_vit cannot compute frames of 50 pixels"),
    ):
        with pytest.raises(UsageError, match=words):
            plan.fit_clip(net, FinetuneOptions(**options), CPU)
    with model.shapes_only():
        pool, inception = (
            model.build(ModelSpec(name, Inflation("frames"))) for name in ("poolformer_s12", "inception_v3")
        )
    with pytest.raises(UsageError, match="layer_decay is not for poolformer_s12"):
        recipe.refuse_for_frames(pool, Recipe(layer_decay=0.7))
    with pytest.raises(UsageError, match="checkpointing is not for inception_v3"):
        recipe.refuse_for_frames(inception, Recipe(checkpointing=True))
    recipe.refuse_for_frames(inception, Recipe(layer_decay=0.7, freeze="backbone"))
    with pytest.raises(UsageError, match="bn=sync is not for inception_v3"):
        recipe.check_batch_norm(inception, Recipe(bn="sync"), 8)


@pytest.mark.parametrize("stream, share", [("flow", 1 / 3), ("audio", 1.0)])
def test_the_first_kernel_of_another_stream_is_made_of_the_colours(stream, share, seed):
    net = network(BN)
    kernel = net.backbone.conv_stem.weight.detach().clone()
    after = {key: value.clone() for key, value in net.state_dict().items() if "conv_stem" not in key}
    model.set_stream(net, stream)
    channels = {"flow": 2, "audio": 1}[stream]
    own = net.state_dict()
    assert all(torch.equal(own[key], value) for key, value in after.items()) and net.spec.clip.stream == stream
    assert torch.allclose(
        own["backbone.conv_stem.weight"], kernel.sum(1, keepdim=True).mul(share).repeat(1, channels, 1, 1)
    )
    again = model.build(net.spec)
    again.load_state_dict(own)
    clip = torch.randn(1, channels, 3, 32, 32)
    assert torch.equal(again(clip), net.eval()(clip))


# --- a run


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Drawn videos, and a run from a network by its name, whose weights are in the Hub's cache."""
    folder = tmp_path_factory.mktemp("frames")
    draw.write_videos(folder / "v", draw.CLASSES[:2], 3, seed=3, frames=8, size=(32, 48))
    cached = folder / "hub" / f"models--timm--{VIT}.r160_in1k"
    (cached / "snapshots" / "abc").mkdir(parents=True), (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    save_file(model.import_timm().create_model(VIT).state_dict(), cached / "snapshots" / "abc" / "model.safetensors")
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
        result = finetune.finetune(folder / "v", VIT, Callbacks(log=said.append), runs=folder / "runs", **ASKED)
    return folder, result, said


ASKED = {"frames": 3, "size": 32, "epochs": 1, "workers": 0, "device": "cpu"}


def test_a_network_is_fine_tuned_by_its_name_and_used_as_any_other(work):
    folder, result, said = work
    settings = json.loads((folder / "runs/v-1/config.json").read_text())
    assert settings["train"]["start"] == settings["model"]["backbone"] == f"{VIT}.r160_in1k"
    assert "bn" not in {decision["code"] for decision in settings["decisions"]}  # there is none
    assert [event.values["backbone"] for event in said if event.code == "on_frames"] == [f"{VIT}.r160_in1k"]
    assert result.probe is not None and not (folder / "weights").exists()
    last = checkpoint.load_model(folder / "runs/v-1/last")
    assert last.spec.clip.mean == (0.5, 0.5, 0.5) and (last.spec.clip.frames, last.spec.clip.size) == (3, 32)
    start = model.build(last.spec).state_dict()
    moved = [key for key, value in last.state_dict().items() if not torch.equal(value, start[key])]
    assert len(moved) > 20 and result.last_top1 is not None
    done = evaluate.evaluate(folder / "runs/v-1", folder / "runs/v-1/videos.csv", device="cpu").figures
    line = json.loads((folder / "runs/v-1/metrics.jsonl").read_text().splitlines()[result.best_epoch])
    assert done["loss"] == pytest.approx(line["loss"], abs=1e-5)
    card = (folder / "runs/v-1/last/README.md").read_text()
    assert "an image network of timm, fine-tuned on the frames of videos, and a linear head" in card


def test_its_run_starts_one_of_flow_whose_videos_are_known(work):
    folder, _, _ = work
    finetune.finetune(folder / "v", folder / "runs/v-1", stream="flow", name="flow", runs=folder / "runs", **ASKED)
    done = evaluate.evaluate(folder / "runs/flow", folder / "v", device="cpu").figures
    assert done["trained_on"] == 4 and checkpoint.load_model(folder / "runs/flow/best").spec.clip.channels == 2


def test_it_sees_no_windows_of_a_long_video():
    """Which are for movements."""
    from nlzoo.videos import listing, scanning

    items = tuple(listing.Item(f"{n}.mp4", ("a",), seconds=20.0, frames=600) for n in range(4))
    dataset = scanning.Dataset(".", items, (), 0)
    fresh = [model.build(ModelSpec("tiny", Inflation(arch))) for arch in ("frames", "c2d")]
    spans = [plan.fit_span(net, FinetuneOptions(), dataset) for net in fresh]
    assert spans[0] is None and fresh[0].spec.clip.stride is None and spans[1] is not None
