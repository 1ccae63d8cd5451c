"""A CSV file of when something sounds: one line for each stretch of masks in which a category is marked.

    start,end,area,score,category
    2.000,5.000,0.1312,0.8841,dog

`start` and `end` are seconds on the video's clock, `area` the mean fraction of the picture that is marked, `score` the
mean probability there, `category` what sounds where the model is sure of its class, else `sounding`. A video in which
nothing sounds gives the first line alone.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from avsseg.writers.base import PartialOutput, TrackSettings, output_errors
from avsseg.writers.coco import score
from avsseg.writers.labels import label_map

if TYPE_CHECKING:
    from avsseg.media.probe import VideoInfo
    from avsseg.pipeline.segment import Mask

COLUMNS = ("start", "end", "area", "score", "category")


@dataclass
class _Stretch:
    """Masks `first` to `last` of one category, with the sums of their areas and scores."""

    category: int
    first: int
    last: int
    area: float
    score: float


class IntervalWriter:
    """Writes one CSV file; holds a few numbers for each stretch until the end."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.warnings: tuple[str, ...] = ()
        self._output: PartialOutput | None = None
        self._open: dict[int, _Stretch] = {}
        self._closed: list[_Stretch] = []

    def open(self, info: VideoInfo, settings: TrackSettings) -> None:
        self._info, self._settings = info, settings
        self._output = PartialOutput(self.target)
        with output_errors(self.target):
            self._output.path.touch()  # an unwritable folder is found before the work, not after it

    def write(self, mask: Mask) -> None:
        info, threshold = self._info, self._settings.threshold
        labels = label_map(mask.probability, info.width, info.height, threshold)
        areas = {label: float((labels == label).mean()) for label in self._settings.foreground()}
        marked = {self._settings.category(label, mask.heard): label for label, area in areas.items() if area > 0}
        for category in self._open.keys() - marked.keys():
            self._closed.append(self._open.pop(category))
        for category, label in marked.items():
            stretch = self._open.setdefault(category, _Stretch(category, mask.index, mask.index, 0.0, 0.0))
            stretch.last = mask.index
            stretch.area += areas[label]
            stretch.score += score(mask.probability, label, threshold)

    def finish(self) -> list[Path]:
        assert self._output is not None
        stretches = sorted([*self._closed, *self._open.values()], key=lambda s: (s.first, s.category))
        with output_errors(self.target), self._output.path.open("w", encoding="utf-8", newline="") as file:
            lines = csv.writer(file, lineterminator="\n")
            lines.writerow(COLUMNS)
            lines.writerows(self._line(stretch) for stretch in stretches)
        self._output.commit()
        self._output = None
        return [self.target]

    def abort(self) -> None:
        if self._output is not None:
            self._output.discard()
            self._output = None

    def _line(self, stretch: _Stretch) -> list[str]:
        settings, masks = self._settings, stretch.last - stretch.first + 1
        end_s = settings.start_s + (stretch.last + 1) / settings.rate
        # the last mask stands for the rest of the video, which may be shorter than its interval; an end before that
        # mask is one that a header announces too early
        for limit in (settings.end_s, self._info.duration_s):
            if limit is not None and limit > settings.start_s + stretch.last / settings.rate:
                end_s = min(end_s, limit)
        return [
            f"{settings.start_s + stretch.first / settings.rate:.3f}",
            f"{end_s:.3f}",
            f"{stretch.area / masks:.4f}",
            f"{stretch.score / masks:.4f}",
            settings.named()[stretch.category],
        ]
