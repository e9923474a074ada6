"""What a run needs to be resumed after a kill: checkpoints that are whole or not there, one process on a run at a time.

A checkpoint is a folder, RUN/checkpoints/step-00000123, of `state.safetensors`, `state.json` and `manifest.json`, which
has the sha256 of the other two and of itself. It is written as model folders are (`files.write_folder`), and older ones
are removed only when it is sure to outlive a power cut. No pickle is written or read.
"""

import errno
import hashlib
import json
import math
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from .. import __version__
from ..core import files, lock as locks
from ..core.errors import DiskError, WeightsError
from ..core.text import printable
from ..networks import checkpoint

FOLDER = "checkpoints"
TENSORS, REST, MANIFEST = "state.safetensors", "state.json", "manifest.json"
FORMAT = 1  # of the manifest
_STEP = re.compile(r"step-(\d{8,12})|\.step-(\d{8,12})\.[0-9a-f]{8}\.old")  # the second stepped aside (`files.current`)


@dataclass(frozen=True)
class Loaded:
    """What a checkpoint holds."""

    step: int
    tensors: dict[str, torch.Tensor]  # on the CPU
    meta: dict
    passed_over: tuple[tuple[str, str], ...]  # newer checkpoints that did not verify: (name, reason)
    writer: dict  # versions of nlzoo, torch and python, and the number of threads: with others, bits may differ


# --- writing


def save(run: Path, step: int, tensors: dict[str, torch.Tensor], meta: dict, keep: int = 2) -> Path:
    """Writes the checkpoint of `step`, and only then removes all but the newest `keep`; returns its folder.

    `tensors`: on any device; names of letters, digits, `_` and `.`. `meta`: plain JSON. This checkpoint is the newest
    from now on: one of the same step is replaced, those of later steps are removed (`load` passed over them, or they
    were given up). Hold the run's `lock`. Raises `DiskError`, which says how much is missing where; what was there is
    kept then.
    """
    rest = json.dumps(meta, indent=2, allow_nan=False) + "\n"  # in ASCII, which has escapes for broken file names
    if not isinstance(meta, dict) or json.loads(rest) != meta or len(rest) > files.MAX_CONFIG:
        raise ValueError("meta is not plain JSON (a tuple, or a key that is no text), or too long to be read again")
    if len(tensors) > checkpoint.MAX_TENSORS or not all(checkpoint.NAME.fullmatch(name) for name in tensors):
        raise ValueError("too many tensors, or names that would not be read again")
    tensors = _separate(tensors)

    def fill(part: Path) -> None:
        (part / REST).write_text(rest, encoding="utf-8")
        save_file(tensors, part / TENSORS)
        shutil.copymode(part / REST, part / TENSORS)  # safetensors lets nobody else read its file
        (part / MANIFEST).write_text(_manifest(part, step), encoding="utf-8")

    place = Path(run) / FOLDER
    folder = place / f"step-{step:08d}"
    try:
        if not place.is_dir():
            place.mkdir(parents=True)
            files.sync(place.parent)
        files.write_folder(folder, fill)
    except (DiskError, OSError) as error:
        raise _full(folder, error, len(rest) + sum(128 + t.nbytes for t in tensors.values()) + 2**14) from error
    steps = _steps(place)
    older = [old for number, old in steps if number < step]
    later = [new for number, new in steps if number > step]
    for superfluous in older[max(0, keep - 1) :] + later:
        files.discard(superfluous)
    return folder


