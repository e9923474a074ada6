"""The non-local block against an independent float64 one, bit identity, cost, and what users do with modules."""

import copy
import io
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage.restoration import denoise_nl_means
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from nlzoo.core.errors import UsageError
from nlzoo.core.model_spec import FORMS, NORMS, SPANS, SUBSAMPLES
from nlzoo.networks import pairwise
from nlzoo.networks.layers import NonLocalBlock, block_cost
from nlzoo.networks.model import import_timm

DOCS = Path(__file__).parents[2] / "docs"


pytestmark = pytest.mark.usefixtures("seed")


def naive_block(block, x, scale):
    """The block from the paper's formulas: all pairs of the clip, those out of span struck out. (B, C, T, H, W)."""
    b, _, t, h, w = x.shape
    conv = {name: lambda y, m=m: F.conv3d(y, m.weight, m.bias) for name, m in block.named_children() if name != "bn"}
    pool = nn.MaxPool3d((1, 2 if h > 1 else 1, 2 if w > 1 else 1))
    before, after = (
        pool if block.subsample == s and block.span != "time" else nn.Identity() for s in ("before", "after")
    )
    keys = before(x)
    q, k = (x, after(keys)) if block.form == "gaussian" else (conv["theta"](x), after(conv["phi"](keys)))
    v = after(conv["g"](keys))
    seen = visible(block.span, q.shape[2:], k.shape[2:])
    q, k, v = (y.flatten(2).mT for y in (q, k, v))
    if block.form == "concat":
        pairs = torch.cat([q[:, :, None].expand(-1, -1, k.shape[1], -1), k[:, None].expand(-1, q.shape[1], -1, -1)], 3)
        f = (pairs @ block.w_f.weight.flatten()).relu()
    else:
        f = q @ k.mT
    if block.form in ("dot", "concat"):
        f = f * seen / seen.sum(1, keepdim=True)
    else:
        f = (f * scale).masked_fill(~seen, -torch.inf).softmax(2)
    z = conv["w_z"]((f @ v).mT.unflatten(2, (t, h, w)))
    if block.norm == "bn":
        z = F.batch_norm(z, None, None, block.bn.weight, block.bn.bias, True, eps=block.bn.eps)
    return x + z


def visible(span, query_shape, key_shape):
    """(queries, keys): whether a query at one (t, h, w) has a key at another in its span."""
    queries, keys = (
        torch.cartesian_prod(*map(torch.arange, query_shape)),
        torch.cartesian_prod(*map(torch.arange, key_shape)),
    )
    axes = {"spacetime": [], "space": [0], "time": [1, 2]}[span]
    return (queries[:, None, axes] == keys[None, :, axes]).all(2)


def trained(*args, **kwargs):
    """A float64 block whose every parameter is random."""
    block = NonLocalBlock(*args, **kwargs).double()
    for name, p in block.named_parameters():
        nn.init.normal_(p, std=0.3 if p.ndim > 1 or "bias" in name else 1.0)
    return block


def output_and_gradients(function, block, x, dy):
    x = x.detach().requires_grad_()
    y = function(x)
    return [y.detach(), *torch.autograd.grad((y * dy).sum(), [x, *block.parameters()])]


def assert_block_is_naive(block, x, scale):
    dy = torch.randn_like(x)
    got = output_and_gradients(block, block, x, dy)
    want = output_and_gradients(lambda y: naive_block(block, y, scale), block, x, dy)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8 * max(1.0, b.abs().max().item()))


