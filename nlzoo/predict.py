"""Class names and probabilities for videos, through the view code of validation."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from . import data, evaluate, listing
from .errors import VideoError


def find(paths: list[Path]) -> list[Path]:
    """The files to answer for: files as they are given, folders as the videos inside. Raises `VideoError`."""
    found = []
    for path in paths:
        if path.is_dir():
            inside, _ = listing.walk(path)
            if not inside:
                raise VideoError(f"{path} has no videos", "give video files, or a folder of them")
            found += [path / name for name in inside]
        else:
            found.append(path)
    return found


def predict(net: nn.Module, paths: list[Path], where: torch.device, workers: int = 0) -> Iterator[dict]:
    """For each of `paths`, as it is done: `{"path", "scores": {class: probability}}`, best first, or `{"path", "error"}`."""
    names = net.spec.classes or tuple(str(k) for k in range(net.spec.num_outputs))
    net.eval()
    source = data.Clips(Path(), tuple(data.Item(str(p), ()) for p in paths), net.spec.clip)
    for index, scores, reason in evaluate.probabilities(net, source, where, workers):
        if scores is None:
            yield {"path": str(paths[index]), "error": data.shown(reason)}
        else:
            order = scores.argsort()[::-1]
            yield {"path": str(paths[index]), "scores": {names[k]: float(scores[k]) for k in order}}
