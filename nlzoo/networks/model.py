"""Builds networks: the only module that imports timm, and the one place that knows how.

A network is timm's own `ResNet` object with 3-D leaves (see `inflate.py`) and its `ModelSpec` as attribute `spec`.
"""

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..core.errors import HubError, UsageError, WeightsError
from ..core.model_spec import Inflation, ModelSpec, Named, parse_nl
from ..core.view_spec import ClipSpec
from . import vision, zoo
from .foreign import read_weights
from .inflate import LAYER, TemporalMaxPool, depths, inflate_, insert_nonlocal_
from .layers import Cost, NonLocalBlock, block_cost


def import_timm():
    """timm, which imports torchvision; so that one is mended first where it must be."""
    vision.import_torchvision()
    import timm

    return timm


def plain_resnet(backbone: str) -> nn.Module:
    """timm's 2-D ResNet of that name with fresh weights; `resnet50.a1_in1k` and `resnet50` are the same network.

    Raises `UsageError` for a name that timm does not know or that is not one of its ResNets.
    """
    timm = import_timm()
    name = backbone.partition(".")[0]
    arguments = zoo.EMBEDDED.get(name, {})
    name = arguments.get("architecture", name)
    if not timm.is_model(name) or not _is_resnet(timm, name):
        close = [n for n in timm.list_models("*res*", module="resnet") if n.startswith(name[:8])][:6]
        raise UsageError(
            f"{backbone!r} is not a ResNet that timm {timm.__version__} knows",
            f"try one of: {', '.join(close or ['resnet18', 'resnet50', 'resnet101'])}",
        )
    with torch.random.fork_rng():
        torch.manual_seed(0)  # the same fresh head in every process
        return timm.create_model(name, pretrained=False, **arguments.get("arguments", {}))


def _is_resnet(timm, name):
    return name in timm.list_models(module="resnet")


@dataclass(frozen=True)
class Backbone:
    """A 2-D network with its trained weights and what is known of them."""

    net: nn.Module
    name: str  # tag included where timm resolved one
    source: str
    licence: str
    clip: ClipSpec  # mean and std as it was trained


def load_backbone(name: str, weights: Path | None, fetch: Callable[[str], Path]) -> Backbone:
    """The 2-D network `name` in float32, eval mode, with weights from a file, from the package (`tiny`), or from the Hub.

    `fetch(repo)` gives the weights file of a repository on the Hub. Raises `UsageError` for an unknown name,
    `WeightsError` for a file that does not fit or cannot be had.
    """
    net = plain_resnet(name)
    if name in zoo.EMBEDDED:
        _load_plain_(net, read_weights(weights or zoo.embedded_file(name)), weights)
        return Backbone(
            net.eval(),
            name,
            f"file {weights.name}" if weights else f"nlzoo/{name}",
            "" if weights else "apache-2.0",
            ClipSpec(),
        )
    known = _pretrained_config(name)
    clip = ClipSpec(mean=tuple(map(float, known.mean)), std=tuple(map(float, known.std))) if known else ClipSpec()
    if weights:
        _load_plain_(net, read_weights(weights), weights)
        return Backbone(net.eval(), name, f"file {weights.name}", "", clip)
    if not known or not known.hf_hub_id:
        raise WeightsError(f"timm has no pretrained weights for {name}", "give them with --weights FILE")
    tagged = f"{name.partition('.')[0]}.{known.tag}" if known.tag else name
    repo = f"{known.hf_hub_id}{tagged}" if known.hf_hub_id.endswith("/") else known.hf_hub_id
    try:
        file = fetch(repo)
    except HubError as error:
        raise WeightsError(
            f"the weights of {tagged} are not in the cache here and could not be fetched: {error.message}",
            f"fetch model.safetensors of {repo} on a machine with a network, then: "
            f"nlzoo inflate {tagged} --weights model.safetensors",
        ) from error
    _load_plain_(net, read_weights(file), file)
    return Backbone(net.eval(), tagged, repo, known.license or "", clip)


