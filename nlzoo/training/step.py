"""One optimiser step: what it works with, what it changes, and what a checkpoint must therefore hold.

A `Job` is fixed for the length of a run. What changes is in two places: `Learner` holds the tensors, `Progress` the
counts. Randomness is keyed by (seed, epoch, index) and (seed, step), so no generator has to be kept.
"""

import contextlib
import dataclasses
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..core.errors import DivergedError, OutOfMemory
from ..core.recipe_spec import Recipe, TrainConfig
from ..core.stopping import Stop
from ..core.text import printable
from ..networks.frames import channels_last_, shared_statistics
from ..networks.model import moving_average
from ..networks.network import Network
from ..videos import augment, clips, listing, loader, scanning
from . import devices, evaluate, metrics, recipe as recipes, run_folder, state
from .callbacks import Callbacks, Event
from .engine import Engine

Failures = list[tuple[int, str]]  # (index, reason) of clips that could not be read


@dataclass
class Progress:
    """How far a run is; with the tensors of `Learner`, all that a checkpoint holds."""

    step: int = 0  # steps taken
    epoch: int = 0  # in training, from 0
    batches: int = 0  # of it that are done
    total: float = 0.0  # sum of the losses of its clips so far
    seen: int = 0  # these clips
    failed: int = 0  # its videos that could not be read
    seconds: float = 0.0  # of it
    waited: float = 0.0  # of these, waiting for clips
    spent: float = 0.0  # seconds of the whole run
    accumulate: int = 1  # parts of a batch; doubles where memory is short
    lines: list[dict[str, Any]] = field(default_factory=list)  # of metrics.jsonl

    def next_epoch(self, line: run_folder.Epoch) -> None:
        """An epoch is over."""
        self.lines = [*self.lines, dataclasses.asdict(line)]
        self.epoch += 1
        self.batches = self.seen = self.failed = 0
        self.total = self.seconds = self.waited = 0.0

    def restore(self, step: int, saved: dict[str, Any]) -> None:
        """Becomes what a checkpoint of `step` says."""
        for name, value in {**saved, "step": step}.items():
            setattr(self, name, value)

    @property
    def epochs(self) -> list[run_folder.Epoch]:
        """Those that are over."""
        return [run_folder.Epoch(**line) for line in self.lines]


class Statistics:
    """BN's running statistics of before a step, to be put back where none is taken."""

    def __init__(self, net: Network) -> None:
        self.kinds: list[tuple[list[torch.Tensor], list[torch.Tensor]]] = []  # of one dtype: `(buffers, copies)`
        buffers = list(net.buffers())
        for dtype in {buffer.dtype for buffer in buffers}:
            own = [buffer for buffer in buffers if buffer.dtype == dtype]
            self.kinds.append((own, [buffer.clone() for buffer in own]))

    @torch.no_grad()
    def keep(self) -> None:
        """Copies them, on a GPU in one kernel."""
        for buffers, copies in self.kinds:
            torch._foreach_copy_(copies, buffers)

    @torch.no_grad()
    def put_back(self) -> None:
        """Makes them what they were."""
        for buffers, copies in self.kinds:
            torch._foreach_copy_(buffers, copies)


