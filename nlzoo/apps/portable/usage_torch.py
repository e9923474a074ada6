"""The classes of a video by model.pt2, with torch alone: python usage.py VIDEO

pip install torch av numpy
"""

import json
import sys
from pathlib import Path

import torch
from video_nlzoo import read_clip  # the file beside this one


def main(video: str, top: int = 5) -> None:
    """Prints the likeliest classes of a video."""
    extra = {"about.json": ""}
    program = torch.export.load(Path(__file__).with_name("model.pt2"), extra_files=extra)
    about = json.loads(extra["about.json"])
    logits = program.module()(read_clip(video, about))[0]
    scores = logits.sigmoid() if about["multi_label"] else logits.softmax(0)
    best = scores.topk(min(top, len(scores)))
    for score, number in zip(best.values.tolist(), best.indices.tolist()):
        print(f"{score:.3f}  {about['labels'][number]}")


if __name__ == "__main__":
    main(sys.argv[1])
