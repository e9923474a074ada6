"""Videos a second of `nlzoo.predict` on a CPU, beside the plain loop of pytorchvideo's tutorial.

    python -m tests.bench answers [--videos FOLDER] [--backbone resnet18] [--size 112] [--rounds 2]

The loop is written out here, step by step as there: `EncodedVideo.get_clip` decodes the whole video with PyAV and
makes each frame RGB at its full size, then come `UniformTemporalSubsample`, `ShortSideScale`, `CenterCrop`, `Normalize`
and the network on one clip. Both have the same network, one thread for it, and the same videos; nlzoo has a process
besides that decodes. Rounds alternate; the best of each counts. CPU: seconds of all processes for a video.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F

from nlzoo import ClipSpec, ModelSpec, build, predict
from nlzoo.apps import draw
from nlzoo.networks import model
from nlzoo.videos import tree


def plain(net: torch.nn.Module, paths: list[Path]) -> list[int]:
    """The class of each video."""
    clip, answers = net.spec.clip, []
    for path in paths:
        with av.open(str(path)) as container:
            images = [frame.to_rgb().to_ndarray() for frame in container.decode(video=0)]
        pixels = torch.from_numpy(np.stack(images)).permute(3, 0, 1, 2)  # (3, T, H, W), as EncodedVideo gives it
        pixels = pixels[:, torch.linspace(0, pixels.shape[1] - 1, clip.frames).long()].float() / 255
        scale = clip.size * 8 / 7 / min(pixels.shape[2:])
        pixels = F.interpolate(pixels, [round(side * scale) for side in pixels.shape[2:]], mode="bilinear")
        top, left = ((side - clip.size) // 2 for side in pixels.shape[2:])
        pixels = pixels[:, :, top : top + clip.size, left : left + clip.size]
        pixels = (pixels - torch.tensor(clip.mean).view(3, 1, 1, 1)) / torch.tensor(clip.std).view(3, 1, 1, 1)
        with torch.inference_mode():
            answers.append(int(net(pixels[None]).softmax(-1).argmax()))
    return answers


def cpu() -> float:
    """Seconds of this process and of those that it has waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, help="otherwise 16 drawn ones of 10 s, 320 x 240")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = build(ModelSpec(args.backbone, clip=ClipSpec(8, None, args.size)))
    model.set_head(net, ("a", "b", "c"))
    with tempfile.TemporaryDirectory() as folder:
        videos = args.videos or Path(folder)
        if not args.videos:
            draw.write_videos(videos, draw.DEMO[:2], 8, 0, 250, (240, 320))
        paths = [videos / name for name in tree.walk(videos).videos]
        ways = {"plain loop": lambda: plain(net, paths), "nlzoo.predict": lambda: predict(net, paths, device="cpu")}
        walls: dict[str, list[float]] = {name: [] for name in ways}
        loads: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(args.rounds):
            for name, way in ways.items():
                begun, used = time.perf_counter(), cpu()
                assert len(way()) == len(paths)
                walls[name].append(time.perf_counter() - begun)
                loads[name].append(cpu() - used)
                print(f"{name:14} {walls[name][-1]:7.1f} s, {loads[name][-1]:6.2f} CPU s", flush=True)
    for name in ways:
        print(
            f"{name:14} {len(paths) / min(walls[name]):6.2f} videos/s  {min(loads[name]) / len(paths):.3f} CPU s each"
        )
    first, second = (min(walls[name]) for name in ways)
    print(
        f"ratio of videos/s {first / second:.2f}, of CPU {min(loads['plain loop']) / min(loads['nlzoo.predict']):.2f}"
    )


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
