"""Pickle files from anybody as plain data: what such a file says that it holds, none of it made.

Unusual: no name in a file becomes the object that it names. Functions are stand-ins of ours, which give back what they
were given or a small record; tensors become `Entry`s, that say where their numbers lie; long strings stay in the file
and become `Span`s. Steps and bytes are counted, so a small file cannot become a large structure.
"""

import math
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any, ClassVar

import torch

MAX_READS = 250_000  # of a pickle; a checkpoint of ResNet-152 with Adam's state and an average takes 160,000
MAX_STRUCTURE = 2 * 2**20  # bytes of a pickle without its long strings; torch's of ResNet-101 has 0.1 MiB
MAX_TENSORS = 10_000
MAX_SHORT = 2**12  # bytes; longer strings stay in the file
MAX_NUMBERS = 2**40  # of one tensor
MAX_DIMENSIONS = 8

DTYPES = {str(value).removeprefix("torch."): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
_STORAGES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "",  # bytes, of which each tensor says its own type
}
_NUMPY = {"f2": "float16", "f4": "float32", "f8": "float64", "i4": "int32", "i8": "int64"}


class ForeignType(pickle.UnpicklingError):
    """The pickle names a type or function that is no part of a state dict; its text is that name."""


@dataclass(frozen=True, slots=True)
class Span:
    """A long string of the pickle, left in the file."""

    start: int  # byte in the file
    size: int  # bytes
    utf8: bool  # whether its bytes are those of text, whose characters are the bytes meant


