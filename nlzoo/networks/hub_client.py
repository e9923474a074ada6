"""One way to ask the Hugging Face Hub: one retry policy, one table of failures, one reading of what a repository holds.

Unusual: the client (1.x, 2.x) has retries of its own, and may raise anything for an answer of another shape. So every
request of ours passes two hooks, which bound its tries and its waiting, and every failure inside `ask` becomes
an error of ours. What is being waited for is logged, as `nlzoo`.
"""

import errno
import hashlib
import io
import json
import logging
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import huggingface_hub
from huggingface_hub import errors as theirs
from huggingface_hub.utils import disable_progress_bars, get_session, hf_raise_for_status

from ..core.errors import DiskError, HubError, NlzooError
from ..core.text import printable
from .patience import Patience

TIMEOUT = 25.0  # seconds without a byte, or for the first 10 KiB of an answer, or for the next
WAITS = (1.0, 2.0, 4.0)  # seconds before the second, third and fourth try: a silent Hub is given up after 107 s
RETRIED = (408, 429, 500, 502, 503, 504)  # statuses after which the same request may work in a moment

MAIN = "main"  # the branch of the Hub's that needs no name
LOGIN = "hf auth login, or set HF_TOKEN; tokens are made at https://huggingface.co/settings/tokens"
_LATER = "try again in a few minutes; what had arrived is not sent twice"
_BETWEEN = "something in between may have answered instead, such as a proxy or a login page; or it is no Hub at all"
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM, errno.EIO)
_SAFE = {"etag": r'(W/)?"?[\w\-:+=]*"?', "x-linked-etag": r'(W/)?"?[\w\-:+=]*"?', "x-repo-commit": r"[0-9a-f]{40}"}

# The client speaks HTTP through httpx (1.x) or httpx2 (2.x); this is the base of its connection failures either way.
_Transport = next(c for c in theirs.HfHubHTTPError.__mro__ if c.__name__ == "HTTPError")
_log = logging.getLogger("nlzoo")
T = TypeVar("T")


class Unreachable(HubError):
    """The Hub did not answer, what answered is no Hub, or offline mode forbids asking."""


@dataclass(frozen=True)
class Repo:
    """A repository; `str` of it goes into messages."""

    name: str  # user/name
    kind: str = "model"  # or "space", "dataset": one of each may have the same name
    branch: str = MAIN  # that a push writes to
    library: str = "nlzoo"  # that a model is for; or "transformers"

    def __str__(self) -> str:
        return {"model": "", "space": "the Space ", "dataset": "the dataset "}[self.kind] + self.name

    @property
    def url(self) -> str:
        folder = "" if self.kind == "model" else f"{self.kind}s/"
        return f"{huggingface_hub.constants.ENDPOINT}/{folder}{self.name}"


@dataclass(frozen=True)
class RemoteFile:
    """A file as the Hub lists it; one of the hashes is there, in hex."""

    size: int  # bytes
    sha256: str  # of a file in LFS
    blob: str  # git's hash of any other

    def is_same(self, content: Path | bytes) -> bool:
        """Whether a file on this machine, or these bytes, are what the Hub lists. Of another size, nothing is read."""
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        if size != self.size:
            return False
        with open(content, "rb") if isinstance(content, Path) else io.BytesIO(content) as opened:
            start = hashlib.sha256 if self.sha256 else lambda: hashlib.sha1(b"blob %d\0" % size)
            return hashlib.file_digest(opened, start).hexdigest() == (self.sha256 or self.blob)


@dataclass(frozen=True)
class RepoState:
    """A repository at one commit."""

    commit: str
    private: bool
    files: dict[str, RemoteFile]  # by name
    library: str  # that a model is of; "" where it says none
    tags: tuple[str, ...]


# --- asking


class _Request:
    """The request to the Hub that is under way: how often each of its parts was tried, and what it is about."""

    def __init__(self) -> None:
        self.about, self.tries, self.timeout, self.failure = "", Counter[tuple[str, str, str]](), 0.0, ""


_request = (
    _Request()
)  # one at a time; `about` is empty outside of `ask`, where the hooks leave other users' requests alone


def _before(request: Any) -> None:
    """Every request: it waits no longer than ours do, and is made no more often."""
    if not _request.about:
        return
    key = (request.method, str(request.url), request.headers.get("range", ""))  # a part of a file is progress
    _request.tries[key] += 1
    tries, most_tries = _request.tries[key], len(WAITS) + 1
    problem = f"the Hub does not answer about {_request.about} ({_request.failure or 'no reply'})"
    if tries > most_tries:
        raise Unreachable(problem, _LATER)
    if tries > 1:
        _log.warning("%s; try %d of %d", problem, tries, most_tries)
    most_seconds = dict.fromkeys(("read", "write", "pool"), _request.timeout) | {"connect": min(_request.timeout, 10.0)}
    own = request.extensions.get("timeout") or {}
    request.extensions["timeout"] = {kind: min(own.get(kind) or most, most) for kind, most in most_seconds.items()}
    request.extensions["trace"] = _on_event


