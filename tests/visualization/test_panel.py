from __future__ import annotations

import subprocess
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avsseg.media.ffmpeg import find_ffmpeg
from avsseg.media.probe import probe
from avsseg.visualization.panel import (
    CURSOR_COLOUR,
    HEARD_COLOUR,
    PEAKS_PER_S,
    WAVE_COLOUR,
    Shown,
    Waveform,
    draw_instant,
    draw_rows,
    draw_waveform,
    feature_painter,
    picture_size,
    prediction_painter,
    read_waveform,
    strip_size,
    tile_size,
    truth_painter,
    unchanged,
)


@pytest.fixture(scope="module")
def late_sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 s, of which the last 1.5 s have a tone."""
    path = tmp_path_factory.mktemp("media") / "late.mkv"
    tone = "aevalsrc=if(gte(t\\,1.5)\\,0.5*sin(2000*t)\\,0):s=16000:d=3"
    inputs = ["-f", "lavfi", "-i", "color=red:s=64x32:r=10:d=3", "-f", "lavfi", "-i", tone]
    codecs = ["-c:v", "libx264", "-preset", "ultrafast", "-c:a", "pcm_s16le"]
    subprocess.run([str(find_ffmpeg().path), "-v", "error", *inputs, *codecs, str(path)], check=True)
    return path


def test_a_tile_has_the_shape_of_the_picture_on_screen(clip: Path) -> None:
    info = probe(clip)
    assert tile_size(info) == (288, 216)
    width, height = tile_size(replace(info, sample_aspect_ratio=Fraction(3, 4)))
    assert width == height
    assert width % 2 == 0


def test_the_waveform_is_that_of_the_part_shown(late_sound: Path) -> None:
    whole = read_waveform(probe(late_sound), 0.0, None)
    assert (whole.start_s, whole.end_s) == (0, 3)
    assert len(whole.peaks) == 3 * PEAKS_PER_S
    loud = whole.peaks > 0.25
    assert loud.argmax() == round(1.5 * PEAKS_PER_S)
    assert loud[loud.argmax() :].all()
    part = read_waveform(probe(late_sound), 1.0, 2.0)
    assert (part.start_s, part.end_s) == (1, 2)
    assert (part.peaks > 0.25).argmax() == round(0.5 * PEAKS_PER_S)


def test_a_silent_video_has_a_flat_waveform(silent_clip: Path) -> None:
    waveform = read_waveform(probe(silent_clip), 0.0, None)
    assert len(waveform.peaks) == 0
    drawn = np.asarray(draw_waveform(waveform, 1.0, (101, 60), 1.0))
    assert (drawn == WAVE_COLOUR).all(axis=2).any(axis=1).sum() == 1


def test_cursor_and_what_is_heard_are_where_their_times_are() -> None:
    peaks = np.zeros(10 * PEAKS_PER_S, np.float32)
    peaks[5 * PEAKS_PER_S :] = 0.8
    drawn = np.asarray(draw_waveform(Waveform(peaks, 10.0, 20.0), 12.0, (1001, 80), 14.0))
    cursor = (drawn[2] == CURSOR_COLOUR).all(axis=1).nonzero()[0]
    assert abs(cursor.mean() - 200) <= 1
    heard = (drawn[2] == HEARD_COLOUR).all(axis=1).nonzero()[0]
    assert (heard.min(), heard.max()) == (350, 450)
    tall = (drawn == WAVE_COLOUR).all(axis=2).sum(axis=0) > 30
    assert abs(int(tall.argmax()) - 500) <= 3
    assert tall[510:990].all()


def test_painters_change_only_what_they_are_about() -> None:
    frame = Image.new("RGB", (40, 20), (100, 100, 100))
    half = np.zeros((4, 8), np.float32)
    half[:, 4:] = 1
    predicted = np.asarray(prediction_painter(half)(frame))
    assert (predicted[:, :20] == 100).all()
    assert (predicted[:, 20:] != 100).any(axis=2).all()
    true = np.asarray(truth_painter(half > 0)(frame))
    assert (true[:, :20] == 100).all()
    assert (true[:, 20:] != predicted[:, 20:]).any(axis=2).all()
    grey = np.asarray(truth_painter(None)(Image.new("RGB", (4, 4), (200, 0, 0))))
    assert (grey == grey[..., :1]).all()
    coloured = np.asarray(feature_painter(np.full((2, 2, 3), 200, np.uint8))(frame))
    assert (coloured == 170).all()  # 0.3 * 100 + 0.7 * 200


def test_rows_and_instants_are_laid_out_in_columns() -> None:
    frame = Image.new("RGB", (60, 50), (0, 120, 0))
    shown = [Shown(k, k + 0.5, {"frame": unchanged, "more": lambda f: f.point(lambda v: 255 - v)}) for k in range(2)]
    waveform = Waveform(np.zeros(100, np.float32), 0.0, 2.0)
    picture = np.asarray(draw_rows([(s, frame) for s in shown], waveform))
    assert picture.shape == (24 + 2 * 56, 6 + 3 * 66, 3)
    for top in (24, 80):
        assert picture[top, 40].tolist() == [0, 120, 0]
        assert picture[top, 6 + 66].tolist() == [255, 135, 255]
    strip = Image.new("RGB", strip_size((60, 50), 2), (1, 2, 3))
    instant = draw_instant(shown[0], frame, strip)
    assert instant.size == picture_size((60, 50), 2)
    assert np.asarray(instant)[-7, 6].tolist() == [1, 2, 3]
