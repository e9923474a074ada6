"""Weights files that may come from anybody: no code in them runs, and they cost no more than their header accounts for.

Four formats: `.safetensors`; torch's own, in a zip or, before torch 1.6, as pickles in a row; and pickles of numpy
arrays (Caffe2's `.pkl`). Unusual: torch never sees the file. Its header is read here, bounded, into `Entry`s; the
caller compares names and shapes with its network on the meta device; only then are numbers read, first in pieces that
are checked and forgotten.
"""

import json
import math
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, cast

import torch
from torch import Tensor

from ..core import archives, files
from ..core.errors import WeightsError
from ..core.text import printable
from .unpickle import (
    DTYPES,
    MAX_DIMENSIONS,
    MAX_STRUCTURE,
    MAX_TENSORS,
    Entry,
    ForeignType,
    Span,
    Storage,
    Unsupported,
    array_entry,
    contiguous,
    number_entry,
    read_pickles,
)

MAX_FILE = 4 * 2**30  # bytes; ResNet-152 with its optimiser's state is below 1 GiB
MAX_ENTRIES = 20_000  # of a zip
MAX_REPEATED = 2**24  # numbers of a tensor that repeats fewer than it has; no layer of a ResNet-152 has more
FLOATS = ("float16", "bfloat16", "float32", "float64")  # what weights and statistics may be
COUNTERS = ("int32", "int64")  # what BN's step counter may be
NESTS = ("state_dict_ema", "state_dict", "model_state_dict", "model_state", "model", "net")  # keys of trainers' files
MAX_WRAPPERS = 4  # around a network: torch.compile's, DataParallel's, a trainer's
CHUNK = 2**18  # numbers looked at in one piece
_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a torch file before version 1.6
_SAFETENSORS = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}
_PACKED = {"F4": "float4", "F6_E2M3": "float6_e2m3", "F6_E3M2": "float6_e3m2"}  # of safetensors: several in a byte
_CONVERT = "convert them to float32 where that is right"
_ALONE = "where you trust it, save the state dict alone: torch.save(model.state_dict(), 'weights.pth')"


