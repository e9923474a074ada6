"""Turns a timm ResNet into a 3-D one in place, and puts non-local blocks into it.

timm's own `forward` does not care about rank, so only leaf modules are swapped, and every pretrained key keeps its
name. Which modules we know is one table of *exact* types, `CONVERTERS`: a type that is not in it is refused by path,
since one that reaches into H x W without our knowing would run and give wrong numbers.

Only this module says layer1..layer4 (timm); everybody else says res2..res5 (paper).
"""

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import UsageError, WeightsError
from ..core.model_spec import POOLS, STAGES, Inflation, NonLocal
from . import frames, googlenet
from .layers import GlobalAveragePool, NonLocalBlock
from .network import Network

LAYER = {"res2": "layer1", "res3": "layer2", "res4": "layer3", "res5": "layer4"}
_INFLATED = {"res2": (0, 1), "res3": (0,), "res4": (0,), "res5": (1,)}  # I3D's residual blocks: even, odd ones


class InflatedConv3d(nn.Conv3d):
    """A Conv2d given a temporal kernel of t taps and stride s.

    Temporal padding is t // 2 on both sides: copies of the first and last frame (`replicate`, so that a clip of one
    repeated frame stays one everywhere) or zeros. Spatial padding stays the 2-D layer's. `(B, C, T, H, W)` to
    `(B, C', ceil(T / s), H', W')`; on a GPU by 2-D kernels, anywhere as a matrix product where it is one (`frames`).
    """

    replicate = 0  # frames repeated at each end before the convolution

    def forward(self, x: Tensor) -> Tensor:
        if frames.folds(x) or frames.is_pointwise(self) and frames.channels_last(x):
            return frames.conv(self, x, self.replicate)
        if self.replicate:
            x = F.pad(x, (0, 0, 0, 0, self.replicate, self.replicate), mode="replicate")
        return super().forward(x)


def _triple(value: int | Sequence[int], first: int) -> tuple[int, int, int]:
    height, width = (value, value) if isinstance(value, int) else value
    return first, height, width


