"""Training checkpoints: everything that a run needs to go on, written whole or not at all."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from avsseg.errors import AvssegError
from avsseg.writers.base import written_whole


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes `state` (tensors, numbers, strings, lists, dicts) beside `path` and renames it. Raises OutputError."""
    with written_whole(path) as partial:
        torch.save(state, partial)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What `save_checkpoint` wrote; executes nothing that the file holds. Raises AvssegError."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, LookupError, pickle.UnpicklingError) as error:
        reason = (str(error) or repr(error)).splitlines()[0]
        raise AvssegError(f"{path}: not a checkpoint that can be read ({reason}). Remove it to start anew") from error
    return state
