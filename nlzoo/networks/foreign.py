"""Reads weights files that may come from anybody: no code in them runs, and sizes are checked before memory is given.

Three formats: `.safetensors`; torch's own, through `torch.load(weights_only=True)` after a look at the zip around it;
and Caffe2's `.pkl`, a python-2 pickle, through a reader of our own that knows numbers, texts and numpy arrays, nothing else.
"""

import math
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..core.errors import WeightsError

MAX_FILE = 4 * 2**30  # bytes; ResNet-152 with its optimiser's state is below 1 GiB
MAX_ENTRIES = 20_000  # of a zip
MAX_STRUCTURE = 2 * 2**20  # bytes of the pickle that says which tensors there are; ours of ResNet-101 has 0.1 MiB
MAX_READS = 60_000  # steps of a Caffe2 pickle; one of ResNet-50 with five blocks and its momenta takes 23,000
NESTS = ("state_dict_ema", "state_dict", "model_state", "model")  # where trainers keep the network among other things


def read_weights(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a `.safetensors` file, of a torch file (`.pth`, `.pyth`, `.pt`, `.bin`) or of a Caffe2 `.pkl`, on the CPU.

    A nesting (`NESTS`) and a `module.` prefix (DataParallel) are taken off. Raises `WeightsError`.
    """
    data = _read(Path(file))
    for key in NESTS:
        if isinstance(data, dict) and isinstance(data.get(key), dict):
            data = data[key]
    if not isinstance(data, dict) or not data or not all(isinstance(k, str) and _is_plain(v) for k, v in data.items()):
        raise WeightsError(f"{file} holds no state dict of tensors")
    return {key.removeprefix("module."): value for key, value in data.items()}


def _is_plain(value):
    """A tensor with its numbers in memory, not sparse, quantised or on the meta device."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )


def _read(file):
    read = _reader(file)
    try:
        return read(file)
    except WeightsError:
        raise
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{file} holds more than weights and was not opened ({_first_line(error)})",
            "convert it to .safetensors where you trust it",
        ) from None
    except (
        Exception,
        SafetensorError,
    ) as error:  # a damaged file makes the readers raise anything, so no list of types is safe
        raise WeightsError(
            f"{file} could not be read as weights ({_first_line(error)})", "it may be cut short: fetch it again"
        ) from None


def _reader(file: Path) -> Callable:
    """The function that reads this file, by its name and first bytes. Raises `WeightsError` for what is no weights file at all."""
    if not file.is_file():
        raise WeightsError(f"there is no weights file {file}", "give a .safetensors, .pth, .pyth or .pkl file")
    size = file.stat().st_size
    with file.open("rb") as opened:
        start = opened.read(64)
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{file} is a Git-LFS pointer, not the weights", "fetch them with: git lfs pull")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise WeightsError(
            f"{file} is a web page, not weights",
            "open its address in a browser: the site may ask you to sign in or confirm",
        )
    if not size:
        raise WeightsError(f"{file} is empty", "fetch it again")
    if size > MAX_FILE:
        raise WeightsError(f"{file} has {size:,} bytes; weights of a ResNet have at most {MAX_FILE:,}")
    if file.suffix == ".safetensors":
        return load_file
    return read_caffe2 if file.suffix == ".pkl" and not start.startswith(b"PK") else _read_torch


def _first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def _read_torch(file):
    if zipfile.is_zipfile(file):
        _check_zip(file)
    return torch.load(file, map_location="cpu", weights_only=True)


