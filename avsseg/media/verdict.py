"""What became of reading a video: what of it is missing, damaged or odd, in words."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from avsseg.media.audio import SAMPLE_RATE_HZ, SILENT_PEAK, AudioReader
from avsseg.media.frames import FrameSampler, audio_tracks
from avsseg.media.picture_end import PictureEnd
from avsseg.media.probe import VideoInfo

MISSING_TOLERANCE_S = 0.25  # sound may outlast the picture by its last packet without anything being amiss


@dataclass(frozen=True)
class Verdict:
    """What a video that has been read through is like.

    Attributes:
        missing_s: seconds that the file announces but does not hold.
        damaged: whether the decoder complained or came to a bad end.
        warnings: of what is missing or damaged, one line each.
        notes: of what is odd about a whole file.
        picture_end: where the picture ends, if that was reached.
    """

    missing_s: float
    damaged: bool
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    picture_end: PictureEnd | None


def judge(
    info: VideoInfo,
    frames: FrameSampler,
    sound: AudioReader,
    *,
    rate: float,
    start_s: float,
    end_s: float | None,
    heard_until: Callable[[float], float],
) -> Verdict:
    """Compares what was read with what the file announces; ffmpeg ends with code 0 whatever it met.

    `heard_until` reads the sound on to a time and returns where it ends, that time at the latest. Ends the sound.
    """
    read_s = start_s + frames.count / rate
    # MPEG streams announce nothing: ffmpeg takes the last timestamp, to which time may have jumped.
    length_s = None if info.container in ("mpegts", "mpeg") else info.duration_s
    announced_s = read_s if length_s is None else min(length_s, end_s or length_s)
    missing_s = max(0.0, announced_s - read_s)
    heard_s = heard_until(announced_s) if missing_s > MISSING_TOLERANCE_S else announced_s
    sound.finish()  # it may go on, and has told of its damage at its end alone
    # A picture that ends before another track does is whole, unless the decoder complained.
    another_lasts = info.has_other_tracks or (info.has_audio and announced_s - heard_s <= 1.0)
    whole = another_lasts and not (frames.error_lines or frames.failure)
    if missing_s <= MISSING_TOLERANCE_S or whole or frames.stands_still:
        missing_s = 0.0
    warnings = []
    if frames.failure:
        warnings.append(f"ffmpeg {frames.failure} after {frames.count} masks; the rest is missing")
    if frames.stands_still:
        warnings.append(f"the picture stands still from {read_s:.1f} s on, past its likely end; cut there")
    if sound.failure:
        heard = f"{sound.samples / SAMPLE_RATE_HZ:.1f} s of sound"
        warnings.append(f"ffmpeg {sound.failure} after {heard}; the rest counts as silent")
    damage = []  # of the file: one warning, however many signs of it
    if missing_s:
        damage.append(f"truncated: at least {missing_s:.1f} s of {announced_s:.1f} s are missing at the end")
    if frames.error_lines:
        damage.append(f"damaged picture: {_complaints(frames.error_lines, frames.last_error)}")
    if sound.error_lines:
        damage.append(f"damaged sound: {_complaints(sound.error_lines, sound.last_error)}")
    if damage:
        warnings.append("; ".join(damage))
    # from a later start on there may be none left
    if info.has_audio and not sound.samples and (sound.error_lines or sound.failure or not start_s):
        warnings.append("the audio track cannot be decoded; segmented as silent")
    signs = (frames.error_lines, sound.error_lines, frames.failure, frames.stands_still, sound.failure)
    believed_s = None if missing_s or frames.stands_still else length_s
    notes = _notes(info, frames.picture_end, sound, rate, believed_s)
    return Verdict(missing_s, any(signs), tuple(warnings), notes, frames.picture_end)


def _notes(
    info: VideoInfo, end: PictureEnd | None, sound: AudioReader, rate: float, length_s: float | None
) -> tuple[str, ...]:
    """What is odd about a file of that length, if that is to be believed, and no damage."""
    notes = []
    less_s = 0.0 if end is None or length_s is None else length_s - end.time_s
    if end is not None and less_s > max(1 / rate, MISSING_TOLERANCE_S):
        longest = "the sound" if info.has_audio and not info.has_other_tracks else "another track"
        notes.append(f"the picture ends at {end.time_s:.1f} s, {longest} at {length_s:.1f} s")
    if sound.cancelled:
        notes.append("the channels of the sound cancel each other out in places; there the louder one is heard")
    others = [str(track + 1) for track in audio_tracks(info) if track != sound.track]
    if sound.track is not None and sound.samples and sound.peak < SILENT_PEAK and others:
        notes.append(
            f"audio track {sound.track + 1} is silent, and there {'are tracks' if others[1:] else 'is track'} "
            f"{', '.join(others)}; --audio-track chooses"
        )
    return tuple(notes)


def _complaints(lines: int, last: str) -> str:
    """What ffmpeg said, without the addresses of its objects, which differ from run to run."""
    text = re.sub(r"^(\[[^\]]* @ 0x[0-9a-f]+\] )+", "", last)
    return f"1 message of the decoder: {text}" if lines == 1 else f"{lines} messages of the decoder, the last: {text}"
