"""Flow is OpenCV's own, of neighbouring frames of the source; and nothing else differs from frames of RGB."""

import dataclasses
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from drawn import break_frame, encode, rotate

from nlzoo.core.errors import UsageError, VideoError
from nlzoo.core.view_spec import STREAMS, Augment, ClipSpec, ViewSpec, for_stream, parse_augment
from nlzoo.training.options import FinetuneOptions
from nlzoo.videos import clips, flow, frame_cache, loader, scanning, streams, video

STEP = (3, -2)  # pixels to the right and down from a frame to the next


def moving(frames, step=STEP, height=64, width=96, seed=0):
    """uint8 (frames, height, width, 3): a smooth texture that moves by `step`."""
    rng = np.random.default_rng(seed)
    room = 8 * frames
    texture = cv2.GaussianBlur(rng.random((height + 2 * room, width + 2 * room, 3)).astype(np.float32), (0, 0), 2)
    texture = (255 * (texture - texture.min()) / np.ptp(texture)).astype(np.uint8)
    places = [(room - step[1] * t, room - step[0] * t) for t in range(frames)]
    return np.stack([texture[y : y + height, x : x + width] for y, x in places])


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return encode(tmp_path_factory.mktemp("flow") / "a.mp4", moving(9))


def pixels(bytes_):
    """Bytes (…) as pixels, float32; within half a step of what was rounded."""
    return (bytes_.astype(np.float32) - 127.5) * (flow.LIMIT / 127.5)


def by_opencv(greys):
    """Flow from each picture to the next as bytes by the formula of two-stream networks, float64, not rounded."""
    grey = [np.ascontiguousarray(picture) for _, picture in greys]
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    found = [dis.calc(first, second, None).astype(np.float64) for first, second in zip(grey, grey[1:])]
    return np.stack([255 * (f.clip(-20, 20) + 20) / 40 for f in found])


@pytest.mark.parametrize("short_side", [None, 40, 18])
def test_flow_is_opencvs_between_neighbouring_frames_of_the_source(film, short_side):
    info = video.probe(film)
    expected = by_opencv(video.images(info, range(9), short_side, "gray"))
    for numbers in ([0, 3, 7], [6, 1, 1, 8], [8], list(range(9))):  # in any order, with repeats
        got = streams.read_frames(info, numbers, short_side, "flow")
        assert got.dtype == np.uint8
        assert np.abs(got - expected[[min(n, 7) for n in numbers]]).max() <= 0.5 + 1e-4  # a tie may fall either way
    with pytest.raises(IndexError, match="frame 9 of 9"):
        streams.read_frames(info, [0, 9], short_side, "flow")


@pytest.mark.parametrize("rotation", [0, 90])
def test_the_grey_of_a_frame_is_opencvs_but_for_rounding(rotation, tmp_path):
    path = rotate(encode(tmp_path / "a.mp4", moving(3)), rotation)
    for number, grey in video.images(video.probe(path), [0, 2], 40, "gray"):
        expected = cv2.cvtColor(video.read_frames(path, [number], 40)[0], cv2.COLOR_RGB2GRAY)
        assert grey.shape == expected.shape and np.abs(grey.astype(int) - expected).max() <= 3


def test_it_is_the_motion_that_was_drawn(film):
    got = pixels(streams.read_frames(video.probe(film), range(9), None, "flow")[:, 8:-8, 8:-8])
    assert np.abs(np.median(got, (1, 2)) - STEP).max() < 0.2


def test_bytes_are_pixels_within_half_a_step_and_still_is_their_mean():
    drawn = np.random.default_rng(0).uniform(-20, 20, 1000)
    assert np.abs(pixels(flow.quantise(drawn)) - drawn).max() <= 20 / 255 + 1e-6
    assert flow.quantise(np.array([-1e9, -20, 0, 20, 1e9])).tolist() == [0, 0, flow.STILL, 255, 255]
    still = torch.full((1, 1, 2, 2, 2), flow.STILL, dtype=torch.uint8)
    assert not clips.to_input(still, ClipSpec().of_stream("flow")).any()


def test_a_mirrored_clip_moves_the_other_way(tmp_path, film):
    """The flow of a mirrored video, but for what OpenCV itself does otherwise there."""
    mirror = encode(tmp_path / "m.mp4", moving(9)[:, :, ::-1])
    there, here = (streams.read_frames(video.probe(path), range(9), None, "flow") for path in (mirror, film))
    turned = flow.mirrored(torch.from_numpy(here).flip(2)).numpy()
    apart = np.abs(pixels(turned) - pixels(there))[:, 8:-8, 8:-8]
    assert np.median(apart) < 0.1 and np.abs(np.median(pixels(turned), (1, 2)) - (-3, -2)).max() < 0.2
    drawn = np.random.default_rng(1).uniform(-25, 25, (50, 2))
    exact = flow.quantise(drawn * (-1, 1))
    assert np.array_equal(flow.mirrored(torch.from_numpy(flow.quantise(drawn))).numpy(), exact)


