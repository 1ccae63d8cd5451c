"""True masks beside predicted ones: a folder of pictures, and which of them belongs to an instant."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avsseg.data.avsbench_files import open_mask
from avsseg.errors import DataError, printable
from avsseg.media.probe import VideoInfo
from avsseg.writers.base import MASK_FOLDER_MARK, of_the_system

SHAPE_TOLERANCE = 0.05  # sides of small pictures are rounded


@dataclass(frozen=True)
class TruthMasks:
    """The masks of a folder; the one at `paths[k]` is true from `starts_s[k]` to `ends_s[k]` seconds."""

    paths: tuple[Path, ...]
    starts_s: tuple[float, ...]
    ends_s: tuple[float, ...]

    def at(self, time_s: float) -> NDArray[np.bool_] | None:
        """The pixels (h, w) that sound at that time; None where nothing is annotated. Raises DataError."""
        for path, start_s, end_s in zip(self.paths, self.starts_s, self.ends_s, strict=True):
            if start_s <= time_s < end_s:
                return _read_mask(path)
        return None

    def check_shape(self, info: VideoInfo) -> None:
        """Raises DataError if the first mask has another shape than the video's picture.

        Squares are taken for pictures squashed to one, as AVSBench's are.
        """
        for path in self.paths[:1]:
            height, width = _read_mask(path).shape
            shown = float(info.width * info.sample_aspect_ratio / info.height)
            fitting = (1.0, info.width / info.height, shown)
            if all(abs(width / height / aspect - 1) > SHAPE_TOLERANCE for aspect in fitting):
                raise DataError(
                    f"{printable(path)}: is {width}x{height}, another shape than the picture of "
                    f"{printable(info.path)}, {info.width}x{info.height}. Give --truth the masks of that video"
                )


def truth_masks(folder: Path) -> TruthMasks:
    """The PNG masks in a folder, in the order of the numbers at the end of their names.

    One that `avsseg run` or a reviewer of its masks left says in its masks.json when each is; any other has one mask a
    second from 0 s on, as AVSBench's clips do. Raises DataError.
    """
    if not folder.is_dir():
        raise DataError(f"{printable(folder)}: no such folder. Give --truth a folder of PNG masks")
    listing = folder / MASK_FOLDER_MARK
    if listing.is_file():
        try:
            document = json.loads(listing.read_bytes())
            half_s = 0.5 / float(document["settings"]["rate"])
            masks = [(folder / str(mask["file_name"]), float(mask["timestamp"])) for mask in document["masks"]]
        except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
            raise DataError(f"{printable(listing)}: does not list masks as `avsseg run` does. Remove it") from error
        return TruthMasks(
            tuple(path for path, _ in masks),
            tuple(time_s - half_s for _, time_s in masks),
            tuple(time_s + half_s for _, time_s in masks),
        )
    pictures = (path for path in folder.iterdir() if path.suffix.lower() == ".png" and not of_the_system(path.name))
    paths = sorted(pictures, key=_number)
    if not paths:
        raise DataError(f"{printable(folder)}: holds no .png masks. Give --truth the folder that does")
    seconds = range(len(paths))
    return TruthMasks(tuple(paths), tuple(map(float, seconds)), tuple(second + 1.0 for second in seconds))


def _number(path: Path) -> tuple[int, str]:
    digits = re.search(r"(\d+)$", path.stem)
    return (int(digits[1]) if digits else 0, path.name)


def _read_mask(path: Path) -> NDArray[np.bool_]:
    # as in training and evaluation
    return np.asarray(open_mask(path, classes=False, colours=False)).astype(np.bool_)
