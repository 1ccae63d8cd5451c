from __future__ import annotations

import dataclasses
import gc
import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from avsseg.errors import OutputError, UsageError
from avsseg.media.probe import probe


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
    name, each_ffmpeg, barcode_video, watch, tmp_path, strengths, render
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


@pytest.mark.parametrize("rate", [0.5, 1.0, 2.0])
def test_linear_runs_between_the_middles_of_the_intervals(
    rate, each_ffmpeg, barcode_video, watch, tmp_path, strengths, render
):
    given = strengths(int(np.ceil(100 / 30 * rate)))
    middles = (np.arange(len(given)) + 0.5) / rate
    info = probe(barcode_video("plain").path)
    shown = watch(render(info, tmp_path / "overlay.mp4", given, rate=rate, interpolate="linear"))
    # Ten masks a second are made, each held for three frames and exact in its middle one.
    expected = [np.interp((int(frame.time_s * 10 + 1e-3) + 0.5) / 10, middles, given) for frame in shown]
    assert [frame.strength for frame in shown] == pytest.approx(expected, abs=0.1)


def test_linear_at_a_high_rate_still_runs_between_the_middles(
    each_ffmpeg, barcode_video, watch, tmp_path, strengths, render
):
    given = strengths(50)
    info = probe(barcode_video("plain").path)
    shown = watch(render(info, tmp_path / "overlay.mp4", given, rate=15.0, interpolate="linear"))
    middles = (np.arange(50) + 0.5) / 15
    expected = [np.interp((i + 0.5) / 30, middles, given) for i in range(100)]
    assert [frame.strength for frame in shown] == pytest.approx(expected, abs=0.12)


def test_the_end_of_the_masks_is_the_end_of_the_overlay_where_python_is_killed(
    each_ffmpeg, barcode_video, watch, tmp_path, strip, red_renderer
):
    path = tmp_path / "overlay.mp4"
    renderer = red_renderer(probe(barcode_video("long").path), path)
    for strength in (1.0, 0.0):
        renderer.write(strip(strength))
    renderer._process.close_stdin()  # all that ffmpeg sees of it
    assert renderer._process.wait() == 0
    renderer.kill()
    assert 30 <= len(watch(path)) <= 61  # of 750


def test_a_last_frame_of_absurd_length_ends_after_a_minute_or_so(
    each_ffmpeg, encode_barcodes, tmp_path, strip, strengths, red_renderer
):
    source = tmp_path / "absurd.mp4"
    encode_barcodes(source, 3, "-c:v", "libx264", rate=0.0005)
    info = dataclasses.replace(probe(source), duration_s=4.0)
    path = tmp_path / "overlay.mp4"
    with red_renderer(info, path, rate=2.0) as renderer:
        for strength in strengths(8):
            renderer.write(strip(strength))
    assert renderer._sent <= (1.5 * 4 + 60) * 2
    assert path.stat().st_size > 0


def test_a_header_that_announces_too_little_does_not_cut_the_overlay(
    each_ffmpeg, encode_barcodes, tmp_path, strengths, render
):
    source = tmp_path / "slow.mp4"
    encode_barcodes(source, 10, "-c:v", "libx264", rate=0.1)
    info = dataclasses.replace(probe(source), duration_s=1.0)
    assert probe(render(info, tmp_path / "overlay.mp4", strengths(100))).duration_s == pytest.approx(100, abs=11)


def test_a_range_between_two_frames_is_an_error(each_ffmpeg, encode_barcodes, tmp_path, strengths, render):
    source = tmp_path / "slides.mkv"
    encode_barcodes(source, 3, "-c:v", "ffv1", rate=0.2)
    with pytest.raises(OutputError, match=r"overlay\.mp4: no frame of the picture begins .* an earlier --start"):
        render(probe(source), tmp_path / "overlay.mp4", strengths(2), start_s=6.0, end_s=8.0)


