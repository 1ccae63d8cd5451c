from __future__ import annotations

from typing import Any

import pytest

from avsseg.errors import UsageError
from avsseg.pipeline.options import OutputOptions, SegmentOptions


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rate": 0}, "from 0.001 to 1000 masks a second"),
        ({"rate": float("nan")}, "from 0.001"),
        ({"size": 31}, "from 32 to 4096 pixels"),
        ({"window": 0}, "at least 1 mask"),
        ({"window": 4, "overlap": 4}, "with a window of 4 it must be from 0 to 3"),
        ({"overlap": -1}, "from 0"),
        ({"start_s": -0.5}, "0 or later"),
        ({"start_s": 5, "end_s": 5}, "later than start"),
        ({"audio_track": 0}, "audio track is 0; it must be 1 or more"),
    ],
)
def test_values_out_of_bounds_are_refused_with_the_bound(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SegmentOptions(**values)


@pytest.mark.parametrize("threshold", [0.0, 1.0, -1.0, float("nan")])
def test_a_threshold_that_everything_or_nothing_exceeds_is_refused(threshold: float) -> None:
    with pytest.raises(UsageError, match="between 0 and 1"):
        OutputOptions(threshold=threshold)