def _on_event(event: str, values: dict[str, Any]) -> None:
    """Every connection that is made: what comes from it drop by drop is not waited for for ever."""
    if not event.endswith((".connect_tcp.complete", ".start_tls.complete")):
        return
    stream, patience = values["return_value"], Patience()
    read, write = stream.read, stream.write

    def read_patiently(most: int, timeout: float | None = None) -> bytes:
        if not _request.about:
            return read(most, timeout)
        return patience.read(timeout or _request.timeout, lambda seconds: read(most, seconds))

    def write_anew(content: bytes, timeout: float | None = None) -> None:
        patience.renew()
        write(content, timeout)

    stream.read, stream.write = read_patiently, write_anew


def _after(response: Any) -> None:
    """Every response: what failed for the moment is raised, so that the client does not retry by rules of its own.

    Headers from which the client makes names of files are checked.
    """
    if not _request.about:
        return
    if response.status_code in RETRIED:
        _request.failure = f"status {response.status_code}"
        response.read()
        hf_raise_for_status(response)
    for name, pattern in _SAFE.items() if response.request.method == "HEAD" else ():
        if not re.fullmatch(pattern, response.headers.get(name, "0" * 40)):
            raise Unreachable(f"the answer about {_request.about} has an impossible {name}", _BETWEEN)


def ask(about: object, call: Callable[[], T], tries: int = 0, timeout: float = 0.0) -> T:
    """What `call` gets from the Hub, tried up to four times (or `tries`) while the failure may pass.

    `timeout`: seconds without a byte, instead of `TIMEOUT`. Raises `HubError` or `DiskError` for whatever failed.
    """
    if not re.fullmatch(r"[!-~]*", huggingface_hub.get_token() or ""):
        raise HubError("the Hub's token of this machine holds a character that no token has", LOGIN)
    most = tries or len(WAITS) + 1
    _request.about, _request.timeout, _request.failure = printable(str(about)), timeout or TIMEOUT, ""
    _request.tries.clear()
    try:
        for wait in (*WAITS[: most - 1], None):
            _add_hooks()
            try:
                return call()
            except NlzooError:
                raise
            except Exception as error:  # noqa: BLE001 the client raises anything where an answer has another shape
                failure = _unwrap(error)
            offline = type(failure).__name__ in ("ConnectError", "ConnectTimeout")  # no use to wait
            if wait is None or offline or not may_pass(failure):
                raise_ours(failure, about)
            _request.failure = _request.failure or type(failure).__name__  # such as ReadTimeout
            time.sleep(wait)
    finally:
        _request.about = ""
    raise AssertionError("the last try returns or raises")


def _add_hooks() -> None:
    hooks = get_session().event_hooks  # of a session that the client may have made anew
    for kind, hook in (("request", _before), ("response", _after)):
        if hook not in hooks[kind]:
            hooks[kind].append(hook)


def client() -> "huggingface_hub.HfApi":  # quoted: it imports all of the client
    """The client, to be used inside `ask`. Its bars are for people, of whom there are none without a terminal."""
    if not sys.stderr.isatty() and huggingface_hub.constants.HF_HUB_DISABLE_PROGRESS_BARS is None:
        disable_progress_bars()
    logging.getLogger("huggingface_hub.utils._http").setLevel(logging.ERROR)  # says what `_before` says
    return huggingface_hub.HfApi(library_name="nlzoo")


def repo_state(repo: Repo, revision: str | None = None, names: tuple[str, ...] | None = ()) -> RepoState:
    """The repository at `revision`, or at its newest commit, with those of the files `names` that are there.

    `names` None: with all its files.
    """
    return ask(repo if revision is None else f"{repo}@{revision}", lambda: _repo_state(repo, revision, names))


def _repo_state(repo: Repo, revision: str | None, names: tuple[str, ...] | None) -> RepoState:
    info: Any = client().repo_info(repo.name, repo_type=repo.kind, revision=revision, files_metadata=True)
    there = [s for s in info.siblings or () if names is None or s.rfilename in names]
    files = {s.rfilename: RemoteFile(s.size, s.lfs["sha256"] if s.lfs else "", s.blob_id) for s in there}
    for name, file in files.items():
        if type(file.size) is not int or not re.fullmatch(r"[0-9a-f]{64}|[0-9a-f]{40}", file.sha256 or file.blob):
            raise ValueError(f"{name} has no size or no hash")
    if not re.fullmatch(r"[0-9a-f]{40}", info.sha) or type(info.private) is not bool:
        raise ValueError("no commit, or not whether it is private")
    tags = getattr(info.card_data, "tags", None)
    library = getattr(info, "library_name", None)
    return RepoState(info.sha, info.private, files, library or "", tuple(tags) if isinstance(tags, list) else ())


