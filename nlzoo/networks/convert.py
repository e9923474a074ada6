"""Other people's Kinetics networks (C2D, I3D, non-local) as ours: which zoo a file is from, and what its names mean.

One table per zoo, `ZOOS`. In its names `{stage}` is the zoo's word for res2..res5, `#` a number and `*` the last word
(weight, bias, …). Nothing is passed over: a name that no row knows is an error, and so is one of ours that nothing
fills.
What a file does not say (clip, pairwise function, pools) comes from the user, the file's name or the zoo, and is said.
docs/import.md says where each row was read.
"""

import dataclasses
import fnmatch
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..core.bounds import one_of
from ..core.errors import UsageError, WeightsError
from ..core.model_spec import FORMS, POOLS, SPARSE, STAGES, Inflation, ModelSpec, NonLocal
from ..core.text import printable
from ..core.view_spec import ClipSpec
from .foreign import Weights, misfit, read_weights
from .inflate import LAYER
from .model import build, shapes_only
from .network import Network

_LEAVES = {name: name for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}
_CAFFE2_LEAVES = {"w": "weight", "b": "bias", "s": "weight", "rm": "running_mean", "riv": "running_var"}
_DEPTHS = {(3, 4, 6, 3): "resnet50", (3, 4, 23, 3): "resnet101", (3, 8, 36, 3): "resnet152"}
_GREY: dict[str, Any] = {"mean": (0.45, 0.45, 0.45), "std": (0.225, 0.225, 0.225)}  # 114.75 and 57.375 of 255


@dataclass(frozen=True)
class Zoo:
    """One source of checkpoints: its names, and what its networks were trained with."""

    title: str
    mark: str  # a tensor that every network of this zoo has
    stages: tuple[str, ...]  # its words for res2..res5
    rows: dict[str, str]  # its names -> ours
    clip: ClipSpec
    twins: dict[str, str] = field(default_factory=dict)  # its second names of a tensor that a row has already -> ours
    drops: dict[str, str] = field(default_factory=dict)  # its names that are no part of the network -> why
    pools: str = "8x8"  # of POOLS; "clip": by the stride, as the authors trained
    pool1_padding: int = 1
    forms: tuple[str, ...] = ("embedded",)  # pairwise functions that its blocks with theta and phi may have
    scale: bool = True
    subsample: str = "before"  # "keys": its names tell
    licence: str = "apache-2.0"
    files: str = ""  # where another zoo has the same names: what this one's files are called
    leaves: dict[str, str] = field(default_factory=lambda: _LEAVES)  # its last words -> ours


def _bottleneck(theirs: str, ours: dict[str, str]) -> dict[str, str]:
    """The rows of a residual block: `theirs` with each of `ours`' keys, to our names."""
    return {theirs + part: "{stage}.#." + name for part, name in ours.items()}


