"""What a model, a clip and a training run are, as plain frozen data. No torch here.

A `ModelSpec` travels with its weights as `config.json`; reading one back is strict: a key we do not know, a type
or a size out of bounds is refused, because the file may come from anybody. Stages have the paper's names,
res2..res5, everywhere but in `inflate.py`; block indices are 0-based.
"""

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from .bounds import between, boolean, choices, number, one_of, text
from .errors import UsageError, WeightsError
from .view_spec import ClipSpec

FORMAT = 1  # of config.json; raised when an old reader would misread a new file
STAGES = ("res2", "res3", "res4", "res5")
FRAMES = "frames"  # no 3-D network: any 2-D one of timm on each frame, its features averaged
FUSED = "fused"  # several whole models, whose probabilities are averaged
SEQUENCE = "sequence"  # features of windows of a video, of one or several models, and a head over them
ARCHS = ("c2d", "i3d", "i3d-333", FRAMES, FUSED, SEQUENCE)
HEADS = ("linear", "lstm", "attention")  # of a sequence
MOST_FRAMES = 1024  # of a video that a network sees at once
FORMS = ("gaussian", "embedded", "dot", "concat")
SPANS = ("spacetime", "space", "time")
MOST_MEMBERS = 32  # of a fused model
SUBSAMPLES = ("before", "after", "none")
NORMS = ("bn", "none")
INITS = ("centre", "mean", "imported")
PADDINGS = ("replicate", "zeros")
CHOSEN = 0.5  # probability from which on a label counts as predicted, where a video may have several


@dataclass(frozen=True)
class Pools:
    """Where time is strided: by 2 in the stem's convolution and in max-pools over `kernel` frames, or nowhere."""

    stem_stride: int = 1
    pool1_kernel: int = 1  # frames; in space it is 3x3, stride 2
    pool1_stride: int = 1
    pool2_kernel: int = 0  # after res2, stride 2; 0: there is none


POOLS = {
    "none": Pools(),
    "8x8": Pools(pool2_kernel=2),  # authors' nets for 8x8 and 32x4 clips, SlowFast, pytorchvideo
    "paper": Pools(2, 3, 2, 3),  # table 1
    "authors": Pools(2, 2, 2, 2),  # authors' nets for 32x2 and 128x1 clips
    "mmaction2": Pools(2, 1, 2, 2),  # mmaction2, gluoncv: pool1 takes every second frame
}


@dataclass(frozen=True)
class NonLocal:
    """Non-local blocks of one kind in one stage (paper, section 3; `layers.NonLocalBlock` has the formulas)."""

    stage: str  # res2..res5
    blocks: tuple[int, ...]  # the residual blocks, 0-based, after which one is inserted
    form: str = "embedded"  # pairwise function f
    span: str = "spacetime"  # which positions j a position i sees
    subsample: str = "before"  # 1x2x2 max-pool before or after phi and g
    scale: bool = True  # softmax forms: logits times d^-0.5 (authors' code; the paper has none)
    norm: str = "bn"  # after w_z: bn with gamma 0, or none with w_z 0
    reduction: int = 2  # channels of theta, phi, g = channels / reduction

    def __post_init__(self) -> None:
        choices(self, stage=STAGES, form=FORMS, span=SPANS, subsample=SUBSAMPLES, norm=NORMS)
        between(self.reduction, 1, 64, "reduction")
        boolean(self.scale, "scale")
        if not self.blocks or len(self.blocks) > 1000:
            raise UsageError(f"{self.stage} needs 1 to 1000 block indices; it has {len(self.blocks)}")
        for index in self.blocks:
            between(index, 0, 999, f"block index in {self.stage}")
        if list(self.blocks) != sorted(set(self.blocks)):
            raise UsageError(f"block indices in {self.stage} must rise and not repeat: {list(self.blocks)}")


@dataclass(frozen=True)
class Inflation:
    """How the 2-D network becomes 3-D (paper, section 4.1 and table 1)."""

    arch: str = "i3d"  # c2d: no temporal kernels; i3d: 3x1x1; i3d-333: 3x3x3; others: not inflated
    # centre: the 2-D kernel in the middle tap; mean: copied and divided by t (paper); imported: neither, trained in 3-D
    init: str = "centre"
    temporal_padding: str = "replicate"  # replicate keeps a still clip still; zeros for imported checkpoints
    pools: str = "none"  # temporal strides, by their name in POOLS
    pool1_padding: int = 1  # of the stem's max-pool in space: 1 as in timm; 0 in the authors' nets

    def __post_init__(self) -> None:
        choices(self, arch=ARCHS, init=INITS, temporal_padding=PADDINGS, pools=POOLS)
        between(self.pool1_padding, 0, 1, "pool1 padding")


