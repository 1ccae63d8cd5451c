"""The journal of a folder of results: what was made, from which input, with which settings and model.

It lies in ``OUT/.avsseg/``: JSON lines in one file for each shard, which one process at a time appends to. Readers
merge all of them by time. Every line is one event of one input:

    {"event": "done", "time": 1760000000.0, "input": "/videos/a.mp4", "size": 1234, "mtime_ns": 1760000000000000000,
     "settings": {"rate": 1.0, ...}, "model": "avs-mamba-tiny", "model_sha256": "...", "outputs": {"a.json": 5678}}

"started" comes before the work and "dropped" after work that came to nothing: a result that stands there after a
"started" alone was made by a run that was killed before it could note so, or is the one that it was about to replace.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal

from avsseg.errors import UsageError, printable
from avsseg.pipeline.plan import Shard
from avsseg.writers.base import make_folders, of_the_system, output_errors, remove_empty

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FOLDER = ".avsseg"
SUFFIX = ".jsonl"
_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)

Event = Literal["started", "done", "dropped"]


@dataclass(frozen=True)
class Origin:
    """What a result is made from.

    Attributes:
        input: the absolute path of the video, links resolved.
        size, mtime_ns: its size in bytes and its time of change when the work began.
        settings: the options that decide what the result looks like.
        model, model_sha256: name and hash of the weights; an untrained preset has no hash.
    """

    input: str
    size: int
    mtime_ns: int
    settings: Mapping[str, object]
    model: str
    model_sha256: str


@dataclass(frozen=True)
class Trace:
    """What the journal knows of one output path.

    Attributes:
        made: the origin of the result that was finished there last; None if none was.
        size: its size in bytes; of a folder, that of the files in it.
        begun: the origin of work on it that neither finished nor was dropped; None if there is none.
    """

    made: Origin | None = None
    size: int = 0
    begun: Origin | None = None


History = Mapping[str, Trace]


def journal_key(out: Path, path: Path) -> str:
    """The name that an output path below `out` has in the journal: relative, so that the folder may be moved."""
    return path.relative_to(out).as_posix()


def read_journal(out: Path) -> History:
    """What all journals below `out` say, by output path relative to `out`.

    A torn last line, which a killed process leaves, does not count.

    Raises:
        UsageError: another line is broken, or a journal cannot be read.
    """
    events: list[tuple[float, Event, Origin, dict[str, int]]] = []
    folder = out / FOLDER
    names = sorted(name for name in _names_in(folder) if name.endswith(SUFFIX))
    for name in names:
        events += _events_of(folder / name)
    history: dict[str, Trace] = {}
    for _, event, origin, outputs in sorted(events, key=lambda event: event[0]):
        for key, size in outputs.items():
            trace = history.get(key, Trace())
            if event == "done":
                history[key] = Trace(origin, size)
            else:
                history[key] = Trace(trace.made, trace.size, origin if event == "started" else None)
    return history


class Journal:
    """Appends to the journal of one shard, of which it holds the lock; a context manager. Threads may share it.

    Each line is one write, made to last on disk before the call returns. Leaving it removes the journal again if it is
    new and nothing was finished.

    Raises:
        UsageError: another process works on this shard, or on shards of another number, of the same folder.
        OutputError: the journal cannot be written.
    """

    def __init__(self, out: Path, shard: Shard) -> None:
        self._out = out
        self._path = out / FOLDER / f"{_prefix(shard)}{SUFFIX}"
        self._made_folders: list[Path] = []
        self._begun: list[Path] = []
        self._lock = threading.Lock()
        with output_errors(self._path):
            self._descriptor = self._open()
            try:
                self._refuse_other_shards(shard)
                _mend(self._descriptor)
                self._worthless = os.fstat(self._descriptor).st_size == 0
            except BaseException:
                os.close(self._descriptor)
                raise

    def append(self, event: Event, origin: Origin, outputs: Iterable[Path]) -> None:
        """Notes an event of the outputs; after "done" with their sizes.

        Raises:
            OutputError: the disk refuses; what was there stays whole.
        """
        paths = list(outputs)
        with self._lock, output_errors(self._path):
            sizes = {journal_key(self._out, path): output_size(path) if event == "done" else 0 for path in paths}
            record = {"event": event, "time": time.time(), **asdict(origin), "outputs": sizes}
            line = json.dumps(record).encode("ascii") + b"\n"
            before = os.fstat(self._descriptor).st_size
            written = 0
            try:
                written = os.write(self._descriptor, line)
                if written < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except BaseException:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._descriptor, before)
                raise
            os.fsync(self._descriptor)
            if event == "started":
                self._begun += paths
            elif event == "done":
                self._worthless = False

    def close(self) -> None:
        """Gives the lock back; may be called twice."""
        if self._descriptor < 0:
            return
        if self._worthless and not any(os.path.lexists(path) for path in self._begun):
            with contextlib.suppress(OSError):
                self._path.unlink()
            remove_empty([self._path.parent, *self._made_folders[1:]])
        os.close(self._descriptor)
        self._descriptor = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> int:
        """The journal, locked: a run that ends may remove an empty one between its opening and its locking here."""
        while True:
            self._made_folders = make_folders(self._path.parent) or self._made_folders
            try:
                descriptor = os.open(self._path, _FLAGS, 0o666)
            except FileNotFoundError:
                continue
            try:
                if not _lock(descriptor):
                    raise UsageError(
                        f"{printable(self._out)}: another avsseg run is at work on this folder; "
                        "wait for its end, or choose another --out"
                    )
                if os.path.exists(self._path) and os.path.samestat(os.fstat(descriptor), os.stat(self._path)):
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _refuse_other_shards(self, shard: Shard) -> None:
        """Runs that divide the inputs in another way would work on the same ones."""
        siblings = f"-of-{shard.count}{SUFFIX}"
        for name in _names_in(self._path.parent):
            if not name.endswith(SUFFIX) or name.endswith(siblings):
                continue
            # NFS locks no file that is only read
            with (
                contextlib.suppress(FileNotFoundError, PermissionError),
                (self._path.parent / name).open("r+b") as other,
            ):
                if not _lock(other.fileno()):
                    raise UsageError(
                        f"{printable(self._out)}: another avsseg run, {name.removesuffix(SUFFIX)}, is at work on this "
                        "folder and divides the inputs in another way; wait for its end, or use the same N in --shard"
                    )


def output_size(path: Path) -> int:
    """Bytes of a file, or of the files in a folder of masks; -1 if there is nothing."""
    try:
        if os.path.isdir(path):
            with os.scandir(path) as entries:
                return sum(entry.stat().st_size for entry in entries if not of_the_system(entry.name))
        return os.stat(path).st_size
    except OSError:
        return -1


def _prefix(shard: Shard) -> str:
    return f"shard-{shard.index}-of-{shard.count}"


def _names_in(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UsageError(f"{printable(folder)}: cannot be read: {error.strerror}. Check its permissions") from error


def _events_of(path: Path) -> Iterator[tuple[float, Event, Origin, dict[str, int]]]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"{printable(path)}: cannot be read: {error.strerror}. Check its permissions") from error
    lines = content.split(b"\n")
    latest = 0.0  # of the times so far: a clock that was set back must not turn the order round
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            at, event, origin, outputs = _parse(line)
            latest = max(latest, at)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if number == len(lines):  # no line break after it
                return
            raise UsageError(
                f"{printable(path)}, line {number}: is no line of an avsseg journal ({_why(error)}). Correct it, or "
                "delete it and make its results again with --overwrite"
            ) from error
        yield latest, event, origin, outputs


def _parse(line: bytes) -> tuple[float, Event, Origin, dict[str, int]]:
    record = json.loads(line)
    event = record["event"]
    if event not in ("started", "done", "dropped"):
        raise ValueError(f"unknown event {event!r}")
    if not isinstance(record["settings"], dict):
        raise ValueError("settings are no object")
    origin = Origin(
        str(record["input"]),
        int(record["size"]),
        int(record["mtime_ns"]),
        record["settings"],
        str(record["model"]),
        str(record["model_sha256"]),
    )
    return float(record["time"]), event, origin, {str(key): int(size) for key, size in record["outputs"].items()}


def _why(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"{error.args[0]} is missing"
    return printable(str(error)) or type(error).__name__


def _mend(descriptor: int) -> None:
    """Ends a last line that only lacks its line break, and removes one that is torn."""
    content = b""
    while block := os.read(descriptor, 1 << 20):
        content += block
    rest = content.rpartition(b"\n")[2]
    if not rest:
        return
    try:
        _parse(rest)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        os.ftruncate(descriptor, len(content) - len(rest))
    else:
        os.write(descriptor, b"\n")


def _lock(descriptor: int) -> bool:
    """Locks a file until it is closed or this process ends; False if another process holds it."""
    if fcntl is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks
            return True
    return True