@pytest.mark.parametrize("large_n", [False, True], ids=["as shipped", "large N"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [True, False], ids=["scaled", "unscaled"])
@pytest.mark.parametrize("subsample", SUBSAMPLES)
@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("form", FORMS)
def test_against_the_formulas(form, span, subsample, scale, norm, large_n, monkeypatch):
    if large_n:
        for limit in ("CHUNK", "FEW_PAIRS", "FEW_KEYS"):
            monkeypatch.setattr(pairwise, limit, 0)
    block = trained(6, form, span, subsample, scale, norm)
    d = 6 if form == "gaussian" else 3
    assert_block_is_naive(block, torch.randn(2, 6, 3, 5, 7).double(), d**-0.5 if scale else 1.0)


@pytest.mark.parametrize("shape", [(2, 4, 1, 5, 4), (2, 4, 3, 1, 6), (2, 4, 3, 5, 1), (3, 4, 1, 1, 1), (1, 4, 5, 2, 3)])
@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("form", FORMS)
def test_thin_clips(form, span, shape):
    for subsample in SUBSAMPLES:
        block = trained(4, form, span, subsample, norm="none", reduction=3)
        assert_block_is_naive(block, torch.randn(shape).double(), (4 if form == "gaussian" else 1) ** -0.5)


@pytest.mark.parametrize("form", FORMS)
def test_memory_layouts(form):
    block = trained(6, form)
    x = torch.randn(2, 6, 3, 5, 4).double()
    strided = [
        x.contiguous(memory_format=torch.channels_last_3d),
        x.transpose(3, 4).contiguous().transpose(3, 4),
        x.repeat_interleave(2, 4)[..., ::2],
        x[:1].expand(2, -1, -1, -1, -1),
    ]
    for other in strided:
        assert not other.is_contiguous()
        torch.testing.assert_close(block(other), block(other.contiguous()))
        assert_block_is_naive(block, other, (6 if form == "gaussian" else 3) ** -0.5)


@pytest.mark.parametrize("form", FORMS)
def test_images_are_clips_of_one_frame(form):
    block = trained(6, form)
    x = torch.randn(3, 6, 5, 7).double()
    assert torch.equal(block(x), block(x.unsqueeze(2)).squeeze(2))
    net2d = nn.Sequential(nn.Conv2d(3, 6, 3), block, nn.ReLU(), nn.Conv2d(6, 2, 1)).double()
    net2d(torch.randn(2, 3, 9, 9).double()).sum().backward()
    assert all(p.grad is not None for p in net2d.parameters())
    clip = NonLocalBlock(6, form).double()
    clip.load_state_dict(net2d[1].state_dict())  # one state dict for both uses


def bits(x):
    return x.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def awkward(shape, dtype):
    """Features with zeros of both signs, subnormals and large values among them."""
    x = torch.randn(shape).relu_().to(dtype)
    tiny = torch.finfo(dtype).smallest_normal / 4
    flat = x.view(-1)
    flat[:8] = torch.tensor([-0.0, 0.0, -1.0, tiny, -tiny, 1e3, -1e3, 1.0], dtype=dtype)
    assert (bits(flat[:1]) == bits(torch.tensor([-0.0], dtype=dtype))).all()
    return x


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("form", FORMS)
def test_a_fresh_block_changes_no_bit(form, span, norm):
    for dtype, autocast in (
        (torch.float32, None),
        (torch.float64, None),
        (torch.bfloat16, None),
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.bfloat16),
    ):
        block = NonLocalBlock(8, form, span, norm=norm).to(torch.float32 if autocast else dtype)
        mode = torch.autocast("cpu", autocast, enabled=autocast is not None)
        for shape in ((2, 8, 3, 5, 4), (2, 8, 5, 4)):
            x = awkward(shape, dtype)
            for training in (True, False, True):
                with mode:
                    y = block.train(training)(x)
                assert y.dtype == dtype and torch.equal(bits(y), bits(x)), (dtype, autocast, training)
        last = block.bn if norm == "bn" else block.w_z
        nn.init.ones_(last.weight)
        with mode:
            assert not torch.equal(block(x), x)  # it can tell


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("form", FORMS)
def test_learning_starts_at_the_first_step(form, span, norm):
    block = NonLocalBlock(16, form, span, norm=norm)
    optimiser = torch.optim.SGD(block.parameters(), lr=0.01)
    x, target = torch.randn(2, 16, 3, 4, 4).relu(), torch.randn(2, 16, 3, 4, 4)
    losses = []
    for step in range(3):
        loss = F.mse_loss(block(x), target)
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        gate = block.bn.weight if norm == "bn" else block.w_z.weight
        assert gate.grad.abs().sum() > 0
        if step and form != "gaussian":
            assert block.theta.weight.grad.abs().sum() > 0
        optimiser.step()
    assert losses[0] != losses[1] != losses[2]