@dataclass(frozen=True)
class ModelSpec:
    """Everything needed to build a network again, and what its outputs mean."""

    # a timm ResNet, tag included where known: resnet50.a1_in1k; or tiny; with arch frames any network of timm
    backbone: str
    inflation: Inflation = Inflation()
    non_local: tuple[NonLocal, ...] = ()
    clip: ClipSpec = ClipSpec()
    classes: tuple[str, ...] = ()  # label of each output, in order; empty: the backbone's own head
    num_outputs: int = 1000  # size of the last layer
    source: str = ""  # where the starting weights came from
    licence: str = ""  # of those weights, where known
    # whether a video may have several classes, or none: a sigmoid for each instead of one softmax
    multi_label: bool = False
    threshold: float | None = None  # with several labels: the probability from which on one is predicted; None: CHOSEN
    # of a network of sound: the shares of the classes in training, which a video without sound is given
    prior: tuple[float, ...] = ()
    members: tuple["Member", ...] = ()  # of a fused model or a sequence; the backbone is then called so
    head: "SequenceHead | None" = None  # of a sequence

    @property
    def is_inflated(self) -> bool:
        """Whether this is a 3-D ResNet, which alone can be explained and exported."""
        return self.inflation.arch not in (FRAMES, FUSED, SEQUENCE)

    def shared_clips(self) -> list[tuple[ClipSpec, list[int]]]:
        """Clips with the numbers of the members that see the same pixels; a sequence sees windows of its own."""
        shared: dict[tuple[ClipSpec, int], list[int]] = {}
        for place, member in enumerate(self.members):
            own = place if member.model.head else -1
            shared.setdefault((member.model.clip, own), []).append(place)
        return [(clip, numbers) for (clip, _), numbers in shared.items()]

    @property
    def sees_its_clip(self) -> bool:
        """Whether what is decoded for `clip` itself is looked at: of several models one may, but no sequence."""
        if not self.members:
            return True
        own = (member.model for member in self.members if not member.model.head)
        return not self.head and any(model.clip == self.clip for model in own)

    @property
    def label_threshold(self) -> float:
        """The probability from which on a label is predicted, where a video may have several."""
        return CHOSEN if self.threshold is None else self.threshold

    def __post_init__(self) -> None:
        text(self.backbone, "backbone", 100)
        if not re.fullmatch(r"[a-z0-9][a-z0-9_.\-]*", self.backbone):
            raise UsageError(f"backbone {self.backbone!r} is not a model name")
        self._check_outputs()
        self._check_parts()
        for name, value in (("source", self.source), ("licence", self.licence)):
            if value != "":
                text(value, name, 1000)

    def _check_outputs(self) -> None:
        between(self.num_outputs, 1, 100_000, "num_outputs")
        boolean(self.multi_label, "multi_label")
        if self.threshold is not None:
            number(self.threshold, 0, 1, "threshold")
        if len(self.prior) not in (0, self.num_outputs):
            raise UsageError(f"{len(self.prior)} numbers of the prior for {self.num_outputs} outputs")
        for share in self.prior:
            number(share, 0, 1, "a number of the prior")
        for name in self.classes:
            text(name, "class name", 1000)
        if self.classes and len(self.classes) != self.num_outputs:
            raise UsageError(f"{len(self.classes)} class names for {self.num_outputs} outputs")
        if len(set(self.classes)) != len(self.classes):
            raise UsageError("class names repeat")

    def _check_parts(self) -> None:
        stages = [n.stage for n in self.non_local]
        if stages != sorted(set(stages)):
            raise UsageError(f"stages with non-local blocks must rise and not repeat: {stages}")
        if stages and not self.is_inflated:
            raise UsageError("a network that is not inflated has no non-local blocks")
        self._check_members()

    def _check_members(self) -> None:
        if bool(self.members) != (self.inflation.arch in (FUSED, SEQUENCE)):
            raise UsageError("a model of the arch fused or sequence has members, and no other has")
        if (self.head is not None) != (self.inflation.arch == SEQUENCE):
            raise UsageError("a model of the arch sequence has a head, and no other has")
        if self.members and not any(member.weight for member in self.members):
            raise UsageError("no member of the model has a weight above 0")
        for member in self.members:
            if member.outputs != (self.classes, self.num_outputs, self.multi_label):
                raise UsageError("members of a model have its own classes")
            if member.model.members and (self.head or not member.model.head):
                raise UsageError("only a sequence that is a member of a fused model has members of its own")
            if self.head and member.model.clip.frames * self.head.windows > MOST_FRAMES:
                raise UsageError(
                    f"{self.head.windows} windows of {member.model.clip.frames} frames are more than {MOST_FRAMES}"
                )


