"""Sound as pictures: log-mel patches of 0.96 s around the frames that a clip shows, as bytes.

The numbers are VGGish's (Hershey et al., 2017): 16 kHz mono, windows of 25 ms every 10 ms, 64 mel bands from 125 to
7500 Hz, log(mel + 0.01) of magnitudes. A patch is a picture of one channel, bands from high (top) to low and time to
the right; from there on it is cut, loaded and normalised as frames are. Unusual: each patch is decoded by itself, with
some sound before it for the decoder to settle in, so that it does not depend on which others are asked for (but for
codecs that draw noise, as AAC does: a byte in a thousand then differs by one).
"""

import functools
from collections.abc import Iterator, Sequence
from contextlib import suppress

import av
import numpy as np
import torch
from av.audio.stream import AudioStream
from av.container import InputContainer

from ..core.errors import VideoError
from . import video

NONE = "has no sound"  # the reason of the `VideoError`
RATE = 16_000  # samples a second
WINDOW, HOP, TRANSFORM = 400, 160, 512  # samples
BANDS, STEPS = 64, 96  # of a patch: height and width
LOWEST, HIGHEST = 125.0, 7500.0  # Hz
OFFSET = 0.01  # added before the logarithm
QUIET, LOUD = float(np.log(OFFSET)), 5.0  # logarithms that bytes 0 and 255 stand for; a full-scale tone has about 4.6
SAMPLES = (STEPS - 1) * HOP + WINDOW  # of a patch
SPAN = 1.2  # seconds that are read for one: the margins take what the change of rate does at the ends
ROUNDED = 0.005  # seconds, by which a packet's time may be off: Matroska counts milliseconds; more is a gap
SETTLE = 0.25  # seconds before that, in which a decoder that was sought to finds its state


@functools.cache
def filterbank() -> np.ndarray:
    """float64 (BANDS, TRANSFORM // 2 + 1): triangles that are straight in mel (HTK's, 1127 ln(1 + f / 700))."""

    def mel(hertz: np.ndarray | float) -> np.ndarray:
        return 1127 * np.log1p(np.asarray(hertz) / 700)

    edges = np.linspace(mel(LOWEST), mel(HIGHEST), BANDS + 2)[:, None]
    bins = mel(np.arange(TRANSFORM // 2 + 1) * RATE / TRANSFORM)
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(rising, falling))


def log_mel(samples: np.ndarray) -> np.ndarray:
    """float64 (BANDS, n) of mono samples at `RATE`, low bands first; n windows fit into them."""
    windows = np.lib.stride_tricks.sliding_window_view(samples.astype(np.float64), WINDOW)[::HOP]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    magnitudes = torch.from_numpy(np.abs(np.fft.rfft(windows * hann, TRANSFORM)))
    # by torch, which workers keep to one thread; numpy's library would take all cores in each of them
    return np.log((torch.from_numpy(filterbank()) @ magnitudes.T).numpy() + OFFSET)


def quantise(values: np.ndarray) -> np.ndarray:
    """Logarithms as bytes: `QUIET` is 0, `LOUD` 255."""
    return np.rint((np.clip(values, QUIET, LOUD) - QUIET) * (255 / (LOUD - QUIET))).astype(np.uint8)


def images(info: video.Probe, numbers: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """(number, uint8 (BANDS, STEPS, 1)) of frames: the patch whose middle is when the frame is shown.

    Beyond the ends of the sound, and where it is damaged, there is silence. Raises `VideoError` where there is none.
    """
    if not info.sound:
        raise VideoError(NONE, "leave it out, or use --stream rgb or flow", info.path)
    with video.opened_file(info.path) as container:
        stream = container.streams.best("audio")
        if not isinstance(stream, AudioStream) or not stream.rate:
            raise VideoError(NONE, "leave it out, or use --stream rgb or flow", info.path)
        stream.codec_context.thread_count = 1
        for number in numbers:
            # seconds on the clock that the tracks of a file share
            middle = number / info.fps if info.pts is None else float(info.pts[number]) * info.base
            samples = _resampled(_samples(container, stream, middle - SPAN / 2, stream.rate))
            start = (len(samples) - SAMPLES) // 2
            yield number, quantise(log_mel(samples[start : start + SAMPLES]))[::-1, :, None]


def _samples(container: InputContainer, stream: AudioStream, start: float, rate: int) -> np.ndarray:
    """Mono float64 samples at the track's own `rate`, `SPAN` seconds from `start` on; 0 where there are none."""
    out = np.zeros(round(SPAN * rate))
    to_float = av.AudioResampler(format="fltp")  # the rate and the channels stay
    _seek(container, stream, start - SETTLE)
    following = None  # where the next samples belong, if nothing is missing
    for frame in video.all_frames(container, stream):
        if frame.time is None:
            continue
        first = round((frame.time - start) * rate)
        if following is not None and abs(first - following) < ROUNDED * rate:
            first = following
        if first >= len(out):
            break
        values = np.concatenate([part.to_ndarray().mean(0, dtype=np.float64) for part in to_float.resample(frame)])
        following = first + len(values)
        begin, end = max(first, 0), min(following, len(out))
        if end > begin:
            out[begin:end] = values[begin - first : end - first]
    return out


def _seek(container: InputContainer, stream: AudioStream, second: float) -> None:
    """To a packet at or before that time, or to the first; where a file cannot be sought in, it stays where it is."""
    base = float(stream.time_base or 1)
    with suppress(av.error.FFmpegError):
        container.seek(max(stream.start_time or 0, round(second / base)), stream=stream)
    stream.codec_context.flush_buffers()


def _resampled(samples: np.ndarray) -> np.ndarray:
    """`SPAN` seconds of samples at any rate as those at `RATE`, by their spectrum."""
    count = round(SPAN * RATE)
    spectrum = np.fft.rfft(samples)
    kept = np.zeros(count // 2 + 1, complex)
    few = min(len(kept), len(spectrum))
    kept[:few] = spectrum[:few]
    return np.fft.irfft(kept, count) * (count / len(samples))
