"""Training checkpoints: everything that a run needs to go on, written whole or not at all."""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from avsseg.errors import AvssegError, OutputError, printable
from avsseg.writers.base import written_whole


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes `state` (tensors, numbers, strings, lists, dicts) beside `path` and renames it. Raises OutputError."""
    with written_whole(path) as partial:
        try:
            torch.save(state, partial)
        except RuntimeError as error:
            # PyTorch's archive writer hides the disk's own error behind a failed assertion
            if not any(mark in str(error) for mark in ("enforce fail", "PytorchStreamWriter")):
                raise
            raise OutputError(
                f"{printable(path)}: cannot be written whole, as on a full disk. Free space there, or choose another "
                "place"
            ) from error


def load_checkpoint(path: Path, *, mapped: bool = False) -> dict[str, Any]:
    """What `save_checkpoint` wrote; executes nothing that the file holds. Raises AvssegError.

    `mapped` leaves the tensors in the file until they are used, for a look at the numbers.
    """
    try:
        state: object = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        if not isinstance(state, dict):
            raise ValueError(f"holds a {type(state).__name__}")
    except (OSError, RuntimeError, ValueError, EOFError, LookupError, pickle.UnpicklingError) as error:
        reason = (str(error) or repr(error)).splitlines()[0]
        raise AvssegError(
            f"{printable(path)}: not a checkpoint that can be read ({reason}). Remove it, or choose another folder"
        ) from error
    return state


def load_later(last: Path, best: Path) -> tuple[Path, dict[str, Any]]:
    """The state that a run goes on from and where it is: `last`, or `best` if the run was killed between the two.

    `best` may be missing, or of another run. Raises AvssegError.
    """
    state = load_checkpoint(last)
    if best.exists():
        other = load_checkpoint(best, mapped=True)
        if other.get("run") == state.get("run") and _reached(other) > _reached(state):
            return best, load_checkpoint(best)
    return last, state


def _reached(state: Mapping[str, Any]) -> tuple[int, float]:
    return state.get("step", 0), state.get("best_score", -math.inf)
