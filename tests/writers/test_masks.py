from __future__ import annotations

import json
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avsseg.errors import OutputError
from avsseg.media.picture_end import PictureEnd
from avsseg.media.probe import VideoInfo
from avsseg.pipeline.segment import Mask
from avsseg.writers.base import TrackSettings
from avsseg.writers.labels import label_map
from avsseg.writers.masks import MaskFolderWriter, frame_index, mask_file_name, voc_palette


def test_one_class_gives_grey_pictures_of_0_and_255_at_display_size(
    tmp_path: Path,
    info: VideoInfo,
    track_settings: Callable[..., TrackSettings],
    smooth_masks: Callable[..., list[Mask]],
) -> None:
    writer = MaskFolderWriter(tmp_path / "masks")
    writer.open(info, track_settings())
    masks = smooth_masks(3)
    for mask in masks:
        writer.write(mask)
    assert writer.finish() == [tmp_path / "masks"]
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == [
        "00000.png",
        "00001.png",
        "00002.png",
        "masks.json",
    ]
    for mask in masks:
        picture = Image.open(tmp_path / "masks" / f"{mask.index:05d}.png")
        assert (picture.mode, picture.size) == ("L", (80, 60))
        assert np.array_equal(np.array(picture), label_map(mask.probability, 80, 60, 0.5) * 255)
        assert set(np.unique(np.array(picture))) == {0, 255}


@pytest.mark.parametrize(
    ("duration_s", "rate", "name"),
    [
        (None, 25.0, "00007.png"),
        (3999.9, 25.0, "00007.png"),
        (4000.0, 25.0, "00007.png"),
        (4000.1, 25.0, "000007.png"),
        (1e6 + 1, 1.0, "0000007.png"),
    ],
)
def test_names_of_a_long_track_sort_as_its_masks(
    duration_s: float | None, rate: float, name: str, info: VideoInfo, track_settings: Callable[..., TrackSettings]
) -> None:
    settings = replace(track_settings(), rate=rate)
    assert mask_file_name(7, replace(info, duration_s=duration_s), settings) == name


def test_several_classes_give_indexed_pictures_with_the_davis_palette(
    tmp_path: Path,
    info: VideoInfo,
    track_settings: Callable[..., TrackSettings],
    smooth_masks: Callable[..., list[Mask]],
) -> None:
    writer = MaskFolderWriter(tmp_path / "masks")
    writer.open(info, track_settings(("background", "dog", "violin")))
    (mask,) = smooth_masks(1, classes=3)
    writer.write(mask)
    writer.finish()
    picture = Image.open(tmp_path / "masks" / "00000.png")
    assert picture.mode == "P"
    assert set(np.unique(np.array(picture))) == {0, 1, 2}
    palette = picture.getpalette()
    assert palette is not None
    assert palette[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]
    listing = json.loads((tmp_path / "masks" / "masks.json").read_text())
    assert listing["pixel_values"] == {"dog": 1, "violin": 2}
    assert listing["masks"][0]["categories"] == ["dog", "violin"]


def test_the_listing_names_what_sounds(
    tmp_path: Path,
    info: VideoInfo,
    track_settings: Callable[..., TrackSettings],
    smooth_masks: Callable[..., list[Mask]],
) -> None:
    writer = MaskFolderWriter(tmp_path / "masks")
    writer.open(info, track_settings(heard=("dog", "cat")))
    for mask, dog, cat in zip(smooth_masks(4), (0.1, 0.3, 0.3, 0.9), (0.9, 0.1, 0.1, 0.1), strict=True):
        marked = mask.probability * (mask.index != 2)
        writer.write(replace(mask, probability=marked, heard=np.array((dog, cat), np.float32)))
    (folder,) = writer.finish()
    masks = json.loads((folder / "masks.json").read_text())["masks"]
    assert [mask["categories"] for mask in masks] == [["cat"], ["cat"], [], ["dog"]]


def test_the_palette_is_that_of_pascal_voc() -> None:
    colours = np.array(voc_palette()).reshape(256, 3)
    assert colours[[3, 15, 16, 255]].tolist() == [[128, 128, 0], [192, 128, 128], [0, 64, 0], [224, 224, 192]]
    assert len({tuple(colour) for colour in colours}) == 256


