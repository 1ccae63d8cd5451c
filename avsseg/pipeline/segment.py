"""One video: windows of frames and sound -> model -> masks, streaming."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from avsseg.errors import EnvironmentFault, UsageError, printable
from avsseg.media.probe import VideoInfo, probe
from avsseg.media.windows import clip_windows
from avsseg.ops import cpu
from avsseg.ops.selective_scan import set_default_backend
from avsseg.pipeline.device import channels_last, resolve_device, resolve_precision
from avsseg.pipeline.options import ModelOptions, SegmentOptions
from avsseg.pipeline.scoring import ScoredWindow, WindowScorer
from avsseg.weights import load_model
from avsseg.weights.registry import DEFAULT_MODEL

if TYPE_CHECKING:
    from avsseg.media.picture_end import PictureEnd
    from avsseg.weights import LoadedModel


@dataclass(frozen=True)
class Mask:
    """One mask of a track.

    Attributes:
        index: k, from 0.
        timestamp_s: the instant it belongs to, in seconds on the container's clock.
        probability: float32 (N_class, h, w) at the model's resolution; the whole picture, squashed to the model's
            square. One class: the probability that a pixel sounds. Several: probabilities that sum to 1 over classes.
        heard: float32 (K,), the probability that each of the track's `heard` classes sounds; K is 0 without any.
    """

    index: int
    timestamp_s: float
    probability: NDArray[np.float32]
    heard: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))


class MaskTrack(Iterator[Mask]):
    """The masks of one video, in order, computed as they are asked for.

    A context manager: leaving it stops the decoding. `total` is the number of masks if the file tells the truth about
    its length, None if it does not say. Once the track is exhausted, `damage` says what could not be read,
    `picture_end` where the picture ends, if that was reached, and `total` is the number that there were, unless some
    are missing.
    """

    def __init__(self, info: VideoInfo, loaded: LoadedModel, options: SegmentOptions, device: torch.device) -> None:
        self.info = info
        self.model_name = loaded.name
        self.model_sha256 = loaded.sha256
        self.trained = loaded.trained
        self.categories = tuple(loaded.categories)
        self.heard = loaded.heard
        self.size = options.size or loaded.input_size
        self.precision = resolve_precision(options.precision, device)
        self.damage: tuple[str, ...] = ()
        self.picture_end: PictureEnd | None = None
        self._notes: tuple[str, ...] = ()
        self._exhausted = self._closed = False
        self._windows = clip_windows(
            info,
            rate=options.rate,
            size=self.size,
            window=options.window,
            overlap=options.overlap,
            start_s=options.start_s,
            end_s=options.end_s,
            audio_track=options.audio_track,
        )
        self.total = self._windows.expected
        self._masks = self._segment(loaded, device)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know of the model and the file, and of what was found while reading it."""
        untrained = () if self.trained else (f"{self.model_name} was never trained: these masks are noise",)
        return (*untrained, *self.info.warnings, *self._notes, *self.damage)

    def __iter__(self) -> MaskTrack:
        return self

    def __next__(self) -> Mask:
        """Raises `ValueError` if the track was closed before its end."""
        if self._closed and not self._exhausted:
            raise ValueError(f"the masks of {printable(self.info.path)} were closed before their end")
        return next(self._masks)

    def __enter__(self) -> MaskTrack:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops decoding and frees the processes behind it."""
        self._closed = True
        self._masks.close()
        self._windows.close()

    def _segment(self, loaded: LoadedModel, device: torch.device) -> Generator[Mask, None, None]:
        yield from blend_windows(WindowScorer(loaded, device, self.precision).score(self._windows))
        windows = self._windows
        self.damage, self._notes, self.picture_end = windows.warnings, windows.notes, windows.picture_end
        if not windows.missing_s:
            self.total = windows.count
        self._exhausted = True


def segment(
    path: str | Path | VideoInfo,
    *,
    model: str | Path | LoadedModel = DEFAULT_MODEL,
    options: SegmentOptions | None = None,
    allow_untrained: bool = False,
    device: str = "auto",
) -> MaskTrack:
    """The mask track of a video: an iterator of `Mask`, computed window by window in bounded memory.

    Args:
        path: a video file, or what `probe` said about it.
        model: the name of a released model, a weights file, or a loaded model (then the next argument is not used).
        options: rate, size, window, overlap, start, end, audio track and precision; None is the defaults.
        allow_untrained: accept weights that were never trained.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".

    Raises:
        MediaError: the file cannot be read, or has no picture or no such audio track.
        WeightsError: the weights are missing, damaged or untrained.
        EnvironmentFault: no ffmpeg, or no such device.
        UsageError: an option is out of its bounds.
    """
    info = path if isinstance(path, VideoInfo) else probe(path)
    place = resolve_device(device)
    if isinstance(model, (str, Path)):
        model = load_model(model, allow_untrained=allow_untrained, device=place)
        channels_last(model.model)
    else:
        place = next(model.model.parameters()).device
    return MaskTrack(info, model, options or SegmentOptions(), place)


def load_for(options: ModelOptions) -> LoadedModel:
    """The model that the options name, on their device; sets the threads and the scan back end of this process.

    Raises:
        WeightsError: the weights are missing, damaged or untrained.
        EnvironmentFault: the device or the scan back end is not available here.
        UsageError: the scan back end does not run on that device.
    """
    device = resolve_device(options.device)
    place = {"cpp": "cpu", "triton": "cuda", "mamba-ssm": "cuda"}.get(options.scan_backend, device.type)
    if device.type != place:
        raise UsageError(
            f"the scan back end {options.scan_backend} does not run on {device}. "
            f"Use --device {place} or --scan-backend auto"
        )
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        set_default_backend(options.scan_backend)
    except ValueError as error:
        raise EnvironmentFault(f"{error}. Use --scan-backend auto") from error
    if not cpu.UNAVAILABLE_REASON:
        cpu.capability()
    loaded = load_model(options.model, allow_untrained=options.allow_untrained, device=device)
    channels_last(loaded.model)
    return loaded


def blend_windows(scored: Iterable[ScoredWindow]) -> Iterator[Mask]:
    """The masks of overlapping windows in order, cross-faded where windows share masks.

    With n shared masks the later window's weight rises as 1 / (n + 1), ..., n / (n + 1), so that no seam flickers.
    Only the masks that a later window may still change are held.
    """
    held: deque[Mask] = deque()
    for window, probability, heard in scored:
        while held and held[0].index < window.first_index:
            yield held.popleft()
        shared = len(held)
        planes = zip(window.timestamps_s, probability, heard, strict=True)
        for position, (timestamp_s, plane, sounds) in enumerate(planes):
            if position < shared:
                weight = np.float32((position + 1) / (shared + 1))
                earlier = held[position]
                blended = earlier.probability + weight * (plane - earlier.probability)
                # a second's sound is the same in every window that has it
                held[position] = Mask(earlier.index, earlier.timestamp_s, blended, sounds)
            else:
                held.append(Mask(window.first_index + position, timestamp_s, plane, sounds))
    yield from held