def _pretrained_config(name):
    """timm's record of the weights behind a name: Hub repository, tag, mean and std, licence; None for an untrained net."""
    timm = import_timm()
    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError:
        tags = [n.partition(".")[2] for n in timm.list_pretrained(name.partition(".")[0] + ".*")]
        raise UsageError(
            f"timm has no weights tagged {name.partition('.')[2]!r} for {name.partition('.')[0]}",
            f"its tags: {', '.join(tags)}",
        ) from None


def _load_plain_(net, tensors, file):
    """Strict but for two things every exporter differs in: BN's step counter, and a head of another size."""
    if (
        "fc.weight" in tensors
        and tensors["fc.weight"].ndim == 2
        and tensors["fc.weight"].shape[1] == net.fc.in_features
    ):
        net.fc = nn.Linear(net.fc.in_features, tensors["fc.weight"].shape[0], bias="fc.bias" in tensors)
    own = net.state_dict()
    lacking = [k for k in own if k not in tensors and not k.endswith("num_batches_tracked")]
    unknown = [k for k in tensors if k not in own]
    wrong = [
        f"{k} is {tuple(tensors[k].shape)}, not {tuple(own[k].shape)}"
        for k in own
        if k in tensors and tensors[k].shape != own[k].shape
    ]
    if lacking or unknown or wrong:
        what = [
            f"{len(lacking)} missing ({lacking[0]}, …)" if lacking else "",
            f"{len(unknown)} unknown ({unknown[0]}, …)" if unknown else "",
            f"{len(wrong)} of another shape ({wrong[0]})" if wrong else "",
        ]
        raise WeightsError(
            f"{file} does not fit this backbone: {', '.join(w for w in what if w)}",
            "name the backbone that the file was made for; 2-D weights in timm's or torchvision's keys fit",
        )
    if bad := [k for k, v in tensors.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())]:
        raise WeightsError(f"{file} holds NaN or infinity in {bad[0]}", "fetch it again")
    net.load_state_dict(tensors, strict=False)


def build(spec: ModelSpec) -> nn.Module:
    """The 3-D network of `spec` with fresh weights, in eval mode, `(B, 3, T, H, W)` float to `(B, num_outputs)` logits."""
    net = inflate_(plain_resnet(spec.backbone), spec.inflation)
    insert_nonlocal_(net, spec.non_local)
    if net.fc.out_features != spec.num_outputs:
        net.fc = nn.Linear(net.fc.in_features, spec.num_outputs)
    net.spec = spec
    return net.eval()


def set_head(net: nn.Module, classes: tuple[str, ...], multi_label: bool = False) -> nn.Module:
    """A fresh last layer for `classes`, in place: weights 0, so that every class starts equally likely; returns `net`.

    `multi_label`: a video may have several of them. timm's `reset_classifier` would rebuild the 2-D pool too.
    """
    old = net.fc.weight
    net.fc = nn.Linear(net.fc.in_features, len(classes), device=old.device, dtype=old.dtype)
    nn.init.zeros_(net.fc.weight)
    nn.init.zeros_(net.fc.bias)
    net.spec = dataclasses.replace(net.spec, classes=tuple(classes), num_outputs=len(classes), multi_label=multi_label)
    return net


def moving_average(net: nn.Module, decay: float) -> nn.Module:
    """timm's moving average of weights and BN statistics, which starts as a copy of `net` in eval mode, its attribute `module`.

    `update(net, step=n)` after the n-th optimiser step, from 1: the first copies, then the decay rises from 0.37 as
    1 - n^(-2/3), up to `decay`, so that a short run does not keep the weights it started from. All its state is that of
    `module`: its state dict and n restore it bit for bit.
    """
    import_timm()
    from timm.utils import ModelEmaV3

    return ModelEmaV3(net, decay=decay, use_warmup=True)


