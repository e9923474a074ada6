"""The run loop: one straight line from a network and a scanned folder to a finished run that a kill cannot lose.

A run that is resumed from a checkpoint takes the same steps to the same bits (`step`). What a run folder holds is in
`run_folder`, what the defaults are and the measurements behind them in docs/training.md.
"""

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..core import files, lock as locks
from ..core.errors import DiskError, DivergedError, Stopped, VideoError
from ..core.recipe_spec import Decision, TrainConfig
from ..core.skipped import Skipped
from ..core.stopping import SIGNALS, stopping
from ..networks import card, checkpoint
from ..networks.network import Network
from ..videos import clips, frame_cache, loader, records, scanning, streams
from . import devices, evaluate, linear, metrics, outputs, recipe as recipes, run_folder, state
from .callbacks import Callbacks, Event, Step
from .engine import Engine
from .run_folder import Epoch, Result
from .step import Job, batches, prepare, train_step

SAVE_SHARE, SAVE_AT_MOST = 0.05, 300.0  # of the time may go into checkpoints; seconds from one to the next at most
SANITY_BATCHES = 2  # of validation, before the first epoch


@dataclass
class _Checkpoints:
    """Writes them, and knows when it is time for the next."""

    job: Job
    written: float = 0.0  # when the last one was, on the monotonic clock
    cost: float = 0.0  # seconds that it took

    def save(self) -> None:
        """A checkpoint of this moment, by rank 0."""
        job = self.job
        if job.engine.main and job.run:
            self.check_folder()
            began = time.monotonic()
            tensors, plans = job.learner.packed()
            meta = {"at": dataclasses.asdict(job.progress), "plans": plans}
            state.save(job.run, job.progress.step, tensors, meta)
            self.written = time.monotonic()
            self.cost = self.written - began

    def check_folder(self) -> None:
        """Raises `DiskError` where the run was deleted or moved, or another one stands in its place."""
        run = self.job.run
        assert run
        if not locks.is_ours(run) or not (run / run_folder.CONFIG).is_file():
            raise DiskError(
                f"{run} was deleted or moved while the run worked in it: nothing can be saved there",
                "put the folder back and give the same command, which resumes it; or start again",
            )

    @property
    def due(self) -> bool:
        """They may take `SAVE_SHARE` of the time, and lie `SAVE_AT_MOST` seconds apart."""
        return time.monotonic() - self.written > min(SAVE_AT_MOST, self.cost / SAVE_SHARE)


def train(
    net: Network,
    dataset: scanning.Dataset,
    config: TrainConfig,
    run: Path,
    callbacks: Callbacks = Callbacks(),
    engine: Engine | None = None,
    decisions: Sequence[Decision] = (),
    ready: Callable[[], None] = lambda: None,
) -> Result:
    """Trains `net` (its head fits the classes of `dataset`, which is split) in the folder `run`; returns the outcome.

    A run that was started there is resumed from its newest checkpoint. `ready` is called when the folder is ours.

    Raises `DivergedError` before a step that would be taken with NaN, `OutOfMemory`, `DiskError`, `VideoError` when an
    epoch's videos cannot be read, `Stopped` after a signal, when all is saved, and `UsageError` where another process
    works in `run`.
    """
    engine = engine or Engine(torch.device(config.device))
    lock = state.lock(run) if engine.main else contextlib.nullcontext()
    with lock, stopping() as stop, contextlib.ExitStack() as closed_at_the_end:
        began = time.monotonic()
        if engine.main:
            ready()
        job = prepare(net, dataset, config, engine, callbacks, stop, run)
        closed_at_the_end.callback(job.close)
        checkpoints, progress = _Checkpoints(job), job.progress
        engine.wait()
        resumed = _resumed(job, run)
        if resumed is None:
            _begin(job, checkpoints, dataset, decisions)
        engine.track(run, dataclasses.asdict(config.recipe), progress.step)
        before = progress.spent
        for epoch in range(progress.epoch, config.recipe.epochs):
            if _no_better_lately(job):  # here, since a kill may have come just after that epoch
                job.log("stopped_early", epochs=config.recipe.early_stop)
                break
            _train_epoch(job, checkpoints, epoch)
            _end_epoch(job, checkpoints)
            progress.spent = before + time.monotonic() - began
            checkpoints.save()
            if epoch == 0:
                callbacks.log(Event("time_left", {"minutes": round(progress.spent * (config.recipe.epochs - 1) / 60)}))
        engine.end()
        if engine.main:
            checkpoints.check_folder()
        return _finish(job, resumed)


