"""Other people's Kinetics networks (C2D, I3D, non-local) as ours: which zoo a file is from, and what its names mean here.

One table per zoo, `ZOOS`. In its names `{stage}` is the zoo's word for res2..res5, `#` a number and `*` the last word
(weight, bias, …). Nothing is passed over: a name that no row knows is an error, and so is one of ours that nothing fills.
What a file does not say (clip, pairwise function, pools) comes from the user, the file's name or the zoo, and is told.
docs/import.md says where each row was read.
"""

import dataclasses
import fnmatch
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from ..core.errors import UsageError, WeightsError
from ..core.model_spec import FORMS, POOLS, SPARSE, STAGES, Inflation, ModelSpec, NonLocal
from ..core.view_spec import ClipSpec
from .foreign import read_weights
from .inflate import LAYER
from .model import build

_LEAVES = {name: name for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}
_CAFFE2_LEAVES = {"w": "weight", "b": "bias", "s": "weight", "rm": "running_mean", "riv": "running_var"}
_DEPTHS = {(3, 4, 6, 3): "resnet50", (3, 4, 23, 3): "resnet101", (3, 8, 36, 3): "resnet152"}
_GREY = {"mean": (0.45, 0.45, 0.45), "std": (0.225, 0.225, 0.225)}  # 114.75 and 57.375 of 255


@dataclass(frozen=True)
class Zoo:
    """One source of checkpoints: its names, and what its networks were trained with."""

    title: str
    mark: str  # a tensor that every network of this zoo has
    stages: tuple[str, ...]  # its words for res2..res5
    rows: dict[str, str]  # its names -> ours
    twins: dict[str, str]  # its second names of a tensor that a row has already -> ours
    drops: dict[str, str]  # its names that are no part of the network -> why
    clip: ClipSpec
    pools: str  # of POOLS; "clip": by the stride, as the authors trained
    pool1_padding: int
    forms: tuple[str, ...]  # pairwise functions that its blocks with theta and phi may have
    scale: bool
    subsample: str  # "keys": its names tell
    licence: str
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
        "s1.pathway0_stem.conv.weight",
        ("2", "3", "4", "5"),
        _SLOWFAST,
        {},
        {},
        ClipSpec(8, 8, **_GREY),
        "8x8",
        1,
        ("embedded",),
        True,
        "before",
        "apache-2.0",
    ),
    "pytorchvideo": Zoo(
        "pytorchvideo",
        "blocks.0.conv.weight",
        ("1", "3", "4", "5"),
        _PYTORCHVIDEO,
        {},
        {},
        ClipSpec(8, 8, **_GREY),
        "8x8",
        1,
        ("embedded",),
        True,
        "before",
        "apache-2.0",
    ),
    "mmaction2": Zoo(
        "mmaction2",
        "backbone.conv1.conv.weight",
        ("1", "2", "3", "4"),
        _MMACTION2,
        {},
        {},
        ClipSpec(32, 2),
        "mmaction2",
        1,
        ("embedded", "dot"),
        False,
        "keys",
        "apache-2.0",
    ),
    "authors": Zoo(
        "video-nonlocal-net (the paper's authors)",
        "conv1_w",
        ("2", "3", "4", "5"),
        _CAFFE2,
        {},
        _CAFFE2_DROPS,
        ClipSpec(32, 2, **_GREY),
        "clip",
        0,
        ("embedded",),
        True,
        "before",
        "cc-by-nc-4.0",
        r"(c2d|i3d)_(baseline|nonlocal)_",
        _CAFFE2_LEAVES,
    ),
    "slowfast-caffe2": Zoo(
        "SlowFast, in Caffe2's names",
        "conv1_w",
        ("2", "3", "4", "5"),
        _CAFFE2,
        {},
        _CAFFE2_DROPS,
        ClipSpec(8, 8, **_GREY),
        "8x8",
        1,
        ("embedded",),
        True,
        "before",
        "apache-2.0",
        r"(C2D|I3D)_(NLN_|NOPOOL_)?\d+x\d+_R\d+",
        _CAFFE2_LEAVES,
    ),
    "resnet3d": Zoo(
        "pytorch-resnet3d (the authors' weights)",
        "conv1.weight",
        ("1", "2", "3", "4"),
        _RESNET3D,
        {},
        {},
        ClipSpec(32, 2, **_GREY),
        "authors",
        0,
        ("embedded",),
        True,
        "before",
        "cc-by-nc-4.0",
    ),
    "gluoncv": Zoo(
        "gluoncv, torch",
        "first_stage.0.weight",
        ("0", "1", "2", "3"),
        _GLUONCV,
        {
            "head.1.*": "fc.*",
            "res_layers.{stage}.#.nonlocal_block.W_bn.0.*": "{stage}.nl#.w_z.*",
            "res_layers.{stage}.#.nonlocal_block.W_bn.1.*": "{stage}.nl#.bn.*",
        },
        {},
        ClipSpec(32, 2),
        "mmaction2",
        1,
        ("embedded",),
        True,
        "none",
        "apache-2.0",
    ),
}


