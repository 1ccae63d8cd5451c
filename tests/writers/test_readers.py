"""Results as other people's programs read them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avsseg.media.probe import VideoInfo
from avsseg.pipeline.segment import Mask
from avsseg.writers.base import TrackSettings, Writer
from avsseg.writers.coco import CocoWriter
from avsseg.writers.labels import label_map
from avsseg.writers.masks import MaskFolderWriter

CATEGORIES = ("background", "dog", "violin")


def write(writer: Writer, info: VideoInfo, settings: TrackSettings, masks: list[Mask]) -> None:
    writer.open(info, settings)
    for mask in masks:
        writer.write(mask)
    writer.finish()


def test_a_davis_style_reader_finds_the_labels_in_order(
    tmp_path: Path,
    info: VideoInfo,
    track_settings: Callable[..., TrackSettings],
    smooth_masks: Callable[..., list[Mask]],
) -> None:
    """As the DAVIS toolkit does: the sorted *.png of a sequence's folder, indexed pictures, ids from 1."""
    masks = smooth_masks(3, 3)
    write(MaskFolderWriter(tmp_path / "sequence"), info, track_settings(CATEGORIES), masks)
    files = sorted((tmp_path / "sequence").glob("*.png"))
    assert [file.stem for file in files] == ["00000", "00001", "00002"]
    pictures = []
    for file in files:
        with Image.open(file) as picture:
            assert picture.mode == "P"
            pictures.append(np.array(picture))
    stack = np.stack(pictures)
    assert (stack.dtype, stack.shape) == (np.uint8, (3, info.height, info.width))
    objects = np.stack([(stack == k) for k in range(1, int(stack.max()) + 1)])
    assert len(objects) == 2
    for k, planes in enumerate(objects, start=1):
        for plane, mask in zip(planes, masks, strict=True):
            assert (plane == (label_map(mask.probability, info.width, info.height, 0.5) == k)).all()
            assert plane.any()


def test_datumaro_imports_the_masks_bit_by_bit(
    tmp_path: Path,
    info: VideoInfo,
    track_settings: Callable[..., TrackSettings],
    smooth_masks: Callable[..., list[Mask]],
) -> None:
    datumaro = pytest.importorskip("datumaro")
    masks = smooth_masks(3, 3)
    write(CocoWriter(tmp_path / "video.json"), info, track_settings(CATEGORIES), masks)
    (tmp_path / "set" / "annotations").mkdir(parents=True)
    (tmp_path / "set" / "images").mkdir()  # it may be empty, but must exist
    shutil.copy(tmp_path / "video.json", tmp_path / "set" / "annotations" / "instances_default.json")
    dataset = datumaro.Dataset.import_from(str(tmp_path / "set"), "coco_instances")
    names = [category.name for category in dataset.categories()[datumaro.AnnotationType.label]]
    assert names == ["dog", "violin"]
    read = {item.id: [a for a in item.annotations if a.type == datumaro.AnnotationType.mask] for item in dataset}
    assert sorted(read) == ["00000", "00001", "00002"]
    for mask in masks:
        labels = label_map(mask.probability, info.width, info.height, 0.5)
        found = {annotation.attributes["track_id"]: annotation for annotation in read[f"{mask.index:05d}"]}
        assert sorted(found) == [1, 2]
        for k, annotation in found.items():
            assert (np.asarray(annotation.image, bool) == (labels == k)).all()
