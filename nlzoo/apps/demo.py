"""`nlzoo demo`: the whole job on drawn videos and the embedded backbone, offline and without a GPU.

The classes hold the same frames in different orders (draw.py), so that single frames give no more than chance.
The same backbone is trained twice, with and without temporal modelling, on the same clips with the same recipe.
"""

import random
from pathlib import Path

import torch

from ..core import files
from ..core.model_spec import Inflation
from ..core.progress import Log
from ..networks import card, checkpoint, describe, download, facts, model
from ..networks.zoo import new_run
from ..training.callbacks import Callbacks
from ..training.finetune import finetune
from ..training.run_folder import Epoch, Result
from ..videos import listing, scanning
from . import draw, predict, report

FOLDER = Path("nlzoo-demo")
CLASSES = draw.DEMO
PER_CLASS, FRAMES, SIZE = 24, 16, (64, 80)  # of the drawn videos
CLIP = {"frames": 8, "size": 48}
EPOCHS, LR = 6, 3e-3  # the recipe of finetune otherwise; so small a network takes a higher rate
NETWORKS = {"video": ("i3d", "res3:1,res4:1"), "frames": ("c2d", "none")}


_NEXT = """
your own videos, one folder per class:
    nlzoo inflate resnet50 --nl res4:5
    nlzoo finetune ./videos
    nlzoo push"""


def run(log: Log) -> dict:
    """Runs it in `nlzoo-demo/`, telling `log`; `{"video_top1", "frames_top1", "chance", "model", "run"}`."""
    videos = FOLDER / "videos"
    if not videos.is_dir():
        log(f"drawing {PER_CLASS} videos of each of {', '.join(CLASSES)} into {videos}")
        files.write_folder(videos, lambda part: draw.write_videos(part, CLASSES, PER_CLASS, 0, FRAMES, SIZE))
    results = {name: _train(name, videos, log) for name in NETWORKS}
    best, frames, chance = results["video"], results["frames"], 1 / len(CLASSES)
    dataset = scanning.split(scanning.scan(videos), "0.25", 0)
    item = random.Random(0).choice(scanning.items_in(dataset, listing.VAL))
    (answer,) = predict.predict(best.model, videos / item.path, device="cpu")
    label, score = next(iter(answer["scores"].items()))
    log(f"\npredict {videos / item.path}: {label} ({score:.2f}); it is {item.labels[0]}")
    log(f"top-1 on {best.val} videos never trained on: {best.last_top1:.2f} with temporal modelling,")
    log(f"{frames.last_top1:.2f} without it, on single frames; chance is {chance:.2f}")
    log(f"model folder: {best.model}")
    log(f"the run on one page: {report.write(Path(best.run), torch.device('cpu'))}")
    log(_NEXT)
    return {
        "video_top1": best.last_top1,
        "frames_top1": frames.last_top1,
        "chance": chance,
        "model": best.model,
        "run": best.run,
    }


def _train(name: str, videos: Path, log: Log) -> Result:
    arch, nl = NETWORKS[name]
    log(f"\n{'with' if name == 'video' else 'without'} temporal modelling: tiny, {arch}, non-local blocks {nl}")
    net, checks = model.inflate("tiny", None, Inflation(arch), nl, download.backbone_weights)  # tiny is embedded
    readme = card.body(net.spec, None, checks.summary())
    start = checkpoint.save_model(FOLDER / "weights" / name, net, readme=readme)
    if name == "video":
        log(facts.in_words(net.spec, describe.count_folder(start, net), checks.notes))
        log(describe.checks_in_words(checks))

    def log_epoch(epoch: Epoch) -> None:
        figures = f"train loss {epoch.train_loss:.3f}, val top-1 {epoch.top1:.3f}"
        name = f"epoch {epoch.epoch}/{EPOCHS}" if epoch.epoch else "linear probe of the start"
        log(f"{name}: {figures}")

    run = new_run(name, named=False, root=FOLDER / "runs")
    options = {"name": run.name, "runs": run.parent, "epochs": EPOCHS, "lr": LR, "device": "cpu", **CLIP}
    result = finetune(videos, start, Callbacks(log_epoch), **options)
    assert isinstance(result, Result)  # of one seed
    return result
