"""Training checkpoints: everything that a run needs to go on, written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from avsseg.errors import AvssegError, OutputError


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes `state` (tensors, numbers, strings, lists, dicts) beside `path` and renames it. Raises OutputError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OutputError(f"{path}: the checkpoint cannot be written ({error.strerror}). Free space") from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What `save_checkpoint` wrote; executes nothing that the file holds. Raises AvssegError."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise AvssegError(f"{path}: not a checkpoint that can be read ({reason}). Remove it to start anew") from error
    return state
