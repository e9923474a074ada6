"""The oracle of the decoder: a decode of the whole file that shares nothing with the product; damaged files."""

import functools
import random
import zlib
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.filter import Graph
from drawn import MADE

from nlzoo.core.errors import VideoError
from nlzoo.videos import pool, video


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
    """What stands for an image."""
    return image.shape, zlib.crc32(np.ascontiguousarray(image))


def to_rgb(frame, size) -> np.ndarray:
    graph, turns = Graph(), frame.rotation // 90
    graph.threads = 1  # starting others takes longer than one image
    height, width = size or (frame.height, frame.width)
    if size and turns % 2:
        height, width = width, height
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000))
    scale = graph.add("scale", f"w={width}:h={height}:flags=bicubic")
    graph.link_nodes(source, scale, graph.add("format", "pix_fmts=rgb24"), graph.add("buffersink")).configure()
    graph.push(frame)
    return np.rot90(graph.pull().to_ndarray(), turns)


def wrong_frames(path, short_side=None, decoder="auto", clips=4, one_pass=False) -> tuple[int, int]:
    """(frames read, wrong ones): all frames in order, then clips of 8 random ones in random order, with repeats.

    In order 32 at a time or, of files that are large or have to be decoded from their start, in one pass.
    """
    info, rng = video.probe(path), random.Random(Path(path).name)
    size = video.scaled_size(info.height, info.width, short_side)
    drawn = [[rng.randrange(info.frames) for _ in range(8)] for _ in range(clips)]
    kept = dict.fromkeys(chain(*drawn))  # images of those alone: whole videos would fill the memory
    truth = (image for _, image in decode_all(path, size))
    wrong = total = 0

    def read(indices):
        images = video.read_frames(path, indices, short_side, decoder)
        assert images.shape == (len(indices), *size, 3) and images.dtype == np.uint8
        return zip(indices, images, strict=True)

    every = [range(at, min(at + 32, info.frames)) for at in range(0, info.frames, 32)]
    in_order = video.images(info, range(info.frames), size) if one_pass else chain.from_iterable(map(read, every))
    for number, ((i, image), wanted) in enumerate(zip(in_order, truth, strict=True)):
        wrong += i != number or not np.array_equal(image, wanted)
        total += 1
        if i in kept:
            kept[i] = wanted
    assert total == info.frames
    for indices in drawn:
        wrong += sum(not np.array_equal(image, kept[i]) for i, image in read(indices))
        total += len(indices)
    return total, wrong


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


def mutant_outcomes(path, rng) -> Counter:
    """What becomes of a damaged file and three clips of it, against a decode of the whole damaged file."""
    try:
        info = video.probe(path)
    except VideoError:
        return Counter(["file refused"])
    outcomes, truth = Counter(), decode_all(path)
    by_time = {i if info.pts is None else time: mark(image) for i, (time, image) in enumerate(truth)}
    others = set(by_time.values())
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
        marks = map(mark, images)
        wrong = {found for t, found in zip(times, marks, strict=True) if by_time[t] != found}
        outcomes["exact" if not wrong else "repeated" if others & wrong else "different"] += 1
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


MUTATED = (
    "h264 mp4 B-frames",
    "h264 mkv B-frames",
    "h264 mp4 open GOP",
    "h264 ts",
    "hevc mp4 open GOP",
    "mpeg4 avi B-frames",
    "mpeg4 mp4 B-frames",
    "wmv2",
    "vp8 webm",
    "vp9 webm",
)


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
