"""Fine-tuning: one straight line from a network and a scanned folder to a finished run that a kill cannot lose.

A run folder holds `config.json` (what was asked and filled in), `videos.csv` (every video that is used and its side of the
split, a list that nlzoo reads), `skipped.csv`, `environment.json`, `log.txt`, `metrics.jsonl` (a line an epoch), `checkpoints`
(`state.py`), the model folders `last` and `best`, and `result.json`, which says that it finished. Randomness is keyed by
(seed, epoch, index) and (seed, step), so a checkpoint holds no generator, and a run that goes on from one takes the same steps to the
same bits. What the defaults are and the measurements behind them: docs/training.md.
"""

import contextlib
import copy
import dataclasses
import json
import math
import os
import platform
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from .. import __version__
from ..core import files, tables
from ..core.errors import DiskError, DivergedError, OutOfMemory, Stopped, VideoError
from ..core.model_spec import to_json
from ..core.recipe_spec import LONG_CLIP, TrainConfig, auto_recipe, change_recipe, for_labels, parse_recipe
from ..core.stopping import Stop, stopping
from ..core.text import printable
from ..core.view_spec import default_augment, parse_augment
from ..networks import card, checkpoint
from ..networks.model import moving_average
from ..videos import augment, clips, frame_cache, listing, loader, pool, records, scanning
from . import evaluate, metrics, state
from . import recipe as recipes
from .engine import Engine

SAVE_SHARE, SAVE_AT_MOST = 0.05, 300.0  # of the time may go into checkpoints; seconds from one to the next at most
SANITY_BATCHES = 2  # of validation, before the first epoch
REHEARSAL = 30  # steps on one batch
RANGE_STEPS, RANGE_WIDTH = 60, 1e4  # of the learning-rate range test: from the recipe's rate / 100 up to it * 100
_SIDED = re.compile(r"left|right|clockwise", re.IGNORECASE)  # classes that a mirror swaps
_DIRECTED = re.compile(
    r"open|clos|push|pull|enter|exit|towards|away|forward|backward", re.IGNORECASE
)  # that it may not, but a user should think


# --- what is to be done


def plan(
    found: scanning.Dataset,
    videos: str,
    start: str,
    device: str,
    world: int = 1,
    fresh: bool = True,
    frames: int = 8,
    **asked,
) -> tuple[TrainConfig, list[str]]:
    """The run's config with what was not asked for (None) filled in, and a line on each value filled in.

    `fresh`: the network never saw a video; `frames`: of its clips. `asked`: val, seed, and perhaps recipe, epochs, batch, lr,
    augment, decoder, cache, save_every.
    """
    total = len(scanning.items_in(found, listing.TRAIN))
    kind = torch.device(device).type
    auto, notes = auto_recipe(
        total, len(found.classes), asked.get("batch"), kind, fresh, frames >= LONG_CLIP, found.multi_label
    )
    values = {k: asked[k] for k in ("epochs", "batch", "lr") if asked.get(k) is not None}
    if asked.get("recipe"):
        recipe = change_recipe(for_labels(parse_recipe(asked["recipe"], auto), found.multi_label), **values)
        notes = [f"recipe {recipe}"]
    else:
        recipe = change_recipe(
            auto, **values | ({"lr": auto.lr} if "lr" not in values else {})
        )  # the rate already knows the batch
        notes = [n for n in notes if n.split()[0] not in values] + [f"{k} {v:g}" for k, v in values.items()]
    changes, why = _augmentation(asked.get("augment"), total, found.classes)
    return TrainConfig(
        videos,
        start,
        val=asked["val"],
        seed=asked["seed"],
        device=device,
        workers=pool.default_workers(kind),
        recipe=recipe,
        augment=changes,
        decoder=asked.get("decoder") or "auto",
        cache=asked.get("cache"),
        world=world,
    ), [*notes, why]


