"""How far a score would differ on other clips of the same kind: a bootstrap over clips, whose frames are alike."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

DRAWS = 2000
AT_ONCE = 100
SHARE = 0.95


def clip_interval(totals: NDArray[np.float64], counts: NDArray[np.float64]) -> tuple[float, float]:
    """The middle 95 % of a score over 2000 sets of as many clips, drawn from these with replacement; NaN below 2 clips.

    totals and counts (clips, K): what each clip adds to the score's numerator and denominator, in each of K classes.
    The score is the mean over classes of sum of totals / sum of counts. Classes that none of these clips has count as 0
    in it, as in `SemanticMetrics`; one that only a drawn set lacks does not, for then every set would score lower.
    """
    clips, classes = totals.shape
    if np.count_nonzero(counts.any(1)) < 2:
        return math.nan, math.nan
    rng = np.random.default_rng(0)
    scores: list[NDArray[np.float64]] = []
    for _ in range(DRAWS // AT_ONCE):  # a draw is as long as the split
        drawn = rng.multinomial(clips, np.full(clips, 1 / clips), AT_ONCE).astype(np.float64)
        total, count = drawn @ totals, drawn @ counts
        ratios = np.divide(total, count, out=np.zeros_like(total), where=count > 0)
        there = (count > 0).sum(1)
        scores.append(ratios.sum(1)[there > 0] / there[there > 0])
    share_of_classes = np.count_nonzero(counts.any(0)) / classes
    low, high = np.quantile(np.concatenate(scores), [(1 - SHARE) / 2, (1 + SHARE) / 2]) * share_of_classes
    return float(low), float(high)