@pytest.mark.parametrize(("start_s", "end_s"), [(0.0, 1.5), (1.2, 2.9), (17.5, 20.0), (23.1, None)])
def test_a_range_begins_at_its_own_start(
    start_s, end_s, each_ffmpeg, barcode_video, watch, tmp_path, strengths, render
):
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
def test_masks_and_picture_may_differ_in_length(count, each_ffmpeg, barcode_video, watch, tmp_path, render):
    given = [1.0, 0.5, *[0.0] * 40][:count]
    shown = watch(render(probe(barcode_video("plain").path), tmp_path / "overlay.mp4", given))
    lasting = [*given, *[given[-1] if given else 0.0] * 4]
    assert [frame.index for frame in shown] == list(range(100))
    assert [frame.strength for frame in shown] == pytest.approx([lasting[i // 30] for i in range(100)], abs=0.1)


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
@pytest.mark.parametrize(
    ("number", "how"), [(signal.SIGKILL, "was killed by signal 9"), (signal.SIGTERM, "was stopped from outside")]
)
def test_an_ffmpeg_killed_from_outside_is_an_error_with_a_remedy(
    number, how, barcode_video, tmp_path, strip, red_renderer
):
    renderer = red_renderer(probe(barcode_video("long").path), tmp_path / "overlay.mp4")
    renderer.write(strip(1.0))
    deadline = time.monotonic() + 60
    while not (tmp_path / "overlay.mp4").exists() and time.monotonic() < deadline:
        time.sleep(0.02)  # it takes care of SIGTERM only once it has begun
    os.kill(renderer._process.pid, number)
    with pytest.raises(OutputError, match=rf"overlay\.mp4: ffmpeg {how} while it wrote the overlay\. .* run the same"):
        renderer.close()


def test_masks_may_come_slower_than_the_watchdog_waits(
    each_ffmpeg, barcode_video, watch, tmp_path, strip, strengths, red_renderer
):
    with red_renderer(probe(barcode_video("plain").path), tmp_path / "overlay.mp4", stall_s=0.4) as renderer:
        for strength in strengths(4):
            time.sleep(0.5)
            renderer.write(strip(strength))
    assert len(watch(tmp_path / "overlay.mp4")) == 100


def test_a_long_video_neither_blocks_nor_loses_masks(each_ffmpeg, barcode_video, watch, tmp_path, strengths, render):
    given = strengths(250)
    shown = watch(render(probe(barcode_video("long").path), tmp_path / "overlay.mp4", given, rate=10.0))
    assert [frame.strength for frame in shown] == pytest.approx([given[i // 3] for i in range(750)], abs=0.12)


def test_opacity_scales_the_masks(barcode_video, watch, tmp_path, render):
    shown = watch(render(probe(barcode_video("short").path), tmp_path / "overlay.mp4", [1.0], opacity=0.4))
    assert [frame.strength for frame in shown] == pytest.approx([0.4] * 12, abs=0.06)


@pytest.mark.parametrize("dtype", [np.uint8, bool, np.float64, np.float16])
def test_masks_of_any_number_type(dtype, barcode_video, watch, tmp_path, strip, red_renderer):
    with red_renderer(probe(barcode_video("short").path), tmp_path / "overlay.mp4") as renderer:
        renderer.write(strip(1.0).astype(dtype))
    assert watch(tmp_path / "overlay.mp4")[5].strength == pytest.approx(1.0, abs=0.06)


def test_a_damaged_video_is_rendered_as_far_as_it_goes(each_ffmpeg, barcode_video, tmp_path, strengths, render):
    data = bytearray(barcode_video("long").path.read_bytes())
    for position in np.random.default_rng(0).integers(len(data) // 5, len(data) * 4 // 5, 60):
        data[position] ^= 0x55
    (tmp_path / "damaged.mp4").write_bytes(data)
    path = render(probe(tmp_path / "damaged.mp4"), tmp_path / "overlay.mp4", strengths(25), stall_s=10)
    assert probe(path).duration_s == pytest.approx(25, abs=1)


def test_damaged_sound_does_not_end_the_picture(each_ffmpeg, barcode_video, watch, tmp_path, strengths, render):
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
def test_a_full_disk_is_an_error_that_says_so(container, each_ffmpeg, barcode_video, strengths, render):
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
def test_a_folder_that_may_not_be_written_is_an_error_that_says_what_to_do(
    each_ffmpeg, barcode_video, tmp_path, strengths, render
):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match=r"Permission denied.*\. Choose another --out\.$"):
        render(probe(barcode_video("plain").path), tmp_path / "overlay.mp4", strengths(4))


def test_a_missing_folder_is_an_error_that_says_so(each_ffmpeg, barcode_video, tmp_path, strengths, render):
    with pytest.raises(OutputError, match=r"^final\.mp4: .*No such file or directory") as raised:
        render(
            probe(barcode_video("plain").path),
            tmp_path / "nowhere" / "overlay.mp4.partial",
            strengths(40),
            container="mp4",
            display_path=Path("final.mp4"),
        )
    assert "partial" not in str(raised.value)


def test_an_input_that_vanished_is_an_error(each_ffmpeg, encode_barcodes, tmp_path, strengths, render):
    source = tmp_path / "source.mp4"
    encode_barcodes(source, 30, "-c:v", "libx264")
    info = probe(source)
    source.unlink()
    with pytest.raises(OutputError, match="No such file or directory"):
        render(info, tmp_path / "overlay.mp4", strengths(1))


def test_an_encoder_that_stands_still_is_an_error(
    barcode_video, standing_ffmpeg, tmp_path, monkeypatch, strengths, render
):
    info = probe(barcode_video("plain").path)
    standing_ffmpeg()
    monkeypatch.setattr("avsseg.media.render_graph.encoders", lambda: frozenset({"libx264"}))
    with pytest.raises(OutputError, match=r"no progress for 0\.2 s"):
        render(info, tmp_path / "overlay.mp4", strengths(40), stall_s=0.2)


@pytest.mark.parametrize("wrong", [{"container": "avi"}, {"opacity": 1.5}, {"rate": 0}, {"start_s": -1.0}])
def test_senseless_options_are_a_usage_error(wrong, barcode_video, tmp_path, render):
    with pytest.raises(UsageError):
        render(probe(barcode_video("plain").path), tmp_path / "overlay.mp4", [], **wrong)


def test_a_mask_of_another_shape_is_refused(barcode_video, tmp_path, strip, red_renderer):
    renderer = red_renderer(probe(barcode_video("short").path), tmp_path / "overlay.mp4")
    with pytest.raises(ValueError, match=r"\(2, 3\)"), renderer:
        renderer.write(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="closed"):
        renderer.write(strip(1.0))


@pytest.mark.skipif(os.name == "nt", reason="signal 0 is POSIX")
@pytest.mark.parametrize("end", ["exception", "dropped", "kill"])
def test_ffmpeg_ends_with_an_abandoned_renderer(end, barcode_video, tmp_path, strip, red_renderer):
    renderer = red_renderer(probe(barcode_video("long").path), tmp_path / "overlay.mp4")
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
def test_a_matte_keeps_the_times_of_its_video_and_masks(
    name, each_ffmpeg, barcode_video, tmp_path, strengths, render, watch_matte
):
    video = barcode_video(name)
    given = strengths(int(video.end_s * 2) + 1)
    path = render(probe(video.path), tmp_path / "matte.mp4", given, rate=2.0, style="matte", colour=(255, 255, 255))
    times, brightness = watch_matte(path)
    assert times == pytest.approx(video.times, abs=0.001)
    assert brightness == pytest.approx([given[int(t * 2 + 1e-3)] for t in video.times], abs=0.1)