class Learner:
    """A network and everything that its training changes."""

    def __init__(self, net: Network, recipe: Recipe, engine: Engine) -> None:
        net.to(engine.device)
        channels_last_(net)
        net.drop_rate = recipe.dropout
        recipes.checkpoint_activations_(net, recipe.checkpointing)
        recipes.train_mode_(net, recipe)
        recipes.staged(net, recipe, 0.0)
        self.net, self.recipe, self.engine = net, recipe, engine
        self.ema: Any = moving_average(net, recipe.ema) if recipe.ema else None  # timm's
        self.optimizer = recipes.optimizer(net, recipe)
        self.scaler = devices.scaler(recipe, engine.device)
        self.statistics = Statistics(net)
        self.wrap()

    def wrap(self) -> None:
        """Sets `model`, the network as training calls it: compiled, spread over ranks. Anew when stages unfreeze."""
        compiled: Any = torch.compile(self.net) if self.recipe.compile else self.net
        self.model = self.engine.wrapped(compiled)

    @property
    def kept(self) -> Network:
        """The network that is validated and saved."""
        return self.ema.module if self.ema else self.net

    def packed(self) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
        """`(tensors, plans)` for a checkpoint."""
        tensors: dict[str, torch.Tensor] = {}
        plans = {}
        values = {
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
        }
        for name, value in values.items():
            packed, plans[name] = state.pack(name, value)
            tensors |= packed
        return tensors, plans

    def restore(self, loaded: state.Loaded) -> None:
        """Becomes what the checkpoint holds."""
        values: Any = {name: state.unpack(loaded.tensors, plan) for name, plan in loaded.meta["plans"].items()}
        self.net.load_state_dict(values["net"])
        self.optimizer.load_state_dict(values["optimizer"])
        for p, moments in self.optimizer.state.items():  # in the order of their kernel, in memory: so are all bits
            for name, value in moments.items():
                if value.shape == p.shape:
                    moments[name] = torch.empty_like(p, dtype=value.dtype).copy_(value)
        self.scaler.load_state_dict(values["scaler"])
        if self.ema:
            self.ema.module.load_state_dict(values["ema"])


@dataclass(frozen=True)
class Job:
    """What every step of a run works with."""

    config: TrainConfig
    engine: Engine
    learner: Learner
    train_clips: loader.Clips
    val_clips: loader.Clips
    train_loader: loader.Loader
    val_loader: loader.Loader  # of this rank's part of val_clips
    targets: torch.Tensor  # of train_clips: classes (N,), or float (N, K) of 0 and 1 for several labels
    class_weights: torch.Tensor | None  # (K,) in the loss
    min_clips: int  # in a forward pass; with fewer BN would have one value of a channel
    steps: int  # of the whole run
    callbacks: Callbacks
    stop: Stop
    run: Path | None  # its folder; None: nothing is written
    progress: Progress

    @property
    def net(self) -> Network:
        """The network in training."""
        return self.learner.net

    def close(self) -> None:
        """Ends the decoding processes."""
        self.train_loader.close()
        self.val_loader.close()

    def log(self, code: str, **values: object) -> None:
        """Says what happened, and keeps it in the run's folder."""
        self.note(code, **values)
        self.callbacks.log(Event(code, {"step": self.progress.step, **values}))

    def note(self, code: str, **values: object) -> None:
        """Keeps what happened in the run's folder."""
        if self.run and self.engine.main:
            run_folder.append_event(self.run, code, self.progress.step, values)


def prepare(
    net: Network,
    dataset: scanning.Dataset,
    config: TrainConfig,
    engine: Engine,
    callbacks: Callbacks = Callbacks(),
    stop: Stop | None = None,
    run: Path | None = None,
) -> Job:
    """The job of training `net`, whose head fits the classes of `dataset`, which is split. `net` goes to the device."""
    recipe = config.recipe

    def side(part: str) -> loader.Clips:
        items = tuple(scanning.items_in(dataset, part))
        if part == listing.TRAIN and net.spec.clip.stream == "audio":  # in validation the others get the prior
            items = scanning.with_sound(dataset, items)
        return loader.Clips(
            dataset.root,
            items,
            net.spec.clip,
            config.augment,
            seed=config.seed,
            decoder=config.decoder,
            cache=Path(config.cache) if config.cache else None,
        )

    train_clips, val_clips = side(listing.TRAIN), side(listing.VAL)
    targets = torch.from_numpy(metrics.targets(train_clips.items, net.spec.classes))
    if not net.spec.multi_label:
        targets = targets.argmax(1)
    weights = None
    if recipe.balance == "loss":
        weights = recipes.class_weights(targets.tolist(), len(net.spec.classes)).to(engine.device)
    pinned = engine.device.type == "cuda"
    job = Job(
        config,
        engine,
        Learner(net, recipe, engine),
        train_clips,
        val_clips,
        loader.Loader(train_clips, config.workers, pinned),
        loader.Loader(evaluate.of_rank(val_clips, engine), config.workers, pinned),
        targets,
        weights,
        recipes.min_clips(net, recipe),
        0,
        callbacks,
        stop or Stop(),
        run,
        Progress(accumulate=recipe.accumulate),
    )
    epoch = batches(job, 0)
    recipes.check_batch_norm(net, recipe, len(epoch[0]) * config.augment.repeats, engine.world)
    return dataclasses.replace(job, steps=recipe.epochs * len(epoch))


