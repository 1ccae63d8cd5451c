from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from avsseg.errors import MediaError
from avsseg.media.audio import (
    EXAMPLE_SAMPLES,
    SAMPLE_RATE_HZ,
    example_start_s,
    log_mel,
    log_mel_examples,
    mel_matrix,
    mono,
    read_audio,
)
from avsseg.media.probe import probe

GOLDEN = Path(__file__).parents[1] / "data" / "logmel_golden.safetensors"
LOG_OF_SILENCE = math.log(0.01)


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN)


def test_the_mel_matrix_is_the_reference_one(golden):
    assert torch.equal(mel_matrix(), golden["mel_matrix"])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-6)])
def test_examples_are_the_reference_ones_at_its_own_hop(dtype, tolerance, golden):
    reference = golden["reference_examples_0.96s_hop"]
    examples = log_mel_examples(golden["waveform"].to(dtype), [0.96 * i for i in range(len(reference))])
    assert examples.dtype == dtype
    assert (examples - reference).abs().max() <= tolerance * reference.abs().max()


def test_log_mel_is_that_of_torchaudio(golden):
    try:
        import torchaudio
    except (ImportError, OSError) as error:  # OSError: a wheel that was linked against CUDA
        pytest.skip(f"torchaudio cannot be imported: {error}")
    spectrogram = torchaudio.transforms.Spectrogram(
        n_fft=512, win_length=400, hop_length=160, power=1, center=False, window_fn=torch.hann_window
    )
    # torchaudio centres the window in the FFT frame, so 56 samples come before it and 56 after.
    padded = torch.nn.functional.pad(golden["waveform"], (56, 56))
    theirs = torch.log(spectrogram(padded).T @ mel_matrix() + 0.01)
    torch.testing.assert_close(log_mel(golden["waveform"]), theirs, rtol=0, atol=1e-4)


def test_a_tone_is_loudest_in_the_band_of_its_pitch():
    time = torch.arange(SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    spectrum = log_mel(torch.sin(2 * torch.pi * 1000 * time)).mean(dim=0)
    mel = torch.linspace(1127 * math.log1p(125 / 700), 1127 * math.log1p(7500 / 700), 66)[1:-1]
    centres_hz = 700 * torch.expm1(mel / 1127)
    assert spectrum.argmax() == (centres_hz - 1000).abs().argmin()


def test_log_mel_takes_any_leading_shape_and_rejects_too_few_samples():
    assert log_mel(torch.zeros(2, 3, EXAMPLE_SAMPLES)).shape == (2, 3, 96, 64)
    assert log_mel(torch.zeros(400)).shape == (1, 64)
    with pytest.raises(ValueError, match="400"):
        log_mel(torch.zeros(399))


def test_log_mel_is_differentiable():
    waveform = torch.randn(EXAMPLE_SAMPLES, requires_grad=True)
    log_mel(waveform).sum().backward()
    assert waveform.grad is not None
    assert waveform.grad.abs().sum() > 0


def test_examples_are_cut_at_the_exact_sample_and_padded_with_silence():
    waveform = torch.zeros(3 * SAMPLE_RATE_HZ)
    waveform[2 * SAMPLE_RATE_HZ] = 1.0  # a click at 2 s
    examples = log_mel_examples(waveform, [1.0, 1.025, 1.99, 2.1, 7.0])
    loud = (examples > LOG_OF_SILENCE + 1e-4).any(dim=-1)[:, 0]  # (5, 96)
    assert loud.any(dim=-1).tolist() == [False, False, True, False, False]
    assert examples.shape == (5, 1, 96, 64)
    assert torch.equal(examples[4], torch.full((1, 96, 64), 0.01).log())
    assert log_mel_examples(waveform, []).shape == (0, 1, 96, 64)


def test_examples_of_one_mask_a_second_start_at_whole_seconds():
    assert [example_start_s(k, rate=1) for k in range(4)] == [0, 1, 2, 3]
    assert [example_start_s(k, rate=4) for k in range(4)] == [0, 0, 0.125, 0.375]
    assert example_start_s(0, rate=4, start_s=3) == 2.625


def heard(path: Path, **options: float) -> np.ndarray:
    with read_audio(probe(path), **options) as blocks:
        return np.concatenate([np.zeros(0, np.float32), *blocks])


def onset_s(samples: np.ndarray) -> float:
    return int((np.abs(samples) > 0.05).argmax()) / SAMPLE_RATE_HZ


BEEP = "aevalsrc='0.5*sin(2*PI*1000*t)*gte(t,{at})':d={length}:s=44100"


@pytest.fixture(scope="session")
def beep(tmp_path_factory, encode_barcodes):
    """`beep(suffix, *options, at, delay)`: 3 s of picture, and sound that begins `delay` late and beeps `at` after."""
    folder = tmp_path_factory.mktemp("beep")

    def make(suffix: str, *options: str, at: float, delay: float = 0.0, length: float = 3.0) -> Path:
        path = folder / f"{len(list(folder.iterdir()))}.{suffix}"
        sound = ("-itsoffset", str(delay), "-f", "lavfi", "-i", BEEP.format(at=at, length=length))
        encode_barcodes(path, 90, "-c:v", "libx264", "-preset", "ultrafast", *options, inputs=sound)
        return path

    return make


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [("mp4", "aac"), ("mkv", "flac"), ("mkv", "pcm_s16le"), ("mkv", "libopus"), ("ts", "aac"), ("avi", "libmp3lame")],
)
def test_sound_is_where_it_is_on_the_clock(suffix, codec, each_ffmpeg, beep):
    path = beep(suffix, "-c:a", codec, "-strict", "-2", at=1.25)
    samples = heard(path)
    assert samples.dtype == np.float32
    assert onset_s(samples) == pytest.approx(1.25, abs=0.03)  # one frame of MP3 is 26 ms
    assert len(samples) == pytest.approx(3 * SAMPLE_RATE_HZ, abs=0.08 * SAMPLE_RATE_HZ)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "mpg"])
