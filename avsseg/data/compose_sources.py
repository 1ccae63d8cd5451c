"""What clips are composed from: pictures with object masks, recordings with a class, each in one split only.

    IMAGES/NAME.jpg            .jpg, .jpeg, .png, .webp or .bmp, 16 px a side at least; subfolders are read too
    MASKS/NAME.png             its mask: same subfolder, same name, same size. A pixel is 0 where no class is, 255 where
                               it is unknown, else the number of its class: grey levels or palette indices. A picture
                               with an EXIF orientation is turned as viewers turn it, unless only its stored size is
                               that of the mask
    MASKS/classes.txt          the classes, one a line: line 0 is the background, line 1 the class of mask value 1, ...
    SOUNDS/CLASS/NAME.wav      anything that ffmpeg reads, its first 60 s; deeper subfolders are read too

Without classes.txt the pictures lie in a folder a class, IMAGES/CLASS/NAME.jpg and MASKS/CLASS/NAME.png, and any mask
value but 0 is that class. A class of SOUNDS that no picture has is only ever heard off-screen. Files whose names begin
with a dot are left out, and so are texts and pictures among the recordings, with a warning.

    IMAGES/splits.csv          optional; columns: name (dog/1 for dog/1.jpg), split (train, val or test) and, if wanted,
                               kind (scene, cutout or backdrop) and weight (0 to 1)
    SOUNDS/splits.csv          optional; columns: name (dog/1.wav) and split

A `cutout` is pasted onto other pictures and never shown as it is; a `backdrop` shows no class, whatever its mask says,
and needs none. `weight` is how far the picture's mask is to be trusted: scenes carry it and `data compose` notes it in
clips.json; `avsseg train` counts all clips alike. Without a table, splits are drawn by a hash of the names, about 80 %
of a class train, 10 % val and 10 % test: names in one folder that differ in a number at their end only (frames of one
recording, unless `unrelated` says otherwise), pictures of equal bytes and recordings of equal samples stay together; a
class of fewer than three such groups is trained on alone.
"""

from __future__ import annotations

import hashlib
import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import ffmpeg
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from avsseg.data.avsbench import SplitName, open_image
from avsseg.data.compose_splits import TABLE_NAME, Kind, Row, draw_splits, read_table, read_text
from avsseg.errors import DataError, MediaError, UsageError, first_of, printable
from avsseg.media.audio import SAMPLE_RATE_HZ
from avsseg.media.ffmpeg import FfmpegProcess, command, media_input
from avsseg.writers.base import of_the_system

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
# what lies beside recordings and is none: their terms, lists and covers
SOUNDLESS_SUFFIXES = frozenset(PICTURE_SUFFIXES) | {
    *(".csv", ".doc", ".docx", ".gif", ".htm", ".html", ".ini", ".json", ".jsonl", ".log", ".lrc", ".md", ".pdf"),
    *(".rst", ".rtf", ".srt", ".svg", ".tif", ".tiff", ".toml", ".tsv", ".txt", ".vtt", ".xml", ".yaml", ".yml"),
}
CLASSES_NAME = "classes.txt"
BACKGROUND = "background"
VOID = 255
MAX_CLASSES = 200
SMALLEST_SIDE_PX = 16
# what the EXIF orientations 2 to 8 ask for; the standard's 1 is a picture as it is
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = {_TURNS[orientation] for orientation in (5, 6, 7, 8)}
LONGEST_SOUND_S = 60


