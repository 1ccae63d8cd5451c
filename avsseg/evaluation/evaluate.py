"""Runs a model over a split and scores it by the protocol asked for; all that a reader needs to compare is recorded.

`avsbench` is the official arithmetic (batches count alike, truth at the input size); `strict` counts frames, truth at
its own size, silent frames apart. With `negatives` the sound is replaced, through the same front end, and what is still
marked is reported.
"""

from __future__ import annotations

import json
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
from avsseg.data.avsbench_layout import subset_folder
from avsseg.data.layout_writer import LISTING_NAME
from avsseg.data.synthetic_shapes import CLASSES as RENDERED
from avsseg.errors import AvssegError, DataError, UsageError, printable
from avsseg.media.audio import log_mel_examples
from avsseg.metrics.negatives import NEGATIVES, noise, off_screen, silence, swap_partner
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
    """What is evaluated. `batch` is in clips and matters to `avsbench` alone; `size` 0 is the model's own."""

    data: Path
    subset: Subset = "ms3"
    split: SplitName = "test"
    protocol: Protocol = "strict"
    batch: int = 1
    size: int = 0
    negatives: tuple[str, ...] = ()
    seed: int = 0
    workers: int = 1

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
        truth_size = None if settings.protocol == "avsbench" else 0
        self.clips = AvsBenchClips(
            settings.data, settings.subset, settings.split, size=self.size, truth_size=truth_size
        )
        if (self.clips.num_classes > 1) != (loaded.config.num_classes > 1):
            raise UsageError(
                f"{loaded.name} has {loaded.config.num_classes} output channel(s), {settings.subset} needs "
                f"{self.clips.num_classes}. Choose another --model or --subset"
            )
        self.listing = read_listing(self.clips)
        self.sources = {name: most_sources(entry) for name, entry in self.listing.items()}
        unheard = [clip.name for clip in self.clips.clips if clip.wav is None or not clip.wav.is_file()]
        if settings.negatives and unheard:
            raise UsageError(f"{unheard[0]}: has no wav file, whose sound --negative could replace")
        if "swap" in settings.negatives and len(self.clips) < 2:
            raise UsageError("swapping sounds needs two clips at least")

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
                tally.categories[example.category].update(each)
                tally.sources[self.sources.get(example.name, 0)].update(each)
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
        if self.sources:
            result["per_sources"] = {str(n): _brief(m) for n, m in sorted(tally.sources.items())}
        if self.settings.negatives:
            result["negatives"] = {
                name: self._negative(name, result["predicted_area"], advance) for name in self.settings.negatives
            }
        result["time"] = {
            "model_s": round(tally.model_s, 2),
            "metrics_s": round(tally.metrics_s, 2),
            "data_wait_s": round(tally.wait_s, 2),
        }
        result["per_clip"] = [vars(clip) for clip in tally.clips]
        return result

    def _clip_result(self, index: int, example: ClipExample, scores: FrameScores) -> ClipResult:
        sounding = scores.truth > 0
        iou = scores.intersection[sounding] / scores.union[sounding].clamp(min=1)
        silent = (scores.predicted / scores.pixels)[~sounding]
        return ClipResult(
            index,
            example.name,
            example.category,
            self.sources.get(example.name, 0),
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
        for _, example, logits in self._logits(None, tally, advance):
            # the official evaluation scores padded frames too
            scored = torch.ones_like(example.real) if self.settings.protocol == "avsbench" else example.real
            scored = scored & (example.annotated | ~example.real)
            sized = F.interpolate(logits, size=example.masks.shape[-2:], mode="bilinear", align_corners=False)
            metrics.update(sized[scored].argmax(1), example.masks[scored].long())
        return dict(metrics.result())

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
            log_mel = example.log_mel if negative is None else self._replaced(negative, index, example)
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
            files = self.clips.clips
            partner = swap_partner(index, [clip.category for clip in files], [clip.name for clip in files])
            other = self.clips[partner].waveform.numpy()
        else:
            entry = self.listing.get(example.name)
            other = off_screen(len(waveform), rng, rendered_families(entry) if entry else ())
        return log_mel_examples(torch.from_numpy(other), [float(t) for t in range(len(example.frames))])


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


def _brief(metrics: StrictObjectMetrics) -> dict[str, float]:
    result = metrics.result()
    return {name: result[name] for name in ("M_J", "M_F", "frames")}


def read_listing(clips: AvsBenchClips) -> dict[str, dict[str, Any]]:
    """What `clips.json` says of each clip, by name, where the dataset has one: what is visible and what sounds.

    Raises DataError for a listing that cannot be read.
    """
    table = subset_folder(clips.root, clips.subset) / LISTING_NAME
    if not table.is_file():
        return {}
    try:
        entries = json.loads(table.read_text(encoding="utf-8"))["clips"]
        return {entry["name"]: {key: entry[key] for key in ("visible", "sounding")} for entry in entries}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{printable(table)}: not a listing of clips ({error!r}). Write the dataset anew") from error


def most_sources(entry: dict[str, Any]) -> int:
    """How many visible things sound at once at most."""
    return max(len(set(seen) & set(heard)) for seen, heard in zip(entry["visible"], entry["sounding"], strict=True))


def rendered_families(entry: dict[str, Any]) -> set[int]:
    """The rendered timbre families that belong to something visible: no off-screen sound may be of them."""
    visible = {name.split()[0] for seen in entry["visible"] for name in seen}
    return {index for index, family in enumerate(RENDERED) if family.name in visible}
