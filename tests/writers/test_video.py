from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from avsseg.errors import UsageError
from avsseg.media import captions
from avsseg.media.ffmpeg import find_ffmpeg
from avsseg.media.probe import VideoInfo, probe
from avsseg.media.render import Interpolation
from avsseg.media.render_graph import Style
from avsseg.pipeline.segment import Mask
from avsseg.writers.base import TrackSettings
from avsseg.writers.video import COLOUR, OPACITY, VideoWriter, mask_alpha


def frames_of(path: Path, width: int, height: int, *, alpha: bool = False) -> NDArray[np.uint8]:
    """(T, H, W, 3), with `alpha` (T, H, W, 4)."""
    decoder = ["-c:v", "libvpx-vp9"] if alpha and path.suffix == ".webm" else []  # the default one drops transparency
    colours = "rgba" if alpha else "rgb24"
    arguments = ["-v", "error", *decoder, "-i", str(path), "-f", "rawvideo", "-pix_fmt", colours, "-"]
    raw = subprocess.run([str(find_ffmpeg().path), *arguments], check=True, capture_output=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, len(colours.removesuffix("24")))


def written(writer: VideoWriter, info: VideoInfo, settings: TrackSettings, masks: list[Mask]) -> VideoInfo:
    writer.open(info, settings)
    for mask in masks:
        writer.write(mask)
    assert writer.finish() == [writer.target]
    return probe(writer.target)


def half_masks(count: int) -> list[Mask]:
    """The right half sounds."""
    probability = np.full((1, 16, 16), 0.02, np.float32)
    probability[:, :, 8:] = 0.98
    return [Mask(index, index + 0.5, probability) for index in range(count)]


@pytest.mark.parametrize("suffix", [".mp4", ".MKV", ".mov"])
def test_the_sounding_half_is_tinted_and_the_other_is_not(
    tmp_path: Path, info: VideoInfo, track_settings: Callable[..., TrackSettings], suffix: str
) -> None:
    target = tmp_path / f"overlay{suffix}"
    made = written(VideoWriter(target), info, track_settings(), half_masks(3))
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
    assert (made.width, made.height, made.has_audio) == (80, 60, True)
    before = frames_of(info.path, 80, 60).astype(float)
    after = frames_of(target, 80, 60).astype(float)
    assert after.shape == before.shape
    tinted = (1 - OPACITY) * before + OPACITY * np.array(COLOUR)
    # sharp edges of the test picture lose colour in 4:2:0: compare means, away from the border of the mask
    assert np.abs(after[:, :, :35] - before[:, :, :35]).mean() < 8
    assert np.abs(after[:, :, 45:] - tinted[:, :, 45:]).mean() < 8
    assert np.abs(tinted[:, :, 45:] - before[:, :, 45:]).mean() > 40


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_a_matte_is_the_mask_alone(
    tmp_path: Path, info: VideoInfo, track_settings: Callable[..., TrackSettings], suffix: str
) -> None:
    target = tmp_path / f"matte{suffix}"
    made = written(VideoWriter(target, "matte"), info, track_settings(), half_masks(3))
    assert (made.width, made.height, made.has_audio) == (80, 60, False)
    assert made.frame_rate == info.frame_rate
    frames = frames_of(target, 80, 60)
    assert len(frames) == len(frames_of(info.path, 80, 60))
    assert frames[:, :, :35].max() <= 2
    assert frames[:, :, 45:].min() >= 253


@pytest.mark.parametrize("suffix", [".mov", ".webm", ".mkv"])
def test_a_cutout_is_transparent_where_nothing_sounds(
    tmp_path: Path, info: VideoInfo, track_settings: Callable[..., TrackSettings], suffix: str
) -> None:
    target = tmp_path / f"cutout{suffix}"
    made = written(VideoWriter(target, "cutout"), info, track_settings(), half_masks(3))
    assert (made.width, made.height, made.has_audio) == (80, 60, True)
    frames = frames_of(target, 80, 60, alpha=True)
    before = frames_of(info.path, 80, 60)
    assert len(frames) == len(before)
    assert frames[:, :, :35, 3].max() <= 2
    assert frames[:, :, 45:, 3].min() >= 253
    inside = frames[:, :, 45:, :3].astype(float)
    assert np.abs(inside - before[:, :, 45:].astype(float)).mean() < 8
    assert before.std() > 40