@dataclass(frozen=True)
class Weights:
    """The tensors of a file, by name, as its header describes them."""

    file: Path
    entries: Mapping[str, Entry]
    checksums: Mapping[Span, int]  # CRC-32 of stretches of the file, where it has them
    notes: tuple[str, ...] = ()  # what was taken off on the way

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name to shape."""
        return {name: entry.shape for name, entry in self.entries.items()}

    def without_prefix(self, known: Collection[str]) -> "Weights":
        """The same without the prefix that all names have; a note says so. `known` names are no prefixes."""
        prefix = common_prefix(self.entries, known)
        if not prefix:
            return self
        entries = {name.removeprefix(prefix): entry for name, entry in self.entries.items()}
        note = f"prefix '{printable(prefix)[:60]}' taken off all names"
        return replace(self, entries=entries, notes=(*self.notes, note))

    def load(self, names: Mapping[str, str], like: Mapping[str, Tensor], remark: str = "") -> dict[str, Tensor]:
        """The tensors `{ours: theirs}` as `{ours: tensor}` on the CPU, in dtype and shape of `like[ours]`.

        All are checked before the first is kept. Raises `WeightsError`, naming ours and `remark`, for types other than
        `FLOATS` (`COUNTERS` where ours is an integer), NaN, infinity, negative variances and damaged bytes.
        """
        with self.file.open("rb") as opened:
            self._check_sums(opened, names.values())
            for ours, theirs in names.items():
                self._check(opened, theirs, ours, like[ours], remark)
            return {ours: self._tensor(opened, theirs, like[ours]) for ours, theirs in names.items()}

    def equal(self, one: str, other: str) -> bool:
        """Whether two tensors have the same type, layout and numbers."""
        first, second = self.entries[one], self.entries[other]
        if (first.dtype, first.shape, first.strides) != (second.dtype, second.shape, second.strides):
            return False
        with self.file.open("rb") as opened:
            pairs = zip(_pieces(opened, first), _pieces(opened, second), strict=True)
            return all(torch.equal(a, b) for a, b in pairs)

    def _check_sums(self, opened: IO[bytes], names: Iterable[str]) -> None:
        for span in {entry.source for entry in map(self.entries.__getitem__, names)} & self.checksums.keys():
            assert isinstance(span, Span)
            opened.seek(span.start)
            total = 0
            for first in range(0, span.size, 4 * CHUNK):
                total = zlib.crc32(opened.read(min(4 * CHUNK, span.size - first)), total)
            if total != self.checksums[span]:
                raise WeightsError(f"{self.file} is damaged: a checksum in it differs", "fetch it again")

    def _check(self, opened: IO[bytes], theirs: str, ours: str, like: Tensor, remark: str) -> None:
        entry = self.entries[theirs]
        accepted = FLOATS if like.is_floating_point() else COUNTERS
        if entry.dtype not in accepted:
            raise WeightsError(
                f"{self.file} holds {entry.dtype} numbers in {ours}{remark}; there it may hold {', '.join(accepted)}",
                _CONVERT if accepted == FLOATS else "it counts BatchNorm's steps: convert it to int64, or leave it out",
            )
        if not like.is_floating_point():
            return
        for numbers in _pieces(opened, entry):
            low, high = map(float, torch.aminmax(numbers.float()))  # NaN where one is; a hundredth of isfinite's time
            if not (math.isfinite(low) and math.isfinite(high)):
                what = "numbers too large for float32" if torch.isfinite(numbers).all() else "NaN or infinity"
                raise WeightsError(f"{self.file} holds {what} in {ours}{remark}", "fetch or make it again")
            if ours.endswith("running_var") and low < 0:
                raise WeightsError(f"{self.file} holds a variance below 0 in {ours}{remark}", "fetch or make it again")

    def _tensor(self, opened: IO[bytes], name: str, like: Tensor) -> Tensor:
        entry = self.entries[name]
        made = torch.empty(like.shape, dtype=like.dtype)
        if not made.numel():
            return made
        numbers = _numbers(opened, entry, entry.offset, entry.span)
        return made.copy_(numbers.as_strided(entry.shape, entry.strides).reshape(like.shape))


def read_weights(file: Path) -> Weights:
    """What a `.safetensors` file, a torch file (`.pth`, `.pyth`, `.pt`, `.bin`) or a Caffe2 `.pkl` says that it holds.

    The dict in which a trainer keeps the network (`NESTS`) is opened, and said in `notes`. Raises `WeightsError`.
    """
    file = Path(file)
    data, places, checksums = _read(file)
    notes: tuple[str, ...] = ()
    for key in NESTS:
        if isinstance(data, dict) and isinstance(data.get(key), dict):
            data = data[key]
            notes = (*notes, f"taken from its part '{key}'")
    if not isinstance(data, dict) or not data:
        raise WeightsError(f"{file} holds no state dict of tensors", _ALONE)
    entries = {}
    for name, value in data.items():
        value = array_entry(value)
        if not isinstance(value, Entry) or not isinstance(name, str):
            what = value.what if isinstance(value, Unsupported) else f"a {type(value).__name__}"
            raise WeightsError(
                f"{file} holds no state dict of tensors: {printable(str(name)[:60])!r} is {what}", _ALONE
            )
        entries[name] = _placed(file, name, value, places)
    return Weights(file, entries, checksums, notes)


def common_prefix(names: Iterable[str], known: Collection[str]) -> str:
    """The wrappers' parts that all names begin with (`module.encoder_q.`), or ""; parts of the network are `known`."""
    prefix, rest = "", list(names)
    for _ in range(MAX_WRAPPERS):
        parts = {name.partition(".")[0] for name in rest}
        part = parts.pop()
        if parts or part in known or not all("." in name for name in rest):
            break
        prefix, rest = f"{prefix}{part}.", [name.removeprefix(f"{part}.") for name in rest]
    return prefix


def misfit(own: Mapping[str, Tensor], given: Mapping[str, tuple[int, ...]], may_lack: Collection[str] = ()) -> str:
    """How names and shapes differ from ours, in words with one example of each kind; "" where they fit.

    BN's step counter may lack, as not every exporter writes it.
    """
    needed = [name for name in own if name not in may_lack and not name.endswith("num_batches_tracked")]
    shapes = {name: (given[name], tuple(value.shape)) for name, value in own.items() if name in given}
    differences = {
        "missing": [name for name in needed if name not in given],
        "unknown": [printable(name[:60]) for name in given if name not in own],
        "of another shape": [f"{name} is {one}, not {other}" for name, (one, other) in shapes.items() if one != other],
    }
    return ", ".join(_counted(kind, examples) for kind, examples in differences.items() if examples)


