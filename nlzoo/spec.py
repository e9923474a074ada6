"""What a model, a clip and a training run are, as plain frozen data. No torch here.

A `ModelSpec` travels with its weights as `config.json`; reading one back is strict: a key we do not know, a type
or a size out of bounds is refused, because the file may come from anybody. Stages have the paper's names,
res2..res5, everywhere but in `inflate.py`; block indices are 0-based.
"""

import dataclasses
import re
from dataclasses import dataclass

from .errors import UsageError, WeightsError

FORMAT = 1  # of config.json; raised when an old reader would misread a new file
STAGES = ("res2", "res3", "res4", "res5")
ARCHS = ("c2d", "i3d", "i3d-333")
FORMS = ("gaussian", "embedded", "dot", "concat")
SPANS = ("spacetime", "space", "time")
SUBSAMPLES = ("before", "after", "none")
NORMS = ("bn", "none")
INITS = ("centre", "mean", "imported")
PADDINGS = ("replicate", "zeros")


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


def _one_of(value, allowed, what):
    if value not in allowed:
        raise UsageError(f"{what} is {value!r}; it must be one of {', '.join(map(str, allowed))}")


def _between(value, low, high, what):
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise UsageError(f"{what} is {value!r}; it must be a whole number from {low} to {high}")


def _number(value, low, high, what):
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:  # NaN lies nowhere
        raise UsageError(f"{what} is {value!r}; it must be a number from {low} to {high}")


def _text(value, what, most=200):
    if not isinstance(value, str) or not 0 < len(value) <= most:
        raise UsageError(f"{what} must be text of 1 to {most} characters; it is {str(value)[:60]!r}")


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

    def __post_init__(self):
        _one_of(self.stage, STAGES, "stage")
        _one_of(self.form, FORMS, "form")
        _one_of(self.span, SPANS, "span")
        _one_of(self.subsample, SUBSAMPLES, "subsample")
        _one_of(self.norm, NORMS, "norm")
        _between(self.reduction, 1, 64, "reduction")
        if not isinstance(self.scale, bool):
            raise UsageError(f"scale must be true or false; it is {self.scale!r}")
        if not self.blocks or len(self.blocks) > 1000:
            raise UsageError(f"{self.stage} needs 1 to 1000 block indices; it has {len(self.blocks)}")
        for index in self.blocks:
            _between(index, 0, 999, f"block index in {self.stage}")
        if list(self.blocks) != sorted(set(self.blocks)):
            raise UsageError(f"block indices in {self.stage} must rise and not repeat: {list(self.blocks)}")


@dataclass(frozen=True)
class Inflation:
    """How the 2-D network becomes 3-D (paper, section 4.1 and table 1)."""

    arch: str = "i3d"  # c2d: no temporal kernels; i3d: 3x1x1; i3d-333: 3x3x3
    init: str = "centre"  # centre: the 2-D kernel in the middle tap; mean: copied and divided by t (paper); imported: neither, trained in 3-D
    temporal_padding: str = "replicate"  # replicate keeps a still clip still; zeros for imported checkpoints
    pools: str = "none"  # temporal strides, by their name in POOLS
    pool1_padding: int = 1  # of the stem's max-pool in space: 1 as in timm; 0 in the authors' nets

    def __post_init__(self):
        _one_of(self.arch, ARCHS, "arch")
        _one_of(self.init, INITS, "init")
        _one_of(self.temporal_padding, PADDINGS, "temporal padding")
        _one_of(self.pools, POOLS, "pools")
        _between(self.pool1_padding, 0, 1, "pool1 padding")


@dataclass(frozen=True)
class ClipSpec:
    """What the network is shown of a video: `frames` RGB frames of `size` x `size` pixels."""

    frames: int = 8  # T
    stride: int | None = None  # source frames from one to the next; None: spread over the whole video
    size: int = 224  # H = W of the crop, pixels
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # RGB in [0, 1], subtracted
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)  # RGB in [0, 1], divided by
    fps: float | None = None  # stride counts frames of the video played at this rate; None: its own frames

    def __post_init__(self):
        _between(self.frames, 1, 1024, "frames")
        _between(self.size, 16, 2048, "size")
        if self.stride is not None:
            _between(self.stride, 1, 1024, "stride")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3 or not all(isinstance(v, float) and 0 <= v <= 10 for v in values):
                raise UsageError(f"{name} must be three numbers from 0 to 10; it is {values!r}")
        if min(self.std) <= 0:
            raise UsageError(f"std must be above 0; it is {self.std!r}")
        if self.fps is not None:
            _number(self.fps, 1, 1000, "fps")
            if self.stride is None:
                raise UsageError(f"fps {self.fps:g} needs a stride: frames spread over the whole video have no rate",
                                 "give --stride too, or leave --fps away")

    def __str__(self):
        step = f"every {self.stride}" if self.stride else "spread over the video"
        step += f" at {self.fps:g} fps" if self.fps else ""
        return f"{self.frames} frames {step}, {self.size}x{self.size}"


