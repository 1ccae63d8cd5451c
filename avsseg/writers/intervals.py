"""A CSV file of when something sounds: one line for each stretch of masks in which a category is marked.

    start,end,area,score,category
    2.000,5.000,0.1312,0.8841,dog

`start` and `end` are seconds on the video's clock, `area` the mean fraction of the picture that is marked, `score` the
mean probability there, `category` what sounds where the model is sure of its class, else `sounding`. A video in which
nothing sounds gives the first line alone.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from avsseg.writers.base import PartialOutput, TrackSettings, output_errors
from avsseg.writers.coco import score
from avsseg.writers.labels import label_map
from avsseg.writers.naming import final_categories

if TYPE_CHECKING:
    from avsseg.media.picture_end import PictureEnd
    from avsseg.media.probe import VideoInfo
    from avsseg.pipeline.segment import Mask

COLUMNS = ("start", "end", "area", "score", "category")


@dataclass(frozen=True)
class _Marked:
    """One category in one mask: its index, area and score."""

    category: int
    index: int
    area: float
    score: float


class IntervalWriter:
    """Writes one CSV file; holds a few numbers for each mask until the end."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.warnings: tuple[str, ...] = ()
        self._output: PartialOutput | None = None
        self._marked: list[_Marked] = []

    def open(self, info: VideoInfo, settings: TrackSettings) -> None:
        self._info, self._settings = info, settings
        self._output = PartialOutput(self.target)
        with output_errors(self.target):
            self._output.path.touch()  # an unwritable folder is found before the work, not after it

    def write(self, mask: Mask) -> None:
        info, threshold = self._info, self._settings.threshold
        labels = label_map(mask.probability, info.width, info.height, threshold)
        for label in self._settings.foreground():
            area = float((labels == label).mean())
            if area > 0:
                category = self._settings.category(label, mask.heard)
                self._marked.append(_Marked(category, mask.index, area, score(mask.probability, label, threshold)))

    def finish(self, picture_end: PictureEnd | None = None) -> list[Path]:
        assert self._output is not None
        categories = final_categories(self._settings, [(one.index, one.category) for one in self._marked])
        marked = [replace(one, category=category) for one, category in zip(self._marked, categories, strict=True)]
        stretches = sorted(_stretches(marked), key=lambda stretch: (stretch[0].index, stretch[0].category))
        end_s = self._info.duration_s if picture_end is None else picture_end.time_s
        with output_errors(self.target), self._output.path.open("w", encoding="utf-8", newline="") as file:
            lines = csv.writer(file, lineterminator="\n")
            lines.writerow(COLUMNS)
            lines.writerows(self._line(stretch, end_s) for stretch in stretches)
        self._output.commit()
        self._output = None
        return [self.target]

    def abort(self) -> None:
        if self._output is not None:
            self._output.discard()
            self._output = None

    def _line(self, stretch: Sequence[_Marked], picture_end_s: float | None) -> list[str]:
        settings, first, last = self._settings, stretch[0].index, stretch[-1].index
        end_s = settings.start_s + (last + 1) / settings.rate
        # the last mask stands for the rest of the picture, which may be shorter than its interval; an end before that
        # mask is one that a header announces too early
        for limit in (settings.end_s, picture_end_s):
            if limit is not None and limit > settings.start_s + last / settings.rate:
                end_s = min(end_s, limit)
        return [
            f"{settings.start_s + first / settings.rate:.3f}",
            f"{end_s:.3f}",
            f"{statistics.fmean(one.area for one in stretch):.4f}",
            f"{statistics.fmean(one.score for one in stretch):.4f}",
            settings.named()[stretch[0].category],
        ]


def _stretches(marked: Sequence[_Marked]) -> Iterator[list[_Marked]]:
    """Masks of one category that follow each other without a gap."""
    by_category: dict[int, list[_Marked]] = {}
    for one in marked:
        stretch = by_category.setdefault(one.category, [])
        if stretch and one.index - stretch[-1].index > 1:
            yield stretch
            stretch = by_category[one.category] = []
        stretch.append(one)
    yield from by_category.values()
