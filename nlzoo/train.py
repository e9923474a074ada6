"""Fine-tuning: one straight line from a network and a scanned folder to a finished run.

A run folder holds `config.json` (what was asked and filled in), `videos.jsonl` (every file and its side of the split),
`metrics.jsonl` (a line an epoch), the model folders `last` and `best`, and `result.json`, which says that it finished.
What the defaults are and the measurements behind them: docs/training.md.
"""

import dataclasses
import json
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from . import checkpoint, clips, data, evaluate
from .errors import DiskError, DivergedError, VideoError
from .layers import NonLocalBlock
from .spec import TrainConfig, to_json

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


_SIDED = re.compile(r"left|right|clockwise", re.IGNORECASE)


def plan(found: data.Scan, videos: str, start: str, device: str, **asked) -> tuple[TrainConfig, list[str]]:
    """The run's config with what was not asked for (None) filled in, and a line on each value filled in."""
    total = len(data.items_in(found, data.TRAIN))
    sided = [c for c in found.classes if _SIDED.search(c)]
    most, batch = (EPOCHS, BATCH) if device == "cpu" else (GPU_EPOCHS, GPU_BATCH)
    filled = {"epochs": (max(MIN_EPOCHS, min(most, -(-CLIPS_SEEN // total))), f"for {total} training clips on {device}"),
              "batch": (batch, f"on {device}"),
              "lr": (LR * ((asked.get("batch") or batch) / BATCH) ** 0.5, "by the square root of the batch"),
              "flip": (not sided, f"class {data.shown(sided[0])!r} names a side" if sided else "no class names a side")}
    values = {k: asked[k] if asked.get(k) is not None else value for k, (value, _) in filled.items()}
    notes = [f"{k} {_plain(values[k])}" + ("" if asked.get(k) is not None else f" ({why})") for k, (_, why) in filled.items()]
    return TrainConfig(videos, start, val=asked["val"], seed=asked["seed"], device=device,
                       workers=data.default_workers(device), **values), notes


def _plain(value):
    return ("no", "yes")[value] if isinstance(value, bool) else f"{value:.3g}"


@dataclass(frozen=True)
class Epoch:
    """One line of metrics.jsonl."""

    epoch: int  # from 1
    train_loss: float
    top1: float
    top5: float
    mean_class: float
    loss: float  # of validation
    seconds: float
    data_seconds: float  # of these, waiting for clips
    clips: int  # trained on
    failed: int  # videos that could not be read in this epoch


@dataclass(frozen=True)
class Result:
    """What a finished run says of itself; `result.json`."""

    run: str
    model: str
    classes: list
    train: int
    val: int
    epochs: int
    top1: float
    top5: float
    mean_class: float
    majority: float
    best_epoch: int
    last_top1: float
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
    parts = {part: data.items_in(found, part) for part in (data.TRAIN, data.VAL)}
    start_run(run, net, found, config)
    net.to(where)
    net.drop_rate = DROPOUT
    optimizer = torch.optim.AdamW(parameter_groups(net, config.lr))
    steps = config.epochs * len(data.epoch_batches(len(parts[data.TRAIN]), config.batch, config.seed, 0))
    dataset = data.Clips([found.root / i.path for i in parts[data.TRAIN]], net.spec.clip, config.seed, config.flip)
    targets = torch.tensor([net.spec.classes.index(i.label) for i in parts[data.TRAIN]])
    majority = evaluate.majority([i.label for i in parts[data.TRAIN]], [i.label for i in parts[data.VAL]])
    best, epochs = None, []
    for epoch in range(config.epochs):
        timing = _train_epoch(net, dataset, targets, optimizer, epoch, steps, config, where, each_step)
        scores, bad = evaluate.evaluate(net, found.root, parts[data.VAL], where, config.workers,
                                        lambda done, total: each_step(done, total, "validation"))
        line = Epoch(epoch + 1, timing["loss"], scores["top1"], scores["top5"], scores["mean_class"], scores["loss"],
                     round(timing["seconds"], 2), round(timing["waited"], 2), timing["clips"], timing["failed"] + len(bad))
        epochs.append(line)
        _append(run / "metrics.jsonl", dataclasses.asdict(line))
        told = {"top1": line.top1, "top5": line.top5, "majority": majority, "train": len(parts[data.TRAIN]),
                "val": scores["videos"], "epochs": epoch + 1}
        checkpoint.save_model(run / "last", net, told)
        if best is None or (line.top1, -line.loss) > (best.top1, -best.loss):
            best = line
            checkpoint.save_model(run / "best", net, told)
        each_epoch(line)
    result = Result(str(run), str(run / "best"), list(net.spec.classes), len(parts[data.TRAIN]), len(parts[data.VAL]),
                    config.epochs, best.top1, best.top5, best.mean_class, majority, best.epoch, epochs[-1].top1,
                    round(time.monotonic() - began, 1))
    checkpoint.write_text(run / "result.json", checkpoint.dump(dataclasses.asdict(result)))
    return result


def start_run(run: Path, net: nn.Module, found: data.Scan, config: TrainConfig) -> None:
    """The run folder with all that is known before the first step."""
    def fill(part):
        told = {"train": dataclasses.asdict(config), "model": to_json(net.spec)}
        (part / "config.json").write_text(checkpoint.dump(told), encoding="utf-8")
        lines = [dataclasses.asdict(i) for i in found.items]
        lines += [{"path": path, "skipped": reason} for path, reason in found.skipped]
        (part / "videos.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    checkpoint.write_folder(run, fill)


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


def _train_epoch(net, dataset, targets, optimizer, epoch, steps, config, where, each_step):
    """One pass: `{"loss", "seconds", "waited", "clips", "failed"}`."""
    net.train()
    batches = data.epoch_batches(len(dataset), config.batch, config.seed, epoch)
    total, seen, failed, waited = 0.0, 0, 0, 0.0
    began = asked = time.monotonic()
    for n, (indices, pixels, bad) in enumerate(data.load(dataset, batches, config.workers)):
        waited += time.monotonic() - asked
        failed += len(bad)
        if pixels is not None:
            step = epoch * len(batches) + n
            files = [dataset.paths[i].name for i in indices]
            loss = _step(net, pixels.flatten(0, 1), targets[indices], optimizer, step, steps, config, where, files)
            total, seen = total + loss * len(indices), seen + len(indices)
        each_step(n + 1, len(batches), f"epoch {epoch + 1}/{config.epochs}, {100 * waited / (time.monotonic() - began):.0f} % "
                                       "of the time waiting for videos")
        asked = time.monotonic()
    if failed > data.MOST_BAD * len(dataset):
        raise VideoError(f"{failed} of {len(dataset)} training videos could not be read in epoch {epoch + 1}",
                         "see which in the folder; nlzoo doctor shows the decoders")
    return {"loss": total / seen, "seconds": time.monotonic() - began, "waited": waited, "clips": seen, "failed": failed}


def _step(net, pixels, target, optimizer, step, steps, config, where, files):
    """One optimiser step on uint8 `(B, T, H, W, 3)`; its loss. Dropout is keyed by (seed, step)."""
    torch.manual_seed(config.seed * 1_000_003 + step)
    for group in optimizer.param_groups:
        group["lr"] = group["base"] * rate_factor(step, steps)
    with evaluate.precision(where), evaluate.memory_errors(f"{len(pixels)} clips a step"):
        logits = net(clips.to_input(pixels.to(where, non_blocking=True), net.spec.clip))
        loss = F.cross_entropy(logits.float(), target.to(where), label_smoothing=LABEL_SMOOTHING)
        optimizer.zero_grad(set_to_none=True)
    with evaluate.memory_errors(f"{len(pixels)} clips a step"):
        loss.backward()
    norm = nn.utils.clip_grad_norm_(net.parameters(), CLIP_NORM)
    if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
        raise DivergedError(f"loss {loss.item()}, gradient {norm.item()} at step {step + 1}, on {', '.join(map(data.shown, files))}",
                            f"the weights before this step are kept; try --lr {config.lr / 3:.1g}")
    optimizer.step()
    return loss.item()
