"""The model's features before and after the Contextual Integration Pyramid, as colours (paper V-E, Fig. 9 c and d)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from avsseg.media.probe import VideoInfo
from avsseg.media.windows import ClipWindow, clip_windows
from avsseg.pipeline.device import resolve_precision
from avsseg.pipeline.options import SegmentOptions
from avsseg.pipeline.scoring import class_probabilities
from avsseg.weights import LoadedModel

STRIDE = 4  # of the finest scale, which both features have
COLOUR_COMPONENTS = 3
RANGE_DEVIATIONS = 2.0  # of each component, from black to full colour


@dataclass(frozen=True, eq=False)
class FrameFeatures:
    """What goes into CIP at its finest scale and what comes out, float32 (C, h, w) at stride 4 each.

    `before` is F_v^1, the backbone's feature after its projection, which has heard nothing; `after` is the mask
    feature F. `index` and `timestamp_s` are those of the frame's mask.
    """

    index: int
    timestamp_s: float
    before: NDArray[np.float32]
    after: NDArray[np.float32]


class FeatureTrack(Iterator[FrameFeatures]):
    """The features of a video, frame by frame, in the windows of `avsseg.pipeline.segment`; close it.

    A frame that two windows share is shown as the earlier one saw it: features of two passes cannot be cross-faded.
    `damage` says at the end what could not be read.

    Raises:
        MediaError: the video cannot be read.
        UsageError: the range lies outside of it.
    """

    def __init__(self, info: VideoInfo, loaded: LoadedModel, options: SegmentOptions) -> None:
        self.damage: tuple[str, ...] = ()
        self._loaded = loaded
        self._size = options.size or loaded.input_size
        self._device = next(loaded.model.parameters()).device
        self._precision = resolve_precision(options.precision, self._device)
        self._windows = clip_windows(
            info,
            rate=options.rate,
            size=self._size,
            window=options.window,
            overlap=options.overlap,
            start_s=options.start_s,
            end_s=options.end_s,
            audio_track=options.audio_track,
        )
        self._features = self._read()

    def __next__(self) -> FrameFeatures:
        return next(self._features)

    def close(self) -> None:
        """Stops decoding; may be called twice."""
        self._windows.close()

    def _read(self) -> Iterator[FrameFeatures]:
        shown = 0
        with closing(self._windows):
            for window in self._windows:
                before, after = self._pass(window)
                for position, timestamp_s in enumerate(window.timestamps_s):
                    index = window.first_index + position
                    if index >= shown:
                        # copies: a view that is kept would keep the features of the whole window
                        yield FrameFeatures(index, timestamp_s, before[position].copy(), after[position].copy())
                shown = window.first_index + len(window.timestamps_s)
            self.damage = self._windows.warnings

    def _pass(self, window: ClipWindow) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        kept: list[Tensor] = []

        def keep(module: nn.Module, inputs: tuple[Any, ...], mask_feature: Tensor) -> None:
            kept.extend((inputs[0][0], mask_feature))  # both (T, C, h_1, w_1)

        with self._loaded.turn:
            hook = self._loaded.model.pyramid.register_forward_hook(keep)
            try:
                class_probabilities(self._loaded.model, [window], self._device, self._precision)
            finally:
                hook.remove()
        side = -(-self._size // STRIDE)  # what is beyond is padding to a multiple of the coarsest stride
        before, after = (feature[..., :side, :side].float().cpu().numpy() for feature in kept)
        return before, after


class FeatureMoments:
    """Mean and covariance of the pixels of feature maps (C, h, w), gathered map by map in float64."""

    def __init__(self) -> None:
        self._count = 0
        self._sum: NDArray[np.float64] | float = 0.0
        self._products: NDArray[np.float64] | float = 0.0

    def add(self, feature: NDArray[np.float32]) -> None:
        pixels = feature.reshape(len(feature), -1).astype(np.float64)  # (C, h * w)
        self._count += pixels.shape[1]
        self._sum = self._sum + pixels.sum(axis=1)
        self._products = self._products + pixels @ pixels.T

    def colours(self) -> PrincipalColours:
        """The three principal components of all maps that were added; at least one must have been."""
        mean = np.asarray(self._sum) / self._count
        covariance = np.asarray(self._products) / self._count - np.outer(mean, mean)
        variances, vectors = np.linalg.eigh(covariance)  # rising
        components = vectors[:, : -COLOUR_COMPONENTS - 1 : -1].T  # (3, C), the largest first
        # an eigenvector's sign is arbitrary: without a rule, a run on another machine could swap colours
        strongest = np.abs(components).argmax(axis=1)
        components = components * np.sign(components[np.arange(len(components)), strongest])[:, None]
        deviations = np.sqrt(np.maximum(variances[: -COLOUR_COMPONENTS - 1 : -1], 0))
        return PrincipalColours(mean, components, deviations)


@dataclass(frozen=True, eq=False)
class PrincipalColours:
    """Feature vectors to red, green and blue: their three principal components, one PCA for all that is shown.

    mean (C,), components (3, C) of unit length, deviations (3,), all float64.
    """

    mean: NDArray[np.float64]
    components: NDArray[np.float64]
    deviations: NDArray[np.float64]

    def paint(self, feature: NDArray[np.float32]) -> NDArray[np.uint8]:
        """(C, h, w) -> RGB (h, w, 3): mid-grey at the mean, black and full at `RANGE_DEVIATIONS` from it."""
        centred = feature.reshape(len(feature), -1) - self.mean[:, None]
        scores = self.components @ centred  # (3, h * w)
        reach = RANGE_DEVIATIONS * np.maximum(self.deviations, np.finfo(np.float32).tiny)
        levels = np.clip(0.5 + 0.5 * scores / reach[:, None], 0, 1)
        colours: NDArray[np.uint8] = np.rint(255 * levels).astype(np.uint8).T.reshape(*feature.shape[1:], -1)
        return colours
