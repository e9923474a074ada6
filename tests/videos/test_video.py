"""Frame-exactness of `nlzoo.videos.video` against a decode of the whole file, for made, odd and real videos.

The oracle shares nothing with the product: it decodes every packet in order, and a frame's number is how many came out
before it.
"""

import os
import random
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
from decoded import REFUSED, decode_all, mutant, mutant_outcomes, mutants_survived, wrong_frames
from drawn import MADE, B, copy_packets, damaged, drawing, encode, rotate, two_sizes
from measured import grown

from nlzoo.core.errors import NlzooError, UsageError, VideoError
from nlzoo.videos import video
from nlzoo.videos.encode import write_video

needs_decord = pytest.mark.skipif(video.decord is None, reason="decord2 is not installed")


# Made videos


@pytest.mark.parametrize("kind", MADE)
def test_made_videos_are_read_exactly(kind, tmp_path):
    path = MADE[kind](tmp_path)
    total, wrong = wrong_frames(path)
    assert total > 4 * 8
    assert wrong == 0


def test_made_videos_are_what_their_names_say(tmp_path):
    """The negative control of the test above: without these traits it would prove little."""

    def packets(kind):
        path = MADE[kind](tmp_path)
        with av.open(str(path)) as container:
            found = [p for p in container.demux(container.streams.video[0]) if p.size]
        return video.probe(path), found

    info, found = packets("h264 mp4 open GOP")
    assert any(p.pts < key.pts for key in found if key.is_keyframe for p in found[found.index(key) :])
    info, found = packets("h264 mp4 cut")
    assert info.frames == 43 == sum(not p.is_discard for p in found) < len(found)
    info, found = packets("h264 mkv begins inside a GOP")
    assert info.frames < len(found)
    info, found = packets("vp8 webm hidden frames")
    assert info.frames == 57 and len(found) == 60
    info, found = packets("damaged in the middle")
    assert info.frames < len(found)
    info, found = packets("h264 mp4 rotated 90")
    assert (info.rotation, info.width, info.height) == (90, 48, 64)
    info, found = packets("h264 mkv VFR")
    assert len(set(np.diff(info.pts))) > 10


# Real and odd videos


def test_odd_files_are_read_exactly_or_refused(shared):
    files = sorted((shared / "odd").iterdir())
    assert len(files) == 86
    total = refused = 0
    for path in files:
        if path.name in REFUSED:
            with pytest.raises(VideoError, match=REFUSED[path.name]) as error:
                video.probe(path)
            assert path.name in error.value.message and error.value.hint
            refused += 1
            continue
        count, wrong = wrong_frames(path, clips=2, one_pass=True)
        assert wrong == 0, path.name
        total += count
    assert refused == len(REFUSED)
    assert total > 3000


def test_real_clips_are_read_exactly(shared):
    files = sorted((shared / "videos").rglob("*.avi"))
    assert len(files) == 60
    assert sum(wrong_frames(path, clips=2, one_pass=True)[1] for path in files) == 0


@needs_decord
@pytest.mark.parametrize("short_side", [None, 64, 200])
def test_decord_and_pyav_give_the_same_bits(short_side, shared):
    files = [path for path in sorted((shared / "odd").iterdir()) if path.name not in REFUSED]
    files = [path for path in files if not video.probe(path).decord_doubt]
    assert len(files) > 15
    for path in files:
        rng = random.Random(path.name)
        indices = [rng.randrange(video.probe(path).frames) for _ in range(8)]
        ours, theirs = (video.read_frames(path, indices, short_side, name) for name in ("pyav", "decord"))
        assert np.array_equal(ours, theirs), path.name


@needs_decord
@pytest.mark.parametrize("kind", MADE)
def test_decord_reads_exactly_or_refuses(kind, tmp_path):
    path = MADE[kind](tmp_path)
    if not video.probe(path).decord_doubt:
        assert wrong_frames(path, decoder="decord") == (video.probe(path).frames + 32, 0)
    else:
        with pytest.raises(VideoError, match="cannot be read by decord: "):
            video.read_frames(path, [0], decoder="decord")


