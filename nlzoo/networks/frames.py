"""Videos through 2-D kernels: how the network computes on a GPU and for predictions, and why it is fast there.

With channels last in memory, a video `(B, C, T, H, W)` is the images `(B * T, C, H, W)` without a copy, and also the
images `(B, C, T, H * W)`. So a 1 x k x k convolution is a 2-D one, a t x 1 x 1 convolution is another, a 1 x 1 x 1
convolution is a matrix product, and BatchNorm and pooling are those of images: cuDNN's and torch's 2-D kernels are
several times as fast as the 3-D ones, and no layout is converted on the way (docs/performance.md has the figures).
Values are those of the 3-D layers but for rounding. Parameters keep their shapes, so nothing is to be converted.

A CPU trains by 3-D kernels, which are as fast there, but for what is a matrix product; its predictions (torch's
inference mode) are made so too.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable

DEVICES = {"cuda"}  # whose tensors are always computed so
_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by the number of axes


def folds(x: Tensor) -> bool:
    """Whether `x` is a video to be computed on by 2-D kernels."""
    if x.ndim != 5 or x.device.type in DEVICES:
        return x.ndim == 5
    return not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()  # which no compiler can ask


def fold(x: Tensor) -> Tensor:
    """The frames `(B * T, C, H, W)` of `(B, C, T, H, W)`: a view where channels are last in memory, else a copy."""
    return x.contiguous(memory_format=torch.channels_last_3d).transpose(1, 2).flatten(0, 1)


def channels_last(x: Tensor) -> bool:
    """Whether `x` `(B, C, T, H, W)` lies in memory with its channels last."""
    return x.is_contiguous(memory_format=torch.channels_last_3d)


def layout(x: Tensor) -> torch.memory_format:
    """How `x` `(B, C, T, H, W)` lies in memory; what a layer gives should lie so too.

    On a CPU, torch 2.13's BatchNorm rounds half-precision gradients far more where video and gradient lie differently.
    """
    return torch.channels_last_3d if channels_last(x) else torch.contiguous_format


def channels_last_(net: nn.Module) -> None:
    """Lays the kernels of `net` out as clips are, so that no step converts them. Values and state dicts stay."""
    for p in net.parameters():
        if p.ndim in _LAST:
            p.data = p.data.contiguous(memory_format=_LAST[p.ndim])


def unfold(y: Tensor, batch: int) -> Tensor:
    """The inverse of `fold` for `batch` videos."""
    return y.unflatten(0, (batch, -1)).transpose(1, 2)


class BatchNorm(nn.BatchNorm3d):
    """`nn.BatchNorm3d`; torch has kernels for channels last of four axes only, and takes three times as long for five.

    (`batch_norm_choose_impl` in aten/src/ATen/native/cuda/Normalization.cu.) On a CPU, torch 2.13 gives wrong gradients
    without a word where values of one frame, or of frames of one position, lie in memory in another order than their
    gradients; of three axes it knows one order only.
    """

    def forward(self, input: Tensor) -> Tensor:
        super()._check_input_dim(input)
        if _shared and self.training:
            return self._normalised_by_all(input)
        if folds(input):
            return unfold(super().forward(fold(input)), input.shape[0])
        if input.shape[2] == 1 or input.shape[3:].numel() == 1:
            return super().forward(input.flatten(2)).unflatten(2, input.shape[2:])
        return super().forward(input)

    def _check_input_dim(self, input: Tensor) -> None:
        """Nothing: `forward` has looked, and makes fewer axes of five."""

    def _normalised_by_all(self, x: Tensor) -> Tensor:
        """By mean and variance of the clips of all processes, each of which has some.

        Those of each are put together as Chan et al. (1983) do, which loses no digits where the mean is large.
        Gradients go through the exchange: those of one process count what its clips did to the others' losses.
        """
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        var, mean = torch.var_mean(wide, (0, 2, 3, 4), correction=0)
        own = torch.cat([mean, var, mean.new_full((1,), x.numel() / len(mean))])
        place = F.one_hot(torch.tensor(distributed.get_rank()), distributed.get_world_size()).to(own)
        means, variances, counts = _SumOfAll.apply(torch.outer(place, own)).split([len(mean), len(mean), 1], 1)
        count = counts.detach().sum()
        shares = counts.detach() / count
        mean = (shares * means).sum(0)
        var = (shares * (variances + (means - mean).square())).sum(0)
        self._remember(mean.detach(), var.detach() * count / (count - 1))
        scale = self.weight * (var + self.eps).rsqrt()
        shape = (-1, 1, 1, 1)
        return ((wide - mean.view(shape)) * scale.view(shape) + self.bias.view(shape)).to(x.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, var: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += 1
        momentum = self.momentum
        if momentum is None:  # the mean of all batches so far
            momentum = 1 / int(self.num_batches_tracked or 1)
        self.running_mean.lerp_(mean.to(self.running_mean), momentum)
        self.running_var.lerp_(var.to(self.running_var), momentum)


class _SumOfAll(torch.autograd.Function):
    """The sum of a tensor over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        distributed.all_reduce(total)
        return total