@dataclass(frozen=True)
class Picture:
    """One picture; `areas` (class index, share of the frame) says what its mask shows, largest first.

    `folder_class` is the class of all its mask where the folder says so, else 0. `weight`, 0 to 1, is what its truth
    counts in training.
    """

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
        stored = open_image(self.path, "RGB")
        turn = _turn(stored)
        shown = stored if turn is None else stored.transpose(turn)
        if self.kind == "backdrop":
            return shown, Image.new("L", shown.size)
        classes = _read_mask(self.mask_path, self.folder_class, (shown.size, stored.size))
        return shown if classes.size == shown.size else stored, classes


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

    The first `visible` classes can be seen (background included); the others are only heard. `picture_groups` and
    `sound_groups` say how many groups that stay together each class has (see `draw_splits`); None where a table says.
    `warnings` tell of files that are not used.
    """

    classes: tuple[str, ...]
    visible: int
    pictures: tuple[Picture, ...]
    sounds: tuple[Sound, ...]
    picture_groups: Mapping[int, int] | None = None
    sound_groups: Mapping[int, int] | None = None
    warnings: tuple[str, ...] = ()


def read_sources(images: Path, masks: Path, sounds: Path, *, jobs: int = 4, unrelated: bool = False) -> Sources:
    """Reads the three folders with `jobs` threads; every picture and recording is decoded once.

    `unrelated`: files whose names differ in a number at their end only may be in different splits.

    Raises DataError or MediaError naming what is missing or damaged, UsageError if nothing can be made of the folders.
    """
    for folder in (images, masks, sounds):
        if not folder.is_dir():
            raise DataError(f"{printable(folder)}: no such folder")
    picture_paths = _files(images, PICTURE_SUFFIXES)
    in_classes = [path for path in _files(sounds) if path.parent != sounds]
    sound_paths = [path for path in in_classes if not _is_soundless(path.relative_to(sounds))]
    if not picture_paths:
        raise UsageError(f"{printable(images)}: holds no pictures ({', '.join(PICTURE_SUFFIXES)})")
    if not sound_paths:
        raise UsageError(f"{printable(sounds)}: holds no recordings. Put them into a folder a class: SOUNDS/dog/1.wav")
    visible = _visible_classes(images, masks, picture_paths)
    folders = {path.relative_to(sounds).parts[0] for path in sound_paths}
    if BACKGROUND in folders:
        raise DataError(
            f"{printable(sounds / BACKGROUND)}: {BACKGROUND} is no class that sounds. Rename it, to ambience say"
        )
    heard = sorted(folders - set(visible))
    classes = (*visible, *heard)
    if len(classes) > MAX_CLASSES:
        raise UsageError(f"{len(classes)} classes, at most {MAX_CLASSES} are possible")
    if not set(visible[1:]) & folders:
        raise UsageError(
            f"no class has both pictures ({', '.join(visible[1:6])}) and recordings ({', '.join(heard[:5])}). "
            "Name the folders of the recordings as the classes of the pictures"
        )
    picture_rows, sound_rows = read_table(images), read_table(sounds)
    names = [_picture_name(path, images) for path in picture_paths]
    _check_listed(images, picture_rows, names)
    _check_listed(sounds, sound_rows, [path.relative_to(sounds).as_posix() for path in sound_paths])
    _check_masks(masks, [name for name in names if not picture_rows or picture_rows[name].kind != "backdrop"])
    pictured, recorded = set(names), set(sound_paths)
    unused = {
        "masks without a picture": [
            path for path in _files(masks, (".png",)) if _picture_name(path, masks) not in pictured
        ],
        "files that are no recordings": [path for path in in_classes if path not in recorded],
    }
    with ThreadPoolExecutor(max(1, jobs)) as pool:
        try:
            pictures = list(
                pool.map(lambda path: _picture(path, images, masks, visible, picture_rows or {}), picture_paths)
            )
            recordings = list(pool.map(lambda path: _sound(path, sounds, classes), sound_paths))
        except BaseException:
            pool.shutdown(cancel_futures=True)  # thousands of files may still wait to be read
            raise
    shown = [(picture.path, picture.areas[0][0] if picture.areas else 0) for picture in pictures]
    heard_in = [(sounds / sound.name, sound.class_index) for sound in recordings]
    split_pictures, picture_groups = _with_splits(images, picture_rows, pictures, shown, unrelated)
    split_sounds, sound_groups = _with_splits(sounds, sound_rows, recordings, heard_in, unrelated)
    warnings = tuple(f"{what} are left out: {first_of(paths)}" for what, paths in unused.items() if paths)
    return Sources(classes, len(visible), split_pictures, split_sounds, picture_groups, sound_groups, warnings)


def _files(folder: Path, suffixes: Sequence[str] = ()) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and path.name != TABLE_NAME
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and (not suffixes or path.suffix.lower() in suffixes)
    )


def _is_soundless(place: Path) -> bool:
    return place.suffix.lower() in SOUNDLESS_SUFFIXES or any(of_the_system(part) for part in place.parts)


def _picture_name(path: Path, images: Path) -> str:
    return path.relative_to(images).with_suffix("").as_posix()


def _mask_of(name: str, masks: Path) -> Path:
    usual, upper = masks / f"{name}.png", masks / f"{name}.PNG"
    return upper if upper.is_file() and not usual.is_file() else usual


def _check_listed(folder: Path, rows: Mapping[str, Row] | None, names: Sequence[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{printable(folder / twice[0])}: two files of this name. Rename one of them, and its mask")
    missing = [name for name in names if rows is not None and name not in rows]
    if missing:
        table = printable(folder / TABLE_NAME)
        raise DataError(f"{table}: lists no {printable(missing[0])}. Add it, or remove the table to have splits drawn")


def _check_masks(masks: Path, names: Sequence[str]) -> None:
    missing = [path for name in names if not (path := _mask_of(name, masks)).is_file()]
    if len(missing) == 1:
        raise DataError(f"{printable(missing[0])}: missing. Add this mask, or remove its picture")
    if missing:
        raise DataError(f"{len(missing)} masks are missing: {first_of(missing)}. Add them, or remove their pictures")


def _visible_classes(images: Path, masks: Path, pictures: Sequence[Path]) -> tuple[str, ...]:
    table = masks / CLASSES_NAME
    if table.is_file():
        names = [name.strip() for name in read_text(table).rstrip().split("\n")]
        if len(names) < 2 or "" in names or len(set(names)) < len(names) or BACKGROUND in names[1:]:
            raise DataError(f"{printable(table)}: must name the background and one class at least, a line each, once")
        return (BACKGROUND, *names[1:])
    folders = sorted({path.relative_to(images).parts[0] for path in pictures if path.parent != images})
    if not folders or any(path.parent == images for path in pictures):
        raise DataError(
            f"{printable(table)}: missing. Name the classes of the masks there, one a line, background first; or put "
            "every picture and its mask into a folder that has its class's name"
        )
    if BACKGROUND in folders:
        raise DataError(f"{printable(images / BACKGROUND)}: {BACKGROUND} is no class. Name classes in {CLASSES_NAME}")
    return (BACKGROUND, *folders)


def _picture(path: Path, images: Path, masks: Path, visible: Sequence[str], rows: Mapping[str, Row]) -> Picture:
    place = path.relative_to(images)
    name = _picture_name(path, images)
    mask_path = _mask_of(name, masks)
    folder_class = 0 if (masks / CLASSES_NAME).is_file() else visible.index(place.parts[0])
    sizes = _decoded_sizes(path)
    row = rows.get(name, Row("train"))
    if row.kind == "backdrop":
        return Picture(name, path, mask_path, (), row.split, folder_class, row.kind, row.weight)
    counts = np.bincount(np.asarray(_read_mask(mask_path, folder_class, sizes)).ravel(), minlength=256)
    highest = int(np.flatnonzero(counts[:VOID]).max(initial=0))
    if highest >= len(visible):
        raise DataError(f"{printable(mask_path)}: has class {highest}, {CLASSES_NAME} ends at {len(visible) - 1}")
    areas = [(k, counts[k] / counts.sum()) for k in np.argsort(-counts[1:VOID], kind="stable") + 1 if counts[k]]
    shares = tuple((int(k), float(a)) for k, a in areas)
    return Picture(name, path, mask_path, shares, row.split, folder_class, row.kind, row.weight)


def _decoded_sizes(path: Path) -> tuple[tuple[int, int], tuple[int, int]]:
    """(width, height) as shown and as stored of a picture that can be decoded to its end; JPEGs at an eighth."""
    try:
        with Image.open(path) as image:
            size = image.size
            if min(size) < SMALLEST_SIDE_PX:
                raise DataError(
                    f"{printable(path)}: is {size[0]}x{size[1]}, must be {SMALLEST_SIDE_PX} px a side at least"
                )
            image.draft("RGB", (size[0] // 8, size[1] // 8))
            image.load()
            turn = _turn(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{printable(path)}: not an image that can be read ({error})") from error
    return (size[::-1] if turn in _SIDEWAYS else size), size


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How viewers turn a picture by its EXIF orientation; None if not, or if its EXIF cannot be read."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except (SyntaxError, ValueError, KeyError, TypeError, OverflowError, struct.error):
        return None  # damaged EXIF keeps no viewer from showing the picture
    return _TURNS.get(orientation) if isinstance(orientation, int) else None


def _read_mask(path: Path, folder_class: int, sizes: tuple[tuple[int, int], tuple[int, int]]) -> Image.Image:
    with open_image(path, None) as mask:
        if folder_class and (mask.mode == "P" or "A" in mask.getbands()):
            # here colours count, and what lets others through is not marked
            mask = Image.alpha_composite(Image.new("RGBA", mask.size, "black"), mask.convert("RGBA")).convert("RGB")
        # an index mask may be a palette picture: its indices are what counts
        values = np.asarray(mask if mask.mode in ("L", "P", "1") or mask.mode[0] == "I" else mask.convert("RGB"))
    if values.ndim == 3:
        if not folder_class and (values.max(2) != values.min(2)).any():
            raise DataError(f"{printable(path)}: is a picture in colours. Store class numbers as grey levels")
        values = values.max(2)
    if folder_class:
        values = np.where(values > 0, folder_class, 0)
    if values.max() > VOID:
        raise DataError(f"{printable(path)}: has the value {values.max()}. Class numbers end at {MAX_CLASSES - 1}")
    result = Image.fromarray(values.astype(np.uint8))
    if result.size not in sizes:
        width, height = sizes[0]
        raise DataError(f"{printable(path)}: is {result.width}x{result.height}, its picture {width}x{height}")
    return result


def _sound(path: Path, sounds: Path, classes: Sequence[str]) -> Sound:
    place = path.relative_to(sounds)
    return Sound(place.as_posix(), classes.index(place.parts[0]), "train", decode_sound(path))


def decode_sound(path: Path) -> NDArray[np.int16]:
    """The first minute of a recording as 16 kHz mono. Raises MediaError if nothing can be decoded, or silence only."""
    output = ffmpeg.output(
        media_input(path)["a:0"], "pipe:1", format="s16le", ac=1, ar=SAMPLE_RATE_HZ, t=LONGEST_SOUND_S
    )
    buffer = np.empty(LONGEST_SOUND_S * SAMPLE_RATE_HZ, np.int16)
    with FfmpegProcess(command(output)) as process:
        count = process.read_into(memoryview(buffer.data).cast("B")) // 2
        process.wait()
        lines, _ = process.messages()
        remedy = process.killed()
        if remedy:
            raise MediaError(path, f"ffmpeg {process.failure()}", remedy)
    if count == 0:
        raise MediaError(path, f"no sound can be decoded ({lines[-1] if lines else 'it is empty'})")
    if not buffer[:count].any():
        raise MediaError(path, "is silent throughout", "Remove it.")
    return buffer[:count].copy()


def _with_splits(
    folder: Path,
    rows: Mapping[str, Row] | None,
    items: Sequence[Item],
    files: Sequence[tuple[Path, int]],
    unrelated: bool,
) -> tuple[tuple[Item, ...], dict[int, int] | None]:
    """The items, each in its split, and the groups of each class that were drawn; `files` are (path, class)."""
    if rows is not None:
        return tuple(replace(item, split=rows[item.name].split) for item in items), None
    splits, groups = draw_splits(files, [_content(item) for item in items], folder, unrelated=unrelated)
    return tuple(replace(item, split=split) for item, split in zip(items, splits, strict=True)), groups


def names_in_two_splits(items: Iterable[Picture | Sound]) -> list[str]:
    """Names, two by two, of pictures of the same bytes, or recordings of the same samples, in different splits."""
    found: dict[bytes, tuple[str, SplitName]] = {}
    crossing = []
    for item in items:
        name, split = found.setdefault(_content(item), (item.name, item.split))
        if split != item.split:
            crossing += [name, item.name]
    return crossing


def _content(item: Picture | Sound) -> bytes:
    """A digest of a picture's bytes, or of a recording's samples: the same sound in another container is the same."""
    if isinstance(item, Sound):
        return hashlib.sha256(item.samples.tobytes()).digest()
    try:
        return hashlib.sha256(item.path.read_bytes()).digest()
    except OSError as error:
        raise DataError(f"{printable(item.path)}: cannot be read ({error.strerror})") from error


def check_splits(sources: Sources) -> None:
    """Raises DataError naming a file that stands in more than one split."""
    crossing = names_in_two_splits(sources.pictures) or names_in_two_splits(sources.sounds)
    if crossing:
        first, second = (printable(name) for name in crossing[:2])
        raise DataError(f"{first} and {second} are the same but in two splits. Remove one, or change {TABLE_NAME}")
