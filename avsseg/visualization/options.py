"""What `avsseg visualize` draws; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from avsseg.errors import UsageError

Kind = Literal["panel", "features"]

MOST_ROWS = 100


@dataclass(frozen=True)
class VisualizeOptions:
    """What is drawn beside each frame, and at which instants.

    Attributes:
        kind: "panel" is frame, truth, prediction; "features" is frame, truth, features before and after CIP.
        at_s: the instants of a picture, in seconds; empty is `rows` of them, spread evenly.
        rows: how many there are where `at_s` is empty.
        truth: a folder of true masks, or None.
        threshold: probability above which a pixel sounds; for a model with one class.

    Raises:
        UsageError: a value is out of its bounds.
    """

    kind: Kind = "panel"
    at_s: tuple[float, ...] = ()
    rows: int = 5
    truth: Path | None = None
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if not 1 <= self.rows <= MOST_ROWS:
            raise UsageError(f"rows is {self.rows}; it must be from 1 to {MOST_ROWS}")
        if len(self.at_s) > MOST_ROWS:
            raise UsageError(f"at names {len(self.at_s)} instants; a picture has at most {MOST_ROWS}")
        if not 0 < self.threshold < 1:
            raise UsageError(f"threshold is {self.threshold}; it must be between 0 and 1")
