"""What of an AVSBench folder is there, missing and damaged: every file that its tables promise is decoded.

Sounds can be made again: missing wavs from the raw videos; and from the wavs, or the videos, the pickled log-mels that
AVSBench's own loaders want, an example a second at exact seconds, where they are missing or damaged.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from avsseg.data.avsbench_files import mask_values, open_image, open_mask
from avsseg.data.avsbench_layout import (
    LABEL_TABLE,
    SPLITS,
    ClipFiles,
    SplitName,
    Subset,
    list_clips,
    metadata_table,
    subset_folder,
)
from avsseg.data.avsbench_sounds import TooShortError, make_sounds, whole_log_mel, whole_video, whole_wav
from avsseg.data.avss_classes import check_label_table
from avsseg.data.layout_writer import LISTING_NAME
from avsseg.data.listing import read_listing
from avsseg.data.log_mel_files import ForeignContentError
from avsseg.errors import DataError, MediaError, first_of, printable

logger = logging.getLogger(__name__)

Kind = Literal["frames", "masks", "wavs", "log-mels", "videos"]
Fault = Literal["missing", "damaged", "short"]
State = Literal["whole"] | Fault
KINDS: tuple[Kind, ...] = get_args(Kind)
FAULTS: tuple[Fault, ...] = get_args(Fault)
STATES: tuple[State, ...] = ("whole", *FAULTS)


@dataclass(frozen=True)
class Problem:
    """One file that should be made good; `message` is a line that names it and says why."""

    path: Path
    kind: Kind | Literal["table"]
    state: Fault
    message: str


@dataclass
class Findings:
    """What was found, and made, in one clip or in all of a split.

    Attributes:
        states: (kind, state) -> files; `short` are sounds and videos that end more than a second before their clip.
        made: kind -> files that were written; they count as whole.
        problems: all that is damaged or short, and what is missing and has no stand-in.
    """

    states: Counter[tuple[Kind, State]] = field(default_factory=Counter)
    made: Counter[Kind] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)

    def count(self, kind: Kind, state: State) -> int:
        return self.states[kind, state]

    def counts(self, kind: Kind) -> dict[State, int]:
        return {state: self.count(kind, state) for state in STATES}


@dataclass
class ClipReport(Findings):
    """`complete`: all that training reads of the clip is whole."""

    complete: bool = True


@dataclass(kw_only=True)
class SplitReport(Findings):
    """What was found in the clips that the table lists for one split; `complete` of them can be trained on.

    `split` is None for a subset whose table is missing or cannot be read, which is then the one problem.
    """

    subset: Subset
    split: SplitName | None
    clips: int = 0
    complete: int = 0

    def add(self, clip: ClipReport) -> None:
        self.complete += clip.complete
        self.states.update(clip.states)
        self.made.update(clip.made)
        self.problems += clip.problems


def check_dataset(
    root: Path,
    subsets: Sequence[Subset],
    *,
    fix_audio: bool = False,
    videos: bool = True,
    jobs: int | None = None,
    started: Callable[[int], None] = lambda clips: None,
    advanced: Callable[[], None] = lambda: None,
) -> list[SplitReport]:
    """A report for each subset and split. `started` is told the number of all clips, `advanced` of each that is done.

    `videos`: raw videos are decoded too. `jobs` threads decode, one for each processor if None. Raises OutputError if a
    sound cannot be written.
    """
    listed: list[tuple[SplitReport, list[ClipFiles]]] = []
    for subset in subsets:
        try:
            by_split = {split: list_clips(root, subset, split, complete=False) for split in SPLITS}
        except DataError as error:
            problem = _table_problem(root, subset, error)
            listed.append((SplitReport(subset=subset, split=None, problems=[problem]), []))
            continue
        reports = {
            split: SplitReport(subset=subset, split=split, clips=len(clips)) for split, clips in by_split.items()
        }
        for split, problem in _listing_problems(metadata_table(root, subset), subset, by_split):
            reports[split].problems.append(problem)
        reports[SPLITS[0]].problems += _what_sounds(root, subset, by_split)
        listed += [(report, by_split[split]) for split, report in reports.items()]
    started(sum(len(clips) for _, clips in listed))
    for report, clips in listed:
        if report.subset == "avss" and report.split == SPLITS[0]:
            report.problems += _label_table(subset_folder(root, report.subset) / LABEL_TABLE)
        with ThreadPoolExecutor(jobs or os.cpu_count() or 1) as pool:
            futures = [
                pool.submit(check_clip, files, report.subset, fix_audio=fix_audio, videos=videos) for files in clips
            ]
            try:
                for future in futures:
                    report.add(future.result())
                    advanced()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)  # after Ctrl-C the other clips are not read
    return [report for report, _ in listed]


def check_clip(files: ClipFiles, subset: Subset, *, fix_audio: bool = False, videos: bool = True) -> ClipReport:
    """Decodes every file of one clip, as the training would read it, at full size. Raises OutputError."""
    report = ClipReport()
    sizes: list[tuple[int, int]] = []
    faults = [
        *(_fault(report, path, "frames", lambda path: open_image(path, "RGB")) for path in files.frames),
        *(_fault(report, path, "masks", lambda path: _check_mask(path, files, subset, sizes)) for path in files.masks),
    ]
    report.problems += [fault for fault in faults if fault is not None]
    report.complete = not report.problems
    _check_sounds(report, files, fix_audio)
    if videos and files.video is not None:
        fault = _fault(report, files.video, "videos", lambda path: whole_video(path, len(files.frames)))
        # frames and sounds have files of their own: a set without videos lacks nothing
        if fault is not None and fault.state != "missing":
            report.problems.append(fault)
    return report


def _fault(report: ClipReport, path: Path, kind: Kind, decode: Callable[[Path], object]) -> Problem | None:
    """What is wrong with a file, None for a whole one; it is counted."""
    fault = None
    try:
        if path.exists():
            decode(path)
        else:
            fault = Problem(path, kind, "missing", f"{printable(path)}: missing")
    except ForeignContentError as error:  # as good as none, and nothing to be repaired
        fault = Problem(path, kind, "missing", str(error))
    except TooShortError as error:
        fault = Problem(path, kind, "short", str(error))
    except (DataError, MediaError) as error:
        fault = Problem(path, kind, "damaged", str(error))
    report.states[kind, "whole" if fault is None else fault.state] += 1
    return fault


def _check_mask(path: Path, files: ClipFiles, subset: Subset, sizes: list[tuple[int, int]]) -> None:
    mask = open_mask(path, classes=subset == "avss", colours=files.colour_masks)
    mask_values(mask, path)
    sizes.append(mask.size)
    if mask.size != sizes[0]:
        first = f"{sizes[0][0]}x{sizes[0][1]}"
        raise DataError(f"{printable(path)}: is {mask.width}x{mask.height}, the clip's first mask {first}")


def _check_sounds(report: ClipReport, files: ClipFiles, fix_audio: bool) -> None:
    """Training reads the wav, whatever it is; only where there is none, the pickled log-mel."""
    assert files.wav is not None, "a listing that was not made complete names every wav"
    seconds = len(files.frames)
    reason = ""
    if fix_audio:
        made, reason = make_sounds(files)
        report.made.update(made)
    wav = _fault(report, files.wav, "wavs", lambda path: whole_wav(path, seconds))
    log_mel = None
    if files.log_mel is not None:
        log_mel = _fault(report, files.log_mel, "log-mels", lambda path: whole_log_mel(path, seconds))
    has_log_mel = files.log_mel is not None and log_mel is None
    if wav is not None and not (wav.state == "missing" and has_log_mel):
        report.complete = False
        report.problems.append(_with_remedy(wav, files, reason))
    if log_mel is not None and wav is not None and log_mel.state == "missing" and log_mel.path.exists():
        report.problems.append(log_mel)
    if log_mel is not None and log_mel.state != "missing":
        hint = reason or ("" if fix_audio else "; --fix-audio makes it anew from the wav or the raw video")
        report.problems.append(replace(log_mel, message=log_mel.message + hint))


def _with_remedy(wav: Problem, files: ClipFiles, reason: str) -> Problem:
    if wav.state == "missing":
        return replace(wav, message=f"{wav.message}, and no pickled log-mel stands in for it{reason}")
    if files.video is not None and files.video.exists():
        return replace(wav, message=f"{wav.message}; remove it, and --fix-audio makes it from the raw video")
    return wav


def _listing_problems(
    table: Path, subset: Subset, by_split: Mapping[SplitName, Sequence[ClipFiles]]
) -> Iterator[tuple[SplitName, Problem]]:
    """A table without any clip, and clips that it lists again: a second time in a split, or in another one."""
    listed_in: dict[tuple[str, ...], SplitName] = {}
    for split, clips in by_split.items():
        for files in clips:
            # the folder of an AVSS clip is that of its part, too; S4's have the split in theirs
            clip = (str(files.frames[0]),) if subset == "avss" else (files.category, files.name)
            if clip in listed_in:
                message = f"{printable(table)}: lists {printable(files.name)} in {listed_in[clip]} and again in {split}"
                yield split, Problem(table, "table", "damaged", message)
            listed_in.setdefault(clip, split)
    if not listed_in:
        yield SPLITS[0], Problem(table, "table", "short", f"{printable(table)}: lists no clip")


def _table_problem(root: Path, subset: Subset, error: DataError) -> Problem:
    table = metadata_table(root, subset)
    return Problem(table, "table", "damaged" if table.is_file() else "missing", str(error))


def _what_sounds(root: Path, subset: Subset, by_split: Mapping[SplitName, Sequence[ClipFiles]]) -> list[Problem]:
    """What is wrong with the listing of what sounds, which a dataset need not have; warns of clips without an entry."""
    table = subset_folder(root, subset) / LISTING_NAME
    try:
        listed = read_listing(root, subset)
    except DataError as error:
        return [Problem(table, "table", "damaged", str(error))]
    unlisted = [files.name for clips in by_split.values() for files in clips if files.name not in listed]
    if table.is_file() and unlisted:
        logger.warning(
            "%s: has no entry for %s: training with class_weight is not told what sounds there",
            printable(table),
            first_of(unlisted),
        )
    return []


def _label_table(path: Path) -> list[Problem]:
    try:
        check_label_table(path)
    except DataError as error:
        return [Problem(path, "table", "damaged", str(error))]
    return []
