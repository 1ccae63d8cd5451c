"""Videos of pictures that Python draws, with the sound of the video that they are about."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import TracebackType
from typing import Any

import ffmpeg
import numpy as np
from numpy.typing import NDArray

from avsseg.errors import EnvironmentFault, OutputError, printable
from avsseg.media.audio import heard_track
from avsseg.media.ffmpeg import STALL_S, FfmpegProcess, command, encoders, file_url
from avsseg.media.frames import on_container_clock, rational, seek_point
from avsseg.media.probe import VideoInfo, open_input
from avsseg.media.render import FULL, REFUSED
from avsseg.media.render_graph import H264_ENCODERS

READ_BEYOND_S = 1.0  # of the sound: frames of codecs reach over an end


class DrawnVideo:
    """Writes pictures of (height, width), both even, as an MP4 of `frame_rate`, with the sound of `info` that is heard.

    `audio_track` counts from 1; None is the one that players play.

    Picture j covers ``[start_s + j / frame_rate, start_s + (j + 1) / frame_rate)`` of `info` on the container's clock,
    and the sound is that of ``[start_s, end_s)``, re-encoded as AAC. The file is written to exactly `path`; errors
    speak of `display_path`.

    Leaving the `with` block normally completes the file; leaving it by an exception ends ffmpeg and leaves what was
    written for the caller to remove. Raises `OutputError`, with ffmpeg's reason, and `EnvironmentFault` where ffmpeg
    has no encoder.
    """

    def __init__(
        self,
        info: VideoInfo,
        path: Path,
        *,
        width: int,
        height: int,
        frame_rate: float,
        start_s: float = 0.0,
        end_s: float | None = None,
        audio_track: int | None = None,
        display_path: Path | None = None,
        stall_s: float = STALL_S,
    ) -> None:
        self._shape = (height, width, 3)
        self._name = printable(display_path or path)
        self._stall_s = stall_s
        pictures = ffmpeg.input(
            "pipe:0",
            format="rawvideo",
            pixel_format="rgb24",
            video_size=(width, height),
            framerate=str(rational(frame_rate)),
        )
        pictures = pictures.filter("scale", out_color_matrix="bt709", out_range="tv").filter("format", "yuv420p")
        pictures = pictures.filter("setparams", color_primaries="bt709", color_trc="bt709", colorspace="bt709")
        arguments = _arguments(info, pictures, path, start_s, end_s, audio_track)
        self._process = FfmpegProcess(arguments, stdin=True, stall_s=stall_s)

    def write(self, picture: NDArray[np.uint8]) -> None:
        """Add a picture, RGB (height, width, 3). Raises `OutputError` if ffmpeg failed, `ValueError` on the shape."""
        if picture.shape != self._shape or picture.dtype != np.uint8:
            raise ValueError(f"picture is {picture.dtype} {picture.shape}, the video was opened for {self._shape}")
        try:
            self._process.write(np.ascontiguousarray(picture).data.cast("B"))
        except OSError:
            self._finish()
            raise OutputError(f"{self._name}: ffmpeg ended before the video did. Run it again") from None

    def close(self) -> None:
        """Complete the file: raises `OutputError` if that fails."""
        try:
            self._finish()
        finally:
            self._process.close()

    def __enter__(self) -> DrawnVideo:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._process.close()

    def _finish(self) -> None:
        with contextlib.suppress(OSError):
            self._process.close_stdin()
        code = self._process.wait()
        lines, _ = self._process.messages()
        causes = [line for line in lines if any(words in line for words in (*FULL, *REFUSED))]
        reason = (causes or lines or [f"exit code {code}"])[-1].rstrip(".")
        if self._process.stalled:
            raise OutputError(f"{self._name}: encoding made no progress for {self._stall_s:g} s. Run it again")
        if code != 0:
            hint = "Free space or choose another --out" if causes else "The sound may be damaged"
            raise OutputError(f"{self._name}: ffmpeg could not write the video: {reason}. {hint}")


def _arguments(
    info: VideoInfo, pictures: Any, path: Path, start_s: float, end_s: float | None, audio_track: int | None
) -> list[str]:
    available = encoders()
    encoder, options = next(((name, opts) for name, opts in H264_ENCODERS if name in available), ("", {}))
    if not encoder:
        raise EnvironmentFault(
            "This ffmpeg has no encoder for an .mp4 video. Run `pip install imageio-ffmpeg` and unset AVSSEG_FFMPEG."
        )
    # pictures as they come: ffmpeg 5.1 would make a constant rate of the fine time base, 12000 pictures for one
    options = {"format": "mp4", "movflags": "+faststart", "fps_mode": "passthrough", "c:v": encoder, **options}
    track = heard_track(info, audio_track)
    if track is None:
        return command(ffmpeg.output(pictures, file_url(path), **options))
    seek_s = seek_point(start_s)
    bounds = {"ss": f"{seek_s:.6f}"} if seek_s else {}
    if end_s is not None:
        bounds["t"] = f"{end_s - seek_s + READ_BEYOND_S:.6f}"
    source = open_input(info, **bounds)
    trim = {"start": f"{start_s - seek_s:.6f}"} | ({"end": f"{end_s - seek_s:.6f}"} if end_s is not None else {})
    # gaps are filled, and a track that starts late keeps its start, so that the cursor stays where the sound is
    sound = source[f"a:{track}"].filter("aresample", **{"async": 1}).filter("atrim", **trim)
    sound = sound.filter("asetpts", f"PTS-{start_s - seek_s:.6f}/TB").filter("aformat", channel_layouts="stereo|mono")
    output = ffmpeg.output(pictures, sound, file_url(path), **options, **{"c:a": "aac", "b:a": "160k"})
    return command(on_container_clock(info, source, output))