_SLOWFAST = {
    "s1.pathway0_stem.conv.weight": "conv1.weight",
    "s1.pathway0_stem.bn.*": "bn1.*",
    **_bottleneck(
        "s{stage}.pathway0_res#.",
        {
            "branch1.weight": "downsample.0.weight",
            "branch1_bn.*": "downsample.1.*",
            "branch2.a.weight": "conv1.weight",
            "branch2.a_bn.*": "bn1.*",
            "branch2.b.weight": "conv2.weight",
            "branch2.b_bn.*": "bn2.*",
            "branch2.c.weight": "conv3.weight",
            "branch2.c_bn.*": "bn3.*",
        },
    ),
    "s{stage}.pathway0_nonlocal#.conv_theta.*": "{stage}.nl#.theta.*",
    "s{stage}.pathway0_nonlocal#.conv_phi.*": "{stage}.nl#.phi.*",
    "s{stage}.pathway0_nonlocal#.conv_g.*": "{stage}.nl#.g.*",
    "s{stage}.pathway0_nonlocal#.conv_out.*": "{stage}.nl#.w_z.*",
    "s{stage}.pathway0_nonlocal#.bn.*": "{stage}.nl#.bn.*",
    "head.projection.*": "fc.*",
}
_PYTORCHVIDEO = {
    "blocks.0.conv.weight": "conv1.weight",
    "blocks.0.norm.*": "bn1.*",
    **_bottleneck(
        "blocks.{stage}.res_blocks.#.",
        {
            "branch1_conv.weight": "downsample.0.weight",
            "branch1_norm.*": "downsample.1.*",
            "branch2.conv_a.weight": "conv1.weight",
            "branch2.norm_a.*": "bn1.*",
            "branch2.conv_b.weight": "conv2.weight",
            "branch2.norm_b.*": "bn2.*",
            "branch2.conv_c.weight": "conv3.weight",
            "branch2.norm_c.*": "bn3.*",
        },
    ),
    "blocks.6.proj.*": "fc.*",
}
_MMACTION2 = {
    "backbone.conv1.conv.weight": "conv1.weight",
    "backbone.conv1.bn.*": "bn1.*",
    **_bottleneck(
        "backbone.layer{stage}.#.",
        {
            "downsample.conv.weight": "downsample.0.weight",
            "downsample.bn.*": "downsample.1.*",
            "conv1.conv.weight": "conv1.weight",
            "conv1.bn.*": "bn1.*",
            "conv2.conv.weight": "conv2.weight",
            "conv2.bn.*": "bn2.*",
            "conv3.conv.weight": "conv3.weight",
            "conv3.bn.*": "bn3.*",
        },
    ),
    "backbone.layer{stage}.#.non_local_block.theta.conv.*": "{stage}.nl#.theta.*",
    "backbone.layer{stage}.#.non_local_block.phi.conv.*": "{stage}.nl#.phi.*",  # not sub-sampled
    "backbone.layer{stage}.#.non_local_block.phi.0.conv.*": "{stage}.nl#.phi.*",  # a max-pool follows as phi.1
    "backbone.layer{stage}.#.non_local_block.g.conv.*": "{stage}.nl#.g.*",
    "backbone.layer{stage}.#.non_local_block.g.0.conv.*": "{stage}.nl#.g.*",
    "backbone.layer{stage}.#.non_local_block.conv_out.conv.*": "{stage}.nl#.w_z.*",
    "backbone.layer{stage}.#.non_local_block.conv_out.bn.*": "{stage}.nl#.bn.*",
    "cls_head.fc_cls.*": "fc.*",
}
_CAFFE2 = {
    "conv1_w": "conv1.weight",
    "res_conv1_bn_*": "bn1.*",
    **_bottleneck(
        "res{stage}_#_",
        {
            "branch1_w": "downsample.0.weight",
            "branch1_bn_*": "downsample.1.*",
            "branch2a_w": "conv1.weight",
            "branch2a_bn_*": "bn1.*",
            "branch2b_w": "conv2.weight",
            "branch2b_bn_*": "bn2.*",
            "branch2c_w": "conv3.weight",
            "branch2c_bn_*": "bn3.*",
        },
    ),
    "nonlocal_conv{stage}_#_theta_*": "{stage}.nl#.theta.*",
    "nonlocal_conv{stage}_#_phi_*": "{stage}.nl#.phi.*",
    "nonlocal_conv{stage}_#_g_*": "{stage}.nl#.g.*",
    "nonlocal_conv{stage}_#_out_*": "{stage}.nl#.w_z.*",
    "nonlocal_conv{stage}_#_bn_*": "{stage}.nl#.bn.*",
    "pred_*": "fc.*",
}
_CAFFE2_DROPS = {"*_momentum": "momentum of the optimiser", "lr": "learning rate", "model_iter": "training step"}
_RESNET3D = {
    "conv1.weight": "conv1.weight",
    "bn1.*": "bn1.*",
    **_bottleneck(
        "layer{stage}.#.",
        {
            "downsample.0.weight": "downsample.0.weight",
            "downsample.1.*": "downsample.1.*",
            "conv1.weight": "conv1.weight",
            "bn1.*": "bn1.*",
            "conv2.weight": "conv2.weight",
            "bn2.*": "bn2.*",
            "conv3.weight": "conv3.weight",
            "bn3.*": "bn3.*",
        },
    ),
    "layer{stage}.#.nl.theta.*": "{stage}.nl#.theta.*",
    "layer{stage}.#.nl.phi.*": "{stage}.nl#.phi.*",
    "layer{stage}.#.nl.g.*": "{stage}.nl#.g.*",
    "layer{stage}.#.nl.out.*": "{stage}.nl#.w_z.*",
    "layer{stage}.#.nl.bn.*": "{stage}.nl#.bn.*",
    "fc.*": "fc.*",
}
_GLUONCV = {
    "first_stage.0.weight": "conv1.weight",
    "first_stage.1.*": "bn1.*",
    **_bottleneck(
        "res_layers.{stage}.#.",
        {
            "downsample.0.weight": "downsample.0.weight",
            "downsample.1.*": "downsample.1.*",
            "conv1.weight": "conv1.weight",
            "bn1.*": "bn1.*",
            "conv2.weight": "conv2.weight",
            "bn2.*": "bn2.*",
            "conv3.weight": "conv3.weight",
            "bn3.*": "bn3.*",
        },
    ),
    "res_layers.{stage}.#.nonlocal_block.theta.*": "{stage}.nl#.theta.*",
    "res_layers.{stage}.#.nonlocal_block.phi.*": "{stage}.nl#.phi.*",
    "res_layers.{stage}.#.nonlocal_block.g.*": "{stage}.nl#.g.*",
    "res_layers.{stage}.#.nonlocal_block.W.*": "{stage}.nl#.w_z.*",
    "res_layers.{stage}.#.nonlocal_block.bn.*": "{stage}.nl#.bn.*",
    "fc.*": "fc.*",
}