def _counted(kind: str, examples: list[str]) -> str:
    more = ", …" if len(examples) > 1 else ""
    return f"{len(examples)} {kind} ({examples[0]}{more})"


Places = Callable[[str], Span]  # where the storage of a key lies
Content = tuple[object, Places, dict[Span, int]]
_NO_PLACES: dict[str, Span] = {}


def _read(file: Path) -> Content:
    """`(data, places, checksums)`."""
    read = _reader(file)
    try:
        with file.open("rb") as opened:
            return read(file, opened)
    except WeightsError:
        raise
    except ForeignType as error:
        raise WeightsError(
            f"{file} holds more than weights and was not opened: it names {printable(str(error))}", _ALONE
        ) from None
    except (pickle.UnpicklingError, archives.BadArchive) as error:
        raise WeightsError(f"{file} could not be read as weights ({error})", _AGAIN) from None
    except Exception:  # a damaged file makes python's readers raise anything
        raise WeightsError(f"{file} could not be read as weights (it is damaged)", _AGAIN) from None


_AGAIN = "it may be cut short: fetch it again"


def _reader(file: Path) -> Callable[[Path, IO[bytes]], Content]:
    """What reads this file, by its name and first bytes. Raises `WeightsError` for what is no weights file at all."""
    if not file.is_file():
        raise WeightsError(f"there is no weights file {file}", "give a .safetensors, .pth, .pyth or .pkl file")
    size = file.stat().st_size
    with file.open("rb") as opened:
        start = opened.read(64)
    is_page = start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml"))
    browse = "open its address in a browser: the site may ask you to sign in or confirm"
    for holds, what, hint in (
        (
            start.startswith(b"version https://git-lfs"),
            "is a Git-LFS pointer, not the weights",
            "fetch them with: git lfs pull",
        ),
        (is_page, "is a web page, not weights", browse),
        (not size, "is empty", "fetch it again"),
        (size > MAX_FILE, f"has {size:,} bytes; weights of a ResNet have at most {MAX_FILE:,}", ""),
    ):
        if holds:
            raise WeightsError(f"{file} {what}", hint)
    if file.suffix == ".safetensors":
        return _read_safetensors
    return _read_zip if start.startswith(b"PK") else _read_bare


def _read_safetensors(file: Path, opened: IO[bytes]) -> Content:
    """The header: `{name: {"dtype", "shape", "data_offsets"}}`, whose stretches fill the rest without gaps."""
    length = int.from_bytes(opened.read(8), "little")
    first = 8 + length
    if length > MAX_STRUCTURE:
        raise pickle.UnpicklingError(f"its header has {length:,} bytes; at most {MAX_STRUCTURE:,} are read")
    header = json.loads(opened.read(length).decode(), object_pairs_hook=files.without_repeats)
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise pickle.UnpicklingError(f"it has more than {MAX_TENSORS:,} tensors")
    entries, end = {}, 0
    for name, facts in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        shape, (begin, end_of_this) = tuple(facts["shape"]), facts["data_offsets"]
        if facts["dtype"] in _PACKED:
            raise WeightsError(
                f"{file} holds {_PACKED[facts['dtype']]} numbers in {printable(name[:60])}; "
                f"there it may hold {', '.join(FLOATS)}",
                _CONVERT,
            )
        if facts["dtype"] not in _SAFETENSORS or len(shape) > MAX_DIMENSIONS:
            raise pickle.UnpicklingError(f"it has a tensor of type {str(facts['dtype'])[:20]!r} and shape {shape[:9]}")
        dtype = _SAFETENSORS[facts["dtype"]]
        if not all(type(n) is int and 0 <= n < 2**40 for n in (*shape, begin, end_of_this)) or begin != end:
            raise pickle.UnpicklingError("its tensors do not lie one after the other")
        if end_of_this - begin != math.prod(shape) * DTYPES[dtype].itemsize:
            raise pickle.UnpicklingError(f"a tensor of shape {shape} has {end_of_this - begin:,} bytes")
        span = Span(first + begin, end_of_this - begin, False)
        entries[name], end = Entry(dtype, shape, contiguous(shape), 0, span), end_of_this
    if first + end != file.stat().st_size:
        raise pickle.UnpicklingError(f"it has {file.stat().st_size:,} bytes, not the {first + end:,} of its header")
    return entries, _NO_PLACES.__getitem__, {}


