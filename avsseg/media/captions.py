"""Names of what is marked, drawn into the small pictures that ffmpeg lays over the video."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

# longest side of a picture with text: letters are blurred a little at 1920 pixels, and each picture costs time
LONGEST_SIDE = 640
# of the letters, in the picture's shorter sides, and never below so many pixels
LETTER_HEIGHT = 0.055
SMALLEST_LETTER = 9
# Pillow's own font has the letters of ASCII alone; these are where Linux, macOS and Windows have fonts, if they do
FONTS = ("DejaVuSans.ttf", "Arial Unicode.ttf", "arial.ttf")


@dataclass(frozen=True)
class Caption:
    """A name and the middle of the upper edge of what it names, x and y from 0 to 1 of the picture's sides."""

    text: str
    x: float
    y: float


@functools.cache
def _font(size: int, *, ascii_only: bool) -> ImageFont.FreeTypeFont | ImageFont.ImageFont | None:
    if ascii_only:
        return ImageFont.load_default(size)
    for name in FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return None


def can_draw(text: str) -> bool:
    """Whether there is a font for it."""
    return _font(SMALLEST_LETTER, ascii_only=text.isascii()) is not None


def picture_size(width: int, height: int) -> tuple[int, int]:
    """(height, width) of the picture that captions for a video of that size are drawn into."""
    scale = min(1.0, LONGEST_SIDE / max(width, height))
    return max(1, round(height * scale)), max(1, round(width * scale))


def with_captions(picture: NDArray[np.uint8], captions: Sequence[Caption]) -> NDArray[np.uint8]:
    """A copy of an RGBA picture (H, W, 4) with each name above what it names, in white with a black outline.

    A name that has no room there is moved into the picture, as far as it fits, and up or down where it would cover
    another, if there is room. One that no font can show is left out.
    """
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    size = max(SMALLEST_LETTER, round(LETTER_HEIGHT * min(image.size)))
    placed: list[tuple[float, float, float, float]] = []  # left, top, right, bottom
    for caption in captions:
        text = " ".join(caption.text.split())
        font, stroke = _font(size, ascii_only=text.isascii()), max(1, size // 10)
        if font is None:
            continue
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font, stroke_width=stroke)
        width, height = right - left, bottom - top
        x = min(max(caption.x * image.width - width / 2, 0), max(0, image.width - width))
        lowest = max(0, image.height - height)
        wanted = min(max(caption.y * image.height - height, 0), lowest)
        beside = [box for box in placed if box[0] < x + width and x < box[2]]
        places = [wanted, *(y for box in beside for y in (box[1] - height, box[3]) if 0 <= y <= lowest)]
        free = [y for y in places if not any(box[1] < y + height and y < box[3] for box in beside)]
        y = min(free or [wanted], key=lambda place: abs(place - wanted))
        placed.append((x, y, x + width, y + height))
        draw.text(
            (x - left, y - top), text, font=font, fill=(255, 255, 255, 255),
            stroke_width=stroke, stroke_fill=(0, 0, 0, 255),
        )  # fmt: skip
    return np.array(image)
