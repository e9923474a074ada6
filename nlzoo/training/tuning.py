"""`nlzoo bench`: how fast this machine trains a network, and the settings that `finetune --tuned` then uses."""

import contextlib
import copy
import dataclasses
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ..core import files
from ..core.errors import NlzooError, UsageError
from ..core.progress import Progress, no_progress
from ..core.recipe_spec import BATCH, GPU_BATCH, Recipe
from ..core.view_spec import Augment
from ..networks.network import Network
from ..videos import clips, loader, pool, scanning
from . import devices, recipe as recipes
from .engine import Engine
from .step import Learner

# By how much the loss of one batch may differ from float32's, relative to 1 + that loss; TF32 and a compiler round too.
ALLOWED = {"fp32": 5e-3, "bf16": 3e-2, "fp16": 1e-2}
SECONDS, LEAST = 2.0, 3  # of steps a setting, and how many steps at least
DECODED = 64  # clips that a number of workers decodes at most


@dataclass(frozen=True)
class Setting:
    """How a step is computed."""

    precision: str  # fp32, bf16, fp16
    compile: bool
    clips: int  # at a time

    def __str__(self) -> str:
        return f"{self.precision}{', compiled' if self.compile else ''}, {self.clips} clips at a time"


@dataclass(frozen=True)
class Measured:
    """What a setting gave."""

    setting: Setting
    clips_a_second: float  # the median of its steps; 0 where it cannot be used
    spread: float  # half the range of the steps, relative to the median
    bytes: int  # the peak on the GPU; 0 on a CPU
    loss: float | None
    problem: str = ""  # why it is not chosen, whatever its speed

    def cells(self) -> list[str]:
        """Setting, clips a second and memory, for a table."""
        rate = self.problem or f"{self.clips_a_second:.1f} +- {100 * self.spread:.0f} %"
        return [str(self.setting), rate, f"{self.bytes / 2**30:.1f} GiB" if self.bytes else "-"]


@dataclass(frozen=True)
class Bench:
    """All that was measured, and what follows from it."""

    device: str
    settings: tuple[Measured, ...]
    workers: dict[int, float]  # decoding processes -> clips a second; empty without videos
    best: Measured
    best_workers: int | None

    @property
    def line(self) -> str:
        """What to pass to `nlzoo finetune`."""
        chosen = self.best.setting
        changes = f"precision={chosen.precision}" + (",compile=yes" if chosen.compile else "")
        return f"nlzoo finetune VIDEOS --recipe auto,{changes}"


def bench(net: Network, device: torch.device, videos: Path | None = None, progress: Progress = no_progress) -> Bench:
    """Measures training steps of copies of `net` on its clips, drawn at random, and decoding of `videos`.

    Keeps what was best for `finetune --tuned`. Raises `UsageError` where not even one clip in float32 can be trained.
    """
    scanned = scanning.scan(videos) if videos else None  # before the minute of work
    tried = list(_settings(device))
    measured: list[Measured] = []
    for n, setting in enumerate(tried):
        progress(n, len(tried))
        exact = next((m.loss for m in measured if m.setting.clips == setting.clips and m.loss is not None), None)
        measured.append(_measure(net, setting, device, exact))
    best = max(measured, key=lambda m: 0.0 if m.problem else m.clips_a_second)
    if best.problem:
        raise UsageError(f"no setting can train it on {device}: {best.problem}", "a smaller --size, or fewer --frames")
    workers = _decoding(net, scanned, device) if scanned else {}
    most = max(workers.values(), default=0.0)
    enough = next((count for count, rate in sorted(workers.items()) if rate > 0.95 * most), None)
    done = Bench(_name(device), tuple(measured), workers, best, enough)
    _keep(done)
    return done


def _settings(device: torch.device) -> Iterator[Setting]:
    """Those to try, float32 first for each number of clips, since the others are compared with it."""
    batch = BATCH if device.type == "cpu" else GPU_BATCH
    half = devices.precision(Recipe(), device)[0] if device.type == "cuda" else "bf16"
    for size in (batch, batch * 2):
        for precision in dict.fromkeys(["fp32", half]):
            yield Setting(precision, False, size)
    if device.type == "cuda":
        yield Setting(half, True, batch)


