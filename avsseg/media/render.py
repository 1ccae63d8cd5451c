"""Videos of the masks, drawn by one ffmpeg process: the overlay, the matte and the cutout.

Masks go to ffmpeg's stdin as a stream of small RGBA pictures; scaling, blending, encoding and the copying of the sound
happen inside ffmpeg, so that no full-size frame passes through Python.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal

import ffmpeg
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from avsseg.errors import MediaError, OutputError, UsageError, printable
from avsseg.media.captions import Caption, picture_size, with_captions
from avsseg.media.ffmpeg import STALL_S, FfmpegProcess, command
from avsseg.media.frames import check_range, rational
from avsseg.media.probe import VideoInfo, probe
from avsseg.media.render_graph import ARTICLE, CUTOUT_CONTAINERS, MUXERS, WHITE, Style, rendering

LINEAR_MASKS_PER_S = 10  # as smooth as 30 to the eye, at a third of the scaling cost

# What ffmpeg says of a place that cannot take a file
FULL = ("No space left", "Disk quota exceeded", "File too large")
REFUSED = ("Permission denied", "Read-only file system", "Operation not permitted")

Interpolation = Literal["hold", "linear"]


class VideoRenderer:
    """Writes a video of `info`'s frames and of the masks that it is given, in order, through `write`.

    `style` says which: "overlay" is the video with `colour` laid over the masks at `opacity`; "matte" is the masks
    alone, white on black, without sound; "cutout" is the video with the masks as its transparency, times its own if it
    has any (straight alpha: the colours are those of the input everywhere). `colour` and `opacity` are for overlays, as
    is `captioned`: its masks may come with names, which are drawn above what they name.

    Mask k covers ``[start_s + k / rate, start_s + (k + 1) / rate)``; with ``interpolate="linear"`` the strength runs
    linearly between the middles of those intervals. The last mask stays to the end of the video, and masks beyond it
    are ignored. Masks may come as slowly as they like.

    Size, frame timestamps, orientation, pixel aspect, colour tags and all audio tracks are those of the input; odd
    sizes grow by one pixel (not those of cutouts), and audio that the container cannot hold is re-encoded; `warnings`
    tells of such changes. The file is written to exactly `output_path`, in the format of `container` ("mp4", "mkv",
    "mov" or "webm"; a cutout is ProRes 4444 in "mov" and "mkv", VP9 in "webm", and impossible in "mp4"); errors
    speak of `display_path` where that is given, such as the name that the file will have once complete.

    Leaving the `with` block normally completes the file; leaving it by an exception ends ffmpeg and leaves whatever was
    written for the caller to remove. Raises `OutputError`, with ffmpeg's reason, if the file cannot be written.
    """

    def __init__(
        self,
        info: VideoInfo,
        output_path: Path,
        *,
        rate: float,
        mask_width: int,
        mask_height: int,
        style: Style = "overlay",
        colour: tuple[int, int, int] = WHITE,
        opacity: float = 1.0,
        captioned: bool = False,
        container: str = "mp4",
        interpolate: Interpolation = "hold",
        start_s: float = 0.0,
        end_s: float | None = None,
        display_path: Path | None = None,
        stall_s: float = STALL_S,
    ) -> None:
        possible = CUTOUT_CONTAINERS if style == "cutout" else sorted(MUXERS)
        if container not in possible:
            raise UsageError(f"{ARTICLE[style]} cannot be a .{container} file. Choose one of: {', '.join(possible)}.")
        if not 0 <= opacity <= 1:
            raise UsageError(f"opacity {opacity:g} is not between 0 and 1.")
        check_range(info, rate=rate, start_s=start_s, end_s=end_s)
        self._path = Path(output_path)
        self._name = printable(display_path or self._path)
        self._style = style
        self._stall_s = stall_s
        self._shape = (mask_height, mask_width)
        steps = max(2, int(LINEAR_MASKS_PER_S / rate)) if interpolate == "linear" else 1
        self._blend = _Interpolator(steps)
        self._opacity = np.float32(opacity * 255)
        # letters need more pixels than masks
        height, width = self._shape
        if captioned:
            height, width = picture_size(round(info.width * info.sample_aspect_ratio), info.height)
        self._picture = np.zeros((height, width, 4), np.uint8)
        self._picture[..., :3] = colour
        self._shown = self._picture
        masks = ffmpeg.input(
            "pipe:0",
            format="rawvideo",
            pixel_format="rgba",
            video_size=(width, height),
            framerate=str(rational(rate) * steps),
        )
        output, self.warnings = rendering(info, self._path, masks, style, container, start_s, end_s)
        arguments = command(output)
        self._process: FfmpegProcess | None = FfmpegProcess(
            arguments, stdin=True, stall_s=stall_s, progress=functools.partial(_file_state, self._path)
        )
        self._sent = 0  # pictures, `steps` for each mask
        self._sent_per_s = rate * steps
        self._is_part = start_s > 0 or end_s is not None
        self._announced_s = math.inf if info.duration_s is None else info.duration_s
        self._input_ended = False  # the video was over before the masks were

    def write(self, mask: ArrayLike, captions: Sequence[Caption] = ()) -> None:
        """Add the next mask: (mask_height, mask_width), 0 for clear to 1 for full strength, of any number type.

        `captions` are shown in its interval, if the renderer is `captioned`.

        Raises `OutputError` if ffmpeg failed or stands still, `ValueError` for another shape.
        """
        strength = np.asarray(mask, np.float32)
        if strength.shape != self._shape:
            raise ValueError(f"mask is {strength.shape}, the renderer was opened for {self._shape}")
        for step, nearest in self._blend.add(strength, captions):
            self._send(step, nearest)

    def close(self) -> None:
        """Complete the file: raises `OutputError` if that fails. May be called twice."""
        if self._process is None:
            return
        try:
            for step, nearest in self._blend.rest():
                self._send(step, nearest)
            # The last mask stays until the picture ends. ffmpeg could hold it by itself, but then it would go on for
            # hours where this process is killed, whose end is the end of the masks.
            length_s = max(self._announced_s, self._sent / self._sent_per_s)
            enough = (1.5 * length_s + 60) * self._sent_per_s  # for all but timestamps that jump in a damaged file
            while not self._input_ended and self._sent < enough:
                self._send_picture()
            if not self._input_ended:
                self._finish()
        finally:
            self.kill()

    def kill(self) -> None:
        """End ffmpeg now; the file stays incomplete. May be called twice."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def __enter__(self) -> VideoRenderer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.kill()

    def _send(self, strength: NDArray[np.float32], captions: Sequence[Caption]) -> None:
        if self._process is None:
            raise ValueError("the renderer is closed")
        if self._input_ended:
            return
        alpha = np.rint(np.clip(strength, 0, 1) * self._opacity).astype(np.uint8)
        size = self._picture.shape[1::-1]
        self._picture[..., 3] = np.asarray(Image.fromarray(alpha).resize(size, Image.Resampling.BILINEAR))
        self._shown = with_captions(self._picture, captions) if captions else self._picture
        self._send_picture()

    def _send_picture(self) -> None:
        assert self._process is not None
        self._sent += 1
        try:
            self._process.write(self._shown.data.cast("B"))
        except OSError:  # ffmpeg has closed its end: it is done, or it failed
            self._input_ended = True
            self._finish()

    def _finish(self) -> None:
        assert self._process is not None
        with contextlib.suppress(OSError):  # nothing is buffered; Windows reports the broken pipe here
            self._process.close_stdin()
        code = self._process.wait()
        killed = self._process.killed()
        lines, _ = self._process.messages()
        reason = _reason(lines, code).replace(printable(self._path), self._name).rstrip(".")
        if self._process.stalled:
            raise OutputError(
                f"{self._name}: rendering made no progress for {self._stall_s:g} s. The input may be damaged."
            )
        if killed:
            raise OutputError(
                f"{self._name}: ffmpeg {self._process.failure()} while it wrote the {self._style}. {killed}"
            )
        if code != 0 or any(line.startswith("Error writing trailer") for line in lines):
            raise OutputError(f"{self._name}: ffmpeg could not write the {self._style}: {reason}.{_next_step(reason)}")
        if _file_state(self._path) is None:
            raise OutputError(f"{self._name}: ffmpeg wrote no {self._style}: {reason}.{_next_step(reason)}")
        if self._is_part:
            try:
                probe(self._path, stall_s=self._stall_s)
            except MediaError as error:
                raise OutputError(
                    f"{self._name}: no frame of the picture begins in the part asked for. "
                    "Give an earlier --start or a later --end."
                ) from error


