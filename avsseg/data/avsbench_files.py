"""Single files of a dataset, decoded: pictures, truth masks, sounds. Each raises DataError naming the file."""

from __future__ import annotations

import wave
from fractions import Fraction
from pathlib import Path

import ffmpeg
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from avsseg.data.avss_classes import CLASS_NAMES, classes_of_colours
from avsseg.errors import DataError, MediaError, printable
from avsseg.media.audio import SAMPLE_RATE_HZ, heard_track, read_audio
from avsseg.media.ffmpeg import FfmpegProcess, command, media_input, run_ffmpeg
from avsseg.media.probe import VideoInfo, open_input, probe

# clips last 5 or 10 s: a longer file is none of a dataset's
LONGEST_SOUND_S = 600
LARGEST_GAP_S = 0.25  # by which the sound of a damaged video may end before the video
_UNFINISHED_SIZES = 0x7FFF0000  # in the header of a wav that was written into a pipe


def open_image(path: Path, mode: str | None) -> Image.Image:
    """The decoded picture in that PIL mode, or in its own. Raises DataError for a file that is none or is damaged."""
    try:
        with Image.open(path) as image:
            image.load()
            if mode is None:
                return image.copy()
            # Pillow cuts off at 255 what has more than eight bits
            return (_in_eight_bits(image) if image.mode[0] in "IF" else image).convert(mode)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{printable(path)}: not an image that can be read ({error})") from error


def _in_eight_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError("its grey levels have more than 16 bits")
    return Image.fromarray((values.astype(np.uint16) >> 8).astype(np.uint8))


def open_mask(path: Path, *, classes: bool, colours: bool) -> Image.Image:
    """A truth mask at its own size: mode L with values as `mask_values` takes them, or RGB for label maps in colour.

    `classes`: AVSS, whose masks name a class; otherwise whatever is not 0 is object, in modes 1, L, P and RGB alike,
    but for what is transparent.
    """
    image = open_image(path, None)
    if classes and colours:
        return image.convert("RGB")
    if classes and image.mode not in ("L", "P"):
        raise DataError(
            f"{printable(path)}: is of mode {image.mode}, a map of class indices has 8 bits and one channel"
        )
    opaque: NDArray[np.bool_] | bool = True
    if image.mode in ("LA", "RGBA"):
        # what an editor saved of a cut-out: nothing is there, whatever colour it has
        opaque = np.asarray(image.getchannel("A")) > 0
        image = image.convert(image.mode[:-1])
    # a palette picture's indices count, not its colours
    values = np.asarray(image)
    if classes:
        return Image.fromarray(values)
    marked = values.any(axis=-1) if values.ndim == 3 else values != 0
    return Image.fromarray((marked & opaque).astype(np.uint8))


def mask_values(mask: Image.Image, path: Path) -> NDArray[np.uint8]:
    """Class indices (h, w) of what `open_mask` gave, resized or not: 0 and 1, or 0..70.

    Raises DataError for an index or a colour of no class.
    """
    values = np.asarray(mask)
    if values.ndim == 3:
        return classes_of_colours(values, path)
    if values.max(initial=0) >= len(CLASS_NAMES):
        raise DataError(f"{printable(path)}: has class {values.max()}, AVSS's classes end at {len(CLASS_NAMES) - 1}")
    return values


def read_wav(path: Path) -> NDArray[np.float32]:
    """(samples,) float32 in -1..1 of a 16 kHz mono 16-bit file. Raises DataError for anything else."""
    layout, waveform = _read_pcm(path)
    if waveform is None:
        found = f"{layout[0]} Hz, {layout[1]} channels, {8 * layout[2]} bit"
        raise DataError(f"{printable(path)}: has {found}, must have 16000 Hz, 1 channel, 16 bit")
    return waveform


def read_sound(path: Path) -> NDArray[np.float32]:
    """(samples,) float32 at 16 kHz in -1..1 of a sound file of any rate; its channels are averaged.

    Raises DataError for a file that is no sound, is cut short or is empty.
    """
    try:
        _, waveform = _read_pcm(path)
    except _NotPcmError:
        waveform = None
    if waveform is None:
        waveform = _decode(path)
    if not len(waveform):
        raise DataError(f"{printable(path)}: holds no sound")
    return waveform


