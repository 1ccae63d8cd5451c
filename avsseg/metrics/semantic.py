"""M_J and M_F of the semantic setting (AVSS): class scores averaged over the frames in which the class occurs."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor

from avsseg.metrics.object import f_measure

IGNORE = 255
# AVSBench's own; its only effect is that 0 / 0 is 0
IOU_OFFSET = 2.220446049250313e-16


class SemanticResult(TypedDict):
    """Scores 0..1; lists have one entry a class, background first, NaN for a class that never occurs.

    `..._of_occurring` are means over those classes, `occurring_classes` many, that occur in some frame.
    """

    M_J: float
    M_F: float
    M_J_of_occurring: float
    M_F_of_occurring: float
    occurring_classes: int
    M_J_without_background: float
    M_F_without_background: float
    dataset_iou: float
    frames: int
    frames_per_class: list[int]
    iou_per_class: list[float]
    f_per_class: list[float]
    dataset_iou_per_class: list[float]


def confusion(predicted: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """predicted and target (F, H, W) of any integer type -> (F, C, C) int64 pixel counts, truth in rows, on the CPU.

    Pixels whose target is 255 do not count.
    """
    if predicted.ndim != 3 or predicted.shape != target.shape:
        raise ValueError(
            f"predicted and target must both be (F, H, W), not {tuple(predicted.shape)} and {tuple(target.shape)}"
        )
    counted = target != IGNORE
    truth, guess = target[counted], predicted[counted]
    for name, values in (("target", truth), ("predicted", guess)):
        if ((values < 0) | (values >= num_classes)).any():
            raise ValueError(
                f"{name} holds {int(values.min())}..{int(values.max())}, must be 0..{num_classes - 1}"
                + f" or {IGNORE}" * (name == "target")
            )
    frame = torch.arange(len(target), device=target.device).view(-1, 1, 1).expand_as(target)[counted]
    cell = (frame * num_classes + truth) * num_classes + guess
    counts = torch.bincount(cell, minlength=len(target) * num_classes**2)
    return counts.view(len(target), num_classes, num_classes).cpu()


class SemanticMetrics:
    """M_J and M_F by AVSBench's arithmetic, their means without the background, and dataset-level IoU.

    A class occurs in a frame if the prediction or the truth has a pixel of it, so a stray pixel adds a frame of IoU 0.
    Padded frames are for the caller to leave out, or to put in as AVSBench does.
    """

    def __init__(self, num_classes: int) -> None:
        """num_classes: 2 to 255, background included as class 0."""
        if not 2 <= num_classes <= IGNORE:
            raise ValueError(f"num_classes is {num_classes}, must be 2 to {IGNORE}")
        self.num_classes = num_classes
        self._iou = torch.zeros(num_classes, dtype=torch.float64)
        self._f = torch.zeros(num_classes, dtype=torch.float64)
        self._intersection = torch.zeros(num_classes, dtype=torch.int64)
        self._union = torch.zeros(num_classes, dtype=torch.int64)
        self._frames_per_class = torch.zeros(num_classes, dtype=torch.int64)
        self._frames = 0

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Adds F frames: predicted (F, H, W) class indices, target likewise, or 255 where the truth is unknown."""
        self.add(confusion(predicted, target, self.num_classes))

    def add(self, counts: Tensor) -> None:
        """Adds F frames: (F, C, C) int64 as `confusion` counts them."""
        hits, truth, marked = counts.diagonal(dim1=1, dim2=2), counts.sum(2), counts.sum(1)
        union = truth + marked - hits
        self._iou += (hits.double() / (union.double() + IOU_OFFSET)).sum(0)
        self._f += f_measure(hits, marked, truth).sum(0)
        self._intersection += hits.sum(0)
        self._union += union.sum(0)
        self._frames_per_class += (union > 0).sum(0)
        self._frames += len(counts)

    def merge(self, other: SemanticMetrics) -> None:
        """Adds the frames that another one of as many classes has."""
        for name in ("_iou", "_f", "_intersection", "_union", "_frames_per_class", "_frames"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def frame_iou_per_class(self) -> tuple[Tensor, Tensor]:
        """Of each class the sum of its IoU over the frames in which it occurs, and their number: M_J's parts."""
        return self._iou, self._frames_per_class

    def result(self) -> SemanticResult:
        """M_J, M_F: over all classes, one that never occurs counts 0; ..._without_background: class 0 dropped;
        ..._of_occurring: classes that never occur dropped.

        dataset_iou: sum of intersections / sum of unions a class, averaged over the classes that occur.
        """
        iou, f = self._iou / self._frames_per_class, self._f / self._frames_per_class
        dataset_iou = self._intersection.double() / self._union
        return {
            "M_J": iou.nan_to_num(nan=0.0).mean().item(),
            "M_F": f.nan_to_num(nan=0.0).mean().item(),
            "M_J_of_occurring": iou.nanmean().item(),
            "M_F_of_occurring": f.nanmean().item(),
            "occurring_classes": int((self._frames_per_class > 0).sum()),
            "M_J_without_background": iou[1:].nan_to_num(nan=0.0).mean().item(),
            "M_F_without_background": f[1:].nan_to_num(nan=0.0).mean().item(),
            "dataset_iou": dataset_iou.nanmean().item(),
            "frames": self._frames,
            "frames_per_class": self._frames_per_class.tolist(),
            "iou_per_class": iou.tolist(),
            "f_per_class": f.tolist(),
            "dataset_iou_per_class": dataset_iou.tolist(),
        }
