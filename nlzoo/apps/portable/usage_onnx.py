"""The classes of a video by model.onnx, without torch: python usage.py VIDEO

    pip install onnxruntime av numpy

Frames are squeezed by other code than nlzoo's, so that probabilities differ a little from those of `nlzoo predict`.
"""

import json
import sys
from pathlib import Path

import av
import numpy as np
import onnxruntime
from video_nlzoo import read_frames  # the file beside this one

session = onnxruntime.InferenceSession(str(Path(__file__).with_name("model.onnx")))
about = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
frames = [av.VideoFrame.from_ndarray(frame, "rgb24") for frame in read_frames(sys.argv[1], about)]
size = about["size"]
pixels = np.array([frame.reformat(size, size, interpolation="BILINEAR").to_ndarray() for frame in frames], float)
clip = ((pixels / 255 - about["mean"]) / about["std"]).transpose(3, 0, 1, 2)[None].astype(np.float32)
logits = session.run(["logits"], {"clips": clip})[0][0].astype(np.float64)
scores = 1 / (1 + np.exp(-logits)) if about["multi_label"] else np.exp(logits - logits.max())
scores = scores if about["multi_label"] else scores / scores.sum()
for number in np.argsort(-scores)[:5]:
    print(f"{scores[number]:.3f}  {about['labels'][number]}")