def test_a_late_track_begins_late(suffix, each_ffmpeg, beep):
    path = beep(suffix, "-c:a", "mp2" if suffix == "mpg" else "aac", at=0.0, delay=1.5, length=1.5)
    assert onset_s(heard(path)) == pytest.approx(1.5, abs=0.04)


@pytest.mark.parametrize("name", ["late_picture", "late_picture_ts"])
def test_a_late_picture_does_not_move_the_sound(name, each_ffmpeg, barcode_video):
    assert onset_s(heard(barcode_video(name).path)) < 0.05


def test_channels_that_cancel_each_other_out_keep_to_one():
    tone = 8000 * np.sin(np.arange(1600))

    def stereo(left: float, right: float) -> np.ndarray:
        return np.stack((left * tone, right * tone), axis=1).astype(np.int16)

    samples, channel = mono(stereo(1, -0.9))
    assert channel == 0
    assert np.allclose(samples, stereo(1, 1)[:, 0] / 32768)
    assert mono(stereo(0.9, -1), channel)[1] == 0  # that of a moment before, though the other is a little louder
    assert mono(stereo(0.9, -1))[1] == 1
    assert mono(stereo(1, 1), channel)[1] is None


def test_stereo_is_mixed_to_mono(each_ffmpeg, beep):
    samples = heard(beep("mkv", "-c:a", "pcm_s16le", "-af", "pan=stereo|c0=c0|c1=0*c0", at=0.0))
    assert np.abs(samples).max() == pytest.approx(0.25, abs=0.03)


def test_a_range_begins_at_its_own_start(each_ffmpeg, beep):
    path = beep("mp4", "-c:a", "aac", at=12.5, length=14.0)
    assert onset_s(heard(path, start_s=12.2)) == pytest.approx(0.3, abs=0.03)
    assert len(heard(path, start_s=12.2, end_s=13.0)) == 0.8 * SAMPLE_RATE_HZ
    assert len(heard(path, start_s=99.0)) == 0


def test_a_change_of_channels_on_the_way_leaves_the_rest_in_place(each_ffmpeg, encode_barcodes, tmp_path):
    """As in television recordings; aresample=first_pts=0 in one ffmpeg fills all before the change once more."""
    parts = []
    for number, channels in enumerate((2, 6, 2)):
        tone = ("-f", "lavfi", "-i", BEEP.format(at=0.5, length=1.0).replace("44100", "48000"))
        audio = ("-c:a", "ac3", "-ac", str(channels), "-f", "mpegts", "-output_ts_offset", str(number))
        parts.append(encode_barcodes("pipe:1", 30, "-c:v", "libx264", "-preset", "ultrafast", *audio, inputs=tone))
    path = tmp_path / "recording.ts"
    path.write_bytes(b"".join(parts))
    samples = heard(path)
    assert len(samples) == pytest.approx(3 * SAMPLE_RATE_HZ, abs=0.08 * SAMPLE_RATE_HZ)
    loud = [np.abs(samples[int(t * SAMPLE_RATE_HZ) :][:1600]).max() > 0.05 for t in (0.3, 0.7, 1.3, 1.7, 2.3, 2.7)]
    assert loud == [False, True] * 3


