"""Runs a model over a split and scores it by the protocol asked for; all that a reader needs to compare is recorded.

`avsbench` is the official arithmetic (batches count alike, truth at the input size); `strict` counts frames, truth at
its own size, silent frames apart. With `negatives` the sound is replaced, through the same front end, and what is still
marked is reported. A model that was trained on silence is scored on silence: its batch statistics know no sound.
"""

from __future__ import annotations

import functools
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import avsseg
from avsseg.data.avsbench import AvsBenchClips, ClipExample, SplitName, Subset
from avsseg.data.avss_classes import CLASS_NAMES
from avsseg.data.listing import read_listing, rendered_families
from avsseg.errors import AvssegError, UsageError
from avsseg.media.audio import SILENT_LOG_MEL, log_mel_examples
from avsseg.metrics.negatives import NEGATIVES, fits_swap, noise, off_screen, silence, swap_partner
from avsseg.metrics.object import AvsBenchObjectMetrics, FrameScores, StrictObjectMetrics, frame_scores
from avsseg.metrics.semantic import SemanticMetrics
from avsseg.model.avs_mamba import normalise
from avsseg.training.clips import prepare_worker
from avsseg.weights.store import LoadedModel

Protocol = Literal["strict", "avsbench"]
PROTOCOLS: tuple[Protocol, ...] = ("strict", "avsbench")
THRESHOLD = 0.5


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


@dataclass(frozen=True)
class ClipResult:
    """One clip's share of the result: its strict M_J (NaN without truth) and area on silent frames, as fractions."""

    index: int
    name: str
    category: str
    sources: int
    M_J: float
    silent_area: float


