"""Which videos a command line names, and where each result goes: everything that is decided before any work."""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import hashlib
import os
import re
import tempfile
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from avsseg.errors import UsageError, printable
from avsseg.pipeline.options import FORMATS, Format
from avsseg.writers.base import blocking, is_mask_folder

# of the file that each format is, the usual one first; masks are a folder
SUFFIXES: Mapping[Format, tuple[str, ...]] = {
    "overlay": (".mp4", ".mkv", ".mov", ".webm"),
    "masks": (),
    "coco": (".json",),
    "matte": (".mp4", ".mkv", ".mov", ".webm"),
    "cutout": (".mov", ".webm", ".mkv"),
    "csv": (".csv",),
}
# what a folder is searched for; a file that is named itself may have any suffix
VIDEO_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("3g2", "3gp", "asf", "avi", "f4v", "flv", "gif", "m2ts", "m2v", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg"),
        *("mts", "mxf", "ogv", "ts", "vob", "webm", "wmv"),
    )
)
# names that promise something else than a folder and that no format has, beside those of videos
FOREIGN_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("bmp", "jpeg", "jpg", "png", "svg", "tif", "tiff", "webp", "aac", "flac", "m4a", "mp3", "ogg", "wav"),
        *("htm", "html", "jsonl", "md", "npy", "npz", "pdf", "srt", "tsv", "txt", "vtt", "xml", "yaml", "yml", "zip"),
    )
)


@dataclass(frozen=True)
class FoundInput:
    """An input and the path, relative to the output folder, that mirrors it."""

    path: Path
    mirrored: PurePath


@dataclass(frozen=True)
class Inputs:
    """All inputs of a command line; `several` holds when a folder, pattern or list was named or more than one file."""

    found: tuple[FoundInput, ...]
    several: bool


@dataclass(frozen=True)
class Job:
    """One video and the results wanted from it.

    Attributes:
        outputs: where each format goes.
        make: the formats that are still to be made; None leaves it to whether they exist.
    """

    input: Path
    outputs: Mapping[Format, Path]
    make: tuple[Format, ...] | None = None


@dataclass(frozen=True)
class Shard:
    """One of `count` parts of a batch, counted from 1, for as many machines."""

    index: int = 1
    count: int = 1

    def holds(self, mirrored: PurePath) -> bool:
        """Whether an input of that path, relative to the folder that was given, belongs to it; exactly one does."""
        digest = hashlib.sha256(os.fsencode(mirrored.as_posix())).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.index - 1


