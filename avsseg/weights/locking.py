"""A lock that one process, and one thread of it, holds at a time."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from avsseg.writers.base import output_errors

POLL_S = 0.1
# file systems without locks, as some network ones: better two downloads than none
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


if sys.platform == "win32":
    import msvcrt

    def _try_lock(file: IO[bytes]) -> bool:
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try_lock(file: IO[bytes]) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno in _NO_LOCKS
        return True


@contextlib.contextmanager
def exclusive(target: Path, *, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Holds the lock of `target`, a file ``TARGET.lock`` beside it that is gone afterwards.

    Waits for as long as another holds it, and calls `on_wait` once if so. A killed process lets go of it.
    Raises OutputError if the lock file cannot be made.
    """
    path = target.with_name(target.name + ".lock")
    waited = False
    while True:
        with output_errors(target):
            file = path.open("ab")
        with file:
            locked = _try_lock(file)
            if locked and _still_named(file, path):
                try:
                    yield
                finally:
                    if sys.platform == "win32":
                        file.close()  # Windows does not remove open files
                    with contextlib.suppress(OSError):  # Windows: another has it open already
                        path.unlink()
                return
        if not locked:
            if not waited and on_wait is not None:
                on_wait()
            waited = True
            time.sleep(POLL_S)


def _still_named(file: IO[bytes], path: Path) -> bool:
    """Whether the locked file is still the one of that name; its last holder may have removed it meanwhile."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
