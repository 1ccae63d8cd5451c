"""What is in a media file: its size on screen, length, sound, and whether a picture can be decoded at all."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import ffmpeg

from avsseg.errors import EnvironmentFault, MediaError, printable
from avsseg.media.ffmpeg import (
    INSTALL_HINT,
    STALL_S,
    STOPPED_HINT,
    FfmpegProcess,
    command,
    filters,
    find_ffmpeg,
    media_input,
    run_ffmpeg,
)

HDR_TRANSFERS = frozenset({"smpte2084", "arib-std-b67"})  # PQ and HLG
ALPHA_FORMATS = r", (?:yuva|gbrap|rgba|bgra|argb|abgr|ya\d|yaf|ayuv|vuya|uyva|pal8)"  # of pixels, with transparency

# A recording cut before a far key frame, or whose sound begins late, says what its tracks are only after the 5 s or
# 5 MB that ffmpeg looks at by default.
FURTHER = {"analyzeduration": 60_000_000, "probesize": 100_000_000}  # microseconds, bytes

LENGTH = re.compile(r"Duration: (\d+):(\d+):(\d+\.\d+)(?:, start: (-?\d+\.\d+))?")
TIMECODE = re.compile(r"timecode +: (\d\d:\d\d:\d\d[:;.]\d\d)$", flags=re.IGNORECASE)

JPEGS_WITHIN = 1 << 24  # bytes, several pictures of 8K

_STILL_IMAGES = (
    (b"\x89PNG", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"8BPS", "Photoshop"),
)


@dataclass(frozen=True)
class VideoInfo:
    """One video file, as it is shown.

    Times everywhere in `avsseg.media` are seconds on the container's clock: 0 is the earliest start of any stream, so
    a picture that starts 1.5 s after the sound starts at 1.5.
    """

    path: Path
    width: int  # pixels after rotation metadata is applied
    height: int
    sample_aspect_ratio: Fraction  # width / height of one pixel after rotation; 1 where the file does not say
    duration_s: float | None  # of the longest stream; None if the file does not say
    frame_rate: float | None  # average frames a second
    has_audio: bool  # that can be decoded
    is_hdr: bool  # PQ or HLG transfer
    warnings: tuple[str, ...]
    audio_codecs: tuple[str, ...]  # one for every audio track, such as ("aac", "pcm_s16le"); "none" if unknown
    color_range: str | None  # "tv" or "pc"
    color_space: str | None  # matrix coefficients, such as "bt709"
    color_primaries: str | None
    color_transfer: str | None
    container: str  # ffmpeg's name, such as "mov,mp4,m4a,3gp,3g2,mj2"
    has_other_tracks: bool = (
        False  # besides the first of picture and sound, such as subtitles: `duration_s` may be theirs
    )
    looked_further: bool = False  # what a track is did not show where ffmpeg looks by default
    picture_start_s: float = 0.0  # when the first picture comes
    default_audio: int = 0  # the audio track that players play, from 0; of a known codec where there is one
    mono_audio: tuple[int, ...] = ()  # the audio tracks with one channel
    has_alpha: bool = False  # the picture has transparency of its own
    timecode: str | None = None  # of the first frame, such as "01:00:00:00"


def open_input(info: VideoInfo, **options: Any) -> Any:
    """The ffmpeg-python input node of a video that was probed."""
    return media_input(info.path, **(FURTHER if info.looked_further else {}), **options)


def probe(path: Path | str, *, stall_s: float = STALL_S) -> VideoInfo:
    """Describe the video at `path` after decoding its first picture.

    Raises `MediaError` for a path that is missing, a folder, unreadable or empty, for a file that is not media or holds
    a still image, and for one without a picture that can be decoded. `warnings` tells of a missing audio track.
    """
    path = Path(path)
    start = _check_file(path)
    decoded, log, code = _first_picture(path, stall_s)
    described = _input_lines(log)
    looked_further = any(_is_unknown(track) for track in _tracks(described, "(?:Video|Audio)"))
    if looked_further:
        decoded, log, code = _first_picture(path, stall_s, **FURTHER)
        described = _input_lines(log)
    size = re.search(r"^#dimensions 0: (\d+)x(\d+)", decoded, flags=re.MULTILINE)
    has_frame = re.search(r"^0,", decoded, flags=re.MULTILINE) is not None
    if size is None or not has_frame:
        stopped = next((line for line in log if "received signal" in line), "")
        if code < 0 or stopped:
            number = -code if code < 0 else int(re.sub(r"\D", "", stopped) or 15)
            raise MediaError(path, f"ffmpeg was killed by signal {number} while it opened the file", STOPPED_HINT)
        _check_program(stall_s)
        raise _failure(path, start, described, log)
    aspect = re.search(r"^#sar 0: (\d+)/(\d+)", decoded, flags=re.MULTILINE)
    video = next(iter(_tracks(described, "Video")), "")
    audio = _tracks(described, "Audio")
    # a track of which nothing is known can be neither decoded nor copied: often there is none, only its entry
    audio_codecs = tuple("none" if _is_unknown(track) else re.split(r" Audio: (\w+)", track)[1] for track in audio)
    primaries, transfer, matrix, color_range = _colours(video)
    is_hdr = transfer in HDR_TRANSFERS
    return VideoInfo(
        path=path,
        width=int(size[1]),
        height=int(size[2]),
        sample_aspect_ratio=_positive_fraction(aspect[1], aspect[2]) if aspect else Fraction(1),
        duration_s=_duration(described, log),
        frame_rate=_frame_rate(video),
        has_audio=any(codec != "none" for codec in audio_codecs),
        is_hdr=is_hdr,
        warnings=_warnings(audio_codecs, is_hdr=is_hdr),
        audio_codecs=audio_codecs,
        color_range=color_range,
        color_space=matrix,
        color_primaries=primaries,
        color_transfer=transfer,
        container=next((m[1] for line in described if (m := re.match(r"Input #0, (\S+), from", line))), ""),
        has_other_tracks=len(_tracks(described, r"\w+")) > len(audio[:1]) + 1,
        looked_further=looked_further,
        picture_start_s=_first_time(decoded),
        default_audio=_default_audio(audio),
        mono_audio=tuple(index for index, track in enumerate(audio) if re.search(r" Hz, (?:mono|1 channels)\b", track)),
        timecode=next((m[1] for line in described if (m := TIMECODE.match(line))), None),
        has_alpha=re.search(ALPHA_FORMATS, video) is not None,
    )


def can_tone_map() -> bool:
    """True if this ffmpeg has the filters that map HDR to a standard range."""
    return filters() >= {"zscale", "tonemap"}


def _first_picture(path: Path, stall_s: float, **options: Any) -> tuple[str, list[str], int]:
    """What ffmpeg says of the first picture it decodes, its log, its exit code."""
    picture = media_input(path, **options)["V:0"]  # capital V: cover art is no video
    arguments = command(
        ffmpeg.output(picture, "pipe:1", format="framecrc", **{"frames:v": 1, "fps_mode": "passthrough"}),
        loglevel="info",
    )
    try:
        decoded, log, code = run_ffmpeg(arguments, stall_s=stall_s)
    except TimeoutError as error:
        raise MediaError(path, f"no picture could be decoded within {stall_s:g} s", _look(path)) from error
    # A name with line breaks could pass for lines of the log; ffmpeg writes other control characters as question marks.
    shown = re.sub(r"[\x00-\x08\x0e-\x1f]", "?", os.fsencode(path).decode("utf-8", "replace"))
    name = "\n".join(line.strip() for line in f"file:{shown}".split("\n") if line.strip())
    return decoded, "\n".join(log).replace(name, "INPUT").split("\n"), code


def _first_time(decoded: str) -> float:
    """Seconds at which ffmpeg's list of checksums has its first picture."""
    base = re.search(r"^#tb 0: (\d+)/([1-9]\d*)", decoded, flags=re.MULTILINE)
    first = re.search(r"^0, *-?\d+, *(-?\d+),", decoded, flags=re.MULTILINE)
    return max(0.0, float(int(first[1]) * Fraction(int(base[1]), int(base[2])))) if base and first else 0.0