@pytest.mark.parametrize("epoch", [-1, 0, 1, 2])
def test_frames_rectangle_and_mirror_are_those_of_rgb(film, epoch):
    """What a clip of flow shows is cut out of the flow as RGB's is out of the frames, drawn by the same key."""
    listed = dataclasses.replace(scanning_item(film), labels=("a",))
    augment = Augment(zoom_out=0.5)
    rgb = loader.Clips(film.parent, (listed,), ClipSpec(4, None, 32), augment, views=ViewSpec(2), seed=7)
    moves = dataclasses.replace(rgb, clip=rgb.clip.of_stream("flow"))
    rng, aspect = np.random.default_rng([7, max(epoch, 0), 0]), 96 / 64
    if epoch < 0:
        views = clips.views(9, rgb.clip, ViewSpec(2), aspect, 25.0)
    else:
        views = [clips.training_view(9, rgb.clip, augment, rng, aspect, 25.0)]
    pictures = streams.read_frames(video.probe(film), range(9), 37, "rgb")
    bytes_ = streams.read_frames(video.probe(film), range(9), 37, "flow")
    assert rgb.shape(epoch) == (*moves.shape(epoch)[:-1], 3) and moves.shape(epoch)[-1] == 2
    for n, view in enumerate(views):
        assert torch.equal(rgb.read(epoch, 0)[n], clips.cut(pictures[list(view.indices)], view, 32))
        part = clips.cut(bytes_[list(view.indices)], view, 32)
        assert torch.equal(moves.read(epoch, 0)[n], flow.mirrored(part) if view.flip else part)


def scanning_item(path):
    return scanning.Item(path.name, ())


def test_both_mirrored_and_plain_clips_were_among_them(film):
    views = [clips.training_view(9, ClipSpec(4), Augment(), np.random.default_rng([7, e, 0])) for e in range(3)]
    assert {view.flip for view in views} == {True, False}


def test_it_is_kept_once_beside_the_frames(film, tmp_path):
    cache = tmp_path / "cache"
    pictures = frame_cache.read_frames(film, [0, 5], 40, cache)
    for _ in range(2):
        got = frame_cache.read_frames(film, [5, 8], 40, cache, "flow")
        assert np.array_equal(got, streams.read_frames(video.probe(film), [5, 8], 40, "flow"))
    assert np.array_equal(frame_cache.read_frames(film, [0, 5], 40, cache), pictures)
    sizes = sorted(file.stat().st_size for file in cache.iterdir())
    height, width = video.scaled_size(64, 96, 40)
    assert sizes == [9 * (height * width * channels + 4) + 2 * 128 for channels in (2, 3)]  # and two headers
    assert frame_cache.check_room([(film, 9, 64, 96)], 40, cache, "flow") == 0
    assert frame_cache.check_room([(film, 9, 64, 96)], 41, cache, "flow") == 9 * (41 * 62 * 2 + 4)


def test_one_frame_has_no_flow_and_damage_is_the_videos(tmp_path):
    one = encode(tmp_path / "one.mp4", moving(1))
    assert (streams.read_frames(video.probe(one), [0, 0], 20, "flow") == flow.STILL).all()
    path = encode(tmp_path / "bad.mp4", moving(9), options={"bf": "0"}, gop=1)
    break_frame(path, 4)
    info = video.probe(path)
    assert len(streams.read_frames(info, [0, 6], 20, "flow")) == 2
    with pytest.raises(VideoError):
        streams.read_frames(info, [3], 20, "flow")


def test_what_means_nothing_for_flow_is_turned_off_and_erasing_says_nothing(film):
    changed = for_stream(parse_augment("strong,mixup=0,cutmix=0,erase=1"), "flow")
    assert not (changed.colour or changed.randaugment) and changed.erase == 1 and changed.flip
    source = loader.Clips(film.parent, (scanning_item(film),), ClipSpec(4, None, 32).of_stream("flow"), changed)
    assert (source.read(0, 0) == 128).all(-1).float().mean() > 0.01
    assert for_stream(changed, "rgb") == changed and set(STREAMS) > set(flow.METHODS)


def test_without_the_library_one_sentence_says_what_to_install(monkeypatch):
    for cached in (flow._opencv, flow.estimator):
        cached.cache_clear()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "cv2", None)
        for refused in (
            lambda: FinetuneOptions(stream="flow"),
            lambda: loader.Clips(Path(), (), ClipSpec().of_stream("flow")),
        ):
            with pytest.raises(UsageError, match="OpenCV, which is not installed") as error:
                refused()
            assert error.value.hint == "pip install 'nlzoo[flow]'"
    FinetuneOptions(stream="flow")
    with pytest.raises(UsageError, match="decode"):
        FinetuneOptions(stream="flow", decoder="decord")
    if not hasattr(cv2, "optflow"):
        with pytest.raises(UsageError, match="without TV-L1"):
            FinetuneOptions(stream="flow-tvl1")
