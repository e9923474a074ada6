"""Seconds of an epoch of `nlzoo finetune` on real videos, beside two plain training scripts.

    NLZOO_PEERS=FOLDER python -m tests.bench epoch --videos FOLDER [--device cpu] [--size 112] [--batch 2] [--clips 24]

The same kind of clips (8 frames spread over each video, a random part of it, mirrored or not), size, batch, precision
and number of decoding processes (one) for all. The scripts are what one writes from the tutorials: (a) pytorchvideo's
I3D ResNet-50 with its own NonLocal and a `DataLoader` over videos that are decoded whole, as `EncodedVideo` does,
torch's SGD; (b) VideoMAE-small of transformers with random weights and its `Trainer`, over the same dataset. nlzoo: NL5
I3D ResNet-50, SGD, by the command's own function. What is timed is the second epoch of each, training alone; nlzoo's
frames are decoded anew, as the scripts' are.
"""

import argparse
import json
import random
import shutil
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

import nlzoo
from nlzoo.networks import checkpoint
from nlzoo.videos import tree

from . import network, peers, timing

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Videos(Dataset):
    """Clips as the tutorials make them: `(pixels (3, T, size, size), label)`."""

    def __init__(self, paths: list[Path], labels: list[int], frames: int, size: int):
        self.paths, self.labels, self.frames, self.size = paths, labels, frames, size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor | int]:
        with av.open(str(self.paths[index])) as container:
            images = [frame.to_rgb().to_ndarray() for frame in container.decode(video=0)]
        pixels = torch.from_numpy(np.stack(images)).permute(3, 0, 1, 2)
        pixels = pixels[:, torch.linspace(0, pixels.shape[1] - 1, self.frames).long()].float() / 255
        height, width = (3 * side // 4 for side in pixels.shape[2:])
        top, left = (random.randint(0, side - part) for side, part in zip(pixels.shape[2:], (height, width)))
        pixels = F.interpolate(
            pixels[:, :, top : top + height, left : left + width], (self.size, self.size), mode="bilinear"
        )
        pixels = (pixels - torch.tensor(MEAN).view(3, 1, 1, 1)) / torch.tensor(STD).view(3, 1, 1, 1)
        return {"pixels": pixels.flip(3) if random.random() < 0.5 else pixels, "labels": self.labels[index]}


def by_hand(videos: Videos, classes: int, options: argparse.Namespace) -> float:
    """pytorchvideo's network in a plain loop."""
    device = torch.device(options.device)
    step = network.Subject(peers.i3d(True, classes), torch.zeros(1, device=device), "fp32")
    loader = DataLoader(videos, options.batch, shuffle=True, num_workers=1)
    for _ in range(2):
        began = time.perf_counter()
        for batch in loader:
            step.clips, step.targets = batch["pixels"].to(device), batch["labels"].to(device)
            step.step()
        timing.wait(device)
    return time.perf_counter() - began


def by_trainer(videos: Videos, classes: int, options: argparse.Namespace) -> float:
    """VideoMAE-small by transformers' Trainer."""
    from transformers import (
        Trainer,
        TrainerCallback,
        TrainingArguments,
        VideoMAEConfig,
        VideoMAEForVideoClassification,
    )

    small = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536}
    config = VideoMAEConfig(image_size=options.size, num_frames=options.frames, num_labels=classes, **small)
    times: list[float] = []

    class Clock(TrainerCallback):
        def on_epoch_begin(self, *_: object, **__: object) -> None:
            times.append(time.perf_counter())

        on_epoch_end = on_epoch_begin

    def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
        pixels = torch.stack([row["pixels"] for row in rows]).transpose(1, 2)  # (B, T, 3, H, W)
        return {"pixel_values": pixels, "labels": torch.tensor([row["labels"] for row in rows])}

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=2,
            per_device_train_batch_size=options.batch,
            dataloader_num_workers=1,
            use_cpu=options.device == "cpu",
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        net = VideoMAEForVideoClassification(config)
        Trainer(net, arguments, data_collator=collate, train_dataset=videos, callbacks=[Clock()]).train()
    return times[3] - times[2]


def by_nlzoo(videos: Path, count: int, options: argparse.Namespace, scratch: Path) -> float:
    """`nlzoo.finetune`; seconds of its second epoch for so many clips."""
    start = network.ours("i3d", network.NL5, options.frames, options.size)
    checkpoint.save_model(scratch / "start", start)
    nlzoo.finetune(
        videos,
        scratch / "start",
        recipe=f"paper,epochs=2,batch={options.batch},precise_bn=0,passes=1,probe=none",
        augment="light",
        size=options.size,
        workers=1,
        name="run",
        device=options.device,
        runs=scratch / "runs",
    )
    last = json.loads((scratch / "runs" / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    print(f"{'':26} waiting for clips {last['data_seconds'] / last['seconds']:.0%}")
    return last["seconds"] * count / last["clips"]


def main(arguments: list[str]) -> None:
    """Prints seconds an epoch and ratios."""
    parser = argparse.ArgumentParser(prog="epoch", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--videos", type=Path, required=True, help="a folder of class folders")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--clips", type=int, default=24, help="an epoch has so many")
    options = parser.parse_args(arguments)
    names = tree.walk(options.videos).videos
    random.Random(0).shuffle(names)
    names = names[: options.clips]
    classes = sorted({name.split("/")[0] for name in names})
    labels = [classes.index(name.split("/")[0]) for name in names]
    own = Videos([options.videos / name for name in names], labels, options.frames, options.size)
    print(timing.machine(torch.device(options.device)), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        copies = Path(folder) / "videos"
        for name in names:
            (copies / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(options.videos / name, copies / name)
        ways = {"nlzoo finetune": lambda: by_nlzoo(copies, len(names), options, Path(folder))}
        if peers.available():
            ways["pytorchvideo, plain loop"] = lambda: by_hand(own, len(classes), options)
        ways["VideoMAE-small, Trainer"] = lambda: by_trainer(own, len(classes), options)
        seconds = {}
        for name, way in ways.items():
            seconds[name] = way()
            ratio = seconds[name] / seconds["nlzoo finetune"]
            print(f"{name:26} {seconds[name]:7.1f} s an epoch of {len(names)} clips, {ratio:.2f}", flush=True)
