"""Before a run: what it would take, whether the network can learn at all, and at which rate. Nothing is written."""

import contextlib
import copy
import dataclasses
import math
import time
from dataclasses import dataclass

import torch

from ..core.errors import DivergedError
from ..core.recipe_spec import TrainConfig
from ..networks.network import Network
from ..videos import scanning
from . import recipe as recipes
from .callbacks import Callbacks, Step
from .engine import Engine
from .step import Job, batches, prepare, train_step
from .train import sanity_check

REHEARSAL = 30  # steps on one batch
RANGE_STEPS, RANGE_WIDTH = 60, 1e4  # of the learning-rate range test: from the recipe's rate / 100 up to it * 100


@dataclass(frozen=True)
class Rehearsal:
    """What `--dry-run` says."""

    bytes: int  # of memory that a step takes at most: on a GPU measured, on a CPU estimated
    seconds_a_step: float
    steps: int  # of the run
    minutes: float
    unreadable: int  # videos, of those that were read
    first_loss: float
    last_loss: float
    learns: bool  # whether it overfits one batch


def rehearse(
    net: Network,
    dataset: scanning.Dataset,
    config: TrainConfig,
    callbacks: Callbacks = Callbacks(),
    engine: Engine | None = None,
) -> Rehearsal:
    """`REHEARSAL` steps on one batch with a copy of `net`, near the highest rate all the while."""
    unmixed = dataclasses.replace(config.augment, mixup=0.0, cutmix=0.0)
    job = _job_on_a_copy(net, dataset, dataclasses.replace(config, augment=unmixed), callbacks, engine)
    bad = sanity_check(job)
    recipes.train_mode_(job.net, config.recipe)
    steady = dataclasses.replace(job, steps=4 * REHEARSAL)
    steady.progress.step = REHEARSAL // 2
    on_gpu = job.engine.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(job.engine.device)
    losses, began = [], time.monotonic()
    first_batch = batches(job, 0)[:1]
    with contextlib.closing(job), contextlib.closing(job.train_loader.load(first_batch)) as loaded:
        indices, pixels, unread = next(loaded)
        for n in range(REHEARSAL):
            loss, seen, _ = train_step(steady, indices, pixels, unread)
            losses.append(loss / max(1, seen))
            callbacks.step(Step("rehearse", n + 1, REHEARSAL))
    seconds = (time.monotonic() - began) / REHEARSAL
    if on_gpu:
        taken = torch.cuda.max_memory_allocated(job.engine.device)
    else:
        at_a_time = recipes.clips_at_a_time(net, config.recipe)
        taken = recipes.memory_estimate(net, net.spec.clip, at_a_time, config.recipe)
    return Rehearsal(
        taken,
        round(seconds, 3),
        job.steps,
        round(seconds * job.steps / 60, 1),
        len(bad) + len(unread),
        losses[0],
        losses[-1],
        losses[-1] < 0.8 * losses[0],
    )


def find_rate(
    net: Network,
    dataset: scanning.Dataset,
    config: TrainConfig,
    callbacks: Callbacks = Callbacks(),
    engine: Engine | None = None,
) -> float:
    """A learning rate by a short range test on a copy of `net`. Raises `UsageError` where the loss never falls."""
    steady = dataclasses.replace(config.recipe, schedule="constant", warm_up=0.0, ema=0.0)
    job = _job_on_a_copy(net, dataset, dataclasses.replace(config, recipe=steady), callbacks, engine)
    groups = job.learner.optimizer.param_groups
    bases = [group["base"] for group in groups]
    factors = [RANGE_WIDTH ** (n / (RANGE_STEPS - 1) - 0.5) for n in range(RANGE_STEPS)]
    epochs = -(-RANGE_STEPS // len(batches(job, 0)))
    keys = [batch for epoch in range(epochs) for batch in batches(job, epoch)][:RANGE_STEPS]
    losses = []
    with contextlib.closing(job), contextlib.closing(job.train_loader.load(keys)) as loaded:
        for factor, (indices, pixels, bad) in zip(factors, loaded):
            for group, base in zip(groups, bases):
                group["base"] = base * factor
            try:
                loss, seen, _ = train_step(job, indices, pixels, bad)
            except DivergedError:
                break
            losses.append(loss / max(1, seen))
            job.progress.step += 1
            callbacks.step(Step("range_test", len(losses), RANGE_STEPS))
    losses += [math.inf] * (RANGE_STEPS - len(losses))
    return recipes.range_test(losses, [config.recipe.lr * factor for factor in factors])


def _job_on_a_copy(
    net: Network, dataset: scanning.Dataset, config: TrainConfig, callbacks: Callbacks, engine: Engine | None
) -> Job:
    """A job that writes nothing, of one process: `net` stays as it is."""
    device = engine.device if engine else torch.device(config.device)
    return prepare(copy.deepcopy(net), dataset, config, Engine(device), callbacks)
