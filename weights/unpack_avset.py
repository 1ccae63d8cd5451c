"""Lays the project's training archive (avset.zip) out as `avsseg data compose` reads it.

    python weights/unpack_avset.py avset.zip runs/avset

Pictures keep their splits. Instrument photographs on white become cut-outs, masks made by a network count less, and the
masks' thin unknown borders go to the nearest class. Pictures of the source zpf-voc carry masks of other pictures (all
35 were looked at): they serve as backdrops. One training recording is left out because the test split has the same.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

# fmt: off
CLASSES = (
    "person", "dog", "cat", "horse", "cow", "sheep", "bird", "chicken", "car", "bus", "train", "motorbike", "airplane",
    "helicopter", "clock", "guitar", "violin", "saxophone", "clarinet", "flute", "drums", "trombone", "banjo", "piano",
    "trumpet", "tambourine",
)
# fmt: on
VOID = 255
BORDER_PX = 3
KIND = {"human": "scene", "pseudo": "scene", "whitebg": "cutout"}
WEIGHT = {"human": 1.0, "pseudo": 0.4, "whitebg": 0.7}
MISMATCHED = "zpf-voc"
# a training recording whose samples are those of the test split's ani_cat_152
LEAKING = ("ani_cat_153",)
# three to fourteen recordings cannot teach a class, and as off-screen sounds they would be confusing
TOO_FEW = ("horse", "airplane", "car", "tambourine", "trumpet", "train")


def fill_borders(mask: Image.Image) -> Image.Image:
    """Unknown pixels within 3 px of a class or the background take it; wider unknown areas stay unknown."""
    values = np.asarray(mask).copy()
    for _ in range(BORDER_PX):
        known = Image.fromarray(np.where(values == VOID, 0, values + 1).astype(np.uint8))
        # the largest neighbour: an object wins over the background where both are as near
        grown = np.asarray(known.filter(ImageFilter.MaxFilter(3)))
        values = np.where((values == VOID) & (grown > 0), grown - 1, values).astype(np.uint8)
    return Image.fromarray(values)


def write_table(path: Path, header: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def unpack(archive: Path, out: Path) -> None:
    """Writes images/, masks/ and sounds/ under `out`."""
    with zipfile.ZipFile(archive) as source:
        pictures = json.loads(source.read("images.json"))
        sounds = json.loads(source.read("audio.json"))
        for folder in ("images", "masks", "sounds"):
            (out / folder).mkdir(parents=True, exist_ok=True)
        rows: list[tuple[object, ...]] = []
        for entry in pictures:
            name = entry["name"]
            kind = "backdrop" if entry["src"] == MISMATCHED else KIND[entry["kind"]]
            rows.append((name, entry["split"], kind, WEIGHT[entry["kind"]], entry["kind"]))
            (out / "images" / f"{name}.jpg").write_bytes(source.read(f"img/{name}.jpg"))
            fill_borders(Image.open(io.BytesIO(source.read(f"mask/{name}.png")))).save(out / "masks" / f"{name}.png")
        write_table(out / "images" / "splits.csv", ("name", "split", "kind", "weight", "mask"), rows)
        (out / "masks" / "classes.txt").write_text("\n".join(("background", *CLASSES)) + "\n")
        rows = []
        for entry in sounds:
            if entry["cls"] in TOO_FEW or entry["name"] in LEAKING:
                continue
            folder = out / "sounds" / entry["cls"]
            folder.mkdir(exist_ok=True)
            (folder / f"{entry['name']}.opus").write_bytes(source.read(f"aud/{entry['name']}.opus"))
            rows.append((f"{entry['cls']}/{entry['name']}.opus", entry["split"]))
        write_table(out / "sounds" / "splits.csv", ("name", "split"), rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    unpack(options.archive, options.out)