def _measure(net: Network, setting: Setting, device: torch.device, exact: float | None) -> Measured:
    try:
        return _timed(net, setting, device, exact)
    except RuntimeError as error:
        if not devices.is_out_of_memory(error):
            raise
    finally:
        devices.free_memory()
    return Measured(setting, 0.0, 0.0, 0, None, "does not fit into memory")


def _timed(net: Network, setting: Setting, device: torch.device, exact: float | None) -> Measured:
    step = _stepper(net, setting, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    step()
    loss = step()  # after one update: a fresh head gives the same loss in every precision
    times: list[float] = []
    while len(times) < LEAST or sum(times) < SECONDS:
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    middle = median(times)
    problem = ""
    if exact is not None and not abs(loss - exact) <= ALLOWED[setting.precision] * (1 + abs(exact)):
        problem = f"its loss is {loss:.4f} where float32 has {exact:.4f}"
    return Measured(setting, setting.clips / middle, (max(times) - min(times)) / middle / 2, peak, loss, problem)


def _stepper(net: Network, setting: Setting, device: torch.device) -> Callable[[], float]:
    """Training steps on one fixed batch, the same for every setting of its size; gives the loss before each."""
    recipe = Recipe(precision=setting.precision, compile=setting.compile)
    learner = Learner(copy.deepcopy(net), recipe, Engine(device))
    clip, draw = net.spec.clip, torch.Generator().manual_seed(0)
    shape = setting.clips, clip.frames, clip.size, clip.size, clip.channels
    pixels = torch.randint(256, shape, dtype=torch.uint8, generator=draw)
    targets = torch.randint(net.fc.out_features, (setting.clips,), generator=draw).to(device)

    def step() -> float:
        torch.manual_seed(0)  # the same dropout
        with devices.autocast(recipe, device):
            logits = learner.model(clips.to_input(pixels.to(device), clip)).float()
        loss = recipes.loss(logits, targets, recipe)
        learner.scaler.scale(loss).backward()
        learner.scaler.step(learner.optimizer)
        learner.scaler.update()
        learner.optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def _decoding(net: Network, scanned: scanning.Dataset, device: torch.device) -> dict[int, float]:
    """Clips a second that so many processes decode for training."""
    source = loader.Clips(scanned.root, scanned.items, net.spec.clip, Augment())
    usual = pool.default_workers(device.type)
    rates = {}
    for count in sorted({1, max(1, usual // 2), usual, pool.cores()}):
        with contextlib.closing(loader.Loader(source, count)) as feed:
            keys = [[(0, index % len(source))] for index in range(DECODED)]
            loaded = feed.load(keys)
            next(loaded)  # the processes have started
            began, done = time.perf_counter(), 0
            for _ in loaded:
                done += 1
                if time.perf_counter() - began > SECONDS:
                    break
            rates[count] = done / (time.perf_counter() - began)
            loaded.close()
    return rates


# --- what is kept


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {pool.cores()} cores)"


def _file() -> Path:
    return files.cache_folder() / "tuned.json"


def _keep(done: Bench) -> None:
    known = _known()
    chosen = done.best.setting
    known[done.device] = {"precision": chosen.precision, "compile": chosen.compile, "workers": done.best_workers}
    _file().parent.mkdir(parents=True, exist_ok=True)
    files.write_json(_file(), known)


def _known() -> dict[str, Any]:
    try:
        return files.read_json(_file())
    except NlzooError:  # there is none, or it is damaged: it is measured again in a minute
        return {}


def refuse_unmeasured(device: torch.device) -> dict[str, Any]:
    """What was best on `device`. Raises `UsageError` where nothing was measured there."""
    best = _known().get(_name(device))
    if not isinstance(best, dict):
        raise UsageError(f"--tuned: nothing was measured on {_name(device)} yet", "nlzoo bench measures, in a minute")
    return best


def tuned(recipe: Recipe, workers: int, device: torch.device, given: Sequence[str]) -> tuple[Recipe, int]:
    """Recipe and workers with what `bench` found best for `device`, but for the settings that were `given`.

    Raises `UsageError` where it has measured nothing there.
    """
    best = refuse_unmeasured(device)
    changes = {name: best[name] for name in ("precision", "compile") if name in best and name not in given}
    return dataclasses.replace(recipe, **changes), best.get("workers") or workers