def test_initial_values():
    block = NonLocalBlock(256, "concat")
    for conv in (block.theta, block.phi, block.g, block.w_z):
        assert not conv.bias.any()
        assert conv.weight.std().item() == pytest.approx((2 / conv.in_channels) ** 0.5, rel=0.1)  # He
    assert block.w_f.bias is None and block.w_f.weight.std() > 0
    assert not block.bn.weight.any() and block.bn.eps == 1e-5 and block.bn.momentum == 0.1
    unscaled = NonLocalBlock(256, "embedded", scale=False)
    assert unscaled.theta.weight.std().item() == pytest.approx(0.01, rel=0.1)
    frozen = NonLocalBlock(256, norm="none")
    assert not frozen.w_z.weight.any() and not frozen.w_z.bias.any() and not hasattr(frozen, "bn")
    names = {form: sorted(dict(NonLocalBlock(8, form).named_children())) for form in FORMS}
    assert names["gaussian"] == ["bn", "g", "w_z"] and names["concat"] == ["bn", "g", "phi", "theta", "w_f", "w_z"]
    assert names["dot"] == names["embedded"] == ["bn", "g", "phi", "theta", "w_z"]


def test_concat_starts_with_live_pairs():
    """Without the signs that it gives to w_f, 3 % of these blocks start with no pair above 0, 9 % with few."""
    for _ in range(100):
        block, x = NonLocalBlock(64, "concat"), torch.randn(1, 64, 2, 6, 6).relu()
        (q, k, _), w = block.project(x), block.w_f.weight.flatten()
        a, b = (torch.tensordot(half, t[0].flatten(1), 1) for half, t in zip(w.chunk(2), (q, k), strict=True))
        assert (a[:, None] + b > 0).float().mean() > 0.02


def test_scaled_attention_starts_selective_but_not_on_one_key():
    """Why He: with sigma = 0.01 the scaled softmax starts uniform, and unscaled He starts on a single key."""
    x = (torch.randn(1, 512, 4, 7, 7) + 0.5).relu()

    def keys_seen(block):
        q, k, _ = (t.flatten(2).mT for t in block.project(x))
        p = (q @ k.mT * block.scale).softmax(2)
        return (-(p * p.clamp(min=1e-30).log()).sum(2)).exp().mean().item() / k.shape[1]

    scaled, unscaled = NonLocalBlock(512, subsample="none"), NonLocalBlock(512, subsample="none", scale=False)
    assert 0.1 < keys_seen(scaled) < 0.95 and 0.1 < keys_seen(unscaled) < 0.99
    nn.init.kaiming_normal_(unscaled.theta.weight), nn.init.kaiming_normal_(unscaled.phi.weight)
    assert keys_seen(unscaled) < 0.1
    nn.init.normal_(scaled.theta.weight, std=0.01), nn.init.normal_(scaled.phi.weight, std=0.01)
    assert keys_seen(scaled) > 0.99


@pytest.mark.parametrize("large_n", [False, True], ids=["as shipped", "large N"])
@pytest.mark.parametrize("form", FORMS)
def test_bf16_autocast_is_no_worse_than_the_plain_block(form, large_n, monkeypatch):
    """On average over blocks: in one, the few roundings common to all positions may fall well or badly."""
    if large_n:
        for limit in ("CHUNK", "FEW_PAIRS", "FEW_KEYS"):
            monkeypatch.setattr(pairwise, limit, 0)
    scale, ratios = (32 if form == "gaussian" else 16) ** -0.5, []
    for _ in range(16):
        block, x = trained(32, form, norm="none").float(), torch.randn(1, 32, 4, 10, 10).relu()
        exact = naive_block(copy.deepcopy(block).double(), x.double(), scale) - x
        with torch.autocast("cpu", torch.bfloat16):
            ours, plain = ((y - x - exact).norm() for y in (block(x), naive_block(block, x, scale)))
        ratios.append((ours / plain).log())
    assert torch.stack(ratios).mean().exp() <= 1.15