def test_the_listing_says_when_and_how(
    tmp_path: Path,
    info: VideoInfo,
    track_settings: Callable[..., TrackSettings],
    smooth_masks: Callable[..., list[Mask]],
) -> None:
    writer = MaskFolderWriter(tmp_path / "masks")
    writer.open(info, track_settings(threshold=0.4))
    for mask in smooth_masks(2):
        writer.write(mask)
    writer.finish()
    listing = json.loads((tmp_path / "masks" / "masks.json").read_text())
    assert (listing["video"], listing["width"], listing["height"]) == ("clip.mp4", 80, 60)
    assert listing["pixel_values"] == {"sounding": 255}
    assert listing["masks"][1] == {
        "file_name": "00001.png",
        "index": 1,
        "timestamp": 1.5,
        "frame_index": 15,
        "categories": ["sounding"],
    }
    assert listing["settings"]["threshold"] == 0.4
    assert listing["settings"]["model_sha256"] == "ab" * 32


def test_aborting_leaves_nothing(
    tmp_path: Path,
    info: VideoInfo,
    track_settings: Callable[..., TrackSettings],
    smooth_masks: Callable[..., list[Mask]],
) -> None:
    writer = MaskFolderWriter(tmp_path / "masks")
    writer.open(info, track_settings())
    writer.write(smooth_masks(1)[0])
    writer.abort()
    writer.abort()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_refuses_is_an_output_error_and_nothing_stays(
    tmp_path: Path,
    info: VideoInfo,
    track_settings: Callable[..., TrackSettings],
    smooth_masks: Callable[..., list[Mask]],
) -> None:
    noise = smooth_masks(1)[0]
    noise.probability[:] = np.random.default_rng(0).random(noise.probability.shape)
    writer = MaskFolderWriter(tmp_path / "masks")
    writer.open(info, track_settings())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OutputError, match="masks: cannot be written: File too large"):
            writer.write(noise)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    writer.abort()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("timestamp_s", "frame"), [(0.0, 0), (0.19, 1), (0.3, 3), (2.99, 29), (3.5, 29)])
def test_the_frame_index_is_that_of_the_frame_on_screen(info: VideoInfo, timestamp_s: float, frame: int) -> None:
    ten_a_second = replace(info, frame_rate=10.0, duration_s=3.0)
    assert frame_index(timestamp_s, 7, ten_a_second, None) == frame
    assert frame_index(timestamp_s, 7, replace(info, frame_rate=None), None) == 7


@pytest.mark.parametrize(("timestamp_s", "frame"), [(0.5, 0), (1.5, 0), (1.62, 1), (4.3, 28), (4.6, 29)])
def test_the_frame_index_counts_from_the_first_picture(info: VideoInfo, timestamp_s: float, frame: int) -> None:
    late = replace(info, frame_rate=10.0, duration_s=4.5, picture_start_s=1.5)
    assert frame_index(timestamp_s, 7, late, None) == frame


@pytest.mark.parametrize(
    ("end", "last"),
    [
        (PictureEnd(2.32, 58), 57),
        (PictureEnd(2.32, None), 57),
        (PictureEnd(2.333, None), 57),  # a clock of milliseconds
        (PictureEnd(2.32, 40), 39),  # of a variable rate
        (None, 124),
    ],
)
def test_no_frame_index_is_beyond_the_last_frame(info: VideoInfo, end: PictureEnd | None, last: int) -> None:
    sound_outlasts = replace(info, frame_rate=25.0, duration_s=5.0)
    assert frame_index(0.5, 0, sound_outlasts, end) == 12
    assert frame_index(7.5, 7, sound_outlasts, end) == last


def test_the_listing_ends_with_the_picture(
    tmp_path: Path,
    info: VideoInfo,
    track_settings: Callable[..., TrackSettings],
    smooth_masks: Callable[..., list[Mask]],
) -> None:
    writer = MaskFolderWriter(tmp_path / "masks")
    writer.open(replace(info, duration_s=5.0), track_settings())
    for mask in smooth_masks(3):
        writer.write(mask)
    writer.finish(PictureEnd(2.3, 23))
    masks = json.loads((tmp_path / "masks" / "masks.json").read_text())["masks"]
    assert [mask["frame_index"] for mask in masks] == [5, 15, 22]
