"""The drawn clips: repeatable, and empty of anything that a single frame could tell."""

import numpy as np
import pytest

from nlzoo.apps import draw
from nlzoo.core.errors import UsageError
from nlzoo.videos import video

SMALL = {"frames": 8, "size": (32, 48)}
OPPOSITES = (("rise", "fall"), ("right", "left"), ("clockwise", "anticlockwise"), ("grow", "shrink"))


def sorted_frames(clip):
    """The frames of `(T, H, W, 3)` as bytes, in an order that does not depend on time."""
    return sorted(frame.tobytes() for frame in clip)


@pytest.mark.parametrize("label", draw.CLASSES)
def test_a_seed_is_a_clip(label):
    clip = draw.motion_clip(label, 1, **SMALL)
    assert clip.shape == (8, 32, 48, 3) and clip.dtype == np.uint8
    assert np.array_equal(clip, draw.motion_clip(label, 1, **SMALL))
    assert not np.array_equal(clip, draw.motion_clip(label, 2, **SMALL))
    assert clip.std() > 10, "a picture, not a flat field"


@pytest.mark.parametrize(("label", "opposite"), OPPOSITES)
def test_an_opposite_is_the_clip_backwards(label, opposite):
    clip, other = (draw.motion_clip(c, 3, **SMALL) for c in (label, opposite))
    assert np.array_equal(clip, other[::-1])
    assert len(set(sorted_frames(clip))) == 8, "nothing moves"


@pytest.mark.parametrize("frames", [1, 2, 7, 24])
def test_the_demo_classes_show_the_same_frames(frames):
    bags = [sorted_frames(draw.motion_clip(c, 5, frames, (32, 48))) for c in draw.DEMO]
    assert len(bags) == 4 and all(bag == bags[0] for bag in bags)


def test_frames_alone_leave_a_classifier_at_chance():
    """Least squares on the mean frame is right on a quarter of the clips it was fitted to; on frames in order, all."""
    drawings = range(10)
    clips = [(k, draw.motion_clip(c, d, **SMALL).astype(float)) for d in drawings for k, c in enumerate(draw.DEMO)]
    targets = np.eye(4)[[k for k, _ in clips]]
    right = {}
    for name, feature in (("mean", lambda c: c.mean(0)), ("order", lambda c: c[:, ::4, ::4].mean(-1))):
        x = np.stack([feature(c).ravel() for _, c in clips])
        x = np.column_stack([x - x.mean(0), np.ones(len(x))])
        scores = x @ np.linalg.lstsq(x, targets, rcond=1e-9)[0]
        right[name] = np.mean(scores.round(6).argmax(1) == targets.argmax(1))
    assert right == {"mean": 0.25, "order": 1.0}


def test_the_names_are_true():
    """Where the light is, frame by frame: rows count downwards."""

    def track(label):
        clip = np.mean([draw.motion_clip(label, seed, 9, (48, 48)).mean(-1) for seed in range(12)], 0)
        light = clip - clip.min(0)  # what stands still is gone
        rows = (light.sum(2) * np.arange(48)).sum(1) / light.sum((1, 2))
        columns = (light.sum(1) * np.arange(48)).sum(1) / light.sum((1, 2))
        return rows, columns, clip.mean((1, 2))

    (rise, _, _), (toss, _, _), (dip, _, _) = track("rise"), track("toss"), track("dip")
    assert rise[0] > rise[-1] + 10
    assert min(toss[0], toss[-1]) > toss[4] + 10
    assert max(dip[0], dip[-1]) < dip[4] - 10
    right, grow = track("right")[1], track("grow")[2]
    assert right[-1] > right[0] + 10 and grow[-1] > grow[0] + 10


def test_a_sprite_turns_clockwise():
    up, turned = np.zeros((2, 41, 41, 3))
    hand = draw.Sprite("triangle", "plain", np.full((2, 3), 200.0), 1, 0)
    draw.paint(up, hand, 20, 20, 15, 0)
    draw.paint(turned, hand, 20, 20, 15, np.pi / 2)
    assert up[7, 20, 0] > 100 and turned[20, 33, 0] > 100 and turned[7, 20, 0] == 0  # the tip: top to right


@pytest.mark.parametrize("shape", draw.SHAPES)
@pytest.mark.parametrize("texture", draw.TEXTURES)
def test_every_sprite_is_painted_inside_its_radius(shape, texture):
    canvas = np.zeros((40, 40, 3))
    draw.paint(
        canvas,
        draw.sprite(np.random.default_rng(0), shape, texture)._replace(colours=np.full((2, 3), 200.0)),
        20,
        20,
        12,
        0.7,
    )
    y, x = np.nonzero(canvas[..., 0])
    assert len(y) > 60 and np.hypot(y - 20, x - 20).max() < 13.5 and canvas.max() <= 200


def test_paint_off_the_canvas_changes_nothing():
    canvas = np.zeros((8, 8, 3))
    draw.paint(canvas, draw.sprite(np.random.default_rng(0)), -30, 4, 5, 0)
    draw.paint(canvas, draw.sprite(np.random.default_rng(0)), 4, 40, 5, 0)
    assert not canvas.any()


def test_videos_hold_what_was_drawn(tmp_path):
    files = draw.write_videos(tmp_path, ("rise", "toss"), per_class=4, seed=2, groups=2, **SMALL)
    names = [str(f.relative_to(tmp_path)) for f in files]
    assert names[:4] == [f"rise/rise_g{g:02d}_c{c:02d}.mp4" for c, g in ((1, 1), (1, 2), (2, 1), (2, 2))]
    assert sorted(p for p in tmp_path.rglob("*.*")) == sorted(files) and len(files) == 8
    decoded = {n: video.read_frames(f, range(8)).astype(float) for n, f in zip(names, files, strict=True)}
    drawn = draw.motion_clip("rise", 2_000_001, scene=2_000_002, **SMALL)
    assert video.probe(files[1]).frames == 8
    assert np.abs(decoded["rise/rise_g02_c01.mp4"] - drawn).mean() < 6  # 4:2:0 and noise
    assert np.abs(decoded["rise/rise_g01_c01.mp4"] - drawn).mean() > 12
    unchanged = decoded["rise/rise_g01_c01.mp4"][::2] - decoded["toss/toss_g01_c01.mp4"][:4]
    assert np.abs(unchanged).mean() < 6, "one drawing, in one group, in every class"


def test_an_unknown_class_is_refused(tmp_path):
    with pytest.raises(UsageError, match="'sideways'"):
        draw.motion_clip("sideways", 0)
    with pytest.raises(UsageError, match="'sideways'"):
        draw.write_videos(tmp_path, ("rise", "sideways"))
    assert not list(tmp_path.iterdir())
