"""Why a network gave its prediction: where its non-local blocks attend to (paper, figure 3), and the evidence for a
class.

Unusual: a query's row of weights w_ij is the derivative of y_i = sum_j w_ij v_j by v. So `pairwise` itself gives it,
for every form, and there is neither a second formula nor an N x N matrix. The evidence is Grad-CAM (Selvaraju et al.,
2017) at res5; up to there the pass keeps no graph. Both come from the one pass that gives the prediction, in the
precision of `predict`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.errors import UsageError, VideoError
from ..core.model_spec import refuse_other_kinds
from ..core.text import nearest, printable, quoted
from ..core.view_spec import ViewSpec
from ..networks.inflate import LAYER
from ..networks.layers import NonLocalBlock
from ..networks.network import Network
from ..training import evaluate, metrics, outputs
from ..training.devices import autocast, memory_errors
from ..videos import clips, listing, loader

KEYS = 20  # of a query; figure 3 of the paper has as many
POINTS = 3  # of a block
APART = 0.25  # of the frame's height or width, at least, between the points that are chosen
Cell = tuple[int, int, int]  # (t, y, x) in the grid (T, H, W) of a block


class Place(NamedTuple):
    """The middle of one cell of a block's grid, in the clip."""

    frame: int  # of the clip, from 0
    y: float  # from the top, 0 to 1
    x: float  # from the left, 0 to 1


class Key(NamedTuple):
    """A `Place` that a query attends to, and how strongly."""

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
    note: str  # why its weights mean nothing, in words; "" where they do


@dataclass(frozen=True)
class Row:
    """How one query position of a block attends to all others."""

    block: Block
    query: Place
    keys: tuple[Key, ...]  # the strongest by |weight|, `KEYS` at most, without those of weight 0
    share: float  # of the sum of all |weights|, that `keys` hold
    weights: np.ndarray  # float32 (T', H', W'), of all keys, 0 outside the span
    cover: tuple[
        float, float
    ]  # of the frame's height and width; below 1 where pooling dropped an odd last row or column


@dataclass(frozen=True)
class Explanation:
    """A prediction for a clip, and where it comes from."""

    path: str
    prediction: str  # the likeliest class
    score: float  # its probability
    target_class: str  # that `evidence` is for
    target_score: float  # its probability
    frames: np.ndarray  # uint8 (T, S, S, 3), as the network saw them, or a picture of them
    evidence: np.ndarray  # float32 (T, S, S), 0 to 1
    blocks: tuple[Block, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]  # what the pictures do not show, in words

    def summary(self) -> dict:
        """The numbers, for JSON."""
        return {
            "path": printable(self.path),
            "answer": self.prediction,
            "score": self.score,
            "of": self.target_class,
            "of_score": self.target_score,
            "blocks": [vars(block) | {"queries": self._queries(block)} for block in self.blocks],
            "notes": list(self.notes),
        }

    def _queries(self, block: Block) -> list[dict]:
        rows = [row for row in self.rows if row.block is block]
        return [row.query._asdict() | {"share": row.share, "keys": [key._asdict() for key in row.keys]} for row in rows]

    def __str__(self) -> str:
        """The prediction and what each block does, as lines for a person."""
        lines = [printable(self.path), f"  {self.score:6.3f}  {printable(self.prediction)}"]
        if self.target_class != self.prediction:
            lines.append(f"  {self.target_score:6.3f}  {printable(self.target_class)}, which the evidence is for")
        lines += [f"{b.name}: {b.form}, {b.span}; changes its input by {b.change:.1%}" for b in self.blocks]
        return "\n".join([*lines, *self.notes])


def explain(
    net: Network,
    path: str | Path,
    device: torch.device,
    target_class: str | None = None,
    at: Sequence[tuple[int, float, float]] = (),
    points: int = POINTS,
) -> Explanation:
    """Explains the clip of a video that `predict` shows the network, of several the middle one: see `explain_clip`.

    Raises `VideoError` for an unreadable file.
    """
    source = loader.Clips(Path(), (listing.Item(str(path), ()),), net.spec.clip, views=ViewSpec())
    for _, pixels, bad in loader.load(source, [[(-1, 0)]], 1):  # in a process of its own: a file may crash a decoder
        if pixels is None:
            raise VideoError(bad[0][1], path=path)
        frames = pixels[0, 0].clone()
    return explain_clip(net, frames, device, str(path), target_class, at, points)


