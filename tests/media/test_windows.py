from __future__ import annotations

import gc
import math
import os
import signal
import struct
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from surgery import make_box, replace_box

from avsseg.errors import MediaError, UsageError
from avsseg.media.audio import example_start_s, log_mel_examples, read_audio
from avsseg.media.ffmpeg import find_ffmpeg
from avsseg.media.probe import probe
from avsseg.media.windows import ClipWindow, clip_windows


def windows_of(path: Path, **options) -> list[ClipWindow]:
    with clip_windows(probe(path), size=64, **options) as windows:
        return list(windows)


@pytest.mark.parametrize(("window", "overlap"), [(4, 0), (4, 1), (4, 3), (5, 2), (7, 0), (50, 0), (1, 0)])
def test_windows_cover_every_frame_once_but_for_the_overlap(window, overlap, barcode_video, read_barcode):
    video = barcode_video("plain")
    made = windows_of(video.path, rate=3, window=window, overlap=overlap)  # 10 frames and a part: 3.33 s * 3
    assert [w.first_index for w in made] == [n * (window - overlap) for n in range(len(made))]
    assert all(len(w.frames) == window for w in made[:-1])
    assert overlap < len(made[-1].frames) <= window or len(made) == 1
    seen = {w.first_index + i: read_barcode(frame) for w in made for i, frame in enumerate(w.frames)}
    assert seen == {k: video.on_screen((k + 0.5) / 3) for k in range(10)}


def test_a_window_has_frames_log_mel_and_times(barcode_video):
    (window,) = windows_of(barcode_video("plain").path, rate=2, start_s=1.0)
    assert (window.frames.shape, window.frames.dtype) == ((5, 64, 64, 3), np.uint8)
    assert (window.log_mel.shape, window.log_mel.dtype) == ((5, 1, 96, 64), torch.float32)
    assert window.timestamps_s == (1.25, 1.75, 2.25, 2.75, 3.25)


@pytest.mark.parametrize(
    ("rate", "start_s", "end_s"), [(1.0, 0.0, None), (4.0, 0.0, None), (0.4, 0.0, None), (2.0, 12.3, 18.0)]
)
def test_the_sound_of_a_mask_is_cut_at_its_exact_time(rate, start_s, end_s, encode_barcodes, tmp_path):
    path = tmp_path / "sweep.mkv"
    sweep = ("-f", "lavfi", "-i", "aevalsrc='0.5*sin(2*PI*(200+50*t)*t)':d=20:s=16000")
    encode_barcodes(path, 600, "-c:v", "libx264", "-preset", "ultrafast", "-c:a", "pcm_s16le", inputs=sweep)
    with read_audio(probe(path)) as blocks:
        waveform = torch.from_numpy(np.concatenate(list(blocks)))
    made = windows_of(path, rate=rate, window=4, overlap=1, start_s=start_s, end_s=end_s)
    for window in made:
        indices = range(window.first_index, window.first_index + len(window.frames))
        starts = [example_start_s(k, rate=rate, start_s=start_s) for k in indices]
        torch.testing.assert_close(window.log_mel, log_mel_examples(waveform, starts), rtol=0, atol=1e-3)


def test_a_silent_video_has_silent_examples(barcode_video):
    (window,) = windows_of(barcode_video("short").path)
    assert torch.equal(window.log_mel, torch.full((1, 1, 96, 64), 0.01).log())


def test_sound_that_ends_early_is_followed_by_silence(encode_barcodes, tmp_path):
    path = tmp_path / "early.mkv"
    encode_barcodes(path, 120, "-c:v", "ffv1", "-c:a", "flac", inputs=("-f", "lavfi", "-i", "sine=duration=1.5"))
    with clip_windows(probe(path), size=64) as windows:
        (window,) = windows
    loud = (window.log_mel > math.log(0.02)).any(dim=-1).sum(dim=-1).flatten()  # frames with sound, of 96
    assert loud.tolist() == [96, pytest.approx(50, abs=3), 0, 0]
    assert windows.warnings == ()


