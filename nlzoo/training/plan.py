"""What a run will be: the settings that were not given are filled in, each with its reason."""

import dataclasses
import math
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch

from ..core import kept
from ..core.errors import UsageError, WeightsError
from ..core.model_spec import FRAMES, Inflation, refuse_several
from ..core.recipe_spec import (
    BATCH,
    GIVEN,
    IMAGENET,
    LONG_CLIP,
    Decision,
    Recipe,
    TrainConfig,
    auto_recipe,
    change_recipe,
    default_size,
    for_labels,
    parse_recipe,
)
from ..core.text import printable, quoted
from ..core.view_spec import Augment, default_augment, for_stream, parse_augment
from ..networks import card, checkpoint, download, model, pretrained, zoo
from ..networks.network import Network
from ..videos import flow, listing, pool, scanning
from . import devices, metrics, recipe as recipes, tuning
from .callbacks import Callbacks, Event
from .engine import Engine
from .options import FinetuneOptions

LONG_VIDEO = 7.0  # seconds from which on clips are windows of a video
SPAN, RATE = 64, 30  # frames that a window of them lies over (the field's 8x8 and 16x4), at so many a second
MOST_WINDOWS = 5  # of a video in validation

_SIDED = re.compile(r"left|right|clockwise", re.IGNORECASE)  # classes that a mirror swaps
# those that it may not swap, but a user should think of it
_DIRECTED = re.compile(r"open|clos|push|pull|enter|exit|towards|away|forward|backward", re.IGNORECASE)


def starting_model(
    start: str | None, callbacks: Callbacks, stream: str | None = None, videos: str | Path = "VIDEOS"
) -> tuple[str | Path, Network]:
    """`(folder, network)`: the one asked for, the newest in weights/, or the default of the stream, made now.

    `imagenet` asks for that default, which is made once; who does not ask is told of a start from Kinetics first. That
    of sound is a 2-D ResNet on each patch, and no other is taken for it unasked. The name of a 2-D network of timm that
    is not inflated is that network on single frames; it has its name instead of a folder. `videos`: for hints.
    """
    if start and zoo.is_frame_network(start):
        return _on_frames(start, callbacks, videos)
    of_sound = stream == "audio"
    name = "c2d-resnet50" if of_sound else "nl5-i3d-resnet50"
    models = zoo.models()
    made = [folder for folder in models if folder.name.partition(".")[0] == name]  # behind it timm's tag
    if start and start != IMAGENET:
        folder = download.locate(start)
    elif models and not start and not of_sound:
        folder = models[0]
    elif made:
        folder = made[0]
    else:
        folder = _inflated(of_sound, not start, callbacks)
    refuse_several(zoo.read_spec(folder), "be fine-tuned")
    callbacks.log(Event("starting_from", {"folder": str(folder)}))
    if note := zoo.unfinished_note(folder):
        callbacks.warn(Event("note", {"text": note}))
    return folder, checkpoint.load_model(folder)


def _inflated(of_sound: bool, unasked: bool, callbacks: Callbacks) -> Path:
    """A folder in weights/ of ResNet-50 from ImageNet, made now."""
    if unasked and not of_sound:
        kinetics = pretrained.recommended()
        values = {"name": kinetics.name, "top1": kinetics.top1, "licence": kinetics.licence}
        callbacks.log(Event("kinetics_first", values))
    arch, nl = ("c2d", "none") if of_sound else ("i3d", "5")
    callbacks.log(Event("inflating_2d" if of_sound else "inflating", {"backbone": "resnet50", "nl": nl}))
    command = "nlzoo inflate resnet50 --arch c2d --nl none" if of_sound else ""
    net, checks = model.inflate("resnet50", None, Inflation(arch), nl, download.backbone_weights, command=command)
    readme = card.body(net.spec, None, checks.summary())
    return checkpoint.save_model(zoo.WEIGHTS / zoo.default_name(net.spec), net, readme=readme)


def _on_frames(name: str, callbacks: Callbacks, videos: str | Path) -> tuple[str, Network]:
    """A 2-D network of timm, with its name and tag."""
    try:
        net = model.load_on_frames(name, None, download.backbone_weights, f"nlzoo probe {name} {videos}")
    except WeightsError as error:
        raise WeightsError(error.message, f"{error.hint}; its run is a start: --from RUN") from error
    callbacks.log(Event("on_frames", {"backbone": net.spec.backbone}))
    return net.spec.backbone, net


def fit_clip(net: Network, options: FinetuneOptions, device: torch.device) -> None:
    """Gives `net` the stream, the clip and the blocks that were asked for, in place. Raises `UsageError`.

    What was not asked for is that of the network; the size only where it was trained on videos.
    """
    if options.stream:
        model.set_stream(net, options.stream)
    clip = net.spec.clip
    if options.frames is not None or options.stride is not None:
        frames = clip.frames if options.frames is None else options.frames
        clip = recipes.lengthen(net, frames, clip.stride if options.stride is None else options.stride).spec.clip
    size, fps = options.size, options.fps
    fitting = model.fitting_size(net, size, default_size(device.type))
    clip = dataclasses.replace(clip, size=fitting, fps=clip.fps if fps is None else fps)
    net.spec = dataclasses.replace(net.spec, clip=clip)
    if options.nl:
        model.add_blocks(net, options.nl)
    if net.spec.inflation.arch == FRAMES:
        recipes.refuse_for_frames(net, change_recipe(parse_recipe(options.recipe or "auto"), **options.given()))


