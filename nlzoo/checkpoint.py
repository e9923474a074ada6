"""Model folders: `model.safetensors`, `config.json`, `README.md`, and `metrics.json` after training.

A folder appears whole or not at all: it is written beside its place, flushed to disk and renamed. Reading one is
strict, since it may come from anybody: header before tensors, shapes before memory, and no pickle.
"""

import contextlib
import ctypes
import glob
import json
import os
import re
import shutil
import sys
import uuid
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from . import card, spec
from .errors import DiskError, WeightsError, as_json
from .model import build

MAX_CONFIG = 16 * 2**20  # bytes; 100,000 class names fit
MAX_TENSORS = 10_000
NAME = re.compile(r"[A-Za-z0-9_.]{1,200}")  # of a tensor
_LEFT = re.compile(r"\.(.+)\.[0-9a-f]{8}\.(part|old)", re.DOTALL)  # as `_beside` names it


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
        shutil.copymode(part / "config.json", part / "model.safetensors")  # safetensors lets nobody else read its file

    return write_folder(Path(folder), fill)


def dump(data: object) -> str:
    """Readable JSON, a line's end included; NaN is refused, since it is no JSON."""
    return as_json(data, indent=2) + "\n"


def write_folder(folder: Path, fill) -> Path:
    """Calls `fill(part)` on a new folder beside `folder`, flushes it and puts it in `folder`'s place; returns `folder`.

    `folder` has the old content or the new at any instant on Linux, where the file system can exchange two names. Elsewhere
    there is a moment without it, which `standing` reads over. Raises `DiskError`; what was there is kept then.
    """
    part = _beside(folder, "part")
    try:
        part.mkdir(parents=True)
        fill(part)
        for file in part.iterdir():
            sync(file)
        sync(part)
        aside = _swap(part, folder)
        sync(folder.parent)
    except OSError as error:
        raise DiskError(f"{folder} could not be written ({error.strerror or error})",
                        "free some room, or work in a folder of your own") from error
    except SafetensorError as error:  # its way to say disk full
        raise DiskError(f"{folder} could not be written ({error})", "free some room") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    if aside:
        discard(aside)  # only now is the new one sure to outlive a power cut
    return folder


def discard(folder: Path) -> None:
    """Removes a folder, as far as that can be done. It takes another name first: what has its own is whole."""
    part = _beside(folder, "part")
    with contextlib.suppress(OSError):
        os.rename(folder, part)
    shutil.rmtree(part, ignore_errors=True)


def mend(folder: Path) -> None:
    """Removes what killed writers left in `folder`, and gives what stepped aside for nothing its name again.

    Nobody else may be writing there. Raises `DiskError`.
    """
    try:
        for left in list(folder.iterdir()):
            match = _LEFT.fullmatch(left.name)
            if match and match[2] == "old" and not folder.joinpath(match[1]).exists():
                os.rename(left, folder / match[1])
            elif match and left.is_dir():
                discard(left)
            elif match:
                left.unlink()
    except OSError as error:
        raise DiskError(f"{folder} could not be tidied ({error.strerror or error})", "work in a folder of your own") from error


def write_text(file: Path, text: str) -> None:
    """A small file that is there whole or not at all. Raises `DiskError`."""
    write_bytes(file, text.encode("utf-8"))


def write_bytes(file: Path, content: bytes) -> None:
    """The same of bytes."""
    part = _beside(file, "part")
    try:
        part.write_bytes(content)
        sync(part)
        os.replace(part, file)
        sync(file.parent)
    except OSError as error:
        raise DiskError(f"{file} could not be written ({error.strerror or error})", "free some room") from error
    finally:
        part.unlink(missing_ok=True)


def standing(folder: Path) -> Path:
    """`folder`, or the one that stepped aside for it where a replacement was killed between its two renames."""
    if folder.exists():
        return folder
    return max(folder.parent.glob(f".{glob.escape(folder.name)}.*.old"), key=os.path.getmtime, default=folder)


def _beside(folder, ending):
    """A hidden name for what is being made or removed (part), or has stepped aside and is whole (old)."""
    return folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.{ending}")


def _swap(part, folder):
    """Puts `part` in `folder`'s place; gives the place of what was there, or None."""
    if not folder.exists():
        return os.rename(part, folder)
    old = _beside(folder, "old")
    if _exchange(part, folder):
        os.rename(part, old)
        return old
    os.rename(folder, old)
    try:
        os.rename(part, folder)
    except OSError:
        os.rename(old, folder)
        raise
    return old


def _exchange(one, other):
    """Two names change places in one step; False where system or file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)  # not in every libc
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def sync(path: Path) -> None:
    """Returns when a file, or the names in a folder, would outlive a power cut. Raises `OSError`."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_spec(folder: Path) -> spec.ModelSpec:
    """The `config.json` of a model folder. Raises `WeightsError`."""
    file = standing(Path(folder)) / "config.json"
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
    folder = standing(Path(folder))
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
    folder = standing(Path(folder))
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
        raise WeightsError(f"{file} could not be read ({error})", "it may be cut short: make or fetch the model again") from None


def _check_header(file, own):
    """Names and shapes equal those of the network, before any tensor is read."""
    shapes = read_header(file)
    expected = {k: tuple(v.shape) for k, v in own.items()}
    if shapes != expected:
        different = sorted(k for k in shapes.keys() | expected.keys() if shapes.get(k) != expected.get(k))
        k = different[0]
        raise WeightsError(f"{file} does not fit its config.json: {len(different)} tensors differ, first {k}: "
                           f"{shapes.get(k, 'missing')} instead of {expected.get(k, 'nothing')}",
                           "make or fetch the model again")