def test_damaged_packets_do_not_shift_what_follows(each_ffmpeg, beep):
    path = beep("ts", "-c:a", "aac", at=2.5)
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    for position in rng.integers(len(data) // 4, len(data) // 2, 40):
        data[position] ^= 0xFF
    damaged = path.with_name("damaged.ts")
    damaged.write_bytes(data)
    after = heard(damaged)[int(2.25 * SAMPLE_RATE_HZ) :]
    assert onset_s(after) == pytest.approx(0.25, abs=0.05)


def test_no_track_gives_no_block(barcode_video):
    assert heard(barcode_video("short").path).size == 0


def test_blocks_have_the_size_asked_for(beep):
    with read_audio(probe(beep("mkv", "-c:a", "pcm_s16le", at=0.0)), block=1000) as blocks:
        sizes = [len(block) for block in blocks]
    assert set(sizes[:-1]) == {1000}
    assert sum(sizes) == 3 * SAMPLE_RATE_HZ


def test_a_decoder_that_stands_still_is_an_error(beep, standing_ffmpeg):
    info = probe(beep("mkv", "-c:a", "pcm_s16le", at=0.0))
    standing_ffmpeg()
    with read_audio(info, stall_s=0.2) as blocks, pytest.raises(MediaError, match=r"stood still for 0\.2 s"):
        next(blocks)


TONE = ("-f", "lavfi", "-i", "aevalsrc='0.5*sin(2*PI*440*t)':d=2:s=44100")
SILENCE = ("-f", "lavfi", "-i", "anullsrc=channel_layout=mono:sample_rate=44100:d=2")


@pytest.fixture
def two_tracks(encode_barcodes, tmp_path) -> Path:
    """Silence, then a tone, neither of them flagged."""
    path = tmp_path / "two.mkv"
    tracks = ("-map", "0", "-map", "1", "-map", "2", "-c:a", "flac", "-disposition:a", "0")
    encode_barcodes(path, 60, "-c:v", "ffv1", *tracks, inputs=(*SILENCE, *TONE))
    return path


def test_the_track_that_was_asked_for_is_heard(each_ffmpeg, two_tracks):
    assert np.abs(heard(two_tracks)).max() == 0
    assert np.abs(heard(two_tracks, track=1)).max() == 0
    assert np.abs(heard(two_tracks, track=2)).max() == pytest.approx(0.5, abs=0.01)


def test_a_track_that_is_flagged_is_heard_before_the_first(each_ffmpeg, two_tracks, run, tmp_path):
    run("-i", two_tracks, "-map", "0", "-c", "copy", "-disposition:a:1", "default", tmp_path / "flagged.mkv")
    assert np.abs(heard(tmp_path / "flagged.mkv")).max() == pytest.approx(0.5, abs=0.01)


def test_a_track_that_is_not_there_is_an_error(two_tracks, barcode_video):
    with pytest.raises(MediaError, match=r"has 2 audio tracks, so there is no audio track 3\. Give one from 1 to 2\."):
        read_audio(probe(two_tracks), track=3)
    with pytest.raises(MediaError, match=r"has no audio tracks, so there is no audio track 1\. Leave it out\."):
        read_audio(probe(barcode_video("short").path), track=1)


@pytest.mark.parametrize(
    ("channels", "peak"), [("s|-s", 0.5), ("s|-0.95*s", 0.5), ("s|s", 0.5), ("s|0", 0.25), ("s", 0.5)]
)
def test_channels_that_cancel_each_other_out_are_heard_all_the_same(
    channels, peak, each_ffmpeg, encode_barcodes, tmp_path
):
    tone = channels.replace("s", "0.5*sin(2*PI*440*t)")
    path = tmp_path / "channels.mkv"
    encode_barcodes(
        path, 60, "-c:v", "ffv1", "-c:a", "pcm_s16le", inputs=("-f", "lavfi", "-i", f"aevalsrc='{tone}':d=2:s=16000")
    )
    with read_audio(probe(path)) as sound:
        samples = np.concatenate(list(sound))
    assert np.abs(samples).max() == sound.peak == pytest.approx(peak, abs=0.001)
    assert sound.cancelled == ("-" in channels)
    wave = np.sin(2 * np.pi * 440 * np.arange(2 * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ)
    assert np.abs(samples - peak * wave).max() < 0.001
