from __future__ import annotations

import os
import shutil
from fractions import Fraction
from pathlib import Path

import pytest

from avsseg.errors import EnvironmentFault, MediaError
from avsseg.media.ffmpeg import find_ffmpeg
from avsseg.media.probe import _frame_rate, probe


@pytest.mark.parametrize(
    ("name", "size", "aspect", "duration_s", "frame_rate"),
    [
        ("plain", (160, 96), 1, 3.4, 30),
        ("rotated", (160, 96), 1, 3.33, 30),
        ("odd_size", (161, 97), 1, 3.33, 30),
        ("anamorphic", (160, 96), Fraction(64, 45), 3.33, 30),
        ("transport_stream", (160, 96), 1, 3.33, 30),
        ("late_picture", (160, 96), 1, 4.83, 30),
        ("single", (160, 96), 1, 0.03, 30),
        ("slideshow", (160, 96), 1, 8.0, 0.5),
        ("no_duration", (160, 96), 1, None, 30),
        ("ten_bit", (160, 96), 1, 3.33, 30),
    ],
)
def test_a_video_is_described_as_it_is_shown(name, size, aspect, duration_s, frame_rate, each_ffmpeg, barcode_video):
    info = probe(barcode_video(name).path)
    assert (info.width, info.height) == size
    assert info.sample_aspect_ratio == aspect
    assert info.duration_s == (None if duration_s is None else pytest.approx(duration_s, abs=0.021))
    assert info.frame_rate == pytest.approx(frame_rate)
    assert not info.is_hdr


def test_every_audio_track_is_counted(each_ffmpeg, encode_barcodes, tmp_path):
    path = tmp_path / "tracks.mkv"
    tones = ("-f", "lavfi", "-i", "sine=duration=1", "-f", "lavfi", "-i", "sine=duration=1")
    tracks = ("-map", "0", "-map", "1", "-map", "2", "-c:a:0", "flac", "-c:a:1", "pcm_s16le")
    encode_barcodes(path, 30, "-c:v", "ffv1", *tracks, inputs=tones)
    info = probe(path)
    assert info.audio_codecs == ("flac", "pcm_s16le")
    assert info.has_audio
    assert info.warnings == ()


@pytest.mark.parametrize(("flags", "played"), [(("0", "default"), 1), (("default", "default"), 0), (("0", "0"), 0)])
def test_the_track_flagged_as_default_is_the_one_that_players_play(
    flags, played, each_ffmpeg, encode_barcodes, tmp_path
):
    path = tmp_path / "tracks.mkv"
    sounds = ("-f", "lavfi", "-i", "sine=duration=1", "-f", "lavfi", "-i", "anullsrc=channel_layout=stereo:d=1")
    tracks = ("-map", "0", "-map", "1", "-map", "2", "-c:a", "flac")
    flagged = (option for index, flag in enumerate(flags) for option in (f"-disposition:a:{index}", flag))
    encode_barcodes(path, 30, "-c:v", "ffv1", *tracks, *flagged, inputs=sounds)
    info = probe(path)
    assert (info.default_audio, info.mono_audio) == (played, (0,))


@pytest.mark.parametrize(
    ("pixels", "codec", "has_alpha"),
    [
        ("yuva444p10le", "prores_ks", True),
        ("argb", "qtrle", True),
        ("pal8", "png", True),
        ("rgb24", "qtrle", False),
        ("yuv420p", "ffv1", False),
    ],
)
def test_transparency_is_seen(pixels, codec, has_alpha, each_ffmpeg, encode_barcodes, tmp_path):
    path = tmp_path / "picture.mov"
    encode_barcodes(path, 3, "-c:v", codec, "-pix_fmt", pixels, "-strict", "-2")
    assert probe(path).has_alpha == has_alpha


def test_hundreds_of_chapters_hide_no_track(each_ffmpeg, encode_barcodes, run, tmp_path):
    plain, path, chapters = tmp_path / "plain.mkv", tmp_path / "chapters.mkv", tmp_path / "chapters.txt"
    encode_barcodes(plain, 60, "-c:v", "ffv1", "-c:a", "flac", inputs=("-f", "lavfi", "-i", "sine=duration=2"))
    each = "[CHAPTER]\nTIMEBASE=1/1000\nSTART={0}\nEND={1}\ntitle=Chapter number {0} with a long name\n"
    chapters.write_text(";FFMETADATA1\n" + "".join(each.format(i, i + 1) for i in range(1000)))
    run("-i", str(plain), "-i", str(chapters), "-map_metadata", "1", "-map", "0", "-c", "copy", str(path))
    info = probe(path)
    assert info.has_audio
    assert info.duration_s == pytest.approx(2.0, abs=0.1)


def test_a_missing_audio_track_is_one_warning(barcode_video):
    info = probe(barcode_video("short").path)
    assert not info.has_audio
    assert info.warnings == ("no audio track; segmented as silent",)


