"""The scores of S4 and MS3, by either protocol: of the split, of its categories and by number of sources."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from avsseg.data.avsbench import ClipExample
from avsseg.evaluation.contents import Contents
from avsseg.evaluation.scores import ClipShare, SplitScores, seconds
from avsseg.metrics.object import AvsBenchClipMetrics, StrictObjectMetrics, frame_scores

THRESHOLD = 0.5
Metrics = StrictObjectMetrics | AvsBenchClipMetrics


class ObjectScores(SplitScores):
    """M_J and M_F of `metrics`, one protocol's, for the split and for each part of it.

    A part is scored as if it were all that there is: by AVSBench's arithmetic, in batches of its own clips.
    """

    def __init__(self, contents: Contents, metrics: Callable[[], Metrics]) -> None:
        super().__init__(contents)
        self._clips_alike = isinstance(metrics(), AvsBenchClipMetrics)
        self._all = metrics()
        self._by_category: dict[str, Metrics] = defaultdict(metrics)
        self._by_sources: dict[int, Metrics] = defaultdict(metrics)

    def predict(self, logits: Tensor, example: ClipExample) -> Tensor:
        """(T, 1, h, w) -> (F, H, W) probabilities."""
        size = example.masks.shape[-2:]
        sized = F.interpolate(logits[self.scored(example)], size=size, mode="bilinear", align_corners=False)
        return sized.squeeze(1).sigmoid()

    def marked(self, prediction: Tensor) -> Tensor:
        return prediction > THRESHOLD

    def _add(self, example: ClipExample, prediction: Tensor, sources: int | None) -> ClipShare:
        scores = frame_scores(prediction, example.masks[self.scored(example)] > 0)
        self._all.update(scores)
        if sources is not None:
            self._by_sources[sources].update(scores)
        for category, frames in self._frames_by_category(example):
            self._by_category[category].update(scores.at(frames))
        seen = scores.truth > 0
        iou = scores.intersection[seen] / scores.union[seen]
        M_J = float(iou.mean()) if len(iou) else math.nan
        if self._clips_alike:
            return ClipShare(M_J, scores.iou.mean()[None], torch.ones(1))
        return ClipShare(M_J, scores.iou[seen].sum()[None], seen.sum()[None])

    def _frames_by_category(self, example: ClipExample) -> Iterator[tuple[str, list[int]]]:
        """Each category of a clip, and which of its scored frames count for it.

        All do for the one category that S4's table has; by the listing, a frame counts for each class that its truth
        shows, and one without truth for none.
        """
        scored = seconds(self.scored(example))
        if example.category or not self.contents.listing:
            yield example.category, list(range(len(scored)))
            return
        listed = self.contents.listing.get(example.name)
        truth = dict(enumerate(listed.truth if listed else ()))
        shown = [truth.get(t, frozenset()) for t in scored]
        for category in sorted(frozenset().union(*shown)):
            yield category, [k for k, classes in enumerate(shown) if category in classes]

    def _scores(self) -> dict[str, Any]:
        return dict(self._all.result())

    def _breakdowns(self) -> dict[str, Any]:
        parts: dict[str, Any] = {}
        if len(self._by_category) > 1:
            parts["per_category"] = {name: _brief(part) for name, part in sorted(self._by_category.items())}
        if self._by_sources:
            parts["per_sources"] = {str(count): _brief(part) for count, part in sorted(self._by_sources.items())}
        return parts


def _brief(metrics: Metrics) -> dict[str, float]:
    result = metrics.result()
    return {name: result[name] for name in ("M_J", "M_F", "frames", "frames_with_truth")}
