"""Frames of a video at a steady rate, each the one on screen at the middle of its interval."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from types import TracebackType
from typing import Any

import ffmpeg
import numpy as np
from numpy.typing import NDArray

from avsseg.errors import MediaError, UsageError
from avsseg.media.ffmpeg import STALL_S, FfmpegProcess, cannot_start, command
from avsseg.media.picture_end import TICKS_PER_S, FrameListing, PictureEnd
from avsseg.media.probe import VideoInfo, can_tone_map, open_input

# A seek in MPEG-TS or in a stream without key frames lands where nothing can be decoded yet. Starting this much earlier
# leaves the decoder time to find its feet; what comes before the wanted start is dropped by timestamp.
SEEK_MARGIN_S = 10.0

# Beyond the announced end of a file, the same frame for so long is no picture but an absurd timestamp or duration in a
# damaged file, which would give hours of masks. The announced end alone decides nothing: it may be far too early.
# Nor is an end believed that leaves next to nothing for each second.
STANDSTILL_S = 60.0
BELIEVED_S = 600.0
FEWEST_BYTES_PER_S = 100


def mask_times(info: VideoInfo, *, rate: float, start_s: float = 0.0, end_s: float | None = None) -> int | None:
    """How many masks `rate` a second make between `start_s` and `end_s`: max(1, ceil((end - start) * rate)).

    `end_s` is clipped to the file's duration. None if neither is known. It is what the file announces: one whose sound
    outlasts its picture has fewer, one whose header is wrong any number. That shows only once the picture is read.
    """
    ends = [end for end in (info.duration_s, end_s) if end is not None]
    if not ends:
        return None
    return max(1, math.ceil(Fraction(f"{min(ends) - start_s:.6f}") * rational(rate)))


def check_range(info: VideoInfo, *, rate: float, start_s: float, end_s: float | None) -> None:
    """Raise `UsageError` for a rate or range that makes no sense, `MediaError` for one that lies after the end."""
    if not (math.isfinite(rate) and 0.001 <= rate <= 1000):
        raise UsageError(f"rate {rate:g} is not between 0.001 and 1000 masks a second.")
    if not (math.isfinite(start_s) and start_s >= 0):
        raise UsageError(f"start {start_s:g} is not a time in the video: it must be 0 s or later.")
    if end_s is not None and not end_s > start_s:
        raise UsageError(f"end {end_s:g} s is not later than start {start_s:g} s.")
    if info.duration_s is not None and start_s >= info.duration_s:
        reason = f"is {info.duration_s:g} s long, so nothing is left from {start_s:g} s on"
        raise MediaError(info.path, reason, "Give an earlier start.")


def rational(rate: float) -> Fraction:
    """`rate` as the fraction that was meant: 29.97 becomes 2997/100, 1/3 becomes 1/3."""
    return Fraction(rate).limit_denominator(1001)


def sample_frames(
    info: VideoInfo,
    *,
    rate: float = 1.0,
    size: int = 224,
    start_s: float = 0.0,
    end_s: float | None = None,
    stall_s: float = STALL_S,
) -> FrameSampler:
    """Open a stream of frames; frame k is the one on screen at ``start_s + (k + 0.5) / rate``.

    Iterating gives uint8 RGB arrays (size, size, 3), squashed to a square as AVSBench did; use it in a `with` block.
    Where the picture starts late its first frame stands in, and a last interval whose middle lies after the end of the
    picture shows the last frame, so a picture of d seconds gives ``max(1, ceil(d * rate))`` frames.

    Raises `UsageError` for a senseless rate or range, `MediaError` if nothing can be decoded, or ffmpeg stands still or
    is killed.
    """
    check_range(info, rate=rate, start_s=start_s, end_s=end_s)
    return FrameSampler(info, rate=rate, size=size, start_s=start_s, end_s=end_s, stall_s=stall_s)


class FrameSampler(Iterator[NDArray[np.uint8]]):
    """The iterator that `sample_frames` returns.

    `limit` is how many frames it gives at most, None without an end. `count`, `error_lines`, `last_error`, `failure`
    and `stands_still` grow final at its end, as does `picture_end`: None where the reading was over before the picture.
    """

    def __init__(
        self, info: VideoInfo, *, rate: float, size: int, start_s: float, end_s: float | None, stall_s: float
    ) -> None:
        self.count = 0  # frames given so far
        self.error_lines = 0  # lines that ffmpeg wrote about damage
        self.last_error = ""
        self.failure = ""  # how ffmpeg came to a bad end
        self._info = info
        self._size = size
        self._stall_s = stall_s
        self.stands_still = False  # cut because of `STANDSTILL_S`
        self.picture_end: PictureEnd | None = None
        self._announced = _believable(info, mask_times(info, rate=rate, start_s=start_s, end_s=None), rate)
        self.limit = None if end_s is None else max(1, math.ceil(Fraction(f"{end_s - start_s:.6f}") * rational(rate)))
        self._longest_standstill = math.ceil(STANDSTILL_S * rate)
        self._ahead: NDArray[np.uint8] | None = None  # read, but not given yet
        self._last: NDArray[np.uint8] | None = None
        self._repeats = 0  # of the last frame, beyond the announced end
        self._finished = False
        self._seek_s = seek_point(start_s)
        # of a range that ends before the picture is announced to, the picture's end is not looked for
        to_the_end = self.limit is None or self._announced is None or self.limit >= self._announced
        try:
            self._listing = FrameListing() if to_the_end else None
        except OSError as error:
            raise cannot_start(error) from error
        limit, listing = (None, self._listing.url) if self._listing is not None else (self.limit, "")
        try:
            arguments = _arguments(info, rational(rate), size, start_s, limit=limit, listing=listing)
            pass_fds = self._listing.pass_fds if self._listing is not None else ()
            self._process = FfmpegProcess(arguments, stall_s=stall_s, pass_fds=pass_fds)
        finally:
            if self._listing is not None:
                self._listing.started()

    def __next__(self) -> NDArray[np.uint8]:
        if self._finished:
            raise StopIteration
        frame = None if self.count == self.limit else self._read()
        if frame is not None and self._announced is not None and self.count >= self._announced:
            frame = self._beyond_announced(frame)
        if frame is None:
            self._finish()
            raise StopIteration
        self.count += 1
        return frame

    def _read(self) -> NDArray[np.uint8] | None:
        frame, self._ahead = self._ahead, None
        if frame is None:
            frame = np.empty((self._size, self._size, 3), np.uint8)
            if self._process.read_into(memoryview(frame.data).cast("B")) < frame.nbytes:
                return None
        return frame

    def _beyond_announced(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
        """`frame`, or None if the picture ends before it after all."""
        if self.count == self._announced:
            # Clocks of milliseconds and priming move the end a little: one frame alone is no further picture.
            self._ahead = self._read()
            if self._ahead is None:
                return None
        repeated = self._last is not None and np.array_equal(frame, self._last)
        self._repeats = self._repeats + 1 if repeated else 0
        self._last = frame
        self.stands_still = self._repeats > self._longest_standstill
        return None if self.stands_still else frame

    def _finish(self) -> None:
        self._finished = True
        full = self.count == self.limit
        # one frame further shows whether the picture ends there; what happens on the way is no more about this range
        said = self._process.said() if full else None
        more = self.stands_still or (full and (self._listing is None or self._read() is not None))
        if more:
            self._process.kill()
        code = self._process.wait()
        if code == 0 and not more and self._listing is not None:
            self.picture_end = self._listing.end(self._seek_s)
        self.failure = "" if full else self._process.failure()
        killed = "" if full else self._process.killed()
        stalled = self._process.stalled and not full
        lines, self.error_lines = self._process.messages(until=said)
        self.last_error = lines[-1] if lines else ""
        self.close()
        if stalled:
            reason = f"decoding stood still for {self._stall_s:g} s after frame {self.count}"
            raise MediaError(self._info.path, reason, "The file may be damaged.")
        if killed:
            reason = f"ffmpeg {self.failure} while it decoded the picture, after frame {self.count}"
            raise MediaError(self._info.path, reason, killed)
        if self.count == 0:
            crash = f"ffmpeg {self.failure}" if self.failure else ""
            reason = self.last_error or crash or "it ends before the start asked for"
            raise MediaError(self._info.path, f"no picture could be decoded ({reason})")

    def kill(self) -> None:
        """End ffmpeg now, from any thread; a blocked `next` returns."""
        self._process.kill()

    def close(self) -> None:
        """End ffmpeg and release everything; may be called twice."""
        self._finished = True
        self._process.close()
        if self._listing is not None:
            self._listing.close()

    def __enter__(self) -> FrameSampler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _believable(info: VideoInfo, announced: int | None, rate: float) -> int | None:
    try:
        longest_s = max(BELIEVED_S, info.path.stat().st_size / FEWEST_BYTES_PER_S)
    except OSError:
        return announced  # reading it will tell
    return announced and min(announced, math.ceil(longest_s * rate))


def _arguments(
    info: VideoInfo, rate: Fraction, size: int, start_s: float, *, limit: int | None, listing: str
) -> list[str]:
    seek_s = seek_point(start_s)
    # Accurate seeking would drop the frame that is still on screen at the start of the range, and a change of size on
    # the way would restart the graph, in which fps then counts from 0 again.
    options: dict[str, Any] = {"reinit_filter:v": 0}
    if seek_s:
        options.update(ss=f"{seek_s:.6f}", noaccurate_seek=None)
    source = open_input(info, **options)
    # fps gives interval n the last frame whose time rounds to n or less, so rounding to nearest samples the middle of
    # the interval. One microsecond earlier, a frame that appears exactly then is the one sampled (frame 15 of 30 fps,
    # not 14). `eof_action=pass` rounds the end of the picture up: as many frames as intervals that have picture.
    picture = (
        source["V:0"]
        .filter("settb", "1/1000000")
        .filter("setpts", f"PTS-{round((start_s - seek_s) * 1e6) + 1}")
        .filter("fps", str(rate), round="near", start_time=0, eof_action="pass")
    )
    picture = tone_map(info, picture).filter("scale", size, size)
    end, copied = {}, {}
    if limit is not None:
        # copies that went on would read, and complain about, what lies far beyond the range
        end, copied = {"frames:v": limit}, {"t": f"{float(start_s - seek_s + limit / rate):.6f}"}
    output = ffmpeg.output(picture, "pipe:1", format="rawvideo", pix_fmt="rgb24", fps_mode="passthrough", **end)
    if listing:
        options = {"format": "framecrc", "fps_mode": "passthrough", "enc_time_base": f"1:{TICKS_PER_S}"}
        # Of the frames as they were decoded, since packets may not be shown; their pixels are left alone.
        listed = ffmpeg.output(source["V:0"].filter("null"), listing, vcodec="wrapped_avframe", **options)
        output = ffmpeg.merge_outputs(output, listed)
    return command(on_container_clock(info, source, output, **copied))


def on_container_clock(info: VideoInfo, source: Any, output: Any, **limits: Any) -> Any:
    """`output`, timed by the container's clock although it uses one track alone.

    In formats whose time may jump (MPEG-TS, MPEG-PS, Ogg) ffmpeg counts from the earliest of the tracks that a command
    uses, so that commands for the picture and for the sound would disagree by what lies between their first packets.
    Copying every track to nowhere makes all commands use the same ones. The copies are numbered instead of timed:
    times that jump back, as in joined files, would be errors of that copy alone. `limits` are options of the copies,
    such as `t`: without one they go on to the end of the file.
    """
    tracks = [source["V:0"], *(source[f"a:{index}"] for index in audio_tracks(info))]
    return ffmpeg.merge_outputs(
        output, ffmpeg.output(*tracks, "-", format="null", codec="copy", bsf="setts=ts=N", **limits)
    )


def audio_tracks(info: VideoInfo) -> list[int]:
    """Numbers of the audio tracks whose codec ffmpeg knows."""
    return [index for index, codec in enumerate(info.audio_codecs) if codec != "none"]


def seek_point(start_s: float) -> float:
    """Where ffmpeg begins to read so that everything from `start_s` on is sure to be decoded."""
    return max(0.0, start_s - SEEK_MARGIN_S)


def tone_map(info: VideoInfo, picture: Any) -> Any:
    """Map PQ or HLG pictures to BT.709, as an ordinary screen shows them, where ffmpeg can; others pass unchanged."""
    if not (info.is_hdr and can_tone_map()):
        return picture
    # zscale maps nothing whose primaries or matrix it does not know, and HDR's are BT.2020's
    tags = {} if info.color_primaries else {"color_primaries": "bt2020"}
    if info.color_space in (None, "bt2020c"):
        tags["colorspace"] = "bt2020nc"
    if tags:
        picture = picture.filter("setparams", **tags)
    return (
        picture.filter("zscale", t="linear", npl=100)
        .filter("format", "gbrpf32le")
        .filter("zscale", p="bt709")
        .filter("tonemap", "hable", desat=0)
        .filter("zscale", t="bt709", m="bt709", r="tv")
        .filter("format", "yuv420p")
    )
