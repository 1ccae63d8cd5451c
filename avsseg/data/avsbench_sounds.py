"""The sounds of a dataset's clips, as long as their clips, and how they are made where they are missing or damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avsseg.data.avsbench_files import decode_video, read_sound, video_sound
from avsseg.data.avsbench_layout import ClipFiles
from avsseg.data.layout_writer import write_wav
from avsseg.data.log_mel_files import ForeignContentError, read_log_mel, write_log_mel
from avsseg.errors import DataError, MediaError, printable
from avsseg.media.audio import SAMPLE_RATE_HZ, log_mel_examples
from avsseg.media.probe import VideoInfo
from avsseg.writers.base import output_errors, written_whole

# AVSBench's clips are often a little shorter than their number of seconds
TOLERATED_S = 1.0
# a file that is replaced is kept under its name with this behind it
REPLACED_SUFFIX = ".replaced"

Content = TypeVar("Content")


class TooShortError(DataError):
    """A file that ends more than `TOLERATED_S` before its clip."""


def whole_wav(path: Path, seconds: int) -> NDArray[np.float32]:
    """(samples,) at 16 kHz. Raises DataError as `read_sound`, TooShortError for what ends long before the clip."""
    waveform = read_sound(path)
    _check_length(path, len(waveform) / SAMPLE_RATE_HZ, seconds)
    return waveform


def whole_log_mel(path: Path, seconds: int) -> Tensor:
    """(n, 1, 96, 64), an example about a second. Raises DataError as `read_log_mel`, TooShortError."""
    log_mel = read_log_mel(path)
    _check_length(path, len(log_mel), seconds)
    return log_mel


def whole_video(path: Path, seconds: int) -> VideoInfo:
    """Decodes all of it. Raises MediaError for damage, TooShortError."""
    info = decode_video(path)
    if info.duration_s is not None:
        _check_length(path, info.duration_s, seconds)
    return info


def _check_length(path: Path, length_s: float, seconds: int) -> None:
    if length_s < seconds - TOLERATED_S:
        raise TooShortError(f"{printable(path)}: has {length_s:.1f} s, its clip has {seconds} s")


def make_sounds(files: ClipFiles) -> tuple[list[Literal["wavs", "log-mels"]], str]:
    """Makes the clip's missing wav, and its log-mel where that is missing or damaged: what was made, and why not more.

    The wav is made from the raw video, the log-mel from the wav, or from the video if the wav is damaged. A damaged wav
    is left alone, as it may be somebody's only one, and so is a pickle of something else; a damaged log-mel is kept
    beside the new one. Raises OutputError.
    """
    assert files.wav is not None, "a listing that was not made complete names every wav"
    wav, log_mel, seconds = files.wav, files.log_mel, len(files.frames)
    needs_wav = not wav.exists()
    needs_log_mel = log_mel is not None and _is_to_be_made(log_mel, seconds)
    waveform = None if needs_wav else _unless_unusable(whole_wav, wav, seconds)
    reason = ""
    if waveform is None and (needs_wav or needs_log_mel):
        waveform, reason = _from_video(files.video, seconds)
    made: list[Literal["wavs", "log-mels"]] = []
    if waveform is not None and needs_wav:
        with written_whole(wav) as partial:
            write_wav(partial, waveform)
        waveform = read_sound(wav)  # the log-mel is to be that of the file
        made.append("wavs")
    if waveform is not None and needs_log_mel and log_mel is not None:
        if log_mel.exists():
            with output_errors(log_mel):
                log_mel.replace(log_mel.with_name(log_mel.name + REPLACED_SUFFIX))
        write_log_mel(log_mel, log_mel_examples(torch.from_numpy(waveform), [float(t) for t in range(seconds)]))
        made.append("log-mels")
    return made, reason


def _is_to_be_made(log_mel: Path, seconds: int) -> bool:
    try:
        whole_log_mel(log_mel, seconds)
    except ForeignContentError:
        return False
    except DataError as error:
        # what cannot be opened may be whole
        return not isinstance(error.__cause__, OSError) or not log_mel.exists()
    return False


def _unless_unusable(read: Callable[[Path, int], Content], path: Path, seconds: int) -> Content | None:
    try:
        return read(path, seconds)
    except (DataError, MediaError):
        return None


def _from_video(video: Path | None, seconds: int) -> tuple[NDArray[np.float32] | None, str]:
    """The sound of the raw video, and "" or why there is none."""
    if video is None or not video.exists():
        return None, f"; no raw video to make it from{f' ({printable(video)})' if video else ''}"
    try:
        waveform = video_sound(video)
        _check_length(video, len(waveform) / SAMPLE_RATE_HZ, seconds)
    except (DataError, MediaError) as error:
        return None, f"; it cannot be made from the raw video: {error}"
    return waveform, ""
