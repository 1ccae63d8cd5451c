from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from avsseg.media.audio import read_audio
from avsseg.media.ffmpeg import find_ffmpeg
from avsseg.media.frames import sample_frames
from avsseg.media.probe import probe
from avsseg.model.avs_mamba import AvsMamba

Main = Callable[..., CompletedProcess[str]]

HEADER, GAP, WIDTH, HEIGHT = 24, 6, 288, 216
SMALL = ("--size", "32", "--threads", "1", "--device", "cpu", "--allow-untrained")


def tile(picture: NDArray[np.uint8], row: int, column: int) -> NDArray[np.int64]:
    """A tile without the corner that says its time."""
    top, left = HEADER + row * (HEIGHT + GAP), GAP + column * (WIDTH + GAP)
    return picture[top : top + 180, left : left + WIDTH].astype(int)


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    """Left half, then right half; nothing for the third second of `clip`."""
    folder = tmp_path / "truth"
    folder.mkdir()
    for second, columns in enumerate((slice(0, 40), slice(40, 80))):
        mask = np.zeros((60, 80), np.uint8)
        mask[:, columns] = 255
        Image.fromarray(mask).save(folder / f"{second + 1}.png")
    return folder


def test_a_panel_has_a_row_for_each_instant(
    avsseg_main: Main, clip: Path, untrained_file: Path, truth: Path, tmp_path: Path
) -> None:
    out = tmp_path / "panel.png"
    outcome = avsseg_main(
        *("visualize", clip, "--out", out, "--model", untrained_file, *SMALL, "--at", "0,2.9,1", "--truth", truth)
    )
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout == f"{out}\n"
    assert outcome.stderr.count("was never trained") == 1
    picture = np.asarray(Image.open(out))
    assert picture.shape == (HEADER + 3 * (HEIGHT + GAP), GAP + 4 * (WIDTH + GAP), 3)
    with sample_frames(probe(clip), rate=1, size=WIDTH) as frames:
        for row, frame in enumerate(frames):
            expected = np.asarray(Image.fromarray(frame).resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS))[:180]
            assert (tile(picture, row, 0) == expected).all()
    changed = [np.abs(tile(picture, row, 1) - tile(picture, row, 0)).sum(axis=2) for row in range(3)]
    assert changed[0][:, 144:].max() == 0
    assert (changed[0][:, :144] > 0).mean() > 0.9
    assert changed[1][:, :144].max() == 0
    assert (changed[1][:, 144:] > 0).mean() > 0.9
    unknown = tile(picture, 2, 1)
    assert (unknown == unknown[..., :1]).all()


def test_rows_beyond_the_picture_are_told_of(
    avsseg_main: Main, make_video: Callable[..., Path], untrained_file: Path, tmp_path: Path
) -> None:
    short = make_video(tmp_path / "short.mp4", seconds=2)
    long = tmp_path / "long.mkv"
    sound = ("-f", "lavfi", "-i", "sine=duration=5", "-map", "0:v", "-map", "1", "-c:v", "copy", str(long))
    subprocess.run([str(find_ffmpeg().path), "-v", "error", "-i", str(short), *sound], check=True)
    out = tmp_path / "panel.png"
    outcome = avsseg_main("visualize", long, "--out", out, "--model", untrained_file, *SMALL, "--at", "1,3.5,4")
    assert outcome.returncode == 0, outcome.stderr
    assert "the picture ends before 3.0 s: 2 of 3 rows are left out" in outcome.stderr


