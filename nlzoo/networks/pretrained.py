"""The pretrained models that nlzoo knows (`weights/starts.toml`), and how a Kinetics checkpoint is fetched.

The transfer is our own, because `torch.hub.download_url_to_file` and pooch begin again after a break and accept a file
of any size, and the first knows sha256 only, where some zoos publish sha1.
"""

import fcntl
import hashlib
import http.client
import io
import os
import re
import socket
import ssl
import tomllib
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core import files
from ..core.errors import UsageError, WeightsError
from ..core.model_spec import Named, parse_name
from ..core.progress import Progress, no_progress
from ..core.text import nearest, printable
from . import zoo as models
from .patience import Patience

MAX_BYTES = 2 * 2**30  # of a checkpoint; the largest known has 0.3 GB
PIECE = 2**20
TIMEOUT = 30.0  # seconds without a byte, or for the next 10 KiB


@dataclass(frozen=True)
class _Published:
    """A file of weights; its accuracies are of a validation set, in %, as `by` published them."""

    name: str
    url: str
    by: str
    licence: str
    top1: float | None = None
    top5: float | None = None
    hash: str = ""  # "sha256:" or "sha1:" and hex digits, the leading ones at least; "": none was published


@dataclass(frozen=True)
class PretrainedModel(_Published):
    """A Kinetics checkpoint; `nl5-i3d-r50-8x8.authors` is a named net and its zoo."""

    views: str = ""  # that were averaged, where published

    @property
    def net(self) -> Named:
        """Architecture, blocks and clip, as the name says them."""
        named = parse_name(self.name.partition(".")[0])
        assert named, self.name
        return named

    @property
    def by_hand(self) -> str:
        """What takes the file that somebody fetched."""
        return f"nlzoo import {self.url.rpartition('/')[2]}"

    @property
    def zoo(self) -> str:
        """Who trained it: the part of the name behind the dot, its variant left out."""
        return self.name.partition(".")[2].partition("-")[0]


@dataclass(frozen=True)
class PretrainedBackbone(_Published):
    """A 2-D network of ImageNet-1k for `inflate`, by timm's name; of those that come from the Hub there is no hash."""

    @property
    def zoo(self) -> str:
        """Who publishes it."""
        return self.by

    @property
    def by_hand(self) -> str:
        """What takes the file that somebody fetched."""
        return f"nlzoo inflate {self.name.partition('.')[0]} --weights {self.url.rpartition('/')[2]}"


def known() -> list[PretrainedModel]:
    """Kinetics checkpoints, as the list ships. No network is needed."""
    return [PretrainedModel(**entry) for entry in _list()["start"]]


def recommended() -> PretrainedModel:
    """The best start for a user's own videos: `finetune`'s default net, trained on Kinetics, free for any use."""
    fitting = [
        m for m in known() if m.top1 and m.name.startswith("nl5-i3d-r50-8x8.") and "nc" not in m.licence.split("-")
    ]
    return max(fitting, key=lambda m: m.top1 or 0.0)


def backbones() -> list[PretrainedBackbone]:
    """ImageNet networks of the list."""
    return [PretrainedBackbone(**entry) for entry in _list()["backbone"]]


def _list() -> dict[str, list[dict]]:
    return tomllib.loads(models.shipped("starts.toml").read_text(encoding="utf-8"))


def find(name: str) -> PretrainedModel:
    """The pretrained model of that name. Raises `UsageError` with those that come near."""
    listed = {model.name: model for model in known()}
    if name in listed:
        return listed[name]
    folded = name.lower()
    zoo = folded.rpartition(".")[2]
    near = [folded] if folded in listed else [other for other in listed if other.startswith(folded.partition(".")[0])]
    near += [*nearest(name, listed, 6), *(other for other, model in listed.items() if model.zoo == zoo)]
    hint = f"near this: {', '.join(list(dict.fromkeys(near))[:6])}; " if near else ""
    hint += "nlzoo list shows all of them"
    if models.find(name):
        hint = f"{printable(name)} is a model here already, and needs no import"
    raise UsageError(f"there is neither a file nor a pretrained model {printable(name)!r}", hint)