ZOOS = {
    "slowfast": Zoo(
        "SlowFast",
        mark="s1.pathway0_stem.conv.weight",
        stages=("2", "3", "4", "5"),
        rows=_SLOWFAST,
        clip=ClipSpec(8, 8, **_GREY),
    ),
    "pytorchvideo": Zoo(
        "pytorchvideo",
        mark="blocks.0.conv.weight",
        stages=("1", "3", "4", "5"),
        rows=_PYTORCHVIDEO,
        clip=ClipSpec(8, 8, **_GREY),
    ),
    "mmaction2": Zoo(
        "mmaction2",
        mark="backbone.conv1.conv.weight",
        stages=("1", "2", "3", "4"),
        rows=_MMACTION2,
        clip=ClipSpec(32, 2),
        pools="mmaction2",
        forms=("embedded", "dot"),
        scale=False,
        subsample="keys",
    ),
    "authors": Zoo(
        "video-nonlocal-net (the paper's authors)",
        mark="conv1_w",
        stages=("2", "3", "4", "5"),
        rows=_CAFFE2,
        clip=ClipSpec(32, 2, **_GREY),
        drops=_CAFFE2_DROPS,
        pools="clip",
        pool1_padding=0,
        licence="cc-by-nc-4.0",
        files=r"(c2d|i3d)_(baseline|nonlocal)_",
        leaves=_CAFFE2_LEAVES,
    ),
    "slowfast-caffe2": Zoo(
        "SlowFast, in Caffe2's names",
        mark="conv1_w",
        stages=("2", "3", "4", "5"),
        rows=_CAFFE2,
        clip=ClipSpec(8, 8, **_GREY),
        drops=_CAFFE2_DROPS,
        files=r"(C2D|I3D)_(NLN_|NOPOOL_)?\d+x\d+_R\d+",
        leaves=_CAFFE2_LEAVES,
    ),
    "resnet3d": Zoo(
        "pytorch-resnet3d (the authors' weights)",
        mark="conv1.weight",
        stages=("1", "2", "3", "4"),
        rows=_RESNET3D,
        clip=ClipSpec(32, 2, **_GREY),
        pools="authors",
        pool1_padding=0,
        licence="cc-by-nc-4.0",
    ),
    "gluoncv": Zoo(
        "gluoncv, torch",
        mark="first_stage.0.weight",
        stages=("0", "1", "2", "3"),
        rows=_GLUONCV,
        clip=ClipSpec(32, 2),
        twins={
            "head.1.*": "fc.*",
            "res_layers.{stage}.#.nonlocal_block.W_bn.0.*": "{stage}.nl#.w_z.*",
            "res_layers.{stage}.#.nonlocal_block.W_bn.1.*": "{stage}.nl#.bn.*",
        },
        pools="mmaction2",
        subsample="none",
    ),
}


