"""Every failure that is the user's to mend, with its exit code.

A library module raises one of these; `cli.main` catches `NlzooError` once and prints `error:` and `hint:`.
Anything else is a bug and keeps its traceback.
"""

import os

from .text import printable


class NlzooError(Exception):
    """What went wrong, where, what there is instead (`message`), and what to do next (`hint`)."""

    exit_code = 1

    def __init__(self, message: str, hint: str = ""):
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(NlzooError):
    """A flag, a name or a combination of them that cannot be."""

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
    """A folder that cannot be written, or no room left."""

    exit_code = 5


class HubError(NlzooError):
    """The Hub refused, or could not be reached."""

    exit_code = 6


class DivergedError(NlzooError):
    """Loss or gradients became NaN or infinite."""

    exit_code = 7


class Stopped(NlzooError):
    """A signal ended the run, and all is saved: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""

    def __init__(self, message: str, hint: str, exit_code: int):
        super().__init__(message, hint)
        self.exit_code = exit_code


class OutOfMemory(NlzooError):
    """Out of memory even with one clip per step."""

    exit_code = 8
