"""Every failure that the user can fix, with its exit code.

A library module raises one of these; `cli.app.main` catches `NlzooError` once and prints `error:` and `hint:`.
Anything else is a bug and keeps its traceback.
"""

import os

from .text import printable


class NlzooError(Exception):
    """`message` says what went wrong, where, and what there is instead; `hint` says what to do next."""

    exit_code = 1

    def __init__(self, message: str, hint: str = ""):
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(NlzooError):
    """An option, a name or a combination of them that is not possible."""

    exit_code = 2


class VideoError(NlzooError):
    """A video, or a folder or list of videos, that cannot be used.

    `reason` says what is wrong ("is empty"). `message` is the whole sentence: `path`, where it is given, and `reason`.
    """

    exit_code = 3

    def __init__(self, reason: str, hint: str = "", path: str | os.PathLike | None = None):
        super().__init__(reason if path is None else f"{printable(path)} {reason}", hint)
        self.reason = reason


class WeightsError(NlzooError):
    """Weights or a config that are missing, damaged or do not fit."""

    exit_code = 4


class DiskError(NlzooError):
    """A file or folder that cannot be written, or a full disk."""

    exit_code = 5


class HubError(NlzooError):
    """The Hub refused, or could not be reached."""

    exit_code = 6


class DivergedError(NlzooError):
    """Loss or gradients became NaN or infinite."""

    exit_code = 7


class Stopped(NlzooError):
    """A signal ended the run, and everything is saved. Exit code 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""

    def __init__(self, message: str, hint: str, exit_code: int):
        super().__init__(message, hint)
        self.exit_code = exit_code


class OutOfMemory(NlzooError):
    """Not enough memory, even with one clip a step."""

    exit_code = 8
