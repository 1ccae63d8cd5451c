"""Drawing: tiles of a frame with something over it, the waveform with a cursor, and both put together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from avsseg.evaluation.strips import PREDICTION_COLOUR, TRUTH_COLOUR, tinted
from avsseg.media.audio import read_audio
from avsseg.media.probe import VideoInfo

TILE_AREA = 288 * 216  # pixels, whatever the shape of the picture
GAP = 6
HEADER = 24
STRIP_HEIGHT = 72
FONT_SIZE = 14
PEAKS_PER_S = 50  # of 20 ms, a period of the lowest tones
QUIETEST = 0.02  # of full scale: what is no louder is not blown up to the height of the waveform
FEATURE_OPACITY = 0.7  # the paper's "scaling factor"

INK, PAPER = (28, 36, 48), (255, 255, 255)
WAVE_COLOUR, CURSOR_COLOUR, HEARD_COLOUR = (70, 90, 130), (220, 40, 40), (255, 236, 214)
HEARD_S = 0.5  # before and after a frame: what its log-mel example covers

Painter = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class Shown:
    """What one mask's instant looks like: for each column, how it is painted on the frame on screen."""

    index: int
    timestamp_s: float
    columns: Mapping[str, Painter]


@dataclass(frozen=True, eq=False)
class Waveform:
    """Peaks (n,) in [0, 1], `PEAKS_PER_S` a second, from `start_s` to `end_s` on the container's clock."""

    peaks: NDArray[np.float32]
    start_s: float
    end_s: float


def tile_size(info: VideoInfo) -> tuple[int, int]:
    """Width and height of a tile in even pixels, in the shape of the picture on screen."""
    aspect = float(info.width * info.sample_aspect_ratio / info.height)
    aspect = min(max(aspect, 0.25), 4.0)
    width, height = math.sqrt(TILE_AREA * aspect), math.sqrt(TILE_AREA / aspect)
    return 2 * round(width / 2), 2 * round(height / 2)


def read_waveform(info: VideoInfo, start_s: float, end_s: float | None, audio_track: int | None = None) -> Waveform:
    """The peaks of the sound from `start_s` to `end_s`, or to its end. Raises MediaError."""
    block = round(16_000 / PEAKS_PER_S)
    with read_audio(info, track=audio_track, start_s=start_s, end_s=end_s, block=block * PEAKS_PER_S) as sound:
        peaks = [
            np.abs(np.pad(samples, (0, -len(samples) % block))).reshape(-1, block).max(axis=1) for samples in sound
        ]
    joined = np.concatenate(peaks) if peaks else np.zeros(0, np.float32)
    ends = [end for end in (info.duration_s, end_s) if end is not None]
    return Waveform(joined, start_s, min(ends, default=start_s + max(1.0, len(joined) / PEAKS_PER_S)))


def unchanged(frame: Image.Image) -> Image.Image:
    """The frame itself."""
    return frame


def prediction_painter(alpha: NDArray[np.float32]) -> Painter:
    """Tints where `alpha` (h, w), stretched over the frame, exceeds a half."""

    def paint(frame: Image.Image) -> Image.Image:
        strength = Image.fromarray(alpha.astype(np.float32)).resize(frame.size, Image.Resampling.BILINEAR)
        return tinted(frame, np.asarray(strength) > 0.5, PREDICTION_COLOUR)

    return paint


def truth_painter(mask: NDArray[np.bool_] | None) -> Painter:
    """Tints the true pixels (h, w); without a truth the frame is grey."""

    def paint(frame: Image.Image) -> Image.Image:
        if mask is None:
            return frame.convert("L").convert("RGB")
        labels = Image.fromarray(mask.astype(np.uint8)).resize(frame.size, Image.Resampling.NEAREST)
        return tinted(frame, np.asarray(labels) > 0, TRUTH_COLOUR)

    return paint


def feature_painter(colours: NDArray[np.uint8]) -> Painter:
    """Lays RGB colours (h, w, 3), stretched over the frame, on it."""

    def paint(frame: Image.Image) -> Image.Image:
        stretched = Image.fromarray(colours).resize(frame.size, Image.Resampling.BICUBIC)
        return Image.blend(frame, stretched, FEATURE_OPACITY)

    return paint


