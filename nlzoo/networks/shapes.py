"""Shapes in a network without computing anything: one pass of one clip through a copy on the meta device.

Unusual: layers whose shapes torch would import its compiler for, which takes longer than all else, are asked here.
"""

import math
from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..core.view_spec import ClipSpec
from .inflate import TemporalMaxPool
from .layers import NonLocalBlock
from .network import Network
from .twin import twin

_KEEPS_SHAPE = (NonLocalBlock, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_WINDOWS = (*CONVOLUTIONS, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool2d, nn.AvgPool3d, TemporalMaxPool)


class Call(NamedTuple):
    """What a module was given and what it gave."""

    path: str
    module: nn.Module  # of the copy
    given: tuple[int, ...]  # with the batch's axis, of one clip
    made: tuple[int, ...]


def calls(net: Network, clip: ClipSpec) -> list[Call]:
    """The calls of an inflated network's modules up to the head's mean; of those inside non-local blocks, none."""
    ghost = twin(net).to("meta").eval()
    made: list[Call] = []
    for path, module in ghost.named_modules():
        if isinstance(module, _KEEPS_SHAPE):
            module.forward = lambda x: x  # type: ignore[method-assign]
        elif isinstance(module, _WINDOWS):
            module.forward = partial(_shape_of, module)  # type: ignore[method-assign]
        module.register_forward_hook(
            lambda module, given, out, path=path: made.append(
                Call(path, module, tuple(given[0].shape), tuple(out.shape))
            )
        )
    with torch.no_grad(), _Adding():
        ghost.forward_features(torch.empty(1, clip.channels, clip.frames, clip.size, clip.size, device="meta"))
    return made


def values_of_image(net: Network, modules: Iterable[nn.Module]) -> list[int]:
    """How many numbers of a channel each of `modules`, those of a network on single frames, is given of one frame."""
    chosen, clip = {*modules}, net.spec.clip
    if not chosen:
        return []
    ghost = twin(net).to("meta").eval()
    numbers: list[int] = []
    for path in [path for path, module in net.named_modules() if module in chosen]:
        ghost.get_submodule(path).register_forward_pre_hook(
            lambda _, given: numbers.append(math.prod(given[0].shape[2:]))
        )
    with torch.no_grad():
        ghost.forward_features(torch.empty(1, clip.channels, 1, clip.size, clip.size, device="meta"))
    return numbers


class _Adding(TorchFunctionMode):
    """A residual block's `x += shortcut` without asking torch what shape that has."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.Tensor.add_ and args[0].shape == args[1].shape:
            return args[0]
        return func(*args, **(kwargs or {}))


def _shape_of(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """What a convolution or a pool gives for `x`, in shape."""
    batch, channels, *sizes = x.shape
    if isinstance(layer, TemporalMaxPool):
        if sizes[0] > 1 and layer.kernel > 1:
            sizes[0] = _windows(sizes[0], layer.kernel, 2, (layer.kernel - 1) // 2)
        return x.new_empty(batch, channels, *sizes)
    names = ("kernel_size", "stride", "padding", "dilation")
    kernel, stride, padding, dilation = (_each_axis(getattr(layer, name, 1), len(sizes)) for name in names)
    padding[0] += getattr(layer, "replicate", 0)
    axes = zip(sizes, kernel, stride, padding, dilation, strict=True)
    sizes = [_windows(*axis, getattr(layer, "ceil_mode", False)) for axis in axes]
    return x.new_empty(batch, getattr(layer, "out_channels", channels), *sizes)


def _windows(size: int, taps: int, step: int, padding: int, dilation: int = 1, ceil: bool = False) -> int:
    """How many windows lie on an axis; with `ceil` a last one may reach over its end, but not begin behind it."""
    room = size + 2 * padding - dilation * (taps - 1) - 1
    more = room % step > 0 and (room // step + 1) * step < size + padding
    return room // step + 1 + (ceil and more)


def _each_axis(value: int | tuple[int, ...], axes: int) -> list[int]:
    return [value] * axes if isinstance(value, int) else list(value)