@dataclass(frozen=True)
class ModelSpec:
    """Everything needed to build a network again, and what its outputs mean."""

    backbone: str  # a timm ResNet, tag included where known: resnet50.a1_in1k; or tiny
    inflation: Inflation = Inflation()
    non_local: tuple[NonLocal, ...] = ()
    clip: ClipSpec = ClipSpec()
    classes: tuple[str, ...] = ()  # label of each output, in order; empty: the backbone's own head
    num_outputs: int = 1000  # size of the last layer
    source: str = ""  # where the starting weights came from
    licence: str = ""  # of those weights, where known
    multi_label: bool = False  # whether a video may have several classes, or none: a sigmoid for each instead of one softmax

    def __post_init__(self):
        _text(self.backbone, "backbone", 100)
        if not re.fullmatch(r"[a-z0-9][a-z0-9_.\-]*", self.backbone):
            raise UsageError(f"backbone {self.backbone!r} is not a model name")
        _between(self.num_outputs, 1, 100_000, "num_outputs")
        if not isinstance(self.multi_label, bool):
            raise UsageError(f"multi_label must be true or false; it is {self.multi_label!r}")
        for name in self.classes:
            _text(name, "class name", 1000)
        if self.classes and len(self.classes) != self.num_outputs:
            raise UsageError(f"{len(self.classes)} class names for {self.num_outputs} outputs")
        if len(set(self.classes)) != len(self.classes):
            raise UsageError("class names repeat")
        for name, value in (("source", self.source), ("licence", self.licence)):
            if value != "":
                _text(value, name, 1000)
        stages = [n.stage for n in self.non_local]
        if stages != sorted(set(stages)):
            raise UsageError(f"stages with non-local blocks must rise and not repeat: {stages}")


# Fields of a spec that hold another dataclass; everything else is plain JSON.
_NESTED = {"inflation": Inflation, "clip": ClipSpec}


def to_json(spec: ModelSpec) -> dict:
    """The `config.json` of a model folder."""
    return {"format": FORMAT, **dataclasses.asdict(spec)}


def from_json(data: object, where: str) -> ModelSpec:
    """The spec in a `config.json` that may come from anybody.

    Raises `WeightsError`, naming `where` and the key, for unknown or missing keys, wrong types and numbers out of bounds.
    """
    if not isinstance(data, dict):
        raise WeightsError(f"{where} is not a JSON object")
    data = dict(data)
    written = data.pop("format", None)
    if isinstance(written, bool) or written != FORMAT:  # older formats, once there are any, are brought up to date here
        raise WeightsError(f"{where} is not an nlzoo config of format {FORMAT}", "pip install -U nlzoo")
    try:
        return _decode(ModelSpec, data)
    except (UsageError, TypeError, ValueError) as error:
        raise WeightsError(f"{where} was refused: {error}", "pip install -U nlzoo, or fetch the model again") from None


def _decode(cls, data):
    if not isinstance(data, dict):
        raise ValueError(f"{cls.__name__} must be an object")
    names = {f.name: f for f in dataclasses.fields(cls)}
    if unknown := sorted(set(data) - set(names)):
        raise ValueError(f"unknown key {str(unknown[0])[:60]!r} in {cls.__name__}")
    missing = [n for n, f in names.items() if f.default is dataclasses.MISSING and n not in data]
    if missing:
        raise ValueError(f"{cls.__name__} lacks {missing[0]!r}")
    values = {}
    for name, value in data.items():
        if name in _NESTED:
            value = _decode(_NESTED[name], value)
        elif name == "non_local":
            value = tuple(_decode(NonLocal, v) for v in _list(value, name, 4))
        elif name in ("blocks", "classes", "mean", "std"):
            value = tuple(float(v) if name in ("mean", "std") and type(v) is int else v
                          for v in _list(value, name, 100_000))
        values[name] = value
    return cls(**values)


