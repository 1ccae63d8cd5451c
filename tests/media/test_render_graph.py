"""What videos of masks consist of: containers, encoders, audio tracks, colour."""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from avsseg.errors import EnvironmentFault
from avsseg.media.ffmpeg import find_ffmpeg
from avsseg.media.frames import sample_frames
from avsseg.media.probe import probe


def test_an_odd_picture_keeps_its_last_column_and_row(each_ffmpeg, encode_barcodes, tmp_path, render):
    source = tmp_path / "odd.mkv"
    encode_barcodes(source, 10, "-vf", "format=yuv444p,crop=159:95,negate", "-c:v", "ffv1")
    info = probe(source)
    made = render(info, tmp_path / "overlay.mp4", [0.0])

    def first_frame(path: Path, width: int, height: int) -> NDArray[np.int64]:
        program = [str(find_ffmpeg().path), "-v", "error", "-nostdin", "-i", str(path), "-map", "0:V:0"]
        arguments = ["-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"]
        pixels = subprocess.run([*program, *arguments], check=True, stdout=subprocess.PIPE).stdout
        return np.frombuffer(pixels, np.uint8).reshape(height, width, 3).astype(int)

    before, after = first_frame(source, 159, 95), first_frame(made, 160, 96)
    assert before[-1].mean() > 30  # black would not show
    assert before[:, -1].mean() > 30
    for row in (-2, -1):
        assert abs(after[row, :159] - before[-1]).mean() < 12
        assert abs(after[:95, row] - before[:, -1]).mean() < 12


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov", "webm"])
def test_each_container_is_written_as_such(suffix, each_ffmpeg, barcode_video, watch, tmp_path, strengths, render):
    video = barcode_video("plain")
    target = tmp_path / f"overlay.{suffix}.partial"
    info = probe(video.path)
    path = render(info, target, strengths(4), container=suffix)
    assert suffix in probe(path).container or (suffix == "mkv" and "matroska" in probe(path).container)
    assert [frame.index for frame in watch(path)] == list(video.indices)


def test_the_overlay_plays_everywhere(barcode_video, tmp_path, strengths, render):
    path = render(probe(barcode_video("ten_bit").path), tmp_path / "overlay.mp4", strengths(4))
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    log = subprocess.run(
        [str(find_ffmpeg().path), "-hide_banner", "-nostdin", "-i", str(path)], stderr=subprocess.PIPE, check=False
    ).stderr.decode()
    assert re.search(r"Video: h264 .*, yuv420p\(", log)


def audio_md5(path: Path, track: int) -> str:
    arguments = [
        "-v",
        "error",
        "-nostdin",
        "-i",
        str(path),
        "-map",
        f"0:a:{track}",
        "-c",
        "copy",
        "-f",
        "data",
        "pipe:1",
    ]
    packets = subprocess.run([str(find_ffmpeg().path), *arguments], check=True, stdout=subprocess.PIPE).stdout
    return hashlib.md5(packets).hexdigest()


@pytest.fixture(scope="session")
def two_tracks(encode_barcodes, tmp_path_factory) -> Callable[[str, str], Path]:
    """`two_tracks(first, second)`: an MKV with one track of each codec."""

    def make(*codecs: str) -> Path:
        path = tmp_path_factory.mktemp("tracks") / "two.mkv"
        tones = ("-f", "lavfi", "-i", "sine=300:duration=1", "-f", "lavfi", "-i", "sine=500:duration=1")
        tracks = [
            word for track, codec in enumerate(codecs) for word in ("-map", f"{track + 1}", f"-c:a:{track}", codec)
        ]
        encode_barcodes(path, 30, "-map", "0", *tracks, "-c:v", "ffv1", "-strict", "-2", inputs=tones)
        return path

    return make


@pytest.mark.parametrize(
    ("codecs", "suffix", "written"),
    [
        (("aac", "libmp3lame"), "mp4", ("aac", "mp3")),
        (("aac", "flac"), "mkv", ("aac", "flac")),
        (("aac", "pcm_s16le"), "mov", ("aac", "pcm_s16le")),
        (("libopus", "libopus"), "webm", ("opus", "opus")),
    ],
)
def test_all_audio_tracks_are_copied(codecs, suffix, written, each_ffmpeg, two_tracks, tmp_path, strengths, render):
    source = two_tracks(*codecs)
    path = render(probe(source), tmp_path / f"overlay.{suffix}", strengths(1))
    assert probe(path).audio_codecs == written
    assert [audio_md5(path, track) for track in (0, 1)] == [audio_md5(source, track) for track in (0, 1)]


@pytest.mark.parametrize(
    ("codecs", "suffix", "written", "notice"),
    [
        (("flac", "aac"), "mp4", ("aac", "aac"), "a .mp4 file cannot hold its flac audio; it is re-encoded as AAC"),
        (("pcm_s16le", "aac"), "mp4", ("aac", "aac"), "a .mp4 file cannot hold its pcm_s16le audio"),
        (
            ("aac", "libopus"),
            "webm",
            ("opus", "opus"),
            "a .webm file cannot hold its aac audio; it is re-encoded as Opus",
        ),
    ],
)
def test_audio_that_a_container_cannot_hold_is_encoded_with_a_notice(
    codecs, suffix, written, notice, each_ffmpeg, two_tracks, tmp_path, strip, red_renderer
):
    path = tmp_path / f"overlay.{suffix}"
    with red_renderer(probe(two_tracks(*codecs)), path, container=suffix) as renderer:
        renderer.write(strip(0.0))
    assert probe(path).audio_codecs == written
    assert len(renderer.warnings) == 1
    assert renderer.warnings[0].startswith(notice)


