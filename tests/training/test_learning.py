"""That training learns what it can and nothing else, and takes the steps that it took before."""

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from sounds import tone, with_sound
from test_train import CPU, network, planned
from torch import nn

from nlzoo import NonLocalBlock
from nlzoo.core.model_spec import Inflation, ModelSpec, NonLocal
from nlzoo.core.view_spec import ClipSpec
from nlzoo.networks import googlenet, model
from nlzoo.training import step
from nlzoo.videos import listing, scanning

GOLDEN = Path(__file__).parent / "golden_losses.json"


# --- what a block sees: positions that nothing else joins


def same_or_other(task, count, rng):
    """Clips `(N, 8, 4, 2, 2)` with two marks of four kinds each, and whether they are of one kind.

    time: the marks lie at one position of two frames; space: at two positions of one frame.
    """
    x = 0.1 * rng.standard_normal((count, 8, 4, 2, 2)).astype(np.float32)
    label = rng.integers(0, 2, count)
    for clip, same in zip(x, label):
        first, second = rng.integers(4), rng.integers(1, 4)
        kinds = first, first if same else (first + second) % 4
        times = rng.permutation(4)[:2] if task == "time" else [rng.integers(4)] * 2
        places = [rng.integers(4)] * 2 if task == "time" else rng.permutation(4)[:2]
        for kind, t, place in zip(kinds, times, places):
            clip[kind, t, place // 2, place % 2] += 2
            clip[4 + kind, t, place // 2, place % 2] -= 2
    return torch.from_numpy(x), torch.from_numpy(label)


class Point(nn.Module):
    """1x1x1 layers around one block, and the mean over all positions: only the block joins them."""

    def __init__(self, span):
        super().__init__()
        self.before, self.block = nn.Conv3d(8, 32, 1), NonLocalBlock(32, span=span, subsample="none")
        self.after, self.fc = nn.Conv3d(32, 64, 1), nn.Linear(64, 2)

    def forward(self, x):
        x = self.block(self.before(x).relu())
        return self.fc(self.after(x).relu().mean((2, 3, 4)))


@pytest.mark.parametrize("span", ["time", "space"])
@pytest.mark.parametrize("task", ["time", "space"])
def test_a_span_learns_what_it_joins_and_nothing_else(span, task):
    """Whether two marks are alike is no sum over positions: without a span that joins them it cannot be known."""
    torch.manual_seed(0)
    rng, net = np.random.default_rng(0), Point(span)
    optimizer = torch.optim.AdamW(net.parameters(), 5e-3)
    for _ in range(250 if span == task else 500):  # what cannot be learnt gets twice the time
        x, label = same_or_other(task, 64, rng)
        nn.functional.cross_entropy(net(x), label).backward()
        optimizer.step()
        optimizer.zero_grad()
    net.eval()
    x, label = same_or_other(task, 1000, rng)
    right = (net(x).argmax(1) == label).float().mean().item()
    assert right > 0.95 if span == task else right < 0.6


# --- the first steps of a run


def first_losses(folder, recipe="small", count=20, of=network):
    """The losses of `count` steps of 4 clips that numpy draws, on the network that `of` makes for the classes.

    That is the tiny network with one block. Videos are not read, and only of sound there are any.
    """
    items = tuple(
        listing.Item(f"{k}{n}.mp4", (k,), split=part) for k in "abc" for n, part in enumerate(["train"] * 8 + ["val"])
    )
    found = scanning.Dataset(folder, items, (), 0)
    net = of(found.classes)
    size, channels = net.spec.clip.size, net.spec.clip.channels
    if net.spec.clip.stream == "audio":  # what has no sound is not trained on
        for item in items:
            with_sound(folder / item.path, tone(0.1, 300), frames=2)
    config, _ = planned(found, recipe=recipe, epochs=4, batch=4, seed=7)
    job = step.prepare(net, found, config, CPU)
    rng, losses = np.random.default_rng(11), []
    for n in range(count):
        indices = rng.permutation(len(job.train_clips))[:4].tolist()
        pixels = torch.from_numpy(rng.integers(0, 256, (4, 1, 4, size, size, channels), np.uint8))
        loss, seen, _ = step.train_step(job, indices, pixels, [])
        job.progress.step = n + 1
        losses.append(loss / seen)
    return losses


def of_stream(stream):
    """`network`, made one of flow or of sound."""
    return lambda classes: model.set_stream(network(classes), stream)


def inception(classes):
    """GoogLeNet as I3D with one block, randomly initialised."""
    torch.manual_seed(0)  # of the block
    spec = ModelSpec(
        "googlenet", Inflation("i3d-333"), (NonLocal("res4", (4,)),), replace(googlenet.CLIP, frames=4, size=64)
    )
    return model.set_head(model.build(spec), classes)


def on_frames(name):
    """timm's 2-D network on single frames, randomly initialised."""
    spec = ModelSpec(name, Inflation("frames"), clip=ClipSpec(4, None, 32))
    return lambda classes: model.set_head(model.build(spec), classes)


OTHERS = {  # network, recipe, steps
    "flow": (of_stream("flow"), "small", 5),
    "audio": (of_stream("audio"), "small", 5),
    # deep, random and of few positions: where a gradient is all rounding, AdamW would take a whole step all the same
    "googlenet": (inception, "paper", 4),
    "frames-vit": (on_frames("test_vit"), "small", 5),
    "frames-efficientnet": (on_frames("test_efficientnet"), "small", 5),
}
RECIPES = ("small", "paper", "paper-long,ema=0.9,accumulate=2,clip_norm=1")


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_first_losses_are_those_of_before(recipe, tmp_path):
    """Make anew, for a reason that the commit gives, with: python tests/test_learning.py"""
    losses = first_losses(tmp_path, recipe)
    assert losses == first_losses(tmp_path, recipe)  # bit for bit on one machine
    known = json.loads(GOLDEN.read_text())
    assert losses == pytest.approx(known[recipe], rel=1e-4)


@pytest.mark.parametrize("name", OTHERS)
def test_so_are_those_of_other_streams_of_inception_and_of_2d_networks(name, tmp_path):
    make, recipe, steps = OTHERS[name]
    known = json.loads(GOLDEN.read_text())
    assert first_losses(tmp_path, recipe, steps, make) == pytest.approx(known[name], rel=1e-4)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        made = {recipe: first_losses(Path(folder), recipe) for recipe in RECIPES}
        made |= {name: first_losses(Path(folder), recipe, steps, of) for name, (of, recipe, steps) in OTHERS.items()}
    GOLDEN.write_text(json.dumps(made, indent=1) + "\n")
