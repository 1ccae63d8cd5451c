"""What of an AVSBench folder is there, missing and damaged: every file that its tables promise is decoded.

Missing sounds can be made again: wavs from the raw videos; and from the wavs the pickled log-mels that AVSBench's own
loaders want, an example a second at exact seconds.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from avsseg.data.avsbench_files import mask_values, open_image, open_mask, read_sound, video_sound
from avsseg.data.avsbench_layout import LABEL_TABLE, SPLITS, ClipFiles, SplitName, Subset, list_clips, subset_folder
from avsseg.data.avss_classes import check_label_table
from avsseg.data.layout_writer import write_wav
from avsseg.data.log_mel_files import read_log_mel, write_log_mel
from avsseg.errors import DataError, MediaError, printable
from avsseg.media.audio import log_mel_examples
from avsseg.writers.base import written_whole

Kind = Literal["frames", "masks", "sounds"]
State = Literal["missing", "damaged"]


@dataclass(frozen=True)
class Problem:
    """One file that cannot be used; `message` is a line that names it and says why."""

    path: Path
    kind: Kind
    state: State
    message: str


@dataclass
class ClipReport:
    """What was found in one clip, and what was written for it."""

    problems: list[Problem] = field(default_factory=list)
    wavs_written: int = 0
    log_mels_written: int = 0


@dataclass
class SplitReport:
    """What was found in the clips that the table lists for one split; `complete` of them can be used."""

    subset: Subset
    split: SplitName
    clips: int = 0
    complete: int = 0
    wavs_written: int = 0
    log_mels_written: int = 0
    problems: list[Problem] = field(default_factory=list)

    def count(self, kind: Kind, state: State) -> int:
        return Counter((problem.kind, problem.state) for problem in self.problems)[kind, state]


def check_dataset(
    root: Path,
    subsets: Sequence[Subset],
    *,
    fix_audio: bool = False,
    jobs: int | None = None,
    started: Callable[[int], None] = lambda clips: None,
    advanced: Callable[[], None] = lambda: None,
) -> list[SplitReport]:
    """A report for each subset and split. `started` is told the number of all clips, `advanced` of each that is done.

    `jobs` threads decode, one for each processor if None. Raises DataError for a table that is missing or cannot be
    read, OutputError if a sound cannot be written.
    """
    listed = {
        (subset, split): list_clips(root, subset, split, complete=False) for subset in subsets for split in SPLITS
    }
    started(sum(map(len, listed.values())))
    reports = []
    for (subset, split), clips in listed.items():
        report = SplitReport(subset, split, len(clips))
        if subset == "avss" and split == SPLITS[0]:
            report.problems += _label_table(subset_folder(root, subset) / LABEL_TABLE)
        with ThreadPoolExecutor(jobs or os.cpu_count() or 1) as pool:
            futures = [pool.submit(check_clip, files, subset, fix_audio=fix_audio) for files in clips]
            try:
                for future in futures:
                    found = future.result()
                    report.complete += not found.problems
                    report.problems += found.problems
                    report.wavs_written += found.wavs_written
                    report.log_mels_written += found.log_mels_written
                    advanced()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)  # after Ctrl-C the other clips are not read
        reports.append(report)
    return reports


def check_clip(files: ClipFiles, subset: Subset, *, fix_audio: bool = False) -> ClipReport:
    """Decodes every file of one clip, as the training would read it, at full size. Raises OutputError."""
    report = ClipReport()
    for path in files.frames:
        _attempt(report, path, "frames", lambda path: open_image(path, "RGB"))
    sizes: list[tuple[int, int]] = []
    for path in files.masks:
        _attempt(report, path, "masks", lambda path: _check_mask(path, files, subset, sizes))
    _check_sounds(report, files, fix_audio)
    return report


def _attempt(report: ClipReport, path: Path, kind: Kind, decode: Callable[[Path], object]) -> bool:
    """Whether the file is there and can be decoded; if not, the report says so."""
    if not path.exists():
        report.problems.append(Problem(path, kind, "missing", f"{printable(path)}: missing"))
        return False
    try:
        decode(path)
    except (DataError, MediaError) as error:
        report.problems.append(Problem(path, kind, "damaged", str(error)))
        return False
    return True


def _check_mask(path: Path, files: ClipFiles, subset: Subset, sizes: list[tuple[int, int]]) -> None:
    mask = open_mask(path, classes=subset == "avss", colours=files.colour_masks)
    mask_values(mask, path)
    sizes.append(mask.size)
    if mask.size != sizes[0]:
        first = f"{sizes[0][0]}x{sizes[0][1]}"
        raise DataError(f"{printable(path)}: is {mask.width}x{mask.height}, the clip's first mask {first}")


def _check_sounds(report: ClipReport, files: ClipFiles, fix_audio: bool) -> None:
    assert files.wav is not None, "a listing that was not made complete names every wav"
    reason = ""
    if fix_audio and not files.wav.exists():
        reason = _write_wav(report, files.wav, files.video)
    waveforms: list[NDArray[np.float32]] = []
    if files.wav.exists():
        _attempt(report, files.wav, "sounds", lambda path: waveforms.append(read_sound(path)))
    if files.log_mel is not None and files.log_mel.exists():
        _attempt(report, files.log_mel, "sounds", read_log_mel)
    elif not files.wav.exists():
        message = f"{printable(files.wav)}: missing, and no pickled log-mel stands in for it{reason}"
        report.problems.append(Problem(files.wav, "sounds", "missing", message))
    elif fix_audio and files.log_mel is not None and waveforms:
        starts = [float(t) for t in range(len(files.frames))]
        write_log_mel(files.log_mel, log_mel_examples(torch.from_numpy(waveforms[0]), starts))
        report.log_mels_written += 1


def _write_wav(report: ClipReport, wav: Path, video: Path | None) -> str:
    """Why the wav could not be made from the video; "" if it was."""
    if video is None or not video.exists():
        return f"; no raw video to make it from{f' ({printable(video)})' if video else ''}"
    try:
        waveform = video_sound(video)
    except (DataError, MediaError) as error:
        return f"; it cannot be made from the raw video: {error}"
    with written_whole(wav) as partial:
        write_wav(partial, waveform)
    report.wavs_written += 1
    return ""


def _label_table(path: Path) -> list[Problem]:
    try:
        check_label_table(path)
    except DataError as error:
        return [Problem(path, "masks", "damaged", str(error))]
    return []
