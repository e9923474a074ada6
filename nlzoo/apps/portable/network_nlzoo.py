"""A 3-D ResNet with non-local blocks, in torch alone, as nlzoo exports it.

    net = build(layers)              # "layers" of config.json
    logits = net(clips)              # (B, 3, T, H, W), normalised, to (B, classes)

Names of parameters are those of the nlzoo model (and of timm's 2-D ResNet). The result is that of the nlzoo network
but for rounding. `fold_batch_norms` makes it a network for inference alone.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Conv(nn.Conv3d):
    """A 3-D convolution, before which the first and last frame are repeated `replicate` times."""

    def __init__(self, *sizes: Any, replicate: int = 0, **more: Any):
        super().__init__(*sizes, **more)
        self.replicate = replicate

    def forward(self, x: Tensor) -> Tensor:
        if self.replicate:
            x = torch.cat([x[:, :, :1]] * self.replicate + [x] + [x[:, :, -1:]] * self.replicate, 2)
        return super().forward(x)


class TemporalMaxPool(nn.Module):
    """Max over `kernel` frames, every second kept; a clip of one frame stays."""

    def __init__(self, kernel: int):
        super().__init__()
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_exporting() and x.shape[2] == 1:  # a graph for all T wants T > 1 here
            return x
        return F.max_pool3d(x, (self.kernel, 1, 1), (2, 1, 1), ((self.kernel - 1) // 2, 0, 0))


class GlobalAveragePool(nn.Module):
    """The mean over frames and positions, `(B, C)` in float32 at least."""

    def forward(self, x: Tensor) -> Tensor:
        return wide(x).mean((2, 3, 4))


class Head(nn.Linear):
    """The last layer, in the precision of its weights."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


class SqueezeExcite(nn.Module):
    """Channels of a frame are weighed by what two layers make of their means in that frame."""

    fc1: nn.Conv2d
    fc2: nn.Conv2d
    act: nn.Module
    gate: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        weights = x.mean((3, 4)).transpose(1, 2)  # (B, T, C)
        weights = self.act(F.linear(weights, self.fc1.weight.flatten(1), self.fc1.bias))
        weights = self.gate(F.linear(weights, self.fc2.weight.flatten(1), self.fc2.bias))
        return x * weights.transpose(1, 2).unsqueeze(3).unsqueeze(4)


class Eca(nn.Module):
    """Channels of a frame are weighed by a convolution over their means in that frame."""

    conv: nn.Conv1d
    gate: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((3, 4)).transpose(1, 2)  # (B, T, C)
        weights = self.gate(self.conv(means.flatten(0, 1).unsqueeze(1))).view(means.shape)
        return x * weights.transpose(1, 2).unsqueeze(3).unsqueeze(4)


class FrameGroupNorm(nn.GroupNorm):
    """Group normalisation of each frame."""

    def forward(self, x: Tensor) -> Tensor:
        return images_to_clips(super().forward(clips_to_images(x)), x)


class BlurPool(nn.Module):
    """A fixed blur of each frame, with stride."""

    def __init__(self, channels: int, filt: list[list[float]], padding: list[int], mode: str, stride: int):
        super().__init__()
        self.channels, self.filt, self.padding, self.mode, self.stride = channels, filt, padding, mode, stride

    def forward(self, x: Tensor) -> Tensor:
        images = F.pad(clips_to_images(x), self.padding, self.mode)
        filt = torch.tensor(self.filt, dtype=x.dtype, device=x.device).expand(self.channels, 1, -1, -1)
        return images_to_clips(F.conv2d(images, filt, stride=self.stride, groups=self.channels), x)


