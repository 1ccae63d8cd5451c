from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avsseg.errors import DataError
from avsseg.media.probe import probe
from avsseg.visualization.truth import truth_masks


def save_mask(path: Path, column: int) -> None:
    """4 x 12 pixels, of which one column sounds."""
    pixels = np.zeros((4, 12), np.uint8)
    pixels[:, column] = 255
    Image.fromarray(pixels).save(path)


def test_numbered_masks_are_one_a_second_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in range(1, 12):
        save_mask(tmp_path / f"clip_{number}.{'png' if number % 2 else 'PNG'}", number)
    (tmp_path / "._clip_1.png").write_bytes(b"what a Mac leaves beside a file")
    truth = truth_masks(tmp_path)
    for second in range(11):
        mask = truth.at(second + 0.5)
        assert mask is not None
        assert mask[0].nonzero()[0].tolist() == [second + 1]
    assert truth.at(0.0) is not None
    assert truth.at(11.0) is None


def test_masks_of_a_run_are_at_their_own_times(tmp_path: Path) -> None:
    entries = [{"file_name": f"{k:05d}.png", "timestamp": 2 + (k + 0.5) / 4} for k in range(2)]
    (tmp_path / "masks.json").write_text(json.dumps({"settings": {"rate": 4.0}, "masks": entries}))
    for k in range(2):
        save_mask(tmp_path / f"{k:05d}.png", k)
    truth = truth_masks(tmp_path)
    assert truth.at(1.9) is None
    for time_s, column in ((2.01, 0), (2.24, 0), (2.26, 1), (2.49, 1)):
        mask = truth.at(time_s)
        assert mask is not None
        assert mask[0].nonzero()[0].tolist() == [column]
    assert truth.at(2.5) is None


def test_classes_of_a_palette_sound_whatever_their_colours(tmp_path: Path) -> None:
    picture = Image.fromarray(np.array([[0, 1, 7]], np.uint8)).convert("P")
    picture.putpalette([90, 90, 90] + [0] * 765)
    picture.save(tmp_path / "0.png")
    mask = truth_masks(tmp_path).at(0.5)
    assert mask is not None
    assert mask.tolist() == [[False, True, True]]


def test_what_is_no_folder_of_masks_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent: no such folder"):
        truth_masks(tmp_path / "absent")
    with pytest.raises(DataError, match=r"holds no \.png masks"):
        truth_masks(tmp_path)
    (tmp_path / "1.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"1\.png: not an image that can be read"):
        truth_masks(tmp_path).at(0)
    noise = np.random.default_rng(0).integers(0, 256, (400, 400), np.uint8)
    Image.fromarray(noise).save(tmp_path / "1.png")
    whole = bytearray((tmp_path / "1.png").read_bytes())
    second = whole.index(b"IDAT", whole.index(b"IDAT") + 4)
    whole[second : second + 4] = b"\0\1\2\3"
    (tmp_path / "1.png").write_bytes(whole)
    with pytest.raises(DataError, match=r"1\.png: not an image that can be read"):
        truth_masks(tmp_path).at(0)
    (tmp_path / "masks.json").write_text("{}")
    with pytest.raises(DataError, match=r"masks\.json: does not list masks"):
        truth_masks(tmp_path)


@pytest.mark.parametrize(
    ("size", "aspect", "fits"),
    [
        ((320, 160), Fraction(1), True),
        ((161, 80), Fraction(1), True),  # scaled, and rounded
        ((224, 224), Fraction(1), True),  # squashed, as AVSBench's are
        ((160, 320), Fraction(1), False),
        ((320, 180), Fraction(1), False),
        ((320, 180), Fraction(8, 9), True),  # as shown
        ((320, 160), Fraction(8, 9), True),  # as stored
    ],
)
def test_masks_of_another_shape_are_refused(
    size: tuple[int, int], aspect: Fraction, fits: bool, clip: Path, tmp_path: Path
) -> None:
    Image.new("L", size).save(tmp_path / "0.png")
    info = replace(probe(clip), width=320, height=160, sample_aspect_ratio=aspect)
    truth = truth_masks(tmp_path)
    if fits:
        truth.check_shape(info)
    else:
        with pytest.raises(DataError, match=r"0\.png: is \d+x\d+, another shape than the picture of .*320x160"):
            truth.check_shape(info)