def test_a_whole_video_has_no_warnings(each_ffmpeg, barcode_video):
    for name in (
        "plain",
        "sound_outlasts",
        "transport_stream",
        "edit_list",
        "no_duration",
        "late_picture_ts",
        "single",
    ):
        with clip_windows(probe(barcode_video(name).path), size=64) as windows:
            count = sum(len(window.frames) for window in windows)
        assert windows.count == count
        assert windows.expected is None or windows.expected >= count
        assert (windows.warnings, windows.missing_s, windows.damaged) == ((), 0.0, False), name


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "flv"])
@pytest.mark.parametrize("sound", [True, False])
def test_a_truncated_file_gives_what_is_there_and_says_what_is_missing(
    suffix, sound, each_ffmpeg, encode_barcodes, tmp_path, read_barcode
):
    path = tmp_path / f"whole.{suffix}"
    tone = {"inputs": ("-f", "lavfi", "-i", "sine=duration=8")} if sound else {}
    x264 = ("-c:v", "libx264", "-preset", "ultrafast", "-g", "15", "-c:a", "aac")
    encode_barcodes(path, 240, *x264, *(("-movflags", "+faststart") if suffix == "mp4" else ()), **tone)
    data = path.read_bytes()
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(data[: len(data) * 6 // 10])
    info = probe(cut)
    assert info.duration_s == pytest.approx(8, abs=0.1)
    with clip_windows(info, size=64) as windows:
        frames = [frame for window in windows for frame in window.frames]
    assert 3 <= len(frames) <= 6
    # In MKV and FLV the AAC priming counts, and moves the picture by less than a frame.
    assert [read_barcode(frame) for frame in frames[:3]] in ([15, 45, 75], [14, 44, 74])
    assert windows.missing_s == pytest.approx(8 - len(frames), abs=0.1)
    assert windows.warnings[0].startswith(f"truncated: at least {windows.missing_s:.1f} s of 8.0 s are missing")


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
@pytest.mark.parametrize("stream", ["picture", "sound", "aligned sound"])
def test_an_ffmpeg_killed_on_the_way_is_an_error(number, stream, each_ffmpeg, barcode_video):
    # At 25 masks a second more than the pipes hold is still to come after the first window.
    with clip_windows(probe(barcode_video("long").path), size=224, rate=25, window=5) as windows:
        next(windows)
        decoder = windows._decoder
        processes = dict(zip(["sound", "aligned sound"], decoder._sound._processes, strict=True))
        os.kill({"picture": decoder._frames._process, **processes}[stream].pid, number)
        how = "was stopped from outside" if number == signal.SIGTERM else f"was killed by signal {int(number)}"
        what = f"ffmpeg {how} while it decoded the {stream.split()[-1]}, after"
        with pytest.raises(MediaError, match=what) as caught:
            list(windows)
    hint = "AVSSEG_FFMPEG" if number == signal.SIGSEGV else "run the same command again"
    assert hint in str(caught.value)


def announce(path: Path, duration_s: float) -> Path:
    """Write `duration_s` into the header of an MKV file."""
    data = bytearray(path.read_bytes())
    at = data.index(b"\x44\x89\x88") + 3  # the element Duration, 8 bytes long
    data[at : at + 8] = struct.pack(">d", duration_s * 1000)
    path.write_bytes(data)
    return path


def test_the_picture_decides_the_end_and_not_a_header_that_says_less(each_ffmpeg, encode_barcodes, tmp_path):
    path = tmp_path / "lie.mkv"
    tone = ("-f", "lavfi", "-i", "sine=duration=6")
    encode_barcodes(path, 180, "-c:v", "libx264", "-preset", "ultrafast", "-c:a", "pcm_s16le", inputs=tone)
    info = probe(announce(path, 2.0))
    assert info.duration_s == 2.0
    with clip_windows(info, size=64) as windows:
        assert windows.expected == 2
        assert sum(len(window.frames) for window in windows) == 6
    assert windows.warnings == ()


@pytest.mark.parametrize("name", ["transport_stream", "no_duration"])
def test_an_end_past_that_of_a_video_of_unknown_length_is_no_damage(name, barcode_video):
    with clip_windows(probe(barcode_video(name).path), size=64, end_s=60.0) as windows:
        assert list(windows)
    assert (windows.damaged, windows.warnings) == (False, ())


def test_joined_transport_streams_are_whole_and_undamaged(each_ffmpeg, encode_barcodes, tmp_path):
    part = tmp_path / "part.ts"
    tone = ("-f", "lavfi", "-i", "sine=duration=3")
    encode_barcodes(part, 90, "-c:v", "libx264", "-preset", "ultrafast", "-c:a", "aac", inputs=tone)
    joined = tmp_path / "joined.ts"
    joined.write_bytes(part.read_bytes() * 2)
    with clip_windows(probe(joined), size=64) as windows:
        assert sum(len(window.frames) for window in windows) in (6, 7)
    assert (windows.damaged, windows.warnings) == (False, ())


def test_a_last_frame_of_absurd_length_gives_a_minute_of_masks_at_most(each_ffmpeg, encode_barcodes, tmp_path):
    path = tmp_path / "absurd.mkv"
    encode_barcodes(path, 2, "-c:v", "ffv1", rate=0.001)
    with clip_windows(probe(announce(path, 3.0)), size=64) as windows:
        assert sum(len(window.frames) for window in windows) == 3 + 60 + 1
    assert windows.damaged
    assert windows.warnings == ("the picture stands still from 64.0 s on, past its likely end; cut there",)


def test_a_picture_that_starts_after_days_in_a_small_file_is_not_awaited(each_ffmpeg, encode_barcodes, tmp_path):
    path = tmp_path / "late.mp4"
    tone = ("-f", "lavfi", "-i", "sine=duration=1")
    encode_barcodes(path, 30, "-c:v", "libx264", "-preset", "ultrafast", "-c:a", "aac", inputs=tone)
    # two entries of the edit list: nothing for as long as can be, then the picture
    edits = struct.pack(">IIIiIIiI", 0, 2, 2**31 - 1, -1, 0x10000, 333, 0, 0x10000)
    path.write_bytes(replace_box(path.read_bytes(), b"elst", make_box(b"elst", edits)))
    info = probe(path)
    assert info.duration_s is not None
    # ffmpeg 5.1 tells the length of the sound alone
    believed = 60 if info.duration_s > 10 * 3600 else 1
    with clip_windows(info, rate=0.1, size=64) as windows:
        assert sum(len(window.frames) for window in windows) == believed + 6 + 1  # and a standstill
    assert windows.damaged
    still = f"the picture stands still from {believed + 7}0.0 s on, past its likely end; cut there"
    assert windows.warnings == (still,)


@pytest.mark.parametrize("longer", ["subtitle", "second_sound"])
def test_a_longer_track_of_another_kind_is_no_truncation(longer, each_ffmpeg, encode_barcodes, run, tmp_path):
    base = tmp_path / "base.mkv"
    x264 = ("-c:v", "libx264", "-preset", "ultrafast")
    encode_barcodes(base, 60, *x264, "-c:a", "aac", inputs=("-f", "lavfi", "-i", "sine=duration=2"))
    path = tmp_path / "longer.mkv"
    if longer == "subtitle":
        (tmp_path / "s.srt").write_text("1\n00:00:01,000 --> 00:00:09,000\nwords\n")
        more = ("-i", tmp_path / "s.srt")
    else:
        more = ("-f", "lavfi", "-i", "sine=duration=9")
    run(
        "-i",
        base,
        *more,
        "-map",
        "0",
        "-map",
        "1",
        "-c",
        "copy",
        *(("-c:a:1", "aac") if "second" in longer else ()),
        path,
    )
    info = probe(path)
    assert info.duration_s == pytest.approx(9, abs=0.1)
    with clip_windows(info, size=64) as windows:
        assert sum(len(window.frames) for window in windows) in (2, 3)
    assert (windows.missing_s, windows.warnings) == (0.0, ())


def damage(path: Path, into: Path, flips: int, seed: int = 0) -> Path:
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(seed)
    for position in rng.integers(len(data) // 5, len(data) * 4 // 5, flips):
        data[position] ^= int(rng.integers(1, 256))
    into.write_bytes(data)
    return into


@pytest.mark.parametrize("name", ["long", "intra_refresh", "transport_stream", "webm"])
def test_a_damaged_file_never_hangs_and_is_reported(name, each_ffmpeg, barcode_video, tmp_path):
    video = barcode_video(name)
    path = damage(video.path, tmp_path / f"damaged{video.path.suffix}", flips=60)
    with clip_windows(probe(path), size=64, stall_s=10) as windows:
        count = sum(len(window.frames) for window in windows)
    assert 1 <= count <= math.ceil(video.end_s) + 1
    assert windows.damaged
    assert any("damaged" in text for text in windows.warnings)


def test_a_track_that_cannot_be_decoded_is_silence_with_a_warning(each_ffmpeg, encode_barcodes, tmp_path):
    path = tmp_path / "noise.mkv"
    tone = ("-f", "lavfi", "-i", "sine=duration=1")
    encode_barcodes(path, 30, "-c:v", "ffv1", "-c:a", "ac3", inputs=tone)
    data = bytearray(path.read_bytes())
    while (sync := data.find(b"\x0b\x77")) >= 0:  # every AC-3 frame begins with it
        data[sync : sync + 2] = b"\0\0"
    path.write_bytes(data)
    with clip_windows(probe(path), size=64) as windows:
        (window,) = windows
    assert window.log_mel.max() == pytest.approx(math.log(0.01))
    assert windows.warnings[-1] == "the audio track cannot be decoded; segmented as silent"


def test_ending_early_stops_the_decoding(barcode_video):
    windows = clip_windows(probe(barcode_video("long").path), size=64, rate=5, window=5)
    next(windows)
    windows.close()
    windows.close()
    assert list(windows) == []


def test_dropped_windows_stop_their_thread(barcode_video):
    before = threading.active_count()
    windows = clip_windows(probe(barcode_video("long").path), size=64, rate=5, window=5)
    next(windows)
    del windows
    gc.collect()
    assert threading.active_count() == before


def test_closing_wakes_a_consumer_in_another_thread(barcode_video, standing_ffmpeg):
    info = probe(barcode_video("plain").path)
    standing_ffmpeg()
    windows = clip_windows(info, size=64)
    rest: list[list[ClipWindow]] = []
    consumer = threading.Thread(target=lambda: rest.append(list(windows)))
    consumer.start()
    time.sleep(0.1)
    windows.close()
    consumer.join(10)
    assert rest == [[]]


def test_decoding_runs_only_a_little_ahead(barcode_video):
    with clip_windows(probe(barcode_video("long").path), size=64, rate=10, window=5) as windows:
        next(windows)
        time.sleep(0.5)
        ahead = windows._decoder._frames.count
        assert ahead <= (1 + 1 + 1) * 5 + 1  # given, queued, waiting for the queue, and the frame after it
        assert sum(len(window.frames) for window in windows) == 245


@pytest.fixture
def damaged_sound(run, tmp_path) -> Path:
    """20 s whose sound, most of the file and as long as the picture, is damaged from 8 to 10 s on."""
    path = tmp_path / "noise.mkv"
    picture = ("-f", "lavfi", "-i", "color=red:rate=10:duration=20:size=64x64")
    run(*picture, "-f", "lavfi", "-i", "anoisesrc=duration=20:seed=1", "-c:v", "libx264", "-c:a", "flac", path)
    data = bytearray(path.read_bytes())
    for at in range(len(data) * 8 // 20, len(data) * 10 // 20, 997):
        data[at] ^= 0xFF
    path.write_bytes(data)
    ffmpeg = [find_ffmpeg().path, "-v", "error", "-i", path, "-map", "0:a", "-f", "null", "-"]
    if not subprocess.run(ffmpeg, capture_output=True).stderr:
        pytest.skip("this ffmpeg says nothing of damaged FLAC (5.1 does not)")
    return path


@pytest.mark.parametrize(("end_s", "told"), [(None, True), (15.0, True), (7.0, False)])
def test_damaged_sound_that_lasts_as_long_as_the_picture_is_told(end_s, told, damaged_sound):
    with clip_windows(probe(damaged_sound), size=64, end_s=end_s) as windows:
        for _ in windows:
            time.sleep(0.1)  # a model takes longer, and ffmpeg goes on meanwhile
    assert windows.damaged == told
    assert ("damaged sound" in " ".join(windows.warnings)) == told


def test_a_picture_that_ends_before_the_sound_is_whole_at_a_low_rate(run, tmp_path):
    path = tmp_path / "outlasted.mkv"
    picture = ("-f", "lavfi", "-i", "color=red:rate=10:duration=8:size=64x64")
    run(*picture, "-f", "lavfi", "-i", "sine=duration=20", "-c:v", "libx264", "-c:a", "flac", path)
    with clip_windows(probe(path), size=64, rate=0.1, end_s=20.0) as windows:
        assert [len(window.frames) for window in windows] == [1]
    assert not windows.damaged
    assert windows.missing_s == 0
    assert not windows.warnings


def test_errors_of_the_decoder_reach_the_consumer(barcode_video, standing_ffmpeg):
    info = probe(barcode_video("plain").path)
    standing_ffmpeg()
    with clip_windows(info, size=64, stall_s=0.2) as windows, pytest.raises(MediaError, match="stood still"):
        next(windows)
    assert list(windows) == []


@pytest.mark.parametrize("wrong", [{"window": 0}, {"window": 4, "overlap": 4}, {"overlap": -1}, {"rate": 0}])
def test_senseless_windows_are_a_usage_error(wrong, barcode_video):
    with pytest.raises(UsageError):
        clip_windows(probe(barcode_video("plain").path), **wrong)
