"""docs/formats.md names every key of what is written, and no other."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

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


@pytest.fixture
def document(
    tmp_path: Path,
    info: VideoInfo,
    track_settings: Callable[..., TrackSettings],
    smooth_masks: Callable[..., list[Mask]],
) -> Callable[[type[MaskFolderWriter | CocoWriter]], Any]:
    """The JSON that a writer leaves of two masks."""

    def write(kind: type[MaskFolderWriter | CocoWriter]) -> Any:
        writer = kind(tmp_path / "masks")
        writer.open(info, track_settings())
        for mask in smooth_masks(2):
            writer.write(mask)
        (made,) = writer.finish()
        return json.loads((made / "masks.json" if made.is_dir() else made).read_text(encoding="utf-8"))

    return write


def test_masks_json(document: Callable[..., Any]) -> None:
    written = document(MaskFolderWriter)
    assert keys("A folder of masks", "key") == set(written)
    assert keys("A folder of masks", "key of a mask") == set(written["masks"][0])
    assert keys("Settings", "key") == set(written["settings"]) == {field.name for field in fields(TrackSettings)}


def test_coco_json(document: Callable[..., Any]) -> None:
    written = document(CocoWriter)
    assert keys("COCO JSON", "key") == set(written)
    assert keys("COCO JSON", "key of an annotation") == set(written["annotations"][0])
    assert set(written["info"]) == {"description", *keys("Settings", "key")}
    for table in ("videos", "images", "categories"):
        (row,) = re.findall(rf"^\| `{table}` \| (.*) \|$", text_of("COCO JSON"), re.MULTILINE)
        assert set(written[table][0]) <= set(re.findall(r"`(\w+)`", row)), table


def test_csv() -> None:
    assert keys("CSV", "column") == set(COLUMNS)
