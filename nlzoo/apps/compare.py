"""`nlzoo compare`: the paper's table on a user's own videos, every system on one split.

Everything is in one folder: what the systems start from, their runs, and what each predicts for the validation videos.
What is there is not made again, so that a comparison may be stopped, and grow. Unusual: of fine-tuned networks
the *last* epoch counts, which no validation chose, so that they are not flattered beside a probe.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations, product
from pathlib import Path

import numpy as np
import torch

from ..core import files, lock
from ..core.bounds import between
from ..core.errors import DiskError, NlzooError, Stopped, UsageError
from ..core.model_spec import Inflation
from ..core.progress import Stages, no_stages
from ..core.text import counted, printable
from ..networks import checkpoint, describe, download, hub_dataset, model as models, zoo
from ..training import devices, evaluate, known_features, linear, metrics, run_folder
from ..training.callbacks import Callbacks
from ..training.dry_run import Rehearsal
from ..training.finetune import finetune
from ..training.probe import probe
from ..videos import listing, loader, pool, records, scanning
from ..videos.items import Item, Key

FOLDER = Path("comparisons")  # default place, in the working folder
# C2D, I3D and NL I3D start from one image network; the RGB stream of several is I3D
INFLATED = {"c2d": ("c2d", "none"), "i3d": ("i3d", "none"), "nl-i3d": ("i3d", "5")}
STREAMS = {"flow": "i3d", "audio": "c2d"}  # by the network that each starts from
FUSED = {"rgb+flow": ("i3d", "flow"), "rgb+flow+audio": ("i3d", "flow", "audio")}
SEQUENCES = ("lstm", "attention")  # heads over windows of what the probe sees
ALL_STREAMS = {"rgb": "i3d", "flow": "flow", "audio": "audio"}  # with the systems whose networks see them
OVER_STREAMS = ("lstm-streams", "attention-streams")  # heads over windows of what those see that are there
TSN = "tsn"  # fine-tuned frame by frame: 2-D networks, each behind this name; only where it is asked for
SYSTEMS = ("majority", "size-and-length", "probe", *SEQUENCES, TSN, *INFLATED, *STREAMS, *FUSED, *OVER_STREAMS)
FEW_BLOCKS = "res3:1,res4:1"  # of a backbone that is too shallow for the paper's five


@dataclass(frozen=True)
class Measured:
    """What one system predicts for the validation videos of one seed."""

    keys: tuple[Key, ...]
    scores: np.ndarray  # float64 (N, K)
    params: int = 0
    macs: int = 0  # of a video: all its clips
    seconds: float = 0.0  # to predict a video, decoding included
    training: float = 0.0  # seconds


@dataclass(frozen=True)
class Settings:
    """What is the same for all systems of a comparison. None is filled in by each command as ever."""

    videos: str
    backbone: str
    weights: str | None = None
    val: str = "0.25"
    seed: int = 0
    frames: int | None = None
    size: int | None = None
    epochs: int | None = None


@dataclass(frozen=True)
class Comparison:
    """What `compare` measured; `in_words` and `as_markdown` say it."""

    figures: dict  # ready for JSON (docs/fusion.md)


@dataclass
class _Job:
    folder: Path
    settings: Settings
    device: torch.device
    callbacks: Callbacks
    stages: Stages
    until: float = math.inf  # time.monotonic() by which training should have ended
    datasets: dict[int, scanning.Dataset] = field(default_factory=dict)  # split, by seed

    def dataset(self, seed: int) -> scanning.Dataset:
        """The videos, split for a seed."""
        if seed not in self.datasets:
            with self.stages("scanning") as progress:
                scanned = scanning.scan(Path(self.settings.videos), (), progress, val=self.settings.val)
            self.datasets[seed] = scanning.split(scanned, self.settings.val, seed)
            self.callbacks.dataset(self.datasets[seed])
        return self.datasets[seed]


def compare(
    videos: str | Path,
    probes: Sequence[str] = (),
    systems: Sequence[str] = (),
    backbone: str | None = None,
    weights: str | Path | None = None,
    val: str = "0.25",
    seed: int = 0,
    seeds: int = 1,
    frames: int | None = None,
    size: int | None = None,
    epochs: int | None = None,
    minutes: float | None = None,
    name: str | None = None,
    device: str | torch.device | None = None,
    callbacks: Callbacks = Callbacks(),
    stages: Stages = no_stages,
    log: Callable[[str], object] = lambda text: None,
) -> Comparison:
    """Trains and measures `systems` (none: all of `SYSTEMS` but `TSN` that can be had) and probes of models, `probes`.

    The table has them and whatever else of the comparison has been measured for these seeds.
    `backbone`: the image network that all start from, by default resnet50, on a CPU resnet18; `weights`: its file. Each
    of `seeds` seeds has a split of its own, the same for all systems. With `minutes`, a network whose training is
    estimated to take longer than what is left of them is left out. `log` gets sentences on the way. Raises `UsageError`
    for what cannot be, and for a comparison of that name with other settings, and `Stopped` after a
    signal, when the table so far is written.
    """
    device = devices.resolve(device)
    between(seeds, 1, 100, "--seeds")
    until = math.inf if minutes is None else time.monotonic() + 60 * minutes
    backbone = backbone or ("resnet18" if device.type == "cpu" else "resnet50")
    chosen = _wanted(systems, probes, backbone)
    file = str(Path(weights).resolve()) if weights else None
    settings = Settings(str(Path(videos).absolute()), backbone, file, val, seed, frames, size, epochs)
    folder = FOLDER / zoo.folder_name(name or hub_dataset.base_name(Path(videos)))
    files.check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with lock.hold(folder):
        _keep_settings(folder, settings)
        job = _Job(folder, settings, device, callbacks, stages, until)
        numbers = range(seed, seed + seeds)
        left_out: dict[str, str] = {}
        for number, wish in product(numbers, chosen):
            system = _with_streams(wish, left_out)
            if system in left_out:
                continue
            try:
                _refuse_without_parts(system, left_out)
                _measured(job, system, number, log)
            except (Stopped, DiskError) as end:  # which is not this system's trouble alone
                if isinstance(end, Stopped) and _write_table(job, numbers, left_out):
                    log(f"what was measured so far is in {folder}/table.md")
                raise
            except NlzooError as problem:  # the others go on
                left_out[system] = " ".join(filter(None, [problem.message, problem.hint and f"({problem.hint})"]))
                log(f"{system} is left out: {left_out[system]}")
        figures = _write_table(job, numbers, left_out)
        if not figures:
            raise UsageError(f"no system could be measured: {'; '.join(left_out.values())}")
    return Comparison(figures)


def _write_table(job: _Job, seeds: Sequence[int], left_out: dict[str, str]) -> dict:
    """The figures of all that has been measured for these seeds, also written; none where there is nothing."""
    measured = _known(job.folder, seeds)
    if not measured:
        return {}
    figures = _figures([job.dataset(seed) for seed in seeds], measured)
    figures |= {"folder": str(job.folder), "left_out": left_out}
    files.write_json(job.folder / "table.json", figures)
    files.write_text(job.folder / "table.md", as_markdown(figures))
    return figures


def _wanted(systems: Sequence[str], probes: Sequence[str], backbone: str) -> list[str]:
    """The systems in the order of the table. Raises `UsageError` for one that there is not."""
    for system in systems:
        if system not in SYSTEMS:
            raise UsageError(f"there is no system {printable(system)!r}", f"the systems: {', '.join(SYSTEMS)}")
    parts = FUSED | dict.fromkeys(OVER_STREAMS, tuple(ALL_STREAMS.values()))
    chosen = {*(systems or SYSTEMS), *(part for system in systems for part in parts.get(system, ()))}
    flat = _image_networks((backbone, *probes)) if TSN in systems else []
    named = {"probe": [f"probe {model}" for model in probes], TSN: [f"{TSN} {network}" for network in flat]}
    return [one for s in SYSTEMS for one in [*([s] if s in chosen - {TSN} else []), *named.get(s, [])]]


def _image_networks(names: Sequence[str]) -> list[str]:
    """Those that are 2-D networks to be trained frame by frame. Raises `UsageError` where none is."""
    flat = [name for name in dict.fromkeys(names) if zoo.is_frame_network(name)]
    if not flat:
        raise UsageError(
            "tsn trains 2-D networks of timm that are not inflated, and there is none",
            "name one, for example --probe inception_resnet_v2 --system tsn",
        )
    return flat


def _with_streams(system: str, left_out: Collection[str]) -> str:
    """With the streams that are there behind its name, where it looks over all of them: `lstm-streams rgb+flow`."""
    there = [stream for stream, needed in ALL_STREAMS.items() if needed not in left_out]
    return f"{system} {'+'.join(there)}" if system in OVER_STREAMS else system


def _refuse_without_parts(system: str, left_out: Collection[str]) -> None:
    """Raises `UsageError` for a fusion of what is left out."""
    for part in FUSED.get(system, ()):
        if part in left_out:
            raise UsageError(f"there is no {part} to fuse")


def _keep_settings(folder: Path, settings: Settings) -> None:
    """Raises `UsageError` where the comparison was started with other settings."""
    file, now = folder / "config.json", dataclasses.asdict(settings)
    before = files.read_json(file) if file.is_file() else now
    changed = [key for key in now if before.get(key) != now[key]]
    if changed:
        key = changed[0]
        raise UsageError(
            f"{printable(folder)} was started with different settings: {key} {before.get(key)} then, {now[key]} now",
            "--name NEW starts another comparison",
        )
    files.write_json(file, now)


# --- the systems


def _measured(job: _Job, system: str, seed: int, log: Callable[[str], object]) -> Measured:
    """What is there of a system for a seed, or else is made now."""
    file = job.folder / "results" / f"{_slug(system, seed)}.json"
    if file.is_file():
        return _read(file)[1]
    log(f"{system}, seed {seed}")
    made = _made(job, system, seed)
    file.parent.mkdir(exist_ok=True)
    files.write_json(file, {"system": system, **dataclasses.asdict(made), "scores": made.scores.tolist()})
    return made


def _slug(system: str, seed: int) -> str:
    return f"{zoo.folder_name(system.replace('/', '-'))}-s{seed}"


def _read(file: Path) -> tuple[str, Measured]:
    """The name of the system, and what it predicts."""
    values = files.read_json(file)
    system, keys = values.pop("system"), tuple(tuple(key) for key in values["keys"])
    return system, Measured(**values | {"keys": keys, "scores": np.array(values["scores"])})


def _known(folder: Path, seeds: Sequence[int]) -> dict[str, list[Measured]]:
    """All that has been measured for every one of these seeds, in the order of `SYSTEMS`, probes after theirs."""
    results: dict[str, dict[int, Measured]] = {}
    for seed in seeds:
        for file in sorted((folder / "results").glob(f"*-s{seed}.json")):
            system, measured = _read(file)
            results.setdefault(system, {})[seed] = measured
    order = sorted(results, key=lambda system: (SYSTEMS.index(system.partition(" ")[0]), system))
    return {s: [results[s][seed] for seed in seeds] for s in order if len(results[s]) == len(seeds)}


def _made(job: _Job, system: str, seed: int) -> Measured:
    if system == "majority":
        return _majority(job.dataset(seed))
    if system == "size-and-length":
        return _size_and_length(job.dataset(seed))
    kind, _, streams = system.partition(" ")
    below = [ALL_STREAMS[stream] for stream in streams.split("+")] if kind in OVER_STREAMS else FUSED.get(system, ())
    parts = [_measured(job, part, seed, lambda text: None) for part in below]
    if system in FUSED:
        return _fused(parts)
    run = _run(job, system, seed)
    if not (run / run_folder.RESULT).is_file():
        train = _probe if system.startswith(("probe", *SEQUENCES)) else _finetune
        train(job, system, seed, run)
    training = _seconds_to_train(job, system, seed) + sum(part.training for part in parts)
    return dataclasses.replace(_predicted(job, run), training=training)


def _majority(dataset: scanning.Dataset) -> Measured:
    """Every video gets the shares of the classes in training."""
    train, val = (scanning.items_in(dataset, part) for part in (listing.TRAIN, listing.VAL))
    shares = metrics.targets(train, dataset.classes).mean(0).astype(float)
    shares[dataset.classes.index(metrics.majority_class(train))] += 1e-9  # of equals one is predicted
    return Measured(_keys(dataset.root, val), np.tile(shares, (len(val), 1)))


def _size_and_length(dataset: scanning.Dataset) -> Measured:
    """A linear classifier on width, height, frames and seconds: what can be told without a look at the pictures."""
    train, val = (scanning.items_in(dataset, part) for part in (listing.TRAIN, listing.VAL))
    x, held = (np.array([_numbers(dataset.root, item) for item in items]) for items in (train, val))
    mean, scale = x.mean(0), x.std(0) + 1e-6
    truth, groups = metrics.targets(train, dataset.classes), [item.group for item in train]
    _, heads, biases = linear.fit((x - mean) / scale, truth, groups, dataset.multi_label)
    logits = torch.from_numpy((held - mean) / scale @ heads.T + biases)
    return Measured(_keys(dataset.root, val), (logits.sigmoid() if dataset.multi_label else logits.softmax(-1)).numpy())


def _numbers(root: Path, item: Item) -> list[float]:
    info = records.probe(root / item.path)
    sizes = np.log([info.width, info.height, max(item.frames, 1), max(item.seconds, 1e-3)])
    return [*sizes, sizes[0] - sizes[1]]


def _fused(parts: Sequence[Measured]) -> Measured:
    """Late fusion with equal weights, of what each predicts for the videos that all could read."""
    rows = [dict(zip(part.keys, part.scores)) for part in parts]
    keys = tuple(key for key in parts[0].keys if all(key in row for row in rows))
    scores = np.stack([np.mean([row[key] for row in rows], 0) for key in keys])
    sums = {name: sum(getattr(part, name) for part in parts) for name in ("params", "macs", "seconds", "training")}
    return Measured(keys, scores, **sums)


def _run(job: _Job, system: str, seed: int) -> Path:
    return job.folder / "runs" / _slug(system, seed)


def _seconds_to_train(job: _Job, system: str, seed: int) -> float:
    """Of a head over windows with those of its features, also where they are those that the other head computed."""
    kind, space, streams = system.partition(" ")
    heads = next((heads for heads in (SEQUENCES, OVER_STREAMS) if kind in heads), (kind,))
    runs = [_run(job, f"{head}{space}{streams}", seed) for head in heads]
    results = [run_folder.read_result(run) for run in runs if (run / run_folder.RESULT).is_file()]
    own = run_folder.read_result(_run(job, system, seed))
    return own.seconds - own.feature_seconds + max(result.feature_seconds for result in results)


def _probe(job: _Job, system: str, seed: int, run: Path) -> None:
    """Both heads over the same windows have the features of each network from one file."""
    settings, (kind, _, rest) = job.settings, system.partition(" ")
    models: Sequence[str | Path] = [rest or settings.backbone]
    names = ["image"]
    if kind in OVER_STREAMS:
        streams = rest.split("+")
        if len(streams) < 2:
            raise UsageError(f"only the stream {rest} is there, and this is a head over several")
        models = [_run(job, ALL_STREAMS[stream], seed) / "last" for stream in streams]
        names = [f"{rest}/{stream}" for stream in streams]
    head = kind.partition("-")[0]
    shared = head in SEQUENCES and any(map(known_features.is_whole, job.dataset(seed).items))
    files = [job.folder / "features" / f"{_slug(name, seed)}.safetensors" for name in names] if shared else []
    for file in files:
        file.parent.mkdir(exist_ok=True)
    probe(
        models,
        settings.videos,
        settings.val,
        seed,
        settings.size,
        run.name,
        device=job.device,
        stages=job.stages,
        weights=settings.weights if not rest else None,
        runs=run.parent,
        head=head if head in SEQUENCES else "linear",
        features=files,
    )


def _finetune(job: _Job, system: str, seed: int, run: Path) -> None:
    """Raises `UsageError` where it would take longer than there is time; what was begun goes on."""
    settings = job.settings
    train = partial(
        finetune,
        settings.videos,
        _start(job, STREAMS.get(system, system)),
        job.callbacks,
        val=settings.val,
        seed=seed,
        name=run.name,
        runs=run.parent,
        device=str(job.device),
        frames=settings.frames,
        size=settings.size,
        epochs=settings.epochs,
        stream=system if system in STREAMS else None,
    )
    if job.until < math.inf and not (run / run_folder.CONFIG).exists():
        planned, left = train(dry_run=True), (job.until - time.monotonic()) / 60
        assert isinstance(planned, Rehearsal)
        if planned.minutes > left:
            raise UsageError(
                f"training it would take about {planned.minutes:.1f} minutes, and {max(0.0, left):.1f} are left",
                "give more --minutes, or fewer --epochs; what is there is not made again",
            )
    train()


def _start(job: _Job, system: str) -> Path:
    """The network that a system starts from, inflated or on single frames, made once."""
    folder, settings = job.folder / "starts" / zoo.folder_name(system), job.settings
    kind, _, network = system.partition(" ")
    if kind == TSN and not zoo.is_model(folder):
        file = Path(settings.weights) if settings.weights and network == settings.backbone else None
        command = f"nlzoo compare {settings.videos} --system {TSN} --backbone {network}"
        checkpoint.save_model(folder, models.load_on_frames(network, file, download.backbone_weights, command))
    elif not zoo.is_model(folder):
        arch, nl = INFLATED[system]
        shallow = zoo.EMBEDDED.keys() | {"resnet18", "resnet34"}
        nl = FEW_BLOCKS if nl != "none" and settings.backbone.partition(".")[0] in shallow else nl
        file = Path(settings.weights) if settings.weights else None
        net, _ = models.inflate(settings.backbone, file, Inflation(arch), nl, download.backbone_weights)
        checkpoint.save_model(folder, net)
    return folder


def _predicted(job: _Job, run: Path) -> Measured:
    """Of the run's last model, which no validation chose."""
    net = checkpoint.load_model(run / "last").to(job.device)
    dataset = scanning.scan(run / "videos.csv")
    items = tuple(scanning.items_in(dataset, listing.VAL))
    workers = pool.default_workers(str(job.device))
    began = time.monotonic()
    with job.stages("predicting") as progress:
        made = evaluate.predictions(
            net, loader.Clips(dataset.root, items, net.spec.clip), job.device, workers, progress
        )
    seconds = (time.monotonic() - began) / len(items)
    params, macs, _ = describe.cost(net, net.spec.clip)
    clips = 1 if net.spec.head else net.spec.clip.clips  # whose multiply-adds are of all its windows
    return Measured(_keys(dataset.root, made.items), made.scores, params, macs * clips, seconds)