def prior_of_sound(dataset: scanning.Dataset, callbacks: Callbacks) -> tuple[float, ...]:
    """The shares of the classes in training, which videos without sound get; says how many have none.

    Raises `UsageError` where a class, or the whole set, has no sound to train on.
    """
    train = scanning.items_in(dataset, listing.TRAIN)
    heard = scanning.with_sound(dataset, dataset.items)
    labels = {label for item in heard if item.split == listing.TRAIN for label in item.labels}
    if not labels:
        raise UsageError(
            "none of the videos to train on has sound", "use --stream rgb or flow; prepared copies have none"
        )
    if silent := [name for name in dataset.classes if name not in labels]:
        raise UsageError(
            f"no training video of {quoted(silent, 3)} has sound",
            "leave such classes out with --classes, or use another stream",
        )
    if missing := set(dataset.items) - set(heard):
        values = {"videos": len(missing), "total": len(dataset.items), "train": len(missing & set(train))}
        callbacks.warn(Event("no_sound", values))
    return tuple(metrics.targets(train, dataset.classes).mean(0).tolist())


def fit_prior(net: Network, dataset: scanning.Dataset, callbacks: Callbacks) -> None:
    """Gives `net`, in place, what it says of videos without sound; of another stream nothing. Raises `UsageError`."""
    prior = prior_of_sound(dataset, callbacks) if net.spec.clip.stream == "audio" else ()
    net.spec = dataclasses.replace(net.spec, prior=prior)


