"""Errors that a user can cause, and the exit code each of them ends with.

    AvssegError            1  something about one input or output
    ├── MediaError         1  a media file cannot be read (missing, damaged, no picture, ...)
    ├── OutputError        1  a result cannot be written (full disk, unwritable folder, ...)
    ├── DataError          1  a dataset folder is incomplete or damaged
    ├── UsageError         2  the command line or an argument is wrong; raised before any work
    └── EnvironmentFault   3  the machine lacks something: ffmpeg, weights, a device
        └── WeightsError   3  weights are missing, damaged, untrained or of another model

Messages say what is wrong, with which file or value, and what to do next, in one line.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class AvssegError(Exception):
    """Base class; the command line prints it as one line and exits with `exit_code`."""

    exit_code = 1


class MediaError(AvssegError):
    """A media file that cannot be used.

    `str(error)` reads ``PATH: REASON. HINT``; line breaks and other control characters in the path are escaped.
    """

    def __init__(self, path: Path | str, reason: str, hint: str = "") -> None:
        self.path = Path(path)
        self.reason = reason
        self.hint = hint
        super().__init__(f"{printable(path)}: {reason}." + (f" {hint}" if hint else ""))

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (self.path, self.reason, self.hint)


class OutputError(AvssegError):
    """A result that cannot be written."""


class DataError(AvssegError):
    """A dataset folder that is incomplete or damaged."""


class UsageError(AvssegError):
    """A wrong command line or argument, found before any work starts."""

    exit_code = 2


class EnvironmentFault(AvssegError):  # noqa: N818 (EnvironmentError is Python's own)
    """Something that this machine lacks."""

    exit_code = 3


class WeightsError(EnvironmentFault):
    """Weights that are missing, damaged, untrained or made for another model."""


def printable(path: Path | str) -> str:
    """The path on one line: control characters and undecodable bytes become backslash escapes."""
    return "".join(
        c
        if c.isprintable()
        else c.encode("utf-8", "surrogateescape").decode("ascii", "backslashreplace")
        if ord(c) > 127
        else c.encode("unicode_escape").decode("ascii")
        for c in str(path)
    )


def first_of(names: Sequence[Path | str], count: int = 3) -> str:
    """The first of the names on one line, and how many more there are."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(map(printable, names[:count])) + more
