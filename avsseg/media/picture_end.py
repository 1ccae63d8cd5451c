"""Where the picture of a video ends, from the list of its frames that ffmpeg makes beside the pictures it gives."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from avsseg.media.ffmpeg import file_url

TICKS_PER_S = 120_000  # all common frame rates, 24000/1001 to 120, divide it
WITHOUT_NUMBERS = os.name == "nt"  # children get no pipes by theirs
PATIENCE_S = 5.0  # with what a wrapper script in place of ffmpeg has started, which may hold the pipe for ever


@dataclass(frozen=True)
class PictureEnd:
    """Where the picture of a video ends, as its decoding showed: the container knows the end of its longest track."""

    time_s: float  # of the last frame's end, on the container's clock
    frames: int | None  # of the whole picture; None where the reading began later than it


@dataclass
class _Listed:
    """What of the lines ``stream, dts, pts, duration, size, checksum`` is needed: how many, and the last one."""

    frames: int = 0
    last: str = ""

    def add(self, lines: Iterable[str]) -> None:
        for line in lines:
            if line[0] != "#":
                self.frames, self.last = self.frames + 1, line


class FrameListing:
    """Takes the list of one ffmpeg, which writes it to `url` as ``framecrc`` with `TICKS_PER_S`.

    A pipe, read as it comes: nothing grows with the video, or is left behind by a process that is killed. Children take
    one by its number, which those on Windows cannot: there it is a file. Raises OSError where neither is to be had.
    """

    def __init__(self) -> None:
        self._listed = _Listed()
        self._thread: threading.Thread | None = None
        self._file: Path | None = None
        self.pass_fds: tuple[int, ...] = ()  # of the child
        if WITHOUT_NUMBERS:
            folder = tempfile.mkdtemp(prefix="avsseg-")
            self._file = Path(folder, "frames")
            self.url = file_url(self._file)
            self._finalizer = weakref.finalize(self, functools.partial(shutil.rmtree, folder, ignore_errors=True))
            return
        reading, writing = os.pipe()
        self.pass_fds = (writing,)
        self.url = f"pipe:{writing}"
        self._finalizer = weakref.finalize(self, functools.partial(os.close, writing))
        self._thread = threading.Thread(target=_read, args=(reading, self._listed), name="avsseg-frames", daemon=True)
        self._thread.start()

    def started(self) -> None:
        """The child that writes has been started, or cannot be: from now on it alone holds the pipe."""
        if self._file is None:
            self._finalizer()

    def end(self, seek_s: float) -> PictureEnd | None:
        """The end of the picture once the child, which began to read at `seek_s`, has ended; None if it listed none."""
        if self._thread is not None:
            self._thread.join(PATIENCE_S)
            if self._thread.is_alive():
                return None
        elif self._file is not None and self._file.is_file():
            with self._file.open(encoding="ascii") as lines:
                self._listed.add(lines)
        if not self._listed.last:
            return None
        _, _, start, duration, *_ = map(str.strip, self._listed.last.split(","))
        end_s = seek_s + (int(start) + int(duration)) / TICKS_PER_S
        return PictureEnd(end_s, None if seek_s else self._listed.frames)

    def close(self) -> None:
        """Leaves nothing behind; may be called twice, once the child has ended."""
        self._finalizer()


def _read(descriptor: int, listed: _Listed) -> None:
    with open(descriptor, encoding="ascii", errors="replace") as lines:
        listed.add(lines)
