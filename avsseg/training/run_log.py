"""What a run logs: `train.csv` and `val.csv`, which a resumed run takes up, and the same for TensorBoard."""

from __future__ import annotations

import csv
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from avsseg.writers.base import output_errors, written_whole

logger = logging.getLogger(__name__)

LOGS = ("train.csv", "val.csv")


class RunLog:
    """The logs in the folder of a run, which is there. All methods raise OutputError when the disk refuses."""

    def __init__(self, folder: Path, *, tensorboard: bool = False) -> None:
        self.folder = folder
        self._first = 0
        self._board: Any = None
        self._has_board = tensorboard

    def add(self, name: Literal["train", "val"], step: int, seconds: float, values: Mapping[str, float]) -> None:
        """One line of what was measured up to a step, so many seconds after the start of the run."""
        path = self.folder / f"{name}.csv"
        with output_errors(path):
            columns = self._columns(path)
            with path.open("a", newline="") as file:
                writer = csv.writer(file)
                if not columns:
                    columns = list(values)
                    writer.writerow(["step", "minutes", *columns])
                numbers = [f"{values.get(column, math.nan):.5f}" for column in columns]
                writer.writerow([step, f"{seconds / 60:.2f}", *numbers])
        if self._has_board and self._board is None:  # now that the step is known from which on earlier events go
            with output_errors(self.folder):
                self._board = _summary_writer(self.folder, self._first)
            self._has_board = self._board is not None
        if self._board is not None:
            with output_errors(self.folder / "tensorboard"):
                for key, value in values.items():
                    self._board.add_scalar(f"{name}/{key}", value, step)
                self._board.flush()

    def _columns(self, path: Path) -> list[str]:
        """What the log has columns for; the version that began a run may have logged other things than this one."""
        if not path.exists():
            return []
        with path.open(newline="") as file:
            return next(csv.reader(file), [])[2:]

    def forget_after(self, trained: int, validated: int) -> None:
        """Drops lines beyond these steps, which come again, and those that a full disk cut short."""
        for name, step in zip(LOGS, (trained, validated), strict=True):
            _forget_after(self.folder / name, step)
        self._first = max(trained, validated) + 1


def whole_rows(log: Path) -> tuple[list[str], list[list[str]]]:
    """The header and the lines of a log, without those that a full disk cut short; nothing where it cut the header."""
    with log.open(newline="") as file:
        if not file.readline().endswith("\n"):
            return [], []
        file.seek(0)
        header, *rows = csv.reader(file)
    return header, [row for row in rows if len(row) == len(header) and row[0].isdigit() and all(map(_is_number, row))]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _forget_after(log: Path, step: int) -> None:
    if not log.is_file() or not log.stat().st_size:
        return
    header, rows = whole_rows(log)
    if not header:
        with output_errors(log):
            log.unlink()
        return
    with written_whole(log) as partial, partial.open("w", newline="") as file:
        csv.writer(file).writerows([header, *(row for row in rows if int(row[0]) <= step)])


def _summary_writer(folder: Path, first: int) -> Any:
    """TensorBoard's writer; what earlier files say of the steps from `first` on is not shown any more."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        logger.warning('no TensorBoard log: `pip install "avsseg[train]"` to have one')
        return None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=first)