def test_a_cutout_of_odd_size_keeps_it(
    tmp_path: Path, clip: Path, track_settings: Callable[..., TrackSettings]
) -> None:
    odd = tmp_path / "odd.mkv"
    shrink = ["-v", "error", "-i", str(clip), "-vf", "scale=81:61", "-pix_fmt", "yuv444p", "-t", "1", str(odd)]
    subprocess.run([str(find_ffmpeg().path), *shrink], check=True)
    target = tmp_path / "cutout.mov"
    made = written(VideoWriter(target, "cutout"), probe(odd), track_settings(), half_masks(1))
    assert (made.width, made.height) == (81, 61)
    frames = frames_of(target, 81, 61, alpha=True)
    assert frames[:, :, 46:, 3].min() >= 253
    assert frames[:, :, :35, 3].max() <= 2


def frames_with_text(
    writer: VideoWriter, settings: TrackSettings, info: VideoInfo, masks: list[Mask]
) -> NDArray[np.bool_]:
    """Of the frames of an overlay, which show more than those of the same masks without names."""
    written(writer, info, settings, masks)
    plain = writer.target.with_stem("plain")
    written(VideoWriter(plain, names=False), info, settings, masks)
    differs = np.abs(frames_of(writer.target, 80, 60).astype(int) - frames_of(plain, 80, 60)) > 100
    return np.array(differs.sum((1, 2, 3)) > 30)


def seconds_with_text(writer: VideoWriter, settings: TrackSettings, info: VideoInfo, masks: list[Mask]) -> list[bool]:
    """Of the middles of an overlay's seconds."""
    shown = frames_with_text(writer, settings, info, masks)
    return [bool(shown[round((mask.index + 0.5) * info.frame_rate)]) for mask in masks]


@pytest.mark.parametrize("interpolate", ["hold", "linear"])
def test_an_overlay_says_what_sounds(
    tmp_path: Path, info: VideoInfo, track_settings: Callable[..., TrackSettings], interpolate: Interpolation
) -> None:
    settings = track_settings(heard=("dog", "", "cat"))
    sounds = [[0.2, 0.1, 0.9], [0.3, 0.1, 0.4], [0.1, 0.9, 0.1]]
    named = [replace(mask, heard=np.array(s, np.float32)) for mask, s in zip(half_masks(3), sounds, strict=True)]
    writer = VideoWriter(tmp_path / "named.mp4", interpolate=interpolate)
    # an unsure one is called what the one before was
    assert seconds_with_text(writer, settings, info, named) == [True, True, True]
    writer = VideoWriter(tmp_path / "later.mp4", interpolate=interpolate)
    later = [replace(mask, heard=np.array(s, np.float32)) for mask, s in zip(half_masks(3), sounds[::-1], strict=True)]
    assert seconds_with_text(writer, settings, info, later) == [False, False, True]
    gap = [named[0], replace(named[1], probability=np.zeros((1, 16, 16), np.float32)), named[2]]
    writer = VideoWriter(tmp_path / "gap.mp4", interpolate=interpolate)
    assert seconds_with_text(writer, settings, info, gap) == [True, False, False]


def test_names_change_between_the_middles_of_linear_masks(
    tmp_path: Path, info: VideoInfo, track_settings: Callable[..., TrackSettings]
) -> None:
    settings = track_settings(heard=("dog", ""))
    masks = [replace(mask, heard=np.array((0.9, 0.1), np.float32)) for mask in half_masks(2)]
    masks[0] = replace(masks[0], heard=np.array((0.1, 0.9), np.float32))
    writer = VideoWriter(tmp_path / "named.mp4", interpolate="linear")
    named = frames_with_text(writer, settings, info, masks)
    first = round(info.frame_rate)
    assert not named[: first - 1].any()
    assert named[first + 2 : 2 * first - 1].all()


