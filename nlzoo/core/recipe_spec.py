"""How a network is trained, as plain frozen data: a recipe, its presets, the defaults by size of the set. No torch."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from .bounds import between, boolean, choices, number
from .changes import WORDS, parse_changes
from .errors import UsageError, WeightsError
from .view_spec import Augment

OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("cosine", "step", "constant")
BALANCES = ("none", "sampler", "loss")
FREEZES = ("none", "res2", "res3", "res4", "backbone")
PRECISIONS = ("auto", "bf16", "fp16", "fp32")
PROBES = ("none", "baseline", "start")


@dataclass(frozen=True)
class Recipe:
    """How a network is trained (docs/training.md); the defaults are the preset `small`. Shares are of the run."""

    optimizer: str = "adamw"  # adamw, whose kernels' rates follow their size; sgd with Nesterov's momentum of 0.9
    lr: float = 5e-4  # of the whole batch, at its highest
    weight_decay: float = 0.05  # of kernels; none on BN and biases
    schedule: str = "cosine"  # cosine down to 0; step: a tenth from each milestone on; constant
    milestones: tuple[float, ...] = ()  # shares of the run, of `step`
    warm_up: float = 0.1  # share of the run in which the rate rises in a line; 0: none
    epochs: int = 20
    passes: int = 1  # over the training clips in an epoch, which ends with a validation
    batch: int = 4  # clips a step
    accumulate: int = 1  # parts that a step's clips are computed in
    dropout: float = 0.5  # before the head
    # a linear head is fitted to the features first; baseline: it is kept where no epoch beats it; start: training also
    # starts from it (LP-FT: Kumar et al. 2022, arXiv 2202.10054)
    probe: str = "none"
    label_smoothing: float = 0.1
    # frozen: statistics and affine of all BN but the non-local blocks' own; sync: by the clips of all processes
    bn: str = "train"
    precise_bn: int = 0  # batches over which BN's statistics are computed anew before a validation; 0: none
    layer_decay: float = 1.0  # a residual block's rate as a share of the next one's; 1: all the same
    unfreeze: float = 0.0  # share of the run until which only head and non-local blocks train; 0: all train at once
    freeze: str = "none"  # the backbone up to and including this stage never trains; backbone: none of it does
    ema: float = 0.0  # decay of the moving average of weights that is validated and kept; 0: none
    clip_norm: float = 5.0  # of the gradient; 0: not clipped
    early_stop: int = 0  # epochs without a better score after which a run ends; 0: never
    balance: str = "none"  # sampler: classes are drawn equally often; loss: clips of rare classes count more
    precision: str = "auto"  # in training: bf16 where the device has it
    compile: bool = False  # torch.compile
    checkpointing: bool = False  # activations are computed again in the backward pass: less memory, more time
    loss: str = "ce"  # bce: a sigmoid for each class, where a video may have several

    def __post_init__(self) -> None:
        choices(self, optimizer=OPTIMIZERS, schedule=SCHEDULES, bn=("train", "frozen", "sync"), freeze=FREEZES)
        choices(self, balance=BALANCES, precision=PRECISIONS, loss=("ce", "bce"), probe=PROBES)
        for name, low, high in (
            ("lr", 1e-8, 100),
            ("weight_decay", 0, 1),
            ("warm_up", 0, 0.9),
            ("dropout", 0, 0.95),
            ("label_smoothing", 0, 0.9),
            ("layer_decay", 0.01, 1),
            ("unfreeze", 0, 0.99),
            ("ema", 0, 0.999999),
            ("clip_norm", 0, 1e6),
        ):
            number(getattr(self, name), low, high, name)
        for name, low in (("epochs", 1), ("passes", 1), ("batch", 1), ("precise_bn", 0), ("early_stop", 0)):
            between(getattr(self, name), low, 100_000, name)
        between(self.accumulate, 1, self.batch, f"accumulate, in a batch of {self.batch},")
        boolean(self.compile, "compile")
        boolean(self.checkpointing, "checkpointing")
        self._check_milestones()
        if self.bn == "sync" and self.compile:
            raise UsageError(
                "bn=sync cannot be compiled: processes meet in each of its layers", "leave one of the two out"
            )
        if self.loss == "bce" and (self.balance != "none" or self.label_smoothing):
            raise UsageError(
                f"balance {self.balance} and label_smoothing {self.label_smoothing:g} are for one label a video",
                "with loss=bce leave balance at none and label_smoothing at 0",
            )

    def _check_milestones(self) -> None:
        if not isinstance(self.milestones, tuple) or len(self.milestones) > 100:
            raise UsageError(f"milestones must be at most 100 shares of the run; they are {self.milestones!r}")
        for share in self.milestones:
            number(share, 0.001, 0.999, "a milestone")
        if list(self.milestones) != sorted(set(self.milestones)):
            raise UsageError(f"milestones must rise and not repeat: {list(self.milestones)}")
        if self.schedule == "step" and not self.milestones:
            raise UsageError("schedule step needs milestones", "for example milestones=0.375/0.75, the paper's")

    def __str__(self) -> str:
        """The nearest preset and what differs from it, as `parse_recipe` reads it."""
        own = dataclasses.asdict(self)
        changes = {name: {k: v for k, v in own.items() if v != getattr(preset, k)} for name, preset in RECIPES.items()}
        name = min(changes, key=lambda n: len(changes[n]))
        if changes[name].keys() & {"batch", "bn"}:  # otherwise the rate would follow them
            changes[name]["lr"] = self.lr
        return ",".join([name, *(f"{k}={_recipe_word(v)}" for k, v in changes[name].items())])


def _recipe_word(value: object) -> object:
    if isinstance(value, tuple):
        return "/".join(map(str, value)) or "none"
    return WORDS.get(str(value), value)


_PAPER = Recipe(
    "sgd",
    0.01,
    1e-4,
    "step",
    (0.375, 0.75),
    0.0,
    epochs=109,
    batch=64,
    label_smoothing=0.0,
    precise_bn=200,
    clip_norm=0.0,
)
RECIPES = {
    "small": Recipe(),  # measured on some 50 clips (docs/training.md)
    # 400,000 steps on the 235,000 training clips of Kinetics-400, a tenth at 150,000 and 300,000 (paper, authors' code)
    "paper": _PAPER,
    "paper-long": dataclasses.replace(_PAPER, lr=0.0025, epochs=27, batch=16, bn="frozen", precise_bn=0),
    # 200,000 steps on 7,985 videos, a tenth at 75,000 and 150,000; 8 clips a step follow from the rate, by its rule
    "charades": dataclasses.replace(_PAPER, lr=0.00125, epochs=200, batch=8, bn="frozen", precise_bn=0, loss="bce"),
}
LONG_CLIP = 64  # frames; the paper's short clips have up to 32, its long ones 128
LARGE_SET = 50_000  # training clips from which on the paper's recipe is taken
CLIPS_SEEN, MIN_EPOCHS = 100_000, 5  # a large set is seen as often as gives so many clips
EPOCHS, GPU_EPOCHS = 20, 30  # of a small set
# Of a small set, at least: fewer do not carry into another place, nor learn an order in time. More take over a quarter
# of an hour on a CPU, and more than twice as many on one that multiplies bf16 itself.
STEPS, FAST_STEPS = 540, 1080
PROBED = 1000  # training clips up to which a linear probe comes first: of more it takes minutes
EMA = 0.98  # of a small set
FROZEN_RATE = 0.2  # of AdamW's rate: nothing makes good what its steps do to the size of activations (docs/training.md)
BATCH, GPU_BATCH = 4, 16
SIZE, GPU_SIZE = 112, 224  # pixels, of clips of a network that was not trained on videos


def default_size(device: str) -> int:
    """Side of the clip, pixels, where neither the user nor the network's training says it. `device`: cpu, cuda, …"""
    return SIZE if device == "cpu" else GPU_SIZE


