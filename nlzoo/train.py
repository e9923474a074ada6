"""Fine-tuning: one straight line from a network and a scanned folder to a finished run.

A run folder holds `config.json` (what was asked and filled in), `videos.csv` (every video that is used and its side of the
split, a list that nlzoo reads), `skipped.csv`, `metrics.jsonl` (a line an epoch), the model folders `last` and `best`, and
`result.json`, which says that it finished.
What the defaults are and the measurements behind them: docs/training.md.
"""

import csv
import dataclasses
import io
import json
import math
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from . import augment, checkpoint, clips, data, evaluate, frames_cache, listing, records
from .errors import DiskError, DivergedError, VideoError
from .layers import NonLocalBlock
from .spec import TrainConfig, default_augment, parse_augment, to_json

EPOCHS, GPU_EPOCHS = 20, 30  # of a small set
CLIPS_SEEN, MIN_EPOCHS = 100_000, 5  # a large set is seen as often as gives so many clips
BATCH, GPU_BATCH = 4, 16
LR = 5e-4  # of the backbone, for BATCH clips a step and kernels whose root mean square is KERNEL_SIZE
KERNEL_SIZE = 0.14  # that of the network on which the rates were found
WEIGHT_DECAY = 0.05  # AdamW; none on biases and normalisation
HEAD_RATE = 3.0  # the fresh head's learning rate, as a multiple of the backbone's
WARM_UP = 0.1  # of all steps
CLIP_NORM = 5.0  # of the gradient
DROPOUT = 0.5  # before the head (paper)
LABEL_SMOOTHING = 0.1


_SIDED = re.compile(r"left|right|clockwise", re.IGNORECASE)  # classes that a mirror swaps
_DIRECTED = re.compile(r"open|clos|push|pull|enter|exit|towards|away|forward|backward", re.IGNORECASE)  # that it may not, but a user should think


