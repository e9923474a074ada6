"""Pictures of an explanation (`explain.Explanation`): arrows and heat over the frames as PNG, and the evidence as mp4 too.

Unusual: matplotlib's objects alone (a Figure and its canvas), since pyplot keeps state for the whole program; all frames lie in one pair of
axes, so that an arrow can run from one to another. Names are drawn as they are: no mathtext, no TeX, and what the font lacks as codes.
"""

import io
from pathlib import Path

import numpy as np

from ..core import files
from ..core.errors import DiskError
from ..core.text import printable
from ..videos import encode

FONT = "DejaVu Sans"  # matplotlib brings it
COLUMNS = 8  # frames beside each other, at most
SIDE = 1.45  # of a frame, inches
GAP, LABEL = 0.05, 0.2  # beside and above a frame, in parts of its side
MARGIN, HEAD, BAR = 0.12, 0.55, 0.75  # around all, for the heading and for the colour scale, inches
NEAR = 0.12  # too near for an arrow
DPI = 110
LONGEST = 40  # characters of a name
GIVES, TAKES_AWAY = "#ffb000", "#7fb2ff"  # of arrows: weights above and below 0
EVIDENCE, WEIGHTS, SIGNED = "magma", "viridis", (TAKES_AWAY, "#404040", GIVES)  # nobody has to tell red from green
VIDEO_SIDE = 224  # pixels, at least, of each half of the mp4


def write(explanation, folder: Path) -> list[Path]:
    """Writes `evidence.png`, `evidence.mp4`, `res4-3-1.png` for the first query point of each block, …, and `explain.json`; gives their paths.

    What an earlier one left there of these is replaced, or removed. Raises `DiskError`.
    """
    folder, count, written = Path(folder), {}, []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("res[2-5]-*-*.png"):
            old.unlink()
        written.append(folder / "evidence.png")
        written[-1].write_bytes(evidence_strip(explanation))
        for row in explanation.rows:
            name = row.block.name.replace(" after ", "-")
            count[name] = count.get(name, 0) + 1
            written.append(folder / f"{name}-{count[name]}.png")
            written[-1].write_bytes(arrow_strip(explanation, row))
    except OSError as error:
        raise DiskError(
            f"{printable(folder)} could not be written ({error.strerror or error})",
            "free some room, or choose another folder",
        ) from error
    evidence_video(explanation, folder / "evidence.mp4")
    files.write_text(folder / "explain.json", files.to_json_text(explanation.summary()))
    return [*written, folder / "evidence.mp4", folder / "explain.json"]