def change_recipe(recipe: Recipe, **changes: Any) -> Recipe:
    """`recipe` with these fields changed. Unless a rate is given too, it follows the batch, and BN that is frozen.

    SGD: in proportion to the batch; AdamW: by its square root, and `FROZEN_RATE` of it with frozen BN. Raises
    `UsageError` for a value that cannot be.
    """
    changed = dataclasses.replace(recipe, **changes)
    if "lr" in changes:
        return changed
    ratio = changed.batch / recipe.batch
    if changed.optimizer == "sgd":
        return dataclasses.replace(changed, lr=recipe.lr * ratio)
    newly_frozen = (changed.bn == "frozen") - (recipe.bn == "frozen")  # -1: it trains again
    return dataclasses.replace(changed, lr=recipe.lr * ratio**0.5 * FROZEN_RATE**newly_frozen)


def for_labels(recipe: Recipe, multi_label: bool) -> Recipe:
    """`recipe` with the loss for videos of one label, or of any number: then bce, without label smoothing.

    Raises `UsageError` where classes are to be balanced that share videos.
    """
    if multi_label == (recipe.loss == "bce"):
        return recipe
    if multi_label:
        return dataclasses.replace(recipe, loss="bce", label_smoothing=0.0)
    return dataclasses.replace(recipe, loss="ce")