def plan(found: data.Scan, videos: str, start: str, device: str, **asked) -> tuple[TrainConfig, list[str]]:
    """The run's config with what was not asked for (None) filled in, and a line on each value filled in."""
    total = len(data.items_in(found, data.TRAIN))
    most, batch = (EPOCHS, BATCH) if device == "cpu" else (GPU_EPOCHS, GPU_BATCH)
    filled = {"epochs": (max(MIN_EPOCHS, min(most, -(-CLIPS_SEEN // total))), f"for {total} training clips on {device}"),
              "batch": (batch, f"on {device}"),
              "lr": (LR * ((asked.get("batch") or batch) / BATCH) ** 0.5, "by the square root of the batch")}
    values = {k: asked[k] if asked.get(k) is not None else value for k, (value, _) in filled.items()}
    notes = [f"{k} {values[k]:.3g}" + ("" if asked.get(k) is not None else f" ({why})") for k, (_, why) in filled.items()]
    changes, why = _augmentation(asked.get("augment"), total, found.classes)
    return TrainConfig(videos, start, val=asked["val"], seed=asked["seed"], device=device, workers=data.default_workers(device),
                       augment=changes, decoder=asked.get("decoder") or "auto", cache=asked.get("cache"), **values), [*notes, why]


def _augmentation(text, total, classes):
    """What is changed in training clips, and why: the preset for so many clips; no mirroring where a class names a side."""
    preset, why = default_augment(total)
    changes, reasons = parse_augment(text or preset), [] if text else [why]
    if "flip" not in (text or ""):
        sided = [c for c in classes if _SIDED.search(c)]
        directed = [c for c in classes if _DIRECTED.search(c)]
        if sided:
            changes = dataclasses.replace(changes, flip=False)
            reasons.append(f"not mirrored: class {data.shown(sided[0])!r} names a side")
        elif directed and changes.flip:
            reasons.append(f"mirrored, though class {data.shown(directed[0])!r} has a direction; flip=no if left and right matter")
    return changes, f"augment {changes}" + (f" ({'; '.join(reasons)})" if reasons else "")


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
    resumed_from: str | None = None


def finetune(net: nn.Module, found: data.Scan, config: TrainConfig, run: Path,
             each_epoch: Callable[[Epoch], None] = lambda epoch: None,
             each_step: Callable[[int, int, str], None] = lambda done, total, note: None) -> Result:
    """Trains `net` (its head fits the classes of `found`, which is split) and writes the run; returns what came out.

    Raises `DivergedError` before a step that would be taken with NaN, `MemoryError_`, `DiskError`,
    `VideoError` when an epoch's videos cannot be read.
    """
    began = time.monotonic()
    where = torch.device(config.device)
    parts = {part: tuple(data.items_in(found, part)) for part in (data.TRAIN, data.VAL)}
    if config.cache:
        _check_room(found, net.spec.clip, Path(config.cache))
    start_run(run, net, found, config)
    net.to(where)
    net.drop_rate = DROPOUT
    optimizer = torch.optim.AdamW(parameter_groups(net, config.lr))
    steps = config.epochs * len(_batches(len(parts[data.TRAIN]), config, 0))
    source, held = (data.Clips(found.root, items, net.spec.clip, config.augment, seed=config.seed, decoder=config.decoder,
                               cache=Path(config.cache) if config.cache else None) for items in parts.values())
    targets = _targets(net, source.items)
    majority = evaluate.chance(net.spec.classes, *parts.values(), net.spec.multi_label)
    best, epochs = None, []
    for epoch in range(config.epochs):
        timing = _train_epoch(net, source, targets, optimizer, epoch, steps, config, where, each_step)
        scores, bad = evaluate.evaluate(net, held, where, config.workers, lambda done, total: each_step(done, total, "validation"))
        line = Epoch(epoch + 1, timing["loss"], scores.get("top1"), scores.get("top5"), scores.get("mean_class"), scores.get("map"), scores["loss"],
                     round(timing["seconds"], 2), round(timing["waited"], 2), timing["clips"], timing["failed"] + len(bad))
        epochs.append(line)
        _append(run / "metrics.jsonl", dataclasses.asdict(line))
        told = {k: v for k, v in (("top1", line.top1), ("top5", line.top5), ("map", line.map)) if v is not None}
        told |= {"majority": majority, "train": len(source), "val": scores["videos"], "epochs": epoch + 1}
        checkpoint.save_model(run / "last", net, told)
        if best is None or (line.score, -line.loss) > (best.score, -best.loss):
            best = line
            checkpoint.save_model(run / "best", net, told)
        each_epoch(line)
    result = Result(str(run), str(run / "best"), list(net.spec.classes), len(source), len(held), config.epochs, best.top1, best.top5,
                    best.mean_class, best.map, majority, best.epoch, epochs[-1].top1, epochs[-1].map, round(time.monotonic() - began, 1))
    checkpoint.write_text(run / "result.json", checkpoint.dump(dataclasses.asdict(result)))
    return result


def start_run(run: Path, net: nn.Module, found: data.Scan, config: TrainConfig) -> None:
    """The run folder with all that is known before the first step."""
    def fill(part):
        told = {"train": dataclasses.asdict(config), "model": to_json(net.spec)}
        (part / "config.json").write_text(checkpoint.dump(told), encoding="utf-8")
        listing.write(listing.Listing(found.root, found.items, (), 0, found.multi_label, found.kind), part / "videos.csv")
        rows = io.StringIO(newline="")
        csv.writer(rows).writerows([("path", "reason"), *found.skipped])
        (part / "skipped.csv").write_text(rows.getvalue(), encoding="utf-8", errors="surrogateescape", newline="")

    checkpoint.write_folder(run, fill)


def _check_room(found, clip, cache):
    """Raises `DiskError` where the decoded frames of all videos would not fit in the folder `cache`."""
    infos = [records.probe(path) for path in {found.root / i.path for i in found.items}]
    frames_cache.check_room([(p.path, p.frames, p.height, p.width) for p in infos], clips.decode_side(clip), cache)


def _targets(net, items):
    """Class numbers `(N,)`; float `(N, K)` of 0 and 1 where videos may have several labels."""
    wanted = torch.from_numpy(evaluate.targets(items, net.spec.classes))
    return wanted if net.spec.multi_label else wanted.argmax(1)


def _batches(total, config, epoch):
    """Keys of an epoch, `batch` clips at a time: views of one video count as so many clips."""
    return data.epoch_batches(total, max(1, config.batch // config.augment.repeats), config.seed, epoch)


def _append(file, value):
    try:
        with open(file, "a", encoding="utf-8") as f:
            f.write(json.dumps(value) + "\n")
    except OSError as error:
        raise DiskError(f"{file} could not be written ({error.strerror})", "free some room") from error


def parameter_groups(net: nn.Module, lr: float) -> list[dict]:
    """A rate for each backbone kernel, and those of head, blocks, BN and biases; nothing with one axis decays.

    BN makes a network blind to the size of a kernel, and zoos train theirs to sizes that differ tenfold; Adam's steps
    do not know it. So a kernel's rate is `lr` in proportion to its own root mean square.
    """
    blocks = {id(p) for m in net.modules() if isinstance(m, NonLocalBlock) for p in m.parameters()}
    head = {id(p) for p in net.fc.parameters()}
    groups = {}
    for p in net.parameters():
        backbone_kernel = p.ndim == 5 and id(p) not in blocks
        rate = HEAD_RATE if id(p) in head else kernel_size(p) / KERNEL_SIZE if backbone_kernel else 1.0
        groups.setdefault((rate, WEIGHT_DECAY if p.ndim > 1 else 0.0), []).append(p)
    return [{"params": ps, "lr": lr * rate, "base": lr * rate, "weight_decay": decay} for (rate, decay), ps in groups.items()]


@torch.no_grad()
def kernel_size(weight: torch.Tensor) -> float:
    """Root mean square of a kernel `(O, I, t, h, w)`, summed over its taps: inflating a kernel does not change it."""
    return weight.float().sum(2).square().mean().sqrt().item() or KERNEL_SIZE


def rate_factor(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine down to 0."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _train_epoch(net, source, targets, optimizer, epoch, steps, config, where, each_step):
    """One pass: `{"loss", "seconds", "waited", "clips", "failed"}`."""
    net.train()
    batches = _batches(len(source), config, epoch)
    total, seen, failed, waited = 0.0, 0, 0, 0.0
    began = asked = time.monotonic()
    for n, (indices, pixels, bad) in enumerate(data.load(source, batches, config.workers)):
        waited += time.monotonic() - asked
        failed += len(bad)
        if pixels is not None:
            step = epoch * len(batches) + n
            views = pixels.transpose(0, 1).flatten(0, 1)  # views of one video lie apart, so that none is mixed with itself
            target = targets[indices].repeat(pixels.shape[1], *[1] * (targets.ndim - 1))
            files = [os.path.basename(source.items[i].path) for i in indices]
            loss = _step(net, views, target, optimizer, step, steps, config, where, files)
            total, seen = total + loss * len(views), seen + len(views)
        each_step(n + 1, len(batches), f"epoch {epoch + 1}/{config.epochs}, {100 * waited / (time.monotonic() - began):.0f} % "
                                       "of the time waiting for videos")
        asked = time.monotonic()
    if failed > data.MOST_BAD * len(source):
        raise VideoError(f"{failed} of {len(source)} training videos could not be read in epoch {epoch + 1}",
                         "nlzoo check shows which, and why; nlzoo doctor the decoders")
    return {"loss": total / seen, "seconds": time.monotonic() - began, "waited": waited, "clips": seen, "failed": failed}


def _step(net, pixels, target, optimizer, step, steps, config, where, files):
    """One optimiser step on uint8 `(B, T, H, W, 3)`; its loss. Dropout and mixing are keyed by (seed, step)."""
    key = config.seed * 1_000_003 + step
    torch.manual_seed(key)
    for group in optimizer.param_groups:
        group["lr"] = group["base"] * rate_factor(step, steps)
    with evaluate.precision(where), evaluate.memory_errors(f"{len(pixels)} clips a step"):
        inputs, target = clips.to_input(pixels.to(where), net.spec.clip), target.to(where)
        if config.augment.mixup or config.augment.cutmix:
            soft = target if target.ndim > 1 else F.one_hot(target, len(net.spec.classes)).float()
            inputs, target = augment.mix(inputs, soft, config.augment, key + 2**40)  # drawn apart from dropout
        logits = net(inputs).float()
        if net.spec.multi_label:
            loss = F.binary_cross_entropy_with_logits(logits, target)
        else:
            loss = F.cross_entropy(logits, target, label_smoothing=LABEL_SMOOTHING)
        optimizer.zero_grad(set_to_none=True)
    with evaluate.memory_errors(f"{len(pixels)} clips a step"):
        loss.backward()
    norm = nn.utils.clip_grad_norm_(net.parameters(), CLIP_NORM)
    if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
        raise DivergedError(f"loss {loss.item()}, gradient {norm.item()} at step {step + 1}, on {', '.join(map(data.shown, files))}",
                            f"the weights before this step are kept; try --lr {config.lr / 3:.1g}")
    optimizer.step()
    return loss.item()
