"""The README.md of a model folder: what the network is, how good, how to load it, and what not to expect.

Unusual: every name in it may come from a stranger's folder or file, so all of them are escaped, and nothing of the
machine it was written on goes in. The YAML that the Hub wants on top is the business of `apps.hub_card`.
"""

import math
import re
import unicodedata
from collections.abc import Iterator

from ..core.model_spec import ModelSpec
from ..core.text import counted
from ..core.view_spec import STREAMS

SEVERAL = "several"  # clips, one for each member of a model
HERE = "PATH"  # stands for the model folder in a card that was not pushed; `addressed` fills it in
_MOST_CLASSES = 1000  # listed in the text; config.json has them all
_ARCHS = {
    "c2d": ("C2D", "no temporal kernels"),
    "i3d": ("I3D", "3x1x1 temporal kernels"),
    "i3d-333": ("I3D", "3x3x3 kernels"),
    "frames": ("Frame by frame", "a 2-D network on each frame, whose features are averaged"),
}
_INITS = {
    "centre": "each 2-D kernel in the middle of its 3-D kernel: training starts from the 2-D network, frame by frame",
    "mean": "each 2-D kernel copied along time and divided by their number, as in the paper",
    "imported": "nothing here: its 3-D kernels were trained elsewhere and imported",
}
_CHECKS = {
    "nonlocal_identical": "inserting the non-local blocks left the output bit-identical",
    "still_clip_error": "still clip against the 2-D network, relative error",
    "moving_clip_error": "moving clip against the 2-D network frame by frame, relative error",
}


def body(spec: ModelSpec, metrics: dict | None, checks: dict | None = None, use: str = "") -> str:
    """The text of a model folder's README.md, in Markdown.

    `metrics` is what metrics.json holds, fractions in [0, 1]; `checks` what `inflate` computed. Both may lack any key.
    `use`: how to load it, where not with nlzoo.
    """
    parts = [f"# {title(spec)}", _what(spec, tuned=bool((metrics or {}).get("step")))]
    if checks:
        parts.append(_checked(checks))
    parts += [
        _outputs(spec),
        "## Figures",
        _figures(spec, metrics or {}),
        "## Use",
        use or usage(HERE, seen(spec)),
        "## Limits",
        (_ONE_OF_THEM if spec.classes and not spec.multi_label else "") + _LIMITS,
    ]
    return "\n\n".join(p for p in parts if p) + "\n"


def title(spec: ModelSpec) -> str:
    """One line: `Non-local I3D, resnet50.a1_in1k`."""
    if spec.members:
        return escape(f"{spec.head}".capitalize()) if spec.head else f"Late fusion of {len(spec.members)} models"
    return f"{'Non-local ' if spec.non_local else ''}{_ARCHS[spec.inflation.arch][0]}, {escape(spec.backbone)}"


def usage(address: str, stream: str = "rgb") -> str:
    """The lines that load the model from `address`, a folder or `user/name`, in Markdown."""
    python, shell = usage_lines(address, stream)
    return f"```python\n{python}\n```\n\n```sh\n{shell}\n```"


def transformers_usage(address: str) -> str:
    """The same for the folder, or `user/name`, of an export to transformers."""
    model = f'pipeline("video-classification", model="{address}", trust_remote_code=True)'
    return f'```python\nfrom transformers import pipeline\nclassify = {model}\nclassify("video.mp4")\n```'


def seen(spec: ModelSpec) -> str:
    """What `usage` says that a model takes: its stream, or `SEVERAL` clips."""
    return SEVERAL if spec.members else spec.clip.stream


def usage_lines(address: str, stream: str = "rgb") -> tuple[str, str]:
    """What loads the model in Python, and what asks it in a shell. `stream`: see `seen`."""
    clips = {"rgb": "RGB clips", "audio": "patches of sound"}.get(stream, "clips of flow")
    takes = "a clip for each of net.members, in its order,"
    if stream != SEVERAL:
        takes = f"(B, {len(STREAMS[stream].mean)}, T, H, W) normalised {clips}"
    load = f'net = nlzoo.load("{address}")  # {takes} to (B, classes) logits'
    return f"import nlzoo\n{load}", f"nlzoo predict {address} VIDEO"