@dataclass(frozen=True)
class SequenceHead:
    """What makes one prediction of the features of the windows of a video, which lie evenly over it."""

    kind: str  # of HEADS
    windows: int  # of a video
    units: int = 0  # of the LSTM in each direction; attention units of each member; none of a linear head

    def __post_init__(self) -> None:
        one_of(self.kind, HEADS, "head")
        between(self.windows, 1, 256, "windows")
        between(self.units, 0 if self.kind == "linear" else 1, 4096, "units of the head")

    def __str__(self) -> str:
        names = {"linear": "a linear head", "lstm": "a bidirectional LSTM", "attention": "shifting attention"}
        return f"{names[self.kind]} over {self.windows} window{'s' if self.windows > 1 else ''} of a video"


@dataclass(frozen=True)
class Member:
    """One of several models whose probabilities are averaged."""

    weight: float  # its part in the mean; they need not add up to 1
    model: ModelSpec

    def __post_init__(self) -> None:
        number(self.weight, 0, 1, "weight")

    @property
    def outputs(self) -> tuple[tuple[str, ...], int, bool]:
        """What its outputs mean."""
        return self.model.classes, self.model.num_outputs, self.model.multi_label

    def __str__(self) -> str:
        if self.model.head:
            return f"{self.weight:.2f} of {self.model.head} ({', '.join(one.kind for one in self.model.members)})"
        return f"{self.weight:.2f} of {self.kind}"

    @property
    def sees(self) -> str:
        """Its clip, in words."""
        return "the clips of its models" if self.model.members else str(self.model.clip)

    @property
    def kind(self) -> str:
        """Blocks, pattern, backbone and stream: `non-local i3d resnet50 of flow`."""
        blocks = "non-local " if self.model.non_local else ""
        stream = "" if self.model.clip.stream == "rgb" else f" of {self.model.clip.stream}"
        return f"{blocks}{self.model.inflation.arch} {self.model.backbone}{stream}"


def refuse_other_kinds(spec: ModelSpec, what: str) -> None:
    """Raises `UsageError` for a model that is no 3-D ResNet, which `what` (a verb: be exported) is for."""
    if not spec.is_inflated:
        kind = f"{len(spec.members)} fused models" if spec.members else f"{spec.backbone} on single frames"
        kind = str(spec.head) if spec.head else kind
        raise UsageError(
            f"this model cannot {what}: it is {kind}, and no 3-D ResNet", "nlzoo inflate resnet50 makes one that can"
        )


def refuse_several(spec: ModelSpec, what: str) -> None:
    """The same for several models as one alone: a network on single frames can do `what`, too."""
    if spec.members:
        refuse_other_kinds(spec, what)


_UNUSED = {"threshold": None, "prior": (), "stream": "rgb", "members": (), "head": None}  # fields that came later


def to_json(spec: ModelSpec) -> dict:
    """The `config.json` of a model folder; what is not used is left out, so that earlier versions read it too."""
    return {"format": FORMAT, **dataclasses.asdict(spec, dict_factory=_used)}


def _used(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in fields if name not in _UNUSED or value != _UNUSED[name]}


def from_json(data: object, file: str) -> ModelSpec:
    """The spec in a `config.json` that may come from anybody.

    Raises `WeightsError`, naming `file` and the key, for unknown or missing keys, wrong types and numbers out of
    bounds.
    """
    if not isinstance(data, dict):
        raise WeightsError(f"{file} is not a JSON object")
    data = dict(data)
    written = data.pop("format", None)
    if isinstance(written, bool) or written != FORMAT:  # older formats, once there are any, are brought up to date here
        raise WeightsError(f"{file} is not an nlzoo config of format {FORMAT}", "pip install -U nlzoo")
    try:
        return _decode(ModelSpec, data)
    except (UsageError, TypeError, ValueError) as error:
        raise WeightsError(f"{file} was refused: {error}", "pip install -U nlzoo, or fetch the model again") from None


