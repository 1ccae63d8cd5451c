"""What is odd about whole videos; damage is in the hostile corpus and among the tests of windows."""

from __future__ import annotations

from pathlib import Path

from avsseg.media.probe import probe
from avsseg.media.windows import clip_windows


def notes_of(path: Path, **options) -> tuple[str, ...]:
    with clip_windows(probe(path), size=64, **options) as windows:
        list(windows)
    assert windows.warnings == ()
    return windows.notes


def test_a_sound_that_outlasts_the_picture_is_noted(each_ffmpeg, barcode_video):
    path = barcode_video("sound_outlasts").path
    assert notes_of(path) == ("the picture ends at 2.0 s, the sound at 3.4 s",)
    assert notes_of(path, rate=0.5) == ()  # the rest is less than a mask
    assert notes_of(path, end_s=1.0) == ()
    assert notes_of(barcode_video("plain").path) == ()


def test_a_packet_more_of_sound_is_no_note_at_any_rate(each_ffmpeg, encode_barcodes, tmp_path):
    path = tmp_path / "packet.mkv"
    encode_barcodes(path, 60, "-c:v", "ffv1", "-c:a", "flac", inputs=("-f", "lavfi", "-i", "sine=duration=2.15"))
    assert notes_of(path, rate=20) == ()


def test_a_start_behind_the_sound_is_no_damage(each_ffmpeg, encode_barcodes, tmp_path):
    path = tmp_path / "short_sound.mkv"
    encode_barcodes(path, 150, "-c:v", "ffv1", "-c:a", "flac", inputs=("-f", "lavfi", "-i", "sine=duration=1"))
    assert notes_of(path, start_s=3.0) == ()


def test_a_silent_track_beside_another_is_noted(each_ffmpeg, encode_barcodes, tmp_path):
    path = tmp_path / "scratch.mkv"
    sounds = ("-f", "lavfi", "-i", "anullsrc=channel_layout=mono:d=1", "-f", "lavfi", "-i", "sine=duration=1")
    encode_barcodes(path, 30, "-c:v", "ffv1", "-map", "0", "-map", "1", "-map", "2", "-c:a", "flac", inputs=sounds)
    assert notes_of(path) == ("audio track 1 is silent, and there is track 2; --audio-track chooses",)
    assert notes_of(path, audio_track=2) == ()


def test_channels_that_cancel_each_other_out_are_noted(each_ffmpeg, encode_barcodes, tmp_path):
    path = tmp_path / "crossed.mkv"
    crossed = ("-f", "lavfi", "-i", "aevalsrc='sin(2000*t)|-sin(2000*t)':d=1")
    encode_barcodes(path, 30, "-c:v", "ffv1", "-c:a", "flac", inputs=crossed)
    assert notes_of(path) == (
        "the channels of the sound cancel each other out in places; there the louder one is heard",
    )