def addressed(text: str, repo: str) -> str:
    """`text` with its lines of `usage`, whatever address they had, naming `repo`; the rest is left as it is."""
    match = re.search(r'nlzoo\.load\("([^"\n]+)"\)', text)
    if match:
        for stream in (*STREAMS, SEVERAL):
            text = text.replace(usage(match[1], stream), usage(repo, stream))
    return text


def escape(text: str) -> str:
    """`text` so that Markdown and HTML show it as it is; control and direction characters become visible codes."""
    shown = "".join(_visible(c) for c in text)
    shown = shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    shown = re.sub(r"([\\`*_\[\]|~$#])", r"\\\1", shown)
    return shown.replace("://", r"\://").replace("www.", r"www\.")  # GitHub and the Hub link bare addresses


def _visible(character: str) -> str:
    category = unicodedata.category(character)
    if category[0] != "C" or character == "\u200d":  # which holds family emoji together
        return " " if category in ("Zl", "Zp") else character
    return character.encode("unicode_escape").decode()


def _what(spec: ModelSpec, tuned: bool) -> str:
    if spec.members:
        return _what_members(spec)
    arch, kernels = _ARCHS[spec.inflation.arch]
    blocks = ", with non-local blocks" if spec.non_local else ""
    kind = "GoogLeNet (Inception-V1)" if spec.backbone.startswith("googlenet") else "ResNet"
    made = f"made with nlzoo: a 2-D {kind} inflated to 3-D"
    if spec.inflation.init == "imported":
        made = "a 3-D ResNet imported into nlzoo"
    inflation = [
        f"- inflated with: {_INITS[spec.inflation.init]}",
        f"- temporal padding: {spec.inflation.temporal_padding}; temporal strides: {spec.inflation.pools}",
        f"- non-local blocks: {_placement(spec)}",
    ]
    summary = f"A video classifier {made}{blocks} (Wang et al., 2018)."
    if not spec.is_inflated:
        training = "fine-tuned on the frames of videos" if tuned else "left as it is"
        summary = f"A video classifier made with nlzoo: an image network of timm, {training}, and a linear head."
        inflation = []
    lines = [
        summary,
        "",
        f"- backbone: {escape(spec.backbone)}",
        f"- architecture: {arch}, {kernels}",
        *inflation,
        f"- input: {spec.clip}; {_normalised(spec)}",
        f"- starting weights: {escape(spec.source) or 'not recorded'}",
        f"- their licence: {_licence(spec)}",
    ]
    return "\n".join(lines)


def _normalised(spec: ModelSpec) -> str:
    of = "RGB" if spec.clip.stream == "rgb" else f"the bytes of {spec.clip.stream}"
    return f"mean {_numbers(spec.clip.mean)}, std {_numbers(spec.clip.std)} of {of} in [0, 1]"


def _what_members(spec: ModelSpec) -> str:
    what = "several models, the weighted mean of whose probabilities is taken"
    if spec.head:
        what = f"{spec.head}, fitted to the features of {counted(len(spec.members), 'model')} that stay as they are"
    lines = [f"A video classifier made with nlzoo: {what}.", ""]
    lines += [f"- {escape(str(member))}: {member.sees}" for member in spec.members]
    lines += [f"- starting weights: {escape(spec.source) or 'not recorded'}", f"- their licence: {_licence(spec)}"]
    return "\n".join(lines)


def _licence(spec: ModelSpec) -> str:
    """A licence against commercial use holds for what was trained from the weights too, so it is said in words."""
    if not spec.licence:
        return "not recorded; find out before you pass this model on"
    limits = ": no commercial use, of this model either" if "-nc" in spec.licence.lower() else ""
    return escape(spec.licence) + limits


def _placement(spec: ModelSpec) -> str:
    stages = []
    for group in spec.non_local:
        blocks = "residual blocks" if len(group.blocks) > 1 else "residual block"
        after = ", ".join(map(str, group.blocks))
        subsampled = f", subsampled {group.subsample}" if group.subsample != "none" else ""
        stages.append(f"{group.stage} after {blocks} {after} ({group.form}, {group.span}{subsampled})")
    return "; ".join(stages) or "none"


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{v:g}" for v in values)


