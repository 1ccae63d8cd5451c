"""How far a score would differ on other clips of the same kind: a bootstrap over clips, whose frames are alike."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

DRAWS = 2000
SHARE = 0.95


def clip_interval(totals: NDArray[np.float64], counts: NDArray[np.float64]) -> tuple[float, float]:
    """The middle 95 % of a score over 2000 sets of as many clips, drawn from these with replacement; NaN below 2 clips.

    totals and counts (clips, K): what each clip adds to the score's numerator and denominator, in each of K classes.
    The score is the mean over classes of sum of totals / sum of counts; of several classes, one that a set lacks counts
    as 0, as in `SemanticMetrics`; of a single one, sets without it do not count.
    """
    clips, classes = totals.shape
    if np.count_nonzero(counts.any(1)) < 2:
        return math.nan, math.nan
    drawn = np.random.default_rng(0).multinomial(clips, np.full(clips, 1 / clips), DRAWS).astype(np.float64)
    total, count = drawn @ totals, drawn @ counts
    ratios = np.divide(total, count, out=np.zeros_like(total), where=count > 0)
    scores = ratios.mean(1) if classes > 1 else ratios[count > 0]
    low, high = np.quantile(scores, [(1 - SHARE) / 2, (1 + SHARE) / 2])
    return float(low), float(high)
