"""The product against the independent network of `reference_i3d.py`: same weights, same outputs, in float64."""

import pytest
import torch
from reference_i3d import I3D, WIDTHS
from torch import nn

from nlzoo.core import model_spec
from nlzoo.networks import inflate, model
from nlzoo.networks.model import relative_error

DEPTH_OF = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
NARROW = (16, 24, 32, 40)  # stages of the deep networks, whose weights would cost more than what is done with them


def pair(depth, arch, pools, nl, form="embedded", padding="replicate", pool1_padding=1):
    """The product's network with random weights and statistics, and the reference's with copies of them; float64."""
    name = f"resnet{depth}"
    placement = model_spec.parse_nl(nl, dict(zip(model_spec.STAGES, DEPTH_OF[name], strict=True)), form=form)
    inflation = model_spec.Inflation(arch, "centre", padding, pools, pool1_padding)
    widths = WIDTHS if depth == 18 else NARROW
    if depth == 18:
        ours = model.build(model_spec.ModelSpec(name, inflation, placement, num_outputs=11)).double()
    else:
        flat = model.import_timm().create_model(name, num_classes=11, channels=widths)
        ours = inflate.insert_nonlocal_(inflate.inflate_(flat, inflation), placement).double().eval()
    with torch.no_grad():
        for m in ours.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm):
                last = bool((m.weight == 0).all())  # of a residual branch: kept small
                m.weight.uniform_(*((0.1, 0.3) if last else (0.8, 1.2)))
                m.bias.uniform_(-0.2, 0.2)
                m.running_mean.uniform_(-0.2, 0.2)
                m.running_var.uniform_(0.5, 1.5)
            elif isinstance(m, nn.Conv3d) and m.kernel_size[0] > 1:  # centre-initialised: give every tap a weight
                m.weight.add_(torch.randn_like(m.weight) * m.weight.std())
    blocks = {(model_spec.STAGES.index(n.stage), i): form for n in placement for i in n.blocks}
    theirs = I3D(depth, 11, arch, pools, padding, blocks, pool1_padding, widths).double()
    shapes = {k: v.shape for k, v in theirs.state_dict().items()}
    weights = {k: v.reshape(shapes[k]) for k, v in ours.state_dict().items()}
    theirs.load_state_dict(weights)
    return ours, theirs.eval()


CASES = [
    (18, "i3d", "none", "res3:1,res4:1", "embedded"),
    (18, "c2d", "8x8", "res3:2", "dot"),
    (18, "i3d", "paper", "none", "embedded"),
    (50, "i3d", "none", "5", "embedded"),
    (50, "i3d", "8x8", "5", "dot"),
    (50, "i3d-333", "paper", "10", "embedded"),
    (50, "c2d", "paper", "1", "gaussian"),
    (50, "i3d", "paper", "5", "concat"),
    (101, "i3d", "8x8", "10", "embedded"),
]


@pytest.mark.parametrize("depth, arch, pools, nl, form", CASES)
def test_equal_outputs_in_eval_and_train(depth, arch, pools, nl, form, seed):
    ours, theirs = pair(depth, arch, pools, nl, form)
    clip = torch.randn(2, 3, 8, 48, 32, dtype=torch.double)
    with torch.no_grad():
        logits = ours(clip)
        assert relative_error(logits[:1], logits[1:]) > 1e-4  # the clip matters, so that agreement says something
        if arch != "c2d":
            assert relative_error(logits, ours(clip.flip(2))) > 1e-4  # and so does the order of its frames
        assert relative_error(logits, theirs(clip)) < 1e-9
        assert relative_error(ours.train()(clip), theirs.train()(clip)) < 1e-8


def test_equal_gradients(seed):
    ours, theirs = pair(18, "i3d", "none", "res3:1,res4:1")
    clip = torch.randn(2, 3, 5, 48, 32, dtype=torch.double)
    for net in (ours, theirs):
        net.train()(clip).square().sum().backward()
    grads = {name: p.grad.flatten() for name, p in theirs.named_parameters()}
    noise = 1e-12 * max(
        g.abs().max() for g in grads.values()
    )  # phi's bias has none: it shifts every logit of a softmax alike
    for name, p in ours.named_parameters():
        assert (p.grad.flatten() - grads[name]).abs().max() < 1e-6 * grads[name].abs().max() + noise, name


@torch.no_grad()
def test_zero_padding_of_imported_checkpoints(seed):
    ours, theirs = pair(18, "i3d", "none", "none", padding="zeros")
    clip = torch.randn(1, 3, 4, 48, 48, dtype=torch.double)
    assert relative_error(ours(clip), theirs(clip)) < 1e-9
    replicated = I3D(18, 11).double().eval()
    replicated.load_state_dict(theirs.state_dict())
    assert relative_error(replicated(clip), theirs(clip)) > 1e-3  # the negative control


@torch.no_grad()
@pytest.mark.parametrize(
    "pools, pool1_padding, other",
    [
        ("authors", 0, ("authors", 1)),
        ("8x8", 0, ("8x8", 1)),
        ("mmaction2", 1, ("8x8", 1)),
        ("authors", 1, ("paper", 1)),
    ],
)
def test_pools_of_imported_checkpoints(pools, pool1_padding, other, seed):
    ours, theirs = pair(18, "i3d", pools, "res3:1", "embedded", "zeros", pool1_padding)
    clip = torch.randn(1, 3, 17, 48, 32, dtype=torch.double)  # an odd number of frames, too
    assert relative_error(ours(clip), theirs(clip)) < 1e-9
    theirs.pools, theirs.pool1_padding = other
    assert relative_error(ours(clip), theirs(clip)) > 1e-3  # the negative control