@dataclass(frozen=True)
class ImportOptions:
    """What the user says of a file; None: find out, and tell how."""

    zoo: str | None = None
    frames: int | None = None
    stride: int | None = None
    form: str | None = None
    pools: str | None = None


@dataclass(frozen=True)
class Imported:
    """A converted network and everything that was decided on the way."""

    net: nn.Module  # with its spec
    zoo: str  # title
    notes: tuple[str, ...]  # what the names of the tensors did not say, and who did
    dropped: dict[str, str]  # their name -> why
    filled: dict[str, str]  # our name that they lack -> with what


def in_words(found: Imported) -> str:
    """What was recognised, decided, dropped and filled, as lines for a person."""
    lines = [
        f"recognised: {found.zoo}. Its tensors do not say all; taken were:",
        *(f"  {note}" for note in found.notes),
    ]
    for what, names in (("dropped", found.dropped), ("filled", found.filled)):
        for why in dict.fromkeys(names.values()):
            group = [name for name in names if names[name] == why]
            some = ", ".join(group[:4]) + (", … (--json has them all)" if len(group) > 4 else "")
            lines.append(f"{what} {len(group)} tensor{'s' if len(group) > 1 else ''}, {why}: {some}")
    return "\n".join(lines)


def read(file: Path, wishes: ImportOptions = ImportOptions()) -> Imported:
    """The network in somebody else's checkpoint. Nothing is written.

    Raises `WeightsError` for a file that cannot be read, is of no zoo we know, or does not fit; `UsageError` for wishes that cannot be.
    """
    file = Path(file)
    _check(wishes)
    theirs = read_weights(file)
    zoo, notes = _recognise(theirs, wishes, file)
    names, twins, dropped = _rename(theirs, zoo, file)
    tensors = {ours: theirs[name] for ours, name in names.items()}
    flat = tensors["conv1.weight"].ndim == 4  # mmaction2's C2D has 2-D convolutions, frame by frame
    if flat:
        tensors = {k: v.unsqueeze(2) if v.ndim == 4 else v for k, v in tensors.items()}
    try:
        spec, more = _spec(tensors, names, zoo, wishes, flat, file)
        net, filled = _fill(spec, tensors, file)
    except UsageError as error:  # a block index, a number of outputs, … that no network of ours has
        raise WeightsError(
            f"{file} does not fit: {error.message}", "see docs/import.md for what can be imported"
        ) from None
    for name, ours in twins.items():
        if ours not in names or not torch.equal(theirs[name], theirs[names[ours]]):
            raise WeightsError(
                f"{file} has {_short(name)}, which should equal {_short(names.get(ours, ours))} and does not"
            )
        dropped[name] = "second names of tensors that are there already"
    return Imported(net, zoo.title, (*notes, *more), dropped, filled)


def _check(wishes):
    """Raises `UsageError` for what no file could fulfil."""
    ClipSpec(wishes.frames or 1, wishes.stride or 1)
    for what, value, allowed in (
        ("--zoo", wishes.zoo, ZOOS),
        ("--form", wishes.form, FORMS),
        ("--pools", wishes.pools, POOLS),
    ):
        if value is not None and value not in allowed:
            raise UsageError(f"{what} is {value!r}; it must be one of {', '.join(allowed)}")