def test_features_are_laid_over_frames_spread_evenly(
    avsseg_main: Main, clip: Path, untrained_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "features.png"
    arguments = ("visualize", clip, "--out", out, "--model", untrained_file, *SMALL, "--kind", "features", "--rows", 2)
    assert avsseg_main(*arguments, "--quiet").stderr == ""
    picture = np.asarray(Image.open(out))
    assert picture.shape == (HEADER + 2 * (HEIGHT + GAP), GAP + 4 * (WIDTH + GAP), 3)
    frame, before, after = (tile(picture, 0, column) for column in range(3))
    for painted in (before, after):
        features = painted - 0.3 * frame
        assert features.min() > -2
        assert features.max() < 0.7 * 255 + 2
        assert features.std(axis=(0, 1)).min() > 5
    assert np.abs(before - after).mean() > 5
    again = avsseg_main(*arguments, "--quiet")
    assert again.returncode == 2
    assert "features.png: exists already" in again.stderr


@pytest.mark.parametrize("kind", ["panel", "features"])
def test_a_video_shows_every_frame_with_the_sound(
    avsseg_main: Main, clip: Path, untrained_file: Path, tmp_path: Path, kind: str
) -> None:
    out = tmp_path / "shown.mp4"
    outcome = avsseg_main(
        *("visualize", clip, "--out", out, "--model", untrained_file, *SMALL, "--kind", kind),
        *("--start", "1", "--end", "2.5"),
    )
    assert outcome.returncode == 0, outcome.stderr
    info = probe(out)
    assert info.frame_rate == pytest.approx(10)
    assert info.duration_s == pytest.approx(1.5, abs=0.1)
    assert info.audio_codecs == ("aac",)
    columns = 2 if kind == "panel" else 3
    assert (info.width, info.height) == (GAP + columns * (WIDTH + GAP), HEADER + HEIGHT + GAP + 72 + GAP)
    with sample_frames(info, rate=10, size=info.width) as frames:  # squashed in height alone
        shown = list(frames)
    assert len(shown) == 15
    # the cursor, in the strip at the bottom, goes from left to right
    strips = [frame[round(0.79 * info.width) : round(0.9 * info.width)].astype(int) for frame in shown]
    red = [(strip[..., 0] - strip[..., 1]).sum(axis=0).argmax() for strip in strips]
    expected = GAP + (info.width - 2 * GAP - 1) * (np.arange(15) + 0.5) / 15
    assert np.abs(np.array(red) - expected).max() <= 4


def test_the_audio_track_asked_for_is_heard_drawn_and_played(
    avsseg_main: Main, clip: Path, untrained_file: Path, tmp_path: Path
) -> None:
    two = tmp_path / "two.mkv"
    silence = ("-f", "lavfi", "-i", "anullsrc=duration=3")
    tracks = ("-map", "0:v", "-map", "1:a", "-map", "0:a", "-c:v", "copy", "-c:a", "pcm_s16le")
    first = ("-disposition:a:0", "default", "-disposition:a:1", "0")
    subprocess.run([find_ffmpeg().path, "-v", "error", "-i", clip, *silence, *tracks, *first, two], check=True)
    strips = []
    for number, track in enumerate(((), ("--audio-track", "2"))):
        out = tmp_path / f"{number}.mp4"
        outcome = avsseg_main("visualize", two, "--out", out, "--model", untrained_file, *SMALL, *track)
        assert outcome.returncode == 0, outcome.stderr
        with read_audio(probe(out)) as sound:
            list(sound)
        assert (sound.peak > 0.05) == bool(track)
        with sample_frames(probe(out), rate=1, size=400) as frames:
            strips.append(next(iter(frames))[-130:].astype(int))
    assert np.abs(strips[1] - strips[0]).max() > 50
    features = tmp_path / "features.png"
    arguments = ("visualize", two, "--out", features, "--model", untrained_file, *SMALL, "--kind", "features")
    assert avsseg_main(*arguments, "--audio-track", "2").returncode == 0
    absent = avsseg_main(*arguments, "--overwrite", "--audio-track", "3")
    assert absent.returncode == 1
    assert "has 2 audio tracks, so there is no audio track 3" in absent.stderr


def test_wrong_command_lines_make_nothing(avsseg_main: Main, clip: Path, untrained_file: Path, tmp_path: Path) -> None:
    model = ("--model", untrained_file, *SMALL)
    cases = [
        (clip, "o.gif", (), "the name must end in .png or .mp4", 2),
        (clip, clip, (), "is the video itself", 2),
        (clip, "o.mp4", ("--at", "1"), "--at is about a .png", 2),
        (clip, "o.png", ("--at", "3"), "--at 3: must be from 0 s on and before 3 s", 2),
        (clip, "o.png", ("--at", "1", "--start", "2"), "--at 1: must be from 2 s on and before 3 s", 2),
        (clip, "o.png", ("--at", "soon"), "'soon' is not a time", 2),
        (clip, "o.png", ("--rows", "0"), "rows is 0", 2),
        (clip, "o.png", ("--threshold", "1"), "threshold is 1.0", 2),
        (clip, "o.png", ("--device", "gpu"), "--device gpu: choose", 2),
        (clip, "o.png", ("--truth", tmp_path / "none"), "none: no such folder", 1),
        (clip, "o.mp4", ("--start", "9"), "nothing is left from 9 s on", 1),
        (tmp_path / "absent.mp4", "o.png", (), "absent.mp4", 1),
    ]
    for video, out, arguments, said, code in cases:
        outcome = avsseg_main("visualize", video, "--out", tmp_path / out, *model, *arguments)
        assert outcome.returncode == code, (arguments, outcome.stderr)
        assert said in outcome.stderr
        assert outcome.stderr.count("\n") == 1
        assert outcome.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_truth_of_another_shape_is_an_error(
    avsseg_main: Main, clip: Path, untrained_file: Path, truth: Path, tmp_path: Path
) -> None:
    for path in truth.iterdir():
        Image.new("L", (60, 80)).save(path)
    out = tmp_path / "panel.png"
    outcome = avsseg_main("visualize", clip, "--out", out, "--model", untrained_file, *SMALL, "--truth", truth)
    assert outcome.returncode == 1
    assert "1.png: is 60x80, another shape than the picture of" in outcome.stderr
    assert not out.exists()


def test_out_of_memory_names_the_video_and_leaves_nothing(
    avsseg_main: Main, clip: Path, untrained_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(AvsMamba, "stages", exhausted)
    for name in ("panel.png", "panel.mp4"):
        outcome = avsseg_main("visualize", clip, "--out", tmp_path / name, "--model", untrained_file, *SMALL)
        assert outcome.returncode == 3
        assert f"avsseg: error: {clip}: memory ran out. Close other programs" in outcome.stderr
        assert "Traceback" not in outcome.stderr
    assert not [path for path in tmp_path.iterdir() if "panel" in path.name]