@needs_decord
def test_decord_alone_gets_frames_wrong(tmp_path):
    """The negative control: why decord is not simply trusted. If this fails, it may be trusted with more."""
    for kind in ("mpeg4 avi B-frames", "h264 ts", "h264 mp4 open GOP", "h264 mp4 cut"):
        path = MADE[kind](tmp_path)
        truth = [image for _, image in decode_all(path)]
        reader = video.decord.VideoReader(str(path), num_threads=1)
        indices = [int(i) for i in np.random.default_rng(0).integers(0, len(reader), 40)]
        images = reader.get_batch(indices).asnumpy()
        pairs = zip(indices, images, strict=True)
        wrong = sum(i >= len(truth) or np.abs(image - truth[i].astype(int)).mean() > 4 for i, image in pairs)
        assert wrong > 5, kind


def test_mutants_are_read_exactly_or_refused(tmp_path):
    """Damage anywhere; decode.py --mutants does more of them, of more formats."""
    sources = [encode(tmp_path / "b.mp4", drawing(), options=B).read_bytes()]
    sources += [encode(tmp_path / "b.mkv", drawing(), options=B).read_bytes()]
    sources += [encode(tmp_path / "b.avi", drawing(), "mpeg4", bf=2).read_bytes()]
    rng, outcomes = random.Random(0), Counter()
    for number in range(120):
        path = tmp_path / f"{number}.mp4"
        path.write_bytes(mutant(rng, rng.choice(sources)))
        outcomes += mutant_outcomes(path, rng)
    assert outcomes["different"] == 0 == outcomes["wrongly refused"], outcomes
    assert outcomes["file refused"] > 5 and outcomes["exact"] > 100, outcomes


# F4: damaged files through the pool, so that a crash or a hang would be seen and counted


def survived(outcomes, failures, count):
    assert not failures  # no crash, no hang
    assert not outcomes["repeated"] and not outcomes["wrongly refused"]
    clips = outcomes.total() - outcomes["file refused"]
    assert (
        outcomes["file refused"] > count / 50
        and outcomes["exact"] > 0.9 * clips
        and outcomes["different"] < 0.01 * clips
    )


def test_no_mutant_crashes_hangs_or_repeats_frames(tmp_path, seed):
    survived(*mutants_survived(300, tmp_path, seed), 300)


@pytest.mark.torture
def test_five_thousand_mutants(tmp_path, seed):
    survived(*mutants_survived(5000, tmp_path, seed), 5000)


def test_an_undetected_repeat_would_be_seen(tmp_path, monkeypatch):
    """The control: a reader that hands out the last good frame for a damaged one, as decord does, is counted."""
    path, real = encode(tmp_path / "a.mp4", drawing(), options=B), video.read_frames
    monkeypatch.setattr(
        video, "read_frames", lambda path, indices: real(path, [max(0, i - (i == 17)) for i in indices])
    )
    assert mutant_outcomes(path, random.Random(0))["repeated"] >= 1


# What is refused


def refusal(path) -> VideoError:
    with pytest.raises(VideoError) as error:
        video.probe(path)
    assert error.value.hint and "\n" not in error.value.message
    return error.value


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("hls.mp4", "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n", "is not"),
        ("concat.mp4", "ffconcat version 1.0\nfile {}\n", "is not"),
        ("dash.mp4", '<?xml?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>{}</BaseURL></MPD>', "is not"),
        ("sdp.mp4", "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n", "is not"),
        ("text.mp4", "once upon a time {}", "is not"),
        ("empty.mp4", "", "is empty"),
    ],
)
def test_playlists_and_text_are_refused(name, text, words, tmp_path):
    secret = encode(tmp_path / "secret.mp4", drawing(5))
    (tmp_path / name).write_text(text.format(secret))
    assert words in refusal(tmp_path / name).message


def test_a_playlist_is_refused_by_the_list_of_formats_and_not_by_chance(tmp_path):
    """The negative control: FFmpeg without our limits follows a playlist with its own suffix to another file."""
    secret = encode(tmp_path / "secret.ts", drawing(5))
    playlist = tmp_path / "a.m3u8"
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{secret}\n#EXT-X-ENDLIST\n")
    with av.open(str(playlist)) as container:
        assert len(list(container.decode(video=0))) == 5
    assert "is not" in refusal(playlist).message


def box(kind, *parts) -> bytes:
    """One box of an mp4."""
    body = b"".join(parts)
    return (len(body) + 8).to_bytes(4, "big") + kind + body


