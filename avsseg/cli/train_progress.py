"""What `avsseg train` shows of a run on stderr: a bar on a terminal, a line every twenty steps elsewhere."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from avsseg.training.trainer import Progress

# of a validation, those that are shown
SCORES = ("M_J", "seen", "heard")


@dataclass(frozen=True)
class Shown:
    """`listen` takes the progress of a run, or of several one after the other; `say` prints a line below the bar."""

    listen: Callable[[Progress], None]
    say: Callable[[str], None]


@contextlib.contextmanager
def shown() -> Iterator[Shown]:
    """What shows the progress until the end of the block."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    columns = (TextColumn("step {task.fields[step]}"), BarColumn(), TextColumn("{task.description}"))
    bar = Bar(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
    task = bar.add_task("", total=1.0, step=0)

    def listen(progress: Progress) -> None:
        bar.start()  # not before the first step: the download of published weights has a bar of its own
        text = describe(progress)
        if bar.tasks[0].finished and progress.done < 1:  # another run begins
            bar.reset(task)
        bar.update(task, completed=progress.done, description=text, step=progress.step)
        if not console.is_terminal and progress.step % 20 == 0:
            typer.echo(f"step {progress.step} ({100 * progress.done:.0f} %): {text}", err=True)

    def say(text: str) -> None:
        if bar.live.is_started:
            bar.stop()  # stays where it is; the next step begins another below
        typer.echo(text, err=True)

    try:
        yield Shown(listen, say)
    finally:
        bar.stop()


def describe(progress: Progress) -> str:
    """One line about where the run is."""
    parts = [f"loss {progress.values['loss']:.3f}"]
    # NaN: no frame of the batch has truth
    if not math.isnan(progress.values.get("M_J", math.nan)):
        parts.append(f"M_J {progress.values['M_J']:.3f}")
    for name in SCORES:
        if name in progress.validation:
            parts.append(f"val {name} {progress.validation[name]:.3f}")
    left = progress.seconds_left
    parts.append(f"{left / 60:.0f} min left" if left >= 90 else f"{left:.0f} s left")
    return ", ".join(parts)