def _check_zip(file):
    """torch writes entries uncompressed. Others could unpack to any size (zip bombs), or share one stretch of the file."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    if len(entries) > MAX_ENTRIES:
        raise WeightsError(f"{file} has {len(entries):,} parts; weights have at most {MAX_ENTRIES:,}")
    if packed := [e for e in entries if e.compress_type != zipfile.ZIP_STORED or e.file_size != e.compress_size]:
        raise WeightsError(
            f"{file} has a compressed part ({packed[0].filename[:60]!r}), which torch never writes", "fetch it again"
        )
    if sum(e.file_size for e in entries) > file.stat().st_size:
        raise WeightsError(f"{file} claims more bytes than it has", "fetch it again")
    for entry in entries:
        if entry.filename.endswith("data.pkl") and entry.file_size > MAX_STRUCTURE:
            raise WeightsError(
                f"{file} describes its tensors in {entry.file_size:,} bytes; at most {MAX_STRUCTURE:,} are read"
            )


def read_caffe2(file: Path) -> dict[str, torch.Tensor]:
    """The arrays among the blobs of a Caffe2 pickle, `{"blobs": {name: array or number}}`, as tensors; numbers become 0-d tensors.

    Raises `pickle.UnpicklingError` for anything that is not a number, a text, a list, a dict or a numpy array, and what a
    damaged file makes of python's pickle reader.
    """
    with file.open("rb") as opened:
        reader = _Caffe2Reader(_Counted(opened), encoding="latin1")
        reader.room = file.stat().st_size
        data = reader.load()
    blobs = data.get("blobs", data) if isinstance(data, dict) else None
    if not isinstance(blobs, dict):
        raise pickle.UnpicklingError("it holds no dict of blobs")
    return {name: _tensor(name, value) for name, value in blobs.items()}


def _tensor(name, value):
    if isinstance(value, _Array):
        return torch.from_numpy(value.array)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return torch.tensor(float(value))
    raise pickle.UnpicklingError(f"{str(name)[:60]!r} is no array")


class _Counted:
    """A file that may be read from only so often: a pickle of a million steps would otherwise take minutes."""

    def __init__(self, opened):
        self.opened, self.left = opened, MAX_READS

    def _count(self):
        self.left -= 1
        if self.left < 0:
            raise pickle.UnpicklingError(f"it takes more than {MAX_READS:,} steps to read")

    def read(self, size=-1):
        self._count()
        return self.opened.read(size)

    def readinto(self, buffer):
        self._count()
        return self.opened.readinto(buffer)

    def readline(self):
        self._count()
        return self.opened.readline(1000)


class _DType:
    """Stands for `numpy.dtype` in a pickle: the code of an item (`f4`) and the order of its bytes."""

    def __init__(self, code="", *_):
        self.code, self.order = code, "<"

    def __setstate__(self, state):
        self.order = state[1] if state[1] in ("<", ">") else "|"

    def numpy(self):
        if self.code not in ("f2", "f4", "f8", "i4", "i8"):
            raise pickle.UnpicklingError(f"it holds an array of {str(self.code)[:20]!r}, not of numbers")
        return np.dtype(self.code).newbyteorder(self.order)


class _Array:
    """Stands for `numpy.ndarray` in a pickle; the array is made only when its bytes are there and their number is right."""

    array = None

    def __setstate__(self, state):
        _, shape, kind, fortran, raw = state
        self.array = _array(shape, kind, raw, "F" if fortran else "C")


def _array(shape, kind, raw, order="C"):
    raw = raw.encode("latin1") if isinstance(raw, str) else raw
    kind = kind.numpy()
    if not isinstance(shape, tuple) or len(shape) > 5 or not all(isinstance(n, int) and 0 < n < 2**31 for n in shape):
        raise pickle.UnpicklingError(f"an array has the shape {str(shape)[:60]}")
    if len(raw) != math.prod(shape) * kind.itemsize:
        raise pickle.UnpicklingError(f"an array of shape {shape} has {len(raw):,} bytes")
    return np.frombuffer(raw, kind).reshape(shape, order=order).astype(kind.newbyteorder("="), order="C")


def _reconstruct(*_):
    return _Array()


def _scalar(kind, raw):
    return float(_array((1,), kind, raw)[0])


def _encode(text, encoding="latin1"):  # how python 3 writes bytes for python 2
    return text.encode("latin1")


_NAMES = {  # all that a pickle may name; none of them is the real one
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _encode,
    **{
        (f"numpy.{core}.multiarray", name): ours
        for core in ("core", "_core")
        for name, ours in (("_reconstruct", _reconstruct), ("scalar", _scalar))
    },
}


class _Caffe2Reader(pickle._Unpickler):
    """Python's pickle reader (the one in python: its memo is a dict, so no index can make it huge) without most of its steps."""

    room = 0  # bytes that arrays may still take: one stretch of the file may be named many times

    def find_class(self, module, name):
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f"it names {str(module)[:60]}.{str(name)[:60]}")
        return _NAMES[module, name]

    def load_reduce(self):
        arguments = self.stack.pop()
        self.stack[-1] = self._known(self.stack[-1])(*arguments)

    def _known(self, function):
        if function not in _NAMES.values():
            raise pickle.UnpicklingError("it calls what is no function")
        return function

    def load_build(self):
        state = self.stack.pop()
        if not isinstance(self.stack[-1], (_Array, _DType)):
            raise pickle.UnpicklingError("it sets the state of what is no array")
        self.stack[-1].__setstate__(state)
        if isinstance(self.stack[-1], _Array):
            self.room -= self.stack[-1].array.nbytes
            if self.room < 0:
                raise pickle.UnpicklingError("its arrays have more bytes than the file")

    _STEPS = {  # of protocols 0 to 3, those that make numbers, texts, tuples, lists and dicts, or name something
        pickle.PROTO,
        pickle.STOP,
        pickle.NONE,
        pickle.NEWTRUE,
        pickle.NEWFALSE,
        pickle.INT,
        pickle.BININT,
        pickle.BININT1,
        pickle.BININT2,
        pickle.LONG1,
        pickle.FLOAT,
        pickle.BINFLOAT,
        pickle.STRING,
        pickle.BINSTRING,
        pickle.SHORT_BINSTRING,
        pickle.BINBYTES,
        pickle.SHORT_BINBYTES,
        pickle.UNICODE,
        pickle.BINUNICODE,
        pickle.MARK,
        pickle.TUPLE,
        pickle.EMPTY_TUPLE,
        pickle.TUPLE1,
        pickle.TUPLE2,
        pickle.TUPLE3,
        pickle.LIST,
        pickle.EMPTY_LIST,
        pickle.APPEND,
        pickle.APPENDS,
        pickle.DICT,
        pickle.EMPTY_DICT,
        pickle.SETITEM,
        pickle.SETITEMS,
        pickle.GET,
        pickle.BINGET,
        pickle.LONG_BINGET,
        pickle.PUT,
        pickle.BINPUT,
        pickle.LONG_BINPUT,
        pickle.GLOBAL,
    }
    dispatch = {step[0]: pickle._Unpickler.dispatch[step[0]] for step in _STEPS}
    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.BUILD[0]] = load_build
