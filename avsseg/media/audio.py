"""Sound: 16 kHz mono samples on the container's clock, and the log-mel examples that VGGish hears.

The front end is VGGish's (Hershey et al. 2017, arXiv 1609.09430) as AVSBench runs it: STFT with a periodic Hann window
of 400 samples every 160, FFT of 512, no centring; magnitudes, not powers; 64 triangular bands.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Iterator
from types import TracebackType

import ffmpeg
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avsseg.errors import MediaError
from avsseg.media.ffmpeg import STALL_S, FfmpegProcess, command
from avsseg.media.frames import on_container_clock, seek_point
from avsseg.media.probe import VideoInfo, open_input

logger = logging.getLogger(__name__)

SAMPLE_RATE_HZ = 16_000
STFT_WINDOW = 400  # samples, 25 ms
STFT_HOP = 160  # samples, 10 ms
FFT_SIZE = 512
MEL_BANDS = 64
MEL_LOWEST_HZ = 125.0
MEL_HIGHEST_HZ = 7500.0
LOG_OFFSET = 0.01
SILENT_LOG_MEL = math.log(LOG_OFFSET)  # of digital silence
EXAMPLE_FRAMES = 96
SILENT_PEAK = 0.001  # -60 dB: below it the log-mel is that of silence, whatever there is
CANCELLING = 0.01  # -20 dB: power of the mixed channels, of that of the louder one, below which they cancel out
EXAMPLE_SAMPLES = (EXAMPLE_FRAMES - 1) * STFT_HOP + STFT_WINDOW  # 15,600 samples = 0.975 s


@functools.lru_cache(maxsize=1)
def mel_matrix() -> Tensor:
    """Weights (257, 64) float32 that take FFT magnitudes to mel bands.

    mel = 1127 ln(1 + f / 700); the triangles are linear in mel, not in hertz, and not normalised; the DC bin counts in
    no band. Callers must not write into the returned tensor.
    """
    bins_hz = torch.linspace(0, SAMPLE_RATE_HZ / 2, FFT_SIZE // 2 + 1, dtype=torch.float64)
    bins_mel = 1127 * torch.log1p(bins_hz / 700)  # (257,)
    lowest, highest = (1127 * math.log1p(hz / 700) for hz in (MEL_LOWEST_HZ, MEL_HIGHEST_HZ))
    edges = torch.linspace(lowest, highest, MEL_BANDS + 2, dtype=torch.float64)
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]  # (64,) each
    rising = (bins_mel[:, None] - lower) / (centre - lower)  # (257, 64)
    falling = (upper - bins_mel[:, None]) / (upper - centre)
    weights = torch.minimum(rising, falling).clamp(min=0)
    weights[0] = 0
    return weights.float()


def log_mel(waveform: Tensor) -> Tensor:
    """ln(mel magnitude + 0.01) of 16 kHz samples: (..., samples) -> (..., frames, 64).

    `frames` = (samples - 400) // 160 + 1. Samples are in [-1, 1], of any float dtype, which the result keeps. Raises
    `ValueError` for fewer than 400 samples.
    """
    if waveform.shape[-1] < STFT_WINDOW:
        raise ValueError(f"log_mel needs at least {STFT_WINDOW} samples, got {waveform.shape[-1]}")
    window = torch.hann_window(STFT_WINDOW, periodic=True, dtype=waveform.dtype, device=waveform.device)
    frames = waveform.unfold(-1, STFT_WINDOW, STFT_HOP) * window  # (..., frames, 400)
    magnitude = torch.fft.rfft(frames, n=FFT_SIZE).abs()  # (..., frames, 257)
    return torch.log(magnitude @ mel_matrix().to(magnitude) + LOG_OFFSET)


def example_start_s(index: int, *, rate: float, start_s: float = 0.0) -> float:
    """When the log-mel example of mask `index` begins: half a second before its frame, but not before 0."""
    return max(0.0, start_s + (index + 0.5) / rate - 0.5)


def log_mel_examples(waveform: Tensor, starts_s: list[float]) -> Tensor:
    """Examples (T, 1, 96, 64) of a waveform (samples,), one for each start in seconds, cut at the exact sample.

    Samples beyond the end count as zero, whose log-mel is ln 0.01; so no example is lost, and none drifts against the
    picture as AVSBench's 0.96 s hop does.
    """
    starts = [round(start * SAMPLE_RATE_HZ) for start in starts_s]
    missing = max((start + EXAMPLE_SAMPLES for start in starts), default=0) - waveform.shape[-1]
    padded = torch.nn.functional.pad(waveform, (0, max(0, missing)))
    examples = [padded[start : start + EXAMPLE_SAMPLES] for start in starts]
    if not examples:
        return waveform.new_zeros(0, 1, EXAMPLE_FRAMES, MEL_BANDS)
    return log_mel(torch.stack(examples)).unsqueeze(1)


def heard_track(info: VideoInfo, wanted: int | None = None) -> int | None:
    """The audio track that is listened to, from 0: the one `wanted`, from 1, or that players play; None without sound.

    Raises `MediaError` if there is no such track, or nothing in it that can be decoded.
    """
    if wanted is None:
        return info.default_audio if info.has_audio else None
    count = len(info.audio_codecs)
    if wanted > count:
        there = f"{count or 'no'} audio track{'' if count == 1 else 's'}, so there is no audio track {wanted}"
        choice = f"Give one from 1 to {count}." if count > 1 else "Leave it out."
        raise MediaError(info.path, f"has {there}", choice)
    if info.audio_codecs[wanted - 1] == "none":
        raise MediaError(info.path, f"audio track {wanted} is empty or of an unknown codec", "Give another or none.")
    return wanted - 1


def mono(channels: NDArray[np.int16], before: int | None = None) -> tuple[NDArray[np.float32], int | None]:
    """The mean of channels (samples, C) as float32 (samples,) in [-1, 1]; or one of them, and its number.

    One is taken, the louder, where they cancel each other out, as with a plug of which one wire is crossed: the one
    from `before` unless another has twice its power, since a change turns the sign of the sound.
    """
    signal = channels.astype(np.float32) / np.float32(32768)
    mixed: NDArray[np.float32] = signal.mean(axis=1)
    power = np.square(signal).mean(axis=0)
    loudest = int(power.argmax())
    if before is not None and 2 * power[before] > power[loudest]:
        loudest = before
    cancel = bool(np.abs(signal).max() > SILENT_PEAK and np.square(mixed).mean() < CANCELLING * power.max())
    return (signal[:, loudest], loudest) if cancel else (mixed, None)


def read_audio(
    info: VideoInfo,
    *,
    track: int | None = None,
    start_s: float = 0.0,
    end_s: float | None = None,
    block: int = SAMPLE_RATE_HZ,
    stall_s: float = STALL_S,
) -> AudioReader:
    """Open an audio track, the `heard_track`, as float32 mono at 16 kHz, in blocks of `block` samples.

    The last block may be shorter. The first sample is the one at `start_s` on the container's clock, whenever the track
    starts: gaps and late starts are silence. A file without audio gives no block. Use it in a `with` block. Raises
    `MediaError` if there is no such track, or ffmpeg stands still or is killed.
    """
    return AudioReader(info, track=track, start_s=start_s, end_s=end_s, block=block, stall_s=stall_s)


class AudioReader(Iterator[NDArray[np.float32]]):
    """The iterator that `read_audio` returns.

    `samples`, `peak`, `cancelled`, `error_lines`, `last_error` and `failure` grow final at its end.
    """

    def __init__(
        self,
        info: VideoInfo,
        *,
        track: int | None,
        start_s: float,
        end_s: float | None,
        block: int,
        stall_s: float,
    ) -> None:
        self.track = heard_track(info, track)  # from 0
        self.samples = 0  # given so far
        self.peak = 0.0  # the largest of them, 0 to 1
        self._channel: int | None = None  # that stood for both where they last cancelled each other out
        self.cancelled = False  # channels somewhere cancelled each other out
        self.error_lines = 0  # lines that ffmpeg wrote about damage
        self.last_error = ""
        self.failure = ""  # how ffmpeg came to a bad end
        self._info = info
        self._stall_s = stall_s
        self._left = None if end_s is None else round((end_s - start_s) * SAMPLE_RATE_HZ)
        # of mono, which ffmpeg makes quieter in stereo, one channel
        channels = 1 if self.track in info.mono_audio else 2
        self._buffer: NDArray[np.int16] = np.empty((block, channels), np.int16)
        self._finished = self.track is None
        self._processes: list[FfmpegProcess] = []
        if self.track is not None:
            seek_s = seek_point(start_s)
            self._skip = round((start_s - seek_s) * SAMPLE_RATE_HZ)
            until_s = None if end_s is None else end_s - seek_s
            decoding = _decoding(info, self.track, channels, seek_s, until_s)
            self._processes.append(FfmpegProcess(decoding, stall_s=stall_s))
            try:
                # a decoder that reads on through pictures without sound is at work
                decoder = self._processes[0]
                aligner = FfmpegProcess(_aligning(), stdin=decoder, stall_s=stall_s, progress=decoder.computed)
                self._processes.append(aligner)
            except BaseException:
                self.close()
                raise

    def __next__(self) -> NDArray[np.float32]:
        if self._finished:
            raise StopIteration
        while self._skip and (skipped := self._read(self._skip)):
            self._skip -= skipped
        count = 0 if self._skip else self._read(self._left)
        if not count:
            self._finish(ended=self._left != 0)
            raise StopIteration
        if self._left is not None:
            self._left -= count
        self.samples += count
        samples, channel = mono(self._buffer[:count], self._channel)
        self.peak = max(self.peak, float(np.abs(samples).max()))
        if channel is not None:
            self.cancelled, self._channel = True, channel
        return samples

    def _read(self, limit: int | None) -> int:
        """Fill the buffer with at most `limit` samples; returns how many came."""
        wanted = len(self._buffer) if limit is None else min(limit, len(self._buffer))
        part = self._buffer[:wanted]
        return self._processes[1].read_into(part.data.cast("B")) // part.strides[0] if wanted else 0

    def finish(self) -> None:
        """Read no further: what is known of damage so far is final. Nothing happens at the end, or the second time.

        Raises as reading does.
        """
        if not self._finished:
            self._finish(ended=False)

    def _finish(self, *, ended: bool) -> None:
        self._finished = True
        stalled = self._processes[1].stalled
        if stalled or not ended:
            self.kill()
        decoder, aligner = self._processes
        for process in self._processes:
            process.wait()
        failed = aligner if aligner.failure() else decoder  # the end of the second ends the first
        self.failure = failed.failure()
        killed = failed.killed()
        lines, self.error_lines = decoder.messages()
        self.last_error = lines[-1] if lines else ""
        self.close()
        if stalled:
            raise MediaError(
                self._info.path,
                f"decoding the sound stood still for {self._stall_s:g} s after {self.samples / SAMPLE_RATE_HZ:.1f} s",
                "The file may be damaged.",
            )
        if killed:
            heard = f"{self.samples / SAMPLE_RATE_HZ:.1f} s"
            reason = f"ffmpeg {self.failure} while it decoded the sound, after {heard}"
            raise MediaError(self._info.path, reason, killed)

    def kill(self) -> None:
        """End ffmpeg now, from any thread; a blocked `next` returns."""
        for process in self._processes:
            process.kill()

    def close(self) -> None:
        """End ffmpeg and release everything; may be called twice."""
        self._finished = True
        for process in self._processes:
            process.close()

    def __enter__(self) -> AudioReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _decoding(info: VideoInfo, track: int, channels: int, seek_s: float, until_s: float | None) -> list[str]:
    """From `seek_s` on, for `until_s` seconds if that is given."""
    options = {"ss": f"{seek_s:.6f}"} if seek_s else {}
    source = open_input(info, **options)
    # 16-bit samples, as in the .wav files of AVSBench: bounded, and never NaN.
    limits = {} if until_s is None else {"t": f"{until_s:.6f}"}
    sound = ffmpeg.output(
        source[f"a:{track}"], "pipe:1", format="nut", acodec="pcm_s16le", ac=channels, ar=SAMPLE_RATE_HZ, **limits
    )
    return command(on_container_clock(info, source, sound, **limits))


def _aligning() -> list[str]:
    """Fill gaps, late starts and damaged packets with silence, which otherwise shift all that follows.

    A second process, because ffmpeg restarts its filters where a track changes between stereo and 5.1, as television
    recordings do, and a restarted filter fills everything before it once more.
    """
    sound = ffmpeg.input("pipe:0", format="nut", copyts=None).filter("aresample", **{"async": 1, "first_pts": 0})
    return command(ffmpeg.output(sound, "pipe:1", format="s16le"))
