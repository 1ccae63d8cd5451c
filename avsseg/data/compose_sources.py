"""What clips are composed from: pictures with object masks, recordings with a class, each in one split only.

    IMAGES/NAME.jpg            any size; or IMAGES/CLASS/NAME.jpg
    MASKS/NAME.png             same path and size: the class's line in MASKS/classes.txt (line 0 is the background), 255
                               unknown; without classes.txt, non-zero is the class that the picture's folder names
    SOUNDS/CLASS/NAME.wav      anything that ffmpeg reads; a class without pictures is only ever heard off-screen
    IMAGES/splits.csv          optional: name, split and, if wanted, kind (scene, cutout, backdrop) and weight (0..1)
    SOUNDS/splits.csv          optional: name, split

A `cutout` is pasted onto other pictures and never shown as it is; a `backdrop` shows no class, whatever its mask says.
`weight` is what the picture's truth counts in training. Without a table, splits are drawn by a hash of the names: names
that differ in their last number only (frames of one recording), and files of equal bytes, stay together.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import ffmpeg
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from avsseg.data.avsbench import SplitName, open_image
from avsseg.errors import DataError, MediaError, UsageError, printable
from avsseg.media.audio import SAMPLE_RATE_HZ
from avsseg.media.ffmpeg import FfmpegProcess, command, media_input

Kind = Literal["scene", "cutout", "backdrop"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SPLIT_NAMES: tuple[SplitName, ...] = get_args(SplitName)
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
CLASSES_NAME = "classes.txt"
TABLE_NAME = "splits.csv"
BACKGROUND = "background"
VOID = 255
MAX_CLASSES = 200
# a tenth of the groups each for validation and test, but one at least
HELD_OUT_SHARE = 0.1
LONGEST_SOUND_S = 60


@dataclass(frozen=True)
class Picture:
    """One picture; `areas` (class index, share of the frame) says what its mask shows, largest first."""

    name: str
    path: Path
    mask_path: Path
    areas: tuple[tuple[int, float], ...]
    split: SplitName
    folder_class: int = 0
    kind: Kind = "scene"
    weight: float = 1.0

    def read(self) -> tuple[Image.Image, Image.Image]:
        """The picture (RGB) and its class map (L: class index, 255 unknown). Raises DataError."""
        image = open_image(self.path, "RGB")
        if self.kind == "backdrop":
            return image, Image.new("L", image.size)
        return image, _read_mask(self.mask_path, self.folder_class, image.size)


@dataclass(frozen=True)
class Sound:
    """One recording: 16 kHz mono samples (n,) int16."""

    name: str
    class_index: int
    split: SplitName
    samples: NDArray[np.int16]


Item = TypeVar("Item", Picture, Sound)


@dataclass(frozen=True)
class Sources:
    """Everything that clips of all splits are made from; `classes[0]` is the background.

    The first `visible` classes can be seen (background included); the others are only heard.
    """

    classes: tuple[str, ...]
    visible: int
    pictures: tuple[Picture, ...]
    sounds: tuple[Sound, ...]


def read_sources(images: Path, masks: Path, sounds: Path, *, jobs: int = 4) -> Sources:
    """Reads the three folders. Raises DataError naming what is missing or damaged, UsageError if nothing is there."""
    for folder in (images, masks, sounds):
        if not folder.is_dir():
            raise DataError(f"{printable(folder)}: no such folder")
    picture_paths = _files(images, PICTURE_SUFFIXES)
    sound_paths = [path for path in _files(sounds) if path.parent != sounds]
    if not picture_paths:
        raise UsageError(f"{printable(images)}: holds no pictures ({', '.join(PICTURE_SUFFIXES)})")
    if not sound_paths:
        raise UsageError(f"{printable(sounds)}: holds no recordings. Put them into a folder a class: SOUNDS/dog/1.wav")
    visible = _visible_classes(images, masks, picture_paths)
    heard = sorted({path.relative_to(sounds).parts[0] for path in sound_paths} - set(visible))
    classes = (*visible, *heard)
    if len(classes) > MAX_CLASSES:
        raise UsageError(f"{len(classes)} classes, at most {MAX_CLASSES} are possible")
    if not set(visible[1:]) & {path.relative_to(sounds).parts[0] for path in sound_paths}:
        raise UsageError(
            f"no class has both pictures ({', '.join(visible[1:6])}) and recordings ({', '.join(heard[:5])}). "
            "Name the folders of the recordings as the classes of the pictures"
        )
    with ThreadPoolExecutor(max(1, jobs)) as pool:
        pictures = list(pool.map(lambda path: _picture(path, images, masks, classes), picture_paths))
        recordings = list(pool.map(lambda path: _sound(path, sounds, classes), sound_paths))
    return Sources(
        classes,
        len(visible),
        tuple(_with_splits(images, pictures, lambda p: p.path, lambda p: p.areas[0][0] if p.areas else 0)),
        tuple(_with_splits(sounds, recordings, lambda s: sounds / s.name, lambda s: s.class_index)),
    )


def _files(folder: Path, suffixes: Sequence[str] = ()) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and path.name != TABLE_NAME and (not suffixes or path.suffix.lower() in suffixes)
    )


def _visible_classes(images: Path, masks: Path, pictures: Sequence[Path]) -> tuple[str, ...]:
    table = masks / CLASSES_NAME
    if table.is_file():
        names = table.read_text().split("\n")
        while names and not names[-1].strip():
            names.pop()
        names = [name.strip() for name in names]
        if len(names) < 2 or "" in names or len(set(names)) < len(names):
            raise DataError(f"{printable(table)}: must name the background and one class at least, a line each, once")
        return (BACKGROUND, *names[1:])
    folders = sorted({path.relative_to(images).parts[0] for path in pictures if path.parent != images})
    if not folders or any(path.parent == images for path in pictures):
        raise DataError(
            f"{printable(table)}: missing. Name the classes of the masks there, one a line, background first; or put "
            "every picture and its mask into a folder that has its class's name"
        )
    return (BACKGROUND, *folders)


def _picture(path: Path, images: Path, masks: Path, classes: Sequence[str]) -> Picture:
    place = path.relative_to(images)
    mask_path = masks / place.with_suffix(".png")
    folder_class = 0 if (masks / CLASSES_NAME).is_file() else classes.index(place.parts[0])
    if not mask_path.is_file():
        raise DataError(f"{printable(mask_path)}: missing, the mask of {printable(path)}")
    counts = np.bincount(np.asarray(_read_mask(mask_path, folder_class)).ravel(), minlength=256)
    highest = int(np.flatnonzero(counts[:VOID]).max(initial=0))
    if highest >= len(classes):
        raise DataError(f"{printable(mask_path)}: has class {highest}, {CLASSES_NAME} ends at {len(classes) - 1}")
    areas = [(k, counts[k] / counts.sum()) for k in np.argsort(-counts[1:VOID], kind="stable") + 1 if counts[k]]
    name = str(place.with_suffix(""))
    return Picture(name, path, mask_path, tuple((int(k), float(a)) for k, a in areas), "train", folder_class)


def _read_mask(path: Path, folder_class: int, size: tuple[int, int] | None = None) -> Image.Image:
    with open_image(path, None) as mask:
        # an index mask may be a palette picture: its indices are what counts
        values = np.asarray(mask if mask.mode in ("L", "P", "1") else mask.convert("L"))
    if folder_class:
        values = np.where(values > 0, folder_class, 0)
    result = Image.fromarray(values.astype(np.uint8))
    if size is not None and result.size != size:
        raise DataError(f"{printable(path)}: is {result.width}x{result.height}, its picture {size[0]}x{size[1]}")
    return result


def _sound(path: Path, sounds: Path, classes: Sequence[str]) -> Sound:
    place = path.relative_to(sounds)
    return Sound(str(place), classes.index(place.parts[0]), "train", decode_sound(path))


def decode_sound(path: Path) -> NDArray[np.int16]:
    """The first minute of a recording as 16 kHz mono. Raises MediaError if nothing can be decoded."""
    output = ffmpeg.output(
        media_input(path)["a:0"], "pipe:1", format="s16le", ac=1, ar=SAMPLE_RATE_HZ, t=LONGEST_SOUND_S
    )
    buffer = np.empty(LONGEST_SOUND_S * SAMPLE_RATE_HZ, np.int16)
    with FfmpegProcess(command(output)) as process:
        count = process.read_into(memoryview(buffer.data).cast("B")) // 2
        process.wait()
        lines, _ = process.messages()
    if count == 0:
        raise MediaError(path, f"no sound can be decoded ({lines[-1] if lines else 'it is empty'})")
    return buffer[:count].copy()


def _with_splits(
    folder: Path, items: list[Item], path_of: Callable[[Item], Path], class_of: Callable[[Item], int]
) -> list[Item]:
    table = folder / TABLE_NAME
    if table.is_file():
        rows = _read_table(table)
        return [_apply_row(item, rows, table) for item in items]
    splits = draw_splits([(path_of(item), class_of(item)) for item in items])
    return [replace(item, split=split) for item, split in zip(items, splits, strict=True)]


def draw_splits(files: Sequence[tuple[Path, int]]) -> list[SplitName]:
    """A split for each (file, class): by group, a tenth of a class's groups each to val and test, one at least.

    A class of fewer than three groups is trained on alone.
    """
    group_of: dict[Path, str] = {}
    by_content: dict[bytes, str] = {}
    merged: dict[str, str] = {}

    def root(name: str) -> str:
        while name in merged:
            name = merged[name]
        return name

    for path, _ in files:
        group = root(f"{path.parent.name}/{re.sub(r'[-_. ]*[0-9]+$', '', path.stem) or path.stem}")
        same = root(by_content.setdefault(hashlib.sha256(path.read_bytes()).digest(), group))
        if same != group:
            merged[group] = same
        group_of[path] = group
    members: dict[int, set[str]] = defaultdict(set)
    seen: set[str] = set()
    for path, class_index in files:
        group = root(group_of[path])
        if group not in seen:
            seen.add(group)
            members[class_index].add(group)
    split_of: dict[str, SplitName] = {}
    for groups in members.values():
        ordered = sorted(groups, key=lambda name: hashlib.sha256(name.encode()).digest())
        held_out = max(1, round(HELD_OUT_SHARE * len(ordered))) if len(ordered) >= 3 else 0
        for index, name in enumerate(ordered):
            split_of[name] = "test" if index < held_out else "val" if index < 2 * held_out else "train"
    return [split_of[root(group_of[path])] for path, _ in files]


def _read_table(table: Path) -> dict[str, dict[str, str]]:
    with table.open(newline="") as file:
        reader = csv.DictReader(file)
        if not {"name", "split"} <= set(reader.fieldnames or ()):
            raise DataError(f"{printable(table)}: needs the columns name and split")
        rows = list(reader)
    twice = [name for name, count in Counter(row["name"] for row in rows).items() if count > 1]
    if twice:
        raise DataError(f"{printable(table)}: names {twice[0]} twice")
    for row in rows:
        if row["split"] not in SPLIT_NAMES:
            raise DataError(f"{printable(table)}: split of {row['name']} is {row['split']!r}, not train, val or test")
        if row.get("kind") and row["kind"] not in KINDS:
            raise DataError(f"{printable(table)}: kind of {row['name']} is {row['kind']!r}, not {', '.join(KINDS)}")
    return {row["name"]: row for row in rows}


def _apply_row(item: Item, rows: dict[str, dict[str, str]], table: Path) -> Item:
    name = item.name
    row = rows.get(name)
    if row is None:
        raise DataError(f"{printable(table)}: lists no {name}. Add it, or remove the table to have splits drawn")
    changes: dict[str, Any] = {"split": row["split"]}
    if isinstance(item, Picture):
        kind = row.get("kind") or "scene"
        try:
            changes |= {"kind": kind, "weight": float(row.get("weight") or 1)}
        except ValueError as error:
            raise DataError(f"{printable(table)}: weight of {name} is {row['weight']!r}, not a number") from error
        if kind == "backdrop":
            changes["areas"] = ()
    return replace(item, **changes)


def names_in_two_splits(items: Iterable[Picture | Sound]) -> list[str]:
    """Names of files whose bytes stand in more than one split; empty when the splits are clean."""
    found: dict[bytes, tuple[str, SplitName]] = {}
    crossing = []
    for item in items:
        payload = item.path.read_bytes() if isinstance(item, Picture) else item.samples.tobytes()
        digest = hashlib.sha256(payload).digest()
        name, split = found.setdefault(digest, (item.name, item.split))
        if split != item.split:
            crossing += [name, item.name]
    return crossing
