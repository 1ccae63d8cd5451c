"""What every writer shares: the protocol, the settings it records, and results that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol

from avsseg.errors import OutputError, printable

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from avsseg.media.picture_end import PictureEnd
    from avsseg.media.probe import VideoInfo
    from avsseg.pipeline.segment import Mask

FULL = (errno.ENOSPC, errno.EDQUOT)
PARTIAL_SUFFIX = ".partial"
LONGEST_NAME = 255  # bytes, on all common file systems
# of a sound's class, above which what is marked is called by it
NAME_PROBABILITY = 0.7
MASK_FOLDER_MARK = "masks.json"  # the file by which a folder of masks written earlier is known


@dataclass(frozen=True)
class TrackSettings:
    """How a mask track was made; every result that can hold text stores it.

    Attributes:
        model, model_sha256, trained: name and hash of the weights, and whether they were ever trained.
        categories: one name for each class of the model; a model with several classes starts with its background.
        heard: the classes of sound that the model tells apart, "" for one without a name to give.
        rate: masks a second.
        size: side in pixels of the square the model saw.
        window, overlap: masks the model saw at once, and those shared by neighbouring windows.
        start_s, end_s: the segmented part in seconds; None is the end of the video.
        audio_track: the one that was asked for, from 1; None is the one that players play.
        precision: "fp32", "bf16" or "fp16".
        threshold: probability above which a pixel sounds; for a model with one class.
        avsseg_version: version of this package.
    """

    model: str
    model_sha256: str
    trained: bool
    categories: tuple[str, ...]
    rate: float
    size: int
    window: int
    overlap: int
    start_s: float
    end_s: float | None
    precision: str
    threshold: float
    avsseg_version: str
    heard: tuple[str, ...] = ()
    audio_track: int | None = None

    def as_json(self) -> dict[str, object]:
        return asdict(self)

    def foreground(self) -> dict[int, str]:
        """Label value -> category name, background left out: {1: "sounding"} for a model with one class."""
        first = 0 if len(self.categories) == 1 else 1
        return dict(enumerate(self.categories[first:], start=1))

    def named(self) -> dict[int, str]:
        """Category id -> name: the `foreground`, then what sounds may be called, sorted."""
        names = sorted({name for name in self.heard if name})
        return {**self.foreground(), **dict(enumerate(names, start=len(self.foreground()) + 1))}

    def category(self, label: int, heard: NDArray[np.float32]) -> int:
        """The id in `named` of what carries a label while `heard` (K,) are the probabilities of sounds.

        The label itself unless the model has one class and the likeliest sound has a name and `NAME_PROBABILITY`.
        """
        if len(self.categories) > 1 or not len(heard):
            return label
        name = self.heard[int(heard.argmax())]
        if not name or heard.max() < NAME_PROBABILITY:
            return label
        return next(number for number, known in self.named().items() if known == name and number > label)


class Writer(Protocol):
    """One result of one video.

    `open`, then `write` for each mask in order, then either `finish`, which is told where the picture ends, if that is
    known, and makes the result appear under its final name, or `abort`, which leaves nothing; `abort` may be called at
    any time, also after `finish`, and then does nothing. All raise `OutputError` when the disk refuses. `warnings`,
    complete after `finish`, says what the user should know about the result.
    """

    warnings: tuple[str, ...]

    def open(self, info: VideoInfo, settings: TrackSettings) -> None: ...

    def write(self, mask: Mask) -> None: ...

    def finish(self, picture_end: PictureEnd | None = None) -> list[Path]: ...

    def abort(self) -> None: ...


@contextlib.contextmanager
def output_errors(target: Path) -> Iterator[None]:
    """Turns an `OSError` of the body into an `OutputError` that names the target."""
    try:
        yield
    except OSError as error:
        hint = "Free space there" if error.errno in FULL else "Write to another place"
        raise OutputError(f"{printable(target)}: cannot be written: {error.strerror or error}. {hint}") from error


class PartialOutput:
    """A file or folder that is built out of sight beside its target and takes its name when complete.

    It is built at `path`, inside a hidden folder ``.NAME.RANDOM.partial`` that no other run shares. That folder holds a
    lock for as long as its run lives, so a later run on the same target can tell what a killed one left, and removes
    it. Nothing else is ever removed. Creating it makes the parent folders, which go again if nothing is committed to
    them, and for a folder the folder itself.

    Raises:
        OutputError: the folder cannot be created, or something that is not such a result stands at the target.
    """

    def __init__(self, target: Path, *, folder: bool = False) -> None:
        self.target = target
        with output_errors(target):
            if folder and target.is_symlink():
                self.target = target = Path(os.path.realpath(target))  # the folder it leads to is meant, not the link
            if len(os.fsencode(target.name)) > LONGEST_NAME:
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
            for tries_left in (2, 1, 0):
                try:
                    self._folder = self._begin(folder)
                    self._lock = hold_lock(self._folder)
                    break
                # another run has just removed the empty parent that it had made, or this folder before it was locked
                except (FileNotFoundError, FileExistsError, BlockingIOError):
                    if not tries_left:
                        raise
            self.path = self._folder / "new"
            if folder:
                self.path.mkdir()

    def _begin(self, folder: bool) -> Path:
        self._made = make_folders(self.target.parent)
        try:
            remove_leftovers(self.target)
            obstacle = blocking(self.target, folder=folder)
            if obstacle:
                raise OutputError(obstacle)
            return Path(tempfile.mkdtemp(PARTIAL_SUFFIX, partial_prefix(self.target), self.target.parent))
        except BaseException:
            remove_empty(self._made)
            raise

    def commit(self) -> None:
        """Moves the complete result to its target, replacing an older one, and makes that last on disk."""
        with output_errors(self.target):
            fsync(self.path)
            try:
                if self.path.is_dir() and self.target.exists():
                    old = self._folder / "old"
                    os.replace(self.target, old)
                    if blocking(old, folder=True):
                        raise OutputError(
                            f"{printable(self.target)}: files came there while the result was made; they stay, it does "
                            "not. Choose a folder that does not exist yet"
                        )
                os.replace(self.path, self.target)
            except BaseException:
                put_back(self._folder, self.target)
                raise
            fsync(self.target.parent)
        self.discard()

    def discard(self) -> None:
        """Removes what was built so far."""
        with output_errors(self.target):
            put_back(self._folder, self.target)
            # Windows does not remove open files, and network file systems keep them there under another name
            self._lock.close()
            # what stays is a leftover that the next run removes, and no reason to call a result that is there failed
            shutil.rmtree(self._folder, ignore_errors=True)
            if not os.path.lexists(self.target):
                remove_empty(self._made)


@contextlib.contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """A path for the body to write one file to, which becomes `target` when the body ends without an exception.

    Raises OutputError when the disk refuses.
    """
    output = PartialOutput(target)
    try:
        with output_errors(target):
            yield output.path
        output.commit()
    finally:
        output.discard()


def make_folders(folder: Path) -> list[Path]:
    """Makes a folder and its parents; returns those that did not exist, the deepest first."""
    made = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    folder.mkdir(parents=True, exist_ok=True)
    return made


def remove_empty(folders: Iterable[Path]) -> None:
    """Removes folders, the deepest first, up to the first that holds something."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def partial_prefix(target: Path) -> str:
    """How the names of the hidden folders beside `target` begin; a long name is cut, and told apart by its hash."""
    if len(os.fsencode(target.name)) <= LONGEST_NAME - len("..12345678") - len(PARTIAL_SUFFIX):
        return f".{target.name}."
    encoded = os.fsencode(target.name)
    return f".{encoded[:200].decode('utf-8', 'ignore')}.{hashlib.sha256(encoded).hexdigest()[:16]}."


