"""What a network is, in figures: stages, placement of its blocks, parameters, multiply-adds and memory.

Unusual: nothing is computed; `shapes` says what goes in and out of every layer.
"""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.model_spec import Named
from ..core.view_spec import ClipSpec
from . import checkpoint, facts, shapes
from .facts import Counts
from .inflate import LAYER, TemporalMaxPool, depths
from .layers import Cost, block_cost
from .model import Checks, blueprint
from .network import Network
from .twin import twin

_STAGES = {"stem": "conv1", "pool1": "maxpool", **LAYER}  # where each stage is in timm's ResNet


@dataclass(frozen=True)
class _Pass:
    """One pass of one clip, up to the head's mean: shapes `(C, T, H, W)` by the path of the module."""

    inputs: dict[str, tuple[int, ...]]
    outputs: dict[str, tuple[int, ...]]
    macs: int  # multiply-adds outside of non-local blocks


def _pass_on_meta(net: Network, clip: ClipSpec) -> _Pass:
    calls = shapes.calls(net, clip)
    inputs = {call.path: call.given[1:] for call in calls}
    outputs = {call.path: call.made[1:] for call in calls}
    macs = sum(math.prod(call.made) * _macs_a_number(call.module) for call in calls)
    return _Pass(inputs, outputs, macs + net.fc.weight.numel())


def _macs_a_number(module: Any) -> int:
    """Multiply-adds for each number that the layer puts out."""
    if hasattr(module, "filt"):  # timm's anti-aliased stride
        return module.filt[0].numel()
    if isinstance(module, shapes.CONVOLUTIONS):
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

    ghost = twin(net).to("meta").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        ghost.forward_features(torch.empty(1, clip.channels, 1, clip.size, clip.size, device="meta"))
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