def _decode(cls: Any, data: object) -> Any:
    if not isinstance(data, dict):
        raise ValueError(f"{cls.__name__} must be an object")
    names = {f.name: f for f in dataclasses.fields(cls)}
    unknown = sorted(set(data) - set(names))
    if unknown:
        raise ValueError(f"unknown key {str(unknown[0])[:60]!r} in {cls.__name__}")
    missing = [n for n, f in names.items() if f.default is dataclasses.MISSING and n not in data]
    if missing:
        raise ValueError(f"{cls.__name__} lacks {missing[0]!r}")
    return cls(**{name: _decode_value(name, value) for name, value in data.items()})


def _decode_value(name: str, value: object) -> object:
    if name == "model" and isinstance(value, dict) and any(map(_has_members, value.get("members") or ())):
        raise ValueError("members of a member have no members")  # so that nobody's file is deep
    if name in _OBJECTS and (name != "head" or value is not None):
        return _decode(_OBJECTS[name], value)
    if name not in _LISTS:
        return value
    most, decode = _LISTS[name]
    if not isinstance(value, list) or len(value) > most:
        raise ValueError(f"{name} must be a list of at most {most}")
    return tuple(map(decode, value))


def _has_members(part: object) -> bool:
    model = part.get("model") if isinstance(part, dict) else None
    return isinstance(model, dict) and "members" in model


def _decode_number(value: object) -> object:
    return float(value) if type(value) is int else value


# Fields of a spec that hold other dataclasses or a list; everything else is plain JSON.
_OBJECTS = {"inflation": Inflation, "clip": ClipSpec, "model": ModelSpec, "head": SequenceHead}
_LISTS: dict[str, tuple[int, Callable[[object], object]]] = {  # most parts, and how each is decoded
    "non_local": (4, partial(_decode, NonLocal)),
    "members": (MOST_MEMBERS, partial(_decode, Member)),
    **dict.fromkeys(("mean", "std", "prior"), (100_000, _decode_number)),
    **dict.fromkeys(("blocks", "classes"), (100_000, lambda value: value)),
}


PRESETS: dict[str, Callable[[dict[str, int]], dict[str, list[int]]]] = {
    # "right before the last residual block of a stage" (paper, table 2b): n-2, so after that block
    "1": lambda depths: {"res4": [max(depths["res4"] - 2, 0)]},
    "5": lambda depths: {"res3": spread(2, depths["res3"]), "res4": spread(3, depths["res4"])},
    # all of res3 and res4 in R50; every fourth of res4 in R101 (gluoncv)
    "10": lambda depths: {"res3": spread(4, depths["res3"]), "res4": _ten_in_res4(depths["res4"])},
}


def _ten_in_res4(depth: int) -> list[int]:
    return list(range(2, depth, 4)) if depth == 23 else spread(6, depth)


def spread(count: int, depth: int) -> list[int]:
    """`count` of `depth` residual blocks, evenly, as in the paper's nets: s = depth // count, indices s-1, 2s-1, …"""
    count = min(count, depth)
    stride = depth // count
    return [stride * (i + 1) - 1 for i in range(count)]


def parse_nl(text: str, depths: dict[str, int], **kind: Any) -> tuple[NonLocal, ...]:
    """The placement that `--nl` asks for, resolved for a network with `depths` residual blocks per stage.

    `text`: `none`; the paper's `1`, `5`, `10`; or stages, comma-separated: `res4:5` (five, spread evenly),
    `res4@1,3,5` (after these). `kind` goes to every `NonLocal` (form, span, …).
    Raises `UsageError` for another form, a stage that is too small, an index outside.
    """
    text = text.strip().lower()
    if text == "none":
        return ()
    if text in PRESETS:
        places = PRESETS[text](depths)
    else:
        places = {}
        for stage, separator, numbers in _stage_parts(text):
            if stage in places:
                raise UsageError(f"--nl {text}: {stage} is named twice", f"join them, as in {stage}@1,3")
            places[stage] = _blocks(text, stage, separator, list(map(int, numbers.split(","))), depths[stage])
    return tuple(NonLocal(stage, tuple(blocks), **kind) for stage, blocks in sorted(places.items()) if blocks)