def _keys(root: Path, items: Sequence[Item]) -> tuple[Key, ...]:
    return tuple(item.key(root) for item in items)


# --- the table


def _figures(datasets: Sequence[scanning.Dataset], measured: dict[str, list[Measured]]) -> dict:
    """All figures on the validation videos, of all seeds, that every system could read."""
    classes, multi_label = datasets[0].classes, datasets[0].multi_label
    items, columns = _common(datasets, measured)
    together = [item for some in items for item in some]
    whole = {system: np.concatenate(parts) for system, parts in columns.items()}
    gains = {
        (one, other): metrics.difference(whole[one], whole[other], together, classes, multi_label)
        for one, other in combinations(whole, 2)
    }
    key = "map" if multi_label else "top1"
    rows = []
    for system, made in measured.items():
        figures = {
            part: metrics.brief(whole[system], together, classes, multi_label)[part] for part in (key, "loss")
        } | {"interval": metrics.interval(whole[system], together, classes, multi_label)}
        costs: dict[str, float] = {"params": made[0].params, "macs": made[0].macs}
        costs |= {name: float(np.mean([getattr(one, name) for one in made])) for name in ("seconds", "training")}
        of_seeds = zip(columns[system], items)
        by_seed = [metrics.brief(part, some, classes, multi_label)[key] for part, some in of_seeds]
        rows.append({"system": system, **figures, **costs, "by_seed": by_seed, **_beside(system, gains)})
    counts = {"videos": len(together), "groups": metrics.num_groups(together), "seeds": len(datasets)}
    pairs = [{"one": one, "other": other, "gain": gain} for (one, other), gain in gains.items()]
    return {"figure": key, **counts, "rows": rows, "pairs": pairs}


