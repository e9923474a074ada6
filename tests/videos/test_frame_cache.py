"""Frames that are kept on disk: the same bits as decoding, whatever happens to the folder."""

import functools
import os
import random
import resource
import time
import zlib

import numpy as np
import pytest
from drawn import B, break_frame, drawing, encode, rotate

from nlzoo.core.errors import DiskError, UsageError, VideoError
from nlzoo.training.options import FinetuneOptions
from nlzoo.videos import frame_cache, pool, video


def kept(cache):
    return sorted(p.name for p in cache.iterdir())


@pytest.mark.parametrize("short_side", [None, 24, 96])
@pytest.mark.parametrize("kind", ["mp4", "rotated", "avi"])
def test_the_bits_are_those_of_decoding(kind, short_side, tmp_path, seed):
    rng, cache = random.Random(seed), tmp_path / "new" / "cache"
    path = encode(
        tmp_path / ("a.avi" if kind == "avi" else "a.mp4"),
        drawing(40),
        "mpeg4" if kind == "avi" else "libx264",
        options=None,
    )
    if kind == "rotated":
        rotate(path, 90)
    for _ in range(6):
        indices = [rng.randrange(40) for _ in range(rng.randrange(1, 12))]  # in any order, with repeats
        got = frame_cache.read_frames(path, indices, short_side, cache)
        assert got.dtype == np.uint8 and np.array_equal(got, video.read_frames(path, indices, short_side))
    assert frame_cache.read_frames(str(path), np.array([3, 1]), short_side, str(cache)).shape[0] == 2
    assert frame_cache.read_frames(path, [], short_side, cache).shape == video.read_frames(path, [], short_side).shape
    for bad in (40, -1):
        with pytest.raises(IndexError, match=f"frame {bad} of 40"):
            frame_cache.read_frames(path, [0, bad], short_side, cache)
    assert len(kept(cache)) == 1
    assert np.array_equal(
        np.load(cache / kept(cache)[0], mmap_mode="r"), video.read_frames(path, range(40), short_side)
    )


def test_the_second_read_decodes_nothing(tmp_path):
    """Between the two the video is overwritten, its size and time kept: whoever decodes now gets nothing."""
    path, cache = encode(tmp_path / "a.mp4", drawing(40), options=B), tmp_path / "cache"
    first, info = frame_cache.read_frames(path, [5, 30], 24, cache), path.stat()
    path.write_bytes(b"\0" * info.st_size)
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert np.array_equal(frame_cache.read_frames(path, [30, 5], 24, cache), first[::-1])
    with pytest.raises(VideoError):
        video.read_frames(path, [5, 30], 24)
    with pytest.raises(VideoError):
        frame_cache.read_frames(path, [5, 30], 25, cache)


def test_a_video_that_changed_is_decoded_again(tmp_path):
    path, cache = encode(tmp_path / "a.mp4", drawing(10)), tmp_path / "cache"
    frame_cache.read_frames(path, [0], 24, cache)
    encode(path, drawing(10, seed=1))
    assert np.array_equal(frame_cache.read_frames(path, [4], 24, cache), video.read_frames(path, [4], 24))
    path.unlink()
    with pytest.raises(VideoError, match="does not exist"):
        frame_cache.read_frames(path, [4], 24, cache)


def test_a_damaged_file_is_made_again(tmp_path, seed):
    rng = np.random.default_rng(seed)
    path, cache = encode(tmp_path / "a.mp4", drawing(12)), tmp_path / "cache"
    want = video.read_frames(path, range(12), 24)
    frame_cache.read_frames(path, [0], 24, cache)
    file = cache / kept(cache)[0]
    whole = file.read_bytes()
    for trial in range(300):
        data = bytearray(whole)
        if trial % 3 == 0:  # anywhere in the header, where there is least of it to hit by chance
            data[int(rng.integers(128))] = int(rng.integers(256))
        elif trial % 3 == 1:
            data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        else:
            data = data[: int(rng.integers(len(data)))]
        file.write_bytes(data)
        assert np.array_equal(frame_cache.read_frames(path, range(12), 24, cache), want)
        if data[128:] != whole[128:]:
            assert file.read_bytes() == whole
    assert kept(cache) == [file.name]