def _list(value, name, most):
    if not isinstance(value, list) or len(value) > most:
        raise ValueError(f"{name} must be a list of at most {most}")
    return value


PRESETS = {
    # "right before the last residual block of a stage" (paper, table 2b): n-2, so after that block
    "1": lambda depths: {"res4": [max(depths["res4"] - 2, 0)]},
    "5": lambda depths: {"res3": spread(2, depths["res3"]), "res4": spread(3, depths["res4"])},
    # all of res3 and res4 in R50; every fourth of res4 in R101 (gluoncv)
    "10": lambda depths: {"res3": spread(4, depths["res3"]), "res4": _ten_in_res4(depths["res4"])},
}


def _ten_in_res4(depth):
    return list(range(2, depth, 4)) if depth == 23 else spread(6, depth)


def spread(count: int, depth: int) -> list[int]:
    """`count` of `depth` residual blocks, evenly: stride s = depth // count, indices s-1, 2s-1, … (reference: the paper's nets)."""
    count = min(count, depth)
    stride = depth // count
    return [stride * (i + 1) - 1 for i in range(count)]


def parse_nl(text: str, depths: dict[str, int], **kind) -> tuple[NonLocal, ...]:
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
        for stage, sep, numbers in _stage_parts(text):
            if stage in places:
                raise UsageError(f"--nl {text}: {stage} is named twice", f"join them, as in {stage}@1,3")
            places[stage] = _blocks(text, stage, sep, numbers, depths[stage])
    return tuple(NonLocal(stage, tuple(blocks), **kind) for stage, blocks in sorted(places.items()) if blocks)


def _stage_parts(text):
    parts = re.findall(r"(res[2-5])([:@])(\d+(?:,\d+)*)(?:,|$)", text)
    if not parts or ",".join(f"{s}{sep}{n}" for s, sep, n in parts) != text:
        raise UsageError(f"--nl {text!r} was not understood",
                         "examples: res4:5   res3:2,res4:3   res4@1,3,5   1   5   10   none")
    return parts


def _blocks(text, stage, sep, numbers, depth):
    numbers = [int(n) for n in numbers.split(",")]
    last = f"{stage} has {depth} residual block{'s' if depth > 1 else ''}, 0 to {depth - 1}"
    if sep == ":":
        if len(numbers) != 1:
            raise UsageError(f"--nl {text}: {stage}:{','.join(map(str, numbers))} was not understood",
                             f"{stage}:N puts N blocks in the stage; {stage}@I,J names them")
        if not 1 <= numbers[0] <= depth:
            raise UsageError(f"--nl {text}: {numbers[0]} blocks asked for, but {last}", f"at most --nl {stage}:{depth}")
        return spread(numbers[0], depth)
    if bad := [n for n in numbers if n >= depth]:
        raise UsageError(f"--nl {text}: there is no residual block {bad[0]}; {last}")
    if len(set(numbers)) != len(numbers):
        raise UsageError(f"--nl {text}: an index in {stage} repeats")
    return sorted(numbers)


# `nl5-i3d-r50-8x8`: blocks, arch, depth, frames x stride, as papers and zoos name their nets
_NAMED = re.compile(r"(?:nl(\d+)-)?(c2d|i3d|i3d-333)-r(18|34|50|101|152)-(\d+)x(\d+)")
SPARSE = 4  # frames this far apart: the authors' 8x8 and 32x4 nets keep more of them (pools `8x8`); nearer, the paper's pools


@dataclass(frozen=True)
class Named:
    """What a net's name says."""

    backbone: str
    arch: str
    pools: str
    nl: str
    clip: ClipSpec


def parse_name(name: str) -> Named | None:
    """`[nlN-]{c2d|i3d|i3d-333}-r{18|34|50|101|152}-{frames}x{stride}`; None for any other word.

    N is one of the paper's 1, 5, 10. Raises `UsageError` for another N, or frames and strides out of bounds.
    """
    if not (found := _NAMED.fullmatch(name)):
        return None
    blocks, arch, depth, frames, stride = found.groups()
    if blocks and blocks not in PRESETS:
        raise UsageError(f"{name}: the paper's nets have {', '.join(PRESETS)} non-local blocks, not {blocks}",
                         f"place others with: nlzoo inflate resnet{depth} --nl res3:2,res4:4")
    return Named(f"resnet{depth}", arch, "8x8" if int(stride) >= SPARSE else "paper", blocks or "none",
                 ClipSpec(int(frames), int(stride)))


