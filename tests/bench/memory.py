"""The longest clip and the largest batch of a training step that fit, and what each length takes.

    python -m tests.bench memory --device cuda --size 224 --precision bf16 --gib 40

`--gib`: memory of the card that may be used, so that the answer comes soon. On a CPU nothing limits memory: there
`--gib` is compared with what the step would hold, counted on tensors without data (`memory_estimate`).
"""

import argparse
from collections.abc import Callable

import torch

from nlzoo.core.recipe_spec import Recipe
from nlzoo.core.view_spec import ClipSpec
from nlzoo.training import devices, recipe as recipes

from . import network, peers, timing


def largest(fits: Callable[[int], bool], first: int = 1, most: int = 4096) -> int:
    """The largest number of the form 2^n or 3 * 2^n from `first` on that fits; 0 where none does."""
    good, number = 0, first
    while number <= most and fits(number):
        good, number = number, number * 3 // 2 if number & (number - 1) == 0 and number > 1 else -(-number * 4 // 3)
    return good


def trainable(make: Callable[[], torch.nn.Module], batch: int, frames: int, options: argparse.Namespace) -> bool:
    """Whether a step of so many clips fits."""
    device = torch.device(options.device)
    if device.type != "cuda":
        clip = ClipSpec(frames, None, options.size)
        try:
            return recipes.memory_estimate(make(), clip, batch, Recipe(optimizer="sgd")) < options.gib * 2**30
        except (RuntimeError, AttributeError):
            return False
    fits = _attempt(make, batch, frames, options, device)
    devices.free_memory()
    return fits


def _attempt(make, batch: int, frames: int, options: argparse.Namespace, device: torch.device) -> bool:
    try:
        clips = torch.randn(batch, 3, frames, options.size, options.size, device=device)
        network.Subject(make(), clips, options.precision).step()
        timing.wait(device)
        return True
    except RuntimeError as error:
        if not devices.is_out_of_memory(error):
            raise
        return False


def main(arguments: list[str]) -> None:
    """Prints both answers for every network."""
    parser = argparse.ArgumentParser(prog="memory", description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--gib", type=float, default=8.0)
    options = parser.parse_args(arguments)
    device = devices.resolve(options.device)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = False  # every length would be searched anew
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, options.gib * 2**30 / total), device)
    ways = {"nlzoo": lambda: network.ours("i3d", network.NL5, options.frames, options.size)}
    if peers.available() and device.type == "cuda":
        ways = {"pytorchvideo, naive blocks": lambda: peers.i3d(True), **ways}
    print(f"{timing.machine(device)}: NL5 I3D R50, a training step within {options.gib:g} GiB, {options.precision}")
    base = 0
    for name, make in ways.items():
        longest = largest(lambda frames, make=make: trainable(make, 1, frames, options), 4)
        batch = largest(lambda batch, make=make: trainable(make, batch, options.frames, options))
        base = base or longest
        ratio = f"{longest / max(1, base):.2f} times the first"
        print(f"  {name:30} one clip of {longest} frames, {ratio}; {batch} clips of {options.frames}", flush=True)