@pytest.mark.parametrize("form", FORMS)
def test_copies_pickles_and_checkpointing(form):
    block = trained(6, form)
    assert not any(isinstance(value, torch.Tensor) for value in vars(block).values())  # no state but the state dict
    x, dy = torch.randn(2, 6, 3, 4, 4).double(), torch.randn(2, 6, 3, 4, 4).double()
    want = output_and_gradients(block, block, x, dy)
    other = NonLocalBlock(6, form).double()
    other.load_state_dict(block.state_dict())
    stream = io.BytesIO()
    torch.save(block, stream)
    stream.seek(0)
    for twin in (
        copy.deepcopy(block),
        pickle.loads(pickle.dumps(block)),
        other,
        torch.load(stream, weights_only=False),
    ):
        for a, b in zip(output_and_gradients(twin, twin, x, dy), want, strict=True):
            assert torch.equal(a, b)
    again = output_and_gradients(lambda y: checkpoint(block, y, use_reentrant=False), block, x, dy)
    for a, b in zip(again, want, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("form", FORMS)
def test_one_block_used_twice_and_two_blocks_sharing_an_input(form):
    first, second = trained(6, form), trained(6, form)
    x, dy = torch.randn(1, 6, 2, 4, 5).double(), torch.randn(1, 6, 2, 4, 5).double()
    scale = (6 if form == "gaussian" else 3) ** -0.5
    both = nn.ModuleList([first, second])
    got = output_and_gradients(lambda y: first(first(y)) + second(y), both, x, dy)
    want = output_and_gradients(
        lambda y: naive_block(first, naive_block(first, y, scale), scale) + naive_block(second, y, scale), both, x, dy
    )
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7 * max(1.0, b.abs().max().item()))


@pytest.mark.parametrize("form", FORMS)
def test_torch_func(form):
    block = trained(6, form).eval()
    x, parameters = torch.randn(2, 6, 3, 7, 9).double(), dict(block.named_parameters())

    def loss(given):
        return torch.func.functional_call(block, given, (x,)).square().sum()

    got, want = torch.func.grad(loss)(parameters), torch.autograd.grad(block(x).square().sum(), parameters.values())
    for a, b in zip(got.values(), want, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("form", FORMS)
def test_compiles_without_graph_breaks(form, monkeypatch):
    for limit in ("CHUNK", "FEW_PAIRS", "FEW_KEYS"):
        monkeypatch.setattr(pairwise, limit, 0)
    torch.compiler.reset()
    block = trained(6, form)
    x, dy = torch.randn(2, 6, 3, 6, 6).double(), torch.randn(2, 6, 3, 6, 6).double()
    compiled = torch.compile(block, fullgraph=True, backend="eager")  # fullgraph refuses breaks
    for a, b in zip(
        output_and_gradients(compiled, block, x, dy), output_and_gradients(block, block, x, dy), strict=True
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("form", FORMS)
def test_exports_with_any_batch_and_length(form):
    block = trained(6, form).eval()
    dims = {0: torch.export.Dim("B"), 2: torch.export.Dim("T")}
    program = torch.export.export(block, (torch.randn(2, 6, 4, 5, 4).double(),), dynamic_shapes=(dims,)).module()
    for b, t in ((1, 4), (3, 9), (2, 40)):
        x = torch.randn(b, 6, t, 5, 4).double()
        torch.testing.assert_close(program(x), block(x))


def test_refusals():
    for bad in (
        dict(form="cosine"),
        dict(span="frame"),
        dict(subsample="both"),
        dict(norm="gn"),
        dict(reduction=0),
        dict(reduction=9),
    ):
        with pytest.raises(UsageError, match=str(next(iter(bad.values())))):
            NonLocalBlock(8, **bad)
    for shape in ((2, 6, 3, 4, 4), (8, 4, 4), (2, 8, 3, 4, 4, 1)):
        with pytest.raises(UsageError, match=re.escape(str(shape))):
            NonLocalBlock(8)(torch.randn(shape))


@pytest.mark.parametrize("subsample", SUBSAMPLES)
@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("form", ["gaussian", "embedded", "dot"])
def test_cost_is_what_torch_counts(form, span, subsample):
    for side, channels in ((4, 64), (18, 8)):  # few keys, many keys; the counter does not know fused attention on a CPU
        block, shape = NonLocalBlock(channels, form, span, subsample), (channels, 3, side, side + 1)
        cost = block_cost(*shape, form, span, subsample)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            block(torch.randn(1, *shape))
        assert cost.projections + cost.products == counter.get_total_flops() / 2  # two operations per multiply-add
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            if span == "spacetime":
                naive_block(block, torch.randn(1, *shape), 1.0)
                assert cost.projections + cost.naive_products == counter.get_total_flops() / 2


def test_cost_of_the_papers_networks():
    """Multiply-adds and parameters that blocks add to C2D R50, 32 frames (4 from res3 on), as published."""
    res3, res4 = ((block_cost(c, 4, n, n, subsample="before")) for c, n in ((512, 28), (1024, 14)))
    one = (res4.projections + res4.naive_products) / 1e9
    five = (2 * (res3.projections + res3.naive_products) + 3 * (res4.projections + res4.naive_products)) / 1e9
    assert one == pytest.approx(21.62 - 20.44, abs=0.011) and five == pytest.approx(28.57 - 20.44, abs=0.011)
    assert sum(p.numel() for p in NonLocalBlock(1024).parameters()) / 1e6 == pytest.approx(26.43 - 24.33, abs=0.011)


def test_memory_estimate():
    for form in FORMS:
        small, large = (block_cost(512, 32, n, n, form) for n in (14, 56))
        assert large.naive_bytes == 256 * small.naive_bytes  # quadratic in the positions
        assert large.bytes <= 16 * small.bytes or form == "gaussian"  # linear, or a chunk and linear
        assert large.bytes < large.naive_bytes / 50


def run_docs(having):
    """What the one block of Python in docs/nonlocal.md that has this text defines."""
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "nonlocal.md").read_text(encoding="utf-8"), re.S)
    code = [b for b in blocks if having in b]
    assert len(code) == 1
    scope = {}
    exec(code[0], scope)
    return scope


