"""Semantic metrics against the reference's own numbers and small label maps worked out by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from avsseg.metrics.semantic import SemanticMetrics, SemanticResult, confusion

DATA = Path(__file__).parents[1] / "data"
GOLDEN = json.loads((DATA / "metrics_golden.json").read_text())["semantic"]


@pytest.fixture(scope="module")
def golden() -> tuple[Tensor, Tensor]:
    tensors = load_file(DATA / "metrics_golden.safetensors")
    return tensors["semantic/logits"].argmax(1), tensors["semantic/target"].long()


def labels(*frames: list[int]) -> Tensor:
    """Each frame is one row of pixels."""
    return torch.tensor(frames).unsqueeze(1)


def scored(predicted: Tensor, target: Tensor, num_classes: int) -> SemanticResult:
    metrics = SemanticMetrics(num_classes)
    metrics.update(predicted, target)
    return metrics.result()


@pytest.mark.parametrize("frames", [1, 6, 20])
def test_equals_the_reference_at_any_batch_size(golden: tuple[Tensor, Tensor], frames: int) -> None:
    metrics = SemanticMetrics(9)
    for p, g in zip(*(t.split(frames) for t in golden), strict=True):
        metrics.update(p, g)
    result = metrics.result()
    assert result["M_J"] == pytest.approx(GOLDEN["M_J"], rel=1e-6)
    assert result["M_F"] == pytest.approx(GOLDEN["M_F"], rel=1e-6)
    assert result["M_J_without_background"] == pytest.approx(GOLDEN["M_J_without_class_0"], rel=1e-6)
    assert result["frames"] == 20
    assert result["frames_per_class"] == GOLDEN["count_per_class"]
    count = torch.tensor(GOLDEN["count_per_class"])
    for name, sums in (("iou_per_class", "iou_sum_per_class"), ("f_per_class", "fscore_sum_per_class")):
        assert result[name] == pytest.approx((torch.tensor(GOLDEN[sums]) / count).tolist(), rel=1e-6)


def test_confusion_has_truth_in_rows() -> None:
    counts = confusion(labels([0, 1, 1, 2], [2, 2, 2, 2]), labels([0, 0, 1, 2], [2, 2, 1, 0]), 3)
    assert counts.tolist() == [[[1, 1, 0], [0, 1, 0], [0, 0, 1]], [[0, 0, 1], [0, 0, 1], [0, 0, 2]]]


def test_a_class_is_averaged_over_the_frames_it_occurs_in() -> None:
    # class 1: IoU 1/2 in the first frame, a stray pixel in the second, absent from the third
    predicted = labels([0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0])
    target = labels([0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0])
    result = scored(predicted, target, 2)
    assert result["frames_per_class"] == [3, 2]
    assert result["iou_per_class"] == pytest.approx([(2 / 3 + 3 / 4 + 1) / 3, 1 / 4])
    # precision and recall: class 0 2/3 and 1, then 1 and 3/4, then 1 and 1; class 1 1 and 1/2, then no recall
    background = (1.3 * (2 / 3) / (0.3 * 2 / 3 + 1) + 1.3 * 0.75 / (0.3 + 0.75) + 1) / 3
    stray = (1.3 * 0.5 / (0.3 + 0.5) + 0) / 2
    assert result["f_per_class"] == pytest.approx([background, stray])
    assert result["M_J"] == pytest.approx(sum(result["iou_per_class"]) / 2)
    assert result["M_F"] == pytest.approx((background + stray) / 2)


def test_a_class_in_the_truth_alone_counts_a_frame_of_zero() -> None:
    result = scored(labels([0, 0], [0, 1]), labels([1, 0], [0, 1]), 2)
    assert result["frames_per_class"] == [2, 2]
    assert result["iou_per_class"] == pytest.approx([(1 / 2 + 1) / 2, 1 / 2])
    assert result["f_per_class"][1] == pytest.approx(1 / 2)


def test_a_class_never_seen_counts_zero_in_the_means() -> None:
    result = scored(labels([0, 0, 1, 1]), labels([0, 0, 1, 1]), 4)
    assert (result["M_J"], result["M_F"]) == (0.5, 0.5)
    assert result["M_J_without_background"] == pytest.approx(1 / 3)
    assert result["M_F_without_background"] == pytest.approx(1 / 3)
    assert (result["M_J_of_occurring"], result["M_F_of_occurring"], result["occurring_classes"]) == (1, 1, 2)
    assert result["dataset_iou"] == 1
    assert result["frames_per_class"] == [1, 1, 0, 0]
    for name in ("iou_per_class", "f_per_class", "dataset_iou_per_class"):
        assert result[name][:2] == [1, 1]
        assert all(math.isnan(value) for value in result[name][2:])


def test_without_frames_no_class_occurs() -> None:
    result = SemanticMetrics(3).result()
    assert (result["frames"], result["occurring_classes"], result["M_J"]) == (0, 0, 0)
    assert math.isnan(result["M_J_of_occurring"])


def test_counts_may_be_added_in_place_of_label_maps() -> None:
    predicted, target = labels([0, 0, 1, 0], [0, 1, 2, 0]), labels([0, 0, 1, 1], [0, 0, 0, 2])
    metrics = SemanticMetrics(3)
    for p, g in zip(predicted[:, None], target[:, None], strict=True):
        metrics.add(confusion(p, g, 3))
    assert metrics.result() == scored(predicted, target, 3)


def test_parts_are_merged_to_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    predicted, target = (torch.randint(0, 3, (4, 5, 6), generator=generator) for _ in range(2))
    whole, one, other = SemanticMetrics(4), SemanticMetrics(4), SemanticMetrics(4)
    whole.update(predicted, target)
    one.update(predicted[:1], target[:1])
    other.update(predicted[1:], target[1:])
    one.merge(other)
    for name, value in whole.result().items():
        assert one.result()[name] == pytest.approx(value, nan_ok=True), name  # type: ignore[literal-required]


def test_without_background_drops_class_0_and_not_the_last() -> None:
    result = scored(labels([0, 1, 2, 2]), labels([1, 1, 2, 2]), 3)
    assert result["M_J"] == pytest.approx((0 + 1 / 2 + 1) / 3)
    assert result["M_J_without_background"] == pytest.approx((1 / 2 + 1) / 2)
    assert result["M_F_without_background"] == pytest.approx((1.3 * 0.5 / (0.3 + 0.5) + 1) / 2)


def test_dataset_iou_pools_the_frames_of_a_class() -> None:
    result = scored(labels([1, 0, 0, 0], [1, 1, 1, 1]), labels([1, 1, 1, 0], [1, 1, 1, 1]), 2)
    assert result["dataset_iou_per_class"] == pytest.approx([1 / 3, 5 / 7])
    assert result["dataset_iou"] == pytest.approx((1 / 3 + 5 / 7) / 2)
    assert result["iou_per_class"][1] == pytest.approx((1 / 3 + 1) / 2)


def test_pixels_of_unknown_truth_do_not_count() -> None:
    with_unknown = scored(labels([0, 1, 1, 2], [2, 2, 2, 2]), labels([0, 1, 0, 255], [255, 255, 255, 255]), 3)
    without = scored(labels([0, 1, 1]), labels([0, 1, 0]), 3)
    for name in ("M_J", "M_F", "dataset_iou", "frames_per_class"):
        assert with_unknown[name] == without[name]
    assert with_unknown["frames"] == 2


def test_truth_read_as_bytes_is_enough() -> None:
    predicted, target = labels([0, 70, 3, 70]), labels([0, 3, 3, 255])
    assert confusion(predicted, target.to(torch.uint8), 71).equal(confusion(predicted, target, 71))


@pytest.mark.parametrize(
    ("predicted", "target", "message"),
    [
        (labels([0, 3]), labels([0, 1]), r"predicted holds 0\.\.3, must be 0\.\.2$"),
        (labels([0, 1]), labels([-1, 1]), r"target holds -1\.\.1, must be 0\.\.2 or 255$"),
        (labels([0, 1]), labels([3, 1]), "target holds"),
        (labels([0, 255]), labels([0, 1]), "predicted holds"),
        (labels([0, 1], [0, 1]), labels([0, 1]), "must both be"),
    ],
)
def test_wrong_labels_are_refused(predicted: Tensor, target: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scored(predicted, target, 3)


@pytest.mark.parametrize("num_classes", [1, 256])
def test_the_number_of_classes_leaves_room_for_unknown_truth(num_classes: int) -> None:
    with pytest.raises(ValueError, match="num_classes"):
        SemanticMetrics(num_classes)
