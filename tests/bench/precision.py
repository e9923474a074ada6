"""What `nlzoo export --half` and `--int8` cost on real clips: size, error of the logits, top-1 agreement, time.

    python -m tests.bench precision --weights resnet50.safetensors --videos FOLDER [--clips 16]

The network is an ImageNet ResNet-50, inflated, without blocks and with five. Blocks start as the identity, which no
rounding would change: the gain of their last batch norm is set to `--gain`, as if they had been trained. Error: the
largest difference of a clip's logits over its largest logit. Agreement: clips whose first of ImageNet's 1000 classes is
the original's. The logits of the original are torch's, in float32.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from nlzoo import Inflation, NonLocalBlock, export
from nlzoo.apps import onnx_graph
from nlzoo.core.view_spec import ClipSpec
from nlzoo.networks import download, model
from nlzoo.videos import loader, tree
from nlzoo.videos.listing import Item

PRECISIONS: dict[str, dict[str, bool]] = {"float32": {}, "half": {"half": True}, "int8": {"int8": True}}


def real_clips(folder: Path, count: int, clip: ClipSpec) -> torch.Tensor:
    """(count, 3, T, H, W), normalised, of videos from all over the folder."""
    names = tree.walk(folder).videos
    items = tuple(Item(name, ()) for name in names[:: max(1, len(names) // count)][:count])
    source = loader.Clips(folder, items, clip)
    pixels = torch.stack([source.read(-1, index)[0] for index in range(len(items))]).permute(0, 4, 1, 2, 3)
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (clip.mean, clip.std))
    return (pixels / 255 - mean) / std


@torch.inference_mode()
def logits(run: Callable[[torch.Tensor], torch.Tensor], clips: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Of each clip by itself, and seconds a clip."""
    begun = time.perf_counter()
    found = torch.cat([run(clip[None]) for clip in clips])
    return found, (time.perf_counter() - begun) / len(clips)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--videos", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--gain", type=float, default=0.5)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for nl in ("none", "5"):
        net, _ = model.inflate("resnet50", args.weights, Inflation(), nl, download.backbone_weights)
        net.spec = replace(net.spec, clip=replace(net.spec.clip, size=args.size))
        for block in net.modules():
            if isinstance(block, NonLocalBlock):
                torch.nn.init.constant_(block.bn.weight, args.gain)
        clips = real_clips(args.videos, args.clips, net.spec.clip)
        original, seconds = logits(net.eval(), clips)
        what = f"{len(clips)} clips of {net.spec.clip.frames}x{args.size}"
        print(f"ResNet-50, --nl {nl}, {what}: torch {seconds:.2f} s a clip", flush=True)
        for name, options in PRECISIONS.items():
            with tempfile.TemporaryDirectory() as folder:
                done = export(net, "onnx", Path(folder) / "out", **options)
                file = Path(done.folder) / "model.onnx"
                size = file.stat().st_size / 1e6
                found, seconds = logits(onnx_graph.Session(file, net.spec), clips)
            errors = (found - original).abs().amax(1) / original.abs().amax(1)
            agree = int((found.argmax(1) == original.argmax(1)).sum())
            print(
                f"  {name:8} {size:6.1f} MB  error: median {errors.median():.1e}, most {errors.max():.1e}  "
                f"top-1 the same {agree} of {len(clips)}  {seconds:.2f} s a clip",
                flush=True,
            )
