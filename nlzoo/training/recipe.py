"""What a `Recipe` means in torch: parameter groups, rates, BN, stages of unfreezing, balance, loss, memory.

Plain functions on timm's ResNet with 3-D leaves and non-local blocks. What timm has fits where it does not look at
paths: its moving average (`model.moving_average`) and its checkpointing of activations. Its layer decay does not: it
takes `layer3.nl1`, which its pattern does not match, for a part of the head; so that table is written here. That of a
2-D network on single frames is timm's.
"""

import copy
import dataclasses
import inspect
import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..core.errors import UsageError
from ..core.model_spec import POOLS, STAGES
from ..core.recipe_spec import Recipe
from ..core.view_spec import ClipSpec
from ..networks import googlenet, shapes
from ..networks.frame_network import FrameNetwork
from ..networks.frames import BatchNorm
from ..networks.inflate import LAYER
from ..networks.layers import NonLocalBlock
from ..networks.model import frame_depths, undecayed
from ..networks.network import Network
from .devices import autocast

KERNEL_SIZE = 0.14  # root mean square of the kernels of the network on which AdamW's rates were found
HEAD_RATE = 3.0  # AdamW: the fresh head's rate, as a multiple of the backbone's
MOMENTUM = 0.9  # SGD, Nesterov (paper)


# -- rates ------------------------------------------------------------------------------------------------------------


def parameter_groups(net: Network, recipe: Recipe) -> list[dict]:
    """Groups for `optimizer`, each with its highest rate as `base`; nothing with one axis (BN, biases) decays.

    Nor does what timm says of a network on single frames (positions, tokens); kernels are all that decays.

    SGD: the recipe's rate. AdamW: a rate for each backbone kernel, and 3 times the recipe's for the head. BN makes a
    network blind to the size of a kernel, and zoos train theirs to sizes that differ tenfold; Adam's steps do not know
    it. So a kernel's rate is `lr` in proportion to its own root mean square. All times `layer_rates`.
    """
    blocks = {id(p) for block in _blocks(net) for p in block.parameters()}
    head = {id(p) for p in net.fc.parameters()}
    by_depth = layer_rates(net, recipe.layer_decay)
    on_frames = isinstance(net, FrameNetwork)
    plain = undecayed(net) if on_frames else set()
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, p in net.named_parameters():
        rate = by_depth[name]
        is_kernel = p.ndim > 1 and name not in plain
        if recipe.optimizer == "adamw":
            backbone_kernel = is_kernel and (on_frames or p.ndim == 5) and id(p) not in blocks
            rate *= HEAD_RATE if id(p) in head else kernel_size(p) / KERNEL_SIZE if backbone_kernel else 1.0
        groups.setdefault((rate, recipe.weight_decay if is_kernel else 0.0), []).append(p)
    return [
        {"params": ps, "lr": recipe.lr * rate, "base": recipe.lr * rate, "weight_decay": decay}
        for (rate, decay), ps in groups.items()
    ]


@torch.no_grad()
def kernel_size(weight: torch.Tensor) -> float:
    """Root mean square of a kernel, of one `(O, I, t, h, w)` summed over its taps: inflating it does not change it."""
    taps = weight.float().sum(2) if weight.ndim == 5 else weight.float()
    size = taps.square().mean().sqrt().item()
    if not math.isfinite(size):  # squares of huge weights overflow
        size = taps.double().square().mean().sqrt().item()
    return size or KERNEL_SIZE


def layer_rates(net: Network, decay: float) -> dict[str, float]:
    """`{parameter: decay ** (residual blocks from it to the head)}`: 1 for the head, the least for the stem.

    A non-local block has the rate of the residual block that it stands behind. Of a network on single frames the blocks
    are those that timm tells apart. Raises `UsageError` where it does not.
    """
    depths = frame_depths(net) if isinstance(net, FrameNetwork) and decay < 1 else {}
    depth = max(depths.values(), default=0)
    for stage in () if isinstance(net, FrameNetwork) else STAGES:
        for key, part in getattr(net, LAYER[stage]).named_children():
            depth += key.isdigit()  # nl4 and pool2 are no residual blocks
            depths |= {f"{LAYER[stage]}.{key}.{name}": depth for name, _ in part.named_parameters()}
    depths |= {f"fc.{name}": depth + 1 for name, _ in net.fc.named_parameters()}
    return {name: decay ** (depth + 1 - depths.get(name, 0)) for name, _ in net.named_parameters()}


