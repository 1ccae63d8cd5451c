"""Settings of the main job; their defaults live here and nowhere else."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from avsseg.errors import UsageError
from avsseg.weights.registry import DEFAULT_MODEL

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Interpolation = Literal["hold", "linear"]
Format = Literal["overlay", "masks", "coco", "matte", "cutout", "csv"]

LARGEST_SIZE = 4096

FORMATS: tuple[Format, ...] = ("overlay", "masks", "coco", "matte", "cutout", "csv")
# those rendered at the video's own rate, which `interpolate` is about
VIDEO_FORMATS: tuple[Format, ...] = ("overlay", "matte", "cutout")


@dataclass(frozen=True)
class SegmentOptions:
    """How a video becomes a mask track.

    Attributes:
        rate: masks a second; mask k shows the frame on screen at ``start_s + (k + 0.5) / rate``.
        size: side in pixels of the square the model sees; None is the size the model was trained at.
        window: masks the model sees at once.
        overlap: masks that neighbouring windows share; their probabilities are cross-faded.
        start_s, end_s: the part of the video to segment, in seconds on the container's clock; None is its end.
        audio_track: which is listened to, from 1; None is the one that players play.
        precision: "auto" is float32 on the CPU and bfloat16 autocast on CUDA.

    Raises:
        UsageError: a value is out of its bounds.
    """

    rate: float = 1.0
    size: int | None = None
    window: int = 10
    overlap: int = 2
    start_s: float = 0.0
    end_s: float | None = None
    audio_track: int | None = None
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        if not 0.001 <= self.rate <= 1000:
            raise UsageError(f"rate is {self.rate}; it must be from 0.001 to 1000 masks a second")
        if self.size is not None and not 32 <= self.size <= LARGEST_SIZE:
            raise UsageError(f"size is {self.size}; it must be from 32 to {LARGEST_SIZE} pixels")
        if self.window < 1:
            raise UsageError(f"window is {self.window}; it must be at least 1 mask")
        if not 0 <= self.overlap < self.window:
            most = self.window - 1
            raise UsageError(f"overlap is {self.overlap}; with a window of {self.window} it must be from 0 to {most}")
        if not (math.isfinite(self.start_s) and self.start_s >= 0):
            raise UsageError(f"start is {self.start_s} s; it must be 0 or later")
        if self.end_s is not None and not self.end_s > self.start_s:
            raise UsageError(f"end is {self.end_s} s; it must be later than start, {self.start_s} s")
        if self.audio_track is not None and self.audio_track < 1:
            raise UsageError(f"audio track is {self.audio_track}; it must be 1 or more")


@dataclass(frozen=True)
class ModelOptions:
    """Which model runs and where.

    Attributes:
        model: name of a released model or path of a weights file.
        allow_untrained: accept a model whose weights were never trained; its masks mean nothing.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        threads: CPU threads of the model; None leaves PyTorch's choice.
        scan_backend: "auto" or a name that `avsseg info` lists.
    """

    model: str = DEFAULT_MODEL
    allow_untrained: bool = False
    device: str = "auto"
    threads: int | None = None
    scan_backend: str = "auto"


@dataclass(frozen=True)
class OutputOptions:
    """What is written from a mask track.

    Attributes:
        threshold: probability above which a pixel sounds; for a model with one class.
        interpolate: what a video (overlay, matte, cutout) shows between two masks: the nearer one or their mixture.
        names: an overlay says what sounds, where the model tells.
        overwrite: redo finished outputs instead of keeping them.
        strict: a damaged video is an error instead of a warning.
    """

    threshold: float = 0.5
    interpolate: Interpolation = "hold"
    names: bool = True
    overwrite: bool = False
    strict: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise UsageError(f"threshold is {self.threshold}; it must be between 0 and 1")
