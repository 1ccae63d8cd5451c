"""Random changes of training clips: one draw for all frames of a clip, so that it stays a video.

Flip, resize, crop and photometric distortion are those of the paper; it leaves the sound alone, and so do the defaults.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from avsseg.data.retexture import retexture
from avsseg.errors import UsageError

_GREY = np.array([0.299, 0.587, 0.114], np.float32)  # BT.601 luma
# RGB -> YIQ, where a turn of I and Q is a change of hue alone
_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]], np.float64)


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a training clip, and how strongly.

    Attributes:
        flip: probability of a mirror image.
        resize: range of the scale (even in its logarithm) that the clip is resized by before `size` is cut from it;
            below 1 the rest is black, with truth 0. (1, 1) turns it off.
        crop: cut at a random place, not in the middle.
        photometric: probability of each of brightness, contrast, saturation and hue.
        brightness: largest shift, of 255.
        contrast, saturation: ranges of the factors, about mid-grey and about the pixel's own grey.
        hue: largest turn, in degrees.
        recolour: probability that red, green and blue change places, each with a gain and a shift of its own; of
            these pictures a third become their negative.
        retexture: probability of other textures, by a random convolution.
        rotate: largest turn of the picture, in degrees, about its middle; the rest is black, with truth 0.
        gain_db: largest change of the sound's level in either direction, even in dB.
        noise_db: level of the white noise that is added, in dB of full scale (RMS), such as -40; None adds none.
        mix: probability that another clip's sound is added, at its own seconds, while the truth stays the clip's own.
        mix_db: level of that sound, in dB of its own.
    """

    flip: float = 0.5
    resize: tuple[float, float] = (0.5, 2.0)
    crop: bool = True
    photometric: float = 0.5
    brightness: float = 32.0
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: float = 18.0
    recolour: float = 0.0
    retexture: float = 0.0
    rotate: float = 0.0
    gain_db: float = 0.0
    noise_db: float | None = None
    mix: float = 0.0
    mix_db: float = -15.0

    def __post_init__(self) -> None:
        for name in ("flip", "photometric", "recolour", "retexture", "mix"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"augmentation: {name} is {getattr(self, name)}, a probability is 0 to 1")
        for name in ("resize", "contrast", "saturation"):
            lowest, highest = getattr(self, name)
            if not 0 < lowest <= highest:
                raise UsageError(f"augmentation: {name} is {lowest} to {highest}, must be above 0 and rising")


@dataclass(frozen=True)
class _View:
    """A square window of the picture in units of its sides; beyond 0..1 there is nothing to see."""

    left: float
    top: float
    side: float
    flipped: bool


def augment(
    frames: Sequence[Image.Image],
    masks: Sequence[Image.Image],
    augmentation: Augmentation,
    rng: np.random.Generator,
    *,
    size: tuple[int, int],
    truth_size: tuple[int, int],
) -> tuple[NDArray[np.uint8], list[Image.Image]]:
    """Frames (T, H, W, 3) uint8 and masks of a clip after one draw; sizes are (width, height).

    Masks follow the geometry, without interpolation, at their own size; they keep their modes and values.
    """
    view = _draw_view(augmentation, rng)
    colours = _draw_colours(augmentation, rng)
    # drawn last, and only if asked for: other settings leave the draws as they were
    angle = float(rng.uniform(-augmentation.rotate, augmentation.rotate)) if augmentation.rotate else 0.0
    seen = [_look(frame, view, size, Image.Resampling.BILINEAR, angle) for frame in frames]
    if colours is not None:
        seen = [frame.convert("RGB", colours) for frame in seen]
    pictures = _retextured(np.stack([np.asarray(frame) for frame in seen]), augmentation, rng)
    return pictures, [_look(mask, view, truth_size, Image.Resampling.NEAREST, angle) for mask in masks]