def parse_recipe(text: str, auto: Recipe | None = None) -> Recipe:
    """The recipe that a text says: `paper`, `paper,epochs=20,batch=8`, or `layer_decay=0.7`, which changes `auto`.

    `auto` is `small` where None.
    The rate follows a changed batch unless it is given too (`change_recipe`). Spaces and case do not matter; several
    milestones are written 0.375/0.75. Raises `UsageError`, naming all presets and keys, for another name or key, and
    for a value that cannot be.
    """
    presets = {"auto": auto or RECIPES["small"], **RECIPES}
    first, values = parse_changes("--recipe", text, "auto", presets, Recipe, "paper,epochs=20,batch=8")
    return change_recipe(presets[first], **values)


@dataclass(frozen=True)
class Decision:
    """A setting that was filled in, and why; kept in a run's config.json."""

    # the setting: recipe, epochs, passes, batch, lr, baseline, ema, clip, freeze, bn, bn_clips, precision, loss,
    # augment, memory
    code: str
    value: str | int | float
    reason: str

    @property
    def label(self) -> str:
        """The setting, as people call it."""
        return {"bn": "BatchNorm", "bn_clips": "clips of BatchNorm", "lr": "learning rate"}.get(self.code, self.code)

    @property
    def text(self) -> str:
        """Value and reason."""
        value = f"{self.value:.3g}" if isinstance(self.value, float) else str(self.value)
        value = "trainable" if (self.code, value) == ("bn", "train") else value
        return f"{value} ({self.reason})"

    def __str__(self) -> str:
        return f"{self.label}: {self.text}"


IMAGENET = "imagenet"  # in place of a model to start from: the default network, from ImageNet
GIVEN = "given"  # the reason of what the user asked for


