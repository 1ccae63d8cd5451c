from __future__ import annotations

import math

import numpy as np
import pytest

from avsseg.metrics.interval import clip_interval


def column(values: list[float]) -> np.ndarray:
    return np.array(values, np.float64)[:, None]


def test_many_clips_give_the_interval_of_their_standard_error() -> None:
    rng = np.random.default_rng(3)
    scores = rng.uniform(0.2, 0.9, 500)
    low, high = clip_interval(column(list(5 * scores)), np.full((500, 1), 5.0))
    error = scores.std() / math.sqrt(500)
    assert low == pytest.approx(scores.mean() - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(scores.mean() + 1.96 * error, abs=0.1 * error)


def test_frames_of_a_clip_come_and_go_together() -> None:
    scores = np.random.default_rng(4).uniform(size=30)
    few, many = (clip_interval(column(list(n * scores)), np.full((30, 1), float(n))) for n in (1, 50))
    assert few == pytest.approx(many)


def test_clips_with_more_frames_weigh_more() -> None:
    low, high = clip_interval(column([90.0] * 10 + [0.0] * 10), column([100.0] * 10 + [1.0] * 10))
    assert low > 0.8
    assert high < 0.9


def test_it_is_the_same_every_time_and_nothing_where_all_are_alike() -> None:
    totals, counts = column([1.0, 2.0, 0.5]), column([2.0, 4.0, 1.0])
    assert clip_interval(totals, counts) == (0.5, 0.5)
    uneven = column([1.0, 2.0, 0.0])
    assert clip_interval(uneven, counts) == clip_interval(uneven, counts)


@pytest.mark.parametrize("counts", [[0.0, 0.0], [3.0, 0.0], [3.0]])
def test_one_clip_or_none_tells_nothing(counts: list[float]) -> None:
    assert all(map(math.isnan, clip_interval(column(counts), column(counts))))


def test_sets_without_a_frame_with_truth_do_not_count() -> None:
    assert clip_interval(column([1.0, 1.0, 0.0, 0.0]), column([2.0, 2.0, 0.0, 0.0])) == (0.5, 0.5)


def test_a_class_that_only_a_drawn_set_lacks_does_not_count() -> None:
    """Of two clips with a class each, half of the sets have both of them; a third class is in neither."""
    totals, counts = np.array([[0.2, 0, 0], [0, 0.6, 0]]), np.array([[1.0, 0, 0], [0, 1, 0]])
    assert clip_interval(totals[:, :2], counts[:, :2]) == pytest.approx((0.2, 0.6))
    assert clip_interval(totals, counts) == pytest.approx((0.2 * 2 / 3, 0.6 * 2 / 3))


def test_an_interval_of_many_rare_classes_holds_the_score() -> None:
    rng = np.random.default_rng(5)
    counts = np.repeat(np.eye(70), 2, axis=0) * 10
    totals = counts * rng.uniform(0.2, 0.9, (140, 1))
    low, high = clip_interval(totals, counts)
    assert low < (totals.sum(0) / counts.sum(0)).mean() < high
