"""Model folders: `model.safetensors`, `config.json`, `README.md`, and `metrics.json` after training.

A folder appears whole or not at all: it is written beside its place, flushed to disk and renamed. Reading one is
strict, since it may come from anybody: header before tensors, shapes before memory, and no pickle.
"""

import json
import os
import re
import shutil
import uuid
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from . import card, spec
from .errors import DiskError, WeightsError
from .model import build

MAX_CONFIG = 16 * 2**20  # bytes; 100,000 class names fit
MAX_TENSORS = 10_000


def save_model(folder: Path, net: nn.Module, metrics: dict | None = None, checks: dict | None = None) -> Path:
    """Writes `net` (with its `spec`) as a model folder, replacing one of that name; returns `folder`.

    Raises `DiskError` when it cannot be written; what was there is kept then.
    """
    texts = {"config.json": dump(spec.to_json(net.spec)), "README.md": card.body(net.spec, metrics, checks)}
    if metrics is not None:
        texts["metrics.json"] = dump(metrics)
    tensors = {k: v.detach().cpu().contiguous() for k, v in net.state_dict().items()}

    def fill(part):
        save_file(tensors, part / "model.safetensors", metadata={"format": "pt"})
        for name, text in texts.items():
            (part / name).write_text(text, encoding="utf-8")

    return write_folder(Path(folder), fill)


def dump(data: object) -> str:
    """Readable JSON, a line's end included; NaN is refused, since it is no JSON."""
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_folder(folder: Path, fill) -> Path:
    """Calls `fill(part)` on a new folder beside `folder`, flushes it and puts it in `folder`'s place; returns `folder`."""
    part = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        part.mkdir(parents=True)
        fill(part)
        for file in part.iterdir():
            _sync(file)
        _sync(part)
        _swap(part, folder)
        _sync(folder.parent)
    except OSError as error:
        raise DiskError(f"{folder} could not be written ({error.strerror or error})",
                        "free some room, or work in a folder of your own") from error
    except SafetensorError as error:  # its way to say disk full
        raise DiskError(f"{folder} could not be written ({error})", "free some room") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def write_text(file: Path, text: str) -> None:
    """A small file that is there whole or not at all."""
    part = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        part.write_text(text, encoding="utf-8")
        _sync(part)
        os.replace(part, file)
        _sync(file.parent)
    except OSError as error:
        raise DiskError(f"{file} could not be written ({error.strerror or error})", "free some room") from error
    finally:
        part.unlink(missing_ok=True)


def _swap(part, folder):
    """A folder cannot be renamed over a full one: the old one steps aside first."""
    if not folder.exists():
        return os.rename(part, folder)
    old = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.old")
    os.rename(folder, old)
    os.rename(part, folder)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path):
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_spec(folder: Path) -> spec.ModelSpec:
    """The `config.json` of a model folder. Raises `WeightsError`."""
    file = Path(folder) / "config.json"
    return spec.from_json(read_json(file), str(file))


def read_json(file: Path) -> object:
    """A JSON file that may come from anybody. Raises `WeightsError`."""
    try:
        if file.stat().st_size > MAX_CONFIG:
            raise WeightsError(f"{file} is larger than {MAX_CONFIG} bytes")
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(f"there is no {file.name} in {file.parent}", "nlzoo list shows the models that are here") from None
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{file} could not be read ({error})", "make or fetch the model again") from None


def load_model(folder: Path) -> nn.Module:
    """The network of a model folder, on the CPU, float32, in eval mode, its `ModelSpec` as `spec`. Raises `WeightsError`."""
    folder = Path(folder)
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
    folder = Path(folder)
    with torch.device("meta"):
        net = build(read_spec(folder))
    _check_header(folder / "model.safetensors", net.state_dict())
    return net


def _check_header(file, own):
    """Names and shapes equal those of the network, before any tensor is read."""
    try:
        with safe_open(file, "pt") as f:
            names = list(f.keys())
            if len(names) > MAX_TENSORS or not all(re.fullmatch(r"[A-Za-z0-9_.]{1,200}", n) for n in names):
                raise WeightsError(f"{file} holds names that no network of ours has")
            shapes = {n: tuple(f.get_slice(n).get_shape()) for n in names}
    except FileNotFoundError:
        raise WeightsError(f"there is no model.safetensors in {file.parent}", "make or fetch the model again") from None
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{file} could not be read ({error})", "it may be cut short: make or fetch the model again") from None
    expected = {k: tuple(v.shape) for k, v in own.items()}
    if shapes != expected:
        different = sorted(k for k in shapes.keys() | expected.keys() if shapes.get(k) != expected.get(k))
        k = different[0]
        raise WeightsError(f"{file} does not fit its config.json: {len(different)} tensors differ, first {k}: "
                           f"{shapes.get(k, 'missing')} instead of {expected.get(k, 'nothing')}",
                           "make or fetch the model again")