def _is_unknown(track: str) -> bool:
    """Whether ffmpeg's line on a track lacks what decoding it takes: the size, or the rate and the channels."""
    known = r", \d+x\d+" if " Video: " in track else r", \d+ Hz, (?!0 channels)"
    return re.search(known, track) is None


def _default_audio(audio: list[str]) -> int:
    """The first track that can be decoded and that the container flags as the one to play, else the first such."""
    known = [index for index, track in enumerate(audio) if not _is_unknown(track)]
    return next((index for index in known if "(default)" in audio[index]), known[0] if known else 0)


def _check_program(stall_s: float) -> None:
    """Raise `EnvironmentFault` if ffmpeg fails at the simplest picture there is: then no file is to blame."""
    picture = ffmpeg.input("pipe:0", format="rawvideo", pixel_format="gray", video_size=(16, 16))
    with FfmpegProcess(
        command(ffmpeg.output(picture, "pipe:1", format="rawvideo")), stdin=True, stall_s=stall_s
    ) as test:
        with contextlib.suppress(OSError):
            test.write(bytes(256))
            test.close_stdin()
        if test.read_into(memoryview(bytearray(256))) == 256:
            return
        test.wait()
        lines, _ = test.messages()
    said = f" ({lines[-1]})" if lines else ""
    program = find_ffmpeg()
    remedy = "Correct or unset AVSSEG_FFMPEG." if program.source == "AVSSEG_FFMPEG" else INSTALL_HINT
    raise EnvironmentFault(f"{printable(program.path)} fails whatever it is given{said}. {remedy}")


