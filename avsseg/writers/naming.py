"""What marked things are called over time: an unsure mask has the name of its neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from avsseg.writers.base import TrackSettings


def final_categories(settings: TrackSettings, marked: Sequence[tuple[int, int]]) -> list[int]:
    """What is marked is called in the end, given (index of the mask, category) of all that is marked, in order.

    Where sounds give the names, as for a model with one class, unsure ones are `settled`.
    """
    if settings.heard and len(settings.categories) == 1:
        return settled(marked)
    return [category for _, category in marked]


def settled(categories: Sequence[tuple[int, int]], *, unnamed: int = 1) -> list[int]:
    """The category of each marked mask, given (index, category) in order of the index.

    An `unnamed` one takes the category before it or, where there is none, the next one after it, as far as masks follow
    each other without a gap. A stretch without any name stays unnamed.
    """
    result = [category for _, category in categories]
    positions = range(len(result))
    for order, step in ((positions, 1), (reversed(positions), -1)):
        for position in order:
            other = position - step
            if result[position] != unnamed or not 0 <= other < len(result):
                continue
            if categories[position][0] - categories[other][0] == step:
                result[position] = result[other]
    return result
