"""The classes of a video by the model in this folder, in transformers: python usage.py VIDEO

pip install "transformers>=5.24" torch torchvision av pillow
"""

import sys
from pathlib import Path

from transformers import pipeline


def main(video: str, top: int = 5) -> None:
    """Prints the likeliest classes of a video."""
    classify = pipeline("video-classification", model=str(Path(__file__).resolve().parent), trust_remote_code=True)
    for answer in classify(video, top_k=top):
        print(f"{answer['score']:.3f}  {answer['label']}")


if __name__ == "__main__":
    main(sys.argv[1])
