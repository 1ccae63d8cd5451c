"""Many videos: each is segmented on its own, and one that fails does not stop the others."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from avsseg.errors import AvssegError, EnvironmentFault, MediaError, OutputError, printable
from avsseg.media.probe import probe
from avsseg.pipeline.options import Format, ModelOptions, OutputOptions, SegmentOptions
from avsseg.pipeline.overlap import Stopped, overlapped
from avsseg.pipeline.plan import Job, to_make
from avsseg.pipeline.resume import Recipe, origin_of, settings_of
from avsseg.writers.base import remove_leftovers

if TYPE_CHECKING:
    from avsseg.media.probe import VideoInfo
    from avsseg.pipeline.journal import Journal, Origin
    from avsseg.pipeline.segment import MaskTrack
    from avsseg.weights import LoadedModel
    from avsseg.writers.base import TrackSettings, Writer

logger = logging.getLogger(__name__)

Status = Literal["done", "skipped", "failed"]


@dataclass(frozen=True)
class InputResult:
    """What became of one input.

    Attributes:
        outputs: the finished results, also of an input that failed after them; of a skipped one those already there.
        duration_s: the length that the file declares, which is that of its longest track, if known.
        masks: how many masks were made.
        seconds: wall time spent.
        warnings: what the user should know about the results.
        error: why it failed; "" otherwise.
    """

    input: Path
    status: Status
    outputs: tuple[Path, ...] = ()
    duration_s: float | None = None
    masks: int = 0
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    error: str = ""

    def as_json(self) -> dict[str, object]:
        return {
            "input": str(self.input),
            "status": self.status,
            "outputs": [str(path) for path in self.outputs],
            "duration": self.duration_s,
            "masks": self.masks,
            "seconds": round(self.seconds, 3),
            "warnings": list(self.warnings),
            "error": self.error or None,
        }


class Reporter(Protocol):
    """Who is told how a batch advances; `position` counts its inputs from 1. Called by one thread for each worker."""

    def started(self, position: int, job: Job) -> None: ...

    def advanced(self, position: int, done: int, total: int | None, rate: float) -> None:
        """`done` of `total` masks of the input at `position` are finished."""

    def finished(self, position: int, result: InputResult) -> None: ...


class ModelSlot:
    """The model of a batch, loaded when the first readable input needs it, so that bad inputs are reported at once."""

    def __init__(self, options: ModelOptions) -> None:
        self._options = options
        self._loaded: LoadedModel | None = None
        self._lock = threading.Lock()

    def load(self) -> LoadedModel:
        """Raises WeightsError, EnvironmentFault or UsageError."""
        with self._lock:
            if self._loaded is None:
                from avsseg.pipeline.segment import load_for

                self._loaded = load_for(self._options)
            return self._loaded


@dataclass(frozen=True)
class Setup:
    """What the jobs of a batch share; see `run_batch`."""

    segment: SegmentOptions
    output: OutputOptions
    slot: ModelSlot
    reporter: Reporter
    journal: Journal | None
    stopping: threading.Event = field(default_factory=threading.Event)


def run_batch(
    jobs: Sequence[Job],
    *,
    segment_options: SegmentOptions,
    model_options: ModelOptions,
    output_options: OutputOptions,
    reporter: Reporter,
    journal: Journal | None = None,
    workers: int = 1,
) -> Generator[InputResult, None, None]:
    """Segments the jobs and yields what became of each, in order; with several workers as they are finished.

    Args:
        journal: where the beginning and the end of the work on each input are noted; the outputs lie below its folder.
        workers: inputs in work at once, each in a thread. They take turns at the model.

    Raises:
        EnvironmentFault, UsageError: the machine or the settings fail every input alike; the batch ends.
    """
    setup = Setup(segment_options, output_options, ModelSlot(model_options), reporter, journal)
    numbered = enumerate(jobs, start=1)
    if workers == 1:
        yield from (attempt(position, job, setup) for position, job in numbered)
    else:
        yield from overlapped(lambda item: attempt(*item, setup), numbered, workers, setup.stopping)


def attempt(position: int, job: Job, setup: Setup) -> InputResult:
    """What became of one job: an error of its own becomes its result. Raises what ends the batch."""
    setup.reporter.started(position, job)
    started = time.monotonic()
    try:
        result = run_job(position, job, setup)
    except Exception as error:
        if setup.stopping.is_set():
            raise Stopped from error  # of the end of its ffmpeg, most likely
        if isinstance(error, EnvironmentFault):
            raise
        logger.debug("%s failed", job.input, exc_info=True)
        reason = str(error)
        if not isinstance(error, AvssegError):
            # a defect of ours that one file brings out must not cost the user the other files
            what = f"unexpected {type(error).__name__}: {printable(str(error))}"
            reason = f"{printable(job.input)}: {what}. --debug shows where"
        elif error.exit_code != AvssegError.exit_code:
            raise
        result = InputResult(job.input, "failed", error=reason)
    result = replace(result, seconds=time.monotonic() - started)
    setup.reporter.finished(position, result)
    return result


def run_job(position: int, job: Job, setup: Setup) -> InputResult:
    """Makes the results of one video that are missing, or all of them with `overwrite`.

    When memory runs out it starts again with half the window, down to one mask at a time.

    Raises:
        MediaError: the video cannot be read, is damaged and `strict` is set, or takes more memory than there is.
        OutputError: a result, or the journal, cannot be written.
        EnvironmentFault: no ffmpeg, weights or device.
    """
    wanted = to_make(job, overwrite=setup.output.overwrite)
    if not wanted:
        if job.make is None:
            for path in job.outputs.values():
                with contextlib.suppress(OSError):
                    remove_leftovers(path)  # of a run that was killed just after it had finished
        return InputResult(job.input, "skipped", tuple(job.outputs.values()))
    if os.path.isdir(job.input) and not os.access(job.input, os.R_OK | os.X_OK):
        raise MediaError(job.input, "this folder cannot be read", "Check its permissions.")
    info = probe(job.input)
    loaded = setup.slot.load()
    from avsseg.pipeline.scoring import is_out_of_memory

    options = setup.segment
    finished: list[Path] = []
    with noted(job, wanted, loaded, setup, finished):
        while True:
            try:
                result = make_results(position, job, wanted, info, loaded, options, setup, finished)
                break
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                logger.debug("%s: out of memory with a window of %d", job.input, options.window, exc_info=True)
            if options.window == 1:
                hint = "Close other programs or give a smaller --size."
                raise MediaError(job.input, "memory ran out, even with one mask at a time", hint)
            finished.clear()
            smaller = options.window // 2
            options = replace(options, window=smaller, overlap=min(options.overlap, smaller - 1))
        if options is not setup.segment:
            spared = f"memory ran out with a window of {setup.segment.window} masks; made with {options.window}"
            result = replace(result, warnings=(*result.warnings, spared))
    return result


def make_results(
    position: int,
    job: Job,
    wanted: Sequence[Format],
    info: VideoInfo,
    loaded: LoadedModel,
    options: SegmentOptions,
    setup: Setup,
    finished: list[Path],
) -> InputResult:
    """One pass over the video; adds each output to `finished` once it stands under its name."""
    from avsseg.pipeline.segment import segment

    masks = 0
    with (
        segment(info, model=loaded, options=options) as track,
        opened_writers(job, wanted, setup.output) as writers,
    ):
        settings = track_settings(track, options, setup.output)
        for writer in writers:
            writer.open(info, settings)
        for mask in track:
            for writer in writers:
                writer.write(mask)
            masks += 1
            setup.reporter.advanced(position, masks, track.total, options.rate)
            if setup.stopping.is_set():
                break
        if setup.stopping.is_set():
            raise Stopped  # the track may have ended early because its ffmpeg was
        if masks == 0:
            raise MediaError(job.input, "no frame could be decoded in the part asked for", "Check --start and --end.")
        if track.damage and setup.output.strict:
            raise MediaError(
                job.input, "; ".join(track.damage), "Without --strict the masks of what could be read are written."
            )
        error = ""
        for writer in writers:
            try:
                finished += writer.finish(track.picture_end)
            except (MediaError, OutputError) as fault:
                error = error or str(fault)  # the other results stay, and are reported
    return InputResult(
        job.input,
        "failed" if error else "done",
        tuple(finished if error else job.outputs.values()),
        info.duration_s,
        masks,
        warnings=(*track.warnings, *(warning for writer in writers for warning in writer.warnings)),
        error=error,
    )


@contextlib.contextmanager
def noted(
    job: Job, wanted: Sequence[Format], loaded: LoadedModel, setup: Setup, finished: list[Path]
) -> Iterator[None]:
    """Notes in the journal that the work begins, and what of it is `finished` when the body ends.

    Of an interrupted body nothing more is noted: the interrupt may have come between a result and its place in
    `finished`, and a result that is only known to be begun is made again.
    """
    journal = setup.journal
    if journal is None:
        yield
        return
    try:
        origin = origin_of(job.input, Recipe(settings_of(setup.segment, setup.output), loaded.name, loaded.sha256))
    except OSError as error:
        raise MediaError(job.input, f"cannot be read any more ({error.strerror})", "Check the path.") from error
    outputs = [job.outputs[name] for name in wanted]
    journal.append("started", origin, outputs)
    try:
        yield
    except Exception:
        with contextlib.suppress(OutputError):
            note_end(journal, origin, outputs, finished)
        raise
    note_end(journal, origin, outputs, finished)


def note_end(journal: Journal, origin: Origin, outputs: Sequence[Path], finished: Sequence[Path]) -> None:
    """Notes which of the outputs that were begun are finished, and that the others came to nothing."""
    if finished:
        journal.append("done", origin, finished)
    if dropped := [path for path in outputs if path not in finished]:
        journal.append("dropped", origin, dropped)


@contextlib.contextmanager
def opened_writers(job: Job, wanted: Sequence[Format], options: OutputOptions) -> Iterator[list[Writer]]:
    """The writers of a job; whatever they have not finished when the body ends is removed."""
    with contextlib.ExitStack() as stack:
        writers = [new_writer(name, job.outputs[name], options) for name in wanted]
        for writer in writers:
            stack.callback(writer.abort)
        yield writers


def new_writer(name: Format, target: Path, options: OutputOptions) -> Writer:
    if name == "masks":
        from avsseg.writers.masks import MaskFolderWriter

        return MaskFolderWriter(target)
    if name == "coco":
        from avsseg.writers.coco import CocoWriter

        return CocoWriter(target)
    if name == "csv":
        from avsseg.writers.intervals import IntervalWriter

        return IntervalWriter(target)
    from avsseg.writers.video import VideoWriter

    return VideoWriter(target, name, interpolate=options.interpolate, names=options.names)


def track_settings(track: MaskTrack, options: SegmentOptions, output_options: OutputOptions) -> TrackSettings:
    from avsseg import __version__
    from avsseg.writers.base import TrackSettings

    return TrackSettings(
        model=track.model_name,
        model_sha256=track.model_sha256,
        trained=track.trained,
        categories=track.categories,
        heard=track.heard,
        rate=options.rate,
        size=track.size,
        window=options.window,
        overlap=options.overlap,
        start_s=options.start_s,
        end_s=options.end_s,
        audio_track=options.audio_track,
        precision=track.precision,
        threshold=output_options.threshold,
        avsseg_version=__version__,
    )


def exit_code(results: Sequence[InputResult]) -> int:
    """0 when everything is done, 1 when an input failed."""
    return int(any(result.status == "failed" for result in results))