def find_inputs(
    arguments: Sequence[str],
    *,
    recursive: bool = False,
    listed: Iterable[str] = (),
    exclude: Path | None = None,
    made: Iterable[Path] = (),
) -> Inputs:
    """The videos that the arguments name, in order, each once.

    Args:
        arguments: files, folders, patterns (expanded here when no such file exists), "-" for `listed`.
        recursive: search the subfolders of folders too.
        listed: paths that stand for "-".
        exclude: a folder that is not searched: the output folder, which may lie inside an input folder.
        made: results of earlier runs, which no folder and no pattern stands for: they may lie beside the inputs.

    A file that does not exist, a pattern without a match and a folder that has no videos or cannot be read are kept:
    they fail by themselves. Links to files are followed, links to folders are not unless they are named. A
    mirrored path is relative to the folder or to the fixed part of the pattern; a listed relative path is mirrored as
    it is; of other files the name remains. Inputs that would then share a name are mirrored below the deepest folder
    that holds them, and no other input is: what else there is must not change where a result is looked for.

    Raises:
        UsageError: nothing was found, or what was not is a format.
    """
    found: dict[Path, FoundInput] = {}
    empty: list[Path] = []
    unmatched: list[Path] = []
    several = len(arguments) > 1
    results = {_real(path) for path in made}

    def add(path: Path, mirrored: PurePath) -> None:
        found.setdefault(_real(path), FoundInput(path, mirrored))

    def add_folder(folder: Path, mirrored: PurePath) -> None:
        videos, unreadable = _videos_in(folder, recursive=recursive, exclude=exclude)
        videos = [path for path in videos if _real(path) not in results]
        for path in (*videos, *unreadable):
            add(path, mirrored / path.relative_to(folder) if path != folder else PurePath(folder.name))
        if not videos and not unreadable:
            empty.append(folder)

    for argument in arguments:
        if argument == "-":
            several = True
            for line in listed:
                path = Path(line)
                parts = [part for part in path.parts if part != os.curdir]
                relative = not path.is_absolute() and os.pardir not in parts
                add(path, PurePath(*parts) if relative else PurePath(path.name))
        elif os.path.isdir(argument):
            several = True
            add_folder(Path(argument), PurePath())
        elif not os.path.lexists(argument) and glob.has_magic(argument):
            several = True
            base = _fixed_part(argument)
            matches = sorted(set(_matches(base, Path(argument).parts[len(base.parts) :])))
            if exclude is not None:
                # results of an earlier run of the same command are no inputs; a pattern within --out is meant so
                matches = [path for path in matches if _is_below(base, exclude) or not _is_below(path, exclude)]
            matches = [path for path in matches if _real(path) not in results]
            if not matches:
                unmatched.append(Path(argument))
            for path in matches:
                if os.path.isdir(path):
                    add_folder(path, path.relative_to(base))
                else:
                    add(path, path.relative_to(base))
        else:
            if not os.path.lexists(argument) and (names := set(argument.split(",")) - {""}) and names <= set(FORMATS):
                raise UsageError(
                    f"{argument}: no such file, but a format. Put commas and no spaces between formats: --format "
                    f"{FORMATS[0]},{FORMATS[1]}"
                )
            path = _behind_stream(Path(argument))
            add(path, PurePath(path.name))
    if not found and set(arguments) == {"-"}:
        raise UsageError("the list on stdin is empty")
    if not found:
        named = ", ".join(printable(argument) for argument in arguments) or "nothing"
        folders = any(os.path.isdir(argument) for argument in arguments)
        hint = "; -r searches subfolders too" if folders and not recursive else ""
        raise UsageError(f"no videos found in {named}{hint}")
    for path in (*empty, *unmatched):
        add(path, PurePath(path.name))
    return Inputs(tuple(_told_apart(found.values())), several)


def choose_formats(requested: str | None, out: Path, *, several: bool) -> tuple[Format, ...]:
    """The formats to write: those requested ("overlay,coco"), otherwise what the suffix of `out` says.

    Raises:
        UsageError: an unknown format, or a suffix that no format has or that contradicts the request or several inputs.
    """
    if str(out) == "-":
        raise UsageError("--out -: results are files, and stdout lists them. Name a file or a folder")
    by_suffix = format_of_suffix(out)
    if by_suffix is None and out.suffix.lower() in VIDEO_SUFFIXES | FOREIGN_SUFFIXES and not os.path.isdir(out):
        possible = ", ".join(f"{name} ({' '.join(suffixes)})" for name, suffixes in SUFFIXES.items() if suffixes)
        raise UsageError(
            f"--out {printable(out)}: no format is a {out.suffix} file. There are {possible}; masks, several formats "
            "and several inputs go into a folder"
        )
    if requested is None:
        formats: tuple[Format, ...] = ((None if several else by_suffix) or "masks",)
    else:
        names = [name.strip() for name in requested.split(",") if name.strip()]
        unknown = [name for name in names if name not in FORMATS]
        if unknown or not names:
            raise UsageError(f"--format {requested}: unknown format; choose from {', '.join(FORMATS)}")
        formats = tuple(name for name in FORMATS if name in names)
    if by_suffix is not None and (several or not is_result(out, formats)) and not os.path.isdir(out):
        if formats == ("cutout",) and not several:
            possible = ", ".join(SUFFIXES["cutout"])
            raise UsageError(f"--out {printable(out)}: cannot hold transparency; a cutout is written as {possible}")
        reason = "several inputs need" if several else f"--format {','.join(formats)} needs"
        raise UsageError(f"--out {printable(out)}: {reason} a folder, not a name that ends in {out.suffix}")
    return formats