def optimizer(net: Network, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW or SGD over all parameters. Those that do not train (`staged`) have no gradient, and take no step."""
    groups = parameter_groups(net, recipe)
    # one kernel for all tensors of a group; a CPU keeps to torch's default, whose rounding differs
    fused = True if net.fc.weight.device.type == "cuda" else None
    if recipe.optimizer == "sgd":
        return uncompiled(torch.optim.SGD)(groups, momentum=MOMENTUM, nesterov=True, fused=fused)
    return uncompiled(torch.optim.AdamW)(groups, fused=fused)


def uncompiled(kind: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """An optimiser whose methods do not import torch's compiler, which takes two seconds and which they do not use.

    torch wraps them so that a compiler, were it tracing them, would leave them alone; ours are never traced.
    """
    bare = {name: inspect.unwrap(getattr(kind, name)) for name in ("add_param_group", "state_dict", "load_state_dict")}
    step, zero_grad = torch.no_grad()(inspect.unwrap(kind.step)), inspect.unwrap(kind.zero_grad)
    return type(kind.__name__, (kind,), {**bare, "step": step, "zero_grad": zero_grad})


def rate_factor(recipe: Recipe, step: int, steps: int) -> float:
    """What the rates of `step` (from 0) are multiplied by in a run of `steps`: a linear warm-up, then the schedule.

    cosine: half a cosine down to 0. step: a tenth from each milestone on; milestones count from the run's start.
    """
    warm = max(1, round(recipe.warm_up * steps)) if recipe.warm_up else 0
    if step < warm:
        return (step + 1) / warm
    if recipe.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
    if recipe.schedule == "step":
        return 0.1 ** sum(step >= round(share * steps) for share in recipe.milestones)
    return 1.0


def range_test(losses: Sequence[float], rates: Sequence[float]) -> float:
    """The rate to train with, from the losses of a short run whose `rates` (above 0) rose from step to step.

    The smaller of two: where the smoothed loss falls fastest on the rates' logarithmic scale, and a tenth of the rate
    at which it blows up (is not finite, or twice as far above its lowest value as the first one was, a tenth of that
    one at least) or the run ends.
    Raises `UsageError` where the loss never falls, and for fewer than 10 steps before it blows up.
    """
    smooth, end = _smoothed(losses)
    if end < 10:
        raise UsageError(
            f"the loss blew up after {end} steps of the range test, at a rate of {rates[min(end, len(rates) - 1)]:.1g}",
            "start it at a lower rate, or give --lr",
        )
    slopes = np.gradient(smooth[:end], np.log(np.asarray(rates[:end], float)))
    slopes = slopes[: int(np.argmin(smooth[:end])) + 1]  # behind the lowest point a fall is noise
    if slopes.min() >= 0:
        raise UsageError(
            f"the loss fell at no rate from {rates[0]:.1g} to {rates[end - 1]:.1g}",
            "give --lr; nlzoo check shows the videos",
        )
    return float(min(rates[int(np.argmin(slopes))], rates[min(end, len(rates) - 1)] / 10))


def _smoothed(losses: Sequence[float], keep: float = 0.8) -> tuple[np.ndarray, int]:
    """A moving average without the bias of its start, and the number of steps before it blows up."""
    values: list[float] = []
    average, lowest = 0.0, math.inf
    for n, value in enumerate(losses):
        average = keep * average + (1 - keep) * value
        now = average / (1 - keep ** (n + 1))
        lowest = min(lowest, now)
        first = values[0] if values else now
        if not math.isfinite(value) or now - lowest > 2 * max(first - lowest, 0.1 * abs(first)):
            break
        values.append(now)
    return np.array(values), len(values)


# -- what trains ------------------------------------------------------------------------------------------------------


def _blocks(net: Network) -> list[NonLocalBlock]:
    return [m for m in net.modules() if isinstance(m, NonLocalBlock)]


def batch_norms(net: Network, bn: str = "train", freeze: str = "none") -> list[_BatchNorm]:
    """The BN that learns: all of it but that of frozen stages, or, where `bn` is frozen, only the blocks' own."""
    parts = _blocks(net) if bn == "frozen" else [net]
    constant = {m for part in _frozen_parts(net, freeze) for m in part.modules()}
    constant -= {m for block in _blocks(net) for m in block.modules()}
    return [m for part in parts for m in part.modules() if isinstance(m, _BatchNorm) and m not in constant]


def _frozen_parts(net: Network, freeze: str) -> list[nn.Module]:
    """The stem and the stages up to `freeze`; their non-local blocks train all the same."""
    if freeze == "none":
        return []
    last = STAGES.index("res5" if freeze == "backbone" else freeze)
    kept = {"fc", *(LAYER[stage] for stage in STAGES[last + 1 :])}
    return [part for name, part in net.named_children() if name not in kept]


def values_per_channel(net: Network, bn: str = "train", freeze: str = "none") -> int:
    """The fewest values that a BN which learns gets of a channel, of one clip of the network's; 2 where none learns.

    At most that, of a network on single frames.
    """
    if isinstance(net, FrameNetwork):
        return min([2, *shapes.values_of_image(net, batch_norms(net, bn, freeze))]) if net.spec.clip.frames == 1 else 2
    paths = {module: path for path, module in net.named_modules()}
    given = {call.path: call.given for call in shapes.calls(net, net.spec.clip)}
    learning = (paths[m] for m in batch_norms(net, bn, freeze))
    inputs = (given.get(path) or given[path.rpartition(".")[0]] for path in learning)  # a non-local block's are its own
    return min([2, *(math.prod(shape[2:]) for shape in inputs)])


def min_clips(net: Network, recipe: Recipe) -> int:
    """The fewest clips of a forward pass in training: with one, BN may have one value of a channel."""
    return 2 if values_per_channel(net, recipe.bn, recipe.freeze) == 1 else 1


def num_parts(clips: int, accumulate: int, min_clips: int) -> int:
    """In how many parts `clips` clips are computed, each of at least `min_clips`."""
    return max(1, min(accumulate, clips // min_clips))


def clips_at_a_time(net: Network, recipe: Recipe, world: int = 1) -> int:
    """How many clips each of `world` processes computes in a forward pass of training, at most."""
    clips = -(-recipe.batch // world)
    return -(-clips // num_parts(clips, recipe.accumulate, min_clips(net, recipe)))


def check_batch_norm(net: Network, recipe: Recipe, clips: int, world: int = 1) -> None:
    """Raises `UsageError` where BN would get one value of a channel in a step of `clips` clips, over all processes.

    And where it is to be synchronised and is not all ours, which timm's on single images is not.
    """
    if recipe.bn == "sync" and not all(isinstance(m, BatchNorm) for m in batch_norms(net)):
        raise UsageError(
            f"bn=sync is not for {net.spec.backbone}: BatchNorm of its own sees the images of one process",
            "leave it out, or take bn=frozen",
        )
    if clips // (1 if recipe.bn == "sync" else world) > 1 or values_per_channel(net, recipe.bn, recipe.freeze) > 1:
        return
    frozen = recipe.bn != "frozen" and values_per_channel(net, "frozen") > 1
    raise UsageError(
        f"BatchNorm would get one value per channel: the last stage leaves one position of a clip of {net.spec.clip}, "
        "and a step has 1 clip",
        f"--batch {2 * world} or more, a larger --size or more --frames"
        + (", or --recipe bn=frozen" if frozen else ""),
    )


def freeze_bn_(net: Network, bn: str = "frozen", freeze: str = "none") -> None:
    """BN as constants, in place: statistics and affine, of all that does not learn.

    The non-local blocks' own always learns: its gamma of 0 could never leave it. `net.train()` would put BN back into
    training mode; `train_mode_` does not.
    """
    learning = set(batch_norms(net, bn, freeze))
    for m in batch_norms(net):
        if m not in learning:
            m.eval().requires_grad_(False)


def train_mode_(net: Network, recipe: Recipe) -> None:
    """`net.train()`, after which frozen BN is frozen still; to be called wherever a run calls `net.train()`."""
    net.train()
    if recipe.bn == "frozen" or recipe.freeze != "none":
        freeze_bn_(net, recipe.bn, recipe.freeze)


def staged(net: Network, recipe: Recipe, share: float) -> bool:
    """Sets what trains at `share` (0 to 1) of the run, in place; whether that has changed.

    Until `recipe.unfreeze` only the head and the non-local blocks with their BN train, then everything but frozen BN
    and the stages that `recipe.freeze` names.
    The backbone's BN statistics follow `recipe.bn` all the while: its running means move before its kernels do.
    """
    first = {id(p) for part in (net.fc, *_blocks(net)) for p in part.parameters()}
    learning = {id(p) for m in batch_norms(net, recipe.bn, recipe.freeze) for p in m.parameters()}
    frozen = {id(p) for m in batch_norms(net) for p in m.parameters()} - learning
    frozen |= {id(p) for part in _frozen_parts(net, recipe.freeze) for p in part.parameters()}
    changed = False
    for p in net.parameters():
        trains = id(p) in first or share >= recipe.unfreeze and id(p) not in frozen
        changed |= trains != p.requires_grad
        p.requires_grad_(trains)
    return changed


@torch.no_grad()
def precise_bn_(
    net: Network,
    batches: Iterable[torch.Tensor],
    device: torch.device,
    bn: str = "train",
    freeze: str = "none",
) -> None:
    """Replaces running statistics by those over all of `batches`, in place; `net` is in eval mode afterwards.

    `batches`: inputs of the network, `(B, C, T, H, W)`, of any sizes. Each BN normalises by its batch, as in training,
    with dropout off; its mean is then that of all numbers it saw, and its variance theirs (over N - 1), summed up in
    float64. `bn` frozen: only the non-local blocks' own; `freeze`: not of frozen stages. Runs under the caller's
    autocast. Raises `ValueError` without a batch.
    """
    learning = batch_norms(net, bn, freeze)
    sums: dict[_BatchNorm, torch.Tensor] = {
        m: torch.zeros(3, m.num_features, dtype=torch.float64) for m in learning
    }  # on the CPU: mps has no float64

    def look(m: Any, inputs: tuple[torch.Tensor]) -> None:
        x = inputs[0].float()
        var, mean = torch.var_mean(x, [d for d in range(x.ndim) if d != 1], correction=0)
        var, mean, count = var.cpu().double(), mean.cpu().double(), x.numel() // x.shape[1]
        sums[m] += count * torch.stack([torch.ones_like(mean), mean, var + mean.square()])

    net.eval()
    handles = [m.train().register_forward_pre_hook(look) for m in learning]
    counters = [m.num_batches_tracked for m in learning if m.num_batches_tracked is not None]
    kept = [counter.clone() for counter in counters]
    try:
        for inputs in batches:
            net(inputs.to(device))
    finally:
        for handle in handles:
            handle.remove()
        net.eval()
        for counter, value in zip(counters, kept):
            counter.copy_(value)
    for m, (count, total, square) in sums.items():
        assert m.running_mean is not None and m.running_var is not None
        if not bool(count.all()):
            raise ValueError("there was no batch to take BN's statistics from")
        mean = total / count
        m.running_mean.copy_(mean)
        m.running_var.copy_((square / count - mean.square()).clamp_min(0) * (count / (count - 1).clamp_min(1)))


def lengthen(net: Network, frames: int, stride: int | None) -> Network:
    """A trained network as the start of longer (or shorter) clips, in place; returns it. Weights stay as they are.

    No weight knows T: convolutions, blocks and the mean at the end take any number of frames, and pools all but the
    very small. Raises `UsageError` for frames or stride out of bounds, and for too few frames for the network's pools.
    """
    clip = dataclasses.replace(net.spec.clip, frames=frames, stride=stride)
    pools = POOLS[net.spec.inflation.pools]
    left, needed = -(-frames // pools.stem_stride), pools.pool1_kernel - 2 * ((pools.pool1_kernel - 1) // 2)
    if googlenet.is_googlenet(net.spec.backbone) and pools.stem_stride > 1:
        needed = 2  # its pools have no padding in time
    if left < needed:
        raise UsageError(
            f"{frames} frames are too few: pools {net.spec.inflation.pools!r} take {needed} of the {left} "
            "that the stem leaves",
            f"--frames {(needed - 1) * pools.stem_stride + 1} is the least",
        )
    net.spec = dataclasses.replace(net.spec, clip=clip)
    return net


# -- loss and balance -------------------------------------------------------------------------------------------------


def loss(
    logits: torch.Tensor, target: torch.Tensor, recipe: Recipe, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """The mean loss of a batch. `logits`: float `(B, K)`; `target`: classes `(B,)`, or their shares, float `(B, K)`.

    `weights` `(K,)` of `class_weights`: each clip counts as its class says, and the mean is over clips, so that
    parts of a batch add up. For bce there are none.
    """
    if recipe.loss == "bce":
        return F.binary_cross_entropy_with_logits(logits, target)
    if weights is None:
        return F.cross_entropy(logits, target, label_smoothing=recipe.label_smoothing)
    each = F.cross_entropy(logits, target, label_smoothing=recipe.label_smoothing, reduction="none")
    own = weights[target] if target.ndim == 1 else target @ weights
    return (own * each).mean()


def class_weights(labels: Sequence[int], classes: int) -> torch.Tensor:
    """float32 `(classes,)`: every class counts alike, and the mean over the clips is 1; 0 for a class without clips."""
    counts = np.bincount(np.asarray(labels), minlength=classes)
    share = len(labels) / np.count_nonzero(counts)
    return torch.from_numpy(np.divide(share, counts, out=np.zeros(classes), where=counts > 0)).float()


def balanced_order(labels: Sequence[int], seed: int, epoch: int) -> list[int]:
    """Clips of an epoch, as many as there are, every class equally often (but for one clip), keyed by (seed, epoch).

    A large class is a draw without repeats, another one in each epoch; a small one is gone through several times.
    """
    known, draw = np.asarray(labels), np.random.default_rng([seed, epoch])
    classes = draw.permutation(np.unique(known))  # which of them get the one clip more
    parts = []
    for n, k in enumerate(classes):
        own = np.flatnonzero(known == k)
        count = len(known) // len(classes) + (n < len(known) % len(classes))
        rounds = [draw.permutation(own) for _ in range(-(-count // len(own)))]
        parts.append(np.concatenate([*rounds, own[:0]])[:count])
    return draw.permutation(np.concatenate(parts)).tolist()


# -- precision and memory ---------------------------------------------------------------------------------------------


def checkpoint_activations_(net: Network, on: bool = True) -> None:
    """Of every residual and non-local block only the input is kept, in place (timm's own).

    `backward` must then be called inside `recomputing(net)`. Raises `UsageError` for a network on single frames that
    timm cannot compute so.
    """
    try:
        net.set_grad_checkpointing(on)
    except (AssertionError, AttributeError):
        raise UsageError(
            f"checkpointing is not for {net.spec.backbone}: timm cannot compute it so", "leave it out"
        ) from None


def refuse_for_frames(net: Network, recipe: Recipe) -> None:
    """Raises `UsageError` for what a recipe asks of a network on single frames that it does not have."""
    if recipe.freeze not in ("none", "backbone"):
        raise UsageError(
            f"freeze={recipe.freeze}: {net.spec.backbone} on single frames has no stages res2 to res5",
            "freeze=backbone trains the head alone; layer_decay=0.7 holds back what lies deeper",
        )
    layer_rates(net, recipe.layer_decay)
    if recipe.checkpointing:
        checkpoint_activations_(net)
        checkpoint_activations_(net, False)


@contextmanager
def recomputing(net: Network) -> Iterator[None]:
    """Around `backward`: BN's running statistics stay as they are, though checkpointed blocks run a second time.

    (pytorch #96136.)
    """
    kept = [(m, m.momentum, m.num_batches_tracked) for m in batch_norms(net)]
    try:
        for m, _, _ in kept:
            # they stay in place: without them other tensors would be saved than the first time
            m.momentum, m.num_batches_tracked = 0.0, None
        yield
    finally:
        for m, momentum, count in kept:
            m.momentum, m.num_batches_tracked = momentum, count


def memory_estimate(
    net: Network,
    clip: ClipSpec,
    batch: int,
    recipe: Recipe = Recipe(),
    training: bool = True,
    device: torch.device | None = None,
) -> int:
    """Bytes that a step of `batch` clips takes at most: weights, gradients, optimiser state, activations, temporaries.

    The step (without `training` a forward pass of the network in eval mode) is run on fake tensors of `device`, by
    default the network's, which hold nothing, and every allocation is counted. Not in it: work space inside a library's
    kernels (on a CPU a step took 6 to 19 % more than this), what an allocator keeps, a GPU's context (about 0.5 GB),
    the optimiser's own temporaries.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    device = device or next(net.parameters()).device
    fake = FakeTensorMode()
    with fake:
        held = {id(tensor): _ghost(tensor, device) for tensor in (*net.parameters(), *net.buffers())}
    ghost = copy.deepcopy(net, held)
    if training:
        train_mode_(ghost, recipe)
        staged(ghost, recipe, 1.0)  # all that ever trains
        checkpoint_activations_(ghost, recipe.checkpointing)
    else:
        ghost.eval()
    with fake, _Live() as live, torch.set_grad_enabled(training):
        for tensor in (*ghost.parameters(), *ghost.buffers()):
            live.add(tensor)
        with autocast(recipe, device, training):
            logits = ghost(torch.empty(batch, clip.channels, clip.frames, clip.size, clip.size, device=device)).float()
        if training:
            with recomputing(ghost):
                logits.square().mean().backward()  # as small as any loss
    trained = sum(p.numel() * p.element_size() for p in ghost.parameters() if p.requires_grad)
    return live.peak + (trained * (2 if recipe.optimizer == "adamw" else 1) if training else 0)


def _ghost(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor or parameter of that shape on `device`, without a gradient."""
    empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


class _Live(TorchDispatchMode):
    """Counts the bytes of all storages that operations made and that are alive, and their `peak`."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Callable, types: Sequence[type], args: Sequence = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, torch.Tensor):
                self.add(value)
        return out

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self.known:
            self.known.add(storage)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._release, storage.nbytes())

    def _release(self, size: int) -> None:
        self.now -= size