def test_a_song_with_a_cover_is_not_a_video(tmp_path):
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=8000)
        for i in range(8):
            frame = av.AudioFrame(format="fltp", layout="mono", samples=1024)
            frame.sample_rate, frame.pts = 8000, i * 1024
            frame.planes[0].update(bytes(frame.planes[0].buffer_size))
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    picture = encode(tmp_path / "cover.png", drawing(1), "png", "rgb24", container="image2").read_bytes()
    cover = box(b"ilst", box(b"covr", box(b"data", (14).to_bytes(4, "big"), bytes(4), picture)))
    cover = box(b"udta", box(b"meta", bytes(4), box(b"hdlr", bytes(8), b"mdirappl", bytes(9)), cover))
    data = path.read_bytes()
    at = data.index(b"moov") - 4
    path.write_bytes(data[:at] + (len(data) - at + len(cover)).to_bytes(4, "big") + data[at + 4 :] + cover)
    with av.open(str(path)) as container:
        assert [s.type for s in container.streams] == ["audio", "video"]
    assert "no video track" in refusal(path).message
    assert "is not a kind of video" in refusal(tmp_path / "cover.png").message


def test_an_mp4_without_its_moov_is_refused(tmp_path):
    path = encode(tmp_path / "a.mp4", drawing(5))
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"moov") - 4])
    assert "cut off" in refusal(path).message