def evidence_video(explanation, file: Path) -> None:
    """mp4 of about four seconds: the frames, and beside them what in each speaks for the class. Raises `DiskError`."""
    encode.write_video(file, _side_by_side(explanation), max(4, len(explanation.frames) // 4))


def evidence_strip(explanation) -> bytes:
    """PNG: the frames, and below them what in each speaks for the class."""
    summary = f"Grad-CAM behind res5. Answered: {_short(explanation.answer)} {explanation.score:.2f}"
    if explanation.of != explanation.answer:
        summary += f"; {_short(explanation.of)} {explanation.of_score:.2f}"
    return _strip(
        explanation.frames,
        explanation.evidence,
        (1, 1),
        EVIDENCE,
        (0, 1),
        ("none", "most"),
        f"Evidence for {_short(explanation.of)}",
        summary,
    )


def arrow_strip(explanation, row) -> bytes:
    """PNG of one of its rows: arrows from the query point to its strongest keys across the frames, and below the weights of all keys."""
    most = float(np.abs(row.weights).max())
    signed = bool((row.weights < 0).any())
    keys = _held(row) if row.keys else "it takes nothing from anywhere"
    return _strip(
        explanation.frames,
        row.weights,
        row.cover,
        SIGNED if signed else WEIGHTS,
        (-most if signed else 0, most),
        (f"−{most:.2g}" if signed else "0", f"{most:.2g}"),
        f"{row.block.name}: {row.block.form}, {row.block.span}",
        f"From the circle in frame {row.query.frame}: {keys}" + (". Blue, dashed: below 0" if signed else ""),
        row,
    )


def _held(row):
    """How much of all weight the drawn keys have."""
    frames, height, width = row.weights.shape
    seen = {"spacetime": frames * height * width, "space": height * width, "time": frames}[row.block.span]
    return f"its {len(row.keys)} strongest keys of {seen} hold {row.share:.0%} of the weight; {len(row.keys) / seen:.0%} if all were alike"


def _strip(frames, heat, cover, colours, limits, ends, title, subtitle, row=None):
    """The frames (T, S, S, 3), twice: plain with the arrows of `row`, and grey below `heat` (T', H', W') of the part `cover` of them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    total = len(frames)
    lines = -(-total // COLUMNS)
    columns = -(-total // lines)
    width, height = columns * (1 + GAP), lines * (2 + LABEL + GAP) + GAP
    inches = max(width * SIDE, 5.6) + BAR + 2 * MARGIN, height * SIDE + HEAD + MARGIN
    figure = Figure(inches, DPI, facecolor="white")
    axes = figure.add_axes(
        (MARGIN / inches[0], MARGIN / inches[1], width * SIDE / inches[0], height * SIDE / inches[1])
    )

    def corner(frame, band):
        line = frame // columns
        return frame % columns * (1 + GAP), line * (1 + LABEL) + LABEL if band == 0 else lines * (1 + LABEL) + line * (
            1 + GAP
        ) + 2 * GAP

    grey, warm = _grey(frames), _coloured(heat, colours, limits)
    for number in range(total):
        x, y = corner(number, 0)
        axes.imshow(frames[number], extent=(x, x + 1, y + 1, y), interpolation="bilinear")
        _text(axes.text, x, y - 0.03, str(number), size=8, color="#555555")
        x, y = corner(number, 1)
        axes.imshow(grey[number], extent=(x, x + 1, y + 1, y), interpolation="bilinear")
        axes.imshow(
            warm[int((number + 0.5) * len(warm) / total)],
            extent=(x, x + cover[1], y + cover[0], y),
            interpolation="nearest",
        )
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    if row:
        _arrows(axes, row, corner)
    _scale(figure, inches, width * SIDE, lines * SIDE, colours, limits, ends)
    _text(figure.text, MARGIN / inches[0], 1 - 0.1 / inches[1], title, size=11, weight="bold", va="top")
    _text(figure.text, MARGIN / inches[0], 1 - 0.33 / inches[1], subtitle, size=9, color="#444444", va="top")
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content)
    return content.getvalue()


def _arrows(axes, row, corner):
    """From the query to each key, the weakest first, thicker and denser with the weight; a ring for one where the query itself is."""
    from matplotlib.patches import Circle, FancyArrowPatch
    from matplotlib.patheffects import withStroke

    def at(place, band=0):
        x, y = corner(place.frame, band)
        return x + place.x, y + place.y

    start = at(row.query)
    for key in reversed(row.keys):
        end, strength = at(key), abs(key.weight / row.keys[0].weight)
        far, dense = np.hypot(end[0] - start[0], end[1] - start[1]), 0.2 + 0.8 * strength
        look = dict(
            color=GIVES if key.weight > 0 else TAKES_AWAY,
            lw=0.8 + 1.8 * strength,
            alpha=dense,
            ls="-" if key.weight > 0 else "--",
            clip_on=False,
            path_effects=[withStroke(linewidth=2 + 2 * strength, foreground="black", alpha=0.7 * dense)],
        )
        if far < NEAR:
            axes.add_patch(Circle(start, 0.09, fill=False, **look))
        else:
            bend = min(0.18, 0.4 / far) * (
                -1 if end[0] >= start[0] else 1
            )  # upwards, and no higher than a frame's label
            axes.add_patch(
                FancyArrowPatch(
                    start,
                    end,
                    arrowstyle="-|>",
                    mutation_scale=6 + 5 * strength,
                    shrinkA=5,
                    shrinkB=0,
                    connectionstyle=f"arc3,rad={bend}",
                    **look,
                )
            )
    for band in (0, 1):
        axes.add_patch(
            Circle(
                at(row.query, band),
                0.05,
                fill=False,
                color="white",
                lw=1.8,
                zorder=5,
                path_effects=[withStroke(linewidth=3.6, foreground="black")],
            )
        )


def _scale(figure, inches, width, height, colours, limits, ends):
    """The colour scale, beside the heat, which is `width` by `height` inches: what the colours look like on grey."""
    tall = min(0.8 * height, 1.4)
    left, bottom = MARGIN + width + 0.12, MARGIN + (height - tall) / 2
    axes = figure.add_axes((left / inches[0], bottom / inches[1], 0.12 / inches[0], tall / inches[1]))
    ramp = _coloured(np.linspace(*limits[::-1], 256)[:, None], colours, limits)
    axes.imshow(0.3 * (1 - ramp[..., 3:]) + ramp[..., :3] * ramp[..., 3:], aspect="auto", extent=(0, 1, 0, 1))
    axes.set(xticks=[], yticks=[])
    for place, text in zip((0, 1), ends):
        _text(axes.text, 1.5, place, text, size=8, va="center", color="#444444")


def _text(draw, x, y, text, **look):
    draw(x, y, _drawable(text), family=FONT, parse_math=False, usetex=False, **look)


def _short(name):
    """A name for a heading."""
    name = printable(name)
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"


def _drawable(text):
    """The text with the characters that the font lacks as codes."""
    from matplotlib import font_manager

    known = font_manager.get_font(font_manager.findfont(FONT)).get_charmap()
    return "".join(c if ord(c) in known else c.encode("unicode_escape").decode() for c in text)


def _grey(frames):
    """(T, H, W, 3) uint8 as grey, darker frames for heat to lie on."""
    light = frames @ np.array([0.299, 0.587, 0.114])
    return np.repeat((0.75 * light).astype(np.uint8)[..., None], 3, 3)


def _coloured(heat, colours, limits):
    """(T, H, W) as RGBA, 0 to 1: what is strong is dense, what is 0 is not there."""
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap

    low, high = limits
    scale = LinearSegmentedColormap.from_list("signed", SIGNED) if colours == SIGNED else colormaps[colours]
    image = scale((heat - low) / max(high - low, 1e-30))
    image[..., 3] = 0.85 * np.sqrt(np.abs(heat) / max(high, 1e-30)).clip(0, 1)
    return image


def _side_by_side(explanation):
    """uint8 (T, H, 2 W, 3): the frames, and the evidence over them, each at least `VIDEO_SIDE` wide."""
    over = _coloured(explanation.evidence, EVIDENCE, (0, 1))
    alpha = over[..., 3:]
    warm = _grey(explanation.frames) * (1 - alpha) + 255 * over[..., :3] * alpha
    both = np.concatenate([explanation.frames, warm.round().astype(np.uint8)], 2)
    times = -(-VIDEO_SIDE // explanation.frames.shape[2])
    both = both.repeat(times, 1).repeat(times, 2)
    return both[:, : both.shape[1] // 2 * 2]  # H.264 takes even sides
