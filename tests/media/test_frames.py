from __future__ import annotations

import dataclasses
import errno
import gc
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from avsseg.errors import EnvironmentFault, MediaError, UsageError
from avsseg.media.ffmpeg import find_ffmpeg
from avsseg.media.frames import mask_times, sample_frames, tone_map
from avsseg.media.picture_end import PictureEnd
from avsseg.media.probe import VideoInfo, probe

READABLE = [
    "plain",
    "short",
    "single",
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
    "intra_refresh",
    "resized",
    "no_duration",
    "sound_outlasts",
]


@pytest.mark.parametrize("name", READABLE)
def test_each_frame_is_the_one_on_screen_at_the_middle_of_its_interval(name, each_ffmpeg, barcode_video, read_barcode):
    video = barcode_video(name)
    for rate in (1.0, 3.0):
        with sample_frames(probe(video.path), rate=rate, size=64) as frames:
            indices = [read_barcode(frame) for frame in frames]
        assert indices == [video.on_screen((k + 0.5) / rate) for k in range(len(indices))]
        assert len(indices) == max(1, math.ceil(round(video.end_s * rate, 3)))
        assert frames.count == len(indices)
        assert frames.error_lines == 0


@pytest.fixture(scope="session")
def long_transport_stream(barcode_video, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("long") / "long.ts"
    command = [str(find_ffmpeg().path), "-v", "error", "-nostdin", "-i", str(barcode_video("long").path), "-an"]
    subprocess.run([*command, "-c", "copy", "-output_ts_offset", "7", str(path)], check=True)
    return path


@pytest.mark.parametrize(("start_s", "end_s"), [(0.0, 2.5), (3.2, 5.0), (17.3, 19.8), (23.0, None), (20.5, 90.0)])
def test_a_range_gives_the_frames_of_its_own_times(
    start_s, end_s, each_ffmpeg, barcode_video, long_transport_stream, read_barcode
):
    video = barcode_video("long")
    for path in (video.path, long_transport_stream):
        with sample_frames(probe(path), rate=2, size=64, start_s=start_s, end_s=end_s) as frames:
            indices = [read_barcode(frame) for frame in frames]
        assert indices == [video.on_screen(start_s + (k + 0.5) / 2) for k in range(len(indices))]
        assert len(indices) == math.ceil(round((min(end_s or 25, 25) - start_s) * 2, 3))


def test_a_slow_rate_has_one_frame_for_each_started_interval(barcode_video, read_barcode):
    video = barcode_video("plain")
    with sample_frames(probe(video.path), rate=0.5, size=64) as frames:
        assert [read_barcode(frame) for frame in frames] == [30, 90]


@pytest.mark.parametrize("name", READABLE)
def test_the_end_of_the_picture_is_that_of_its_last_frame(name, each_ffmpeg, barcode_video):
    video = barcode_video(name)
    with sample_frames(probe(video.path), size=64) as frames:
        assert frames.picture_end is None
        list(frames)
    assert frames.picture_end == PictureEnd(pytest.approx(video.end_s, abs=0.002), len(video.times))


@pytest.mark.parametrize(
    ("name", "start_s", "end_s", "end"),
    [
        ("long", 12.3, None, PictureEnd(25.0, None)),
        ("long", 12.3, 18.0, None),
        ("long", 0.0, 25.0, PictureEnd(25.0, 750)),
        ("sound_outlasts", 0.0, 3.4, PictureEnd(2.0, 60)),
        ("sound_outlasts", 0.0, 1.5, None),  # both masks that there are, of 3.4 s of sound
    ],
)
def test_the_end_of_the_picture_is_known_where_it_was_reached(name, start_s, end_s, end, each_ffmpeg, barcode_video):
    with sample_frames(probe(barcode_video(name).path), size=64, start_s=start_s, end_s=end_s) as frames:
        list(frames)
    assert frames.picture_end == end


def test_too_many_open_files_are_an_environment_fault(barcode_video, monkeypatch):
    info = probe(barcode_video("short").path)

    def full() -> tuple[int, int]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("os.pipe", full)
    with pytest.raises(EnvironmentFault, match=r"Too many open files\)\. Use fewer --jobs"):
        sample_frames(info)


@pytest.mark.skipif(os.name == "nt", reason="open files keep their names")
@pytest.mark.parametrize("read", ["", "next(frames); "])
def test_a_sampler_that_is_killed_leaves_no_file_behind(read, barcode_video, tmp_path):
    program = (
        "import os, sys; from avsseg.media.frames import sample_frames; from avsseg.media.probe import probe; "
        f"frames = sample_frames(probe(sys.argv[1])); {read}os.kill(os.getpid(), 9)"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", program, barcode_video("plain").path]
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


def test_where_pipes_have_no_numbers_the_listing_is_a_file(barcode_video, tmp_path, monkeypatch):
    video = barcode_video("plain")
    info = probe(video.path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with monkeypatch.context() as on_windows:
        on_windows.setattr("avsseg.media.picture_end.WITHOUT_NUMBERS", True)
        frames = sample_frames(info, size=64)
    with frames:
        assert len(list(tmp_path.glob("avsseg-*"))) == 1
        list(frames)
    assert frames.picture_end == PictureEnd(pytest.approx(video.end_s, abs=0.002), len(video.times))
    assert list(tmp_path.iterdir()) == []


def test_what_happens_beyond_the_end_asked_for_is_not_told(barcode_video, run, tmp_path):
    path = tmp_path / "damaged.mkv"
    run("-i", str(barcode_video("long").path), "-c", "copy", str(path))
    info = probe(path)
    data = bytearray(path.read_bytes())
    first = len(data) * 7 // 25  # in the seventh second of 25
    data[first:] = bytes(len(data) - first)
    path.write_bytes(data)
    for end_s, damaged in ((None, True), (30.0, True), (5.0, False)):
        with sample_frames(info, rate=0.2, size=64, end_s=end_s) as frames:
            next(frames)
            time.sleep(0.5)  # a model takes longer, and ffmpeg goes on meanwhile
            list(frames)
        assert bool(frames.error_lines or frames.failure) == damaged
        assert (frames.picture_end is None) == (end_s == 5.0)


@pytest.mark.skipif(os.name == "nt", reason="a script stands in for ffmpeg")
def test_a_stall_beyond_the_end_asked_for_loses_nothing(barcode_video, tmp_path, monkeypatch):
    info = probe(barcode_video("plain").path)
    stand_in = tmp_path / "ffmpeg"
    stand_in.write_text(
        f'#!/bin/sh\n[ "$1" = -version ] && exec "{find_ffmpeg().path}" "$@"\n'
        f"head -c {3 * 64 * 64 * 2} /dev/zero\nexec sleep 60\n"
    )
    stand_in.chmod(0o755)
    monkeypatch.setenv("AVSSEG_FFMPEG", str(stand_in))
    with sample_frames(info, size=64, end_s=2.0, stall_s=0.5) as frames:
        assert len(list(frames)) == 2
    assert (frames.picture_end, frames.failure) == (None, "")
    with sample_frames(info, size=64, end_s=3.0, stall_s=0.5) as frames, pytest.raises(MediaError, match="stood still"):
        list(frames)


def test_frames_are_square_rgb_of_the_size_asked_for(make_video: Callable[..., Path], tmp_path):
    with sample_frames(probe(make_video(tmp_path / "wide.mp4", size="96x40", seconds=1)), size=32) as frames:
        frame = next(frames)
    assert (frame.shape, frame.dtype) == ((32, 32, 3), np.uint8)


def info_of(duration_s: float | None) -> VideoInfo:
    known = {"sample_aspect_ratio": 1, "warnings": (), "audio_codecs": (), "frame_rate": 30.0, "container": "mp4"}
    colours = dict.fromkeys(("color_range", "color_space", "color_primaries", "color_transfer"))
    flags = {"has_audio": False, "is_hdr": False}
    return VideoInfo(path=Path("v.mp4"), width=8, height=8, duration_s=duration_s, **known, **colours, **flags)


@pytest.mark.parametrize(
    ("duration_s", "rate", "start_s", "end_s", "expected"),
    [
        (10.0, 1, 0, None, 10),
        (10.01, 1, 0, None, 11),
        (0.1, 1, 0, None, 1),
        (10.0, 0.3, 0, None, 3),
        (0.3, 10, 0, None, 3),  # 0.3 * 10 is 3.0000000000000004 in floating point
        (10.0, 2, 3, 7.5, 9),
        (10.0, 2, 3, 99, 14),
        (None, 2, 3, 7.5, 9),
        (None, 1, 0, None, None),
    ],
)
def test_mask_times_rounds_up(duration_s, rate, start_s, end_s, expected):
    assert mask_times(info_of(duration_s), rate=rate, start_s=start_s, end_s=end_s) == expected


@pytest.mark.parametrize(
    "wrong",
    [{"rate": 0}, {"rate": -1}, {"rate": math.nan}, {"start_s": -1}, {"start_s": math.inf}, {"start_s": 2, "end_s": 2}],
)
def test_a_senseless_rate_or_range_is_a_usage_error(wrong):
    with pytest.raises(UsageError):
        sample_frames(info_of(10.0), **wrong)


def test_a_range_after_the_end_names_the_file_and_its_length():
    with pytest.raises(MediaError, match=r"v\.mp4: is 10 s long, so nothing is left from 12 s on"):
        sample_frames(info_of(10.0), start_s=12)


def test_a_range_after_the_end_of_unknown_length_is_an_error_too(barcode_video):
    info = dataclasses.replace(probe(barcode_video("no_duration").path), duration_s=None)
    with sample_frames(info, start_s=60) as frames, pytest.raises(MediaError, match="no picture could be decoded"):
        next(frames)


def test_a_decoder_that_stands_still_is_an_error(barcode_video, standing_ffmpeg):
    info = probe(barcode_video("plain").path)
    standing_ffmpeg()
    with sample_frames(info, stall_s=0.2) as frames, pytest.raises(MediaError, match=r"stood still for 0\.2 s"):
        next(frames)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.skipif(os.name == "nt", reason="signal 0 is POSIX")
@pytest.mark.parametrize("end", ["close", "exception", "dropped"])
def test_ffmpeg_ends_with_its_sampler(end, barcode_video):
    frames = sample_frames(probe(barcode_video("long").path))
    next(frames)
    pid = frames._process.pid
    assert is_running(pid)
    if end == "close":
        frames.close()
        with pytest.raises(StopIteration):
            next(frames)
    elif end == "exception":
        with pytest.raises(KeyError), frames:
            raise KeyError
    else:
        del frames
        gc.collect()
    assert not is_running(pid)


@pytest.mark.parametrize(
    "tags",
    [
        "color_primaries=bt2020:color_trc=smpte2084:colorspace=bt2020nc:range=tv",
        "color_trc=smpte2084",
        "color_trc=smpte2084:color_primaries=bt2020",
        "color_trc=arib-std-b67:colorspace=bt709",
    ],
)
def test_hdr_is_mapped_to_a_standard_range_where_ffmpeg_can(tags, encode_barcodes, tmp_path, each_ffmpeg, read_barcode):
    path = tmp_path / "hdr.mkv"
    encode_barcodes(path, 30, "-vf", f"format=yuv420p10le,setparams={tags}", "-c:v", "ffv1")
    info = probe(path)
    assert info.is_hdr
    with sample_frames(info, size=64) as frames:
        mapped = next(frames)
    with sample_frames(dataclasses.replace(info, is_hdr=False), size=64) as frames:
        washed_out = next(frames)
    assert read_barcode(mapped) == read_barcode(washed_out) == 15
    # HLG is made to look right on ordinary screens, too
    assert abs(mapped.astype(int) - washed_out).max() > (20 if "2084" in tags else 2)


def test_hdr_of_constant_luminance_is_read(encode_barcodes, tmp_path, read_barcode):
    path = tmp_path / "constant.mkv"
    tags = "setparams=color_primaries=bt2020:color_trc=smpte2084:colorspace=bt2020c"
    encode_barcodes(path, 30, "-vf", f"format=yuv420p10le,{tags}", "-c:v", "ffv1")
    with sample_frames(probe(path), size=64) as frames:
        assert read_barcode(next(frames)) == 15


def test_hdr_passes_unchanged_where_ffmpeg_cannot_map_it(monkeypatch):
    monkeypatch.setattr("avsseg.media.probe.filters", lambda: frozenset())
    picture = object()
    assert tone_map(dataclasses.replace(info_of(1.0), is_hdr=True), picture) is picture