def _augmentation(text, total, classes):
    """What is changed in training clips, and why: the preset for so many clips; no mirroring where a class names a side."""
    preset, why = default_augment(total)
    changes, reasons = parse_augment(text or preset), [] if text else [why]
    if "flip" not in (text or ""):
        sided = [c for c in classes if _SIDED.search(c)]
        directed = [c for c in classes if _DIRECTED.search(c)]
        if sided:
            changes = dataclasses.replace(changes, flip=False)
            reasons.append(f"not mirrored: class {printable(sided[0])!r} names a side")
        elif directed and changes.flip:
            reasons.append(
                f"mirrored, though class {printable(directed[0])!r} has a direction; flip=no if left and right matter"
            )
    return changes, f"augment {changes}" + (f" ({'; '.join(reasons)})" if reasons else "")


# --- what is told


@dataclass(frozen=True)
class Epoch:
    """One line of metrics.jsonl."""

    epoch: int  # from 1
    train_loss: float
    top1: float | None  # None where videos may have several labels; their figure is map
    top5: float | None
    mean_class: float | None
    map: float | None
    loss: float  # of validation
    seconds: float
    data_seconds: float  # of these, waiting for clips
    clips: int  # trained on
    failed: int  # videos that could not be read in this epoch

    @property
    def score(self) -> float:
        """What the best epoch is chosen by: top-1, or mean average precision."""
        return self.map if self.top1 is None else self.top1

    def better_than(self, other: "Epoch | None") -> bool:
        """By score, then by the loss of validation."""
        return other is None or (self.score, -self.loss) > (other.score, -other.loss)


@dataclass(frozen=True)
class Result:
    """What a finished run says of itself; `result.json`."""

    run: str
    model: str
    classes: list
    train: int
    val: int
    epochs: int
    top1: float | None
    top5: float | None
    mean_class: float | None
    map: float | None
    majority: float  # top-1 or map of an answer that never looks
    best_epoch: int
    last_top1: float | None
    last_map: float | None
    seconds: float
    resumed_from: int | None = None  # step


@dataclass(frozen=True)
class Callbacks:
    """How a run tells what it does."""

    epoch: Callable[[Epoch], None] = lambda epoch: None
    step: Callable[[int, int, str], None] = lambda done, total, note: None
    say: Callable[[str], None] = lambda text: None


# --- a run


@dataclass
class _At:
    """Where a run stands; with the tensors, all that a checkpoint holds."""

    epoch: int = 0  # that is being trained, from 0
    batches: int = 0  # of it that are done
    total: float = 0.0  # sum of its clips' losses
    seen: int = 0
    failed: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    spent: float = 0.0  # seconds of the whole run
    accumulate: int = 1  # parts of a batch; rises where memory is short
    lines: list = field(default_factory=list)  # of metrics.jsonl


@dataclass
class _Job:
    """Everything that a step needs."""

    net: nn.Module
    model: nn.Module  # the same as training calls it: compiled, spread over the ranks
    config: TrainConfig
    engine: Engine
    run: Path
    talk: Callbacks
    source: loader.Clips
    held: loader.Clips
    targets: torch.Tensor
    weights: torch.Tensor | None  # of the classes in the loss
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: object
    steps: int
    at: _At
    stop: "Stop"
    saved: float = 0.0  # when the last checkpoint was written, and how long that took
    cost: float = 0.0
    step: int = 0  # steps taken


