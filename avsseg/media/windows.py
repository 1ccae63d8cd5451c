"""Windows of frames and log-mel examples, streamed from a video file in bounded memory."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avsseg.errors import UsageError
from avsseg.media.audio import (
    EXAMPLE_SAMPLES,
    SAMPLE_RATE_HZ,
    AudioReader,
    example_start_s,
    log_mel,
    read_audio,
)
from avsseg.media.ffmpeg import STALL_S
from avsseg.media.frames import FrameSampler, mask_times, sample_frames
from avsseg.media.picture_end import PictureEnd
from avsseg.media.probe import VideoInfo
from avsseg.media.verdict import Verdict, judge

WINDOWS_AHEAD = 1  # decoded and waiting while the model works on one


@dataclass(frozen=True, eq=False)
class ClipWindow:
    """T consecutive frames and the sound around each of them.

    `frames` is uint8 RGB (T, size, size, 3); `log_mel` is float32 (T, 1, 96, 64); `timestamps_s` holds the T times of
    the frames, ``start_s + (k + 0.5) / rate``, on the container's clock; k counts from `first_index`.
    """

    first_index: int
    frames: NDArray[np.uint8]
    log_mel: Tensor
    timestamps_s: tuple[float, ...]


def clip_windows(
    info: VideoInfo,
    *,
    rate: float = 1.0,
    size: int = 224,
    window: int = 10,
    overlap: int = 0,
    start_s: float = 0.0,
    end_s: float | None = None,
    audio_track: int | None = None,
    stall_s: float = STALL_S,
) -> ClipWindows:
    """Open a stream of windows of at most `window` frames, each beginning `window - overlap` frames after the last.

    Every frame is in at least one window; only the last window may be shorter. `audio_track` counts from 1; None is the
    one that players play. A thread fills one window while `WINDOWS_AHEAD` wait, and nothing held grows with the length
    of the video. Use it in a `with` block.

    Raises `UsageError` for a senseless rate, range or overlap, `MediaError` if nothing can be decoded, there is no such
    audio track, or ffmpeg stands still or is killed.
    """
    if window < 1 or not 0 <= overlap < window:
        raise UsageError(f"overlap {overlap} must be at least 0 and less than the window of {window} frames.")
    return ClipWindows(
        info,
        rate=rate,
        size=size,
        window=window,
        overlap=overlap,
        start_s=start_s,
        end_s=end_s,
        audio_track=audio_track,
        stall_s=stall_s,
    )


class ClipWindows(Iterator[ClipWindow]):
    """The iterator that `clip_windows` returns.

    `expected` is the number of frames if the file tells the truth about its length, None if it does not say.
    After the last window, `count` is the number of frames there were, `picture_end` where the picture ends (None if it
    goes on), `missing_s` the seconds that the file announces but does not hold, `damaged` whether the decoder
    complained or came to a bad end, `warnings` the same in words, one line each, and `notes` what is odd about a whole
    file.
    """

    def __init__(
        self,
        info: VideoInfo,
        *,
        rate: float,
        size: int,
        window: int,
        overlap: int,
        start_s: float,
        end_s: float | None,
        audio_track: int | None,
        stall_s: float,
    ) -> None:
        self.expected = mask_times(info, rate=rate, start_s=start_s, end_s=end_s)
        self.count = 0
        self.missing_s = 0.0
        self.damaged = False
        self.warnings: tuple[str, ...] = ()
        self.notes: tuple[str, ...] = ()
        self.picture_end: PictureEnd | None = None
        frames = sample_frames(info, rate=rate, size=size, start_s=start_s, end_s=end_s, stall_s=stall_s)
        try:
            heard_s = None
            if end_s is not None and frames.limit is not None:
                # the last example may reach beyond the end, and at low rates the end lies beyond the last example
                last_s = example_start_s(frames.limit - 1, rate=rate, start_s=start_s)
                heard_s = max(end_s, last_s + EXAMPLE_SAMPLES / SAMPLE_RATE_HZ)
            first_s = max(0.0, start_s - 0.5)
            sound = read_audio(info, track=audio_track, start_s=first_s, end_s=heard_s, stall_s=stall_s)
        except BaseException:
            frames.close()
            raise
        self._decoder = _Decoder(
            info, frames, sound, rate=rate, start_s=start_s, end_s=end_s, window=window, overlap=overlap
        )
        self._finalizer = weakref.finalize(self, self._decoder.stop)
        self._decoder.start()

    def __next__(self) -> ClipWindow:
        item = self._decoder.next()
        if isinstance(item, ClipWindow):
            self.count = item.first_index + len(item.frames)
            return item
        self.close()
        if isinstance(item, BaseException):
            raise item
        if item is not None:
            self.missing_s, self.damaged, self.warnings = item.missing_s, item.damaged, item.warnings
            self.notes, self.picture_end = item.notes, item.picture_end
        raise StopIteration

    def close(self) -> None:
        """Stop decoding and release everything; may be called twice."""
        self._finalizer()

    def __enter__(self) -> ClipWindows:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Decoder:
    """The thread that reads both streams, and the queue of what it made: windows, then a verdict or an exception."""

    def __init__(
        self,
        info: VideoInfo,
        frames: FrameSampler,
        sound: AudioReader,
        *,
        rate: float,
        start_s: float,
        end_s: float | None,
        window: int,
        overlap: int,
    ) -> None:
        self._info = info
        self._frames = frames
        self._sound = sound
        self._examples = _ExampleCutter(sound, start_s=max(0.0, start_s - 0.5))
        self._rate = rate
        self._start_s = start_s
        self._end_s = end_s
        self._window = window
        self._overlap = overlap
        self._queue: queue.Queue[ClipWindow | Verdict | BaseException | None] = queue.Queue(WINDOWS_AHEAD)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="avsseg-decoder", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def next(self) -> ClipWindow | Verdict | BaseException | None:
        return None if self._stopping.is_set() else self._queue.get()

    def stop(self) -> None:
        self._stopping.set()
        self._frames.kill()
        self._sound.kill()
        while self._thread.is_alive():
            while not self._queue.empty():
                self._queue.get_nowait()
            self._thread.join(0.01)
        while not self._queue.empty():
            self._queue.get_nowait()
        self._queue.put(None)  # wakes a consumer that waits in another thread
        self._frames.close()
        self._sound.close()

    def _run(self) -> None:
        try:
            for window in self._windows():
                self._put(window)
            self._put(self._verdict())
        except BaseException as error:
            self._put(error)

    def _put(self, item: ClipWindow | Verdict | BaseException) -> None:
        if not self._stopping.is_set():
            self._queue.put(item)

    def _windows(self) -> Iterator[ClipWindow]:
        frames: list[NDArray[np.uint8]] = []
        sounds: list[NDArray[np.float32]] = []
        first, fresh = 0, 0  # `fresh` frames of the window being filled have been in no window before
        for index, frame in enumerate(self._frames):
            if self._stopping.is_set():
                return
            if len(frames) == self._window:
                yield self._clip(first, frames, sounds)
                keep = self._overlap
                frames, sounds = frames[len(frames) - keep :], sounds[len(sounds) - keep :]
                first, fresh = index - keep, 0
            frames.append(frame)
            sounds.append(self._examples.cut(example_start_s(index, rate=self._rate, start_s=self._start_s)))
            fresh += 1
        if fresh:
            yield self._clip(first, frames, sounds)

    def _verdict(self) -> Verdict:
        return judge(
            self._info,
            self._frames,
            self._sound,
            rate=self._rate,
            start_s=self._start_s,
            end_s=self._end_s,
            heard_until=self._examples.drain,
        )

    def _clip(self, first: int, frames: list[NDArray[np.uint8]], sounds: list[NDArray[np.float32]]) -> ClipWindow:
        times = tuple(self._start_s + (first + i + 0.5) / self._rate for i in range(len(frames)))
        spectra = log_mel(torch.from_numpy(np.stack(sounds))).unsqueeze(1)  # (T, 15600) -> (T, 1, 96, 64)
        return ClipWindow(first, np.stack(frames), spectra, times)


class _ExampleCutter:
    """Cuts examples at rising times out of a stream of samples, holding no more than one example and one block."""

    def __init__(self, sound: AudioReader, *, start_s: float) -> None:
        self._sound = sound
        self._held = np.zeros(0, np.float32)
        self._position = round(start_s * SAMPLE_RATE_HZ)  # of the first held sample
        self._ended = False

    def cut(self, at_s: float) -> NDArray[np.float32]:
        """The 15600 samples from `at_s` on; zeros where there is no sound."""
        wanted = round(at_s * SAMPLE_RATE_HZ)
        while not self._ended and self._position + len(self._held) < wanted + EXAMPLE_SAMPLES:
            self._read(wanted)
        offset = wanted - self._position
        example = np.zeros(EXAMPLE_SAMPLES, np.float32)
        part = self._held[offset : offset + EXAMPLE_SAMPLES]
        example[: len(part)] = part
        return example

    def drain(self, until_s: float) -> float:
        """Read on to `until_s`; returns when the sound ends, or `until_s` if it goes on."""
        while not self._ended and self._position + len(self._held) < until_s * SAMPLE_RATE_HZ:
            self._read(self._position + len(self._held))
        return min(until_s, (self._position + len(self._held)) / SAMPLE_RATE_HZ)

    def _read(self, keep_from: int) -> None:
        block = next(self._sound, None)
        if block is None:
            self._ended = True
            return
        dropped = min(max(0, keep_from - self._position), len(self._held))
        self._held = np.concatenate((self._held[dropped:], block))
        self._position += dropped
