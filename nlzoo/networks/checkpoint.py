"""Model folders: `model.safetensors`, `config.json`, `README.md`, and `metrics.json` after training.

A folder appears whole or not at all: it is written beside its place, flushed to disk and renamed. Reading one is
strict, since it may come from anybody: header before tensors, shapes before memory, and no pickle.
"""

import re
import shutil
from pathlib import Path

from safetensors.torch import save_file

from ..core import files, model_spec
from ..core.errors import WeightsError
from .foreign import Weights, read_weights
from .model import build, shapes_only
from .network import Network
from .unpickle import MAX_TENSORS as MAX_TENSORS  # `state` keeps to it too
from .zoo import read_spec

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

    def fill(part: Path) -> None:
        save_file(tensors, part / "model.safetensors", metadata={"format": "pt"})
        for name, text in texts.items():
            (part / name).write_text(text, encoding="utf-8")
        shutil.copymode(part / "config.json", part / "model.safetensors")  # safetensors lets nobody else read its file

    return files.write_folder(Path(folder), fill)


def load_model(folder: Path) -> Network:
    """The network of a model folder, on the CPU, float32, in eval mode, with its `ModelSpec` as `spec`.

    Raises `WeightsError`; nothing is allocated before names and shapes fit and all numbers are sound.
    """
    net, weights = _compared(folder)
    own = net.state_dict()
    tensors = weights.load({name: name for name in own}, own)
    net.load_state_dict(tensors, assign=True)  # building it a second time would draw numbers for nothing
    if any(buffer.is_meta for buffer in net.buffers()):  # filters of anti-aliased strides, which no file holds
        net = build(net.spec)
        net.load_state_dict(tensors)
    return net


def read_blueprint(folder: Path) -> Network:
    """The network of a model folder on the meta device; of its weights file only the header is read.

    Raises `WeightsError`.
    """
    return _compared(folder)[0]


def _compared(folder: Path) -> tuple[Network, Weights]:
    """The network of config.json, on the meta device, and the weights, whose names and shapes are its own."""
    spec = read_spec(folder)
    weights = read_header(files.current(Path(folder)) / "model.safetensors")
    with shapes_only():
        net = build(spec)
    shapes, expected = weights.shapes, {name: tuple(value.shape) for name, value in net.state_dict().items()}
    different = sorted(name for name in shapes.keys() | expected.keys() if shapes.get(name) != expected.get(name))
    if different:
        first = different[0]
        raise WeightsError(
            f"{weights.file} does not fit its config.json: {len(different)} tensors differ, first {first}: "
            f"{shapes.get(first, 'missing')} instead of {expected.get(first, 'nothing')}",
            _AGAIN,
        )
    return net, weights


def read_header(file: Path) -> Weights:
    """What a `.safetensors` file that may come from anybody says that it holds. Raises `WeightsError`."""
    if not file.is_file():
        raise WeightsError(f"there is no {file.name} in {file.parent}", _AGAIN)
    weights = read_weights(file)
    if not all(NAME.fullmatch(name) for name in weights.entries):
        raise WeightsError(f"{file} holds names that no network of ours has", _AGAIN)
    return weights


_AGAIN = "make or fetch the model again"
