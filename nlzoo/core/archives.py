"""Zip and tar archives as folders: `data.zip/hug/1.mp4` is a file, and `data.zip/hug` a folder, for what reads videos.

Nothing is unpacked. What an archive stores as it is, all of a tar and most videos in a zip, is read at its place;
compressed members are read whole, up to `MAX_PACKED` bytes. An archive is checked when it is first looked at: one whose
names leave it, are there twice, or claim bytes that it has not, is no folder at all. A member that cannot be read (a
link, encrypted) is there by name, and says why when it is opened. Errors are `OSError`, like those of files.
"""

import errno
import io
import os
import re
import stat as modes
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import IO, Any, BinaryIO, NamedTuple, cast

from .text import printable, quoted

ENDINGS = (".zip", ".tar")
MAX_PACKED = 2**29  # bytes of a compressed member, which is in memory while it is read
MAX_MEMBERS = 1_000_000
MAX_DIRECTORY = 2**27  # bytes of a zip's list of members, and of what a tar says of one
_NAME = re.compile(r"\.(?:zip|tar)(?=/|\Z)", re.IGNORECASE)
LINK = "it is a link, and links in archives are not followed"
_LISTS = (".csv", ".tsv", ".txt", ".jsonl", ".parquet")
_UTF8, _ENCRYPTED = 0x800, 0x2041  # flags of a zip's member
_NOT_READ = (zipfile.BadZipFile, tarfile.TarError, struct.error, ValueError, NotImplementedError, EOFError)


class BadArchive(OSError):
    """An archive or a member that cannot be used; `strerror` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(errno.EINVAL, reason)

    def __str__(self) -> str:
        return str(self.strerror)


class Stat(NamedTuple):
    """What `os.stat` says, as far as it is known of a member; its time of change is the archive's."""

    st_mode: int
    st_size: int
    st_mtime_ns: int


class _Member(NamedTuple):
    start: int  # of its bytes; in a zip of the header before them
    size: int
    packed: int = -1  # bytes that they take compressed; -1: they are stored as they are
    crc: int = 0
    problem: str = ""


class Entry(NamedTuple):
    """A member of a folder in an archive, as `os.scandir` gives those of folders."""

    name: str
    path: str
    mode: int

    def is_dir(self, follow_symlinks: bool = True) -> bool:
        return modes.S_ISDIR(self.mode)

    def is_file(self) -> bool:
        return modes.S_ISREG(self.mode)

    def is_symlink(self) -> bool:
        return modes.S_ISLNK(self.mode)

    def stat(self) -> Stat | os.stat_result:
        return stat(self.path)


Folder = dict[str, "_Member | Folder"]


# --- what `os` says of files


def is_archive(path: str | os.PathLike) -> bool:
    """Whether `path` itself is a zip or tar by its ending."""
    split = _split(os.fspath(path))
    return split is not None and not split[1]


def is_member(path: str | os.PathLike) -> bool:
    """Whether `path` lies in an archive; it need not be there."""
    split = _split(os.fspath(path))
    return split is not None and split[1] != ""


def realpath(path: str | os.PathLike) -> str:
    """`os.path.realpath`; an archive, and what is in it, keep their names: a link's target may have no ending."""
    name = os.fspath(path)
    return os.path.realpath(name) if _split(name) is None else os.path.abspath(name)


def stat(path: str | os.PathLike) -> Stat | os.stat_result:
    """`os.stat`; of an archive as of a folder. Raises `OSError`."""
    split = _split(os.fspath(path))
    if split is None:
        return os.stat(path)
    entry, changed = _found(*split)
    if isinstance(entry, dict):
        return Stat(modes.S_IFDIR, 0, changed)
    if entry.problem:
        raise BadArchive(entry.problem)
    return Stat(modes.S_IFREG, entry.size, changed)


def is_folder(path: str | os.PathLike) -> bool:
    """`os.path.isdir`."""
    try:
        return modes.S_ISDIR(stat(path).st_mode)
    except (OSError, ValueError):
        return False