def sanity_check(job: Job) -> list[Skipped]:
    """Validates two batches; gives what could not be read. What would fail after an hour fails at once."""
    few = dataclasses.replace(job.val_clips, items=job.val_clips.items[: SANITY_BATCHES * outputs.CLIPS])
    config = job.config
    return evaluate.predictions(job.net, few, job.engine.device, config.workers, recipe=config.recipe).bad


def _begin(job: Job, checkpoints: _Checkpoints, dataset: scanning.Dataset, decisions: Sequence[Decision]) -> None:
    """A new run: its settings, two batches of validation and a whole checkpoint, before hours depend on them."""
    if job.config.cache and streams.is_kept(job.net.spec.clip.stream):
        _check_room(dataset, job, Path(job.config.cache))
    if job.engine.main and job.run:
        run_folder.start(job.run, job.net, dataset, job.config, decisions)
        (job.run / run_folder.METRICS).unlink(missing_ok=True)  # a start that was killed may have left epoch 0
    job.log("started", grouped_by=dataclasses.asdict(dataset.grouped_by))
    sanity_check(job)
    if job.config.recipe.probe != "none":
        _begin_with_probe(job, dataset)
    checkpoints.save()


def _begin_with_probe(job: Job, dataset: scanning.Dataset) -> None:
    """What a linear probe of the start is worth stands as epoch 0, to be beaten; training may start from it."""
    line: Epoch | None = None
    head: dict[str, torch.Tensor] = {}
    if job.engine.main:
        try:
            line, head = _probe(job, dataset)
        except (VideoError, DivergedError) as error:  # training says whether it can go on
            job.log("no_probe", reason=error.message)
    line, head = job.engine.broadcast((line, head))
    if line is None:
        return
    if job.config.recipe.probe == "start":
        for net in {job.net, job.learner.kept}:
            net.fc.load_state_dict(head)
    job.progress.lines = [dataclasses.asdict(line)]
    job.callbacks.epoch(line)


def _probe(job: Job, dataset: scanning.Dataset) -> tuple[Epoch, dict[str, torch.Tensor]]:
    """Fits a head and writes the model of it: `(epoch 0, the head)`; the network is afterwards what it was."""
    began = time.monotonic()

    def look(done: int, total: int) -> None:
        job.callbacks.step(Step("features", done, total))
        if job.engine.world == 1:  # other ranks would wait for this one
            _stop_if_asked(job)

    config, net, spec = job.config, job.net, job.net.spec
    before = {name: value.clone() for name, value in net.fc.state_dict().items()}
    try:
        cache = Path(config.cache) if config.cache else None
        fitted = linear.fit_head(net, dataset, job.engine.device, config.workers, config.decoder, look, cache)
        made = fitted.predictions
        figures = metrics.of_validation(made.scores, made.items, spec.classes, spec.multi_label)
        failed, seconds = len(fitted.bad) + len(made.bad), time.monotonic() - began
        line = run_folder.epoch_line(0, fitted.train_loss, figures, seconds, 0.0, len(fitted.train), failed)
        if job.run:
            if fitted.curve:
                curve = dataclasses.asdict(fitted.curve)
                files.write_json(job.run / run_folder.CURVE, curve)
                job.callbacks.log(Event("learning_curve", curve))
            if "threshold" in figures:
                net.spec = dataclasses.replace(spec, threshold=figures["threshold"])
            _write_epoch(job, line, figures, net)
        head = {name: value.cpu().clone() for name, value in net.fc.state_dict().items()}
    finally:
        net.fc.load_state_dict(before)
    return line, head


def _check_room(dataset: scanning.Dataset, job: Job, cache: Path) -> None:
    """Raises `DiskError` where the decoded frames of all videos would not fit in the folder `cache`."""
    infos = [records.probe(path) for path in {dataset.root / item.path for item in dataset.items}]
    sizes = [(info.path, info.frames, info.height, info.width) for info in infos]
    clip = job.net.spec.clip
    frame_cache.check_room(sizes, clips.decode_side(clip), cache, clip.stream)


def _resumed(job: Job, run: Path) -> int | None:
    """The step that the run was taken up from, None for a new one; the same on every rank.

    Another machine may not see yet what rank 0 has written: then this is a `UsageError` on all of them.
    """
    resumed = _resume(job) if job.engine.broadcast((run / run_folder.CONFIG).exists()) else None
    job.engine.agree("the checkpoints of the run", resumed)
    return resumed


