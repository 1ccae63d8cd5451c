"""Progress of a batch on stderr: a bar with the time left on a terminal, plain lines otherwise."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from avsseg.errors import printable
from avsseg.pipeline.batch import InputResult
from avsseg.pipeline.plan import Job

LINE_INTERVAL_S = 5.0


def summary(results: Sequence[InputResult]) -> list[str]:
    """The lines of a table of what became of a batch, then one for each input that failed."""
    rows = [("result", "inputs", "masks", "seconds", "with warnings")]
    for status in ("done", "skipped", "failed"):
        of_status = [result for result in results if result.status == status]
        masks, seconds = sum(r.masks for r in of_status), sum(r.seconds for r in of_status)
        warned = sum(bool(r.warnings) for r in of_status)
        rows.append((status, str(len(of_status)), str(masks), f"{seconds:.1f}", str(warned)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return [*table, *(f"failed: {result.error}" for result in results if result.status == "failed")]


@dataclass
class _Running:
    """An input in work: its label, when a line about it was last printed, its bar."""

    label: str
    last_line: float
    task: TaskID | None = None


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Rich would end the process."""
        raise BrokenPipeError


class BatchProgress:
    """Tells a person how a batch advances; a context manager.

    A terminal gets a bar for each video in work, anything else a line every few seconds; either gets a line for each
    finished input, its warnings and its error. `quiet` leaves only the errors. When stdout is closed, which ends a
    batch, it says that inputs are left.
    """

    def __init__(self, inputs: int, *, quiet: bool) -> None:
        self._inputs = inputs
        self._left = inputs
        self._quiet = quiet
        self._console = _Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)
        self._bar: Progress | None = None
        if self._console.is_terminal and not quiet:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.fields[seconds]}", markup=False),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
                redirect_stdout=False,  # stdout is for results, wherever it leads
            )
        self._running: dict[int, _Running] = {}

    def __enter__(self) -> BatchProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if kind is not None and issubclass(kind, (KeyboardInterrupt, SystemExit)):
            self.note("avsseg: interrupted; finished results are kept, the same command makes the rest")
        if kind is BrokenPipeError and self._left:
            self._print(
                "avsseg: error: standard output was closed; finished results are kept, the same command makes the rest"
            )

    def started(self, position: int, job: Job) -> None:
        number = f"[{position}/{self._inputs}] " if self._inputs > 1 else ""
        running = _Running(number + printable(job.input.name), time.monotonic())
        if self._bar is not None:
            running.task = self._bar.add_task(running.label, total=None, seconds="")
        self._running[position] = running

    def advanced(self, position: int, done: int, total: int | None, rate: float) -> None:
        running = self._running[position]
        seconds = f"{done / rate:.0f}/{total / rate:.0f} s" if total is not None else f"{done / rate:.0f} s"
        if self._bar is not None and running.task is not None:
            self._bar.update(running.task, completed=done, total=total, seconds=seconds)
        elif time.monotonic() - running.last_line >= LINE_INTERVAL_S:
            running.last_line = time.monotonic()
            self.note(f"{running.label} {seconds}")

    def finished(self, position: int, result: InputResult) -> None:
        running = self._running.pop(position)
        self._left -= 1
        if self._bar is not None and running.task is not None:
            self._bar.refresh()  # of a short video, the bar would never have been seen otherwise
            self._bar.remove_task(running.task)
        if result.status == "failed":
            self._print(f"avsseg: error: {result.error}")
            return
        places = ", ".join(printable(path) for path in result.outputs)
        if result.status == "skipped":
            verb, them = ("exists", "it") if len(result.outputs) == 1 else ("exist", "them")
            self.note(f"{running.label}: {places} {verb} already; --overwrite makes {them} again")
            return
        for warning in result.warnings:
            self.note(f"avsseg: warning: {printable(result.input)}: {warning}")
        self.note(f"{running.label}: {result.masks} masks in {result.seconds:.1f} s -> {places}")

    def note(self, text: str) -> None:
        """A line on stderr unless quiet."""
        if not self._quiet:
            self._print(text)

    def _print(self, text: str) -> None:
        # a full disk under a log, or a reader that has gone, must not cost the results
        with contextlib.suppress(OSError):
            self._console.print(text)