def fit_span(net: Network, options: FinetuneOptions, dataset: scanning.Dataset) -> Decision | None:
    """Where nobody said how long a clip is and videos are long, gives `net` windows of them, in place, and says why.

    Frames spread over a video show what happens in it once; of a hand that moves for 15 seconds, 8 of them show 8
    hands. A network that was trained on videos keeps what it knows, and one on single frames sees no movement.
    """
    clip = net.spec.clip
    given = options.stride is not None or options.fps is not None
    seconds = statistics.median(item.seconds for item in dataset.items)
    still = net.spec.inflation.arch == FRAMES
    if given or still or clip.stride is not None or net.spec.classes or seconds < LONG_VIDEO:
        return None
    stride = max(1, SPAN // clip.frames)
    length = clip.frames * stride / RATE
    count = min(MOST_WINDOWS, math.ceil(seconds / length))
    net.spec = dataclasses.replace(
        net.spec, clip=dataclasses.replace(clip, stride=stride, fps=float(RATE), clips=count)
    )
    reason = f"half of the videos are {seconds:.0f} s or longer: spread over them, {clip.frames} frames miss movements"
    return Decision("clip", f"windows of {length:.1f} s; {count} of a video, averaged", reason)


def plan(
    dataset: scanning.Dataset,
    videos: str,
    start: str,
    options: FinetuneOptions,
    engine: Engine,
    fresh: bool = True,
    frames: int = 8,
    new_head: bool = True,
    stream: str = "rgb",
) -> tuple[TrainConfig, list[Decision]]:
    """The run's config, with what was not asked for filled in, and the decisions.

    `fresh`: the network never saw a video; `frames`: of its clips; `new_head`: its head was not trained for these
    classes; `stream`: what its clips are of.
    """
    total = len(scanning.items_in(dataset, listing.TRAIN))
    kind = engine.device.type
    num_classes, several = len(dataset.classes), dataset.multi_label
    long = frames >= LONG_CLIP
    precision = parse_recipe(options.recipe or "auto").precision
    fast = precision in ("auto", "bf16") and devices.precision(Recipe(), engine.device)[0] == "bf16"
    auto, decisions = auto_recipe(total, num_classes, options.batch, kind, fresh, long, several, new_head, fast)
    recipe, decisions = _as_asked(options, auto, decisions, several)
    workers = pool.default_workers(kind)
    if options.tuned:
        recipe, workers, decisions = _as_tuned(options, recipe, workers, engine.device, decisions)
    workers = workers if options.workers is None else options.workers
    kind_of_number = Decision("precision", *devices.precision(recipe, engine.device))
    decisions = [kind_of_number if (d.code, d.value) == ("precision", "auto") else d for d in decisions]
    changes, decision = augmentation(options.augment, total, dataset.classes, stream)
    config = TrainConfig(
        videos,
        start,
        val=options.val,
        seed=options.seed,
        device=str(engine.device),
        workers=workers,
        recipe=recipe,
        augment=changes,
        decoder=options.decoder,
        cache=str(options.cache) if options.cache else None,
        world=engine.world,
    )
    if stream in flow.METHODS and not options.cache:
        decisions = [*decisions, Decision("flow", "computed each time that a clip is shown", "--cache DIR keeps it")]
    return config, [*decisions, decision]


def _as_asked(
    options: FinetuneOptions, auto: Recipe, decisions: list[Decision], several: bool
) -> tuple[Recipe, list[Decision]]:
    """The automatic recipe with what the options change, and the decisions that are left."""
    given = options.given()
    if options.epochs is not None or "epochs=" in (options.recipe or ""):  # who says how often means the clips
        auto = dataclasses.replace(auto, passes=1)
        decisions = [decision for decision in decisions if decision.code != "passes"]
    if options.recipe:
        recipe = change_recipe(for_labels(parse_recipe(options.recipe, auto), several), **given)
        return recipe, [Decision("recipe", str(recipe), GIVEN)]
    recipe = change_recipe(auto, **({"lr": auto.lr} | given))  # the automatic rate knows the batch already
    kept = [decision for decision in decisions if decision.code not in given]
    return recipe, [*kept, *(Decision(name, value, GIVEN) for name, value in given.items())]


def _as_tuned(
    options: FinetuneOptions, recipe: Recipe, workers: int, device: torch.device, decisions: list[Decision]
) -> tuple[Recipe, int, list[Decision]]:
    """Recipe, workers and decisions with what `nlzoo bench` found and nobody named."""
    named = [name for name in ("precision", "compile") if f"{name}=" in (options.recipe or "")]
    recipe, workers = tuning.tuned(recipe, workers, device, named)
    used = workers if options.workers is None else options.workers
    tuned = Decision("tuned", f"compile={recipe.compile}, workers={used}", "measured by nlzoo bench")
    if "precision" in named:
        return recipe, workers, [*decisions, tuned]
    kept = [decision for decision in decisions if decision.code != "precision"]
    return recipe, workers, [*kept, tuned, Decision("precision", recipe.precision, "measured by nlzoo bench")]


def augmentation(
    text: str | None, training_clips: int, classes: Sequence[str], stream: str = "rgb"
) -> tuple[Augment, Decision]:
    """What is changed in training clips: by default little for few clips, no mirroring where a class names a side."""
    preset, reason = default_augment(training_clips)
    changes, reasons = parse_augment(text or preset, preset), [GIVEN if text else reason]
    if "flip" not in (text or ""):
        sided = [name for name in classes if _SIDED.search(name)]
        directed = [name for name in classes if _DIRECTED.search(name)]
        if sided:
            changes = dataclasses.replace(changes, flip=False)
            reasons.append(f"not mirrored: class {printable(sided[0])!r} names a side")
        elif directed and changes.flip:
            reasons.append(
                f"mirrored, though class {printable(directed[0])!r} has a direction; flip=no if left and right matter"
            )
    if for_stream(changes, stream) != changes:
        changes = for_stream(changes, stream)
        reasons.append(f"only what means something for {stream}")
    return changes, Decision("augment", str(changes), "; ".join(reasons))


def of_batch_norm(net: Network, config: TrainConfig, decisions: Sequence[Decision]) -> list[Decision]:
    """The decisions with what there is to say of BN, which a network on single frames may not have."""
    kept = [decision for decision in decisions if decision.code != "bn" or recipes.batch_norms(net)]
    few = clips_of_batch_norm(net, config)
    return [*kept, few] if few else kept


def clips_of_batch_norm(net: Network, config: TrainConfig) -> Decision | None:
    """Where each of several processes has fewer clips for BN's statistics than was ever measured: how many, and why."""
    clips = recipes.clips_at_a_time(net, config.recipe, config.world)
    if config.world == 1 or config.recipe.bn != "train" or clips >= BATCH:
        return None
    more = f"--batch {BATCH * config.world} or more, --recipe bn=sync or bn=frozen"
    reason = f"each process normalises by its own clips; fewer than {BATCH} were not measured: {more}"
    return Decision("bn_clips", clips, reason)


def memory(net: Network, config: TrainConfig, device: torch.device) -> Decision:
    """What a step on `device` takes, in words: the estimate with a fifth more for what it does not count."""
    recipe = config.recipe
    precision, _ = devices.precision(recipe, device)
    recipes.check_batch_norm(net, recipe, recipe.batch, config.world)
    clips = recipes.clips_at_a_time(net, recipe, config.world)
    key = kept.key(repr((net.spec, clips, recipe, precision, device.type)).encode())
    need = (kept.recall(key) or {}).get("bytes")
    if not isinstance(need, int):
        need = recipes.memory_estimate(net, net.spec.clip, clips, recipe, device=device)
        kept.keep(key, {"bytes": need})
    number = precision.replace("fp", "float")
    return Decision("memory", f"about {1.2 * need / 2**30:.1f} GiB", f"for a step of {clips} clips in {number}")
