"""A folder of PNG masks, one for each mask of the track, and `masks.json`: when and how each was made, what it marks.

One class: 8-bit grey, 0 or 255, as video editors and most scripts want. Several classes: 8-bit indexed, the pixel value
is the class and the palette is that of PASCAL VOC and DAVIS.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from avsseg.writers.base import MASK_FOLDER_MARK, PartialOutput, TrackSettings, fsync, output_errors
from avsseg.writers.labels import label_map, marked_labels
from avsseg.writers.naming import final_categories

if TYPE_CHECKING:
    from avsseg.media.picture_end import PictureEnd
    from avsseg.media.probe import VideoInfo
    from avsseg.pipeline.segment import Mask


def mask_file_name(index: int, info: VideoInfo, settings: TrackSettings) -> str:
    """Five digits, or as many as the last mask of the whole video has, so that names sort as masks do.

    A video that does not say how long it is gets five, and more from mask 100,000 on.
    """
    last = max(0, math.ceil((info.duration_s or 0) * settings.rate) - 1)
    return f"{index:0{max(5, len(str(last)))}d}.png"


def frame_index(timestamp_s: float, index: int, info: VideoInfo, end: PictureEnd | None) -> int:
    """The source frame on screen then, by the average rate; the mask's own index when that rate is unknown.

    After the `end` of the picture it is the last frame.
    """
    if not info.frame_rate:
        return index
    since_first_s = timestamp_s - info.picture_start_s
    # a frame's own timestamp may round to just below it; before the first one that one is shown
    shown = max(0, math.floor(since_first_s * info.frame_rate + 1e-6))
    end_s = info.duration_s if end is None else end.time_s
    if end is not None and end.frames is not None:
        count = end.frames
    elif end_s is not None:
        count = round((end_s - info.picture_start_s) * info.frame_rate)
    else:
        return shown
    return min(shown, max(0, count - 1))


def voc_palette() -> list[int]:
    """256 RGB triples in which colour c spreads the bits of c over the high bits of red, green and blue."""
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        channel, shift = bit % 3, 7 - bit // 3
        palette[:, channel] |= (((np.arange(256) >> bit) & 1) << shift).astype(np.uint8)
    return [int(value) for value in palette.ravel()]


class MaskFolderWriter:
    """Writes ``TARGET/00000.png``, ... at display resolution and ``TARGET/masks.json``."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.warnings: tuple[str, ...] = ()
        self._output: PartialOutput | None = None
        self._entries: list[dict[str, Any]] = []
        self._marked: list[tuple[int, int]] = []  # index of the mask, id of a category in it

    def open(self, info: VideoInfo, settings: TrackSettings) -> None:
        self._info, self._settings = info, settings
        self._output = PartialOutput(self.target, folder=True)

    def write(self, mask: Mask) -> None:
        assert self._output is not None
        labels = label_map(mask.probability, self._info.width, self._info.height, self._settings.threshold)
        if len(mask.probability) == 1:
            image = Image.fromarray(labels * np.uint8(255))
        else:
            image = Image.fromarray(labels).convert("P")
            image.putpalette(voc_palette())
        name = mask_file_name(mask.index, self._info, self._settings)
        with output_errors(self.target):
            # level 1 takes half the time of the default and gives files a quarter larger
            image.save(self._output.path / name, compress_level=1)
            fsync(self._output.path / name)
        categories = (self._settings.category(label, mask.heard) for label in marked_labels(labels))
        self._marked += [(mask.index, category) for category in categories]
        self._entries.append(
            {
                "file_name": name,
                "index": mask.index,
                "timestamp": mask.timestamp_s,
            }
        )

    def finish(self, picture_end: PictureEnd | None = None) -> list[Path]:
        assert self._output is not None
        categories = final_categories(self._settings, self._marked)
        names: dict[int, list[str]] = {}
        for (index, _), category in zip(self._marked, categories, strict=True):
            names.setdefault(index, []).append(self._settings.named()[category])
        document = {
            "video": self._info.path.name,
            "width": self._info.width,
            "height": self._info.height,
            "pixel_values": {
                name: 255 if len(self._settings.categories) == 1 else label
                for label, name in self._settings.foreground().items()
            },
            "settings": self._settings.as_json(),
            "masks": [
                {
                    **entry,
                    "frame_index": frame_index(entry["timestamp"], entry["index"], self._info, picture_end),
                    "categories": names.get(entry["index"], []),
                }
                for entry in self._entries
            ],
        }
        listing = self._output.path / MASK_FOLDER_MARK
        with output_errors(self.target):
            listing.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
            fsync(listing)
        self._output.commit()
        self._output = None
        return [self.target]

    def abort(self) -> None:
        if self._output is not None:
            self._output.discard()
            self._output = None
