"""AVSS's 71 classes, their colours, and the class maps of its RGB label maps.

Order and names are those of AVSBench's label2idx.json (Zhou et al., arXiv 2301.13190), whose numbers start at 1; here
and in the index maps, background is 0. Colours are PASCAL VOC's.
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avsseg.errors import DataError, printable
from avsseg.writers.masks import voc_palette

CLASS_NAMES = (
    "background", "accordion", "airplane", "axe", "baby", "bassoon", "bell", "bird", "boat", "boy", "bus", "car",
    "cat", "cello", "clarinet", "clipper", "clock", "dog", "donkey", "drum", "duck", "elephant", "emergency-car",
    "erhu", "flute", "frying-food", "girl", "goose", "guitar", "gun", "guzheng", "hair-dryer", "handpan", "harmonica",
    "harp", "helicopter", "hen", "horse", "keyboard", "leopard", "lion", "man", "marimba", "missile-rocket",
    "motorcycle", "mower", "parrot", "piano", "pig", "pipa", "saw", "saxophone", "sheep", "sitar", "sorna", "squirrel",
    "tabla", "tank", "tiger", "tractor", "train", "trombone", "truck", "trumpet", "tuba", "ukulele", "utv",
    "vacuum-cleaner", "violin", "wolf", "woman",
)  # fmt: skip
_UNKNOWN = 255


def avss_palette() -> NDArray[np.uint8]:
    """(71, 3) RGB: the colour of each class in `labels_rgb`."""
    return np.array(voc_palette(), np.uint8).reshape(-1, 3)[: len(CLASS_NAMES)]


def classes_of_colours(image: NDArray[np.uint8], source: Path | str) -> NDArray[np.uint8]:
    """Class indices (h, w) of an RGB label map (h, w, 3) uint8.

    Raises DataError, naming `source` and the colour, for a colour of no class: bilinear resizing makes such.
    """
    codes = (image[..., 0].astype(np.int32) << 16) | (image[..., 1].astype(np.int32) << 8) | image[..., 2]
    classes: NDArray[np.uint8] = _class_table()[codes]
    unknown = codes[classes == _UNKNOWN]
    if unknown.size:
        code = int(unknown[0])
        raise DataError(
            f"{printable(source)}: {unknown.size} pixels have colours of no AVSS class, the first "
            f"({code >> 16}, {code >> 8 & 255}, {code & 255}). Use the label maps as distributed, or labels_semantic/"
        )
    return classes


@functools.lru_cache(maxsize=1)
def _class_table() -> NDArray[np.uint8]:
    """(2**24,): class of each colour; 16 MB, where a search would take as long as decoding the file."""
    table = np.full(1 << 24, _UNKNOWN, np.uint8)
    red, green, blue = avss_palette().astype(np.int32).T
    table[(red << 16) | (green << 8) | blue] = np.arange(len(CLASS_NAMES), dtype=np.uint8)
    return table


def check_label_table(path: Path) -> None:
    """Makes sure that a label2idx.json, if there is one, numbers the classes as `CLASS_NAMES`, from 0 or from 1.

    Other spellings of a name are accepted, other places of a known one are not. Raises DataError.
    """
    if not path.exists():
        return
    try:
        numbers = {str(name): int(number) for name, number in json.loads(path.read_bytes()).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{printable(path)}: not a table of class numbers ({error})") from error
    first = min(numbers.values(), default=0)
    if first not in (0, 1) or sorted(numbers.values()) != list(range(first, first + len(CLASS_NAMES))):
        raise DataError(f"{printable(path)}: must number {len(CLASS_NAMES)} classes without a gap, from 0 or from 1")
    index_of = {name: index for index, name in enumerate(CLASS_NAMES)}
    for name, number in numbers.items():
        index = index_of.get(re.sub("[^a-z]+", "-", name.lower()), number - first)
        if index != number - first:
            raise DataError(
                f"{printable(path)}: {name} has number {number}, must have {index + first}: the label maps of AVSS "
                "count the classes in their distributed order"
            )
