"""`nlzoo demo`: the whole job on drawn videos and the embedded backbone, offline and without a GPU.

The classes hold the same frames in different orders (draw.py), so that whoever looks at single frames can only guess.
The same backbone is trained twice, with and without an eye for time, on the same clips with the same recipe.
"""

import random
from collections.abc import Callable
from pathlib import Path

import torch

from ..core import files
from ..core.errors import HubError
from ..core.model_spec import Inflation
from ..networks import card, checkpoint, describe, model
from ..networks.zoo import new_run
from ..training.callbacks import Callbacks
from ..training.finetune import finetune
from ..videos import listing, scanning
from . import draw, predict, report

FOLDER = Path("nlzoo-demo")
CLASSES = draw.DEMO
PER_CLASS, FRAMES, SIZE = 24, 24, (96, 128)  # of the drawn videos
CLIP = {"frames": 8, "size": 64}
EPOCHS, LR = 12, 3e-3  # the recipe of finetune otherwise; so small a network takes a higher rate
NETWORKS = {"video": ("i3d", "res3:1,res4:1"), "frames": ("c2d", "none")}


def run(say: Callable[[str], None]) -> dict:
    """Runs it in `nlzoo-demo/`, talking through `say`; `{"video_top1", "frames_top1", "chance", "model", "run"}`."""
    device = torch.device("cpu")
    videos = FOLDER / "videos"
    if not videos.is_dir():
        say(f"drawing {PER_CLASS} videos of each of {', '.join(CLASSES)} into {videos}")
        files.write_folder(videos, lambda part: draw.write_videos(part, CLASSES, PER_CLASS, 0, FRAMES, SIZE))
    found = scanning.split(scanning.scan(videos), "0.25", 0)
    say(
        f"{found.grouped_by}: {len(scanning.items_in(found, listing.TRAIN))} to train, "
        f"{len(scanning.items_in(found, listing.VAL))} to validate"
    )
    results = {}
    for name, (arch, nl) in NETWORKS.items():
        say(f"\n{'with' if name == 'video' else 'without'} an eye for time: tiny, {arch}, non-local blocks {nl}")
        net, checks = model.inflate("tiny", None, Inflation(arch), nl, _offline)
        if name == "video":
            say(describe.in_words(net, checks))
        readme = card.body(net.spec, None, checks.summary())
        start = checkpoint.save_model(FOLDER / "weights" / name, net, readme=readme)
        callbacks = Callbacks(
            lambda epoch: say(
                f"epoch {epoch.epoch}/{EPOCHS}: train loss {epoch.train_loss:.3f}, val top-1 {epoch.top1:.3f}"
            )
        )
        run = new_run(name, named=False, root=FOLDER / "runs")
        results[name] = finetune(
            videos, start, callbacks, name=run.name, runs=run.parent, epochs=EPOCHS, lr=LR, device="cpu", **CLIP
        )
    best = results["video"]
    item = random.Random(0).choice(scanning.items_in(found, listing.VAL))
    (answer,) = predict.predict(best.model, videos / item.path, device=device)
    name, score = next(iter(answer["scores"].items()))
    say(f"\npredict {videos / item.path}: {name} ({score:.2f}); it is {item.labels[0]}")
    chance = 1 / len(CLASSES)
    say(
        f"top-1 on {best.val} videos never trained on: {best.last_top1:.2f} with an eye for time, {results['frames'].last_top1:.2f} on single "
        f"frames; guessing gives {chance:.2f}\nmodel folder: {best.model}\nthe run on one page: {report.write(Path(best.run), device)}"
    )
    say(
        "\nyour own videos, one folder per class:\n    nlzoo inflate resnet50 --nl res4:5\n    nlzoo finetune ./videos\n    nlzoo push"
    )
    return {
        "video_top1": best.last_top1,
        "frames_top1": results["frames"].last_top1,
        "chance": chance,
        "model": best.model,
        "run": best.run,
    }


def _offline(repo):
    raise HubError(f"the demo does not use a network, and was asked for {repo}")