def explain_clip(
    net: Network,
    frames: Tensor,
    device: torch.device,
    path: str = "",
    target_class: str | None = None,
    at: Sequence[tuple[int, float, float]] = (),
    points: int = POINTS,
) -> Explanation:
    """Explains the prediction of `net`, which is on `device`, for uint8 `frames` (T, S, S, C).

    `target_class`: the class that the evidence is for; the predicted one if None. `at`: query points (frame of the
    clip, y, x), y and x as fractions of the frame; without, the `points` places that each block changes most, apart
    from one another. Modes, gradients and hooks of `net` are left as they were. Raises `UsageError` for an unknown
    class or a point outside the clip, and `DivergedError` for scores that are not finite.
    """
    refuse_other_kinds(net.spec, "be explained")
    names = evaluate.class_names(net)
    _check_request(names, target_class, at, len(frames))
    with (
        torch.inference_mode(False),
        _recording(net) as recorded,
        memory_errors("one video"),
        autocast(outputs.AUTO, device, training=False),
    ):
        with torch.no_grad():
            features = net.forward_features(clips.to_input(frames[None].to(device), net.spec.clip))
        with torch.enable_grad():
            logits = net.forward_head(features.requires_grad_())[0].cpu().double()
            scores = (logits.sigmoid() if net.spec.multi_label else logits.softmax(0)).detach()
            metrics.check_finite(scores[None].numpy(), [path])
            predicted = int(scores.argmax())
            target = predicted if target_class is None else names.index(target_class)
            (gradient,) = torch.autograd.grad(logits[target], features)
    evidence = grad_cam(features.detach(), gradient, (len(frames), *frames.shape[1:3]))
    rows = {}
    for one in recorded:
        change = float(one.change.norm() / one.x.float().norm().clamp_min(1e-30))
        block = Block(one.name, one.block.form, one.block.span, change, _note(one.block, one.change))
        rows[block] = _rows(block, one, at, points, len(frames))
    return Explanation(
        path,
        names[predicted],
        float(scores[predicted]),
        names[target],
        float(scores[target]),
        clips.as_pictures(frames.numpy()),
        evidence.cpu().numpy(),
        tuple(rows),
        tuple(row for some in rows.values() for row in some),
        tuple(_notes(rows, evidence, names[target])),
    )


def parse_point(text: str) -> tuple[int, float, float]:
    """`FRAME,Y,X` as `explain` takes it. Raises `UsageError` for anything else."""
    try:
        frame, y, x = text.split(",")
        return int(frame), float(y), float(x)
    except ValueError:
        raise UsageError(
            f"{printable(text)!r} is not a point FRAME,Y,X",
            "for example 3,0.5,0.25: frame 3 of the clip, half down, a quarter across",
        ) from None


class _Recorded(NamedTuple):
    """One non-local block in a pass."""

    name: str  # "res4 after 3"
    block: NonLocalBlock
    x: Tensor  # its input (1, C, T, H, W)
    change: Tensor  # |z - x| of each position, float32 (T, H, W)


@contextmanager
def _recording(net: Network) -> Iterator[list[_Recorded]]:
    """`net` in eval mode; gives a list that the next pass of one clip fills."""
    stages = {layer: stage for stage, layer in LAYER.items()}
    names = {m: path.split(".nl") for path, m in net.named_modules() if isinstance(m, NonLocalBlock)}
    modes = [(m, m.training) for m in net.modules()]
    recorded: list[_Recorded] = []

    def record(block: NonLocalBlock, inputs: tuple[Tensor], output: Tensor) -> None:
        layer, number = names[block]
        change = (output.float() - inputs[0].float()).norm(dim=1)[0]
        recorded.append(_Recorded(f"{stages[layer]} after {number}", block, inputs[0], change))

    hooks = [block.register_forward_hook(record) for block in names]
    try:
        net.eval()
        yield recorded
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training


def weights_of(block: NonLocalBlock, x: Tensor, query: Cell) -> Tensor:
    """f(x_i, x_j) / C(x) of one query i = (t, y, x) of the grid of x (1, C, T, H, W), over all keys j: (T, H', W').

    0 outside the span. H' and W' are H and W, or half of them, rounded down, where the block pools its keys. In the
    dtype of the block's parameters.
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
        v = torch.zeros_like(k[:, :1]).requires_grad_()  # one channel of any values: y is linear in v
        with torch.enable_grad():
            y = block.combine(q[:, :, t, h, w].unsqueeze(1), k.flatten(2).mT, v.flatten(2).mT)
        weights[span] = torch.autograd.grad(y, v)[0][0, 0]
    return weights


def strongest(change: Tensor, points: int) -> list[Cell]:
    """The `points` positions (t, y, x) where `change` (T, H, W) is largest, `APART` from one another in height or
    width.

    Fewer where the frame has no room for more, or nothing changes.
    """
    left, (_, height, width) = change.cpu().clone(), change.shape
    cells: list[Cell] = []
    while len(cells) < points and left.max() > 0:
        t, y, x = _cell_of(left, int(left.argmax()))
        near_y = (torch.arange(height) - y).abs() < APART * height
        near_x = (torch.arange(width) - x).abs() < APART * width
        left[:, near_y[:, None] & near_x] = 0
        cells.append((t, y, x))
    return cells


def _cell_of(grid: Tensor, index: int) -> Cell:
    """The cell (t, y, x) of `grid` (T, H, W) with this flat index."""
    t, y, x = (int(i) for i in np.unravel_index(index, grid.shape))
    return t, y, x


def grad_cam(features: Tensor, gradient: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Grad-CAM of features (1, C, T', H', W') and a logit's gradient by them: float32 (T, H, W) of `size`, from 0 to 1.

    Channels are weighed by the mean of their gradient; evidence against the class is 0 (Selvaraju et al., 2017,
    equations 1 and 2).
    """
    heat = (features.float() * gradient.float().mean((2, 3, 4), keepdim=True)).sum(1, keepdim=True).relu()
    heat = F.interpolate(heat, size, mode="trilinear")[0, 0]
    return heat / heat.max().clamp_min(torch.finfo(heat.dtype).tiny)