def hold_lock(folder: Path) -> IO[bytes]:
    """Makes ``folder/lock``, locked until it is closed or this process ends.

    Raises FileNotFoundError, FileExistsError or BlockingIOError if a run that cleans up was faster: it takes a folder
    whose lock nobody holds for a leftover.
    """
    lock = (folder / "lock").open("xb")
    if fcntl is not None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(lock.fileno()), os.stat(folder / "lock")):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
        except (BlockingIOError, FileNotFoundError):
            lock.close()
            raise
        except OSError:
            pass  # a file system without locks: its leftovers are never removed
    return lock


def remove_leftovers(target: Path) -> None:
    """Removes what killed runs left beside `target`; an older result that one of them had moved away comes back."""
    pattern = re.compile(re.escape(partial_prefix(target)) + r"[a-z0-9_]{8}" + re.escape(PARTIAL_SUFFIX))
    for folder in [path for path in target.parent.iterdir() if pattern.fullmatch(path.name)]:
        with contextlib.suppress(FileNotFoundError):  # its run, or another that cleans up, was faster
            if fcntl is None or folder.is_symlink() or not os.path.isdir(folder):
                continue
            names = {path.name for path in folder.iterdir()}
            if not names <= {"lock", "new", "old"}:
                continue
            # without a lock its run was killed before it made one, or while it removed it: here that run would fail
            try:
                lock = (folder / "lock").open("r+b" if "lock" in names else "xb")  # NFS locks no file that is only read
            except (FileExistsError, PermissionError):
                continue
            with lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    continue  # its run is alive
                put_back(folder, target)
            shutil.rmtree(folder, ignore_errors=True)  # not while the lock is open, as in `discard`


