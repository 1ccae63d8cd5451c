"""What the folder of a training run holds, and whether it may hold another. No torch.

RUN/settings.toml        everything that the run was told
RUN/model.json           the model's configuration
RUN/train.csv, val.csv   what it logged; tensorboard/ the same for TensorBoard
RUN/last.pt, best.pt     its whole state, at the last step, where it goes on, and at the best validation
RUN/best.safetensors     the model of the best validation, for `avsseg run --model`; last.safetensors likewise
RUN/curves.png           loss and scores
RUN/run.lock             while a process trains there
RUN/stages.toml          of `--preset scenes`: what the whole was told; its runs have folders, RUN/1-encoders ...
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from avsseg.errors import UsageError, printable
from avsseg.training.run_log import LOGS
from avsseg.weights.locking import exclusive
from avsseg.writers.base import make_folders, output_errors, remove_empty

SETTINGS, STAGES, MODEL = "settings.toml", "stages.toml", "model.json"
BEST_STATE, LAST_STATE = "best.pt", "last.pt"
BEST, LAST = "best.safetensors", "last.safetensors"
CURVES = "curves.png"
# there before the first step; a run that was killed before its first checkpoint leaves them and its logs alone
STARTED = (MODEL, SETTINGS)
WRITTEN = (BEST_STATE, BEST, LAST, CURVES, *LOGS, *STARTED)


def check_folder(folder: Path, *, resume: bool, leads: bool) -> None:
    """Raises UsageError where there is nothing to go on with, or where a new run would replace what is no part of it.

    Only the process that leads looks for the rest of a run: others may look when it has begun to write.
    """
    shown = printable(folder)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{shown}: is a file, and a run needs a folder. Choose another --out")
    going = (folder / LAST_STATE).exists()
    if resume and not going:
        raise UsageError(f"{shown}: holds no run to resume (no last.pt)")
    if going and not resume:
        raise UsageError(f"{shown}: holds a run already. Go on with --resume, or choose another --out")
    held = [name for name in WRITTEN if os.path.lexists(folder / name)]
    if resume or not leads or not held or set(STARTED) <= set(held) <= {*STARTED, *LOGS}:
        return
    raise UsageError(f"{shown}: holds {held[0]}, but no run to go on with (no last.pt). Choose another --out")


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keeps every other process out of the folder of a run, which is made; one that stays empty is removed.

    Raises UsageError where another is at work there, and OutputError.
    """

    def refuse() -> None:
        raise UsageError(
            f"{printable(folder)}: another process is training there. Wait for its end, or choose another --out"
        )

    with output_errors(folder):
        made = make_folders(folder)
    try:
        with exclusive(folder / "run", on_wait=refuse):
            yield
    finally:
        remove_empty(made)


def forget_start(folder: Path) -> None:
    """Removes what a run leaves that was killed before its first checkpoint. Raises OutputError."""
    with output_errors(folder):
        for name in (*STARTED, *LOGS):
            (folder / name).unlink(missing_ok=True)
