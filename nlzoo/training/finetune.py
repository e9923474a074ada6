"""`nlzoo.finetune`: a classifier from a folder of videos. `nlzoo finetune` makes the same call."""

import dataclasses
from pathlib import Path
from typing import Any

from ..core import files, model_spec, recipe_spec
from ..core.errors import UsageError
from ..core.recipe_spec import Decision, TrainConfig
from ..core.text import printable
from ..networks import hub_dataset, model, zoo
from ..networks.network import Network
from ..videos import listing, scanning
from . import devices, dry_run, engine as engines, linear, metrics, plan, run_folder, train, tuning
from .callbacks import Callbacks, Event, Step
from .dry_run import Rehearsal
from .engine import Engine
from .options import FinetuneOptions
from .run_folder import Result, SeedResults


@dataclasses.dataclass(frozen=True)
class _Planned:
    """All that a run is made of."""

    net: Network
    dataset: scanning.Dataset
    config: TrainConfig
    decisions: list[Decision]


def finetune(
    videos: str | Path, start: str | Path | None = None, callbacks: Callbacks = Callbacks(), **options: Any
) -> Result | SeedResults | Rehearsal:
    """Trains a classifier on `videos`, a folder or a list, and keeps it in a run folder, as `best` and `last`.

    `start`: a model folder, a run, a name in weights/ or runs/, user/name on the Hub, or a 2-D network of timm that is
    not inflated, which is trained frame by frame; None: the newest in weights/, or else resnet50 with five non-local
    blocks. `options`: those of `FinetuneOptions`; what is left out is filled in.
    An unfinished run of the same name and settings is resumed; with other settings it is a `UsageError`. `seeds` above
    1 give `SeedResults`, `dry_run` a `Rehearsal`. Raises what `train.train` does, and what scanning the videos does.
    """
    settings = FinetuneOptions(**options)
    with engines.distributed_errors():
        engines.set_current_gpu()
        engine = engines.begin(devices.resolve(settings.device), settings.track)
        videos, first = Path(videos), str(start) if start else None
        named = settings.name is not None or settings.seeds > 1
        base = zoo.folder_name(settings.name or hub_dataset.base_name(videos))
        if settings.dry_run:
            planned = _plan(videos, first, settings, engine, callbacks)
            return dry_run.rehearse(planned.net, planned.dataset, planned.config, callbacks, engine)
        files.check_folder(settings.runs / base)
        if settings.seeds == 1:
            return _run(videos, first, settings, engine, callbacks, base, named)
        results = []
        for seed in range(settings.seed, settings.seed + settings.seeds):
            finished = settings.runs / f"{base}-s{seed}"
            if (finished / run_folder.RESULT).is_file():
                results.append(run_folder.read_result(finished))
                continue
            one = dataclasses.replace(settings, seed=seed)
            results.append(_run(videos, first, one, engine, callbacks, finished.name, named))
        return SeedResults(results)


def _run(
    videos: Path,
    start: str | None,
    options: FinetuneOptions,
    engine: Engine,
    callbacks: Callbacks,
    base: str,
    named: bool,
) -> Result:
    """One run, started or resumed."""
    run = zoo.unfinished_run(base, named, options.runs)
    if options.resume:
        run = run or _only_unfinished(base, named, options.runs)
        planned = _recorded(run, engine, callbacks, options.workers)
    else:
        if run is None and named:
            zoo.new_run(base, named, options.runs)  # refuses a finished one before the work
        planned = _plan(videos, start, options, engine, callbacks)
        if run is None:
            run = zoo.new_run(base, named, options.runs)
        elif engine.main:  # the GPU of another rank has another name
            _refuse_other(run, planned)
    run = Path(engine.broadcast(str(run)))
    engine.agree("the videos or the recipe", (planned.dataset.items, planned.config.recipe))

    def ready() -> None:
        """The folder is ours; while videos were scanned another process may have worked there."""
        if (run / run_folder.RESULT).exists():
            raise UsageError(f"{run} has finished meanwhile", "nlzoo list shows its result; --name NEW starts another")
        if not options.resume and (run / run_folder.CONFIG).exists():
            _refuse_other(run, planned)
        callbacks.folder(run)

    try:
        result = train.train(
            planned.net, planned.dataset, planned.config, run, callbacks, engine, planned.decisions, ready
        )
        val = scanning.items_in(planned.dataset, listing.VAL)
        if metrics.num_groups(val) < metrics.FEW_GROUPS:
            callbacks.warn(Event("too_few", {"videos": len(val), "groups": metrics.num_groups(val)}))
        return result
    finally:
        callbacks.folder(None)


