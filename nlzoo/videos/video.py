"""The only door to the video decoders: what is in a file or a folder of frames, and exact frames out of it.

Unusual here: nothing believes a frame number that was computed from a time. `probe` walks the packets once and keeps
the presentation time of every frame; `read_frames` knows a frame by that time, starts decoding only at key frames
that the decoder confirms, and decodes from the start of the file when anything is not as the index says. Where
packets cannot tell (no times, AVI, transport streams, damage that shows) the file is decoded once and its frames are
counted. decord serves only where it is asked for, and refuses files that it was not measured to read right: on the
others it gives the same bits as PyAV and costs more (docs/decoding.md). Readers are opened and closed within one call
and decode with one thread, so workers may fork, and scale.
"""

import errno
import math
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from itertools import chain, pairwise
from typing import Any

import av
import av.logging
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.filter import Graph
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from ..core import archives, files
from ..core.errors import UsageError, VideoError
from ..core.text import did_you_mean, printable
from . import frame_folder

try:
    import decord
except (ImportError, OSError):  # not installed, or its libraries do not load: PyAV reads everything
    decord = None

EXTENSIONS = files.VIDEO_EXTENSIONS
DECODERS = ("auto", "decord", "pyav")
FOLDER = "folder"  # container of a folder of frames
MAX_SIDE = 8192  # pixels; an 8K frame is 7680 x 4320
MAX_PIXELS = 40_000_000  # per frame; FFmpeg holds about ten of them while it decodes

