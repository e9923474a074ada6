"""A network of ours as one that needs no nlzoo: its layers as plain data, and those built in torch alone.

Unusual: what is exported is not our network but `portable.network_nlzoo`, which is built from that data and given the
same tensors. So one graph serves every format, and every export compares it with ours.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch

from ..core.errors import WeightsError
from ..networks.network import Network
from .portable import network_nlzoo

Layer = dict[str, Any]  # "kind", and the arguments of `network_nlzoo.KINDS`


def describe(net: Network) -> dict[str, Layer]:
    """`{path: layer}` of `net`, for `network_nlzoo.build`. Raises `WeightsError` for a layer that it has not."""
    layers: dict[str, Layer] = {}
    closed: tuple[str, ...] = ()  # below these are parts of a layer
    for path, module in net.named_modules():
        if not path or path.startswith(closed) or type(module).__name__ in _NOTHING:
            continue
        kind, arguments = _KINDS.get(type(module).__name__, ("", _take()))
        if not kind:
            raise WeightsError(
                f"cannot export {path}: {type(module).__name__} is not a layer that exports know",
                f"known are {', '.join(sorted(_KINDS))}",
            )
        layers[path] = {"kind": kind, **arguments(module)}
        if kind == "non_local":
            closed += (f"{path}.",)
    return layers


def rebuild(net: Network) -> network_nlzoo.ResNet:
    """`net` in torch alone, with the same tensors, on the CPU in eval mode."""
    layers = describe(net)
    with torch.device("meta"):
        plain = network_nlzoo.build(layers)
    plain.load_state_dict({name: value.detach().cpu() for name, value in net.state_dict().items()}, assign=True)
    return plain.requires_grad_(False)


def folded(net: Network) -> tuple[network_nlzoo.ResNet, int]:
    """`(net in torch alone for inference, the batch norms that are now part of a convolution)`."""
    plain = copy.deepcopy(rebuild(net))  # whose tensors are those of `net`
    count = network_nlzoo.fold_batch_norms(plain)
    return plain.requires_grad_(False), count


Arguments = Callable[[Any], dict[str, Any]]


def _take(*names: str) -> Arguments:
    """The attributes of a module that are arguments of torch's own class."""

    def arguments(module: Any) -> dict[str, Any]:
        values = {name: getattr(module, name) for name in names}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    return arguments


def _conv(module: Any) -> dict[str, Any]:
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
    replicate = {"replicate": module.replicate} if getattr(module, "replicate", 0) else {}
    return {**_take(*names)(module), "bias": module.bias is not None, **replicate}


def _blur(module: Any) -> dict[str, Any]:
    filt = {"channels": len(module.filt), "filt": module.filt[0, 0].tolist()}
    return {**filt, "mode": module.pad_mode, **_take("padding", "stride")(module)}


def _non_local(module: Any) -> dict[str, Any]:
    inner = module.g.out_channels
    return {"inner": inner, **_take("channels", "form", "span", "subsample", "scale", "norm")(module)}


def _head(module: Any) -> dict[str, Any]:
    return {**_take("in_features", "out_features")(module), "bias": module.bias is not None}


_POOL = _take("kernel_size", "stride", "padding", "dilation", "ceil_mode")
_NOTHING = {"Identity", "DropPath"}  # in eval mode
_KINDS: dict[str, tuple[str, Arguments]] = {  # by the name of its class, ours, torch's or timm's
    "Bottleneck": ("block", _take()),
    "BasicBlock": ("block", _take()),
    "Inception": ("branches", _take()),
    "Sequential": ("sequential", _take()),
    "InflatedConv3d": ("conv", _conv),
    "Conv1d": ("conv1d", _conv),
    "Conv2d": ("conv2d", _conv),
    "BatchNorm": ("batch_norm", _take("num_features", "eps", "momentum")),
    "FrameGroupNorm": ("group_norm", _take("num_groups", "num_channels", "eps")),
    "MaxPool": ("max_pool", _POOL),
    "AvgPool3d": ("avg_pool", _take("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")),
    "FrameBlurPool2d": ("blur_pool", _blur),
    "TemporalMaxPool": ("temporal_max_pool", _take("kernel")),
    "GlobalAveragePool": ("global_pool", _take()),
    "FrameSEModule": ("squeeze_excite", _take()),
    "FrameEcaModule": ("eca", _take()),
    "NonLocalBlock": ("non_local", _non_local),
    "Linear": ("head", _head),
    "ReLU": ("relu", _take()),
    "SiLU": ("silu", _take()),
    "LeakyReLU": ("leaky_relu", _take("negative_slope")),
    "GELU": ("gelu", _take("approximate")),
    "Sigmoid": ("sigmoid", _take()),
}
