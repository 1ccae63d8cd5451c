from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from avsseg.media.picture_end import PictureEnd
from avsseg.media.probe import VideoInfo
from avsseg.pipeline.segment import Mask
from avsseg.writers.base import TrackSettings
from avsseg.writers.intervals import COLUMNS, IntervalWriter


def rows(target: Path) -> list[dict[str, str]]:
    with target.open(newline="") as file:
        reader = csv.DictReader(file)
        assert tuple(reader.fieldnames or ()) == COLUMNS
        return list(reader)


def quarter(index: int, value: float) -> Mask:
    """The upper left quarter has the probability `value`."""
    probability = np.full((1, 16, 16), 0.01, np.float32)
    probability[:, :8, :8] = value
    return Mask(index, index + 0.5, probability)


def write(target: Path, info: VideoInfo, settings: TrackSettings, masks: list[Mask]) -> list[dict[str, str]]:
    writer = IntervalWriter(target)
    writer.open(info, settings)
    for mask in masks:
        writer.write(mask)
    assert writer.finish() == [target]
    return rows(target)


def test_each_stretch_of_sound_is_a_line(
    tmp_path: Path, info: VideoInfo, track_settings: Callable[..., TrackSettings]
) -> None:
    masks = [quarter(k, value) for k, value in enumerate([0.0, 0.8, 1.0, 0.0, 0.9])]
    lines = write(tmp_path / "when.csv", replace(info, duration_s=4.6), track_settings(), masks)
    assert [(line["start"], line["end"], line["category"]) for line in lines] == [
        ("1.000", "3.000", "sounding"),
        ("4.000", "4.600", "sounding"),  # where the video ends
    ]
    # the edge between 0.01 and 0.8 is crossed by bilinear resizing, so the quarter is only nearly one
    assert abs(float(lines[0]["area"]) - 0.25) < 0.02
    assert float(lines[0]["score"]) == 0.9
    assert float(lines[1]["score"]) == 0.9


def test_an_end_that_is_announced_too_early_cuts_nothing(
    tmp_path: Path, info: VideoInfo, track_settings: Callable[..., TrackSettings]
) -> None:
    masks = [quarter(k, 0.9) for k in range(6)]
    (line,) = write(tmp_path / "when.csv", replace(info, duration_s=2.0), track_settings(), masks)
    assert (line["start"], line["end"]) == ("0.000", "6.000")


def test_the_last_stretch_ends_with_the_picture(
    tmp_path: Path, info: VideoInfo, track_settings: Callable[..., TrackSettings]
) -> None:
    writer = IntervalWriter(tmp_path / "when.csv")
    writer.open(replace(info, duration_s=5.0), track_settings())
    for index in range(3):
        writer.write(quarter(index, 0.9))
    (target,) = writer.finish(PictureEnd(2.3, 69))
    assert [(line["start"], line["end"]) for line in rows(target)] == [("0.000", "2.300")]


def test_times_are_those_of_the_video(
    tmp_path: Path, info: VideoInfo, track_settings: Callable[..., TrackSettings]
) -> None:
    settings = replace(track_settings(), rate=4.0, start_s=30.0, end_s=30.9)
    masks = [quarter(k, 0.9) for k in range(4)]
    lines = write(tmp_path / "when.csv", replace(info, duration_s=100.0), settings, masks)
    assert [(line["start"], line["end"]) for line in lines] == [("30.000", "30.900")]


def test_categories_have_lines_of_their_own(
    tmp_path: Path,
    info: VideoInfo,
    track_settings: Callable[..., TrackSettings],
    smooth_masks: Callable[..., list[Mask]],
) -> None:
    masks = smooth_masks(2, 3)
    lines = write(tmp_path / "when.csv", info, track_settings(("background", "dog", "violin, bowed")), masks)
    assert [line["category"] for line in lines] == ["dog", "violin, bowed"]
    assert {(line["start"], line["end"]) for line in lines} == {("0.000", "2.000")}


def test_silence_leaves_the_columns_alone_and_aborting_leaves_nothing(
    tmp_path: Path, info: VideoInfo, track_settings: Callable[..., TrackSettings]
) -> None:
    assert write(tmp_path / "when.csv", info, track_settings(), [quarter(0, 0.1)]) == []
    writer = IntervalWriter(tmp_path / "other.csv")
    writer.open(info, track_settings())
    writer.write(quarter(0, 0.9))
    writer.abort()
    writer.abort()
    assert [path.name for path in tmp_path.iterdir()] == ["when.csv"]


def test_a_stretch_is_called_by_its_sound_where_that_is_sure(
    tmp_path: Path, info: VideoInfo, track_settings: Callable[..., TrackSettings]
) -> None:
    settings = track_settings(heard=("dog", "", "cat"))
    heard = [(0.6, 0.0, 0.2), (0.8, 0.0, 0.1), (0.4, 0.0, 0.6), (0.1, 0.2, 0.8), (0.9, 0.2, 0.1), (0.1, 0.9, 0.8)]
    masks = [replace(quarter(k, 0.9), heard=np.array(sounds, np.float32)) for k, sounds in enumerate(heard)]
    masks[4] = replace(masks[4], probability=np.zeros_like(masks[4].probability))
    lines = write(tmp_path / "when.csv", replace(info, duration_s=6.0), settings, masks)
    assert [(line["start"], line["end"], line["category"]) for line in lines] == [
        ("0.000", "3.000", "dog"),  # where it is not sure, what comes before or else after
        ("3.000", "4.000", "cat"),
        ("5.000", "6.000", "sounding"),  # something that has no name
    ]
