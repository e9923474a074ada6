"""Makes the embedded backbone: a small timm ResNet, taught to name the shape and texture of what was drawn largest.

    python weights/make_tiny.py            # in the checkout, nlzoo installed; about ten minutes on one core

Writes `weights/tiny/model.safetensors` (timm's key names, kernels in half precision) and `weights/tiny/README.md` with
the accuracy measured on images it never saw, after rounding. The architecture is `zoo.EMBEDDED["tiny"]`. Nothing is
downloaded and nothing is random beyond SEED; another CPU or torch rounds otherwise and gives slightly other weights.
"""

import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # sums, and so weights, that do not depend on the count of cores

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from nlzoo.apps import draw
from nlzoo.core.view_spec import ClipSpec  # noqa: E402
from nlzoo.networks import zoo  # noqa: E402
from nlzoo.networks.model import plain_resnet  # noqa: E402

SEED = 0
DRAWN, SIZE = 72, 64  # pixels of an image as drawn, and of the random crop that the network sees
TRAIN, HELD_OUT = 24_000, 4_000  # images
EPOCHS, BATCH, RATE = 8, 64, 3e-3
FOLDER = Path(__file__).resolve().parent / "tiny"
LABELS = [f"{texture} {shape}" for shape in draw.SHAPES for texture in draw.TEXTURES]


def image(index: int, split: int) -> tuple[np.ndarray, int]:
    """One drawn image `(DRAWN, DRAWN, 3)` uint8 and its label: a large sprite over clutter, at times partly covered."""
    rng = np.random.default_rng([SEED, split, index])
    label = index % len(LABELS)
    shape, texture = draw.SHAPES[label // len(draw.TEXTURES)], draw.TEXTURES[label % len(draw.TEXTURES)]
    canvas = draw.background(rng, (DRAWN, DRAWN), clutter=rng.integers(1, 5))
    radius = DRAWN * rng.uniform(0.18, 0.4)
    y, x = rng.uniform(min(radius, 30) + 2, DRAWN - min(radius, 30) - 2, 2)
    draw.paint(canvas, draw.sprite(rng, shape, texture, canvas), y, x, radius, rng.uniform(0, 2 * np.pi))
    if rng.random() < 0.4:
        dy, dx = rng.uniform(-1, 1, 2) * radius
        draw.paint(canvas, draw.sprite(rng), y + dy, x + dx, radius * rng.uniform(0.2, 0.4), rng.uniform(0, 2 * np.pi))
    canvas = (canvas - 128) * rng.uniform(0.7, 1.1) + 128 + rng.uniform(-25, 25)
    canvas += rng.normal(0, rng.uniform(0, 8), canvas.shape)
    return np.clip(canvas, 0, 255).astype(np.uint8), label


def images(count: int, split: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`(count, 3, DRAWN, DRAWN)` uint8 and `(count,)` labels."""
    pairs = [image(i, split) for i in range(count)]
    pixels = torch.from_numpy(np.stack([p for p, _ in pairs])).permute(0, 3, 1, 2).contiguous()
    return pixels, torch.tensor([label for _, label in pairs])


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 0..255 to float with the mean and std that clips have by default, `(B, 3, H, W)`."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (ClipSpec().mean, ClipSpec().std))
    return (pixels.float() / 255 - mean) / std


def augment(pixels: torch.Tensor) -> torch.Tensor:
    """One random crop, flip, transposition and order of colours for the batch: `(B, 3, SIZE, SIZE)` uint8."""
    top, left = torch.randint(0, DRAWN - SIZE + 1, (2,)).tolist()
    pixels = pixels[:, torch.randperm(3), top : top + SIZE, left : left + SIZE]
    if torch.rand(()) < 0.5:
        pixels = pixels.flip(3)
    return pixels.transpose(2, 3) if torch.rand(()) < 0.5 else pixels


def train(net: torch.nn.Module, pixels: torch.Tensor, labels: torch.Tensor) -> None:
    """AdamW, one cycle of the rate; prints one line per epoch."""
    steps = EPOCHS * (len(pixels) // BATCH)
    optimiser = torch.optim.AdamW(net.parameters(), RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, steps, pct_start=0.2)
    net.train()
    for epoch in range(EPOCHS):
        hits = 0
        for batch in torch.randperm(len(pixels))[: steps // EPOCHS * BATCH].view(-1, BATCH):
            logits = net(normalise(augment(pixels[batch])))
            F.cross_entropy(logits, labels[batch], label_smoothing=0.05).backward()
            optimiser.step()
            optimiser.zero_grad()
            schedule.step()
            hits += int((logits.argmax(1) == labels[batch]).sum())
        print(f"epoch {epoch + 1}/{EPOCHS}  train accuracy {hits / (steps // EPOCHS * BATCH):.3f}", flush=True)


@torch.no_grad()
def accuracy(net: torch.nn.Module, pixels: torch.Tensor, labels: torch.Tensor) -> float:
    """Share named right, centre crop."""
    net.eval()
    edge = (DRAWN - SIZE) // 2
    pixels = pixels[:, :, edge : edge + SIZE, edge : edge + SIZE]
    predictions = torch.cat([net(normalise(part)).argmax(1) for part in pixels.split(200)])
    return float((predictions == labels).float().mean())


README = """# tiny

The backbone of `nlzoo demo`: timm's `{architecture}` with {arguments};
{params:.2f} M parameters, {size:.2f} MB (kernels in half precision).
Trained by `python weights/make_tiny.py` on {train:,} drawn images of {px} px to name the shape and the texture
({labels} classes) of the largest thing on a cluttered ground:
**{top1:.3f}** right on {held:,} held-out images (chance {chance:.3f}). Good for trying nlzoo out, not for photographs.
RGB, mean and std of ImageNet. Licence: Apache-2.0.
"""


def main() -> None:
    began = time.monotonic()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    architecture, own = zoo.EMBEDDED["tiny"]
    assert own["num_classes"] == len(LABELS), "zoo.EMBEDDED and the drawn classes must agree"
    pixels, labels = images(TRAIN, split=0)
    held_pixels, held_labels = images(HELD_OUT, split=1)
    print(f"drew {TRAIN + HELD_OUT} images in {time.monotonic() - began:.0f} s", flush=True)
    net = plain_resnet("tiny")
    train(net, pixels, labels)
    FOLDER.mkdir(exist_ok=True)
    half = {k: v.half().contiguous() if v.ndim > 1 else v.contiguous() for k, v in net.state_dict().items()}
    save_file(half, FOLDER / "model.safetensors", metadata={"licence": "apache-2.0", "made_by": "weights/make_tiny.py"})
    (FOLDER / "model.safetensors").chmod(0o644)  # safetensors makes it readable for its owner only
    net.load_state_dict(load_file(FOLDER / "model.safetensors"))  # what a user gets, rounding included
    top1 = accuracy(net, held_pixels, held_labels)
    size = (FOLDER / "model.safetensors").stat().st_size / 1e6
    arguments = ", ".join(f"`{k}={v}`" for k, v in own.items())
    (FOLDER / "README.md").write_text(
        README.format(
            architecture=architecture,
            arguments=arguments,
            params=sum(p.numel() for p in net.parameters()) / 1e6,
            size=size,
            train=TRAIN,
            px=SIZE,
            labels=len(LABELS),
            top1=top1,
            held=HELD_OUT,
            chance=1 / len(LABELS),
        )
    )
    print(f"held-out accuracy {top1:.3f}, {size:.2f} MB, {time.monotonic() - began:.0f} s in all")


if __name__ == "__main__":
    main()
