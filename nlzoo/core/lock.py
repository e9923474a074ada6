"""One process at a time in a folder: the kernel's lock, which ends with its process however that ends.

Where the file system has no locks, a file in this host's temporary folder is locked instead, and another host's word in
the lock file is believed.
"""

import errno
import fcntl
import hashlib
import json
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from .errors import DiskError, UsageError
from .text import printable

LOCK = ".lock"  # in the folder; its owner writes who it is
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # of file systems that have none
_held: dict[object, list[int]] = {}  # descriptors of the locks of this process


class Owner(NamedTuple):
    """What the owner of a lock has written into its file."""

    pid: int
    host: str
    since: str


def _release_in_child() -> None:
    """A lock is held as long as any process has its descriptor, and workers outlive a killed run by seconds."""
    for handles in _held.values():
        _close(handles)
    _held.clear()


os.register_at_fork(after_in_child=_release_in_child)


@contextmanager
def hold(folder: Path, shared: bool = False) -> Iterator[None]:
    """Only this process works in `folder`, which is made where it is missing and must not be replaced meanwhile.

    `shared`: beside others that say so too, and nobody who does not (on file systems with locks). Forked children do
    not hold the lock. Raises `UsageError` at once where another process holds it, and `DiskError`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handles = _take(folder, shared)
    except OSError as error:
        raise DiskError(
            f"{printable(folder)} could not be locked ({error.strerror or error})", "work in a folder of your own"
        ) from error
    key = object()
    _held[key] = handles
    try:
        yield
    finally:
        if _held.pop(key, None):  # not in a forked child
            os.ftruncate(handles[0], 0)
            _close(handles)


def is_ours(folder: Path) -> bool:
    """Whether the lock file now in `folder` names this process: not where the folder was deleted or replaced."""
    owner = _read_owner(folder / LOCK)
    return owner is not None and owner[:2] == (os.getpid(), socket.gethostname())


def _take(folder: Path, shared: bool) -> list[int]:
    """Descriptors that hold the lock: of the lock file, and of a file of this host where the first cannot be locked."""
    handles = [_open(folder / LOCK)]
    try:
        free = _flock(handles[0], shared)
        if free is None:
            if not shared:  # or the one named may be another of these
                _refuse_other_host(folder)
            name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()
            handles.append(_open(Path(tempfile.gettempdir(), f"nlzoo-{os.getuid()}-{name}.lock")))
            free = _flock(handles[1], shared)
        if not free:
            raise _in_use(folder, _wait_for_owner(folder / LOCK))
        owner = Owner(os.getpid(), socket.gethostname(), time.strftime("%Y-%m-%d %H:%M:%S"))
        os.ftruncate(handles[0], 0)
        os.pwrite(handles[0], json.dumps(owner._asdict()).encode(), 0)
        return handles
    except BaseException:
        _close(handles)
        raise


def _open(file: Path) -> int:
    return os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)


def _close(handles: list[int]) -> None:
    for handle in handles:
        os.close(handle)


def _flock(handle: int, shared: bool) -> bool | None:
    """True: ours now; False: another process has it; None: this file system has no locks."""
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise


def _wait_for_owner(file: Path) -> Owner | None:
    """The owner, or None. It may be about to write: until then the file is empty or names a process that has ended."""
    for _ in range(60):
        owner = _read_owner(file)
        if owner and (owner.host != socket.gethostname() or _is_alive(owner.pid)):
            return owner
        time.sleep(0.05)
    return None


def _read_owner(file: Path) -> Owner | None:
    try:
        written = json.loads(file.read_bytes())
        return Owner(int(written["pid"]), str(written["host"]), str(written["since"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # of another user
        pass
    return True


def _refuse_other_host(folder: Path) -> None:
    """Raises `UsageError` where another host's process is named, though it may have ended: no lock reaches it here."""
    owner = _read_owner(folder / LOCK)
    if owner and owner.host != socket.gethostname():
        raise _in_use(folder, owner, f"; if it ended long ago, remove {printable(folder / LOCK)}")


def _in_use(folder: Path, owner: Owner | None, more: str = "") -> UsageError:
    who = "another process"
    if owner:
        who = f"process {owner.pid} on {printable(owner.host)} since {printable(owner.since)}"
    return UsageError(
        f"{printable(folder)} is in use by {who}", f"wait for its end, stop it, or use another name{more}"
    )
