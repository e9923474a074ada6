"""Inflation against the 2-D network itself: a still clip for every init, a moving clip frame by frame for centre."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

from nlzoo.core import model_spec, view_spec
from nlzoo.core.errors import UsageError
from nlzoo.networks import describe, inflate, model
from nlzoo.networks.layers import NonLocalBlock
from nlzoo.networks.model import plain_resnet, relative_error


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


@pytest.mark.parametrize(
    "arch, init", [("c2d", "centre"), ("i3d", "centre"), ("i3d", "mean"), ("i3d-333", "centre"), ("i3d-333", "mean")]
)
@torch.no_grad()
def test_equals_the_2d_network(flat, arch, init, seed):
    net = inflate.inflate_(copy.deepcopy(flat), model_spec.Inflation(arch, init))
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
    errors = {
        init: relative_error(
            inflate.inflate_(copy.deepcopy(flat), model_spec.Inflation("i3d", init, "zeros"))(clip), flat(clip[:, :, 0])
        )
        for init in model_spec.INITS
    }
    assert errors["mean"] > 1e-2 and errors["centre"] < 2e-5


def test_keys_stay_and_only_kernels_grow():
    flat = plain_resnet("resnet50")
    before = {k: v.shape for k, v in flat.state_dict().items()}
    net = inflate.inflate_(copy.deepcopy(flat), model_spec.Inflation())
    after = {k: v.shape for k, v in net.state_dict().items()}
    assert list(before) == list(after)
    grown = {k for k in before if before[k] != after[k]}
    assert grown == {n + ".weight" for n, m in flat.named_modules() if isinstance(m, nn.Conv2d)}


def test_the_pattern_of_temporal_kernels_is_the_references():
    net = plain_resnet("resnet50")
    plan = inflate.temporal_plan(net, model_spec.Inflation("i3d"))
    taps = {
        stage: [plan.get(f"{layer}.{i}.conv1", (1, 1))[0] // 2 for i in range(inflate.depths(net)[stage])]
        for stage, layer in inflate.LAYER.items()
    }
    assert taps == {"res2": [1, 1, 1], "res3": [1, 0, 1, 0], "res4": [1, 0, 1, 0, 1, 0], "res5": [0, 1, 0]}
    assert plan["conv1"] == (5, 1)


# reference, section 4; 400 classes, 224 pixels: millions of parameters, G multiply-adds with 32x2's pools, with 8x8's
SIZES = {
    "c2d-r50": (24.33, 20.44, 19.49),
    "nl1-c2d-r50": (26.43, 21.62, None),
    "nl5-c2d-r50": (31.69, 28.57, 27.62),
    "nl10-c2d-r50": (39.04, 36.69, None),
    "i3d-r50": (28.04, 33.13, 28.41),
    "i3d-333-r50": (33.43, 39.09, None),
    "nl5-i3d-r50": (35.40, 41.26, 36.54),
    "c2d-r101": (43.32, 35.29, None),
    "nl5-c2d-r101": (50.68, 43.41, None),
    "i3d-r101": (51.75, 51.68, None),
    "i3d-333-r101": (63.04, 62.26, None),
    "nl5-i3d-r101": (59.11, 59.80, None),
}


def counted(net, clip):
    """Multiply-adds by hand: every convolution's and linear's output times its inputs, plus both products."""
    total = [0]

    def add(m, inputs, out):
        if isinstance(m, nn.Conv3d | nn.Linear):
            total[0] += out.numel() * m.weight[0].numel()
        elif isinstance(m, NonLocalBlock):
            x = inputs[0]
            queries, keys = x[0, 0].numel(), x.shape[2] * (x.shape[3] // 2) * (x.shape[4] // 2)
            total[0] += queries * keys * m.g.out_channels * 2

    for m in net.modules():
        m.register_forward_hook(add)
    with torch.no_grad():
        net(torch.empty(1, 3, clip.frames, clip.size, clip.size, device="meta"))
    return total[0]


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_the_references_to_the_last_printed_digit(name):
    wanted_params, *wanted_macs = SIZES[name]
    for length, wanted in zip(("32x2", "8x8"), wanted_macs, strict=True):
        if wanted is None:
            continue
        named = model_spec.parse_name(f"{name}-{length}")
        net = model.blueprint(named, 400)
        params, macs, _ = describe.cost(net, named.clip)
        assert f"{params / 1e6:.2f} {macs / 1e9:.2f}" == f"{wanted_params:.2f} {wanted:.2f}", length
        assert counted(net, named.clip) == macs


def test_ratios_are_the_papers():
    """Table 2e: parameters and multiply-adds over C2D R101's."""
    sizes = {
        n: describe.cost(model.blueprint(model_spec.parse_name(f"{n}-32x2"), 400), view_spec.ClipSpec(32))[:2]
        for n in ("c2d-r101", "nl5-c2d-r101", "i3d-r101", "i3d-333-r101")
    }
    ratios = {n: tuple(f"{a / b:.1f}" for a, b in zip(size, sizes["c2d-r101"])) for n, size in sizes.items()}
    assert ratios == {
        "c2d-r101": ("1.0", "1.0"),
        "nl5-c2d-r101": ("1.2", "1.2"),
        "i3d-r101": ("1.2", "1.5"),
        "i3d-333-r101": ("1.5", "1.8"),
    }


