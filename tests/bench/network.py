"""A whole network, forward and step: C2D, I3D and NL5 I3D ResNet-50 beside pytorchvideo's, same parameters.

    python -m tests.bench network --device cuda --batch 16 --size 224 --frames 8 --precision bf16 [--compile]

`NLZOO_PEERS` names the folder of pytorchvideo's source (peers.py); without it only nlzoo's own rows are measured. On a
GPU the floor comes with the step: multiply-adds over the card's measured bf16 rate, and bytes over its bandwidth.
"""

import argparse

import torch
import torch.nn.functional as F
from torch import nn

from nlzoo.core.model_spec import Inflation, ModelSpec, parse_nl
from nlzoo.core.view_spec import ClipSpec
from nlzoo.networks import folding, frames, model
from nlzoo.networks.inflate import depths
from nlzoo.training import devices

from . import peers, timing

NL5 = "res3:2,res4:3"
CLASSES = 400


def ours(arch: str, nl: str, length: int, size: int) -> nn.Module:
    """nlzoo's ResNet-50 of that kind, randomly initialised."""
    with torch.device("meta"):
        placement = parse_nl(nl, depths(model.plain_resnet("resnet50")))
    spec = ModelSpec("resnet50", Inflation(arch), placement, ClipSpec(length, None, size), (), CLASSES)
    net = model.build(spec)
    frames.channels_last_(net)  # as training has it
    return net


class Subject:
    """A network with what one training step and one forward pass of it need."""

    def __init__(self, net: nn.Module, clips: torch.Tensor, precision: str, compiled: bool = False):
        self.net = net.to(clips.device).train()
        self.compiled = compiled
        self.forward = torch.compile(self.net) if compiled else self.net
        self.clips, self.precision = clips, precision
        self.targets = torch.randint(CLASSES, (len(clips),), device=clips.device)
        fused = True if clips.is_cuda else None
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=1e-3, momentum=0.9, fused=fused)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.clips.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def step(self) -> torch.Tensor:
        self.net.train()
        with self.autocast():
            loss = F.cross_entropy(self.forward(self.clips).float(), self.targets)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss

    def answer_as_product(self) -> None:
        """From now on `infer` computes as `nlzoo predict` does."""
        self.net = folding.fold_bn(self.net)
        self.forward = torch.compile(self.net) if self.compiled else self.net

    def infer(self) -> torch.Tensor:
        self.net.eval()
        with torch.inference_mode(), self.autocast():
            return self.forward(self.clips)


def subjects(options: argparse.Namespace, clips: torch.Tensor) -> dict[str, Subject]:
    """The networks by name, the one to compare with first."""
    kinds = {"C2D": ("c2d", "none"), "I3D": ("i3d", "none"), "NL5 I3D": ("i3d", NL5)}
    made: dict[str, Subject] = {}
    arch, nl = kinds[options.network]
    if peers.available() and options.network != "C2D":
        made[f"pytorchvideo {options.network}"] = Subject(peers.i3d(nl != "none"), clips, options.precision)
    clips = clips.contiguous(memory_format=torch.channels_last_3d)  # as the product's clips are
    if made:
        theirs = peers.i3d(nl != "none")
        frames.channels_last_(theirs)
        made[f"pytorchvideo {options.network}, channels last"] = Subject(theirs, clips, options.precision)
    own = ours(arch, nl, options.frames, options.size)
    made[f"nlzoo {options.network}"] = Subject(own, clips, options.precision)
    if options.compile:
        again = ours(arch, nl, options.frames, options.size)
        made[f"nlzoo {options.network}, compiled"] = Subject(again, clips, options.precision, compiled=True)
    counts = {sum(p.numel() for p in one.net.parameters()) for one in made.values()}
    assert len(counts) == 1, f"not the same parameters: {counts}"
    return made


def floor(step: Subject, device: torch.device) -> str:
    """Multiply-adds of a step over the card's rate, and the share of that rate that a step reached."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step.step()
    flops = counter.get_total_flops()
    a = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    rate = 2 * 8192**3 / timing.seconds(lambda: a @ a, device, 10)
    big = torch.empty(2**30, dtype=torch.uint8, device=device)
    other = torch.empty_like(big)
    bandwidth = 2 * 2**30 / timing.seconds(lambda: other.copy_(big), device, 10)
    took = min(timing.seconds(step.step, device, 3) for _ in range(3))
    ceilings = f"bf16 {rate / 1e12:.0f} TFLOP/s, copies {bandwidth / 1e12:.2f} TB/s"
    least = f"{flops / 1e12:.2f} TFLOP a step, at least {1000 * flops / rate:.1f} ms"
    return f"  measured: {ceilings}; {least}; reached {flops / rate / took:.2f} of that rate"


def main(arguments: list[str]) -> None:
    """Prints the tables of one network."""
    parser = argparse.ArgumentParser(prog="network", description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--network", default="NL5 I3D", choices=["C2D", "I3D", "NL5 I3D"])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    device = devices.resolve(options.device)
    clips = torch.randn(options.batch, 3, options.frames, options.size, options.size, device=device)
    made = subjects(options, clips)
    memory = {}
    for name, one in made.items():
        for _ in range(3):
            one.step()
        memory[name] = f"{timing.peak(one.step, device) / 2**30:.2f} GiB" if device.type == "cuda" else ""
    shape = f"{options.batch} x {options.frames} x {options.size}^2, {options.precision}"
    print(timing.machine(device))
    repeats = 3 if device.type == "cuda" else 1
    times = timing.compare({n: one.step for n, one in made.items()}, device, options.rounds, repeats)
    print(timing.table(f"training step, {shape}", times, memory))
    if device.type == "cuda" and options.precision == "bf16":
        print(floor(made[f"nlzoo {options.network}"], device))
    for name, one in made.items():
        if name.startswith("nlzoo"):
            one.answer_as_product()
        one.infer()
    times = timing.compare({n: one.infer for n, one in made.items()}, device, options.rounds, repeats)
    print(timing.table(f"forward pass, {shape}", times), flush=True)
