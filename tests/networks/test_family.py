"""Every architecture of timm's resnet.py, inflated: a still clip for mean, a moving clip frame by frame for centre.

In float64 and with stages of 32 channels and at most four residual blocks: stems, blocks, attention and pools are what
an architecture is, not its width nor how often a block is repeated. Full size has its turn under `-m torture`.
"""

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nlzoo.core import model_spec, view_spec
from nlzoo.core.errors import WeightsError
from nlzoo.networks import describe, inflate, model
from nlzoo.networks.model import import_timm, relative_error

NARROW = {"channels": (32, 32, 32, 32)}
DEPTH = 4  # blocks of a stage: even and odd ones, with another after them
ARCHITECTURES = import_timm().list_models(module="resnet")


def build(name, **arguments):
    """Random weights, BN statistics and affine, since at their defaults a wrong conversion would not show.

    A residual branch ends small (timm starts it at 0), so that 140 of them do not overflow.
    """
    net = import_timm().create_model(name, **arguments)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d | nn.GroupNorm):
            last = bool((m.weight == 0).all())
            nn.init.uniform_(m.weight, *((0.1, 0.3) if last else (0.8, 1.2)))
            nn.init.uniform_(m.bias, -0.2, 0.2)
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.running_mean, -0.2, 0.2)
            nn.init.uniform_(m.running_var, 0.5, 1.5)
    return net.eval()


def cut(net):
    """The same without what stages of more than `DEPTH` blocks repeat."""
    for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
        del stage[DEPTH:]
    return net


def copied(net):
    """A copy as far as `inflate_` changes a network: which module is where. `deepcopy` of a deep one takes seconds."""
    new = copy.copy(net)
    new._modules = {name: copied(module) for name, module in net._modules.items()}
    return new


@torch.no_grad()
def holds(flat, size, most):
    """Both equalities, for C2D and I3D; `most`: relative error allowed."""
    dtype = next(flat.parameters()).dtype
    moving = torch.randn(1, 3, 3, size, size, dtype=dtype)
    still = moving[:, :, 1:2].expand(-1, -1, 3, -1, -1)
    images = moving[0].transpose(0, 1)
    frames = flat(images)
    assert relative_error(frames[:1], frames[1:2]) > 1000 * most  # the input matters
    for arch, init, clip, wanted in [
        ("c2d", "mean", moving, frames.mean(0)),  # no kernel grows, so that one init is as good as the other
        ("i3d", "centre", moving, frames.mean(0)),
        ("i3d", "mean", still, frames[1]),
    ]:
        net = inflate.inflate_(copied(flat), model_spec.Inflation(arch, init))
        assert relative_error(net(clip)[0], wanted) < most, (arch, init)
        assert list(net.state_dict()) == list(flat.state_dict())
    assert torch.equal(flat(images), frames)  # it is as it was


@pytest.mark.parametrize(
    "name",
    "resnet18 resnet26t resnet50d wide_resnet50_2 resnext50_32x4d seresnet50 ecaresnet50t resnetblur50 resnetaa50 "
    "resnetrs50 ecaresnetlight".split(),
)
def test_multiply_adds_are_those_of_torchs_counter(name):
    """Every kind of layer that counts: plain, grouped, squeeze-and-excitation, channel attention, blurred, pooled."""
    clip = view_spec.ClipSpec(3, None, 64)
    with torch.device("meta"):
        net = model.build(model_spec.ModelSpec(name, clip=clip))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(torch.empty(1, 3, clip.frames, clip.size, clip.size))
    assert describe.cost(net, clip)[1] == counter.get_total_flops() // 2


def test_the_family_is_found():
    assert len(ARCHITECTURES) >= 75


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_equals_the_2d_network(name, seed):
    size = 64 if "aa" in name else 48  # timm's antialiased blocks do not run on odd sizes, in 2-D either
    holds(cut(build(name, **NARROW)).double(), size, 1e-9)


@pytest.mark.torture
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_equals_the_2d_network_at_full_size(name, seed):
    holds(build(name).double(), 64, 1e-9)


@torch.no_grad()
def test_attention_over_the_whole_clip_would_not_be_the_2d_network(seed):
    """The negative control: one weight a channel for all frames, as a naive `x.mean((2, 3, 4))` has it."""
    flat = build("seresnet18", **NARROW).double()
    net = inflate.inflate_(copy.deepcopy(flat), model_spec.Inflation())
    moving = torch.randn(1, 3, 3, 64, 64, dtype=torch.double)
    wanted = torch.cat([flat(frame) for frame in moving.unbind(2)]).mean(0)
    for m in net.modules():
        if type(m).__name__ == "FrameSEModule":
            m.forward = lambda x, m=m: (
                x * m.gate(m.fc2(m.act(m.bn(m.fc1(x.mean((2, 3, 4))[:, :, None, None])))))[:, :, None]
            )
    assert relative_error(net(moving)[0], wanted) > 1e-5


@pytest.mark.parametrize(
    "name, arguments, path",
    [
        ("resnet18", {"block_args": {"attn_layer": "cbam"}}, r"layer1\.0\.se"),
        ("resnet18", {"block_args": {"attn_layer": "gc"}}, r"layer1\.0\.se"),
        ("resnet18", {"block_args": {"attn_layer": "ecam"}}, "channel attention with an MLP"),
        ("resnet18", {"global_pool": "max"}, "average pooling can"),
        ("skresnet18", {}, r"layer1\.0: SelectiveKernelBasic"),  # every leaf of it is known
        ("regnetx_002", {}, "the network: RegNet"),
    ],
)
def test_what_is_not_known_is_refused_and_nothing_changes(name, arguments, path):
    net = import_timm().create_model(name, **arguments)
    before = str(net)
    with pytest.raises(WeightsError, match=path):
        inflate.inflate_(net, model_spec.Inflation())
    assert str(net) == before