def draw_rows(rows: Sequence[tuple[Shown, Image.Image]], waveform: Waveform) -> Image.Image:
    """One row for each instant and its frame: its columns, and the waveform with a cursor there."""
    width, height = rows[0][1].size
    names = [*rows[0][0].columns, "sound"]
    picture = Image.new("RGB", (len(names) * (width + GAP) + GAP, HEADER + len(rows) * (height + GAP)), PAPER)
    _draw_header(picture, names, width)
    for number, (shown, frame) in enumerate(rows):
        top = HEADER + number * (height + GAP)
        _draw_tiles(picture, shown, frame, top)
        wave = draw_waveform(waveform, shown.timestamp_s, (width, height), shown.timestamp_s)
        picture.paste(wave, (GAP + (len(names) - 1) * (width + GAP), top))
    return picture


def draw_instant(shown: Shown, frame: Image.Image, strip: Image.Image) -> Image.Image:
    """One picture of a video: the columns side by side, and `strip`, a waveform of `strip_size`, below them."""
    picture = Image.new("RGB", picture_size(frame.size, len(shown.columns)), PAPER)
    _draw_header(picture, list(shown.columns), frame.width)
    _draw_tiles(picture, shown, frame, HEADER)
    picture.paste(strip, (GAP, HEADER + frame.height + GAP))
    return picture


def picture_size(tile: tuple[int, int], columns: int) -> tuple[int, int]:
    """Width and height of what `draw_instant` gives; both even."""
    return GAP + columns * (tile[0] + GAP), HEADER + tile[1] + GAP + STRIP_HEIGHT + GAP


def strip_size(tile: tuple[int, int], columns: int) -> tuple[int, int]:
    return picture_size(tile, columns)[0] - 2 * GAP, STRIP_HEIGHT


def draw_waveform(waveform: Waveform, cursor_s: float, size: tuple[int, int], mask_s: float) -> Image.Image:
    """The waveform over its whole time, as high as its loudest peak, what the mask of `mask_s` heard, and a cursor."""
    width, height = size
    picture = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(picture)
    length_s = max(waveform.end_s - waveform.start_s, 1 / PEAKS_PER_S)

    def across(time_s: float) -> float:
        return (time_s - waveform.start_s) / length_s * (width - 1)

    baseline = height - FONT_SIZE - 6
    draw.rectangle((across(mask_s - HEARD_S), 0, across(mask_s + HEARD_S), baseline), fill=HEARD_COLOUR)
    middle = baseline / 2
    loudest = max(QUIETEST, float(waveform.peaks.max(initial=0)))
    edges = np.linspace(0, length_s * PEAKS_PER_S, width + 1).astype(int)
    for x in range(width):
        here = waveform.peaks[edges[x] : max(edges[x + 1], edges[x] + 1)]
        half = float(here.max(initial=0)) / loudest * (middle - 2)
        draw.line((x, middle - half, x, middle + half), fill=WAVE_COLOUR)
    draw.line((0, baseline, width, baseline), fill=(200, 205, 215))
    font = ImageFont.load_default(FONT_SIZE - 2)
    draw.text((1, baseline + 3), f"{round(waveform.start_s, 2):.10g} s", fill=INK, font=font)
    draw.text((width - 2, baseline + 3), f"{round(waveform.end_s, 2):.10g} s", fill=INK, font=font, anchor="ra")
    draw.line((across(cursor_s), 0, across(cursor_s), baseline), fill=CURSOR_COLOUR, width=2)
    return picture


def _draw_header(picture: Image.Image, names: Sequence[str], width: int) -> None:
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(FONT_SIZE)
    for number, name in enumerate(names):
        draw.text((GAP + number * (width + GAP) + width // 2, 5), name, fill=INK, font=font, anchor="ma")


def _draw_tiles(picture: Image.Image, shown: Shown, frame: Image.Image, top: int) -> None:
    for number, paint in enumerate(shown.columns.values()):
        picture.paste(paint(frame), (GAP + number * (frame.width + GAP), top))
    draw = ImageDraw.Draw(picture)
    label, font = f"{shown.timestamp_s:.2f} s", ImageFont.load_default(FONT_SIZE)
    corner = (GAP + 5, top + frame.height - FONT_SIZE - 8)
    left, upper, right, lower = draw.textbbox(corner, label, font=font)
    draw.rectangle((left - 3, upper - 3, right + 3, lower + 3), fill=INK)
    draw.text(corner, label, fill=PAPER, font=font)
