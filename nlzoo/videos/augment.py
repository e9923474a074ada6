"""What training does to the pixels of a clip, after frames and rectangle were chosen (`clips.training_view`).

torchvision's v2 transforms draw once for all frames of a clip. They draw from torch's global generator, so that one is
seeded for the moment and put back: the same key gives the same bits, and nothing else notices. Two threads of one
process would notice; decoding workers are processes.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from ..core.view_spec import Augment
from ..networks import vision

GREY = (124, 116, 104)  # RGB; about 0 once normalised, so that what is erased says nothing
MIDDLE = {1: 89, 2: 128}  # the same of sound and flow, by their channels


def apply(frames: torch.Tensor, augment: Augment, rng: np.random.Generator) -> torch.Tensor:
    """Colour, RandAugment and erasing, one draw for all frames: uint8 `(T, H, W, C)` to the same, keyed by `rng` alone.

    Flow and sound can be erased only (`view_spec.for_stream`).

    Where none of them is on, `frames` itself comes back, nothing is drawn and torchvision is not imported.
    """
    if not (augment.colour or augment.randaugment or augment.erase):
        return frames
    v2 = vision.import_transforms()
    steps = []
    if augment.colour:
        steps.append(v2.ColorJitter(augment.colour, augment.colour, augment.colour))
    if augment.randaugment:
        bilinear = v2.InterpolationMode.BILINEAR
        steps.append(v2.RandAugment(magnitude=augment.randaugment, interpolation=bilinear, fill=GREY))
    if augment.erase:
        steps.append(v2.RandomErasing(augment.erase, value=MIDDLE.get(frames.shape[-1], GREY)))
    with _seeded(int(rng.integers(2**63))):
        changed = v2.Compose(steps)(frames.permute(0, 3, 1, 2))
    return changed.permute(0, 2, 3, 1).contiguous()


def mix(pixels: torch.Tensor, targets: torch.Tensor, augment: Augment, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """MixUp or CutMix (with both on, either half the time) of each clip with the one before it, on their device.

    `pixels`: float `(B, C, T, H, W)`, changed alike in all frames; `targets`: float `(B, K)`, one-hot or multi-hot,
    blended as the pixels were. One draw, keyed by `seed`, for the whole batch. Views of one video should not be
    neighbours: such a pair mixes a video with itself. Where neither is on, both come back as they are.
    """
    if not (augment.mixup or augment.cutmix):
        return pixels, targets
    v2 = vision.import_transforms()
    alphas = {v2.MixUp: augment.mixup, v2.CutMix: augment.cutmix}
    kinds = [kind(alpha=alpha) for kind, alpha in alphas.items() if alpha]
    batch, channels, total, height, width = pixels.shape
    flat = pixels.reshape(batch, channels * total, height, width)  # v2 takes no 5-D tensor
    with _seeded(seed):
        kind = kinds[int(torch.randint(len(kinds), ()))]
        flat, targets = kind(flat, targets)
    return torch.empty_like(pixels).copy_(flat.view(pixels.shape)), targets  # in the layout that it came in


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Torch's CPU generator starts at `seed` inside and is put back afterwards; no other is touched."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPU's too
        yield
