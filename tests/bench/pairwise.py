"""Time and peak memory of the non-local operation, forward and backward: nlzoo against the plain formula and its peers.

    python -m tests.bench pairwise                     pairs only: docs/performance.md, 20 minutes on an idle core
    python -m tests.bench pairwise --only "8 frames"   some rows, a minute
    python -m tests.bench pairwise --block             whole blocks; also pytorchvideo's and mmcv's, where they import
    python -m tests.bench pairwise --device cuda --dtype bfloat16

One process, rounds interleaved, best time of each (CPU time; device events on CUDA); memory is the allocator's peak
above the operands and the given gradient. A cell is naive over the row's: time | memory. Naive is left out where one
matrix of its pairs is over 3 GiB, and both softmax forms where there are over 3,000 million pairs (minutes on a CPU).
Peers: see peer_nonlocal.py for an environment that has them.
"""

import argparse
import time
from functools import partial

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from nlzoo.networks import pairwise
from nlzoo.networks.layers import NonLocalBlock

# (stage, channels, height = width per crop of 32 pixels), as a network without temporal strides has them
STAGES = (("res4", 1024, 2), ("res3", 512, 4))
SHAPES = [
    (f"{stage}, {frames} frames, {crop}²" + ("" if pool else ", all keys"), channels, frames, side * crop // 32, pool)
    for crop in (224, 256)
    for frames in (8, 32, 128)
    for stage, channels, side in STAGES
    for pool in (True, False)
]
MOST_NAIVE = 3 * 2**30  # bytes of one matrix
MOST_SOFTMAX = 3e9  # pairs
FORMS = ("gaussian", "embedded", "dot", "concat")


def naive_pairs(form, q, k, v, w, scale):
    """The formula as it stands: (B, Nq, D), (B, Nk, D), (B, Nk, C) -> (B, Nq, C), through the pairs."""
    if form == "concat":
        d = q.shape[2]
        return ((q @ w[:d]).unsqueeze(2) + (k @ w[d:]).unsqueeze(1)).relu() / k.shape[1] @ v
    pairs = q @ k.transpose(1, 2)
    return (pairs / k.shape[1] if form == "dot" else (pairs * scale).softmax(2)) @ v


def our_pairs(form, q, k, v, w, scale):
    if form == "concat":
        return pairwise.concat(q, k, v, w)
    return pairwise.dot(q, k, v) if form == "dot" else pairwise.gaussian(q, k, v, scale)


class NaiveBlock(nn.Module):
    """The block as the peers write it: five 3-D convolutions and the plain formula."""

    def __init__(self, channels, form, pool):
        super().__init__()
        inner = channels // 2
        self.form, self.pool = form, nn.MaxPool3d((1, 2, 2)) if pool else nn.Identity()
        self.theta, self.phi, self.g = (nn.Conv3d(channels, inner, 1) for _ in range(3))
        self.w_z, self.bn, self.w_f = nn.Conv3d(inner, channels, 1), nn.BatchNorm3d(channels), torch.randn(2 * inner)

    def forward(self, x):
        keys = self.pool(x)
        q, k = (x, keys) if self.form == "gaussian" else (self.theta(x), self.phi(keys))
        q, k, v = (t.flatten(2).transpose(1, 2) for t in (q, k, self.g(keys)))
        y = naive_pairs(self.form, q, k, v, self.w_f, q.shape[2] ** -0.5)
        return x + self.bn(self.w_z(y.transpose(1, 2).unflatten(2, x.shape[2:])))


def peers(channels, form, pool):
    """Blocks of other zoos that have this form and import here: {name: module}."""
    found = {}
    try:
        from pytorchvideo.layers.nonlocal_net import create_nonlocal

        if form in ("embedded", "dot"):
            found["pytorchvideo"] = create_nonlocal(
                dim_in=channels,
                dim_inner=channels // 2,
                pool_size=(1, 2, 2) if pool else None,
                instantiation="softmax" if form == "embedded" else "dot_product",
            )
    except ImportError:
        pass
    try:
        from mmcv.cnn import NonLocal3d

        if form != "concat":  # its concatenation holds N x N x C numbers
            mode = {"embedded": "embedded_gaussian", "dot": "dot_product"}.get(form, form)
            found["mmcv"] = NonLocal3d(channels, mode=mode, sub_sample=pool, norm_cfg=dict(type="BN3d"))
    except ImportError:
        pass
    return found


def pair_candidates(form, channels, frames, side, pool, like):
    torch.manual_seed(0)
    inner, queries = channels // 2, frames * side**2
    keys = frames * (side // 2 if pool else side) ** 2
    d = channels if form == "gaussian" else inner
    operands = [
        torch.randn(1, n, c, **like).mul_(0.3).requires_grad_() for n, c in ((queries, d), (keys, d), (keys, inner))
    ]
    operands.append(torch.randn(2 * d, **like).requires_grad_())
    dy = torch.randn(1, queries, inner, **like)

    def step(pairs):
        y = pairs(form, *operands, d**-0.5)
        torch.autograd.grad(y, operands, dy, allow_unused=True)

    return _possible(
        {"naive": lambda: step(naive_pairs), "nlzoo": lambda: step(our_pairs)}, form, queries * keys, dy.itemsize
    )


def block_candidates(form, channels, frames, side, pool, like):
    torch.manual_seed(0)
    x = torch.randn(1, channels, frames, side, side, **like).relu_().requires_grad_()
    dy = torch.randn_like(x)
    blocks = {
        "naive": NaiveBlock(channels, form, pool),
        "nlzoo": NonLocalBlock(channels, form, subsample="before" if pool else "none"),
        **peers(channels, form, pool),
    }

    def step(block):
        torch.autograd.grad(block(x), [x, *block.parameters()], dy, allow_unused=True)

    steps = {name: partial(step, block.to(**like)) for name, block in blocks.items()}
    return _possible(steps, form, frames * side**2 * frames * (side // 2 if pool else side) ** 2, dy.itemsize)


def _possible(candidates, form, pairs, itemsize):
    if form in ("gaussian", "embedded") and pairs > MOST_SOFTMAX:
        return {}
    return candidates if pairs * itemsize <= MOST_NAIVE else {"nlzoo": candidates["nlzoo"]}


def seconds(run, device):
    """Of one run: CPU time of this process, or between two events of the device."""
    if device == "cpu":
        start = time.process_time()
        run()
        return time.process_time() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def peak_bytes(run, device):
    """The most bytes that torch's allocator held above what it held before."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def measure(candidates, rounds, device):
    """`{name: (best seconds, peak bytes)}`; every candidate once per round."""
    best = dict.fromkeys(candidates, float("inf"))
    for _ in range(rounds):
        for name, run in candidates.items():
            best[name] = min(best[name], seconds(run, device))
    return {name: (best[name], peak_bytes(run, device)) for name, run in candidates.items()}


def cell(figures, who):
    """naive over `who`: time | memory; where naive does not fit, the time and memory of `who`."""
    if who not in figures:
        return "—"
    time_, memory = figures[who]
    if "naive" not in figures:
        return f"({time_:.2g} s, {memory / 2**20:.0f} MiB)"
    return f"{figures['naive'][0] / time_:.2g} \\| {figures['naive'][1] / memory:.2g}"


def main(arguments):
    parser = argparse.ArgumentParser(
        prog="pairwise", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--block", action="store_true", help="whole blocks instead of the pairs only")
    parser.add_argument("--only", default="", help="shapes whose name has this in it")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--forms", nargs="+", default=FORMS, choices=FORMS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    like = {"device": args.device, "dtype": getattr(torch, args.dtype)}
    print(
        f"torch {torch.__version__}, {args.device}, {args.threads} thread(s), {args.dtype}, forward and backward, "
        f"{'whole block' if args.block else 'pairs only'}; naive over the column's: time | memory\n",
        flush=True,
    )
    columns = [
        (form, who)
        for form in args.forms
        for who in (("nlzoo", "pytorchvideo", "mmcv") if args.block else ("nlzoo",))
        if who == "nlzoo" or who in peers(8, form, True)
    ]
    print(
        "| shape | queries × keys |",
        " | ".join(form if who == "nlzoo" else f"{form}, {who}" for form, who in columns),
        "|",
    )
    print("|---" * (2 + len(columns)) + "|", flush=True)
    make = block_candidates if args.block else pair_candidates
    for name, *shape in (s for s in SHAPES if args.only in s[0]):
        _, frames, side, pool = shape
        queries, keys = frames * side**2, frames * (side // 2 if pool else side) ** 2
        rounds = 1 if queries * keys > 10**9 else args.rounds
        figures = {form: measure(make(form, *shape, like), rounds, args.device) for form in args.forms}
        print(
            f"| {name} | {queries:,} × {keys:,} |",
            " | ".join(cell(figures[form], who) for form, who in columns),
            "|",
            flush=True,
        )