def is_file(path: str | os.PathLike) -> bool:
    """`os.path.isfile`, but for archives, which are folders."""
    try:
        return modes.S_ISREG(stat(path).st_mode)
    except (OSError, ValueError):
        return False


def exists(path: str | os.PathLike) -> bool:
    """`os.path.exists`; an archive that cannot be read does exist."""
    return os.path.exists(path) or is_folder(path) or is_file(path)


@contextmanager
def scandir(path: str | os.PathLike) -> Iterator[Iterator[Entry | os.DirEntry]]:
    """`os.scandir`, also of a folder in an archive. Raises `OSError`."""
    split = _split(os.fspath(path))
    if split is None:
        with os.scandir(os.fspath(path)) as entries:
            yield entries
        return
    folder, _ = _found(*split)
    if not isinstance(folder, dict):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fspath(path))
    yield (Entry(name, os.path.join(os.fspath(path), name), _mode(inside)) for name, inside in folder.items())


def open_file(path: str | os.PathLike) -> io.BufferedReader | io.BytesIO:
    """`open(path, "rb")`, also of a member. Raises `OSError`."""
    split = _split(os.fspath(path))
    if split is None:
        return open(path, "rb")
    member, _ = _found(*split)
    if isinstance(member, dict):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if member.problem:
        raise BadArchive(member.problem)
    with ExitStack() as stack:
        archive = stack.enter_context(open(split[0], "rb", buffering=0))
        start = member.start if _is_tar(split[0]) else data_start(archive, member.start, _bytes(member))
        if member.packed >= 0:
            return io.BytesIO(_inflated(archive, start, member))
        stack.pop_all()  # it is closed with its part
        return io.BufferedReader(_Part(archive, start, member.size))


def top(archive: str | os.PathLike) -> str:
    """The folder in an archive that everything lies in, as archivers pack a folder by its name; or the archive.

    Not one without folders and lists in it: it is a class. Raises `OSError`.
    """
    place = os.fspath(archive)
    with scandir(place) as entries:
        shown = [entry for entry in entries if not entry.name.startswith((".", "__MACOSX"))]
    if len(shown) != 1 or not shown[0].is_dir():
        return place
    with scandir(shown[0].path) as entries:
        holds_more = any(entry.is_dir() or entry.name.lower().endswith(_LISTS) for entry in entries)
    return shown[0].path if holds_more else place


# --- the members of an archive


class _Archive(NamedTuple):
    state: tuple[int, int, int]  # size, time of change, and which file it is
    root: Folder
    members: int = 0  # files and folders
    problem: str = ""


_known: dict[str, _Archive] = {}  # of this process


def _split(path: str) -> tuple[str, str] | None:
    """`(archive, path in it)`; None where no part of the path is an archive."""
    for match in _NAME.finditer(path):
        if os.path.isfile(path[: match.end()]):
            inside = os.path.normpath(path[match.end() :].strip("/"))
            return path[: match.end()], "" if inside == "." else inside
    return None


def _found(archive: str, inside: str) -> tuple["_Member | Folder", int]:
    """A file or folder in an archive, and the archive's time of change. Raises `OSError`."""
    info = os.stat(archive)
    state = info.st_size, info.st_mtime_ns, info.st_ino
    known = _known.get(archive)
    if known is None or known.state != state:
        known = _examined(archive, state)
        if sum(other.members for other in list(_known.values())) > MAX_MEMBERS:  # other threads ask as well
            _known.clear()
        _known[archive] = known
    if known.problem:
        raise BadArchive(known.problem)
    entry: _Member | Folder | None = known.root
    for part in inside.split("/") if inside else ():
        entry = entry.get(part) if isinstance(entry, dict) else None
    if entry is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{archive}/{inside}")
    return entry, info.st_mtime_ns


