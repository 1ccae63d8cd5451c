"""Where AVSBench keeps its files: the clips of S4, MS3 and AVSS, in the folders as distributed and in their variants.

    Single-source/ or not       s4_meta_data.csv, s4_data/{visual_frames,gt_masks,audio_wav,audio_log_mel,raw_videos}/
    Multi-sources/ or not       ms3_meta_data.csv, ms3_data/... the same, frames and videos without a split folder
    AVSBench_semantic/, avs_released/ or neither
                                metadata.csv, label2idx.json, LABEL/UID/ or LABEL/LABEL/UID/ with frames/,
                                labels_semantic/, labels_rgb/ or their processed_ copies, and audio.wav; LABEL is v1s,
                                v1m or v2

Files are found by the number at the end of their names, counted from 0 or from 1, with the clip's name before it, with
the name and a literal `.mp4`, as AVSBench's MS3 frames have, or with nothing; pictures are png or jpg.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from avsseg.data.avss_classes import check_label_table
from avsseg.errors import DataError, printable

Subset = Literal["s4", "ms3", "avss"]
SplitName = Literal["train", "val", "test"]
SUBSETS: tuple[Subset, ...] = get_args(Subset)
SPLITS: tuple[SplitName, ...] = get_args(SplitName)
SECONDS = 5
AVSS_SECONDS = {"v1s": 5, "v1m": 5, "v2": 10}
MOST_SECONDS: dict[Subset, int] = {"s4": SECONDS, "ms3": SECONDS, "avss": max(AVSS_SECONDS.values())}
LABEL_TABLE = "label2idx.json"
_PICTURES = (".png", ".jpg", ".jpeg")
_FOLDERS: dict[Subset, tuple[str, ...]] = {
    "s4": ("Single-source",),
    "ms3": ("Multi-sources",),
    "avss": ("AVSBench_semantic", "avs_released"),
}
_TABLES: dict[Subset, str] = {"s4": "s4_meta_data.csv", "ms3": "ms3_meta_data.csv", "avss": "metadata.csv"}
# what lies beside the table
_CONTENTS: dict[Subset, tuple[str, ...]] = {"s4": ("s4_data",), "ms3": ("ms3_data",), "avss": ("v1s", "v1m")}


@dataclass(frozen=True)
class ClipFiles:
    """The files of one clip, a frame a second in order of time.

    Attributes:
        name: its name in the metadata table.
        category: S4's category; AVSS's class names joined by `_`, without background and off-the-screen; "" for MS3.
        frames: 5 paths, or 10 for AVSS's v2.
        masks: as many, or one where only the first frame is annotated (training clips of S4 and v1s).
        wav, log_mel, video: None where there is none.
        colour_masks: the masks are RGB label maps, in the colours of `avss_classes`.
    """

    name: str
    category: str
    frames: tuple[Path, ...]
    masks: tuple[Path, ...]
    wav: Path | None
    log_mel: Path | None
    video: Path | None
    colour_masks: bool


@dataclass(frozen=True)
class _Row:
    name: str
    category: str
    split: str
    label: str = ""  # AVSS: v1s, v1m or v2


@dataclass(frozen=True)
class _Numbered:
    """Files of one folder that differ in a number; `missing` is the first that is not there."""

    paths: tuple[Path, ...]
    missing: Path | None
    present: int


def subset_folder(root: Path, subset: Subset) -> Path:
    """The folder that holds the subset's metadata table. Raises DataError if there is none."""
    table = metadata_table(root, subset)
    if table.is_file():
        return table.parent
    if _is_unfinished(table.parent / f"{subset}_data"):
        raise DataError(
            f"{printable(table)}: missing, since `avsseg data synth` or `data compose` was stopped before it had made "
            "the last clip. Give the same command again: it begins anew, and the clips are the same"
        )
    raise DataError(f"{printable(table)}: missing. Give the folder that holds {_FOLDERS[subset][0]}/")


def metadata_table(root: Path, subset: Subset) -> Path:
    """Where the subset's metadata table is; where it should be if it is nowhere."""
    folders = [root / name for name in _FOLDERS[subset]]
    present = next((folder for folder in (*folders, root) if (folder / _TABLES[subset]).is_file()), None)
    return (present or next((folder for folder in folders if folder.is_dir()), root)) / _TABLES[subset]


def _is_unfinished(data: Path) -> bool:
    """Whether it holds clips named as avsseg names those that it makes; their table is written last."""
    frames = data / "visual_frames"
    return any(
        re.fullmatch(rf"({'|'.join(SPLITS)})_[0-9]{{8,}}", path.name)
        for depth in ("*", "*/*/*")
        for path in frames.glob(depth)
    )


