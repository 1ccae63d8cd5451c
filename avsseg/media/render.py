"""The overlay: a video with a colour laid over its masks, drawn by one ffmpeg process.

Masks go to ffmpeg's stdin as a stream of small RGBA pictures; scaling, blending, encoding and the copying of the sound
happen inside ffmpeg, so that no full-size frame passes through Python.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import ffmpeg
import numpy as np
from numpy.typing import ArrayLike, NDArray

from avsseg.errors import EnvironmentFault, MediaError, OutputError, UsageError, printable
from avsseg.media.ffmpeg import STALL_S, FfmpegProcess, command, encoders, file_url, media_input
from avsseg.media.frames import audio_tracks, check_range, rational, seek_point, tone_map
from avsseg.media.probe import VideoInfo, can_tone_map, probe

LINEAR_MASKS_PER_S = 10  # as smooth as 30 to the eye, at a third of the scaling cost
LONGEST_S = 4 * 3600.0  # of an overlay whose end is not known; 1/120000 s in 31 bits, the longest frame of MP4, is 5 h
MUXERS = {"mp4": "mp4", "mov": "mov", "mkv": "matroska", "webm": "webm"}

# What each container holds so that common players play it; Matroska holds whatever comes.
COPIED_AUDIO = {
    "mp4": frozenset({"aac", "mp3", "mp2", "ac3", "eac3", "opus", "alac"}),
    "mov": frozenset({"aac", "mp3", "ac3", "eac3", "alac", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be"}),
    "webm": frozenset({"opus", "vorbis"}),
}

# What ffmpeg says of a place that cannot take a file
FULL = ("No space left", "Disk quota exceeded", "File too large")
REFUSED = ("Permission denied", "Read-only file system", "Operation not permitted")

ADTS_CONTAINERS = frozenset({"mpegts", "mpeg", "wtv"})

# The encoder's clock ticks once a frame by default, which moves the frames of a variable frame rate, or of a picture
# that starts between two ticks. All common rates, 24000/1001 to 120, divide 120,000.
EXACT_TIMES = {"enc_time_base": "1:120000"}

H264_ENCODERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("libx264", {"preset": "veryfast", "crf": 20, **EXACT_TIMES}),
    ("libopenh264", {"b:v": "6M", **EXACT_TIMES}),
    ("h264_videotoolbox", {"q:v": 60, **EXACT_TIMES}),
    ("h264_mf", {"rate_control": "quality", "quality": 70, **EXACT_TIMES}),
    ("mpeg4", {"q:v": 3}),  # its time base has 16 bits
)
VP9_ENCODERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("libvpx-vp9", {"crf": 31, "b:v": 0, "deadline": "realtime", "cpu-used": 5, "row-mt": 1, **EXACT_TIMES}),
    ("libvpx", {"crf": 10, "b:v": "4M", "deadline": "realtime", "cpu-used": 5, **EXACT_TIMES}),
)

Interpolation = Literal["hold", "linear"]


class OverlayRenderer:
    """Writes `info`'s video with `colour` laid over the masks it is given, in order, through `write`.

    Mask k covers ``[start_s + k / rate, start_s + (k + 1) / rate)``; with ``interpolate="linear"`` the strength runs
    linearly between the middles of those intervals. The last mask stays to the end of the video, and masks beyond it
    are ignored. Masks may come as slowly as they like.

    Size, frame timestamps, orientation, pixel aspect, colour tags and all audio tracks are those of the input; odd
    sizes grow by one pixel, and audio that the container cannot hold is re-encoded; `warnings` tells of such changes.
    The file is written to exactly `output_path`, in the format of `container` ("mp4", "mkv", "mov" or "webm"); errors
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
        colour: tuple[int, int, int],
        opacity: float,
        container: str = "mp4",
        interpolate: Interpolation = "hold",
        start_s: float = 0.0,
        end_s: float | None = None,
        display_path: Path | None = None,
        stall_s: float = STALL_S,
    ) -> None:
        if container not in MUXERS:
            raise UsageError(f"an overlay cannot be a .{container} file. Choose one of: {', '.join(sorted(MUXERS))}.")
        if not 0 <= opacity <= 1:
            raise UsageError(f"opacity {opacity:g} is not between 0 and 1.")
        check_range(info, rate=rate, start_s=start_s, end_s=end_s)
        self._path = Path(output_path)
        self._name = printable(display_path or self._path)
        self._stall_s = stall_s
        self._shape = (mask_height, mask_width)
        steps = max(2, int(LINEAR_MASKS_PER_S / rate)) if interpolate == "linear" else 1
        self._blend = _Interpolator(steps)
        self._opacity = np.float32(opacity * 255)
        self._picture = np.zeros((mask_height, mask_width, 4), np.uint8)
        self._picture[..., :3] = colour
        masks = ffmpeg.input(
            "pipe:0",
            format="rawvideo",
            pixel_format="rgba",
            video_size=self._shape[::-1],
            framerate=str(rational(rate) * steps),
        )
        output, self.warnings = _output(info, self._path, masks, container, start_s, end_s)
        arguments = command(output)
        self._process: FfmpegProcess | None = FfmpegProcess(
            arguments, stdin=True, stall_s=stall_s, progress=functools.partial(_file_state, self._path)
        )
        self._sent = 0  # pictures, `steps` for each mask
        self._sent_per_s = rate * steps
        self._is_part = start_s > 0 or end_s is not None
        self._announced_s = math.inf if info.duration_s is None else info.duration_s
        self._input_ended = False  # the video was over before the masks were

    def write(self, mask: ArrayLike) -> None:
        """Add the next mask: (mask_height, mask_width), 0 for clear to 1 for full strength, of any number type.

        Raises `OutputError` if ffmpeg failed or stands still, `ValueError` for another shape.
        """
        strength = np.asarray(mask, np.float32)
        if strength.shape != self._shape:
            raise ValueError(f"mask is {strength.shape}, the renderer was opened for {self._shape}")
        for step in self._blend.add(strength):
            self._send(step)

    def close(self) -> None:
        """Complete the file: raises `OutputError` if that fails. May be called twice."""
        if self._process is None:
            return
        try:
            for step in self._blend.rest():
                self._send(step)
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

    def __enter__(self) -> OverlayRenderer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.kill()

    def _send(self, strength: NDArray[np.float32]) -> None:
        if self._process is None:
            raise ValueError("the renderer is closed")
        if self._input_ended:
            return
        np.rint(np.clip(strength, 0, 1) * self._opacity, out=self._picture[..., 3], casting="unsafe")
        self._send_picture()

    def _send_picture(self) -> None:
        assert self._process is not None
        self._sent += 1
        try:
            self._process.write(self._picture.data.cast("B"))
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
        reason = _reason(lines, code).replace(printable(self._path), self._name)
        if self._process.stalled:
            raise OutputError(
                f"{self._name}: rendering made no progress for {self._stall_s:g} s. The input may be damaged."
            )
        if killed:
            raise OutputError(f"{self._name}: ffmpeg {self._process.failure()} while it wrote the overlay. {killed}")
        if code != 0 or any(line.startswith("Error writing trailer") for line in lines):
            raise OutputError(f"{self._name}: ffmpeg could not write the overlay: {reason}.{_next_step(reason)}")
        if _file_state(self._path) is None:
            raise OutputError(f"{self._name}: ffmpeg wrote no overlay: {reason}.{_next_step(reason)}")
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
    after the last the nearest mask holds. One step leaves the masks as they are.
    """

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._last: NDArray[np.float32] | None = None
        self._taken = 0
        self._made = 0

    def add(self, mask: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
        last = mask if self._last is None else self._last
        while 2 * self._made + 1 <= self._steps * (2 * self._taken + 1):
            weight = (self._made + 0.5) / self._steps - (self._taken - 0.5)
            yield last + np.float32(weight) * (mask - last)
            self._made += 1
        self._last = mask
        self._taken += 1

    def rest(self) -> Iterator[NDArray[np.float32]]:
        while self._last is not None and self._made < self._steps * self._taken:
            yield self._last
            self._made += 1


def _output(
    info: VideoInfo, path: Path, masks: Any, container: str, start_s: float, end_s: float | None
) -> tuple[Any, tuple[str, ...]]:
    """The ffmpeg-python output node: graph, encoders and container; and what of it the user should know."""
    seek_s = seek_point(start_s)
    source = media_input(info.path, **{"reinit_filter:v": 0}, **({"ss": f"{seek_s:.6f}"} if seek_s else {}))
    # Scaling does nothing to most videos, and keeps those in shape that change their size on the way.
    picture = tone_map(info, source["V:0"]).filter("scale", info.width, info.height)
    # To planes first, at low resolution: four planes scale faster than packed RGBA.
    masks = masks.filter("scale", "iw", "ih", out_color_matrix=_color_matrix(info)).filter("format", "yuva420p")
    masks = masks.filter("scale", info.width, info.height, flags="bilinear")
    if start_s:
        masks = masks.filter("settb", "1/1000000").filter("setpts", f"PTS+{round((start_s - seek_s) * 1e6)}")
    right, bottom = info.width % 2, info.height % 2
    if right or bottom:
        # 4:2:0 video has even sides: the last column and row are repeated. Until then in 4:4:4, since on subsampled
        # pictures the filters leave out half a chroma sample, and with it that column and row.
        picture = picture.filter("format", "yuv444p").filter("pad", info.width + right, info.height + bottom)
        picture = picture.filter("fillborders", right=right, bottom=bottom, mode="smear")
    picture = ffmpeg.filter([picture, masks], "overlay", shortest=1)
    picture = picture.filter("format", "yuv420p")
    tracks, audio_options, warnings = _audio(info, source, container)
    if info.is_hdr and not can_tone_map():
        warnings.append("the HDR picture is kept as it is in 8 bits and may look wrong; an ffmpeg with zscale maps it")
    options: dict[str, Any] = {"fps_mode": "passthrough", "max_muxing_queue_size": 4096, **audio_options}
    options["max_error_rate"] = 1  # however damaged, what can be read is rendered
    encoder, encoder_options = _video_encoder(container)
    options.update({"c:v": encoder, **encoder_options})
    preferred = _encoder_candidates(container)[0][0]
    if encoder != preferred:
        warnings.append(f"this ffmpeg has no {preferred}; the overlay is encoded with {encoder}")
    if start_s:
        options["ss"] = f"{start_s - seek_s:.6f}"
    if end_s is None and info.duration_s is not None:
        # Timestamps of a damaged file may jump to far beyond its end, and no container takes them there. The duration
        # that it announces may be far too short, though.
        end_s = max(1.5 * info.duration_s + 60, LONGEST_S)
    if end_s is not None:
        options["t"] = f"{end_s - start_s:.6f}"
    if MUXERS[container] in ("mp4", "mov"):
        options["movflags"] = "+faststart"
    output = ffmpeg.output(picture, *tracks, file_url(path), format=MUXERS[container], **options)
    return output, tuple(warnings)


def _color_matrix(info: VideoInfo) -> str:
    """The name that ffmpeg's scale filter has for the matrix of the picture under the masks."""
    if info.is_hdr and can_tone_map():
        return "bt709"
    known = {"bt709": "bt709", "bt2020nc": "bt2020", "bt2020c": "bt2020", "smpte240m": "smpte240m", "fcc": "fcc"}
    return known.get(info.color_space or "", "bt601")