def _examined(archive: str, state: tuple[int, int, int]) -> _Archive:
    """What is in an archive, or why it cannot be used."""
    try:
        with open(archive, "rb") as opened:
            members = _of_tar(opened, state[0]) if _is_tar(archive) else _of_zip(opened)
            return _Archive(state, *_in_folders(members, state[0]))
    except BadArchive as error:
        return _Archive(state, {}, problem=str(error))
    except RecursionError:
        return _Archive(state, {}, problem="it has headers of headers without end")
    except _NOT_READ as error:
        reason = f"it is cut off, or is no {archive[-3:].lower()} ({printable(str(error))})"
        return _Archive(state, {}, problem=reason)


def _is_tar(archive: str) -> bool:
    return archive.lower().endswith(".tar")


def _mode(entry: "_Member | Folder") -> int:
    if isinstance(entry, dict):
        return modes.S_IFDIR
    return modes.S_IFLNK if entry.problem == LINK else modes.S_IFREG


def _in_folders(members: Iterable[tuple[str, _Member | None]], size: int) -> tuple[Folder, int]:
    """The members by folder, and how many files and folders. Raises `BadArchive` for names and sizes that cannot be."""
    root: Folder = {}
    count = 0
    for name, member in members:
        parts = _parts(name)
        folder = root
        for part in parts if member is None else parts[:-1]:
            count += part not in folder
            inner = folder.setdefault(part, {})
            if isinstance(inner, _Member):
                raise BadArchive(f"it has {quoted([name])} in a file, which is no folder")
            folder = inner
        if member is not None:
            _add(folder, name, parts, member, size)
            count += 1
        if count > MAX_MEMBERS:
            raise BadArchive(f"it has more than {MAX_MEMBERS:,} members")
    return root, count


def _add(folder: Folder, name: str, parts: list[str], member: _Member, size: int) -> None:
    if not parts:
        raise BadArchive(f"it has a member without a name ({quoted([name])})")
    if parts[-1] in folder:
        raise BadArchive(f"it has {quoted([name])} twice")
    if not 0 <= member.start <= size or member.start + _bytes(member) > size:
        raise BadArchive(f"it is cut off, or claims more bytes than it has, in {quoted([name])}")
    folder[parts[-1]] = member


def _bytes(member: _Member) -> int:
    if member.problem:
        return 0
    return member.packed if member.packed >= 0 else member.size


def _parts(name: str) -> list[str]:
    """The parts of a member's name. Raises `BadArchive` for one that leads out of the archive."""
    if name.startswith("/") or "\0" in name or re.match(r"[A-Za-z]:[/\\]", name) or ".." in name.split("/"):
        raise BadArchive(f"the name of its member {quoted([name])} leads out of it")
    return [part for part in name.split("/") if part not in ("", ".")]


class Bounded:
    """A file for `zipfile` and `tarfile`, which would read a list of any length."""

    def __init__(self, opened: IO[bytes], most: int) -> None:
        self.seek, self.tell, self._opened, self._most = opened.seek, opened.tell, opened, most

    def read(self, count: int = -1) -> bytes:
        left = max(0, os.fstat(self._opened.fileno()).st_size - self.tell())  # what is asked for is memory at once
        size = left if count < 0 else count
        if size > self._most:
            raise BadArchive(f"its list of members has {size:,} bytes")
        return self._opened.read(min(size, left))


def _of_zip(opened: BinaryIO) -> Iterator[tuple[str, _Member | None]]:
    with zipfile.ZipFile(cast(BinaryIO, Bounded(opened, MAX_DIRECTORY))) as archive:
        for info in archive.infolist():
            packed = -1 if info.compress_type == zipfile.ZIP_STORED else info.compress_size
            member = _Member(info.header_offset, info.file_size, packed, info.CRC, _zip_problem(info))
            name = _zip_name(info)
            yield name, None if name.endswith("/") else member


