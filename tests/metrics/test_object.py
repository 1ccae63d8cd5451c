"""Object metrics against the reference's own numbers, a plain 255-pass loop and numbers worked out by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from avsseg.metrics.object import (
    AvsBenchClipMetrics,
    AvsBenchObjectMetrics,
    FrameScores,
    StrictObjectMetrics,
    f_measure,
    f_thresholds,
    frame_scores,
)

DATA = Path(__file__).parents[1] / "data"
GOLDEN = json.loads((DATA / "metrics_golden.json").read_text())


@pytest.fixture(scope="module")
def golden() -> tuple[Tensor, Tensor]:
    tensors = load_file(DATA / "metrics_golden.safetensors")
    return tensors["object/logits"].sigmoid(), tensors["object/target"] > 0.5


def by_255_passes(probability: Tensor, target: Tensor) -> Tensor:
    """(F, 255): the definition, one comparison of the whole frame a threshold."""
    curves = []
    for frame, truth in zip(probability, target, strict=True):
        curve = []
        for threshold in f_thresholds():
            marked = frame >= threshold
            hits = int((marked & truth).sum())
            precision, recall = hits / (int(marked.sum()) + 1e-20), hits / (int(truth.sum()) + 1e-20)
            curve.append(1.3 * precision * recall / (0.3 * precision + recall) if hits else 0.0)
        curves.append(curve)
    return torch.tensor(curves, dtype=torch.float64)


def row(*values: float) -> Tensor:
    return torch.tensor(values).reshape(1, 1, -1)


@pytest.mark.parametrize("frames", [1, 5, 15])
def test_avsbench_protocol_equals_the_reference(golden: tuple[Tensor, Tensor], frames: int) -> None:
    probability, target = golden
    expected = GOLDEN[f"object_batch{frames}"]
    all_batches = AvsBenchObjectMetrics()
    for index, (p, g) in enumerate(zip(probability.split(frames), target.split(frames), strict=True)):
        scores, one_batch = frame_scores(p, g), AvsBenchObjectMetrics()
        one_batch.update(scores)
        all_batches.update(scores)
        assert one_batch.result()["M_J"] == pytest.approx(expected["M_J_per_batch"][index], rel=1e-6)
        assert one_batch.result()["M_F"] == pytest.approx(expected["M_F_per_batch"][index], rel=1e-6)
    result = all_batches.result()
    assert result["M_J"] == pytest.approx(expected["M_J"], rel=1e-6)
    assert result["M_F"] == pytest.approx(expected["M_F"], rel=1e-6)
    assert (result["frames"], result["batches"]) == (15, 15 // frames)


def test_thresholds_are_the_reference_s() -> None:
    thresholds = f_thresholds()
    assert (len(thresholds), thresholds[0].item(), thresholds[127].item(), thresholds[-1].item()) == (255, 0, 0.5, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_f_curve_equals_255_passes_on_ties(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    thresholds = f_thresholds()
    above = torch.nextafter(thresholds, torch.tensor(2.0))
    below = torch.nextafter(thresholds, torch.tensor(-1.0))
    special = torch.tensor([0.0, -0.0, 1.0, 1.5, -0.25, math.nan, math.inf, -math.inf])
    values = torch.cat([thresholds, above, below, special, torch.rand(1000, generator=generator)]).to(dtype)
    if dtype == torch.float64:
        values = torch.cat([values, thresholds.double() + 1e-12, thresholds.double() - 1e-12])
    order = torch.stack([torch.randperm(len(values), generator=generator) for _ in range(3)])
    probability = values[order].unsqueeze(1)
    target = torch.rand(probability.shape, generator=generator) < torch.tensor([0.5, 0.05, 0.9]).view(3, 1, 1)
    torch.testing.assert_close(
        frame_scores(probability, target).f_curve, by_255_passes(probability, target), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("index", range(255))
def test_a_pixel_on_a_threshold_reaches_it_and_one_below_does_not(index: int) -> None:
    threshold = f_thresholds()[index]
    below = torch.nextafter(threshold, torch.tensor(-1.0))
    truth = torch.ones(2, 1, 1, dtype=torch.bool)
    curves = frame_scores(torch.stack([threshold, below]).view(2, 1, 1), truth).f_curve
    assert (curves > 0).sum(1).tolist() == [index + 1, index]


def test_half_precision_is_compared_as_float32() -> None:
    probability = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0)).half()
    target = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(1)) > 0.5
    assert frame_scores(probability, target).f_curve.equal(frame_scores(probability.float(), target).f_curve)


def test_iou_is_strictly_above_one_half() -> None:
    scores = frame_scores(row(0.5, 0.51, 0.9, 0.1), row(1, 1, 0, 0) > 0)
    assert scores.iou.item() == pytest.approx(1 / (3 + 1e-7), rel=1e-12)
    counts = (scores.intersection, scores.union, scores.predicted, scores.truth, scores.pixels)
    assert [count.item() for count in counts] == [1, 3, 2, 2, 4]


def test_iou_of_a_frame_without_truth_is_the_unmarked_share() -> None:
    scores = frame_scores(row(0.9, 0.1, 0.2, 0.5), row(0, 0, 0, 0) > 0)
    assert scores.iou.item() == 0.75
    assert (scores.intersection.item(), scores.union.item()) == (0, 1)
    assert not scores.f_curve.any()


def test_nan_is_never_marked() -> None:
    target = row(1, 0, 1, 1) > 0
    with_nan = frame_scores(row(math.nan, math.nan, 0.8, 0.2), target)
    negative = frame_scores(row(-1.0, -1.0, 0.8, 0.2), target)
    assert with_nan.f_curve.equal(negative.f_curve)
    assert with_nan.iou.equal(negative.iou)
    assert with_nan.f_curve[0, 0].item() == pytest.approx(1.3 * 2 / (0.3 * 3 + 2))


def test_f_measure_weighs_precision() -> None:
    hits, predicted, truth = torch.tensor([6, 0, 0, 0]), torch.tensor([8, 5, 0, 0]), torch.tensor([24, 0, 7, 0])
    precision, recall = 6 / 8, 6 / 24
    expected = [1.3 * precision * recall / (0.3 * precision + recall), 0, 0, 0]
    assert f_measure(hits, predicted, truth).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("probability", "target"),
    [
        (torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 4, dtype=torch.bool)),
        (torch.zeros(2, 4, 4), torch.zeros(1, 4, 4, dtype=torch.bool)),
        (torch.zeros(0, 4, 4), torch.zeros(0, 4, 4, dtype=torch.bool)),
        (torch.zeros(2, 4, 4), torch.zeros(2, 4, 4, dtype=torch.uint8)),
        (torch.zeros(2, 4, 4, dtype=torch.int64), torch.zeros(2, 4, 4, dtype=torch.bool)),
    ],
    ids=["channel", "broadcast", "no frames", "target in bytes", "whole numbers"],
)
def test_wrong_tensors_are_refused(probability: Tensor, target: Tensor) -> None:
    with pytest.raises(ValueError, match="must"):
        frame_scores(probability, target)


def seen(*f_values: float, iou: float = 0.5) -> FrameScores:
    """One frame with truth whose F curve begins with the given values."""
    curve = torch.zeros(1, 255, dtype=torch.float64)
    curve[0, : len(f_values)] = torch.tensor(f_values)
    one = torch.ones(1, dtype=torch.int64)
    return FrameScores(torch.tensor([iou], dtype=torch.float64), one, 2 * one, one, 2 * one, 10 * one, curve)


def empty(predicted: int) -> FrameScores:
    """One frame of 10 pixels without truth."""
    return frame_scores(row(*[0.9] * predicted, *[0.1] * (10 - predicted)), torch.zeros(1, 1, 10, dtype=torch.bool))


def joined(*parts: FrameScores) -> FrameScores:
    return FrameScores.joined(parts)


def test_frames_are_joined_and_picked() -> None:
    parts = [seen(0.8, iou=0.5), empty(3), seen(0.1, iou=0.2)]
    whole = joined(*parts)
    assert whole.iou.tolist() == pytest.approx([0.5, 0.7, 0.2])
    assert whole.f_curve.shape == (3, 255)
    picked = whole.at([2, 0])
    for name in FrameScores.__dataclass_fields__:
        assert getattr(picked, name).equal(torch.cat([getattr(parts[2], name), getattr(parts[0], name)]))
    assert whole.at([]).iou.shape == (0,)


def test_avsbench_takes_the_best_threshold_of_each_batch() -> None:
    first, second = seen(0.8, 0.2), seen(0.1, 0.5)
    together, apart = AvsBenchObjectMetrics(), AvsBenchObjectMetrics()
    together.update(joined(first, second))
    apart.update(first)
    apart.update(second)
    assert together.result()["M_F"] == pytest.approx(0.45)
    assert apart.result()["M_F"] == pytest.approx(0.65)


def test_avsbench_averages_batches_unweighted() -> None:
    metrics = AvsBenchObjectMetrics()
    metrics.update(joined(seen(0.6, iou=0.9), seen(0.6, iou=0.7), seen(0.6, iou=0.8)))
    metrics.update(seen(0.2, iou=0.2))
    assert metrics.result() == pytest.approx(
        {"M_J": 0.5, "M_F": 0.4, "frames": 4, "frames_with_truth": 4, "batches": 2}
    )


def test_avsbench_leaves_empty_frames_out_of_m_f_unless_the_whole_batch_is_empty() -> None:
    metrics = AvsBenchObjectMetrics()
    metrics.update(joined(seen(0.8, iou=0.5), empty(1)))
    assert metrics.result() == pytest.approx(
        {"M_J": 0.7, "M_F": 0.8, "frames": 2, "frames_with_truth": 1, "batches": 1}
    )
    metrics.update(joined(empty(0), empty(4)))
    assert metrics.result() == pytest.approx(
        {"M_J": 0.75, "M_F": 0.4, "frames": 4, "frames_with_truth": 1, "batches": 2}
    )


def test_avsbench_makes_batches_of_clips_that_come_one_by_one() -> None:
    clips = [seen(0.8, 0.2, iou=0.9), joined(seen(0.1, 0.5, iou=0.1), empty(5)), empty(0)]
    by_clip, by_batch = AvsBenchClipMetrics(batch=2), AvsBenchObjectMetrics()
    assert math.isnan(by_clip.result()["M_J"])
    by_clip.update(clips[0])
    # asked for in the middle of a batch, without ending it
    assert by_clip.result() == pytest.approx(
        {"M_J": 0.9, "M_F": 0.8, "frames": 1, "frames_with_truth": 1, "batches": 1}
    )
    by_clip.update(clips[1])
    by_clip.update(clips[2])
    by_batch.update(joined(*clips[:2]))
    by_batch.update(clips[2])
    assert by_clip.result() == by_batch.result()
    assert by_clip.result()["batches"] == 2


def test_strict_by_hand() -> None:
    metrics = StrictObjectMetrics()
    metrics.update(joined(seen(0.8, 0.2, iou=0.5), empty(3), seen(0.1, 0.5, iou=0.3), empty(0)))
    assert metrics.result() == pytest.approx(
        {
            "M_J": 0.4,
            "M_F": 0.45,
            "dataset_iou": (1 + 1) / (2 + 2 + 3),
            "frames": 4,
            "frames_with_truth": 2,
            "empty_frames": 2,
            "false_positive_area": 0.15,
        }
    )


@pytest.mark.parametrize("frames", [1, 2, 4, 7])
def test_strict_does_not_depend_on_the_grouping(golden: tuple[Tensor, Tensor], frames: int) -> None:
    probability, target = golden
    whole, parts = StrictObjectMetrics(), StrictObjectMetrics()
    whole.update(frame_scores(probability, target))
    for p, g in zip(probability.split(frames), target.split(frames), strict=True):
        parts.update(frame_scores(p, g))
    assert parts.result() == whole.result()
    assert whole.result()["empty_frames"] == 7
    # where no frame is empty the reference's single batch has the same meaning
    assert whole.result()["M_F"] == pytest.approx(GOLDEN["object_batch15"]["M_F"], rel=1e-6)


def test_strict_of_parts_is_merged_to_that_of_all(golden: tuple[Tensor, Tensor]) -> None:
    scores = frame_scores(golden[0], golden[1])
    empty = frame_scores(torch.tensor([[[0.9, 0.1]]]), torch.zeros(1, 1, 2, dtype=torch.bool))
    whole, one, other = StrictObjectMetrics(), StrictObjectMetrics(), StrictObjectMetrics()
    for metrics in (whole, one):
        metrics.update(scores.at([0, 2]))
    for metrics in (whole, other):
        metrics.update(scores.at([1]))
        metrics.update(empty)
    one.merge(other)
    assert one.result() == pytest.approx(whole.result())
    assert one.result()["false_positive_area"] == 0.5


def test_what_nothing_was_counted_for_is_nan() -> None:
    metrics = StrictObjectMetrics()
    metrics.update(empty(0))
    result = metrics.result()
    assert all(math.isnan(result[name]) for name in ("M_J", "M_F", "dataset_iou"))
    assert result["false_positive_area"] == 0
    only_seen = StrictObjectMetrics()
    only_seen.update(seen(0.5))
    assert math.isnan(only_seen.result()["false_positive_area"])
    nothing = AvsBenchObjectMetrics().result()
    assert math.isnan(nothing["M_J"])
    assert math.isnan(nothing["M_F"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_does_not_matter(golden: tuple[Tensor, Tensor]) -> None:
    probability, target = golden
    there, here = frame_scores(probability.cuda(), target.cuda()), frame_scores(probability, target)
    for name in FrameScores.__dataclass_fields__:
        assert getattr(there, name).equal(getattr(here, name))