@dataclass
class _Tally:
    """What one pass over the split adds up."""

    strict: StrictObjectMetrics = field(default_factory=StrictObjectMetrics)
    avsbench: AvsBenchObjectMetrics = field(default_factory=AvsBenchObjectMetrics)
    categories: dict[str, StrictObjectMetrics] = field(default_factory=lambda: defaultdict(StrictObjectMetrics))
    sources: dict[int, StrictObjectMetrics] = field(default_factory=lambda: defaultdict(StrictObjectMetrics))
    clips: list[ClipResult] = field(default_factory=list)
    model_s: float = 0.0
    metrics_s: float = 0.0
    wait_s: float = 0.0


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
        self.listing = read_listing(self.clips.root, self.clips.subset)
        unheard = [clip.name for clip in self.clips.clips if clip.wav is None or not clip.wav.is_file()]
        if settings.negatives and unheard:
            raise UsageError(f"{unheard[0]}: has no wav file, whose sound --negative could replace")
        if "swap" in settings.negatives and len(self.clips) < 2:
            raise UsageError("swapping sounds needs two clips at least")

    def played(self, example: ClipExample) -> Tensor:
        """The log-mel (T, 1, 96, 64) of the scored pass: the clip's own, or that of digital silence."""
        return torch.full_like(example.log_mel, SILENT_LOG_MEL) if self.mute else example.log_mel

    def run(self, advance: Callable[[], None] | None = None) -> dict[str, Any]:
        """The whole result, ready for JSON; `advance` is called after every clip of every pass."""
        began = time.monotonic()
        result = self._semantic(advance) if self.clips.num_classes > 1 else self._objects(advance)
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
            "threshold": THRESHOLD,
            "mute": self.mute,
            "clips": len(self.clips),
            **result,
            "seconds": round(time.monotonic() - began, 1),
        }

    def _objects(self, advance: Callable[[], None] | None) -> dict[str, Any]:
        tally = _Tally()
        area = 0.0
        for group in _groups(self._predictions(None, tally, advance), self.settings.batch):
            began = time.monotonic()
            scores = [frame_scores(probability, truth) for _, _, probability, truth in group]
            tally.avsbench.update(_joined(scores))
            for (index, example, _, _), each in zip(group, scores, strict=True):
                tally.strict.update(each)
                tally.sources[self._sources(example.name)].update(each)
                for category, frames in self._frames_by_category(example):
                    tally.categories[category].update(_some(each, frames))
                tally.clips.append(self._clip_result(index, example, each))
                area += float((each.predicted / each.pixels).mean())
            tally.metrics_s += time.monotonic() - began
        strict = tally.strict.result()
        result: dict[str, Any] = dict(tally.avsbench.result() if self.settings.protocol == "avsbench" else strict)
        result["silent_frames"] = {
            "frames": strict["empty_frames"],
            "false_positive_area": strict["false_positive_area"],
        }
        result["predicted_area"] = area / max(1, len(self.clips))
        if len(tally.categories) > 1:
            result["per_category"] = {name: _brief(m) for name, m in sorted(tally.categories.items())}
        if self.listing:
            result["per_sources"] = {str(n): _brief(m) for n, m in sorted(tally.sources.items())}
        if self.settings.negatives:
            # with silence in the scored pass, no sound of its own is there to compare with
            own_area = math.nan if self.mute else result["predicted_area"]
            result["negatives"] = {name: self._negative(name, own_area, advance) for name in self.settings.negatives}
            if "swap" in result["negatives"]:
                result["negatives"]["swap"]["clips_without_fitting_partner"] = self._swaps[1]
        result["time"] = {
            "model_s": round(tally.model_s, 2),
            "metrics_s": round(tally.metrics_s, 2),
            "data_wait_s": round(tally.wait_s, 2),
        }
        result["per_clip"] = [vars(clip) for clip in tally.clips]
        return result

    def _sources(self, name: str) -> int:
        return self.listing[name].sources if name in self.listing else 0

    def _frames_by_category(self, example: ClipExample) -> Iterator[tuple[str, list[int]]]:
        """Each category of a clip, and which of its scored frames count for it.

        All do for the one category that S4's table has; by the listing, a frame counts for each class that its truth
        shows, and one without truth for none.
        """
        seconds = torch.nonzero(example.annotated & example.real).flatten().tolist()
        if example.category or not self.listing:
            yield example.category, list(range(len(seconds)))
            return
        listed = self.listing.get(example.name)
        truth = dict(enumerate(listed.truth if listed else ()))
        shown = [truth.get(t, frozenset()) for t in seconds]
        for category in sorted(frozenset().union(*shown)):
            yield category, [k for k, classes in enumerate(shown) if category in classes]

    def _clip_result(self, index: int, example: ClipExample, scores: FrameScores) -> ClipResult:
        sounding = scores.truth > 0
        iou = scores.intersection[sounding] / scores.union[sounding].clamp(min=1)
        silent = (scores.predicted / scores.pixels)[~sounding]
        return ClipResult(
            index,
            example.name,
            example.category,
            self._sources(example.name),
            float(iou.mean()) if len(iou) else math.nan,
            float(silent.mean()) if len(silent) else math.nan,
        )

    def _negative(self, name: str, own_area: float, advance: Callable[[], None] | None) -> dict[str, float]:
        """What is marked when the sound is replaced: mean area, as a share of the area with the own sound, and the
        share of frames in which anything is marked."""
        area = marked = frames = 0.0
        for _, _, probability, _ in self._predictions(name, _Tally(), advance):
            on = (probability > THRESHOLD).flatten(1)
            area += float(on.float().mean())
            marked += float(on.any(1).sum())
            frames += len(on)
        area /= max(1, len(self.clips))
        return {
            "predicted_area": area,
            "share_of_own_sound": area / own_area if own_area else math.nan,
            "frames_marked": marked / max(1.0, frames),
        }

    def _semantic(self, advance: Callable[[], None] | None) -> dict[str, Any]:
        if self.settings.negatives:
            raise UsageError("--negative works on the object subsets, s4 and ms3")
        metrics = SemanticMetrics(self.clips.num_classes)
        tally = _Tally()
        silent: list[float] = []
        for _, example, logits in self._logits(None, tally, advance):
            # the official evaluation scores padded frames too
            scored = torch.ones_like(example.real) if self.settings.protocol == "avsbench" else example.real
            scored = scored & (example.annotated | ~example.real)
            # frame by frame: at native size, ten frames of 71 classes take gigabytes
            for t in torch.nonzero(scored).flatten().tolist():
                truth = example.masks[t : t + 1].long()
                sized = F.interpolate(logits[t : t + 1], size=truth.shape[-2:], mode="bilinear", align_corners=False)
                predicted = sized.argmax(1)
                metrics.update(predicted, truth)
                if example.real[t] and not truth.any():
                    silent.append(float((predicted > 0).float().mean()))
        scores = metrics.result()
        columns = (scores["iou_per_class"], scores["f_per_class"], scores["dataset_iou_per_class"])
        rows = zip(CLASS_NAMES, *columns, scores["frames_per_class"], strict=True)
        return {
            **scores,
            "per_class": {
                name: {"M_J": iou, "M_F": f, "dataset_iou": dataset_iou, "frames": frames}
                for name, iou, f, dataset_iou, frames in rows
            },
            "silent_frames": {
                "frames": len(silent),
                "false_positive_area": sum(silent) / len(silent) if silent else math.nan,
            },
        }

    def _predictions(
        self, negative: str | None, tally: _Tally, advance: Callable[[], None] | None
    ) -> Iterator[tuple[int, ClipExample, Tensor, Tensor]]:
        """(index, clip, probability (F, h, w), truth (F, h, w)) over annotated frames, at the truth's size."""
        for index, example, logits in self._logits(negative, tally, advance):
            began = time.monotonic()
            scored = example.annotated & example.real
            size = example.masks.shape[-2:]
            sized = F.interpolate(logits[scored], size=size, mode="bilinear", align_corners=False)
            probability = sized.squeeze(1).sigmoid()
            tally.model_s += time.monotonic() - began
            yield index, example, probability, example.masks[scored] > 0

    def _logits(
        self, negative: str | None, tally: _Tally, advance: Callable[[], None] | None
    ) -> Iterator[tuple[int, ClipExample, Tensor]]:
        model = self.loaded.model
        device = next(model.parameters()).device
        loader = torch.utils.data.DataLoader(
            _OrError(self.clips), batch_size=None, num_workers=self.settings.workers, worker_init_fn=prepare_worker
        )
        asked = time.monotonic()
        for index, example in enumerate(loader):
            began = time.monotonic()
            if isinstance(example, AvssegError):
                raise example
            tally.wait_s += began - asked
            log_mel = self.played(example) if negative is None else self._replaced(negative, index, example)
            with torch.inference_mode():
                logits = model(normalise(example.frames)[None].to(device), log_mel[None].to(device))[0].float().cpu()
            tally.model_s += time.monotonic() - began
            yield index, example, logits
            if advance:
                advance()
            asked = time.monotonic()

    def _replaced(self, negative: str, index: int, example: ClipExample) -> Tensor:
        """The log-mel of what is heard instead."""
        waveform = example.waveform.numpy()
        rng = np.random.default_rng([self.settings.seed, index])
        if negative == "silence":
            other = silence(waveform)
        elif negative == "noise":
            other = noise(waveform, rng)
        elif negative == "swap":
            other = self.clips[self._swaps[0][index]].waveform.numpy()
        else:
            entry = self.listing.get(example.name)
            other = off_screen(len(waveform), rng, rendered_families(entry) if entry else ())
        return log_mel_examples(torch.from_numpy(other), [float(t) for t in range(len(example.frames))])

    @functools.cached_property
    def _swaps(self) -> tuple[list[int], int]:
        """Whose sound each clip gets, and for how many clips none was sure to be of no class in their pictures."""
        names = [clip.name for clip in self.clips.clips]
        listed = [self.listing.get(name) for name in names]
        known = [frozenset({clip.category} - {""}) for clip in self.clips.clips]
        visible = [clip.visible if clip else own for clip, own in zip(listed, known, strict=True)]
        heard = [clip.heard if clip else own for clip, own in zip(listed, known, strict=True)]
        partners = [swap_partner(index, visible, heard, names) for index in range(len(names))]
        return partners, sum(not fits_swap(seen, heard[k]) for seen, k in zip(visible, partners, strict=True))


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


def _groups(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    group: list[Any] = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _joined(scores: Sequence[FrameScores]) -> FrameScores:
    names = FrameScores.__dataclass_fields__
    joined = {name: [getattr(each, name) for each in scores] for name in names}
    return FrameScores(**{n: torch.cat(v) if isinstance(v[0], Tensor) else v[0] for n, v in joined.items()})


def _some(scores: FrameScores, frames: Sequence[int]) -> FrameScores:
    return FrameScores(**{name: getattr(scores, name)[list(frames)] for name in FrameScores.__dataclass_fields__})


def _brief(metrics: StrictObjectMetrics) -> dict[str, float]:
    result = metrics.result()
    return {name: result[name] for name in ("M_J", "M_F", "frames")}


def trained_mute(loaded: LoadedModel) -> bool:
    """Whether the run that made a checkpoint says that it replaced all sound by silence."""
    settings = loaded.training.get("settings")
    return isinstance(settings, dict) and settings.get("mute") is True
