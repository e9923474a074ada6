"""Inflation against the 2-D network itself: a still clip for every init, a moving clip frame by frame for centre."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

from nlzoo import inflate, model, spec
from nlzoo.errors import UsageError
from nlzoo.model import plain_resnet, relative_error


def lively(net):
    """Random BN statistics and affine: at their defaults a wrong BN conversion would not show."""
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.running_mean, -0.2, 0.2)
            nn.init.uniform_(m.running_var, 0.5, 1.5)
            nn.init.uniform_(m.weight, 0.5, 1.0)
            nn.init.uniform_(m.bias, -0.2, 0.2)
    return net.eval()


@pytest.fixture(params=["tiny", "resnet26d", "resnet14t"], scope="module")
def flat(request):
    return lively(plain_resnet(request.param))


@pytest.mark.parametrize("arch, init", [("c2d", "centre"), ("i3d", "centre"), ("i3d", "mean"), ("i3d-333", "centre"), ("i3d-333", "mean")])
@torch.no_grad()
def test_equals_the_2d_network(flat, arch, init, seed):
    net = inflate.inflate_(copy.deepcopy(flat), spec.Inflation(arch, init))
    moving = torch.randn(2, 3, 3, 48, 40)
    still = moving[:, :, 2:3].expand(-1, -1, 3, -1, -1)
    assert relative_error(net(still), flat(still[:, :, 0])) < 2e-5
    by_frame = torch.stack([flat(frame) for frame in moving.unbind(2)]).mean(0)
    if init == "centre" or arch == "c2d":
        assert relative_error(net(moving), by_frame) < 2e-5
    else:
        assert relative_error(net(moving), by_frame) > 1e-3  # the negative control: mean mixes frames


@torch.no_grad()
def test_zero_padding_breaks_a_still_clip_unless_centred(seed):
    flat = lively(plain_resnet("resnet18"))
    clip = torch.randn(1, 3, 1, 64, 64).expand(-1, -1, 8, -1, -1)
    errors = {init: relative_error(inflate.inflate_(copy.deepcopy(flat), spec.Inflation("i3d", init, "zeros"))(clip),
                                   flat(clip[:, :, 0])) for init in spec.INITS}
    assert errors["mean"] > 1e-2 and errors["centre"] < 2e-5


def test_keys_stay_and_only_kernels_grow():
    flat = plain_resnet("resnet50")
    before = {k: v.shape for k, v in flat.state_dict().items()}
    net = inflate.inflate_(copy.deepcopy(flat), spec.Inflation())
    after = {k: v.shape for k, v in net.state_dict().items()}
    assert list(before) == list(after)
    grown = {k for k in before if before[k] != after[k]}
    assert grown == {n + ".weight" for n, m in flat.named_modules() if isinstance(m, nn.Conv2d)}


def test_the_pattern_of_temporal_kernels_is_the_references():
    net = plain_resnet("resnet50")
    plan = inflate.temporal_plan(net, spec.Inflation("i3d"))
    taps = {stage: [plan.get(f"{layer}.{i}.conv1", (1, 1))[0] // 2 for i in range(inflate.depths(net)[stage])]
            for stage, layer in inflate.LAYER.items()}
    assert taps == {"res2": [1, 1, 1], "res3": [1, 0, 1, 0], "res4": [1, 0, 1, 0, 1, 0], "res5": [0, 1, 0]}
    assert plan["conv1"] == (5, 1)


@pytest.mark.parametrize("arch, pools, frames, params, macs", [
    # reference, section 4; 400 classes, 224 pixels, multiply-adds in G
    ("c2d", "paper", 32, 24.33, 20.44), ("c2d", "8x8", 8, 24.33, 19.49), ("i3d", "paper", 32, 28.04, 33.13),
    ("i3d", "8x8", 8, 28.04, 28.41), ("i3d-333", "paper", 32, 33.43, 39.09),
])
def test_sizes_are_the_references(arch, pools, frames, params, macs):
    with torch.device("meta"):  # no weights are needed to count them
        net = model.build(spec.ModelSpec("resnet50", spec.Inflation(arch, pools=pools), num_outputs=400))
        bare = model.cost(net, spec.ClipSpec(frames=frames))
        net.spec = dataclasses.replace(net.spec, non_local=spec.parse_nl("5", inflate.depths(net)))
        inflate.insert_nonlocal_(net, net.spec.non_local)
        full = model.cost(net, spec.ClipSpec(frames=frames))
    assert (round(bare[0] / 1e6, 2), round(bare[1] / 1e9, 2)) == (params, macs)
    assert abs((full[0] - bare[0]) / 1e6 - 7.36) < 0.011 and abs((full[1] - bare[1]) / 1e9 - 8.13) < 0.011  # NL5 C2D minus C2D


def test_dtype_and_mode_are_kept():
    net = inflate.inflate_(plain_resnet("tiny").to(torch.bfloat16).train(), spec.Inflation())
    assert all(m.training for m in net.modules())
    assert all(p.dtype is torch.bfloat16 for p in net.parameters())
    assert not any(m.training for m in inflate.inflate_(plain_resnet("tiny").eval(), spec.Inflation()).modules())


# --- non-local blocks


def test_a_fresh_block_leaves_output_bit_identical_and_learns_at_the_first_step(seed):
    before = inflate.inflate_(lively(plain_resnet("tiny")), spec.Inflation())
    net = copy.deepcopy(before)
    inflate.insert_nonlocal_(net, [spec.NonLocal("res3", (0, 1)), spec.NonLocal("res4", (1,))])
    clip = torch.randn(2, 3, 4, 64, 64)
    with torch.no_grad():
        assert torch.equal(net(clip), before(clip))
        assert torch.equal(copy.deepcopy(net).train()(clip), copy.deepcopy(before).train()(clip))
    net.train()(clip).square().sum().backward()
    assert all(net.get_submodule(path).bn.weight.grad.abs().max() > 0 for path in ("layer2.nl0", "layer2.nl1", "layer3.nl1"))
    assert list(net.layer2._modules) == ["0", "nl0", "1", "nl1"]


@torch.no_grad()
def test_blocks_go_into_a_plain_image_network_too(seed):
    flat = lively(plain_resnet("tiny"))
    net = inflate.insert_nonlocal_(copy.deepcopy(flat), [spec.NonLocal("res4", (0,))])
    image = torch.randn(2, 3, 64, 64)
    assert torch.equal(net(image), flat(image))
    assert "layer3.nl0.theta.weight" in net.state_dict()


def test_a_block_that_cannot_be_is_refused():
    net = inflate.inflate_(plain_resnet("tiny"), spec.Inflation())
    with pytest.raises(UsageError, match="res4; it has 2, 0 to 1"):
        inflate.insert_nonlocal_(net, [spec.NonLocal("res4", (2,))])
    inflate.insert_nonlocal_(net, [spec.NonLocal("res4", (1,))])
    with pytest.raises(UsageError, match="already"):
        inflate.insert_nonlocal_(net, [spec.NonLocal("res4", (1,))])
