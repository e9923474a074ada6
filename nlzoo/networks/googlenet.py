"""torchvision's GoogLeNet (Inception-V1), in the stages of a ResNet: what of it `inflate` and all above must know.

The network of two-stream I3D (Carreira & Zisserman, 2017), with its temporal pools or without any. Its modules are
torchvision's own; they only move into `layer1` to `layer4` (res2 to res5), so that blocks, freezing, rates and pictures
find them where a ResNet has its residual blocks: res2 is conv2 and conv3, res3 inception3a and 3b, res4 4a to 4e, res5
5a and 5b.
"""

import re
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..core.view_spec import ClipSpec
from . import vision
from .layers import GlobalAveragePool

NAME, TAG = "googlenet", "tv_in1k"
SOURCE = f"torchvision/{NAME}.{TAG}"
# The pretrained network maps what is normalised by ImageNet's numbers to (RGB - 0.5) / 0.5 first; so it is fed that.
CLIP = ClipSpec(mean=(0.5,) * 3, std=(0.5,) * 3)
_STAGES = {  # of torchvision's names: the pool before a stage is no block of it
    "layer1": ("conv2", "conv3"),
    "layer2": ("maxpool2", "inception3a", "inception3b"),
    "layer3": ("maxpool3", *(f"inception4{letter}" for letter in "abcde")),
    "layer4": ("maxpool4", "inception5a", "inception5b"),
}
TIME_POOLS = {"layer3.pool": (3, 2), "layer4.pool": (2, 2)}  # of I3D, before res4 and res5: frames, and stride in time
_PLACES = {  # torchvision's name: ours
    name: f"{layer}.{'pool' if name.startswith('maxpool') else n - ('maxpool' in names[0])}"
    for layer, names in _STAGES.items()
    for n, name in enumerate(names)
}


def is_googlenet(backbone: str) -> bool:
    """Whether a backbone's name, with or without a tag, means this network."""
    return backbone.partition(".")[0] == NAME


class Inception(nn.Module):
    """Branches on one input, side by side as channels, on images and videos: `(B, C, …)` to `(B, sum of theirs, …)`."""

    def __init__(self, branches: Iterable[tuple[str, nn.Module]]) -> None:
        super().__init__()
        for name, branch in branches:
            self.add_module(name, branch)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.children()], 1)


class GoogLeNet(nn.Module):
    """`(N, 3, H, W)` to logits; once inflated `(B, 3, T, H, W)`. Its methods are those of timm's networks."""

    def __init__(self, plain: Any, channels: int = 3) -> None:
        """`plain`: torchvision's, whose modules it takes; `channels`: of its pictures."""
        super().__init__()
        self.conv1 = _layers(plain.conv1)
        if channels != 3:
            old = plain.conv1.conv
            size = (old.kernel_size, old.stride, old.padding)
            self.conv1.conv = nn.Conv2d(channels, old.out_channels, *size, bias=False)
        self.maxpool = plain.maxpool1
        for layer, names in _STAGES.items():
            parts = ((_PLACES[name].partition(".")[2], getattr(plain, name)) for name in names)
            self.add_module(layer, nn.Sequential(OrderedDict((key, _plain(part)) for key, part in parts)))
        self.global_pool = GlobalAveragePool()
        self.fc = plain.fc
        self.drop_rate = 0.0  # as timm's; a recipe says it
        self.grad_checkpointing = False

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Of every block only the input is kept."""
        self.grad_checkpointing = enable

    def forward_features(self, x: Tensor) -> Tensor:
        """The last Inception module's output."""
        x = self.maxpool(self.conv1(x))
        for layer in map(self.get_submodule, _STAGES):
            if not self.grad_checkpointing:
                x = layer(x)
                continue
            for block in layer.children():
                x = checkpoint(block, x, use_reentrant=False)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits, or with `pre_logits` the means `(B, 1024)` that they are made of."""
        x = F.dropout(self.global_pool(x), self.drop_rate, self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def build(channels: int = 3) -> GoogLeNet:
    """The 2-D network, randomly initialised, without the classifiers at its side, which only train it from scratch."""
    return GoogLeNet(vision.import_googlenet()(aux_logits=False, init_weights=False), channels)


def _layers(part: Any) -> nn.Sequential:
    """torchvision's `BasicConv2d`, with its ReLU as a module."""
    return nn.Sequential(OrderedDict(conv=part.conv, bn=part.bn, act=nn.ReLU(inplace=True)))


def _plain(part: nn.Module) -> nn.Module:
    """A module of torchvision's as one of ours with the same keys."""
    kind = type(part).__name__
    if kind == "BasicConv2d":
        return _layers(part)
    children = [(name, _plain(child)) for name, child in part.named_children()]
    if kind == "Inception":
        return Inception(children)
    return nn.Sequential(OrderedDict(children)) if children else part


def our_names(theirs: Iterable[str]) -> dict[str, str]:
    """`{ours: theirs}` for the keys of torchvision's file, or of ours; without the classifiers at the side."""
    names = {}
    for key in theirs:
        name, _, rest = key.partition(".")
        if name not in ("aux1", "aux2"):
            names[f"{_PLACES[name]}.{rest}" if name in _PLACES else key] = key
    return names


def stage_blocks(text: str) -> str:
    """`--nl` with Inception modules by name, in the grammar of all networks: `inception3b,inception4e` is
    `res3@1,res4@4`. A `:1` behind a name may stand there; other texts stay as they are.
    """
    parts = [part.strip().lower() for part in text.split(",")]
    matches = [re.fullmatch(r"inception([345])([a-e])(?::1)?", part) for part in parts]
    names = [f"{match[1]}{match[2]}" for match in matches if match]
    if len(names) < len(parts) or any(f"inception{name}" not in _PLACES for name in names):
        return text
    stages: dict[str, list[str]] = {}
    for name in sorted(names):
        stages.setdefault(f"res{name[0]}", []).append(_PLACES[f"inception{name}"].partition(".")[2])
    return ",".join(f"{stage}@{','.join(numbers)}" for stage, numbers in stages.items())
