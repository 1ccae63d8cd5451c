"""AVSS's classes and colours, against the values that AVSBench's own code has."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from avsseg.data.avss_classes import CLASS_NAMES, avss_palette, check_label_table, classes_of_colours
from avsseg.errors import DataError


def test_class_names() -> None:
    assert len(CLASS_NAMES) == len(set(CLASS_NAMES)) == 71
    assert [CLASS_NAMES[k] for k in (0, 1, 22, 43, 67, 70)] == [
        "background", "accordion", "emergency-car", "missile-rocket", "vacuum-cleaner", "woman",
    ]  # fmt: skip


def test_palette() -> None:
    palette = avss_palette()
    assert palette.shape == (71, 3)
    for index, colour in {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 70: (32, 128, 128)}.items():
        assert tuple(palette[index]) == colour
    assert len({tuple(colour) for colour in palette}) == 71
    for index in range(71):  # by the definition, bit by bit
        expected = [0, 0, 0]
        for bit in range(7):
            expected[bit % 3] |= ((index >> bit) & 1) << (7 - bit // 3)
        assert palette[index].tolist() == expected


def test_colours_become_their_classes() -> None:
    classes = np.random.default_rng(0).integers(0, 71, (9, 13)).astype(np.uint8)
    assert np.array_equal(classes_of_colours(avss_palette()[classes], "x.png"), classes)


def test_a_colour_of_no_class_is_an_error() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    image[1, 2] = (128, 1, 0)
    image[3, 3] = (255, 255, 255)
    with pytest.raises(DataError, match=r"x\.png: 2 pixels have colours of no AVSS class, the first \(128, 1, 0\)"):
        classes_of_colours(image, Path("x.png"))


def test_colour_71_of_voc_is_none_of_avss() -> None:
    with pytest.raises(DataError, match=r"\(160, 128, 128\)"):
        classes_of_colours(np.array([[[160, 128, 128]]], np.uint8), "x.png")


@pytest.mark.parametrize("text", ["[1, 2]", "{", '{"dog": "x"}', '{"dog": null}'])
def test_what_is_no_label_table(tmp_path: Path, text: str) -> None:
    path = tmp_path / "label2idx.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"label2idx\.json: not a table"):
        check_label_table(path)


def test_label_tables(tmp_path: Path) -> None:
    path = tmp_path / "label2idx.json"
    numbers = {name.replace("-", "_").title(): index + 1 for index, name in enumerate(CLASS_NAMES)}
    path.write_text(json.dumps(numbers))
    check_label_table(path)
    for wrong in ({**numbers, "more": 72}, {name: number + 1 for name, number in numbers.items()}):
        path.write_text(json.dumps(wrong))
        with pytest.raises(DataError, match="must number 71 classes"):
            check_label_table(path)