def finetune(
    net: nn.Module,
    found: scanning.Dataset,
    config: TrainConfig,
    run: Path,
    talk: Callbacks = Callbacks(),
    engine: Engine | None = None,  # noqa: B008
    ready: Callable[[], None] = lambda: None,
) -> Result:
    """Trains `net` (its head fits the classes of `found`, which is split) in the folder `run`, and returns what came out.

    A run that was begun there goes on from its newest checkpoint. `ready` is called when the folder is ours. Raises
    `DivergedError` before a step that would be taken with NaN, `MemoryError_`, `DiskError`, `VideoError` when an epoch's videos
    cannot be read, `Stopped` after a signal, when all is saved, and `UsageError` where another process works in `run`.
    """
    engine = engine or Engine(torch.device(config.device))
    with state.lock(run) if engine.main else contextlib.nullcontext(), stopping() as stop:
        begun = time.monotonic()
        if engine.main:
            ready()
        job = _job(net, found, config, run, talk, engine, stop)
        engine.wait()
        resumed = _resume(job) if (run / "config.json").exists() else None
        engine.wait()
        if resumed is None:
            _begin(job, found)
        engine.track(run, dataclasses.asdict(config.recipe), job.step)
        before = job.at.spent
        for epoch in range(job.at.epoch, config.recipe.epochs):
            if _enough(job):  # asked here: a kill may have come just after that epoch
                talk.say(f"stopped early: no better epoch in the last {config.recipe.early_stop}")
                break
            _train_epoch(job, epoch)
            _end_epoch(job)
            job.at.spent = before + time.monotonic() - begun
            _save(job)
            if epoch == 0 and (left := job.at.spent * (config.recipe.epochs - 1) / 60) > 2:
                talk.say(f"about {left:.0f} minutes to go")
        engine.end()
        return _finish(job, found, resumed)


def _job(net, found, config, run, talk, engine, stop):
    """What the run works with, on its device."""
    recipe, device = config.recipe, engine.device
    parts = {part: tuple(scanning.items_in(found, part)) for part in (listing.TRAIN, listing.VAL)}
    source, held = (
        loader.Clips(
            found.root,
            items,
            net.spec.clip,
            config.augment,
            seed=config.seed,
            decoder=config.decoder,
            cache=Path(config.cache) if config.cache else None,
        )
        for items in parts.values()
    )
    net.to(device)
    net.drop_rate = recipe.dropout
    recipes.checkpoint_activations_(net, recipe.checkpointing)
    recipes.train_mode_(net, recipe)
    recipes.staged(net, recipe, 0.0)
    targets = _targets(net, source.items)
    weights = (
        recipes.class_weights(targets.tolist(), len(found.classes)).to(device) if recipe.balance == "loss" else None
    )
    ema = moving_average(net, recipe.ema) if recipe.ema else None
    job = _Job(
        net,
        net,
        config,
        engine,
        run,
        talk,
        source,
        held,
        targets,
        weights,
        recipes.optimizer(net, recipe),
        recipes.scaler(recipe, device),
        ema,
        0,
        _At(accumulate=recipe.accumulate),
        stop,
    )
    job.steps = recipe.epochs * len(_batches(job, 0))
    _wrap(job)
    return job


def _wrap(job):
    job.model = job.engine.wrapped(torch.compile(job.net) if job.config.recipe.compile else job.net)


def _begin(job, found):
    """A new run: what it is, written down; then two batches of validation and a whole checkpoint, before hours depend on them."""
    if job.config.cache:
        _check_room(found, job.net.spec.clip, Path(job.config.cache))
    if job.engine.main:
        start_run(job.run, job.net, found, job.config)
    some = dataclasses.replace(job.held, items=job.held.items[: SANITY_BATCHES * evaluate.CLIPS])
    evaluate.predictions(job.net, some, job.engine.device, job.config.workers, recipe=job.config.recipe)
    _save(job)


def start_run(run: Path, net: nn.Module, found: scanning.Dataset, config: TrainConfig) -> None:
    """Writes all that is known before the first step; `config.json`, by which a run is known, last. Raises `DiskError`."""
    listing.write(listing.Listing(found.root, found.items, (), 0, found.multi_label, found.kind), run / "videos.csv")
    tables.write(run / "skipped.csv", [dataclasses.asdict(s) for s in found.skipped], ("path", "reason", "code"))
    files.write_text(run / "environment.json", files.to_json_text(environment()))
    files.write_text(
        run / "config.json", files.to_json_text({"train": dataclasses.asdict(config), "model": to_json(net.spec)})
    )


def environment() -> dict:
    """What may make a difference when a run is made again."""
    from ..videos.video import backends

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "nlzoo": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "gpus": gpus,
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "decoders": backends(),
        "command": sys.argv[1:],
    }