@dataclass(frozen=True, slots=True)
class Storage:
    """Numbers in a row, which tensors are views of."""

    key: str
    dtype: str  # of `DTYPES`; "": bytes
    count: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor as the file describes it; `offset` and `strides` count numbers."""

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    source: Storage | Span | bytes
    swapped: bool = False  # big-endian

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return DTYPES[self.dtype].itemsize

    @property
    def span(self) -> int:
        """Numbers from its first to its last, both included."""
        if 0 in self.shape:
            return 0
        return 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))


@dataclass(frozen=True, slots=True)
class Unsupported:
    """A tensor of a kind that weights are never of."""

    what: str


@dataclass(frozen=True, slots=True)
class _Function:
    """What a pickle may call."""

    call: Callable[..., object]


@dataclass(frozen=True, slots=True)
class _Name:
    """What a pickle may name and hand on."""

    name: str


@dataclass(slots=True)
class _NumpyType:
    """Stands for `numpy.dtype`: the code of an item (`f4`) and the order of its bytes."""

    code: object
    order: object = "<"

    def set_state(self, state: Any) -> None:
        self.order = state[1]


@dataclass(slots=True)
class _NumpyArray:
    """Stands for `numpy.ndarray`, which a pickle makes empty and fills afterwards."""

    entries: list[Entry] = field(default_factory=list)

    def set_state(self, state: Any) -> None:
        _, shape, kind, fortran, raw = state
        self.entries = [_array(shape, kind, raw, fortran)]


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a tensor of `shape` without gaps, its last axis innermost."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _are_sizes(values: object) -> bool:
    return (
        isinstance(values, tuple)
        and len(values) <= MAX_DIMENSIONS
        and all(type(value) is int and 0 <= value < 2**40 for value in values)
    )


def _shape_words(shape: object) -> str:
    return str(shape)[:60] if _are_sizes(shape) else f"{type(shape).__name__}, not up to {MAX_DIMENSIONS} sizes"


def _array(shape: Any, kind: Any, raw: Any, fortran: object = False) -> Entry:
    if not isinstance(kind, _NumpyType) or kind.code not in _NUMPY:
        code = str(getattr(kind, "code", kind))[:20]
        raise pickle.UnpicklingError(f"it holds an array of {code!r}, not of numbers")
    if not _are_sizes(shape) or 0 in shape or len(shape) > 5:
        raise pickle.UnpicklingError(f"an array has the shape {_shape_words(shape)}")
    source = raw.encode("latin1") if isinstance(raw, str) else raw
    if not isinstance(source, bytes | Span):
        raise pickle.UnpicklingError("an array has no bytes")
    dtype = _NUMPY[kind.code]
    expected = math.prod(shape) * DTYPES[dtype].itemsize
    size = len(source) if isinstance(source, bytes) else source.size
    longest = 2 * expected if isinstance(source, Span) and source.utf8 else expected  # of UTF-8, two bytes a character
    if not expected <= size <= longest:
        raise pickle.UnpicklingError(f"an array of shape {shape} has {size:,} bytes")
    strides = contiguous(shape[::-1])[::-1] if fortran else contiguous(shape)
    return Entry(dtype, shape, strides, 0, source, swapped=kind.order == ">")


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Entry:
    """What `torch._utils._rebuild_tensor`, `_v2` and `_v3` are called with; `_v3` says the dtype."""
    if not isinstance(storage, Storage) or not _are_sizes((offset,)) or not _are_sizes(shape):
        raise pickle.UnpicklingError(f"a tensor has the shape {_shape_words(shape)}")
    if not _are_sizes(strides) or len(strides) != len(shape) or math.prod(shape) > MAX_NUMBERS:
        raise pickle.UnpicklingError(f"a tensor has the shape {shape} and the strides {_shape_words(strides)}")
    dtype = storage.dtype
    if not dtype:
        named = rest[2] if len(rest) > 2 else None
        if not isinstance(named, _Name) or named.name not in DTYPES:
            raise pickle.UnpicklingError("a tensor does not say its type")
        dtype = named.name
    return Entry(dtype, shape, strides, offset, storage)


def _first(value: object, *_: object) -> object:
    return value


def _kind(what: str) -> _Function:
    return _Function(lambda *_: Unsupported(what))


_KNOWN: dict[tuple[str, str], _Function | _Name] = {
    ("collections", "Counter"): _Function(_first),
    ("torch", "Size"): _Function(_first),
    ("torch", "device"): _Function(lambda *_: None),
    ("torch.serialization", "_get_layout"): _Function(lambda *_: None),
    ("torch", "per_tensor_affine"): _Name("per_tensor_affine"),
    ("torch", "per_channel_affine"): _Name("per_channel_affine"),
    ("torch._utils", "_rebuild_tensor"): _Function(_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_tensor),
    ("torch._utils", "_rebuild_tensor_v3"): _Function(_tensor),
    ("torch._utils", "_rebuild_parameter"): _Function(_first),
    ("torch._utils", "_rebuild_parameter_with_state"): _Function(_first),
    ("torch._utils", "_rebuild_qtensor"): _kind("a quantised tensor"),
    ("torch._utils", "_rebuild_sparse_tensor"): _kind("a sparse tensor"),
    ("torch._utils", "_rebuild_nested_tensor"): _kind("a nested tensor"),
    ("torch._utils", "_rebuild_meta_tensor_no_storage"): _kind("a tensor without numbers (meta)"),
    ("torch._tensor", "_rebuild_from_type_v2"): _kind("a tensor of a class of its own"),
    ("numpy", "ndarray"): _Name("ndarray"),
    ("numpy", "dtype"): _Function(lambda code="", *_: _NumpyType(code)),
    ("_codecs", "encode"): _Function(_first),  # how python 3 writes bytes for python 2
    **{("torch", name): _Name(name) for name in DTYPES},
    **{("torch", name): _Name(name) for name in _STORAGES},
    **{("torch", f"Q{kind}Storage"): _Name("") for kind in ("Int8", "UInt8", "Int32", "UInt4x2", "UInt2x4")},
    ("torch.storage", "UntypedStorage"): _Name("UntypedStorage"),
    **{
        (f"numpy.{core}.multiarray", name): _Function(call)
        for core in ("core", "_core")
        for name, call in (
            ("_reconstruct", lambda *_: _NumpyArray()),
            ("scalar", lambda kind, raw: _array((), kind, raw)),
        )
    },
}


class _Counted:
    """A file that gives so many reads and so many bytes, and no longer line than a name has."""

    def __init__(self, opened: IO[bytes], size: int):
        self.opened, self.size = opened, size
        self.reads, self.bytes = MAX_READS, MAX_STRUCTURE

    def take(self, reads: int, count: int) -> None:
        self.reads -= reads
        self.bytes -= count
        if self.reads < 0:
            raise pickle.UnpicklingError(f"it takes more than {MAX_READS:,} steps to read")
        if self.bytes < 0:
            raise pickle.UnpicklingError(f"it describes its tensors in more than {MAX_STRUCTURE:,} bytes")

    def read(self, count: int) -> bytes:
        self.reads -= 1
        self.bytes -= count
        if self.reads < 0 or self.bytes < 0:
            self.take(0, 0)  # says which
        return self.opened.read(count)

    def readline(self) -> bytes:
        line = self.opened.readline(1000)
        self.take(1, len(line))
        return line

    def skip(self, count: int) -> int:
        """The place of the next `count` bytes, which stay in the file."""
        start = self.opened.tell()
        if start + count > self.size:
            raise EOFError
        self.opened.seek(start + count)
        return start


class _Reader(pickle._Unpickler):
    """Python's own reader (its memo is a dict, so no index can make it huge) with few of its steps."""

    stack: list[Any]
    append: Callable[[object], None]
    pop_mark: Callable[[], list[Any]]
    read: Callable[[int], bytes]

    def __init__(self, counted: _Counted, storages: dict[str, Storage]):
        super().__init__(counted, encoding="latin1")
        self.counted, self.storages, self.tensors = counted, storages, 0

    def find_class(self, module: str, name: str) -> object:
        if (module, name) == ("collections", "OrderedDict"):
            return _Function(self._ordered)
        if module in ("builtins", "__builtin__") and name in ("set", "bytearray"):
            return _Function(_first)
        if (module, name) not in _KNOWN:
            raise ForeignType(f"{module[:60]}.{name[:60]}")
        return _KNOWN[module, name]

    def _ordered(self, pairs: Any = ()) -> dict:
        self.counted.take(len(pairs), 0)
        made: dict = {}
        for key, value in pairs:
            _set(made, key, value)
        return made

    def persistent_load(self, pid: Any) -> Storage:
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or any(pid[5:]):
            raise pickle.UnpicklingError("it refers to something other than a storage")
        _, kind, key, _, count = pid[:5]
        if not isinstance(kind, _Name) or not isinstance(key, str) or not _are_sizes((count,)):
            raise pickle.UnpicklingError("a storage is not described as torch does")
        storage = Storage(key, _STORAGES.get(kind.name, "uint8"), count)
        if self.storages.setdefault(key, storage) != storage:
            raise pickle.UnpicklingError("a storage is described twice")
        return storage

    def load_proto(self) -> None:
        protocol = self.read(1)[0]
        if protocol > 3:
            raise pickle.UnpicklingError(f"it is a pickle of protocol {protocol}; those of torch and Caffe2 are 2")

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        function = self.stack[-1]
        if not isinstance(function, _Function) or not isinstance(arguments, tuple):
            raise pickle.UnpicklingError("it calls what is no function")
        made = function.call(*arguments)
        self.stack[-1] = made
        self.tensors += isinstance(made, Entry | Unsupported | _NumpyArray)
        if self.tensors > MAX_TENSORS:
            raise pickle.UnpicklingError(f"it has more than {MAX_TENSORS:,} tensors")

    def load_build(self) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], _NumpyArray | _NumpyType):
            self.stack[-1].set_state(state)
        elif not isinstance(self.stack[-1], dict):  # torch gives its dicts an attribute, `_metadata`
            raise pickle.UnpicklingError("it sets the state of what is no array")

    def load_setitem(self) -> None:
        value = self.stack.pop()
        key = self.stack.pop()
        _set(self.stack[-1], key, value)

    def load_setitems(self) -> None:
        items = self.pop_mark()
        for key, value in zip(items[::2], items[1::2], strict=True):
            _set(self.stack[-1], key, value)

    def load_dict(self) -> None:
        items = self.pop_mark()
        made: dict = {}
        for key, value in zip(items[::2], items[1::2], strict=True):
            _set(made, key, value)
        self.append(made)

    def _string(self, encoding: str) -> None:
        count = int.from_bytes(self.read(4), "little")
        if count > MAX_SHORT:
            self.append(Span(self.counted.skip(count), count, encoding == "utf-8"))
        elif encoding:
            self.append(self.read(count).decode(encoding))
        else:
            self.append(self.read(count))

    _STEPS = (  # of protocols 0 to 3: what makes numbers, texts, tuples, lists and dicts
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
        pickle.SHORT_BINSTRING,
        pickle.SHORT_BINBYTES,
        pickle.UNICODE,
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
        pickle.EMPTY_DICT,
        pickle.GET,
        pickle.BINGET,
        pickle.LONG_BINGET,
        pickle.PUT,
        pickle.BINPUT,
        pickle.LONG_BINPUT,
        pickle.GLOBAL,
        pickle.BINPERSID,
    )
    dispatch: ClassVar[dict[int, Callable[..., None]]] = {
        step[0]: pickle._Unpickler.dispatch[step[0]] for step in _STEPS
    }
    dispatch |= {
        pickle.PROTO[0]: load_proto,
        pickle.REDUCE[0]: load_reduce,
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
        pickle.BINUNICODE[0]: lambda self: self._string("utf-8"),
        pickle.BINSTRING[0]: lambda self: self._string("latin1"),
        pickle.BINBYTES[0]: lambda self: self._string(""),
    }


