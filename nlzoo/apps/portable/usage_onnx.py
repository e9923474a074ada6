"""The classes of a video by model.onnx, without torch: python usage.py VIDEO

    pip install onnxruntime av numpy

Frames are scaled by other code than nlzoo's, so that probabilities differ a little from those of `nlzoo predict`.
"""

import json
import sys
from pathlib import Path

import av
import numpy as np
import onnxruntime


def clip_of(video: str, frames: int, stride: int | None, fps: float | None, size: int) -> np.ndarray:
    """uint8 (T, S, S, 3): frames of the middle, `stride` apart (at `fps`), else spread over the video."""
    with av.open(video) as container:
        total = sum(1 for _ in container.decode(video=0))
        rate = float(container.streams.video[0].average_rate or 25)
    step = (stride or 0) * (rate / fps if fps else 1.0)
    length = round((frames - 1) * step) + 1
    if not stride or length > total:
        picked = ((np.arange(frames) + 0.5) * total / frames).astype(int)
    else:
        picked = (total - length) // 2 + np.round(step * np.arange(frames)).astype(int)
    wanted = set(picked.tolist())
    with av.open(video) as container:
        numbered = enumerate(container.decode(video=0))
        images = {number: squeezed(frame, size) for number, frame in numbered if number in wanted}
    return np.stack([images[n] for n in picked.tolist()])


def squeezed(frame: av.VideoFrame, size: int) -> np.ndarray:
    """A frame as RGB (S, S, 3): first to a shorter side of 8/7 S, then to the square, as nlzoo does."""
    ratio = size * 8 / 7 / min(frame.width, frame.height)
    rgb = frame.reformat(round(frame.width * ratio), round(frame.height * ratio), "rgb24", interpolation="BICUBIC")
    return rgb.reformat(size, size, interpolation="BILINEAR").to_ndarray()


session = onnxruntime.InferenceSession(str(Path(__file__).with_name("model.onnx")))
about = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
pixels = clip_of(sys.argv[1], *(about[key] for key in ("frames", "stride", "fps", "size")))
clip = ((pixels / 255 - about["mean"]) / about["std"]).transpose(3, 0, 1, 2)[None].astype(np.float32)
logits = session.run(["logits"], {"clips": clip})[0][0].astype(np.float64)
scores = 1 / (1 + np.exp(-logits)) if about["multi_label"] else np.exp(logits - logits.max())
scores = scores if about["multi_label"] else scores / scores.sum()
for number in np.argsort(-scores)[:5]:
    print(f"{scores[number]:.3f}  {about['labels'][number]}")