def _check_room(found, clip, cache):
    """Raises `DiskError` where the decoded frames of all videos would not fit in the folder `cache`."""
    infos = [records.probe(path) for path in {found.root / i.path for i in found.items}]
    frame_cache.check_room([(p.path, p.frames, p.height, p.width) for p in infos], clips.decode_side(clip), cache)


def _targets(net, items):
    """Class numbers `(N,)`; float `(N, K)` of 0 and 1 where videos may have several labels."""
    wanted = torch.from_numpy(metrics.targets(items, net.spec.classes))
    return wanted if net.spec.multi_label else wanted.argmax(1)


def _finish(job, found, resumed):
    lines = [Epoch(**line) for line in job.at.lines]
    best = _best(job)
    chance = metrics.chance(job.net.spec.classes, job.source.items, job.held.items, job.net.spec.multi_label)
    result = Result(
        str(job.run),
        str(job.run / "best"),
        list(job.net.spec.classes),
        len(job.source),
        len(job.held),
        len(lines),
        best.top1,
        best.top5,
        best.mean_class,
        best.map,
        chance,
        best.epoch,
        lines[-1].top1,
        lines[-1].map,
        round(job.at.spent, 1),
        resumed,
    )
    if job.engine.main:
        files.write_text(job.run / "result.json", files.to_json_text(dataclasses.asdict(result)))
    return result


# --- checkpoints


def _save(job):
    """A checkpoint of this moment, by rank 0."""
    if job.engine.main:
        began = time.monotonic()
        tensors, plans = {}, {}
        for name, value in (
            ("net", job.net.state_dict()),
            ("optimizer", job.optimizer.state_dict()),
            ("scaler", job.scaler.state_dict()),
            ("ema", job.ema.module.state_dict() if job.ema else None),
        ):
            packed, plans[name] = state.pack(name, value)
            tensors |= packed
        state.save(
            job.run, job.step, tensors, {"at": json.loads(json.dumps(dataclasses.asdict(job.at))), "plans": plans}
        )
        job.saved = time.monotonic()
        job.cost = job.saved - began


def _resume(job) -> int | None:
    """Takes up the newest checkpoint of the run; its step. None where there is none yet."""
    loaded = state.load(job.run)
    if loaded is None:
        return None
    for name, reason in loaded.passed_over:
        job.talk.say(f"passed over {name}: {reason}")
    values = {name: state.unpack(loaded.tensors, plan) for name, plan in loaded.meta["plans"].items()}
    job.net.load_state_dict(values["net"])
    job.optimizer.load_state_dict(values["optimizer"])
    job.scaler.load_state_dict(values["scaler"])
    if job.ema:
        job.ema.module.load_state_dict(values["ema"])
    job.at, job.step = _At(**loaded.meta["at"]), loaded.step
    if job.engine.main:
        files.write_text(job.run / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in job.at.lines))
    here = {
        "nlzoo": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }
    if other := [f"{k} {loaded.writer.get(k)} then, {v} now" for k, v in here.items() if loaded.writer.get(k) != v]:
        job.talk.say(f"the checkpoint is of another machine ({'; '.join(other)}): the last bits may differ")
    job.talk.say(
        f"going on from step {job.step} of {job.steps}, in epoch {min(job.at.epoch + 1, job.config.recipe.epochs)}"
    )
    return job.step


def _due(job):
    """Whether it is time for a checkpoint: they may take `SAVE_SHARE` of the time, and lie `SAVE_AT_MOST` seconds apart."""
    since = time.monotonic() - job.saved
    return since > min(SAVE_AT_MOST, job.cost / SAVE_SHARE)


