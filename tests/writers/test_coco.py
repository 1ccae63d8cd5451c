from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from avsseg.media.probe import VideoInfo
from avsseg.pipeline.segment import Mask
from avsseg.writers.base import TrackSettings
from avsseg.writers.coco import CocoWriter, encoded, score
from avsseg.writers.masks import MaskFolderWriter

# pycocotools 2.0.11 predates the copy keyword of numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def written(target: Path, info: VideoInfo, settings: TrackSettings, masks: list[Mask]) -> Path:
    writer = CocoWriter(target)
    writer.open(info, settings)
    for mask in masks:
        writer.write(mask)
    assert writer.finish() == [target]
    return target


@pytest.mark.parametrize("classes", [1, 3])
def test_pycocotools_reads_the_masks_of_the_png_folder_bit_by_bit(
    tmp_path: Path,
    info: VideoInfo,
    classes: int,
    track_settings: Callable[..., TrackSettings],
    smooth_masks: Callable[..., list[Mask]],
) -> None:
    masks = smooth_masks(4, classes)
    categories = ("sounding",) if classes == 1 else ("background", "dog", "violin")
    folder = MaskFolderWriter(tmp_path / "masks")
    settings = track_settings(categories)
    folder.open(info, settings)
    for mask in masks:
        folder.write(mask)
    folder.finish()
    coco = COCO(str(written(tmp_path / "coco.json", info, settings, masks)))
    assert len(coco.getImgIds()) == 4
    seen = set()
    for image in coco.loadImgs(coco.getImgIds()):
        picture = np.array(Image.open(tmp_path / "masks" / image["file_name"]))
        labels = np.zeros_like(picture)
        for annotation in coco.loadAnns(coco.getAnnIds(imgIds=image["id"])):
            labels[coco.annToMask(annotation) == 1] = annotation["category_id"]
            seen.add(annotation["category_id"])
        assert np.array_equal(labels, picture // 255 if classes == 1 else picture)
    assert seen == set(range(1, max(classes, 2)))


def test_the_annotations_are_a_result_list(
    tmp_path: Path,
    info: VideoInfo,
    track_settings: Callable[..., TrackSettings],
    smooth_masks: Callable[..., list[Mask]],
) -> None:
    path = written(tmp_path / "coco.json", info, track_settings(), smooth_masks(2))
    coco = COCO(str(path))
    results = coco.loadRes(json.loads(path.read_text())["annotations"])
    assert len(results.getAnnIds()) == 2


def test_every_key_that_readers_need_is_there(
    tmp_path: Path,
    info: VideoInfo,
    track_settings: Callable[..., TrackSettings],
    smooth_masks: Callable[..., list[Mask]],
) -> None:
    document = json.loads(written(tmp_path / "coco.json", info, track_settings(), smooth_masks(2)).read_text())
    assert set(document) == {"info", "videos", "images", "categories", "annotations"}
    assert document["categories"] == [{"id": 1, "name": "sounding", "supercategory": "sound"}]
    assert document["images"][1] == {
        "id": 2,
        "video_id": 1,
        "frame_index": 15,
        "timestamp": 1.5,
        "file_name": "00001.png",
        "width": 80,
        "height": 60,
    }
    annotation = document["annotations"][1]
    assert {key: annotation[key] for key in ("id", "image_id", "video_id", "track_id", "category_id", "iscrowd")} == {
        "id": 2,
        "image_id": 2,
        "video_id": 1,
        "track_id": 1,
        "category_id": 1,
        "iscrowd": 0,
    }
    assert annotation["attributes"] == {"track_id": 1}
    assert annotation["segmentation"]["size"] == [60, 80]
    assert annotation["segmentation"]["counts"].isascii()
    assert 0.5 < annotation["score"] <= 1
    assert document["info"]["model"] == "avs-mamba-tiny"
    assert document["info"]["avsseg_version"] == "0.1.0"
    assert document["videos"][0]["length"] == 2


def test_a_mask_of_silence_is_an_image_without_annotation(
    tmp_path: Path, info: VideoInfo, track_settings: Callable[..., TrackSettings]
) -> None:
    silence = Mask(0, 0.5, np.zeros((1, 16, 16), np.float32))
    document = json.loads(written(tmp_path / "coco.json", info, track_settings(), [silence]).read_text())
    assert len(document["images"]) == 1
    assert document["annotations"] == []


def test_masks_have_the_category_of_their_sound_where_that_is_sure(
    tmp_path: Path,
    info: VideoInfo,
    track_settings: Callable[..., TrackSettings],
    smooth_masks: Callable[..., list[Mask]],
) -> None:
    settings = track_settings(heard=("dog", "", "cat"))
    sounds = [(0.5, 0.3, 0.1), (0.9, 0.3, 0.1), (0.69, 0.2, 0.1), (0.2, 0.1, 0.71)]
    masks = [
        replace(mask, heard=np.array(heard, np.float32)) for mask, heard in zip(smooth_masks(4), sounds, strict=True)
    ]
    document = json.loads(written(tmp_path / "coco.json", info, settings, masks).read_text())
    names = {category["id"]: category["name"] for category in document["categories"]}
    assert names == {1: "sounding", 2: "cat", 3: "dog"}
    found = [names[annotation["category_id"]] for annotation in document["annotations"]]
    assert found == ["dog", "dog", "dog", "cat"]
    assert all(annotation["track_id"] == annotation["category_id"] for annotation in document["annotations"])


def test_area_and_box_of_a_known_region() -> None:
    region = np.zeros((10, 20), bool)
    region[2:5, 4:11] = True
    assert encoded(region)["area"] == 21
    assert encoded(region)["bbox"] == [4.0, 2.0, 7.0, 3.0]
    assert encoded(np.zeros((10, 20), bool))["bbox"] == [0.0, 0.0, 0.0, 0.0]


def test_score_is_the_mean_probability_where_the_label_wins() -> None:
    probability = np.array([[[0.9, 0.7, 0.2]]], np.float32)
    assert score(probability, 1, 0.5) == 0.8
    assert score(probability, 1, 0.95) == 0.9
    several = np.array([[[0.1, 0.6]], [[0.9, 0.4]]], np.float32)
    assert score(several, 1, 0.5) == 0.9


def test_aborting_leaves_nothing(
    tmp_path: Path,
    info: VideoInfo,
    track_settings: Callable[..., TrackSettings],
    smooth_masks: Callable[..., list[Mask]],
) -> None:
    writer = CocoWriter(tmp_path / "coco.json")
    writer.open(info, track_settings())
    writer.write(smooth_masks(1)[0])
    writer.abort()
    assert list(tmp_path.iterdir()) == []