def fetch(model: PretrainedModel | PretrainedBackbone, progress: Progress = no_progress) -> tuple[Path, str]:
    """The checkpoint's file, from the cache or fetched into it, and its sha256.

    A broken transfer is resumed where it stopped. The hash is checked against the published one. Where there is none,
    the first file must be one of weights; its hash is recorded beside it, and every later one must equal that.
    `progress` gets bytes so far and in all. Raises `WeightsError` (cannot be had, or other bytes than expected) and
    `DiskError`.
    """
    file = files.cache_folder() / model.zoo / model.url.rpartition("/")[2]
    part = file.with_name(f"{file.name}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file.with_name(f".{file.name}.lock"), "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # where another process is fetching it, it is there afterwards
            if not file.is_file():
                _transfer(model, part, progress)
                _check(model, part)
                os.replace(part, file)
            return file, _check(model, file)
    except OSError as error:
        raise files.not_written(file, error, "free some room, or set NLZOO_CACHE to another folder") from error


class _Patient(io.RawIOBase):
    """What comes from a socket, but not drop by drop."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self._file, self._patience = sock, sock.makefile("rb", 0), Patience()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        def read(seconds: float) -> int:
            self._sock.settimeout(seconds)
            return self._file.readinto(buffer) or 0

        return self._patience.read(TIMEOUT, read)

    def close(self) -> None:
        self._file.close()
        super().close()


class _Answer(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp.close()
        self.fp = io.BufferedReader(_Patient(sock))


class _Patiently(urllib.request.HTTPSHandler, urllib.request.HTTPHandler):
    """Both schemes; what answers is an `_Answer`."""

    def do_open(self, http_class: Any, *args: Any, **options: Any) -> http.client.HTTPResponse:
        patient: Any = type("Patient", (http_class,), {"response_class": _Answer})
        return super().do_open(patient, *args, **options)


# of a transfer; ValueError: a length that is no number
_FAILURES = (
    urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError, ValueError
)  # fmt: skip


def _transfer(model: PretrainedModel | PretrainedBackbone, part: Path, progress: Progress) -> None:
    """The rest of the file at `part`."""
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(model.url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.build_opener(_Patiently).open(request, timeout=TIMEOUT) as answer:
            have = have if answer.status == 206 else 0  # a server may send all of it again
            total = have + int(answer.headers.get("Content-Length") or 0)
            if not have < total <= MAX_BYTES:
                raise WeightsError(f"{model.url} has {total} bytes; a checkpoint has 1 to {MAX_BYTES}", _by_hand(model))
            with open(part, "ab" if have else "wb") as file:
                while have <= total:
                    piece = answer.read(PIECE)
                    if not piece:
                        break
                    file.write(piece)
                    have += len(piece)
                    progress(have, total)
                file.flush()
                os.fsync(file.fileno())
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is left to send: it was cut between the last byte and its check
            return
        raise WeightsError(f"{model.url} could not be fetched (HTTP {error.code})", _by_hand(model)) from None
    except _FAILURES as error:
        reason = printable(str(getattr(error, "reason", error)) or type(error).__name__)
        raise WeightsError(f"{model.url} could not be fetched ({reason})", _by_hand(model)) from None
    if have != total:
        raise WeightsError(
            f"{model.url} stopped after {have} of {total} bytes", "the same command resumes the transfer there"
        )


def _by_hand(model: PretrainedModel | PretrainedBackbone) -> str:
    return f"fetch it on a machine with a network, then: {model.by_hand}"


def _check(model: PretrainedModel | PretrainedBackbone, file: Path) -> str:
    """sha256 of the file, which is removed when it is not what was published or recorded, or no weights file."""
    sha256 = files.sha256(file)
    record = file.with_name(file.name.removesuffix(".part") + ".sha256")
    text = record.read_bytes().strip().decode("ascii", "replace") if record.is_file() else ""
    recorded = text if re.fullmatch("[0-9a-f]{64}", text) else ""
    kind, _, expected = (model.hash or f"sha256:{recorded}").partition(":")
    digest = sha256
    if kind == "sha1":
        with open(file, "rb") as opened:
            digest = hashlib.file_digest(opened, "sha1").hexdigest()
    if not digest.startswith(expected):
        file.unlink()
        raise WeightsError(
            f"{file.name} is not the file that was {'published' if model.hash else 'fetched before'}: "
            f"{kind} {digest[:16]}…, not {expected[:16]}…",
            "fetch it again; the wrong one is removed"
            + ("" if model.hash else f"; if they published another file, remove {printable(record)} too"),
        )
    if not expected:
        _check_content(model, file)
    if not recorded:
        files.write_text(record, sha256 + "\n")
    return sha256


def _check_content(model: PretrainedModel | PretrainedBackbone, file: Path) -> None:
    """A page to sign in on is no checkpoint, and its hash must not become the one to keep to."""
    from .foreign import read_weights  # imports torch, which `nlzoo list` does without

    try:
        read_weights(file)
    except WeightsError as error:
        file.unlink()
        raise WeightsError(f"{model.url} gave no weights: {error.message}", _by_hand(model)) from None