def _resume(job: Job) -> int | None:
    """Takes up the newest checkpoint of the run; its step. None where there is none yet."""
    assert job.run
    loaded = state.load(job.run)
    if loaded is None:
        return None
    for name, reason in loaded.passed_over:
        job.log("passed_over", name=name, reason=reason)
    job.learner.restore(loaded)
    job.progress.restore(loaded.step, loaded.meta["at"])
    if job.engine.main:
        run_folder.write_epochs(job.run, job.progress.epochs)
    then, now = loaded.writer, state.versions()
    changed = {key: [then.get(key), value] for key, value in now.items() if then.get(key) != value}
    if changed:
        job.log("other_versions", changed=changed)
    epoch = min(job.progress.epoch + 1, job.config.recipe.epochs)
    job.log("resumed", steps=job.steps, epoch=epoch)
    return loaded.step


def _finish(job: Job, resumed: int | None) -> Result:
    epochs = job.progress.epochs
    best, last, spec = run_folder.best_epoch(epochs), epochs[-1], job.net.spec
    result = Result(
        str(job.run),
        f"{job.run}/best",
        list(spec.classes),
        len(job.train_clips),
        len(job.val_clips),
        job.progress.epoch,
        best.top1,
        best.top5,
        best.mean_class,
        best.map,
        _chance(job),
        best.epoch,
        last.top1,
        last.map,
        round(job.progress.spent, 1),
        resumed,
        epochs[0].score if epochs[0].epoch == 0 else None,
    )
    if job.engine.main and job.run:
        files.write_json(job.run / run_folder.RESULT, dataclasses.asdict(result))
        job.log("finished")
    return result


def _chance(job: Job) -> float:
    """The majority-class baseline."""
    spec = job.net.spec
    return metrics.chance(spec.classes, job.train_clips.items, job.val_clips.items, spec.multi_label)


def _stop_if_asked(job: Job, checkpoints: _Checkpoints | None = None) -> None:
    """Saves (`checkpoints`: None before the first), and raises `Stopped`, when a signal has come to any rank."""
    counts = job.engine.all_reduce_sum([job.stop.signal == number for number in SIGNALS])
    if not any(counts):
        return
    number = next(number for number, count in zip(SIGNALS, counts) if count)
    if checkpoints:
        checkpoints.save()
    name, step = signal.Signals(number).name, job.progress.step
    job.note("stopped", signal=name)
    job.engine.wait()  # the launcher ends those that are left when the first has gone
    raise Stopped(
        f"stopped by {name} after step {step} of {job.steps}; all is saved in {job.run}",
        "the same command resumes it",
        128 + number,
    )


# --- an epoch


def _train_epoch(job: Job, checkpoints: _Checkpoints, epoch: int) -> None:
    """What is left of one pass over the training clips."""
    config, progress = job.config, job.progress
    recipes.train_mode_(job.net, config.recipe)
    all_batches = batches(job, epoch)
    first, seconds_before = progress.batches, progress.seconds
    mine = _own_batches(job, epoch)[first:]
    began = waiting_since = time.monotonic()
    loaded = _one_for_each(mine, job.train_loader.load(mine))
    with contextlib.closing(loaded):
        for n, (indices, pixels, bad) in enumerate(loaded, first + 1):
            progress.waited += time.monotonic() - waiting_since
            _stop_if_asked(job, checkpoints)  # before a step without the clips of workers that the same signal ended
            if n == len(all_batches):
                job.val_loader.prime(outputs.batches(job.val_loader.source))  # decoded while the last step is taken
            try:
                loss, seen, failed = train_step(job, indices, pixels, bad)
            except DivergedError:
                checkpoints.save()  # of before this step
                raise
            progress.total += loss
            progress.seen += seen
            progress.failed += failed
            progress.batches = n
            progress.step = epoch * len(all_batches) + n
            progress.seconds = seconds_before + time.monotonic() - began
            _say_step(job, len(all_batches), (time.monotonic() - began) / (n - first))
            if checkpoints.due and n < len(all_batches):
                checkpoints.save()
            waiting_since = time.monotonic()
    shown = len(job.train_clips) * config.recipe.passes
    if progress.failed > scanning.MOST_BAD * shown:
        raise VideoError(
            f"{progress.failed} of {shown} training videos could not be read in epoch {epoch + 1}",
            "nlzoo check shows which, and why; nlzoo doctor the decoders",
        )


def _own_batches(job: Job, epoch: int) -> list[list[loader.Key]]:
    """This rank's part of each batch of an epoch."""
    return [batch[job.engine.rank :: job.engine.world] for batch in batches(job, epoch)]


def _one_for_each(
    batches: list[list[loader.Key]], loaded: Generator[loader.Batch, None, None]
) -> Generator[loader.Batch, None, None]:
    """An entry for each batch, of nothing where this rank has no part of it."""
    with contextlib.closing(loaded):
        for batch in batches:
            yield next(loaded) if batch else loader.Batch([], None, [])