def test_a_block_in_res2_is_the_costliest():
    named = model_spec.parse_name("c2d-r50-32x2")
    net = model.blueprint(named, 400)
    net.spec = dataclasses.replace(net.spec, non_local=(model_spec.NonLocal("res2", (1,)),))
    inflate.insert_nonlocal_(net, net.spec.non_local)
    _, macs, blocks = describe.cost(net, named.clip)
    # reference, section 4: nearly triple, some 600 MB of pairs (its 58.3 G are with 55 x 55 positions, pool1 unpadded)
    assert 2.8 < macs / 20.44e9 < 3.2 and 550 < blocks["res2 after 1"].naive_bytes / 2**20 < 650


def test_dtype_and_mode_are_kept():
    net = inflate.inflate_(plain_resnet("tiny").to(torch.bfloat16).train(), model_spec.Inflation())
    assert all(m.training for m in net.modules())
    assert all(p.dtype is torch.bfloat16 for p in net.parameters())
    assert not any(m.training for m in inflate.inflate_(plain_resnet("tiny").eval(), model_spec.Inflation()).modules())


# --- non-local blocks


def test_a_fresh_block_leaves_output_bit_identical_and_learns_at_the_first_step(seed):
    before = inflate.inflate_(lively(plain_resnet("tiny")), model_spec.Inflation())
    net = copy.deepcopy(before)
    inflate.insert_nonlocal_(net, [model_spec.NonLocal("res3", (0, 1)), model_spec.NonLocal("res4", (1,))])
    clip = torch.randn(2, 3, 4, 64, 64)
    with torch.no_grad():
        assert torch.equal(net(clip), before(clip))
        assert torch.equal(copy.deepcopy(net).train()(clip), copy.deepcopy(before).train()(clip))
    net.train()(clip).square().sum().backward()
    assert all(
        net.get_submodule(path).bn.weight.grad.abs().max() > 0 for path in ("layer2.nl0", "layer2.nl1", "layer3.nl1")
    )
    assert list(net.layer2._modules) == ["0", "nl0", "1", "nl1"]


@torch.no_grad()
def test_blocks_go_into_a_plain_image_network_too(seed):
    flat = lively(plain_resnet("tiny"))
    net = inflate.insert_nonlocal_(copy.deepcopy(flat), [model_spec.NonLocal("res4", (0,))])
    image = torch.randn(2, 3, 64, 64)
    assert torch.equal(net(image), flat(image))
    assert "layer3.nl0.theta.weight" in net.state_dict()


def test_a_block_that_cannot_be_is_refused():
    net = inflate.inflate_(plain_resnet("tiny"), model_spec.Inflation())
    with pytest.raises(UsageError, match="res4; it has 2, 0 to 1"):
        inflate.insert_nonlocal_(net, [model_spec.NonLocal("res4", (2,))])
    inflate.insert_nonlocal_(net, [model_spec.NonLocal("res4", (1,))])
    with pytest.raises(UsageError, match="already"):
        inflate.insert_nonlocal_(net, [model_spec.NonLocal("res4", (1,))])


@pytest.mark.parametrize("name", ["tiny", "seresnet18", "ecaresnet26t", "resnetblur18", "resnet50_gn"])
def test_an_empty_batch_comes_back_empty(name):
    """As from timm's network, in both modes: the last part of a split may have no clip."""
    spec = model_spec.ModelSpec(name, non_local=(model_spec.NonLocal("res4", (0,)),), num_outputs=5)
    net = model.build(spec)
    assert net(torch.zeros(0, 3, 4, 64, 64)).shape == net.train()(torch.zeros(0, 3, 4, 64, 64)).shape == (0, 5)