def test_stray_pixels_of_one_of_several_classes_have_no_name(
    tmp_path: Path, info: VideoInfo, track_settings: Callable[..., TrackSettings]
) -> None:
    probability = np.zeros((3, 32, 32), np.float32)
    probability[0] = 1
    probability[:, 20, 20] = 0, 1, 0
    settings = track_settings(("background", "dog", "violin"))
    assert not frames_with_text(VideoWriter(tmp_path / "a.mp4"), settings, info, [Mask(0, 0.5, probability)]).any()
    probability[:, 16:24, 16:24] = np.array([0, 1, 0], np.float32)[:, None, None]
    assert frames_with_text(VideoWriter(tmp_path / "b.mp4"), settings, info, [Mask(0, 0.5, probability)]).any()


def test_a_name_that_no_font_has_is_left_out_and_said(
    tmp_path: Path,
    info: VideoInfo,
    track_settings: Callable[..., TrackSettings],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(captions, "FONTS", ())
    captions._font.cache_clear()
    settings = track_settings(heard=("Hündin", "cat"))
    masks = [replace(mask, heard=np.array((0.9, 0.1), np.float32)) for mask in half_masks(2)]
    writer = VideoWriter(tmp_path / "named.mp4")
    assert not frames_with_text(writer, settings, info, masks).any()
    assert writer.warnings == (
        "no font found here has the letters of Hündin: the overlay shows that mask without its name",
    )
    captions._font.cache_clear()


def test_an_overlay_of_several_classes_names_each(
    tmp_path: Path,
    info: VideoInfo,
    track_settings: Callable[..., TrackSettings],
    smooth_masks: Callable[..., list[Mask]],
) -> None:
    writer = VideoWriter(tmp_path / "overlay.mp4")
    settings = track_settings(("background", "dog", "violin"))
    assert seconds_with_text(writer, settings, info, smooth_masks(3, classes=3)) == [True, True, True]


@pytest.mark.parametrize("style", ["matte", "cutout"])
def test_names_are_in_overlays_alone(
    tmp_path: Path, info: VideoInfo, track_settings: Callable[..., TrackSettings], style: Style
) -> None:
    named = [replace(mask, heard=np.array([0.9], np.float32)) for mask in half_masks(3)]
    videos = []
    for names in (True, False):
        writer = VideoWriter(tmp_path / f"{names}.mov", style, names=names)
        written(writer, info, track_settings(heard=("dog",)), named)
        videos.append(frames_of(writer.target, 80, 60))
    assert (videos[0] == videos[1]).all()


def test_a_cutout_cannot_be_mp4(tmp_path: Path, info: VideoInfo, track_settings: Callable[..., TrackSettings]) -> None:
    writer = VideoWriter(tmp_path / "cutout.mp4", "cutout")
    writer.open(info, track_settings())
    with pytest.raises(UsageError, match=r"a cutout cannot be a \.mp4 file\. Choose one of: mov, webm, mkv"):
        writer.write(half_masks(1)[0])
    writer.abort()
    assert list(tmp_path.iterdir()) == []


def test_aborting_ends_the_process_and_leaves_nothing(
    tmp_path: Path, info: VideoInfo, track_settings: Callable[..., TrackSettings]
) -> None:
    writer = VideoWriter(tmp_path / "overlay.mp4")
    writer.open(info, track_settings())
    writer.write(half_masks(1)[0])
    writer.abort()
    writer.abort()
    assert list(tmp_path.iterdir()) == []


def test_alpha_is_a_half_on_the_threshold_and_saturates_around_it() -> None:
    probability = np.array([[[0.0, 0.2, 0.3, 0.4, 1.0]]], np.float32)
    alpha = mask_alpha(probability, 0.3)
    assert alpha.dtype == np.float32
    assert alpha[0, 0] == 0
    assert 0 <= alpha[0, 1] < 0.5
    assert alpha[0, 2] == pytest.approx(0.5)
    assert 0.5 < alpha[0, 3] <= 1
    assert alpha[0, 4] == 1


def test_alpha_of_several_classes_follows_the_winner() -> None:
    background = np.array([[0.8, 0.4, 0.2]], np.float32)
    dog = np.array([[0.1, 0.4, 0.7]], np.float32)
    violin = 1 - background - dog
    assert mask_alpha(np.stack([background, dog, violin]), 0.5)[0] == pytest.approx([0, 0.5, 1])
