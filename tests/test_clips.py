"""Frame numbers, rectangles and normalisation."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nlzoo import clips
from nlzoo.spec import ClipSpec


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


def test_training_views_keep_the_area_and_stay_inside(seed):
    rng = np.random.default_rng(seed)
    views = [clips.training_view(30, ClipSpec(), True, rng) for _ in range(300)]
    assert all(v.top >= 0 and v.left >= 0 and v.top + v.height <= 1 + 1e-9 and v.left + v.width <= 1 + 1e-9 for v in views)
    assert min(v.height * v.width for v in views) > 0.8 * clips.MIN_AREA
    assert 0.3 < np.mean([v.flip for v in views]) < 0.7
    assert not any(clips.training_view(30, ClipSpec(), False, rng).flip for _ in range(50))


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