def _plan(videos: Path, start: str | None, options: FinetuneOptions, engine: Engine, callbacks: Callbacks) -> _Planned:
    """The run as it is asked for, with what was not given filled in."""

    def scan() -> scanning.Dataset:
        def tell(done: int, total: int) -> None:
            callbacks.step(Step("scan", done, total))

        with engine.first_rank_first():  # whose records of the videos the others read
            scanned = scanning.scan(videos, options.classes or (), tell, val=options.val)
        return scanning.split(scanned, options.val, options.seed)

    if options.tuned:
        tuning.refuse_unmeasured(engine.device)
    # no network is fetched for videos that cannot be trained on; one that is here is looked at before they are opened
    of_sound = options.stream == "audio"
    dataset = scan() if not start and (of_sound or not zoo.models()) else None
    if dataset and of_sound:
        plan.prior_of_sound(dataset, Callbacks())  # refuses a set without any
    folder, net = plan.starting_model(start, callbacks, options.stream, videos)
    fresh = net.spec.inflation.init != "imported" and not net.spec.classes
    if fresh and not of_sound:
        callbacks.log(Event("images_only"))
    plan.fit_clip(net, options, engine.device)
    dataset = dataset or scan()
    callbacks.dataset(dataset)
    span = plan.fit_span(net, options, dataset)
    clip = net.spec.clip
    new_head = linear.fit_classes(net, dataset)
    plan.fit_prior(net, dataset, callbacks)
    config, decisions = plan.plan(
        dataset, str(videos), str(folder), options, engine, fresh, clip.frames, new_head, clip.stream
    )
    if span:
        decisions.append(span)
    if options.lr == "auto":
        rate = float(f"{dry_run.find_rate(net, dataset, config, callbacks, engine):.1g}")
        config, decisions = _at_rate(config, decisions, engine.broadcast(rate))
    decisions = [*plan.of_batch_norm(net, config, decisions), plan.memory(net, config, engine.device)]
    values = {"device": str(engine.device), "world": engine.world, "clip": net.spec.clip, "decisions": decisions}
    callbacks.log(Event("planned", values))
    return _Planned(net, dataset, config, decisions)


def _at_rate(config: TrainConfig, decisions: list[Decision], rate: float) -> tuple[TrainConfig, list[Decision]]:
    """Both with the learning rate that a range test found."""
    others = [decision for decision in decisions if decision.code != "lr"]
    recipe = dataclasses.replace(config.recipe, lr=rate)
    return dataclasses.replace(config, recipe=recipe), [*others, Decision("lr", rate, "by a range test")]


def _recorded(run: Path, engine: Engine, callbacks: Callbacks, workers: int | None) -> _Planned:
    """An unfinished run with the settings that it was started with; the number of workers changes nothing."""
    settings = files.read_json(run / run_folder.CONFIG)
    net = model.build(model_spec.from_json(settings.get("model"), str(run / run_folder.CONFIG)))
    config = recipe_spec.train_config(settings.get("train"))
    workers = config.workers if workers is None else workers
    config = dataclasses.replace(config, device=str(engine.device), workers=workers)
    with engine.first_rank_first():
        dataset = scanning.scan(run / "videos.csv")
    if dataset.classes != net.spec.classes:
        raise UsageError(
            f"{run} was started with videos of {len(net.spec.classes)} classes; "
            f"those of {len(dataset.classes)} are still there",
            "put the videos back, or start a new run with another --name",
        )
    callbacks.log(Event("resuming", {"run": str(run)}))
    if dataset.skipped:
        callbacks.warn(Event("videos_gone", {"videos": len(dataset.skipped)}))
    return _Planned(net, scanning.split(dataset, config.val, config.seed), config, [])


def _only_unfinished(base: str, named: bool, runs: Path) -> Path:
    """The one unfinished run, whatever its name. Raises `UsageError` where there is none, or several."""
    unfinished = [] if named else zoo.unfinished_runs(runs)
    if not unfinished:
        raise UsageError(
            f"there is no unfinished run {runs / base}{'' if named else '-N'} to resume",
            "leave --resume out to start one",
        )
    if len(unfinished) > 1:
        names = ", ".join(printable(run.name) for run in unfinished)
        raise UsageError(f"several runs in {runs} are unfinished: {names}", "choose one with --name")
    return unfinished[0]


def _refuse_other(run: Path, planned: _Planned) -> None:
    """An unfinished run is resumed only with the settings that it was started with."""
    spec = model_spec.to_json(planned.net.spec)
    changes = run_folder.difference(run, planned.config, spec, planned.dataset)
    if changes:
        rows = "\n".join(f"  {line}" for line in changes[:20])
        raise UsageError(
            f"{run} is unfinished, and was started with different settings:\n{rows}",
            "--resume continues it with its own settings; --name NEW starts another",
        )
