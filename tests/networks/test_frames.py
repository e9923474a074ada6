"""The 2-D kernels of a GPU give what the 3-D layers give: values, gradients, statistics. On a CPU, in float64.

So do the ways of a CPU itself: what it does of clips with channels last, and of predictions.
"""

import copy
import itertools

import pytest
import torch
from torch import nn

from nlzoo.core.model_spec import Inflation, parse_nl
from nlzoo.networks import frames, inflate, model
from nlzoo.networks.layers import NonLocalBlock

LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last_3d}


def passes(layer, x, dy):
    """Result, gradients of input and parameters, buffers."""
    layer, x = copy.deepcopy(layer), x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = layer(x)
    y.backward(torch.ones_like(y) if dy is None else dy)
    return [y.detach(), x.grad, *(p.grad for p in layer.parameters()), *layer.buffers()]


def assert_same(layer, x, monkeypatch):
    """By 3-D layers, by what a CPU does with channels last, by its predictions, and by a GPU's 2-D kernels."""
    with torch.no_grad():
        dy = torch.randn_like(copy.deepcopy(layer)(x))
    want = passes(layer, x, dy)
    assert_equal(passes(layer, x.contiguous(memory_format=torch.channels_last_3d), dy), want)
    answers = copy.deepcopy(layer)
    with torch.inference_mode():
        assert_equal([answers(x)], want[:1])
    monkeypatch.setattr(frames, "DEVICES", {"cpu"})
    for layout in LAYOUTS.values():
        assert_equal(passes(layer, x.contiguous(memory_format=layout), dy), want)


def assert_equal(got, want, error=1e-11):
    """Tensors of equal shapes whose relative difference is at most `error`."""
    assert len(got) == len(want)
    for a, b in zip(got, want):
        assert a.shape == b.shape
        assert (a.double() - b.double()).norm() <= error * b.double().norm() + 10 * error


def test_with_channels_last_nothing_is_copied():
    x = torch.randn(2, 5, 3, 4, 6).contiguous(memory_format=torch.channels_last_3d)
    images = frames.fold(x)
    assert images.shape == (6, 5, 4, 6) and images.data_ptr() == x.data_ptr()
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images[3], x[1, :, 0])
    assert torch.equal(frames.unfold(images, 2), x) and frames.unfold(images, 2).stride() == x.stride()


CONVOLUTIONS = list(itertools.product((3, 8), (1, 3, 5), (1, 3), (1, 2), (1, 2), ("replicate", "zeros"), (1, 2, 3, 6)))