def video_sound(path: Path) -> NDArray[np.float32]:
    """(samples,) float32 at 16 kHz of the audio track that players play, on the container's clock.

    Raises MediaError for a video that cannot be read, DataError for one without sound.
    """
    info = probe(path)
    with read_audio(info, end_s=LONGEST_SOUND_S) as reader:
        blocks = [block.copy() for block in reader]
    if reader.failure:
        raise MediaError(path, f"its sound cannot be decoded, ffmpeg {reader.failure}", reader.last_error)
    if not blocks:
        raise DataError(f"{printable(path)}: has no sound")
    waveform = np.concatenate(blocks)
    missing_s = (info.duration_s or 0.0) - len(waveform) / SAMPLE_RATE_HZ
    if reader.error_lines and missing_s > LARGEST_GAP_S:
        # ffmpeg ends with code 0 whatever it met
        raise MediaError(
            path, f"its sound ends {missing_s:.1f} s before the video, which is damaged", reader.last_error
        )
    return waveform


def decode_video(path: Path) -> VideoInfo:
    """Decodes every picture and the track that `video_sound` hears. Raises MediaError for a video that is damaged.

    Complaints alone are no damage: a cut that begins between two key frames of its source gives some, and plays.
    """
    info = probe(path)
    streams = open_input(info, threads=1)  # whoever checks many files reads several at once
    track = heard_track(info)
    chosen = [streams["V:0"], *([] if track is None else [streams[f"a:{track}"]])]
    # a line a frame: while they come, ffmpeg does not stand still
    output = ffmpeg.output(*chosen, "pipe:1", format="framecrc", fps_mode="passthrough", t=LONGEST_SOUND_S)
    try:
        frames, lines, code = run_ffmpeg(command(output))
    except TimeoutError as error:
        raise MediaError(path, f"cannot be decoded to its end ({error})") from error
    missing_s = (info.duration_s or 0.0) - _end_s(frames)
    if code != 0 or (lines and missing_s > LARGEST_GAP_S):
        # the first complaint is the cause, the others follow from it
        reason = printable(lines[0]) if lines else f"ffmpeg ended with {code}"
        raise MediaError(path, f"is damaged ({reason})")
    return info


def _end_s(frames: str) -> float:
    """When the last picture ends, by what ffmpeg's framecrc says: "#tb 0: 1/25", then "0, dts, pts, duration, ..."."""
    tick = Fraction(0)
    end = 0
    for line in frames.splitlines():
        if line.startswith("#tb 0:"):
            tick = Fraction(line.partition(":")[2].strip())
        elif line.startswith("0,"):
            _, _, pts, duration, *_ = line.split(",")
            end = max(end, int(pts) + int(duration))
    return float(end * tick)


class _NotPcmError(DataError):
    """A file that the standard library cannot read."""


def _read_pcm(path: Path) -> tuple[tuple[int, int, int], NDArray[np.float32] | None]:
    """(rate, channels, bytes a sample), and the samples if those are AVSBench's."""
    try:
        with wave.open(str(path), "rb") as file:
            layout = (file.getframerate(), file.getnchannels(), file.getsampwidth())
            expected = file.getnframes() * layout[1] * layout[2]
            data = file.readframes(file.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        raise _NotPcmError(f"{printable(path)}: not a wav file that can be read ({error})") from error
    if len(data) < expected < _UNFINISHED_SIZES:
        raise DataError(f"{printable(path)}: is cut short, {len(data)} of {expected} bytes of sound are there")
    if layout != (SAMPLE_RATE_HZ, 1, 2):
        return layout, None
    return layout, np.frombuffer(data[: len(data) // 2 * 2], "<i2").astype(np.float32) / np.float32(32768)


def _decode(path: Path) -> NDArray[np.float32]:
    output = ffmpeg.output(
        media_input(path)["a:0"], "pipe:1", format="s16le", ac=1, ar=SAMPLE_RATE_HZ, t=LONGEST_SOUND_S
    )
    samples = bytearray()
    block = bytearray(1 << 18)
    with FfmpegProcess(command(output)) as process:
        while count := process.read_into(memoryview(block)):
            samples += block[:count]
        code = process.wait()
        lines, _ = process.messages()
    if code != 0 or lines:
        reason = printable(lines[-1]) if lines else f"ffmpeg ended with {code}"
        raise DataError(f"{printable(path)}: not a sound that can be read ({reason})")
    return np.frombuffer(samples[: len(samples) // 2 * 2], "<i2").astype(np.float32) / np.float32(32768)
