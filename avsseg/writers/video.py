"""Videos: the overlay (sounding pixels tinted), the matte (the mask, white on black), the cutout (they alone)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from avsseg.errors import printable
from avsseg.media.captions import Caption, can_draw
from avsseg.media.render import Interpolation, VideoRenderer
from avsseg.media.render_graph import WHITE, Style
from avsseg.writers.base import PartialOutput, TrackSettings, fsync, output_errors
from avsseg.writers.labels import label_map, marked_labels
from avsseg.writers.naming import reach

if TYPE_CHECKING:
    from avsseg.media.picture_end import PictureEnd
    from avsseg.media.probe import VideoInfo
    from avsseg.pipeline.segment import Mask

COLOUR = (255, 64, 0)
OPACITY = 0.55
# alpha goes from 0 to 1 while the probability crosses 1 / EDGE_STEEPNESS around the threshold: an edge that is
# anti-aliased after ffmpeg's bilinear scaling and shows no haze where the model is unsure
EDGE_STEEPNESS = 6.0
# share of the picture that a class must cover to be named; several classes leave stray pixels where they meet
SMALLEST_NAMED = 0.002


class VideoWriter:
    """Writes one video; the container follows the target's suffix (.mp4, .mkv, .mov, .webm; no .mp4 for cutouts).

    With `names` an overlay says what sounds, where the model tells: a mask without a name has that of the ones before.
    """

    def __init__(
        self, target: Path, style: Style = "overlay", *, interpolate: Interpolation = "hold", names: bool = True
    ) -> None:
        self.target = target
        self.warnings: tuple[str, ...] = ()
        self._style = style
        self._interpolate = interpolate
        self._names = names and style == "overlay"
        self._sure = 0, ""  # the last mask whose sound had a name, and that name
        self._newest = 0  # the last mask that was called anything
        self._left_out: set[str] = set()
        self._output: PartialOutput | None = None
        self._renderer: VideoRenderer | None = None

    def open(self, info: VideoInfo, settings: TrackSettings) -> None:
        self._info, self._settings = info, settings
        self._output = PartialOutput(self.target)

    def write(self, mask: Mask) -> None:
        if self._renderer is None:
            self._renderer = self._start_renderer(*mask.probability.shape[1:])
        captions = self._captions(mask) if self._captioned else ()
        with output_errors(self.target):
            self._renderer.write(mask_alpha(mask.probability, self._settings.threshold), captions)

    def finish(self, picture_end: PictureEnd | None = None) -> list[Path]:
        assert self._output is not None
        assert self._renderer is not None
        with output_errors(self.target):
            self._renderer.close()
            self.warnings = (*self._renderer.warnings, *map(_no_letters, sorted(self._left_out)))
            fsync(self._output.path)
        self._output.commit()
        self._output = self._renderer = None
        return [self.target]

    def abort(self) -> None:
        renderer, self._renderer = self._renderer, None
        if renderer is not None:
            renderer.kill()
        if self._output is not None:
            self._output.discard()
            self._output = None

    @property
    def _captioned(self) -> bool:
        return self._names and (len(self._settings.categories) > 1 or any(self._settings.heard))

    def _captions(self, mask: Mask) -> list[Caption]:
        settings = self._settings
        _, height, width = mask.probability.shape
        labels = label_map(mask.probability, width, height, settings.threshold)
        several = len(settings.categories) > 1
        captions = []
        for label in marked_labels(labels):
            region = labels == label
            category = settings.category(label, mask.heard)
            if several and region.mean() < SMALLEST_NAMED:
                continue
            if several or category != label:
                name = settings.named()[category]
                self._sure = mask.index, name
            else:
                sure, name = self._sure
                if not name or mask.index - self._newest != 1 or mask.index - sure > reach(settings):
                    self._sure = 0, ""
                    continue
            rows, columns = np.nonzero(region)
            # a few stray pixels above do not count
            top = float(np.quantile(rows, 0.02))
            captions.append(Caption(name, float(columns.mean() + 0.5) / width, top / height))
            self._newest = mask.index
        self._left_out |= {caption.text for caption in captions if not can_draw(caption.text)}
        return captions

    def _start_renderer(self, mask_height: int, mask_width: int) -> VideoRenderer:
        assert self._output is not None
        settings = self._settings
        return VideoRenderer(
            self._info,
            self._output.path,
            container=self.target.suffix.lower().lstrip("."),
            display_path=self.target,
            rate=settings.rate,
            mask_width=mask_width,
            mask_height=mask_height,
            style=self._style,
            colour=COLOUR if self._style == "overlay" else WHITE,
            opacity=OPACITY if self._style == "overlay" else 1.0,
            captioned=self._captioned,
            interpolate=self._interpolate,
            start_s=settings.start_s,
            end_s=settings.end_s,
        )


def _no_letters(name: str) -> str:
    return f"no font found here has the letters of {printable(name)}: the overlay shows that mask without its name"


def mask_alpha(probability: NDArray[np.float32], threshold: float) -> NDArray[np.float32]:
    """How strongly each pixel is tinted, (h, w) in [0, 1], from probabilities (N_class, h, w).

    0.5 where one class meets the threshold, or where the likeliest sounding class meets the background.
    """
    if len(probability) == 1:
        margin = probability[0] - np.float32(threshold)
    else:
        sounding = probability[1:].max(axis=0)
        margin = sounding / np.maximum(sounding + probability[0], np.finfo(np.float32).tiny) - np.float32(0.5)
    alpha: NDArray[np.float32] = np.clip(margin * np.float32(EDGE_STEEPNESS) + np.float32(0.5), 0, 1)
    return alpha