def _recognise(theirs, wishes, file):
    """`(zoo, notes)`: the zoo whose mark is there; where two have the same names, by the user or the file's name."""
    found = {name: zoo for name, zoo in ZOOS.items() if zoo.mark in theirs and _is_video(theirs[zoo.mark], name)}
    if wishes.zoo:
        if wishes.zoo not in found:
            raise WeightsError(
                f"{file} is not of {wishes.zoo}: it has no tensor {ZOOS[wishes.zoo].mark}",
                f"it looks like {' or '.join(found)}" if found else "see docs/import.md for what can be imported",
            )
        return ZOOS[wishes.zoo], ()
    if not found:
        some = ", ".join(_short(k) for k in list(theirs)[:3])
        raise WeightsError(
            f"{file} is of no zoo that nlzoo knows; it has {len(theirs)} tensors: {some}, …",
            f"those that it knows: {', '.join(ZOOS)}; 2-D weights go into nlzoo inflate NAME --weights FILE",
        )
    if len(found) == 1:
        return next(iter(found.values())), ()
    named = [zoo for zoo in found.values() if re.search(zoo.files, file.name)]
    if len(named) != 1:
        raise WeightsError(
            f"the names in {file} are those of {' and of '.join(found)}, and the nets differ in their max-pools",
            f"say which it is: --zoo {' or --zoo '.join(found)}",
        )
    return named[0], (f"zoo {named[0].title}: by the file's name",)


def _is_video(tensor, zoo):
    """`conv1.weight` is in every 2-D ResNet too; only mmaction2's C2D keeps 2-D kernels."""
    return tensor.ndim == 5 or (zoo == "mmaction2" and tensor.ndim == 4)


def _short(name):
    return ascii(name)[1:-1][:60]


def _rename(theirs, zoo, file):
    """`({ours: theirs}, {second name of theirs: ours}, {theirs: why dropped})`; every name of theirs is in one of them."""
    rows, again = _patterns(zoo.rows, zoo), _patterns(zoo.twins, zoo)
    names, twins, dropped = {}, {}, {}
    for name in theirs:
        if ours := _translate(name, rows, zoo):
            if ours in names:
                raise WeightsError(f"{file} has {_short(names[ours])} and {_short(name)}, which mean the same")
            names[ours] = name
        elif ours := _translate(name, again, zoo):
            twins[name] = ours
        elif why := next((why for pattern, why in zoo.drops.items() if fnmatch.fnmatchcase(name, pattern)), None):
            dropped[name] = why
        else:
            raise WeightsError(
                f"{file} has a tensor that no network of {zoo.title} has: {_short(name)}",
                "nlzoo imports C2D, I3D and their non-local nets only; see docs/import.md",
            )
    return names, twins, dropped


def _patterns(rows, zoo):
    """The rows as `(regular expression, template)`, one for each stage where a row has `{stage}`."""
    made = []
    for theirs, ours in rows.items():
        for word, stage in zip(zoo.stages, STAGES) if "{stage}" in theirs else [("", "")]:
            pattern = (
                re.escape(theirs.replace("{stage}", word).replace("*", "LEAF"))
                .replace(r"\#", r"(\d{1,3})")
                .replace("LEAF", r"(\w+)")
            )
            made.append((re.compile(pattern), ours.replace("{stage}", LAYER.get(stage, ""))))
    return made


def _translate(name, patterns, zoo):
    """Our name of theirs, or None."""
    for pattern, ours in patterns:
        if found := pattern.fullmatch(name):
            words = list(found.groups())
            if "*" in ours and words[-1] not in zoo.leaves:
                continue
            if "*" in ours:
                ours = ours.replace("*", zoo.leaves[words.pop()])
            return ours.replace("#", words[0]) if words else ours
    return None


def _spec(tensors, names, zoo, wishes, flat, file):
    """`(ModelSpec, notes)` by the names and shapes, the user's wishes, the file's name and the zoo, in this order."""
    clip, notes = _clip(zoo, wishes, file)
    backbone = _backbone(tensors, file)
    pools, padding, pooled = _pools(zoo, wishes, clip, flat, file)
    step = POOLS[pools].stem_stride * POOLS[pools].pool1_kernel * max(POOLS[pools].pool2_kernel, 1)
    if clip.frames < step:
        raise WeightsError(
            f"clips of {clip.frames} frames are shorter than the {step} that the temporal strides of {file} need",
            f"--frames {zoo.clip.frames} --stride {zoo.clip.stride} is what {zoo.title} publishes",
        )
    blocks, formed = _non_local(tensors, names, zoo, wishes, file)
    inflation = Inflation(_arch(tensors), "imported", "zeros", pools, padding)
    source = f"{zoo.title}, {file.name}".encode(errors="replace").decode()  # a file's name may be no text
    spec = ModelSpec(backbone, inflation, blocks, clip, (), _outputs(tensors, "fc.weight", file), source, zoo.licence)
    return spec, (*notes, pooled, *formed)


