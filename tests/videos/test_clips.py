"""Frame numbers, rectangles and normalisation."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nlzoo.core.view_spec import AUGMENTS, Augment, ClipSpec, ViewSpec
from nlzoo.videos import clips


@pytest.mark.parametrize("total", [1, 2, 7, 8, 9, 63, 64, 65, 1000])
@pytest.mark.parametrize("stride", [None, 1, 8])
def test_indices_are_in_the_video_and_in_order(total, stride, seed):
    rng = np.random.default_rng(seed)
    clip = ClipSpec(8, stride)
    for indices in [clips.frame_indices(total, clip), *(clips.frame_indices(total, clip, rng) for _ in range(20))]:
        assert len(indices) == 8 and list(indices) == sorted(indices)
        assert indices[0] >= 0 and indices[-1] < total
        if stride and total >= 7 * stride + 1:
            assert set(np.diff(indices)) == {stride}
        elif total >= 8:
            assert len(set(indices)) == 8  # nothing repeats where there is enough


def test_spread_frames_are_the_middles_of_equal_parts():
    assert clips.frame_indices(80, ClipSpec(8)) == (4, 14, 24, 34, 44, 54, 64, 74)


def test_frames_drawn_for_training_keep_one_distance(seed):
    """Within rounding; a window of 80 % or more, anywhere in the video."""
    rng = np.random.default_rng(seed)
    drawn = np.array([clips.frame_indices(800, ClipSpec(8), rng) for _ in range(300)])
    steps = np.diff(drawn)
    assert (steps.max(1) - steps.min(1)).max() <= 1
    assert 80 <= steps.min() < 85 and 95 < steps.max() <= 100
    assert drawn[:, 0].min() < 60 and drawn[:, 0].max() > 130


def test_dense_frames_reach_both_ends(seed):
    rng = np.random.default_rng(seed)
    drawn = [clips.frame_indices(20, ClipSpec(4, 4), rng) for _ in range(300)]
    assert {d[0] for d in drawn} == set(range(8)) and max(d[-1] for d in drawn) == 19


# What was drawn on 22 November, before there were presets, rates and several views:
# seed, frames of the video, stride, T; first and last frame, top, left, height, width, flip of the first training view
RECORDED = [
    ((1, 300, None, 8), (32, 266), (31, 281, 0.043481253, 0.141909651, 0.860561681, 0.664774901, False)),
    ((2, 300, 8, 4), (231, 255), (72, 96, 0.010847037, 0.158357666, 0.881989602, 0.736114769, False)),
    ((3, 20, 8, 8), (0, 18), (0, 14, 0.002662163, 0.031682983, 0.971717825, 0.926850583, True)),
    ((4, 5, None, 8), (0, 4), (0, 4, 0.010857321, 0.001418313, 0.988878473, 0.982454446, False)),
    ((5, 64, 2, 32), (1, 63), (1, 63, 0.012868297, 0.002880388, 0.954974687, 0.946590949, True)),
    ((6, 1000, 16, 6), (409, 489), (495, 575, 0.078929524, 0.147137403, 0.789238435, 0.850991798, False)),
]


@pytest.mark.parametrize("case, ends, expected", RECORDED)
def test_the_default_draws_what_it_always_drew(case, ends, expected):
    start, total, stride, frames = case
    rng, clip = np.random.default_rng(start), ClipSpec(frames, stride)
    indices = clips.frame_indices(total, clip, rng)
    view = clips.training_view(total, clip, Augment(), rng)
    assert (indices[0], indices[-1]) == ends
    got = (view.indices[0], view.indices[-1], view.top, view.left, view.height, view.width, view.flip)
    assert got == pytest.approx(expected, abs=1e-8)


def as_before(total, clip, flip, rng):
    """`training_view` as it was when RECORDED was made."""
    span = (clip.frames - 1) * (clip.stride or 0) + 1
    spread = clip.stride is None or span > total
    if spread:
        span = int(rng.integers(max(min(clip.frames, total), math.ceil(0.8 * total)), total + 1))
    start = int(rng.integers(total - span + 1))
    if spread:
        edges = [start + i * span // clip.frames for i in range(clip.frames + 1)]
        indices = tuple((low + max(low + 1, high) - 1) // 2 for low, high in zip(edges, edges[1:]))
    else:
        indices = tuple(range(start, start + span, clip.stride))
    side = math.sqrt(rng.uniform(0.5, 1))
    stretch = math.exp(rng.uniform(-1, 1) * math.log(4 / 3) / 2)
    height, width = min(side * stretch, 1.0), min(side / stretch, 1.0)
    return clips.View(
        indices, rng.uniform(0, 1 - height), rng.uniform(0, 1 - width), height, width, flip and rng.random() < 0.5
    )


def test_the_default_draws_as_before_for_any_video(seed):
    pick = np.random.default_rng(seed)
    for _ in range(300):
        total, frames = int(pick.integers(1, 400)), int(pick.integers(1, 40))
        clip, flip = (
            ClipSpec(frames, int(pick.integers(1, 20)) if pick.random() < 0.5 else None),
            bool(pick.integers(2)),
        )
        old, new = np.random.default_rng([seed, total]), np.random.default_rng([seed, total])
        rate, aspect = (
            float(pick.uniform(5, 60)),
            float(pick.uniform(0.5, 2)),
        )  # neither says anything where none was asked for
        assert clips.training_view(total, clip, Augment(flip=flip), new, aspect, rate) == as_before(
            total, clip, flip, old
        )
        assert clips.views(total, clip, aspect=aspect, fps=rate) == [clips.View(clips.frame_indices(total, clip))]
        assert old.random() == new.random()


def test_a_rate_normalises_the_stride(seed):
    """Frame numbers lie within half a source frame of the ideal times, for any two rates, drawn or not."""
    rng = np.random.default_rng(seed)
    assert clips.frame_indices(100, ClipSpec(4, 4, fps=30), fps=60) == (37, 45, 53, 61)
    dense = 0
    for _ in range(300):
        clip = ClipSpec(int(rng.integers(1, 33)), int(rng.integers(1, 9)), fps=float(rng.uniform(5, 60)))
        total, rate = int(rng.integers(1, 800)), float(rng.uniform(5, 120))
        seconds = clip.stride / clip.fps
        for indices in (clips.frame_indices(total, clip, fps=rate), clips.frame_indices(total, clip, rng, rate)):
            assert 0 <= indices[0] and indices[-1] < total and len(indices) == clip.frames
            if round((clip.frames - 1) * seconds * rate) < total:
                ideal = indices[0] + np.arange(clip.frames) * seconds * rate
                assert np.abs(np.array(indices) - ideal).max() <= 0.5 + 1e-6
                dense += 1
    assert dense > 100


def test_a_rate_leaves_short_videos_to_their_rule_and_unknown_rates_alone():
    clip = ClipSpec(8, 4, fps=30)
    assert clips.frame_indices(40, clip, fps=30) == clips.frame_indices(40, ClipSpec(8, 4))
    assert clips.frame_indices(40, clip, fps=60) == clips.frame_indices(40, ClipSpec(8))  # 57 frames are needed
    assert clips.frame_indices(40, clip) == clips.frame_indices(40, ClipSpec(8, 4))


def test_several_dense_clips_reach_from_the_first_frame_to_the_last(seed):
    rng = np.random.default_rng(seed)
    for _ in range(300):
        clip = ClipSpec(int(rng.integers(1, 33)), int(rng.integers(1, 9)), fps=25.0 if rng.random() < 0.5 else None)
        rate, count = float(rng.uniform(10, 60)), int(rng.integers(2, 12))
        needed = round((clip.frames - 1) * clip.stride * (rate / 25 if clip.fps else 1)) + 1
        total = needed + int(rng.integers(0, 300))
        views = clips.views(total, clip, ViewSpec(count), fps=rate)
        starts = [v.indices[0] for v in views]
        assert len(views) == count and starts[0] == 0 and views[-1].indices[-1] == total - 1
        assert np.abs(np.array(starts) - np.linspace(0, total - needed, count)).max() <= 0.5
        assert len({tuple(np.array(v.indices) - v.indices[0]) for v in views}) == 1  # the same steps in all
        assert all((v.top, v.left, v.height, v.width, v.flip) == (0, 0, 1, 1, False) for v in views)


def test_several_spread_clips_tile_the_video(seed):
    """Each part gives each clip one frame, in order; where there are enough frames, their gaps are even."""
    rng = np.random.default_rng(seed)
    for _ in range(200):
        frames, count, total = int(rng.integers(1, 33)), int(rng.integers(1, 12)), int(rng.integers(1, 2000))
        views = clips.views(total, ClipSpec(frames), ViewSpec(count))
        drawn = np.array([v.indices for v in views])
        assert drawn.shape == (count, frames) and drawn.min() >= 0 and drawn.max() < total
        distributed_errors = drawn.T.ravel()
        assert (np.diff(distributed_errors) >= 0).all()
        parts = frames * count
        ideal = (np.arange(frames)[:, None] + (np.arange(count) + 0.5) / count).ravel() * total / frames - 0.5
        assert np.abs(distributed_errors - ideal).max() <= 1.5  # rounded down twice
        if total >= parts:
            steps = np.diff(distributed_errors)
            assert len(set(distributed_errors)) == parts and (not len(steps) or steps.max() - steps.min() <= 1)
    assert clips.views(80, ClipSpec(8), ViewSpec(2))[0].indices == (2, 12, 22, 32, 42, 52, 62, 72)
    assert clips.views(80, ClipSpec(8), ViewSpec(2))[1].indices == (7, 17, 27, 37, 47, 57, 67, 77)


@pytest.mark.parametrize("total", [1, 3, 7, 20])
def test_several_clips_of_a_short_video_follow_the_rule_for_short_videos(total):
    clip = ClipSpec(8, 4)  # needs 29
    assert clips.views(total, clip, ViewSpec(3, 3)) == clips.views(total, ClipSpec(8), ViewSpec(3, 3))
    assert clips.views(total, clip, ViewSpec()) == clips.views(total, ClipSpec(8))


@pytest.mark.parametrize("width, height", [(320, 240), (240, 320), (500, 100), (90, 90), (101, 33)])
def test_three_crops_are_squares_along_the_longer_side(width, height):
    views = clips.views(50, ClipSpec(4), ViewSpec(2, 3), width / height)
    assert len(views) == 6 and [v.indices for v in views] == [views[0].indices] * 3 + [views[3].indices] * 3
    short = min(width, height)
    boxes = [(v.left * width, v.top * height, v.width * width, v.height * height) for v in views[:3]]
    right, bottom = (width - short, 0) if width > height else (0, height - short)
    expected = [(0, 0, short, short), (right / 2, bottom / 2, short, short), (right, bottom, short, short)]
    assert np.allclose(boxes, expected) and views[3:] == [clips.View(views[3].indices, *box(v)) for v in views[:3]]
    frames = np.zeros((1, height, width, 3), np.uint8)
    assert clips.cut(frames, views[2], 16).shape == (1, 16, 16, 3)


def box(view):
    return view.top, view.left, view.height, view.width


@pytest.mark.parametrize("name", AUGMENTS)
def test_training_rectangles_lie_inside(name, seed):
    rng = np.random.default_rng(seed)
    for _ in range(200):
        aspect = float(np.exp(rng.uniform(-1.5, 1.5)))
        v = clips.training_view(30, ClipSpec(), AUGMENTS[name], rng, aspect)
        beyond = AUGMENTS[name].zoom_out + 1e-9  # of the frame, where it lies in a larger one
        assert v.top >= -beyond and v.left >= -beyond and 0 < v.height and 0 < v.width
        assert v.top + v.height <= 1 + beyond and v.left + v.width <= 1 + beyond


def test_zoomed_out_half_the_time_and_then_as_in_a_frame_with_its_edges_repeated(seed):
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (3, 40, 60, 3)).astype(np.uint8)
    padded = np.pad(frames, ((0, 0), (40, 40), (60, 60), (0, 0)), mode="edge")
    views = [clips.training_view(30, ClipSpec(), Augment(zoom_out=1), rng, 1.5) for _ in range(300)]
    out = [v for v in views if v.top < 0 or v.left < 0 or v.top + v.height > 1 or v.left + v.width > 1]
    assert 0.35 < len(out) / len(views) < 0.6
    for view in out[:20]:
        top, left = round(view.top * 40) + 40, round(view.left * 60) + 60
        height, width = max(1, round(view.height * 40)), max(1, round(view.width * 60))
        part = torch.from_numpy(padded[:, top : top + height, left : left + width]).permute(0, 3, 1, 2)
        expected = F.interpolate(part, 16, mode="bilinear", antialias=True).permute(0, 2, 3, 1)
        assert torch.equal(clips.cut(frames, view, 16), expected.flip(2) if view.flip else expected)


def test_a_rectangle_that_misses_the_frame_shows_its_edge():
    frames = np.zeros((1, 8, 8, 3), np.uint8)
    frames[:, -1:] = 200
    assert (clips.cut(frames, clips.View((0,), 1.5, 0, 1, 1), 4) == 200).all()


@pytest.mark.parametrize("least", [0.05, 0.3, 0.5, 1])
def test_area_crops_keep_the_area_and_flip_half_the_time(least, seed):
    rng = np.random.default_rng(seed)
    views = [clips.training_view(30, ClipSpec(), Augment(min_area=least), rng) for _ in range(300)]
    areas = [v.height * v.width for v in views]
    assert min(areas) > 0.8 * least and min(areas) < least + 0.2
    assert 0.3 < np.mean([v.flip for v in views]) < 0.7
    assert not any(clips.training_view(30, ClipSpec(), Augment(flip=False), rng).flip for _ in range(50))


@pytest.mark.parametrize("size", [112, 224, 50])
def test_jitter_crops_are_the_papers(size, seed):
    """A square of `size` from a frame whose shorter side is 256 to 320 per 224 of it, anywhere."""
    rng, clip = np.random.default_rng(seed), ClipSpec(8, None, size)
    short = []
    for _ in range(300):
        aspect = float(np.exp(rng.uniform(-1, 1)))
        height, width = (1, aspect) if aspect >= 1 else (1 / aspect, 1)  # of the frame, in shorter sides
        view = clips.training_view(30, clip, Augment(crop="jitter"), rng, aspect)
        assert view.height * height == pytest.approx(view.width * width)  # a square
        short.append(size / (view.height * height))
    scale = size / 224
    assert 256 * scale <= min(short) < 262 * scale and 314 * scale < max(short) <= 320 * scale
    assert abs(np.mean(short) - 288 * scale) < 5 * scale


def test_jitter_crops_reach_all_corners(seed):
    rng = np.random.default_rng(seed)
    views = [clips.training_view(30, ClipSpec(), Augment(crop="jitter"), rng, 2.0) for _ in range(300)]
    down = [v.top / (1 - v.height) for v in views]
    along = [v.left / (1 - v.width) for v in views]
    assert min(down) < 0.1 and max(down) > 0.9 and min(along) < 0.1 and max(along) > 0.9


def test_cut_is_the_rectangle_resized_with_antialiasing(seed):
    frames = np.random.default_rng(seed).integers(0, 256, (3, 40, 60, 3), np.uint8)
    view = clips.View((0, 1, 2), top=0.25, left=0.5, height=0.5, width=0.5, flip=True)
    part = torch.from_numpy(frames[:, 10:30, 30:60].astype(np.float64)).permute(0, 3, 1, 2)
    expected = F.interpolate(part, (16, 16), mode="bilinear", antialias=True).flip(3).permute(0, 2, 3, 1)
    got = clips.cut(frames, view, 16)
    assert got.dtype is torch.uint8 and got.shape == (3, 16, 16, 3)
    assert (got.double() - expected).abs().max() <= 1.5


def test_to_input_normalises_each_channel(seed):
    pixels = torch.randint(0, 256, (2, 4, 8, 8, 3), dtype=torch.uint8)
    clip = ClipSpec(4, None, 16, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    got = clips.to_input(pixels, clip)
    expected = (pixels.double().numpy() / 255 - np.array(clip.mean)) / np.array(clip.std)
    assert got.shape == (2, 3, 4, 8, 8) and np.allclose(got.numpy(), expected.transpose(0, 4, 1, 2, 3), atol=1e-5)


@pytest.mark.parametrize("frames", [1, 2, 8])
def test_orders_of_frames(frames, seed):
    view, rng = clips.View(tuple(range(5, 5 + frames)), 0.1), np.random.default_rng(seed)
    assert (
        clips.in_order(view, "true", rng) == view
        and clips.in_order(view, "one", rng).indices == (5 + frames // 2,) * frames
    )
    for _ in range(20):
        shuffled = clips.in_order(view, "shuffled", rng)
        assert (
            sorted(shuffled.indices) == list(view.indices) and (shuffled != view or frames == 1) and shuffled.top == 0.1
        )