def test_a_video_with_a_damaged_frame_is_as_without_cache(tmp_path):
    path, cache = break_frame(encode(tmp_path / "a.mp4", drawing(60), bf=0), 30), tmp_path / "cache"
    assert np.array_equal(frame_cache.read_frames(path, [3, 9], 24, cache), video.read_frames(path, [3, 9], 24))
    with pytest.raises(VideoError) as alone:
        video.read_frames(path, [30], 24)
    with pytest.raises(VideoError) as error:
        frame_cache.read_frames(path, [30], 24, cache)
    assert error.value.message == alone.value.message
    assert kept(cache) == []
    (tmp_path / "b.mp4").write_bytes(b"text")
    with pytest.raises(VideoError, match="is not a video"):
        frame_cache.read_frames(tmp_path / "b.mp4", [0], 24, cache)
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(VideoError, match="not a regular file"):
        frame_cache.read_frames(tmp_path / "pipe.mp4", [0], 24, cache)


def fill(path, cache, at, _):
    time.sleep(max(0, at - time.time()))  # all at once
    return [zlib.crc32(frame_cache.read_frames(path, range(60), 96, cache)) for _ in range(3)]


def test_many_processes_may_fill_the_same_video(tmp_path):
    path, cache = encode(tmp_path / "a.mp4", drawing(60, 240, 320)), tmp_path / "cache"
    work = functools.partial(fill, path, cache, time.time() + 1)
    done = [result for _, result in pool.run(work, range(4), 4)]
    want = zlib.crc32(video.read_frames(path, range(60), 96))
    assert done == [[want] * 3] * 4
    assert len(kept(cache)) == 1


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, seed):
    path, cache, rng = encode(tmp_path / "a.mp4", drawing(30)), tmp_path / "cache", random.Random(seed)
    size, (soft, hard) = 30 * 48 * 64 * 3, resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in [0, 100, size + 128, size + 128 + 128 + 119, *(rng.randrange(size) for _ in range(10))]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(DiskError, match=r"cache could not be written \(File too large\)") as error:
                frame_cache.read_frames(path, [0], None, cache)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert str(cache) in error.value.message and kept(cache) == []
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DiskError, match=r"file could not be written \(Not a directory\)"):
        frame_cache.read_frames(path, [0], None, tmp_path / "file")


def test_room_is_looked_for_before_the_run(tmp_path):
    path, cache = encode(tmp_path / "a.mp4", drawing(30)), tmp_path / "deep" / "cache"
    one, other = (path, 30, 48, 64), (tmp_path / "b.mp4", 1000, 1080, 1920)
    encode(tmp_path / "b.mp4", drawing(3))
    need = frame_cache.check_room([one, one, other], 24, cache)
    assert kept(cache) == []
    assert need == 30 * (24 * 32 * 3 + 4) + 1000 * (24 * 43 * 3 + 4)
    frame_cache.read_frames(path, [0], 24, cache)
    assert (cache / kept(cache)[0]).stat().st_size == pytest.approx(30 * (24 * 32 * 3 + 4), abs=300)
    assert frame_cache.check_room([one, one], 24, cache) == 0
    with pytest.raises(DiskError, match="take 27000.0 GB, and .* has room for"):
        frame_cache.check_room([(tmp_path / "b.mp4", 9_000_000, 1000, 1000)], None, cache)
    (tmp_path / "file").write_bytes(b"")
    for place in (tmp_path / "file", tmp_path / "file" / "cache"):
        with pytest.raises(DiskError, match="could not be written"):
            frame_cache.check_room([one], 24, place)


def test_what_killed_runs_left_is_removed_in_time(tmp_path):
    old, new = (tmp_path / f".{c * 64}.npy.{c * 8}.part" for c in "01")
    old.write_bytes(b"half")
    new.write_bytes(b"half")  # somebody may be writing it
    os.utime(old, (time.time() - 7200,) * 2)
    frame_cache.check_room([], 24, tmp_path)
    assert kept(tmp_path) == [new.name]


def test_what_a_cache_cannot_serve_is_refused_before_any_video_is_opened(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="PyAV decoded, so --decoder decord cannot be used with it"):
        FinetuneOptions(cache=tmp_path / "cache", decoder="decord")
    for place in (tmp_path / "file", tmp_path / "file" / "deep" / "cache"):
        with pytest.raises(DiskError, match=r"could not be written \(Not a directory\)"):
            FinetuneOptions(cache=place)
    for decoder in ("auto", "pyav"):
        FinetuneOptions(cache=tmp_path / "new" / "deep", decoder=decoder)
    assert kept(tmp_path) == ["file"]