@dataclass(frozen=True)
class ImportOptions:
    """What the user says of a file; None: find out, and say how."""

    zoo: str | None = None
    frames: int | None = None
    stride: int | None = None
    form: str | None = None
    pools: str | None = None

    def __post_init__(self) -> None:
        """Raises `UsageError` for what no file could be."""
        ClipSpec(self.frames or 1, self.stride or 1)
        for name, allowed in {"zoo": ZOOS, "form": FORMS, "pools": POOLS}.items():
            if getattr(self, name) is not None:
                one_of(getattr(self, name), allowed, f"--{name}")


@dataclass(frozen=True)
class Imported:
    """A converted network and everything that was decided on the way."""

    net: Network
    zoo: str  # title
    notes: tuple[str, ...]  # what the names of the tensors did not say, and who did
    dropped: dict[str, str]  # their name -> why
    filled: dict[str, str]  # our name that they lack -> with what


_BY_YOU, _BY_NAME = "as you said", "by the file's name"
_SEE = "see docs/import.md for what can be imported"
Shapes = dict[str, tuple[int, ...]]


def in_words(imported: Imported) -> str:
    """What was recognised, decided, dropped and filled, as lines for a person."""
    lines = [
        f"recognised: {imported.zoo}. Its tensors do not say all; taken were:",
        *(f"  {note}" for note in imported.notes),
    ]
    for what, names in (("dropped", imported.dropped), ("filled", imported.filled)):
        for why in dict.fromkeys(names.values()):
            group = [printable(name) for name in names if names[name] == why]
            some = ", ".join(group[:4]) + (", … (--json has them all)" if len(group) > 4 else "")
            lines.append(f"{what} {len(group)} tensor{'s' if len(group) > 1 else ''}, {why}: {some}")
    return "\n".join(lines)


def read(file: Path, options: ImportOptions | None = None) -> Imported:
    """The network in somebody else's checkpoint. Nothing is written.

    Raises `WeightsError` for a file that cannot be read, is of no zoo we know, or does not fit.
    """
    file = Path(file)
    options = options or ImportOptions()
    theirs = read_weights(file)
    if not any(zoo.mark in theirs.entries for zoo in ZOOS.values()):
        theirs = theirs.without_prefix({zoo.mark.partition(".")[0] for zoo in ZOOS.values()} - {"backbone"})
    zoo, notes = _recognise(theirs.shapes, options, file)
    names, twins, dropped = _rename(theirs.shapes, zoo, file)
    shapes = {ours: theirs.shapes[name] for ours, name in names.items()}
    for name, ours in twins.items():
        if ours not in names or not theirs.equal(name, names[ours]):
            raise WeightsError(
                f"{file} has {_short(name)}, which should equal {_short(names.get(ours, ours))} and does not"
            )
        dropped[name] = "second names of tensors that are there already"
    flat = len(shapes["conv1.weight"]) == 4  # mmaction2's C2D has 2-D convolutions, frame by frame
    if flat:
        shapes = {k: (*s[:2], 1, *s[2:]) if len(s) == 4 else s for k, s in shapes.items()}
    try:
        spec, more = _spec(shapes, names, zoo, options, flat, file)
        net, filled = _fill(spec, shapes, names, theirs)
    except UsageError as error:  # a block index, a number of outputs, … that no network of ours has
        raise WeightsError(f"{file} does not fit: {error.message}", _SEE) from None
    return Imported(net, zoo.title, (*theirs.notes, *notes, *more), dropped, filled)


def _recognise(shapes: Shapes, options: ImportOptions, file: Path) -> tuple[Zoo, tuple[str, ...]]:
    """`(zoo, notes)`: the zoo whose mark is there; where two have the same names, by the user or the file's name."""
    candidates = {name: zoo for name, zoo in ZOOS.items() if _is_video(shapes.get(zoo.mark, ()), name)}
    if options.zoo:
        if options.zoo not in candidates:
            raise WeightsError(
                f"{file} is not of {options.zoo}: it has no tensor {ZOOS[options.zoo].mark}",
                f"it looks like {' or '.join(candidates)}" if candidates else _SEE,
            )
        return ZOOS[options.zoo], ()
    if not candidates:
        some = ", ".join(_short(name) for name in list(shapes)[:3])
        raise WeightsError(
            f"{file} is of no zoo that nlzoo knows; it has {len(shapes)} tensors: {some}, …",
            f"those that it knows: {', '.join(ZOOS)}; 2-D weights go into nlzoo inflate NAME --weights FILE",
        )
    if len(candidates) == 1:
        return next(iter(candidates.values())), ()
    named = [zoo for zoo in candidates.values() if re.search(zoo.files, file.name)]
    if len(named) != 1:
        raise WeightsError(
            f"the names in {file} are those of {' and of '.join(candidates)}, and the nets differ in their max-pools",
            f"say which it is: --zoo {' or --zoo '.join(candidates)}",
        )
    return named[0], (f"zoo {named[0].title}: {_BY_NAME}",)


