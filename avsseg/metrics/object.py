"""M_J and M_F of the object setting (S4, MS3): AVSBench's arithmetic and the strict protocol.

`frame_scores` counts everything that either protocol needs about a frame; the classes only average.
Symbols: M_J mean IoU, M_F mean F-measure with beta^2 = 0.3, F frames, K = 255 thresholds.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BETA_SQUARED = 0.3
THRESHOLDS = 255
IOU_OFFSET = 1e-7


@dataclass(frozen=True)
class FrameScores:
    """What is known about F frames, on the CPU; areas are pixel counts of the mask `probability > 0.5`.

    iou (F,) float64 by AVSBench's formula: intersection / (union + 1e-7), but where the truth is empty the share of
    pixels left unmarked; intersection, union, predicted, truth and pixels (F,) int64; f_curve (F, 255) float64, the
    F-measure at every threshold, 0 where the truth is empty.
    """

    iou: Tensor
    intersection: Tensor
    union: Tensor
    predicted: Tensor
    truth: Tensor
    pixels: Tensor
    f_curve: Tensor

    def at(self, frames: Sequence[int]) -> FrameScores:
        """Those of the frames with the given indices."""
        return FrameScores(*(getattr(self, name)[list(frames)] for name in self.__dataclass_fields__))

    @staticmethod
    def joined(parts: Sequence[FrameScores]) -> FrameScores:
        """The frames of one part or more, one after the other."""
        names = FrameScores.__dataclass_fields__
        return FrameScores(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def frame_scores(probability: Tensor, target: Tensor) -> FrameScores:
    """probability (F, H, W) floating point, target (F, H, W) bool -> the scores of each frame.

    A pixel is marked where its probability is more than 0.5 (IoU) or at least the threshold (F curve); NaN is never
    marked. 16-bit probabilities are compared as float32.
    """
    if probability.ndim != 3 or probability.shape != target.shape or probability.numel() == 0:
        raise ValueError(
            "probability and target must both be (F, H, W) and hold a pixel, "
            f"not {tuple(probability.shape)} and {tuple(target.shape)}"
        )
    if not probability.is_floating_point() or target.dtype != torch.bool:
        raise ValueError(f"probability must be floating point and target bool, not {probability.dtype}, {target.dtype}")
    mask = probability > 0.5
    intersection = (mask & target).sum((1, 2)).cpu()
    predicted = mask.sum((1, 2)).cpu()
    at_least = _marked_at_thresholds(probability, target).cpu()
    hits, marked = at_least[:, 1], at_least.sum(1)
    truth = target.sum((1, 2)).cpu()
    pixels = torch.full_like(truth, target[0].numel())
    union = predicted + truth - intersection
    iou = torch.where(
        truth > 0, intersection.double() / (union.double() + IOU_OFFSET), (pixels - predicted).double() / pixels
    )
    return FrameScores(
        iou, intersection, union, predicted, truth, pixels, f_measure(hits, marked, truth.unsqueeze(1).expand_as(hits))
    )


def f_measure(hits: Tensor, predicted: Tensor, truth: Tensor) -> Tensor:
    """Counts of one shape -> 1.3 P R / (0.3 P + R) in float64, P = hits / predicted, R = hits / truth; NaN is 0.

    Multiplied out, which leaves one division: 1.3 hits / (0.3 truth + predicted).
    """
    weighted = BETA_SQUARED * truth.double() + predicted.double()
    return (1 + BETA_SQUARED) * hits.double() / weighted.clamp(min=BETA_SQUARED)


def f_thresholds() -> Tensor:
    """(255,) float32, 0 to 1 - 1e-10: the last one rounds to 1, the one in the middle is 0.5."""
    return torch.linspace(0, 1 - 1e-10, THRESHOLDS, dtype=torch.float32)


class AvsBenchObjectMetrics:
    """Protocol `avsbench`: every batch has its own M_J and M_F, and batches are averaged unweighted.

    So the numbers depend on how frames are grouped: on the batch size, which belongs beside them.
    """

    def __init__(self) -> None:
        self._iou = 0.0
        self._f = 0.0
        self._frames = 0
        self._seen = 0
        self._batches = 0

    def update(self, scores: FrameScores) -> None:
        """Adds one batch. Frames without truth do not enter M_F; a batch of only such frames adds 0 to it."""
        seen = scores.truth > 0
        self._iou += scores.iou.mean().item()
        self._f += scores.f_curve[seen].mean(0).max().item() if seen.any() else 0.0
        self._frames += len(scores.iou)
        self._seen += int(seen.sum())
        self._batches += 1

    def result(self) -> dict[str, float]:
        """M_J and M_F (0..1, NaN before the first batch), batches, and frames: all of them, and those with truth."""
        return {
            "M_J": _ratio(self._iou, self._batches),
            "M_F": _ratio(self._f, self._batches),
            "frames": self._frames,
            "frames_with_truth": self._seen,
            "batches": self._batches,
        }


class AvsBenchClipMetrics:
    """Protocol `avsbench` of clips that come one by one: `batch` of them make a batch, the last may be shorter."""

    def __init__(self, batch: int) -> None:
        """batch: 1 or more."""
        self.batch = batch
        self._metrics = AvsBenchObjectMetrics()
        self._waiting: list[FrameScores] = []

    def update(self, scores: FrameScores) -> None:
        """Adds the frames of one clip, 1 or more."""
        self._waiting.append(scores)
        if len(self._waiting) == self.batch:
            self._metrics.update(FrameScores.joined(self._waiting))
            self._waiting = []

    def result(self) -> dict[str, float]:
        """As `AvsBenchObjectMetrics.result`; clips may still be added afterwards."""
        metrics = copy.copy(self._metrics)
        if self._waiting:
            metrics.update(FrameScores.joined(self._waiting))
        return metrics.result()


class StrictObjectMetrics:
    """Protocol `strict`: frames weigh the same however they are grouped, and those without truth are scored apart."""

    def __init__(self) -> None:
        self._iou = 0.0
        self._f_curve = torch.zeros(THRESHOLDS, dtype=torch.float64)
        self._intersection = 0
        self._union = 0
        self._seen = 0
        self._empty = 0
        self._false_area = 0.0

    def update(self, scores: FrameScores) -> None:
        """Adds any number of frames."""
        # frame by frame: float sums over a batch would make the last digits depend on the grouping
        for index, truth in enumerate(scores.truth.tolist()):
            if truth:
                self._seen += 1
                self._iou += scores.iou[index].item()
                self._f_curve += scores.f_curve[index]
            else:
                self._empty += 1
                self._false_area += (scores.predicted[index] / scores.pixels[index]).item()
        self._intersection += int(scores.intersection.sum())
        self._union += int(scores.union.sum())

    def merge(self, other: StrictObjectMetrics) -> None:
        """Adds the frames that another one has."""
        for name in ("_iou", "_f_curve", "_intersection", "_union", "_seen", "_empty", "_false_area"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def result(self) -> dict[str, float]:
        """Scores 0..1, NaN where no frame could count for them.

        M_J: mean IoU of the frames with truth. M_F: the largest value of their mean F curve, one threshold for all.
        dataset_iou: sum of intersections / sum of unions over all frames. frames: all of them; frames_with_truth: those
        that M_J and M_F are over; empty_frames: the others; false_positive_area: the mean share of an empty frame that
        is marked.
        """
        return {
            "M_J": _ratio(self._iou, self._seen),
            "M_F": _ratio(self._f_curve.max().item(), self._seen),
            "dataset_iou": _ratio(self._intersection, self._union),
            "frames": self._seen + self._empty,
            "frames_with_truth": self._seen,
            "empty_frames": self._empty,
            "false_positive_area": _ratio(self._false_area, self._empty),
        }


def _marked_at_thresholds(probability: Tensor, target: Tensor) -> Tensor:
    """(F, 2, 255) int64: pixels at or above each threshold, outside the truth [:, 0] and inside it [:, 1]."""
    frames, cells = len(probability), 2 * (THRESHOLDS + 1)
    frame = torch.arange(frames, dtype=torch.int32, device=probability.device).view(-1, 1, 1)
    cell = _thresholds_reached(probability).add_(frame, alpha=cells).add_(target, alpha=THRESHOLDS + 1)
    counts = torch.bincount(cell.flatten(), minlength=frames * cells).view(frames, 2, THRESHOLDS + 1)
    return counts.flip(-1).cumsum(-1).flip(-1)[..., 1:]


def _thresholds_reached(probability: Tensor) -> Tensor:
    """(F, H, W) -> (F, H, W) int32, how many of the thresholds are at or below each value."""
    wide = probability if probability.dtype == torch.float64 else probability.float()
    # nothing, not even infinity, reaches NaN
    bounds = torch.cat([f_thresholds(), torch.tensor([torch.nan])]).to(wide)
    # Even spacing gives the last threshold reached to within one, whichever way it rounds: two comparisons make it
    # exact, in a fifth of the time of a binary search.
    near = (wide * (THRESHOLDS - 1)).nan_to_num_(nan=0.0).clamp_(0, THRESHOLDS - 1).int()
    index = near.flatten()
    lower, upper = (b.index_select(0, index).view_as(wide) for b in (bounds, bounds[1:]))
    return near.add(wide >= lower).add_(wide >= upper)


def _ratio(total: float, count: int) -> float:
    return total / count if count else math.nan