def add_blocks(net: nn.Module, nl: str) -> nn.Module:
    """Fresh non-local blocks in a trained network without any, in place: it starts as what it was; returns `net`.

    Raises `UsageError` where it has blocks, and for a placement that cannot be.
    """
    if net.spec.non_local:
        raise UsageError(
            "--nl adds blocks to a network without any; this one has some", "leave --nl out to train them on"
        )
    placement = parse_nl(nl, depths(net))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        insert_nonlocal_(net, placement)
    net.spec = dataclasses.replace(net.spec, non_local=placement)
    return net


@dataclass(frozen=True)
class Checks:
    """What was computed on the built network, on random input; relative errors are max |a - b| / max |b| of the logits."""

    nonlocal_identical: bool | None  # output with and without blocks, eval and train mode, bit for bit; None: no blocks
    still_clip_error: float  # one image repeated, against the 2-D network on that image
    moving_clip_error: float | None  # T different images, against the mean of the 2-D logits; None: not centre
    pools_change: float | None  # what the temporal pools, left out above, do to the moving clip's logits

    def summary(self) -> dict:
        """Only what was computed."""
        return {k: v for k, v in dataclasses.asdict(self).items() if v is not None}


def inflate(
    name: str,
    weights: Path | None,
    inflation: Inflation,
    nl: str,
    fetch: Callable[[str], Path],
    frames: int = 8,
    stride: int | None = None,
    **kind,
) -> tuple[nn.Module, Checks]:
    """2-D backbone to 3-D network with non-local blocks of `kind` (form, span, …), with the checks computed on the way.

    `frames` and `stride` are those of the clips that it is meant for.

    Raises `UsageError` for a name or placement that cannot be, `WeightsError` for weights that cannot be had.
    """
    if inflation.init == "imported":
        raise UsageError("--init imported is for networks that were trained in 3-D", "nlzoo import FILE makes those")
    backbone = load_backbone(name, weights, fetch)
    flat = backbone.net
    net = inflate_(copy.deepcopy(flat), inflation)
    placement = parse_nl(nl, depths(net), **kind)
    before = copy.deepcopy(net)
    with torch.random.fork_rng():
        torch.manual_seed(0)  # the same blocks from the same command
        insert_nonlocal_(net, placement)
    clip = dataclasses.replace(backbone.clip, frames=frames, stride=stride)
    net.spec = ModelSpec(
        backbone.name, inflation, placement, clip, (), net.fc.out_features, backbone.source, backbone.licence
    )
    return net, check(flat, before, net)


@torch.no_grad()
def check(flat: nn.Module, before: nn.Module, net: nn.Module, frames: int = 8, size: int = 64) -> Checks:
    """Compares the 2-D network, the inflated one and the one with blocks on random clips of `frames` x `size` x `size`."""
    inflation = net.spec.inflation
    moving = torch.randn(2, 3, frames, size, size)
    still = moving[:, :, :1].expand(-1, -1, frames, -1, -1)
    identical = _same_bits(before, net, moving) if net.spec.non_local else None
    unpooled = _without_time_strides(before)
    by_frame = torch.stack([flat(moving[:, :, t]) for t in range(frames)]).mean(0)
    centre = inflation.init == "centre"
    pooled = inflation.pools != "none"
    return Checks(
        nonlocal_identical=identical,
        still_clip_error=relative_error(before(still), flat(still[:, :, 0])),
        moving_clip_error=relative_error(unpooled(moving), by_frame) if centre else None,
        pools_change=relative_error(before(moving), by_frame) if centre and pooled else None,
    )


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    """max |a - b| / max |b|"""
    return float((a - b).abs().max() / b.abs().max().clamp_min(torch.finfo(b.dtype).tiny))


def _same_bits(before, net, clip):
    """In eval mode, and in train mode on copies, since a pass moves BN's running statistics."""
    pairs = [(before, net)] + [(copy.deepcopy(before).train(), copy.deepcopy(net).train())]
    return all(torch.equal(a(clip), b(clip)) for a, b in pairs)


def _without_time_strides(net):
    """A copy that pools and strides in space only."""
    net = copy.deepcopy(net)
    for module in net.modules():
        if isinstance(module, nn.Conv3d):
            module.stride = (1, *module.stride[1:])
        elif isinstance(module, nn.MaxPool3d):
            module.kernel_size = (1, *module.kernel_size[1:])
            module.stride = (1, *module.stride[1:])
            module.padding = (0, *module.padding[1:])
        elif isinstance(module, TemporalMaxPool):
            module.kernel = 1
    return net