def _note(block: NonLocalBlock, change: Tensor) -> str:
    """What makes the weights of a block meaningless, or ""."""
    if not block.w_z.weight.any() or block.norm == "bn" and not block.bn.weight.any():
        return "adds the same everywhere, wherever it attends to" if change.any() else "is not trained: it adds nothing"
    return "" if change.any() else "adds nothing to this clip"


def _rows(block: Block, one: _Recorded, at: Sequence[tuple[int, float, float]], points: int, frames: int) -> list[Row]:
    """A `Row` for each query: those at the points `at`, else the strongest where the weights mean something."""
    queries = [_cell(point, frames, one.change.shape) for point in at]
    if not at and not block.note:
        queries = strongest(one.change, points)
    return [
        row_of(block, weights_of(one.block, one.x, query).cpu(), query, one.change.shape, frames)
        for query in dict.fromkeys(queries)
    ]


def row_of(block: Block, weights: Tensor, query: Cell, grid: Sequence[int], frames: int) -> Row:
    """`Row` of a query (t, y, x) of `grid` (T, H, W) in a clip of `frames`, for weights (T, H', W')."""
    steps = [1 if few == many else 2 for few, many in zip(weights.shape[1:], grid[1:])]
    top = weights.abs().flatten().topk(min(KEYS, weights.numel()))
    cells = [_cell_of(weights, index) for index, size in zip(top.indices.tolist(), top.values) if size > 0]
    keys = tuple(Key(*_place(cell, grid, frames, steps), float(weights[cell])) for cell in cells)
    share = float(top.values.sum() / weights.abs().sum()) if keys else 0.0
    height, width = (few * step / many for few, step, many in zip(weights.shape[1:], steps, grid[1:]))
    return Row(block, _place(query, grid, frames), keys, share, weights.float().numpy(), (height, width))


def _place(cell: Cell, grid: Sequence[int], frames: int, steps: Sequence[int] = (1, 1)) -> Place:
    """The middle of a cell (t, y, x) that is `steps` high and wide in `grid` (T, H, W)."""
    t, y, x = cell
    return Place(int((t + 0.5) * frames / grid[0]), (y + 0.5) * steps[0] / grid[1], (x + 0.5) * steps[1] / grid[2])


def _cell(point: tuple[int, float, float], frames: int, grid: Sequence[int]) -> Cell:
    """The cell (t, y, x) of `grid` (T, H, W) that a point of the clip lies in."""
    frame, y, x = point
    return int((frame + 0.5) * grid[0] / frames), min(int(y * grid[1]), grid[1] - 1), min(int(x * grid[2]), grid[2] - 1)


def _check_request(
    names: Sequence[str], target_class: str | None, at: Sequence[tuple[int, float, float]], frames: int
) -> None:
    if target_class is not None and target_class not in names:
        near = quoted(nearest(target_class, names))
        hint = f"did you mean {near}?" if near else f"its classes: {quoted(names)}"
        raise UsageError(f"this model does not know class {quoted([target_class])}", hint)
    for frame, y, x in at:
        if not (0 <= frame < frames and 0 <= y <= 1 and 0 <= x <= 1):
            raise UsageError(
                f"the point {frame},{y:g},{x:g} lies outside the clip",
                f"its frames are 0 to {frames - 1}; y goes from 0 (top) to 1, x from 0 (left) to 1",
            )


def _notes(rows: dict[Block, list[Row]], evidence: Tensor, target_class: str) -> Iterator[str]:
    if not rows:
        yield "this network has no non-local blocks, so there are no arrows, only the evidence"
    for block in rows:
        if block.note:
            yield f"{block.name} {block.note}"
    for row in (row for some in rows.values() for row in some if not row.keys):
        yield f"{row.block.name}: the point {row.query.frame},{row.query.y:.2f},{row.query.x:.2f} attends to nothing"
    if not evidence.any():
        yield f"there is no evidence for {printable(target_class)} in the clip"