def test_not_even_matroska_holds_everything(each_ffmpeg, encode_barcodes, tmp_path, strip, red_renderer):
    source, path = tmp_path / "big-endian.mov", tmp_path / "overlay.mkv"
    tone = ("-f", "lavfi", "-i", "sine=duration=1")
    encode_barcodes(source, 30, "-map", "0", "-map", "1", "-c:v", "mpeg4", "-c:a", "pcm_f32be", inputs=tone)
    with red_renderer(probe(source), path, container="mkv") as renderer:
        renderer.write(strip(0.0))
    assert probe(path).audio_codecs == ("aac",)
    assert renderer.warnings == ("a .mkv file cannot hold its pcm_f32be audio; it is re-encoded as AAC",)


def test_tracks_of_one_codec_are_told_of_once(two_tracks, tmp_path, strip, red_renderer):
    info = probe(two_tracks("flac", "flac"))
    with red_renderer(info, tmp_path / "overlay.mp4") as renderer:
        renderer.write(strip(0.0))
    assert renderer.warnings == ("a .mp4 file cannot hold its flac audio; it is re-encoded as AAC",)


def test_surround_sound_becomes_opus(each_ffmpeg, encode_barcodes, tmp_path, strengths, render):
    source = tmp_path / "surround.mkv"
    surround = ("-f", "lavfi", "-i", "anullsrc=channel_layout=5.1(side):d=1")
    encode_barcodes(source, 30, "-c:v", "ffv1", "-c:a", "ac3", inputs=surround)
    assert probe(render(probe(source), tmp_path / "overlay.webm", strengths(1))).audio_codecs == ("opus",)


@pytest.mark.parametrize(("matrix", "pixels"), [("bt709", "yuv420p"), ("smpte170m", "yuv444p"), ("bt709", "yuv422p10")])
def test_colour_tags_and_the_colour_itself_are_kept(matrix, pixels, each_ffmpeg, encode_barcodes, tmp_path, render):
    source = tmp_path / "tagged.mkv"
    tags = f"format={pixels},setparams=color_primaries={matrix}:color_trc={matrix}:colorspace={matrix}:range=tv"
    encode_barcodes(source, 30, "-vf", tags, "-c:v", "ffv1")
    path = render(probe(source), tmp_path / "overlay.mp4", [1.0], colour=(200, 60, 20))
    made = probe(path)
    assert (made.color_primaries, made.color_transfer, made.color_space) == (matrix, matrix, matrix)
    with sample_frames(made, size=96) as frames:
        strip_colour = next(frames)[76:84, 20:-20].mean(axis=(0, 1))
    assert strip_colour == pytest.approx([200, 60, 20], abs=6)


@pytest.fixture
def hdr_video(encode_barcodes, tmp_path) -> Path:
    path = tmp_path / "hdr.mkv"
    tags = "setparams=color_primaries=bt2020:color_trc=smpte2084:colorspace=bt2020nc:range=tv"
    encode_barcodes(path, 30, "-vf", f"format=yuv420p10le,{tags}", "-c:v", "ffv1")
    return path


def test_an_hdr_picture_becomes_an_ordinary_one(each_ffmpeg, hdr_video, tmp_path, strip, red_renderer):
    info = probe(hdr_video)
    with red_renderer(info, tmp_path / "overlay.mp4") as renderer:
        renderer.write(strip(0.0))
    made = probe(tmp_path / "overlay.mp4")
    assert (made.is_hdr, made.color_transfer, made.color_space) == (False, "bt709", "bt709")
    assert renderer.warnings == ("the HDR picture is mapped to SDR (bt709) in the overlay",)
    with sample_frames(info, size=96) as mapped, sample_frames(made, size=96) as shown:
        assert abs(next(mapped).astype(int) - next(shown)).mean() < 4


def test_an_hdr_picture_that_cannot_be_mapped_is_a_warning(hdr_video, tmp_path, monkeypatch, strip, red_renderer):
    monkeypatch.setattr("avsseg.media.probe.filters", lambda: frozenset())
    with red_renderer(probe(hdr_video), tmp_path / "overlay.mp4") as renderer:
        renderer.write(strip(0.0))
    assert any("HDR" in warning and "zscale" in warning for warning in renderer.warnings)


def test_another_encoder_is_used_with_a_notice(barcode_video, tmp_path, monkeypatch, strip, red_renderer):
    monkeypatch.setattr("avsseg.media.render_graph.encoders", lambda: frozenset({"mpeg4", "aac"}))
    path = tmp_path / "overlay.mp4"
    with red_renderer(probe(barcode_video("plain").path), path) as renderer:
        renderer.write(strip(1.0))
    assert probe(path).frame_rate == 30
    assert renderer.warnings == ("this ffmpeg has no libx264; the overlay is encoded with mpeg4",)