def batches(job: Job, epoch: int) -> list[list[loader.Key]]:
    """Keys of an epoch, `batch` clips at a time over all ranks: views of one video count as so many clips."""
    passes = job.config.recipe.passes
    return [batch for n in range(passes) for batch in _pass(job, epoch * passes + n)]


def _pass(job: Job, epoch: int) -> list[list[loader.Key]]:
    """Keys of the `epoch`-th time that all clips are shown."""
    config = job.config
    size = max(1, config.recipe.batch // config.augment.repeats)
    if config.recipe.balance != "sampler":
        return loader.epoch_batches(len(job.train_clips), size, config.seed, epoch)
    order = recipes.balanced_order(job.targets.tolist(), config.seed, epoch)
    return loader.even_batches(order, size, epoch)


def train_step(job: Job, indices: list[int], pixels: torch.Tensor | None, bad: Failures) -> tuple[float, int, int]:
    """One step on this rank's part of a batch: `(sum of the clips' losses, clips, failed videos)`, of all ranks.

    `pixels`: uint8 `(B, V, T, H, W, C)` of the clips `indices`; None where none could be read. Raises `DivergedError`,
    and leaves weights and statistics as they were, where a loss or gradient is not finite; and `OutOfMemory`.
    """
    recipe, learner, engine = job.config.recipe, job.learner, job.engine
    step = job.progress.step
    if recipe.unfreeze and recipes.staged(job.net, recipe, step / job.steps):
        learner.wrap()
    key = job.config.seed * 1_000_003 + step
    for group in learner.optimizer.param_groups:
        group["lr"] = group["base"] * recipes.rate_factor(recipe, step, job.steps)
    inputs, target = _inputs(job, indices, pixels, key)
    clips_of_ranks = [len(inputs) if rank == engine.rank else 0 for rank in range(engine.world)]
    failed, *clips_of_ranks = map(int, engine.all_reduce_sum([len(bad), *clips_of_ranks]))
    if not any(clips_of_ranks):
        return 0.0, 0, failed
    learner.statistics.keep()
    total = _gradients(job, inputs, target, clips_of_ranks, key)
    learner.scaler.unscale_(learner.optimizer)
    norm_ = nn.utils.clip_grad_norm_(job.net.parameters(), recipe.clip_norm or math.inf)
    loss, norm = torch.stack((total, norm_.to(total))).tolist()  # the one place where a step waits for the device
    (loss,) = engine.all_reduce_sum([loss])
    overflow_is_left_out = learner.scaler.is_enabled()  # it takes no step then
    if not math.isfinite(loss) or not (math.isfinite(norm) or overflow_is_left_out):
        learner.statistics.put_back()
        names = engine.all_gather([os.path.basename(job.train_clips.items[i].path) for i in indices])
        raise DivergedError(
            f"loss {loss}, gradient {norm} at step {step + 1}, on {', '.join(map(printable, names))}",
            f"the weights before this step are kept; try --lr {recipe.lr / 3:.1g}",
        )
    learner.scaler.step(learner.optimizer)
    learner.scaler.update()
    learner.optimizer.zero_grad(set_to_none=True)
    if learner.ema:
        learner.ema.update(job.net, step=step + 1)
    return loss, sum(clips_of_ranks), failed


def _inputs(job: Job, indices: list[int], pixels: torch.Tensor | None, key: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`(B, C, T, H, W)` and the targets, mixed where the run mixes; of no clips where nothing could be read."""
    device, clip, changes = job.engine.device, job.net.spec.clip, job.config.augment
    if pixels is None:
        return torch.empty(0, clip.channels, clip.frames, clip.size, clip.size, device=device), job.targets[:0].to(
            device
        )
    views = pixels.transpose(0, 1).flatten(0, 1)  # views of one video lie apart, so that none is mixed with itself
    target = torch.cat([job.targets[indices]] * pixels.shape[1]).to(device, non_blocking=True)
    inputs = clips.to_input(views.to(device, non_blocking=True), clip)
    if changes.mixup or changes.cutmix:
        soft = target if target.ndim > 1 else F.one_hot(target, len(job.net.spec.classes)).float()
        return augment.mix(inputs, soft, changes, key + 2**40)  # drawn apart from dropout
    return inputs, target


def _gradients(
    job: Job, inputs: torch.Tensor, target: torch.Tensor, clips_of_ranks: list[int], key: int
) -> torch.Tensor:
    """Gradients of a batch, in as many parts as memory takes; the sum of this rank's losses, on the device."""
    while True:
        torch.manual_seed(key + job.engine.rank * 2**33)  # dropout, the same again where memory was short
        try:
            return _backward(job, inputs, target, clips_of_ranks)
        except RuntimeError as error:
            if not devices.is_out_of_memory(error):
                raise
            _refuse_smaller_parts(job, len(inputs), error)
        # outside of `except`, where the traceback would hold what the attempt computed
        job.learner.statistics.put_back()
        _smaller_parts(job, len(inputs))


def _backward(job: Job, inputs: torch.Tensor, target: torch.Tensor, clips_of_ranks: list[int]) -> torch.Tensor:
    """Gradients of the mean loss over the clips of all ranks; the sum of this rank's losses, on the device."""
    recipe, engine, learner = job.config.recipe, job.engine, job.learner
    count = sum(clips_of_ranks)
    together = recipe.bn == "sync" and engine.world > 1
    fewest = min(clips_of_ranks) if together else len(inputs)  # ranks whose BN meets do all in as many parts
    num_parts = recipes.num_parts(fewest, job.progress.accumulate, job.min_clips)
    learner.optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), dtype=engine.wide, device=engine.device)
    if fewest < job.min_clips:  # the last of an epoch, or all that could be read: BN as in validation
        for m in recipes.batch_norms(job.net):
            m.eval()
    for n, (clips_, targets) in enumerate(zip(inputs.tensor_split(num_parts), target.tensor_split(num_parts))):
        last = n + 1 == num_parts
        with contextlib.nullcontext() if last else engine.no_sync(learner.model), shared_statistics(together):
            if not len(clips_):  # nothing was read: this rank takes part with a gradient of 0, and no statistics
                job.net.eval()
                nothing = learner.model(clips_.new_zeros(1, *clips_.shape[1:])).sum() * 0.0
                learner.scaler.scale(nothing).backward()
                continue
            with devices.autocast(recipe, engine.device):
                logits = learner.model(clips_).float()
            loss = recipes.loss(logits, targets, recipe, job.class_weights)
            with recipes.recomputing(job.net) if recipe.checkpointing else contextlib.nullcontext():
                learner.scaler.scale(loss * (len(clips_) * engine.world / count)).backward()
            total += loss.detach().to(total) * len(clips_)
    if fewest < job.min_clips:
        recipes.train_mode_(job.net, recipe)
    return total


def _refuse_smaller_parts(job: Job, size: int, error: Exception) -> None:
    """Raises `OutOfMemory` where a batch of `size` clips cannot be taken in more parts than it is."""
    progress, world = job.progress, job.engine.world
    parts = min(size, progress.accumulate * 2)
    if world > 1 or progress.accumulate >= size or size // parts < job.min_clips:
        ranks = f" on each of {world} processes" if world > 1 else ""
        raise OutOfMemory(
            f"the device ran out of memory with {-(-size // progress.accumulate)} clips at a time{ranks}",
            "lower --frames or --size, or try --recipe checkpointing=yes"
            + (", or bn=frozen: BatchNorm needs two of these clips" if job.min_clips > 1 else ""),
        ) from error


def _smaller_parts(job: Job, size: int) -> None:
    """Half as many clips at a time: the batch, and with it the rate, stay as they are."""
    job.learner.optimizer.zero_grad(set_to_none=True)
    devices.free_memory()
    job.progress.accumulate = min(size, job.progress.accumulate * 2)
    job.log("out_of_memory", parts=job.progress.accumulate)