def _zip_name(info: zipfile.ZipInfo) -> str:
    """As its archiver meant it: old ones write UTF-8 without saying so, and those of DOS `\\` between folders."""
    name = info.orig_filename
    if not info.flag_bits & _UTF8:
        with suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return name.replace("\\", "/") if info.create_system == 0 else name


def _zip_problem(info: zipfile.ZipInfo) -> str:
    """Why a member cannot be read."""
    kind = modes.S_IFMT(info.external_attr >> 16) if info.create_system == 3 else 0
    packed, size = info.compress_type != zipfile.ZIP_STORED, info.file_size
    regular, encrypted = kind in (0, modes.S_IFREG), info.flag_bits & _ENCRYPTED
    if regular and not encrypted and not packed and info.compress_size == size:
        return ""  # a million members may be so
    problems = (
        (kind == modes.S_IFLNK, LINK),
        (not regular, "it is no regular file"),
        (encrypted, "it is encrypted in its archive"),
        (not packed and info.compress_size != size, "it has two sizes in its archive"),
        (
            packed and info.compress_type != zipfile.ZIP_DEFLATED,
            f"it is compressed in a way that is not read in place (method {info.compress_type})",
        ),
        (
            packed and size > MAX_PACKED,
            f"it is compressed in its archive, and has {size / 1e6:,.0f} MB: more than {MAX_PACKED >> 20} MiB are not "
            "read in place; pack without compression (zip -0), or unpack",
        ),
        (packed and info.compress_size > size + size // 8 + 1024, "it takes more bytes compressed than it has"),
    )
    return next((words for holds, words in problems if holds), "")


def _of_tar(opened: BinaryIO, size: int) -> Iterator[tuple[str, _Member | None]]:
    bounded = cast(BinaryIO, Bounded(opened, MAX_DIRECTORY))
    with tarfile.open(fileobj=bounded, mode="r:", encoding="utf-8", errors="surrogateescape") as archive:
        while (info := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # it would keep them all
            member = _Member(info.offset_data, info.size, problem=_tar_problem(info))
            yield info.name, None if info.isdir() else member
        opened.seek(archive.offset)
        if opened.read(512).strip(b"\0") or archive.offset >= size:  # `tarfile` takes damage for the end
            raise BadArchive("it is cut off or damaged: no end is where it should be")


def _tar_problem(info: tarfile.TarInfo) -> str:
    if info.issym() or info.islnk():
        return LINK
    if not info.isreg():
        return "it is no regular file"
    return "it is stored with holes, which are not read in place" if info.issparse() else ""


# --- the bytes of a member


def data_start(archive: IO[bytes] | io.FileIO, start: int, size: int) -> int:
    """Where the `size` bytes of a zip's member lie: behind a header at `start`, whose two last fields have any length.

    Raises `BadArchive`.
    """
    archive.seek(start)
    header = archive.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise BadArchive("it is not where its archive says")
    start += 30 + sum(struct.unpack("<HH", header[26:]))
    if start + size > os.fstat(archive.fileno()).st_size:
        raise BadArchive("it is cut off in its archive")
    return start


def _inflated(archive: io.FileIO, start: int, member: _Member) -> bytes:
    """The bytes of a compressed member, never more than it says that it has."""
    archive.seek(start)
    try:
        content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(archive.read(member.packed), member.size + 1)
    except zlib.error:
        content = b""
    if len(content) != member.size or zlib.crc32(content) != member.crc:
        raise BadArchive("it is damaged in its archive")
    return content


class _Part(io.RawIOBase):
    """Bytes of a file, as a file."""

    def __init__(self, opened: io.FileIO, start: int, size: int) -> None:
        self._opened, self._start, self._size, self._at = opened, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if at < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._at = at
        return at

    def readinto(self, buffer: Any, /) -> int:
        count = max(0, min(len(buffer), self._size - self._at))
        self._opened.seek(self._start + self._at)
        content = self._opened.read(count)
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)

    def close(self) -> None:
        self._opened.close()
        super().close()
