"""Frame-exactness of `nlzoo.videos.video` against a decode of the whole file, for made, odd and real videos.

The oracle shares nothing with the product: it decodes every packet in order, and a frame's number is how many came out
before it.
"""

import functools
import os
import random
import socket
import struct
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.filter import Graph

from nlzoo.core.errors import NlzooError, UsageError, VideoError
from nlzoo.videos import pool, video
from nlzoo.videos.encode import write_video

needs_decord = pytest.mark.skipif(video.decord is None, reason="decord2 is not installed")


# The oracle


def decode_all(path, size=None) -> Iterator[tuple[int | None, np.ndarray]]:
    """(time, upright RGB) of every frame, in the order in which the decoder gives them; `size` is (height, width)."""
    with av.open(str(path), metadata_errors="replace") as container:
        stream = container.streams.best("video")
        stream.codec_context.thread_count = 1  # what is painted over damage depends on the threads
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
            except (av.error.FFmpegError, IndexError):  # damage that ends the file; IndexError: PyAV's own
                return
            if packet is None:
                return
            try:
                frames = packet.decode()
            except av.error.FFmpegError:
                continue
            yield from ((frame.pts, to_rgb(frame, size)) for frame in frames)


def mark(image) -> tuple:
    """What stands for an image when whole videos would fill the memory."""
    return image.shape, zlib.crc32(np.ascontiguousarray(image))


def to_rgb(frame, size) -> np.ndarray:
    graph, turns = Graph(), frame.rotation // 90
    height, width = size or (frame.height, frame.width)
    if size and turns % 2:
        height, width = width, height
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000))
    scale = graph.add("scale", f"w={width}:h={height}:flags=bicubic")
    graph.link_nodes(source, scale, graph.add("format", "pix_fmts=rgb24"), graph.add("buffersink")).configure()
    graph.push(frame)
    return np.rot90(graph.pull().to_ndarray(), turns)


def wrong_frames(path, short_side=None, decoder="auto", clips=4) -> tuple[int, int]:
    """(frames read, wrong ones): all frames in order, then clips of 8 random ones in random order, with repeats."""
    info, rng = video.probe(path), random.Random(Path(path).name)
    size = video.scaled_size(info.height, info.width, short_side)
    truth = [mark(image) for _, image in decode_all(path, size)]
    assert info.frames == len(truth)
    every = [range(at, min(at + 32, info.frames)) for at in range(0, info.frames, 32)]
    wrong = total = 0
    for indices in every + [[rng.randrange(info.frames) for _ in range(8)] for _ in range(clips)]:
        images = video.read_frames(path, indices, short_side, decoder)
        assert images.shape == (len(indices), *size, 3) and images.dtype == np.uint8
        wrong += sum(mark(image) != truth[i] for image, i in zip(images, indices, strict=True))
        total += len(indices)
    return total, wrong


# Made videos


