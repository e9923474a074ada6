"""Labelled motion clips, drawn with numpy, for the demo and the tests; and the parts of the tiny backbone's images.

Unusual: the classes of one family are the same frames in different orders. `fall` is `rise` backwards, `toss` takes
every second frame up and the others down again. A single frame, and even the bag of all frames, therefore says
nothing about the class, by construction: a network that does not look at time stays at chance.
The vertical family (`DEMO`) and the zooms keep their labels when flipped; `left`, `right` and the spins do not.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..core.errors import UsageError
from ..videos.encode import write_video

# label: (what the sprite does from the first drawn frame to the last, the order in which the frames are shown)
_MOTIONS = {
    "rise": ("vertical", "forward"),
    "fall": ("vertical", "backward"),
    "toss": ("vertical", "there-and-back"),
    "dip": ("vertical", "back-and-there"),
    "right": ("horizontal", "forward"),
    "left": ("horizontal", "backward"),
    "clockwise": ("spin", "forward"),
    "anticlockwise": ("spin", "backward"),
    "grow": ("zoom", "forward"),
    "shrink": ("zoom", "backward"),
}
CLASSES = tuple(_MOTIONS)
DEMO = ("rise", "fall", "toss", "dip")  # four orders of the same frames: chance is 0.25 for anything that ignores time


class Sprite(NamedTuple):
    """What is painted, without where: a shape filled with a texture of two colours."""

    shape: str  # of SHAPES
    texture: str  # of TEXTURES
    colours: np.ndarray  # (2, 3) RGB in 0..255; a plain sprite has the first one only
    pitch: float  # repeats of the texture per radius
    phase: float  # where in its repeat the texture starts


def sprite(
    rng: np.random.Generator, shape: str | None = None, texture: str | None = None, against: np.ndarray | None = None
) -> Sprite:
    """A sprite of random colours, the first unlike `against` (H, W, 3); of random shape and texture unless told."""
    shape = shape or SHAPES[rng.integers(len(SHAPES))]
    texture = texture or TEXTURES[rng.integers(len(TEXTURES))]
    colours = rng.uniform(0, 255, (2, 3))
    if against is not None:
        ground = against.mean((0, 1))
        while np.abs(colours[0] - ground).sum() < 160:  # a sprite that can be seen
            colours[0] = rng.uniform(0, 255, 3)
    while np.abs(colours[0] - colours[1]).sum() < 200:  # a texture that can be seen
        colours[1] = rng.uniform(0, 255, 3)
    return Sprite(shape, texture, colours, rng.uniform(1.2, 2.2), rng.uniform(0, 1))


def paint(canvas: np.ndarray, what: Sprite, y: float, x: float, radius: float, angle: float) -> None:
    """Paints the sprite over `canvas` (H, W, 3), float, 0..255, in place, with smooth edges.

    The angle is clockwise, in radians. What lies outside the canvas is cut off.
    """
    height, width = canvas.shape[:2]
    top, bottom = max(int(y - radius) - 1, 0), min(int(y + radius) + 3, height)
    left, right = max(int(x - radius) - 1, 0), min(int(x + radius) + 3, width)
    if top >= bottom or left >= right:
        return
    dy = (np.arange(top, bottom) - y)[:, None] / radius
    dx = (np.arange(left, right) - x)[None, :] / radius
    u = np.cos(angle) * dx + np.sin(angle) * dy  # the sprite's own axes, 1 at its rim
    v = np.cos(angle) * dy - np.sin(angle) * dx
    depth = _DEPTHS[what.shape](u, v, np.hypot(u, v))
    cover = np.clip(depth * radius + 0.5, 0, 1)[..., None]  # one pixel of smooth edge
    shift = what.phase if what.texture != "halves" else 0  # a half is a half of the sprite
    second = _TEXTURES[what.texture](u * what.pitch + shift, v * what.pitch + shift)[..., None]
    fill = what.colours[0] + second * (what.colours[1] - what.colours[0])
    canvas[top:bottom, left:right] += cover * (fill - canvas[top:bottom, left:right])


# How far inside a shape a point (u, v) at distance r is, in radii: positive inside, 0 on the rim.
_DEPTHS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "disc": lambda u, v, r: 0.9 - r,
    "square": lambda u, v, r: 0.75 - np.maximum(np.abs(u), np.abs(v)),
    "triangle": lambda u, v, r: 0.5 - np.maximum(v, np.abs(u) * 0.866 - v * 0.5),
    "star": lambda u, v, r: 0.4 + 0.6 * _wedge(u, v) ** 1.5 - r,
    "cross": lambda u, v, r: np.maximum(
        np.minimum(0.9 - np.abs(u), 0.28 - np.abs(v)),
        np.minimum(0.28 - np.abs(u), 0.9 - np.abs(v)),
    ),
    "ring": lambda u, v, r: 0.24 - np.abs(r - 0.7),
    "moon": lambda u, v, r: np.minimum(0.95 - r, np.hypot(u - 0.45, v) - 0.7),
    "bar": lambda u, v, r: np.minimum(0.95 - np.abs(u), 0.33 - np.abs(v)),
}
# Where a texture shows its second colour, one repeat long per unit.
_TEXTURES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "plain": lambda u, v: np.zeros(np.broadcast_shapes(u.shape, v.shape), bool),
    "stripes": lambda u, v: (u + 0 * v) % 1 < 0.5,
    "checks": lambda u, v: (u % 1 < 0.5) != (v % 1 < 0.5),
    "dots": lambda u, v: np.hypot(u % 1 - 0.5, v % 1 - 0.5) < 0.32,
    "halves": lambda u, v: u + v > 0,
}
SHAPES, TEXTURES = tuple(_DEPTHS), tuple(_TEXTURES)


def _wedge(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """1 at the tips of a star with five, 0 between two."""
    return np.abs((np.arctan2(u, -v) * 5 / (2 * np.pi)) % 1 - 0.5) * 2


def background(rng: np.random.Generator, size: tuple[int, int], clutter: int = 5) -> np.ndarray:
    """A textured ground with `clutter` small sprites lying on it, (H, W, 3) float, about 0..255."""
    height, width = size
    canvas = np.full((height, width, 3), rng.uniform(60, 195, 3))
    for cells in (3, 8, 24):  # smooth noise, coarse to fine
        noise = rng.normal(0, rng.uniform(3, 20), (cells, cells, 3))
        canvas += np.einsum("hi,ijc,wj->hwc", _stretch(cells, height), noise, _stretch(cells, width), optimize=True)
    for _ in range(clutter):
        radius = min(size) * rng.uniform(0.05, 0.14)
        paint(canvas, sprite(rng), rng.uniform(0, height), rng.uniform(0, width), radius, rng.uniform(0, 2 * np.pi))
    return canvas


def _stretch(cells: int, length: int) -> np.ndarray:
    """(length, cells) weights that interpolate `cells` values linearly along `length` pixels."""
    place = np.linspace(0, cells - 1, length)[:, None]
    return np.clip(1 - np.abs(place - np.arange(cells)), 0, 1)


def motion_clip(
    label: str, seed: int, frames: int = 24, size: tuple[int, int] = (96, 128), scene: int | None = None
) -> np.ndarray:
    """One clip of the class `label`, (T, H, W, 3) uint8, RGB.

    `seed` draws the motion and the noise, `scene` (default: the seed) the background and the sprite. Labels of one
    family with equal seed and scene hold the same frames in different orders. Raises `UsageError` for an unknown label.
    """
    _check_known(label)
    family, order = _MOTIONS[label]
    return _drawing(family, seed, frames, size, seed if scene is None else scene)[_order(order, frames)]


def _check_known(label: str) -> None:
    if label not in _MOTIONS:
        raise UsageError(f"there is no motion class {label!r}", f"known: {', '.join(CLASSES)}")


def _drawing(family: str, seed: int, frames: int, size: tuple[int, int], scene: int) -> np.ndarray:
    """The frames of one family of classes as drawn, (T, H, W, 3) uint8; the order of showing comes later."""
    rng = np.random.default_rng([scene, 1])
    # Light on dark: where the edges of all sprites have one sign, motion is learnt in a tenth of the steps.
    ground = 0.4 * background(rng, size, clutter=3)
    shape = rng.choice(["triangle", "moon", "bar"]) if family == "spin" else None  # a turn of these can be seen
    what = sprite(rng, shape)
    what = what._replace(colours=135 + what.colours * (120 / 255))
    rng = np.random.default_rng([seed, 2, *family.encode()])
    path, noise = _path(rng, family, frames, size)
    clip = np.empty((frames, *size, 3), np.uint8)
    for t, place in enumerate(path):
        canvas = ground.copy()
        paint(canvas, what, *place)
        canvas += rng.normal(0, noise, canvas.shape)
        clip[t] = np.clip(canvas, 0, 255)
    return clip


def _path(
    rng: np.random.Generator, family: str, frames: int, size: tuple[int, int]
) -> tuple[list[tuple[float, ...]], float]:
    """(y, x, radius, angle) of the sprite in each frame, pixels and radians; the standard deviation of the noise."""
    height, width = size
    radius = min(size) * rng.uniform(0.2, 0.28)
    angle, tilt = rng.uniform(0, 2 * np.pi), rng.uniform(-0.5, 0.5)  # turns a little as it goes
    y, x = rng.uniform(radius, height - radius), rng.uniform(radius, width - radius)
    noise = rng.uniform(1, 6)
    time = np.linspace(0, 1, frames)
    ys, xs, radii, angles = (np.full(frames, value) for value in (y, x, radius, angle))
    if family == "vertical":
        ys = _travel(rng, time, height, radius)[::-1]  # pixels count downwards; the drawing rises
        xs = x + time * rng.uniform(-0.1, 0.1) * width
        angles = angle + time * tilt
    elif family == "horizontal":
        xs = _travel(rng, time, width, radius)
        ys = y + time * rng.uniform(-0.1, 0.1) * height
        angles = angle + time * tilt
    elif family == "spin":
        radii = np.full(frames, radius * 1.5)
        angles = angle + time * rng.uniform(0.3, 0.6) * np.pi
    else:  # zoom
        radii = radius * np.geomspace(rng.uniform(0.5, 0.7), rng.uniform(1.3, 1.7), frames)
    return list(zip(ys, xs, radii, angles)), noise


def _travel(rng: np.random.Generator, path: np.ndarray, length: int, radius: float) -> np.ndarray:
    """Positions, pixels, of a trip over 75 to 100 % of the room there is, from a random start; path (T,) in 0..1."""
    room = length - 2 * radius
    trip = room * rng.uniform(0.75, 1)
    return radius + rng.uniform(0, room - trip) + path * trip


def _order(order: str, frames: int) -> list[int]:
    """Which drawn frame is shown when: a permutation of 0..T-1, so that every order shows every frame once."""
    forward = list(range(frames))
    return {
        "forward": forward,
        "backward": forward[::-1],
        "there-and-back": forward[::2] + forward[1::2][::-1],
        "back-and-there": forward[1::2][::-1] + forward[::2],
    }[order]


def write_videos(
    folder: Path,
    classes: tuple[str, ...] = DEMO,
    per_class: int = 24,
    seed: int = 0,
    frames: int = 24,
    size: tuple[int, int] = (96, 128),
    groups: int | None = None,
    fps: int = 12,
) -> list[Path]:
    """Draws and encodes `per_class` clips of each class as `<class>/<class>_g03_c01.mp4`; the files, class by class.

    A group, of `groups` (default: one per clip), is one scene: its clips share background and sprite, and hold every
    class of every drawing, so that a split by group leaks nothing. Height and width must be even (yuv420p).
    """
    for label in classes:
        _check_known(label)
    groups = min(groups or per_class, per_class)
    files = []
    for label in classes:
        (Path(folder) / label).mkdir(parents=True, exist_ok=True)
        for index in range(per_class):
            group, clip = index % groups + 1, index // groups + 1
            drawn = motion_clip(label, seed * 1_000_000 + index, frames, size, scene=seed * 1_000_000 + group)
            files.append(Path(folder) / label / f"{label}_g{group:02d}_c{clip:02d}.mp4")
            write_video(files[-1], drawn, fps)
    return files
