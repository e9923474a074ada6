"""What a network looked at in a video: where its non-local blocks took from what (paper, figure 3), and which parts speak for a class.

Unusual: a query's row of weights w_ij is the derivative of y_i = sum_j w_ij v_j by v, so `pairwise` itself gives it, for every form, and
there is neither a second formula nor an N x N matrix. The evidence is Grad-CAM (Selvaraju et al., 2017) on the features behind res5; up to
them the pass keeps no graph. Both are of the one pass that gives the answer, in the precision of `predict`.
"""

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import UsageError, VideoError
from ..core.text import printable
from ..networks.inflate import LAYER
from ..networks.layers import NonLocalBlock
from ..training import evaluate
from ..training.recipe import autocast
from ..videos import clips, listing, loader

KEYS = 20  # of a query; figure 3 of the paper has as many
POINTS = 3  # of a block
APART = 0.25  # of the frame's height or width, at least, between the points that are chosen


class Place(NamedTuple):
    """The middle of one cell of a block's grid, in the clip."""

    frame: int  # of the clip, from 0
    y: float  # from the top, 0 to 1
    x: float  # from the left, 0 to 1


class Key(NamedTuple):
    """A `Place` that a query takes from, and how much."""

    frame: int
    y: float
    x: float
    weight: float  # f(x_i, x_j) / C(x); of dot it may be negative


@dataclass(frozen=True)
class Block:
    """One non-local block in this clip."""

    name: str  # "res4 after 3"
    form: str
    span: str
    change: float  # |z - x| / |x| over the clip
    note: str  # what is to be known before its weights are believed, in words; "" for nothing


@dataclass(frozen=True)
class Row:
    """What one query position of a block takes from all others."""

    block: Block
    query: Place
    keys: tuple[Key, ...]  # the strongest by |weight|, `KEYS` at most; those of weight 0 are left out
    share: float  # of the sum of all |weights|, that `keys` hold
    weights: np.ndarray  # float32 (T', H', W'), of all keys, 0 outside the span
    cover: tuple[
        float, float
    ]  # of the frame's height and width that H' and W' reach; below 1 where pooling dropped an odd last row or column


@dataclass(frozen=True)
class Explanation:
    """An answer for a clip, and where it comes from."""

    path: str
    answer: str  # the likeliest class
    score: float  # its probability
    of: str  # the class that `evidence` speaks for
    of_score: float  # its probability
    frames: np.ndarray  # uint8 (T, S, S, 3), as the network saw them
    evidence: np.ndarray  # float32 (T, S, S), 0 to 1
    blocks: tuple[Block, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]  # what the pictures do not show, in words

    def summary(self) -> dict:
        """The numbers, for JSON."""
        blocks = [
            {
                "name": b.name,
                "form": b.form,
                "span": b.span,
                "change": b.change,
                "note": b.note,
                "queries": [
                    r.query._asdict() | {"share": r.share, "keys": [k._asdict() for k in r.keys]}
                    for r in self.rows
                    if r.block is b
                ],
            }
            for b in self.blocks
        ]
        return {
            "path": printable(self.path),
            "answer": self.answer,
            "score": self.score,
            "of": self.of,
            "of_score": self.of_score,
            "blocks": blocks,
            "notes": list(self.notes),
        }


def explain(
    net: nn.Module,
    path: str | Path,
    device: torch.device,
    of: str | None = None,
    at: Sequence[tuple[int, float, float]] = (),
    points: int = POINTS,
) -> Explanation:
    """Reads the clip that `predict` would show the network, and explains it: see `explain_clip`. Raises `VideoError` for an unreadable file."""
    source = loader.Clips(Path(), (listing.Item(str(path), ()),), net.spec.clip)
    for _, pixels, bad in loader.load(source, [[(-1, 0)]], 1):  # in a process of its own: a file may crash a decoder
        if bad:
            raise VideoError(bad[0][1], path=path)
        return explain_clip(net, pixels[0, 0].clone(), device, str(path), of, at, points)


