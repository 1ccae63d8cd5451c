from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from avsseg.media.ffmpeg import find_ffmpeg
from avsseg.media.probe import VideoInfo, probe
from avsseg.pipeline.segment import Mask
from avsseg.writers.base import TrackSettings
from avsseg.writers.overlay import COLOUR, OPACITY, OverlayWriter, mask_alpha


def frames_of(path: Path, width: int, height: int) -> NDArray[np.uint8]:
    arguments = ["-v", "error", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run([str(find_ffmpeg().path), *arguments], check=True, capture_output=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)


def half_masks(count: int) -> list[Mask]:
    """The right half sounds."""
    probability = np.full((1, 16, 16), 0.02, np.float32)
    probability[:, :, 8:] = 0.98
    return [Mask(index, index + 0.5, probability) for index in range(count)]


@pytest.mark.parametrize("suffix", [".mp4", ".MKV", ".mov"])
def test_the_sounding_half_is_tinted_and_the_other_is_not(
    tmp_path: Path, info: VideoInfo, track_settings: Callable[..., TrackSettings], suffix: str
) -> None:
    writer = OverlayWriter(tmp_path / f"overlay{suffix}")
    writer.open(info, track_settings())
    for mask in half_masks(3):
        writer.write(mask)
    assert writer.finish() == [tmp_path / f"overlay{suffix}"]
    assert [path.name for path in tmp_path.iterdir()] == [f"overlay{suffix}"]
    made = probe(tmp_path / f"overlay{suffix}")
    assert (made.width, made.height, made.has_audio) == (80, 60, True)
    before = frames_of(info.path, 80, 60).astype(float)
    after = frames_of(tmp_path / f"overlay{suffix}", 80, 60).astype(float)
    assert after.shape == before.shape
    tinted = (1 - OPACITY) * before + OPACITY * np.array(COLOUR)
    # sharp edges of the test picture lose colour in 4:2:0: compare means, away from the border of the mask
    assert np.abs(after[:, :, :35] - before[:, :, :35]).mean() < 8
    assert np.abs(after[:, :, 45:] - tinted[:, :, 45:]).mean() < 8
    assert np.abs(tinted[:, :, 45:] - before[:, :, 45:]).mean() > 40


def test_aborting_ends_the_process_and_leaves_nothing(
    tmp_path: Path, info: VideoInfo, track_settings: Callable[..., TrackSettings]
) -> None:
    writer = OverlayWriter(tmp_path / "overlay.mp4")
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