@dataclass(frozen=True)
class Looks:
    """How often a video is looked at in a test; its answer is the mean over all views."""

    clips: int = 1  # in time, evenly; from 2 on the last one reaches the video's end
    crops: int | str = 1  # 1: the whole frame squeezed to a square; 3: squares at both ends and in the middle of the longer side; full: as it is
    order: str = "true"  # of a clip's frames; shuffled, or one: the middle one in place of all (controls)

    def __post_init__(self):
        _between(self.clips, 1, 100, "clips per video")
        _one_of(self.crops, (1, 3, "full"), "crops per clip")
        _one_of(self.order, ("true", "shuffled", "one"), "order of the frames")

    @property
    def views(self) -> int:
        """Of each video."""
        return self.clips * (3 if self.crops == 3 else 1)

    def __str__(self):
        return f"{self.clips}x{self.crops}"


CROPS = ("area", "jitter")


@dataclass(frozen=True)
class Augment:
    """What training changes in a clip, each time anew (docs/augmentation.md); the defaults are the preset `light`."""

    crop: str = "area"  # area: a rectangle of at least min_area of the frame; jitter: the paper's, a square of 70-88 % of the short side
    min_area: float = 0.5
    flip: bool = True  # mirrored half the time
    colour: float = 0.0  # brightness, contrast and saturation each times 1 - colour to 1 + colour
    randaugment: int = 0  # magnitude of two operations out of 14; 0: none
    erase: float = 0.0  # probability that a rectangle becomes grey
    mixup: float = 0.0  # alpha of Beta(alpha, alpha) that clips are blended by; 0: never
    cutmix: float = 0.0  # the same for the area that is cut from another clip; with both on, each half the time
    repeats: int = 1  # views of each video in a step, decoded at once

    def __post_init__(self):
        _one_of(self.crop, CROPS, "crop")
        _number(self.min_area, 0.05, 1, "min_area")
        if not isinstance(self.flip, bool):
            raise UsageError(f"flip must be true or false; it is {self.flip!r}")
        _number(self.colour, 0, 1, "colour")
        _between(self.randaugment, 0, 30, "randaugment")
        _number(self.erase, 0, 1, "erase")
        for name, alpha in (("mixup", self.mixup), ("cutmix", self.cutmix)):
            if alpha != 0:
                _number(alpha, 0.01, 10, f"{name}, where it is not 0,")
        _between(self.repeats, 1, 16, "repeats")

    def __str__(self):
        """`light` and what differs from it, as `parse_augment` reads it."""
        values = {k: v for k, v in dataclasses.asdict(self).items() if v != getattr(AUGMENTS["light"], k)}
        return ",".join(["light", *(f"{k}={_WORDS.get(str(v), v)}" for k, v in values.items())])


AUGMENTS = {
    "light": Augment(),
    "paper": Augment(crop="jitter"),
    "medium": Augment(colour=0.4, erase=0.25),
    "strong": Augment(min_area=0.3, randaugment=7, erase=0.25, mixup=0.8, cutmix=1.0, repeats=2),
}
MANY_CLIPS = 5000  # from here on `medium`; below it only `light` was measured (docs/training.md)
_WORDS = {"True": "yes", "False": "no"}


def default_augment(training_clips: int) -> tuple[str, str]:
    """`(preset, reason in words)` for a set of that many training clips."""
    few = training_clips < MANY_CLIPS
    return ("light", f"under {MANY_CLIPS:,} training clips") if few else ("medium", f"{MANY_CLIPS:,} training clips or more")


def parse_augment(text: str) -> Augment:
    """`medium`, `flip=no,colour=0.2` (changes to `light`) or `strong,flip=no,mixup=0`; spaces and case do not matter.

    Raises `UsageError`, naming all presets and keys, for another name or key, and for a value that cannot be.
    """
    first, values = _changes("--augment", text, "light", AUGMENTS, Augment, "strong,flip=no,mixup=0")
    return dataclasses.replace(AUGMENTS[first], **values)


def _shares(text):
    return () if text == "none" else tuple(map(float, text.split("/")))


_READ = {bool: ({"yes": True, "no": False}.__getitem__, "yes or no"), int: (int, "a whole number"), float: (float, "a number"), str: (str, "a word"),
         tuple: (_shares, "shares of the run such as 0.375/0.75, or none")}


