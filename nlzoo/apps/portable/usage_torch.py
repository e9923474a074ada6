"""The classes of a video by model.pt2, with torch alone: python usage.py VIDEO

pip install torch av numpy
"""

import json
import sys
from pathlib import Path

import torch
from video_nlzoo import read_clip  # the file beside this one

extra = {"about.json": ""}
program = torch.export.load(Path(__file__).with_name("model.pt2"), extra_files=extra)
about = json.loads(extra["about.json"])
logits = program.module()(read_clip(sys.argv[1], about))[0]
scores = logits.sigmoid() if about["multi_label"] else logits.softmax(0)
best = scores.topk(min(5, len(scores)))
for score, number in zip(best.values.tolist(), best.indices.tolist()):
    print(f"{score:.3f}  {about['labels'][number]}")
