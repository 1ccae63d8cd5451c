from __future__ import annotations

import dataclasses
import gc
import hashlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from avsseg.errors import EnvironmentFault, OutputError, UsageError
from avsseg.media.ffmpeg import find_ffmpeg
from avsseg.media.frames import sample_frames
from avsseg.media.probe import VideoInfo, probe
from avsseg.media.render import VideoRenderer

MASK_HEIGHT, MASK_WIDTH = 24, 40
RED = {"colour": (255, 0, 0), "opacity": 1.0, "mask_width": MASK_WIDTH, "mask_height": MASK_HEIGHT}


def strip(strength: float) -> NDArray[np.float32]:
    """A mask over the grey strip below the barcode."""
    mask = np.zeros((MASK_HEIGHT, MASK_WIDTH), np.float32)
    mask[MASK_HEIGHT * 2 // 3 :] = strength
    return mask


def strengths(count: int) -> list[float]:
    """Values of which neighbours, and neighbours but one, differ."""
    return [(0.0, 1.0, 0.5)[k % 3] for k in range(count)]


def render(info: VideoInfo, path: Path, masks: Sequence[float], **options: object) -> Path:
    keywords = {**RED, "rate": 1.0, "container": path.suffix[1:], **options}
    with VideoRenderer(info, path, **keywords) as renderer:
        for strength in masks:
            renderer.write(strip(strength))
    return path


@dataclass(frozen=True)
class Shown:
    time_s: float
    index: int  # of the barcode
    strength: float  # of the red over the strip


@pytest.fixture(scope="session")
def watch(read_barcode) -> Callable[[Path], list[Shown]]:
    """`watch(path)`: every frame of a rendered video."""

    def decode(path: Path, *options: str) -> bytes:
        program = [str(find_ffmpeg().path), "-v", "error", "-nostdin", "-i", str(path), "-map", "0:V:0"]
        arguments = ["-fps_mode", "passthrough", "-copyts", *options, "pipe:1"]
        return subprocess.run([*program, *arguments], check=True, stdout=subprocess.PIPE).stdout

    def watch(path: Path) -> list[Shown]:
        info = probe(path)
        log = decode(path, "-enc_time_base", "1:120000", "-f", "framecrc").decode()
        numerator, denominator = map(int, re.search(r"#tb 0: (\d+)/(\d+)", log).groups())
        times = [int(line.split(",")[2]) * numerator / denominator for line in log.splitlines() if line[0] != "#"]
        pixels = np.frombuffer(decode(path, "-f", "rawvideo", "-pix_fmt", "rgb24"), np.uint8)
        frames = pixels.reshape(-1, info.height, info.width, 3)
        blue = frames[:, info.height * 5 // 6 - 3 : info.height * 5 // 6 + 3, 20:-20, 2].mean(axis=(1, 2))
        indices = [read_barcode(frame) for frame in frames]
        return [Shown(t, i, 1 - b / 128) for t, i, b in zip(times, indices, blue, strict=True)]

    return watch


def grey_frames(path: Path) -> tuple[list[float], list[float]]:
    """When each frame of a matte appears, and its brightness, 0 to 1, where `strip` lies."""
    program = [str(find_ffmpeg().path), "-v", "error", "-nostdin", "-i", str(path), "-map", "0:V:0"]
    program += ["-fps_mode", "passthrough", "-copyts"]

    def decode(*options: str) -> bytes:
        return subprocess.run([*program, *options, "pipe:1"], check=True, stdout=subprocess.PIPE).stdout

    log = decode("-enc_time_base", "1:120000", "-f", "framecrc").decode()
    numerator, denominator = map(int, re.search(r"#tb 0: (\d+)/(\d+)", log).groups())
    times = [int(line.split(",")[2]) * numerator / denominator for line in log.splitlines() if line[0] != "#"]
    info = probe(path)
    pixels = np.frombuffer(decode("-f", "rawvideo", "-pix_fmt", "gray"), np.uint8).reshape(-1, info.height, info.width)
    middle = info.height * 5 // 6
    return times, (pixels[:, middle - 3 : middle + 3, 20:-20].mean(axis=(1, 2)) / 255).tolist()


@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "short",
        "slideshow",
        "variable_mp4",
        "variable_mkv",
        "edit_list",
        "transport_stream",
        "odd_size",
        "rotated",
        "late_picture",
        "late_picture_ts",
        "anamorphic",
        "ten_bit",
        "webm",
        "resized",
        "no_duration",
    ],
)
def test_every_frame_keeps_its_time_and_shows_the_mask_of_its_interval(
    name, each_ffmpeg, barcode_video, watch, tmp_path
):
    video = barcode_video(name)
    info = probe(video.path)
    given = strengths(int(video.end_s * 2) + 1)
    path = render(info, tmp_path / "overlay.mp4", given, rate=2.0)
    shown = watch(path)
    assert [frame.index for frame in shown] == list(video.indices)
    assert [frame.time_s for frame in shown] == pytest.approx(video.times, abs=0.001)
    assert [frame.strength for frame in shown] == pytest.approx(
        [given[int(t * 2 + 1e-3)] for t in video.times], abs=0.1
    )
    made = probe(path)
    assert (made.width, made.height) == (info.width + info.width % 2, info.height + info.height % 2)
    assert made.sample_aspect_ratio == info.sample_aspect_ratio
    assert made.frame_rate == pytest.approx(len(video.times) / (video.end_s - video.times[0]), rel=0.02)


