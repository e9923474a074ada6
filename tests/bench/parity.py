"""Values and gradients on a device against float64 on the CPU: blocks, layers, a network, a training run.

    python -m tests.bench parity --device cuda

Prints one line a kind with the largest relative error over fresh random inputs, and ends with exit code 1 if one is
larger than its precision allows.
"""

import argparse
import copy
import itertools
import sys
from collections.abc import Iterable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nlzoo.core.model_spec import FORMS, SPANS, Inflation
from nlzoo.networks import inflate
from nlzoo.networks.layers import NonLocalBlock
from nlzoo.training import devices, recipe as recipes

from . import network, timing

Passes = tuple[Tensor, Tensor, Tensor]
PRECISIONS = {  # autocast's dtype, and the error that is allowed
    "float32": (None, 1e-4),
    "TF32": (None, 2e-2),
    "bf16": (torch.bfloat16, 1e-1),
    "fp16": (torch.float16, 5e-2),
}


def passes(layer: nn.Module, x: Tensor, dy: Tensor, around_backward: Any = None) -> Passes:
    """The result and its gradients in x and in the parameters."""
    layer.zero_grad()
    x = x.detach().requires_grad_()
    y = layer(x)
    with around_backward or nullcontext():
        y.backward(dy.to(y.dtype))
    return y.detach(), x.grad, torch.cat([p.grad.flatten() for p in layer.parameters()])


def worst(got: Iterable[Tensor], want: Iterable[Tensor]) -> float:
    """The largest relative error of any of them, by norms."""
    pairs = [(a.double().cpu(), b.double().cpu()) for a, b in zip(got, want)]
    return max(((a - b).norm() / b.norm()).item() for a, b in pairs)


def on_device(layer: nn.Module, x: Tensor, dy: Tensor, device: torch.device, precision: str) -> Passes:
    """The same passes in float32 operands on `device`, in the given precision."""
    dtype, _ = PRECISIONS[precision]
    tf32 = precision != "float32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    layer = copy.deepcopy(layer).float().to(device)
    with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
        return passes(layer, x.float().to(device), dy.float().to(device))


def blocks(device: torch.device, form: str) -> dict[str, float]:
    """A form in every span, where pairs are few and where they are many."""
    errors = dict.fromkeys(PRECISIONS, 0.0)
    for span, size in itertools.product(SPANS, (6, 28)):
        block = NonLocalBlock(32, form, span).double()
        nn.init.normal_(block.bn.weight)
        x = torch.randn(2, 32, 4, size, size).double()
        dy = torch.randn_like(x)
        want = passes(copy.deepcopy(block), x, dy)
        for precision in PRECISIONS:
            errors[precision] = max(errors[precision], worst(on_device(block, x, dy, device, precision), want))
    return errors


def convolutions(device: torch.device) -> dict[str, float]:
    """Every padding, kernel and stride that inflation makes."""
    errors = dict.fromkeys(PRECISIONS, 0.0)
    for taps, kernel, stride, padding, channels in itertools.product(
        (1, 3, 5), (1, 3), (1, 2), ("replicate", "zeros"), (3, 32)
    ):
        flat = nn.Conv2d(channels, 16, kernel, stride, kernel // 2, bias=False).double()
        layer = inflate._conv(flat, taps, 1, Inflation(temporal_padding=padding, init="mean"))
        nn.init.normal_(layer.weight)
        x = torch.randn(2, channels, 6, 14, 14).double()
        dy = torch.randn_like(layer(x))
        want = passes(copy.deepcopy(layer), x, dy)
        for precision in PRECISIONS:
            errors[precision] = max(errors[precision], worst(on_device(layer, x, dy, device, precision), want))
    return errors


def whole(device: torch.device, size: int) -> dict[str, float]:
    """Logits of an NL5 I3D ResNet-50 in eval mode."""
    net = network.ours("i3d", network.NL5, 8, size).eval()
    for m in net.modules():
        if isinstance(m, NonLocalBlock):
            nn.init.normal_(m.bn.weight)
    x = torch.randn(1, 3, 8, size, size)
    with torch.no_grad():
        want = copy.deepcopy(net).double()(x.double())
        errors = {}
        for precision, (dtype, _) in PRECISIONS.items():
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "float32"
            there = copy.deepcopy(net).to(device)
            with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
                errors[precision] = worst([there(x.to(device))], [want])
    return errors


def checkpointed(device: torch.device, size: int) -> dict[str, float]:
    """A training step with activations recomputed, against the same step without, on the device."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    net = network.ours("i3d", network.NL5, 4, size).to(device).train()
    x, dy = torch.randn(2, 3, 4, size, size, device=device), torch.randn(2, network.CLASSES, device=device)
    again = copy.deepcopy(net)
    recipes.checkpoint_activations_(again)
    want = passes(net, x, dy)
    got = passes(again, x, dy, recipes.recomputing(again))
    buffers = worst(
        [b for b in again.buffers() if b.is_floating_point()], [b for b in net.buffers() if b.is_floating_point()]
    )
    return {"float32": max(worst(got, want), buffers)}


def main(arguments: list[str]) -> None:
    """Prints the errors and exits with 1 where one is too large."""
    parser = argparse.ArgumentParser(prog="parity", description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, default=64)
    options = parser.parse_args(arguments)
    device = devices.resolve(options.device)
    if device.type == "cpu":  # which has one kind of float32, and these half precisions for the asking
        PRECISIONS.pop("TF32")
    torch.backends.cudnn.benchmark = False
    print(f"{timing.machine(device)}: relative errors against float64")
    failed = False
    kinds = {
        **{f"{form} block, every span": partial(blocks, device, form) for form in FORMS},
        "convolutions, every padding": lambda: convolutions(device),
        "NL5 I3D R50 logits": lambda: whole(device, options.size),
        "activations recomputed": lambda: checkpointed(device, options.size),
    }
    for kind, measure in kinds.items():
        torch.manual_seed(0)
        errors = measure()
        wrong = [p for p, error in errors.items() if not error <= PRECISIONS[p][1]]
        failed |= bool(wrong)
        text = ", ".join(f"{p} {error:.1e}" for p, error in errors.items())
        print(f"  {kind:30} {text}{'  TOO LARGE' if wrong else ''}", flush=True)
    sys.exit(1 if failed else 0)
