from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from avsseg.media.probe import VideoInfo, probe
from avsseg.pipeline.segment import Mask
from avsseg.writers.base import TrackSettings


def _track_settings(
    categories: tuple[str, ...] = ("sounding",), *, threshold: float = 0.5, heard: tuple[str, ...] = ()
) -> TrackSettings:
    return TrackSettings(
        model="avs-mamba-tiny",
        model_sha256="ab" * 32,
        trained=True,
        categories=categories,
        rate=1.0,
        size=16,
        window=10,
        overlap=2,
        start_s=0.0,
        end_s=None,
        precision="fp32",
        threshold=threshold,
        avsseg_version="0.1.0",
        heard=heard,
    )


def _smooth_masks(count: int, classes: int = 1) -> list[Mask]:
    """A blob that moves right; with several classes, one blob a class over a background."""
    y, x = np.mgrid[0:16, 0:16].astype(np.float32) + 0.5
    masks = []
    for index in range(count):
        planes = [
            np.exp(-((x - 3 - index - 5 * c) ** 2 + (y - 8 + 3 * c) ** 2) / 8) for c in range(max(1, classes - 1))
        ]
        if classes > 1:
            planes = [np.full_like(x, 0.3), *planes]
        probability = np.stack(planes)
        masks.append(Mask(index, index + 0.5, probability if classes == 1 else probability / probability.sum(axis=0)))
    return masks


@pytest.fixture(scope="session")
def info(clip: Path) -> VideoInfo:
    return probe(clip)


@pytest.fixture(scope="session")
def track_settings() -> Callable[..., TrackSettings]:
    return _track_settings


@pytest.fixture(scope="session")
def smooth_masks() -> Callable[..., list[Mask]]:
    return _smooth_masks
