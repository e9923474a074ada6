"""Log-mel patches in step with the frames: the formula in float64, the right moment, and silence where nothing is."""

import numpy as np
import pytest
from drawn import drawing, encode
from sounds import FPS, tone, with_sound

from nlzoo.core.errors import UsageError, VideoError
from nlzoo.core.view_spec import ClipSpec, for_stream, parse_augment
from nlzoo.videos import loader, records, sound, streams, video


def reference(samples):
    """VGGish's numbers, band by band and window by window, in float64: `(64, n)`."""
    hann = np.array([0.5 - 0.5 * np.cos(2 * np.pi * n / 400) for n in range(400)])
    mel = [1127.0 * np.log(1 + f / 700) for f in (125.0, 7500.0)]
    edges = 700 * (np.exp(np.linspace(*mel, 66) / 1127) - 1)
    to_mel = 1127 * np.log(1 + np.append(edges, 0)[:66] / 700)
    columns = []
    for start in range(0, len(samples) - 399, 160):
        spectrum = np.abs(np.fft.fft(np.append(samples[start : start + 400] * hann, np.zeros(112)))[:257])
        bands = []
        for band in range(64):
            total = 0.0
            for k in range(257):
                m = 1127 * np.log(1 + k * 31.25 / 700)
                up = (m - to_mel[band]) / (to_mel[band + 1] - to_mel[band])
                down = (to_mel[band + 2] - m) / (to_mel[band + 2] - to_mel[band + 1])
                total += max(0.0, min(up, down)) * spectrum[k]
            bands.append(np.log(total + 0.01))
        columns.append(bands)
    return np.array(columns).T


def test_log_mel_is_the_formula_in_float64(seed):
    samples = np.random.default_rng(seed).uniform(-1, 1, 400 + 3 * 160)
    assert np.abs(sound.log_mel(samples) - reference(samples)).max() < 1e-9


@pytest.mark.parametrize(
    "rate, codec, channels", [(16_000, "pcm_s16le", 1), (44_100, "pcm_s16le", 2), (48_000, "aac", 1)]
)
def test_a_patch_is_the_sound_around_its_frame(tmp_path, rate, codec, channels):
    """Two tones, one after the other: the patch of a frame changes from one to the other where the sound does."""
    hertz = 440.0, 3000.0
    path = with_sound(tmp_path / "a.mkv", np.concatenate([tone(1, f, rate) for f in hertz]), rate, 50, codec, channels)
    info = video.probe(path)
    assert info.sound and info.frames == 50
    clear = np.concatenate([tone(1, f) for f in hertz])
    numbers = [12, 25, 30, 40]
    got = streams.read_frames(info, numbers, 112, "audio")
    assert got.shape == (4, 64, 96, 1) and got.dtype == np.uint8
    for number, patch in zip(numbers, got):
        first = round(number / FPS * 16_000) - sound.SAMPLES // 2
        padded = np.concatenate([np.zeros(16_000), clear, np.zeros(16_000)])
        expected = sound.quantise(sound.log_mel(padded[16_000 + first :][: sound.SAMPLES]))[::-1]
        apart = np.abs(patch[..., 0].astype(int) - expected)
        # Matroska rounds times to a millisecond, which shows where a tone begins or ends; AAC changes what is faint
        assert np.mean(apart) < (6 if codec == "pcm_s16le" else 12) and np.median(apart) <= 4, (number, np.mean(apart))
        bands = patch[..., 0].argmax(0)  # where each moment is loudest
        assert (np.diff(bands[5:-5]) <= 0).all() if number == 25 else True
    loudest = got[..., 0].argmax(1)
    assert loudest[0][48] > loudest[3][48]  # low is at the bottom
    change = int(np.argmax(np.abs(np.diff(loudest[1][20:76])))) + 20
    assert abs(change - 48) <= 3  # the middle of the patch of the frame that is shown at 1 s


def test_order_and_repeats_change_nothing_and_ends_are_silent(tmp_path):
    path = with_sound(tmp_path / "a.mkv", tone(2, 1000))
    info = video.probe(path)
    every = streams.read_frames(info, range(0, 50, 7), None, "audio")
    assert np.array_equal(streams.read_frames(info, [21, 7, 21], None, "audio"), every[[3, 1, 3]])
    assert not every[0][:, :40].any() and every[0][:, 60:].any()  # before the sound begins
    with pytest.raises(IndexError, match="frame 50 of 50"):
        streams.read_frames(info, [50], None, "audio")


def test_a_video_without_sound_is_told_from_one_with(tmp_path):
    silent = encode(tmp_path / "silent.mp4", drawing(5))
    heard = with_sound(tmp_path / "heard.mkv", tone(1, 500), frames=25)
    assert [record.sound for record in records.examine([silent, heard], workers=0)] == [False, True]
    assert records.probe(heard).sound and not records.probe(silent).sound
    with pytest.raises(VideoError, match=sound.NONE):
        streams.read_frames(video.probe(silent), [0], None, "audio")
    source = loader.Clips(tmp_path, tuple(loader.Item(p.name, ()) for p in (silent, heard)), ClipSpec(4, None, 32))
    heard_only = loader.Clips(tmp_path, source.items, source.clip.of_stream("audio"))
    (batch,) = loader.load(heard_only, [[(-1, 0), (-1, 1)]], 0)
    assert batch.failures == [(0, sound.NONE)] and batch.indices == [1] and batch.pixels.shape == (1, 1, 4, 32, 32, 1)


def test_sound_is_neither_mirrored_nor_seen_from_afar():
    changed = for_stream(parse_augment("few,erase=1"), "audio")
    assert not (changed.flip or changed.zoom_out or changed.colour or changed.randaugment) and changed.erase == 1
    with pytest.raises(UsageError, match="decoded by PyAV"):
        streams.check("audio", "decord")


@pytest.mark.parametrize("damage", ["cut", "noise"])
def test_damaged_sound_is_silence_and_never_a_crash(tmp_path, damage, seed):
    path = with_sound(tmp_path / "a.mkv", tone(2, 1000), rate=48_000, codec="aac")
    info, data = video.probe(path), bytearray(path.read_bytes())
    if damage == "cut":
        del data[len(data) * 2 // 3 :]
    else:
        places = np.random.default_rng(seed).integers(len(data) // 3, len(data), 200)
        for place in places:
            data[place] ^= 0xFF
    path.write_bytes(bytes(data))
    assert streams.read_frames(info, [5, 45], None, "audio").shape == (2, 64, 96, 1)
