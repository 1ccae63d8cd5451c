"""Timing several things so that they can be compared although the machine is not quiet."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch

Listener = Callable[[str], None]


def ignore(text: str) -> None:
    """Hears nothing."""


def time_in_turn(
    actions: Mapping[str, Callable[[], object]], repeats: int, device: torch.device, listener: Listener = ignore
) -> dict[str, tuple[float, ...]]:
    """`repeats` times in seconds of each action, until `device` is done with it.

    A round times every action once, so that a machine that is busy for a while slows all of them down and not one.
    """
    times: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(repeats):
        for name, action in actions.items():
            listener(f"round {turn + 1} of {repeats}: {name}")
            synchronise(device)
            start = time.perf_counter()
            action()
            synchronise(device)
            times[name].append(time.perf_counter() - start)
    return {name: tuple(taken) for name, taken in times.items()}


def synchronise(device: torch.device) -> None:
    """Waits until a GPU has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
