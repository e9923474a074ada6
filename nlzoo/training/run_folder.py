"""What a run writes beside its checkpoints and models, and reads back.

`config.json` (what was asked and filled in, and why), `videos.csv` (every video that is used and its side of the split,
a list that nlzoo reads), `skipped.csv`, `environment.json`, `metrics.jsonl` (a line an epoch), `events.jsonl` (what
happened) and `result.json`, which says that the run finished.
"""

import dataclasses
import json
import platform
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from ..core import files, tables
from ..core.errors import WeightsError
from ..core.model_spec import from_json, to_json
from ..core.recipe_spec import Decision, TrainConfig, train_config
from ..core.text import printable
from ..networks.network import Network
from ..videos import listing, scanning
from .state import versions

CONFIG, RESULT, METRICS, EVENTS = "config.json", "result.json", "metrics.jsonl", "events.jsonl"
CURVE = "learning_curve.json"


@dataclass(frozen=True)
class Epoch:
    """One line of metrics.jsonl."""

    epoch: int  # from 1; 0: the linear probe that the head started from
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
        score = self.map if self.top1 is None else self.top1
        assert score is not None
        return score

    @property
    def rank(self) -> tuple[float, float]:
        """The best epoch has the highest: by score, then by the loss of validation."""
        return self.score, -self.loss


def epoch_line(
    epoch: int, train_loss: float, figures: dict[str, Any], seconds: float, waited: float, clips: int, failed: int
) -> Epoch:
    """`figures`: of the validation videos."""
    return Epoch(
        epoch,
        train_loss,
        figures.get("top1"),
        figures.get("top5"),
        figures.get("mean_class"),
        figures.get("map"),
        figures["loss"],
        round(seconds, 2),
        round(waited, 2),
        clips,
        failed,
    )


def best_epoch(epochs: Iterable[Epoch]) -> Epoch:
    """The first of the best. Raises `ValueError` where there is none."""
    return max(epochs, key=lambda epoch: epoch.rank)


@dataclass(frozen=True)
class Result:
    """The outcome of a finished run; `result.json`."""

    run: str
    model: str
    classes: list[str]
    train: int
    val: int
    epochs: int
    top1: float | None
    top5: float | None
    mean_class: float | None
    map: float | None
    majority: float  # top-1 or map of the majority-class baseline
    best_epoch: int
    last_top1: float | None
    last_map: float | None
    seconds: float
    resumed_from: int | None = None  # step
    probe: float | None = None  # what the linear probe scored that the head started from; best_epoch 0: none beat it
    feature_seconds: float = 0.0  # of `seconds`, what the features of a head over windows took


@dataclass(frozen=True)
class SeedResults:
    """The outcomes of the same run with several seeds."""

    runs: list[Result]

    @property
    def key(self) -> str:
        """The figure: top1, or map where videos may have several labels."""
        return "map" if self.runs[0].top1 is None else "top1"

    def as_json(self) -> dict[str, Any]:
        """The results, with mean and standard deviation (of a sample) of the best and the last epochs' figures."""
        out: dict[str, Any] = {"runs": [dataclasses.asdict(run) for run in self.runs]}
        for name in (self.key, f"last_{self.key}"):
            values = [getattr(run, name) for run in self.runs]
            out |= {f"{name}_mean": mean(values), f"{name}_std": stdev(values)}
        return out


# --- writing


def start(
    run: Path, net: Network, dataset: scanning.Dataset, config: TrainConfig, decisions: Sequence[Decision] = ()
) -> None:
    """Writes all that is known before the first step; `config.json`, which makes it a run, last. Raises `DiskError`."""
    listing.write(dataset, run / "videos.csv")
    skipped = [dataclasses.asdict(entry) for entry in dataset.skipped]
    tables.write(run / "skipped.csv", skipped, ("path", "reason", "code"))
    files.write_json(run / "environment.json", environment())
    settings = {
        "train": dataclasses.asdict(config),
        "model": to_json(net.spec),
        "decisions": [dataclasses.asdict(decision) for decision in decisions],
    }
    files.write_json(run / CONFIG, settings)


def environment() -> dict[str, Any]:
    """What may make a difference when a run is made again."""
    from ..videos.video import backends

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        **versions(),
        "cuda": torch.version.cuda,
        "gpus": gpus,
        "platform": platform.platform(),
        "decoders": backends(),
        "command": sys.argv[1:],
    }


