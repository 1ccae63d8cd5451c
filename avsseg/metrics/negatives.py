"""Sounds that take the place of a clip's own: a model that listens must then give up its mask, or move it.

They replace the waveform, so that they pass the same front end as the sound they stand for.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from avsseg.data.synthetic_sound import FAMILIES, draw_timbre, synthesise
from avsseg.errors import UsageError

NEGATIVES = ("silence", "noise", "swap", "off-screen")
# below this a track is silent to the log-mel front end, whatever a lossy codec left in it
SILENT_RMS = 10 ** (-80 / 20)
NOISE_RMS = 10 ** (-30 / 20)
OFF_SCREEN_RMS = 10 ** (-20 / 20)

Wave = NDArray[np.float32]


def silence(waveform: Wave) -> Wave:
    """(n,) -> (n,) zeros."""
    return np.zeros_like(waveform)


def noise(waveform: Wave, rng: np.random.Generator) -> Wave:
    """(n,) -> (n,) white noise as loud as the waveform by RMS, -30 dBFS where that is silent (below -80 dBFS)."""
    level = _rms(waveform)
    # uniform, not normal: its peaks are 1.73 times the RMS, so that loud clips need no clipping
    return _at_rms(rng.uniform(-1, 1, len(waveform)), level if level >= SILENT_RMS else NOISE_RMS)


def swap_partner(
    index: int, visible: Sequence[Collection[str]], heard: Sequence[Collection[str]], names: Sequence[str]
) -> int:
    """The index of the clip whose sound clip `index` gets: one that `fits_swap` if there is one, else any other clip.

    All have one entry a clip: the classes in its picture, the classes that sound (none: silent, or not known), its
    name. The choice depends on the names alone, not on the order of the clips, and a clip added or removed changes few
    of the other choices.
    """
    if len(names) < 2:
        raise UsageError("a swap of sounds needs at least two clips, and there is only one")
    others = [k for k in range(len(names)) if k != index]
    fitting = [k for k in others if fits_swap(visible[index], heard[k])]
    return min(fitting or others, key=lambda k: (zlib.crc32(f"{names[index]}\n{names[k]}".encode()), k))


def fits_swap(visible: Collection[str], heard: Collection[str]) -> bool:
    """Whether a sound of the classes `heard` is one, and none of a class in the picture, where it would be right."""
    return bool(heard) and not set(heard) & set(visible)


def off_screen(n_samples: int, rng: np.random.Generator, present: Collection[int] = ()) -> Wave:
    """(n_samples,) at 16 kHz, -20 dBFS RMS: a rendered timbre that no recorded dataset has.

    For rendered scenes, whose classes sound like these families, `present` are the class indices in the picture.
    """
    absent = [k for k in range(len(FAMILIES)) if k not in present]
    if not absent:
        raise UsageError(f"all {len(FAMILIES)} rendered timbres are in the picture, none is left for off-screen")
    timbre = draw_timbre(rng, "example", absent[int(rng.integers(len(absent)))])
    return np.clip(_at_rms(synthesise(timbre, n_samples), OFF_SCREEN_RMS), -1, 1)


def _rms(waveform: NDArray[np.floating]) -> float:
    return float(np.linalg.norm(waveform.astype(np.float64))) / max(1, len(waveform)) ** 0.5


def _at_rms(waveform: NDArray[np.floating], rms: float) -> Wave:
    return (waveform * (rms / max(_rms(waveform), 1e-9))).astype(np.float32)
