"""Random changes of log-mel examples, so that a sound's class and not its recording is learned."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from avsseg.media.audio import LOG_OFFSET

# bands and frames; magnitudes as natural logarithms
PITCH_BANDS = 4.0
TILT = 0.6
BUMPS = 0.5
GAIN = 0.6
SLOWEST = 0.75
MASKED_BANDS = 10
MASKED_FRAMES = 24


def change_log_mel(log_mel: Tensor, rng: np.random.Generator) -> Tensor:
    """log_mel (T, 1, 96, 64) with another pitch, timbre, level and pace, parts of it masked; silence stays silence.

    Pitch, timbre and level are drawn once, what is masked and the pace (Park et al. 2019, SpecAugment) each second.
    """
    magnitude = (log_mel.exp() - LOG_OFFSET).clamp(min=0)
    magnitude = _shifted(magnitude, float(rng.uniform(-PITCH_BANDS, PITCH_BANDS)) if rng.uniform() < 0.6 else 0.0)
    bands = torch.linspace(-1, 1, magnitude.shape[-1])
    bumps = torch.from_numpy(rng.normal(0, BUMPS, (1, 1, 7)).astype(np.float32))
    curve = F.interpolate(bumps, size=len(bands), mode="linear", align_corners=True).flatten()
    level = float(rng.uniform(-GAIN, GAIN)) + float(rng.uniform(-TILT, TILT)) * bands + curve
    magnitude = magnitude * level.exp()
    seconds = [_masked(_slowed(second, rng), rng) for second in magnitude]
    return (torch.stack(seconds) + LOG_OFFSET).log()


def _shifted(magnitude: Tensor, bands: float) -> Tensor:
    """Moved up by `bands` of the last axis; what comes in from beyond the edge is silent."""
    if bands == 0:
        return magnitude
    whole = int(np.floor(bands))
    part = bands - whole

    def moved(by: int) -> Tensor:
        result = torch.zeros_like(magnitude)
        if by >= 0:
            result[..., by:] = magnitude[..., : magnitude.shape[-1] - by]
        else:
            result[..., :by] = magnitude[..., -by:]
        return result

    return moved(whole) * (1 - part) + moved(whole + 1) * part


def _slowed(second: Tensor, rng: np.random.Generator) -> Tensor:
    """A part of one second (1, 96, 64) drawn out to the whole, half the time."""
    if rng.uniform() < 0.5:
        return second
    frames = second.shape[-2]
    kept = int(rng.uniform(SLOWEST, 1) * frames)
    first = int(rng.integers(frames - kept + 1))
    return F.interpolate(second[None, :, first : first + kept], size=second.shape[-2:], mode="bilinear")[0]


def _masked(second: Tensor, rng: np.random.Generator) -> Tensor:
    """Silent in two ranges of bands and one of frames, each half the time."""
    for axis, most in ((-1, MASKED_BANDS), (-1, MASKED_BANDS), (-2, MASKED_FRAMES)):
        if rng.uniform() < 0.5:
            width = int(rng.integers(1, most + 1))
            first = int(rng.integers(second.shape[axis] - width + 1))
            second = second.clone()
            second.narrow(axis, first, width).zero_()
    return second
