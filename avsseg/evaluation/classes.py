"""The scores of AVSS, by either protocol: of the split, of its classes and by number of sources."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from avsseg.data.avsbench import ClipExample
from avsseg.data.avss_classes import CLASS_NAMES
from avsseg.evaluation.contents import Contents
from avsseg.evaluation.scores import ClipShare, SplitScores, mean, seconds
from avsseg.metrics.semantic import SemanticMetrics, confusion


class ClassScores(SplitScores):
    """M_J and M_F of 71 classes; with `padded`, padding is scored too, as the official evaluation does."""

    def __init__(self, contents: Contents, *, padded: bool) -> None:
        super().__init__(contents)
        self.padded = padded
        self._all = SemanticMetrics(len(CLASS_NAMES))
        self._by_sources: dict[int, SemanticMetrics] = defaultdict(lambda: SemanticMetrics(len(CLASS_NAMES)))

    def scored(self, example: ClipExample) -> Tensor:
        real = super().scored(example)
        return real | ~example.real if self.padded else real

    def predict(self, logits: Tensor, example: ClipExample) -> Tensor:
        """(T, 71, h, w) -> (F, H, W) uint8 class indices."""
        size = example.masks.shape[-2:]
        # frame by frame: at native size, ten frames of 71 classes take gigabytes
        classes = [
            F.interpolate(logits[t : t + 1], size=size, mode="bilinear", align_corners=False).argmax(1).to(torch.uint8)
            for t in seconds(self.scored(example))
        ]
        return torch.cat(classes)

    def marked(self, prediction: Tensor) -> Tensor:
        return prediction > 0

    def _add(self, example: ClipExample, prediction: Tensor, sources: int | None) -> ClipShare:
        scored = self.scored(example)
        frames = zip(prediction[:, None], example.masks[scored][:, None], strict=True)
        counts = torch.cat([confusion(predicted, truth, len(CLASS_NAMES)) for predicted, truth in frames])
        self._all.add(counts)
        if sources is not None:
            self._by_sources[sources].add(counts)
        with_truth = counts[counts[:, 1:].sum((1, 2)) > 0]
        own, whole = SemanticMetrics(len(CLASS_NAMES)), SemanticMetrics(len(CLASS_NAMES))
        own.add(with_truth)
        whole.add(counts)
        M_J = mean([iou for iou in own.result()["iou_per_class"][1:] if not math.isnan(iou)])
        return ClipShare(M_J, *whole.frame_iou_per_class())

    def _scores(self) -> dict[str, Any]:
        return dict(self._all.result())

    def _breakdowns(self) -> dict[str, Any]:
        scores = self._all.result()
        columns = (scores["iou_per_class"], scores["f_per_class"], scores["dataset_iou_per_class"])
        rows = zip(CLASS_NAMES, *columns, scores["frames_per_class"], strict=True)
        parts: dict[str, Any] = {
            "per_class": {
                name: {"M_J": iou, "M_F": f, "dataset_iou": dataset_iou, "frames": frames}
                for name, iou, f, dataset_iou, frames in rows
            }
        }
        if self._by_sources:
            parts["per_sources"] = {str(count): _brief(part) for count, part in sorted(self._by_sources.items())}
        return parts


def _brief(metrics: SemanticMetrics) -> dict[str, Any]:
    """A part has few of the classes, and more of them the larger it is: only means over those that occur compare."""
    result = metrics.result()
    return {
        "M_J": result["M_J"],
        "M_F": result["M_F"],
        "M_J_of_occurring": result["M_J_of_occurring"],
        "M_F_of_occurring": result["M_F_of_occurring"],
        "occurring_classes": result["occurring_classes"],
        "frames": result["frames"],
    }
