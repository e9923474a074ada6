"""`python -m tests.bench [TOPIC] [OPTIONS]`: one benchmark; without a topic, what there is."""

import importlib
import sys

TOPICS = {
    "startup": "CPU seconds of commands that do little",
    "pairwise": "the four pairwise functions and whole blocks, beside all pairs, pytorchvideo and mmcv",
    "pipeline": "CPU time of a clip: the original video, the prepared one, its frames from the cache",
    "network": "a whole network, forward and step, beside pytorchvideo's",
    "memory": "the longest clip and the largest batch that fit, beside pytorchvideo's naive blocks",
    "length": "time and memory of a block against the length of the clip, beside all pairs and theory's line",
    "scan": "how long 100,000 files take to be scanned, at first and again, and in how much memory",
    "answers": "videos a second of predict on a CPU, beside the plain loop",
    "epoch": "seconds an epoch of finetune on real videos, beside two plain training scripts",
    "flow": "frames of optical flow a second, beside OpenCV alone",
    "fusion": "CPU seconds a video of fused models, beside their members one by one",
    "precision": "what export --half and --int8 cost on real clips",
    "parity": "values and gradients on a device against float64, in every precision",
}


def main() -> None:
    topic, *arguments = sys.argv[1:] or [""]
    if topic not in TOPICS:
        lines = [f"  {name:10} {text}" for name, text in TOPICS.items()]
        sys.exit("\n".join(["python -m tests.bench TOPIC --help, of these topics:", *lines]))
    importlib.import_module(f"tests.bench.{topic}").main(arguments)


if __name__ == "__main__":
    main()