def _checked(checks: dict) -> str:
    lines = [f"- {name}: {_result(checks[key])}" for key, name in _CHECKS.items() if checks.get(key) is not None]
    return "Computed on this network when it was built:\n\n" + "\n".join(lines) if lines else ""


def _result(value: bool | float) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.1e}"


def _outputs(spec: ModelSpec) -> str:
    if not spec.classes and spec.inflation.init == "imported":
        return (
            f"The last layer has the {spec.num_outputs} outputs that the network was trained with; their names did not "
            "come with the weights. Fine-tune the network on videos of your own before asking it about any."
        )
    if not spec.classes:
        return (
            f"The last layer still has the {spec.num_outputs} outputs of the backbone: "
            "fine-tune the network on videos before asking it about any."
        )
    names = [escape(name) for name in spec.classes[:_MOST_CLASSES]]
    if len(spec.classes) > len(names):
        names.append(f"and {len(spec.classes) - len(names)} more in config.json")
    several = "; a video may have several, or none" if spec.multi_label else ""
    return f"Classes ({len(spec.classes)}, in the order of the outputs{several}): {' · '.join(names)}"


def _figures(spec: ModelSpec, metrics: dict) -> str:
    figures = {key: value for key, given in metrics.items() if (value := number(given)) is not None}
    if "top1" not in figures and "map" not in figures:
        return "None came with this model."
    rows = _percents(figures, spec.num_outputs)
    counts = {"val": "validation videos", "train": "training videos", "epochs": "epochs"}
    rows += [(name, f"{figures[key]:.0f}") for key, name in counts.items() if key in figures]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"| | |\n|---|---|\n{table}\n\n{' '.join(_caveats(figures, _interval(metrics)))}"


def _percents(figures: dict[str, float], outputs: int) -> list[tuple[str, str]]:
    """Rows of the figures that are shares: name and value."""
    one_label, val = "top1" in figures, figures.get("val", 0)
    names = {
        "top1": "top-1",
        "map": "" if one_label else "mean average precision",
        "top5": "top-5" if outputs > 5 else "",  # with five classes or fewer it is 1 by construction
        "majority": "majority-class baseline" if one_label else "the same scores for every video",
    }
    notes = {"top1": f" ({round(figures['top1'] * val)} of {val:.0f})"} if one_label and val else {}
    shown = [key for key, name in names.items() if name and key in figures]
    return [(names[key], _percent(figures[key]) + notes.get(key, "")) for key in shown]


def number(value: object) -> float | None:
    """A finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if math.isfinite(value) else None


def _caveats(figures: dict[str, float], ends: tuple[float, float] | None) -> Iterator[str]:
    if "top1" in figures and figures["top1"] <= figures.get("majority", -1):
        yield "**It does no better than the majority-class baseline.**"
    val, groups = figures.get("val"), figures.get("groups")
    if val and groups:
        videos = f"{counted(round(val), 'validation video')} of {counted(round(groups), 'group')}"
        if ends is None:
            yield f"{videos} are too few for an interval, and too few to rank models by."
        else:
            figure = "top-1" if "top1" in figures else "mean average precision"
            few = ": too few to rank models by" if ends[1] - ends[0] > 0.1 else ""
            yield f"With {videos} the 95 % interval of {figure} is {_percent(ends[0])} to {_percent(ends[1])}{few}."
    if "epochs" in figures:
        yield _FLATTERS


def _interval(metrics: dict) -> tuple[float, float] | None:
    """The 95 % interval of the main figure; None where there is none, or one without width (all groups are alike)."""
    ends = metrics.get("interval")
    if not isinstance(ends, list) or len(ends) != 2:
        return None
    low, high = map(number, ends)
    return (low, high) if low is not None and high is not None and 0 <= low < high <= 1 else None


_FLATTERS = (
    "The saved epoch was chosen by its score on these same videos, so the figures flatter the model: "
    "expect less on new ones."
)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


_ONE_OF_THEM = "- It gives every video one of the classes above, also a video that shows none of them.\n"
_LIMITS = """\
- It is meant for short videos of one action each, like those it was trained on; other cameras, places and people may
  lower its accuracy.
- Its probabilities are not calibrated.
- It inherits the biases of its starting weights and of its training videos; do not let it decide about people."""
