from __future__ import annotations

import pytest

from avsseg.writers.naming import settled


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
    assert settled(categories) == names