@pytest.mark.parametrize("channels, taps", itertools.product((3, 8), (1, 3, 5)))
def test_convolutions(channels, taps, monkeypatch, seed):
    for c, t, kernel, stride, time_stride, padding, length in CONVOLUTIONS:
        if (c, t) != (channels, taps):
            continue
        with monkeypatch.context() as patch:
            flat = nn.Conv2d(c, 5, kernel, stride, kernel // 2, bias=stride == 1).double()
            layer = inflate._conv(flat, t, time_stride, Inflation(temporal_padding=padding, init="mean"))
            nn.init.normal_(layer.weight)
            assert_same(layer, torch.randn(2, c, length, 6, 7).double(), patch)


def test_what_is_no_product_is_not_taken_for_one(monkeypatch, seed):
    """A 1x1 with padding, a stride or groups."""
    for options in ({"padding": 1}, {"stride": 2}, {"groups": 3}):
        layer = inflate._conv(nn.Conv2d(6, 6, 1, **options).double(), 1, 1, Inflation())
        with monkeypatch.context() as patch:
            assert_same(layer, torch.randn(2, 6, 4, 7, 8).double(), patch)


@pytest.mark.parametrize("options", [{"groups": 3}, {"dilation": 2}, {"groups": 6, "dilation": 2}])
@pytest.mark.parametrize("taps", [1, 3])
def test_grouped_and_dilated_convolutions(options, taps, monkeypatch, seed):
    layer = inflate._conv(nn.Conv2d(6, 6, 3, padding=2, **options).double(), taps, 1, Inflation())
    assert_same(layer, torch.randn(2, 6, 4, 7, 8).double(), monkeypatch)


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm(training, monkeypatch, seed):
    layer = inflate._batch_norm(nn.BatchNorm2d(5)).double().train(training)
    nn.init.normal_(layer.weight)
    nn.init.uniform_(layer.running_var, 0.5, 2)
    assert_same(layer, torch.randn(2, 5, 3, 4, 4).double(), monkeypatch)


def test_batch_norm_refuses_what_torchs_refuses(monkeypatch):
    monkeypatch.setattr(frames, "DEVICES", {"cpu"})
    with pytest.raises(ValueError):
        frames.BatchNorm(5)(torch.randn(2, 5, 3))


@pytest.mark.parametrize("taps, stride, ceil_mode", [(1, 1, False), (1, 1, True), (3, 2, False), (2, 2, False)])
def test_max_pool(taps, stride, ceil_mode, monkeypatch, seed):
    layer = inflate._max_pool(nn.MaxPool2d(3, 2, 1, ceil_mode=ceil_mode), taps, stride, Inflation())
    with torch.no_grad():
        x = torch.randn(2, 5, 4, 7, 6).double()
    want = passes(layer, x, None)
    monkeypatch.setattr(frames, "DEVICES", {"cpu"})
    for a, b in zip(passes(layer, x.contiguous(memory_format=torch.channels_last_3d), None), want):
        assert torch.equal(a, b)


@pytest.mark.parametrize("form", ["gaussian", "embedded", "dot", "concat"])
@pytest.mark.parametrize("span", ["spacetime", "space", "time"])
@pytest.mark.parametrize("subsample", ["before", "after", "none"])
def test_blocks(form, span, subsample, monkeypatch, seed):
    block = NonLocalBlock(8, form=form, span=span, subsample=subsample).double()
    nn.init.normal_(block.bn.weight)
    assert_same(block, torch.randn(2, 8, 3, 5, 6).double(), monkeypatch)


@pytest.mark.parametrize("form", ["gaussian", "embedded", "dot", "concat"])
@pytest.mark.parametrize("span", ["spacetime", "space", "time"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_block_gives_what_lies_in_memory_as_its_input_does(form, span, layout, seed):
    """BN's gradients suffer in half precision where a video and its gradient lie differently (0.6 of the kernels')."""
    block = NonLocalBlock(32, form=form, span=span).double()
    nn.init.normal_(block.bn.weight)
    x, dy = torch.randn(2, 2, 32, 4, 12, 12).double()
    want = passes(block, x, dy)
    x, dy = (t.float().contiguous(memory_format=LAYOUTS[layout]) for t in (x, dy))
    names = ["y", "x", *(name for name, _ in block.named_parameters())]
    # of concat's ReLU, half precision puts many pairs on the other side of 0
    for dtype, error in ((torch.float32, 1e-3), (torch.bfloat16, 0.2 if form != "concat" else 1.0)):
        with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
            y = copy.deepcopy(block).float()(x)
            got = passes(block.float(), x, dy)
        assert y.is_contiguous(memory_format=LAYOUTS[layout])
        for name, a, b in zip(names, got, want):
            if name not in ("g.bias", "w_z.bias", "phi.bias", "theta.bias"):  # BN and softmax make these 0, or nearly
                assert (a.double() - b).norm() <= error * b.norm(), (name, dtype)


def orders(x):
    """`x` (B, C, T, H, W) by the orders in memory that layers leave it in."""
    images = x.transpose(1, 2).flatten(0, 1)
    for layout in (torch.contiguous_format, torch.channels_last):
        yield frames.unfold(images.clone(memory_format=layout), x.shape[0])
    for layout in LAYOUTS.values():
        yield x.clone(memory_format=layout)


@pytest.mark.parametrize("size", [(8, 1, 1), (1, 4, 4), (1, 1, 3), (1, 1, 1), (8, 1, 2), (3, 2, 2)])
def test_batch_norm_does_not_mind_how_a_video_and_its_gradient_lie_in_memory(size, seed):
    """Of nn.BatchNorm3d itself the first three have wrong gradients on a CPU (torch 2.13)."""
    x, dy = torch.randn(2, 2, 6, *size).double()
    layer = frames.BatchNorm(6).double()
    nn.init.normal_(layer.weight)
    want = passes(layer, x, dy)
    for own, gradient in itertools.product(orders(x), orders(dy)):
        for a, b in zip(passes(layer, own, gradient), want):
            assert a.shape == b.shape and (a - b).double().norm() <= 1e-11 * b.double().norm() + 1e-11


def narrow(backbone, inflation):
    """As `model.build` makes it, with stages of 32 channels, in training mode and with a block that does something."""
    net = inflate.inflate_(model.import_timm().create_model(backbone, num_classes=7, channels=(32,) * 4), inflation)
    inflate.insert_nonlocal_(net, parse_nl("res3:1", inflate.depths(net)))
    (block,) = (m for m in net.modules() if isinstance(m, NonLocalBlock))
    nn.init.normal_(block.bn.weight)
    return net.train()


@pytest.mark.parametrize(
    "backbone, kind",
    [
        ("resnet26", {}),
        ("resnet26", {"arch": "c2d"}),
        ("resnet26", {"arch": "i3d-333", "pools": "8x8"}),
        ("resnet26", {"temporal_padding": "zeros", "pools": "8x8"}),
        ("resnet18", {}),
        ("resnet26d", {"init": "mean"}),
        ("seresnext26d_32x4d", {}),
        ("resnetblur50", {}),
    ],
)
def test_networks(backbone, kind, monkeypatch, seed):
    net = narrow(backbone, Inflation(**kind))
    assert_same(net.double(), torch.randn(2, 3, 8, 32, 32).double(), monkeypatch)


def test_an_untrained_block_still_gives_its_input_bit_for_bit(monkeypatch, seed):
    monkeypatch.setattr(frames, "DEVICES", {"cpu"})
    x = torch.randn(2, 8, 3, 5, 6).contiguous(memory_format=torch.channels_last_3d)
    for training in (True, False):
        assert torch.equal(NonLocalBlock(8).train(training)(x), x)


@pytest.mark.parametrize("dtype, error", [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_pointwise_convolution_on_a_cpu(dtype, error, bias, seed):
    """By oneDNN in float32, by a product in half precision: what the 3-D layer gives in float64."""
    layer = inflate._conv(nn.Conv2d(24, 16, 1, bias=bias), 1, 1, Inflation())
    x, dy = torch.randn(2, 24, 4, 5, 6), torch.randn(2, 16, 4, 5, 6)
    want = passes(layer.double(), x.double(), dy.double())
    layer.float()
    frames.channels_last_(layer)
    x = x.contiguous(memory_format=torch.channels_last_3d)
    with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
        y = layer(x)
        assert y.dtype is dtype and frames.channels_last(y)
        assert_equal(passes(layer, x, dy.to(dtype)), want, error)


def test_kernels_with_channels_last_are_the_same_network(seed):
    net = narrow("resnet26", Inflation())
    x, before = torch.randn(2, 3, 4, 32, 32), copy.deepcopy(net)
    frames.channels_last_(net)
    assert all(frames.channels_last(p) for p in net.parameters() if p.ndim == 5)
    for (name, a), b in zip(net.state_dict().items(), before.state_dict().values()):
        assert torch.equal(a, b), name
    assert_equal([net.eval()(x)], [before.eval()(x)], 1e-5)


@pytest.mark.parametrize("dtype, error", [(torch.bfloat16, 1e-2), (torch.float16, 1e-3)])
def test_a_temporal_convolution_under_autocast(dtype, error, monkeypatch, seed):
    """Autocast does not see into a Function: its operands are cast before."""
    layer = inflate._conv(nn.Conv2d(32, 16, 1, bias=False), 3, 1, Inflation(init="mean"))
    nn.init.normal_(layer.weight)
    x, dy = torch.randn(2, 32, 4, 5, 6), torch.randn(2, 16, 4, 5, 6)
    want = passes(layer, x, dy)
    monkeypatch.setattr(frames, "DEVICES", {"cpu"})
    with torch.autocast("cpu", dtype):
        assert layer(x).dtype is dtype
        got = passes(layer, x, dy.to(dtype))
    for a, b in zip(got[1:], want[1:]):
        assert a.dtype is torch.float32 and (a - b).norm() <= error * b.norm()


def test_it_is_one_graph_for_a_compiler(monkeypatch, seed):
    # float32: what a compiler takes for the layout of a float64 convolution on a CPU is not what it has
    net, x = narrow("resnet14t", Inflation()), torch.randn(2, 3, 4, 64, 64)
    net.layer3, net.layer4 = nn.Identity(), nn.Identity()  # the stem, res2 and res3 have every kind of layer
    monkeypatch.setattr(frames, "DEVICES", {"cpu"})
    want = passes(net, x, None)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    x = x.requires_grad_()
    y = compiled(x)
    y.backward(torch.ones_like(y))
    for a, b in zip([y, x.grad, *(p.grad for p in net.parameters())], want):
        assert (a - b).norm() <= 1e-3 * b.norm() + 1e-3