def _changes(option, text, usual, presets, cls, example):
    """What `name,key=value,…` says: the name of a preset (`usual` where there is none), and the changes as fields of `cls`."""
    kinds = {f.name: type(f.default) for f in dataclasses.fields(cls)}
    hint = f"presets: {', '.join(presets)}; keys: {', '.join(kinds)}; for example: {example}"
    first, *parts = [part.strip().lower() for part in text.split(",")]
    if "=" in first:
        first, parts = usual, [first, *parts]
    if first not in presets:
        raise UsageError(f"{option} {text!r}: there is no preset {first!r}", hint)
    values = {}
    for part in parts:
        key, equals, value = (word.strip() for word in part.partition("="))
        if not equals or key not in kinds:
            raise UsageError(f"{option} {text!r}: {part!r} was not understood", hint)
        if key in values:
            raise UsageError(f"{option} {text!r}: {key} is said twice")
        read, wanted = _READ[kinds[key]]
        try:
            values[key] = read(value)
        except (ValueError, KeyError):
            raise UsageError(f"{option} {text!r}: {key} must be {wanted}; it is {value!r}", hint) from None
    return first, values


OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("cosine", "step", "constant")
BALANCES = ("none", "sampler", "loss")
PRECISIONS = ("auto", "bf16", "fp16", "fp32")


@dataclass(frozen=True)
class Recipe:
    """How a network is trained (docs/training.md); the defaults are the preset `small`. Shares are of the run's steps."""

    optimizer: str = "adamw"  # adamw, whose kernels' rates follow their size; sgd with Nesterov's momentum of 0.9
    lr: float = 5e-4  # of the whole batch, at its highest
    weight_decay: float = 0.05  # of kernels; none on BN and biases
    schedule: str = "cosine"  # cosine down to 0; step: a tenth from each milestone on; constant
    milestones: tuple[float, ...] = ()  # shares of the run, of `step`
    warm_up: float = 0.1  # share of the run in which the rate rises in a line; 0: none
    epochs: int = 20
    batch: int = 4  # clips a step
    accumulate: int = 1  # parts that a step's clips are computed in
    dropout: float = 0.5  # before the head
    label_smoothing: float = 0.1
    bn: str = "train"  # frozen: statistics and affine of all BN but the non-local blocks' own
    precise_bn: int = 0  # batches over which BN's statistics are computed anew before a validation; 0: none
    layer_decay: float = 1.0  # a residual block's rate as a share of the next one's; 1: all the same
    unfreeze: float = 0.0  # share of the run until which only the head and the non-local blocks train; 0: all train at once
    ema: float = 0.0  # decay of the moving average of weights that is validated and kept; 0: none
    clip_norm: float = 5.0  # of the gradient; 0: not clipped
    early_stop: int = 0  # epochs without a better score after which a run ends; 0: never
    balance: str = "none"  # sampler: classes are drawn equally often; loss: clips of rare classes count more
    precision: str = "auto"  # auto: bf16 on a GPU that has it, otherwise fp32
    compile: bool = False  # torch.compile
    checkpointing: bool = False  # activations are computed again in the backward pass: less memory, more time
    loss: str = "ce"  # bce: a sigmoid for each class, where a video may have several

    def __post_init__(self):
        for name, allowed in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("bn", ("train", "frozen")), ("balance", BALANCES),
                              ("precision", PRECISIONS), ("loss", ("ce", "bce"))):
            _one_of(getattr(self, name), allowed, name)
        for name, low, high in (("lr", 1e-8, 100), ("weight_decay", 0, 1), ("warm_up", 0, 0.9), ("dropout", 0, 0.95), ("label_smoothing", 0, 0.9),
                                ("layer_decay", 0.01, 1), ("unfreeze", 0, 0.99), ("ema", 0, 0.999999), ("clip_norm", 0, 1e6)):
            _number(getattr(self, name), low, high, name)
        for name, low in (("epochs", 1), ("batch", 1), ("precise_bn", 0), ("early_stop", 0)):
            _between(getattr(self, name), low, 100_000, name)
        _between(self.accumulate, 1, self.batch, f"accumulate, in a batch of {self.batch},")
        for name in ("compile", "checkpointing"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"{name} must be true or false; it is {getattr(self, name)!r}")
        self._check_milestones()
        if self.loss == "bce" and (self.balance != "none" or self.label_smoothing):
            raise UsageError(f"balance {self.balance} and label_smoothing {self.label_smoothing:g} are for one label a video (loss ce)",
                             "with loss=bce leave balance at none and label_smoothing at 0")

    def _check_milestones(self):
        if not isinstance(self.milestones, tuple) or len(self.milestones) > 100:
            raise UsageError(f"milestones must be at most 100 shares of the run; they are {self.milestones!r}")
        for share in self.milestones:
            _number(share, 0.001, 0.999, "a milestone")
        if list(self.milestones) != sorted(set(self.milestones)):
            raise UsageError(f"milestones must rise and not repeat: {list(self.milestones)}")
        if self.schedule == "step" and not self.milestones:
            raise UsageError("schedule step needs milestones", "for example milestones=0.375/0.75, the paper's")

    def __str__(self):
        """The nearest preset and what differs from it, as `parse_recipe` reads it."""
        own = dataclasses.asdict(self)
        changes = {name: {k: v for k, v in own.items() if v != getattr(preset, k)} for name, preset in RECIPES.items()}
        name = min(changes, key=lambda n: len(changes[n]))
        if "batch" in changes[name]:  # otherwise the rate would follow it
            changes[name]["lr"] = self.lr
        return ",".join([name, *(f"{k}={_recipe_word(v)}" for k, v in changes[name].items())])


