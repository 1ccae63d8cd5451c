"""What marked things are called over time: an unsure mask has the name of its neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from avsseg.writers.base import TrackSettings


# how far a name reaches into a stretch of unsure masks
REACH_S = 3.0


def reach(settings: TrackSettings) -> int:
    """`REACH_S` in masks, at least one."""
    return max(1, round(REACH_S * settings.rate))


def final_categories(settings: TrackSettings, marked: Sequence[tuple[int, int]]) -> list[int]:
    """What is marked is called in the end, given (index of the mask, category) of all that is marked, in order.

    Where sounds give the names, as for a model with one class, unsure ones are `settled`.
    """
    if settings.heard and len(settings.categories) == 1:
        return settled(marked, reach(settings))
    return [category for _, category in marked]


def settled(categories: Sequence[tuple[int, int]], reach: int, *, unnamed: int = 1) -> list[int]:
    """The category of each marked mask, given (index, category) in order of the index.

    An `unnamed` one takes the name of the nearest one before it or, where there is none, after it, if that is at most
    `reach` masks away and masks follow each other without a gap until there. All others stay unnamed.
    """
    result = [category for _, category in categories]
    positions = range(len(result))
    for order in (positions, reversed(positions)):
        source: tuple[int, int] | None = None  # the mask whose name is carried on, and that name
        last = 0
        for position in order:
            index, category = categories[position]
            if category != unnamed:
                source = index, category
            elif source is None or abs(index - last) != 1 or abs(index - source[0]) > reach:
                source = None
            elif result[position] == unnamed:
                result[position] = source[1]
            last = index
    return result
