from __future__ import annotations

from collections.abc import Callable

import pytest

from avsseg.writers.base import TrackSettings
from avsseg.writers.naming import final_categories, settled


@pytest.mark.parametrize(
    ("categories", "names"),
    [
        ([], []),
        ([(0, 1), (1, 1)], [1, 1]),
        ([(0, 1), (1, 2), (2, 1), (3, 3), (4, 1)], [2, 2, 2, 3, 3]),
        ([(0, 2), (2, 1), (3, 1), (5, 3)], [2, 1, 1, 3]),  # gaps part stretches
        ([(3, 1), (4, 1), (5, 4), (7, 1)], [4, 4, 4, 1]),
    ],
)
def test_unsure_masks_have_the_name_of_their_neighbours(categories: list[tuple[int, int]], names: list[int]) -> None:
    assert settled(categories, 9) == names


def test_a_name_does_not_reach_far() -> None:
    stretch = [(index, 2 if index == 5 else 1) for index in range(12)]
    assert settled(stretch, 3) == [1, 1, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1]
    assert settled([*stretch, (12, 3)], 4) == [1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3]


def test_classes_of_the_model_itself_are_no_names_to_settle(track_settings: Callable[..., TrackSettings]) -> None:
    marked = [(0, 2), (1, 1)]
    assert final_categories(track_settings(heard=("dog",)), marked) == [2, 2]
    assert final_categories(track_settings(("background", "dog", "cat"), heard=("dog",)), marked) == [2, 1]
    assert final_categories(track_settings(), marked) == [2, 1]