def _common(
    datasets: Sequence[scanning.Dataset], measured: dict[str, list[Measured]]
) -> tuple[list[list[Item]], dict[str, list[np.ndarray]]]:
    """By seed, the validation videos that all systems could read; and what each system says of them."""
    items: list[list[Item]] = []
    columns: dict[str, list[np.ndarray]] = {system: [] for system in measured}
    for number, dataset in enumerate(datasets):
        val = scanning.items_in(dataset, listing.VAL)
        by_system = {system: dict(zip(made[number].keys, made[number].scores)) for system, made in measured.items()}
        keys = _keys(dataset.root, val)
        common = [row for row, one in enumerate(keys) if all(one in scores for scores in by_system.values())]
        items.append([val[row] for row in common])
        for system, scores in by_system.items():
            columns[system].append(np.stack([scores[keys[row]] for row in common]))
    return items, columns


def _beside(system: str, gains: dict[tuple[str, str], metrics.Interval]) -> dict[str, list[str]]:
    """The systems that this one is better than, and those that it cannot be told from: 95 % of the gains."""
    better, like = [], []
    for (one, other), gain in gains.items():
        if system not in (one, other):
            continue
        rival = other if system == one else one
        low, high = gain or (0.0, 0.0)
        if (low > 0 and system == one) or (high < 0 and system == other):
            better.append(rival)
        elif low <= 0 <= high:
            like.append(rival)
    return {"better_than": better, "not_separable_from": like}