def difference(run: Path, config: TrainConfig, spec: dict, found: scanning.Dataset) -> list[str]:
    """What in the run at `run` was begun otherwise than asked now, a line each; empty when the same is asked. Raises `WeightsError`."""
    then, now = files.read_json(run / "config.json"), {"train": dataclasses.asdict(config), "model": spec}
    before, after = dict(_flat(then)), dict(_flat(json.loads(json.dumps(now))))
    lines = [
        f"{key}: {_short(before.get(key))} then, {_short(after.get(key))} now"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and key not in ("train.workers", "model.source", "model.licence")
    ]
    listed = listing.read(run / "videos.csv")
    kept = {(os.path.join(run, i.path), i.labels, i.split, i.start, i.end) for i in listed.items}
    here = {(os.path.join(os.path.abspath(found.root), i.path), i.labels, i.split, i.start, i.end) for i in found.items}
    if kept != here or listed.skipped:
        gone = len(listed.skipped)  # files that are no longer there
        lines.append(
            f"videos: {len(kept - here) + gone} of {len(kept) + gone} are gone or have another label or side, {len(here - kept)} are new"
        )
    return lines


def _flat(value, name=""):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else key)
    else:
        yield name, value


def _short(value):
    text = printable(json.dumps(value, ensure_ascii=False))
    return text if len(text) <= 60 else f"{text[:57]}…"


# --- stopping


def _stop_if_asked(job):
    known = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    asked = job.engine.all_reduce_sum([job.stop.signal == number for number in known])  # of whichever rank
    if any(asked):
        number = next(number for number, count in zip(known, asked) if count)
        _save(job)
        job.engine.wait()  # the launcher ends those that are left when the first has gone
        raise Stopped(
            f"stopped by {signal.Signals(number).name} after step {job.step} of {job.steps}; all is saved in {job.run}",
            "the same command goes on from there",
            128 + number,
        )


# --- an epoch