def _is_video(shape: tuple[int, ...], zoo: str) -> bool:
    """`conv1.weight` is in every 2-D ResNet too; only mmaction2's C2D keeps 2-D kernels."""
    return len(shape) == 5 or (zoo == "mmaction2" and len(shape) == 4)


def _short(name: str) -> str:
    return printable(name[:60])


def _rename(shapes: Shapes, zoo: Zoo, file: Path) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """`({ours: theirs}, {second name of theirs: ours}, {theirs: why dropped})`: every name of theirs is in one."""
    rows, again = _patterns(zoo.rows, zoo), _patterns(zoo.twins, zoo)
    names: dict[str, str] = {}
    twins, dropped = {}, {}
    for name in shapes:
        ours, second = _translate(name, rows, zoo), _translate(name, again, zoo)
        why = next((why for pattern, why in zoo.drops.items() if fnmatch.fnmatchcase(name, pattern)), None)
        if ours in names:
            raise WeightsError(f"{file} has {_short(names[ours])} and {_short(name)}, which mean the same")
        if ours:
            names[ours] = name
        elif second:
            twins[name] = second
        elif why:
            dropped[name] = why
        else:
            raise WeightsError(
                f"{file} has a tensor that no network of {zoo.title} has: {_short(name)}",
                "nlzoo imports C2D, I3D and their non-local nets only; see docs/import.md",
            )
    return names, twins, dropped


Patterns = list[tuple[re.Pattern[str], str]]


def _patterns(rows: dict[str, str], zoo: Zoo) -> Patterns:
    """The rows as `(regular expression, template)`, one for each stage where a row has `{stage}`."""
    made = []
    for theirs, ours in rows.items():
        stages = zip(zoo.stages, STAGES, strict=True) if "{stage}" in theirs else [("", "")]
        for word, stage in stages:
            pattern = re.escape(theirs.replace("{stage}", word).replace("*", "LEAF"))
            pattern = pattern.replace(r"\#", r"(\d{1,3})").replace("LEAF", r"(\w+)")
            made.append((re.compile(pattern), ours.replace("{stage}", LAYER.get(stage, ""))))
    return made


def _translate(name: str, patterns: Patterns, zoo: Zoo) -> str | None:
    """Our name of theirs, or None."""
    for pattern, ours in patterns:
        match = pattern.fullmatch(name)
        if not match:
            continue
        words = list(match.groups())
        if "*" in ours:
            leaf = words.pop()
            if leaf not in zoo.leaves:
                continue
            ours = ours.replace("*", zoo.leaves[leaf])
        return ours.replace("#", words[0]) if words else ours
    return None


def _spec(
    shapes: Shapes, names: dict[str, str], zoo: Zoo, options: ImportOptions, flat: bool, file: Path
) -> tuple[ModelSpec, tuple[str, ...]]:
    """`(ModelSpec, notes)` by the names and shapes, the user's options, the file's name and the zoo, in this order."""
    clip, clip_note = _clip(zoo, options, file)
    backbone = _backbone(shapes, file)
    pools, padding, pools_note = _pools(zoo, options, clip, flat, file)
    step = POOLS[pools].stem_stride * POOLS[pools].pool1_kernel * max(POOLS[pools].pool2_kernel, 1)
    if clip.frames < step:
        raise WeightsError(
            f"clips of {clip.frames} frames are shorter than the {step} that the temporal strides of {file} need",
            f"--frames {zoo.clip.frames} --stride {zoo.clip.stride} is what {zoo.title} publishes",
        )
    blocks, notes = _non_local(shapes, names, zoo, options, file)
    inflation = Inflation(_arch(shapes), "imported", "zeros", pools, padding)
    source = f"{zoo.title}, {file.name}".encode(errors="replace").decode()  # a file's name may be no text
    outputs = _outputs(shapes, "fc.weight", file)
    spec = ModelSpec(backbone, inflation, blocks, clip, (), outputs, source, zoo.licence)
    return spec, (clip_note, pools_note, *notes)