def _stage_parts(text: str) -> list[tuple[str, str, str]]:
    parts = re.findall(r"(res[2-5])([:@])(\d+(?:,\d+)*)(?:,|$)", text)
    if not parts or ",".join(map("".join, parts)) != text:
        raise UsageError(f"--nl {text!r} was not understood", _placement_hint(text))
    return parts


def _placement_hint(text: str) -> str:
    """What `--nl` takes, with what the user may have meant first."""
    examples = "examples: res4:5   res3:2,res4:3   res4@1,3,5   1   5   10   none"
    stages = re.findall(r"[a-z]+\d+", text)
    unknown = [stage for stage in stages if stage not in STAGES]
    if text.isdigit():
        return f"alone stand the paper's {', '.join(PRESETS)}; {text} in one stage: res4:{text}; {examples}"
    if unknown:
        number = int(unknown[0][-1]) + unknown[0].startswith("layer")  # timm's layer3 is res4
        meant = f"did you mean res{number}? " if f"res{number}" in STAGES else ""
        return f"there is no stage {unknown[0]!r}; {meant}the stages are {', '.join(STAGES)}; {examples}"
    if stages:
        return f"{stages[0]}:N puts N blocks in the stage, evenly; {stages[0]}@I,J says after which; {examples}"
    return examples


def _blocks(text: str, stage: str, separator: str, numbers: list[int], depth: int) -> list[int]:
    last = f"{stage} has {depth} residual block{'s' if depth > 1 else ''}, 0 to {depth - 1}"
    if separator == ":":
        if len(numbers) != 1:
            raise UsageError(
                f"--nl {text}: {stage}:{','.join(map(str, numbers))} was not understood",
                f"{stage}:N puts N blocks in the stage; {stage}@I,J names them",
            )
        if not 1 <= numbers[0] <= depth:
            raise UsageError(f"--nl {text}: {numbers[0]} blocks asked for, but {last}", f"at most --nl {stage}:{depth}")
        return spread(numbers[0], depth)
    if max(numbers) >= depth:
        raise UsageError(f"--nl {text}: there is no residual block {max(numbers)}; {last}")
    if len(set(numbers)) != len(numbers):
        raise UsageError(f"--nl {text}: an index in {stage} repeats")
    return sorted(numbers)


# `nl5-i3d-r50-8x8`: blocks, arch, depth, frames x stride, as papers and zoos name their nets
_NAMED = re.compile(r"(?:nl(\d+)-)?(c2d|i3d|i3d-333)-r(18|34|50|101|152)-(\d+)x(\d+)")
SPARSE = 4  # frames this far apart: the authors' 8x8 and 32x4 nets keep more of them (pools `8x8`), others the paper's


@dataclass(frozen=True)
class Named:
    """What a net's name says."""

    backbone: str
    arch: str
    pools: str
    nl: str
    clip: ClipSpec

    def spec(self, depths: dict[str, int], outputs: int, **kind: Any) -> ModelSpec:
        """The network that it means, whose backbone has so many residual blocks a stage; `kind` as for `parse_nl`."""
        inflation = Inflation(self.arch, pools=self.pools)
        return ModelSpec(self.backbone, inflation, parse_nl(self.nl, depths, **kind), self.clip, (), outputs)


def parse_name(name: str) -> Named | None:
    """`[nlN-]{c2d|i3d|i3d-333}-r{18|34|50|101|152}-{frames}x{stride}`; None for any other word.

    N is one of the paper's 1, 5, 10. Raises `UsageError` for another N, or frames and strides out of bounds.
    """
    match = _NAMED.fullmatch(name)
    if not match:
        return None
    blocks, arch, depth, frames, stride = match.groups()
    if blocks and blocks not in PRESETS:
        raise UsageError(
            f"{name}: the paper's nets have {', '.join(PRESETS)} non-local blocks, not {blocks}",
            f"place others with: nlzoo inflate resnet{depth} --nl res3:2,res4:4",
        )
    return Named(
        f"resnet{depth}",
        arch,
        "8x8" if int(stride) >= SPARSE else "paper",
        blocks or "none",
        ClipSpec(int(frames), int(stride)),
    )