def subsets_in(root: Path) -> tuple[Subset, ...]:
    """The subsets of which the metadata table or a folder is there.

    Raises DataError, saying what a folder must hold, if none is.
    """
    if not root.is_dir():
        raise DataError(f"{printable(root)}: no such folder")
    found = tuple(
        subset
        for subset in SUBSETS
        if (root / _TABLES[subset]).is_file()
        or any((root / name).is_dir() for name in (*_FOLDERS[subset], *_CONTENTS[subset]))
    )
    if not found:
        must = ", ".join(f"{_FOLDERS[subset][0]}/ with {_TABLES[subset]} ({subset})" for subset in SUBSETS)
        raise DataError(f"{printable(root)}: holds no AVSBench subset. It must hold one at least of {must}")
    return found


def list_clips(root: Path, subset: Subset, split: SplitName, *, complete: bool = True) -> list[ClipFiles]:
    """The clips of a split, in the order of the metadata table.

    `complete` makes sure that every clip has its frames, its masks and a wav or a pickled log-mel, and raises DataError
    naming what is missing. Otherwise the files are those that the table promises, whether they are there or not; only
    an AVSS clip's `log_mel` and `video`, which the distribution does not have, are None unless they are there.
    """
    folder = subset_folder(root, subset)
    rows = [row for row in _read_table(folder / _TABLES[subset], subset) if row.split == split]
    if complete and not rows:
        raise DataError(f"{printable(folder / _TABLES[subset])}: lists no {split} clip")
    if complete and subset == "avss":
        check_label_table(folder / LABEL_TABLE)
    return [_clip_files(root, folder, subset, row, complete) for row in rows]