def _batches(job, epoch):
    """Keys of an epoch, `batch` clips at a time over all ranks: views of one video count as so many clips."""
    size = max(1, job.config.recipe.batch // job.config.augment.repeats)
    if job.config.recipe.balance != "sampler":
        return loader.epoch_batches(len(job.source), size, job.config.seed, epoch)
    order = recipes.balanced_order(job.targets.tolist(), job.config.seed, epoch)
    return [[(epoch, i) for i in order[n : n + size]] for n in range(0, len(order), size)]


def _train_epoch(job, epoch):
    """What is left of one pass over the training clips."""
    config, at, engine = job.config, job.at, job.engine
    recipes.train_mode_(job.net, config.recipe)
    batches = _batches(job, epoch)
    mine = [batch[engine.rank :: engine.world] for batch in batches[at.batches :]]
    began = asked = time.monotonic()
    before, first = at.seconds, at.batches
    loaded = _filled(loader.load(job.source, mine, config.workers), mine)
    with contextlib.closing(loaded):
        for n, (indices, pixels, bad) in enumerate(loaded, first):
            at.waited += time.monotonic() - asked
            _stop_if_asked(job)  # before a step without the clips of workers that the same signal ended
            try:
                loss, seen, failed = _step(job, indices, pixels, bad, epoch)
            except DivergedError:
                _save(job)  # of before this step
                raise
            at.total, at.seen, at.failed, at.batches = at.total + loss, at.seen + seen, at.failed + failed, n + 1
            at.seconds = before + time.monotonic() - began
            job.step = epoch * len(batches) + n + 1
            job.talk.step(
                n + 1,
                len(batches),
                f"epoch {epoch + 1}/{config.recipe.epochs}, {100 * at.waited / max(at.seconds, 1e-9):.0f} % of the time "
                f"waiting for videos{_time_left(job, n + 1 - first, began)}",
            )
            if _due(job) and n + 1 < len(batches):
                _save(job)
            asked = time.monotonic()
    if at.failed > scanning.MOST_BAD * len(job.source):
        raise VideoError(
            f"{at.failed} of {len(job.source)} training videos could not be read in epoch {epoch + 1}",
            "nlzoo check shows which, and why; nlzoo doctor the decoders",
        )


def _filled(loaded, batches):
    """One entry for each batch, of none where this rank has no part of it."""
    with contextlib.closing(loaded):
        for batch in batches:
            yield next(loaded) if batch else ([], None, [])


def _time_left(job, done, began):
    left = (job.steps - job.step) * (time.monotonic() - began) / done
    return f", {left / 60:.0f} min left" if left > 90 else ""


def _end_epoch(job):
    """Validation, the epoch's line, the model folders."""
    at, engine, config = job.at, job.engine, job.config
    if config.recipe.precise_bn:
        with recipes.autocast(config.recipe, engine.device):
            recipes.precise_bn_(job.net, _precise_batches(job), engine.device, config.recipe.bn)
    net = job.ema.module if job.ema else job.net
    engine.sync_buffers(net)
    scores, bad = evaluate.validate(
        net, job.held, engine.device, config.workers, partial(_looked, job), engine, config.recipe
    )
    _stop_if_asked(job)  # then all of it is done again
    if not math.isfinite(scores["loss"]):
        raise DivergedError(
            f"the loss of validation is {scores['loss']} after epoch {at.epoch + 1}, step {job.step}",
            f"best and the last checkpoint are kept; try --lr {config.recipe.lr / 3:.1g}",
        )
    line = Epoch(
        at.epoch + 1,
        at.total / at.seen,
        scores.get("top1"),
        scores.get("top5"),
        scores.get("mean_class"),
        scores.get("map"),
        scores["loss"],
        round(at.seconds, 2),
        round(at.waited, 2),
        at.seen,
        at.failed + len(bad),
    )
    better = line.better_than(_best(job))
    if engine.main:
        summary = {k: v for k, v in (("top1", line.top1), ("top5", line.top5), ("map", line.map)) if v is not None}
        summary |= {
            "majority": metrics.chance(net.spec.classes, job.source.items, job.held.items, net.spec.multi_label),
            "train": len(job.source),
            "val": scores["videos"],
            "groups": scores["groups"],
            "interval": scores["interval"],
            "epochs": line.epoch,
            "step": job.step,
        }
        _append(job.run / "metrics.jsonl", dataclasses.asdict(line))
        for name in ("last", "best")[: 1 + better]:
            checkpoint.save_model(job.run / name, net, summary, card.body(net.spec, summary))
    engine.log(dataclasses.asdict(line), job.step)
    job.at = _At(at.epoch + 1, accumulate=at.accumulate, lines=[*at.lines, dataclasses.asdict(line)])
    job.talk.epoch(line)


def _looked(job, done, total):
    job.talk.step(done, total, "validation")
    if job.engine.world == 1:  # ranks ask one another, which they can only do together
        _stop_if_asked(job)


def _precise_batches(job):
    """Inputs of so many batches of training clips, drawn as in training."""
    batches = _batches(job, job.at.epoch)[: job.config.recipe.precise_bn]
    with contextlib.closing(loader.load(job.source, batches, job.config.workers)) as loaded:
        for _, pixels, _ in loaded:
            if pixels is not None:
                yield clips.to_input(pixels.flatten(0, 1).to(job.engine.device), job.net.spec.clip)


def _best(job):
    best = None
    for line in job.at.lines:
        if Epoch(**line).better_than(best):
            best = Epoch(**line)
    return best


def _enough(job):
    patience = job.config.recipe.early_stop
    return bool(patience and job.at.lines) and job.at.epoch - _best(job).epoch >= patience


def _append(file, value):
    try:
        with open(file, "a", encoding="utf-8") as f:
            f.write(json.dumps(value) + "\n")
    except OSError as error:
        raise DiskError(f"{file} could not be written ({error.strerror})", "free some room") from error


# --- a step


def _step(job, indices, pixels, bad, epoch):
    """One optimiser step on this rank's part of a batch: `(sum of the clips' losses, clips, failed videos)`, of all ranks."""
    step = job.step
    recipe = job.config.recipe
    if recipes.staged(job.net, recipe, step / job.steps):
        _wrap(job)
    key = job.config.seed * 1_000_003 + step
    for group in job.optimizer.param_groups:
        group["lr"] = group["base"] * recipes.rate_factor(recipe, step, job.steps)
    inputs, target = _inputs(job, indices, pixels, key)
    clips_, failed = map(int, job.engine.all_reduce_sum([len(inputs), len(bad)]))
    if not clips_:
        return 0.0, 0, failed
    files = [os.path.basename(job.source.items[i].path) for i in indices]
    statistics = [b.clone() for b in job.net.buffers()]
    while True:
        torch.manual_seed(key + job.engine.rank * 2**33)  # dropout, the same again where memory was short
        try:
            loss = _backward(job, inputs, target, clips_)
            break
        except torch.OutOfMemoryError as error:
            _put_back(job.net, statistics)
            _smaller_parts(job, len(inputs), error)
    job.scaler.unscale_(job.optimizer)
    norm = nn.utils.clip_grad_norm_(job.net.parameters(), recipe.clip_norm or math.inf).item()
    (loss,) = job.engine.all_reduce_sum([loss])
    if not math.isfinite(loss) or not (
        math.isfinite(norm) or job.scaler.is_enabled()
    ):  # the scaler leaves out steps that overflow
        _put_back(job.net, statistics)
        raise DivergedError(
            f"loss {loss}, gradient {norm} at step {step + 1}, on {', '.join(map(printable, job.engine.all_gather(files)))}",
            f"the weights before this step are kept; try --lr {recipe.lr / 3:.1g}",
        )
    job.scaler.step(job.optimizer)
    job.scaler.update()
    job.optimizer.zero_grad(set_to_none=True)
    if job.ema:
        job.ema.update(job.net, step=step + 1)
    return loss, clips_, failed


def _put_back(net, buffers):
    """BN's statistics, which a forward pass has changed."""
    for buffer, kept in zip(net.buffers(), buffers):
        buffer.copy_(kept)


def _inputs(job, indices, pixels, key):
    """`(B, 3, T, H, W)` and the targets, mixed where the run mixes; of none where nothing could be read."""
    device, clip = job.engine.device, job.net.spec.clip
    if pixels is None:
        return torch.empty(0, 3, clip.frames, clip.size, clip.size, device=device), job.targets[:0].to(device)
    views = pixels.transpose(0, 1).flatten(0, 1)  # views of one video lie apart, so that none is mixed with itself
    target = job.targets[indices].repeat(pixels.shape[1], *[1] * (job.targets.ndim - 1)).to(device)
    inputs = clips.to_input(views.to(device), clip)
    if job.config.augment.mixup or job.config.augment.cutmix:
        soft = target if target.ndim > 1 else F.one_hot(target, len(job.net.spec.classes)).float()
        return augment.mix(inputs, soft, job.config.augment, key + 2**40)  # drawn apart from dropout
    return inputs, target


def _backward(job, inputs, target, clips_):
    """Gradients of the mean loss over the clips of all ranks, in parts that fit in memory; the sum of this rank's losses."""
    recipe, engine, total = job.config.recipe, job.engine, 0.0
    parts = max(1, min(job.at.accumulate, len(inputs)))
    pairs = list(zip(inputs.tensor_split(parts), target.tensor_split(parts)))
    job.optimizer.zero_grad(set_to_none=True)
    for n, (part, wanted) in enumerate(pairs):
        with contextlib.nullcontext() if n + 1 == len(pairs) else engine.no_sync(job.model):
            if not len(part):  # this rank read nothing, and takes part with a gradient of zero, and no statistics
                job.net.eval()
                job.scaler.scale(job.model(part.new_zeros(1, *part.shape[1:])).sum() * 0.0).backward()
                recipes.train_mode_(job.net, recipe)
                continue
            with recipes.autocast(recipe, engine.device):
                logits = job.model(part).float()
            loss = recipes.loss(logits, wanted, recipe, job.weights)
            with recipes.recomputing(job.net):
                job.scaler.scale(loss * (len(part) * engine.world / clips_)).backward()
            total += loss.item() * len(part)
    return total


def _smaller_parts(job, size, error):
    """Half as many clips at a time: the batch, and with it the rate, stay what they were asked to be."""
    if job.engine.world > 1 or job.at.accumulate >= size:
        least = f"{-(-size // job.at.accumulate)} clips at a time" + (
            f" on each of {job.engine.world} processes" if job.engine.world > 1 else ""
        )
        raise OutOfMemory(
            f"the device ran out of memory with {least}", "lower --frames or --size, or try --recipe checkpointing=yes"
        ) from error
    job.optimizer.zero_grad(set_to_none=True)
    torch.cuda.empty_cache()
    job.at.accumulate = min(size, job.at.accumulate * 2)
    job.talk.say(
        f"out of memory: each batch is now taken in {job.at.accumulate} parts; batch and rate stay as they are"
    )


# --- before a run


def rehearse(net: nn.Module, found: scanning.Dataset, config: TrainConfig, talk: Callbacks = Callbacks()) -> dict:  # noqa: B008
    """What `--dry-run` says: memory of a step, seconds of one, and whether the network can learn one batch by heart. Writes nothing."""
    device = torch.device(config.device)
    job = _job(
        copy.deepcopy(net),
        found,
        dataclasses.replace(config, augment=dataclasses.replace(config.augment, mixup=0.0, cutmix=0.0)),
        Path(),
        talk,
        Engine(device),
        Stop(),
    )
    some = dataclasses.replace(job.held, items=job.held.items[: SANITY_BATCHES * evaluate.CLIPS])
    bad = evaluate.predictions(job.net, some, device, config.workers, recipe=config.recipe).bad
    recipes.train_mode_(job.net, config.recipe)
    batch = _batches(job, 0)[0]
    losses, began, steps = [], time.monotonic(), job.steps
    with contextlib.closing(loader.load(job.source, [batch], config.workers)) as loaded:
        indices, pixels, unread = next(loaded)
        job.steps, job.step = 4 * REHEARSAL, REHEARSAL // 2  # about the highest rate all the while
        for n in range(REHEARSAL):
            loss, seen, _ = _step(job, indices, pixels, unread, 0)
            losses.append(loss / max(1, seen))
            talk.step(n + 1, REHEARSAL, "learning one batch by heart")
    each = (time.monotonic() - began) / REHEARSAL
    need = recipes.memory_estimate(
        net, net.spec.clip, -(-config.recipe.batch // config.recipe.accumulate), config.recipe
    )
    return {
        "bytes": need,
        "seconds_a_step": round(each, 3),
        "steps": steps,
        "minutes": round(each * steps / 60, 1),
        "unreadable": len(bad) + len(unread),
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "learns": losses[-1] < 0.8 * losses[0],
    }


def find_rate(net: nn.Module, found: scanning.Dataset, config: TrainConfig, talk: Callbacks = Callbacks()) -> float:  # noqa: B008
    """A learning rate by a short range test on a copy of `net`. Raises `UsageError` where the loss never falls."""
    steady = dataclasses.replace(config.recipe, schedule="constant", warm_up=0.0, ema=0.0)
    job = _job(
        copy.deepcopy(net),
        found,
        dataclasses.replace(config, recipe=steady),
        Path(),
        talk,
        Engine(torch.device(config.device)),
        Stop(),
    )
    factors = [RANGE_WIDTH ** (n / (RANGE_STEPS - 1) - 0.5) for n in range(RANGE_STEPS)]
    highest = [group["base"] for group in job.optimizer.param_groups]
    batches = [batch for epoch in range(-(-RANGE_STEPS // len(_batches(job, 0)))) for batch in _batches(job, epoch)][
        :RANGE_STEPS
    ]
    losses = []
    with contextlib.closing(loader.load(job.source, batches, config.workers)) as loaded:
        for n, (indices, pixels, bad) in enumerate(loaded):
            for group, base in zip(job.optimizer.param_groups, highest):
                group["base"] = base * factors[n]
            try:
                loss, seen, _ = _step(job, indices, pixels, bad, 0)
            except DivergedError:
                break
            losses.append(loss / max(1, seen))
            job.step += 1
            talk.step(n + 1, RANGE_STEPS, "range test of the learning rate")
    return recipes.range_test(
        losses + [math.inf] * (RANGE_STEPS - len(losses)), [config.recipe.lr * f for f in factors]
    )
