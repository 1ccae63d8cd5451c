"""A clip as a strip of pictures: frames, truth, prediction and waveform, a column a second."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from avsseg.data.avsbench import ClipExample
from avsseg.data.avss_classes import avss_palette
from avsseg.evaluation.evaluate import Evaluation
from avsseg.evaluation.objects import THRESHOLD
from avsseg.media.audio import SAMPLE_RATE_HZ

TILE = 128
STEP = TILE + 3  # from one to the next
WAVE_HEIGHT = 40
TRUTH_COLOUR = (60, 200, 90)
PREDICTION_COLOUR = (255, 140, 30)
Colour = tuple[int, int, int]


def draw_strip(evaluation: Evaluation, example: ClipExample) -> tuple[Image.Image, list[int], list[int]]:
    """The strip of a clip's real seconds, and the classes that its truth and its prediction show (1 for objects).

    Truth and prediction have the colours above, or each class of AVSS its own; a second without truth is grey.
    """
    logits = evaluation.logits(example, evaluation.played(example))
    sized = F.interpolate(logits, size=(TILE, TILE), mode="bilinear", align_corners=False)
    objects = sized.shape[1] == 1
    said = (sized.squeeze(1).sigmoid() > THRESHOLD if objects else sized.argmax(1)).to(torch.uint8).numpy()
    seconds = int(example.real.sum())
    strip = Image.new("RGB", (seconds * STEP, 3 * STEP + WAVE_HEIGHT), "white")
    for t in range(seconds):
        frame = Image.fromarray(example.frames[t].numpy()).resize((TILE, TILE), Image.Resampling.BILINEAR)
        strip.paste(frame, (t * STEP, 0))
        truth = Image.fromarray(example.masks[t].numpy()).resize((TILE, TILE), Image.Resampling.NEAREST)
        known = bool(example.annotated[t])
        strip.paste(
            outlined(frame, np.asarray(truth), TRUTH_COLOUR if objects else None) if known else frame.convert("L"),
            (t * STEP, STEP),
        )
        strip.paste(outlined(frame, said[t], PREDICTION_COLOUR if objects else None), (t * STEP, 2 * STEP))
    _draw_waveform(strip, example.waveform.numpy(), seconds)
    return strip, _shown(example.masks[example.annotated & example.real].numpy()), _shown(said[:seconds])


def tinted(frame: Image.Image, mask: NDArray[np.bool_], colour: Colour) -> Image.Image:
    """The frame with the mask's pixels tinted."""
    pixels = np.asarray(frame).astype(np.float32)
    pixels[mask] = 0.45 * pixels[mask] + 0.55 * np.asarray(colour, np.float32)
    return Image.fromarray(pixels.astype(np.uint8))


def outlined(frame: Image.Image, labels: NDArray[np.uint8], colour: Colour | None) -> Image.Image:
    """The frame with the pixels of each class but 0 tinted, in `colour` or AVSS's for it, inside a double line.

    The line, black inside and white outside, is seen on an object of the tint's own colour too. labels: (h, w).
    """
    palette = avss_palette()
    for label in _shown(labels):
        frame = tinted(frame, labels == label, colour or tuple(palette[label].tolist()))
    pixels = np.asarray(frame).copy()
    around = np.pad(labels, 1, mode="edge")
    neighbours = np.stack([around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:]])
    edge = (neighbours != labels).any(0)
    pixels[edge & (labels > 0)] = (0, 0, 0)
    pixels[edge & (labels == 0)] = (255, 255, 255)
    return Image.fromarray(pixels)


def _shown(labels: NDArray[np.uint8]) -> list[int]:
    return [int(label) for label in np.unique(labels) if label]


def _draw_waveform(strip: Image.Image, waveform: NDArray[np.float32], seconds: int) -> None:
    draw = ImageDraw.Draw(strip)
    top, width = 3 * STEP, strip.width
    middle = top + WAVE_HEIGHT // 2
    wanted = np.zeros(seconds * SAMPLE_RATE_HZ, np.float32)
    count = min(len(wanted), len(waveform))
    wanted[:count] = waveform[:count]
    peaks = np.abs(wanted[: len(wanted) // width * width].reshape(width, -1)).max(1)
    for x, peak in enumerate(peaks):
        half = int(peak * (WAVE_HEIGHT // 2 - 2))
        draw.line((x, middle - half, x, middle + half), fill=(70, 90, 130))
    for t in range(1, seconds):
        draw.line((t * STEP - 2, top, t * STEP - 2, top + WAVE_HEIGHT), fill=(200, 205, 215))