def _outputs(tensors, name, file):
    """The number of outputs of a layer of ours."""
    if name not in tensors or not tensors[name].ndim:
        raise WeightsError(f"{file} has nothing for {name} (nlzoo's name)", "it may hold a part of a network only")
    return tensors[name].shape[0]


def _backbone(tensors, file):
    """The timm name that fits the number of residual blocks in each stage."""
    counts = tuple(len({k.split(".")[1] for k in tensors if re.match(rf"{LAYER[s]}\.\d", k)}) for s in STAGES)
    if counts not in _DEPTHS or "layer1.0.conv3.weight" not in tensors:
        raise WeightsError(
            f"{file} has {', '.join(map(str, counts))} residual blocks in its stages; nlzoo imports ResNet-50, -101 and -152",
            "see docs/import.md for what can be imported",
        )
    return _DEPTHS[counts]


def _arch(tensors):
    """By the kernels' lengths in time; what else is odd about them is refused with the shapes."""
    stem, second = (
        tensors[k].shape[2] if k in tensors and tensors[k].ndim == 5 else 1
        for k in ("conv1.weight", "layer1.0.conv2.weight")
    )
    return "c2d" if stem == 1 else "i3d-333" if second == 3 else "i3d"


def _clip(zoo, wishes, file):
    """`(ClipSpec, notes)`: frames x stride by the user, the file's name (`8x8`), or what the zoo publishes."""
    summary = re.search(r"(?<!\d)([1-9]\d{0,2})x([1-9]\d?)(?!\d)", file.name)
    published = (zoo.clip.frames, zoo.clip.stride)
    frames, stride, who = (
        (*map(int, summary.groups()), "by the file's name") if summary else (*published, f"what {zoo.title} publishes")
    )
    if not summary and zoo.pools == "clip" and not (wishes.frames and wishes.stride):
        raise WeightsError(
            f"neither the tensors nor the name of {file.name} say which clips the network was made for",
            "say it: --frames 32 --stride 2 (the paper's nets), or --frames 8 --stride 8",
        )
    if wishes.frames or wishes.stride:
        frames, stride, who = wishes.frames or frames, wishes.stride or stride, "as you said"
    clip = dataclasses.replace(zoo.clip, frames=frames, stride=stride)
    return clip, (f"clips of {frames} frames, every {stride}: {who}",)


def _pools(zoo, wishes, clip, flat, file):
    """`(pools, padding of pool1, note)`."""
    pools, padding, who = zoo.pools, zoo.pool1_padding, f"as {zoo.title} trains"
    if pools == "clip":
        pools, who = ("8x8" if clip.stride >= SPARSE else "authors"), f"as {zoo.title} trains with this stride"
    named = re.search(r"nopool|tsn|c2d" if flat else "nopool", file.name, re.IGNORECASE)
    if wishes.pools or named:
        none = "nopool" in file.name.lower() or (flat and "tsn" in file.name.lower())
        pools, who = (
            (wishes.pools, "as you said") if wishes.pools else ("none" if none else "8x8", "by the file's name")
        )
        padding = (
            1 if pools == "none" else 0 if flat else padding
        )  # mmaction2's C2D follows the authors', the rest of its zoo does not
    elif flat:
        raise WeightsError(
            f"{file} may be a C2D with temporal pools or without (TSN): its tensors are the same, and its name says neither",
            "say which it is: --pools 8x8 or --pools none",
        )
    return pools, padding, f"temporal strides {pools}, max-pool of the stem padded with {padding}: {who}"


