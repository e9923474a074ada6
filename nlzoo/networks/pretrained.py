"""The starts that nlzoo knows (`weights/starts.toml`), and how a Kinetics checkpoint is fetched: resumed, size and hash checked."""

import hashlib
import os
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import DiskError, UsageError, WeightsError
from ..core.model_spec import Named, parse_name

MOST_BYTES = 2 * 2**30  # of a checkpoint; the largest known has 0.3 GB
PIECE = 2**20
TIMEOUT = 30.0  # seconds without a byte


@dataclass(frozen=True)
class Start:
    """One entry of the list. Accuracies are of Kinetics-400's validation set, in %, as `by` published them."""

    name: str  # nl5-i3d-r50-8x8.authors: a named net and its zoo
    url: str
    by: str
    licence: str
    top1: float | None = None
    top5: float | None = None
    views: str = ""  # that were averaged, where published
    hash: str = ""  # "sha256:" or "sha1:" and hex digits, the leading ones at least; "": none was published

    @property
    def net(self) -> Named:
        """Architecture, blocks and clip, as the name says them."""
        return parse_name(self.name.partition(".")[0])

    @property
    def zoo(self) -> str:
        """Who trained it: the part of the name behind the dot, its variant left out."""
        return self.name.partition(".")[2].partition("-")[0]


@dataclass(frozen=True)
class Backbone:
    """A 2-D network for `inflate`, of which timm has more. Accuracies are of ImageNet-1k's validation set, in %."""

    name: str  # timm's, with its tag
    url: str
    by: str
    licence: str
    top1: float
    top5: float | None = None


def known() -> list[Start]:
    """Kinetics checkpoints, as the list ships. No network is needed."""
    return [Start(**entry) for entry in _list()["start"]]


def backbones() -> list[Backbone]:
    """ImageNet networks of the list."""
    return [Backbone(**entry) for entry in _list()["backbone"]]


def _list():
    package = Path(__file__).resolve().parents[1]
    file = next(f for f in (package / "_weights/starts.toml", package.parent / "weights/starts.toml") if f.is_file())
    return tomllib.loads(file.read_text(encoding="utf-8"))


def find(name: str) -> Start:
    """The start of that name. Raises `UsageError` with those that come near."""
    listed = known()
    if found := [s for s in listed if s.name == name]:
        return found[0]
    near = [s.name for s in listed if s.name.startswith(name.partition(".")[0]) or s.zoo == name.rpartition(".")[2]]
    raise UsageError(
        f"there is neither a file nor a known start {name!r}",
        f"nlzoo list shows them; near this: {', '.join(near[:6])}" if near else "nlzoo list shows the known starts",
    )


def cache_folder() -> Path:
    """Where fetched checkpoints are kept: `$XDG_CACHE_HOME/nlzoo` or `~/.cache/nlzoo`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nlzoo"


def fetch(start: Start, progress: Callable[[int, int], None] = lambda done, total: None) -> tuple[Path, str]:
    """The checkpoint's file, from the cache or fetched into it, and its sha256.

    A broken transfer goes on where it stopped. The hash is checked against the published one, or where there is none
    against that of the first time, which is recorded beside the file. `progress` gets bytes so far and in all.
    Raises `WeightsError` (cannot be had, or other bytes than expected), `DiskError`.
    """
    file = cache_folder() / start.zoo / start.url.rpartition("/")[2]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.is_file():
            part = file.with_name(file.name + ".part")
            _transfer(start, part, progress)
            _check(start, part)
            os.replace(part, file)
        return file, _check(start, file)
    except OSError as error:
        raise DiskError(
            f"{file} could not be written ({error.strerror or error})", "free some room, or set XDG_CACHE_HOME"
        ) from error


def _transfer(start, part, progress):
    """The rest of the file at `part`."""
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(start.url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            have = have if answer.status == 206 else 0  # a server may send all of it again
            total = have + int(answer.headers.get("Content-Length") or 0)
            if not have < total <= MOST_BYTES:
                raise WeightsError(
                    f"{start.url} has {total} bytes; a checkpoint has 1 to {MOST_BYTES}", _by_hand(start)
                )
            with open(part, "ab" if have else "wb") as file:
                while piece := answer.read(PIECE):
                    file.write(piece)
                    have += len(piece)
                    progress(have, total)
                    if have > total:
                        break
                file.flush()
                os.fsync(file.fileno())
    except urllib.error.HTTPError as error:
        if (
            error.code == 416 and have
        ):  # nothing is left to send: a former run was cut between the last byte and its check
            return
        raise WeightsError(f"{start.url} could not be fetched (HTTP {error.code})", _by_hand(start)) from None
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise WeightsError(
            f"{start.url} could not be fetched ({getattr(error, 'reason', error)})", _by_hand(start)
        ) from None
    if have != total:
        raise WeightsError(f"{start.url} stopped after {have} of {total} bytes", "the same command goes on from there")


def _by_hand(start):
    return f"fetch it on a machine with a network, then: nlzoo import {start.url.rpartition('/')[2]}"


def _check(start, file):
    """sha256 of the file, which is removed when it is not what was published or recorded."""
    digests = {kind: hashlib.new(kind) for kind in ("sha256", "sha1")}
    with open(file, "rb") as f:
        while piece := f.read(PIECE):
            for digest in digests.values():
                digest.update(piece)
    found = digests["sha256"].hexdigest()
    record = file.with_name(file.name.removesuffix(".part") + ".sha256")
    kind, _, expected = (start.hash or f"sha256:{record.read_text().strip() if record.is_file() else ''}").partition(
        ":"
    )
    if not digests[kind].hexdigest().startswith(expected):
        file.unlink()
        raise WeightsError(
            f"{file.name} is not the file that was {'published' if start.hash else 'fetched before'}: "
            f"{kind} {digests[kind].hexdigest()[:16]}…, not {expected[:16]}…",
            "fetch it again; the wrong one is removed",
        )
    if not record.is_file():
        record.write_text(found + "\n")
    return found