def format_of_suffix(path: Path) -> Format | None:
    """The format that a name asks for by itself."""
    formats: tuple[Format, ...] = ("overlay", "coco", "csv")
    return next((name for name in formats if path.suffix.lower() in SUFFIXES[name]), None)


def is_result(out: Path, formats: Sequence[Format]) -> bool:
    """Whether `out` is, by its suffix, the one result of these formats for a single input."""
    if len(formats) != 1:
        return False
    return out.suffix.lower() in SUFFIXES[formats[0]] or (formats[0] == "masks" and format_of_suffix(out) is None)


def parse_shard(text: str) -> Shard:
    """The shard that "2/8" means.

    Raises:
        UsageError: it means none.
    """
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UsageError(
            f"--shard {printable(text)}: write I/N with I from 1 to N, such as 1/4 to 4/4 on four machines"
        )
    return Shard(int(found[1]), int(found[2]))


def results_folder(inputs: Inputs, out: Path, formats: Sequence[Format]) -> Path | None:
    """`out` if it is a folder that results are put into; None if it is the one result itself."""
    return None if not inputs.several and is_result(out, formats) else out


def plan_outputs(inputs: Inputs, out: Path, formats: Sequence[Format]) -> list[Job]:
    """One job for each input.

    One input: `out` is the result itself when its suffix says so, or a folder of masks; with several formats, or one
    that `out` has no suffix for, it is a folder of results named after the input. Several inputs: `out` is a folder
    that mirrors theirs.

    Raises:
        UsageError: two results share a path, a result would replace an input, or something foreign is in the way.
    """
    if results_folder(inputs, out, formats) is None:
        if not out.name:
            raise UsageError(f"--out {printable(out)}: name the file or the folder to make")
        jobs = [Job(inputs.found[0].path, {formats[0]: out})]
    else:
        jobs = [Job(found.path, _results_in(out, found.mirrored, formats)) for found in inputs.found]
        if os.path.exists(out) and not os.path.isdir(out):
            raise UsageError(f"--out {printable(out)}: is a file; several results need a folder")
    _refuse_collisions(jobs)
    return jobs


def to_make(job: Job, *, overwrite: bool) -> list[Format]:
    """The formats of a job that are to be made."""
    if overwrite:
        return list(job.outputs)
    if job.make is not None:
        return list(job.make)
    return [name for name, path in job.outputs.items() if not is_finished(name, path)]


def is_finished(output_format: Format, path: Path) -> bool:
    """Whether the result exists; results appear whole, so existing means complete."""
    return is_mask_folder(path) if output_format == "masks" else os.path.isfile(path)


def _results_in(out: Path, mirrored: PurePath, formats: Sequence[Format]) -> dict[Format, Path]:
    tags: dict[Format, str] = {"matte": ".matte", "cutout": ".cutout"}  # beside an overlay of the same name
    return {
        name: out / mirrored.parent / (mirrored.stem + tags.get(name, "") + next(iter(SUFFIXES[name]), ""))
        for name in formats
    }


def _refuse_collisions(jobs: Sequence[Job]) -> None:
    inputs = {_real(job.input): job.input for job in jobs}
    owners: dict[Path, Path] = {}
    alike: dict[str, Path] = {}  # the results by names that some file systems take for one
    mask_folders: set[Path] = set()
    for job in jobs:
        for output_format, path in job.outputs.items():
            resolved = _real(path)
            if resolved in inputs:
                raise UsageError(f"{printable(path)}: is an input and would be replaced; choose another --out")
            twin = alike.setdefault(unicodedata.normalize("NFC", str(resolved)).casefold(), resolved)
            if twin in owners and twin != resolved and not _tells_case_apart(twin.parent):
                resolved = twin
            if resolved in owners:
                together = owners[resolved].parent == job.input.parent
                other_way = (
                    "run each with an --out of its own" if together else "give the folder that holds both and -r"
                )
                raise UsageError(
                    f"{printable(owners[resolved])} and {printable(job.input)} would both write {printable(path)}; "
                    f"rename one, or {other_way}"
                )
            owners[resolved] = job.input
            if output_format == "masks":
                mask_folders.add(resolved)
            obstacle = blocking(path, folder=output_format == "masks")
            if obstacle:
                raise UsageError(obstacle)
    for path in (*owners, *inputs):
        folder = next((parent for parent in path.parents if parent in mask_folders), None)
        if folder is not None:
            raise UsageError(
                f"{printable(path)}: lies inside the folder of masks {printable(folder)}; choose another --out"
            )


