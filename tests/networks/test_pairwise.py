"""The four forms against the plain formula in float64, fresh inputs in every run; precision, memory, refusals."""

import random

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from nlzoo.core.errors import UsageError
from nlzoo.networks import pairwise

FORMS = ("gaussian", "dot", "concat")  # embedded is gaussian of other operands
# problems, queries, keys, D, C
SHAPES = [(1, 1, 1, 1, 1), (2, 1, 7, 3, 3), (3, 7, 1, 2, 4), (2, 33, 17, 8, 8), (2, 37, 41, 5, 9), (2, 37, 41, 9, 5)]
LARGE = [(1, 2300, 1900, 3, 3), (1, 2300, 1900, 5, 2)]  # these go the large-N ways as shipped


pytestmark = pytest.mark.usefixtures("seed")


@pytest.fixture(params=["as shipped", "large N"])
def way(request, monkeypatch):
    """Both ways through the code: small shapes are sent the way of the large ones by leaving no room for pairs."""
    if request.param == "large N":
        for limit in ("CHUNK", "FEW_PAIRS", "FEW_KEYS"):
            monkeypatch.setattr(pairwise, limit, 0)
    return request.param


def naive(form, q, k, v, scale=1.0, w=None):
    """The paper's formulas as they stand."""
    if form == "gaussian":
        return (q @ k.mT * scale).softmax(2) @ v
    if form == "dot":
        return (q @ k.mT) / k.shape[1] @ v
    d = q.shape[2]
    return ((q @ w[:d])[:, :, None] + (k @ w[d:])[:, None]).relu() / k.shape[1] @ v


def ours(form, q, k, v, scale=1.0, w=None):
    if form == "gaussian":
        return pairwise.gaussian(q, k, v, scale)
    return pairwise.dot(q, k, v) if form == "dot" else pairwise.concat(q, k, v, w)


def operands(form, shape, dtype=torch.float64):
    problems, queries, keys, d, c = shape
    made = [torch.randn(problems, n, width, dtype=dtype) for n, width in ((queries, d), (keys, d), (keys, c))]
    return made + ([torch.randn(2 * d, dtype=dtype)] if form == "concat" else [])


def with_gradients(function, form, given, dy=None, scale=1.0, autocast=None):
    """[y, dq, dk, dv, (dw)] for the loss sum(y * dy)."""
    leaves = [t.detach().requires_grad_() for t in given]
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        y = function(form, *leaves[:3], scale, *leaves[3:])
    dy = torch.ones_like(y) if dy is None else dy.to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


def assert_same(form, given, scale=1.0):
    dy = torch.randn(*given[0].shape[:2], given[2].shape[2], dtype=given[0].dtype)
    for got, want in zip(
        with_gradients(ours, form, given, dy, scale), with_gradients(naive, form, given, dy, scale), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9 * max(1, want.abs().max().item()))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", FORMS)
def test_values_and_gradients(form, shape, way):
    assert_same(form, operands(form, shape), scale=0.37)


@pytest.mark.parametrize("shape", LARGE)
@pytest.mark.parametrize("form", FORMS)
def test_values_and_gradients_of_large_n(form, shape):
    assert not pairwise.direct(form, *shape)
    assert_same(form, operands(form, shape), scale=0.37)


@pytest.mark.parametrize("form", FORMS)
def test_the_small_shapes_go_both_ways(form, way):
    taken = [pairwise.direct(form, *shape) for shape in SHAPES]
    assert any(taken) if way == "as shipped" else not all(taken)


@pytest.mark.parametrize(
    "form, d, c", [("gaussian", 1, 1), ("gaussian", 2, 1), ("gaussian", 1, 2), ("dot", 2, 3), ("concat", 2, 3)]
)
def test_gradcheck(form, d, c, way):
    given = [t.requires_grad_() for t in operands(form, (2, 6, 5, d, c))]
    assert pairwise.direct(form, 2, 6, 5, d, c) == (way == "as shipped" and form != "dot")
    assert torch.autograd.gradcheck(lambda *t: ours(form, *t[:3], 0.7, *t[3:]), given)


def test_concat_ties_in_the_sort_and_at_zero(way):
    shape = (2, 60, 50, 2, 3)
    given = [t.mul(1.5).round() for t in operands("concat", shape)]
    d = shape[3]
    sums = (given[0] @ given[3][:d])[:, :, None] + (given[1] @ given[3][d:])[:, None]
    if not (sums == 0).any():  # w may have come out as zeros
        given[3] = torch.tensor([1.0, -1, 1, 2], dtype=torch.float64)
    assert_same("concat", given)


def test_concat_with_every_pair_dead_or_alive(way):
    q, k, v, w = operands("concat", (2, 30, 40, 3, 4))
    for sign in (-1, 1):
        given = [q.abs(), k.abs(), v, sign * w.abs()]
        assert (with_gradients(ours, "concat", given)[0] == 0).all() == (sign < 0)
        assert_same("concat", given)


