"""The run or the runs of `avsseg train`: one process or those of `torchrun`, Ctrl-C and SIGTERM, what comes next."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import shutil
import signal
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NoReturn

import typer

from avsseg.cli.shell import quoted
from avsseg.cli.train_progress import SCORES, Shown, shown
from avsseg.cli.weights import find_shown
from avsseg.errors import printable
from avsseg.training.run_folder import BEST, LAST, LAST_STATE, STAGES, forget_start, held
from avsseg.training.settings import TrainingSettings, write_toml
from avsseg.training.stages import from_what_there_is, scene_stages, stage_to_go_on_with


def leads() -> bool:
    """Whether this is the process of `torchrun` that speaks, or the only one."""
    return not _distributed() or os.environ["RANK"] == "0"


def _distributed() -> bool:
    """Whether `torchrun` began this process: others set RANK and WORLD_SIZE, too."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def run_training(out: Path, settings: TrainingSettings, *, resume: bool, staged: bool) -> None:
    """Trains, in one run or `staged` in several, and prints the path of the best model.

    Raises KeyboardInterrupt or SystemExit when it was stopped, its state saved, and what `TrainingRun` raises.
    """
    from avsseg.training.distributed import process_group

    if not leads():  # they would say everything once more
        logging.getLogger("avsseg").setLevel(logging.ERROR)
    with (
        process_group() if _distributed() else contextlib.nullcontext(),
        shown() if leads() else contextlib.nullcontext() as display,
    ):
        if staged:
            best = _run_stages(out, settings, display, resume=resume)
        else:
            best, _ = _run_one(out, settings, display, resume=resume, whole=out)
    if leads():
        typer.echo(str(best))


def _run_one(
    out: Path,
    settings: TrainingSettings,
    display: Shown | None,
    *,
    resume: bool,
    whole: Path,
    ready: Callable[[], object] = lambda: None,
) -> tuple[Path, Collection[int]]:
    """The best model of a run, and the signals that asked to stop when it was too late for it.

    The run may be one of several in the folder of the `whole`. `ready` is called when nothing that was given can stop
    it any more.
    """
    from avsseg.training.distributed import together
    from avsseg.training.run import TrainingRun
    from avsseg.training.trainer import Interrupted
    from avsseg.weights.cache import find_weights

    def begin() -> TrainingRun:
        listen = display.listen if display else None
        run = TrainingRun(out, settings, resume=resume, listener=listen, find=find_shown if leads() else find_weights)
        ready()
        return run

    run = together(begin, printable(out))
    with _stopping(run.trainer.request_stop) as stopped_by:
        try:
            best = run.train()
            scores = run.trainer.validated
            if display and math.isfinite(run.trainer.best_score) and scores:
                shown_scores = ", ".join(f"{name} {scores[name]:.3f}" for name in SCORES if name in scores)
                display.say(f"on val at the end: {shown_scores}; best score {run.trainer.best_score:.3f}")
            return best, stopped_by
        except Interrupted:
            if display:
                kept = next((p for p in (out / BEST, out / LAST) if p.exists()), None)
                model = f", the model so far is {kept}" if kept and settings.stage != "encoders" else ""
                display.say(f"stopped at step {run.trainer.step}{model}; {_go_on(whole)}")
            _end(stopped_by)


def _go_on(out: Path) -> str:
    torchrun = f"torchrun --nproc-per-node {os.environ['LOCAL_WORLD_SIZE']} -m " if _distributed() else ""
    return f"go on with: {torchrun}avsseg train --resume --out {quoted(out)}"


def _end(stopped_by: Collection[int]) -> NoReturn:
    if signal.SIGTERM in stopped_by:
        raise SystemExit(128 + signal.SIGTERM) from None
    raise KeyboardInterrupt from None


def _forget_start(folder: Path) -> None:
    with held(folder):
        forget_start(folder)


def _run_stages(out: Path, settings: TrainingSettings, display: Shown | None, *, resume: bool) -> Path:
    from avsseg.training.distributed import all_wait, any_of_all, rank_and_world, together
    from avsseg.writers.base import output_errors, written_whole

    runs = scene_stages(out, settings, processes=rank_and_world()[1])
    first = stage_to_go_on_with(out, runs, resume=resume)

    def keep_settings() -> None:
        if leads():
            with output_errors(out):
                out.mkdir(parents=True, exist_ok=True)
            write_toml(out / STAGES, settings)

    for number, (folder, stage) in enumerate(runs[first:], start=first + 1):
        going = resume and (folder / LAST_STATE).exists()
        all_wait()  # for the model to start from; and none may see what another has begun
        if display:
            display.say(f"run {number} of {len(runs)}, {stage.minutes:.3g} minutes: {folder}")
        if resume and not going:
            together(functools.partial(_forget_start, folder) if leads() else lambda: None, printable(folder))
        stage = from_what_there_is(stage)
        best, stopped_by = _run_one(folder, stage, display, resume=going, whole=out, ready=keep_settings)
        if any_of_all(bool(stopped_by)) and number < len(runs):
            if display:
                display.say(f"stopped after run {number}; {_go_on(out)}")
            _end(stopped_by)
    if leads():
        with written_whole(out / BEST) as partial:
            shutil.copyfile(best, partial)
    return out / BEST


@contextlib.contextmanager
def _stopping(request: Callable[[], None]) -> Iterator[list[int]]:
    """The first Ctrl-C or SIGTERM ends the run after the step in work, a second one at once; which came."""
    # with one process of `torchrun` gone there is no step to finish, and that is what it sends the others SIGTERM for
    numbers = [signal.SIGINT] if _distributed() else [signal.SIGINT, signal.SIGTERM]
    before = {number: signal.getsignal(number) for number in numbers}
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}  # as under nohup
    came: list[int] = []

    def give_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def stop(number: int, frame: object) -> None:
        if leads():
            at_once = "; press Ctrl-C again to stop at once" if number == signal.SIGINT else ""
            typer.echo(f"stopping after this step{at_once}", err=True)
        give_back()
        came.append(number)
        request()

    for number in before:
        signal.signal(number, stop)
    try:
        yield came
    finally:
        give_back()
