"""Charts of a run's report: SVG for lines and points, PNG and WebP for what is made of pixels.

Unusual: nothing from outside is ever drawn as text, so no class name meets mathtext or lacks a glyph; the page's tables
hold the names. Text stays text in the SVG, in the reader's own font. A chart has no background and the colours of
`LIGHT`; `in_dark` gives the same one those of `DARK`. The same values give the same bytes.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.ticker import MaxNLocator

FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'DejaVu Sans', sans-serif"
WIDE = 4.3  # inches, of every chart of lines: at 320 pixels its text can still be read
MATRIX_SIDE = 480  # pixels at least, of a picture of a matrix
IN_A_ROW = 4  # frames of a sheet


@dataclass(frozen=True)
class Theme:
    """Colours of a page and of its charts.

    Ink, soft and accent have a contrast of 4.5 or more on paper and on card (WCAG AA).
    """

    paper: str
    card: str  # of what stands out from the paper a little
    ink: str
    soft: str  # text and lines of second rank
    rule: str  # lines that part things
    accent: str


LIGHT = Theme("#ffffff", "#f5f7fa", "#1b2129", "#566070", "#d8dee7", "#0b62b8")
DARK = Theme("#13171d", "#1b212a", "#e7ebf1", "#a4afbf", "#353f4d", "#73b6ff")


_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "nlzoo",
    "text.parse_math": False,
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "text.color": LIGHT.ink,
    "axes.edgecolor": LIGHT.rule,
    "axes.labelcolor": LIGHT.soft,
    "xtick.color": LIGHT.soft,
    "ytick.color": LIGHT.soft,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": LIGHT.rule,
    "grid.linewidth": 0.6,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}
_DASHED: dict[str, Any] = {"color": LIGHT.soft, "linewidth": 1.2, "linestyle": (0, (4, 3))}


@contextmanager
def _drawing(height: float) -> Iterator[Figure]:
    """An empty figure in the colours of `LIGHT`, `height` inches high."""
    with matplotlib.rc_context(_STYLE):
        yield Figure((WIDE, height), layout="constrained")


def in_dark(svg: bytes) -> bytes:
    """The same chart for a dark page."""
    for name, colour in asdict(LIGHT).items():
        svg = svg.replace(colour.encode(), getattr(DARK, name).encode())
    return svg


def _svg(figure: Figure) -> bytes:
    out = io.BytesIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(out, format="svg", transparent=True, metadata=no_metadata)
    return out.getvalue().replace(b"'DejaVu Sans'", FONTS.removesuffix(", sans-serif").encode())


def interval(share: float, bounds: Sequence[float] | None, baseline: float, baseline_name: str) -> bytes:
    """A figure in [0, 1] as a dot on a line from 0 to 100 %, its interval as a bar, and a mark at the baseline."""
    with _drawing(1.3) as figure:
        axes = figure.add_subplot()
        axes.axhline(0, color=LIGHT.rule, linewidth=1)
        if bounds:
            axes.plot(bounds, [0, 0], color=LIGHT.accent, linewidth=8, alpha=0.35, solid_capstyle="butt")
        axes.plot([baseline], [0], "|", color=LIGHT.soft, markersize=16, markeredgewidth=2.5, clip_on=False)
        axes.plot([share], [0], "o", color=LIGHT.accent, markersize=10, clip_on=False)
        name = "this network and its 95 % interval" if bounds else "this network"
        for place, height, text in ((share, 0.55, name), (baseline, -1.05, baseline_name)):
            side = ("left", "center", "center", "right")[min(int(4 * place), 3)]  # where there is room for the text
            axes.text(place, height, text, ha=side)
        axes.set(xlim=(0, 1), ylim=(-1.2, 1), xticks=np.linspace(0, 1, 6), yticks=[])
        axes.xaxis.set_major_formatter(_percent)
        axes.spines["bottom"].set_visible(False)
        return _svg(figure)


def curves(
    lines: Mapping[str, Sequence[float]], best: int, share: bool = False, level: tuple[str, float] | None = None
) -> bytes:
    """One or two lines over epochs 1, 2, …, the last one in the accent's colour with a dot at epoch `best`, if above 0.

    `share`: values are fractions, on a scale from 0 to 100 %. `level`: the name and height of a dashed line.
    """
    with _drawing(2.7) as figure:
        axes = figure.add_subplot()
        for (name, values), colour in zip(lines.items(), (LIGHT.soft, LIGHT.accent)[-len(lines) :]):
            marker = "o" if len(values) < 3 else None
            axes.plot(range(1, len(values) + 1), values, color=colour, label=name, marker=marker, markersize=4)
        if level:
            axes.axhline(level[1], label=level[0], **_DASHED)
        if best:
            axes.axvline(best, color=LIGHT.accent, linewidth=0.8, alpha=0.6)
            dot: dict[str, Any] = {"markersize": 7, "clip_on": False, "zorder": 3, "label": f"best epoch, {best}"}
            axes.plot([best], [values[best - 1]], "o", color=LIGHT.accent, **dot)
        axes.set_xlabel("epoch")
        axes.set_ylim(0, 1 if share else 1.05 * max(map(max, lines.values())))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if share:
            axes.yaxis.set_major_formatter(_percent)
        figure.legend(loc="outside upper left", ncols=3, handlelength=1.2, handletextpad=0.5, columnspacing=1.2)
        return _svg(figure)


def learning_curve(points: Sequence[Any]) -> bytes:
    """Top-1 against training videos a class; `points` are those of `training.learning_curve`."""
    videos, scores = [p.clips_per_class for p in points], [p.top1 for p in points]
    with _drawing(2.7) as figure:
        axes = figure.add_subplot()
        axes.plot(videos, scores, "o-", color=LIGHT.accent, label="linear probe, cross-validated")
        for point in points:
            if point.interval:
                axes.plot([point.clips_per_class] * 2, point.interval, color=LIGHT.accent, linewidth=6, alpha=0.3)
        axes.set(xlim=(0, None), ylim=(0, 1), xlabel="training videos a class")
        axes.yaxis.set_major_formatter(_percent)
        figure.legend(loc="outside upper left")
        return _svg(figure)


def calibration(bins: Sequence[dict]) -> bytes:
    """A reliability diagram of rows of `confidence`, `accuracy` and `videos`."""
    confidence, accuracy, videos = ([row[key] for row in bins] for key in ("confidence", "accuracy", "videos"))
    with _drawing(3.5) as figure:
        axes, below = figure.subplots(2, sharex=True, height_ratios=(4, 1))
        axes.plot([0, 1], [0, 1], label="perfectly calibrated", **_DASHED)
        axes.plot(confidence, accuracy, color=LIGHT.accent, linewidth=1.2, label="this network", clip_on=False)
        sizes = 25 + 100 * np.array(videos) / max(videos)
        axes.scatter(confidence, accuracy, sizes, color=LIGHT.accent, clip_on=False, zorder=3)
        axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
        below.bar(confidence, videos, width=0.025, color=LIGHT.accent)
        below.set(xlabel="confidence", ylabel="videos")
        for part in (axes.xaxis, axes.yaxis):
            part.set_major_formatter(_percent)
        below.yaxis.get_major_locator().set_params(integer=True, nbins=2)
        figure.legend(loc="outside upper left", ncols=2, handlelength=1.6, columnspacing=1.6)
        return _svg(figure)


def _percent(value: float, _: object) -> str:
    return f"{100 * value:.0f} %"


def matrix(shares: np.ndarray, theme: Theme) -> bytes:
    """PNG of float `(K, K)` shares in [0, 1], from the card's colour to the accent.

    Small ones are lifted, so that one error is seen.
    """
    scale = LinearSegmentedColormap.from_list("", [theme.card, theme.accent])
    times = max(1, -(-MATRIX_SIDE // len(shares)))
    return image(scale(np.sqrt(shares), bytes=True)[..., :3].repeat(times, 0).repeat(times, 1), "png")


def sheets(frames: np.ndarray) -> list[bytes]:
    """WebPs of uint8 `(T, H, W, 3)` frames, `IN_A_ROW` side by side in each."""
    rows = [frames[n : n + IN_A_ROW] for n in range(0, len(frames), IN_A_ROW)]
    return [image(np.concatenate(list(row), 1), "webp") for row in rows]


def image(pixels: np.ndarray, kind: str) -> bytes:
    """A "png", or a "webp" with a loss that is not seen, of uint8 `(H, W, 3 or 4)` pixels."""
    out = io.BytesIO()
    options = {"metadata": {"Software": None}} if kind == "png" else {"pil_kwargs": {"quality": 82}}
    imsave(out, pixels, format=kind, **options)
    return out.getvalue()
