from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from avsseg.errors import OutputError
from avsseg.media.audio import SAMPLE_RATE_HZ, read_audio
from avsseg.media.drawn_video import DrawnVideo
from avsseg.media.ffmpeg import find_ffmpeg
from avsseg.media.frames import sample_frames
from avsseg.media.probe import probe


@pytest.fixture(scope="module")
def beep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 s; a tone from 2 s to 3 s alone."""
    path = tmp_path_factory.mktemp("media") / "beep.mkv"
    tone = "aevalsrc=if(between(t\\,2\\,3)\\,0.5*sin(3000*t)\\,0):s=44100:d=4"
    inputs = ["-f", "lavfi", "-i", "color=red:s=64x32:r=10:d=4", "-f", "lavfi", "-i", tone]
    codecs = ["-c:v", "libx264", "-preset", "ultrafast", "-c:a", "flac"]
    subprocess.run([str(find_ffmpeg().path), "-v", "error", *inputs, *codecs, str(path)], check=True)
    return path


def write(source: Path, target: Path, *, start_s: float, end_s: float | None, pictures: int) -> None:
    """Pictures of 10 a second that grow from black to white."""
    with DrawnVideo(probe(source), target, width=64, height=48, frame_rate=10, start_s=start_s, end_s=end_s) as video:
        for number in range(pictures):
            video.write(np.full((48, 64, 3), 10 * number, np.uint8))


@pytest.mark.parametrize(("start_s", "end_s"), [(0.0, None), (1.5, 3.5), (0.0, 2.5)])
def test_pictures_and_sound_keep_their_times(beep: Path, tmp_path: Path, start_s: float, end_s: float | None) -> None:
    target = tmp_path / "drawn.mp4"
    length_s = (end_s or 4.0) - start_s
    write(beep, target, start_s=start_s, end_s=end_s, pictures=round(10 * length_s) if length_s <= 2.5 else 25)
    info = probe(target)
    assert (info.width, info.height, info.audio_codecs) == (64, 48, ("aac",))
    with sample_frames(info, rate=10, size=8) as frames:
        levels = [int(frame.mean()) for frame in frames]
    assert np.abs(np.array(levels[:20]) - 10 * np.arange(20)).max() <= 3
    with read_audio(info) as sound:
        samples = np.concatenate(list(sound))
    assert len(samples) / SAMPLE_RATE_HZ == pytest.approx(length_s, abs=0.1)
    loud = np.abs(samples) > 0.2
    assert loud.argmax() / SAMPLE_RATE_HZ == pytest.approx(2 - start_s, abs=0.03)
    last = len(loud) - 1 - loud[::-1].argmax()
    assert last / SAMPLE_RATE_HZ == pytest.approx(min(3 - start_s, length_s), abs=0.05)


def test_a_video_without_sound_has_none(silent_clip: Path, tmp_path: Path) -> None:
    write(silent_clip, tmp_path / "drawn.mp4", start_s=0, end_s=None, pictures=5)
    info = probe(tmp_path / "drawn.mp4")
    assert info.audio_codecs == ()
    assert info.duration_s == pytest.approx(0.5)


def test_what_cannot_be_written_is_named(silent_clip: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="absent"):
        write(silent_clip, tmp_path / "absent" / "drawn.mp4", start_s=0, end_s=None, pictures=5)
    with (
        pytest.raises(ValueError, match="opened for"),
        DrawnVideo(probe(silent_clip), tmp_path / "drawn.mp4", width=64, height=48, frame_rate=10) as video,
    ):
        video.write(np.zeros((64, 48, 3), np.uint8))


def test_the_sound_is_that_of_the_track_that_is_heard(tmp_path: Path) -> None:
    source = tmp_path / "two.mkv"
    tracks = ["-f", "lavfi", "-i", "anullsrc=channel_layout=mono:d=1", "-f", "lavfi", "-i", "sine=duration=1"]
    inputs = ["-f", "lavfi", "-i", "color=red:s=64x32:r=10:d=1", *tracks, "-map", "0", "-map", "1", "-map", "2"]
    chosen = ["-c:a", "flac", "-disposition:a:0", "0", "-disposition:a:1", "default"]
    subprocess.run([str(find_ffmpeg().path), "-v", "error", *inputs, *chosen, str(source)], check=True)
    write(source, tmp_path / "drawn.mp4", start_s=0, end_s=None, pictures=10)
    with read_audio(probe(tmp_path / "drawn.mp4")) as sound:
        assert max(np.abs(block).max() for block in sound) > 0.05