def test_what_is_not_a_regular_file_is_refused_without_opening_it(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "lost.mp4").symlink_to(tmp_path / "nowhere.mp4")
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s.mp4"))
    script = """if True:
        import sys
        from nlzoo.videos import video
        from nlzoo.core.errors import VideoError
        for path in sys.argv[1:]:
            try:
                video.probe(path)
            except VideoError as error:
                print(error.message)
    """
    names = ["pipe.mp4", "folder.mp4", "lost.mp4", "loop.mp4", "s.mp4", "missing.mp4"]
    paths = [str(tmp_path / name) for name in names] + ["/dev/zero"]
    done = subprocess.run([sys.executable, "-c", script, *paths], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    words = ["not a regular", "a folder", "not exist", "symbolic links", "not a regular", "not exist", "not a regular"]
    assert [word in line for word, line in zip(words, lines, strict=True)] == [True] * 7, lines
    assert "cannot be read" in refusal("nul\0.mp4").message


def test_an_unreadable_file_is_refused(tmp_path, monkeypatch):
    path = encode(tmp_path / "a.mp4", drawing(3))

    def refuse(*args, **kwargs):  # chmod would not stop root
        raise av.error.PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(av, "open", refuse)
    assert "cannot be read: Permission denied" in refusal(path).message


def with_many_samples(folder, box_kind) -> Path:
    """An mp4 of some kB that declares 8 million samples of one size, in its `stsz` or in a `trun`."""
    count = (1 << 23).to_bytes(4, "big")
    if box_kind == "stsz":
        path = encode(folder / "a.mp4", drawing(30), options=B)
        changes = {b"stsz": b"\0\0\0\0" + b"\0\0\0\1" + count, b"stsc": b"\0\0\0\0" + b"\0\0\0\1" * 2 + count}
    else:
        path = copy_packets(encode(folder / "b.mp4", drawing(30)), folder / "a.mp4", container="ismv")
        changes = {b"trun": b"\0\0\0\0" + count}
    data = bytearray(path.read_bytes())
    for kind, content in changes.items():
        at = data.index(kind) + 4
        data[at : at + len(content)] = content
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("box_kind", ["stsz", "trun"])
def test_samples_that_are_not_in_the_file_take_no_memory(box_kind, tmp_path):
    path = with_many_samples(tmp_path, box_kind)
    assert path.stat().st_size < 100_000
    assert refusal(path).reason == "declares more frames than it has bytes"
    before = """
        import sys
        from nlzoo.core.errors import VideoError
        from nlzoo.videos import video
    """
    script = """
        try:
            video.probe(sys.argv[1])
        except VideoError:
            pass
    """
    assert grown(before, script, path) < 20  # MiB
    unchecked = before + "    video._check_boxes = lambda path: None"
    assert grown(unchecked, script, path) > 80  # the control


def test_frames_that_grow_over_the_limit_when_they_are_scaled_are_refused(tmp_path):
    path = encode(tmp_path / "a.avi", drawing(3, 2, 4000), "ffv1", "yuv444p")
    assert video.read_frames(path, [2], 32).shape == (1, 32, 64_000, 3)
    info = video.probe(path)
    for read in (lambda: video.read_frames(path, [2], 256), lambda: next(video.images(info, [2], (256, 512_000)))):
        with pytest.raises(VideoError, match="has frames of 4000x2 pixels; scaled to 512000x256 they are too large"):
            read()


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_frames_over_the_limits_are_refused_before_they_are_decoded(suffix, tmp_path, monkeypatch):
    path = encode(tmp_path / f"a.{suffix}", drawing(3, 96, 128))
    monkeypatch.setattr(video, "MAX_SIDE", 127)
    message = refusal(path).message
    assert "128x96" in message and "127" in message
    monkeypatch.setattr(video, "MAX_SIDE", 128)
    assert video.probe(path).frames == 3


def test_frames_that_grow_over_the_limit_after_the_header_are_not_decoded(tmp_path, monkeypatch):
    path = two_sizes(tmp_path)
    assert video.probe(path).frames == 40
    monkeypatch.setattr(video, "MAX_PIXELS", 48 * 64)
    video.PROBES.clear()
    assert video.probe(path).frames == 20
    video.PROBES.clear()


# The rest of the interface


def test_probe_says_what_is_in_a_file(tmp_path):
    path = rotate(encode(tmp_path / "a.mp4", drawing(50), options=B), 90)
    info = video.probe(path)
    assert (info.container, info.codec, info.width, info.height, info.frames) == ("mp4", "h264", 48, 64, 50)
    assert (info.fps, info.rotation, info.decord_doubt) == (25.0, 90, "decord scales after it rotates")
    assert info.duration == pytest.approx(2.0)
    assert video.probe(str(path)) is info  # remembered
    encode(path, drawing(10))
    assert video.probe(path).frames == 10  # until the file changes


@pytest.mark.parametrize("frames, videos", [(108_000, 400), (125, 45_000)])
def test_what_is_remembered_of_videos_is_bounded_by_bytes(frames, videos, tmp_path):
    """Of videos of an hour, and of very many short ones: 16,384 probes of an hour would be 14 GB in every worker."""
    path = encode(tmp_path / "a.mp4", drawing(3))
    before = """
        import dataclasses, sys
        import numpy as np
        from nlzoo.videos import video
        path, frames, videos, most = sys.argv[1], *map(int, sys.argv[2:])
        info = video.probe(path)
        def make(path, size, mtime_ns):
            times = np.arange(frames) + mtime_ns
            return dataclasses.replace(info, path=path, frames=frames, pts=times, keys=times[::250].copy())
    """
    script = """
        video.PROBES.most = most
        for number in range(videos):
            assert video.PROBES.get(f"{path}/{number}", number, number, make).frames == frames
    """
    limit = video.PROBES.most
    bounded, unbounded = (grown(before, script, path, frames, videos, most) for most in (limit, 2**40))
    assert bounded < 1.25 * limit / 2**20
    assert unbounded > 1.5 * bounded  # the control


def test_frames_come_in_the_order_asked_for(tmp_path):
    path = encode(tmp_path / "a.mp4", drawing(), options=B)
    every = video.read_frames(path, range(60))
    assert np.array_equal(video.read_frames(path, [59, 0, 7, 7, 30]), every[[59, 0, 7, 7, 30]])
    assert np.array_equal(video.read_frames(path, np.array([3, 1])), every[[3, 1]])
    assert video.read_frames(path, []).shape == (0, 48, 64, 3)
    for bad in (60, -1):
        with pytest.raises(IndexError):
            video.read_frames(path, [bad])


def test_each_frame_is_decoded_once_and_jumps_save_work(tmp_path, monkeypatch):
    path = encode(tmp_path / "a.mp4", drawing(120), bf=0)
    decoded = []
    run = video._run
    monkeypatch.setattr(video, "_run", lambda *args: (decoded.append(item[0]) or item for item in run(*args)))
    video.read_frames(path, [100, 100, 101, 0])
    assert len(decoded) == len(set(decoded)) < 20


@pytest.mark.parametrize("height, width, short, want", [
    (48, 64, 24, (24, 32)), (64, 48, 24, (32, 24)), (48, 64, 96, (96, 128)), (47, 61, 32, (32, 42)), (9, 9, 5, (5, 5)),
    (1, 1, 8, (8, 8)), (4, 1000, 1, (1, 250)), (48, 64, None, (48, 64)),
])  # fmt: skip
def test_the_short_side_is_what_was_asked_for(height, width, short, want):
    assert video.scaled_size(height, width, short) == want


@pytest.mark.parametrize("kind", ["h264 mp4 B-frames", "h264 mp4 rotated 90", "mpeg4 avi B-frames", "vp9 webm"])
@pytest.mark.parametrize("short_side", [24, 96])
def test_scaled_frames_are_exact(kind, short_side, tmp_path):
    assert wrong_frames(MADE[kind](tmp_path), short_side)[1] == 0


def test_shrinking_does_not_alias(tmp_path):
    stripes = np.zeros((2, 256, 256, 3), np.uint8)
    stripes[:, :, ::2] = 255
    path = encode(tmp_path / "a.mp4", stripes, options={"crf": "1"})
    small = video.read_frames(path, [0], short_side=60)[0].astype(int)
    assert np.ptp(small[5:-5, 5:-5]) < 40  # even grey; picking pixels would give black and white


def test_written_videos_come_back(tmp_path):
    images = drawing(30, 64, 96)
    images[:] = images[..., :1]  # grey: 4:2:0 blurs colours
    write_video(tmp_path / "a.mp4", images, fps=12)
    info = video.probe(tmp_path / "a.mp4")
    assert (info.frames, info.fps, info.codec, info.height, info.width) == (30, 12.0, "h264", 64, 96)
    assert info.decord_doubt == "" or video.decord is None
    assert list(info.keys) == sorted(info.keys) and max(np.diff([*info.keys, 30])) <= 12
    back = video.read_frames(tmp_path / "a.mp4", range(30))
    assert np.abs(back.astype(int) - images).mean() < 3
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
    for bad in (images[:, 1:], images[:, :, 1:], images.astype(float), images[0], images[:0]):
        with pytest.raises(ValueError, match="must be|needs"):
            write_video(tmp_path / "b.mp4", bad)
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_odd_names_are_read_and_shown_escaped(tmp_path):
    good = encode(tmp_path / "a.mp4", drawing(3)).read_bytes()
    stems = "a b", "a\nb", "'\"%d", "\U0001f600", "http:x", "[red]x", "\x1b[31m", b"\xff"
    for stem in stems:
        path = tmp_path / f"{os.fsdecode(stem)}.mp4"
        path.write_bytes(good)
        assert video.read_frames(path, [2]).shape == (1, 48, 64, 3)
        path.write_bytes(b"nothing")
        assert refusal(path).message.isprintable()


def test_decoder_can_be_named(tmp_path, monkeypatch):
    path = encode(tmp_path / "a.mp4", drawing(5))
    with pytest.raises(UsageError, match="no decoder 'ffmpeg'"):
        video.read_frames(path, [0], decoder="ffmpeg")
    monkeypatch.setattr(video, "decord", None)
    video.PROBES.clear()
    assert video.probe(path).decord_doubt == "decord2 is not installed"
    assert video.read_frames(path, [4], decoder="pyav").shape == (1, 48, 64, 3)
    with pytest.raises(UsageError, match="not installed") as error:
        video.read_frames(path, [0], decoder="decord")
    assert isinstance(error.value, NlzooError)
    assert list(video.backends()) == ["pyav"]
    video.PROBES.clear()


@needs_decord
def test_a_decord_that_counts_other_frames_is_refused(tmp_path, monkeypatch):
    path = encode(tmp_path / "a.mp4", drawing(20), options=B)
    assert wrong_frames(path, decoder="decord") == (20 + 4 * 8, 0)
    monkeypatch.setattr(video.decord.VideoReader, "__len__", lambda self: 19)
    with pytest.raises(VideoError, match="cannot be read by decord: it counts 19 frames, not 20"):
        video.read_frames(path, [0], decoder="decord")
    assert wrong_frames(path)[1] == 0


def test_backends_are_named():
    found = video.backends()
    assert found["pyav"].startswith(av.__version__) and "libavcodec" in found["pyav"]


def test_readers_survive_a_fork_and_stay_silent(tmp_path):
    path = damaged(encode(tmp_path / "a.mp4", drawing(), options=B), 30)
    script = """if True:
        import os, sys
        from nlzoo.videos import video
        read = lambda i: int(video.read_frames(sys.argv[1], [i]).sum())
        here = [read(i) for i in (3, 40, 20)]
        for i, want in zip((3, 40, 20), here):
            child = os.fork()
            if child == 0:
                os._exit(0 if read(i) == want else 1)
            assert os.waitpid(child, 0)[1] == 0
        print("same")
    """
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("same\n", "")


def test_a_pointer_of_git_lfs_is_named(tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
    (tmp_path / "a.mp4").write_bytes(pointer)
    with pytest.raises(VideoError, match="is a pointer of Git LFS, not the video"):
        video.probe(tmp_path / "a.mp4")