COLUMNS = ("system", "95 %", "log loss", "parameters", "multiply-adds", "seconds a video", "minutes to train")


def cells(figures: dict) -> tuple[list[str], list[list[str]]]:
    """The names of the columns, and a row for each system."""
    key = figures["figure"]
    rows = []
    for row in figures["rows"]:
        ends = f"{row['interval'][0]:.3f} to {row['interval'][1]:.3f}" if row["interval"] else "-"
        spread = f" ± {np.std(row['by_seed'], ddof=1):.3f}" if figures["seeds"] > 1 else ""
        cost = [f"{row['params'] / 1e6:.1f} M", f"{row['macs'] / 1e9:.1f} G", f"{row['seconds']:.2f}"]
        cost = [*cost, f"{row['training'] / 60:.1f}"] if row["params"] else ["-"] * 4
        rows.append([row["system"], f"{row[key]:.3f}{spread}", ends, f"{row['loss']:.3f}", *cost])
    return [COLUMNS[0], metrics.NAMES[key], *COLUMNS[1:]], rows


def sentences(figures: dict) -> list[str]:
    """What the table is of, and what in it can and cannot be told apart."""
    each = f", {figures['seeds']} seeds" if figures["seeds"] > 1 else ""
    scope = f"on {counted(figures['videos'], 'validation video')} of {counted(figures['groups'], 'group')}{each}"
    lines = [f"{scope}; fine-tuned networks after their last epoch, which nothing chose"]
    if figures["groups"] < metrics.FEW_GROUPS:
        lines.append(f"too few groups (under {metrics.FEW_GROUPS}) to tell any two systems apart")
    else:
        for row in figures["rows"]:
            better = ", ".join(row["better_than"]) or "no other"
            like = ", ".join(row["not_separable_from"])
            lines.append(f"{row['system']}: better than {better}" + (f"; not separable from {like}" if like else ""))
    lines += [f"left out: {system}: {reason}" for system, reason in figures["left_out"].items()]
    return lines


def as_markdown(figures: dict) -> str:
    """The table and its sentences."""
    columns, rows = cells(figures)
    table = [f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *rows)]
    return "\n".join([*table, "", *(f"- {printable(line)}" for line in sentences(figures)), ""])