def _outputs(shapes: Shapes, name: str, file: Path) -> int:
    """The number of outputs of a layer of ours."""
    if not shapes.get(name):
        raise WeightsError(f"{file} has nothing for {name} (nlzoo's name)", "it may hold a part of a network only")
    return shapes[name][0]


def _backbone(shapes: Shapes, file: Path) -> str:
    """The timm name that fits the number of residual blocks in each stage."""
    counts = tuple(len({k.split(".")[1] for k in shapes if re.match(rf"{LAYER[s]}\.\d", k)}) for s in STAGES)
    if counts not in _DEPTHS or "layer1.0.conv3.weight" not in shapes:
        raise WeightsError(
            f"{file} has {', '.join(map(str, counts))} residual blocks in its stages; "
            "nlzoo imports ResNet-50, -101 and -152",
            _SEE,
        )
    return _DEPTHS[counts]


def _arch(shapes: Shapes) -> str:
    """By the kernels' lengths in time; what else is odd about them is refused with the shapes."""
    stem, second = (
        shapes[key][2] if len(shapes.get(key, ())) == 5 else 1 for key in ("conv1.weight", "layer1.0.conv2.weight")
    )
    if stem == 1:
        return "c2d"
    return "i3d-333" if second == 3 else "i3d"


def _clip(zoo: Zoo, options: ImportOptions, file: Path) -> tuple[ClipSpec, str]:
    """`(ClipSpec, note)`: frames x stride by the user, the file's name (`8x8`), or what the zoo publishes."""
    named = re.search(r"(?<!\d)([1-9]\d{0,2})x([1-9]\d?)(?!\d)", file.name)
    frames, stride, by = zoo.clip.frames, zoo.clip.stride, f"what {zoo.title} publishes"
    if named:
        frames, stride, by = int(named[1]), int(named[2]), _BY_NAME
    elif zoo.pools == "clip" and not (options.frames and options.stride):
        raise WeightsError(
            f"neither the tensors nor the name of {file.name} say which clips the network was made for",
            "say it: --frames 32 --stride 2 (the paper's nets), or --frames 8 --stride 8",
        )
    if options.frames or options.stride:
        frames, stride, by = options.frames or frames, options.stride or stride, _BY_YOU
    clip = dataclasses.replace(zoo.clip, frames=frames, stride=stride)
    return clip, f"clips of {frames} frames, every {stride}: {by}"


def _pools(zoo: Zoo, options: ImportOptions, clip: ClipSpec, flat: bool, file: Path) -> tuple[str, int, str]:
    """`(pools, padding of pool1, note)`."""
    pools, padding, by = zoo.pools, zoo.pool1_padding, f"as {zoo.title} trains"
    named = _pools_by_name(file.name.lower(), flat)
    if options.pools:
        pools, by = options.pools, _BY_YOU
    elif named:
        pools, by = named, _BY_NAME
    elif flat:
        raise WeightsError(
            f"{file} may be a C2D with temporal pools or without (TSN): "
            "its tensors are the same, and its name says neither",
            "say which it is: --pools 8x8 or --pools none",
        )
    elif pools == "clip":
        pools = "8x8" if clip.stride and clip.stride >= SPARSE else "authors"
        by = f"as {zoo.title} trains with this stride"
    if (options.pools or named) and (pools == "none" or flat):
        padding = 1 if pools == "none" else 0  # mmaction2's C2D follows the authors', the rest of its zoo does not
    return pools, padding, f"temporal strides {pools}, max-pool of the stem padded with {padding}: {by}"


def _pools_by_name(name: str, flat: bool) -> str:
    """What the name of a file says of temporal pools; "" where it says nothing."""
    if "nopool" in name or (flat and "tsn" in name):
        return "none"
    return "8x8" if flat and "c2d" in name else ""