class _Interpolator:
    """Makes `steps` masks out of each one, linear between the middles of the intervals of neighbours.

    In units of one interval, mask k lies at k + 1/2 and made mask j at (j + 1/2) / steps. Before the first middle and
    after the last the nearest mask holds. One step leaves the masks as they are. Each comes with the captions of the
    nearest.
    """

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._last: NDArray[np.float32] | None = None
        self._captions: Sequence[Caption] = ()
        self._taken = 0
        self._made = 0

    def add(
        self, mask: NDArray[np.float32], captions: Sequence[Caption]
    ) -> Iterator[tuple[NDArray[np.float32], Sequence[Caption]]]:
        last = mask if self._last is None else self._last
        while 2 * self._made + 1 <= self._steps * (2 * self._taken + 1):
            weight = (self._made + 0.5) / self._steps - (self._taken - 0.5)
            yield last + np.float32(weight) * (mask - last), captions if weight >= 0.5 else self._captions
            self._made += 1
        self._last, self._captions = mask, captions
        self._taken += 1

    def rest(self) -> Iterator[tuple[NDArray[np.float32], Sequence[Caption]]]:
        while self._last is not None and self._made < self._steps * self._taken:
            yield self._last, self._captions
            self._made += 1


def _file_state(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _reason(lines: list[str], code: int) -> str:
    """The line of ffmpeg's log that tells why: a full disk is reported long before the last line."""
    causes = (*FULL, *REFUSED, "Input/output error")
    stages = ("Error writing", "Error muxing", "Could not write", "av_interleaved_write_frame", "Error opening output")
    for words in (causes, stages):
        telling = [line for line in lines if any(word in line for word in words)]
        if telling:
            return telling[-1]
    return lines[-1] if lines else f"exit code {code}"


def _next_step(reason: str) -> str:
    if any(words in reason for words in FULL):
        return " Free space or choose another --out."
    return " Choose another --out." if any(words in reason for words in REFUSED) else ""
