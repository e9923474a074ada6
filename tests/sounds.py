"""Videos with a sound that tests know sample by sample."""

import av
import numpy as np
from drawn import drawing

FPS = 25


def with_sound(path, samples, rate=16_000, frames=50, codec="pcm_s16le", channels=1, images=None, fps=FPS):
    """A video of `images`, or of a drawing of `frames`, and of mono samples in [-1, 1] as its sound, on every channel.

    `images`: uint8 (T, H, W, 3).
    """
    images = drawing(frames, 32, 48) if images is None else images
    with av.open(str(path), "w") as out:
        pictures = out.add_stream("libx264", rate=fps)
        pictures.height, pictures.width, pictures.pix_fmt = *images.shape[1:3], "yuv420p"
        pictures.codec_context.thread_count = 1
        track = out.add_stream(codec, rate=rate, layout="mono" if channels == 1 else "stereo")
        for image in images:
            out.mux(pictures.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        out.mux(pictures.encode())
        kind = track.codec_context.format.name
        values = np.tile(samples, (channels, 1))
        values = (values * 32767).round().astype(np.int16) if kind.startswith("s16") else values.astype(np.float32)
        if not kind.endswith("p"):
            values = values.T.reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(values), format=kind, layout=track.layout.name)
        frame.sample_rate, frame.pts = rate, 0
        for part in av.AudioResampler(kind, track.layout.name, rate, frame_size=1024).resample(frame):
            out.mux(track.encode(part))
        out.mux(track.encode())
    return path


def tone(seconds, hertz, rate=16_000, amplitude=0.5):
    return amplitude * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
