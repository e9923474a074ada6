"""Model folders: `model.safetensors`, `config.json`, `README.md`, and `metrics.json` after training.

A folder appears whole or not at all: it is written beside its place, flushed to disk and renamed. Reading one is
strict, since it may come from anybody: header before tensors, shapes before memory, and no pickle.
"""

import re
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from ..core import files, model_spec
from ..core.errors import WeightsError
from .model import build
from .network import Network

MAX_TENSORS = 10_000
NAME = re.compile(r"[A-Za-z0-9_.]{1,200}")  # of a tensor


def save_model(folder: Path, net: Network, metrics: dict | None = None, readme: str = "") -> Path:
    """Writes `net` (with its `spec`) as a model folder, replacing one of that name; returns `folder`.

    `readme` is the text of its README.md, as `card.body` makes it; without one there is no such file.
    Raises `DiskError` when the folder cannot be written; what was there is kept then.
    """
    texts = {"config.json": files.to_json_text(model_spec.to_json(net.spec))}
    if readme:
        texts["README.md"] = readme
    if metrics is not None:
        texts["metrics.json"] = files.to_json_text(metrics)
    tensors = {k: v.detach().cpu().contiguous() for k, v in net.state_dict().items()}

    def fill(part):
        save_file(tensors, part / "model.safetensors", metadata={"format": "pt"})
        for name, text in texts.items():
            (part / name).write_text(text, encoding="utf-8")
        shutil.copymode(part / "config.json", part / "model.safetensors")  # safetensors lets nobody else read its file

    return files.write_folder(Path(folder), fill)


def read_spec(folder: Path) -> model_spec.ModelSpec:
    """The `config.json` of a model folder. Raises `WeightsError`."""
    file = files.current(Path(folder)) / "config.json"
    return model_spec.from_json(files.read_json(file), str(file))


def load_model(folder: Path) -> nn.Module:
    """The network of a model folder, on the CPU, float32, in eval mode, its `ModelSpec` as `spec`. Raises `WeightsError`."""
    folder = files.current(Path(folder))
    net = build(read_spec(folder))
    file = folder / "model.safetensors"
    _check_header(file, net.state_dict())
    tensors = load_file(file)
    if bad := [k for k, v in tensors.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())]:
        raise WeightsError(f"{file} holds NaN or infinity in {bad[0]}", "make or fetch the model again")
    net.load_state_dict(tensors)
    return net


def read_blueprint(folder: Path) -> nn.Module:
    """The network of a model folder on the meta device; of the weights file only the header is read. Raises `WeightsError`."""
    folder = files.current(Path(folder))
    with torch.device("meta"):
        net = build(read_spec(folder))
    _check_header(folder / "model.safetensors", net.state_dict())
    return net


def read_header(file: Path) -> dict[str, tuple[int, ...]]:
    """Name → shape of a `.safetensors` file that may come from anybody; no tensor is read. Raises `WeightsError`."""
    try:
        with safe_open(file, "pt") as f:
            names = list(f.keys())
            if len(names) > MAX_TENSORS or not all(NAME.fullmatch(n) for n in names):
                raise WeightsError(f"{file} holds names that no network of ours has")
            return {n: tuple(f.get_slice(n).get_shape()) for n in names}
    except FileNotFoundError:
        raise WeightsError(f"there is no {file.name} in {file.parent}", "make or fetch the model again") from None
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{file} could not be read ({error})", "it may be cut short: make or fetch the model again"
        ) from None


def _check_header(file, own):
    """Names and shapes equal those of the network, before any tensor is read."""
    shapes = read_header(file)
    expected = {k: tuple(v.shape) for k, v in own.items()}
    if shapes != expected:
        different = sorted(k for k in shapes.keys() | expected.keys() if shapes.get(k) != expected.get(k))
        k = different[0]
        raise WeightsError(
            f"{file} does not fit its config.json: {len(different)} tensors differ, first {k}: "
            f"{shapes.get(k, 'missing')} instead of {expected.get(k, 'nothing')}",
            "make or fetch the model again",
        )