def _check_file(path: Path) -> bytes:
    """The first bytes of the file."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise MediaError(path, "is a folder, not a video", "Name a file; `avsseg run -r` takes all videos inside.")
        if not stat.S_ISREG(status.st_mode):
            raise MediaError(path, "is not a regular file", "Save the stream to a file first.")
        with path.open("rb") as file:
            start = file.read(4096)
    except FileNotFoundError as error:
        raise MediaError(path, "no such file", "Check the path.") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise MediaError(path, f"cannot be read ({reason})", "Check its permissions.") from error
    if not start:
        raise MediaError(path, "the file is empty (zero bytes)", "Copy or record it again.")
    kind = _still_image(start)
    if kind and not (kind == "JPEG" and _is_motion_jpeg(path)):
        raise MediaError(path, f"is a still {kind} image, which has no time axis and no sound", "Give a video file.")
    return start


def _still_image(start: bytes) -> str | None:
    if start[4:8] == b"ftyp" and start[8:12] in (b"heic", b"heix", b"mif1", b"avif"):
        return "HEIF"
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WebP"
    if b"acTL" in start:  # an animated PNG
        return None
    return next((kind for magic, kind in _STILL_IMAGES if start.startswith(magic)), None)


def _is_motion_jpeg(path: Path) -> bool:
    """Whether more than one other JPEG follows, as in a stream; photographs may have one for bright screens."""
    with path.open("rb") as file:
        return file.read(JPEGS_WITHIN).count(b"\xff\xd9\xff\xd8\xff") > 1


def _input_lines(log: list[str]) -> list[str]:
    """The part of ffmpeg's log that describes the input, before the lines on the streams it will write."""
    end = next((i for i, line in enumerate(log) if line.startswith(("Stream mapping:", "Output #0"))), len(log))
    return log[:end]


def _tracks(described: list[str], kind: str) -> list[str]:
    """The lines of the tracks of one kind, without cover art, in the order in which ``0:V:n`` and ``0:a:n`` count them.

    ffmpeg lists the tracks of MPEG-TS by programme, in any order, and twice if two programmes share one.
    """
    found = (re.match(rf"Stream #0:(\d+)\S* {kind}: ", line) for line in described)
    lines = {int(match[1]): match.string for match in found if match and "(attached pic)" not in match.string}
    return [lines[number] for number in sorted(lines)]