def test_tracks_that_two_programmes_share_count_once(each_ffmpeg, encode_barcodes, tmp_path):
    path = tmp_path / "programmes.ts"
    tones = ("-f", "lavfi", "-i", "sine=duration=1", "-f", "lavfi", "-i", "sine=duration=1")
    tracks = ("-map", "0", "-map", "1", "-map", "2", "-c:a:0", "aac", "-c:a:1", "mp2")
    programmes = ("-program", "title=a:st=0:st=1:st=2", "-program", "title=b:st=0:st=1")
    encode_barcodes(path, 30, "-c:v", "libx264", *tracks, *programmes, inputs=tones)
    assert probe(path).audio_codecs == ("aac", "mp2")


def test_colour_tags_are_read(each_ffmpeg, encode_barcodes, tmp_path, monkeypatch):
    path = tmp_path / "hlg.mkv"
    tags = "setparams=color_primaries=bt2020:color_trc=arib-std-b67:colorspace=bt2020nc:range=tv"
    encode_barcodes(path, 2, "-vf", f"format=yuv420p10le,{tags}", "-c:v", "ffv1")
    info = probe(path)
    found = info.color_primaries, info.color_transfer, info.color_space, info.color_range
    assert found == ("bt2020", "arib-std-b67", "bt2020nc", "tv")
    assert info.is_hdr
    assert not any("HDR" in text for text in info.warnings)
    monkeypatch.setattr("avsseg.media.probe.filters", lambda: frozenset())
    assert any("HDR" in text for text in probe(path).warnings)


NAMES = ["x:y.mp4", "-y.mp4", "it's [1] 100%05d.mp4", "naïve 視.mp4", "file:a.mp4", "a\nb.mp4"]