def _conv(old: nn.Conv2d, taps: int, stride: int, inflation: Inflation) -> nn.Conv3d:
    if isinstance(old.padding, str) or old.padding_mode != "zeros":
        raise WeightsError(f"a convolution with padding {old.padding!r}, {old.padding_mode!r} cannot be inflated")
    replicate = inflation.temporal_padding == "replicate"
    new = InflatedConv3d(
        old.in_channels,
        old.out_channels,
        _triple(old.kernel_size, taps),
        _triple(old.stride, stride),
        _triple(old.padding, 0 if replicate else taps // 2),
        _triple(old.dilation, 1),
        old.groups,
        old.bias is not None,
        device=old.weight.device,
        dtype=old.weight.dtype,
    )
    new.replicate = taps // 2 if replicate else 0
    with torch.no_grad():
        new.weight.copy_(inflate_kernel(old.weight, taps, inflation.init))
        if new.bias is not None and old.bias is not None:
            new.bias.copy_(old.bias)
    return new


def inflate_kernel(weight: Tensor, taps: int, init: str) -> Tensor:
    """A 2-D kernel `(O, I, h, w)` as a 3-D one `(O, I, taps, h, w)`.

    `mean`: every tap is weight / taps (paper, section 4.1; I3D). `centre`: the middle tap is the weight, the others
    are 0, so that the layer acts on each frame alone until it is trained. `taps` is odd.
    """
    if init == "mean":
        return (weight / taps).unsqueeze(2).repeat(1, 1, taps, 1, 1)
    kernel = weight.new_zeros(*weight.shape[:2], taps, *weight.shape[2:])
    kernel[:, :, taps // 2] = weight
    return kernel


def _batch_norm(old: nn.BatchNorm2d, *_: object) -> nn.BatchNorm3d:
    new = frames.BatchNorm(old.num_features, old.eps, old.momentum, old.affine, old.track_running_stats)
    new.load_state_dict(old.state_dict(), assign=True)  # so it is where the old one was
    return new


def _max_pool(old: nn.MaxPool2d, taps: int, stride: int, inflation: Inflation) -> nn.MaxPool3d:
    space = old.padding if inflation.pool1_padding else 0
    time = 0 if old.ceil_mode and stride > 1 else (taps - 1) // 2  # GoogLeNet's windows hang over the end, in time too
    return frames.MaxPool(
        _triple(old.kernel_size, taps),
        _triple(old.stride, stride),
        _triple(space, time),
        _triple(old.dilation, 1),
        ceil_mode=old.ceil_mode,
    )


def _avg_pool(old: nn.AvgPool2d, *_: object) -> nn.AvgPool3d:
    return nn.AvgPool3d(
        _triple(old.kernel_size, 1),
        _triple(old.stride, 1),
        _triple(old.padding, 0),
        old.ceil_mode,
        old.count_include_pad,
        old.divisor_override,
    )


def _global_pool(old: Any, *_: object) -> GlobalAveragePool:
    if old.pool_type not in ("avg", "") or not isinstance(old.flatten, nn.Flatten):
        raise WeightsError(f"a network that ends in {old} cannot be inflated; average pooling can")
    return GlobalAveragePool()


class _OnFrames(nn.Module):
    """Put before a class of timm: its own `forward` is given the frames of a clip, as images.

    So each frame is computed by itself. With one weight a channel for the whole clip, as video networks from scratch
    have squeeze-and-excitation, a moving clip would not equal the 2-D network.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not len(x):  # timm's channel attention takes no empty batch
            return self.forward(x.new_zeros(1, *x.shape[1:]))[:0]
        y = super().forward(x.transpose(1, 2).flatten(0, 1))
        return y.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)


@functools.cache
def _of_frames(kind: Any) -> type[nn.Module]:
    return type(f"Frame{kind.__name__}", (_OnFrames, kind), {})


def _on_frames(old: nn.Module, *_: object) -> nn.Module:
    """The same module, `(B, C, T, H, W)` to the same (or, where it strides, to smaller frames)."""
    if getattr(old, "conv2", None) is not None:
        raise WeightsError("channel attention with an MLP cannot be inflated")
    if getattr(old, "add_maxpool", False):
        raise WeightsError("squeeze-and-excitation with a max-pool cannot be inflated")
    new = copy.copy(old)
    new.__class__ = _of_frames(cast(Any, type(old)))
    return new


Converter = Callable[..., nn.Module]  # of a 2-D leaf, its temporal kernel and stride, and the Inflation


def _converters() -> dict[type[nn.Module], Converter]:
    """What we know: exact types of timm and torch, and what makes each of them 3-D."""
    from timm import layers

    same = (
        nn.ReLU,
        nn.SiLU,
        nn.LeakyReLU,
        nn.GELU,
        nn.Identity,
        nn.Linear,
        layers.Linear,
        layers.DropPath,
        GlobalAveragePool,
    )
    return {
        nn.Conv2d: _conv,
        nn.BatchNorm2d: _batch_norm,
        layers.GroupNorm: _on_frames,
        nn.MaxPool2d: _max_pool,
        nn.AvgPool2d: _avg_pool,
        layers.BlurPool2d: _on_frames,
        layers.SEModule: _on_frames,
        layers.EcaModule: _on_frames,
        layers.SelectAdaptivePool2d: _global_pool,
        **dict.fromkeys(same, lambda old, *_: old),
    }


def _containers() -> set[type[nn.Module]]:
    """Modules with children whose own `forward` works at any rank; one like `SelectiveKernel` reaches into H x W."""
    from timm.models import resnet

    return {
        *(resnet.ResNet, resnet.BasicBlock, resnet.Bottleneck, nn.Sequential),
        *(googlenet.GoogLeNet, googlenet.Inception),
    }


def depths(net: nn.Module) -> dict[str, int]:
    """Residual blocks of each stage, non-local blocks and pools not counted: `{"res2": 3, "res3": 4, …}`."""
    return {s: sum(name.isdigit() for name in getattr(net, LAYER[s])._modules) for s in STAGES}


def stem(net: nn.Module) -> nn.Conv2d | nn.Conv3d:
    """The convolution that the pixels go into, of a plain or an inflated network."""
    return next(m for m in cast(Network, net).conv1.modules() if isinstance(m, nn.Conv2d | nn.Conv3d))


def temporal_plan(net: Network, inflation: Inflation) -> dict[str, tuple[int, int]]:
    """`{path: (kernel, stride)}` in time of every layer of the 2-D `net` where either exceeds 1.

    The stem's first convolution becomes 5 x k x k. 3x1x1 inflates the first 1x1 of a bottleneck, or the first 3x3 of
    a basic block, which has no 1x1; 3x3x3 the 3x3 (reference: the pattern of every peer). Pools stride the stem and
    pool1 in time (`spec.POOLS`), C2D's too.
    """
    if isinstance(net, googlenet.GoogLeNet):
        return _plan_of_googlenet(net, inflation)
    first = next(name for name, module in net.named_modules() if module is stem(net))
    pools = POOLS[inflation.pools]
    plan = {first: (1 if inflation.arch == "c2d" else 5, pools.stem_stride)}
    if pools.pool1_stride > 1 or not inflation.pool1_padding:
        if not isinstance(net.maxpool, nn.MaxPool2d):
            raise WeightsError(
                f"pools {inflation.pools!r} need a max-pool after the stem; "
                f"this backbone has {type(net.maxpool).__name__}",
                "use --pools 8x8 or none",
            )
        plan["maxpool"] = (pools.pool1_kernel, pools.pool1_stride)
    if inflation.arch == "c2d":
        return plan
    for stage in STAGES:
        for name, block in getattr(net, LAYER[stage])._modules.items():
            if int(name) % 2 in _INFLATED[stage]:
                conv = "conv2" if inflation.arch == "i3d-333" and hasattr(block, "conv3") else "conv1"
                plan[f"{LAYER[stage]}.{name}.{conv}"] = (3, 1)
    return plan


def _plan_of_googlenet(net: nn.Module, inflation: Inflation) -> dict[str, tuple[int, int]]:
    """Two-stream I3D's: the stem 7x7x7 and every 3x3 3x3x3; 1x1 see one frame. Its pools are in time or left out."""
    if inflation.pools not in ("none", "paper") or not inflation.pool1_padding:
        raise UsageError("GoogLeNet has the temporal pools of its own paper, or none", "use --pools paper or none")
    layers = dict(net.named_modules())
    sizes = {name: layer.kernel_size[0] for name, layer in layers.items() if isinstance(layer, nn.Conv2d)}
    plan = {name: (size, 1) for name, size in sizes.items() if size > 1 and inflation.arch != "c2d"}
    if inflation.pools == "none":
        return plan
    alike = {name: (3, 1) for name, layer in layers.items() if isinstance(layer, nn.MaxPool2d) and "branch" in name}
    return plan | alike | {"conv1.conv": (plan.get("conv1.conv", (1, 1))[0], 2)} | googlenet.TIME_POOLS


def inflate_(net: nn.Module, inflation: Inflation = Inflation()) -> Network:
    """Makes a timm ResNet on `(B, 3, H, W)` one on `(B, 3, T, H, W)`, in place; returns it.

    Keys of the state dict stay; convolution weights grow an axis. Training mode, device and dtype are kept.
    Raises `WeightsError` for a module that we do not know, before anything is changed.
    """
    converters = _converters()
    inside = tuple(path + "." for path, m in net.named_modules() if type(m) in converters)
    outer = [(path, m) for path, m in net.named_modules() if not path.startswith(inside)]
    known = converters.keys() | _containers()
    unknown = [f"{path or 'the network'}: {type(m).__name__}" for path, m in outer if type(m) not in known]
    if unknown:
        raise WeightsError(
            f"cannot inflate {type(net).__name__}: {'; '.join(unknown[:3])}",
            f"supported: {', '.join(sorted(t.__name__ for t in known))}",
        )
    network = cast(Network, net)
    plan = temporal_plan(network, inflation)
    converted = {}
    for path, old in outer:
        if type(old) in converters:
            taps, stride = plan.get(path, (1, 1))
            converted[path] = converters[type(old)](old, taps, stride, inflation).train(old.training)
    for path, new in converted.items():
        parent, _, name = path.rpartition(".")
        setattr(net.get_submodule(parent), name, new)
    if POOLS[inflation.pools].pool2_kernel and not isinstance(net, googlenet.GoogLeNet):
        network.layer1.add_module("pool2", TemporalMaxPool(POOLS[inflation.pools].pool2_kernel))
    return network


class TemporalMaxPool(nn.Module):
    """Max over `kernel` frames, every second kept: `(B, C, T, H, W)` to `(B, C, T // 2, H, W)`.

    A clip of one frame stays, and so does any clip with kernel 1.
    """

    def __init__(self, kernel: int):
        super().__init__()
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] == 1 or self.kernel == 1:
            return x
        return F.max_pool3d(x, (self.kernel, 1, 1), (2, 1, 1), ((self.kernel - 1) // 2, 0, 0))


def insert_nonlocal_(net: nn.Module, placement: Iterable[NonLocal]) -> Network:
    """Adds a new `NonLocalBlock` after each residual block that `placement` names, in place; returns `net`.

    For a timm ResNet, inflated or plain (images). Blocks become entries `nl<i>` of the stage's `nn.Sequential`, so no
    other key changes and the output stays bit-identical. Raises `UsageError` for a block that is not there.
    """
    for places in placement:
        stage = getattr(net, LAYER[places.stage])
        count = depths(net)[places.stage]
        if places.blocks[-1] >= count:
            raise UsageError(
                f"there is no residual block {places.blocks[-1]} in {places.stage}; it has {count}, 0 to {count - 1}"
            )
        children = {}
        for key, child in stage._modules.items():
            children[key] = child
            if key.isdigit() and int(key) in places.blocks:
                if f"nl{key}" in stage._modules:
                    raise UsageError(f"{places.stage} has a non-local block after residual block {key} already")
                children[f"nl{key}"] = _block(child, places)
        stage._modules.clear()
        for key, child in children.items():
            stage.add_module(key, child)
    return cast(Network, net)


def _block(after: nn.Module, places: NonLocal) -> NonLocalBlock:
    lasts = _last_convolutions(after)
    kind = dataclasses.asdict(places)
    del kind["stage"], kind["blocks"]
    block = NonLocalBlock(sum(last.out_channels for last in lasts), **kind)
    return block.to(device=lasts[0].weight.device, dtype=lasts[0].weight.dtype).train(after.training)


def _last_convolutions(block: nn.Module) -> list[nn.Conv2d | nn.Conv3d]:
    """Those whose channels a residual block or an Inception module puts out, side by side."""
    if isinstance(block, googlenet.Inception):
        return [last for branch in block.children() for last in _last_convolutions(branch)]
    if isinstance(block, nn.Sequential):
        return [[m for m in block.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)][-1]]
    return [cast(nn.Conv3d, block.conv3 if hasattr(block, "conv3") else block.conv2)]