def _recipe_word(value):
    if isinstance(value, tuple):
        return "/".join(map(str, value)) or "none"
    return _WORDS.get(str(value), value)


_PAPER = Recipe("sgd", 0.01, 1e-4, "step", (0.375, 0.75), 0.0, epochs=109, batch=64, label_smoothing=0.0, precise_bn=200,
                clip_norm=0.0)
RECIPES = {
    "small": Recipe(),  # measured on some 50 clips (docs/training.md)
    # 400,000 steps on the 235,000 training clips of Kinetics-400, a tenth at 150,000 and 300,000 (paper; the authors' configs)
    "paper": _PAPER,
    "paper-long": dataclasses.replace(_PAPER, lr=0.0025, epochs=27, batch=16, bn="frozen", precise_bn=0),
    # 200,000 steps on 7,985 videos, a tenth at 75,000 and 150,000; 8 clips a step is what the rate says by the paper's own rule
    "charades": dataclasses.replace(_PAPER, lr=0.00125, epochs=200, batch=8, bn="frozen", precise_bn=0, loss="bce"),
}
LONG_CLIP = 64  # frames; the paper's short clips have up to 32, its long ones 128
LARGE_SET = 50_000  # training clips from which on the paper's recipe is taken
CLIPS_SEEN, MIN_EPOCHS = 100_000, 5  # a large set is seen as often as gives so many clips
EPOCHS, GPU_EPOCHS = 20, 30  # of a small set
BATCH, GPU_BATCH = 4, 16


def change_recipe(recipe: Recipe, **changes) -> Recipe:
    """`recipe` with these fields; a new batch without a new rate scales the rate: in proportion (sgd), by the square root (adamw).

    Raises `UsageError` for a value that cannot be.
    """
    changed = dataclasses.replace(recipe, **changes)
    if "batch" not in changes or "lr" in changes:
        return changed
    ratio = changed.batch / recipe.batch
    return dataclasses.replace(changed, lr=recipe.lr * (ratio if changed.optimizer == "sgd" else ratio ** 0.5))


def for_labels(recipe: Recipe, multi_label: bool) -> Recipe:
    """`recipe` with the loss for videos of one label, or of any number: then bce, without label smoothing.

    Raises `UsageError` where classes are to be balanced that share videos.
    """
    if multi_label == (recipe.loss == "bce"):
        return recipe
    return dataclasses.replace(recipe, loss="bce", label_smoothing=0.0) if multi_label else dataclasses.replace(recipe, loss="ce")


def parse_recipe(text: str, auto: Recipe | None = None) -> Recipe:
    """`paper`, `paper,epochs=20,batch=8`, or `layer_decay=0.7` and `auto,layer_decay=0.7`: changes to `auto` (`small` where None).

    The rate follows a changed batch unless it is given too (`change_recipe`). Spaces and case do not matter; several
    milestones are written 0.375/0.75. Raises `UsageError`, naming all presets and keys, for another name or key, and
    for a value that cannot be.
    """
    presets = {"auto": auto or RECIPES["small"], **RECIPES}
    first, values = _changes("--recipe", text, "auto", presets, Recipe, "paper,epochs=20,batch=8")
    return change_recipe(presets[first], **values)