def test_an_odd_picture_keeps_its_last_column_and_row(each_ffmpeg, encode_barcodes, tmp_path):
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
def test_each_container_is_written_as_such(suffix, each_ffmpeg, barcode_video, watch, tmp_path):
    video = barcode_video("plain")
    target = tmp_path / f"overlay.{suffix}.partial"
    info = probe(video.path)
    path = render(info, target, strengths(4), container=suffix)
    assert suffix in probe(path).container or (suffix == "mkv" and "matroska" in probe(path).container)
    assert [frame.index for frame in watch(path)] == list(video.indices)


def test_the_overlay_plays_everywhere(barcode_video, tmp_path):
    path = render(probe(barcode_video("ten_bit").path), tmp_path / "overlay.mp4", strengths(4))
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    log = subprocess.run(
        [str(find_ffmpeg().path), "-hide_banner", "-nostdin", "-i", str(path)], stderr=subprocess.PIPE, check=False
    ).stderr.decode()
    assert re.search(r"Video: h264 .*, yuv420p\(", log)


@pytest.mark.parametrize("rate", [0.5, 1.0, 2.0])
def test_linear_runs_between_the_middles_of_the_intervals(rate, each_ffmpeg, barcode_video, watch, tmp_path):
    given = strengths(int(np.ceil(100 / 30 * rate)))
    middles = (np.arange(len(given)) + 0.5) / rate
    info = probe(barcode_video("plain").path)
    shown = watch(render(info, tmp_path / "overlay.mp4", given, rate=rate, interpolate="linear"))
    # Ten masks a second are made, each held for three frames and exact in its middle one.
    expected = [np.interp((int(frame.time_s * 10 + 1e-3) + 0.5) / 10, middles, given) for frame in shown]
    assert [frame.strength for frame in shown] == pytest.approx(expected, abs=0.1)


def test_linear_at_a_high_rate_still_runs_between_the_middles(each_ffmpeg, barcode_video, watch, tmp_path):
    given = strengths(50)
    info = probe(barcode_video("plain").path)
    shown = watch(render(info, tmp_path / "overlay.mp4", given, rate=15.0, interpolate="linear"))
    middles = (np.arange(50) + 0.5) / 15
    expected = [np.interp((i + 0.5) / 30, middles, given) for i in range(100)]
    assert [frame.strength for frame in shown] == pytest.approx(expected, abs=0.12)