def put_back(folder: Path, target: Path) -> None:
    """Undoes the first half of a replacement whose second half did not happen."""
    if os.path.lexists(folder / "old") and not os.path.lexists(target):
        os.replace(folder / "old", target)


def blocking(target: Path, *, folder: bool) -> str:
    """Why a result, a file or a folder of masks, must not replace what stands at `target`; "" when it may."""
    if folder and os.path.isdir(target):
        with output_errors(target):
            if not any(target.iterdir()) or is_mask_folder(target):
                return ""
        return f"{printable(target)}: holds files that avsseg did not write; choose a folder that does not exist yet"
    if os.path.exists(target) and os.path.isdir(target) != folder:
        kind = "a folder" if os.path.isdir(target) else "a file"
        return f"{printable(target)}: {kind} of this name is in the way; choose another --out"
    if not folder and os.path.exists(target) and not os.path.isfile(target):
        return f"{printable(target)}: is a device or a pipe, and a result is built beside it and renamed; choose a file"
    return ""


def is_mask_folder(path: Path) -> bool:
    """Whether a folder is one that `MaskFolderWriter` made, and holds nothing that its listing does not name."""
    listing = path / MASK_FOLDER_MARK
    if not os.path.isfile(listing):
        return False
    try:
        document = json.loads(listing.read_bytes())
    except ValueError:
        return False
    if not isinstance(document, dict) or not isinstance(document.get("settings"), dict):
        return False
    masks = document.get("masks")
    if not isinstance(masks, list):
        return False
    pictures = {str(mask["file_name"]) for mask in masks if isinstance(mask, dict) and "file_name" in mask}
    return all(
        entry.name == MASK_FOLDER_MARK
        or of_the_system(entry.name)
        or (entry.name in pictures and re.fullmatch(r"\d{5,}\.png", entry.name))
        for entry in path.iterdir()
    )


def of_the_system(name: str) -> bool:
    """Whether a file or folder is one that file managers and network drives leave in every folder that they show."""
    return name.startswith("._") or name in {".DS_Store", "Thumbs.db", "desktop.ini", "@eaDir"}


def fsync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open folders
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # some shared folders of virtual machines cannot do it to a folder; what is in them stands all the same
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)