def _encoder_candidates(container: str) -> tuple[tuple[str, dict[str, Any]], ...]:
    return VP9_ENCODERS if container == "webm" else H264_ENCODERS


def _video_encoder(container: str) -> tuple[str, dict[str, Any]]:
    candidates = _encoder_candidates(container)
    available = encoders()
    for name, options in candidates:
        if name in available:
            return name, options
    raise EnvironmentFault(
        f"This ffmpeg has no encoder for .{container} overlays ({', '.join(name for name, _ in candidates)}). "
        "Run `pip install imageio-ffmpeg` and unset AVSSEG_FFMPEG."
    )


def _audio(info: VideoInfo, source: Any, container: str) -> tuple[list[Any], dict[str, Any], list[str]]:
    """The audio tracks to map, how each is coded (copied wherever the container takes it), what is not as it was."""
    warnings: list[str] = []
    tracks: list[Any] = []
    options: dict[str, Any] = {}
    for track, index in enumerate(audio_tracks(info)):
        codec = info.audio_codecs[index]
        tracks.append(source[f"a:{index}"])
        if container not in COPIED_AUDIO or codec in COPIED_AUDIO[container]:
            options[f"c:a:{track}"] = "copy"
            if codec == "aac" and info.container in ADTS_CONTAINERS:
                # The muxer inserts this filter itself, but then one damaged packet ends the whole file.
                options[f"bsf:a:{track}"] = "aac_adtstoasc"
        elif container == "webm":
            options[f"c:a:{track}"] = "libopus"
            # libopus refuses layouts such as 5.1(side), which most 5.1 tracks have.
            options[f"filter:a:{track}"] = "aformat=channel_layouts=7.1|5.1|stereo|mono"
        else:
            options[f"c:a:{track}"] = "aac"
        if options[f"c:a:{track}"] != "copy":
            written = "Opus" if container == "webm" else "AAC"
            warnings.append(f"a .{container} file cannot hold its {codec} audio; it is re-encoded as {written}")
    if len(tracks) < len(info.audio_codecs):
        warnings.append("an audio track of unknown codec is left out of the overlay")
    return tracks, options, list(dict.fromkeys(warnings))


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