def _read_table(table: Path, subset: Subset) -> list[_Row]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            lines = [[cell.strip() for cell in line] for line in csv.reader(file)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{printable(table)}: not a csv table that can be read ({error})") from error
    header = [cell.lower() for cell in lines[0]] if lines else []
    if subset == "avss":
        columns = {name: header.index(name) for name in ("uid", "split", "label", "a_obj") if name in header}
        if not {"uid", "split", "label"} <= set(columns):
            raise DataError(f"{printable(table)}: needs the columns uid, split and label")
    else:
        last = 3 if subset == "s4" else 1
        columns = {"uid": 0, "split": header.index("split") if "split" in header else last}
        if subset == "s4":
            columns["a_obj"] = 2
    rows = []
    for number, line in enumerate(lines, start=1):
        if not any(line) or (number == 1 and "split" in header):
            continue
        if len(line) <= max(columns.values()):
            raise DataError(f"{printable(table)}: line {number} has {len(line)} columns, too few")
        cells = {name: line[column] for name, column in columns.items()}
        if cells["split"] not in SPLITS:
            if number == 1:
                continue  # a header of other names
            raise DataError(f"{printable(table)}: line {number} has split {cells['split']!r}, not train, val or test")
        row = _Row(cells["uid"], cells.get("a_obj", ""), cells["split"], cells.get("label", ""))
        _check_row(row, subset, f"{printable(table)}: line {number}")
        rows.append(_Row(row.name, _classes(row.category), row.split, row.label) if subset == "avss" else row)
    return rows


def _check_row(row: _Row, subset: Subset, place: str) -> None:
    # names become paths, also of files that a repair writes: none may lead out of the dataset
    for name in (row.name, row.category) if subset == "s4" else (row.name,):
        if name in ("", ".", "..") or set(name) & set("/\\\0"):
            raise DataError(f"{place} has the name {name!r}, which cannot be that of a file")
    if subset == "avss" and row.label not in AVSS_SECONDS:
        raise DataError(f"{place} has label {row.label!r}, not {', '.join(AVSS_SECONDS)}")


def _classes(objects: str) -> str:
    # the distributed table has one "h orse"
    names = objects.replace(" ", "").split("_")
    return "_".join(name for name in names if name not in ("background", "off-the-screen"))


def _clip_files(root: Path, folder: Path, subset: Subset, row: _Row, complete: bool) -> ClipFiles:
    if subset == "avss":
        files, missing = _avss_clip(folder, row)
    else:
        files, missing = _object_clip(folder / f"{subset}_data", subset, row)
    if not complete:
        return files
    if missing is not None:
        raise DataError(f"{printable(missing)}: missing, needed by {row.split} clip {printable(row.name)}")
    wav, log_mel, video = (
        path if path and path.is_file() else None for path in (files.wav, files.log_mel, files.video)
    )
    if wav is None and log_mel is None:
        raise missing_sound(files, root)
    return ClipFiles(
        files.name, files.category, files.frames, files.masks, wav, log_mel, video, colour_masks=files.colour_masks
    )


def missing_sound(files: ClipFiles, root: Path) -> DataError:
    """The error of a clip that has neither a wav nor a pickled log-mel."""
    wanted = files.wav or files.log_mel or Path(files.name)
    return DataError(
        f"{printable(wanted)}: missing, and no pickled log-mel stands in for it. "
        f"`avsseg data check {printable(root)} --fix-audio` makes it from the raw video"
    )


def _object_clip(data: Path, subset: Subset, row: _Row) -> tuple[ClipFiles, Path | None]:
    single = subset == "s4"
    name = row.name
    place = Path(row.split, row.category) if single else Path(row.split)
    annotated = 1 if single and row.split == "train" else SECONDS
    # as distributed, MS3's frames and videos have no split folder, its masks and sounds have one
    frame_places = (place,) if single else (Path(), place)
    plain, literal = f"{name}_", f"{name}.mp4_"
    frames = _numbered(
        [data / "visual_frames" / p / name for p in frame_places],
        (plain, literal, "") if single else (literal, plain, ""),
        SECONDS,
        SECONDS,
        base=1,
        suffix=".png",
    )
    masks = _numbered(
        [data / "gt_masks" / place / name], (plain, literal, ""), annotated, SECONDS, base=1, suffix=".png"
    )
    sound_places = (place,) if single else (place, Path())
    files = ClipFiles(
        name,
        row.category,
        frames.paths,
        masks.paths,
        _first_present([data / "audio_wav" / p / f"{name}.wav" for p in sound_places]),
        _first_present([data / "audio_log_mel" / p / f"{name}.pkl" for p in sound_places]),
        _first_present([data / "raw_videos" / p / f"{name}.mp4" for p in frame_places]),
        colour_masks=False,
    )
    return files, frames.missing or masks.missing


def _avss_clip(folder: Path, row: _Row) -> tuple[ClipFiles, Path | None]:
    seconds = AVSS_SECONDS[row.label]
    annotated = 1 if row.label == "v1s" and row.split == "train" else seconds
    places = [folder / row.label / row.name, folder / row.label / row.label / row.name]
    clip = next((place for place in places if place.is_dir()), places[0])
    prefixes = ("", f"{row.name}_")
    frames = _numbered([clip / "frames", clip / "processed_frames"], prefixes, seconds, seconds, base=0, suffix=".jpg")
    # of the label maps, those of the pictures' own size first
    names = ("labels_semantic", "labels_rgb", "processed_labels_semantic")
    found = [_numbered([clip / name], prefixes, annotated, seconds, base=0, suffix=".png") for name in names]
    chosen = max(range(len(names)), key=lambda i: (found[i].present, -i))
    log_mel = clip / "audio.pkl"
    video = clip / "video.mp4"
    files = ClipFiles(
        row.name,
        row.category,
        frames.paths,
        found[chosen].paths,
        clip / "audio.wav",
        log_mel if log_mel.is_file() else None,
        video if video.is_file() else None,
        colour_masks=names[chosen] == "labels_rgb",
    )
    return files, frames.missing or found[chosen].missing


def _first_present(candidates: Sequence[Path]) -> Path:
    return next((path for path in candidates if path.is_file()), candidates[0])


def _numbered(
    folders: Sequence[Path], prefixes: Sequence[str], count: int, total: int, *, base: int, suffix: str
) -> _Numbered:
    """The first `count` of `total` pictures, from the folder and prefix that have most of them; ties: the first."""
    best: _Numbered | None = None
    for folder in folders:
        names = _picture_names(folder)
        for prefix in prefixes:
            numbers = {
                int(stem[len(prefix) :]): stem + ending
                for stem, ending in names
                if stem.startswith(prefix) and stem[len(prefix) :].isdecimal()
            }
            wanted = range(count) if _first_number(set(numbers), total, base) == 0 else range(1, count + 1)
            ending = next((Path(name).suffix for name in numbers.values()), suffix)
            paths = tuple(folder / numbers.get(k, f"{prefix}{k}{ending}") for k in wanted)
            missing = next((path for k, path in zip(wanted, paths, strict=True) if k not in numbers), None)
            found = _Numbered(paths, missing, sum(k in numbers for k in wanted))
            if best is None or found.present > best.present:
                best = found
    assert best is not None
    return best


def _picture_names(folder: Path) -> list[tuple[str, str]]:
    """(stem, suffix), png last, so that it wins over a jpg of the same number."""
    try:
        names = [os.path.splitext(name) for name in os.listdir(folder)]
    except OSError:
        return []
    return sorted(
        (pair for pair in names if pair[1].lower() in _PICTURES), key=lambda pair: (pair[1].lower() == ".png", pair)
    )


def _first_number(numbers: set[int], total: int, base: int) -> int:
    """Whether files are counted from 0 or from 1: from `base`, unless the numbers that are there say otherwise."""
    if set(range(base, base + total)) <= numbers:
        return base
    if 0 in numbers:
        return 0
    if total in numbers or numbers == {1}:
        return 1
    return base