def explain_clip(
    net: nn.Module,
    frames: Tensor,
    device: torch.device,
    path: str = "",
    of: str | None = None,
    at: Sequence[tuple[int, float, float]] = (),
    points: int = POINTS,
) -> Explanation:
    """Explains the answer of `net`, which is on `where`, for uint8 `frames` (T, S, S, 3).

    `of`: the class that evidence is wanted for; the answered one. `at`: query points (frame of the clip, y, x), y and x in fractions of the
    frame; without, the `points` places of each block that it changes most, apart from one another. Modes, gradients and hooks of `net` are
    afterwards as they were. Raises `UsageError` for a class that is not there or a point outside the clip.
    """
    names = net.spec.classes or tuple(str(k) for k in range(net.spec.num_outputs))
    _refuse_unknown(names, of, at, len(frames))
    with (
        torch.inference_mode(False),
        _watched(net) as seen,
        evaluate.memory_errors("one video"),
        autocast(evaluate.AUTO, device),
    ):
        with torch.no_grad():
            features = net.forward_features(clips.to_input(frames[None].to(device), net.spec.clip))
        with torch.enable_grad():
            logits = net.forward_head(features.requires_grad_())[0].cpu().double()
            scores = (logits.sigmoid() if net.spec.multi_label else logits.softmax(0)).detach()
            best = int(scores.argmax())
            which = best if of is None else names.index(of)
            (gradient,) = torch.autograd.grad(logits[which], features)
    evidence = grad_cam(features.detach(), gradient, frames.shape[:3])
    blocks, rows = [], []
    for name, (block, x, change) in seen.items():
        blocks.append(
            Block(
                name,
                block.form,
                block.span,
                float(change.norm() / x.float().norm().clamp_min(1e-30)),
                _note(block, change),
            )
        )
        queries = [_cell(point, len(frames), change.shape) for point in at] or (
            [] if blocks[-1].note else strongest(change, points)
        )
        rows += [
            _row(blocks[-1], weights_of(block, x, query).cpu(), query, change.shape, len(frames))
            for query in dict.fromkeys(queries)
        ]
    return Explanation(
        path,
        names[best],
        float(scores[best]),
        names[which],
        float(scores[which]),
        frames.numpy(),
        evidence.cpu().numpy(),
        tuple(blocks),
        tuple(rows),
        tuple(_notes(blocks, rows, evidence, names[which])),
    )


def point(text: str) -> tuple[int, float, float]:
    """`FRAME,Y,X` as `explain` takes it. Raises `UsageError` for anything else."""
    try:
        frame, y, x = text.split(",")
        return int(frame), float(y), float(x)
    except ValueError:
        raise UsageError(
            f"{printable(text)!r} is no point FRAME,Y,X",
            "for example 3,0.5,0.25: frame 3 of the clip, half down, a quarter across",
        ) from None


def in_words(summary: Explanation) -> str:
    """The answer and what each block does, as lines for a person."""
    lines = [printable(summary.path), f"  {summary.score:6.3f}  {printable(summary.answer)}"]
    if summary.of != summary.answer:
        lines.append(f"  {summary.of_score:6.3f}  {printable(summary.of)}, which the evidence is for")
    lines += [f"{b.name}: {b.form}, {b.span}; changes its input by {b.change:.1%}" for b in summary.blocks]
    return "\n".join([*lines, *summary.notes])


@contextmanager
def _watched(net):
    """`net` in eval mode; gives `{"res4 after 3": (block, x, |z - x| of its positions (T, H, W))}`, filled by the next pass of one clip."""
    stages, modes, seen = {layer: stage for stage, layer in LAYER.items()}, [(m, m.training) for m in net.modules()], {}

    def keep(path, block, inputs, output):
        layer, _, name = path.partition(".nl")
        seen[f"{stages[layer]} after {name}"] = block, inputs[0], (output.float() - inputs[0].float()).norm(dim=1)[0]

    hooks = [
        m.register_forward_hook(lambda block, inputs, output, path=path: keep(path, block, inputs, output))
        for path, m in net.named_modules()
        if isinstance(m, NonLocalBlock)
    ]
    try:
        net.eval()
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training


def weights_of(block: NonLocalBlock, x: Tensor, query: tuple[int, int, int]) -> Tensor:
    """f(x_i, x_j) / C(x) for one query i = (t, y, x) of the grid of x (1, C, T, H, W), over all keys j: (T, H', W'), 0 outside the span.

    H' and W' are H and W, or half of them, rounded down, where the block pools its keys. In the dtype of the block's parameters.
    """
    t, h, w = query
    every = slice(None)
    span = {
        "spacetime": (every, every, every),
        "space": (slice(t, t + 1), every, every),
        "time": (every, slice(h, h + 1), slice(w, w + 1)),
    }[block.span]
    with torch.inference_mode(False), torch.no_grad():
        q, k, _ = block.project(x.to(block.g.weight.dtype))
        weights, k = k.new_zeros(k.shape[2:]), k[(every, every, *span)]
        v = torch.zeros_like(k[:, :1]).requires_grad_()  # of one channel, and whatever is in it: y is linear in v
        with torch.enable_grad():
            y = block.combine(q[:, :, t, h, w].unsqueeze(1), k.flatten(2).mT, v.flatten(2).mT)
        weights[span] = torch.autograd.grad(y, v)[0][0, 0]
    return weights