def _read_bare(file: Path, opened: IO[bytes]) -> Content:
    """Pickles without a zip around them: of numpy arrays, or torch's format before version 1.6."""
    size = file.stat().st_size
    (first,) = read_pickles(opened, size)
    return _read_old_torch(opened, size) if first == _MAGIC else (_arrays(first, size), _NO_PLACES.__getitem__, {})


def _arrays(pickled: object, size: int) -> dict[str, object]:
    """The entries of a dict of numpy arrays, or of its part "blobs" (Caffe2), in a file of `size` bytes."""
    blobs = pickled.get("blobs", pickled) if isinstance(pickled, dict) else None
    if not isinstance(blobs, dict):
        raise pickle.UnpicklingError("it holds no dict of arrays")
    entries = {name: number_entry(array_entry(value)) for name, value in blobs.items()}
    arrays = [entry for entry in entries.values() if isinstance(entry, Entry) and entry.shape]
    if sum(math.prod(array.shape) * array.itemsize for array in arrays) > size:
        raise pickle.UnpicklingError("its arrays have more bytes than the file")
    return entries


def _read_old_torch(opened: IO[bytes], size: int) -> Content:
    """What follows the magic number: the tensors, then the numbers of each storage behind their count."""
    storages: dict[str, Storage] = {}
    _, _, data, keys = read_pickles(opened, size, 4, storages)
    if not isinstance(keys, list) or not all(isinstance(key, str) and key in storages for key in keys):
        raise pickle.UnpicklingError("its list of storages does not fit its tensors")
    places = {}
    for key in keys:
        (count,) = struct.unpack("<q", opened.read(8))
        span = Span(opened.tell(), count * _itemsize(storages[key]), False)
        if count != storages[key].count or span.start + span.size > size:
            raise pickle.UnpicklingError("it ends before its last tensor")
        opened.seek(span.size, 1)
        places[key] = span
    return data, places.__getitem__, {}


def _itemsize(storage: Storage) -> int:
    return DTYPES[storage.dtype].itemsize if storage.dtype else 1


def _read_zip(file: Path, opened: IO[bytes]) -> Content:
    """torch's zip: `NAME/data.pkl` describes the tensors, `NAME/data/KEY` has their numbers, nothing is compressed."""
    parts = _parts(file, opened, file.stat().st_size)
    roots = [name.removesuffix("data.pkl") for name in parts if name.endswith("data.pkl") and name.count("/") < 2]
    if len(roots) != 1:
        raise pickle.UnpicklingError("it is a zip, but not torch's")
    root = roots[0]
    order = parts.get(f"{root}byteorder")
    if order and _bytes(opened, _span(opened, order), 0, 3) == b"big":
        raise WeightsError(
            f"{file} was written on a big-endian machine", "save it there as .safetensors, or on another machine"
        )
    pickled = _span(opened, parts[f"{root}data.pkl"])
    if pickled.size > MAX_STRUCTURE:
        raise pickle.UnpicklingError(f"it describes its tensors in more than {MAX_STRUCTURE:,} bytes")
    opened.seek(pickled.start)
    (data,) = read_pickles(opened, pickled.start + pickled.size)
    spans, checksums = {}, {}
    for name, part in parts.items():
        if name.startswith(f"{root}data/"):
            span = _span(opened, part)
            spans[name.removeprefix(f"{root}data/")] = span
            if part.CRC:  # 0: torch was told to leave them out
                checksums[span] = part.CRC
    return data, spans.__getitem__, checksums


