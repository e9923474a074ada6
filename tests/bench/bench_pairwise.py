"""Time and peak memory of the non-local operation, forward and backward: nlzoo against the plain formula.

    python tests/bench/bench_pairwise.py                                pairs only, a minute on an idle core
    python tests/bench/bench_pairwise.py --block                        whole blocks; also pytorchvideo's and mmcv's,
                                                                        where they import
    python tests/bench/bench_pairwise.py --big --only "res3, 32"        25,088 queries: 3 GB, minutes

One process, rounds interleaved, best CPU time of each; memory is the allocator's peak above the operands and the
given gradient, from one more run under torch.profiler. Peers: see peer_nonlocal.py for an environment that has them.
"""

import argparse
import itertools
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parents[2]))
from nlzoo import pairwise  # noqa: E402
from nlzoo.layers import NonLocalBlock  # noqa: E402

# name, channels, frames, height = width, sub-sampled; a 224 x 224 network without temporal strides
SHAPES = [("res4, 8 frames", 1024, 8, 14, True), ("res4, 8 frames, all keys", 1024, 8, 14, False),
          ("res3, 8 frames", 512, 8, 28, True), ("res4, 32 frames", 1024, 32, 14, True)]
BIG = [("res3, 8 frames, all keys", 512, 8, 28, False), ("res3, 32 frames", 512, 32, 28, True)]
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
                dim_in=channels, dim_inner=channels // 2, pool_size=(1, 2, 2) if pool else None,
                instantiation="softmax" if form == "embedded" else "dot_product")
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


def pair_candidates(form, channels, frames, side, pool):
    torch.manual_seed(0)
    inner, keys = channels // 2, frames * (side // 2 if pool else side) ** 2
    d = channels if form == "gaussian" else inner
    operands = [torch.randn(1, n, c).mul_(0.3).requires_grad_() for n, c in
                ((frames * side**2, d), (keys, d), (keys, inner))] + [torch.randn(2 * d).requires_grad_()]
    dy = torch.randn(1, frames * side**2, inner)

    def step(pairs):
        y = pairs(form, *operands, d**-0.5)
        torch.autograd.grad(y, operands, dy, allow_unused=True)

    return {"naive": lambda: step(naive_pairs), "nlzoo": lambda: step(our_pairs)}


def block_candidates(form, channels, frames, side, pool):
    torch.manual_seed(0)
    x = torch.randn(1, channels, frames, side, side).relu_().requires_grad_()
    dy = torch.randn_like(x)
    blocks = {"naive": NaiveBlock(channels, form, pool),
              "nlzoo": NonLocalBlock(channels, form, subsample="before" if pool else "none"),
              **peers(channels, form, pool)}

    def step(block):
        torch.autograd.grad(block(x), [x, *block.parameters()], dy, allow_unused=True)

    return {name: (lambda block=block: step(block)) for name, block in blocks.items()}


def best_times(candidates, rounds):
    """{name: best CPU seconds}, every candidate once per round."""
    best = dict.fromkeys(candidates, float("inf"))
    for _ in range(rounds):
        for name, run in candidates.items():
            start = time.process_time()
            run()
            best[name] = min(best[name], time.process_time() - start)
    return best


def peak_bytes(run):
    """The most bytes that torch's allocator held above what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--block", action="store_true", help="whole blocks instead of the pairs only")
    parser.add_argument("--big", action="store_true", help="add the largest shapes")
    parser.add_argument("--only", default="", help="shapes whose name has this in it")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--forms", nargs="+", default=FORMS, choices=FORMS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.threads} thread(s), float32, forward and backward, "
          f"{'whole block' if args.block else 'pairs only'}; x: naive over the row's")
    shapes = [s for s in SHAPES + (BIG if args.big else []) if args.only in s[0]]
    for (name, *shape), form in itertools.product(shapes, args.forms):
        candidates = (block_candidates if args.block else pair_candidates)(form, *shape)
        rounds = 1 if shape[1] * shape[2] ** 2 > 20_000 else args.rounds
        times = best_times(candidates, rounds)
        peaks = {who: peak_bytes(run) for who, run in candidates.items()}
        for who in candidates:
            print(f"{name:26}{form:10}{who:14}{times[who] * 1e3:9.1f} ms  x{times['naive'] / times[who]:<7.2f}"
                  f"{peaks[who] / 2**20:9.1f} MiB  x{peaks['naive'] / peaks[who]:.1f}", flush=True)


if __name__ == "__main__":
    main()
