"""Late fusion beside its members one by one: CPU seconds a video, decoding included.

    python -m tests.bench fusion [VIDEO…] [--backbone resnet18] [--size 112] [--frames 8] [--rounds 3]

Without videos eight are drawn. Members with the same clip (`i3d`, `c2d`) share what is decoded; `flow` has its own.
One process and one thread; fused and members take turns, and the fastest round of each counts.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from nlzoo.apps import draw
from nlzoo.core.model_spec import FUSED, Inflation, ModelSpec
from nlzoo.core.view_spec import ClipSpec
from nlzoo.networks import model
from nlzoo.networks.network import Network
from nlzoo.training import outputs
from nlzoo.videos import listing, loader

from . import timing

CPU = torch.device("cpu")
FUSIONS = (("i3d", "c2d"), ("i3d", "flow"), ("i3d", "c2d", "flow"))


def member(kind: str, backbone: str, clip: ClipSpec) -> Network:
    """Randomly initialised, for five classes."""
    net = model.build(ModelSpec(backbone, Inflation("c2d" if kind == "c2d" else "i3d"), clip=clip))
    model.set_head(net, tuple("abcde"))
    return model.set_stream(net, "flow") if kind == "flow" else net


def seconds(net: Network, videos: Sequence[Path]) -> float:
    """CPU seconds of a video."""
    items = tuple(listing.Item(str(path), ()) for path in videos)
    began = time.process_time()
    for _, row, reason in outputs.probabilities(net, loader.Clips(Path(), items, net.spec.clip), CPU):
        assert row is not None, reason
    return (time.process_time() - began) / len(videos)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="*", type=Path)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    clip = ClipSpec(options.frames, None, options.size)
    nets = {kind: member(kind, options.backbone, clip) for kind in ("i3d", "c2d", "flow")}
    alone = dict(nets)
    nets |= {"+".join(kinds): model.join(FUSED, [(alone[kind], 1.0) for kind in kinds]) for kinds in FUSIONS}
    print(f"{timing.machine(CPU)}; {options.backbone}, {clip}; CPU seconds a video")
    with tempfile.TemporaryDirectory() as folder:
        videos = options.videos or draw.write_videos(Path(folder), draw.CLASSES[:2], 4, size=(240, 320))
        rounds = [{name: seconds(net, videos) for name, net in nets.items()} for _ in range(options.rounds)]
    best = {name: min(one[name] for one in rounds) for name in nets}
    for name in alone:
        print(f"  {name:14} {best[name]:.3f}")
    for kinds in FUSIONS:
        name, total = "+".join(kinds), sum(best[kind] for kind in kinds)
        print(f"  {name:14} {best[name]:.3f}  its members one by one {total:.3f}  fused / sum {best[name] / total:.2f}")
