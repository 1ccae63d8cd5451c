"""What is counted of a split whatever its subset: marked areas, silent frames, clips, scores by number of sources."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from avsseg.data.avsbench import ClipExample
from avsseg.evaluation.contents import Contents
from avsseg.metrics.interval import clip_interval


@dataclass(frozen=True)
class ClipResult:
    """One clip's share of the result, whatever the protocol.

    Attributes:
        sources: how many things sound, None if it is not known.
        M_J: over its frames with truth, NaN if it has none: their mean IoU; for AVSS the mean over the classes, without
            the background, that occur in them.
        silent_area: mean share of its frames without truth that is marked, NaN if it has none.
    """

    index: int
    name: str
    category: str
    sources: int | None
    M_J: float
    silent_area: float


class ClipShare(NamedTuple):
    """A clip's own M_J, and what it adds to that of the split: (K,) totals over (K,) counts, in each of K classes."""

    M_J: float
    totals: Tensor
    counts: Tensor


class SplitScores(ABC):
    """One pass over a split, clip by clip: T seconds a clip, F of them scored."""

    def __init__(self, contents: Contents) -> None:
        self.contents = contents
        self._clips: list[ClipResult] = []
        self._areas: list[float] = []
        self._silent: list[float] = []
        self._shares: list[ClipShare] = []

    def scored(self, example: ClipExample) -> Tensor:
        """(T,) bool: the F seconds that are scored, at least those that are real and have truth."""
        return example.annotated & example.real

    @abstractmethod
    def predict(self, logits: Tensor, example: ClipExample) -> Tensor:
        """logits (T, C, h, w) -> (F, H, W) at the truth's size: what is said of the scored seconds."""

    @abstractmethod
    def marked(self, prediction: Tensor) -> Tensor:
        """(F, H, W) bool: where anything is said to sound."""

    def areas(self, prediction: Tensor, example: ClipExample) -> Tensor:
        """(f,) float64: the share of each real second with truth that is marked."""
        marked = self.marked(prediction[example.real[self.scored(example)]]).flatten(1)
        return marked.sum(1).double() / marked.shape[1]

    def add(self, index: int, example: ClipExample, prediction: Tensor) -> None:
        """Adds the clip of that index, with what `predict` said of it."""
        areas = self.areas(prediction, example)
        silent = areas[~(example.masks[example.annotated & example.real] > 0).flatten(1).any(1)].tolist()
        sources = self.contents.sources(example)
        share = self._add(example, prediction, sources)
        self._shares.append(share)
        self._clips.append(ClipResult(index, example.name, example.category, sources, share.M_J, mean(silent)))
        self._areas.append(mean(areas.tolist()))
        self._silent += silent

    @abstractmethod
    def _add(self, example: ClipExample, prediction: Tensor, sources: int | None) -> ClipShare:
        """Adds a clip to the scores; its own M_J is that of `ClipResult`."""

    def result(self) -> dict[str, Any]:
        """Scores, areas and breakdowns, ready for JSON; `predicted_area` is a mean over clips of means over frames."""
        return {
            **self._scores(),
            "M_J_interval": self._interval(),
            "silent_frames": {"frames": len(self._silent), "false_positive_area": mean(self._silent)},
            "predicted_area": mean(self._areas),
            **self._breakdowns(),
        }

    def _interval(self) -> list[float]:
        """Where M_J would lie on other clips of the same kind, see `clip_interval`."""
        if not self._shares:
            return [math.nan, math.nan]
        totals, counts = (
            torch.stack([getattr(share, name) for share in self._shares]).double().numpy()
            for name in ("totals", "counts")
        )
        return list(clip_interval(totals, counts))

    @property
    def per_clip(self) -> list[dict[str, Any]]:
        """Each clip's `ClipResult`, ready for JSON."""
        return [vars(clip) for clip in self._clips]

    @abstractmethod
    def _scores(self) -> dict[str, Any]:
        """Of the whole split."""

    @abstractmethod
    def _breakdowns(self) -> dict[str, Any]:
        """Of parts of it: `per_category` or `per_class`, and `per_sources` if the number of sources is known."""


def mean(values: list[float]) -> float:
    """NaN of none."""
    return math.fsum(values) / len(values) if values else math.nan


def seconds(chosen: Tensor) -> list[int]:
    """(T,) bool -> the seconds that are chosen."""
    return [int(t) for t in torch.nonzero(chosen).flatten()]