def _say_step(job: Job, num_batches: int, seconds: float) -> None:
    """`seconds`: of a step, in the mean."""
    progress = job.progress
    job.callbacks.step(
        Step(
            "train",
            progress.batches,
            num_batches,
            progress.epoch + 1,
            job.config.recipe.epochs,
            progress.waited / max(progress.seconds, 1e-9),
            (job.steps - progress.step) * seconds,
        )
    )


def _end_epoch(job: Job, checkpoints: _Checkpoints) -> None:
    """Validation, the epoch's line, the model folders."""
    progress, config, net = job.progress, job.config, job.learner.kept
    if config.recipe.precise_bn:
        recipe, device = config.recipe, job.engine.device
        with devices.autocast(recipe, device):
            recipes.precise_bn_(job.net, _precise_batches(job), device, recipe.bn, recipe.freeze)
    job.engine.sync_buffers(net)
    if progress.epoch + 1 < config.recipe.epochs:  # decoded while validation runs
        job.train_loader.prime(_own_batches(job, progress.epoch + 1))

    def look(done: int, total: int) -> None:
        job.callbacks.step(Step("validate", done, total))
        if job.engine.world == 1:  # ranks ask one another, which they can only do together
            _stop_if_asked(job, checkpoints)

    figures, bad = evaluate.validate(
        net, job.val_clips, job.engine.device, config.workers, look, job.engine, config.recipe, job.val_loader
    )
    _stop_if_asked(job, checkpoints)  # then all of it is done again
    if not math.isfinite(figures["loss"]):
        raise DivergedError(
            f"the loss of validation is {figures['loss']} after epoch {progress.epoch + 1}, step {progress.step}",
            f"best and the last checkpoint are kept; try --lr {config.recipe.lr / 3:.1g}",
        )
    line = run_folder.epoch_line(
        progress.epoch + 1,
        progress.total / progress.seen,
        figures,
        progress.seconds,
        progress.waited,
        progress.seen,
        progress.failed + len(bad),
    )
    if "threshold" in figures:
        net.spec = dataclasses.replace(net.spec, threshold=figures["threshold"])
    if job.engine.main:
        checkpoints.check_folder()
        _write_epoch(job, line, figures, net)
    job.engine.log(dataclasses.asdict(line), progress.step)
    progress.next_epoch(line)
    job.callbacks.epoch(line)


def _write_epoch(job: Job, line: Epoch, validated: dict[str, Any], net: Network) -> None:
    """The line, `last`, and `best` where this epoch is the best. `validated`: the figures of `evaluate.validate`."""
    assert job.run
    figures = {"top1": line.top1, "top5": line.top5, "map": line.map}
    summary = {name: value for name, value in figures.items() if value is not None} | {
        "groups": validated["groups"],
        "interval": validated["interval"],
        "val": validated["videos"],
        "majority": _chance(job),
        "train": len(job.train_clips),
        "epochs": line.epoch,
        "step": job.progress.step,
    }
    run_folder.append(job.run / run_folder.METRICS, dataclasses.asdict(line))
    readme = card.body(net.spec, summary)
    checkpoint.save_model(job.run / "last", net, summary, readme)
    if run_folder.best_epoch([*job.progress.epochs, line]) == line:
        checkpoint.save_model(job.run / "best", net, summary, readme)


def _precise_batches(job: Job) -> Iterator[torch.Tensor]:
    """Inputs `(B, C, T, H, W)` of `precise_bn` batches of training clips, drawn as in training."""
    some = batches(job, job.progress.epoch)[: job.config.recipe.precise_bn]
    enough = False
    with contextlib.closing(job.train_loader.load(some)) as loaded:
        for _, pixels, _ in loaded:
            if pixels is not None and pixels.shape[:2].numel() >= job.min_clips:
                enough = True
                views = pixels.flatten(0, 1)
                # as many at a time as a step takes, where memory is short
                for part in views.tensor_split(recipes.num_parts(len(views), job.progress.accumulate, job.min_clips)):
                    yield clips.to_input(part.to(job.engine.device), job.net.spec.clip)
    if not enough:
        raise VideoError("too few training videos could be read for BatchNorm's statistics", "nlzoo check shows which")


def _no_better_lately(job: Job) -> bool:
    patience, epochs = job.config.recipe.early_stop, job.progress.epochs
    return bool(patience and epochs) and job.progress.epoch - run_folder.best_epoch(epochs).epoch >= patience
