"""The weights that come with the package: on material that training never saw, their masks follow the sound."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from avsseg.pipeline.segment import segment
from avsseg.weights import load_model
from avsseg.weights.registry import DEFAULT_MODEL, shipped_weights

# two photographs side by side under a moving camera: an astronaut who speaks from 1 s to 5.8 s, and a cat (see
# examples/README.md)
SPEAKING = Path(__file__).parents[2] / "examples" / "speaking.mp4"
WIDTH, HEIGHT, RATE = 720, 360, 25
# drawn by hand, in pixels of the pictures before the camera moves
PERSON = [
    (105, 45), (116, 20), (158, 6), (205, 16), (222, 45), (215, 86), (200, 100), (200, 124), (224, 165), (256, 206),
    (270, 262), (218, 294), (208, 360), (0, 360), (0, 198), (68, 170), (82, 130), (118, 115), (108, 80),
]  # fmt: skip
CAT = [(320, 95), (440, 0), (600, 0), (690, 120), (680, 205), (600, 300), (520, 360), (320, 360)]


@dataclass(frozen=True)
class Second:
    """One mask, and the truth at its time."""

    mask: NDArray[np.bool_]
    person: NDArray[np.bool_]
    cat: NDArray[np.bool_]
    speaks: bool
    silent: bool


def drawn(outline: list[tuple[int, int]], time_s: float, side: int) -> NDArray[np.bool_]:
    """An outline as the camera of examples/README.md shows it, squashed to a square."""
    zoom = 1.02 + 0.0008 * time_s * RATE
    left = (WIDTH - WIDTH / zoom) * (0.5 + 0.3 * math.sin(time_s * RATE / 40))
    top = (HEIGHT - HEIGHT / zoom) * 0.4
    points = [((x - left) * zoom * side / WIDTH, (y - top) * zoom * side / HEIGHT) for x, y in outline]
    image = Image.new("1", (side, side))
    ImageDraw.Draw(image).polygon(points, fill=1)
    return np.asarray(image)


@pytest.fixture(scope="module")
def seconds() -> list[Second]:
    model = load_model(DEFAULT_MODEL)
    side = model.input_size
    with segment(SPEAKING, model=model) as track:
        masks = list(track)
    return [
        Second(
            mask.probability[0] > 0.5,
            drawn(PERSON, mask.timestamp_s, side),
            drawn(CAT, mask.timestamp_s, side),
            1 < mask.timestamp_s < 5,
            not 1 <= mask.timestamp_s < 6,
        )
        for mask in masks
    ]


def iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_the_default_model_is_shipped_trained() -> None:
    assert DEFAULT_MODEL in shipped_weights()
    assert load_model(DEFAULT_MODEL).trained


def test_the_mask_is_on_the_one_who_speaks(seconds: list[Second]) -> None:
    speaking = [second for second in seconds if second.speaks]
    assert len(speaking) == 4
    assert np.mean([iou(second.mask, second.person) for second in speaking]) > 0.5


def test_it_beats_marking_everything_that_could_sound(seconds: list[Second]) -> None:
    for second in seconds:
        if second.speaks:
            assert iou(second.mask, second.person) > iou(second.person | second.cat, second.person)
            assert (second.mask & second.cat).sum() < 0.1 * second.cat.sum()


def test_in_silence_nothing_is_marked(seconds: list[Second]) -> None:
    silent = [second.mask.mean() for second in seconds if second.silent]
    assert len(silent) == 3
    assert max(silent) < 0.01
