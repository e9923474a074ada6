"""What a network is, in figures and in words: stages, placement of its blocks, parameters, multiply-adds and memory.

Unusual: nothing is computed. A copy on the meta device does one pass, which gives shapes and counts without numbers.
"""

import copy
import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..core.model_spec import Member, ModelSpec
from ..core.text import counted, printable
from ..core.view_spec import ClipSpec
from .inflate import LAYER, TemporalMaxPool, depths
from .layers import Cost, NonLocalBlock, block_cost
from .model import Checks
from .network import Network

MAX_NAMES = 20  # classes in words
_STAGES = {"stem": "conv1", "pool1": "maxpool", **LAYER}  # where each stage is in timm's ResNet

# not computed: on the meta device torch would import its compiler for them, which takes longer than all else
_KEEPS_SHAPE = (NonLocalBlock, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm)


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
        module.register_forward_hook(lambda module, given, made, path=path: record(path, module, given[0], made))
    with torch.no_grad():
        ghost.forward_features(torch.empty(1, clip.channels, clip.frames, clip.size, clip.size, device="meta"))
    return _Pass(inputs, outputs, sum(macs) + net.fc.weight.numel())


def _macs_a_number(module: Any) -> int:
    """Multiply-adds for each number that the layer puts out."""
    if hasattr(module, "filt"):  # timm's anti-aliased stride
        return module.filt[0].numel()
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
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


def describe(net: Network) -> dict:
    """The facts that `inflate` and `info` print: names, resolved placement, parameters, multiply-adds of one clip."""
    spec = net.spec
    done = _pass_on_meta(net, spec.clip) if spec.is_inflated else None
    params, macs, blocks = _cost(net, done) if done else cost(net, spec.clip)
    return {
        "backbone": spec.backbone,
        "arch": spec.inflation.arch,
        "nonlocal": {n.stage: list(n.blocks) for n in spec.non_local},
        "params": params,
        "macs": macs,
        "blocks": {name: dataclasses.asdict(block) for name, block in blocks.items()},
        "stages": _stage_rows(net, done) if done else [],
        "clip": dataclasses.asdict(spec.clip),
        "classes": list(spec.classes),
        "outputs": spec.num_outputs,
        "source": spec.source,
        "licence": spec.licence,
        **({"members": [_member(one) for one in spec.members]} if spec.members else {}),
        **({"head": dataclasses.asdict(spec.head)} if spec.head else {}),
    }


def _shown(spec: ModelSpec) -> str:
    return "the clips of all" if spec.members else str(spec.clip)


def _member(member: Member) -> dict:
    spec = member.model
    kind = {
        "backbone": spec.backbone,
        "arch": spec.inflation.arch,
        "nonlocal": sum(len(n.blocks) for n in spec.non_local),
    }
    return {"weight": member.weight, **kind, "clip": dataclasses.asdict(spec.clip)}


def in_words(net: Network, facts: dict, checks: Checks | None = None) -> str:
    """The `facts` that `describe` gives, and the checks, as lines for a person."""
    lines = [
        *_architecture(net),
        f"  {facts['params'] / 1e6:.2f} M parameters, {facts['macs'] / 1e9:.2f} G multiply-adds for {_shown(net.spec)}",
        f"  {net.spec.num_outputs} outputs; {_origin(net.spec)}",
        *(f"  weights file: {note}" for note in (checks.notes if checks else ())),
        *(_stage_lines(facts["stages"]) if facts["stages"] else ()),
        *_block_lines(facts["blocks"]),
        *(_check_lines(checks) if checks else []),
    ]
    return "\n".join(lines)


def _architecture(net: Network) -> list[str]:
    spec, inflation = net.spec, net.spec.inflation
    if spec.members:
        lines = [f"  {member}, {member.model.clip}" for member in spec.members]
        joined = f"{spec.head}, on features of" if spec.head else "the mean of the probabilities of"
        return [f"{joined} {counted(len(spec.members), 'model')}", *lines]
    if not spec.is_inflated:
        return [f"{spec.backbone}, on each frame; its features are averaged"]
    counts = depths(net)
    first = (
        f"{spec.backbone}, {inflation.arch}, init {inflation.init}, temporal padding {inflation.temporal_padding}, "
        f"pools {inflation.pools}"
    )
    blocks = [
        f"  non-local, {n.form}, {n.span}: {n.stage} after residual blocks {', '.join(map(str, n.blocks))} "
        f"of 0-{counts[n.stage] - 1}"
        for n in spec.non_local
    ]
    return [first, *(blocks or ["  no non-local blocks"])]


def _origin(spec: ModelSpec) -> str:
    weights = f"weights from {printable(spec.source)}" if spec.source else "randomly initialised"
    return f"{weights}, licence {printable(spec.licence)}" if spec.licence else weights


def trained_lines(spec: ModelSpec, metrics: dict) -> list[str]:
    """The classes of a trained model, and how good it was in validation."""
    names = [repr(printable(name)) for name in spec.classes[:MAX_NAMES]]
    more = [f"… and {len(spec.classes) - MAX_NAMES} more"] if len(spec.classes) > MAX_NAMES else []
    lines = [f"  classes: {', '.join(names + more)}"] if names else ["  its outputs have no names"]
    scores = {"top1": "top-1", "top5": "top-5", "map": "mean average precision", "majority": "majority-class baseline"}
    figures = [f"{words} {metrics[key]:.3f}" for key, words in scores.items() if isinstance(metrics.get(key), float)]
    if figures:
        lines.append(f"  validated on {printable(str(metrics.get('val', '?')))} videos: {', '.join(figures)}")
    return lines


def _stage_lines(stages: list[dict]) -> list[str]:
    lines = ["  stage  output (C, T, H, W)  residual blocks, kernels in time"]
    for row in stages:
        size = ", ".join(map(str, row["output"]))
        parts = [row["time"]] if row["time"] else []
        if row["non_local_after"]:
            parts.append(f"non-local after {', '.join(map(str, row['non_local_after']))}")
        lines.append(f"  {row['stage']:6} {size:20} {row['residual_blocks'] or '':<3} {'; '.join(parts)}".rstrip())
    return lines


def _block_lines(blocks: dict[str, dict]) -> list[str]:
    """Multiply-adds and memory of each block: as computed here, and through the matrix of all pairs."""
    if not blocks:
        return []
    total = {key: sum(block[key] for block in blocks.values()) for key in next(iter(blocks.values()))}
    lines = ["non-local blocks, forward pass of one clip (in brackets: through the matrix of all pairs):"]
    for name, block in {**blocks, "all blocks": total}.items():
        macs = block["projections"] + block["products"]
        naive = block["projections"] + block["naive_products"]
        memory = f"{block['bytes'] / 2**20:8.1f} MiB attention-matrix memory ({block['naive_bytes'] / 2**20:.1f})"
        lines.append(f"  {name:15} {macs / 1e9:7.2f} G multiply-adds ({naive / 1e9:.2f}), {memory}")
    return lines


def _check_lines(checks: Checks) -> list[str]:
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
    return lines
