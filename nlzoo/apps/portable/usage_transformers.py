"""The classes of a video by the model in this folder, in transformers: python usage.py VIDEO

pip install "transformers>=5.24" torch torchvision av pillow
"""

import sys
from pathlib import Path

from transformers import pipeline

classify = pipeline("video-classification", model=str(Path(__file__).resolve().parent), trust_remote_code=True)
for answer in classify(sys.argv[1], top_k=5):
    print(f"{answer['score']:.3f}  {answer['label']}")