def drawing(frames=60, height=48, width=64, seed=0) -> np.ndarray:
    """uint8 (frames, height, width, 3): a texture that moves by its own step each frame, so no two frames are alike."""
    rng = np.random.default_rng(seed)
    texture = rng.integers(0, 256, (height // 4 + 40, width // 4 + 40, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    steps = rng.integers(1, 4, (frames, 2)).cumsum(0) % 120
    return np.stack([texture[y : y + height, x : x + width] for y, x in steps])


def encode(path, images, codec="libx264", pix_fmt="yuv420p", options=None, gop=12, times=None, container=None, bf=None):
    """Encode uint8 RGB images; `times` in 1/1000 s instead of 25 frames a second."""
    options = dict(options or {})
    if bf is not None:
        options["bf"] = str(bf)
    if codec == "libx265":
        options["x265-params"] = ":".join(filter(None, [options.get("x265-params"), "log-level=none:pools=1"]))
    with av.open(str(path), "w", format=container) as out:
        stream = out.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = images.shape[1], images.shape[2], pix_fmt
        stream.codec_context.gop_size, stream.codec_context.thread_count = gop, 1
        stream.codec_context.time_base = Fraction(1, 1000) if times else Fraction(1, 25)
        for i, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = (times[i] if times else i), stream.codec_context.time_base
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def copy_packets(source, path, keep=lambda i, packet: True, shift=0, container=None):
    """Remux the packets that `keep` accepts, `shift` added to their times: what `ffmpeg -c copy` does to trim."""
    with av.open(str(source)) as given, av.open(str(path), "w", format=container) as out:
        stream = given.streams.video[0]
        target = out.add_stream_from_template(stream)
        for i, packet in enumerate(p for p in given.demux(stream) if p.size):
            if keep(i, packet):
                packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, target
                out.mux(packet)
    return path


def rotate(path, degrees):
    """Set the display matrix of an mp4's only track to `degrees` clockwise."""
    data, cos, sin = bytearray(path.read_bytes()), *{0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    at = data.index(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def cut(folder, source, first, container="mp4"):
    """The video from frame `first` on, by copying packets from the key frame before it."""
    with av.open(str(source)) as given:
        stream = given.streams.video[0]
        packets = [(p.pts, p.is_keyframe) for p in given.demux(stream) if p.size]
        start = sorted(t for t, _ in packets)[first]
    key = max(t for t, is_key in packets if is_key and t <= start)
    begin = packets.index((key, True))
    return copy_packets(source, folder / f"cut.{container}", lambda i, p: i >= begin, -start)


def damaged(path, number):
    """Overwrite the beginning of one packet."""
    with av.open(str(path), metadata_errors="replace") as container:
        packet = [p for p in container.demux() if p.size][number]
    data = bytearray(path.read_bytes())
    data[packet.pos : packet.pos + 20] = b"\xff" * 20
    path.write_bytes(data)
    return path


def hide(path, numbers):
    """Clear the show_frame bit of VP8 packets: how alternate reference frames look in a file."""
    data = path.read_bytes()
    with av.open(str(path), metadata_errors="replace") as container:
        packets = [bytes(p) for p in container.demux() if p.size]
    for number in numbers:
        packet = packets[number]
        assert data.count(packet) == 1
        data = data.replace(packet, bytes([packet[0] & ~0x10]) + packet[1:])
    path.write_bytes(data)
    return path


B = {"bf": "3", "b_strategy": "0", "sc_threshold": "0"}
OPEN = B | {"x264-params": "open-gop=1"}
MADE = {
    "h264 mp4 B-frames": lambda d: encode(d / "a.mp4", drawing(), options=B),
    "h264 mp4 no B-frames": lambda d: encode(d / "a.mp4", drawing(), bf=0),
    "h264 mkv B-frames": lambda d: encode(d / "a.mkv", drawing(), options=B),
    "h264 mp4 one GOP": lambda d: encode(d / "a.mp4", drawing(), options=B, gop=600),
    "h264 mp4 intra only": lambda d: encode(d / "a.mp4", drawing(20), gop=1),
    "h264 mp4 fragmented": lambda d: copy_packets(encode(d / "b.mp4", drawing()), d / "a.mp4", container="ismv"),
    "h264 mp4 open GOP": lambda d: encode(d / "a.mp4", drawing(), options=OPEN),
    "h264 mkv open GOP": lambda d: encode(d / "a.mkv", drawing(), options=OPEN),
    "h264 mkv intra refresh": lambda d: encode(d / "a.mkv", drawing(), options={"x264-params": "intra-refresh=1"}),
    "h264 mp4 interlaced": lambda d: encode(d / "a.mp4", drawing(), options={"x264-params": "tff=1"}),
    "h264 ts interlaced": lambda d: encode(d / "a.ts", drawing(), options={"x264-params": "tff=1"}),
    "h264 avi B-frames": lambda d: encode(d / "a.avi", drawing(), options=B),
    "h264 ts": lambda d: encode(d / "a.ts", drawing(), options=B),
    "h264 flv": lambda d: encode(d / "a.flv", drawing(), options=B),
    "h264 elementary": lambda d: encode(d / "a.264", drawing(), options=B, container="h264"),
    "h264 4:4:4 odd size": lambda d: encode(d / "a.mp4", drawing(30, 47, 61), pix_fmt="yuv444p"),
    "h264 10 bit": lambda d: encode(d / "a.mp4", drawing(30), pix_fmt="yuv420p10le"),
    "h264 one frame": lambda d: encode(d / "a.mp4", drawing(1)),
    "h264 mp4 VFR": lambda d: encode(d / "a.mp4", drawing(), options=B, times=vfr_times(60)),
    "h264 mkv VFR": lambda d: encode(d / "a.mkv", drawing(), options=B, times=vfr_times(60)),
    "h264 mp4 cut": lambda d: cut(d, encode(d / "b.mp4", drawing(), options=B), 17),
    "h264 mp4 cut in an open GOP": lambda d: cut(d, encode(d / "b.mp4", drawing(), options=OPEN), 17),
    "h264 mkv cut": lambda d: cut(d, encode(d / "b.mkv", drawing(), options=B), 17, "mkv"),
    "h264 mkv begins inside a GOP": lambda d: copy_packets(
        encode(d / "b.mkv", drawing(), options=B), d / "a.mkv", lambda i, p: i > 3
    ),
    "h264 mp4 rotated 90": lambda d: rotate(encode(d / "a.mp4", drawing()), 90),
    "h264 mp4 rotated 180": lambda d: rotate(encode(d / "a.mp4", drawing()), 180),
    "h264 mp4 rotated 270": lambda d: rotate(encode(d / "a.mp4", drawing()), 270),
    "h264 two sizes": lambda d: two_sizes(d),
    "hevc mp4 open GOP": lambda d: encode(d / "a.mp4", drawing(), "libx265", options={"x265-params": "keyint=12"}),
    "hevc 10 bit mkv": lambda d: encode(d / "a.mkv", drawing(30), "libx265", "yuv420p10le"),
    "hevc ts": lambda d: encode(d / "a.ts", drawing(), "libx265", options={"x265-params": "keyint=12"}),
    "mpeg4 avi B-frames": lambda d: encode(d / "a.avi", drawing(), "mpeg4", bf=2),
    "mpeg4 avi": lambda d: encode(d / "a.avi", drawing(), "mpeg4", bf=0),
    "mpeg4 mp4 B-frames": lambda d: encode(d / "a.mp4", drawing(), "mpeg4", bf=2),
    "mpeg2 mpg B-frames": lambda d: encode(d / "a.mpg", drawing(), "mpeg2video", bf=2),
    "mpeg2 ts B-frames": lambda d: encode(d / "a.ts", drawing(), "mpeg2video", bf=2),
    "wmv2": lambda d: encode(d / "a.wmv", drawing(), "wmv2"),
    "msmpeg4v3 avi": lambda d: encode(d / "a.avi", drawing(), "msmpeg4"),
    "mjpeg avi": lambda d: encode(d / "a.avi", drawing(30), "mjpeg", "yuvj420p"),
    "flv1": lambda d: encode(d / "a.flv", drawing(), "flv"),
    "vp8 webm": lambda d: encode(d / "a.webm", drawing(), "libvpx", options={"deadline": "realtime"}),
    "vp8 webm hidden frames": lambda d: hide(
        encode(d / "a.webm", drawing(), "libvpx", options={"deadline": "realtime"}), (5, 20, 21)
    ),
    "vp9 webm": lambda d: encode(d / "a.webm", drawing(), "libvpx-vp9", options={"deadline": "realtime"}),
    "vp9 webm odd size": lambda d: encode(
        d / "a.webm", drawing(30, 47, 61), "libvpx-vp9", options={"deadline": "realtime"}
    ),
    "vp9 alpha": lambda d: encode(d / "a.webm", drawing(30), "libvpx-vp9", "yuva420p", {"auto-alt-ref": "0"}),
    "av1 mp4": lambda d: encode(d / "a.mp4", drawing(), "libsvtav1", options={"preset": "12"}),
    "av1 webm": lambda d: encode(d / "a.webm", drawing(), "libsvtav1", options={"preset": "12"}),
    "prores alpha": lambda d: encode(d / "a.mov", drawing(10), "prores_ks", "yuva444p10le", {"profile": "4"}),
    "gif": lambda d: encode(d / "a.gif", drawing(20), "gif", "rgb8"),
    "damaged in the middle": lambda d: damaged(encode(d / "a.mp4", drawing(), options=B), 30),
}


def vfr_times(frames) -> list[int]:
    return np.random.default_rng(0).integers(10, 200, frames).cumsum().tolist()


def two_sizes(folder):
    parts = [encode(folder / f"{h}.264", drawing(20, h, 64), container="h264").read_bytes() for h in (48, 96)]
    (folder / "a.264").write_bytes(b"".join(parts))
    return folder / "a.264"


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

REFUSED = {  # what is in ../shared/data/odd and cannot be read -> words of the message
    "Bento4__audio-aac-003.mp4": "has no video track",
    "SOURCES.tsv": "is not a video",
    "go-mp4__sample_qt.mp4": "none can be decoded",  # cut off inside its first frame
    "jcodec__seq5_test.264": "is not a video",
    "jcodec__seq_boxout_test.264": "none can be decoded",  # flexible macroblock order, which FFmpeg has not
    "jcodec__seq_foreground_test.264": "none can be decoded",
    "jcodec__seq_interleaved_test.264": "none can be decoded",
    "jcodec__seq_mulref_test.264": "none can be decoded",
    "jcodec__seq_raster_test.264": "none can be decoded",
    "jcodec__seq_wipe_test.264": "none can be decoded",
    "jcodec__test.264": "is not a video",
    "moviepy__result.webm": "is empty",
    "mp4parse-rust__av1-clearkey-cbcs-video.mp4": "is encrypted",
    "mp4parse-rust__bipbop_480wp_1001kbps-cenc-video-key1-init.mp4": "is encrypted",
    "mp4parse-rust__chunk_out_of_range.mp4": "is not a video",
    "mp4parse-rust__opus_audioinit.mp4": "has no video track",
    "mp4parse-rust__opus_audioinit_two_desc.mp4": "has no video track",
    "mp4parse-rust__short-cenc.mp4": "is encrypted",
    "mp4parse-rust__tests_bipbop_cbcs_video_init.mp4": "is encrypted",
    "mp4parse-rust__zero_empty_stsc.mp4": "none can be decoded",
    "mp4parser__BBB_qpfile_10sec_output_audio-2ch-20s.mp4": "has no video track",
    "mp4parser__dts-sample.mp4": "has no video track",
    "mp4parser__samples_redbull_100kbit_dash.mp4": "without frames",
    "torchcodec__sine_mono_s16.wav": "is not a kind of video file",
    "torchcodec__sine_mono_s32_8000.wav": "is not a kind of video file",
}


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
        count, wrong = wrong_frames(path, clips=2)
        assert wrong == 0, path.name
        total += count
    assert refused == len(REFUSED)
    assert total > 3000


def test_real_clips_are_read_exactly(shared):
    files = sorted((shared / "videos").rglob("*.avi"))
    assert len(files) == 60
    assert sum(wrong_frames(path, clips=2)[1] for path in files) == 0


@needs_decord
@pytest.mark.parametrize("short_side", [None, 64, 200])
def test_decord_and_pyav_give_the_same_bits(short_side, shared):
    files = [path for path in sorted((shared / "odd").iterdir()) if path.name not in REFUSED]
    files = [path for path in files if video.probe(path).decord_right]
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
    if video.probe(path).decord_right:
        assert wrong_frames(path, decoder="decord") == (video.probe(path).frames + 32, 0)
    else:
        with pytest.raises(VideoError, match="decord: "):
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


def mutant_outcomes(path, rng) -> Counter:
    """What becomes of a damaged file and three clips of it, against a decode of the whole damaged file."""
    try:
        info = video.probe(path)
    except VideoError:
        return Counter(["file refused"])
    outcomes, truth = Counter(), list(decode_all(path))
    by_time = dict(truth) if info.pts is not None else {i: image for i, (_, image) in enumerate(truth)}
    for indices in [range(info.frames), *([rng.randrange(info.frames) for _ in range(4)] for _ in range(2))]:
        times = [int(info.pts[i]) if info.pts is not None else i for i in indices]
        try:
            images = video.read_frames(path, indices)
        except VideoError:
            outcomes["frame refused" if set(times) - set(by_time) else "wrongly refused"] += 1
            continue
        if set(times) - set(
            by_time
        ):  # found by seeking, past damage that ended the decode of the whole: nothing to compare with
            outcomes["beyond"] += 1
            continue
        wrong = [mark(image) for t, image in zip(times, images, strict=True) if mark(by_time[t]) != mark(image)]
        others = {mark(image) for image in by_time.values()}
        outcomes["exact" if not wrong else "repeated" if others & set(wrong) else "different"] += 1
    return outcomes


def mutant(rng, data) -> bytes:
    data, at = bytearray(data), rng.randrange(len(data) - 1000)
    match rng.randrange(5):
        case 0:
            for _ in range(rng.randint(1, 20)):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case 1:
            data[at : at + 1000] = bytes(1000)
        case 2:
            del data[at:]
        case 3:
            data[at : at + 400] = data[at + 400 : at + 800]
        case 4:
            data[at : at + 300] = rng.randbytes(300)
    return bytes(data)


# F4: damaged files through the pool, so that a crash or a hang would be seen and counted

MUTATED = ("h264 mp4 B-frames", "h264 mkv B-frames", "h264 mp4 open GOP", "h264 ts", "hevc mp4 open GOP", "mpeg4 avi B-frames",
           "mpeg4 mp4 B-frames", "wmv2", "vp8 webm", "vp9 webm")  # fmt: skip


def one_mutant(sources, folder, task):
    """What becomes of one damaged file; runs in a worker."""
    seed, number = task
    rng, path = random.Random(f"{seed} {number}"), Path(folder) / f"{number}.mp4"
    path.write_bytes(mutant(rng, sources[number % len(sources)]))
    try:
        return mutant_outcomes(path, rng)
    finally:
        path.unlink()


def mutants_survived(count, folder, seed):
    places = [folder / str(n) for n in range(len(MUTATED))]
    for place in places:
        place.mkdir()
    sources = [MADE[kind](place).read_bytes() for kind, place in zip(MUTATED, places)]
    outcomes, failures = Counter(), []
    work = functools.partial(one_mutant, sources, folder)
    for task, result in pool.run(work, [(seed, n) for n in range(count)], 2, lambda task: 60):
        if isinstance(result, pool.Failure):
            failures.append((task, result.reason))
        else:
            outcomes += result
    print(dict(outcomes), failures)
    return outcomes, failures


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
        from nlzoo.errors import VideoError
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
    video._probe.cache_clear()
    assert video.probe(path).frames == 20
    video._probe.cache_clear()


# The rest of the interface


def test_probe_says_what_is_in_a_file(tmp_path):
    path = rotate(encode(tmp_path / "a.mp4", drawing(50), options=B), 90)
    info = video.probe(path)
    assert (info.container, info.codec, info.width, info.height, info.frames) == ("mp4", "h264", 48, 64, 50)
    assert (info.fps, info.rotation, info.decoder) == (25.0, 90, "pyav")
    assert info.duration == pytest.approx(2.0)
    assert video.probe(str(path)) is info  # remembered
    encode(path, drawing(10))
    assert video.probe(path).frames == 10  # until the file changes


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
    assert info.decord_right or video.decord is None
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
    video._probe.cache_clear()
    assert not video.probe(path).decord_right and "not installed" in video.probe(path).reason
    assert video.read_frames(path, [4], decoder="pyav").shape == (1, 48, 64, 3)
    with pytest.raises(UsageError, match="not installed") as error:
        video.read_frames(path, [0], decoder="decord")
    assert isinstance(error.value, NlzooError)
    assert list(video.backends()) == ["pyav"]
    video._probe.cache_clear()


def test_a_preferred_decord_gives_way_where_it_fails(tmp_path, monkeypatch):
    if video.decord is None:
        pytest.skip("decord2 is not installed")
    path = encode(tmp_path / "a.mp4", drawing(20), options=B)
    monkeypatch.setattr(video, "PREFER_DECORD", True)
    video._probe.cache_clear()
    assert video.probe(path).decoder == "decord"
    assert wrong_frames(path)[1] == 0
    monkeypatch.setattr(video.decord.VideoReader, "__len__", lambda self: 19)
    assert wrong_frames(path)[1] == 0
    with pytest.raises(VideoError, match="counts 19 frames"):
        video.read_frames(path, [0], decoder="decord")
    video._probe.cache_clear()


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