def blueprint(named: Named, classes: int, **kind) -> nn.Module:
    """The network that a name means, on the meta device: everything but weights."""
    with torch.device("meta"):
        flat = plain_resnet(named.backbone)
        spec = ModelSpec(
            named.backbone,
            Inflation(named.arch, pools=named.pools),
            parse_nl(named.nl, depths(flat), **kind),
            named.clip,
            (),
            classes,
        )
        return build(spec)


def stages(net: nn.Module, clip: ClipSpec) -> list[dict]:
    """From the stem to res5: residual blocks, where time is mixed (`3x1x1 in 0 2`) or strided, output `(C, T, H, W)`."""
    ghost, shapes = copy.deepcopy(net).to("meta").eval(), {}
    paths = {"stem": "conv1", "pool1": "maxpool", **LAYER}
    for stage, path in paths.items():
        ghost.get_submodule(path).register_forward_hook(
            lambda _, __, out, stage=stage: shapes.update({stage: list(out.shape[1:])})
        )
    with torch.no_grad():
        ghost(torch.empty(1, 3, clip.frames, clip.size, clip.size, device="meta"))
    rows, counts = [], depths(net)
    for stage, path in paths.items():
        placed = [i for n in net.spec.non_local if n.stage == stage for i in n.blocks]
        rows.append(
            {
                "stage": stage,
                "residual_blocks": counts.get(stage, 0),
                "time": _time(net.get_submodule(path)),
                "non_local_after": placed,
                "output": shapes[stage],
            }
        )
    return rows


def _time(part):
    """Kernels and strides in time, `5x7x7` or `3x1x1 in 0 2; stride 2`."""
    where, strides = {}, []
    for path, m in part.named_modules():
        if isinstance(m, NonLocalBlock) or any(p.startswith("nl") for p in path.split(".")):
            continue
        kernel, stride = getattr(m, "kernel_size", 1), getattr(m, "stride", 1)
        if isinstance(m, TemporalMaxPool):
            kernel, stride = (m.kernel, 1, 1), (2, 1, 1)
        if isinstance(kernel, tuple) and len(kernel) == 3 and kernel[0] > 1:
            index = path.partition(".")[0]
            shape = "x".join(map(str, kernel)) + ("" if isinstance(m, nn.Conv3d) else " max-pool")
            where.setdefault(shape, []).append(index if index.isdigit() and "." in path else "")
        if isinstance(stride, tuple) and len(stride) == 3 and stride[0] > 1:
            strides.append(str(stride[0]))
    summary = [kernel + (f" in {' '.join(blocks)}" if any(blocks) else "") for kernel, blocks in where.items()]
    return "; ".join(summary + [f"stride {s}" for s in strides])


def cost(net: nn.Module, clip: ClipSpec) -> tuple[int, int, dict[str, Cost]]:
    """`(parameters, multiply-adds, {path: Cost of that non-local block})` for one clip of `clip`, on the meta device.

    The multiply-adds are those of torch's own counter, both attention products included.
    """
    from torch.utils.flop_counter import FlopCounterMode

    ghost = copy.deepcopy(net).to("meta").eval()
    shapes = {}
    for path, block in ghost.named_modules():
        if isinstance(block, NonLocalBlock):
            block.register_forward_pre_hook(lambda _, inputs, path=path: shapes.update({path: inputs[0].shape[1:]}))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        ghost(torch.empty(1, 3, clip.frames, clip.size, clip.size, device="meta"))
    blocks = {}
    for places in net.spec.non_local:
        for index in places.blocks:
            path = f"{LAYER[places.stage]}.nl{index}"
            blocks[f"{places.stage} after {index}"] = block_cost(
                *shapes[path], places.form, places.span, places.subsample, places.reduction
            )
    return sum(p.numel() for p in net.parameters()), counter.get_total_flops() // 2, blocks


