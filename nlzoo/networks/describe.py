"""What a network is, in figures: stages, placement of its blocks, parameters, multiply-adds and memory.

Unusual: nothing is computed. A copy on the meta device does one pass, which gives shapes and counts without numbers.
What torch would import its compiler for on that device, which takes longer than all else, is left out of the pass.
"""

import copy
import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..core.model_spec import Named
from ..core.view_spec import ClipSpec
from . import checkpoint, facts
from .facts import Counts
from .inflate import LAYER, TemporalMaxPool, depths
from .layers import Cost, NonLocalBlock, block_cost
from .model import Checks, blueprint
from .network import Network

_STAGES = {"stem": "conv1", "pool1": "maxpool", **LAYER}  # where each stage is in timm's ResNet

_KEEPS_SHAPE = (NonLocalBlock, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_WINDOWS = (*_CONVOLUTIONS, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool2d, nn.AvgPool3d, TemporalMaxPool)


@dataclass(frozen=True)
class _Pass:
    """One pass of one clip, up to the head's mean: shapes `(C, T, H, W)` by the path of the module."""

    inputs: dict[str, tuple[int, ...]]
    outputs: dict[str, tuple[int, ...]]
    macs: int  # multiply-adds outside of non-local blocks


def _pass_on_meta(net: Network, clip: ClipSpec) -> _Pass:
    ghost = copy.deepcopy(net).to("meta").eval()
    inputs: dict[str, tuple[int, ...]] = {}
    outputs: dict[str, tuple[int, ...]] = {}
    macs = []

    def record(path: str, module: nn.Module, given: torch.Tensor, made: torch.Tensor) -> None:
        if path in _STAGES.values() or isinstance(module, NonLocalBlock):
            inputs[path], outputs[path] = tuple(given.shape[1:]), tuple(made.shape[1:])
        macs.append(made.numel() * _macs_a_number(module))

    for path, module in ghost.named_modules():
        if isinstance(module, _KEEPS_SHAPE):
            module.forward = lambda x: x  # type: ignore[method-assign]
        elif isinstance(module, _WINDOWS):
            module.forward = partial(_shape_of, module)  # type: ignore[method-assign]
        module.register_forward_hook(lambda module, given, made, path=path: record(path, module, given[0], made))
    with torch.no_grad(), _Adding():
        ghost.forward_features(torch.empty(1, clip.channels, clip.frames, clip.size, clip.size, device="meta"))
    return _Pass(inputs, outputs, sum(macs) + net.fc.weight.numel())


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


def _macs_a_number(module: Any) -> int:
    """Multiply-adds for each number that the layer puts out."""
    if hasattr(module, "filt"):  # timm's anti-aliased stride
        return module.filt[0].numel()
    if isinstance(module, _CONVOLUTIONS):
        return module.weight[0].numel()
    return 0


def cost(net: Network, clip: ClipSpec) -> tuple[int, int, dict[str, Cost]]:
    """`(parameters, multiply-adds, {"res4 after 1": Cost of that non-local block})` for one clip.

    The multiply-adds are those that torch's own counter finds, both attention products included; it is not asked,
    since it imports torch's compiler.
    """
    if net.spec.members:
        costs = [cost(member, member.spec.clip)[:2] for member in net.members]
        windows = net.spec.head.windows if net.spec.head else 1
        return sum(p.numel() for p in net.parameters()), windows * sum(macs for _, macs in costs), {}
    if not net.spec.is_inflated:
        return *_cost_on_frames(net, clip), {}
    return _cost(net, _pass_on_meta(net, clip))


def _cost_on_frames(net: Network, clip: ClipSpec) -> tuple[int, int]:
    """`(parameters, multiply-adds)`, as torch's own counter finds them, of any network on single frames."""
    from torch.utils.flop_counter import FlopCounterMode

    ghost = copy.deepcopy(net).to("meta").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        ghost.forward_features(torch.empty(1, 3, 1, clip.size, clip.size, device="meta"))
    macs = counter.get_total_flops() // 2 * clip.frames + net.fc.weight.numel()
    return sum(p.numel() for p in net.parameters()), macs


def _cost(net: Network, done: _Pass) -> tuple[int, int, dict[str, Cost]]:
    blocks = {}
    for places in net.spec.non_local:
        for index in places.blocks:
            channels, frames, height, width = done.inputs[f"{LAYER[places.stage]}.nl{index}"]
            kind = (places.form, places.span, places.subsample, places.reduction)
            blocks[f"{places.stage} after {index}"] = block_cost(channels, frames, height, width, *kind)
    macs = done.macs + sum(block.projections + block.products for block in blocks.values())
    return sum(p.numel() for p in net.parameters()), macs, blocks


def _stage_rows(net: Network, done: _Pass) -> list[dict]:
    """From the stem to res5: residual blocks, kernels and strides in time (`3x1x1 in 0 2`), output `(C, T, H, W)`."""
    counts = depths(net)
    return [
        {
            "stage": stage,
            "residual_blocks": counts.get(stage, 0),
            "time": _kernels_in_time(net.get_submodule(path)),
            "non_local_after": [i for n in net.spec.non_local if n.stage == stage for i in n.blocks],
            "output": list(done.outputs[path]),
        }
        for stage, path in _STAGES.items()
    ]


def _kernels_in_time(part: nn.Module) -> str:
    """Kernels and strides in time, `5x7x7` or `3x1x1 in 0 2; stride 2`."""
    blocks: dict[str, list[str]] = {}
    strides = []
    for path, module in part.named_modules():
        shape, kernel, stride = _shape_in_time(module)
        if kernel > 1:
            index = path.partition(".")[0]
            is_in_block = index.isdigit() and "." in path
            blocks.setdefault(shape, []).append(index if is_in_block else "")
        if stride > 1:
            strides.append(f"stride {stride}")
    kernels = [f"{shape} in {' '.join(dict.fromkeys(at))}" if any(at) else shape for shape, at in blocks.items()]
    return "; ".join(kernels + strides)


def _shape_in_time(module: nn.Module) -> tuple[str, int, int]:
    """`("3x1x1", 3, 1)`: a layer's kernel in words, its length and stride in time; `("", 1, 1)` for other modules."""
    if isinstance(module, TemporalMaxPool):
        return f"{module.kernel}x1x1 max-pool", module.kernel, 2
    if isinstance(module, nn.Conv3d):
        return "x".join(map(str, module.kernel_size)), module.kernel_size[0], module.stride[0]
    if isinstance(module, nn.MaxPool3d) and isinstance(module.kernel_size, tuple) and isinstance(module.stride, tuple):
        return "x".join(map(str, module.kernel_size)) + " max-pool", module.kernel_size[0], module.stride[0]
    return "", 1, 1


def count(net: Network) -> Counts:
    """What one clip's way through `net` costs."""
    done = _pass_on_meta(net, net.spec.clip) if net.spec.is_inflated else None
    params, macs, blocks = _cost(net, done) if done else cost(net, net.spec.clip)
    by_name = {name: dataclasses.asdict(block) for name, block in blocks.items()}
    return Counts(params, macs, by_name, _stage_rows(net, done) if done else [])


def count_folder(folder: Path, net: Network | None = None) -> Counts:
    """The same of a model folder, kept for whoever looks next, without torch. `net`: what was saved there just now.

    Raises `WeightsError` where its weights do not fit its config.json.
    """
    key = facts.key_of_folder(folder)
    return facts.keep(key, count(net or checkpoint.read_blueprint(folder)))


def count_named(name: str, named: Named, classes: int) -> Counts:
    """The same of a named net, `named` as `parse_name` reads its `name`, with `classes` outputs; kept likewise."""
    return facts.keep(facts.key_of_name(name, classes), count(blueprint(named, classes)))


def describe(net: Network, folder: Path | None = None) -> dict:
    """The facts that `inflate` and `info` print; with the `folder` that `net` is saved in they are kept."""
    return facts.summary(net.spec, count_folder(folder, net) if folder else count(net))


def checks_in_words(checks: Checks) -> str:
    """What `inflate` found on the built network, as lines for a person."""
    lines = ["checked on the built network:"]
    if checks.nonlocal_identical is not None:
        result = "bit-identical" if checks.nonlocal_identical else "CHANGED; please report this"
        lines.append(f"  non-local blocks inserted: output {result}")
    lines.append(f"  still clip equals the 2-D network: relative error {checks.still_clip_error:.1e}")
    if checks.moving_clip_error is not None:
        aside = " (temporal pools aside)" if checks.pools_change is not None else ""
        lines.append(
            f"  moving clip equals the 2-D network frame by frame{aside}: relative error {checks.moving_clip_error:.1e}"
        )
    if checks.pools_change is not None:
        lines.append(f"  the temporal pools change the logits of a moving clip of noise by {checks.pools_change:.0%}")
    return "\n".join(lines)
