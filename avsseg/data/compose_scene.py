"""A moving scene made of still pictures: a canvas under a moving camera, cut-out objects that move on their own.

Classes are painted into a map beside the picture by the same geometry, so the truth is exact at any time. What makes
the frames look filmed (lighting, blur, noise, compression) leaves the map as it is.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from avsseg.data.compose_sources import VOID, Picture

# a picture of one class may show this share of others
_STRAY_AREA = 0.01
_LINE_KERNELS = (
    (2, 7, 12, 17, 22),
    (10, 11, 12, 13, 14),
    (0, 6, 12, 18, 24),
    (4, 8, 12, 16, 20),
)


@dataclass(frozen=True)
class Motion:
    """A position (x, y) and a log-scale over the time t.

    start + (end - start) t / seconds, held after the end, and on the position sway sin(2 pi (rate_hz t + phase)).
    The unit of x and y is its user's: canvas pixels for a camera, shares of the view for a cutout.
    """

    start: tuple[float, float, float]
    end: tuple[float, float, float]
    sway: tuple[float, float]
    rate_hz: float
    phase: float
    seconds: float

    def at(self, t: float) -> tuple[float, float, float]:
        """(x, y, log-scale) at t seconds."""
        s = min(1.0, max(0.0, t / self.seconds))
        x, y, zoom = (a + (b - a) * s for a, b in zip(self.start, self.end, strict=True))
        swing = np.sin(2 * np.pi * (self.rate_hz * t + self.phase))
        return float(x + self.sway[0] * swing), float(y + self.sway[1] * swing), float(zoom)


@dataclass(frozen=True)
class Cutout:
    """One object cut out of its picture (RGBA) and pasted onto the view.

    `motion` gives its centre, `width` and `height` the size of its box at log-scale 0, all in shares of the view.
    """

    image: Image.Image
    class_index: int
    motion: Motion
    width: float
    height: float


@dataclass(frozen=True)
class Appearance:
    """What a camera and a codec do: gains at start and end, blur, noise (levels of 255) and JPEG quality (0: none)."""

    gain: tuple[float, float] = (1.0, 1.0)
    cast: tuple[float, float, float] = (1.0, 1.0, 1.0)
    line_blur: int | None = None
    soft_px: float = 0.0
    noise: float = 0.0
    jpeg_quality: int = 0


@dataclass(frozen=True)
class ComposedScene:
    """A canvas under a moving camera, with cutouts pasted onto what the camera sees.

    `canvas` (RGB) and `classes` (L: class index, 255 unknown) have one size. The camera sees a box of the canvas:
    `camera` gives its centre in canvas pixels and the logarithm of its size relative to `view` (width, height in canvas
    pixels); it is shrunk and moved to lie inside the canvas. Later cutouts cover earlier ones. `weight`, 0 to 1, is
    what the scene's truth counts in training; `pictures` names all that it is made of, the objects' pictures first.
    """

    canvas: Image.Image
    classes: Image.Image
    camera: Motion
    view: tuple[float, float]
    cutouts: tuple[Cutout, ...]
    appearance: Appearance
    seconds: float
    seed: int
    weight: float
    pictures: tuple[str, ...] = ()

    def paint(self, t: float, height: int, width: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Frame (H, W, 3) and class map (H, W; 255 unknown), uint8, at t seconds; any aspect shows the same view."""
        x, y, zoom = self.camera.at(t)
        box = _box_inside(x, y, self.view[0] * np.exp(zoom), self.view[1] * np.exp(zoom), self.canvas.size)
        frame = self.canvas.resize((width, height), Image.Resampling.BILINEAR, box=box)
        classes = self.classes.resize((width, height), Image.Resampling.NEAREST, box=box)
        for cutout in self.cutouts:
            x, y, zoom = cutout.motion.at(t)
            size = tuple(
                max(2, round(share * np.exp(zoom) * side))
                for share, side in ((cutout.width, width), (cutout.height, height))
            )
            place = (round(x * width - size[0] / 2), round(y * height - size[1] / 2))
            image = cutout.image.resize((size[0], size[1]), Image.Resampling.BILINEAR)
            alpha = image.getchannel("A")
            frame.paste(image, place, alpha)
            classes.paste(cutout.class_index, place, alpha.point(_OPAQUE))
        return self._filmed(frame, t), np.asarray(classes)

    def classes_present(self) -> set[int]:
        """Every class that the scene holds, in view or not."""
        present = {int(k) for k in np.unique(np.asarray(self.classes))} | {c.class_index for c in self.cutouts}
        return present - {0, VOID}

    def _filmed(self, frame: Image.Image, t: float) -> NDArray[np.uint8]:
        look = self.appearance
        if look.soft_px:
            frame = frame.filter(ImageFilter.GaussianBlur(look.soft_px * frame.height / 128))
        if look.line_blur is not None:
            line = _LINE_KERNELS[look.line_blur]
            frame = frame.filter(ImageFilter.Kernel((5, 5), [float(i in line) for i in range(25)]))
        gain = look.gain[0] + (look.gain[1] - look.gain[0]) * min(1.0, t / self.seconds)
        pixels = np.asarray(frame, np.float32) * (np.float32(gain) * np.asarray(look.cast, np.float32))
        if look.noise:
            rng = np.random.default_rng([self.seed, round(t * 1000)])
            pixels += rng.standard_normal(pixels.shape, np.float32) * np.float32(look.noise)
        result = np.clip(pixels, 0, 255).astype(np.uint8)
        if look.jpeg_quality:
            buffer = io.BytesIO()
            Image.fromarray(result).save(buffer, "JPEG", quality=look.jpeg_quality)
            result = np.asarray(Image.open(buffer))
        return result