def _set(items: Any, key: object, value: object) -> None:
    """The hash of a tuple in a tuple in a tuple … would end the process, so a key is a text or a number."""
    if isinstance(key, Span):
        raise pickle.UnpicklingError(f"a name in it has {key.size:,} bytes")
    if type(items) is not dict or not isinstance(key, str | int | float | None):
        raise pickle.UnpicklingError("it has a dict whose keys are neither texts nor numbers")
    items[key] = value


def read_pickles(
    opened: IO[bytes], size: int, count: int = 1, storages: dict[str, Storage] | None = None
) -> list[object]:
    """The next `count` pickles of a file of `size` bytes, as numbers, texts, lists, dicts, tuples and `Entry`s.

    `storages` gets those that its tensors are views of, by key. Raises `pickle.UnpicklingError` for what is none of
    these, `ForeignType` where a type is named, and whatever python's reader makes of a damaged file.
    """
    counted = _Counted(opened, size)
    storages = {} if storages is None else storages
    return [_Reader(counted, storages).load() for _ in range(count)]


def array_entry(value: object) -> object:
    """A numpy array as its `Entry`; anything else as it is."""
    if not isinstance(value, _NumpyArray):
        return value
    return value.entries[0] if value.entries else Unsupported("an array without numbers")


def number_entry(value: object) -> object:
    """A number, of which Caffe2 has some among its arrays, as an `Entry` of shape (); anything else as it is."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return value
    return Entry("float64", (), (), 0, struct.pack("=d", value))