def test_no_encoder_at_all_is_an_error(barcode_video, tmp_path, monkeypatch, strengths, render):
    monkeypatch.setattr("avsseg.media.render_graph.encoders", lambda: frozenset())
    with pytest.raises(EnvironmentFault, match=r"no encoder for a \.webm"):
        render(probe(barcode_video("plain").path), tmp_path / "overlay.webm", strengths(4))


@pytest.mark.parametrize("suffix", ["mov", "mkv", "webm"])
@pytest.mark.parametrize(("width", "height"), [(160, 96), (159, 95)])
def test_a_cutout_keeps_the_transparency_of_its_video(
    suffix, width, height, each_ffmpeg, encode_barcodes, tmp_path, render
):
    source = tmp_path / "holes.mov"
    half = f"format=rgba,crop={width}:{height},geq=r='r(X,Y)':g='g(X,Y)':b='b(X,Y)':a='if(lt(X,80),0,200)'"
    encode_barcodes(source, 30, "-vf", f"{half},format=argb", "-c:v", "qtrle")
    made = render(probe(source), tmp_path / f"cutout.{suffix}", [1.0], style="cutout", colour=(255, 255, 255))
    decoder = ["-c:v", "libvpx-vp9"] if suffix == "webm" else []
    program = [str(find_ffmpeg().path), "-v", "error", "-nostdin", *decoder, "-i", str(made), "-frames:v", "1"]
    arguments = ["-vf", "format=yuva444p,extractplanes=a", "-f", "rawvideo", "-pix_fmt", "gray", "pipe:1"]
    pixels = subprocess.run([*program, *arguments], check=True, stdout=subprocess.PIPE).stdout
    alpha = np.frombuffer(pixels, np.uint8).reshape(height, width).astype(int)
    assert abs(alpha[70:90, :70]).max() < 6
    assert abs(alpha[70:90, 90:] - 200).max() < 6
    assert abs(alpha[:50]).max() < 6  # where the mask has nothing


@pytest.mark.parametrize(("name", "style"), [("a.mov", "overlay"), ("a.mp4", "matte"), ("c.mov", "cutout")])
def test_the_timecode_is_kept_from_the_beginning(name, style, each_ffmpeg, encode_barcodes, tmp_path, render):
    source = tmp_path / "camera.mov"
    encode_barcodes(source, 60, "-c:v", "libx264", "-timecode", "01:02:03:04")
    info = probe(source)
    assert info.timecode == "01:02:03:04"
    assert probe(render(info, tmp_path / name, [1.0, 1.0], style=style)).timecode == "01:02:03:04"
    assert probe(render(info, tmp_path / f"late_{name}", [1.0], style=style, start_s=1.0)).timecode is None


def test_a_container_s_timecode_is_not_that_of_a_later_start(each_ffmpeg, encode_barcodes, tmp_path, render):
    source = tmp_path / "camera.mkv"
    encode_barcodes(source, 60, "-c:v", "libx264", "-metadata", "timecode=01:02:03:04")
    info = probe(source)
    assert probe(render(info, tmp_path / "a.mp4", [1.0, 1.0])).timecode == info.timecode == "01:02:03:04"
    for name, start_s in (("late.mp4", 1.0), ("late.mkv", 1.0), ("a.mkv", 0.0)):
        assert probe(render(info, tmp_path / name, [1.0], start_s=start_s)).timecode is None


def first_plane(video, plane):
    program = [str(find_ffmpeg().path), "-v", "error", "-nostdin", "-i", str(video), "-frames:v", "1"]
    arguments = ["-vf", f"format=yuva444p,extractplanes={plane}", "-f", "rawvideo", "-pix_fmt", "gray", "pipe:1"]
    pixels = subprocess.run([*program, *arguments], check=True, stdout=subprocess.PIPE).stdout
    return np.frombuffer(pixels, np.uint8).reshape(-1, probe(video).width).astype(int)


def test_a_cutout_of_a_palette_has_all_of_it(each_ffmpeg, encode_barcodes, tmp_path, render):
    source = tmp_path / "palette.avi"
    encode_barcodes(source, 30, "-c:v", "rawvideo", "-pix_fmt", "pal8")
    made = render(probe(source), tmp_path / "cutout.mov", [1.0], style="cutout", colour=(255, 255, 255))
    assert first_plane(made, "a").max() > 250


def test_a_cutout_keeps_fine_chroma(each_ffmpeg, encode_barcodes, tmp_path, render):
    source = tmp_path / "rows.mkv"
    encode_barcodes(source, 30, "-vf", "format=yuv444p,geq=lum=128:cb='88+80*mod(Y,2)':cr=128", "-c:v", "ffv1")
    made = render(probe(source), tmp_path / "cutout.mov", [1.0], style="cutout", colour=(255, 255, 255))
    rows = first_plane(made, "u")[:, 80]
    assert abs(rows[::2] - 88).max() < 8
    assert abs(rows[1::2] - 168).max() < 8