def describe(net: nn.Module) -> dict:
    """The facts that `inflate` and `info` print: names, resolved placement, parameters, multiply-adds of one clip."""
    spec = net.spec
    params, macs, blocks = cost(net, spec.clip)
    return {
        "backbone": spec.backbone,
        "arch": spec.inflation.arch,
        "nonlocal": {n.stage: list(n.blocks) for n in spec.non_local},
        "params": params,
        "macs": macs,
        "blocks": {k: dataclasses.asdict(v) for k, v in blocks.items()},
        "stages": stages(net, spec.clip),
        "clip": dataclasses.asdict(spec.clip),
        "classes": list(spec.classes),
        "source": spec.source,
        "licence": spec.licence,
    }


def in_words(net: nn.Module, checks: Checks | None) -> str:
    """`describe` and the checks as lines for a person."""
    summary, spec = describe(net), net.spec
    counts = depths(net)
    lines = [
        f"{spec.backbone}, {spec.inflation.arch}, init {spec.inflation.init}, temporal padding "
        f"{spec.inflation.temporal_padding}, pools {spec.inflation.pools}"
    ]
    lines += [
        f"  non-local, {n.form}, {n.span}: {n.stage} after residual blocks {', '.join(map(str, n.blocks))} "
        f"of 0-{counts[n.stage] - 1}"
        for n in spec.non_local
    ] or ["  no non-local blocks"]
    lines.append(
        f"  {summary['params'] / 1e6:.2f} M parameters, {summary['macs'] / 1e9:.2f} G multiply-adds for {spec.clip}"
    )
    lines.append(
        f"  {spec.num_outputs} outputs; weights from {spec.source or 'nowhere: fresh'}"
        + (f", licence {spec.licence}" if spec.licence else "")
    )
    lines.append("  stage  output (C, T, H, W)  residual blocks, kernels in time")
    for row in summary["stages"]:
        parts = [
            row["time"],
            "non-local after " + ", ".join(map(str, row["non_local_after"])) if row["non_local_after"] else "",
        ]
        size = ", ".join(map(str, row["output"]))
        lines.append(
            f"  {row['stage']:6} {size:20} {row['residual_blocks'] or '':<3} {'; '.join(p for p in parts if p)}".rstrip()
        )
    return "\n".join(lines + _blocks_in_words(summary["blocks"]) + (_checks_in_words(checks) if checks else []))


def _blocks_in_words(blocks):
    """Multiply-adds of each block, and what lies between its two products for one clip: all pairs, or what we hold."""
    if not blocks:
        return []
    rows = [
        (name, b["projections"] + b["products"], b["projections"] + b["naive_products"], b["bytes"], b["naive_bytes"])
        for name, b in blocks.items()
    ]
    rows.append(("all blocks", *(sum(column) for column in list(zip(*rows))[1:])))
    lines = ["non-local blocks, forward pass of one clip (in brackets: through the matrix of all pairs):"]
    return lines + [
        f"  {name:15} {macs / 1e9:7.2f} G multiply-adds ({naive / 1e9:.2f}), {held / 2**20:8.1f} MiB between the products "
        f"({pairs / 2**20:.1f})"
        for name, macs, naive, held, pairs in rows
    ]


def _checks_in_words(checks):
    lines = ["checked on the built network:"]
    if checks.nonlocal_identical is not None:
        lines.append(
            "  non-local blocks inserted: output "
            + ("bit-identical" if checks.nonlocal_identical else "CHANGED; please report this")
        )
    lines.append(f"  still clip equals the 2-D network: relative error {checks.still_clip_error:.1e}")
    if checks.moving_clip_error is not None:
        aside = " (temporal pools aside)" if checks.pools_change is not None else ""
        lines.append(
            f"  moving clip equals the 2-D network frame by frame{aside}: relative error {checks.moving_clip_error:.1e}"
        )
    if checks.pools_change is not None:
        lines.append(f"  the temporal pools change the logits of a moving clip of noise by {checks.pools_change:.0%}")
    return lines