def append(file: Path, line: dict[str, Any]) -> None:
    """A line of JSON. Raises `DiskError`."""
    files.append_text(file, json.dumps(line) + "\n")


def write_epochs(run: Path, epochs: Iterable[Epoch]) -> None:
    """Makes `metrics.jsonl` anew, of these epochs alone. Raises `DiskError`."""
    files.write_text(run / METRICS, "".join(json.dumps(dataclasses.asdict(epoch)) + "\n" for epoch in epochs))


def append_event(run: Path, code: str, step: int, values: dict[str, Any]) -> None:
    """Notes in `events.jsonl` what happened after `step`. Raises `DiskError`."""
    append(run / EVENTS, {"code": code, "time": time.strftime("%Y-%m-%d %H:%M:%S"), "step": step, **values})


# --- reading


def read_events(run: Path) -> list[dict[str, Any]]:
    """`{"code", "time", "step", …}` of all that happened, in order; none for a run older than such files."""
    return _lines(run / EVENTS)


def read_epochs(run: Path) -> list[Epoch]:
    """The lines of `metrics.jsonl`. Raises `WeightsError` where it is damaged."""
    try:
        return [Epoch(**line) for line in _lines(run / METRICS)]
    except TypeError as error:
        raise _unreadable(run / METRICS, error) from None


def _lines(file: Path) -> list[dict[str, Any]]:
    """Lines of JSON; a kill may have cut the last one short."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
        rows = [json.loads(line) for line in text.split("\n")[:-1]]
        if not all(isinstance(row, dict) for row in rows):
            raise ValueError("a line of it is not a JSON object")
        return rows
    except (OSError, ValueError) as error:
        raise _unreadable(file, error) from None


def _unreadable(file: Path, error: Exception) -> WeightsError:
    return WeightsError(
        f"{printable(file)} could not be read ({printable(str(error))})", "start the run again under another name"
    )


def read_result(run: Path) -> Result:
    """The outcome of a finished run. Raises `WeightsError`."""
    result = files.read_json(run / RESULT)
    known = {field.name for field in dataclasses.fields(Result)}
    try:
        return Result(**{name: value for name, value in result.items() if name in known})
    except TypeError as error:
        raise _unreadable(run / RESULT, error) from None


def read_decisions(run: Path) -> list[Decision]:
    """Why the run has its settings; none where it is of before that was kept. Raises `WeightsError`."""
    rows = files.read_json(run / CONFIG).get("decisions", [])
    try:
        return [Decision(row["code"], row["value"], row["reason"]) for row in rows]
    except (TypeError, KeyError) as error:
        raise _unreadable(run / CONFIG, error) from None


def difference(run: Path, config: TrainConfig, spec: dict[str, Any], dataset: scanning.Dataset) -> list[str]:
    """What differs between the settings of the run at `run` and these, a line each. Raises `WeightsError`."""
    recorded = files.read_json(run / CONFIG)
    # read back, so that settings which are younger than the run have their defaults
    begun = train_config(recorded.get("train")), to_json(from_json(recorded.get("model"), str(run / CONFIG)))
    before, after = (
        dict(_flat(json.loads(json.dumps({"train": dataclasses.asdict(train), "model": model}))))
        for train, model in (begun, (config, spec))
    )
    lines = [
        f"{key}: {_short(before.get(key))} then, {_short(after.get(key))} now"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and key not in _NOT_COMPARED
    ]
    listed = listing.read(run / "videos.csv")
    kept = {(item.key(run), item.labels, item.split) for item in listed.items}
    here = {(item.key(dataset.root), item.labels, item.split) for item in dataset.items}
    if kept != here or listed.skipped:
        missing = len(listed.skipped)  # files that are no longer there
        changed, total = len(kept - here) + missing, len(kept) + missing
        lines.append(f"videos: {changed} of {total} are gone or have another label or side, {len(here - kept)} are new")
    return lines


_NOT_COMPARED = ("decisions", "train.workers", "model.source", "model.licence")


def _flat(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """`("train.recipe.lr", 0.001)` of nested dicts."""
    if not isinstance(value, dict):
        yield name, value
        return
    for key, inner in value.items():
        yield from _flat(inner, f"{name}.{key}" if name else key)


def _short(value: object) -> str:
    text = printable(json.dumps(value, ensure_ascii=False))
    return text if len(text) <= 60 else f"{text[:57]}…"
