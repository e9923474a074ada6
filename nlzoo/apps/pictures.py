"""Pictures of an explanation (`explain.Explanation`): evidence and arrows over the frames as PNG, and the evidence as
mp4 too.

`evidence` and `arrows` say what is to be drawn. `strip` draws it as a picture that stands alone, with a heading and a
colour scale on white. `panel` draws it for a page, which brings the words: only the frames, narrow enough for a phone,
without a ground of its own.

Unusual: matplotlib's objects alone (a Figure and its canvas), since pyplot keeps state for the whole program. All
frames lie in one pair of axes, so that an arrow can run from one to another. Names are drawn as they are: no mathtext,
no TeX, and what the font lacks as escapes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch
from matplotlib.patheffects import withStroke

from ..core import files
from ..core.text import printable
from ..videos import encode
from . import charts
from .explain import Explanation, Key, Place, Row

FONT = "DejaVu Sans"  # matplotlib brings it
COLUMNS, PANEL_COLUMNS = 8, 4  # frames beside each other, at most, of a strip and of a panel
PANEL_LINES = 4  # of frames in a panel, before it becomes wider
SIDE = 1.45  # of a frame, inches
GAP = 0.05  # between frames, in parts of their side
MARGIN, HEAD, BAR = 0.12, 0.55, 0.9  # around all, for the heading and for the colour scale, inches
NEAR = 0.12  # too near for an arrow, in parts of a frame's side
DPI = 110
LONGEST = 40  # characters of a name
POSITIVE, NEGATIVE = "#ffb000", "#7fb2ff"  # of arrows, by the sign of the weight
EVIDENCE, WEIGHTS, SIGNED = "magma", "viridis", "signed"  # colour maps; nobody has to tell red from green
VIDEO_SIDE = 224  # pixels, at least, of each half of the mp4


@dataclass(frozen=True)
class Drawing:
    """Frames, and heat to lie over them."""

    title: str
    subtitle: str
    frames: np.ndarray  # uint8 (T, S, S, 3)
    heat: np.ndarray  # float32 (T', H', W')
    colours: str  # EVIDENCE, WEIGHTS or SIGNED
    limits: tuple[float, float]  # of the colours
    ends: tuple[str, str]  # the limits in words
    cover: tuple[float, float] = (1, 1)  # of a frame's height and width, by the heat
    row: Row | None = None  # whose arrows are drawn


def evidence(explanation: Explanation) -> Drawing:
    """The frames, and the evidence for the target class in each."""
    subtitle = f"Grad-CAM at res5. Predicted: {_short(explanation.prediction)} {explanation.score:.2f}"
    if explanation.target_class != explanation.prediction:
        subtitle += f"; {_short(explanation.target_class)} {explanation.target_score:.2f}"
    return Drawing(
        f"Evidence for {_short(explanation.target_class)}",
        subtitle,
        explanation.frames,
        explanation.evidence,
        EVIDENCE,
        (0, 1),
        ("none", "strongest"),
    )


def arrows(explanation: Explanation, row: Row) -> Drawing:
    """Arrows from the query point of `row` to its strongest keys across the frames, and the weights of all keys."""
    highest = float(np.abs(row.weights).max())
    signed = bool((row.weights < 0).any())
    return Drawing(
        f"{row.block.name}: {row.block.form}, {row.block.span}",
        f"From the circle in frame {row.query.frame}: {_shares(row)}" + (". Blue, dashed: negative" if signed else ""),
        explanation.frames,
        row.weights,
        SIGNED if signed else WEIGHTS,
        (-highest if signed else 0, highest),
        (f"−{highest:.2g}" if signed else "0", f"{highest:.2g}"),
        row.cover,
        row,
    )


def _shares(row: Row) -> str:
    """How much of all weight the drawn keys hold."""
    if not row.keys:
        return "it attends to nothing"
    frames, height, width = row.weights.shape
    total = {"spacetime": frames * height * width, "space": height * width, "time": frames}[row.block.span]
    drawn = len(row.keys)
    alike = f"{drawn / total:.0%} if all were alike"
    return f"its {drawn} strongest keys of {total} hold {row.share:.0%} of the weight; {alike}"


def write(explanation: Explanation, folder: Path) -> list[Path]:
    """Writes `evidence.png`, `res4-3-1.png`, … (block, query point), `evidence.mp4` and `explain.json`; gives their
    paths.

    What an earlier call left there of these is replaced, or removed. Raises `DiskError`.
    """
    pictures = {"evidence.png": evidence(explanation)}
    for block in explanation.blocks:
        rows = [row for row in explanation.rows if row.block == block]
        name = block.name.replace(" after ", "-")
        pictures |= {f"{name}-{n}.png": arrows(explanation, row) for n, row in enumerate(rows, 1)}
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("res[2-5]-*-*.png"):
            old.unlink(missing_ok=True)
    except OSError as error:
        raise files.not_written(folder, error) from error
    for name, drawing in pictures.items():
        files.write_bytes(folder / name, strip(drawing))
    evidence_video(explanation, folder / "evidence.mp4")
    files.write_json(folder / "explain.json", explanation.summary())
    return [folder / name for name in (*pictures, "evidence.mp4", "explain.json")]


def evidence_video(explanation: Explanation, file: Path) -> None:
    """mp4 of about four seconds: the frames, and beside them the evidence in each. Raises `DiskError`."""
    encode.write_video(file, _side_by_side(explanation), max(4, len(explanation.frames) // 4))


def _side_by_side(explanation: Explanation) -> np.ndarray:
    """uint8 (T, H, 2 W, 3): the frames, and the evidence over them, each at least `VIDEO_SIDE` wide."""
    over = _coloured(explanation.evidence, EVIDENCE, (0, 1))
    alpha = over[..., 3:]
    warm = _grey(explanation.frames) * (1 - alpha) + 255 * over[..., :3] * alpha
    both = np.concatenate([explanation.frames, warm.round().astype(np.uint8)], 2)
    times = -(-VIDEO_SIDE // explanation.frames.shape[2])
    both = both.repeat(times, 1).repeat(times, 2)
    return both[:, : both.shape[1] // 2 * 2]  # H.264 takes even sides


# --- drawing


class _Grid:
    """Where frames lie, in parts of a frame's side: plain ones (band 0), and below them those with heat (band 1)."""

    def __init__(self, frames: int, most: int):
        self.lines = -(-frames // most)
        self.columns = -(-frames // self.lines)
        self.width = self.columns * (1 + GAP) - GAP
        self.height = 2 * self.lines * (1 + GAP) - GAP

    def corner(self, frame: int, band: int) -> tuple[float, float]:
        line, column = divmod(frame, self.columns)
        return column * (1 + GAP), (band * self.lines + line) * (1 + GAP)

    def at(self, place: Place | Key, band: int = 0) -> tuple[float, float]:
        x, y = self.corner(place.frame, band)
        return x + place.x, y + place.y


def strip(drawing: Drawing) -> bytes:
    """PNG of the frames with a heading and a colour scale, on white."""
    grid = _Grid(len(drawing.frames), COLUMNS)
    width, height = grid.width * SIDE, grid.height * SIDE
    inches = max(width, 5.6) + BAR + 2 * MARGIN, height + HEAD + MARGIN
    figure = Figure(inches, DPI, facecolor="white")
    _draw(figure, (MARGIN / inches[0], MARGIN / inches[1], width / inches[0], height / inches[1]), grid, drawing)
    _scale(figure, inches, width, height, drawing)
    left = MARGIN / inches[0]
    _text(figure.text, left, 1 - 0.1 / inches[1], drawing.title, size=11, weight="bold", va="top")
    _text(figure.text, left, 1 - 0.33 / inches[1], drawing.subtitle, size=9, color="#444444", va="top")
    return charts.image(_pixels(figure)[..., :3], "png")


def panel(drawing: Drawing) -> np.ndarray:
    """uint8 RGBA (height, width, 4) of the frames alone, on a transparent ground."""
    frames = len(drawing.frames)
    grid = _Grid(frames, max(PANEL_COLUMNS, min(COLUMNS, -(-frames // PANEL_LINES))))
    figure = Figure((grid.width * SIDE, grid.height * SIDE), DPI, facecolor="none")
    _draw(figure, (0, 0, 1, 1), grid, drawing)
    return _pixels(figure)


def ramp(drawing: Drawing) -> np.ndarray:
    """uint8 (1, 128, 3): the colours of the heat over grey, from the lower limit to the higher."""
    over = _coloured(np.linspace(*drawing.limits, 128)[None], drawing.colours, drawing.limits)
    return (255 * (0.3 * (1 - over[..., 3:]) + over[..., :3] * over[..., 3:])).round().astype(np.uint8)


def _pixels(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def _draw(figure: Figure, bounds: tuple[float, float, float, float], grid: _Grid, drawing: Drawing) -> None:
    """The frames, twice: plain with the arrows, and grey below the heat, in the part `bounds` of the figure."""
    axes = figure.add_axes(bounds)
    grey, warm = _grey(drawing.frames), _coloured(drawing.heat, drawing.colours, drawing.limits)
    height, width = drawing.cover
    for n, plain in enumerate(drawing.frames):
        x, y = grid.corner(n, 0)
        axes.imshow(plain, extent=(x, x + 1, y + 1, y), interpolation="bilinear")
        _text(axes.text, x + 0.04, y + 0.04, str(n), size=8, color="white", va="top", path_effects=[_outline(2)])
        x, y = grid.corner(n, 1)
        axes.imshow(grey[n], extent=(x, x + 1, y + 1, y), interpolation="bilinear")
        heat = warm[int((n + 0.5) * len(warm) / len(grey))]
        axes.imshow(heat, extent=(x, x + width, y + height, y), interpolation="nearest")
    axes.set(xlim=(0, grid.width), ylim=(grid.height, 0))
    axes.set_axis_off()
    if drawing.row:
        _draw_arrows(axes, drawing.row, grid)


def _draw_arrows(axes: Axes, row: Row, grid: _Grid) -> None:
    """From the query to each key, the weakest first."""
    for key in reversed(row.keys):
        _draw_arrow(axes, grid.at(row.query), grid.at(key), key.weight, abs(key.weight / row.keys[0].weight))
    for band in (0, 1):
        centre = grid.at(row.query, band)
        ring: dict[str, Any] = {"color": "white", "lw": 1.8, "zorder": 5, "path_effects": [_outline(3.6)]}
        axes.add_patch(Circle(centre, 0.05, fill=False, **ring))


def _draw_arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], weight: float, strength: float
) -> None:
    """Thicker and denser with `strength`, 0 to 1: the weight against the strongest. A ring where start and end are
    near.
    """
    dense = 0.2 + 0.8 * strength
    style: dict[str, Any] = {
        "color": POSITIVE if weight > 0 else NEGATIVE,
        "lw": 0.8 + 1.8 * strength,
        "alpha": dense,
        "ls": "-" if weight > 0 else "--",
        "clip_on": False,
        "path_effects": [_outline(2 + 2 * strength, 0.7 * dense)],
    }
    length = np.hypot(end[0] - start[0], end[1] - start[1])
    if length < NEAR:
        axes.add_patch(Circle(start, 0.09, fill=False, **style))
        return
    bend = min(0.18, 0.4 / length) * (-1 if end[0] >= start[0] else 1)  # upwards, and not far
    path: dict[str, Any] = {"arrowstyle": "-|>", "connectionstyle": f"arc3,rad={bend}", "shrinkA": 5, "shrinkB": 0}
    axes.add_patch(FancyArrowPatch(start, end, mutation_scale=6 + 5 * strength, **path, **style))


def _outline(width: float, alpha: float = 1) -> Any:
    """A black line around a white or coloured one."""
    return withStroke(linewidth=width, foreground="black", alpha=alpha)


def _scale(figure: Figure, inches: tuple[float, float], width: float, height: float, drawing: Drawing) -> None:
    """The colour scale, beside the frames, which are `width` by `height` inches."""
    tall = min(0.8 * height, 1.4)
    left, bottom = MARGIN + width + 0.12, MARGIN + (height - tall) / 2
    axes = figure.add_axes((left / inches[0], bottom / inches[1], 0.12 / inches[0], tall / inches[1]))
    axes.imshow(ramp(drawing).transpose(1, 0, 2)[::-1], aspect="auto", extent=(0, 1, 0, 1))
    axes.set(xticks=[], yticks=[])
    for place, text in enumerate(drawing.ends):
        _text(axes.text, 1.5, place, text, size=8, va="center", color="#444444")


def _text(draw: Callable, x: float, y: float, text: str, **style: Any) -> None:
    draw(x, y, _drawable(text), family=FONT, parse_math=False, usetex=False, **style)


def _short(name: str) -> str:
    """A name for a heading."""
    name = printable(name)
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"


def _drawable(text: str) -> str:
    """The text with the characters that the font lacks as escapes."""
    known = font_manager.get_font(font_manager.findfont(FONT)).get_charmap()
    return "".join(c if ord(c) in known else c.encode("unicode_escape").decode() for c in text)


def _grey(frames: np.ndarray) -> np.ndarray:
    """(T, H, W, 3) uint8 as grey, darker frames for heat to lie on."""
    light = frames @ np.array([0.299, 0.587, 0.114])
    return np.repeat((0.75 * light).astype(np.uint8)[..., None], 3, 3)


def _coloured(heat: np.ndarray, colours: str, limits: tuple[float, float]) -> np.ndarray:
    """(…, H, W) as RGBA (…, H, W, 4), 0 to 1: what is strong is dense, what is 0 is transparent."""
    low, high = limits
    signed = LinearSegmentedColormap.from_list(SIGNED, (NEGATIVE, "#404040", POSITIVE))
    colour_map = signed if colours == SIGNED else colormaps[colours]
    image = colour_map((heat - low) / max(high - low, 1e-30))
    image[..., 3] = 0.85 * np.sqrt(np.abs(heat) / max(high, 1e-30)).clip(0, 1)
    return image
