"""Torchvision's GoogLeNet inflated: nothing of it is lost, and it is found where a ResNet has its residual blocks."""

import dataclasses
import json
import warnings

import pytest
import torch

from nlzoo.apps import explain, export, plain
from nlzoo.core.errors import UsageError, WeightsError
from nlzoo.core.model_spec import Inflation
from nlzoo.networks import card, checkpoint, describe, download, googlenet, model, pretrained, vision
from nlzoo.networks.folding import fold_bn
from nlzoo.networks.layers import NonLocalBlock
from nlzoo.training import recipe as recipes

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def theirs():
    """torchvision's own, as its published weights are loaded: with classifiers at its side, and mapping its input."""
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = vision.import_googlenet()(num_classes=7, aux_logits=True, transform_input=True, init_weights=False).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    return net


@pytest.fixture(scope="module")
def file(theirs, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "googlenet-1378be20.pth"
    torch.save(theirs.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def made(file):
    return model.inflate("googlenet", file, Inflation(), "inception4e:1,inception3b", lambda repo: None, frames=4)


@torch.no_grad()
def in_their_numbers(images):
    """Images that are normalised by 0.5 as those by ImageNet's numbers, which `transform_input` maps back."""
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return ((images * 0.5 + 0.5) - mean) / std


def test_it_is_torchvisions_network_frame_by_frame(theirs, made):
    net, checks = made
    assert checks.nonlocal_identical and checks.still_clip_error < 1e-5 and checks.moving_clip_error < 1e-5
    clip = torch.randn(2, 3, 5, 70, 80)
    with torch.no_grad():
        expected = torch.stack([theirs(in_their_numbers(frame)) for frame in clip.unbind(2)]).mean(0)
        assert model.relative_error(net(clip), expected) < 1e-5
    assert (net.spec.clip.mean, net.spec.clip.std, net.spec.num_outputs) == ((0.5,) * 3, (0.5,) * 3, 7)


def test_mean_keeps_a_still_clip_and_only_that(theirs, file):
    net, checks = model.inflate("googlenet", file, Inflation(init="mean"), "none", lambda repo: None, frames=4)
    assert checks.still_clip_error < 1e-5 and checks.moving_clip_error is None and checks.nonlocal_identical is None
    clip = torch.randn(1, 3, 4, 64, 64)
    with torch.no_grad():
        still = clip[:, :, :1].expand(-1, -1, 4, -1, -1)
        assert model.relative_error(net(still), theirs(in_their_numbers(still[:, :, 0]))) < 1e-5
        moving = torch.stack([theirs(in_their_numbers(frame)) for frame in clip.unbind(2)]).mean(0)
        assert model.relative_error(net(clip), moving) > 1e-3


def test_every_3x3_and_the_stem_see_time_and_no_1x1(made):
    net, _ = made
    convs = {n: m for n, m in net.named_modules() if isinstance(m, torch.nn.Conv3d) and ".nl" not in n}
    assert len(convs) == 57 and convs["conv1.conv"].kernel_size == (7, 7, 7)
    assert {(m.kernel_size[0], m.stride[0]) for m in convs.values() if m.kernel_size[1] == 3} == {(3, 1)}
    assert {m.kernel_size for m in convs.values() if m.kernel_size[1] == 1} == {(1, 1, 1)}
    flat = model.inflate_(model.plain_resnet("googlenet"), Inflation("c2d"))
    assert {m.kernel_size[0] for m in flat.modules() if isinstance(m, torch.nn.Conv3d)} == {1}


def in_time(frames, size, stride):
    """Of a list of maps of frames, the maxima over so many of them; what hangs over the end is cut off."""
    firsts = range(0, len(frames), stride)
    return [torch.stack(frames[first : first + size]).amax(0) for first in firsts]


@torch.no_grad()
def naive_i3d(net, clip):
    """Logits of torchvision's modules as I3D whose kernels are centred: frame by frame, but for strides and pools."""
    frames = [in_their_numbers(frame) for frame in clip.unbind(2)[::2]]  # the stem's stride
    frames = [net._transform_input(frame) for frame in frames]
    frames = [net.maxpool2(net.conv3(net.conv2(net.maxpool1(net.conv1(frame))))) for frame in frames]
    for stage, pool, size in (("3ab", "maxpool3", 3), ("4abcde", "maxpool4", 2), ("5ab", None, 0)):
        for letter in stage[1:]:
            part = net.get_submodule(f"inception{stage[0]}{letter}")
            pooled = [part.branch4[0](frame) for frame in frames]
            pooled = [torch.stack(pooled[max(t - 1, 0) : t + 2]).amax(0) for t in range(len(frames))]
            frames = [
                torch.cat([part.branch1(x), part.branch2(x), part.branch3(x), part.branch4[1](y)], 1)
                for x, y in zip(frames, pooled)
            ]
        if pool:
            frames = in_time([getattr(net, pool)(frame) for frame in frames], size, 2)
    return net.fc(torch.stack(frames).mean((0, 3, 4)))


def test_its_own_temporal_pools_are_those_of_i3d(theirs, file):
    net, checks = model.inflate("googlenet", file, Inflation(pools="paper"), "none", lambda repo: None, frames=8)
    assert checks.still_clip_error < 1e-5 and checks.moving_clip_error < 1e-5 and checks.pools_change > 1e-3
    clip = torch.randn(2, 3, 8, 64, 72)
    with torch.no_grad():
        assert model.relative_error(net(clip), naive_i3d(theirs, clip)) < 1e-5
        assert (
            net.forward_features(clip).shape[2] == 1 and net.forward_features(clip.repeat(1, 1, 4, 1, 1)).shape[2] == 4
        )
        for folded in (plain.folded(net)[0], fold_bn(net)):
            assert model.relative_error(folded(clip), net(clip)) < 1e-5
    rows = {row["stage"]: row["time"] for row in describe.describe(net)["stages"]}
    assert "stride 2" in rows["stem"] and "stride 2" in rows["res4"] and "2x2x2 max-pool" in rows["res5"]
    assert recipes.lengthen(net, 3, None).spec.clip.frames == 3
    with pytest.raises(UsageError, match="2 frames are too few") as error:
        recipes.lengthen(net, 2, None)
    assert error.value.hint == "--frames 3 is the least"


def test_blocks_go_behind_named_modules(made):
    net, _ = made
    assert [(n.stage, n.blocks) for n in net.spec.non_local] == [("res3", (1,)), ("res4", (4,))]
    blocks = {n: m.channels for n, m in net.named_modules() if isinstance(m, NonLocalBlock)}
    assert blocks == {"layer2.nl1": 480, "layer3.nl4": 832}
    assert googlenet.stage_blocks("Inception4e, inception3a,inception4b:1") == "res3@0,res4@1,4"
    for other in ("5", "res4:2", "inception6a", "inception4f", "inception3c", "none"):
        assert googlenet.stage_blocks(other) == other
    with pytest.raises(UsageError, match="inception6a"):
        model.inflate("googlenet", None, Inflation(), "inception6a", lambda repo: None)
    with pytest.raises(UsageError, match="temporal pools of its own paper, or none"):
        model.inflate("googlenet", None, Inflation(pools="8x8"), "none", lambda repo: None)
    with pytest.raises(UsageError) as error:
        model.inflate("googlnet", None, Inflation(), "none", lambda repo: None)
    assert "googlenet" in error.value.hint
    with pytest.raises(UsageError, match="its one tag|no weights"):
        model.inflate("googlenet.a1_in1k", None, Inflation(), "none", lambda repo: None)


def test_a_model_folder_keeps_it_and_says_what_it_is(made, tmp_path):
    net, checks = made
    text = card.body(net.spec, None, checks.summary())
    folder = checkpoint.save_model(tmp_path / "net", net, readme=text)
    again = checkpoint.load_model(folder)
    clip = torch.randn(1, 3, 2, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(clip), net(clip)) and again.spec == net.spec
        assert model.relative_error(fold_bn(net)(clip), net(clip)) < 1e-5
    assert "2-D GoogLeNet (Inception-V1) inflated" in text and "3x3x3 kernels" in text
    facts = describe.describe(net)
    rows = {row["stage"]: row for row in facts["stages"]}
    assert [rows[f"res{n}"]["residual_blocks"] for n in (2, 3, 4, 5)] == [2, 2, 5, 2]
    assert (
        rows["res4"]["time"] == "3x3x3 in 0 1 2 3 4"
        and rows["res4"]["output"][0] == 832
        and "7x7x7" in rows["stem"]["time"]
        and "3x3x3" in rows["res5"]["time"]
    )
    json.dumps(facts)


def test_streams_recipes_and_pictures_find_their_parts(made):
    net = model.build(dataclasses.replace(made[0].spec, clip=dataclasses.replace(made[0].spec.clip, size=64)))
    rates = recipes.layer_rates(net, 0.5)
    assert (
        rates["fc.weight"] == 1
        and rates["layer4.1.branch1.conv.weight"] == 0.5
        and rates["conv1.conv.weight"] == 2**-12
    )
    model.set_stream(net, "flow")
    assert net.conv1.conv.weight.shape[1] == 2 and model.build(net.spec).conv1.conv.in_channels == 2
    clip = torch.randn(2, 2, 4, 64, 64, requires_grad=True)
    net.train().set_grad_checkpointing()
    net.drop_rate = 0.0
    net(clip).square().mean().backward()
    assert all(p.grad is not None for p in net.conv1.parameters())
    frames = torch.randint(256, (4, 64, 64, 2), dtype=torch.uint8)
    shown = explain.explain_clip(net.eval(), frames, CPU)
    assert shown.evidence.shape == (4, 64, 64) and [block.name for block in shown.blocks] == [
        "res3 after 1",
        "res4 after 4",
    ]


def test_exports_are_the_same_network(made, tmp_path):
    net, _ = made
    rebuilt, folded = plain.folded(net)
    clip = torch.randn(1, 3, 3, 64, 72)
    with torch.no_grad():
        assert model.relative_error(rebuilt(clip), net(clip)) < 1e-5 and folded == 59
    small = dataclasses.replace(net.spec, clip=dataclasses.replace(net.spec.clip, frames=2, size=64))
    net.spec, before = small, net.spec
    try:
        done = export.export(net, "onnx", tmp_path / "onnx")
        assert done.error < 1e-4
        with pytest.raises(UsageError, match="timm has none"):
            export.export(net, "timm", tmp_path / "timm")
    finally:
        net.spec = before


def test_weights_that_do_not_fit_are_a_sentence(theirs, tmp_path):
    tensors = {key: value for key, value in theirs.state_dict().items() if not key.startswith("inception4a")}
    torch.save(tensors, tmp_path / "less.pth")
    with pytest.raises(WeightsError, match="does not fit googlenet"):
        model.load_backbone("googlenet", tmp_path / "less.pth", lambda repo: None)


def test_its_weights_are_on_the_list_with_their_hash(monkeypatch, tmp_path):
    (entry,) = (b for b in pretrained.backbones() if b.name == "googlenet.tv_in1k")
    assert entry.url.endswith(f"googlenet-{entry.hash.removeprefix('sha256:')}.pth") and entry.licence
    asked = []
    monkeypatch.setattr(pretrained, "fetch", lambda start: asked.append(start) or (tmp_path / "file", ""))
    assert download.backbone_weights(googlenet.SOURCE) == tmp_path / "file" and asked == [entry]