_OPAQUE = [255 if level > 127 else 0 for level in range(256)]


def _box_inside(
    x: float, y: float, width: float, height: float, size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """A box of that size (shrunk to fit, its aspect kept) moved into the canvas."""
    shrink = min(1.0, size[0] / width, size[1] / height)
    width, height = width * shrink, height * shrink
    # rounding may make a box as wide as the canvas wider by its last bit
    left = max(0.0, min(x - width / 2, size[0] - width))
    top = max(0.0, min(y - height / 2, size[1] - height))
    return left, top, min(left + width, size[0]), min(top + height, size[1])


def shows_only(picture: Picture, class_index: int) -> bool:
    """Whether the picture's mask has no other class of more than a hundredth of its area."""
    return all(k == class_index or area < _STRAY_AREA for k, area in picture.areas)


def colour_jitter(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Brightness, contrast, saturation and, at times, hue changed a little: one draw for the whole clip."""
    image = ImageEnhance.Brightness(image).enhance(float(rng.uniform(0.7, 1.3)))
    image = ImageEnhance.Contrast(image).enhance(float(rng.uniform(0.7, 1.3)))
    image = ImageEnhance.Color(image).enhance(float(rng.uniform(0.5, 1.4)))
    if rng.uniform() < 0.6:  # the slowest of the four
        return image
    hue, saturation, value = image.convert("HSV").split()
    shift = int(rng.integers(-10, 11)) % 256
    hue = hue.point([(level + shift) % 256 for level in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def read_flipped(picture: Picture, rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """The picture and its class map, mirrored half the time, its colours jittered."""
    image, classes = picture.read()
    if rng.uniform() < 0.5:
        image, classes = ImageOps.mirror(image), ImageOps.mirror(classes)
    return colour_jitter(image, rng), classes


def cut_out(image: Image.Image, classes: Image.Image, class_index: int) -> Image.Image | None:
    """The object as RGBA, cropped to its bounding box, its edge a pixel soft; None if nothing is there."""
    mask = np.asarray(classes) == class_index
    alpha = Image.fromarray(mask.astype(np.uint8) * 255)
    box = alpha.getbbox()
    if box is None:
        return None
    # the edge is soft inside the object alone: a rim of the old background would give it away
    alpha = alpha.filter(ImageFilter.MinFilter(3)).filter(ImageFilter.GaussianBlur(0.7))
    result = image.copy()
    result.putalpha(alpha)
    return result.crop(box)


def empty_part(image: Image.Image, classes: Image.Image, rng: np.random.Generator) -> Image.Image | None:
    """A square of the picture in which its map shows nothing, a third of its side at least; None if there is none."""
    occupied = np.asarray(classes) > 0
    height, width = occupied.shape
    for _ in range(12):
        side = int(rng.uniform(0.34, 0.9) * min(height, width))
        left, top = int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))
        if not occupied[top : top + side, left : left + side].any():
            return image.crop((left, top, left + side, top + side))
    return None


def draw_motion(
    rng: np.random.Generator,
    start: tuple[float, float],
    reach: tuple[float, float],
    *,
    zoom: float,
    seconds: float,
    moving: bool,
) -> Motion:
    """A motion about `start`: of the drift and the sway together, at most 0.62 `reach`; zoom within exp(+-`zoom`)."""
    if not moving:
        return Motion((*start, 0.0), (*start, 0.0), (0.0, 0.0), 0.0, 0.0, seconds)
    drift = [float(rng.uniform(-limit, limit)) for limit in reach]
    first, last = (float(z) for z in rng.uniform(-zoom, zoom, 2))
    sway = float(rng.uniform(0, 0.12)) * (rng.uniform() < 0.6)
    return Motion(
        (start[0] - drift[0] / 2, start[1] - drift[1] / 2, first),
        (start[0] + drift[0] / 2, start[1] + drift[1] / 2, last),
        (sway * reach[0], sway * reach[1]),
        float(rng.uniform(0.2, 1.5)),
        float(rng.uniform()),
        seconds,
    )


def draw_appearance(rng: np.random.Generator) -> Appearance:
    """Lighting, blur, noise and compression of one clip."""
    level = float(np.exp(rng.uniform(-0.35, 0.25)))
    drift = float(np.exp(rng.uniform(-0.3, 0.3))) if rng.uniform() < 0.4 else 1.0
    red, green, blue = (float(c) for c in rng.uniform(0.92, 1.08, 3))
    return Appearance(
        gain=(level, level * drift),
        cast=(red, green, blue),
        line_blur=int(rng.integers(len(_LINE_KERNELS))) if rng.uniform() < 0.15 else None,
        soft_px=float(rng.uniform(0.3, 1.2)) if rng.uniform() < 0.3 else 0.0,
        noise=float(rng.uniform(1, 9)) if rng.uniform() < 0.4 else 0.0,
        jpeg_quality=int(rng.integers(25, 90)) if rng.uniform() < 0.6 else 0,
    )