def auto_recipe(
    training_clips: int,
    classes: int,
    batch: int | None,
    device: str,
    fresh: bool,
    long: bool,
    multi_label: bool = False,
    new_head: bool = True,
    fast: bool = False,
) -> tuple[Recipe, list[Decision]]:
    """The recipe of a run that asked for none, and why each of its settings is what it is.

    `batch`: clips a step, None: by the device. `device`: cpu, cuda, … `fresh`: the network never saw a video (it comes
    from `inflate`). `long`: its clips have `LONG_CLIP` frames or more. `new_head`: its head was not trained for these
    classes. `fast`: it will train in bf16, which its device has itself. Raises `UsageError` for a batch that cannot be.
    """
    few, cpu = training_clips < LARGE_SET, device == "cpu"
    settled = long and not fresh  # its BN knows videos already, and long clips leave room for few of them in a step
    preset = "small" if few else "paper-long" if settled else "paper"
    most, own_batch = (EPOCHS, BATCH) if cpu else (GPU_EPOCHS, GPU_BATCH)
    base = for_labels(RECIPES[preset], multi_label)
    recipe = change_recipe(
        base,
        batch=own_batch if batch is None else batch,
        bn="frozen" if settled else "train",
        epochs=max(MIN_EPOCHS, min(most, -(-CLIPS_SEEN // training_clips))),
    )
    recipe, more = _for_few(recipe, training_clips, new_head, fast) if few else (recipe, [])
    rule = "in proportion to the batch"
    if recipe.optimizer == "adamw":
        rule = "by the square root of the batch" + (f", {FROZEN_RATE:g} of it with frozen BN" if settled else "")
    bn = "with it frozen a small set is learnt later" if few else "its statistics over 200 batches before a validation"
    if settled:
        bn = "long clips on a network trained on videos: few of them fit in a step"
    side = "under" if few else "not under"
    decisions = [
        Decision("recipe", preset, f"{training_clips} training clips of {classes} classes, {side} {LARGE_SET:,}"),
        Decision("epochs", recipe.epochs, f"for {training_clips} training clips on {device}"),
        Decision("batch", recipe.batch, f"on {device}" if batch is None else GIVEN),
        Decision("lr", recipe.lr, f"{base.lr:g} for {base.batch} clips a step, {rule}"),
        Decision("bn", recipe.bn, bn),
        Decision("precision", recipe.precision, "bf16 where the device has it"),
        *more,
    ]
    if multi_label:
        decisions.append(Decision("loss", "bce", "a video may have several labels"))
    return recipe, decisions


def _for_few(recipe: Recipe, training_clips: int, new_head: bool, fast: bool) -> tuple[Recipe, list[Decision]]:
    """What a small set gets beside its preset (docs/training.md), and why."""
    fewest, why = (FAST_STEPS, ", for which bf16 leaves time") if fast else (STEPS, "")
    steps = -(-training_clips // recipe.batch)
    passes = -(-fewest // (recipe.epochs * steps))
    epochs = round(fewest / (passes * steps)) if passes > 1 else recipe.epochs
    recipe = dataclasses.replace(recipe, epochs=epochs, passes=passes, ema=EMA)
    decisions = [
        Decision("passes", passes, f"over the clips in an epoch, for about {fewest:,} steps at least{why}"),
        Decision("ema", EMA, "single epochs of a small set jump"),
    ]
    if new_head and training_clips <= PROBED:
        recipe = dataclasses.replace(recipe, probe="baseline")
        reason = f"which fine-tuning must beat, for at most {PROBED:,} training clips"
        decisions.append(Decision("baseline", "linear probe", reason))
    return recipe, decisions


@dataclass(frozen=True)
class TrainConfig:
    """One fine-tuning run, as the user asked for it and as nlzoo filled it in."""

    videos: str  # the folder or list
    start: str  # the model folder that it starts from
    val: str  # share of the groups kept for validation, a fold, or names of groups
    seed: int  # of the split, the order, all that is drawn
    device: str
    workers: int  # decoding processes
    recipe: Recipe = Recipe()
    augment: Augment = Augment()
    decoder: str = "auto"
    cache: str | None = None  # folder of decoded frames
    world: int = 1  # processes that share each batch

    def __post_init__(self) -> None:
        between(self.seed, 0, 2**31 - 1, "--seed")
        between(self.world, 1, 100_000, "the number of processes")
        if self.recipe.batch < self.world:
            raise UsageError(
                f"a batch of {self.recipe.batch} clips cannot be shared by {self.world} processes",
                f"--batch {self.world} is the least",
            )


def train_config(data: Any) -> TrainConfig:
    """The config that a run recorded. Raises `UsageError` for values that cannot be, `WeightsError` for other keys."""
    try:
        recipe: dict[str, Any] = {**data["recipe"], "milestones": tuple(data["recipe"]["milestones"])}
        return TrainConfig(**{**data, "recipe": Recipe(**recipe), "augment": Augment(**data["augment"])})
    except (KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"the settings of the run are not this version's ({error!r})", "start it again under another name"
        ) from None