def _non_local(tensors, names, zoo, wishes, file):
    """`(blocks, notes)`."""
    made, notes = [], ()
    for stage in STAGES:
        found = sorted({int(m[1]) for k in tensors if (m := re.match(rf"{LAYER[stage]}\.nl(\d+)\.", k))})
        if not found:
            continue
        first = f"{LAYER[stage]}.nl{found[0]}"
        form, notes = _form(f"{first}.theta.weight" in tensors, zoo, wishes, file)
        g = _outputs(tensors, f"{first}.g.weight", file)
        channels = _outputs(tensors, f"{first}.w_z.weight", file)
        subsample = (
            zoo.subsample if zoo.subsample != "keys" else ("after" if ".g.0." in names[f"{first}.g.weight"] else "none")
        )
        norm = "bn" if f"{first}.bn.weight" in tensors else "none"
        made.append(
            NonLocal(stage, tuple(found), form, "spacetime", subsample, zoo.scale, norm, max(channels // max(g, 1), 1))
        )
    if made and zoo is ZOOS["authors"] and made[0].stage == "res3" and "bn1.running_mean" not in tensors:
        raise WeightsError(
            f"{file} is of the authors' long-clip non-local nets, whose blocks in res3 look at four frames at a time; "
            "nlzoo has no such block",
            "their i3d_nonlocal_32x2 and _8x8 can be imported, and their long-clip i3d_baseline nets",
        )
    return tuple(made), notes


def _form(embedded, zoo, wishes, file):
    """`(pairwise function, notes)`; dot and embedded have the same tensors."""
    if not embedded:
        return "gaussian", ()
    if wishes.form:
        return wishes.form, (f"pairwise function {wishes.form}: as you said",)
    if len(zoo.forms) == 1:
        return zoo.forms[0], (f"pairwise function {zoo.forms[0]}: what {zoo.title} publishes",)
    named = [form for form in zoo.forms if re.search(rf"{form}[-_](product|gaussian)", file.name)]
    if len(named) != 1:
        raise WeightsError(
            f"the tensors of {file.name} fit the pairwise functions {' and '.join(zoo.forms)}, and its name says neither",
            f"say which it is: --form {' or --form '.join(zoo.forms)}",
        )
    return named[0], (f"pairwise function {named[0]}: by the file's name",)


def _fill(spec, tensors, file):
    """`(network, {ours: with what})`: `tensors` and what they may lack. Shapes come first: nothing of the file is copied before."""
    with torch.device("meta"):
        net = build(spec)
    own = net.state_dict()
    wrong = [
        f"{_short(k)} is {tuple(v.shape)}, not {tuple(own[k].shape)}"
        for k, v in tensors.items()
        if k in own and v.shape != own[k].shape
    ]
    unknown = [k for k in tensors if k not in own]
    filled = {k: why for k in own if k not in tensors and (why := _may_lack(k, tensors))}
    lacking = [k for k in own if k not in tensors and k not in filled]
    if wrong or unknown or lacking:
        what = [
            f"{len(lacking)} missing ({lacking[0]}, …)" if lacking else "",
            f"{len(unknown)} too many ({unknown[0]}, …)" if unknown else "",
            f"{len(wrong)} of another shape ({wrong[0]})" if wrong else "",
        ]
        raise WeightsError(
            f"{file} does not fit {spec.inflation.arch} {spec.backbone}, in nlzoo's names: {', '.join(w for w in what if w)}",
            "nlzoo imports C2D, I3D 3x1x1 and 3x3x3 and their non-local nets; see docs/import.md",
        )
    for name, tensor in tensors.items():
        if tensor.is_floating_point() != own[name].is_floating_point():
            raise WeightsError(f"{file} holds {tensor.dtype} in {name} (nlzoo's name)", "fetch it again")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise WeightsError(f"{file} holds NaN or infinity in {name} (nlzoo's name)", "fetch it again")
        if name.endswith("running_var") and bool((tensor < 0).any()):
            raise WeightsError(f"{file} holds a variance below 0 in {name} (nlzoo's name)", "fetch it again")
    net.load_state_dict(
        {k: tensors[k].to(own[k].dtype, copy=True).contiguous() if k in tensors else _filler(k, own[k]) for k in own},
        assign=True,
    )  # `net` has no memory of its own yet
    return net, filled


def _may_lack(name, tensors):
    """With what one of our tensors is filled that they rightly lack; None where it is missing."""
    layer, _, leaf = name.rpartition(".")
    if leaf == "num_batches_tracked":
        return "0 training steps, which nothing uses"
    if (
        leaf in ("running_mean", "running_var")
        and f"{layer}.weight" in tensors
        and not any("running_" in k for k in tensors)
    ):
        return "mean 0 and variance 1, since BN was folded into its scale and shift"
    if name.endswith("w_z.bias") and f"{layer.rpartition('.')[0]}.bn.weight" in tensors:
        return "0, since the BN that follows has a shift"
    return None


def _filler(name, like):
    """Zeros; for a variance what makes it 1 with BN's eps."""
    return torch.full(like.shape, 1 - 1e-5 if name.endswith("running_var") else 0, dtype=like.dtype)