@pytest.mark.parametrize("form", FORMS)
def test_strided_operands(form, way):
    given = operands(form, (2, 23, 31, 6, 6))
    strided = [t.mT.contiguous().mT if t.ndim == 3 else t.repeat_interleave(2)[::2] for t in given]
    assert not any(t.is_contiguous() for t in strided)
    torch.testing.assert_close(with_gradients(ours, form, strided), with_gradients(ours, form, given))
    assert_same(form, strided)


def error(got, want):
    """Root mean square error relative to the exact values'."""
    return ((got.double() - want).norm() / want.norm()).item()


@pytest.mark.parametrize("autocast", [False, True], ids=["cast", "autocast"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("offset", [0.0, 1.0])  # features behind a ReLU have a common part; its errors add up
@pytest.mark.parametrize("c", [32, 48])
@pytest.mark.parametrize("form", FORMS)
def test_half_precision_is_no_worse_than_the_plain_formula(form, c, offset, dtype, autocast, way):
    given = operands(form, (2, 220, 190, 32, c), torch.float32)
    given = [(t + offset * torch.randn(t.shape[-1])).to(dtype) for t in given]
    exact = with_gradients(naive, form, [t.double() for t in given], scale=32**-0.5)
    results = [
        with_gradients(function, form, given, scale=32**-0.5, autocast=dtype if autocast else None)
        for function in (ours, naive)
    ]
    names = ("y", "dq", "dk", "dv", "dw")
    for name, got, plain, want in zip(names, *results, exact, strict=False):
        assert got.dtype == dtype
        assert error(got, want) <= 1.1 * error(plain, want), name


def test_float32_concat_where_a_and_b_cancel():
    """Sums of a prefix lose what a and b have in common, unless it is taken out first."""
    q, k = 1000 + torch.randn(1, 900, 1), -1000 + torch.randn(1, 800, 1)
    v, w = torch.randn(1, 800, 4), torch.ones(2)
    want = naive("concat", q.double(), k.double(), v.double(), w=w.double())
    assert error(pairwise.concat(q, k, v, w), want) < 1e-6


def test_float16_does_not_overflow_where_the_result_fits(way):
    q, k, v = (torch.full((1, 300, 64), 40.0, dtype=torch.float16) for _ in range(3))
    assert naive("dot", q, k, v).isinf().any()  # 64 * 40 * 40 > 65504
    for t in with_gradients(ours, "dot", [q / 8, k, v / 40]):
        assert t.isfinite().all()
    if way == "large N":  # few keys go by the plain formula, which overflows where it does
        torch.testing.assert_close(pairwise.gaussian(q, k, v, 64**-0.5), v, rtol=2e-3, atol=0)


def peak_bytes(run):
    """The most bytes that torch's allocator held above what it held before, and the largest single piece."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    assert events, "the profiler saw no allocation"
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak, max(e.nbytes() for e in events)


@pytest.mark.parametrize("form, d, c", [("gaussian", 8, 8), ("gaussian", 8, 4), ("dot", 8, 8), ("concat", 8, 8)])
def test_memory_is_linear_in_n(form, d, c):
    """Forward and backward at the paper's 32-frame res3 (few channels, for time): never a twentieth of the pairs."""
    queries, keys = 25_088, 6_272
    given = operands(form, (1, queries, keys, d, c), torch.float32)
    peak, largest = peak_bytes(lambda: with_gradients(ours, form, given))
    pairs = 4 * queries * keys
    chunk = 4 * pairwise.CHUNK if d != c else 0
    assert largest <= max(chunk, pairs / 100)
    assert peak <= 3 * chunk + 12 * 4 * queries * max(d, c)
    assert peak < pairs / 10


@pytest.mark.parametrize("form", FORMS)
def test_the_memory_test_would_notice(form):
    queries, keys = 3_000, 2_000
    peak, largest = peak_bytes(lambda: with_gradients(naive, form, operands(form, (1, queries, keys, 8, 8))))
    assert largest >= 8 * queries * keys and peak >= 16 * queries * keys


@pytest.mark.parametrize("form", FORMS)
def test_pairs_are_held_only_where_they_are_few(form, seed):
    rng = random.Random(seed)
    for _ in range(500):
        problems, queries, keys, d, c = (int(2 ** rng.uniform(0, top)) for top in (3, 15, 14, 11, 11))
        if pairwise.direct(form, problems, queries, keys, d, c):
            pairs = problems * queries * keys
            room = problems * ((queries + keys) * (d + c))
            assert pairs <= max(room, pairwise.FEW_PAIRS, pairwise.FEW_KEYS * problems * queries)


@pytest.mark.parametrize("form", FORMS)
def test_refusals(form):
    q, k, v, *w = operands(form, (2, 5, 4, 3, 3))
    for bad in ((q[0], k, v), (q[:1], k, v), (q, k[:, :3], v), (q[..., :2], k, v), (q, k[:, :0], v[:, :0])):
        with pytest.raises(UsageError, match=r"\(2, |no keys"):
            ours(form, *bad, 1.0, *w)
    if w:
        with pytest.raises(UsageError, match=r"must be \(6,\)"):
            pairwise.concat(q, k, v, w[0][:5])