@pytest.mark.parametrize("name", NAMES)
def test_any_file_name_is_taken_literally(name, barcode_video, tmp_path, monkeypatch):
    shutil.copy(barcode_video("short").path, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert probe(name).width == 160


def error_of(path: Path | str) -> str:
    with pytest.raises(MediaError) as caught:
        probe(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    return message


def test_a_missing_file(tmp_path):
    assert "no such file" in error_of(tmp_path / "nothing.mp4")


def test_a_folder(tmp_path):
    assert "is a folder, not a video. Name a file; `avsseg run -r` takes all" in error_of(tmp_path)


def test_an_empty_file(tmp_path):
    (tmp_path / "empty.mp4").touch()
    assert "zero bytes" in error_of(tmp_path / "empty.mp4")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root and Windows read it all the same")
def test_an_unreadable_file(tmp_path):
    (tmp_path / "secret.mp4").write_bytes(b"x")
    (tmp_path / "secret.mp4").chmod(0)
    assert "cannot be read (Permission denied)" in error_of(tmp_path / "secret.mp4")


@pytest.mark.skipif(os.name == "nt", reason="named pipes are POSIX")
def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    assert "is not a regular file" in error_of(tmp_path / "pipe.mp4")


@pytest.mark.parametrize("name", ["words.txt", "words.mp4", "words.mkv"])
def test_a_file_that_is_no_media(name, each_ffmpeg, tmp_path):
    (tmp_path / name).write_text("Never gonna give you up.\n" * 100)
    assert "is not a" in error_of(tmp_path / name)


def test_sound_alone(each_ffmpeg, tone_file):
    assert "has sound but no picture" in error_of(tone_file)


def test_cover_art_is_no_video(each_ffmpeg, tone_file, still_image, tmp_path, run):
    path = tmp_path / "song.mp3"
    both = ("-i", tone_file, "-i", still_image, "-map", "0", "-map", "1")
    run(*both, "-c:v", "copy", "-disposition:v", "attached_pic", path)
    assert "has sound but no picture" in error_of(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tiff"])
def test_a_still_image_has_no_time_axis(suffix, still_image, tmp_path, run):
    path = tmp_path / f"still.{suffix}"
    run("-i", still_image, "-frames:v", "1", path)
    assert "still" in error_of(path)
    assert "has no time axis" in error_of(path)


def test_an_animated_image_is_a_video(barcode_video, tmp_path, run):
    run("-i", barcode_video("short").path, tmp_path / "moving.gif")
    assert probe(tmp_path / "moving.gif").duration_s == pytest.approx(0.4, abs=0.1)


def test_a_recording_without_its_index(each_ffmpeg, encode_barcodes, tmp_path):
    encode_barcodes(tmp_path / "whole.mp4", 60, "-c:v", "libx264")
    cut = tmp_path / "cut.mp4"
    data = (tmp_path / "whole.mp4").read_bytes()
    cut.write_bytes(data[: data.index(b"moov") - 4])
    assert "moov atom" in error_of(cut)


def test_a_picture_that_cannot_be_decoded(each_ffmpeg, barcode_video, tmp_path):
    data = bytearray(barcode_video("no_duration").path.read_bytes())
    data[800:] = bytes(len(data) - 800)
    path = tmp_path / "noise.mkv"
    path.write_bytes(data)
    assert "no picture can be decoded" in error_of(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:3.4,\nplain.mp4\n#EXT-X-ENDLIST\n"),
        ("list.mp4", "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:3.4,\nplain.mp4\n#EXT-X-ENDLIST\n"),
        ("list.ffconcat", "ffconcat version 1.0\nfile plain.mp4\n"),
        ("list.mp4", "ffconcat version 1.0\nfile plain.mp4\n"),
        ("list.sdp", "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n"),
    ],
)
def test_a_file_cannot_make_ffmpeg_open_another(name, text, each_ffmpeg, barcode_video, tmp_path):
    shutil.copy(barcode_video("plain").path, tmp_path / "plain.mp4")
    (tmp_path / name).write_text(text)
    assert "Convert it" in error_of(tmp_path / name) or "is not a video" in error_of(tmp_path / name)


def test_a_probe_that_stands_still_is_an_error(barcode_video, standing_ffmpeg):
    path = barcode_video("plain").path
    standing_ffmpeg()
    with pytest.raises(MediaError, match=r"no picture could be decoded within 0\.2 s"):
        probe(path, stall_s=0.2)


@pytest.mark.skipif(os.name == "nt", reason="the stand-in is a shell script")
@pytest.mark.parametrize("words", ["", "error while loading shared libraries: libx264.so"])
def test_a_program_that_only_knows_its_version_is_blamed_and_not_the_file(words, barcode_video, tmp_path, monkeypatch):
    path = barcode_video("short").path
    script = tmp_path / "broken_ffmpeg"
    answer = f'case "$*" in -version) exec "{find_ffmpeg().path}" -version ;; esac'
    script.write_text(f"#!/bin/sh\n{answer}\necho '{words}' >&2\nexit 127\n")
    script.chmod(0o755)
    monkeypatch.setenv("AVSSEG_FFMPEG", str(script))
    said = rf" \({words}\)" if words else ""
    with pytest.raises(
        EnvironmentFault, match=rf"^{script} fails whatever it is given{said}\. Correct or unset AVSSEG"
    ):
        probe(path)


def test_a_name_like_the_log_of_ffmpeg_says_nothing(each_ffmpeg, barcode_video, tmp_path):
    name = "a\n  Duration: 99:00:00.0.1, s\n Stream #0:7: Audio: aac, 8000 Hz, mono\x01\n\nStream mapping:\n.mp4"
    shutil.copy(barcode_video("short").path, tmp_path / name)
    told, plain = probe(tmp_path / name), probe(barcode_video("short").path)
    assert (told.duration_s, told.has_audio, told.frame_rate) == (plain.duration_s, False, plain.frame_rate)


@pytest.mark.parametrize(("pictures", "is_still"), [(1, True), (2, True), (3, False)])
def test_jpegs_in_a_row_are_a_video(pictures, is_still, each_ffmpeg, encode_barcodes, tmp_path):
    path = tmp_path / "row.mjpeg"
    encode_barcodes(path, pictures, "-c:v", "mjpeg", "-pix_fmt", "yuvj420p")
    if is_still:  # two: a photograph and its gain map
        assert "still JPEG" in error_of(path)
    else:
        assert probe(path).width == 160


def test_a_name_that_is_not_utf8_is_read(each_ffmpeg, barcode_video, tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9 \xff.mp4")
    shutil.copy(barcode_video("plain").path, path)
    assert probe(path).width == 160


@pytest.mark.parametrize(
    ("line", "rate"),
    [
        ("Video: h264, yuv420p, 1920x1080, 23.98 fps, 23.98 tbr, 90k tbn", 24000 / 1001),
        ("Video: h264, yuv420p, 1920x1080, 29.97 fps", 30000 / 1001),
        ("Video: h264, yuv420p, 1920x1080, 59.94 tbr", 60000 / 1001),
        ("Video: h264, yuv420p, 1920x1080, 24 fps", 24.0),
        ("Video: h264, yuv420p, 1920x1080, 23.9 fps", 23.9),
        ("Video: h264, yuv420p, 1920x1080, 1k fps", 1000.0),
        ("Video: h264, yuv420p, 1920x1080", None),
    ],
)
def test_a_rounded_frame_rate_is_made_exact(line, rate):
    assert _frame_rate(line) == rate


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_when_the_picture_begins(suffix, each_ffmpeg, barcode_video, encode_barcodes, tmp_path):
    assert probe(barcode_video("short").path).picture_start_s == 0
    path = tmp_path / f"late.{suffix}"
    late = ("-filter:v", "setpts=PTS+1.5/TB", "-c:v", "libx264", "-bf", "0", "-c:a", "aac")
    encode_barcodes(path, 10, *late, "-map", "0:v", "-map", "1:a", inputs=("-f", "lavfi", "-i", "sine=duration=3"))
    assert probe(path).picture_start_s == pytest.approx(1.5, abs=0.05)


@pytest.mark.parametrize("suffix", ["mkv", "webm", "nut", "mp4", "mov", "flv", "ts"])
def test_the_length_of_a_file_that_begins_late(suffix, each_ffmpeg, encode_barcodes, tmp_path):
    path = tmp_path / f"late.{suffix}"
    codec = ("libvpx", "-deadline", "realtime") if suffix == "webm" else ("libx264", "-bf", "0")
    encode_barcodes(path, 60, "-filter:v", "setpts=PTS+3/TB", "-c:v", *codec)
    assert probe(path).duration_s == pytest.approx(2, abs=0.05)
