"""What pushing and pulling share of the Hugging Face Hub's client: one way to ask, one table of its failures.

Clients 1.x and 2.x.
"""

import errno
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors as theirs
from huggingface_hub.utils import disable_progress_bars, get_session

from ..core.errors import DiskError, HubError

FILES = (
    "model.safetensors",
    "config.json",
    "README.md",
    "metrics.json",
)  # of a model: all that is ever pushed or pulled
NEEDED = FILES[:2]
WAITS = (1.0, 2.0, 4.0)  # seconds before the second, third and fourth try
TIMEOUT = 60.0  # seconds without a byte; the client's own default is to wait for ever
MOST_TEXT = 16 << 20  # bytes of config.json, README.md or metrics.json

# The client speaks HTTP through httpx (1.x) or httpx2 (2.x); this is the base of its connection failures either way.
_Transport = next(c for c in theirs.HfHubHTTPError.__mro__ if c.__name__ == "HTTPError")
FAILURES = (_Transport, OSError, RuntimeError, ValueError)  # what the client raises for reasons outside our code


class Unreachable(HubError):
    """The Hub did not answer, or offline mode forbids asking."""


@dataclass(frozen=True)
class Repo:
    name: str  # user/name
    kind: str = "model"  # or "space": a model and a Space may have the same name

    def __str__(self):
        return self.name if self.kind == "model" else f"the Space {self.name}"

    @property
    def url(self):
        return f"{huggingface_hub.constants.ENDPOINT}/{'spaces/' if self.kind == 'space' else ''}{self.name}"


def repo_info(repo, revision=None):
    return api().repo_info(
        repo.name, repo_type=repo.kind, revision=revision, files_metadata=True, timeout=limit_waiting()
    )


# --- login, and the client itself


def has_token() -> bool:
    """Whether this machine holds a Hub token (HF_TOKEN or `hf auth login`); it may still be a wrong one."""
    return huggingface_hub.get_token() is not None


def whoami(timeout: float | None = None) -> str:
    """The user's name on the Hub. `timeout` seconds: one try, for those who only want to know."""
    if timeout is None:
        return patiently("the login", lambda: api().whoami())["name"]
    try:
        limit_waiting(timeout)
        return api().whoami()["name"]
    except FAILURES as error:
        raise_ours(root(error), "the login")


def cache_folder() -> Path:
    """Where the client keeps what it fetched."""
    return Path(huggingface_hub.constants.HF_HUB_CACHE)


def api():
    return huggingface_hub.HfApi(library_name="nlzoo")


def limit_waiting(seconds=None):
    session = get_session()
    session.timeout = type(session.timeout)(seconds or TIMEOUT, connect=min(seconds or TIMEOUT, 10.0))
    return session.timeout


def quiet_without_terminal():
    """The client's progress bars are for people; it writes them to stderr even where nobody watches."""
    if not sys.stderr.isatty() and huggingface_hub.constants.HF_HUB_DISABLE_PROGRESS_BARS is None:
        disable_progress_bars()


# --- failures


def patiently(repo, call):
    """`call()`, up to four times while the failure may pass. Raises what `raise_ours` makes of the last one."""
    for wait in (*WAITS, None):
        try:
            limit_waiting()
            return call()
        except FAILURES as error:
            problem = root(error)
        nobody = type(problem).__name__ in ("ConnectError", "ConnectTimeout")  # offline: no use to wait
        if wait is None or nobody or not passing(problem):
            raise_ours(problem, repo)
        time.sleep(wait)


def root(error):
    """The failure inside the client's own wrappers ("not in the cache either", "error while uploading")."""
    while isinstance(error, (theirs.LocalEntryNotFoundError, RuntimeError)) and error.__cause__ is not None:
        error = error.__cause__
    return error


def status(error):
    return error.response.status_code if isinstance(error, theirs.HfHubHTTPError) else None


def passing(error):
    """Whether the same request may work in a moment."""
    if isinstance(error, theirs.HfHubHTTPError):
        return status(error) in (408, 429, 500, 502, 503, 504)
    if isinstance(error, theirs.OfflineModeIsEnabled):
        return False
    # a proxy's error page where JSON was expected counts as a broken connection
    return isinstance(error, (_Transport, ConnectionError, TimeoutError, json.JSONDecodeError))


_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM, errno.EIO)
LOGIN = "hf auth login, or set HF_TOKEN; tokens are made at https://huggingface.co/settings/tokens"
_LATER = "try again in a few minutes; what had arrived is not sent twice"

_OWN = "the Hub has a problem of its own: {said}"

# The client's failures, first match wins: class or HTTP status, our kind, message, hint. {said} is the Hub's own words.
_TABLE = (
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
        "{repo} is only for those its author lets in ({said})",
        "ask for access on its page on the Hub, then: hf auth login",
    ),
    (theirs.DisabledRepoError, HubError, "{repo} was disabled on the Hub ({said})", ""),
    (
        theirs.RepositoryNotFoundError,
        HubError,
        "{repo} is not on the Hub, or it is private and hidden from you",
        "check the spelling; for a private model: hf auth login, or set HF_TOKEN",
    ),
    (theirs.RevisionNotFoundError, HubError, "there is no such revision: {repo}", "the newest needs none"),
    (theirs.RemoteEntryNotFoundError, HubError, "a file of {repo} is not on the Hub ({said})", "push the model again"),
    (401, HubError, "the Hub did not accept the login ({said})", LOGIN),
    (
        403,
        HubError,
        "the Hub did not allow this for {repo} ({said})",
        "take a token that may write there: https://huggingface.co/settings/tokens",
    ),
    (409, HubError, "{repo} is in another state than expected ({said})", "look at it on the Hub, then try again"),
    (412, HubError, "{repo} has changed meanwhile ({said})", "see what is new there, then try again"),
    (429, HubError, "the Hub asks for patience ({said})", _LATER),
    *((status, Unreachable, _OWN, _LATER) for status in (408, 500, 502, 503, 504)),
    (theirs.HfHubHTTPError, HubError, "the Hub refused the request for {repo} ({said})", ""),
    (
        theirs.LocalEntryNotFoundError,
        Unreachable,
        "{repo} is not on this machine and the Hub could not be reached",
        "check the connection, then try again",
    ),
    (
        (_Transport, ConnectionError, TimeoutError),
        Unreachable,
        "the Hub could not be reached ({said})",
        "check the connection, then try again; a model folder on this machine needs none",
    ),
    (
        json.JSONDecodeError,
        Unreachable,
        "the Hub's answer was not understood ({said})",
        "something in between may have answered instead, such as a proxy or a login page",
    ),
    ((RuntimeError, ValueError), HubError, "the Hub's client gave up on {repo} ({said})", _LATER),
)


def raise_ours(error, repo):
    """The one translation: our error for the client's; what is not in the table is a bug and raised as it is."""
    if isinstance(error, OSError) and (error.errno in _DISK or error.filename):
        raise DiskError(
            f"{error.filename or cache_folder()} could not be read or written: {error.strerror}",
            "free some room, or set HF_HOME, the Hub's cache, to another folder",
        ) from error
    said = " ".join(str(getattr(error, "server_message", None) or error).split())[:300] or type(error).__name__
    for kind, ours, message, hint in _TABLE:
        if status(error) == kind if isinstance(kind, int) else isinstance(error, kind):
            raise ours(message.format(repo=str(repo), said=said), hint) from error
    raise error