def test_the_end_of_the_masks_is_the_end_of_the_overlay_where_python_is_killed(
    each_ffmpeg, barcode_video, watch, tmp_path
):
    path = tmp_path / "overlay.mp4"
    renderer = VideoRenderer(probe(barcode_video("long").path), path, **RED, rate=1.0)
    for strength in (1.0, 0.0):
        renderer.write(strip(strength))
    renderer._process.close_stdin()  # all that ffmpeg sees of it
    assert renderer._process.wait() == 0
    renderer.kill()
    assert 30 <= len(watch(path)) <= 61  # of 750


def test_a_last_frame_of_absurd_length_ends_after_a_minute_or_so(each_ffmpeg, encode_barcodes, tmp_path):
    source = tmp_path / "absurd.mp4"
    encode_barcodes(source, 3, "-c:v", "libx264", rate=0.0005)
    info = dataclasses.replace(probe(source), duration_s=4.0)
    path = tmp_path / "overlay.mp4"
    with VideoRenderer(info, path, **RED, rate=2.0) as renderer:
        for strength in strengths(8):
            renderer.write(strip(strength))
    assert renderer._sent <= (1.5 * 4 + 60) * 2
    assert path.stat().st_size > 0


def test_a_header_that_announces_too_little_does_not_cut_the_overlay(each_ffmpeg, encode_barcodes, tmp_path):
    source = tmp_path / "slow.mp4"
    encode_barcodes(source, 10, "-c:v", "libx264", rate=0.1)
    info = dataclasses.replace(probe(source), duration_s=1.0)
    assert probe(render(info, tmp_path / "overlay.mp4", strengths(100))).duration_s == pytest.approx(100, abs=11)


def test_a_range_between_two_frames_is_an_error(each_ffmpeg, encode_barcodes, tmp_path):
    source = tmp_path / "slides.mkv"
    encode_barcodes(source, 3, "-c:v", "ffv1", rate=0.2)
    with pytest.raises(OutputError, match=r"overlay\.mp4: no frame of the picture begins .* an earlier --start"):
        render(probe(source), tmp_path / "overlay.mp4", strengths(2), start_s=6.0, end_s=8.0)


@pytest.mark.parametrize(("start_s", "end_s"), [(0.0, 1.5), (1.2, 2.9), (17.5, 20.0), (23.1, None)])
def test_a_range_begins_at_its_own_start(start_s, end_s, each_ffmpeg, barcode_video, watch, tmp_path):
    video = barcode_video("long")
    given = strengths(8)
    path = render(probe(video.path), tmp_path / "o.mp4", given, rate=2.0, start_s=start_s, end_s=end_s)
    shown = watch(path)
    first = int(np.ceil(start_s * 30 - 1e-6))
    assert [frame.index for frame in shown] == list(range(first, round((end_s or 25.0) * 30)))
    times = [frame.index / 30 - start_s for frame in shown]
    assert [frame.time_s for frame in shown] == pytest.approx(times, abs=0.002)
    assert [frame.strength for frame in shown] == pytest.approx([given[int(t * 2 + 1e-3)] for t in times], abs=0.1)
    assert probe(path).duration_s == pytest.approx((end_s or 25.0) - start_s, abs=0.06)