def _separate(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """On the CPU, contiguous, and no two in one stretch of memory, which the format cannot say."""
    seen, separate = set(), {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        separate[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return separate


def _full(folder: Path, error: DiskError | OSError, needed: int) -> DiskError:
    """The error with figures. What was half written is gone again: the checkpoint did not fit into what is free now."""
    cause = error.__cause__ if isinstance(error, DiskError) else error
    text = error.message if isinstance(error, DiskError) else files.not_written(folder, error).message
    if isinstance(cause, OSError) and cause.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return DiskError(text, "work in a folder of your own")
    near = next(p for p in folder.absolute().parents if p.is_dir())
    free = shutil.disk_usage(near).free
    missing = f"{needed - free:,} bytes are missing" if needed > free else "a limit or a quota, perhaps"
    return DiskError(
        f"{text}: a checkpoint takes {needed:,} bytes, {free:,} are free in {near}: {missing}",
        "free some room there; what was saved before is kept",
    )


def _manifest(part: Path, step: int) -> str:
    entries = {
        name: {"bytes": (part / name).stat().st_size, "sha256": files.sha256(part / name)} for name in (TENSORS, REST)
    }
    return _sealed({"format": FORMAT, "step": step, "files": entries, "writer": versions()})


def versions() -> dict[str, Any]:
    """What a checkpoint says of its writer: with others the last bits may differ."""
    python, threads = platform.python_version(), torch.get_num_threads()
    return {"nlzoo": __version__, "torch": torch.__version__, "python": python, "threads": threads}


def _sealed(manifest: dict[str, Any]) -> str:
    """The manifest's text, with the digest of that text without the digest."""
    digest = hashlib.sha256(files.to_json_text(manifest).encode()).hexdigest()
    return files.to_json_text({**manifest, "sha256": digest})


# --- reading


def load(run: Path) -> Loaded | None:
    """The newest checkpoint that verifies, or None where there is none. Raises `WeightsError` where none verifies."""
    place = Path(run) / FOLDER
    passed: list[tuple[str, str]] = []
    try:
        steps = _steps(place)
    except OSError as error:
        raise WeightsError(
            f"{printable(str(place))} could not be read ({error.strerror or error})", "work in a folder of your own"
        ) from error
    for step, folder in steps:
        try:
            tensors, meta, writer = _read(folder, step)
            return Loaded(step, tensors, meta, tuple(passed), writer)
        except WeightsError as error:
            passed.append((folder.name, error.message))
    if passed:
        rows = "".join(f"\n  {name}: {reason}" for name, reason in passed[:10])
        raise WeightsError(
            f"none of the {len(passed)} checkpoints in {printable(str(place))} can be read:{rows}",
            "start again under another name; the run's model folders may still be whole",
        )
    return None


def _steps(place: Path) -> list[tuple[int, Path]]:
    """`(step, folder)` of what may be a checkpoint, the newest first."""
    steps = []
    for folder in place.iterdir() if place.is_dir() else ():
        match = _STEP.fullmatch(folder.name)
        if match:
            steps.append((int(match[1] or match[2]), folder))
    return sorted(steps, reverse=True)


def _read(folder: Path, step: int) -> tuple[dict[str, torch.Tensor], Any, dict[str, Any]]:
    """Tensors, meta and writer of one checkpoint, every byte of it verified. Raises `WeightsError`."""
    writer = _verified_manifest(folder, step)["writer"]
    checkpoint.read_header(folder / TENSORS)
    meta = files.read_json(folder / REST)
    try:
        return load_file(folder / TENSORS), meta, writer
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{TENSORS} could not be read ({error})") from error


def _verified_manifest(folder: Path, step: int) -> dict[str, Any]:
    """The manifest, once both files are what it says. Nothing else of them is read before."""
    for name in (TENSORS, REST, MANIFEST):
        if not (folder / name).is_file():
            raise WeightsError(f"{name} is missing")
    manifest = files.read_json(folder / MANIFEST)
    if not _is_sealed(manifest, folder / MANIFEST):
        raise WeightsError(f"{MANIFEST} is damaged")
    if manifest.get("format") != FORMAT or manifest.get("step") != step:
        raise WeightsError(
            f"{MANIFEST} is of step {manifest.get('step')!r}, format {manifest.get('format')!r}, "
            f"and not of step {step}, format {FORMAT}"
        )
    try:
        for name in (TENSORS, REST):
            _verify(folder / name, **manifest["files"][name])
        return {**manifest, "writer": dict(manifest["writer"])}
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{MANIFEST} is not one of ours ({error!r})") from error
    except OSError as error:
        raise WeightsError(f"it could not be read ({error})") from error


def _is_sealed(manifest: dict[str, Any], file: Path) -> bool:
    """Whether the manifest, which was read from `file`, has the digest of its own text."""
    try:
        unsealed = {key: value for key, value in manifest.items() if key != "sha256"}
        return _sealed(unsealed).encode() == file.read_bytes()
    except ValueError:  # NaN, or half a character
        return False


def _verify(file: Path, bytes: int, sha256: str) -> None:
    size = file.stat().st_size
    if size != bytes:
        raise WeightsError(f"{file.name} has {size:,} bytes instead of {bytes:,}")
    if files.sha256(file) != sha256:
        raise WeightsError(f"{file.name} is damaged: its content has changed since it was written")


# --- an optimizer's state, or any other, as tensors and JSON


def pack(prefix: str, value: object) -> tuple[dict[str, torch.Tensor], object]:
    """`(tensors, plan)` of nested dicts, lists and tuples of tensors, numbers, texts, bool and None; see `unpack`.

    Tensors are not copied, and are named `prefix.0`, `prefix.1`, …; `plan` is plain JSON. `TypeError` for all else.
    """
    tensors: dict[str, torch.Tensor] = {}
    return tensors, _packed(value, prefix, tensors)


def _packed(value: object, prefix: str, tensors: dict[str, torch.Tensor]) -> object:
    if isinstance(value, torch.Tensor):
        name = f"{prefix}.{len(tensors)}"
        tensors[name] = value.detach()
        return {"tensor": name}
    if isinstance(value, dict):  # as pairs: the keys of JSON are texts alone
        for key in value:
            if key is not None and not isinstance(key, bool | int | str):
                raise TypeError(f"{key!r} cannot be kept as a key")
        return {"dict": [[key, _packed(v, prefix, tensors)] for key, v in value.items()]}
    if isinstance(value, list):
        return [_packed(v, prefix, tensors) for v in value]
    if isinstance(value, tuple):
        return {"tuple": [_packed(v, prefix, tensors) for v in value]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(float(value))}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(value).__name__} cannot be kept: {str(value)[:60]}")


def unpack(tensors: dict[str, torch.Tensor], plan: object) -> object:
    """What `pack` was given; `tensors` may hold others too. `WeightsError` for a plan that `pack` did not make."""
    try:
        return _unpacked(plan, tensors)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise WeightsError(
            f"the state of the training is not one of ours ({error!r})", "start again under another name"
        ) from error


def _unpacked(plan: object, tensors: dict[str, torch.Tensor]) -> object:
    if isinstance(plan, list):
        return [_unpacked(v, tensors) for v in plan]
    if not isinstance(plan, dict):
        return plan
    ((kind, value),) = plan.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {k: _unpacked(v, tensors) for k, v in value}
    if kind == "tuple":
        return tuple(_unpacked(v, tensors) for v in value)
    if kind == "float" and value in ("nan", "inf", "-inf"):
        return float(value)
    raise ValueError(f"no such kind: {kind[:60]}")


# --- one process on a run


@contextmanager
def lock(run: Path) -> Iterator[None]:
    """Only this process works on `run` (`locks.hold`); what a killed one left half written in it is removed."""
    run = Path(run)
    with locks.hold(run):
        for folder in (run, run / FOLDER):
            if folder.is_dir():
                files.remove_leftovers(folder)
        yield