def strongest(change: Tensor, points: int) -> list[tuple[int, int, int]]:
    """The `points` positions (t, y, x) where `change` (T, H, W) is largest, at least `APART` from one another in height or width.

    Fewer where the frame has no room for more, or nothing changes.
    """
    left, (_, height, width) = change.cpu().clone(), change.shape
    found = []
    while len(found) < points and left.max() > 0:
        t, y, x = (int(i) for i in np.unravel_index(int(left.argmax()), left.shape))
        near_y, near_x = ((torch.arange(size) - i).abs() < APART * size for i, size in ((y, height), (x, width)))
        left[:, near_y[:, None] & near_x] = 0
        found.append((t, y, x))
    return found


def grad_cam(features: Tensor, gradient: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Grad-CAM of features (1, C, T', H', W') and a logit's gradient by them, as float32 (T, H, W) of `size`, from 0 to 1.

    Channels are weighed by the mean of their gradient; what speaks against the class is 0 (Selvaraju et al., 2017, equations 1 and 2).
    """
    heat = (features.float() * gradient.float().mean((2, 3, 4), keepdim=True)).sum(1, keepdim=True).relu()
    heat = F.interpolate(heat, size, mode="trilinear")[0, 0]
    return heat / heat.max().clamp_min(torch.finfo(heat.dtype).tiny)


def _row(block, weights, query, grid, frames):
    """`Row` of a query (t, y, x) of `grid` (T, H, W) in a clip of `frames`, for weights (T, H', W')."""
    steps = [1 if few == many else 2 for few, many in zip(weights.shape[1:], grid[1:])]
    top = weights.abs().flatten().topk(min(KEYS, weights.numel()))
    places = zip(*np.unravel_index(top.indices.numpy(), weights.shape))
    keys = tuple(
        Key(*_place(place, grid, frames, steps), float(weights[place]))
        for place, size in zip(places, top.values)
        if size > 0
    )
    share = float(top.values.sum() / weights.abs().sum()) if keys else 0.0
    cover = tuple(few * step / many for few, step, many in zip(weights.shape[1:], steps, grid[1:]))
    return Row(block, _place(query, grid, frames), keys, share, weights.float().numpy(), cover)


def _place(cell, grid, frames, steps=(1, 1)):
    """The middle of a cell (t, y, x) that is `steps` high and wide in `grid` (T, H, W)."""
    t, y, x = (int(i) for i in cell)
    return Place(int((t + 0.5) * frames / grid[0]), (y + 0.5) * steps[0] / grid[1], (x + 0.5) * steps[1] / grid[2])


def _cell(point, frames, grid):
    """The cell (t, y, x) of `grid` (T, H, W) that a point of the clip lies in."""
    frame, y, x = point
    return int((frame + 0.5) * grid[0] / frames), min(int(y * grid[1]), grid[1] - 1), min(int(x * grid[2]), grid[2] - 1)


def _refuse_unknown(names, of, at, frames):
    if of is not None and of not in names:
        raise UsageError(
            f"this model does not know class {printable(of)!r}", f"its classes: {', '.join(map(printable, names[:12]))}"
        )
    for frame, y, x in at:
        if not (0 <= frame < frames and 0 <= y <= 1 and 0 <= x <= 1):
            raise UsageError(
                f"the point {frame},{y:g},{x:g} lies outside the clip",
                f"its frames are 0 to {frames - 1}; y goes from 0 (top) to 1, x from 0 (left) to 1",
            )


def _note(block, change):
    """What makes the weights of a block meaningless, or ""."""
    if not block.w_z.weight.any() or block.norm == "bn" and not block.bn.weight.any():
        return (
            "adds the same everywhere, wherever it looks" if change.any() else "has not been trained: it adds nothing"
        )
    return "" if change.any() else "adds nothing to this clip"


def _notes(blocks, rows, evidence, of):
    if not blocks:
        yield "this network has no non-local blocks, so there are no arrows; the evidence is all there is"
    yield from (f"{b.name} {b.note}" for b in blocks if b.note)
    yield from (
        f"{r.block.name}: the point {r.query.frame},{r.query.y:.2f},{r.query.x:.2f} takes nothing from anywhere"
        for r in rows
        if not r.keys
    )
    if not evidence.any():
        yield f"nothing in the clip speaks for {printable(of)}"