def distort(frame: NDArray[np.uint8], augmentation: Augmentation, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A frame (H, W, 3) after one draw of the colours and textures alone."""
    colours = _draw_colours(augmentation, rng)
    coloured = frame if colours is None else np.asarray(Image.fromarray(frame).convert("RGB", colours))
    return _retextured(coloured[None], augmentation, rng)[0]


def _retextured(frames: NDArray[np.uint8], augmentation: Augmentation, rng: np.random.Generator) -> NDArray[np.uint8]:
    if augmentation.retexture and rng.uniform() < augmentation.retexture:
        return retexture(frames, rng)
    return frames


def augment_sound(
    waveform: NDArray[np.float32],
    augmentation: Augmentation,
    rng: np.random.Generator,
    *,
    other: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Samples (n,) after one draw of mixing, gain and noise, within -1..1; `other` is the clip to mix in, if any."""
    result = waveform.copy()
    if other is not None:
        shared = min(len(result), len(other))
        result[:shared] += other[:shared] * np.float32(10 ** (augmentation.mix_db / 20))
    if augmentation.gain_db:
        result *= np.float32(10 ** (rng.uniform(-augmentation.gain_db, augmentation.gain_db) / 20))
    if augmentation.noise_db is not None:
        noise = rng.standard_normal(len(result), np.float32)
        result += noise * np.float32(10 ** (augmentation.noise_db / 20))
    return np.clip(result, -1, 1)


def _draw_view(augmentation: Augmentation, rng: np.random.Generator) -> _View:
    lowest, highest = np.log(augmentation.resize)
    side = float(np.exp(-rng.uniform(lowest, highest)))
    # every draw is made, used or not: turning one change off leaves the others as they were
    left, top, mirror = rng.uniform(size=3)
    if not augmentation.crop:
        left = top = 0.5
    return _View(left * (1 - side), top * (1 - side), side, bool(mirror < augmentation.flip))


def _draw_colours(augmentation: Augmentation, rng: np.random.Generator) -> tuple[float, ...] | None:
    """Three rows of RGB weights and a shift that give red, green and blue; None if nothing was drawn.

    Brightness comes first, then contrast, saturation and hue.
    """
    chosen = rng.uniform(size=4) < augmentation.photometric
    shift = rng.uniform(-augmentation.brightness, augmentation.brightness)
    contrast = rng.uniform(*augmentation.contrast)
    saturation = rng.uniform(*augmentation.saturation)
    turn = np.deg2rad(rng.uniform(-augmentation.hue, augmentation.hue))
    matrix, offset = np.eye(3), np.zeros(3)
    if chosen[0]:
        offset += shift
    if chosen[1]:
        matrix, offset = matrix * contrast, (offset - 127.5) * contrast + 127.5
    # grey stays grey under these two, so the shift passes them unchanged
    if chosen[2]:
        matrix = (saturation * np.eye(3) + (1 - saturation) * _GREY[None, :]) @ matrix
    if chosen[3]:
        cosine, sine = np.cos(turn), np.sin(turn)
        turned = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
        matrix = np.linalg.inv(_TO_YIQ) @ turned @ _TO_YIQ @ matrix
    recoloured = bool(augmentation.recolour) and rng.uniform() < augmentation.recolour
    if recoloured:
        matrix, offset = _recolour(matrix, offset, rng)
    if not chosen.any() and not recoloured:
        return None
    return tuple(np.column_stack([matrix, offset]).ravel().tolist())


def _recolour(
    matrix: NDArray[np.float64], offset: NDArray[np.float64], rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The weights (3, 3) and shifts (3,) after another set of colours is drawn for what they give."""
    places = rng.permutation(3)
    gain = np.exp(rng.uniform(-0.4, 0.4, 3))
    matrix = matrix[places] * gain[:, None]
    offset = (offset[places] - 127.5) * gain + 127.5 + rng.uniform(-30, 30, 3)
    return (-matrix, 255 - offset) if rng.uniform() < 1 / 3 else (matrix, offset)


def _look(
    image: Image.Image, view: _View, size: tuple[int, int], resampling: Image.Resampling, angle: float
) -> Image.Image:
    width, height = image.size
    if view.side <= 1:
        right, bottom = min(1.0, view.left + view.side), min(1.0, view.top + view.side)
        box = (view.left * width, view.top * height, right * width, bottom * height)
        seen = image.resize(size, resampling, box)
    else:
        scaled = tuple(max(1, round(length / view.side)) for length in size)
        corner = (round(-view.left / view.side * size[0]), round(-view.top / view.side * size[1]))
        seen = Image.new(image.mode, size)
        seen.paste(image.resize((scaled[0], scaled[1]), resampling), corner)
    if view.flipped:
        seen = seen.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return seen.rotate(angle, resampling) if angle else seen