@pytest.mark.parametrize("count", [0, 1, 2, 40])
def test_masks_and_picture_may_differ_in_length(count, each_ffmpeg, barcode_video, watch, tmp_path):
    given = [1.0, 0.5, *[0.0] * 40][:count]
    shown = watch(render(probe(barcode_video("plain").path), tmp_path / "overlay.mp4", given))
    lasting = [*given, *[given[-1] if given else 0.0] * 4]
    assert [frame.index for frame in shown] == list(range(100))
    assert [frame.strength for frame in shown] == pytest.approx([lasting[i // 30] for i in range(100)], abs=0.1)


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
def test_all_audio_tracks_are_copied(codecs, suffix, written, each_ffmpeg, two_tracks, tmp_path):
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
    codecs, suffix, written, notice, each_ffmpeg, two_tracks, tmp_path
):
    path = tmp_path / f"overlay.{suffix}"
    with VideoRenderer(probe(two_tracks(*codecs)), path, **RED, rate=1.0, container=suffix) as renderer:
        renderer.write(strip(0.0))
    assert probe(path).audio_codecs == written
    assert len(renderer.warnings) == 1
    assert renderer.warnings[0].startswith(notice)


def test_tracks_of_one_codec_are_told_of_once(two_tracks, tmp_path):
    info = probe(two_tracks("flac", "flac"))
    with VideoRenderer(info, tmp_path / "overlay.mp4", **RED, rate=1.0) as renderer:
        renderer.write(strip(0.0))
    assert renderer.warnings == ("a .mp4 file cannot hold its flac audio; it is re-encoded as AAC",)


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
@pytest.mark.parametrize(
    ("number", "how"), [(signal.SIGKILL, "was killed by signal 9"), (signal.SIGTERM, "was stopped from outside")]
)
def test_an_ffmpeg_killed_from_outside_is_an_error_with_a_remedy(number, how, barcode_video, tmp_path):
    renderer = VideoRenderer(probe(barcode_video("long").path), tmp_path / "overlay.mp4", **RED, rate=1.0)
    renderer.write(strip(1.0))
    deadline = time.monotonic() + 60
    while not (tmp_path / "overlay.mp4").exists() and time.monotonic() < deadline:
        time.sleep(0.02)  # it takes care of SIGTERM only once it has begun
    os.kill(renderer._process.pid, number)
    with pytest.raises(OutputError, match=rf"overlay\.mp4: ffmpeg {how} while it wrote the overlay\. .* run the same"):
        renderer.close()


def test_surround_sound_becomes_opus(each_ffmpeg, encode_barcodes, tmp_path):
    source = tmp_path / "surround.mkv"
    surround = ("-f", "lavfi", "-i", "anullsrc=channel_layout=5.1(side):d=1")
    encode_barcodes(source, 30, "-c:v", "ffv1", "-c:a", "ac3", inputs=surround)
    assert probe(render(probe(source), tmp_path / "overlay.webm", strengths(1))).audio_codecs == ("opus",)


@pytest.mark.parametrize(("matrix", "pixels"), [("bt709", "yuv420p"), ("smpte170m", "yuv444p"), ("bt709", "yuv422p10")])
def test_colour_tags_and_the_colour_itself_are_kept(matrix, pixels, each_ffmpeg, encode_barcodes, tmp_path):
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


def test_an_hdr_picture_becomes_an_ordinary_one(each_ffmpeg, hdr_video, tmp_path):
    info = probe(hdr_video)
    with VideoRenderer(info, tmp_path / "overlay.mp4", **RED, rate=1.0) as renderer:
        renderer.write(strip(0.0))
    made = probe(tmp_path / "overlay.mp4")
    assert (made.is_hdr, made.color_transfer, made.color_space) == (False, "bt709", "bt709")
    assert renderer.warnings == ()
    with sample_frames(info, size=96) as mapped, sample_frames(made, size=96) as shown:
        assert abs(next(mapped).astype(int) - next(shown)).mean() < 4


def test_an_hdr_picture_that_cannot_be_mapped_is_a_warning(hdr_video, tmp_path, monkeypatch):
    monkeypatch.setattr("avsseg.media.probe.filters", lambda: frozenset())
    with VideoRenderer(probe(hdr_video), tmp_path / "overlay.mp4", **RED, rate=1.0) as renderer:
        renderer.write(strip(0.0))
    assert any("HDR" in warning and "zscale" in warning for warning in renderer.warnings)


def test_masks_may_come_slower_than_the_watchdog_waits(each_ffmpeg, barcode_video, watch, tmp_path):
    with VideoRenderer(
        probe(barcode_video("plain").path), tmp_path / "overlay.mp4", **RED, rate=1.0, stall_s=0.4
    ) as renderer:
        for strength in strengths(4):
            time.sleep(0.5)
            renderer.write(strip(strength))
    assert len(watch(tmp_path / "overlay.mp4")) == 100


def test_a_long_video_neither_blocks_nor_loses_masks(each_ffmpeg, barcode_video, watch, tmp_path):
    given = strengths(250)
    shown = watch(render(probe(barcode_video("long").path), tmp_path / "overlay.mp4", given, rate=10.0))
    assert [frame.strength for frame in shown] == pytest.approx([given[i // 3] for i in range(750)], abs=0.12)


def test_opacity_scales_the_masks(barcode_video, watch, tmp_path):
    shown = watch(render(probe(barcode_video("short").path), tmp_path / "overlay.mp4", [1.0], opacity=0.4))
    assert [frame.strength for frame in shown] == pytest.approx([0.4] * 12, abs=0.06)


@pytest.mark.parametrize("dtype", [np.uint8, bool, np.float64, np.float16])
def test_masks_of_any_number_type(dtype, barcode_video, watch, tmp_path):
    with VideoRenderer(probe(barcode_video("short").path), tmp_path / "overlay.mp4", **RED, rate=1.0) as renderer:
        renderer.write(strip(1.0).astype(dtype))
    assert watch(tmp_path / "overlay.mp4")[5].strength == pytest.approx(1.0, abs=0.06)


def test_a_damaged_video_is_rendered_as_far_as_it_goes(each_ffmpeg, barcode_video, tmp_path):
    data = bytearray(barcode_video("long").path.read_bytes())
    for position in np.random.default_rng(0).integers(len(data) // 5, len(data) * 4 // 5, 60):
        data[position] ^= 0x55
    (tmp_path / "damaged.mp4").write_bytes(data)
    path = render(probe(tmp_path / "damaged.mp4"), tmp_path / "overlay.mp4", strengths(25), stall_s=10)
    assert probe(path).duration_s == pytest.approx(25, abs=1)


def test_damaged_sound_does_not_end_the_picture(each_ffmpeg, barcode_video, watch, tmp_path):
    video = barcode_video("late_picture_ts")
    data = bytearray(video.path.read_bytes())
    heads = [match.start() for match in re.finditer(rb"\xff\xf1\x50", data)]  # of AAC packets
    assert len(heads) > 20
    for head in heads[5:25]:
        data[head] = 0
    (tmp_path / "damaged.ts").write_bytes(data)
    path = render(probe(tmp_path / "damaged.ts"), tmp_path / "overlay.mp4", strengths(5))
    assert [frame.index for frame in watch(path)] == list(video.indices)


@pytest.mark.parametrize("container", ["mp4", "mkv"])
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_an_error_that_says_so(container, each_ffmpeg, barcode_video):
    told = r"^final\.mp4: .*No space left on device.*\. Free space or choose another --out\.$"
    with pytest.raises(OutputError, match=told) as raised:
        render(
            probe(barcode_video("plain").path),
            Path("/dev/full"),
            strengths(4),
            container=container,
            display_path=Path("final.mp4"),
        )
    assert "/dev/full" not in str(raised.value)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root and Windows write there all the same")
def test_a_folder_that_may_not_be_written_is_an_error_that_says_what_to_do(each_ffmpeg, barcode_video, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match=r"Permission denied.*\. Choose another --out\.$"):
        render(probe(barcode_video("plain").path), tmp_path / "overlay.mp4", strengths(4))


def test_a_missing_folder_is_an_error_that_says_so(each_ffmpeg, barcode_video, tmp_path):
    with pytest.raises(OutputError, match=r"^final\.mp4: .*No such file or directory") as raised:
        render(
            probe(barcode_video("plain").path),
            tmp_path / "nowhere" / "overlay.mp4.partial",
            strengths(40),
            container="mp4",
            display_path=Path("final.mp4"),
        )
    assert "partial" not in str(raised.value)


def test_an_input_that_vanished_is_an_error(each_ffmpeg, encode_barcodes, tmp_path):
    source = tmp_path / "source.mp4"
    encode_barcodes(source, 30, "-c:v", "libx264")
    info = probe(source)
    source.unlink()
    with pytest.raises(OutputError, match="No such file or directory"):
        render(info, tmp_path / "overlay.mp4", strengths(1))


def test_an_encoder_that_stands_still_is_an_error(barcode_video, standing_ffmpeg, tmp_path, monkeypatch):
    info = probe(barcode_video("plain").path)
    standing_ffmpeg()
    monkeypatch.setattr("avsseg.media.render_graph.encoders", lambda: frozenset({"libx264"}))
    with pytest.raises(OutputError, match=r"no progress for 0\.2 s"):
        render(info, tmp_path / "overlay.mp4", strengths(40), stall_s=0.2)


def test_another_encoder_is_used_with_a_notice(barcode_video, tmp_path, monkeypatch):
    monkeypatch.setattr("avsseg.media.render_graph.encoders", lambda: frozenset({"mpeg4", "aac"}))
    path = tmp_path / "overlay.mp4"
    with VideoRenderer(probe(barcode_video("plain").path), path, **RED, rate=1.0) as renderer:
        renderer.write(strip(1.0))
    assert probe(path).frame_rate == 30
    assert renderer.warnings == ("this ffmpeg has no libx264; the overlay is encoded with mpeg4",)


def test_no_encoder_at_all_is_an_error(barcode_video, tmp_path, monkeypatch):
    monkeypatch.setattr("avsseg.media.render_graph.encoders", lambda: frozenset())
    with pytest.raises(EnvironmentFault, match=r"no encoder for a \.webm"):
        render(probe(barcode_video("plain").path), tmp_path / "overlay.webm", strengths(4))


@pytest.mark.parametrize("wrong", [{"container": "avi"}, {"opacity": 1.5}, {"rate": 0}, {"start_s": -1.0}])
def test_senseless_options_are_a_usage_error(wrong, barcode_video, tmp_path):
    with pytest.raises(UsageError):
        render(probe(barcode_video("plain").path), tmp_path / "overlay.mp4", [], **wrong)


def test_a_mask_of_another_shape_is_refused(barcode_video, tmp_path):
    renderer = VideoRenderer(probe(barcode_video("short").path), tmp_path / "overlay.mp4", **RED, rate=1.0)
    with pytest.raises(ValueError, match=r"\(2, 3\)"), renderer:
        renderer.write(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="closed"):
        renderer.write(strip(1.0))


@pytest.mark.skipif(os.name == "nt", reason="signal 0 is POSIX")
@pytest.mark.parametrize("end", ["exception", "dropped", "kill"])
def test_ffmpeg_ends_with_an_abandoned_renderer(end, barcode_video, tmp_path):
    renderer = VideoRenderer(probe(barcode_video("long").path), tmp_path / "overlay.mp4", **RED, rate=1.0)
    renderer.write(strip(1.0))
    pid = renderer._process.pid
    os.kill(pid, 0)
    if end == "exception":
        with pytest.raises(KeyError), renderer:
            raise KeyError
    elif end == "kill":
        renderer.kill()
        renderer.close()
    else:
        del renderer
        gc.collect()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("name", ["late_picture", "late_picture_ts", "transport_stream", "plain"])
def test_a_matte_keeps_the_times_of_its_video_and_masks(name, each_ffmpeg, barcode_video, tmp_path):
    video = barcode_video(name)
    given = strengths(int(video.end_s * 2) + 1)
    path = render(probe(video.path), tmp_path / "matte.mp4", given, rate=2.0, style="matte", colour=(255, 255, 255))
    times, brightness = grey_frames(path)
    assert times == pytest.approx(video.times, abs=0.001)
    assert brightness == pytest.approx([given[int(t * 2 + 1e-3)] for t in video.times], abs=0.1)