def _warnings(audio_codecs: tuple[str, ...], *, is_hdr: bool) -> tuple[str, ...]:
    warnings = []
    if not audio_codecs:
        warnings.append("no audio track; segmented as silent")
    elif all(codec == "none" for codec in audio_codecs):
        warnings.append("the audio track is empty or of an unknown codec; segmented as silent")
    if is_hdr and not can_tone_map():
        warnings.append("HDR picture, and this ffmpeg has no zscale filter; its colours look washed out to the model")
    return tuple(warnings)


def _duration(described: list[str], log: list[str]) -> float | None:
    """Seconds from the start of the first stream, rounded to 0.01 by ffmpeg; a guess from the bit rate is none."""
    if any("Estimating duration from bitrate" in line for line in log):
        return None
    found = next((m for line in described if (m := LENGTH.match(line))), None)
    if found is None:
        return None
    seconds = int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3])
    start_s = float(found[4] or 0)
    from_zero = ("matroska,", "nut,", "mov,") if (0,) < find_ffmpeg().version < (6, 1) else ("matroska,", "nut,")
    if 0 < start_s < seconds and described[0].removeprefix("Input #0, ").startswith(from_zero):
        seconds -= start_s  # what these tell is when the longest stream ends
    return seconds if seconds > 0 else None


NTSC_RATES = (24, 30, 48, 60, 120)  # times 1000 / 1001


def _frame_rate(video: str) -> float | None:
    found = re.search(r", (\d+(?:\.\d+)?)(k?) (?:fps|tbr)", video)
    if found is None:
        return None
    rate = float(found[1]) * (1000 if found[2] else 1)
    # ffmpeg prints two decimals, by which an hour of film would drift by 14 frames
    exact = next((n * 1000 / 1001 for n in NTSC_RATES if abs(rate - n * 1000 / 1001) < 0.005), None)
    return exact or rate


def _colours(video: str) -> tuple[str | None, str | None, str | None, str | None]:
    """Primaries, transfer, matrix and range of ``yuv420p10le(tv, bt2020nc/bt2020/smpte2084, progressive)``."""
    noted = re.search(r"Video: .*?, \w+\(([^()]*)\)", video)
    matrix = primaries = transfer = color_range = None
    for part in (part.strip() for part in noted[1].split(",")) if noted else ():
        if part in ("tv", "pc"):
            color_range = part
        elif part.count("/") == 2:
            matrix, primaries, transfer = (None if name == "unknown" else name for name in part.split("/"))
        elif re.match(r"(bt|smpte|gbr|fcc|ycgco|ictcp)", part):
            matrix = primaries = transfer = part  # ffmpeg writes one name where all three agree
    return primaries, transfer, matrix, color_range


def _positive_fraction(numerator: str, denominator: str) -> Fraction:
    return Fraction(int(numerator), int(denominator)) if int(numerator) and int(denominator) else Fraction(1)


def _failure(path: Path, start: bytes, described: list[str], log: list[str]) -> MediaError:
    text = "\n".join(log)
    if _tracks(described, "Video"):
        return MediaError(path, "no picture can be decoded, the file is damaged or its codec unknown", _look(path))
    if _tracks(described, "Audio"):
        return MediaError(path, "has sound but no picture", "Give a video file.")
    if "Format not on whitelist" in text:
        return MediaError(path, "is not a kind of video file that can be read", "Convert it to MP4 or MKV.")
    if "moov atom not found" in text and start[4:8] in (b"ftyp", b"mdat", b"wide", b"free", b"skip"):
        return MediaError(
            path, "is incomplete: the index at its end (moov atom) is missing", "Copy or download it again."
        )
    if described and described[0].startswith("Input #0"):
        return MediaError(path, "has no picture", _look(path))
    return MediaError(path, "is not a video, or is too damaged to be read as one", _look(path))


def _look(path: Path) -> str:
    return f"To see what it holds: ffmpeg -i {printable(path)}"