_shared = False  # not a setting of each module: `recomputing` runs a forward pass again in autograd's own thread


@contextlib.contextmanager
def shared_statistics(on: bool = True) -> Iterator[None]:
    """Inside it, BN that trains normalises by the clips of all processes together (synchronised BatchNorm).

    For forward and backward passes that all processes run in the same order, each on a clip or more. `torch.nn`'s own
    runs on GPUs alone.
    """
    global _shared
    before, _shared = _shared, on
    try:
        yield
    finally:
        _shared = before


class MaxPool(nn.MaxPool3d):
    """`nn.MaxPool3d`, by frames where its window is one frame long."""

    def forward(self, input: Tensor) -> Tensor:
        sizes: Any = self.kernel_size, self.stride, self.padding, self.dilation
        kernel, stride, padding, dilation = sizes
        if not folds(input) or (kernel[0], stride[0], padding[0]) != (1, 1, 0):
            return super().forward(input)
        y = F.max_pool2d(fold(input), kernel[1:], stride[1:], padding[1:], dilation[1:], self.ceil_mode)
        return unfold(y, input.shape[0])


def is_pointwise(layer: nn.Conv3d) -> bool:
    """Whether it is one matrix product for all positions."""
    one = layer.weight.shape[2:].numel() == 1 and layer.padding == (0, 0, 0)
    return one and layer.stride == (1, 1, 1) and layer.groups == 1


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 1x1x1 convolution `(B, C, T, H, W)` to `(B, O, T, H, W)`, both channels last, by `weight` `(O, C, 1, 1, 1)`.

    It is a product with the rows of one matrix. For float32 on a CPU oneDNN's convolution is the faster product, for
    half precision the slower one where frames are small (docs/performance.md).
    """
    cpu = x.device.type in {"cpu"} - DEVICES  # a test puts it there, to see what a GPU does
    if cpu and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu"):
        return F.conv2d(x.flatten(3), weight.squeeze(4), bias).unflatten(3, x.shape[3:])
    return F.linear(x.permute(0, 2, 3, 4, 1), weight.flatten(1), bias).permute(0, 4, 1, 2, 3)


def conv(layer: nn.Conv3d, x: Tensor, replicate: int) -> Tensor:
    """What `layer` gives for `x` `(B, C, T, H, W)`, with `replicate` copies of the first and last frame before it.

    Without copies the layer's own temporal padding, of zeros, counts.
    """
    weight, bias = layer.weight, layer.bias
    taps, *kernel = weight.shape[2:]
    stride, padding, dilation = layer.stride, layer.padding, layer.dilation
    assert not isinstance(padding, str)
    space: dict[str, Any] = {"stride": stride[1:], "padding": padding[1:], "dilation": dilation[1:]}
    if is_pointwise(layer):
        return pointwise(x, weight, bias)
    if taps == 1:
        if stride[0] == 1:
            return unfold(F.conv2d(fold(x), weight.squeeze(2), bias, groups=layer.groups, **space), x.shape[0])
    elif kernel == [1, 1] and stride == (1, 1, 1) and layer.groups == 1:
        return _temporal(x, weight, bias, replicate or padding[0], bool(replicate))
    if x.shape[1] <= STACKED and layer.groups == 1 and replicate:
        stacked, wide = _stacked(x, weight, stride[0])
        return unfold(F.conv2d(stacked, wide, bias, **space), x.shape[0])
    if replicate:  # not F.pad, whose backward adds in no fixed order
        x = torch.cat([x[:, :, :1]] * replicate + [x] + [x[:, :, -1:]] * replicate, 2)
    x = x.contiguous(memory_format=torch.channels_last_3d)
    return F.conv3d(x, weight, bias, stride, padding, dilation, layer.groups)


# -- the stem ---------------------------------------------------------------------------------------------------------

STACKED = 4  # up to so many channels, the frames that a tap sees are put side by side as channels


def _stacked(x: Tensor, weight: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """`(images (B * T', t * C, H, W), kernel (O, t * C, h, w))` whose 2-D convolution is the 3-D one.

    Frames beyond the ends are the first and last. Channels are filled up with zeros to a multiple of 8, which the
    matrix units want.
    """
    batch, channels, count, height, width = x.shape
    taps = weight.shape[2]
    first = torch.arange(0, count, stride, device=x.device).unsqueeze(1)
    seen = (first + torch.arange(taps, device=x.device) - taps // 2).clamp(0, count - 1)
    rows = x.transpose(1, 2).index_select(1, seen.flatten())  # (B, T' * t, C, H, W)
    images = rows.reshape(batch * seen.shape[0], taps * channels, height, width)
    fill = (0, 0, 0, 0, 0, -(taps * channels) % 8)
    wide = weight.transpose(1, 2).flatten(1, 2)
    return F.pad(images, fill).contiguous(memory_format=torch.channels_last), F.pad(wide, fill)


# -- t x 1 x 1 --------------------------------------------------------------------------------------------------------


def _temporal(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int, replicate: bool) -> Tensor:
    """A t x 1 x 1 convolution of stride 1, as one over the images `(B, C, T, H * W)`."""
    height, width = x.shape[3:]
    kind = x.device.type
    x, weight = x.contiguous(memory_format=torch.channels_last_3d).flatten(3), weight.flatten(3)
    if replicate and kind not in DEVICES:  # a CPU copies frames in less time than it corrects those at the ends
        x = torch.cat([x[:, :, :1]] * padding + [x] + [x[:, :, -1:]] * padding, 2)
        y = F.conv2d(x, weight)
    elif replicate and torch.is_autocast_enabled(
        kind
    ):  # cast as a convolution's operands are, and what is inside is not
        dtype = torch.get_autocast_dtype(kind)
        with torch.autocast(kind, enabled=False):
            y = _Replicated.apply(x.to(dtype), weight.to(dtype))
    elif replicate:
        y = _Replicated.apply(x, weight)
    else:
        y = F.conv2d(x, weight, None, 1, (padding, 0))
    if bias is not None:
        y = y + bias.to(y.dtype)[:, None, None]
    return y.unflatten(3, (height, width))


class _Replicated(torch.autograd.Function):
    """Convolves x `(B, C, T, N)`, channels last, along T by w `(O, C, t, 1)`, its first and last frame repeated.

    Zeros are padded, which costs nothing, and what the repeated frames would have added is added to the few frames
    next to an end. Copying x into a longer tensor takes as long as the convolution.
    """

    @staticmethod
    def forward(x: Tensor, w: Tensor) -> Tensor:
        y = F.conv2d(x, w, None, 1, (w.shape[2] // 2, 0))
        for out, end, taps in _beyond(w.shape[2], x.shape[2]):
            kernel = w[:, :, taps, 0].sum(2).t().expand(x.shape[0], -1, -1)
            _add_product(y[:, :, out].mT, x[:, :, end].mT, kernel)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, w = ctx.saved_tensors
        padding, needs = [w.shape[2] // 2, 0], [*ctx.needs_input_grad[:2], False]
        dy = dy.contiguous(memory_format=torch.channels_last)
        with torch.autocast(dy.device.type, enabled=False):  # which a caller may have on around `backward`
            dx, dw, _ = torch.ops.aten.convolution_backward(
                dy, x, w, None, [1, 1], padding, [1, 1], False, [0, 0], 1, needs
            )
            for out, end, taps in _beyond(w.shape[2], x.shape[2]):
                if needs[0]:
                    kernel = w[:, :, taps, 0].sum(2).expand(x.shape[0], -1, -1)
                    _add_product(dx[:, :, end].mT, dy[:, :, out].mT, kernel)
                if needs[1]:
                    dw[:, :, taps, 0] += torch.bmm(dy[:, :, out], x[:, :, end].mT).sum(0).unsqueeze(2)
        return dx, dw


def _add_product(y: Tensor, a: Tensor, b: Tensor) -> None:
    """`y += a @ b` `(B, M, N)`. torch 2.13 has no fast `baddbmm` of half precision for a CPU, but fast products."""
    if y.device.type == "cpu" and y.dtype in (torch.bfloat16, torch.float16):
        y += a @ b
    else:
        y.baddbmm_(a, b)


def _beyond(taps: int, frames: int) -> Sequence[tuple[int, int, slice]]:
    """`(frame of the result, first or last frame, taps that see copies of it)`, wherever taps reach beyond an end."""
    half = taps // 2
    ends = []
    for out in range(frames):
        before, behind = half - out, out + half - (frames - 1)
        if before > 0:
            ends.append((out, 0, slice(0, before)))
        if behind > 0:
            ends.append((out, frames - 1, slice(taps - behind, taps)))
    return ends
