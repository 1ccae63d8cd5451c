"""Runs a model over a split and scores it by the protocol asked for; all that a reader needs to compare is recorded.

`avsbench` is the official arithmetic (batches count alike, truth at the input size); `strict` counts frames, truth at
its own size, silent frames apart. With `negatives` the sound is replaced, through the same front end, and what is still
marked is reported. A model that was trained on silence is scored on silence: its batch statistics know no sound.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import avsseg
from avsseg.data.avsbench import AvsBenchClips, ClipExample, SplitName, Subset
from avsseg.data.listing import read_listing
from avsseg.errors import AvssegError, UsageError
from avsseg.evaluation.classes import ClassScores
from avsseg.evaluation.contents import Contents
from avsseg.evaluation.objects import THRESHOLD, ObjectScores
from avsseg.evaluation.scores import SplitScores, mean
from avsseg.evaluation.sounds import ReplacedSounds
from avsseg.media.audio import SILENT_LOG_MEL
from avsseg.metrics.negatives import NEGATIVES
from avsseg.metrics.object import AvsBenchClipMetrics, StrictObjectMetrics
from avsseg.model.avs_mamba import normalise
from avsseg.training.clips import prepare_worker
from avsseg.weights.store import LoadedModel

Protocol = Literal["strict", "avsbench"]
PROTOCOLS: tuple[Protocol, ...] = ("strict", "avsbench")


@dataclass(frozen=True)
class EvaluationSettings:
    """What is evaluated. `batch` is in clips and matters to `avsbench` alone; `size` 0 is the model's own.

    `mute` plays silence in the scored pass; None does so to a model that was trained on it.
    """

    data: Path
    subset: Subset = "ms3"
    split: SplitName = "test"
    protocol: Protocol = "strict"
    batch: int = 1
    size: int = 0
    negatives: tuple[str, ...] = ()
    seed: int = 0
    workers: int = 1
    mute: bool | None = None

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise UsageError(f"protocol is {self.protocol!r}. Choose one of: {', '.join(PROTOCOLS)}")
        unknown = [name for name in self.negatives if name not in NEGATIVES]
        if unknown:
            raise UsageError(f"negative {unknown[0]!r} is unknown. Choose from: {', '.join(NEGATIVES)}")
        if self.batch < 1:
            raise UsageError(f"batch is {self.batch}, must be 1 or more")


@dataclass
class _Seconds:
    """What the scored pass spends its time on."""

    model: float = 0.0
    metrics: float = 0.0
    wait: float = 0.0


class Evaluation:
    """A model and a split, ready to be scored. Raises DataError for what is missing, UsageError for what cannot be."""

    def __init__(self, loaded: LoadedModel, settings: EvaluationSettings) -> None:
        self.loaded = loaded
        self.settings = settings
        self.size = settings.size or loaded.input_size
        self.mute = trained_mute(loaded) if settings.mute is None else settings.mute
        truth_size = None if settings.protocol == "avsbench" else 0
        self.clips = AvsBenchClips(
            settings.data, settings.subset, settings.split, size=self.size, truth_size=truth_size
        )
        if (self.clips.num_classes > 1) != (loaded.config.num_classes > 1):
            raise UsageError(
                f"{loaded.name} has {loaded.config.num_classes} output channel(s), {settings.subset} needs "
                f"{self.clips.num_classes}. Choose another --model or --subset"
            )
        self.contents = Contents(settings.subset, read_listing(self.clips.root, self.clips.subset))
        self.sounds = ReplacedSounds(self.clips, self.contents, settings.negatives, settings.seed)

    def played(self, example: ClipExample) -> Tensor:
        """The log-mel (T, 1, 96, 64) of the scored pass: the clip's own, or that of digital silence."""
        return torch.full_like(example.log_mel, SILENT_LOG_MEL) if self.mute else example.log_mel

    def logits(self, example: ClipExample, log_mel: Tensor) -> Tensor:
        """What the model says of a clip with that sound: (T, C, h, w) float32 on the CPU."""
        model = self.loaded.model
        device = next(model.parameters()).device
        with torch.inference_mode():
            logits: Tensor = model(normalise(example.frames)[None].to(device), log_mel[None].to(device))
        return logits[0].float().cpu()

    def run(self, advance: Callable[[], None] | None = None) -> dict[str, Any]:
        """The whole result, ready for JSON; `advance` is called after every clip of every pass."""
        began = time.monotonic()
        settings = self.settings
        return {
            "avsseg": avsseg.__version__,
            "model": self.loaded.name,
            "sha256": self.loaded.sha256,
            "data": str(settings.data),
            "subset": settings.subset,
            "split": settings.split,
            "protocol": settings.protocol,
            "batch": settings.batch if settings.protocol == "avsbench" else None,
            "input_size": self.size,
            "truth_size": self.size if settings.protocol == "avsbench" else "native",
            "threshold": THRESHOLD if self.clips.num_classes == 1 else None,
            "mute": self.mute,
            "clips": len(self.clips),
            **self._passes(advance),
            "seconds": round(time.monotonic() - began, 1),
        }

    def _scores(self) -> SplitScores:
        official = self.settings.protocol == "avsbench"
        if self.clips.num_classes > 1:
            return ClassScores(self.contents, padded=official)
        if official:
            return ObjectScores(self.contents, functools.partial(AvsBenchClipMetrics, self.settings.batch))
        return ObjectScores(self.contents, StrictObjectMetrics)

    def _passes(self, advance: Callable[[], None] | None) -> dict[str, Any]:
        """The scored pass, then one for each replaced sound."""
        scores = self._scores()
        spent = _Seconds()
        for index, example, prediction in self._predictions(None, scores, spent, advance):
            began = time.monotonic()
            scores.add(index, example, prediction)
            spent.metrics += time.monotonic() - began
        result = scores.result()
        if self.settings.negatives:
            # with silence in the scored pass, no sound of its own is there to compare with
            own_area = math.nan if self.mute else result["predicted_area"]
            result["negatives"] = {
                name: self._negative(name, scores, own_area, advance) for name in self.settings.negatives
            }
            if "swap" in result["negatives"]:
                unsure = self.sounds.clips_without_fitting_partner
                result["negatives"]["swap"]["clips_without_fitting_partner"] = unsure
        result["time"] = {
            "model_s": round(spent.model, 2),
            "metrics_s": round(spent.metrics, 2),
            "data_wait_s": round(spent.wait, 2),
        }
        result["per_clip"] = scores.per_clip
        return result

    def _negative(
        self, name: str, scores: SplitScores, own_area: float, advance: Callable[[], None] | None
    ) -> dict[str, float]:
        """What is marked when the sound is replaced: mean area, as a share of the area with the own sound, and the
        share of frames in which anything is marked."""
        area, marked = [], []
        for _, example, prediction in self._predictions(name, scores, _Seconds(), advance):
            areas = scores.areas(prediction, example)
            area.append(float(areas.mean()))
            marked += (areas > 0).double().tolist()
        return {
            "predicted_area": mean(area),
            "share_of_own_sound": mean(area) / own_area if own_area else math.nan,
            "frames_marked": mean(marked),
        }

    def _predictions(
        self, negative: str | None, scores: SplitScores, spent: _Seconds, advance: Callable[[], None] | None
    ) -> Iterator[tuple[int, ClipExample, Tensor]]:
        """(index, clip, what `scores` makes of the model's logits) of every clip, with its own or the other sound."""
        loader = torch.utils.data.DataLoader(
            _OrError(self.clips), batch_size=None, num_workers=self.settings.workers, worker_init_fn=prepare_worker
        )
        asked = time.monotonic()
        for index, example in enumerate(loader):
            began = time.monotonic()
            if isinstance(example, AvssegError):
                raise example
            spent.wait += began - asked
            log_mel = self.sounds.log_mel(negative, index, example) if negative else self.played(example)
            prediction = scores.predict(self.logits(example, log_mel), example)
            spent.model += time.monotonic() - began
            yield index, example, prediction
            if advance:
                advance()
            asked = time.monotonic()


class _OrError(torch.utils.data.Dataset[Any]):
    """Clips, or what is wrong with one as a value: raised in a worker it would lose its type and its message."""

    def __init__(self, clips: AvsBenchClips) -> None:
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> ClipExample | AvssegError:
        try:
            return self.clips[index]
        except AvssegError as error:
            return error


def trained_mute(loaded: LoadedModel) -> bool:
    """Whether the run that made a checkpoint says that it replaced all sound by silence."""
    settings = loaded.training.get("settings")
    return isinstance(settings, dict) and settings.get("mute") is True
