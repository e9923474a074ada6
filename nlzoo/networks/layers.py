"""The non-local block (paper, section 3.3): z = w_z y + x on (B, C, T, H, W) videos or (B, C, H, W) images.

What is unusual: a fresh block returns its input bit for bit, in training too; the same block, with the same state
dict, serves videos and images; nothing here holds an N x N matrix (`pairwise`); keys may be restricted to the same
frame or to the same position (paper, table 2d). docs/nonlocal.md says what was chosen where paper and authors differ.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.bounds import choices
from ..core.errors import UsageError
from ..core.model_spec import FORMS, NORMS, SPANS, SUBSAMPLES
from . import frames, pairwise


class GlobalAveragePool(nn.Module):
    """Mean over frames and positions: `(B, C, T, H, W)`, or images `(B, C, H, W)`, to `(B, C)`."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(tuple(range(2, x.ndim)))


class Pointwise(nn.Conv3d):
    """A 1x1x1 convolution as one matrix product per clip; parameters and result are those of `nn.Conv3d`.

    Faster than the convolution on a CPU, and needs none of the 3-D kernels of cuDNN, some of which err in bf16.
    """

    def __init__(self, channels: int, out_channels: int, bias: bool = True):
        super().__init__(channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if frames.folds(x) or frames.channels_last(x):
            return frames.pointwise(x, self.weight, self.bias)
        weight = self.weight.flatten(1).expand(x.shape[0], -1, -1)
        if self.bias is None:
            return torch.bmm(weight, x.flatten(2)).unflatten(2, x.shape[2:])
        return torch.baddbmm(self.bias.unsqueeze(1), weight, x.flatten(2)).unflatten(2, x.shape[2:])


class NonLocalBlock(nn.Module):
    """A residual block in which every position sees all others: (B, C, T, H, W) -> the same; (B, C, H, W) is T = 1.

    form: the pairwise function f: gaussian, embedded (gaussian), dot or concat.
    span: where a position's keys are: the whole clip (spacetime), the same frame (space), the same position (time).
    subsample: 1x2x2 max-pool of the keys, on x before phi and g, or after them, or none. Ignored where span is time.
    scale: softmax forms: logits times d^-0.5. norm: bn with gamma 0, or none with w_z 0 (for frozen BN).
    reduction: theta, phi and g have channels // reduction channels.
    Raises `UsageError` for any other value, and for an input of another shape.
    """

    def __init__(
        self,
        channels: int,
        form: str = "embedded",
        span: str = "spacetime",
        subsample: str = "before",
        scale: bool = True,
        norm: str = "bn",
        reduction: int = 2,
    ):
        super().__init__()
        self.channels, self.form, self.span, self.subsample, self.norm = channels, form, span, subsample, norm
        choices(self, form=FORMS, span=SPANS, subsample=SUBSAMPLES, norm=NORMS)
        if not 1 <= reduction <= channels:
            raise UsageError(f"reduction is {reduction}; with {channels} channels it must be from 1 to {channels}")
        inner = channels // reduction
        self.scale = (channels if form == "gaussian" else inner) ** -0.5 if scale else 1.0
        if form != "gaussian":
            self.theta = Pointwise(channels, inner)
            self.phi = Pointwise(channels, inner)
        self.g = Pointwise(channels, inner)
        if form == "concat":
            self.w_f = Pointwise(2 * inner, 1, bias=False)  # of [theta, phi]; only its weight is used
        self.w_z = Pointwise(inner, channels)
        if norm == "bn":
            self.bn = frames.BatchNorm(channels, eps=1e-5, momentum=0.1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """He (paper), biases 0; then gamma = 0, or w_z = 0 where there is no BN, so that z = x.

        theta and phi get sigma = 0.01 (authors' code) where the logits are not scaled: with He the softmax then
        starts on a single key. Scaled, sigma = 0.01 would start it uniform, and BN's eps would swallow what is left.
        """
        for name, conv in self.named_children():
            if not isinstance(conv, Pointwise):
                continue
            if name in ("theta", "phi") and self.form == "embedded" and self.scale == 1:
                nn.init.normal_(conv.weight, std=0.01)
            else:
                nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
        if self.form == "concat":
            # A draw may leave (nearly) every pair below 0, and then nothing is learnt. So both halves of w_f get the
            # sign with which they answer a constant input by more than 0; features behind a ReLU are mostly that.
            with torch.no_grad():
                for half, conv in zip(self.w_f.weight.chunk(2, 1), (self.theta, self.phi), strict=True):
                    half.mul_((half.flatten() @ conv.weight.flatten(1).sum(1)).sign())
        if self.norm == "bn":
            self.bn.reset_parameters()
            nn.init.zeros_(self.bn.weight)
        else:
            nn.init.zeros_(self.w_z.weight)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 4:
            return self.forward(x.unsqueeze(2)).squeeze(2)
        if x.ndim != 5 or x.shape[1] != self.channels:
            raise UsageError(
                f"the input is {tuple(x.shape)}; this block takes (B, {self.channels}, T, H, W), or (B, "
                f"{self.channels}, H, W)"
            )
        q, k, v = self.project(x)
        y = self.combine(_fold(q, self.span), _fold(k, self.span), _fold(v, self.span))
        z = self.w_z(_unfold(y, q, self.span).contiguous(memory_format=frames.layout(x)))
        if self.norm == "bn":
            z = self.bn(z)
        return _Sum.apply(x, z.to(x.dtype))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the pairwise form sees of x (B, C, T, H, W): q (B, D, T, H, W), k and v (B, D or C', T, H', W')."""
        subsample = "none" if self.span == "time" else self.subsample
        keys = _pool(x) if subsample == "before" else x
        q, k = (x, keys) if self.form == "gaussian" else (self.theta(x), self.phi(keys))
        v = self.g(keys)
        return (q, _pool(k), _pool(v)) if subsample == "after" else (q, k, v)

    def combine(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """y (B', Nq, C') of q (B', Nq, D), k (B', Nk, D) and v (B', Nk, C')."""
        if self.form == "dot":
            return pairwise.dot(q, k, v)
        if self.form == "concat":
            return pairwise.concat(q, k, v, self.w_f.weight.flatten())
        return pairwise.gaussian(q, k, v, self.scale)

    def extra_repr(self) -> str:
        return f"form={self.form}, span={self.span}, subsample={self.subsample}, scale={self.scale:.4g}"


class _Sum(torch.autograd.Function):
    """x + z, and bit for bit x where z is 0: 0 - z is then +0, and only subtracting that keeps an x of -0.0."""

    @staticmethod
    def forward(x: Tensor, z: Tensor) -> Tensor:
        return x - (0 - z)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        return dy, dy  # autograd's own would negate it twice, at the price of two copies


def _pool(x: Tensor) -> Tensor:
    """1x2x2 max-pool (B, C, T, H, W); an odd last row or column is dropped, as every peer does; a size of 1 stays."""
    window = min(2, x.shape[3]), min(2, x.shape[4])
    if frames.folds(x):
        return frames.unfold(F.max_pool2d(frames.fold(x), window, window), x.shape[0])
    return F.max_pool3d(x, (1, *window), (1, *window))


def _fold(x: Tensor, span: str) -> Tensor:
    """(B, C, T, H, W) -> (problems, N, C): B, THW; or BT, HW; or BHW, T."""
    if span == "time":
        return x.permute(0, 3, 4, 2, 1).flatten(0, 2)
    rows = x.permute(0, 2, 3, 4, 1)
    return rows.flatten(1, 3) if span == "spacetime" else rows.flatten(2, 3).flatten(0, 1)


def _unfold(y: Tensor, like: Tensor, span: str) -> Tensor:
    """The inverse of `_fold`: (problems, N, C) -> (B, C, T, H, W), with B, T, H, W of `like`."""
    b, _, t, h, w = like.shape
    if span == "time":
        return y.reshape(b, h, w, t, y.shape[2]).permute(0, 4, 3, 1, 2)
    return y.reshape(b, t, h, w, y.shape[2]).permute(0, 4, 1, 2, 3)


@dataclass(frozen=True)
class Cost:
    """One block's forward cost for one clip: multiply-adds, and bytes held between its two products."""

    projections: int  # theta, phi, g, w_z
    naive_products: int  # f(q, k) and its product with v, through the pairs
    products: int  # the same, as `pairwise` does them
    naive_bytes: int  # the pairs, once; training a naive block holds two or three such
    bytes: int  # what `pairwise` holds instead


def block_cost(
    channels: int,
    frames: int,
    height: int,
    width: int,
    form: str = "embedded",
    span: str = "spacetime",
    subsample: str = "before",
    reduction: int = 2,
    itemsize: int = 4,
) -> Cost:
    """The cost of a `NonLocalBlock` on one clip (channels, frames, height, width); `itemsize` bytes per number."""
    inner = channels // reduction
    d = channels if form == "gaussian" else inner
    positions = frames * height * width
    small = subsample != "none" and span != "time"
    kept = frames * (max(height // 2, 1) * max(width // 2, 1) if small else height * width)
    problems = {"spacetime": 1, "space": frames, "time": height * width}[span]
    queries, keys = positions // problems, kept // problems

    sees_all = positions if subsample == "after" else kept  # of phi and g
    maps = positions + sees_all if form == "gaussian" else 2 * (positions + sees_all)
    pairs = queries * keys
    naive = (queries + keys) * d + pairs * (inner + 1) if form == "concat" else pairs * (d + inner)
    products, held = pairwise.cost(form, problems, queries, keys, d, inner, itemsize)
    return Cost(maps * channels * inner, problems * naive, products, problems * pairs * itemsize, held)