# Whole-file demuxers only: no playlists (hls, dash, concat, sdp), image sequences, devices or network.
_DEMUXERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,asf,flv,mpeg,mpegts,mpegvideo,m4v,ogg,gif,h264,hevc,h263,ivf,obu,mxf,"
    "dv,rm,nut,yuv4mpegpipe"
)
# Containers whose packet times are the frames' own, and codecs that give one frame per packet.
_TIMED_CONTAINERS = {"mov,mp4,m4a,3gp,3g2,mj2": "mp4", "matroska,webm": "mkv"}
_TIMED_CODECS = frozenset({"h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "h263", "mjpeg", "prores", "vvc"})
_CODEC_OF = {"libdav1d": "av1", "libaom-av1": "av1", "libvpx": "vp8", "libvpx-vp9": "vp9"}  # decoder name -> codec
# In mp4: samples of one size (`stsz`: size, count), and runs of samples (`trun`: flags, count; flags 0x000f00 say that
# each has fields of its own). All others have a table, which cannot be longer than the file.
_SAME_SIZES = re.compile(rb"stsz.{4}(.{4})(.{4})", re.DOTALL)
_RUNS = re.compile(rb"trun.(.{3})(.{4})", re.DOTALL)
_POINTER = 1024  # bytes; pointers of Git LFS are smaller
_JUMP = 4  # frames; a seek empties the decoder and costs about as much as decoding these
_DECORD_CODECS = frozenset({"h264", "vp8", "vp9"})

av.logging.set_level(None)  # libav talks on stderr; errors reach us as exceptions
if decord:
    decord.logging.set_level(decord.logging.QUIET)


@dataclass(frozen=True)
class Probe:
    """What is in a video file or a folder of frames, as `read_frames` will deliver it."""

    path: str  # absolute
    container: str  # "mp4", "mkv", "avi", "mpegts", …; FOLDER
    codec: str
    width: int  # pixels as displayed, after rotation
    height: int
    frames: int  # that a decode of the whole file yields
    fps: float  # mean
    duration: float  # seconds
    rotation: int  # degrees clockwise that it takes to display it: 0, 90, 180, 270
    base: float  # seconds per unit of `pts`
    variable: bool  # whether the time from a frame to the next changes by more than half a frame
    decord_doubt: str  # why decord may read it wrong; empty where it was measured to read such files right
    pts: np.ndarray | None = field(repr=False, compare=False)  # (frames,) int64, ascending, in stream units; or None
    keys: np.ndarray | None = field(repr=False, compare=False)  # ascending frame numbers where decoding may start
    missing: int = 0  # numbers that the pictures of a folder leave out
    series: frame_folder.Series | None = None  # the pictures of a folder, by their `pts`
    sound: bool = False  # whether there is a track of it that can be decoded

    def __post_init__(self) -> None:
        if self.series is not None:  # as JSON gives it back
            object.__setattr__(self, "series", frame_folder.Series(*self.series))

    @property
    def nbytes(self) -> int:
        """About how many bytes of memory it takes."""
        return 2000 + sum(array.nbytes for array in (self.pts, self.keys) if array is not None)


class _Mismatch(Exception):
    """What came out of a decoder is not what the index says."""


class ProbeCache:
    """The probes that this process used last, as many as `most` bytes hold."""

    def __init__(self, most: int):
        self.most = most
        self.clear()

    def clear(self) -> None:
        self.bytes = 0
        self._probes: dict[tuple[str, int, int], Probe] = {}  # the one used last comes last

    def get(self, path: str, size: int, mtime_ns: int, make: Callable[[str, int, int], Probe]) -> Probe:
        """The probe of a file in this state; `make(path, size, mtime_ns)` where it is not here."""
        key = path, size, mtime_ns
        info = self._probes.pop(key, None)
        if info is None:
            info = make(*key)
            self.bytes += info.nbytes
        self._probes[key] = info
        while self.bytes > self.most and len(self._probes) > 1:
            self.bytes -= self._probes.pop(next(iter(self._probes))).nbytes
        return info


PROBES = ProbeCache(most=64 * 2**20)  # in every worker; an hour of video takes 900 kB


def probe(path: str | os.PathLike) -> Probe:
    """What is in `path`; `VideoError` when it cannot be used. Remembered per process by path, size and mtime."""
    path = os.path.abspath(os.fspath(path))
    return PROBES.get(path, *_checked_state(path), probe_uncached)


def state(path: str | os.PathLike, trust: bool = False) -> frame_folder.State | None:
    """Size and time of change of a regular file or a folder of frames; None for anything else.

    `trust`: as for `frame_folder.state`.
    """
    with suppress(OSError, ValueError):  # ValueError: a NUL in the name
        info = archives.stat(path)
        if stat.S_ISREG(info.st_mode):
            return info.st_size, info.st_mtime_ns
        if stat.S_ISDIR(info.st_mode):
            return frame_folder.state(os.fspath(path), trust)
    return None


def sha256(path: str | os.PathLike) -> str:
    """Of a file's bytes, or of those of the frames of a folder, in hex. Raises `OSError`, `VideoError`."""
    name = os.fspath(path)
    return frame_folder.sha256(name) if archives.is_folder(name) else files.sha256(name)


def at_rate(info: Probe, fps: float) -> Probe:
    """The probe of a folder of frames, whose rate nobody knows by itself, at `fps` numbers a second; 0: as it is."""
    if not fps or info.series is None:
        return info
    faster = fps / frame_folder.RATE
    return replace(info, fps=info.fps * faster, duration=info.duration / faster, base=info.base / faster)


def span(info: Probe, start: float | None = None, end: float | None = None) -> tuple[int, int]:
    """`(first, count)`: the frames shown from second `start` up to, not including, second `end`; at least one.

    Seconds count from the first frame; None means the beginning or the end. An `end` past the video's is the video's.
    Raises `VideoError` where `start` lies at or after the end of the video.
    """
    start = start or 0.0
    end = info.duration if end is None else end
    if start >= info.duration:
        reason = f"is {info.duration:.3f} s long, and the part begins at {start:.3f} s"
        raise VideoError(reason, "fix the list, or remove the line", info.path)
    step = info.duration / info.frames
    times = np.arange(info.frames) * step if info.pts is None else (info.pts - info.pts[0]) * info.base
    rounding = step / 1000  # seconds in lists are rounded
    first, last = (int(i) for i in np.searchsorted(times, [start - rounding, end - rounding]))
    first = min(first, info.frames - 1)  # the last frame stays until the end
    return first, max(1, last - first)


def read_frames(
    path: str | os.PathLike,
    indices: Sequence[int],
    short_side: int | None = None,
    decoder: str = "auto",
    info: Probe | None = None,
) -> np.ndarray:
    """Frames `indices` (presentation order, any order, repeats allowed): uint8 (len(indices), H, W, 3), RGB, upright.

    With `short_side` the shorter side gets that many pixels, up or down, and the other the nearest whole number that
    keeps the aspect. `decoder` "auto" is "pyav"; "decord" refuses files that decord reads wrong. `info`: what `probe`
    gave for the file, where the caller has it. Raises `VideoError` for a file that cannot be used or a frame that is
    damaged, `IndexError` for a frame number that the video does not have.
    """
    info = info or probe(path)
    check_decoder(decoder)
    check_numbers(info, indices)
    rows: dict[int, list[int]] = {}  # frame number -> rows of the answer
    for row, index in enumerate(indices):
        rows.setdefault(int(index), []).append(row)
    height, width = scaled_size(info.height, info.width, short_side)
    _check_pixels(info, height, width)
    out = np.empty((len(indices), height, width, 3), np.uint8)
    numbers, size = sorted(rows), (height, width)
    frames = _by_decord(info, numbers, *size) if decoder == "decord" else images(info, numbers, size)
    for number, image in frames:
        out[rows[number]] = image
    return out


def check_numbers(info: Probe, numbers: Iterable[int]) -> None:
    """Raises `IndexError` for a frame number that the video does not have."""
    for number in numbers:
        if not 0 <= number < info.frames:
            raise IndexError(f"frame {number} of {info.frames}")


def images(
    info: Probe, numbers: Sequence[int], size: int | tuple[int, int] | None = None, pixels: str = "rgb24"
) -> Iterator[tuple[int, np.ndarray]]:
    """(number, uint8 (H, W, 3)) of frames, ascending and each once; one at a time in memory, otherwise `read_frames`.

    `size`: the short side or (H, W); None keeps it. With `pixels` "gray" (number, uint8 (H, W)) of the frames' luma:
    what RGB made grey is but for rounding, for less. Decoding stands still while nobody asks. Raises `VideoError`, at
    once or after those that could be read.
    """
    height, width = size if isinstance(size, tuple) else scaled_size(info.height, info.width, size)
    _check_pixels(info, height, width)
    return _converted(info, list(numbers), _Convert(height, width, info.rotation, pixels))


def _check_pixels(info: Probe, height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        reason = f"has frames of {info.width}x{info.height} pixels; scaled to {width}x{height} they are too large"
        raise VideoError(reason, "crop it first", info.path)


def scaled_size(height: int, width: int, short_side: int | None) -> tuple[int, int]:
    """(height, width) after scaling so that the shorter side is `short_side` pixels; None keeps the size."""
    if short_side is None:
        return height, width
    if short_side < 1:
        raise ValueError(f"short_side must be at least 1, not {short_side}")
    if height <= width:
        return short_side, max(short_side, round(width * short_side / height))
    return max(short_side, round(height * short_side / width)), short_side


def backends() -> dict[str, str]:
    """Decoder name -> its version, and the FFmpeg libraries of PyAV."""
    numbers = {name: map(str, av.library_versions[name]) for name in ("libavcodec", "libavformat", "libswscale")}
    libraries = ", ".join(f"{name} {'.'.join(version)}" for name, version in numbers.items())
    versions = {"pyav": f"{av.__version__} ({libraries})"}
    if decord:
        versions["decord"] = decord.__version__
    return versions


# Probing


@dataclass(frozen=True, slots=True)
class _Packet:
    """What the probe keeps of one packet, in decode order."""

    pts: int | None
    key: bool
    discard: bool  # decoded but not shown: outside the edit list
    hidden: bool  # VP8 alternate reference: decoded, never shown


@dataclass(frozen=True)
class _First:
    """The first frame that came out of the decoder."""

    pts: int | None
    height: int  # pixels as stored
    width: int
    rotation: int  # degrees clockwise: 0, 90, 180, 270


@dataclass(frozen=True)
class _Walk:
    """What one pass over all packets of a file shows."""

    path: str
    container: str  # FFmpeg's name of it
    codec: str
    rate: float  # frames a second, as the header says
    base: float  # seconds per unit of time
    packets: list[_Packet]  # in decode order
    first: _First
    whole: bool  # to the end, without a damaged packet
    sound: bool  # whether there is a track of it that can be decoded

    @property
    def timed(self) -> bool:
        """Whether containers and codecs of these kinds have dependable times."""
        return self.container in _TIMED_CONTAINERS and self.codec in _TIMED_CODECS

    def is_exact(self) -> bool:
        """Whether the packets alone tell which frames a decode of the whole file yields."""
        if not self.timed or not self.whole:
            return False
        visible = [p.pts for p in self.packets if not p.discard]
        times = {t for t in visible if t is not None}
        return (
            0 < len(times) == len(visible)
            and not any(p.hidden for p in self.packets)
            and self.packets[0].key
            and self.first.pts == min(times)  # a stream cut inside a GOP loses its first frames
        )


def _checked_state(path: str) -> frame_folder.State:
    """As `state`; what is no video is refused before it is opened: opening a pipe or a device can block for ever."""
    try:
        info = archives.stat(path)
    except FileNotFoundError:
        raise VideoError("does not exist", "check the path", path) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoError(f"cannot be read: {reason}", "check the path and its permissions", path) from None
    if stat.S_ISDIR(info.st_mode):
        state = frame_folder.state(path)
        if state is None:
            raise VideoError("is a folder without numbered pictures, not a video", "name the video files in it", path)
        return state
    if not stat.S_ISREG(info.st_mode):
        raise VideoError("is not a regular file", "pipes, sockets, devices: save it to a file first", path)
    if info.st_size == 0:
        raise VideoError("is empty", "download or copy it again", path)
    if info.st_size < _POINTER:  # a clone without Git LFS holds them in the place of large files
        with suppress(OSError), archives.open_file(path) as file:
            if file.read(40).startswith(b"version https://git-lfs.github.com/"):
                raise VideoError("is a pointer of Git LFS, not the video", "git lfs pull", path)
    return info.st_size, info.st_mtime_ns


def probe_uncached(path: str, size: int, mtime_ns: int) -> Probe:
    """`probe`; `size` and `mtime_ns` only tell two states of a file apart."""
    if archives.is_folder(path):
        return _probe_folder(path)
    if path.lower().endswith(frame_folder.ANIMATED):
        return _probe_animation(path)
    walk = _walk(path)
    first = walk.first
    exact = walk.is_exact()
    times = sorted(p.pts for p in walk.packets if not p.discard and p.pts is not None) if exact else _count(path)
    pts = _ascending(times) if walk.timed else None
    rate, duration = _rate_and_duration(walk, len(times), pts)
    doubt = _decord_doubt(walk, pts) if exact and pts is not None else "its frames had to be counted"
    height, width = first.height, first.width
    if first.rotation in (90, 270):
        height, width = width, height
    return Probe(
        path=path,
        container=_TIMED_CONTAINERS.get(walk.container, walk.container.split(",")[0]),
        codec=walk.codec,
        width=width,
        height=height,
        frames=len(times),
        fps=rate,
        duration=duration,
        rotation=first.rotation,
        base=walk.base,
        variable=pts is not None and _is_variable(pts),
        decord_doubt=doubt,
        pts=pts,
        keys=None if pts is None else _safe_keys(walk.packets, pts),
        sound=walk.sound,
    )


def _probe_folder(path: str) -> Probe:
    """Reads the header of every picture.

    Time is counted by their numbers at `frame_folder.RATE`. Where more are missing than there, as among times or a
    choice, the rate is the mean one.
    """
    series, places = frame_folder.series(path)
    height, width = _size_of_pictures(path, series, places)
    frames, missing = len(places), int(places[-1]) + 1 - len(places)
    base = 1 / frame_folder.RATE
    if missing > frames:
        base, missing = base * (frames - 1) / int(places[-1]), 0
    step = int(places[-1]) * base / max(1, frames - 1) or base
    return Probe(
        path=path,
        container=FOLDER,
        codec=series.kind,
        width=width,
        height=height,
        frames=frames,
        fps=1 / step,
        duration=step * frames,
        rotation=0,
        base=base,
        variable=_is_variable(places),
        decord_doubt="a folder of frames",
        pts=places,
        keys=None,
        missing=missing,
        series=series,
    )


def _probe_animation(path: str) -> Probe:
    """Decodes an animated WebP once, as it says nowhere how many pictures it has, nor when."""
    times, end, size = [], 0.0, (0, 0)
    try:
        for start, duration, image in frame_folder.frames(path, partial(_check_size, path)):
            times.append(round(start))
            end, size = start + duration, image.shape[:2]
    except frame_folder.Damaged as damage:
        raise VideoError(
            f"is no animation that can be read: {damage}", "download it again, or remove it", path
        ) from None
    if len(times) < 2:
        raise VideoError("is a picture, not a video", "frames of a video lie in a folder of their own", path)
    pts = _ascending(times)
    duration = end / 1000 if end and pts is not None else len(times) / frame_folder.RATE
    return Probe(
        path=path,
        container="webp",
        codec="webp",
        width=size[1],
        height=size[0],
        frames=len(times),
        fps=len(times) / duration,
        duration=duration,
        rotation=0,
        base=1 / 1000,
        variable=pts is not None and _is_variable(pts),
        decord_doubt="decord does not read WebP",
        pts=pts,
        keys=None,
    )


def _size_of_pictures(path: str, series: frame_folder.Series, places: np.ndarray) -> tuple[int, int]:
    """(height, width) of the first; the others have its shape, but for a pixel of rounding."""
    height = width = 0
    for number, place in enumerate(places.tolist()):
        name = series.name(place)
        try:
            size = frame_folder.size(os.path.join(path, name), partial(_check_size, path))
        except frame_folder.Damaged as damage:
            raise _damaged_picture(path, number, len(places), name, damage) from None
        height, width = (height, width) if number else size
        if abs(size[1] * height - size[0] * width) > max(*size, height, width):
            shapes = f"{series.name(0)} has {width}x{height} pixels and {name} {size[1]}x{size[0]}"
            raise VideoError(f"holds pictures of several shapes: {printable(shapes)}", "crop them alike", path)
    return height, width


def _damaged_picture(path: str, number: int, frames: int, name: str, damage: Exception) -> VideoError:
    reason = f"is damaged: frame {number} of {frames} ({printable(name)}) cannot be decoded: {damage}"
    return VideoError(reason, "leave the folder out, or extract its frames again", path)


def _check_size(path: str, width: int, height: int) -> None:
    """Raises `VideoError` for frames that are too large to decode."""
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise VideoError(
            f"has frames of {width}x{height} pixels;"
            f" the limit is {MAX_SIDE} a side and {MAX_PIXELS // 1_000_000} million in all",
            "scale it down first",
            path,
        )


def _walk(path: str) -> _Walk:
    """Reads every packet, and decodes until the first frame comes. `VideoError` where none does."""
    try:
        _check_boxes(path)
    except OSError as error:
        raise _unreadable(path, error) from None
    packets: list[_Packet] = []
    first, whole = None, True
    with _opened(path) as (container, stream):
        name, codec = container.format.name, stream.codec_context.name
        codec = _CODEC_OF.get(codec, codec)
        prefix = _length_prefix(stream.codec_context)
        try:
            for packet in _packets(container, stream):
                if packet.size:
                    hidden = codec == "vp8" and not bytes(packet)[0] & 0x10  # show_frame bit, RFC 6386 section 9.1
                    packets.append(_Packet(packet.pts, packet.is_keyframe, packet.is_discard, hidden))
                    whole = whole and not packet.is_corrupt and _sound(packet, prefix)
                if first is None:
                    first = _first_frame(packet)
        except av.error.FFmpegError:
            whole = False
        rate = float(stream.average_rate or stream.guessed_rate or 25)
        base = float(stream.time_base or 1)
        audio = container.streams.best("audio")
        sound = audio is not None and audio.codec_context is not None
    if first is None:
        raise _no_frames(path, packets)
    return _Walk(path, name, codec, rate, base, packets, first, whole, sound)


def _first_frame(packet: av.Packet) -> _First | None:
    with suppress(av.error.FFmpegError):  # a later packet may do; if none does, the caller says so
        for frame in packet.decode():
            return _First(frame.pts, frame.height, frame.width, -round(frame.rotation / 90) * 90 % 360)
    return None


def _ascending(times: Sequence[int | None]) -> np.ndarray | None:
    """The times as int64, where none is missing and each is later than the one before."""
    known = [t for t in times if t is not None]
    if len(known) < len(times) or any(a >= b for a, b in pairwise(known)):
        return None
    return np.array(known, np.int64)


def _rate_and_duration(walk: _Walk, frames: int, pts: np.ndarray | None) -> tuple[float, float]:
    """Mean frames a second, and seconds: those of the times where there are any, else those of the header."""
    rate = walk.rate
    if pts is None or frames < 2:
        return rate, frames / rate
    step = (int(pts[-1]) - int(pts[0])) * walk.base / (frames - 1)
    if abs(step * rate - 1) > 0.01:  # the header's rate is rounded better, but knows nothing of cuts and gaps
        rate = 1 / step
    return rate, step * frames


def _is_variable(pts: np.ndarray) -> bool:
    """Whether the time from a frame to the next changes by more than half a frame."""
    if len(pts) < 3:
        return False
    half = (int(pts[-1]) - int(pts[0])) / (len(pts) - 1) / 2
    return bool(np.ptp(np.diff(pts)) > max(1, half))


def _length_prefix(context: VideoCodecContext) -> int:
    """Bytes of the length before each NAL unit of H.264 or HEVC in mp4 and mkv; 0 for anything else."""
    setup = context.extradata or b""
    at = {"h264": 4, "hevc": 21}.get(context.name, 0)
    if not at or len(setup) <= at or setup[0] != 1:
        return 0
    return (setup[at] & 3) + 1


def _sound(packet: av.Packet, prefix: int) -> bool:
    """Whether the NAL units of a packet add up to it: overwritten and zeroed blocks show here, without decoding."""
    if not prefix:
        return True
    data, at = bytes(packet), 0
    while at < len(data):
        size = int.from_bytes(data[at : at + prefix], "big")
        if size == 0:
            return False
        at += prefix + size
    return at == len(data)


def _safe_keys(packets: list[_Packet], pts: np.ndarray) -> np.ndarray:
    """Frame numbers of key frames after which no packet brings a frame that the packets before them should have."""
    number = {int(time): i for i, time in enumerate(pts)}
    keys = []
    latest = -math.inf
    for packet in packets:
        if packet.pts is None:
            continue
        if packet.key and packet.pts in number and packet.pts > latest:
            keys.append(number[packet.pts])
        latest = max(latest, packet.pts)
    return np.array(keys, np.int64)


def _count(path: str) -> list[int | None]:
    """Times of all frames in the order in which they come out, by decoding the file once."""
    with _opened(path) as (container, stream):
        return [frame.pts for frame in all_frames(container, stream)]


def _decord_doubt(walk: _Walk, pts: np.ndarray) -> str:
    """Why decord may read a file with dependable times wrong; empty when it does not."""
    if decord is None:
        return "decord2 is not installed"
    doubts = (
        (archives.is_member(walk.path), "decord does not read archives"),
        (not walk.path.isprintable(), "a name that decord may not open"),
        (walk.codec not in _DECORD_CODECS, f"decord does not read {walk.codec} right"),
        (walk.first.rotation, "decord scales after it rotates"),
        (min(walk.first.height, walk.first.width) < 16, "frames too small for decord"),
        (any(p.discard for p in walk.packets), "edit list: decord shows frames that were cut"),
        (len(pts) > 2 and np.ptp(np.diff(pts)) > 1, "variable frame rate"),
        (_has_open_gop(walk.packets), "open GOPs: decord seeks wrong"),
    )
    return next((words for holds, words in doubts if holds), "")


def _has_open_gop(packets: list[_Packet]) -> bool:
    """Whether a frame is shown before the key frame that it comes after."""
    latest_key = -math.inf
    for packet in packets:
        time = -math.inf if packet.pts is None else packet.pts
        if packet.key:
            latest_key = time
        elif time < latest_key:
            return True
    return False


def _check_boxes(path: str) -> None:
    """Raises `VideoError` for an mp4 that is encrypted, or declares more samples than it has bytes.

    FFmpeg makes an index entry for each sample at once: a file of 10 kB took 970 MiB.
    """
    size = archives.stat(path).st_size
    for content in _boxes(path, size):
        if b"encv" in content and b"sinf" in content:
            raise VideoError("is encrypted", "get a copy without DRM", path)
        counts = [count for sample_size, count in _SAME_SIZES.findall(content) if any(sample_size)]
        counts += [count for flags, count in _RUNS.findall(content) if not flags[1] & 0x0F]
        if any(int.from_bytes(count, "big") > size for count in counts):
            raise VideoError("declares more frames than it has bytes", "download it again, or remove it", path)


def _boxes(path: str, size: int) -> Iterator[bytes]:
    """The content of the boxes of an mp4 that describe its samples, `moov` and `moof`: at most 64 MiB of each."""
    at = 0
    with archives.open_file(path) as file:
        while at + 8 <= size:
            file.seek(at)
            header = file.read(16)
            length = int.from_bytes(header[:4], "big")
            start = 8
            if length == 1:
                start, length = 16, int.from_bytes(header[8:], "big")
            elif length == 0:
                length = size - at
            if length < start:
                return
            if header[4:8] in (b"moov", b"moof"):
                file.seek(at + start)
                yield file.read(min(length - start, 1 << 26))
            at += length


def _no_frames(path: str, packets: list[_Packet]) -> VideoError:
    if not packets:
        return VideoError("has a video track without frames", "join the parts of the stream first", path)
    return VideoError(
        f"holds {len(packets)} video packets and none can be decoded", "download or encode it again", path
    )


def _unreadable(path: str, error: av.error.FFmpegError | OSError) -> VideoError:
    if isinstance(error, av.error.ArgumentError):  # what FFmpeg says of a demuxer outside the list
        return VideoError("is not a kind of video file that is read here", "convert it to mp4 (H.264)", path)
    if isinstance(error, av.error.InvalidDataError):
        return VideoError("is not a video, or is cut off", "download it again, or remove it", path)
    return VideoError(f"cannot be read: {error.strerror}", "check the file and its permissions", path)


# Decoding


def check_decoder(decoder: str) -> None:
    """Raises `UsageError` for a decoder that there is not, or not here."""
    if decoder not in DECODERS:
        hint = did_you_mean(decoder, DECODERS, f"choose one of {', '.join(DECODERS)}")
        raise UsageError(f"there is no decoder {decoder!r}", hint)
    if decoder == "decord" and decord is None:
        raise UsageError("decord is not installed", "pip install decord2, or leave the choice to nlzoo")


def _converted(info: Probe, numbers: list[int], convert: "_Convert") -> Iterator[tuple[int, np.ndarray]]:
    for number, frame in _source(info)(info, numbers):
        try:
            yield number, convert(frame)
        except av.error.FFmpegError as error:
            reason = f"has {frame.format.name} pixels that cannot be made {convert.pixels}: {error.strerror}"
            raise VideoError(reason, "encode it again", info.path) from None


def _source(info: Probe) -> Callable[[Probe, list[int]], Iterator[tuple[int, av.VideoFrame]]]:
    """What gives the frames of a video of its kind."""
    if info.series is not None:
        return _pictures
    return _animated if info.container == "webp" else _frames


def _animated(info: Probe, numbers: list[int]) -> Iterator[tuple[int, av.VideoFrame]]:
    """(number, frame) for each of `numbers` (ascending, unique), of an animated WebP, decoded from its start."""
    left = set(numbers)
    with suppress(frame_folder.Damaged):
        for number, (_, _, image) in enumerate(frame_folder.frames(info.path, partial(_check_size, info.path))):
            if number in left:
                yield number, av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
                left.remove(number)
            if not left:
                return
    reason = f"is damaged: frame {min(left)} of {info.frames} cannot be decoded"
    raise VideoError(reason, "leave the file out, or encode it again", info.path)


def _pictures(info: Probe, numbers: list[int]) -> Iterator[tuple[int, av.VideoFrame]]:
    """(number, frame) for each of `numbers`, of a folder."""
    assert info.series is not None and info.pts is not None
    for number in numbers:
        name = info.series.name(int(info.pts[number]))
        try:
            image = frame_folder.read(os.path.join(info.path, name), partial(_check_size, info.path))
        except frame_folder.Damaged as damage:
            raise _damaged_picture(info.path, number, info.frames, name, damage) from None
        yield number, av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")


def _by_decord(info: Probe, numbers: list[int], height: int, width: int) -> Iterable[tuple[int, np.ndarray]]:
    """(number, RGB (height, width, 3)), the same bits as PyAV's; `VideoError` when decord cannot be relied on."""
    size = {} if (height, width) == (info.height, info.width) else {"height": height, "width": width}
    try:
        if info.decord_doubt:
            raise _Mismatch(info.decord_doubt)
        # fault_tol: without it decord hands out copies of the last good frame for damaged ones
        reader = decord.VideoReader(info.path, num_threads=1, fault_tol=1e-9, **size)
        if len(reader) != info.frames:
            raise _Mismatch(f"it counts {len(reader)} frames, not {info.frames}")
        images = reader.get_batch(numbers).asnumpy()
        if images.shape != (len(numbers), height, width, 3):
            raise _Mismatch(f"frames of {images.shape[2]}x{images.shape[1]} pixels, not {width}x{height}")
    except Exception as error:  # of several unrelated classes; all mean: not with decord
        reason = (str(error).splitlines() or ["no reason given"])[-1]
        raise VideoError(f"cannot be read by decord: {reason}", "omit --decoder", info.path) from None
    return zip(numbers, images, strict=True)


@contextmanager
def opened_file(path: str) -> Iterator[InputContainer]:
    """The container of a file, or of one in an archive, within the limits on kinds and sizes; closed at the end."""
    limits = {"max_pixels": str(MAX_PIXELS), "format_whitelist": _DEMUXERS, "protocol_whitelist": "file"}
    with ExitStack() as stack:
        try:
            place = stack.enter_context(closing(_Member(path))) if archives.is_member(path) else path
            container = stack.enter_context(av.open(place, "r", options=limits, metadata_errors="replace"))
        except (av.error.FFmpegError, OSError) as error:
            raise _unreadable(path, error) from None
        yield container


@contextmanager
def _opened(path: str, strict: bool = False) -> Iterator[tuple[InputContainer, VideoStream]]:
    """(container, video stream) of a file, single-threaded and within the size limits; closed at the end.

    `strict` decoding raises on damage that the decoder would otherwise paint over.
    """
    with opened_file(path) as container:
        stream = _video_stream(container, path)
        options = {"max_pixels": str(MAX_PIXELS)}  # again: frames may grow after the header
        stream.codec_context.options = options | ({"err_detect": "explode"} if strict else {})
        stream.codec_context.thread_count = 1
        yield container, stream


class _Member:
    """A file in an archive for PyAV, which gives what goes wrong to FFmpeg as the system would: no Python error does.

    FFmpeg tries the ends of damaged files, and where PyAV meets a Python error it forgets the frames that were good.
    """

    def __init__(self, path: str) -> None:
        self.name = path  # FFmpeg looks at its ending
        self._file = archives.open_file(path)
        self.tell, self.close = self._file.tell, self._file.close

    def read(self, count: int) -> bytes:
        """As many bytes, or those that there are; none where the disk fails."""
        try:
            return self._file.read(count)
        except OSError:
            return b""

    def seek(self, offset: int, whence: int) -> int:
        """The new place, or a number below 0."""
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError):
            return -errno.EINVAL


def _video_stream(container: InputContainer, path: str) -> VideoStream:
    """The stream that FFmpeg would play; refused when there is none or its frames are too large to decode."""
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:  # the cover of a song
        raise VideoError("has no video track", "remove it from the folder", path)
    context = stream.codec_context
    if context is None:
        raise VideoError("has a codec that this FFmpeg cannot decode", "convert it to mp4 (H.264)", path)
    _check_size(path, context.width, context.height)
    return stream


def _packets(container: InputContainer, stream: VideoStream | AudioStream) -> Iterator[av.Packet]:
    """The packets of a stream, and an empty one at the end that makes the decoder give what it holds back."""
    with suppress(IndexError):  # PyAV trips at the end over other streams that came late, as in damaged files
        yield from container.demux(stream)


def all_frames(container: InputContainer, stream: VideoStream | AudioStream) -> Iterator[Any]:
    """Every frame from where the container stands, past packets that cannot be decoded."""
    with suppress(av.error.FFmpegError):  # the rest cannot be reached
        for packet in _packets(container, stream):
            with suppress(av.error.FFmpegError):
                yield from packet.decode()


def _frames(info: Probe, numbers: list[int]) -> Iterator[tuple[int, av.VideoFrame]]:
    """(number, frame) for each of `numbers` (ascending, unique)."""
    done = 0
    if info.pts is not None and info.keys is not None:
        with suppress(_Mismatch, av.error.FFmpegError):  # walking comes to the same frames, or says what is damaged
            for pair in _by_seeking(info.path, _Index(info.pts, info.keys), numbers):
                yield pair
                done += 1
            return
    yield from _by_walking(info, numbers[done:])


@dataclass(frozen=True)
class _Index:
    """The times of all frames, and the numbers of those where decoding may start; both ascend."""

    pts: np.ndarray
    keys: np.ndarray

    def number(self, pts: int | None) -> int:
        """Frame number of a presentation time."""
        number = int(np.searchsorted(self.pts, -1 if pts is None else pts))
        if pts is None or number >= len(self.pts) or self.pts[number] != pts:
            raise _Mismatch("a time that is not in the index")
        return number

    def key_before(self, number: int) -> int:
        """The last frame up to `number` where decoding may start."""
        before = int(np.searchsorted(self.keys, number, "right"))
        return int(self.keys[before - 1]) if before else 0


def _by_seeking(path: str, index: _Index, numbers: list[int]) -> Iterator[tuple[int, av.VideoFrame]]:
    """`_frames` with jumps over what is not needed; `_Mismatch` where a frame does not come out as indexed.

    Strict, because what a decoder paints over damage depends on what it decoded before: walking gives that the same
    every time.
    """
    times = {int(index.pts[number]) for number in numbers}
    with _opened(path, strict=True) as (container, stream):
        position, run = 0, _run(index, container, stream, times, None)
        for number in numbers:
            key = index.key_before(number)
            if key > position + _JUMP:
                container.seek(int(index.pts[key]), stream=stream)
                run = _run(index, container, stream, times, key)
            position, frame = next((pair for pair in run if pair[0] >= number), (-1, None))
            if position != number or frame is None:
                raise _Mismatch(f"frame {number} is missing")
            yield number, frame
            position += 1


def _run(
    index: _Index, container: InputContainer, stream: VideoStream, times: set[int], key: int | None
) -> Iterator[tuple[int, av.VideoFrame]]:
    """(number, frame), ascending, from where the container stands: the start, or a key frame up to `key`.

    Frames outside `times` may be missing.
    """
    packets = _packets(container, stream)
    start = 0
    if key is not None:
        start, packets = _landed(index, packets, key)
    begin = int(index.pts[start])
    last = start - 1
    sure = key is None  # else not before the decoder agrees that it stands on a key frame: file headers have lied
    for frame in _decoded(packets, stream, times, begin if start else None):
        if not sure and frame.pts is not None and frame.pts < begin:
            continue  # open GOP: shown before the key frame, predicted from what came before it
        number = index.number(frame.pts)
        expected = number > last if sure else number == start and frame.key_frame
        if frame.is_corrupt or not expected:
            raise _Mismatch("frames come out of order")
        sure, last = True, number
        yield number, frame


def _landed(index: _Index, packets: Iterator[av.Packet], key: int) -> tuple[int, Iterator[av.Packet]]:
    """The number of the key frame, up to `key`, that a seek has led to, and the packets from there."""
    first = next(packets, None)
    if first is not None and first.is_keyframe:
        start = index.number(first.pts)
        if start <= key and start in index.keys:
            return start, chain([first], packets)
    raise _Mismatch("the seek went astray")


def _decoded(
    packets: Iterable[av.Packet], stream: VideoStream, times: set[int], begin: int | None
) -> Iterator[av.VideoFrame]:
    """The frames of `packets`; those outside `times` are left out where no other frame needs them.

    Packets of an open GOP, from before time `begin`, may be undecodable.
    """
    skippable = stream.codec_context.name == "h264"  # the one codec where "not a reference" is strict
    for packet in packets:
        if skippable:
            needed = not packet.size or packet.pts in times
            stream.codec_context.skip_frame = "DEFAULT" if needed else "NONREF"
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            if begin is None or packet.pts is None or packet.pts >= begin:
                raise
            continue
        yield from frames


def _by_walking(info: Probe, numbers: list[int]) -> Iterator[tuple[int, av.VideoFrame]]:
    """`_frames` by decoding from the start: by count where there are no dependable times, else by time."""
    left = {number if info.pts is None else int(info.pts[number]): number for number in numbers}
    with _opened(info.path) as (container, stream):
        for count, frame in enumerate(all_frames(container, stream)):
            at = count if info.pts is None else frame.pts
            number = None if at is None else left.pop(at, None)
            if number is not None:
                yield number, frame
            if not left:
                return
    raise VideoError(
        f"is damaged: frame {min(left.values())} of {info.frames} cannot be decoded",
        "leave the file out, or encode it again",
        info.path,
    )


class _Convert:
    """Frames to RGB (height, width, 3), or `gray` (height, width), turned by `rotation` degrees clockwise.

    Through FFmpeg's scale filter, as ffmpeg and decord do: bare swscale calls put the chroma of 4:2:0 half a pixel off
    when they scale. Bicubic; the filter widens when it shrinks, so nothing aliases.
    """

    def __init__(self, height: int, width: int, rotation: int, pixels: str = "rgb24"):
        self.pixels = pixels
        self.turns = -(rotation // 90)  # counter-clockwise, for rot90
        self.size = f"{height}:{width}" if self.turns % 2 else f"{width}:{height}"
        self.kind: tuple = ()  # of the frames that `graph` is for
        self.graph = Graph()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        kind = frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range
        if kind != self.kind:  # the first frame; later only where a stream changes its size or colours
            self.kind, self.graph = kind, self._build(frame)
        self.graph.push(frame)
        image = self.graph.vpull().to_ndarray()
        return np.rot90(image, self.turns) if self.turns else image

    def _build(self, frame: av.VideoFrame) -> Graph:
        graph = Graph()
        graph.threads = 1  # not one for each core, in every worker
        source = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1, 1000)
        )
        scale = graph.add("scale", f"{self.size}:flags=bicubic")
        graph.link_nodes(source, scale, graph.add("format", self.pixels), graph.add("buffersink")).configure()
        return graph
