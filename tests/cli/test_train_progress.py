"""What a run shows of itself."""

from __future__ import annotations

import math

import pytest

from avsseg.cli.train_progress import describe
from avsseg.training.trainer import Progress


@pytest.mark.parametrize(
    ("values", "validation", "seconds_left", "text"),
    [
        (
            {"loss": 0.5, "M_J": 0.25},
            {"M_J": 0.125, "M_F": 0.3},
            600,
            "loss 0.500, M_J 0.250, val M_J 0.125, 10 min left",
        ),
        ({"loss": 0.5, "M_J": math.nan}, {}, 89, "loss 0.500, 89 s left"),  # no frame of the batch has truth
        ({"loss": 0.5}, {"seen": 0.7, "heard": 0.8}, 5, "loss 0.500, val seen 0.700, val heard 0.800, 5 s left"),
    ],
)
def test_a_step_in_one_line(
    values: dict[str, float], validation: dict[str, float], seconds_left: float, text: str
) -> None:
    assert describe(Progress(7, 0.5, seconds_left, values, validation)) == text