def test_the_docs_put_a_block_into_a_network_for_images():
    import_timm()  # beside a CPU-only torch, timm imports only through this door
    scope = run_docs("insert_nonlocal_")
    assert isinstance(scope["net"].layer3.nl0, NonLocalBlock)
    assert torch.equal(scope["logits"], scope["before"])


def naive_means(image, size, h, exp):
    """Non-local means over the whole picture, in numpy: `image` (H, W); the window is scikit-image's."""
    half, sigma = size // 2, (size - 1) / 4
    axis = np.arange(-half, half + 1)
    window = np.exp(-(axis[:, None] ** 2 + axis**2) / (2 * sigma**2))
    patches = np.lib.stride_tricks.sliding_window_view(np.pad(image, half, mode="reflect"), (size, size))
    patches = patches.reshape(image.size, 1, -1)
    distances = ((patches - patches.transpose(1, 0, 2)) ** 2 * window.ravel()).sum(2) / (window.sum() * h**2)
    weights = exp(-distances)
    return (weights @ image.ravel() / weights.sum(1)).reshape(image.shape), distances


def rough_exp(x):
    """Schraudolph's exp (Neural Computation 11, 1999), up to 6 % off, which scikit-image's slow mode uses."""
    high = (2**20 / np.log(2) * x + (1072693248 - 60801)).astype(np.int64)
    return (high << 32).view(np.float64)


@pytest.mark.parametrize("size", [3, 5, 7])
def test_gaussian_over_patches_is_non_local_means(size, seed):
    """Ours is the filter to rounding; scikit-image's is the same filter, but for its rough exp."""
    rng = np.random.default_rng(seed)
    image, h = rng.random((15, 18)), 0.9
    ours = run_docs("def non_local_means")["non_local_means"](torch.from_numpy(image), size, h).numpy()
    exact, distances = naive_means(image, size, h, np.exp)
    assert distances.max() < 5  # scikit-image drops pairs from there on
    np.testing.assert_allclose(ours, exact, rtol=1e-11)
    theirs = denoise_nl_means(image, patch_size=size, patch_distance=20, h=h, fast_mode=False)
    np.testing.assert_allclose(theirs, naive_means(image, size, h, rough_exp)[0], atol=1e-6)
    assert np.abs(ours - theirs).max() < 0.05 * np.abs(theirs - image).max()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("shape", [(0, 8, 4, 6, 6), (0, 8, 6, 6), (0, 8, 8, 30, 30)])
def test_an_empty_batch_comes_back_empty(form, span, shape):
    for train in (False, True):
        block, x = NonLocalBlock(8, form, span).train(train), torch.zeros(shape, requires_grad=True)
        y = block(x)
        y.sum().backward()
        assert y.shape == x.grad.shape == shape
