"""docs/formats.md names every key of what is written, and no other."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from avsseg.media.probe import VideoInfo
from avsseg.pipeline.segment import Mask
from avsseg.writers.base import TrackSettings
from avsseg.writers.coco import CocoWriter
from avsseg.writers.intervals import COLUMNS
from avsseg.writers.masks import MaskFolderWriter

PAGE = Path(__file__).parents[2] / "docs" / "formats.md"
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="docs/ is not here")


def text_of(section: str) -> str:
    return PAGE.read_text(encoding="utf-8").split(f"\n## {section}\n")[1].split("\n## ")[0]


def keys(section: str, heading: str) -> set[str]:
    """The first column of the table under a heading in a section of the page."""
    rows = text_of(section).split(f"| {heading} | |\n|---|---|\n")[1].split("\n\n")[0].splitlines()
    return {key for row in rows for key in re.findall(r"`(\w+)`", row.split("|")[1])}


def written(path: Path) -> dict[str, object]:
    document: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return document


def test_masks_json(
    tmp_path: Path,
    info: VideoInfo,
    track_settings: Callable[..., TrackSettings],
    smooth_masks: Callable[..., list[Mask]],
) -> None:
    writer = MaskFolderWriter(tmp_path / "masks")
    writer.open(info, track_settings())
    for mask in smooth_masks(2):
        writer.write(mask)
    writer.finish()
    document = written(tmp_path / "masks" / "masks.json")
    assert keys("A folder of masks", "key") == set(document)
    assert keys("A folder of masks", "key of a mask") == set(document["masks"][0])  # type: ignore[index]
    assert keys("Settings", "key") == set(document["settings"])  # type: ignore[call-overload]
    assert keys("Settings", "key") == {field.name for field in fields(TrackSettings)}


def test_coco_json(
    tmp_path: Path,
    info: VideoInfo,
    track_settings: Callable[..., TrackSettings],
    smooth_masks: Callable[..., list[Mask]],
) -> None:
    writer = CocoWriter(tmp_path / "masks.json")
    writer.open(info, track_settings())
    for mask in smooth_masks(2):
        writer.write(mask)
    writer.finish()
    document = written(tmp_path / "masks.json")
    assert keys("COCO JSON", "key") == set(document)
    assert keys("COCO JSON", "key of an annotation") == set(document["annotations"][0])  # type: ignore[index]
    assert set(document["info"]) == {"description", *keys("Settings", "key")}  # type: ignore[call-overload]
    for table in ("videos", "images", "categories"):
        (row,) = re.findall(rf"^\| `{table}` \| (.*) \|$", text_of("COCO JSON"), re.MULTILINE)
        assert set(document[table][0]) <= set(re.findall(r"`(\w+)`", row)), table  # type: ignore[index]


def test_csv() -> None:
    assert keys("CSV", "column") == set(COLUMNS)