class NonLocal(nn.Module):
    """z = w_z y + x, with y_i = 1 / C sum_j f(x_i, x_j) g(x_j): "Non-local Neural Networks", equations 1 and 6.

    form: gaussian, embedded, dot or concat. span: a position sees the clip (spacetime), its frame (space) or itself
    in all frames (time). subsample: where the keys are pooled. scale: of the logits of a softmax.
    """

    def __init__(self, channels: int, inner: int, form: str, span: str, subsample: str, scale: float, norm: str):
        super().__init__()
        self.form, self.span, self.subsample, self.scale = form, span, subsample, scale
        if form != "gaussian":
            self.theta, self.phi = Conv(channels, inner, 1), Conv(channels, inner, 1)
        self.g = Conv(channels, inner, 1)
        if form == "concat":
            self.w_f = Conv(2 * inner, 1, 1, bias=False)
        self.w_z = Conv(inner, channels, 1)
        if norm == "bn":
            self.bn = nn.BatchNorm3d(channels)

    def forward(self, x: Tensor) -> Tensor:
        pooled = "none" if self.span == "time" else self.subsample
        keys = halve(x) if pooled == "before" else x
        q, k = (x, keys) if self.form == "gaussian" else (self.theta(x), self.phi(keys))
        v = self.g(keys)
        if pooled == "after":
            k, v = halve(k), halve(v)
        y = self.combine(rows(q, self.span), rows(k, self.span), rows(v, self.span))
        z = self.w_z(unrows(y, x, self.span))
        return x + (self.bn(z) if "bn" in self._modules else z)

    def combine(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """y `(B', Nq, C)` of q `(B', Nq, D)`, k `(B', Nk, D)` and v `(B', Nk, C)`."""
        if self.form in ("gaussian", "embedded"):
            return F.scaled_dot_product_attention(q.unsqueeze(1), k.unsqueeze(1), v.unsqueeze(1), scale=self.scale)[
                :, 0
            ]
        dtype, (q, k, v) = v.dtype, map(wide, (q, k, v))
        if self.form == "dot":
            return (q @ (k.transpose(1, 2) @ v / k.shape[1])).to(dtype)
        first, second = wide(self.w_f.weight).flatten().chunk(2)
        pairs = ((q @ first).unsqueeze(2) + (k @ second).unsqueeze(1)).relu()
        return (pairs @ v / k.shape[1]).to(dtype)


class Block(nn.Module):
    """A residual block: its layers in order, the last of them behind the sum with the shortcut."""

    def forward(self, x: Tensor) -> Tensor:
        *layers, last = [layer for name, layer in self.named_children() if name != "downsample"]
        y = x
        for layer in layers:
            y = layer(y)
        return last(y + (self.get_submodule("downsample")(x) if "downsample" in self._modules else x))


class Branches(nn.Module):
    """Layers on one input, side by side as channels."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.children()], 1)


class ResNet(nn.Module):
    """All layers, one after the other."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = layer(x)
        return x


def wide(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def clips_to_images(x: Tensor) -> Tensor:
    """`(B, C, T, H, W)` to `(B T, C, H, W)`."""
    return x.transpose(1, 2).flatten(0, 1)


def images_to_clips(y: Tensor, like: Tensor) -> Tensor:
    """`(B T, C, H, W)` to `(B, C, T, H, W)`, with B and T of `like`."""
    return y.unflatten(0, (like.shape[0], like.shape[2])).transpose(1, 2)


def halve(x: Tensor) -> Tensor:
    """1x2x2 max-pool; a height or width of 1 stays."""
    exporting = torch.compiler.is_exporting()  # a graph for all sizes wants at least 2 here
    window = (2, 2) if exporting else (min(2, x.shape[3]), min(2, x.shape[4]))
    return F.max_pool3d(x, (1, *window), (1, *window))


def rows(x: Tensor, span: str) -> Tensor:
    """`(B, C, T, H, W)` to `(problems, positions, C)`."""
    if span == "time":
        return x.permute(0, 3, 4, 2, 1).flatten(0, 2)
    if span == "space":
        return x.permute(0, 2, 3, 4, 1).flatten(2, 3).flatten(0, 1)
    return x.flatten(2).transpose(1, 2)


def unrows(y: Tensor, like: Tensor, span: str) -> Tensor:
    """The inverse of `rows`, with B, T, H, W of `like`."""
    b, _, t, h, w = like.shape
    if span == "time":
        return y.reshape(b, h, w, t, y.shape[2]).permute(0, 4, 3, 1, 2)
    return y.reshape(b, t, h, w, y.shape[2]).permute(0, 4, 1, 2, 3)


KINDS: dict[str, type[nn.Module]] = {
    "resnet": ResNet, "block": Block, "branches": Branches, "sequential": nn.Sequential, "conv": Conv,
    "batch_norm": nn.BatchNorm3d, "group_norm": FrameGroupNorm, "max_pool": nn.MaxPool3d, "avg_pool": nn.AvgPool3d,
    "blur_pool": BlurPool, "temporal_max_pool": TemporalMaxPool, "global_pool": GlobalAveragePool,
    "squeeze_excite": SqueezeExcite, "eca": Eca, "conv1d": nn.Conv1d, "conv2d": nn.Conv2d,
    "non_local": NonLocal, "head": Head, "relu": nn.ReLU, "silu": nn.SiLU, "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU, "sigmoid": nn.Sigmoid, "identity": nn.Identity,
}  # fmt: skip


def build(layers: Mapping[str, Mapping[str, Any]]) -> ResNet:
    """The network of `{path: {"kind": …, arguments}}`, parents before their children and siblings in order."""
    net = ResNet()
    for path, layer in layers.items():
        parent, _, name = path.rpartition(".")
        arguments = {key: value for key, value in layer.items() if key != "kind"}
        net.get_submodule(parent).add_module(name, KINDS[layer["kind"]](**arguments))
    return net.eval()


@torch.no_grad()
def fold_batch_norms(net: nn.Module) -> int:
    """Puts each batch norm behind a convolution into that convolution, in place; how many. For inference alone.

    Computed in float64 and rounded once.
    """
    folded = 0
    for module in net.modules():
        for before, name in list(pairwise(module._modules)):
            conv, norm = module._modules.get(before), module._modules[name]
            while isinstance(conv, nn.Sequential):
                conv = conv[-1]
            if isinstance(conv, nn.Conv3d) and isinstance(norm, nn.BatchNorm3d):
                _fold(conv, norm)
                del module._modules[name]
                folded += 1
    return folded


def _fold(conv: nn.Conv3d, norm: nn.BatchNorm3d) -> None:
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    bias = conv.bias.double() if conv.bias is not None else 0.0
    conv.bias = nn.Parameter((norm.bias.double() + (bias - norm.running_mean.double()) * scale).to(conv.weight.dtype))
    conv.weight.copy_(conv.weight.double() * scale.view(-1, 1, 1, 1, 1))
