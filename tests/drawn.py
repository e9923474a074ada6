"""Videos that tests draw and encode, and the ways in which they are cut, turned and damaged."""

import struct
from fractions import Fraction

import av
import numpy as np


def drawing(frames=60, height=48, width=64, seed=0) -> np.ndarray:
    """uint8 (frames, height, width, 3): a texture that moves by its own step each frame, so no two frames are alike."""
    rng = np.random.default_rng(seed)
    texture = rng.integers(0, 256, (height // 4 + 40, width // 4 + 40, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    steps = rng.integers(1, 4, (frames, 2)).cumsum(0) % 120
    return np.stack([texture[y : y + height, x : x + width] for y, x in steps])


def calm(frames, height, width, seed=0):
    """A drawing whose every frame survives compression: blocks of 16 pixels, hardly coloured, that move."""
    rng = np.random.default_rng(seed)
    grey = rng.integers(40, 216, (height // 16 + 12, width // 16 + 12, 1), np.uint8).repeat(16, 0).repeat(16, 1)
    steps = rng.integers(1, 4, (frames, 2)).cumsum(0) % 120
    return np.stack([grey[y : y + height, x : x + width] + np.array([0, 10, 20], np.uint8) for y, x in steps])


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


def break_frame(path, number):
    """Overwrites the slice of one packet but not its length: sound to the probe, and nothing to the decoder."""
    with av.open(str(path)) as container:
        packet = [p for p in container.demux() if p.size][number]
    data = bytearray(path.read_bytes())
    data[packet.pos + 4 : packet.pos + 24] = b"\xff" * 20
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


def vfr_times(frames) -> list[int]:
    return np.random.default_rng(0).integers(10, 200, frames).cumsum().tolist()


def two_sizes(folder):
    parts = [encode(folder / f"{h}.264", drawing(20, h, 64), container="h264").read_bytes() for h in (48, 96)]
    (folder / "a.264").write_bytes(b"".join(parts))
    return folder / "a.264"


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