def has_token() -> bool:
    """Whether this machine holds a Hub token (HF_TOKEN or `hf auth login`); it may still be a wrong one."""
    return huggingface_hub.get_token() is not None


def whoami(timeout: float = 0.0) -> str:
    """The user's name on the Hub. `timeout` seconds: one try, for those who only want to know."""
    return ask("the login", _whoami, 1 if timeout else 0, timeout)


def _whoami() -> str:
    name = client().whoami()["name"]
    if not isinstance(name, str):
        raise ValueError("a name that is no text")
    return name


def cache_folder() -> Path:
    """Where the client keeps what it fetched."""
    return Path(huggingface_hub.constants.HF_HUB_CACHE)


# --- failures


def _unwrap(error: Exception) -> Exception:
    """The failure inside the client's own wrappers ("not in the cache either", "error while uploading")."""
    wrappers = (theirs.LocalEntryNotFoundError, RuntimeError, ValueError)
    while isinstance(error, wrappers) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def status(error: BaseException | None) -> int | None:
    """The HTTP status in a failure of the client."""
    return error.response.status_code if isinstance(error, theirs.HfHubHTTPError) else None


def may_pass(error: Exception) -> bool:
    """Whether the same request may work in a moment."""
    if status(error) is not None:
        return status(error) in RETRIED
    if isinstance(error, theirs.OfflineModeIsEnabled):
        return False
    # a proxy's error page where JSON was expected counts as a broken connection
    return isinstance(error, (_Transport, ConnectionError, TimeoutError, json.JSONDecodeError))


# The client's failures, first match wins: class or HTTP status, our kind, message, hint. {reply} is the Hub's own.
_Row = tuple[type[Exception] | tuple[type[Exception], ...] | int, type[HubError], str, str]
_TABLE: tuple[_Row, ...] = (
    (
        theirs.OfflineModeIsEnabled,
        Unreachable,
        "the Hub was not asked for {repo}: offline mode is on",
        "unset HF_HUB_OFFLINE, or give a model folder that is on this machine",
    ),
    (theirs.LocalTokenNotFoundError, HubError, "this machine is not logged in to the Hub", LOGIN),
    (theirs.HFValidationError, HubError, "{repo!r} is not a name for a model on the Hub", "it has the form user/name"),
    (
        theirs.GatedRepoError,
        HubError,
        "{repo} is only for those its author lets in ({reply})",
        "ask for access on its page on the Hub, then: hf auth login",
    ),
    (theirs.DisabledRepoError, HubError, "{repo} was disabled on the Hub ({reply})", ""),
    (
        theirs.RepositoryNotFoundError,
        HubError,
        "{repo} is not on the Hub, or it is private and hidden from you",
        "check the spelling; for a private model: hf auth login, or set HF_TOKEN",
    ),
    (theirs.RevisionNotFoundError, HubError, "there is no such revision: {repo}", "the newest needs none"),
    (theirs.RemoteEntryNotFoundError, HubError, "a file of {repo} is not on the Hub ({reply})", "push the model again"),
    (401, HubError, "the Hub did not accept the login ({reply})", LOGIN),
    (403, HubError, "the Hub did not allow this for {repo} ({reply})", "take a token that may {do} there: " + LOGIN),
    (409, HubError, "{repo} is in another state than expected ({reply})", "look at it on the Hub, then try again"),
    (412, HubError, "{repo} has changed meanwhile ({reply})", "see what is new there, then try again"),
    (429, HubError, "the Hub asks for patience ({reply})", _LATER),
    *((code, Unreachable, "the Hub has a problem of its own: {reply}", _LATER) for code in (408, 500, 502, 503, 504)),
    (theirs.HfHubHTTPError, HubError, "the Hub refused the request for {repo} ({reply})", ""),
    (
        (_Transport, ConnectionError, TimeoutError),
        Unreachable,
        "the Hub could not be reached ({reply})",
        "check the connection, then try again; a model folder on this machine needs none",
    ),
    (Exception, Unreachable, "the Hub's answer about {repo} was not understood ({reply})", _BETWEEN),
)


def raise_ours(error: Exception, repo: object) -> NoReturn:
    """The one translation: our error for the client's."""
    if isinstance(error, OSError) and (error.errno in _DISK or error.filename):
        raise DiskError(
            f"{printable(error.filename or str(cache_folder()))} could not be read or written: {error.strerror}",
            "free some room, or set HF_HOME, the Hub's cache, to another folder",
        ) from error
    words = str(getattr(error, "server_message", None) or error).strip().partition("\n")[0]
    reply = printable(words[:300] or type(error).__name__)
    code = status(error)
    reads = isinstance(error, theirs.HfHubHTTPError) and error.response.request.method in ("GET", "HEAD")
    do = "read" if reads else "write"
    for kind, ours, message, hint in _TABLE:
        if code == kind if isinstance(kind, int) else isinstance(error, kind):
            raise ours(message.format(repo=printable(str(repo)), reply=reply), hint.format(do=do)) from error
    raise error