def _non_local(
    shapes: Shapes, names: dict[str, str], zoo: Zoo, options: ImportOptions, file: Path
) -> tuple[tuple[NonLocal, ...], tuple[str, ...]]:
    """`(blocks, notes)`."""
    made: list[NonLocal] = []
    notes: tuple[str, ...] = ()
    for stage in STAGES:
        matches = (re.match(rf"{LAYER[stage]}\.nl(\d+)\.", key) for key in shapes)
        indices = sorted({int(match[1]) for match in matches if match})
        if not indices:
            continue
        first = f"{LAYER[stage]}.nl{indices[0]}"
        form, notes = _form(f"{first}.theta.weight" in shapes, zoo, options, file)
        inner = _outputs(shapes, f"{first}.g.weight", file)
        channels = _outputs(shapes, f"{first}.w_z.weight", file)
        subsample = zoo.subsample
        if subsample == "keys":
            subsample = "after" if ".g.0." in names[f"{first}.g.weight"] else "none"
        norm = "bn" if f"{first}.bn.weight" in shapes else "none"
        reduction = max(channels // max(inner, 1), 1)
        made.append(NonLocal(stage, tuple(indices), form, "spacetime", subsample, zoo.scale, norm, reduction))
    if made and zoo is ZOOS["authors"] and made[0].stage == "res3" and "bn1.running_mean" not in shapes:
        raise WeightsError(
            f"{file} is of the authors' long-clip non-local nets, whose blocks in res3 look at four frames at a time; "
            "nlzoo has no such block",
            "their i3d_nonlocal_32x2 and _8x8 can be imported, and their long-clip i3d_baseline nets",
        )
    return tuple(made), notes


def _form(embedded: bool, zoo: Zoo, options: ImportOptions, file: Path) -> tuple[str, tuple[str, ...]]:
    """`(pairwise function, notes)`; dot and embedded have the same tensors."""
    if not embedded:
        return "gaussian", ()
    if options.form:
        return options.form, (f"pairwise function {options.form}: {_BY_YOU}",)
    if len(zoo.forms) == 1:
        return zoo.forms[0], (f"pairwise function {zoo.forms[0]}: what {zoo.title} publishes",)
    named = [form for form in zoo.forms if re.search(rf"{form}[-_](product|gaussian)", file.name)]
    if len(named) != 1:
        raise WeightsError(
            f"the tensors of {file.name} fit the pairwise functions {' and '.join(zoo.forms)}, "
            "and its name says neither",
            f"say which it is: --form {' or --form '.join(zoo.forms)}",
        )
    return named[0], (f"pairwise function {named[0]}: {_BY_NAME}",)


def _fill(spec: ModelSpec, shapes: Shapes, names: dict[str, str], theirs: Weights) -> tuple[Network, dict[str, str]]:
    """`(network, {ours: with what})`: their tensors and what they may lack. No number is read before the shapes fit."""
    with shapes_only():
        net = build(spec)
    own = net.state_dict()
    filled = {key: _may_lack(key, shapes) for key in own if key not in shapes and _may_lack(key, shapes)}
    if differences := misfit(own, shapes, filled):
        raise WeightsError(
            f"{theirs.file} does not fit {spec.inflation.arch} {spec.backbone}, in nlzoo's names: {differences}",
            "nlzoo imports C2D, I3D 3x1x1 and 3x3x3 and their non-local nets; see docs/import.md",
        )
    tensors = theirs.load(names, own, " (nlzoo's name)")
    for key in filled:  # zeros; for a variance what makes it 1 with BN's eps
        value = 1 - 1e-5 if key.endswith("running_var") else 0
        tensors[key] = torch.full(own[key].shape, value, dtype=own[key].dtype)
    net.load_state_dict(tensors, assign=True)  # `net` has no memory of its own yet
    return net, filled


def _may_lack(name: str, shapes: Shapes) -> str:
    """With what one of our tensors is filled that they rightly lack; "" where it is missing."""
    layer, _, leaf = name.rpartition(".")
    folded = f"{layer}.weight" in shapes and not any("running_" in key for key in shapes)
    if leaf == "num_batches_tracked":
        return "0 training steps, which nothing uses"
    if leaf in ("running_mean", "running_var") and folded:
        return "mean 0 and variance 1, since BN was folded into its scale and shift"
    if name.endswith("w_z.bias") and f"{layer.rpartition('.')[0]}.bn.weight" in shapes:
        return "0, since the BN that follows has a shift"
    return ""