def auto_recipe(training_clips: int, classes: int, batch: int | None, device: str, fresh: bool, long: bool,
                multi_label: bool = False) -> tuple[Recipe, list[str]]:
    """The recipe of a run that asked for none, and a line on each decision, the field first, with its reason.

    `batch`: clips a step, None: by the device. `device`: cpu, cuda, … `fresh`: the network never saw a video (it comes
    from `inflate`). `long`: its clips have `LONG_CLIP` frames or more. Raises `UsageError` for a batch that cannot be.
    """
    few, cpu = training_clips < LARGE_SET, device == "cpu"
    settled = long and not fresh  # its BN knows videos already, and long clips leave room for few of them in a step
    preset = "small" if few else "paper-long" if settled else "paper"
    most, own_batch = (EPOCHS, BATCH) if cpu else (GPU_EPOCHS, GPU_BATCH)
    base = for_labels(RECIPES[preset], multi_label)
    recipe = change_recipe(base, batch=own_batch if batch is None else batch, bn="frozen" if settled else "train",
                           epochs=max(MIN_EPOCHS, min(most, -(-CLIPS_SEEN // training_clips))))
    return recipe, _reasons(recipe, base, preset, training_clips, classes, batch, device, settled)


def _reasons(recipe, base, preset, training_clips, classes, batch, device, settled):
    side = "under" if preset == "small" else "not under"
    rule = "by the square root of the batch" if recipe.optimizer == "adamw" else "in proportion to the batch"
    frozen = "long clips on a network trained on videos: few of them fit in a step (paper)"
    trained = "with it frozen, small sets learnt nothing" if preset == "small" else "as in the paper; its statistics over 200 batches before a validation"
    rate = f"{base.lr:g} for {base.batch} clips a step, {rule}"
    lines = [f"recipe {preset} ({training_clips} training clips of {classes} classes, {side} {LARGE_SET:,})",
             f"epochs {recipe.epochs} (for {training_clips} training clips on {device})",
             f"batch {recipe.batch}" + (f" (on {device})" if batch is None else ""),
             f"lr {recipe.lr:.3g} ({rate})",
             f"bn {'frozen' if settled else 'trained'} ({frozen if settled else trained})",
             f"precision {'float32' if device == 'cpu' else 'bf16 where it is there, otherwise float32'} (on {device})"]
    return lines + (["loss bce (a video may have several labels)"] if recipe.loss == "bce" else [])


def parse_looks(text: str) -> Looks:
    """`10x3`, `10xfull`: clips x crops. Raises `UsageError`."""
    if not (found := re.fullmatch(r"\s*(\d{1,3})\s*x\s*(\d|full)\s*", text)):
        raise UsageError(f"--views {text!r} was not understood", "clips x crops: 1x1, 10x1, 10x3, 10xfull")
    return Looks(int(found[1]), int(found[2]) if found[2].isdigit() else found[2])


@dataclass(frozen=True)
class TrainConfig:
    """One fine-tuning run, as the user asked for it and as nlzoo filled it in."""

    videos: str  # the folder or list
    start: str  # the model folder that it starts from
    val: str  # share of the groups kept for validation, a fold, or names of groups
    seed: int  # of the split, the order, all that is drawn
    device: str
    workers: int  # decoding processes
    recipe: Recipe = Recipe()
    augment: Augment = Augment()
    decoder: str = "auto"
    cache: str | None = None  # folder of decoded frames
    world: int = 1  # processes that share each batch

    def __post_init__(self):
        _between(self.seed, 0, 2**31 - 1, "--seed")
        _between(self.world, 1, 100_000, "the number of processes")
        if self.recipe.batch < self.world:
            raise UsageError(f"a batch of {self.recipe.batch} clips cannot be shared by {self.world} processes", f"--batch {self.world} is the least")


def train_config(data: dict) -> TrainConfig:
    """The config that a run recorded. Raises `UsageError` for values that cannot be, `WeightsError` for other keys."""
    try:
        recipe = {k: tuple(v) if k == "milestones" else v for k, v in data["recipe"].items()}
        return TrainConfig(**{**data, "recipe": Recipe(**recipe), "augment": Augment(**data["augment"])})
    except (KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"the settings of the run are not this version's ({error!r})", "begin it again under another name") from None
