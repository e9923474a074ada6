"""What `nlzoo.finetune` can be told beside the videos and the model to start from."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.bounds import between, one_of
from ..core.errors import UsageError
from ..core.recipe_spec import Recipe, parse_recipe
from ..core.view_spec import STREAMS, ClipSpec, parse_augment
from ..networks.zoo import RUNS
from ..videos import splits


@dataclass(frozen=True)
class FinetuneOptions:
    """None is filled in by `plan`. Raises `UsageError` for what can be refused before any video is opened."""

    recipe: str | None = None  # a preset with changes to it (docs/training.md)
    epochs: int | None = None
    batch: int | None = None  # clips a step, over all processes
    lr: float | str | None = None  # a rate, or auto: by a range test
    freeze: str | None = None  # the backbone up to a stage, res2 to res4, or all of it, backbone, does not train
    frames: int | None = None  # of a clip
    stride: int | None = None  # source frames from one to the next
    fps: float | None = None  # rate at which the stride counts
    size: int | None = None  # side of the clip, pixels
    stream: str | None = None  # rgb, flow, flow-tvl1 or audio; None: the model's
    nl: str | None = None  # fresh non-local blocks for a network without any
    classes: Sequence[str] | None = None  # only these
    augment: str | None = None  # a preset with changes to it (docs/augmentation.md)
    val: str = "0.25"  # a share of the groups, a fold, or names of groups
    seed: int = 0  # of the split, the order, all that is drawn
    seeds: int = 1  # runs, with `seed` and those after it
    cache: Path | None = None  # folder of decoded frames
    decoder: str = "auto"
    workers: int | None = None  # decoding processes
    track: str | None = None  # tensorboard, wandb or trackio
    resume: bool = False  # the unfinished run with the settings that it was started with, whatever else is asked
    dry_run: bool = False  # memory, time and whether one batch can be learnt; nothing is written
    tuned: bool = False  # precision, compile and workers that `nlzoo bench` found fastest on this machine
    name: str | None = None  # of the run's folder; None: by the videos, with a number
    device: str | None = None  # None: the GPU when there is one
    runs: Path = RUNS  # folder of the run's folder

    def __post_init__(self) -> None:
        if empty := [field.name for field in dataclasses.fields(self) if getattr(self, field.name) == ""]:
            raise UsageError(f"{empty[0]} is empty", "omit it for what is usual")
        if self.recipe:
            parse_recipe(self.recipe)
        if self.augment:
            parse_augment(self.augment)
        dataclasses.replace(Recipe(), **self.given())
        clip = {name: getattr(self, name) for name in ("frames", "size", "fps") if getattr(self, name) is not None}
        ClipSpec(stride=self.stride or 1, **clip)  # whether --fps lacks a stride, the model says
        between(self.seed, 0, 2**31 - 1, "--seed")
        between(self.seeds, 1, 100, "--seeds")
        if self.workers is not None:
            between(self.workers, 0, 1024, "--workers")
        splits.check_val(self.val)
        if self.stream is not None:
            one_of(self.stream, STREAMS, "--stream")
            if self.stream != "rgb":
                from ..videos import streams  # imports the decoders

                streams.check(self.stream, self.decoder)
        if self.decoder != "auto":
            from ..videos import video  # imports the decoders

            video.check_decoder(self.decoder)
        if self.cache:
            from ..videos import frame_cache

            frame_cache.check_options(Path(self.cache), self.decoder)

    def given(self) -> dict[str, Any]:
        """The settings of a recipe that have options of their own, where they are given."""
        values = {"epochs": self.epochs, "batch": self.batch, "lr": self.rate(), "freeze": self.freeze}
        return {name: value for name, value in values.items() if value is not None}

    def rate(self) -> float | None:
        """The learning rate that was given; None where it is to be found."""
        if self.lr is None or self.lr == "auto":
            return None
        try:
            return float(self.lr)
        except ValueError:
            raise UsageError(f"--lr {self.lr!r} is not a number", "for example --lr 3e-4, or --lr auto") from None