def _parts(file: Path, opened: IO[bytes], size: int) -> dict[str, zipfile.ZipInfo]:
    """The parts of a zip by name. Raises `WeightsError` where torch did not write it, or it holds code."""
    with zipfile.ZipFile(cast(IO[bytes], archives.Bounded(opened, MAX_STRUCTURE))) as archive:
        listed = archive.infolist()
    parts = {part.filename: part for part in listed}
    if len(listed) > MAX_ENTRIES:
        raise WeightsError(f"{file} has {len(listed):,} parts; weights have at most {MAX_ENTRIES:,}")
    if any("/code/" in name for name in parts):
        raise WeightsError(
            f"{file} is a TorchScript program, not weights",
            "where you trust it: torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth')",
        )
    for name, part in parts.items():
        if part.compress_type != zipfile.ZIP_STORED or part.file_size != part.compress_size:
            short = printable(name[:60])
            raise WeightsError(f"{file} has a compressed part ({short!r}), which torch never writes", "fetch it again")
    if len(parts) < len(listed) or sum(part.file_size for part in parts.values()) > size:
        raise WeightsError(f"{file} claims more bytes than it has, or a part twice", "fetch it again")
    return parts


def _span(opened: IO[bytes], part: zipfile.ZipInfo) -> Span:
    return Span(archives.data_start(opened, part.header_offset, part.file_size), part.file_size, False)


def _placed(file: Path, name: str, entry: Entry, places: Places) -> Entry:
    """`entry` with its place in the file, which has all of its numbers. Raises `WeightsError`."""
    if not isinstance(entry.source, Storage):
        return entry
    try:
        span = places(entry.source.key)
    except KeyError:
        raise WeightsError(f"{file} has no numbers for {printable(name[:60])}", _AGAIN) from None
    least = (entry.offset + entry.span) * entry.itemsize if entry.span else 0
    repeats = entry.span and any(n > 1 and not stride for n, stride in zip(entry.shape, entry.strides, strict=True))
    numbers = math.prod(entry.shape)
    if span.size != entry.source.count * _itemsize(entry.source) or least > span.size:
        raise WeightsError(f"{file} has fewer numbers than {printable(name[:60])} needs", _AGAIN)
    if (repeats and numbers > MAX_REPEATED) or entry.span > 8 * numbers or not _is_plain_view(entry):
        raise WeightsError(
            f"{file} holds a view of other numbers in {printable(name[:60])}, of shape {entry.shape}",
            "save a copy of its own: tensor.clone()",
        )
    return replace(entry, source=span)


def _axes(entry: Entry) -> list[tuple[int, int]]:
    """`(stride, size)` of the axes that move in memory, the outermost first."""
    pairs = zip(entry.strides, entry.shape, strict=True)
    return sorted(((stride, size) for stride, size in pairs if size > 1 and stride), reverse=True)


def _is_plain_view(entry: Entry) -> bool:
    """Whether no two of its numbers share a place, but for axes that repeat all of them."""
    inner = 1
    for stride, size in reversed(_axes(entry)):
        if stride < inner:
            return False
        inner += (size - 1) * stride
    return True


def _pieces(opened: IO[bytes], entry: Entry) -> Iterator[Tensor]:
    """All different numbers of a tensor, some rows of its outermost axis at a time."""
    if not entry.span:
        return
    (stride, size), *rest = _axes(entry) or [(1, 1)]
    inner = 1 + sum((n - 1) * step for step, n in rest)
    rows = max(CHUNK // stride, 1)
    for row in range(0, size, rows):
        count = min(rows, size - row)
        numbers = _numbers(opened, entry, entry.offset + row * stride, (count - 1) * stride + inner)
        yield numbers.as_strided((count, *(n for _, n in rest)), (stride, *(step for step, _ in rest)))


def _numbers(opened: IO[bytes], entry: Entry, offset: int, count: int) -> Tensor:
    """`count` numbers from `offset` on, in the file's own type, native order."""
    assert not isinstance(entry.source, Storage)
    raw = _bytes(opened, entry.source, offset * entry.itemsize, count * entry.itemsize)
    numbers = torch.frombuffer(raw, dtype=DTYPES[entry.dtype])
    if entry.swapped:
        numbers.numpy().byteswap(inplace=True)
    return numbers


def _bytes(opened: IO[bytes], source: Span | bytes, first: int, count: int) -> bytearray:
    if isinstance(source, Span) and source.utf8:
        opened.seek(source.start)
        source = opened.read(source.size).decode().encode("latin1")
    if isinstance(source, Span):
        opened.seek(source.start + first)
        raw = bytearray(count)
        read = opened.readinto(raw)  # type: ignore[attr-defined]  # a file has it
    else:
        raw = bytearray(source[first : first + count])
        read = len(raw)
    if read != count:
        raise WeightsError("a weights file ended before its last number", _AGAIN)
    return raw
