"""The README.md of a model folder: what the network is, how good, how to load it, and what not to expect.

Unusual: every name in it may come from a stranger's folder or file, so all of them are escaped, and nothing of the
machine it was written on goes in. The YAML that the Hub wants on top is `hub.py`'s business.
"""

import math
import re
import unicodedata
from collections.abc import Iterator

from ..core.model_spec import ModelSpec
from ..core.text import counted

HERE = "PATH"  # stands for the model folder in a card that was not pushed; `addressed` fills it in
_MOST_CLASSES = 1000  # listed in the text; config.json has them all
_ARCHS = {
    "c2d": ("C2D", "no temporal kernels"),
    "i3d": ("I3D", "3x1x1 temporal kernels"),
    "i3d-333": ("I3D", "3x3x3 kernels"),
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


def body(spec: ModelSpec, metrics: dict | None, checks: dict | None = None) -> str:
    """The text of a model folder's README.md, in Markdown.

    `metrics` is what metrics.json holds, fractions in [0, 1]; `checks` what `inflate` computed. Both may lack any key.
    """
    parts = [f"# {title(spec)}", _what(spec)]
    if checks:
        parts.append(_checked(checks))
    parts += [
        _outputs(spec),
        "## Figures",
        _figures(spec, metrics or {}),
        "## Use",
        usage(HERE),
        "## Limits",
        _limits(spec),
    ]
    return "\n\n".join(p for p in parts if p) + "\n"


def title(spec: ModelSpec) -> str:
    """One line: `Non-local I3D, resnet50.a1_in1k`."""
    return f"{'Non-local ' if spec.non_local else ''}{_ARCHS[spec.inflation.arch][0]}, {escape(spec.backbone)}"


def usage(address: str) -> str:
    """The lines that load the model from `address`, a folder or `user/name`, in Markdown."""
    python, shell = usage_lines(address)
    return f"```python\n{python}\n```\n\n```sh\n{shell}\n```"


def usage_lines(address: str) -> tuple[str, str]:
    """What loads the model in Python, and what asks it in a shell."""
    load = f'net = nlzoo.load("{address}")  # (B, 3, T, H, W) normalised RGB clips to (B, classes) logits'
    return f"import nlzoo\n{load}", f"nlzoo predict {address} VIDEO"


def addressed(text: str, repo: str) -> str:
    """`text` with its lines of `usage`, whatever address they had, naming `repo`; the rest is left as it is."""
    found = re.search(r'nlzoo\.load\("([^"\n]+)"\)', text)
    return text.replace(usage(found[1]), usage(repo)) if found else text


def escape(text: str) -> str:
    """`text` so that Markdown and HTML show it as it is; control and direction characters become visible codes."""
    shown = "".join(_visible(c) for c in text)
    shown = shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    shown = re.sub(r"([\\`*_\[\]|~$#])", r"\\\1", shown)
    return shown.replace("://", r"\://").replace("www.", r"www\.")  # GitHub and the Hub link bare addresses


def _visible(character):
    joiner = character == "\u200d"  # holds family emoji together
    if unicodedata.category(character)[0] != "C" or joiner:
        return " " if unicodedata.category(character) in ("Zl", "Zp") else character
    return character.encode("unicode_escape").decode()


def _what(spec):
    arch, kernels = _ARCHS[spec.inflation.arch]
    blocks = ", with non-local blocks" if spec.non_local else ""
    made = (
        "a 3-D ResNet imported into nlzoo"
        if spec.inflation.init == "imported"
        else "made with nlzoo: a 2-D ResNet inflated to 3-D"
    )
    lines = [
        f"A video classifier {made}{blocks} (Wang et al., 2018).",
        "",
        f"- backbone: {escape(spec.backbone)}",
        f"- architecture: {arch}, {kernels}",
        f"- inflated with: {_INITS[spec.inflation.init]}",
        f"- temporal padding: {spec.inflation.temporal_padding}; temporal strides: {spec.inflation.pools}",
        f"- non-local blocks: {_placement(spec)}",
        f"- input: {spec.clip}; mean {_numbers(spec.clip.mean)}, std {_numbers(spec.clip.std)} of RGB in [0, 1]",
        f"- starting weights: {escape(spec.source) or 'not recorded'}",
        f"- their licence: {_licence(spec)}",
    ]
    return "\n".join(lines)


def _licence(spec):
    """A licence against commercial use holds for what was trained from the weights too, so it is said in words."""
    if not spec.licence:
        return "not recorded; find out before you pass this model on"
    return escape(spec.licence) + (": no commercial use, of this model either" if "-nc" in spec.licence.lower() else "")


def _placement(spec):
    stages = []
    for group in spec.non_local:
        after = ", ".join(map(str, group.blocks))
        options = [group.form, group.span] + ([f"subsampled {group.subsample}"] if group.subsample != "none" else [])
        stages.append(
            f"{group.stage} after residual block{'s' if len(group.blocks) > 1 else ''} {after} ({', '.join(options)})"
        )
    return "; ".join(stages) or "none"


def _numbers(values):
    return " ".join(f"{v:g}" for v in values)


def _checked(checks):
    lines = [f"- {words}: {_result(checks[key])}" for key, words in _CHECKS.items() if checks.get(key) is not None]
    return "Computed on this network when it was built:\n\n" + "\n".join(lines) if lines else ""


def _result(value):
    return ("yes" if value else "no") if isinstance(value, bool) else f"{value:.1e}"


def _outputs(spec):
    if not spec.classes and spec.inflation.init == "imported":
        return (
            f"The last layer has the {spec.num_outputs} outputs that the network was trained with; their names did not come with "
            "the weights. Fine-tune the network on videos of your own before asking it about any."
        )
    if not spec.classes:
        return (
            f"The last layer still has the {spec.num_outputs} outputs of the backbone: "
            "fine-tune the network on videos before asking it about any."
        )
    names = [escape(c) for c in spec.classes[:_MOST_CLASSES]]
    more = len(spec.classes) - len(names)
    several = "; a video may have several, or none" if spec.multi_label else ""
    return (
        f"Classes ({len(spec.classes)}, in the order of the outputs{several}): "
        + " · ".join(names)
        + (f" · and {more} more in config.json" if more else "")
    )


def _figures(spec, metrics):
    top1, mean_ap = number(metrics, "top1"), number(metrics, "map")
    if top1 is None and mean_ap is None:
        return "None came with this model."
    val, majority, top5 = (number(metrics, k) for k in ("val", "majority", "top5"))
    if top1 is None:
        rows = [("mean average precision", _percent(mean_ap))]
    else:
        rows = [("top-1", _percent(top1) + (f" ({round(top1 * val)} of {val:.0f})" if val else ""))]
    if top5 is not None and spec.num_outputs > 5:  # with five classes or fewer it is 1 by construction
        rows.append(("top-5", _percent(top5)))
    if majority is not None:
        rows.append(
            (
                "the same answer for every video" if top1 is None else "always answering the commonest class",
                _percent(majority),
            )
        )
    rows += [
        (words, f"{number(metrics, key):.0f}")
        for key, words in (("val", "validation videos"), ("train", "training videos"), ("epochs", "epochs"))
        if number(metrics, key) is not None
    ]
    table = "| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows)
    return table + "\n\n" + " ".join(_caveats(metrics))


def number(metrics: dict, key: str) -> float | None:
    """A finite number of `metrics`, or None."""
    value = metrics.get(key)
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return value if fits else None


def _caveats(metrics: dict) -> Iterator[str]:
    top1, majority, val = (number(metrics, key) for key in ("top1", "majority", "val"))
    if top1 is not None and majority is not None and top1 <= majority:
        yield "**It does no better than always answering the commonest class.**"
    groups, ends = number(metrics, "groups"), _interval(metrics)
    if val and groups:
        videos = f"{counted(round(val), 'validation video')} of {counted(round(groups), 'group')}"
        if ends is None:
            yield f"{videos} are too few for an interval, and too few to rank models by."
        else:
            figure = "mean average precision" if top1 is None else "top-1"
            few = ": too few to rank models by" if ends[1] - ends[0] > 0.1 else ""
            yield f"With {videos} the 95 % interval of {figure} is {_percent(ends[0])} to {_percent(ends[1])}{few}."
    yield _FLATTERS


def _interval(metrics: dict) -> tuple[float, float] | None:
    """The 95 % interval of the main figure; None where there is none, or one without width (all groups are alike)."""
    ends = metrics.get("interval")
    if not isinstance(ends, list) or len(ends) != 2:
        return None
    low, high = (number({"end": end}, "end") for end in ends)
    return (low, high) if low is not None and high is not None and 0 <= low < high <= 1 else None


_FLATTERS = "The saved epoch was chosen by its score on these same videos, so the figures flatter the model: expect less on new ones."


def _percent(share):
    return f"{100 * share:.1f} %"


_LIMITS = """\
- It is meant for short videos of one action each, like those it was trained on; other cameras, places and people may
  lower its accuracy.
- Its probabilities are not calibrated.
- It inherits the biases of its starting weights and of its training videos; do not let it decide about people."""


def _limits(spec):
    closed = "- It gives every video one of the classes above, also a video that shows none of them.\n"
    return (closed if spec.classes and not spec.multi_label else "") + _LIMITS