def _tells_case_apart(folder: Path) -> bool:
    """Whether `a` and `A` are two files there, or above where nothing is yet; True where nothing can be written."""
    existing = next(parent for parent in (folder, *folder.parents) if os.path.isdir(parent))
    try:
        with tempfile.NamedTemporaryFile(prefix=".avsseg-case-", dir=existing) as file:
            return not os.path.exists(existing / Path(file.name).name.upper())
    except OSError:
        return True


def _behind_stream(path: Path) -> Path:
    """The file that /dev/stdin or its like leads to: a program that is started to read it has a stdin of its own."""
    if path != Path("/dev/stdin") and path.parent != Path("/dev/fd"):
        return path
    file = _real(path)
    # on macOS it leads to /dev/fd/0 and no further
    return file if file.is_file() and Path("/dev") not in file.parents else path


def _told_apart(inputs: Collection[FoundInput]) -> Iterator[FoundInput]:
    """The inputs, of which those that would share a name are mirrored below the deepest folder that holds them."""
    folders: dict[PurePath, list[str]] = {}
    for item in inputs:
        folders.setdefault(item.mirrored.parent / item.mirrored.stem, []).append(os.path.abspath(item.path.parent))
    for item in inputs:
        sharing = folders[item.mirrored.parent / item.mirrored.stem]
        if len(set(sharing)) > 1:
            with contextlib.suppress(ValueError):  # on two drives
                below = os.path.relpath(os.path.abspath(item.path), os.path.commonpath(sharing))
                item = replace(item, mirrored=PurePath(below))
        yield item


def _is_below(path: Path, folder: Path) -> bool:
    """Whether a path is a folder or lies inside it."""
    return _real(path).is_relative_to(_real(folder))


def _videos_in(folder: Path, *, recursive: bool, exclude: Path | None) -> tuple[list[Path], list[Path]]:
    """The videos in a folder, and the folders that cannot be read."""
    excluded = _real(exclude) if exclude is not None else None
    videos: list[Path] = []
    unreadable: list[Path] = []
    for root, folders, files in os.walk(folder, onerror=lambda error: unreadable.append(Path(error.filename))):
        here = Path(root)
        folders[:] = sorted(
            name for name in folders if recursive and not name.startswith(".") and _real(here / name) != excluded
        )
        videos += [
            here / name
            for name in sorted(files)
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES
        ]
    return videos, unreadable


def _real(path: Path) -> Path:
    """The path without links; one that leads into a loop of links is kept, where `Path.resolve` would raise."""
    return Path(os.path.realpath(path))


def _matches(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    """What a pattern means below a folder; not by `glob`, whose ``**`` follows links, also those that go in circles."""
    if not parts:
        if os.path.lexists(folder):
            yield folder
    elif parts[0] == "**":
        for root, folders, files in os.walk(folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            if len(parts) > 1:
                yield from _matches(Path(root), parts[1:])
            else:
                yield from (Path(root, name) for name in files if not name.startswith("."))
    elif not glob.has_magic(parts[0]):
        yield from _matches(folder / parts[0], parts[1:])
    elif os.path.isdir(folder):
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in list(entries):
                if fnmatch.fnmatch(entry.name, parts[0]) and (parts[0][0] == "." or entry.name[0] != "."):
                    yield from _matches(Path(entry.path), parts[1:])


def _fixed_part(pattern: str) -> Path:
    """The folders of a pattern before its first wildcard."""
    parts = Path(pattern).parts
    fixed = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:fixed])
