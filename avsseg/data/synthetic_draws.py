"""Seeds and ranges of the rendered scenes: what is drawn for one split is never drawn for another.

A split has its own seed space (its code is part of the entropy), so no seed of the test split or of the example clips
can occur in training. Continuous parameters are divided into cells: test and example scenes draw from cells that
training and validation scenes leave out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

Split = Literal["train", "val", "test", "example"]
SPLITS: tuple[Split, ...] = ("train", "val", "test", "example")
HELD_OUT_CELLS = (2, 5, 8)
CELLS = 10
LOOK_ALIKE = 2_000_000

Choice = TypeVar("Choice")


def uses_held_out(split: Split) -> bool:
    """Whether the split draws from the parameters that training never sees."""
    return split in ("test", "example")


def generator(split: Split, seed: int, purpose: int = 0) -> np.random.Generator:
    """The random generator of one thing about one scene.

    `purpose`: 0 the objects, 1 the background, 2 + 2 v who sounds and 3 + 2 v the mix in variant v (up to 498),
    1000 + t the noise of the picture at t milliseconds, LOOK_ALIKE the silent object that is dressed as another.
    """
    return np.random.default_rng([SPLITS.index(split), seed, purpose])


@dataclass(frozen=True)
class Range:
    """A parameter range whose cells 2, 5 and 8 of 10 are kept for the held-out splits."""

    low: float
    high: float
    logarithmic: bool = False

    def draw(self, rng: np.random.Generator, split: Split) -> float:
        """One value, uniform (or log-uniform) over the cells of the split."""
        held_out = uses_held_out(split)
        cells = [c for c in range(CELLS) if (c in HELD_OUT_CELLS) == held_out]
        return self._at((cells[int(rng.integers(len(cells)))] + rng.uniform()) / CELLS)

    def cell(self, value: float) -> int:
        """The cell that holds a value of the range."""
        if self.logarithmic:
            fraction = np.log(value / self.low) / np.log(self.high / self.low)
        else:
            fraction = (value - self.low) / (self.high - self.low)
        return min(CELLS - 1, max(0, int(fraction * CELLS)))

    def _at(self, fraction: float) -> float:
        if self.logarithmic:
            return float(self.low * (self.high / self.low) ** fraction)
        return float(self.low + (self.high - self.low) * fraction)


@dataclass(frozen=True)
class Bank:
    """Discrete choices (texture kinds, numbers of spokes) with some kept for the held-out splits."""

    seen: tuple[int, ...]
    held_out: tuple[int, ...]

    def draw(self, rng: np.random.Generator, split: Split) -> int:
        """One choice of the split's bank."""
        return pick(rng, self.held_out if uses_held_out(split) else self.seen)


def pick(rng: np.random.Generator, choices: Sequence[Choice]) -> Choice:
    """One of `choices`, each as likely."""
    return choices[int(rng.integers(len(choices)))]
